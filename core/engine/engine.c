/* The engine: threads, queues, the API that frontends get.
 *
 *   submit [any] -> prep queue -> preparation thread (template, tokens, checks, on_begin) -> ready queue
 *          -> engine thread (steps) -> on_text ... on_finish, on_done
 *
 * Jobs are owned by the queue they are in, then by the engine thread until on_done. The registry lists all of
 * them for cancel() and drain(). Callbacks are called without locks held. */
#include "engine/engine.h"

#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/impl.h"
#include <errno.h>

#define KS_DEFAULT_RUNNING 32u
#define KS_DEFAULT_WAITING 256u
#define KS_MAX_KV_BYTES ((uint64_t)4 << 30)
#define KS_SNAPSHOTS 16u
#define KS_PROMPT_LOGITS                                                                        \
    64u /* rows of a step whose logits may be wanted beside the answers' own (echo, evaluation) \
         */

/* ---- queues, under mu */

static void push(ks_job **first, ks_job **last, ks_job *j)
{
    j->next = NULL;
    if (*last)
        (*last)->next = j;
    else
        *first = j;
    *last = j;
}

static ks_job *pop(ks_job **first, ks_job **last)
{
    ks_job *j = *first;
    if (j && !(*first = j->next)) *last = NULL;
    return j;
}

static void unregister(ks_engine *e, ks_job *j)
{
    ks_job **at = &e->registry;
    while (*at != j) at = &(*at)->reg_next;
    *at = j->reg_next;
    if (--e->n_jobs == 0) pthread_cond_broadcast(&e->idle);
}

void ks__job_done(ks_engine *e, ks_job *j)
{
    uint64_t now = ks_now_ns();
    bool failed = j->err.code != 0, cancelled = atomic_load(&j->cancel);
    if (j->t_first) {
        j->usage.prefill_ms = (double)(j->t_first - j->t_admit) / 1e6;
        j->usage.decode_ms = (double)(now - j->t_first) / 1e6;
    }
    pthread_mutex_lock(&e->mu);
    unregister(e, j);
    e->stats.errors += failed;
    e->stats.cancels += cancelled;
    e->stats.prompt_tokens += j->usage.prompt_tokens;
    e->stats.cached_tokens += j->usage.cached_tokens;
    e->stats.generated_tokens += j->usage.completion_tokens;
    pthread_mutex_unlock(&e->mu);
    ks_log(KS_LOG_DEBUG, "engine",
           "job %llu: %u prompt (%u cached) + %u new tokens, queue %.1f ms, prefill %.1f ms, decode %.1f ms%s%s",
           (unsigned long long)j->id, j->usage.prompt_tokens, j->usage.cached_tokens, j->usage.completion_tokens,
           j->usage.queue_ms, j->usage.prefill_ms, j->usage.decode_ms, cancelled ? ", cancelled" : "",
           failed ? ", failed" : "");
    j->sink.on_done(j->sink.arg, &j->usage, failed ? &j->err : NULL);
    ks__job_free(j);
}

/* ---- threads */

static void *prep_main(void *arg)
{
    ks_engine *e = arg;
    pthread_mutex_lock(&e->mu);
    for (;;) {
        ks_job *j = pop(&e->prep_first, &e->prep_last);
        if (!j) {
            if (e->quit) break;
            pthread_cond_wait(&e->wake_prep, &e->mu);
            continue;
        }
        pthread_mutex_unlock(&e->mu);
        int rc = atomic_load(&j->cancel) ? ks_fail(&j->err, KS_E_CANCELED, "the request was cancelled")
                                         : ks__job_prepare(e, j, &j->err);
        if (rc == 0 && j->sink.on_begin(j->sink.arg, &j->usage)) atomic_store(&j->cancel, true);
        if (rc) {
            if (j->err.code == KS_E_CANCELED) j->err.code = 0;
            for (uint32_t c = 0; c < j->rq.n; c++)
                j->sink.on_finish(j->sink.arg, c, j->err.code ? KS_FINISH_ERROR : KS_FINISH_CANCELED);
            ks__job_done(e, j);
        }
        pthread_mutex_lock(&e->mu);
        if (rc == 0) {
            push(&e->ready_first, &e->ready_last, j);
            pthread_cond_signal(&e->wake_engine);
        }
    }
    pthread_mutex_unlock(&e->mu);
    return NULL;
}

static void *engine_main(void *arg)
{
    ks_engine *e = arg;
    bool busy = false;
    pthread_mutex_lock(&e->step_mu);
    if (e->o.pool) ks_pool_adopt(e->o.pool);
    pthread_mutex_unlock(&e->step_mu);
    for (;;) {
        pthread_mutex_lock(&e->mu);
        while (!busy && !e->ready_first && !e->wait_first && !e->quit) {
            e->stats.n_running = e->stats.n_waiting = 0;
            pthread_cond_wait(&e->wake_engine, &e->mu);
        }
        ks_job *list = e->ready_first;
        e->ready_first = e->ready_last = NULL;
        bool quit = e->quit; /* set when no job is left */
        pthread_mutex_unlock(&e->mu);
        if (quit) return NULL;
        while (list) {
            ks_job *j = list;
            list = j->next;
            for (uint32_t c = 0; c < j->rq.n; c++) ks__wait_append(e, &j->answers[c]);
        }
        pthread_mutex_lock(&e->step_mu);
        busy = ks__step(e);
        pthread_mutex_unlock(&e->step_mu);
    }
}

/* ---- the API for frontends */

static int api_submit(void *engine, const ks_request *rq, const ks_sink *s, uint64_t *ret_job, ks_err *err)
{
    ks_engine *e = engine;
    ks_job *j;
    int rc = ks__job_new(e, rq, s, &j, err);
    if (rc) return rc;
    pthread_mutex_lock(&e->mu);
    if (e->quit || e->draining)
        rc = ks_fail(err, KS_E_STATE, "the server is shutting down");
    else if (e->lost.code)
        rc = ks_fail(err, e->lost.code, "%s", e->lost.msg);
    else if (e->n_jobs >= e->max_running + e->max_waiting)
        rc =
            ks_fail(err, KS_E_BUSY,
                    "%u requests are running or waiting, the most that max-waiting allows: try again later", e->n_jobs);
    if (!rc) {
        j->id = ++e->next_id;
        j->reg_next = e->registry;
        e->registry = j;
        e->n_jobs++;
        e->stats.requests++;
        if (ret_job) *ret_job = j->id;
        push(&e->prep_first, &e->prep_last, j);
        pthread_cond_signal(&e->wake_prep);
    }
    pthread_mutex_unlock(&e->mu);
    if (rc) ks__job_free(j);
    return rc;
}

static int api_cancel(void *engine, uint64_t job)
{
    ks_engine *e = engine;
    pthread_mutex_lock(&e->mu);
    for (ks_job *j = e->registry; j; j = j->reg_next)
        if (j->id == job) atomic_store_explicit(&j->cancel, true, memory_order_relaxed);
    pthread_cond_signal(&e->wake_engine);
    pthread_mutex_unlock(&e->mu);
    return 0;
}

static int api_describe(void *engine, ks_model_info *ret, ks_err *err)
{
    const ks_engine *e = engine;
    if (ret->size < sizeof(uint32_t)) return ks_fail(err, KS_E_INVAL, "describe: 'size' of the result is not set");
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < e->g->n_weights; i++) bytes += e->g->weights[i].mat_bytes * e->g->weights[i].n_mat;
    ks_model_info m = { .size = ret->size,
                        .n_ctx = e->n_ctx,
                        .n_vocab = e->g->n_vocab,
                        .n_layers = e->g->n_layers,
                        .name = e->name,
                        .arch = e->o.model->arch,
                        .path = e->path,
                        .weight_bytes = bytes,
                        .created = e->created };
    memcpy(ret, &m, KS_MIN((size_t)ret->size, sizeof m));
    return 0;
}

static int api_stats(void *engine, ks_stats *ret, ks_err *err)
{
    ks_engine *e = engine;
    if (ret->size < sizeof(uint32_t)) return ks_fail(err, KS_E_INVAL, "stats: 'size' of the result is not set");
    pthread_mutex_lock(&e->mu);
    ks_stats s = e->stats;
    if (e->dev) ks__hot_stats(e, &s); /* under mu: the device may be replaced */
    pthread_mutex_unlock(&e->mu);
    s.size = ret->size;
    s.max_running = e->max_running;
    s.kv_pages_total = e->n_pages;
    s.uptime_s = (double)(ks_now_ns() - e->t_open) / 1e9;
    memcpy(ret, &s, KS_MIN((size_t)ret->size, sizeof s));
    return 0;
}

static int need_tokenizer(const ks_engine *e, ks_err *err)
{
    return e->o.tok ? 0 : ks_fail(err, KS_E_UNSUPPORTED, "model '%s' has no tokenizer", e->name);
}

static int api_tokenize(void *engine, const char *text, size_t bytes, int32_t special, int32_t *ids, size_t cap,
                        size_t *ret_n, ks_err *err)
{
    const ks_engine *e = engine;
    int32_t *all = NULL;
    size_t n = 0;
    int rc = need_tokenizer(e, err);
    if (!rc) rc = ks_tokenizer_encode(e->o.tok, text, bytes, special ? KS_TOK_ADD_SPECIAL : 0, &all, &n, err);
    if (!rc) {
        if (n && cap) memcpy(ids, all, KS_MIN(n, cap) * sizeof *ids);
        *ret_n = n;
    }
    free(all);
    return rc;
}

static int api_detokenize(void *engine, const int32_t *ids, size_t n, char *text, size_t cap, size_t *ret_n,
                          ks_err *err)
{
    const ks_engine *e = engine;
    char *all = NULL;
    size_t bytes = 0;
    int rc = need_tokenizer(e, err);
    if (!rc) rc = ks_tokenizer_decode(e->o.tok, ids, n, false, &all, &bytes, err);
    if (!rc) {
        if (cap) memcpy(text, all, KS_MIN(bytes, cap));
        *ret_n = bytes;
    }
    free(all);
    return rc;
}

const ks_engine_api *ks_engine_api_get(void)
{
    static const ks_engine_api api = { .size = (uint32_t)sizeof api,
                                       .submit = api_submit,
                                       .cancel = api_cancel,
                                       .describe = api_describe,
                                       .stats = api_stats,
                                       .tokenize = api_tokenize,
                                       .detokenize = api_detokenize };
    return &api;
}

/* ---- life */

static uint64_t page_bytes(const ks_graph *g, uint32_t kv_type)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < g->n_states; i++)
        if (g->states[i].kind == KS_STATE_KV)
            n += (uint64_t)(g->states[i].k_width + g->states[i].v_width) * KS_PAGE_TOK * ks_type_bits(kv_type) / 8;
    return n;
}

static int plan(ks_engine *e, ks_err *err)
{
    const ks_engine_opts *o = &e->o;
    e->max_running = o->max_running ? o->max_running : KS_DEFAULT_RUNNING;
    e->max_waiting = o->max_waiting ? o->max_waiting : KS_DEFAULT_WAITING;
    e->step_tokens = KS_MAX(o->step_tokens ? o->step_tokens : KS_DEFAULT_STEP, e->max_running);
    e->n_ctx = o->n_ctx ? o->n_ctx : e->g->n_ctx;
    if (e->n_ctx > e->g->n_ctx)
        return ks_fail(err, KS_E_CONFIG, "context %u is more than the %u tokens the model was made for", e->n_ctx,
                       e->g->n_ctx);
    for (uint32_t i = 0; i < e->g->n_states; i++) e->recurrent |= e->g->states[i].kind == KS_STATE_RECURRENT;
    uint64_t bytes = page_bytes(e->g, o->kv_type), one = (e->n_ctx + KS_PAGE_TOK - 1) / KS_PAGE_TOK;
    uint64_t budget = o->kv_bytes ? o->kv_bytes : KS_MAX_KV_BYTES, want = one * e->max_running;
    if (bytes && want > budget / bytes) want = budget / bytes;
    if (want < one + KS_EVAL_SEQS) {
        if (o->kv_bytes && bytes * one > o->kv_bytes)
            return ks_fail(err, KS_E_CONFIG,
                           "the KV cache of %llu MB holds %llu tokens, less than one context of %u: lower --context or "
                           "raise --kv-cache-mb",
                           (unsigned long long)(o->kv_bytes >> 20),
                           (unsigned long long)(o->kv_bytes / bytes * KS_PAGE_TOK), e->n_ctx);
        want = one + KS_EVAL_SEQS;
    }
    if (want > UINT32_MAX / 2) want = UINT32_MAX / 2;
    e->n_pages = (uint32_t)want;
    e->max_out = KS_MIN(e->step_tokens, e->max_running + KS_PROMPT_LOGITS);
    return 0;
}

/* Of a step: a prompt whose state is kept on the way is two. */
static uint32_t max_seqs(const ks_engine *e)
{
    return e->recurrent ? 2 * e->max_running : e->max_running;
}

static ks_bind bind_of(const ks_engine *e)
{
    return (ks_bind) { .size = (uint32_t)sizeof(ks_bind),
                       .kv_type = e->o.kv_type,
                       .graph = e->g,
                       .op_begin = 0,
                       .op_end = e->g->n_ops,
                       .n_pages = e->n_pages,
                       .page_tok = KS_PAGE_TOK,
                       .n_slots = e->recurrent ? e->max_running + KS_SNAPSHOTS + KS_EVAL_SEQS : 1,
                       .max_rows = e->step_tokens,
                       .max_out = e->max_out,
                       .max_seqs = max_seqs(e),
                       .host_places = !ks__hot_wanted(e)             ? KS_PLACES_DEVICE
                                      : e->o.place == KS_PLACE_ADAPT ? KS_PLACES_BY_RATE
                                                                     : KS_PLACES_HOST,
                       .stream = e->o.stream,
                       .stream_layers = e->o.stream_layers,
                       .share_rows = e->o.share_rows };
}

int ks_engine_bind(const ks_engine_opts *o, ks_bind *ret, ks_err *err)
{
    ks_engine e = { .o = *o, .g = &o->model->graph };
    int rc = plan(&e, err);
    if (!rc) *ret = bind_of(&e);
    return rc;
}

int ks__device_open(ks_engine *e, ks_err *err)
{
    ks_bind bind = bind_of(e);
    int rc = e->o.device->open(e->o.device_self, 0, 0, &e->dev, err);
    if (!rc) rc = e->o.device->bind(e->dev, &bind, err);
    return rc ? rc : ks__hot_open(e, err);
}

static int allocate(ks_engine *e, ks_err *err)
{
    uint32_t rows = e->step_tokens;
    e->ids = ks_calloc(rows, sizeof *e->ids);
    e->pos = ks_calloc(rows, sizeof *e->pos);
    e->out_rows = ks_calloc(rows, sizeof *e->out_rows);
    e->seqs = ks_calloc(max_seqs(e), sizeof *e->seqs);
    e->running = ks_calloc(e->max_running + 1, sizeof *e->running);
    e->logits = ks_calloc((size_t)e->max_out, (size_t)e->g->n_vocab * sizeof *e->logits);
    size_t n_threads = e->o.pool ? ks_pool_threads(e->o.pool) : 1; /* at most 1024: no overflow with a vocabulary */
    e->picking = ks_calloc(e->max_running, sizeof(ks_answer *));
    e->row_logits = ks_calloc(n_threads * e->g->n_vocab, sizeof *e->row_logits);
    e->cand = ks_calloc(n_threads * e->g->n_vocab, sizeof *e->cand);
    e->free_slots = ks_calloc(e->max_running + 1, sizeof *e->free_slots);
    e->snaps = ks_calloc(KS_SNAPSHOTS, sizeof *e->snaps);
    if (!e->ids || !e->pos || !e->out_rows || !e->seqs || !e->running || !e->picking || !e->logits || !e->row_logits ||
        !e->cand || !e->free_slots || !e->snaps)
        return ks_fail(err, KS_E_NOMEM, "out of memory for the engine's step of %u rows", rows);
    if (e->recurrent) {
        e->n_snaps = KS_SNAPSHOTS;
        for (uint32_t i = 0; i < e->max_running; i++) e->free_slots[e->n_free_slots++] = i;
        for (uint32_t i = 0; i < KS_SNAPSHOTS; i++) e->snaps[i].slot = e->max_running + i;
        for (uint32_t i = 0; i < KS_EVAL_SEQS; i++) e->eval[i].slot = e->max_running + KS_SNAPSHOTS + i;
    }
    int rc = ks_pages_init(&e->pages, e->n_pages, err);
    if (rc) return rc;
    return ks__device_open(e, err);
}

int ks_engine_open(const ks_engine_opts *o, ks_engine **ret, ks_err *err)
{
    ks_engine *e = ks_calloc(1, sizeof *e);
    if (!e) return ks_fail(err, KS_E_NOMEM, "out of memory for the engine");
    e->o = *o;
    e->g = &o->model->graph;
    e->created = ks_now_unix();
    e->t_open = ks_now_ns();
    e->name = ks_strdup(o->name ? o->name : "model");
    e->path = ks_strdup(o->path ? o->path : "");
    pthread_mutex_init(&e->mu, NULL);
    pthread_mutex_init(&e->step_mu, NULL);
    pthread_cond_init(&e->wake_engine, NULL);
    pthread_cond_init(&e->wake_prep, NULL);
    pthread_cond_init(&e->idle, NULL);
    int rc = e->name && e->path ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for the engine");
    if (rc || (rc = ks__generation_defaults(e, o->generation_config, err)) || (rc = plan(e, err)) ||
        (rc = allocate(e, err)))
        goto fail;
    e->o.generation_config = NULL;
    e->o.heat = NULL;
    if (pthread_create(&e->engine_thread, NULL, engine_main, e)) {
        rc = ks_fail(err, KS_E_NOMEM, "cannot start the engine thread: %s", strerror(errno));
        goto fail;
    }
    if (pthread_create(&e->prep_thread, NULL, prep_main, e)) {
        rc = ks_fail(err, KS_E_NOMEM, "cannot start the preparation thread: %s", strerror(errno));
        pthread_mutex_lock(&e->mu);
        e->quit = true;
        pthread_cond_broadcast(&e->wake_engine);
        pthread_mutex_unlock(&e->mu);
        pthread_join(e->engine_thread, NULL);
        goto fail;
    }
    *ret = e;
    return 0;
fail:
    e->quit = true;
    ks_engine_close(e);
    return rc;
}

void ks_engine_cancel_all(ks_engine *e)
{
    pthread_mutex_lock(&e->mu);
    for (ks_job *j = e->registry; j; j = j->reg_next) atomic_store_explicit(&j->cancel, true, memory_order_relaxed);
    pthread_cond_broadcast(&e->wake_engine);
    pthread_mutex_unlock(&e->mu);
}

bool ks_engine_drain(ks_engine *e, uint32_t limit_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)limit_ms * 1000000;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&e->mu);
    e->draining = true;
    while (e->n_jobs && pthread_cond_timedwait(&e->idle, &e->mu, &until) != ETIMEDOUT) {
    }
    bool all = e->n_jobs == 0;
    pthread_mutex_unlock(&e->mu);
    return all;
}

void ks_engine_close(ks_engine *e)
{
    if (!e) return;
    if (!e->quit) {
        pthread_mutex_lock(&e->mu);
        e->draining = true;
        pthread_mutex_unlock(&e->mu);
        ks_engine_cancel_all(e);
        pthread_mutex_lock(&e->mu);
        while (e->n_jobs) pthread_cond_wait(&e->idle, &e->mu);
        e->quit = true;
        pthread_cond_broadcast(&e->wake_engine);
        pthread_cond_broadcast(&e->wake_prep);
        pthread_mutex_unlock(&e->mu);
        pthread_join(e->prep_thread, NULL);
        pthread_join(e->engine_thread, NULL);
    }
    ks__hot_tell(e);
    ks__hot_close(e);
    if (e->dev) e->o.device->close(e->dev);
    ks_pages_fini(&e->pages);
    for (uint32_t i = 0; i < KS_EVAL_SEQS; i++) free(e->eval[i].pages);
    void *parts[] = { e->ids,        e->pos,  e->out_rows,   e->seqs,  e->running, e->picking, e->logits,
                      e->row_logits, e->cand, e->free_slots, e->snaps, e->eos,     e->name,    e->path };
    for (size_t i = 0; i < KS_COUNT(parts); i++) free(parts[i]);
    pthread_mutex_destroy(&e->mu);
    pthread_mutex_destroy(&e->step_mu);
    pthread_cond_destroy(&e->wake_engine);
    pthread_cond_destroy(&e->wake_prep);
    pthread_cond_destroy(&e->idle);
    free(e);
}
