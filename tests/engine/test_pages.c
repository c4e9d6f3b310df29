/* KV pages: references, reuse order, keys. */
#include "base/base.h"
#include "engine/pages.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void tokens(int32_t t[KS_PAGE_TOK], int32_t first)
{
    for (uint32_t i = 0; i < KS_PAGE_TOK; i++) t[i] = first + (int32_t)i;
}

static void all_pages_can_be_taken_once(void **state)
{
    (void)state;
    ks_pages p;
    bool seen[5] = { false };
    assert_int_equal(ks_pages_init(&p, 5, NULL), 0);
    for (int i = 0; i < 5; i++) {
        uint32_t g = ks_pages_take(&p);
        assert_true(g < 5 && !seen[g]);
        seen[g] = true;
    }
    assert_int_equal(ks_pages_take(&p), KS_NO_PAGE);
    ks_pages_drop(&p, 3);
    assert_int_equal(ks_pages_take(&p), 3);
    ks_pages_fini(&p);
}

static void a_published_page_is_found_until_its_memory_is_needed(void **state)
{
    (void)state;
    ks_pages p;
    int32_t t[KS_PAGE_TOK];
    assert_int_equal(ks_pages_init(&p, 3, NULL), 0);
    tokens(t, 0);
    ks_hash128 key = ks_page_key(NULL, t);
    uint32_t a = ks_pages_take(&p);
    ks_pages_publish(&p, a, key);
    ks_pages_drop(&p, a);
    assert_int_equal(ks_pages_find(&p, key), a); /* idle, but there */
    uint32_t b = ks_pages_take(&p), c = ks_pages_take(&p);
    assert_true(b != a && c != a && b != c);
    assert_int_equal(ks_pages_take(&p), KS_NO_PAGE);
    ks_pages_drop(&p, a);
    assert_int_equal(ks_pages_take(&p), a); /* nobody holds it: taken */
    assert_int_equal(ks_pages_find(&p, key), KS_NO_PAGE);
    ks_pages_fini(&p);
}

static void worthless_pages_are_taken_before_published_ones(void **state)
{
    (void)state;
    ks_pages p;
    int32_t t[KS_PAGE_TOK];
    assert_int_equal(ks_pages_init(&p, 2, NULL), 0);
    tokens(t, 7);
    uint32_t a = ks_pages_take(&p), b = ks_pages_take(&p);
    ks_pages_publish(&p, a, ks_page_key(NULL, t));
    ks_pages_drop(&p, a);
    ks_pages_drop(&p, b); /* later, but without a key */
    assert_int_equal(ks_pages_take(&p), b);
    ks_pages_fini(&p);
}

static void the_least_recently_used_published_page_goes_first(void **state)
{
    (void)state;
    ks_pages p;
    int32_t t[KS_PAGE_TOK];
    ks_hash128 key[3];
    uint32_t page[3];
    assert_int_equal(ks_pages_init(&p, 3, NULL), 0);
    for (int32_t i = 0; i < 3; i++) {
        tokens(t, i * 100);
        key[i] = ks_page_key(NULL, t);
        page[i] = ks_pages_take(&p);
        ks_pages_publish(&p, page[i], key[i]);
    }
    for (int i = 0; i < 3; i++) ks_pages_drop(&p, page[i]);
    assert_int_equal(ks_pages_find(&p, key[0]), page[0]); /* used again */
    ks_pages_drop(&p, page[0]);
    assert_int_equal(ks_pages_take(&p), page[1]);
    ks_pages_fini(&p);
}

static void keys_depend_on_the_whole_prefix(void **state)
{
    (void)state;
    int32_t a[KS_PAGE_TOK], b[KS_PAGE_TOK];
    tokens(a, 1);
    tokens(b, 2);
    ks_hash128 ka = ks_page_key(NULL, a), kb = ks_page_key(NULL, b), kab = ks_page_key(&ka, b);
    assert_true(ka.lo != kb.lo);
    assert_true(kab.lo != kb.lo || kab.hi != kb.hi);
}

static void publishing_a_known_key_changes_nothing(void **state)
{
    (void)state;
    ks_pages p;
    int32_t t[KS_PAGE_TOK];
    tokens(t, 3);
    assert_int_equal(ks_pages_init(&p, 4, NULL), 0);
    uint32_t a = ks_pages_take(&p), b = ks_pages_take(&p);
    ks_hash128 key = ks_page_key(NULL, t);
    ks_pages_publish(&p, a, key);
    ks_pages_publish(&p, b, key);
    ks_pages_drop(&p, b);
    assert_int_equal(ks_pages_find(&p, key), a);
    ks_pages_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_pages_can_be_taken_once),
        cmocka_unit_test(a_published_page_is_found_until_its_memory_is_needed),
        cmocka_unit_test(worthless_pages_are_taken_before_published_ones),
        cmocka_unit_test(the_least_recently_used_published_page_goes_first),
        cmocka_unit_test(keys_depend_on_the_whole_prefix),
        cmocka_unit_test(publishing_a_known_key_changes_nothing),
    };
    return cmocka_run_group_tests_name("pages", tests, NULL, NULL);
}
