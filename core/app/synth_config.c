/* Copies a config.json token by token, with another number of layers. Lists that have one entry a layer are cut. */
#include "app/synth.h"
#include "base/base.h"
#include <krasis/json.h>
#include <string.h>

#define DEPTH_MAX 32u

typedef struct copy {
    ks_json j;
    ks_jw w;
    uint32_t layers, group;
    bool mxfp4, found; /* found: the number of layers */
    uint64_t had;      /* layers in the text */
} copy;

static int copy_value(copy *c, int t, uint64_t cut, uint32_t depth);

/* The whole number behind a key of the object that was just opened; 0: none. */
static uint64_t number_ahead(ks_json j, const char *key)
{
    uint64_t v = 0;
    while (ks_json_next(&j) == KS_JSON_KEY) {
        bool is = ks_json_is(&j, key);
        if (is && ks_json_next(&j) == KS_JSON_NUMBER && ks_json_u64(&j, &v) == 0) return v;
        if (!is && ks_json_skip(&j)) return 0;
    }
    return 0;
}

static bool is_mxfp4(ks_json j) /* at the value of quantization_config */
{
    if (ks_json_next(&j) != KS_JSON_OBJECT) return false;
    while (ks_json_next(&j) == KS_JSON_KEY) {
        bool is = ks_json_is(&j, "quant_method");
        if (is) return ks_json_next(&j) == KS_JSON_STRING && ks_json_is(&j, "mxfp4");
        if (ks_json_skip(&j)) return false;
    }
    return false;
}

static void write_packing(ks_jw *w, uint32_t group)
{
    char text[400];
    int n = snprintf(text, sizeof text,
                     "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":"
                     "{\"group_0\":{\"targets\":[\"experts\"],\"weights\":{\"num_bits\":4,\"type\":\"int\","
                     "\"strategy\":\"group\",\"group_size\":%u,\"symmetric\":true}}}}",
                     group);
    ks_jw_key(w, "quantization_config");
    ks_jw_raw(w, text, (size_t)n); /* fits */
}

static int copy_object(copy *c, uint32_t depth)
{
    const uint64_t layers = number_ahead(c->j, "num_hidden_layers");
    char key[256];
    int t;
    ks_jw_object(&c->w);
    while ((t = ks_json_next(&c->j)) == KS_JSON_KEY) {
        if (ks_json_str(&c->j, key, sizeof key, NULL)) return KS_E_FORMAT;
        if (strcmp(key, "quantization_config") == 0) {
            bool keep = is_mxfp4(c->j);
            c->mxfp4 |= keep;
            if (!keep) {
                if (ks_json_skip(&c->j)) return KS_E_FORMAT;
                continue;
            }
        }
        ks_jw_key(&c->w, key);
        bool count = layers && strcmp(key, "num_hidden_layers") == 0;
        t = ks_json_next(&c->j);
        if (count) {
            c->found = true;
            c->had = layers;
            ks_jw_u64(&c->w, c->layers ? c->layers : layers);
        } else if (copy_value(c, t, layers, depth)) {
            return KS_E_FORMAT;
        }
    }
    if (t != KS_JSON_OBJECT_END) return KS_E_FORMAT;
    if (depth == 1 && c->group) write_packing(&c->w, c->group);
    ks_jw_object_end(&c->w);
    return 0;
}

static uint64_t entries_ahead(ks_json j)
{
    uint64_t n = 0;
    int t;
    while ((t = ks_json_next(&j)) > 0 && t != KS_JSON_ARRAY_END) {
        if ((t == KS_JSON_OBJECT || t == KS_JSON_ARRAY) && ks_json_skip(&j)) return 0;
        n++;
    }
    return n;
}

/* per_layer: lists of so many entries are cut to the wanted number of layers; 0: none is. */
static int copy_array(copy *c, uint64_t per_layer, uint32_t depth)
{
    const bool cut = c->layers && per_layer && entries_ahead(c->j) == per_layer;
    uint64_t i = 0;
    int t;
    ks_jw_array(&c->w);
    for (; (t = ks_json_next(&c->j)) > 0 && t != KS_JSON_ARRAY_END; i++) {
        if (!cut || i < c->layers) {
            if (copy_value(c, t, 0, depth)) return KS_E_FORMAT;
        } else if ((t == KS_JSON_OBJECT || t == KS_JSON_ARRAY) && ks_json_skip(&c->j)) {
            return KS_E_FORMAT;
        }
    }
    ks_jw_array_end(&c->w);
    return t == KS_JSON_ARRAY_END ? 0 : KS_E_FORMAT;
}

static int copy_value(copy *c, int t, uint64_t per_layer, uint32_t depth)
{
    switch (t) {
    case KS_JSON_OBJECT: return copy_object(c, depth + 1);
    case KS_JSON_ARRAY: return copy_array(c, per_layer, depth + 1);
    case KS_JSON_STRING: {
        char *s = malloc(c->j.tok_bytes + 1);
        size_t n = 0;
        int rc = s ? ks_json_str(&c->j, s, c->j.tok_bytes + 1, &n) : KS_E_NOMEM;
        if (!rc) ks_jw_strn(&c->w, s, n);
        free(s);
        return rc;
    }
    case KS_JSON_NUMBER: ks_jw_raw(&c->w, c->j.tok, c->j.tok_bytes); return 0;
    case KS_JSON_TRUE: ks_jw_bool(&c->w, true); return 0;
    case KS_JSON_FALSE: ks_jw_bool(&c->w, false); return 0;
    case KS_JSON_NULL: ks_jw_null(&c->w); return 0;
    default: return KS_E_FORMAT;
    }
}

int ks_synth_config(const char *path, const char *text, size_t n, uint32_t layers, uint32_t group, ks_buf *dst,
                    bool *ret_mxfp4, ks_err *err)
{
    copy c = { .layers = layers, .group = group };
    ks_json_init(&c.j, text, n, DEPTH_MAX);
    ks_jw_init(&c.w);
    int t = ks_json_next(&c.j), rc = 0;
    if (t != KS_JSON_OBJECT || copy_object(&c, 1) || ks_json_next(&c.j) != KS_JSON_END) {
        if (c.j.error) {
            rc = ks_json_fail(&c.j, err, "config.json");
            ks_err_wrap(err, path);
        } else {
            rc = ks_fail(err, KS_E_FORMAT, "'%s' is not the config.json of a model", path);
        }
    } else if (!c.found) {
        rc = ks_fail(err, KS_E_FORMAT, "'%s' does not say 'num_hidden_layers'", path);
    } else if (layers > c.had) {
        rc = ks_fail(err, KS_E_CONFIG, "--layers %u: the shape of '%s' has %u", layers, path, (uint32_t)c.had);
    } else if (ks_jw_done(&c.w)) {
        rc = ks_fail(err, KS_E_NOMEM, "'%s': out of memory", path);
    } else {
        ks_buf_add(dst, c.w.text, c.w.n);
        ks_buf_addc(dst, '\n');
        if (dst->failed) rc = ks_fail(err, KS_E_NOMEM, "'%s': out of memory", path);
        *ret_mxfp4 = c.mxfp4;
    }
    ks_jw_fini(&c.w);
    return rc;
}
