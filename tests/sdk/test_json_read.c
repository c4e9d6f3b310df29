/* The JSON reader: the tokens of good text, a place and a reason for bad text, exact values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <krasis/json.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>

/* Runs through a text of n bytes that ends where its heap block ends; the tokens as letters. */
static int walk(const char *text, size_t n, uint32_t depth, char *kinds, ks_err *err)
{
    char *copy = malloc(n ? n : 1);
    ks_json j;
    int t;
    assert_non_null(copy);
    memcpy(copy, text, n);
    ks_json_init(&j, copy, n, depth);
    while ((t = ks_json_next(&j)) > 0)
        if (kinds) *kinds++ = "?{}[]ksn10x"[t];
    if (kinds) *kinds = 0;
    if (t < 0) {
        assert_int_equal(ks_json_fail(&j, err, "text"), KS_E_FORMAT);
        assert_int_equal(ks_json_next(&j), KS_JSON_ERROR); /* sticky */
        assert_int_equal(ks_json_skip(&j), KS_E_FORMAT);
    } else {
        assert_int_equal(ks_json_next(&j), KS_JSON_END); /* and again */
    }
    free(copy);
    return t;
}

static void good_text_gives_its_tokens_in_order(void **state)
{
    (void)state;
    static const struct {
        const char *text, *kinds;
    } rows[] = {
        { "{}", "{}" },
        { "[]", "[]" },
        { " \t\r\n[ ] \n", "[]" },
        { "\"\"", "s" },
        { "0", "n" },
        { "-0.5e+10", "n" },
        { "true", "1" },
        { "false", "0" },
        { "null", "x" },
        { "{\"a\":1,\"b\":[true,false,null,\"x\"],\"c\":{}}", "{knk[10xs]k{}}" },
        { "{ \"a\" : { \"b\" : [ [ ] , { } ] } }", "{k{k[[]{}]}}" },
        { "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"", "s" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char kinds[64];
        ks_err err;
        if (walk(rows[i].text, strlen(rows[i].text), 8, kinds, &err) < 0) fail_msg("%s: %s", rows[i].text, err.msg);
        assert_string_equal(kinds, rows[i].kinds);
    }
}

static void bad_text_is_refused_with_place_and_reason(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        { "", "text: line 1, column 1: the text ends too early" },
        { "  \n ", "text: line 2, column 2: the text ends too early" },
        { "[1,", "column 4: the text ends too early" },
        { "[1", "column 3: the text ends too early" },
        { "{\"a\"", "column 5: the text ends too early" },
        { "{\"a\":", "column 6: the text ends too early" },
        { "{\"a\":1,", "column 8: the text ends too early" },
        { "{\n\"a\" 1}", "line 2, column 5: a colon is expected here" },
        { "{1:2}", "column 2: a member's name in double quotes is expected here" },
        { "{\"a\":1,}", "column 8: a member's name in double quotes is expected here" },
        { "{,}", "column 2: a member's name" },
        { "{'a':1}", "column 2: a member's name" },
        { "{\"a\":}", "column 6: a value is expected here" },
        { "[1,]", "column 4: a value is expected here" },
        { "[,1]", "column 2: a value is expected here" },
        { "[1 2]", "column 4: a comma or ']' is expected here" },
        { "[1}", "column 3: a comma or ']' is expected here" },
        { "{\"a\":1]", "column 7: a comma or '}' is expected here" },
        { "{\"a\":1 \"b\":2}", "column 8: a comma or '}' is expected here" },
        { "]", "column 1: a value is expected here" },
        { "1 2", "column 3: unexpected text after the value" },
        { "{}x", "column 3: unexpected text after the value" },
        { "nul", "a value is expected here" },
        { "nulL", "a value is expected here" },
        { "True", "a value is expected here" },
        { "NaN", "a value is expected here" },
        { "Infinity", "a value is expected here" },
        { "-Infinity", "a digit must follow the minus sign" },
        { "-", "a digit must follow the minus sign" },
        { "+1", "a value is expected here" },
        { ".5", "a value is expected here" },
        { "01", "leading zero in a number" },
        { "-00", "leading zero in a number" },
        { "1.", "column 3: a digit must follow the decimal point" },
        { "1.e5", "a digit must follow the decimal point" },
        { "1e", "a digit must follow the exponent sign" },
        { "1e+", "a digit must follow the exponent sign" },
        { "0x10", "unexpected text after the value" },
        { "1_000", "unexpected text after the value" },
        { "/* c */1", "a value is expected here" },
        { "\xef\xbb\xbf{}", "column 1: a value is expected here" },
        { "\"abc", "column 5: the text ends inside a string" },
        { "\"abc\\", "the text ends inside a string" },
        { "\"a\nb\"", "column 3: raw control character in a string" },
        { "\"a\tb\"", "raw control character in a string" },
        { "\"\\x41\"", "column 2: unknown escape in a string" },
        { "\"\\'\"", "unknown escape in a string" },
        { "\"\\u12g4\"", "\\u needs four hexadecimal digits" },
        { "\"\\u12", "\\u needs four hexadecimal digits" },
        { "\"\\ud800\"", "lone surrogate in a string" },
        { "\"\\ud800x\"", "lone surrogate in a string" },
        { "\"\\ud800\\n\"", "lone surrogate in a string" },
        { "\"\\ud800\\u0041\"", "lone surrogate in a string" },
        { "\"\\ud800\\ud800\"", "lone surrogate in a string" },
        { "\"\\udc00\"", "lone surrogate in a string" },
        { "\"\xff\"", "column 2: invalid UTF-8 in a string" },
        { "\"\xc3\xa9\xc3\"", "column 3: invalid UTF-8 in a string" },
        { "\"\xc0\xaf\"", "invalid UTF-8 in a string" },
        { "\"\xed\xa0\x80\"", "invalid UTF-8 in a string" },
        { "\"\xf4\x90\x80\x80\"", "invalid UTF-8 in a string" },
        { "[[[[[]]]]]", "column 5: nested too deeply: at most 4 levels are allowed" },
        { "[[{\"a\":[{", "column 9: nested too deeply" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ks_err err;
        if (walk(rows[i].text, strlen(rows[i].text), 4, NULL, &err) >= 0) fail_msg("accepted: %s", rows[i].text);
        if (!strstr(err.msg, rows[i].says)) fail_msg("%s: '%s' lacks '%s'", rows[i].text, err.msg, rows[i].says);
    }
    assert_int_equal(walk("1\0", 2, 4, NULL, NULL), KS_JSON_ERROR);      /* a NUL is trailing text */
    assert_int_equal(walk("\"\0\"", 3, 4, NULL, NULL), KS_JSON_ERROR);   /* and a control character */
    assert_int_equal(walk("\"\\\0\"", 4, 4, NULL, NULL), KS_JSON_ERROR); /* and no escape */
}

static void every_cut_of_good_text_is_an_error(void **state)
{
    (void)state;
    static const char text[] = "{\"k\\u00e9\":[1.5e-3,\"\\ud83d\\ude00\xf0\x9f\x98\x80\",true,null],\"z\":{}}";
    for (size_t n = 0; n < sizeof text - 1; n++) assert_int_equal(walk(text, n, 8, NULL, NULL), KS_JSON_ERROR);
    assert_int_equal(walk(text, sizeof text - 1, 8, NULL, NULL), KS_JSON_END);
}

static void depth_is_limited_up_to_256_levels(void **state)
{
    (void)state;
    char *text = malloc(20000);
    ks_err err;
    assert_non_null(text);
    memset(text, '[', 10000);
    memset(text + 10000, ']', 10000);
    assert_int_equal(walk(text, 20000, 1000000, NULL, &err), KS_JSON_ERROR);
    assert_non_null(strstr(err.msg, "column 257: nested too deeply: at most 256 levels are allowed"));
    assert_int_equal(walk(text + 10000 - 256, 512, KS_JSON_DEPTH_MAX, NULL, &err), KS_JSON_END);
    assert_int_equal(walk(text + 10000 - 1, 2, 0, NULL, &err), KS_JSON_END); /* 0 counts as 1 */
    free(text);
}

static void strings_are_unescaped_exactly(void **state)
{
    (void)state;
    static const char text[] = "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20AC\\ud83d\\uDE00z\\u0000!\"";
    static const char want[] = "\"\\/\b\f\n\r\tA\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z\0!";
    char s[80];
    size_t n = 0;
    ks_json j;
    ks_json_init(&j, text, sizeof text - 1, 1);
    assert_int_equal(ks_json_next(&j), KS_JSON_STRING);
    assert_true(j.escaped);
    assert_int_equal(ks_json_str(&j, s, sizeof s, &n), 0);
    assert_int_equal(n, sizeof want - 1);
    assert_memory_equal(s, want, sizeof want);
    assert_int_equal(ks_json_str(&j, s, sizeof want, NULL), 0); /* just enough */
    assert_int_equal(ks_json_str(&j, s, sizeof want - 1, NULL), KS_E_LIMIT);
    assert_int_equal(ks_json_str(&j, s, 0, NULL), KS_E_LIMIT);
    assert_false(ks_json_is(&j, want)); /* the C string ends at the U+0000 */
    ks_json_init(&j, "\"abc\"", 5, 1);
    assert_int_equal(ks_json_next(&j), KS_JSON_STRING);
    assert_int_equal(ks_json_str(&j, s, 3, NULL), KS_E_LIMIT);
    assert_int_equal(ks_json_str(&j, s, 4, NULL), 0);
    assert_string_equal(s, "abc");
}

static void keys_compare_after_unescaping(void **state)
{
    (void)state;
    static const char text[] = "{\"ab\":1,\"\\u0061b\":2,\"\\ud83d\\ude00\":3}";
    ks_json j;
    ks_json_init(&j, text, sizeof text - 1, 2);
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    assert_false(ks_json_is(&j, "{"));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ks_json_next(&j), KS_JSON_KEY);
        assert_true(ks_json_is(&j, "ab"));
        assert_false(ks_json_is(&j, "a"));
        assert_false(ks_json_is(&j, "abc"));
        assert_false(ks_json_is(&j, ""));
        assert_int_equal(ks_json_next(&j), KS_JSON_NUMBER);
        assert_int_equal(ks_json_str(&j, (char[8]) { 0 }, 8, NULL), KS_E_INVAL);
    }
    assert_int_equal(ks_json_next(&j), KS_JSON_KEY);
    assert_true(ks_json_is(&j, "\xf0\x9f\x98\x80"));
}

static void skip_passes_over_whole_values(void **state)
{
    (void)state;
    static const char text[] = "{\"a\":{\"x\":[1,{}]},\"b\":[[],2],\"c\":3,\"d\":\"s\"}";
    ks_json j;
    ks_json_init(&j, text, sizeof text - 1, 8);
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    for (const char *k = "abcd"; *k; k++) {
        char name[2] = { *k, 0 };
        assert_int_equal(ks_json_next(&j), KS_JSON_KEY);
        assert_true(ks_json_is(&j, name));
        assert_int_equal(ks_json_skip(&j), 0);
    }
    assert_int_equal(ks_json_skip(&j), 0); /* after a plain value: nothing */
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT_END);
    assert_int_equal(ks_json_next(&j), KS_JSON_END);
    ks_json_init(&j, text, sizeof text - 1, 8);
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    assert_int_equal(ks_json_skip(&j), 0);
    assert_int_equal(ks_json_next(&j), KS_JSON_END);
    ks_json_init(&j, "[[1,2}", 6, 8);
    assert_int_equal(ks_json_next(&j), KS_JSON_ARRAY);
    assert_int_equal(ks_json_skip(&j), KS_E_FORMAT);
}

static int one(ks_json *j, const char *text)
{
    ks_json_init(j, text, strlen(text), 1);
    return ks_json_next(j);
}

static void integers_are_exact_or_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int rc_i, rc_u;
        int64_t i;
        uint64_t u;
    } rows[] = {
        { "0", 0, 0, 0, 0 },
        { "-0", 0, 0, 0, 0 },
        { "9007199254740993", 0, 0, 9007199254740993, 9007199254740993u },
        { "9223372036854775807", 0, 0, INT64_MAX, INT64_MAX },
        { "9223372036854775808", KS_E_LIMIT, 0, 0, (uint64_t)INT64_MAX + 1 },
        { "-9223372036854775808", 0, KS_E_LIMIT, INT64_MIN, 0 },
        { "-9223372036854775809", KS_E_LIMIT, KS_E_LIMIT, 0, 0 },
        { "18446744073709551615", KS_E_LIMIT, 0, 0, UINT64_MAX },
        { "18446744073709551616", KS_E_LIMIT, KS_E_LIMIT, 0, 0 },
        { "184467440737095516150", KS_E_LIMIT, KS_E_LIMIT, 0, 0 },
        { "99999999999999999999999", KS_E_LIMIT, KS_E_LIMIT, 0, 0 },
        { "99999999999999999999999.5", KS_E_INVAL, KS_E_INVAL, 0, 0 },
        { "-1", 0, KS_E_LIMIT, -1, 0 },
        { "1.0", KS_E_INVAL, KS_E_INVAL, 0, 0 },
        { "1e3", KS_E_INVAL, KS_E_INVAL, 0, 0 },
        { "true", KS_E_INVAL, KS_E_INVAL, 0, 0 },
        { "\"1\"", KS_E_INVAL, KS_E_INVAL, 0, 0 },
    };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        ks_json j;
        int64_t i = 42;
        uint64_t u = 42;
        assert_true(one(&j, rows[k].text) > 0);
        assert_int_equal(ks_json_i64(&j, &i), rows[k].rc_i);
        assert_int_equal(ks_json_u64(&j, &u), rows[k].rc_u);
        assert_true(i == (rows[k].rc_i ? 42 : rows[k].i)); /* written on success only */
        assert_true(u == (rows[k].rc_u ? 42 : rows[k].u));
    }
}

static void doubles_are_correctly_rounded(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "0",
        "-0",
        "0.0",
        "0e5",
        "1",
        "-1.5",
        "0.1",
        "0.3",
        "1e22",
        "1e23",
        "123456789012345678901234567890",
        "0.000000000000000000000000000001",
        "2.2250738585072014e-308",
        "2.2250738585072011e-308",
        "4.9e-324",
        "2.4703282292062327e-324",
        "2.4703282292062328e-324",
        "1e-400",
        "0.0001e-320",
        "1.7976931348623157e308",
        "9007199254740993",
        "9007199254740992.9999999999999999999",
        "100000000000000000000000e-23",
        "0.1000",
        "8.5e-1",
        "1E5",
        "1E+05",
        "1e-99999999999999999999",
        "0e99999999999999999999",
        "0.00000e-999999999999",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        ks_json j;
        double got = 42, want = strtod(texts[i], NULL);
        assert_int_equal(one(&j, texts[i]), KS_JSON_NUMBER);
        assert_int_equal(ks_json_f64(&j, &got), 0);
        if (memcmp(&got, &want, 8) != 0) fail_msg("%s: %.17g instead of %.17g", texts[i], got, want);
    }
}

static void numbers_of_any_length_are_correctly_rounded(void **state)
{
    (void)state;
    /* 1 + 2^-53 lies exactly between two doubles; a digit 3000 places behind decides. */
    char text[4000] = "1.00000000000000011102230246251565404236316680908203125";
    size_t n = strlen(text);
    double v = 0;
    ks_json j;
    memset(text + n, '0', 3000);
    text[n + 3000] = 0;
    assert_int_equal(one(&j, text), KS_JSON_NUMBER);
    assert_int_equal(ks_json_f64(&j, &v), 0);
    assert_true(v == 1.0);
    text[n + 2999] = '1';
    assert_int_equal(one(&j, text), KS_JSON_NUMBER);
    assert_int_equal(ks_json_f64(&j, &v), 0);
    assert_true(v == nextafter(1.0, 2.0));
    /* 3000 digits before the point, undone by the exponent. */
    text[0] = '1';
    memset(text + 1, '0', 2999);
    (void)snprintf(text + 3000, 16, "e-2999");
    assert_int_equal(one(&j, text), KS_JSON_NUMBER);
    assert_int_equal(ks_json_f64(&j, &v), 0);
    assert_true(v == 1.0);
    (void)snprintf(text, sizeof text, "0.");
    memset(text + 2, '0', 2999);
    (void)snprintf(text + 3001, 16, "25e3000");
    assert_int_equal(one(&j, text), KS_JSON_NUMBER);
    assert_int_equal(ks_json_f64(&j, &v), 0);
    assert_true(v == 2.5);
}

static void infinite_numbers_are_refused(void **state)
{
    (void)state;
    static const char *const texts[] = { "1e309", "-1e309", "1.8e308", "1e99999999999999999999" };
    for (size_t i = 0; i < 4; i++) {
        ks_json j;
        double v = 42;
        assert_int_equal(one(&j, texts[i]), KS_JSON_NUMBER);
        assert_int_equal(ks_json_f64(&j, &v), KS_E_LIMIT);
        assert_true(v == 42);
    }
    ks_json j;
    double v = 42;
    assert_int_equal(one(&j, "\"1\""), KS_JSON_STRING);
    assert_int_equal(ks_json_f64(&j, &v), KS_E_INVAL);
}

static void a_locale_with_commas_changes_nothing(void **state)
{
    (void)state;
    ks_json j;
    double v = 0;
    if (!setlocale(LC_ALL, "de_DE.UTF-8") && !setlocale(LC_ALL, "fr_FR.UTF-8")) {
        print_message("no locale with a decimal comma is installed\n");
        skip();
    }
    assert_int_equal(one(&j, "2.5"), KS_JSON_NUMBER);
    assert_int_equal(ks_json_f64(&j, &v), 0);
    assert_true(v == 2.5);
    (void)setlocale(LC_ALL, "C");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_text_gives_its_tokens_in_order),
        cmocka_unit_test(bad_text_is_refused_with_place_and_reason),
        cmocka_unit_test(every_cut_of_good_text_is_an_error),
        cmocka_unit_test(depth_is_limited_up_to_256_levels),
        cmocka_unit_test(strings_are_unescaped_exactly),
        cmocka_unit_test(keys_compare_after_unescaping),
        cmocka_unit_test(skip_passes_over_whole_values),
        cmocka_unit_test(integers_are_exact_or_refused),
        cmocka_unit_test(doubles_are_correctly_rounded),
        cmocka_unit_test(numbers_of_any_length_are_correctly_rounded),
        cmocka_unit_test(infinite_numbers_are_refused),
        cmocka_unit_test(a_locale_with_commas_changes_nothing),
    };
    return cmocka_run_group_tests_name("json_read", tests, NULL, NULL);
}
