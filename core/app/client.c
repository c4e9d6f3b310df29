/* The inner client: a sink that collects and prints, and a wait with a look at the stop flag; many of them, timed. */
#include "app/client.h"

#include "base/clock.h"
#include "engine/engine.h"
#include <errno.h>
#include <math.h>
#include <time.h>

static int on_begin(void *arg, const ks_usage *u)
{
    (void)arg;
    (void)u;
    return 0;
}

static int on_text(void *arg, uint32_t choice, const char *utf8, size_t bytes, const ks_token_info *tokens,
                   uint32_t n_tokens)
{
    ks_client *c = arg;
    (void)choice;
    (void)tokens;
    (void)n_tokens;
    ks_buf_add(&c->text, utf8, bytes);
    if (c->out && bytes && (fwrite(utf8, 1, bytes, c->out) != bytes || fflush(c->out)))
        return 1; /* nobody reads any more */
    return c->text.failed;
}

static void on_finish(void *arg, uint32_t choice, int32_t finish)
{
    ks_client *c = arg;
    (void)choice;
    c->finish = finish;
}

static void on_done(void *arg, const ks_usage *u, const ks_err *err)
{
    ks_client *c = arg;
    pthread_mutex_lock(&c->mu);
    c->usage = *u;
    if (err) c->err = *err;
    c->done = true;
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->mu);
}

void ks_client_init(ks_client *c, const ks_engine_api *api, void *engine, FILE *out)
{
    *c = (ks_client) { .api = api, .engine = engine, .out = out };
    ks_buf_init(&c->text, 0);
    pthread_mutex_init(&c->mu, NULL);
    pthread_cond_init(&c->cond, NULL);
}

void ks_client_fini(ks_client *c)
{
    ks_buf_fini(&c->text);
    pthread_mutex_destroy(&c->mu);
    pthread_cond_destroy(&c->cond);
}

int ks_client_begin(ks_client *c, const ks_request *rq, ks_err *err)
{
    ks_sink s = { .size = (uint32_t)sizeof s,
                  .arg = c,
                  .on_begin = on_begin,
                  .on_text = on_text,
                  .on_finish = on_finish,
                  .on_done = on_done };
    c->done = false;
    c->finish = 0;
    c->err.code = 0;
    c->text.n = 0;
    return c->api->submit(c->engine, rq, &s, &c->job, err);
}

int ks_client_wait(ks_client *c, ks_err *err)
{
    pthread_mutex_lock(&c->mu);
    while (!c->done) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 50 * 1000000L;
        if (t.tv_nsec >= 1000000000L) {
            t.tv_sec++;
            t.tv_nsec -= 1000000000L;
        }
        if (pthread_cond_timedwait(&c->cond, &c->mu, &t) == ETIMEDOUT && c->stop && atomic_load(c->stop)) {
            pthread_mutex_unlock(&c->mu);
            (void)c->api->cancel(c->engine, c->job); /* unknown jobs are fine: it may just have ended */
            pthread_mutex_lock(&c->mu);
        }
    }
    pthread_mutex_unlock(&c->mu);
    if (c->err.code) return ks_fail(err, c->err.code, "%s", c->err.msg);
    return c->text.failed ? ks_fail(err, KS_E_NOMEM, "out of memory for the answer") : 0;
}

int ks_clients_run(void *engine, const int32_t *ids, uint32_t n, uint32_t n_prompt, uint32_t n_new, double *ret_first,
                   double *ret_rest, ks_err *err)
{
    ks_client cl[KS_CLIENTS_MAX];
    uint64_t t0 = ks_now_ns();
    uint32_t begun = 0;
    double first = 0;
    int rc = 0;
    for (; begun < n; begun++) {
        ks_request rq = { .size = (uint32_t)sizeof rq,
                          .n = 1,
                          .ids = ids + (size_t)begun * n_prompt,
                          .n_ids = n_prompt,
                          .max_tokens = (int32_t)n_new,
                          .n_logprobs = -1,
                          .ignore_eos = 1 };
        ks_sampling_init(&rq.sampling);
        rq.sampling.temperature = 0;
        ks_client_init(&cl[begun], ks_engine_api_get(), engine, NULL);
        if ((rc = ks_client_begin(&cl[begun], &rq, err))) {
            ks_client_fini(&cl[begun]);
            break;
        }
    }
    for (uint32_t i = 0; i < begun; i++) {
        int rc2 = ks_client_wait(&cl[i], rc ? NULL : err);
        if (!rc) rc = rc2;
        first = fmax(first, cl[i].usage.queue_ms + cl[i].usage.prefill_ms);
        ks_client_fini(&cl[i]);
    }
    *ret_first = first;
    *ret_rest = (double)(ks_now_ns() - t0) / 1e6 - first;
    return rc;
}
