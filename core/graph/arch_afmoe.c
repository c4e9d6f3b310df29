/* afmoe: norms before and after each half of a layer, a gate on the attention's output, positions only where it slides.
 */
#include "graph/arch.h"

#include "base/base.h"
#include <math.h>

struct afmoe {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    ks_mlp dense, shared;
    const uint8_t *kinds; /* 1: sliding; NULL: all but every n-th */
    uint32_t n_dense, window, full_every;
};

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct afmoe *a = ctx;
    bool slides = a->kinds ? a->kinds[b->layer] != 0 : (b->layer + 1) % a->full_every != 0;
    a->attn.window = slides ? a->window : 0;
    return ks__gqa(b, &a->attn, slides ? &a->rope : NULL, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    struct afmoe *a = ctx;
    if (b->layer < a->n_dense) return ks__mlp(b, KS_CLS_DENSE, "mlp", &a->dense, h);
    int16_t y = ks__moe(b, &a->moe, h);
    ks__shared(b, "mlp.shared_experts", &a->shared, h, y);
    return y;
}

void ks__arch_afmoe(ks_build *b)
{
    static const char *const kinds[] = { "full_attention", "sliding_attention", NULL };
    ks_cfg *c = &b->cfg;
    struct afmoe a = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    uint32_t n_ff = ks__cfg_u32(c, "moe_intermediate_size", 1, KS_DIM_MAX);
    a.attn = (ks_gqa) { .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm", .gate = "self_attn.gate_proj" };
    ks__cfg_off(c, "attention_bias");
    a.dense = (ks_mlp) { .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX), .act = b->act };
    a.shared =
        (ks_mlp) { .n_ff = ks__wide(b, ks__cfg_u32_or(c, "num_shared_experts", 2, 0, 1024), n_ff), .act = b->act };
    a.moe = (ks_moe) { .block = "mlp",
                       .router = "router.gate",
                       .correction = "mlp.expert_bias",
                       .n_experts = ks__cfg_experts(b),
                       .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                       .score = KS_SCORE_SIGMOID,
                       .flags = KS_ROUTE_NORM,
                       .norm_eps = 1e-20f,
                       .scale = (float)ks__cfg_f64_or(c, "route_scale", 1, 1e-9, 1e9),
                       .e = { .n_ff = n_ff, .act = b->act } };
    a.n_dense = ks__cfg_u32_or(c, "num_dense_layers", 1, 0, KS_LAYERS_MAX);
    a.window = ks__cfg_u32_or(c, "sliding_window", 1024, 0, KS_CTX_MAX);
    a.full_every = ks__cfg_u32_or(c, "global_attn_every_n_layers", 4, 1, KS_LAYERS_MAX);
    a.kinds = ks__layer_kinds(b, "layer_types", kinds);
    bool mup = ks__cfg_bool_or(c, "mup_enabled", false);
    static const char *const ones[] = { "n_group", "topk_group", "num_expert_groups", "num_limited_groups" };
    for (size_t i = 0; i < KS_COUNT(ones); i++) ks__cfg_only_u32(c, ones[i], 1);
    ks__cfg_only_str(c, "score_func", "sigmoid");
    ks__cfg_only_bool(c, "route_norm", true);
    ks__cfg_ignore(c, "load_balance_coeff");
    ks__cfg_ignore(c, "use_grouped_mm");
    a.rope = ks__rope_read(b, b->head_dim, 10000, 1);
    ks__stack(b, &(ks_stack) { .norm_ffn = "pre_mlp_layernorm",
                               .after_mixer = "post_attention_layernorm",
                               .after_ffn = "post_mlp_layernorm",
                               .embed_scale = mup ? sqrtf((float)b->d) : 1.0f,
                               .mixer = mixer,
                               .ffn = ffn,
                               .ctx = &a });
}
