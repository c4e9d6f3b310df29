/* The settings of the GPU's memory on the emulated GPU, as a start of the program reads them: each has its effect, and
 * changes no bit of what is computed. Hidden states of all rows and layers are held against those of a model whose
 * experts all stay.
 *
 * `test_cuda_modes cuda` does that on a real GPU: prompts of 3 to 30,000 tokens, ten times each in every mode, of a
 * model whose attention runs on the tensor cores; `test_cuda_modes cuda N` with prompts of at most N tokens, once, for
 * compute-sanitizer. */
#include "app/load.h"
#include "app/synth.h"
#include "base/base.h"
#include "base/file.h"
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */

#define VOCAB 128u
#define D 160u /* wide enough for experts of two types: gate and up INT4, down INT8 (--narrow-expert-bits) */
#define MOST 30000u

static int32_t ids[MOST];
static bool hardware;
static uint32_t most_tokens = MOST, times = 10; /* of those tests */

static void ok(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

static void make_model(const char *dir, uint32_t layers, uint32_t head_dim)
{
    char config[1024];
    ks_err err;
    ks_synth_opts o = { .config = "shape.json", .output = dir, .seed = 1 };
    (void)snprintf(config, sizeof config,
                   "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"model_type\":\"qwen3_moe\",\"hidden_size\":%u,"
                   "\"vocab_size\":%u,\"num_hidden_layers\":%u,\"num_attention_heads\":1,\"num_key_value_heads\":1,"
                   "\"head_dim\":%u,\"intermediate_size\":64,\"moe_intermediate_size\":32,\"num_experts\":8,"
                   "\"num_experts_per_tok\":2,\"norm_topk_prob\":true,\"decoder_sparse_step\":1,\"mlp_only_layers\":[],"
                   "\"max_position_embeddings\":%u,\"rms_norm_eps\":1e-6,\"rope_theta\":1e6,\"hidden_act\":\"silu\","
                   "\"tie_word_embeddings\":false}",
                   D, VOCAB, layers, head_dim, hardware ? 32768u : 4096u);
    ok(ks_file_write(o.config, config, strlen(config), &err), &err);
    ok(ks_synth_make(&o, &err), &err);
}

static int set_up(void **state)
{
    uint32_t x = 1;
    (void)state;
    for (uint32_t i = 0; i < MOST; i++) ids[i] = (int32_t)((x = x * 1664525u + 1013904223u) >> 8) % (int32_t)VOCAB;
    if (hardware && !ks_dir_exists("long")) make_model("long", 6, 128);
    if (hardware) return setenv("KRASIS_PLUGIN_PATH", KS_BUILD_DIR "/plugins", 1);
    if (!ks_dir_exists("deep")) make_model("deep", 6, 32);
    if (!ks_dir_exists("flat")) make_model("flat", 2, 32);
    return setenv("KRASIS_PLUGIN_PATH", KS_BUILD_DIR "/tests/cuda/emu:" KS_BUILD_DIR "/plugins", 1);
}

/* What a start says goes to the file "log". */
static int open_app(const char *dir, const char *const *settings, ks_config **c, ks_app *a, ks_err *err)
{
    (void)fflush(stderr);
    int old = dup(2), file = open("log", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(old >= 0 && file >= 0 && dup2(file, 2) == 2);
    *a = (ks_app) { 0 };
    int rc = ks_config_new(c, err);
    if (!rc) rc = ks_config_set(*c, "model-path", dir, KS_FROM_FLAG, "test", err);
    if (!rc) rc = ks_config_set(*c, "cache-dir", "cache", KS_FROM_FLAG, "test", err);
    for (; !rc && *settings; settings += 2) {
        char ini[128];
        bool plugin = strcmp(settings[0], "resident") == 0 || strcmp(settings[0], "ring") == 0 ||
                      strcmp(settings[0], "piece") == 0 || strcmp(settings[0], "warpgroups") == 0;
        int n = snprintf(ini, sizeof ini, "[cuda-experts]\n%s = %s\n", settings[0], settings[1]);
        rc = plugin ? ks_config_parse_ini(*c, ini, (size_t)n, "test", KS_FROM_FILE, err)
                    : ks_config_set(*c, settings[0], settings[1], KS_FROM_FLAG, "test", err);
    }
    if (!rc) rc = ks_app_open(*c, a, err);
    (void)fflush(stderr);
    assert_true(dup2(old, 2) == 2);
    (void)close(old);
    (void)close(file);
    return rc;
}

static void assert_logged(const char *part)
{
    char *text;
    ks_err err;
    ok(ks_file_read("log", 1 << 20, &text, NULL, &err), &err);
    if (!strstr(text, part)) fail_msg("'%s' is not in\n%s", part, text);
    free(text);
}

/* Hidden states of a prompt, read in one go and in what steps the settings give. */
static float *states_of(const char *dir, uint32_t n, const char *says, const char *const *settings, size_t *ret_n)
{
    ks_config *c = NULL;
    ks_app a;
    ks_err err = { 0 };
    ok(open_app(dir, settings, &c, &a, &err), &err);
    assert_logged(says);
    assert_int_equal(a.model.graph.d_model, D); /* not the folder of an older build of this test */
    *ret_n = (size_t)a.model.graph.n_taps * n * D;
    float *z = malloc(*ret_n * sizeof *z);
    assert_non_null(z);
    ok(ks_engine_eval(a.engine, 0, ids, n, 0, NULL, z, &err), &err);
    ks_app_close(&a);
    ks_config_free(c);
    return z;
}

static const struct mode {
    const char *deep, *flat; /* what is said of models of 6 and of 2 layers with 8 experts each */
    const char *settings[10];
} modes[] = {
    { "48 of 48 experts stay, 0 places", "16 of 16 experts stay, 0 places", { "expert-divisor", "1" } },
    { "24 of 48 experts stay, 24 places", "8 of 16 experts stay, 8 places", { "expert-divisor", "2" } },
    { "44 of 48 experts stay, 4 places", "12 of 16 experts stay, 4 places", { "expert-divisor", "0" } },
    { "0 of 48 experts stay, 2 places",
      "0 of 16 experts stay, 2 places",
      { "resident", "0", "ring", "2", "step-tokens", "1024" } },
    { "32 of 48 experts stay, 16 places", NULL, { "expert-divisor", "3" } },
    { "40 of 48 experts stay, 8 places", NULL, { "expert-divisor", "7" } },
    { "16 of 48 experts stay, 32 places", NULL, { "layer-group-size", "4" } },
    { "48 of 48 experts stay, 0 places", NULL, { "expert-divisor", "auto" } },
    { "5 of 48 experts stay, 3 places", NULL, { "resident", "5", "ring", "3" } },
    { "48 of 48 experts stay, 0 places", "16 of 16 experts stay, 0 places", { "warpgroups", "0" } },
    { "8 of 48 experts stay, 8 places",
      NULL,
      { "expert-divisor", "7", "resident", "8", "step-tokens", "64", "max-running", "8" } },
    /* long steps, in pieces of rows and of an expert's pairs */
    { "5 of 48 experts stay, 3 places",
      "5 of 16 experts stay, 3 places",
      { "piece", "7", "resident", "5", "ring", "3", "step-tokens", "4096" } },
    { "48 of 48 experts stay, 0 places",
      "16 of 16 experts stay, 0 places",
      { "piece", "100", "expert-divisor", "1", "step-tokens", "4096" } },
    { "0 of 48 experts stay, 2 places", NULL, { "piece", "64", "resident", "0", "ring", "2", "step-tokens", "512" } },
    { "48 of 48 experts stay, 0 places",
      "16 of 16 experts stay, 0 places",
      { "warpgroups", "0", "expert-divisor", "1" } },
    { "24 of 48 experts stay, 24 places", NULL, { "warpgroups", "0", "expert-divisor", "2" } },
};

static void compare(const char *dir, uint32_t n)
{
    const bool deep = strcmp(dir, "deep") == 0;
    float *want = NULL;
    for (size_t i = 0; i < KS_COUNT(modes); i++) {
        const struct mode *m = &modes[i];
        const char *settings[KS_COUNT(m->settings) + 5] = { "device", "cuda", "vram-limit", "1G" };
        memcpy(settings + 4, m->settings, sizeof m->settings);
        size_t floats = 0;
        if (!deep && !m->flat) continue;
        float *z = states_of(dir, n, deep ? m->deep : m->flat, settings, &floats);
        if (i == 0) {
            want = z;
            continue;
        }
        if (memcmp(z, want, floats * sizeof *z) != 0)
            fail_msg("%u tokens with --%s %s: other bits", n, m->settings[0], m->settings[1]);
        free(z);
    }
    free(want);
}

static void prompts_of_3_tokens_have_the_same_bits_in_every_mode(void **state)
{
    (void)state;
    compare("deep", 3);
}

static void prompts_of_300_tokens_have_the_same_bits_in_every_mode(void **state)
{
    (void)state;
    compare("deep", 300);
}

static void prompts_of_3000_tokens_have_the_same_bits_in_every_mode(void **state)
{
    (void)state;
    if (!KS_TEST_ALL) {
        print_message("  skipped: takes half a minute (KS_TEST_ALL=ON ./dev test)\n");
        skip();
    }
    compare("flat", 3000);
}

/* Every mode opens the model once. */
static void long_prompts_have_the_same_bits_in_every_mode(void **state)
{
    static const uint32_t lengths[] = { 3, 300, 3000, 30000 };
    float *want[KS_COUNT(lengths)] = { NULL };
    (void)state;
    for (size_t i = 0; i < KS_COUNT(modes); i++) {
        const char *settings[KS_COUNT(modes[0].settings) + 5] = { "device", "cuda", "vram-limit", "4G" };
        ks_config *c = NULL;
        ks_app a;
        ks_err err = { 0 };
        memcpy(settings + 4, modes[i].settings, sizeof modes[i].settings);
        ok(open_app("long", settings, &c, &a, &err), &err);
        assert_logged(modes[i].deep);
        for (size_t k = 0; k < KS_COUNT(lengths) && lengths[k] <= most_tokens; k++) {
            size_t floats = (size_t)a.model.graph.n_taps * lengths[k] * D;
            float *z = malloc(floats * sizeof *z);
            assert_non_null(z);
            for (uint32_t t = 0; t < times; t++) {
                ks_engine_eval_reset(a.engine);
                ok(ks_engine_eval(a.engine, 0, ids, lengths[k], 0, NULL, z, &err), &err);
                if (want[k] && memcmp(z, want[k], floats * sizeof *z) != 0)
                    fail_msg("%u tokens with --%s %s, time %u: other bits", lengths[k], modes[i].settings[0],
                             modes[i].settings[1], t + 1);
                if (!want[k]) { /* the first: hold it against itself */
                    want[k] = malloc(floats * sizeof *z);
                    assert_non_null(want[k]);
                    memcpy(want[k], z, floats * sizeof *z);
                }
            }
            free(z);
        }
        ks_app_close(&a);
        ks_config_free(c);
        print_message("  --%s %s: as the first\n", modes[i].settings[0], modes[i].settings[1]);
    }
    for (size_t k = 0; k < KS_COUNT(want); k++) free(want[k]);
}

/* With the CPU's share a row's sum has another order: nearly the same, and the same where nothing is shared. */
static void the_cpu_s_share_is_nearly_the_same(void **state)
{
    static const char *const cuda[] = {
        "device", "cuda", "vram-limit", "1G", "expert-divisor", "2", "heat", "off", NULL
    };
    static const char *const few[] = {
        "device", "hybrid",         "vram-limit", "1G", "gpu-prefill-threshold", "50", "heat",
        "off",    "expert-divisor", "2",          NULL
    };
    size_t n = 0, m = 0;
    (void)state;
    for (uint32_t rows = 49; rows <= 50; rows++) {
        float *a = states_of("deep", rows, "24 of 48 experts stay, 24 places", cuda, &n);
        float *b = states_of("deep", rows, "steps of fewer than 50 tokens stream no experts", few, &m);
        double most = 0, squares = 0;
        assert_int_equal(n, m);
        for (size_t i = 0; i < n; i++) {
            most = fmax(most, fabs((double)a[i] - (double)b[i]));
            squares += (double)a[i] * (double)a[i];
        }
        const double size = sqrt(squares / (double)n);
        if (rows == 50)
            assert_true(most == 0);
        else if (!(most > 0 && most < 1e-2 * size))
            fail_msg("%g of %g apart", most, size);
        free(a);
        free(b);
    }
}

static void expect_error(const char *what, int code, const char *const *settings)
{
    ks_config *c = NULL;
    ks_app a;
    ks_err err = { 0 };
    assert_int_equal(open_app("deep", settings, &c, &a, &err), code);
    if (!strstr(err.msg, what)) fail_msg("'%s' does not say '%s'", err.msg, what);
    ks_app_close(&a);
    ks_config_free(c);
}

static void what_does_not_fit_is_refused_before_weights_are_read(void **state)
{
    static const char *const all[] = { "device",      "cuda", "vram-limit",     "64M", "step-tokens",     "16",
                                       "max-running", "8",    "expert-divisor", "1",   "cpu-expert-bits", "16",
                                       NULL };
    static const char *const step[] = { "device", "hybrid", "vram-limit", "100M", "step-tokens", "32768", NULL };
    static const char *const twice[] = { "device", "hybrid", "expert-divisor", "1", "layer-group-size", "1", NULL };
    (void)state;
    expect_error("MB are missing: raise --vram-limit", KS_E_LIMIT, all);
    expect_error("MB are needed at least (", KS_E_LIMIT, step);
    expect_error("give one of the two", KS_E_CONFIG, twice);
}

static void a_gpu_is_used_where_it_fits_and_else_left_out(void **state)
{
    static const char *const dflt[] = { "vram-limit", "1G", NULL };
    static const char *const small[] = { "vram-limit", "64M", "step-tokens", "4096", NULL };
    ks_config *c = NULL;
    ks_app a;
    ks_err err = { 0 };
    (void)state;
    ok(open_app("deep", dflt, &c, &a, &err), &err);
    assert_ptr_equal(a.opts.device, &ks_split_device_iface);
    assert_logged("it computes together with the CPU (--device auto; --device cpu leaves it out)");
    ks_app_close(&a);
    ks_config_free(c);
    ok(open_app("deep", small, &c, &a, &err), &err);
    assert_ptr_equal(a.opts.device, &ks_cpu_device_iface);
    assert_int_equal(a.opts.step_tokens, 4096);
    assert_logged("the CPU computes (--device hybrid makes this an error)");
    ks_app_close(&a);
    ks_config_free(c);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest on_gpu[] = { cmocka_unit_test(long_prompts_have_the_same_bits_in_every_mode) };
    hardware = argc > 1 && strcmp(argv[1], "cuda") == 0;
    if (hardware && argc > 2) {
        most_tokens = (uint32_t)strtoul(argv[2], NULL, 10);
        times = 1;
    }
    if (hardware) return cmocka_run_group_tests(on_gpu, set_up, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_of_3_tokens_have_the_same_bits_in_every_mode),
        cmocka_unit_test(prompts_of_300_tokens_have_the_same_bits_in_every_mode),
        cmocka_unit_test(prompts_of_3000_tokens_have_the_same_bits_in_every_mode),
        cmocka_unit_test(the_cpu_s_share_is_nearly_the_same),
        cmocka_unit_test(what_does_not_fit_is_refused_before_weights_are_read),
        cmocka_unit_test(a_gpu_is_used_where_it_fits_and_else_left_out),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
