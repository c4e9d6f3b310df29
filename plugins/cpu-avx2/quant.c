/* QUANT: rows of float to int8 with a scale per 128 columns and sums per 32; bit-exact by kernels.h. [worker] */
#include "rows.h"
#include "simd.h"

/* 32 columns in registers; beyond n they are 0. */
KS_INLINE void load_32(const float *x, uint32_t n, __m256 v[4])
{
    for (uint32_t i = 0; i < 4; i++)
        v[i] = n >= 8 * i + 8 ? _mm256_loadu_ps(x + 8 * i)
               : n > 8 * i    ? _mm256_maskload_ps(x + 8 * i, mask_first(n - 8 * i))
                              : _mm256_setzero_ps();
}

/* Largest |x| of a block in *ret; 0 if it holds a NaN or an infinity. */
KS_INLINE int block_max(const float *x, uint32_t n, float *ret)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f);
    __m256 max = _mm256_setzero_ps(), bad = _mm256_setzero_ps();
    for (uint32_t k = 0; k < n; k += 32) {
        __m256 v[4];
        load_32(x + k, n - k, v);
        for (uint32_t i = 0; i < 4; i++) {
            __m256 a = _mm256_andnot_ps(sign_bit, v[i]);
            bad = _mm256_or_ps(bad, _mm256_cmp_ps(a, _mm256_set1_ps(3.402823466e38f), _CMP_NLE_UQ));
            max = _mm256_max_ps(max, a);
        }
    }
    *ret = max_8(max);
    return _mm256_testz_si256(_mm256_castps_si256(bad), _mm256_castps_si256(bad));
}

KS_INLINE __m256i round_8(__m256 v, __m256 inv)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(v, inv));
}

/* 32 columns to q (all 32 bytes are written); returns their sum. */
KS_INLINE int32_t quant_32(const float *x, uint32_t n, __m256 inv, int8_t *q)
{
    __m256 v[4];
    load_32(x, n, v);
    __m256i ab = _mm256_packs_epi32(round_8(v[0], inv), round_8(v[1], inv));
    __m256i cd = _mm256_packs_epi32(round_8(v[2], inv), round_8(v[3], inv));
    __m256i b = _mm256_packs_epi16(ab, cd); /* dwords 0 2 4 6 1 3 5 7 of the right order: packs work per half */
    b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)q, b);
    __m256i s = _mm256_madd_epi16(_mm256_add_epi16(ab, cd), _mm256_set1_epi16(1));
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}

static void quant_block(const float *x, uint32_t n, int8_t *q, float *ret_scale, int32_t *ret_sum)
{
    float amax, inv;
    int finite = block_max(x, n, &amax);
    inv = amax > 0 ? 127.0f / amax : 0;
    if (!finite || !(inv <= 3.402823466e38f)) inv = 0;
    *ret_scale = !finite ? __builtin_nanf("") : inv > 0 ? amax / 127.0f : 0;
    for (uint32_t k = 0; k < n; k += 32) {
        if (inv > 0) {
            ret_sum[k / 32] = quant_32(x + k, n - k, _mm256_set1_ps(inv), q + k);
        } else {
            _mm256_storeu_si256((__m256i *)(q + k), _mm256_setzero_si256());
            ret_sum[k / 32] = 0;
        }
    }
}

void quant_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
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
