/* The Nth allocation fails, for every N until all goes well: an error each time, nothing lost or leaked. */
#include "util.h"

static long countdown = -1; /* below 0: none fails */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);

static bool fails(void)
{
    return countdown >= 0 && countdown-- == 0;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}
void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}
char *__wrap_strdup(const char *s)
{
    return fails() ? NULL : __real_strdup(s);
}
char *__wrap_strndup(const char *s, size_t n)
{
    return fails() ? NULL : __real_strndup(s, n);
}

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
        countdown = n++;
        err.msg[0] = '\0';
        rc = everything(&err);
        if (rc) assert_true(err.msg[0] != '\0');
        assert_true(n < 10000);
    } while (rc);
    countdown = -1;
    assert_true(n > 100); /* so many were counted: the wrapping works */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(each_allocation_may_fail) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
