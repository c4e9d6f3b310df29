/* ATTN over BF16 and E4M3 caches on the tensor cores.
 *
 * Keys and values are BF16 here without loss. Queries and weights are the sum of two BF16 numbers each, which keeps 17
 * bits: far more than the cache has, so products are exact to 2^-17 and summed in float. A warp has 16 queries, (row,
 * head) pairs of one kv head; keys come in blocks of 32 at absolute multiples; a block that a query does not see leaves
 * its bits alone; spans of 1024 positions are reduced apart and merged in ascending order. So, as in k_attn.cu, the
 * bits of a row depend neither on its neighbours nor on whether spans have blocks of their own. */
#include "common.cuh"

#define KEYS 32u
#define SPAN 1024u

static __device__ __forceinline__ uint32_t pack(float a, float b)
{
    return (uint32_t)f32_to_bf16(a) | (uint32_t)f32_to_bf16(b) << 16;
}

static __device__ __forceinline__ float rest_of(float v)
{
    return v - bf16_to_f32(f32_to_bf16(v));
}

/* Two codes in the low bytes of each half become two BF16 numbers. */
static __device__ __forceinline__ uint32_t e4m3_pair(uint32_t lo, uint32_t hi)
{
    return __float_as_uint(e4m3_to_f32(lo)) >> 16 | (__float_as_uint(e4m3_to_f32(hi)) & 0xffff0000u);
}

/* 16 bytes of the cache into shared memory, as BF16. */
template <bool FP8> static __device__ __forceinline__ void put(uint16_t *to, uint4 v)
{
    if (!FP8) {
        *(uint4 *)to = v;
        return;
    }
    uint32_t in[4] = { v.x, v.y, v.z, v.w }, out[8];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        out[2 * i] = e4m3_pair(in[i] & 255u, in[i] >> 8 & 255u);
        out[2 * i + 1] = e4m3_pair(in[i] >> 16 & 255u, in[i] >> 24);
    }
    ((uint4 *)to)[0] = make_uint4(out[0], out[1], out[2], out[3]);
    ((uint4 *)to)[1] = make_uint4(out[4], out[5], out[6], out[7]);
}

template <uint32_t D, uint32_t WARPS, bool FP8> struct shape {
    static constexpr uint32_t THREADS = WARPS * 32, QUERIES = WARPS * 16, ROW = D + 8, ELEM = FP8 ? 1 : 2;
    static constexpr uint32_t CHUNK = 16 / ELEM, CHUNKS = D / CHUNK; /* elements of 16 bytes; of a row of the cache */
    static constexpr uint32_t PER = KEYS * CHUNKS / THREADS;         /* chunks of a thread, in K and in V */
    static constexpr size_t BYTES = (size_t)(2 * QUERIES + 2 * KEYS) * ROW * 2 + (size_t)QUERIES * D * 4;
};

struct span_keys {
    uint32_t begin, end;
};

/* What a thread holds of its warp's 16 queries: rows g and g + 8. */
template <uint32_t D> struct state {
    float m[2], l[2], o[D / 8][4];
};

template <uint32_t D, uint32_t WARPS, bool FP8> struct flash {
    using S = shape<D, WARPS, FP8>;
    const cu_attn &a;
    const cu_seq &s;
    uint32_t kvh;
    uint16_t *qh, *ql, *ks, *vs;
    uint32_t pos[2], lo[2]; /* of rows g and g + 8 */
    bool real[2], works;    /* works: the warp has a query at all */
    uint32_t warp_last;     /* the last position that any of its queries sees */

    __device__ void fetch(uint4 k[S::PER], uint4 v[S::PER], uint32_t j0, span_keys r) const
    {
        const uint32_t *pages = a.pages + s.page_at;
#pragma unroll
        for (uint32_t i = 0; i < S::PER; i++) {
            uint32_t at = threadIdx.x + i * S::THREADS, j = j0 + at / S::CHUNKS, c = at % S::CHUNKS * S::CHUNK;
            k[i] = v[i] = make_uint4(0, 0, 0, 0);
            if (j < r.begin || j >= r.end) continue;
            size_t page = pages[j / a.k.page_tok], in = j % a.k.page_tok;
            k[i] = *(const uint4 *)(a.k.p + page * a.k.page_bytes + (in * a.k.stride + (size_t)kvh * D + c) * S::ELEM);
            v[i] = *(const uint4 *)(a.v.p + page * a.v.page_bytes + (in * a.v.stride + (size_t)kvh * D + c) * S::ELEM);
        }
    }

    __device__ void keep(const uint4 k[S::PER], const uint4 v[S::PER])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::PER; i++) {
            uint32_t at = threadIdx.x + i * S::THREADS, to = at / S::CHUNKS * S::ROW + at % S::CHUNKS * S::CHUNK;
            put<FP8>(ks + to, k[i]);
            put<FP8>(vs + to, v[i]);
        }
    }

    /* Scores of 16 queries and 32 keys. */
    __device__ void scores(float c[4][4]) const
    {
        uint32_t lane = threadIdx.x % 32, q0 = threadIdx.x / 32 * 16;
#pragma unroll
        for (uint32_t k = 0; k < D; k += 16) {
            uint32_t ah[4], al[4], b[4];
            size_t at = (size_t)(q0 + lane % 16) * S::ROW + k + lane / 16 * 8;
            ldmatrix_x4(ah, qh + at);
            ldmatrix_x4(al, ql + at);
#pragma unroll
            for (uint32_t n = 0; n < 2; n++) { /* two tiles of 8 keys each */
                ldmatrix_x4(b, ks + (size_t)(n * 16 + lane / 16 * 8 + lane % 8) * S::ROW + k + lane / 8 % 2 * 8);
                mma_bf16(c[2 * n], ah, b[0], b[1]);
                mma_bf16(c[2 * n + 1], ah, b[2], b[3]);
                mma_bf16(c[2 * n], al, b[0], b[1]);
                mma_bf16(c[2 * n + 1], al, b[2], b[3]);
            }
        }
    }

    /* Scores become weights; the state is rescaled. */
    __device__ void weigh(float c[4][4], uint32_t j0, span_keys r, state<D> &st) const
    {
        uint32_t t = threadIdx.x % 4;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            float top = -INFINITY, sum = 0;
            bool seen[8];
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                float &v = c[i / 2][2 * h + i % 2];
                uint32_t j = j0 + i / 2 * 8 + 2 * t + i % 2;
                seen[i] = real[h] && j >= r.begin && j < r.end && j <= pos[h] && j >= lo[h];
                v *= a.scale;
                if (a.softcap != 0) v = a.softcap * tanhf(__fdiv_rn(v, a.softcap));
                if (seen[i]) top = fmaxf(top, v);
            }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(fmaxf(top, __shfl_xor_sync(~0u, top, 2)), st.m[h]);
            float f = st.m[h] == top ? 1.0f : expf(st.m[h] - top);
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                float &v = c[i / 2][2 * h + i % 2];
                v = seen[i] ? expf(v - top) : 0.0f;
                sum = __fadd_rn(sum, v);
            }
            sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
            sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
            st.m[h] = top;
            st.l[h] = __fadd_rn(__fmul_rn(st.l[h], f), sum);
#pragma unroll
            for (uint32_t n = 0; n < D / 8; n++) {
                st.o[n][2 * h] *= f;
                st.o[n][2 * h + 1] *= f;
            }
        }
    }

    __device__ void add_values(const float c[4][4], state<D> &st) const
    {
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) { /* 16 keys each */
            const float *x = c[2 * i], *y = c[2 * i + 1];
            uint32_t ah[4] = { pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3]) };
            uint32_t al[4] = { pack(rest_of(x[0]), rest_of(x[1])), pack(rest_of(x[2]), rest_of(x[3])),
                               pack(rest_of(y[0]), rest_of(y[1])), pack(rest_of(y[2]), rest_of(y[3])) };
#pragma unroll
            for (uint32_t n = 0; n < D / 8; n += 2) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, vs + (size_t)(i * 16 + lane % 16) * S::ROW + n * 8 + lane / 16 * 8);
                mma_bf16(st.o[n], ah, b[0], b[1]);
                mma_bf16(st.o[n + 1], ah, b[2], b[3]);
                mma_bf16(st.o[n], al, b[0], b[1]);
                mma_bf16(st.o[n + 1], al, b[2], b[3]);
            }
        }
    }

    __device__ void attend(span_keys r, state<D> &st)
    {
        uint4 k[S::PER], v[S::PER];
        fetch(k, v, r.begin / KEYS * KEYS, r);
        for (uint32_t j0 = r.begin / KEYS * KEYS; j0 < r.end; j0 += KEYS) {
            __syncthreads(); /* nobody reads the last block any more */
            keep(k, v);
            __syncthreads();
            if (j0 + KEYS < r.end) fetch(k, v, j0 + KEYS, r);
            if (!works || j0 > warp_last) continue;
            float c[4][4] = {};
            scores(c);
            weigh(c, j0, r, st);
            add_values(c, st);
        }
    }
};

template <uint32_t D> static __device__ void clear(state<D> &st)
{
    for (uint32_t h = 0; h < 2; h++) {
        st.m[h] = -INFINITY;
        st.l[h] = 0;
    }
#pragma unroll
    for (uint32_t n = 0; n < D / 8; n++)
        for (uint32_t i = 0; i < 4; i++) st.o[n][i] = 0;
}

/* total (in shared memory, this thread's own numbers) takes in a span that comes later. */
template <uint32_t D> static __device__ void merge(float m[2], float l[2], float *total, const state<D> &st)
{
    uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        float top = fmaxf(m[h], st.m[h]);
        if (top == -INFINITY) continue;
        float fa = expf(m[h] - top), fb = expf(st.m[h] - top);
        m[h] = top;
        l[h] = l[h] * fa + st.l[h] * fb;
        float *row = total + (size_t)(g + 8 * h) * D;
#pragma unroll
        for (uint32_t n = 0; n < D / 8; n++)
            for (uint32_t i = 0; i < 2; i++) {
                float *o = row + n * 8 + 2 * t + i;
                *o = *o * fa + st.o[n][2 * h + i] * fb;
            }
    }
}

template <uint32_t D, uint32_t WARPS, bool FP8>
static __global__ void __launch_bounds__(WARPS * 32) flash_kernel(cu_attn a)
{
    using S = shape<D, WARPS, FP8>;
    CU_DYNAMIC_SHARED(uint8_t, shared);
    uint32_t group = a.n_heads / a.n_kv_heads, kvh = blockIdx.y, lane = threadIdx.x % 32, q0 = threadIdx.x / 32 * 16;
    cu_tile t = a.tiles[blockIdx.x];
    cu_seq s = a.seqs[t.seq];
    uint32_t n_real = t.n_rows * group;
    uint16_t *qh = (uint16_t *)shared;
    flash<D, WARPS, FP8> f = {
        a, s, kvh, qh, qh + S::QUERIES * S::ROW, qh + 2 * S::QUERIES * S::ROW, qh + (2 * S::QUERIES + KEYS) * S::ROW
    };
    float *total = (float *)(f.vs + KEYS * S::ROW) + (size_t)q0 * D;
    for (uint32_t i = threadIdx.x; i < S::QUERIES * D; i += S::THREADS) {
        uint32_t q = i / D, c = i % D;
        float v =
            q < n_real ? a.q.p[(t.row + q / group) * a.q.stride + (kvh * group + q % group) * a.q_head + c] : 0.0f;
        f.qh[q * S::ROW + c] = f32_to_bf16(v);
        f.ql[q * S::ROW + c] = f32_to_bf16(rest_of(v));
        ((float *)(f.vs + KEYS * S::ROW))[i] = 0;
    }
    __syncthreads(); /* total is cleared by others than its owners */
    auto first_seen = [&](uint32_t pos) {
        uint32_t lo = a.window && pos >= a.window ? pos - a.window + 1 : 0;
        return a.chunk ? max(lo, pos - pos % a.chunk) : lo;
    };
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t q = q0 + lane / 4 + 8 * h;
        f.real[h] = q < n_real;
        f.pos[h] = s.pos + (t.row + (f.real[h] ? q / group : 0) - s.row);
        f.lo[h] = first_seen(f.pos[h]);
    }
    f.works = q0 < n_real;
    f.warp_last = s.pos + (t.row + (f.works ? min(q0 + 15, n_real - 1) / group : 0) - s.row);
    uint32_t begin = first_seen(s.pos + (t.row - s.row)), end = s.pos + (t.row + t.n_rows - s.row);
    uint32_t s0 = a.n_spans ? blockIdx.z : begin / SPAN, s1 = a.n_spans ? blockIdx.z : (end - 1) / SPAN;
    float m[2] = { -INFINITY, -INFINITY }, l[2] = { 0, 0 };
    for (uint32_t i = s0; i <= s1; i++) {
        span_keys r = { max(begin, i * SPAN), min(end, (i + 1) * SPAN) };
        if (r.begin >= r.end) continue; /* the same for all threads */
        state<D> st;
        clear<D>(st);
        f.attend(r, st);
        merge<D>(m, l, total, st);
    }
    for (uint32_t h = 0; h < 2; h++) {
        if (!f.real[h]) continue;
        uint32_t q = q0 + lane / 4 + 8 * h, row = t.row + q / group, head = kvh * group + q % group;
        float *o = total + (size_t)(lane / 4 + 8 * h) * D;
        if (a.n_spans) {
            float *to = a.part + (((size_t)row * a.n_heads + head) * a.n_spans + blockIdx.z) * (D + 2);
            to[0] = m[h]; /* four threads write the same */
            to[1] = l[h];
            for (uint32_t n = lane % 4 * 2; n < D; n += 8)
                for (uint32_t i = 0; i < 2; i++) to[2 + n + i] = o[n + i];
            continue;
        }
        float scale = 1, sum = l[h];
        if (a.sinks) {
            float sink = a.sinks[head], top = fmaxf(m[h], sink);
            scale = expf(m[h] - top);
            sum = sum * scale + expf(sink - top);
        }
        for (uint32_t n = lane % 4 * 2; n < D; n += 8)
            for (uint32_t i = 0; i < 2; i++)
                a.o.p[row * a.o.stride + head * a.o_head + n + i] =
                    sum > 0 || sum != sum ? __fdiv_rn(o[n + i] * scale, sum) : 0.0f;
    }
}

template <uint32_t D, uint32_t WARPS, bool FP8> static int launch(const cu_attn *a, cu_stream s)
{
    size_t bytes = shape<D, WARPS, FP8>::BYTES;
    cudaError_t rc =
        cudaFuncSetAttribute(flash_kernel<D, WARPS, FP8>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (rc != cudaSuccess) return (int)rc;
    dim3 grid(a->n_tiles, a->n_kv_heads, a->n_spans ? a->n_spans : 1);
    CU_LAUNCH((flash_kernel<D, WARPS, FP8>), grid, WARPS * 32, bytes, s)(*a);
    return 0;
}

uint32_t cu_flash_queries(uint32_t kv_type, uint32_t group, uint32_t d_k, uint32_t d_v, size_t shared_max)
{
    if (kv_type == KS_T_F32 || d_k != d_v || group > 16) return 0;
    if (d_k == 64) return shape<64, 4, false>::BYTES <= shared_max ? 64 : 0;
    if (d_k == 128) return shape<128, 4, false>::BYTES <= shared_max ? 64 : 0;
    if (d_k == 256) return shape<256, 2, false>::BYTES <= shared_max ? 32 : 0;
    return 0;
}

int cu_launch_flash(const cu_attn *a, cu_stream s)
{
    bool fp8 = a->k.type == KS_T_F8E4M3;
    int rc;
    if (!a->n_tiles) return 0;
    if (a->d_k == 64)
        rc = fp8 ? launch<64, 4, true>(a, s) : launch<64, 4, false>(a, s);
    else if (a->d_k == 128)
        rc = fp8 ? launch<128, 4, true>(a, s) : launch<128, 4, false>(a, s);
    else
        rc = fp8 ? launch<256, 2, true>(a, s) : launch<256, 2, false>(a, s);
    if (!rc && a->n_spans) cu_launch_merge(a, s);
    return rc;
}
