/* ROPE. The angle p * inv_freq is a float, as large as the position; its sine and cosine are computed in
 * double, so that they are right to the last bit or so at any position. They are shared by all heads of a row. [worker]
 */
#include "rows.h"
#include "simd.h"

#define PAIRS (ROPE_SCRATCH_BYTES / 8) /* cosines and sines of so many pairs at a time */

/* Four angles: |r| <= pi/4 after taking away n * pi/2 (pi/2 in two doubles; fma keeps the product whole), Taylor
 * series to r^12 and r^13, whose next terms are below 1e-12. */
KS_INLINE void sincos_4(__m128 angle, __m128 *ret_sin, __m128 *ret_cos)
{
    __m256d x = _mm256_cvtps_pd(angle);
    __m256d n = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(0.63661977236758134308)), 8);
    __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(0x1.921fb54442d18p0), x);
    r = _mm256_fnmadd_pd(n, _mm256_set1_pd(0x1.1a62633145c07p-54), r);
    __m256d z = _mm256_mul_pd(r, r);

    __m256d s = _mm256_set1_pd(1.0 / 6227020800);
    s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(-1.0 / 39916800));
    s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(1.0 / 362880));
    s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(-1.0 / 5040));
    s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(1.0 / 120));
    s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(-1.0 / 6));
    s = _mm256_fmadd_pd(_mm256_mul_pd(s, z), r, r);

    __m256d c = _mm256_set1_pd(1.0 / 479001600);
    c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(-1.0 / 3628800));
    c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(1.0 / 40320));
    c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(-1.0 / 720));
    c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(1.0 / 24));
    c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(-0.5));
    c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(1.0));

    /* Quadrant n mod 4: odd ones swap sine and cosine; signs by bit 1 of n and of n + 1. n + 1.5 * 2^52 has
     * the whole number n in its low bits, for |n| < 2^51. */
    __m256i q = _mm256_castpd_si256(_mm256_add_pd(n, _mm256_set1_pd(0x1.8p52)));
    const __m256i one = _mm256_set1_epi64x(1), two = _mm256_set1_epi64x(2);
    __m256d swap = _mm256_castsi256_pd(_mm256_slli_epi64(q, 63));
    __m256d s_sign = _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_and_si256(q, two), 62));
    __m256d c_sign = _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_and_si256(_mm256_add_epi64(q, one), two), 62));
    *ret_sin = _mm256_cvtpd_ps(_mm256_xor_pd(_mm256_blendv_pd(s, c, swap), s_sign));
    *ret_cos = _mm256_cvtpd_ps(_mm256_xor_pd(_mm256_blendv_pd(c, s, swap), c_sign));
}

/* Cosines and sines of n pairs, 4 at a time; what lies beyond n is not used. */
static void angles(const ks_rope_args *a, uint32_t pos, uint32_t first, uint32_t n, float *cosines, float *sines)
{
    const __m128 p = _mm_set1_ps((float)pos), m = _mm_set1_ps(a->mscale);
    for (uint32_t i = 0; i < n; i += 4) {
        __m128i mask = _mm256_castsi256_si128(mask_first(n - i < 4 ? n - i : 4));
        __m128 s, c;
        sincos_4(_mm_mul_ps(p, _mm_maskload_ps(a->inv_freq + first + i, mask)), &s, &c);
        _mm_store_ps(cosines + i, _mm_mul_ps(c, m));
        _mm_store_ps(sines + i, _mm_mul_ps(s, m));
    }
}

static void turn_half(float *x, uint32_t half, uint32_t n, const float *cosines, const float *sines)
{
    for (uint32_t i = 0; i < n; i += 8) {
        __m256i mask = mask_first(n - i < 8 ? n - i : 8);
        __m256 c = _mm256_maskload_ps(cosines + i, mask), s = _mm256_maskload_ps(sines + i, mask);
        __m256 u = _mm256_maskload_ps(x + i, mask), v = _mm256_maskload_ps(x + half + i, mask);
        _mm256_maskstore_ps(x + i, mask, _mm256_fmsub_ps(u, c, _mm256_mul_ps(v, s)));
        _mm256_maskstore_ps(x + half + i, mask, _mm256_fmadd_ps(v, c, _mm256_mul_ps(u, s)));
    }
}

static void turn_inter(float *x, uint32_t n, const float *cosines, const float *sines)
{
    for (uint32_t i = 0; i < n; i += 4) { /* four pairs a vector */
        uint32_t left = n - i < 4 ? n - i : 4;
        __m256i mask = mask_first(2 * left);
        __m128i pair_mask = _mm256_castsi256_si128(mask_first(left));
        __m128 c = _mm_maskload_ps(cosines + i, pair_mask), s = _mm_maskload_ps(sines + i, pair_mask);
        __m256 cc = _mm256_set_m128(_mm_unpackhi_ps(c, c), _mm_unpacklo_ps(c, c));
        __m256 ss = _mm256_set_m128(_mm_unpackhi_ps(s, s), _mm_unpacklo_ps(s, s));
        __m256 v = _mm256_maskload_ps(x + 2 * i, mask), other = _mm256_permute_ps(v, 0xb1);
        _mm256_maskstore_ps(x + 2 * i, mask, _mm256_fmaddsub_ps(v, cc, _mm256_mul_ps(other, ss)));
    }
}

void rope_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_rope_args *a = args;
    float *cosines = scratch, *sines = cosines + PAIRS;
    uint32_t half = a->rot_dim / 2;
    for (uint32_t r = begin; r < end; r++) {
        for (uint32_t first = 0; first < half; first += PAIRS) {
            uint32_t n = half - first < PAIRS ? half - first : PAIRS;
            angles(a, a->pos[r], first, n, cosines, sines);
            for (uint32_t h = 0; h < a->n_heads; h++) {
                float *x = a->x + r * a->x_stride + (size_t)h * a->head_dim + a->rot_begin;
                if (a->kind == KS_ROPE_HALF)
                    turn_half(x + first, half, n, cosines, sines);
                else
                    turn_inter(x + 2 * first, n, cosines, sines);
            }
        }
    }
}
