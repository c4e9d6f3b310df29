/* qwen2_moe, qwen3_moe: GQA, softmax routing; Qwen3 has norms on q and k, Qwen2 biases and a gated shared expert. */
#include "graph/arch.h"

#include "base/base.h"

/* Layers with a dense MLP: those listed, and those that decoder_sparse_step skips. */
static bool is_sparse(ks_build *b, const ks_cfg_node *mlp_only, uint32_t step, uint32_t n_experts)
{
    for (uint32_t i = 0; mlp_only && i < ks__cfg_len(&b->cfg, mlp_only); i++)
        if (ks__cfg_elem_u32(&b->cfg, "mlp_only_layers", ks__cfg_elem(&b->cfg, mlp_only, i), 0, KS_LAYERS_MAX) ==
            b->layer)
            return false;
    return n_experts > 0 && (b->layer + 1) % step == 0;
}

/* use_sliding_window with layer_types, or with the layers from max_window_layers on. */
static uint32_t read_window(ks_build *b, const uint8_t **ret_kinds)
{
    static const char *const kinds[] = { "full_attention", "sliding_attention", NULL };
    ks_cfg *c = &b->cfg;
    bool use = ks__cfg_bool_or(c, "use_sliding_window", false);
    uint32_t window = ks__cfg_u32_or(c, "sliding_window", use ? 4096 : 0, 0, KS_CTX_MAX);
    ks__cfg_ignore(c, "max_window_layers");
    *ret_kinds = ks__layer_kinds(b, "layer_types", kinds);
    return use ? window : 0;
}

static void build(ks_build *b, bool is_qwen3)
{
    ks_cfg *c = &b->cfg;
    const uint8_t *kinds;
    ks__common(b);
    uint32_t window = read_window(b, &kinds);
    if (window && !kinds && !is_qwen3)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'use_sliding_window' without 'layer_types' is not supported");
    ks_mlp dense = { .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX), .act = b->act };
    uint32_t n_experts = ks__cfg_u32_or(c, "num_local_experts", ks__cfg_u32_or(c, "num_experts", 0, 0, KS_EXPERTS_MAX),
                                        0, KS_EXPERTS_MAX);
    ks_moe moe = { .block = "mlp",
                   .n_experts = n_experts,
                   .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                   .score = KS_SCORE_SOFTMAX,
                   .flags = ks__cfg_bool_or(c, "norm_topk_prob", false) ? KS_ROUTE_NORM : 0,
                   .e = { .n_ff = ks__cfg_u32(c, "moe_intermediate_size", 1, KS_DIM_MAX), .act = b->act } };
    ks_mlp shared = { .n_ff = is_qwen3 ? 0 : ks__cfg_u32(c, "shared_expert_intermediate_size", 1, KS_DIM_MAX),
                      .act = b->act };
    uint32_t step = ks__cfg_u32_or(c, "decoder_sparse_step", 1, 1, KS_LAYERS_MAX);
    const ks_cfg_node *mlp_only = ks__cfg_get(c, "mlp_only_layers", KS_CFG_ARRAY);
    bool bias = is_qwen3 ? ks__cfg_bool_or(c, "attention_bias", false) : ks__cfg_bool_or(c, "qkv_bias", true);
    ks_gqa attn = { .bias_qkv = bias, .bias_o = is_qwen3 && bias };
    if (is_qwen3) {
        attn.q_norm = "self_attn.q_norm";
        attn.k_norm = "self_attn.k_norm";
    }
    ks_rope rope = ks__rope_read(b, b->head_dim, 10000, 1);
    ks_norm norm = { 0 };

    int16_t x = ks__embed(b, 1), h = ks__reg(b, "h", b->d);
    for (b->layer = 0; b->layer < b->n_layers && !c->rc; b->layer++) {
        attn.window = is_qwen3 || (kinds && kinds[b->layer]) ? window : 0;
        ks__norm(b, &norm, x, h, "input_layernorm", b->d, b->d);
        ks__add(b, x, ks__gqa(b, &attn, &rope, h), x, 1, 1);
        ks__norm(b, &norm, x, h, "post_attention_layernorm", b->d, b->d);
        if (is_sparse(b, mlp_only, step, n_experts)) {
            ks__add(b, x, ks__moe(b, &moe, h), x, 1, 1);
            if (!is_qwen3) ks__shared_gated(b, "mlp.shared_expert", &shared, h, x);
        } else {
            ks__add(b, x, ks__mlp(b, KS_CLS_DENSE, "mlp", &dense, h), x, 1, 1);
        }
        if (b->layer + 1 < b->n_layers) ks__tap(b, x, b->layer + 1);
    }
    ks__head(b, &norm, "norm", x, 1, 0, false);
}

void ks__arch_qwen2_moe(ks_build *b)
{
    build(b, false);
}

void ks__arch_qwen3_moe(ks_build *b)
{
    build(b, true);
}
