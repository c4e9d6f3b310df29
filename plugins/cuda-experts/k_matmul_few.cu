/* MATMUL of I8, I4 and MXFP4 weights with quantized activations, up to 16 rows (matmul_int.cuh). */
#include "matmul_int.cuh"

#define FEW 8u /* rows of a block */
#define FEW_WARPS 8u
#define FEW_GROUPS 32u /* weight groups between two folds */

/* Up to 8 rows: a block owns one strip, its warps share the groups. */
template <uint32_t TYPE> static __global__ void __launch_bounds__(FEW_WARPS * 32) few_kernel(cu_matmul m)
{
    __shared__ int32_t isum[FEW_GROUPS][16][FEW];
    uint32_t z = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    cu_ref r;
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * FEW;
    if (p0 >= r.n) return;
    uint32_t n = min(FEW, r.n - p0), n_in = t16_n_in(m.n_in), n_groups = ceil_div(n_in, m.group);
    const uint8_t *strip = r.w + blockIdx.x * m.strip_bytes;
    const uint8_t *scales = strip + (size_t)n_in * 16 * (TYPE == KS_T_I8 ? 8 : 4) / 8;
    /* This lane's column of B. */
    const int8_t *xq = g < n ? m.act.q + (size_t)input_row(m, r.begin + p0 + g, z) * m.act.q_stride : nullptr;
    /* The fold's output: thread (row, column). */
    uint32_t row = threadIdx.x / FEW, col = threadIdx.x % FEW;
    bool folds = threadIdx.x < 16 * FEW && col < n;
    const float *xscale =
        folds ? m.act.scale + (size_t)input_row(m, r.begin + p0 + col, z) * m.act.scale_stride : nullptr;
    float acc = 0;
    for (uint32_t g0 = 0; g0 < n_groups; g0 += FEW_GROUPS) {
        uint32_t g1 = min(g0 + FEW_GROUPS, n_groups);
        for (uint32_t i = g0 + warp; i < g1; i += FEW_WARPS) {
            uint32_t k0 = i * m.group, k1 = min(k0 + m.group, n_in);
            int32_t c[4] = { 0, 0, 0, 0 };
            for (uint32_t k = k0; k < k1; k += 32) {
                frag f = decode<TYPE>(load_weights<TYPE>(strip, k, g, t));
                uint2 b = xq ? *(const uint2 *)(xq + k + 8 * t) : make_uint2(0, 0);
                mma_s8(c, f.a, b.x, b.y);
            }
            isum[i - g0][g][2 * t] = sum_of<TYPE>(c[0]);
            isum[i - g0][g][2 * t + 1] = sum_of<TYPE>(c[1]);
            isum[i - g0][g + 8][2 * t] = sum_of<TYPE>(c[2]);
            isum[i - g0][g + 8][2 * t + 1] = sum_of<TYPE>(c[3]);
        }
        __syncthreads();
        for (uint32_t i = g0; folds && i < g1; i++)
            acc = __fmaf_rn(__int2float_rn(isum[i - g0][row][col]),
                            __fmul_rn(weight_scale<TYPE>(scales, i, row), xscale[i * m.group / 128]), acc);
        __syncthreads();
    }
    if (folds && blockIdx.x * 16 + row < m.n_out) store(m, r, z, r.begin + p0 + col, blockIdx.x * 16 + row, acc);
}

template <uint32_t TYPE> static void launch(const cu_matmul *m, cu_stream s)
{
    dim3 grid((m->n_out + 15) / 16, (m->n_rows + FEW - 1) / FEW, m->n_mat);
    CU_LAUNCH(few_kernel<TYPE>, grid, FEW_WARPS * 32, 0, s)(*m);
}

void cu_launch_matmul_few(const cu_matmul *m, cu_stream s)
{
    if (m->type == KS_T_I8)
        launch<KS_T_I8>(m, s);
    else if (m->type == KS_T_I4)
        launch<KS_T_I4>(m, s);
    else
        launch<KS_T_MXFP4>(m, s);
}
