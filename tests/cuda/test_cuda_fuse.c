/* Neighbouring ops as one launch, on the emulated GPU: steps of 1 to 16 rows of one and of several sequences, and a
 * long one in one piece and in several, give the bits of the ops one by one, logits and hidden states alike, and take
 * fewer launches. */
#include "on_emu.h"

#include <string.h>

#define PROMPT 3u

/* Types of all weights, of experts, of the cache; how many experts stay, the others are read where they lie; rows of a
 * piece. */
static const struct {
    uint32_t type, expert, kv;
    int32_t resident, piece;
} modes[] = { { KS_T_I8, KS_T_I4, KS_T_F8E4M3, -1, 0 },
              { KS_T_I8, KS_T_I8, KS_T_BF16, 3, 20 },
              { KS_T_BF16, KS_T_BF16, KS_T_F32, -1, 0 } };

static int fused_open(fixture *f, const char *family, uint32_t mode, bool fuse, ks_err *err)
{
    uint32_t types[16]; /* of every class that there may be */
    for (uint32_t c = 0; c < 16; c++) types[c] = c == KS_CLS_EXPERT ? modes[mode].expert : modes[mode].type;
    types[KS_CLS_EMBED] = types[KS_CLS_NORM] = types[KS_CLS_ROUTER] = types[KS_CLS_OTHER] = KS_T_BF16;
    options = (cu_options) { .resident = modes[mode].resident,
                             .piece = modes[mode].piece,
                             .in_place = CU_FEW_ROWS,
                             .fuse = fuse,
                             .early = true };
    return fx_open(f, family, "ref", 1, modes[mode].kv, types, err);
}

/* Logits and hidden states of a few steps; ret_launches: of the long one, and of the last, which has one row. */
static size_t answer(const char *family, uint32_t mode, bool fuse, float *ret, uint64_t ret_launches[2])
{
    static const uint32_t rows[][FX_SLOTS] = {
        { PROMPT, 2 }, { 1, 1, 1 }, { 16 }, { 4, 0, 5, 7 }, { 29, 0, 14 }, { 1 }
    };
    fixture f;
    ks_err err;
    int32_t ids[64];
    uint32_t pos[FX_SLOTS] = { 0 };
    size_t at = 0;
    must(fused_open(&f, family, mode, fuse, &err), &err);
    const ks_graph *g = &f.model.graph;
    for (uint32_t i = 0; i < 64; i++) ids[i] = (int32_t)(i * 7 % g->n_vocab);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        fx_seq seqs[FX_SLOTS];
        uint32_t n = 0, all = 0;
        for (uint32_t s = 0; s < FX_SLOTS; s++) {
            if (!rows[i][s]) continue;
            seqs[n++] = (fx_seq) { .slot = s, .pos = pos[s], .n = rows[i][s], .ids = ids + pos[s] };
            pos[s] += rows[i][s];
            all += rows[i][s];
        }
        uint64_t before = emu.n_launches;
        size_t logits = (size_t)all * g->n_vocab, taps = (size_t)g->n_taps * all * g->d_model;
        must(fx_step(&f, seqs, n, ret + at, ret + at + logits, &err), &err);
        at += logits + taps;
        ret_launches[all <= CU_FEW_ROWS] = emu.n_launches - before;
    }
    fx_close(&f);
    return at;
}

static void same_bits(const char *family, uint32_t n_modes)
{
    size_t cap = (size_t)4 << 20;
    float *want = malloc(cap * sizeof *want), *z = malloc(cap * sizeof *z);
    char dir[512];
    ks_err err;
    assert_true(want && z);
    (void)snprintf(dir, sizeof dir, "%s/tests/golden/%s", KS_SOURCE_DIR, family);
    must(ks_golden_write(dir, family, &err), &err);
    for (uint32_t p = 0; p < n_modes; p++) {
        uint64_t alone[2], fused[2];
        size_t n = answer(family, p, false, want, alone), m = answer(family, p, true, z, fused);
        assert_true(n <= cap);
        assert_int_equal(n, m);
        if (memcmp(want, z, n * sizeof *z) != 0) fail_msg("%s, mode %u: other bits", family, p);
        print_message("  %s: %llu launches instead of %llu, many rows %llu instead of %llu\n", family,
                      (unsigned long long)fused[1], (unsigned long long)alone[1], (unsigned long long)fused[0],
                      (unsigned long long)alone[0]);
        assert_true(fused[0] < alone[0] && fused[1] < alone[1]);
        if (strcmp(family, "qwen3_moe") == 0 && p == 0)
            assert_in_range(fused[1], 1, 25); /* two layers of 10, and ends */
    }
    free(want);
    free(z);
}

static void ops_in_one_launch_give_the_same_bits(void **state)
{
    static const char *const families[] = {
        "qwen3_moe",      "gpt_oss",    "glm4_moe",     "minimax_m2",    "afmoe",      "deepseek_v2", "deepseek_v3",
        "dots1",          "exaone_moe", "ernie4_5_moe", "glm4_moe_lite", "granitemoe", "lfm2_moe",    "llama4_text",
        "hunyuan_v1_moe", "mixtral",    "olmoe",        "phimoe",        "qwen2_moe",  "qwen3_next",  "qwen3_5_moe_text"
    };
    size_t n = KS_TEST_ALL ? sizeof families / sizeof families[0] : 4;
    (void)state;
    for (size_t i = 0; i < n; i++) same_bits(families[i], i && !KS_TEST_ALL ? 1 : 3);
}

static int set_up(void **state)
{
    (void)state;
    fx_use_device(choose);
    emu_seed(1);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(ops_in_one_launch_give_the_same_bits) };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
