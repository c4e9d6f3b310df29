/* ROUTE, and what EXPERTS needs around its products: sorting pairs by expert, adding up a row's experts. */
#include "offer.cuh"
#include <krasis/graph.h>

#define RUN 8u             /* pairs that a thread sorts at once */
#define SORT_THREADS 1024u /* so few blocks fill the device, and go over all pairs in few turns */
#define NOBODY INT32_MIN
static_assert(CU_CHOOSE_WARPS * 32 == CU_OFFER_THREADS, "a block offers what its warps have chosen");

typedef cu_pair pair;

/* ---- routing: one warp a row, with the scores in shared memory */

/* The best of v[0, n): ties to the lower index; the same in every lane. A NaN is never better. */
static __device__ int32_t best_of(const float *v, uint32_t n, uint32_t lane)
{
    float top = -INFINITY;
    int32_t at = INT32_MAX;
    for (uint32_t i = lane; i < n; i += 32)
        if (at == INT32_MAX ? v[i] == v[i] && v[i] > -INFINITY : v[i] > top) {
            top = v[i];
            at = (int32_t)i;
        }
    for (int o = 16; o; o >>= 1) {
        float t = __shfl_xor_sync(~0u, top, o);
        int32_t a = __shfl_xor_sync(~0u, at, o);
        if (a != INT32_MAX && (at == INT32_MAX || t > top || (t == top && a < at))) {
            top = t;
            at = a;
        }
    }
    return at;
}

/* Numbers in their order as unsigned ones; 0: what is never chosen for its value. */
static __device__ __forceinline__ uint32_t rank_of(float v)
{
    uint32_t u = __float_as_uint(v + 0.0f); /* there is one zero */
    return v > -INFINITY ? u ^ (u >> 31 ? 0xffffffffu : 0x80000000u) : 0;
}

/* The best of this lane's numbers, the first of equal ones. */
static __device__ __forceinline__ uint32_t own_best(const float *v, uint32_t n, uint32_t lane, uint32_t *ret_at)
{
    uint32_t best = 0;
    *ret_at = UINT32_MAX;
#pragma unroll 4
    for (uint32_t i = lane; i < n; i += 32) {
        uint32_t rank = rank_of(v[i]);
        if (rank <= best) continue;
        best = rank;
        *ret_at = i;
    }
    return best;
}

/* As the CPU's: the k best, best first. What is left when only NaN and -inf remain goes in index order. */
static __device__ CU_APART void top_k(float *v, uint32_t n, uint32_t k, int32_t *ids, uint32_t lane)
{
    uint32_t own, best = own_best(v, n, lane, &own);
    for (uint32_t s = 0; s < k; s++) {
        uint32_t top = __reduce_max_sync(~0u, best), at = __reduce_min_sync(~0u, top && best == top ? own : UINT32_MAX);
        if (!top) { /* rare: the first that is not taken */
            at = 0;
            for (bool again = true; again;) {
                again = false;
                for (uint32_t i = 0; i < s; i++) again = again || ids[i] == (int32_t)at;
                if (again) at++;
            }
        }
        __syncwarp();
        if (lane == at % 32) {
            ids[s] = (int32_t)at;
            v[at] = -INFINITY;
            best = own_best(v, n, lane, &own);
        }
        __syncwarp();
    }
}

static __device__ void softmax(float *v, uint32_t n, uint32_t lane)
{
    float max = -INFINITY, sum = 0;
    for (uint32_t i = lane; i < n; i += 32) max = fmaxf(max, v[i]);
    max = warp_max(max);
    for (uint32_t i = lane; i < n; i += 32) sum = __fadd_rn(sum, v[i] = expf(v[i] - max));
    sum = warp_sum(sum);
    for (uint32_t i = lane; i < n; i += 32) v[i] = __fdiv_rn(v[i], sum);
    __syncwarp();
}

static __device__ CU_APART void score(uint32_t kind, float *v, uint32_t n, uint32_t lane)
{
    if (kind == KS_SCORE_SOFTMAX) {
        softmax(v, n, lane);
        return;
    }
    for (uint32_t i = lane; i < n; i += 32)
        v[i] = kind == KS_SCORE_SIGMOID ? __fdiv_rn(1.0f, 1.0f + expf(-v[i]))
                                        : __fsqrt_rn(v[i] > 20.0f ? v[i] : log1pf(expf(v[i])));
    __syncwarp();
}

static __device__ CU_APART void limit_groups(const cu_route &a, float *choice, float *group, int32_t *best,
                                             uint32_t lane)
{
    uint32_t per = a.n_experts / a.n_group;
    for (uint32_t g = lane; g < a.n_group; g += 32) {
        float one = -INFINITY, two = -INFINITY;
        for (uint32_t i = 0; i < per; i++) {
            float v = choice[g * per + i];
            if (v > one) {
                two = one;
                one = v;
            } else if (v > two) {
                two = v;
            }
        }
        group[g] = a.flags & KS_ROUTE_GROUP_TOP2 ? one + two : one;
    }
    __syncwarp();
    top_k(group, a.n_group, a.topk_group, best, lane);
    for (uint32_t i = lane; i < a.n_experts; i += 32) {
        bool keep = false;
        for (uint32_t j = 0; j < a.topk_group; j++) keep = keep || best[j] == (int32_t)(i / per);
        if (!keep) choice[i] = -INFINITY;
    }
    __syncwarp();
}

/* phimoe: each in turn is the best of those left; its weight is a softmax over those left that are near it. */
static __device__ CU_APART void sparse_mix(const cu_route &a, const float *z, float *left, int32_t *ids, float *w,
                                           uint32_t lane)
{
    for (uint32_t s = 0; s < a.k; s++) {
        int32_t at = best_of(left, a.n_experts, lane);
        if (at == INT32_MAX) at = (int32_t)s;
        float max = left[at], sum = 0;
        for (uint32_t i = lane; i < a.n_experts; i += 32) {
            float factor = fmaxf(fabsf(z[i]), max);
            if (left[i] > -INFINITY && !(__fdiv_rn(max - z[i], factor) > 2 * a.jitter))
                sum = __fadd_rn(sum, expf(left[i] - max));
        }
        sum = warp_sum(sum);
        __syncwarp();
        if (lane == 0) {
            ids[s] = at;
            w[s] = __fdiv_rn(1.0f, sum);
            left[at] = -INFINITY;
        }
        __syncwarp();
    }
}

/* shared: n_experts scores, choices, groups or weights; ids. near: (k) what a.out gets, once more; NULL: not needed. */
static __device__ void route_row(const cu_route &a, uint32_t row, pair *near, float *shared, uint32_t lane)
{
    uint32_t n = a.n_experts, k = a.k;
    float *p = shared, *choice = p + n, *w = choice + n;
    int32_t *ids = (int32_t *)(w + n);
    for (uint32_t i = lane; i < n; i += 32) p[i] = choice[i] = a.logits.p[row * a.logits.stride + i];
    __syncwarp();
    if (a.flags & KS_ROUTE_SPARSEMIX) {
        sparse_mix(a, p, choice, ids, w, lane);
    } else {
        if (!(a.flags & KS_ROUTE_LATE)) score(a.score, p, n, lane);
        for (uint32_t i = lane; i < n; i += 32) choice[i] = a.bias ? p[i] + a.bias[i] : p[i];
        __syncwarp();
        if (a.n_group > 1) limit_groups(a, choice, w, ids, lane);
        top_k(choice, n, k, ids, lane);
        for (uint32_t i = lane; i < k; i += 32) w[i] = p[ids[i]];
        __syncwarp();
        if (a.flags & KS_ROUTE_LATE) score(a.score, w, k, lane);
    }
    float sum = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < k; i++) sum = __fadd_rn(sum, w[i]);
    float div = a.flags & KS_ROUTE_NORM_MIN ? fmaxf(sum, a.norm_eps) : sum + a.norm_eps;
    for (uint32_t i = lane; i < k; i += 32) { /* the rank of an expert is its place */
        uint32_t at = 0;
#pragma unroll 1
        for (uint32_t j = 0; j < k; j++) at += ids[j] < ids[i];
        float v = a.flags & KS_ROUTE_NORM ? __fdiv_rn(w[i], div) : w[i];
        pair p = { ids[i], v * a.scale };
        ((pair *)a.out)[row * a.out_stride + at] = p;
        if (near) near[at] = p;
    }
}

static __global__ void __launch_bounds__(32) route_kernel(cu_route a)
{
    CU_DYNAMIC_SHARED(float, shared);
    route_row(a, blockIdx.x, nullptr, shared, threadIdx.x);
}

static cudaError_t make_room(const void *kernel, size_t bytes)
{
    if (bytes <= 48 * 1024) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

int cu_launch_route(const cu_route *a, cu_stream s)
{
    size_t bytes = CU_ROUTE_BYTES(a->n_experts);
    cudaError_t rc = make_room((const void *)route_kernel, bytes);
    if (rc != cudaSuccess || !a->n_rows) return (int)rc;
    CU_LAUNCH(route_kernel, a->n_rows, 32, bytes, s)(*a);
    return 0;
}

/* ---- sorting: a block counts and places the pairs of one expert; the rows of an expert ascend */

static __device__ int32_t expert_at(const cu_sort &a, uint32_t pair_at)
{
    return ((const pair *)a.route)[pair_at / a.k * a.route_stride + pair_at % a.k].expert;
}

/* The experts of pairs i, i + 32, ... of a warp's next RUN * 32, i being this lane's first; beyond the last NOBODY. All
 * are asked for before the first is used. */
static __device__ __forceinline__ void load_run(const cu_sort &a, uint32_t i, int32_t expert[RUN])
{
    const uint32_t total = a.n_rows * a.k, rows = 32 / a.k, rest = 32 % a.k;
    uint32_t row = i / a.k, s = i % a.k;
#pragma unroll
    for (uint32_t j = 0; j < RUN; j++) {
        expert[j] = i + j * 32 < total ? ((const pair *)a.route)[row * a.route_stride + s].expert : NOBODY;
        s += rest;
        row += rows + (s >= a.k);
        s -= s >= a.k ? a.k : 0;
    }
}

/* This lane's first pair of a block's next ones. */
static __device__ __forceinline__ uint32_t run_at(uint32_t i0)
{
    return i0 + threadIdx.x / 32 * 32 * RUN + threadIdx.x % 32;
}

static __global__ void __launch_bounds__(SORT_THREADS) count_kernel(cu_sort a)
{
    __shared__ uint32_t shared[SORT_THREADS / 32];
    uint32_t n = 0, before, e = blockIdx.x;
    for (uint32_t i0 = 0; i0 < a.n_rows * a.k; i0 += blockDim.x * RUN) {
        int32_t of[RUN];
        load_run(a, run_at(i0), of);
#pragma unroll
        for (uint32_t j = 0; j < RUN; j++) {
            n += of[j] == (int32_t)e;
            if (e == 0 && of[j] < 0 && of[j] != NOBODY) a.slot_pair[run_at(i0) + j * 32] = NOWHERE;
        }
    }
    n = block_scan(n, shared, &before);
    if (threadIdx.x) return;
    a.begin[e + 1] = n;
    if (a.heat) a.heat[e] += n;
}

static __global__ void scan_kernel(cu_sort a)
{
    __shared__ uint32_t shared[8];
    uint32_t sum = 0;
    for (uint32_t e0 = 0; e0 < a.n_experts; e0 += blockDim.x) {
        uint32_t e = e0 + threadIdx.x, n = e < a.n_experts ? a.begin[e + 1] : 0, before;
        uint32_t all = block_scan(n, shared, &before);
        if (e < a.n_experts) a.begin[e + 1] = sum + before + n;
        sum += all;
    }
    if (threadIdx.x == 0) a.begin[0] = 0;
}

static __global__ void __launch_bounds__(SORT_THREADS) place_kernel(cu_sort a)
{
    __shared__ uint32_t shared[SORT_THREADS / 32];
    const uint32_t e = blockIdx.x, lane = threadIdx.x % 32;
    uint32_t to = a.begin[e];
    if (a.begin[e + 1] == to) return;
    for (uint32_t i0 = 0; i0 < a.n_rows * a.k; i0 += blockDim.x * RUN) {
        uint32_t found[RUN], n = 0, before; /* found: by the warp's lanes */
        int32_t of[RUN];
        load_run(a, run_at(i0), of);
#pragma unroll
        for (uint32_t j = 0; j < RUN; j++) n += (uint32_t)__popc(found[j] = __ballot_sync(~0u, of[j] == (int32_t)e));
        uint32_t all = block_scan(lane ? 0 : n, shared, &before), at = to + before - (lane ? n : 0);
#pragma unroll
        for (uint32_t j = 0; j < RUN; j++) {
            if (of[j] == (int32_t)e) {
                uint32_t i = run_at(i0) + j * 32, row = i / a.k,
                         p = at + (uint32_t)__popc(found[j] & ((1u << lane) - 1));
                a.pair_row[p] = row;
                a.pair_weight[p] = ((const pair *)a.route)[row * a.route_stride + i % a.k].weight;
                a.slot_pair[i] = p;
            }
            at += (uint32_t)__popc(found[j]);
        }
        to += all;
    }
}

/* All three in one block, where there are few pairs (writing an answer): a thread an expert. near: begin once more,
 * for the same block; NULL: not needed. */
static __device__ void sort_few(const cu_sort &a, uint32_t *near)
{
    __shared__ int32_t expert[CU_FEW_PAIRS];
    __shared__ uint32_t shared[8];
    uint32_t total = a.n_rows * a.k, sum = 0;
    for (uint32_t i = threadIdx.x; i < total; i += blockDim.x) {
        expert[i] = expert_at(a, i);
        if (expert[i] < 0) a.slot_pair[i] = NOWHERE;
    }
    __syncthreads();
    for (uint32_t e0 = 0; e0 < a.n_experts; e0 += blockDim.x) {
        uint32_t e = e0 + threadIdx.x, n = 0, before;
#pragma unroll 1
        for (uint32_t i = 0; i < total; i++) n += expert[i] == (int32_t)e;
        if (e >= a.n_experts) n = 0;
        uint32_t all = block_scan(n, shared, &before), to = sum + before;
        sum += all;
        if (e >= a.n_experts) continue;
        a.begin[e + 1] = to + n;
        if (near) near[e + 1] = to + n;
        if (a.heat && n) a.heat[e] += n;
#pragma unroll 1
        for (uint32_t i = 0; n && i < total; i++) {
            if (expert[i] != (int32_t)e) continue;
            a.pair_row[to] = i / a.k;
            a.pair_weight[to] = ((const pair *)a.route)[i / a.k * a.route_stride + i % a.k].weight;
            a.slot_pair[i] = to++;
        }
    }
    if (threadIdx.x) return;
    a.begin[0] = 0;
    if (near) near[0] = 0;
}

static __global__ void __launch_bounds__(256) sort_few_kernel(cu_sort a)
{
    sort_few(a, nullptr);
}

int cu_launch_sort(const cu_sort *a, cu_stream s)
{
    if (!a->n_rows) return 0;
    if ((uint64_t)a->n_rows * a->k <= CU_FEW_PAIRS) {
        CU_LAUNCH(sort_few_kernel, 1, 256, 0, s)(*a);
        return 0;
    }
    uint32_t warps = (uint32_t)(((uint64_t)a->n_rows * a->k + 32 * RUN - 1) / (32 * RUN)),
             threads = warps < SORT_THREADS / 32 ? warps * 32 : SORT_THREADS;
    CU_LAUNCH(count_kernel, a->n_experts, threads, 0, s)(*a);
    CU_LAUNCH(scan_kernel, 1, 256, 0, s)(*a);
    CU_LAUNCH(place_kernel, a->n_experts, threads, 0, s)(*a);
    return 0;
}

#define AHEAD 4u /* experts whose numbers are on their way at once */

/* A thread has four columns of a row. */
static __global__ void __launch_bounds__(256) combine_kernel(cu_combine a)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * 4, row = blockIdx.x;
    if (c >= a.n_cols) return;
    const uint32_t n = min(4u, a.n_cols - c);
    float *y = a.y.p + row * a.y.stride + c, sum[4] = {};
    if (!a.clear) load_4(sum, y, n);
    for (uint32_t s = 0; s < a.k; s += AHEAD) {
        uint32_t p[AHEAD];
        float v[AHEAD][4], w[AHEAD];
        bool here[AHEAD];
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) p[i] = s + i < a.k ? a.slot_pair[row * a.k + s + i] : NOWHERE;
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            here[i] = p[i] >= a.first && p[i] - a.first < a.n;
            w[i] = here[i] && a.pair_weight ? a.pair_weight[p[i]] : 1.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++)
            load_4(v[i], a.x + (here[i] ? (size_t)(p[i] - a.first) * a.n_cols : 0) + c, here[i] ? n : 0);
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++)
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) sum[j] = here[i] ? __fadd_rn(sum[j], __fmul_rn(w[i], v[i][j])) : sum[j];
    }
    if (n == 4 && (uintptr_t)y % 16 == 0) {
        *(float4 *)y = make_float4(sum[0], sum[1], sum[2], sum[3]);
        return;
    }
    for (uint32_t i = 0; i < n; i++) y[i] = sum[i];
}

void cu_launch_combine(const cu_combine *a, cu_stream s)
{
    if (a->n_rows && a->n_cols) CU_LAUNCH(combine_kernel, dim3(a->n_rows, (a->n_cols + 1023) / 1024), 256, 0, s)(*a);
}

static __device__ void find_refs(const uint32_t *begin, const uint8_t *const *where, uint32_t n_experts, cu_ref *refs,
                                 uint32_t *n_refs)
{
    __shared__ uint32_t shared[8];
    uint32_t sum = 0, tiles = 0;
    for (uint32_t e0 = 0; e0 < n_experts; e0 += blockDim.x) {
        uint32_t e = e0 + threadIdx.x, n = e < n_experts ? begin[e + 1] - begin[e] : 0, before, tile;
        uint32_t all = block_scan(n != 0, shared, &before),
                 all_tiles = block_scan(ceil_div(n, CU_TILE_ROWS), shared, &tile);
        if (n) refs[sum + before] = cu_ref { where[e], e, begin[e], n, tiles + tile };
        sum += all;
        tiles += all_tiles;
    }
    if (threadIdx.x == 0) *n_refs = sum;
}

static __global__ void __launch_bounds__(256)
    refs_kernel(const uint32_t *begin, const uint8_t *const *where, uint32_t n_experts, cu_ref *refs, uint32_t *n_refs)
{
    find_refs(begin, where, n_experts, refs, n_refs);
}

void cu_launch_refs(const uint32_t *begin, const uint8_t *const *where, uint32_t n_experts, cu_ref *refs,
                    uint32_t *n_refs, cu_stream s)
{
    CU_LAUNCH(refs_kernel, 1, 256, 0, s)(begin, where, n_experts, refs, n_refs);
}

/* ---- all of it, for few rows: a warp routes a row, then the block goes on. What one part hands to the next stays in
 * shared memory, beside where others look for it. */

static __global__ void __launch_bounds__(CU_OFFER_THREADS) choose_kernel(const __grid_constant__ cu_choose a)
{
    CU_DYNAMIC_SHARED(pair, chosen); /* (CU_FEW_PAIRS), then each warp's scores, then begin */
    uint32_t warp = threadIdx.x / 32, n_warps = CU_CHOOSE_WARPS, n_rows = a.route.n_rows, k = a.route.k;
    size_t per = CU_ROUTE_BYTES(a.route.n_experts) / sizeof(float);
    float *scores = (float *)(chosen + CU_FEW_PAIRS);
    uint32_t *begin = (uint32_t *)(scores + min(n_rows, n_warps) * per);
    let_next_begin();
    wait_for_stream();
    for (uint32_t row = warp; row < n_rows; row += n_warps)
        route_row(a.route, row, chosen + row * k, scores + warp * per, threadIdx.x % 32);
    __syncthreads();
    cu_sort sort = a.sort;
    sort.route = chosen;
    sort.route_stride = k;
    sort_few(sort, begin);
    __syncthreads();
    if (a.how == CU_CHOOSE_OFFER) {
        cu_offer o = a.offer;
        o.begin = begin;
        o.route = chosen;
        o.route_stride = k;
        offer(o);
    } else if (a.how == CU_CHOOSE_REFS) {
        find_refs(begin, a.offer.where, a.sort.n_experts, a.offer.refs, a.offer.n_refs);
    }
}

int cu_launch_choose(const cu_choose *a, cu_stream s)
{
    const cu_offer *o = &a->offer;
    if (a->route.n_rows) {
        size_t bytes = cu_choose_bytes(a->route.n_rows, a->route.n_experts);
        cudaError_t rc = make_room((const void *)choose_kernel, bytes);
        if (rc == cudaSuccess && a->how == CU_CHOOSE_OFFER) cu_launch_rows_out(o, s);
        if (rc == cudaSuccess) CU_LAUNCH_EARLY(choose_kernel, 1, CU_OFFER_THREADS, bytes, s)(*a);
        return (int)rc;
    }
    int rc = cu_launch_sort(&a->sort, s);
    if (rc || a->how == CU_CHOOSE_NONE) return rc;
    if (a->how == CU_CHOOSE_OFFER)
        cu_launch_offer(o, s);
    else
        cu_launch_refs(a->sort.begin, o->where, a->sort.n_experts, o->refs, o->n_refs, s);
    return 0;
}
