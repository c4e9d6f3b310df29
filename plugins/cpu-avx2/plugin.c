/* Descriptor of cpu-avx2: constant data, compiled for any x86-64; the host tests cpu_required first. [any] */
#include "rows.h"
#include <krasis/plugin.h>

#define MATMUL(W, X, FN)                                                                  \
    {                                                                                     \
        .op = KS_K_MATMUL, .wtype = KS_T_##W, .xtype = KS_T_##X, .layout = KS_LAYOUT_T16, \
        .scratch_bytes = MATMUL_SCRATCH_BYTES, .name = #FN, .fn = FN                      \
    }
/* Above those, where the CPU has it. */
#define VNNI(W, FN)                                                                                    \
    {                                                                                                  \
        .op = KS_K_MATMUL, .wtype = KS_T_##W, .xtype = KS_T_Q8, .layout = KS_LAYOUT_T16, .score = 50,  \
        .scratch_bytes = MATMUL_SCRATCH_BYTES, .cpu_required = KS_CPU(AVX_VNNI), .name = #FN, .fn = FN \
    }
#define MATMUL_T(W, FN)                                                                     \
    {                                                                                       \
        .op = KS_K_MATMUL_T, .wtype = KS_T_##W, .xtype = KS_T_F32, .layout = KS_LAYOUT_T16, \
        .scratch_bytes = MATMUL_SCRATCH_BYTES, .name = #FN, .fn = FN                        \
    }
#define CACHE(OP, W, FN, SCRATCH, FLAGS)                                                                 \
    {                                                                                                    \
        .op = OP, .wtype = KS_T_##W, .xtype = KS_T_F32, .scratch_bytes = SCRATCH, .name = #FN, .fn = FN, \
        .flags = FLAGS                                                                                   \
    }
#define ATTN(W, FN) CACHE(KS_K_ATTN, W, FN, ATTN_SCRATCH_BYTES, KS_KF_SPANS)
#define STORE(W, FN) CACHE(KS_K_STORE, W, FN, 0, 0)
#define PLAIN(OP, FN, SCRATCH)                                                       \
    {                                                                                \
        .op = OP, .xtype = KS_T_F32, .scratch_bytes = SCRATCH, .name = #FN, .fn = FN \
    }

static const ks_kernel rows[] = {
    PLAIN(KS_K_QUANT, quant_avx2, 0),
    MATMUL(I4, Q8, matmul_i4_avx2),
    MATMUL(I8, Q8, matmul_i8_avx2),
    MATMUL(MXFP4, Q8, matmul_mxfp4_avx2),
    VNNI(I4, matmul_i4_avxvnni),
    VNNI(I8, matmul_i8_avxvnni),
    VNNI(MXFP4, matmul_mxfp4_avxvnni),
    MATMUL(BF16, F32, matmul_bf16_avx2),
    MATMUL(F32, F32, matmul_f32_avx2),
    PLAIN(KS_K_NORM, norm_avx2, 0),
    PLAIN(KS_K_ROPE, rope_avx2, ROPE_SCRATCH_BYTES),
    PLAIN(KS_K_GLU, glu_avx2, 0),
    PLAIN(KS_K_MUL, mul_avx2, 0),
    PLAIN(KS_K_SCORE, score_avx2, 0),
    PLAIN(KS_K_CONV, conv_avx2, 0),
    PLAIN(KS_K_DELTA, delta_avx2, DELTA_SCRATCH_BYTES),
    ATTN(F32, attn_f32_avx2),
    ATTN(BF16, attn_bf16_avx2),
    ATTN(F8E4M3, attn_f8e4m3_avx2),
    STORE(F32, store_f32_avx2),
    STORE(BF16, store_bf16_avx2),
    STORE(F8E4M3, store_f8e4m3_avx2),
    MATMUL_T(F32, matmul_t_f32_avx2),
    MATMUL_T(BF16, matmul_t_bf16_avx2),
    MATMUL_T(I8, matmul_t_i8_avx2),
    MATMUL_T(I4, matmul_t_i4_avx2),
    MATMUL_T(MXFP4, matmul_t_mxfp4_avx2),
};

static const ks_kernels_iface iface = {
    .size = sizeof(ks_kernels_iface),
    .kernel_size = sizeof(ks_kernel),
    .n_kernels = sizeof rows / sizeof rows[0],
    .kernels = rows,
};

KS_PLUGIN_DEFINE = {
    .size = sizeof(ks_plugin),
    .kind = KS_KIND_KERNELS,
    .name = "cpu-avx2",
    .version = KS_VERSION,
    .summary = "Kernels for x86-64 with AVX2: int4, int8, mxfp4, bf16 and f32 weights",
    .license = "Apache-2.0",
    .cpu_required = KS_CPU_REQUIRED,
    .score = 200,
    .option_size = sizeof(ks_option),
    .iface = &iface,
};
