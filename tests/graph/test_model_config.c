/* config.json: what is refused, and with which words. Tensors are made up: every name exists unless a test says no. */
#include "graph/build.h"

#include "base/base.h"
#include "base/buf.h"
#include "base/file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static const ks_tensor *find_all(const void *ctx, const char *name)
{
    static const ks_tensor t = { .rank = 2 };
    (void)ctx;
    return strstr(name, "gate_up_proj") || strstr(name, "_blocks") ? NULL : &t;
}

static const ks_tensor *find_none(const void *ctx, const char *name)
{
    (void)ctx, (void)name;
    return NULL;
}

/* Only names that begin with ctx. */
static const ks_tensor *find_prefix(const void *ctx, const char *name)
{
    static const ks_tensor t = { .rank = 2 };
    return strncmp(name, ctx, strlen(ctx)) == 0 ? &t : NULL;
}

#define QWEN                                                                                                       \
    "\"model_type\": \"qwen3_moe\", \"hidden_size\": 64, \"num_hidden_layers\": 2, \"vocab_size\": 100, "          \
    "\"max_position_embeddings\": 512, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 16, " \
    "\"intermediate_size\": 128, \"moe_intermediate_size\": 32, \"num_experts\": 8, \"num_experts_per_tok\": 2"

static int build(const char *text, ks_model *m, ks_err *err)
{
    *m = (ks_model) { 0 };
    return ks__model_build(text, strlen(text), find_all, NULL, m, err);
}

static void refused(const char *text, int code, const char *words)
{
    ks_model m;
    ks_err err = { 0 };
    int rc = build(text, &m, &err);
    if (rc == 0) {
        ks_model_close(&m);
        fail_msg("was accepted, but should say '%s'", words);
    }
    if (rc != code || !strstr(err.msg, words))
        fail_msg("code %d, '%s': should be %d and hold '%s'", rc, err.msg, code, words);
    if (strchr(err.msg, '\n')) fail_msg("the message has more than one line");
}

static void accepted(const char *text)
{
    ks_model m;
    ks_err err = { 0 };
    if (build(text, &m, &err)) fail_msg("%s", err.msg);
    ks_model_close(&m);
}

static void test_minimal_config_builds(void **state)
{
    ks_model m;
    ks_err err;
    (void)state;
    assert_int_equal(build("{" QWEN "}", &m, &err), 0);
    assert_string_equal(m.arch, "qwen3_moe");
    assert_int_equal(m.graph.n_layers, 2);
    assert_int_equal(m.graph.n_taps, 3);
    assert_int_equal(m.graph.n_experts, 8);
    assert_int_equal(m.graph.regs[m.graph.logits].width, 100);
    for (uint32_t i = 0; i < m.graph.n_weights; i++) assert_non_null(m.specs[i].name);
    ks_model_close(&m);
    ks_model_close(&m); /* a closed model is fine */
}

static void test_unknown_model_type_lists_the_known(void **state)
{
    (void)state;
    refused("{\"model_type\": \"bert\"}", KS_E_UNSUPPORTED, "model_type 'bert' is not supported: ");
    refused("{\"model_type\": \"bert\"}", KS_E_UNSUPPORTED, "qwen3_moe");
    refused("{}", KS_E_FORMAT, "'model_type' is missing");
    refused("{\"model_type\": 3}", KS_E_FORMAT, "'model_type' must be text, not an integer");
}

static void test_unknown_fields_are_named(void **state)
{
    (void)state;
    refused("{" QWEN ", \"final_logit_softcapping\": 30.0}", KS_E_UNSUPPORTED,
            "'final_logit_softcapping' is not implemented for 'qwen3_moe' and might change its results");
    refused("{" QWEN ", \"a\": 1, \"b\": 2}", KS_E_UNSUPPORTED, "'a', 'b' are not implemented");
    accepted("{" QWEN
             ", \"final_logit_softcapping\": null, \"transformers_version\": \"5\", \"router_aux_loss_coef\": 0.1}");
}

static void test_wrong_types_and_bounds_name_the_field(void **state)
{
    (void)state;
    refused("{" QWEN ", \"norm_topk_prob\": 1}", KS_E_FORMAT, "'norm_topk_prob' must be true or false, not an integer");
    refused("{" QWEN ", \"rms_norm_eps\": \"small\"}", KS_E_FORMAT, "'rms_norm_eps' must be a number, not text");
    refused("{" QWEN ", \"rms_norm_eps\": -1}", KS_E_LIMIT, "'rms_norm_eps' is -1: 0 to 1 are possible");
    refused("{" QWEN ", \"decoder_sparse_step\": 0}", KS_E_LIMIT, "'decoder_sparse_step' is 0: 1 to 1024 are possible");
    refused("{" QWEN ", \"decoder_sparse_step\": 1.5}", KS_E_FORMAT,
            "'decoder_sparse_step' must be an integer, not 1.5");
    refused("{" QWEN ", \"mlp_only_layers\": [\"x\"]}", KS_E_FORMAT, "'mlp_only_layers' must hold integers, not text");
    refused("{" QWEN ", \"hidden_act\": \"tanh\"}", KS_E_UNSUPPORTED, "'hidden_act' = 'tanh' is not supported: silu");
    refused("{\"model_type\": \"qwen3_moe\", \"hidden_size\": 18446744073709551616}", KS_E_FORMAT,
            "'hidden_size' must be an integer");
    refused("{\"model_type\": \"qwen3_moe\", \"hidden_size\": 99999999}", KS_E_LIMIT,
            "'hidden_size' is 99999999: 1 to");
    refused("{\"model_type\": \"qwen3_moe\"}", KS_E_FORMAT, "the field 'hidden_size' is missing");
}

static void test_impossible_combinations_are_told(void **state)
{
    (void)state;
    refused("{\"model_type\": \"qwen3_moe\", \"hidden_size\": 64, \"num_hidden_layers\": 2, \"vocab_size\": 100, "
            "\"max_position_embeddings\": 9, "
            "\"num_attention_heads\": 4, \"num_key_value_heads\": 3}",
            KS_E_FORMAT, "'num_attention_heads' = 4 is no multiple of 'num_key_value_heads' = 3");
    refused("{" QWEN ", \"num_local_experts\": 1}", KS_E_FORMAT, "2 experts a token are chosen of 1");
    refused("{" QWEN ", \"layer_types\": [\"full_attention\"]}", KS_E_FORMAT, "'layer_types' has 1 entries, not 2");
    refused("{" QWEN ", \"layer_types\": [\"full_attention\", \"mamba\"]}", KS_E_UNSUPPORTED,
            "'layer_types' has 'mamba' for layer 1");
}

static void test_rope_variants_are_handled_or_refused_by_name(void **state)
{
    (void)state;
    accepted("{" QWEN ", \"rope_theta\": 10000.0, \"rope_scaling\": null}");
    accepted("{" QWEN
             ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 128}}");
    accepted("{" QWEN ", \"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 5e5, \"factor\": 8, "
             "\"low_freq_factor\": 1, "
             "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 128}}");
    accepted("{" QWEN ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}}");
    accepted("{" QWEN ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}}");
    refused("{" QWEN ", \"rope_scaling\": {\"rope_type\": \"spiral\"}}", KS_E_UNSUPPORTED,
            "rope_type 'spiral' is not supported: default, linear");
    refused("{" QWEN ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2, \"twist\": 1}}", KS_E_UNSUPPORTED,
            "'twist' is not implemented for 'rope_parameters'");
    refused("{" QWEN ", \"rope_scaling\": {\"rope_type\": \"longrope\", \"short_factor\": [1]}}", KS_E_FORMAT,
            "'short_factor' has 1 entries, not 8");
    refused("{" QWEN ", \"rope_scaling\": 3}", KS_E_FORMAT, "'rope_scaling' must be an object, not an integer");
}

static const float *inv_freq(const ks_model *m)
{
    for (uint32_t i = 0; i < m->graph.n_weights; i++)
        if (m->specs[i].values) return m->specs[i].values;
    return NULL;
}

static void test_longrope_keeps_to_its_original_length(void **state)
{
    ks_model m;
    ks_err err;
    (void)state;
    assert_int_equal(build("{" QWEN ", \"rope_theta\": 10000, \"rope_scaling\": {\"type\": \"longrope\", "
                           "\"original_max_position_embeddings\": 128, "
                           "\"short_factor\": [2,1,1,1,1,1,1,1], \"long_factor\": [9,9,9,9,9,9,9,9]}}",
                           &m, &err),
                     0);
    assert_int_equal(m.graph.n_ctx, 128);
    assert_true(inv_freq(&m)[0] == 0.5f);
    ks_model_close(&m);
}

static const char *source_of(const ks_model *m, const char *name)
{
    for (uint32_t i = 0; i < m->graph.n_weights; i++)
        if (strcmp(m->specs[i].name, name) == 0) return m->specs[i].parts[0].tensor;
    fail_msg("no weight '%s'", name);
    return NULL;
}

static void test_text_parts_of_wrapped_configs_are_found(void **state)
{
    static const char *const prefixes[] = { "model.", "model.language_model.", "language_model.model." };
    const char *text = "{\"model_type\": \"qwen3_vl_moe\", \"vision_config\": {\"depth\": 3}, \"tie_word_embeddings\": "
                       "true, \"text_config\": {" QWEN "}}";
    (void)state;
    for (size_t i = 0; i < KS_COUNT(prefixes); i++) {
        ks_model m;
        ks_err err;
        char want[64];
        int rc = ks__model_build(text, strlen(text), find_prefix, prefixes[i], &m, &err);
        if (rc) fail_msg("%s", err.msg);
        (void)snprintf(want, sizeof want, "%sembed_tokens.weight", prefixes[i]);
        assert_string_equal(source_of(&m, "embed"), want);
        assert_string_equal(source_of(&m, "head"), want); /* tied, as the outer part says */
        ks_model_close(&m);
    }
    refused("{\"text_config\": []}", KS_E_FORMAT, "'text_config' must be an object");
}

static void test_checkpoint_without_the_model_is_told(void **state)
{
    ks_model m;
    ks_err err;
    const char *text = "{" QWEN "}";
    (void)state;
    assert_int_equal(ks__model_build(text, strlen(text), find_none, NULL, &m, &err), KS_E_FORMAT);
    assert_non_null(strstr(err.msg, "no tensor 'model.embed_tokens.weight'"));
}

static void test_malformed_json_says_where(void **state)
{
    (void)state;
    refused("{\"model_type\": \"qwen3_moe\",}", KS_E_FORMAT, "line 1, column");
    refused("", KS_E_FORMAT, "config.json");
    refused("[]", KS_E_FORMAT, "it is not an object");
    refused("{\"a\": 1, \"a\": 2}", KS_E_FORMAT, "the field 'a' stands there twice");
    refused("{\"a\": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}", KS_E_FORMAT, "config.json");
    refused("{\"a\": 1e999}", KS_E_FORMAT, "the number '1e999' is too large");
}

static void test_families_check_what_they_do_not_implement(void **state)
{
    static const char base[] =
        "\"hidden_size\": 64, \"num_hidden_layers\": 2, \"vocab_size\": 100, \"max_position_embeddings\": 512, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"intermediate_size\": 64, \"moe_intermediate_size\": "
        "64, "
        "\"num_experts\": 8, \"num_experts_per_tok\": 2";
    static const struct {
        const char *type, *more, *words;
    } rows[] = {
        { "deepseek_v3",
          "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8, \"v_head_dim\": 16, "
          "\"scoring_func\": \"softmax\"",
          "'scoring_func' = 'softmax' is not supported, only 'sigmoid'" },
        { "deepseek_v3",
          "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8, \"v_head_dim\": 16, "
          "\"moe_layer_freq\": 2",
          "'moe_layer_freq' = 2 is not supported, only 1" },
        { "deepseek_v3",
          "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8, \"v_head_dim\": 16, "
          "\"first_k_dense_replace\": 0, \"n_group\": 3",
          "8 experts cannot be divided into 'n_group' = 3" },
        { "deepseek_v3",
          "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8, \"v_head_dim\": 16, "
          "\"first_k_dense_replace\": 0, \"n_group\": 4, \"topk_group\": 9",
          "'topk_group' is 9: 1 to 'n_group' = 4" },
        { "deepseek_v32", "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8, \"v_head_dim\": 16",
          "'index_n_heads' is missing" },
        { "minimax_m2", "\"attn_type_list\": [1, 0]", "'attn_type_list' is 0: 1 to 1" },
        { "minimax_m2", "\"use_qk_norm\": false", "'use_qk_norm' = false is not supported, only true" },
        { "hunyuan_v1_moe", "\"use_cla\": true", "'use_cla' = true is not supported" },
        { "phimoe", "\"num_local_experts\": 8, \"num_experts_per_tok_x\": 1",
          "'num_experts_per_tok_x' are not implemented for 'phimoe'" },
        { "gpt_oss", "\"swiglu_limit\": 7.0", "'rope_scaling' (or 'rope_parameters') is missing" },
        { "afmoe", "\"n_group\": 2", "'n_group' = 2 is not supported, only 1" },
        { "lfm2_moe", "\"conv_L_cache\": 3", "'layer_types' is missing" },
        { "qwen3_next",
          "\"linear_num_value_heads\": 3, \"linear_num_key_heads\": 2, \"shared_expert_intermediate_size\": 64",
          "'linear_num_value_heads' = 3 is no multiple" },
        { "glm_moe_dsa",
          "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8, \"v_head_dim\": 16, "
          "\"q_lora_rank\": 32, \"index_n_heads\": 2, "
          "\"index_head_dim\": 16, \"index_topk\": 4, \"indexer_types\": [\"shared\", \"full\"]",
          "there is nothing to share yet" },
    };
    (void)state;
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        char text[2048];
        ks_model m;
        ks_err err = { 0 };
        (void)snprintf(text, sizeof text, "{\"model_type\": \"%s\", %s, %s}", rows[i].type, base, rows[i].more);
        int rc = build(text, &m, &err);
        if (rc == 0 || !strstr(err.msg, rows[i].words))
            fail_msg("%s: '%s' should hold '%s'", rows[i].type, rc ? err.msg : "accepted", rows[i].words);
    }
}

static void test_every_listed_type_is_documented(void **state)
{
    char *text = NULL;
    size_t n;
    ks_err err;
    ks_buf b;
    (void)state;
    ks_buf_init(&b, 0);
    ks_model_markdown(&b);
    assert_false(b.failed);
    if (ks_file_read(KS_SOURCE_DIR "/docs/models.md", 1 << 20, &text, &n, &err)) fail_msg("%s", err.msg);
    if (n != b.n || memcmp(text, b.p, n) != 0)
        fail_msg("docs/models.md is not what `test_model_config --models > docs/models.md` writes");
    for (const char *const *t = ks_model_types(); *t; t++) assert_non_null(strstr(text, *t));
    free(text);
    ks_buf_fini(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_minimal_config_builds),
        cmocka_unit_test(test_unknown_model_type_lists_the_known),
        cmocka_unit_test(test_unknown_fields_are_named),
        cmocka_unit_test(test_wrong_types_and_bounds_name_the_field),
        cmocka_unit_test(test_impossible_combinations_are_told),
        cmocka_unit_test(test_rope_variants_are_handled_or_refused_by_name),
        cmocka_unit_test(test_longrope_keeps_to_its_original_length),
        cmocka_unit_test(test_text_parts_of_wrapped_configs_are_found),
        cmocka_unit_test(test_checkpoint_without_the_model_is_told),
        cmocka_unit_test(test_malformed_json_says_where),
        cmocka_unit_test(test_families_check_what_they_do_not_implement),
        cmocka_unit_test(test_every_listed_type_is_documented),
    };
    if (argc > 1 && strcmp(argv[1], "--models") == 0) { /* how docs/models.md is made */
        ks_buf b;
        ks_buf_init(&b, 0);
        ks_model_markdown(&b);
        size_t n = b.failed ? 0 : fwrite(b.p, 1, b.n, stdout);
        int rc = b.failed || n != b.n;
        ks_buf_fini(&b);
        return rc;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
