/* What the kernels share: writing 16 outputs of a row, scales, prefetch. No state. [any] */
#ifndef KS_AVX512_TILE_H
#define KS_AVX512_TILE_H

#include "rows.h"
#include <immintrin.h>
#include <string.h>

#define KS_INLINE static inline __attribute__((always_inline))

#define TILE 8u /* rows that share the registers: two chains of sums each, and one pointer each */

/* Weights are read once, in one direction, faster than the hardware prefetcher runs ahead: every line is asked for
 * this many bytes before its use. Beyond the end of the matrix a prefetch does nothing. */
#define PREFETCH_BYTES 2048u

KS_INLINE void prefetch(const uint8_t *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

KS_INLINE const uint8_t *strip_of(const ks_matmul_args *a, uint32_t s)
{
    return (const uint8_t *)a->w + s * a->strip_bytes;
}

KS_INLINE size_t row_of(const ks_matmul_args *a, uint32_t r)
{
    return a->rows ? a->rows[r] : r;
}

/* The first n lanes. Masked loads and stores do not touch the bytes of the other lanes. */
KS_INLINE __mmask16 mask_first(uint32_t n)
{
    return n >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}

/* Writes outputs 16 s .. 16 s + 15 of row r (fewer in the last strip), bias added. */
KS_INLINE void store_16(const ks_matmul_args *a, uint32_t r, uint32_t s, __m512 v)
{
    uint32_t o = s * 16;
    __mmask16 real = mask_first(a->n_out - o);
    if (a->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(real, a->bias + o));
    _mm512_mask_storeu_ps(a->y + r * a->y_stride + o, real, v);
}

#endif
