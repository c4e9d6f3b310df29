/* The rows that the tests run: found in a descriptor's table. [any] */
#ifndef KS_TESTS_ROWS_UNDER_TEST_H
#define KS_TESTS_ROWS_UNDER_TEST_H

#include <krasis/kernels.h>

/* NULL: the plugin has no such row. */
static inline const ks_kernel *find_row(const ks_plugin *p, uint32_t op, uint32_t wtype)
{
    const ks_kernels_iface *k = p->iface;
    for (uint32_t i = 0; i < k->n_kernels; i++)
        if (k->kernels[i].op == op && k->kernels[i].wtype == wtype) return &k->kernels[i];
    return NULL;
}

/* Every op with every weight type that the project's own sets have: X(test name, op, type) */
#define ROWS_UNDER_TEST(X)                           \
    X(quant, KS_K_QUANT, 0)                          \
    X(matmul_of_f32, KS_K_MATMUL, KS_T_F32)          \
    X(matmul_of_bf16, KS_K_MATMUL, KS_T_BF16)        \
    X(matmul_of_i8, KS_K_MATMUL, KS_T_I8)            \
    X(matmul_of_i4, KS_K_MATMUL, KS_T_I4)            \
    X(matmul_of_mxfp4, KS_K_MATMUL, KS_T_MXFP4)      \
    X(norm, KS_K_NORM, 0)                            \
    X(rope, KS_K_ROPE, 0)                            \
    X(glu, KS_K_GLU, 0)                              \
    X(mul, KS_K_MUL, 0)                              \
    X(scores, KS_K_SCORE, 0)                         \
    X(convolution, KS_K_CONV, 0)                     \
    X(delta_rule, KS_K_DELTA, 0)                     \
    X(attention_over_f32, KS_K_ATTN, KS_T_F32)       \
    X(attention_over_bf16, KS_K_ATTN, KS_T_BF16)     \
    X(attention_over_f8e4m3, KS_K_ATTN, KS_T_F8E4M3) \
    X(storing_f32, KS_K_STORE, KS_T_F32)             \
    X(storing_bf16, KS_K_STORE, KS_T_BF16)           \
    X(storing_f8e4m3, KS_K_STORE, KS_T_F8E4M3)       \
    X(transposed_f32, KS_K_MATMUL_T, KS_T_F32)       \
    X(transposed_bf16, KS_K_MATMUL_T, KS_T_BF16)     \
    X(transposed_i8, KS_K_MATMUL_T, KS_T_I8)         \
    X(transposed_i4, KS_K_MATMUL_T, KS_T_I4)         \
    X(transposed_mxfp4, KS_K_MATMUL_T, KS_T_MXFP4)

#endif
