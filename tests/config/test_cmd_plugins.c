/* krasis plugins over a registry of the test's own: the table, the kernel rows, JSON, and a refused choice. */
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include "base/file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static ks_plugin_entry entries[] = {
    { .path = "/p/cpu-avx2.so",
      .name = "cpu-avx2",
      .state = KS_PLUGIN_OPEN,
      .score = 200,
      .desc = { .kind = KS_KIND_KERNELS, .version = "1.0.0", .summary = "AVX2 kernels", .license = "Apache-2.0" } },
    { .path = "/p/http.so",
      .name = "http",
      .state = KS_PLUGIN_USABLE,
      .score = 1,
      .desc = { .kind = KS_KIND_FRONTEND, .version = "1.2", .summary = "OpenAI API" } },
    { .path = "/p/broken.so", .name = "broken", .state = KS_PLUGIN_REFUSED, .why = "is a \"text\" file" },
};
static const ks_kernel kernels[] = {
    { .op = KS_K_MATMUL, .wtype = KS_T_I4, .xtype = KS_T_Q8, .layout = KS_LAYOUT_T16, .name = "matmul_i4_avx2" },
    { .op = KS_K_NORM, .name = "norm_ref" }
};
static bool refuse_choice;

/* What the layers above would give. */
int ks_app_plugins(ks_config *c, ks_app *a, ks_err *err)
{
    *a = (ks_app) { .config = c, .registry = (ks_registry *)entries };
    if (refuse_choice) return ks_fail(err, KS_E_CONFIG, "--kernels: 'broken' is a \"text\" file");
    a->kernels = (ks_kernel_table *)kernels;
    return 0;
}
void ks_app_close(ks_app *a)
{
    *a = (ks_app) { 0 };
}
int ks_app_fail(const ks_err *err)
{
    (void)fprintf(stdout, "krasis: %s\n", err->msg); /* into the same file */
    return 2;
}
uint32_t ks_registry_count(const ks_registry *r)
{
    return r ? (uint32_t)KS_COUNT(entries) : 0;
}
ks_plugin_entry *ks_registry_entry(ks_registry *r, uint32_t i)
{
    return r ? &entries[i] : NULL;
}
int ks_registry_choose(ks_registry *r, uint32_t kind, const char *want, ks_err *err)
{
    (void)r;
    if (kind != KS_KIND_FRONTEND || strcmp(want, "auto") != 0) return ks_fail(err, KS_E_CONFIG, "chosen: %s", want);
    return 0;
}
const ks_kernel *ks_kernel_row(const ks_kernel_table *t, uint32_t i, const char **ret_plugin)
{
    *ret_plugin = i ? "ref" : "cpu-avx2";
    return t && i < KS_COUNT(kernels) ? &kernels[i] : NULL;
}

/* Runs the command with stdout in a file; malloc'd. */
static char *run(const char *flag, int want_rc)
{
    ks_config *c = NULL;
    ks_cli cli = { .command = "plugins" };
    char *text = NULL, *end, copy[64];
    char *argv[4];
    int argc = 0;
    size_t n = 0;
    assert_int_equal(ks_config_new(&c, NULL), 0);
    (void)snprintf(copy, sizeof copy, "%s", flag);
    for (char *p = strtok_r(copy, " ", &end); p; p = strtok_r(NULL, " ", &end)) argv[argc++] = p;
    assert_int_equal(ks_config_read_args(c, &cli, argc, argv, 0, NULL), 0);
    assert_int_equal(fflush(stdout), 0);
    const int keep = dup(1);
    assert_true(keep >= 0);
    assert_non_null(freopen("plugins.out", "w", stdout));
    const int rc = ks_cmd_plugins(c, &cli);
    assert_int_equal(fflush(stdout), 0);
    assert_int_equal(dup2(keep, 1), 1);
    assert_int_equal(close(keep), 0);
    assert_int_equal(rc, want_rc);
    assert_int_equal(ks_file_read("plugins.out", 1 << 16, &text, &n, NULL), 0);
    ks_config_free(c);
    return text;
}

static void the_table_says_kind_name_version_score_state_and_why(void **state)
{
    (void)state;
    char *text = run("", 0);
    assert_string_equal(text, "KIND      NAME      VERSION  SCORE  STATE    WHY\n"
                              "kernels   cpu-avx2  1.0.0      200  chosen   AVX2 kernels\n"
                              "frontend  http      1.2          1  standby  OpenAI API\n"
                              "?         broken    -            0  refused  is a \"text\" file\n");
    free(text);
}

static void the_kernel_table_says_who_computes_what(void **state)
{
    (void)state;
    char *text = run("--kernels-table", 0);
    assert_string_equal(text, "OP      WEIGHT  INPUT   LAYOUT  PLUGIN        KERNEL\n"
                              "matmul  i4      q8      t16     cpu-avx2      matmul_i4_avx2\n"
                              "norm    -       -       -       ref           norm_ref\n");
    free(text);
}

static void both_come_as_json(void **state)
{
    (void)state;
    char *text = run("--json", 0);
    assert_non_null(strstr(text,
                           "{\"kind\":\"kernels\",\"name\":\"cpu-avx2\",\"version\":\"1.0.0\",\"state\":\"chosen\","
                           "\"path\":\"/p/cpu-avx2.so\","
                           "\"summary\":\"AVX2 kernels\",\"license\":\"Apache-2.0\",\"why\":\"\",\"score\":200}"));
    assert_non_null(strstr(text, "\"version\":null,\"state\":\"refused\""));
    assert_non_null(strstr(text, "\"why\":\"is a \\\"text\\\" file\""));
    free(text);
    text = run("--kernels-table --json", 0);
    assert_string_equal(
        text, "[{\"op\":\"matmul\",\"weight\":\"i4\",\"input\":\"q8\",\"layout\":\"t16\",\"plugin\":\"cpu-avx2\","
              "\"kernel\":\"matmul_i4_avx2\"},{\"op\":\"norm\",\"weight\":null,\"input\":null,\"layout\":null,"
              "\"plugin\":\"ref\",\"kernel\":\"norm_ref\"}]\n");
    free(text);
}

static void a_refused_choice_is_explained_by_the_list_and_the_error(void **state)
{
    (void)state;
    refuse_choice = true;
    char *text = run("", 2);
    refuse_choice = false;
    assert_non_null(strstr(text, "refused  is a \"text\" file\n"));
    assert_non_null(strstr(text, "krasis: --kernels: 'broken' is a \"text\" file\n"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_says_kind_name_version_score_state_and_why),
        cmocka_unit_test(the_kernel_table_says_who_computes_what),
        cmocka_unit_test(both_come_as_json),
        cmocka_unit_test(a_refused_choice_is_explained_by_the_list_and_the_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
