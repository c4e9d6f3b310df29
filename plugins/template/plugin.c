/* Descriptor of my-kernels: constant data and nothing else. This file is compiled for any x86-64; only KERNELS files
 * get the CPU features, and the host tests KS_CPU_REQUIRED before it calls them. [any] */
#include "rows.h"

static const ks_kernel rows[] = {
    { .op = KS_K_NORM, .xtype = KS_T_F32, .name = "norm_plain", .fn = norm_plain },
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
    .name = "my-kernels", /* also the file, my-kernels.so, and the INI section, [my-kernels] */
    .version = "0.1.0",
    .summary = "One plain row to start from: norms",
    .license = "Apache-2.0",
    .cpu_required = KS_CPU_REQUIRED,
    .score = 100, /* above the reference (0), below AVX2 (200) */
    .option_size = sizeof(ks_option),
    .iface = &iface,
};
