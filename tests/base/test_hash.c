/* Hashes: pinned values (they name cache files), and the incremental form. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/hash.h"
#include <cmocka.h>

static void values_never_change(void **state)
{
    (void)state;
    char hex[33];
    ks_hash_hex(ks_hash("", 0), hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f"); /* published by XXH3's authors */
    assert_true(ks_hash64("", 0, 0) == UINT64_C(0x2d06800538d394c2));
    ks_hash_hex((ks_hash128) { .lo = 1, .hi = UINT64_C(0xfedcba9876543210) }, hex);
    assert_string_equal(hex, "fedcba98765432100000000000000001");
}

static void pieces_hash_as_the_whole(void **state)
{
    (void)state;
    static unsigned char data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 7 + i / 256);
    for (size_t piece = 1; piece < sizeof data; piece = piece * 3 + 1) {
        ks_hasher *h = ks_hasher_new();
        assert_non_null(h);
        for (size_t at = 0; at < sizeof data; at += piece)
            ks_hasher_add(h, data + at, piece < sizeof data - at ? piece : sizeof data - at);
        ks_hasher_add(h, NULL, 0);
        ks_hash128 a = ks_hasher_end(h), b = ks_hash(data, sizeof data);
        assert_true(a.lo == b.lo && a.hi == b.hi);
        ks_hasher_free(h);
    }
    ks_hasher_free(NULL);
    assert_true(ks_hash64(data, 100, 1) != ks_hash64(data, 100, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_never_change),
        cmocka_unit_test(pieces_hash_as_the_whole),
    };
    return cmocka_run_group_tests_name("hash", tests, NULL, NULL);
}
