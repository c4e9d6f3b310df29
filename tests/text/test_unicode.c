/* Classes, sets and normal forms. */
#include "tok_support.h"

#include "text/unicode.h"

static size_t count_of(const char *property)
{
    ks_uni_ranges a = { 0 };
    if (!ks_uni_add_property(&a, property, strlen(property))) return 0;
    ks_uni_set *s = ks_uni_set_new(&a);
    assert_non_null(s);
    size_t n = 0;
    for (uint32_t c = 0; c <= KS_UNI_MAX; c++) n += ks_uni_set_has(s, c);
    ks_uni_set_free(s);
    ks_uni_ranges_fini(&a);
    return n;
}

/* The counts that were measured with the reference's engine. */
static void classes_are_those_of_unicode_16(void **state)
{
    (void)state;
    assert_int_equal(count_of("L"), 141028);
    assert_int_equal(count_of("M"), 2501);
    assert_int_equal(count_of("N"), 1911);
    assert_int_equal(count_of("P"), 855);
    assert_int_equal(count_of("S"), 8514);
    assert_int_equal(count_of("Han"), 99030);
    assert_int_equal(count_of("Any"), 0x110000);
    assert_int_equal(count_of("L"), count_of("Letter"));
    assert_int_equal(count_of("Lu") + count_of("Ll") + count_of("Lt"), count_of("LC"));
    assert_int_equal(count_of("old_italic"), count_of("OldItalic"));
    assert_int_equal(count_of("Klingon"), 0);
    assert_int_equal(count_of(""), 0);
}

static void white_space_has_25_characters(void **state)
{
    (void)state;
    ks_uni_ranges a = { 0 };
    ks_uni_add_space(&a);
    ks_uni_set *s = ks_uni_set_new(&a);
    assert_non_null(s);
    size_t n = 0;
    for (uint32_t c = 0; c <= KS_UNI_MAX; c++) {
        n += ks_uni_set_has(s, c);
        assert_int_equal(ks_uni_set_has(s, c), ks_uni_is_space(c));
    }
    assert_int_equal(n, 25);
    ks_uni_set_free(s);
    ks_uni_ranges_fini(&a);
}

static void ranges_invert_and_intersect(void **state)
{
    (void)state;
    ks_uni_ranges a = { 0 }, b = { 0 };
    ks_uni_add(&a, 10, 20);
    ks_uni_add(&a, 15, 30);
    ks_uni_add(&a, 31, 40);
    ks_uni_tidy(&a);
    assert_int_equal(a.n, 1);
    ks_uni_invert(&a);
    assert_int_equal(a.n, 2);
    ks_uni_add(&b, 5, 12);
    ks_uni_add(&b, 38, 50);
    ks_uni_intersect(&a, &b);
    assert_int_equal(a.n, 2);
    assert_int_equal(a.r[0].lo, 5);
    assert_int_equal(a.r[0].hi, 9);
    assert_int_equal(a.r[1].lo, 41);
    assert_int_equal(a.r[1].hi, 50);
    ks_uni_ranges_fini(&a);
    ks_uni_ranges_fini(&b);
}

static void check(int form, const char *in, const char *out)
{
    ks_buf b;
    ks_buf_init(&b, 0);
    ks_uni_normalize(form, in, strlen(in), &b);
    assert_false(b.failed);
    ks_buf_addc(&b, 0);
    assert_string_equal(b.p, out);
    if (ks_uni_is_normal(form, in, strlen(in))) assert_string_equal(in, out);
    ks_buf_fini(&b);
}

static void normal_forms_compose_and_decompose(void **state)
{
    (void)state;
    check(KS_NFC, "plain", "plain");
    check(KS_NFC, "e\u0301 x", "\u00e9 x");
    check(KS_NFD, "\u00e9", "e\u0301");
    check(KS_NFC, "\u212b\u2126", "\u00c5\u03a9"); /* singletons */
    check(KS_NFC, "\u0958", "\u0915\u093c");       /* excluded from composition */
    check(KS_NFC, "\u1100\u1161\u11a8", "\uac01"); /* Hangul */
    check(KS_NFD, "\uac01", "\u1100\u1161\u11a8");
    check(KS_NFC, "\uac00\u11a8", "\uac01");
    check(KS_NFC, "a\u0315\u0300", "\u00e0\u0315"); /* marks are sorted, then composed */
    check(KS_NFC, "a\u0323\u0307", "\u1ea1\u0307");
    check(KS_NFC, "\u0301x", "\u0301x"); /* a mark without a base */
    check(KS_NFKC, "\ufb01\u00b2\u2075", "fi25");
    check(KS_NFKD, "\u00bd", "1\u20442");
}

/* A table of Unicode 9, as the reference: later compositions do not happen. */
static void later_characters_do_not_compose(void **state)
{
    (void)state;
    check(KS_NFC, "\U00011935\U00011930", "\U00011935\U00011930"); /* U+11938, Unicode 13 */
    check(KS_NFKC, "\u32ff", "\u32ff");                            /* square era name Reiwa, Unicode 12.1 */
}

static void many_marks_take_linear_time(void **state)
{
    (void)state;
    size_t n = 400000;
    ks_buf in, out;
    ks_buf_init(&in, 0);
    ks_buf_init(&out, 0);
    ks_buf_addc(&in, 'q');
    for (size_t i = 0; i < n; i++) ks_buf_adds(&in, i & 1 ? "\u0323" : "\u0301"); /* classes 220 and 230 */
    ks_uni_normalize(KS_NFC, in.p, in.n, &out);
    assert_false(out.failed);
    assert_int_equal(out.n, in.n);
    assert_memory_equal(out.p, "q\u0323\u0323", 5);
    assert_memory_equal(out.p + out.n - 4, "\u0301\u0301", 4);
    ks_buf_fini(&in);
    ks_buf_fini(&out);
}

static void lower_case_maps_single_characters(void **state)
{
    (void)state;
    assert_int_equal(ks_uni_lower('A'), 'a');
    assert_int_equal(ks_uni_lower('a'), 'a');
    assert_int_equal(ks_uni_lower(0xc9), 0xe9);
    assert_int_equal(ks_uni_lower(0x100), 0x101);
    assert_int_equal(ks_uni_lower(0x101), 0x101);
    assert_int_equal(ks_uni_lower(0x1e9e), 0xdf);
    assert_int_equal(ks_uni_lower(0x4e00), 0x4e00);
    assert_true(ks_uni_is_mark(0x301));
    assert_false(ks_uni_is_mark('a'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classes_are_those_of_unicode_16),   cmocka_unit_test(white_space_has_25_characters),
        cmocka_unit_test(ranges_invert_and_intersect),       cmocka_unit_test(normal_forms_compose_and_decompose),
        cmocka_unit_test(later_characters_do_not_compose),   cmocka_unit_test(many_marks_take_linear_time),
        cmocka_unit_test(lower_case_maps_single_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
