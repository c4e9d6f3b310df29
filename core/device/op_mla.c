/* MLA: attention over one latent row a token, shared by all heads.
 *
 * q' = [W_UK^T q_nope | q_rope] meets the cached [latent | k_rope] rows, so the cache is never expanded; what comes out
 * is a latent row a head, which W_UV turns into the head's output. Rows go through in tiles, so that the buffers for
 * 128 heads stay small. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"

struct mla_job {
    ks_cpu_dev *d;
    const ks_op *op;
    const struct dev_op *plan;
    uint32_t row, n_rows; /* of the tile */
};

/* Columns of the latent row that a task makes of q: a unit of MATMUL_T. */
#define ABSORB_COLUMNS 128u

static uint32_t absorb_units(const ks_op *op)
{
    return (op->u.mla.d_latent + ABSORB_COLUMNS - 1) / ABSORB_COLUMNS;
}

/* Units are (head, block of columns); the first block takes the rotated part along. */
static void absorb(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct mla_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    const struct dev_reg *in = &d->regs[op->in[0]];
    uint32_t nope = op->u.mla.d_nope, rope = op->u.mla.d_rope, latent = op->u.mla.d_latent, width = latent + rope;
    for (uint32_t u = begin; u < end; u++) {
        uint32_t h = u / absorb_units(op), block = u % absorb_units(op);
        const float *q = (const float *)in->p + j->row * in->stride + (size_t)h * (nope + rope);
        float *y = d->mla_q + (size_t)h * width;
        ks_matmul_args m = ks__dev_matmul(&d->g->weights[op->w[0]], h);
        m.n_rows = j->n_rows;
        m.x = q;
        m.x_stride = in->stride;
        m.y = y;
        m.y_stride = (size_t)op->u.mla.n_heads * width;
        j->plan->kernel[1]->fn(&m, block, block + 1, ks__dev_kernel_scratch(d, worker));
        for (uint32_t r = 0; block == 0 && r < j->n_rows; r++)
            memcpy(y + r * m.y_stride + latent, q + r * in->stride + nope, rope * sizeof *y);
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
        ks__dev_fork(d, heads * absorb_units(op), 1, absorb, &j);
        attend(&j);
        ks__dev_fork(d, heads, 1, expand_heads, &j);
    }
    return 0;
}
