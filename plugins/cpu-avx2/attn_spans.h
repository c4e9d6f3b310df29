/* What is around the blocks of attention: rows and heads cut into tiles, keys into spans and blocks, sums of spans
 * merged, sinks. Per span of KS_ATTN_SPAN positions a query has a maximum, a sum and an output of its own in scratch;
 * at the end of a span they are merged into the total, which lives in the output row itself.
 *
 * Included by attn_impl.h and cpu-avx512's attn_amx.c, which say before it what scratch_mem is (m, l, m_all, l_all, i0,
 * i1, b), D_MAX and F8_UNIT, and define the functions tile_*. No state. [worker] */
#ifndef KS_AVX2_ATTN_SPANS_H
#define KS_AVX2_ATTN_SPANS_H

typedef struct tile {
    const ks_attn_args *a;
    scratch_mem *mem;
    uint32_t type, size;   /* of the cache: KS_T_, bytes */
    uint32_t kvh, h0, n_h; /* query heads h0 .. h0 + n_h of kv head kvh */
    uint32_t r0, n_r;      /* rows */
    uint32_t d0, n_d;      /* columns of V */
    uint32_t o_stride;     /* n_d as whole vectors */
    bool part;             /* the caller splits the keys */
} tile;

/* Queries of a tile, at most. */
static uint32_t tile_queries(const ks_attn_args *a, uint32_t o_stride);
/* Before the first block. */
static void tile_begin(const tile *t);
/* Outputs become 0. */
static void tile_clear(const tile *t);
/* The block of the position `from`, without what is beyond `to`; returns the position behind it. */
static uint32_t tile_block(const tile *t, uint32_t from, uint32_t to, block *ret);
/* One block for all queries of the tile: m, l and outputs. next: the one after it, or NULL. */
static void tile_run(const tile *t, const block *b, const block *next);
/* The output of query q so far; asked for in ascending order, once a span. */
static float *tile_output(const tile *t, uint32_t q);

/* First and last key that row r may see without `sel`. */
static void visible(const ks_attn_args *a, uint32_t r, uint32_t *ret_lo, uint32_t *ret_hi)
{
    uint32_t p = a->pos + r, lo = 0;
    if (a->window && p >= a->window) lo = p - a->window + 1;
    if (a->chunk && p - p % a->chunk > lo) lo = p - p % a->chunk;
    *ret_lo = lo;
    *ret_hi = p;
}

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

/* ---- spans */

static const float *query(const tile *t, uint32_t q)
{
    const ks_attn_args *a = t->a;
    return a->q + (t->r0 + q / t->n_h) * a->q_stride + (size_t)(t->h0 + q % t->n_h) * a->d_k;
}

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
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) t->mem->m[q] = -INFINITY, t->mem->l[q] = 0;
    tile_clear(t);
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
        const float *o = tile_output(t, q);
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
        if (t->type == KS_T_F8E4M3) f *= F8_UNIT;
        scale(output(t, q), f / den, t->n_d);
    }
}

/* All blocks of the positions in [from, to] that the tile's rows see; these are of one span. */
static void span_dense(const tile *t, uint32_t from, uint32_t to)
{
    block *b = t->mem->b, *next = b + 1;
    uint32_t j = tile_block(t, from, to, b);
    while (j <= to) {
        uint32_t end = tile_block(t, j, to, next);
        tile_run(t, b, next);
        block *done = b;
        b = next, next = done;
        j = end;
    }
    tile_run(t, b, NULL);
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
        tile_run(t, b, NULL);
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
    }
    if (t->part && a->part_merge) {
        merge_part(t);
        finish(t);
        return;
    }
    visible(a, t->r0, &lo, &unused);
    visible(a, t->r0 + (t->n_r - 1), &unused, &hi); /* both limits grow with the row */
    tile_begin(t);
    if (t->part) {
        fill_part(t, lo, hi);
        return;
    }
    run_spans(t, lo, hi);
    finish(t);
}

/* Rows [r0, r1) of one kv head: cut into tiles. */
static void run_head(const ks_attn_args *a, uint32_t type, uint32_t kvh, uint32_t r0, uint32_t r1, scratch_mem *mem)
{
    const uint32_t group = a->n_heads / a->n_kv_heads, n_d = a->d_v < D_MAX ? a->d_v : D_MAX;
    const uint32_t o_stride = (n_d + LANES - 1) / LANES * LANES;
    const uint32_t most = tile_queries(a, o_stride);
    const uint32_t n_h = group < most ? group : most, n_r = a->sel || n_h < group ? 1 : most / group;
    tile t = { .a = a, .mem = mem, .type = type, .size = ks_type_bits(type) / 8, .kvh = kvh, .o_stride = o_stride };
    t.part = KS_HAS(a, part_merge) && a->part;
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
