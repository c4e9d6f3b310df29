/* glm4_moe, dots1, exaone_moe: GQA with norms on q and k, and DeepSeek's routing (ds.h). */
#include "graph/arch.h"
#include "graph/ds.h"

#include "base/base.h"

struct glm {
    ks_gqa attn;
    ks_rope rope;
    ks_ds ds;
    const uint8_t *kinds; /* 1: sliding; NULL: none */
    uint32_t window;
    bool nope; /* layers that see everything have no positions */
};

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct glm *g = ctx;
    bool slides = g->kinds && g->kinds[b->layer];
    g->attn.window = slides ? g->window : 0;
    return ks__gqa(b, &g->attn, g->nope && !slides ? NULL : &g->rope, h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    return ks__ds_ffn(b, &((struct glm *)ctx)->ds, h);
}

static const char *const attn_kinds[] = { "full_attention", "sliding_attention", NULL };

static void run(ks_build *b, struct glm *g)
{
    ks__stack(b, &(ks_stack) { .mixer = mixer, .ffn = ffn, .ctx = g });
}

void ks__arch_glm4_moe(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct glm g = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    ks__ds_read(b, "sigmoid", 1, &g.ds);
    g.attn.bias_qkv = ks__cfg_bool_or(c, "attention_bias", false);
    if (ks__cfg_bool_or(c, "use_qk_norm", false)) {
        g.attn.q_norm = "self_attn.q_norm";
        g.attn.k_norm = "self_attn.k_norm";
    }
    g.rope = ks__rope_read(b, b->head_dim, 10000, 0.5);
    run(b, &g);
}

void ks__arch_dots1(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct glm g = { 0 };
    ks__common(b);
    ks__ds_read(b, "noaux_tc", 0, &g.ds); /* what dots' files say for sigmoid scores */
    ks__cfg_off(c, "use_sliding_window"); /* layer_types would say it */
    bool bias = ks__cfg_bool_or(c, "attention_bias", false);
    g.attn = (ks_gqa) { .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm", .bias_qkv = bias, .bias_o = bias };
    g.window = ks__cfg_u32_or(c, "sliding_window", 0, 0, KS_CTX_MAX);
    g.kinds = ks__layer_kinds(b, "layer_types", attn_kinds);
    uint32_t full = ks__cfg_u32_or(c, "max_window_layers", KS_LAYERS_MAX, 0, KS_LAYERS_MAX);
    if (!g.kinds && g.window && full < b->n_layers)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'max_window_layers' = %u without 'layer_types' is not supported", full);
    g.rope = ks__rope_read(b, b->head_dim, 10000, 1);
    run(b, &g);
}

/* Without layer_types: sliding_window_pattern, every how many layers one sees everything. */
static const uint8_t *exaone_kinds(ks_build *b, uint32_t window)
{
    ks_cfg *c = &b->cfg;
    const uint8_t *kinds = ks__layer_kinds(b, "layer_types", attn_kinds);
    if (kinds || c->rc) {
        ks__cfg_ignore(c, "sliding_window_pattern");
        return kinds;
    }
    uint32_t every = ks__cfg_u32_or(c, "sliding_window_pattern", 4, 0, KS_LAYERS_MAX);
    uint8_t *made = ks_arena_calloc(b->arena, b->n_layers, 1);
    if (!made) ks__cfg_fail(c, KS_E_NOMEM, "out of memory for %u layers", b->n_layers);
    for (uint32_t i = 0; made && i < b->n_layers; i++) made[i] = window && every && (i + 1) % every != 0;
    return made;
}

void ks__arch_exaone_moe(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    struct glm g = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    ks__ds_read(b, "sigmoid", 1, &g.ds);
    g.ds.moe.correction = "mlp.e_score_correction_bias";
    g.attn = (ks_gqa) { .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm" };
    g.window = ks__cfg_u32_or(c, "sliding_window", 0, 0, KS_CTX_MAX);
    g.kinds = exaone_kinds(b, g.window);
    g.nope = g.window != 0;
    g.rope = ks__rope_read(b, b->head_dim, 10000, 1);
    run(b, &g);
}
