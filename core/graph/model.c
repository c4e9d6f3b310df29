/* Opening a model: finds config.json and the tensors' prefix, lets the family build, checks the result. See model.h. */
#include "graph/model.h"

#include "base/base.h"
#include "base/file.h"
#include "graph/arch.h"

#define MODEL_BYTES_MAX ((size_t)512 << 20) /* ops and specs of a thousand layers need a tenth */
#define CONFIG_BYTES_MAX (16u << 20)        /* real ones have some kilobytes */

static const ks_arch archs[] = {
#define ARCH_ROW(type, fn, models, mixer, ffn) { #type, ks__arch_##fn, models, mixer, ffn },
    KS_ARCH_MAP(ARCH_ROW)
#undef ARCH_ROW
};

static const char *const types[] = {
#define ARCH_TYPE(type, fn, models, mixer, ffn) #type,
    KS_ARCH_MAP(ARCH_TYPE)
#undef ARCH_TYPE
        NULL,
};

const char *const *ks_model_types(void)
{
    return types;
}

/* What a checkpoint's linear weights may be stored as (core/store/qconf.c decides) and what its text may come in
 * (core/text/tokenizer.c): the other two things that decide whether a folder loads. */
static const char *const formats[][2] = {
    { "BF16, F16, F32, F64", "plain tensors; one file or shards with an index" },
    { "`fp8`", "e4m3 with scales per 128 x 128 block, per row or per tensor" },
    { "`compressed-tensors`", "`pack-quantized` INT4, kept exactly; `float-quantized` FP8" },
    { "`mxfp4`", "gpt-oss blocks and scales, kept exactly" },
    { "`gptq`", "4 bits, group 32, 64, 128 or -1, `sym` or not, `desc_act`, v1 and v2" },
    { "`awq`", "4 bits, `version` gemm, with or without zero points" },
};
static const char *const tokenizers[][2] = {
    { "tokenizer.json", "BPE, byte-level or with byte fallback; all pre-tokenizers of the families above" },
    { "tiktoken.model, hy.tiktoken", "rank files (Kimi, Hunyuan)" },
    { "tokenizer.model", "SentencePiece BPE" },
};

static void markdown_rows(ks_buf *b, const char *head, size_t n, const char *const rows[][2])
{
    ks_buf_printf(b, "\n%s|---|---|\n", head);
    for (size_t i = 0; i < n; i++) ks_buf_printf(b, "| %s | %s |\n", rows[i][0], rows[i][1]);
}

void ks_model_markdown(ks_buf *b)
{
    ks_buf_adds(b, "# Supported models\n\n"
                   "<!-- Generated: test_model_config --models > docs/models.md -->\n\n"
                   "A model is recognised by the `model_type` of its config.json, or of the `text_config` or\n"
                   "`language_config` in it. A field that would change the result and is not implemented is an error\n"
                   "that names it.\n\n"
                   "| `model_type` | checkpoints, for example | attention | feed-forward |\n"
                   "|---|---|---|---|\n");
    for (size_t i = 0; i < KS_COUNT(archs); i++)
        ks_buf_printf(b, "| `%s` | %s | %s | %s |\n", archs[i].type, archs[i].models, archs[i].mixer, archs[i].ffn);
    ks_buf_adds(
        b, "\n"
           "Attention over a KV cache works with `--kv-dtype` f32, bf16 and fp8_e4m3. Rotary types: default, linear,\n"
           "yarn, llama3; dynamic and longrope up to the length below which their tables are constant (the model's\n"
           "context is cut there).\n");
    markdown_rows(b, "## Source formats\n\n| weights, or `quant_method` | what of it |\n", KS_COUNT(formats), formats);
    markdown_rows(b, "## Tokenizers\n\n| file | what of it |\n", KS_COUNT(tokenizers), tokenizers);
    ks_buf_adds(b, "\nDetails: quant-formats.md, tokenizers.md, templates.md.\n");
}

static const ks_arch *find_arch(const char *type)
{
    for (size_t i = 0; i < KS_COUNT(archs); i++)
        if (strcmp(archs[i].type, type) == 0) return &archs[i];
    return NULL;
}

static int unknown_type(ks_cfg *c, const char *type)
{
    char list[400];
    size_t n = 0;
    for (size_t i = 0; i < KS_COUNT(archs) && n < sizeof list; i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", archs[i].type);
    return ks__cfg_fail(c, KS_E_UNSUPPORTED, "model_type '%.60s' is not supported: %s are", type, list);
}

/* Where the text model lies among the tensors of a (perhaps multimodal) checkpoint. */
static void find_prefix(ks_build *b)
{
    static const struct {
        const char *prefix, *head;
    } places[] = {
        { "model.", "lm_head.weight" },
        { "model.language_model.", "lm_head.weight" },
        { "language_model.model.", "language_model.lm_head.weight" },
        { "model.text_model.", "lm_head.weight" },
        { "language_model.", "lm_head.weight" },
        { "", "lm_head.weight" },
    };
    char name[128];
    for (size_t i = 0; i < KS_COUNT(places); i++) {
        (void)snprintf(name, sizeof name, "%sembed_tokens.weight", places[i].prefix);
        if (!ks__has_full(b, name)) continue;
        b->prefix = places[i].prefix;
        b->head = places[i].head;
        return;
    }
    b->head = "lm_head.weight";
    ks__cfg_fail(
        &b->cfg, KS_E_FORMAT,
        "the checkpoint has no tensor 'model.embed_tokens.weight', nor one under the prefixes of multimodal models");
}

static int finish(const ks_build *b, const ks_arch *a, ks_model *ret)
{
    ret->weights = ks_arena_calloc(&ret->arena, b->n_specs, sizeof *ret->weights);
    if (!ret->weights) return ks_fail(b->cfg.err, KS_E_NOMEM, "out of memory for %u weights", b->n_specs);
    ret->specs = b->specs;
    ret->arch = a->type;
    ret->graph = (ks_graph) {
        .size = sizeof(ks_graph),
        .op_size = sizeof(ks_op),
        .reg_size = sizeof(ks_reg),
        .weight_size = sizeof(ks_weight),
        .state_size = sizeof(ks_state),
        .n_ops = b->n_ops,
        .n_regs = b->n_regs,
        .n_weights = b->n_specs,
        .n_states = b->n_states,
        .ops = b->ops,
        .regs = b->regs,
        .weights = ret->weights,
        .states = b->states,
        .n_layers = b->n_layers,
        .d_model = b->d,
        .n_vocab = b->n_vocab,
        .n_ctx = b->n_ctx,
        .n_experts = b->n_experts,
        .n_taps = b->n_taps,
        .logits = b->logits,
    };
    return 0;
}

static int build_from(ks_build *b, const char *text, size_t n, ks_model *ret, ks_err *err)
{
    int rc = ks__cfg_parse(&b->cfg, b->arena, text, n, err);
    if (rc) return rc;
    const char *type = ks__cfg_str_or(&b->cfg, "model_type", "");
    if (b->cfg.rc) return b->cfg.rc;
    if (!*type) return ks__cfg_fail(&b->cfg, KS_E_FORMAT, "the field 'model_type' is missing");
    const ks_arch *a = find_arch(type);
    if (!a) return unknown_type(&b->cfg, type);
    find_prefix(b);
    if (b->cfg.rc) return b->cfg.rc;
    a->build(b);
    if ((rc = ks__cfg_finish(&b->cfg, a->type))) return rc;
    return finish(b, a, ret);
}

int ks__model_build(const char *text, size_t n, ks_find_fn find, const void *ctx, ks_model *ret, ks_err *err)
{
    ks_err own;
    ks_model m = { 0 };
    ks_arena_init(&m.arena, MODEL_BYTES_MAX);
    ks_build b = { .arena = &m.arena, .find = find, .find_ctx = ctx, .layer = KS_NO_LAYER, .prefix = "", .logits = -1 };
    int rc = build_from(&b, text, n, &m, err ? err : &own);
    if (rc)
        ks_arena_fini(&m.arena);
    else
        *ret = m;
    return rc;
}

static const ks_tensor *find_tensor(const void *ctx, const char *name)
{
    return ks_ckpt_find(ctx, name);
}

int ks_model_open(const ks_ckpt *c, ks_model *ret, ks_err *err)
{
    char *text = NULL, *path = ks_path_join(ks_ckpt_dir(c), "config.json");
    size_t n = 0;
    if (!path) return ks_fail(err, KS_E_NOMEM, "out of memory for a path");
    int rc = ks_file_read(path, CONFIG_BYTES_MAX, &text, &n, err);
    if (!rc) rc = ks__model_build(text, n, find_tensor, c, ret, err);
    free(path);
    free(text);
    return rc;
}

void ks_model_close(ks_model *m)
{
    if (!m) return;
    ks_arena_fini(&m->arena);
    *m = (ks_model) { 0 };
}
