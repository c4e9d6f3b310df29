/* DELTA: the gated delta rule in chunks, for any width of vectors. [worker]
 *
 * A chunk is KS_DELTA_CHUNK rows from a multiple of it on. With S the matrix before the chunk, c[j] the product of the
 * decays after row j (up to the row looked at) and `total` that of all decays of the chunk so far,
 *   d_i = beta_i (v_i - total_i S^T k_i - sum_{j < i} c_ij (k_j . k_i) d_j)
 *   o_i = scale (total_i S^T q_i + sum_{j <= i} c_ij (k_j . q_i) d_j)
 * and after its last row S becomes total S + sum_j c_j k_j d_j^T. So S is read once for all rows of a chunk that a call
 * brings, and written once a chunk, however the rows come: a row alone (decoding) reads S and writes a row of k and d.
 * S, k and d of the chunk, c and `total` are the state. What a row's numbers are made of, and in which order, does not
 * depend on which rows come with it, so neither does a bit: every sum is one chain of fma, S^T k over the rows of S,
 * the others over j.
 *
 * The state of a head: S in blocks of COLS columns, each (d_k, COLS or fewer, a multiple of 16); k turned round,
 * (d_k, DELTA_ROWS), which is one more block to multiply; d, (DELTA_ROWS, columns); c, (DELTA_ROWS); total. */
#ifndef KS_AVX2_DELTA_IMPL_H
#define KS_AVX2_DELTA_IMPL_H

#include "vec_math.h"

#define DELTA_ROWS KS_DELTA_CHUNK
#define COLS (VALUE_VECS * LANES)

typedef struct delta_mem {
    float p[2 * DELTA_ROWS][COLS];       /* a block of S^T k and S^T q of each row, in turns */
    float w[2 * DELTA_ROWS][DELTA_ROWS]; /* of each row, in turns: c_ij (k_j . k_i), scale c_ij (k_j . q_i) */
    float d[DELTA_ROWS][COLS];           /* c_j d_j */
    float decay[DELTA_ROWS], beta[DELTA_ROWS], total[DELTA_ROWS];
    const float *x[2 * DELTA_ROWS]; /* k and q of each row, in turns */
} delta_mem;

_Static_assert(sizeof(delta_mem) <= DELTA_SCRATCH_BYTES, "delta scratch");

/* A head, and the rows [row, row + n) of it that are rows [at, at + n) of a chunk. */
typedef struct delta_part {
    const ks_delta_args *a;
    delta_mem *mem;
    uint32_t h, columns; /* columns of S: d_v in whole lines */
    float *s, *k, *d, *c, *total;
    uint32_t row, at, n;
} delta_part;

/* decay = e^(neg_a softplus(a + dt)) and beta = sigmoid(b) of each row. */
static void delta_gates(const delta_part *t)
{
    const ks_delta_args *a = t->a;
    delta_mem *m = t->mem;
    for (uint32_t i = 0; i < DELTA_ROWS; i++) {
        size_t r = t->row + (i < t->n ? i : 0);
        m->decay[i] = a->a[r * a->a_stride + t->h];
        m->beta[i] = a->b[r * a->b_stride + t->h];
    }
    for (uint32_t i = 0; i < DELTA_ROWS; i += LANES) {
        vec x = v_softplus(v_add(v_load(m->decay + i), v_set1(a->dt[t->h])));
        v_store(m->decay + i, v_exp(v_mul(x, v_set1(a->neg_a[t->h]))));
        v_store(m->beta + i, v_gate(v_set1(1), v_load(m->beta + i)));
    }
}

/* k of the new rows into the state, turned round. Rows are far apart in memory: v comes from the cache when it is
 * needed, and so do q and k of the next chunk. */
static void delta_keys(const delta_part *t)
{
    const ks_delta_args *a = t->a;
    size_t column = (size_t)(t->h / (a->n_v_heads / a->n_k_heads)) * a->d_k;
    for (uint32_t i = 0; i < t->n; i++) {
        size_t r = t->row + i, next = r + t->n < a->n_rows ? r + t->n : a->n_rows - 1;
        const float *k = a->k + r * a->k_stride + column, *v = a->v + r * a->v_stride + (size_t)t->h * a->d_v;
        float *to = t->k + t->at + i;
        t->mem->x[2 * i] = k;
        t->mem->x[2 * i + 1] = a->q + r * a->q_stride + column;
        for (uint32_t e = 0; e < a->d_v; e += 16) _mm_prefetch((const char *)(v + e), _MM_HINT_T0);
        for (uint32_t e = 0; e < a->d_k; e++) {
            if (e % 16 == 0) {
                _mm_prefetch((const char *)(a->k + next * a->k_stride + column + e), _MM_HINT_T0);
                _mm_prefetch((const char *)(a->q + next * a->q_stride + column + e), _MM_HINT_T0);
            }
            to[(size_t)e * DELTA_ROWS] = k[e];
        }
    }
}

/* y[r][0 .. n_v vectors) = x[r] times a block of `cols` columns. */
KS_INLINE void product_tile(const float *const *from, uint32_t n_r, const float *s, uint32_t d_k, uint32_t cols,
                            uint32_t n_v, float *y, uint32_t y_stride)
{
    const float *x[VALUE_QUERIES];
    vec sum[VALUE_QUERIES][VALUE_VECS];
    for (uint32_t r = 0; r < n_r; r++) {
        x[r] = from[r];
        for (uint32_t v = 0; v < n_v; v++) sum[r][v] = v_set1(0);
    }
    for (uint32_t e = 0; e < d_k; e++, s += cols) {
        vec f[VALUE_QUERIES];
        for (uint32_t r = 0; r < n_r; r++) f[r] = v_set1(x[r][e]);
        for (uint32_t v = 0; v < n_v; v++) {
            vec sv = v_load(s + v * LANES);
            for (uint32_t r = 0; r < n_r; r++) sum[r][v] = v_fma(f[r], sv, sum[r][v]);
        }
    }
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t v = 0; v < n_v; v++) v_store(y + (size_t)r * y_stride + v * LANES, sum[r][v]);
}

/* s[r][...] = total s[r][...] + sum_j k[r][j] d[j][...] for n_r rows of a block of S. */
KS_INLINE void update_tile(float *s, uint32_t cols, uint32_t n_r, uint32_t n_v, float total, const float *k,
                           const float (*d)[COLS])
{
    vec sum[VALUE_QUERIES][VALUE_VECS];
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t v = 0; v < n_v; v++) sum[r][v] = v_mul(v_set1(total), v_load(s + (size_t)r * cols + v * LANES));
    for (uint32_t j = 0; j < DELTA_ROWS; j++) {
        vec f[VALUE_QUERIES];
        for (uint32_t r = 0; r < n_r; r++) f[r] = v_set1(k[r * DELTA_ROWS + j]);
        for (uint32_t v = 0; v < n_v; v++) {
            vec dv = v_load(d[j] + v * LANES);
            for (uint32_t r = 0; r < n_r; r++) sum[r][v] = v_fma(f[r], dv, sum[r][v]);
        }
    }
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t v = 0; v < n_v; v++) v_store(s + (size_t)r * cols + v * LANES, sum[r][v]);
}

/* A constant number of rows and of vectors keeps the sums in registers. */
#define TILE(N_R, N_V) \
    case (N_R)*8 + (N_V): product_tile(x, N_R, s, d_k, cols, N_V, y, y_stride); break
static void product_some(const float *const *x, uint32_t n_r, const float *s, uint32_t d_k, uint32_t cols, float *y,
                         uint32_t y_stride)
{
    switch (n_r * 8 + cols / LANES) {
        FOR_VALUES(TILE)
    default: break; /* there are no more */
    }
}
#undef TILE

#define TILE(N_R, N_V) \
    case (N_R)*8 + (N_V): update_tile(s, cols, N_R, N_V, total, k, d); break
static void update_some(float *s, uint32_t cols, uint32_t n_r, float total, const float *k, const float (*d)[COLS])
{
    switch (n_r * 8 + cols / LANES) {
        FOR_VALUES(TILE)
    default: break; /* there are no more */
    }
}
#undef TILE

static void product(const delta_part *t, const float *s, uint32_t cols, float *y, uint32_t y_stride)
{
    for (uint32_t r = 0, n; r < 2 * t->n; r += n) {
        n = 2 * t->n - r < VALUE_QUERIES ? 2 * t->n - r : VALUE_QUERIES;
        product_some(t->mem->x + r, n, s, t->a->d_k, cols, y + (size_t)r * y_stride, y_stride);
    }
}

/* Products of the keys of the chunk with k and q of each new row, times the decays between; `c` and `total` move on to
 * the last row. What keys of later rows (or of the chunk before) give is there, but nobody reads it. */
static void delta_weights(const delta_part *t)
{
    delta_mem *m = t->mem;
    product(t, t->k, DELTA_ROWS, m->w[0], DELTA_ROWS);
    for (uint32_t i = 0; i < t->n; i++) {
        const vec decay = v_set1(m->decay[i]), scale = v_set1(t->a->scale);
        for (uint32_t j = 0; j < DELTA_ROWS; j += LANES) v_store(t->c + j, v_mul(v_load(t->c + j), decay));
        t->c[t->at + i] = 1;
        *t->total *= m->decay[i];
        m->total[i] = *t->total;
        for (uint32_t j = 0; j < DELTA_ROWS; j += LANES) {
            vec c = v_load(t->c + j);
            v_store(m->w[2 * i] + j, v_mul(v_load(m->w[2 * i] + j), c));
            v_store(m->w[2 * i + 1] + j, v_mul(v_mul(v_load(m->w[2 * i + 1] + j), c), scale));
        }
    }
}

/* d and o of the new rows in the block of columns from `first` on, whose products are in p. */
KS_INLINE void solve(const delta_part *t, uint32_t first, uint32_t n_v)
{
    const ks_delta_args *a = t->a;
    const delta_mem *m = t->mem;
    for (uint32_t i = 0; i < t->n; i++) {
        const float *v = a->v + (t->row + i) * a->v_stride + (size_t)t->h * a->d_v, *d = t->d + first;
        float *o = a->o + (t->row + i) * a->o_stride + (size_t)t->h * a->d_v;
        const vec total = v_set1(m->total[i]), beta = v_set1(m->beta[i]), scaled = v_mul(total, v_set1(a->scale));
        vec x[VALUE_VECS], y[VALUE_VECS];
        for (uint32_t u = 0; u < n_v; u++) {
            x[u] = v_mul(total, v_load(m->p[2 * i] + u * LANES));
            y[u] = v_mul(scaled, v_load(m->p[2 * i + 1] + u * LANES));
        }
        for (uint32_t j = 0; j < t->at + i; j++, d += t->columns) {
            const vec wk = v_set1(m->w[2 * i][j]), wq = v_set1(m->w[2 * i + 1][j]);
            for (uint32_t u = 0; u < n_v; u++) {
                vec dj = v_load(d + u * LANES);
                x[u] = v_fma(wk, dj, x[u]);
                y[u] = v_fma(wq, dj, y[u]);
            }
        }
        const vec wq = v_set1(m->w[2 * i + 1][t->at + i]);
        for (uint32_t u = 0; u < n_v; u++) {
            uint32_t column = first + u * LANES;
            vec di = v_mul(beta, v_sub(v_load_cols(v, column, a->d_v), x[u]));
            v_store(t->d + (size_t)(t->at + i) * t->columns + column, di);
            v_store_cols(o, column, a->d_v, v_fma(wq, di, y[u]));
        }
    }
}

/* The end of a chunk: S moves on to its last row. */
static void delta_update(const delta_part *t, float *s, uint32_t first, uint32_t cols)
{
    delta_mem *m = t->mem;
    for (uint32_t j = 0; j < DELTA_ROWS; j++)
        for (uint32_t u = 0; u < cols; u += LANES)
            v_store(m->d[j] + u, v_mul(v_set1(t->c[j]), v_load(t->d + (size_t)j * t->columns + first + u)));
    for (uint32_t e = 0, n; e < t->a->d_k; e += n) {
        n = t->a->d_k - e < VALUE_QUERIES ? t->a->d_k - e : VALUE_QUERIES;
        update_some(s + (size_t)e * cols, cols, n, *t->total, t->k + (size_t)e * DELTA_ROWS,
                    (const float(*)[COLS])(const void *)m->d);
    }
}

static void delta_rows(const delta_part *t)
{
    if (t->at == 0) {
        for (uint32_t j = 0; j < DELTA_ROWS; j++) t->c[j] = 0;
        *t->total = 1;
    }
    delta_gates(t);
    delta_keys(t);
    delta_weights(t);
    for (uint32_t first = 0; first < t->columns; first += COLS) {
        float *s = t->s + (size_t)first * t->a->d_k;
        uint32_t cols = t->columns - first < COLS ? t->columns - first : COLS;
        product(t, s, cols, t->mem->p[0], COLS);
        if (cols == COLS)
            solve(t, first, VALUE_VECS);
        else
            solve(t, first, cols / LANES);
        if (t->at + t->n == DELTA_ROWS) delta_update(t, s, first, cols);
    }
}

static void delta(const ks_delta_args *a, uint32_t begin, uint32_t end, void *scratch)
{
    for (uint32_t h = begin; h < end; h++) {
        delta_part t = { .a = a, .mem = scratch, .h = h, .columns = (a->d_v + 15u) & ~15u };
        t.s = a->state + h * ks_delta_floats(a->d_k, a->d_v);
        t.k = t.s + (size_t)a->d_k * t.columns;
        t.d = t.k + (size_t)a->d_k * DELTA_ROWS;
        t.c = t.d + (size_t)DELTA_ROWS * t.columns;
        t.total = t.c + DELTA_ROWS;
        for (; t.row < a->n_rows; t.row += t.n) {
            t.at = (a->pos + t.row) % DELTA_ROWS;
            t.n = DELTA_ROWS - t.at < a->n_rows - t.row ? DELTA_ROWS - t.at : a->n_rows - t.row;
            delta_rows(&t);
        }
    }
}

#endif
