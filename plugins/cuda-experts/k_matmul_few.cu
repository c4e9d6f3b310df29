/* MATMUL of I8, I4 and MXFP4 weights with quantized activations, up to 16 rows (matmul_int.cuh).
 *
 * One row reads each weight once, so all that counts is how many bytes are on their way, and how little a step's chain
 * of kernels waits. A block goes through pieces: one strip, or two where they are short, by up to 2048 columns, which
 * its warps share by weight groups. Every load of a piece is issued before the first is used, and those of the next
 * piece before the sums of this one are folded.
 *
 * Each part stands once in the code, in loops that are not unrolled: what runs once a launch waits longer for its
 * instructions than for anything else. */
#include "matmul_int.cuh"
#include "quant.cuh"

#define FEW 8u /* rows of a block */
#define WARPS 8u
#define CHUNK 2048u /* columns of a piece */
#define SPLIT 2u    /* strips of a piece, at most */
#define ENOUGH 256u /* blocks that fill a device, */
#define MOST_TURNS 8u
#define FULL 396u /* and what it holds at once: three for each of 132 multiprocessors */

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

/* The block's rows, into its shared memory. A warp takes 128 columns at a time; those of the next turns are on their
 * way. */
static __device__ __forceinline__ void quantize_own(const cu_matmul &m, const cu_ref &r, uint32_t z, uint32_t p0,
                                                    uint32_t n, const cu_act &own)
{
    constexpr uint32_t AHEAD = 3;
    const uint32_t groups = ceil_div(own.q_stride, 128), all = n * groups, lane = threadIdx.x % 32;
    float v[AHEAD + 1][4] = {};
#pragma unroll 1
    for (uint32_t u = threadIdx.x / 32; u < all + AHEAD * WARPS; u += WARPS) {
        if (u < all) {
            uint32_t col = u % groups * 128 + lane * 4, from = input_row(m, r.begin + p0 + u / groups, z);
            if (m.glu.n)
                glu_4(v[AHEAD], m.glu, from, col);
            else
                load_4(v[AHEAD], m.x + from * m.x_stride + col, col < m.n_in ? m.n_in - col : 0);
        }
        uint32_t now = u - AHEAD * WARPS;
        if (now < all) quantize(v[0], now / groups, now % groups * 128 + lane * 4, m.n_in, own);
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++)
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) v[i][j] = v[i + 1][j];
    }
}

/* OWN: the block quantizes its rows while its first weights are on their way. */
template <uint32_t TYPE, uint32_t GROUP, bool OWN>
static __global__ void __launch_bounds__(WARPS * 32, OWN && (TYPE == KS_T_I8 || GROUP < 128) ? 2 : 3)
    few_kernel(cu_matmul m, uint32_t per, uint32_t at_once)
{
    CU_DYNAMIC_SHARED(int8_t, own_q); /* with OWN: (rows, n_in), and the scales (rows, n_in / 128) */
    constexpr uint32_t TASKS = CHUNK / GROUP, MINE = TASKS / WARPS, STEPS = GROUP / 32;
    constexpr uint32_t SCALES = TASKS * 16 / (WARPS * 32), ROW = TASKS + 4; /* neighbours in other banks */
    __shared__ __align__(16) int32_t isum[FEW][16][ROW];
    __shared__ __align__(16) float wscale[16][ROW], xscale[FEW][CHUNK / 128];
    uint32_t z = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t block = enter_matrix(m, per);
    cu_ref r;
    let_next_begin();
    if (m.refs) wait_for_stream(); /* else the weights are known, and set out before */
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * FEW;
    if (p0 >= r.n) return;
    const uint32_t n = min(FEW, r.n - p0), n_in = t16_n_in(m.n_in), first = block * per, all = ceil_div(m.n_out, 16);
    const uint32_t n_strips = min(per, all - first), n_chunks = ceil_div(n_in, CHUNK);
    const uint32_t n_pieces = ceil_div(n_strips, at_once) * n_chunks, half = at_once > 1 ? TASKS / SPLIT : 0;
    const size_t scales_at = (size_t)n_in * 16 * (TYPE == KS_T_I8 ? 8 : 4) / 8;
    cu_act own = {};
    if (OWN) {
        own.q = own_q;
        own.q_stride = n_in;
        own.scale = (float *)(own_q + n * n_in); /* n_in is a multiple of 32 */
        own.scale_stride = ceil_div(n_in, 128);
    }
    auto row_of = [&](uint32_t p) { return OWN ? (size_t)p : (size_t)input_row(m, r.begin + p0 + p, z); };
    const cu_act &act = OWN ? own : m.act;
    /* This lane's column of B; the fold's output: strip of the piece, its row, column. */
    const int8_t *xq = g < n ? act.q + row_of(g) * act.q_stride : nullptr;
    const uint32_t strip = threadIdx.x / (16 * FEW), row = threadIdx.x / FEW % 16, col = threadIdx.x % FEW;
    const float *xs = strip == 0 && col < n ? act.scale + row_of(col) * act.scale_stride : nullptr;
    raw<TYPE> w[MINE][STEPS];
    uint2 x[MINE][STEPS];
    float ws[SCALES], xscale_next = 0, acc = 0;
    uint32_t groups = 0, here = 0, s0 = 0, c0 = 0; /* of the piece in registers: groups of columns, strips, the first */
#pragma unroll 1
    for (uint32_t piece = 0;; piece++) {
        const uint32_t done = groups, done_strips = here, done_s0 = s0;
        if (piece) {
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                uint32_t task = warp + i * WARPS, at = task / groups * half + task % groups;
                int32_t c[4] = { 0, 0, 0, 0 };
#pragma unroll
                for (uint32_t j = 0; j < STEPS; j++) mma_s8(c, decode<TYPE>(w[i][j]).a, x[i][j].x, x[i][j].y);
                if (task >= groups * here) continue;
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    if (2 * t + j % 2 < n) isum[2 * t + j % 2][2 * g + j / 2][at] = sum_of<TYPE>(c[j]);
            }
#pragma unroll
            for (uint32_t i = 0; i < SCALES; i++) {
                uint32_t at = threadIdx.x + i * WARPS * 32, task = at / 16;
                if (task < groups * here) wscale[at % 16][task / groups * half + task % groups] = ws[i];
            }
            if (strip == 0) xscale[col][row] = xscale_next;
        }
        if (piece < n_pieces) {
            s0 = piece / n_chunks * at_once;
            c0 = piece % n_chunks * CHUNK;
            here = min(at_once, n_strips - s0);
            groups = ceil_div(min(CHUNK, n_in - c0), GROUP);
            const uint8_t *strips = r.w + (size_t)(first + s0) * m.strip_bytes;
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                uint32_t task = warp + i * WARPS, k0 = c0 + task % groups * GROUP;
                const uint8_t *from = strips + task / groups * m.strip_bytes;
#pragma unroll
                for (uint32_t j = 0; j < STEPS; j++) {
                    w[i][j] = raw<TYPE> {};
                    if (task < groups * here && k0 + j * 32 < n_in) w[i][j] = load_pair<TYPE>(from, k0 + j * 32, g, t);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < SCALES; i++) {
                uint32_t at = threadIdx.x + i * WARPS * 32, task = at / 16;
                ws[i] = 0;
                if (task < groups * here)
                    ws[i] = weight_scale<TYPE>(strips + task / groups * m.strip_bytes + scales_at,
                                               c0 / GROUP + task % groups, at % 16);
            }
            if (!piece && !m.refs) wait_for_stream();
            if (OWN && !piece) {
                quantize_own(m, r, z, p0, n, own);
                __syncthreads();
            }
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                uint32_t task = warp + i * WARPS, k0 = c0 + task % groups * GROUP;
#pragma unroll
                for (uint32_t j = 0; j < STEPS; j++) {
                    x[i][j] = make_uint2(0, 0);
                    if (xq && task < groups * here && k0 + j * 32 < n_in)
                        x[i][j] = *(const uint2 *)(xq + k0 + j * 32 + 8 * t);
                }
            }
            if (xs && c0 / 128 + row < ceil_div(n_in, 128)) xscale_next = xs[c0 / 128 + row];
        }
        if (!piece) continue;
        __syncthreads();
        if (strip < done_strips && col < n) {
            const int32_t *is = isum[col][row] + strip * half;
            const float *ws4 = wscale[row] + strip * half;
#pragma unroll 4
            for (uint32_t i = 0; i < TASKS && i < done; i += 4) {
                const int4 v4 = *(const int4 *)(is + i);
                const float4 w4 = *(const float4 *)(ws4 + i);
                const int32_t v[4] = { v4.x, v4.y, v4.z, v4.w };
                const float f[4] = { w4.x, w4.y, w4.z, w4.w };
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    if (i + j < done)
                        acc = __fmaf_rn(__int2float_rn(v[j]), __fmul_rn(f[j], xscale[col][(i + j) * GROUP / 128]), acc);
            }
            uint32_t o = (first + done_s0 + strip) * 16 + row;
            if (piece % n_chunks == 0) {
                if (o < m.n_out) store(m, r, z, r.begin + p0 + col, o, acc);
                acc = 0;
            }
        }
        if (piece == n_pieces) return;
        __syncthreads();
    }
}

template <uint32_t TYPE, uint32_t GROUP, bool OWN> static void launch_as(const cu_matmul *m, cu_stream s)
{
    uint32_t strips = m->n_of ? 0 : blocks_of(m->n_out, 1), blocks = (m->n_rows + FEW - 1) / FEW, all = 0;
    for (uint32_t i = 0; i < m->n_of; i++) strips += blocks_of(m->of[i].n_out, 1);
    const uint32_t at_once = m->n_in <= CHUNK / SPLIT && strips * m->n_mat >= SPLIT * ENOUGH ? SPLIT : 1;
    /* As many pieces a block that all blocks run at once, as far as that goes. */
    const uint32_t turns = (strips * m->n_mat * blocks + at_once * FULL - 1) / (at_once * FULL);
    const uint32_t per = at_once * (turns < MOST_TURNS ? turns : MOST_TURNS);
    for (uint32_t i = 0; i < m->n_of; i++) all += blocks_of(m->of[i].n_out, per);
    dim3 grid(m->n_of ? all : blocks_of(m->n_out, per), blocks, m->n_mat);
    uint32_t rows = m->n_rows < FEW ? m->n_rows : FEW, n_in = (m->n_in + 31) / 32 * 32;
    size_t bytes = OWN ? rows * (n_in + (n_in + 127) / 128 * sizeof(float)) : 0;
    CU_LAUNCH_EARLY((few_kernel<TYPE, GROUP, OWN>), grid, WARPS * 32, bytes, s)(*m, per, at_once);
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
