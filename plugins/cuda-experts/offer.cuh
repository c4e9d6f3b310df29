/* What a layer's experts are to whom: see cu_offer. For kernels of one block of CU_OFFER_THREADS. */
#ifndef CU_OFFER_CUH
#define CU_OFFER_CUH

#include "common.cuh"

#define CU_OFFER_THREADS 256u
#define NOWHERE UINT32_MAX /* of a pair that another device has */
#define FEW_ROWS 4u        /* more are copied by blocks of their own */

extern "C" void cu_launch_rows_out(const cu_offer *a, cu_stream s);

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

/* One block. The cold experts below `first_left` are read where they lie; the others are the host's. */
static __device__ void offer(const cu_offer &a)
{
    __shared__ uint32_t shared[CU_OFFER_THREADS / 32], first_left;
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

#endif
