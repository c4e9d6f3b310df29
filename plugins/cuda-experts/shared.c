/* EXPERTS shared with the host: few rows, whose cold experts its cores compute from the same bytes while the device has
 * the hot ones, and as many of the cold as the link can bring meanwhile. [engine] */
#include "device.h"

#include <string.h>

#define FEW_ROWS 4u     /* up to here the host's cores wait for memory, not for arithmetic */
#define MAX_FETCHED 16u /* of one layer's cold experts, by steps that leave the others to the host */

/* Input and routes to the host; keep: the pairs that are its. */
static int fetch_cold(cu_dev *d, const ks_op *op, const struct dev_bank *b, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_reg *in = &d->regs[op->in[0]], *route = &d->regs[op->in[1]];
    uint32_t n = d->batch->n_rows, k = op->u.mlp.k;
    size_t row = (size_t)in->width * sizeof(float), pairs = (size_t)k * 8;
    int rc = cu_check(d,
                      cudaMemcpy2DAsync(x->cold_x, row, in->r.p, in->r.stride * sizeof(float), row, n,
                                        cudaMemcpyDeviceToHost, d->compute),
                      "rows for the host's experts", err);
    if (!rc)
        rc = cu_check(d,
                      cudaMemcpy2DAsync(x->cold_route, pairs, route->r.p, route->r.stride * 8, pairs, n,
                                        cudaMemcpyDeviceToHost, d->compute),
                      "rows for the host's experts", err);
    if (!rc)
        rc = cu_check(d,
                      cudaMemcpyAsync(x->begin_host, x->begin, (b->n_experts + 1) * sizeof *x->begin,
                                      cudaMemcpyDeviceToHost, d->compute),
                      "routed pairs", err);
    if (!rc) rc = cu_wait(d, "rows for the host's experts", err);
    atomic_fetch_add_explicit(&d->bytes_out, n * (row + pairs), memory_order_relaxed);
    for (size_t i = 0; i < (size_t)n * k && !rc; i++) {
        memcpy(&x->cold_ids[i], (const uint8_t *)x->cold_route + i * 8, 4);
        memcpy(&x->cold_weights[i], (const uint8_t *)x->cold_route + i * 8 + 4, 4);
    }
    return rc;
}

/* The hottest cold expert of the op that is not fetched yet; n_experts: there is none. */
static uint32_t hottest_cold(const cu_dev *d, const struct dev_bank *b)
{
    const cu_experts *x = &d->ex;
    const uint64_t *heat = b->layer < d->g->n_layers ? x->heat_host + (size_t)b->layer * d->g->n_experts : NULL;
    uint32_t best = b->n_experts;
    for (uint32_t e = 0; e < b->n_experts; e++)
        if (x->begin_host[e + 1] > x->begin_host[e] && !b->where[e] && !x->fetched[e] &&
            (best == b->n_experts || (heat && heat[e] > heat[best])))
            best = e;
    return best;
}

/* Where the link has time that the host's cores leave it: so many of the cold experts come over it that both end
 * together, by their measured rates; the hottest, since they are asked for by most rows to come. Only where the host
 * lets bits depend on rates. */
static int fetch_some(cu_dev *d, uint32_t bank, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *b = &x->banks[bank];
    double cpu = x->cpu_ns[d->batch->n_rows > FEW_ROWS];
    uint32_t n_cold = 0, most = cu_min(x->n_ring, MAX_FETCHED);
    int rc = 0;
    memset(x->fetched, 0, b->n_experts * sizeof *x->fetched);
    x->n_fetched = 0;
    if (d->bind.host_places != KS_PLACES_BY_RATE || x->link_ns <= 0 || cpu <= 0) return 0;
    for (uint32_t e = 0; e < b->n_experts; e++) n_cold += x->begin_host[e + 1] > x->begin_host[e] && !b->where[e];
    uint32_t n = cu_min((uint32_t)(n_cold * cpu / (cpu + x->link_ns)), most);
    for (; x->n_fetched < n && !rc; x->n_fetched++) {
        uint32_t e = hottest_cold(d, b);
        rc = cu_ring_take(d, bank, e, &x->fetched[e], err);
    }
    return rc;
}

/* Which pairs are the host's; returns their number, and the experts they have in *ret_experts. */
static uint32_t keep_cold(cu_dev *d, const ks_op *op, const struct dev_bank *b, uint32_t *ret_experts)
{
    cu_experts *x = &d->ex;
    uint32_t n = 0, pairs = d->batch->n_rows * op->u.mlp.k;
    for (uint32_t i = 0; i < pairs; i++) {
        x->cold_keep[i] = !b->where[x->cold_ids[i]] && !x->fetched[x->cold_ids[i]];
        n += x->cold_keep[i];
    }
    *ret_experts = 0;
    for (uint32_t e = 0; e < b->n_experts; e++)
        *ret_experts += x->begin_host[e + 1] > x->begin_host[e] && !b->where[e] && !x->fetched[e];
    return n;
}

/* Products of the experts that are resident, or of those that were fetched; refs [*ref, ...) are theirs. */
static int launch_some(cu_dev *d, const ks_op *op, const struct dev_bank *b, bool fetched, uint32_t *ref, ks_err *err)
{
    cu_experts *x = &d->ex;
    struct cu_job j = { .op = op, .bank = b, .refs = x->refs + *ref, .n_pairs = d->batch->n_rows * op->u.mlp.k };
    uint64_t pairs = 0;
    for (uint32_t e = 0; e < b->n_experts; e++) {
        uint32_t n = x->begin_host[e + 1] - x->begin_host[e];
        const uint8_t *w = !fetched ? b->where[e] : x->fetched[e] ? x->fetched[e]->p : NULL;
        if (!n || !w) continue;
        x->refs_host[*ref + j.n_mat++] = (cu_ref) { w, e, x->begin_host[e], n, 0 };
        j.n_rows = cu_max(j.n_rows, n);
        pairs += n;
    }
    if (!fetched) {
        atomic_fetch_add_explicit(&d->hot, pairs, memory_order_relaxed);
        atomic_fetch_add_explicit(&d->cold, j.n_pairs - pairs, memory_order_relaxed);
    }
    if (!j.n_mat) return 0;
    int rc = cu_check(d,
                      cudaMemcpyAsync(x->refs + *ref, x->refs_host + *ref, j.n_mat * sizeof *x->refs,
                                      cudaMemcpyHostToDevice, d->compute),
                      "routed pairs", err);
    *ref += j.n_mat;
    if (!rc) cu_products(d, &j);
    return rc;
}

/* The device's part: the places of the others in the sum hold zeros. Resident experts do not wait for the fetched. */
static int launch_hot(cu_dev *d, const ks_op *op, const struct dev_bank *b, ks_err *err)
{
    cu_experts *x = &d->ex;
    size_t out = (size_t)d->batch->n_rows * op->u.mlp.k * cu_gweight(d->g, op->w[1])->n_out;
    uint32_t ref = 0;
    int rc = cu_check(d, cudaMemsetAsync(x->out, 0, out * sizeof(float), d->compute), "the experts' sums", err);
    if (!rc) rc = launch_some(d, op, b, false, &ref, err);
    if (rc || !x->n_fetched) return rc;
    const struct ring_slot *last = &x->ring[(x->taken - 1) % x->n_ring];
    rc = cu_check(d, cudaStreamWaitEvent(d->compute, last->landed, 0), "waiting for experts", err);
    if (!rc) rc = launch_some(d, op, b, true, &ref, err);
    return rc ? rc : cu_ring_give_back(d, 0, err);
}

/* What the host's cores need for an expert's byte, smoothed. */
static void measure_cold(cu_dev *d, const struct dev_bank *b, uint32_t n_experts, uint64_t ns)
{
    double *cpu = &d->ex.cpu_ns[d->batch->n_rows > FEW_ROWS];
    double now = (double)ns / ((double)n_experts * (double)(b->gate_up_bytes + b->down_bytes));
    *cpu = *cpu > 0 ? *cpu + (now - *cpu) / 8 : now;
    atomic_fetch_add_explicit(&d->cold_ns, ns, memory_order_relaxed);
}

/* A row's sum: the experts on the device in ascending order, plus the sum of the host's in ascending order. */
int cu_run_shared(cu_dev *d, const ks_op *op, uint32_t bank, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *b = &x->banks[bank];
    uint32_t n = d->batch->n_rows, cols = cu_gweight(d->g, op->w[1])->n_out, n_experts = 0;
    int rc = fetch_cold(d, op, b, err);
    if (!rc) rc = fetch_some(d, bank, err);
    if (!rc) rc = launch_hot(d, op, b, err);
    if (rc) return rc;
    cu_combine_pairs(d, op);
    if (!keep_cold(d, op, b, &n_experts)) return 0;
    uint64_t t0 = cu_now_ns();
    d->bind.cold(d->bind.cold_ctx, b->op, n, x->cold_x, x->cold_ids, x->cold_weights, x->cold_keep, x->cold_y);
    measure_cold(d, b, n_experts, cu_now_ns() - t0);
    size_t bytes = (size_t)n * cols * sizeof(float);
    atomic_fetch_add_explicit(&d->bytes_in, bytes, memory_order_relaxed);
    rc = cu_check(d, cudaMemcpyAsync(x->cold_sum, x->cold_y, bytes, cudaMemcpyHostToDevice, d->compute),
                  "results of the host's experts", err);
    cu_reg y = d->regs[op->out[0]].r, s = { x->cold_sum, cols };
    if (!rc) cu_launch_add(y, s, y, NULL, 1, 1, n, cols, d->compute);
    return rc;
}
