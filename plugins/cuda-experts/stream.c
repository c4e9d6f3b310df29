/* Experts that do not stay: they are copied into a ring of slots on a stream of their own. A copy waits until the last
 * products that read its slot are done, the products wait until the group's copies have landed. An expert goes over the
 * link once a step, whatever the number of rows. [engine] */
#include "device.h"

#define GROUPS 4u /* a group of streamed experts takes this part of the ring */
#define AHEAD 2u  /* rows an expert, on average, from which on all experts are taken to be asked for */

/* ---- the ring */

/* The next expert goes on its way, as soon as the products that read its slot are done. */
static int send(cu_dev *d, uint32_t bank, uint32_t e, ks_err *err)
{
    cu_experts *x = &d->ex;
    struct ring_slot *s = &x->ring[x->tail % x->n_ring];
    int rc;
    s->bank = bank;
    s->expert = e;
    if ((rc = cu_check(d, cudaStreamWaitEvent(d->copy, s->free, 0), "waiting for a slot", err)) ||
        (rc = cu_copy_expert(d, &x->banks[bank], e, s->p, err)) ||
        (rc = cu_check(d, cudaEventRecord(s->landed, d->copy), "an event", err)))
        return rc;
    x->tail++;
    return 0;
}

/* What was sent and not used is forgotten; copies into the same slots queue up behind. */
static void forget(cu_experts *x)
{
    x->tail = x->taken = x->head;
    x->ahead_bank = x->n_banks;
}

static int send_ahead(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    int rc = 0;
    while (x->ahead_bank < x->n_banks && x->tail - x->head < x->n_ring && !rc) {
        const struct dev_bank *b = &x->banks[x->ahead_bank];
        if (x->ahead_expert == b->n_experts) {
            x->ahead_bank++;
            x->ahead_expert = 0;
            continue;
        }
        if (!b->where[x->ahead_expert]) rc = send(d, x->ahead_bank, x->ahead_expert, err);
        x->ahead_expert++;
    }
    return rc;
}

/* With so many rows nearly every expert is asked for: they are sent in their order, through all layers. */
int cu_experts_begin(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    int rc = cu_place_begin(d, err);
    if (rc || !x->n_ring) return rc;
    if (x->cold_x && d->batch->n_rows < d->share_rows) { /* the host computes: nothing is sent unasked */
        forget(x);
        return 0;
    }
    const ks_op *op = cu_op(d->g, x->banks[0].op);
    if (x->tail > x->taken && (uint64_t)d->batch->n_rows * op->u.mlp.k >= AHEAD * x->banks[0].n_experts) return 0;
    forget(x);
    if ((uint64_t)d->batch->n_rows * op->u.mlp.k < AHEAD * x->banks[0].n_experts) return 0;
    x->ahead_bank = x->ahead_expert = 0;
    return send_ahead(d, err);
}

/* The slot of an expert that is not resident: it was sent ahead, or goes now. */
int cu_ring_take(cu_dev *d, uint32_t bank, uint32_t e, struct ring_slot **ret, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct ring_slot *next = &x->ring[x->taken % x->n_ring];
    int rc = 0;
    if (x->taken < x->tail && (next->bank != bank || next->expert != e)) { /* somebody else's order of ops */
        x->tail = x->taken;
        x->ahead_bank = x->n_banks;
    }
    if (x->taken == x->tail) rc = send(d, bank, e, err);
    *ret = &x->ring[x->taken % x->n_ring];
    x->taken += !rc;
    return rc;
}

/* Sent ahead, and no row wants it. */
static void skip(cu_experts *x, uint32_t bank, uint32_t e)
{
    const struct ring_slot *next = &x->ring[x->taken % x->n_ring];
    if (x->taken < x->tail && next->bank == bank && next->expert == e) x->taken++;
}

/* All products with the taken slots are launched. */
int cu_ring_give_back(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    int rc = 0;
    for (; x->head < x->taken && !rc; x->head++)
        rc = cu_check(d, cudaEventRecord(x->ring[x->head % x->n_ring].free, d->compute), "an event", err);
    return rc ? rc : send_ahead(d, err);
}

/* ---- streamed experts */

/* Experts [*at, ...) of a group: as many as a part of the ring holds, so that the next ones come while these compute.
 */
static int fill_group(cu_dev *d, uint32_t bank, uint32_t *at, uint32_t ref, struct cu_job *j, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *b = &x->banks[bank];
    uint32_t cap = cu_max(x->n_ring / GROUPS, 1), e = *at;
    uint64_t hot = 0, cold = 0, first = x->taken;
    struct ring_slot *last = NULL;
    int rc = 0;
    j->first = x->begin_host[e];
    for (; e < b->n_experts && !rc; e++) {
        uint32_t n = x->begin_host[e + 1] - x->begin_host[e];
        const uint8_t *w = b->where[e];
        if (!w && x->taken - first == cap) break;
        if (!n) {
            if (!w) skip(x, bank, e);
            continue;
        }
        *(w ? &hot : &cold) += n;
        if (!w && !(rc = cu_ring_take(d, bank, e, &last, err))) w = last->p;
        x->refs_host[ref + j->n_mat++] = (cu_ref) { w, e, x->begin_host[e], n, 0 };
        j->n_rows = cu_max(j->n_rows, n);
    }
    j->n_pairs = x->begin_host[e] - j->first;
    *at = e;
    atomic_fetch_add_explicit(&d->hot, hot, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->cold, cold, memory_order_relaxed);
    if (!rc && last) rc = cu_check(d, cudaStreamWaitEvent(d->compute, last->landed, 0), "waiting for experts", err);
    return rc;
}

int cu_run_streamed(cu_dev *d, const ks_op *op, uint32_t bank, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *b = &x->banks[bank];
    int rc = cu_check(d,
                      cudaMemcpyAsync(x->begin_host, x->begin, (b->n_experts + 1) * sizeof *x->begin,
                                      cudaMemcpyDeviceToHost, d->compute),
                      "routed pairs", err);
    if (!rc) rc = cu_wait(d, "routed pairs", err);
    for (uint32_t e = 0, ref = 0; e < b->n_experts && !rc;) {
        struct cu_job j = { .op = op, .bank = b, .refs = x->refs + ref };
        if ((rc = fill_group(d, bank, &e, ref, &j, err))) break;
        if (j.n_mat) {
            rc = cu_check(d,
                          cudaMemcpyAsync(x->refs + ref, x->refs_host + ref, j.n_mat * sizeof *x->refs,
                                          cudaMemcpyHostToDevice, d->compute),
                          "routed pairs", err);
            if (rc) break;
            ref += j.n_mat;
            cu_products(d, &j);
        }
        rc = cu_ring_give_back(d, err);
    }
    if (!rc) cu_combine_pairs(d, op);
    return rc;
}
