/* The registry: folders, settings, choice, the merged kernel table. Plugins that are linked in, and fixtures. */
#include "base/base.h"
#include "cpu/cpu.h"
#include "plugin/plugin.h"
#include "ref/ref.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FIXTURE(name) KS_FIXTURE_DIR "/" name ".so"

static ks_registry *empty(uint64_t cpu)
{
    ks_registry_opts o = { .cpu = cpu };
    ks_registry *r = NULL;
    assert_int_equal(ks_registry_open(&o, &r, NULL), 0);
    return r;
}

/* ---- linked-in kernel sets; the functions are told apart by their names only */

static void no_kernel(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)args;
    (void)begin;
    (void)end;
    (void)scratch;
}

#define ROW(OP, NAME, ...)                                                      \
    {                                                                           \
        .op = OP, .xtype = KS_T_F32, .name = NAME, .fn = no_kernel, __VA_ARGS__ \
    }
#define SET(VAR, PLUGIN, SCORE, ...)                                                 \
    static const ks_kernel VAR##_rows[] = { __VA_ARGS__ };                           \
    static const ks_kernels_iface VAR##_iface = { .size = sizeof(ks_kernels_iface),  \
                                                  .kernel_size = sizeof(ks_kernel),  \
                                                  .n_kernels = KS_COUNT(VAR##_rows), \
                                                  .kernels = VAR##_rows };           \
    static const ks_plugin VAR = { .size = sizeof(ks_plugin),                        \
                                   .kind = KS_KIND_KERNELS,                          \
                                   .name = PLUGIN,                                   \
                                   .version = "1",                                   \
                                   .summary = "s",                                   \
                                   .license = "l",                                   \
                                   .score = SCORE,                                   \
                                   .iface = &VAR##_iface }

SET(slow, "slow", 100, ROW(KS_K_NORM, "norm slow", .scratch_bytes = 10), ROW(KS_K_ROPE, "rope slow", .score = 200),
    ROW(KS_K_GLU, "glu slow", .score = 0));
SET(fast, "fast", 200, ROW(KS_K_NORM, "norm fast", .scratch_bytes = 30), ROW(KS_K_ROPE, "rope fast", .score = 0));
SET(wide, "wide", 250, ROW(KS_K_NORM, "norm wide", .cpu_required = KS_CPU(AVX512F)));
SET(twin_b, "twin-b", 50, ROW(KS_K_NORM, "norm b", .score = 0));
SET(twin_a, "twin-a", 50, ROW(KS_K_NORM, "norm a", .score = 0));
SET(boundless, "boundless", INT32_MAX, ROW(KS_K_NORM, "norm boundless", .score = INT32_MAX));

static void add(ks_registry *r, const ks_plugin *p)
{
    assert_int_equal(ks_registry_add(r, p, "(built in)", NULL), 0);
}

/* Which function serves NORM after choosing `want`. */
static const char *norm_of(ks_registry *r, const char *want)
{
    ks_kernel_table *t = NULL;
    assert_int_equal(ks_registry_choose(r, KS_KIND_KERNELS, want, NULL), 0);
    assert_int_equal(ks_kernel_table_new(r, &t, NULL), 0);
    const ks_kernel *k = ks_kernel_find(t, KS_K_NORM, 0, KS_T_F32, 0);
    const char *name = k ? k->name : "nobody";
    ks_kernel_table_free(t);
    return name;
}

static void the_best_row_wins_not_the_best_plugin(void **state)
{
    ks_registry *r = empty(0);
    ks_kernel_table *t = NULL;
    const char *plugin = NULL;
    (void)state;
    add(r, &slow);
    add(r, &fast);
    assert_int_equal(ks_registry_choose(r, KS_KIND_KERNELS, "auto", NULL), 0);
    assert_int_equal(ks_kernel_table_new(r, &t, NULL), 0);
    assert_string_equal(ks_kernel_find(t, KS_K_NORM, 0, KS_T_F32, 0)->name, "norm fast");
    assert_string_equal(ks_kernel_find(t, KS_K_ROPE, 0, KS_T_F32, 0)->name, "rope slow"); /* 100 + 200 */
    assert_string_equal(ks_kernel_find(t, KS_K_GLU, 0, KS_T_F32, 0)->name, "glu slow");
    assert_null(ks_kernel_find(t, KS_K_ATTN, KS_T_F32, KS_T_F32, 0));
    assert_int_equal(ks_kernel_scratch(t), 30);
    assert_string_equal(ks_kernel_row(t, 0, &plugin)->name, "norm fast"); /* in order of the ops */
    assert_string_equal(plugin, "fast");
    assert_string_equal(ks_kernel_row(t, 1, &plugin)->name, "rope slow");
    assert_null(ks_kernel_row(t, 3, &plugin));
    ks_kernel_table_free(t);
    assert_string_equal(ks_registry_find(r, "fast")->why, "best score (rows used: 1 of 2)");
    assert_string_equal(ks_registry_find(r, "slow")->why,
                        "fills in the rows that better ones lack (rows used: 2 of 3)");
    ks_registry_close(r);
}

static void equal_scores_are_decided_by_name_not_by_order(void **state)
{
    const ks_plugin *order[2][2] = { { &twin_a, &twin_b }, { &twin_b, &twin_a } };
    (void)state;
    for (int i = 0; i < 2; i++) {
        ks_registry *r = empty(0);
        add(r, order[i][0]);
        add(r, order[i][1]);
        assert_string_equal(norm_of(r, "auto"), "norm a");
        ks_registry_close(r);
    }
}

static void a_row_needs_its_own_cpu_features(void **state)
{
    ks_registry *r = empty(KS_CPU(AVX2));
    (void)state;
    add(r, &wide);
    add(r, &fast);
    assert_string_equal(norm_of(r, "auto"), "norm fast");
    ks_registry_close(r);
    r = empty(KS_CPU(AVX2) | KS_CPU(AVX512F));
    add(r, &wide);
    add(r, &fast);
    assert_string_equal(norm_of(r, "auto"), "norm wide");
    ks_registry_close(r);
}

static void scores_do_not_overflow(void **state)
{
    ks_registry *r = empty(0);
    (void)state;
    add(r, &fast);
    add(r, &boundless);
    assert_string_equal(norm_of(r, "auto"), "norm boundless");
    ks_registry_close(r);
}

static void a_named_set_is_filled_up_by_the_reference_alone(void **state)
{
    ks_registry *r = empty(0);
    ks_kernel_table *t = NULL;
    (void)state;
    add(r, &slow);
    add(r, &fast);
    add(r, &ks_ref_plugin);
    assert_int_equal(ks_registry_choose(r, KS_KIND_KERNELS, "fast", NULL), 0);
    assert_int_equal(ks_kernel_table_new(r, &t, NULL), 0);
    assert_string_equal(ks_kernel_find(t, KS_K_ROPE, 0, KS_T_F32, 0)->name, "rope fast");
    assert_string_equal(ks_kernel_find(t, KS_K_GLU, 0, KS_T_F32, 0)->name, "glu_ref");
    ks_kernel_table_free(t);
    assert_int_equal(ks_registry_find(r, "slow")->state, KS_PLUGIN_USABLE);
    assert_string_equal(ks_registry_find(r, "fast")->why, "named in the settings (rows used: 2 of 2)");
    assert_string_equal(ks_registry_find(r, "ref")->why,
                        "serves the rows that the named ones lack (rows used: 22 of 24)");
    ks_registry_close(r);
}

static void the_first_named_has_the_row_and_scores_decide_the_rest(void **state)
{
    ks_registry *r = empty(0);
    (void)state;
    add(r, &fast);
    add(r, &slow);
    add(r, &ks_ref_plugin);
    assert_string_equal(norm_of(r, "slow,fast"), "norm slow");
    assert_string_equal(norm_of(r, "fast,slow,fast"), "norm fast");
    assert_string_equal(norm_of(r, "ref,fast"), "norm_ref");
    assert_string_equal(norm_of(r, "auto"), "norm fast");
    ks_registry_close(r);
}

static void none_leaves_the_reference(void **state)
{
    ks_registry *r = empty(0);
    (void)state;
    add(r, &slow);
    add(r, &fast);
    add(r, &ks_ref_plugin);
    assert_string_equal(norm_of(r, "none"), "norm_ref");
    assert_int_equal(ks_registry_find(r, "fast")->state, KS_PLUGIN_USABLE);
    assert_string_equal(ks_registry_find(r, "ref")->why, "the settings name no plugin (rows used: 24 of 24)");
    ks_registry_close(r);
}

static void a_new_choice_replaces_the_old_one(void **state)
{
    ks_registry *r = empty(0);
    (void)state;
    add(r, &slow);
    add(r, &fast);
    assert_string_equal(norm_of(r, "slow"), "norm slow");
    assert_string_equal(norm_of(r, " fast , slow "), "norm fast");
    assert_string_equal(norm_of(r, "none"), "nobody");
    ks_registry_close(r);
}

static void a_wrong_choice_is_explained(void **state)
{
    ks_registry *r = empty(0);
    ks_err err = { 0 };
    (void)state;
    assert_int_equal(ks_registry_choose(r, KS_KIND_FRONTEND, "auto", &err), KS_E_NOTFOUND);
    assert_string_equal(err.msg, "no usable frontend plugin was found (see `krasis plugins`)");
    add(r, &slow);
    add(r, &fast);
    assert_int_equal(ks_registry_choose(r, KS_KIND_KERNELS, "fsat", &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "there is no kernels plugin 'fsat': found are slow, fast");
    assert_int_equal(ks_registry_choose(r, KS_KIND_LOADER, "fast", &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "plugin 'fast' is of the kind 'kernels', not 'loader'");
    assert_int_equal(ks_registry_choose(r, KS_KIND_KERNELS, FIXTURE("bad-kind"), &err), KS_E_CONFIG);
    assert_string_equal(
        err.msg, "plugin '" FIXTURE("bad-kind") "' cannot be used: its kind is 99, which this program does not know");
    ks_registry_close(r);
}

static void a_broken_descriptor_that_is_linked_in_is_refused(void **state)
{
    ks_registry *r = empty(0);
    ks_plugin bad = slow;
    ks_err err = { 0 };
    (void)state;
    bad.summary = NULL;
    assert_int_equal(ks_registry_add(r, &bad, "(built in)", &err), KS_E_FORMAT);
    assert_string_equal(err.msg, "its descriptor has no summary of 1 to 200 characters in one line");
    assert_int_equal(ks_registry_entry(r, 0)->state, KS_PLUGIN_REFUSED);
    add(r, &fast);
    assert_string_equal(norm_of(r, "auto"), "norm fast");
    ks_registry_close(r);
}

/* ---- folders */

static void a_folder_is_scanned_in_order_of_names(void **state)
{
    const char *dirs[] = { "/does/not/exist", "some" };
    ks_registry_opts o = { .dirs = dirs, .n_dirs = 2, .cpu = 0 };
    ks_registry *r = NULL;
    (void)state;
    (void)mkdir("some", 0755); /* may be there from an earlier run */
    (void)unlink("some/good-old.so");
    (void)unlink("some/bad-kind.so");
    assert_int_equal(symlink(FIXTURE("good-old"), "some/good-old.so"), 0);
    assert_int_equal(symlink(FIXTURE("bad-kind"), "some/bad-kind.so"), 0);
    assert_int_equal(ks_registry_open(&o, &r, NULL), 0);
    assert_int_equal(ks_registry_count(r), 2);
    assert_string_equal(ks_registry_entry(r, 0)->name, "bad-kind");
    assert_int_equal(ks_registry_entry(r, 0)->state, KS_PLUGIN_REFUSED);
    assert_string_equal(ks_registry_entry(r, 1)->name, "good-old");
    assert_null(ks_registry_entry(r, 2));
    ks_registry_close(r);
}

static void the_first_of_two_with_one_name_counts(void **state)
{
    ks_registry *r = empty(0);
    (void)state;
    add(r, &slow);
    add(r, &slow);
    assert_int_equal(ks_registry_entry(r, 1)->state, KS_PLUGIN_REFUSED);
    assert_string_equal(ks_registry_entry(r, 1)->why, "a plugin of that name was found first: (built in)");
    assert_ptr_equal(ks_registry_find(r, "slow"), ks_registry_entry(r, 0));
    ks_registry_close(r);
}

static void too_many_plugins_are_an_error(void **state)
{
    ks_registry *r = empty(0);
    ks_err err = { 0 };
    (void)state;
    for (int i = 0; i < 256; i++) add(r, &slow);
    assert_int_equal(ks_registry_add(r, &slow, "/x/one.so", &err), KS_E_LIMIT);
    assert_string_equal(err.msg, "plugin '/x/one.so' is one too many: at most 256 are looked at");
    ks_registry_close(r);
}

static void the_folders_are_absolute_and_never_the_current_one(void **state)
{
    char *dirs[8] = { 0 };
    (void)state;
    assert_int_equal(setenv("KRASIS_PLUGIN_PATH", "/opt/a:relative:/opt/b:", 1), 0);
    uint32_t n = ks_plugin_dirs("/from/settings", dirs, 8);
    assert_int_equal(n, 5);
    for (uint32_t i = 0; i < n; i++) assert_int_equal(dirs[i][0], '/');
    assert_non_null(strstr(dirs[0], "/plugins"));
    assert_non_null(strstr(dirs[1], "/lib/krasis/plugins"));
    assert_string_equal(dirs[2], "/from/settings");
    assert_string_equal(dirs[3], "/opt/a");
    assert_string_equal(dirs[4], "/opt/b");
    for (uint32_t i = 0; i < n; i++) free(dirs[i]);
    assert_int_equal(unsetenv("KRASIS_PLUGIN_PATH"), 0);
}

/* ---- settings */

static int with_settings(const ks_plugin_setting *s, uint32_t n, ks_registry **ret, ks_err *err)
{
    static const char *wanted[] = { FIXTURE("good-options") };
    ks_registry_opts o = { .settings = s, .n_settings = n, .wanted = wanted, .n_wanted = 1 };
    return ks_registry_open(&o, ret, err);
}

static void options_have_their_defaults(void **state)
{
    ks_registry *r = NULL;
    (void)state;
    assert_int_equal(with_settings(NULL, 0, &r, NULL), 0);
    assert_string_equal(ks_registry_entry(r, 0)->why, "loud 0 rounds 3 ratio 0.5 mode fast");
    assert_int_equal(ks_registry_entry(r, 0)->score, 77); /* of probe() */
    ks_registry_close(r);
}

static void settings_reach_a_plugin_that_is_named_by_its_path(void **state)
{
    const ks_plugin_setting s[] = { { "good-options", "loud", "yes", "a.ini:3" },
                                    { "good-options", "rounds", "9", "a.ini:4" },
                                    { "good-options", "ratio", "0.25", "a.ini:5" },
                                    { "good-options", "mode", "exact", "a.ini:6" } };
    ks_registry *r = NULL;
    (void)state;
    assert_int_equal(with_settings(s, 4, &r, NULL), 0);
    assert_string_equal(ks_registry_entry(r, 0)->why, "loud 1 rounds 9 ratio 0.25 mode exact");
    assert_int_equal(ks_registry_choose(r, KS_KIND_LOADER, FIXTURE("good-options"), NULL), 0);
    assert_int_equal(ks_registry_count(r), 1); /* the same file, not a second plugin */
    assert_int_equal(ks_registry_entry(r, 0)->state, KS_PLUGIN_CHOSEN);
    ks_registry_close(r);
}

static void wrong_settings_are_errors_with_their_place(void **state)
{
    const struct {
        ks_plugin_setting s;
        const char *message;
    } bad[] = {
        { { "good-options", "rounds", "10", "a.ini:4" },
          "a.ini:4: 'rounds' of plugin 'good-options': 10 is out of range: allowed is 1 to 9" },
        { { "good-options", "rounds", "2x", "a.ini:4" },
          "a.ini:4: 'rounds' of plugin 'good-options': '2x' is no integer" },
        { { "good-options", "rounds", "99999999999999999999", "a.ini:4" },
          "a.ini:4: 'rounds' of plugin 'good-options': '99999999999999999999' is no integer" },
        { { "good-options", "ratio", "nan", "--x" }, "--x: 'ratio' of plugin 'good-options': 'nan' is no number" },
        { { "good-options", "loud", "maybe", "--x" },
          "--x: 'loud' of plugin 'good-options': 'maybe' is neither true nor false" },
        { { "good-options", "mode", "fas", "--x" },
          "--x: 'mode' of plugin 'good-options': 'fas' is not allowed: use fast|exact" },
        { { "good-options", "speed", "1", "a.ini:9" },
          "a.ini:9: plugin 'good-options' has no setting 'speed' (see `krasis plugins`)" },
        { { "god-options", "loud", "1", "a.ini:9" },
          "a.ini:9: there is no plugin 'god-options' for the setting 'loud' (see `krasis plugins`)" },
    };
    (void)state;
    for (size_t i = 0; i < KS_COUNT(bad); i++) {
        ks_registry *r = NULL;
        ks_err err = { 0 };
        assert_int_equal(with_settings(&bad[i].s, 1, &r, &err), KS_E_CONFIG);
        assert_string_equal(err.msg, bad[i].message);
        assert_null(r);
    }
}

static void memory_of_a_plugin_is_counted(void **state)
{
    ks_registry *r = NULL;
    (void)state;
    assert_int_equal(with_settings(NULL, 0, &r, NULL), 0);
    ks_plugin_entry *e = ks_registry_entry(r, 0);
    assert_int_equal(ks_plugin_mem_bytes(e), 0);
    assert_int_equal(ks_registry_start(r, e, NULL), 0);
    assert_true(ks_plugin_mem_bytes(e) >= 4096);
    assert_int_equal(ks_registry_start(r, e, NULL), 0); /* once is enough */
    assert_true(ks_plugin_mem_bytes(e) < 8192);
    ks_registry_close(r);
}

/* ---- loaders */

static const char *write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    return path;
}

static void a_file_finds_its_loader_by_content(void **state)
{
    ks_registry *r = empty(0);
    ks_plugin_entry *e = NULL;
    ks_err err = { 0 };
    (void)state;
    assert_int_equal(ks_registry_add_file(r, FIXTURE("good-loader"), NULL, NULL), 0); /* score 10 */
    assert_int_equal(ks_registry_add_file(r, FIXTURE("good-old"), NULL, NULL), 0);    /* score 5 */
    assert_int_equal(ks_registry_loader(r, write_text("a.fix", "FIX1 and more"), &e, &err), 0);
    assert_string_equal(e->name, "good-loader");
    assert_int_equal(e->state, KS_PLUGIN_OPEN);
    assert_string_equal(e->why, "knows the format of 'a.fix'");
    assert_int_equal(ks_registry_loader(r, write_text("b.fix", "GGUF"), &e, &err), KS_E_UNSUPPORTED);
    assert_string_equal(err.msg, "no loader plugin knows the format of 'b.fix' (see `krasis plugins`)");
    assert_int_equal(ks_registry_loader(r, "c.fix", &e, &err), KS_E_NOTFOUND);
    assert_string_equal(err.msg, "'c.fix': No such file or directory");
    ks_registry_close(r);
}

static void a_loader_that_does_not_open_stands_in_nobodys_way(void **state)
{
    ks_registry *r = empty(0);
    ks_plugin_entry *e = NULL;
    ks_err err = { 0 };
    (void)state;
    assert_int_equal(ks_registry_add_file(r, FIXTURE("bad-open"), NULL, NULL), 0);
    assert_int_equal(ks_registry_loader(r, write_text("a.fix", "FIX1"), &e, &err), KS_E_UNSUPPORTED);
    assert_string_equal(err.msg,
                        "no loader plugin knows the format of 'a.fix', and plugin 'bad-open' did not open: all "
                        "4 seats are taken");
    assert_int_equal(ks_registry_add_file(r, FIXTURE("good-loader"), NULL, NULL), 0);
    assert_int_equal(ks_registry_loader(r, "a.fix", &e, &err), 0);
    assert_string_equal(e->name, "good-loader");
    ks_registry_close(r);
}

/* The rows of a plugin of ABI 1.0 end before `flags`; what follows there is the next row. */
static void rows_of_the_first_version_have_no_flags(void **state)
{
    static struct {
        uint16_t op, wtype, xtype, layout;
        int32_t score;
        uint32_t scratch_bytes;
        uint64_t cpu_required;
        const char *name;
        ks_kernel_fn fn;
    } rows[] = { { KS_K_NORM, 0, KS_T_F32, 0, 0, 0, 0, "norm old", no_kernel },
                 { KS_K_GLU, 0, KS_T_F32, 0, 0, 0, 0, "glu old", no_kernel } };
    static const ks_kernels_iface iface = { .size = sizeof iface,
                                            .kernel_size = sizeof rows[0],
                                            .n_kernels = 2,
                                            .kernels = (const ks_kernel *)(const void *)rows };
    static const ks_plugin old = { .size = sizeof old,
                                   .kind = KS_KIND_KERNELS,
                                   .name = "old",
                                   .version = "1",
                                   .summary = "s",
                                   .license = "l",
                                   .score = 1,
                                   .iface = &iface };
    ks_registry *r = empty(0);
    ks_kernel_table *t = NULL;
    (void)state;
    add(r, &old);
    assert_int_equal(ks_registry_choose(r, KS_KIND_KERNELS, "auto", NULL), 0);
    assert_int_equal(ks_kernel_table_new(r, &t, NULL), 0);
    assert_string_equal(ks_kernel_find(t, KS_K_GLU, 0, KS_T_F32, 0)->name, "glu old");
    assert_int_equal(ks_kernel_find(t, KS_K_NORM, 0, KS_T_F32, 0)->flags, 0);
    assert_int_equal(ks_kernel_find(t, KS_K_GLU, 0, KS_T_F32, 0)->flags, 0);
    ks_kernel_table_free(t);
    ks_registry_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_the_first_version_have_no_flags),
        cmocka_unit_test(the_best_row_wins_not_the_best_plugin),
        cmocka_unit_test(equal_scores_are_decided_by_name_not_by_order),
        cmocka_unit_test(a_row_needs_its_own_cpu_features),
        cmocka_unit_test(scores_do_not_overflow),
        cmocka_unit_test(a_named_set_is_filled_up_by_the_reference_alone),
        cmocka_unit_test(the_first_named_has_the_row_and_scores_decide_the_rest),
        cmocka_unit_test(none_leaves_the_reference),
        cmocka_unit_test(a_new_choice_replaces_the_old_one),
        cmocka_unit_test(a_wrong_choice_is_explained),
        cmocka_unit_test(a_broken_descriptor_that_is_linked_in_is_refused),
        cmocka_unit_test(a_folder_is_scanned_in_order_of_names),
        cmocka_unit_test(the_first_of_two_with_one_name_counts),
        cmocka_unit_test(too_many_plugins_are_an_error),
        cmocka_unit_test(the_folders_are_absolute_and_never_the_current_one),
        cmocka_unit_test(options_have_their_defaults),
        cmocka_unit_test(settings_reach_a_plugin_that_is_named_by_its_path),
        cmocka_unit_test(wrong_settings_are_errors_with_their_place),
        cmocka_unit_test(memory_of_a_plugin_is_counted),
        cmocka_unit_test(a_file_finds_its_loader_by_content),
        cmocka_unit_test(a_loader_that_does_not_open_stands_in_nobodys_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
