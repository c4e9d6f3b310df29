/* What attention puts into tiles of AMX, all of them 16 rows of 64 bytes.
 *
 *   K    16 keys x 32 columns of bf16: the cache's rows as they lie
 *   V    16 columns x 32 keys of bf16: turned round
 *   B    16 rows of 16 dwords: a dword is two neighbours along the sum (columns of q, keys of p) of one query in bf16
 *
 * E4M3 and bf16 caches are bf16 exactly. A float is not, but it is the sum of PARTS of them exactly: each has the upper
 * 8 bits of what the ones before it left. So B has a tile for each part, and all products are exact.
 *
 * A table makes bf16 of e4m3, which leaves the columns of 64 in another order (the lower eight of each 16 first): Q
 * takes the same. V is turned as bytes, so that the same table puts it right. Included by attn_amx.c. No state.
 * [worker] */
#ifndef KS_AVX512_ATTN_TILES_H
#define KS_AVX512_ATTN_TILES_H

#include "../cpu-avx2/attn_block.h"
#include "attn_e4m3.h"

#define PARTS 3u /* 3 x 8 bits are a float's 24 */
#define TILE_BYTES 1024u
#define STEP 32u /* numbers along a sum that one product of tiles adds up */

/* Where key and value rows lie that no query of the tile sees. */
static const uint8_t no_key[2048] __attribute__((aligned(64)));

/* ---- parts */

/* The sum's neighbours a and b of 16 queries: a row of B for each part, TILE_BYTES apart. */
KS_INLINE void store_parts(vec a, vec b, uint8_t *dst)
{
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    for (uint32_t i = 0; i < PARTS; i++, dst += TILE_BYTES) {
        __m512i x = _mm512_castps_si512(a), y = _mm512_castps_si512(b);
        /* (y & upper) | (x >> 16) */
        _mm512_store_si512(dst, _mm512_ternarylogic_epi32(_mm512_srli_epi32(x, 16), y, upper, 0xf8));
        a = v_sub(a, _mm512_castsi512_ps(_mm512_and_si512(x, upper)));
        b = v_sub(b, _mm512_castsi512_ps(_mm512_and_si512(y, upper)));
    }
}

/* ---- turning */

/* Number i of vector j becomes number j of vector i. */
KS_INLINE void turn_16(vec *x)
{
    __m512i t[16], u[16];
    for (uint32_t i = 0; i < 16; i++) t[i] = _mm512_castps_si512(x[i]);
    for (uint32_t i = 0; i < 16; i += 2) {
        u[i] = _mm512_unpacklo_epi32(t[i], t[i + 1]);
        u[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 1]);
    }
    for (uint32_t i = 0; i < 16; i += 4) /* t[i + n]: numbers n of each quarter of vectors i .. i + 3 */
        for (uint32_t j = 0; j < 2; j++) {
            t[i + 2 * j] = _mm512_unpacklo_epi64(u[i + j], u[i + 2 + j]);
            t[i + 2 * j + 1] = _mm512_unpackhi_epi64(u[i + j], u[i + 2 + j]);
        }
    for (uint32_t i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
        __m512i c = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd), d = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
        x[i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, b, 0x88));
        x[i + 4] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(c, d, 0x88));
        x[i + 8] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, b, 0xdd));
        x[i + 12] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(c, d, 0xdd));
    }
}

/* Eight vectors, in each quarter 16 bytes of eight rows: in place of row and column afterwards column and row, as far
 * as there are columns. Bytes: vector j has columns 2j (its first eight bytes) and 2j + 1; words: column j. */
KS_INLINE void turn_8(__m512i *x, bool bytes)
{
    for (uint32_t n = 0; n < 3; n++) {
        __m512i y[8];
        for (uint32_t i = 0; i < 4; i++) {
            y[2 * i] = bytes ? _mm512_unpacklo_epi8(x[i], x[i + 4]) : _mm512_unpacklo_epi16(x[i], x[i + 4]);
            y[2 * i + 1] = bytes ? _mm512_unpackhi_epi8(x[i], x[i + 4]) : _mm512_unpackhi_epi16(x[i], x[i + 4]);
        }
        for (uint32_t i = 0; i < 8; i++) x[i] = y[i];
    }
}

/* ---- queries */

/* Row of B, over all steps, that has columns d and d + 1. */
KS_INLINE uint32_t query_row(uint32_t type, uint32_t d)
{
    if (type != KS_T_F8E4M3) return d / 2;
    return d / 64 * 32 + d % 16 / 8 * 16 + d % 64 / 16 * 4 + d % 8 / 2;
}

/* Up to 16 queries times `scale`: tile (step, part) at dst. */
static void pack_queries(uint32_t type, const float *const *q, uint32_t n, uint32_t d_k, float scale, uint8_t *dst)
{
    for (uint32_t d = 0; d < d_k; d += 16) {
        vec x[16];
        for (uint32_t i = 0; i < 16; i++) x[i] = i < n ? v_mul(v_load(q[i] + d), v_set1(scale)) : v_set1(0);
        turn_16(x);
        for (uint32_t i = 0; i < 16; i += 2) {
            uint32_t row = query_row(type, d + i);
            store_parts(x[i], x[i + 1], dst + (size_t)(row / 16) * PARTS * TILE_BYTES + row % 16 * 64);
        }
    }
}

/* ---- keys */

/* The first n_keys of K: tile (key / 16, step) at dst; n_steps of them. What follows is asked for. */
static void tiles_k(uint32_t type, const block *b, const block *next, uint32_t n_steps, uint32_t n_keys, uint8_t *dst)
{
    const uint32_t bytes = n_steps * STEP * (type == KS_T_F8E4M3 ? 1 : 2);
    for (uint32_t i = 0; i < n_keys; i++) {
        const uint8_t *k = b->k[i], *coming = next->k[i];
        uint8_t *to = dst + (size_t)(i / 16) * n_steps * TILE_BYTES + i % 16 * 64;
        for (uint32_t at = 0; at < bytes; at += 64) {
            __m512i x = _mm512_loadu_si512(k + at), pairs[2];
            _mm_prefetch((const char *)coming + at, _MM_HINT_T1);
            if (type == KS_T_F8E4M3) {
                e4m3_pairs(x, pairs);
                _mm512_store_si512(to, pairs[0]);
                _mm512_store_si512(to + TILE_BYTES, pairs[1]);
                to += 2 * TILE_BYTES;
            } else {
                _mm512_store_si512(to, x);
                to += TILE_BYTES;
            }
        }
    }
}

/* ---- values */

/* 16 bytes of each of the keys 0, 8, 16 and 24 from v on. */
KS_INLINE __m512i load_eights(const uint8_t *const *v, size_t at)
{
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(v[0] + at)));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)(v[8] + at)), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)(v[16] + at)), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)(v[24] + at)), 3);
}

/* 16 bytes from `at` on of 32 keys: rows of V's tiles. Returns what all_finite() wants to know. */
KS_INLINE __m512i turn_values(uint32_t type, const uint8_t *const *v, size_t at, __m512i largest, uint8_t *dst)
{
    const bool f8 = type == KS_T_F8E4M3;
    __m512i x[8], pairs[2];
    for (uint32_t i = 0; i < 8; i++) {
        x[i] = load_eights(v + i, at);
        largest = f8 ? _mm512_max_epu8(largest, _mm512_add_epi8(x[i], x[i]))
                     : _mm512_max_epu16(largest, _mm512_add_epi16(x[i], x[i]));
    }
    turn_8(x, f8);
    for (uint32_t i = 0; i < 8; i++) {
        if (!f8) {
            _mm512_store_si512(dst + (size_t)i * 64, x[i]);
            continue;
        }
        e4m3_pairs(x[i], pairs);
        _mm512_store_si512(dst + (size_t)i * 128, pairs[0]);
        _mm512_store_si512(dst + (size_t)i * 128 + 64, pairs[1]);
    }
    return largest;
}

/* Was there no NaN and no infinity? Twice the code of one is the largest there is, or has all bits of the exponent. */
KS_INLINE bool all_finite(uint32_t type, __m512i largest)
{
    if (type == KS_T_F8E4M3) return _mm512_cmpge_epu8_mask(largest, _mm512_set1_epi8((int8_t)0xfe)) == 0;
    return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16((int16_t)0xff00)) == 0;
}

/* Columns [c, c + n) of the first n_keys of V, whole steps: tile (column / 16, key / 32) at dst. What follows is asked
 * for. Returns whether all values are finite. */
static bool tiles_v(uint32_t type, const uint8_t *const *v, const block *next, uint32_t c, uint32_t n, uint32_t n_keys,
                    uint8_t *dst)
{
    const uint32_t size = type == KS_T_F8E4M3 ? 1 : 2, each = 16 / size;
    __m512i largest = _mm512_setzero_si512();
    for (uint32_t d = 0; d < n; d += each) {
        const size_t at = (size_t)(c + d) * size, first = (size_t)d * size / 16 % 4 * 8; /* of four, a line */
        for (uint32_t k = 0; k < n_keys; k += STEP) {
            uint8_t *to = dst + ((size_t)(d / 16) * (KEYS / STEP) + k / STEP) * TILE_BYTES + d % 16 * 64;
            for (uint32_t i = 0; i < 8; i++)
                _mm_prefetch((const char *)next->v[k + first + i] + at / 64 * 64, _MM_HINT_T1);
            largest = turn_values(type, v + k, at, largest, to);
        }
    }
    return all_finite(type, largest);
}

#endif
