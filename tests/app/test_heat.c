/* Heat maps and the placement of experts through the whole program, with the demo model and a device that has room for
 * some of its experts: calibration, its file, adapting while answers are written, and what the bits depend on. */
#include "app/client.h"
#include "app/load.h"
#include "base/base.h"
#include "base/file.h"
#include "device/placing.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define MODEL KS_SOURCE_DIR "/models/demo"
#define SLOTS 48u
#define TOKENS 600u

typedef struct run {
    ks_config *config;
    ks_app app;
    placing dev;
    ks_split_ctx split;
    char log[65536];
} run;

static void ok(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

/* Everything up to a running engine; the log goes to r->log. device NULL: the CPU alone. */
static void start(run *r, const char *heat, bool share, uint32_t slots)
{
    ks_err err = { 0 };
    memset(r, 0, sizeof *r);
    ok(ks_config_new(&r->config, &err), &err);
    const char *settings[][2] = { { "model-path", MODEL },
                                  { "plugin-dir", KS_BUILD_DIR "/plugins" },
                                  { "device", "cpu" },
                                  { "context", "256" },
                                  { "step-tokens", "128" } };
    for (size_t i = 0; i < KS_COUNT(settings); i++)
        ok(ks_config_set(r->config, settings[i][0], settings[i][1], KS_FROM_FLAG, "test", &err), &err);
    int saved = dup(STDERR_FILENO), file = open("log.txt", O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(saved >= 0 && file >= 0 && dup2(file, STDERR_FILENO) >= 0);
    int rc = ks_app_prepare(r->config, &r->app, &err);
    if (!rc) rc = ks_app_weights(&r->app, &err);
    if (!rc) rc = ks_config_set(r->config, "heat", heat, KS_FROM_FLAG, "test", &err); /* late: it needs a GPU */
    if (!rc && slots) {
        r->dev = (placing) { .cpu = r->app.cpu, .n_slots = slots, .delay = 3 };
        r->split = (ks_split_ctx) { .main = &placing_iface,
                                    .rest = &ks_cpu_device_iface,
                                    .main_self = &r->dev,
                                    .rest_self = &r->app.cpu,
                                    .share = share };
        r->app.opts.device = &ks_split_device_iface;
        r->app.opts.device_self = &r->split;
        r->app.heat.tokens = TOKENS;
    }
    if (!rc) rc = ks_app_start(&r->app, &err);
    (void)dup2(saved, STDERR_FILENO);
    ssize_t n = pread(file, r->log, sizeof r->log - 1, 0);
    assert_true(n >= 0);
    (void)close(saved);
    (void)close(file);
    ok(rc, &err);
}

static void stop(run *r)
{
    if (r->dev.n_slots) assert_true(r->dev.most_used <= r->dev.n_slots);
    ks_app_close(&r->app);
    ks_config_free(r->config);
}

static void says(const run *r, const char *what, bool it_does)
{
    if ((strstr(r->log, what) != NULL) != it_does) fail_msg("'%s' in the log: %d\n%s", what, !it_does, r->log);
}

/* The answer to a question, in `ret`. */
static void ask(run *r, const char *question, uint32_t tokens, char ret[1024])
{
    ks_err err = { 0 };
    ks_client c;
    char messages[512];
    (void)snprintf(messages, sizeof messages, "[{\"role\":\"user\",\"content\":\"%s\"}]", question);
    ks_request rq = { .size = (uint32_t)sizeof rq,
                      .n = 1,
                      .messages = messages,
                      .messages_bytes = strlen(messages),
                      .max_tokens = (int32_t)tokens,
                      .n_logprobs = -1,
                      .ignore_eos = 1 };
    ks_sampling_init(&rq.sampling);
    rq.sampling.temperature = 0;
    ks_client_init(&c, ks_engine_api_get(), r->app.engine, NULL);
    ok(ks_client_begin(&c, &rq, &err), &err);
    ok(ks_client_wait(&c, &err), &err);
    (void)snprintf(ret, 1024, "%.*s", (int)c.text.n, c.text.n ? c.text.p : "");
    ks_client_fini(&c);
}

static char *heat_path(run *r)
{
    ks_err err;
    char key[33], *path;
    ok(ks_ckpt_fingerprint(r->app.ckpt, false, key, &err), &err);
    ok(ks_heat_path(key, &path, &err), &err);
    return path;
}

static void forget_map(run *r)
{
    char *path = heat_path(r);
    (void)unlink(path);
    free(path);
}

static int fresh(void **state)
{
    static run r;
    (void)state;
    start(&r, "off", true, SLOTS);
    forget_map(&r);
    stop(&r);
    return 0;
}

/* ---- the file */

static void the_first_start_calibrates_and_the_second_reads(void **state)
{
    static run r;
    ks_err err;
    ks_heat_map m;
    (void)state;
    start(&r, "static", true, SLOTS);
    says(&r, "calibrated over 600 tokens", true);
    says(&r, "--heat recalibrate makes it anew, --heat off does without", true);
    char *path = heat_path(&r);
    ok(ks_heat_read(path, &m, &err), &err);
    assert_true(m.rows >= (uint64_t)TOKENS * 1024);
    assert_string_equal(m.model, MODEL);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < m.n_layers * m.n_experts; i++) sum += m.counts[i];
    assert_int_equal(sum, m.rows * m.n_layers * 4); /* four experts a row */
    assert_int_equal(r.dev.used, SLOTS);
    uint64_t cold_part = 0, cold_least = UINT64_MAX; /* nobody outside is hotter than somebody inside */
    for (uint32_t i = 0; i < m.n_layers * m.n_experts; i++)
        if (r.dev.lands[i])
            cold_least = KS_MIN(cold_least, m.counts[i]);
        else
            cold_part = KS_MAX(cold_part, m.counts[i]);
    assert_true(cold_least >= cold_part);
    stop(&r);
    start(&r, "static", true, SLOTS);
    says(&r, "calibrated", false);
    says(&r, "heat map '", true);
    for (uint32_t i = 0; i < m.n_layers * m.n_experts; i++)
        if (m.counts[i] > cold_part) assert_true(r.dev.lands[i]);
    assert_int_equal(r.dev.uploads, SLOTS); /* at once the right ones */
    stop(&r);
    start(&r, "recalibrate", true, SLOTS);
    says(&r, "calibrated over 600 tokens", true);
    stop(&r);
    ks_heat_map_fini(&m);
    free(path);
}

static void a_damaged_file_is_told_and_made_anew(void **state)
{
    static run r;
    ks_err err;
    ks_heat_map m;
    (void)state;
    start(&r, "auto", true, SLOTS);
    char *path = heat_path(&r);
    stop(&r);
    ok(ks_file_write(path, "KSHEAT and then nothing that makes sense, for sixty bytes or so", 63, &err), &err);
    start(&r, "auto", true, SLOTS);
    says(&r, "is damaged: ", true);
    says(&r, "calibrated over 600 tokens", true);
    ok(ks_heat_read(path, &m, &err), &err);
    uint32_t layers = m.n_layers;
    stop(&r);
    m.n_layers /= 2; /* a map of another shape */
    ok(ks_heat_write(path, &m, &err), &err);
    ks_heat_map_fini(&m);
    start(&r, "auto", true, SLOTS);
    says(&r, "layers and 32 experts, the model has", true);
    says(&r, "calibrated over 600 tokens", true);
    stop(&r);
    ok(ks_heat_read(path, &m, &err), &err);
    assert_int_equal(m.n_layers, layers);
    ks_heat_map_fini(&m);
    free(path);
}

static void a_folder_that_cannot_be_written_is_a_warning(void **state)
{
    static run r;
    ks_err err;
    char answer[1024], *dir;
    (void)state;
    ok(ks_heat_dir(&dir, &err), &err);
    char aside[4096];
    (void)snprintf(aside, sizeof aside, "%s.aside", dir);
    assert_int_equal(rename(dir, aside), 0);
    ok(ks_file_write(dir, "in the way", 10, &err), &err);
    start(&r, "auto", true, SLOTS);
    says(&r, "the heat map is not saved: ", true);
    says(&r, "the next start does not know it", true);
    ask(&r, "What is the capital of France?", 8, answer);
    assert_non_null(strstr(answer, "Paris"));
    stop(&r);
    assert_int_equal(unlink(dir), 0);
    assert_int_equal(rename(aside, dir), 0);
    free(dir);
}

static void off_leaves_the_choice_to_the_device(void **state)
{
    static run r;
    (void)state;
    start(&r, "off", true, SLOTS);
    says(&r, "calibrated", false);
    assert_int_equal(r.dev.bind.host_places, 0);
    assert_int_equal(r.dev.uploads, 0);
    stop(&r);
}

static void where_all_experts_stay_nothing_is_calibrated(void **state)
{
    static run r;
    ks_stats s = { .size = sizeof s };
    (void)state;
    start(&r, "auto", true, 100000);
    says(&r, "calibrated", false);
    assert_int_equal(ks_engine_api_get()->stats(r.app.engine, &s, NULL), 0);
    assert_int_equal(s.experts_resident, s.experts);
    stop(&r);
}

/* ---- while it runs */

static void experts_follow_what_is_asked_for_and_are_saved(void **state)
{
    static run r;
    ks_err err;
    ks_heat_map before, after;
    ks_stats s = { .size = sizeof s }, t = { .size = sizeof t };
    char answer[1024], *path;
    (void)state;
    start(&r, "recalibrate", true, SLOTS);
    path = heat_path(&r);
    ok(ks_heat_read(path, &before, &err), &err);
    double rate[2];
    for (uint32_t half = 0; half < 2; half++) {
        assert_int_equal(ks_engine_api_get()->stats(r.app.engine, &s, NULL), 0);
        for (uint32_t i = 0; i < 12; i++) ask(&r, "Which command lists the files of a folder?", 60, answer);
        assert_int_equal(ks_engine_api_get()->stats(r.app.engine, &t, NULL), 0);
        double hot = (double)(t.experts_hot - s.experts_hot);
        rate[half] = hot / (hot + (double)(t.experts_cold - s.experts_cold));
    }
    print_message(
        "hit rate of the first and the second twelve answers: %.3f, %.3f; %llu exchanged, %u of %u resident\n", rate[0],
        rate[1], (unsigned long long)t.expert_uploads, t.experts_resident, t.expert_slots);
    assert_true(t.expert_uploads > SLOTS && rate[1] > rate[0]);
    assert_true(r.dev.most_used <= SLOTS && r.dev.used == SLOTS);
    stop(&r);
    ok(ks_heat_read(path, &after, &err), &err);
    assert_memory_not_equal(before.counts, after.counts, before.n_layers * before.n_experts * sizeof *before.counts);
    ks_heat_map_fini(&before);
    ks_heat_map_fini(&after);
    free(path);
}

static void static_changes_nothing_while_it_runs(void **state)
{
    static run r;
    char answer[1024];
    (void)state;
    start(&r, "static", true, SLOTS);
    uint64_t uploads = r.dev.uploads;
    for (uint32_t i = 0; i < 4; i++) ask(&r, "Which command lists the files of a folder?", 60, answer);
    assert_int_equal(r.dev.uploads, uploads);
    assert_int_equal(r.dev.dropped, 0);
    stop(&r);
}

static const char *const questions[] = { "What is the capital of France?", "What does the command grep do?",
                                         "Explain in one sentence what a checksum is.", "Hello! Who are you?" };

/* Resident or streamed, the same device computes the same products in the same order. */
static void streamed_experts_give_the_same_answers_whatever_stays(void **state)
{
    static run r;
    char want[KS_COUNT(questions)][1024], got[1024];
    (void)state;
    start(&r, "off", false, 0);
    for (uint32_t i = 0; i < KS_COUNT(questions); i++) ask(&r, questions[i], 100, want[i]);
    stop(&r);
    start(&r, "auto", false, SLOTS);
    for (uint32_t k = 0; k < 2; k++)
        for (uint32_t i = 0; i < KS_COUNT(questions); i++) {
            ask(&r, questions[i], 100, got);
            assert_string_equal(got, want[i]);
        }
    assert_true(r.dev.dropped > 0);
    stop(&r);
}

/* With two devices the order of a row's sum depends on what stays: the same placement gives the same bits, and another
 * one differs by rounding alone. */
static void shared_experts_give_equal_bits_for_an_equal_placement(void **state)
{
    static run r;
    static float z[3][64 * 8192];
    ks_err err;
    int32_t ids[64];
    (void)state;
    for (uint32_t i = 0; i < 64; i++) ids[i] = (int32_t)(i * 37 % 1000 + 5);
    for (uint32_t k = 0; k < 3; k++) {
        start(&r, k < 2 ? "static" : "off", true, k < 2 ? SLOTS : 0);
        assert_true(r.app.model.graph.n_vocab <= 8192);
        ks_engine_eval_reset(r.app.engine);
        ok(ks_engine_eval(r.app.engine, 0, ids, 64, 0, z[k], NULL, &err), &err);
        uint32_t n = 64 * r.app.model.graph.n_vocab;
        stop(&r);
        if (k == 1) assert_memory_equal(z[0], z[1], n * sizeof(float));
        for (uint32_t i = 0; i < n && k == 2; i++)
            if (!(z[2][i] - z[0][i] < 0.5f && z[0][i] - z[2][i] < 0.5f))
                fail_msg("logit %u is %g, not %g", i, (double)z[0][i], (double)z[2][i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_start_calibrates_and_the_second_reads),
        cmocka_unit_test(a_damaged_file_is_told_and_made_anew),
        cmocka_unit_test(a_folder_that_cannot_be_written_is_a_warning),
        cmocka_unit_test(off_leaves_the_choice_to_the_device),
        cmocka_unit_test(where_all_experts_stay_nothing_is_calibrated),
        cmocka_unit_test(experts_follow_what_is_asked_for_and_are_saved),
        cmocka_unit_test(static_changes_nothing_while_it_runs),
        cmocka_unit_test(streamed_experts_give_the_same_answers_whatever_stays),
        cmocka_unit_test(shared_experts_give_equal_bits_for_an_equal_placement),
    };
    return cmocka_run_group_tests(tests, fresh, NULL);
}
