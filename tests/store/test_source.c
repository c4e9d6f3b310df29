/* Quantized checkpoints: numbers are what their definition says, codes that we can hold are taken over unchanged, and
 * what is not supported is said. */
#include "store/source.h"
#include "support/golden_ckpt.h"
#include "util.h"
#include <math.h>

#define DIR "source"
#define GOLDEN KS_SOURCE_DIR "/tests/golden/"

static ks_ckpt *golden(const char *name)
{
    char from[512];
    ks_err err;
    (void)snprintf(from, sizeof from, GOLDEN "%s", name);
    assert_ok(ks_golden_write(from, "golden", &err), &err);
    return util_ckpt(registry, "golden");
}

/* The tensor's bytes; free() them. */
static uint8_t *bytes_of(const ks_ckpt *c, const char *name)
{
    ks_err err;
    const ks_tensor *t = ks_ckpt_find(c, name);
    assert_non_null(t);
    uint8_t *p = malloc((size_t)t->bytes);
    assert_non_null(p);
    assert_ok(ks_ckpt_read(c, t, 0, p, (size_t)t->bytes, &err), &err);
    return p;
}

static void fp8_blocks_become_their_exact_products(void **state)
{
    (void)state;
    enum { N = 256, K = 128 };
    const ks_wpart p = { "model.layers.0.mlp.gate_proj.weight", 0, N, 0, 0, 0, false };
    const ks_wspec s = { "gate", KS_CLS_DENSE, 0, 1, N, K, 1, &p, -1, 0, NULL };
    ks_weight w, q;
    ks_ckpt *c = golden("deepseek_v3_fp8");
    uint8_t *codes = bytes_of(c, "model.layers.0.mlp.gate_proj.weight");
    float *inv = (float *)(void *)bytes_of(c, "model.layers.0.mlp.gate_proj.weight_scale_inv");
    ks_store *st = util_store(c, &s, 1, KS_T_BF16, &w), *sq = util_store(c, &s, 1, KS_T_I8, &q);
    assert_int_equal(w.type, KS_T_F32); /* BF16 would round the products */
    assert_int_equal(q.type, KS_T_I8);
    for (uint32_t r = 0; r < N; r++) {
        for (uint32_t k = 0; k < K; k++) {
            float want = ks_f8e4m3_to_f32(codes[r * K + k]) * inv[r / 128];
            assert_true(util_get(&w, 0, r, k) == want);
            assert_true(fabsf(util_get(&q, 0, r, k) - want) < 0.01f);
        }
    }
    free(codes);
    free(inv);
    ks_store_close(st);
    ks_store_close(sq);
    ks_ckpt_close(c);
}

static void packed_int4_is_taken_over_unchanged(void **state)
{
    (void)state;
    enum { N = 128, K = 128, E = 8 };
    const char *base = "model.layers.1.mlp.experts.";
    const ks_wpart gu[2] = { { "model.layers.1.mlp.experts.{}.gate_proj.weight", 0, N, 0, 0, 0, false },
                             { "model.layers.1.mlp.experts.{}.up_proj.weight", 0, N, 0, 0, 0, false } };
    const ks_wspec s = { "gu", KS_CLS_EXPERT, KS_WSPEC_PAIR, E, 2 * N, K, 2, gu, -1, 0, NULL };
    static const uint32_t wanted[] = { KS_T_I4, KS_T_I8, KS_T_BF16 }, stored[] = { KS_T_I4, KS_T_I4, KS_T_F32 };
    ks_ckpt *c = golden("deepseek_v3_ct4");
    for (size_t i = 0; i < 3; i++) {
        ks_weight w;
        ks_store *st = util_store(c, &s, 1, wanted[i], &w);
        assert_int_equal(w.type, stored[i]);
        assert_int_equal(w.group, stored[i] == KS_T_I4 ? 32 : 0);
        for (uint32_t e = 0; e < E; e += 7) {
            for (uint32_t part = 0; part < 2; part++) {
                char name[100];
                (void)snprintf(name, sizeof name, "%s%u.%s_proj.weight_packed", base, e, part ? "up" : "gate");
                uint8_t *packed = bytes_of(c, name);
                (void)snprintf(name, sizeof name, "%s%u.%s_proj.weight_scale", base, e, part ? "up" : "gate");
                uint16_t *scale = (uint16_t *)(void *)bytes_of(c, name);
                for (uint32_t r = 0; r < N; r++) {
                    for (uint32_t k = 0; k < K; k++) {
                        int code = (packed[(r * K + k) / 2] >> (k % 2 * 4) & 15) - 8;
                        float want = (float)code * ks_bf16_to_f32(scale[r * (K / 32) + k / 32]);
                        assert_true(util_get(&w, e, r / 16 * 32 + part * 16 + r % 16, k) == want);
                    }
                }
                free(packed);
                free(scale);
            }
        }
        ks_store_close(st);
    }
    ks_ckpt_close(c);
}

static void mxfp4_is_taken_over_unchanged(void **state)
{
    (void)state;
    enum { FF = 128, D = 128, E = 8 };
    /* The spec is written for the bf16 form, (experts, in, out); the blocks are (experts, out, in / 32, 16). */
    const char *tensor = "model.layers.1.mlp.experts.gate_up_proj";
    const ks_wpart gu[2] = { { tensor, 0, FF, 1, 2, 0, true }, { tensor, 1, FF, 1, 2, 0, true } };
    const ks_wspec s = { "gu", KS_CLS_EXPERT, KS_WSPEC_PAIR, E, 2 * FF, D, 2, gu, -1, 0, NULL };
    static const uint32_t wanted[] = { KS_T_I4, KS_T_I8, KS_T_BF16, KS_T_F32 };
    static const uint32_t stored[] = { KS_T_MXFP4, KS_T_MXFP4, KS_T_BF16, KS_T_F32 };
    ks_ckpt *c = golden("gpt_oss_mxfp4");
    uint8_t *blocks = bytes_of(c, "model.layers.1.mlp.experts.gate_up_proj_blocks");
    uint8_t *scales = bytes_of(c, "model.layers.1.mlp.experts.gate_up_proj_scales");
    for (size_t i = 0; i < KS_COUNT(wanted); i++) {
        ks_weight w;
        ks_store *st = util_store(c, &s, 1, wanted[i], &w);
        assert_int_equal(w.type, stored[i]);
        for (uint32_t e = 0; e < E; e++) {
            for (uint32_t r = 0; r < 2 * FF; r++) {
                uint32_t from = r / 32 * 32 + r % 16 * 2 + r / 16 % 2; /* row of the source */
                for (uint32_t k = 0; k < D; k++) {
                    size_t at = ((size_t)e * 2 * FF + from) * D + k;
                    float want = ks_e2m1_to_f32(blocks[at / 2] >> (k % 2 * 4) & 15) * ks_e8m0_to_f32(scales[at / 32]);
                    assert_true(util_get(&w, e, r, k) == want);
                }
            }
        }
        ks_store_close(st);
    }
    free(blocks);
    free(scales);
    ks_ckpt_close(c);
}

/* ---- refusals, and forms that the goldens have not */

static void write_config(const char *quantization)
{
    char text[1000];
    ks_err err;
    (void)snprintf(text, sizeof text, "{\"model_type\":\"x\",\"text_config\":{\"quantization_config\":%s}}",
                   quantization);
    assert_ok(ks_file_write(DIR "/config.json", text, strlen(text), &err), &err);
}

static void expect_error(const ks_st_tensor *t, size_t n, const char *config, const ks_wspec *s, const char *message)
{
    ks_err err = { .code = 0 };
    ks_weight w;
    ks_store *st = NULL;
    ks_store_opts o = { .no_cache = true };
    util_fresh_dir(DIR);
    write_config(config);
    assert_ok(ks_st_write(DIR "/model.safetensors", t, n, &err), &err);
    ks_ckpt *c = util_ckpt(registry, DIR);
    assert_true(ks_store_open(c, s, 1, &o, &w, &st, &err) < 0);
    assert_contains(err.msg, message);
    assert_null(st);
    ks_ckpt_close(c);
}

#define FP8 "{\"quant_method\":\"fp8\",\"weight_block_size\":[16,32]}"
#define CT4(group)                                                                                                  \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"ignore\":[\"x\"],\"config_groups\":{" \
    "\"group_0\":{\"input_activations\":{\"num_bits\":8},\"weights\":{\"num_bits\":4,\"group_size\":" group         \
    ",\"symmetric\":true}}}}"

static void broken_scales_are_refused_by_name(void **state)
{
    (void)state;
    static uint8_t codes[20 * 64], nan_codes[20 * 64];
    float scale[4] = { 1, 1, NAN, 1 }, good[4] = { 1, 1, 1, 1 };
    nan_codes[64 + 5] = 0x7f;
    const ks_wpart p = { "m.weight", 0, 20, 0, 0, 0, false };
    ks_wspec s = { "m", KS_CLS_ATTN, 0, 1, 20, 64, 1, &p, -1, 0, NULL };
    ks_st_tensor t[2] = { { "m.weight", "F8_E4M3", 2, { 20, 64 }, codes, sizeof codes },
                          { "m.weight_scale_inv", "F32", 2, { 2, 2 }, scale, sizeof scale } };
    expect_error(t, 2, FP8, &s, "tensor 'm.weight_scale_inv' holds NaN at [1, 0]");
    t[1].data = good;
    t[0].data = nan_codes;
    expect_error(t, 2, FP8, &s, "tensor 'm.weight' holds NaN at [1, 5]");
    expect_error(
        t, 2, "{\"quant_method\":\"fp8\",\"weight_block_size\":[32,32]}", &s,
        "tensor 'm.weight_scale_inv' has 4 scales of type f32, 'm.weight' with 20 x 64 in groups of 32 needs 2");
    expect_error(t, 2, "{\"quant_method\":\"fp8\"}", &s, "quantization_config in config.json has no weight_block_size");
    t[1].name = "m.weight_scale";
    expect_error(t, 2, FP8, &s,
                 "tensor 'm.weight' has a '_scale', but quantization_config in config.json has no scales a row");
    expect_error(t, 2, "{\"quant_method\":\"fp8\"}", &s,
                 "tensor 'm.weight_scale' has 4 scales of type f32, 'm.weight' with 20 x 64 in groups of 64 needs 20");
    t[1].name = "m.weight_scale_inv";
    t[1].dtype = "I32";
    expect_error(t, 2, FP8, &s, "has 4 scales of type i32");
    uint8_t e8m0[2 * 2] = { 127, 255, 127, 127 };
    ks_st_tensor mx[2] = { { "m.weight_blocks", "U8", 3, { 2, 2, 16 }, codes, 64 },
                           { "m.weight_scales", "U8", 2, { 2, 2 }, e8m0, sizeof e8m0 } };
    const ks_wpart p2 = { "m.weight", 0, 2, 0, 0, 0, false };
    s = (ks_wspec) { "m", KS_CLS_ATTN, 0, 1, 2, 64, 1, &p2, -1, 0, NULL };
    expect_error(mx, 2, "{\"quant_method\":\"mxfp4\"}", &s, "tensor 'm.weight_scales' holds NaN at [0, 1]");
    mx[1].shape[1] = 1;
    mx[1].bytes = 2;
    expect_error(mx, 2, "{\"quant_method\":\"mxfp4\"}", &s, "tensor 'm.weight_scales' has 2 scales");
    expect_error(mx, 1, "{\"quant_method\":\"mxfp4\"}", &s, "tensor 'm.weight_blocks' does not look like MXFP4");
}

static void schemes_that_are_not_supported_are_said(void **state)
{
    (void)state;
    static uint8_t data[64 * 64];
    const ks_wpart p = { "m.weight", 0, 16, 0, 0, 0, false };
    const ks_wspec s = { "m", KS_CLS_ATTN, 0, 1, 16, 64, 1, &p, -1, 0, NULL };
    ks_st_tensor t[3] = { { "m.weight_packed", "I32", 2, { 16, 8 }, data, 512 },
                          { "m.weight_scale", "BF16", 2, { 16, 2 }, data, 64 },
                          { "m.weight_zero_point", "I32", 2, { 2, 2 }, data, 16 } };
    expect_error(t, 3, CT4("32"), &s, "tensor 'm.weight_packed' has zero points or a group order");
    expect_error(t, 2, FP8, &s, "tensor 'm.weight_packed' is packed: it needs");
    expect_error(t, 2, CT4("48"), &s, "in groups of 48 needs");
    t[0].name = "m.qweight";
    expect_error(t, 2, CT4("32"), &s, "tensor 'm.qweight' is packed: it needs type i32, 'qzeros' (i32)");
    expect_error(
        t, 2, "{\"quant_method\":\"bitsandbytes\"}", &s,
        "quantization method 'bitsandbytes' is not supported; supported are fp8, mxfp4, compressed-tensors, gptq, "
        "awq");
    expect_error(
        t, 2, "{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\"}", &s,
        "has format 'float-quantized' of compressed-tensors; supported are 'pack-quantized' with 4 symmetric bits "
        "and one group size, and 'float-quantized' with 8 symmetric bits and scales a row or tensor");
    expect_error(t, 2, "{\"quant_method\":7}", &s, "quantization_config is not what it should be");
    expect_error(t, 2, "[]", &s, "quantization_config is not what it should be");
}

/* Blocks that do not divide the matrix, a scale type other than BF16, one scale a row. */
static void odd_blocks_and_groups_are_read(void **state)
{
    (void)state;
    enum { N = 20, K = 64 };
    static uint8_t fp8[N * K], packed[N * K / 2];
    float inv[2 * 2] = { 0.5f, 1, 2, 3 };
    uint16_t f16[N];
    ks_err err;
    for (uint32_t i = 0; i < sizeof fp8; i++) fp8[i] = (uint8_t)(i * 37 % 0x7f);
    for (uint32_t i = 0; i < sizeof packed; i++) packed[i] = (uint8_t)(i * 91);
    for (uint32_t i = 0; i < N; i++) f16[i] = ks_f32_to_f16(0.001f * (float)(i + 1));
    const ks_st_tensor a[2] = { { "m.weight", "F8_E4M3", 2, { N, K }, fp8, sizeof fp8 },
                                { "m.weight_scale_inv", "F32", 2, { 2, 2 }, inv, sizeof inv } };
    const ks_st_tensor b[2] = { { "m.weight_packed", "I32", 2, { N, K / 8 }, packed, sizeof packed },
                                { "m.weight_scale", "F16", 2, { N, 1 }, f16, sizeof f16 } };
    const ks_wpart p = { "m.weight", 0, N, 0, 0, 0, false };
    const ks_wspec s = { "m", KS_CLS_ATTN, 0, 1, N, K, 1, &p, -1, 0, NULL };
    for (uint32_t i = 0; i < 2; i++) {
        ks_weight w;
        util_fresh_dir(DIR);
        write_config(i ? CT4("null") : FP8);
        assert_ok(ks_st_write(DIR "/model.safetensors", i ? b : a, 2, &err), &err);
        ks_ckpt *c = util_ckpt(registry, DIR);
        ks_store *st = util_store(c, &s, 1, KS_T_BF16, &w);
        assert_int_equal(w.type, KS_T_F32);
        for (uint32_t r = 0; r < N; r++) {
            for (uint32_t k = 0; k < K; k++) {
                float code =
                    i ? (float)((packed[(r * K + k) / 2] >> (k % 2 * 4) & 15) - 8) : ks_f8e4m3_to_f32(fp8[r * K + k]);
                float scale = i ? ks_f16_to_f32(f16[r]) : inv[r / 16 * 2 + k / 32];
                assert_true(util_get(&w, 0, r, k) == code * scale);
            }
        }
        ks_store_close(st);
        ks_ckpt_close(c);
    }
}

#define CT8                                                                                                    \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\",\"config_groups\":{\"group_0\":{" \
    "\"weights\":{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"channel\",\"group_size\":null,"             \
    "\"symmetric\":true},\"input_activations\":{\"num_bits\":8}}}}"

/* One factor a row or one a tensor, of one matrix and of a stack. */
static void fp8_with_one_scale_a_row_or_tensor_is_its_products(void **state)
{
    (void)state;
    enum { E = 3, N = 20, K = 64 };
    static uint8_t fp8[E * N * K];
    float f32[E * N];
    uint16_t bf16[E * N];
    ks_err err;
    for (uint32_t i = 0; i < sizeof fp8; i++) fp8[i] = (uint8_t)(i * 37 % 0x7f);
    for (uint32_t i = 0; i < E * N; i++) f32[i] = ks_bf16_to_f32(bf16[i] = ks_f32_to_bf16(0.01f * (float)(i + 1)));
    for (uint32_t i = 0; i < 8; i++) {
        const bool stack = i & 1, rows = i & 2, bf = i & 4;
        const uint64_t e = stack ? E : 1, a = rows ? N : 1;
        ks_st_tensor t[2] = { { "m.weight", "F8_E4M3", 2, { N, K }, fp8, (size_t)e * N * K },
                              { "m.weight_scale",
                                bf ? "BF16" : "F32",
                                rows ? 2 : 0,
                                { a, 1 },
                                bf ? (void *)bf16 : f32,
                                (size_t)(e * a) * (bf ? 2 : 4) } };
        if (stack) {
            t[0] = (ks_st_tensor) { "m.weight", "F8_E4M3", 3, { E, N, K }, fp8, sizeof fp8 };
            t[1].rank = 3;
            t[1].shape[0] = E;
            t[1].shape[1] = a;
            t[1].shape[2] = 1;
        }
        const ks_wpart p = { "m.weight", 0, N, 0, 0, 0, false };
        const ks_wspec s = { "m", KS_CLS_EXPERT, 0, (uint32_t)e, N, K, 1, &p, -1, 0, NULL };
        ks_weight w;
        util_fresh_dir(DIR);
        write_config(bf ? CT8 : "{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\"}");
        assert_ok(ks_st_write(DIR "/model.safetensors", t, 2, &err), &err);
        ks_ckpt *c = util_ckpt(registry, DIR);
        ks_store *st = util_store(c, &s, 1, KS_T_BF16, &w);
        assert_int_equal(w.type, KS_T_F32);
        for (uint32_t j = 0; j < e * N * K; j++) {
            float scale = f32[rows ? j / K : j / K / N];
            assert_true(util_get(&w, j / K / N, j / K % N, j % K) == ks_f8e4m3_to_f32(fp8[j]) * scale);
        }
        ks_store_close(st);
        ks_ckpt_close(c);
    }
}

static void unquantized_configurations_are_plain(void **state)
{
    (void)state;
    static const char *const texts[] = { "{}", "{\"quantization_config\":null}", "{\"a\":{\"quantization_config\":{}}}",
                                         "{\"text_config\":{}}" };
    ks_qconf q;
    ks_err err;
    for (size_t i = 0; i < KS_COUNT(texts); i++) {
        assert_ok(ks__qconf_parse("config.json", texts[i], strlen(texts[i]), &q, &err), &err);
        assert_int_equal(q.scheme, KS_SCHEME_PLAIN);
    }
    assert_int_equal(ks__qconf_parse("config.json", "{", 1, &q, &err), KS_E_FORMAT);
    assert_contains(err.msg, "config.json: config: line 1, column");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp8_blocks_become_their_exact_products),
        cmocka_unit_test(packed_int4_is_taken_over_unchanged),
        cmocka_unit_test(mxfp4_is_taken_over_unchanged),
        cmocka_unit_test(broken_scales_are_refused_by_name),
        cmocka_unit_test(schemes_that_are_not_supported_are_said),
        cmocka_unit_test(odd_blocks_and_groups_are_read),
        cmocka_unit_test(fp8_with_one_scale_a_row_or_tensor_is_its_products),
        cmocka_unit_test(unquantized_configurations_are_plain),
    };
    return cmocka_run_group_tests_name("source", tests, util_setup, util_teardown);
}
