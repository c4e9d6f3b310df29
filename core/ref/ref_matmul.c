/* Reference QUANT and MATMUL: one element at a time, as kernels.h and types.h define them. [worker] */
#include "ref/ref.h"

#include "base/base.h"
#include "base/num.h"
#include "ref/ref_rows.h"
#include <math.h>

static void quant_block(const float *x, uint32_t n, int8_t *q, float *ret_scale)
{
    float amax = 0;
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) finite = false;
        if (fabsf(x[i]) > amax) amax = fabsf(x[i]);
    }
    float inv = amax > 0 ? 127.0f / amax : INFINITY;
    if (finite && isfinite(inv)) {
        *ret_scale = amax / 127.0f;
        for (uint32_t i = 0; i < n; i++) q[i] = (int8_t)lrintf(x[i] * inv); /* default mode: to nearest even */
        return;
    }
    *ret_scale = finite ? 0.0f : NAN;
    memset(q, 0, n);
}

void ks__ref_quant(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_quant_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->x_stride;
        int8_t *q = a->out->q + (size_t)r * a->out->q_stride;
        memset(q, 0, a->out->q_stride);
        for (uint32_t k = 0; k < a->n_in; k += 128)
            quant_block(x + k, KS_MIN(128u, a->n_in - k), q + k,
                        a->out->scale + (size_t)r * a->out->scale_stride + k / 128);
        int32_t *sum = a->out->sum + (size_t)r * a->out->sum_stride;
        for (uint32_t k = 0; k < ks_t16_n_in(a->n_in); k += 32) {
            sum[k / 32] = 0;
            for (uint32_t i = 0; i < 32; i++) sum[k / 32] += q[k + i];
        }
    }
}

/* Element (row i of the strip, k) without its scale. */
static uint32_t nibble_at(const uint8_t *strip, uint32_t i, uint32_t k)
{
    uint8_t byte = strip[((size_t)(k / 8) * 16 + i) * 4 + k % 4];
    return k % 8 < 4 ? byte & 15u : byte >> 4;
}

static int32_t i4_at(const uint8_t *strip, uint32_t i, uint32_t k)
{
    return (int32_t)nibble_at(strip, i, k) - 8;
}

static int32_t i8_at(const uint8_t *strip, uint32_t i, uint32_t k)
{
    return ((const int8_t *)strip)[((size_t)(k / 4) * 16 + i) * 4 + k % 4];
}

/* Twice the value of e2m1, so that the dot product is one of integers; mxfp4_scale has the half. */
static int32_t mxfp4_at(const uint8_t *strip, uint32_t i, uint32_t k)
{
    static const int8_t twice[8] = { 0, 1, 2, 3, 4, 6, 8, 12 };
    uint32_t code = nibble_at(strip, i, k);
    return code & 8 ? -twice[code & 7] : twice[code & 7];
}

static float bf16_scale(const uint8_t *scales, uint32_t index)
{
    uint16_t h;
    memcpy(&h, scales + 2 * (size_t)index, 2);
    return ks_bf16_to_f32(h);
}

static float mxfp4_scale(const uint8_t *scales, uint32_t index)
{
    return ks_e8m0_to_f32(scales[index]) * 0.5f;
}

static float f32_at(const uint8_t *strip, uint32_t i, uint32_t k)
{
    float f;
    memcpy(&f, strip + ((size_t)k * 16 + i) * 4, 4);
    return f;
}

static float bf16_at(const uint8_t *strip, uint32_t i, uint32_t k)
{
    uint16_t h;
    memcpy(&h, strip + ((size_t)(k / 2) * 16 + i) * 4 + 2 * (k % 2), 2);
    return ks_bf16_to_f32(h);
}

typedef int32_t (*int_at_fn)(const uint8_t *strip, uint32_t i, uint32_t k);
typedef float (*float_at_fn)(const uint8_t *strip, uint32_t i, uint32_t k);
typedef float (*scale_at_fn)(const uint8_t *scales, uint32_t index);

static const uint8_t *strip_of(const ks_matmul_args *a, uint32_t o)
{
    return (const uint8_t *)a->w + (size_t)(o / 16) * a->strip_bytes;
}

float ks_ref_t16_get(const ks_matmul_args *a, uint32_t wtype, uint32_t row, uint32_t k)
{
    const uint8_t *strip = strip_of(a, row), *scales = strip + ks_t16_values_bytes(wtype, a->n_in);
    uint32_t i = row % 16;
    switch (wtype) {
    case KS_T_F32: return f32_at(strip, i, k);
    case KS_T_BF16: return bf16_at(strip, i, k);
    case KS_T_I8: return (float)i8_at(strip, i, k) * bf16_scale(scales, k / a->group * 16 + i);
    case KS_T_I4: return (float)i4_at(strip, i, k) * bf16_scale(scales, k / a->group * 16 + i);
    case KS_T_MXFP4: return (float)mxfp4_at(strip, i, k) * mxfp4_scale(scales, k / a->group * 16 + i);
    default: return NAN; /* no such type in T16 */
    }
}

/* Sums in double, rounded once. */
static void matmul_float(const ks_matmul_args *a, uint32_t begin, uint32_t end, float_at_fn at)
{
    uint32_t last = KS_MIN(end * 16, a->n_out);
    for (uint32_t r = 0; r < a->n_rows; r++) {
        const float *x = a->x + (a->rows ? a->rows[r] : r) * a->x_stride;
        for (uint32_t o = begin * 16; o < last; o++) {
            double acc = 0;
            for (uint32_t k = 0; k < a->n_in; k++) acc += (double)at(strip_of(a, o), o % 16, k) * (double)x[k];
            a->y[r * a->y_stride + o] = (float)(a->bias ? acc + (double)a->bias[o] : acc);
        }
    }
}

/* The bit-exact rule of kernels.h. */
static void matmul_int(const ks_matmul_args *a, uint32_t begin, uint32_t end, uint32_t wtype, int_at_fn at,
                       scale_at_fn scale)
{
    uint32_t last = KS_MIN(end * 16, a->n_out), n_in = ks_t16_n_in(a->n_in);
    for (uint32_t r = 0; r < a->n_rows; r++) {
        size_t row = a->rows ? a->rows[r] : r;
        const int8_t *q = a->act->q + row * a->act->q_stride;
        const float *xscale = a->act->scale + row * a->act->scale_stride;
        for (uint32_t o = begin * 16; o < last; o++) {
            const uint8_t *strip = strip_of(a, o), *scales = strip + ks_t16_values_bytes(wtype, a->n_in);
            float acc = 0;
            for (uint32_t k0 = 0; k0 < n_in; k0 += a->group) {
                int32_t isum = 0;
                for (uint32_t k = k0; k < KS_MIN(k0 + a->group, n_in); k++) isum += at(strip, o % 16, k) * q[k];
                acc = fmaf((float)isum, scale(scales, k0 / a->group * 16 + o % 16) * xscale[k0 / 128], acc);
            }
            a->y[r * a->y_stride + o] = a->bias ? acc + a->bias[o] : acc;
        }
    }
}

void ks__ref_matmul_f32(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_float(args, begin, end, f32_at);
}

void ks__ref_matmul_bf16(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_float(args, begin, end, bf16_at);
}

void ks__ref_matmul_i8(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_int(args, begin, end, KS_T_I8, i8_at, bf16_scale);
}

void ks__ref_matmul_i4(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_int(args, begin, end, KS_T_I4, i4_at, bf16_scale);
}

void ks__ref_matmul_mxfp4(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_int(args, begin, end, KS_T_MXFP4, mxfp4_at, mxfp4_scale);
}

/* ---- from the other side */

static void matmul_t(const ks_matmul_args *a, uint32_t wtype, uint32_t begin, uint32_t end)
{
    for (uint32_t r = 0; r < a->n_rows; r++) {
        const float *x = a->x + r * a->x_stride;
        for (uint32_t k = begin * 128; k < KS_MIN(end * 128, a->n_in); k++) {
            double sum = 0;
            for (uint32_t o = 0; o < a->n_out; o++) sum += (double)ks_ref_t16_get(a, wtype, o, k) * (double)x[o];
            a->y[r * a->y_stride + k] = (float)sum;
        }
    }
}

#define MATMUL_T(NAME, TYPE)                                                                    \
    void ks__ref_matmul_t_##NAME(const void *args, uint32_t begin, uint32_t end, void *scratch) \
    {                                                                                           \
        (void)scratch;                                                                          \
        matmul_t(args, TYPE, begin, end);                                                       \
    }
MATMUL_T(f32, KS_T_F32)
MATMUL_T(bf16, KS_T_BF16)
MATMUL_T(i8, KS_T_I8)
MATMUL_T(i4, KS_T_I4)
MATMUL_T(mxfp4, KS_T_MXFP4)
#undef MATMUL_T
