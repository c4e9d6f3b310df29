/* ATTN: causal attention over paged keys, in float on the plain cores.
 *
 * A block takes up to 16 queries, (row, head) pairs of one kv head, over blocks of keys at absolute multiples of
 * KEYS. Each query has its own maximum, sum and output; a key that it may not see changes none of its bits, so its
 * neighbours in the block do not matter. Spans of 1024 positions are reduced apart and merged in ascending order,
 * whether one block walks all of them or each has a block of its own. */
#include "common.cuh"

#define QUERIES CU_ATTN_QUERIES
#define THREADS 256u
#define LANES (THREADS / QUERIES) /* threads of a query */
#define SPAN 1024u
#define HIDDEN -1.0f /* the weight of a key that a query does not see */

static __host__ __device__ uint32_t keys_of(uint32_t d_k, uint32_t d_v)
{
    return d_k > 256 || d_v > 256 ? 16u : 32u;
}

/* Reductions over the 16 threads of a query. */
static __device__ __forceinline__ float lanes_max(float v)
{
    for (int o = LANES / 2; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

static __device__ __forceinline__ float lanes_sum(float v)
{
    for (int o = LANES / 2; o; o >>= 1) v = __fadd_rn(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

/* What has been reduced of a query: this thread has columns lane, lane + LANES, ... of o. */
template <uint32_t COLS> struct partial {
    float m, l, o[COLS];

    __device__ void clear()
    {
        m = -INFINITY;
        l = 0;
        for (uint32_t i = 0; i < COLS; i++) o[i] = 0;
    }
    /* Takes in another one, whose keys come later. */
    __device__ void merge(const partial &b)
    {
        float top = fmaxf(m, b.m);
        if (top == -INFINITY) return;
        float fa = expf(m - top), fb = expf(b.m - top);
        m = top;
        l = l * fa + b.l * fb;
        for (uint32_t i = 0; i < COLS; i++) o[i] = o[i] * fa + b.o[i] * fb;
    }
};

struct query {
    uint32_t row, head, pos, lo; /* lo: first position it sees */
    bool real;
};

static __device__ query find_query(const cu_attn &a, const cu_tile &t, const cu_seq &s, uint32_t kvh, uint32_t chunk,
                                   uint32_t i)
{
    uint32_t group = a.n_heads / a.n_kv_heads, at = chunk * QUERIES + i;
    query q = {};
    q.real = at < t.n_rows * group;
    if (!q.real) return q;
    q.row = t.row + at / group;
    q.head = kvh * group + at % group;
    q.pos = s.pos + (q.row - s.row);
    if (a.window && q.pos >= a.window) q.lo = q.pos - a.window + 1;
    if (a.chunk && q.pos - q.pos % a.chunk > q.lo) q.lo = q.pos - q.pos % a.chunk;
    return q;
}

struct tile_keys {
    uint32_t begin, end; /* candidates: positions, or entries of sel */
    const uint32_t *sel;
};

/* One span, or all entries of sel: candidates [begin, end), begin a multiple of the block. */
template <uint32_t COLS>
static __device__ void attend(const cu_attn &a, const cu_seq &s, const query &q, uint32_t kvh, tile_keys k, float *qs,
                              float *ks, float *ps, partial<COLS> &ret)
{
    uint32_t n_keys = keys_of(a.d_k, a.d_v), qi = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    uint32_t k_row = a.d_k + 1, v_row = a.d_v + 1;
    const uint32_t *pages = a.pages + s.page_at;
    for (uint32_t j0 = k.begin / n_keys * n_keys; j0 < k.end; j0 += n_keys) {
        uint32_t n = min(n_keys, k.end - j0);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_keys * a.d_k; i += THREADS) {
            uint32_t key = i / a.d_k, c = i % a.d_k, j = j0 + key;
            bool there = key < n && j >= k.begin;
            if (there && k.sel) j = k.sel[j];
            ks[key * k_row + c] = there ? cache_at(a.k, a.k.p + pages[j / a.k.page_tok] * a.k.page_bytes,
                                                   (size_t)(j % a.k.page_tok) * a.k.stride + (size_t)kvh * a.d_k + c)
                                        : 0.0f;
        }
        __syncthreads();
        float score[2], top = -INFINITY;
        for (uint32_t i = 0; i < n_keys / LANES; i++) {
            uint32_t key = lane + i * LANES, j = j0 + key;
            bool there = q.real && key < n && j >= k.begin;
            if (there && k.sel) j = k.sel[j];
            there = there && j <= q.pos && j >= q.lo;
            const float *x = qs + qi * a.d_k, *y = ks + key * k_row;
            float dot = 0;
            for (uint32_t c = 0; c < a.d_k; c++) dot = __fmaf_rn(x[c], y[c], dot);
            dot *= a.scale;
            if (a.softcap != 0) dot = a.softcap * tanhf(__fdiv_rn(dot, a.softcap));
            score[i] = dot;
            ps[qi * n_keys + key] = there ? 0.0f : HIDDEN;
            if (there) top = dot > top || dot != dot ? dot : top;
        }
        top = fmaxf(ret.m, lanes_max(top));
        float f = ret.m == top ? 1.0f : expf(ret.m - top), sum = 0;
        for (uint32_t i = 0; i < n_keys / LANES; i++) {
            float *p = &ps[qi * n_keys + lane + i * LANES];
            if (*p != HIDDEN) sum = __fadd_rn(sum, *p = expf(score[i] - top));
        }
        ret.l = __fadd_rn(__fmul_rn(ret.l, f), lanes_sum(sum));
        ret.m = top;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_keys * a.d_v; i += THREADS) {
            uint32_t key = i / a.d_v, c = i % a.d_v, j = j0 + key;
            bool there = key < n && j >= k.begin;
            if (there && k.sel) j = k.sel[j];
            ks[key * v_row + c] = there ? cache_at(a.v, a.v.p + pages[j / a.v.page_tok] * a.v.page_bytes,
                                                   (size_t)(j % a.v.page_tok) * a.v.stride + (size_t)kvh * a.d_v + c)
                                        : 0.0f;
        }
        __syncthreads();
        for (uint32_t i = 0; i < COLS; i++) ret.o[i] *= f;
        for (uint32_t key = 0; key < n_keys; key++) {
            float p = ps[qi * n_keys + key];
            if (p == HIDDEN) continue; /* its value may be anything */
#pragma unroll
            for (uint32_t i = 0; i < COLS; i++)
                if (lane + i * LANES < a.d_v) ret.o[i] = __fmaf_rn(p, ks[key * v_row + lane + i * LANES], ret.o[i]);
        }
    }
}

template <uint32_t COLS> static __device__ void finish(const cu_attn &a, const query &q, partial<COLS> &t)
{
    uint32_t lane = threadIdx.x % LANES;
    if (a.sinks && q.real) {
        float sink = a.sinks[q.head], top = fmaxf(t.m, sink), f = expf(t.m - top);
        t.l = t.l * f + expf(sink - top);
        for (uint32_t i = 0; i < COLS; i++) t.o[i] *= f;
    }
    for (uint32_t i = 0; i < COLS; i++) {
        uint32_t c = lane + i * LANES;
        if (q.real && c < a.d_v)
            a.o.p[q.row * a.o.stride + q.head * a.o_head + c] =
                t.l > 0 || t.l != t.l ? __fdiv_rn(t.o[i], t.l) : 0.0f; /* 0: a row that sees no key */
    }
}

template <uint32_t COLS> static __global__ void __launch_bounds__(THREADS) attn_kernel(cu_attn a)
{
    CU_DYNAMIC_SHARED(float, shared);
    uint32_t n_keys = keys_of(a.d_k, a.d_v), span = blockIdx.z, qi = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    uint32_t group = a.n_heads / a.n_kv_heads, chunks = ceil_div(group, QUERIES);
    uint32_t kvh = blockIdx.y / chunks, chunk = blockIdx.y % chunks, d = a.d_k > a.d_v ? a.d_k : a.d_v;
    float *qs = shared, *ks = qs + QUERIES * a.d_k, *ps = ks + n_keys * (d + 1);
    cu_tile t = a.tiles[blockIdx.x];
    cu_seq s = a.seqs[t.seq];
    query q = find_query(a, t, s, kvh, chunk, qi);
    for (uint32_t c = lane; c < a.d_k; c += LANES)
        qs[qi * a.d_k + c] = q.real ? a.q.p[q.row * a.q.stride + q.head * a.q_head + c] : 0.0f;
    /* What any query of the tile sees: the first row begins, the last row ends. */
    query first = find_query(a, t, s, kvh, 0, 0);
    uint32_t last = s.pos + (t.row + t.n_rows - 1 - s.row);
    partial<COLS> total;
    total.clear();
    if (a.sel) {
        tile_keys k = { 0, a.n_sel[t.row], a.sel + t.row * a.sel_stride };
        attend<COLS>(a, s, q, kvh, k, qs, ks, ps, total);
        finish<COLS>(a, q, total);
        return;
    }
    uint32_t s0 = a.n_spans ? span : first.lo / SPAN, s1 = a.n_spans ? span : last / SPAN;
    for (uint32_t i = s0; i <= s1; i++) {
        tile_keys k = { max(first.lo, i * SPAN), min(last + 1, (i + 1) * SPAN), nullptr };
        partial<COLS> p;
        p.clear();
        if (k.begin < k.end) attend<COLS>(a, s, q, kvh, k, qs, ks, ps, p);
        total.merge(p);
    }
    if (!a.n_spans) {
        finish<COLS>(a, q, total);
        return;
    }
    if (!q.real) return;
    float *to = a.part + (((size_t)q.row * a.n_heads + q.head) * a.n_spans + span) * (a.d_v + 2);
    if (lane == 0) {
        to[0] = total.m;
        to[1] = total.l;
    }
    for (uint32_t i = 0; i < COLS; i++)
        if (lane + i * LANES < a.d_v) to[2 + lane + i * LANES] = total.o[i];
}

template <uint32_t COLS> static __global__ void __launch_bounds__(THREADS) merge_kernel(cu_attn a)
{
    uint32_t lane = threadIdx.x % LANES, at = blockIdx.x * QUERIES + threadIdx.x / LANES;
    query q = {};
    q.real = at < a.n_rows * a.n_heads;
    q.row = at / a.n_heads;
    q.head = at % a.n_heads;
    partial<COLS> total;
    total.clear();
    for (uint32_t s = 0; q.real && s < a.n_spans; s++) {
        const float *from = a.part + ((size_t)at * a.n_spans + s) * (a.d_v + 2);
        partial<COLS> p;
        p.m = from[0];
        p.l = from[1];
        for (uint32_t i = 0; i < COLS; i++) p.o[i] = lane + i * LANES < a.d_v ? from[2 + lane + i * LANES] : 0.0f;
        total.merge(p);
    }
    finish<COLS>(a, q, total);
}

size_t cu_attn_shared_bytes(uint32_t d_k, uint32_t d_v)
{
    uint32_t keys = keys_of(d_k, d_v), d = d_k > d_v ? d_k : d_v;
    return sizeof(float) * ((size_t)QUERIES * d_k + (size_t)keys * (d + 1) + QUERIES * keys);
}

void cu_launch_merge(const cu_attn *a, cu_stream s)
{
    uint32_t blocks = (a->n_rows * a->n_heads + QUERIES - 1) / QUERIES;
    if (a->d_v <= 64)
        CU_LAUNCH(merge_kernel<4>, blocks, THREADS, 0, s)(*a);
    else if (a->d_v <= 128)
        CU_LAUNCH(merge_kernel<8>, blocks, THREADS, 0, s)(*a);
    else if (a->d_v <= 256)
        CU_LAUNCH(merge_kernel<16>, blocks, THREADS, 0, s)(*a);
    else
        CU_LAUNCH(merge_kernel<40>, blocks, THREADS, 0, s)(*a);
}

template <uint32_t COLS> static int launch(const cu_attn *a, cu_stream s)
{
    size_t bytes = cu_attn_shared_bytes(a->d_k, a->d_v);
    uint32_t group = a->n_heads / a->n_kv_heads, chunks = (group + QUERIES - 1) / QUERIES;
    if (bytes > 48 * 1024) {
        cudaError_t rc =
            cudaFuncSetAttribute(attn_kernel<COLS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        if (rc != cudaSuccess) return (int)rc;
    }
    dim3 grid(a->n_tiles, a->n_kv_heads * chunks, a->n_spans ? a->n_spans : 1);
    CU_LAUNCH(attn_kernel<COLS>, grid, THREADS, bytes, s)(*a);
    if (a->n_spans) cu_launch_merge(a, s);
    return 0;
}

int cu_launch_attn(const cu_attn *a, cu_stream s)
{
    if (!a->n_tiles) return 0;
    if (a->d_v <= 64) return launch<4>(a, s);
    if (a->d_v <= 128) return launch<8>(a, s);
    if (a->d_v <= 256) return launch<16>(a, s);
    if (a->d_v <= 512) return launch<32>(a, s);
    return launch<40>(a, s);
}
