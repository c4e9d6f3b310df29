/* Checkpoints: directories with and without an index, one file, and everything that can be wrong with them. */
#include "store/index.h"
#include "util.h"
#include <unistd.h>

#define DIR "ckpt"

static void write_text(const char *file, const char *text)
{
    char path[512];
    ks_err err;
    util_path(path, DIR, file);
    assert_ok(ks_file_write(path, text, strlen(text), &err), &err);
}

static void write_shard(const char *file, const char *one, const char *two)
{
    ks_st_tensor t[2] = { util_tensor(one, "BF16", 2, 8, 64, 0), util_tensor(two, "F32", 1, 10, 0, 0) };
    util_write(DIR, file, t, 2);
}

static void fresh(const char *index)
{
    util_fresh_dir(DIR);
    write_shard("s1.safetensors", "a", "b");
    write_shard("s2.safetensors", "c", "d");
    if (index) write_text("model.safetensors.index.json", index);
}

static void expect_error(const char *path, int code, const char *message)
{
    ks_err err = { .code = 0 };
    ks_ckpt *c = NULL;
    int rc = ks_ckpt_open(registry, path, &c, &err);
    assert_true(rc < 0);
    assert_null(c);
    assert_contains(err.msg, message);
    assert_int_equal(rc, code);
    assert_null(strchr(err.msg, '\n'));
}

#define INDEX                                                                                             \
    "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\"," \
    "\"c\":\"s2.safetensors\",\"d\":\"s2.safetensors\"}}"

static void shards_with_an_index_are_one_checkpoint(void **state)
{
    (void)state;
    ks_err err;
    float f[10];
    fresh(INDEX);
    ks_ckpt *c = util_ckpt(registry, DIR);
    assert_string_equal(ks_ckpt_dir(c), DIR);
    assert_int_equal(ks_ckpt_count(c), 4);
    for (uint64_t i = 0; i < 4; i++) {
        const ks_tensor *t = ks_ckpt_at(c, i);
        assert_ptr_equal(ks_ckpt_find(c, t->name), t);
        assert_int_equal(ks_ckpt_index(c, t), i);
    }
    assert_null(ks_ckpt_at(c, 4));
    assert_null(ks_ckpt_find(c, "e"));
    assert_null(ks_ckpt_find(c, ""));
    const ks_tensor *d = ks_ckpt_find(c, "d");
    assert_int_equal(d->type, KS_T_F32);
    assert_ok(ks_ckpt_read(c, d, 0, f, sizeof f, &err), &err);
    for (uint64_t i = 0; i < 10; i++) assert_true(f[i] == util_value("d", i));
    assert_int_equal(ks_ckpt_read(c, d, 39, f, 2, &err), KS_E_INVAL);
    assert_contains(err.msg, "tensor 'd' has 40 bytes, wanted are 2 from 39");
    ks_ckpt_close(c);
}

static void what_the_index_does_not_name_is_not_there(void **state)
{
    (void)state;
    fresh("{\"weight_map\":{\"a\":\"s1.safetensors\",\"d\":\"s2.safetensors\"}}");
    ks_ckpt *c = util_ckpt(registry, DIR);
    assert_int_equal(ks_ckpt_count(c), 2);
    assert_null(ks_ckpt_find(c, "b"));
    assert_non_null(ks_ckpt_find(c, "d"));
    ks_ckpt_close(c);
}

static void one_file_opens_by_its_folder_or_its_path(void **state)
{
    (void)state;
    fresh(NULL);
    ks_ckpt *c = util_ckpt(registry, DIR "/s2.safetensors");
    assert_string_equal(ks_ckpt_dir(c), DIR);
    assert_int_equal(ks_ckpt_count(c), 2);
    ks_ckpt_close(c);
    assert_int_equal(rename(DIR "/s1.safetensors", DIR "/model.safetensors"), 0);
    c = util_ckpt(registry, DIR);
    assert_non_null(ks_ckpt_find(c, "a"));
    ks_ckpt_close(c);
    assert_int_equal(chdir(DIR), 0);
    c = util_ckpt(registry, "model.safetensors");
    assert_string_equal(ks_ckpt_dir(c), ".");
    ks_ckpt_close(c);
    assert_int_equal(chdir(".."), 0);
}

static void missing_and_truncated_shards_are_named(void **state)
{
    (void)state;
    fresh(INDEX);
    assert_int_equal(unlink(DIR "/s2.safetensors"), 0);
    expect_error(DIR, KS_E_NOTFOUND, "'ckpt/s2.safetensors' is missing; download the model again");
    fresh(INDEX);
    assert_int_equal(truncate(DIR "/s2.safetensors", 600), 0);
    expect_error(DIR, KS_E_FORMAT, "'ckpt/s2.safetensors' is truncated: tensor 'c' ends at byte");
    assert_int_equal(truncate(DIR "/s2.safetensors", 50), 0);
    expect_error(DIR, KS_E_FORMAT, "'ckpt/s2.safetensors' is truncated: its header ends at byte");
    assert_int_equal(truncate(DIR "/s2.safetensors", 0), 0);
    expect_error(DIR, KS_E_FORMAT, "'ckpt/s2.safetensors' is empty; download it again");
    fresh("{\"weight_map\":{\"a\":\"s1.safetensors\",\"e\":\"s2.safetensors\"}}");
    expect_error(DIR, KS_E_FORMAT,
                 "tensor 'e' is not in 's2.safetensors', although 'ckpt/model.safetensors.index.json' says so");
    fresh("{\"weight_map\":{\"a\":\"s2.safetensors\"}}");
    expect_error(DIR, KS_E_FORMAT, "tensor 'a' is not in 's2.safetensors'");
}

static void folders_without_a_model_are_told(void **state)
{
    (void)state;
    util_fresh_dir(DIR);
    expect_error(DIR, KS_E_NOTFOUND, "'ckpt' holds neither model.safetensors.index.json nor model.safetensors");
    expect_error("nowhere", KS_E_NOTFOUND, "cannot open the model 'nowhere': No such file or directory");
    write_text("model.safetensors", "this is a text");
    expect_error(DIR, KS_E_UNSUPPORTED, "model.safetensors");
}

static void a_broken_index_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int code;
        const char *message;
    } rows[] = {
        { "{", KS_E_FORMAT, "index: line 1, column" },
        { "[]", KS_E_FORMAT, "is not an object" },
        { "{}", KS_E_FORMAT, "has no weight_map, or an empty one" },
        { "{\"weight_map\":{}}", KS_E_FORMAT, "has no weight_map, or an empty one" },
        { "{\"weight_map\":[]}", KS_E_FORMAT, "weight_map is not an object" },
        { "{\"weight_map\":{\"a\":1}}", KS_E_FORMAT, "the shard of tensor 'a' is not a string" },
        { "{\"weight_map\":{\"a\":\"../x\"}}", KS_E_FORMAT, "shard name '../x' is not a plain file name" },
        { "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", KS_E_FORMAT, "shard name '/etc/passwd' is not a plain" },
        { "{\"weight_map\":{\"a\":\"..\"}}", KS_E_FORMAT, "shard name '..' is not a plain" },
        { "{\"weight_map\":{\"a\":\"\"}}", KS_E_FORMAT, "a name is empty or holds U+0000" },
        { "{\"weight_map\":{\"a\":\"x\\u0000y\"}}", KS_E_FORMAT, "a name is empty or holds U+0000" },
        { "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", KS_E_FORMAT, "names tensor 'a' twice" },
        { "{\"weight_map\":{\"a\":\"x\"},\"weight_map\":{}}", KS_E_FORMAT, "has two weight_maps" },
        { "{\"weight_map\":{\"a\":\"x\"}} 1", KS_E_FORMAT, "index: line 1, column" },
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        fresh(rows[i].text);
        expect_error(DIR, rows[i].code, rows[i].message);
        expect_error(DIR, rows[i].code, "ckpt/model.safetensors.index.json");
    }
}

static void an_index_is_sorted_and_complete(void **state)
{
    (void)state;
    static const char text[] = "{\"weight_map\":{\"b\":\"2\",\"c\":\"1\",\"a\":\"2\"}}";
    ks_index x;
    ks_err err;
    assert_ok(ks__index_parse("i", text, strlen(text), &x, &err), &err);
    assert_int_equal(x.n_shards, 2);
    assert_string_equal(x.shards[0], "1");
    assert_int_equal(x.n_entries, 3);
    assert_string_equal(x.entries[0].tensor, "a");
    assert_string_equal(x.shards[x.entries[0].shard], "2");
    assert_string_equal(x.shards[x.entries[2].shard], "1");
    ks__index_fini(&x);
}

static void fingerprints_follow_the_content(void **state)
{
    (void)state;
    char a[33], b[33], full_a[33], full_b[33];
    ks_err err;
    fresh(INDEX);
    ks_ckpt *c = util_ckpt(registry, DIR);
    uint64_t stamp = ks_ckpt_stamp(c);
    assert_ok(ks_ckpt_fingerprint(c, false, a, &err), &err);
    assert_ok(ks_ckpt_fingerprint(c, true, full_a, &err), &err);
    ks_ckpt_close(c);
    c = util_ckpt(registry, DIR);
    assert_true(ks_ckpt_stamp(c) == stamp);
    ks_ckpt_close(c);
    FILE *f = fopen(DIR "/s2.safetensors", "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, -5, SEEK_END), 0);
    assert_int_equal(fputc(1, f), 1);
    assert_int_equal(fclose(f), 0);
    c = util_ckpt(registry, DIR);
    assert_true(ks_ckpt_stamp(c) != stamp);
    assert_ok(ks_ckpt_fingerprint(c, false, b, &err), &err);
    assert_ok(ks_ckpt_fingerprint(c, true, full_b, &err), &err);
    assert_string_not_equal(a, b); /* a file this small is sampled whole */
    assert_string_not_equal(full_a, full_b);
    ks_ckpt_close(c);
}

static void metadata_of_the_first_file_is_passed_on(void **state)
{
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"}}";
    ks_err err;
    ks_value v = { .size = sizeof v };
    util_fresh_dir(DIR);
    assert_ok(ks_st_write_raw(DIR "/model.safetensors", header, strlen(header), "", 0, &err), &err);
    ks_ckpt *c = util_ckpt(registry, DIR);
    assert_int_equal(ks_ckpt_count(c), 0);
    assert_ok(ks_ckpt_meta(c, "format", 0, &v, &err), &err);
    assert_string_equal(v.s, "pt");
    assert_int_equal(ks_ckpt_meta(c, "other", 0, &v, &err), KS_E_NOTFOUND);
    ks_ckpt_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_with_an_index_are_one_checkpoint),
        cmocka_unit_test(what_the_index_does_not_name_is_not_there),
        cmocka_unit_test(one_file_opens_by_its_folder_or_its_path),
        cmocka_unit_test(missing_and_truncated_shards_are_named),
        cmocka_unit_test(folders_without_a_model_are_told),
        cmocka_unit_test(a_broken_index_is_refused),
        cmocka_unit_test(an_index_is_sorted_and_complete),
        cmocka_unit_test(fingerprints_follow_the_content),
        cmocka_unit_test(metadata_of_the_first_file_is_passed_on),
    };
    return cmocka_run_group_tests_name("ckpt", tests, util_setup, util_teardown);
}
