/* LINEAR, and the quantization of activations that its users share. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include <math.h>

void ks__dev_quantize_rows(ks_cpu_dev *d, uint32_t reg, uint32_t begin, uint32_t end, uint32_t worker)
{
    struct dev_reg *r = &d->regs[reg];
    ks_quant_args a = { .size = sizeof a,
                        .n_rows = ks__dev_rows(d, reg),
                        .n_in = r->width,
                        .x = r->p,
                        .x_stride = r->stride,
                        .out = &r->act };
    d->quant->fn(&a, begin, end, ks__dev_kernel_scratch(d, worker));
}

struct quant_job {
    ks_cpu_dev *d;
    uint32_t reg;
};

static void quant_task(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct quant_job *j = arg;
    ks__dev_quantize_rows(j->d, j->reg, begin, end, worker);
}

void ks__dev_quantize(ks_cpu_dev *d, uint32_t reg)
{
    struct dev_reg *r = &d->regs[reg];
    struct quant_job j = { d, reg };
    if (r->act_valid) return;
    ks__dev_fork(d, ks__dev_rows(d, reg), ks__dev_row_grain(2 * r->width), quant_task, &j);
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

/* y = W x for all rows. */
static ks_matmul_args product(ks_cpu_dev *d, const ks_op *op, bool quantized)
{
    const struct dev_reg *x = &d->regs[op->in[0]], *y = &d->regs[op->out[0]];
    ks_matmul_args a = ks__dev_matmul(&d->g->weights[op->w[0]], 0);
    a.n_rows = ks__dev_rows(d, (uint32_t)op->in[0]);
    a.y = y->p;
    a.y_stride = y->stride;
    a.bias = ks__dev_vector(d, op->w[1]);
    if (quantized) {
        a.act = &x->act;
    } else {
        a.x = x->p;
        a.x_stride = x->stride;
    }
    return a;
}

static void run_strips(ks_cpu_dev *d, const ks_op *op, const ks_matmul_args *a, uint32_t begin, uint32_t end,
                       uint32_t worker)
{
    float scale = op->f[0], cap = op->f[1];
    d->ops[op - d->g->ops].kernel[0]->fn(a, begin, end, ks__dev_kernel_scratch(d, worker));
    if (scale == 1.0f && cap == 0) return;
    uint32_t last = KS_MIN(end * 16, a->n_out);
    for (uint32_t r = 0; r < a->n_rows; r++) {
        float *y = a->y + r * a->y_stride;
        for (uint32_t i = begin * 16; i < last; i++) {
            y[i] *= scale;
            if (cap != 0) y[i] = cap * tanhf(y[i] / cap);
        }
    }
}

void ks__rows_linear(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    ks_matmul_args a = product(d, op, false);
    a.n_rows = end - begin;
    a.x += begin * a.x_stride;
    a.y += begin * a.y_stride;
    run_strips(d, op, &a, 0, ks_t16_strips(a.n_out), worker);
}

struct linears_job {
    ks_cpu_dev *d;
    const ks_op *ops;
    uint32_t n, first[KS_DEV_LINEARS_MAX + 1]; /* strips of op i: [first[i], first[i + 1]) of all */
    ks_matmul_args a[KS_DEV_LINEARS_MAX];
};

static void linear_strips(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct linears_job *j = arg;
    for (uint32_t i = 0; i < j->n; i++) {
        uint32_t b = KS_MAX(begin, j->first[i]), e = KS_MIN(end, j->first[i + 1]);
        if (b < e) run_strips(j->d, &j->ops[i], &j->a[i], b - j->first[i], e - j->first[i], worker);
    }
}

void ks__run_linears(ks_cpu_dev *d, uint32_t begin, uint32_t end)
{
    struct linears_job j = { .d = d, .ops = &d->g->ops[begin], .n = end - begin };
    uint32_t in = (uint32_t)j.ops[0].in[0], n_rows = ks__dev_rows(d, in);
    size_t bytes = 0;
    if (n_rows == 0) return;
    for (uint32_t i = 0; i < j.n; i++) {
        bool quantized = d->ops[begin + i].quantized;
        if (quantized) ks__dev_quantize(d, in);
        j.a[i] = product(d, &j.ops[i], quantized);
        j.first[i + 1] = j.first[i] + ks_t16_strips(j.a[i].n_out);
        bytes = KS_MAX(bytes, j.a[i].strip_bytes);
    }
    ks__dev_fork(d, j.first[j.n], ks__dev_grain(bytes, n_rows), linear_strips, &j);
}
