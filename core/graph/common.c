/* What most families share: the common fields, embedding, head, lists with one entry a layer. See build.h. */
#include "graph/build.h"

#include "base/base.h"

uint32_t ks__act(ks_build *b, const char *field, const char *dflt)
{
    static const struct {
        const char *name;
        uint32_t act;
    } acts[] = {
        { "silu", KS_ACT_SILU },          { "swish", KS_ACT_SILU },
        { "gelu", KS_ACT_GELU },          { "gelu_pytorch_tanh", KS_ACT_GELU_TANH },
        { "gelu_new", KS_ACT_GELU_TANH },
    };
    const char *name = ks__cfg_str_or(&b->cfg, field, dflt);
    for (size_t i = 0; i < KS_COUNT(acts); i++)
        if (strcmp(acts[i].name, name) == 0) return acts[i].act;
    ks__cfg_fail(&b->cfg, KS_E_UNSUPPORTED,
                 "'%s' = '%.60s' is not supported: silu, swish, gelu, gelu_new and gelu_pytorch_tanh are", field, name);
    return KS_ACT_SILU;
}

/* tie_word_embeddings may stand in the outer part of a wrapped config; where it is absent, a missing head says it. */
static bool read_tied(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    bool has_head = ks__has_full(b, b->head);
    uint32_t at = c->at;
    if (!ks__cfg_find(c, "tie_word_embeddings")) c->at = c->root;
    bool tied = ks__cfg_bool_or(c, "tie_word_embeddings", !has_head);
    c->at = at;
    return tied;
}

void ks__common(ks_build *b)
{
    ks_cfg *c = &b->cfg;
    b->d = ks__cfg_u32(c, "hidden_size", 1, KS_DIM_MAX);
    b->n_layers = ks__cfg_u32(c, "num_hidden_layers", 1, KS_LAYERS_MAX);
    b->n_vocab = ks__cfg_u32(c, "vocab_size", 1, 1u << 24);
    b->n_ctx = ks__cfg_u32(c, "max_position_embeddings", 1, KS_CTX_MAX);
    b->n_heads = ks__cfg_u32(c, "num_attention_heads", 1, KS_HEADS_MAX);
    b->n_kv_heads = ks__cfg_u32_or(c, "num_key_value_heads", b->n_heads, 1, KS_HEADS_MAX);
    b->head_dim = ks__cfg_u32_or(c, "head_dim", KS_MAX(b->d / b->n_heads, 1u), 1, 4096);
    b->act = ks__act(b, "hidden_act", "silu");
    b->eps = (float)ks__cfg_f64_or(c, "rms_norm_eps", b->eps != 0 ? (double)b->eps : 1e-6, 0, 1);
    b->tied = read_tied(b);
    if (b->n_heads % b->n_kv_heads)
        ks__cfg_fail(c, KS_E_FORMAT, "'num_attention_heads' = %u is no multiple of 'num_key_value_heads' = %u",
                     b->n_heads, b->n_kv_heads);
}

uint32_t ks__cfg_experts(ks_build *b)
{
    static const char *const names[] = { "num_experts", "n_routed_experts", "num_local_experts" };
    uint32_t n = 0;
    for (size_t i = 0; i < KS_COUNT(names); i++) n = ks__cfg_u32_or(&b->cfg, names[i], n, 0, KS_EXPERTS_MAX);
    return n;
}

uint32_t ks__wide(ks_build *b, uint32_t n, uint32_t n_ff)
{
    uint32_t width;
    if (!__builtin_mul_overflow(n, n_ff, &width) && width <= KS_DIM_MAX) return width;
    ks__cfg_fail(&b->cfg, KS_E_LIMIT, "%u shared experts of width %u are wider than %u together", n, n_ff, KS_DIM_MAX);
    return 0;
}

bool ks__sparse_layer(ks_build *b, uint32_t n_experts)
{
    ks_cfg *c = &b->cfg;
    uint32_t step = ks__cfg_u32_or(c, "decoder_sparse_step", 1, 1, KS_LAYERS_MAX);
    const ks_cfg_node *dense = ks__cfg_get(c, "mlp_only_layers", KS_CFG_ARRAY);
    for (uint32_t i = 0; dense && i < ks__cfg_len(c, dense); i++)
        if (ks__cfg_elem_u32(c, "mlp_only_layers", ks__cfg_elem(c, dense, i), 0, KS_LAYERS_MAX) == b->layer)
            return false;
    return n_experts > 0 && (b->layer + 1) % step == 0;
}

int16_t ks__embed(ks_build *b, float scale)
{
    int16_t x = ks__reg(b, "x", b->d);
    ks_wpart part = ks__rows(b, "embed_tokens.weight", 0, b->n_vocab);
    ks_wspec s = { .cls = KS_CLS_EMBED, .flags = KS_WSPEC_TABLE, .n_out = b->n_vocab, .n_in = b->d, .with = -1 };
    int32_t table = ks__weight(b, "embed", s, &part, 1);
    ks_op *op = ks__op(b, KS_OP_EMBED);
    op->cls = KS_CLS_EMBED;
    op->out[0] = x;
    op->w[0] = table;
    op->f[0] = scale;
    ks__tap(b, x, 0);
    return x;
}

void ks__head(ks_build *b, const ks_norm *n, const char *norm, int16_t x, float scale, float softcap, bool bias)
{
    b->layer = KS_NO_LAYER;
    int16_t h = ks__reg(b, "h", b->d), last = ks__reg_out(b, "last", b->d),
            logits = ks__reg_out(b, "logits", b->n_vocab);
    ks__norm(b, n, x, h, norm, b->d, b->d);
    ks__tap(b, h, b->n_layers);
    ks_op *op = ks__op(b, KS_OP_SELECT);
    op->in[0] = h;
    op->out[0] = last;

    ks_wpart part = { .tensor = b->tied ? ks__tensor(b, "embed_tokens.weight") : b->head,
                      .row_count = b->n_vocab,
                      .row_block = b->n_vocab };
    ks_wspec s = { .cls = KS_CLS_HEAD, .n_out = b->n_vocab, .n_in = b->d, .with = -1 };
    int32_t w = ks__weight(b, "head", s, &part, 1), wb = -1;
    if (bias) {
        ks_wpart bp = { .tensor =
                            ks_arena_printf(b->arena, "%.*sbias", (int)(strlen(b->head) - strlen("weight")), b->head),
                        .row_count = b->n_vocab,
                        .row_block = b->n_vocab };
        if (!bp.tensor) ks__cfg_fail(&b->cfg, KS_E_NOMEM, "out of memory for a tensor's name");
        ks_wspec bs = { .cls = KS_CLS_HEAD, .flags = KS_WSPEC_VECTOR, .n_out = 1, .n_in = b->n_vocab, .with = -1 };
        wb = ks__weight(b, "head.bias", bs, &bp, 1);
    }
    op = ks__linear_w(b, KS_CLS_HEAD, last, logits, w, wb);
    op->f[0] = scale;
    op->f[1] = softcap;
    b->logits = logits;
}

const uint8_t *ks__layer_kinds(ks_build *b, const char *field, const char *const *names)
{
    const ks_cfg_node *list;
    if (!ks__cfg_list(&b->cfg, field, b->n_layers, &list)) return NULL;
    uint8_t *kinds = ks_arena_calloc(b->arena, b->n_layers, 1);
    if (!kinds) {
        ks__cfg_fail(&b->cfg, KS_E_NOMEM, "out of memory for %u layers", b->n_layers);
        return NULL;
    }
    for (uint32_t i = 0; i < b->n_layers; i++) {
        const char *s = ks__cfg_elem_str(&b->cfg, field, ks__cfg_elem(&b->cfg, list, i));
        uint32_t k = 0;
        while (names[k] && strcmp(names[k], s) != 0) k++;
        if (!names[k])
            ks__cfg_fail(&b->cfg, KS_E_UNSUPPORTED, "'%s' has '%.60s' for layer %u, which is not supported", field, s,
                         i);
        kinds[i] = (uint8_t)k;
    }
    return kinds;
}

static const char *or_name(const char *s, const char *dflt)
{
    return s ? s : dflt;
}

static float or_one(float f)
{
    return f != 0 ? f : 1.0f;
}

void ks__stack(ks_build *b, const ks_stack *s)
{
    const char *mixer = or_name(s->norm_mixer, "input_layernorm"),
               *ffn = or_name(s->norm_ffn, "post_attention_layernorm");
    int16_t x = ks__embed(b, or_one(s->embed_scale)), h = ks__reg(b, "h", b->d), y;
    for (b->layer = 0; b->layer < b->n_layers && !b->cfg.rc; b->layer++) {
        ks__norm(b, &s->norm, x, h, mixer, b->d, b->d);
        y = s->mixer(b, s->ctx, h);
        if (s->after_mixer) ks__norm(b, &s->norm, y, y, s->after_mixer, b->d, b->d);
        ks__add(b, x, y, x, 1, or_one(s->residual));
        ks__norm(b, &s->norm, x, h, ffn, b->d, b->d);
        y = s->ffn(b, s->ctx, h);
        if (s->after_ffn) ks__norm(b, &s->norm, y, y, s->after_ffn, b->d, b->d);
        ks__add(b, x, y, x, 1, or_one(s->residual));
        if (b->layer + 1 < b->n_layers) ks__tap(b, x, b->layer + 1);
    }
    ks__head(b, &s->norm, or_name(s->norm_last, "norm"), x, or_one(s->logit_scale), 0, s->head_bias);
}
