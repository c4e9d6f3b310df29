/* Reading config.json: see cfg.h. The file is hostile until it is checked. */
#include "graph/cfg.h"

#include "base/base.h"
#include <krasis/json.h>
#include <math.h>

/* A config has some hundred values; a per-layer list of a deep model some thousand more. */
#define CFG_NODES_MAX 65536u
#define CFG_DEPTH_MAX 16u

/* Fields of the library that wrote the file, of training and of sampling. None of them changes the forward pass. */
static const char *const harmless[] = {
    "_attn_implementation_autoset",
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "aux_loss_alpha",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "encoder_router_logits",
    "eos_token_id",
    "ep_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "keep_last_n_attention_layers",
    "label2id",
    "language_model_only",
    "length_penalty",
    "max_length",
    "min_length",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "quantization_config",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "sep_token_id",
    "seq_aux",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
};

int ks__cfg_fail(ks_cfg *c, int code, const char *fmt, ...)
{
    if (c->rc) return c->rc;
    char msg[sizeof c->err->msg];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    c->rc = ks_fail(c->err, code, "config.json: %s", msg);
    return c->rc;
}

/* ---- parsing */

static uint32_t add_node(ks_cfg *c)
{
    if (c->n_nodes == CFG_NODES_MAX) {
        ks__cfg_fail(c, KS_E_LIMIT, "more than %u values", CFG_NODES_MAX);
        return 0;
    }
    if (c->n_nodes == c->cap_nodes) {
        uint32_t cap = c->cap_nodes ? 2 * c->cap_nodes : 256;
        ks_cfg_node *p = ks_arena_calloc(c->arena, cap, sizeof *p);
        if (!p) {
            ks__cfg_fail(c, KS_E_NOMEM, "out of memory for %u values", cap);
            return 0;
        }
        if (c->nodes) memcpy(p, c->nodes, c->n_nodes * sizeof *p);
        c->nodes = p;
        c->cap_nodes = cap;
    }
    return c->n_nodes++;
}

static const char *take_str(ks_cfg *c, const ks_json *j)
{
    size_t n = 0;
    char *s = ks_arena_alloc(c->arena, j->tok_bytes + 1);
    if (!s) {
        ks__cfg_fail(c, KS_E_NOMEM, "out of memory for a text of %zu bytes", j->tok_bytes);
        return "";
    }
    if (ks_json_str(j, s, j->tok_bytes + 1, &n)) s[0] = 0;
    return s;
}

static void fill(ks_cfg *c, ks_cfg_node *n, const ks_json *j, int t)
{
    switch (t) {
    case KS_JSON_OBJECT: n->kind = KS_CFG_OBJECT; break;
    case KS_JSON_ARRAY: n->kind = KS_CFG_ARRAY; break;
    case KS_JSON_STRING:
        n->kind = KS_CFG_STRING;
        n->str = take_str(c, j);
        break;
    case KS_JSON_NUMBER:
        n->kind = KS_CFG_NUMBER;
        n->is_int = ks_json_i64(j, &n->i) == 0;
        if (ks_json_f64(j, &n->f))
            ks__cfg_fail(c, KS_E_FORMAT, "the number '%.*s' is too large", (int)KS_MIN(j->tok_bytes, 40u), j->tok);
        break;
    case KS_JSON_TRUE:
    case KS_JSON_FALSE:
        n->kind = KS_CFG_BOOL;
        n->i = t == KS_JSON_TRUE;
        break;
    default: n->kind = KS_CFG_NULL; break;
    }
}

static bool has_key(const ks_cfg *c, uint32_t object, const char *key)
{
    for (uint32_t i = c->nodes[object].child; i; i = c->nodes[i].next)
        if (strcmp(c->nodes[i].key, key) == 0) return true;
    return false;
}

static int build_tree(ks_cfg *c, ks_json *j)
{
    uint32_t open[CFG_DEPTH_MAX + 1], last[CFG_DEPTH_MAX + 1], depth = 0;
    const char *key = NULL;
    int t;
    while ((t = ks_json_next(j)) > 0 && !c->rc) {
        if (t == KS_JSON_KEY) {
            key = take_str(c, j);
            if (strlen(key) > 128)
                return ks__cfg_fail(c, KS_E_FORMAT, "a field's name has %zu bytes, more than 128", strlen(key));
            if (has_key(c, open[depth - 1], key))
                return ks__cfg_fail(c, KS_E_FORMAT, "the field '%s' stands there twice", key);
            continue;
        }
        if (t == KS_JSON_OBJECT_END || t == KS_JSON_ARRAY_END) {
            depth--;
            continue;
        }
        uint32_t id = add_node(c);
        if (!id) break;
        fill(c, &c->nodes[id], j, t);
        c->nodes[id].key = key;
        key = NULL;
        if (depth == 0) {
            if (t != KS_JSON_OBJECT) return ks__cfg_fail(c, KS_E_FORMAT, "it is not an object");
            c->root = id;
        } else if (last[depth - 1]) {
            c->nodes[last[depth - 1]].next = id;
        } else {
            c->nodes[open[depth - 1]].child = id;
        }
        if (depth) last[depth - 1] = id;
        if (t == KS_JSON_OBJECT || t == KS_JSON_ARRAY) {
            open[depth] = id;
            last[depth++] = 0;
        }
    }
    return c->rc;
}

int ks__cfg_parse(ks_cfg *c, ks_arena *arena, const char *text, size_t n, ks_err *err)
{
    *c = (ks_cfg) { .arena = arena, .err = err };
    (void)add_node(c); /* index 0 means none */
    if (c->rc) return c->rc;
    ks_json j;
    ks_json_init(&j, text, n, CFG_DEPTH_MAX);
    if (build_tree(c, &j)) return c->rc;
    if (j.error) return c->rc = ks_json_fail(&j, err, "config.json");
    c->at = c->root;
    static const char *const wraps[] = { "text_config", "language_config" };
    for (size_t i = 0; i < KS_COUNT(wraps); i++) {
        const ks_cfg_node *w = ks__cfg_find(c, wraps[i]);
        if (!w) continue;
        if (w->kind != KS_CFG_OBJECT) return ks__cfg_fail(c, KS_E_FORMAT, "'%s' must be an object", wraps[i]);
        c->at = (uint32_t)(w - c->nodes);
        break;
    }
    return 0;
}

/* ---- getters */

static const char *kind_name(const ks_cfg_node *n)
{
    static const char *const names[] = { "", "null", "a boolean", "a number", "text", "an array", "an object" };
    return n->kind == KS_CFG_NUMBER && n->is_int ? "an integer" : names[n->kind];
}

const ks_cfg_node *ks__cfg_find(const ks_cfg *c, const char *key)
{
    for (uint32_t i = c->nodes[c->at].child; i; i = c->nodes[i].next)
        if (strcmp(c->nodes[i].key, key) == 0) return c->nodes[i].kind == KS_CFG_NULL ? NULL : &c->nodes[i];
    return NULL;
}

const ks_cfg_node *ks__cfg_get(ks_cfg *c, const char *key, int kind)
{
    static const char *const names[] = { "", "null", "true or false", "a number", "text", "an array", "an object" };
    const ks_cfg_node *n = ks__cfg_find(c, key);
    if (!n) return NULL;
    c->nodes[n - c->nodes].used = true;
    if (n->kind == kind) return n;
    ks__cfg_fail(c, KS_E_FORMAT, "'%s' must be %s, not %s", key, names[kind], kind_name(n));
    return NULL;
}

static uint32_t bounded(ks_cfg *c, const char *key, const ks_cfg_node *n, uint32_t min, uint32_t max)
{
    if (!n->is_int) {
        ks__cfg_fail(c, KS_E_FORMAT, "'%s' must be an integer, not %g", key, n->f);
        return min;
    }
    if (n->i < (int64_t)min || n->i > (int64_t)max) {
        ks__cfg_fail(c, KS_E_LIMIT, "'%s' is %lld: %u to %u are possible", key, (long long)n->i, min, max);
        return min;
    }
    return (uint32_t)n->i;
}

uint32_t ks__cfg_u32_or(ks_cfg *c, const char *key, uint32_t dflt, uint32_t min, uint32_t max)
{
    const ks_cfg_node *n = ks__cfg_get(c, key, KS_CFG_NUMBER);
    return n ? bounded(c, key, n, min, max) : dflt;
}

uint32_t ks__cfg_u32(ks_cfg *c, const char *key, uint32_t min, uint32_t max)
{
    if (!ks__cfg_find(c, key)) ks__cfg_fail(c, KS_E_FORMAT, "the field '%s' is missing", key);
    return ks__cfg_u32_or(c, key, min, min, max);
}

double ks__cfg_f64_or(ks_cfg *c, const char *key, double dflt, double min, double max)
{
    const ks_cfg_node *n = ks__cfg_get(c, key, KS_CFG_NUMBER);
    if (!n) return dflt;
    if (n->f >= min && n->f <= max) return n->f;
    ks__cfg_fail(c, KS_E_LIMIT, "'%s' is %g: %g to %g are possible", key, n->f, min, max);
    return dflt;
}

bool ks__cfg_bool_or(ks_cfg *c, const char *key, bool dflt)
{
    const ks_cfg_node *n = ks__cfg_get(c, key, KS_CFG_BOOL);
    return n ? n->i != 0 : dflt;
}

const char *ks__cfg_str_or(ks_cfg *c, const char *key, const char *dflt)
{
    const ks_cfg_node *n = ks__cfg_get(c, key, KS_CFG_STRING);
    return n ? n->str : dflt;
}

uint32_t ks__cfg_len(const ks_cfg *c, const ks_cfg_node *array)
{
    uint32_t n = 0;
    for (uint32_t i = array->child; i; i = c->nodes[i].next) n++;
    return n;
}

const ks_cfg_node *ks__cfg_elem(const ks_cfg *c, const ks_cfg_node *array, uint32_t i)
{
    uint32_t at = array->child;
    while (i-- && at) at = c->nodes[at].next;
    return at ? &c->nodes[at] : NULL;
}

bool ks__cfg_list(ks_cfg *c, const char *key, uint32_t len, const ks_cfg_node **ret)
{
    const ks_cfg_node *n = ks__cfg_get(c, key, KS_CFG_ARRAY);
    if (!n) return false;
    uint32_t have = ks__cfg_len(c, n);
    if (have != len) {
        ks__cfg_fail(c, KS_E_FORMAT, "'%s' has %u entries, not %u", key, have, len);
        return false;
    }
    *ret = n;
    return true;
}

uint32_t ks__cfg_elem_u32(ks_cfg *c, const char *key, const ks_cfg_node *n, uint32_t min, uint32_t max)
{
    if (n->kind == KS_CFG_NUMBER) return bounded(c, key, n, min, max);
    ks__cfg_fail(c, KS_E_FORMAT, "'%s' must hold integers, not %s", key, kind_name(n));
    return min;
}

const char *ks__cfg_elem_str(ks_cfg *c, const char *key, const ks_cfg_node *n)
{
    if (n->kind == KS_CFG_STRING) return n->str;
    ks__cfg_fail(c, KS_E_FORMAT, "'%s' must hold text, not %s", key, kind_name(n));
    return "";
}

double ks__cfg_elem_f64(ks_cfg *c, const char *key, const ks_cfg_node *n)
{
    if (n->kind == KS_CFG_NUMBER) return n->f;
    ks__cfg_fail(c, KS_E_FORMAT, "'%s' must hold numbers, not %s", key, kind_name(n));
    return 1.0;
}

/* ---- what is not implemented */

void ks__cfg_ignore(ks_cfg *c, const char *key)
{
    const ks_cfg_node *n = ks__cfg_find(c, key);
    if (n) c->nodes[n - c->nodes].used = true;
}

void ks__cfg_off(ks_cfg *c, const char *key)
{
    const ks_cfg_node *n = ks__cfg_find(c, key);
    if (!n) return;
    ks__cfg_ignore(c, key);
    bool off = (n->kind == KS_CFG_BOOL && !n->i) || (n->kind == KS_CFG_NUMBER && n->f == 0) ||
               (n->kind == KS_CFG_STRING && !*n->str) ||
               ((n->kind == KS_CFG_ARRAY || n->kind == KS_CFG_OBJECT) && !n->child);
    if (off) return;
    if (n->kind == KS_CFG_NUMBER)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'%s' = %g is not supported", key, n->f);
    else
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'%s' = %s is not supported", key,
                     n->kind == KS_CFG_STRING ? n->str
                     : n->kind == KS_CFG_BOOL ? "true"
                                              : kind_name(n));
}

void ks__cfg_only_bool(ks_cfg *c, const char *key, bool value)
{
    if (ks__cfg_bool_or(c, key, value) != value)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'%s' = %s is not supported, only %s", key, value ? "false" : "true",
                     value ? "true" : "false");
}

void ks__cfg_only_u32(ks_cfg *c, const char *key, uint32_t value)
{
    uint32_t v = ks__cfg_u32_or(c, key, value, 0, UINT32_MAX);
    if (v != value) ks__cfg_fail(c, KS_E_UNSUPPORTED, "'%s' = %u is not supported, only %u", key, v, value);
}

void ks__cfg_only_str(ks_cfg *c, const char *key, const char *value)
{
    const char *v = ks__cfg_str_or(c, key, value);
    if (strcmp(v, value) != 0)
        ks__cfg_fail(c, KS_E_UNSUPPORTED, "'%s' = '%.60s' is not supported, only '%s'", key, v, value);
}

static bool is_harmless(const char *key)
{
    for (size_t i = 0; i < KS_COUNT(harmless); i++)
        if (strcmp(harmless[i], key) == 0) return true;
    return false;
}

int ks__cfg_finish(ks_cfg *c, const char *family)
{
    if (c->rc) return c->rc;
    char names[256];
    size_t n = 0;
    uint32_t count = 0;
    for (uint32_t i = c->nodes[c->at].child; i; i = c->nodes[i].next) {
        const ks_cfg_node *f = &c->nodes[i];
        if (f->used || f->kind == KS_CFG_NULL || is_harmless(f->key)) continue;
        int w = snprintf(names + n, sizeof names - n, "%s'%s'", count++ ? ", " : "", f->key);
        n = KS_MIN(n + (size_t)w, sizeof names - 1);
    }
    if (!count) return 0;
    return ks__cfg_fail(c, KS_E_UNSUPPORTED, "%s %s not implemented for '%s' and might change its results", names,
                        count == 1 ? "is" : "are", family);
}
