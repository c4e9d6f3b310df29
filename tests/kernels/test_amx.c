/* The AMX rows of cpu-avx512, compiled with tiles in software (amx_emulated.h), against the suite: so they are tested
 * on every CPU with AVX-512 and VBMI. */
#include "ks_kernel_suite.h"
#include "ref/ref.h"
#include "rows_under_test.h"

#include "../../plugins/cpu-avx512/rows.h"
#include "cpu/cpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void keeps_the_rules(uint32_t op, uint32_t wtype, ks_kernel_fn fn, uint32_t scratch_bytes, uint32_t flags)
{
    char why[256];
    if (KS_AMX_TEST_NEEDS & ~ks_cpu_features()) {
        print_message("skipped: this CPU lacks %s\n",
                      ks_cpu_names(KS_AMX_TEST_NEEDS & ~ks_cpu_features(), why, sizeof why));
        skip();
    }
    const ks_kernel *ref = find_row(&ks_ref_plugin, op, wtype);
    ks_kernel row = *ref;
    row.name = "emulated";
    row.fn = fn;
    row.scratch_bytes = scratch_bytes;
    row.flags = flags;
    for (uint64_t seed = 1; seed <= (KS_TEST_ALL ? 3 : 1); seed++)
        if (ks_kernel_suite_run(&row, ref, seed, why, sizeof why) != 0) fail_msg("seed %u: %s", (unsigned)seed, why);
}

static void attention_over_bf16_keeps_the_rules(void **state)
{
    (void)state;
    keeps_the_rules(KS_K_ATTN, KS_T_BF16, attn_bf16_amx, ATTN_AMX_SCRATCH_BYTES, KS_KF_SPANS);
}

static void attention_over_f8e4m3_keeps_the_rules(void **state)
{
    (void)state;
    keeps_the_rules(KS_K_ATTN, KS_T_F8E4M3, attn_f8e4m3_amx, ATTN_AMX_SCRATCH_BYTES, KS_KF_SPANS);
}

/* 40 rows of 4 heads of 64 over one kv head; a value of key 20 and one of key 39 are not finite: rows before these must
 * not notice, though tiles multiply them by 0. */
#define ROWS 40u
#define HEADS 4u
#define D 64u

typedef struct attention {
    float q[ROWS * HEADS * D], o[ROWS * HEADS * D];
    uint8_t k[64 * D * 2], v[64 * D * 2];
} attention;

static void attend(const ks_kernel *row, attention *a, void *scratch)
{
    const uint32_t page = 0, size = ks_type_bits(row->wtype) / 8;
    ks_attn_args args = { .size = sizeof args, .n_rows = ROWS, .n_heads = HEADS, .n_kv_heads = 1, .d_k = D, .d_v = D };
    args.page_tok = 64;
    args.scale = 0.125f;
    args.q = a->q;
    args.o = a->o;
    args.q_stride = args.o_stride = (size_t)HEADS * D;
    args.pages = &page;
    args.k = a->k;
    args.v = a->v;
    args.k_stride = args.v_stride = D;
    args.k_page_bytes = args.v_page_bytes = (size_t)64 * D * size;
    row->fn(&args, 0, ROWS, scratch);
}

static void put_value(attention *a, uint32_t wtype, uint32_t key, uint32_t column, uint16_t bf16)
{
    if (wtype == KS_T_BF16)
        memcpy(a->v + 2 * (key * D + column), &bf16, sizeof bf16);
    else
        a->v[key * D + column] = 0xff; /* its NaN */
}

static void values_that_are_not_finite_concern_who_sees_them(uint32_t wtype, ks_kernel_fn fn)
{
    static attention want, got;
    const ks_kernel *ref = find_row(&ks_ref_plugin, KS_K_ATTN, wtype);
    const ks_kernel row = { .wtype = wtype, .fn = fn };
    void *scratch = aligned_alloc(64, ATTN_AMX_SCRATCH_BYTES);
    if (KS_AMX_TEST_NEEDS & ~ks_cpu_features()) skip();
    assert_non_null(scratch);
    for (uint32_t i = 0; i < ROWS * HEADS * D; i++) want.q[i] = (float)(i * 37 % 101) * 0.02f - 1.0f;
    for (uint32_t i = 0; i < sizeof want.k; i++) {
        want.k[i] = (uint8_t)(i * 29 % 64); /* small numbers of either type */
        want.v[i] = (uint8_t)(i * 31 % 64);
    }
    put_value(&want, wtype, 20, 3, 0xff80); /* -infinity */
    put_value(&want, wtype, 39, 3, 0x7f80); /* infinity: together NaN */
    put_value(&want, wtype, 39, 50, 0x7fc0);
    uint32_t n_odd = 0;
    got = want;
    attend(ref, &want, scratch);
    attend(&row, &got, scratch);
    for (uint32_t i = 0; i < ROWS * HEADS * D; i++) {
        uint32_t r = i / (HEADS * D), c = i % D;
        if (isfinite(want.o[i])) {
            assert_true(fabsf(got.o[i] - want.o[i]) <= 1e-5f * fabsf(want.o[i]) + 1e-12f);
            continue;
        }
        n_odd++;
        assert_true(c == 3 ? r >= 20 : c == 50 && r == 39);
        assert_true(isnan(want.o[i]) ? isnan(got.o[i]) : got.o[i] == want.o[i]);
    }
    assert_int_equal(n_odd, HEADS * (20 + 1));
    free(scratch);
}

static void values_of_bf16_that_are_not_finite_concern_who_sees_them(void **state)
{
    (void)state;
    values_that_are_not_finite_concern_who_sees_them(KS_T_BF16, attn_bf16_amx);
}

static void values_of_f8e4m3_that_are_not_finite_concern_who_sees_them(void **state)
{
    (void)state;
    values_that_are_not_finite_concern_who_sees_them(KS_T_F8E4M3, attn_f8e4m3_amx);
}

static void products_of_i4_keep_the_rules(void **state)
{
    (void)state;
    keeps_the_rules(KS_K_MATMUL, KS_T_I4, matmul_i4_amx, MATMUL_AMX_SCRATCH_BYTES, 0);
}

static void products_of_i8_keep_the_rules(void **state)
{
    (void)state;
    keeps_the_rules(KS_K_MATMUL, KS_T_I8, matmul_i8_amx, MATMUL_AMX_SCRATCH_BYTES, 0);
}

static void products_of_mxfp4_keep_the_rules(void **state)
{
    (void)state;
    keeps_the_rules(KS_K_MATMUL, KS_T_MXFP4, matmul_mxfp4_amx, MATMUL_AMX_SCRATCH_BYTES, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_over_bf16_keeps_the_rules),
        cmocka_unit_test(attention_over_f8e4m3_keeps_the_rules),
        cmocka_unit_test(values_of_bf16_that_are_not_finite_concern_who_sees_them),
        cmocka_unit_test(values_of_f8e4m3_that_are_not_finite_concern_who_sees_them),
        cmocka_unit_test(products_of_i4_keep_the_rules),
        cmocka_unit_test(products_of_i8_keep_the_rules),
        cmocka_unit_test(products_of_mxfp4_keep_the_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
