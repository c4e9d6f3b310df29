/* krasis template: a chat template alone, seen from outside. JSON lines {"messages": ..., "kwargs": {...}} on stdin
 * become
 * {"rendered": ...} or {"error": ...}, one for each, in order; a bad line is an answer, not the end. The variables are
 * those that transformers' apply_chat_template passes: messages, tools, documents, add_generation_prompt, the special
 * tokens of tokenizer_config.json, and over them what kwargs holds. [main] */
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/file.h"
#include "text/template.h"
#include <krasis/json.h>
#include <string.h>
#include <time.h>

#define LINE_BYTES_MAX ((size_t)256 << 20)
#define CONFIG_BYTES_MAX ((size_t)64 << 20)

typedef struct renderer {
    ks_template *chat, *tool_use; /* tool_use: the model's own for requests with tools, or NULL */
    ks_jw tokens;                 /* "bos_token": "...", ... without braces */
    int64_t now;
} renderer;

static int compile(const char *source, size_t n, const char *from, ks_template **ret, ks_err *err)
{
    int rc = ks_template_new(source, n, ret, err);
    return rc ? ks_err_wrap(err, from) : 0;
}

static int find(const char *dir, const char *name, ks_template **ret, ks_err *err)
{
    char *source = NULL;
    size_t n = 0;
    int rc = ks_template_find(dir, name, &source, &n, err);
    if (!rc) rc = compile(source, n, dir, ret, err);
    free(source);
    return rc;
}

/* Members named ..._token: a string, or an object with "content". */
static int read_token(ks_json *j, ks_jw *w)
{
    char *key = malloc(j->tok_bytes + 1), *val = NULL;
    int rc = key ? ks_json_str(j, key, j->tok_bytes + 1, NULL) : KS_E_NOMEM;
    if (rc) goto out;
    int t = ks_json_next(j);
    if (t == KS_JSON_OBJECT) {
        while ((t = ks_json_next(j)) == KS_JSON_KEY && !val) {
            bool content = ks_json_is(j, "content") && ks_json_next(j) == KS_JSON_STRING;
            if (!content && ks_json_skip(j)) break;
            if (content && (val = malloc(j->tok_bytes + 1)) != NULL) rc = ks_json_str(j, val, j->tok_bytes + 1, NULL);
        }
        while (t == KS_JSON_KEY && ks_json_skip(j) == 0) t = ks_json_next(j); /* to the object's end */
    } else if (t == KS_JSON_STRING) {
        val = malloc(j->tok_bytes + 1);
        rc = val ? ks_json_str(j, val, j->tok_bytes + 1, NULL) : KS_E_NOMEM;
    } else {
        (void)ks_json_skip(j); /* an error shows at the next token */
    }
    if (val && !rc) {
        ks_jw_key(w, key);
        ks_jw_str(w, val);
    }
out:
    free(key);
    free(val);
    return rc;
}

static bool is_token_key(const ks_json *j)
{
    static const char end[] = "_token";
    size_t n = sizeof end - 1;
    return j->tok_bytes > n && memcmp(j->tok + j->tok_bytes - n, end, n) == 0;
}

static int read_tokens(const char *dir, ks_jw *w, ks_err *err)
{
    char *path = ks_path_join(dir, "tokenizer_config.json"), *text = NULL;
    size_t n = 0;
    int rc = path ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory");
    if (rc || !ks_file_exists(path)) goto out;
    rc = ks_file_read(path, CONFIG_BYTES_MAX, &text, &n, err);
    if (rc) goto out;
    ks_json j;
    ks_json_init(&j, text, n, 64);
    if (ks_json_next(&j) == KS_JSON_OBJECT)
        while (!rc && ks_json_next(&j) == KS_JSON_KEY) rc = is_token_key(&j) ? read_token(&j, w) : ks_json_skip(&j);
    if (j.error)
        rc = ks_json_fail(&j, err, path);
    else if (rc)
        rc = ks_fail(err, rc, "%s: a special token cannot be read", path);
out:
    free(text);
    free(path);
    return rc;
}

/* Local time, as the clock that templates see. */
static int parse_now(const char *text, int64_t *ret, ks_err *err)
{
    struct tm t = { .tm_isdst = -1 };
    int end = 0, n = sscanf(text, "%4d-%2d-%2d %2d:%2d:%2d%n", &t.tm_year, &t.tm_mon, &t.tm_mday, &t.tm_hour, &t.tm_min,
                            &t.tm_sec, &end);
    struct tm want = t;
    t.tm_year -= 1900;
    t.tm_mon -= 1;
    time_t when = n == 6 && text[end] == 0 ? mktime(&t) : -1;
    bool same = t.tm_mday == want.tm_mday && t.tm_mon == want.tm_mon - 1; /* no 31st of June */
    if (n != 6 || text[end] || !same || want.tm_hour > 23 || want.tm_min > 59 || want.tm_sec > 60)
        return ks_fail(err, KS_E_CONFIG, "--now '%.40s' is no time: write it as 2026-01-31 12:00:00", text);
    *ret = (int64_t)when;
    return 0;
}

static int open_renderer(const ks_config *c, renderer *r, ks_err *err)
{
    const char *file = ks_config_str(c, "template"), *dir = ks_config_str(c, "model-path"),
               *now = ks_config_str(c, "now");
    char *source = NULL;
    size_t n = 0;
    int rc = 0;
    r->now = ks_now_unix();
    if (*now) rc = parse_now(now, &r->now, err);
    if (rc) return rc;
    if (*file) {
        rc = ks_file_read(file, (size_t)16 << 20, &source, &n, err);
        if (!rc) rc = compile(source, n, file, &r->chat, err);
        free(source);
        return rc;
    }
    if (!*dir) return ks_fail(err, KS_E_CONFIG, "give the template as --template FILE or --model-path DIR");
    rc = find(dir, NULL, &r->chat, err);
    if (!rc) rc = find(dir, "tool_use", &r->tool_use, err);
    if (rc == KS_E_NOTFOUND && r->chat) rc = 0;
    return rc ? rc : read_tokens(dir, &r->tokens, err);
}

/* Copies the members of the object the reader is at. */
static void copy_members(ks_json *j, ks_jw *w, bool *ret_tools)
{
    while (ks_json_next(j) == KS_JSON_KEY) {
        char *key = malloc(j->tok_bytes + 1);
        if (!key || ks_json_str(j, key, j->tok_bytes + 1, NULL)) {
            w->failed = true;
            free(key);
            return;
        }
        bool tools = strcmp(key, "tools") == 0;
        size_t from = j->at;
        if (ks_json_skip(j) == 0) {
            while (strchr(": \t\r\n", j->text[from])) from++;
            ks_jw_key(w, key);
            ks_jw_raw(w, j->text + from, j->at - from);
            if (tools) *ret_tools = j->text[from] != 'n';
        }
        free(key);
    }
}

/* The variables of one line. The last of equal names holds: defaults first, then kwargs, then the messages. */
static int make_context(const renderer *r, const char *line, size_t n, ks_jw *w, bool *ret_tools, ks_err *err)
{
    ks_json j;
    size_t msg = 0, msg_n = 0;
    ks_json_init(&j, line, n, KS_JSON_DEPTH_MAX);
    ks_jw_object(w);
    if (r->tokens.n) {
        ks_jw_bytes(w, r->tokens.text, r->tokens.n);
        ks_jw_bytes(w, ",", 1);
    }
    ks_jw_key(w, "tools");
    ks_jw_null(w);
    ks_jw_key(w, "documents");
    ks_jw_null(w);
    ks_jw_key(w, "add_generation_prompt");
    ks_jw_bool(w, false);
    int t = ks_json_next(&j);
    if (t > 0 && t != KS_JSON_OBJECT) return ks_fail(err, KS_E_INVAL, "a line must hold an object with 'messages'");
    while (t > 0 && ks_json_next(&j) == KS_JSON_KEY) {
        bool messages = ks_json_is(&j, "messages"), kwargs = ks_json_is(&j, "kwargs");
        size_t from = j.at;
        if (kwargs) {
            t = ks_json_next(&j);
            if (t == KS_JSON_OBJECT)
                copy_members(&j, w, ret_tools);
            else if (t > 0 && t != KS_JSON_NULL)
                return ks_fail(err, KS_E_INVAL, "'kwargs' must be an object");
            continue;
        }
        if (ks_json_skip(&j)) break;
        while (strchr(": \t\r\n", line[from])) from++;
        if (messages) {
            msg = from;
            msg_n = j.at - from;
        }
    }
    if (!j.error) (void)ks_json_next(&j); /* what follows the object is an error of the reader's */
    if (j.error) return ks_json_fail(&j, err, "line");
    if (!msg_n) return ks_fail(err, KS_E_INVAL, "a line must hold an object with 'messages'");
    ks_jw_key(w, "messages");
    ks_jw_raw(w, line + msg, msg_n);
    ks_jw_object_end(w);
    return ks_jw_done(w) ? ks_fail(err, KS_E_NOMEM, "out of memory for the line") : 0;
}

static int answer(const renderer *r, const char *line, size_t n, ks_jw *out, ks_err *err)
{
    ks_jw ctx;
    char *text = NULL;
    size_t text_n = 0;
    bool tools = false;
    ks_err e = { 0 };
    ks_jw_init(&ctx);
    int rc = n > LINE_BYTES_MAX ? ks_fail(&e, KS_E_LIMIT, "the line is longer than %zu bytes", LINE_BYTES_MAX)
                                : make_context(r, line, n, &ctx, &tools, &e);
    if (!rc)
        rc = ks_template_render(tools && r->tool_use ? r->tool_use : r->chat, ctx.text, ctx.n, r->now, NULL, &text,
                                &text_n, &e);
    ks_jw_reset(out);
    ks_jw_object(out);
    ks_jw_key(out, rc ? "error" : "rendered");
    ks_jw_strn(out, rc ? e.msg : text, rc ? strlen(e.msg) : text_n);
    ks_jw_object_end(out);
    ks_jw_bytes(out, "\n", 1);
    free(text);
    ks_jw_fini(&ctx);
    return ks_jw_done(out) ? ks_fail(err, KS_E_NOMEM, "out of memory for an answer") : 0;
}

int ks_cmd_template(ks_config *c, ks_cli *cli)
{
    (void)cli;
    renderer r = { 0 };
    ks_jw out;
    ks_err err = { 0 };
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    ks_jw_init(&r.tokens);
    ks_jw_init(&out);
    int rc = open_renderer(c, &r, &err);
    while (!rc && (n = getline(&line, &cap, stdin)) > 0) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
        if (n == 0) continue;
        rc = answer(&r, line, (size_t)n, &out, &err);
        if (!rc) (void)fwrite(out.text, 1, out.n, stdout); /* main looks at stdout's errors */
        if (!rc) (void)fflush(stdout);                     /* one answer a line, for programs that wait */
    }
    if (!rc && ferror(stdin)) rc = ks_fail(&err, KS_E_IO, "standard input cannot be read");
    free(line);
    ks_jw_fini(&out);
    ks_jw_fini(&r.tokens);
    ks_template_free(r.chat);
    ks_template_free(r.tool_use);
    return rc ? ks_app_fail(&err) : 0;
}
