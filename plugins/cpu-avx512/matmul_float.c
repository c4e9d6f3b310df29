/* MATMUL of BF16 and F32 weights (T16) with F32 activations. [worker]
 *
 * Order of the sums, the same for any number of rows: even and odd columns apart, each in ascending order with
 * fma, then even + odd. An output is a lane, so the width of the vectors does not show: the bits are those of cpu-avx2.
 *
 * Up to 8 rows go through the strip in one pass; more rows in blocks of 256 columns (BF16 8, F32 16 KiB, stay in L1)
 * that up to 64 rows use in tiles of 8, their sums waiting in scratch. */
#include "tile.h"

#define BLOCK_K 256u

typedef struct job {
    const ks_matmul_args *a;
    const uint8_t *strip;
} job;

/* Column k + odd of 16 outputs, k even. bf16: its half of the dwords. */
KS_INLINE __m512 load_column(const uint8_t *strip, uint32_t k, uint32_t odd, int bf16)
{
    if (!bf16) return _mm512_load_ps(strip + (size_t)(k + odd) * 64);
    __m512i pair = _mm512_load_si512(strip + (size_t)k * 32);
    pair = odd ? _mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)) : _mm512_slli_epi32(pair, 16);
    return _mm512_castsi512_ps(pair);
}

KS_INLINE void add_column(const job *j, int bf16, const float *const x[TILE], uint32_t rows, uint32_t k, uint32_t odd,
                          __m512 acc[TILE][2])
{
    __m512 w = load_column(j->strip, k, odd, bf16);
    for (uint32_t m = 0; m < rows; m++) acc[m][odd] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[m][k + odd]), acc[m][odd]);
}

/* Columns [k0, k1), k0 even; only the last block of a row may be odd. `at`: the tile's place in scratch. */
KS_INLINE void block_tile(const job *j, int bf16, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1, float *at)
{
    const uint32_t pair_bytes = bf16 ? 64 : 128;
    const float *x[TILE];
    __m512 acc[TILE][2];
    for (uint32_t m = 0; m < rows; m++) {
        x[m] = j->a->x + row_of(j->a, r0 + m) * j->a->x_stride;
        for (uint32_t i = 0; i < 2; i++) acc[m][i] = k0 ? _mm512_load_ps(at + 32 * m + 16 * i) : _mm512_setzero_ps();
    }
    const uint8_t *ahead = j->strip + (size_t)k0 / 2 * pair_bytes + PREFETCH_BYTES;
    uint32_t k = k0;
    for (; k + 2 <= k1; k += 2, ahead += pair_bytes) {
        prefetch(ahead);
        if (!bf16) prefetch(ahead + 64);
        add_column(j, bf16, x, rows, k, 0, acc);
        add_column(j, bf16, x, rows, k, 1, acc);
    }
    if (k < k1) add_column(j, bf16, x, rows, k, 0, acc);
    for (uint32_t m = 0; m < rows; m++)
        for (uint32_t i = 0; i < 2; i++) _mm512_store_ps(at + 32 * m + 16 * i, acc[m][i]);
}

KS_INLINE void run_rows(const job *j, int bf16, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1, float *at)
{
    uint32_t m = 0;
    for (; m + TILE <= rows; m += TILE) block_tile(j, bf16, r0 + m, TILE, k0, k1, at + 32 * m);
    switch (rows - m) { /* a constant number of rows keeps their sums in registers */
    case 1: block_tile(j, bf16, r0 + m, 1, k0, k1, at + 32 * m); break;
    case 2: block_tile(j, bf16, r0 + m, 2, k0, k1, at + 32 * m); break;
    case 3: block_tile(j, bf16, r0 + m, 3, k0, k1, at + 32 * m); break;
    case 4: block_tile(j, bf16, r0 + m, 4, k0, k1, at + 32 * m); break;
    case 5: block_tile(j, bf16, r0 + m, 5, k0, k1, at + 32 * m); break;
    case 6: block_tile(j, bf16, r0 + m, 6, k0, k1, at + 32 * m); break;
    case 7: block_tile(j, bf16, r0 + m, 7, k0, k1, at + 32 * m); break;
    default: break;
    }
}

KS_INLINE void matmul(const ks_matmul_args *a, uint32_t begin, uint32_t end, float *at, int bf16)
{
    job j = { .a = a };
    for (uint32_t s = begin; s < end; s++) {
        j.strip = strip_of(a, s);
        for (uint32_t r0 = 0; r0 < a->n_rows; r0 += CHUNK) {
            uint32_t rows = a->n_rows - r0 < CHUNK ? a->n_rows - r0 : CHUNK, block = rows > TILE ? BLOCK_K : a->n_in;
            for (uint32_t k0 = 0; k0 < a->n_in; k0 += block)
                run_rows(&j, bf16, r0, rows, k0, a->n_in - k0 < block ? a->n_in : k0 + block, at);
            for (uint32_t m = 0; m < rows; m++)
                store_16(a, r0 + m, s, _mm512_add_ps(_mm512_load_ps(at + 32 * m), _mm512_load_ps(at + 32 * m + 16)));
        }
    }
}

void matmul_bf16_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, 1);
}

void matmul_f32_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, 0);
}
