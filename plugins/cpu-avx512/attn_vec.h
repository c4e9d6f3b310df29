/* What cpu-avx2's attn_impl.h is written in, with vectors of 16: the same names as its attn_vec.h. No state. [any] */
#ifndef KS_AVX512_ATTN_VEC_H
#define KS_AVX512_ATTN_VEC_H

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define KS_INLINE static inline __attribute__((always_inline))

typedef __m512 vec;
#define LANES 16u

/* Sums that stay in registers. Scores: SCORE_QUERIES queries x 32 keys; values: VALUE_QUERIES queries x VALUE_VECS
 * vectors of columns. */
#define SCORE_QUERIES 8u
#define VALUE_QUERIES 4u
#define VALUE_VECS 4u
#define FOR_SCORES(X) \
    X(1, 1);          \
    X(1, 2);          \
    X(2, 1);          \
    X(2, 2);          \
    X(3, 1);          \
    X(3, 2);          \
    X(4, 1);          \
    X(4, 2);          \
    X(5, 1);          \
    X(5, 2);          \
    X(6, 1);          \
    X(6, 2);          \
    X(7, 1);          \
    X(7, 2);          \
    X(8, 1);          \
    X(8, 2);
#define FOR_VALUES(X) \
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
    X(3, 4);          \
    X(4, 1);          \
    X(4, 2);          \
    X(4, 3);          \
    X(4, 4);

KS_INLINE vec v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

KS_INLINE void v_store(float *p, vec v)
{
    _mm512_storeu_ps(p, v);
}

/* The first n (1..LANES) lanes; the others read as 0 and are not written. */
KS_INLINE vec v_load_first(const float *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)(0xffffu >> (LANES - n)), p);
}

KS_INLINE void v_store_first(float *p, vec v, uint32_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)(0xffffu >> (LANES - n)), v);
}

KS_INLINE vec v_set1(float f)
{
    return _mm512_set1_ps(f);
}

KS_INLINE vec v_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

KS_INLINE vec v_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

KS_INLINE vec v_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

KS_INLINE vec v_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

KS_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

KS_INLINE vec v_sqrt(vec v)
{
    return _mm512_sqrt_ps(v);
}

/* Of a NaN: b. */
KS_INLINE vec v_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

KS_INLINE vec v_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

/* Lanes i and i + 8 first, then as in cpu-avx2. */
KS_INLINE float v_sum_lanes(vec v)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

KS_INLINE float v_max_lanes(vec v)
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

/* e^x as in cpu-avx2: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^7. scalef makes denormals and infinity by itself. */
KS_INLINE vec v_exp(vec x)
{
    /* The order of the operands keeps a NaN of x. */
    x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
    vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8); /* nearest, no exception */
    vec r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x); /* ln 2 in two parts: the first product is exact */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    vec p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r); /* e^r - 1 */
    return _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0f)), n);
}

KS_INLINE float v_exp_1(float f)
{
    return _mm512_cvtss_f32(v_exp(_mm512_set1_ps(f)));
}

/* tanh: Taylor to x^9 below 1/4 (the next term is below 2^-26 of the value), 1 - 2 / (e^2|x| + 1) above. */
KS_INLINE vec v_tanh(vec x)
{
    const vec one = _mm512_set1_ps(1.0f);
    vec a = _mm512_abs_ps(x), s = _mm512_mul_ps(x, x);
    vec e = v_exp(_mm512_add_ps(a, a));
    vec large = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
    large = _mm512_or_ps(large, _mm512_and_ps(_mm512_set1_ps(-0.0f), x));
    vec p = _mm512_set1_ps(62.0f / 2835);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-17.0f / 315));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(2.0f / 15));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-1.0f / 3));
    vec small = _mm512_fmadd_ps(_mm512_mul_ps(x, s), p, x);
    return _mm512_mask_mov_ps(large, _mm512_cmp_ps_mask(a, _mm512_set1_ps(0.25f), _CMP_LT_OQ), small);
}

/* Lane i of v where first + i is in [i0, i1), else of `other`. */
KS_INLINE vec v_in_range(vec v, uint32_t first, uint32_t i0, uint32_t i1, vec other)
{
    uint64_t from = i0 > first ? i0 - first : 0, to = i1 > first ? i1 - first : 0;
    uint64_t in =
        (to >= 64 ? UINT64_MAX : ((uint64_t)1 << to) - 1) & ~(from >= 64 ? UINT64_MAX : ((uint64_t)1 << from) - 1);
    return _mm512_mask_mov_ps(other, (__mmask16)in, v);
}

/* 16 bf16 as floats, in plain order: see cpu-avx2 for another one. */
KS_INLINE void bf16_16(__m256i words, float *dst)
{
    _mm512_storeu_ps(dst, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16)));
}

KS_INLINE void bf16_unpack(__m256i words, float *dst)
{
    bf16_16(words, dst);
}

/* What word i of each half is in the order of bf16_unpack. */
KS_INLINE uint32_t bf16_place(uint32_t i, uint32_t half)
{
    return i + half * 8;
}

/* 32 e4m3 as floats of 2^-8 times the value, which who sums them up puts right: as f16 their exponent is 8 too small.
 * Exact, denormals included. nans: there may be a NaN (0x7f, 0xff) among them. */
KS_INLINE void f8_32(__m256i bytes, int nans, float *dst)
{
    __m512i w = _mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7); /* the sign stands in bits 15 and 14 */
    __m512i half = _mm512_and_si512(w, _mm512_set1_epi16((int16_t)0xbfff));
    if (nans) {
        __m512i code = _mm512_set1_epi16(0x3f80);
        __mmask32 is = _mm512_cmpeq_epi16_mask(_mm512_and_si512(half, code), code);
        half = _mm512_mask_mov_epi16(half, is, _mm512_set1_epi16(0x7e00));
    }
    _mm512_storeu_ps(dst, _mm512_cvtph_ps(_mm512_castsi512_si256(half)));
    _mm512_storeu_ps(dst + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1)));
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
        y[i] = v_add_or_max(_mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0x44),
                            _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0xee), max);
    for (uint32_t i = 0; i < n / 4; i++)
        z[i] = v_add_or_max(_mm512_shuffle_f32x4(y[2 * i], y[2 * i + 1], 0x88),
                            _mm512_shuffle_f32x4(y[2 * i], y[2 * i + 1], 0xdd), max);
    vec a = z[0], b = z[n / 4 - 1]; /* quarter i: of x[i] and of x[4 + i] */
    a = v_add_or_max(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee), max);
    a = v_add_or_max(a, _mm512_permute_ps(a, 0xb1), max);
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0), a);
}

/* The first n = 4 or 8 lanes. */
KS_INLINE vec v_load_fold(const float *p, uint32_t n)
{
    return n == 8 ? _mm512_castps256_ps512(_mm256_loadu_ps(p)) : _mm512_castps128_ps512(_mm_loadu_ps(p));
}

KS_INLINE void v_store_fold(float *p, vec v, uint32_t n)
{
    if (n == 8)
        _mm256_storeu_ps(p, _mm512_castps512_ps256(v));
    else
        _mm_storeu_ps(p, _mm512_castps512_ps128(v));
}

/* e^(old - new) for a maximum that became `new`: 1 where it stayed, 0 where there was none. */
KS_INLINE vec v_keep(vec old, vec new)
{
    __mmask16 none = _mm512_cmp_ps_mask(old, v_set1(-INFINITY), _CMP_EQ_OQ);
    vec keep = _mm512_mask_mov_ps(v_exp(v_sub(old, new)), none, v_set1(0));
    return _mm512_mask_mov_ps(keep, _mm512_cmp_ps_mask(old, new, _CMP_EQ_OQ), v_set1(1.0f));
}

#endif
