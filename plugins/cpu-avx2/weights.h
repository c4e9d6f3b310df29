/* Quantized weights (T16) in registers: nibbles to unsigned bytes, scales to floats. No state. [any] */
#ifndef KS_AVX2_WEIGHTS_H
#define KS_AVX2_WEIGHTS_H

#include "tile.h"

/* Unsigned bytes stand for weight + offset: dot(w, q) = dot(u, q) - offset * sum(q). MXFP4: twice the e2m1 value. */
KS_INLINE int32_t offset_of(uint32_t wtype)
{
    return wtype == KS_T_I8 ? 128 : wtype == KS_T_I4 ? 8 : 12;
}

/* Four columns of eight rows out of 32 bytes of nibbles: columns 0..3 of 8, or 4..7. */
KS_INLINE __m256i unpack(const uint8_t *p, uint32_t high, int mx)
{
    __m256i b = _mm256_load_si256((const __m256i *)p);
    b = _mm256_and_si256(high ? _mm256_srli_epi16(b, 4) : b, _mm256_set1_epi8(15));
    if (!mx) return b;
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm256_shuffle_epi8(table, b);
}

/* 2^(e - 127) / 2 for 8 rows. The factor 1/2 is applied to the float so that e = 1 comes out right. e = 0 has no bits
 * in that form: it becomes those of 2^-127. 255 is NaN. */
KS_INLINE __m256 e8m0_half_8(const uint8_t *p)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256i bits = _mm256_max_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x00400000));
    __m256 f = _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0.5f));
    return _mm256_or_ps(f, _mm256_castsi256_ps(_mm256_cmpeq_epi32(e, _mm256_set1_epi32(255))));
}

KS_INLINE size_t scales_bytes(uint32_t wtype) /* of one group of a strip */
{
    return wtype == KS_T_MXFP4 ? 16 : 32;
}

/* The scales of one group, 16 rows. MXFP4: half of them, since its values are taken twice. */
KS_INLINE void scales_16(const uint8_t *p, uint32_t wtype, __m256 ret[2])
{
    for (uint32_t v = 0; v < 2; v++) ret[v] = wtype == KS_T_MXFP4 ? e8m0_half_8(p + 8 * v) : bf16_8(p + 16 * v);
}

/* Where the rows of a tile lie. */
typedef struct act_row {
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
} act_row;

KS_INLINE void rows_at(const ks_matmul_args *a, uint32_t r0, uint32_t n, act_row *ret)
{
    for (uint32_t m = 0; m < n; m++) {
        size_t row = row_of(a, r0 + m);
        ret[m].q = a->act->q + row * a->act->q_stride;
        ret[m].scale = a->act->scale + row * a->act->scale_stride;
        ret[m].sum = a->act->sum + row * a->act->sum_stride;
    }
}

/* Sum of the activations in columns [k0, k1), taken `offset` times and away. */
KS_INLINE int32_t minus_offset(const act_row *x, uint32_t wtype, uint32_t k0, uint32_t k1)
{
    int32_t s = 0;
    for (uint32_t k = k0; k < k1; k += 32) s += x->sum[k / 32];
    return -offset_of(wtype) * s;
}

/* The same for each group in columns [k0, k1). */
KS_INLINE void minus_offsets(const act_row *x, uint32_t wtype, uint32_t group, uint32_t k0, uint32_t k1, int32_t *ret)
{
    const int32_t *sum = x->sum + k0 / 32;
    if (group == 128)
        for (; k1 - k0 >= 128; k0 += 128, sum += 4) *ret++ = -offset_of(wtype) * (sum[0] + sum[1] + sum[2] + sum[3]);
    for (; k0 < k1; k0 += group) *ret++ = minus_offset(x, wtype, k0, k1 - k0 < group ? k1 : k0 + group);
}

#endif
