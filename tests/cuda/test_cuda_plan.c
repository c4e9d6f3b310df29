/* The memory plan of the CUDA device: it is what bind takes, to the byte, for every family and every way of streaming,
 * and known before weights are there; budgets hold; and what does not fit is said with all that would help. */
#include "on_emu.h"

#include <dirent.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN KS_SOURCE_DIR "/tests/golden"
#define MB(n) ((uint64_t)(n) << 20)

static uint32_t cold_calls;

static int set_up(void **state)
{
    (void)state;
    fx_use_device(choose);
    options.resident = -1;
    return 0;
}

static void open_model(fixture *f, const char *family, const uint32_t *types)
{
    char golden[512];
    ks_err err;
    (void)snprintf(golden, sizeof golden, GOLDEN "/%s", family);
    if (ks_golden_write(golden, "model", &err)) fail_msg("%s", err.msg);
    must(fx_open(f, "model", "ref", 1, KS_T_F32, types, &err), &err);
}

static ks_bind bind_of(const fixture *f, const ks_graph *g)
{
    return (ks_bind) { .size = sizeof(ks_bind),
                       .kv_type = f->kv_type,
                       .graph = g,
                       .op_end = g->n_ops,
                       .n_pages = FX_PAGES,
                       .page_tok = FX_PAGE_TOK,
                       .n_slots = FX_SLOTS,
                       .max_rows = FX_ROWS,
                       .max_out = FX_ROWS };
}

static ks_device_info card_of(void)
{
    ks_device_info card = { .size = sizeof card };
    ks_err err;
    must(cu_iface.list(&plugin, 0, &card, &err), &err);
    return card;
}

static uint64_t sum_of(const ks_device_plan *p)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < p->n_parts; i++) n += p->parts[i].bytes;
    return n;
}

/* Plans with weights and without their data, binds, and holds all three against what the device has given. */
static void check(fixture *f, const ks_bind *b, ks_device_plan *ret)
{
    ks_err err;
    ks_graph bare = *b->graph;
    ks_bind c = *b;
    ks_device_info card = card_of();
    ks_device_plan before = { .size = sizeof before };
    ks_device_stats s = { .size = sizeof s };
    ks_weight *w = calloc(bare.n_weights, sizeof *w);
    assert_non_null(w);
    for (uint32_t i = 0; i < bare.n_weights; i++) {
        w[i] = bare.weights[i];
        w[i].data = NULL;
    }
    bare.weights = w;
    c.graph = &bare;
    *ret = (ks_device_plan) { .size = sizeof *ret };
    must(cu_iface.plan(&plugin, &card, b, 0, ret, &err), &err);
    must(cu_iface.plan(&plugin, &card, &c, 0, &before, &err), &err);
    assert_memory_equal(ret, &before, sizeof before);
    assert_int_equal(sum_of(ret), ret->used_bytes);
    assert_true(ret->used_bytes <= ret->budget_bytes);
    must(cu_iface.bind(f->dev, b, &err), &err);
    must(cu_iface.stats(f->dev, &s, &err), &err);
    assert_int_equal(s.mem_bytes, ret->used_bytes);
    assert_int_equal(emu.held, ret->used_bytes - ret->parts[0].bytes); /* but for the context */
    free(w);
}

static void what_is_planned_is_what_bind_takes_for_every_family(void **state)
{
    static const uint32_t quantized[16] = {
        [KS_CLS_OTHER] = KS_T_BF16, [KS_CLS_EMBED] = KS_T_BF16,  [KS_CLS_NORM] = KS_T_BF16,
        [KS_CLS_ATTN] = KS_T_I8,    [KS_CLS_ROUTER] = KS_T_BF16, [KS_CLS_EXPERT] = KS_T_I4,
        [KS_CLS_SHARED] = KS_T_I8,  [KS_CLS_DENSE] = KS_T_I8,    [KS_CLS_HEAD] = KS_T_I8
    };
    DIR *d = opendir(GOLDEN);
    uint32_t n = 0;
    (void)state;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        fixture f;
        ks_device_plan p;
        char config[512];
        (void)snprintf(config, sizeof config, GOLDEN "/%.200s/config.json", e->d_name);
        if (access(config, R_OK)) continue;
        open_model(&f, e->d_name, n % 2 ? quantized : NULL);
        ks_bind b = bind_of(&f, &f.model.graph);
        check(&f, &b, &p);
        assert_int_equal(p.n_resident, p.n_experts);
        fx_close(&f);
        assert_int_equal(emu.held, 0);
        n++;
    }
    (void)closedir(d);
    print_message("  %u models\n", n);
    assert_true(n > 10);
}

static void every_way_of_streaming_has_its_ring_and_its_residents(void **state)
{
    static const struct {
        uint32_t stream, layers, ring, resident;
    } ways[] = { { KS_STREAM_AUTO, 0, 0, 16 },   { KS_STREAM_RESIDENT, 0, 0, 16 }, { KS_STREAM_GROUPS, 1, 8, 8 },
                 { KS_STREAM_GROUPS, 2, 16, 0 }, { KS_STREAM_GROUPS, 9, 16, 0 },   { KS_STREAM_CHUNKS, 0, 4, 12 } };
    fixture f;
    ks_device_plan p;
    ks_err err;
    (void)state;
    open_model(&f, "qwen3_moe", NULL);
    ks_bind b = bind_of(&f, &f.model.graph);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        b.stream = ways[i].stream;
        b.stream_layers = ways[i].layers;
        check(&f, &b, &p);
        assert_int_equal(p.n_experts, 16);
        assert_int_equal(p.n_ring, ways[i].ring);
        assert_int_equal(p.n_resident, ways[i].resident);
    }
    b.stream = KS_STREAM_GROUPS;
    b.stream_layers = 0;
    assert_int_equal(cu_iface.bind(f.dev, &b, &err), KS_E_INVAL);
    b.stream = 77;
    assert_int_equal(cu_iface.bind(f.dev, &b, &err), KS_E_INVAL);
    /* A host of before: the fields are not there, whatever lies behind. */
    b.size = offsetof(ks_bind, stream);
    must(cu_iface.bind(f.dev, &b, &err), &err);
    fx_close(&f);
}

/* Any budget: bind takes no more, or says what is missing. */
static void no_budget_is_exceeded(void **state)
{
    fixture f;
    ks_err err;
    uint32_t fits = 0, refused = 0;
    void *dev;
    (void)state;
    open_model(&f, "qwen3_moe", NULL);
    ks_bind b = bind_of(&f, &f.model.graph);
    ks_device_info card = card_of();
    cu_iface.close(f.dev);
    f.dev = NULL;
    for (uint64_t budget = MB(64); budget < MB(160); budget += 1357913) {
        ks_device_plan p = { .size = sizeof p };
        b.stream = (uint32_t)(budget / 1357913) % 4;
        b.stream_layers = 1;
        int rc = cu_iface.plan(&plugin, &card, &b, budget, &p, &err);
        assert_int_equal(p.budget_bytes, budget);
        emu.most = 0;
        must(cu_iface.open(&plugin, 0, budget, &dev, &err), &err);
        int rc2 = cu_iface.bind(dev, &b, &err);
        if (rc2 != rc) fail_msg("%d, not %d: %s", rc2, rc, err.msg);
        assert_true(emu.most + p.parts[0].bytes <= budget);
        if (rc) {
            assert_int_equal(rc, KS_E_LIMIT);
            assert_non_null(strstr(err.msg, "raise --vram-limit"));
            assert_int_equal(emu.most, 0); /* nothing was taken before it was known */
            refused++;
        } else {
            fits++;
        }
        cu_iface.close(dev);
    }
    print_message("  %u fit, %u refused\n", fits, refused);
    assert_true(fits > 10 && refused > 2);
    fx_close(&f);
}

static void all_experts_that_do_not_fit_are_told_by_the_missing_bytes(void **state)
{
    fixture f;
    ks_err err;
    ks_device_plan p = { .size = sizeof p };
    (void)state;
    open_model(&f, "qwen3_moe", NULL);
    ks_bind b = bind_of(&f, &f.model.graph);
    b.stream = KS_STREAM_RESIDENT;
    ks_device_info card = card_of();
    must(cu_iface.plan(&plugin, &card, &b, 0, &p, &err), &err);
    uint64_t enough = p.used_bytes;
    assert_int_equal(cu_iface.plan(&plugin, &card, &b, enough - MB(4), &p, &err), KS_E_LIMIT);
    const char *at = strstr(err.msg, "MB may be used, ");
    assert_non_null(at);
    uint64_t missing = (uint64_t)(strtod(at + strlen("MB may be used, "), NULL) * 1e6);
    must(cu_iface.plan(&plugin, &card, &b, enough - MB(4) + missing + 100000, &p, &err), &err);
    assert_int_equal(p.n_resident, p.n_experts);
    fx_close(&f);
}

static void a_card_that_is_not_here_can_be_planned_for(void **state)
{
    fixture f;
    ks_err err;
    ks_device_plan p = { .size = sizeof p };
    (void)state;
    open_model(&f, "qwen3_moe", NULL);
    ks_bind b = bind_of(&f, &f.model.graph);
    ks_device_info card = { .size = sizeof card, .mem_free_bytes = MB(8192), .cc_major = 8, .cc_minor = 6 };
    must(cu_iface.plan(NULL, &card, &b, 0, &p, &err), &err);
    assert_int_equal(p.parts[0].bytes, CU_CONTEXT_BYTES);
    assert_int_equal(p.n_resident, p.n_experts);
    card.cc_major = 7;
    assert_int_equal(cu_iface.plan(NULL, &card, &b, 0, &p, &err), KS_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "8.0 or newer is needed"));
    fx_close(&f);
}

static void count_cold(void *ctx, uint32_t op, uint32_t n_rows, const float *x, const int32_t *ids,
                       const float *weights, const uint8_t *keep, float *y)
{
    const ks_graph *g = ctx;
    (void)x, (void)ids, (void)weights, (void)keep;
    cold_calls++;
    memset(y, 0, (size_t)n_rows * g->weights[g->ops[op].w[1]].n_out * sizeof *y);
}

static uint32_t calls_of(fixture *f, uint32_t rows)
{
    static int32_t ids[FX_ROWS];
    ks_err err;
    fx_seq s = { .n = rows, .ids = ids };
    cold_calls = 0;
    must(fx_step(f, &s, 1, NULL, NULL, &err), &err);
    return cold_calls;
}

static void steps_of_few_rows_stream_nothing(void **state)
{
    fixture f;
    ks_err err;
    (void)state;
    open_model(&f, "qwen3_moe", NULL);
    ks_bind b = bind_of(&f, &f.model.graph);
    b.cold = count_cold;
    b.cold_ctx = &f.model.graph;
    options.resident = 0;
    b.share_rows = 40;
    must(cu_iface.bind(f.dev, &b, &err), &err);
    assert_int_equal(calls_of(&f, 39), 2); /* one a layer */
    assert_int_equal(calls_of(&f, 40), 0);
    b.share_rows = 1; /* never */
    must(cu_iface.bind(f.dev, &b, &err), &err);
    assert_int_equal(calls_of(&f, 1), 0);
    b.share_rows = 100000; /* always */
    must(cu_iface.bind(f.dev, &b, &err), &err);
    assert_int_equal(calls_of(&f, FX_ROWS), 2);
    b.share_rows = 0; /* the device's choice */
    must(cu_iface.bind(f.dev, &b, &err), &err);
    assert_int_equal(calls_of(&f, 1), 2);
    assert_int_equal(calls_of(&f, FX_ROWS), 0);
    options.resident = -1;
    fx_close(&f);
}

static void buffers_apart_are_as_good(void **state)
{
    fixture f;
    ks_err err;
    (void)state;
    options.apart = 1;
    open_model(&f, "qwen3_moe", NULL);
    assert_true(emu.n_blocks > 50);
    ks_bind b = bind_of(&f, &f.model.graph);
    must(cu_iface.bind(f.dev, &b, &err), &err); /* once more: nothing of the first is left */
    options.apart = 0;
    fx_close(&f);
    assert_int_equal(emu.held, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_planned_is_what_bind_takes_for_every_family),
        cmocka_unit_test(every_way_of_streaming_has_its_ring_and_its_residents),
        cmocka_unit_test(no_budget_is_exceeded),
        cmocka_unit_test(all_experts_that_do_not_fit_are_told_by_the_missing_bytes),
        cmocka_unit_test(a_card_that_is_not_here_can_be_planned_for),
        cmocka_unit_test(steps_of_few_rows_stream_nothing),
        cmocka_unit_test(buffers_apart_are_as_good),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
