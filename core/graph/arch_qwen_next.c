/* qwen3_next, qwen3_5_moe: three layers in four are gated delta rules (linear attention), the rest GQA with a gate;
 * norms are stored as w - 1. */
#include "graph/arch.h"

#include "base/base.h"

struct next {
    ks_gqa attn;
    ks_rope rope;
    ks_moe moe;
    ks_mlp dense, shared;
    const uint8_t *kinds; /* 1: full attention; NULL: every n-th */
    uint32_t full_every, n_k, n_v, d_k, d_v, width;
    bool split; /* qwen3_5: separate projections */
};

/* Rows of a projection that is packed by key head: `block` rows from `first` of each of the n_k groups of `step`. */
static ks_wpart packed(ks_build *b, const struct next *n, const char *tensor, uint32_t first, uint32_t block,
                       uint32_t step)
{
    ks_wpart p = ks__rows(b, tensor, first, n->n_k * block);
    p.row_block = block;
    p.row_step = step;
    return p;
}

/* q | k | v | z, whatever the checkpoint's order. */
static void project_qkvz(ks_build *b, const struct next *n, int16_t h, int16_t y)
{
    uint32_t key = n->n_k * n->d_k, value = n->n_v * n->d_v, v = n->n_v / n->n_k * n->d_v, step = 2 * n->d_k + 2 * v;
    const char *all = "linear_attn.in_proj_qkvz.weight";
    ks_wpart parts[4];
    uint32_t n_parts = 0;
    if (n->split) {
        parts[n_parts++] = ks__rows(b, "linear_attn.in_proj_qkv.weight", 0, 2 * key + value);
        parts[n_parts++] = ks__rows(b, "linear_attn.in_proj_z.weight", 0, value);
    } else {
        parts[n_parts++] = packed(b, n, all, 0, n->d_k, step);
        parts[n_parts++] = packed(b, n, all, n->d_k, n->d_k, step);
        parts[n_parts++] = packed(b, n, all, 2 * n->d_k, v, step);
        parts[n_parts++] = packed(b, n, all, 2 * n->d_k + v, v, step);
    }
    ks_wspec s = { .cls = KS_CLS_ATTN, .n_out = 2 * key + 2 * value, .n_in = b->d, .with = -1 };
    ks__linear_w(b, KS_CLS_ATTN, h, y, ks__weight(b, "linear_attn.qkvz", s, parts, n_parts), -1);
}

/* b | a: two numbers a value head; they set decay and strength, so they stay exact. */
static void project_ba(ks_build *b, const struct next *n, int16_t h, int16_t y)
{
    uint32_t share = n->n_v / n->n_k;
    const char *all = "linear_attn.in_proj_ba.weight";
    ks_wpart parts[2];
    if (n->split) {
        parts[0] = ks__rows(b, "linear_attn.in_proj_b.weight", 0, n->n_v);
        parts[1] = ks__rows(b, "linear_attn.in_proj_a.weight", 0, n->n_v);
    } else {
        parts[0] = packed(b, n, all, 0, share, 2 * share);
        parts[1] = packed(b, n, all, share, share, 2 * share);
    }
    ks_wspec s = { .cls = KS_CLS_ATTN, .flags = KS_WSPEC_EXACT, .n_out = 2 * n->n_v, .n_in = b->d, .with = -1 };
    ks__linear_w(b, KS_CLS_ATTN, h, y, ks__weight(b, "linear_attn.ba", s, parts, 2), -1);
}

static int32_t a_log(ks_build *b, uint32_t n)
{
    ks_wpart part = ks__rows(b, "linear_attn.A_log", 0, n);
    ks_wspec s = { .cls = KS_CLS_ATTN, .flags = KS_WSPEC_VECTOR | KS_WSPEC_NEG_EXP, .n_out = 1, .n_in = n, .with = -1 };
    return ks__weight(b, "linear_attn.A_log", s, &part, 1);
}

static int16_t delta(ks_build *b, const struct next *n, int16_t h)
{
    uint32_t key = n->n_k * n->d_k, value = n->n_v * n->d_v, mixed_n = 2 * key + value;
    int16_t all = ks__reg(b, "qkvz", mixed_n + value), mixed = ks__view(b, "qkvz.qkv", all, 0, mixed_n),
            z = ks__view(b, "qkvz.z", all, mixed_n, value);
    int16_t ba = ks__reg(b, "ba", 2 * n->n_v), vb = ks__view(b, "ba.b", ba, 0, n->n_v),
            va = ks__view(b, "ba.a", ba, n->n_v, n->n_v);
    int16_t conv = ks__reg(b, "conv", mixed_n), q = ks__view(b, "conv.q", conv, 0, key),
            k = ks__view(b, "conv.k", conv, key, key);
    int16_t v = ks__view(b, "conv.v", conv, 2 * key, value), o = ks__reg(b, "attn", value), y = ks__reg(b, "y", b->d);
    static const ks_norm l2 = { .kind = KS_NORM_L2, .eps = 1e-6f }, plain = { 0 };

    project_qkvz(b, n, h, all);
    project_ba(b, n, h, ba);
    ks__conv(b, mixed, conv, "linear_attn.conv1d", n->width, KS_ACT1_SILU, false);
    ks__norm(b, &l2, q, q, NULL, n->d_k, n->d_k);
    ks__norm(b, &l2, k, k, NULL, n->d_k, n->d_k);
    int32_t a = a_log(b, n->n_v), dt = ks__vector(b, KS_CLS_ATTN, "linear_attn.dt_bias", n->n_v);
    uint32_t state = ks__state(b, (ks_state) { .kind = KS_STATE_RECURRENT, .floats = n->n_v * n->d_k * n->d_v });
    ks_op *op = ks__op(b, KS_OP_DELTA);
    op->cls = KS_CLS_ATTN;
    op->in[0] = q;
    op->in[1] = k;
    op->in[2] = v;
    op->in[3] = vb;
    op->in[4] = va;
    op->out[0] = o;
    op->w[0] = a;
    op->w[1] = dt;
    op->state = (int32_t)state;
    op->u.delta.n_k_heads = n->n_k;
    op->u.delta.n_v_heads = n->n_v;
    op->u.delta.d_k = n->d_k;
    op->u.delta.d_v = n->d_v;
    ks__norm(b, &plain, o, o, "linear_attn.norm", n->d_v, n->d_v);
    ks__mul(b, o, z, o, KS_ACT1_SILU, 0);
    ks__linear(b, KS_CLS_ATTN, 0, o, y, "linear_attn.out_proj", false);
    return y;
}

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct next *n = ctx;
    bool full = n->kinds ? n->kinds[b->layer] != 0 : (b->layer + 1) % n->full_every == 0;
    return full ? ks__gqa(b, &n->attn, &n->rope, h) : delta(b, n, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    struct next *n = ctx;
    if (!n->split && !ks__sparse_layer(b, n->moe.n_experts)) return ks__mlp(b, KS_CLS_DENSE, "mlp", &n->dense, h);
    int16_t y = ks__moe(b, &n->moe, h);
    ks__shared_gated(b, "mlp.shared_expert", &n->shared, h, y);
    return y;
}

static void read_delta(ks_build *b, struct next *n)
{
    static const char *const kinds[] = { "linear_attention", "full_attention", NULL };
    ks_cfg *c = &b->cfg;
    n->kinds = ks__layer_kinds(b, "layer_types", kinds);
    n->full_every = ks__cfg_u32_or(c, "full_attention_interval", 4, 1, KS_LAYERS_MAX);
    n->n_k = ks__cfg_u32_or(c, "linear_num_key_heads", 16, 1, KS_HEADS_MAX);
    n->n_v = ks__cfg_u32_or(c, "linear_num_value_heads", 32, 1, KS_HEADS_MAX);
    n->d_k = ks__cfg_u32_or(c, "linear_key_head_dim", 128, 1, 1024);
    n->d_v = ks__cfg_u32_or(c, "linear_value_head_dim", 128, 1, 1024);
    n->width = ks__cfg_u32_or(c, "linear_conv_kernel_dim", 4, 1, 64);
    if (n->n_v % n->n_k)
        ks__cfg_fail(c, KS_E_FORMAT, "'linear_num_value_heads' = %u is no multiple of 'linear_num_key_heads' = %u",
                     n->n_v, n->n_k);
}

static void build(ks_build *b, bool split)
{
    ks_cfg *c = &b->cfg;
    struct next n = { .split = split };
    ks_norm norm = { .offset = 1 };
    ks__common(b);
    if (b->act != KS_ACT_SILU) ks__cfg_fail(c, KS_E_UNSUPPORTED, "'hidden_act' of linear attention can only be silu");
    read_delta(b, &n);
    bool bias = ks__cfg_bool_or(c, "attention_bias", false);
    n.attn = (ks_gqa) { .q_norm = "self_attn.q_norm",
                        .k_norm = "self_attn.k_norm",
                        .norm = norm,
                        .gated = true,
                        .bias_qkv = bias,
                        .bias_o = bias };
    n.dense = (ks_mlp) { .n_ff = ks__cfg_u32_or(c, "intermediate_size", 5632, 1, KS_DIM_MAX), .act = b->act };
    n.shared = (ks_mlp) { .n_ff = ks__cfg_u32(c, "shared_expert_intermediate_size", 1, KS_DIM_MAX), .act = b->act };
    bool normed = split || ks__cfg_bool_or(c, "norm_topk_prob", true);
    ks__cfg_ignore(c, "norm_topk_prob"); /* qwen3_5 always does */
    n.moe = (ks_moe) { .block = "mlp",
                       .n_experts = ks__cfg_experts(b),
                       .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                       .score = KS_SCORE_SOFTMAX,
                       .flags = normed ? KS_ROUTE_NORM : 0,
                       .e = { .n_ff = ks__cfg_u32(c, "moe_intermediate_size", 1, KS_DIM_MAX), .act = b->act } };
    ks__cfg_only_bool(c, "attn_output_gate", true);
    ks__cfg_off(c, "use_sliding_window");
    static const char *const ignored[] = { "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype",
                                           "num_nextn_predict_layers" };
    for (size_t i = 0; i < KS_COUNT(ignored); i++) ks__cfg_ignore(c, ignored[i]);
    n.rope = ks__rope_read(b, b->head_dim, 10000, 0.25);
    ks__stack(b, &(ks_stack) { .norm = norm, .mixer = mixer, .ffn = ffn, .ctx = &n });
}

void ks__arch_qwen3_next(ks_build *b)
{
    build(b, false);
}

void ks__arch_qwen3_5_moe(ks_build *b)
{
    build(b, true);
}
