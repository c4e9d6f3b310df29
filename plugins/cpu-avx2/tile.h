/* What the matmul files share: writing 16 outputs of a row, scales, prefetch. [any] */
#ifndef KS_AVX2_TILE_H
#define KS_AVX2_TILE_H

#include "rows.h"
#include "simd.h"

/* Weights are read once, in one direction, faster than the hardware prefetcher runs ahead: every line is asked for
 * this many bytes before its use (kernels measured best between 1 and 4 KiB). Beyond the end of the
 * matrix a prefetch does nothing. */
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

/* Writes outputs 16 s .. 16 s + 15 of row r (fewer in the last strip), bias added. */
KS_INLINE void store_16(const ks_matmul_args *a, uint32_t r, uint32_t s, __m256 lo, __m256 hi)
{
    uint32_t o = s * 16, n = a->n_out - o;
    float *y = a->y + r * a->y_stride + o;
    if (n >= 16) {
        if (a->bias) {
            lo = _mm256_add_ps(lo, _mm256_loadu_ps(a->bias + o));
            hi = _mm256_add_ps(hi, _mm256_loadu_ps(a->bias + o + 8));
        }
        _mm256_storeu_ps(y, lo);
        _mm256_storeu_ps(y + 8, hi);
        return;
    }
    __m256i m_lo = mask_first(n), m_hi = mask_first(n > 8 ? n - 8 : 0);
    if (a->bias) {
        lo = _mm256_add_ps(lo, _mm256_maskload_ps(a->bias + o, m_lo));
        if (n > 8) hi = _mm256_add_ps(hi, _mm256_maskload_ps(a->bias + o + 8, m_hi));
    }
    _mm256_maskstore_ps(y, m_lo, lo);
    if (n > 8) _mm256_maskstore_ps(y + 8, m_hi, hi);
}

/* Eight bf16 scales. */
KS_INLINE __m256 bf16_8(const uint8_t *p)
{
    __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
}

/* Four activations of a row in every lane. */
KS_INLINE __m256i quad(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}

/* sum += x in 16 or 32 bits, in the register of the sum. With the intrinsics gcc gives every sum of an unrolled loop a
 * new register and copies it back, or keeps it in memory: a third of the speed. */
KS_INLINE void add_words(__m256i *sum, __m256i x)
{
    __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(x));
}

KS_INLINE void add_dwords(__m256i *sum, __m256i x)
{
    __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(x));
}

/* The running sums of group g join the outputs: acc = fma(isum, wscale * xscale, acc). */
KS_INLINE void add_group(__m256 acc[2], const __m256i isum[2], const __m256 wscale[2], float xscale)
{
    __m256 xs = _mm256_set1_ps(xscale);
    for (uint32_t v = 0; v < 2; v++)
        acc[v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[v]), _mm256_mul_ps(wscale[v], xs), acc[v]);
}

#endif
