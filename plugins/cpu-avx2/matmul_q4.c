/* MATMUL of I4 and MXFP4 weights (T16) with Q8 activations; bit-exact by kernels.h. [worker]
 *
 * A nibble becomes an unsigned byte u (I4: the nibble, weight + 8; MXFP4: twice the e2m1 value + 12, from a
 * table), so that maddubs(u, q) gives sums of two products in 16 bits. How many may be added there before
 * they are widened: I4 |2 * 15 * 127| = 3810, eight give 30,480; MXFP4 |2 * 24 * 127| = 6096, five give 30,480; the
 * limit is 32,767. We use eight (32 columns) and four (16 columns). The offset is taken back once a group
 * with the sums that come with the activations: dot(u - c, q) = dot(u, q) - c * sum(q).
 *
 * Up to 2 rows: nibbles are unpacked in registers while they stream from memory. More: a block of 512 columns
 * of a strip is unpacked once into scratch (8 KiB, stays in L1) and used by up to 64 rows in tiles of 4. */
#include "tile.h"

#define TILE 4u      /* rows a tile: 8 sums of 16 bits, 4 weights and a few temporaries fill the 16 registers */
#define CHUNK 64u    /* rows that share an unpacked block */
#define BLOCK_K 512u /* columns of it; a multiple of every group size */
#define BLOCK_BYTES (BLOCK_K * 16)

typedef struct job {
    const ks_matmul_args *a;
    const uint8_t *strip, *scales, *next_scales;
    uint32_t n_in; /* padded */
} job;

/* Where four rows of activations lie. */
typedef struct tile {
    const int8_t *q[TILE];
    const float *xscale[TILE];
    const int32_t *sum[TILE];
} tile;

KS_INLINE void tile_at(const ks_matmul_args *a, uint32_t r0, uint32_t rows, tile *t)
{
    for (uint32_t m = 0; m < rows; m++) {
        size_t row = row_of(a, r0 + m);
        t->q[m] = a->act->q + row * a->act->q_stride;
        t->xscale[m] = a->act->scale + row * a->act->scale_stride;
        t->sum[m] = a->act->sum + row * a->act->sum_stride;
    }
}

/* Four columns of eight rows out of 32 bytes of nibbles: columns 0..3 of 8, or 4..7. */
KS_INLINE __m256i unpack(const uint8_t *p, uint32_t high, int mx)
{
    __m256i b = _mm256_load_si256((const __m256i *)p);
    b = _mm256_and_si256(high ? _mm256_srli_epi16(b, 4) : b, _mm256_set1_epi8(15));
    if (!mx) return b;
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm256_shuffle_epi8(table, b);
}

/* sum += u * q for 4 columns of 16 output rows and `rows` activation rows. */
KS_INLINE void quad_step(__m256i u0, __m256i u1, const tile *t, uint32_t rows, uint32_t k, __m256i sum[TILE][2])
{
    for (uint32_t m = 0; m < rows; m++) {
        __m256i q = quad(t->q[m] + k);
        sum[m][0] = _mm256_add_epi16(sum[m][0], _mm256_maddubs_epi16(u0, q));
        sum[m][1] = _mm256_add_epi16(sum[m][1], _mm256_maddubs_epi16(u1, q));
    }
}

KS_INLINE void widen(__m256i sum[TILE][2], uint32_t rows, __m256i isum[TILE][2])
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (uint32_t m = 0; m < rows; m++)
        for (uint32_t v = 0; v < 2; v++) isum[m][v] = _mm256_add_epi32(isum[m][v], _mm256_madd_epi16(sum[m][v], ones));
}

/* `width` columns from k on: 32, or 16 for mxfp4. w: packed nibbles, or unpacked bytes in the order that
 * unpack_block writes. */
KS_INLINE void run_step(const uint8_t *w, int packed, int mx, const tile *t, uint32_t rows, uint32_t k,
                        __m256i isum[TILE][2])
{
    __m256i sum[TILE][2];
    for (uint32_t m = 0; m < rows; m++) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
    for (uint32_t i = 0; i < (mx ? 2u : 4u); i++, k += 8, w += packed ? 64 : 128) {
        __m256i u[4]; /* rows 0..7 and 8..15 of columns 0..3, then of 4..7 */
        for (uint32_t v = 0; v < 4; v++)
            u[v] = packed ? unpack(w + 32 * (v % 2), v / 2, mx) : _mm256_load_si256((const __m256i *)(w + 32 * v));
        if (packed) prefetch(w + PREFETCH_BYTES);
        quad_step(u[0], u[1], t, rows, k, sum);
        quad_step(u[2], u[3], t, rows, k + 4, sum);
    }
    widen(sum, rows, isum);
}

/* 2^(e - 127) / 2 for 8 rows. The factor 1/2 is applied to the float so that e = 1 comes out right; e = 0
 * (2^-128) and 255 (NaN) have no such form and are put in. */
KS_INLINE __m256 e8m0_half_8(const uint8_t *p)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256 f = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(e, 23)), _mm256_set1_ps(0.5f));
    f = _mm256_blendv_ps(f, _mm256_set1_ps(0x1p-128f),
                         _mm256_castsi256_ps(_mm256_cmpeq_epi32(e, _mm256_setzero_si256())));
    return _mm256_or_ps(f, _mm256_castsi256_ps(_mm256_cmpeq_epi32(e, _mm256_set1_epi32(255))));
}

/* Columns [k0, k1) of one tile, k0 a multiple of the group; w as in run_step. */
KS_INLINE void run_tile(const job *j, const uint8_t *w, int packed, int mx, const tile *t, uint32_t rows, uint32_t k0,
                        uint32_t k1, __m256 acc[TILE][2])
{
    const uint32_t group = j->a->group, step_k = mx ? 16 : 32, step_bytes = step_k * (packed ? 8 : 16);
    for (uint32_t g0 = k0; g0 < k1; g0 += group) {
        uint32_t g1 = g0 + group < k1 ? g0 + group : k1, g = g0 / group;
        __m256i isum[TILE][2];
        for (uint32_t m = 0; m < rows; m++) {
            int32_t s = 0;
            for (uint32_t k = g0; k < g1; k += 32) s += t->sum[m][k / 32];
            isum[m][0] = isum[m][1] = _mm256_set1_epi32(-(mx ? 12 : 8) * s);
        }
        for (uint32_t k = g0; k < g1; k += step_k, w += step_bytes) run_step(w, packed, mx, t, rows, k, isum);
        __m256 ws[2];
        if (mx) {
            const uint8_t *p = j->scales + (size_t)g * 16;
            ws[0] = e8m0_half_8(p);
            ws[1] = e8m0_half_8(p + 8);
            if (packed) prefetch(j->next_scales + (size_t)g * 16);
        } else {
            const uint8_t *p = j->scales + (size_t)g * 32;
            ws[0] = bf16_8(p);
            ws[1] = bf16_8(p + 16);
            if (packed) prefetch(j->next_scales + (size_t)g * 32);
        }
        for (uint32_t m = 0; m < rows; m++) add_group(acc[m], isum[m], ws, t->xscale[m][g0 / 128]);
    }
}

/* A few rows, weights straight from memory. */
KS_INLINE void few_rows(const job *j, uint32_t s, uint32_t rows, int mx)
{
    tile t;
    __m256 acc[TILE][2];
    tile_at(j->a, 0, rows, &t);
    for (uint32_t m = 0; m < rows; m++) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    run_tile(j, j->strip, 1, mx, &t, rows, 0, j->n_in, acc);
    for (uint32_t m = 0; m < rows; m++) store_16(j->a, m, s, acc[m][0], acc[m][1]);
}

/* n_k columns of a strip to bytes: per 8 columns the lo, then the hi quads of 16 rows. */
KS_INLINE void unpack_block(const uint8_t *p, uint32_t n_k, int mx, uint8_t *dst)
{
    for (uint32_t k = 0; k < n_k; k += 8, p += 64, dst += 128) {
        prefetch(p + PREFETCH_BYTES);
        for (uint32_t i = 0; i < 4; i++)
            _mm256_store_si256((__m256i *)(dst + 32 * i), unpack(p + 32 * (i % 2), i / 2, mx));
    }
}

/* One tile of a chunk over one block; the sums of earlier blocks wait in `sums`. */
KS_INLINE void block_tile(const job *j, const uint8_t *bytes, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1,
                          int mx, float *sums)
{
    tile t;
    __m256 acc[TILE][2];
    tile_at(j->a, r0, rows, &t);
    for (uint32_t m = 0; m < rows; m++)
        for (uint32_t v = 0; v < 2; v++) acc[m][v] = k0 ? _mm256_load_ps(sums + 16 * m + 8 * v) : _mm256_setzero_ps();
    run_tile(j, bytes, 0, mx, &t, rows, k0, k1, acc);
    for (uint32_t m = 0; m < rows; m++)
        for (uint32_t v = 0; v < 2; v++) _mm256_store_ps(sums + 16 * m + 8 * v, acc[m][v]);
}

/* Up to CHUNK rows from r0 on. scratch: BLOCK_BYTES of weights, then 16 sums a row. */
KS_INLINE void many_rows(const job *j, uint32_t s, uint32_t r0, uint32_t rows, int mx, uint8_t *scratch)
{
    float *sums = (float *)(void *)(scratch + BLOCK_BYTES);
    for (uint32_t k0 = 0; k0 < j->n_in; k0 += BLOCK_K) {
        uint32_t k1 = k0 + BLOCK_K < j->n_in ? k0 + BLOCK_K : j->n_in, m = 0;
        unpack_block(j->strip + (size_t)k0 * 8, k1 - k0, mx, scratch);
        for (; m + TILE <= rows; m += TILE) block_tile(j, scratch, r0 + m, TILE, k0, k1, mx, sums + 16 * m);
        switch (rows - m) {
        case 1: block_tile(j, scratch, r0 + m, 1, k0, k1, mx, sums + 16 * m); break;
        case 2: block_tile(j, scratch, r0 + m, 2, k0, k1, mx, sums + 16 * m); break;
        case 3: block_tile(j, scratch, r0 + m, 3, k0, k1, mx, sums + 16 * m); break;
        default: break;
        }
    }
    for (uint32_t m = 0; m < rows; m++)
        store_16(j->a, r0 + m, s, _mm256_load_ps(sums + 16 * m), _mm256_load_ps(sums + 16 * m + 8));
}

KS_INLINE void matmul(const ks_matmul_args *a, uint32_t begin, uint32_t end, void *scratch, int mx)
{
    job j = { .a = a, .n_in = ks_t16_n_in(a->n_in) };
    size_t values = ks_t16_values_bytes(KS_T_I4, a->n_in);
    for (uint32_t s = begin; s < end; s++) {
        j.strip = strip_of(a, s);
        j.scales = j.strip + values;
        j.next_scales = j.scales + a->strip_bytes;
        switch (a->n_rows) {
        case 1: few_rows(&j, s, 1, mx); break;
        case 2: few_rows(&j, s, 2, mx); break;
        default:
            for (uint32_t r = 0; r < a->n_rows; r += CHUNK)
                many_rows(&j, s, r, a->n_rows - r < CHUNK ? a->n_rows - r : CHUNK, mx, scratch);
        }
    }
}

void matmul_i4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, 0);
}

void matmul_mxfp4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, 1);
}
