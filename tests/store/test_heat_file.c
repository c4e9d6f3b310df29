/* Heat maps in files: what was written comes back, what is damaged is said, what cannot be is refused. */
#include "store/cache_list.h"
#include "store/heat_file.h"
#include "util.h"

#include "base/hash.h"
#include <sys/stat.h>
#include <unistd.h>

#define LAYERS 3u
#define EXPERTS 5u
#define UNITS (LAYERS * EXPERTS)
#define KEY "0123456789abcdef0123456789abcdef"

static ks_heat_map sample(void)
{
    static uint64_t counts[UNITS];
    static char model[] = "/models/some one";
    for (uint32_t i = 0; i < UNITS; i++) counts[i] = i * i * 1000;
    return (ks_heat_map) { LAYERS, EXPERTS, 10000, counts, model };
}

static char *path_of(const char *key)
{
    ks_err err;
    char *path;
    assert_ok(ks_heat_path(key, &path, &err), &err);
    return path;
}

/* The bytes of the sample's file. */
static char *bytes_of(size_t *n)
{
    ks_err err;
    char *text, *path = path_of(KEY);
    ks_heat_map m = sample();
    assert_ok(ks_heat_write(path, &m, &err), &err);
    assert_ok(ks_file_read(path, 1 << 20, &text, n, &err), &err);
    free(path);
    return text;
}

static void rehash(char *p, size_t n)
{
    ks_hash128 h = ks_hash(p, n - 16);
    memcpy(p + n - 16, &h, 16);
}

static void a_heat_map_is_read_as_it_was_written(void **state)
{
    (void)state;
    ks_err err;
    ks_heat_map m = sample(), got;
    char *path = path_of(KEY);
    assert_ok(ks_heat_write(path, &m, &err), &err);
    assert_ok(ks_heat_read(path, &got, &err), &err);
    assert_int_equal(got.n_layers, LAYERS);
    assert_int_equal(got.n_experts, EXPERTS);
    assert_int_equal(got.rows, 10000);
    assert_memory_equal(got.counts, m.counts, UNITS * sizeof *m.counts);
    assert_string_equal(got.model, m.model);
    ks_heat_map_fini(&got);
    free(path);
    path = path_of("ffffffffffffffffffffffffffffffff");
    assert_int_equal(ks_heat_read(path, &got, &err), KS_E_NOTFOUND);
    free(path);
}

static void every_flipped_bit_and_every_truncation_is_found(void **state)
{
    (void)state;
    ks_err err;
    ks_heat_map got;
    size_t n;
    char *p = bytes_of(&n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(ks_heat_parse("x", p, i, &got, &err), KS_E_FORMAT);
        for (int bit = 0; bit < 8; bit++) {
            p[i] = (char)(p[i] ^ 1 << bit);
            int rc = ks_heat_parse("x", p, n, &got, &err);
            assert_int_equal(rc, i == 7 ? KS_E_UNSUPPORTED : KS_E_FORMAT);
            assert_non_null(strstr(err.msg, "the heat map 'x' "));
            p[i] = (char)(p[i] ^ 1 << bit);
        }
    }
    free(p);
}

static void what_cannot_be_is_refused_though_its_hash_holds(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint64_t value;
        size_t bytes;
        const char *why;
    } lies[] = {
        { 8, 0, 4, "layers or experts" },
        { 12, 0, 4, "layers or experts" },
        { 8, 4097, 4, "layers or experts" },
        { 12, UINT32_MAX, 4, "layers or experts" },
        { 8, 4, 4, "its size" },
        { 24, 17000, 4, "its size" },
        { 28, 1, 4, "its size" },
        { 16, 0, 8, "rows" },
        { 16, UINT64_MAX, 8, "rows" },
        { 32, 10000 * 64 + 1, 8, "more uses than rows" },
        { 7, 2, 1, "has version 2, not 1" },
    };
    ks_err err;
    ks_heat_map got;
    size_t n;
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        char *p = bytes_of(&n);
        memcpy(p + lies[i].at, &lies[i].value, lies[i].bytes);
        rehash(p, n);
        assert_true(ks_heat_parse("x", p, n, &got, &err) != 0);
        if (!strstr(err.msg, lies[i].why)) fail_msg("'%s' does not say '%s'", err.msg, lies[i].why);
        free(p);
    }
}

static void a_folder_that_cannot_be_written_is_an_error(void **state)
{
    (void)state;
    ks_err err;
    ks_heat_map m = sample();
    assert_ok(ks_file_write("plain-file", "x", 1, &err), &err);
    assert_true(ks_heat_write("plain-file/heat/a.heat", &m, &err) != 0);
    assert_non_null(strstr(err.msg, "plain-file"));
    if (access("/dev/full", W_OK) == 0) assert_true(ks_heat_write("/dev/full/a.heat", &m, &err) != 0);
}

static const ks_cache_item *item_of(const ks_cache_items *x, const char *key)
{
    for (size_t i = 0; i < x->n; i++)
        if (strcmp(x->item[i].key, key) == 0) return &x->item[i];
    return NULL;
}

static void the_list_of_the_cache_knows_heat_maps(void **state)
{
    (void)state;
    static const char other[] = "11111111111111111111111111111111", here[] = "22222222222222222222222222222222";
    ks_err err;
    ks_cache_items x;
    ks_heat_map m = sample();
    char *path = path_of(KEY), *bad = path_of(other), *good = path_of(here), cwd[512];
    assert_ok(ks_heat_write(path, &m, &err), &err); /* whose model is not there */
    assert_non_null(getcwd(cwd, sizeof cwd));
    m.model = cwd;
    assert_ok(ks_heat_write(good, &m, &err), &err);
    assert_ok(ks_file_write(bad, "KSHEAT", 6, &err), &err);
    assert_ok(ks_cache_list("no-such-cache", &x, &err), &err);
    assert_int_equal(x.n, 3);
    assert_int_equal(item_of(&x, KEY)->state, KS_CACHE_GONE);
    assert_string_equal(item_of(&x, KEY)->model, "/models/some one");
    assert_int_equal(item_of(&x, other)->state, KS_CACHE_DAMAGED);
    assert_int_equal(item_of(&x, here)->state, KS_CACHE_HEAT);
    assert_string_equal(ks_cache_state_name(KS_CACHE_HEAT), "heat map");
    assert_ok(ks_cache_remove(&x, item_of(&x, other), &err), &err);
    assert_ok(ks_cache_remove(&x, item_of(&x, KEY), &err), &err);
    ks_cache_items_fini(&x);
    assert_ok(ks_cache_list("no-such-cache", &x, &err), &err);
    assert_int_equal(x.n, 1);
    ks_cache_items_fini(&x);
    free(path);
    free(bad);
    free(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_heat_map_is_read_as_it_was_written),
        cmocka_unit_test(every_flipped_bit_and_every_truncation_is_found),
        cmocka_unit_test(what_cannot_be_is_refused_though_its_hash_holds),
        cmocka_unit_test(a_folder_that_cannot_be_written_is_an_error),
        cmocka_unit_test(the_list_of_the_cache_knows_heat_maps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
