/* The CPU as a device: memory, the plan of each op, and running a range of them. See cpu_impl.h. */
#include "device/cpu_impl.h"

#include "base/base.h"
#include "base/log.h"
#include "cpu/cpu.h"

/* ---- memory */

struct block {
    struct block *next;
    void *p;
};

/* Not zeroed: what is never used of it, the system never has to give. */
static void *alloc_raw(ks_cpu_dev *d, size_t n, size_t elem, const char *what, ks_err *err)
{
    size_t bytes;
    struct block *b = NULL;
    if (!ks_mul_size(n, elem, &bytes) || bytes > SIZE_MAX / 2 || !(b = malloc(sizeof *b))) goto fail;
    bytes = ks_align_up(bytes ? bytes : 1, 64);
    b->p = aligned_alloc(64, bytes);
    if (!b->p) goto fail;
    b->next = d->blocks;
    d->blocks = b;
    d->mem_bytes += bytes;
    return b->p;
fail:
    free(b);
    (void)ks_fail(err, KS_E_NOMEM, "out of memory for %s (%zu x %zu bytes)", what, n, elem);
    return NULL;
}

void *ks__dev_alloc(ks_cpu_dev *d, size_t n, size_t elem, const char *what, ks_err *err)
{
    void *p = alloc_raw(d, n, elem, what, err);
    if (p) memset(p, 0, n * elem);
    return p;
}

static void free_blocks(ks_cpu_dev *d)
{
    for (struct block *b = d->blocks, *next; b; b = next) {
        next = b->next;
        free(b->p);
        free(b);
    }
    d->blocks = NULL;
    d->mem_bytes = 0;
}

/* ---- forking */

#define TASK_BYTES 8192u  /* a core reads this much in half a microsecond, about what a fork and join takes */
#define TASK_FLOATS 4096u /* and does this many simple operations */
#define CUT_TASKS 4u      /* that long a thread's share must be for each piece it is cut into */
#define CUTS 8u           /* at most, for balance */

void ks__dev_fork(ks_cpu_dev *d, uint32_t n, uint32_t min_grain, ks_pool_fn fn, void *arg)
{
    uint32_t tasks = n / min_grain, t = d->n_threads;
    if (n == 0) return;
    if (tasks <= 1 || t == 1) {
        fn(arg, 0, n, 0);
        return;
    }
    if (tasks > t) tasks = t * KS_MIN(KS_MAX(tasks / (t * CUT_TASKS), 1u), CUTS);
    ks_pool_run(d->ctx.pool, n, n / tasks + (n % tasks != 0), fn, arg);
}

uint32_t ks__dev_grain(size_t bytes, size_t rows)
{
    size_t work = bytes * KS_MAX(rows, (size_t)1);
    return work >= TASK_BYTES ? 1 : (uint32_t)(TASK_BYTES / KS_MAX(work, (size_t)1));
}

uint32_t ks__dev_row_grain(uint32_t floats)
{
    return KS_MAX(TASK_FLOATS / KS_MAX(floats, 1u), 1u);
}

/* ---- plan */

static const ks_kernel *find_kernel(const ks_cpu_dev *d, uint32_t op, uint32_t wtype, uint32_t xtype, uint32_t layout,
                                    const char *what, ks_err *err)
{
    const ks_kernel *k = ks_kernel_find(d->ctx.kernels, op, wtype, xtype, layout);
    if (!k)
        (void)ks_fail(err, KS_E_UNSUPPORTED, "no kernel plugin has %s for %s: see `krasis plugins`", what,
                      wtype ? ks_type_name(wtype) : "f32");
    return k;
}

static bool is_quantized(uint32_t type)
{
    return type == KS_T_I8 || type == KS_T_I4 || type == KS_T_MXFP4;
}

static int plan_matmul(const ks_cpu_dev *d, const ks_weight *w, const ks_kernel **ret, bool *ret_quantized, ks_err *err)
{
    *ret_quantized = is_quantized(w->type);
    *ret = find_kernel(d, KS_K_MATMUL, w->type, *ret_quantized ? KS_T_Q8 : KS_T_F32, w->layout, "matrix products", err);
    return *ret ? 0 : KS_E_UNSUPPORTED;
}

/* Ops with a kernel of their own that only some models have. */
static int plan_plain(const ks_cpu_dev *d, uint32_t op, struct dev_op *ret, ks_err *err)
{
    static const struct {
        uint32_t kernel;
        const char *what;
    } rows[] = { [KS_OP_ROUTE] = { KS_K_SCORE, "scores of routers" },
                 [KS_OP_MUL] = { KS_K_MUL, "products of rows" },
                 [KS_OP_CONV] = { KS_K_CONV, "convolutions" },
                 [KS_OP_DELTA] = { KS_K_DELTA, "the gated delta rule" } };
    ret->kernel[0] = find_kernel(d, rows[op].kernel, 0, KS_T_F32, 0, rows[op].what, err);
    return ret->kernel[0] ? 0 : KS_E_UNSUPPORTED;
}

static int plan_op(const ks_cpu_dev *d, const ks_graph *g, const ks_op *op, struct dev_op *ret, ks_err *err)
{
    const ks_weight *w;
    int rc;
    if (!ks__dev_knows(op->kind)) return ks_fail(err, KS_E_UNSUPPORTED, "the CPU device does not know op %u", op->kind);
    switch (op->kind) {
    case KS_OP_LINEAR: return plan_matmul(d, &g->weights[op->w[0]], &ret->kernel[0], &ret->quantized, err);
    case KS_OP_MLA:
        w = &g->weights[op->w[0]];
        if (!(ret->kernel[1] =
                  find_kernel(d, KS_K_MATMUL_T, w->type, KS_T_F32, w->layout, "transposed matrix products", err)))
            return KS_E_UNSUPPORTED;
        return plan_matmul(d, &g->weights[op->w[1]], &ret->kernel[0], &ret->quantized, err);
    case KS_OP_INDEXER: /* its keys meet a matrix that is made of q */
        ret->kernel[0] = find_kernel(d, KS_K_MATMUL, KS_T_F32, KS_T_F32, KS_LAYOUT_T16, "matrix products", err);
        return ret->kernel[0] ? 0 : KS_E_UNSUPPORTED;
    case KS_OP_ROUTE:
    case KS_OP_MUL:
    case KS_OP_CONV:
    case KS_OP_DELTA: return plan_plain(d, op->kind, ret, err);
    case KS_OP_EXPERTS:
    case KS_OP_MLP:
        if ((rc = plan_matmul(d, &g->weights[op->w[0]], &ret->kernel[0], &ret->quantized, err))) return rc;
        return plan_matmul(d, &g->weights[op->w[1]], &ret->kernel[1], &ret->quantized2, err);
    default: return 0;
    }
}

static int find_shared_kernels(ks_cpu_dev *d, uint32_t kv_type, ks_err *err)
{
    if (!(d->quant = find_kernel(d, KS_K_QUANT, 0, KS_T_F32, 0, "activation quantization", err)) ||
        !(d->norm = find_kernel(d, KS_K_NORM, 0, KS_T_F32, 0, "norms", err)) ||
        !(d->rope = find_kernel(d, KS_K_ROPE, 0, KS_T_F32, 0, "rotary embedding", err)) ||
        !(d->glu = find_kernel(d, KS_K_GLU, 0, KS_T_F32, 0, "gated activations", err)) ||
        !(d->attn = find_kernel(d, KS_K_ATTN, kv_type, KS_T_F32, 0, "attention over a KV cache", err)) ||
        !(d->store = find_kernel(d, KS_K_STORE, kv_type, KS_T_F32, 0, "storing into a KV cache", err)))
        return KS_E_UNSUPPORTED;
    return 0;
}

/* ---- bind */

static int alloc_act(ks_cpu_dev *d, ks_act *a, size_t rows, uint32_t width, ks_err *err)
{
    a->q_stride = (width + 63u) & ~63u;
    a->scale_stride = (width + 127u) / 128u;
    a->sum_stride = a->q_stride / 32;
    if (!(a->q = ks__dev_alloc(d, rows, a->q_stride, "quantized activations", err)) ||
        !(a->scale = ks__dev_alloc(d, rows * a->scale_stride, sizeof(float), "quantized activations", err)) ||
        !(a->sum = ks__dev_alloc(d, rows * a->sum_stride, sizeof(int32_t), "quantized activations", err)))
        return KS_E_NOMEM;
    return 0;
}

static int alloc_regs(ks_cpu_dev *d, ks_err *err)
{
    const ks_graph *g = d->g;
    if (!(d->regs = ks__dev_alloc(d, g->n_regs, sizeof *d->regs, "registers", err)) ||
        !(d->acts = ks__dev_alloc(d, g->n_regs, sizeof *d->acts, "registers", err)))
        return KS_E_NOMEM;
    for (uint32_t i = 0; i < g->n_regs; i++) {
        const ks_reg *s = &g->regs[i];
        struct dev_reg *r = &d->regs[i];
        size_t rows = s->kind & KS_REG_OUT ? d->bind.max_out : d->bind.max_rows;
        *r = (struct dev_reg) { .kind = s->kind, .width = s->width, .root = s->base ? s->base - 1 : i };
        if (s->base) {
            r->stride = d->regs[r->root].stride;
            r->p = (float *)d->regs[r->root].p + s->col;
            continue;
        }
        r->stride = ks_align_up(s->width, 16);
        if ((int32_t)i == g->logits) { /* the batch brings the memory, without padding */
            r->stride = s->width;
            continue;
        }
        size_t elem = (s->kind & 0xffu) == KS_REG_ROUTE ? 8 : 4;
        if (!(r->p = ks__dev_alloc(d, rows * r->stride, elem, "registers", err))) return KS_E_NOMEM;
        if ((s->kind & 0xffu) == KS_REG_SEL && !(r->n_sel = ks__dev_alloc(d, rows, sizeof *r->n_sel, "registers", err)))
            return KS_E_NOMEM;
    }
    return 0;
}

static int alloc_states(ks_cpu_dev *d, ks_err *err)
{
    const ks_graph *g = d->g;
    size_t elem = ks_type_bits(d->bind.kv_type) / 8;
    if (!(d->states = ks__dev_alloc(d, g->n_states, sizeof *d->states, "states", err))) return KS_E_NOMEM;
    for (uint32_t i = 0; i < g->n_states; i++) {
        const ks_state *s = &g->states[i];
        struct dev_state *t = &d->states[i];
        if (s->kind == KS_STATE_RECURRENT && !d->bind.n_slots)
            return ks_fail(err, KS_E_INVAL, "the model has recurrent state, but no slots are bound for it");
        if (s->kind == KS_STATE_RECURRENT) {
            t->floats = s->floats;
            for (uint32_t k = d->bind.op_begin; k < d->bind.op_end; k++)
                if (g->ops[k].kind == KS_OP_DELTA && g->ops[k].state == (int32_t)i)
                    t->floats = ks__delta_floats(&g->ops[k]);
            if (!(t->rec = ks__dev_alloc(d, d->bind.n_slots * t->floats, sizeof(float), "recurrent state", err)))
                return KS_E_NOMEM;
            continue;
        }
        t->k_page_bytes = ks_align_up((size_t)d->bind.page_tok * s->k_width * elem, 64);
        t->v_page_bytes = ks_align_up((size_t)d->bind.page_tok * s->v_width * elem, 64);
        if (!(t->k = alloc_raw(d, d->bind.n_pages, t->k_page_bytes, "KV pages", err)) ||
            !(t->v = alloc_raw(d, d->bind.n_pages, t->v_page_bytes, "KV pages", err)))
            return KS_E_NOMEM;
    }
    return 0;
}

/* What the largest op of each kind needs. */
struct needs {
    size_t pairs, hidden, scratch, keys; /* keys: of an indexer */
    uint32_t hidden_q, experts;
    size_t tasks, span;            /* of an attention; numbers that a span of keys leaves */
    size_t mla_q, mla_o, mla_rows; /* numbers, numbers, rows of mla_act */
    uint32_t mla_latent;           /* where it is quantized */
};

static void need_mla(const ks_op *op, const struct dev_op *p, struct needs *n)
{
    size_t rows = (size_t)KS_MLA_ROWS * op->u.mla.n_heads, latent = op->u.mla.d_latent;
    n->tasks = KS_MAX(n->tasks, rows);
    n->span = KS_MAX(n->span, op->u.mla.n_heads * (ks_align_up(latent, 16) + 16));
    n->mla_q = KS_MAX(n->mla_q, rows * (latent + op->u.mla.d_rope));
    n->mla_o = KS_MAX(n->mla_o, rows * latent);
    if (!p->quantized) return;
    n->mla_rows = KS_MAX(n->mla_rows, rows);
    n->mla_latent = KS_MAX(n->mla_latent, op->u.mla.d_latent);
}

static void need_op(const ks_cpu_dev *d, const ks_op *op, const struct dev_op *p, struct needs *n)
{
    size_t rows = KS_MAX(d->bind.max_rows, d->bind.max_out), pairs;
    switch (op->kind) {
    case KS_OP_ATTN:
        n->tasks = KS_MAX(n->tasks, (size_t)d->bind.max_rows * op->u.attn.n_kv_heads);
        n->span = KS_MAX(n->span, op->u.attn.n_heads * (ks_align_up(op->u.attn.d_v, 16) + 16));
        break;
    case KS_OP_ROUTE: n->scratch = KS_MAX(n->scratch, (size_t)op->u.route.n_experts * 16); break;
    case KS_OP_MLA: need_mla(op, p, n); break;
    case KS_OP_INDEXER:
        n->keys = (size_t)d->bind.n_pages * d->bind.page_tok;
        n->scratch = KS_MAX(n->scratch, ks__index_scratch(op, n->keys));
        break;
    case KS_OP_EXPERTS:
    case KS_OP_MLP:
        n->pairs = KS_MAX(n->pairs, rows * op->u.mlp.k);
        n->experts = KS_MAX(n->experts, op->u.mlp.n_experts);
        n->scratch = KS_MAX(n->scratch, sizeof(float) * 3 * KS_MOE_BLOCK * KS_MOE_ROWS);
        if (p->quantized2) n->hidden_q = KS_MAX(n->hidden_q, op->u.mlp.n_ff);
        pairs = p->quantized2 ? KS_MIN(rows * op->u.mlp.k, KS_MOE_FEW) : rows * op->u.mlp.k;
        n->hidden = KS_MAX(n->hidden, pairs * op->u.mlp.n_ff);
        break;
    default: break;
    }
}

/* Sequences share pages, but none is longer than all pages together. More than this is not worth it: where it does not
 * suffice, keys are not split. */
#define PART_FLOATS_MAX ((size_t)64 << 20)

/* Rows with many keys are cut into at most 4 more tasks a thread, and as many merges: see op_attn.c. */
static int alloc_attend(ks_cpu_dev *d, const struct needs *n, ks_err *err)
{
    size_t spans = (size_t)d->bind.n_pages * d->bind.page_tok / KS_ATTN_SPAN + 1, tasks = n->tasks + 8 * d->n_threads;
    if (tasks > UINT32_MAX)
        return ks_fail(err, KS_E_LIMIT, "%zu attention tasks a step: at most %u are possible", tasks, UINT32_MAX);
    d->n_tasks = (uint32_t)tasks;
    d->tasks = ks__dev_alloc(d, tasks, sizeof *d->tasks, "attention tasks", err);
    d->n_part = spans > 2 ? KS_MIN(n->span * spans, PART_FLOATS_MAX) : 0;
    d->part = d->n_part ? alloc_raw(d, d->n_part, sizeof *d->part, "attention over long contexts", err) : NULL;
    return d->tasks && (d->part || !d->n_part) ? 0 : KS_E_NOMEM;
}

static int alloc_needs(ks_cpu_dev *d, const struct needs *n, ks_err *err)
{
    size_t rows = KS_MAX(d->bind.max_rows, d->bind.max_out);
    int rc = n->tasks ? alloc_attend(d, n, err) : 0;
    if (rc) return rc;
    if (!(d->pair_row = ks__dev_alloc(d, n->pairs, sizeof *d->pair_row, "routed pairs", err)) ||
        !(d->pair_weight = ks__dev_alloc(d, n->pairs, sizeof *d->pair_weight, "routed pairs", err)) ||
        !(d->expert_begin = ks__dev_alloc(d, (size_t)n->experts + 1, sizeof *d->expert_begin, "routed pairs", err)) ||
        !(d->active = ks__dev_alloc(d, n->experts, sizeof *d->active, "routed pairs", err)) ||
        !(d->iota = ks__dev_alloc(d, rows, sizeof *d->iota, "routed pairs", err)) ||
        !(d->mla_q = ks__dev_alloc(d, n->mla_q, sizeof *d->mla_q, "latent attention", err)) ||
        !(d->mla_o = ks__dev_alloc(d, n->mla_o, sizeof *d->mla_o, "latent attention", err)) ||
        !(d->index_score = ks__dev_alloc(d, KS_INDEX_ROWS * n->keys, sizeof *d->index_score, "scores of keys", err)) ||
        !(d->hidden = ks__dev_alloc(d, n->hidden, sizeof *d->hidden, "the hidden layer", err)) ||
        !(d->heat = ks__dev_alloc(d, (size_t)d->g->n_layers * d->g->n_experts, sizeof *d->heat, "routing counts", err)))
        return KS_E_NOMEM;
    for (uint32_t i = 0; i < rows; i++) d->iota[i] = i;
    rc = n->hidden_q ? alloc_act(d, &d->hidden_act, n->pairs, n->hidden_q, err) : 0;
    if (!rc && n->mla_rows) rc = alloc_act(d, &d->mla_act, n->mla_rows, n->mla_latent, err);
    if (rc) return rc;
    d->kernel_scratch = ks_align_up(ks_kernel_scratch(d->ctx.kernels), 64);
    return ks_pool_reserve(d->ctx.pool, d->kernel_scratch + n->scratch, err);
}

static int plan_all(ks_cpu_dev *d, ks_err *err)
{
    const ks_graph *g = d->g;
    struct needs n = { 0 };
    int rc;
    if (!(d->ops = ks__dev_alloc(d, g->n_ops, sizeof *d->ops, "the plan", err))) return KS_E_NOMEM;
    for (uint32_t i = d->bind.op_begin; i < d->bind.op_end; i++) {
        const ks_op *op = &g->ops[i];
        for (uint32_t w = 0; w < KS_COUNT(op->w); w++)
            if (op->w[w] >= 0 && !g->weights[op->w[w]].data)
                return ks_fail(err, KS_E_STATE, "the weight '%s' is not loaded",
                               g->weights[op->w[w]].name ? g->weights[op->w[w]].name : "?");
        if ((rc = plan_op(d, g, op, &d->ops[i], err))) return rc;
        if (op->kind == KS_OP_CONV && (rc = ks__plan_conv(d, op, &d->ops[i], err))) return rc;
        need_op(d, op, &d->ops[i], &n);
        struct dev_reg *x = d->ops[i].quantized && op->kind != KS_OP_MLA ? &d->regs[op->in[0]] : NULL;
        if (!x || x->has_act) continue;
        x->has_act = true;
        d->acts[d->n_acts++] = (uint32_t)op->in[0];
        if ((rc = alloc_act(d, &x->act, x->kind & KS_REG_OUT ? d->bind.max_out : d->bind.max_rows, x->width, err)))
            return rc;
    }
    rc = ks__dev_group_ops(d, err);
    return rc ? rc : alloc_needs(d, &n, err);
}

static void unbind(ks_cpu_dev *d)
{
    free_blocks(d);
    d->g = NULL;
    d->n_acts = 0;
}

static int cpu_bind(void *dev, const ks_bind *b, ks_err *err)
{
    ks_cpu_dev *d = dev;
    int rc;
    if (b->kv_type != KS_T_F32 && b->kv_type != KS_T_BF16 && b->kv_type != KS_T_F8E4M3)
        return ks_fail(err, KS_E_UNSUPPORTED, "the KV cache cannot be %s: f32, bf16 and f8e4m3 are supported",
                       ks_type_name(b->kv_type));
    if (b->op_begin > b->op_end || b->op_end > b->graph->n_ops || !b->page_tok || !b->max_rows)
        return ks_fail(err, KS_E_INVAL, "ops %u to %u, %u rows and pages of %u tokens are no task", b->op_begin,
                       b->op_end, b->max_rows, b->page_tok);
    unbind(d);
    d->bind = *b;
    d->g = b->graph;
    d->n_threads = ks_pool_threads(d->ctx.pool);
    if ((rc = find_shared_kernels(d, b->kv_type, err)) || (rc = alloc_regs(d, err)) || (rc = alloc_states(d, err)) ||
        (rc = plan_all(d, err)))
        unbind(d);
    return rc;
}

/* ---- run */

static int check_seq(const ks_cpu_dev *d, const ks_batch *b, uint32_t i, uint32_t row, ks_err *err)
{
    const ks_seq *s = &b->seqs[i];
    if (s->row != row || s->n_rows == 0 || s->n_rows > b->n_rows - row)
        return ks_fail(err, KS_E_INVAL, "sequence %u has rows %u to %u of %u: sequences must follow each other", i,
                       s->row, s->row + s->n_rows, b->n_rows);
    if (d->g->n_states == 0) return 0;
    uint64_t end = (uint64_t)s->pos + s->n_rows, need = (end + d->bind.page_tok - 1) / d->bind.page_tok;
    if (s->n_pages < need)
        return ks_fail(err, KS_E_INVAL, "sequence %u has %u pages: %llu positions need %llu", i, s->n_pages,
                       (unsigned long long)end, (unsigned long long)need);
    for (uint32_t p = 0; p < need; p++)
        if (s->pages[p] >= d->bind.n_pages)
            return ks_fail(err, KS_E_INVAL, "sequence %u names page %u of %u", i, s->pages[p], d->bind.n_pages);
    if (d->bind.n_slots && s->slot >= d->bind.n_slots)
        return ks_fail(err, KS_E_INVAL, "sequence %u names slot %u of %u", i, s->slot, d->bind.n_slots);
    if (s->keep > d->bind.n_slots)
        return ks_fail(err, KS_E_INVAL, "sequence %u keeps its state in slot %u of %u", i, s->keep - 1,
                       d->bind.n_slots);
    return 0;
}

static int check_batch(const ks_cpu_dev *d, const ks_batch *b, ks_err *err)
{
    uint32_t row = 0;
    int rc;
    if (b->n_rows == 0 || b->n_rows > d->bind.max_rows || b->n_out > d->bind.max_out)
        return ks_fail(err, KS_E_LIMIT, "a step of %u rows and %u results: 1 to %u and at most %u were bound",
                       b->n_rows, b->n_out, d->bind.max_rows, d->bind.max_out);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        if ((rc = check_seq(d, b, i, row, err))) return rc;
        row += b->seqs[i].n_rows;
    }
    if (row != b->n_rows) return ks_fail(err, KS_E_INVAL, "the sequences hold %u of %u rows", row, b->n_rows);
    for (uint32_t i = 0; i < b->n_out; i++)
        if (b->out_rows[i] >= b->n_rows)
            return ks_fail(err, KS_E_INVAL, "result %u is row %u of %u", i, b->out_rows[i], b->n_rows);
    if (b->n_out && !b->logits) return ks_fail(err, KS_E_INVAL, "a step with results has no place for logits");
    return 0;
}

static int cpu_run(void *dev, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err)
{
    ks_cpu_dev *d = dev;
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to the CPU device");
    if (op_begin < d->bind.op_begin || op_begin > op_end || op_end > d->bind.op_end)
        return ks_fail(err, KS_E_INVAL, "ops %u to %u are not among the bound %u to %u", op_begin, op_end,
                       d->bind.op_begin, d->bind.op_end);
    int rc = check_batch(d, b, err);
    if (rc) return rc;
    d->batch = b;
    if (d->g->logits >= 0) d->regs[d->g->logits].p = b->logits;
    for (uint32_t i = 0; i < d->n_acts; i++) d->regs[d->acts[i]].act_valid = false;
    for (const struct dev_group *g = d->groups; !rc && g < d->groups + d->n_groups; g++) {
        uint32_t begin = KS_MAX(g->begin, op_begin), end = KS_MIN(g->end, op_end);
        if (begin < end) rc = ks__dev_run_group(d, g, begin, end, err);
    }
    d->batch = NULL;
    atomic_fetch_add_explicit(&d->steps, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->rows, b->n_rows, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->launches, op_end - op_begin, memory_order_relaxed);
    return rc;
}

/* ---- the rest of the interface */

static int cpu_list(void *self, uint32_t i, ks_device_info *ret, ks_err *err)
{
    (void)self;
    if (i > 0) return ks_fail(err, KS_E_NOTFOUND, "there is one CPU device");
    ks_device_info info = { .size = ret->size,
                            .mem_total_bytes = ks_ram_bytes(),
                            .mem_free_bytes = ks_ram_available_bytes() };
    (void)snprintf(info.name, sizeof info.name, "%s", ks_cpu_brand());
    memcpy(ret, &info, KS_MIN(ret->size, sizeof info));
    return 0;
}

static int cpu_open(void *self, uint32_t index, uint64_t budget_bytes, void **ret_dev, ks_err *err)
{
    (void)budget_bytes; /* the weights are the host's; registers and pages are what bind was asked for */
    if (index > 0) return ks_fail(err, KS_E_NOTFOUND, "there is no CPU device %u", index);
    ks_cpu_dev *d = ks_calloc(1, sizeof *d);
    if (!d) return ks_fail(err, KS_E_NOMEM, "out of memory for the CPU device");
    d->ctx = *(const ks_cpu_ctx *)self;
    *ret_dev = d;
    return 0;
}

static void cpu_close(void *dev)
{
    ks_cpu_dev *d = dev;
    if (!d) return;
    free_blocks(d);
    free(d);
}

static int cpu_lower(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err)
{
    ks_cpu_dev *d = dev;
    (void)err;
    bool shared = find_shared_kernels(d, kv_type, NULL) == 0;
    for (uint32_t i = 0; i < g->n_ops; i++) {
        struct dev_op plan = { 0 };
        ret_ok[i] = shared && plan_op(d, g, &g->ops[i], &plan, NULL) == 0;
    }
    return 0;
}

static int check_reg(const ks_cpu_dev *d, uint32_t reg, uint32_t n_rows, ks_err *err)
{
    if (!d->g || reg >= d->g->n_regs) return ks_fail(err, KS_E_INVAL, "register %u does not exist", reg);
    uint32_t max = d->regs[reg].kind & KS_REG_OUT ? d->bind.max_out : d->bind.max_rows;
    if (n_rows > max) return ks_fail(err, KS_E_LIMIT, "%u rows of a register with %u", n_rows, max);
    if ((int32_t)reg == d->g->logits)
        return ks_fail(err, KS_E_INVAL, "logits are read from the batch, not from a register");
    return 0;
}

/* Between a row of the device and one of the host: a selection travels with its count in front. */
static void move_row(const struct dev_reg *r, uint32_t row, uint8_t *host, bool to_host)
{
    size_t elem = (r->kind & 0xffu) == KS_REG_ROUTE ? 8 : 4, bytes = r->width * elem;
    uint8_t *own = (uint8_t *)r->p + row * r->stride * elem;
    if (r->n_sel) {
        uint32_t *n = &r->n_sel[row];
        memcpy(to_host ? host : (uint8_t *)n, to_host ? (uint8_t *)n : host, sizeof *n);
        host += sizeof *n;
    }
    memcpy(to_host ? host : own, to_host ? own : host, bytes);
}

static size_t host_row_bytes(const struct dev_reg *r)
{
    return (r->width + (r->n_sel != NULL)) * (size_t)((r->kind & 0xffu) == KS_REG_ROUTE ? 8 : 4);
}

static int cpu_get(void *dev, uint32_t reg, uint32_t n_rows, void *dst, ks_err *err)
{
    ks_cpu_dev *d = dev;
    int rc = check_reg(d, reg, n_rows, err);
    for (uint32_t i = 0; !rc && i < n_rows; i++)
        move_row(&d->regs[reg], i, (uint8_t *)dst + i * host_row_bytes(&d->regs[reg]), true);
    return rc;
}

static int cpu_put(void *dev, uint32_t reg, uint32_t n_rows, const void *src, ks_err *err)
{
    ks_cpu_dev *d = dev;
    int rc = check_reg(d, reg, n_rows, err);
    for (uint32_t i = 0; !rc && i < n_rows; i++) /* only read from */
        move_row(&d->regs[reg], i, (uint8_t *)(uintptr_t)src + i * host_row_bytes(&d->regs[reg]), false);
    return rc;
}

static int cpu_copy_page(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    ks_cpu_dev *d = dev;
    if (!d->g || dst >= d->bind.n_pages || src >= d->bind.n_pages)
        return ks_fail(err, KS_E_INVAL, "page %u or %u of %u does not exist", dst, src, d->bind.n_pages);
    for (uint32_t i = 0; i < d->g->n_states && dst != src; i++) {
        const struct dev_state *s = &d->states[i];
        if (s->rec) continue;
        memcpy(s->k + dst * s->k_page_bytes, s->k + src * s->k_page_bytes, s->k_page_bytes);
        memcpy(s->v + dst * s->v_page_bytes, s->v + src * s->v_page_bytes, s->v_page_bytes);
    }
    return 0;
}

static int cpu_copy_slot(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    ks_cpu_dev *d = dev;
    if (!d->g || dst >= d->bind.n_slots || src >= d->bind.n_slots)
        return ks_fail(err, KS_E_INVAL, "slot %u or %u of %u does not exist", dst, src, d->bind.n_slots);
    for (uint32_t i = 0; i < d->g->n_states && dst != src; i++) {
        size_t n = d->states[i].floats;
        if (d->states[i].rec) memcpy(d->states[i].rec + dst * n, d->states[i].rec + src * n, n * sizeof(float));
    }
    return 0;
}

static int cpu_stats(void *dev, ks_device_stats *ret, ks_err *err)
{
    ks_cpu_dev *d = dev;
    (void)err;
    ks_device_stats s = { .size = ret->size,
                          .steps = atomic_load_explicit(&d->steps, memory_order_relaxed),
                          .rows = atomic_load_explicit(&d->rows, memory_order_relaxed),
                          .launches = atomic_load_explicit(&d->launches, memory_order_relaxed),
                          .experts_cold = atomic_load_explicit(&d->pairs, memory_order_relaxed),
                          .mem_bytes = d->mem_bytes };
    memcpy(ret, &s, KS_MIN(ret->size, sizeof s));
    return 0;
}

static int cpu_heat(void *dev, uint64_t *ret_counts, ks_err *err)
{
    ks_cpu_dev *d = dev;
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to the CPU device");
    memcpy(ret_counts, d->heat, (size_t)d->g->n_layers * d->g->n_experts * sizeof *ret_counts);
    return 0;
}

const ks_device_iface ks_cpu_device_iface = {
    .size = sizeof(ks_device_iface),
    .flags = KS_DEVICE_RUNS,
    .list = cpu_list,
    .open = cpu_open,
    .close = cpu_close,
    .lower = cpu_lower,
    .bind = cpu_bind,
    .run = cpu_run,
    .get = cpu_get,
    .put = cpu_put,
    .copy_page = cpu_copy_page,
    .copy_slot = cpu_copy_slot,
    .stats = cpu_stats,
    .heat = cpu_heat,
};
