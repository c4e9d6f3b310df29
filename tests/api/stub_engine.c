/* The engine that plays a script. See the header. */
#include "stub_engine.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#define IDLE_NS 1000000u

const stub_token stub_hello[4] = {
    { "Hel", "Hel", -0.5f }, { "", "\xc3", -0.25f }, { "\xc3\xa9", "\xa9", -1.0f }, { " \"q\"\n", " \"q\"\n", -2.0f }
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- what was asked */

static char *copy(const char *s, size_t n)
{
    char *p = s ? malloc(n + 1) : NULL;
    if (!p) return NULL;
    memcpy(p, s, n);
    p[n] = 0;
    return p;
}

static void remember(stub_seen *s, const ks_request *rq)
{
    s->rq = *rq;
    s->messages = copy(rq->messages, rq->messages_bytes);
    s->tools = copy(rq->tools, rq->tools_bytes);
    s->kwargs = copy(rq->kwargs, rq->kwargs_bytes);
    s->text = copy(rq->text, rq->text_bytes);
    s->text_bytes = rq->text_bytes;
    for (size_t i = 0; i < rq->n_ids && i < 16; i++) s->ids[i] = rq->ids[i];
    for (uint32_t i = 0; i < rq->sampling.n_bias && i < STUB_MAX_BIAS; i++) {
        s->bias_ids[i] = rq->sampling.bias_ids[i];
        s->bias[i] = rq->sampling.bias[i];
    }
    for (uint32_t i = 0; i < rq->n_stop && i < 4; i++) (void)snprintf(s->stop[i], 64, "%s", rq->stop[i]);
    s->rq.messages = s->rq.tools = s->rq.kwargs = s->rq.text = NULL;
    s->rq.ids = s->rq.sampling.bias_ids = NULL;
    s->rq.sampling.bias = NULL;
    s->rq.stop = NULL;
}

static int stub_submit(void *engine, const ks_request *rq, const ks_sink *sink, uint64_t *ret_job, ks_err *err)
{
    stub *s = engine;
    int rc = 0;
    pthread_mutex_lock(&s->mu);
    uint32_t nth = s->n_submits++;
    if (s->script.fail_submit && nth >= s->script.fail_submit_at)
        rc = ks_fail(err, s->script.fail_submit, "stub: submit says %d", s->script.fail_submit);
    else if (s->n_jobs == STUB_JOBS)
        rc = ks_fail(err, KS_E_BUSY, "stub: more than %u jobs", STUB_JOBS);
    if (!rc) {
        stub_job *j = &s->job[s->n_jobs];
        *j = (stub_job) { .id = ++s->n_jobs, .sink = *sink, .script = s->script, .used = true };
        remember(&j->seen, rq);
        j->next_ns = now_ns() + (uint64_t)j->script.begin_ms * 1000000;
        *ret_job = j->id;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mu);
    return rc;
}

static int stub_cancel(void *engine, uint64_t id)
{
    stub *s = engine;
    pthread_mutex_lock(&s->mu);
    stub_job *j = id && id <= s->n_jobs ? &s->job[id - 1] : NULL;
    if (j && !j->done && !j->cancelled) {
        j->cancelled = true;
        s->n_cancelled++;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->mu);
    return 0;
}

static int stub_describe(void *engine, ks_model_info *ret, ks_err *err)
{
    (void)engine;
    (void)err;
    *ret = (ks_model_info) { .size = ret->size,
                             .n_ctx = 4096,
                             .n_vocab = 300,
                             .n_layers = 2,
                             .name = "stub-model",
                             .arch = "stub",
                             .path = "/nowhere",
                             .weight_bytes = 12345,
                             .created = 1700000000 };
    return 0;
}

static int stub_stats(void *engine, ks_stats *ret, ks_err *err)
{
    (void)engine;
    (void)err;
    *ret = (ks_stats) { .size = ret->size };
    return 0;
}

static int stub_tokenize(void *engine, const char *text, size_t bytes, int32_t special, int32_t *ids, size_t cap,
                         size_t *ret_n, ks_err *err)
{
    (void)engine;
    (void)special;
    (void)err;
    for (size_t i = 0; i < bytes && i < cap; i++) ids[i] = (unsigned char)text[i];
    *ret_n = bytes;
    return 0;
}

static int stub_detokenize(void *engine, const int32_t *ids, size_t n, char *text, size_t cap, size_t *ret_n,
                           ks_err *err)
{
    (void)engine;
    (void)err;
    for (size_t i = 0; i < n && i < cap; i++) text[i] = (char)ids[i];
    *ret_n = n;
    return 0;
}

const ks_engine_api stub_api = { .size = (uint32_t)sizeof stub_api,
                                 .submit = stub_submit,
                                 .cancel = stub_cancel,
                                 .describe = stub_describe,
                                 .stats = stub_stats,
                                 .tokenize = stub_tokenize,
                                 .detokenize = stub_detokenize };

/* ---- what is played; without the lock, as the real engine calls its sinks */

static uint32_t length(const stub_job *j)
{
    uint32_t all = j->script.n_tokens * (j->script.repeat ? j->script.repeat : 1),
             max = (uint32_t)j->seen.rq.max_tokens;
    return j->seen.rq.max_tokens >= 0 && max < all ? max : all;
}

static ks_logprob logprob_of(const stub_token *t, int32_t id, float lp)
{
    return (ks_logprob) { .id = id, .logprob = lp, .bytes = t->bytes, .n_bytes = (uint32_t)strlen(t->bytes) };
}

static int say_token(const stub_job *j, uint32_t choice, uint64_t offset)
{
    static const stub_token others[2] = { { "x", "x", 0 }, { "", "\xf0\x9f", 0 } };
    const stub_token *t = &j->script.token[j->at % j->script.n_tokens];
    ks_logprob top[3] = { logprob_of(t, (int32_t)j->at, t->logprob), logprob_of(&others[0], 100, -3.5f),
                          logprob_of(&others[1], 101, -INFINITY) };
    int32_t n = j->seen.rq.n_logprobs;
    ks_token_info info = { .size = (uint32_t)sizeof info,
                           .n_top = n < 0   ? 0
                                    : n < 3 ? (uint32_t)n
                                            : 3,
                           .token = top[0],
                           .top = top,
                           .text_offset = offset };
    return j->sink.on_text(j->sink.arg, choice, t->text, strlen(t->text), &info, n >= 0);
}

static int say_prompt(const stub_job *j, uint32_t choice)
{
    stub_token t = { j->seen.text, j->seen.text, NAN };
    if (!j->seen.rq.echo || !t.text) return 0;
    ks_token_info info = { .size = (uint32_t)sizeof info, .token = logprob_of(&t, 50, NAN) };
    return j->sink.on_text(j->sink.arg, choice, t.text, strlen(t.text), &info, j->seen.rq.n_logprobs >= 0);
}

static void end_job(stub *s, stub_job *j, int32_t code)
{
    ks_err err = { 0 };
    uint32_t n = j->seen.rq.n;
    int32_t finish = code == KS_E_CANCELED                                                        ? KS_FINISH_CANCELED
                     : code                                                                       ? KS_FINISH_ERROR
                     : j->seen.rq.max_tokens >= 0 && length(j) == (uint32_t)j->seen.rq.max_tokens ? KS_FINISH_LENGTH
                                                                                                  : KS_FINISH_STOP;
    ks_usage u = { .size = (uint32_t)sizeof u, .prompt_tokens = 7, .cached_tokens = 3, .completion_tokens = n * j->at };
    if (code == KS_E_CONTEXT)
        (void)ks_fail(&err, code, "the maximum context length is 4096 tokens, the prompt is too long: it has 9999");
    else if (code && code != KS_E_CANCELED) /* that the finish of the choices says */
        (void)ks_fail(&err, code, "stub: the job says %d", code);
    for (uint32_t c = 0; c < n; c++) j->sink.on_finish(j->sink.arg, c, finish); /* before begin, too */
    pthread_mutex_lock(&s->mu);
    j->done = true;
    pthread_mutex_unlock(&s->mu);
    j->sink.on_done(j->sink.arg, &u, err.code ? &err : NULL);
    pthread_mutex_lock(&s->mu);
    s->n_done++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mu);
}

static void play(stub *s, stub_job *j, bool cancelled)
{
    int stop = 0;
    ks_usage u = { .size = (uint32_t)sizeof u };
    if (cancelled) {
        end_job(s, j, KS_E_CANCELED);
    } else if (!j->begun && j->script.fail_before) {
        end_job(s, j, j->script.fail_before);
    } else if (!j->begun) {
        j->begun = true;
        stop = j->sink.on_begin(j->sink.arg, &u);
        for (uint32_t c = 0; c < j->seen.rq.n && !stop; c++) stop = say_prompt(j, c);
        if (j->seen.rq.echo) j->told_bytes = j->seen.text_bytes;
        j->next_ns = now_ns() + (uint64_t)j->script.prefill_ms * 1000000;
    } else if (j->at < length(j)) {
        for (uint32_t c = 0; c < j->seen.rq.n && !stop; c++) stop = say_token(j, c, j->told_bytes);
        j->told_bytes += strlen(j->script.token[j->at % j->script.n_tokens].text);
        j->at++;
        j->next_ns += (uint64_t)j->script.token_ms * 1000000;
    } else {
        end_job(s, j, j->script.fail_after);
    }
    if (stop) (void)stub_cancel(s, j->id);
}

static void *run(void *arg)
{
    stub *s = arg;
    pthread_mutex_lock(&s->mu);
    for (;;) {
        bool any = false, left = false;
        for (uint32_t i = 0; i < s->n_jobs; i++) {
            stub_job *j = &s->job[i];
            if (j->done) continue;
            left = true;
            bool cancelled = j->cancelled || s->stop;
            if (!cancelled && j->next_ns > now_ns()) continue;
            any = true;
            pthread_mutex_unlock(&s->mu);
            play(s, j, cancelled);
            pthread_mutex_lock(&s->mu);
        }
        if (s->stop && !left) break;
        if (any) continue;
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_nsec += IDLE_NS;
        if (t.tv_nsec >= 1000000000) {
            t.tv_sec++;
            t.tv_nsec -= 1000000000;
        }
        (void)pthread_cond_timedwait(&s->changed, &s->mu, &t); /* the time only */
    }
    pthread_mutex_unlock(&s->mu);
    return NULL;
}

/* ---- for the tests */

void stub_init(stub *s)
{
    memset(s, 0, sizeof *s);
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &a);
    pthread_condattr_destroy(&a);
    pthread_mutex_init(&s->mu, NULL);
    s->script = (stub_script) { .token = stub_hello, .n_tokens = 4 };
    if (pthread_create(&s->thread, NULL, run, s)) abort();
}

void stub_fini(stub *s)
{
    pthread_mutex_lock(&s->mu);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mu);
    pthread_join(s->thread, NULL);
    for (uint32_t i = 0; i < s->n_jobs; i++) {
        stub_seen *r = &s->job[i].seen;
        free(r->messages);
        free(r->tools);
        free(r->kwargs);
        free(r->text);
    }
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mu);
}

void stub_play(stub *s, stub_script script)
{
    pthread_mutex_lock(&s->mu);
    if (!script.token) {
        script.token = stub_hello;
        script.n_tokens = 4;
    }
    s->script = script;
    s->n_submits = 0;
    pthread_mutex_unlock(&s->mu);
}

const stub_seen *stub_last(stub *s)
{
    pthread_mutex_lock(&s->mu);
    const stub_seen *r = s->n_jobs ? &s->job[s->n_jobs - 1].seen : NULL;
    pthread_mutex_unlock(&s->mu);
    return r;
}

uint32_t stub_count(stub *s, const uint32_t *count)
{
    pthread_mutex_lock(&s->mu);
    uint32_t n = *count;
    pthread_mutex_unlock(&s->mu);
    return n;
}

static bool wait_for(stub *s, const uint32_t *count, uint32_t n, uint32_t limit_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += limit_ms / 1000;
    t.tv_nsec += (long)(limit_ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&s->mu);
    while (*count < n && pthread_cond_timedwait(&s->changed, &s->mu, &t) == 0) {
    }
    bool ok = *count >= n;
    pthread_mutex_unlock(&s->mu);
    return ok;
}

bool stub_wait_cancelled(stub *s, uint32_t n, uint32_t limit_ms)
{
    return wait_for(s, &s->n_cancelled, n, limit_ms);
}

bool stub_wait_done(stub *s, uint32_t n, uint32_t limit_ms)
{
    return wait_for(s, &s->n_done, n, limit_ms);
}

bool stub_wait_submits(stub *s, uint32_t n, uint32_t limit_ms)
{
    return wait_for(s, &s->n_jobs, n, limit_ms);
}
