/* ATTN: online softmax over blocks of 32 keys, for any width of vectors: attn_vec.h says which. cpu-avx512 compiles
 * this file, too; both include attn_vec.h, attn_keys.h and their attn_pairs.h before it. [worker]
 *
 * Units of one kv head are worked on together: a tile is some rows x the query heads of that kv head. Blocks start at
 * multiples of 32 of the absolute position (with `sel`: every 32 of the row's own list), are converted to float once
 * and used by all queries of the tile; attn_pairs.h has another form for few queries, with the same bits. K is turned
 * round on the way, so that 32 scores of a query are whole vectors and no sum runs across lanes: a score is one chain
 * of fma over the columns in ascending order, an output one over the keys. What a query does with a block depends on
 * its own keys only, so the tile's shape changes no bit. attn_spans.h has what is around the blocks.
 *
 * Any head size works: scores add up over pieces of K_PIECE columns of K, and columns of V beyond D_MAX are a second
 * pass. */
#ifndef KS_AVX2_ATTN_IMPL_H
#define KS_AVX2_ATTN_IMPL_H

#include <math.h>

#define D_MAX 1024u     /* columns of V at a time */
#define QUERIES 64u     /* in a tile */
#define O_FLOATS 16384u /* outputs of a tile: 64 queries of 256 columns, 32 of 512 */

typedef struct scratch_mem {
    float k[K_PIECE * KEYS]; /* turned round: column d of the keys at d * KEYS */
    float v[KEYS * V_STRIP]; /* (KEYS, V_STRIP) */
    float o[O_FLOATS];       /* of this span: (queries, o_stride) */
    float s[QUERIES][KEYS];  /* scores, then probabilities */
    const float *q[QUERIES];
    float m[QUERIES], l[QUERIES];         /* of this span: maximum, sum */
    float keep[QUERIES];                  /* what the new maximum makes of the sums before this block */
    float m_all[QUERIES], l_all[QUERIES]; /* of the spans before */
    uint32_t i0[QUERIES], i1[QUERIES];    /* keys of the block that a row sees */
    block b[2];                           /* this and the next one */
    ahead ahead;
    pair_mem pairs;
} scratch_mem;

_Static_assert(sizeof(scratch_mem) <= ATTN_SCRATCH_BYTES, "attention scratch");

#define F8_UNIT 256.0f /* E4M3 values count as 2^-8 of what they are */

#include "attn_spans.h"

/* Keys and values come as pairs; outputs have the order of their columns. */
KS_INLINE bool in_pairs(const tile *t)
{
    return pairs_fit(t->type, t->a->d_k, t->a->d_v);
}

/* ---- scores */

/* s[q][0 .. n_v vectors) += q . k over n columns, for n_q queries. */
KS_INLINE void score_tile(const float *const *from, uint32_t c, uint32_t n_q, const float *k, uint32_t n, uint32_t n_v,
                          float (*s)[KEYS])
{
    const float *q[SCORE_QUERIES];
    vec sum[SCORE_QUERIES][KEYS / LANES];
    for (uint32_t x = 0; x < n_q; x++) q[x] = from[x] + c;
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t v = 0; v < n_v; v++) sum[x][v] = v_load(s[x] + v * LANES);
    for (uint32_t d = 0; d < n; d++, k += KEYS) {
        vec kv[KEYS / LANES];
        for (uint32_t v = 0; v < n_v; v++) kv[v] = v_load(k + v * LANES);
        for (uint32_t x = 0; x < n_q; x++) {
            vec qd = v_set1(q[x][d]);
            for (uint32_t v = 0; v < n_v; v++) sum[x][v] = v_fma(qd, kv[v], sum[x][v]);
        }
    }
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t v = 0; v < n_v; v++) v_store(s[x] + v * LANES, sum[x][v]);
}

/* How many of `left` queries go next: as many steps as needed, all about equally large. */
KS_INLINE uint32_t share(uint32_t left, uint32_t most)
{
    uint32_t steps = (left + most - 1) / most;
    return (left + steps - 1) / steps;
}

/* A constant number of queries and of vectors keeps the sums in registers. */
#define SCORES(N_Q, N_V) \
    case (N_Q)*8 + (N_V): score_tile(q, c, N_Q, k, n, N_V, s); break
static void score_some(const float *const *q, uint32_t c, uint32_t n_q, const float *k, uint32_t n, uint32_t n_v,
                       float (*s)[KEYS])
{
    switch (n_q * 8 + n_v) {
        FOR_SCORES(SCORES)
    default: break; /* there are no more */
    }
}
#undef SCORES

/* Columns [c, c + n) of d_k for queries [q0, q1) of the tile and the first n_v vectors of keys. few: from pairs, and
 * this block follows. */
static void scores(const tile *t, const block *few, uint32_t q0, uint32_t q1, uint32_t c, uint32_t n, uint32_t n_v)
{
    for (uint32_t q = q0, n_q; q < q1; q += n_q) {
        n_q = share(q1 - q, SCORE_QUERIES);
        look_ahead(&t->mem->ahead);
        if (few)
            pair_scores(t->type, t->mem->q + q, c, n_q, t->mem->pairs.k, n, n_v, t->mem->s + q, few);
        else
            score_some(t->mem->q + q, c, n_q, t->mem->k, n, n_v, t->mem->s + q);
    }
}

/* ---- softmax */

/* Scores of a query as they count, in place; those of keys beyond [i0, i1) are -infinity. Returns maxima. */
KS_INLINE vec final_scores(const tile *t, float *s, uint32_t i0, uint32_t i1)
{
    const vec scale = v_set1(t->type == KS_T_F8E4M3 ? t->a->scale * F8_UNIT : t->a->scale), low = v_set1(-INFINITY);
    vec max = low;
    for (uint32_t i = 0; i < KEYS; i += LANES) {
        vec v = v_mul(v_load(s + i), scale);
        if (t->a->softcap != 0) {
            const vec cap = v_set1(t->a->softcap);
            v = v_mul(cap, v_tanh(v_div(v, cap)));
        }
        if (i0 > 0 || i1 < KEYS) v = v_in_range(v, i, i0, i1, low);
        v_store(s + i, v);
        max = v_max(max, v);
    }
    return max;
}

/* Then to probabilities relative to the maximum m; those of keys beyond [i0, i1) are 0. Returns sums. */
KS_INLINE vec probabilities(float *s, float m, uint32_t i0, uint32_t i1)
{
    vec sum = v_set1(0);
    for (uint32_t i = 0; i < KEYS; i += LANES) {
        vec p = v_exp(v_sub(v_load(s + i), v_set1(m)));
        if (i0 > 0 || i1 < KEYS) p = v_in_range(p, i, i0, i1, v_set1(0));
        v_store(s + i, p);
        sum = v_add(sum, p);
    }
    return sum;
}

static void softmax_1(const tile *t, uint32_t q)
{
    scratch_mem *mem = t->mem;
    uint32_t i0 = mem->i0[q / t->n_h], i1 = mem->i1[q / t->n_h];
    float *m = &mem->m[q], old = *m, max = v_max_lanes(final_scores(t, mem->s[q], i0, i1));
    *m = max > old ? max : old;
    mem->keep[q] = old == *m ? 1.0f : old == -INFINITY ? 0.0f : v_exp_1(old - *m);
    mem->l[q] = mem->l[q] * mem->keep[q] + v_sum_lanes(probabilities(mem->s[q], *m, i0, i1));
}

/* n = 4 or 8 queries: maxima, sums and what is kept lie in the lanes of one vector. The same bits as one by one. */
KS_INLINE void softmax_some(const tile *t, uint32_t q, uint32_t n)
{
    scratch_mem *mem = t->mem;
    vec x[8], old = v_load_fold(mem->m + q, n);
    for (uint32_t i = 0, r = q / t->n_h, h = q % t->n_h; i < n; i++, h++) {
        if (h == t->n_h) h = 0, r++;
        x[i] = final_scores(t, mem->s[q + i], mem->i0[r], mem->i1[r]);
    }
    vec m = v_max(v_fold(x, n, true), old), keep = v_keep(old, m);
    v_store_fold(mem->m + q, m, n);
    v_store_fold(mem->keep + q, keep, n);
    for (uint32_t i = 0, r = q / t->n_h, h = q % t->n_h; i < n; i++, h++) {
        if (h == t->n_h) h = 0, r++;
        x[i] = probabilities(mem->s[q + i], mem->m[q + i], mem->i0[r], mem->i1[r]);
    }
    v_store_fold(mem->l + q, v_add(v_mul(v_load_fold(mem->l + q, n), keep), v_fold(x, n, false)), n);
}

static void softmax(const tile *t, uint32_t q, uint32_t end)
{
    for (; q + 8 <= end; q += 8) softmax_some(t, q, 8);
    if (q + 4 <= end) softmax_some(t, q, 4), q += 4;
    for (; q < end; q++) softmax_1(t, q);
}

/* ---- values */

/* o[x] = o[x] * keep[x] + sum over keys [i0, i1) of p[x] v, for n_q queries and n_v vectors of columns. */
KS_INLINE void value_tile(float *o, uint32_t o_stride, float (*p)[KEYS], const float *keep, uint32_t n_q,
                          const float *v, uint32_t i0, uint32_t i1, uint32_t n_v)
{
    vec sum[VALUE_QUERIES][VALUE_VECS];
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t c = 0; c < n_v; c++)
            sum[x][c] = v_mul(v_load(o + (size_t)x * o_stride + c * LANES), v_set1(keep[x]));
    uint32_t i = i0;
    do { /* there is a key; gcc keeps the sums in memory around a loop that may not run */
        vec pi[VALUE_QUERIES];
        for (uint32_t x = 0; x < n_q; x++) pi[x] = v_set1(p[x][i]);
        for (uint32_t c = 0; c < n_v; c++) {
            vec value = v_load(v + (size_t)i * V_STRIP + c * LANES);
            for (uint32_t x = 0; x < n_q; x++) sum[x][c] = v_fma(pi[x], value, sum[x][c]);
        }
    } while (++i < i1);
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t c = 0; c < n_v; c++) v_store(o + (size_t)x * o_stride + c * LANES, sum[x][c]);
}

#define VALUES(N_Q, N_V) \
    case (N_Q)*8 + (N_V): value_tile(o, t->o_stride, mem->s + q, mem->keep + q, N_Q, mem->v, i0, i1, N_V); break
static void value_some(const tile *t, uint32_t q, uint32_t n_q, uint32_t c, uint32_t n_v, uint32_t i0, uint32_t i1)
{
    scratch_mem *mem = t->mem;
    float *o = mem->o + (size_t)q * t->o_stride + c;
    switch (n_q * 8 + n_v) {
        FOR_VALUES(VALUES)
    default: break; /* there are no more */
    }
}
#undef VALUES

/* Queries [q0, q1), which see the same keys; n columns from c on. */
static void values(const tile *t, uint32_t q0, uint32_t q1, uint32_t c, uint32_t n, uint32_t i0, uint32_t i1)
{
    for (uint32_t q = q0, n_q; q < q1; q += n_q) {
        n_q = share(q1 - q, VALUE_QUERIES);
        look_ahead(&t->mem->ahead);
        value_some(t, q, n_q, c, (n + LANES - 1) / LANES, i0, i1);
    }
}

/* ---- a block */

/* Rows that see the same keys as row r, which does see some. */
static uint32_t same_rows(const tile *t, uint32_t r)
{
    uint32_t e = r + 1;
    while (e < t->n_r && t->mem->i0[e] == t->mem->i0[r] && t->mem->i1[e] == t->mem->i1[r]) e++;
    return e;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t pieces(uint32_t n, uint32_t of)
{
    return (n + of - 1) / of;
}

/* The block after this one, if there is one, is asked for while this one is worked on, in about as many steps as there
 * are calls of look_ahead. With few queries attn_pairs.h does that itself. */
static void begin_ahead(const tile *t, const block *next, uint32_t n_q)
{
    const uint32_t d_k = t->a->d_k, v = pieces(t->n_d, V_STRIP);
    uint32_t steps = pieces(d_k, K_PIECE) * pieces(n_q, SCORE_QUERIES) + v * pieces(n_q, VALUE_QUERIES);
    if (in_pairs(t)) steps += d_k / PAIR_K_STEP + v * (KEYS / 4);
    t->mem->ahead = (ahead) { .next = next, .steps = steps, .k_bytes = (size_t)d_k * t->size };
    t->mem->ahead.v_bytes = (size_t)t->n_d * t->size;
}

/* Scores of queries [q0, q1). few: they are, and this block follows (or is the same one); else NULL. */
static void block_scores(const tile *t, const block *b, const block *few, uint32_t q0, uint32_t q1)
{
    scratch_mem *mem = t->mem;
    /* One or two chains of sums wait for themselves: they shall run beside the turning of the next columns. */
    const uint32_t most = !few ? K_PIECE : q1 - q0 <= 2 ? PAIR_K_STEP : PAIR_K_PIECE;
    memset(mem->s[q0], 0, sizeof mem->s[0] * (q1 - q0));
    for (uint32_t c = 0, n; c < t->a->d_k; c += n) {
        n = smaller(t->a->d_k - c, most);
        if (in_pairs(t))
            pairs_k(t->type, b, c, n, mem->pairs.k, &mem->ahead);
        else
            fetch_k(t->type, b, c, n, mem->k);
        if (in_pairs(t) && !few) pairs_widen_k(t->type, mem->pairs.k, n, mem->k);
        scores(t, few, q0, q1, c, n, (b->n + LANES - 1) / LANES);
    }
}

/* Outputs of the rows [ra, rb). */
static void block_values(const tile *t, const block *b, uint32_t ra, uint32_t rb)
{
    scratch_mem *mem = t->mem;
    for (uint32_t d = 0, n; d < t->n_d; d += n) {
        n = smaller(t->n_d - d, V_STRIP);
        if (in_pairs(t))
            pairs_widen_v(t->type, b, t->d0 + d, n, mem->v, &mem->ahead);
        else
            fetch_v(t->type, b, t->d0 + d, n, mem->v);
        for (uint32_t r = ra, e; r < rb; r = e) {
            e = same_rows(t, r);
            values(t, r * t->n_h, e * t->n_h, d, n, mem->i0[r], mem->i1[r]);
        }
    }
}

/* The same from pairs. */
static void block_few_values(const tile *t, const block *b, const block *next, uint32_t ra, uint32_t rb)
{
    scratch_mem *mem = t->mem;
    for (uint32_t r = ra, e; r < rb; r = e) {
        uint32_t q = r * t->n_h;
        e = same_rows(t, r);
        pair_values(t->type, b, &mem->pairs, t->d0, t->n_d, mem->o + (size_t)q * t->o_stride, t->o_stride, mem->s + q,
                    mem->keep + q, (e - r) * t->n_h, mem->i0[r], mem->i1[r], next);
    }
}

/* One block for all queries of the tile. next: the one after it, or NULL. */
static void tile_run(const tile *t, const block *b, const block *next)
{
    scratch_mem *mem = t->mem;
    uint32_t ra = 0, rb = t->n_r;
    row_ranges(t, b);
    while (ra < rb && mem->i0[ra] >= mem->i1[ra]) ra++; /* both ends of what rows see grow with the row */
    while (rb > ra && mem->i0[rb - 1] >= mem->i1[rb - 1]) rb--;
    if (ra == rb) return;
    const uint32_t q0 = ra * t->n_h, q1 = rb * t->n_h;
    const bool few = in_pairs(t) && q1 - q0 <= FEW_QUERIES;
    begin_ahead(t, few ? NULL : next, q1 - q0);
    block_scores(t, b, few ? next ? next : b : NULL, q0, q1);
    softmax(t, q0, q1);
    if (few)
        block_few_values(t, b, next ? next : b, ra, rb);
    else
        block_values(t, b, ra, rb);
}

/* ---- what attn_spans.h asks for */

static uint32_t tile_queries(const ks_attn_args *a, uint32_t o_stride)
{
    (void)a;
    return smaller(O_FLOATS / o_stride, QUERIES);
}

static void tile_begin(const tile *t)
{
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) t->mem->q[q] = query(t, q);
}

static void tile_clear(const tile *t)
{
    memset(t->mem->o, 0, sizeof(float) * t->n_r * t->n_h * t->o_stride);
}

static uint32_t tile_block(const tile *t, uint32_t from, uint32_t to, block *ret)
{
    return block_dense(t->a, t->kvh, t->size, from, to, ret);
}

static float *tile_output(const tile *t, uint32_t q)
{
    float *o = t->mem->o + (size_t)q * t->o_stride;
    if (in_pairs(t)) pairs_order(t->type, o, t->n_d);
    return o;
}

#endif
