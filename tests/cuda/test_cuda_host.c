/* The host side of the CUDA device on the emulated GPU: what moves over the link, where experts are, and that every
 * call that fails is an error with a message and leaves nothing behind. */
#include "on_emu.h"

#define ROWS 64u
#define EXPERTS(f) ((f)->model.graph.n_experts)
#define LAYERS(f) ((f)->model.graph.n_layers)

static int32_t ids[ROWS];

static int set_up(void **state)
{
    ks_err err;
    (void)state;
    fx_use_device(choose);
    emu_seed(1); /* what is sent has landed when the call returns: the tests count */
    if (!ks_golden_write(KS_SOURCE_DIR "/tests/golden/qwen3_moe", "qwen3_moe", &err)) return 0;
    print_error("%s\n", err.msg);
    return -1;
}

static int open_with(fixture *f, int64_t resident, int64_t ring, ks_err *err)
{
    options = (cu_options) { .resident = resident, .ring = ring };
    emu.calls = 0;
    return fx_open(f, "qwen3_moe", "ref", 1, KS_T_F32, NULL, err);
}

static int step(fixture *f, uint32_t n, ks_err *err)
{
    fx_seq s = { .n = n, .ids = ids };
    float *logits = malloc((size_t)n * f->model.graph.n_vocab * sizeof *logits);
    assert_non_null(logits);
    int rc = fx_step(f, &s, 1, logits, NULL, err);
    free(logits);
    return rc;
}

static void nothing_is_left(void)
{
    assert_int_equal(emu.held, 0);
    assert_int_equal(emu.n_blocks + emu.n_pinned + emu.n_events + emu.n_streams + emu.n_registered, 0);
}

static uint64_t bytes_of_step(fixture *f, uint32_t n)
{
    ks_err err;
    ks_device_stats a = { .size = sizeof a }, b = { .size = sizeof b };
    must(f->iface->stats(f->dev, &a, &err), &err);
    must(step(f, n, &err), &err);
    must(f->iface->stats(f->dev, &b, &err), &err);
    return b.bytes_in - a.bytes_in;
}

/* One expert's bytes, as the ring copies them. */
static uint64_t expert_bytes(const fixture *f)
{
    for (uint32_t i = 0; i < f->model.graph.n_ops; i++) {
        const ks_op *op = &f->model.graph.ops[i];
        if (op->kind != KS_OP_EXPERTS) continue;
        const ks_weight *gu = &f->model.graph.weights[op->w[0]], *down = &f->model.graph.weights[op->w[1]];
        return (uint64_t)((const uint8_t *)down->data - (const uint8_t *)gu->data) + down->mat_bytes;
    }
    return 0;
}

static void each_cold_expert_crosses_the_link_once_a_step(void **state)
{
    static const int64_t ways[][2] = { { -1, 0 }, { 0, 2 }, { 0, 3 }, { 5, 2 }, { 0, 0 }, { 7, 64 } };
    ks_err err;
    uint64_t base = 0;
    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        fixture f;
        must(open_with(&f, ways[i][0], ways[i][1], &err), &err);
        uint64_t all = (uint64_t)LAYERS(&f) * EXPERTS(&f), cold = ways[i][0] < 0 ? 0 : all - (uint64_t)ways[i][0];
        for (uint32_t n = 0; n < 3; n++) {
            uint64_t moved = bytes_of_step(&f, ROWS);
            if (i == 0) base = moved; /* tables and embeddings */
            assert_int_equal(moved - base, cold * expert_bytes(&f));
        }
        fx_close(&f);
        nothing_is_left();
    }
}

/* One expert in or out. */
static int place(fixture *f, uint32_t layer, uint32_t expert, uint32_t keep, ks_err *err)
{
    ks_place c = { layer, expert, keep, 0 };
    return f->iface->place(f->dev, &c, 1, err);
}

static void placed_experts_are_not_sent_again(void **state)
{
    ks_err err;
    fixture f;
    uint32_t slots[64];
    ks_device_stats s = { .size = sizeof s };
    (void)state;
    must(open_with(&f, 3, 4, &err), &err); /* experts 0 of both layers, 1 of the first */
    must(f.iface->keeps(f.dev, slots, &err), &err);
    for (uint32_t l = 0; l < LAYERS(&f); l++) assert_int_equal(slots[l], 1);
    uint64_t before = bytes_of_step(&f, ROWS);
    assert_int_equal(place(&f, 1, 2, 1, &err), KS_E_LIMIT);
    assert_non_null(strstr(err.msg, "no place is free for expert 2 of layer 1: there are 3"));
    const ks_place swap[] = { { 0, 0, 0, 0 }, { 1, 3, 1, 0 }, { 1, 3, 1, 0 }, { 0, 0, 0, 0 } };
    must(f.iface->place(f.dev, swap, 4, &err), &err);
    assert_int_equal(bytes_of_step(&f, ROWS), before);
    must(place(&f, 1, 3, 0, &err), &err);
    must(place(&f, 0, 1, 0, &err), &err);
    assert_int_equal(bytes_of_step(&f, ROWS) - before, 2 * expert_bytes(&f));
    must(f.iface->stats(f.dev, &s, &err), &err);
    assert_int_equal(s.expert_slots, 3);
    assert_int_equal(s.experts_resident, 1);
    assert_int_equal(s.uploads, 4); /* three by bind */
    assert_int_equal(place(&f, 0, 9999, 1, &err), KS_E_INVAL);
    assert_non_null(strstr(err.msg, "no expert 9999 in layer 0"));
    assert_int_equal(place(&f, 9999, 0, 1, &err), KS_E_INVAL);
    fx_close(&f);
    nothing_is_left();
}

static void a_dropped_load_that_has_not_landed_leaves_its_place_to_others(void **state)
{
    ks_err err;
    fixture f;
    ks_device_stats s = { .size = sizeof s };
    (void)state;
    must(open_with(&f, 2, 4, &err), &err);
    must(step(&f, 8, &err), &err);
    must(place(&f, 0, 0, 0, &err), &err);
    for (uint32_t e = 1; e < 40; e++) { /* more batches than events */
        must(place(&f, e % 2, 1 + e % 3, 1, &err), &err);
        must(place(&f, e % 2, 1 + e % 3, 0, &err), &err);
    }
    must(place(&f, 0, 3, 1, &err), &err);
    must(step(&f, 8, &err), &err);
    must(f.iface->stats(f.dev, &s, &err), &err);
    assert_int_equal(s.experts_resident, 2);
    fx_close(&f);
    nothing_is_left();
}

static void where_all_stay_nothing_can_be_dropped(void **state)
{
    ks_err err;
    fixture f;
    (void)state;
    must(open_with(&f, -1, 0, &err), &err);
    assert_int_equal(place(&f, 0, 0, 0, &err), KS_E_STATE);
    assert_non_null(strstr(err.msg, "all experts stay"));
    must(place(&f, 0, 0, 1, &err), &err);
    must(step(&f, 8, &err), &err);
    fx_close(&f);
    nothing_is_left();
}

static void the_resident_set_never_exceeds_the_budget(void **state)
{
    ks_err err;
    fixture f;
    uint64_t x = 1;
    ks_device_stats s = { .size = sizeof s };
    (void)state;
    must(open_with(&f, 6, 2, &err), &err);
    size_t held = emu.held;
    for (uint32_t i = 0; i < 10000; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        uint32_t layer = (uint32_t)(x >> 33) % LAYERS(&f), expert = (uint32_t)(x >> 40) % EXPERTS(&f);
        int rc = place(&f, layer, expert, x >> 63, &err);
        assert_true(rc == 0 || rc == KS_E_LIMIT);
        if (i % 50 == 0) must(step(&f, 8, &err), &err);
        assert_int_equal(emu.held, held);
        must(f.iface->stats(f.dev, &s, &err), &err);
        assert_true(s.experts_resident <= s.expert_slots && s.expert_slots == 6);
    }
    fx_close(&f);
    nothing_is_left();
}

static void too_little_memory_says_what_did_not_fit(void **state)
{
    ks_err err;
    fixture f;
    (void)state;
    emu.limit = 1 << 20;
    assert_int_equal(open_with(&f, -1, 0, &err), KS_E_NOMEM);
    assert_non_null(strstr(err.msg, "GPU 0"));
    assert_non_null(strstr(err.msg, "--vram-limit"));
    fx_close(&f);
    emu.limit = 0;
    nothing_is_left();
}

/* The n-th call fails, for every n until none does: opening or a step says so, and later steps say it again. */
static void every_failed_call_is_an_error_and_leaves_nothing_behind(void **state)
{
    ks_err err;
    uint32_t n = 1, failed = 0, retired = 0;
    (void)state;
    for (bool more = true; more; n += n < 60 ? 1 : 7) {
        fixture f;
        emu.fail_at = n;
        int rc = open_with(&f, 3, 2, &err);
        if (!rc) rc = step(&f, 32, &err);
        more = emu.calls >= n;
        if (rc) {
            failed++;
            assert_true(rc < 0 && err.msg[0]);
        }
        if (rc == KS_E_DEVICE && f.dev && ((cu_dev *)f.dev)->g) {
            ks_err again;
            retired++;
            assert_int_equal(step(&f, 1, &again), KS_E_DEVICE);
            assert_non_null(strstr(again.msg, "the device is no longer used"));
        }
        fx_close(&f);
        nothing_is_left();
    }
    emu.fail_at = 0;
    print_message("  %u failures, %u devices retired in a step\n", failed, retired);
    assert_true(failed > 50 && retired > 5);
}

/* Without its tables a kernel would follow whatever pointers and positions lie there. */
static void what_reads_a_table_that_did_not_come_is_not_launched(void **state)
{
    ks_err err;
    uint32_t n = 1, tables = 0;
    (void)state;
    for (bool more = true; more; n++) {
        fixture f;
        must(open_with(&f, 0, 2, &err), &err);
        emu.calls = 0;
        emu.fail_at = n;
        uint64_t before = emu.n_launches;
        int rc = step(&f, 1, &err);
        more = emu.calls >= n;
        emu.fail_at = 0;
        if (rc && strstr(err.msg, "sending a table failed") && tables++ == 0)
            assert_int_equal(emu.n_launches, before); /* the step's, for all its kernels */
        fx_close(&f);
    }
    assert_true(tables > 1); /* and those of experts */
}

/* Launches of a step of one row, all experts resident: each costs some microseconds, whatever it computes. */
static void a_row_needs_no_more_launches_than_it_did(void **state)
{
    static const struct {
        const char *family;
        uint32_t most;
    } limits[] = { { "qwen3_moe", 31 }, { "qwen3_next", 95 }, { "deepseek_v32", 97 } };
    ks_err err;
    (void)state;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        fixture f;
        char dir[512];
        (void)snprintf(dir, sizeof dir, "%s/tests/golden/%s", KS_SOURCE_DIR, limits[i].family);
        must(ks_golden_write(dir, limits[i].family, &err), &err);
        options = (cu_options) { .resident = -1, .fuse = true, .early = true };
        must(fx_open(&f, limits[i].family, "ref", 1, KS_T_F32, NULL, &err), &err); /* no op is left to the CPU */
        uint64_t before = emu.n_launches;
        must(step(&f, 1, &err), &err);
        uint64_t n = emu.n_launches - before;
        print_message("  %s: %llu launches, %u layers\n", limits[i].family, (unsigned long long)n, LAYERS(&f));
        fx_close(&f);
        if (n > limits[i].most) fail_msg("%llu launches, %u were enough before", (unsigned long long)n, limits[i].most);
    }
    nothing_is_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_cold_expert_crosses_the_link_once_a_step),
        cmocka_unit_test(placed_experts_are_not_sent_again),
        cmocka_unit_test(a_dropped_load_that_has_not_landed_leaves_its_place_to_others),
        cmocka_unit_test(where_all_stay_nothing_can_be_dropped),
        cmocka_unit_test(the_resident_set_never_exceeds_the_budget),
        cmocka_unit_test(too_little_memory_says_what_did_not_fit),
        cmocka_unit_test(a_row_needs_no_more_launches_than_it_did),
        cmocka_unit_test(every_failed_call_is_an_error_and_leaves_nothing_behind),
        cmocka_unit_test(what_reads_a_table_that_did_not_come_is_not_launched),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
