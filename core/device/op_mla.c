/* MLA: attention over one latent row a token, shared by all heads.
 *
 * q' = [W_UK^T q_nope | q_rope] meets the cached [latent | k_rope] rows, so the cache is never expanded; what comes out
 * is a latent row a head, which W_UV turns into the head's output. Rows go through in tiles, so that the buffers for
 * 128 heads stay small. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include "base/num.h"

struct mla_job {
    ks_cpu_dev *d;
    const ks_op *op;
    const struct dev_op *plan;
    uint32_t row, n_rows; /* of the tile */
};

/* ---- a T16 matrix as plain rows */

static float scale_of(const ks_weight *w, const uint8_t *scales, uint32_t group, uint32_t i)
{
    if (w->type == KS_T_MXFP4) return ks_e8m0_to_f32(scales[(size_t)group * 16 + i]);
    uint16_t h;
    memcpy(&h, scales + ((size_t)group * 16 + i) * 2, 2);
    return ks_bf16_to_f32(h);
}

/* The 32 / bits values of one dword. */
static void decode_dword(uint32_t type, const uint8_t *dword, float scale, float *out)
{
    uint16_t h[2];
    switch (type) {
    case KS_T_F32: memcpy(out, dword, 4); break;
    case KS_T_BF16:
        memcpy(h, dword, sizeof h);
        out[0] = ks_bf16_to_f32(h[0]);
        out[1] = ks_bf16_to_f32(h[1]);
        break;
    case KS_T_I8:
        for (uint32_t j = 0; j < 4; j++) out[j] = scale * (float)(int8_t)dword[j];
        break;
    case KS_T_I4:
        for (uint32_t j = 0; j < 8; j++) out[j] = scale * ((float)(dword[j % 4] >> (j & 4) & 15) - 8.0f);
        break;
    default: /* MXFP4 */
        for (uint32_t j = 0; j < 8; j++) out[j] = scale * ks_e2m1_to_f32(dword[j % 4] >> (j & 4) & 15);
        break;
    }
}

/* out: (n_out, stride), stride being n_in padded to whole dwords. */
static void decode(const ks_weight *w, uint32_t mat, float *out, uint32_t stride)
{
    ks_matmul_args m = ks__dev_matmul(w, mat);
    uint32_t per = 32 / ks_type_bits(w->type);
    for (uint32_t row = 0; row < w->n_out; row++) {
        const uint8_t *strip = (const uint8_t *)m.w + row / 16 * m.strip_bytes;
        const uint8_t *scales = strip + ks_t16_values_bytes(w->type, w->n_in);
        float scale = 1;
        for (uint32_t k = 0; k < w->n_in; k += per) {
            if (w->group && k % w->group == 0) scale = scale_of(w, scales, k / w->group, row % 16);
            decode_dword(w->type, strip + ((size_t)(k / per) * 16 + row % 16) * 4, scale,
                         out + (size_t)row * stride + k);
        }
    }
}

/* ---- the three steps */

static void absorb_heads(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct mla_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    uint32_t nope = op->u.mla.d_nope, rope = op->u.mla.d_rope, latent = op->u.mla.d_latent, width = latent + rope;
    uint32_t stride = ks_t16_n_in(latent);
    float *w = ks__dev_scratch(d, worker);
    for (uint32_t h = begin; h < end; h++) {
        decode(&d->g->weights[op->w[0]], h, w, stride);
        for (uint32_t r = 0; r < j->n_rows; r++) {
            const float *q = ks__dev_row(d, (uint32_t)op->in[0], j->row + r) + (size_t)h * (nope + rope);
            float *y = d->mla_q + ((size_t)r * op->u.mla.n_heads + h) * width;
            for (uint32_t i = 0; i < latent; i++) y[i] = 0;
            for (uint32_t n = 0; n < nope; n++)
                for (uint32_t i = 0; i < latent; i++) y[i] += q[n] * w[(size_t)n * stride + i];
            memcpy(y + latent, q + nope, rope * sizeof *y);
        }
    }
}

/* A unit is a head of a row; rows and heads that follow each other do so in mla_o and mla_act, too. */
static void quantize_rows(void *arg, uint32_t row, uint32_t n_rows, uint32_t head, uint32_t n_heads, uint32_t worker)
{
    const struct mla_job *j = arg;
    ks_cpu_dev *d = j->d;
    uint32_t latent = j->op->u.mla.d_latent;
    for (uint32_t r = row; r < row + n_rows; r++) {
        uint32_t first = r * j->op->u.mla.n_heads + head;
        ks_quant_args q = { .size = sizeof q,
                            .n_rows = first + n_heads,
                            .n_in = latent,
                            .x = d->mla_o,
                            .x_stride = latent,
                            .out = &d->mla_act };
        d->quant->fn(&q, first, first + n_heads, ks__dev_kernel_scratch(d, worker));
    }
}

static void attend(struct mla_job *j)
{
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    const struct dev_state *st = &d->states[op->state];
    uint32_t latent = op->u.mla.d_latent, width = latent + op->u.mla.d_rope, heads = op->u.mla.n_heads;
    struct dev_attend w = { .d = d,
                            .n_heads = heads,
                            .per = KS_MLA_HEADS,
                            .groups = (heads + KS_MLA_HEADS - 1) / KS_MLA_HEADS,
                            .d_k = width,
                            .d_v = latent,
                            .scale = op->u.mla.scale,
                            .row = j->row,
                            .n_rows = j->n_rows,
                            .q = d->mla_q,
                            .q_stride = (size_t)heads * width,
                            .o = d->mla_o,
                            .o_stride = (size_t)heads * latent,
                            .k = st->k,
                            .v = st->k,
                            .k_page_bytes = st->k_page_bytes,
                            .v_page_bytes = st->k_page_bytes,
                            .k_stride = width,
                            .v_stride = width,
                            .sel = op->u.mla.sel < 0 ? NULL : &d->regs[op->u.mla.sel],
                            .done = j->plan->quantized ? quantize_rows : NULL,
                            .arg = j };
    ks__dev_attend(&w);
}

static void expand_heads(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct mla_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    const struct dev_reg *out = &d->regs[op->out[0]];
    uint32_t heads = op->u.mla.n_heads, latent = op->u.mla.d_latent;
    for (uint32_t h = begin; h < end; h++) {
        ks_act act = d->mla_act; /* rows of this head only: every n_heads-th */
        ks_matmul_args m = ks__dev_matmul(&d->g->weights[op->w[1]], h);
        m.n_rows = j->n_rows;
        m.y = (float *)out->p + j->row * out->stride + (size_t)h * op->u.mla.d_v;
        m.y_stride = out->stride;
        if (j->plan->quantized) {
            act.q += (size_t)h * act.q_stride;
            act.scale += (size_t)h * act.scale_stride;
            act.sum += (size_t)h * act.sum_stride;
            act.q_stride *= heads;
            act.scale_stride *= heads;
            act.sum_stride *= heads;
            m.act = &act;
        } else {
            m.x = d->mla_o + (size_t)h * latent;
            m.x_stride = (size_t)heads * latent;
        }
        j->plan->kernel[0]->fn(&m, 0, ks_t16_strips(m.n_out), ks__dev_kernel_scratch(d, worker));
    }
}

int ks__op_mla(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    uint32_t heads = op->u.mla.n_heads, width = op->u.mla.d_latent + op->u.mla.d_rope;
    (void)err;
    ks__dev_append(d, (uint32_t)op->in[1], st->k, st->k_page_bytes, width, 0);
    ks__dev_append(d, (uint32_t)op->in[2], st->k, st->k_page_bytes, width, op->u.mla.d_latent);
    for (uint32_t row = 0; row < d->batch->n_rows; row += KS_MLA_ROWS) {
        struct mla_job j = { d, op, &d->ops[index], row, KS_MIN(KS_MLA_ROWS, d->batch->n_rows - row) };
        ks__dev_fork(d, heads, 1, absorb_heads, &j);
        attend(&j);
        ks__dev_fork(d, heads, 1, expand_heads, &j);
    }
    return 0;
}
