/* model.synth: its numbers follow their laws and do not depend on how they are read; hostile lists are refused. */
#include "store/util.h"

#include "base/hash.h"
#include "store/synth.h"
#include <math.h>

static ks_synth *parse(const char *text)
{
    ks_synth *s = NULL;
    ks_err err;
    assert_ok(ks_synth_parse("list", text, strlen(text), &s, &err), &err);
    return s;
}

static ks_synth *list_of(const ks_synth_tensor *t, size_t n, uint64_t seed)
{
    ks_buf b;
    ks_err err;
    ks_synth *s = NULL;
    ks_buf_init(&b, 0);
    assert_ok(ks_synth_write(t, n, seed, &b, &err), &err);
    assert_ok(ks_synth_parse("list", b.p, b.n, &s, &err), &err);
    ks_buf_fini(&b);
    return s;
}

static float *values(const ks_synth *s, uint64_t i, size_t n)
{
    uint16_t *h = malloc(n * sizeof *h);
    float *x = malloc(n * sizeof *x);
    ks_err err;
    assert_non_null(h);
    assert_non_null(x);
    assert_ok(ks_synth_read(s, i, 0, h, n * sizeof *h, &err), &err);
    for (size_t k = 0; k < n; k++) x[k] = ks_bf16_to_f32(h[k]);
    free(h);
    return x;
}

static void what_was_written_is_what_is_listed(void **state)
{
    (void)state;
    const ks_synth_tensor t[] = {
        { .name = "model.a\"b.weight", .type = KS_T_BF16, .rank = 2, .shape = { 3, 5 }, .std = 0.5f },
        { .name = "codes", .type = KS_T_U8, .rank = 4, .shape = { 2, 3, 4, 16 }, .std = 1 },
        { .name = "words", .type = KS_T_I32, .rank = 2, .shape = { 7, 9 }, .std = 1 },
    };
    ks_synth *s = list_of(t, 3, 1);
    for (uint64_t i = 0; i < 3; i++) {
        ks_tensor got = { .size = sizeof got };
        ks_err err;
        assert_ok(ks_synth_tensor_at(s, i, &got, &err), &err);
        assert_string_equal(got.name, t[i].name);
        assert_int_equal(got.type, t[i].type);
        assert_int_equal(got.rank, t[i].rank);
        assert_memory_equal(got.shape, t[i].shape, got.rank * sizeof got.shape[0]);
    }
    ks_tensor none = { .size = sizeof none };
    ks_err err;
    assert_int_equal(ks_synth_tensor_at(s, 3, &none, &err), KS_E_NOTFOUND);
    ks_synth_close(s);
}

static void any_piece_of_a_tensor_has_the_bytes_of_the_whole(void **state)
{
    (void)state;
    const ks_synth_tensor t[] = {
        { .name = "a",
          .type = KS_T_BF16,
          .rank = 2,
          .shape = { 37, 53 },
          .std = 1,
          .has_row0 = true,
          .has_col0 = true,
          .col0 = 3,
          .zipf = 1 },
        { .name = "b", .type = KS_T_I32, .rank = 3, .shape = { 5, 7, 11 }, .std = 1, .has_row0 = true, .row0 = 0x88 },
        { .name = "c", .type = KS_T_U8, .rank = 1, .shape = { 4099 }, .std = 1 },
    };
    ks_synth *s = list_of(t, 3, 7);
    uint64_t seed = 1;
    for (uint64_t i = 0; i < 3; i++) {
        ks_tensor d = { .size = sizeof d };
        ks_err err;
        assert_ok(ks_synth_tensor_at(s, i, &d, &err), &err);
        uint8_t *whole = malloc(d.bytes), piece[600];
        assert_non_null(whole);
        assert_ok(ks_synth_read(s, i, 0, whole, d.bytes, &err), &err);
        for (int k = 0; k < 400; k++) {
            size_t off = ks_splitmix64(&seed) % d.bytes, n = ks_splitmix64(&seed) % sizeof piece;
            n = KS_MIN(n, d.bytes - off);
            assert_ok(ks_synth_read(s, i, off, piece, n, &err), &err);
            assert_memory_equal(piece, whole + off, n);
        }
        assert_int_equal(ks_synth_read(s, i, d.bytes - 1, piece, 2, &err), KS_E_INVAL);
        free(whole);
    }
    ks_synth_close(s);
}

static void numbers_are_normal_with_mean_and_deviation(void **state)
{
    (void)state;
    enum { N = 1 << 18 };
    const ks_synth_tensor t = {
        .name = "w", .type = KS_T_BF16, .rank = 2, .shape = { 512, 512 }, .mean = 0.25f, .std = 2
    };
    ks_synth *s = list_of(&t, 1, 3);
    float *x = values(s, 0, N);
    double sum = 0, squares = 0, fourth = 0;
    for (size_t i = 0; i < N; i++) sum += (double)x[i] / N;
    for (size_t i = 0; i < N; i++) {
        double d = (double)x[i] - sum;
        squares += d * d / N;
        fourth += d * d * d * d / N;
    }
    assert_true(fabs(sum - 0.25) < 0.02);
    assert_true(fabs(sqrt(squares) - 2) < 0.02);
    assert_true(fabs(fourth / squares / squares - 3) < 0.1); /* of the normal distribution */
    free(x);
    ks_synth_close(s);
}

static void seed_and_name_decide_the_numbers(void **state)
{
    (void)state;
    enum { N = 256 };
    ks_synth_tensor t[2] = { { .name = "a", .type = KS_T_BF16, .rank = 1, .shape = { N }, .std = 1 } };
    t[1] = t[0];
    t[1].name = "b";
    ks_synth *one = list_of(t, 2, 1), *same = list_of(t, 2, 1), *other = list_of(t, 2, 2);
    float *x[] = { values(one, 0, N), values(same, 0, N), values(other, 0, N), values(one, 1, N) };
    assert_memory_equal(x[0], x[1], N * sizeof(float));
    assert_memory_not_equal(x[0], x[2], N * sizeof(float));
    assert_memory_not_equal(x[0], x[3], N * sizeof(float));
    for (size_t i = 0; i < KS_COUNT(x); i++) free(x[i]);
    ks_synth_close(one);
    ks_synth_close(same);
    ks_synth_close(other);
}

static void first_row_and_column_are_as_the_law_says(void **state)
{
    (void)state;
    enum { E = 3, R = 20, C = 12 };
    const ks_synth_tensor t = { .name = "w",
                                .type = KS_T_BF16,
                                .rank = 3,
                                .shape = { E, R, C },
                                .std = 1,
                                .has_row0 = true,
                                .has_col0 = true,
                                .col0 = 2,
                                .zipf = 1.5f };
    ks_synth *s = list_of(&t, 1, 1);
    float *x = values(s, 0, E * R * C);
    for (uint32_t e = 0; e < E; e++) {
        bool seen[R + 1] = { false };
        for (uint32_t c = 0; c < C; c++) assert_true(x[e * R * C + c] == 0); /* the row wins over the column */
        for (uint32_t r = 1; r < R; r++) {
            float want = expf(-x[(e * R + r) * C] * 2 / 1.5f);
            uint32_t rank = (uint32_t)lroundf(want);
            assert_true(rank >= 1 && rank <= R && !seen[rank]);
            seen[rank] = true;
        }
    }
    free(x);
    ks_synth_close(s);
}

static void bytes_without_deviation_are_constant(void **state)
{
    (void)state;
    ks_synth *s =
        parse("{\"krasis_synth\":1,\"tensors\":[{\"name\":\"s\",\"type\":\"u8\",\"shape\":[3,5],\"mean\":120}]}");
    uint8_t x[15];
    ks_err err;
    assert_ok(ks_synth_read(s, 0, 0, x, sizeof x, &err), &err);
    for (size_t i = 0; i < sizeof x; i++) assert_int_equal(x[i], 120);
    ks_synth_close(s);
}

static void packed_codes_have_no_mean(void **state)
{
    (void)state;
    enum { N = 1 << 16 };
    const ks_synth_tensor t = { .name = "p", .type = KS_T_I32, .rank = 1, .shape = { N / 4 }, .std = 1 };
    static uint8_t x[N];
    ks_synth *s = list_of(&t, 1, 1);
    uint32_t count[16] = { 0 };
    double sum = 0;
    ks_err err;
    assert_ok(ks_synth_read(s, 0, 0, x, N, &err), &err);
    for (size_t i = 0; i < N; i++) {
        count[x[i] & 15]++;
        count[x[i] >> 4]++;
    }
    for (int k = 0; k < 16; k++) sum += (k - 8.0) * count[k];
    assert_true(fabs(sum / (2.0 * N)) < 0.05);
    assert_int_equal(count[0], 0);
    for (int k = 1; k < 16; k++) assert_true(count[k] > N / 10);
    ks_synth_close(s);
}

static void hostile_lists_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } bad[] = {
        { "", "list" },
        { "[]", "an object expected" },
        { "{\"krasis_synth\":2}", "another version" },
        { "{\"krasis_synth\":1,\"sed\":1}", "'sed'" },
        { "{\"krasis_synth\":1,\"seed\":-1}", "seed" },
        { "{\"krasis_synth\":1,\"tensors\":[1]}", "a tensor is an object" },
        { "{\"krasis_synth\":1,\"tensors\":[{}]}", "needs name, type and shape" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"name\":\"\"}]}", "a name is 1 to 512 bytes" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"name\":\"a\\u0000\"}]}", "without U+0000" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"type\":\"f64\"}]}", "'f64': bf16, u8 and i32 are known" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"shape\":[0]}]}", "each at least 1" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"shape\":[1,1,1,1,1,1,1,1,1]}]}", "up to 8 numbers" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"std\":1e99}]}", "out of range" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"name\":\"a\",\"type\":\"bf16\",\"shape\":[4294967296,4294967296]}]}",
          "too large" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"name\":\"a\",\"type\":\"u8\",\"shape\":[1],\"mean\":256}]}",
          "0 to 255" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"name\":\"a\",\"type\":\"bf16\",\"shape\":[2,2],\"zipf\":1}]}",
          "zipf needs a col0" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"name\":\"a\",\"type\":\"bf16\",\"shape\":[2],\"cap\":1}]}", "'cap'" },
        { "{\"krasis_synth\":1,\"tensors\":[{\"name\":\"a\",\"type\":\"bf16\",\"shape\":[2]}", "list" },
    };
    for (size_t i = 0; i < KS_COUNT(bad); i++) {
        ks_synth *s = NULL;
        ks_err err = { 0 };
        if (ks_synth_parse("list", bad[i].text, strlen(bad[i].text), &s, &err) == 0) fail_msg("%s", bad[i].text);
        assert_contains(err.msg, bad[i].part);
        assert_null(s);
    }
}

static void a_folder_with_a_list_is_a_checkpoint(void **state)
{
    (void)state;
    static const char text[] = "{\"krasis_synth\":1,\"seed\":1,\"tensors\":["
                               "{\"name\":\"x\",\"type\":\"bf16\",\"shape\":[4,8],\"std\":1}]}";
    char path[512];
    ks_err err;
    util_fresh_dir("synth");
    util_path(path, "synth", KS_SYNTH_FILE);
    assert_ok(ks_file_write(path, text, strlen(text), &err), &err);
    ks_registry *r = util_registry();
    assert_ok(ks_registry_add(r, &ks_synth_plugin, "(built in)", &err), &err);
    ks_ckpt *c = util_ckpt(r, "synth");
    const ks_tensor *t = ks_ckpt_find(c, "x");
    assert_non_null(t);
    ks_synth *s = parse(text);
    uint8_t a[64], b[64];
    assert_ok(ks_ckpt_read(c, t, 0, a, sizeof a, &err), &err);
    assert_ok(ks_synth_read(s, 0, 0, b, sizeof b, &err), &err);
    assert_memory_equal(a, b, sizeof a);
    ks_synth_close(s);
    ks_ckpt_close(c);
    ks_registry_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_what_is_listed),
        cmocka_unit_test(any_piece_of_a_tensor_has_the_bytes_of_the_whole),
        cmocka_unit_test(numbers_are_normal_with_mean_and_deviation),
        cmocka_unit_test(seed_and_name_decide_the_numbers),
        cmocka_unit_test(first_row_and_column_are_as_the_law_says),
        cmocka_unit_test(bytes_without_deviation_are_constant),
        cmocka_unit_test(packed_codes_have_no_mean),
        cmocka_unit_test(hostile_lists_are_refused),
        cmocka_unit_test(a_folder_with_a_list_is_a_checkpoint),
    };
    return cmocka_run_group_tests_name("synth", tests, NULL, NULL);
}
