/* QUANT, of what lies there or of what GLU makes of it: one warp for 128 columns of a row (quant.cuh). */
#include "quant.cuh"

__thread uint64_t cu_n_launches;
__thread int cu_begin_early;

/* The row and the first column of this lane; false: the warp has none. */
static __device__ __forceinline__ bool find_columns(const cu_act &out, uint32_t n_rows, uint32_t *row, uint32_t *col)
{
    uint32_t blocks = ceil_div(out.q_stride, 128), unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    *row = unit / blocks;
    *col = unit % blocks * 128 + threadIdx.x % 32 * 4;
    return *row < n_rows;
}

static __global__ void quant_kernel(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out)
{
    uint32_t row, col;
    let_next_begin();
    wait_for_stream();
    if (!find_columns(out, n_rows, &row, &col)) return;
    float v[4];
    load_4(v, x + row * x_stride + col, col < n_in ? n_in - col : 0);
    quantize(v, row, col, n_in, out);
}

static __global__ void glu_quant_kernel(cu_glu a, cu_act out)
{
    uint32_t row, col;
    let_next_begin();
    wait_for_stream();
    if (!find_columns(out, a.n_rows, &row, &col)) return;
    float v[4];
    glu_4(v, a, row, col);
    quantize(v, row, col, a.n, out);
}

static uint32_t blocks_of(uint32_t n_rows, const cu_act *out)
{
    return (n_rows * ((out->q_stride + 127) / 128) + 7) / 8;
}

void cu_launch_quant(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out, cu_stream s)
{
    if (n_rows) CU_LAUNCH_EARLY(quant_kernel, blocks_of(n_rows, &out), 256, 0, s)(x, x_stride, n_rows, n_in, out);
}

void cu_launch_glu_quant(const cu_glu *a, cu_act out, cu_stream s)
{
    if (a->n_rows) CU_LAUNCH_EARLY(glu_quant_kernel, blocks_of(a->n_rows, &out), 256, 0, s)(*a, out);
}
