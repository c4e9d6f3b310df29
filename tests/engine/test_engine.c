/* The engine over a fake device: batching, paging, preemption, reuse, cancellation, ends. */
#include "base/base.h"
#include "engine/engine.h"
#include "engine/fake_device.h"
#include "engine/impl.h"
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

typedef struct client {
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool begun, done, refuse; /* under mu */
    int32_t ids[KS_MAX_CHOICES][600];
    float lp[KS_MAX_CHOICES][600];
    uint32_t n[KS_MAX_CHOICES];
    int32_t finish[KS_MAX_CHOICES];
    int calls_done;
    ks_usage usage;
    ks_err err;
    uint64_t job;
} client;

static int on_begin(void *arg, const ks_usage *u)
{
    client *c = arg;
    (void)u;
    pthread_mutex_lock(&c->mu);
    c->begun = true;
    pthread_mutex_unlock(&c->mu);
    return 0;
}

static int on_text(void *arg, uint32_t choice, const char *text, size_t n, const ks_token_info *t, uint32_t n_tok)
{
    client *c = arg;
    (void)text, (void)n;
    pthread_mutex_lock(&c->mu);
    for (uint32_t i = 0; i < n_tok && c->n[choice] < 600; i++) {
        c->lp[choice][c->n[choice]] = t[i].token.logprob;
        c->ids[choice][c->n[choice]++] = t[i].token.id;
    }
    bool refuse = c->refuse;
    pthread_mutex_unlock(&c->mu);
    return refuse;
}

static void on_finish(void *arg, uint32_t choice, int32_t finish)
{
    ((client *)arg)->finish[choice] = finish;
}

static void on_done(void *arg, const ks_usage *u, const ks_err *err)
{
    client *c = arg;
    pthread_mutex_lock(&c->mu);
    c->usage = *u;
    if (err) c->err = *err;
    c->done = true;
    c->calls_done++;
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->mu);
}

static void client_init(client *c)
{
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->mu, NULL);
    pthread_cond_init(&c->cond, NULL);
}

static ks_request request(const int32_t *ids, uint32_t n, int32_t max)
{
    ks_request r = { .size = (uint32_t)sizeof r, .n = 1, .ids = ids, .n_ids = n, .max_tokens = max, .n_logprobs = 0 };
    ks_sampling_init(&r.sampling);
    r.sampling.temperature = 0;
    return r;
}

static int submit(ks_engine *e, client *c, const ks_request *r, ks_err *err)
{
    ks_sink s = { .size = (uint32_t)sizeof s,
                  .arg = c,
                  .on_begin = on_begin,
                  .on_text = on_text,
                  .on_finish = on_finish,
                  .on_done = on_done };
    return ks_engine_api_get()->submit(e, r, &s, &c->job, err);
}

static void begin(ks_engine *e, client *c, const ks_request *r)
{
    ks_err err = { 0 };
    if (submit(e, c, r, &err)) fail_msg("%s", err.msg);
}

/* A request is prepared by a thread of its own: only then can a step take it. */
static void wait_begun(client *c)
{
    for (bool begun = false; !begun; (void)usleep(1000)) {
        pthread_mutex_lock(&c->mu);
        begun = c->begun;
        pthread_mutex_unlock(&c->mu);
    }
}

static void wait_done(client *c)
{
    pthread_mutex_lock(&c->mu);
    while (!c->done) pthread_cond_wait(&c->cond, &c->mu);
    pthread_mutex_unlock(&c->mu);
    assert_int_equal(c->calls_done, 1);
}

static void ask(ks_engine *e, client *c, const ks_request *r)
{
    begin(e, c, r);
    wait_done(c);
}

static const ks_state kv_state = { .kind = KS_STATE_KV, .k_width = 1, .v_width = 1 };
static const ks_state states[2] = { { .kind = KS_STATE_KV, .k_width = 1, .v_width = 1 },
                                    { .kind = KS_STATE_RECURRENT, .floats = 2 } };
static ks_model model, model_rec;
static ks_pool *pool; /* of the next engine, if any */
static fake *spare;   /* takes over in the next engine, if any */
static bool stops;    /* it stops when its device is lost */

static uint32_t busy_tokens; /* of the engines to come */

static ks_engine *start(fake *f, bool recurrent, uint32_t n_ctx, uint32_t pages, uint32_t running, uint32_t waiting,
                        uint32_t step)
{
    ks_engine *e = NULL;
    ks_err err = { 0 };
    fake_init(f, recurrent);
    model.arch = model_rec.arch = "fake";
    model.graph = (ks_graph) { .n_vocab = FAKE_VOCAB, .n_ctx = 4096, .d_model = 1, .n_states = 1, .states = &kv_state };
    model_rec.graph = model.graph;
    model_rec.graph.n_states = 2;
    model_rec.graph.states = states;
    ks_engine_opts o = { .model = recurrent ? &model_rec : &model,
                         .device = &fake_iface,
                         .device_self = f,
                         .fallback = spare ? &fake_iface : NULL,
                         .fallback_self = spare,
                         .stop_when_lost = stops,
                         .pool = pool,
                         .name = "fake",
                         .n_ctx = n_ctx,
                         .kv_type = KS_T_F32,
                         .kv_bytes = (uint64_t)pages * 2 * 16 * 4,
                         .max_running = running,
                         .max_waiting = waiting,
                         .step_tokens = step,
                         .busy_tokens = busy_tokens };
    if (ks_engine_open(&o, &e, &err)) fail_msg("%s", err.msg);
    return e;
}

static void stop(ks_engine *e, fake *f)
{
    ks_engine_close(e);
    fake_fini(f);
}

static void make_prompt(int32_t *p, uint32_t n, uint32_t seed)
{
    for (uint32_t i = 0; i < n; i++) p[i] = (int32_t)((i * 31 + seed * 17 + i * i * seed) % (FAKE_VOCAB - 2)) + 2;
}

static void expect_answer(const client *c, uint32_t choice, const int32_t *prompt, uint32_t n, uint32_t n_new)
{
    int32_t want[600];
    fake_expect(prompt, n, want, n_new);
    assert_int_equal(c->n[choice], n_new);
    assert_memory_equal(c->ids[choice], want, n_new * sizeof *want);
}

static void answers_one_client(void **state)
{
    (void)state;
    fake f;
    client c;
    int32_t p[40];
    ks_engine *e = start(&f, false, 512, 100, 4, 4, 16);
    make_prompt(p, 40, 1);
    client_init(&c);
    ks_request r = request(p, 40, 50);
    ask(e, &c, &r);
    expect_answer(&c, 0, p, 40, 50);
    assert_int_equal(c.finish[0], KS_FINISH_LENGTH);
    assert_int_equal(c.usage.prompt_tokens, 40);
    assert_int_equal(c.usage.completion_tokens, 50);
    assert_int_equal(c.err.code, 0);
    stop(e, &f);
}

/* More clients than may run, fewer pages than they need together: waiting and preemption must not be seen. */
static void run_many(bool recurrent, uint32_t pages, uint32_t running)
{
    enum { N = 24 };
    static client c[N];
    static int32_t p[N][200];
    uint32_t len[N];
    fake f;
    ks_engine *e = start(&f, recurrent, 300, pages, running, 64, 48);
    for (uint32_t i = 0; i < N; i++) {
        len[i] = 1 + (i * 37) % 180;
        make_prompt(p[i], len[i], i + 1);
        client_init(&c[i]);
        ks_request r = request(p[i], len[i], 60 + (int32_t)i);
        begin(e, &c[i], &r);
    }
    for (uint32_t i = 0; i < N; i++) {
        wait_done(&c[i]);
        expect_answer(&c[i], 0, p[i], len[i], 60 + i);
    }
    assert_true(f.max_rows <= 48);
    stop(e, &f);
}

static void many_clients_get_what_each_gets_alone(void **state)
{
    (void)state;
    run_many(false, 400, 24);
}

/* A prompt is read in one step where nobody writes, and in pieces of --busy-step-tokens beside an answer. */
static void writers_do_not_wait_for_long_steps(void **state)
{
    (void)state;
    fake f;
    client a, b;
    int32_t p[200], q[200];
    busy_tokens = 16;
    ks_engine *e = start(&f, false, 400, 100, 4, 4, 256);
    busy_tokens = 0;
    make_prompt(p, 200, 1);
    make_prompt(q, 200, 2);
    client_init(&a);
    client_init(&b);
    ks_request r = request(p, 200, 150);
    fake_hold(&f, true);
    begin(e, &a, &r);
    r = request(q, 200, 1);
    fake_wait_begun(&f, 1); /* the first is read alone */
    begin(e, &b, &r);
    wait_begun(&b); /* it is in the queue before the other writes */
    fake_hold(&f, false);
    wait_done(&a);
    wait_done(&b);
    expect_answer(&a, 0, p, 200, 150);
    expect_answer(&b, 0, q, 200, 1);
    assert_int_equal(f.max_rows, 200);
    assert_true(f.busy_rows > 1 && f.busy_rows <= 16);
    stop(e, &f);
}

/* Drawn tokens and their log-probabilities, of answers in one batch. */
static void draw_many(client *c, uint32_t n)
{
    int32_t p[20];
    fake f;
    ks_engine *e = start(&f, false, 300, 400, n, 4, 256);
    fake_hold(&f, true); /* so that they come together */
    for (uint32_t i = 0; i < n; i++) {
        make_prompt(p, 20, i + 1);
        client_init(&c[i]);
        ks_request r = request(p, 20, 100);
        r.n_logprobs = i % 2 ? 5 : 0;
        r.sampling.temperature = i % 3 ? 1.5f : 0;
        r.sampling.top_p = i % 4 ? 1 : 0.9f;
        r.sampling.frequency_penalty = i % 5 ? 0 : 0.5f;
        r.sampling.has_seed = 1;
        r.sampling.seed = i;
        begin(e, &c[i], &r);
    }
    for (uint32_t i = 0; i < n; i++) wait_begun(&c[i]);
    fake_hold(&f, false);
    for (uint32_t i = 0; i < n; i++) wait_done(&c[i]);
    stop(e, &f);
}

static void sampling_in_parallel_changes_nothing(void **state)
{
    (void)state;
    enum { N = 12 };
    static client one[N], many[N];
    const ks_pool_opts o = { .n_threads = 3 };
    uint64_t runs = 0, parks = 0;
    ks_err err;
    draw_many(one, N);
    if (ks_pool_open(&o, &pool, &err)) fail_msg("%s", err.msg);
    draw_many(many, N);
    ks_pool_counts(pool, &runs, &parks);
    assert_true(runs >= 50); /* one a step, but for those before all have come */
    ks_pool_close(pool);
    pool = NULL;
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(many[i].n[0], 100);
        assert_memory_equal(one[i].ids[0], many[i].ids[0], sizeof one[i].ids[0]);
        assert_memory_equal(one[i].lp[0], many[i].lp[0], sizeof one[i].lp[0]);
    }
}

static void running_out_of_pages_changes_nothing(void **state)
{
    (void)state;
    run_many(false, 24, 24);
}

static void recurrent_state_follows_its_sequence(void **state)
{
    (void)state;
    run_many(true, 24, 8);
}

static void reuse(bool recurrent)
{
    fake f;
    client a, b;
    int32_t p[200];
    ks_engine *e = start(&f, recurrent, 512, 200, 4, 4, 64);
    make_prompt(p, 200, 3);
    client_init(&a);
    ks_request r = request(p, 150, 20);
    ask(e, &a, &r);
    assert_int_equal(a.usage.cached_tokens, 0);
    uint64_t rows = f.rows;
    memcpy(p + 150, a.ids[0], 20 * sizeof *p); /* the next turn: prompt, answer, more */
    client_init(&b);
    r = request(p, 190, 10);
    ask(e, &b, &r);
    expect_answer(&b, 0, p, 190, 10);
    assert_int_equal(b.usage.cached_tokens, recurrent ? 144 : 160);
    assert_true(f.rows - rows <= 190 - b.usage.cached_tokens + 10);
    stop(e, &f);
}

static void a_known_prefix_is_not_computed_again(void **state)
{
    (void)state;
    reuse(false);
}

static void a_known_prefix_is_reused_with_recurrent_state(void **state)
{
    (void)state;
    reuse(true);
}

/* A step for the rest of a prompt would read all weights once more. */
static void state_is_kept_without_a_step_of_its_own(void **state)
{
    (void)state;
    fake f;
    client a, b;
    int32_t p[160];
    ks_engine *e = start(&f, true, 512, 200, 4, 4, 256);
    make_prompt(p, 160, 3);
    client_init(&a);
    ks_request r = request(p, 150, 1);
    ask(e, &a, &r);
    expect_answer(&a, 0, p, 150, 1);
    assert_int_equal(f.steps, 1);
    client_init(&b);
    r = request(p, 155, 5);
    ask(e, &b, &r);
    expect_answer(&b, 0, p, 155, 5);
    assert_int_equal(b.usage.cached_tokens, 144);
    assert_int_equal(f.steps, 1 + 5);
    stop(e, &f);
}

/* What a step was to keep is not there when it failed. */
static void state_of_a_failed_step_is_not_used(void **state)
{
    (void)state;
    fake f;
    client a, b;
    int32_t p[150];
    ks_engine *e = start(&f, true, 512, 200, 4, 4, 256);
    make_prompt(p, 150, 3);
    f.fail_at = 0;
    client_init(&a);
    ks_request r = request(p, 150, 1);
    ask(e, &a, &r);
    assert_int_equal(a.finish[0], KS_FINISH_ERROR);
    client_init(&b);
    ask(e, &b, &r);
    expect_answer(&b, 0, p, 150, 1);
    assert_int_equal(b.usage.cached_tokens, 0);
    stop(e, &f);
}

/* Of 40 pages a second conversation needs 31: of the first one's 20 as many are left as did not have to go, and those
 * are its first. */
static void what_is_left_of_a_prefix_is_reused(void **state)
{
    (void)state;
    fake f;
    client c;
    int32_t p[330], other[490];
    ks_engine *e = start(&f, false, 512, 40, 4, 4, 64);
    make_prompt(p, 330, 3);
    make_prompt(other, 490, 4);
    for (uint32_t i = 0; i < 3; i++) {
        client_init(&c);
        ks_request r = i == 1 ? request(other, 490, 2) : request(p, 330, 2);
        ask(e, &c, &r);
        expect_answer(&c, 0, i == 1 ? other : p, i == 1 ? 490 : 330, 2);
    }
    assert_in_range(c.usage.cached_tokens, 8 * 16, 9 * 16);
    stop(e, &f);
}

static void choices_share_the_prompt(void **state)
{
    (void)state;
    fake f;
    client c;
    int32_t p[64];
    ks_engine *e = start(&f, false, 256, 64, 8, 4, 64);
    make_prompt(p, 64, 5);
    client_init(&c);
    ks_request r = request(p, 64, 8);
    r.n = 4;
    ask(e, &c, &r);
    for (uint32_t i = 0; i < 4; i++) expect_answer(&c, i, p, 64, 8);
    assert_true(f.rows < 64 + 3 * 16 + 4 * 8);
    assert_int_equal(c.usage.completion_tokens, 32);
    stop(e, &f);
}

static void cancel_frees_the_slot_within_one_step(void **state)
{
    (void)state;
    fake f;
    client a, b;
    ks_err err = { 0 };
    int32_t p[8];
    ks_engine *e = start(&f, false, 512, 100, 1, 4, 16);
    make_prompt(p, 8, 2);
    client_init(&a);
    client_init(&b);
    fake_hold(&f, true);
    ks_request r = request(p, 8, 400);
    begin(e, &a, &r);
    while (true) { /* until it runs: the step waits in the device */
        ks_stats s = { .size = (uint32_t)sizeof s };
        pthread_mutex_lock(&a.mu);
        bool begun = a.begun;
        pthread_mutex_unlock(&a.mu);
        assert_int_equal(ks_engine_api_get()->stats(e, &s, &err), 0);
        if (begun) break;
        usleep(1000);
    }
    r = request(p, 8, 3);
    begin(e, &b, &r);
    assert_int_equal(ks_engine_api_get()->cancel(e, a.job), 0);
    fake_hold(&f, false);
    wait_done(&a);
    assert_int_equal(a.finish[0], KS_FINISH_CANCELED);
    assert_true(a.n[0] <= 1);
    wait_done(&b);
    expect_answer(&b, 0, p, 8, 3);
    stop(e, &f);
}

static void a_sink_that_refuses_is_cancelled(void **state)
{
    (void)state;
    fake f;
    client a;
    int32_t p[8];
    ks_engine *e = start(&f, false, 512, 100, 4, 4, 16);
    make_prompt(p, 8, 2);
    client_init(&a);
    a.refuse = true;
    ks_request r = request(p, 8, 400);
    ask(e, &a, &r);
    assert_int_equal(a.n[0], 1);
    assert_int_equal(a.finish[0], KS_FINISH_CANCELED);
    stop(e, &f);
}

static void a_failing_device_ends_the_running_jobs_with_its_message(void **state)
{
    (void)state;
    fake f;
    client a, b;
    int32_t p[8];
    ks_engine *e = start(&f, false, 512, 100, 4, 4, 16);
    make_prompt(p, 8, 2);
    f.fail_at = 3;
    client_init(&a);
    ks_request r = request(p, 8, 40);
    r.n = 2;
    ask(e, &a, &r);
    assert_int_equal(a.err.code, KS_E_DEVICE);
    assert_string_equal(a.err.msg, "the fake device fails as asked");
    client_init(&b); /* the engine goes on */
    r = request(p, 8, 5);
    ask(e, &b, &r);
    expect_answer(&b, 0, p, 8, 5);
    stop(e, &f);
}

static atomic_bool watching;

/* What a client may ask at any moment, also while a device is replaced. */
static void *watch(void *engine)
{
    ks_err err;
    while (atomic_load(&watching)) {
        ks_stats s = { .size = sizeof s };
        if (ks_engine_api_get()->stats(engine, &s, &err)) return engine;
    }
    return NULL;
}

static void take_over(bool recurrent)
{
    pthread_t watcher;
    void *failed;
    fake f, g;
    client a, b, c, d;
    ks_err err;
    int32_t p[100];
    float z[FAKE_VOCAB];
    fake_init(&g, recurrent);
    spare = &g;
    ks_engine *e = start(&f, recurrent, 512, 100, 1, 4, 64);
    spare = NULL;
    atomic_store(&watching, true);
    assert_int_equal(pthread_create(&watcher, NULL, watch, e), 0);
    make_prompt(p, 100, 2);
    client_init(&a);
    ks_request r = request(p, 100, 3);
    ask(e, &a, &r); /* its pages would be found again */
    expect_answer(&a, 0, p, 100, 3);
    f.fail_at = (int)f.steps + 2;
    client_init(&b);
    client_init(&c);
    r = request(p, 90, 20);
    fake_hold(&f, true);
    begin(e, &b, &r);
    begin(e, &c, &r); /* one runs at a time: this one waits, and is not hit */
    fake_hold(&f, false);
    wait_done(&b);
    wait_done(&c);
    assert_int_equal(b.err.code, KS_E_DEVICE);
    assert_string_equal(b.err.msg, "the fake device fails as asked");
    assert_int_equal(b.finish[0], KS_FINISH_ERROR);
    assert_int_equal(c.err.code, 0);
    expect_answer(&c, 0, p, 90, 20);
    assert_int_equal(c.usage.cached_tokens, 0); /* what the lost device held is gone */
    assert_true(g.steps > 0);
    uint64_t steps = f.steps;
    client_init(&d);
    r = request(p, 100, 5);
    ask(e, &d, &r);
    expect_answer(&d, 0, p, 100, 5);
    assert_int_equal(d.usage.cached_tokens, 80); /* and the new one's is found */
    assert_int_equal(f.steps, steps);
    assert_false(ks_engine_lost(e, &err));
    assert_int_equal(ks_engine_eval(e, 0, p, 1, 0, z, NULL, &err), 0);
    atomic_store(&watching, false);
    assert_int_equal(pthread_join(watcher, &failed), 0);
    assert_null(failed);
    stop(e, &f);
    fake_fini(&g);
}

static void another_device_takes_over_from_a_lost_one(void **state)
{
    (void)state;
    take_over(false);
    take_over(true);
}

static void without_another_device_everybody_is_told(void **state)
{
    (void)state;
    fake f, g;
    client a, b, c;
    ks_err err = { 0 };
    int32_t p[8];
    float z[FAKE_VOCAB];
    make_prompt(p, 8, 2);
    ks_request r = request(p, 8, 40);
    for (int broken = 0; broken < 2; broken++) {
        fake_init(&g, false);
        g.no_memory = true;
        spare = broken ? &g : NULL;
        stops = !broken;
        ks_engine *e = start(&f, false, 512, 100, 1, 4, 16);
        spare = NULL;
        stops = false;
        const char *msg = broken ? "fake device" : "the fake device fails as asked";
        f.fail_at = 3;
        assert_false(ks_engine_lost(e, &err));
        client_init(&a);
        client_init(&b);
        client_init(&c);
        fake_hold(&f, true);
        begin(e, &a, &r);
        begin(e, &b, &r); /* waits */
        fake_hold(&f, false);
        wait_done(&a);
        wait_done(&b);
        assert_string_equal(a.err.msg, "the fake device fails as asked");
        assert_string_equal(b.err.msg, msg);
        assert_true(ks_engine_lost(e, &err));
        assert_string_equal(err.msg, msg);
        assert_int_not_equal(submit(e, &c, &r, &err), 0);
        assert_string_equal(err.msg, msg);
        assert_int_not_equal(ks_engine_eval(e, 0, p, 8, 0, z, NULL, &err), 0);
        assert_string_equal(err.msg, msg);
        stop(e, &f);
        fake_fini(&g);
    }
}

static void a_prompt_beyond_the_context_is_refused_before_any_step(void **state)
{
    (void)state;
    fake f;
    client a;
    static int32_t p[300];
    ks_engine *e = start(&f, false, 256, 100, 4, 4, 16);
    make_prompt(p, 300, 2);
    client_init(&a);
    ks_request r = request(p, 300, 5);
    ask(e, &a, &r);
    assert_int_equal(a.err.code, KS_E_CONTEXT);
    assert_non_null(strstr(a.err.msg, "maximum context length is 256 tokens"));
    assert_false(a.begun);
    assert_int_equal(f.steps, 0);
    client_init(&a); /* what fits but asks for too much ends at the border */
    r = request(p, 250, 100);
    ask(e, &a, &r);
    expect_answer(&a, 0, p, 250, 6);
    assert_int_equal(a.finish[0], KS_FINISH_LENGTH);
    stop(e, &f);
}

static void bad_requests_name_the_field(void **state)
{
    (void)state;
    fake f;
    client a;
    ks_err err = { 0 };
    int32_t p[4] = { 2, 3, 4, 5 };
    ks_engine *e = start(&f, false, 256, 100, 4, 4, 16);
    client_init(&a);
    ks_request r = request(p, 4, 5);
    r.sampling.temperature = 3;
    assert_int_equal(submit(e, &a, &r, &err), KS_E_INVAL);
    assert_string_equal(err.msg, "'temperature' is 3: allowed is 0 to 2");
    r = request(p, 4, 5);
    r.n = 99;
    assert_int_equal(submit(e, &a, &r, &err), KS_E_INVAL);
    assert_string_equal(err.msg, "'n' is 99: allowed is 1 to 16");
    r = request(NULL, 0, 5);
    assert_int_equal(submit(e, &a, &r, &err), KS_E_INVAL);
    r = request(p, 4, 0);
    assert_int_equal(submit(e, &a, &r, &err), KS_E_INVAL);
    p[2] = 4000;
    r = request(p, 4, 5);
    ask(e, &a, &r);
    assert_string_equal(a.err.msg, "prompt token 2 is 4000: the vocabulary has 97");
    stop(e, &f);
}

static void a_full_queue_says_busy(void **state)
{
    (void)state;
    fake f;
    static client c[4];
    ks_err err = { 0 };
    int32_t p[4] = { 2, 3, 4, 5 };
    ks_engine *e = start(&f, false, 256, 100, 1, 1, 16);
    fake_hold(&f, true);
    ks_request r = request(p, 4, 5);
    for (int i = 0; i < 2; i++) {
        client_init(&c[i]);
        begin(e, &c[i], &r);
    }
    assert_int_equal(submit(e, &c[2], &r, &err), KS_E_BUSY);
    fake_hold(&f, false);
    for (int i = 0; i < 2; i++) wait_done(&c[i]);
    assert_true(ks_engine_drain(e, 1000));
    assert_int_equal(submit(e, &c[2], &r, &err), KS_E_STATE);
    stop(e, &f);
}

static void close_cancels_what_runs(void **state)
{
    (void)state;
    fake f;
    static client c[6];
    int32_t p[4] = { 2, 3, 4, 5 };
    ks_engine *e = start(&f, false, 512, 100, 2, 8, 16);
    ks_request r = request(p, 4, 500);
    for (int i = 0; i < 6; i++) {
        client_init(&c[i]);
        begin(e, &c[i], &r);
    }
    ks_engine_close(e);
    for (int i = 0; i < 6; i++) assert_int_equal(c[i].calls_done, 1);
    fake_fini(&f);
}

static void echo_gives_the_prompt_with_its_log_probabilities(void **state)
{
    (void)state;
    fake f;
    client a;
    static int32_t p[150];
    ks_engine *e = start(&f, false, 256, 100, 4, 4, 32);
    make_prompt(p, 150, 2);
    fake_expect(p, 149, &p[149], 1); /* the last prompt token is the likeliest one, the others are not */
    client_init(&a);
    ks_request r = request(p, 150, 0);
    r.echo = 1;
    ask(e, &a, &r);
    assert_int_equal(a.n[0], 150);
    assert_memory_equal(a.ids[0], p, sizeof p);
    assert_true(a.lp[0][0] != a.lp[0][0]); /* the first has none */
    assert_true(a.lp[0][149] > -1);
    assert_true(a.lp[0][75] < -4);
    assert_int_equal(a.usage.completion_tokens, 0);
    stop(e, &f);
}

static void evaluation_continues_a_sequence(void **state)
{
    (void)state;
    fake f;
    ks_err err = { 0 };
    static int32_t p[100];
    static float z[100 * FAKE_VOCAB], one[FAKE_VOCAB];
    ks_engine *e = start(&f, false, 256, 100, 4, 4, 32);
    make_prompt(p, 100, 9);
    assert_int_equal(ks_engine_eval(e, 0, p, 100, 0, z, NULL, &err), 0);
    assert_int_equal(ks_engine_eval(e, 1, p, 60, 0, NULL, NULL, &err), 0);
    for (uint32_t i = 60; i < 100; i++) {
        assert_int_equal(ks_engine_eval(e, 1, p + i, 1, i, one, NULL, &err), 0);
        assert_memory_equal(one, z + (size_t)i * FAKE_VOCAB, sizeof one);
    }
    assert_int_equal(ks_engine_eval(e, 0, p, 100, 200, z, NULL, &err), KS_E_CONTEXT);
    ks_engine_eval_reset(e);
    stop(e, &f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_one_client),
        cmocka_unit_test(many_clients_get_what_each_gets_alone),
        cmocka_unit_test(writers_do_not_wait_for_long_steps),
        cmocka_unit_test(sampling_in_parallel_changes_nothing),
        cmocka_unit_test(running_out_of_pages_changes_nothing),
        cmocka_unit_test(recurrent_state_follows_its_sequence),
        cmocka_unit_test(a_known_prefix_is_not_computed_again),
        cmocka_unit_test(a_known_prefix_is_reused_with_recurrent_state),
        cmocka_unit_test(state_is_kept_without_a_step_of_its_own),
        cmocka_unit_test(state_of_a_failed_step_is_not_used),
        cmocka_unit_test(what_is_left_of_a_prefix_is_reused),
        cmocka_unit_test(choices_share_the_prompt),
        cmocka_unit_test(cancel_frees_the_slot_within_one_step),
        cmocka_unit_test(a_sink_that_refuses_is_cancelled),
        cmocka_unit_test(a_failing_device_ends_the_running_jobs_with_its_message),
        cmocka_unit_test(another_device_takes_over_from_a_lost_one),
        cmocka_unit_test(without_another_device_everybody_is_told),
        cmocka_unit_test(a_prompt_beyond_the_context_is_refused_before_any_step),
        cmocka_unit_test(bad_requests_name_the_field),
        cmocka_unit_test(a_full_queue_says_busy),
        cmocka_unit_test(close_cancels_what_runs),
        cmocka_unit_test(echo_gives_the_prompt_with_its_log_probabilities),
        cmocka_unit_test(evaluation_continues_a_sequence),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
