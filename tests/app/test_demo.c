/* The demo model through the whole stack, as a start would load it, against the reference results beside it:
 * log-probabilities, greedy answers, and what the default quantization costs. */
#include "app/client.h"
#include "app/load.h"
#include "base/base.h"
#include "base/file.h"
#include <krasis/json.h>
#include <math.h>
#include <stdio.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define MODEL KS_SOURCE_DIR "/models/demo"

static const char *const exact[][2] = { { "cpu-expert-bits", "16" },       { "attention-quant", "bf16" },
                                        { "shared-expert-quant", "bf16" }, { "dense-mlp-quant", "bf16" },
                                        { "lm-head-quant", "bf16" },       { "kv-dtype", "f32" } };

static void open_model(bool bf16, ks_config **c, ks_app *a)
{
    ks_err err = { 0 };
    assert_int_equal(ks_config_new(c, &err), 0);
    if (ks_config_set(*c, "model-path", MODEL, KS_FROM_FLAG, "test", &err) ||
        ks_config_set(*c, "plugin-dir", KS_BUILD_DIR "/plugins", KS_FROM_FLAG, "test", &err))
        fail_msg("%s", err.msg);
    for (size_t i = 0; bf16 && i < KS_COUNT(exact); i++)
        if (ks_config_set(*c, exact[i][0], exact[i][1], KS_FROM_FLAG, "test", &err)) fail_msg("%s", err.msg);
    if (ks_app_open(*c, a, &err)) fail_msg("%s", err.msg);
}

static void close_model(ks_config *c, ks_app *a)
{
    ks_app_close(a);
    ks_config_free(c);
}

/* ---- golden.json, read with the pull reader */

typedef struct numbers {
    double v[8192];
    uint32_t n;
} numbers;

/* All numbers of the value, in order, whatever its nesting. */
static void read_numbers(ks_json *j, numbers *ret)
{
    uint32_t depth = j->depth;
    ret->n = 0;
    assert_int_equal(ks_json_next(j), KS_JSON_ARRAY);
    while (j->depth > depth) {
        if (ks_json_next(j) != KS_JSON_NUMBER) continue;
        assert_true(ret->n < 8192);
        assert_int_equal(ks_json_f64(j, &ret->v[ret->n++]), 0);
    }
}

static char *golden_text(size_t *n)
{
    char *text;
    ks_err err = { 0 };
    if (ks_file_read(MODEL "/golden.json", 1 << 20, &text, n, &err)) fail_msg("%s", err.msg);
    return text;
}

static void check_prompt(ks_app *a, const numbers *ids, const numbers *top, const numbers *lp)
{
    static int32_t id[1024];
    uint32_t vocab = a->model.graph.n_vocab, n = ids->n;
    float *z = malloc((size_t)n * vocab * sizeof *z);
    double worst = 0;
    ks_err err = { 0 };
    assert_non_null(z);
    for (uint32_t i = 0; i < n; i++) id[i] = (int32_t)ids->v[i];
    ks_engine_eval_reset(a->engine);
    if (ks_engine_eval(a->engine, 0, id, n, 0, z, NULL, &err)) fail_msg("%s", err.msg);
    for (uint32_t i = 0; i < n; i++) {
        const float *row = z + (size_t)i * vocab;
        double max = row[0], sum = 0;
        for (uint32_t k = 1; k < vocab; k++) max = fmax(max, (double)row[k]);
        for (uint32_t k = 0; k < vocab; k++) sum += exp((double)row[k] - max);
        for (uint32_t k = 0; k < 8; k++)
            worst = fmax(worst, fabs((double)row[(uint32_t)top->v[i * 8 + k]] - max - log(sum) - lp->v[i * 8 + k]));
    }
    free(z);
    print_message("%u tokens: largest difference of the top-8 log-probabilities %.2e\n", n, worst);
    assert_true(worst <= 2e-3);
}

static void log_probabilities_equal_the_reference(void **state)
{
    (void)state;
    static numbers ids, top, lp;
    ks_config *c;
    ks_app a;
    ks_json j;
    size_t n;
    char *text = golden_text(&n);
    uint32_t checked = 0;
    int t;
    open_model(true, &c, &a);
    ks_json_init(&j, text, n, 16);
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    while ((t = ks_json_next(&j)) > 0) {
        if (t != KS_JSON_KEY) continue;
        bool greedy = ks_json_is(&j, "greedy");
        if (greedy) break;
        if (ks_json_is(&j, "ids"))
            read_numbers(&j, &ids);
        else if (ks_json_is(&j, "top_ids"))
            read_numbers(&j, &top);
        else if (ks_json_is(&j, "top_logprobs")) {
            read_numbers(&j, &lp);
            check_prompt(&a, &ids, &top, &lp);
            checked++;
        }
    }
    assert_int_equal(checked, 3);
    free(text);
    close_model(c, &a);
}

static void ask(ks_app *a, const char *question, const char *want)
{
    ks_jw w;
    ks_err err = { 0 };
    ks_client cl;
    ks_jw_init(&w);
    ks_jw_array(&w);
    ks_jw_object(&w);
    ks_jw_key(&w, "role");
    ks_jw_str(&w, "user");
    ks_jw_key(&w, "content");
    ks_jw_str(&w, question);
    ks_jw_object_end(&w);
    ks_jw_array_end(&w);
    ks_request rq = { .size = (uint32_t)sizeof rq,
                      .n = 1,
                      .messages = w.text,
                      .messages_bytes = w.n,
                      .max_tokens = 64,
                      .n_logprobs = -1 };
    ks_sampling_init(&rq.sampling);
    rq.sampling.temperature = 0;
    ks_client_init(&cl, ks_engine_api_get(), a->engine, NULL);
    if (ks_client_begin(&cl, &rq, &err) || ks_client_wait(&cl, &err)) fail_msg("%s", err.msg);
    assert_string_equal(cl.text.p ? cl.text.p : "", want);
    ks_client_fini(&cl);
    ks_jw_fini(&w);
}

/* The reference text ends with the end token's own text, which is no part of an answer. */
static void cut_end(char *s)
{
    static const char end[] = "<|im_end|>";
    size_t n = strlen(s), m = sizeof end - 1;
    if (n >= m && strcmp(s + n - m, end) == 0) s[n - m] = 0;
}

static void greedy_answers_equal_the_reference(void **state)
{
    (void)state;
    ks_config *c;
    ks_app a;
    ks_json j;
    size_t n;
    char *text = golden_text(&n), question[512] = "", want[2048];
    uint32_t asked = 0;
    bool greedy = false;
    int t;
    open_model(true, &c, &a);
    ks_json_init(&j, text, n, 16);
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    while ((t = ks_json_next(&j)) > 0) {
        if (t != KS_JSON_KEY) continue;
        greedy |= ks_json_is(&j, "greedy");
        bool q = ks_json_is(&j, "question"), x = ks_json_is(&j, "text");
        if (!greedy || !(q || x)) continue;
        assert_int_equal(ks_json_next(&j), KS_JSON_STRING);
        assert_int_equal(ks_json_str(&j, q ? question : want, q ? sizeof question : sizeof want, NULL), 0);
        if (!x) continue;
        cut_end(want);
        ask(&a, question, want);
        asked++;
    }
    assert_int_equal(asked, 8);
    free(text);
    close_model(c, &a);
}

/* Mean negative log-likelihood of the first tokens of the golden text that the demo model was not trained on. */
static double perplexity(ks_app *a, const int32_t *ids, uint32_t n)
{
    uint32_t vocab = a->model.graph.n_vocab;
    float *z = malloc((size_t)n * vocab * sizeof *z);
    double nll = 0;
    ks_err err = { 0 };
    assert_non_null(z);
    ks_engine_eval_reset(a->engine);
    if (ks_engine_eval(a->engine, 0, ids, n, 0, z, NULL, &err)) fail_msg("%s", err.msg);
    for (uint32_t i = 0; i + 1 < n; i++) {
        const float *row = z + (size_t)i * vocab;
        double max = row[0], sum = 0;
        for (uint32_t k = 1; k < vocab; k++) max = fmax(max, (double)row[k]);
        for (uint32_t k = 0; k < vocab; k++) sum += exp((double)row[k] - max);
        nll += max + log(sum) - (double)row[ids[i + 1]];
    }
    free(z);
    return exp(nll / (n - 1));
}

static void heldout(char *ret, size_t cap)
{
    const char *data = getenv("KRASIS_TEST_DATA");
    if (!data || !*data) {
        print_message("skipped: the held-out text is not in the repository; set KRASIS_TEST_DATA to the folder that "
                      "has demo-model/heldout.txt\n");
        skip();
    }
    (void)snprintf(ret, cap, "%s/demo-model/heldout.txt", data);
}

static void the_default_quantization_costs_little(void **state)
{
    (void)state;
    char path[4096];
    heldout(path, sizeof path);
    double ppl[2];
    for (int quant = 0; quant < 2; quant++) {
        ks_config *c;
        ks_app a;
        ks_err err = { 0 };
        char *text;
        size_t bytes, n = 0;
        int32_t *ids = NULL;
        open_model(!quant, &c, &a);
        if (ks_file_read(path, 1 << 24, &text, &bytes, &err) ||
            ks_tokenizer_encode(a.tok, text, KS_MIN(bytes, (size_t)12000), 0, &ids, &n, &err))
            fail_msg("%s", err.msg);
        ppl[quant] = perplexity(&a, ids, (uint32_t)KS_MIN(n, (size_t)3000));
        free(ids);
        free(text);
        close_model(c, &a);
    }
    print_message("perplexity of 3,000 tokens: bf16 %.3f, default %.3f (%+.2f %%)\n", ppl[0], ppl[1],
                  100 * (ppl[1] / ppl[0] - 1));
    assert_true(ppl[1] <= ppl[0] * 1.10); /* a short piece scatters; the whole text: docs/quality.md */
}

/* `krasis perplexity` over the held-out text as the reference has it: window 2,048, stride 1,024, 100,000 tokens. */
static double whole_perplexity(const char *path, const char *flags)
{
    char cmd[6000], line[256];
    double ppl = 0;
    (void)snprintf(cmd, sizeof cmd, "%s/krasis perplexity --model-path %s --file '%s' --limit 100000 %s 2>/dev/null",
                   KS_BUILD_DIR, MODEL, path, flags);
    FILE *p = popen(cmd, "r");
    assert_non_null(p);
    const bool any = fgets(line, sizeof line, p) != NULL;
    assert_int_equal(pclose(p), 0);
    if (!any || sscanf(line, "{\"ppl\":%lf", &ppl) != 1) fail_msg("no figure from: %s", cmd);
    return ppl;
}

/* The two figures of docs/quality.md. */
static void perplexity_over_the_whole_text_is_as_documented(void **state)
{
    (void)state;
    char path[4096], flags[512] = "";
    heldout(path, sizeof path);
    if (!KS_TEST_ALL) {
        print_message("skipped: takes two minutes (KS_TEST_ALL=ON ./dev test)\n");
        skip();
    }
    for (size_t i = 0, n = 0; i < KS_COUNT(exact); i++)
        n += (size_t)snprintf(flags + n, sizeof flags - n, "--%s %s ", exact[i][0], exact[i][1]);
    const double bf16 = whole_perplexity(path, flags), dflt = whole_perplexity(path, "");
    print_message("perplexity: bf16 %.4f, default %.4f (%+.2f %%)\n", bf16, dflt, 100 * (dflt / bf16 - 1));
    assert_true(fabs(bf16 - 37.26) <= 37.26 * 0.003);
    assert_true(dflt <= bf16 * 1.04);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_probabilities_equal_the_reference),
        cmocka_unit_test(greedy_answers_equal_the_reference),
        cmocka_unit_test(the_default_quantization_costs_little),
        cmocka_unit_test(perplexity_over_the_whole_text_is_as_documented),
    };
    return cmocka_run_group_tests_name("demo model", tests, NULL, NULL);
}
