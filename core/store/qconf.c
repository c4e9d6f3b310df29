/* quantization_config of config.json: which storage scheme the checkpoint uses. */
#include "base/base.h"
#include "base/file.h"
#include "store/source.h"
#include <krasis/json.h>
#include <strings.h>

#define CONFIG_MAX ((size_t)16 << 20)
#define DEPTH_MAX 64u

typedef struct found {
    bool any;   /* there is a quantization_config */
    ks_json at; /* its first member */
    char method[40], format[40];
    int64_t block[2], bits, group;
    bool asymmetric, second_group; /* second_group: groups that differ */
} found;

/* Members that say something about activations or list modules: not about how weights are stored. */
static bool is_skipped(const ks_json *j)
{
    static const char *const names[] = { "input_activations", "output_activations",
                                         "kv_cache_scheme",   "ignore",
                                         "targets",           "modules_to_not_convert",
                                         "sparsity_config",   "transform_config" };
    for (size_t i = 0; i < KS_COUNT(names); i++)
        if (ks_json_is(j, names[i])) return true;
    return false;
}

static int read_block(ks_json *j, found *q)
{
    int t = ks_json_next(j);
    if (t == KS_JSON_NULL) return 0;
    for (int i = 0; i < 2; i++)
        if (t != KS_JSON_ARRAY || ks_json_next(j) != KS_JSON_NUMBER || ks_json_i64(j, &q->block[i]) != 0)
            return KS_E_FORMAT;
    return ks_json_next(j) == KS_JSON_ARRAY_END ? 0 : KS_E_FORMAT;
}

static int read_int(ks_json *j, int64_t *dst, bool *differs)
{
    int64_t v = 0;
    int t = ks_json_next(j);
    if (t != KS_JSON_NULL && (t != KS_JSON_NUMBER || ks_json_i64(j, &v) != 0)) return KS_E_FORMAT;
    if (*dst != INT64_MIN && *dst != v) *differs = true;
    *dst = v;
    return 0;
}

static int read_text(ks_json *j, char *dst, size_t cap)
{
    if (ks_json_next(j) != KS_JSON_STRING) return KS_E_FORMAT;
    return ks_json_str(j, dst, cap, NULL);
}

/* The members of one object, and of those inside it that describe weights (config_groups.X.weights). */
static int read_members(ks_json *j, found *q)
{
    int t;
    while ((t = ks_json_next(j)) == KS_JSON_KEY) {
        int rc = 0;
        if (is_skipped(j)) {
            rc = ks_json_skip(j);
        } else if (ks_json_is(j, "quant_method")) {
            rc = read_text(j, q->method, sizeof q->method);
        } else if (ks_json_is(j, "format")) {
            rc = read_text(j, q->format, sizeof q->format);
        } else if (ks_json_is(j, "weight_block_size")) {
            rc = read_block(j, q);
        } else if (ks_json_is(j, "num_bits")) {
            rc = read_int(j, &q->bits, &q->second_group);
        } else if (ks_json_is(j, "group_size")) {
            rc = read_int(j, &q->group, &q->second_group);
        } else if (ks_json_is(j, "symmetric")) {
            if (ks_json_next(j) != KS_JSON_TRUE) q->asymmetric = true;
        } else {
            t = ks_json_next(j);
            if (t == KS_JSON_OBJECT)
                rc = read_members(j, q); /* no deeper than the reader allows */
            else if (t == KS_JSON_ARRAY)
                rc = ks_json_skip(j);
        }
        if (rc != 0) return rc;
    }
    return t == KS_JSON_OBJECT_END ? 0 : KS_E_FORMAT;
}

static bool is_packed(const found *q)
{
    return strcmp(q->method, "gptq") == 0 || strcmp(q->method, "awq") == 0;
}

/* The object that was just opened. Its method decides who reads the rest, wherever in it that stands. */
static int read_quantization(ks_json *j, found *q)
{
    ks_json ahead = *j;
    int rc = 0;
    q->any = true;
    q->at = *j;
    while (rc == 0 && ks_json_next(&ahead) == KS_JSON_KEY) /* errors are met again below */
        rc = ks_json_is(&ahead, "quant_method") ? read_text(&ahead, q->method, sizeof q->method) : ks_json_skip(&ahead);
    return rc == 0 && is_packed(q) ? ks_json_skip(j) : read_members(j, q);
}

static int read_config(ks_json *j, found *q, bool inner)
{
    int t;
    if (ks_json_next(j) != KS_JSON_OBJECT) return KS_E_FORMAT;
    while ((t = ks_json_next(j)) == KS_JSON_KEY) {
        int rc;
        if (ks_json_is(j, "quantization_config")) {
            t = ks_json_next(j);
            rc = t == KS_JSON_OBJECT ? read_quantization(j, q) : t == KS_JSON_NULL ? 0 : KS_E_FORMAT;
        } else if (!inner && ks_json_is(j, "text_config")) {
            rc = read_config(j, q, true);
        } else {
            rc = ks_json_skip(j);
        }
        if (rc != 0) return rc;
    }
    return t == KS_JSON_OBJECT_END ? 0 : KS_E_FORMAT;
}

/* ---- GPTQ and AWQ: every key is known, or refused by name */

enum { BITS, GROUP, SYM, ZERO_POINT, DESC_ACT, CHECKPOINT_FORMAT, VERSION, PACK, MARLIN, DYNAMIC, MODULES, OTHER };

#define GPTQ 1u
#define AWQ 2u

typedef struct key_row {
    const char *name;
    uint32_t methods, what;
} key_row;

/* OTHER: how it was made, and how other programs run it. MODULES: lists of what is quantized and what is not; the
 * tensors that are there say the same. */
static const key_row keys[] = {
    { "bits", GPTQ | AWQ, BITS },
    { "group_size", GPTQ | AWQ, GROUP },
    { "sym", GPTQ, SYM },
    { "zero_point", AWQ, ZERO_POINT },
    { "desc_act", GPTQ, DESC_ACT },
    { "checkpoint_format", GPTQ, CHECKPOINT_FORMAT },
    { "version", AWQ, VERSION },
    { "pack_dtype", GPTQ, PACK },
    { "is_marlin_format", GPTQ, MARLIN },
    { "dynamic", GPTQ, DYNAMIC },
    { "modules_to_not_convert", GPTQ | AWQ, MODULES },
    { "modules_in_block_to_quantize", GPTQ, MODULES },
    { "modules_in_block", GPTQ, MODULES },
    { "quant_method", GPTQ | AWQ, OTHER },
    { "damp_percent", GPTQ, OTHER },
    { "damp_auto_increment", GPTQ, OTHER },
    { "static_groups", GPTQ, OTHER },
    { "true_sequential", GPTQ, OTHER },
    { "mse", GPTQ, OTHER },
    { "lm_head", GPTQ, OTHER },
    { "meta", GPTQ, OTHER },
    { "model_name_or_path", GPTQ, OTHER },
    { "model_file_base_name", GPTQ, OTHER },
    { "model_seqlen", GPTQ, OTHER },
    { "block_name_to_quantize", GPTQ, OTHER },
    { "module_name_preceding_first_block", GPTQ, OTHER },
    { "tokenizer", GPTQ, OTHER },
    { "dataset", GPTQ, OTHER },
    { "batch_size", GPTQ, OTHER },
    { "pad_token_id", GPTQ, OTHER },
    { "cache_block_outputs", GPTQ, OTHER },
    { "use_cuda_fp16", GPTQ, OTHER },
    { "use_exllama", GPTQ, OTHER },
    { "disable_exllama", GPTQ, OTHER },
    { "max_input_length", GPTQ, OTHER },
    { "exllama_config", GPTQ | AWQ, OTHER },
    { "backend", GPTQ | AWQ, OTHER },
    { "do_fuse", AWQ, OTHER },
    { "fuse_max_seq_len", AWQ, OTHER },
    { "modules_to_fuse", AWQ, OTHER },
};

typedef struct packed_conf {
    int64_t bits, group;
    bool symmetric, ordered, version2;
} packed_conf;

static int bad_value(const char *path, const found *q, const char *key, const char *supported, ks_err *err)
{
    return ks_fail(err, KS_E_UNSUPPORTED, "'%s': quantization_config of %s: '%s' must be %s", path, q->method, key,
                   supported);
}

/* The current string is one of two, in lower or upper case. */
static bool is_text(const ks_json *j, int t, const char *a, const char *b)
{
    char text[40];
    return t == KS_JSON_STRING && ks_json_str(j, text, sizeof text, NULL) == 0 &&
           (strcasecmp(text, a) == 0 || strcasecmp(text, b) == 0);
}

static bool read_flag(int t, bool *ret)
{
    *ret = t == KS_JSON_TRUE;
    return t == KS_JSON_TRUE || t == KS_JSON_FALSE;
}

/* An array of names, or of such arrays; null. */
static bool read_names(ks_json *j, int t)
{
    uint32_t depth = 0;
    if (t == KS_JSON_NULL) return true;
    for (; t == KS_JSON_ARRAY || t == KS_JSON_ARRAY_END || (t == KS_JSON_STRING && depth > 0); t = ks_json_next(j)) {
        depth += t == KS_JSON_ARRAY;
        depth -= t == KS_JSON_ARRAY_END;
        if (depth == 0) return true;
    }
    return false;
}

/* The value of a key. */
static int read_value(ks_json *j, const char *path, const found *q, const key_row *key, packed_conf *p, ks_err *err)
{
    bool set;
    if (key->what == OTHER) return ks_json_skip(j);
    int t = ks_json_next(j);
    switch (key->what) {
    case BITS:
        if (t == KS_JSON_NUMBER && ks_json_i64(j, &p->bits) == 0 && p->bits == 4) return 0;
        return bad_value(path, q, key->name, "4", err);
    case GROUP:
        if (t == KS_JSON_NUMBER && ks_json_i64(j, &p->group) == 0 &&
            (p->group == -1 || p->group == 32 || p->group == 64 || p->group == 128))
            return 0;
        return bad_value(path, q, key->name, "-1, 32, 64 or 128", err);
    case SYM: return read_flag(t, &p->symmetric) ? 0 : bad_value(path, q, key->name, "true or false", err);
    case ZERO_POINT:
        if (!read_flag(t, &set)) return bad_value(path, q, key->name, "true or false", err);
        p->symmetric = !set;
        return 0;
    case DESC_ACT: return read_flag(t, &p->ordered) ? 0 : bad_value(path, q, key->name, "true or false", err);
    case CHECKPOINT_FORMAT:
        p->version2 = is_text(j, t, "gptq_v2", "gptq_v2");
        return p->version2 || is_text(j, t, "gptq", "gptq") ? 0 : bad_value(path, q, key->name, "gptq or gptq_v2", err);
    case VERSION: return is_text(j, t, "gemm", "gemm") ? 0 : bad_value(path, q, key->name, "gemm", err);
    case PACK: return is_text(j, t, "int32", "torch.int32") ? 0 : bad_value(path, q, key->name, "int32", err);
    case MARLIN: return t == KS_JSON_FALSE ? 0 : bad_value(path, q, key->name, "false", err);
    case DYNAMIC:
        if (t == KS_JSON_NULL || (t == KS_JSON_OBJECT && ks_json_next(j) == KS_JSON_OBJECT_END)) return 0;
        return bad_value(path, q, key->name, "empty: settings of single modules are not supported", err);
    default: return read_names(j, t) ? 0 : bad_value(path, q, key->name, "a list of names", err);
    }
}

static int judge_packed(const char *path, const found *q, ks_qconf *ret, ks_err *err)
{
    ks_json j = q->at; /* read to its end once: it is well-formed */
    const uint32_t method = strcmp(q->method, "gptq") == 0 ? GPTQ : AWQ;
    packed_conf p = { .bits = 0 };
    while (ks_json_next(&j) == KS_JSON_KEY) {
        const key_row *key = NULL;
        for (size_t i = 0; i < KS_COUNT(keys) && !key; i++)
            if ((keys[i].methods & method) && ks_json_is(&j, keys[i].name)) key = &keys[i];
        if (!key)
            return ks_fail(err, KS_E_UNSUPPORTED,
                           "'%s': quantization_config of %s has the key '%.*s', which is not supported", path,
                           q->method, (int)KS_MIN(j.tok_bytes, (size_t)80), j.tok);
        int rc = read_value(&j, path, q, key, &p, err);
        if (rc != 0) return rc;
    }
    if (p.bits == 0) return bad_value(path, q, "bits", "4", err);
    if (p.group == 0) return bad_value(path, q, "group_size", "-1, 32, 64 or 128", err);
    ret->scheme = method == GPTQ ? KS_SCHEME_GPTQ : KS_SCHEME_AWQ;
    ret->group = p.group > 0 ? (uint32_t)p.group : 0;
    ret->symmetric = p.symmetric;
    ret->zero_less_one = method == GPTQ && !p.version2;
    ret->ordered = p.ordered;
    return 0;
}

static int judge(const char *path, const found *q, ks_qconf *ret, ks_err *err)
{
    if (!q->any) return 0;
    if (strcmp(q->method, "fp8") == 0) {
        if (q->block[0] < 0 || q->block[1] < 0 || q->block[0] > 1 << 20 || q->block[1] > 1 << 20)
            return ks_fail(err, KS_E_CONFIG, "'%s': weight_block_size is out of range", path);
        ret->scheme = KS_SCHEME_FP8;
        ret->block_rows = (uint32_t)q->block[0];
        ret->block_cols = (uint32_t)q->block[1];
        return 0;
    }
    if (strcmp(q->method, "mxfp4") == 0) {
        ret->scheme = KS_SCHEME_MXFP4;
        return 0;
    }
    if (strcmp(q->method, "compressed-tensors") == 0) {
        const bool packed = strcmp(q->format, "pack-quantized") == 0 && q->bits == 4 && q->group <= 1 << 20;
        const bool f8 = strcmp(q->format, "float-quantized") == 0 && q->bits == 8 && q->group <= 0;
        if ((!packed && !f8) || q->asymmetric || q->second_group)
            return ks_fail(err, KS_E_UNSUPPORTED,
                           "'%s': quantization_config has format '%s' of compressed-tensors; supported are "
                           "'pack-quantized' with 4 symmetric bits and one group size, and 'float-quantized' with 8 "
                           "symmetric bits and scales a row or tensor",
                           path, q->format);
        ret->scheme = packed ? KS_SCHEME_CT4 : KS_SCHEME_FP8;
        ret->group = packed && q->group > 0 ? (uint32_t)q->group : 0;
        return 0;
    }
    if (is_packed(q)) return judge_packed(path, q, ret, err);
    return ks_fail(err, KS_E_UNSUPPORTED,
                   "'%s': quantization method '%s' is not supported; supported are fp8, mxfp4, compressed-tensors, "
                   "gptq, awq",
                   path, q->method);
}

int ks__qconf_parse(const char *path, const char *text, size_t n, ks_qconf *ret, ks_err *err)
{
    ks_json j;
    found q = { .bits = INT64_MIN, .group = INT64_MIN };
    memset(ret, 0, sizeof *ret);
    ks_json_init(&j, text, n, DEPTH_MAX);
    int rc = read_config(&j, &q, false);
    if (rc == 0 && ks_json_next(&j) != KS_JSON_END) rc = KS_E_FORMAT;
    if (j.error) {
        (void)ks_json_fail(&j, err, "config");
        (void)ks_err_wrap(err, path);
        return KS_E_FORMAT;
    }
    if (rc != 0) return ks_fail(err, KS_E_FORMAT, "'%s': quantization_config is not what it should be", path);
    return judge(path, &q, ret, err);
}

int ks__qconf_read(const ks_ckpt *c, ks_qconf *ret, ks_err *err)
{
    char *path = ks_path_join(ks_ckpt_dir(c), "config.json"), *text = NULL;
    size_t n = 0;
    memset(ret, 0, sizeof *ret);
    if (!path) return ks_fail(err, KS_E_NOMEM, "out of memory for a path");
    int rc = ks_file_exists(path) ? ks_file_read(path, CONFIG_MAX, &text, &n, err) : 0;
    if (rc == 0 && text) rc = ks__qconf_parse(path, text, n, ret, err);
    free(text);
    free(path);
    return rc;
}
