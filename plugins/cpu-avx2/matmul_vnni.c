/* MATMUL of I4, I8 and MXFP4 weights (T16) with Q8 activations for CPUs with AVX-VNNI; bit-exact by kernels.h. [worker]
 *
 * vpdpbusd adds four products of an unsigned and a signed byte to 32 bits, so weights become unsigned (weights.h) and
 * nothing can overflow. Up to 4 rows: weights are unpacked in registers while they stream from memory. More: a block of
 * 512 columns of a strip is unpacked once into scratch (8 KiB, stays in L1) and used by up to 96 rows in tiles of 6:
 * 12 sums, 2 weights and an activation fill 15 of the 16 registers, and 12 sums hide the latency of 5 at two a cycle.
 */
#include "weights.h"

#define FEW 4u
#define TILE 6u
#define CHUNK 96u
#define BLOCK_K 512u /* a multiple of every group size */

typedef struct job {
    const ks_matmul_args *a;
    const uint8_t *strip, *scales, *next_scales;
    uint32_t n_in; /* padded */
} job;

/* Weights of 8 columns: packed, or unpacked by unpack_block. */
KS_INLINE uint32_t step_bytes(uint32_t wtype, int packed)
{
    return packed && wtype != KS_T_I8 ? 64 : 128;
}

/* Columns 0..3 of 8, or 4..7, of rows 0..7 and 8..15. */
KS_INLINE void load_quads(const uint8_t *w, uint32_t wtype, int packed, uint32_t half, __m256i ret[2])
{
    for (uint32_t v = 0; v < 2; v++) {
        if (packed && wtype != KS_T_I8) {
            ret[v] = unpack(w + 32 * v, half, wtype == KS_T_MXFP4);
            continue;
        }
        ret[v] = _mm256_load_si256((const __m256i *)(w + 64 * half + 32 * v));
        if (packed) ret[v] = _mm256_xor_si256(ret[v], _mm256_set1_epi8(-128));
    }
}

/* Columns [k0, k1) of one tile, k0 a multiple of the group; w: the weights of column k0. scales: those of the block's
 * groups as floats, if it is unpacked. One or two rows have a chain of sums for each half of the 8 columns. */
KS_INLINE void run_tile(const job *j, const uint8_t *w, const float *scales, uint32_t wtype, const act_row *x,
                        uint32_t rows, uint32_t k0, uint32_t k1, __m256 acc[TILE][2])
{
    const int packed = !scales;
    const uint32_t group = j->a->group, chains = rows <= 2 ? 2 : 1, bytes = step_bytes(wtype, packed);
    for (uint32_t g0 = k0; g0 < k1; g0 += group) {
        uint32_t g1 = g0 + group < k1 ? g0 + group : k1;
        __m256i isum[TILE][2], more[TILE][2];
        for (uint32_t m = 0; m < rows; m++) {
            isum[m][0] = isum[m][1] = _mm256_set1_epi32(minus_offset(x + m, wtype, g0, g1));
            more[m][0] = more[m][1] = _mm256_setzero_si256();
        }
        for (uint32_t k = g0; k < g1; k += 8, w += bytes) {
            if (packed) prefetch(w + PREFETCH_BYTES);
            if (packed && bytes == 128) prefetch(w + PREFETCH_BYTES + 64);
            for (uint32_t half = 0; half < 2; half++) {
                __m256i u[2];
                load_quads(w, wtype, packed, half, u);
                for (uint32_t m = 0; m < rows; m++) {
                    __m256i q = quad(x[m].q + k + 4 * half), *sum = half && chains == 2 ? more[m] : isum[m];
                    sum[0] = _mm256_dpbusd_avx_epi32(sum[0], u[0], q);
                    sum[1] = _mm256_dpbusd_avx_epi32(sum[1], u[1], q);
                }
            }
        }
        __m256 scale[2];
        if (packed) {
            size_t at = g0 / group * scales_bytes(wtype);
            scales_16(j->scales + at, wtype, scale);
            prefetch(j->next_scales + at);
        } else {
            scale[0] = _mm256_load_ps(scales);
            scale[1] = _mm256_load_ps(scales + 8);
            scales += 16;
        }
        for (uint32_t m = 0; m < rows; m++) {
            for (uint32_t v = 0; v < 2 && chains == 2; v++) isum[m][v] = _mm256_add_epi32(isum[m][v], more[m][v]);
            add_group(acc[m], isum[m], scale, x[m].scale[g0 / 128]);
        }
    }
}

/* A few rows, weights straight from memory. */
KS_INLINE void few_rows(const job *j, uint32_t s, uint32_t rows, uint32_t wtype)
{
    act_row x[FEW];
    __m256 acc[TILE][2];
    rows_at(j->a, 0, rows, x);
    for (uint32_t m = 0; m < rows; m++) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    run_tile(j, j->strip, NULL, wtype, x, rows, 0, j->n_in, acc);
    for (uint32_t m = 0; m < rows; m++) store_16(j->a, m, s, acc[m][0], acc[m][1]);
}

/* What all rows of a chunk use of a strip: columns [k0, k1) as unsigned bytes, a quad of 16 rows after the other, and
 * the scales of their groups. */
typedef struct block {
    uint8_t bytes[BLOCK_K * 16];
    float scales[BLOCK_K / 32][16];
    float sums[CHUNK][16]; /* of the columns before */
} block;
_Static_assert(sizeof(block) <= MATMUL_SCRATCH_BYTES, "a block is the worker's scratch");

KS_INLINE void unpack_block(const job *j, uint32_t k0, uint32_t k1, uint32_t wtype, block *b)
{
    const uint32_t bytes = step_bytes(wtype, 1);
    const uint8_t *w = j->strip + (size_t)k0 / 8 * bytes;
    uint8_t *dst = b->bytes;
    for (uint32_t k = k0; k < k1; k += 8, w += bytes, dst += 128) {
        prefetch(w + PREFETCH_BYTES);
        if (bytes == 128) prefetch(w + PREFETCH_BYTES + 64);
        for (uint32_t half = 0; half < 2; half++) {
            __m256i u[2];
            load_quads(w, wtype, 1, half, u);
            _mm256_store_si256((__m256i *)(dst + 64 * half), u[0]);
            _mm256_store_si256((__m256i *)(dst + 64 * half + 32), u[1]);
        }
    }
    for (uint32_t k = k0, i = 0; k < k1; k += j->a->group, i++) {
        size_t at = k / j->a->group * scales_bytes(wtype);
        __m256 scale[2];
        scales_16(j->scales + at, wtype, scale);
        prefetch(j->next_scales + at);
        _mm256_store_ps(b->scales[i], scale[0]);
        _mm256_store_ps(b->scales[i] + 8, scale[1]);
    }
}

/* Rows [m, m + rows) of a chunk over one block. */
KS_INLINE void block_tile(const job *j, block *b, uint32_t wtype, uint32_t r0, uint32_t m, uint32_t rows, uint32_t k0,
                          uint32_t k1)
{
    act_row x[TILE];
    __m256 acc[TILE][2];
    float *sums = b->sums[m];
    rows_at(j->a, r0 + m, rows, x);
    for (uint32_t i = 0; i < 2 * rows; i++) acc[i / 2][i % 2] = k0 ? _mm256_load_ps(sums + 8 * i) : _mm256_setzero_ps();
    run_tile(j, b->bytes, b->scales[0], wtype, x, rows, k0, k1, acc);
    for (uint32_t i = 0; i < 2 * rows; i++) _mm256_store_ps(sums + 8 * i, acc[i / 2][i % 2]);
}

/* Up to CHUNK rows from r0 on. */
KS_INLINE void many_rows(const job *j, uint32_t s, uint32_t r0, uint32_t rows, uint32_t wtype, block *b)
{
    for (uint32_t k0 = 0; k0 < j->n_in; k0 += BLOCK_K) {
        uint32_t k1 = k0 + BLOCK_K < j->n_in ? k0 + BLOCK_K : j->n_in, m = 0;
        unpack_block(j, k0, k1, wtype, b);
        for (; m + TILE <= rows; m += TILE) block_tile(j, b, wtype, r0, m, TILE, k0, k1);
        switch (rows - m) { /* a constant number of rows keeps their sums in registers */
        case 1: block_tile(j, b, wtype, r0, m, 1, k0, k1); break;
        case 2: block_tile(j, b, wtype, r0, m, 2, k0, k1); break;
        case 3: block_tile(j, b, wtype, r0, m, 3, k0, k1); break;
        case 4: block_tile(j, b, wtype, r0, m, 4, k0, k1); break;
        case 5: block_tile(j, b, wtype, r0, m, 5, k0, k1); break;
        default: break;
        }
    }
    for (uint32_t m = 0; m < rows; m++)
        store_16(j->a, r0 + m, s, _mm256_load_ps(b->sums[m]), _mm256_load_ps(b->sums[m] + 8));
}

KS_INLINE void matmul(const ks_matmul_args *a, uint32_t begin, uint32_t end, void *scratch, uint32_t wtype)
{
    job j = { .a = a, .n_in = ks_t16_n_in(a->n_in) };
    size_t values = ks_t16_values_bytes(wtype, a->n_in);
    for (uint32_t s = begin; s < end; s++) {
        j.strip = strip_of(a, s);
        j.scales = j.strip + values;
        j.next_scales = j.scales + a->strip_bytes;
        switch (a->n_rows) {
        case 1: few_rows(&j, s, 1, wtype); break;
        case 2: few_rows(&j, s, 2, wtype); break;
        case 3: few_rows(&j, s, 3, wtype); break;
        case 4: few_rows(&j, s, 4, wtype); break;
        default:
            for (uint32_t r = 0; r < a->n_rows; r += CHUNK)
                many_rows(&j, s, r, a->n_rows - r < CHUNK ? a->n_rows - r : CHUNK, wtype, scratch);
        }
    }
}

void matmul_i4_avxvnni(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_I4);
}

void matmul_i8_avxvnni(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_I8);
}

void matmul_mxfp4_avxvnni(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_MXFP4);
}
