/* run: each op of the list becomes its launches on one stream; nothing is waited for before the end. [engine] */
#include "device.h"

#include <math.h>
#include <string.h>

#define WG_ROWS 96u /* an H200 gains a quarter by warpgroups with 128 rows a matrix and loses 6 % with 64 */

/* ---- what several ops share */

void cu_quantize(cu_dev *d, int16_t reg)
{
    struct dev_reg *r = &d->regs[reg];
    if (r->act_valid) return;
    cu_launch_quant(r->r.p, r->r.stride, cu_rows(d, reg), r->width, r->act, d->compute);
    r->act_valid = true;
}

cu_matmul cu_matmul_of(const cu_dev *d, int32_t index, uint32_t n_rows)
{
    const ks_weight *w = cu_gweight(d->g, index);
    return (cu_matmul) { .type = w->type,
                         .n_in = w->n_in,
                         .n_out = w->n_out,
                         .group = w->group,
                         .n_mat = 1,
                         .n_rows = n_rows,
                         .w = d->weights[index].p,
                         .w_stride = d->weights[index].stride,
                         .strip_bytes = ks_t16_strip_bytes(w->type, w->n_in, w->group),
                         .x_mul = 1,
                         .wg_blocks = d->wg_blocks,
                         .wg_rows = WG_ROWS,
                         .scale = 1 };
}

void cu_set_input(cu_matmul *m, const struct dev_reg *x)
{
    m->act = x->act;
    m->x = x->r.p;
    m->x_stride = x->r.stride;
}

/* ---- ops */

/* The rows that the batch asks for, into pinned memory. */
static int gather_embeddings(cu_dev *d, const ks_batch *b, const ks_op *op, ks_err *err)
{
    const ks_weight *w = cu_gweight(d->g, op->w[0]);
    size_t row = (size_t)w->n_in * ks_type_bits(w->type) / 8;
    for (uint32_t r = 0; r < b->n_rows; r++) {
        if (b->ids[r] < 0 || (uint32_t)b->ids[r] >= w->n_out)
            return ks_fail(err, KS_E_INVAL, "row %u holds token %d: the vocabulary has %u", r, b->ids[r], w->n_out);
        memcpy(d->embed_host + r * row, (const uint8_t *)w->data + (size_t)b->ids[r] * row, row);
    }
    return 0;
}

/* The kernel that converts them reads them over the link. */
static int op_embed(cu_dev *d, const ks_op *op, ks_err *err)
{
    const ks_weight *w = cu_gweight(d->g, op->w[0]);
    size_t row = (size_t)w->n_in * ks_type_bits(w->type) / 8;
    uint32_t n = d->batch->n_rows;
    (void)err;
    atomic_fetch_add_explicit(&d->bytes_in, n * row, memory_order_relaxed);
    cu_launch_embed(d->embed_host + d->first_row * row, w->type, d->regs[op->out[0]].r, op->f[0], n, w->n_in,
                    d->compute);
    return 0;
}

cu_norm cu_norm_of(const cu_dev *d, const ks_op *op)
{
    const struct dev_reg *x = &d->regs[op->in[0]];
    return (cu_norm) { .kind = op->u.norm.kind,
                       .n_rows = cu_rows(d, op->in[0]),
                       .n = x->width,
                       .width = op->u.norm.width,
                       .w_width = op->u.norm.w_width,
                       .eps = op->u.norm.eps,
                       .w_offset = op->u.norm.w_offset,
                       .x = x->r,
                       .y = d->regs[op->out[0]].r,
                       .weight = cu_vector(d, op->w[0]),
                       .bias = cu_vector(d, op->w[1]) };
}

static int op_norm(cu_dev *d, const ks_op *op, ks_err *err)
{
    cu_norm a = cu_norm_of(d, op);
    (void)err;
    cu_launch_norm(&a, d->compute);
    return 0;
}

/* Quantizes the input where the matrix wants that, or lets few rows be quantized by the product. */
cu_matmul cu_linear_of(cu_dev *d, const ks_op *op)
{
    const struct dev_reg *x = &d->regs[op->in[0]];
    cu_matmul m = cu_matmul_of(d, op->w[0], cu_rows(d, op->in[0]));
    bool own = d->opts->fuse && !x->act_valid && cu_quantizes(m.n_rows, m.n_in, m.n_out);
    if (cu_is_quantized(m.type) && !own) cu_quantize(d, op->in[0]);
    cu_set_input(&m, x);
    if (own) m.act = (cu_act) { 0 };
    m.y = d->regs[op->out[0]].r.p;
    m.y_stride = d->regs[op->out[0]].r.stride;
    m.bias = cu_vector(d, op->w[1]);
    m.scale = op->f[0];
    m.softcap = op->f[1];
    return m;
}

static int op_linear(cu_dev *d, const ks_op *op, ks_err *err)
{
    cu_matmul m = cu_linear_of(d, op);
    (void)err;
    cu_launch_matmul(&m, d->compute);
    return 0;
}

cu_rope cu_rope_of(const cu_dev *d, const ks_op *op)
{
    return (cu_rope) { .kind = op->u.rope.kind,
                       .n_rows = d->batch->n_rows,
                       .n_heads = op->u.rope.n_heads,
                       .head_dim = op->u.rope.head_dim,
                       .rot_dim = op->u.rope.rot_dim,
                       .rot_begin = op->u.rope.rot_begin,
                       .mscale = op->u.rope.mscale,
                       .inv_freq = cu_vector(d, op->w[0]),
                       .pos = d->step.pos,
                       .x = d->regs[op->in[0]].r };
}

static int op_rope(cu_dev *d, const ks_op *op, ks_err *err)
{
    cu_rope a = cu_rope_of(d, op);
    (void)err;
    cu_launch_rope(&a, d->compute);
    return 0;
}

cu_append cu_append_of(const cu_dev *d, int16_t reg, uint8_t *cache, size_t page_bytes, uint32_t stride, uint32_t col)
{
    return (cu_append) { .x = d->regs[reg].r,
                         .cache = { cache, page_bytes, d->bind.kv_type, stride, d->bind.page_tok, 0 },
                         .n_rows = d->batch->n_rows,
                         .n = d->regs[reg].width,
                         .col = col,
                         .row_seq = d->step.row_seq,
                         .seqs = d->step.seqs,
                         .pages = d->step.pages };
}

static void append(cu_dev *d, int16_t reg, uint8_t *cache, size_t page_bytes, uint32_t stride, uint32_t col)
{
    cu_append a = cu_append_of(d, reg, cache, page_bytes, stride, col);
    cu_launch_append(&a, d->compute);
}

uint32_t cu_tile_rows(const cu_dev *d, uint32_t group, uint32_t d_k, uint32_t d_v, int32_t sel, bool *ret_flash)
{
    uint32_t queries = sel < 0 ? cu_flash_queries(d->bind.kv_type, group, d_k, d_v, d->shared_max, d->flash_wg) : 0;
    *ret_flash = queries != 0;
    return sel >= 0 ? 1 : cu_max((queries ? queries : CU_ATTN_QUERIES) / group, 1);
}

/* Fills in what does not differ between ATTN and MLA and launches. */
static int attend(cu_dev *d, cu_attn *a, int32_t sel, ks_err *err)
{
    uint32_t kind = 0, group = a->n_heads / a->n_kv_heads, chunks = (group + CU_ATTN_QUERIES - 1) / CU_ATTN_QUERIES;
    bool flash;
    uint32_t tile_rows = cu_tile_rows(d, group, a->d_k, a->d_v, sel, &flash);
    while (kind + 1 < d->n_tile_kinds && d->tile_rows[kind] != tile_rows) kind++;
    a->tiles = d->step.tiles[kind];
    a->n_tiles = d->step.n_tiles[kind];
    a->seqs = d->step.seqs;
    a->pages = d->step.pages;
    a->n_rows = d->batch->n_rows;
    if (sel >= 0) {
        a->sel = (const uint32_t *)(const void *)d->regs[sel].r.p;
        a->n_sel = d->regs[sel].n_sel;
        a->sel_stride = d->regs[sel].r.stride;
    }
    /* Too few blocks to fill the device: spans go side by side. The bits are the same. */
    size_t part = (size_t)a->n_rows * a->n_heads * d->step.n_spans * (a->d_v + 2);
    bool few = (size_t)a->n_tiles * a->n_kv_heads * chunks < 2 * (size_t)d->n_sms;
    if (sel < 0 && d->step.n_spans > 1 && few && part <= d->part_floats) {
        a->n_spans = d->step.n_spans;
        a->part = d->part;
    }
    a->warpgroups = d->flash_wg;
    a->shared_max = (uint32_t)d->shared_max;
    a->n_sms = d->n_sms;
    int rc = flash ? cu_launch_flash(a, d->compute) : cu_launch_attn(a, d->compute);
    return cu_check(d, (cudaError_t)rc, "attention", err);
}

int cu_attend(cu_dev *d, const ks_op *op, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    uint32_t kw = d->regs[op->in[1]].width, vw = d->regs[op->in[2]].width, page_tok = d->bind.page_tok,
             type = d->bind.kv_type;
    cu_attn a = { .n_heads = op->u.attn.n_heads,
                  .n_kv_heads = op->u.attn.n_kv_heads,
                  .d_k = op->u.attn.d_k,
                  .d_v = op->u.attn.d_v,
                  .window = op->u.attn.window,
                  .chunk = op->u.attn.chunk,
                  .scale = op->u.attn.scale,
                  .softcap = op->u.attn.softcap,
                  .q = d->regs[op->in[0]].r,
                  .q_head = op->u.attn.d_k,
                  .o = d->regs[op->out[0]].r,
                  .o_head = op->u.attn.d_v,
                  .k = { st->k, st->k_page_bytes, type, kw, page_tok, 0 },
                  .v = { st->v, st->v_page_bytes, type, vw, page_tok, 0 },
                  .sinks = cu_vector(d, op->w[0]) };
    return attend(d, &a, op->u.attn.sel, err);
}

static int op_attn(cu_dev *d, const ks_op *op, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    append(d, op->in[1], st->k, st->k_page_bytes, d->regs[op->in[1]].width, 0);
    append(d, op->in[2], st->v, st->v_page_bytes, d->regs[op->in[2]].width, 0);
    return cu_attend(d, op, err);
}

/* Queries become latent rows, attend over the latent cache, and what comes out is expanded head by head. */
static int op_mla(cu_dev *d, const ks_op *op, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    const ks_weight *uk = cu_gweight(d->g, op->w[0]);
    uint32_t heads = op->u.mla.n_heads, latent = op->u.mla.d_latent, width = latent + op->u.mla.d_rope,
             n = d->batch->n_rows;
    append(d, op->in[1], st->k, st->k_page_bytes, width, 0);
    append(d, op->in[2], st->k, st->k_page_bytes, width, latent);
    cu_absorb ab = { .n_rows = n,
                     .n_heads = heads,
                     .d_nope = op->u.mla.d_nope,
                     .d_rope = op->u.mla.d_rope,
                     .d_latent = latent,
                     .type = uk->type,
                     .group = uk->group,
                     .w = d->weights[op->w[0]].p,
                     .w_stride = d->weights[op->w[0]].stride,
                     .strip_bytes = ks_t16_strip_bytes(uk->type, uk->n_in, uk->group),
                     .q = d->regs[op->in[0]].r,
                     .y = d->mla_q };
    cu_launch_absorb(&ab, d->compute);
    cu_cache cache = { st->k, st->k_page_bytes, d->bind.kv_type, width, d->bind.page_tok, 0 };
    cu_attn a = { .n_heads = heads,
                  .n_kv_heads = 1,
                  .d_k = width,
                  .d_v = latent,
                  .scale = op->u.mla.scale,
                  .q = { d->mla_q, (size_t)heads * width },
                  .q_head = width,
                  .o = { d->mla_o, (size_t)heads * latent },
                  .o_head = latent,
                  .k = cache,
                  .v = cache };
    int rc = attend(d, &a, op->u.mla.sel, err);
    if (rc) return rc;
    cu_matmul m = cu_matmul_of(d, op->w[1], n);
    m.n_mat = heads;
    m.x_mul = heads;
    m.x_add = 1;
    if (cu_is_quantized(m.type)) cu_launch_quant(d->mla_o, latent, n * heads, latent, d->mla_act, d->compute);
    m.act = d->mla_act;
    m.x = d->mla_o;
    m.x_stride = latent;
    m.y = d->regs[op->out[0]].r.p;
    m.y_stride = d->regs[op->out[0]].r.stride;
    m.y_mat = op->u.mla.d_v;
    cu_launch_matmul(&m, d->compute);
    return 0;
}

/* Scores take the place of attention's spans; as many rows at a time as that holds. */
static int op_indexer(cu_dev *d, const ks_op *op, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    const struct dev_reg *sel = &d->regs[op->out[0]];
    uint32_t n = d->batch->n_rows, width = op->u.indexer.d, keys = 0;
    append(d, op->in[1], st->k, st->k_page_bytes, width, 0);
    for (uint32_t i = 0; i < d->batch->n_seqs; i++)
        keys = cu_max(keys, d->batch->seqs[i].pos + d->batch->seqs[i].n_rows);
    cu_index a = { .n_heads = op->u.indexer.n_heads,
                   .d = width,
                   .top_k = op->u.indexer.top_k,
                   .most_keys = keys,
                   .scale = op->u.indexer.scale,
                   .q = d->regs[op->in[0]].r,
                   .w = d->regs[op->in[2]].r,
                   .k = { st->k, st->k_page_bytes, d->bind.kv_type, width, d->bind.page_tok, 0 },
                   .row_seq = d->step.row_seq,
                   .seqs = d->step.seqs,
                   .pages = d->step.pages,
                   .score = d->part,
                   .score_stride = keys,
                   .sel = (uint32_t *)(void *)sel->r.p,
                   .n_sel = sel->n_sel,
                   .sel_stride = sel->r.stride };
    size_t most = d->part_floats / keys;
    if (!most)
        return ks_fail(err, KS_E_LIMIT, "%u keys are to be scored, there is room for %zu: lower --context", keys,
                       d->part_floats);
    int rc = 0;
    for (; a.row < n && !rc; a.row += a.n_rows) {
        a.n_rows = n - a.row < most ? n - a.row : (uint32_t)most;
        rc = cu_check(d, (cudaError_t)cu_launch_index(&a, d->compute), "choosing keys", err);
    }
    return rc;
}

cu_route cu_route_of(const cu_dev *d, const ks_op *op)
{
    const struct dev_reg *out = &d->regs[op->out[0]];
    return (cu_route) { .n_rows = d->batch->n_rows,
                        .n_experts = op->u.route.n_experts,
                        .k = op->u.route.k,
                        .score = op->u.route.score,
                        .flags = op->u.route.flags,
                        .n_group = op->u.route.n_group,
                        .topk_group = op->u.route.topk_group,
                        .scale = op->u.route.scale,
                        .norm_eps = op->u.route.norm_eps,
                        .jitter = op->u.route.jitter,
                        .logits = d->regs[op->in[0]].r,
                        .bias = cu_vector(d, op->w[0]),
                        .out = out->r.p,
                        .out_stride = out->r.stride };
}

static int op_route(cu_dev *d, const ks_op *op, ks_err *err)
{
    cu_route a = cu_route_of(d, op);
    return cu_check(d, (cudaError_t)cu_launch_route(&a, d->compute), "routing", err);
}

static int op_mlp(cu_dev *d, const ks_op *op, ks_err *err)
{
    uint32_t n = cu_rows(d, op->in[0]), n_ff = op->u.mlp.n_ff;
    cu_matmul m = cu_matmul_of(d, op->w[0], n);
    (void)err;
    if (cu_is_quantized(m.type)) cu_quantize(d, op->in[0]);
    cu_set_input(&m, &d->regs[op->in[0]]);
    m.y = d->ex.gate_up;
    m.y_stride = m.n_out;
    m.bias = cu_vector(d, op->w[2]);
    cu_launch_matmul(&m, d->compute);
    cu_glu g = { .kind = op->u.mlp.act,
                 .n_rows = n,
                 .n = n_ff,
                 .limit = op->u.mlp.limit,
                 .alpha = op->u.mlp.alpha,
                 .x = { d->ex.gate_up, m.n_out },
                 .y = { d->ex.hidden, n_ff } };
    m = cu_matmul_of(d, op->w[1], n);
    cu_activate(d, &m, g, 0);
    m.y = d->regs[op->out[0]].r.p;
    m.y_stride = d->regs[op->out[0]].r.stride;
    m.bias = cu_vector(d, op->w[3]);
    cu_launch_matmul(&m, d->compute);
    return 0;
}

static int op_add(cu_dev *d, const ks_op *op, ks_err *err)
{
    (void)err;
    cu_launch_add(d->regs[op->in[0]].r, d->regs[op->in[1]].r, d->regs[op->out[0]].r, cu_vector(d, op->w[1]), op->f[0],
                  op->f[1], cu_rows(d, op->in[0]), d->regs[op->out[0]].width, d->compute);
    return 0;
}

static int op_mul(cu_dev *d, const ks_op *op, ks_err *err)
{
    (void)err;
    cu_launch_mul(d->regs[op->in[0]].r, d->regs[op->in[1]].r, d->regs[op->out[0]].r, op->i[0], cu_rows(d, op->in[0]),
                  d->regs[op->in[0]].width, d->regs[op->in[1]].width, d->compute);
    return 0;
}

static int op_select(cu_dev *d, const ks_op *op, ks_err *err)
{
    (void)err;
    cu_launch_select(d->regs[op->in[0]].r, d->regs[op->out[0]].r, d->step.out_rows, d->batch->n_out,
                     d->regs[op->in[0]].width, d->compute);
    return 0;
}

static int to_host(cu_dev *d, const struct dev_reg *r, uint32_t n_rows, float *dst, ks_err *err)
{
    size_t row = (size_t)r->width * sizeof *dst;
    if (!n_rows) return 0;
    int rc = cu_share_drain(d, err); /* a copy into plain memory waits for the device */
    if (rc) return rc;
    atomic_fetch_add_explicit(&d->bytes_out, n_rows * row, memory_order_relaxed);
    return cu_check(
        d,
        cudaMemcpy2DAsync(dst, row, r->r.p, r->r.stride * sizeof *dst, row, n_rows, cudaMemcpyDeviceToHost, d->compute),
        "results on their way to the host", err);
}

int cu_tap(cu_dev *d, const ks_op *op, ks_err *err)
{
    const struct dev_reg *x = &d->regs[op->in[0]];
    if (!d->batch->taps) return 0;
    size_t row = (size_t)op->i[0] * d->step_rows + d->first_row;
    return to_host(d, x, d->batch->n_rows, d->batch->taps + row * x->width, err);
}

static int op_qscale(cu_dev *d, const ks_op *op, ks_err *err)
{
    (void)err;
    cu_launch_qscale(d->regs[op->in[0]].r, d->step.pos, op->f[0], op->f[1], d->batch->n_rows, d->regs[op->in[0]].width,
                     d->compute);
    return 0;
}

static int op_clamp(cu_dev *d, const ks_op *op, ks_err *err)
{
    (void)err;
    cu_launch_clamp(d->regs[op->in[0]].r, op->f[0], cu_rows(d, op->in[0]), d->regs[op->in[0]].width, d->compute);
    return 0;
}

/* What the runs of a round leave is kept where they say, before the next round goes on. */
static int keep_states(cu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, ks_err *err)
{
    const struct dev_state *t = &d->states[op->state];
    int rc = 0;
    for (uint32_t i = begin; i < end && !rc; i++) {
        const ks_seq *s = &d->batch->seqs[i];
        if (!s->keep || s->keep - 1 == s->slot) continue;
        rc = cu_copy_state(d, t->rec, t->floats * sizeof *t->rec, s->keep - 1, s->slot, err);
    }
    return rc;
}

static int op_conv(cu_dev *d, const ks_op *op, ks_err *err)
{
    int rc = 0;
    cu_conv a = { .n_rows = d->batch->n_rows,
                  .in_place = d->regs[op->in[0]].root == d->regs[op->out[0]].root,
                  .n = d->regs[op->in[0]].width,
                  .width = op->u.conv.width,
                  .act = op->u.conv.act,
                  .x = d->regs[op->in[0]].r,
                  .y = d->regs[op->out[0]].r,
                  .weight = cu_vector(d, op->w[0]),
                  .bias = cu_vector(d, op->w[1]),
                  .state = d->states[op->state].rec,
                  .state_stride = d->states[op->state].floats };
    for (uint32_t i = 0, end; i < d->batch->n_seqs && !rc; i = end) {
        end = ks_round_end(d->batch, i);
        a.seqs = d->step.seqs + i;
        a.n_seqs = end - i;
        cu_launch_conv(&a, d->compute);
        rc = keep_states(d, op, i, end, err);
    }
    return rc;
}

static int op_delta(cu_dev *d, const ks_op *op, ks_err *err)
{
    int rc = 0;
    cu_delta a = { .n_k_heads = op->u.delta.n_k_heads,
                   .n_v_heads = op->u.delta.n_v_heads,
                   .d_k = op->u.delta.d_k,
                   .d_v = op->u.delta.d_v,
                   .scale = 1.0f / sqrtf((float)op->u.delta.d_k),
                   .q = d->regs[op->in[0]].r,
                   .k = d->regs[op->in[1]].r,
                   .v = d->regs[op->in[2]].r,
                   .b = d->regs[op->in[3]].r,
                   .a = d->regs[op->in[4]].r,
                   .o = d->regs[op->out[0]].r,
                   .neg_a = cu_vector(d, op->w[0]),
                   .dt = cu_vector(d, op->w[1]),
                   .state = d->states[op->state].rec,
                   .state_stride = d->states[op->state].floats,
                   .head_stride = ks_delta_floats(op->u.delta.d_k, op->u.delta.d_v) };
    for (uint32_t i = 0, end; i < d->batch->n_seqs && !rc; i = end) {
        end = ks_round_end(d->batch, i);
        a.seqs = d->step.seqs + i;
        a.n_seqs = end - i;
        a.most_rows = 0;
        for (uint32_t k = i; k < end; k++) a.most_rows = cu_max(a.most_rows, d->batch->seqs[k].n_rows);
        rc = cu_check(d, (cudaError_t)cu_launch_delta(&a, d->compute), "the delta rule", err);
        if (!rc) rc = keep_states(d, op, i, end, err);
    }
    return rc;
}

/* ---- which ops we can run */

typedef int (*op_fn)(cu_dev *d, const ks_op *op, ks_err *err);

static const op_fn op_table[] = {
    [KS_OP_EMBED] = op_embed,     [KS_OP_NORM] = op_norm, [KS_OP_LINEAR] = op_linear, [KS_OP_ROPE] = op_rope,
    [KS_OP_ATTN] = op_attn,       [KS_OP_MLA] = op_mla,   [KS_OP_CONV] = op_conv,     [KS_OP_DELTA] = op_delta,
    [KS_OP_ROUTE] = op_route,     [KS_OP_MLP] = op_mlp,   [KS_OP_ADD] = op_add,       [KS_OP_MUL] = op_mul,
    [KS_OP_SELECT] = op_select,   [KS_OP_TAP] = cu_tap,   [KS_OP_QSCALE] = op_qscale, [KS_OP_CLAMP] = op_clamp,
    [KS_OP_INDEXER] = op_indexer, [KS_OP_EXPERTS] = NULL, /* cu_experts_run, which needs the op's index */
};

static bool has_matmul(const ks_graph *g, int32_t index)
{
    const ks_weight *w = cu_gweight(g, index);
    if (w->layout != KS_LAYOUT_T16) return false;
    if (w->type == KS_T_F32 || w->type == KS_T_BF16) return true;
    return cu_is_quantized(w->type) && (w->group == 32 || w->group == 64 || w->group == 128);
}

static bool can_attend(const cu_dev *d, uint32_t d_k, uint32_t d_v)
{
    return d_k <= CU_ATTN_MAX_D && d_v <= CU_ATTN_MAX_D && cu_attn_shared_bytes(d_k, d_v) <= d->shared_max;
}

static bool can_run(const cu_dev *d, const ks_graph *g, const ks_op *op)
{
    const ks_weight *w;
    switch (op->kind) {
    case KS_OP_EMBED:
        w = cu_gweight(g, op->w[0]);
        return w->layout == KS_LAYOUT_ROWS && (w->type == KS_T_BF16 || w->type == KS_T_F32);
    case KS_OP_LINEAR: return has_matmul(g, op->w[0]);
    case KS_OP_EXPERTS:
    case KS_OP_MLP: return has_matmul(g, op->w[0]) && has_matmul(g, op->w[1]);
    case KS_OP_ATTN: return can_attend(d, op->u.attn.d_k, op->u.attn.d_v);
    case KS_OP_MLA:
        w = cu_gweight(g, op->w[0]);
        return has_matmul(g, op->w[0]) && has_matmul(g, op->w[1]) &&
               can_attend(d, op->u.mla.d_latent + op->u.mla.d_rope, op->u.mla.d_latent);
    case KS_OP_CONV: return cu_conv_fits(op->u.conv.width);
    case KS_OP_DELTA: return cu_delta_shared_bytes(op->u.delta.d_k) <= d->shared_max;
    case KS_OP_INDEXER: return cu_index_shared_bytes(op->u.indexer.n_heads, op->u.indexer.d) <= d->shared_max;
    case KS_OP_ROUTE: return (size_t)op->u.route.n_experts * 16 <= d->shared_max;
    default: return op->kind < sizeof op_table / sizeof op_table[0] && op_table[op->kind];
    }
}

int cu_lower(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err)
{
    const cu_dev *d = dev;
    (void)err;
    bool kv = kv_type == KS_T_F32 || kv_type == KS_T_BF16 || kv_type == KS_T_F8E4M3;
    for (uint32_t i = 0; i < g->n_ops; i++) ret_ok[i] = kv && can_run(d, g, cu_op(g, i));
    return 0;
}

/* ---- run */

void cu_touch(cu_dev *d, int16_t reg)
{
    if (reg < 0) return;
    for (uint32_t i = 0; i < d->n_acts; i++)
        if (d->regs[d->acts[i]].root == d->regs[reg].root) d->regs[d->acts[i]].act_valid = false;
}

/* Logits of few rows land in pinned memory, where recorded steps can bring them. */
static bool through_host(const cu_dev *d)
{
    return d->n_pieces == 1 && (size_t)d->batch->n_out * d->g->n_vocab * sizeof(float) <= d->out_bytes;
}

static void hand_out_logits(const cu_dev *d, const ks_batch *b, uint32_t op_begin, uint32_t op_end)
{
    bool made = false;
    for (uint32_t i = op_begin; i < op_end && b->n_out; i++)
        made = made || (cu_op(d->g, i)->out[0] >= 0 && cu_op(d->g, i)->out[0] == d->g->logits);
    if (made && through_host(d)) memcpy(b->logits, d->out_host, (size_t)b->n_out * d->g->n_vocab * sizeof(float));
}

static int run_op(cu_dev *d, uint32_t i, ks_err *err)
{
    const ks_op *op = cu_op(d->g, i);
    if (!d->mine[i])
        return ks_fail(err, KS_E_UNSUPPORTED, "op %u (kind %u) is not one this device can run", i, op->kind);
    int rc = op->kind == KS_OP_EXPERTS ? cu_experts_run(d, op, i, err) : op_table[op->kind](d, op, err);
    cu_touch(d, op->out[0]);
    cu_touch(d, op->out[1]);
    if (!rc && op->out[0] >= 0 && op->out[0] == d->g->logits)
        rc = to_host(d, &d->regs[op->out[0]], d->batch->n_out, through_host(d) ? d->out_host : d->batch->logits, err);
    return rc;
}

/* Ops [begin, end) over a piece. What EXPERTS will read of all rows is quantized while it is in the cache. */
static int run_piece(cu_dev *d, uint32_t piece, uint32_t begin, uint32_t end, uint32_t op_end, ks_err *err)
{
    int rc = 0;
    cu_piece_enter(d, piece);
    for (uint32_t i = begin, n, last = d->ex.route ? end - 1 : end; i < last && !rc; i += n) {
        n = cu_fused(d, i, last);
        rc = n ? cu_run_fused(d, i, err) : run_op(d, i, err);
        n = cu_max(n, 1);
    }
    if (rc || end == op_end || d->n_pieces == 1) return rc;
    const ks_op *experts = cu_op(d->g, end);
    if (cu_is_quantized(cu_gweight(d->g, experts->w[0])->type)) cu_quantize(d, experts->in[0]);
    return 0;
}

/* Everything a step puts on the compute stream. */
int cu_launch_ops(cu_dev *d, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err)
{
    int rc = cu_step_send(d, err);
    d->ex.pending = (cu_sum) { 0 };
    for (uint32_t i = 0; i < d->n_acts; i++) d->regs[d->acts[i]].act_valid = false;
    for (uint32_t i = op_begin, end; i < op_end && !rc; i = end) {
        for (end = i; end < op_end && cu_op(d->g, end)->kind != KS_OP_EXPERTS; end++) continue;
        d->ex.route = end < op_end && end > i ? cu_route_before(d, end) : NULL;
        for (uint32_t p = 0; p < d->n_pieces && end > i && !rc; p++) rc = run_piece(d, p, i, end, op_end, err);
        if (end > i) cu_pieces_leave(d, b, end < op_end ? cu_op(d->g, end)->in[0] : -1);
        d->ex.adds = end < op_end && cu_adds_sum(d, end, op_end);
        if (end < op_end && !rc) rc = run_op(d, end++, err);
    }
    return rc;
}

static int prepare(cu_dev *d, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err)
{
    int rc = cu_step_begin(d, b, err);
    for (uint32_t i = op_begin; i < op_end && !rc; i++)
        if (cu_op(d->g, i)->kind == KS_OP_EMBED) rc = gather_embeddings(d, b, cu_op(d->g, i), err);
    return rc ? rc : cu_experts_begin(d, err);
}

int cu_run(void *dev, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err)
{
    cu_dev *d = dev;
    if (d->dead) return ks_fail(err, KS_E_DEVICE, "%s", d->why);
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to GPU %d", d->index);
    if (op_begin < d->bind.op_begin || op_begin > op_end || op_end > d->bind.op_end)
        return ks_fail(err, KS_E_INVAL, "ops %u to %u are not among the bound %u to %u", op_begin, op_end,
                       d->bind.op_begin, d->bind.op_end);
    if (b->n_rows > d->piece_rows && (op_begin != d->bind.op_begin || op_end != d->bind.op_end))
        return ks_fail(err, KS_E_UNSUPPORTED, "a step of more than %u rows runs all ops at once, not %u to %u",
                       d->piece_rows, op_begin, op_end);
    uint64_t t0 = cu_now_ns();
    int rc = cu_check(d, cudaSetDevice(d->index), "choosing the device", err); /* of this thread */
    d->batch = b;
    d->step_rows = b->n_rows;
    cu_begin_early = d->early;
    cu_share_choose(d);
    uint64_t launches = cu_n_launches;
    bool done = false;
    if (!rc) rc = prepare(d, b, op_begin, op_end, err);
    if (!rc) rc = cu_graph_run(d, b, op_begin, op_end, &done, err);
    if (!rc && !done) rc = cu_launch_ops(d, b, op_begin, op_end, err);
    if (!d->dead) { /* also after a failure: what was launched must not meet the next batch */
        ks_err e;
        int rc2 = cu_share_finish(d, &e);
        if (!rc2) rc2 = cu_wait(d, "the step", &e);
        if (!rc2) rc2 = cu_check(d, cudaGetLastError(), "a launch", &e);
        if (!rc2) cu_share_count(d);
        if (!rc && rc2) rc = ks_fail(err, rc2, "%s", e.msg);
    }
    if (!rc) hand_out_logits(d, b, op_begin, op_end);
    if (!rc && op_begin == d->bind.op_begin && op_end == d->bind.op_end) cu_share_measured(d, cu_now_ns() - t0);
    d->batch = NULL;
    atomic_fetch_add_explicit(&d->steps, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->rows, b->n_rows, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->launches, cu_n_launches - launches, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->run_ns, cu_now_ns() - t0, memory_order_relaxed);
    return rc;
}
