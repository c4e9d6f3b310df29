/* The chat template of a model directory. Files are foreign: sizes are bounded, JSON is read strictly. [any] */
#include "base/buf.h"
#include "base/file.h"
#include "text/template_int.h"

#include <krasis/json.h>
#include <string.h>

#define CONFIG_BYTES_MAX ((size_t)64 << 20) /* tokenizer_config.json lists added tokens, too */
#define JSON_DEPTH 64u

/* The path of a file of the directory, if there is one. */
static int path_in(const char *dir, const char *name, char **ret, ks_err *err)
{
    *ret = ks_path_join(dir, name);
    if (!*ret) return ks_fail(err, KS_E_NOMEM, "out of memory for a path in '%s'", dir);
    if (ks_file_exists(*ret)) return 0;
    free(*ret);
    *ret = NULL;
    return 0;
}

/* NOTFOUND without a message if the file is not there. */
static int read_in(const char *dir, const char *name, size_t max, char **ret, size_t *ret_n, ks_err *err)
{
    char *path = NULL;
    int rc = path_in(dir, name, &path, err);
    if (rc) return rc;
    if (!path) return KS_E_NOTFOUND;
    rc = ks_file_read(path, max, ret, ret_n, err);
    free(path);
    return rc;
}

static int copy_string(const ks_json *j, char **ret, size_t *ret_n, ks_err *err)
{
    char *s = malloc(j->tok_bytes + 1);
    if (!s) return ks_fail(err, KS_E_NOMEM, "out of memory for a template of %zu bytes", j->tok_bytes);
    int rc = ks_json_str(j, s, j->tok_bytes + 1, ret_n);
    if (rc) {
        free(s);
        return ks_fail(err, rc, "the template's text is malformed");
    }
    *ret = s;
    return 0;
}

/* One {"name": ..., "template": ...}; *ret is set if the name is the wanted one. */
static int read_entry(ks_json *j, const char *name, char **ret, size_t *ret_n, ks_err *err)
{
    bool wanted = false;
    char *text = NULL;
    size_t n = 0;
    int t, rc = 0;
    while (!rc && (t = ks_json_next(j)) == KS_JSON_KEY) {
        bool is_name = ks_json_is(j, "name"), is_text = ks_json_is(j, "template") && !text;
        if (!is_name && !is_text) {
            (void)ks_json_skip(j); /* an error shows at the next token */
            continue;
        }
        if (ks_json_next(j) != KS_JSON_STRING)
            rc = ks_fail(err, KS_E_FORMAT, "an entry of chat_template needs strings as 'name' and 'template'");
        else if (is_name)
            wanted = ks_json_is(j, name);
        else
            rc = copy_string(j, &text, &n, err);
    }
    if (!rc && wanted && text && !*ret) {
        *ret = text;
        *ret_n = n;
        return 0;
    }
    free(text);
    return rc;
}

/* The value of "chat_template": a string, or a list of named ones. */
static int read_value(ks_json *j, const char *name, char **ret, size_t *ret_n, ks_err *err)
{
    int t = ks_json_next(j), rc = 0;
    bool is_default = strcmp(name, "default") == 0;
    if (t == KS_JSON_STRING) return is_default ? copy_string(j, ret, ret_n, err) : 0;
    if (t == KS_JSON_ARRAY) {
        while (!rc && (t = ks_json_next(j)) == KS_JSON_OBJECT) rc = read_entry(j, name, ret, ret_n, err);
        if (!rc && !j->error && t != KS_JSON_ARRAY_END)
            rc = ks_fail(err, KS_E_FORMAT, "chat_template must be a string or a list of objects");
        return rc;
    }
    if (t == KS_JSON_OBJECT) { /* {"default": "...", "tool_use": "..."} */
        while (!rc && (t = ks_json_next(j)) == KS_JSON_KEY) {
            bool wanted = ks_json_is(j, name) && !*ret;
            t = ks_json_next(j);
            if (wanted && t == KS_JSON_STRING)
                rc = copy_string(j, ret, ret_n, err);
            else
                (void)ks_json_skip(j); /* an error shows at the next token */
        }
        return rc;
    }
    return t == KS_JSON_NULL || t == KS_JSON_ERROR
               ? 0
               : ks_fail(err, KS_E_FORMAT, "chat_template must be a string or a list of objects");
}

/* *ret stays NULL if the file or the template is not there. */
static int from_config(const char *dir, const char *file, const char *name, char **ret, size_t *ret_n, ks_err *err)
{
    char *text = NULL;
    size_t n = 0;
    int rc = read_in(dir, file, CONFIG_BYTES_MAX, &text, &n, err);
    if (rc) return rc == KS_E_NOTFOUND ? 0 : rc;
    ks_json j;
    ks_json_init(&j, text, n, JSON_DEPTH);
    if (ks_json_next(&j) != KS_JSON_OBJECT && !j.error) rc = ks_fail(err, KS_E_FORMAT, "it must be a JSON object");
    while (!rc && !*ret && ks_json_next(&j) == KS_JSON_KEY) {
        if (ks_json_is(&j, "chat_template"))
            rc = read_value(&j, name, ret, ret_n, err);
        else
            (void)ks_json_skip(&j); /* an error shows at the next token */
    }
    if (!rc && j.error) rc = ks_json_fail(&j, err, "it is not JSON");
    if (rc) {
        free(*ret);
        *ret = NULL;
        char where[600];
        (void)snprintf(where, sizeof where, "%s/%s", dir, file);
        rc = ks_err_wrap(err, where);
    }
    free(text);
    return rc;
}

/* A template of ours, if the model's family ships none. */
static int built_in(const char *dir, const char *const **ret, ks_err *err)
{
    static const struct {
        const char *model_type;
        const char *const *text;
    } rows[] = {
        { "deepseek_v32", ks__template_deepseek_v32 },
        { "deepseek_v4", ks__template_deepseek_v4 },
    };
    char *text = NULL;
    size_t n = 0;
    int rc = read_in(dir, "config.json", CONFIG_BYTES_MAX, &text, &n, err);
    if (rc) return rc == KS_E_NOTFOUND ? 0 : rc;
    ks_json j;
    ks_json_init(&j, text, n, JSON_DEPTH);
    if (ks_json_next(&j) == KS_JSON_OBJECT) {
        while (ks_json_next(&j) == KS_JSON_KEY) {
            bool type = ks_json_is(&j, "model_type");
            if (type && ks_json_next(&j) == KS_JSON_STRING) {
                for (size_t i = 0; i < KS_COUNT(rows); i++)
                    if (ks_json_is(&j, rows[i].model_type)) *ret = rows[i].text;
            } else {
                (void)ks_json_skip(&j); /* a malformed config.json is told by those who need it */
            }
        }
    }
    free(text);
    return 0;
}

static bool is_plain_name(const char *name)
{
    for (const char *p = name; *p; p++)
        if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '_' ||
              *p == '-'))
            return false;
    return *name != 0 && strlen(name) < 128;
}

int ks_template_find(const char *dir, const char *name, char **ret_source, size_t *ret_n, ks_err *err)
{
    char *text = NULL, file[192] = "chat_template.jinja";
    size_t n = 0;
    if (!name) name = "default";
    bool is_default = strcmp(name, "default") == 0;
    if (!is_plain_name(name))
        return ks_fail(err, KS_E_INVAL, "'%.60s' is no name of a template: letters, digits, '_' and '-' only", name);
    if (!is_default) (void)snprintf(file, sizeof file, "additional_chat_templates/%s.jinja", name);
    int rc = read_in(dir, file, KS_TMPL_SOURCE_MAX, &text, &n, err);
    if (rc == KS_E_NOTFOUND) rc = from_config(dir, "tokenizer_config.json", name, &text, &n, err);
    if (!rc && !text) rc = from_config(dir, "chat_template.json", name, &text, &n, err);
    if (!rc && !text && is_default) {
        const char *const *own = NULL;
        ks_buf b;
        rc = built_in(dir, &own, err);
        ks_buf_init(&b, 0);
        for (; !rc && own && *own; own++) ks_buf_adds(&b, *own);
        if (b.failed) rc = ks_fail(err, KS_E_NOMEM, "out of memory for a template");
        text = b.n && !rc ? ks_buf_take(&b, &n) : NULL;
        ks_buf_fini(&b);
    }
    if (rc) return rc;
    if (!text)
        return ks_fail(err, KS_E_NOTFOUND,
                       "'%.200s' has no chat template '%s': neither %s nor a chat_template in tokenizer_config.json",
                       dir, name, file);
    *ret_source = text;
    *ret_n = n;
    return 0;
}
