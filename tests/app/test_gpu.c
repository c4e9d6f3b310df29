/* Which GPU the settings choose, and how much of it: a plugin of the test's own that lists two and plans as it is told.
 */
#include "app/gpu.h"

#include "app/load.h"

#include "base/base.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static uint32_t n_gpus = 2;

static int list(void *self, uint32_t i, ks_device_info *ret, ks_err *err)
{
    (void)self;
    if (i >= n_gpus) return ks_fail(err, KS_E_NOTFOUND, "there is no GPU %u", i);
    *ret = (ks_device_info) { .size = ret->size, .index = i, .name = "fake", .mem_free_bytes = 8000000000 };
    (void)snprintf(ret->uuid, sizeof ret->uuid, "GPU-12345678-1234-1234-1234-12345678901%u", i % 10);
    return 0;
}

/* A plan of 100 MB, so much a row of a step, and the KV cache; the experts get the rest. */
#define PER_ROW 200000u
#define EXPERT_BYTES 2000000u

static uint32_t n_experts;
static ks_bind bound; /* by the last plan that fitted */

static int plan(void *self, const ks_device_info *card, const ks_bind *b, uint64_t budget, ks_device_plan *ret,
                ks_err *err)
{
    (void)self;
    ks_device_plan p = { .size = ret->size, .n_parts = 1, .expert_bytes = EXPERT_BYTES, .n_experts = n_experts };
    p.budget_bytes = budget ? budget : card->mem_free_bytes;
    p.step_bytes = (uint64_t)b->max_rows * PER_ROW;
    p.used_bytes = 100000000 + p.step_bytes + (uint64_t)b->n_pages * b->page_tok * 1000;
    p.share_rows = b->cold ? b->share_rows : 0;
    const uint64_t left = p.budget_bytes > p.used_bytes ? (p.budget_bytes - p.used_bytes) / EXPERT_BYTES : 0;
    p.n_resident = (uint32_t)KS_MIN(left, (uint64_t)n_experts);
    *ret = p;
    if (p.used_bytes > p.budget_bytes || (b->stream == KS_STREAM_RESIDENT && left < n_experts))
        return ks_fail(err, KS_E_LIMIT, "%.1f MB are needed", (double)p.used_bytes / 1e6);
    bound = *b;
    return 0;
}

static ks_device_iface iface; /* the CPU's, which is never called, but for list() and plan() */
static ks_op ops[24];         /* a layer with experts each */
static const ks_state kv = { .kind = KS_STATE_KV, .k_width = 500, .v_width = 500 };
static const ks_plugin plugin = { .size = sizeof plugin,
                                  .kind = KS_KIND_DEVICE,
                                  .name = "fake-gpu",
                                  .version = "1",
                                  .summary = "Lists GPUs",
                                  .license = "Apache-2.0",
                                  .score = 1000,
                                  .option_size = sizeof(ks_option),
                                  .iface = &iface };

/* The same where no GPU is. */
static int no_driver(const ks_host *h, const void *opts, ks_probe *ret, ks_err *err)
{
    (void)h, (void)opts, (void)ret;
    return ks_fail(err, KS_E_DEVICE, "no driver");
}

static const ks_plugin refused = { .size = sizeof refused,
                                   .kind = KS_KIND_DEVICE,
                                   .name = "fake-gpu",
                                   .version = "1",
                                   .summary = "Finds no GPU",
                                   .license = "Apache-2.0",
                                   .score = 1000,
                                   .option_size = sizeof(ks_option),
                                   .iface = &iface,
                                   .probe = no_driver };

static void ok(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

/* The device that settings "name=value" lead to; its index, or the error in err. */
static int choose(const char *const *settings, size_t n, bool with_plugin, ks_engine_opts *o, ks_app *a, ks_err *err)
{
    ks_registry_opts ro = { .cpu = ks_cpu_features(), .n_threads = 1 };
    *a = (ks_app) { 0 };
    *err = (ks_err) { 0 };
    ok(ks_config_new(&a->config, err), err);
    for (size_t i = 0; i < n; i += 2)
        ok(ks_config_set(a->config, settings[i], settings[i + 1], KS_FROM_FLAG, "flag", err), err);
    ok(ks_registry_open(&ro, &a->registry, err), err);
    if (with_plugin) ok(ks_registry_add(a->registry, &plugin, "(test)", err), err);
    for (uint32_t i = 0; i < KS_COUNT(ops); i++) ops[i].kind = KS_OP_EXPERTS;
    a->model.graph =
        (ks_graph) { .n_layers = 24, .n_ctx = 32768, .ops = ops, .n_ops = 24, .states = &kv, .n_states = 1 };
    *o = ks_app_engine_opts(a, 32768);
    int rc = ks_gpu_precision(a, err);
    return rc ? rc : ks_gpu_choose(a, o, err);
}

static void done(ks_app *a)
{
    ks_registry_close(a->registry);
    ks_config_free(a->config);
}

static void expect_gpu(const char *const *settings, size_t n, uint32_t index, uint64_t budget)
{
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    ok(choose(settings, n, true, &o, &a, &err), &err);
    assert_ptr_equal(o.device, &ks_split_device_iface);
    assert_int_equal(a.split.main_index, index);
    assert_int_equal(a.split.main_budget, budget);
    done(&a);
}

static void expect_error(const char *const *settings, size_t n, const char *what)
{
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    assert_int_not_equal(choose(settings, n, true, &o, &a, &err), 0);
    if (!strstr(err.msg, what)) fail_msg("'%s' does not say '%s'", err.msg, what);
    done(&a);
}

#define EXPECT_GPU(INDEX, BUDGET, ...)                                                                                \
    expect_gpu((const char *const[]) { __VA_ARGS__ }, sizeof((const char *const[]) { __VA_ARGS__ }) / sizeof(char *), \
               INDEX, BUDGET)
#define EXPECT_ERROR(WHAT, ...)                         \
    expect_error((const char *const[]) { __VA_ARGS__ }, \
                 sizeof((const char *const[]) { __VA_ARGS__ }) / sizeof(char *), WHAT)

static void settings_choose_the_gpu(void **state)
{
    (void)state;
    EXPECT_GPU(0, 0, "device", "cuda");
    EXPECT_GPU(1, 0, "device", "hybrid", "selected-gpus", "1");
    EXPECT_GPU(1, 0, "device", "cuda", "selected-gpus", "GPU-12345678-1234-1234-1234-123456789011");
    EXPECT_GPU(0, 8ull << 30, "device", "cuda", "vram-limit", "8G", "num-gpus", "1");
    EXPECT_GPU(0, 0, "device", "cuda", "pp-partition", "24");
    EXPECT_GPU(0, 0, "device", "auto");
    EXPECT_GPU(0, 0, "log-level", "info"); /* auto is the default */
}

static void what_is_not_there_is_an_error(void **state)
{
    (void)state;
    EXPECT_ERROR("--num-gpus 3: 2 GPUs can be used", "device", "cuda", "num-gpus", "3");
    EXPECT_ERROR("--num-gpus 2: one GPU at a time is supported", "device", "cuda", "num-gpus", "2");
    EXPECT_ERROR("--selected-gpus 0,5: 1 of them exist among 2 GPUs", "device", "cuda", "selected-gpus", "0,5");
    EXPECT_ERROR("--pp-partition 12,12: one GPU is used, so it must be 24", "device", "cuda", "pp-partition", "12,12");
    n_gpus = 0;
    EXPECT_ERROR("lists no GPU", "device", "cuda");
    n_gpus = 2;
}

static void expect_cpu(const char *const *settings, size_t n, bool with_plugin)
{
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    ok(choose(settings, n, with_plugin, &o, &a, &err), &err);
    assert_ptr_equal(o.device, &ks_cpu_device_iface);
    assert_int_equal(o.step_tokens, 512);
    assert_int_equal(o.kv_bytes, 0);
    done(&a);
}

static void the_cpu_is_the_device_where_no_gpu_is_asked_for_or_there(void **state)
{
    static const char *const cpu[] = { "device", "cpu" };
    (void)state;
    expect_cpu(cpu, 2, true);
    expect_cpu(NULL, 0, false);
    n_gpus = 0;
    expect_cpu(NULL, 0, true);
    n_gpus = 2;
}

static void a_gpu_that_is_too_small_is_an_error_only_for_those_who_insist(void **state)
{
    static const char *const small[] = { "vram-limit", "128M" };
    (void)state;
    expect_cpu(small, 2, true);
    EXPECT_ERROR("MB are needed", "device", "cuda", "vram-limit", "128M");
    EXPECT_ERROR("MB are needed", "device", "hybrid", "vram-limit", "128M");
    /* What can never be right is one always. */
    EXPECT_ERROR("give one of the two", "expert-divisor", "2", "layer-group-size", "3");
    EXPECT_ERROR("--num-gpus 2: one GPU at a time is supported", "num-gpus", "2");
}

/* Rows of a step and bytes of the KV cache that are chosen. */
static void expect_step(uint32_t rows, uint64_t kv_bytes, const char *const *settings, size_t n)
{
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    ok(choose(settings, n, true, &o, &a, &err), &err);
    assert_int_equal(o.step_tokens, rows);
    if (kv_bytes) assert_int_equal(o.kv_bytes, kv_bytes);
    done(&a);
}

#define EXPECT_STEP(ROWS, KV, ...)                               \
    expect_step(ROWS, KV, (const char *const[]) { __VA_ARGS__ }, \
                sizeof((const char *const[]) { __VA_ARGS__ }) / sizeof(char *))

#define ONE_CONTEXT ((32768u + 256u) * 1000u) /* bytes, in FP8 */

static void steps_are_as_large_as_pays_and_as_small_as_must_be(void **state)
{
    (void)state;
    n_experts = 0; /* all stay: more rows have no use */
    EXPECT_STEP(2048, 1000000000, "device", "cuda");
    n_experts = 100000; /* they do not: an eighth of 8 GB is 5000 rows */
    EXPECT_STEP(4096, 1000000000, "device", "cuda");
    EXPECT_STEP(8192, 0, "device", "cuda", "vram-limit", "16G");
    EXPECT_STEP(2048, ONE_CONTEXT, "device", "cuda", "vram-limit",
                "540M"); /* 100 + 410 + 34: no eighth for the cache */
    EXPECT_STEP(1024, 0, "device", "cuda", "vram-limit", "400M");
    EXPECT_STEP(256, 0, "device", "cuda", "vram-limit", "180M");
    EXPECT_STEP(512, 0, "device", "cuda", "step-tokens", "512");
    EXPECT_STEP(2048, 100u << 20, "device", "cuda", "vram-limit", "700M", "kv-cache-mb", "100");
    EXPECT_ERROR("MB are needed", "device", "cuda", "vram-limit", "400M", "step-tokens", "2048");
    EXPECT_ERROR("MB are needed", "device", "cuda", "vram-limit", "180M", "kv-cache-mb", "100");
    n_experts = 0;
}

static void expect_stream(uint32_t stream, uint32_t layers, uint32_t share_rows, bool cold, const char *const *settings,
                          size_t n)
{
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    ok(choose(settings, n, true, &o, &a, &err), &err);
    assert_int_equal(bound.stream, stream);
    assert_int_equal(bound.stream_layers, layers);
    assert_int_equal(bound.share_rows, share_rows);
    assert_true((bound.cold != NULL) == cold);
    assert_int_equal(o.stream, stream);
    assert_int_equal(o.stream_layers, layers);
    assert_int_equal(o.share_rows, share_rows);
    done(&a);
}

#define EXPECT_STREAM(STREAM, LAYERS, ROWS, COLD, ...)                               \
    expect_stream(STREAM, LAYERS, ROWS, COLD, (const char *const[]) { __VA_ARGS__ }, \
                  sizeof((const char *const[]) { __VA_ARGS__ }) / sizeof(char *))

static void the_ways_experts_travel_reach_the_device(void **state)
{
    (void)state;
    n_experts = 100;
    EXPECT_STREAM(KS_STREAM_AUTO, 0, 300, true, "device", "hybrid");
    EXPECT_STREAM(KS_STREAM_AUTO, 0, 300, false, "device", "cuda");
    EXPECT_STREAM(KS_STREAM_CHUNKS, 0, 300, true, "expert-divisor", "0");
    EXPECT_STREAM(KS_STREAM_RESIDENT, 0, 300, true, "expert-divisor", "1");
    EXPECT_STREAM(KS_STREAM_GROUPS, 12, 300, true, "expert-divisor", "2");
    EXPECT_STREAM(KS_STREAM_GROUPS, 4, 300, true, "expert-divisor", "7");
    EXPECT_STREAM(KS_STREAM_GROUPS, 1, 300, true, "expert-divisor", "4096");
    EXPECT_STREAM(KS_STREAM_GROUPS, 5, 300, true, "layer-group-size", "5");
    EXPECT_STREAM(KS_STREAM_GROUPS, 24, 300, true, "layer-group-size", "99");
    EXPECT_STREAM(KS_STREAM_AUTO, 0, 1, true, "gpu-prefill-threshold", "1");
    EXPECT_STREAM(KS_STREAM_AUTO, 0, 5000, true, "gpu-prefill-threshold", "5000");
    n_experts = 100000;
    EXPECT_ERROR("MB are needed", "device", "cuda", "expert-divisor", "1");
    n_experts = 0;
}

static void expect_bits(int64_t bits, bool with_plugin, const char *const *settings, size_t n)
{
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    ks_store_opts so = { 0 };
    ok(choose(settings, n, with_plugin, &o, &a, &err), &err);
    ks_app_types(&a, &so);
    assert_int_equal(so.type[KS_CLS_EXPERT], bits == 4 ? KS_T_I4 : bits == 8 ? KS_T_I8 : KS_T_BF16);
    done(&a);
}

#define EXPECT_BITS(BITS, PLUGIN, ...)                               \
    expect_bits(BITS, PLUGIN, (const char *const[]) { __VA_ARGS__ }, \
                sizeof((const char *const[]) { __VA_ARGS__ }) / sizeof(char *))

static void one_precision_holds_for_both_where_both_compute(void **state)
{
    (void)state;
    EXPECT_BITS(4, true, "device", "hybrid");
    EXPECT_BITS(8, true, "device", "hybrid", "cpu-expert-bits", "8");
    EXPECT_BITS(8, true, "gpu-expert-bits", "8");
    EXPECT_BITS(16, true, "gpu-expert-bits", "16", "cpu-expert-bits", "16");
    EXPECT_BITS(8, true, "device", "cuda", "gpu-expert-bits", "8", "cpu-expert-bits", "4");
    EXPECT_BITS(8, true, "device", "cuda", "cpu-expert-bits", "8"); /* nothing else was said */
    EXPECT_BITS(4, true, "device", "cpu", "gpu-expert-bits", "8");
    EXPECT_BITS(4, false, "gpu-expert-bits", "8"); /* no GPU: the CPU's */
    EXPECT_ERROR("GPU and CPU compute from the same bytes", "device", "hybrid", "gpu-expert-bits", "4",
                 "cpu-expert-bits", "8");
    EXPECT_ERROR("GPU and CPU compute from the same bytes", "gpu-expert-bits", "8", "cpu-expert-bits", "4");
}

static void without_a_gpu_a_plan_describes_one(void **state)
{
    static const char *const sized[] = { "device", "hybrid", "vram-limit", "16G" }, *const open[] = { "device",
                                                                                                      "hybrid" };
    ks_app a = { 0 };
    ks_err err = { 0 };
    ks_gpu g;
    (void)state;
    for (int i = 0; i < 2; i++) {
        ks_registry_opts ro = { .cpu = ks_cpu_features(), .n_threads = 1 };
        ok(ks_config_new(&a.config, &err), &err);
        for (size_t k = 0; k < (i ? 2u : 4u); k += 2)
            ok(ks_config_set(a.config, (i ? open : sized)[k], (i ? open : sized)[k + 1], KS_FROM_FLAG, "flag", &err),
               &err);
        ok(ks_registry_open(&ro, &a.registry, &err), &err);
        ok(ks_registry_add(a.registry, &refused, "(test)", &err), &err);
        int rc = ks_gpu_find(&a, true, &g, &err);
        if (i == 0) {
            ok(rc, &err);
            assert_true(g.described && g.plugin && g.iface && g.iface->plan);
            assert_int_equal(g.card.mem_total_bytes, 16ull << 30);
        } else {
            assert_int_equal(rc, KS_E_CONFIG);
            assert_non_null(strstr(err.msg, "--vram-limit SIZE plans for a card of that size"));
        }
        assert_int_equal(ks_gpu_find(&a, false, &g, &err), KS_E_CONFIG);
        assert_non_null(strstr(err.msg, "use --device cpu or auto"));
        assert_null(g.plugin);
        done(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_choose_the_gpu),
        cmocka_unit_test(what_is_not_there_is_an_error),
        cmocka_unit_test(the_cpu_is_the_device_where_no_gpu_is_asked_for_or_there),
        cmocka_unit_test(a_gpu_that_is_too_small_is_an_error_only_for_those_who_insist),
        cmocka_unit_test(steps_are_as_large_as_pays_and_as_small_as_must_be),
        cmocka_unit_test(the_ways_experts_travel_reach_the_device),
        cmocka_unit_test(one_precision_holds_for_both_where_both_compute),
        cmocka_unit_test(without_a_gpu_a_plan_describes_one),
    };
    iface = ks_cpu_device_iface;
    iface.list = list;
    iface.plan = plan;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
