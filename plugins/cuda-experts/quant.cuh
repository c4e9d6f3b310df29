/* QUANT of 128 columns of a row by one warp, bit for bit as kernels.h of the SDK defines it. */
#ifndef CU_QUANT_CUH
#define CU_QUANT_CUH

#include "act.cuh"

/* Added to a small number it leaves its integer, ties to even, in the low bits. */
#define QUANT_START 0x4b400000u
#define QUANT_START_F 12582912.0f

/* The bits of v without its sign, or top: numbers are in the order of theirs, NaNs last. */
static __device__ __forceinline__ uint32_t quant_top(float v, uint32_t top)
{
    return max(top, __float_as_uint(v) & 0x7fffffffu);
}

/* By what numbers are multiplied whose largest has the bits top; *ret_good: else they all become 0. */
static __device__ __forceinline__ float quant_factor(uint32_t top, bool *ret_good)
{
    const float inv = __fdiv_rn(127.0f, __uint_as_float(top));
    *ret_good = top < 0x7f800000u && isfinite(inv);
    return inv;
}

static __device__ __forceinline__ float quant_scale(uint32_t top, bool good)
{
    return good ? __fdiv_rn(__uint_as_float(top), 127.0f) : top < 0x7f800000u ? 0.0f : __uint_as_float(0x7fc00000u);
}

/* Four codes, and in b what they are above QUANT_START. */
static __device__ __forceinline__ uint32_t quant_codes(const float v[4], float inv, bool good, uint32_t b[4])
{
    for (uint32_t i = 0; i < 4; i++) b[i] = __float_as_uint(__fadd_rn(__fmul_rn(v[i], inv), QUANT_START_F));
    const uint32_t q = __byte_perm(__byte_perm(b[0], b[1], 0x0040), __byte_perm(b[2], b[3], 0x0040), 0x5410);
    return good ? q : 0;
}

/* A lane's columns col .. col + 3 of a row. */
static __device__ __forceinline__ void quantize(const float v[4], uint32_t row, uint32_t col, uint32_t n_in,
                                                const cu_act &out)
{
    uint32_t top = 0, b[4];
    bool good;
    for (uint32_t i = 0; i < 4; i++) top = quant_top(v[i], top);
    top = __reduce_max_sync(~0u, top);
    const float inv = quant_factor(top, &good);
    const uint32_t q = quant_codes(v, inv, good, b);
    int32_t sum = good ? (int32_t)(b[0] + b[1] + b[2] + b[3] - 4 * QUANT_START) : 0;
    for (int o = 4; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o); /* 8 lanes: 32 columns */
    if (col < out.q_stride) *(uint32_t *)(void *)(out.q + (size_t)row * out.q_stride + col) = q;
    if (col % 32 == 0 && col / 32 < out.sum_stride) out.sum[(size_t)row * out.sum_stride + col / 32] = sum;
    if (col % 128 == 0 && col < n_in) out.scale[(size_t)row * out.scale_stride + col / 128] = quant_scale(top, good);
}

/* Columns col .. col + 3 of what GLU makes of a row. */
static __device__ __forceinline__ void glu_4(float v[4], const cu_glu &a, uint32_t row, uint32_t col)
{
    uint32_t n = col < a.n ? a.n - col : 0;
    const float *x = gate_at(a, row, col);
    float g[4], u[4];
    load_4(g, x, n);
    load_4(u, x + 16, n);
    if (a.weight) {
        for (uint32_t i = 0; i < 4; i++) {
            g[i] = __fmul_rn(g[i], a.weight[row]);
            u[i] = __fmul_rn(u[i], a.weight[row]);
        }
    }
    for (uint32_t i = 0; i < 4; i++) v[i] = glu(a, g[i], u[i]); /* of zeros, 0 */
}

#endif
