/* qwen2_moe, qwen3_moe: GQA, softmax routing; Qwen3 has norms on q and k, Qwen2 biases and a gated shared expert. */
#include "graph/arch.h"

#include "base/base.h"

struct qwen {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    ks_mlp dense, shared;
    const uint8_t *kinds; /* of attention, 1: sliding; NULL: all the same */
    uint32_t window;
};

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct qwen *q = ctx;
    q->attn.window = !q->kinds || q->kinds[b->layer] ? q->window : 0;
    return ks__gqa(b, &q->attn, &q->rope, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    struct qwen *q = ctx;
    if (!ks__sparse_layer(b, q->moe.n_experts)) return ks__mlp(b, KS_CLS_DENSE, "mlp", &q->dense, h);
    int16_t y = ks__moe(b, &q->moe, h);
    if (q->shared.n_ff) ks__shared_gated(b, "mlp.shared_expert", &q->shared, h, y);
    return y;
}

/* use_sliding_window with layer_types; Qwen3 slides in all layers where there are none. */
static void read_window(ks_build *b, struct qwen *q, bool is_qwen3)
{
    static const char *const kinds[] = { "full_attention", "sliding_attention", NULL };
    ks_cfg *c = &b->cfg;
    bool use = ks__cfg_bool_or(c, "use_sliding_window", false);
    uint32_t window = ks__cfg_u32_or(c, "sliding_window", 4096, 0, KS_CTX_MAX);
    ks__cfg_ignore(c, "max_window_layers");
    q->kinds = ks__layer_kinds(b, "layer_types", kinds);
    q->window = use ? window : 0;
    if (use && !q->kinds && !is_qwen3)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'use_sliding_window' without 'layer_types' is not supported");
}

static void build(ks_build *b, bool is_qwen3)
{
    ks_cfg *c = &b->cfg;
    struct qwen q = { 0 };
    ks__common(b);
    read_window(b, &q, is_qwen3);
    q.dense = (ks_mlp) { .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX), .act = b->act };
    q.moe = (ks_moe) { .block = "mlp",
                       .n_experts = ks__cfg_experts(b),
                       .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                       .score = KS_SCORE_SOFTMAX,
                       .flags = ks__cfg_bool_or(c, "norm_topk_prob", false) ? KS_ROUTE_NORM : 0,
                       .e = { .n_ff = ks__cfg_u32(c, "moe_intermediate_size", 1, KS_DIM_MAX), .act = b->act } };
    if (!is_qwen3)
        q.shared = (ks_mlp) { .n_ff = ks__cfg_u32(c, "shared_expert_intermediate_size", 1, KS_DIM_MAX), .act = b->act };
    bool bias = is_qwen3 ? ks__cfg_bool_or(c, "attention_bias", false) : ks__cfg_bool_or(c, "qkv_bias", true);
    q.attn = (ks_gqa) { .bias_qkv = bias, .bias_o = is_qwen3 && bias };
    if (is_qwen3) {
        q.attn.q_norm = "self_attn.q_norm";
        q.attn.k_norm = "self_attn.k_norm";
    }
    q.rope = ks__rope_read(b, b->head_dim, 10000, 1);
    ks__stack(b, &(ks_stack) { .mixer = mixer, .ffn = ffn, .ctx = &q });
}

void ks__arch_qwen2_moe(ks_build *b)
{
    build(b, false);
}

void ks__arch_qwen3_moe(ks_build *b)
{
    build(b, true);
}
