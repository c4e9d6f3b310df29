/* QUANT of 128 columns of a row by one warp, bit for bit as kernels.h of the SDK defines it. */
#ifndef CU_QUANT_CUH
#define CU_QUANT_CUH

#include "act.cuh"

/* A lane's columns col .. col + 3 of a row. */
static __device__ __forceinline__ void quantize(const float v[4], uint32_t row, uint32_t col, uint32_t n_in,
                                                const cu_act &out)
{
    float amax = 0;
    bool finite = true;
    for (uint32_t i = 0; i < 4; i++) {
        finite = finite && isfinite(v[i]);
        amax = fmaxf(amax, fabsf(v[i]));
    }
    amax = warp_max(amax);
    finite = __all_sync(~0u, finite);
    float inv = amax > 0 ? __fdiv_rn(127.0f, amax) : __uint_as_float(0x7f800000u);
    bool good = finite && isfinite(inv);
    int32_t q[4], sum = 0;
    for (uint32_t i = 0; i < 4; i++) {
        q[i] = good ? __float2int_rn(__fmul_rn(v[i], inv)) : 0;
        sum += q[i];
    }
    for (int o = 4; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o); /* 8 lanes: 32 columns */
    if (col < out.q_stride)
        *(char4 *)(out.q + (size_t)row * out.q_stride + col) =
            make_char4((signed char)q[0], (signed char)q[1], (signed char)q[2], (signed char)q[3]);
    if (col % 32 == 0 && col / 32 < out.sum_stride) out.sum[(size_t)row * out.sum_stride + col / 32] = sum;
    if (col % 128 == 0 && col < n_in)
        out.scale[(size_t)row * out.scale_stride + col / 128] = good     ? __fdiv_rn(amax, 127.0f)
                                                                : finite ? 0.0f
                                                                         : __uint_as_float(0x7fc00000u);
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

/* Columns col .. col + 3 of what GLU makes of a row. */
static __device__ __forceinline__ void glu_4(float v[4], const cu_glu &a, uint32_t row, uint32_t col)
{
    uint32_t n = col < a.n ? a.n - col : 0;
    const float *x = gate_at(a, row, col);
    float g[4], u[4];
    load_4(g, x, n);
    load_4(u, x + 16, n);
    for (uint32_t i = 0; i < 4; i++) v[i] = i < n ? glu(a, weigh(a, row, g[i]), weigh(a, row, u[i])) : 0.0f;
}

#endif
