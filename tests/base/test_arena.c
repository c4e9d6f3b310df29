/* The arena: alignment, zeroing, the limit, reuse after a reset. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/arena.h"
#include <cmocka.h>
#include <stdint.h>

static void allocations_are_zeroed_aligned_and_apart(void **state)
{
    (void)state;
    ks_arena a;
    unsigned char *last = NULL;
    ks_arena_init(&a, 0);
    for (int round = 0; round < 2; round++) {
        for (size_t n = 0; n < 3000; n += 7) {
            unsigned char *p = ks_arena_alloc(&a, n);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 16, 0);
            assert_ptr_not_equal(p, last); /* an empty one is one's own, too */
            for (size_t i = 0; i < n; i++) assert_int_equal(p[i], 0);
            memset(p, 0xa5, n);
            last = p;
        }
        ks_arena_reset(&a); /* the second round meets used memory */
        assert_int_equal(a.total_bytes, 0);
    }
    ks_arena_fini(&a);
    ks_arena_fini(&a);
}

static void large_allocations_get_room_of_their_own(void **state)
{
    (void)state;
    ks_arena a;
    ks_arena_init(&a, 0);
    char *small = ks_arena_strndup(&a, "kept", 4), *big = ks_arena_alloc(&a, (size_t)8 << 20);
    assert_non_null(big);
    big[((size_t)8 << 20) - 1] = 1;
    assert_string_equal(small, "kept");
    ks_arena_reset(&a);
    assert_ptr_equal(ks_arena_alloc(&a, (size_t)8 << 20), big); /* the largest block stayed */
    ks_arena_fini(&a);
}

static void the_limit_and_overflow_give_null(void **state)
{
    (void)state;
    ks_arena a;
    ks_arena_init(&a, 1024);
    assert_non_null(ks_arena_alloc(&a, 1008));
    assert_null(ks_arena_alloc(&a, 17));
    assert_non_null(ks_arena_alloc(&a, 16)); /* exactly full */
    assert_null(ks_arena_alloc(&a, 1));
    assert_null(ks_arena_strndup(&a, "x", 1));
    assert_null(ks_arena_printf(&a, "%d", 1));
    assert_null(ks_arena_alloc(&a, SIZE_MAX));
    ks_arena_reset(&a);
    assert_null(ks_arena_calloc(&a, SIZE_MAX / 2, 3));
    assert_null(ks_arena_strndup(&a, "x", SIZE_MAX));
    assert_non_null(ks_arena_calloc(&a, 32, 32));
    ks_arena_fini(&a);
    ks_arena_init(&a, 0);
    assert_null(ks_arena_alloc(&a, SIZE_MAX - 20));
    assert_null(ks_arena_alloc(&a, SIZE_MAX / 2));
    ks_arena_fini(&a);
}

static void strings_are_copied_and_formatted(void **state)
{
    (void)state;
    ks_arena a = { 0 }; /* zeroed is fine */
    assert_string_equal(ks_arena_strndup(&a, "abcdef", 3), "abc");
    assert_string_equal(ks_arena_strndup(&a, NULL, 0), "");
    assert_string_equal(ks_arena_printf(&a, "layer %d of '%s'", 7, "x"), "layer 7 of 'x'");
    ks_arena_reset(&a);
    ks_arena_fini(&a);
    ks_arena empty = { 0 };
    ks_arena_reset(&empty);
    ks_arena_fini(&empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocations_are_zeroed_aligned_and_apart),
        cmocka_unit_test(large_allocations_get_room_of_their_own),
        cmocka_unit_test(the_limit_and_overflow_give_null),
        cmocka_unit_test(strings_are_copied_and_formatted),
    };
    return cmocka_run_group_tests_name("arena", tests, NULL, NULL);
}
