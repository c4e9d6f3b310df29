/* hunyuan_v1_moe: GQA with norms after the rotation, softmax routing, one shared expert; expert numbers may differ by
 * layer. */
#include "graph/arch.h"

#include "base/base.h"

struct hunyuan {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    ks_mlp shared;
};

/* A field that is one number for all layers, or a list with one for each. */
static uint32_t by_layer(ks_build *b, const char *key, uint32_t dflt, uint32_t max)
{
    ks_cfg *c = &b->cfg;
    const ks_cfg_node *n = ks__cfg_find(c, key), *list;
    if (!n) return dflt;
    if (n->kind != KS_CFG_ARRAY) return ks__cfg_u32(c, key, 0, max);
    if (!ks__cfg_list(c, key, b->n_layers, &list)) return dflt;
    return ks__cfg_elem_u32(c, key, ks__cfg_elem(c, list, b->layer), 0, max);
}

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct hunyuan *y = ctx;
    return ks__gqa(b, &y->attn, &y->rope, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    struct hunyuan *y = ctx;
    uint32_t n_ff = ks__cfg_u32(&b->cfg, "intermediate_size", 1, KS_DIM_MAX);
    y->moe.n_experts = by_layer(b, "num_experts", 1, KS_EXPERTS_MAX);
    y->moe.k = by_layer(b, "moe_topk", 1, KS_EXPERTS_MAX);
    y->moe.e.n_ff = by_layer(b, "moe_intermediate_size", n_ff, KS_DIM_MAX);
    uint32_t n_shared = by_layer(b, "num_shared_expert", 1, 64);
    if (y->moe.n_experts < 1 || y->moe.k < 1 || y->moe.e.n_ff < 1 || n_shared < 1)
        ks__cfg_fail(
            &b->cfg, KS_E_LIMIT,
            "layer %u has %u experts of width %u, %u a token and %u shared ones: at least one of each is needed",
            b->layer, y->moe.n_experts, y->moe.e.n_ff, y->moe.k, n_shared);
    if (b->cfg.rc) return h;
    y->moe.flags = y->moe.k > 1 ? KS_ROUTE_NORM | KS_ROUTE_NORM_MIN : 0;
    int16_t sum = ks__moe(b, &y->moe, h);
    y->shared.n_ff = ks__wide(b, n_shared, y->moe.e.n_ff);
    ks__shared(b, "mlp.shared_mlp", &y->shared, h, sum);
    return sum;
}

/* The files carry the settings of the whole series, images and latent attention included. */
static void check_fields(ks_cfg *c)
{
    static const char *const ignored[] = {
        "moe_drop_tokens",
        "moe_random_routing_dropped_token",
        "eod_token_id",
        "use_mixed_mlp_moe",
        "attention_head_dim",
        "im_start_id",
        "im_end_id",
        "im_newline_id",
        "text_start_id",
        "text_end_id",
        "image_token_id",
        "video_start_id",
        "video_end_id",
        "mask_init_id",
        "pad_id",
        "eod_id",
        "routed_scaling_factor",
        "group_limited_greedy",
        "norm_topk_prob",
        "cla_share_factor",
        "class_num",
        "dense_list",
        "kv_lora_rank",
        "q_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "num_media_embeds",
        "org_vocab_size",
        "pool_type",
        "unpad_fn",
        "xdrope_section",
        "skip_cls_token",
        "anyres_pooling_size",
        "anyres_vit_max_image_size",
        "anyres_vit_two_views",
        "max_image_size",
        "max_video_size",
        "vit_add_patchemb_bias",
        "vit_input_resolution",
        "vit_mapping_type",
        "vit_norm_type",
        "vit_patch",
        "vit_path",
        "vit_remove_prenorm",
        "vit_token",
        "vit_type",
        "vit_used_rms_norm",
    };
    static const char *const off[] = { "use_cla",
                                       "use_mla",
                                       "mlp_bias",
                                       "sliding_window",
                                       "position_embedding_xdrope",
                                       "moe_layer_num_skipped",
                                       "add_classification_head" };
    for (size_t i = 0; i < KS_COUNT(ignored); i++) ks__cfg_ignore(c, ignored[i]);
    for (size_t i = 0; i < KS_COUNT(off); i++) ks__cfg_off(c, off[i]);
    ks__cfg_only_bool(c, "use_qk_norm", true);
    ks__cfg_only_bool(c, "use_rotary_pos_emb", true);
    const char *norm = ks__cfg_str_or(c, "norm_type", "rms");
    if (strcmp(norm, "rms") != 0 && strcmp(norm, "hf_rms") != 0)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'norm_type' = '%.60s' is not supported: rms and hf_rms are", norm);
}

void ks__arch_hunyuan_v1_moe(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct hunyuan y = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    bool bias = ks__cfg_bool_or(c, "attention_bias", false);
    y.attn = (ks_gqa) { .q_norm = "self_attn.query_layernorm",
                        .k_norm = "self_attn.key_layernorm",
                        .norm_after_rope = true,
                        .bias_qkv = bias,
                        .bias_o = bias };
    y.moe = (ks_moe) { .block = "mlp",
                       .router = "gate.wg",
                       .score = KS_SCORE_SOFTMAX,
                       .norm_eps = 1.1920929e-7f,
                       .e = { .act = b->act } };
    y.shared.act = b->act;
    check_fields(c);
    y.rope = ks__rope_read(b, b->head_dim, 10000, 1);
    ks__stack(b, &(ks_stack) { .mixer = mixer, .ffn = ffn, .ctx = &y });
}
