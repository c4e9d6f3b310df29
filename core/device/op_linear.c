/* LINEAR, and the quantization of activations that its users share. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include <math.h>

struct quant_job {
    ks_cpu_dev *d;
    ks_quant_args a;
};

static void quant_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct quant_job *j = arg;
    j->d->quant->fn(&j->a, begin, end, ks__dev_kernel_scratch(j->d, worker));
}

void ks__dev_quantize(ks_cpu_dev *d, uint32_t reg)
{
    struct dev_reg *r = &d->regs[reg];
    if (r->act_valid) return;
    struct quant_job j = { d,
                           { .size = sizeof j.a,
                             .n_rows = ks__dev_rows(d, reg),
                             .n_in = r->width,
                             .x = r->p,
                             .x_stride = r->stride,
                             .out = &r->act } };
    ks__dev_fork(d, j.a.n_rows, KS_MAX(16384u / r->width, 1u), quant_rows, &j);
    r->act_valid = true;
}

ks_matmul_args ks__dev_matmul(const ks_weight *w, uint32_t mat)
{
    return (ks_matmul_args) { .size = sizeof(ks_matmul_args),
                              .n_in = w->n_in,
                              .n_out = w->n_out,
                              .group = w->group,
                              .w = (const uint8_t *)w->data + mat * w->stride,
                              .strip_bytes = ks_t16_strip_bytes(w->type, w->n_in, w->group) };
}

struct linear_job {
    ks_cpu_dev *d;
    const ks_op *op;
    const ks_kernel *kernel;
    ks_matmul_args a;
};

static void linear_strips(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct linear_job *j = arg;
    float scale = j->op->f[0], cap = j->op->f[1];
    j->kernel->fn(&j->a, begin, end, ks__dev_kernel_scratch(j->d, worker));
    if (scale == 1.0f && cap == 0) return;
    uint32_t last = KS_MIN(end * 16, j->a.n_out);
    for (uint32_t r = 0; r < j->a.n_rows; r++) {
        float *y = j->a.y + r * j->a.y_stride;
        for (uint32_t i = begin * 16; i < last; i++) {
            y[i] *= scale;
            if (cap != 0) y[i] = cap * tanhf(y[i] / cap);
        }
    }
}

int ks__op_linear(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    uint32_t in = (uint32_t)op->in[0];
    const struct dev_reg *x = &d->regs[in], *y = &d->regs[op->out[0]];
    struct linear_job j = { d, op, d->ops[index].kernel[0], ks__dev_matmul(&d->g->weights[op->w[0]], 0) };
    (void)err;
    j.a.n_rows = ks__dev_rows(d, in);
    if (j.a.n_rows == 0) return 0;
    j.a.y = y->p;
    j.a.y_stride = y->stride;
    j.a.bias = ks__dev_vector(d, op->w[1]);
    if (d->ops[index].quantized) {
        ks__dev_quantize(d, in);
        j.a.act = &x->act;
    } else {
        j.a.x = x->p;
        j.a.x_stride = x->stride;
    }
    ks__dev_fork(d, ks_t16_strips(j.a.n_out), ks__dev_grain(j.a.strip_bytes, j.a.n_rows), linear_strips, &j);
    return 0;
}
