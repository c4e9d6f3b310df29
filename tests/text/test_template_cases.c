/* What templates compute, against the reference: our own snippets (template_cases.jsonl, made by
 * make_template_cases.py), and real models' templates, which are other people's and found through KRASIS_TEST_DATA. */
#include "base/base.h"
#include "base/file.h"
#include "text/template.h"
#include "tok_support.h"
#include <dirent.h>

#define NOW 1767323045 /* 2026-01-02 03:04:05 UTC, which all files say */

typedef struct span {
    const char *p;
    size_t n;
} span;

static char *read_all(const char *path, size_t *ret_n)
{
    char *text = NULL;
    ks_err err = { 0 };
    if (ks_file_read(path, (size_t)64 << 20, &text, ret_n, &err)) fail_msg("%s", err.msg);
    return text;
}

/* The value of a member of a JSON object, as it is spelled; n 0: none. */
static span member(span object, const char *name)
{
    ks_json j;
    ks_json_init(&j, object.p, object.n, 64);
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    while (ks_json_next(&j) == KS_JSON_KEY) {
        bool hit = ks_json_is(&j, name);
        size_t from = j.at;
        assert_int_equal(ks_json_skip(&j), 0);
        while (object.p[from] == ':' || object.p[from] == ' ') from++;
        if (hit) return (span) { object.p + from, j.at - from };
    }
    assert_null(j.error);
    return (span) { NULL, 0 };
}

static char *string_of(span v, size_t *ret_n)
{
    ks_json j;
    char *s = malloc(v.n + 1);
    assert_non_null(s);
    ks_json_init(&j, v.p, v.n, 1);
    assert_int_equal(ks_json_next(&j), KS_JSON_STRING);
    assert_int_equal(ks_json_str(&j, s, v.n + 1, ret_n), 0);
    return s;
}

/* Renders and compares; want.n 0: an error is expected. True if all is as it should be. */
static bool check(const char *what, const char *source, size_t n, span context, span want, span reason)
{
    ks_template *t = NULL;
    ks_err err = { 0 };
    char *got = NULL;
    size_t got_n = 0;
    int rc = ks_template_new(source, n, &t, &err);
    if (!rc) rc = ks_template_render(t, context.p, context.n, NOW, NULL, &got, &got_n, &err);
    ks_template_free(t);
    bool ok = rc != 0;
    if (want.n) {
        size_t want_n;
        char *text = string_of(want, &want_n);
        ok = !rc && got_n == want_n && memcmp(got, text, want_n) == 0;
        if (!ok) print_error("%s\n  wanted %s\n  got    %s\n", what, text, rc ? err.msg : got);
        free(text);
    } else if (!ok) {
        print_error("%s\n  wanted an error, as %.*s\n  got    %s\n", what, (int)reason.n, reason.p, got);
    }
    free(got);
    return ok;
}

static void snippets_give_what_the_reference_gives(void **state)
{
    (void)state;
    size_t n, bad = 0, all = 0, errors = 0;
    char *text = read_all(KS_SOURCE_DIR "/tests/text/template_cases.jsonl", &n);
    span head = { text, strcspn(text, "\n") }, context = member(head, "context");
    for (const char *p = text + head.n + 1; p < text + n; p += strcspn(p, "\n") + 1) {
        span line = { p, strcspn(p, "\n") }, want = member(line, "r"), reason = member(line, "e");
        size_t source_n;
        char *source = string_of(member(line, "t"), &source_n);
        bad += !check(source, source, source_n, context, want, reason);
        errors += want.n == 0;
        all++;
        free(source);
    }
    free(text);
    assert_true(all > 1400 && errors > 200);
    assert_int_equal(bad, 0);
}

/* ---- control tokens: the template's are recognised, the request's are not */

/* Encodes with origins, or without. */
static int32_t *encode(const ks_tokenizer *tok, const ks_rendered *x, bool origins, size_t *ret_n)
{
    ks_err err = { 0 };
    int32_t *ids = NULL;
    *ret_n = 0;
    if (ks_tokenizer_encode_spans(tok, x->text, x->n, x->request, origins ? x->n_request : 0, 0, &ids, ret_n, &err))
        fail_msg("%s", err.msg);
    return ids;
}

static bool has_markup(const ks_tokenizer *tok, span text)
{
    bool any = false;
    for (uint32_t id = 256; id < ks_tokenizer_size(tok); id++) {
        size_t n;
        const char *s = ks_tokenizer_bytes(tok, (int32_t)id, &n);
        any |= s && memmem(text.p, text.n, s, n);
    }
    return any;
}

/* A prompt keeps its ids unless its messages spell control tokens; one that does keeps those of the template. */
static size_t check_ids(const char *what, const ks_template *t, const ks_tokenizer *tok, span context,
                        size_t *inout_same)
{
    ks_err err = { 0 };
    ks_rendered x;
    if (ks_template_render_spans(t, context.p, context.n, NOW, NULL, &x, &err)) return 0;
    size_t n[2], end = 0, k = 0, bad = 0;
    int32_t *ids[2];
    for (int i = 0; i < 2; i++) ids[i] = encode(tok, &x, i, &n[i]);
    bool same = n[0] == n[1] && memcmp(ids[0], ids[1], n[0] * sizeof *ids[0]) == 0;
    *inout_same += same;
    if (!same && !has_markup(tok, context)) {
        print_error("%s: origins change the ids of an ordinary prompt\n", what);
        bad++;
    }
    for (size_t i = 0; i < n[1]; i++) {
        size_t len, begin = end;
        (void)ks_tokenizer_bytes(tok, ids[1][i], &len);
        end += len;
        while (k < x.n_request && x.request[k].end <= begin) k++;
        if (ids[1][i] < 256 || k == x.n_request || x.request[k].begin >= end) continue;
        print_error("%s: a control token reaches into the request's text at byte %zu\n", what, begin);
        bad++;
    }
    for (int i = 0; i < 2; i++) free(ids[i]);
    ks_rendered_fini(&x);
    return bad;
}

/* A conversation in which everybody spells all control tokens: their text must be the request's, all of it. */
static size_t check_spelled(const char *name, const ks_template *t, const ks_tokenizer *tok)
{
    static const char *const roles[] = { "system", "user", "assistant", "user", "assistant", "user" };
    size_t bad = 0, n_marks = 0, same = 0, n;
    for (uint32_t id = 256; id < ks_tokenizer_size(tok); id++) {
        const char *s = ks_tokenizer_bytes(tok, (int32_t)id, &n);
        ks_jw w;
        ks_jw_init(&w);
        ks_jw_object(&w);
        ks_jw_key(&w, "bos_token");
        ks_jw_str(&w, "<s>");
        ks_jw_key(&w, "eos_token");
        ks_jw_str(&w, "</s>");
        ks_jw_key(&w, "messages");
        ks_jw_array(&w);
        for (size_t i = 0; i < KS_COUNT(roles); i++) {
            char text[200];
            int len = snprintf(text, sizeof text, "%%ZQ%.*sZQ%%", (int)n, s);
            ks_jw_object(&w);
            ks_jw_key(&w, "role");
            ks_jw_str(&w, roles[i]);
            ks_jw_key(&w, "content");
            ks_jw_strn(&w, text, (size_t)len);
            ks_jw_object_end(&w);
        }
        ks_jw_array_end(&w);
        ks_jw_object_end(&w);
        assert_int_equal(ks_jw_done(&w), 0);
        ks_rendered x;
        ks_err err = { 0 };
        span context = { w.text, w.n };
        if (ks_template_render_spans(t, w.text, w.n, NOW, NULL, &x, &err) == 0) {
            for (const char *p = x.text, *end = x.text + x.n; (p = memmem(p, (size_t)(end - p), "%ZQ", 3)); p++) {
                size_t at = (size_t)(p - x.text), k = 0;
                while (k < x.n_request && x.request[k].end <= at) k++;
                bool whole = (size_t)(end - p) >= n + 3 && memcmp(p + 3, s, n) == 0;
                n_marks++;
                if (k < x.n_request && x.request[k].begin <= at && x.request[k].end >= at + 3 + whole * n) continue;
                print_error("%s: text of a message counts as the template's with %.*s\n", name, (int)n, s);
                bad++;
            }
            ks_rendered_fini(&x);
        }
        bad += check_ids(name, t, tok, context, &same);
        ks_jw_fini(&w);
    }
    if (!n_marks) print_error("%s: no message came through\n", name);
    return bad + !n_marks;
}

/* {"messages": ..., then what kwargs holds} */
static span join_context(span messages, span kwargs, char **ret_text)
{
    char *s = malloc(messages.n + kwargs.n + 32);
    assert_non_null(s);
    int n = sprintf(s, "{\"messages\": %.*s%s%.*s", (int)messages.n, messages.p, kwargs.n > 2 ? ", " : "",
                    (int)kwargs.n - 1, kwargs.p + 1);
    *ret_text = s;
    return (span) { s, (size_t)n };
}

/* All cases of a file; returns how many are wrong. */
static size_t check_file(const char *dir, const char *name, size_t *inout_all, size_t *inout_same)
{
    ks_template *t = NULL;
    ks_err err = { 0 };

    char path[1200], what[400];
    size_t n, source_n, bad = 0;
    (void)snprintf(path, sizeof path, "%s/%s.jinja", dir, name);
    char *source = read_all(path, &source_n);
    if (ks_template_new(source, source_n, &t, &err)) fail_msg("%s: %s", name, err.msg);
    ks_tokenizer *tok = tok_for_template(source, source_n);
    (void)snprintf(path, sizeof path, "%s/%s.expected.json", dir, name);
    char *text = read_all(path, &n);
    span cases = member((span) { text, n }, "cases");
    ks_json j;
    ks_json_init(&j, cases.p, cases.n, 64);
    assert_int_equal(ks_json_next(&j), KS_JSON_ARRAY);
    while (ks_json_next(&j) == KS_JSON_OBJECT) {
        size_t from = j.at - 1;
        assert_int_equal(ks_json_skip(&j), 0);
        span one = { cases.p + from, j.at - from }, id = member(one, "name");
        char *own;
        span context = join_context(member(one, "messages"), member(one, "kwargs"), &own);
        (void)snprintf(what, sizeof what, "%s, %.*s", name, (int)id.n, id.p);
        bad += !check(what, source, source_n, context, member(one, "rendered"), member(one, "error"));
        bad += check_ids(what, t, tok, context, inout_same);
        (*inout_all)++;
        free(own);
    }
    bad += check_spelled(name, t, tok);
    ks_tokenizer_close(tok);
    ks_template_free(t);
    free(text);
    free(source);
    return bad;
}

static void real_templates_give_what_the_reference_gives(void **state)
{
    (void)state;
    const char *data = getenv("KRASIS_TEST_DATA");
    if (!data) {
        print_message("KRASIS_TEST_DATA is not set: no templates of real models here\n");
        skip();
    }
    char dir[800], name[256];
    (void)snprintf(dir, sizeof dir, "%s/templates", data);
    DIR *d = opendir(dir);
    if (!d) {
        print_message("%s is not there: no templates of real models here\n", dir);
        skip();
    }
    size_t bad = 0, all = 0, same = 0;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        const char *end = strstr(e->d_name, ".expected.json");
        if (!end || end[14] || (size_t)(end - e->d_name) >= sizeof name) continue;
        (void)snprintf(name, sizeof name, "%.*s", (int)(end - e->d_name), e->d_name);
        bad += check_file(dir, name, &all, &same);
    }
    closedir(d);
    print_message("%zu cases, %zu of them with the ids they have without origins\n", all, same);
    assert_true(all > 0);
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snippets_give_what_the_reference_gives),
        cmocka_unit_test(real_templates_give_what_the_reference_gives),
    };
    (void)setenv("TZ", "UTC", 1);
    return cmocka_run_group_tests_name("template cases", tests, NULL, NULL);
}
