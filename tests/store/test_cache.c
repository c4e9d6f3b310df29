/* The cache: built once, read after, never believed without a check, never torn, never in the way. */
#include "base/clock.h"
#include "base/hash.h"
#include "util.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MODEL "model"
#define CACHE "cache"
#define BAD_STDERR "stderr.txt"

enum { E = 6, FF = 192, D = 512 }; /* 3.5 MB of source: some pages are not in the fingerprint's sample */

static const ks_wpart gate_up[2] = { { "e.{}.gate", 0, FF, FF, 0, 0, false }, { "e.{}.up", 0, FF, FF, 0, 0, false } };
static const ks_wpart down[1] = { { "e.{}.down", 0, D, D, 0, 0, false } };
static const ks_wpart norm[1] = { { "norm", 0, D, D, 0, 0, false } };
static const ks_wpart emb[1] = { { "emb", 0, 700, 0, 0, 0, false } };
static const ks_wspec specs[] = {
    { "norm", KS_CLS_NORM, KS_WSPEC_VECTOR, 1, 1, D, 1, norm, -1, 0, NULL },
    { "gu", KS_CLS_EXPERT, KS_WSPEC_PAIR, E, 2 * FF, D, 2, gate_up, 2, 0, NULL },
    { "down", KS_CLS_EXPERT, 0, E, D, FF, 1, down, -1, 0, NULL },
    { "emb", KS_CLS_EMBED, KS_WSPEC_TABLE, 1, 700, D, 1, emb, -1, 0, NULL },
};
#define N_SPECS KS_COUNT(specs)

static ks_pool *pool;

static void write_model(const char *dir)
{
    char names[E][3][20];
    ks_st_tensor t[E * 3 + 2];
    size_t n = 0;
    for (uint32_t e = 0; e < E; e++) {
        (void)snprintf(names[e][0], 20, "e.%u.gate", e);
        (void)snprintf(names[e][1], 20, "e.%u.up", e);
        (void)snprintf(names[e][2], 20, "e.%u.down", e);
        t[n++] = util_tensor(names[e][0], "BF16", 2, FF, D, 0);
        t[n++] = util_tensor(names[e][1], "BF16", 2, FF, D, 0);
        t[n++] = util_tensor(names[e][2], "BF16", 2, D, FF, 0);
    }
    t[n++] = util_tensor("norm", "BF16", 1, D, 0, 0);
    t[n++] = util_tensor("emb", "BF16", 2, 700, D, 0);
    util_fresh_dir(dir);
    util_write(dir, "model.safetensors", t, n);
}

static int setup(void **state)
{
    ks_err err;
    ks_pool_opts o = { .n_threads = 2 };
    (void)util_setup(state);
    assert_ok(ks_pool_open(&o, &pool, &err), &err);
    write_model(MODEL);
    return 0;
}

static int teardown(void **state)
{
    ks_pool_close(pool);
    return util_teardown(state);
}

static ks_store_opts options(uint32_t expert_type)
{
    ks_store_opts o = { .cache_dir = CACHE, .pool = pool };
    for (size_t i = 0; i < KS_COUNT(o.type); i++) o.type[i] = KS_T_BF16;
    o.type[KS_CLS_EXPERT] = expert_type;
    return o;
}

static int open_store(const char *model, const ks_store_opts *o, ks_weight *w, ks_store **st, ks_err *err)
{
    ks_ckpt *c = util_ckpt(registry, model);
    int rc = ks_store_open(c, specs, N_SPECS, o, w, st, err);
    ks_ckpt_close(c); /* the store needs it no more */
    return rc;
}

static void assert_same_weights(const ks_weight *a, const ks_weight *b)
{
    for (uint32_t i = 0; i < N_SPECS; i++) {
        assert_string_equal(a[i].name, b[i].name);
        assert_int_equal(a[i].stride, b[i].stride);
        for (uint32_t m = 0; m < a[i].n_mat; m++)
            assert_memory_equal((const char *)a[i].data + m * a[i].stride, (const char *)b[i].data + m * b[i].stride,
                                a[i].mat_bytes);
    }
}

/* Opens, holds the weights against ones that were never cached; returns whether the cache served them. */
static bool open_checked(const char *model, const ks_store_opts *o)
{
    ks_err err;
    ks_weight w[N_SPECS], plain[N_SPECS];
    ks_store *st = NULL, *ref = NULL;
    ks_store_opts no_cache = *o;
    no_cache.no_cache = true;
    assert_ok(open_store(model, o, w, &st, &err), &err);
    assert_ok(open_store(model, &no_cache, plain, &ref, &err), &err);
    assert_same_weights(w, plain);
    bool cached = ks_store_was_cached(st);
    assert_false(ks_store_was_cached(ref));
    ks_store_close(st);
    ks_store_close(ref);
    return cached;
}

/* The cache's files that end so: their number, and the path of the last. */
static uint32_t files(const char *tail, char path[512])
{
    uint32_t n = 0;
    DIR *d = opendir(CACHE);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        size_t len = strlen(e->d_name);
        if (len < strlen(tail) || strcmp(e->d_name + len - strlen(tail), tail) != 0) continue;
        util_path(path, CACHE, e->d_name);
        n++;
    }
    (void)closedir(d);
    return n;
}

static char *slurp(const char *path, size_t *n)
{
    ks_err err;
    char *text = NULL;
    assert_ok(ks_file_read(path, (size_t)1 << 30, &text, n, &err), &err);
    return text;
}

/* Runs fn with stderr in a file; returns its text. */
static char *stderr_of(bool (*fn)(const char *, const ks_store_opts *), const ks_store_opts *o, bool *ret)
{
    size_t n;
    int old = dup(2), fd = open(BAD_STDERR, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(old >= 0 && fd >= 0 && dup2(fd, 2) == 2);
    *ret = fn(MODEL, o);
    assert_true(dup2(old, 2) == 2);
    (void)close(fd);
    (void)close(old);
    return slurp(BAD_STDERR, &n);
}

static void flip(const char *path, off_t at)
{
    uint8_t b = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &b, 1, at) == 1);
    b ^= 0x10;
    assert_true(pwrite(fd, &b, 1, at) == 1 && close(fd) == 0);
}

/* ---- */

static void the_second_start_reads_what_the_first_built(void **state)
{
    (void)state;
    char path[512];
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_false(open_checked(MODEL, &o));
    assert_true(open_checked(MODEL, &o));
    o.pool = NULL;
    assert_true(open_checked(MODEL, &o));
    assert_int_equal(files(".kw", path), 1);
    assert_int_equal(files(".part", path), 0);
    assert_int_equal(files(".journal", path), 0);
}

static void settings_lie_side_by_side(void **state)
{
    (void)state;
    char path[512];
    ks_store_opts i4 = options(KS_T_I4), i8 = options(KS_T_I8);
    util_fresh_dir(CACHE);
    assert_false(open_checked(MODEL, &i4));
    assert_false(open_checked(MODEL, &i8));
    assert_true(open_checked(MODEL, &i4));
    assert_true(open_checked(MODEL, &i8));
    assert_int_equal(files(".kw", path), 2);
}

static void rebuild_builds_though_the_cache_is_good(void **state)
{
    (void)state;
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_false(open_checked(MODEL, &o));
    o.rebuild = true;
    assert_false(open_checked(MODEL, &o));
    o.rebuild = false;
    assert_true(open_checked(MODEL, &o));
}

/* The same content in another folder is the same model: after one comparison with its source. */
static void a_moved_model_keeps_its_cache(void **state)
{
    (void)state;
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_false(open_checked(MODEL, &o));
    write_model("moved");
    assert_true(open_checked("moved", &o));
}

static void a_flipped_byte_is_told_and_mended(void **state)
{
    (void)state;
    char path[512];
    size_t n, m;
    bool cached;
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_false(open_checked(MODEL, &o));
    assert_int_equal(files(".kw", path), 1);
    char *good = slurp(path, &n);
    const off_t at[] = { 0, 9, 60, 200, 500, 4095, 4096, (off_t)n / 3, (off_t)n / 2, (off_t)n - 4097 };
    for (size_t i = 0; i < KS_COUNT(at); i++) {
        flip(path, at[i]);
        char *text = stderr_of(open_checked, &o, &cached);
        if (!cached) { /* not between the weights, where it harms nobody */
            assert_contains(text, "damaged");
            assert_contains(text, path);
            assert_contains(text, "building the weights again");
        }
        free(text);
        char *now = slurp(path, &m);
        if (cached) now[at[i]] ^= 0x10;
        if (cached) flip(path, at[i]);
        assert_int_equal(n, m);
        assert_memory_equal(now, good, n);
        free(now);
        assert_true(!cached || at[i] >= 4095);
    }
    free(good);
}

static void a_cut_off_file_is_built_again(void **state)
{
    (void)state;
    char path[512];
    bool cached;
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_false(open_checked(MODEL, &o));
    assert_int_equal(files(".kw", path), 1);
    assert_int_equal(truncate(path, 5000), 0);
    char *text = stderr_of(open_checked, &o, &cached);
    assert_false(cached);
    assert_contains(text, "has 5000 bytes instead of");
    free(text);
    assert_true(open_checked(MODEL, &o));
}

/* A byte of a page that the fingerprint does not sample. */
static void a_changed_source_byte_is_found(void **state)
{
    (void)state;
    const char *file = "changed/model.safetensors";
    struct stat st;
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    write_model("changed");
    assert_false(open_checked("changed", &o));
    assert_int_equal(stat(file, &st), 0);
    off_t at = st.st_size / 4096 / 63 / 2 * 4096 + 100;
    flip(file, at);
    assert_false(open_checked("changed", &o)); /* the times differ, so it is compared */
    assert_true(open_checked("changed", &o));
    assert_int_equal(stat(file, &st), 0);
    flip(file, at);
    assert_int_equal(utimensat(AT_FDCWD, file, (struct timespec[2]) { st.st_atim, st.st_mtim }, 0), 0);
    o.verify = true;
    assert_false(open_checked("changed", &o)); /* times are the same, but everything is compared */
    assert_true(open_checked("changed", &o));
}

/* In a child: builds until it is killed, or to the end. */
static pid_t start_child(const ks_store_opts *o)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid != 0) return pid;
    ks_err err;
    ks_weight w[N_SPECS];
    ks_store *st = NULL;
    ks_store_opts own = *o;
#ifdef __SANITIZE_THREAD__ /* which knows no threads in the child of a process that has some */
    ks_pool_opts po = { .n_threads = 1 };
#else
    ks_pool_opts po = { .n_threads = 2 }; /* its own: threads do not survive a fork */
#endif
    int rc = ks_pool_open(&po, &own.pool, &err);
    if (rc == 0) rc = open_store(MODEL, &own, w, &st, &err);
    _exit(rc == 0 ? 0 : 1);
}

static bool wait_child(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status)) {
        assert_int_equal(WTERMSIG(status), SIGKILL);
        return false;
    }
    assert_int_equal(WEXITSTATUS(status), 0);
    return true;
}

/* At random moments of a build, again and again until one lives to the end; ten kills in all at least. */
static void killed_builds_end_in_the_same_bytes(void **state)
{
    (void)state;
    char path[512];
    size_t n, m;
    uint32_t kills = 0, kept = 0;
    const char *seed = getenv("KRASIS_TEST_SEED");
    uint64_t random = seed ? strtoull(seed, NULL, 10) : ks_now_ns(), whole = ks_now_ns();
    print_message("KRASIS_TEST_SEED=%llu gives these moments again\n", (unsigned long long)random);
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_true(wait_child(start_child(&o)));
    whole = ks_now_ns() - whole;
    assert_int_equal(files(".kw", path), 1);
    char *good = slurp(path, &n);
    while (kills < 10) {
        util_fresh_dir(CACHE);
        for (bool done = false; !done;) {
            uint64_t ns = whole / 100 * (5 + ks_splitmix64(&random) % 90);
            pid_t pid = start_child(&o);
            (void)nanosleep(&(struct timespec) { (time_t)(ns / 1000000000), (long)(ns % 1000000000) }, NULL);
            (void)kill(pid, SIGKILL);
            done = wait_child(pid);
            kills += !done;
            kept += !done && files(".journal", path) == 1;
        }
        assert_true(wait_child(start_child(&o)));
        assert_int_equal(files(".kw", path), 1);
        char *now = slurp(path, &m);
        assert_int_equal(n, m);
        assert_memory_equal(now, good, n);
        free(now);
        assert_int_equal(files(".part", path), 0);
    }
    print_message("%u kills, %u of them left an unfinished cache\n", kills, kept);
    free(good);
}

/* What a power failure may leave: a torn journal, blocks that never reached the disk. */
static void a_torn_journal_and_lost_blocks_are_made_again(void **state)
{
    (void)state;
    char path[512], part[512], journal[512];
    size_t n, m, j;
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_false(open_checked(MODEL, &o));
    assert_int_equal(files(".kw", path), 1);
    char *good = slurp(path, &n);
    pid_t pid = 0;
    for (long ns = 2000000; files(".journal", journal) == 0; ns += 500000) { /* until one dies half-way */
        util_fresh_dir(CACHE);
        pid = start_child(&o);
        (void)nanosleep(&(struct timespec) { .tv_nsec = ns }, NULL);
        (void)kill(pid, SIGKILL);
        (void)wait_child(pid);
    }
    assert_int_equal(files(".part", part), 1);
    free(slurp(journal, &j));
    int fd = open(journal, O_WRONLY | O_APPEND);
    assert_true(fd >= 0 && write(fd, good, 23) == 23 && close(fd) == 0);
    fd = open(part, O_WRONLY);
    for (off_t at = 4096 * 2; at < (off_t)n; at += 65536) assert_int_equal(pwrite(fd, "lost", 4, at), 4);
    assert_int_equal(close(fd), 0);
    assert_false(open_checked(MODEL, &o));
    char *now = slurp(path, &m);
    assert_int_equal(n, m);
    /* Bytes that belong to no block keep what we scribbled there: only blocks are hashed. */
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) differ += now[i] != good[i];
    assert_true(differ <= 4 * (n / 65536 + 1));
    assert_true(open_checked(MODEL, &o));
    free(now);
    free(good);
}

static void two_processes_build_one_file(void **state)
{
    (void)state;
    char path[512];
    ks_store_opts o = options(KS_T_I4);
    for (uint32_t round = 0; round < 5; round++) {
        util_fresh_dir(CACHE);
        pid_t a = start_child(&o), b = start_child(&o), c = start_child(&o);
        assert_true(wait_child(a));
        assert_true(wait_child(b));
        assert_true(wait_child(c));
        assert_int_equal(files(".kw", path), 1);
        assert_int_equal(files(".part", path), 0);
        assert_int_equal(files(".journal", path), 0);
        assert_true(open_checked(MODEL, &o));
    }
}

static void expect_failure(const ks_store_opts *o, const char *message)
{
    ks_err err = { .code = 0 };
    ks_weight w[N_SPECS];
    ks_store *st = NULL;
    int rc = open_store(MODEL, o, w, &st, &err);
    assert_true(rc < 0 && rc == err.code);
    assert_null(st);
    assert_contains(err.msg, message);
}

static void a_limit_on_file_sizes_is_told_before_the_work(void **state)
{
    (void)state;
    struct rlimit old, low;
    char path[512];
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = 100000;
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    expect_failure(&o, "the weight cache needs 0.00");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    (void)signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(files(".kw", path) + files(".part", path) + files(".journal", path), 0);
}

static void a_full_disk_is_told_before_the_work(void **state)
{
    (void)state;
    char path[512];
    ks_store_opts o = options(KS_T_I4);
    util_fresh_dir(CACHE);
    if (mount("tmpfs", CACHE, "tmpfs", 0, "size=1m") != 0) skip(); /* needs root: no small file system to fill */
    ks_err err = { .code = 0 };
    ks_weight w[N_SPECS];
    ks_store *st = NULL;
    int rc = open_store(MODEL, &o, w, &st, &err);
    uint32_t left = files(".kw", path) + files(".part", path) + files(".journal", path);
    assert_int_equal(umount(CACHE), 0);
    assert_int_equal(rc, KS_E_LIMIT);
    assert_null(st);
    assert_int_equal(left, 0);
    assert_contains(err.msg, "the weight cache needs 0.0");
    assert_contains(err.msg, " GB in 'cache', 0.001 GB are free");
    assert_contains(err.msg, "make room, or put it elsewhere by KRASIS_HOME");
}

static void a_cache_folder_that_cannot_be_made_is_told(void **state)
{
    (void)state;
    ks_store_opts o = options(KS_T_I4);
    o.cache_dir = MODEL "/model.safetensors/cache";
    expect_failure(&o, "'" MODEL "/model.safetensors");
}

static void the_default_folder_is_in_the_home(void **state)
{
    (void)state;
    char dir[512];
    ks_err err;
    ks_store_opts o = options(KS_T_I4);
    o.cache_dir = NULL;
    char *home = ks_home(&err);
    assert_non_null(home);
    util_path(dir, home, "cache");
    util_fresh_dir(dir);
    assert_false(open_checked(MODEL, &o));
    assert_true(open_checked(MODEL, &o));
    free(home);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_second_start_reads_what_the_first_built),
        cmocka_unit_test(settings_lie_side_by_side),
        cmocka_unit_test(rebuild_builds_though_the_cache_is_good),
        cmocka_unit_test(a_moved_model_keeps_its_cache),
        cmocka_unit_test(a_flipped_byte_is_told_and_mended),
        cmocka_unit_test(a_cut_off_file_is_built_again),
        cmocka_unit_test(a_changed_source_byte_is_found),
        cmocka_unit_test(killed_builds_end_in_the_same_bytes),
        cmocka_unit_test(a_torn_journal_and_lost_blocks_are_made_again),
        cmocka_unit_test(two_processes_build_one_file),
        cmocka_unit_test(a_limit_on_file_sizes_is_told_before_the_work),
        cmocka_unit_test(a_full_disk_is_told_before_the_work),
        cmocka_unit_test(a_cache_folder_that_cannot_be_made_is_told),
        cmocka_unit_test(the_default_folder_is_in_the_home),
    };
    return cmocka_run_group_tests_name("cache", tests, setup, teardown);
}
