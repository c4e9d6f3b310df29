/* The cache's folder seen from outside, and krasis cache: what it shows, what it removes, what it leaves alone. */
#include "store/cache_list.h"
#include "util.h"
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CACHE "cache"
#define KEY_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define KEY_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static const ks_wpart parts[1] = { { "a", 0, 64, 0, 0, 0, false } };
static const ks_wspec specs[1] = { { "a", KS_CLS_ATTN, 0, 1, 64, 128, 1, parts, -1, 0, NULL } };
static char out[1 << 16];

static void build(const char *model)
{
    ks_err err;
    ks_weight w[1];
    ks_store *st = NULL;
    ks_store_opts o = { .cache_dir = CACHE };
    ks_st_tensor t = util_tensor("a", "BF16", 2, 64, 128, 0);
    util_fresh_dir(model);
    util_write(model, "model.safetensors", &t, 1);
    ks_registry *r = util_registry();
    ks_ckpt *c = util_ckpt(r, model);
    assert_ok(ks_store_open(c, specs, 1, &o, w, &st, &err), &err);
    ks_store_close(st);
    ks_ckpt_close(c);
    ks_registry_close(r);
}

static void put(const char *name, const char *text)
{
    ks_err err;
    char path[512];
    util_path(path, CACHE, name);
    assert_ok(ks_file_write(path, text, strlen(text), &err), &err);
}

static ks_cache_items list(void)
{
    ks_err err;
    ks_cache_items x;
    assert_ok(ks_cache_list(CACHE, &x, &err), &err);
    return x;
}

/* Exit code of `krasis ARGS` over the test's folder; its text in `out`. */
static int krasis(const char *args)
{
    char cmd[1024];
    (void)snprintf(cmd, sizeof cmd, KS_BUILD_DIR "/krasis cache %s --cache-dir " CACHE " 2>&1 </dev/null", args);
    FILE *p = popen(cmd, "r");
    assert_non_null(p);
    out[fread(out, 1, sizeof out - 1, p)] = '\0';
    const int rc = pclose(p);
    assert_true(WIFEXITED(rc));
    return WEXITSTATUS(rc);
}

static int fresh(void **state)
{
    (void)state;
    util_fresh_dir(CACHE);
    return 0;
}

static void a_finished_cache_is_ready_and_leaves_no_lock(void **state)
{
    (void)state;
    struct stat st;
    char lock[64], whole[512];
    build("model");
    ks_cache_items x = list();
    assert_int_equal(x.n, 1);
    assert_int_equal(x.item[0].state, KS_CACHE_READY);
    assert_true(x.item[0].bytes >= 16384 && x.item[0].used_s > 1500000000);
    assert_non_null(getcwd(whole, sizeof whole - 8));
    (void)strcat(whole, "/model");
    assert_string_equal(x.item[0].model, whole);
    (void)snprintf(lock, sizeof lock, CACHE "/%s.lock", x.item[0].key);
    assert_int_not_equal(stat(lock, &st), 0);
    ks_cache_items_fini(&x);
    util_fresh_dir("model");
    assert_int_equal(rmdir("model"), 0);
    x = list();
    assert_int_equal(x.item[0].state, KS_CACHE_GONE);
    ks_cache_items_fini(&x);
}

static void damage_and_other_versions_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        off_t at;
        uint32_t state;
    } cases[] = { { 0, KS_CACHE_DAMAGED },  { 8, KS_CACHE_OTHER },    { 20, KS_CACHE_OTHER },
                  { 24, KS_CACHE_DAMAGED }, { 16, KS_CACHE_DAMAGED }, { 48, KS_CACHE_DAMAGED } };
    char path[512];
    for (size_t i = 0; i < KS_COUNT(cases); i++) {
        uint8_t b;
        util_fresh_dir(CACHE);
        build("model");
        ks_cache_items x = list();
        (void)snprintf(path, sizeof path, CACHE "/%s.kw", x.item[0].key);
        ks_cache_items_fini(&x);
        int fd = open(path, O_RDWR);
        assert_true(fd >= 0 && pread(fd, &b, 1, cases[i].at) == 1);
        b ^= 0x40;
        assert_true(pwrite(fd, &b, 1, cases[i].at) == 1 && close(fd) == 0);
        x = list();
        assert_int_equal(x.item[0].state, cases[i].state);
        ks_cache_items_fini(&x);
    }
    assert_int_equal(truncate(path, 30), 0);
    ks_cache_items x = list();
    assert_int_equal(x.item[0].state, KS_CACHE_DAMAGED);
    ks_cache_items_fini(&x);
}

static void leftovers_and_unfinished_builds_are_seen(void **state)
{
    (void)state;
    put(KEY_A ".lock", "");
    put(KEY_A ".source", "0123456789abcdef\n/nowhere\n");
    put(KEY_B ".part", "x");
    put(KEY_B ".journal", "x");
    put(KEY_B ".source.tmp-1-2", "x");
    put("notes.txt", "not ours");
    put("cccc.kw", "not ours");
    ks_cache_items x = list();
    assert_int_equal(x.n, 2);
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(x.item[i].state, x.item[i].key[0] == 'a' ? KS_CACHE_LEFTOVER : KS_CACHE_UNFINISHED);
    ks_cache_items_fini(&x);
}

static void what_is_being_built_is_not_removed(void **state)
{
    (void)state;
    ks_err err = { .code = 0 };
    put(KEY_A ".part", "x");
    put(KEY_A ".lock", "");
    int fd = open(CACHE "/" KEY_A ".lock", O_RDWR);
    assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
    ks_cache_items x = list();
    assert_int_equal(x.item[0].state, KS_CACHE_BUILDING);
    assert_int_equal(ks_cache_remove(&x, &x.item[0], &err), KS_E_BUSY);
    assert_contains(err.msg, "another process builds these weights");
    assert_true(ks_file_exists(CACHE "/" KEY_A ".part"));
    assert_int_equal(close(fd), 0);
    assert_ok(ks_cache_remove(&x, &x.item[0], &err), &err);
    assert_false(ks_file_exists(CACHE "/" KEY_A ".part") || ks_file_exists(CACHE "/" KEY_A ".lock"));
    ks_cache_items_fini(&x);
}

static void a_folder_that_is_not_there_is_empty(void **state)
{
    (void)state;
    ks_err err = { .code = 0 };
    ks_cache_items x;
    assert_ok(ks_cache_list("nowhere", &x, &err), &err);
    assert_int_equal(x.n, 0);
    assert_string_equal(x.dir, "nowhere");
    ks_cache_items_fini(&x);
    ks_cache_items_fini(&x);
    put("file", "x");
    assert_int_equal(ks_cache_list(CACHE "/file", &x, &err), KS_E_IO);
    assert_contains(err.msg, "cannot read '" CACHE "/file'");
}

static void the_command_removes_only_with_yes(void **state)
{
    (void)state;
    build("model");
    put(KEY_A ".source", "");
    put(KEY_B ".part", "x");
    put("notes.txt", "not ours");
    assert_int_equal(krasis(""), 0);
    assert_contains(out, "ready");
    assert_contains(out, "leftover");
    assert_contains(out, "unfinished");
    assert_contains(out, "3 in '" CACHE "'");
    assert_int_equal(krasis("clean"), 0);
    assert_contains(out, "1 would be removed");
    assert_contains(out, "with --yes does it");
    assert_true(ks_file_exists(CACHE "/" KEY_A ".source"));
    assert_int_equal(krasis("clean --yes"), 0);
    assert_contains(out, "1 removed");
    assert_false(ks_file_exists(CACHE "/" KEY_A ".source"));
    assert_int_equal(krasis("clean --yes"), 0);
    assert_contains(out, "nothing to remove in '" CACHE "'");
    assert_int_equal(krasis("clean bbbb --yes"), 0);
    assert_false(ks_file_exists(CACHE "/" KEY_B ".part"));
    ks_cache_items x = list();
    assert_int_equal(x.n, 1); /* the good one is still there */
    ks_cache_items_fini(&x);
    assert_int_equal(krasis("clean all --yes"), 0);
    x = list();
    assert_int_equal(x.n, 0);
    ks_cache_items_fini(&x);
    assert_true(ks_file_exists(CACHE "/notes.txt"));
}

static void bad_words_are_told(void **state)
{
    (void)state;
    put(KEY_A ".source", "");
    put("aaaaabbbaaaaaaaaaaaaaaaaaaaaaaaa.part", "");
    assert_int_equal(krasis("clena"), 2);
    assert_contains(out, "cache 'clena': did you mean 'clean'?");
    assert_int_equal(krasis("clean aaa --yes"), 2);
    assert_contains(out,
                    "cache clean 'aaa': no key begins so; give useless, gone, unfinished, all, or at least 4 digits");
    assert_int_equal(krasis("clean aaaa --yes"), 2);
    assert_contains(out, "several keys begin so");
    assert_int_equal(krasis("list everything"), 2);
    assert_contains(out, "cache list takes no words: 'everything'");
    ks_cache_items x = list();
    assert_int_equal(x.n, 2);
    ks_cache_items_fini(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_finished_cache_is_ready_and_leaves_no_lock, fresh),
        cmocka_unit_test_setup(damage_and_other_versions_are_told_apart, fresh),
        cmocka_unit_test_setup(leftovers_and_unfinished_builds_are_seen, fresh),
        cmocka_unit_test_setup(what_is_being_built_is_not_removed, fresh),
        cmocka_unit_test_setup(a_folder_that_is_not_there_is_empty, fresh),
        cmocka_unit_test_setup(the_command_removes_only_with_yes, fresh),
        cmocka_unit_test_setup(bad_words_are_told, fresh),
    };
    return cmocka_run_group_tests_name("cache_list", tests, NULL, NULL);
}
