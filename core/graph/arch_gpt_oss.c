/* gpt_oss: attention sinks, every other layer slides, clamped SwiGLU with biases, router with a bias that softmaxes the
 * chosen logits. */
#include "graph/arch.h"

#include "base/base.h"

struct oss {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    const uint8_t *kinds; /* 1: sliding; NULL: even layers */
    uint32_t window;
};

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct oss *o = ctx;
    bool slides = o->kinds ? o->kinds[b->layer] != 0 : b->layer % 2 == 0;
    o->attn.window = slides ? o->window : 0;
    return ks__gqa(b, &o->attn, &o->rope, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    return ks__moe(b, &((struct oss *)ctx)->moe, h);
}

void ks__arch_gpt_oss(ks_build *b)
{
    static const char *const kinds[] = { "full_attention", "sliding_attention", NULL };
    ks_cfg *c = &b->cfg;
    struct oss o = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    bool bias = ks__cfg_bool_or(c, "attention_bias", true);
    o.attn = (ks_gqa) { .bias_qkv = bias, .bias_o = bias, .sinks = true };
    o.window = ks__cfg_u32_or(c, "sliding_window", 128, 0, KS_CTX_MAX);
    o.kinds = ks__layer_kinds(b, "layer_types", kinds);
    o.moe = (ks_moe) { .block = "mlp",
                       .router = "router",
                       .router_bias = true,
                       .n_experts = ks__cfg_experts(b),
                       .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                       .score = KS_SCORE_SOFTMAX,
                       .flags = KS_ROUTE_LATE,
                       .biases = true,
                       .fused_transposed = true,
                       .fused_interleaved = true,
                       .e = { .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX),
                              .act = KS_ACT_SWIGLU_CLAMP,
                              .limit = (float)ks__cfg_f64_or(c, "swiglu_limit", 7, 1e-6, 1e6),
                              .alpha = (float)ks__cfg_f64_or(c, "swiglu_alpha", 1.702, 1e-6, 1e6) } };
    ks__cfg_ignore(c, "experts_per_token");      /* the older name of num_experts_per_tok */
    ks__cfg_ignore(c, "initial_context_length"); /* rope_scaling says it again */
    if (!ks__cfg_find(c, "rope_parameters") && !ks__cfg_find(c, "rope_scaling"))
        ks__cfg_fail(c, KS_E_FORMAT, "the field 'rope_scaling' (or 'rope_parameters') is missing");
    o.rope = ks__rope_read(b, b->head_dim, 150000, 1);
    ks__stack(b, &(ks_stack) { .mixer = mixer, .ffn = ffn, .ctx = &o });
}
