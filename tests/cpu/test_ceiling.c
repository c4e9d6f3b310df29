/* The loops that show what a core can do: they do all of their work. */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */
#include "base/base.h"
#include "cpu/ceiling.h"
#include "cpu/cpu.h"
#include <string.h>
#include <time.h>

static bool runs_here(const ks_ceiling *c)
{
    return (c->cpu & ks_cpu_features()) == c->cpu;
}

static void every_kind_has_a_loop_for_every_processor_or_says_so(void **state)
{
    (void)state;
    bool plain[KS_CEIL_KINDS] = { false };
    const ks_ceiling *c;
    uint32_t kind = 0;
    for (uint32_t i = 0; (c = ks_ceiling_at(i)); i++) {
        assert_true(c->kind > 0 && c->kind < KS_CEIL_KINDS && c->kind >= kind); /* in order */
        kind = c->kind;
        plain[c->kind] |= c->cpu == 0;
    }
    assert_true(plain[KS_CEIL_READ] && plain[KS_CEIL_F32]);
}

static void reading_looks_at_every_line(void **state)
{
    (void)state;
    enum { N = 64 << 10 };
    const ks_ceiling *c;
    uint8_t *p = aligned_alloc(4096, N);
    assert_non_null(p);
    memset(p, 0, N);
    for (uint32_t i = 0; (c = ks_ceiling_at(i)); i++) {
        if (c->kind != KS_CEIL_READ || !runs_here(c)) continue;
        uint64_t zero = c->run(p, N);
        for (size_t line = 0; line < N; line += 64) {
            uint8_t *one = p + line + line / 64 * 5 % 64;
            *one = 1;
            assert_true(c->run(p, N) != zero);
            *one = 0;
        }
    }
    free(p);
}

static double seconds(const ks_ceiling *c, size_t rounds)
{
    struct timespec t0, t1;
    double best = 1e9;
    for (int i = 0; i < 5; i++) { /* this thread's own time: others may run, too */
        (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t0);
        volatile uint64_t kept = c->run(NULL, rounds);
        (void)kept;
        (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t1);
        best = KS_MIN(best, (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec));
    }
    return best;
}

static void four_times_the_rounds_take_longer(void **state)
{
    (void)state;
    const ks_ceiling *c;
    for (uint32_t i = 0; (c = ks_ceiling_at(i)); i++) {
        if (c->kind == KS_CEIL_READ || !runs_here(c)) continue;
        size_t rounds = c->per_round > 8192 ? 20000 : 400000;
        double one = seconds(c, rounds), four = seconds(c, 4 * rounds);
        if (four < 2 * one) fail_msg("%s: %g s and %g s", c->name, one, four);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_has_a_loop_for_every_processor_or_says_so),
        cmocka_unit_test(reading_looks_at_every_line),
        cmocka_unit_test(four_times_the_rounds_take_longer),
    };
    return cmocka_run_group_tests_name("ceiling", tests, NULL, NULL);
}
