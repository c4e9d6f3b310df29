/* MATMUL of I8, I4 and MXFP4 weights with quantized activations, up to 16 rows (matmul_int.cuh).
 *
 * One row reads each weight once, so all that counts is how many bytes are on their way, and how little a step's chain
 * of kernels waits. A block goes through pieces: one strip, or two where they are short, by up to 2048 columns, which
 * its warps share by weight groups. Every load of a piece is issued before the first is used, and those of the next
 * piece before the sums of this one are folded.
 *
 * The kernel is one long function, since what a piece has in registers goes from part to part. Each part stands once in
 * the code, in loops that are not unrolled: what runs once a launch waits longer for its instructions than for anything
 * else. */
#include "matmul_int.cuh"
#include "quant.cuh"

#define FEW 8u       /* rows of a block */
#define COLUMNS 256u /* of a piece, a warp */
#define SPLIT 2u     /* strips of a piece, at most */
#define SMALL 8192u  /* shared memory that a launch gets unasked, with what the kernel has of its own */
#define ENOUGH 256u  /* blocks that fill a device, */
#define MOST_TURNS 8u
#define FULL_WARPS 3168u /* and what runs at once: three blocks of eight for each of 132 multiprocessors */

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
static __device__ __forceinline__ uint32_t enter_matrix(const cu_matmul &all, cu_matmul &m, uint32_t per)
{
    uint32_t block = blockIdx.x, i = 0, n;
    if (!all.n_of) return block;
#pragma unroll 1
    for (; block >= (n = blocks_of(all.of[i].n_out, per)); i++) block -= n;
    m.w = all.of[i].w;
    m.y = all.of[i].y;
    m.y_stride = all.of[i].y_stride;
    m.bias = all.of[i].bias;
    m.n_out = all.of[i].n_out;
    return block;
}

/* Numbers that a block brings in to quantize a row itself: its columns, or gates and ups and what becomes of them. */
static __host__ __device__ __forceinline__ uint32_t own_width(const cu_matmul &m)
{
    return m.glu.n ? (m.glu.n + 15) / 16 * 48 : (m.n_in + 3) / 4 * 4;
}

/* QUANT of 128 columns by eight threads that lie side by side, four times four each: the bits of quantize(). A group
 * that is not there is nobody's. */
static __device__ __forceinline__ void quantize_group(const float *x, uint32_t row, uint32_t group, uint32_t n_in,
                                                      const cu_act &out)
{
    const uint32_t col = group * 128 + threadIdx.x % 8 * 4;
    float v[16];
    uint32_t top = 0, b[4];
    bool good;
#pragma unroll
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t at = col + i / 4 * 32 + i % 4;
        v[i] = at < n_in ? x[at] : 0.0f;
        top = quant_top(v[i], top);
    }
    for (int o = 4; o; o >>= 1) top = max(top, __shfl_xor_sync(~0u, top, o));
    const float inv = quant_factor(top, &good);
#pragma unroll
    for (uint32_t i = 0; i < 16; i += 4) {
        const uint32_t q = quant_codes(v + i, inv, good, b);
        if (col + i * 8 < out.q_stride) *(uint32_t *)(void *)(out.q + (size_t)row * out.q_stride + col + i * 8) = q;
    }
    if (col % 128 == 0 && col < n_in) out.scale[(size_t)row * out.scale_stride + group] = quant_scale(top, good);
}

/* The block's rows, by way of x (rows, own_width), into its shared memory. */
template <uint32_t THREADS>
static __device__ __forceinline__ void quantize_own(const cu_matmul &m, const cu_ref &r, uint32_t z, uint32_t p0,
                                                    uint32_t n, float *x, const cu_act &own)
{
    const uint32_t width = own_width(m), in = m.glu.n ? width / 3 * 2 : m.n_in, out = m.glu.n ? in : 0;
    const uint32_t groups = ceil_div(own.q_stride, 128);
#pragma unroll 1
    for (uint32_t row = 0; row < n; row++) {
        uint32_t from = input_row(m, r.begin + p0 + row, z);
        const float *y = m.glu.n ? m.glu.x.p + from * m.glu.x.stride : m.x + from * m.x_stride;
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < in; i += THREADS) cp_async_4(x + row * width + i, y + i);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (uint32_t row = 0; m.glu.n && row < n; row++) {
        uint32_t from = input_row(m, r.begin + p0 + row, z);
        float *y = x + row * width;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < m.glu.n; i += THREADS) {
            const float *gate = y + i / 16 * 32 + i % 16;
            y[out + i] = glu(m.glu, weigh(m.glu, from, gate[0]), weigh(m.glu, from, gate[16]));
        }
    }
    if (m.glu.n) __syncthreads();
    for (uint32_t u = threadIdx.x / 8; u < ceil_div(n * groups, 4) * 4; u += THREADS / 8) { /* whole warps */
        uint32_t row = u < n * groups ? u / groups : 0, group = u < n * groups ? u % groups : groups;
        quantize_group(x + row * width + out, row, group, m.n_in, own);
    }
    __syncthreads();
}

/* OWN: the block quantizes its rows while its first weights are on their way. per: strips of a block; of these a piece
 * has 1 << pair. */
template <uint32_t TYPE, uint32_t GROUP, bool OWN, uint32_t WARPS>
static __global__ void __launch_bounds__(WARPS * 32, WARPS > 8                                 ? 1
                                                     : OWN && (TYPE == KS_T_I8 || GROUP < 128) ? 2
                                                                                               : 3)
    few_kernel(const __grid_constant__ cu_matmul all, uint32_t per, uint32_t pair)
{
    CU_DYNAMIC_SHARED(float, own_x); /* with OWN: (rows, own_width), the scales (rows, n_in / 128), (rows, n_in) */
    constexpr uint32_t CHUNK = WARPS * COLUMNS, TASKS = CHUNK / GROUP, MINE = TASKS / WARPS, STEPS = GROUP / 32,
                       HALF = TASKS / SPLIT;
    constexpr uint32_t SCALES = TASKS * 16 / (WARPS * 32), ROW = TASKS + 4; /* neighbours in other banks */
    __shared__ __align__(16) int32_t isum[FEW][16][ROW];
    __shared__ __align__(16) float wscale[16][ROW], xscale[FEW][CHUNK / 128];
    cu_matmul m = all;
    uint32_t z = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t block = enter_matrix(all, m, per);
    cu_ref r;
    /* Are the weights known before the kernel before this one has ended, so that they set out now? Refs are where it
     * made gates and ups of the same experts: it has let this one begin only when it had them. */
    const bool known = !m.refs || m.glu.n;
    if (!known) wait_for_stream();
    let_next_begin();
    const uint32_t p0 = blockIdx.y * FEW;
    if (!find_matrix(m, z, &r) || p0 >= r.n) {
        if (known) wait_for_stream();
        return;
    }
    const uint32_t n = min(FEW, r.n - p0), n_in = t16_n_in(m.n_in), first = block * per;
    const uint32_t n_strips = min(per, ceil_div(m.n_out, 16) - first);
    const size_t scales_at = (size_t)n_in * 16 * (TYPE == KS_T_I8 ? 8 : 4) / 8;
    cu_act own = {};
    if (OWN) {
        own.scale = own_x + n * own_width(m);
        own.scale_stride = ceil_div(n_in, 128);
        own.q = (int8_t *)(own.scale + ceil_div(n * own.scale_stride, 4) * 4);
        own.q_stride = n_in;
    }
    auto row_of = [&](uint32_t p) { return OWN ? (size_t)p : (size_t)input_row(m, r.begin + p0 + p, z); };
    const cu_act &act = OWN ? own : m.act;
    /* This lane's column of B; the fold's output: strip of the piece, its row, column. */
    const int8_t *xq = g < n ? act.q + row_of(g) * act.q_stride : nullptr;
    const uint32_t strip = threadIdx.x / (16 * FEW), row = threadIdx.x / FEW % 16, col = threadIdx.x % FEW;
    const uint32_t at_group = threadIdx.x / FEW; /* of 128 columns of the piece, for column col */
    const float *xs = at_group < CHUNK / 128 && col < n ? act.scale + row_of(col) * act.scale_stride : nullptr;
    raw<TYPE> w[MINE][STEPS];
    uint2 x[MINE][STEPS];
    float ws[SCALES], xscale_next = 0, acc = 0;
    /* Of the piece in registers: its first strip and column, groups of columns, groups of all its strips. */
    uint32_t s0 = 0, c0 = 0, groups = 0, tasks = 0;
    /* A task is a group of columns of the piece's first strip, or of its second: which, and where its sums lie. */
    auto group_of = [&](uint32_t task) { return task < groups ? task : task - groups; };
    auto place_of = [&](uint32_t task) { return task < groups ? task : HALF + task - groups; };
#pragma unroll 1
    for (bool begun = false;; begun = true) {
        const uint32_t done = groups, done_tasks = tasks, done_s0 = s0;
        if (begun) {
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                uint32_t task = warp + i * WARPS, at = place_of(task);
                int32_t c[4] = { 0, 0, 0, 0 };
#pragma unroll
                for (uint32_t j = 0; j < STEPS; j++) mma_s8(c, decode<TYPE>(w[i][j]).a, x[i][j].x, x[i][j].y);
                if (task >= tasks) continue;
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    if (2 * t + j % 2 < n) isum[2 * t + j % 2][2 * g + j / 2][at] = sum_of<TYPE>(c[j]);
            }
#pragma unroll
            for (uint32_t i = 0; i < SCALES; i++) {
                uint32_t at = threadIdx.x + i * WARPS * 32, task = at / 16;
                if (task < tasks) wscale[at % 16][place_of(task)] = ws[i];
            }
            if (at_group < CHUNK / 128) xscale[col][at_group] = xscale_next;
            c0 += CHUNK;
            if (c0 >= n_in) {
                c0 = 0;
                s0 += 1u << pair;
            }
        }
        const bool ends = c0 == 0, more = s0 < n_strips; /* of the piece that is done: sums are whole; another comes */
        if (more) {
            groups = ceil_div(min(CHUNK, n_in - c0), GROUP);
            tasks = pair && s0 + 1 < n_strips ? 2 * groups : groups;
            const uint8_t *strips = r.w + (size_t)(first + s0) * m.strip_bytes;
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                uint32_t task = warp + i * WARPS, k0 = c0 + group_of(task) * GROUP;
                const uint8_t *from = task < groups ? strips : strips + m.strip_bytes;
#pragma unroll
                for (uint32_t j = 0; j < STEPS; j++) {
                    w[i][j] = raw<TYPE> {};
                    if (task < tasks && k0 + j * 32 < n_in) w[i][j] = load_pair<TYPE>(from, k0 + j * 32, g, t);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < SCALES; i++) {
                uint32_t at = threadIdx.x + i * WARPS * 32, task = at / 16;
                ws[i] = 0;
                if (task < tasks)
                    ws[i] = weight_scale<TYPE>((task < groups ? strips : strips + m.strip_bytes) + scales_at,
                                               c0 / GROUP + group_of(task), at % 16);
            }
            if (!begun && known) wait_for_stream();
            if (OWN && !begun) quantize_own<WARPS * 32>(m, r, z, p0, n, own_x, own);
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                uint32_t task = warp + i * WARPS, k0 = c0 + group_of(task) * GROUP;
#pragma unroll
                for (uint32_t j = 0; j < STEPS; j++) {
                    x[i][j] = make_uint2(0, 0);
                    if (xq && task < tasks && k0 + j * 32 < n_in) x[i][j] = *(const uint2 *)(xq + k0 + j * 32 + 8 * t);
                }
            }
            if (xs && c0 / 128 + at_group < ceil_div(n_in, 128)) xscale_next = xs[c0 / 128 + at_group];
        }
        if (!begun) continue;
        __syncthreads();
        if (strip * done < done_tasks && col < n) {
            const int32_t *is = isum[col][row] + strip * HALF;
            const float *f = wscale[row] + strip * HALF;
#pragma unroll(GROUP < 128 ? 2 : 4)
            for (uint32_t i = 0; i < TASKS && i < done; i += 4) {
                const int4 v4 = *(const int4 *)(is + i);
                const float4 f4 = *(const float4 *)(f + i);
                const int32_t v[4] = { v4.x, v4.y, v4.z, v4.w };
                const float fs[4] = { f4.x, f4.y, f4.z, f4.w };
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    if (i + j < done)
                        acc =
                            __fmaf_rn(__int2float_rn(v[j]), __fmul_rn(fs[j], xscale[col][(i + j) * GROUP / 128]), acc);
            }
            uint32_t o = (first + done_s0 + strip) * 16 + row;
            if (ends) {
                if (o < m.n_out) store(m, r, z, r.begin + p0 + col, o, acc);
                acc = 0;
            }
        }
        if (!more) return;
        __syncthreads();
    }
}

template <uint32_t TYPE, uint32_t GROUP, bool OWN, uint32_t WARPS>
static void launch_as(const cu_matmul *m, cu_stream s)
{
    constexpr uint32_t FULL = FULL_WARPS / WARPS;
    uint32_t strips = m->n_of ? 0 : blocks_of(m->n_out, 1), blocks = (m->n_rows + FEW - 1) / FEW, all = 0;
    for (uint32_t i = 0; i < m->n_of; i++) strips += blocks_of(m->of[i].n_out, 1);
    const uint32_t pair = m->n_in <= WARPS * COLUMNS / SPLIT && strips * m->n_mat >= SPLIT * ENOUGH;
    /* As many pieces a block that all blocks run at once, as far as that goes. */
    const uint32_t turns = (strips * m->n_mat * blocks + (FULL << pair) - 1) / (FULL << pair);
    const uint32_t per = (turns < MOST_TURNS ? turns : MOST_TURNS) << pair;
    for (uint32_t i = 0; i < m->n_of; i++) all += blocks_of(m->of[i].n_out, per);
    dim3 grid(m->n_of ? all : blocks_of(m->n_out, per), blocks, m->n_mat);
    uint32_t rows = m->n_rows < FEW ? m->n_rows : FEW, n_in = (m->n_in + 31) / 32 * 32;
    size_t bytes = OWN ? rows * ((own_width(*m) + (n_in + 127) / 128 + 3) / 4 * 4 * sizeof(float) + n_in) : 0;
    /* Where this fails, so does the launch. */
    if (bytes > SMALL)
        (void)cudaFuncSetAttribute(few_kernel<TYPE, GROUP, OWN, WARPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)bytes);
    CU_LAUNCH_EARLY((few_kernel<TYPE, GROUP, OWN, WARPS>), grid, WARPS * 32, bytes, s)(*m, per, pair);
}

template <uint32_t TYPE, uint32_t GROUP> struct few {
    static void now(const cu_matmul *m, cu_stream s)
    {
        constexpr uint32_t WIDE = GROUP < 128 ? 8 : 16; /* so many warps take 4,096 columns as one piece */
        if (m->act.q)
            launch_as<TYPE, GROUP, false, 8>(m, s);
        else if (m->n_in <= 8 * COLUMNS)
            launch_as<TYPE, GROUP, true, 8>(m, s);
        else
            launch_as<TYPE, GROUP, true, WIDE>(m, s);
    }
};

void cu_launch_matmul_few(const cu_matmul *m, cu_stream s)
{
    launch_shape<few>(m, s);
}
