/* MATMUL of F32 and BF16 weights with float activations, straight from T16, on the plain cores: exact enough for the
 * goldens. Spans of 128 columns are summed in ascending order with fma, then the spans in ascending order; so both
 * kernels here give the same bits. */
#include "matmul.cuh"

#define SPAN 128u
#define FEW 4u
#define FEW_SPANS 16u     /* in flight in a block */
#define X_ROW (SPAN + 4u) /* of a span in shared memory: neighbours in other banks */
#define OUTS 64u          /* of a block for many rows */
#define NARROW 512u       /* up to so many outputs its blocks have fewer rows */
#define STEP 32u          /* columns that it takes at once */

template <bool BF16> static __device__ __forceinline__ float weight_at(const uint8_t *strip, uint32_t row, uint32_t k)
{
    if (!BF16) return ((const float *)strip)[k * 16 + row];
    return bf16_to_f32(((const uint16_t *)strip)[(k / 2 * 16 + row) * 2 + k % 2]);
}

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
    let_next_begin();
    if (m.refs) wait_for_stream(); /* else the weights are known, and set out before */
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

/* A thread owns 4 x 4 of a block's OUTS x ROWS; the next step's numbers are on their way while this one is added. */
template <bool BF16, uint32_t ROWS> static __global__ void __launch_bounds__(ROWS * 4) many_kernel(cu_matmul m)
{
    constexpr uint32_t THREADS = ROWS * 4, PER_W = OUTS * STEP / THREADS, PER_X = ROWS * STEP / THREADS;
    __shared__ __align__(16) float ws[STEP][OUTS + 4], xs[STEP][ROWS + 4];
    __shared__ uint32_t xrow[ROWS];
    uint32_t z = blockIdx.z, tr = threadIdx.x % (OUTS / 4) * 4, tc = threadIdx.x / (OUTS / 4) * 4;
    cu_ref r;
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * ROWS, o0 = blockIdx.x * OUTS;
    if (p0 >= r.n) return;
    uint32_t n = min(ROWS, r.n - p0), n_strips = ceil_div(m.n_out, 16);
    if (threadIdx.x < ROWS) xrow[threadIdx.x] = input_row(m, r.begin + p0 + (threadIdx.x < n ? threadIdx.x : 0), z);
    __syncthreads();
    float w_next[PER_W], x_next[PER_X];
    auto fetch = [&](uint32_t k0) {
#pragma unroll
        for (uint32_t j = 0; j < PER_W; j++) {
            uint32_t i = j * THREADS + threadIdx.x, row = i % OUTS, k = k0 + i / OUTS, strip = o0 / 16 + row / 16;
            w_next[j] =
                strip < n_strips && k < m.n_in ? weight_at<BF16>(r.w + strip * m.strip_bytes, row % 16, k) : 0.0f;
        }
#pragma unroll
        for (uint32_t j = 0; j < PER_X; j++) {
            uint32_t i = j * THREADS + threadIdx.x, k = k0 + i % STEP;
            x_next[j] = k < m.n_in ? m.x[(size_t)xrow[i / STEP] * m.x_stride + k] : 0.0f;
        }
    };
    float total[4][4] = {}, acc[4][4] = {};
    fetch(0);
    for (uint32_t k0 = 0; k0 < m.n_in; k0 += STEP) {
        __syncthreads();
#pragma unroll
        for (uint32_t j = 0; j < PER_W; j++) {
            uint32_t i = j * THREADS + threadIdx.x;
            ws[i / OUTS][i % OUTS] = w_next[j];
        }
#pragma unroll
        for (uint32_t j = 0; j < PER_X; j++) {
            uint32_t i = j * THREADS + threadIdx.x;
            xs[i % STEP][i / STEP] = x_next[j];
        }
        __syncthreads();
        fetch(k0 + STEP);
        uint32_t steps = min(STEP, m.n_in - k0);
#pragma unroll 8
        for (uint32_t k = 0; k < steps; k++) {
            const float4 w4 = *(const float4 *)&ws[k][tr], x4 = *(const float4 *)&xs[k][tc];
            const float w[4] = { w4.x, w4.y, w4.z, w4.w }, x[4] = { x4.x, x4.y, x4.z, x4.w };
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
#pragma unroll
                for (uint32_t j = 0; j < 4; j++) acc[i][j] = __fmaf_rn(w[i], x[j], acc[i][j]);
        }
        if ((k0 + STEP) % SPAN && k0 + STEP < m.n_in) continue;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                total[i][j] = __fadd_rn(total[i][j], acc[i][j]);
                acc[i][j] = 0;
            }
    }
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (tc + j < n && o0 + tr + i < m.n_out) store(m, r, z, r.begin + p0 + tc + j, o0 + tr + i, total[i][j]);
}

template <bool BF16, uint32_t ROWS> static void launch_many(const cu_matmul *m, cu_stream s)
{
    dim3 grid((m->n_out + OUTS - 1) / OUTS, (m->n_rows + ROWS - 1) / ROWS, m->n_mat);
    CU_LAUNCH((many_kernel<BF16, ROWS>), grid, ROWS * 4, 0, s)(*m);
}

template <bool BF16> static void launch(const cu_matmul *m, cu_stream s)
{
    if (m->n_rows == 1) {
        launch_few<BF16, 1>(m, s);
    } else if (m->n_rows <= 4 * FEW) {
        launch_few<BF16, FEW>(m, s);
    } else if (m->n_out <= NARROW) {
        launch_many<BF16, 32>(m, s); /* a router: more blocks */
    } else {
        launch_many<BF16, 64>(m, s);
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
