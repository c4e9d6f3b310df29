/* The suite itself: a kernel that breaks one rule must be caught at that rule. Each bad kernel is the reference with
 * one fault; they act on the arguments that the suite made. */
#include "ks_kernel_suite.h"
#include "ref/ref.h"
#include "rows_under_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const ks_kernel *ref_row(uint32_t op, uint32_t wtype)
{
    return find_row(&ks_ref_plugin, op, wtype);
}

static void expect_broken(uint32_t op, uint32_t wtype, ks_kernel_fn bad, int rule, const char *text)
{
    char why[256];
    const ks_kernel *good = ref_row(op, wtype);
    ks_kernel row = *good;
    row.fn = bad;
    row.name = "bad";
    int rc = ks_kernel_suite_run(&row, good, 7, why, sizeof why);
    if (rc != rule || !strstr(why, text)) fail_msg("rule %d expected with '%s', got %d: %s", rule, text, rc, why);
}

static void rounds_wrongly(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_matmul_args *a = args;
    ref_row(KS_K_MATMUL, KS_T_I4)->fn(args, begin, end, scratch);
    for (uint32_t o = begin * 16; o < end * 16 && o < a->n_out; o++) a->y[o] *= 1.0000001f;
}

static void a_last_bit_of_an_integer_row_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_MATMUL, KS_T_I4, rounds_wrongly, KS_KRN_WRONG, "not the reference's bits");
}

static void scales_a_little(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_norm_args *a = args;
    ref_row(KS_K_NORM, 0)->fn(args, begin, end, scratch);
    for (uint32_t r = begin; r < end; r++)
        for (uint32_t i = 0; i < a->n; i++) a->y[r * a->y_stride + i] *= 1.00001f;
}

static void an_error_of_ten_parts_in_a_million_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_NORM, 0, scales_a_little, KS_KRN_WRONG, "relative error");
}

static void writes_padding_rows(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_matmul_args *a = args;
    ref_row(KS_K_MATMUL, KS_T_F32)->fn(args, begin, end, scratch);
    if (end * 16 > a->n_out) a->y[a->n_out] = 0;
}

static void a_write_beyond_the_last_real_row_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_MATMUL, KS_T_F32, writes_padding_rows, KS_KRN_OUTSIDE, "");
}

static void reads_one_more(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_norm_args *a = args;
    const volatile float *x = a->x;
    ref_row(KS_K_NORM, 0)->fn(args, begin, end, scratch);
    (void)x[(a->n_rows - 1) * a->x_stride + a->n];
}

static void a_read_beyond_an_input_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_NORM, 0, reads_one_more, KS_KRN_OUTSIDE, "1 bytes beyond its end");
}

static void clears_its_input(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_glu_args *a = args;
    ref_row(KS_K_GLU, 0)->fn(args, begin, end, scratch);
    *(float *)(uintptr_t)a->x = 0;
}

static void a_write_to_an_input_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_GLU, 0, clears_its_input, KS_KRN_OUTSIDE, "write to the input 'x'");
}

static void does_all_units_always(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_glu_args *a = args;
    (void)begin;
    (void)end;
    ref_row(KS_K_GLU, 0)->fn(args, 0, a->n_rows, scratch);
}

static void writing_units_of_others_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_GLU, 0, does_all_units_always, KS_KRN_OUTSIDE, "not theirs");
}

static void depends_on_begin(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_rope_args *a = args;
    ref_row(KS_K_ROPE, 0)->fn(args, begin, end, scratch);
    if (begin) a->x[begin * a->x_stride + a->rot_begin] *= 1.0000002f;
}

static void bits_that_depend_on_the_split_are_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_ROPE, 0, depends_on_begin, KS_KRN_SPLIT, "differ");
}

static void depends_on_rows(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_attn_args *a = args;
    ref_row(KS_K_ATTN, KS_T_F32)->fn(args, begin, end, scratch);
    if (a->n_rows > 1 && begin == 0 && end) a->o[0] *= 1.0000002f;
}

static void bits_that_depend_on_the_number_of_rows_are_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_ATTN, KS_T_F32, depends_on_rows, KS_KRN_SPLIT, "row 0 alone");
}

static void forgets_at_a_cut(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_delta_args *a = args;
    if (a->pos % 16)
        for (uint32_t h = begin; h < end; h++) a->state[h * ks_delta_floats(a->d_k, a->d_v)] *= 1.000001f;
    ref_row(KS_K_DELTA, 0)->fn(args, begin, end, scratch);
}

static void bits_that_depend_on_the_pieces_of_a_sequence_are_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_DELTA, 0, forgets_at_a_cut, KS_KRN_SPLIT, "pieces of up to 1 rows");
}

static void keeps_a_little_less(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_delta_args *a = args;
    float neg_a[64];
    ks_delta_args b = *a;
    for (uint32_t h = 0; h < a->n_v_heads; h++) neg_a[h] = a->neg_a[h] * 1.0001f;
    b.neg_a = neg_a;
    ref_row(KS_K_DELTA, 0)->fn(&b, begin, end, scratch);
}

static void a_decay_that_is_a_little_off_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_DELTA, 0, keeps_a_little_less, KS_KRN_WRONG, "relative error");
}

static void uses_scratch_it_did_not_ask_for(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    ref_row(KS_K_NORM, 0)->fn(args, begin, end, scratch);
    memset(scratch, 0, 64);
}

static void undeclared_scratch_is_seen(void **state)
{
    (void)state;
    expect_broken(KS_K_NORM, 0, uses_scratch_it_did_not_ask_for, KS_KRN_OUTSIDE, "scratch");
}

static void an_unknown_op_is_said_not_passed(void **state)
{
    char why[128];
    ks_kernel row = { .op = 999, .name = "future" };
    (void)state;
    assert_int_equal(ks_kernel_suite_run(&row, NULL, 1, why, sizeof why), -1);
    assert_string_equal(why, "future: : op 999 is unknown to this suite");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_last_bit_of_an_integer_row_is_seen),
        cmocka_unit_test(an_error_of_ten_parts_in_a_million_is_seen),
        cmocka_unit_test(a_write_beyond_the_last_real_row_is_seen),
        cmocka_unit_test(a_read_beyond_an_input_is_seen),
        cmocka_unit_test(a_write_to_an_input_is_seen),
        cmocka_unit_test(writing_units_of_others_is_seen),
        cmocka_unit_test(bits_that_depend_on_the_split_are_seen),
        cmocka_unit_test(bits_that_depend_on_the_number_of_rows_are_seen),
        cmocka_unit_test(bits_that_depend_on_the_pieces_of_a_sequence_are_seen),
        cmocka_unit_test(a_decay_that_is_a_little_off_is_seen),
        cmocka_unit_test(undeclared_scratch_is_seen),
        cmocka_unit_test(an_unknown_op_is_said_not_passed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
