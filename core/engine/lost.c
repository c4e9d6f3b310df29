/* A device that is lost: what it held is gone. Requests in flight got its error; then another device takes over, or the
 * engine computes nothing any more and says so. [engine thread, or another one under step_mu] */
#include "engine/impl.h"

#include "base/base.h"
#include "base/log.h"

/* Pages, recurrent states and evaluations lay on the device. Nobody runs. */
static int forget(ks_engine *e, ks_err *err)
{
    for (uint32_t i = 0; i < KS_EVAL_SEQS; i++) e->eval[i].n_pages = 0;
    for (uint32_t i = 0; i < e->n_snaps; i++) e->snaps[i].used = 0;
    ks_pages_fini(&e->pages);
    return ks_pages_init(&e->pages, e->n_pages, err);
}

/* Under mu, since stats may be asked for at any time. */
static int replace(ks_engine *e, ks_err *err)
{
    ks__hot_close(e);
    e->hot = (ks_hot) { .hcs = NULL };
    e->o.device->close(e->dev);
    e->dev = NULL;
    e->o.device = e->o.fallback;
    e->o.device_self = e->o.fallback_self;
    e->o.fallback = NULL;
    /* Steps of the size that suits a GPU would only take memory. */
    e->step_tokens = KS_MIN(e->step_tokens, KS_MAX(KS_DEFAULT_STEP, e->max_running));
    e->max_out = KS_MIN(e->max_out, e->step_tokens);
    int rc = ks__device_open(e, err);
    return rc ? rc : forget(e, err);
}

void ks__device_lost(ks_engine *e, const ks_err *why)
{
    ks_err err = *why;
    bool taken = false;
    while (e->n_running) ks__job_end(e, e->running[0]->job, KS_FINISH_ERROR, why);
    if (!e->o.fallback && !e->o.stop_when_lost) return;
    pthread_mutex_lock(&e->mu);
    if (e->o.fallback) taken = replace(e, &err) == 0;
    if (!taken) e->lost = err;
    pthread_mutex_unlock(&e->mu);
    if (taken) {
        ks_log(KS_LOG_WARN, "engine",
               "the CPU computes from now on, more slowly: a restart uses the GPU again (--gpu-failure stop ends the "
               "program instead)");
        return;
    }
    ks_log(KS_LOG_ERROR, "engine", "nothing is computed any more: %s", err.msg);
    while (e->wait_first) ks__job_end(e, e->wait_first->job, KS_FINISH_ERROR, &err);
}

bool ks_engine_lost(ks_engine *e, ks_err *ret)
{
    pthread_mutex_lock(&e->mu);
    bool lost = e->lost.code != 0;
    if (lost) *ret = e->lost;
    pthread_mutex_unlock(&e->mu);
    return lost;
}
