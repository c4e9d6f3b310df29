/* What the kernels share: number formats and reductions in a fixed order. */
#ifndef CU_COMMON_CUH
#define CU_COMMON_CUH

#include "kernels.h"
#include <krasis/types.h>
#include <ptx.cuh> /* in angles: the emulator has its own */

static __device__ __forceinline__ float bf16_to_f32(uint32_t h)
{
    return __uint_as_float(h << 16);
}

/* A whole power of two; 0xff is NaN, 0 the smallest, 2^-127. */
static __device__ __forceinline__ float e8m0_to_f32(uint32_t e)
{
    return e == 255u ? __uint_as_float(0x7fc00000u) : e ? __uint_as_float(e << 23) : __uint_as_float(0x00400000u);
}

static __device__ __forceinline__ uint16_t f32_to_bf16(float f)
{
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* Round to nearest even, saturating at 448. */
static __device__ __forceinline__ uint8_t f32_to_e4m3(float f)
{
    uint32_t u = __float_as_uint(f), sign = u >> 24 & 0x80u, a = u & 0x7fffffffu, code;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (a >= 0x43e00000u) return (uint8_t)(sign | 0x7eu);
    if (a < 0x3c800000u) /* subnormal: units of 2^-9 */
        code = (uint32_t)__float2int_rn(__uint_as_float(a) * 512.0f);
    else
        code = ((a + 0x7ffffu + (a >> 20 & 1u)) >> 20) - (120u << 3);
    return (uint8_t)(sign | code);
}

static __device__ __forceinline__ float e4m3_to_f32(uint32_t c)
{
    uint32_t sign = (c & 0x80u) << 24, e = c >> 3 & 15u, m = c & 7u;
    if ((c & 0x7fu) == 0x7fu) return __uint_as_float(sign | 0x7fc00000u);
    if (e == 0) return __uint_as_float(sign | __float_as_uint((float)m * 0.001953125f));
    return __uint_as_float(sign | (e + 120u) << 23 | m << 20);
}

/* The same tree in every lane. */
static __device__ __forceinline__ float warp_sum(float v)
{
    for (int o = 16; o; o >>= 1) v = __fadd_rn(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

static __device__ __forceinline__ float warp_max(float v)
{
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

/* The sum over a block, the same in every thread; *ret_before: of the threads before. shared: a number a warp. */
static __device__ CU_APART uint32_t block_scan(uint32_t v, uint32_t *shared, uint32_t *ret_before)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = v;
    for (uint32_t o = 1; o < 32; o *= 2) {
        uint32_t u = __shfl_up_sync(~0u, sum, o);
        if (lane >= o) sum += u;
    }
    __syncthreads();
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    uint32_t before = 0, all = 0;
    for (uint32_t i = 0; i < blockDim.x / 32; i++) {
        if (i < warp) before += shared[i];
        all += shared[i];
    }
    *ret_before = before + sum - v;
    return all;
}

static __device__ __forceinline__ float cache_at(const cu_cache &c, const uint8_t *page, size_t i)
{
    if (c.type == KS_T_F32) return ((const float *)page)[i];
    if (c.type == KS_T_BF16) return bf16_to_f32(((const uint16_t *)page)[i]);
    return e4m3_to_f32(page[i]);
}

/* Four of which n are there, the others are 0. */
static __device__ __forceinline__ void load_4(float v[4], const float *x, uint32_t n)
{
    if (n >= 4 && (uintptr_t)x % 16 == 0) {
        float4 f = *(const float4 *)x;
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        return;
    }
    for (uint32_t i = 0; i < 4; i++) v[i] = i < n ? x[i] : 0.0f;
}

static __device__ __forceinline__ uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

#endif
