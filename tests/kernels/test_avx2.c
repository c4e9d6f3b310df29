/* The rows of plugin cpu-avx2, loaded as the host loads it, against the suite and the reference. */
#include "ks_kernel_suite.h"
#include "ref/ref.h"
#include "rows_under_test.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const ks_plugin *plugin; /* of the group's set-up */

static int load(void **state)
{
    (void)state;
    void *lib = dlopen(KS_BUILD_DIR "/plugins/cpu-avx2.so", RTLD_NOW | RTLD_LOCAL);
    if (lib) plugin = dlsym(lib, KS_PLUGIN_SYMBOL);
    if (!plugin) print_error("%s\n", dlerror());
    return plugin ? 0 : -1;
}

static void keeps_the_rules(uint32_t op, uint32_t wtype)
{
    char why[256];
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        print_message("skipped: this CPU lacks AVX2 or FMA\n");
        skip();
    }
    const ks_kernel *row = find_row(plugin, op, wtype), *ref = find_row(&ks_ref_plugin, op, wtype);
    assert_non_null(row);
    for (uint64_t seed = 1; seed <= 3; seed++)
        if (ks_kernel_suite_run(row, ref, seed, why, sizeof why) != 0) fail_msg("seed %u: %s", (unsigned)seed, why);
}

#define TEST(NAME, OP, TYPE)                         \
    static void NAME##_keeps_the_rules(void **state) \
    {                                                \
        (void)state;                                 \
        keeps_the_rules(OP, TYPE);                   \
    }
ROWS_UNDER_TEST(TEST)
#undef TEST

static void the_descriptor_asks_for_every_feature_its_files_use(void **state)
{
    (void)state;
    assert_true(plugin->cpu_required == (KS_CPU(AVX2) | KS_CPU(FMA) | KS_CPU(F16C)));
    assert_string_equal(plugin->name, "cpu-avx2");
    assert_int_equal(plugin->kind, KS_KIND_KERNELS);
}

int main(void)
{
#define ENTRY(NAME, OP, TYPE) cmocka_unit_test(NAME##_keeps_the_rules),
    const struct CMUnitTest tests[] = {
        ROWS_UNDER_TEST(ENTRY) //
        cmocka_unit_test(the_descriptor_asks_for_every_feature_its_files_use),
    };
    return cmocka_run_group_tests(tests, load, NULL);
}
