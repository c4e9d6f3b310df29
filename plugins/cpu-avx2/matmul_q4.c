/* MATMUL of I4 and MXFP4 weights (T16) with Q8 activations; bit-exact by kernels.h. [worker]
 *
 * A nibble becomes an unsigned byte u (I4: the nibble, weight + 8; MXFP4: twice the e2m1 value + 12, from a
 * table), so that maddubs(u, q) gives sums of two products in 16 bits. How many may be added there before
 * they are widened: I4 |2 * 15 * 127| = 3810, eight give 30,480; MXFP4 |2 * 24 * 127| = 6096, five give 30,480; the
 * limit is 32,767. We use eight (32 columns) and four (16 columns). The offset is taken back once a group
 * with the sums that come with the activations: dot(u - c, q) = dot(u, q) - c * sum(q).
 *
 * One row starts its sums of 16 bits from what the offset will have added, for 64 columns of I4, 32 of MXFP4. On the
 * way they may wrap around; at the end they hold the true sum, at most 16 * 2 * 8 * 127 = 32,512 or 8 * 2 * 12 * 127 =
 * 24,384. It goes through two strips at once: what depends on the row only is done once, and two streams come from
 * memory.
 *
 * Up to 8 rows: nibbles are unpacked in registers while they stream from memory, for 4 rows at a time. More: a block
 * of 1024 columns of a strip is unpacked once into scratch (16 KiB, stays in L1) and used by up to 64 rows in tiles of
 * 4. */
#include "weights.h"

#define TILE 4u       /* rows a tile: 8 sums of 16 bits, 4 weights and a few temporaries fill the 16 registers */
#define FEW 8u        /* rows that unpack for themselves: a second tile finds the strip in a cache */
#define CHUNK 64u     /* rows that share an unpacked block */
#define BLOCK_K 1024u /* columns of it; a multiple of every group size */

typedef struct job {
    const ks_matmul_args *a;
    const uint8_t *strip, *scales, *next_scales;
    uint32_t n_in; /* padded */
} job;

/* sum += u * q for 4 columns of 16 output rows and `rows` activation rows; the first ones begin it. */
KS_INLINE void quad_step(__m256i u0, __m256i u1, const act_row *x, uint32_t rows, uint32_t k, int first,
                         __m256i sum[TILE][2])
{
    for (uint32_t m = 0; m < rows; m++) {
        __m256i q = quad(x[m].q + k), p0 = _mm256_maddubs_epi16(u0, q), p1 = _mm256_maddubs_epi16(u1, q);
        if (first) {
            sum[m][0] = p0;
            sum[m][1] = p1;
        } else {
            add_words(&sum[m][0], p0);
            add_words(&sum[m][1], p1);
        }
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
KS_INLINE void run_step(const uint8_t *w, int packed, int mx, const act_row *x, uint32_t rows, uint32_t k,
                        __m256i isum[TILE][2])
{
    __m256i sum[TILE][2];
    for (uint32_t i = 0; i < (mx ? 2u : 4u); i++, k += 8, w += packed ? 64 : 128) {
        __m256i u[4]; /* rows 0..7 and 8..15 of columns 0..3, then of 4..7 */
        for (uint32_t v = 0; v < 4; v++)
            u[v] = packed ? unpack(w + 32 * (v % 2), v / 2, mx) : _mm256_load_si256((const __m256i *)(w + 32 * v));
        if (packed) prefetch(w + PREFETCH_BYTES);
        quad_step(u[0], u[1], x, rows, k, i == 0, sum);
        quad_step(u[2], u[3], x, rows, k + 4, 0, sum);
    }
    widen(sum, rows, isum);
}

/* The products of group [g0, g1) with one tile join acc. w: as in run_step; scale: of the group; off: what each row's
 * sum starts from. */
KS_INLINE void run_group(const uint8_t *w, int packed, int mx, const act_row *x, uint32_t rows, uint32_t g0,
                         uint32_t g1, const int32_t *off, size_t off_stride, const __m256 scale[2], __m256 acc[TILE][2])
{
    const uint32_t step_k = mx ? 16 : 32;
    __m256i isum[TILE][2];
    for (uint32_t m = 0; m < rows; m++) isum[m][0] = isum[m][1] = _mm256_set1_epi32(off[m * off_stride]);
    for (uint32_t k = g0; k < g1; k += step_k, w += step_k * (packed ? 8 : 16))
        run_step(w, packed, mx, x, rows, k, isum);
    for (uint32_t m = 0; m < rows; m++) add_group(acc[m], isum[m], scale, x[m].scale[g0 / 128]);
}

/* Up to TILE rows from r0 on, weights straight from memory. */
KS_INLINE void few_rows(const job *j, uint32_t s, uint32_t r0, uint32_t rows, int mx)
{
    const uint32_t group = j->a->group, wtype = mx ? KS_T_MXFP4 : KS_T_I4;
    act_row x[TILE];
    __m256 acc[TILE][2];
    rows_at(j->a, r0, rows, x);
    for (uint32_t m = 0; m < rows; m++) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    for (uint32_t g0 = 0; g0 < j->n_in; g0 += group) {
        uint32_t g1 = g0 + group < j->n_in ? g0 + group : j->n_in;
        size_t at = g0 / group * scales_bytes(wtype);
        int32_t off[TILE];
        for (uint32_t m = 0; m < rows; m++) off[m] = minus_offset(x + m, wtype, g0, g1);
        __m256 ws[2];
        scales_16(j->scales + at, wtype, ws);
        prefetch(j->next_scales + at);
        run_group(j->strip + (size_t)g0 * 8, 1, mx, x, rows, g0, g1, off, 1, ws, acc);
    }
    for (uint32_t m = 0; m < rows; m++) store_16(j->a, r0 + m, s, acc[m][0], acc[m][1]);
}

/* What sums of 16 bits over columns [0, n) start from, so that the offset of the weights is gone at their end: a lane
 * gets the columns 0, 1 or 2, 3 of each quad. n: 32 or 64. */
KS_INLINE __m256i minus_offset_pairs(const int8_t *q, uint32_t n, uint32_t wtype)
{
    const __m256i c = _mm256_set1_epi8((char)offset_of(wtype));
    __m256i p = _mm256_maddubs_epi16(c, _mm256_loadu_si256((const __m256i *)q));
    if (n > 32) p = _mm256_add_epi16(p, _mm256_maddubs_epi16(c, _mm256_loadu_si256((const __m256i *)(q + 32))));
    __m128i t = _mm_add_epi16(_mm256_castsi256_si128(p), _mm256_extracti128_si256(p, 1));
    t = _mm_add_epi16(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi16(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm256_broadcastd_epi32(_mm_sub_epi16(_mm_setzero_si128(), t));
}

/* Four columns of 16 outputs of one row. */
KS_INLINE void add_quad(const uint8_t *w, uint32_t high, int mx, __m256i q, __m256i sum[2])
{
    for (uint32_t v = 0; v < 2; v++) add_words(&sum[v], _mm256_maddubs_epi16(unpack(w + 32 * v, high, mx), q));
}

/* One row, `strips` of weights (1 or 2, which share all that depends on the row only) straight from memory. */
KS_INLINE void one_row(const job *j, uint32_t s, uint32_t strips, int mx)
{
    const uint32_t group = j->a->group, wtype = mx ? KS_T_MXFP4 : KS_T_I4;
    const size_t next = j->a->strip_bytes;
    const uint8_t *w = j->strip;
    act_row x;
    __m256 acc[2][2];
    rows_at(j->a, 0, 1, &x);
    for (uint32_t i = 0; i < 2 * strips; i++) acc[i / 2][i % 2] = _mm256_setzero_ps();
    for (uint32_t g0 = 0; g0 < j->n_in; g0 += group) {
        uint32_t g1 = g0 + group < j->n_in ? g0 + group : j->n_in;
        __m256i isum[TILE][2], sum[TILE][2];
        for (uint32_t i = 0; i < 2 * strips; i++) isum[i / 2][i % 2] = _mm256_setzero_si256();
        for (uint32_t k0 = g0; k0 < g1;) {
            uint32_t k1 = !mx && g1 - k0 >= 64 ? k0 + 64 : k0 + 32;
            sum[0][0] = minus_offset_pairs(x.q + k0, k1 - k0, wtype);
            sum[0][1] = sum[1][0] = sum[1][1] = sum[0][0];
            for (; k0 < k1; k0 += 8, w += 64) {
                __m256i lo = quad(x.q + k0), hi = quad(x.q + k0 + 4);
                for (uint32_t i = 0; i < strips; i++) {
                    prefetch(w + i * next + PREFETCH_BYTES);
                    add_quad(w + i * next, 0, mx, lo, sum[i]);
                    add_quad(w + i * next, 1, mx, hi, sum[i]);
                }
            }
            widen(sum, strips, isum);
        }
        for (uint32_t i = 0; i < strips; i++) {
            size_t at = g0 / group * scales_bytes(wtype) + i * next;
            __m256 ws[2];
            scales_16(j->scales + at, wtype, ws);
            prefetch(j->next_scales + next * (strips - 1) + at);
            add_group(acc[i], isum[i], ws, x.scale[g0 / 128]);
        }
    }
    for (uint32_t i = 0; i < strips; i++) store_16(j->a, 0, s + i, acc[i][0], acc[i][1]);
}

/* What all rows of a chunk use of a strip: columns [k0, k1) as bytes, per 8 columns the lo, then the hi quads of 16
 * rows; and the scales of their groups. */
typedef struct block {
    uint8_t bytes[BLOCK_K * 16];
    float scales[BLOCK_K / 32][16];
    float sums[CHUNK][16]; /* of the columns before */
} block;
_Static_assert(sizeof(block) <= MATMUL_SCRATCH_BYTES, "a block is the worker's scratch");

KS_INLINE void unpack_block(const job *j, uint32_t k0, uint32_t k1, int mx, block *b)
{
    const uint32_t wtype = mx ? KS_T_MXFP4 : KS_T_I4;
    const uint8_t *p = j->strip + (size_t)k0 * 8;
    uint8_t *dst = b->bytes;
    for (uint32_t k = k0; k < k1; k += 8, p += 64, dst += 128) {
        prefetch(p + PREFETCH_BYTES);
        for (uint32_t i = 0; i < 4; i++)
            _mm256_store_si256((__m256i *)(dst + 32 * i), unpack(p + 32 * (i % 2), i / 2, mx));
    }
    for (uint32_t k = k0, i = 0; k < k1; k += j->a->group, i++) {
        size_t at = k / j->a->group * scales_bytes(wtype);
        __m256 ws[2];
        scales_16(j->scales + at, wtype, ws);
        prefetch(j->next_scales + at);
        _mm256_store_ps(b->scales[i], ws[0]);
        _mm256_store_ps(b->scales[i] + 8, ws[1]);
    }
}

/* Rows [m, m + rows) of a chunk over one block. */
KS_INLINE void block_tile(const job *j, block *b, uint32_t r0, uint32_t m, uint32_t rows, uint32_t k0, uint32_t k1,
                          int mx)
{
    const uint32_t group = j->a->group;
    const uint8_t *w = b->bytes;
    int32_t off[TILE][BLOCK_K / 32]; /* all at once, well before their use */
    act_row x[TILE];
    __m256 acc[TILE][2];
    float *sums = b->sums[m];
    rows_at(j->a, r0 + m, rows, x);
    for (uint32_t i = 0; i < rows; i++) minus_offsets(x + i, mx ? KS_T_MXFP4 : KS_T_I4, group, k0, k1, off[i]);
    for (uint32_t i = 0; i < 2 * rows; i++) acc[i / 2][i % 2] = k0 ? _mm256_load_ps(sums + 8 * i) : _mm256_setzero_ps();
    for (uint32_t g0 = k0, g = 0; g0 < k1; g0 += group, g++, w += group * 16) {
        __m256 ws[2] = { _mm256_load_ps(b->scales[g]), _mm256_load_ps(b->scales[g] + 8) };
        run_group(w, 0, mx, x, rows, g0, g0 + group < k1 ? g0 + group : k1, &off[0][g], BLOCK_K / 32, ws, acc);
    }
    for (uint32_t i = 0; i < 2 * rows; i++) _mm256_store_ps(sums + 8 * i, acc[i / 2][i % 2]);
}

/* Up to CHUNK rows from r0 on. */
KS_INLINE void many_rows(const job *j, uint32_t s, uint32_t r0, uint32_t rows, int mx, block *b)
{
    for (uint32_t k0 = 0; k0 < j->n_in; k0 += BLOCK_K) {
        uint32_t k1 = k0 + BLOCK_K < j->n_in ? k0 + BLOCK_K : j->n_in, m = 0;
        unpack_block(j, k0, k1, mx, b);
        for (; m + TILE <= rows; m += TILE) block_tile(j, b, r0, m, TILE, k0, k1, mx);
        switch (rows - m) { /* a constant number of rows keeps their sums in registers */
        case 1: block_tile(j, b, r0, m, 1, k0, k1, mx); break;
        case 2: block_tile(j, b, r0, m, 2, k0, k1, mx); break;
        case 3: block_tile(j, b, r0, m, 3, k0, k1, mx); break;
        default: break;
        }
    }
    for (uint32_t m = 0; m < rows; m++)
        store_16(j->a, r0 + m, s, _mm256_load_ps(b->sums[m]), _mm256_load_ps(b->sums[m] + 8));
}

KS_INLINE void matmul(const ks_matmul_args *a, uint32_t begin, uint32_t end, void *scratch, int mx)
{
    job j = { .a = a, .n_in = ks_t16_n_in(a->n_in) };
    size_t values = ks_t16_values_bytes(KS_T_I4, a->n_in);
    for (uint32_t s = begin; s < end; s++) {
        j.strip = strip_of(a, s);
        j.scales = j.strip + values;
        j.next_scales = j.scales + a->strip_bytes;
        if (a->n_rows == 1) {
            if (end - s > 1)
                one_row(&j, s++, 2, mx);
            else
                one_row(&j, s, 1, mx);
        } else if (a->n_rows <= FEW) {
            uint32_t r = 0;
            for (; r + TILE <= a->n_rows; r += TILE) few_rows(&j, s, r, TILE, mx);
            switch (a->n_rows - r) {
            case 1: few_rows(&j, s, r, 1, mx); break;
            case 2: few_rows(&j, s, r, 2, mx); break;
            case 3: few_rows(&j, s, r, 3, mx); break;
            default: break;
            }
        } else {
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
