/* Kernels that do right and wrong, for test_emu.c. */
#include "emu_kernels.h"

#include <ptx.cuh>

static __global__ void scale_kernel(float *x, uint32_t n, float by)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= by;
}

void emu_scale(float *x, uint32_t n, float by, cudaStream_t s)
{
    CU_LAUNCH(scale_kernel, (n + 63) / 64, 64, 0, s)(x, n, by);
}

/* Each thread reads what its neighbour has written; racy: without waiting for it. */
static __global__ void turn_kernel(uint32_t *x, bool racy)
{
    __shared__ uint32_t shared[128];
    shared[threadIdx.x] = x[threadIdx.x];
    if (!racy) __syncthreads();
    x[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

void emu_turn(uint32_t *x, bool racy, cudaStream_t s)
{
    CU_LAUNCH(turn_kernel, 1, 128, 0, s)(x, racy);
}

/* All that lanes can say to each other: (32, 8). */
static __global__ void lanes_kernel(uint32_t *out)
{
    uint32_t lane = threadIdx.x, *o = out + lane * 8;
    o[0] = __shfl_xor_sync(~0u, lane, 5);
    o[1] = __shfl_up_sync(~0u, lane, 3);
    o[2] = __shfl_down_sync(~0u, lane, 3);
    o[3] = __shfl_sync(~0u, lane, 7);
    o[4] = __ballot_sync(~0u, lane % 3 == 0);
    o[5] = (uint32_t)__all_sync(~0u, lane < 31) | (uint32_t)__any_sync(~0u, lane == 31) << 1;
    o[6] = __shfl_xor_sync(~0u, lane, 1, 8);
    o[7] = __shfl_down_sync(~0u, lane, 3, 8);
}

void emu_lanes(uint32_t *out, cudaStream_t s)
{
    CU_LAUNCH(lanes_kernel, 1, 32, 0, s)(out);
}

/* C = A B with the fragments where the PTX ISA has them. A (16, 32), B (32, 8) bytes; C (16, 8). */
static __global__ void product_kernel(const int8_t *a, const int8_t *b, int32_t *c)
{
    uint32_t lane = threadIdx.x, g = lane / 4, t = lane % 4, fa[4], fb[2];
    int32_t fc[4] = {};
    for (uint32_t r = 0; r < 4; r++) fa[r] = *(const uint32_t *)(a + (g + r % 2 * 8) * 32 + r / 2 * 16 + 4 * t);
    for (uint32_t r = 0; r < 2; r++) {
        fb[r] = 0;
        for (uint32_t i = 0; i < 4; i++) fb[r] |= (uint32_t)(uint8_t)b[(r * 16 + 4 * t + i) * 8 + g] << 8 * i;
    }
    mma_s8(fc, fa, fb[0], fb[1]);
    for (uint32_t r = 0; r < 4; r++) c[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = fc[r];
}

void emu_product(const int8_t *a, const int8_t *b, int32_t *c, cudaStream_t s)
{
    CU_LAUNCH(product_kernel, 1, 32, 0, s)(a, b, c);
}

/* Through shared memory in the background; early: read before it was waited for. */
static __global__ void copy_kernel(const uint32_t *from, uint32_t *to, bool early)
{
    __shared__ __align__(16) uint32_t shared[32][4];
    cp_async_16(shared[threadIdx.x], from + threadIdx.x * 4, 12);
    cp_async_commit();
    uint32_t v = early ? shared[threadIdx.x][0] : 0;
    cp_async_wait<0>();
    to[threadIdx.x * 4] = early ? v : shared[threadIdx.x][0];
    for (uint32_t i = 1; i < 4; i++) to[threadIdx.x * 4 + i] = shared[threadIdx.x][i];
}

void emu_copy(const uint32_t *from, uint32_t *to, bool early, cudaStream_t s)
{
    CU_LAUNCH(copy_kernel, 1, 32, 0, s)(from, to, early);
}

static __global__ void wrong_kernel(uint32_t how, float *x, uint32_t n)
{
    CU_DYNAMIC_SHARED(float, shared);
    if (how == EMU_LANES_PART && threadIdx.x < 16) return;
    if (how == EMU_LANES_PART || (how == EMU_BARRIERS_PART && threadIdx.x < 32)) __syncwarp();
    if (how == EMU_BARRIERS_PART && threadIdx.x == 0) __syncwarp(); /* its warp is at the barrier */
    __syncthreads();
    if (how == EMU_SHARED_TOO_FAR) shared[n] = 1;
    x[how == EMU_TOO_FAR ? n : threadIdx.x] = 1;
    if (how == EMU_NOT_ALIGNED) cp_async_16((char *)shared + 4, x, 16);
}

void emu_do_wrong(uint32_t how, float *x, uint32_t n, cudaStream_t s)
{
    CU_LAUNCH(wrong_kernel, 1, 64, 64, s)(how, x, n);
}

void emu_too_much_shared(cudaStream_t s)
{
    CU_LAUNCH(wrong_kernel, 1, 64, 49 << 10, s)(0, nullptr, 0);
}
