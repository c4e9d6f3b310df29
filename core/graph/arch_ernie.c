/* ernie4_5_moe: GQA with interleaved rotation, softmax scores with a correction bias, shared experts. */
#include "graph/arch.h"

#include "base/base.h"

struct ernie {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    ks_mlp dense, shared;
    uint32_t first, last, every; /* layers with experts */
};

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct ernie *e = ctx;
    return ks__gqa(b, &e->attn, &e->rope, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    struct ernie *e = ctx;
    bool sparse = b->layer >= e->first && b->layer <= e->last && (b->layer + 1) % e->every == 0;
    if (!sparse) return ks__mlp(b, KS_CLS_DENSE, "mlp", &e->dense, h);
    int16_t y = ks__moe(b, &e->moe, h);
    ks__shared(b, "mlp.shared_experts", &e->shared, h, y);
    return y;
}

/* moe_layer_end_index: -1 means the last layer. */
static uint32_t read_last(ks_build *b)
{
    const ks_cfg_node *n = ks__cfg_get(&b->cfg, "moe_layer_end_index", KS_CFG_NUMBER);
    if (!n || (n->is_int && n->i == -1)) return b->n_layers - 1;
    return ks__cfg_u32(&b->cfg, "moe_layer_end_index", 0, KS_LAYERS_MAX);
}

void ks__arch_ernie4_5_moe(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct ernie e = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    bool bias = ks__cfg_bool_or(c, "use_bias", false);
    uint32_t n_ff = ks__cfg_u32(c, "moe_intermediate_size", 1, KS_DIM_MAX);
    uint32_t n_shared = ks__cfg_u32_or(c, "moe_num_shared_experts", 2, 0, 1024);
    e.attn = (ks_gqa) { .bias_qkv = bias, .bias_o = bias };
    e.dense = (ks_mlp) { .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX), .act = b->act, .bias = bias };
    e.shared = (ks_mlp) { .n_ff = ks__wide(b, n_shared, n_ff), .act = b->act, .bias = bias };
    e.moe = (ks_moe) { .block = "mlp",
                       .correction = "mlp.moe_statics.e_score_correction_bias",
                       .n_experts = ks__cfg_u32(c, "moe_num_experts", 1, KS_EXPERTS_MAX),
                       .k = ks__cfg_u32(c, "moe_k", 1, KS_EXPERTS_MAX),
                       .score = KS_SCORE_SOFTMAX,
                       .flags = KS_ROUTE_NORM | KS_ROUTE_NORM_MIN,
                       .norm_eps = (float)ks__cfg_f64_or(c, "moe_norm_min", 1e-12, 0, 1),
                       .e = { .n_ff = n_ff, .act = b->act } };
    e.first = ks__cfg_u32_or(c, "moe_layer_start_index", 1, 0, KS_LAYERS_MAX);
    e.last = read_last(b);
    e.every = ks__cfg_u32_or(c, "moe_layer_interval", 1, 1, KS_LAYERS_MAX);
    static const char *const ignored[] = {
        "moe_capacity",        "moe_use_aux_free",      "num_nextn_predict_layers",
        "use_flash_attention", "weight_share_add_bias", "attention_probs_dropout_prob"
    };
    for (size_t i = 0; i < KS_COUNT(ignored); i++) ks__cfg_ignore(c, ignored[i]);
    ks__cfg_only_str(c, "moe_gate", "topk");
    ks__cfg_only_bool(c, "use_rmsnorm", true);
    (void)ks__cfg_f64_or(c, "compression_ratio", 1, 1, 1);
    ks__cfg_off(c, "sliding_window");
    e.rope = ks__rope_read(b, b->head_dim, 500000, 1);
    e.rope.kind = KS_ROPE_INTER;
    ks__stack(b, &(ks_stack) { .head_bias = bias, .mixer = mixer, .ffn = ffn, .ctx = &e });
}
