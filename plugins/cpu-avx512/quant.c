/* QUANT: rows of float to int8 with a scale per 128 columns and sums per 32; bit-exact by kernels.h. [worker] */
#include "tile.h"
#include <float.h>

/* 16 columns; beyond n they are 0. */
KS_INLINE __m512 load_16(const float *x, uint32_t n)
{
    return _mm512_maskz_loadu_ps(mask_first(n), x);
}

/* Largest |x| of a block in *ret; 0 if it holds a NaN or an infinity. */
KS_INLINE int block_max(const float *x, uint32_t n, float *ret)
{
    __m512 max = _mm512_setzero_ps();
    __mmask16 bad = 0;
    for (uint32_t k = 0; k < n; k += 16) {
        __m512 v = _mm512_abs_ps(load_16(x + k, n - k));
        bad = (__mmask16)(bad | _mm512_cmp_ps_mask(v, _mm512_set1_ps(FLT_MAX), _CMP_NLE_UQ));
        max = _mm512_max_ps(max, v);
    }
    *ret = _mm512_reduce_max_ps(max);
    return !bad;
}

/* 16 columns to q (all 16 bytes are written); the rounded values are returned. */
KS_INLINE __m512i quant_16(__m512 v, __m512 inv, int8_t *q)
{
    __m512i i = _mm512_cvtps_epi32(_mm512_mul_ps(v, inv));
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(i));
    return i;
}

/* The sums of four vectors, together: each alone would take as many steps. */
KS_INLINE __m128i sums_of_4(const __m512i v[4])
{
    __m256i h[4];
    for (uint32_t i = 0; i < 4; i++)
        h[i] = _mm256_add_epi32(_mm512_castsi512_si256(v[i]), _mm512_extracti64x4_epi64(v[i], 1));
    h[0] = _mm256_hadd_epi32(_mm256_hadd_epi32(h[0], h[1]), _mm256_hadd_epi32(h[2], h[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(h[0]), _mm256_extracti128_si256(h[0], 1));
}

static void quant_block(const float *x, uint32_t n, int8_t *q, float *ret_scale, int32_t *ret_sum)
{
    float amax;
    int finite = block_max(x, n, &amax);
    float inv = finite && amax > 0 ? 127.0f / amax : 0;
    if (inv > FLT_MAX) inv = 0;
    *ret_scale = !finite ? __builtin_nanf("") : inv > 0 ? amax / 127.0f : 0;
    if (!(inv > 0)) { /* nothing of x may come in: 0 * infinity is not 0 */
        memset(q, 0, ks_t16_n_in(n));
        memset(ret_sum, 0, (n + 31) / 32 * sizeof *ret_sum);
        return;
    }
    __m512i part[4] = { _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                        _mm512_setzero_si512() };
    for (uint32_t k = 0; k < n; k += 32) {
        __m512i lo = quant_16(load_16(x + k, n - k), _mm512_set1_ps(inv), q + k);
        __m512 v = n - k > 16 ? load_16(x + k + 16, n - k - 16) : _mm512_setzero_ps();
        part[k / 32] = _mm512_add_epi32(lo, quant_16(v, _mm512_set1_ps(inv), q + k + 16));
    }
    int32_t sums[4];
    _mm_storeu_si128((__m128i *)sums, sums_of_4(part));
    memcpy(ret_sum, sums, (n + 31) / 32 * sizeof *ret_sum);
}

void quant_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_quant_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->x_stride;
        int8_t *q = a->out->q + (size_t)r * a->out->q_stride;
        float *scale = a->out->scale + (size_t)r * a->out->scale_stride;
        int32_t *sum = a->out->sum + (size_t)r * a->out->sum_stride;
        for (uint32_t k = 0; k < a->n_in; k += 128)
            quant_block(x + k, a->n_in - k < 128 ? a->n_in - k : 128, q + k, scale + k / 128, sum + k / 32);
        uint32_t written = ks_t16_n_in(a->n_in);
        memset(q + written, 0, a->out->q_stride - written);
    }
}
