/* bind: registers, caches, workspaces, weights and places for experts, laid out from the op list. The layout is made
 * twice by the same code: to count (cu_count, all that `krasis plan` needs), and over the memory that was taken by that
 * count. What talks to the driver comes after it. [main] */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#define OUT_ROWS 64u   /* whose logits go through pinned memory */
#define SHARE_ROWS 17u /* where the host does not say */

static bool runs(const cu_dev *d, uint32_t i)
{
    return i >= d->bind.op_begin && i < d->bind.op_end && d->mine[i];
}

static int alloc_reg(cu_dev *d, uint32_t i, ks_err *err)
{
    const ks_reg *s = cu_greg(d->g, i);
    struct dev_reg *r = &d->regs[i];
    size_t rows = cu_reg_rows(d, i), elem = (s->kind & 0xffu) == KS_REG_ROUTE ? 8 : 4;
    if (s->base) {
        r->r.stride = d->regs[r->root].r.stride;
        r->r.p = r->all = d->regs[r->root].r.p + s->col;
        return 0;
    }
    r->r.stride = cu_round(s->width, 16);
    if (!(r->r.p = r->all = cu_alloc(d, rows * r->r.stride, elem, CU_FOR_ACTS, err))) return KS_E_NOMEM;
    if ((s->kind & 0xffu) == KS_REG_SEL &&
        !(r->n_sel = r->n_sel_all = cu_alloc(d, rows, sizeof *r->n_sel, CU_FOR_ACTS, err)))
        return KS_E_NOMEM;
    return 0;
}

static int alloc_regs(cu_dev *d, ks_err *err)
{
    const ks_graph *g = d->g;
    if (!(d->regs = cu_alloc_host(d, g->n_regs, sizeof *d->regs, "registers", err)) ||
        !(d->acts = cu_alloc_host(d, g->n_regs, sizeof *d->acts, "registers", err)))
        return KS_E_NOMEM;
    for (uint32_t i = 0; i < g->n_regs; i++) {
        const ks_reg *s = cu_greg(g, i);
        d->regs[i] = (struct dev_reg) { .kind = s->kind, .width = s->width, .root = s->base ? s->base - 1 : i };
    }
    int rc = cu_pieces_lay_out(d, err);
    for (uint32_t i = 0; i < g->n_regs && !rc; i++) rc = alloc_reg(d, i, err);
    return rc;
}

static int alloc_state(cu_dev *d, const ks_op *op, ks_err *err)
{
    const ks_state *s = cu_gstate(d->g, (uint32_t)op->state);
    struct dev_state *t = &d->states[op->state];
    size_t elem = ks_type_bits(d->bind.kv_type) / 8;
    if (t->k || t->rec) return 0;
    if (s->kind == KS_STATE_RECURRENT) {
        if (!d->bind.n_slots)
            return ks_fail(err, KS_E_INVAL, "the model has recurrent state, but no slots are bound for it");
        t->floats = op->kind == KS_OP_DELTA ? op->u.delta.n_v_heads * ks_delta_floats(op->u.delta.d_k, op->u.delta.d_v)
                                            : s->floats;
        t->rec = cu_alloc(d, d->bind.n_slots * t->floats, sizeof(float), CU_FOR_STATE, err);
        return t->rec ? 0 : KS_E_NOMEM;
    }
    t->k_page_bytes = cu_round((size_t)d->bind.page_tok * s->k_width * elem, 64);
    t->v_page_bytes = cu_round((size_t)d->bind.page_tok * s->v_width * elem, 64);
    if (!(t->k = cu_alloc(d, d->bind.n_pages, t->k_page_bytes, CU_FOR_KV, err)) ||
        !(t->v = cu_alloc(d, d->bind.n_pages, t->v_page_bytes, CU_FOR_KV, err)))
        return KS_E_NOMEM;
    return 0;
}

/* A bank, matrix after matrix without what lies between them on the host. Embeddings and experts stay there. */
static int lay_weights(cu_dev *d, ks_err *err)
{
    if (!(d->weights = cu_alloc_host(d, d->g->n_weights, sizeof *d->weights, "the plan", err))) return KS_E_NOMEM;
    for (uint32_t i = 0; i < d->g->n_ops; i++) {
        const ks_op *op = cu_op(d->g, i);
        for (uint32_t k = 0; k < 6 && runs(d, i); k++) {
            if (op->w[k] < 0 || op->kind == KS_OP_EMBED || (op->kind == KS_OP_EXPERTS && k < 2)) continue;
            const ks_weight *w = cu_gweight(d->g, op->w[k]);
            struct dev_weight *t = &d->weights[op->w[k]];
            if (t->p) continue;
            t->stride = cu_round(w->mat_bytes, 256);
            if (!(t->p = cu_alloc(d, w->n_mat, t->stride, CU_FOR_WEIGHTS + (w->cls & 15), err))) return KS_E_NOMEM;
        }
    }
    return 0;
}

static int upload(cu_dev *d, uint32_t index, ks_err *err)
{
    const ks_weight *w = cu_gweight(d->g, (int32_t)index);
    const struct dev_weight *t = &d->weights[index];
    atomic_fetch_add_explicit(&d->bytes_in, w->mat_bytes * w->n_mat, memory_order_relaxed);
    return cu_check(d,
                    cudaMemcpy2DAsync(t->p, t->stride, w->data, w->n_mat > 1 ? w->stride : t->stride, w->mat_bytes,
                                      w->n_mat, cudaMemcpyHostToDevice, d->compute),
                    "uploading weights", err);
}

static int upload_weights(cu_dev *d, ks_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; i < d->g->n_weights && !rc; i++)
        if (d->weights[i].p) rc = upload(d, i, err);
    return rc;
}

/* ---- workspaces */

struct needs {
    size_t embed_row, part, mla_q, mla_o, mla_rows;
    uint32_t mla_latent;
};

static int need_tiles(cu_dev *d, uint32_t rows, ks_err *err)
{
    for (uint32_t i = 0; i < d->n_tile_kinds; i++)
        if (d->tile_rows[i] == rows) return 0;
    if (d->n_tile_kinds == CU_MAX_TILE_KINDS)
        return ks_fail(err, KS_E_LIMIT, "the model's attention has more than %u shapes", CU_MAX_TILE_KINDS);
    d->tile_rows[d->n_tile_kinds++] = rows;
    return 0;
}

static int need_mla(cu_dev *d, const ks_op *op, struct needs *n, ks_err *err)
{
    bool flash;
    uint32_t heads = op->u.mla.n_heads, latent = op->u.mla.d_latent, width = latent + op->u.mla.d_rope;
    size_t rows = (size_t)d->piece_rows * heads;
    n->mla_q = rows * width > n->mla_q ? rows * width : n->mla_q;
    n->mla_o = rows * latent > n->mla_o ? rows * latent : n->mla_o;
    if (cu_is_quantized(cu_gweight(d->g, op->w[1])->type)) {
        n->mla_rows = rows > n->mla_rows ? rows : n->mla_rows;
        n->mla_latent = cu_max(n->mla_latent, latent);
    }
    return need_tiles(d, cu_tile_rows(d, heads, width, latent, op->u.mla.sel, &flash), err);
}

static int need_op(cu_dev *d, const ks_op *op, struct needs *n, ks_err *err)
{
    bool flash;
    if (op->kind == KS_OP_MLA) return need_mla(d, op, n, err);
    if (op->kind == KS_OP_ATTN)
        return need_tiles(d,
                          cu_tile_rows(d, op->u.attn.n_heads / op->u.attn.n_kv_heads, op->u.attn.d_k, op->u.attn.d_v,
                                       op->u.attn.sel, &flash),
                          err);
    if (op->kind != KS_OP_EMBED) return 0;
    const ks_weight *w = cu_gweight(d->g, op->w[0]);
    size_t bytes = (size_t)w->n_in * ks_type_bits(w->type) / 8;
    n->embed_row = bytes > n->embed_row ? bytes : n->embed_row;
    return 0;
}

/* Registers that quantized matrices read have a quantized copy. */
static int need_act(cu_dev *d, const ks_op *op, ks_err *err)
{
    if (op->kind != KS_OP_LINEAR && op->kind != KS_OP_EXPERTS && op->kind != KS_OP_MLP) return 0;
    struct dev_reg *x = &d->regs[op->in[0]];
    if (!cu_is_quantized(cu_gweight(d->g, op->w[0])->type) || x->has_act) return 0;
    x->has_act = true;
    d->acts[d->n_acts++] = (uint32_t)op->in[0];
    int rc = cu_alloc_act(d, &x->act, cu_act_rows(d, (uint32_t)op->in[0]), x->width, err);
    x->act_all = x->act;
    return rc;
}

static int alloc_needs(cu_dev *d, const struct needs *n, ks_err *err)
{
    d->meta_bytes = cu_step_bytes(d);
    d->out_bytes = cu_min(d->bind.max_out, OUT_ROWS) * (size_t)d->g->n_vocab * sizeof(float);
    d->part_floats = (size_t)64 << 20 >> 2; /* 64 MB: as many spans as that holds go in parallel */
    if (!(d->meta = cu_alloc(d, d->meta_bytes, 1, CU_FOR_TABLES, err)) ||
        !(d->meta_host = cu_alloc_pinned(d, d->meta_bytes, 1, "the step's tables", err)) ||
        !(d->embed_host = cu_alloc_pinned(d, d->bind.max_rows, n->embed_row, "embeddings", err)) ||
        !(d->out_host = cu_alloc_pinned(d, cu_min(d->bind.max_out, OUT_ROWS) * (size_t)d->g->n_vocab, sizeof(float),
                                        "logits", err)) ||
        !(d->part = cu_alloc(d, d->part_floats, sizeof *d->part, CU_FOR_ACTS, err)) ||
        !(d->mla_q = cu_alloc(d, n->mla_q, sizeof(float), CU_FOR_ACTS, err)) ||
        !(d->mla_o = cu_alloc(d, n->mla_o, sizeof(float), CU_FOR_ACTS, err)))
        return KS_E_NOMEM;
    return n->mla_rows ? cu_alloc_act(d, &d->mla_act, n->mla_rows, n->mla_latent, err) : 0;
}

static int lay_ops(cu_dev *d, ks_err *err)
{
    struct needs n = { 0 };
    int rc;
    if (!(d->states = cu_alloc_host(d, d->g->n_states, sizeof *d->states, "states", err))) return KS_E_NOMEM;
    for (uint32_t i = 0; i < d->g->n_ops; i++) {
        const ks_op *op = cu_op(d->g, i);
        if (!runs(d, i)) continue;
        if (op->state >= 0 && (rc = alloc_state(d, op, err))) return rc;
        if ((rc = need_op(d, op, &n, err)) || (rc = need_act(d, op, err))) return rc;
    }
    return alloc_needs(d, &n, err);
}

/* All but the memory that was taken. */
static void forget(cu_dev *d)
{
    cu_graphs_drop(d);
    cu_experts_unbind(d);
    free(d->regs);
    free(d->acts);
    free(d->pieces);
    free(d->piece_seqs);
    free(d->page_at);
    free(d->states);
    free(d->weights);
    free(d->mine);
    free(d->fused);
    d->regs = NULL;
    d->acts = NULL;
    d->pieces = NULL;
    d->piece_seqs = NULL;
    d->page_at = NULL;
    d->states = NULL;
    d->weights = NULL;
    d->mine = NULL;
    d->fused = NULL;
    d->n_acts = d->n_tile_kinds = 0;
    d->mla_act = (cu_act) { 0 };
}

void cu_unbind(cu_dev *d)
{
    forget(d);
    cu_free_all(d);
    d->g = NULL;
}

/* The host gives us the ops of the range that we said we can run, and no others. Experts come last: they get what is
 * left. */
static int lay_out(cu_dev *d, ks_err *err)
{
    int rc;
    if (!(d->mine = cu_alloc_host(d, d->g->n_ops, 1, "the plan", err))) return KS_E_NOMEM;
    if ((rc = cu_lower(d, d->g, d->bind.kv_type, d->mine, err)) || (rc = alloc_regs(d, err)) ||
        (rc = lay_ops(d, err)) || (rc = lay_weights(d, err)) || (rc = cu_fuse_lay_out(d, err)))
        return rc;
    return cu_experts_lay_out(d, err);
}

int cu_set_bind(cu_dev *d, const ks_bind *b, ks_err *err)
{
    memset(&d->bind, 0, sizeof d->bind);
    memcpy(&d->bind, b, b->size < sizeof d->bind ? b->size : sizeof d->bind);
    b = &d->bind;
    if (b->kv_type != KS_T_F32 && b->kv_type != KS_T_BF16 && b->kv_type != KS_T_F8E4M3)
        return ks_fail(err, KS_E_UNSUPPORTED, "the KV cache cannot be %s: f32, bf16 and f8e4m3 are supported",
                       ks_type_name(b->kv_type));
    if (b->op_begin > b->op_end || b->op_end > b->graph->n_ops || !b->page_tok || !b->max_rows)
        return ks_fail(err, KS_E_INVAL, "ops %u to %u, %u rows and pages of %u tokens are no task", b->op_begin,
                       b->op_end, b->max_rows, b->page_tok);
    if (b->stream > KS_STREAM_CHUNKS || (b->stream == KS_STREAM_GROUPS && !b->stream_layers))
        return ks_fail(err, KS_E_INVAL, "experts cannot stream in way %u with groups of %u layers", b->stream,
                       b->stream_layers);
    d->share_rows = b->share_rows ? b->share_rows : SHARE_ROWS;
    d->g = b->graph;
    return 0;
}

int cu_count(cu_dev *d, ks_err *err)
{
    d->planning = true;
    int rc = lay_out(d, err);
    d->planning = false;
    return rc ? rc : cu_plan_fits(d, err);
}

static int check_data(const cu_dev *d, ks_err *err)
{
    for (uint32_t i = 0; i < d->g->n_ops; i++)
        for (uint32_t k = 0; k < 6 && runs(d, i); k++) {
            int32_t w = cu_op(d->g, i)->w[k];
            if (w >= 0 && !cu_gweight(d->g, w)->data)
                return ks_fail(err, KS_E_STATE, "the weight '%s' is not loaded",
                               cu_gweight(d->g, w)->name ? cu_gweight(d->g, w)->name : "?");
        }
    return 0;
}

/* Planned and used, held against what the driver says is gone. */
static int compare(cu_dev *d, uint64_t free_before, ks_err *err)
{
    size_t free_bytes = 0, total = 0;
    char line[256];
    int rc = cu_check(d, cudaMemGetInfo(&free_bytes, &total), "asking for its memory", err);
    if (rc) return rc;
    uint64_t context = d->parts[CU_FOR_CONTEXT].bytes, gone = free_before > free_bytes ? free_before - free_bytes : 0;
    (void)snprintf(line, sizeof line,
                   "GPU %d: %.1f MB planned, %.1f MB used (%.1f MB of them the context), budget %.1f MB", d->index,
                   (double)cu_plan_bytes(d) / 1e6, (double)(gone + context) / 1e6, (double)context / 1e6,
                   (double)d->budget / 1e6);
    /* Other programs may take memory at the same moment; but a plan that is wrong must be seen. */
    bool off = gone + context > cu_plan_bytes(d) + cu_plan_bytes(d) / 20;
    d->host->log(d->host, off ? KS_LOG_WARN : KS_LOG_INFO, line);
    return 0;
}

int cu_bind(void *dev, const ks_bind *b, ks_err *err)
{
    cu_dev *d = dev;
    size_t free_bytes = 0, total = 0;
    int rc;
    if (d->dead) return ks_fail(err, KS_E_DEVICE, "%s", d->why);
    if ((rc = cu_check(d, cudaSetDevice(d->index), "choosing the device", err))) return rc;
    cu_unbind(d);
    d->parts[CU_FOR_CONTEXT].bytes = d->context;
    if ((rc = cu_set_bind(d, b, err)) || (rc = cu_count(d, err)) || (rc = check_data(d, err))) goto fail;
    forget(d);
    if ((rc = cu_check(d, cudaMemGetInfo(&free_bytes, &total), "asking for its memory", err)) ||
        (rc = cu_take(d, err)) || (rc = lay_out(d, err)) || (rc = upload_weights(d, err)) ||
        (rc = cu_check(d, cudaStreamSynchronize(d->compute), "clearing memory",
                       err)) || /* before experts come into it */
        (rc = cu_experts_fill(d, err)) ||
        (rc = cu_check(d, cudaStreamSynchronize(d->compute), "binding the model", err)) ||
        (rc = compare(d, free_bytes, err)))
        goto fail;
    return 0;
fail:
    cu_unbind(d);
    return rc;
}
