/* Direct evaluation for the tools: one sequence, given rows, all logits. Shares the device and the pages with the
 * engine thread under step_mu, so it must not run beside jobs that need all pages. */
#include "engine/impl.h"

#include "base/base.h"

void ks_engine_eval_reset(ks_engine *e)
{
    pthread_mutex_lock(&e->step_mu);
    for (uint32_t s = 0; s < KS_EVAL_SEQS; s++) {
        for (uint32_t i = 0; i < e->eval[s].n_pages; i++) ks_pages_drop(&e->pages, e->eval[s].pages[i]);
        e->eval[s].n_pages = 0;
    }
    pthread_mutex_unlock(&e->step_mu);
}

static int provide(ks_engine *e, uint32_t seq, uint32_t end, ks_err *err)
{
    uint32_t need = (end + KS_PAGE_TOK - 1) / KS_PAGE_TOK;
    if (need > e->eval[seq].n_pages) {
        uint32_t *p = realloc(e->eval[seq].pages, need * sizeof *p);
        if (!p) return ks_fail(err, KS_E_NOMEM, "out of memory for %u KV pages", need);
        e->eval[seq].pages = p;
    }
    while (e->eval[seq].n_pages < need) {
        uint32_t page = ks_pages_take(&e->pages);
        if (page == KS_NO_PAGE)
            return ks_fail(err, KS_E_LIMIT, "the KV cache has no page left at position %u: raise --kv-cache-mb", end);
        e->eval[seq].pages[e->eval[seq].n_pages++] = page;
    }
    return 0;
}

int ks_engine_eval(ks_engine *e, uint32_t seq, const int32_t *ids, uint32_t n, uint32_t pos, float *logits,
                   float *hidden, ks_err *err)
{
    const ks_graph *g = e->g;
    if (seq >= KS_EVAL_SEQS)
        return ks_fail(err, KS_E_INVAL, "evaluation has sequences 0 to %u, not %u", KS_EVAL_SEQS - 1, seq);
    if (n == 0 || n > e->n_ctx || pos > e->n_ctx - n)
        return ks_fail(err, KS_E_CONTEXT, "%u tokens from position %u do not fit the context of %u: raise --context", n,
                       pos, e->n_ctx);
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= g->n_vocab)
            return ks_fail(err, KS_E_INVAL, "token %u is %d: the vocabulary has %u", pos + i, ids[i], g->n_vocab);
    size_t row = (size_t)g->d_model;
    const uint32_t most = KS_MIN(n, e->step_tokens);
    float *taps = hidden ? malloc((size_t)g->n_taps * most * row * sizeof *taps) : NULL;
    if (hidden && !taps) return ks_fail(err, KS_E_NOMEM, "out of memory for the hidden states of %u rows", most);
    pthread_mutex_lock(&e->step_mu);
    if (e->o.pool) ks_pool_adopt(e->o.pool);
    int rc = 0;
    for (uint32_t done = 0; done < n && !rc;) {
        uint32_t m = KS_MIN(n - done, logits ? e->max_out : e->step_tokens);
        if ((rc = provide(e, seq, pos + done + m, err))) break;
        for (uint32_t i = 0; i < m; i++) {
            e->ids[i] = ids[done + i];
            e->pos[i] = pos + done + i;
            e->out_rows[i] = i;
        }
        ks_seq s = { .row = 0,
                     .n_rows = m,
                     .pos = pos + done,
                     .slot = e->eval[seq].slot,
                     .pages = e->eval[seq].pages,
                     .n_pages = e->eval[seq].n_pages };
        ks_batch b = { .size = (uint32_t)sizeof b,
                       .seq_size = (uint32_t)sizeof s,
                       .n_rows = m,
                       .n_seqs = 1,
                       .n_out = logits ? m : 0,
                       .ids = e->ids,
                       .pos = e->pos,
                       .seqs = &s,
                       .out_rows = e->out_rows,
                       .logits = logits ? logits + (size_t)done * g->n_vocab : e->logits,
                       .taps = taps };
        rc = e->lost.code ? ks_fail(err, e->lost.code, "%s", e->lost.msg)
                          : e->o.device->run(e->dev, &b, 0, g->n_ops, err);
        if (rc == KS_E_DEVICE && err) ks__device_lost(e, err);
        ks__hot_rows(e, m);
        for (uint32_t t = 0; !rc && hidden && t < g->n_taps; t++)
            memcpy(hidden + ((size_t)t * n + done) * row, taps + (size_t)t * m * row, m * row * sizeof *taps);
        done += m;
    }
    if (e->o.pool) ks_pool_release(e->o.pool);
    pthread_mutex_unlock(&e->step_mu);
    free(taps);
    return rc;
}

int ks_engine_heat(ks_engine *e, uint64_t *ret_counts, ks_err *err)
{
    pthread_mutex_lock(&e->step_mu);
    int rc = e->o.device->heat ? e->o.device->heat(e->dev, ret_counts, err)
                               : ks_fail(err, KS_E_UNSUPPORTED, "the device does not count routed experts");
    pthread_mutex_unlock(&e->step_mu);
    return rc;
}
