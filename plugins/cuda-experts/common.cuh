/* What the kernels share: number formats and reductions in a fixed order. */
#ifndef CU_COMMON_CUH
#define CU_COMMON_CUH

#include "kernels.h"
#include <krasis/types.h>

static __device__ __forceinline__ float bf16_to_f32(uint32_t h)
{
    return __uint_as_float(h << 16);
}

/* A whole power of two; 0xff is NaN, 0 the smallest, 2^-127. */
static __device__ __forceinline__ float e8m0_to_f32(uint32_t e)
{
    return e == 255u ? __uint_as_float(0x7fc00000u) : e ? __uint_as_float(e << 23) : __uint_as_float(0x00400000u);
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

static __device__ __forceinline__ uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

#endif
