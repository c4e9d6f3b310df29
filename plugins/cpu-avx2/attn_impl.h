/* ATTN: online softmax over blocks of 32 keys, for any width of vectors: attn_vec.h says which. cpu-avx512 compiles
 * this file, too; both include attn_vec.h, attn_keys.h and their attn_pairs.h before it. [worker]
 *
 * Units of one kv head are worked on together: a tile is some rows x the query heads of that kv head. Blocks start at
 * multiples of 32 of the absolute position (with `sel`: every 32 of the row's own list), are converted to float once
 * and used by all queries of the tile; attn_pairs.h has another form for few queries, with the same bits. K is turned
 * round on the way, so that 32 scores of a query are whole vectors and no sum runs across lanes: a score is one chain
 * of fma over the columns in ascending order, an output one over the keys. What a query does with a block depends on
 * its own keys only, so the tile's shape changes no bit. Per span of KS_ATTN_SPAN positions a query has a maximum, a
 * sum and an output of its own in scratch; at the end of a span they are merged into the total, which lives in the
 * output row itself.
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

typedef struct tile {
    const ks_attn_args *a;
    scratch_mem *mem;
    uint32_t type, size;   /* of the cache: KS_T_, bytes */
    uint32_t kvh, h0, n_h; /* query heads h0 .. h0 + n_h of kv head kvh */
    uint32_t r0, n_r;      /* rows */
    uint32_t d0, n_d;      /* columns of V */
    uint32_t o_stride;     /* n_d as whole vectors */
    bool part;             /* the caller splits the keys */
    bool pairs;            /* keys and values come as pairs; outputs have the order of their columns */
} tile;

/* First and last key that row r may see without `sel`. */
static void visible(const ks_attn_args *a, uint32_t r, uint32_t *ret_lo, uint32_t *ret_hi)
{
    uint32_t p = a->pos + r, lo = 0;
    if (a->window && p >= a->window) lo = p - a->window + 1;
    if (a->chunk && p - p % a->chunk > lo) lo = p - p % a->chunk;
    *ret_lo = lo;
    *ret_hi = p;
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
    const vec scale = v_set1(t->type == KS_T_F8E4M3 ? t->a->scale * 256.0f : t->a->scale), low = v_set1(-INFINITY);
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

/* Which keys of the block the rows see; a list holds only keys that its row sees. */
static void row_ranges(const tile *t, const block *b)
{
    for (uint32_t r = 0; r < t->n_r; r++) {
        uint32_t lo = 0, hi = UINT32_MAX, *i0 = &t->mem->i0[r], *i1 = &t->mem->i1[r];
        if (!t->a->sel) visible(t->a, t->r0 + r, &lo, &hi);
        *i0 = lo <= b->first ? 0 : lo - b->first < b->n ? lo - b->first : b->n;
        *i1 = hi < b->first ? 0 : hi - b->first < b->n ? hi - b->first + 1 : b->n;
    }
}

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
    if (t->pairs) steps += d_k / PAIR_K_STEP + v * (KEYS / 4);
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
        if (t->pairs)
            pairs_k(t->type, b, c, n, mem->pairs.k, &mem->ahead);
        else
            fetch_k(t->type, b, c, n, mem->k);
        if (t->pairs && !few) pairs_widen_k(t->type, mem->pairs.k, n, mem->k);
        scores(t, few, q0, q1, c, n, (b->n + LANES - 1) / LANES);
    }
}

/* Outputs of the rows [ra, rb). */
static void block_values(const tile *t, const block *b, uint32_t ra, uint32_t rb)
{
    scratch_mem *mem = t->mem;
    for (uint32_t d = 0, n; d < t->n_d; d += n) {
        n = smaller(t->n_d - d, V_STRIP);
        if (t->pairs)
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
static void run_block(const tile *t, const block *b, const block *next)
{
    scratch_mem *mem = t->mem;
    uint32_t ra = 0, rb = t->n_r;
    row_ranges(t, b);
    while (ra < rb && mem->i0[ra] >= mem->i1[ra]) ra++; /* both ends of what rows see grow with the row */
    while (rb > ra && mem->i0[rb - 1] >= mem->i1[rb - 1]) rb--;
    if (ra == rb) return;
    const uint32_t q0 = ra * t->n_h, q1 = rb * t->n_h;
    const bool few = t->pairs && q1 - q0 <= FEW_QUERIES;
    begin_ahead(t, few ? NULL : next, q1 - q0);
    block_scores(t, b, few ? next ? next : b : NULL, q0, q1);
    softmax(t, q0, q1);
    if (few)
        block_few_values(t, b, next ? next : b, ra, rb);
    else
        block_values(t, b, ra, rb);
}

/* ---- spans */

static float *output(const tile *t, uint32_t q)
{
    uint32_t r = t->r0 + q / t->n_h, h = t->h0 + q % t->n_h;
    return t->a->o + r * t->a->o_stride + (size_t)h * t->a->d_v + t->d0;
}

/* dst = dst * f + src * g, over whole vectors and a rest. */
static void blend(float *dst, float f, const float *src, float g, uint32_t n)
{
    uint32_t d = 0;
    for (; d + LANES <= n; d += LANES)
        v_store(dst + d, v_fma(v_load(src + d), v_set1(g), v_mul(v_load(dst + d), v_set1(f))));
    if (d < n)
        v_store_first(dst + d,
                      v_fma(v_load_first(src + d, n - d), v_set1(g), v_mul(v_load_first(dst + d, n - d), v_set1(f))),
                      n - d);
}

static void scale(float *dst, float f, uint32_t n)
{
    uint32_t d = 0;
    for (; d + LANES <= n; d += LANES) v_store(dst + d, v_mul(v_load(dst + d), v_set1(f)));
    if (d < n) v_store_first(dst + d, v_mul(v_load_first(dst + d, n - d), v_set1(f)), n - d);
}

static void span_begin(const tile *t)
{
    uint32_t n = t->n_r * t->n_h;
    for (uint32_t q = 0; q < n; q++) t->mem->m[q] = -INFINITY, t->mem->l[q] = 0;
    memset(t->mem->o, 0, sizeof(float) * n * t->o_stride);
}

/* A span with keys joins the total: the first one becomes it. */
static void join(const tile *t, uint32_t q, float m, float l, const float *o)
{
    scratch_mem *mem = t->mem;
    if (m == -INFINITY) return;
    if (mem->m_all[q] == -INFINITY) {
        memcpy(output(t, q), o, sizeof(float) * t->n_d);
        mem->l_all[q] = l;
        mem->m_all[q] = m;
        return;
    }
    float max = m > mem->m_all[q] ? m : mem->m_all[q];
    float old = v_exp_1(mem->m_all[q] - max), new = v_exp_1(m - max);
    blend(output(t, q), old, o, new, t->n_d);
    mem->l_all[q] = mem->l_all[q] * old + l * new;
    mem->m_all[q] = max;
}

/* Where span s of query q lies for a caller who splits: maximum, sum, and the output from the 16th float on. */
static float *part_of(const tile *t, uint32_t q, uint32_t s)
{
    const ks_attn_args *a = t->a;
    size_t head = (size_t)(t->r0 + q / t->n_h) * a->n_heads + t->h0 + q % t->n_h;
    return a->part + (head * a->part_spans + s - a->part_first) * a->part_stride;
}

static void span_end(const tile *t, uint32_t s)
{
    scratch_mem *mem = t->mem;
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) {
        float *o = mem->o + (size_t)q * t->o_stride;
        if (t->pairs) pairs_order(t->type, o, t->n_d);
        if (t->part) {
            float *p = part_of(t, q, s);
            p[0] = mem->m[q];
            p[1] = mem->l[q];
            memcpy(p + 16 + t->d0, o, sizeof(float) * t->n_d);
        } else {
            join(t, q, mem->m[q], mem->l[q], o);
        }
    }
}

static void finish(const tile *t)
{
    scratch_mem *mem = t->mem;
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) {
        float f = 1.0f, den = mem->l_all[q];
        if (mem->m_all[q] == -INFINITY) { /* no key at all */
            memset(output(t, q), 0, sizeof(float) * t->n_d);
            continue;
        }
        if (t->a->sinks) {
            float sink = t->a->sinks[t->h0 + q % t->n_h], m = sink > mem->m_all[q] ? sink : mem->m_all[q];
            f = v_exp_1(mem->m_all[q] - m);
            den = den * f + v_exp_1(sink - m);
        }
        if (t->type == KS_T_F8E4M3) f *= 256.0f;
        scale(output(t, q), f / den, t->n_d);
    }
}

/* All blocks of the positions in [from, to] that the tile's rows see; these are of one span. */
static void span_dense(const tile *t, uint32_t from, uint32_t to)
{
    const ks_attn_args *a = t->a;
    block *b = t->mem->b, *next = b + 1;
    uint32_t j = block_dense(a, t->kvh, t->size, from, to, b);
    while (j <= to) {
        uint32_t end = block_dense(a, t->kvh, t->size, j, to, next);
        run_block(t, b, next);
        block *done = b;
        b = next, next = done;
        j = end;
    }
    run_block(t, b, NULL);
}

/* One row with a list of positions: entries from *i on, up to position `to`. */
static void span_sparse(const tile *t, const uint32_t *sel, uint32_t n, uint32_t *i, uint32_t to)
{
    const ks_attn_args *a = t->a;
    while (*i < n && sel[*i] <= to) {
        block *b = t->mem->b;
        b->first = 0;
        for (b->n = 0; *i < n && b->n < KEYS && sel[*i] <= to; ++*i, b->n++) {
            uint32_t j = sel[*i];
            b->k[b->n] = key_at(a, t->kvh, t->size, j / a->page_tok, j % a->page_tok);
            b->v[b->n] = value_at(a, t->kvh, t->size, j / a->page_tok, j % a->page_tok);
        }
        block_fill(b);
        block_prefetch(b, 0, b->n, 0, (size_t)t->n_d * t->size);
        run_block(t, b, NULL);
    }
}

/* Positions [lo, hi], span after span. */
static void run_spans(const tile *t, uint32_t lo, uint32_t hi)
{
    const ks_attn_args *a = t->a;
    const uint32_t *sel = a->sel ? a->sel + (size_t)t->r0 * a->sel_stride : NULL, n = sel ? a->n_sel[t->r0] : 0;
    uint32_t i = 0;
    while (i < n && sel[i] < lo) i++;
    for (uint32_t s = lo / KS_ATTN_SPAN; s <= hi / KS_ATTN_SPAN; s++) {
        uint32_t first = s * KS_ATTN_SPAN, last = first + (KS_ATTN_SPAN - 1);
        span_begin(t);
        if (sel)
            span_sparse(t, sel, n, &i, last < hi ? last : hi);
        else
            span_dense(t, first > lo ? first : lo, last < hi ? last : hi);
        span_end(t, s);
    }
}

/* Spans [span_begin, span_end) of a caller who splits; where the rows see no key, too. */
static void fill_part(const tile *t, uint32_t lo, uint32_t hi)
{
    const ks_attn_args *a = t->a;
    for (uint32_t s = a->span_begin; s < a->span_end; s++) {
        uint32_t first = s * KS_ATTN_SPAN, last = first + (KS_ATTN_SPAN - 1);
        if (first <= hi && last >= lo) {
            run_spans(t, first > lo ? first : lo, last < hi ? last : hi);
            continue;
        }
        for (uint32_t q = 0; q < t->n_r * t->n_h; q++) part_of(t, q, s)[0] = -INFINITY;
    }
}

static void merge_part(const tile *t)
{
    for (uint32_t s = t->a->span_begin; s < t->a->span_end; s++) {
        for (uint32_t q = 0; q < t->n_r * t->n_h; q++) {
            const float *p = part_of(t, q, s);
            join(t, q, p[0], p[1], p + 16 + t->d0);
        }
    }
}

static void run_tile(const tile *t)
{
    const ks_attn_args *a = t->a;
    uint32_t lo, hi, unused;
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) {
        t->mem->m_all[q] = -INFINITY;
        t->mem->l_all[q] = 0;
        t->mem->q[q] = a->q + (t->r0 + q / t->n_h) * a->q_stride + (size_t)(t->h0 + q % t->n_h) * a->d_k;
    }
    visible(a, t->r0, &lo, &unused);
    visible(a, t->r0 + (t->n_r - 1), &unused, &hi); /* both limits grow with the row */
    if (t->part && !a->part_merge) {
        fill_part(t, lo, hi);
        return;
    }
    if (t->part)
        merge_part(t);
    else
        run_spans(t, lo, hi);
    finish(t);
}

/* Rows [r0, r1) of one kv head: cut into tiles. */
static void run_head(const ks_attn_args *a, uint32_t type, uint32_t kvh, uint32_t r0, uint32_t r1, scratch_mem *mem)
{
    const uint32_t group = a->n_heads / a->n_kv_heads, n_d = a->d_v < D_MAX ? a->d_v : D_MAX;
    const uint32_t o_stride = (n_d + LANES - 1) / LANES * LANES;
    const uint32_t fit = O_FLOATS / o_stride, most = fit < QUERIES ? fit : QUERIES;
    const uint32_t n_h = group < most ? group : most, n_r = a->sel || n_h < group ? 1 : most / group;
    tile t = { .a = a, .mem = mem, .type = type, .size = ks_type_bits(type) / 8, .kvh = kvh, .o_stride = o_stride };
    t.part = KS_HAS(a, part_merge) && a->part;
    t.pairs = pairs_fit(type, a->d_k, a->d_v);
    for (t.d0 = 0; t.d0 < a->d_v; t.d0 += n_d) {
        t.n_d = a->d_v - t.d0 < n_d ? a->d_v - t.d0 : n_d;
        for (uint32_t h = 0; h < group; h += n_h) {
            t.h0 = kvh * group + h;
            t.n_h = group - h < n_h ? group - h : n_h;
            for (t.r0 = r0; t.r0 < r1; t.r0 += n_r) {
                t.n_r = r1 - t.r0 < n_r ? r1 - t.r0 : n_r;
                run_tile(&t);
            }
        }
    }
}

static void attn(const ks_attn_args *a, uint32_t type, uint32_t begin, uint32_t end, void *scratch)
{
    const uint32_t n = a->n_kv_heads;
    for (uint32_t kvh = 0; kvh < n; kvh++) { /* units row * n + kvh in [begin, end) */
        uint32_t r0 = begin > kvh ? (begin - kvh + n - 1) / n : 0, r1 = end > kvh ? (end - kvh + n - 1) / n : 0;
        if (r0 < r1) run_head(a, type, kvh, r0, r1, scratch);
    }
}

#endif
