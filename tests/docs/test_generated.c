/* The generated files of the tree equal what the option table gives now; the sample files are read without complaint.
 */
#include "base/base.h"
#include "base/file.h"
#include "config/config.h"
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *emitted(void (*emit)(FILE *f))
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    emit(f);
    assert_int_equal(fclose(f), 0);
    return text;
}

static void equals_file(void (*emit)(FILE *f), const char *path)
{
    char *now = emitted(emit), *file = NULL;
    size_t n = 0;
    ks_err err = { 0 };
    assert_int_equal(ks_file_read(path, 1 << 20, &file, &n, &err), 0);
    if (strcmp(now, file) != 0) print_message("%s is out of date: make it again with `./dev docs`\n", path);
    assert_string_equal(now, file);
    free(now);
    free(file);
}

static void sample_ini_is_up_to_date(void **state)
{
    (void)state, equals_file(ks_config_emit_ini, KS_SOURCE_DIR "/conf/krasis.ini");
}
static void page_is_up_to_date(void **state)
{
    (void)state, equals_file(ks_config_emit_markdown, KS_SOURCE_DIR "/docs/configuration.md");
}
static void man_page_is_up_to_date(void **state)
{
    (void)state, equals_file(ks_config_emit_man, KS_SOURCE_DIR "/docs/krasis.1");
}
static void file_man_page_is_up_to_date(void **state)
{
    (void)state, equals_file(ks_config_emit_man5, KS_SOURCE_DIR "/docs/krasis.ini.5");
}

static void sample_ini_with_all_defaults_set_is_read_and_changes_nothing(void **state)
{
    (void)state;
    char *text = emitted(ks_config_emit_ini);
    ks_config *c = NULL;
    ks_err err = { 0 };
    uint32_t keys = 0;
    assert_int_equal(ks_config_new(&c, &err), 0);
    assert_int_equal(ks_config_parse_ini(c, text, strlen(text), "sample.ini", KS_FROM_FILE, &err), 0);
    assert_int_equal(ks_config_from(c, "port"), KS_FROM_DEFAULT); /* all commented out */
    for (char *p = text; (p = strstr(p, "\n;")); keys++) memmove(p + 1, p + 2, strlen(p + 2) + 1);
    assert_true(keys > 30);
    const int rc = ks_config_parse_ini(c, text, strlen(text), "sample.ini", KS_FROM_FILE, &err);
    assert_string_equal(err.msg, "");
    assert_int_equal(rc, 0);
    assert_int_equal(ks_config_from(c, "port"), KS_FROM_FILE);
    assert_int_equal(ks_config_int(c, "port"), 8012);
    assert_string_equal(ks_config_str(c, "model-path"), "");
    free(text);
    ks_config_free(c);
}

static void every_flag_is_in_help_page_and_manual(void **state)
{
    (void)state;
    static const char *const flags[] = {
        "non-interactive",
        "model-path",
        "num-gpus",
        "selected-gpus",
        "pp-partition",
        "expert-divisor",
        "kv-dtype",
        "gpu-expert-bits",
        "cpu-expert-bits",
        "attention-quant",
        "dense-mlp-quant",
        "lm-head-quant",
        "krasis-threads",
        "gguf-path",
        "shared-expert-quant",
        "host",
        "port",
        "gpu-prefill-threshold",
        "benchmark",
        "force-load",
        "vram-limit",
        "ram-limit",
        "context",
        "config",
        "note",
        "api-key",
    };
    char *page = emitted(ks_config_emit_markdown), *help = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&help, &n);
    assert_non_null(f);
    ks_config_help(f, NULL);
    assert_int_equal(fclose(f), 0);
    for (size_t i = 0; i < KS_COUNT(flags); i++) {
        char text[64];
        (void)snprintf(text, sizeof text, "### `--%s", flags[i]);
        assert_non_null(strstr(page, text));
        (void)snprintf(text, sizeof text, "  --%s", flags[i]);
        assert_non_null(strstr(help, text));
    }
    free(page);
    free(help);
}

static void help_is_at_most_100_columns_wide(void **state)
{
    (void)state;
    char *help = NULL;
    const char *words, *text, *name;
    for (uint32_t i = 0; (name = ks_config_command(i, &words, &text)); i++) {
        size_t n = 0;
        FILE *f = open_memstream(&help, &n);
        assert_non_null(f);
        ks_config_help(f, name);
        assert_int_equal(fclose(f), 0);
        for (const char *p = help; *p; p += strcspn(p, "\n"), p += *p == '\n') assert_true(strcspn(p, "\n") <= 100);
        free(help);
    }
}

static void read_sample(const char *path)
{
    ks_config *c = NULL;
    ks_err err = { 0 };
    assert_int_equal(ks_config_new(&c, &err), 0);
    const int rc = ks_config_read_ini(c, path, KS_FROM_FILE, &err);
    assert_string_equal(err.msg, "");
    assert_int_equal(rc, 0);
    assert_int_equal(ks_config_no_gpu(c, NULL, NULL, &err), 0); /* each may be moved to any machine */
    ks_config_free(c);
}

static void machine_files_are_read(void **state)
{
    (void)state;
    glob_t g;
    assert_int_equal(glob(KS_SOURCE_DIR "/conf/machines/*.ini", 0, NULL, &g), 0);
    assert_true(g.gl_pathc >= 4);
    for (size_t i = 0; i < g.gl_pathc; i++) read_sample(g.gl_pathv[i]);
    globfree(&g);
}

static void demo_file_names_the_demo_model(void **state)
{
    (void)state;
    ks_config *c = NULL;
    ks_err err = { 0 };
    read_sample(KS_SOURCE_DIR "/conf/demo.ini");
    assert_int_equal(ks_config_new(&c, &err), 0);
    assert_int_equal(ks_config_read_ini(c, KS_SOURCE_DIR "/conf/demo.ini", KS_FROM_FILE, &err), 0);
    char *config = ks_path_join(ks_config_str(c, "model-path"), "config.json");
    assert_true(ks_file_exists(config));
    assert_string_equal(ks_config_str(c, "host"), "127.0.0.1");
    assert_int_equal(ks_config_int(c, "port"), 8012);
    free(config);
    ks_config_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sample_ini_is_up_to_date),
        cmocka_unit_test(page_is_up_to_date),
        cmocka_unit_test(man_page_is_up_to_date),
        cmocka_unit_test(file_man_page_is_up_to_date),
        cmocka_unit_test(sample_ini_with_all_defaults_set_is_read_and_changes_nothing),
        cmocka_unit_test(every_flag_is_in_help_page_and_manual),
        cmocka_unit_test(help_is_at_most_100_columns_wide),
        cmocka_unit_test(machine_files_are_read),
        cmocka_unit_test(demo_file_names_the_demo_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
