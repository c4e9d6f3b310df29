/* QUANT, of what lies there or of what GLU makes of it: one warp for 128 columns of a row, bit for bit as kernels.h of
 * the SDK defines it. */
#include "act.cuh"

__thread uint64_t cu_n_launches;

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

/* The row and the first column of this lane; false: the warp has none. */
static __device__ __forceinline__ bool find_columns(const cu_act &out, uint32_t n_rows, uint32_t *row, uint32_t *col)
{
    uint32_t blocks = ceil_div(out.q_stride, 128), unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    *row = unit / blocks;
    *col = unit % blocks * 128 + threadIdx.x % 32 * 4;
    return *row < n_rows;
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

static __global__ void quant_kernel(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out)
{
    uint32_t row, col;
    if (!find_columns(out, n_rows, &row, &col)) return;
    float v[4];
    load_4(v, x + row * x_stride + col, col < n_in ? n_in - col : 0);
    quantize(v, row, col, n_in, out);
}

static __global__ void glu_quant_kernel(cu_glu a, cu_act out)
{
    uint32_t row, col;
    if (!find_columns(out, a.n_rows, &row, &col)) return;
    const uint32_t n = col < a.n ? a.n - col : 0;
    const float *x = gate_at(a, row, col);
    float g[4], u[4], v[4];
    load_4(g, x, n);
    load_4(u, x + 16, n);
    for (uint32_t i = 0; i < 4; i++) v[i] = i < n ? glu(a, weigh(a, row, g[i]), weigh(a, row, u[i])) : 0.0f;
    quantize(v, row, col, a.n, out);
}

static uint32_t blocks_of(uint32_t n_rows, const cu_act *out)
{
    return (n_rows * ((out->q_stride + 127) / 128) + 7) / 8;
}

void cu_launch_quant(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out, cu_stream s)
{
    if (n_rows) CU_LAUNCH(quant_kernel, blocks_of(n_rows, &out), 256, 0, s)(x, x_stride, n_rows, n_in, out);
}

void cu_launch_glu_quant(const cu_glu *a, cu_act out, cu_stream s)
{
    if (a->n_rows) CU_LAUNCH(glu_quant_kernel, blocks_of(a->n_rows, &out), 256, 0, s)(*a, out);
}
