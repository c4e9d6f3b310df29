/* A block of keys in 16 bits: bf16, two columns to a dword, so that one instruction makes floats of either. bf16 caches
 * hold that already; of e4m3 a table makes it, exactly and NaNs included. K is turned round as it lies in the cache; V
 * stays. Dword i of a vector of V are columns 2i and 2i + 1, which come apart as floats, so an output has its columns
 * in another order until pairs_order puts them right.
 *
 * With few queries, converting and turning cost as much as the products, and most of it runs on one port that products
 * need, too. So conversions stand in the products' loops, where what the other ports leave free is theirs, and write
 * nothing that need not be written: a store of 64 bytes costs about as much as one fma. The table is vpermb, since the
 * way through f16 and vcvtph2ps takes two operations for 16 numbers. With many queries the block becomes floats once.
 * Included by attn.c between attn_keys.h and attn_impl.h. No state. [worker] */
#ifndef KS_AVX512_ATTN_PAIRS_H
#define KS_AVX512_ATTN_PAIRS_H

#include "attn_e4m3.h"

#define FEW_QUERIES 8u    /* more of them: floats, converted once */
#define PAIR_STEP 64u     /* columns of V together: two vectors of pairs */
#define PAIR_K_PIECE 128u /* columns of K at a time */
#define PAIR_K_STEP 16u   /* columns turned at once; a piece is a multiple of it */

typedef struct pair_mem {
    uint32_t k[PAIR_K_PIECE / 2 * KEYS]; /* dwords of 4 (bf16: 2) columns: number i of the keys at i * KEYS */
    uint32_t v[KEYS * LANES];            /* second vectors of pairs */
} pair_mem;

/* Whether this file has a form for caches of that type and shape. */
KS_INLINE bool pairs_fit(uint32_t type, uint32_t d_k, uint32_t d_v)
{
#ifdef __AVX512VBMI__
    bool form = type == KS_T_F8E4M3 || type == KS_T_BF16;
#else
    bool form = type == KS_T_BF16;
#endif
    return form && d_k % PAIR_K_STEP == 0 && d_v % PAIR_STEP == 0;
}

KS_INLINE vec pair_first(__m512i pairs)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

KS_INLINE vec pair_second(__m512i pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* ---- keys */

/* 16 bytes of keys 0, 4, 8 and 12 from k on: transposing within quarters of a vector leaves dword 4i + j to what was
 * quarter i of vector j. */
KS_INLINE __m512i load_fours(const uint8_t *const *k, size_t at)
{
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(k[0] + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(k[4] + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(k[8] + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(k[12] + at)), 3);
}

/* 16 columns of 16 keys: words of two keys side by side, then of four. A quarter of a vector has columns 4j and 4j + 1
 * of four keys and then 4j + 2 and 4j + 3, as e4m3_pairs likes it. */
static __attribute__((noinline)) void turn_f8_quads(const uint8_t *const *k, size_t at, uint32_t *dst)
{
    __m512i a = load_fours(k, at), b = load_fours(k + 1, at), c = load_fours(k + 2, at), d = load_fours(k + 3, at);
    __m512i ab = _mm512_unpacklo_epi16(a, b), cd = _mm512_unpacklo_epi16(c, d);
    _mm512_storeu_si512(dst, _mm512_unpacklo_epi32(ab, cd));
    _mm512_storeu_si512(dst + KEYS, _mm512_unpackhi_epi32(ab, cd));
    ab = _mm512_unpackhi_epi16(a, b), cd = _mm512_unpackhi_epi16(c, d);
    _mm512_storeu_si512(dst + 2 * KEYS, _mm512_unpacklo_epi32(ab, cd));
    _mm512_storeu_si512(dst + 3 * KEYS, _mm512_unpackhi_epi32(ab, cd));
}

/* 8 columns of 16 keys. */
static __attribute__((noinline)) void turn_bf16_pairs(const uint8_t *const *k, size_t at, uint32_t *dst)
{
    __m512i a = load_fours(k, at), b = load_fours(k + 1, at), c = load_fours(k + 2, at), d = load_fours(k + 3, at);
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    _mm512_storeu_si512(dst, _mm512_unpacklo_epi64(ab, cd));
    _mm512_storeu_si512(dst + KEYS, _mm512_unpackhi_epi64(ab, cd));
    ab = _mm512_unpackhi_epi32(a, b), cd = _mm512_unpackhi_epi32(c, d);
    _mm512_storeu_si512(dst + 2 * KEYS, _mm512_unpacklo_epi64(ab, cd));
    _mm512_storeu_si512(dst + 3 * KEYS, _mm512_unpackhi_epi64(ab, cd));
}

/* Columns [c, c + n) of K. */
static void pairs_k(uint32_t type, const block *b, size_t c, uint32_t n, uint32_t *dst, ahead *w)
{
    const bool f8 = type == KS_T_F8E4M3;
    for (uint32_t i = 0; i < n; i += PAIR_K_STEP, dst += PAIR_K_STEP / (f8 ? 4 : 2) * KEYS) {
        look_ahead(w);
        for (uint32_t k = 0; k < KEYS; k += 16) {
            if (f8) {
                turn_f8_quads(b->k + k, c + i, dst + k);
            } else {
                turn_bf16_pairs(b->k + k, 2 * (c + i), dst + k);
                turn_bf16_pairs(b->k + k, 2 * (c + i + 8), dst + 4 * KEYS + k);
            }
        }
    }
}

/* Four columns of 16 keys as two vectors of pairs. */
KS_INLINE void load_k(uint32_t type, const uint32_t *k, __m512i *ret)
{
    if (type == KS_T_F8E4M3) {
        e4m3_pairs(_mm512_loadu_si512(k), ret);
        return;
    }
    ret[0] = _mm512_loadu_si512(k);
    ret[1] = _mm512_loadu_si512(k + KEYS);
}

/* PAIR_STEP columns of V. Of e4m3 the first vector has the lower eight columns of each 16. */
KS_INLINE void load_v(uint32_t type, const uint8_t *v, __m512i *ret)
{
    if (type == KS_T_F8E4M3) {
        e4m3_pairs(_mm512_loadu_si512(v), ret);
        return;
    }
    ret[0] = _mm512_loadu_si512(v);
    ret[1] = _mm512_loadu_si512(v + 64);
}

/* n outputs from load_v's order of columns to their own. */
static void pairs_order(uint32_t type, float *o, uint32_t n)
{
    const __m512i lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    for (uint32_t i = 0; i < n; i += 32) {
        vec a = v_load(o + i), b = v_load(o + i + 16);
        v_store(o + i, _mm512_permutex2var_ps(a, lower, b));
        v_store(o + i + 16, _mm512_permutex2var_ps(a, upper, b));
    }
    if (type != KS_T_F8E4M3) return;
    for (uint32_t i = 0; i < n; i += 64) { /* eights 0 2 4 6 1 3 5 7 */
        __m512 a = v_load(o + i), b = v_load(o + i + 16), c = v_load(o + i + 32), d = v_load(o + i + 48);
        v_store(o + i, _mm512_shuffle_f32x4(a, c, 0x44));
        v_store(o + i + 16, _mm512_shuffle_f32x4(a, c, 0xee));
        v_store(o + i + 32, _mm512_shuffle_f32x4(b, d, 0x44));
        v_store(o + i + 48, _mm512_shuffle_f32x4(b, d, 0xee));
    }
}

/* ---- floats */

/* n columns of K: column i of the keys at dst + i * KEYS. */
static void pairs_widen_k(uint32_t type, const uint32_t *k, uint32_t n, float *dst)
{
    for (uint32_t i = 0; i < n; i += 4, k += (type == KS_T_F8E4M3 ? 1 : 2) * KEYS, dst += 4 * KEYS) {
        for (uint32_t v = 0; v < KEYS; v += LANES) {
            __m512i pairs[2];
            load_k(type, k + v, pairs);
            for (uint32_t j = 0; j < 2; j++) {
                v_store(dst + 2 * j * KEYS + v, pair_first(pairs[j]));
                v_store(dst + (2 * j + 1) * KEYS + v, pair_second(pairs[j]));
            }
        }
    }
}

/* Columns [c, c + n) of V in their order as pairs: key i at dst + i * V_STRIP. */
static void pairs_widen_v(uint32_t type, const block *b, size_t c, uint32_t n, float *dst, ahead *w)
{
    const size_t size = type == KS_T_F8E4M3 ? 1 : 2;
    for (uint32_t k = 0; k < b->n; k++, dst += V_STRIP) {
        if (k % 4 == 0) look_ahead(w);
        for (uint32_t i = 0; i < n; i += PAIR_STEP) {
            __m512i pairs[2];
            load_v(type, b->v[k] + (c + i) * size, pairs);
            for (uint32_t j = 0; j < 2; j++) {
                v_store(dst + i + 32 * j, pair_first(pairs[j]));
                v_store(dst + i + 32 * j + LANES, pair_second(pairs[j]));
            }
        }
    }
}

/* ---- products of few queries */

/* The next block is asked for evenly while this one is worked on, K with the scores and V with the outputs: what comes
 * in bursts fills the core's sixteen buffers, and it waits. Beside columns [c, c + 4): 64 bytes of two keys (bf16: of
 * four). */
KS_INLINE void ask_for_k(uint32_t type, const block *next, uint32_t c)
{
    const uint32_t each = type == KS_T_F8E4M3 ? 2 : 4, line = c / 4 * each;
    for (uint32_t i = 0; i < each; i++)
        _mm_prefetch((const char *)next->k[(line + i) % KEYS] + (size_t)(line / KEYS) * 64, _MM_HINT_T0);
}

/* PAIR_STEP columns of one key. */
KS_INLINE void ask_for_v(uint32_t type, const uint8_t *v)
{
    _mm_prefetch((const char *)v, _MM_HINT_T0);
    if (type == KS_T_BF16) _mm_prefetch((const char *)v + 64, _MM_HINT_T0);
}

/* As score_tile; n columns, a multiple of four. */
KS_INLINE void pair_score_tile(const float *const *from, uint32_t c, uint32_t n_q, uint32_t type, const uint32_t *k,
                               uint32_t n, uint32_t n_v, float (*s)[KEYS], const block *next)
{
    const float *q[SCORE_QUERIES];
    vec sum[SCORE_QUERIES][KEYS / LANES];
    for (uint32_t x = 0; x < n_q; x++) q[x] = from[x] + c;
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t v = 0; v < n_v; v++) sum[x][v] = v_load(s[x] + v * LANES);
    const size_t step = (type == KS_T_F8E4M3 ? 1 : 2) * KEYS;
    __m512i ready[KEYS / LANES][2];
    for (uint32_t v = 0; v < n_v; v++) load_k(type, k + v * LANES, ready[v]);
    for (uint32_t d = 0; d < n; d += 4) {
        __m512i pairs[KEYS / LANES][2];
        for (uint32_t v = 0; v < n_v; v++) pairs[v][0] = ready[v][0], pairs[v][1] = ready[v][1];
        ask_for_k(type, next, c + d);
        if (d + 4 < n) k += step; /* the last ones again: nothing is there behind them */
        for (uint32_t v = 0; v < n_v; v++) load_k(type, k + v * LANES, ready[v]);
        for (uint32_t j = 0; j < 4; j++) {
            vec kv[KEYS / LANES];
            for (uint32_t v = 0; v < n_v; v++)
                kv[v] = j % 2 ? pair_second(pairs[v][j / 2]) : pair_first(pairs[v][j / 2]);
            for (uint32_t x = 0; x < n_q; x++) {
                vec qd = v_set1(q[x][d + j]);
                for (uint32_t v = 0; v < n_v; v++) sum[x][v] = v_fma(qd, kv[v], sum[x][v]);
            }
        }
    }
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t v = 0; v < n_v; v++) v_store(s[x] + v * LANES, sum[x][v]);
}

#define SCORES(N_Q, N_V) \
    case (N_Q)*8 + (N_V): pair_score_tile(q, c, N_Q, type, k, n, N_V, s, next); break
KS_INLINE void pair_scores_of(uint32_t type, const float *const *q, uint32_t c, uint32_t n_q, const uint32_t *k,
                              uint32_t n, uint32_t n_v, float (*s)[KEYS], const block *next)
{
    switch (n_q * 8 + n_v) {
        FOR_SCORES(SCORES)
    default: break; /* there are no more */
    }
}
#undef SCORES

static void pair_scores_f8(const float *const *q, uint32_t c, uint32_t n_q, const uint32_t *k, uint32_t n, uint32_t n_v,
                           float (*s)[KEYS], const block *next)
{
    pair_scores_of(KS_T_F8E4M3, q, c, n_q, k, n, n_v, s, next);
}

static void pair_scores_bf16(const float *const *q, uint32_t c, uint32_t n_q, const uint32_t *k, uint32_t n,
                             uint32_t n_v, float (*s)[KEYS], const block *next)
{
    pair_scores_of(KS_T_BF16, q, c, n_q, k, n, n_v, s, next);
}

KS_INLINE void pair_scores(uint32_t type, const float *const *q, uint32_t c, uint32_t n_q, const uint32_t *k,
                           uint32_t n, uint32_t n_v, float (*s)[KEYS], const block *next)
{
    (type == KS_T_F8E4M3 ? pair_scores_f8 : pair_scores_bf16)(q, c, n_q, k, n, n_v, s, next);
}

/* What all passes over some columns of V share. */
typedef struct pair_values_job {
    const uint8_t *const *v, *const *next; /* the keys' rows, those of the next block */
    size_t at;                             /* byte of the first column */
    const float *keep;
    float (*p)[KEYS];
    float *o;
    uint32_t o_stride, i0, i1;
    uint32_t *wait; /* pair_mem.v */
} pair_values_job;

/* As value_tile, over PAIR_STEP columns. pass 0: all of them. With more than four queries there are not that many
 * registers: pass 1 does those of the first vector of pairs and lets the second one wait in memory for pass 2. */
KS_INLINE void pair_value_tile(const pair_values_job *w, uint32_t n_q, uint32_t type, uint32_t pass)
{
    const uint32_t n_p = pass ? 1 : 2, first = pass == 2 ? 1 : 0;
    vec sum[FEW_QUERIES][4];
    float *o = w->o + first * 2 * LANES;
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t c = 0; c < 2 * n_p; c++)
            sum[x][c] = v_mul(v_load(o + (size_t)x * w->o_stride + c * LANES), v_set1(w->keep[x]));
    const size_t at = w->at;
    const uint8_t *const *v = w->v, *const *next = w->next;
    float(*p)[KEYS] = w->p;
    uint32_t *wait = w->wait, i = w->i0, i1 = w->i1;
    __m512i ready[2];
    if (pass != 2) load_v(type, v[i] + at, ready);
    do { /* there is a key; gcc keeps the sums in memory around a loop that may not run */
        __m512i pairs[2];
        if (pass == 2) {
            pairs[1] = _mm512_loadu_si512(type == KS_T_F8E4M3 ? (const void *)(wait + i * LANES) : v[i] + at + 64);
        } else {
            pairs[0] = ready[0], pairs[1] = ready[1];
            load_v(type, v[i + 1 < i1 ? i + 1 : i] + at, ready);
            ask_for_v(type, next[i] + at);
        }
        if (pass == 1 && type == KS_T_F8E4M3) _mm512_storeu_si512(wait + i * LANES, pairs[1]);
        for (uint32_t j = first; j < first + n_p; j++) {
            vec a = pair_first(pairs[j]), b = pair_second(pairs[j]);
            for (uint32_t x = 0; x < n_q; x++) {
                vec pi = v_set1(p[x][i]);
                sum[x][2 * (j - first)] = v_fma(pi, a, sum[x][2 * (j - first)]);
                sum[x][2 * (j - first) + 1] = v_fma(pi, b, sum[x][2 * (j - first) + 1]);
            }
        }
    } while (++i < i1);
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t c = 0; c < 2 * n_p; c++) v_store(o + (size_t)x * w->o_stride + c * LANES, sum[x][c]);
}

#define AT_ONCE(N_Q)                      \
    case N_Q:                             \
        pair_value_tile(w, N_Q, type, 0); \
        break
#define TWO_PASSES(N_Q)                   \
    case N_Q:                             \
        pair_value_tile(w, N_Q, type, 1); \
        pair_value_tile(w, N_Q, type, 2); \
        break
KS_INLINE void pair_values_of(uint32_t type, const pair_values_job *w, uint32_t n_q)
{
    switch (n_q) {
        AT_ONCE(1);
        AT_ONCE(2);
        AT_ONCE(3);
        AT_ONCE(4);
        TWO_PASSES(5);
        TWO_PASSES(6);
        TWO_PASSES(7);
        TWO_PASSES(8);
    default: break; /* more are not few */
    }
}
#undef AT_ONCE
#undef TWO_PASSES

static void pair_values_f8(const pair_values_job *w, uint32_t n_q)
{
    pair_values_of(KS_T_F8E4M3, w, n_q);
}

static void pair_values_bf16(const pair_values_job *w, uint32_t n_q)
{
    pair_values_of(KS_T_BF16, w, n_q);
}

/* Columns [c, c + n) of V for n_q queries that see the keys [i0, i1). */
static void pair_values(uint32_t type, const block *b, pair_mem *mem, size_t c, uint32_t n, float *o, uint32_t o_stride,
                        float (*p)[KEYS], const float *keep, uint32_t n_q, uint32_t i0, uint32_t i1, const block *next)
{
    const size_t size = type == KS_T_F8E4M3 ? 1 : 2;
    pair_values_job w = {
        .v = b->v, .next = next->v, .keep = keep, .p = p, .o_stride = o_stride, .i0 = i0, .i1 = i1, .wait = mem->v
    };
    for (uint32_t i = 0; i < n; i += PAIR_STEP) {
        w.at = (c + i) * size;
        w.o = o + i;
        (type == KS_T_F8E4M3 ? pair_values_f8 : pair_values_bf16)(&w, n_q);
    }
}

#endif
