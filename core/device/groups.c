/* Groups: which consecutive ops are one fork, and running them. A fork and join costs as much as a core needs for some
 * thousand numbers, so the many small ops between the matrix products must not have one each: an op whose rows need
 * nothing of each other is run on a few rows, then the next op on the same rows, while they are in the cache. The
 * results are those of the plain list: each op still sees all it reads. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"

#define ROW_SLICE 16u         /* rows a worker takes through all ops of a group at a time */
#define ROW_LINEAR (1u << 14) /* weights of the largest matrix that every worker reads for its own rows */

static const struct {
    ks__rows_fn fn;
    uint32_t cost; /* of a column, about as many simple float operations */
} row_ops[] = {
    [KS_OP_EMBED] = { ks__rows_embed, 1 },   [KS_OP_NORM] = { ks__rows_norm, 2 },
    [KS_OP_LINEAR] = { ks__rows_linear, 0 }, [KS_OP_ROPE] = { ks__rows_rope, 4 },
    [KS_OP_ROUTE] = { ks__rows_route, 16 },  [KS_OP_ADD] = { ks__rows_add, 1 },
    [KS_OP_MUL] = { ks__rows_mul, 4 },       [KS_OP_SELECT] = { ks__rows_select, 1 },
    [KS_OP_TAP] = { ks__rows_tap, 1 },       [KS_OP_CLAMP] = { ks__rows_clamp, 1 },
    [KS_OP_QSCALE] = { ks__rows_qscale, 1 },
};

static const struct {
    ks__op_fn run;
} fork_ops[] = {
    [KS_OP_ATTN] = { ks__op_attn },       [KS_OP_EXPERTS] = { ks__op_experts }, [KS_OP_MLP] = { ks__op_mlp },
    [KS_OP_CONV] = { ks__op_conv },       [KS_OP_DELTA] = { ks__op_delta },     [KS_OP_MLA] = { ks__op_mla },
    [KS_OP_INDEXER] = { ks__op_indexer },
};

bool ks__dev_knows(uint32_t kind)
{
    return (kind < KS_COUNT(row_ops) && row_ops[kind].fn) || (kind < KS_COUNT(fork_ops) && fork_ops[kind].run);
}

/* ---- plan */

/* The register whose rows the op has: OUT or not is the same for all it touches, but for SELECT. */
static int16_t row_reg(const ks_op *op)
{
    return op->out[0] >= 0 ? op->out[0] : op->in[0];
}

static uint32_t space(const ks_cpu_dev *d, const ks_op *op)
{
    return d->regs[row_reg(op)].kind & KS_REG_OUT;
}

static bool is_one_space(const ks_cpu_dev *d, const ks_op *op)
{
    for (uint32_t i = 0; i < KS_COUNT(op->in); i++)
        if (op->in[i] >= 0 && (d->regs[op->in[i]].kind & KS_REG_OUT) != space(d, op)) return false;
    return true;
}

static void plan_rows(ks_cpu_dev *d, uint32_t i)
{
    const ks_op *op = &d->g->ops[i];
    struct dev_op *p = &d->ops[i];
    p->quantize = -1;
    if (op->kind >= KS_COUNT(row_ops) || !row_ops[op->kind].fn) return;
    if (op->kind != KS_OP_SELECT && !is_one_space(d, op)) return;
    p->row_cost = row_ops[op->kind].cost * d->regs[op->kind == KS_OP_ROUTE ? op->in[0] : row_reg(op)].width;
    if (op->kind == KS_OP_LINEAR) {
        const ks_weight *w = &d->g->weights[op->w[0]];
        if (p->quantized || (uint64_t)w->n_in * w->n_out > ROW_LINEAR) return;
        p->row_cost = w->n_in * w->n_out / 8;
    }
    p->rows = row_ops[op->kind].fn;
}

static bool writes(const ks_cpu_dev *d, const ks_op *op, int16_t reg)
{
    for (uint32_t i = 0; i < KS_COUNT(op->out); i++)
        if (op->out[i] >= 0 && d->regs[op->out[i]].root == d->regs[reg].root) return true;
    return false;
}

/* Will what op i writes be read quantized? Then whoever has written a row quantizes it, too. */
static void plan_quantize(ks_cpu_dev *d, uint32_t i)
{
    int16_t reg = d->g->ops[i].out[0];
    if (!d->ops[i].rows || reg < 0 || !d->regs[reg].has_act) return;
    for (uint32_t k = i + 1; k < d->bind.op_end; k++) {
        const ks_op *op = &d->g->ops[k];
        if (d->ops[k].quantized && op->kind != KS_OP_MLA && op->in[0] == reg) {
            d->ops[i].quantize = reg;
            d->ops[i].row_cost += 2 * d->regs[reg].width;
            return;
        }
        if (writes(d, op, reg)) return;
    }
}

static bool joins_rows(const ks_cpu_dev *d, uint32_t first, uint32_t i)
{
    const ks_op *op = &d->g->ops[i];
    return d->ops[i].rows && op->kind != KS_OP_SELECT && space(d, op) == space(d, &d->g->ops[first]);
}

static bool joins_linears(const ks_cpu_dev *d, uint32_t first, uint32_t i)
{
    const ks_op *op = &d->g->ops[i], *x = &d->g->ops[first];
    return op->kind == KS_OP_LINEAR && !d->ops[i].rows && i - first < KS_DEV_LINEARS_MAX && op->in[0] == x->in[0] &&
           !writes(d, &d->g->ops[i - 1], x->in[0]);
}

int ks__dev_group_ops(ks_cpu_dev *d, ks_err *err)
{
    uint32_t begin = d->bind.op_begin, end = d->bind.op_end;
    if (!(d->groups = ks__dev_alloc(d, end - begin, sizeof *d->groups, "the plan", err))) return KS_E_NOMEM;
    d->n_groups = 0;
    for (uint32_t i = begin; i < end; i++) plan_rows(d, i);
    for (uint32_t i = begin; i < end; i++) plan_quantize(d, i);
    for (uint32_t i = begin; i < end;) {
        struct dev_group *g = &d->groups[d->n_groups++];
        g->begin = i;
        g->kind = d->ops[i].rows ? KS_DEV_ROWS : d->g->ops[i].kind == KS_OP_LINEAR ? KS_DEV_LINEARS : KS_DEV_OP;
        for (i++; i < end; i++)
            if (g->kind == KS_DEV_ROWS ? !joins_rows(d, g->begin, i)
                                       : g->kind != KS_DEV_LINEARS || !joins_linears(d, g->begin, i))
                break;
        g->end = i;
    }
    return 0;
}

/* ---- run */

struct rows_job {
    ks_cpu_dev *d;
    uint32_t begin, end; /* ops */
};

static void rows_task(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct rows_job *j = arg;
    for (uint32_t r = begin; r < end; r += ROW_SLICE) {
        uint32_t r_end = KS_MIN(r + ROW_SLICE, end);
        for (uint32_t i = j->begin; i < j->end; i++) {
            const struct dev_op *p = &j->d->ops[i];
            p->rows(j->d, &j->d->g->ops[i], r, r_end, worker);
            if (p->quantize >= 0) ks__dev_quantize_rows(j->d, (uint32_t)p->quantize, r, r_end, worker);
        }
    }
}

static int run_rows(ks_cpu_dev *d, uint32_t begin, uint32_t end, ks_err *err)
{
    struct rows_job j = { d, begin, end };
    const ks_op *first = &d->g->ops[begin];
    uint32_t cost = 0;
    for (uint32_t i = begin; i < end; i++) {
        if (d->g->ops[i].kind == KS_OP_EMBED) {
            int rc = ks__check_ids(d, &d->g->ops[i], err);
            if (rc) return rc;
        }
        cost += d->ops[i].row_cost;
    }
    ks__dev_fork(d, ks__dev_rows(d, (uint32_t)row_reg(first)), ks__dev_row_grain(cost), rows_task, &j);
    return 0;
}

/* What was written makes every quantized copy of it, and of views over it, stale. */
static void touch(ks_cpu_dev *d, int16_t reg)
{
    if (reg < 0) return;
    for (uint32_t i = 0; i < d->n_acts; i++)
        if (d->regs[d->acts[i]].root == d->regs[reg].root) d->regs[d->acts[i]].act_valid = false;
}

int ks__dev_run_group(ks_cpu_dev *d, const struct dev_group *g, uint32_t begin, uint32_t end, ks_err *err)
{
    int rc = 0;
    switch (g->kind) {
    case KS_DEV_ROWS: rc = run_rows(d, begin, end, err); break;
    case KS_DEV_LINEARS: ks__run_linears(d, begin, end); break;
    default: rc = fork_ops[d->g->ops[begin].kind].run(d, &d->g->ops[begin], begin, err); break;
    }
    for (uint32_t i = begin; i < end; i++) {
        for (uint32_t k = 0; k < KS_COUNT(d->g->ops[i].out); k++) touch(d, d->g->ops[i].out[k]);
        if (d->ops[i].quantize >= 0) d->regs[d->ops[i].quantize].act_valid = true;
    }
    return rc;
}
