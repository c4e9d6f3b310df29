/* deepseek_v2, deepseek_v3, glm4_moe_lite: latent attention and DeepSeek's routing; deepseek_v32, glm_moe_dsa: the same
 * with a sparse indexer. */
#include "graph/arch.h"
#include "graph/ds.h"
#include "graph/mla.h"

#include "base/base.h"

struct deepseek {
    ks_mla mla;
    ks_ds ds;
    const uint8_t *own_index; /* 1: the layer has an indexer of its own; NULL: all */
};

static int16_t mixer(ks_build *b, void *ctx, int16_t h)
{
    struct deepseek *d = ctx;
    return ks__mla(b, &d->mla, !d->own_index || d->own_index[b->layer], h);
}

static int16_t ffn(ks_build *b, void *ctx, int16_t h)
{
    return ks__ds_ffn(b, &((struct deepseek *)ctx)->ds, h);
}

static void run(ks_build *b, struct deepseek *d)
{
    ks__cfg_off(&b->cfg, "mlp_bias");
    ks__stack(b, &(ks_stack) { .mixer = mixer, .ffn = ffn, .ctx = d });
}

/* Softmax scores, never renormalised; groups by their best expert. */
static void read_v2_routing(ks_build *b, ks_moe *m)
{
    ks_cfg *c = &b->cfg;
    const char *method = ks__cfg_str_or(c, "topk_method", "greedy");
    m->correction = NULL;
    m->score = KS_SCORE_SOFTMAX;
    m->flags = 0;
    if (strcmp(method, "greedy") == 0)
        m->n_group = m->topk_group = 1;
    else if (strcmp(method, "group_limited_greedy") != 0)
        ks__cfg_fail(c, KS_E_UNSUPPORTED,
                     "'topk_method' = '%.60s' is not supported: greedy and group_limited_greedy are", method);
    ks__cfg_off(c, "norm_topk_prob"); /* the reference ignores it, its files say false */
}

void ks__arch_deepseek_v2(ks_build *b)
{
    struct deepseek d = { 0 };
    ks__common(b);
    ks__ds_read(b, "softmax", 0, &d.ds);
    read_v2_routing(b, &d.ds.moe);
    ks__mla_read(b, &d.mla);
    d.mla.rope.kind = KS_ROPE_INTER;
    run(b, &d);
}

void ks__arch_deepseek_v3(ks_build *b)
{
    struct deepseek d = { 0 };
    ks__common(b);
    ks__ds_read(b, "sigmoid", 3, &d.ds);
    ks__mla_read(b, &d.mla);
    run(b, &d);
}

static void read_index(ks_build *b, ks_mla *m)
{
    ks_cfg *c = &b->cfg;
    m->index_heads = ks__cfg_u32(c, "index_n_heads", 1, KS_HEADS_MAX);
    m->index_dim = ks__cfg_u32(c, "index_head_dim", 2, 4096);
    m->index_top_k = ks__cfg_u32(c, "index_topk", 1, 1u << 20);
    static const char *const kinds[] = { "deepseek_sparse_attention", NULL };
    (void)ks__layer_kinds(b, "layer_types", kinds); /* there is one kind, any other is an error */
    if (!m->q_rank) ks__cfg_fail(c, KS_E_FORMAT, "the field 'q_lora_rank' is missing: the indexer needs it");
    if (m->index_dim < m->rope_dim)
        ks__cfg_fail(c, KS_E_FORMAT, "'index_head_dim' = %u is less than 'qk_rope_head_dim' = %u", m->index_dim,
                     m->rope_dim);
}

void ks__arch_deepseek_v32(ks_build *b)
{
    struct deepseek d = { 0 };
    ks__common(b);
    ks__ds_read(b, "sigmoid", 3, &d.ds);
    ks__mla_read(b, &d.mla);
    read_index(b, &d.mla);
    run(b, &d);
}

/* indexer_types; or a pattern of F and S; or every index_topk_freq-th from an offset on. */
static const uint8_t *read_own_index(ks_build *b)
{
    static const char *const kinds[] = { "shared", "full", NULL };
    ks_cfg *c = &b->cfg;
    const uint8_t *own = ks__layer_kinds(b, "indexer_types", kinds);
    const ks_cfg_node *list = ks__cfg_find(c, "index_topk_pattern");
    const char *pattern = list && list->kind == KS_CFG_STRING ? ks__cfg_str_or(c, "index_topk_pattern", "") : NULL;
    uint32_t freq = ks__cfg_u32_or(c, "index_topk_freq", 1, 0, KS_LAYERS_MAX),
             offset = ks__cfg_u32_or(c, "index_skip_topk_offset", 2, 0, KS_LAYERS_MAX);
    if (own || c->rc) {
        ks__cfg_ignore(c, "index_topk_pattern");
        return own;
    }
    if (list && !pattern) return ks__layer_kinds(b, "index_topk_pattern", kinds);
    if (pattern && strlen(pattern) != b->n_layers)
        ks__cfg_fail(c, KS_E_FORMAT, "'index_topk_pattern' has %zu letters for %u layers", strlen(pattern),
                     b->n_layers);
    uint8_t *made = ks_arena_calloc(b->arena, b->n_layers, 1);
    if (!made) ks__cfg_fail(c, KS_E_NOMEM, "out of memory for %u layers", b->n_layers);
    for (uint32_t i = 0; !c->rc && i < b->n_layers; i++) {
        uint32_t since = i + 1 > offset ? i + 1 - offset : 0;
        made[i] = pattern ? pattern[i] == 'F' : since % KS_MAX(freq, 1u) == 0;
    }
    return made;
}

void ks__arch_glm_moe_dsa(ks_build *b)
{
    struct deepseek d = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    ks__ds_read(b, "sigmoid", 3, &d.ds);
    ks__mla_read(b, &d.mla);
    read_index(b, &d.mla);
    d.mla.index_rope = KS_ROPE_INTER;
    d.own_index = read_own_index(b);
    if (d.own_index && !d.own_index[0])
        ks__cfg_fail(&b->cfg, KS_E_FORMAT, "'indexer_types' of layer 0 is 'shared': there is nothing to share yet");
    run(b, &d);
}

void ks__arch_glm4_moe_lite(ks_build *b)
{
    struct deepseek d = { 0 };
    b->eps = 1e-5f;
    ks__common(b);
    ks__ds_read(b, "sigmoid", 1, &d.ds);
    ks__mla_read(b, &d.mla);
    run(b, &d);
}
