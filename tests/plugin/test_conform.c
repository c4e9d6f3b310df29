/* krasis-conform itself: a plugin that breaks one rule fails at that rule and at no other, whether it answers wrongly,
 * dies or hangs; and the command line says what is wrong with it. */
#include "base/base.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/wait.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define TOOL KS_BUILD_DIR "/krasis-conform"

static char output[65536];

/* Runs the tool; its output, both streams, is in `output`. Returns the exit code. */
static int conform(const char *args)
{
    char cmd[1024];
    (void)snprintf(cmd, sizeof cmd, TOOL " %s 2>&1", args);
    FILE *f = popen(cmd, "re");
    assert_non_null(f);
    size_t n = fread(output, 1, sizeof output - 1, f);
    output[n] = 0;
    int status = pclose(f);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static uint32_t count(const char *text)
{
    uint32_t n = 0;
    for (const char *p = output; (p = strstr(p, text)); p += strlen(text)) n++;
    return n;
}

static void breaks(const char *fixture, const char *options, const char *rule, const char *why)
{
    char args[512], line[64];
    (void)snprintf(args, sizeof args, "%s " KS_FIXTURE_DIR "/%s.so", options, fixture);
    (void)snprintf(line, sizeof line, " - %s ", rule);
    int rc = conform(args);
    const char *bad = strstr(output, "not ok ");
    if (rc != 1 || count("not ok ") != 1 || !bad || !strstr(bad, line) || strstr(bad, line) > strchr(bad, '\n') ||
        !strstr(output, why))
        fail_msg("%s: expected to break %s alone (%s), exit code %d:\n%s", fixture, rule, why, rc, output);
}

static void keeps_all(const char *fixture)
{
    char args[512];
    (void)snprintf(args, sizeof args, KS_FIXTURE_DIR "/%s.so", fixture);
    int rc = conform(args);
    if (rc != 0 || count("not ok ")) fail_msg("%s: exit code %d:\n%s", fixture, rc, output);
}

static void good_plugins_keep_all_rules(void **state)
{
    (void)state;
    keeps_all("good-loader");
    keeps_all("good-options");
    keeps_all("good-kernels");
    assert_int_equal(count("ok 12 - KRN-1 norm: equals the reference within the op's bound\n"), 1);
    keeps_all("good-future");
    assert_int_equal(
        count("KRN-1 of-tomorrow: equals the reference within the op's bound # SKIP the reference has no row"), 1);
    keeps_all("good-old");
}

static void not_working_here_breaks_no_rule(void **state)
{
    (void)state;
    keeps_all("bad-probe");
    keeps_all("bad-open");
}

static void every_abi_rule_has_a_plugin_that_breaks_it_alone(void **state)
{
    (void)state;
    breaks("bad-abi1", "", "ABI-1", "a_helper: use the version script");
    breaks("bad-no-symbol", "", "ABI-1", "it does not export krasis_plugin_v1");
    breaks("bad-abi-major", "", "ABI-1", "it does not export krasis_plugin_v1");
    breaks("bad-function", "", "ABI-1", "its krasis_plugin_v1 is no data");
    breaks("bad-abi2", "", "ABI-2", "it needs ks_function_of_the_host");
    breaks("bad-unresolved", "", "ABI-3", "undefined symbol: a_function_of_no_library");
    breaks("bad-kind", "", "ABI-5", "its kind is 99");
    breaks("bad-name", "", "ABI-5", "its name is 'someone-else', but the file is 'bad-name.so'");
    breaks("bad-size-beyond", "", "ABI-5", "its descriptor says it has 4096 bytes");
    breaks("bad-option-default", "", "ABI-5", "the default of its option 'n' is wrong");
    breaks("bad-abi7", "", "ABI-7", "its answer 2 differs from the first");
    breaks("bad-abi7-slow", "", "ABI-7", "at most 100 are allowed");
    breaks("bad-abi8", "", "ABI-8", "bytes of host memory are left after close() number 1");
    breaks("bad-abi9", "", "ABI-9", "it has the extension");
    breaks("bad-abi10", "", "ABI-10", "code -5 (not found) and no message");
    breaks("bad-abi11", "", "ABI-11", "it wrote 6 bytes to the process's output");
    breaks("bad-abi11-exit", "", "ABI-11", "it calls exit");
    breaks("bad-abi12", "", "ABI-12", "a host of 136 bytes is strange");
}

static void a_crash_is_a_broken_rule(void **state)
{
    (void)state;
    breaks("bad-abi3", "", "ABI-3", SANITIZED ? "" : "it died of signal 4 (Illegal instruction)");
    breaks("bad-abi8-null", "", "ABI-8", SANITIZED ? "" : "it died of signal 11 (Segmentation fault)");
    breaks("bad-ldr1", "", "LDR-1", SANITIZED ? "" : "it died of signal 11 (Segmentation fault)");
}

static void every_kernel_rule_has_a_plugin_that_breaks_it_alone(void **state)
{
    (void)state;
    breaks("bad-krn1", "", "KRN-1", "relative error");
    breaks("bad-krn2", "", "KRN-2", "which is not theirs");
    breaks("bad-krn3", "", "KRN-3", "differs");
}

static void a_hang_is_ended_at_the_limit(void **state)
{
    (void)state;
    breaks("bad-krn-hang", "--timeout 1", "KRN-1", "it did not end within 1 s");
    assert_int_equal(count("# SKIP not reached"), 3);
}

static void what_a_sanitizer_hides_is_seen_without_one(void **state)
{
    (void)state;
    if (SANITIZED) {
        print_message("skipped: constructors, allocations and static memory are also the sanitizer's in this build\n");
        skip();
    }
    breaks("bad-abi4", "", "ABI-4", "1 constructors run when it is loaded");
    breaks("bad-cpu", "", "ABI-4", "1 constructors run when it is loaded"); /* and it is not loaded here */
    breaks("bad-krn4", "", "KRN-4", "bytes of the plugin's static memory");
    breaks("bad-krn4-malloc", "", "KRN-4", "it allocated memory");
}

static void one_rule_can_be_asked_for_or_left_out(void **state)
{
    (void)state;
    assert_int_equal(conform("--rule KRN-3 --rule ABI-1 " KS_FIXTURE_DIR "/good-kernels.so"), 0);
    assert_string_equal(output, "TAP version 13\n"
                                "ok 1 - ABI-1 exports exactly one symbol, krasis_plugin_v1, of data type\n"
                                "ok 2 - KRN-3 norm: any split gives the same bits\n"
                                "1..2\n");
    assert_int_equal(conform("--rule KRN-4 --skip KRN-1 " KS_FIXTURE_DIR "/bad-krn1.so"), 0);
    assert_non_null(strstr(output, "ok 1 - KRN-4 norm: allocates nothing and keeps no state # SKIP not reached"));
    assert_int_equal(conform("--skip ABI-11 " KS_FIXTURE_DIR "/bad-abi11-exit.so"), 0);
    assert_int_equal(count("ABI-11"), 0);
    /* What a rule stands on is told, asked for or not. */
    assert_int_equal(conform("--rule KRN-1 " KS_FIXTURE_DIR "/bad-kind.so"), 1);
    assert_non_null(strstr(output, "not ok 1 - ABI-5 "));
}

static void a_sample_is_damaged_in_many_ways(void **state)
{
    FILE *f = fopen("sample.fix", "we");
    (void)state;
    assert_non_null(f);
    assert_true(fputs("FIX1 and some more", f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(conform("--rule LDR-1 --sample sample.fix " KS_FIXTURE_DIR "/good-loader.so"), 0);
    assert_non_null(strstr(output, "ok 1 - LDR-1 any file, however broken, is an error and never a crash\n"));
    assert_int_equal(conform("--sample nowhere " KS_FIXTURE_DIR "/good-loader.so"), 2);
    assert_string_equal(output, "krasis-conform: --sample 'nowhere': No such file or directory\n");
}

static void it_also_runs_in_one_process(void **state)
{
    (void)state;
    assert_int_equal(conform("--in-process --seed 7 " KS_FIXTURE_DIR "/good-kernels.so"), 0);
    assert_non_null(
        strstr(output, "ABI-11 does not end or change the process, nor write to its output # SKIP its output"));
    assert_non_null(strstr(output, "KRN-3 norm: any split gives the same bits\n"));
}

static void the_list_names_every_rule(void **state)
{
    static const char *const ids[] = { "ABI-1 ", "ABI-2 ", "ABI-3 ",  "ABI-4 ", "ABI-5 ", "ABI-7 ",
                                       "ABI-8 ", "ABI-9 ", "ABI-10 ", "ABI-11", "ABI-12", "LDR-1 ",
                                       "DEV-1 ", "FE-1 ",  "KRN-1 ",  "KRN-2 ", "KRN-3 ", "KRN-4 " };
    (void)state;
    assert_int_equal(conform("--list"), 0);
    for (size_t i = 0; i < KS_COUNT(ids); i++) assert_int_equal(count(ids[i]), 1);
}

/* Every rule of the tool has its row in the document, with the same words. */
static void the_document_knows_every_rule(void **state)
{
    static char doc[65536];
    (void)state;
    FILE *f = fopen(KS_SOURCE_DIR "/docs/plugin-abi.md", "re");
    assert_non_null(f);
    doc[fread(doc, 1, sizeof doc - 1, f)] = 0;
    assert_int_equal(fclose(f), 0);
    assert_int_equal(conform("--list"), 0);
    for (char *line = output, *end; (end = strchr(line, '\n')); line = end + 1) {
        char id[16] = "";
        for (size_t i = 0; i < sizeof id - 1 && !isspace((unsigned char)line[i]); i++) id[i] = line[i];
        if (!strstr(doc, id)) fail_msg("docs/plugin-abi.md has no rule %s", id);
    }
}

static void wrong_usage_is_code_2_with_a_reason(void **state)
{
    (void)state;
    assert_int_equal(conform(""), 2);
    assert_non_null(strstr(output, "usage: krasis-conform"));
    assert_int_equal(conform("--wrong x.so"), 2);
    assert_int_equal(conform("a.so b.so"), 2);
    assert_int_equal(conform("--rule"), 2);
    assert_int_equal(conform("--rule ABI-99 x.so"), 2);
    assert_string_equal(output, "krasis-conform: there is no rule 'ABI-99': see --list\n");
    assert_int_equal(conform("--timeout 0 x.so"), 2);
    assert_string_equal(output, "krasis-conform: --timeout '0' is no number of seconds from 1 to 86400\n");
    assert_int_equal(conform("--seed x x.so"), 2);
    assert_string_equal(output, "krasis-conform: --seed 'x' is no number\n");
    assert_int_equal(conform("nowhere.so"), 2);
    assert_string_equal(output, "krasis-conform: 'nowhere.so': No such file or directory\n");
    assert_int_equal(conform("--bench " KS_FIXTURE_DIR "/good-loader.so"), 2);
    assert_string_equal(output, "krasis-conform: --bench measures kernel plugins, 'good-loader' is none\n");
}

static void a_row_can_be_measured(void **state)
{
    (void)state;
    assert_int_equal(conform("--bench " KS_FIXTURE_DIR "/good-future.so"), 0);
    assert_non_null(strstr(output, "Gvalues/s"));
    assert_non_null(strstr(output, "x reference\n"));
    assert_non_null(
        strstr(output, "of-tomorrow                  not measured: the op or its types are unknown here\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_plugins_keep_all_rules),
        cmocka_unit_test(not_working_here_breaks_no_rule),
        cmocka_unit_test(every_abi_rule_has_a_plugin_that_breaks_it_alone),
        cmocka_unit_test(a_crash_is_a_broken_rule),
        cmocka_unit_test(every_kernel_rule_has_a_plugin_that_breaks_it_alone),
        cmocka_unit_test(a_hang_is_ended_at_the_limit),
        cmocka_unit_test(what_a_sanitizer_hides_is_seen_without_one),
        cmocka_unit_test(one_rule_can_be_asked_for_or_left_out),
        cmocka_unit_test(a_sample_is_damaged_in_many_ways),
        cmocka_unit_test(it_also_runs_in_one_process),
        cmocka_unit_test(the_list_names_every_rule),
        cmocka_unit_test(the_document_knows_every_rule),
        cmocka_unit_test(wrong_usage_is_code_2_with_a_reason),
        cmocka_unit_test(a_row_can_be_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
