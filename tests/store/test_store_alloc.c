/* The Nth allocation fails, for every N until all goes well: an error each time, nothing lost or leaked. */
#include "support/alloc_fail.h"
#include "util.h"

#define DIR "alloc"
#define CACHE "alloc-cache"

static int everything(ks_registry *r, ks_err *err)
{
    static const ks_wpart parts[] = { { "a", 0, 32, 0, 0, 0, false }, { "b", 0, 64, 0, 0, 0, false } };
    static const ks_wspec specs[] = {
        { "w", KS_CLS_ATTN, 0, 1, 32, 64, 1, &parts[0], -1, 0, NULL },
        { "v", KS_CLS_NORM, KS_WSPEC_VECTOR, 1, 1, 64, 1, &parts[1], -1, 0, NULL },
    };
    ks_store_opts o = { .cache_dir = CACHE };
    ks_ckpt *c = NULL;
    ks_weight w[2];
    o.type[KS_CLS_ATTN] = KS_T_I4;
    int rc = ks_ckpt_open(r, DIR, &c, err);
    for (int i = 0; i < 2 && rc == 0; i++) { /* builds the cache, then reads it */
        ks_store *st = NULL;
        rc = ks_store_open(c, specs, 2, &o, w, &st, err);
        assert_true(rc == 0 ? st != NULL : st == NULL);
        ks_store_close(st);
    }
    ks_ckpt_close(c);
    return rc;
}

static void every_failed_allocation_is_an_error(void **state)
{
    (void)state;
    static const char index[] = "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}";
    static const char config[] = "{\"model_type\":\"x\"}";
    ks_err err = { .code = 0 };
    ks_registry *r = util_registry();
    ks_st_tensor a = util_tensor("a", "BF16", 2, 32, 64, 0), b = util_tensor("b", "F32", 1, 64, 0, 0);
    util_fresh_dir(DIR);
    util_write(DIR, "1.safetensors", &a, 1);
    util_write(DIR, "2.safetensors", &b, 1);
    assert_ok(ks_file_write(DIR "/model.safetensors.index.json", index, strlen(index), &err), &err);
    assert_ok(ks_file_write(DIR "/config.json", config, strlen(config), &err), &err);
    long n = 0;
    for (;; n++) {
        util_fresh_dir(CACHE);
        err = (ks_err) { .code = 0 };
        ks_test_fail_after(n);
        int rc = everything(r, &err);
        if (!ks_test_fail_end()) {
            assert_ok(rc, &err);
            break;
        }
        if (rc == 0) continue; /* what failed could be done without: a progress bar, a stamp that was not read */
        assert_true(rc < 0 && rc == err.code && err.msg[0]);
    }
    print_message("%ld allocations\n", n);
    assert_true(n > 30);
    ks_registry_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_failed_allocation_is_an_error) };
    return cmocka_run_group_tests_name("store_alloc", tests, NULL, NULL);
}
