/* Reference NORM, ROPE, GLU, MUL and SCORE: in double, rounded once. [worker] */
#include "ref/ref_rows.h"

#include <math.h>

static double sum_of(const float *x, uint32_t n)
{
    double s = 0;
    for (uint32_t i = 0; i < n; i++) s += (double)x[i];
    return s;
}

static double squares_of(const float *x, uint32_t n, double mean)
{
    double s = 0;
    for (uint32_t i = 0; i < n; i++) s += ((double)x[i] - mean) * ((double)x[i] - mean);
    return s;
}

void ks__ref_norm(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_norm_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++) {
        for (uint32_t c0 = 0; c0 < a->n; c0 += a->width) {
            const float *x = a->x + r * a->x_stride + c0;
            float *y = a->y + r * a->y_stride + c0;
            double mean = a->kind == KS_NORM_LAYER ? sum_of(x, a->width) / a->width : 0;
            double ss = squares_of(x, a->width, mean);
            double inv = 1.0 / sqrt((a->kind == KS_NORM_L2 ? ss : ss / a->width) + (double)a->eps);
            for (uint32_t i = 0; i < a->width; i++) {
                uint32_t c = (c0 + i) % a->w_width;
                double w = (a->weight ? (double)a->weight[c] : 1.0) + (double)a->w_offset;
                y[i] = (float)(((double)x[i] - mean) * inv * w + (a->bias ? (double)a->bias[c] : 0.0));
            }
        }
    }
}

void ks__ref_rope(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_rope_args *a = args;
    uint32_t half = a->rot_dim / 2;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++) {
        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)a->pos[r] * a->inv_freq[i]; /* in float, as the models were trained */
            double c = cos((double)angle) * (double)a->mscale, s = sin((double)angle) * (double)a->mscale;
            for (uint32_t h = 0; h < a->n_heads; h++) {
                float *x = a->x + r * a->x_stride + (size_t)h * a->head_dim + a->rot_begin;
                float *p = a->kind == KS_ROPE_HALF ? x + i : x + 2 * i;
                float *q = a->kind == KS_ROPE_HALF ? x + i + half : x + 2 * i + 1;
                double u = (double)*p, v = (double)*q;
                *p = (float)(u * c - v * s);
                *q = (float)(v * c + u * s);
            }
        }
    }
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

double ks__ref_act1(uint32_t act, double x)
{
    switch (act) {
    case KS_ACT1_NONE: return x;
    case KS_ACT1_SIGMOID: return sigmoid(x);
    case KS_ACT1_SILU: return x * sigmoid(x);
    default: return NAN; /* the host checks it when it builds the op list */
    }
}

static double clamp(double x, double lo, double hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

static double glu(const ks_glu_args *a, double g, double u)
{
    double limit = (double)a->limit;
    switch (a->kind) {
    case KS_ACT_SILU: return g * sigmoid(g) * u;
    case KS_ACT_GELU_TANH: return 0.5 * g * (1.0 + tanh(0.79788456080286535588 * (g + 0.044715 * g * g * g))) * u;
    case KS_ACT_GELU: return 0.5 * g * erfc(-g * 0.70710678118654752440) * u;
    case KS_ACT_RELU2: return g > 0 ? g * g * u : 0.0;
    case KS_ACT_SWIGLU_CLAMP:
        g = clamp(g, -INFINITY, limit);
        return (clamp(u, -limit, limit) + 1.0) * g * sigmoid((double)a->alpha * g);
    case KS_ACT_SILU_CLAMP: g = clamp(g, -INFINITY, limit); return g * sigmoid(g) * clamp(u, -limit, limit);
    default: return NAN; /* the host checks the kind when it builds the op list */
    }
}

void ks__ref_glu(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_glu_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->x_stride;
        for (uint32_t i = 0; i < a->n; i++) {
            const float *g = x + (size_t)(i / 16) * 32 + i % 16;
            a->y[r * a->y_stride + i] = (float)glu(a, (double)g[0], (double)g[16]);
        }
    }
}

void ks__ref_mul(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_mul_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++)
        for (uint32_t i = 0; i < a->n; i++) {
            double y = (double)a->y[r * a->y_stride + i / (a->n / a->n_y)];
            a->z[r * a->z_stride + i] = (float)((double)a->x[r * a->x_stride + i] * ks__ref_act1(a->act, y));
        }
}

static void softmax(const float *x, float *y, uint32_t n)
{
    double max = (double)x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++) max = fmax(max, (double)x[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
    for (uint32_t i = 0; i < n; i++) y[i] = (float)(exp((double)x[i] - max) / sum);
}

void ks__ref_score(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_score_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->x_stride;
        float *y = a->y + r * a->y_stride;
        if (a->kind == KS_SCORE_SOFTMAX)
            softmax(x, y, a->n);
        else if (a->kind == KS_SCORE_SIGMOID)
            for (uint32_t i = 0; i < a->n; i++) y[i] = (float)sigmoid((double)x[i]);
        else
            for (uint32_t i = 0; i < a->n; i++)
                y[i] = (float)sqrt(fmax((double)x[i], 0) + log1p(exp(-fabs((double)x[i]))));
    }
}
