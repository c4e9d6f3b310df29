/* The next tokens of a step: all answers whose last token went through, in parallel. Only an answer's own sampler is
 * written, so the result is that of one after the other. [engine] forks [worker]s */
#include "engine/impl.h"

#include "base/base.h"

#define DRAW_COST 8u    /* of a logit where a token is drawn: an exponential or two, against one comparison */
#define FORK_COST 8192u /* comparisons, a few microseconds */

static void pick_one(ks_engine *e, ks_answer *a, uint32_t worker)
{
    size_t n = e->g->n_vocab;
    const float *z = e->logits + (a->out + a->n_out - 1) * n;
    ks_cand *cand = e->cand + worker * n;
    a->pick = ks_sample(&a->sampler, z, e->row_logits + worker * n, cand);
    if (a->emit.want_tokens) a->pick_lp = ks_logprobs(z, e->g->n_vocab, a->pick, a->emit.n_top, cand, a->pick_top);
}

static void pick_task(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    ks_engine *e = arg;
    for (uint32_t i = begin; i < end; i++) pick_one(e, e->picking[i], worker);
}

void ks__pick_all(ks_engine *e)
{
    uint32_t n = 0;
    size_t cost = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        ks_answer *a = e->running[i];
        if (!a->n_rows || a->n_done + a->n_rows != a->n_tok || a->n_tok - a->n_prompt >= a->job->max_new) continue;
        e->picking[n++] = a;
        cost += (size_t)e->g->n_vocab * (a->sampler.temperature > 0 || a->emit.want_tokens ? DRAW_COST : 1);
    }
    if (e->o.pool && n > 1 && cost >= FORK_COST)
        ks_pool_run(e->o.pool, n, 1, pick_task, e);
    else
        pick_task(e, 0, n, 0);
}
