/* Kernels that do right and wrong, for test_emu.c. */
#include "emu_kernels.h"

#include <ptx.cuh>
#include <wgmma.cuh>

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

/* C = A B of a warpgroup, in two steps of 16. A (64, 32), B (32, N) numbers of two bytes; C (64, N). B lies as `how`
 * says; early: C is read before it was waited for. */
template <uint32_t N, bool BF16>
static __global__ void wg_kernel(const uint16_t *a, const uint16_t *b, float *c, uint32_t how, bool early)
{
    CU_DYNAMIC_SHARED(uint8_t, shared);
    uint16_t *y = (uint16_t *)(((uintptr_t)shared + 1023) & ~(uintptr_t)1023);
    uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (uint32_t i = threadIdx.x; i < 32 * N; i += 128) {
        uint32_t k = i / N, n = i % N, at;
        if (how == EMU_WG_PLAIN) /* blocks of 8 x 8, those along k first */
            at = n / 8 * 256 + k / 8 * 64 + n % 8 * 8 + k % 8;
        else if (how == EMU_WG_ROWS_ALONG_K)
            at = n * 64 + (k / 8 ^ n % 8) * 8 + k % 8;
        else
            at = n / 64 * 2048 + k * 64 + (n % 64 / 8 ^ k % 8) * 8 + n % 8;
        y[at] = b[i];
    }
    float d[N / 8][4];
    for (uint32_t i = 0; i < N / 2; i++) d[i / 4][i % 4] = 1000;
    shared_fence();
    __syncthreads();
    wg_fence();
    for (uint32_t step = 0; step < 2; step++) {
        uint32_t x[4];
        for (uint32_t r = 0; r < 4; r++) {
            uint32_t row = warp * 16 + g + r % 2 * 8, col = step * 16 + t * 2 + r / 2 * 8;
            x[r] = a[row * 32 + col] | (uint32_t)a[row * 32 + col + 1] << 16;
        }
        uint64_t plain = wg_matrix(y, 128, 512, false), swizzled = wg_matrix(y, 4096, 1024, true);
        uint64_t m = how == EMU_WG_PLAIN ? wg_further(plain, step * 256)
                                         : wg_further(swizzled, step * (how == EMU_WG_ROWS_ALONG_K ? 32 : 2048));
        if (how == EMU_WG_ROWS_ALONG_N && BF16)
            wg_mma_bf16<true>(d, x, m, step);
        else if (how == EMU_WG_ROWS_ALONG_N)
            wg_mma_f16<true>(d, x, m, step);
        else if (BF16)
            wg_mma_bf16<false>(d, x, m, step);
        else
            wg_mma_f16<false>(d, x, m, step);
    }
    wg_commit();
    float first = d[0][0];
    wg_wait<0>();
    if (early) d[0][0] = first;
    for (uint32_t i = 0; i < N / 2; i++)
        c[(warp * 16 + g + i % 4 / 2 * 8) * N + i / 4 * 8 + t * 2 + i % 2] = d[i / 4][i % 4];
}

void emu_wg_product(const uint16_t *a, const uint16_t *b, float *c, uint32_t n, bool bf16, uint32_t how, bool early,
                    cudaStream_t s)
{
    if (n == 64 && bf16)
        CU_LAUNCH((wg_kernel<64, true>), 1, 128, 9 << 10, s)(a, b, c, how, early);
    else if (n == 64)
        CU_LAUNCH((wg_kernel<64, false>), 1, 128, 9 << 10, s)(a, b, c, how, early);
    else if (bf16)
        CU_LAUNCH((wg_kernel<128, true>), 1, 128, 17 << 10, s)(a, b, c, how, early);
    else
        CU_LAUNCH((wg_kernel<128, false>), 1, 128, 17 << 10, s)(a, b, c, how, early);
}

/* The same of bytes, in two steps of 32. A (64, 64), B (N, 64); C (64, N). early: A's registers are written before the
 * products were waited for. */
template <uint32_t N>
static __global__ void wg_s8_kernel(const int8_t *a, const int8_t *b, int32_t *c, uint32_t how, bool early)
{
    CU_DYNAMIC_SHARED(uint8_t, shared);
    int8_t *y = (int8_t *)(((uintptr_t)shared + 1023) & ~(uintptr_t)1023);
    uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, x[2][4];
    for (uint32_t i = threadIdx.x; i < 64 * N; i += 128) {
        uint32_t n = i / 64, k = i % 64;
        y[how == EMU_WG_PLAIN ? n / 8 * 512 + k / 16 * 128 + n % 8 * 16 + k % 16
                              : n * 128 + (k / 16 ^ n % 8) * 16 + k % 16] = b[i];
    }
    for (uint32_t i = 0; i < 8; i++)
        x[i / 4][i % 4] =
            *(const uint32_t *)(a + (warp * 16 + g + i % 2 * 8) * 64 + i / 4 * 32 + t * 4 + i % 4 / 2 * 16);
    int32_t d[N / 8][4];
    for (uint32_t i = 0; i < N / 2; i++) d[i / 4][i % 4] = 1000;
    uint64_t m = how == EMU_WG_PLAIN ? wg_matrix(y, 128, 512, false) : wg_matrix(y, 16, 1024, true);
    shared_fence();
    __syncthreads();
    wg_fence();
    wg_mma_s8(d, x[0], m, false);
    wg_mma_s8(d, x[1], wg_further(m, how == EMU_WG_PLAIN ? 256 : 32), true);
    wg_commit();
    if (early) x[1][0]++;
    wg_wait<0>();
    for (uint32_t i = 0; i < N / 2; i++)
        c[(warp * 16 + g + i % 4 / 2 * 8) * N + i / 4 * 8 + t * 2 + i % 2] = d[i / 4][i % 4];
}

void emu_wg_product_s8(const int8_t *a, const int8_t *b, int32_t *c, uint32_t n, uint32_t how, bool early,
                       cudaStream_t s)
{
    if (n == 16)
        CU_LAUNCH(wg_s8_kernel<16>, 1, 128, 9 << 10, s)(a, b, c, how, early);
    else if (n == 32)
        CU_LAUNCH(wg_s8_kernel<32>, 1, 128, 9 << 10, s)(a, b, c, how, early);
    else if (n == 48)
        CU_LAUNCH(wg_s8_kernel<48>, 1, 128, 9 << 10, s)(a, b, c, how, early);
    else
        CU_LAUNCH(wg_s8_kernel<64>, 1, 128, 9 << 10, s)(a, b, c, how, early);
}

/* Two warps hand numbers over to two others, through one place; early: the readers say that
 * they have read before they do. */
static __global__ void hand_over_kernel(uint32_t *out, uint32_t n, bool early)
{
    CU_DYNAMIC_SHARED(uint64_t, full);
    uint64_t *empty = full + 1;
    uint32_t *place = (uint32_t *)(full + 2);
    if (threadIdx.x == 0) {
        phase_init(full, 64);
        phase_init(empty, 64);
    }
    __syncthreads();
    for (uint32_t i = 0; i < n; i++) {
        if (threadIdx.x < 64) {
            phase_wait(empty, (i + 1) % 2);
            place[threadIdx.x] = i * 100 + threadIdx.x;
            phase_arrive(full);
        } else {
            phase_wait(full, i % 2);
            if (early) phase_arrive(empty);
            part_sync(1, 64);
            out[i * 64 + threadIdx.x - 64] = place[127 - threadIdx.x];
            if (!early) phase_arrive(empty);
        }
    }
}

void emu_hand_over(uint32_t *out, uint32_t n, bool early, cudaStream_t s)
{
    CU_LAUNCH(hand_over_kernel, 1, 128, 16 + 256, s)(out, n, early);
}

static __global__ void wrong_kernel(uint32_t how, float *x, uint32_t n)
{
    CU_DYNAMIC_SHARED(float, shared);
    if (how == EMU_LANES_PART && threadIdx.x < 16) return;
    if (how == EMU_LANES_PART || (how == EMU_BARRIERS_PART && threadIdx.x < 32)) __syncwarp();
    if (how == EMU_BARRIERS_PART && threadIdx.x == 0) __syncwarp(); /* its warp is at the barrier */
    if (how == EMU_PHASE_UNENDED) {
        if (threadIdx.x == 0) phase_init((uint64_t *)shared, 65);
        __syncthreads();
        phase_arrive((uint64_t *)shared);
        phase_wait((uint64_t *)shared, 0);
    }
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
