/* Two devices as one. See split_device.h. */
#include "device/split_device.h"

#include "base/base.h"
#include "base/log.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define MAIN 0u
#define REST 1u

struct move { /* before op `op` */
    uint32_t op, reg, to;
};

struct split_dev {
    const ks_device_iface *iface[2];
    void *dev[2];
    const ks_graph *g;
    bool uses_rest; /* rest has ops of its own, or shares experts */
    bool rest_ops;  /* it has ops of its own: else it sees few rows, and no state */
    bool share;
    uint8_t *where, *last; /* (n_ops) device of each op; (n_regs) the device that writes it last */
    struct move *moves;
    uint32_t n_moves, cap_moves;
    uint8_t *buffer;         /* of a register on its way */
    uint64_t *heat;          /* (n_layers, n_experts) of one device */
    _Atomic uint64_t handed; /* pairs that main gave to the rest: both count them */
    /* While main runs an EXPERTS op. */
    const ks_batch *batch;
    ks_err cold_err; /* code 0: none; the callback has no way to say it */
};

/* ---- plan: which registers must move where */

struct planner {
    struct split_dev *d;
    const ks_graph *g;
    bool *valid; /* (n_regs, 2) of the registers with memory of their own */
};

static uint32_t root_of(const ks_graph *g, uint32_t reg)
{
    return g->regs[reg].base ? g->regs[reg].base - 1 : reg;
}

static int add_move(struct split_dev *d, uint32_t op, uint32_t reg, uint32_t to, ks_err *err)
{
    if (d->n_moves == d->cap_moves) {
        uint32_t cap = d->cap_moves ? 2 * d->cap_moves : 64;
        struct move *m = realloc(d->moves, cap * sizeof *m);
        if (!m) return ks_fail(err, KS_E_NOMEM, "out of memory for the plan of two devices");
        d->moves = m;
        d->cap_moves = cap;
    }
    d->moves[d->n_moves++] = (struct move) { op, reg, to };
    return 0;
}

static int need(struct planner *p, uint32_t op, int32_t reg, ks_err *err)
{
    if (reg < 0) return 0;
    uint32_t root = root_of(p->g, (uint32_t)reg), to = p->d->where[op];
    bool *valid = &p->valid[2 * root];
    if (valid[to] || !valid[!to]) return 0; /* there already, or written by nobody yet */
    if ((int32_t)root == p->g->logits)
        return ks_fail(err, KS_E_UNSUPPORTED, "op %u reads logits that another device has written", op);
    valid[to] = true;
    return add_move(p->d, op, root, to, err);
}

static int32_t selection_of(const ks_op *op)
{
    return op->kind == KS_OP_ATTN ? op->u.attn.sel : op->kind == KS_OP_MLA ? op->u.mla.sel : -1;
}

static int plan_op(struct planner *p, uint32_t i, ks_err *err)
{
    const ks_op *op = &p->g->ops[i];
    int rc = need(p, i, selection_of(op), err);
    for (size_t k = 0; k < KS_COUNT(op->in) && !rc; k++) rc = need(p, i, op->in[k], err);
    for (size_t k = 0; k < KS_COUNT(op->out) && !rc; k++) {
        if (op->out[k] < 0) continue;
        uint32_t reg = (uint32_t)op->out[k], root = root_of(p->g, reg), at = p->d->where[i];
        /* What writes a part of a register leaves the rest of it as it was. */
        if (p->g->regs[reg].width < p->g->regs[root].width) rc = need(p, i, op->out[k], err);
        p->valid[2 * root + at] = true;
        p->valid[2 * root + !at] = false;
        p->d->last[root] = (uint8_t)at;
    }
    return rc;
}

/* ---- experts that main does not hold. The rest's own registers carry input, route and result: at an EXPERTS op of
 * main nobody else needs them there, and what lives across a cut is moved after it. [engine] */

static void run_cold(void *ctx, uint32_t op, uint32_t n_rows, const float *x, const int32_t *ids, const float *weights,
                     const uint8_t *keep, float *y)
{
    struct split_dev *d = ctx;
    const ks_op *o = &d->g->ops[op];
    struct {
        int32_t expert;
        float weight;
    } *route = (void *)d->buffer;
    ks_err *err = &d->cold_err;
    uint64_t handed = 0;
    for (size_t i = 0; i < (size_t)n_rows * o->u.mlp.k; i++) {
        route[i].expert = keep[i] ? ids[i] : -1;
        route[i].weight = weights[i];
        handed += keep[i] != 0;
    }
    atomic_fetch_add_explicit(&d->handed, handed, memory_order_relaxed);
    int rc = d->iface[REST]->put(d->dev[REST], (uint32_t)o->in[0], n_rows, x, err);
    if (!rc) rc = d->iface[REST]->put(d->dev[REST], (uint32_t)o->in[1], n_rows, route, err);
    if (!rc) rc = d->iface[REST]->run(d->dev[REST], d->batch, op, op + 1, err);
    if (!rc) rc = d->iface[REST]->get(d->dev[REST], (uint32_t)o->out[0], n_rows, y, err);
    d->cold_err.code = rc;
}

static size_t row_bytes(const ks_reg *r)
{
    uint32_t kind = r->kind & 0xffu;
    return ((size_t)r->width + (kind == KS_REG_SEL)) * (kind == KS_REG_ROUTE ? 8 : 4);
}

static int plan_moves(struct split_dev *d, const ks_bind *b, ks_err *err)
{
    struct planner p = { d, b->graph, ks_calloc((size_t)b->graph->n_regs * 2, sizeof *p.valid) };
    size_t most = 0;
    int rc = p.valid ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for the plan of two devices");
    for (uint32_t i = b->op_begin; i < b->op_end && !rc; i++) rc = plan_op(&p, i, err);
    for (uint32_t i = 0; i < d->n_moves && !rc; i++) {
        const ks_reg *r = &b->graph->regs[d->moves[i].reg];
        size_t bytes;
        if (!ks_mul_size(row_bytes(r), r->kind & KS_REG_OUT ? b->max_out : b->max_rows, &bytes))
            rc = ks_fail(err, KS_E_NOMEM, "a register of %u columns is too large to move", r->width);
        else
            most = KS_MAX(most, bytes);
    }
    for (uint32_t i = b->op_begin; i < b->op_end && !rc; i++) { /* the callback's routes */
        const ks_op *op = &b->graph->ops[i];
        if (op->kind == KS_OP_EXPERTS) most = KS_MAX(most, row_bytes(&b->graph->regs[op->in[1]]) * b->max_rows);
    }
    free(p.valid);
    if (!rc && !(d->buffer = malloc(most ? most : 1)))
        rc = ks_fail(err, KS_E_NOMEM, "out of memory for registers between two devices (%zu bytes)", most);
    return rc;
}

/* ---- bind */

static void unbind(struct split_dev *d)
{
    free(d->where);
    free(d->last);
    free(d->moves);
    free(d->buffer);
    free(d->heat);
    d->where = d->last = d->buffer = NULL;
    d->heat = NULL;
    d->moves = NULL;
    d->n_moves = d->cap_moves = 0;
    d->g = NULL;
    d->uses_rest = d->rest_ops = false;
}

static bool has_memory(const ks_graph *g, const ks_op *op)
{
    return op->state >= 0 && (uint32_t)op->state < g->n_states && g->states[op->state].kind == KS_STATE_RECURRENT;
}

static int choose(struct split_dev *d, const ks_bind *b, ks_err *err)
{
    const ks_graph *g = b->graph;
    uint8_t *ok[2] = { ks_calloc(g->n_ops, 1), ks_calloc(g->n_ops, 1) };
    d->where = ks_calloc(g->n_ops, 1);
    d->last = ks_calloc(g->n_regs, 1);
    int rc = ok[MAIN] && ok[REST] && d->where && d->last
                 ? 0
                 : ks_fail(err, KS_E_NOMEM, "out of memory for the plan of two devices");
    for (uint32_t i = 0; i < 2 && !rc; i++) rc = d->iface[i]->lower(d->dev[i], g, b->kv_type, ok[i], err);
    for (uint32_t i = b->op_begin; i < b->op_end && !rc; i++) {
        if (has_memory(g, &g->ops[i]) && !(d->iface[MAIN]->flags & KS_DEVICE_RUNS)) ok[MAIN][i] = 0;
        d->where[i] = ok[MAIN][i] ? MAIN : REST;
        d->rest_ops |= !ok[MAIN][i];
        if (!ok[MAIN][i] && !ok[REST][i])
            rc = ks_fail(err, KS_E_UNSUPPORTED, "op %u (kind %u) can run on neither device", i, g->ops[i].kind);
    }
    free(ok[MAIN]);
    free(ok[REST]);
    return rc;
}

/* "... 12 of 300 ops: INDEXER, MLA" */
static void say(const struct split_dev *d)
{
    static const char *const names[] = {
        [KS_OP_EMBED] = "EMBED",   [KS_OP_NORM] = "NORM",   [KS_OP_LINEAR] = "LINEAR",   [KS_OP_ROPE] = "ROPE",
        [KS_OP_ATTN] = "ATTN",     [KS_OP_MLA] = "MLA",     [KS_OP_INDEXER] = "INDEXER", [KS_OP_CONV] = "CONV",
        [KS_OP_DELTA] = "DELTA",   [KS_OP_ROUTE] = "ROUTE", [KS_OP_EXPERTS] = "EXPERTS", [KS_OP_MLP] = "MLP",
        [KS_OP_ADD] = "ADD",       [KS_OP_MUL] = "MUL",     [KS_OP_SELECT] = "SELECT",   [KS_OP_TAP] = "TAP",
        [KS_OP_QSCALE] = "QSCALE", [KS_OP_CLAMP] = "CLAMP"
    };
    uint32_t ops, moves, kinds;
    char list[256] = "";
    ks_split_counts(d, &ops, &moves, &kinds);
    if (ops == 0) return;
    for (uint32_t k = 0; k < KS_COUNT(names); k++)
        if (names[k] && kinds >> k & 1u)
            (void)snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", *list ? ", " : "", names[k]);
    ks_log(KS_LOG_INFO, "device", "the CPU runs %u of %u ops that the device cannot (%s): %u registers move in a step",
           ops, d->g->n_ops, list, moves);
}

static int split_bind(void *dev, const ks_bind *b, ks_err *err)
{
    struct split_dev *d = dev;
    unbind(d);
    d->g = b->graph;
    ks_bind bm = *b, br = *b;
    int rc = choose(d, b, err);
    d->uses_rest = d->rest_ops;
    if (d->share && b->graph->n_experts) {
        d->uses_rest = true;
        if (!d->rest_ops && b->share_rows) br.max_rows = KS_MIN(b->max_rows, b->share_rows);
        bm.cold = run_cold;
        bm.cold_ctx = d;
    }
    size_t heat = (size_t)b->graph->n_layers * b->graph->n_experts;
    if (!rc && heat && !(d->heat = ks_calloc(heat, sizeof *d->heat)))
        rc = ks_fail(err, KS_E_NOMEM, "out of memory for routing counts");
    if (!rc) rc = plan_moves(d, b, err);
    if (!rc) rc = d->iface[MAIN]->bind(d->dev[MAIN], &bm, err);
    if (!rc && d->uses_rest) rc = d->iface[REST]->bind(d->dev[REST], &br, err);
    if (!rc) say(d);
    if (rc) unbind(d);
    return rc;
}

/* ---- run */

static int move_reg(struct split_dev *d, const struct move *m, const ks_batch *b, ks_err *err)
{
    uint32_t n = d->g->regs[m->reg].kind & KS_REG_OUT ? b->n_out : b->n_rows;
    int rc = d->iface[!m->to]->get(d->dev[!m->to], m->reg, n, d->buffer, err);
    return rc ? rc : d->iface[m->to]->put(d->dev[m->to], m->reg, n, d->buffer, err);
}

static int split_run(void *dev, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err)
{
    struct split_dev *d = dev;
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to the two devices");
    if (op_begin > op_end || op_end > d->g->n_ops)
        return ks_fail(err, KS_E_INVAL, "ops %u to %u are not among %u", op_begin, op_end, d->g->n_ops);
    uint32_t m = 0;
    int rc = 0;
    d->batch = b;
    d->cold_err.code = 0;
    while (m < d->n_moves && d->moves[m].op < op_begin) m++;
    for (uint32_t i = op_begin, j; i < op_end && !rc; i = j) {
        for (; m < d->n_moves && d->moves[m].op == i && !rc; m++) rc = move_reg(d, &d->moves[m], b, err);
        for (j = i + 1; j < op_end && d->where[j] == d->where[i]; j++)
            if (m < d->n_moves && d->moves[m].op == j) break;
        if (!rc) rc = d->iface[d->where[i]]->run(d->dev[d->where[i]], b, i, j, err);
        if (!rc && d->cold_err.code) rc = ks_fail(err, d->cold_err.code, "%s", d->cold_err.msg);
    }
    d->batch = NULL;
    return rc;
}

/* ---- the rest of the interface */

static int split_list(void *self, uint32_t i, ks_device_info *ret, ks_err *err)
{
    const ks_split_ctx *c = self;
    if (i > 0) return ks_fail(err, KS_E_NOTFOUND, "two devices are one");
    return c->main->list(c->main_self, c->main_index, ret, err);
}

static void split_close(void *dev)
{
    struct split_dev *d = dev;
    if (!d) return;
    for (uint32_t i = 0; i < 2; i++)
        if (d->dev[i]) d->iface[i]->close(d->dev[i]);
    unbind(d);
    free(d);
}

static int split_open(void *self, uint32_t index, uint64_t budget_bytes, void **ret_dev, ks_err *err)
{
    const ks_split_ctx *c = self;
    (void)budget_bytes; /* the context's */
    if (index > 0) return ks_fail(err, KS_E_NOTFOUND, "two devices are one");
    struct split_dev *d = ks_calloc(1, sizeof *d);
    if (!d) return ks_fail(err, KS_E_NOMEM, "out of memory for two devices");
    d->iface[MAIN] = c->main;
    d->iface[REST] = c->rest;
    d->share = c->share != 0;
    int rc = c->main->open(c->main_self, c->main_index, c->main_budget, &d->dev[MAIN], err);
    if (!rc) rc = c->rest->open(c->rest_self, 0, 0, &d->dev[REST], err);
    if (rc)
        split_close(d);
    else
        *ret_dev = d;
    return rc;
}

static int split_lower(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err)
{
    struct split_dev *d = dev;
    uint8_t *ok = ks_calloc(g->n_ops, 1);
    if (!ok) return ks_fail(err, KS_E_NOMEM, "out of memory for the plan of two devices");
    int rc = d->iface[MAIN]->lower(d->dev[MAIN], g, kv_type, ret_ok, err);
    if (!rc) rc = d->iface[REST]->lower(d->dev[REST], g, kv_type, ok, err);
    for (uint32_t i = 0; i < g->n_ops && !rc; i++) ret_ok[i] |= ok[i];
    free(ok);
    return rc;
}

static int split_place(void *dev, const ks_place *changes, uint32_t n, ks_err *err)
{
    struct split_dev *d = dev;
    if (!d->iface[MAIN]->place) return ks_fail(err, KS_E_UNSUPPORTED, "the device keeps no experts");
    return d->iface[MAIN]->place(d->dev[MAIN], changes, n, err);
}

static int split_keeps(void *dev, uint32_t *ret_slots, ks_err *err)
{
    struct split_dev *d = dev;
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to the two devices");
    if (!d->iface[MAIN]->keeps) return ks_fail(err, KS_E_UNSUPPORTED, "the device keeps no experts");
    return d->iface[MAIN]->keeps(d->dev[MAIN], ret_slots, err);
}

static int check_reg(const struct split_dev *d, uint32_t reg, ks_err *err)
{
    if (!d->g || reg >= d->g->n_regs) return ks_fail(err, KS_E_INVAL, "register %u does not exist", reg);
    return 0;
}

static int split_get(void *dev, uint32_t reg, uint32_t n_rows, void *dst, ks_err *err)
{
    struct split_dev *d = dev;
    int rc = check_reg(d, reg, err);
    uint32_t at = rc ? 0 : d->last[root_of(d->g, reg)];
    return rc ? rc : d->iface[at]->get(d->dev[at], reg, n_rows, dst, err);
}

static int split_put(void *dev, uint32_t reg, uint32_t n_rows, const void *src, ks_err *err)
{
    struct split_dev *d = dev;
    int rc = check_reg(d, reg, err);
    if (!rc) rc = d->iface[MAIN]->put(d->dev[MAIN], reg, n_rows, src, err);
    return rc || !d->rest_ops ? rc : d->iface[REST]->put(d->dev[REST], reg, n_rows, src, err);
}

static int split_copy_page(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    struct split_dev *d = dev;
    int rc = d->iface[MAIN]->copy_page(d->dev[MAIN], dst, src, err);
    return rc || !d->rest_ops ? rc : d->iface[REST]->copy_page(d->dev[REST], dst, src, err);
}

static int split_copy_slot(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    struct split_dev *d = dev;
    int rc = d->iface[MAIN]->copy_slot(d->dev[MAIN], dst, src, err);
    return rc || !d->rest_ops ? rc : d->iface[REST]->copy_slot(d->dev[REST], dst, src, err);
}

/* Steps and rows are main's; the rest adds up. */
static int split_stats(void *dev, ks_device_stats *ret, ks_err *err)
{
    struct split_dev *d = dev;
    ks_device_stats s = { .size = sizeof s }, t = { .size = sizeof t };
    int rc = d->iface[MAIN]->stats(d->dev[MAIN], &s, err);
    if (!rc && d->uses_rest) rc = d->iface[REST]->stats(d->dev[REST], &t, err);
    if (rc) return rc;
    s.size = ret->size;
    s.launches += t.launches;
    s.experts_cold += t.experts_cold - KS_MIN(t.experts_cold, atomic_load_explicit(&d->handed, memory_order_relaxed));
    s.experts_hot += t.experts_hot;
    s.mem_bytes += t.mem_bytes;
    memcpy(ret, &s, KS_MIN((size_t)ret->size, sizeof s));
    return 0;
}

/* A layer's counts are those of the device that runs its EXPERTS ops: what the other computes for it is counted there,
 * too. */
static int split_heat(void *dev, uint64_t *ret_counts, ks_err *err)
{
    struct split_dev *d = dev;
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to the two devices");
    size_t width = d->g->n_experts;
    memset(ret_counts, 0, d->g->n_layers * width * sizeof *ret_counts);
    for (uint32_t at = MAIN; at <= REST; at++) {
        if (!d->iface[at]->heat || (at == REST && !d->uses_rest)) continue;
        int rc = d->iface[at]->heat(d->dev[at], d->heat, err);
        if (rc) return rc;
        for (uint32_t i = 0; i < d->g->n_ops; i++) {
            const ks_op *op = &d->g->ops[i];
            if (op->kind == KS_OP_EXPERTS && d->where[i] == at && op->layer < d->g->n_layers)
                memcpy(ret_counts + op->layer * width, d->heat + op->layer * width, width * sizeof *ret_counts);
        }
    }
    return 0;
}

void ks_split_counts(const void *dev, uint32_t *ret_rest_ops, uint32_t *ret_moves, uint32_t *ret_kinds)
{
    const struct split_dev *d = dev;
    uint32_t ops = 0, kinds = 0;
    for (uint32_t i = 0; d->g && i < d->g->n_ops; i++)
        if (d->where[i] == REST) {
            ops++;
            kinds |= UINT32_C(1) << (d->g->ops[i].kind & 31u);
        }
    if (ret_rest_ops) *ret_rest_ops = ops;
    if (ret_moves) *ret_moves = d->n_moves;
    if (ret_kinds) *ret_kinds = kinds;
}

const ks_device_iface ks_split_device_iface = {
    .size = sizeof(ks_device_iface),
    .flags = KS_DEVICE_RUNS,
    .list = split_list,
    .open = split_open,
    .close = split_close,
    .lower = split_lower,
    .bind = split_bind,
    .place = split_place,
    .run = split_run,
    .get = split_get,
    .put = split_put,
    .copy_page = split_copy_page,
    .copy_slot = split_copy_slot,
    .stats = split_stats,
    .heat = split_heat,
    .keeps = split_keeps,
};
