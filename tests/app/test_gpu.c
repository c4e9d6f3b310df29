/* Which GPU the settings choose: a plugin of the test's own that lists two. */
#include "app/gpu.h"

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

static ks_device_iface iface; /* the CPU's, which is never called, but for list() */
static const ks_plugin plugin = { .size = sizeof plugin,
                                  .kind = KS_KIND_DEVICE,
                                  .name = "fake-gpu",
                                  .version = "1",
                                  .summary = "Lists GPUs",
                                  .license = "Apache-2.0",
                                  .score = 1000,
                                  .option_size = sizeof(ks_option),
                                  .iface = &iface };

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
    *o = (ks_engine_opts) { .step_tokens = 512, .model = &a->model };
    ok(ks_config_new(&a->config, err), err);
    for (size_t i = 0; i < n; i += 2)
        ok(ks_config_set(a->config, settings[i], settings[i + 1], KS_FROM_FLAG, "flag", err), err);
    ok(ks_registry_open(&ro, &a->registry, err), err);
    if (with_plugin) ok(ks_registry_add(a->registry, &plugin, "(test)", err), err);
    a->model.graph.n_layers = 24;
    return ks_app_choose_device(a, o, err);
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

static void the_cpu_is_the_device_where_no_gpu_is_asked_for_or_there(void **state)
{
    static const char *const cpu[] = { "device", "cpu" };
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    (void)state;
    ok(choose(cpu, 2, true, &o, &a, &err), &err);
    assert_ptr_equal(o.device, &ks_cpu_device_iface);
    assert_int_equal(o.step_tokens, 512);
    done(&a);
    ok(choose(NULL, 0, false, &o, &a, &err), &err);
    assert_ptr_equal(o.device, &ks_cpu_device_iface);
    done(&a);
}

static void a_gpu_takes_larger_steps_unless_the_user_says_otherwise(void **state)
{
    static const char *const dflt[] = { "device", "cuda" }, *const said[] = { "device", "cuda", "step-tokens", "512" };
    ks_app a;
    ks_err err;
    ks_engine_opts o;
    (void)state;
    ok(choose(dflt, 2, true, &o, &a, &err), &err);
    assert_int_equal(o.step_tokens, 2048);
    done(&a);
    ok(choose(said, 4, true, &o, &a, &err), &err);
    assert_int_equal(o.step_tokens, 512);
    done(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_choose_the_gpu),
        cmocka_unit_test(what_is_not_there_is_an_error),
        cmocka_unit_test(the_cpu_is_the_device_where_no_gpu_is_asked_for_or_there),
        cmocka_unit_test(a_gpu_takes_larger_steps_unless_the_user_says_otherwise),
    };
    iface = ks_cpu_device_iface;
    iface.list = list;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
