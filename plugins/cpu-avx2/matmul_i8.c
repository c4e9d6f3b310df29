/* MATMUL of I8 weights (T16) with Q8 activations; bit-exact by kernels.h. [worker]
 *
 * maddubs wants an unsigned operand: |w| with the weight's sign moved to the activation. A sum of two products is
 * at most 2 * 128 * 127 = 32,512 (w = -128 included; q is never -128), which fits 16 bits, but
 * not twice; so every result is widened at once.
 *
 * Up to 4 rows go through the strip in one pass; more rows in blocks of 512 columns (8 KiB, stay in L1)
 * that up to 64 rows use in tiles of 4, their sums waiting in scratch. */
#include "tile.h"

#define TILE 4u
#define CHUNK 64u
#define BLOCK_K 512u

typedef struct tile {
    const int8_t *q[TILE];
    const float *xscale[TILE];
} tile;

typedef struct job {
    const ks_matmul_args *a;
    const uint8_t *strip, *scales, *next_scales;
} job;

KS_INLINE __m256i dot_quads(__m256i magnitude, __m256i w, __m256i q)
{
    __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(q, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Columns [k0, k1), k0 a multiple of the group. ahead: nobody has asked for the weights yet. */
KS_INLINE void run_tile(const job *j, const tile *t, uint32_t rows, uint32_t k0, uint32_t k1, int ahead,
                        __m256 acc[TILE][2])
{
    const uint32_t group = j->a->group;
    const uint8_t *w = j->strip + (size_t)k0 * 16;
    for (uint32_t g0 = k0; g0 < k1; g0 += group) {
        uint32_t g1 = g0 + group < k1 ? g0 + group : k1;
        const uint8_t *p = j->scales + (size_t)(g0 / group) * 32;
        __m256i isum[TILE][2];
        for (uint32_t m = 0; m < rows; m++) isum[m][0] = isum[m][1] = _mm256_setzero_si256();
        for (uint32_t k = g0; k < g1; k += 4, w += 64) {
            __m256i w0 = _mm256_load_si256((const __m256i *)w), w1 = _mm256_load_si256((const __m256i *)(w + 32));
            __m256i a0 = _mm256_abs_epi8(w0), a1 = _mm256_abs_epi8(w1);
            if (ahead) prefetch(w + PREFETCH_BYTES);
            for (uint32_t m = 0; m < rows; m++) {
                __m256i q = quad(t->q[m] + k);
                add_dwords(&isum[m][0], dot_quads(a0, w0, q));
                add_dwords(&isum[m][1], dot_quads(a1, w1, q));
            }
        }
        __m256 ws[2] = { bf16_8(p), bf16_8(p + 16) };
        if (ahead) prefetch(j->next_scales + (size_t)(g0 / group) * 32);
        for (uint32_t m = 0; m < rows; m++) add_group(acc[m], isum[m], ws, t->xscale[m][g0 / 128]);
    }
}

/* One tile over [k0, k1). sums: where the sums of the columns before k0 are and the new ones go. */
KS_INLINE void block_tile(const job *j, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1, int ahead, float *sums)
{
    tile t;
    __m256 acc[TILE][2];
    for (uint32_t m = 0; m < rows; m++) {
        size_t row = row_of(j->a, r0 + m);
        t.q[m] = j->a->act->q + row * j->a->act->q_stride;
        t.xscale[m] = j->a->act->scale + row * j->a->act->scale_stride;
        for (uint32_t v = 0; v < 2; v++) acc[m][v] = k0 ? _mm256_load_ps(sums + 16 * m + 8 * v) : _mm256_setzero_ps();
    }
    run_tile(j, &t, rows, k0, k1, ahead, acc);
    for (uint32_t m = 0; m < rows; m++)
        for (uint32_t v = 0; v < 2; v++) _mm256_store_ps(sums + 16 * m + 8 * v, acc[m][v]);
}

/* The first tile fetches what all others use. */
static void run_rows(const job *j, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1, float *sums)
{
    uint32_t m = rows < TILE ? 0 : TILE;
    if (m) block_tile(j, r0, TILE, k0, k1, 1, sums);
    for (; m + TILE <= rows; m += TILE) block_tile(j, r0 + m, TILE, k0, k1, 0, sums + 16 * m);
    switch (rows - m) {
    case 1: block_tile(j, r0 + m, 1, k0, k1, 1, sums + 16 * m); break;
    case 2: block_tile(j, r0 + m, 2, k0, k1, 1, sums + 16 * m); break;
    case 3: block_tile(j, r0 + m, 3, k0, k1, 1, sums + 16 * m); break;
    default: break;
    }
}

void matmul_i8_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_matmul_args *a = args;
    float *sums = scratch; /* (CHUNK, 16) */
    job j = { .a = a };
    size_t values = ks_t16_values_bytes(KS_T_I8, a->n_in);
    uint32_t n_in = ks_t16_n_in(a->n_in);
    for (uint32_t s = begin; s < end; s++) {
        j.strip = strip_of(a, s);
        j.scales = j.strip + values;
        j.next_scales = j.scales + a->strip_bytes;
        for (uint32_t r0 = 0; r0 < a->n_rows; r0 += CHUNK) {
            uint32_t rows = a->n_rows - r0 < CHUNK ? a->n_rows - r0 : CHUNK, block = rows > TILE ? BLOCK_K : n_in;
            for (uint32_t k0 = 0; k0 < n_in; k0 += block)
                run_rows(&j, r0, rows, k0, n_in - k0 < block ? n_in : k0 + block, sums);
            for (uint32_t m = 0; m < rows; m++)
                store_16(a, r0 + m, s, _mm256_load_ps(sums + 16 * m), _mm256_load_ps(sums + 16 * m + 8));
        }
    }
}
