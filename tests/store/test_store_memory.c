/* One copy of the weights: what a build and a load take at most, in a process of their own, and how often the source
 * is read. The bound is that of a real model, 1.1 x the quantized bytes + 1 GiB, with the constant scaled down. */
#include "util.h"
#include <sys/wait.h>
#include <unistd.h>

#define MODEL "model"
#define CACHE "cache"

enum { N = 24, D = 2048 };               /* 201 MB of source, 54 MB quantized */
#define SLACK_BYTES ((uint64_t)24 << 20) /* code, stacks, scratch of two workers */
#define THREADS 2

static const ks_wpart parts[1] = { { "e.{}", 0, D, D, 0, 0, false } };
static const ks_wspec specs[1] = { { "w", KS_CLS_EXPERT, 0, N, D, D, 1, parts, -1, 0, NULL } };

/* A line of a file below /proc/self; 0 if it is not there. */
static uint64_t proc_value(const char *path, const char *format)
{
    char line[256];
    unsigned long long v = 0;
    FILE *f = fopen(path, "r");
    while (f && v == 0 && fgets(line, sizeof line, f))
        if (sscanf(line, format, &v) != 1) v = 0;
    if (f) (void)fclose(f);
    return v;
}

static uint64_t peak_bytes(void)
{
    return proc_value("/proc/self/status", "VmHWM: %llu kB") * 1024;
}

static void write_model(void)
{
    char names[N][16];
    ks_err err;
    ks_st_tensor t[N], one = util_tensor("x", "BF16", 2, D, D, 0);
    for (uint32_t i = 0; i < N; i++) {
        (void)snprintf(names[i], sizeof names[i], "e.%u", i);
        t[i] = one;
        t[i].name = names[i];
    }
    assert_ok(ks_st_write(MODEL "/model.safetensors", t, N, &err), &err);
    free((void *)(uintptr_t)one.data);
}

/* Exit codes of the child, which cannot fail a test itself. */
enum { FINE, FAILED, TOO_MUCH_AT_LOAD, READ_TWICE, WRONG_WAY };

static int open_and_measure(bool want_cached)
{
    ks_err err = { .code = 0 };
    ks_pool *pool = NULL;
    ks_ckpt *c = NULL;
    ks_store *st = NULL;
    ks_weight w[1];
    ks_pool_opts po = { .n_threads = THREADS };
    ks_registry *r = util_registry();
    ks_store_opts o = { .cache_dir = CACHE };
    o.type[KS_CLS_EXPERT] = KS_T_I4;
    if (ks_pool_open(&po, &pool, &err) != 0 || ks_ckpt_open(r, MODEL, &c, &err) != 0) return FAILED;
    o.pool = pool;
    const uint64_t before = proc_value("/proc/self/io", "rchar: %llu");
    if (ks_store_open(c, specs, 1, &o, w, &st, &err) != 0) {
        print_message("%s\n", err.msg);
        return FAILED;
    }
    const uint64_t read = proc_value("/proc/self/io", "rchar: %llu") - before, peak = peak_bytes();
    const uint64_t bytes = ks_store_bytes(st), source = (uint64_t)N * D * D * 2;
    print_message("%s: peak %.1f MB for %.1f MB of weights, %.1f MB read\n", want_cached ? "load" : "build",
                  (double)peak / 1e6, (double)bytes / 1e6, (double)read / 1e6);
    if (ks_store_was_cached(st) != want_cached) return WRONG_WAY;
    if (peak > bytes + bytes / 10 + SLACK_BYTES) return TOO_MUCH_AT_LOAD;
    if (before != 0 && read > (want_cached ? bytes : source) * 11 / 10) return READ_TWICE;
    ks_store_close(st);
    ks_ckpt_close(c);
    ks_registry_close(r);
    ks_pool_close(pool);
    return FINE;
}

static int in_child(bool want_cached)
{
    int status;
    (void)fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int rc = open_and_measure(want_cached);
        (void)fflush(NULL);
        _exit(rc);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void there_is_one_copy_of_the_weights(void **state)
{
    (void)state;
    int status;
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    print_message("a sanitizer's own memory would be counted\n");
    skip();
#endif
    if (peak_bytes() == 0) skip(); /* a kernel that does not tell */
    util_fresh_dir(MODEL);
    util_fresh_dir(CACHE);
    pid_t pid = fork(); /* so that its memory is not ours */
    assert_true(pid >= 0);
    if (pid == 0) {
        write_model();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(in_child(false), FINE);
    assert_int_equal(in_child(true), FINE);
    util_fresh_dir(MODEL); /* 250 MB are not left lying about */
    util_fresh_dir(CACHE);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(there_is_one_copy_of_the_weights) };
    return cmocka_run_group_tests_name("store_memory", tests, NULL, NULL);
}
