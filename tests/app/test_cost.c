/* Bytes and operations of a step, counted by hand for small op lists, and the bounds made of them. */
#include "app/cost.h"
#include "base/base.h"
#include <math.h>

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */

#define assert_near(a, b)                                                                            \
    do {                                                                                             \
        const double has = (a), want = (b);                                                          \
        if (fabs(has - want) > 1e-9 * fabs(want)) fail_msg("%s is %.12g, not %.12g", #a, has, want); \
    } while (0)

/* 0: a matrix of 32 x 64 in I4, 1: a head of 100 x 64 in BF16, 2 and 3: banks of 8 experts. */
static const ks_weight weights[] = {
    { .cls = KS_CLS_ATTN, .type = KS_T_I4, .n_mat = 1, .n_out = 32, .n_in = 64, .mat_bytes = 1000 },
    { .cls = KS_CLS_HEAD, .type = KS_T_BF16, .n_mat = 1, .n_out = 100, .n_in = 64, .mat_bytes = 12800 },
    { .cls = KS_CLS_EXPERT, .type = KS_T_I8, .n_mat = 8, .n_out = 48, .n_in = 64, .mat_bytes = 3000 },
    { .cls = KS_CLS_EXPERT, .type = KS_T_I8, .n_mat = 8, .n_out = 64, .n_in = 24, .mat_bytes = 1500 },
};
static const ks_reg regs[] = { { .kind = KS_REG_F32, .width = 64 }, { .kind = KS_REG_F32 | KS_REG_OUT, .width = 64 } };
static const ks_state states[] = { { .kind = KS_STATE_KV, .k_width = 20, .v_width = 12 },
                                   { .kind = KS_STATE_RECURRENT, .floats = 100 } };

static ks_cost count(const ks_op *op, ks_load l)
{
    ks_op one = *op;
    ks_cost c;
    for (uint32_t i = 0; i < KS_COUNT(one.w); i++)
        if (one.w[i] == 0 && i > 0) one.w[i] = -1; /* the initialisers leave zeros */
    ks_graph g = { .n_ops = 1,
                   .ops = &one,
                   .regs = regs,
                   .n_regs = KS_COUNT(regs),
                   .weights = weights,
                   .n_weights = KS_COUNT(weights),
                   .states = states,
                   .n_states = KS_COUNT(states),
                   .n_layers = 1,
                   .n_experts = 8 };
    if (!l.kv_type) l.kv_type = KS_T_BF16;
    ks_cost_count(&g, &l, &c);
    return c;
}

static void a_matrix_is_read_once_a_step_and_used_for_every_row(void **state)
{
    (void)state;
    ks_op op = { .kind = KS_OP_LINEAR, .w = { 0 } };
    ks_cost c = count(&op, (ks_load) { .n_seqs = 3, .rows = 5, .outs = 1 });
    assert_near(c.weight_bytes, 1000);
    assert_near(c.class_bytes[KS_CLS_ATTN], 1000);
    assert_near(c.type_bytes[KS_T_I4], 1000);
    assert_near(c.mac_int8, 15 * 32 * 64);
    assert_true(c.mac_f32 == 0);
}

static void the_head_sees_only_the_rows_that_are_asked_for(void **state)
{
    (void)state;
    ks_op op = { .kind = KS_OP_LINEAR, .in = { 1 }, .w = { 1 } };
    ks_cost c = count(&op, (ks_load) { .n_seqs = 3, .rows = 5, .outs = 1 });
    assert_near(c.mac_f32, 3 * 100 * 64); /* bf16 is computed in floats */
    assert_true(c.mac_int8 == 0);
}

static void experts_are_read_as_often_as_the_batch_touches_them(void **state)
{
    (void)state;
    ks_op op = { .kind = KS_OP_EXPERTS, .w = { 2, 3 }, .u.mlp = { .n_experts = 8, .k = 2, .n_ff = 24 } };
    ks_cost one = count(&op, (ks_load) { .n_seqs = 1, .rows = 1 });
    assert_near(one.experts, 2);
    assert_near(one.weight_bytes, 2 * 4500);
    assert_near(one.mac_int8, 2 * (48 * 64 + 64 * 24));
    ks_cost four = count(&op, (ks_load) { .n_seqs = 4, .rows = 1 });
    assert_near(four.experts, 8 * (1 - pow(0.75, 4)));
    assert_near(four.mac_int8, 4 * one.mac_int8);
    /* All four ask for the same two. */
    const uint64_t heat[8] = { 50, 0, 0, 50 };
    ks_cost same = count(&op, (ks_load) { .n_seqs = 4, .rows = 1, .heat = heat });
    assert_near(same.experts, 2);
    assert_near(same.weight_bytes, one.weight_bytes);
}

static void attention_reads_the_keys_it_sees(void **state)
{
    (void)state;
    ks_op op = { .kind = KS_OP_ATTN, .state = 0, .w = { -1 } };
    op.u.attn.n_heads = 6;
    op.u.attn.n_kv_heads = 2;
    op.u.attn.d_k = 10;
    op.u.attn.d_v = 6;
    ks_cost c = count(&op, (ks_load) { .n_seqs = 2, .rows = 1, .pos = 99 });
    assert_near(c.kv_bytes, 2 * 100 * 32 * 2);
    assert_near(c.mac_attn, 2 * 100 * 6 * 16);
    c = count(&op, (ks_load) { .n_seqs = 2, .rows = 1, .pos = 99, .kv_type = KS_T_F32 });
    assert_near(c.mac_f32, 2 * 100 * 6 * 16);
    assert_true(c.mac_attn == 0);
    /* A prompt: row r sees r + 1 keys, each key is read once. */
    c = count(&op, (ks_load) { .n_seqs = 1, .rows = 10 });
    assert_near(c.kv_bytes, 10 * 32 * 2);
    assert_near(c.mac_attn, 55 * 6 * 16);
    op.u.attn.window = 4;
    c = count(&op, (ks_load) { .n_seqs = 1, .rows = 1, .pos = 99 });
    assert_near(c.mac_attn, 4 * 6 * 16);
    c = count(&op, (ks_load) { .n_seqs = 1, .rows = 10 }); /* 1 + 2 + 3 + 4 and six times 4 */
    assert_near(c.mac_attn, 34 * 6 * 16);
}

static void recurrent_state_is_read_each_step_and_written_each_chunk(void **state)
{
    (void)state;
    ks_op op = { .kind = KS_OP_DELTA, .state = 1, .w = { -1 } };
    op.u.delta.n_v_heads = 2;
    op.u.delta.d_k = 5;
    op.u.delta.d_v = 10;
    ks_cost c = count(&op, (ks_load) { .n_seqs = 3, .rows = 1 });
    assert_near(c.state_bytes, 3 * (1 + 1.0 / KS_DELTA_CHUNK) * 400);
    assert_near(c.mac_f32, 3 * 3 * 2 * 50);
    c = count(&op, (ks_load) { .n_seqs = 3, .rows = 100 });
    assert_near(c.state_bytes, 3 * 2 * 400);
}

static void the_bound_is_the_slower_of_memory_and_arithmetic(void **state)
{
    (void)state;
    const ks_rates r = { .read = 100, .int8 = 1000, .f32 = 500, .attn = 2000 };
    ks_cost c = { .weight_bytes = 300, .kv_bytes = 100, .mac_int8 = 1000, .mac_f32 = 500 };
    assert_near(ks_cost_seconds(&c, &r), 4);
    assert_string_equal(ks_cost_limit(&c, &r), "memory");
    c.mac_f32 = 5000;
    assert_near(ks_cost_seconds(&c, &r), 11);
    c.mac_attn = 4000;
    assert_near(ks_cost_seconds(&c, &r), 13);
    assert_string_equal(ks_cost_limit(&c, &r), "arithmetic");
}

static void few_rows_are_for_the_cpu_and_many_for_the_link(void **state)
{
    (void)state;
    const ks_op op = { .kind = KS_OP_EXPERTS, .w = { 2, 3, -1, -1, -1, -1 }, .u.mlp = { .n_experts = 8, .k = 2 } };
    const ks_graph g = { .n_ops = 1,
                         .ops = &op,
                         .regs = regs,
                         .n_regs = KS_COUNT(regs),
                         .weights = weights,
                         .n_weights = KS_COUNT(weights),
                         .n_layers = 1,
                         .n_experts = 8 };
    /* All 8 experts, 36000 bytes, take the link 36 us; a row's two experts are 9216 multiply-adds, 0.9216 us. */
    ks_rates r = { .read = 1e10, .int8 = 1e10, .f32 = 1e10 };
    assert_int_equal(ks_cost_share_rows(&g, 1, 1e9, &r, 1000), 40);
    assert_int_equal(ks_cost_share_rows(&g, 0.25, 1e9, &r, 1000), 40); /* both have a quarter of it to do */
    assert_int_equal(ks_cost_share_rows(&g, 1, 1e9, &r, 30), 30);
    assert_int_equal(ks_cost_share_rows(&g, 1, 2e9, &r, 1000), 20);
    r.read = 0.9e9; /* slower than the link for any number */
    assert_int_equal(ks_cost_share_rows(&g, 1, 1e9, &r, 1000), 1);
    r = (ks_rates) { .read = 1e10, .int8 = 1e15, .f32 = 1e10 };
    assert_int_equal(ks_cost_share_rows(&g, 1, 1e9, &r, 1000), 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(few_rows_are_for_the_cpu_and_many_for_the_link),
        cmocka_unit_test(a_matrix_is_read_once_a_step_and_used_for_every_row),
        cmocka_unit_test(the_head_sees_only_the_rows_that_are_asked_for),
        cmocka_unit_test(experts_are_read_as_often_as_the_batch_touches_them),
        cmocka_unit_test(attention_reads_the_keys_it_sees),
        cmocka_unit_test(recurrent_state_is_read_each_step_and_written_each_chunk),
        cmocka_unit_test(the_bound_is_the_slower_of_memory_and_arithmetic),
    };
    return cmocka_run_group_tests_name("cost", tests, NULL, NULL);
}
