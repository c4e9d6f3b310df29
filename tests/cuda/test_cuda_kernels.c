/* The device code against the suite that all kernel sets pass: bounds, bits, nothing written outside. */
#include "kernels/rows_under_test.h"
#include "ks_kernel_suite.h"
#include "ref/ref.h"
#include "rows_on_gpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static char no_gpu[256];

static int set_up(void **state)
{
    (void)state;
    if (gpu_rows_open(no_gpu, sizeof no_gpu)) print_message("all skipped: %s\n", no_gpu);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    gpu_rows_close();
    return 0;
}

static void keeps_the_rules(uint32_t op, uint32_t wtype)
{
    char why[256];
    if (no_gpu[0]) skip();
    const ks_kernel *row = gpu_row(op, wtype), *ref = find_row(&ks_ref_plugin, op, wtype);
    if (!row) skip(); /* no op of the list needs it there */
    assert_non_null(ref);
    if (ks_kernel_suite_run(row, ref, 1, why, sizeof why) != 0) fail_msg("%s (%s)", why, gpu_rows_error());
    const char *error = gpu_rows_error();
    if (*error) fail_msg("%s", error);
}

#define TEST(NAME, OP, TYPE)                         \
    static void NAME##_keeps_the_rules(void **state) \
    {                                                \
        (void)state;                                 \
        keeps_the_rules(OP, TYPE);                   \
    }
ROWS_UNDER_TEST(TEST)
#undef TEST

static void products_by_warpgroups_keep_the_rules(void **state)
{
    (void)state;
    if (no_gpu[0]) skip();
    if (gpu_rows_by_warpgroups(3) != 0) {
        print_message("skipped: this GPU, or this build for it, has no products of warpgroups\n");
        skip();
    }
    keeps_the_rules(KS_K_MATMUL, KS_T_I4);
    if (KS_TEST_ALL) { /* test_cuda_moe: all types give the bits of the other kernels */
        keeps_the_rules(KS_K_MATMUL, KS_T_I8);
        keeps_the_rules(KS_K_MATMUL, KS_T_MXFP4);
    }
    (void)gpu_rows_by_warpgroups(0);
}

int main(void)
{
#define ENTRY(NAME, OP, TYPE) cmocka_unit_test(NAME##_keeps_the_rules),
    const struct CMUnitTest tests[] = { ROWS_UNDER_TEST(ENTRY)
                                            cmocka_unit_test(products_by_warpgroups_keep_the_rules) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
