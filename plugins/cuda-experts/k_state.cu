/* CONV and DELTA: memory of a fixed size a sequence, rows of a sequence in order; position 0 starts it at zero. And
 * the first step of latent attention. */
#include "common.cuh"
#include <krasis/graph.h>
#include <krasis/kernels.h>

#define CONV_ROWS 16u

static __device__ float sigmoid(float x)
{
    return __fdiv_rn(1.0f, 1.0f + expf(-x));
}

/* A thread has a channel over `per` rows of a sequence; the state holds the channel's last N inputs, oldest first. The
 * thread of the first rows alone reads it, and writes it anew, from the rows themselves where there are others. */
template <uint32_t N> static __global__ void __launch_bounds__(128) conv_kernel(cu_conv a, uint32_t per)
{
    uint32_t c = blockIdx.y * blockDim.x + threadIdx.x, r0 = blockIdx.z * per;
    cu_seq s = a.seqs[blockIdx.x];
    if (c >= a.n || r0 >= s.n_rows) return;
    const float *x = a.x.p + s.row * a.x.stride + c;
    float *y = a.y.p + s.row * a.y.stride + c, *past = a.state + s.slot * a.state_stride + (size_t)c * N;
    float w[N + 1], last[N];
#pragma unroll
    for (uint32_t i = 0; i <= N; i++) w[i] = a.weight[(size_t)c * (N + 1) + i];
#pragma unroll
    for (uint32_t i = 0; i < N; i++) last[i] = r0 ? x[(size_t)(r0 - N + i) * a.x.stride] : s.pos ? past[i] : 0.0f;
    const float bias = a.bias ? a.bias[c] : 0.0f;
#pragma unroll 4
    for (uint32_t r = r0; r < min(r0 + per, s.n_rows); r++) {
        float in = x[(size_t)r * a.x.stride], sum = 0;
#pragma unroll
        for (uint32_t i = 0; i < N; i++) sum = __fadd_rn(sum, __fmul_rn(last[i], w[i]));
        sum = __fadd_rn(sum, __fmul_rn(in, w[N]));
#pragma unroll
        for (uint32_t i = 0; i + 1 < N; i++) last[i] = last[i + 1];
        last[N - 1] = in;
        if (a.bias) sum = __fadd_rn(sum, bias);
        y[(size_t)r * a.y.stride] = a.act == KS_ACT1_SILU ? __fdiv_rn(sum, 1.0f + expf(-sum)) : sum;
    }
    if (r0) return;
#pragma unroll
    for (uint32_t i = 0; i < N; i++) past[i] = s.n_rows > per ? x[(size_t)(s.n_rows - N + i) * a.x.stride] : last[i];
}

template <uint32_t N> static void launch_conv(const cu_conv *a, cu_stream s)
{
    uint32_t per = a->in_place ? a->n_rows : CONV_ROWS; /* nobody writes what another reads */
    dim3 grid(a->n_seqs, (a->n + 127) / 128, (a->n_rows + per - 1) / per);
    CU_LAUNCH(conv_kernel<N>, grid, 128, 0, s)(*a, per);
}

static void (*const conv_widths[])(const cu_conv *, cu_stream) = { launch_conv<1>, launch_conv<2>, launch_conv<3>,
                                                                   launch_conv<4>, launch_conv<5>, launch_conv<6>,
                                                                   launch_conv<7> };

int cu_conv_fits(uint32_t width)
{
    return width >= 2 && width - 2 < sizeof conv_widths / sizeof conv_widths[0];
}

void cu_launch_conv(const cu_conv *a, cu_stream s)
{
    if (a->n_seqs && a->n && a->n_rows) conv_widths[a->width - 2](a, s);
}

/* ---- the delta rule, in chunks of KS_DELTA_CHUNK rows from absolute multiples of it on
 *
 * With S the matrix before the chunk, g the decays of its rows, c_ij = g_(j+1) ... g_i and t_i = g_0 ... g_i,
 *   d_i = beta_i (v_i - t_i S^T k_i - sum_{j < i} c_ij (k_j . k_i) d_j),  o_i = t_i S^T q_i + sum_{j <= i} c_ij (k_j .
 * q_i) d_j, and after its last row S becomes t S + sum_j c_j k_j d_j^T. S is read once for all rows of a chunk that
 * come together and written once a chunk; until then k, d and g of its rows are kept beside it. What a row's numbers
 * are made of, and in which order, does not depend on the rows that come with it: sums over d_k are SEGS chains of fma,
 * added in order, those over j are one.
 *
 * The state of a head: S (d_k, d_v), d (CHUNK, d_v), k (CHUNK, d_k), g (CHUNK). A block owns COLS columns of one. */
#define CHUNK KS_DELTA_CHUNK
#define COLS 32u
#define SEGS 4u
#define DELTA_THREADS 256u
#define DELTA_WARPS (DELTA_THREADS / 32)
#define TOGETHER 4u /* rows that a warp multiplies with S at once */

struct delta_shared {
    float part[SEGS][2 * CHUNK][COLS]; /* of sums over d_k; [0]: t S^T k and t S^T q of each row, in turns */
    float w[2 * CHUNK][CHUNK];         /* c_ij (k_j . k_i), c_ij (k_j . q_i), in turns */
    float d[CHUNK][COLS];
    float c[CHUNK][CHUNK], t[CHUNK]; /* of each new row */
    float g[CHUNK], beta[CHUNK];
    float s[]; /* (d_k, COLS); then k (CHUNK, d_k + 1) of the chunk and q of the new rows */
};

static __device__ float decay_of(const cu_delta &a, uint32_t row, uint32_t h)
{
    float x = a.a.p[row * a.a.stride + h] + a.dt[h];
    return expf(a.neg_a[h] * (x > 20.0f ? x : log1pf(expf(x))));
}

struct delta_rows { /* rows [row, row + n) of the batch are rows [at, at + n) of a chunk */
    uint32_t row, at, n;
};

struct delta_block {
    const cu_delta &a;
    delta_shared &m;
    float *k, *q; /* (CHUNK, d_k + 1) */
    uint32_t h, kh, c0;

    __device__ void load(const delta_rows &r) const
    {
        uint32_t ld = a.d_k + 1;
        for (uint32_t i = threadIdx.x; i < r.n * a.d_k; i += DELTA_THREADS) {
            uint32_t row = i / a.d_k, e = i % a.d_k;
            size_t col = (size_t)kh * a.d_k + e;
            k[(r.at + row) * ld + e] = a.k.p[(r.row + row) * a.k.stride + col];
            q[row * ld + e] = a.q.p[(r.row + row) * a.q.stride + col] * a.scale;
        }
        if (threadIdx.x < r.n) {
            m.g[r.at + threadIdx.x] = decay_of(a, r.row + threadIdx.x, h);
            m.beta[threadIdx.x] = sigmoid(a.b.p[(r.row + threadIdx.x) * a.b.stride + h]);
        }
    }

    /* Row 2 i is k, row 2 i + 1 is q of new row i. */
    __device__ const float *factor(const delta_rows &r, uint32_t i) const
    {
        return i % 2 ? q + (size_t)(i / 2) * (a.d_k + 1) : k + (size_t)(r.at + i / 2) * (a.d_k + 1);
    }

    __device__ void decays(const delta_rows &r) const
    {
        for (uint32_t u = threadIdx.x; u < r.n * (CHUNK + 1); u += DELTA_THREADS) {
            uint32_t i = u / (CHUNK + 1), j = u % (CHUNK + 1);
            float f = 1;
            for (uint32_t l = j; l <= r.at + i; l++) f *= m.g[l]; /* j: after row j - 1; 0: of all rows */
            *(j ? &m.c[i][j - 1] : &m.t[i]) = f;
        }
    }

    __device__ void weights(const delta_rows &r) const
    {
        uint32_t per = ceil_div(a.d_k, SEGS), n = 2 * r.n * CHUNK;
        for (uint32_t u = threadIdx.x; u < n * SEGS; u += DELTA_THREADS) {
            uint32_t seg = u / n, i = u % n / CHUNK, j = u % CHUNK;
            if (j > r.at + i / 2) continue;
            const float *x = factor(r, i), *y = k + (size_t)j * (a.d_k + 1);
            float sum = 0;
            for (uint32_t e = seg * per; e < min((seg + 1) * per, a.d_k); e++) sum = __fmaf_rn(x[e], y[e], sum);
            m.part[seg][i][j] = sum;
        }
        __syncthreads();
        for (uint32_t u = threadIdx.x; u < n; u += DELTA_THREADS) {
            uint32_t i = u / CHUNK, j = u % CHUNK;
            if (j > r.at + i / 2) continue;
            float sum = 0;
            for (uint32_t seg = 0; seg < SEGS; seg++) sum = __fadd_rn(sum, m.part[seg][i][j]);
            m.w[i][j] = sum * m.c[i / 2][j];
        }
        __syncthreads(); /* part is written again */
    }

    /* part[0] = t S^T k and t S^T q. A warp takes some rows and a segment. */
    __device__ void products(const delta_rows &r) const
    {
        uint32_t per = ceil_div(a.d_k, SEGS), groups = ceil_div(2 * r.n, TOGETHER), lane = threadIdx.x % 32;
        for (uint32_t u = threadIdx.x / 32; u < groups * SEGS; u += DELTA_WARPS) {
            uint32_t seg = u % SEGS, i0 = u / SEGS * TOGETHER;
            const float *x[TOGETHER];
            float sum[TOGETHER] = {};
#pragma unroll
            for (uint32_t i = 0; i < TOGETHER; i++) x[i] = factor(r, i0 + i < 2 * r.n ? i0 + i : i0);
            for (uint32_t e = seg * per; e < min((seg + 1) * per, a.d_k); e++) {
                float v = m.s[e * COLS + lane];
#pragma unroll
                for (uint32_t i = 0; i < TOGETHER; i++) sum[i] = __fmaf_rn(x[i][e], v, sum[i]);
            }
#pragma unroll
            for (uint32_t i = 0; i < TOGETHER; i++)
                if (i0 + i < 2 * r.n) m.part[seg][i0 + i][lane] = sum[i];
        }
        __syncthreads();
        for (uint32_t u = threadIdx.x; u < 2 * r.n * COLS; u += DELTA_THREADS) {
            uint32_t i = u / COLS, c = u % COLS;
            float sum = 0;
            for (uint32_t seg = 0; seg < SEGS; seg++) sum = __fadd_rn(sum, m.part[seg][i][c]);
            m.part[0][i][c] = sum * m.t[i / 2];
        }
        __syncthreads();
    }

    /* d, one row after the other: a thread a column. */
    __device__ void solve(const delta_rows &r) const
    {
        uint32_t col = threadIdx.x;
        for (uint32_t i = 0; i < r.n && col < COLS; i++) {
            float x = m.part[0][2 * i][col];
            float v = c0 + col < a.d_v ? a.v.p[(r.row + i) * a.v.stride + (size_t)h * a.d_v + c0 + col] : 0.0f;
            for (uint32_t j = 0; j < r.at + i; j++) x = __fmaf_rn(m.w[2 * i][j], m.d[j][col], x);
            m.d[r.at + i][col] = m.beta[i] * (v - x);
        }
        __syncthreads();
    }

    __device__ void results(const delta_rows &r) const
    {
        uint32_t col = threadIdx.x % COLS;
        for (uint32_t i = threadIdx.x / COLS; i < r.n; i += DELTA_THREADS / COLS) {
            float y = m.part[0][2 * i + 1][col];
            for (uint32_t j = 0; j <= r.at + i; j++) y = __fmaf_rn(m.w[2 * i + 1][j], m.d[j][col], y);
            if (c0 + col < a.d_v) a.o.p[(r.row + i) * a.o.stride + (size_t)h * a.d_v + c0 + col] = y;
        }
    }

    __device__ void update(const delta_rows &r) const
    {
        uint32_t col = threadIdx.x % COLS, last = r.n - 1;
        float d[CHUNK];
#pragma unroll
        for (uint32_t j = 0; j < CHUNK; j++) d[j] = m.c[last][j] * m.d[j][col];
        for (uint32_t e = threadIdx.x / COLS; e < a.d_k; e += DELTA_THREADS / COLS) {
            float v = m.t[last] * m.s[e * COLS + col];
#pragma unroll
            for (uint32_t j = 0; j < CHUNK; j++) v = __fmaf_rn(k[j * (a.d_k + 1) + e], d[j], v);
            m.s[e * COLS + col] = v;
        }
    }

    __device__ void rows(const delta_rows &r) const
    {
        __syncthreads(); /* nobody reads the last rows any more */
        load(r);
        __syncthreads();
        decays(r);
        __syncthreads();
        weights(r);
        products(r);
        solve(r);
        results(r);
        if (r.at + r.n == CHUNK) update(r);
    }
};

/* Blocks of one head share k and g of the state. Rows that this launch adds to the chunk it finds are written while
 * others read those before; a new chunk's may overwrite what another block has not read yet: keys_kernel does it. */
static __device__ bool keys_are_late(const cu_seq &s)
{
    return s.pos % CHUNK && s.pos % CHUNK + s.n_rows > CHUNK;
}

static __global__ void __launch_bounds__(DELTA_THREADS) delta_kernel(cu_delta a)
{
    CU_DYNAMIC_SHARED(float, shared);
    delta_shared &m = *(delta_shared *)shared;
    cu_seq s = a.seqs[blockIdx.x];
    uint32_t h = blockIdx.y, c0 = blockIdx.z * COLS, ld = a.d_k + 1, at = s.pos % CHUNK, col = threadIdx.x % COLS;
    bool there = c0 + col < a.d_v, changed = false;
    float *gs = a.state + s.slot * a.state_stride + h * a.head_stride, *gd = gs + (size_t)a.d_k * a.d_v,
          *gk = gd + (size_t)CHUNK * a.d_v, *gg = gk + (size_t)CHUNK * a.d_k;
    delta_block b = { a, m, m.s + (size_t)a.d_k * COLS, nullptr, h, h / (a.n_v_heads / a.n_k_heads), c0 };
    b.q = b.k + (size_t)CHUNK * ld;
    for (uint32_t e = threadIdx.x / COLS; e < a.d_k; e += DELTA_THREADS / COLS)
        m.s[e * COLS + col] = there && s.pos >= CHUNK ? gs[(size_t)e * a.d_v + c0 + col] : 0.0f;
    for (uint32_t j = threadIdx.x / COLS; j < at; j += DELTA_THREADS / COLS)
        m.d[j][col] = there ? gd[(size_t)j * a.d_v + c0 + col] : 0.0f;
    for (uint32_t i = threadIdx.x; i < at * a.d_k; i += DELTA_THREADS) b.k[i / a.d_k * ld + i % a.d_k] = gk[i];
    if (threadIdx.x < at) m.g[threadIdx.x] = gg[threadIdx.x];
    delta_rows r = { s.row, at, 0 };
    for (; r.row < s.row + s.n_rows; r.row += r.n) {
        r.at = (s.pos + r.row - s.row) % CHUNK;
        r.n = min(CHUNK - r.at, s.row + s.n_rows - r.row);
        b.rows(r);
        changed = changed || r.at + r.n == CHUNK;
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x / COLS; changed && there && e < a.d_k; e += DELTA_THREADS / COLS)
        gs[(size_t)e * a.d_v + c0 + col] = m.s[e * COLS + col];
    for (uint32_t j = r.at + threadIdx.x / COLS; there && j < r.at + r.n; j += DELTA_THREADS / COLS)
        gd[(size_t)j * a.d_v + c0 + col] = m.d[j][col];
    if (c0 || keys_are_late(s)) return;
    for (uint32_t i = r.at * a.d_k + threadIdx.x; i < (r.at + r.n) * a.d_k; i += DELTA_THREADS)
        gk[i] = b.k[i / a.d_k * ld + i % a.d_k];
    if (threadIdx.x < r.n) gg[r.at + threadIdx.x] = m.g[r.at + threadIdx.x];
}

/* k and g of the rows of the last chunk. */
static __global__ void keys_kernel(cu_delta a)
{
    cu_seq s = a.seqs[blockIdx.x];
    uint32_t h = blockIdx.y, kh = h / (a.n_v_heads / a.n_k_heads), n = (s.pos + s.n_rows) % CHUNK;
    uint32_t row = s.row + s.n_rows - n;
    float *gk = a.state + s.slot * a.state_stride + h * a.head_stride + (size_t)(a.d_k + CHUNK) * a.d_v;
    if (!keys_are_late(s)) return;
    for (uint32_t i = threadIdx.x; i < n * a.d_k; i += blockDim.x)
        gk[i] = a.k.p[(row + i / a.d_k) * a.k.stride + (size_t)kh * a.d_k + i % a.d_k];
    if (threadIdx.x < n) gk[(size_t)CHUNK * a.d_k + threadIdx.x] = decay_of(a, row + threadIdx.x, h);
}

size_t cu_delta_shared_bytes(uint32_t d_k)
{
    return sizeof(delta_shared) + sizeof(float) * ((size_t)d_k * COLS + 2 * (size_t)CHUNK * (d_k + 1));
}

int cu_launch_delta(const cu_delta *a, cu_stream s)
{
    size_t bytes = cu_delta_shared_bytes(a->d_k);
    if (!a->n_seqs) return 0;
    if (bytes > 48 * 1024) {
        cudaError_t rc = cudaFuncSetAttribute(delta_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        if (rc != cudaSuccess) return (int)rc;
    }
    dim3 grid(a->n_seqs, a->n_v_heads, (a->d_v + COLS - 1) / COLS);
    CU_LAUNCH(delta_kernel, grid, DELTA_THREADS, bytes, s)(*a);
    if (a->most_rows > 1) CU_LAUNCH(keys_kernel, dim3(a->n_seqs, a->n_v_heads), 128, 0, s)(*a);
    return 0;
}

/* Element (row, k) of a T16 matrix. */
static __device__ float t16_at(uint32_t type, uint32_t group, const uint8_t *strip, size_t values, uint32_t row,
                               uint32_t k)
{
    if (type == KS_T_F32) return ((const float *)strip)[k * 16 + row];
    if (type == KS_T_BF16) return bf16_to_f32(((const uint16_t *)strip)[(k / 2 * 16 + row) * 2 + k % 2]);
    const uint8_t *scales = strip + values;
    uint32_t at = k / group * 16 + row;
    if (type == KS_T_I8)
        return bf16_to_f32(((const uint16_t *)scales)[at]) *
               (float)((const int8_t *)strip)[(k / 4 * 16 + row) * 4 + k % 4];
    uint8_t byte = strip[(k / 8 * 16 + row) * 4 + k % 4];
    int32_t code = k % 8 < 4 ? byte & 15 : byte >> 4;
    if (type == KS_T_I4) return bf16_to_f32(((const uint16_t *)scales)[at]) * (float)(code - 8);
    const float mag[8] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6 };
    return e8m0_to_f32(scales[at]) * (code & 8 ? -mag[code & 7] : mag[code & 7]);
}

static __global__ void absorb_kernel(cu_absorb a)
{
    CU_DYNAMIC_SHARED(float, q); /* d_nope */
    uint32_t h = blockIdx.y, width = a.d_latent + a.d_rope,
             per = 32 / (a.type == KS_T_F32    ? 32
                         : a.type == KS_T_BF16 ? 16
                         : a.type == KS_T_I8   ? 8
                                               : 4);
    const float *in = a.q.p + blockIdx.x * a.q.stride + (size_t)h * (a.d_nope + a.d_rope);
    float *y = a.y + ((size_t)blockIdx.x * a.n_heads + h) * width;
    size_t values = (size_t)((a.d_latent + 31) / 32 * 32) * 64 / per;
    for (uint32_t i = threadIdx.x; i < a.d_nope; i += blockDim.x) q[i] = in[i];
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.d_latent; i += blockDim.x) {
        float sum = 0;
        for (uint32_t n = 0; n < a.d_nope; n++)
            sum += q[n] * t16_at(a.type, a.group, a.w + h * a.w_stride + n / 16 * a.strip_bytes, values, n % 16, i);
        y[i] = sum;
    }
    for (uint32_t i = threadIdx.x; i < a.d_rope; i += blockDim.x) y[a.d_latent + i] = in[a.d_nope + i];
}

void cu_launch_absorb(const cu_absorb *a, cu_stream s)
{
    if (a->n_rows) CU_LAUNCH(absorb_kernel, dim3(a->n_rows, a->n_heads), 128, a->d_nope * sizeof(float), s)(*a);
}
