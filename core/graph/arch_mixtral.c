/* mixtral, phimoe, minimax_m2, olmoe, granitemoe: GQA and a router in every layer, without shared experts. They differ
 * in norms, in how the router chooses, and in names. */
#include "graph/arch.h"

#include "base/base.h"

struct plain {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
};

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct plain *p = ctx;
    return ks__gqa(b, &p->attn, &p->rope, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    return ks__moe(b, &((struct plain *)ctx)->moe, h);
}

/* The expert fields that all of them have. */
static ks_moe read_moe(ks_build *b, const char *block, uint32_t score, uint32_t flags)
{
    ks_cfg *c = &b->cfg;
    return (ks_moe) { .block = block,
                      .n_experts = ks__cfg_experts(b),
                      .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                      .score = score,
                      .flags = flags,
                      .e = { .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX), .act = b->act } };
}

static void w123(ks_moe *m)
{
    m->e.gate = "w1";
    m->e.up = "w3";
    m->e.down = "w2";
}

static void run(ks_build *b, struct plain *p, ks_stack s)
{
    s.mixer = mixer;
    s.ffn = ffn;
    s.ctx = p;
    ks__stack(b, &s);
}

void ks__arch_mixtral(ks_build *b)
{
    struct plain p = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    p.attn.window = ks__cfg_u32_or(&b->cfg, "sliding_window", 0, 0, KS_CTX_MAX);
    p.moe = read_moe(b, "block_sparse_moe", KS_SCORE_SOFTMAX, KS_ROUTE_NORM);
    w123(&p.moe);
    p.rope = ks__rope_read(b, b->head_dim, 1e6, 1);
    run(b, &p, (ks_stack) { 0 });
}

void ks__arch_phimoe(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct plain p = { 0 };
    ks_norm layer = { .kind = KS_NORM_LAYER, .bias = true };
    b->eps = 1e-5f;
    ks__common(b);
    p.attn.bias_qkv = p.attn.bias_o = ks__cfg_bool_or(c, "attention_bias", false);
    p.attn.window = ks__cfg_u32_or(c, "sliding_window", 0, 0, KS_CTX_MAX);
    p.moe = read_moe(b, "block_sparse_moe", KS_SCORE_SOFTMAX, KS_ROUTE_SPARSEMIX);
    p.moe.jitter = (float)ks__cfg_f64_or(c, "router_jitter_noise", 0.01, 0, 10);
    ks__cfg_ignore(c, "input_jitter_noise"); /* of training */
    w123(&p.moe);
    if (p.moe.k != 2)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'num_experts_per_tok' = %u is not supported for phimoe, only 2", p.moe.k);
    bool head_bias = ks__cfg_bool_or(c, "lm_head_bias", false);
    p.rope = ks__rope_read(b, b->head_dim, 1e6, 1);
    run(b, &p, (ks_stack) { .norm = layer, .head_bias = head_bias });
}

/* Fields of MiniMax's own files; the ones of its linear-attention ancestor must say that nothing of it is left. */
static void check_minimax(ks_build *b)
{
    static const char *const ones[] = {
        "layernorm_full_attention_alpha",  "layernorm_full_attention_beta", "layernorm_linear_attention_alpha",
        "layernorm_linear_attention_beta", "layernorm_mlp_alpha",           "layernorm_mlp_beta"
    };
    static const char *const ignored[] = { "mtp_transformer_layers", "num_mtp_modules", "use_mtp",
                                           "mlp_intermediate_size",  "shared_moe_mode", "use_routing_bias",
                                           "max_model_len" };
    ks_cfg *c = &b->cfg;
    const ks_cfg_node *kinds = ks__cfg_get(c, "attn_type_list", KS_CFG_ARRAY);
    for (uint32_t i = 0; kinds && i < ks__cfg_len(c, kinds); i++)
        (void)ks__cfg_elem_u32(c, "attn_type_list", ks__cfg_elem(c, kinds, i), 1, 1);
    for (size_t i = 0; i < KS_COUNT(ones); i++) (void)ks__cfg_f64_or(c, ones[i], 1, 1, 1);
    for (size_t i = 0; i < KS_COUNT(ignored); i++) ks__cfg_ignore(c, ignored[i]);
    ks__cfg_off(c, "shared_intermediate_size");
    ks__cfg_only_str(c, "scoring_func", "sigmoid");
    ks__cfg_only_str(c, "qk_norm_type", "per_layer");
    ks__cfg_only_bool(c, "use_qk_norm", true);
    ks__cfg_off(c, "sliding_window");
}

void ks__arch_minimax_m2(ks_build *b)
{
    struct plain p = { 0 };
    ks__common(b);
    check_minimax(b);
    p.attn = (ks_gqa) { .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm", .norm_whole = true };
    p.moe = read_moe(b, "block_sparse_moe", KS_SCORE_SIGMOID, KS_ROUTE_NORM);
    p.moe.correction = "block_sparse_moe.e_score_correction_bias";
    w123(&p.moe);
    uint32_t rotary = ks__cfg_u32_or(&b->cfg, "rotary_dim", b->head_dim, 2, 4096);
    p.rope = ks__rope_read(b, b->head_dim, 5e6, (double)rotary / b->head_dim);
    run(b, &p, (ks_stack) { 0 });
}

void ks__arch_olmoe(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct plain p = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    p.attn = (ks_gqa) { .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm", .norm_whole = true };
    p.attn.bias_qkv = p.attn.bias_o = ks__cfg_bool_or(c, "attention_bias", false);
    p.attn.clip = (float)ks__cfg_f64_or(c, "clip_qkv", 0, 0, 1e9);
    p.moe = read_moe(b, "mlp", KS_SCORE_SOFTMAX, ks__cfg_bool_or(c, "norm_topk_prob", false) ? KS_ROUTE_NORM : 0);
    p.rope = ks__rope_read(b, b->head_dim, 10000, 1);
    run(b, &p, (ks_stack) { 0 });
}

void ks__arch_granitemoe(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct plain p = { 0 };
    ks__common(b);
    p.attn.bias_qkv = p.attn.bias_o = ks__cfg_bool_or(c, "attention_bias", false);
    p.attn.scale = (float)ks__cfg_f64_or(c, "attention_multiplier", 1, 1e-9, 1e9);
    p.moe = read_moe(b, "block_sparse_moe", KS_SCORE_SOFTMAX, KS_ROUTE_LATE);
    p.moe.router = "router.layer";
    p.moe.fused = "input_linear.weight";
    p.moe.fused_down = "output_linear.weight";
    p.rope = ks__rope_read(b, b->head_dim, 10000, 1);
    double logits = ks__cfg_f64_or(c, "logits_scaling", 1, 1e-9, 1e9);
    run(b, &p,
        (ks_stack) { .embed_scale = (float)ks__cfg_f64_or(c, "embedding_multiplier", 1, 1e-9, 1e9),
                     .residual = (float)ks__cfg_f64_or(c, "residual_multiplier", 1, 1e-9, 1e9),
                     .logit_scale = (float)(1.0 / logits) });
}
