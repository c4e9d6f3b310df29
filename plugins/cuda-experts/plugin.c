/* The descriptor of the CUDA device. The runtime is linked in and finds the driver itself, so the plugin loads, and
 * says why it cannot be used, where there is none. */
#include "device.h"
#include "iface.h"

#include <stddef.h>
#include <stdlib.h>

static const ks_option options[] = {
    { .key = "resident",
      .type = KS_OPT_INT,
      .offset = offsetof(cu_options, resident),
      .dflt = "-1",
      .min = -1,
      .max = 1 << 24,
      .help = "Most experts that stay in GPU memory, -1 for as many as fit" },
    { .key = "ring",
      .type = KS_OPT_INT,
      .offset = offsetof(cu_options, ring),
      .dflt = "0",
      .min = 0,
      .max = 65536,
      .help = "Places in GPU memory for experts on their way from RAM, 0 for 512 MB of them" },
    { .key = "piece",
      .type = KS_OPT_INT,
      .offset = offsetof(cu_options, piece),
      .dflt = "0",
      .min = 0,
      .max = 1 << 20,
      .help = "Rows that a long step computes together between experts, 0 for 4096" },
    { .key = "graphs",
      .type = KS_OPT_BOOL,
      .offset = offsetof(cu_options, graphs),
      .dflt = "1",
      .help = "Steps of few rows are recorded and given to the GPU as one, where all experts stay" },
    { .key = "fuse",
      .type = KS_OPT_BOOL,
      .offset = offsetof(cu_options, fuse),
      .dflt = "1",
      .help = "Neighbouring ops are one kernel, with the same bits" },
    { .key = "early",
      .type = KS_OPT_BOOL,
      .offset = offsetof(cu_options, early),
      .dflt = "1",
      .help = "Kernels of steps of few rows begin while the ones before them end, where the GPU can (9.0 on)" },
    { .key = "warpgroups",
      .type = KS_OPT_BOOL,
      .offset = offsetof(cu_options, warpgroups),
      .dflt = "1",
      .help = "Prompts use the tensor cores by warpgroups, where the GPU can (9.0 alone), with the same bits" },
    { .key = "apart",
      .type = KS_OPT_BOOL,
      .offset = offsetof(cu_options, apart),
      .dflt = "0",
      .help = "Each buffer is an allocation of its own, so that memory checkers see where it ends" },
    { .key = "patience",
      .type = KS_OPT_INT,
      .offset = offsetof(cu_options, patience),
      .dflt = "20",
      .min = 1,
      .max = 3600,
      .help = "Seconds that GPU and CPU wait for each other's experts before the GPU counts as failed" },
    { .key = "in-place",
      .type = KS_OPT_INT,
      .offset = offsetof(cu_options, in_place),
      .dflt = "8",
      .min = 0,
      .max = 1024,
      .help = "Steps of at most so many rows read cold experts over the link where they lie, instead of copying them" },
    { .key = "ahead",
      .type = KS_OPT_INT,
      .offset = offsetof(cu_options, ahead),
      .dflt = "0",
      .min = 0,
      .max = 16,
      .help = "Layers that are launched before the CPU has computed its experts of theirs; needs "
              "CUDA_MODULE_LOADING=EAGER" },
};

static int probe(const ks_host *h, const void *opts, ks_probe *ret, ks_err *err)
{
    int n = 0;
    (void)h, (void)opts;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc == cudaSuccess && n == 0) rc = cudaErrorNoDevice;
    if (rc != cudaSuccess) {
        (void)cudaGetLastError();
        return ks_fail(err, KS_E_DEVICE, "%s", cudaGetErrorString(rc));
    }
    struct cudaDeviceProp p;
    if ((rc = cudaGetDeviceProperties(&p, 0)) != cudaSuccess)
        return ks_fail(err, KS_E_DEVICE, "GPU 0: %s", cudaGetErrorString(rc));
    ret->mem_total_bytes = p.totalGlobalMem;
    (void)snprintf(ret->detail, sizeof ret->detail, "%d GPU%s: %.63s, compute capability %d.%d", n, n == 1 ? "" : "s",
                   p.name, p.major, p.minor);
    return 0;
}

static int open_plugin(const ks_host *h, const void *opts, void **ret_self, ks_err *err)
{
    cu_plugin *p = calloc(1, sizeof *p);
    if (!p) return ks_fail(err, KS_E_NOMEM, "out of memory for the CUDA plugin");
    p->host = h;
    p->opts = opts;
    *ret_self = p;
    return 0;
}

static void close_plugin(void *self)
{
    free(self);
}

KS_PLUGIN_DEFINE = {
    .size = sizeof(ks_plugin),
    .kind = KS_KIND_DEVICE,
    .name = "cuda-experts",
    .version = KS_VERSION,
    .summary = "Runs models on NVIDIA GPUs, with experts that stay or come over the link",
    .license = "Apache-2.0",
    .cpu_required = KS_CPU_REQUIRED,
    .score = 1000,
    .n_options = sizeof options / sizeof options[0],
    .options = options,
    .option_size = sizeof(ks_option),
    .opts_bytes = sizeof(cu_options),
    .iface = &cu_iface,
    .probe = probe,
    .open = open_plugin,
    .close = close_plugin,
};
