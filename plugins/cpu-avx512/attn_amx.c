/* ATTN over BF16 and F8E4M3 caches on AMX tiles of bf16, for all numbers of queries. [worker]
 *
 * Scores are K Q^T (keys x queries), outputs V^T P^T (columns x queries): queries are always the columns of what a tile
 * has, so maxima, sums and what is kept are vectors of 16 queries and nothing runs across lanes. Floats enter the tiles
 * as sums of three bf16 (attn_tiles.h), so every product is exact and sums are those of float; that triples the
 * products, but a tile product has 16 times as many of them as an fma.
 *
 * What a query gets depends on its own column only, and blocks of 64 keys lie at multiples of 64 of the absolute
 * position (with `sel`: every 64 of the row's own list of a span). Keys that it does not see count as exact zeros. So
 * its bits are the same alone and in a prompt. */
#include "amx.h"
#include "attn_vec.h"
#include "rows.h"

#define KEYS 64u
#include "attn_tiles.h"

/* Queries of a kv head from which on the tiles serve. A row alone takes 1.2 times as long on them with 8, twice as long
 * with 1; a prompt takes 0.6 of the time. It says something of the model alone, so bits do not depend on it. */
#ifndef KS_AMX_GROUP
#define KS_AMX_GROUP 8u
#endif
#define QUERIES 128u
#define D_MAX 512u   /* columns of V */
#define K_MAX 576u   /* columns of K */
#define COLUMN 16u   /* queries in a tile */
#define Q_FIT 36864u /* numbers of q in a tile of queries: 64 of 576 columns, 128 of 288 */
#define O_FIT 32768u /* of outputs: 64 of 512, 128 of 256 */

/* Registers. */
#define C_00 0 /* sums of rows 0, 1 x columns 0, 1 */
#define C_10 1
#define C_01 2
#define C_11 3
#define A_0 4
#define A_1 5
#define B_0 6
#define B_1 7

typedef struct scratch_mem {
    uint8_t k[KEYS * K_MAX * 2], v[KEYS * D_MAX * 2]; /* tiles of the block */
    uint8_t q[Q_FIT * 2 * PARTS];                     /* tile (column, step, part) */
    float o[O_FIT];                                   /* of this span: (column, n_d, 16) */
    float s[2][KEYS * COLUMN];                        /* scores of two columns: (key, 16) */
    uint8_t p[2][KEYS * COLUMN * 2 * PARTS];          /* probabilities: tile (step, part) */
    float rows[COLUMN * D_MAX];                       /* outputs of one column turned: (16, n_d) */
    float m[QUERIES], l[QUERIES];                     /* of this span: maximum, sum */
    float m_all[QUERIES], l_all[QUERIES];             /* of the spans before */
    uint32_t i0[QUERIES], i1[QUERIES];                /* keys of the block that a row sees */
    const uint8_t *block_v[KEYS];
    block b[2]; /* this and the next one */
} scratch_mem;

_Static_assert(sizeof(scratch_mem) <= ATTN_AMX_SCRATCH_BYTES, "attention scratch");

#define F8_UNIT 256.0f /* E4M3 values count as 2^-8 of what they are */

#include "../cpu-avx2/attn_spans.h"

/* ---- products */

typedef struct product {
    const uint8_t *a, *b;             /* tiles (row, step), (column, step, part) */
    uint8_t *c;                       /* tile (column, row) */
    size_t a_row, b_column, c_column; /* bytes from one to the next */
    uint32_t n_rows, n_steps;
} product;

KS_INLINE void begin_sums(uint8_t *const *c, bool add)
{
    if (add) {
        tile_load(C_00, c[0], 64);
        tile_load(C_10, c[1], 64);
        tile_load(C_01, c[2], 64);
        tile_load(C_11, c[3], 64);
    } else {
        tile_zero(C_00);
        tile_zero(C_10);
        tile_zero(C_01);
        tile_zero(C_11);
    }
}

KS_INLINE void end_sums(uint8_t *const *c)
{
    tile_store(C_00, c[0], 64);
    tile_store(C_10, c[1], 64);
    tile_store(C_01, c[2], 64);
    tile_store(C_11, c[3], 64);
}

/* Two rows and two columns: four sums, so that none waits for itself. */
KS_INLINE void product_2x2(const product *p, uint32_t row, bool add)
{
    const size_t a_row = p->a_row, b_column = p->b_column;
    const uint8_t *a = p->a + row * a_row, *b = p->b;
    uint8_t *first = p->c + (size_t)row * TILE_BYTES, *second = first + p->c_column;
    uint8_t *const c[4] = { first, first + TILE_BYTES, second, second + TILE_BYTES };
    begin_sums(c, add);
    for (uint32_t s = 0; s < p->n_steps; s++, a += TILE_BYTES) {
        tile_load(A_0, a, 64);
        tile_load(A_1, a + a_row, 64);
        for (uint32_t i = 0; i < PARTS; i++, b += TILE_BYTES) {
            tile_load(B_0, b, 64);
            tile_load(B_1, b + b_column, 64);
            tile_add_bf16(C_00, A_0, B_0);
            tile_add_bf16(C_10, A_1, B_0);
            tile_add_bf16(C_01, A_0, B_1);
            tile_add_bf16(C_11, A_1, B_1);
        }
    }
    end_sums(c);
}

/* Four rows and one column; the rows' tiles are loaded again for each part. */
KS_INLINE void product_4x1(const product *p, uint32_t row, bool add)
{
    const size_t a_row = p->a_row;
    const uint8_t *a = p->a + row * a_row, *b = p->b;
    uint8_t *first = p->c + (size_t)row * TILE_BYTES;
    uint8_t *const c[4] = { first, first + TILE_BYTES, first + 2 * TILE_BYTES, first + 3 * TILE_BYTES };
    begin_sums(c, add);
    for (uint32_t s = 0; s < p->n_steps; s++, a += TILE_BYTES) {
        for (uint32_t i = 0; i < PARTS; i++, b += TILE_BYTES) {
            tile_load(B_0, b, 64);
            tile_load(A_0, a, 64);
            tile_add_bf16(C_00, A_0, B_0);
            tile_load(A_1, a + a_row, 64);
            tile_add_bf16(C_10, A_1, B_0);
            tile_load(A_0, a + 2 * a_row, 64);
            tile_add_bf16(C_01, A_0, B_0);
            tile_load(A_1, a + 3 * a_row, 64);
            tile_add_bf16(C_11, A_1, B_0);
        }
    }
    end_sums(c);
}

/* n_rows is a multiple of four; one or two columns. */
KS_INLINE void multiply(const product *p, uint32_t n_columns, bool add)
{
    tile_memory();
    for (uint32_t row = 0; row < p->n_rows; row += n_columns == 2 ? 2 : 4) {
        if (n_columns == 2)
            product_2x2(p, row, add);
        else
            product_4x1(p, row, add);
    }
    tile_memory();
}

static void column_scores(const tile *t, uint32_t column, uint32_t n)
{
    scratch_mem *mem = t->mem;
    const size_t row = (size_t)t->a->d_k / STEP * TILE_BYTES;
    const product p = { .a = mem->k,
                        .b = mem->q + column * row * PARTS,
                        .c = (uint8_t *)mem->s,
                        .a_row = row,
                        .b_column = row * PARTS,
                        .c_column = sizeof mem->s[0],
                        .n_rows = KEYS / 16,
                        .n_steps = t->a->d_k / STEP };
    multiply(&p, n, false);
}

static float *column_output(const tile *t, uint32_t column)
{
    return t->mem->o + (size_t)column * t->n_d * COLUMN;
}

/* Of the first n_keys of the block. */
static void column_values(const tile *t, uint32_t column, uint32_t n, uint32_t n_keys)
{
    const product p = { .a = t->mem->v,
                        .b = t->mem->p[0],
                        .c = (uint8_t *)column_output(t, column),
                        .a_row = (size_t)KEYS / STEP * TILE_BYTES,
                        .b_column = sizeof t->mem->p[0],
                        .c_column = sizeof(float) * t->n_d * COLUMN,
                        .n_rows = t->n_d / 16,
                        .n_steps = n_keys / STEP };
    multiply(&p, n, true);
}

/* ---- softmax */

/* Keys [i0, i1) that the queries of a column see. */
typedef struct limits {
    int32_t i0[COLUMN], i1[COLUMN];
} limits;

static void limits_of(const tile *t, uint32_t column, limits *ret)
{
    for (uint32_t i = 0; i < COLUMN; i++) {
        uint32_t q = column * COLUMN + i, r = q / t->n_h;
        ret->i0[i] = r < t->n_r ? (int32_t)t->mem->i0[r] : 0;
        ret->i1[i] = r < t->n_r ? (int32_t)t->mem->i1[r] : 0;
    }
}

KS_INLINE __mmask16 seen(const limits *at, uint32_t key)
{
    const __m512i k = _mm512_set1_epi32((int32_t)key);
    return _mm512_mask_cmplt_epi32_mask(_mm512_cmpge_epi32_mask(k, _mm512_loadu_si512(at->i0)), k,
                                        _mm512_loadu_si512(at->i1));
}

/* A block for some queries. */
typedef struct view {
    uint32_t n_keys; /* whole steps of keys, of which some are seen */
    bool all;        /* all keys of the block by all queries of the tile */
} view;

/* Scores as they count: capped, and -infinity where a query does not see the key. */
static void final_scores(const tile *t, uint32_t column, const view *w, float *s)
{
    const vec cap = v_set1(t->a->softcap), low = v_set1(-INFINITY);
    limits at;
    limits_of(t, column, &at);
    for (uint32_t i = 0; i < w->n_keys; i++, s += COLUMN) {
        vec x = v_load(s);
        if (t->a->softcap != 0) x = v_mul(cap, v_tanh(v_div(x, cap)));
        v_store(s, _mm512_mask_mov_ps(low, seen(&at, i), x));
    }
}

/* A new maximum makes the outputs so far smaller. */
static void keep_outputs(float *o, uint32_t n, vec keep)
{
    for (uint32_t d = 0; d < n; d++, o += COLUMN) v_store(o, v_mul(v_load(o), keep));
}

/* Scores of a column to parts of probabilities; even and odd keys are summed apart. */
static void softmax(const tile *t, uint32_t column, const view *w, float *s, uint8_t *p)
{
    float *m = t->mem->m + (size_t)column * COLUMN, *l = t->mem->l + (size_t)column * COLUMN;
    if (!w->all || t->a->softcap != 0) final_scores(t, column, w, s);
    vec max0 = v_load(s), max1 = v_load(s + COLUMN), sum0 = v_set1(0), sum1 = sum0, old = v_load(m);
    for (uint32_t i = 2; i < w->n_keys; i += 2) {
        max0 = v_max(max0, v_load(s + (size_t)i * COLUMN));
        max1 = v_max(max1, v_load(s + (size_t)(i + 1) * COLUMN));
    }
    const vec max = v_max(v_max(max0, max1), old), keep = v_keep(old, max);
    /* Who has seen no key yet has only -infinity here. */
    const vec from = _mm512_mask_mov_ps(max, _mm512_cmp_ps_mask(max, v_set1(-INFINITY), _CMP_EQ_OQ), v_set1(0));
    for (uint32_t i = 0; i < w->n_keys; i += 2, s += 2 * COLUMN) {
        vec a = v_exp(v_sub(v_load(s), from)), b = v_exp(v_sub(v_load(s + COLUMN), from));
        sum0 = v_add(sum0, a);
        sum1 = v_add(sum1, b);
        store_parts(a, b, p + (size_t)(i / STEP) * PARTS * TILE_BYTES + i % STEP * 32);
    }
    v_store(m, max);
    v_store(l, v_fma(v_load(l), keep, v_add(sum0, sum1)));
    if (_mm512_cmp_ps_mask(keep, v_set1(1), _CMP_NEQ_UQ) != 0) keep_outputs(column_output(t, column), t->n_d, keep);
}

/* ---- values that are not finite */

static float value(uint32_t type, const uint8_t *v, uint32_t d)
{
    uint32_t bits = type == KS_T_F8E4M3 ? (v[d] & 0x7f) == 0x7f ? 0x7fc00000u : 0 : 0;
    float f;
    if (type == KS_T_BF16) bits = (uint32_t)v[2 * d] << 16 | (uint32_t)v[2 * d + 1] << 24;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* 0 times such a value is not 0, and a query may have a probability of 0 only because it does not see the key. So they
 * leave the tiles, ... */
static void clear_not_finite(const tile *t)
{
    uint16_t *v = (uint16_t *)(void *)t->mem->v;
    for (size_t i = 0; i < (size_t)KEYS * t->n_d; i++)
        if ((v[i] & 0x7f80) == 0x7f80) v[i] = 0;
}

/* ... and queries that see the key get them apart. p: of key i at what store_parts made of it; its first part is 0 only
 * if it is. */
static void add_not_finite(const tile *t, uint32_t column, const view *w, const uint8_t *parts)
{
    limits at;
    limits_of(t, column, &at);
    for (uint32_t i = 0; i < w->n_keys; i++) {
        const __m512i pair = _mm512_load_si512(parts + (size_t)(i / STEP) * PARTS * TILE_BYTES + i % STEP / 2 * 64);
        const vec p = _mm512_castsi512_ps(i % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000))
                                                : _mm512_slli_epi32(pair, 16));
        for (uint32_t d = 0; d < t->n_d; d++) {
            float v = value(t->type, t->mem->block_v[i], t->d0 + d), *o = column_output(t, column) + d * COLUMN;
            if (isfinite(v)) continue;
            v_store(o, _mm512_mask3_fmadd_ps(p, v_set1(v), v_load(o), seen(&at, i)));
        }
    }
}

/* ---- what attn_spans.h asks for */

static uint32_t smallest(uint32_t a, uint32_t b, uint32_t c)
{
    a = a < b ? a : b;
    return a < c ? a : c;
}

static uint32_t tile_queries(const ks_attn_args *a, uint32_t o_stride)
{
    return smallest(QUERIES, Q_FIT / a->d_k / COLUMN * COLUMN, O_FIT / o_stride / COLUMN * COLUMN);
}

static uint32_t columns(uint32_t n_queries)
{
    return (n_queries + COLUMN - 1) / COLUMN;
}

static void tile_begin(const tile *t)
{
    const uint32_t n_q = t->n_r * t->n_h, d_k = t->a->d_k;
    const float scale = t->type == KS_T_F8E4M3 ? t->a->scale * F8_UNIT : t->a->scale;
    for (uint32_t c = 0; c < columns(n_q); c++) {
        const float *q[COLUMN];
        uint32_t n = n_q - c * COLUMN < COLUMN ? n_q - c * COLUMN : COLUMN;
        for (uint32_t i = 0; i < n; i++) q[i] = query(t, c * COLUMN + i);
        pack_queries(t->type, q, n, d_k, scale, t->mem->q + (size_t)c * COLUMN * d_k * 2 * PARTS);
    }
}

static void tile_clear(const tile *t)
{
    const uint32_t n = columns(t->n_r * t->n_h);
    for (uint32_t q = t->n_r * t->n_h; q < n * COLUMN; q++) t->mem->m[q] = -INFINITY, t->mem->l[q] = 0;
    memset(t->mem->o, 0, sizeof(float) * n * COLUMN * t->n_d);
}

/* A key has its place in the block by its position, whether those before it are seen or not. */
static uint32_t tile_block(const tile *t, uint32_t from, uint32_t to, block *ret)
{
    const uint32_t missing = from % KEYS;
    uint32_t end = block_dense(t->a, t->kvh, t->size, from, to, ret);
    if (missing == 0) return end;
    memmove(ret->k + missing, ret->k, sizeof ret->k[0] * (KEYS - missing));
    memmove(ret->v + missing, ret->v, sizeof ret->v[0] * (KEYS - missing));
    for (uint32_t i = 0; i < missing; i++) ret->k[i] = ret->v[i] = no_key;
    ret->first -= missing;
    ret->n += missing;
    return end;
}

/* Columns [c, end) of the block. */
static void run_columns(const tile *t, const view *w, const block *next, uint32_t c, uint32_t end)
{
    scratch_mem *mem = t->mem;
    bool finite = true, turned = false;
    for (uint32_t n; c < end; c += n) {
        n = end - c < 2 ? 1 : 2;
        column_scores(t, c, n);
        for (uint32_t i = 0; i < n; i++) softmax(t, c + i, w, mem->s[i], mem->p[i]);
        if (!turned) { /* values after the first scores: they may still be on their way */
            finite = tiles_v(t->type, mem->block_v, next, t->d0, t->n_d, w->n_keys, mem->v);
            if (!finite) clear_not_finite(t);
            turned = true;
        }
        column_values(t, c, n, w->n_keys);
        for (uint32_t i = 0; i < n && !finite; i++) add_not_finite(t, c + i, w, mem->p[i]);
    }
}

static void tile_run(const tile *t, const block *b, const block *next)
{
    scratch_mem *mem = t->mem;
    uint32_t ra = 0, rb = t->n_r;
    view w = { .n_keys = (b->n + STEP - 1) / STEP * STEP, .all = true };
    row_ranges(t, b);
    for (uint32_t r = 0; r < t->n_r; r++) w.all = w.all && mem->i0[r] == 0 && mem->i1[r] == KEYS;
    while (ra < rb && mem->i0[ra] >= mem->i1[ra]) ra++; /* both ends of what rows see grow with the row */
    while (rb > ra && mem->i0[rb - 1] >= mem->i1[rb - 1]) rb--;
    if (ra == rb) return;
    for (uint32_t i = 0; i < KEYS; i++) mem->block_v[i] = i < b->n ? b->v[i] : no_key;
    tiles_k(t->type, b, next ? next : b, t->a->d_k / STEP, w.n_keys, mem->k);
    run_columns(t, &w, next ? next : b, ra * t->n_h / COLUMN, columns(rb * t->n_h));
}

static float *tile_output(const tile *t, uint32_t q)
{
    float *rows = t->mem->rows;
    const float *o = column_output(t, q / COLUMN);
    for (uint32_t d = 0; d < t->n_d && q % COLUMN == 0; d += 16, o += 16 * COLUMN) {
        vec x[16];
        for (uint32_t i = 0; i < 16; i++) x[i] = v_load(o + (size_t)i * COLUMN);
        turn_16(x);
        for (uint32_t i = 0; i < 16; i++) v_store(rows + (size_t)i * t->n_d + d, x[i]);
    }
    return rows + (size_t)(q % COLUMN) * t->n_d;
}

/* ---- rows */

#define FLUSH 0x8040u /* of MXCSR: denormal numbers count as 0 and become 0 */

static void attn_tiles(const ks_attn_args *a, uint32_t type, uint32_t begin, uint32_t end, void *scratch,
                       ks_kernel_fn other_shapes)
{
    if (a->d_k % 64 != 0 || a->d_k > K_MAX || a->d_v % 64 != 0 || a->d_v > D_MAX ||
        a->n_heads < KS_AMX_GROUP * a->n_kv_heads) {
        other_shapes(a, begin, end, scratch);
        return;
    }
    tile_config c = { .palette = 1 };
    for (uint32_t i = 0; i < 8; i++) c.row_bytes[i] = 64, c.rows[i] = 16;
    const uint32_t control = _mm_getcsr();
    _mm_setcsr(control | FLUSH); /* tiles do so anyway, and a denormal number takes a hundred times as long */
    tile_configure(&c);
    attn(a, type, begin, end, scratch);
    tile_release();
    _mm_setcsr(control);
}

void attn_bf16_amx(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn_tiles(args, KS_T_BF16, begin, end, scratch, attn_bf16_avx512);
}

void attn_f8e4m3_amx(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn_tiles(args, KS_T_F8E4M3, begin, end, scratch, attn_f8e4m3_vbmi);
}
