/* Progress: silent for short work, lines where stderr is no terminal, safe from many threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/clock.h"
#include "base/progress.h"
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char got[4096];

/* What fn writes to stderr, into got; on a pseudo-terminal if asked. */
static void capture(void (*fn)(void), bool terminal)
{
    int fds[2] = { -1, -1 }, status = 0;
    size_t n = 0;
    if (terminal) {
        fds[0] = posix_openpt(O_RDWR | O_NOCTTY);
        if (fds[0] < 0 || grantpt(fds[0]) != 0 || unlockpt(fds[0]) != 0) {
            print_message("no pseudo-terminals here\n");
            skip();
        }
        fds[1] = open(ptsname(fds[0]), O_RDWR | O_NOCTTY);
        assert_true(fds[1] >= 0);
    } else {
        assert_int_equal(pipe(fds), 0);
    }
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        (void)dup2(fds[1], STDERR_FILENO);
        fn();
        _exit(0);
    }
    (void)close(fds[1]);
    for (ssize_t k; (k = read(fds[0], got + n, sizeof got - 1 - n)) > 0;) n += (size_t)k; /* EIO ends a terminal */
    got[n] = 0;
    (void)close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void run_short(void)
{
    ks_progress *p = ks_progress_begin("loading", 100, "experts");
    ks_progress_add(p, 100);
    ks_progress_end(p);
}

static void short_work_says_nothing(void **state)
{
    (void)state;
    capture(run_short, false);
    assert_string_equal(got, "");
}

static void run_over_a_second(void)
{
    uint64_t until = ks_now_ns() + 1050000000u;
    ks_progress *p = ks_progress_begin("loading", 2000000000, "B");
    while (ks_now_ns() < until) ks_progress_add(p, 0);
    ks_progress_add(p, 1000000000);
    if (ks_progress_drawn() != (isatty(STDERR_FILENO) == 1)) _exit(1);
    ks_progress_end(p);
    if (ks_progress_drawn()) _exit(2);
}

static void long_work_prints_a_line(void **state)
{
    (void)state;
    capture(run_over_a_second, false);
    assert_non_null(strstr(got, "loading   0% 0/2000 MB, 0.00 GB/s\n"));
    assert_non_null(strstr(got, "loading  50% 1000/2000 MB, 0.9"));
    assert_null(strchr(got, '\r'));
}

static void a_terminal_gets_a_bar(void **state)
{
    (void)state;
    capture(run_over_a_second, true);
    assert_non_null(strstr(got, "\r\033[Kloading [                    ]   0% 0/2000 MB"));
    assert_non_null(strstr(got, "\r\033[Kloading [##########          ]  50% 1000/2000 MB, 0.9"));
}

static void run_quiet(void)
{
    ks_progress_quiet(1);
    run_over_a_second();
}

static void quiet_means_never(void **state)
{
    (void)state;
    capture(run_quiet, false);
    assert_string_equal(got, "");
}

static void *add_many(void *p)
{
    for (uint64_t until = ks_now_ns() + 1100000000u; ks_now_ns() < until;) ks_progress_add(p, 1);
    return NULL;
}

static void run_threads(void)
{
    pthread_t threads[3];
    ks_progress *p = ks_progress_begin("counting", 0, "rows");
    for (int i = 0; i < 3; i++)
        if (pthread_create(&threads[i], NULL, add_many, p) != 0) _exit(1);
    for (int i = 0; i < 3; i++) (void)pthread_join(threads[i], NULL);
    ks_progress_end(p);
}

static void many_threads_may_advance_it(void **state)
{
    (void)state;
    capture(run_threads, false);
    assert_memory_equal(got, "counting ", 9);
    assert_non_null(strstr(got, " rows\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_work_says_nothing),     cmocka_unit_test(long_work_prints_a_line),
        cmocka_unit_test(a_terminal_gets_a_bar),       cmocka_unit_test(quiet_means_never),
        cmocka_unit_test(many_threads_may_advance_it),
    };
    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
