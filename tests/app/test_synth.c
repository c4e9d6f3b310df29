/* Synthetic models: every family that the goldens have can be made and loads; shards hold the formula's numbers; the
 * routing has the skew that was asked for. */
#include "app/plan.h"
#include "app/synth.h"
#include "base/base.h"
#include "base/file.h"
#include "base/hash.h"
#include "graph/shape.h"
#include <dirent.h>
#include <math.h>
#include <unistd.h>

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */

#define GOLDEN KS_SOURCE_DIR "/tests/golden"

#define assert_ok(rc, err)                                   \
    do {                                                     \
        if ((rc) != 0) fail_msg("%d: %s", (rc), (err)->msg); \
    } while (0)
#define assert_contains(text, part)                                                   \
    do {                                                                              \
        if (!strstr((text), (part))) fail_msg("'%s' is not in '%s'", (part), (text)); \
    } while (0)

static void remove_dir(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        char *path = ks_path_join(dir, e->d_name);
        assert_non_null(path);
        (void)unlink(path); /* "." and ".." refuse */
        free(path);
    }
    if (d) (void)closedir(d);
    (void)rmdir(dir); /* it need not be there */
}

static void make(const char *config, const char *dir, bool quantized, float skew)
{
    ks_err err;
    ks_synth_opts o = { .config = config, .output = dir, .seed = 1, .quantized = quantized, .route_skew = skew };
    o.shard_bytes = 200000;
    remove_dir(dir);
    assert_ok(ks_synth_make(&o, &err), &err);
}

static void write_text(const char *path, const char *text)
{
    ks_err err;
    assert_ok(ks_file_write(path, text, strlen(text), &err), &err);
}

/* As a start would load it, with settings as pairs, NULL at the end. */
static void open_app(const char *dir, const char *const *settings, ks_config **c, ks_app *a)
{
    ks_err err = { 0 };
    assert_ok(ks_config_new(c, &err), &err);
    assert_ok(ks_config_set(*c, "model-path", dir, KS_FROM_FLAG, "test", &err), &err);
    assert_ok(ks_config_set(*c, "plugin-dir", KS_BUILD_DIR "/plugins", KS_FROM_FLAG, "test", &err), &err);
    for (; settings && *settings; settings += 2)
        assert_ok(ks_config_set(*c, settings[0], settings[1], KS_FROM_FLAG, "test", &err), &err);
    assert_ok(ks_app_open(*c, a, &err), &err);
}

static void close_app(ks_config *c, ks_app *a)
{
    ks_app_close(a);
    ks_config_free(c);
}

/* Greedy tokens from a short prompt: every number on the way is finite, or the sampling fails. */
static void check_logits(ks_app *a)
{
    static const int32_t ids[] = { 1, 2, 3, 4, 5, 6, 7 };
    const uint32_t vocab = a->model.graph.n_vocab;
    float *z = malloc((size_t)vocab * KS_COUNT(ids) * sizeof *z);
    ks_err err;
    double squares = 0;
    assert_non_null(z);
    assert_ok(ks_engine_eval(a->engine, 0, ids, KS_COUNT(ids), 0, z, NULL, &err), &err);
    for (size_t i = 0; i < (size_t)vocab * KS_COUNT(ids); i++) squares += (double)z[i] * (double)z[i];
    squares = sqrt(squares / (double)(vocab * KS_COUNT(ids)));
    if (!(squares > 1e-3 && squares < 1e3)) fail_msg("logits of size %g", squares);
    free(z);
}

static void every_family_computes(void **state)
{
    (void)state;
    DIR *d = opendir(GOLDEN);
    uint32_t n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char config[1024];
        ks_config *c;
        ks_app a;
        (void)snprintf(config, sizeof config, GOLDEN "/%.200s/config.json", e->d_name);
        if (*e->d_name == '.' || !ks_file_exists(config)) continue;
        print_message("%s\n", e->d_name);
        make(config, "family", true, n % 2 ? 1.0f : 0.0f);
        open_app("family", NULL, &c, &a);
        check_logits(&a);
        close_app(c, &a);
        n++;
    }
    (void)closedir(d);
    assert_true(n >= 20);
    remove_dir("family");
}

static void shapes_in_conf_are_made(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double gb; /* of experts in 4 bits, as published */
    } shapes[] = { { "qwen3-30b-a3b", 14.9 }, { "qwen3-coder-next-80b", 39.9 }, { "gpt-oss-120b", 60.9 } };
    for (size_t i = 0; i < KS_COUNT(shapes); i++) {
        char config[512];
        ks_config *c;
        ks_app a;
        ks_err err;
        ks_plan p;
        (void)snprintf(config, sizeof config, KS_SOURCE_DIR "/conf/shapes/%s.json", shapes[i].name);
        make(config, "shape", true, 0);
        assert_ok(ks_config_new(&c, &err), &err);
        assert_ok(ks_config_set(c, "model-path", "shape", KS_FROM_FLAG, "test", &err), &err);
        assert_ok(ks_app_plugins(c, &a, &err), &err);
        assert_ok(ks_app_model(&a, &err), &err);
        assert_ok(ks_plan_make(&a, &p, &err), &err);
        const double bytes = (double)p.class_bytes[KS_CLS_EXPERT];
        print_message("%s: %.2f GB of experts\n", shapes[i].name, bytes / 1e9);
        assert_true(fabs(bytes / 1e9 / shapes[i].gb - 1) < 0.03);
        p.limit_bytes = p.weight_bytes;
        assert_int_equal(ks_plan_fits(&p, &err), KS_E_LIMIT);
        assert_contains(err.msg, "lower --cpu-expert-bits or --context, raise --ram-limit");
        p.limit_bytes += p.kv_bytes;
        assert_ok(ks_plan_fits(&p, &err), &err);
        close_app(c, &a);
    }
    remove_dir("shape");
}

/* What the plain checkpoint holds is what its formula says: the store builds the same bytes from both. */
static void shards_hold_the_numbers_of_the_formula(void **state)
{
    (void)state;
    ks_arena arena;
    ks_synth_tensor *t;
    ks_synth *s = NULL;
    ks_buf b;
    char *text;
    size_t n, n_t;
    uint32_t group;
    ks_err err;
    ks_shape_opts so = { .route_skew = 1 };
    ks_config *c;
    ks_app a;
    make(GOLDEN "/qwen3_moe/config.json", "plain", false, 1);
    assert_true(ks_file_exists("plain/model.safetensors.index.json"));
    assert_ok(ks_file_read("plain/config.json", 1 << 20, &text, &n, &err), &err);
    ks_arena_init(&arena, 0);
    ks_buf_init(&b, 0);
    assert_ok(ks_model_shape(text, n, &so, &arena, &t, &n_t, &group, &err), &err);
    assert_int_equal(group, 0);
    assert_ok(ks_synth_write(t, n_t, 1, &b, &err), &err);
    assert_ok(ks_synth_parse("list", b.p, b.n, &s, &err), &err);
    open_app("plain", NULL, &c, &a);
    assert_int_equal(ks_ckpt_count(a.ckpt), n_t);
    for (size_t i = 0; i < n_t; i++) {
        const ks_tensor *has = ks_ckpt_find(a.ckpt, t[i].name);
        assert_non_null(has);
        uint8_t *x = malloc(has->bytes), *y = malloc(has->bytes);
        assert_true(x && y);
        assert_ok(ks_ckpt_read(a.ckpt, has, 0, x, has->bytes, &err), &err);
        assert_ok(ks_synth_read(s, i, 0, y, has->bytes, &err), &err);
        assert_memory_equal(x, y, has->bytes);
        free(x);
        free(y);
    }
    check_logits(&a);
    close_app(c, &a);
    ks_synth_close(s);
    ks_buf_fini(&b);
    ks_arena_fini(&arena);
    free(text);
    remove_dir("plain");
}

/* 64 experts, 4 of them for each of 2000 tokens in 2 layers: how often each is asked for, most often first. */
static void count_routes(float skew, double share[2][64])
{
    enum { TOKENS = 2000 };
    static const char config[] =
        "{\"model_type\":\"qwen3_moe\",\"hidden_size\":256,\"num_hidden_layers\":2,\"vocab_size\":4096,"
        "\"max_position_embeddings\":4096,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":64,"
        "\"intermediate_size\":128,\"moe_intermediate_size\":64,\"num_experts\":64,\"num_experts_per_tok\":4,"
        "\"norm_topk_prob\":true,\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-6,\"tie_word_embeddings\":false}";
    static int32_t ids[TOKENS];
    uint64_t heat[2][64], seed = 1;
    ks_config *c;
    ks_app a;
    ks_err err;
    for (uint32_t i = 0; i < TOKENS; i++) ids[i] = (int32_t)(ks_splitmix64(&seed) % 4096);
    write_text("routes.json", config);
    make("routes.json", "routes", true, skew);
    open_app("routes", NULL, &c, &a);
    assert_ok(ks_engine_eval(a.engine, 0, ids, TOKENS, 0, NULL, NULL, &err), &err);
    assert_ok(ks_engine_heat(a.engine, &heat[0][0], &err), &err);
    close_app(c, &a);
    for (uint32_t l = 0; l < 2; l++)
        for (uint32_t i = 0; i < 64; i++) {
            uint32_t best = i;
            for (uint32_t k = i + 1; k < 64; k++)
                if (heat[l][k] > heat[l][best]) best = k;
            uint64_t v = heat[l][best];
            heat[l][best] = heat[l][i];
            heat[l][i] = v;
            share[l][i] = (double)v / TOKENS / 4;
        }
    remove_dir("routes");
}

static void routing_is_even_or_follows_zipfs_law(void **state)
{
    (void)state;
    double even[2][64], skewed[2][64];
    count_routes(0, even);
    count_routes(1, skewed);
    for (uint32_t l = 0; l < 2; l++) {
        print_message("layer %u, shares of ranks 1, 2, 8, 32, 64: even %.4f %.4f %.4f %.4f %.4f, skewed %.4f %.4f %.4f "
                      "%.4f %.4f\n",
                      l, even[l][0], even[l][1], even[l][7], even[l][31], even[l][63], skewed[l][0], skewed[l][1],
                      skewed[l][7], skewed[l][31], skewed[l][63]);
        assert_true(even[l][0] < 2.5 / 64 && even[l][63] > 0.3 / 64);
        /* Drawing four without putting back flattens the head; from rank 8 to 32 the law shows: a quarter is left. */
        double slope = log(skewed[l][7] / skewed[l][31]) / log(32.0 / 8.0);
        assert_true(skewed[l][0] > 4.0 / 64);
        assert_true(slope > 0.7 && slope < 1.5);
    }
}

static void the_number_of_layers_can_be_less(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\":[1,2,3],\"num_hidden_layers\":3,\"layer_types\":[\"x\",\"y\",\"x\"],\"two\":[1,2],"
        "\"rope_scaling\":{\"f\":[1,2,3]},\"quantization_config\":{\"quant_method\":\"fp8\"}}";
    ks_buf b;
    bool mxfp4 = true;
    ks_err err;
    ks_buf_init(&b, 0);
    assert_ok(ks_synth_config("c", text, strlen(text), 2, 0, &b, &mxfp4, &err), &err);
    assert_string_equal(b.p, "{\"a\":[1,2],\"num_hidden_layers\":2,\"layer_types\":[\"x\",\"y\"],\"two\":[1,2],"
                             "\"rope_scaling\":{\"f\":[1,2,3]}}\n");
    assert_false(mxfp4);
    b.n = 0;
    assert_int_equal(ks_synth_config("c", text, strlen(text), 4, 0, &b, &mxfp4, &err), KS_E_CONFIG);
    assert_contains(err.msg, "--layers 4: the shape of 'c' has 3");
    ks_buf_fini(&b);
}

static void bad_configs_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } bad[] = { { "", "config.json" },
                { "[1]", "'c' is not the config.json of a model" },
                { "{\"num_hidden_layers\":", "config.json" },
                { "{\"model_type\":\"qwen3_moe\"}", "does not say 'num_hidden_layers'" } };
    for (size_t i = 0; i < KS_COUNT(bad); i++) {
        ks_buf b;
        bool mxfp4;
        ks_err err = { 0 };
        ks_buf_init(&b, 0);
        assert_true(ks_synth_config("c", bad[i].text, strlen(bad[i].text), 0, 0, &b, &mxfp4, &err) < 0);
        assert_contains(err.msg, bad[i].part);
        ks_buf_fini(&b);
    }
}

static void what_is_there_is_not_overwritten(void **state)
{
    (void)state;
    ks_err err;
    make(GOLDEN "/qwen3_moe/config.json", "there", true, 0);
    ks_synth_opts o = { .config = GOLDEN "/qwen3_moe/config.json", .output = "there", .quantized = true };
    assert_int_equal(ks_synth_make(&o, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "--output 'there' exists already: remove it, or give another name");
    remove_dir("there");
    o.output = "no/such/folder";
    assert_int_equal(ks_synth_make(&o, &err), KS_E_CONFIG);
    assert_contains(err.msg, "cannot make the folder 'no/such/folder'");
}

static void a_disk_that_is_too_small_is_told_before_the_start(void **state)
{
    (void)state;
    const ks_synth_tensor t = { .name = "w", .type = KS_T_BF16, .rank = 2, .shape = { 1u << 25, 1u << 25 }, .std = 1 };
    ks_buf b;
    ks_synth *s = NULL;
    ks_err err;
    ks_buf_init(&b, 0);
    assert_ok(ks_synth_write(&t, 1, 1, &b, &err), &err);
    assert_ok(ks_synth_parse("list", b.p, b.n, &s, &err), &err);
    assert_int_equal(ks_synth_shards(s, ".", 0, NULL, &err), KS_E_LIMIT);
    assert_contains(err.msg, "the model needs 2251799.8 GB in '.'");
    assert_false(ks_file_exists("model.safetensors"));
    ks_synth_close(s);
    ks_buf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_computes),
        cmocka_unit_test(shapes_in_conf_are_made),
        cmocka_unit_test(shards_hold_the_numbers_of_the_formula),
        cmocka_unit_test(routing_is_even_or_follows_zipfs_law),
        cmocka_unit_test(the_number_of_layers_can_be_less),
        cmocka_unit_test(bad_configs_are_refused),
        cmocka_unit_test(what_is_there_is_not_overwritten),
        cmocka_unit_test(a_disk_that_is_too_small_is_told_before_the_start),
    };
    return cmocka_run_group_tests_name("synthetic models", tests, NULL, NULL);
}
