/* Error codes and messages, checked sizes, the assertion. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/base.h"
#include <cmocka.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void a_failure_leaves_code_and_one_line(void **state)
{
    (void)state;
    ks_err err = { 0 };
    assert_int_equal(ks_fail(&err, KS_E_FORMAT, "'%s' holds %d", "a\nb\x7f", 3), KS_E_FORMAT);
    assert_int_equal(err.code, KS_E_FORMAT);
    assert_string_equal(err.msg, "'a b ' holds 3");
    assert_int_equal(ks_fail(NULL, KS_E_IO, "nobody listens"), KS_E_IO);
    char longer[2000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_int_equal(ks_fail(&err, KS_E_IO, "%s", longer), KS_E_IO);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
}

static void wrapping_puts_the_context_before(void **state)
{
    (void)state;
    ks_err err;
    (void)ks_fail(&err, KS_E_NOTFOUND, "no such tensor");
    assert_int_equal(ks_err_wrap(&err, "layer 3"), KS_E_NOTFOUND);
    assert_string_equal(err.msg, "layer 3: no such tensor");
    assert_int_equal(ks_err_wrap(NULL, "layer 3"), KS_E_INTERNAL);
}

static void every_code_has_a_text(void **state)
{
    (void)state;
    assert_string_equal(ks_error_text(KS_E_NOMEM), "out of memory");
    assert_string_equal(ks_error_text(-999), "unknown error");
    for (int code = KS_E_INTERNAL; code < 0; code++) assert_string_not_equal(ks_error_text(code), "unknown error");
}

static void sizes_are_checked(void **state)
{
    (void)state;
    size_t n = 0;
    assert_true(ks_mul_size(SIZE_MAX / 2, 2, &n));
    assert_false(ks_mul_size(SIZE_MAX / 2 + 1, 2, &n));
    assert_true(ks_add_size(SIZE_MAX - 1, 1, &n));
    assert_false(ks_add_size(SIZE_MAX, 1, &n));
    assert_int_equal(ks_align_up(65, 64), 128);
    assert_null(ks_calloc(SIZE_MAX / 2, 4));
    char *p = ks_calloc(0, 8); /* NULL means failure only */
    assert_non_null(p);
    free(p);
    p = ks_strdup("text");
    assert_string_equal(p, "text");
    free(p);
}

static void a_broken_assertion_names_itself_and_aborts(void **state)
{
    (void)state;
    int fds[2], status = 0;
    assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        const struct rlimit none = { 0, 0 };
        (void)setrlimit(RLIMIT_CORE, &none);
        (void)signal(SIGABRT, SIG_DFL);
        (void)dup2(fds[1], STDERR_FILENO);
        KS_ASSERT(1 + 1 == 2);
        KS_ASSERT(1 + 1 == 3);
        _exit(0);
    }
    char text[512] = "";
    (void)close(fds[1]);
    assert_true(read(fds[0], text, sizeof text - 1) > 0);
    (void)close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(text, "krasis: bug: '1 + 1 == 3' does not hold at "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_leaves_code_and_one_line),
        cmocka_unit_test(wrapping_puts_the_context_before),
        cmocka_unit_test(every_code_has_a_text),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(a_broken_assertion_names_itself_and_aborts),
    };
    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
