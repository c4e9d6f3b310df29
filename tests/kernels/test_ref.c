/* The reference kernels against the suite's evaluation in double, and against numbers worked out by hand. */
#include "ks_kernel_suite.h"
#include "ref/ref.h"
#include "rows_under_test.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void keeps_the_rules(uint32_t op, uint32_t wtype)
{
    char why[256];
    const ks_kernel *row = find_row(&ks_ref_plugin, op, wtype);
    assert_non_null(row);
    if (ks_kernel_suite_run(row, row, 1, why, sizeof why) != 0) fail_msg("%s", why);
}

#define TEST(NAME, OP, TYPE)                         \
    static void NAME##_keeps_the_rules(void **state) \
    {                                                \
        (void)state;                                 \
        keeps_the_rules(OP, TYPE);                   \
    }
ROWS_UNDER_TEST(TEST)
#undef TEST

static const ks_kernel *ref_row(uint32_t op, uint32_t wtype)
{
    return find_row(&ks_ref_plugin, op, wtype);
}

static void quant_rounds_ties_to_even_and_sums_blocks(void **state)
{
    float x[64] = { 127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -127.0f };
    int8_t q[64];
    float scale;
    int32_t sum[2];
    ks_act act = { .q = q, .scale = &scale, .sum = sum, .q_stride = 64, .scale_stride = 1, .sum_stride = 2 };
    ks_quant_args a = { .size = sizeof a, .n_rows = 1, .n_in = 64, .x = x, .x_stride = 64, .out = &act };
    (void)state;
    x[63] = 3.0f;
    ref_row(KS_K_QUANT, 0)->fn(&a, 0, 1, NULL);
    static const int8_t want[7] = { 127, 0, 2, 2, 0, -2, -127 };
    assert_memory_equal(q, want, sizeof want);
    assert_int_equal(q[63], 3);
    assert_true(scale == 1.0f);
    assert_int_equal(sum[0], 2);
    assert_int_equal(sum[1], 3);
}

static void quant_marks_blocks_that_hold_nan(void **state)
{
    float x[256] = { [5] = NAN, [6] = 1.0f, [130] = 2.0f };
    int8_t q[256];
    float scale[2];
    int32_t sum[8];
    ks_act act = { .q = q, .scale = scale, .sum = sum, .q_stride = 256, .scale_stride = 2, .sum_stride = 8 };
    ks_quant_args a = { .size = sizeof a, .n_rows = 1, .n_in = 256, .x = x, .x_stride = 256, .out = &act };
    (void)state;
    ref_row(KS_K_QUANT, 0)->fn(&a, 0, 1, NULL);
    assert_true(isnan(scale[0]));
    assert_int_equal(q[6], 0);
    assert_true(scale[1] == 2.0f / 127.0f);
    assert_int_equal(q[130], 127);
}

static void nibbles_lie_where_the_layout_says(void **state)
{
    /* Row 3, columns 0..7 hold 1..8 in I4: bytes j have column j low and column 4 + j high, each plus 8. */
    static uint8_t strip[64 * 4 + 64];
    uint16_t one = 0x3f80, minus_two = 0xc000;
    ks_matmul_args a = {
        .size = sizeof a, .n_in = 32, .n_out = 16, .group = 32, .w = strip, .strip_bytes = sizeof strip
    };
    (void)state;
    memset(strip, 0x88, 64 * 4);
    for (uint32_t j = 0; j < 4; j++) strip[3 * 4 + j] = (uint8_t)((1 + j + 8) | (5 + j + 8) << 4);
    memcpy(strip + 64 * 4 + 2 * 3, &one, 2);
    strip[3 * 4 + 3] = (uint8_t)((4 + 8) | 0 << 4); /* column 7: -8 */
    for (uint32_t k = 0; k < 7; k++) assert_true(ks_ref_t16_get(&a, KS_T_I4, 3, k) == (float)(k + 1));
    assert_true(ks_ref_t16_get(&a, KS_T_I4, 3, 7) == -8.0f);
    memcpy(strip + 64 * 4 + 2 * 3, &minus_two, 2);
    assert_true(ks_ref_t16_get(&a, KS_T_I4, 3, 1) == -4.0f);
    assert_true(isnan(ks_ref_t16_get(&a, KS_T_F16, 3, 1))); /* no such type in T16 */
}

static void mxfp4_codes_have_their_values(void **state)
{
    static const float values[16] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6 };
    static uint8_t strip[64 * 4 + 64];
    ks_matmul_args a = {
        .size = sizeof a, .n_in = 32, .n_out = 16, .group = 32, .w = strip, .strip_bytes = sizeof strip
    };
    (void)state;
    strip[64 * 4] = 128; /* row 0: 2^1 */
    for (uint32_t k = 0; k < 16; k++) strip[k / 8 * 64 + k % 4] |= (uint8_t)(k << (k % 8 < 4 ? 0 : 4));
    for (uint32_t k = 0; k < 16; k++) assert_true(ks_ref_t16_get(&a, KS_T_MXFP4, 0, k) == 2 * values[k]);
}

static void rms_norm_of_three_four_is_known(void **state)
{
    float x[2] = { 3, 4 }, w[2] = { 1, 2 }, b[2] = { 0, 10 };
    ks_norm_args a = { .size = sizeof a, .kind = KS_NORM_L2, .n_rows = 1, .n = 2, .width = 2, .w_width = 2 };
    (void)state;
    a.x = a.y = x;
    a.weight = w;
    a.bias = b;
    ref_row(KS_K_NORM, 0)->fn(&a, 0, 1, NULL);
    assert_true(x[0] == 0.6f && x[1] == 11.6f);
}

static void rope_turns_by_the_angle(void **state)
{
    float x[4] = { 1, 0, 0, 1 }, inv_freq[1] = { 1.57079632679f };
    uint32_t pos[1] = { 1 };
    ks_rope_args a = {
        .size = sizeof a, .kind = KS_ROPE_INTER, .n_rows = 1, .n_heads = 2, .head_dim = 2, .rot_dim = 2
    };
    (void)state;
    a.mscale = 2;
    a.inv_freq = inv_freq;
    a.pos = pos;
    a.x = x;
    a.x_stride = 4;
    ref_row(KS_K_ROPE, 0)->fn(&a, 0, 1, NULL);
    assert_true(fabsf(x[0]) < 1e-6f && fabsf(x[1] - 2) < 1e-6f && fabsf(x[2] + 2) < 1e-6f && fabsf(x[3]) < 1e-6f);
}

static void attention_with_equal_scores_is_the_mean_of_the_values(void **state)
{
    float q[2] = { 0, 0 }, k[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, v[4] = { 1, 2, 6, 100 }, o[1], sink[1] = { 0 };
    uint32_t page[1] = { 0 };
    ks_attn_args a = {
        .size = sizeof a, .n_rows = 1, .n_heads = 1, .n_kv_heads = 1, .d_k = 2, .d_v = 1, .page_tok = 4
    };
    (void)state;
    a.pos = 2;
    a.scale = 1;
    a.q = q;
    a.o = o;
    a.pages = page;
    a.k = k;
    a.v = v;
    a.k_stride = 2;
    a.v_stride = 1;
    ref_row(KS_K_ATTN, KS_T_F32)->fn(&a, 0, 1, NULL);
    assert_true(o[0] == 3.0f);
    a.window = 2;
    ref_row(KS_K_ATTN, KS_T_F32)->fn(&a, 0, 1, NULL);
    assert_true(o[0] == 4.0f);
    a.sinks = sink; /* as much weight as a key, no value */
    ref_row(KS_K_ATTN, KS_T_F32)->fn(&a, 0, 1, NULL);
    assert_true(fabsf(o[0] - 8.0f / 3) < 1e-6f);
}

int main(void)
{
#define ENTRY(NAME, OP, TYPE) cmocka_unit_test(NAME##_keeps_the_rules),
    const struct CMUnitTest tests[] = {
        ROWS_UNDER_TEST(ENTRY) //
        cmocka_unit_test(quant_rounds_ties_to_even_and_sums_blocks),
        cmocka_unit_test(quant_marks_blocks_that_hold_nan),
        cmocka_unit_test(nibbles_lie_where_the_layout_says),
        cmocka_unit_test(mxfp4_codes_have_their_values),
        cmocka_unit_test(rms_norm_of_three_four_is_known),
        cmocka_unit_test(rope_turns_by_the_angle),
        cmocka_unit_test(attention_with_equal_scores_is_the_mean_of_the_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
