/* quantization_config of config.json: which storage scheme the checkpoint uses. */
#include "base/base.h"
#include "base/file.h"
#include "store/source.h"
#include <krasis/json.h>

#define CONFIG_MAX ((size_t)16 << 20)
#define DEPTH_MAX 64u

typedef struct found {
    bool any; /* there is a quantization_config */
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

static int read_config(ks_json *j, found *q, bool inner)
{
    int t;
    if (ks_json_next(j) != KS_JSON_OBJECT) return KS_E_FORMAT;
    while ((t = ks_json_next(j)) == KS_JSON_KEY) {
        int rc;
        if (ks_json_is(j, "quantization_config")) {
            t = ks_json_next(j);
            q->any = t == KS_JSON_OBJECT;
            rc = q->any ? read_members(j, q) : t == KS_JSON_NULL ? 0 : KS_E_FORMAT;
        } else if (!inner && ks_json_is(j, "text_config")) {
            rc = read_config(j, q, true);
        } else {
            rc = ks_json_skip(j);
        }
        if (rc != 0) return rc;
    }
    return t == KS_JSON_OBJECT_END ? 0 : KS_E_FORMAT;
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
        if (strcmp(q->format, "pack-quantized") != 0 || q->bits != 4 || q->asymmetric || q->second_group ||
            q->group > 1 << 20)
            return ks_fail(err, KS_E_UNSUPPORTED,
                           "'%s': quantization_config has format '%s' of compressed-tensors; supported is "
                           "'pack-quantized' with 4 symmetric bits and one group size",
                           path, q->format);
        ret->scheme = KS_SCHEME_CT4;
        ret->group = q->group > 0 ? (uint32_t)q->group : 0;
        return 0;
    }
    return ks_fail(err, KS_E_UNSUPPORTED,
                   "'%s': quantization method '%s' is not supported; supported are fp8, mxfp4, compressed-tensors",
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
