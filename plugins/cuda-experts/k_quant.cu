/* QUANT, of what lies there or of what GLU makes of it: one warp for 128 columns of a row (quant.cuh). */
#include "quant.cuh"

__thread uint64_t cu_n_launches;
__thread int cu_begin_early;

/* A block has WARPS rows at a time, of 128 columns, and takes others in turn where there are many: so what it finds out
 * about the columns serves more than one row. */
#define WARPS 8u
#define BLOCKS 4096u

static __global__ void __launch_bounds__(WARPS * 32)
    quant_kernel(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out)
{
    const uint32_t col = blockIdx.x * 128 + threadIdx.x * 4;
    let_next_begin();
    wait_for_stream();
    for (uint32_t row = blockIdx.y * WARPS + threadIdx.y; row < n_rows; row += gridDim.y * WARPS) {
        float v[4];
        load_4(v, x + row * x_stride + col, col < n_in ? n_in - col : 0);
        quantize(v, row, col, n_in, out);
    }
}

/* SILU: so is a.kind; then nothing is chosen for every number. */
template <bool SILU> static __global__ void __launch_bounds__(WARPS * 32) glu_quant_kernel(cu_glu a, cu_act out)
{
    const uint32_t col = blockIdx.x * 128 + threadIdx.x * 4;
    if (SILU) a.kind = KS_ACT_SILU;
    let_next_begin();
    wait_for_stream();
    for (uint32_t row = blockIdx.y * WARPS + threadIdx.y; row < a.n_rows; row += gridDim.y * WARPS) {
        float v[4];
        glu_4(v, a, row, col);
        quantize(v, row, col, a.n, out);
    }
}

static dim3 blocks_of(uint32_t n_rows, const cu_act *out)
{
    uint32_t n = (out->q_stride + 127) / 128, most = n < BLOCKS ? BLOCKS / n : 1, rows = (n_rows + WARPS - 1) / WARPS;
    return dim3(n, rows < most ? rows : most);
}

void cu_launch_quant(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out, cu_stream s)
{
    if (!n_rows) return;
    CU_LAUNCH_EARLY(quant_kernel, blocks_of(n_rows, &out), dim3(32, WARPS), 0, s)(x, x_stride, n_rows, n_in, out);
}

void cu_launch_glu_quant(const cu_glu *a, cu_act out, cu_stream s)
{
    if (!a->n_rows) return;
    dim3 grid = blocks_of(a->n_rows, &out);
    if (a->kind == KS_ACT_SILU)
        CU_LAUNCH_EARLY(glu_quant_kernel<true>, grid, dim3(32, WARPS), 0, s)(*a, out);
    else
        CU_LAUNCH_EARLY(glu_quant_kernel<false>, grid, dim3(32, WARPS), 0, s)(*a, out);
}
