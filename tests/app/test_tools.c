/* The measuring and planning commands from outside, on small models: check, plan, synth, bench. */
#include "base/base.h"
#include "base/file.h"
#include "support/golden_ckpt.h"
#include <krasis/json.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */

#define GOLDEN KS_SOURCE_DIR "/tests/golden/"

#define assert_contains(text, part)                                                   \
    do {                                                                              \
        if (!strstr((text), (part))) fail_msg("'%s' is not in '%s'", (part), (text)); \
    } while (0)

static char out[1 << 18];

/* Exit code of `krasis ARGS`; its standard output in `out`, or with `errors` the other one. */
static int krasis(bool errors, const char *args)
{
    char cmd[2048];
    assert_true(snprintf(cmd, sizeof cmd, "%s/krasis %s </dev/null %s", KS_BUILD_DIR, args,
                         errors ? "2>&1 >/dev/null" : "2>/dev/null") < (int)sizeof cmd);
    FILE *p = popen(cmd, "r");
    assert_non_null(p);
    out[fread(out, 1, sizeof out - 1, p)] = '\0';
    const int rc = pclose(p);
    assert_true(WIFEXITED(rc));
    return WEXITSTATUS(rc);
}

/* The number behind a key, wherever it stands first; fails if there is none or the text is no JSON. */
static double number(const char *key)
{
    ks_json j;
    double v = 0;
    bool found = false;
    int t;
    ks_json_init(&j, out, strlen(out), 32);
    while ((t = ks_json_next(&j)) > 0)
        if (t == KS_JSON_KEY && !found && ks_json_is(&j, key)) {
            assert_int_equal(ks_json_next(&j), KS_JSON_NUMBER);
            assert_int_equal(ks_json_f64(&j, &v), 0);
            found = true;
        }
    if (t != KS_JSON_END || !found) fail_msg("'%s' in %s", key, out);
    return v;
}

static void make_golden(const char *name, const char *dir)
{
    char golden[1024];
    ks_err err = { 0 };
    (void)snprintf(golden, sizeof golden, GOLDEN "%s", name);
    if (ks_golden_write(golden, dir, &err)) fail_msg("%s", err.msg);
}

static void make_synth(void)
{
    if (ks_dir_exists("tiny")) return;
    assert_int_equal(krasis(false, "synth --quantized --config " GOLDEN "qwen3_moe/config.json --output tiny"), 0);
}

static void check_reads_quantized_checkpoints(void **state)
{
    (void)state;
    static const struct {
        const char *name, *type; /* what the experts become: codes of four bits are kept as they are */
    } cases[] = { { "qwen3_moe_fp8", "i8" },
                  { "deepseek_v3_fp8", "i8" },
                  { "deepseek_v3_ct4", "i4" },
                  { "gpt_oss_mxfp4", "mxfp4" } };
    for (size_t i = 0; i < KS_COUNT(cases); i++) {
        char args[256], want[64];
        make_golden(cases[i].name, "quantized");
        assert_int_equal(krasis(false, "check --cpu-expert-bits 8 --model-path quantized"), 0);
        assert_contains(out, "weights    expert");
        assert_contains(out, "\nok\n");
        (void)snprintf(args, sizeof args, "plan --json --cpu-expert-bits 8 --model-path quantized");
        assert_int_equal(krasis(false, args), 0);
        (void)snprintf(want, sizeof want, "{\"part\":\"expert\",\"type\":\"%s\"", cases[i].type);
        assert_contains(out, want);
    }
}

/* The model's own codes of 4 bits are exact: no more bits can be won. */
static void narrow_experts_have_8_bits_unless_the_file_has_4(void **state)
{
    (void)state;
    static const struct {
        const char *name, *flags, *type;
    } cases[] = { { "qwen3_moe", "", "i8" },
                  { "qwen3_moe", "--narrow-expert-bits 4", "i4" },
                  { "qwen3_moe", "--cpu-expert-bits 16", "bf16" },
                  { "deepseek_v3_ct4", "", "i4" },
                  { "gpt_oss_mxfp4", "", "mxfp4" } };
    for (size_t i = 0; i < KS_COUNT(cases); i++) {
        char args[256], want[64];
        make_golden(cases[i].name, "quantized");
        (void)snprintf(args, sizeof args, "plan --json %s --model-path quantized", cases[i].flags);
        assert_int_equal(krasis(false, args), 0);
        (void)snprintf(want, sizeof want, "{\"part\":\"expert\",\"type\":\"%s\"", cases[i].type);
        assert_contains(out, want);
    }
}

static void replace(const char *path, const char *what, const char *with)
{
    char *text, *at;
    size_t n;
    ks_err err = { 0 };
    if (ks_file_read(path, 1 << 20, &text, &n, &err)) fail_msg("%s", err.msg);
    at = strstr(text, what);
    assert_non_null(at);
    char *whole = malloc(n + strlen(with) + 1);
    assert_non_null(whole);
    (void)sprintf(whole, "%.*s%s%s", (int)(at - text), text, with, at + strlen(what));
    if (ks_file_write(path, whole, strlen(whole), &err)) fail_msg("%s", err.msg);
    free(whole);
    free(text);
}

static void replace_file(const char *path, const char *text)
{
    ks_err err = { 0 };
    if (ks_file_write(path, text, strlen(text), &err)) fail_msg("%s", err.msg);
}

static void check_tells_what_is_wrong_with_a_quantized_checkpoint(void **state)
{
    (void)state;
    make_golden("qwen3_moe_fp8", "broken");
    replace("broken/config.json", "\"quantization_config\"", "\"quantization_config_\"");
    assert_int_equal(krasis(true, "check --model-path broken"), 2);
    assert_contains(out, "quantization_config");
    make_golden("deepseek_v3_ct4", "broken");
    replace("broken/config.json", "\"pack-quantized\"", "\"marlin-24\"");
    assert_int_equal(krasis(true, "check --model-path broken"), 2);
    assert_contains(out, "has format 'marlin-24'");
    make_golden("gpt_oss_mxfp4", "broken");
    replace("broken/config.json", "\"mxfp4\"", "\"bitsandbytes\"");
    assert_int_equal(krasis(true, "check --model-path broken"), 2);
    assert_contains(out, "bitsandbytes");
}

/* Whether or not this machine has a GPU: there is no 64th, and no file names one of its own. */
static void check_tells_what_a_start_would(void **state)
{
    (void)state;
    static const struct {
        const char *flags, *want;
    } cases[] = { { "--num-gpus 64", "--num-gpus" },
                  { "--selected-gpus 63", "--selected-gpus" },
                  { "--device cuda --vram-limit 64M", "krasis: " },
                  { "--frontends nope", "no frontend plugin 'nope'" } };
    make_synth();
    for (size_t i = 0; i < KS_COUNT(cases); i++) {
        char args[256];
        (void)snprintf(args, sizeof args, "check --model-path tiny %s", cases[i].flags);
        if (krasis(true, args) != 2) fail_msg("%s: accepted: %s", args, out);
        assert_contains(out, cases[i].want);
    }
    replace_file("gpu.ini", "[gpu]\nexpert-divisor = 2\n");
    assert_int_equal(krasis(false, "check --model-path tiny --config gpu.ini"), 0);
}

#define DEMO "--model-path " KS_SOURCE_DIR "/models/demo "
#define EXACT                                                                                        \
    "--cpu-expert-bits 16 --attention-quant bf16 --shared-expert-quant bf16 --dense-mlp-quant bf16 " \
    "--lm-head-quant bf16 --kv-dtype f32 "
#define CAPITAL "--ids 1,303,201,451,318,280,419,312,2145,964,33,2,201,1,308,201 " /* golden.json */

static void generate_ids_continues_greedily(void **state)
{
    (void)state;
    static const char want[] = "{\"ids\":[352,419,312,2145,964,318,396,3338,16,2]}\n";
    assert_int_equal(krasis(false, "generate-ids " DEMO EXACT CAPITAL "-n 10"), 0);
    assert_string_equal(out, want);
    assert_int_equal(krasis(false, "generate-ids " DEMO EXACT CAPITAL "-n 10 --kernels none"), 0);
    assert_string_equal(out, want);
}

static void wrong_tokens_and_texts_are_told_before_the_work(void **state)
{
    (void)state;
    assert_int_equal(krasis(true, "generate-ids " DEMO CAPITAL "-n 4090"), 2);
    assert_contains(out, "16 tokens and 4090 more do not fit the context of 4096");
    assert_int_equal(krasis(true, "generate-ids " DEMO "--ids 1,2,4096 -n 1"), 2);
    assert_contains(out, "token 2 is 4096: the vocabulary has 4096");
    assert_int_equal(krasis(true, "logits " DEMO "--path decode --ids 1,2,4096 --output x.safetensors"), 2);
    assert_contains(out, "token 2 is 4096: the vocabulary has 4096");
    assert_false(ks_file_exists("x.safetensors"));
    assert_int_equal(krasis(true, "perplexity --model-path nowhere"), 2);
    assert_contains(out, "no --file");
    assert_int_equal(krasis(true, "perplexity --file nowhere " DEMO), 2);
    assert_contains(out, "cannot open 'nowhere'");
}

static void a_cache_too_small_for_one_context_is_told_before_weights_are_read(void **state)
{
    (void)state;
    assert_int_equal(krasis(true, "check " DEMO "--kv-cache-mb 3"), 2);
    assert_contains(out, "--kv-cache-mb 3 holds 2048 tokens, less than one context of 4096");
    assert_int_equal(krasis(true, "generate-ids --ids 1 --kv-cache-mb 3 " DEMO), 2);
    assert_contains(out, "--kv-cache-mb 3 holds 2048 tokens, less than one context of 4096");
    if (strstr(out, "weights: ")) fail_msg("after the weights were read: %s", out);
    assert_int_equal(krasis(false, "check " DEMO "--kv-cache-mb 3 --context 2048"), 0);
}

static void a_plan_has_parts_and_speeds(void **state)
{
    (void)state;
    make_synth();
    assert_int_equal(krasis(false, "plan --model-path tiny"), 0);
    assert_contains(out, "--cpu-expert-bits");
    assert_contains(out, "KV cache");
    assert_contains(out, "write after 0");
    assert_contains(out, "read a prompt of");
    assert_int_equal(krasis(false, "plan --json --model-path tiny --context 100"), 0);
    assert_true(number("bound_tok_s") > number("expect_tok_s"));
    assert_true(number("read_bytes_s") > 1e8);
    assert_true(number("context") == 100);
}

/* Where a GPU is, it is planned for as well, with the same numbers of experts. */
static void a_plan_tells_the_memory_of_a_gpu_also_without_one(void **state)
{
    (void)state;
    if (!ks_file_exists(KS_BUILD_DIR "/plugins/cuda-experts.so")) {
        print_message("the GPU plugin is not built\n");
        skip();
    }
    make_synth();
    assert_int_equal(krasis(false, "plan --model-path tiny --device hybrid --vram-limit 1G --expert-divisor 2"), 0);
    static const char *const parts[] = { "part on the GPU",
                                         "weights: attention",
                                         "KV cache",
                                         "experts on their way",
                                         "experts that stay",
                                         "may be used (--vram-limit)",
                                         "8 of 16 stay, 8 places for the others on their way: layer groups",
                                         "with fewer than 300 tokens none" };
    for (size_t i = 0; i < KS_COUNT(parts); i++) assert_contains(out, parts[i]);
    assert_int_equal(krasis(false, "plan --json --model-path tiny --device cuda --vram-limit 1G --step-tokens 100"), 0);
    assert_true(number("experts_that_stay") == 16);
    assert_true(number("step_tokens") == 100);
    assert_true(number("used_bytes") < number("budget_bytes"));
    assert_true(number("budget_bytes") == 1 << 30);
    assert_int_equal(krasis(false, "plan --model-path tiny --device cuda --vram-limit 64M"), 2);
    assert_contains(out, "activations"); /* the parts are there all the same */
    assert_int_equal(krasis(true, "plan --model-path tiny --device cuda --vram-limit 64M"), 2);
    assert_contains(out, "MB may be used: raise --vram-limit, or lower --context");
    assert_int_equal(krasis(true, "plan --model-path tiny --vram-limit 1G --expert-divisor 2 --layer-group-size 2 "
                                  "--device cuda"),
                     2);
    assert_contains(out, "give one of the two");
}

static void synth_says_what_it_needs(void **state)
{
    (void)state;
    assert_int_equal(krasis(true, "synth"), 2);
    assert_contains(out, "synth needs --config FILE, the config.json of a shape, and --output DIR");
    assert_int_equal(krasis(true, "synth --config no.json --output x"), 2);
    assert_contains(out, "'no.json'");
    assert_int_equal(krasis(true, "synth --config " GOLDEN "qwen3_moe/config.json --output x --layers 99"), 2);
    assert_contains(out, "--layers 99: the shape of");
    assert_false(ks_dir_exists("x"));
}

static void bench_model_holds_runs_against_their_bound(void **state)
{
    (void)state;
    make_synth();
    assert_int_equal(krasis(false, "bench model --json --model-path tiny --prompts 16 --depths 0,40 --batches 1,3 "
                                   "--repeats 2 --max-tokens 4 --context 100"),
                     0);
    assert_true(number("median") > 0);
    assert_true(number("repeats") == 2);
    assert_true(number("load_warm_s") > 0);
    static const char *const tests[] = { "\"pp16\"", "\"tg4 @ d0\"", "\"tg4 @ d40\"", "\"tg4 x3\"",
                                         "fraction_of_bound" };
    for (size_t i = 0; i < KS_COUNT(tests); i++) assert_contains(out, tests[i]);
    assert_int_equal(krasis(false, "bench model --model-path tiny --prompts 0 --depths 0 --batches 1 --repeats 1 "
                                   "--max-tokens 4 --context 100"),
                     0);
    assert_contains(out, "% of bound");
    assert_null(strstr(out, "pp"));
}

static void bench_says_what_it_cannot_measure(void **state)
{
    (void)state;
    make_synth();
    assert_int_equal(krasis(true, "bench gpu"), 2);
    assert_contains(out, "bench 'gpu': cpu and model are known");
    assert_int_equal(krasis(true, "bench model --model-path tiny --depths 4000 --context 100"), 2);
    assert_contains(out, "raise --context");
    assert_int_equal(krasis(true, "bench model --model-path tiny --prompts 0 --depths 0 --batches 64 --context 500"),
                     2);
    assert_contains(out, "--batches 64: at most --max-running (32)");
    assert_int_equal(krasis(true, "bench --model-path tiny --clients 1,2,3,4,5,6,7,8,9"), 2);
    assert_contains(out, "give 1 to 8 numbers");
    assert_int_equal(krasis(true, "bench --model-path tiny --clients 257"), 2);
    assert_contains(out, "--clients 257: at most 256");
}

static void bench_cpu_measures_what_is_asked_for(void **state)
{
    (void)state;
    assert_int_equal(krasis(false, "bench cpu --json --only glu --repeats 1 --krasis-threads 1"), 0);
    assert_true(number("fraction_of_bound") > 0);
    assert_contains(out, "glu");
    assert_null(strstr(out, "matmul"));
}

int main(void)
{
    if (setenv("KRASIS_PLUGIN_PATH", KS_BUILD_DIR "/plugins", 1)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_reads_quantized_checkpoints),
        cmocka_unit_test(narrow_experts_have_8_bits_unless_the_file_has_4),
        cmocka_unit_test(check_tells_what_is_wrong_with_a_quantized_checkpoint),
        cmocka_unit_test(check_tells_what_a_start_would),
        cmocka_unit_test(generate_ids_continues_greedily),
        cmocka_unit_test(wrong_tokens_and_texts_are_told_before_the_work),
        cmocka_unit_test(a_cache_too_small_for_one_context_is_told_before_weights_are_read),
        cmocka_unit_test(a_plan_has_parts_and_speeds),
        cmocka_unit_test(a_plan_tells_the_memory_of_a_gpu_also_without_one),
        cmocka_unit_test(synth_says_what_it_needs),
        cmocka_unit_test(bench_model_holds_runs_against_their_bound),
        cmocka_unit_test(bench_says_what_it_cannot_measure),
        cmocka_unit_test(bench_cpu_measures_what_is_asked_for),
    };
    return cmocka_run_group_tests_name("tools", tests, NULL, NULL);
}
