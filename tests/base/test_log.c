/* The log: what a line looks like, levels, hostile text, JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/log.h"
#include <cmocka.h>
#include <krasis/json.h>
#include <sys/wait.h>
#include <unistd.h>

static char got[8192];

/* What fn writes to stderr, into got. */
static void capture(void (*fn)(void))
{
    int fds[2], status = 0;
    size_t n = 0;
    assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        (void)dup2(fds[1], STDERR_FILENO);
        fn();
        _exit(0);
    }
    (void)close(fds[1]);
    for (ssize_t k; (k = read(fds[0], got + n, sizeof got - 1 - n)) > 0;) n += (size_t)k;
    got[n] = 0;
    (void)close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void say_levels(void)
{
    ks_log(KS_LOG_ERROR, "engine", "one %d", 1);
    ks_log(KS_LOG_INFO, "http", "two\nlines\tand \x1b[31m");
    ks_log(KS_LOG_DEBUG, "engine", "hidden");
    ks_log_setup(KS_LOG_TRACE, false);
    ks_log(KS_LOG_TRACE, "engine", "shown");
    ks_log_setup(-1, false);
    ks_log(KS_LOG_ERROR, "engine", "hidden, too");
}

static void a_line_has_time_level_component_and_text(void **state)
{
    (void)state;
    int h, m, s, ms, used = 0;
    capture(say_levels);
    assert_int_equal(sscanf(got, "%2d:%2d:%2d.%3d %n", &h, &m, &s, &ms, &used), 4);
    const char want[] = "error engine: one 1\n";
    assert_memory_equal(got + used, want, sizeof want - 1);
    assert_non_null(strstr(got, " info  http: two lines and  [31m\n"));
    assert_non_null(strstr(got, " trace engine: shown\n"));
    assert_null(strstr(got, "hidden"));
}

static void say_long(void)
{
    char text[4000];
    for (size_t i = 0; i + 1 < sizeof text; i += 2) memcpy(text + i, "\xc3\xa9", 2);
    text[sizeof text - 2] = 0;
    ks_log(KS_LOG_WARN, "a", "x%s", text);
}

static void a_long_line_is_cut_between_characters(void **state)
{
    (void)state;
    capture(say_long);
    size_t n = strlen(got);
    assert_true(n > 1000 && n < 2200);
    assert_string_equal(got + n - 6, "\xc3\xa9...\n");
    assert_int_equal(ks_utf8_valid(got, n), n);
}

static void say_json(void)
{
    ks_log_setup(KS_LOG_INFO, true);
    ks_log(KS_LOG_WARN, "plug\"in", "a \"b\" \xff");
}

static void json_lines_are_json(void **state)
{
    (void)state;
    ks_json j;
    char text[64];
    capture(say_json);
    assert_int_equal(got[strlen(got) - 1], '\n');
    ks_json_init(&j, got, strlen(got), 2);
    static const char *const want[][2] = {
        { "time", NULL }, { "level", "warn" }, { "component", "plug\"in" }, { "msg", "a \"b\" \xef\xbf\xbd" }
    };
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(ks_json_next(&j), KS_JSON_KEY);
        assert_true(ks_json_is(&j, want[i][0]));
        assert_int_equal(ks_json_next(&j), KS_JSON_STRING);
        assert_int_equal(ks_json_str(&j, text, sizeof text, NULL), 0);
        if (want[i][1])
            assert_string_equal(text, want[i][1]);
        else
            assert_int_equal(strlen(text), strlen("2026-01-02T03:04:05.678Z"));
    }
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT_END);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_time_level_component_and_text),
        cmocka_unit_test(a_long_line_is_cut_between_characters),
        cmocka_unit_test(json_lines_are_json),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
