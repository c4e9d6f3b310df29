/* Small floats: every code is read as the definition says, and every float is rounded to the nearest code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/num.h"
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

/* The definition of a small float, in double: sign, exponent, mantissa. */
static double define(uint32_t code, int exp_bits, int man_bits)
{
    int bias = (1 << (exp_bits - 1)) - 1;
    int e = (int)(code >> man_bits & ((1u << exp_bits) - 1));
    double m = (double)(code & ((1u << man_bits) - 1)) / (1 << man_bits);
    double v = e ? ldexp(1 + m, e - bias) : ldexp(m, 1 - bias);
    return code >> (exp_bits + man_bits) ? -v : v;
}

static void every_half_is_read_exactly(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float v = ks_f16_to_f32((uint16_t)h);
        if ((h & 0x7c00) == 0x7c00)
            assert_true(h & 0x3ff ? isnan(v) : isinf(v) && (v < 0) == (h >> 15));
        else
            assert_true((double)v == define(h, 5, 10) && (signbit(v) != 0) == (h >> 15));
        if (!isnan(v)) assert_int_equal(ks_f32_to_f16(v), h); /* and written back */
    }
}

static void every_byte_float_is_read_exactly(void **state)
{
    (void)state;
    for (uint32_t b = 0; b < 256; b++) {
        float v = ks_f8e4m3_to_f32((uint8_t)b), w = ks_f8e5m2_to_f32((uint8_t)b), x = ks_e8m0_to_f32((uint8_t)b);
        if ((b & 0x7f) == 0x7f)
            assert_true(isnan(v));
        else
            assert_true((double)v == define(b, 4, 3) && (signbit(v) != 0) == (b >> 7));
        if (!isnan(v)) assert_int_equal(ks_f32_to_f8e4m3(v), b);
        if ((b & 0x7c) == 0x7c)
            assert_true(b & 3 ? isnan(w) : isinf(w) && (w < 0) == (b >> 7));
        else
            assert_true((double)w == define(b, 5, 2) && (signbit(w) != 0) == (b >> 7));
        assert_true(b == 255 ? isnan(x) : (double)x == ldexp(1, (int)b - 127));
        assert_true((double)ks_e2m1_to_f32((uint8_t)b) == define(b & 15, 2, 1));
    }
    assert_true(ks_f8e4m3_to_f32(0x7e) == 448.0f);
}

/* The nearest finite code's magnitude by search over all, ties to the even code; v >= 0. */
static uint32_t nearest(double v, const double *values, uint32_t n)
{
    uint32_t lo = 0, hi = n - 1; /* ascending */
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if (values[mid] <= v)
            lo = mid;
        else
            hi = mid;
    }
    double below = v - values[lo], above = values[hi] - v;
    return below < above || (below == above && !(lo & 1)) ? lo : hi;
}

/* All exponents, both signs, mantissas around every rounding boundary. */
static void check_rounding(uint32_t (*convert)(float), int exp_bits, int man_bits, uint32_t n_finite, uint32_t over)
{
    double *values = malloc((n_finite + 1) * sizeof *values);
    uint32_t sign_bit = 1u << (exp_bits + man_bits);
    assert_non_null(values);
    for (uint32_t i = 0; i <= n_finite; i++) values[i] = define(i, exp_bits, man_bits);
    for (uint32_t e = 0; e < 255; e++)
        for (uint32_t m = 0; m < 1u << 23; m += 509) {
            for (uint32_t near = 0; near < 4; near++) { /* also right at the places where ties lie */
                uint32_t mantissa = near ? ((m & ~0xfffu) + near - 2) & 0x7fffffu : m;
                float f = ks_f32_from_bits(e << 23 | mantissa);
                uint32_t want = nearest((double)f, values, n_finite + 1);
                if (want >= n_finite || (double)f > values[n_finite]) want = over;
                uint32_t got = convert(f), negative = convert(-f);
                if (got != want || negative != (want | sign_bit))
                    fail_msg("%.9g: %#x and %#x instead of %#x", (double)f, got, negative, want);
                if (near && (m & 0xfff) >= 509) break; /* once per boundary */
            }
        }
    free(values);
}

static uint32_t to_f16(float f)
{
    return ks_f32_to_f16(f);
}
static uint32_t to_f8(float f)
{
    return ks_f32_to_f8e4m3(f);
}

static void floats_round_to_the_nearest_half(void **state)
{
    (void)state;
    check_rounding(to_f16, 5, 10, 0x7c00, 0x7c00);
    assert_int_equal(ks_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(ks_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(ks_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(ks_f32_to_f16(-INFINITY), 0xfc00);
}

static void floats_round_to_the_nearest_e4m3_and_saturate(void **state)
{
    (void)state;
    check_rounding(to_f8, 4, 3, 0x7f, 0x7e);
    assert_int_equal(ks_f32_to_f8e4m3(1e30f), 0x7e);
    assert_int_equal(ks_f32_to_f8e4m3(-INFINITY), 0xfe);
    assert_int_equal(ks_f32_to_f8e4m3(0x1p-10f), 0); /* a tie to even */
    assert_int_equal(ks_f32_to_f8e4m3(0x1.000002p-10f), 1);
}

static void floats_round_to_the_nearest_bf16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7f80; h++) {
        uint32_t u = h << 16;
        assert_int_equal(ks_f32_to_bf16(ks_f32_from_bits(u)), h);
        assert_int_equal(ks_f32_to_bf16(ks_f32_from_bits(u | 0x7fff)), h);
        assert_int_equal(ks_f32_to_bf16(ks_f32_from_bits(u | 0x8000)), h + (h & 1));
        assert_int_equal(ks_f32_to_bf16(ks_f32_from_bits(u | 0x8001)), h + 1);
        assert_int_equal(ks_f32_to_bf16(ks_f32_from_bits(u | 0x80008001)), 0x8000 | (h + 1));
        assert_true(ks_bf16_to_f32((uint16_t)h) == ks_f32_from_bits(u));
    }
}

static void not_a_number_stays_one(void **state)
{
    (void)state;
    static const uint32_t nans[] = { 0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffffffff };
    for (size_t i = 0; i < 5; i++) {
        float f = ks_f32_from_bits(nans[i]);
        assert_true(isnan(ks_f16_to_f32(ks_f32_to_f16(f))));
        assert_true(isnan(ks_bf16_to_f32(ks_f32_to_bf16(f))));
        assert_true(isnan(ks_f8e4m3_to_f32(ks_f32_to_f8e4m3(f))));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_is_read_exactly),
        cmocka_unit_test(every_byte_float_is_read_exactly),
        cmocka_unit_test(floats_round_to_the_nearest_half),
        cmocka_unit_test(floats_round_to_the_nearest_e4m3_and_saturate),
        cmocka_unit_test(floats_round_to_the_nearest_bf16),
        cmocka_unit_test(not_a_number_stays_one),
    };
    return cmocka_run_group_tests_name("num", tests, NULL, NULL);
}
