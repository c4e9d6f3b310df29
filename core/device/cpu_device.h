/* The CPU as a device: executes op lists with the merged kernel table on the pool. Always there. */
#ifndef KS_DEVICE_CPU_DEVICE_H
#define KS_DEVICE_CPU_DEVICE_H

#include "plugin/plugin.h"
#include "sched/pool.h"
#include <krasis/device.h>

typedef struct ks_cpu_ctx {
    ks_pool *pool;
    const ks_kernel_table *kernels;
} ks_cpu_ctx;

/* `self` of open() is a ks_cpu_ctx that outlives the device. */
extern const ks_device_iface ks_cpu_device_iface;

#endif
