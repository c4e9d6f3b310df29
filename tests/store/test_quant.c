/* Quantization: errors as kernels need them, the layout by its definition, each group by itself. */
#include "util.h"
#include <math.h>

#define N_IN 512u
#define N_STRIPS 40u

static double uniform(uint64_t *s)
{
    *s += UINT64_C(0x9E3779B97F4A7C15);
    uint64_t z = *s;
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return ((double)((z ^ z >> 31) >> 11) + 0.5) / 9007199254740992.0;
}

static float gauss(uint64_t *s)
{
    return (float)(sqrt(-2 * log(uniform(s))) * cos(6.283185307179586 * uniform(s)));
}

/* Student's t with 6 degrees of freedom: heavier tails, as trained weights have. */
static float student(uint64_t *s)
{
    double chi = 0;
    for (int i = 0; i < 6; i++) {
        double g = gauss(s);
        chi += g * g;
    }
    return (float)(gauss(s) / sqrt(chi / 6));
}

/* Relative RMSE of N_STRIPS strips. */
static double rmse(uint32_t type, uint32_t group, float (*sample)(uint64_t *), float unit)
{
    static float x[16][N_IN];
    size_t bytes = ks_t16_strip_bytes(type, N_IN, group);
    uint8_t *dst = calloc(1, bytes);
    const float *rows[16];
    uint64_t seed = 1;
    double e = 0, all = 0;
    ks_weight w = { .type = type, .layout = KS_LAYOUT_T16, .group = group, .n_mat = 1, .n_out = 16, .n_in = N_IN };
    w.data = dst;
    for (uint32_t s = 0; s < N_STRIPS; s++) {
        for (uint32_t r = 0; r < 16; r++) {
            rows[r] = x[r];
            for (uint32_t k = 0; k < N_IN; k++) x[r][k] = sample(&seed) * unit;
        }
        ks_quant_strip(type, rows, N_IN, group, dst);
        for (uint32_t r = 0; r < 16; r++) {
            for (uint32_t k = 0; k < N_IN; k++) {
                double d = (double)x[r][k] - (double)util_get(&w, 0, r, k);
                e += d * d;
                all += (double)x[r][k] * (double)x[r][k];
            }
        }
    }
    free(dst);
    return sqrt(e / all);
}

static void int4_has_the_error_of_a_full_search(void **state)
{
    (void)state;
    double g128 = rmse(KS_T_I4, 128, gauss, 0.02f), g64 = rmse(KS_T_I4, 64, gauss, 0.02f);
    double g32 = rmse(KS_T_I4, 32, gauss, 0.02f), t128 = rmse(KS_T_I4, 128, student, 0.02f);
    print_message("INT4: g128 %.4f, g64 %.4f, g32 %.4f, g128 of t6 %.4f\n", g128, g64, g32, t128);
    assert_true(g128 < 0.0972 && g128 > 0.095);
    assert_true(g64 < 0.0903);
    assert_true(g32 < 0.0815);
    assert_true(t128 < 0.134);
}

static void int8_has_the_error_of_its_step(void **state)
{
    (void)state;
    double g = rmse(KS_T_I8, 128, gauss, 0.02f), t = rmse(KS_T_I8, 128, student, 0.02f);
    print_message("INT8: %.5f, of t6 %.5f\n", g, t);
    assert_true(g < 0.0067);
    assert_true(t < 0.0093);
}

static void the_error_does_not_depend_on_the_magnitude(void **state)
{
    (void)state;
    double one = rmse(KS_T_I4, 128, gauss, 1.0f);
    assert_true(fabs(rmse(KS_T_I4, 128, gauss, 0x1p-90f) - one) < 1e-9);
    assert_true(fabs(rmse(KS_T_I4, 128, gauss, 0x1p124f) - one) < 1e-9); /* squares would overflow a float */
}

/* Both types, whatever the values: |code| stays in range and the scale is finite. */
static void extreme_values_keep_codes_in_range(void **state)
{
    (void)state;
    static const float cases[][4] = {
        { 3.3e38f, -3.3e38f, 1, 0 }, { 1e-44f, -1e-44f, 0, 0 },    { 1, 1, 1, 1 },
        { -1, -1, -1, -1 },          { 0.00390625f, -1, 0.5f, 0 }, { 1e-30f, 1e30f, 0, -1e30f }
    };
    for (uint32_t type = KS_T_I8; type <= KS_T_I4; type++) {
        for (size_t c = 0; c < KS_COUNT(cases); c++) {
            float x[128];
            uint8_t dst[128 * 16 + 64];
            const float *rows[16] = { x };
            ks_weight w = {
                .type = type, .layout = KS_LAYOUT_T16, .group = 128, .n_out = 16, .n_in = 128, .data = dst
            };
            for (uint32_t k = 0; k < 128; k++) x[k] = cases[c][k % 4];
            ks_quant_strip(type, rows, 128, 128, dst);
            for (uint32_t k = 0; k < 128; k++) {
                float y = util_get(&w, 0, 0, k), amax = fabsf(cases[c][0]);
                for (int i = 1; i < 4; i++) amax = fmaxf(amax, fabsf(cases[c][i]));
                assert_true(isfinite(y));
                assert_true(fabsf(y - x[k]) <= amax * (type == KS_T_I4 ? 0.15f : 0.006f) || amax < 0x1p-100f);
                if (type == KS_T_I8) assert_true((int8_t)dst[k / 4 * 64 + k % 4] >= -127);
            }
        }
    }
}

static void values_that_int4_holds_come_back_exactly(void **state)
{
    (void)state;
    float x[128];
    const float *rows[16] = { x };
    uint8_t dst[64 * 16 + 64];
    ks_weight w = { .type = KS_T_I4, .layout = KS_LAYOUT_T16, .group = 128, .n_out = 16, .n_in = 128, .data = dst };
    for (int sign = -1; sign <= 1; sign += 2) {
        for (uint32_t k = 0; k < 128; k++) x[k] = (float)((int)(k % 16) - 8) * 0.03125f * (float)sign;
        ks_quant_strip(KS_T_I4, rows, 128, 128, dst);
        for (uint32_t k = 0; k < 128; k++) assert_true(util_get(&w, 0, 0, k) == x[k]);
    }
}

/* Changing one group leaves the bytes of all others alone: the one rule of quantization. */
static void a_value_depends_on_its_group_alone(void **state)
{
    (void)state;
    const size_t bytes = ks_t16_strip_bytes(KS_T_I4, N_IN, 128);
    static float x[16][N_IN];
    uint64_t seed = 5;
    uint8_t *a = calloc(1, bytes), *b = calloc(1, bytes);
    const float *rows[16];
    ks_weight w = { .type = KS_T_I4, .layout = KS_LAYOUT_T16, .group = 128, .n_out = 16, .n_in = N_IN };
    for (uint32_t r = 0; r < 16; r++) {
        rows[r] = x[r];
        for (uint32_t k = 0; k < N_IN; k++) x[r][k] = gauss(&seed);
    }
    ks_quant_strip(KS_T_I4, rows, N_IN, 128, a);
    for (uint32_t k = 256; k < 384; k++) x[3][k] *= -7.5f;
    for (uint32_t r = 8; r < 16; r++) rows[r] = NULL;
    ks_quant_strip(KS_T_I4, rows, N_IN, 128, b);
    for (uint32_t r = 0; r < 16; r++) {
        for (uint32_t k = 0; k < N_IN; k++) {
            w.data = b;
            float now = util_get(&w, 0, r, k);
            w.data = a;
            if (r >= 8)
                assert_true(now == 0.0f);
            else if (r != 3 || k < 256 || k >= 384)
                assert_true(now == util_get(&w, 0, r, k));
        }
    }
    free(a);
    free(b);
}

/* The padding of columns and rows reads as zero, for odd sizes and every type. */
static void padding_is_zero(void **state)
{
    (void)state;
    static const uint32_t types[] = { KS_T_F32, KS_T_BF16, KS_T_I8, KS_T_I4 };
    for (size_t t = 0; t < KS_COUNT(types); t++) {
        for (uint32_t n_in = 1; n_in < 200; n_in += 13) {
            const uint32_t n = ks_t16_n_in(n_in), group = t >= 2 ? ks_quant_group(n_in) : 0;
            size_t bytes = ks_t16_strip_bytes(types[t], n_in, group);
            uint8_t *dst = malloc(bytes + 64);
            float x[200];
            const float *rows[16] = { NULL };
            ks_weight w = { .type = types[t], .layout = KS_LAYOUT_T16, .group = group, .n_in = n_in, .data = dst };
            memset(dst, 0xa5, bytes + 64);
            for (uint32_t k = 0; k < n_in; k++) x[k] = util_value("p", k);
            rows[2] = x;
            ks_quant_strip(types[t], rows, n_in, group, dst);
            for (uint32_t r = 0; r < 16; r++) {
                for (uint32_t k = 0; k < n; k++) {
                    float want = r == 2 && k < n_in ? x[k] : 0.0f, has = util_get(&w, 0, r, k);
                    assert_true(t < 2 || want == 0 ? has == want : fabsf(has - want) < 0.13f);
                }
            }
            for (size_t i = bytes; i < bytes + 64; i++) assert_int_equal(dst[i], 0xa5);
            free(dst);
        }
    }
}

static void groups_are_the_largest_that_divide(void **state)
{
    (void)state;
    assert_int_equal(ks_quant_group(2048), 128);
    assert_int_equal(ks_quant_group(2880), 64);
    assert_int_equal(ks_quant_group(1408), 128);
    assert_int_equal(ks_quant_group(96), 32);
    assert_int_equal(ks_quant_group(100), 128);
    assert_int_equal(ks_quant_group(1), 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(int4_has_the_error_of_a_full_search),
        cmocka_unit_test(int8_has_the_error_of_its_step),
        cmocka_unit_test(the_error_does_not_depend_on_the_magnitude),
        cmocka_unit_test(extreme_values_keep_codes_in_range),
        cmocka_unit_test(values_that_int4_holds_come_back_exactly),
        cmocka_unit_test(a_value_depends_on_its_group_alone),
        cmocka_unit_test(padding_is_zero),
        cmocka_unit_test(groups_are_the_largest_that_divide),
    };
    return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
