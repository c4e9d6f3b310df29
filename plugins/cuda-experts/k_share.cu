/* EXPERTS of few rows, seen from the device: which experts it computes with, what it hands to the host, and the sum
 * with what the host gives back. */
#include "common.cuh"

#define NOWHERE UINT32_MAX /* of a pair that another device has */
#define THREADS 256u
#define FEW_ROWS 4u /* more are copied by blocks of their own */

static __device__ __forceinline__ uint32_t linked_of(const cu_offer &a, uint32_t n_cold)
{
    if (!a.in_place) return 0;
    if (!a.split) return n_cold;
    uint32_t i = n_cold < CU_SPLIT ? n_cold : CU_SPLIT - 1;
    return n_cold < CU_SPLIT ? a.split[i] : (uint32_t)((uint64_t)n_cold * a.split[i] / i);
}

static __device__ void copy_row(const float *x, float *y, uint32_t n)
{
    if (n % 4 == 0 && ((uintptr_t)x & 15u) == 0 && ((uintptr_t)y & 15u) == 0)
        for (uint32_t i = threadIdx.x; i < n / 4; i += blockDim.x) ((float4 *)y)[i] = ((const float4 *)x)[i];
    else
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i];
}

static __global__ void __launch_bounds__(THREADS) rows_out_kernel(cu_offer a)
{
    copy_row(a.x.p + blockIdx.x * a.x.stride, a.mail_x + (size_t)blockIdx.x * a.n_cols, a.n_cols);
}

/* One block. The cold experts below `first_left` are read where they lie; the others are the host's. */
static __global__ void __launch_bounds__(THREADS) offer_kernel(cu_offer a)
{
    __shared__ uint32_t shared[THREADS / 32], first_left;
    uint32_t n_cold = 0, before;
    if (threadIdx.x == 0) first_left = 0;
    for (uint32_t e0 = 0; e0 < a.n_experts; e0 += blockDim.x) {
        uint32_t e = e0 + threadIdx.x;
        bool cold = e < a.n_experts && a.begin[e + 1] > a.begin[e] && !a.where[e];
        n_cold += block_scan(cold, shared, &before);
    }
    uint32_t n_linked = linked_of(a, n_cold), rank = 0, refs = 0, tiles = 0, hot = 0;
    for (uint32_t e0 = 0; e0 < a.n_experts; e0 += blockDim.x) {
        uint32_t e = e0 + threadIdx.x, n = e < a.n_experts ? a.begin[e + 1] - a.begin[e] : 0;
        const uint8_t *w = n ? a.where[e] : nullptr;
        hot += block_scan(w ? n : 0, shared, &before);
        uint32_t all = block_scan(n && !w, shared, &before);
        if (n && !w) {
            if (rank + before < n_linked) w = a.in_place + e * a.in_place_stride;
            if (rank + before == n_linked) first_left = e;
        }
        rank += all;
        all = block_scan(w != nullptr, shared, &before);
        uint32_t tile, all_tiles = block_scan(w ? ceil_div(n, CU_TILE_ROWS) : 0, shared, &tile);
        if (w) a.refs[refs + before] = cu_ref { w, e, a.begin[e], n, tiles + tile };
        refs += all;
        tiles += all_tiles;
    }
    __syncthreads();
    uint32_t left = 0, n_pairs = a.mail_x ? a.n_rows * a.k : 0;
    for (uint32_t i0 = 0; i0 < n_pairs; i0 += blockDim.x) {
        uint32_t i = i0 + threadIdx.x;
        bool mine = false;
        if (i < n_pairs) {
            cu_pair p = a.route[i / a.k * a.route_stride + i % a.k];
            mine = p.expert >= 0 && n_cold > n_linked && (uint32_t)p.expert >= first_left && !a.where[p.expert];
            if (mine) a.slot_pair[i] = NOWHERE;
            a.mail_pairs[i] = cu_pair { mine ? p.expert : -1, p.weight };
        }
        left += block_scan(mine, shared, &before);
    }
    if (left && a.n_rows <= FEW_ROWS)
        for (uint32_t r = 0; r < a.n_rows; r++)
            copy_row(a.x.p + r * a.x.stride, a.mail_x + (size_t)r * a.n_cols, a.n_cols);
    __syncthreads();
    if (threadIdx.x) return;
    *a.n_refs = refs;
    *a.n_left = left;
    a.tally->hot += hot;
    a.tally->cold += a.begin[a.n_experts] - hot;
    a.tally->linked_bytes += n_linked * a.expert_bytes;
    a.mail->tally = *a.tally;
    a.mail->n_experts = n_cold - n_linked;
    if (!a.mail_x) return;
    uint32_t ticket = *a.ticket + 1;
    *a.ticket = ticket;
    raise_flag(&a.mail->up, (uint64_t)ticket << 32 | left);
}

void cu_launch_offer(const cu_offer *a, cu_stream s)
{
    if (a->mail_x && a->n_rows > FEW_ROWS) CU_LAUNCH(rows_out_kernel, a->n_rows, THREADS, 0, s)(*a);
    CU_LAUNCH(offer_kernel, 1, THREADS, 0, s)(*a);
}

/* ---- the sum */

static __device__ bool host_has_come(const cu_sum &a)
{
    uint64_t down = *a.n_left ? load_flag(&a.mail->down) : CU_OVER;
    return down & CU_OVER || (uint32_t)down == *a.ticket;
}

/* The pairs of the device in ascending order, then what the host has. Each block waits by itself: while it does, its
 * part of the device's own sum is done already. */
static __global__ void __launch_bounds__(THREADS) sum_kernel(cu_sum a)
{
    __shared__ bool come;
    uint32_t c = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    float sum = 0;
    for (uint32_t s = 0; c < a.n_cols && s < a.k; s++) {
        uint32_t p = a.slot_pair[row * a.k + s];
        if (p == NOWHERE) continue;
        float v = a.x[(size_t)p * a.n_cols + c];
        sum = __fadd_rn(sum, a.pair_weight ? __fmul_rn(a.pair_weight[p], v) : v);
    }
    if (*a.n_left) {
        if (threadIdx.x == 0) {
            uint64_t t0 = clock_ns();
            while (!(come = host_has_come(a)) && clock_ns() - t0 < a.patience_ns) {
            }
            if (!come) raise_flag(&a.mail->late, 1u);
        }
        __syncthreads();
        if (come && c < a.n_cols) sum = __fadd_rn(sum, load_fresh(a.mail_y + (size_t)row * a.n_cols + c));
    }
    if (c < a.n_cols) a.y.p[row * a.y.stride + c] = sum;
}

void cu_launch_sum(const cu_sum *a, cu_stream s)
{
    dim3 grid(a->n_rows, (a->n_cols + THREADS - 1) / THREADS);
    CU_LAUNCH_WHEN(host_has_come, sum_kernel, grid, THREADS, 0, s)(*a);
}

/* ---- the link's rate */

/* Reads n pieces of 16 bytes where they lie. */
static __global__ void __launch_bounds__(THREADS) read_kernel(const uint4 *p, size_t n, uint32_t *ret)
{
    uint32_t sum = 0;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint4 v = p[i];
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 1) *ret = sum; /* seldom: so that it is not left out */
}

void cu_launch_read(const uint8_t *p, size_t bytes, uint32_t *ret, cu_stream s)
{
    CU_LAUNCH(read_kernel, 128, THREADS, 0, s)((const uint4 *)p, bytes / 16, ret);
}
