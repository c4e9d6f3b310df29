/* Experts that come and go while the emulated GPU computes: with streams that are as late, as early and as mixed as
 * CUDA allows, and hostile changes between all steps, the bits are those of a device on which nothing changes. */
#include "device/split_device.h"
#include "on_emu.h"

#define STEPS 24u
#define SLOTS 3
#define FIXED 1e12 /* ns a byte: what is really measured does not move it */
#define SURE 1e30  /* more than all that is measured */

static uint64_t draw(uint64_t *x)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return *x >> 33;
}

/* Some changes, right or wrong: what there is no place for is an error and nothing else. */
static void change(fixture *f, uint64_t *x)
{
    const ks_graph *g = &f->model.graph;
    for (uint64_t n = draw(x) % 6; n > 0; n--) {
        ks_place c = { (uint32_t)(draw(x) % g->n_layers), (uint32_t)(draw(x) % g->n_experts), draw(x) % 2, 0 };
        ks_err err;
        int rc = f->iface->place(f->dev, &c, 1, &err);
        assert_true(rc == 0 || rc == KS_E_LIMIT);
        ks_device_stats s = { .size = sizeof s };
        must(f->iface->stats(f->dev, &s, &err), &err);
        assert_true(s.experts_resident <= SLOTS && s.expert_slots == SLOTS);
    }
}

/* Rows of steps that grow and shrink, so that streamed, resident and mixed steps follow each other. */
static void run(uint64_t seed, bool changing, const int32_t *ids, float *logits)
{
    static const uint32_t rows[] = { 5, 1, 1, 2, 1, 17, 1, 1 };
    ks_err err;
    fixture f;
    uint64_t x = seed;
    options = (cu_options) { .resident = SLOTS, .ring = 2, .in_place = seed % 3 ? 8 : 0 };
    must(fx_open(&f, "qwen3_moe", "ref", 1, KS_T_F32, NULL, &err), &err);
    emu_seed(seed);
    for (uint32_t i = 0, pos = 0; i < STEPS; i++) {
        fx_seq s = { .pos = pos, .n = rows[i % (sizeof rows / sizeof rows[0])], .ids = ids + pos };
        if (changing) change(&f, &x);
        must(fx_step(&f, &s, 1, logits + (size_t)pos * f.model.graph.n_vocab, NULL, &err), &err);
        pos += s.n;
    }
    uint64_t counts[256], pairs = 0;
    must(f.iface->heat(f.dev, counts, &err), &err);
    for (uint32_t i = 0; i < f.model.graph.n_layers * f.model.graph.n_experts; i++) pairs += counts[i];
    ks_device_stats s = { .size = sizeof s };
    must(f.iface->stats(f.dev, &s, &err), &err);
    assert_int_equal(pairs, s.experts_hot + s.experts_cold);
    assert_true(s.run_ns >= s.wait_ns);
    fx_close(&f);
}

static void hostile_changes_between_steps_change_no_bit(void **state)
{
    ks_golden g;
    ks_err err;
    (void)state;
    must(ks_golden_write(KS_SOURCE_DIR "/tests/golden/qwen3_moe", "qwen3_moe", &err), &err);
    must(ks_golden_expected(KS_SOURCE_DIR "/tests/golden/qwen3_moe", &g, &err), &err);
    int32_t ids[128];
    size_t bytes = sizeof(float) * 128 * g.n_vocab;
    for (uint32_t i = 0; i < 128; i++) ids[i] = g.ids[i % g.n_tok];
    float *want = calloc(1, bytes), *got = calloc(1, bytes);
    assert_true(want && got);
    fx_use_device(choose);
    run(0, false, ids, want);
    for (uint64_t seed = 0; seed < 12; seed++) {
        memset(got, 0, bytes);
        run(seed, true, ids, got);
        if (memcmp(want, got, bytes) != 0) fail_msg("other bits with seed %llu", (unsigned long long)seed);
    }
    free(want);
    free(got);
    ks_golden_fini(&g);
}

/* ---- cold experts shared between the host's cores and the link */

static ks_device_iface main_iface;
static ks_split_ctx split;
static cu_dev *gpu;
static uint32_t places = KS_PLACES_BY_RATE;
static uint64_t host_ns; /* of the last run, in experts that the host computed */
static bool alone;       /* steps that did without the host were the faster ones */

static int bind_by_rate(void *dev, const ks_bind *b, ks_err *err)
{
    ks_bind own = *b;
    own.host_places = places;
    own.share_rows = 100;
    gpu = dev;
    return cu_iface.bind(dev, &own, err);
}

static int choose_shared(fixture *f, ks_err *err)
{
    (void)err;
    main_iface = cu_iface;
    main_iface.bind = bind_by_rate;
    split = (ks_split_ctx) {
        .main = &main_iface, .main_self = &plugin, .rest = &ks_cpu_device_iface, .rest_self = &f->cpu, .share = 1
    };
    f->iface = &ks_split_device_iface;
    f->device_self = &split;
    return 0;
}

/* `ns` a byte of an expert, and so sure that what is measured counts for nothing. */
static struct cu_line line_through_0(double ns)
{
    const struct dev_bank *b = &gpu->ex.banks[0];
    double t = SURE * ns * (double)(b->gate_up_bytes + b->down_bytes);
    return (struct cu_line) { .w = 2 * SURE, .n = 4 * SURE, .nn = 10 * SURE, .t = 4 * t, .nt = 10 * t };
}

/* Logits of steps whose cold experts go over the link as far as the given costs of a byte say. Returns the bytes that
 * went to the device. */
static uint64_t run_shared(uint64_t seed, double link, double cpu, const int32_t *ids, float *logits)
{
    ks_err err;
    fixture f;
    ks_device_stats a = { .size = sizeof a }, b = { .size = sizeof b };
    options = (cu_options) { .resident = SLOTS, .ring = 3, .in_place = 8, .ahead = seed % 2 ? 8 : 0 };
    must(fx_open(&f, "qwen3_moe", "ref", 1, KS_T_F32, NULL, &err), &err);
    const ks_place one = { 0, 1, 1, 0 };
    must(f.iface->place(f.dev, &one, 1, &err), &err);
    emu_seed(seed);
    must(f.iface->stats(f.dev, &a, &err), &err);
    for (uint32_t i = 0, pos = 0; i < STEPS; i++) {
        fx_seq s = { .pos = pos, .n = 1 + i % 3, .ids = ids + pos };
        gpu->ex.share.link_ns = link; /* what was measured is of no use here */
        gpu->ex.share.host[0] = gpu->ex.share.host[1] = line_through_0(cpu);
        gpu->ex.share.n_chosen = 0;
        for (uint32_t k = 0; k < 4; k++)
            gpu->ex.share.way[k / 2][k % 2] = (struct cu_way) { k % 2 == alone ? 1 : 2, 100 };
        must(fx_step(&f, &s, 1, logits + (size_t)pos * f.model.graph.n_vocab, NULL, &err), &err);
        pos += s.n;
    }
    must(f.iface->stats(f.dev, &b, &err), &err);
    assert_true(b.experts_hot > 0 && b.experts_cold > 0);
    host_ns = b.cold_ns;
    fx_close(&f);
    return b.bytes_in - a.bytes_in;
}

static void cold_experts_come_over_the_link_as_far_as_rates_say(void **state)
{
    ks_golden g;
    ks_err err;
    (void)state;
    must(ks_golden_expected(KS_SOURCE_DIR "/tests/golden/qwen3_moe", &g, &err), &err);
    int32_t ids[128];
    size_t floats = (size_t)STEPS * 2 * g.n_vocab;
    for (uint32_t i = 0; i < 128; i++) ids[i] = g.ids[i % g.n_tok];
    float *z[3] = { calloc(floats, 4), calloc(floats, 4), calloc(floats, 4) };
    assert_true(z[0] && z[1] && z[2]);
    places = KS_PLACES_BY_RATE;
    fx_use_device(choose_shared);
    uint64_t none = run_shared(1, 0, 0, ids, z[0]);
    assert_int_equal(run_shared(2, 1e9, 1e-9, ids, z[1]), none); /* a link that is too slow */
    assert_memory_equal(z[0], z[1], floats * sizeof(float));
    assert_true(run_shared(3, FIXED, FIXED, ids, z[1]) > none);
    for (uint64_t seed = 0; seed < 6; seed++) { /* equal rates, equal bits, whenever copies land */
        (void)run_shared(seed, FIXED, FIXED, ids, z[2]);
        assert_memory_equal(z[1], z[2], floats * sizeof(float));
    }
    assert_true(host_ns > 0);
    alone = true; /* all come over the link, whatever rates say */
    assert_true(run_shared(6, FIXED, FIXED, ids, z[1]) > none);
    assert_int_equal(host_ns, 0);
    alone = false;
    (void)run_shared(4, 1e-9, 1, ids, z[2]); /* all come over the link */
    assert_int_equal(host_ns, 0);
    assert_memory_equal(z[1], z[2], floats * sizeof(float));
    for (size_t i = 0; i < floats; i++)
        for (uint32_t k = 1; k < 3; k++)
            if (!(z[k][i] - z[0][i] < 1e-4f && z[0][i] - z[k][i] < 1e-4f))
                fail_msg("logit %zu is %g, not %g", i, (double)z[k][i], (double)z[0][i]);
    places = KS_PLACES_HOST; /* who wants equal bits gets them: rates count for nothing */
    assert_int_equal(run_shared(5, 1e-9, 1, ids, z[2]), none);
    assert_memory_equal(z[0], z[2], floats * sizeof(float));
    fx_use_device(NULL);
    for (uint32_t k = 0; k < 3; k++) free(z[k]);
    ks_golden_fini(&g);
}

/* Both ways are measured, and then the faster is taken, but for one step in 64. */
static void the_faster_way_is_taken(void **state)
{
    ks_err err;
    fixture f;
    int32_t id = 1;
    uint32_t n[2] = { 0, 0 };
    (void)state;
    places = KS_PLACES_BY_RATE;
    fx_use_device(choose_shared);
    options = (cu_options) { .resident = SLOTS, .ring = 3, .in_place = 8 };
    must(fx_open(&f, "qwen3_moe", "ref", 1, KS_T_F32, NULL, &err), &err);
    float *logits = malloc(f.model.graph.n_vocab * sizeof *logits);
    assert_non_null(logits);
    struct cu_way *way = gpu->ex.share.way[0];
    for (uint32_t i = 0; i < 140; i++) {
        fx_seq s = { .n = 1, .ids = &id };
        if (i == 12) { /* whatever they took here */
            assert_true(way[0].n == 6 && way[1].n == 6 && way[0].ns > 0 && way[1].ns > 0);
            way[0].ns = 1e12;
            way[1].ns = 1e-3;
        }
        must(fx_step(&f, &s, 1, logits, NULL, &err), &err);
        if (i >= 12) n[gpu->ex.share.alone]++;
        if (i >= 12) way[0].ns = 1e12;
    }
    assert_int_equal(n[0], 2);
    free(logits);
    fx_close(&f);
    fx_use_device(NULL);
}

/* ---- when one of the two does not come */

static int one_row(fixture *f, ks_err *err)
{
    static const int32_t id = 1;
    float *logits = malloc(f->model.graph.n_vocab * sizeof *logits);
    assert_non_null(logits);
    fx_seq s = { .n = 1, .ids = &id };
    int rc = fx_step(f, &s, 1, logits, NULL, err);
    free(logits);
    return rc;
}

static int open_shared(fixture *f, ks_err *err)
{
    options = (cu_options) { .resident = 1, .ring = 2, .ahead = 8 };
    places = KS_PLACES_HOST;
    fx_use_device(choose_shared);
    emu.calls = 0;
    return fx_open(f, "qwen3_moe", "ref", 1, KS_T_F32, NULL, err);
}

static void a_host_that_comes_too_late_retires_the_device(void **state)
{
    ks_err err;
    fixture f;
    (void)state;
    emu_seed(1);
    must(open_shared(&f, &err), &err);
    must(one_row(&f, &err), &err);
    emu.impatient = true; /* the sum is made before the host has seen the offer */
    assert_int_equal(one_row(&f, &err), KS_E_DEVICE);
    assert_non_null(strstr(err.msg, "waiting for the host's experts failed"));
    emu.impatient = false;
    assert_int_equal(one_row(&f, &err), KS_E_DEVICE);
    fx_close(&f);
    fx_use_device(NULL);
}

/* The n-th call fails, or takes the device with it, for every n until none does: nobody waits for ever. */
static void every_failed_call_ends_the_wait(void **state)
{
    ks_err err;
    uint32_t failed = 0;
    (void)state;
    emu_seed(5);
    for (uint32_t lose = 0; lose < 2; lose++)
        for (uint32_t n = 20, more = 1; more; n += 3) {
            fixture f;
            emu.fail_at = n;
            emu.lose = lose;
            int rc = open_shared(&f, &err);
            if (!rc) rc = one_row(&f, &err);
            more = emu.calls >= n;
            failed += rc != 0;
            assert_true(rc <= 0 && (!rc || err.msg[0]));
            fx_close(&f);
            emu.lost = false;
        }
    emu.fail_at = 0;
    emu.lose = false;
    fx_use_device(NULL);
    print_message("  %u failures\n", failed);
    assert_true(failed > 60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_changes_between_steps_change_no_bit),
        cmocka_unit_test(a_host_that_comes_too_late_retires_the_device),
        cmocka_unit_test(every_failed_call_ends_the_wait),
        cmocka_unit_test(cold_experts_come_over_the_link_as_far_as_rates_say),
        cmocka_unit_test(the_faster_way_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
