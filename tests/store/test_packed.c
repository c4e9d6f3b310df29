/* GPTQ and AWQ checkpoints, written here from known codes, zero points and scales by the formats' definition: what is
 * loaded is scale * (code - zero point), exactly where a stored type holds it, else quantized as those floats are. */
#include "store/source.h"
#include "util.h"
#include <math.h>

#define DIR "packed"
#define PLAIN "packed-plain"
#define N_MAX 4096u
#define K_MAX 1024u
#define G_MAX 32u

/* ---- writing */

typedef struct form {
    const char *config; /* of quantization_config */
    bool awq, v2, symmetric, ordered;
    uint32_t n, k, group;
    const char *dtype; /* of the scales */
    bool fine;         /* scales that BF16 does not hold */
    bool exact;        /* I4 takes the codes as they are */
} form;

/* One matrix: n rows (outputs), k columns (inputs). */
typedef struct matrix {
    uint8_t q[N_MAX * K_MAX], z[G_MAX * N_MAX]; /* codes (n, k); zero points (groups, n) */
    float scale[G_MAX * N_MAX], value[N_MAX * K_MAX];
    int32_t order[K_MAX];
    uint32_t qweight[N_MAX * K_MAX / 8], qzeros[G_MAX * N_MAX / 8];
    uint16_t half[G_MAX * N_MAX];
} matrix;

static matrix m;

static uint32_t chance(uint32_t i)
{
    uint64_t h = (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    h ^= h >> 29;
    h *= UINT64_C(0xBF58476D1CE4E5B9);
    return (uint32_t)(h >> 40);
}

static void choose_values(const form *f, uint32_t seed)
{
    const uint32_t groups = f->k / f->group;
    for (uint32_t k = 0; k < f->k; k++) m.order[k] = (int32_t)(f->ordered ? (k * 7 + 3) % groups : k / f->group);
    for (uint32_t i = 0; i < groups * f->n; i++) {
        uint32_t c = chance(i + seed * 17);
        m.z[i] = f->symmetric ? 8 : (uint8_t)(c % 16);
        m.scale[i] =
            ldexpf(1.0f + (float)(c / 16 % 128) / 128.0f + (f->fine ? 1.0f / 1024.0f : 0.0f), -5 - (int)(c % 3));
        m.half[i] = strcmp(f->dtype, "F16") == 0 ? ks_f32_to_f16(m.scale[i]) : ks_f32_to_bf16(m.scale[i]);
    }
    for (uint32_t r = 0; r < f->n; r++) {
        for (uint32_t k = 0; k < f->k; k++) {
            uint32_t i = r * f->k + k, g = (uint32_t)m.order[k] * f->n + r;
            m.q[i] = (uint8_t)(chance(i + seed * 101) % 16);
            m.value[i] = m.scale[g] * (float)((int)m.q[i] - (int)m.z[g]);
        }
    }
}

/* Eight rows in a word: AWQ's i-th nibble is row order[i] of the eight. */
static uint32_t awq_word(const uint8_t *q, uint32_t stride)
{
    static const uint32_t order[8] = { 0, 2, 4, 6, 1, 3, 5, 7 };
    uint32_t w = 0;
    for (uint32_t i = 0; i < 8; i++) w |= (uint32_t)q[(size_t)order[i] * stride] << (i * 4);
    return w;
}

static void pack(const form *f)
{
    memset(m.qweight, 0, sizeof m.qweight);
    memset(m.qzeros, 0, sizeof m.qzeros);
    for (uint32_t r = 0; r < f->n && !f->awq; r++)
        for (uint32_t k = 0; k < f->k; k++) m.qweight[k / 8 * f->n + r] |= (uint32_t)m.q[r * f->k + k] << (k % 8 * 4);
    for (uint32_t r = 0; r < f->n && f->awq; r += 8)
        for (uint32_t k = 0; k < f->k; k++) m.qweight[k * (f->n / 8) + r / 8] = awq_word(m.q + r * f->k + k, f->k);
    for (uint32_t g = 0; g < f->k / f->group; g++) {
        for (uint32_t r = 0; r < f->n; r += 8) {
            uint32_t *w = &m.qzeros[g * (f->n / 8) + r / 8];
            if (f->awq) *w = awq_word(m.z + g * f->n + r, 1);
            for (uint32_t j = 0; j < 8 && !f->awq; j++)
                *w |= (m.z[g * f->n + r + j] - (f->v2 ? 0u : 1u)) % 16 << (j * 4);
        }
    }
}

/* The tensors of m, in t[4]; returns their number. */
static size_t tensors(const form *f, char names[4][60], const char *base, ks_st_tensor t[4])
{
    static const char *const tails[4] = { "qweight", "qzeros", "scales", "g_idx" };
    const uint32_t groups = f->k / f->group;
    for (size_t i = 0; i < 4; i++) (void)snprintf(names[i], 60, "%s.%s", base, tails[i]);
    t[0] = (ks_st_tensor) { names[0], "I32", 2, { f->k / 8, f->n }, m.qweight, (size_t)f->n * f->k / 2 };
    if (f->awq) {
        t[0].shape[0] = f->k;
        t[0].shape[1] = f->n / 8;
    }
    t[1] = (ks_st_tensor) { names[1], "I32", 2, { groups, f->n / 8 }, m.qzeros, (size_t)groups * f->n / 2 };
    t[2] = (ks_st_tensor) { names[2], f->dtype, 2, { groups, f->n }, m.half, (size_t)groups * f->n * 2 };
    t[3] = (ks_st_tensor) { names[3], "I32", 1, { f->k }, m.order, (size_t)f->k * 4 };
    return f->awq ? 3 : 4;
}

static void write_config(const char *dir, const char *quantization)
{
    char text[1000], path[512];
    ks_err err;
    (void)snprintf(text, sizeof text, "{\"model_type\":\"x\",\"quantization_config\":%s}", quantization);
    util_path(path, dir, "config.json");
    assert_ok(ks_file_write(path, text, strlen(text), &err), &err);
}

static ks_ckpt *write_form(const form *f)
{
    char names[4][60];
    ks_st_tensor t[4];
    ks_err err;
    choose_values(f, 1);
    pack(f);
    util_fresh_dir(DIR);
    write_config(DIR, f->config);
    assert_ok(ks_st_write(DIR "/model.safetensors", t, tensors(f, names, "m", t), &err), &err);
    return util_ckpt(registry, DIR);
}

/* The same numbers as F32. */
static ks_ckpt *write_plain(const form *f)
{
    const ks_st_tensor t = { "m.weight", "F32", 2, { f->n, f->k }, m.value, (size_t)f->n * f->k * 4 };
    ks_err err;
    util_fresh_dir(PLAIN);
    assert_ok(ks_st_write(PLAIN "/model.safetensors", &t, 1, &err), &err);
    return util_ckpt(registry, PLAIN);
}

/* ---- reading */

/* Row of m that logical row r holds. */
static uint32_t row_of(const ks_wspec *s, uint32_t r)
{
    const ks_wpart *p = s->parts;
    if (s->flags & KS_WSPEC_PAIR) {
        p += r / 16 % 2;
        r = r / 32 * 16 + r % 16;
    } else {
        for (; r >= p->row_count; p++) r -= p->row_count;
    }
    uint32_t block = p->row_block ? p->row_block : p->row_count;
    return p->row_first + r / block * p->row_step + r % block;
}

static void check_values(const form *f, const ks_wspec *s, const ks_weight *w)
{
    for (uint32_t r = 0; r < f->n; r++) {
        const float *want = m.value + (size_t)row_of(s, r) * f->k;
        for (uint32_t k = 0; k < f->k; k++)
            if (util_get(w, 0, r, k) != want[k])
                fail_msg("[%u, %u] is %g, not %g", r, k, (double)util_get(w, 0, r, k), (double)want[k]);
    }
}

/* I4 and I8: the codes as they are, or what the numbers as F32 become. BF16: the numbers as they are. */
static void check_form(const form *f, const ks_wspec *s)
{
    static const uint32_t wanted[] = { KS_T_I4, KS_T_I8, KS_T_BF16, KS_T_F32 };
    ks_ckpt *c = write_form(f), *plain = write_plain(f);
    for (size_t i = 0; i < KS_COUNT(wanted); i++) {
        ks_weight w, v;
        ks_store *st = util_store(c, s, 1, wanted[i], &w), *sv = util_store(plain, s, 1, wanted[i], &v);
        if (wanted[i] == KS_T_BF16 || wanted[i] == KS_T_F32) {
            assert_int_equal(w.type, KS_T_F32);
            check_values(f, s, &w);
        } else if (f->exact) {
            assert_int_equal(w.type, KS_T_I4);
            assert_int_equal(w.group, f->group);
            check_values(f, s, &w);
        } else {
            assert_int_equal(w.type, wanted[i]);
            assert_int_equal(w.group, v.group);
            assert_memory_equal(w.data, v.data, (size_t)w.mat_bytes);
        }
        ks_store_close(st);
        ks_store_close(sv);
    }
    ks_ckpt_close(c);
    ks_ckpt_close(plain);
}

#define GPTQ(rest) "{\"quant_method\":\"gptq\",\"bits\":4," rest "}"
#define AWQ(rest) "{\"quant_method\":\"awq\",\"bits\":4,\"version\":\"gemm\"," rest "}"

/* config, awq, v2, symmetric, ordered, n, k, group, dtype, fine, exact */
static const form forms[] = {
    { GPTQ("\"group_size\":128,\"sym\":true"), 0, 0, 1, 0, 48, 256, 128, "BF16", 0, 1 },
    { GPTQ("\"group_size\":64,\"sym\":true,\"desc_act\":false"), 0, 0, 1, 0, 48, 192, 64, "F16", 0, 1 },
    { GPTQ("\"group_size\":32,\"sym\":true,\"checkpoint_format\":\"gptq_v2\""), 0, 1, 1, 0, 48, 96, 32, "F16", 0, 1 },
    { GPTQ("\"group_size\":-1,\"sym\":true"), 0, 0, 1, 0, 48, 64, 64, "BF16", 0, 1 },
    { GPTQ("\"group_size\":-1,\"sym\":true"), 0, 0, 1, 0, 48, 40, 40, "BF16", 0, 0 },
    { GPTQ("\"group_size\":128,\"sym\":true"), 0, 0, 1, 0, 48, 256, 128, "F16", 1, 0 },
    { GPTQ("\"group_size\":128,\"sym\":false"), 0, 0, 0, 0, 48, 256, 128, "F16", 1, 0 },
    { GPTQ("\"group_size\":32,\"checkpoint_format\":\"gptq\""), 0, 0, 0, 0, 48, 96, 32, "BF16", 0, 0 },
    { GPTQ("\"group_size\":64,\"sym\":false,\"checkpoint_format\":\"gptq_v2\""), 0, 1, 0, 0, 48, 192, 64, "F16", 1, 0 },
    { GPTQ("\"group_size\":32,\"sym\":true,\"desc_act\":true"), 0, 0, 1, 1, 48, 96, 32, "BF16", 0, 0 },
    { GPTQ("\"group_size\":64,\"sym\":false,\"desc_act\":true"), 0, 0, 0, 1, 48, 256, 64, "F16", 1, 0 },
    { GPTQ("\"group_size\":32,\"sym\":true,\"desc_act\":true"), 0, 0, 1, 0, 48, 96, 32, "BF16", 0, 1 },
    { AWQ("\"group_size\":128,\"zero_point\":true"), 1, 0, 0, 0, 48, 256, 128, "F16", 1, 0 },
    { AWQ("\"group_size\":64"), 1, 0, 0, 0, 48, 192, 64, "BF16", 0, 0 },
    { AWQ("\"group_size\":32,\"zero_point\":false"), 1, 0, 1, 0, 48, 96, 32, "F16", 0, 1 },
    { AWQ("\"group_size\":-1,\"zero_point\":true"), 1, 0, 0, 0, 48, 72, 72, "F16", 1, 0 },
};

static void every_form_is_its_numbers(void **state)
{
    (void)state;
    for (size_t i = 0; i < KS_COUNT(forms); i++) {
        const form *f = &forms[i];
        const ks_wpart p = { "m.weight", 0, f->n, 0, 0, 0, false };
        const ks_wspec s = { "m", KS_CLS_ATTN, 0, 1, f->n, f->k, 1, &p, -1, 0, NULL };
        print_message("%s\n", f->config);
        check_form(f, &s);
    }
}

/* Windows that begin within a word, that have gaps, and that two parts share. */
static void rows_are_cut_wherever_the_model_wants(void **state)
{
    (void)state;
    static const ks_wpart cut[2] = { { "m.weight", 0, 21, 0, 0, 0, false }, { "m.weight", 21, 27, 0, 0, 0, false } };
    static const ks_wpart comb[2] = { { "m.weight", 0, 24, 1, 2, 0, false }, { "m.weight", 1, 24, 1, 2, 0, false } };
    static const ks_wpart pair[2] = { { "m.weight", 0, 16, 0, 0, 0, false }, { "m.weight", 16, 16, 0, 0, 0, false } };
    static const form some[] = {
        { GPTQ("\"group_size\":32,\"sym\":true"), 0, 0, 1, 0, 48, 96, 32, "BF16", 0, 1 },
        { GPTQ("\"group_size\":32"), 0, 0, 0, 0, 48, 96, 32, "BF16", 0, 0 },
        { AWQ("\"group_size\":32,\"zero_point\":false"), 1, 0, 1, 0, 48, 96, 32, "BF16", 0, 1 },
        { AWQ("\"group_size\":32"), 1, 0, 0, 0, 48, 96, 32, "F16", 1, 0 },
    };
    for (size_t i = 0; i < KS_COUNT(some); i++) {
        form f = some[i];
        ks_wspec s = { "m", KS_CLS_ATTN, 0, 1, f.n, f.k, 2, cut, -1, 0, NULL };
        check_form(&f, &s);
        s.parts = comb;
        check_form(&f, &s);
        f.n = 32;
        s = (ks_wspec) { "m", KS_CLS_EXPERT, KS_WSPEC_PAIR, 1, f.n, f.k, 2, pair, -1, 0, NULL };
        check_form(&f, &s);
    }
}

/* More than one block: windows of a part of the tensor's width. */
static void large_matrices_are_read_in_windows(void **state)
{
    (void)state;
    static const form large[] = {
        { GPTQ("\"group_size\":32,\"sym\":true"), 0, 0, 1, 0, N_MAX, K_MAX, 32, "BF16", 0, 1 },
        { AWQ("\"group_size\":128"), 1, 0, 0, 0, N_MAX, K_MAX, 128, "F16", 1, 0 },
    };
    for (size_t i = 0; i < KS_COUNT(large); i++) {
        const ks_wpart p = { "m.weight", 0, N_MAX, 0, 0, 0, false };
        const ks_wspec s = { "m", KS_CLS_EXPERT, 0, 1, N_MAX, K_MAX, 1, &p, -1, 0, NULL };
        check_form(&large[i], &s);
    }
}

/* Experts one by one beside modules that were not converted. */
static void experts_are_packed_and_the_router_is_plain(void **state)
{
    (void)state;
    enum { E = 3, K = 64, FF = 16 };
    static const char *const config =
        AWQ("\"group_size\":32,\"zero_point\":true,\"modules_to_not_convert\":[\"gate\",\"lm_head\"]");
    const form f = { config, 1, 0, 0, 0, FF, K, 32, "F16", 1, 0 };
    static float want[E * 2][FF * K];
    static matrix kept[E * 2];
    char names[E * 2][4][60], base[60];
    ks_st_tensor t[E * 2 * 3 + 1];
    ks_err err;
    for (uint32_t i = 0; i < E * 2; i++) {
        choose_values(&f, i + 5);
        pack(&f);
        kept[i] = m;
        memcpy(want[i], m.value, sizeof want[i]);
        ks_st_tensor four[4];
        (void)snprintf(base, sizeof base, "e.%u.%s", i / 2, i % 2 ? "up" : "gate");
        (void)tensors(&f, names[i], base, four);
        memcpy(t + (size_t)i * 3, four, 3 * sizeof *four);
        t[i * 3].data = kept[i].qweight;
        t[i * 3 + 1].data = kept[i].qzeros;
        t[i * 3 + 2].data = kept[i].half;
    }
    t[E * 2 * 3] = util_tensor("gate.weight", "BF16", 2, E, K, 1);
    util_fresh_dir(DIR);
    write_config(DIR, config);
    assert_ok(ks_st_write(DIR "/model.safetensors", t, KS_COUNT(t), &err), &err);
    free((void *)(uintptr_t)t[E * 2 * 3].data);
    const ks_wpart gu[2] = { { "e.{}.gate.weight", 0, FF, 0, 0, 0, false },
                             { "e.{}.up.weight", 0, FF, 0, 0, 0, false } };
    const ks_wpart r = { "gate.weight", 0, E, 0, 0, 0, false };
    const ks_wspec s[2] = { { "gu", KS_CLS_EXPERT, KS_WSPEC_PAIR, E, 2 * FF, K, 2, gu, -1, 0, NULL },
                            { "router", KS_CLS_DENSE, KS_WSPEC_EXACT, 1, E, K, 1, &r, -1, 0, NULL } };
    ks_weight w[2];
    ks_ckpt *c = util_ckpt(registry, DIR);
    ks_store *st = util_store(c, s, 2, KS_T_BF16, w);
    assert_int_equal(w[1].type, KS_T_BF16);
    for (uint32_t e = 0; e < E; e++)
        for (uint32_t i = 0; i < 2 * FF * K; i++)
            assert_true(util_get(&w[0], e, i / K, i % K) == want[e * 2 + i / K / 16][i / K % 16 * K + i % K]);
    for (uint32_t i = 0; i < E * K; i++) assert_true(util_get(&w[1], 0, i / K, i % K) == util_value("gate.weight", i));
    ks_store_close(st);
    ks_ckpt_close(c);
}

/* The comparison reads what the building read, and converts nothing. */
static void a_cache_is_compared_with_its_packed_source(void **state)
{
    (void)state;
    static const size_t some[] = { 0, 6, 9, 12, 14 };
    const ks_store_opts o = { .type = { [KS_CLS_ATTN] = KS_T_I4 }, .verify = true, .cache_dir = "packed-cache" };
    for (size_t i = 0; i < KS_COUNT(some); i++) {
        const form *f = &forms[some[i]];
        const ks_wpart p = { "m.weight", 0, f->n, 0, 0, 0, false };
        const ks_wspec s = { "m", KS_CLS_ATTN, 0, 1, f->n, f->k, 1, &p, -1, 0, NULL };
        ks_ckpt *c = write_form(f);
        util_fresh_dir("packed-cache");
        for (int run = 0; run < 2; run++) {
            ks_err err;
            ks_weight w;
            ks_store *st = NULL;
            assert_ok(ks_store_open(c, &s, 1, &o, &w, &st, &err), &err);
            assert_int_equal(ks_store_was_cached(st), run);
            if (f->exact) check_values(f, &s, &w);
            ks_store_close(st);
        }
        ks_ckpt_close(c);
    }
}

/* ---- refusals */

static const ks_wpart part = { "m.weight", 0, 48, 0, 0, 0, false };
static const ks_wspec spec = { "m", KS_CLS_ATTN, 0, 1, 48, 96, 1, &part, -1, 0, NULL };
static const form good = { GPTQ("\"group_size\":32,\"sym\":true"), 0, 0, 1, 0, 48, 96, 32, "BF16", 0, 1 };

static void expect_error(const ks_st_tensor *t, size_t n, const char *config, const ks_wspec *s, const char *message)
{
    ks_err err = { .code = 0 };
    ks_weight w;
    ks_store *st = NULL;
    ks_store_opts o = { .no_cache = true };
    util_fresh_dir(DIR);
    write_config(DIR, config);
    assert_ok(ks_st_write(DIR "/model.safetensors", t, n, &err), &err);
    ks_ckpt *c = util_ckpt(registry, DIR);
    assert_true(ks_store_open(c, s, 1, &o, &w, &st, &err) < 0);
    assert_contains(err.msg, message);
    assert_null(st);
    ks_ckpt_close(c);
}

static size_t fresh(const form *f, char names[4][60], ks_st_tensor t[4])
{
    choose_values(f, 1);
    pack(f);
    return tensors(f, names, "m", t);
}

static void tensors_that_do_not_fit_are_refused_by_name(void **state)
{
    (void)state;
    char names[4][60];
    ks_st_tensor t[4];
    ks_wspec s = spec;
    (void)fresh(&good, names, t);
    expect_error(t, 1, good.config, &spec,
                 "tensor 'm.qweight' is packed: it needs type i32, 'qzeros' (i32) and 'scales'");
    expect_error(t, 4, "null", &spec, "and a quantization_config of gptq or awq in config.json");
    expect_error(t, 3, GPTQ("\"group_size\":32,\"desc_act\":true"), &spec,
                 "tensor 'm.qweight' has no 'g_idx' beside it, which contradicts config.json");
    expect_error(t, 4, AWQ("\"group_size\":32"), &spec, "tensor 'm.qweight' has a 'g_idx' beside it");
    expect_error(t, 4, GPTQ("\"group_size\":64"), &spec,
                 "tensor 'm.qweight' is a matrix of 48 x 96: its rows must be a multiple of 8, its columns one of the "
                 "group, 64");
    t[1].shape[0] = 1;
    t[1].bytes /= 3;
    expect_error(t, 4, good.config, &spec,
                 "tensor 'm.qweight' of 48 x 96 in groups of 32 needs 'm.qzeros' of shape [3, 6]");
    (void)fresh(&good, names, t);
    t[2].shape[0] = 48;
    t[2].shape[1] = 3;
    expect_error(t, 4, good.config, &spec, "needs 'm.scales' of shape [3, 48]");
    (void)fresh(&good, names, t);
    t[3].shape[0] = 48;
    t[3].bytes /= 2;
    expect_error(t, 4, good.config, &spec, "tensor 'm.g_idx' must be 96 numbers of type i32");
    (void)fresh(&good, names, t);
    s.n_in = 64;
    expect_error(t, 4, good.config, &s, "tensor 'm.qweight' has shape [48, 96], the model wants [48, 64]");
    ks_wpart less = part;
    less.row_count = s.n_out = 32;
    s.n_in = 96;
    s.parts = &less;
    expect_error(t, 4, good.config, &s, "tensor 'm.qweight' has shape [48, 96], the model wants [32, 96]");
    less.transposed = true;
    less.row_count = s.n_out = 96;
    s.n_in = 48;
    expect_error(t, 4, good.config, &s, "is quantized and lies the other way round");
    const ks_wpart two[2] = { { "m.weight", 0, 48, 0, 0, 0, false }, { "p.weight", 0, 48, 0, 0, 0, false } };
    ks_st_tensor five[5] = { t[0], t[1], t[2], t[3], { "p.weight", "F32", 2, { 48, 96 }, m.value, 48 * 96 * 4 } };
    s = (ks_wspec) { "m", KS_CLS_ATTN, 0, 1, 96, 96, 2, two, -1, 0, NULL };
    expect_error(five, 5, good.config, &s,
                 "tensors 'm.qweight' and 'p.weight' of weight 'm' lie in different directions");
    const ks_wpart row = { "m.weight", 0, 1, 0, 0, 0, false };
    s = (ks_wspec) { "m", KS_CLS_ATTN, 0, 48, 1, 96, 1, &row, -1, 0, NULL };
    expect_error(t, 4, good.config, &s, "tensor 'm.qweight' is one packed matrix, the model reads a stack of 48");
}

static void numbers_that_cannot_be_are_refused(void **state)
{
    (void)state;
    char names[4][60];
    ks_st_tensor t[4];
    (void)fresh(&good, names, t);
    m.order[33] = 3;
    expect_error(t, 4, good.config, &spec, "tensor 'm.g_idx' puts column 33 into group 3 of 3: the file is damaged");
    m.order[33] = -1;
    expect_error(t, 4, good.config, &spec, "tensor 'm.g_idx' puts column 33 into group -1 of 3");
    (void)fresh(&good, names, t);
    m.half[50] = 0x7f80;
    expect_error(t, 4, good.config, &spec, "tensor 'm.scales' holds an infinity at [1, 2]: the file is damaged");
    m.half[50] = 0xffc0;
    expect_error(t, 4, GPTQ("\"group_size\":32"), &spec, "tensor 'm.scales' holds NaN at [1, 2]");
    m.half[50] = 0x7f7f; /* finite, but seven times it is not */
    expect_error(t, 4, GPTQ("\"group_size\":32"), &spec, "tensor 'm.qweight' holds an infinity at [");
    (void)fresh(&good, names, t);
    m.qzeros[6 + 2] ^= 1u << 12; /* 7 stands for 8, 6 for 7 */
    expect_error(
        t, 4, good.config, &spec,
        "tensor 'm.qzeros' has zero point 7 at [1, 19], but quantization_config says that all are 8 (symmetric)");
    (void)fresh(&good, names, t);
    expect_error(t, 4, GPTQ("\"group_size\":32,\"sym\":true,\"checkpoint_format\":\"gptq_v2\""), &spec,
                 "tensor 'm.qzeros' has zero point 7 at [0, 0]");
}

static void configurations_are_read_strictly(void **state)
{
    (void)state;
    static const struct {
        const char *config, *message;
    } rows[] = {
        { "{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":32}",
          "'config.json': quantization_config of gptq: 'bits' must be 4" },
        { "{\"quant_method\":\"awq\",\"group_size\":32}", "quantization_config of awq: 'bits' must be 4" },
        { GPTQ("\"group_size\":16"), "'group_size' must be -1, 32, 64 or 128" },
        { GPTQ("\"group_size\":\"32\""), "'group_size' must be -1, 32, 64 or 128" },
        { GPTQ("\"sym\":true"), "'group_size' must be -1, 32, 64 or 128" },
        { GPTQ("\"group_size\":32,\"sym\":1"), "'sym' must be true or false" },
        { GPTQ("\"group_size\":32,\"desc_act\":null"), "'desc_act' must be true or false" },
        { GPTQ("\"group_size\":32,\"checkpoint_format\":\"marlin\""), "'checkpoint_format' must be gptq or gptq_v2" },
        { GPTQ("\"group_size\":32,\"pack_dtype\":\"int8\""), "'pack_dtype' must be int32" },
        { GPTQ("\"group_size\":32,\"is_marlin_format\":true"), "'is_marlin_format' must be false" },
        { GPTQ("\"group_size\":32,\"dynamic\":{\"a\":{\"bits\":8}}"),
          "'dynamic' must be empty: settings of single modules are not supported" },
        { GPTQ("\"group_size\":32,\"modules_to_not_convert\":\"gate\""),
          "'modules_to_not_convert' must be a list of names" },
        { GPTQ("\"group_size\":32,\"modules_in_block_to_quantize\":[[\"a\"],[7]]"),
          "'modules_in_block_to_quantize' must be a list of names" },
        { GPTQ("\"group_size\":32,\"zero_point\":true"),
          "quantization_config of gptq has the key 'zero_point', which is not supported" },
        { AWQ("\"group_size\":32,\"sym\":true"),
          "quantization_config of awq has the key 'sym', which is not supported" },
        { AWQ("\"group_size\":32,\"zero_point\":\"yes\""), "'zero_point' must be true or false" },
        { "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"version\":\"gemv\"}", "'version' must be gemm" },
    };
    ks_qconf q;
    ks_err err;
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        char text[500];
        int n = snprintf(text, sizeof text, "{\"quantization_config\":%s}", rows[i].config);
        assert_int_equal(ks__qconf_parse("config.json", text, (size_t)n, &q, &err), KS_E_UNSUPPORTED);
        assert_contains(err.msg, rows[i].message);
    }
}

static void usual_configurations_are_understood(void **state)
{
    (void)state;
    static const char gptq[] = "{\"quantization_config\":{\"batch_size\":1,\"bits\":4,\"block_name_to_quantize\":"
                               "\"model.layers\",\"damp_percent\":0.1,"
                               "\"dataset\":[\"c4\"],\"desc_act\":true,\"dynamic\":{},\"group_size\":-1,\"is_marlin_"
                               "format\":false,\"lm_head\":false,"
                               "\"meta\":{\"quantizer\":[\"x\"]},\"modules_in_block_to_quantize\":[[\"a\",\"b\"],["
                               "\"c\"]],\"modules_in_block\":null,"
                               "\"pack_dtype\":\"torch.int32\",\"quant_method\":\"gptq\",\"static_groups\":false,"
                               "\"sym\":true,\"true_sequential\":true,"
                               "\"use_exllama\":true}}";
    static const char awq[] =
        "{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"zero_point\":true,"
        "\"version\":"
        "\"GEMM\",\"backend\":\"autoawq\",\"do_fuse\":false,\"modules_to_not_convert\":[\"gate\"]}}";
    ks_qconf q;
    ks_err err;
    assert_ok(ks__qconf_parse("config.json", gptq, sizeof gptq - 1, &q, &err), &err);
    assert_int_equal(q.scheme, KS_SCHEME_GPTQ);
    assert_int_equal(q.group, 0);
    assert_true(q.symmetric && q.ordered && q.zero_less_one);
    assert_ok(ks__qconf_parse("config.json", awq, sizeof awq - 1, &q, &err), &err);
    assert_int_equal(q.scheme, KS_SCHEME_AWQ);
    assert_int_equal(q.group, 64);
    assert_false(q.symmetric || q.ordered || q.zero_less_one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_is_its_numbers),
        cmocka_unit_test(rows_are_cut_wherever_the_model_wants),
        cmocka_unit_test(large_matrices_are_read_in_windows),
        cmocka_unit_test(experts_are_packed_and_the_router_is_plain),
        cmocka_unit_test(a_cache_is_compared_with_its_packed_source),
        cmocka_unit_test(tensors_that_do_not_fit_are_refused_by_name),
        cmocka_unit_test(numbers_that_cannot_be_are_refused),
        cmocka_unit_test(configurations_are_read_strictly),
        cmocka_unit_test(usual_configurations_are_understood),
    };
    return cmocka_run_group_tests_name("packed", tests, util_setup, util_teardown);
}
