/* The rows of plugin cpu-avx2, loaded as the host loads it, against the suite and the reference. */
#include "ks_kernel_suite.h"
#include "ref/ref.h"
#include "rows_under_test.h"

#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const ks_plugin *plugin; /* of the group's set-up */

static int load(void **state)
{
    (void)state;
    void *lib = dlopen(KS_BUILD_DIR "/plugins/cpu-avx2.so", RTLD_NOW | RTLD_LOCAL);
    if (lib) plugin = dlsym(lib, KS_PLUGIN_SYMBOL);
    if (!plugin) print_error("%s\n", dlerror());
    return plugin ? 0 : -1;
}

static void keeps_the_rules(uint32_t op, uint32_t wtype)
{
    char why[256];
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        print_message("skipped: this CPU lacks AVX2 or FMA\n");
        skip();
    }
    const ks_kernel *row = find_row(plugin, op, wtype), *ref = find_row(&ks_ref_plugin, op, wtype);
    assert_non_null(row);
    for (uint64_t seed = 1; seed <= 3; seed++)
        if (ks_kernel_suite_run(row, ref, seed, why, sizeof why) != 0) fail_msg("seed %u: %s", (unsigned)seed, why);
}

#define TEST(NAME, OP, TYPE)                         \
    static void NAME##_keeps_the_rules(void **state) \
    {                                                \
        (void)state;                                 \
        keeps_the_rules(OP, TYPE);                   \
    }
ROWS_UNDER_TEST(TEST)
#undef TEST

/* The largest error of a row's function of one number, in units of the last place of the result (of the smallest normal
 * float below it), over every 997th float of [-a, a]. */
static double worst_ulp(double (*want)(double), void (*get)(const float *x, float *y, uint32_t n), float a)
{
    enum { N = 1024 };
    float x[N], y[N];
    uint32_t last, n = 0;
    double worst = 0;
    memcpy(&last, &a, sizeof last);
    for (uint32_t bits = 0; bits <= last; bits += 997) {
        memcpy(&x[n], &bits, sizeof *x);
        x[n + 1] = -x[n];
        n += 2;
        if (n < N && bits + 997 <= last) continue;
        get(x, y, n);
        for (uint32_t i = 0; i < n; i++) {
            double w = want((double)x[i]), size = fmax(fabs(w), 0x1p-126);
            worst = fmax(worst, fabs((double)y[i] - w) / exp2(floor(log2(size)) - 23));
        }
        n = 0;
    }
    return worst;
}

static void act1(uint32_t act, const float *x, float *y, uint32_t n)
{
    float ones[1024];
    for (uint32_t i = 0; i < n; i++) ones[i] = 1;
    ks_mul_args a = { .size = sizeof a, .act = act, .n_rows = 1, .n = n, .n_y = n, .x = ones, .y = x, .z = y };
    find_row(plugin, KS_K_MUL, 0)->fn(&a, 0, 1, NULL);
}

static void get_sigmoid(const float *x, float *y, uint32_t n)
{
    act1(KS_ACT1_SIGMOID, x, y, n);
}

static void get_silu(const float *x, float *y, uint32_t n)
{
    act1(KS_ACT1_SILU, x, y, n);
}

static void get_root(const float *x, float *y, uint32_t n)
{
    ks_score_args a = { .size = sizeof a, .kind = KS_SCORE_SQRT_SOFTPLUS, .n_rows = 1, .n = n, .x = x, .y = y };
    find_row(plugin, KS_K_SCORE, 0)->fn(&a, 0, 1, NULL);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double root_of_softplus(double x)
{
    return sqrt(fmax(x, 0) + log1p(exp(-fabs(x))));
}

/* docs/numerics.md names these bounds. */
static void elementary_functions_are_within_their_bounds(void **state)
{
    (void)state;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        print_message("skipped: this CPU lacks AVX2 or FMA\n");
        skip();
    }
    double a = worst_ulp(sigmoid, get_sigmoid, 87), b = worst_ulp(silu, get_silu, 87),
           c = worst_ulp(root_of_softplus, get_root, 87);
    print_message("sigmoid %.2f, silu %.2f, root of softplus %.2f units of the last place\n", a, b, c);
    assert_true(a < 2.5 && b < 2.5 && c < 2.5);
}

static void the_descriptor_asks_for_every_feature_its_files_use(void **state)
{
    (void)state;
    assert_true(plugin->cpu_required == (KS_CPU(AVX2) | KS_CPU(FMA) | KS_CPU(F16C)));
    assert_string_equal(plugin->name, "cpu-avx2");
    assert_int_equal(plugin->kind, KS_KIND_KERNELS);
}

int main(void)
{
#define ENTRY(NAME, OP, TYPE) cmocka_unit_test(NAME##_keeps_the_rules),
    const struct CMUnitTest tests[] = {
        ROWS_UNDER_TEST(ENTRY) //
        cmocka_unit_test(elementary_functions_are_within_their_bounds),
        cmocka_unit_test(the_descriptor_asks_for_every_feature_its_files_use),
    };
    return cmocka_run_group_tests(tests, load, NULL);
}
