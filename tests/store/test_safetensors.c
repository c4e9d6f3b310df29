/* The safetensors loader: what is right is read, whatever is wrong is refused with the tensor, the value, the limit. */
#include "st_file.h"
#include "util.h"
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_NAME "t.safetensors"

static st_file *open_ok(void)
{
    ks_err err;
    st_file *f = NULL;
    assert_ok(st_open(FILE_NAME, &f, &err), &err);
    return f;
}

static void expect_open_error(int code, const char *message)
{
    ks_err err = { .code = 0 };
    st_file *f = NULL;
    int rc = st_open(FILE_NAME, &f, &err);
    if (rc != code) fail_msg("%d instead of %d for '%s': %s", rc, code, message, rc ? err.msg : "");
    assert_null(f);
    assert_contains(err.msg, message);
    assert_contains(err.msg, FILE_NAME);
    assert_null(strchr(err.msg, '\n'));
}

static void write_header(const char *header, size_t data_bytes)
{
    ks_err err;
    char *data = calloc(1, data_bytes + 1);
    assert_ok(ks_st_write_raw(FILE_NAME, header, strlen(header), data, data_bytes, &err), &err);
    free(data);
}

static void refused(const char *header, size_t data_bytes, int code, const char *message)
{
    write_header(header, data_bytes);
    expect_open_error(code, message);
}

static void every_type_is_listed_in_the_order_of_the_data(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t type, bytes;
    } rows[] = { { "BF16", KS_T_BF16, 2 },   { "F16", KS_T_F16, 2 },        { "F32", KS_T_F32, 4 },
                 { "F64", KS_T_F64, 8 },     { "I8", KS_T_I8, 1 },          { "I16", KS_T_I16, 2 },
                 { "I32", KS_T_I32, 4 },     { "I64", KS_T_I64, 8 },        { "U8", KS_T_U8, 1 },
                 { "U16", KS_T_U16, 2 },     { "U32", KS_T_U32, 4 },        { "U64", KS_T_U64, 8 },
                 { "BOOL", KS_T_BOOL, 1 },   { "F8_E4M3", KS_T_F8E4M3, 1 }, { "F8_E5M2", KS_T_F8E5M2, 1 },
                 { "F8_E8M0", KS_T_E8M0, 1 } };
    ks_st_tensor t[KS_COUNT(rows)];
    uint8_t data[64];
    ks_err err;
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7);
    for (size_t i = 0; i < KS_COUNT(rows); i++)
        t[i] = (ks_st_tensor) { rows[i].name, rows[i].name, 2, { 2, 3 }, data, rows[i].bytes * 6u };
    assert_ok(ks_st_write(FILE_NAME, t, KS_COUNT(rows), &err), &err);
    st_file *f = open_ok();
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        ks_tensor has = { .size = sizeof has };
        uint8_t read[64];
        assert_ok(st_tensor(f, i, &has, &err), &err);
        assert_string_equal(has.name, rows[i].name);
        assert_int_equal(has.type, rows[i].type);
        assert_int_equal(has.bytes, rows[i].bytes * 6);
        assert_int_equal(has.rank, 2);
        assert_int_equal(has.shape[1], 3);
        assert_ok(st_read(f, i, 1, read, (size_t)has.bytes - 1, &err), &err);
        assert_memory_equal(read, data + 1, (size_t)has.bytes - 1);
    }
    ks_tensor none = { .size = sizeof none };
    assert_int_equal(st_tensor(f, KS_COUNT(rows), &none, &err), KS_E_NOTFOUND);
    st_close(f);
}

static void an_older_host_gets_the_fields_it_knows(void **state)
{
    (void)state;
    ks_tensor t;
    ks_err err;
    write_header("{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
    st_file *f = open_ok();
    memset(&t, 0x5a, sizeof t);
    t.size = offsetof(ks_tensor, rank);
    assert_ok(st_tensor(f, 0, &t, &err), &err);
    assert_string_equal(t.name, "a");
    assert_int_equal(t.size, offsetof(ks_tensor, rank));
    assert_int_equal(t.rank, 0x5a5a5a5a);
    st_close(f);
}

static void empty_files_scalars_and_empty_tensors_are_fine(void **state)
{
    (void)state;
    ks_err err;
    write_header("{}", 0);
    st_close(open_ok());
    write_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                 "\"b\":{\"data_offsets\":[4,4],\"shape\":[0,9],\"dtype\":\"I64\"}}   ",
                 4);
    st_file *f = open_ok();
    ks_tensor t = { .size = sizeof t };
    assert_ok(st_tensor(f, 0, &t, &err), &err);
    assert_int_equal(t.rank, 0);
    assert_int_equal(t.bytes, 4);
    assert_ok(st_tensor(f, 1, &t, &err), &err);
    assert_int_equal(t.bytes, 0);
    st_close(f);
}

static void metadata_is_found_by_its_key(void **state)
{
    (void)state;
    ks_err err;
    ks_value v = { .size = sizeof v };
    write_header("{\"__metadata__\":{\"format\":\"pt\",\"b\":\"\\u00e4\\n\"}}", 0);
    st_file *f = open_ok();
    assert_ok(st_meta(f, "format", 0, &v, &err), &err);
    assert_string_equal(v.s, "pt");
    assert_ok(st_meta(f, "b", 0, &v, &err), &err);
    assert_string_equal(v.s, "\xc3\xa4\n");
    assert_int_equal(v.s_bytes, 3);
    assert_int_equal(v.n, 1);
    assert_int_equal(st_meta(f, "c", 0, &v, &err), KS_E_NOTFOUND);
    assert_int_equal(st_meta(f, "b", 1, &v, &err), KS_E_NOTFOUND);
    st_close(f);
}

static void files_are_known_by_content(void **state)
{
    (void)state;
    uint8_t head[16] = { 2, 0, 0, 0, 0, 0, 0, 0, '{', '}' };
    assert_int_equal(st_sniff(head, 10), 1);
    assert_int_equal(st_sniff(head, 8), 0);
    head[8] = '[';
    assert_int_equal(st_sniff(head, 10), 0);
    assert_int_equal(st_sniff((const uint8_t *)"GGUF\3\0\0\0{", 9), 0);
    assert_int_equal(st_sniff((const uint8_t *)"{\"a\": 12345}", 12), 0);
}

#define A(rest) "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]}" rest "}"

static void broken_files_are_refused(void **state)
{
    (void)state;
    ks_err err;
    refused("{\"a\":1}", 0, KS_E_FORMAT, "tensor 'a' is not described by an object");
    refused("[]", 0, KS_E_FORMAT, "the header is not an object");
    refused("{\"a\":{}}", 0, KS_E_FORMAT, "tensor 'a' lacks dtype, shape or data_offsets");
    refused("{\"a\":{\"dtype\":\"BF16\",\"dtype\":\"F16\"}}", 0, KS_E_FORMAT, "tensor 'a' has a second field 'dtype'");
    refused("{\"a\":{\"type\":\"BF16\"}}", 0, KS_E_FORMAT, "tensor 'a' has an unknown field 'type'");
    refused("{\"a\":{\"dtype\":\"F4\"}}", 0, KS_E_UNSUPPORTED, "tensor 'a' has dtype 'F4', which is not known here");
    refused("{\"a\":{\"dtype\":5}}", 0, KS_E_FORMAT, "is of the wrong type");
    refused("{\"a\":{\"shape\":[1,-2]}}", 0, KS_E_FORMAT, "shape holds '-2', not an integer from 0 to 2^64 - 1");
    refused("{\"a\":{\"shape\":[1,2.0]}}", 0, KS_E_FORMAT, "shape holds '2.0'");
    refused("{\"a\":{\"shape\":[\"1\"]}}", 0, KS_E_FORMAT, "shape is not an array of integers");
    refused("{\"a\":{\"shape\":[1,1,1,1,1,1,1,1,1]}}", 0, KS_E_LIMIT, "shape has more than 8 numbers");
    refused("{\"a\":{\"data_offsets\":[1]}}", 0, KS_E_FORMAT, "data_offsets must hold two numbers");
    refused("{\"a\":{\"data_offsets\":[1,2,3]}}", 0, KS_E_LIMIT, "data_offsets has more than 2 numbers");
    refused(A(""), 11, KS_E_FORMAT, "is truncated: tensor 'a' ends at byte 78, the file at 77; download it again");
    refused(A(""), 13, KS_E_FORMAT, "1 bytes after the last tensor belong to none");
    refused(A(",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[11,12]}"), 12, KS_E_FORMAT,
            "tensor 'b' begins at 11 of the data, the one before ends at 12");
    refused(A(",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[13,14]}"), 14, KS_E_FORMAT,
            "tensor 'b' begins at 13 of the data, the one before ends at 12");
    refused(A(",\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[12,13]}"), 13, KS_E_FORMAT,
            "tensor 'a' is there twice");
    refused("{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[12,0]}}", 12, KS_E_FORMAT,
            "has data_offsets [12, 0], its dtype and shape need 12 bytes");
    refused("{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,10]}}", 12, KS_E_FORMAT, "need 12 bytes");
    refused("{\"a\":{\"dtype\":\"BF16\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 12, KS_E_LIMIT,
            "the product of its shape exceeds 2^64");
    refused("{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, KS_E_LIMIT, "name has 0 bytes");
    refused("{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, KS_E_FORMAT, "U+0000");
    refused("{\"__metadata__\":{\"a\":1}}", 0, KS_E_FORMAT, "__metadata__ 'a' is not a string");
    refused("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, KS_E_FORMAT, "__metadata__ 'a' is there twice");
    refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, KS_E_FORMAT, "__metadata__ is there twice");
    refused("{\"__metadata__\":[]}", 0, KS_E_FORMAT, "__metadata__ is not an object");
    refused("{\"a\":", 0, KS_E_FORMAT, "header: line 1, column");
    refused("{} {}", 0, KS_E_FORMAT, "header: line 1, column");
    refused("{\"a\":{\"b\":{\"c\":{\"d\":{\"e\":{\"f\":{\"g\":{\"h\":{}}}}}}}}}", 0, KS_E_FORMAT, "unknown field 'b'");
    refused("{\"\xff\":{}}", 0, KS_E_FORMAT, "header: line 1, column");
    char name[600];
    (void)snprintf(name, sizeof name, "{\"%0513d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0);
    refused(name, 1, KS_E_LIMIT, "name has 513 bytes, allowed are 1 to 512");
    assert_ok(ks_file_write(FILE_NAME, "1234567", 7, &err), &err);
    expect_open_error(KS_E_FORMAT, "has 7 bytes, a safetensors file begins with 8");
    assert_ok(ks_file_write(FILE_NAME, "\x10\0\0\0\0\0\0\0{}", 10, &err), &err);
    expect_open_error(KS_E_FORMAT, "is truncated: its header ends at byte 24, the file at 10");
    assert_ok(ks_file_write(FILE_NAME, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, &err), &err);
    expect_open_error(KS_E_LIMIT, "its header has 18446744073709551615 bytes, allowed are 100000000");
    assert_int_equal(unlink(FILE_NAME), 0);
    expect_open_error(KS_E_IO, "cannot open");
    assert_int_equal(mkdir(FILE_NAME, 0700), 0);
    expect_open_error(KS_E_INVAL, "is not a regular file");
    assert_int_equal(rmdir(FILE_NAME), 0);
}

static void reads_stay_inside_their_tensor(void **state)
{
    (void)state;
    ks_err err;
    uint8_t b[16];
    write_header(A(""), 12);
    st_file *f = open_ok();
    assert_ok(st_read(f, 0, 12, b, 0, &err), &err);
    assert_int_equal(st_read(f, 0, 11, b, 2, &err), KS_E_INVAL);
    assert_contains(err.msg, "tensor 'a' has 12 bytes, wanted are 2 from 11");
    assert_int_equal(st_read(f, 0, UINT64_MAX, b, 2, &err), KS_E_INVAL);
    assert_int_equal(st_read(f, 1, 0, b, 1, &err), KS_E_NOTFOUND);
    st_close(f);
}

static void a_file_that_shrinks_is_an_error(void **state)
{
    (void)state;
    ks_err err;
    uint8_t b[16];
    write_header(A(""), 12);
    st_file *f = open_ok();
    assert_int_equal(truncate(FILE_NAME, 70), 0);
    assert_int_equal(st_read(f, 0, 0, b, 12, &err), KS_E_IO);
    assert_contains(err.msg, "ends at byte 70: it shrank while it was being read");
    st_close(f);
}

/* 100,000 tensors: no quadratic step. */
static void a_large_header_opens_fast(void **state)
{
    (void)state;
    enum { N = 100000 };
    ks_err err;
    ks_st_tensor *t = calloc(N, sizeof *t);
    char(*names)[40] = calloc(N, sizeof *names);
    for (uint32_t i = 0; i < N; i++) {
        (void)snprintf(names[i], sizeof names[i], "model.layers.%u.weight", i);
        t[i] = (ks_st_tensor) { names[i], "U8", 1, { 1 }, "x", 1 };
    }
    assert_ok(ks_st_write(FILE_NAME, t, N, &err), &err);
    st_file *f = open_ok();
    ks_tensor last = { .size = sizeof last };
    assert_ok(st_tensor(f, N - 1, &last, &err), &err);
    assert_string_equal(last.name, names[N - 1]);
    st_close(f);
    free(names);
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_listed_in_the_order_of_the_data),
        cmocka_unit_test(an_older_host_gets_the_fields_it_knows),
        cmocka_unit_test(empty_files_scalars_and_empty_tensors_are_fine),
        cmocka_unit_test(metadata_is_found_by_its_key),
        cmocka_unit_test(files_are_known_by_content),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(reads_stay_inside_their_tensor),
        cmocka_unit_test(a_file_that_shrinks_is_an_error),
        cmocka_unit_test(a_large_header_opens_fast),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
