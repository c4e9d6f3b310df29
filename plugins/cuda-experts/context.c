/* What the driver takes of a GPU's memory before anybody allocates: the context of this process. The runtime cannot
 * tell (to ask it for the free memory makes the context), so the driver's management library is asked before and after.
 * Where there is none, or its answer makes no sense, what is gone of the card bounds an assumed size. [main] */
#include "device.h"

#include <dlfcn.h>
#include <string.h>

#define LEAST_BYTES ((uint64_t)8 << 20)
#define MOST_BYTES ((uint64_t)2 << 30)

struct nvml {
    void *lib;
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_uuid)(const char *uuid, void **ret);
    int (*memory)(void *gpu, unsigned long long ret_total_free_used[3]);
};

/* POSIX promises that the address of a function fits an object pointer; ISO C has no cast for it. */
static bool find(const struct nvml *n, const char *name, void *ret)
{
    void *p = dlsym(n->lib, name);
    memcpy(ret, &p, sizeof p);
    return p != NULL;
}

/* Free bytes of the card; 0: not known. */
static uint64_t free_of(const char *uuid)
{
    struct nvml n = { .lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL) };
    unsigned long long mem[3] = { 0 };
    void *gpu = NULL;
    if (!n.lib) return 0;
    if (find(&n, "nvmlInit_v2", &n.init) && find(&n, "nvmlShutdown", &n.shutdown) &&
        find(&n, "nvmlDeviceGetHandleByUUID", &n.by_uuid) && find(&n, "nvmlDeviceGetMemoryInfo", &n.memory) &&
        n.init() == 0) {
        if (n.by_uuid(uuid, &gpu) || n.memory(gpu, mem)) mem[1] = 0;
        (void)n.shutdown(); /* as it was before */
    }
    (void)dlclose(n.lib);
    return mem[1];
}

void cu_uuid_text(const struct cudaDeviceProp *p, char *ret, size_t cap)
{
    const unsigned char *u = (const unsigned char *)p->uuid.bytes;
    (void)snprintf(ret, cap, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
                   u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

int cu_context(cu_plugin *p, uint32_t i, const struct cudaDeviceProp *prop, size_t *ret_free, size_t *ret_total)
{
    char uuid[48];
    cu_uuid_text(prop, uuid, sizeof uuid);
    bool known = i >= CU_MAX_GPUS || p->context[i];
    uint64_t before = known ? 0 : free_of(uuid);
    cudaError_t rc = cudaSetDevice((int)i);
    if (rc == cudaSuccess) rc = cudaMemGetInfo(ret_free, ret_total);
    if (rc != cudaSuccess || known) return (int)rc;
    uint64_t after = before ? free_of(uuid) : 0, context = before > after ? before - after : 0;
    if (!after || context < LEAST_BYTES || context > MOST_BYTES) {
        context = *ret_total - *ret_free;
        context = context > CU_CONTEXT_BYTES ? CU_CONTEXT_BYTES : context < LEAST_BYTES ? LEAST_BYTES : context;
    }
    p->context[i] = context;
    return (int)cudaSuccess;
}
