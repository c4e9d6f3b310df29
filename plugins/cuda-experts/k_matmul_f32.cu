/* MATMUL of F32 and BF16 weights with float activations, straight from T16, on the plain cores: exact enough for the
 * goldens. Spans of 128 columns are summed in ascending order with fma, then the spans in ascending order; so both
 * kernels here give the same bits. */
#include "matmul.cuh"

#define SPAN 128u
#define FEW 4u
#define FEW_SPANS 16u     /* in flight in a block */
#define X_ROW (SPAN + 4u) /* of a span in shared memory: neighbours in other banks */
#define NARROW 512u       /* up to so many outputs, blocks for few rows have half a strip */
#define OUTS 64u          /* of a block for many rows */
#define TILE 32u          /* rows of it */
#define STEP 8u           /* columns that a warp takes at once */

/* Two columns of a row of a strip, the first of them even. */
template <bool BF16>
static __device__ __forceinline__ float2 two_weights(const uint8_t *strip, uint32_t row, uint32_t k)
{
    float2 w;
    if (BF16) {
        uint32_t v = ((const uint32_t *)strip)[k / 2 * 16 + row];
        w.x = bf16_to_f32(v & 0xffffu);
        w.y = bf16_to_f32(v >> 16);
        return w;
    }
    w.x = ((const float *)strip)[k * 16 + row];
    w.y = ((const float *)strip)[(k + 1) * 16 + row];
    return w;
}

/* Up to COLS rows: a block owns ROWS of a strip's 16 outputs; a thread one of them over one span at a time, for all
 * columns. All the weights of a span (half of it with COLS > 1) are asked for before the first is used. WHOLE: each
 * span has all of its columns, so that nobody asks where it ends: a third of the code. */
template <bool BF16, uint32_t COLS, uint32_t ROWS, bool WHOLE>
static __global__ void __launch_bounds__(FEW_SPANS *ROWS) few_kernel(cu_matmul m)
{
    __shared__ float part[FEW_SPANS][COLS][ROWS];
    CU_DYNAMIC_SHARED(float, xs);                  /* (COLS, FEW_SPANS, X_ROW) */
    constexpr uint32_t AHEAD = COLS > 1 ? 32 : 64; /* pairs of weights */
    uint32_t z = blockIdx.z, slot = threadIdx.x / ROWS, o = blockIdx.x * ROWS + threadIdx.x % ROWS, row = o % 16;
    cu_ref r;
    if (m.refs) wait_for_stream(); /* else the weights are known, and set out before */
    let_next_begin();              /* with refs: what comes next may count on them */
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * COLS;
    if (p0 >= r.n) return;
    uint32_t n = min(COLS, r.n - p0), n_spans = ceil_div(m.n_in, SPAN);
    bool folds = slot < n; /* then slot is the column */
    const uint8_t *strip = r.w + o / 16 * m.strip_bytes;
    float total = 0;
    for (uint32_t s0 = 0; s0 < n_spans; s0 += FEW_SPANS) {
        uint32_t k0 = (s0 + slot) * SPAN, end = min(k0 + SPAN, m.n_in), c0 = s0 * SPAN;
        float2 w[AHEAD];
        /* Has this thread's span columns up to k0 + k? */
        const bool mine = k0 < m.n_in;
        auto has = [&](uint32_t k) { return WHOLE || k0 + k < end; };
#pragma unroll
        for (uint32_t i = 0; mine && i < AHEAD; i++)
            if (has(2 * i)) w[i] = two_weights<BF16>(strip, row, k0 + 2 * i);
        if (!m.refs && s0 == 0) wait_for_stream();
        for (uint32_t c = 0; c < n; c++) {
            const float *x = m.x + (size_t)input_row(m, r.begin + p0 + c, z) * m.x_stride + c0;
#pragma unroll
            for (uint32_t j = 0; j < SPAN / ROWS; j++) {
                uint32_t i = threadIdx.x + j * FEW_SPANS * ROWS;
                if (c0 + i < m.n_in) xs[(c * FEW_SPANS + i / SPAN) * X_ROW + i % SPAN] = x[i];
            }
        }
        __syncthreads();
        float acc[COLS] = {};
#pragma unroll
        for (uint32_t h = 0; mine && h < SPAN; h += 2 * AHEAD) {
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; i++) {
                uint32_t k = h + 2 * i;
#pragma unroll
                for (uint32_t c = 0; c < COLS; c++) { /* beyond n are numbers of nobody */
                    const float2 x = *(const float2 *)(xs + (c * FEW_SPANS + slot) * X_ROW + k);
                    if (has(k)) acc[c] = __fmaf_rn(w[i].x, x.x, acc[c]);
                    if (has(k + 1)) acc[c] = __fmaf_rn(w[i].y, x.y, acc[c]);
                }
                if (h + 2 * AHEAD < SPAN && has(k + 2 * AHEAD)) /* the next half, as soon as there is room */
                    w[i] = two_weights<BF16>(strip, row, k0 + k + 2 * AHEAD);
            }
        }
        for (uint32_t c = 0; c < COLS; c++) part[slot][c][threadIdx.x % ROWS] = acc[c];
        __syncthreads();
        for (uint32_t i = 0; folds && i < FEW_SPANS && s0 + i < n_spans; i++)
            total = __fadd_rn(total, part[i][slot][threadIdx.x % ROWS]);
        __syncthreads();
    }
    if (folds && o < m.n_out) store(m, r, z, r.begin + p0 + slot, o, total);
}

/* A router has few outputs: half a strip a block, which is what memory gives at once. */
template <bool BF16, uint32_t COLS, bool WHOLE> static void launch_few(const cu_matmul *m, cu_stream s)
{
    size_t bytes = (size_t)COLS * FEW_SPANS * X_ROW * sizeof(float);
    uint32_t blocks = (m->n_rows + COLS - 1) / COLS, strips = (m->n_out + 15) / 16;
    if (m->n_out <= NARROW)
        CU_LAUNCH_EARLY((few_kernel<BF16, COLS, 8, WHOLE>), dim3(2 * strips, blocks, m->n_mat), FEW_SPANS * 8, bytes, s)
    (*m);
    else CU_LAUNCH_EARLY((few_kernel<BF16, COLS, 16, WHOLE>), dim3(strips, blocks, m->n_mat), FEW_SPANS * 16, bytes,
                         s)(*m);
}

template <bool BF16, uint32_t COLS> static void launch_few(const cu_matmul *m, cu_stream s)
{
    if (m->n_in % SPAN)
        launch_few<BF16, COLS, false>(m, s);
    else
        launch_few<BF16, COLS, true>(m, s);
}

/* ---- many rows: a block has OUTS outputs of TILE rows, a warp of it all of them over one span at a time, a thread 8 x
 * 8. So a warp needs no other one until the sums of the spans are added, and few blocks fill a multiprocessor. */

/* What a warp computes with next, as floats. */
struct f32_step {
    float w[STEP][OUTS], x[STEP][TILE + 4];
};
#define SUM_ROW (OUTS + 4u) /* of a block's sums: neighbours in other banks */

static __device__ __forceinline__ float4 four(uint4 v, uint32_t by)
{
    return make_float4(__uint_as_float(v.x << by), __uint_as_float(v.y << by), __uint_as_float(v.z << by),
                       __uint_as_float(v.w << by));
}

/* A lane's part of a step on its way: weights of every second strip, of lines of 16 dwords; halves of rows of x. */
template <bool BF16> struct f32_loader {
    static constexpr uint32_t K = BF16 ? 2 : 1, PER_W = STEP / K / 2;
    const uint8_t *strip;
    const float *x[2];
    uint32_t next_strip, at;
    uint4 w_next[PER_W];
    float x_next[2][4];

    __device__ f32_loader(const cu_matmul &m, const cu_ref &r, uint32_t o0, uint32_t p0, uint32_t n, uint32_t lane)
        : at(lane)
    {
        uint32_t last = ceil_div(m.n_out, 16) - 1, s = o0 / 16 + lane / 4 % 2; /* what is not there reads what is */
        strip = r.w + min(s, last) * m.strip_bytes + (lane / 8 * 16 + lane % 4 * 4) * 4;
        next_strip = (uint32_t)((min(s + 2, last) - min(s, last)) * m.strip_bytes);
        for (uint32_t j = 0; j < 2; j++) {
            uint32_t row = j * 16 + lane / 2;
            x[j] = m.x + (size_t)input_row(m, r.begin + p0 + (row < n ? row : 0), r.mat) * m.x_stride + lane % 2 * 4;
        }
    }

    __device__ __forceinline__ void fetch(const cu_matmul &m, uint32_t k)
    {
        if (k >= m.n_in) return;
#pragma unroll
        for (uint32_t j = 0; j < PER_W; j++) /* zeros beyond n_in: T16 is padded to a multiple of STEP */
            w_next[j] = *(const uint4 *)(strip + j % 2 * next_strip + (k / K + j / 2 * 4) * 64);
        const uint32_t c = k + at % 2 * 4, n = c < m.n_in ? m.n_in - c : 0;
        if (k + STEP <= m.n_in && (uintptr_t)m.x % 16 == 0 && m.x_stride % 4 == 0) {
#pragma unroll
            for (uint32_t j = 0; j < 2; j++) {
                const float4 v = *(const float4 *)(x[j] + k);
                x_next[j][0] = v.x, x_next[j][1] = v.y, x_next[j][2] = v.z, x_next[j][3] = v.w;
            }
            return;
        }
        for (uint32_t j = 0; j < 2; j++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) x_next[j][i] = i < n ? x[j][k + i] : 0.0f;
    }

    __device__ __forceinline__ void put(f32_step &to) const
    {
#pragma unroll
        for (uint32_t j = 0; j < PER_W; j++) {
            const uint32_t k = (at / 8 + j / 2 * 4) * K, o = j % 2 * 32 + at / 4 % 2 * 16 + at % 4 * 4;
            const uint4 w = w_next[j];
            *(float4 *)&to.w[k][o] = four(w, BF16 ? 16 : 0);
            if (BF16)
                *(float4 *)&to.w[k + 1][o] =
                    four(make_uint4(w.x & 0xffff0000u, w.y & 0xffff0000u, w.z & 0xffff0000u, w.w & 0xffff0000u), 0);
        }
#pragma unroll
        for (uint32_t j = 0; j < 2; j++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) to.x[at % 2 * 4 + i][j * 16 + at / 2] = x_next[j][i];
    }
};

/* A thread has outputs o + i, o + 32 + i and rows p + j, p + 16 + j; i, j: 0 .. 3. */
static __device__ __forceinline__ void add_step(float acc[8][8], const f32_step &s, uint32_t o, uint32_t p)
{
#pragma unroll
    for (uint32_t k = 0; k < STEP; k++) {
        const float4 w0 = *(const float4 *)&s.w[k][o], w1 = *(const float4 *)&s.w[k][o + 32],
                     x0 = *(const float4 *)&s.x[k][p], x1 = *(const float4 *)&s.x[k][p + 16];
        const float w[8] = { w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w },
                    x[8] = { x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w };
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) acc[j][i] = __fmaf_rn(w[i], x[j], acc[j][i]);
    }
}

/* Two rows of a thread, j and j + 1 of its eight. */
static __device__ __forceinline__ void add_sums(float *total, float acc[8][8], uint32_t j, uint32_t o, uint32_t p)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const float *a = &acc[j + i / 2][i % 2 * 4];
        float4 *t = (float4 *)(total + (p + j / 4 * 16 + j % 4 + i / 2) * SUM_ROW + o + i % 2 * 32), v = *t;
        *t = make_float4(__fadd_rn(v.x, a[0]), __fadd_rn(v.y, a[1]), __fadd_rn(v.z, a[2]), __fadd_rn(v.w, a[3]));
    }
}

/* Of a block: BF16 leaves each thread 128 registers, F32 needs more. */
static constexpr uint32_t most_warps(bool bf16)
{
    return bf16 ? 16 : 8;
}

template <bool BF16> static __global__ void __launch_bounds__(most_warps(BF16) * 32) many_kernel(cu_matmul m)
{
    CU_DYNAMIC_SHARED(f32_step, steps); /* (warps), then the sums: (TILE, SUM_ROW) */
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, o0 = blockIdx.x * OUTS;
    const uint32_t o = ((lane & 1) | (lane >> 1 & 6)) * 4, p = ((lane >> 1 & 1) | (lane >> 3 & 2)) * 4,
                   n_spans = ceil_div(m.n_in, SPAN);
    float *total = (float *)(steps + warps);
    uint32_t p0, n;
    cu_ref r;
    if (!find_tile(m, blockIdx.y / 2, lane, &r, &p0, &n) || n <= blockIdx.y % 2 * TILE) return;
    p0 += blockIdx.y % 2 * TILE;
    n = min(n - blockIdx.y % 2 * TILE, TILE);
    for (uint32_t i = threadIdx.x; i < TILE * SUM_ROW; i += blockDim.x) total[i] = 0;
    f32_loader<BF16> from(m, r, o0, p0, n, lane);
    from.fetch(m, warp * SPAN);
    for (uint32_t s0 = 0; s0 < n_spans; s0 += warps) {
        float acc[8][8] = {};
        const uint32_t begin = (s0 + warp) * SPAN, live = min(warps, n_spans - s0);
        for (uint32_t k = begin; k < min(begin + SPAN, m.n_in); k += STEP) {
            __syncwarp(); /* the one before is no longer read */
            from.put(steps[warp]);
            __syncwarp();
            from.fetch(m, k + STEP < begin + SPAN ? k + STEP : begin + warps * SPAN);
            add_step(acc, steps[warp], o, p);
        }
        __syncthreads();
        for (uint32_t turn = 0; turn < live + 3; turn++) { /* spans ascend, each a fourth of the sums behind the last */
#pragma unroll
            for (uint32_t j = 0; j < 4; j++)
                if (warp < live && warp + j == turn) add_sums(total, acc, 2 * j, o, p);
            __syncthreads();
        }
    }
    for (uint32_t i = threadIdx.x * 4; i < n * OUTS; i += blockDim.x * 4)
        store_4(m, r, blockIdx.z, r.begin + p0 + i / OUTS, o0 + i % OUTS, total + i / OUTS * SUM_ROW + i % OUTS);
}

template <bool BF16> static void launch_many(const cu_matmul *m, cu_stream s)
{
    uint32_t n_spans = (m->n_in + SPAN - 1) / SPAN, most = most_warps(BF16), rounds = (n_spans + most - 1) / most,
             warps = (n_spans + rounds - 1) / rounds; /* all have work in all rounds but for the last */
    const int bytes = (int)(warps * sizeof(f32_step) + TILE * SUM_ROW * sizeof(float));
    dim3 grid((m->n_out + OUTS - 1) / OUTS, 2 * tiles_of(m), m->refs ? 1 : m->n_mat);
    /* Where this fails, so does the launch. */
    if (bytes > 48 * 1024)
        (void)cudaFuncSetAttribute(many_kernel<BF16>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    CU_LAUNCH(many_kernel<BF16>, grid, warps * 32, bytes, s)(*m);
}

template <bool BF16> static void launch(const cu_matmul *m, cu_stream s)
{
    if (m->n_rows == 1) {
        launch_few<BF16, 1>(m, s);
    } else if (m->n_rows <= 4 * FEW) {
        launch_few<BF16, FEW>(m, s);
    } else {
        launch_many<BF16>(m, s);
    }
}

static void launch_f32(const cu_matmul *m, cu_stream s)
{
    if (m->type == KS_T_BF16)
        launch<true>(m, s);
    else
        launch<false>(m, s);
}

void cu_launch_matmul(const cu_matmul *m, cu_stream s)
{
    if (!m->n_rows || !m->n_mat) return;
    if (m->type == KS_T_F32 || m->type == KS_T_BF16)
        launch_f32(m, s);
    else
        cu_launch_matmul_int(m, s);
}
