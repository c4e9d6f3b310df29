/* Memory of the device, within the budget; and pinned memory of the host. [main] */
#include "device.h"

#include <stdlib.h>

static bool keep(cu_dev *d, void *p, bool pinned)
{
    if (d->n_blocks == d->cap_blocks) {
        uint32_t cap = d->cap_blocks ? 2 * d->cap_blocks : 64;
        struct cu_block *b = realloc(d->blocks, cap * sizeof *b);
        if (!b) return false;
        d->blocks = b;
        d->cap_blocks = cap;
    }
    d->blocks[d->n_blocks++] = (struct cu_block) { p, pinned };
    return true;
}

static bool bytes_of(size_t n, size_t elem, size_t *ret)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, elem, &bytes) || bytes > SIZE_MAX / 2) return false;
    *ret = cu_round(bytes ? bytes : 1, 256);
    return true;
}

void *cu_alloc(cu_dev *d, size_t n, size_t elem, const char *what, ks_err *err)
{
    size_t bytes = 0;
    void *p = NULL;
    if (!bytes_of(n, elem, &bytes) || bytes > d->budget - d->used) {
        (void)ks_fail(err, KS_E_NOMEM,
                      "GPU %d: %s need %.1f MB, %.1f of %.1f MB are left: raise --vram-limit, or lower --context, "
                      "--kv-cache-mb or --step-tokens",
                      d->index, what, (double)bytes / 1e6, (double)(d->budget - d->used) / 1e6,
                      (double)d->budget / 1e6);
        return NULL;
    }
    cudaError_t rc = cudaMalloc(&p, bytes);
    if (rc == cudaSuccess && !keep(d, p, false)) {
        (void)cudaFree(p);
        (void)ks_fail(err, KS_E_NOMEM, "out of memory for %s", what);
        return NULL;
    }
    if (rc != cudaSuccess) {
        (void)cudaGetLastError(); /* not sticky: the next allocation may be fine */
        (void)ks_fail(err, KS_E_NOMEM, "GPU %d: %.1f MB for %s: %s: other programs may use it; lower --vram-limit",
                      d->index, (double)bytes / 1e6, what, cudaGetErrorString(rc));
        return NULL;
    }
    d->used += bytes;
    return cu_check(d, cudaMemsetAsync(p, 0, bytes, d->compute), what, err) ? NULL : p;
}

void *cu_alloc_pinned(cu_dev *d, size_t n, size_t elem, const char *what, ks_err *err)
{
    size_t bytes = 0;
    void *p = NULL;
    cudaError_t rc =
        bytes_of(n, elem, &bytes) ? cudaHostAlloc(&p, bytes, cudaHostAllocDefault) : cudaErrorMemoryAllocation;
    if (rc == cudaSuccess && keep(d, p, true)) return p;
    if (rc == cudaSuccess) (void)cudaFreeHost(p);
    (void)cudaGetLastError();
    (void)ks_fail(err, KS_E_NOMEM, "GPU %d: out of pinned memory for %s (%zu x %zu bytes)", d->index, what, n, elem);
    return NULL;
}

void *cu_alloc_host(cu_dev *d, size_t n, size_t elem, const char *what, ks_err *err)
{
    void *p = calloc(n ? n : 1, elem);
    if (!p) (void)ks_fail(err, KS_E_NOMEM, "GPU %d: out of memory for %s", d->index, what);
    return p;
}

void cu_free_all(cu_dev *d)
{
    for (uint32_t i = 0; i < d->n_blocks; i++) /* a lost device cannot free; there is nothing to do about it */
        (void)(d->blocks[i].pinned ? cudaFreeHost(d->blocks[i].p) : cudaFree(d->blocks[i].p));
    free(d->blocks);
    d->blocks = NULL;
    d->n_blocks = d->cap_blocks = 0;
    d->used = 0;
}

int cu_alloc_act(cu_dev *d, cu_act *a, size_t rows, uint32_t width, ks_err *err)
{
    a->q_stride = (width + 63u) & ~63u;
    a->scale_stride = (width + 127u) / 128u;
    a->sum_stride = a->q_stride / 32;
    if (!(a->q = cu_alloc(d, rows, a->q_stride, "quantized activations", err)) ||
        !(a->scale = cu_alloc(d, rows * a->scale_stride, sizeof(float), "quantized activations", err)) ||
        !(a->sum = cu_alloc(d, rows * a->sum_stride, sizeof(int32_t), "quantized activations", err)))
        return KS_E_NOMEM;
    return 0;
}
