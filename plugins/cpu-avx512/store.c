/* STORE: floats into an F32, BF16 or F8E4M3 cache; bit-exact by kernels.h. How the roundings work: cpu-avx2. [worker]
 */
#include "tile.h"

KS_INLINE __mmask16 is_nan(__m512i u)
{
    return _mm512_cmpgt_epi32_mask(_mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff)), _mm512_set1_epi32(0x7f800000));
}

KS_INLINE __m256i bf16_16(__m512 x)
{
    __m512i u = _mm512_castps_si512(x), top = _mm512_srli_epi32(u, 16), one = _mm512_set1_epi32(1);
    __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(top, one));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, half), 16);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(r, is_nan(u), top, _mm512_set1_epi32(0x40)));
}

KS_INLINE __m128i f8_16(__m512 x)
{
    const __m512i one = _mm512_set1_epi32(1);
    __m512i u = _mm512_castps_si512(x), sign = _mm512_slli_epi32(_mm512_srli_epi32(u, 31), 7);
    __m512i in = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
    in = _mm512_min_epi32(in, _mm512_set1_epi32(0x43e00000)); /* 448 */
    __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7ffff), _mm512_and_si512(_mm512_srli_epi32(in, 20), one));
    __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(_mm512_add_epi32(in, half), 20), _mm512_set1_epi32(120 << 3));
    __m512 low = _mm512_add_ps(_mm512_castsi512_ps(in), _mm512_set1_ps(0x1p14f));
    __mmask16 small = _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(0x3c800000), in); /* below 2^-6 */
    code = _mm512_mask_sub_epi32(code, small, _mm512_castps_si512(low), _mm512_castps_si512(_mm512_set1_ps(0x1p14f)));
    code = _mm512_mask_mov_epi32(code, is_nan(u), _mm512_set1_epi32(0x7f));
    return _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign));
}

KS_INLINE void store_row(uint32_t type, uint8_t *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 real = mask_first(n - i);
        __m512 v = _mm512_maskz_loadu_ps(real, x + i);
        if (type == KS_T_F32)
            _mm512_mask_storeu_ps(y + (size_t)i * 4, real, v);
        else if (type == KS_T_BF16)
            _mm256_mask_storeu_epi16(y + (size_t)i * 2, real, bf16_16(v));
        else
            _mm_mask_storeu_epi8(y + i, real, f8_16(v));
    }
}

KS_INLINE void store(const ks_store_args *a, uint32_t type, uint32_t begin, uint32_t end)
{
    const uint32_t size = ks_type_bits(type) / 8;
    for (uint32_t r = begin; r < end; r++) {
        uint32_t pos = a->pos + r;
        uint8_t *page = (uint8_t *)a->y + a->pages[pos / a->page_tok] * a->page_bytes;
        store_row(type, page + ((size_t)(pos % a->page_tok) * a->y_stride + a->col) * size, a->x + r * a->x_stride,
                  a->n);
    }
}

void store_f32_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_F32, begin, end);
}

void store_bf16_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_BF16, begin, end);
}

void store_f8e4m3_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_F8E4M3, begin, end);
}
