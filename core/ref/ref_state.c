/* Reference CONV and DELTA: one row after the other; sums in double, what is kept is rounded to float after each row.
 * [worker] */
#include "ref/ref_rows.h"

#include "base/base.h"
#include <math.h>

static void conv_channel(const ks_conv_args *a, uint32_t c)
{
    uint32_t n = a->width - 1;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        float in = a->x[r * a->x_stride + c];
        double sum = a->bias ? (double)a->bias[c] : 0;
        for (uint32_t i = 0; i < n; i++)
            sum += (double)a->weight[(size_t)i * a->n + c] * (double)a->state[(a->pos + r + i) % n * (size_t)a->n + c];
        sum += (double)a->weight[(size_t)n * a->n + c] * (double)in;
        if (n) a->state[(a->pos + r) % n * (size_t)a->n + c] = in;
        a->y[r * a->y_stride + c] = (float)ks__ref_act1(a->act, sum);
    }
}

void ks__ref_conv(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_conv_args *a = args;
    (void)scratch;
    for (uint32_t c = begin * 16; c < KS_MIN(end * 16, a->n); c++) conv_channel(a, c);
}

/* S lies at the start of the head's state; the rest stays unused. */
static void delta_row(const ks_delta_args *a, uint32_t h, uint32_t r, float *s)
{
    uint32_t dk = a->d_k, dv = a->d_v, kh = h / (a->n_v_heads / a->n_k_heads);
    const float *q = a->q + r * a->q_stride + (size_t)kh * dk, *k = a->k + r * a->k_stride + (size_t)kh * dk;
    const float *v = a->v + r * a->v_stride + (size_t)h * dv;
    float *o = a->o + r * a->o_stride + (size_t)h * dv;
    double x = (double)a->a[r * a->a_stride + h] + (double)a->dt[h], b = (double)a->b[r * a->b_stride + h];
    double decay = exp((double)a->neg_a[h] * (fmax(x, 0) + log1p(exp(-fabs(x))))),
           beta = ks__ref_act1(KS_ACT1_SIGMOID, b);
    for (uint32_t j = 0; j < dv; j++) {
        double kept = 0, out = 0;
        for (uint32_t i = 0; i < dk; i++) kept += decay * (double)s[(size_t)i * dv + j] * (double)k[i];
        double d = beta * ((double)v[j] - kept);
        for (uint32_t i = 0; i < dk; i++) {
            double next = decay * (double)s[(size_t)i * dv + j] + (double)k[i] * d;
            s[(size_t)i * dv + j] = (float)next;
            out += next * (double)q[i];
        }
        o[j] = (float)(out * (double)a->scale);
    }
}

void ks__ref_delta(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_delta_args *a = args;
    (void)scratch;
    for (uint32_t h = begin; h < end; h++)
        for (uint32_t r = 0; r < a->n_rows; r++) delta_row(a, h, r, a->state + h * ks_delta_floats(a->d_k, a->d_v));
}
