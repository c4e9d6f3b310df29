/* llama4_text: layers with rotation attend within chunks, layers without see everything, with a temperature that grows
 * with the position; the routed expert gets its input scaled by the sigmoid of the router's logit, the shared expert is
 * added. */
#include "graph/arch.h"

#include "base/base.h"

struct llama4 {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    ks_mlp dense, shared;
    const ks_cfg_node *no_rope, *moe_layers;
    const uint8_t *kinds; /* 1: chunked; NULL: as no_rope says */
    uint32_t no_rope_every, moe_every, chunk;
    float temp_scale, temp_floor;
    bool qk_norm;
};

static bool rotates(ks_build *b, const struct llama4 *l)
{
    if (!l->no_rope) return (b->layer + 1) % l->no_rope_every != 0;
    return ks__cfg_elem_u32(&b->cfg, "no_rope_layers", ks__cfg_elem(&b->cfg, l->no_rope, b->layer), 0, 1) != 0;
}

static bool is_moe(ks_build *b, const struct llama4 *l)
{
    ks_cfg *c = &b->cfg;
    if (!l->moe_layers) return (b->layer + 1) % l->moe_every == 0;
    for (uint32_t i = 0; i < ks__cfg_len(c, l->moe_layers); i++)
        if (ks__cfg_elem_u32(c, "moe_layers", ks__cfg_elem(c, l->moe_layers, i), 0, KS_LAYERS_MAX) == b->layer)
            return true;
    return false;
}

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct llama4 *l = ctx;
    bool rope = rotates(b, l), chunked = l->kinds ? l->kinds[b->layer] != 0 : rope;
    l->attn.chunk = chunked ? l->chunk : 0;
    l->attn.norm_plain = l->qk_norm && rope;
    l->attn.temp_scale = l->temp_scale;
    l->attn.temp_floor = rope ? 0 : l->temp_floor;
    return ks__gqa(b, &l->attn, rope ? &l->rope : NULL, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    struct llama4 *l = ctx;
    if (!is_moe(b, l)) return ks__mlp(b, KS_CLS_DENSE, "feed_forward", &l->dense, h);
    int16_t y = ks__moe(b, &l->moe, h);
    ks__shared(b, "feed_forward.shared_expert", &l->shared, h, y);
    return y;
}

static void read_layers(ks_build *b, struct llama4 *l)
{
    static const char *const kinds[] = { "full_attention", "chunked_attention", NULL };
    ks_cfg *c = &b->cfg;
    const ks_cfg_node *n = ks__cfg_get(c, "no_rope_layers", KS_CFG_ARRAY);
    if (n && n->child) { /* an empty list means the default */
        l->no_rope = n;
        if (ks__cfg_len(c, n) < b->n_layers)
            ks__cfg_fail(c, KS_E_FORMAT, "'no_rope_layers' has %u entries for %u layers", ks__cfg_len(c, n),
                         b->n_layers);
    }
    l->no_rope_every = ks__cfg_u32_or(c, "no_rope_layer_interval", 4, 1, KS_LAYERS_MAX);
    l->moe_layers = ks__cfg_get(c, "moe_layers", KS_CFG_ARRAY);
    l->moe_every = ks__cfg_u32_or(c, "interleave_moe_layer_step", 1, 1, KS_LAYERS_MAX);
    l->kinds = ks__layer_kinds(b, "layer_types", kinds);
}

/* attn_temperature_tuning: older files hold a number for it. */
static bool tuned(ks_cfg *c)
{
    const ks_cfg_node *n = ks__cfg_find(c, "attn_temperature_tuning");
    if (n && n->kind == KS_CFG_NUMBER) return ks__cfg_u32(c, "attn_temperature_tuning", 0, UINT32_MAX) != 0;
    return ks__cfg_bool_or(c, "attn_temperature_tuning", true);
}

void ks__arch_llama4_text(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct llama4 l = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    read_layers(b, &l);
    bool bias = ks__cfg_bool_or(c, "attention_bias", false);
    uint32_t n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX);
    l.attn = (ks_gqa) { .norm_after_rope = true, .bias_qkv = bias, .bias_o = bias };
    l.qk_norm = ks__cfg_bool_or(c, "use_qk_norm", true);
    l.chunk = ks__cfg_u32_or(c, "attention_chunk_size", 8192, 1, KS_CTX_MAX);
    l.temp_scale = (float)ks__cfg_f64_or(c, "attn_scale", 0.1, 0, 1e3);
    l.temp_floor = (float)ks__cfg_f64_or(c, "floor_scale", 8192, 1, 1e9);
    if (!tuned(c)) l.temp_floor = 0;
    l.moe = (ks_moe) { .block = "feed_forward",
                       .router = "router",
                       .n_experts = ks__cfg_experts(b),
                       .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                       .score = KS_SCORE_SIGMOID,
                       .flags = KS_ROUTE_LATE,
                       .weigh_input = true,
                       .fused_transposed = true,
                       .e = { .n_ff = n_ff, .act = b->act } };
    l.shared = l.moe.e;
    l.dense = (ks_mlp) { .n_ff = ks__cfg_u32(c, "intermediate_size_mlp", 1, KS_DIM_MAX), .act = b->act };
    ks__cfg_ignore(c, "for_llm_compressor");
    l.rope = ks__rope_read(b, b->head_dim, 500000, 1);
    l.rope.kind = KS_ROPE_INTER;
    ks__stack(b, &(ks_stack) { .mixer = mixer, .ffn = ffn, .ctx = &l });
}
