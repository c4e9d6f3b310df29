/* MATMUL of BF16 and F32 weights (T16) with F32 activations. [worker]
 *
 * Order of the sums, the same for any number of rows: even and odd columns apart, each in ascending order with
 * fma, then even + odd. Two chains an output hide enough of the fma's latency for one row to run at memory speed, and
 * let three rows share the registers (12 chains of 8 outputs).
 *
 * Up to 3 rows go through the strip in one pass; more rows in blocks of 256 columns (BF16 8, F32 16 KiB, stay in L1)
 * that up to 48 rows use in tiles of 3, their sums waiting in scratch. */
#include "tile.h"

#define TILE 3u
#define CHUNK 48u
#define BLOCK_K 256u

/* acc[row][8 v outputs][even, odd column] */
typedef __m256 sums[TILE][2][2];

typedef struct job {
    const ks_matmul_args *a;
    const uint8_t *strip;
} job;

/* One column of 16 outputs. bf16: its half of the dwords. */
KS_INLINE void load_column(const uint8_t *w, uint32_t k, int bf16, __m256 ret[2])
{
    for (uint32_t v = 0; v < 2; v++) {
        if (bf16) {
            __m256i d = _mm256_load_si256((const __m256i *)(w + (size_t)(k / 2) * 64 + 32 * v));
            d = k % 2 ? _mm256_and_si256(d, _mm256_set1_epi32((int)0xffff0000u)) : _mm256_slli_epi32(d, 16);
            ret[v] = _mm256_castsi256_ps(d);
        } else {
            ret[v] = _mm256_load_ps((const float *)(const void *)(w + (size_t)k * 64 + 32 * v));
        }
    }
}

KS_INLINE void add_column(const job *j, int bf16, const float *const x[TILE], uint32_t rows, uint32_t k, uint32_t odd,
                          sums acc)
{
    __m256 w[2];
    load_column(j->strip, k + odd, bf16, w);
    for (uint32_t m = 0; m < rows; m++) {
        __m256 xk = _mm256_broadcast_ss(x[m] + k + odd);
        acc[m][0][odd] = _mm256_fmadd_ps(w[0], xk, acc[m][0][odd]);
        acc[m][1][odd] = _mm256_fmadd_ps(w[1], xk, acc[m][1][odd]);
    }
}

/* Columns [k0, k1), k0 even; only the last block of a row may be odd. `at`: the tile's place in scratch. */
KS_INLINE void block_tile(const job *j, int bf16, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1, float *at)
{
    const uint32_t pair_bytes = bf16 ? 64 : 128;
    const float *x[TILE];
    sums acc;
    for (uint32_t m = 0; m < rows; m++) {
        x[m] = j->a->x + row_of(j->a, r0 + m) * j->a->x_stride;
        for (uint32_t i = 0; i < 4; i++)
            acc[m][i / 2][i % 2] = k0 ? _mm256_load_ps(at + 32 * m + 8 * i) : _mm256_setzero_ps();
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
        for (uint32_t i = 0; i < 4; i++) _mm256_store_ps(at + 32 * m + 8 * i, acc[m][i / 2][i % 2]);
}

KS_INLINE void run_rows(const job *j, int bf16, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1, float *at)
{
    uint32_t m = 0;
    for (; m + TILE <= rows; m += TILE) block_tile(j, bf16, r0 + m, TILE, k0, k1, at + 32 * m);
    if (rows - m == 2) block_tile(j, bf16, r0 + m, 2, k0, k1, at + 32 * m);
    if (rows - m == 1) block_tile(j, bf16, r0 + m, 1, k0, k1, at + 32 * m);
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
            for (uint32_t m = 0; m < rows; m++) {
                const float *p = at + 32 * m;
                store_16(a, r0 + m, s, _mm256_add_ps(_mm256_load_ps(p), _mm256_load_ps(p + 8)),
                         _mm256_add_ps(_mm256_load_ps(p + 16), _mm256_load_ps(p + 24)));
            }
        }
    }
}

void matmul_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, 1);
}

void matmul_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, 0);
}
