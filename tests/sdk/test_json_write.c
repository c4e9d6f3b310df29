/* The JSON writer: commas, escapes, and the shortest numbers that read back as the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <krasis/json.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>

static void commas_and_colons_are_placed(void **state)
{
    (void)state;
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_object(&w);
    ks_jw_key(&w, "a");
    ks_jw_i64(&w, -1);
    ks_jw_key(&w, "b");
    ks_jw_array(&w);
    ks_jw_u64(&w, UINT64_MAX);
    ks_jw_bool(&w, true);
    ks_jw_array(&w);
    ks_jw_array_end(&w);
    ks_jw_object(&w);
    ks_jw_object_end(&w);
    ks_jw_raw(&w, "[1, 2]", 6);
    ks_jw_str(&w, NULL);
    ks_jw_array_end(&w);
    ks_jw_key(&w, "c");
    ks_jw_str(&w, "x");
    ks_jw_key(&w, "d");
    ks_jw_bool(&w, false);
    ks_jw_object_end(&w);
    ks_jw_bytes(&w, "\n", 1);
    ks_jw_i64(&w, INT64_MIN);
    assert_int_equal(ks_jw_done(&w), 0);
    assert_string_equal(w.text,
                        "{\"a\":-1,\"b\":[18446744073709551615,true,[],{},[1, 2],null],\"c\":\"x\",\"d\":false}\n"
                        "-9223372036854775808");
    assert_int_equal(w.n, strlen(w.text));
    ks_jw_reset(&w);
    ks_jw_null(&w);
    assert_string_equal(w.text, "null");
    ks_jw_fini(&w);
    ks_jw_fini(&w); /* twice is fine */
}

static void strings_are_escaped_and_ill_formed_bytes_replaced(void **state)
{
    (void)state;
#define FFFD "\xef\xbf\xbd"
    static const struct {
        const char *raw;
        size_t n;
        const char *json;
    } rows[] = {
        { "", 0, "\"\"" },
        { "a\"b\\c/d", 7, "\"a\\\"b\\\\c/d\"" },
        { "\b\f\n\r\t", 5, "\"\\b\\f\\n\\r\\t\"" },
        { "\0\x01\x1f\x7f", 4, "\"\\u0000\\u0001\\u001f\x7f\"" },
        { "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"" },
        { "a\xff"
          "b",
          3, "\"a" FFFD "b\"" },
        { "\xf0\x9f\x98", 3, "\"" FFFD "\"" }, /* cut off: one replacement */
        { "\xf0\x9f\x98"
          "a",
          4, "\"" FFFD "a\"" }, /* broken off */
        { "\xe2\x82\xe2\x82\xac", 5, "\"" FFFD "\xe2\x82\xac\"" },
        { "\xed\xa0\x80", 3, "\"" FFFD FFFD FFFD "\"" }, /* a surrogate is never begun */
        { "\xc0\xaf\x80", 3, "\"" FFFD FFFD FFFD "\"" },
        { "\xf4\x90\x80\x80", 4, "\"" FFFD FFFD FFFD FFFD "\"" },
        { "\xc3", 1, "\"" FFFD "\"" },
        { "\xe2(\xa1", 3, "\"" FFFD "(" FFFD "\"" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ks_jw w;
        ks_jw_init(&w);
        ks_jw_strn(&w, rows[i].raw, rows[i].n);
        assert_int_equal(ks_jw_done(&w), 0);
        assert_string_equal(w.text, rows[i].json);
        ks_jw_fini(&w);
    }
}

static void check_f64(double v, const char *want)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_f64(&w, v);
    assert_int_equal(ks_jw_done(&w), 0);
    if (want) assert_string_equal(w.text, want);
    ks_json j;
    double back = 42;
    ks_json_init(&j, w.text, w.n, 1);
    assert_int_equal(ks_json_next(&j), KS_JSON_NUMBER);
    assert_int_equal(ks_json_f64(&j, &back), 0);
    if (memcmp(&back, &v, 8) != 0) fail_msg("%.17g was written as %s", v, w.text);
    ks_jw_fini(&w);
}

static void doubles_are_shortest_and_read_back(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } rows[] = {
        { 0, "0" },
        { -0.0, "-0" },
        { 1, "1" },
        { 0.1, "0.1" },
        { -1.5, "-1.5" },
        { 0.1 + 0.2, "0.30000000000000004" },
        { 1.0 / 3, "0.3333333333333333" },
        { 100, "100" },
        { 123456789012345680.0, "123456789012345680" },
        { 1e20, "100000000000000000000" },
        { 1e21, "1e21" },
        { 1.5e300, "1.5e300" },
        { 0.000001, "0.000001" },
        { 1e-7, "1e-7" },
        { 1.25e-7, "1.25e-7" },
        { 5e-324, "5e-324" },
        { 2.2250738585072014e-308, "2.2250738585072014e-308" },
        { 1.7976931348623157e308, "1.7976931348623157e308" },
        { 9007199254740993.0, "9007199254740992" },
        { 0x1p-44, "5.684341886080802e-14" }, /* the nearest 16 digits do not read back, these do */
        { 0x1p-24, "5.960464477539063e-8" },
        { 999999999999999.9, "999999999999999.9" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) check_f64(rows[i].v, rows[i].text);
    uint64_t seed = 1;
    for (int i = 0; i < 50000; i++) {
        double v;
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t bits = seed ^ seed >> 29;
        memcpy(&v, &bits, 8);
        if (isfinite(v)) check_f64(v, NULL);
    }
    for (int e = -1074; e < 1024; e++) check_f64(ldexp(1, e), NULL);
}

static void floats_are_shortest_and_read_back(void **state)
{
    (void)state;
    static const struct {
        float v;
        const char *text;
    } rows[] = {
        { 0.1f, "0.1" },
        { 16777216.0f, "16777216" },
        { 1e10f, "10000000000" },
        { 1.1f, "1.1" },
        { 3.4028235e38f, "3.4028235e38" },
        { 1e-45f, "1e-45" },
        { 1.0f / 3, "0.33333334" },
        { -0.7f, "-0.7" },
        { 123456.7f, "123456.7" },
        { 1234567.0f, "1234567" },
    };
    ks_jw w;
    ks_jw_init(&w);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ks_jw_reset(&w);
        ks_jw_f32(&w, rows[i].v);
        assert_string_equal(w.text, rows[i].text);
    }
    for (uint32_t u = 1; u < 0x7f800000u; u += 40009) {
        float v, back;
        memcpy(&v, &u, 4);
        ks_jw_reset(&w);
        ks_jw_f32(&w, v);
        back = strtof(w.text, NULL);
        if (memcmp(&back, &v, 4) != 0) fail_msg("%.9g was written as %s", (double)v, w.text);
    }
    ks_jw_fini(&w);
}

static void what_is_no_number_is_null(void **state)
{
    (void)state;
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_array(&w);
    ks_jw_f64(&w, (double)NAN);
    ks_jw_f64(&w, (double)INFINITY);
    ks_jw_f32(&w, -INFINITY);
    ks_jw_array_end(&w);
    assert_string_equal(w.text, "[null,null,null]");
    ks_jw_fini(&w);
}

static void a_locale_with_commas_changes_nothing(void **state)
{
    (void)state;
    if (!setlocale(LC_ALL, "de_DE.UTF-8") && !setlocale(LC_ALL, "fr_FR.UTF-8")) {
        print_message("no locale with a decimal comma is installed\n");
        skip();
    }
    check_f64(2.5, "2.5");
    check_f64(2.5e-300, "2.5e-300");
    (void)setlocale(LC_ALL, "C");
}

static void a_failed_allocation_is_told_at_the_end(void **state)
{
    (void)state;
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_str(&w, "before");
    ks_jw_bytes(&w, "x", SIZE_MAX / 2); /* refused before it is read */
    assert_int_equal(ks_jw_done(&w), KS_E_NOMEM);
    ks_jw_str(&w, "after");
    assert_int_equal(ks_jw_done(&w), KS_E_NOMEM); /* sticky */
    assert_string_equal(w.text, "\"before\"");
    ks_jw_reset(&w);
    ks_jw_null(&w);
    assert_int_equal(ks_jw_done(&w), 0);
    ks_jw_fini(&w);
}

static void large_texts_grow_the_buffer(void **state)
{
    (void)state;
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_array(&w);
    for (int i = 0; i < 100000; i++) ks_jw_i64(&w, i);
    ks_jw_array_end(&w);
    assert_int_equal(ks_jw_done(&w), 0);
    ks_json j;
    int64_t v = -1;
    ks_json_init(&j, w.text, w.n, 2);
    assert_int_equal(ks_json_next(&j), KS_JSON_ARRAY);
    for (int i = 0; i < 100000; i++) {
        assert_int_equal(ks_json_next(&j), KS_JSON_NUMBER);
        assert_int_equal(ks_json_i64(&j, &v), 0);
        assert_int_equal(v, i);
    }
    assert_int_equal(ks_json_next(&j), KS_JSON_ARRAY_END);
    assert_int_equal(ks_json_next(&j), KS_JSON_END);
    ks_jw_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commas_and_colons_are_placed),
        cmocka_unit_test(strings_are_escaped_and_ill_formed_bytes_replaced),
        cmocka_unit_test(doubles_are_shortest_and_read_back),
        cmocka_unit_test(floats_are_shortest_and_read_back),
        cmocka_unit_test(what_is_no_number_is_null),
        cmocka_unit_test(a_locale_with_commas_changes_nothing),
        cmocka_unit_test(a_failed_allocation_is_told_at_the_end),
        cmocka_unit_test(large_texts_grow_the_buffer),
    };
    return cmocka_run_group_tests_name("json_write", tests, NULL, NULL);
}
