/* Two devices as one: two CPU devices, of which one pretends not to know some ops. Every family of tests/golden gives
 * the bits of the whole list on one device. */
#include "device/split_device.h"
#include "graph/fixture.h"
#include "support/golden_ckpt.h"

#include "base/base.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t unknown; /* bit k: main does not know ops of kind k; KS_OP_MUL is 14, so 31 bits are enough */
static uint32_t n_foreign;
static ks_device_iface main_iface;
static ks_split_ctx ctx;

static void must(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

static int lower(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err)
{
    int rc = ks_cpu_device_iface.lower(dev, g, kv_type, ret_ok, err);
    for (uint32_t i = 0; i < g->n_ops; i++)
        if (unknown >> g->ops[i].kind & 1u) ret_ok[i] = 0;
    return rc;
}

static const ks_graph *graph; /* bound */

static int bind(void *dev, const ks_bind *b, ks_err *err)
{
    graph = b->graph;
    return ks_cpu_device_iface.bind(dev, b, err);
}

static int run(void *dev, const ks_batch *b, uint32_t begin, uint32_t end, ks_err *err)
{
    for (uint32_t i = begin; i < end; i++) n_foreign += unknown >> graph->ops[i].kind & 1u;
    return ks_cpu_device_iface.run(dev, b, begin, end, err);
}

static int choose_split(fixture *f, ks_err *err)
{
    (void)err;
    main_iface = ks_cpu_device_iface;
    main_iface.lower = lower;
    main_iface.bind = bind;
    main_iface.run = run;
    ctx = (ks_split_ctx) {
        .main = &main_iface, .main_self = &f->cpu, .rest = &ks_cpu_device_iface, .rest_self = &f->cpu
    };
    f->iface = &ks_split_device_iface;
    f->device_self = &ctx;
    return 0;
}

typedef struct golden {
    ks_golden g;
    const char *name;
    float *want, *got;
    size_t floats;
} golden;

/* A prompt in one piece, then again in pieces, in another slot that was copied at half. */
static void run_all(const golden *g, fixture *f, float *out)
{
    ks_err err;
    uint32_t n = g->g.n_tok, v = g->g.n_vocab, half = n / 2;
    fx_seq s = { .n = n, .ids = g->g.ids };
    must(fx_step(f, &s, 1, out, NULL, &err), &err);
    s = (fx_seq) { .n = half, .ids = g->g.ids };
    must(fx_step(f, &s, 1, out + (size_t)n * v, NULL, &err), &err);
    must(f->iface->copy_slot(f->dev, 1, 0, &err), &err);
    for (uint32_t p = 0; p * FX_PAGE_TOK < half; p++)
        must(f->iface->copy_page(f->dev, fx_page(1, p), fx_page(0, p), &err), &err);
    s = (fx_seq) { .slot = 1, .pos = half, .n = n - half, .ids = g->g.ids + half };
    must(fx_step(f, &s, 1, out + (size_t)(n + half) * v, NULL, &err), &err);
}

static void same_bits_without(golden *g, uint32_t kinds)
{
    ks_err err;
    fixture f;
    uint32_t rest_ops = 0, moves = 0, seen = 0;
    unknown = kinds;
    n_foreign = 0;
    fx_use_device(choose_split);
    must(fx_open(&f, g->name, "ref", 1, KS_T_F32, NULL, &err), &err);
    fx_use_device(NULL);
    ks_split_counts(f.dev, &rest_ops, &moves, &seen);
    assert_int_equal(seen & ~kinds, 0);
    assert_true((rest_ops == 0) == (seen == 0));
    memset(g->got, 0, g->floats * sizeof *g->got);
    run_all(g, &f, g->got);
    assert_int_equal(n_foreign, 0);
    if (memcmp(g->got, g->want, g->floats * sizeof *g->got) != 0)
        fail_msg("%s has other bits with op kinds %#x on the second device", g->name, kinds);
    fx_close(&f);
}

#define KIND(K) (UINT32_C(1) << KS_OP_##K)

static void family(const char *name)
{
    static const uint32_t cuts[] = { 0,
                                     KIND(MLA) | KIND(INDEXER) | KIND(DELTA) | KIND(CONV),
                                     KIND(ATTN) | KIND(NORM),
                                     KIND(EXPERTS) | KIND(MUL),
                                     KIND(ROUTE) | KIND(ROPE) | KIND(SELECT),
                                     KIND(LINEAR) | KIND(EMBED) | KIND(TAP) | KIND(CLAMP),
                                     UINT32_MAX };
    golden g = { .name = name };
    ks_err err;
    fixture f;
    char path[512];
    (void)snprintf(path, sizeof path, "%s/tests/golden/%s", KS_SOURCE_DIR, name);
    must(ks_golden_write(path, name, &err), &err);
    must(ks_golden_expected(path, &g.g, &err), &err);
    g.floats = (size_t)2 * g.g.n_tok * g.g.n_vocab;
    g.want = calloc(g.floats, sizeof *g.want);
    g.got = calloc(g.floats, sizeof *g.got);
    assert_true(g.want && g.got);
    must(fx_open(&f, name, "ref", 1, KS_T_F32, NULL, &err), &err);
    run_all(&g, &f, g.want);
    fx_close(&f);
    for (size_t i = 0; i < KS_COUNT(cuts); i++) same_bits_without(&g, cuts[i]);
    free(g.want);
    free(g.got);
    ks_golden_fini(&g.g);
}

#define FAMILIES(X) \
    X(qwen3_moe)    \
    X(gpt_oss)      \
    X(deepseek_v2)  \
    X(deepseek_v32) \
    X(qwen3_next)   \
    X(llama4_text)  \
    X(lfm2_moe)     \
    X(phimoe)       \
    X(glm4_moe)

#define TEST(NAME)                                                    \
    static void NAME##_has_the_same_bits_on_two_devices(void **state) \
    {                                                                 \
        (void)state;                                                  \
        family(#NAME);                                                \
    }
FAMILIES(TEST)
#undef TEST

static int choose_old(fixture *f, ks_err *err)
{
    int rc = choose_split(f, err);
    main_iface.flags = 0;
    return rc;
}

static void a_device_that_knows_no_runs_gets_no_recurrent_state(void **state)
{
    ks_err err;
    fixture f;
    uint32_t rest_ops = 0, moves = 0, seen = 0;
    (void)state;
    must(ks_golden_write(KS_SOURCE_DIR "/tests/golden/qwen3_next", "qwen3_next", &err), &err);
    unknown = 0;
    fx_use_device(choose_old);
    must(fx_open(&f, "qwen3_next", "ref", 1, KS_T_F32, NULL, &err), &err);
    fx_use_device(NULL);
    ks_split_counts(f.dev, &rest_ops, &moves, &seen);
    assert_int_equal(seen, KIND(CONV) | KIND(DELTA));
    fx_close(&f);
}

/* ---- shared experts: main hands every odd one to the rest */

static ks_bind bound;
static uint32_t n_shared;

static int bind_shared(void *dev, const ks_bind *b, ks_err *err)
{
    bound = *b;
    return bind(dev, b, err);
}

static int run_experts(void *dev, const ks_batch *b, uint32_t i, ks_err *err)
{
    const ks_op *op = &graph->ops[i];
    const ks_reg *in = &graph->regs[op->in[0]], *out = &graph->regs[op->out[0]];
    uint32_t n = b->n_rows, k = op->u.mlp.k;
    struct {
        int32_t expert;
        float weight;
    } route[FX_ROWS * 16];
    static float x[FX_ROWS * 512], y[FX_ROWS * 512], cold[FX_ROWS * 512];
    int32_t ids[FX_ROWS * 16];
    float weights[FX_ROWS * 16];
    uint8_t keep[FX_ROWS * 16];
    assert_true(k <= 16 && in->width <= 512 && out->width <= 512);
    must(ks_cpu_device_iface.get(dev, (uint32_t)op->in[0], n, x, err), err);
    must(ks_cpu_device_iface.get(dev, (uint32_t)op->in[1], n, route, err), err);
    for (uint32_t p = 0; p < n * k; p++) {
        ids[p] = route[p].expert;
        weights[p] = route[p].weight;
        keep[p] = ids[p] % 2 != 0;
        n_shared += keep[p];
        if (keep[p]) route[p].expert = -1;
    }
    bound.cold(bound.cold_ctx, i, n, x, ids, weights, keep, cold);
    must(ks_cpu_device_iface.put(dev, (uint32_t)op->in[1], n, route, err), err);
    must(ks_cpu_device_iface.run(dev, b, i, i + 1, err), err);
    must(ks_cpu_device_iface.get(dev, (uint32_t)op->out[0], n, y, err), err);
    for (size_t c = 0; c < (size_t)n * out->width; c++) y[c] += cold[c];
    return ks_cpu_device_iface.put(dev, (uint32_t)op->out[0], n, y, err);
}

static int run_sharing(void *dev, const ks_batch *b, uint32_t begin, uint32_t end, ks_err *err)
{
    int rc = 0;
    for (uint32_t i = begin; i < end && !rc; i++)
        rc = graph->ops[i].kind == KS_OP_EXPERTS ? run_experts(dev, b, i, err)
                                                 : ks_cpu_device_iface.run(dev, b, i, i + 1, err);
    return rc;
}

static int choose_sharing(fixture *f, ks_err *err)
{
    int rc = choose_split(f, err);
    main_iface.bind = bind_shared;
    main_iface.run = run_sharing;
    ctx.share = 1;
    return rc;
}

static void experts_that_main_does_not_hold_are_computed_by_the_rest(void **state)
{
    golden g = { .name = "gpt_oss" }; /* with biases */
    ks_err err;
    fixture f;
    (void)state;
    must(ks_golden_write(KS_SOURCE_DIR "/tests/golden/gpt_oss", g.name, &err), &err);
    must(ks_golden_expected(KS_SOURCE_DIR "/tests/golden/gpt_oss", &g.g, &err), &err);
    g.floats = (size_t)2 * g.g.n_tok * g.g.n_vocab;
    g.want = calloc(g.floats, sizeof *g.want);
    g.got = calloc(g.floats, sizeof *g.got);
    assert_true(g.want && g.got);
    must(fx_open(&f, g.name, "ref", 1, KS_T_F32, NULL, &err), &err);
    run_all(&g, &f, g.want);
    fx_close(&f);
    unknown = 0;
    fx_use_device(choose_sharing);
    must(fx_open(&f, g.name, "ref", 1, KS_T_F32, NULL, &err), &err);
    fx_use_device(NULL);
    run_all(&g, &f, g.got);
    fx_close(&f);
    assert_true(n_shared > 0);
    for (size_t i = 0; i < g.floats; i++) /* another order of a row's sum: some units in the last place */
        if (!(g.want[i] - g.got[i] < 1e-4f && g.got[i] - g.want[i] < 1e-4f))
            fail_msg("logit %zu is %g, not %g", i, (double)g.got[i], (double)g.want[i]);
    free(g.want);
    free(g.got);
    ks_golden_fini(&g.g);
}

/* ---- errors, without a model */

static int lower_nothing(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err)
{
    (void)dev, (void)kv_type, (void)err;
    memset(ret_ok, 0, g->n_ops);
    return 0;
}

static void an_op_that_neither_device_knows_is_an_error(void **state)
{
    ks_device_iface none = ks_cpu_device_iface;
    ks_cpu_ctx cpu = { 0 };
    ks_split_ctx c = { .main = &none, .main_self = &cpu, .rest = &none, .rest_self = &cpu };
    ks_op op = { .kind = KS_OP_TAP, .in = { 0, -1, -1, -1, -1, -1 }, .out = { -1, -1 } };
    ks_reg reg = { .kind = KS_REG_F32, .width = 4 };
    ks_graph g = { .size = sizeof g, .n_ops = 1, .n_regs = 1, .ops = &op, .regs = &reg, .logits = -1 };
    ks_bind b = { .size = sizeof b, .kv_type = KS_T_F32, .graph = &g, .op_end = 1, .max_rows = 1, .page_tok = 16 };
    ks_err err;
    void *d;
    (void)state;
    none.lower = lower_nothing;
    must(ks_split_device_iface.open(&c, 0, 0, &d, &err), &err);
    assert_int_equal(ks_split_device_iface.bind(d, &b, &err), KS_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "op 0 (kind 16) can run on neither device"));
    ks_batch batch = { .size = sizeof batch };
    assert_int_equal(ks_split_device_iface.run(d, &batch, 0, 1, &err), KS_E_STATE);
    assert_int_equal(ks_split_device_iface.get(d, 0, 1, &batch, &err), KS_E_INVAL);
    assert_int_equal(ks_split_device_iface.place(d, NULL, 0, &err), KS_E_UNSUPPORTED);
    assert_int_equal(ks_split_device_iface.open(&c, 1, 0, &d, &err), KS_E_NOTFOUND);
    ks_split_device_iface.close(d);
    ks_split_device_iface.close(NULL);
}

static void an_unusable_main_device_says_why(void **state)
{
    ks_cpu_ctx cpu = { 0 };
    ks_split_ctx c = { .main = &ks_cpu_device_iface,
                       .main_self = &cpu,
                       .main_index = 7,
                       .rest = &ks_cpu_device_iface,
                       .rest_self = &cpu };
    ks_err err;
    void *d;
    (void)state;
    assert_int_equal(ks_split_device_iface.open(&c, 0, 0, &d, &err), KS_E_NOTFOUND);
    assert_string_equal(err.msg, "there is no CPU device 7");
}

int main(void)
{
#define ENTRY(NAME) cmocka_unit_test(NAME##_has_the_same_bits_on_two_devices),
    const struct CMUnitTest tests[] = {
        FAMILIES(ENTRY) //
        cmocka_unit_test(a_device_that_knows_no_runs_gets_no_recurrent_state),
        cmocka_unit_test(experts_that_main_does_not_hold_are_computed_by_the_rest),
        cmocka_unit_test(an_op_that_neither_device_knows_is_an_error),
        cmocka_unit_test(an_unusable_main_device_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
