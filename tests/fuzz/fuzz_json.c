/* The JSON reader and writer: whatever is accepted reads back as the same once written, and writing
 * that again changes nothing. A broken promise of json.h traps. One thread.
 */
#include <krasis/json.h>
#include <stdlib.h>

#define HOLDS(expr) ((expr) ? (void)0 : __builtin_trap())

static void check_text(const ks_json *j, ks_jw *w, bool key)
{
    char *s = malloc(j->tok_bytes + 1);
    size_t n = 0;
    if (!s) abort();
    HOLDS(ks_json_str(j, s, j->tok_bytes + 1, &n) == 0); /* never longer than the token */
    HOLDS(n <= j->tok_bytes && s[n] == 0 && ks_utf8_valid(s, n) == n);
    HOLDS(ks_json_is(j, s) == (strlen(s) == n));
    if (n) HOLDS(ks_json_str(j, s, n, NULL) == KS_E_LIMIT);
    (void)ks_json_str(j, s, j->tok_bytes + 1, NULL);
    if (key && strlen(s) == n)
        ks_jw_key(w, s);
    else if (key)
        ks_jw_key(w, "has a NUL"); /* the writer's keys are C strings */
    else
        ks_jw_strn(w, s, n);
    free(s);
}

static void check_number(const ks_json *j, ks_jw *w)
{
    int64_t i;
    uint64_t u;
    double d;
    if (ks_json_i64(j, &i) == 0 && (i || j->tok[0] != '-')) /* -0 is a double's */
        ks_jw_i64(w, i);
    else if (ks_json_u64(j, &u) == 0 && u)
        ks_jw_u64(w, u);
    else if (ks_json_f64(j, &d) == 0)
        ks_jw_f64(w, d);
    else
        ks_jw_raw(w, j->tok, j->tok_bytes); /* 1e999: kept as it is spelled */
}

/* True if the text is one JSON value, written into w. */
static bool rewrite(const char *text, size_t n, ks_jw *w)
{
    ks_json j;
    int t;
    ks_json_init(&j, text, n, 40);
    while ((t = ks_json_next(&j)) > 0) {
        HOLDS(j.at <= n && j.depth <= 40 && j.tok >= text && j.tok + j.tok_bytes <= text + n);
        switch (t) {
        case KS_JSON_OBJECT: ks_jw_object(w); break;
        case KS_JSON_OBJECT_END: ks_jw_object_end(w); break;
        case KS_JSON_ARRAY: ks_jw_array(w); break;
        case KS_JSON_ARRAY_END: ks_jw_array_end(w); break;
        case KS_JSON_KEY: check_text(&j, w, true); break;
        case KS_JSON_STRING: check_text(&j, w, false); break;
        case KS_JSON_NUMBER: check_number(&j, w); break;
        case KS_JSON_NULL: ks_jw_null(w); break;
        default: ks_jw_bool(w, t == KS_JSON_TRUE);
        }
    }
    if (t < 0) {
        ks_err err;
        HOLDS(j.error && ks_json_next(&j) == KS_JSON_ERROR && ks_json_fail(&j, &err, "input") == KS_E_FORMAT);
    }
    return t == KS_JSON_END;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const char *text = (const char *)data;
    ks_jw one, two;
    ks_json j;
    ks_jw_init(&one);
    ks_jw_init(&two);
    bool ok = rewrite(text, n, &one);
    if (ok && !ks_jw_done(&one)) {
        HOLDS(rewrite(one.text, one.n, &two));
        if (!ks_jw_done(&two)) HOLDS(one.n == two.n && !memcmp(one.text, two.text, one.n));
    }
    ks_json_init(&j, text, n, 40); /* skipping decides alike */
    HOLDS((ks_json_next(&j) > 0 && ks_json_skip(&j) == 0 && ks_json_next(&j) == KS_JSON_END) == ok);
    ks_jw_fini(&one);
    ks_jw_reset(&two);
    ks_jw_strn(&two, text, n); /* any bytes make a valid string */
    ks_json_init(&j, two.text, two.n, 1);
    HOLDS(ks_jw_done(&two) || (ks_json_next(&j) == KS_JSON_STRING && ks_json_next(&j) == KS_JSON_END));
    ks_jw_fini(&two);
    return 0;
}
