/* Descriptor of cpu-avx512: constant data, compiled for any x86-64; the host tests cpu_required first. [any] */
#include "rows.h"
#include <krasis/plugin.h>

#define MATMUL(W, X, FN, SCRATCH)                                                                                   \
    {                                                                                                               \
        .op = KS_K_MATMUL, .wtype = KS_T_##W, .xtype = KS_T_##X, .layout = KS_LAYOUT_T16, .scratch_bytes = SCRATCH, \
        .name = #FN, .fn = FN                                                                                       \
    }

/* Above the other rows, where the CPU has it and the host got the system's permission to use it. */
#define AMX(W, FN)                                                                                                   \
    {                                                                                                                \
        .op = KS_K_MATMUL, .wtype = KS_T_##W, .xtype = KS_T_Q8, .layout = KS_LAYOUT_T16, .score = 50,                \
        .scratch_bytes = MATMUL_AMX_SCRATCH_BYTES, .cpu_required = KS_CPU(AMX_TILE) | KS_CPU(AMX_INT8), .name = #FN, \
        .fn = FN                                                                                                     \
    }

#define CACHE(OP, W, FN, SCRATCH, FLAGS)                                                                 \
    {                                                                                                    \
        .op = OP, .wtype = KS_T_##W, .xtype = KS_T_F32, .scratch_bytes = SCRATCH, .name = #FN, .fn = FN, \
        .flags = FLAGS                                                                                   \
    }
#define ATTN(W, FN) CACHE(KS_K_ATTN, W, FN, ATTN_SCRATCH_BYTES, KS_KF_SPANS)
#define STORE(W, FN) CACHE(KS_K_STORE, W, FN, 0, 0)

/* For all numbers of queries: which row serves must not depend on them. */
#define ATTN_AMX(W, FN)                                                                                              \
    {                                                                                                                \
        .op = KS_K_ATTN, .wtype = KS_T_##W, .xtype = KS_T_F32, .score = 60, .scratch_bytes = ATTN_AMX_SCRATCH_BYTES, \
        .cpu_required = KS_CPU(AMX_TILE) | KS_CPU(AMX_BF16) | KS_CPU(AVX512_VBMI), .name = #FN, .fn = FN,            \
        .flags = KS_KF_SPANS                                                                                         \
    }

/* The operations that are not here come from the next best plugin: the host merges row by row. */
static const ks_kernel rows[] = {
    { .op = KS_K_QUANT, .xtype = KS_T_F32, .name = "quant_avx512", .fn = quant_avx512 },
    { .op = KS_K_GLU, .xtype = KS_T_F32, .name = "glu_avx512", .fn = glu_avx512 },
    { .op = KS_K_NORM, .xtype = KS_T_F32, .name = "norm_avx512", .fn = norm_avx512 },
    { .op = KS_K_SCORE, .xtype = KS_T_F32, .name = "score_avx512", .fn = score_avx512 },
    { .op = KS_K_MUL, .xtype = KS_T_F32, .name = "mul_avx512", .fn = mul_avx512 },
    { .op = KS_K_CONV, .xtype = KS_T_F32, .name = "conv_avx512", .fn = conv_avx512 },
    { .op = KS_K_DELTA,
      .xtype = KS_T_F32,
      .scratch_bytes = DELTA_SCRATCH_BYTES,
      .name = "delta_avx512",
      .fn = delta_avx512 },
    MATMUL(I4, Q8, matmul_i4_avx512, MATMUL_INT_SCRATCH_BYTES),
    MATMUL(I8, Q8, matmul_i8_avx512, MATMUL_INT_SCRATCH_BYTES),
    MATMUL(MXFP4, Q8, matmul_mxfp4_avx512, MATMUL_INT_SCRATCH_BYTES),
    AMX(I4, matmul_i4_amx),
    AMX(I8, matmul_i8_amx),
    AMX(MXFP4, matmul_mxfp4_amx),
    MATMUL(BF16, F32, matmul_bf16_avx512, MATMUL_FLOAT_SCRATCH_BYTES),
    MATMUL(F32, F32, matmul_f32_avx512, MATMUL_FLOAT_SCRATCH_BYTES),
    ATTN(F32, attn_f32_avx512),
    ATTN(BF16, attn_bf16_avx512),
    ATTN(F8E4M3, attn_f8e4m3_avx512),
    { .op = KS_K_ATTN,
      .wtype = KS_T_F8E4M3,
      .xtype = KS_T_F32,
      .score = 50,
      .scratch_bytes = ATTN_SCRATCH_BYTES,
      .cpu_required = KS_CPU(AVX512_VBMI),
      .name = "attn_f8e4m3_vbmi",
      .fn = attn_f8e4m3_vbmi,
      .flags = KS_KF_SPANS },
    ATTN_AMX(BF16, attn_bf16_amx),
    ATTN_AMX(F8E4M3, attn_f8e4m3_amx),
    STORE(F32, store_f32_avx512),
    STORE(BF16, store_bf16_avx512),
    STORE(F8E4M3, store_f8e4m3_avx512),
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
    .name = "cpu-avx512",
    .version = KS_VERSION,
    .summary = "Kernels for x86-64 with AVX-512 VNNI: int4, int8, mxfp4, bf16 and f32 weights",
    .license = "Apache-2.0",
    .cpu_required = KS_CPU_REQUIRED,
    .score = 300,
    .option_size = sizeof(ks_option),
    .iface = &iface,
};
