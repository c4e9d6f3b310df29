/* INDEXER: which keys a sparse attention looks at. A key's score is the sum over the indexer's heads of
 * w_h * max(0, q_h . k); the top_k best are kept, ties to the lower position, and listed in ascending order.
 * [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include "base/num.h"
#include <math.h>

struct index_job {
    ks_cpu_dev *d;
    const ks_op *op;
};

static void load_key(const ks_cpu_dev *d, const uint8_t *p, uint32_t n, float *k)
{
    if (d->bind.kv_type == KS_T_F32)
        memcpy(k, p, n * sizeof *k);
    else if (d->bind.kv_type == KS_T_BF16)
        for (uint32_t i = 0; i < n; i++) k[i] = ks_bf16_to_f32(((const uint16_t *)(const void *)p)[i]);
    else
        for (uint32_t i = 0; i < n; i++) k[i] = ks_f8e4m3_to_f32(p[i]);
}

static float score_key(const ks_op *op, const float *q, const float *w, const float *k)
{
    uint32_t n = op->u.indexer.d;
    float sum = 0;
    for (uint32_t h = 0; h < op->u.indexer.n_heads; h++) {
        float dot = 0;
        for (uint32_t i = 0; i < n; i++) dot += q[(size_t)h * n + i] * k[i];
        sum += w[h] * fmaxf(dot * op->u.indexer.scale, 0);
    }
    return sum;
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

static void index_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct index_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    const struct dev_state *st = &d->states[op->state];
    const struct dev_reg *sel = &d->regs[op->out[0]];
    uint32_t n_d = op->u.indexer.d, page_tok = d->bind.page_tok, elem = ks_type_bits(d->bind.kv_type) / 8;
    size_t cap = (size_t)d->bind.n_pages * page_tok;
    float *key = ks__dev_scratch(d, worker), *score = key + ks_align_up(n_d, 16), *work = score + cap;
    for (uint32_t s = 0; s < d->batch->n_seqs; s++) {
        const ks_seq *q = &d->batch->seqs[s];
        for (uint32_t r = KS_MAX(begin, q->row); r < KS_MIN(end, q->row + q->n_rows); r++) {
            uint32_t n = q->pos + (r - q->row) + 1;
            const float *x = ks__dev_row(d, (uint32_t)op->in[0], r), *w = ks__dev_row(d, (uint32_t)op->in[2], r);
            for (uint32_t p = 0; p < n && n > op->u.indexer.top_k; p++) {
                load_key(d, st->k + q->pages[p / page_tok] * st->k_page_bytes + (size_t)(p % page_tok) * n_d * elem,
                         n_d, key);
                score[p] = score_key(op, x, w, key);
            }
            sel->n_sel[r] = pick(score, work, n, op->u.indexer.top_k, (uint32_t *)sel->p + r * sel->stride);
        }
    }
}

int ks__op_indexer(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    struct index_job j = { d, op };
    (void)index, (void)err;
    ks__dev_append(d, (uint32_t)op->in[1], st->k, st->k_page_bytes, op->u.indexer.d, 0);
    ks__dev_fork(d, d->batch->n_rows, 1, index_rows, &j);
    return 0;
}
