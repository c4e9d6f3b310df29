/* Patterns: the families' own, corners of the syntax, what goes to PCRE2, and what is refused. */
#include "tok_support.h"

static const char qwen[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                           "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char o200k[] = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+("
                            "?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                            "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*("
                            "?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                            "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static ks_pattern *make(const char *text)
{
    ks_err err = { 0 };
    ks_pattern *p = NULL;
    if (ks_pattern_new(text, strlen(text), &p, &err)) fail_msg("%s", err.msg);
    return p;
}

/* Matches between bars, gaps in parentheses. */
static const char *cut(const ks_pattern *p, const char *text)
{
    static char out[2048];
    ks_err err = { 0 };
    ks_matches m = { .p = p, .s = (const uint8_t *)text, .n = strlen(text) };
    size_t begin, end, done = 0, at = 0;
    int rc;
    while ((rc = ks_matches_next(&m, &begin, &end, &err)) > 0) {
        if (begin > done) at += (size_t)sprintf(out + at, "(%.*s)", (int)(begin - done), text + done);
        at += (size_t)sprintf(out + at, "|%.*s", (int)(end - begin), text + begin);
        done = end;
    }
    assert_int_equal(rc, 0);
    if (done < m.n) at += (size_t)sprintf(out + at, "(%s)", text + done);
    out[at] = 0;
    return out;
}

static void expect(const char *pattern, const char *text, const char *want)
{
    ks_pattern *p = make(pattern);
    assert_false(ks_pattern_is_foreign(p));
    assert_string_equal(cut(p, text), want);
    ks_pattern_free(p);
}

static void words_numbers_and_blanks_are_cut_as_the_families_do(void **state)
{
    (void)state;
    expect(qwen, "Hello, world!  I'm 42\n\n x", "|Hello|,| world|!| | I|'m| |4|2|\n\n| x");
    expect(qwen, "DON'T \t\n", "|DON|'T| \t\n");
    expect(qwen, "it'\u017f", "|it|'\u017f"); /* the long s folds to s */
    expect(gpt2, "I'm  fine123", "|I|'m| | fine|123");
    expect(o200k, "HTTPServer's 12345/\n", "|HTTPServer's| |123|45|/\n");
    expect(o200k, "camelCaseABC", "|camel|Case|ABC");
    expect(o200k, "\u01c5\u02b0X", "|\u01c5\u02b0|X"); /* the run is given back up to the last that is in both */
    expect("[\\p{Han}]+|[\\p{L}&&[^\\p{Han}]]+", "ab\u65e5\u672ccd", "|ab|\u65e5\u672c|cd");
}

static void counts_are_greedy_or_possessive(void **state)
{
    (void)state;
    expect("a?a", "aaa", "|aa|a");
    expect("a?+a", "aaa", "|aa(a)");
    expect("[ab]*b", "abab", "|abab");
    expect("[ab]++b", "abab", "(abab)");
    expect("\\p{N}{2}", "12345", "|12|34(5)");
    expect("\\p{N}{1,3}+", "1234567", "|1234567"); /* not possessive in this dialect: a repeated group */
    expect("a{2,}", "aaaaa a", "|aaaaa( a)");
}

static void groups_and_look_around_work(void **state)
{
    (void)state;
    expect("(?:ab|a)c?", "abcac", "|abc|ac");
    expect("(a|b)?c", "acbcc", "|ac|bc|c");
    expect("(?i:ab)", "aBABx", "|aB|AB(x)");
    expect("(?<!a)b", "abb", "(ab)|b");
    expect("(?<=a)b", "abb", "(a)|b(b)");
    expect("a(?=b)", "abaa", "|a(baa)");
    expect("x$", "x\nxy", "|x(\nxy)");
    expect("x\\z", "x\nx", "(x\n)|x");
    expect("((?=[\\p{L}])([^a-z]))+", "ABc1", "|AB(c1)");
    expect("(?:a)+b", "aaab", "|aaab");
    expect("a*", "baa", "|(b)|aa"); /* empty, but not behind another match */
}

static void classes_nest_and_escape(void **state)
{
    (void)state;
    expect("[\\]\\-a-c[x-z]]+", "a]-zq", "|a]-z(q)");
    expect("[^\\W\\d]+", "ab_1", "|ab_(1)");
    expect("[\\x{4e00}-\\u9fff]+", "a\u4e00b", "(a)|\u4e00(b)");
    expect("\\w+", "a\u00bd", "|a\u00bd"); /* fractions of Latin-1 are words outside of a class only */
    expect("[\\w]+", "a\u00bd", "|a(\u00bd)");
    expect("\\P{L}\\p{^N}", "1a", "|1a");
    expect("[a-]+", "a-", "|a-");
}

static void long_runs_stay_linear(void **state)
{
    (void)state;
    size_t n = 2000000, begin, end;
    char *text = malloc(n + 1);
    assert_non_null(text);
    memset(text, ' ', n);
    text[n] = 'x';
    ks_err err = { 0 };
    ks_pattern *p = make("\\s+(?=y)");
    ks_matches m = { .p = p, .s = (const uint8_t *)text, .n = n + 1 };
    assert_int_equal(ks_matches_next(&m, &begin, &end, &err), 0);
    ks_pattern_free(p);
    p = make("a*a*a*b"); /* cubic: ends in an error */
    memset(text, 'a', n);
    m = (ks_matches) { .p = p, .s = (const uint8_t *)text, .n = n + 1 };
    assert_int_equal(ks_matches_next(&m, &begin, &end, &err), KS_E_LIMIT);
    assert_non_null(strstr(err.msg, "too many steps"));
    ks_pattern_free(p);
    free(text);
}

static void unknown_constructs_go_to_pcre2(void **state)
{
    (void)state;
    static const char *const texts[] = { "\\bab", "(ab)+", "a+?b", "(?>a)b", "^a", "(?i:ss)", "(?i:\u00e9)" };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        ks_pattern *p = make(texts[i]);
        assert_true(ks_pattern_is_foreign(p));
        ks_pattern_free(p);
    }
    ks_pattern *p = make("(ab)+");
    assert_string_equal(cut(p, "xababy"), "(x)|abab(y)");
    ks_pattern_free(p);
}

static void refuse(const char *text, const char *why)
{
    ks_err err = { 0 };
    ks_pattern *p = NULL;
    int rc = ks_pattern_new(text, strlen(text), &p, &err);
    assert_true(rc < 0);
    assert_null(p);
    if (!strstr(err.msg, why)) fail_msg("'%s' is not in '%s'", why, err.msg);
}

static void what_two_engines_read_differently_is_refused(void **state)
{
    (void)state;
    refuse("\\h+?", "\\h");
    refuse("(?m:.)+?", "(?m");
    refuse("[a&&b]+?", "&& in a class");
    refuse("[a[b]]+?", "a class in a class");
    refuse("(a", "missing");
    refuse("a)", "unmatched");
    refuse("[b-a]", "out of order");
    refuse("\xff", "UTF-8");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_numbers_and_blanks_are_cut_as_the_families_do),
        cmocka_unit_test(counts_are_greedy_or_possessive),
        cmocka_unit_test(groups_and_look_around_work),
        cmocka_unit_test(classes_nest_and_escape),
        cmocka_unit_test(long_runs_stay_linear),
        cmocka_unit_test(unknown_constructs_go_to_pcre2),
        cmocka_unit_test(what_two_engines_read_differently_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
