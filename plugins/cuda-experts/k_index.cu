/* INDEXER: which keys a sparse attention looks at. A key's score is the sum over the indexer's heads of
 * w_h * max(0, scale * q_h . k); the top_k best are kept, ties to the lower position, and listed in ascending order.
 *
 * Scores: a thread has a key and every WARPS-th head; dots are one chain of fma, the sum over the heads is one chain a
 * warp, added in order. Neither depends on other rows. */
#include "common.cuh"

#define KEYS 32u
#define WARPS 8u
#define THREADS (WARPS * 32)
#define BLOCK_KEYS 256u /* of a block, KEYS at a time: so often is q of use */

static __device__ uint32_t keys_of_row(const cu_index &a, uint32_t row, cu_seq *ret)
{
    *ret = a.seqs[a.row_seq[row]];
    return ret->pos + (row - ret->row) + 1;
}

static __global__ void __launch_bounds__(THREADS) score_kernel(cu_index a)
{
    CU_DYNAMIC_SHARED(float, q);                                          /* (n_heads, d) */
    float *k = q + (size_t)a.n_heads * a.d, *part = k + KEYS * (a.d + 1); /* (KEYS, d + 1), (WARPS, KEYS) */
    uint32_t row = a.row + blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    cu_seq s;
    uint32_t n = keys_of_row(a, row, &s), p0 = blockIdx.y * BLOCK_KEYS, p1 = min(p0 + BLOCK_KEYS, n);
    if (n <= a.top_k || p0 >= n) return; /* all are kept, nobody asks for scores */
    const uint32_t *pages = a.pages + s.page_at;
    for (uint32_t i = threadIdx.x; i < a.n_heads * a.d; i += THREADS) q[i] = a.q.p[row * a.q.stride + i];
    for (uint32_t p = p0; p < p1; p += KEYS) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < KEYS * a.d; i += THREADS) {
            uint32_t key = i / a.d, c = i % a.d, j = p + key;
            k[key * (a.d + 1) + c] = j < p1 ? cache_at(a.k, a.k.p + pages[j / a.k.page_tok] * a.k.page_bytes,
                                                       (size_t)(j % a.k.page_tok) * a.k.stride + c)
                                            : 0.0f;
        }
        __syncthreads();
        float sum = 0;
        for (uint32_t h = warp; h < a.n_heads; h += WARPS) {
            const float *x = q + (size_t)h * a.d, *y = k + lane * (a.d + 1);
            float dot = 0;
            for (uint32_t c = 0; c < a.d; c++) dot = __fmaf_rn(x[c], y[c], dot);
            sum = __fadd_rn(sum, a.w.p[row * a.w.stride + h] * fmaxf(dot * a.scale, 0.0f));
        }
        part[warp * KEYS + lane] = sum;
        __syncthreads();
        if (warp || p + lane >= p1) continue;
        sum = 0;
        for (uint32_t i = 0; i < WARPS; i++) sum = __fadd_rn(sum, part[i * KEYS + lane]);
        a.score[(size_t)blockIdx.x * a.score_stride + p + lane] = sum;
    }
}

/* Larger for larger scores; NaN is the smallest there is, -0 is 0. */
static __device__ uint32_t rank_of(float v)
{
    uint32_t u = __float_as_uint(v + 0.0f);
    if (v != v) return 0;
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* The k-th largest of n, a byte at a time: how many have each value of it among those that begin alike. */
static __device__ uint32_t kth_largest(const float *v, uint32_t n, uint32_t k, uint32_t *count, uint32_t *ret_ties)
{
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) count[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            uint32_t u = rank_of(v[i]);
            if (shift == 24 || u >> (shift + 8) == prefix) atomicAdd(&count[u >> shift & 255u], 1u);
        }
        __syncthreads();
        uint32_t byte = 255;
        while (byte && count[byte] < k) k -= count[byte--]; /* the same in all threads */
        prefix = prefix << 8 | byte;
    }
    *ret_ties = k; /* of those with this very score, so many are among the first */
    return prefix;
}

static __global__ void __launch_bounds__(THREADS) pick_kernel(cu_index a)
{
    __shared__ uint32_t count[256], shared[WARPS];
    uint32_t row = a.row + blockIdx.x, *sel = a.sel + row * a.sel_stride;
    cu_seq s;
    uint32_t n = keys_of_row(a, row, &s);
    if (threadIdx.x == 0) a.n_sel[row] = min(n, a.top_k);
    if (n <= a.top_k) {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) sel[i] = i;
        return;
    }
    const float *v = a.score + (size_t)blockIdx.x * a.score_stride;
    uint32_t ties, limit = kth_largest(v, n, a.top_k, count, &ties), taken = 0, tied = 0;
    for (uint32_t i0 = 0; i0 < n; i0 += THREADS) {
        uint32_t i = i0 + threadIdx.x, u = i < n ? rank_of(v[i]) : 0, before;
        bool tie = i < n && u == limit;
        uint32_t all = block_scan(tie, shared, &before);
        bool mine = i < n && (u > limit || (tie && tied + before < ties));
        tied += all;
        all = block_scan(mine, shared, &before);
        if (mine) sel[taken + before] = i;
        taken += all;
    }
}

size_t cu_index_shared_bytes(uint32_t n_heads, uint32_t d)
{
    return sizeof(float) * ((size_t)n_heads * d + KEYS * ((size_t)d + 1) + WARPS * KEYS);
}

int cu_launch_index(const cu_index *a, cu_stream s)
{
    size_t bytes = cu_index_shared_bytes(a->n_heads, a->d);
    if (!a->n_rows) return 0;
    if (a->most_keys > a->top_k) {
        if (bytes > 48 * 1024) {
            cudaError_t rc =
                cudaFuncSetAttribute(score_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
            if (rc != cudaSuccess) return (int)rc;
        }
        dim3 grid(a->n_rows, (a->most_keys + BLOCK_KEYS - 1) / BLOCK_KEYS);
        CU_LAUNCH(score_kernel, grid, THREADS, bytes, s)(*a);
    }
    CU_LAUNCH(pick_kernel, a->n_rows, THREADS, 0, s)(*a);
    return 0;
}
