/* MATMUL of I8, I4 and MXFP4 weights with quantized activations, up to 16 rows (matmul_int.cuh).
 *
 * One row reads each weight once, so all that counts is how many bytes are on their way. A block takes one strip, or
 * two where they are short; its warps share the weight groups of up to 2048 columns. Every load of them is issued
 * before the first is used, and those of the next 2048 columns before the sums of these are folded. */
#include "matmul_int.cuh"
#include "quant.cuh"

#define FEW 8u /* rows of a block */
#define WARPS 8u
#define CHUNK 2048u /* columns between two folds */
#define ENOUGH 256u /* blocks that fill a device */
#define SPLIT 2u    /* strips of a block, at most */

/* As load_weights, but a lane has rows 2g and 2g + 1 as its rows g and g + 8: they lie side by side. */
template <uint32_t TYPE>
static __device__ __forceinline__ raw<TYPE> load_pair(const uint8_t *strip, uint32_t k, uint32_t g, uint32_t t)
{
    raw<TYPE> r;
    uint2 v = *(const uint2 *)(strip + ((TYPE == KS_T_I8 ? k / 4 + 2 * t : k / 8 + t) * 16 + 2 * g) * 4);
    r.w[0] = v.x;
    r.w[1] = v.y;
    if (TYPE == KS_T_I8) {
        v = *(const uint2 *)(strip + ((k / 4 + 2 * t + 1) * 16 + 2 * g) * 4);
        r.w[TYPE == KS_T_I8 ? 2 : 0] = v.x;
        r.w[TYPE == KS_T_I8 ? 3 : 0] = v.y;
    }
    return r;
}

static __host__ __device__ __forceinline__ uint32_t blocks_of(uint32_t n_out, uint32_t per)
{
    return ((n_out + 15) / 16 + per - 1) / per;
}

/* The block's matrix of several takes the place of m's own; returns which of its blocks this is. */
static __device__ __forceinline__ uint32_t enter_matrix(cu_matmul &m, uint32_t per)
{
    uint32_t block = blockIdx.x, before = 0;
#pragma unroll
    for (uint32_t i = 0; i < CU_MATRICES; i++) { /* no index that the compiler does not know: m stays in registers */
        if (i >= m.n_of || blockIdx.x < before) continue;
        block = blockIdx.x - before;
        before += blocks_of(m.of[i].n_out, per);
        m.w = m.of[i].w;
        m.y = m.of[i].y;
        m.y_stride = m.of[i].y_stride;
        m.bias = m.of[i].bias;
        m.n_out = m.of[i].n_out;
    }
    return block;
}

/* The block's rows, into its shared memory. */
static __device__ __forceinline__ void quantize_own(const cu_matmul &m, const cu_ref &r, uint32_t z, uint32_t p0,
                                                    uint32_t n, const cu_act &own)
{
    constexpr uint32_t AHEAD = 4;
    uint32_t groups = ceil_div(own.q_stride, 128), all = n * groups, lane = threadIdx.x % 32;
    for (uint32_t u0 = threadIdx.x / 32; u0 < all; u0 += AHEAD * WARPS) {
        float v[AHEAD][4];
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            uint32_t u = u0 + i * WARPS, row = u / groups, col = u % groups * 128 + lane * 4;
            if (u >= all) continue;
            uint32_t from = input_row(m, r.begin + p0 + row, z);
            if (m.glu.n)
                glu_4(v[i], m.glu, from, col);
            else
                load_4(v[i], m.x + from * m.x_stride + col, col < m.n_in ? m.n_in - col : 0);
        }
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            uint32_t u = u0 + i * WARPS;
            if (u < all) quantize(v[i], u / groups, u % groups * 128 + lane * 4, m.n_in, own);
        }
    }
}

/* OWN: the block quantizes its rows while its first weights are on their way. */
template <uint32_t TYPE, uint32_t GROUP, bool OWN>
static __global__ void __launch_bounds__(WARPS * 32, OWN && (TYPE == KS_T_I8 || GROUP < 128) ? 2 : 3)
    few_kernel(cu_matmul m, uint32_t per)
{
    CU_DYNAMIC_SHARED(int8_t, own_q); /* with OWN: (rows, n_in), and the scales (rows, n_in / 128) */
    constexpr uint32_t TASKS = CHUNK / GROUP, MINE = TASKS / WARPS, STEPS = GROUP / 32;
    constexpr uint32_t SCALES = TASKS * 16 / (WARPS * 32);
    __shared__ int32_t isum[TASKS][16][FEW];
    __shared__ float wscale[TASKS][16], xscale[CHUNK / 128][FEW];
    uint32_t z = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t block = enter_matrix(m, per);
    cu_ref r;
    let_next_begin();
    if (m.refs) wait_for_stream(); /* else the weights are known, and set out before */
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * FEW;
    if (p0 >= r.n) return;
    uint32_t n = min(FEW, r.n - p0), n_in = t16_n_in(m.n_in), first = block * per;
    uint32_t n_strips = min(per, ceil_div(m.n_out, 16) - first);
    const uint8_t *strips = r.w + first * m.strip_bytes;
    const size_t scales_at = (size_t)n_in * 16 * (TYPE == KS_T_I8 ? 8 : 4) / 8;
    /* This lane's column of B; the fold's output: row of a strip, column. */
    cu_act own = {};
    if (OWN) {
        own.q = own_q;
        own.q_stride = n_in;
        own.scale = (float *)(own_q + n * n_in); /* n_in is a multiple of 32 */
        own.scale_stride = ceil_div(n_in, 128);
    }
    auto row_of = [&](uint32_t p) { return OWN ? (size_t)p : (size_t)input_row(m, r.begin + p0 + p, z); };
    const cu_act &act = OWN ? own : m.act;
    const int8_t *xq = g < n ? act.q + row_of(g) * act.q_stride : nullptr;
    uint32_t strip = threadIdx.x / (16 * FEW), row = threadIdx.x / FEW % 16, col = threadIdx.x % FEW;
    const float *xs = strip == 0 && col < n ? act.scale + row_of(col) * act.scale_stride : nullptr;
    raw<TYPE> w[MINE][STEPS];
    uint2 x[MINE][STEPS];
    float ws[SCALES], xscale_next = 0, acc = 0;
    uint32_t groups = 0;
    auto fetch = [&](uint32_t c0) {
        groups = ceil_div(min(CHUNK, n_in - c0), GROUP);
#pragma unroll
        for (uint32_t i = 0; i < MINE; i++) {
            uint32_t task = warp + i * WARPS, k0 = c0 + task % groups * GROUP;
#pragma unroll
            for (uint32_t j = 0; j < STEPS; j++) {
                uint32_t k = k0 + j * 32;
                w[i][j] = raw<TYPE> {};
                if (task < groups * n_strips && k < n_in)
                    w[i][j] = load_pair<TYPE>(strips + task / groups * m.strip_bytes, k, g, t);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < SCALES; i++) {
            uint32_t at = threadIdx.x + i * WARPS * 32, task = at / 16;
            ws[i] = 0;
            if (task < groups * n_strips)
                ws[i] = weight_scale<TYPE>(strips + task / groups * m.strip_bytes + scales_at,
                                           c0 / GROUP + task % groups, at % 16);
        }
        if (!m.refs && c0 == 0) wait_for_stream();
        if (OWN && c0 == 0) {
            quantize_own(m, r, z, p0, n, own);
            __syncthreads();
        }
#pragma unroll
        for (uint32_t i = 0; i < MINE; i++) {
            uint32_t task = warp + i * WARPS, k0 = c0 + task % groups * GROUP;
#pragma unroll
            for (uint32_t j = 0; j < STEPS; j++) {
                uint32_t k = k0 + j * 32;
                x[i][j] =
                    xq && task < groups * n_strips && k < n_in ? *(const uint2 *)(xq + k + 8 * t) : make_uint2(0, 0);
            }
        }
        if (xs && c0 / 128 + row < ceil_div(n_in, 128)) xscale_next = xs[c0 / 128 + row];
    };
    fetch(0);
    for (uint32_t c0 = 0; c0 < n_in; c0 += CHUNK) {
        uint32_t here = groups;
#pragma unroll
        for (uint32_t i = 0; i < MINE; i++) {
            uint32_t task = warp + i * WARPS;
            int32_t c[4] = { 0, 0, 0, 0 };
#pragma unroll
            for (uint32_t j = 0; j < STEPS; j++) mma_s8(c, decode<TYPE>(w[i][j]).a, x[i][j].x, x[i][j].y);
            if (2 * t >= n) continue;
            *(int2 *)&isum[task][2 * g][2 * t] = make_int2(sum_of<TYPE>(c[0]), sum_of<TYPE>(c[1]));
            *(int2 *)&isum[task][2 * g + 1][2 * t] = make_int2(sum_of<TYPE>(c[2]), sum_of<TYPE>(c[3]));
        }
#pragma unroll
        for (uint32_t i = 0; i < SCALES; i++) {
            uint32_t at = threadIdx.x + i * WARPS * 32;
            wscale[at / 16][at % 16] = ws[i];
        }
        if (strip == 0) xscale[row][col] = xscale_next;
        if (c0 + CHUNK < n_in) fetch(c0 + CHUNK);
        __syncthreads();
        for (uint32_t i = 0; strip < n_strips && col < n && i < here; i++) {
            uint32_t task = strip * here + i;
            acc = __fmaf_rn(__int2float_rn(isum[task][row][col]),
                            __fmul_rn(wscale[task][row], xscale[i * GROUP / 128][col]), acc);
        }
        __syncthreads();
    }
    uint32_t o = (first + strip) * 16 + row;
    if (strip < n_strips && col < n && o < m.n_out) store(m, r, z, r.begin + p0 + col, o, acc);
}

template <uint32_t TYPE, uint32_t GROUP, bool OWN> static void launch_as(const cu_matmul *m, cu_stream s)
{
    uint32_t strips = m->n_of ? 0 : blocks_of(m->n_out, 1), blocks = (m->n_rows + FEW - 1) / FEW, all = 0;
    for (uint32_t i = 0; i < m->n_of; i++) strips += blocks_of(m->of[i].n_out, 1);
    uint32_t per = m->n_in <= CHUNK / SPLIT && strips * m->n_mat >= SPLIT * ENOUGH ? SPLIT : 1;
    for (uint32_t i = 0; i < m->n_of; i++) all += blocks_of(m->of[i].n_out, per);
    dim3 grid(m->n_of ? all : blocks_of(m->n_out, per), blocks, m->n_mat);
    uint32_t rows = m->n_rows < FEW ? m->n_rows : FEW, n_in = (m->n_in + 31) / 32 * 32;
    size_t bytes = OWN ? rows * (n_in + (n_in + 127) / 128 * sizeof(float)) : 0;
    CU_LAUNCH_EARLY((few_kernel<TYPE, GROUP, OWN>), grid, WARPS * 32, bytes, s)(*m, per);
}

template <uint32_t TYPE, uint32_t GROUP> struct few {
    static void now(const cu_matmul *m, cu_stream s)
    {
        if (m->act.q)
            launch_as<TYPE, GROUP, false>(m, s);
        else
            launch_as<TYPE, GROUP, true>(m, s);
    }
};

void cu_launch_matmul_few(const cu_matmul *m, cu_stream s)
{
    launch_shape<few>(m, s);
}
