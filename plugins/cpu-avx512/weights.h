/* The scales of quantized weights, 16 output rows at once. No state. [any] */
#ifndef KS_AVX512_WEIGHTS_H
#define KS_AVX512_WEIGHTS_H

#include "tile.h"

/* 2^(e - 127) / 2 for 16 rows. The factor 1/2 is applied to the float so that e = 1 comes out right; e = 0
 * (2^-128) and 255 (NaN) have no such form and are put in. */
KS_INLINE __m512 e8m0_half_16(const uint8_t *p)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p));
    __m512 f = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(e, 23)), _mm512_set1_ps(0.5f));
    f = _mm512_mask_mov_ps(f, _mm512_cmpeq_epi32_mask(e, _mm512_setzero_si512()), _mm512_set1_ps(0x1p-128f));
    return _mm512_mask_mov_ps(f, _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255)),
                              _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

KS_INLINE size_t scales_bytes(uint32_t wtype) /* of one group of a strip */
{
    return wtype == KS_T_MXFP4 ? 16 : 32;
}

/* The scales of one group. MXFP4: half of them, since its values are taken twice. */
KS_INLINE __m512 scales_16(const uint8_t *p, uint32_t wtype)
{
    if (wtype == KS_T_MXFP4) return e8m0_half_16(p);
    __m512i h = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}

#endif
