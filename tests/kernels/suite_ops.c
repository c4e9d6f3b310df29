/* NORM, ROPE and GLU: inputs and evaluation, in double or as a scalar float program. Not thread-safe. */
#include "suite.h"

#include <math.h>

#define R(v) suite_round(v, single)

/* ------------------------------------------------------------------------------------------------- norm */

static uint32_t norm_unit(const void *args, uint32_t b, size_t i)
{
    const ks_norm_args *a = args;
    (void)b;
    return i % a->y_stride < a->n ? (uint32_t)(i / a->y_stride) : UINT32_MAX;
}

static void norm_slice(const ks_norm_args *a, const float *x, uint32_t c0, bool single, double *ret_y, double *ret_mag)
{
    double mean = 0, ss = 0, n = a->width;
    for (uint32_t i = 0; i < a->width && a->kind == KS_NORM_LAYER; i++) mean = R(mean + (double)x[i]);
    mean = R(mean / n);
    for (uint32_t i = 0; i < a->width; i++) {
        double d = R((double)x[i] - mean);
        ss = R(ss + R(d * d));
    }
    if (a->kind != KS_NORM_L2) ss = R(ss / n);
    double inv = R(1 / R(sqrt(R(ss + (double)a->eps))));
    for (uint32_t i = 0; i < a->width; i++) {
        uint32_t c = (c0 + i) % a->w_width;
        double w = R((a->weight ? (double)a->weight[c] : 1.0) + (double)a->w_offset),
               b = a->bias ? (double)a->bias[c] : 0;
        ret_y[i] = R(R(R(R((double)x[i] - mean) * inv) * w) + b);
        ret_mag[i] = (fabs((double)x[i]) + fabs(mean)) * inv * fabs(w) + fabs(b);
    }
}

static void eval_norm(const void *args, bool single, double *ret_y, double *ret_mag)
{
    const ks_norm_args *a = args;
    for (uint32_t r = 0; r < a->n_rows; r++)
        for (uint32_t c = 0; c < a->n; c += a->width)
            norm_slice(a, a->x + r * a->x_stride + c, c, single, ret_y + r * a->y_stride + c,
                       ret_mag + r * a->y_stride + c);
}

static int norm_case(suite *s, uint32_t kind, uint32_t width, uint32_t slices, uint32_t w_width, float scale)
{
    uint32_t n_rows = 1 + suite_below(s, 7), weights = suite_below(s, 4);
    bool in_place = suite_below(s, 2);
    ks_norm_args a = { .size = sizeof a, .kind = kind, .n_rows = n_rows, .n = width * slices, .width = width };
    a.w_width = w_width;
    a.eps = suite_below(s, 2) ? 1e-6f : 1e-5f;
    a.w_offset = suite_below(s, 2) ? 1.0f : 0.0f;
    a.x_stride = a.n + suite_below(s, 9);
    a.y_stride = in_place ? a.x_stride : a.n + suite_below(s, 9);
    size_t n_x = (n_rows - 1) * a.x_stride + a.n, n_y = (n_rows - 1) * a.y_stride + a.n;
    float *w = weights & 1 ? suite_input(s, "weight", (size_t)w_width * 4) : NULL;
    float *b = weights & 2 ? suite_input(s, "bias", (size_t)w_width * 4) : NULL;
    float *x = in_place ? suite_output(s, "x", n_x * 4) : suite_input(s, "x", n_x * 4);
    suite_normals(s, x, n_x, scale);
    suite_normals(s, w, w_width, 1);
    suite_normals(s, b, w_width, 1);
    for (uint32_t i = 0; x && i < width && kind != KS_NORM_LAYER; i++)
        x[i] *= (float)(i % 5 == 0) * 40.0f; /* outliers */
    a.x = x;
    a.weight = w;
    a.bias = b;
    a.y = in_place ? x : suite_output(s, "y", n_y * 4);
    (void)snprintf(s->what, sizeof s->what, "kind %u, %u slices of %u, w_width %u, %u rows%s, scale %g", kind, slices,
                   width, w_width, n_rows, in_place ? " in place" : "", (double)scale);
    suite_case c = { .args = &a, .n_units = n_rows, .elem_bytes = 4, .unit_of = norm_unit, .eval = eval_norm };
    c.eps = 0x1p-22;
    int rc = suite_check(s, &c);
    suite_free(s);
    return rc;
}

int suite_norm(suite *s)
{
    static const uint32_t widths[] = { 1, 3, 8, 16, 31, 64, 100, 128, 576, 2048 };
    static const float scales[] = { 1.0f, 1e-4f, 1e4f };
    int rc = 0;
    for (uint32_t kind = KS_NORM_RMS; kind <= KS_NORM_L2; kind++) {
        for (uint32_t i = 0; !rc && i < 20; i++) {
            uint32_t width = widths[i % 10], slices = i < 10 ? 1 : 1 + suite_below(s, 5);
            uint32_t w_width = i % 3 == 0 ? width * slices : width;
            rc = norm_case(s, kind, width, slices, w_width, scales[suite_below(s, 3)]);
        }
    }
    return rc;
}

/* ------------------------------------------------------------------------------------------------- rope */

static uint32_t rope_unit(const void *args, uint32_t b, size_t i)
{
    const ks_rope_args *a = args;
    uint32_t column = (uint32_t)(i % a->x_stride), in_head = column % a->head_dim;
    (void)b;
    bool turned = in_head >= a->rot_begin && in_head < a->rot_begin + a->rot_dim;
    return column < a->n_heads * a->head_dim && turned ? (uint32_t)(i / a->x_stride) : UINT32_MAX;
}

static void eval_rope(const void *args, bool single, double *ret_y, double *ret_mag)
{
    const ks_rope_args *a = args;
    uint32_t half = a->rot_dim / 2;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        for (uint32_t i = 0; i < half; i++) {
            double angle = (double)((float)a->pos[r] * a->inv_freq[i]), m = (double)a->mscale;
            double cosine = R(R(cos(angle)) * m), sine = R(R(sin(angle)) * m);
            for (uint32_t h = 0; h < a->n_heads; h++) {
                size_t at = r * a->x_stride + (size_t)h * a->head_dim + a->rot_begin;
                size_t p = at + (a->kind == KS_ROPE_HALF ? i : 2 * i),
                       q = at + (a->kind == KS_ROPE_HALF ? i + half : 2 * i + 1);
                double u = (double)a->x[p], v = (double)a->x[q];
                ret_y[p] = R(R(u * cosine) - R(v * sine));
                ret_y[q] = R(R(v * cosine) + R(u * sine));
                ret_mag[p] = ret_mag[q] = (fabs(u) + fabs(v)) * m;
            }
        }
    }
}

static int rope_case(suite *s, uint32_t kind, uint32_t head_dim, uint32_t rot_dim, uint32_t rot_begin, uint32_t n_heads)
{
    static const uint32_t far[] = { 0, 1, 2, 4095, 131071, 1048575, 16777216 };
    uint32_t n_rows = 1 + suite_below(s, 9);
    ks_rope_args a = { .size = sizeof a, .kind = kind, .n_rows = n_rows, .n_heads = n_heads };
    a.head_dim = head_dim;
    a.rot_dim = rot_dim;
    a.rot_begin = rot_begin;
    a.mscale = suite_below(s, 2) ? 1.0f : 1.3689f;
    a.x_stride = (size_t)n_heads * head_dim + suite_below(s, 5);
    size_t n_x = (n_rows - 1) * a.x_stride + (size_t)n_heads * head_dim;
    float *inv_freq = suite_input(s, "inv_freq", (size_t)rot_dim / 2 * 4);
    uint32_t *pos = suite_input(s, "pos", (size_t)n_rows * 4);
    a.x = suite_output(s, "x", n_x * 4);
    suite_normals(s, a.x, n_x, 1);
    for (uint32_t i = 0; inv_freq && i < rot_dim / 2; i++)
        inv_freq[i] = (float)pow(10000.0, -2.0 * (double)i / (double)rot_dim);
    for (uint32_t i = 0; pos && i < n_rows; i++)
        pos[i] = suite_below(s, 2) ? far[suite_below(s, 7)] : suite_below(s, 40000);
    a.inv_freq = inv_freq;
    a.pos = pos;
    (void)snprintf(s->what, sizeof s->what, "kind %u, %u heads of %u, rotated %u from %u, %u rows", kind, n_heads,
                   head_dim, rot_dim, rot_begin, n_rows);
    suite_case c = { .args = &a, .n_units = n_rows, .elem_bytes = 4, .unit_of = rope_unit, .eval = eval_rope };
    c.eps = 0x1p-23;
    int rc = suite_check(s, &c);
    suite_free(s);
    return rc;
}

int suite_rope(suite *s)
{
    /* head_dim, rot_dim, rot_begin */
    static const uint32_t shapes[][3] = { { 64, 64, 0 },  { 128, 128, 0 }, { 128, 64, 0 }, { 192, 64, 128 },
                                          { 256, 64, 0 }, { 32, 32, 0 },   { 80, 80, 0 },  { 10, 6, 3 },
                                          { 2, 2, 0 },    { 12, 12, 0 },   { 96, 48, 16 }, { 1200, 1200, 0 } };
    int rc = 0;
    for (uint32_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (uint32_t kind = KS_ROPE_HALF; !rc && kind <= KS_ROPE_INTER; kind++)
            rc = rope_case(s, kind, shapes[i][0], shapes[i][1], shapes[i][2], 1 + suite_below(s, 6));
    return rc;
}

/* -------------------------------------------------------------------------------------------------- glu */

static uint32_t glu_unit(const void *args, uint32_t b, size_t i)
{
    const ks_glu_args *a = args;
    (void)b;
    return i % a->y_stride < a->n ? (uint32_t)(i / a->y_stride) : UINT32_MAX;
}

/* g * sigmoid(z) */
static double gate(double g, double z, bool single)
{
    return R(g / R(1 + R(exp(-z))));
}

static double glu(const ks_glu_args *a, double g, double u, bool single, double *ret_mag)
{
    double limit = (double)a->limit, y, z;
    switch (a->kind) {
    case KS_ACT_SWIGLU_CLAMP:
    case KS_ACT_SILU_CLAMP:
        g = fmin(g, limit);
        u = fmax(-limit, fmin(u, limit));
        z = a->kind == KS_ACT_SILU_CLAMP ? g : R((double)a->alpha * g);
        if (a->kind == KS_ACT_SWIGLU_CLAMP) u = R(u + 1);
        y = R(gate(g, z, single) * u);
        break;
    case KS_ACT_SILU: y = R(gate(g, g, single) * u); break;
    case KS_ACT_GELU_TANH:
        z = R(R(0.044715 * R(R(g * g) * g)) + g);
        y = R(R(R(0.5 * g) * R(1 + R(tanh(R(0.79788456080286535588 * z))))) * u);
        *ret_mag = fabs(g * u); /* 1 + tanh cancels: the error is one of |g u| */
        return y;
    case KS_ACT_GELU:
        y = R(R(R(0.5 * g) * R(1 + R(erf(R(g * 0.70710678118654752440))))) * u);
        *ret_mag = fabs(g * u);
        return y;
    default: /* RELU2 */ y = g > 0 ? R(R(g * g) * u) : 0; break;
    }
    /* e^-g grows out of float below g = -88: then 0 instead of something under 1e-36. The relative error of e^-z is the
     * absolute error of z. */
    *ret_mag = fabs(y) * (1 + fabs(g)) + 1e-28 * fabs(u);
    return y;
}

static void eval_glu(const void *args, bool single, double *ret_y, double *ret_mag)
{
    const ks_glu_args *a = args;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        for (uint32_t i = 0; i < a->n; i++) {
            const float *x = a->x + r * a->x_stride + (size_t)(i / 16) * 32 + i % 16;
            size_t at = r * a->y_stride + i;
            ret_y[at] = glu(a, (double)x[0], (double)x[16], single, ret_mag + at);
        }
    }
}

static int glu_case(suite *s, uint32_t kind, uint32_t n, float scale)
{
    uint32_t n_rows = 1 + suite_below(s, 7), columns = (n + 15) / 16 * 32;
    ks_glu_args a = { .size = sizeof a, .kind = kind, .n_rows = n_rows, .n = n, .limit = 7.0f, .alpha = 1.702f };
    a.x_stride = columns + suite_below(s, 5);
    a.y_stride = n + suite_below(s, 5);
    size_t n_x = (n_rows - 1) * a.x_stride + columns;
    float *x = suite_input(s, "x", n_x * 4);
    suite_normals(s, x, n_x, scale);
    a.x = x;
    a.y = suite_output(s, "y", ((n_rows - 1) * a.y_stride + n) * 4);
    (void)snprintf(s->what, sizeof s->what, "kind %u, n %u, %u rows, scale %g", kind, n, n_rows, (double)scale);
    suite_case c = { .args = &a, .n_units = n_rows, .elem_bytes = 4, .unit_of = glu_unit, .eval = eval_glu };
    c.eps = 0x1p-22;
    int rc = suite_check(s, &c);
    suite_free(s);
    return rc;
}

int suite_glu(suite *s)
{
    static const uint32_t n[] = { 1, 7, 8, 9, 15, 16, 17, 24, 31, 32, 100, 768 };
    static const float scales[] = { 1.0f, 0.001f, 8.0f, 60.0f };
    int rc = 0;
    for (uint32_t kind = KS_ACT_SILU; kind <= KS_ACT_SILU_CLAMP; kind++)
        for (uint32_t i = 0; !rc && i < sizeof n / sizeof n[0]; i++)
            rc = glu_case(s, kind, n[i], scales[suite_below(s, 4)]);
    return rc;
}
