/* What attn_impl.h is written in: vectors of floats of this plugin's width. cpu-avx512 has a file of the same name and
 * the same functions. No state. [any] */
#ifndef KS_AVX2_ATTN_VEC_H
#define KS_AVX2_ATTN_VEC_H

#include "simd.h"

#include <math.h>
#include <stdbool.h>

typedef __m256 vec;
#define LANES 8u

/* Sums that stay in registers. Scores: SCORE_QUERIES queries x 32 keys; values: VALUE_QUERIES queries x VALUE_VECS
 * vectors of columns. */
#define SCORE_QUERIES 3u
#define VALUE_QUERIES 3u
#define VALUE_VECS 4u
#define FOR_SCORES(X) \
    X(1, 1);          \
    X(1, 2);          \
    X(1, 3);          \
    X(1, 4);          \
    X(2, 1);          \
    X(2, 2);          \
    X(2, 3);          \
    X(2, 4);          \
    X(3, 1);          \
    X(3, 2);          \
    X(3, 3);          \
    X(3, 4);
#define FOR_VALUES FOR_SCORES

KS_INLINE vec v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

KS_INLINE void v_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v);
}

/* The first n (1..LANES) lanes; the others read as 0 and are not written. */
KS_INLINE vec v_load_first(const float *p, uint32_t n)
{
    return _mm256_maskload_ps(p, mask_first(n));
}

KS_INLINE void v_store_first(float *p, vec v, uint32_t n)
{
    _mm256_maskstore_ps(p, mask_first(n), v);
}

KS_INLINE vec v_set1(float f)
{
    return _mm256_set1_ps(f);
}

KS_INLINE vec v_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

KS_INLINE vec v_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

KS_INLINE vec v_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

KS_INLINE vec v_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

KS_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

KS_INLINE vec v_sqrt(vec v)
{
    return _mm256_sqrt_ps(v);
}

/* Of a NaN: b. */
KS_INLINE vec v_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

KS_INLINE vec v_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

KS_INLINE float v_sum_lanes(vec v)
{
    return sum_8(v);
}

KS_INLINE float v_max_lanes(vec v)
{
    return max_8(v);
}

KS_INLINE vec v_exp(vec v)
{
    return exp_8(v);
}

KS_INLINE float v_exp_1(float f)
{
    return exp_1(f);
}

KS_INLINE vec v_tanh(vec v)
{
    return tanh_8(v);
}

/* Lane i of v where first + i is in [i0, i1), else of `other`. */
KS_INLINE vec v_in_range(vec v, uint32_t first, uint32_t i0, uint32_t i1, vec other)
{
    __m256i at = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int)first));
    __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)i0), at),
                                  _mm256_cmpgt_epi32(at, _mm256_set1_epi32((int)i1 - 1)));
    return _mm256_blendv_ps(v, other, _mm256_castsi256_ps(out));
}

/* 16 bf16 as floats: words 0..7 lie in the lower four of each half, 8..15 in the upper ones, since unpacking within the
 * halves is faster than a conversion that crosses them. */
KS_INLINE void bf16_unpack(__m256i words, float *dst)
{
    const __m256i zero = _mm256_setzero_si256();
    _mm256_storeu_ps(dst, _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, words)));
    _mm256_storeu_ps(dst + 8, _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, words)));
}

/* What word i of each half is in that order. */
KS_INLINE uint32_t bf16_place(uint32_t i, uint32_t half)
{
    return i % 4 + i / 4 * 8 + half * 4;
}

/* 16 bf16 in plain order. */
KS_INLINE void bf16_16(__m256i words, float *dst)
{
    bf16_unpack(_mm256_permute4x64_epi64(words, 0xd8), dst);
}

/* e4m3 in the upper byte of each word as f16 with an exponent that is 8 too small. Exact, denormals included. nans:
 * there may be a NaN (0x7f, 0xff) among them. */
KS_INLINE __m256i f8_half(__m256i words, int nans)
{
    __m256i half = _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16((int16_t)0xbfff));
    if (nans) {
        __m256i code = _mm256_set1_epi16(0x3f80);
        half = _mm256_or_si256(half, _mm256_cmpeq_epi16(_mm256_and_si256(half, code), code));
    }
    return half;
}

/* 32 e4m3 as floats of 2^-8 times the value; who sums them up puts that right. */
KS_INLINE void f8_32(__m256i bytes, int nans, float *dst)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i lo = f8_half(_mm256_unpacklo_epi8(zero, bytes), nans); /* 0..7 and 16..23 */
    __m256i hi = f8_half(_mm256_unpackhi_epi8(zero, bytes), nans);
    _mm256_storeu_ps(dst, _mm256_cvtph_ps(_mm256_castsi256_si128(lo)));
    _mm256_storeu_ps(dst + 8, _mm256_cvtph_ps(_mm256_castsi256_si128(hi)));
    _mm256_storeu_ps(dst + 16, _mm256_cvtph_ps(_mm256_extracti128_si256(lo, 1)));
    _mm256_storeu_ps(dst + 24, _mm256_cvtph_ps(_mm256_extracti128_si256(hi, 1)));
}

KS_INLINE vec v_add_or_max(vec a, vec b, bool max)
{
    return max ? v_max(a, b) : v_add(a, b);
}

/* v_sum_lanes (v_max_lanes) of n = 4 or 8 vectors at once, the same bits: those of x[i] in lane i. */
KS_INLINE vec v_fold(const vec *x, uint32_t n, bool max)
{
    vec y[4], z[2];
    for (uint32_t i = 0; i < n / 2; i++)
        y[i] = v_add_or_max(_mm256_permute2f128_ps(x[2 * i], x[2 * i + 1], 0x20),
                            _mm256_permute2f128_ps(x[2 * i], x[2 * i + 1], 0x31), max);
    for (uint32_t i = 0; i < n / 4; i++)
        z[i] = v_add_or_max(_mm256_shuffle_ps(y[2 * i], y[2 * i + 1], 0x44),
                            _mm256_shuffle_ps(y[2 * i], y[2 * i + 1], 0xee), max);
    vec even = z[0], odd = z[n / 4 - 1]; /* pairs of vectors, not numbers */
    even = v_add_or_max(_mm256_shuffle_ps(even, odd, 0x88), _mm256_shuffle_ps(even, odd, 0xdd), max);
    return _mm256_permutevar8x32_ps(even, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* The first n = 4 or 8 lanes. */
KS_INLINE vec v_load_fold(const float *p, uint32_t n)
{
    return n == 8 ? v_load(p) : _mm256_castps128_ps256(_mm_loadu_ps(p));
}

KS_INLINE void v_store_fold(float *p, vec v, uint32_t n)
{
    if (n == 8)
        v_store(p, v);
    else
        _mm_storeu_ps(p, _mm256_castps256_ps128(v));
}

/* e^(old - new) for a maximum that became `new`: 1 where it stayed, 0 where there was none. */
KS_INLINE vec v_keep(vec old, vec new)
{
    vec same = _mm256_cmp_ps(old, new, _CMP_EQ_OQ), none = _mm256_cmp_ps(old, v_set1(-INFINITY), _CMP_EQ_OQ);
    vec keep = _mm256_andnot_ps(none, v_exp(v_sub(old, new)));
    return _mm256_blendv_ps(keep, v_set1(1.0f), same);
}

#endif
