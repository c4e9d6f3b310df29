/* The reference kernel set as a plugin that is linked in: descriptor and table of rows. Constant data. [any] */
#include "ref/ref.h"

#include "base/base.h"
#include "ref/ref_rows.h"
#include <krasis/plugin.h>

#define MATMUL(W, X, FN)                                                                                      \
    {                                                                                                         \
        .op = KS_K_MATMUL, .wtype = KS_T_##W, .xtype = KS_T_##X, .layout = KS_LAYOUT_T16, .name = #FN "_ref", \
        .fn = ks__ref_##FN                                                                                    \
    }
#define MATMUL_T(W, FN)                                                                                         \
    {                                                                                                           \
        .op = KS_K_MATMUL_T, .wtype = KS_T_##W, .xtype = KS_T_F32, .layout = KS_LAYOUT_T16, .name = #FN "_ref", \
        .fn = ks__ref_##FN                                                                                      \
    }
#define CACHE(OP, W, FN, FLAGS)                                                                                \
    {                                                                                                          \
        .op = OP, .wtype = KS_T_##W, .xtype = KS_T_F32, .name = #FN "_ref", .fn = ks__ref_##FN, .flags = FLAGS \
    }
#define ATTN(W, FN) CACHE(KS_K_ATTN, W, FN, KS_KF_SPANS)
#define STORE(W, FN) CACHE(KS_K_STORE, W, FN, 0)
#define PLAIN(OP, FN)                                                       \
    {                                                                       \
        .op = OP, .xtype = KS_T_F32, .name = #FN "_ref", .fn = ks__ref_##FN \
    }

static const ks_kernel rows[] = {
    PLAIN(KS_K_QUANT, quant),  MATMUL(F32, F32, matmul_f32), MATMUL(BF16, F32, matmul_bf16),
    MATMUL(I8, Q8, matmul_i8), MATMUL(I4, Q8, matmul_i4),    MATMUL(MXFP4, Q8, matmul_mxfp4),
    PLAIN(KS_K_NORM, norm),    PLAIN(KS_K_ROPE, rope),       PLAIN(KS_K_GLU, glu),
    ATTN(F32, attn_f32),       ATTN(BF16, attn_bf16),        ATTN(F8E4M3, attn_f8e4m3),
    STORE(F32, store_f32),     STORE(BF16, store_bf16),      STORE(F8E4M3, store_f8e4m3),
    PLAIN(KS_K_SCORE, score),  PLAIN(KS_K_MUL, mul),         PLAIN(KS_K_CONV, conv),
    PLAIN(KS_K_DELTA, delta),  MATMUL_T(F32, matmul_t_f32),  MATMUL_T(BF16, matmul_t_bf16),
    MATMUL_T(I8, matmul_t_i8), MATMUL_T(I4, matmul_t_i4),    MATMUL_T(MXFP4, matmul_t_mxfp4),
};

static const ks_kernels_iface iface = {
    .size = sizeof(ks_kernels_iface),
    .kernel_size = sizeof(ks_kernel),
    .n_kernels = KS_COUNT(rows),
    .kernels = rows,
};

const ks_plugin ks_ref_plugin = {
    .size = sizeof(ks_plugin),
    .kind = KS_KIND_KERNELS,
    .name = "ref",
    .version = KS_VERSION,
    .summary = "Scalar reference kernels: any CPU, exact, slow",
    .license = "Apache-2.0",
    .option_size = sizeof(ks_option),
    .iface = &iface,
};
