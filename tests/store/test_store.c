/* The store without its cache: every form of spec becomes the right numbers in the right place; wrong checkpoints
 * are refused with a message that names the tensor. */
#include "support/golden_ckpt.h"
#include "util.h"
#include <math.h>

#define DIR "store"

/* A source tensor of util_tensor, element (row, k) of a (rows, cols) matrix. */
static float src(const char *name, uint32_t cols, uint32_t row, uint32_t k)
{
    return util_value(name, (uint64_t)row * cols + k);
}

static void every_type_has_the_layout_of_its_definition(void **state)
{
    (void)state;
    enum { N = 37, K = 100 };
    static const uint32_t types[] = { KS_T_F32, KS_T_BF16, KS_T_I8, KS_T_I4 };
    ks_st_tensor t = util_tensor("a.weight", "BF16", 2, N, K, 0);
    ks_wpart part = { .tensor = "a.weight", .row_count = N, .row_block = N };
    ks_wspec s = {
        .name = "a", .cls = KS_CLS_ATTN, .n_mat = 1, .n_out = N, .n_in = K, .n_parts = 1, .parts = &part, .with = -1
    };
    util_fresh_dir(DIR);
    util_write(DIR, "model.safetensors", &t, 1);
    ks_ckpt *c = util_ckpt(registry, DIR);
    for (size_t i = 0; i < KS_COUNT(types); i++) {
        ks_weight w;
        ks_store *st = util_store(c, &s, 1, types[i], &w);
        assert_string_equal(w.name, "a");
        assert_int_equal(w.cls, KS_CLS_ATTN);
        assert_int_equal(w.type, types[i]);
        assert_int_equal(w.layout, KS_LAYOUT_T16);
        assert_int_equal(w.group, i < 2 ? 0 : 128);
        assert_int_equal(w.mat_bytes, 3 * ks_t16_strip_bytes(types[i], K, w.group));
        assert_int_equal((uintptr_t)w.data % 64, 0);
        for (uint32_t r = 0; r < 48; r++) {
            for (uint32_t k = 0; k < 128; k++) {
                float want = r < N && k < K ? src("a.weight", K, r, k) : 0, has = util_get(&w, 0, r, k);
                assert_true(i < 2 || want == 0 ? has == want
                                               : fabsf(has - want) < (types[i] == KS_T_I4 ? 0.16f : 0.01f));
            }
        }
        ks_store_close(st);
    }
    ks_ckpt_close(c);
}

static void sources_of_every_float_type_load(void **state)
{
    (void)state;
    static const uint8_t f16[] = { 0x00, 0x3c, 0x01, 0x00, 0x00, 0xc0, 0xff, 0x7b }; /* 1, 2^-24, -2, 65504 */
    static const double f64[] = { 1, 0x1p-24, -2, 65504 };
    static const float f32[] = { 1, 0x1p-24f, -2, 65504 };
    static const uint8_t e4m3[] = { 0x38, 0x01, 0xc0, 0x7e }; /* 1, 2^-9, -2, 448 */
    static const uint8_t e5m2[] = { 0x3c, 0x01, 0xc0, 0x7b }; /* 1, 2^-16, -2, 57344 */
    ks_st_tensor t[] = {
        { "a", "F16", 1, { 4 }, f16, sizeof f16 },       { "b", "F64", 1, { 4 }, f64, sizeof f64 },
        { "c", "F32", 1, { 4 }, f32, sizeof f32 },       { "d", "F8_E4M3", 1, { 4 }, e4m3, sizeof e4m3 },
        { "e", "F8_E5M2", 1, { 4 }, e5m2, sizeof e5m2 },
    };
    const float want[5][4] = { { 1, 0x1p-24f, -2, 65504 },
                               { 1, 0x1p-24f, -2, 65504 },
                               { 1, 0x1p-24f, -2, 65504 },
                               { 1, 0x1p-9f, -2, 448 },
                               { 1, 0x1p-16f, -2, 57344 } };
    char path[512];
    ks_err err;
    ks_wspec s[5];
    ks_wpart p[5];
    ks_weight w[5];
    util_fresh_dir(DIR);
    util_path(path, DIR, "model.safetensors");
    assert_ok(ks_st_write(path, t, 5, &err), &err);
    for (uint32_t i = 0; i < 5; i++) {
        p[i] = (ks_wpart) { .tensor = t[i].name, .row_count = 4 };
        s[i] = (ks_wspec) { .name = t[i].name,
                            .flags = KS_WSPEC_VECTOR,
                            .n_mat = 1,
                            .n_out = 1,
                            .n_in = 4,
                            .n_parts = 1,
                            .parts = &p[i],
                            .with = -1 };
    }
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_store *st = util_store(c, s, 5, KS_T_BF16, w);
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(w[i].type, KS_T_F32);
        assert_memory_equal(w[i].data, want[i], sizeof want[i]);
    }
    ks_store_close(st);
    ks_ckpt_close(c);
}

/* Rows picked from a fused tensor, a transposed one, a scaled one, a table, computed values, an absent one. */
static void every_form_of_a_matrix_is_read(void **state)
{
    (void)state;
    enum { K = 64 };
    ks_st_tensor t[] = {
        util_tensor("qkv", "BF16", 2, 24 + 8 + 8, K, 0), util_tensor("tr", "BF16", 2, K, 40, 0),
        util_tensor("emb", "BF16", 2, 100, K, 0),        util_tensor("a_log", "F32", 1, 8, 0, 0),
        util_tensor("emb32", "F32", 2, 5, K, 0),         util_tensor("conv", "BF16", 3, 20, 1, 4),
        util_tensor("gate", "BF16", 2, 6, K, 0),
    };
    const float freq[3] = { 1, 0.5f, 0.25f };
    const ks_wpart q = { "qkv", 0, 24, 24, 0, 0, false }, k = { "qkv", 24, 8, 8, 0, 0, false },
                   v = { "qkv", 32, 8, 8, 0, 0, false }, tr = { "tr", 0, 40, 0, 0, 0, true },
                   emb = { "emb", 0, 100, 0, 0, 0, false }, log = { "a_log", 0, 8, 0, 0, 0, false },
                   emb32 = { "emb32", 0, 5, 0, 0, 0, false }, none = { "nothing", 0, 8, 0, 0, 0, false },
                   conv = { "conv", 0, 20, 0, 0, 0, false }, vk[2] = { v, k }, gate = { "gate", 0, 6, 0, 0, 0, false },
                   heads = { "qkv", 4, 6, 3, 12, 0, false };
    const ks_wspec s[] = {
        { "q", KS_CLS_ATTN, 0, 1, 24, K, 1, &q, -1, 0, NULL },
        { "vk", KS_CLS_ATTN, 0, 1, 16, K, 2, vk, -1, 2.0f, NULL },
        { "tr", KS_CLS_ATTN, 0, 1, 40, K, 1, &tr, -1, 0, NULL },
        { "emb", KS_CLS_EMBED, KS_WSPEC_TABLE, 1, 100, K, 1, &emb, -1, 0, NULL },
        { "log", KS_CLS_OTHER, KS_WSPEC_VECTOR | KS_WSPEC_NEG_EXP, 1, 1, 8, 1, &log, -1, 0, NULL },
        { "freq", KS_CLS_OTHER, KS_WSPEC_VECTOR, 1, 1, 3, 0, NULL, -1, 0, freq },
        { "emb32", KS_CLS_EMBED, KS_WSPEC_TABLE, 1, 5, K, 1, &emb32, -1, 0, NULL },
        { "none", KS_CLS_ATTN, KS_WSPEC_OPTIONAL, 1, 8, K, 1, &none, -1, 0, NULL },
        { "conv", KS_CLS_OTHER, KS_WSPEC_EXACT, 1, 20, 4, 1, &conv, -1, 0, NULL },
        { "gate", KS_CLS_ROUTER, KS_WSPEC_EXACT, 1, 6, K, 1, &gate, -1, 0, NULL },
        { "heads", KS_CLS_ATTN, 0, 1, 6, K, 1, &heads, -1, 0, NULL },
        { "convv", KS_CLS_OTHER, KS_WSPEC_VECTOR, 1, 1, 80, 1, &(ks_wpart) { "conv", 0, 80, 0, 0, 0, false }, -1, 0,
          NULL },
    };
    ks_weight w[KS_COUNT(s)];
    util_fresh_dir(DIR);
    util_write(DIR, "model.safetensors", t, KS_COUNT(t));
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_store *st = util_store(c, s, KS_COUNT(s), KS_T_BF16, w);
    for (uint32_t j = 0; j < K; j++) {
        for (uint32_t r = 0; r < 24; r++) assert_true(util_get(&w[0], 0, r, j) == src("qkv", K, r, j));
        for (uint32_t r = 0; r < 16; r++)
            assert_true(util_get(&w[1], 0, r, j) == 2 * src("qkv", K, r < 8 ? r + 32 : r + 16, j));
        for (uint32_t r = 0; r < 40; r++) assert_true(util_get(&w[2], 0, r, j) == src("tr", 40, j, r));
        for (uint32_t r = 0; r < 100; r++) assert_true(util_get(&w[3], 0, r, j) == src("emb", K, r, j));
        for (uint32_t r = 0; r < 5; r++) assert_true(util_get(&w[6], 0, r, j) == src("emb32", K, r, j));
        for (uint32_t r = 0; r < 6; r++) assert_true(util_get(&w[9], 0, r, j) == src("gate", K, r, j));
        for (uint32_t r = 0; r < 6; r++)
            assert_true(util_get(&w[10], 0, r, j) == src("qkv", K, 4 + r / 3 * 12 + r % 3, j));
    }
    assert_int_equal(w[3].type, KS_T_BF16);
    assert_int_equal(w[3].layout, KS_LAYOUT_ROWS);
    assert_int_equal(w[6].type, KS_T_F32);
    assert_int_equal(w[9].type, KS_T_BF16);
    for (uint32_t i = 0; i < 8; i++)
        assert_true(util_get(&w[4], 0, 0, i) == (float)-exp((double)util_value("a_log", i)));
    assert_memory_equal(w[5].data, freq, sizeof freq);
    assert_null(w[7].data);
    for (uint32_t r = 0; r < 20; r++)
        for (uint32_t j = 0; j < 4; j++) {
            assert_true(util_get(&w[8], 0, r, j) == src("conv", 4, r, j));
            assert_true(util_get(&w[11], 0, 0, r * 4 + j) == src("conv", 4, r, j));
        }
    ks_store_close(st);
    ks_ckpt_close(c);
}

enum { E = 3, FF = 20, D = 64, FF16 = 32 };

static void check_experts(const ks_weight *gu, const ks_weight *down, const char *gate_of, const char *up_of,
                          bool named)
{
    char g[40], u[40], d[40];
    assert_int_equal(gu->stride, down->stride);
    assert_int_equal(gu->stride % 4096, 0);
    assert_ptr_equal((const char *)gu->data + gu->mat_bytes, down->data);
    for (uint32_t e = 0; e < E; e++) {
        (void)snprintf(g, sizeof g, gate_of, e);
        (void)snprintf(u, sizeof u, up_of, e);
        (void)snprintf(d, sizeof d, "e.%u.down", e);
        for (uint32_t r = 0; r < 2 * FF16; r++) {
            uint32_t row = r / 32 * 16 + r % 16;
            for (uint32_t k = 0; k < D && named; k++)
                assert_true(util_get(gu, e, r, k) == (row < FF ? src(r / 16 % 2 ? u : g, D, row, k) : 0));
        }
        for (uint32_t r = 0; r < D && named; r++)
            for (uint32_t k = 0; k < FF; k++) assert_true(util_get(down, e, r, k) == src(d, FF, r, k));
    }
}

static void experts_of_own_tensors_lie_together(void **state)
{
    (void)state;
    char names[E][3][40];
    ks_st_tensor t[E * 3];
    for (uint32_t e = 0; e < E; e++) {
        (void)snprintf(names[e][0], 40, "e.%u.gate", e);
        (void)snprintf(names[e][1], 40, "e.%u.up", e);
        (void)snprintf(names[e][2], 40, "e.%u.down", e);
        t[e * 3] = util_tensor(names[e][0], "BF16", 2, FF, D, 0);
        t[e * 3 + 1] = util_tensor(names[e][1], "BF16", 2, FF, D, 0);
        t[e * 3 + 2] = util_tensor(names[e][2], "BF16", 2, D, FF, 0);
    }
    const ks_wpart gu[2] = { { "e.{}.gate", 0, FF, FF, 0, 0, false }, { "e.{}.up", 0, FF, FF, 0, 0, false } };
    const ks_wpart down = { "e.{}.down", 0, D, D, 0, 0, false };
    const ks_wspec s[2] = { { "gu", KS_CLS_EXPERT, KS_WSPEC_PAIR, E, 2 * FF16, D, 2, gu, 1, 0, NULL },
                            { "down", KS_CLS_EXPERT, 0, E, D, FF, 1, &down, -1, 0, NULL } };
    ks_weight w[2];
    util_fresh_dir(DIR);
    util_write(DIR, "model.safetensors", t, E * 3);
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_store *st = util_store(c, s, 2, KS_T_BF16, w);
    check_experts(&w[0], &w[1], "e.%u.gate", "e.%u.up", true);
    ks_store_close(st);
    st = util_store(c, s, 2, KS_T_I4, w);
    check_experts(&w[0], &w[1], "e.%u.gate", "e.%u.up", false);
    ks_store_close(st);
    ks_ckpt_close(c);
}

/* (E, D, 2 FF) with gate and up in alternating columns, as gpt-oss has them, with biases (E, 2 FF). */
static void stacked_transposed_interleaved_experts_are_read(void **state)
{
    (void)state;
    ks_st_tensor t[] = { util_tensor("gu", "BF16", 3, E, D, 2 * FF), util_tensor("down", "BF16", 3, E, FF, D),
                         util_tensor("gu_b", "BF16", 2, E, 2 * FF, 0) };
    const ks_wpart gu[2] = { { "gu", 0, FF, 1, 2, 0, true }, { "gu", 1, FF, 1, 2, 0, true } };
    const ks_wpart bias[2] = { { "gu_b", 0, FF, 1, 2, 0, false }, { "gu_b", 1, FF, 1, 2, 0, false } };
    const ks_wpart down = { "down", 0, D, D, 0, 0, true };
    const ks_wspec s[3] = { { "gu", KS_CLS_EXPERT, KS_WSPEC_PAIR, E, 2 * FF16, D, 2, gu, 1, 0, NULL },
                            { "down", KS_CLS_EXPERT, 0, E, D, FF, 1, &down, -1, 0, NULL },
                            { "bias", KS_CLS_EXPERT, KS_WSPEC_PAIR | KS_WSPEC_VECTOR, E, 1, 2 * FF16, 2, bias, -1, 0,
                              NULL } };
    ks_weight w[3];
    util_fresh_dir(DIR);
    util_write(DIR, "model.safetensors", t, 3);
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_store *st = util_store(c, s, 3, KS_T_BF16, w);
    check_experts(&w[0], &w[1], "", "", false);
    for (uint32_t e = 0; e < E; e++) {
        for (uint32_t r = 0; r < 2 * FF16; r++) {
            uint32_t row = r / 32 * 16 + r % 16, from = 2 * row + r / 16 % 2;
            for (uint32_t k = 0; k < D; k++)
                assert_true(util_get(&w[0], e, r, k) ==
                            (row < FF ? util_value("gu", ((uint64_t)e * D + k) * 2 * FF + from) : 0));
            assert_true(util_get(&w[2], e, 0, r) == (row < FF ? util_value("gu_b", (uint64_t)e * 2 * FF + from) : 0));
        }
        for (uint32_t r = 0; r < D; r++)
            for (uint32_t k = 0; k < FF; k++)
                assert_true(util_get(&w[1], e, r, k) == util_value("down", ((uint64_t)e * FF + k) * D + r));
    }
    ks_store_close(st);
    ks_ckpt_close(c);
}

/* kv_b_proj of MLA: heads of (nope + v) rows, two banks of one plain matrix. */
static void banks_take_strided_rows_of_one_matrix(void **state)
{
    (void)state;
    enum { H = 4, NOPE = 6, V = 5, R = 32 };
    ks_st_tensor t = util_tensor("kv_b", "BF16", 2, H * (NOPE + V), R, 0);
    const ks_wpart uk = { "kv_b", 0, NOPE, NOPE, 0, NOPE + V, false }, uv = { "kv_b", NOPE, V, V, 0, NOPE + V, false };
    const ks_wspec s[2] = { { "uk", KS_CLS_ATTN, 0, H, NOPE, R, 1, &uk, -1, 0, NULL },
                            { "uv", KS_CLS_ATTN, 0, H, V, R, 1, &uv, -1, 0, NULL } };
    ks_weight w[2];
    util_fresh_dir(DIR);
    util_write(DIR, "model.safetensors", &t, 1);
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_store *st = util_store(c, s, 2, KS_T_BF16, w);
    for (uint32_t h = 0; h < H; h++) {
        for (uint32_t k = 0; k < R; k++) {
            for (uint32_t r = 0; r < NOPE; r++)
                assert_true(util_get(&w[0], h, r, k) == src("kv_b", R, h * (NOPE + V) + r, k));
            for (uint32_t r = 0; r < V; r++)
                assert_true(util_get(&w[1], h, r, k) == src("kv_b", R, h * (NOPE + V) + NOPE + r, k));
        }
    }
    ks_store_close(st);
    ks_ckpt_close(c);
}

/* Where 4 bits are asked for, rows of one group at most may have more; only those, and nothing else changes. */
static void narrow_matrices_take_their_own_type(void **state)
{
    (void)state;
    static const struct {
        uint32_t cols, asked, narrow, type;
    } cases[] = { { 128, KS_T_I4, KS_T_I8, KS_T_I8 },    { 96, KS_T_I4, KS_T_I8, KS_T_I8 },
                  { 160, KS_T_I4, KS_T_I8, KS_T_I4 },    { 128, KS_T_I4, KS_T_I4, KS_T_I4 },
                  { 128, KS_T_I4, 0, KS_T_I4 },          { 128, KS_T_I8, KS_T_I4, KS_T_I8 },
                  { 128, KS_T_BF16, KS_T_I8, KS_T_BF16 } };
    for (size_t i = 0; i < KS_COUNT(cases); i++) {
        ks_st_tensor t = util_tensor("m", "BF16", 2, 48, cases[i].cols, 0);
        const ks_wpart p = { "m", 0, 48, 0, 0, 0, false };
        const ks_wspec s = { "m", KS_CLS_EXPERT, 0, 1, 48, cases[i].cols, 1, &p, -1, 0, NULL };
        ks_store_opts o = { .type = { [KS_CLS_EXPERT] = cases[i].asked }, .narrow = cases[i].narrow };
        ks_weight w;
        ks_err err;
        util_fresh_dir(DIR);
        util_write(DIR, "model.safetensors", &t, 1);
        ks_ckpt *c = util_ckpt(registry, DIR);
        assert_ok(ks_store_check(c, &s, 1, &o, &w, &err), &err);
        assert_int_equal(w.type, cases[i].type);
        ks_ckpt_close(c);
    }
}

/* ---- refusals */

static void expect_error(ks_ckpt *c, const ks_wspec *s, uint32_t n, const char *message)
{
    ks_err err = { .code = 0 };
    ks_weight w[4];
    ks_store *st = NULL;
    ks_store_opts o = { .no_cache = true };
    int rc = ks_store_open(c, s, n, &o, w, &st, &err);
    assert_true(rc < 0);
    assert_null(st);
    assert_int_equal(rc, err.code);
    assert_contains(err.msg, message);
    assert_null(strchr(err.msg, '\n'));
}

static void wrong_checkpoints_are_refused_by_name(void **state)
{
    (void)state;
    enum { K = 64 };
    float nan[2 * K] = { 0 }, huge[2 * K] = { 0 };
    nan[K + 7] = NAN;
    huge[3] = -3.4e38f;
    ks_st_tensor t[] = { util_tensor("m", "BF16", 2, 16, K, 0), util_tensor("stack", "BF16", 3, 3, 16, K) };
    ks_st_tensor own[] = { t[0],
                           t[1],
                           { "nan", "F32", 2, { 2, K }, nan, sizeof nan },
                           { "huge", "F32", 2, { 2, K }, huge, sizeof huge },
                           { "int", "I32", 2, { 2, K }, nan, sizeof nan },
                           { "inf", "BF16", 1, { 1 }, "\x80\x7f", 2 } };
    char path[512];
    ks_err err;
    util_fresh_dir(DIR);
    util_path(path, DIR, "model.safetensors");
    assert_ok(ks_st_write(path, own, KS_COUNT(own), &err), &err);
    free((void *)(uintptr_t)t[0].data);
    free((void *)(uintptr_t)t[1].data);
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_wpart p = { "m", 0, 17, 0, 0, 0, false };
    ks_wspec s = { "w", KS_CLS_ATTN, 0, 1, 17, K, 1, &p, -1, 0, NULL };
    expect_error(c, &s, 1, "tensor 'm' has shape [16, 64], the model wants [17, 64]");
    p.row_count = s.n_out = 12;
    expect_error(c, &s, 1, "tensor 'm' has shape [16, 64], the model wants [12, 64]");
    p.row_count = s.n_out = 16;
    s.n_in = 32;
    expect_error(c, &s, 1, "tensor 'm' has shape [16, 64], the model wants [16, 32]");
    p.transposed = true;
    s.n_in = K;
    expect_error(c, &s, 1, "tensor 'm' has shape [16, 64], the model wants [64, 16]");
    p.transposed = false;
    p.tensor = "stack";
    s.n_mat = 4;
    expect_error(c, &s, 1, "tensor 'stack' has shape [3, 16, 64], the model wants [4, 16, 64]");
    s.n_mat = 1;
    expect_error(c, &s, 1, "tensor 'stack' has shape [3, 16, 64], the model wants [16, 64]");
    p.tensor = "absent.{}.x";
    s.n_mat = 3;
    expect_error(c, &s, 1, "the checkpoint 'store' has no tensor 'absent.0.x', which the model needs");
    p = (ks_wpart) { "nan", 0, 2, 0, 0, 0, false };
    s = (ks_wspec) { "w", KS_CLS_ATTN, 0, 1, 2, K, 1, &p, -1, 0, NULL };
    expect_error(c, &s, 1, "tensor 'nan' holds NaN at [1, 7]");
    p.tensor = "huge";
    expect_error(c, &s, 1, "weight 'w', matrix 0: -3.4e+38 at [0, 3] does not fit bf16");
    p.tensor = "int";
    expect_error(c, &s, 1, "tensor 'int' has type i32, which is none for weights");
    p = (ks_wpart) { "inf", 0, 1, 0, 0, 0, false };
    s = (ks_wspec) { "w", KS_CLS_ATTN, KS_WSPEC_VECTOR, 1, 1, 1, 1, &p, -1, 0, NULL };
    expect_error(c, &s, 1, "tensor 'inf' holds an infinity at [0, 0]");
    p.row_count = s.n_in = 3;
    expect_error(c, &s, 1, "tensor 'inf' has shape [1], the model wants [3]");
    s.n_in = 4;
    expect_error(c, &s, 1, "weight 'w': 1 matrices of 1 x 4 do not fit their 1 parts of 3 rows");
    ks_ckpt_close(c);
}

static void specs_that_contradict_themselves_are_refused(void **state)
{
    (void)state;
    ks_st_tensor t = util_tensor("m", "BF16", 2, 16, 32, 0);
    const ks_wpart p = { "m", 0, 16, 0, 0, 0, false }, overlap = { "m", 0, 16, 4, 2, 0, false };
    util_fresh_dir(DIR);
    util_write(DIR, "model.safetensors", &t, 1);
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_wspec ring[2] = { { "a", KS_CLS_ATTN, 0, 1, 16, 32, 1, &p, 1, 0, NULL },
                         { "b", KS_CLS_ATTN, 0, 1, 16, 32, 1, &p, 0, 0, NULL } };
    expect_error(c, ring, 2, "weight 'a' is in a ring of `with`");
    ring[1].with = 7;
    expect_error(c, ring, 2, "weight 'b' cannot lie with number 7");
    ring[0].parts = &overlap;
    expect_error(c, ring, 1, "weight 'a': 1 matrices of 16 x 32 do not fit");
    ring[0].parts = &p;
    ring[0].n_in = UINT32_MAX;
    expect_error(c, ring, 1, "weight 'a': 1 matrices of 16 x 4294967295 do not fit");
    ks_ckpt_close(c);
}

/* ---- the repository's own models */

/* The bytes of a golden tensor, remade by hand from README.md of tests/golden. */
static void a_golden_checkpoint_is_remade_bit_for_bit(void **state)
{
    (void)state;
    ks_err err;
    ks_golden g;
    uint16_t h[4];
    assert_ok(ks_golden_write(KS_SOURCE_DIR "/tests/golden/qwen3_moe", "golden", &err), &err);
    ks_ckpt *c = util_ckpt(registry, "golden");
    assert_int_equal(ks_ckpt_count(c), 69);
    const ks_tensor *t = ks_ckpt_find(c, "model.layers.0.input_layernorm.weight");
    assert_non_null(t);
    assert_ok(ks_ckpt_read(c, t, 0, h, sizeof h, &err), &err);
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *s = t->name; *s; s++) hash = (hash ^ (uint8_t)*s) * UINT64_C(0x100000001b3);
    for (uint64_t i = 0; i < 4; i++) {
        uint64_t z = (hash ^ 20261122) + (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        float x = (float)((z ^ z >> 31) >> 40) / 8388608.0f - 1.0f;
        assert_int_equal(h[i], ks_f32_to_bf16(x * 0.2f + 1.0f));
    }
    ks_ckpt_close(c);
    assert_ok(ks_golden_expected(KS_SOURCE_DIR "/tests/golden/qwen3_moe", &g, &err), &err);
    assert_int_equal(g.n_tok, 48);
    assert_int_equal(g.n_vocab, 512);
    assert_int_equal(g.n_taps, 3);
    assert_int_equal(g.d_model, 128);
    assert_int_equal(g.n_greedy, 16);
    ks_golden_fini(&g);
}

static void the_demo_model_loads_as_it_is_stored(void **state)
{
    (void)state;
    ks_err err;
    const ks_wpart gu[2] = { { "model.layers.5.mlp.experts.{}.gate_proj.weight", 0, 128, 0, 0, 0, false },
                             { "model.layers.5.mlp.experts.{}.up_proj.weight", 0, 128, 0, 0, 0, false } };
    const ks_wpart down = { "model.layers.5.mlp.experts.{}.down_proj.weight", 0, 256, 0, 0, 0, false };
    const ks_wspec s[2] = { { "gu", KS_CLS_EXPERT, KS_WSPEC_PAIR, 32, 256, 256, 2, gu, 1, 0, NULL },
                            { "down", KS_CLS_EXPERT, 0, 32, 256, 128, 1, &down, -1, 0, NULL } };
    uint16_t raw[128 * 256];
    ks_weight w[2], q[2];
    ks_ckpt *c = util_ckpt(registry, KS_SOURCE_DIR "/models/demo");
    ks_store *st = util_store(c, s, 2, KS_T_BF16, w), *sq = util_store(c, s, 2, KS_T_I4, q);
    double e = 0, all = 0;
    for (uint32_t m = 0; m < 32; m += 31) {
        for (uint32_t part = 0; part < 3; part++) {
            static const char *const names[] = { "gate", "up", "down" };
            char name[80];
            (void)snprintf(name, sizeof name, "model.layers.5.mlp.experts.%u.%s_proj.weight", m, names[part]);
            const ks_tensor *t = ks_ckpt_find(c, name);
            assert_non_null(t);
            assert_ok(ks_ckpt_read(c, t, 0, raw, sizeof raw, &err), &err);
            for (uint32_t i = 0; i < 128 * 256; i++) {
                uint32_t cols = part == 2 ? 128 : 256, r = i / cols, k = i % cols;
                uint32_t row = part == 2 ? r : r / 16 * 32 + part * 16 + r % 16;
                float want = ks_bf16_to_f32(raw[i]), i4 = util_get(&q[part / 2], m, row, k);
                assert_true(util_get(&w[part / 2], m, row, k) == want);
                e += ((double)want - (double)i4) * ((double)want - (double)i4);
                all += (double)want * (double)want;
            }
        }
    }
    print_message("demo model in INT4: relative RMSE %.4f\n", sqrt(e / all));
    assert_true(sqrt(e / all) < 0.105);
    ks_store_close(st);
    ks_store_close(sq);
    ks_ckpt_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_has_the_layout_of_its_definition),
        cmocka_unit_test(sources_of_every_float_type_load),
        cmocka_unit_test(every_form_of_a_matrix_is_read),
        cmocka_unit_test(experts_of_own_tensors_lie_together),
        cmocka_unit_test(stacked_transposed_interleaved_experts_are_read),
        cmocka_unit_test(banks_take_strided_rows_of_one_matrix),
        cmocka_unit_test(wrong_checkpoints_are_refused_by_name),
        cmocka_unit_test(narrow_matrices_take_their_own_type),
        cmocka_unit_test(specs_that_contradict_themselves_are_refused),
        cmocka_unit_test(a_golden_checkpoint_is_remade_bit_for_bit),
        cmocka_unit_test(the_demo_model_loads_as_it_is_stored),
    };
    return cmocka_run_group_tests_name("store", tests, util_setup, util_teardown);
}
