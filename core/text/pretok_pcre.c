/* Patterns outside of our own form, by PCRE2. Its Unicode is older than the tokenizers' and its dialect is Perl's, so
 * what both engines read differently is refused instead of being guessed. [any] */
#include "base/base.h"
#include "text/pretok.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#define MATCH_LIMIT 10000000u /* backtracking steps of one match: a second at most */

struct ks_foreign {
    pcre2_code *code;
    pcre2_match_context *context;
};

/* Names the construct that Oniguruma and PCRE2 read differently; NULL: none found. */
static const char *ambiguous(const char *s, size_t n)
{
    bool in_class = false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\\' && i + 1 < n) {
            i++;
            if (s[i] == 'h' || s[i] == 'H') return "\\h";
            if (s[i] == 'R' || s[i] == 'X' || s[i] == 'K' || s[i] == 'O' || s[i] == 'y' || s[i] == 'Y')
                return "a Ruby escape";
            if ((s[i] == 'p' || s[i] == 'P') && i + 2 < n && s[i + 1] == '{' && s[i + 2] == '^') return "\\p{^";
        } else if (in_class) {
            if (s[i] == '&' && i + 1 < n && s[i + 1] == '&') return "&& in a class";
            if (s[i] == '[') return "a class in a class";
            if (s[i] == ']') in_class = false;
        } else if (s[i] == '[') {
            in_class = true;
            if (i + 1 < n && s[i + 1] == '^') i++;
        } else if (s[i] == '(' && i + 2 < n && s[i + 1] == '?' && (s[i + 2] == 'm' || s[i + 2] == 's')) {
            return "(?m or (?s";
        } else if (s[i] == '}' && i + 1 < n && s[i + 1] == '+') {
            return "{n,m}+";
        }
    }
    return NULL;
}

int ks_foreign_new(const char *text, size_t n, ks_foreign **ret, ks_err *err)
{
    const char *what = ambiguous(text, n);
    if (what)
        return ks_fail(err, KS_E_UNSUPPORTED, "pattern '%.200s' uses %s, which cannot be reproduced exactly", text,
                       what);
    ks_foreign *f = ks_calloc(1, sizeof *f);
    pcre2_compile_context *c = pcre2_compile_context_create(NULL);
    int rc = 0, code = 0;
    size_t at = 0;
    if (!f || !c || pcre2_set_newline(c, PCRE2_NEWLINE_LF)) {
        rc = ks_fail(err, KS_E_NOMEM, "out of memory for a pattern");
        goto out;
    }
    f->code = pcre2_compile((PCRE2_SPTR)text, n, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &code, &at, c);
    if (!f->code) {
        PCRE2_UCHAR why[128] = { 0 };
        (void)pcre2_get_error_message(code, why, sizeof why); /* cut off is fine */
        rc = ks_fail(err, KS_E_UNSUPPORTED, "pattern '%.200s': %s at byte %zu", text, (char *)why, at);
        goto out;
    }
    (void)pcre2_jit_compile(f->code, PCRE2_JIT_COMPLETE); /* without it the interpreter does the same, slower */
    f->context = pcre2_match_context_create(NULL);
    if (!f->context || pcre2_set_match_limit(f->context, MATCH_LIMIT))
        rc = ks_fail(err, KS_E_NOMEM, "out of memory for a pattern");
out:
    pcre2_compile_context_free(c);
    if (rc)
        ks_foreign_free(f);
    else
        *ret = f;
    return rc;
}

void ks_foreign_free(ks_foreign *f)
{
    if (!f) return;
    pcre2_match_context_free(f->context);
    pcre2_code_free(f->code);
    free(f);
}

int ks_foreign_find(const ks_foreign *f, const uint8_t *s, size_t n, size_t from, size_t *ret_begin, size_t *ret_end,
                    ks_err *err)
{
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    if (!data) return ks_fail(err, KS_E_NOMEM, "out of memory for a match");
    int rc = pcre2_match(f->code, s, n, from, PCRE2_NO_UTF_CHECK, data, f->context);
    if (rc >= 0) {
        const PCRE2_SIZE *o = pcre2_get_ovector_pointer(data);
        *ret_begin = o[0];
        *ret_end = KS_MAX(o[0], o[1]);
        rc = 1;
    } else if (rc == PCRE2_ERROR_NOMATCH) {
        rc = 0;
    } else {
        PCRE2_UCHAR why[128] = { 0 };
        (void)pcre2_get_error_message(rc, why, sizeof why);
        rc = ks_fail(err, KS_E_LIMIT, "the tokenizer's pattern failed on this text at byte %zu of %zu: %s", from, n,
                     (char *)why);
    }
    pcre2_match_data_free(data);
    return rc;
}
