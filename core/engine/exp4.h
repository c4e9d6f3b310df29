/* Exponentials of four floats at once, with what every x86-64 has: the same bits on every machine, so that a seed
 * draws the same token from the same logits whatever kernels computed them. [any] */
#ifndef KS_ENGINE_EXP4_H
#define KS_ENGINE_EXP4_H

#include <emmintrin.h>

/* e^x for x <= 0, within 2 ulp; 0 below -87 and for a NaN. x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^7. */
static inline __m128 ks__exp4(__m128 x)
{
    const __m128 low = _mm_set1_ps(-87.0f), in = _mm_cmpge_ps(x, low);
    x = _mm_max_ps(x, low);                                               /* of a NaN: low */
    __m128i i = _mm_cvtps_epi32(_mm_mul_ps(x, _mm_set1_ps(1.44269504f))); /* to nearest */
    __m128 n = _mm_cvtepi32_ps(i), p = _mm_set1_ps(1.0f / 5040);
    __m128 r = _mm_sub_ps(x, _mm_mul_ps(n, _mm_set1_ps(0x1.62e4p-1f))); /* ln 2 in two parts: this product is exact */
    r = _mm_sub_ps(r, _mm_mul_ps(n, _mm_set1_ps(0x1.7f7d1cp-20f)));
    p = _mm_add_ps(_mm_mul_ps(p, r), _mm_set1_ps(1.0f / 720));
    p = _mm_add_ps(_mm_mul_ps(p, r), _mm_set1_ps(1.0f / 120));
    p = _mm_add_ps(_mm_mul_ps(p, r), _mm_set1_ps(1.0f / 24));
    p = _mm_add_ps(_mm_mul_ps(p, r), _mm_set1_ps(1.0f / 6));
    p = _mm_add_ps(_mm_mul_ps(p, r), _mm_set1_ps(0.5f));
    p = _mm_add_ps(_mm_mul_ps(_mm_mul_ps(r, r), p), r); /* e^r - 1 */
    p = _mm_add_ps(p, _mm_set1_ps(1.0f));
    __m128i two_n = _mm_slli_epi32(_mm_add_epi32(i, _mm_set1_epi32(127)), 23);
    return _mm_and_ps(_mm_mul_ps(p, _mm_castsi128_ps(two_n)), in);
}

#endif
