/* INDEXER: which keys a sparse attention looks at. A key's score is the sum over the indexer's heads of
 * w_h * max(0, q_h . k); the top_k best are kept, ties to the lower position, and listed in ascending order.
 *
 * The products of a row are one with a matrix whose rows are its heads, put into layout T16 first: keys are what such a
 * matrix is multiplied with. Keys are shared among threads, a few rows at a time. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include "base/num.h"
#include <math.h>

#define TASK_KEYS 512u /* of one row that a task scores */
#define BLOCK_KEYS 64u /* that are floats at a time */

struct index_job {
    ks_cpu_dev *d;
    const ks_op *op;
    const ks_kernel *matmul;
    uint32_t row, n_rows, blocks; /* rows of the batch; tasks a row */
    size_t cap;                   /* keys there is room for */
};

/* The scoring part of a worker's scratch, in floats. */
struct index_mem {
    float *heads; /* T16: (n_heads) rows of d columns */
    float *keys;  /* (BLOCK_KEYS, d) */
    float *dots;  /* (BLOCK_KEYS, n_heads) */
    float *codes; /* what the 256 codes of an e4m3 cache stand for */
};

static size_t heads_floats(const ks_op *op)
{
    return ks_t16_strips(op->u.indexer.n_heads) * ks_t16_strip_bytes(KS_T_F32, op->u.indexer.d, 0) / sizeof(float);
}

size_t ks__index_scratch(const ks_op *op, size_t cap)
{
    size_t score = heads_floats(op) + BLOCK_KEYS * ((size_t)op->u.indexer.d + op->u.indexer.n_heads) + 256;
    return sizeof(float) * KS_MAX(score, cap);
}

static struct index_mem memory(const struct index_job *j, uint32_t worker)
{
    struct index_mem m = { .heads = ks__dev_scratch(j->d, worker) };
    m.keys = m.heads + heads_floats(j->op);
    m.dots = m.keys + (size_t)BLOCK_KEYS * j->op->u.indexer.d;
    m.codes = m.dots + (size_t)BLOCK_KEYS * j->op->u.indexer.n_heads;
    return m;
}

static void prepare(const struct index_job *j, const float *q, const struct index_mem *m)
{
    uint32_t n = j->op->u.indexer.d, heads = j->op->u.indexer.n_heads;
    size_t strip = ks_t16_strip_bytes(KS_T_F32, n, 0) / sizeof(float);
    memset(m->heads, 0, heads_floats(j->op) * sizeof(float));
    for (uint32_t h = 0; h < heads; h++)
        for (uint32_t i = 0; i < n; i++) m->heads[h / 16 * strip + (size_t)i * 16 + h % 16] = q[(size_t)h * n + i];
    for (uint32_t i = 0; i < 256 && j->d->bind.kv_type == KS_T_F8E4M3; i++) m->codes[i] = ks_f8e4m3_to_f32((uint8_t)i);
}

static void load_key(const ks_cpu_dev *d, const struct index_mem *m, const uint8_t *p, uint32_t n, float *k)
{
    if (d->bind.kv_type == KS_T_F32)
        memcpy(k, p, n * sizeof *k);
    else if (d->bind.kv_type == KS_T_BF16)
        for (uint32_t i = 0; i < n; i++) k[i] = ks_bf16_to_f32(((const uint16_t *)(const void *)p)[i]);
    else
        for (uint32_t i = 0; i < n; i++) k[i] = m->codes[p[i]];
}

/* Keys [p0, p1) of a sequence. */
static void score_keys(const struct index_job *j, const ks_seq *s, const float *w, const struct index_mem *m,
                       uint32_t p0, uint32_t p1, float *score, uint32_t worker)
{
    const ks_cpu_dev *d = j->d;
    const struct dev_state *st = &d->states[j->op->state];
    uint32_t n_d = j->op->u.indexer.d, heads = j->op->u.indexer.n_heads, page_tok = d->bind.page_tok;
    uint32_t elem = ks_type_bits(d->bind.kv_type) / 8;
    ks_matmul_args a = { .size = sizeof a, .n_in = n_d, .n_out = heads, .w = m->heads, .x = m->keys, .x_stride = n_d };
    a.strip_bytes = ks_t16_strip_bytes(KS_T_F32, n_d, 0);
    a.y = m->dots;
    a.y_stride = heads;
    for (uint32_t p = p0; p < p1; p += a.n_rows) {
        a.n_rows = KS_MIN(BLOCK_KEYS, p1 - p);
        for (uint32_t i = 0; i < a.n_rows; i++)
            load_key(d, m,
                     st->k + s->pages[(p + i) / page_tok] * st->k_page_bytes +
                         (size_t)((p + i) % page_tok) * n_d * elem,
                     n_d, m->keys + (size_t)i * n_d);
        j->matmul->fn(&a, 0, ks_t16_strips(heads), ks__dev_kernel_scratch(d, worker));
        for (uint32_t i = 0; i < a.n_rows; i++) {
            float sum = 0;
            for (uint32_t h = 0; h < heads; h++)
                sum += w[h] * fmaxf(m->dots[(size_t)i * heads + h] * j->op->u.indexer.scale, 0);
            score[p + i] = sum;
        }
    }
}

static const ks_seq *seq_of(const ks_batch *b, uint32_t row)
{
    uint32_t i = 0;
    while (row >= b->seqs[i].row + b->seqs[i].n_rows) i++;
    return &b->seqs[i];
}

/* Units are (row of the tile, block of keys). */
static void score_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct index_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    struct index_mem m = memory(j, worker);
    for (uint32_t u = begin; u < end; u++) {
        uint32_t r = j->row + u / j->blocks, p = u % j->blocks * TASK_KEYS;
        const ks_seq *s = seq_of(d->batch, r);
        uint32_t n = s->pos + (r - s->row) + 1;
        if (p >= n || n <= op->u.indexer.top_k) continue;
        if (u == begin || p == 0) prepare(j, ks__dev_row(d, (uint32_t)op->in[0], r), &m);
        score_keys(j, s, ks__dev_row(d, (uint32_t)op->in[2], r), &m, p, KS_MIN(p + TASK_KEYS, n),
                   d->index_score + (r - j->row) * j->cap, worker);
    }
}

/* The k-th largest of n numbers; v is reordered. Quickselect with the middle one as pivot. */
static float kth_largest(float *v, uint32_t n, uint32_t k)
{
    uint32_t lo = 0, hi = n - 1;
    while (lo < hi) {
        float pivot = v[lo + (hi - lo) / 2];
        uint32_t i = lo, j = hi;
        for (;;) {
            while (v[i] > pivot) i++;
            while (v[j] < pivot) j--;
            if (i >= j) break;
            float t = v[i];
            v[i++] = v[j];
            v[j--] = t;
        }
        if (k - 1 <= j)
            hi = j;
        else
            lo = j + 1;
    }
    return v[lo];
}

/* score, work: n numbers. */
static uint32_t pick(const float *score, float *work, uint32_t n, uint32_t k, uint32_t *out)
{
    uint32_t m = 0, above = 0;
    if (n <= k) {
        for (uint32_t i = 0; i < n; i++) out[m++] = i;
        return m;
    }
    for (uint32_t i = 0; i < n; i++) work[i] = isnan(score[i]) ? -INFINITY : score[i];
    float limit = kth_largest(work, n, k);
    for (uint32_t i = 0; i < n; i++) above += score[i] > limit;
    uint32_t ties = k - above;
    for (uint32_t i = 0; i < n && m < k; i++)
        if (score[i] > limit || (!(score[i] < limit) && ties && ties--)) out[m++] = i;
    return m;
}

static void pick_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct index_job *j = arg;
    ks_cpu_dev *d = j->d;
    const struct dev_reg *sel = &d->regs[j->op->out[0]];
    for (uint32_t r = j->row + begin; r < j->row + end; r++) {
        const ks_seq *s = seq_of(d->batch, r);
        sel->n_sel[r] = pick(d->index_score + (r - j->row) * j->cap, ks__dev_scratch(d, worker),
                             s->pos + (r - s->row) + 1, j->op->u.indexer.top_k, (uint32_t *)sel->p + r * sel->stride);
    }
}

int ks__op_indexer(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    struct index_job j = { .d = d, .op = op, .matmul = d->ops[index].kernel[0] };
    uint32_t keys = 0;
    (void)err;
    ks__dev_append(d, (uint32_t)op->in[1], st->k, st->k_page_bytes, op->u.indexer.d, 0);
    for (uint32_t i = 0; i < d->batch->n_seqs; i++)
        keys = KS_MAX(keys, d->batch->seqs[i].pos + d->batch->seqs[i].n_rows);
    j.blocks = (keys + TASK_KEYS - 1) / TASK_KEYS;
    j.cap = (size_t)d->bind.n_pages * d->bind.page_tok;
    for (j.row = 0; j.row < d->batch->n_rows; j.row += j.n_rows) {
        j.n_rows = KS_MIN(KS_INDEX_ROWS, d->batch->n_rows - j.row);
        if (keys > op->u.indexer.top_k) ks__dev_fork(d, j.n_rows * j.blocks, 1, score_tasks, &j);
        ks__dev_fork(d, j.n_rows, 1, pick_tasks, &j);
    }
    return 0;
}
