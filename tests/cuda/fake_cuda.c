/* See fake_cuda.h. */
#include "fake_cuda.h"

#include "kernels.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

fake_cuda fake;

/* Each block has its size in front. */
#define HEAD 256u

static cudaError_t may_fail(void)
{
    return ++fake.calls == fake.fail_at ? cudaErrorUnknown : cudaSuccess;
}

static void *block(size_t bytes)
{
    uint8_t *p = aligned_alloc(HEAD, (bytes + 2 * HEAD - 1) / HEAD * HEAD);
    if (!p) return NULL;
    memcpy(p, &bytes, sizeof bytes);
    return p + HEAD;
}

static size_t unblock(void *p)
{
    size_t bytes;
    memcpy(&bytes, (uint8_t *)p - HEAD, sizeof bytes);
    free((uint8_t *)p - HEAD);
    return bytes;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    if (may_fail() || (fake.limit && bytes > fake.limit - fake.held)) return cudaErrorMemoryAllocation;
    if (!(*p = block(bytes))) return cudaErrorMemoryAllocation;
    fake.held += bytes;
    fake.most = fake.held > fake.most ? fake.held : fake.most;
    fake.n_blocks++;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    fake.held -= unblock(p);
    fake.n_blocks--;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned int flags)
{
    (void)flags;
    if (may_fail() || !(*p = block(bytes))) return cudaErrorMemoryAllocation;
    fake.n_pinned++;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    if (p) fake.n_pinned--;
    if (p) (void)unblock(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned int flags)
{
    (void)p, (void)bytes, (void)flags;
    if (may_fail()) return cudaErrorMemoryAllocation;
    fake.n_registered++;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    (void)p;
    fake.n_registered--;
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int v, size_t bytes, cudaStream_t s)
{
    (void)s;
    if (may_fail()) return cudaErrorUnknown;
    memset(p, v, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s)
{
    (void)kind, (void)s;
    if (may_fail()) return cudaErrorUnknown;
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_stride, const void *from, size_t from_stride, size_t width,
                              size_t rows, enum cudaMemcpyKind kind, cudaStream_t s)
{
    (void)kind, (void)s;
    if (may_fail()) return cudaErrorUnknown;
    for (size_t r = 0; r < rows; r++)
        memcpy((uint8_t *)to + r * to_stride, (const uint8_t *)from + r * from_stride, width);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned int flags)
{
    (void)flags;
    if (may_fail()) return cudaErrorUnknown;
    fake.n_streams++;
    *s = (cudaStream_t)&fake;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    (void)s;
    fake.n_streams--;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned int flags)
{
    (void)flags;
    if (may_fail()) return cudaErrorUnknown;
    fake.n_events++;
    *e = (cudaEvent_t)&fake;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, 0);
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    (void)e;
    fake.n_events--;
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    (void)a, (void)b;
    *ms = 1;
    return may_fail();
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return may_fail();
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    (void)device;
    if (may_fail()) return cudaErrorUnknown;
    *p = (struct cudaDeviceProp) {
        .name = "fake", .major = 9, .multiProcessorCount = 4, .sharedMemPerBlockOptin = 99 << 10
    };
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *free_bytes = *total = (size_t)4 << 30;
    return may_fail();
}

#define CALL(NAME, ...)           \
    cudaError_t NAME(__VA_ARGS__) \
    {                             \
        return may_fail();        \
    }
CALL(cudaSetDevice, int device)
CALL(cudaStreamSynchronize, cudaStream_t s)
CALL(cudaStreamWaitEvent, cudaStream_t s, cudaEvent_t e, unsigned int flags)
CALL(cudaEventRecord, cudaEvent_t e, cudaStream_t s)
CALL(cudaEventQuery, cudaEvent_t e)
CALL(cudaEventSynchronize, cudaEvent_t e)
#undef CALL

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t rc)
{
    return rc == cudaErrorMemoryAllocation ? "out of memory" : "unknown error";
}

/* ---- launches */

int cu_launch_sort(const cu_sort *a, cu_stream s)
{
    (void)s;
    for (uint32_t e = 0; e <= a->n_experts; e++)
        a->begin[e] = (uint32_t)((uint64_t)e * a->n_rows * a->k / a->n_experts);
    return may_fail();
}

int cu_launch_route(const cu_route *a, cu_stream s)
{
    (void)s;
    for (uint32_t r = 0; r < a->n_rows; r++)
        memset((uint8_t *)a->out + r * a->out_stride * 8, 0, (size_t)a->k * 8); /* expert 0 */
    return may_fail();
}

#define LAUNCH(NAME, ...)               \
    void NAME(__VA_ARGS__, cu_stream s) \
    {                                   \
        (void)s;                        \
    }
LAUNCH(cu_launch_matmul, const cu_matmul *m)
LAUNCH(cu_launch_quant, const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out)
LAUNCH(cu_launch_norm, const cu_norm *a)
LAUNCH(cu_launch_rope, const cu_rope *a)
LAUNCH(cu_launch_glu, const cu_glu *a)
LAUNCH(cu_launch_add, cu_reg x, cu_reg y, cu_reg z, const float *vec, float fx, float fy, uint32_t n_rows, uint32_t n)
LAUNCH(cu_launch_mul, cu_reg x, cu_reg y, cu_reg z, int32_t act, uint32_t n_rows, uint32_t n, uint32_t n_y)
LAUNCH(cu_launch_select, cu_reg x, cu_reg y, const uint32_t *rows, uint32_t n_rows, uint32_t n)
LAUNCH(cu_launch_clamp, cu_reg x, float limit, uint32_t n_rows, uint32_t n)
LAUNCH(cu_launch_qscale, cu_reg x, const uint32_t *pos, float scale, float floor_at, uint32_t n_rows, uint32_t n)
LAUNCH(cu_launch_embed, const void *x, uint32_t type, cu_reg y, float scale, uint32_t n_rows, uint32_t n)
LAUNCH(cu_launch_append, const cu_append *a)
LAUNCH(cu_launch_absorb, const cu_absorb *a)
LAUNCH(cu_launch_combine, const cu_combine *a)
LAUNCH(cu_launch_conv, const cu_conv *a)
LAUNCH(cu_launch_refs, const uint32_t *begin, const uint8_t *const *where, uint32_t n_experts, cu_ref *refs,
       uint32_t *n_refs)
#undef LAUNCH

int cu_launch_attn(const cu_attn *a, cu_stream s)
{
    (void)a, (void)s;
    return may_fail();
}

int cu_launch_flash(const cu_attn *a, cu_stream s)
{
    return cu_launch_attn(a, s);
}

int cu_launch_delta(const cu_delta *a, cu_stream s)
{
    (void)a, (void)s;
    return may_fail();
}

size_t cu_attn_shared_bytes(uint32_t d_k, uint32_t d_v)
{
    return (size_t)(d_k + d_v) * 64;
}

uint32_t cu_flash_queries(uint32_t kv_type, uint32_t group, uint32_t d_k, uint32_t d_v, size_t shared_max)
{
    (void)kv_type, (void)group, (void)d_k, (void)d_v, (void)shared_max;
    return 0;
}
