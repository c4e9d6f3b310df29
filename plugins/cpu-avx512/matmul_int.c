/* MATMUL of I4, I8 and MXFP4 weights (T16) with Q8 activations; bit-exact by kernels.h. [worker]
 *
 * A line of 64 bytes is one dword of each of 16 output rows: what vpdpbusd takes as its unsigned operand, while four
 * activations, the same for all lanes, are the signed one; it adds four products to 32 bits without saturation.
 * The weights are made unsigned by an offset, which is taken back once a group with the sums that come with the
 * activations: dot(w + c, q) - c * sum(q). I4: c = 8 (stored so); I8: c = 128 (the sign bit flipped); MXFP4: twice the
 * e2m1 value, c = 12, from a table.
 *
 * The work goes in steps of 8 columns with a chain of sums for each half: one line of I4 or MXFP4 (low nibbles, high
 * nibbles), two of I8. Up to 8 rows go through the strip in one pass; more in blocks of 512 columns (I8 8 KiB, the
 * others 4 KiB: they stay in L1) that up to 64 rows use in tiles of 8, their sums waiting in scratch. */
#include "weights.h"

#define BLOCK_K 512u /* a multiple of every group size */

typedef struct job {
    const ks_matmul_args *a;
    const uint8_t *strip, *scales, *next_scales;
} job;

/* Where the rows of a tile lie. */
typedef struct tile {
    const int8_t *q[TILE];
    const float *xscale[TILE];
    const int32_t *sum[TILE];
} tile;

KS_INLINE uint32_t step_bytes(uint32_t wtype)
{
    return wtype == KS_T_I8 ? 128 : 64;
}

KS_INLINE int32_t offset_of(uint32_t wtype)
{
    return wtype == KS_T_I8 ? 128 : wtype == KS_T_I4 ? 8 : 12;
}

/* 8 columns of 16 rows: columns 0..3 in u[0], 4..7 in u[1]; I4: these 16 times as large, see group_sums. */
KS_INLINE void load_step(const uint8_t *w, uint32_t wtype, __m512i u[2])
{
    const __m512i low = _mm512_set1_epi8(15), line = _mm512_load_si512(w);
    if (wtype == KS_T_I8) {
        const __m512i sign = _mm512_set1_epi8(-128);
        u[0] = _mm512_xor_si512(line, sign);
        u[1] = _mm512_xor_si512(_mm512_load_si512(w + 64), sign);
    } else if (wtype == KS_T_I4) {
        u[0] = _mm512_and_si512(line, low);
        u[1] = _mm512_andnot_si512(low, line);
    } else {
        const __m512i table =
            _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        u[0] = _mm512_shuffle_epi8(table, _mm512_and_si512(line, low));
        u[1] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(line, 4), low));
    }
}

/* Four activations of a row in every lane. */
KS_INLINE __m512i quad(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, 4);
    return _mm512_set1_epi32(v);
}

/* Both chains as one. The high nibbles of I4 stay where they are in their bytes; their sum is exact, so is the shift.
 */
KS_INLINE __m512i group_sums(const __m512i isum[2], uint32_t wtype)
{
    return _mm512_add_epi32(isum[0], wtype == KS_T_I4 ? _mm512_srai_epi32(isum[1], 4) : isum[1]);
}

/* The scales of group g; those of the next strip are asked for. */
KS_INLINE __m512 scales_at(const job *j, uint32_t g, uint32_t wtype)
{
    size_t at = g * scales_bytes(wtype);
    prefetch(j->next_scales + at);
    return scales_16(j->scales + at, wtype);
}

/* Columns [k0, k1) of one tile, k0 a multiple of the group. */
KS_INLINE void run_tile(const job *j, uint32_t wtype, const tile *t, uint32_t rows, uint32_t k0, uint32_t k1,
                        __m512 acc[TILE])
{
    const uint32_t group = j->a->group;
    const uint8_t *w = j->strip + (size_t)k0 / 8 * step_bytes(wtype);
    for (uint32_t g0 = k0; g0 < k1; g0 += group) {
        uint32_t g1 = g0 + group < k1 ? g0 + group : k1;
        __m512i isum[TILE][2];
        for (uint32_t m = 0; m < rows; m++) {
            int32_t s = 0;
            for (uint32_t k = g0; k < g1; k += 32) s += t->sum[m][k / 32];
            isum[m][0] = _mm512_set1_epi32(-offset_of(wtype) * s);
            isum[m][1] = _mm512_setzero_si512();
        }
        for (uint32_t k = g0; k < g1; k += 8, w += step_bytes(wtype)) {
            __m512i u[2];
            load_step(w, wtype, u);
            prefetch(w + PREFETCH_BYTES);
            if (wtype == KS_T_I8) prefetch(w + PREFETCH_BYTES + 64);
            for (uint32_t m = 0; m < rows; m++) {
                isum[m][0] = _mm512_dpbusd_epi32(isum[m][0], u[0], quad(t->q[m] + k));
                isum[m][1] = _mm512_dpbusd_epi32(isum[m][1], u[1], quad(t->q[m] + k + 4));
            }
        }
        __m512 wscale = scales_at(j, g0 / group, wtype);
        for (uint32_t m = 0; m < rows; m++) {
            __m512 scale = _mm512_mul_ps(wscale, _mm512_set1_ps(t->xscale[m][g0 / 128]));
            acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(group_sums(isum[m], wtype)), scale, acc[m]);
        }
    }
}

/* One tile over [k0, k1). sums: where the sums of the columns before k0 are and the new ones go. */
KS_INLINE void block_tile(const job *j, uint32_t wtype, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1,
                          float *sums)
{
    tile t;
    __m512 acc[TILE];
    for (uint32_t m = 0; m < rows; m++) {
        size_t row = row_of(j->a, r0 + m);
        t.q[m] = j->a->act->q + row * j->a->act->q_stride;
        t.xscale[m] = j->a->act->scale + row * j->a->act->scale_stride;
        t.sum[m] = j->a->act->sum + row * j->a->act->sum_stride;
        acc[m] = k0 ? _mm512_load_ps(sums + 16 * m) : _mm512_setzero_ps();
    }
    run_tile(j, wtype, &t, rows, k0, k1, acc);
    for (uint32_t m = 0; m < rows; m++) _mm512_store_ps(sums + 16 * m, acc[m]);
}

KS_INLINE void run_rows(const job *j, uint32_t wtype, uint32_t r0, uint32_t rows, uint32_t k0, uint32_t k1, float *sums)
{
    uint32_t m = 0;
    for (; m + TILE <= rows; m += TILE) block_tile(j, wtype, r0 + m, TILE, k0, k1, sums + 16 * m);
    switch (rows - m) { /* a constant number of rows keeps their sums in registers */
    case 1: block_tile(j, wtype, r0 + m, 1, k0, k1, sums + 16 * m); break;
    case 2: block_tile(j, wtype, r0 + m, 2, k0, k1, sums + 16 * m); break;
    case 3: block_tile(j, wtype, r0 + m, 3, k0, k1, sums + 16 * m); break;
    case 4: block_tile(j, wtype, r0 + m, 4, k0, k1, sums + 16 * m); break;
    case 5: block_tile(j, wtype, r0 + m, 5, k0, k1, sums + 16 * m); break;
    case 6: block_tile(j, wtype, r0 + m, 6, k0, k1, sums + 16 * m); break;
    case 7: block_tile(j, wtype, r0 + m, 7, k0, k1, sums + 16 * m); break;
    default: break;
    }
}

KS_INLINE void matmul(const ks_matmul_args *a, uint32_t begin, uint32_t end, float *sums, uint32_t wtype)
{
    job j = { .a = a };
    size_t values = ks_t16_values_bytes(wtype, a->n_in);
    uint32_t n_in = ks_t16_n_in(a->n_in);
    for (uint32_t s = begin; s < end; s++) {
        j.strip = strip_of(a, s);
        j.scales = j.strip + values;
        j.next_scales = j.scales + a->strip_bytes;
        for (uint32_t r0 = 0; r0 < a->n_rows; r0 += CHUNK) {
            uint32_t rows = a->n_rows - r0 < CHUNK ? a->n_rows - r0 : CHUNK, block = rows > TILE ? BLOCK_K : n_in;
            for (uint32_t k0 = 0; k0 < n_in; k0 += block)
                run_rows(&j, wtype, r0, rows, k0, n_in - k0 < block ? n_in : k0 + block, sums);
            for (uint32_t m = 0; m < rows; m++) store_16(a, r0 + m, s, _mm512_load_ps(sums + 16 * m));
        }
    }
}

void matmul_i4_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_I4);
}

void matmul_i8_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_I8);
}

void matmul_mxfp4_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_MXFP4);
}
