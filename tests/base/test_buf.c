/* The buffer: growth, the terminating NUL, sticky failure at the limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/buf.h"
#include <cmocka.h>
#include <stdint.h>
#include <stdlib.h>

static void bytes_are_appended_and_terminated(void **state)
{
    (void)state;
    ks_buf b;
    size_t n = 0;
    ks_buf_init(&b, 0);
    assert_null(b.p);
    ks_buf_adds(&b, "ab");
    ks_buf_addc(&b, 'c');
    ks_buf_add(&b, "d\0e", 3);
    ks_buf_add(&b, NULL, 0);
    ks_buf_printf(&b, "%s-%d", "f", 12);
    assert_false(b.failed);
    assert_int_equal(b.n, 10);
    assert_memory_equal(b.p, "abcd\0ef-12", 11);
    char *p = ks_buf_take(&b, &n);
    assert_int_equal(n, 10);
    assert_int_equal(b.n, 0);
    assert_null(b.p);
    free(p);
    p = ks_buf_take(&b, NULL); /* empty: an empty string */
    assert_string_equal(p, "");
    free(p);
    ks_buf_fini(&b);
    ks_buf_fini(&b);
}

static void long_texts_grow_it(void **state)
{
    (void)state;
    ks_buf b;
    ks_buf_init(&b, 0);
    for (int i = 0; i < 10000; i++) ks_buf_printf(&b, "%05d", i);
    assert_int_equal(b.n, 50000);
    assert_int_equal(b.p[50000], 0);
    assert_memory_equal(b.p + 5 * 1234, "01234", 5);
    ks_buf_printf(&b, "%5000s", "x"); /* more than it holds at once */
    assert_int_equal(b.n, 55000);
    ks_buf_fini(&b);
}

static void above_the_limit_it_fails_and_stays_failed(void **state)
{
    (void)state;
    ks_buf b;
    ks_buf_init(&b, 10);
    ks_buf_adds(&b, "0123456789");
    assert_false(b.failed); /* exactly the limit */
    ks_buf_addc(&b, 'x');
    assert_true(b.failed);
    assert_string_equal(b.p, "0123456789");
    ks_buf_add(&b, NULL, 0);
    ks_buf_printf(&b, "y");
    assert_int_equal(b.n, 10);
    assert_null(ks_buf_take(&b, NULL));
    ks_buf_fini(&b);
    ks_buf_adds(&b, "again"); /* the limit stays, the failure goes */
    assert_false(b.failed);
    ks_buf_printf(&b, "%s", "too long");
    assert_true(b.failed);
    ks_buf_fini(&b);
    ks_buf_init(&b, 0);
    ks_buf_adds(&b, "x");
    ks_buf_add(&b, "y", SIZE_MAX - 4); /* refused before it is read */
    assert_true(b.failed);
    ks_buf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_appended_and_terminated),
        cmocka_unit_test(long_texts_grow_it),
        cmocka_unit_test(above_the_limit_it_fails_and_stays_failed),
    };
    return cmocka_run_group_tests_name("buf", tests, NULL, NULL);
}
