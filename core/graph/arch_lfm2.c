/* lfm2_moe: short gated convolutions, with attention in some layers; sigmoid routing with an optional bias. */
#include "graph/arch.h"

#include "base/base.h"

struct lfm2 {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    ks_mlp dense;
    const uint8_t *kinds; /* 1: attention */
    uint32_t n_dense, width;
    bool bias;
};

/* in_proj gives B | C | x; y = C * conv(B * x). */
static int16_t short_conv(ks_build *b, const struct lfm2 *l, int16_t h)
{
    int16_t all = ks__reg(b, "bcx", 3 * b->d), y = ks__reg(b, "y", b->d), u = ks__reg(b, "conv", b->d);
    int16_t gate_in = ks__view(b, "bcx.b", all, 0, b->d), gate_out = ks__view(b, "bcx.c", all, b->d, b->d),
            x = ks__view(b, "bcx.x", all, 2 * b->d, b->d);
    ks__linear(b, KS_CLS_ATTN, 0, h, all, "conv.in_proj", l->bias);
    ks__mul(b, x, gate_in, u, KS_ACT1_NONE, 0);
    ks__conv(b, u, u, "conv.conv", l->width, KS_ACT1_NONE, l->bias);
    ks__mul(b, u, gate_out, u, KS_ACT1_NONE, 0);
    ks__linear(b, KS_CLS_ATTN, 0, u, y, "conv.out_proj", l->bias);
    return y;
}

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct lfm2 *l = ctx;
    return l->kinds && l->kinds[b->layer] ? ks__gqa(b, &l->attn, &l->rope, h) : short_conv(b, l, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    struct lfm2 *l = ctx;
    return b->layer < l->n_dense ? ks__mlp(b, KS_CLS_DENSE, "feed_forward", &l->dense, h) : ks__moe(b, &l->moe, h);
}

void ks__arch_lfm2_moe(ks_build *b)
{
    static const char *const kinds[] = { "conv", "full_attention", NULL };
    ks_cfg *c = &b->cfg;
    struct lfm2 l = { 0 };
    ks__common(b);
    b->eps = (float)ks__cfg_f64_or(c, "norm_eps", 1e-5, 0, 1); /* and not rms_norm_eps */
    b->tied = ks__cfg_bool_or(c, "tie_embedding", b->tied);
    l.kinds = ks__layer_kinds(b, "layer_types", kinds);
    if (!l.kinds) ks__cfg_fail(c, KS_E_FORMAT, "the field 'layer_types' is missing");
    l.attn =
        (ks_gqa) { .q_norm = "self_attn.q_layernorm", .k_norm = "self_attn.k_layernorm", .o = "self_attn.out_proj" };
    l.width = ks__cfg_u32_or(c, "conv_L_cache", 3, 1, 64);
    l.bias = ks__cfg_bool_or(c, "conv_bias", false);
    l.dense = (ks_mlp) { .gate = "w1",
                         .up = "w3",
                         .down = "w2",
                         .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX),
                         .act = b->act };
    l.n_dense = ks__cfg_u32_or(c, "num_dense_layers", 2, 0, KS_LAYERS_MAX);
    l.moe = (ks_moe) { .block = "feed_forward",
                       .correction = ks__cfg_bool_or(c, "use_expert_bias", true) ? "feed_forward.expert_bias" : NULL,
                       .n_experts = ks__cfg_experts(b),
                       .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                       .score = KS_SCORE_SIGMOID,
                       .flags = ks__cfg_bool_or(c, "norm_topk_prob", true) ? KS_ROUTE_NORM : 0,
                       .norm_eps = 1e-6f,
                       .scale = (float)ks__cfg_f64_or(c, "routed_scaling_factor", 1, 1e-9, 1e9),
                       .e = { .gate = "w1",
                              .up = "w3",
                              .down = "w2",
                              .n_ff = ks__cfg_u32(c, "moe_intermediate_size", 1, KS_DIM_MAX),
                              .act = b->act } };
    ks__cfg_only_u32(c, "conv_dim", b->d);
    ks__cfg_only_bool(c, "use_pos_enc", true);
    l.rope = ks__rope_read(b, b->head_dim, 1e6, 1);
    ks__stack(b, &(ks_stack) { .norm_mixer = "operator_norm",
                               .norm_ffn = "ffn_norm",
                               .norm_last = "embedding_norm",
                               .mixer = mixer,
                               .ffn = ffn,
                               .ctx = &l });
}
