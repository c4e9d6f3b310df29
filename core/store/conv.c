/* Conversions of whole arrays. The loops are simple enough for the compiler to vectorise. */
#include "store/conv.h"
#include "base/base.h"
#include "base/num.h"
#include <krasis/types.h>

#define INF_BITS 0x7f800000u
#define BF16_OVER_BITS 0x7f7f8000u /* rounds to infinity from here on */
#define CHUNK 4096u

static void from_f32(const void *src, float *dst, size_t n)
{
    memcpy(dst, src, n * sizeof *dst);
}

static void from_f64(const void *src, float *dst, size_t n)
{
    const double *s = src;
    for (size_t i = 0; i < n; i++) dst[i] = (float)s[i];
}

static void from_bf16(const void *src, float *dst, size_t n)
{
    const uint16_t *s = src;
    for (size_t i = 0; i < n; i++) dst[i] = ks_bf16_to_f32(s[i]);
}

static void from_f16(const void *src, float *dst, size_t n)
{
    const uint16_t *s = src;
    for (size_t i = 0; i < n; i++) { /* the exponent's bias by a multiplication: it is right for subnormals, too */
        uint32_t mag = ks_f32_bits(ks_f32_from_bits((uint32_t)(s[i] & 0x7fffu) << 13) * 0x1p112f);
        if ((s[i] & 0x7c00u) == 0x7c00u) mag |= INF_BITS;
        dst[i] = ks_f32_from_bits(mag | (uint32_t)(s[i] & 0x8000u) << 16);
    }
}

static void from_f8e4m3(const void *src, float *dst, size_t n)
{
    const uint8_t *s = src;
    for (size_t i = 0; i < n; i++) {
        uint32_t mag = ks_f32_bits(ks_f32_from_bits((uint32_t)(s[i] & 0x7fu) << 20) * 0x1p120f);
        if ((s[i] & 0x7fu) == 0x7fu) mag = 0x7fc00000u;
        dst[i] = ks_f32_from_bits(mag | (uint32_t)(s[i] & 0x80u) << 24);
    }
}

static void from_f8e5m2(const void *src, float *dst, size_t n)
{
    const uint8_t *s = src;
    for (size_t i = 0; i < n; i++) dst[i] = ks_f8e5m2_to_f32(s[i]);
}

const ks_conv *ks__conv_find(uint32_t type)
{
    static const ks_conv rows[] = {
        { KS_T_BF16, 2, false, from_bf16 },     { KS_T_F16, 2, true, from_f16 },
        { KS_T_F32, 4, true, from_f32 },        { KS_T_F64, 8, true, from_f64 },
        { KS_T_F8E4M3, 1, false, from_f8e4m3 }, { KS_T_F8E5M2, 1, false, from_f8e5m2 },
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++)
        if (rows[i].type == type) return &rows[i];
    return NULL;
}

/* First element whose magnitude's bits reach `limit`. Whole chunks are tested by a maximum, which vectorises. */
static size_t find_bits(const float *x, size_t n, uint32_t limit)
{
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t end = KS_MIN(n, at + CHUNK);
        int32_t most = 0;
        for (size_t i = at; i < end; i++) most = KS_MAX(most, (int32_t)(ks_f32_bits(x[i]) & 0x7fffffffu));
        if ((uint32_t)most < limit) continue;
        for (size_t i = at; i < end; i++)
            if ((ks_f32_bits(x[i]) & 0x7fffffffu) >= limit) return i;
    }
    return n;
}

size_t ks__find_nonfinite(const float *x, size_t n)
{
    return find_bits(x, n, INF_BITS);
}

size_t ks__find_over_bf16(const float *x, size_t n)
{
    return find_bits(x, n, BF16_OVER_BITS);
}
