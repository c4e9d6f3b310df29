/* The Nth allocation fails, for every N until all goes well: an error each time, nothing lost or leaked. */
#include "support/alloc_fail.h"
#include "util.h"

static int everything(ks_err *err)
{
    static const char text[] = "[model]\nmodel-path = m\n[server]\nport = 1\n[http]\na = 1\nb = 2\nc = 3\n";
    char port[] = "--port=2", set[] = "--set=http.a=2", *argv[] = { port, set };
    ks_cli cli = { .command = "serve" };
    ks_config *c = NULL;
    int64_t *v = NULL;
    size_t n;
    int rc = ks_config_new(&c, err);
    if (rc == 0) rc = ks_config_parse_ini(c, text, sizeof text - 1, "conf/x.ini", KS_FROM_FILE, err);
    if (rc == 0) rc = ks_config_read_args(c, &cli, 2, argv, 0, err);
    if (rc == 0) rc = ks_config_ints(c, "clients", &v, &n, err);
    if (rc == 0) rc = ks_config_save(c, "alloc.ini", err);
    free(v);
    ks_config_free(c);
    return rc;
}

static void each_allocation_may_fail(void **state)
{
    (void)state;
    ks_err err = { 0 };
    long n = 0;
    int rc;
    do {
        ks_test_fail_after(n++);
        err.msg[0] = '\0';
        rc = everything(&err);
        if (rc) assert_true(err.msg[0] != '\0');
        assert_true(n < 10000);
    } while (rc);
    (void)ks_test_fail_end(); /* none did: rc is 0 */
    assert_true(n > 100);     /* so many were counted: the wrapping works */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(each_allocation_may_fail) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
