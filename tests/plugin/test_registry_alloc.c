/* The Nth allocation of the registry fails, for every N until all goes well: an error each time, nothing lost or
 * leaked. */
#include "plugin/plugin.h"
#include "support/alloc_fail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define FIXTURE(name) KS_FIXTURE_DIR "/" name ".so"

/* Two files by path, settings with a string, choice and table. The registry is the caller's to close. */
static int everything(ks_registry **r, ks_kernel_table **t, ks_err *err)
{
    static const char *const wanted[] = { FIXTURE("good-future") ", " FIXTURE("good-options") };
    static const ks_plugin_setting s[] = { { "good-options", "mode", "exact", "x.ini:1" } };
    const ks_registry_opts o = { .wanted = wanted, .n_wanted = 1, .settings = s, .n_settings = 1 };
    int rc = ks_registry_open(&o, r, err);
    if (rc == 0) rc = ks_registry_choose(*r, KS_KIND_KERNELS, "auto", err);
    if (rc == 0) rc = ks_kernel_table_new(*r, t, err);
    return rc;
}

static void every_allocation_may_fail(void **state)
{
    long n = 0;
    (void)state;
    for (int rc = -1; rc; n++) {
        ks_registry *r = NULL;
        ks_kernel_table *t = NULL;
        ks_err err = { 0 };
        ks_test_fail_after(n);
        rc = everything(&r, &t, &err);
        assert_int_equal(ks_test_fail_end(), rc != 0);
        if (rc) {
            assert_int_equal(rc, KS_E_NOMEM);
            assert_non_null(strstr(err.msg, "memory"));
        } else {
            assert_int_equal(ks_registry_count(r), 2);
            assert_int_equal(ks_registry_entry(r, 0)->state, KS_PLUGIN_CHOSEN);
            assert_int_equal(ks_registry_entry(r, 1)->state, KS_PLUGIN_USABLE);
        }
        ks_kernel_table_free(t);
        ks_registry_close(r);
    }
    assert_true(n > 15); /* as many were counted */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_allocation_may_fail) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
