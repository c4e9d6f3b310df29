/* The CPU device's simple ops: one pass over rows each. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include "base/num.h"
#include <math.h>

struct row_args {
    ks_cpu_dev *d;
    const ks_op *op;
};

/* Below this many numbers a fork costs more than the work. */
#define FORK_FLOATS 16384u

static void over_rows(ks_cpu_dev *d, const ks_op *op, uint32_t n_rows, uint32_t width, ks_pool_fn fn)
{
    struct row_args a = { d, op };
    ks__dev_fork(d, n_rows, KS_MAX(FORK_FLOATS / KS_MAX(width, 1u), 1u), fn, &a);
}

static void embed_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct row_args *a = arg;
    const ks_weight *w = &a->d->g->weights[a->op->w[0]];
    (void)worker;
    for (uint32_t r = begin; r < end; r++) {
        float *x = ks__dev_row(a->d, (uint32_t)a->op->out[0], r);
        size_t at = (size_t)a->d->batch->ids[r] * w->n_in;
        if (w->type == KS_T_BF16)
            for (uint32_t i = 0; i < w->n_in; i++)
                x[i] = ks_bf16_to_f32(((const uint16_t *)w->data)[at + i]) * a->op->f[0];
        else
            for (uint32_t i = 0; i < w->n_in; i++) x[i] = ((const float *)w->data)[at + i] * a->op->f[0];
    }
}

int ks__op_embed(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    const ks_weight *w = &d->g->weights[op->w[0]];
    (void)index;
    for (uint32_t r = 0; r < d->batch->n_rows; r++)
        if (d->batch->ids[r] < 0 || (uint32_t)d->batch->ids[r] >= w->n_out)
            return ks_fail(err, KS_E_INVAL, "row %u holds token %d: the vocabulary has %u", r, d->batch->ids[r],
                           w->n_out);
    over_rows(d, op, d->batch->n_rows, w->n_in, embed_rows);
    return 0;
}

static void norm_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct row_args *a = arg;
    const struct dev_reg *x = &a->d->regs[a->op->in[0]], *y = &a->d->regs[a->op->out[0]];
    ks_norm_args n = { .size = sizeof n,
                       .kind = a->op->u.norm.kind,
                       .n_rows = ks__dev_rows(a->d, (uint32_t)a->op->in[0]),
                       .n = x->width,
                       .width = a->op->u.norm.width,
                       .w_width = a->op->u.norm.w_width,
                       .eps = a->op->u.norm.eps,
                       .w_offset = a->op->u.norm.w_offset,
                       .x = x->p,
                       .x_stride = x->stride,
                       .weight = ks__dev_vector(a->d, a->op->w[0]),
                       .bias = ks__dev_vector(a->d, a->op->w[1]),
                       .y = y->p,
                       .y_stride = y->stride };
    a->d->norm->fn(&n, begin, end, ks__dev_kernel_scratch(a->d, worker));
}

int ks__op_norm(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    over_rows(d, op, ks__dev_rows(d, (uint32_t)op->in[0]), d->regs[op->in[0]].width, norm_rows);
    return 0;
}

static void rope_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct row_args *a = arg;
    const struct dev_reg *x = &a->d->regs[a->op->in[0]];
    ks_rope_args r = { .size = sizeof r,
                       .kind = a->op->u.rope.kind,
                       .n_rows = a->d->batch->n_rows,
                       .n_heads = a->op->u.rope.n_heads,
                       .head_dim = a->op->u.rope.head_dim,
                       .rot_dim = a->op->u.rope.rot_dim,
                       .rot_begin = a->op->u.rope.rot_begin,
                       .mscale = a->op->u.rope.mscale,
                       .inv_freq = ks__dev_vector(a->d, a->op->w[0]),
                       .pos = a->d->batch->pos,
                       .x = x->p,
                       .x_stride = x->stride };
    a->d->rope->fn(&r, begin, end, ks__dev_kernel_scratch(a->d, worker));
}

int ks__op_rope(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    over_rows(d, op, d->batch->n_rows, op->u.rope.n_heads * op->u.rope.rot_dim * 4, rope_rows);
    return 0;
}

static void add_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct row_args *a = arg;
    const ks_op *op = a->op;
    const float *vec = ks__dev_vector(a->d, op->w[1]);
    uint32_t n = a->d->regs[op->out[0]].width;
    (void)worker;
    for (uint32_t r = begin; r < end; r++) {
        const float *x = ks__dev_row(a->d, (uint32_t)op->in[0], r), *y = ks__dev_row(a->d, (uint32_t)op->in[1], r);
        float *z = ks__dev_row(a->d, (uint32_t)op->out[0], r);
        for (uint32_t i = 0; i < n; i++) z[i] = op->f[0] * x[i] + op->f[1] * y[i] * (vec ? vec[i] : 1.0f);
    }
}

int ks__op_add(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    over_rows(d, op, ks__dev_rows(d, (uint32_t)op->in[0]), d->regs[op->in[0]].width, add_rows);
    return 0;
}

static float act1(int32_t kind, float v)
{
    if (kind == (int32_t)KS_ACT1_NONE) return v;
    float s = 1.0f / (1.0f + expf(-v));
    return kind == (int32_t)KS_ACT1_SILU ? v * s : s;
}

static void mul_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct row_args *a = arg;
    const ks_op *op = a->op;
    uint32_t n = a->d->regs[op->in[0]].width, ny = a->d->regs[op->in[1]].width, per = n / ny;
    (void)worker;
    for (uint32_t r = begin; r < end; r++) {
        const float *x = ks__dev_row(a->d, (uint32_t)op->in[0], r), *y = ks__dev_row(a->d, (uint32_t)op->in[1], r);
        float *z = ks__dev_row(a->d, (uint32_t)op->out[0], r);
        for (uint32_t j = 0; j < ny; j++) {
            float f = act1(op->i[0], y[j]);
            for (uint32_t i = j * per; i < (j + 1) * per; i++) z[i] = x[i] * f;
        }
    }
}

int ks__op_mul(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    over_rows(d, op, ks__dev_rows(d, (uint32_t)op->in[0]), d->regs[op->in[0]].width * 4, mul_rows);
    return 0;
}

int ks__op_select(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    for (uint32_t i = 0; i < d->batch->n_out; i++)
        memcpy(ks__dev_row(d, (uint32_t)op->out[0], i), ks__dev_row(d, (uint32_t)op->in[0], d->batch->out_rows[i]),
               d->regs[op->in[0]].width * sizeof(float));
    return 0;
}

int ks__op_tap(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    if (!d->batch->taps) return 0;
    uint32_t n = d->regs[op->in[0]].width;
    float *out = d->batch->taps + (size_t)op->i[0] * d->batch->n_rows * n;
    for (uint32_t r = 0; r < d->batch->n_rows; r++)
        memcpy(out + (size_t)r * n, ks__dev_row(d, (uint32_t)op->in[0], r), n * sizeof *out);
    return 0;
}

int ks__op_qscale(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    for (uint32_t r = 0; r < d->batch->n_rows; r++) {
        float *x = ks__dev_row(d, (uint32_t)op->in[0], r);
        float f = 1.0f + op->f[0] * logf(floorf((float)(d->batch->pos[r] + 1) / op->f[1]) + 1.0f);
        for (uint32_t i = 0; i < d->regs[op->in[0]].width; i++) x[i] *= f;
    }
    return 0;
}

int ks__op_clamp(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    for (uint32_t r = 0; r < ks__dev_rows(d, (uint32_t)op->in[0]); r++) {
        float *x = ks__dev_row(d, (uint32_t)op->in[0], r);
        for (uint32_t i = 0; i < d->regs[op->in[0]].width; i++) x[i] = fminf(fmaxf(x[i], -op->f[0]), op->f[0]);
    }
    return 0;
}
