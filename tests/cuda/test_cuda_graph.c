/* Recorded steps on the emulated GPU: they give the bits of steps that are launched one by one, whatever depth and
 * number of sequences, they are one launch, and what fails while recording leaves nothing behind. */
#include "on_emu.h"

#include <string.h>

#define STEPS 24u

static int set_up(void **state)
{
    static const char *const families[] = { "qwen3_moe", "qwen3_next" };
    ks_err err;
    (void)state;
    fx_use_device(choose);
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        char dir[512];
        (void)snprintf(dir, sizeof dir, "%s/tests/golden/%s", KS_SOURCE_DIR, families[i]);
        must(ks_golden_write(dir, families[i], &err), &err);
    }
    return 0;
}

static int open_with(fixture *f, const char *family, bool graphs, ks_err *err)
{
    options = (cu_options) { .resident = -1, .graphs = graphs, .fuse = true, .early = true };
    emu.calls = 0;
    return fx_open(f, family, "ref", 1, KS_T_BF16, NULL, err);
}

static void nothing_is_left(void)
{
    assert_int_equal(emu.held, 0);
    assert_int_equal(emu.n_blocks + emu.n_pinned + emu.n_events + emu.n_streams + emu.n_registered + emu.n_graphs, 0);
}

static uint64_t launches(fixture *f)
{
    ks_err err;
    ks_device_stats s = { .size = sizeof s };
    must(f->iface->stats(f->dev, &s, &err), &err);
    return s.launches;
}

/* Which sequences get their next token in step i: one, two, all four, and prompts of several tokens in between. */
static uint32_t plan_step(uint32_t i, uint32_t pos[FX_SLOTS], const int32_t *ids, fx_seq *seqs)
{
    static const uint32_t sets[] = { 1, 1, 1, 3, 3, 15, 15, 15, 10, 10, 1, 15 };
    uint32_t set = sets[i % (sizeof sets / sizeof sets[0])], n = 0;
    for (uint32_t s = 0; s < FX_SLOTS; s++) {
        if (!(set >> s & 1)) continue;
        uint32_t rows = i % 9 == 4 && s == 0 ? 5 : 1;
        seqs[n++] = (fx_seq) { .slot = s, .pos = pos[s], .n = rows, .ids = ids + pos[s] };
        pos[s] += rows;
    }
    return n;
}

/* The logits of all steps; how many of them were one launch. */
static uint32_t answer(const char *family, bool graphs, float *ret, size_t *ret_n)
{
    fixture f;
    ks_err err;
    int32_t ids[256];
    uint32_t pos[FX_SLOTS] = { 0 }, recorded = 0;
    must(open_with(&f, family, graphs, &err), &err);
    for (uint32_t i = 0; i < 256; i++) ids[i] = (int32_t)(i * 7 % f.model.graph.n_vocab);
    *ret_n = 0;
    for (uint32_t i = 0; i < STEPS; i++) {
        fx_seq seqs[FX_SLOTS];
        uint32_t n = plan_step(i, pos, ids, seqs), rows = 0;
        uint64_t before = launches(&f), graphs_before = emu.n_graph_launches;
        must(fx_step(&f, seqs, n, ret + *ret_n, NULL, &err), &err);
        bool is = emu.n_graph_launches > graphs_before;
        assert_true(is ? launches(&f) - before == 1 : launches(&f) - before > 10);
        recorded += is;
        for (uint32_t s = 0; s < n; s++) rows += seqs[s].n;
        *ret_n += (size_t)rows * f.model.graph.n_vocab;
    }
    fx_close(&f);
    nothing_is_left();
    return recorded;
}

static void bits_are_those_of_steps_launched_one_by_one(const char *family, uint64_t seeds)
{
    size_t cap = (size_t)STEPS * 16 * 4096, n = 0, m = 0;
    float *want = malloc(cap * sizeof *want), *z = malloc(cap * sizeof *z);
    assert_true(want && z);
    emu_seed(0);
    assert_int_equal(answer(family, false, want, &n), 0);
    assert_true(n <= cap);
    for (uint64_t seed = 0; seed < seeds; seed++) {
        emu_seed(seed);
        uint32_t recorded = answer(family, true, z, &m);
        assert_int_equal(n, m);
        if (memcmp(z, want, n * sizeof *z) != 0) fail_msg("seed %llu: other bits", (unsigned long long)seed);
        if (recorded < STEPS / 2) fail_msg("%u of %u steps were recorded ones", recorded, STEPS);
    }
    free(want);
    free(z);
}

static void recorded_steps_of_qwen3_moe(void **state)
{
    (void)state;
    bits_are_those_of_steps_launched_one_by_one("qwen3_moe", 5);
}

static void recorded_steps_of_qwen3_next(void **state)
{
    (void)state;
    bits_are_those_of_steps_launched_one_by_one("qwen3_next", 2); /* with recurrent state */
}

/* Shapes that come again after others: the places for them are few. */
static void more_shapes_than_places(void **state)
{
    fixture f;
    ks_err err;
    int32_t ids[256] = { 0 };
    (void)state;
    emu_seed(1);
    must(open_with(&f, "qwen3_moe", true, &err), &err);
    float *z = malloc((size_t)4 * f.model.graph.n_vocab * sizeof *z);
    assert_non_null(z);
    for (uint32_t i = 0; i < 4 * CU_GRAPHS; i++) {
        cu_dev *d = f.dev;
        fx_seq s = { .slot = 0, .pos = i, .n = 1, .ids = ids };
        for (uint32_t k = 0; k < 2; k++) must(fx_step(&f, &s, 1, z, NULL, &err), &err);
        d->graphs[i % CU_GRAPHS].shape.n_spans += 1000 + i; /* as if it had been another */
    }
    assert_true(emu.n_graphs <= CU_GRAPHS);
    free(z);
    fx_close(&f);
    nothing_is_left();
}

/* The n-th call fails, for every n until none does. */
static void what_fails_while_recording_leaves_nothing_behind(void **state)
{
    ks_err err;
    uint32_t n = 1, failed = 0;
    int32_t ids[4] = { 1, 2, 3, 4 };
    (void)state;
    emu_seed(1);
    for (bool more = true; more; n++) {
        fixture f;
        emu.fail_at = 0;
        must(open_with(&f, "qwen3_moe", true, &err), &err);
        float *z = malloc(f.model.graph.n_vocab * sizeof *z);
        assert_non_null(z);
        emu.calls = 0;
        emu.fail_at = n;
        int rc = 0;
        for (uint32_t i = 0; i < 3 && !rc; i++)
            rc = fx_step(&f, &(fx_seq) { .pos = i, .n = 1, .ids = ids + i }, 1, z, NULL, &err);
        more = emu.calls >= n;
        failed += rc != 0;
        if (rc) assert_true(rc == KS_E_DEVICE && err.msg[0]);
        free(z);
        fx_close(&f);
        nothing_is_left();
    }
    emu.fail_at = 0;
    print_message("  %u failures\n", failed);
    assert_true(failed > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_steps_of_qwen3_moe),
        cmocka_unit_test(recorded_steps_of_qwen3_next),
        cmocka_unit_test(more_shapes_than_places),
        cmocka_unit_test(what_fails_while_recording_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
