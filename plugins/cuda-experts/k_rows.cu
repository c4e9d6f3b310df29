/* Ops that go over rows once. A row's result depends on that row alone, in one order of sums. */
#include "act.cuh"
#include "quant.cuh"
#include <krasis/graph.h>

#define BLOCK 256u
#define FEW_ROWS 16u /* up to here, a head is a block */

/* The sum over a block, the same in every thread; fixed order for a given block size. */
template <uint32_t THREADS> static __device__ float block_sum(float v, float *shared)
{
    v = warp_sum(v);
    if (THREADS == 32) return v;
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (uint32_t i = 0; i < THREADS / 32; i++) sum = __fadd_rn(sum, shared[i]);
    return sum;
}

/* c % n: mostly it is c, and a division takes long. */
static __device__ __forceinline__ uint32_t wrapped(uint32_t c, uint32_t n)
{
    return c < n ? c : c % n;
}

/* The sum of a row's experts, as sum_kernel makes it; each lane knows where another one's numbers are, so some are
 * asked for at once. */
template <uint32_t THREADS, uint32_t PER>
static __device__ __forceinline__ void sum_pairs(const cu_sum &a, uint32_t row, uint32_t width, float y[PER])
{
    constexpr uint32_t AHEAD = PER < 32 ? 32 / PER : 1;
    for (uint32_t s0 = 0; s0 < a.k; s0 += 32) {
        const uint32_t s = s0 + threadIdx.x % 32, at = s < a.k ? a.slot_pair[row * a.k + s] : UINT32_MAX;
        const float weight = at != UINT32_MAX && a.pair_weight ? a.pair_weight[at] : 1.0f;
        for (uint32_t e = 0; e < min(32u, a.k - s0); e += AHEAD) {
            float u[AHEAD][PER];
#pragma unroll
            for (uint32_t n = 0; n < AHEAD; n++) {
                const uint32_t p = __shfl_sync(~0u, at, (int)(e + n));
                const float *x = a.x + (size_t)p * width;
#pragma unroll
                for (uint32_t j = 0; j < PER; j++) {
                    const uint32_t i = threadIdx.x + j * THREADS;
                    u[n][j] = p != UINT32_MAX && i < width ? x[i] : 0.0f;
                }
            }
#pragma unroll
            for (uint32_t n = 0; n < AHEAD; n++) {
                const bool here = __shfl_sync(~0u, at, (int)(e + n)) != UINT32_MAX;
                const float w = __shfl_sync(~0u, weight, (int)(e + n));
#pragma unroll
                for (uint32_t j = 0; j < PER; j++) y[j] = here ? __fadd_rn(y[j], __fmul_rn(w, u[n][j])) : y[j];
            }
        }
    }
}

/* What is normed of a row becomes fx v + fy added; a thread has columns threadIdx.x + j * THREADS. */
template <uint32_t THREADS, uint32_t PER>
static __device__ __forceinline__ void add_row(const cu_row &a, uint32_t row, float v[PER])
{
    uint32_t width = a.norm.width;
    float y[PER] = {};
    if (!a.added.p) return;
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        uint32_t i = threadIdx.x + j * THREADS;
        if (i < width && !a.pairs.x) y[j] = a.added.p[row * a.added.stride + i];
    }
    if (a.pairs.x) sum_pairs<THREADS, PER>(a.pairs, row, width, y);
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        uint32_t i = threadIdx.x + j * THREADS;
        if (i >= width) continue;
        if (a.pairs.x) a.added.p[row * a.added.stride + i] = y[j];
        float b = a.fy * y[j];
        v[j] = a.fx * v[j] + (a.vec ? b * a.vec[i] : b);
        a.sum.p[row * a.sum.stride + i] = v[j];
    }
}

template <uint32_t THREADS, uint32_t PER>
static __device__ __forceinline__ void load_weights(const cu_norm &a, uint32_t w0, float w[PER])
{
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        uint32_t i = threadIdx.x + j * THREADS;
        w[j] = i < a.width && a.weight ? a.weight[wrapped(w0 + i, a.w_width)] : 1.0f;
    }
}

/* A thread's columns of a slice, whose weights begin at w0, normed. */
template <uint32_t THREADS, uint32_t PER>
static __device__ __forceinline__ void norm_columns(const cu_norm &a, uint32_t w0, const float w[PER], float v[PER],
                                                    float *shared)
{
    float mean = 0, ss = 0;
    if (a.kind == KS_NORM_LAYER) {
#pragma unroll
        for (uint32_t j = 0; j < PER; j++)
            if (threadIdx.x + j * THREADS < a.width) mean = __fadd_rn(mean, v[j]);
        mean = __fdiv_rn(block_sum<THREADS>(mean, shared), (float)a.width);
    }
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        v[j] -= mean;
        if (threadIdx.x + j * THREADS < a.width) ss = __fmaf_rn(v[j], v[j], ss);
    }
    ss = block_sum<THREADS>(ss, shared);
    float inv = __fdiv_rn(1.0f, __fsqrt_rn((a.kind == KS_NORM_L2 ? ss : __fdiv_rn(ss, (float)a.width)) + a.eps));
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        uint32_t i = threadIdx.x + j * THREADS;
        v[j] = v[j] * inv * (w[j] + a.w_offset);
        if (a.bias && i < a.width) v[j] += a.bias[wrapped(w0 + i, a.w_width)];
    }
}

/* A thread has columns threadIdx.x, + THREADS, ...: all are asked for before the first is used. A warp is a row of the
 * block, or all of it. ROW: with what cu_row has around the norm; what comes out is quantized by way of shared memory.
 */
template <uint32_t THREADS, uint32_t PER, bool ROW>
static __global__ void __launch_bounds__(BLOCK, PER > 16  ? 1
                                                : PER > 8 ? 2
                                                          : 3) norm_kernel(const __grid_constant__ cu_row b)
{
    const cu_norm &a = b.norm;
    CU_DYNAMIC_SHARED(float, rows); /* (BLOCK / THREADS, width), with b.act */
    __shared__ float shared[THREADS / 32];
    uint32_t slices = a.n / a.width, unit = blockIdx.x * (BLOCK / THREADS) + threadIdx.y, row = unit / slices,
             c0 = unit % slices * a.width, w0 = wrapped(c0, a.w_width);
    const float *x = a.x.p + row * a.x.stride + c0;
    float *y = a.y.p + row * a.y.stride + c0, v[PER], w[PER], *out = rows + threadIdx.y * a.width;
    let_next_begin();
    load_weights<THREADS, PER>(a, w0, w);
    wait_for_stream();
    if (row >= a.n_rows) return;
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        uint32_t i = threadIdx.x + j * THREADS;
        v[j] = i < a.width ? x[i] : 0.0f;
    }
    if (ROW) add_row<THREADS, PER>(b, row, v);
    norm_columns<THREADS, PER>(a, w0, w, v, shared);
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        uint32_t i = threadIdx.x + j * THREADS;
        if (i >= a.width) continue;
        y[i] = v[j];
        if (ROW && b.act.q) out[i] = v[j];
    }
    if (!ROW || !b.act.q) return;
    if (THREADS == 32)
        __syncwarp();
    else
        __syncthreads();
    for (uint32_t col = threadIdx.x * 4; col / 128 * 128 < b.act.q_stride; col += THREADS * 4) {
        float u[4];
        load_4(u, out + col, col < a.width ? a.width - col : 0);
        quantize(u, row, col, a.width, b.act);
    }
}

/* The same for rows of any width. */
static __global__ void __launch_bounds__(BLOCK) wide_norm_kernel(cu_norm a)
{
    __shared__ float shared[BLOCK / 32];
    uint32_t slices = a.n / a.width, row = blockIdx.x / slices, c0 = blockIdx.x % slices * a.width;
    const float *x = a.x.p + row * a.x.stride + c0;
    float *y = a.y.p + row * a.y.stride + c0, mean = 0, ss = 0;
    if (a.kind == KS_NORM_LAYER) {
        for (uint32_t i = threadIdx.x; i < a.width; i += BLOCK) mean = __fadd_rn(mean, x[i]);
        mean = __fdiv_rn(block_sum<BLOCK>(mean, shared), (float)a.width);
    }
    for (uint32_t i = threadIdx.x; i < a.width; i += BLOCK) {
        float v = x[i] - mean;
        ss = __fmaf_rn(v, v, ss);
    }
    ss = block_sum<BLOCK>(ss, shared);
    float inv = __fdiv_rn(1.0f, __fsqrt_rn((a.kind == KS_NORM_L2 ? ss : __fdiv_rn(ss, (float)a.width)) + a.eps));
    for (uint32_t i = threadIdx.x; i < a.width; i += BLOCK) {
        uint32_t c = (c0 + i) % a.w_width;
        float r = (x[i] - mean) * inv * ((a.weight ? a.weight[c] : 1.0f) + a.w_offset);
        y[i] = a.bias ? r + a.bias[c] : r;
    }
}

template <uint32_t THREADS, bool ROW> static void launch_row(const cu_row *a, uint32_t units, cu_stream s)
{
    const uint32_t blocks = (units + BLOCK / THREADS - 1) / (BLOCK / THREADS), width = a->norm.width;
    const dim3 block(THREADS, BLOCK / THREADS);
    const size_t bytes = a->act.q ? BLOCK / THREADS * width * sizeof(float) : 0;
    if (width <= 4 * THREADS)
        CU_LAUNCH_EARLY((norm_kernel<THREADS, 4, ROW>), blocks, block, bytes, s)(*a);
    else if (width <= 8 * THREADS)
        CU_LAUNCH_EARLY((norm_kernel<THREADS, 8, ROW>), blocks, block, bytes, s)(*a);
    else if (width <= 16 * THREADS)
        CU_LAUNCH_EARLY((norm_kernel<THREADS, 16, ROW>), blocks, block, bytes, s)(*a);
    else if (width <= 32 * THREADS)
        CU_LAUNCH_EARLY((norm_kernel<THREADS, 32, ROW>), blocks, block, bytes, s)(*a);
    else
        CU_LAUNCH(wide_norm_kernel, units, BLOCK, 0, s)(a->norm);
}

template <bool ROW> static void launch_rows(const cu_row *a, cu_stream s)
{
    uint32_t units = a->norm.n_rows * (a->norm.n / a->norm.width);
    if (!units) return;
    if (a->norm.width <= 256)
        launch_row<32, ROW>(a, units, s);
    else
        launch_row<BLOCK, ROW>(a, units, s);
}

void cu_launch_row(const cu_row *a, cu_stream s)
{
    launch_rows<true>(a, s);
}

void cu_launch_norm(const cu_norm *a, cu_stream s)
{
    cu_row r = {};
    r.norm = *a;
    launch_rows<false>(&r, s);
}

/* How far pair i of a row is turned. */
static __device__ __forceinline__ void find_turn(const cu_rope &a, uint32_t row, uint32_t i, float *sn, float *cs)
{
    float angle = __fmul_rn((float)a.pos[row], a.inv_freq[i]);
    sincosf(angle, sn, cs);
    *sn *= a.mscale;
    *cs *= a.mscale;
}

/* Pair i of a head whose columns are x. */
static __device__ __forceinline__ void rotate(const cu_rope &a, float *x, uint32_t i, float sn, float cs)
{
    uint32_t half = a.rot_dim / 2;
    x += a.rot_begin;
    float *p = a.kind == KS_ROPE_HALF ? x + i : x + 2 * i, *q = a.kind == KS_ROPE_HALF ? x + i + half : x + 2 * i + 1;
    float u = *p, v = *q;
    *p = u * cs - v * sn;
    *q = v * cs + u * sn;
}

static __global__ void rope_kernel(cu_rope a)
{
    uint32_t half = a.rot_dim / 2, i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (i >= half * a.n_heads) return;
    float sn, cs;
    find_turn(a, row, i % half, &sn, &cs);
    rotate(a, a.x.p + row * a.x.stride + (size_t)(i / half) * a.head_dim, i % half, sn, cs);
}

void cu_launch_rope(const cu_rope *a, cu_stream s)
{
    uint32_t n = a->rot_dim / 2 * a->n_heads;
    if (a->n_rows && n) CU_LAUNCH(rope_kernel, dim3(a->n_rows, (n + BLOCK - 1) / BLOCK), BLOCK, 0, s)(*a);
}

static __global__ void glu_kernel(cu_glu a)
{
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (i >= a.n) return;
    const float *x = gate_at(a, row, i);
    a.y.p[row * a.y.stride + i] = glu(a, weigh(a, row, x[0]), weigh(a, row, x[16]));
}

void cu_launch_glu(const cu_glu *a, cu_stream s)
{
    if (a->n_rows && a->n) CU_LAUNCH(glu_kernel, dim3(a->n_rows, (a->n + BLOCK - 1) / BLOCK), BLOCK, 0, s)(*a);
}

/* ---- elementwise: f(row, column) for all of n_rows x n */

template <typename F> static __global__ void each_kernel(uint32_t n, F f)
{
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    let_next_begin();
    wait_for_stream();
    if (i < n) f(blockIdx.x, i);
}

template <typename F> static void each(uint32_t n_rows, uint32_t n, cu_stream s, F f)
{
    if (n_rows && n) CU_LAUNCH_EARLY(each_kernel<F>, dim3(n_rows, (n + BLOCK - 1) / BLOCK), BLOCK, 0, s)(n, f);
}

struct add_fn {
    cu_reg x, y, z;
    const float *vec;
    float fx, fy;
    __device__ void operator()(uint32_t r, uint32_t i) const
    {
        float b = fy * y.p[r * y.stride + i];
        z.p[r * z.stride + i] = fx * x.p[r * x.stride + i] + (vec ? b * vec[i] : b);
    }
};

void cu_launch_add(cu_reg x, cu_reg y, cu_reg z, const float *vec, float fx, float fy, uint32_t n_rows, uint32_t n,
                   cu_stream s)
{
    each(n_rows, n, s, add_fn { x, y, z, vec, fx, fy });
}

struct mul_fn {
    cu_reg x, y, z;
    int32_t act;
    uint32_t per;
    __device__ void operator()(uint32_t r, uint32_t i) const
    {
        float v = y.p[r * y.stride + i / per];
        if (act != (int32_t)KS_ACT1_NONE) v = act == (int32_t)KS_ACT1_SILU ? v * sigmoid(v) : sigmoid(v);
        z.p[r * z.stride + i] = x.p[r * x.stride + i] * v;
    }
};

void cu_launch_mul(cu_reg x, cu_reg y, cu_reg z, int32_t act, uint32_t n_rows, uint32_t n, uint32_t n_y, cu_stream s)
{
    each(n_rows, n, s, mul_fn { x, y, z, act, n / n_y });
}

struct select_fn {
    cu_reg x, y;
    const uint32_t *rows;
    __device__ void operator()(uint32_t r, uint32_t i) const { y.p[r * y.stride + i] = x.p[rows[r] * x.stride + i]; }
};

void cu_launch_select(cu_reg x, cu_reg y, const uint32_t *rows, uint32_t n_rows, uint32_t n, cu_stream s)
{
    each(n_rows, n, s, select_fn { x, y, rows });
}

struct clamp_fn {
    cu_reg x;
    float limit;
    __device__ void operator()(uint32_t r, uint32_t i) const
    {
        float *p = x.p + r * x.stride + i;
        *p = fminf(fmaxf(*p, -limit), limit);
    }
};

void cu_launch_clamp(cu_reg x, float limit, uint32_t n_rows, uint32_t n, cu_stream s)
{
    each(n_rows, n, s, clamp_fn { x, limit });
}

struct qscale_fn {
    cu_reg x;
    const uint32_t *pos;
    float scale, floor_at;
    __device__ void operator()(uint32_t r, uint32_t i) const
    {
        float f = 1.0f + scale * logf(floorf(__fdiv_rn((float)(pos[r] + 1), floor_at)) + 1.0f);
        x.p[r * x.stride + i] *= f;
    }
};

void cu_launch_qscale(cu_reg x, const uint32_t *pos, float scale, float floor_at, uint32_t n_rows, uint32_t n,
                      cu_stream s)
{
    each(n_rows, n, s, qscale_fn { x, pos, scale, floor_at });
}

struct embed_fn {
    const void *x;
    bool bf16;
    cu_reg y;
    float scale;
    uint32_t n;
    __device__ void operator()(uint32_t r, uint32_t i) const
    {
        size_t at = (size_t)r * n + i;
        y.p[r * y.stride + i] = (bf16 ? bf16_to_f32(((const uint16_t *)x)[at]) : ((const float *)x)[at]) * scale;
    }
};

void cu_launch_embed(const void *x, uint32_t type, cu_reg y, float scale, uint32_t n_rows, uint32_t n, cu_stream s)
{
    each(n_rows, n, s, embed_fn { x, type == KS_T_BF16, y, scale, n });
}

/* ---- the cache */

/* Where row r of a.x goes: its number 0. */
static __device__ __forceinline__ uint8_t *append_row(const cu_append &a, uint32_t r)
{
    const cu_seq s = a.seqs[a.row_seq[r]];
    uint32_t pos = s.pos + (r - s.row), page = a.pages[s.page_at + pos / a.cache.page_tok];
    size_t at = (size_t)(pos % a.cache.page_tok) * a.cache.stride + a.col;
    return a.cache.p + page * a.cache.page_bytes +
           at * (a.cache.type == KS_T_F32    ? 4
                 : a.cache.type == KS_T_BF16 ? 2
                                             : 1);
}

static __device__ __forceinline__ void append_at(uint32_t type, uint8_t *p, uint32_t i, float v)
{
    if (type == KS_T_F32)
        ((float *)p)[i] = v;
    else if (type == KS_T_BF16)
        ((uint16_t *)p)[i] = f32_to_bf16(v);
    else
        p[i] = f32_to_e4m3(v);
}

struct append_fn {
    cu_append a;
    __device__ void operator()(uint32_t r, uint32_t i) const
    {
        append_at(a.cache.type, append_row(a, r), i, a.x.p[r * a.x.stride + i]);
    }
};

void cu_launch_append(const cu_append *a, cu_stream s)
{
    each(a->n_rows, a->n, s, append_fn { *a });
}

/* Columns threadIdx.x + j * 32 of a head of a row. */
template <uint32_t PER>
static __device__ __forceinline__ void load_head(const cu_head &h, const float *at, float v[PER])
{
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) {
        uint32_t i = threadIdx.x + j * 32;
        v[j] = i < h.width ? at[i] : 0.0f;
    }
}

/* By way of shared memory: the two of a pair may be different lanes'. */
template <uint32_t PER>
static __device__ __forceinline__ void rotate_head(const cu_head &h, float *x, const float sn[PER / 2],
                                                   const float cs[PER / 2], float v[PER])
{
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) x[threadIdx.x + j * 32] = v[j];
    __syncwarp();
#pragma unroll
    for (uint32_t j = 0; j < PER / 2; j++) {
        uint32_t i = threadIdx.x + j * 32;
        if (i < h.rope.rot_dim / 2) rotate(h.rope, x, i, sn[j], cs[j]);
    }
    __syncwarp();
#pragma unroll
    for (uint32_t j = 0; j < PER; j++) v[j] = x[threadIdx.x + j * 32];
    __syncwarp();
}

/* A warp has up to `most` heads of a row, alike but for their columns; the next is on its way while one is computed. */
template <uint32_t PER>
static __global__ void __launch_bounds__(BLOCK, 4)
    heads_kernel(const __grid_constant__ cu_heads a, uint32_t most, uint32_t units)
{
    __shared__ float shared[BLOCK / 32][PER * 32];
    uint32_t unit = blockIdx.x * blockDim.y + threadIdx.y, row = unit / units, at = unit % units, k = 0;
    let_next_begin();
    wait_for_stream();
    if (row >= a.n_rows) return;
    for (; at >= ceil_div(a.of[k].n_heads, most); k++) at -= ceil_div(a.of[k].n_heads, most);
    const cu_head &h = a.of[k];
    const uint32_t end = min((at + 1) * most, h.n_heads);
    float *x = h.x.p + row * h.x.stride, sn[PER / 2] = {}, cs[PER / 2] = {}, next[PER], w[PER];
    uint32_t w_at = UINT32_MAX;
    load_head<PER>(h, x + at * most * h.width, next);
#pragma unroll
    for (uint32_t j = 0; j < PER / 2; j++) {
        uint32_t i = threadIdx.x + j * 32;
        if (i < h.rope.rot_dim / 2) find_turn(h.rope, row, i, &sn[j], &cs[j]);
    }
    uint8_t *cache = h.append.cache.p ? append_row(h.append, row) : nullptr;
    for (uint32_t head = at * most; head < end; head++) {
        const uint32_t c0 = head * h.width, w0 = h.norm.width ? wrapped(c0, h.norm.w_width) : 0;
        float v[PER];
#pragma unroll
        for (uint32_t j = 0; j < PER; j++) v[j] = next[j];
        if (head + 1 < end) load_head<PER>(h, x + c0 + h.width, next);
        if (h.norm.width) {
            if (w0 != w_at) load_weights<32, PER>(h.norm, w_at = w0, w);
            norm_columns<32, PER>(h.norm, w0, w, v, nullptr);
        }
        if (h.rope.rot_dim) rotate_head<PER>(h, shared[threadIdx.y], sn, cs, v);
#pragma unroll
        for (uint32_t j = 0; j < PER; j++) {
            uint32_t i = threadIdx.x + j * 32;
            if (i >= h.width) continue;
            if (h.norm.width || h.rope.rot_dim) x[c0 + i] = v[j];
            if (cache) append_at(h.append.cache.type, cache, c0 + i, v[j]);
        }
    }
}

template <uint32_t PER> static void launch_heads(const cu_heads *a, cu_stream s)
{
    const bool few = a->n_rows <= FEW_ROWS;
    const uint32_t most = few ? 1 : 4, warps = few ? 1 : BLOCK / 32;
    uint32_t units = 0;
    for (uint32_t i = 0; i < CU_HEADS; i++) units += (a->of[i].n_heads + most - 1) / most;
    uint32_t blocks = (a->n_rows * units + warps - 1) / warps;
    if (blocks) CU_LAUNCH_EARLY(heads_kernel<PER>, blocks, dim3(32, warps), 0, s)(*a, most, units);
}

void cu_launch_heads(const cu_heads *a, cu_stream s)
{
    uint32_t width = 0;
    for (uint32_t i = 0; i < CU_HEADS; i++) width = a->of[i].width > width ? a->of[i].width : width;
    if (width <= 128)
        launch_heads<4>(a, s);
    else
        launch_heads<CU_HEAD_WIDTH / 32>(a, s);
}
