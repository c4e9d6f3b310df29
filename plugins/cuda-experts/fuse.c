/* Neighbouring ops as one launch. In steps of few rows a kernel computes for a microsecond or two and costs as much
 * again to begin and to end, so what counts is how many there are; in long ones, what passes through memory.
 *
 * A pattern says how many ops from a given one on it takes, by their kinds, registers and widths; all that are found
 * are noted once, at bind. What runs them writes every register that the ops would write, in the same order of sums:
 * the bits are those of the ops one by one, which `fuse = 0` keeps, and long steps where a pattern is for few rows.
 * [main: lay out, engine: run] */
#include "device.h"

#define MOST_OPS 8u /* of a fusion */

static bool can_take(const cu_dev *d, uint32_t i)
{
    return i >= d->bind.op_begin && i < d->bind.op_end && d->mine[i];
}

static const ks_op *at(const cu_dev *d, uint32_t i, uint32_t kind)
{
    const ks_op *op = can_take(d, i) ? cu_op(d->g, i) : NULL;
    return op && op->kind == kind ? op : NULL;
}

static uint32_t root(const cu_dev *d, int16_t reg)
{
    return d->regs[reg].root;
}

/* ---- [the sum of EXPERTS] [ADD] [TAP] NORM [and what quantized matrices read of it] */

struct row_ops {
    const ks_op *add, *tap, *norm;
    uint32_t n;
};

static struct row_ops row_ops_at(const cu_dev *d, uint32_t first)
{
    struct row_ops r = { .n = 0 };
    uint32_t i = first;
    if ((r.add = at(d, i, KS_OP_ADD))) i++;
    if (r.add && (r.tap = at(d, i, KS_OP_TAP))) i++;
    if ((r.norm = at(d, i, KS_OP_NORM))) r.n = i + 1 - first;
    return r;
}

static uint32_t match_row(const cu_dev *d, uint32_t first)
{
    struct row_ops r = row_ops_at(d, first);
    if (!r.n) return 0;
    const struct dev_reg *x = &d->regs[r.norm->in[0]], *y = &d->regs[r.norm->out[0]];
    if (r.norm->u.norm.width != x->width || x->width > CU_NORM_ROW || (r.n == 1 && !y->has_act)) return 0;
    if (r.add && (r.add->out[0] != r.norm->in[0] || root(d, r.norm->out[0]) == root(d, r.norm->in[0]))) return 0;
    if (r.tap && r.tap->in[0] != r.norm->in[0]) return 0;
    return r.n;
}

static int run_row(cu_dev *d, uint32_t first, ks_err *err)
{
    struct row_ops r = row_ops_at(d, first);
    struct dev_reg *y = &d->regs[r.norm->out[0]];
    cu_row a = { .norm = cu_norm_of(d, r.norm) };
    if (r.add) {
        a.sum = a.norm.x;
        a.norm.x = d->regs[r.add->in[0]].r;
        a.added = d->regs[r.add->in[1]].r;
        a.vec = cu_vector(d, r.add->w[1]);
        a.fx = r.add->f[0];
        a.fy = r.add->f[1];
        a.pairs = d->ex.pending;
        d->ex.pending = (cu_sum) { 0 };
    }
    if (y->has_act) a.act = y->act;
    cu_launch_row(&a, d->compute);
    y->act_valid = y->has_act;
    return r.tap ? cu_tap(d, r.tap, err) : 0;
}

/* ---- (NORM | ROPE)* ATTN: heads of queries and keys, and both into the cache */

struct head_ops {
    const ks_op *norm[CU_HEADS], *rope[CU_HEADS], *attn;
    uint32_t n;
};

static struct head_ops head_ops_at(const cu_dev *d, uint32_t first)
{
    struct head_ops h = { .n = 0 };
    uint32_t i = first, k;
    while (i - first < MOST_OPS && (at(d, i, KS_OP_NORM) || at(d, i, KS_OP_ROPE))) i++;
    if (!(h.attn = at(d, i, KS_OP_ATTN))) return h;
    for (uint32_t j = first; j < i; j++) {
        const ks_op *op = cu_op(d->g, j), **seen;
        for (k = 0; k < CU_HEADS && op->in[0] != h.attn->in[k]; k++) continue;
        if (k == CU_HEADS || h.rope[k]) return h; /* another register, or not the last of this one */
        seen = op->kind == KS_OP_ROPE ? &h.rope[k] : &h.norm[k];
        if (*seen || op->out[0] != op->in[0]) return h;
        *seen = op;
    }
    h.n = i + 1 - first;
    return h;
}

static uint32_t head_width(const ks_op *attn, uint32_t k)
{
    return k == 2 ? attn->u.attn.d_v : attn->u.attn.d_k;
}

static uint32_t match_heads(const cu_dev *d, uint32_t first)
{
    struct head_ops h = head_ops_at(d, first);
    if (!h.n) return 0;
    const int16_t *in = h.attn->in;
    if (root(d, in[0]) == root(d, in[1]) || root(d, in[0]) == root(d, in[2]) || root(d, in[1]) == root(d, in[2]))
        return 0;
    for (uint32_t k = 0; k < CU_HEADS; k++) {
        uint32_t w = head_width(h.attn, k);
        if (w > CU_HEAD_WIDTH || d->regs[in[k]].width % w || (h.norm[k] && h.norm[k]->u.norm.width != w) ||
            (h.rope[k] && h.rope[k]->u.rope.head_dim != w))
            return 0;
    }
    return h.n;
}

static int run_heads(cu_dev *d, uint32_t first, ks_err *err)
{
    struct head_ops h = head_ops_at(d, first);
    const struct dev_state *st = &d->states[h.attn->state];
    cu_heads a = { .n_rows = d->batch->n_rows };
    for (uint32_t k = 0; k < CU_HEADS; k++) {
        const struct dev_reg *x = &d->regs[h.attn->in[k]];
        cu_head *t = &a.of[k];
        t->width = head_width(h.attn, k);
        t->n_heads = k || h.norm[k] || h.rope[k] ? x->width / t->width : 0;
        t->x = x->r;
        if (h.norm[k]) t->norm = cu_norm_of(d, h.norm[k]);
        if (h.rope[k]) t->rope = cu_rope_of(d, h.rope[k]);
        if (k)
            t->append = cu_append_of(d, h.attn->in[k], k == 1 ? st->k : st->v,
                                     k == 1 ? st->k_page_bytes : st->v_page_bytes, x->width, 0);
    }
    cu_launch_heads(&a, d->compute);
    return cu_attend(d, h.attn, err);
}

/* ---- LINEAR LINEAR ...: matrices of one kind that read one register */

static bool alike(const cu_dev *d, const ks_op *a, const ks_op *b)
{
    const ks_weight *v = cu_gweight(d->g, a->w[0]), *w = cu_gweight(d->g, b->w[0]);
    return a->in[0] == b->in[0] && v->type == w->type && v->group == w->group && v->n_in == w->n_in &&
           a->f[0] == b->f[0] && a->f[1] == b->f[1] && d->regs[a->out[0]].kind == d->regs[b->out[0]].kind;
}

static uint32_t match_linears(const cu_dev *d, uint32_t first)
{
    const ks_op *op, *one = at(d, first, KS_OP_LINEAR);
    uint32_t n = 0;
    if (!one || !cu_is_quantized(cu_gweight(d->g, one->w[0])->type)) return 0;
    for (; n < CU_MATRICES && (op = at(d, first + n, KS_OP_LINEAR)) && alike(d, one, op); n++) {
        if (root(d, op->out[0]) == root(d, op->in[0]) || op->out[0] == d->g->logits) break;
    }
    return n > 1 ? n : 0;
}

static int run_linears(cu_dev *d, uint32_t first, ks_err *err)
{
    uint32_t n = d->fused[first].n;
    cu_matmul m = cu_linear_of(d, cu_op(d->g, first));
    (void)err;
    for (uint32_t i = 0; i < n; i++) {
        cu_matmul one = cu_linear_of(d, cu_op(d->g, first + i));
        m.of[i] =
            (cu_matrix) { .w = one.w, .y = one.y, .y_stride = one.y_stride, .bias = one.bias, .n_out = one.n_out };
    }
    m.n_of = n;
    cu_launch_matmul(&m, d->compute);
    return 0;
}

/* ---- the table */

static const struct {
    uint32_t (*match)(const cu_dev *d, uint32_t first); /* ops from `first` on; 0: this is another's */
    int (*run)(cu_dev *d, uint32_t first, ks_err *err);
    uint32_t most_rows; /* of a step */
} patterns[] = {
    { match_heads, run_heads, UINT32_MAX },
    { match_row, run_row, UINT32_MAX },
    { match_linears, run_linears, CU_FEW_ROWS },
};

int cu_fuse_lay_out(cu_dev *d, ks_err *err)
{
    if (!(d->fused = cu_alloc_host(d, d->g->n_ops, sizeof *d->fused, "the plan", err))) return KS_E_NOMEM;
    for (uint32_t i = d->bind.op_begin; i < d->bind.op_end && d->opts->fuse; i++)
        for (uint32_t p = 0; p < sizeof patterns / sizeof patterns[0] && !d->fused[i].n; p++)
            d->fused[i] = (struct cu_fusion) { p, patterns[p].match(d, i) };
    return 0;
}

uint32_t cu_fused(const cu_dev *d, uint32_t first, uint32_t end)
{
    struct cu_fusion f = d->fused[first];
    return d->step_rows <= patterns[f.pattern].most_rows && f.n <= end - first ? f.n : 0;
}

int cu_run_fused(cu_dev *d, uint32_t first, ks_err *err)
{
    const struct cu_fusion *f = &d->fused[first];
    for (uint32_t i = first; i < first + f->n; i++) {
        cu_touch(d, cu_op(d->g, i)->out[0]);
        cu_touch(d, cu_op(d->g, i)->out[1]);
    }
    return patterns[f->pattern].run(d, first, err);
}

/* The sum of a row's experts, where ADD comes next. */
bool cu_adds_sum(const cu_dev *d, uint32_t experts, uint32_t end)
{
    const ks_op *op = cu_op(d->g, experts), *add = experts + 1 < end ? at(d, experts + 1, KS_OP_ADD) : NULL;
    if (!add || d->n_pieces > 1 || !cu_fused(d, experts + 1, end)) return false;
    return add->in[1] == op->out[0] && root(d, add->in[0]) != root(d, add->in[1]) &&
           root(d, add->out[0]) != root(d, add->in[1]) &&
           d->regs[op->out[0]].width == cu_gweight(d->g, op->w[1])->n_out;
}

const ks_op *cu_route_before(const cu_dev *d, uint32_t experts)
{
    const ks_op *op = cu_op(d->g, experts), *route = at(d, experts - 1, KS_OP_ROUTE);
    bool few = d->step_rows <= CU_FEW_ROWS && d->step_rows * op->u.mlp.k <= CU_FEW_PAIRS && d->n_pieces == 1;
    if (!d->opts->fuse || !few || !route || route->out[0] != op->in[1]) return NULL;
    return cu_choose_bytes(CU_FEW_ROWS, route->u.route.n_experts) <= d->shared_max ? route : NULL;
}
