/* CONV and DELTA: memory of a fixed size a sequence, rows of a sequence in order; position 0 starts it at zero. And
 * the first step of latent attention. */
#include "common.cuh"
#include <krasis/graph.h>

static __device__ float sigmoid(float x)
{
    return __fdiv_rn(1.0f, 1.0f + expf(-x));
}

/* A thread a channel; the state holds its last width - 1 inputs, oldest first. */
static __global__ void conv_kernel(cu_conv a)
{
    uint32_t c = blockIdx.y * blockDim.x + threadIdx.x, n = a.width - 1;
    cu_seq s = a.seqs[blockIdx.x];
    if (c >= a.n) return;
    float *past = a.state + s.slot * a.state_stride + (size_t)c * n;
    const float *w = a.weight + (size_t)c * a.width;
    if (s.pos == 0)
        for (uint32_t i = 0; i < n; i++) past[i] = 0;
    for (uint32_t r = s.row; r < s.row + s.n_rows; r++) {
        float in = a.x.p[r * a.x.stride + c], sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += past[i] * w[i];
        sum += in * w[n];
        for (uint32_t i = 0; i + 1 < n; i++) past[i] = past[i + 1];
        if (n) past[n - 1] = in;
        if (a.bias) sum += a.bias[c];
        a.y.p[r * a.y.stride + c] = a.act == KS_ACT1_SILU ? __fdiv_rn(sum, 1.0f + expf(-sum)) : sum;
    }
}

void cu_launch_conv(const cu_conv *a, cu_stream s)
{
    if (a->n_seqs && a->n) CU_LAUNCH(conv_kernel, dim3(a->n_seqs, (a->n + 127) / 128), 128, 0, s)(*a);
}

/* A block a (sequence, value head); a thread a value column, whose d_k numbers of the state lie in shared memory. */
static __global__ void delta_kernel(cu_delta a)
{
    CU_DYNAMIC_SHARED(float, shared);
    uint32_t h = blockIdx.y, kh = h / (a.n_v_heads / a.n_k_heads), j = threadIdx.x;
    cu_seq s = a.seqs[blockIdx.x];
    float *state = a.state + s.slot * a.state_stride + (size_t)h * a.d_k * a.d_v;
    float *st = shared, *q = st + (size_t)a.d_k * a.d_v, *k = q + a.d_k;
    float scale = __fdiv_rn(1.0f, __fsqrt_rn((float)a.d_k));
    for (uint32_t i = 0; i < a.d_k && j < a.d_v; i++) st[i * a.d_v + j] = s.pos == 0 ? 0.0f : state[i * a.d_v + j];
    for (uint32_t r = s.row; r < s.row + s.n_rows; r++) {
        __syncthreads();
        for (uint32_t i = j; i < a.d_k; i += blockDim.x) {
            q[i] = a.q.p[r * a.q.stride + (size_t)kh * a.d_k + i] * scale;
            k[i] = a.k.p[r * a.k.stride + (size_t)kh * a.d_k + i];
        }
        __syncthreads();
        if (j >= a.d_v) continue;
        float x = a.a.p[r * a.a.stride + h] + a.dt[h];
        float decay = expf(a.neg_a[h] * (x > 20.0f ? x : log1pf(expf(x))));
        float beta = sigmoid(a.b.p[r * a.b.stride + h]), t = 0, o = 0;
        for (uint32_t i = 0; i < a.d_k; i++) {
            float v = st[i * a.d_v + j] * decay;
            st[i * a.d_v + j] = v;
            t += v * k[i];
        }
        t = (a.v.p[r * a.v.stride + (size_t)h * a.d_v + j] - t) * beta;
        for (uint32_t i = 0; i < a.d_k; i++) {
            float v = st[i * a.d_v + j] + k[i] * t;
            st[i * a.d_v + j] = v;
            o += v * q[i];
        }
        a.o.p[r * a.o.stride + (size_t)h * a.d_v + j] = o;
    }
    for (uint32_t i = 0; i < a.d_k && j < a.d_v; i++) state[i * a.d_v + j] = st[i * a.d_v + j];
}

int cu_launch_delta(const cu_delta *a, cu_stream s)
{
    size_t bytes = sizeof(float) * ((size_t)a->d_k * a->d_v + 2 * a->d_k);
    if (!a->n_seqs) return 0;
    if (bytes > 48 * 1024) {
        cudaError_t rc = cudaFuncSetAttribute(delta_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        if (rc != cudaSuccess) return (int)rc;
    }
    CU_LAUNCH(delta_kernel, dim3(a->n_seqs, a->n_v_heads), (a->d_v + 31) / 32 * 32, bytes, s)(*a);
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
