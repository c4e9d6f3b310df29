/* QUANT: one warp for 128 columns of a row, bit for bit as kernels.h of the SDK defines it. */
#include "common.cuh"

__thread uint64_t cu_n_launches;

static __global__ void quant_kernel(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out)
{
    uint32_t blocks = ceil_div(out.q_stride, 128), unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    uint32_t lane = threadIdx.x % 32, row = unit / blocks, col = unit % blocks * 128 + lane * 4;
    if (row >= n_rows) return; /* a whole warp */
    float v[4], amax = 0;
    bool finite = true;
    for (uint32_t i = 0; i < 4; i++) {
        v[i] = col + i < n_in ? x[row * x_stride + col + i] : 0.0f;
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
    if (lane % 8 == 0 && col / 32 < out.sum_stride) out.sum[(size_t)row * out.sum_stride + col / 32] = sum;
    if (lane == 0 && col < n_in)
        out.scale[(size_t)row * out.scale_stride + col / 128] = good     ? __fdiv_rn(amax, 127.0f)
                                                                : finite ? 0.0f
                                                                         : __uint_as_float(0x7fc00000u);
}

void cu_launch_quant(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out, cu_stream s)
{
    uint32_t warps = n_rows * ((out.q_stride + 127) / 128);
    if (warps) CU_LAUNCH(quant_kernel, (warps + 7) / 8, 256, 0, s)(x, x_stride, n_rows, n_in, out);
}
