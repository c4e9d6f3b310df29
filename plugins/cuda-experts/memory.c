/* Memory of the device, counted first and taken by that count; and pinned memory of the host. [main] */
#include "device.h"

#include <stdlib.h>
#include <string.h>

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
    if (__builtin_mul_overflow(n, elem, &bytes) || bytes > SIZE_MAX / 4) return false;
    *ret = cu_round(bytes ? bytes : 1, 256);
    return true;
}

/* Zeroed. */
static uint8_t *take(cu_dev *d, size_t bytes, const char *what, ks_err *err)
{
    void *p = NULL;
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

/* One block a purpose: small buffers share the driver's pages, and what was counted is what is taken. */
int cu_take(cu_dev *d, ks_err *err)
{
    d->used = d->parts[CU_FOR_CONTEXT].bytes;
    for (uint32_t i = CU_FOR_WEIGHTS; i < CU_PURPOSES; i++) {
        struct cu_part *p = &d->parts[i];
        p->at = 0;
        if (p->bytes && !d->opts->apart && !(p->block = take(d, cu_round(p->bytes, CU_PAGE), cu_purpose_name(i), err)))
            return d->dead ? KS_E_DEVICE : KS_E_NOMEM;
    }
    return 0;
}

void *cu_alloc(cu_dev *d, size_t n, size_t elem, uint32_t purpose, ks_err *err)
{
    struct cu_part *p = &d->parts[purpose];
    size_t bytes = 0, at = p->at;
    if (!bytes_of(n, elem, &bytes) || __builtin_add_overflow(p->at, bytes, &p->at) || p->at > SIZE_MAX / 4 ||
        (!d->planning && p->at > p->bytes)) {
        (void)ks_fail(err, KS_E_LIMIT, "GPU %d: %s: %zu x %zu bytes were not planned for", d->index,
                      cu_purpose_name(purpose), n, elem);
        return NULL;
    }
    if (d->planning) {
        p->bytes = p->at;
        return (void *)(uintptr_t)(CU_PAGE + at); /* never read */
    }
    return d->opts->apart ? take(d, bytes, cu_purpose_name(purpose), err) : p->block + at;
}

void *cu_alloc_pinned(cu_dev *d, size_t n, size_t elem, const char *what, ks_err *err)
{
    size_t bytes = 0;
    void *p = NULL;
    bool fits = bytes_of(n, elem, &bytes);
    if (d->planning && fits) {
        d->pinned += bytes;
        return (void *)(uintptr_t)CU_PAGE; /* never read */
    }
    cudaError_t rc = fits ? cudaHostAlloc(&p, bytes, cudaHostAllocDefault) : cudaErrorMemoryAllocation;
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
    d->used = d->pinned = 0;
    memset(d->parts, 0, sizeof d->parts);
}

int cu_alloc_act(cu_dev *d, cu_act *a, size_t rows, uint32_t width, ks_err *err)
{
    a->q_stride = (width + 63u) & ~63u;
    a->scale_stride = (width + 127u) / 128u;
    a->sum_stride = a->q_stride / 32;
    if (!(a->q = cu_alloc(d, rows, a->q_stride, CU_FOR_ACTS, err)) ||
        !(a->scale = cu_alloc(d, rows * a->scale_stride, sizeof(float), CU_FOR_ACTS, err)) ||
        !(a->sum = cu_alloc(d, rows * a->sum_stride, sizeof(int32_t), CU_FOR_ACTS, err)))
        return KS_E_NOMEM;
    return 0;
}
