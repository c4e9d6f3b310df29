/* The CPU device's simple ops: one pass over rows each. [worker] */
#include "device/cpu_impl.h"

#include "base/base.h"
#include "base/num.h"
#include <emmintrin.h>
#include <math.h>

int ks__check_ids(const ks_cpu_dev *d, const ks_op *op, ks_err *err)
{
    const ks_weight *w = &d->g->weights[op->w[0]];
    for (uint32_t r = 0; r < d->batch->n_rows; r++)
        if (d->batch->ids[r] < 0 || (uint32_t)d->batch->ids[r] >= w->n_out)
            return ks_fail(err, KS_E_INVAL, "row %u holds token %d: the vocabulary has %u", r, d->batch->ids[r],
                           w->n_out);
    return 0;
}

void ks__rows_embed(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    const ks_weight *w = &d->g->weights[op->w[0]];
    (void)worker;
    for (uint32_t r = begin; r < end; r++) {
        float *x = ks__dev_row(d, (uint32_t)op->out[0], r);
        size_t at = (size_t)d->batch->ids[r] * w->n_in;
        if (w->type == KS_T_BF16)
            for (uint32_t i = 0; i < w->n_in; i++)
                x[i] = ks_bf16_to_f32(((const uint16_t *)w->data)[at + i]) * op->f[0];
        else
            for (uint32_t i = 0; i < w->n_in; i++) x[i] = ((const float *)w->data)[at + i] * op->f[0];
    }
}

void ks__rows_norm(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct dev_reg *x = &d->regs[op->in[0]], *y = &d->regs[op->out[0]];
    ks_norm_args n = { .size = sizeof n,
                       .kind = op->u.norm.kind,
                       .n_rows = ks__dev_rows(d, (uint32_t)op->in[0]),
                       .n = x->width,
                       .width = op->u.norm.width,
                       .w_width = op->u.norm.w_width,
                       .eps = op->u.norm.eps,
                       .w_offset = op->u.norm.w_offset,
                       .x = x->p,
                       .x_stride = x->stride,
                       .weight = ks__dev_vector(d, op->w[0]),
                       .bias = ks__dev_vector(d, op->w[1]),
                       .y = y->p,
                       .y_stride = y->stride };
    d->norm->fn(&n, begin, end, ks__dev_kernel_scratch(d, worker));
}

void ks__rows_rope(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct dev_reg *x = &d->regs[op->in[0]];
    ks_rope_args r = { .size = sizeof r,
                       .kind = op->u.rope.kind,
                       .n_rows = d->batch->n_rows,
                       .n_heads = op->u.rope.n_heads,
                       .head_dim = op->u.rope.head_dim,
                       .rot_dim = op->u.rope.rot_dim,
                       .rot_begin = op->u.rope.rot_begin,
                       .mscale = op->u.rope.mscale,
                       .inv_freq = ks__dev_vector(d, op->w[0]),
                       .pos = d->batch->pos,
                       .x = x->p,
                       .x_stride = x->stride };
    d->rope->fn(&r, begin, end, ks__dev_kernel_scratch(d, worker));
}

/* z = a x + b y; z may be x or y. */
static void weighted_sum(float *z, float a, const float *x, float b, const float *y, uint32_t n)
{
    const __m128 va = _mm_set1_ps(a), vb = _mm_set1_ps(b);
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4)
        _mm_storeu_ps(z + i, _mm_add_ps(_mm_mul_ps(va, _mm_loadu_ps(x + i)), _mm_mul_ps(vb, _mm_loadu_ps(y + i))));
    for (; i < n; i++) z[i] = a * x[i] + b * y[i];
}

void ks__rows_add(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    const float *vec = ks__dev_vector(d, op->w[1]);
    uint32_t n = d->regs[op->out[0]].width;
    (void)worker;
    for (uint32_t r = begin; r < end; r++) {
        const float *x = ks__dev_row(d, (uint32_t)op->in[0], r), *y = ks__dev_row(d, (uint32_t)op->in[1], r);
        float *z = ks__dev_row(d, (uint32_t)op->out[0], r);
        if (!vec)
            weighted_sum(z, op->f[0], x, op->f[1], y, n);
        else
            for (uint32_t i = 0; i < n; i++) z[i] = op->f[0] * x[i] + op->f[1] * y[i] * vec[i];
    }
}

void ks__rows_mul(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct dev_reg *x = &d->regs[op->in[0]], *y = &d->regs[op->in[1]], *z = &d->regs[op->out[0]];
    ks_mul_args a = { .size = sizeof a,
                      .act = (uint32_t)op->i[0],
                      .n_rows = ks__dev_rows(d, (uint32_t)op->in[0]),
                      .n = x->width,
                      .n_y = y->width,
                      .x = x->p,
                      .y = y->p,
                      .x_stride = x->stride,
                      .y_stride = y->stride,
                      .z = z->p,
                      .z_stride = z->stride };
    d->ops[op - d->g->ops].kernel[0]->fn(&a, begin, end, ks__dev_kernel_scratch(d, worker));
}

void ks__rows_select(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)worker;
    for (uint32_t i = begin; i < end; i++)
        memcpy(ks__dev_row(d, (uint32_t)op->out[0], i), ks__dev_row(d, (uint32_t)op->in[0], d->batch->out_rows[i]),
               d->regs[op->in[0]].width * sizeof(float));
}

void ks__rows_tap(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)worker;
    if (!d->batch->taps) return;
    uint32_t n = d->regs[op->in[0]].width;
    float *out = d->batch->taps + (size_t)op->i[0] * d->batch->n_rows * n;
    for (uint32_t r = begin; r < end; r++)
        memcpy(out + (size_t)r * n, ks__dev_row(d, (uint32_t)op->in[0], r), n * sizeof *out);
}

void ks__rows_qscale(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)worker;
    for (uint32_t r = begin; r < end; r++) {
        float *x = ks__dev_row(d, (uint32_t)op->in[0], r);
        float f = 1.0f + op->f[0] * logf(floorf((float)(d->batch->pos[r] + 1) / op->f[1]) + 1.0f);
        for (uint32_t i = 0; i < d->regs[op->in[0]].width; i++) x[i] *= f;
    }
}

void ks__rows_clamp(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)worker;
    for (uint32_t r = begin; r < end; r++) {
        float *x = ks__dev_row(d, (uint32_t)op->in[0], r);
        for (uint32_t i = 0; i < d->regs[op->in[0]].width; i++) x[i] = fminf(fmaxf(x[i], -op->f[0]), op->f[0]);
    }
}
