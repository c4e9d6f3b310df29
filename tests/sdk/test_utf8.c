/* UTF-8 against an independent statement of the rules, over every code point and every short byte string. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <krasis/json.h>

/* The rule said the other way round: shift in continuation bytes, then refuse what is too small or no scalar. */
static uint32_t plain_decode(const unsigned char *p, size_t n, uint32_t *ret_cp)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    uint32_t len = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;
    if (!len || n < len) return 0;
    uint32_t cp = len == 1 ? p[0] : p[0] & (0xffu >> (len + 1));
    for (uint32_t i = 1; i < len; i++) {
        if (p[i] >> 6 != 2) return 0;
        cp = cp << 6 | (p[i] & 0x3f);
    }
    if (cp < least[len] || cp > 0x10ffff || (cp >= 0xd800 && cp <= 0xdfff)) return 0;
    *ret_cp = cp;
    return len;
}

static void every_scalar_value_survives_a_round_trip(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp <= 0x110010; cp++) {
        char s[4];
        uint32_t back = 0, n = ks_utf8_encode(cp, s);
        bool scalar = cp <= 0x10ffff && !(cp >= 0xd800 && cp <= 0xdfff);
        assert_int_equal(n != 0, scalar);
        if (!scalar) continue;
        assert_int_equal(ks_utf8_decode(s, n, &back), n);
        assert_int_equal(back, cp);
        assert_int_equal(ks_utf8_decode(s, n - 1, &back), 0); /* cut off */
        assert_int_equal(ks_utf8_valid(s, n), n);
    }
    assert_int_equal(ks_utf8_encode(UINT32_MAX, (char[4]) { 0 }), 0);
}

static void byte_strings_decode_as_the_standard_says(void **state)
{
    (void)state;
    static const unsigned char edge[] = { 0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xe0, 0xff };
    const unsigned n_edge = sizeof edge;
    for (unsigned a = 0; a < 256; a++)
        for (unsigned b = 0; b < 256; b++)
            for (unsigned c = 0; c < n_edge * n_edge; c++) {
                unsigned char s[4] = { (unsigned char)a, (unsigned char)b, edge[c / n_edge], edge[c % n_edge] };
                for (size_t n = 1; n <= 4; n++) {
                    uint32_t want = 0, got = 0, len = plain_decode(s, n, &want);
                    if (ks_utf8_decode((char *)s, n, &got) != len || (len && got != want))
                        fail_msg("%02x %02x %02x %02x, %zu bytes", s[0], s[1], s[2], s[3], n);
                }
            }
}

static void the_valid_prefix_ends_before_the_first_bad_byte(void **state)
{
    (void)state;
    char s[64];
    for (size_t at = 0; at < 40; at++) { /* across the eight-byte steps */
        memset(s, 'x', sizeof s);
        assert_int_equal(ks_utf8_valid(s, 40), 40);
        s[at] = (char)0xff;
        assert_int_equal(ks_utf8_valid(s, 40), at);
    }
    assert_int_equal(ks_utf8_valid("ab\xe2\x82", 4), 2);
    assert_int_equal(ks_utf8_valid("", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_scalar_value_survives_a_round_trip),
        cmocka_unit_test(byte_strings_decode_as_the_standard_says),
        cmocka_unit_test(the_valid_prefix_ends_before_the_first_bad_byte),
    };
    return cmocka_run_group_tests_name("utf8", tests, NULL, NULL);
}
