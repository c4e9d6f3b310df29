/* The program from outside, as far as it needs no model: commands, exit codes, saved settings, generated texts. */
#include "base/base.h"
#include "base/file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char out[1 << 18];

/* Exit code of `krasis ARGS`; stdout and stderr together in `out`. */
static int krasis(const char *args)
{
    char cmd[1024];
    const char *program = getenv("KRASIS_PROGRAM"); /* another build's */
    assert_true(snprintf(cmd, sizeof cmd, "%s 2>&1 </dev/null %s", program ? program : KS_BUILD_DIR "/krasis", args) <
                (int)sizeof cmd);
    FILE *p = popen(cmd, "r");
    assert_non_null(p);
    out[fread(out, 1, sizeof out - 1, p)] = '\0';
    const int rc = pclose(p);
    assert_true(WIFEXITED(rc));
    return WEXITSTATUS(rc);
}

static void write_text(const char *path, const char *text)
{
    ks_err err = { 0 };
    assert_int_equal(ks_file_write(path, text, strlen(text), &err), 0);
}

/* Each test starts without saved settings. */
static int forget(void **state)
{
    (void)state;
    char *home = ks_home(NULL), *path = home ? ks_path_join(home, "config.ini") : NULL;
    const int rc = path ? 0 : -1;
    if (path) (void)unlink(path); /* it need not be there */
    free(home);
    free(path);
    return rc;
}

static void version_tells_number_and_commit(void **state)
{
    (void)state;
    assert_int_equal(krasis("--version"), 0);
    assert_int_equal(strncmp(out, "krasis 0.", 9), 0);
    assert_int_equal(krasis("serve --version"), 0);
}

static void help_lists_the_commands(void **state)
{
    (void)state;
    static const char *const names[] = { "serve",    "run",      "chat",   "plugins",      "check",     "config",
                                         "tokenize", "template", "logits", "generate-ids", "perplexity" };
    assert_int_equal(krasis("--help"), 0);
    for (size_t i = 0; i < KS_COUNT(names); i++) {
        char line[32];
        (void)snprintf(line, sizeof line, "\n  %-13s ", names[i]);
        assert_non_null(strstr(out, line));
    }
    assert_int_equal(krasis("perplexity --help"), 0);
    assert_non_null(strstr(out, "usage: krasis perplexity [flags]\n"));
    assert_non_null(strstr(out, "--window N"));
    assert_null(strstr(out, "--port"));
}

static void unknown_commands_are_met_with_the_nearest(void **state)
{
    (void)state;
    assert_int_equal(krasis("serv"), 2);
    assert_string_equal(out, "krasis: unknown command 'serv': did you mean 'serve'?\n");
    assert_int_equal(krasis("xyzzy"), 2);
    assert_string_equal(out, "krasis: unknown command 'xyzzy': `krasis --help` lists them\n");
}

static void bad_flags_end_with_2(void **state)
{
    (void)state;
    assert_int_equal(krasis("serve --prot 1"), 2);
    assert_string_equal(out, "krasis: unknown flag '--prot': did you mean '--port'?\n");
    assert_int_equal(krasis("--non-interactive --port 99999"), 2);
    assert_string_equal(out, "krasis: --port: '99999' is not allowed: a whole number from 0 to 65535\n");
}

static void bad_files_end_with_2(void **state)
{
    (void)state;
    write_text("bad.ini", "[server]\nprot = 1\n");
    assert_int_equal(krasis("serve --config bad.ini"), 2);
    assert_string_equal(out, "krasis: bad.ini:2: unknown key 'prot' in [server]: did you mean 'port'?\n");
    assert_int_equal(krasis("serve --config missing.ini"), 2);
    assert_non_null(strstr(out, "missing.ini"));
}

static void the_program_named_krasis_server_serves(void **state)
{
    (void)state;
    assert_true(getenv("KRASIS_PROGRAM") || ks_file_exists(KS_BUILD_DIR "/krasis-server"));
    char *target = realpath(getenv("KRASIS_PROGRAM") ? getenv("KRASIS_PROGRAM") : KS_BUILD_DIR "/krasis", NULL);
    assert_non_null(target);
    (void)unlink("krasis-server"); /* of the last run, if any */
    assert_int_equal(symlink(target, "krasis-server"), 0);
    FILE *p = popen("./krasis-server --help", "r");
    assert_non_null(p);
    out[fread(out, 1, sizeof out - 1, p)] = '\0';
    assert_int_equal(pclose(p), 0);
    assert_int_equal(strncmp(out, "usage: krasis serve [flags]\n", 28), 0);
    free(target);
}

static void saved_settings_add_up_and_are_shown(void **state)
{
    (void)state;
    write_text("x.ini", "[server]\nport = 1000\nhost = ::1\n[model]\ncontext = 100\n");
    assert_int_equal(krasis("config save --port 2000"), 0);
    assert_non_null(strstr(out, "config.ini"));
    assert_int_equal(krasis("config save --context 200"), 0);
    assert_int_equal(krasis("config show --config x.ini --context 300"), 0);
    assert_non_null(strstr(out, "port                  = 2000 ")); /* saved wins over the file */
    assert_non_null(strstr(out, "context               = 300                   (--context)"));
    assert_non_null(strstr(out, "host                  = ::1                   (x.ini:3)"));
    assert_non_null(strstr(out, "kv-dtype              = fp8_e4m3              (default)"));
    assert_int_equal(krasis("config show"), 0);
    assert_non_null(strstr(out, "context               = 200 "));
    assert_int_equal(krasis("config save --api-key k"), 2);
    assert_string_equal(out, "krasis: --api-key: secrets are not saved: use --api-key-file\n");
}

static void only_the_launcher_reads_the_saved_settings(void **state)
{
    (void)state;
    char *home = ks_home(NULL), *path = ks_path_join(home, "config.ini");
    ks_err err = { 0 };
    assert_int_equal(ks_mkdirs(home, &err), 0);
    write_text(path, "[server]\nport = x\n");
    assert_int_equal(krasis("--non-interactive"), 2);
    assert_non_null(strstr(out, "config.ini:2: port: 'x' is not allowed"));
    assert_int_equal(krasis("config show"), 2);
    assert_non_null(strstr(out, "config.ini:2: port: 'x' is not allowed"));
    assert_int_equal(krasis("config ini"), 0);
    assert_int_equal(krasis("serve --config missing.ini"), 2);
    assert_non_null(strstr(out, "missing.ini"));
    free(home);
    free(path);
}

static void config_words_are_checked(void **state)
{
    (void)state;
    assert_int_equal(krasis("config"), 2);
    assert_int_equal(krasis("config sho"), 2);
    assert_string_equal(out, "krasis: config 'sho': did you mean 'show'?\n");
}

static void config_prints_the_generated_texts(void **state)
{
    (void)state;
    static const char *const rows[][2] = { { "config ini", "/conf/krasis.ini" },
                                           { "config md", "/docs/configuration.md" },
                                           { "config man", "/docs/krasis.1" },
                                           { "config man5", "/docs/krasis.ini.5" } };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        char path[512], *file = NULL;
        size_t n = 0;
        (void)snprintf(path, sizeof path, "%s%s", KS_SOURCE_DIR, rows[i][1]);
        assert_int_equal(ks_file_read(path, sizeof out, &file, &n, NULL), 0);
        assert_int_equal(krasis(rows[i][0]), 0);
        assert_string_equal(out, file);
        free(file);
    }
}

static void a_full_standard_output_is_a_failure(void **state)
{
    (void)state;
    assert_int_equal(krasis("config md >/dev/full"), 2);
    assert_non_null(strstr(out, "krasis: standard output: "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(version_tells_number_and_commit),
        cmocka_unit_test(help_lists_the_commands),
        cmocka_unit_test(unknown_commands_are_met_with_the_nearest),
        cmocka_unit_test(bad_flags_end_with_2),
        cmocka_unit_test(bad_files_end_with_2),
        cmocka_unit_test(the_program_named_krasis_server_serves),
        cmocka_unit_test_setup(saved_settings_add_up_and_are_shown, forget),
        cmocka_unit_test_setup(only_the_launcher_reads_the_saved_settings, forget),
        cmocka_unit_test(config_words_are_checked),
        cmocka_unit_test(config_prints_the_generated_texts),
        cmocka_unit_test(a_full_standard_output_is_a_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
