/* STORE: floats into an F32, BF16 or F8E4M3 cache; bit-exact by kernels.h. [worker] */
#include "rows.h"
#include "simd.h"

/* 8 dwords, each below 2^16 (2^8), as 8 words (bytes). */
KS_INLINE __m128i to_words(__m256i v)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

KS_INLINE __m256i is_nan(__m256i magnitude)
{
    return _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
}

/* Half of the last kept bit and that bit are added below it: ties go to even. A NaN only loses its low half. */
KS_INLINE __m128i bf16_8(__m256 x)
{
    __m256i u = _mm256_castps_si256(x), top = _mm256_srli_epi32(u, 16), one = _mm256_set1_epi32(1);
    __m256i nan = is_nan(_mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff)));
    __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(top, one));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, half), 16);
    return to_words(_mm256_blendv_epi8(r, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan));
}

/* From 2^-6 on: 3 bits of mantissa by the same addition, then the exponent's new zero. Below it the format has steps of
 * 2^-9: adding 2^14, whose last bit is just that, makes the addition round. */
KS_INLINE __m256i f8_8(__m256 x)
{
    const __m256i largest = _mm256_set1_epi32(0x43e00000), one = _mm256_set1_epi32(1); /* 448 */
    __m256i u = _mm256_castps_si256(x), mag = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
    __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(u, 31), 7), nan = is_nan(mag);
    __m256i in = _mm256_min_epi32(mag, largest);
    __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7ffff), _mm256_and_si256(_mm256_srli_epi32(in, 20), one));
    __m256i normal = _mm256_sub_epi32(_mm256_srli_epi32(_mm256_add_epi32(in, half), 20), _mm256_set1_epi32(120 << 3));
    __m256 low = _mm256_add_ps(_mm256_castsi256_ps(in), _mm256_set1_ps(0x1p14f));
    __m256i small = _mm256_sub_epi32(_mm256_castps_si256(low), _mm256_castps_si256(_mm256_set1_ps(0x1p14f)));
    __m256i code = _mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), in));
    code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7f), nan);
    return _mm256_or_si256(code, sign);
}

KS_INLINE void store_8(uint32_t type, uint8_t *y, __m256 x)
{
    if (type == KS_T_F32) {
        _mm256_storeu_ps((float *)(void *)y, x);
    } else if (type == KS_T_BF16) {
        _mm_storeu_si128((__m128i *)(void *)y, bf16_8(x));
    } else {
        __m128i words = to_words(f8_8(x));
        _mm_storel_epi64((__m128i *)(void *)y, _mm_packus_epi16(words, words));
    }
}

KS_INLINE void store_row(uint32_t type, uint8_t *y, const float *x, uint32_t n)
{
    const uint32_t size = ks_type_bits(type) / 8;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) store_8(type, y + (size_t)i * size, _mm256_loadu_ps(x + i));
    if (i < n) {
        uint8_t last[32];
        store_8(type, last, _mm256_maskload_ps(x + i, mask_first(n - i)));
        memcpy(y + (size_t)i * size, last, (size_t)(n - i) * size);
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

void store_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_F32, begin, end);
}

void store_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_BF16, begin, end);
}

void store_f8e4m3_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_F8E4M3, begin, end);
}
