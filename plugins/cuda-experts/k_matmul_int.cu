/* MATMUL of I8, I4 and MXFP4 weights with quantized activations, on the integer tensor cores, straight from T16. */
#include "matmul_int.cuh"

#define FEW_ROWS 16u  /* up to here, k_matmul_few.cu */
#define TILE_ROWS 64u /* activations of a block */
#define MANY_WARPS 8u
#define STAGES 3u
#define X_STRIDE 160u /* bytes of a row of activations in shared memory: no two of 4 rows share a bank */

/* Many rows: a block owns 8 strips, one a warp, and 64 rows. Activations go through shared memory 128 columns at a
 * time, two stages ahead; a lane has its weights one stage ahead. */
template <uint32_t TYPE, uint32_t GROUP>
static __global__ void __launch_bounds__(MANY_WARPS * 32, 2) many_kernel(cu_matmul m)
{
    __shared__ __align__(16) uint8_t x[STAGES][TILE_ROWS][X_STRIDE];
    __shared__ float xscale[STAGES][TILE_ROWS];
    __shared__ uint32_t xrow[TILE_ROWS];
    constexpr uint32_t TILES = TILE_ROWS / 8, PER = 128 / GROUP; /* weight groups of a stage */
    uint32_t z = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    cu_ref r;
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * TILE_ROWS;
    if (p0 >= r.n) return;
    uint32_t n = min(TILE_ROWS, r.n - p0), n_in = t16_n_in(m.n_in), n_strips = ceil_div(m.n_out, 16);
    uint32_t s = blockIdx.x * MANY_WARPS + warp, n_stages = ceil_div(n_in, 128);
    bool works = s < n_strips;
    const uint8_t *strip = r.w + (size_t)(works ? s : 0) * m.strip_bytes;
    const uint8_t *scales = strip + (size_t)n_in * 16 * (TYPE == KS_T_I8 ? 8 : 4) / 8;
    for (uint32_t i = threadIdx.x; i < TILE_ROWS; i += blockDim.x) /* rows that are not there read row p0 */
        xrow[i] = input_row(m, r.begin + p0 + (i < n ? i : 0), z);
    __syncthreads();
    auto fetch = [&](uint32_t stage) {
        for (uint32_t i = threadIdx.x; stage < n_stages && i < TILE_ROWS * 8; i += blockDim.x) {
            uint32_t row = i / 8, k = stage * 128 + i % 8 * 16;
            bool there = k < m.act.q_stride;
            cp_async_16(&x[stage % STAGES][row][i % 8 * 16],
                        m.act.q + (there ? (size_t)xrow[row] * m.act.q_stride + k : 0), there ? 16 : 0);
        }
        if (stage < n_stages && threadIdx.x < TILE_ROWS)
            cp_async_4(&xscale[stage % STAGES][threadIdx.x],
                       m.act.scale + (size_t)xrow[threadIdx.x] * m.act.scale_stride + stage);
        cp_async_commit();
    };
    raw<TYPE> next[4];
    float next_scale[PER][2];
    auto fetch_weights = [&](uint32_t stage) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t k = stage * 128 + i * 32;
            if (k < n_in) next[i] = load_weights<TYPE>(strip, k, g, t);
        }
#pragma unroll
        for (uint32_t i = 0; i < PER; i++) {
            uint32_t group = stage * PER + i;
            if (group * GROUP >= n_in) continue;
            next_scale[i][0] = weight_scale<TYPE>(scales, group, g);
            next_scale[i][1] = weight_scale<TYPE>(scales, group, g + 8);
        }
    };
    float acc[TILES][4] = {};
    fetch(0);
    fetch(1);
    fetch_weights(0);
    for (uint32_t st = 0; st < n_stages; st++) {
        uint32_t buf = st % STAGES;
        cp_async_wait<1>();
        __syncthreads(); /* this stage is there, and the buffer of the one before is no longer read */
        fetch(st + 2);
        raw<TYPE> cur[4];
        float w[PER][2];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) cur[i] = next[i];
#pragma unroll
        for (uint32_t i = 0; i < 2 * PER; i++) w[i / 2][i % 2] = next_scale[i / 2][i % 2];
        if (st + 1 < n_stages) fetch_weights(st + 1);
        if (!works) continue;
#pragma unroll
        for (uint32_t i = 0; i < PER; i++) {
            if (st * 128 + i * GROUP >= n_in) break;
            int32_t c[TILES][4] = {};
#pragma unroll
            for (uint32_t kk = 0; kk < GROUP; kk += 32) {
                uint32_t k = i * GROUP + kk;
                if (st * 128 + k >= n_in) break;
                frag f = decode<TYPE>(cur[k / 32]);
#pragma unroll
                for (uint32_t j = 0; j < TILES; j++) {
                    uint2 b = *(const uint2 *)&x[buf][j * 8 + g][k + 8 * t];
                    mma_s8(c[j], f.a, b.x, b.y);
                }
            }
#pragma unroll
            for (uint32_t j = 0; j < TILES; j++) {
                float2 xs = *(const float2 *)&xscale[buf][j * 8 + 2 * t];
                float *a = acc[j];
                a[0] = __fmaf_rn(__int2float_rn(sum_of<TYPE>(c[j][0])), __fmul_rn(w[i][0], xs.x), a[0]);
                a[1] = __fmaf_rn(__int2float_rn(sum_of<TYPE>(c[j][1])), __fmul_rn(w[i][0], xs.y), a[1]);
                a[2] = __fmaf_rn(__int2float_rn(sum_of<TYPE>(c[j][2])), __fmul_rn(w[i][1], xs.x), a[2]);
                a[3] = __fmaf_rn(__int2float_rn(sum_of<TYPE>(c[j][3])), __fmul_rn(w[i][1], xs.y), a[3]);
            }
        }
    }
    if (!works) return;
#pragma unroll
    for (uint32_t j = 0; j < TILES; j++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t col = j * 8 + 2 * t + i % 2, o = s * 16 + g + (i / 2) * 8;
            if (col < n && o < m.n_out) store(m, r, z, r.begin + p0 + col, o, acc[j][i]);
        }
}

template <uint32_t TYPE> static void launch(const cu_matmul *m, cu_stream s)
{
    uint32_t strips = (m->n_out + 15) / 16;
    dim3 grid((strips + MANY_WARPS - 1) / MANY_WARPS, (m->n_rows + TILE_ROWS - 1) / TILE_ROWS, m->n_mat);
    if (m->group == 128)
        CU_LAUNCH((many_kernel<TYPE, 128>), grid, MANY_WARPS * 32, 0, s)(*m);
    else if (m->group == 64)
        CU_LAUNCH((many_kernel<TYPE, 64>), grid, MANY_WARPS * 32, 0, s)(*m);
    else
        CU_LAUNCH((many_kernel<TYPE, 32>), grid, MANY_WARPS * 32, 0, s)(*m);
}

void cu_launch_matmul_int(const cu_matmul *m, cu_stream s)
{
    if (!m->n_rows || !m->n_mat) return;
    if (m->n_rows <= FEW_ROWS)
        cu_launch_matmul_few(m, s);
    else if (m->type == KS_T_I8)
        launch<KS_T_I8>(m, s);
    else if (m->type == KS_T_I4)
        launch<KS_T_I4>(m, s);
    else
        launch<KS_T_MXFP4>(m, s);
}
