/* EXPERTS: memory and tables of the experts, their products, and who brings which.
 *
 * Resident experts have a slot each; which ones is place()'s choice, at first the lowest of every layer. The others
 * are streamed (stream.c) or, in steps of few rows, left to the host (shared.c). Products, sums and their order are the
 * same for resident and streamed ones, so the bits are. [engine] */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#define NOBODY UINT32_MAX

/* ---- bind */

static int add_bank(cu_dev *d, uint32_t i, ks_err *err)
{
    const ks_op *op = cu_op(d->g, i);
    const ks_weight *gu = cu_gweight(d->g, op->w[0]), *down = cu_gweight(d->g, op->w[1]);
    struct dev_bank *b = &d->ex.banks[d->ex.n_banks++];
    const uint8_t *p = gu->data, *q = down->data;
    *b = (struct dev_bank) { .op = i, .layer = op->layer, .n_experts = op->u.mlp.n_experts };
    b->gate_up = p;
    b->down = q;
    b->gate_up_stride = gu->stride;
    b->down_stride = down->stride;
    size_t apart = p || q ? (size_t)(q - p) : cu_round(gu->mat_bytes, 64); /* no data yet: as the store will lay them */
    b->one_copy =
        q >= p && gu->stride == down->stride && apart >= gu->mat_bytes && apart + down->mat_bytes <= gu->stride;
    b->gate_up_bytes = gu->mat_bytes;
    b->down_bytes = down->mat_bytes;
    b->down_off = b->one_copy ? apart : cu_round(gu->mat_bytes, 256);
    size_t bytes = cu_round(b->down_off + down->mat_bytes, 256);
    if (bytes > d->ex.slot_bytes) d->ex.slot_bytes = bytes;
    if (!(b->where = cu_alloc_host(d, b->n_experts, sizeof *b->where, "the experts' table", err)) ||
        !(b->where_dev = cu_alloc(d, b->n_experts, sizeof *b->where, CU_FOR_TABLES, err)))
        return KS_E_NOMEM;
    return 0;
}

static int alloc_work(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    size_t gu = 0, hidden = 0, out = 0, act_rows = 0, pairs = 0, rows = cu_max(d->piece_rows, d->bind.max_out);
    uint32_t act_width = 0, n_experts = 0;
    for (uint32_t i = d->bind.op_begin; i < d->bind.op_end; i++) {
        const ks_op *op = cu_op(d->g, i);
        if (!d->mine[i] || (op->kind != KS_OP_EXPERTS && op->kind != KS_OP_MLP)) continue;
        bool many = op->kind == KS_OP_EXPERTS;
        size_t n = many ? (size_t)d->piece_rows * op->u.mlp.k : rows;
        const ks_weight *w = cu_gweight(d->g, op->w[0]), *v = cu_gweight(d->g, op->w[1]);
        if (n * w->n_out > gu) gu = n * w->n_out;
        if (n * op->u.mlp.n_ff > hidden) hidden = n * op->u.mlp.n_ff;
        if (cu_is_quantized(v->type)) {
            if (n > act_rows) act_rows = n;
            act_width = cu_max(act_width, op->u.mlp.n_ff);
        }
        if (!many) continue;
        x->cap_pairs = x->cap_pairs && x->cap_pairs < n ? x->cap_pairs : n;
        if ((size_t)d->bind.max_rows * op->u.mlp.k > pairs) pairs = (size_t)d->bind.max_rows * op->u.mlp.k;
        if (n * v->n_out > out) out = n * v->n_out;
        n_experts = cu_max(n_experts, op->u.mlp.n_experts);
    }
    size_t refs = n_experts + (x->cap_pairs ? pairs / x->cap_pairs + 1 : 0); /* the pairs of one may be cut */
    if (!(x->gate_up = cu_alloc(d, gu, sizeof(float), CU_FOR_ACTS, err)) ||
        !(x->hidden = cu_alloc(d, hidden, sizeof(float), CU_FOR_ACTS, err)) ||
        !(x->out = cu_alloc(d, out, sizeof(float), CU_FOR_ACTS, err)) ||
        !(x->begin = cu_alloc(d, (size_t)n_experts + 1, sizeof(uint32_t), CU_FOR_ACTS, err)) ||
        !(x->begin_host = cu_alloc_pinned(d, (size_t)n_experts + 1, sizeof(uint32_t), "routed pairs", err)) ||
        !(x->pair_row = cu_alloc(d, pairs, sizeof(uint32_t), CU_FOR_ACTS, err)) ||
        !(x->slot_pair = cu_alloc(d, pairs, sizeof(uint32_t), CU_FOR_ACTS, err)) ||
        !(x->pair_weight = cu_alloc(d, pairs, sizeof(float), CU_FOR_ACTS, err)) ||
        !(x->refs = cu_alloc(d, refs, sizeof *x->refs, CU_FOR_ACTS, err)) ||
        !(x->refs_host = cu_alloc_pinned(d, refs, sizeof *x->refs, "routed pairs", err)) ||
        !(x->n_refs = cu_alloc(d, 1, sizeof *x->n_refs, CU_FOR_ACTS, err)) ||
        !(x->heat = cu_alloc(d, (size_t)d->g->n_layers * d->g->n_experts, sizeof *x->heat, CU_FOR_TABLES, err)))
        return KS_E_NOMEM;
    return act_rows ? cu_alloc_act(d, &x->hidden_act, act_rows, act_width, err) : 0;
}

/* Pins the banks for DMA. Where the system refuses, copies go through the driver's own buffer: slow, but right. */
static int by_begin(const void *a, const void *b)
{
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return x < y ? -1 : x > y;
}

static void pin_range(cu_dev *d, uintptr_t begin, uintptr_t end)
{
    cudaError_t rc = cudaHostRegister((void *)begin, end - begin, cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (rc == cudaSuccess) {
        d->ex.registered[d->ex.n_registered++] = (void *)begin;
        for (uint32_t i = 0; i < d->ex.n_banks; i++)
            d->ex.banks[i].pinned |=
                (uintptr_t)d->ex.banks[i].gate_up >= begin && (uintptr_t)d->ex.banks[i].gate_up < end;
        return;
    }
    char line[256];
    (void)cudaGetLastError();
    (void)snprintf(line, sizeof line, "GPU %d: %.1f GB of experts cannot be pinned (%s): copies will be slow", d->index,
                   (double)(end - begin) / 1e9, cudaGetErrorString(rc));
    d->host->log(d->host, KS_LOG_WARN, line);
}

static int pin_banks(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    uint32_t n = 0;
    uintptr_t(*r)[2] = cu_alloc_host(d, 2 * (size_t)x->n_banks, sizeof *r, "the experts' table", err);
    x->registered = cu_alloc_host(d, 2 * (size_t)x->n_banks, sizeof *x->registered, "the experts' table", err);
    if (!r || !x->registered) {
        free(r);
        return KS_E_NOMEM;
    }
    for (uint32_t i = 0; i < x->n_banks; i++) {
        const struct dev_bank *b = &x->banks[i];
        uintptr_t p = (uintptr_t)b->gate_up, q = (uintptr_t)b->down, last = b->n_experts - 1;
        r[n][0] = p & ~(uintptr_t)4095;
        r[n++][1] = cu_round(p + last * b->gate_up_stride + b->gate_up_bytes, 4096);
        r[n][0] = q & ~(uintptr_t)4095;
        r[n++][1] = cu_round(q + last * b->down_stride + b->down_bytes, 4096);
    }
    qsort(r, n, sizeof *r, by_begin);
    for (uint32_t i = 0, j; i < n; i = j) {
        uintptr_t end = r[i][1];
        for (j = i + 1; j < n && r[j][0] <= end; j++) end = r[j][1] > end ? r[j][1] : end;
        pin_range(d, r[i][0], end);
    }
    free(r);
    return 0;
}

static int alloc_places(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    uint64_t total = 0;
    uint32_t widest = 0;
    for (uint32_t i = 0; i < x->n_banks; i++) {
        total += x->banks[i].n_experts;
        widest = cu_max(widest, x->banks[i].n_experts);
    }
    int rc = cu_plan_experts(d, total, widest, x->slot_bytes, &x->n_ring, &x->n_slots, err);
    if (rc) return rc;
    uint8_t *ring = x->n_ring ? cu_alloc(d, x->n_ring, x->slot_bytes, CU_FOR_RING, err) : NULL;
    uint8_t *slots = x->n_slots ? cu_alloc(d, x->n_slots, x->slot_bytes, CU_FOR_RESIDENT, err) : NULL;
    x->ring = cu_alloc_host(d, x->n_ring, sizeof *x->ring, "the ring", err);
    x->slots = cu_alloc_host(d, x->n_slots, sizeof *x->slots, "resident experts", err);
    if ((x->n_ring && !ring) || (x->n_slots && !slots) || !x->ring || !x->slots) return KS_E_NOMEM;
    for (uint32_t i = 0; i < x->n_ring; i++) x->ring[i].p = ring + i * x->slot_bytes;
    for (uint32_t i = 0; i < x->n_slots; i++)
        x->slots[i] = (struct dev_slot) { slots + i * x->slot_bytes, NOBODY, 0, 0, false };
    return cu_place_lay_out(d, err);
}

static int make_events(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    int rc = 0;
    for (uint32_t i = 0; i < x->n_ring && !rc; i++) {
        struct ring_slot *s = &x->ring[i];
        rc = cu_check(d, cudaEventCreateWithFlags(&s->free, cudaEventDisableTiming), "an event", err);
        if (!rc) rc = cu_check(d, cudaEventCreateWithFlags(&s->landed, cudaEventDisableTiming), "an event", err);
    }
    return rc;
}

int cu_copy_expert(cu_dev *d, const struct dev_bank *b, uint32_t e, uint8_t *to, ks_err *err)
{
    size_t first = b->one_copy ? b->down_off + b->down_bytes : b->gate_up_bytes;
    atomic_fetch_add_explicit(&d->bytes_in, b->one_copy ? first : first + b->down_bytes, memory_order_relaxed);
    int rc =
        cu_check(d, cudaMemcpyAsync(to, b->gate_up + e * b->gate_up_stride, first, cudaMemcpyHostToDevice, d->copy),
                 "an expert's copy", err);
    if (rc || b->one_copy) return rc;
    return cu_check(
        d,
        cudaMemcpyAsync(to + b->down_off, b->down + e * b->down_stride, b->down_bytes, cudaMemcpyHostToDevice, d->copy),
        "an expert's copy", err);
}

int cu_copy_experts(cu_dev *d, const struct dev_bank *b, uint32_t e, uint32_t n, uint8_t *to, ks_err *err)
{
    size_t bytes = b->down_off + b->down_bytes;
    if (n == 1) return cu_copy_expert(d, b, e, to, err);
    atomic_fetch_add_explicit(&d->bytes_in, n * bytes, memory_order_relaxed);
    return cu_check(d,
                    cudaMemcpy2DAsync(to, d->ex.slot_bytes, b->gate_up + e * b->gate_up_stride, b->gate_up_stride,
                                      bytes, n, cudaMemcpyHostToDevice, d->copy),
                    "experts' copies", err);
}

int cu_experts_lay_out(cu_dev *d, ks_err *err)
{
    uint32_t n = 0;
    int rc;
    for (uint32_t i = d->bind.op_begin; i < d->bind.op_end; i++)
        n += d->mine[i] && cu_op(d->g, i)->kind == KS_OP_EXPERTS;
    if (!(d->ex.banks = cu_alloc_host(d, n, sizeof *d->ex.banks, "the experts' table", err))) return KS_E_NOMEM;
    for (uint32_t i = d->bind.op_begin; i < d->bind.op_end; i++)
        if (d->mine[i] && cu_op(d->g, i)->kind == KS_OP_EXPERTS && (rc = add_bank(d, i, err))) return rc;
    if ((rc = alloc_work(d, err)) || (rc = cu_share_lay_out(d, err))) return rc;
    return alloc_places(d, err);
}

int cu_experts_fill(cu_dev *d, ks_err *err)
{
    int rc;
    if ((rc = make_events(d, err)) || (rc = pin_banks(d, err)) || (rc = cu_share_fill(d, err))) return rc;
    return cu_place_first(d, err);
}

void cu_experts_unbind(cu_dev *d)
{
    cu_experts *x = &d->ex;
    cu_place_unbind(d);
    for (uint32_t i = 0; i < x->n_banks; i++) free(x->banks[i].where);
    for (uint32_t i = 0; i < x->n_ring && x->ring; i++) { /* a lost device cannot; there is nothing to do about it */
        if (x->ring[i].free) (void)cudaEventDestroy(x->ring[i].free);
        if (x->ring[i].landed) (void)cudaEventDestroy(x->ring[i].landed);
    }
    for (uint32_t i = 0; i < x->n_registered; i++) (void)cudaHostUnregister(x->registered[i]);
    free(x->banks);
    free(x->slots);
    free(x->ring);
    free(x->registered);
    cu_share_unbind(d);
    *x = (cu_experts) { 0 };
}

/* ---- run */

static void set_refs(const cu_dev *d, cu_matmul *m, const struct cu_job *j, size_t w_off, int32_t bias)
{
    m->n_mat = j->n_mat;
    m->n_pairs = j->n_pairs;
    m->refs = j->refs;
    m->n_refs = j->n_refs;
    m->w = NULL;
    m->w_off = w_off;
    m->bias = cu_vector(d, bias);
    m->bias_stride = bias < 0 ? 0 : d->weights[bias].stride / sizeof(float);
}

void cu_activate(cu_dev *d, cu_matmul *m, cu_glu g, uint32_t first)
{
    bool quantized = cu_is_quantized(m->type);
    m->x = g.y.p;
    m->x_stride = g.y.stride;
    if (quantized && d->opts->fuse && cu_quantizes(m->n_rows, g.n, m->n_out)) {
        m->glu = g;
        return;
    }
    m->act = d->ex.hidden_act;
    g.x.p += first * g.x.stride;
    g.y.p += first * g.y.stride;
    if (g.weight) g.weight += first;
    if (quantized)
        cu_launch_glu_quant(&g, cu_act_from(m->act, first), d->compute);
    else
        cu_launch_glu(&g, d->compute);
}

void cu_products(cu_dev *d, const struct cu_job *j)
{
    cu_experts *x = &d->ex;
    const ks_op *op = j->op;
    uint32_t n_ff = op->u.mlp.n_ff;
    cu_matmul m = cu_matmul_of(d, op->w[0], j->n_rows);
    set_refs(d, &m, j, 0, op->w[2]);
    cu_set_input(&m, &d->regs[op->in[0]]);
    m.rows = x->pair_row + j->base;
    m.y = x->gate_up;
    m.y_stride = m.n_out;
    cu_launch_matmul(&m, d->compute);
    cu_glu g = { .kind = op->u.mlp.act,
                 .n_rows = j->n_pairs,
                 .n = n_ff,
                 .limit = op->u.mlp.limit,
                 .alpha = op->u.mlp.alpha,
                 .x = { x->gate_up, m.n_out },
                 .y = { x->hidden, n_ff },
                 .weight = op->u.mlp.weigh_input ? x->pair_weight + j->base : NULL };
    m = cu_matmul_of(d, op->w[1], j->n_rows);
    set_refs(d, &m, j, j->bank->down_off, op->w[3]);
    cu_activate(d, &m, g, j->first);
    m.y = x->out;
    m.y_stride = m.n_out;
    cu_launch_matmul(&m, d->compute);
}

void cu_combine_some(cu_dev *d, const ks_op *op, uint32_t first, uint32_t n)
{
    cu_experts *x = &d->ex;
    cu_combine c = { .n_rows = d->batch->n_rows,
                     .k = op->u.mlp.k,
                     .n_cols = cu_gweight(d->g, op->w[1])->n_out,
                     .first = first,
                     .n = n,
                     .clear = first == 0,
                     .slot_pair = x->slot_pair,
                     .pair_weight = op->u.mlp.weigh_input ? NULL : x->pair_weight,
                     .x = x->out,
                     .y = d->regs[op->out[0]].r };
    cu_launch_combine(&c, d->compute);
}

void cu_combine_pairs(cu_dev *d, const ks_op *op)
{
    cu_combine_some(d, op, 0, d->batch->n_rows * op->u.mlp.k);
}

static void quantize_input(cu_dev *d, const ks_op *op)
{
    if (cu_is_quantized(cu_gweight(d->g, op->w[0])->type)) cu_quantize(d, op->in[0]);
}

/* Of all pairs, as cu_combine_pairs adds them up. */
cu_sum cu_sum_of(const cu_dev *d, const ks_op *op)
{
    const cu_experts *x = &d->ex;
    return (cu_sum) { .n_rows = d->step_rows,
                      .k = op->u.mlp.k,
                      .n_cols = cu_gweight(d->g, op->w[1])->n_out,
                      .slot_pair = x->slot_pair,
                      .pair_weight = op->u.mlp.weigh_input ? NULL : x->pair_weight,
                      .x = x->out,
                      .y = d->regs[op->out[0]].r };
}

/* Pairs by expert; `offer`, or, with how CU_CHOOSE_REFS, where to find those that all are here. */
int cu_choose_experts(cu_dev *d, const ks_op *op, const struct dev_bank *b, uint32_t how, const cu_offer *offer,
                      ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_reg *route = &d->regs[op->in[1]];
    cu_choose c = { .how = how };
    c.sort = (cu_sort) { .n_rows = d->batch->n_rows,
                         .k = op->u.mlp.k,
                         .n_experts = b->n_experts,
                         .route = route->r.p,
                         .route_stride = route->r.stride,
                         .begin = x->begin,
                         .pair_row = x->pair_row,
                         .pair_weight = x->pair_weight,
                         .slot_pair = x->slot_pair,
                         .heat = op->layer < d->g->n_layers ? x->heat + (size_t)op->layer * d->g->n_experts : NULL };
    if (offer) c.offer = *offer;
    if (x->route) c.route = cu_route_of(d, x->route);
    return cu_check(d, (cudaError_t)cu_launch_choose(&c, d->compute), "choosing experts", err);
}

/* Nothing to bring: the device finds the experts itself, the host need not know. */
static int run_resident(cu_dev *d, const ks_op *op, const struct dev_bank *b, ks_err *err)
{
    cu_experts *x = &d->ex;
    uint32_t n = d->batch->n_rows * op->u.mlp.k;
    cu_offer here = { .where = b->where_dev, .refs = x->refs, .n_refs = x->n_refs };
    int rc = cu_choose_experts(d, op, b, CU_CHOOSE_REFS, &here, err);
    if (rc) return rc;
    quantize_input(d, op);
    struct cu_job j = { .op = op,
                        .bank = b,
                        .refs = x->refs,
                        .n_refs = x->n_refs,
                        .n_mat = cu_min(b->n_experts, n),
                        .n_rows = d->batch->n_rows,
                        .n_pairs = n };
    cu_products(d, &j);
    if (x->adds)
        x->pending = cu_sum_of(d, op);
    else
        cu_combine_pairs(d, op);
    atomic_fetch_add_explicit(&d->hot, n, memory_order_relaxed);
    return 0;
}

static int run_streamed(cu_dev *d, const ks_op *op, uint32_t bank, ks_err *err)
{
    int rc = cu_choose_experts(d, op, &d->ex.banks[bank], CU_CHOOSE_NONE, NULL, err);
    if (rc) return rc;
    quantize_input(d, op);
    return cu_run_streamed(d, op, bank, err);
}

int cu_experts_run(cu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    cu_experts *x = &d->ex;
    uint32_t bank = 0;
    int rc;
    while (x->banks[bank].op != index) bank++;
    const struct dev_bank *b = &x->banks[bank];
    if (cu_shares(d)) /* quantizes after the offer */
        rc = cu_run_shared(d, op, bank, err);
    else if (b->n_resident == b->n_experts && (size_t)d->batch->n_rows * op->u.mlp.k <= x->cap_pairs)
        rc = run_resident(d, op, b, err);
    else
        rc = run_streamed(d, op, bank, err);
    if (!rc && bank + 1 == x->n_banks) rc = cu_heat_fetch(d, err);
    return rc;
}
