/* ATTN: online softmax over blocks of 32 keys. [worker]
 *
 * Units of one kv head are worked on together: a tile is some rows x the query heads of that kv head. Blocks start
 * at multiples of 32 of the absolute position (with `sel`: every 32 of the row's own list), are
 * converted to float once and used by all queries of the tile. What a query does with a block depends on its own keys
 * only, so the tile's shape changes no bit. Per span of KS_ATTN_SPAN positions a query has a maximum, a sum
 * and an output of its own in scratch; at the end of a span they are merged into the total, which lives in
 * the output row itself.
 *
 * Any head size works: scores add up over pieces of D_MAX columns of K, and columns of V beyond D_MAX are a
 * second pass. */
#include "rows.h"
#include "simd.h"

#include <math.h>

#define KEYS 32u
#define D_MAX 576u      /* columns of K or V converted at a time: MLA's 512 + 64 in one piece */
#define QUERIES 64u     /* in a tile */
#define O_FLOATS 16384u /* outputs of a tile: 64 queries of 256 columns, 28 of 576 */

typedef struct scratch_mem {
    float k[KEYS * D_MAX], v[KEYS * D_MAX]; /* a block as floats; not used if the cache is float */
    float o[O_FLOATS];                      /* of this span */
    float s[QUERIES][KEYS];                 /* scores, then probabilities */
    float m[QUERIES], l[QUERIES];           /* of this span: maximum, sum */
    float m_all[QUERIES], l_all[QUERIES];   /* of the spans before */
} scratch_mem;

_Static_assert(sizeof(scratch_mem) <= ATTN_SCRATCH_BYTES, "attention scratch");

typedef struct tile {
    const ks_attn_args *a;
    scratch_mem *mem;
    uint32_t type;
    uint32_t kvh, h0, n_h; /* query heads h0 .. h0 + n_h of kv head kvh */
    uint32_t r0, n_r;      /* rows */
    uint32_t d0, n_d;      /* columns of V */
} tile;

typedef struct block {
    const float *k[KEYS], *v[KEYS];
    uint32_t j[KEYS]; /* positions, ascending */
    uint32_t n;
    uint32_t last; /* key that will be read if all between are; 0: unknown */
} block;

/* First and last key that row r may see without `sel`. */
static void visible(const ks_attn_args *a, uint32_t r, uint32_t *ret_lo, uint32_t *ret_hi)
{
    uint32_t p = a->pos + r, lo = 0;
    if (a->window && p >= a->window) lo = p - a->window + 1;
    if (a->chunk && p - p % a->chunk > lo) lo = p - p % a->chunk;
    *ret_lo = lo;
    *ret_hi = p;
}

/* Eight floats from 8 elements; the caller knows that all 8 may be read. */
KS_INLINE __m256 convert_8(uint32_t type, const uint8_t *p)
{
    if (type == KS_T_BF16)
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
    /* e4m3 as f16 with the exponent 8 too small: exact, denormals included. 0x7f is NaN. */
    __m128i b = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)p));
    __m128i mag = _mm_and_si128(b, _mm_set1_epi16(0x7f)), sign = _mm_slli_epi16(_mm_srli_epi16(b, 7), 15);
    __m128i nan = _mm_srli_epi16(_mm_cmpeq_epi16(mag, _mm_set1_epi16(0x7f)), 1);
    __m128i half = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(mag, 7), sign), nan);
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

/* n elements to floats; the last ones through a copy, since nothing behind them may be read. */
KS_INLINE void convert(uint32_t type, const uint8_t *src, uint32_t n, float *dst)
{
    const uint32_t size = type == KS_T_BF16 ? 2 : 1;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, convert_8(type, src + (size_t)i * size));
    if (i < n) {
        uint8_t last[16] = { 0 };
        memcpy(last, src + (size_t)i * size, (size_t)(n - i) * size);
        _mm256_maskstore_ps(dst + i, mask_first(n - i), convert_8(type, last));
    }
}

/* Where column d of the tile's kv head lies in K (or V) of key j. */
KS_INLINE const uint8_t *element(const tile *t, int of_v, uint32_t j, uint32_t d)
{
    const ks_attn_args *a = t->a;
    size_t page_bytes = of_v ? a->v_page_bytes : a->k_page_bytes, stride = of_v ? a->v_stride : a->k_stride;
    size_t column = (size_t)t->kvh * (of_v ? a->d_v : a->d_k) + d, size = ks_type_bits(t->type) / 8;
    const uint8_t *page = (const uint8_t *)(of_v ? a->v : a->k) + a->pages[j / a->page_tok] * page_bytes;
    return page + (j % a->page_tok * stride + column) * size;
}

/* Rows of a head lie apart, so the hardware does not see the next ones coming. */
KS_INLINE void prefetch(const tile *t, int of_v, uint32_t j, uint32_t n)
{
    const char *p = (const char *)element(t, of_v, j, 0);
    for (size_t i = 0; i < (size_t)n * ks_type_bits(t->type) / 8; i += 64) _mm_prefetch(p + i, _MM_HINT_T1);
}

/* Columns [d0, d0 + n) of the tile's kv head in K (or V) for all keys of the block. */
KS_INLINE void fetch(const tile *t, int of_v, uint32_t d0, uint32_t n, const block *b, const float *ret[KEYS])
{
    float *dst = of_v ? t->mem->v : t->mem->k;
    for (uint32_t i = 0; i < b->n; i++) {
        const uint8_t *p = element(t, of_v, b->j[i], d0);
        if (t->type == KS_T_F32) {
            ret[i] = (const float *)(const void *)p;
        } else {
            convert(t->type, p, n, dst + i * D_MAX);
            ret[i] = dst + i * D_MAX;
        }
    }
    for (uint32_t i = b->n; i < KEYS; i++) ret[i] = ret[0]; /* scores come in fours; masked afterwards */
}

/* Four sums of eight lanes each. */
KS_INLINE __m128 sum_4x8(const __m256 s[4])
{
    __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

/* ret[q][0..3] += q . k over n columns, for n_q (1 or 2) queries and four keys. */
KS_INLINE void dots(const float *const q[2], uint32_t n_q, const float *const k[4], uint32_t n, float *const ret[2])
{
    __m256 s[2][4];
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t i = 0; i < 4; i++) s[x][i] = _mm256_setzero_ps();
    uint32_t d = 0;
    for (; d + 8 <= n; d += 8) {
        for (uint32_t i = 0; i < 4; i++) {
            __m256 kv = _mm256_loadu_ps(k[i] + d);
            for (uint32_t x = 0; x < n_q; x++) s[x][i] = _mm256_fmadd_ps(_mm256_loadu_ps(q[x] + d), kv, s[x][i]);
        }
    }
    if (d < n) {
        __m256i mask = mask_first(n - d);
        for (uint32_t i = 0; i < 4; i++) {
            __m256 kv = _mm256_maskload_ps(k[i] + d, mask);
            for (uint32_t x = 0; x < n_q; x++)
                s[x][i] = _mm256_fmadd_ps(_mm256_maskload_ps(q[x] + d, mask), kv, s[x][i]);
        }
    }
    for (uint32_t x = 0; x < n_q; x++) _mm_storeu_ps(ret[x], _mm_add_ps(_mm_loadu_ps(ret[x]), sum_4x8(s[x])));
}

/* Keys [i0, i1) of the block that row r sees. */
static void own_keys(const tile *t, uint32_t r, const block *b, uint32_t *ret_i0, uint32_t *ret_i1)
{
    uint32_t lo, hi, i0 = 0, i1 = b->n;
    visible(t->a, r, &lo, &hi);
    while (i0 < i1 && b->j[i0] < lo) i0++;
    while (i1 > i0 && b->j[i1 - 1] > hi) i1--;
    *ret_i0 = i0;
    *ret_i1 = i1;
}

/* Raw scores of columns [c0, c0 + n) of d_k for every query of a row; heads in pairs share the keys' loads. */
static void row_scores(const tile *t, uint32_t ri, const block *b, uint32_t i0, uint32_t i1, uint32_t c0, uint32_t n)
{
    const ks_attn_args *a = t->a;
    const float *q = a->q + (t->r0 + ri) * a->q_stride + (size_t)t->h0 * a->d_k + c0;
    float(*s)[KEYS] = t->mem->s + ri * t->n_h;
    for (uint32_t h = 0; h < t->n_h; h += 2) {
        const float *qs[2] = { q + (size_t)h * a->d_k, q + ((size_t)h + 1) * a->d_k };
        for (uint32_t i = i0 & ~3u; i < i1; i += 4) {
            if (h + 1 < t->n_h) {
                float *ret[2] = { s[h] + i, s[h + 1] + i };
                dots(qs, 2, b->k + i, n, ret);
            } else {
                float *ret[2] = { s[h] + i, s[h] + i };
                dots(qs, 1, b->k + i, n, ret);
            }
        }
    }
}

/* Scores to probabilities relative to the new maximum; returns the factor for what was summed before. */
static float softmax_block(const ks_attn_args *a, float s[KEYS], uint32_t i0, uint32_t i1, float *m, float *l)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 scale = _mm256_set1_ps(a->scale), minus_inf = _mm256_set1_ps(-INFINITY);
    __m256 v[KEYS / 8], own[KEYS / 8], max = minus_inf, sum = _mm256_setzero_ps();
    for (uint32_t i = 0; i < KEYS / 8; i++) {
        __m256i at = _mm256_add_epi32(lane, _mm256_set1_epi32((int)(8 * i)));
        __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)i0), at),
                                      _mm256_cmpgt_epi32(at, _mm256_set1_epi32((int)i1 - 1)));
        v[i] = _mm256_mul_ps(_mm256_loadu_ps(s + 8 * i), scale);
        if (a->softcap != 0) {
            const __m256 cap = _mm256_set1_ps(a->softcap);
            v[i] = _mm256_mul_ps(cap, tanh_8(_mm256_div_ps(v[i], cap)));
        }
        own[i] = _mm256_castsi256_ps(out);
        v[i] = _mm256_blendv_ps(v[i], minus_inf, own[i]);
        max = _mm256_max_ps(max, v[i]);
    }
    float block_max = max_8(max), m_new = block_max > *m ? block_max : *m;
    float keep = *m == m_new ? 1.0f : *m == -INFINITY ? 0.0f : exp_1(*m - m_new);
    for (uint32_t i = 0; i < KEYS / 8; i++) {
        __m256 p = exp_8(_mm256_sub_ps(v[i], _mm256_set1_ps(m_new)));
        p = _mm256_andnot_ps(own[i], p);
        _mm256_storeu_ps(s + 8 * i, p);
        sum = _mm256_add_ps(sum, p);
    }
    *l = *l * keep + sum_8(sum);
    *m = m_new;
    return keep;
}

/* o[x] = o[x] * keep[x] + sum over keys of p[x] v, for n_q (1 or 2) queries and n_v vectors of columns. */
KS_INLINE void weigh(float *const o[2], const float *const p[2], const float keep[2], uint32_t n_q, const block *b,
                     uint32_t i0, uint32_t i1, uint32_t d, uint32_t n_v)
{
    __m256 s[2][4];
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t v = 0; v < n_v; v++)
            s[x][v] = _mm256_mul_ps(_mm256_loadu_ps(o[x] + d + 8 * v), _mm256_set1_ps(keep[x]));
    for (uint32_t i = i0; i < i1; i++) {
        for (uint32_t v = 0; v < n_v; v++) {
            __m256 value = _mm256_loadu_ps(b->v[i] + d + 8 * v);
            for (uint32_t x = 0; x < n_q; x++) s[x][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(p[x] + i), value, s[x][v]);
        }
    }
    for (uint32_t x = 0; x < n_q; x++)
        for (uint32_t v = 0; v < n_v; v++) _mm256_storeu_ps(o[x] + d + 8 * v, s[x][v]);
}

/* The last, partial vector of columns. */
static void weigh_tail(float *o, const float *p, float keep, const block *b, uint32_t i0, uint32_t i1, uint32_t d,
                       uint32_t n)
{
    __m256i mask = mask_first(n);
    __m256 s = _mm256_mul_ps(_mm256_maskload_ps(o + d, mask), _mm256_set1_ps(keep));
    for (uint32_t i = i0; i < i1; i++)
        s = _mm256_fmadd_ps(_mm256_broadcast_ss(p + i), _mm256_maskload_ps(b->v[i] + d, mask), s);
    _mm256_maskstore_ps(o + d, mask, s);
}

KS_INLINE void row_values_n(const tile *t, uint32_t q0, uint32_t n_q, const float keep[2], const block *b, uint32_t i0,
                            uint32_t i1)
{
    float *o[2] = { t->mem->o + (size_t)q0 * t->n_d, t->mem->o + (size_t)(q0 + n_q - 1) * t->n_d };
    const float *p[2] = { t->mem->s[q0], t->mem->s[q0 + n_q - 1] };
    uint32_t d = 0;
    for (; d + 32 <= t->n_d; d += 32) weigh(o, p, keep, n_q, b, i0, i1, d, 4);
    for (; d + 8 <= t->n_d; d += 8) weigh(o, p, keep, n_q, b, i0, i1, d, 1);
    if (d == t->n_d) return;
    for (uint32_t x = 0; x < n_q; x++) weigh_tail(o[x], p[x], keep[x], b, i0, i1, d, t->n_d - d);
}

/* One block for all queries of the tile. */
KS_INLINE void run_block(const tile *t, block *b)
{
    const ks_attn_args *a = t->a;
    scratch_mem *mem = t->mem;
    memset(mem->s, 0, sizeof mem->s[0] * t->n_r * t->n_h);
    for (uint32_t i = 0; i < b->n; i++) prefetch(t, 1, b->j[i], t->n_d);
    for (uint32_t i = 0; i < b->n && b->j[i] + KEYS <= b->last; i++) prefetch(t, 0, b->j[i] + KEYS, a->d_k);
    for (uint32_t c0 = 0; c0 < a->d_k; c0 += D_MAX) {
        uint32_t n = a->d_k - c0 < D_MAX ? a->d_k - c0 : D_MAX, i0, i1;
        fetch(t, 0, c0, n, b, b->k);
        for (uint32_t ri = 0; ri < t->n_r; ri++) {
            own_keys(t, t->r0 + ri, b, &i0, &i1);
            if (i0 < i1) row_scores(t, ri, b, i0, i1, c0, n);
        }
    }
    fetch(t, 1, t->d0, t->n_d, b, b->v);
    for (uint32_t ri = 0; ri < t->n_r; ri++) {
        uint32_t i0, i1;
        own_keys(t, t->r0 + ri, b, &i0, &i1);
        if (i0 == i1) continue;
        for (uint32_t h = 0; h < t->n_h; h += 2) {
            uint32_t q = ri * t->n_h + h, n_q = h + 1 < t->n_h ? 2 : 1;
            float keep[2] = { 1, 1 };
            for (uint32_t x = 0; x < n_q; x++)
                keep[x] = softmax_block(a, mem->s[q + x], i0, i1, &mem->m[q + x], &mem->l[q + x]);
            if (n_q == 2)
                row_values_n(t, q, 2, keep, b, i0, i1);
            else
                row_values_n(t, q, 1, keep, b, i0, i1);
        }
    }
}

static float *output(const tile *t, uint32_t q)
{
    uint32_t ri = q / t->n_h, h = t->h0 + q % t->n_h;
    return t->a->o + (t->r0 + ri) * t->a->o_stride + (size_t)h * t->a->d_v + t->d0;
}

/* dst = dst * f + src * g; src may be NULL. */
static void blend(float *dst, float f, const float *src, float g, uint32_t n)
{
    const __m256 ff = _mm256_set1_ps(f), gg = _mm256_set1_ps(g);
    for (uint32_t d = 0; d < n; d += 8) {
        __m256i mask = mask_first(n - d < 8 ? n - d : 8);
        __m256 v = _mm256_mul_ps(_mm256_maskload_ps(dst + d, mask), ff);
        if (src) v = _mm256_fmadd_ps(_mm256_maskload_ps(src + d, mask), gg, v);
        _mm256_maskstore_ps(dst + d, mask, v);
    }
}

static void span_begin(const tile *t)
{
    uint32_t n = t->n_r * t->n_h;
    for (uint32_t q = 0; q < n; q++) t->mem->m[q] = -INFINITY, t->mem->l[q] = 0;
    memset(t->mem->o, 0, sizeof(float) * n * t->n_d);
}

static void span_end(const tile *t)
{
    scratch_mem *mem = t->mem;
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) {
        if (mem->m[q] == -INFINITY) continue; /* no key of this span */
        float m = mem->m[q] > mem->m_all[q] ? mem->m[q] : mem->m_all[q];
        float old = mem->m_all[q] == -INFINITY ? 0.0f : exp_1(mem->m_all[q] - m), new = exp_1(mem->m[q] - m);
        blend(output(t, q), old, mem->o + (size_t)q * t->n_d, new, t->n_d);
        mem->l_all[q] = mem->l_all[q] * old + mem->l[q] * new;
        mem->m_all[q] = m;
    }
}

static void finish(const tile *t)
{
    scratch_mem *mem = t->mem;
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) {
        if (mem->m_all[q] == -INFINITY) continue; /* no key at all: zeros */
        float f = 1.0f, den = mem->l_all[q];
        if (t->a->sinks) {
            float sink = t->a->sinks[t->h0 + q % t->n_h], m = sink > mem->m_all[q] ? sink : mem->m_all[q];
            f = exp_1(mem->m_all[q] - m);
            den = den * f + exp_1(sink - m);
        }
        blend(output(t, q), f / den, NULL, 0, t->n_d);
    }
}

/* All blocks of the positions the tile's rows see. */
KS_INLINE void run_dense(const tile *t)
{
    uint32_t lo, hi, unused;
    visible(t->a, t->r0, &lo, &unused);
    visible(t->a, t->r0 + (t->n_r - 1), &unused, &hi); /* both limits grow with the row */
    for (uint32_t j = lo; j <= hi;) {
        uint32_t span_last = j | (KS_ATTN_SPAN - 1);
        span_begin(t);
        while (j <= hi && j <= span_last) {
            block b = { .last = hi };
            uint32_t block_last = j | (KEYS - 1);
            for (; j <= hi && j <= block_last; j++) b.j[b.n++] = j;
            run_block(t, &b);
        }
        span_end(t);
    }
}

/* One row with a list of positions. */
KS_INLINE void run_sparse(const tile *t)
{
    const uint32_t *sel = t->a->sel + (size_t)t->r0 * t->a->sel_stride, n = t->a->n_sel[t->r0];
    uint32_t lo, hi, i = 0;
    visible(t->a, t->r0, &lo, &hi);
    while (i < n && sel[i] < lo) i++;
    while (i < n && sel[i] <= hi) {
        uint32_t span_last = sel[i] | (KS_ATTN_SPAN - 1);
        span_begin(t);
        while (i < n && sel[i] <= hi && sel[i] <= span_last) {
            block b = { .n = 0 };
            for (; i < n && b.n < KEYS && sel[i] <= hi && sel[i] <= span_last; i++) b.j[b.n++] = sel[i];
            run_block(t, &b);
        }
        span_end(t);
    }
}

KS_INLINE void run_tile(const tile *t)
{
    for (uint32_t q = 0; q < t->n_r * t->n_h; q++) {
        t->mem->m_all[q] = -INFINITY;
        t->mem->l_all[q] = 0;
        memset(output(t, q), 0, sizeof(float) * t->n_d);
    }
    if (t->a->sel)
        run_sparse(t);
    else
        run_dense(t);
    finish(t);
}

/* Rows [r0, r1) of one kv head: cut into tiles. */
KS_INLINE void run_head(const ks_attn_args *a, uint32_t type, uint32_t kvh, uint32_t r0, uint32_t r1, scratch_mem *mem)
{
    const uint32_t group = a->n_heads / a->n_kv_heads, n_d = a->d_v < D_MAX ? a->d_v : D_MAX;
    const uint32_t fit = O_FLOATS / n_d, most = fit < QUERIES ? fit : QUERIES;
    const uint32_t n_h = group < most ? group : most, n_r = a->sel || n_h < group ? 1 : most / group;
    tile t = { .a = a, .mem = mem, .type = type, .kvh = kvh };
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

KS_INLINE void attn(const ks_attn_args *a, uint32_t type, uint32_t begin, uint32_t end, void *scratch)
{
    const uint32_t n = a->n_kv_heads;
    for (uint32_t kvh = 0; kvh < n; kvh++) { /* units row * n + kvh in [begin, end) */
        uint32_t r0 = begin > kvh ? (begin - kvh + n - 1) / n : 0, r1 = end > kvh ? (end - kvh + n - 1) / n : 0;
        if (r0 < r1) run_head(a, type, kvh, r0, r1, scratch);
    }
}

void attn_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_F32, begin, end, scratch);
}

void attn_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_BF16, begin, end, scratch);
}

void attn_f8e4m3_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_F8E4M3, begin, end, scratch);
}
