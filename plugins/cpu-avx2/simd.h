/* Small AVX2 helpers: partial vectors, sums in a fixed order, exp and tanh. No state. [any] */
#ifndef KS_AVX2_SIMD_H
#define KS_AVX2_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define KS_INLINE static inline __attribute__((always_inline))

/* The first n (0..8) lanes set. Masked loads and stores do not touch the bytes of the other lanes. */
KS_INLINE __m256i mask_first(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

KS_INLINE float sum_8(__m256 v) /* ((0+4)+(2+6)) + ((1+5)+(3+7)) */
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

KS_INLINE float max_8(__m256 v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

/* 2^n for n in [-126, 127], as whole numbers in float form. */
KS_INLINE __m256 pow2_whole(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* e^x within 1.1 ulp (measured): x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^7 (the next term is below
 * 2^-27). 2^n is applied in two factors so that results below FLT_MIN come out as denormals and large ones as infinity.
 */
KS_INLINE __m256 exp_8(__m256 x)
{
    /* The order of the operands keeps a NaN of x. */
    x = _mm256_min_ps(_mm256_set1_ps(89.0f), _mm256_max_ps(_mm256_set1_ps(-110.0f), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8); /* nearest, no exception */
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x); /* ln 2 in two parts: n * 0x1.62e4p-1 is exact */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r); /* e^r - 1 */
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1);
    return _mm256_mul_ps(_mm256_mul_ps(p, pow2_whole(half)), pow2_whole(_mm256_sub_epi32(i, half)));
}

KS_INLINE float exp_1(float x)
{
    return _mm256_cvtss_f32(exp_8(_mm256_set1_ps(x)));
}

/* tanh: Taylor to x^9 below 1/4 (the next term is below 2^-26 of the value), 1 - 2 / (e^2|x| + 1) above: 5.2 ulp. */
KS_INLINE __m256 tanh_8(__m256 x)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    __m256 a = _mm256_andnot_ps(sign_bit, x), s = _mm256_mul_ps(x, x);
    __m256 e = exp_8(_mm256_add_ps(a, a));
    __m256 large = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
    large = _mm256_or_ps(large, _mm256_and_ps(sign_bit, x));
    __m256 p = _mm256_set1_ps(62.0f / 2835);
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(-17.0f / 315));
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(2.0f / 15));
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(-1.0f / 3));
    __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(x, s), p, x);
    return _mm256_blendv_ps(large, small, _mm256_cmp_ps(a, _mm256_set1_ps(0.25f), _CMP_LT_OQ));
}

/* g * sigmoid(z). */
KS_INLINE __m256 gate_8(__m256 g, __m256 z)
{
    __m256 e = exp_8(_mm256_sub_ps(_mm256_setzero_ps(), z));
    return _mm256_div_ps(g, _mm256_add_ps(e, _mm256_set1_ps(1.0f)));
}

#endif
