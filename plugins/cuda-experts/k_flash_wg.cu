/* ATTN of prompts over BF16 and E4M3 caches by warpgroups (compute capability 9.0): the numbers of k_flash.cu, each
 * made by the same operations in the same order, from tensor cores that are fed from shared memory.
 *
 * A block has 128 or 192 queries, 64 a warpgroup, and one warpgroup more, which brings keys and values: BF16 through
 * cp.async; E4M3 through registers, where it becomes F16, once for all queries. There are STAGES places; phases say
 * when one is full and when all warps have read it.
 *
 * A warpgroup asks for the scores of its next keys and then for the products of its last weights and their values, in
 * one go; while the second is under way it makes weights of the first. Meanwhile others use the tensor cores, as they
 * come: taking turns was measured and gains nothing.
 *
 * Do a product of a warp (mma.sync) and one of a warpgroup (wgmma) have the same bits? Both add 16 products to a float,
 * and no manual says in which way. cu_flash_wg_agrees() asks the device; where they differ, this file is not used: else
 * a row would depend on how many came with it. */
#include "flash.cuh"
#include <wgmma.cuh>

/* GROUPS: warpgroups with queries. REGS of their threads and SUPPLY_REGS of the others are all that there are. */
template <uint32_t D_, bool FP8_, uint32_t GROUPS_, uint32_t STAGES_> struct wg_shape : columns_of_mma {
    static constexpr uint32_t D = D_, DK = D, DV = D, GROUPS = GROUPS_, STAGES = STAGES_;
    static constexpr bool FP8 = FP8_;
    static constexpr uint32_t WARPS = GROUPS * 4, THREADS = (GROUPS + 1) * 128; /* WARPS: that have queries */
    static constexpr uint32_t REGS = GROUPS == 3 ? 144 : 208, SUPPLY_REGS = GROUPS == 3 ? 80 : 88;
    static_assert(GROUPS * REGS + SUPPLY_REGS <= 65536 / THREADS / 8 * 8 * (GROUPS + 1),
                  "whoever asks last waits forever");
    static constexpr uint32_t MT = 1, QUERIES = GROUPS * 64, COLS = D, KEYS = FLASH_KEYS(D);
    static constexpr uint32_t PARTS = FP8 ? 1 : 2, ELEM = FP8 ? 1 : 2;
    static constexpr uint32_t Q_SIZE = QUERIES * D, TILE = KEYS * D; /* numbers */
    static constexpr uint32_t N_PHASES = 2 * STAGES;
    static constexpr size_t BYTES = 1024 + 2 * ((size_t)PARTS * Q_SIZE + (size_t)2 * STAGES * TILE) + WARPS * 32 * 32 +
                                    QUERIES * 4 + N_PHASES * 8 + (GROUPS + 1) * 8;

    static __device__ __forceinline__ uint32_t first_query(void) { return threadIdx.x / 32 * 16; }
    static __device__ __forceinline__ uint32_t first_col(void) { return 0; }
    /* A row of 128 bytes holds 64 columns; its pieces of 16 bytes lie as products find them (wgmma.cuh). */
    static __device__ __forceinline__ uint32_t in_panel(uint32_t row, uint32_t piece)
    {
        return row * 64 + (piece ^ row % 8) * 8;
    }
    static __device__ __forceinline__ uint32_t place(uint32_t q, uint32_t col)
    {
        return (q / 64 * (D / 64) + col / 64) * 4096 + in_panel(q % 64, col % 64 / 8) + col % 8;
    }
};

#if CU_WGMMA

/* The block's shared memory. */
template <class S> struct wg_shared {
    uint16_t *q, *k, *v;
    uint4 *seen;           /* (WARPS * 32) of a thread's two queries: positions, then the first that each sees */
    float4 *total;         /* (WARPS * 32) and what spans have given so far: m, then l */
    uint2 *sees;           /* (GROUPS) positions that any query of a warpgroup sees: the first, the last */
    uint2 *which;          /* (1) the tile, and its kv head */
    float *factor;         /* (QUERIES) of a score, in powers of two; E4M3 alone */
    uint64_t *full, *free; /* (STAGES), (STAGES) phases */

    __device__ __forceinline__ wg_shared(uint8_t *p)
    {
        q = (uint16_t *)p;
        k = q + S::PARTS * S::Q_SIZE;
        v = k + S::STAGES * S::TILE;
        seen = (uint4 *)(v + S::STAGES * S::TILE);
        total = (float4 *)(seen + S::WARPS * 32);
        full = (uint64_t *)(total + S::WARPS * 32);
        free = full + S::STAGES;
        sees = (uint2 *)(free + S::STAGES);
        which = sees + S::GROUPS;
        factor = (float *)(which + 1);
    }
    /* By one thread. */
    __device__ __forceinline__ void init() const
    {
        for (uint32_t i = 0; i < S::STAGES; i++) {
            phase_init(&full[i], 4);
            phase_init(&free[i], S::WARPS);
        }
    }
};

/* All lanes of a warp have done what others wait for. */
static __device__ __forceinline__ void warp_arrive(uint64_t *bar)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0) phase_arrive(bar);
}

/* ---- bringing keys and values */

/* Parcel p is block p of keys and, since they are needed together, block p - 1 of values. It goes to place p % STAGES,
 * in the phase of its round. A thread has the same columns of KEYS_EACH keys of a block; 4 threads (8 beside BF16) have
 * 64 columns, 16 bytes each. */
template <class S> struct supply {
    static constexpr uint32_t LANES = S::FP8 ? 4 : 8, KEYS_EACH = S::KEYS * LANES / 128, PANELS = S::D / 64;
    struct spot {
        uint32_t page, at; /* at: in its page */
        bool there;
    };
    const cu_attn &a;
    const uint32_t *pages;
    uint32_t page_shift;
    range r;
    const wg_shared<S> &sh;
    uint32_t key;         /* the first */
    const uint8_t *k, *v; /* this thread's columns */

    __device__ __forceinline__ void look(uint32_t j0, spot s[KEYS_EACH]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < KEYS_EACH; i++) {
            uint32_t j = j0 + key + i * (S::KEYS / KEYS_EACH);
            s[i].there = j >= r.begin && j < r.end;
            uint32_t known = s[i].there ? j : r.begin;
            uint32_t nth = page_shift < 32 ? known >> page_shift : known / a.k.page_tok;
            s[i].page = pages[nth];
            s[i].at = known - nth * a.k.page_tok;
        }
    }

    static __device__ __forceinline__ const uint8_t *row(const uint8_t *base, const cu_cache &c, const spot &s)
    {
        return base + s.page * c.page_bytes + (size_t)s.at * c.stride * S::ELEM;
    }

    static __device__ __forceinline__ void load(const uint8_t *base, const cu_cache &c, const spot s[KEYS_EACH],
                                                uint4 to[KEYS_EACH][PANELS])
    {
#pragma unroll
        for (uint32_t i = 0; i < KEYS_EACH; i++) {
            const uint8_t *from = row(base, c, s[i]);
#pragma unroll
            for (uint32_t n = 0; n < PANELS; n++) {
                to[i][n] = make_uint4(0, 0, 0, 0);
                if (s[i].there) to[i][n] = *(const uint4 *)(from + n * 64);
            }
        }
    }

    /* From E4M3. */
    __device__ __forceinline__ void put(uint16_t *tile, const uint4 x[KEYS_EACH][PANELS]) const
    {
        uint32_t piece = threadIdx.x % LANES * 2;
#pragma unroll
        for (uint32_t i = 0; i < KEYS_EACH; i++)
#pragma unroll
            for (uint32_t n = 0; n < PANELS; n++) {
                uint32_t y = key + i * (S::KEYS / KEYS_EACH);
                const uint4 &c = x[i][n];
                uint16_t *to = tile + n * S::KEYS * 64;
                uint2 c0 = e4m3x4_to_f16(c.x), c1 = e4m3x4_to_f16(c.y), c2 = e4m3x4_to_f16(c.z),
                      c3 = e4m3x4_to_f16(c.w);
                *(uint4 *)(to + S::in_panel(y, piece)) = make_uint4(c0.x, c0.y, c1.x, c1.y);
                *(uint4 *)(to + S::in_panel(y, piece + 1)) = make_uint4(c2.x, c2.y, c3.x, c3.y);
            }
    }

    __device__ __forceinline__ void send(uint16_t *tile, const uint8_t *base, const cu_cache &c,
                                         const spot s[KEYS_EACH]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < KEYS_EACH; i++) {
            const uint8_t *from = row(base, c, s[i]);
            uint32_t at = S::in_panel(key + i * (S::KEYS / KEYS_EACH), threadIdx.x % LANES);
#pragma unroll
            for (uint32_t n = 0; n < PANELS; n++)
                cp_async_16(tile + n * S::KEYS * 64 + at, from + n * 128, s[i].there ? 16 : 0);
        }
    }

    __device__ __forceinline__ void wait_free(uint32_t p) const
    {
        phase_wait(sh.free + p % S::STAGES, (p / S::STAGES + 1) % 2);
    }

    __device__ __forceinline__ void filled(uint32_t p) const
    {
        shared_fence();
        warp_arrive(sh.full + p % S::STAGES);
    }

    /* n blocks. What travels next is on its way while a tile is converted. */
    __device__ __forceinline__ void run_fp8(uint32_t j0, uint32_t n) const
    {
        spot now[KEYS_EACH], next[KEYS_EACH];
        uint4 x[KEYS_EACH][PANELS], y[KEYS_EACH][PANELS];
        look(j0, now);
        load(k, a.k, now, x);
        for (uint32_t p = 0; p <= n; p++) {
            uint32_t tile = p % S::STAGES * S::TILE;
            if (p + 1 < n) look(j0 + (p + 1) * S::KEYS, next);
            wait_free(p);
            if (p < n) put(sh.k + tile, x);
            if (p + 1 < n) load(k, a.k, next, x);
            if (p > 0) put(sh.v + tile, y);
            if (p < n) load(v, a.v, now, y);
            filled(p);
#pragma unroll
            for (uint32_t i = 0; i < KEYS_EACH; i++) now[i] = next[i];
        }
    }

    __device__ __forceinline__ void run_bf16(uint32_t j0, uint32_t n) const
    {
        constexpr uint32_t LATER = S::STAGES > 2 ? 1 : 0; /* parcels that may set out before one is full */
        spot now[KEYS_EACH], before[KEYS_EACH];
        for (uint32_t p = 0; p <= n; p++) {
            uint32_t tile = p % S::STAGES * S::TILE;
            if (p < n) look(j0 + p * S::KEYS, now);
            wait_free(p);
            if (p < n) send(sh.k + tile, k, a.k, now);
            if (p > 0) send(sh.v + tile, v, a.v, before);
            cp_async_commit();
            cp_async_wait<(int)LATER>();
            if (p + 1 > LATER) filled(p - LATER);
#pragma unroll
            for (uint32_t i = 0; i < KEYS_EACH; i++) before[i] = now[i];
        }
        cp_async_wait<0>();
        if (LATER) filled(n);
    }
};

/* ---- computing */

template <bool BF16, bool N_MAJOR, uint32_t N, typename A>
static __device__ __forceinline__ void wg_product(float (&d)[N][4], const A &x, uint64_t y, bool add)
{
    if constexpr (BF16)
        wg_mma_bf16<N_MAJOR>(d, x, y, add);
    else
        wg_mma_f16<N_MAJOR>(d, x, y, add);
}

template <class S> struct weights {
    uint32_t p[S::PARTS][S::KEYS / 16][4];

    __device__ __forceinline__ void set(const float c[S::KEYS / 8][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::KEYS / 16; i++)
#pragma unroll
            for (uint32_t r = 0; r < 4; r++) {
                const float *x = &c[2 * i + r / 2][r % 2 * 2];
                p[0][i][r] = pack<S::FP8>(x[0], x[1]);
                if (S::PARTS == 2) p[S::PARTS - 1][i][r] = pack_rest(x[0], x[1], p[0][i][r]);
            }
    }
};

template <class S>
static __device__ __forceinline__ void ask_scores(float (&c)[S::KEYS / 8][4], uint64_t queries, uint64_t keys)
{
#pragma unroll
    for (uint32_t k = 0; k < S::D / 16; k++) {
        uint64_t x = wg_further(queries, k / 4 * 8192 + k % 4 * 32),
                 y = wg_further(keys, k / 4 * S::KEYS * 128 + k % 4 * 32);
        wg_product<!S::FP8, false>(c, x, y, k != 0);
        if (S::PARTS == 2) wg_product<!S::FP8, false>(c, wg_further(x, S::Q_SIZE * 2), y, true);
    }
    wg_commit();
}

template <class S> static __device__ __forceinline__ void ask_values(state<S> &st, const weights<S> &w, uint64_t values)
{
    constexpr uint32_t N = S::D < 128 ? S::D / 8 : 16; /* tiles of 8 columns of a product */
#pragma unroll
    for (uint32_t i = 0; i < S::KEYS / 16; i++)
#pragma unroll
        for (uint32_t n = 0; n < S::D / 8 / N; n++) {
            float(&o)[N][4] = *(float(*)[N][4])st.o[0][n * N];
            uint64_t y = wg_further(values, i * 2048 + n * 2 * S::KEYS * 128);
            wg_product<!S::FP8, true>(o, w.p[0][i], y, true);
            if (S::PARTS == 2) wg_product<!S::FP8, true>(o, w.p[S::PARTS - 1][i], y, true);
        }
    wg_commit();
}

/* What a warpgroup knows of its queries. */
template <class S> struct wg_rows {
    uint32_t group;            /* which warpgroup */
    uint32_t warp_pos, all_lo; /* the first of this warp; where all of its queries see everything from */
    float mul[2];
};

template <class S> struct wg_flash {
    const cu_attn &a;
    const wg_shared<S> &sh;
    const wg_rows<S> &rows;
    uint64_t queries, keys, values; /* the first place */

    __device__ __forceinline__ void wait_full(uint32_t p) const
    {
        phase_wait(sh.full + p % S::STAGES, p / S::STAGES % 2);
    }
    __device__ __forceinline__ void give_back(uint32_t p) const { warp_arrive(sh.free + p % S::STAGES); }
    static __device__ __forceinline__ uint32_t place(uint32_t p) { return uniform(p % S::STAGES * S::TILE * 2); }

    /* The scores of block j become weights; f: for rescale(). */
    __device__ __forceinline__ void weigh(uint32_t j, float (&c)[S::KEYS / 8][4], state<S> &st, float (&f)[2]) const
    {
        float by[2], sum[2], top[2] = { -INFINITY, -INFINITY }, odd[2] = { -INFINITY, -INFINITY };
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) by[h] = cap<S>(a, c, h, rows.mul[h]);
        if (j + S::KEYS - 1 > rows.warp_pos || j < rows.all_lo) {
            uint4 s = sh.seen[threadIdx.x];
            hide<S>(c, 0, j, s.x, s.z);
            hide<S>(c, 1, j, s.y, s.w);
        }
#pragma unroll
        for (uint32_t i = 0; i < S::KEYS / 8; i++)
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                top[h] = fmaxf(top[h], c[i][2 * h]);
                odd[h] = fmaxf(odd[h], c[i][2 * h + 1]);
            }
        for (uint32_t h = 0; h < 2; h++) top[h] = fmaxf(top[h], odd[h]);
        highest_of_rows(top);
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            f[h] = raise(st.m[0][h], top[h] * by[h]);
            sum[h] = make_weights<S>(c, h, by[h], st.m[0][h]);
        }
        sums_of_rows(sum);
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) st.l[0][h] = __fadd_rn(__fmul_rn(st.l[0][h], f[h]), sum[h]);
    }

    /* Of parcels, between blocks: that of the next block is full and has not been given back. This one nobody sees. */
    __device__ __forceinline__ void pass(uint32_t t) const
    {
        give_back(t);
        wait_full(t + 1);
    }

    /* Blocks t, ... of keys, from j to `end`. */
    __device__ __forceinline__ void run(uint32_t &t, uint32_t j, uint32_t end, state<S> &st) const
    {
        float c[S::KEYS / 8][4], f[2];
        weights<S> w;
        wg_fence();
        ask_scores<S>(c, queries, wg_further(keys, place(t)));
        wg_wait<0>();
        wg_hold(c);
        weigh(j, c, st, f);
        for (uint32_t at = place(t + 1);; at = place(t + 1)) {
            /* Here, where the loop begins: the assembler would move it up, before the weights are made. */
            wg_wait<0>();
            wg_hold(st.o[0]);
            give_back(t);
            rescale<S>(st, 0, 0, f[0]);
            rescale<S>(st, 0, 1, f[1]);
            w.set(c);
            wait_full(t + 1);
            j += S::KEYS;
            if (j >= end) break;
            wg_fence();
            ask_scores<S>(c, queries, wg_further(keys, at));
            ask_values<S>(st, w, wg_further(values, at));
            wg_wait<1>();
            wg_hold(c);
            weigh(j, c, st, f);
            t++;
        }
        wg_fence();
        ask_values<S>(st, w, wg_further(values, place(t + 1)));
        wg_wait<0>();
        wg_hold(st.o[0]);
        t++;
    }
};

/* A warpgroup's queries and what they see. */
template <class S>
static __device__ __forceinline__ wg_rows<S> prepare(const cu_attn &a, const cu_tile &tile, uint32_t kvh,
                                                     uint32_t heads, uint32_t group, uint32_t pos0, range r,
                                                     const wg_shared<S> &sh)
{
    wg_rows<S> w;
    w.group = group;
    load_queries<S>(a, tile, kvh, heads, 0, sh.q, sh.factor);
    __syncwarp();
    uint32_t n_real = tile.n_rows * heads, mine = S::first_query(), lane = threadIdx.x % 32;
    w.warp_pos = uniform(pos0 + min(mine, n_real - 1) / heads);
    w.all_lo = uniform(max(first_seen(a, pos0 + (min(mine + 16, n_real) - 1) / heads), r.begin));
    uint32_t pos[2], lo[2];
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t q = mine + lane / 4 + 8 * h;
        pos[h] = pos0 + min(q, n_real - 1) / heads;
        lo[h] = w.group * 64 < n_real ? max(first_seen(a, pos[h]), r.begin) : UINT32_MAX;
        w.mul[h] = S::FP8 ? sh.factor[q] : a.scale * LOG2E;
    }
    sh.seen[threadIdx.x] = make_uint4(pos[0], pos[1], lo[0], lo[1]);
    sh.total[threadIdx.x] = make_float4(-INFINITY, -INFINITY, 0, 0);
    if (threadIdx.x % 128 == 0) sh.sees[w.group].x = lo[0];
    if (threadIdx.x % 128 == 127) sh.sees[w.group].y = pos[1];
    shared_fence();
    part_sync(1 + w.group, 128); /* products read the queries of four warps; all read what the first and the last see */
    return w;
}

#endif

template <class S> static __global__ void __launch_bounds__(S::THREADS, 1) flash_wg_kernel(cu_attn a)
{
#if CU_WGMMA
    CU_DYNAMIC_SHARED_1024(uint8_t, shared);
    uint32_t group = uniform(threadIdx.x / 128), heads = a.n_heads / a.n_kv_heads, kvh = blockIdx.x % a.n_kv_heads;
    uint32_t nth = a.n_tiles - 1 - blockIdx.x / a.n_kv_heads; /* the last of a prompt see most: first */
    cu_tile tile = a.tiles[nth];
    cu_seq s = a.seqs[tile.seq];
    uint32_t pos0 = s.pos + (tile.row - s.row);
    range r = { first_seen(a, pos0), pos0 + tile.n_rows };
    if (a.n_spans) r = { max(r.begin, blockIdx.y * SPAN), min(r.end, (blockIdx.y + 1) * SPAN) };
    r = { uniform(r.begin), uniform(r.end) };
    wg_shared<S> sh(shared);
    if (threadIdx.x == 0) {
        sh.init();
        *sh.which = make_uint2(nth, kvh);
    }
    __syncthreads();
    uint32_t j = r.begin / S::KEYS * S::KEYS;
    if (group == S::GROUPS) {
        regs_fewer<S::SUPPLY_REGS>();
        if (r.begin >= r.end) return;
        uint32_t lane = threadIdx.x % supply<S>::LANES;
        size_t col = ((size_t)kvh * S::D + lane * (16 / S::ELEM)) * S::ELEM;
        uint32_t shift = page_shift_of(a.k);
        supply<S> p = { a,           a.pages + s.page_at, shift, r, sh, threadIdx.x % 128 / supply<S>::LANES,
                        a.k.p + col, a.v.p + col };
        if constexpr (S::FP8)
            p.run_fp8(j, ceil_div(r.end - j, S::KEYS));
        else
            p.run_bf16(j, ceil_div(r.end - j, S::KEYS));
    } else {
        regs_more<S::REGS>();
        state<S> st;
        st.clear();
        if (r.begin >= r.end) {
            float m[1][2] = { { -INFINITY, -INFINITY } }, l[1][2] = { { 0, 0 } };
            flush<S>(a, tile, kvh, heads, 0, blockIdx.y, true, m, l, st);
            return;
        }
        const wg_rows<S> w = prepare<S>(a, tile, kvh, heads, group, pos0, r, sh);
        wg_flash<S> f = { a,
                          sh,
                          w,
                          wg_matrix(sh.q + w.group * 64 * S::D, 16, 1024, true),
                          wg_matrix(sh.k, 16, 1024, true),
                          wg_matrix(sh.v, S::KEYS * 128, 1024, true) };
        f.wait_full(0);
        for (uint32_t t = 0; j < r.end;) {
            uint32_t stop = min(r.end, (j / SPAN + 1) * SPAN);
            uint2 sees = sh.sees[group];
            uint32_t begin = uniform(sees.x), end = min(stop, uniform(sees.y) + 1);
            for (; j < stop && (j + S::KEYS <= begin || j >= end); j += S::KEYS) f.pass(t++);
            if (j < end) {
                uint32_t before = t;
                f.run(t, j, end, st);
                j += (t - before) * S::KEYS;
            }
            for (; j < stop; j += S::KEYS) f.pass(t++);
            float4 sum = sh.total[threadIdx.x];
            uint2 which = *sh.which; /* once more: to keep all that takes registers */
            float m[1][2] = { { sum.x, sum.y } }, l[1][2] = { { sum.z, sum.w } };
            flush<S>(a, a.tiles[which.x], which.y, a.n_heads / a.n_kv_heads, 0, (j - 1) / SPAN, j >= r.end, m, l, st);
            sh.total[threadIdx.x] = make_float4(m[0][0], m[0][1], l[0][0], l[0][1]);
            st.clear();
        }
    }
#else
    (void)a;
#endif
}

template <class S> static int launch(const cu_attn *a, cu_stream s)
{
    cudaError_t rc =
        cudaFuncSetAttribute(flash_wg_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::BYTES);
    if (rc != cudaSuccess) return (int)rc;
    dim3 grid(a->n_tiles * a->n_kv_heads, a->n_spans ? a->n_spans : 1);
    CU_LAUNCH(flash_wg_kernel<S>, grid, S::THREADS, S::BYTES, s)(*a);
    if (a->n_spans) flash_join(a, s);
    return 0;
}

static const struct wg_row {
    uint32_t type, d, queries;
    size_t bytes; /* of shared memory */
    int (*launch)(const cu_attn *a, cu_stream s);
} wg_rows_table[] = {
#define ROW(TYPE, D, ...)                                                                                             \
    {                                                                                                                 \
        TYPE, D, wg_shape<D, __VA_ARGS__>::QUERIES, wg_shape<D, __VA_ARGS__>::BYTES, launch<wg_shape<D, __VA_ARGS__>> \
    }
    ROW(KS_T_F8E4M3, 64, true, 3, 4), ROW(KS_T_F8E4M3, 128, true, 3, 4), ROW(KS_T_F8E4M3, 256, true, 2, 4),
    ROW(KS_T_BF16, 64, false, 3, 4),  ROW(KS_T_BF16, 128, false, 2, 4),  ROW(KS_T_BF16, 256, false, 2, 2),
#undef ROW
};

static const wg_row *find_row(uint32_t type, uint32_t d_k, uint32_t d_v)
{
    for (const wg_row &r : wg_rows_table)
        if (r.type == type && r.d == d_k && r.d == d_v) return &r;
    return nullptr;
}

uint32_t flash_wg_queries(uint32_t kv_type, uint32_t group, uint32_t d_k, uint32_t d_v, size_t shared_max)
{
    const wg_row *r = find_row(kv_type, d_k, d_v);
    return r && r->bytes <= shared_max && group <= 16 ? r->queries : 0;
}

int flash_wg_launch(const cu_attn *a, cu_stream s)
{
    const wg_row *r = find_row(a->k.type, a->d_k, a->d_v);
    return r ? r->launch(a, s) : (int)cudaErrorInvalidValue;
}

/* ---- do products of warps and of warpgroups have the same bits? */

#define TRIALS 128u

#if CU_WGMMA

/* Number i of a matrix in a trial, F16 or BF16: the later the trial, the further apart exponents are. In every second
 * one A has no signs, as weights have none. One in 64 is subnormal or 0. */
template <bool BF16> static __device__ uint16_t trial_number(uint32_t trial, uint32_t matrix, uint32_t i)
{
    constexpr uint32_t MANTISSA = BF16 ? 7 : 10, BIAS = BF16 ? 127 : 15, WIDEST = BF16 ? 40 : 28;
    uint32_t h = (trial * 2 + matrix) * 4096 + i;
    for (uint32_t n = 0; n < 3; n++) h = (h ^ h >> 16) * 0x7feb352du + 0x846ca68bu;
    uint32_t width = trial / 2 % WIDEST + 1, e = BIAS - width / 2 + (h >> 12) % width;
    if (h >> 26 == 0) e = 0;
    uint32_t sign = matrix == 0 && trial % 2 ? 0 : h >> 11 & 1u;
    return (uint16_t)(sign << 15 | e << MANTISSA | (h & ((1u << MANTISSA) - 1)));
}

/* Two numbers side by side in a panel. */
static __device__ __forceinline__ uint32_t two_at(const uint16_t *panel, uint32_t row, uint32_t col)
{
    return *(const uint32_t *)(panel + row * 64 + (col / 8 ^ row % 8) * 8 + col % 8);
}

static __device__ __forceinline__ uint32_t one_at(const uint16_t *panel, uint32_t row, uint32_t col)
{
    return panel[row * 64 + (col / 8 ^ row % 8) * 8 + col % 8];
}

/* 64 columns of A, as products have them in registers. */
static __device__ __forceinline__ void fragments(const uint16_t *panel, uint32_t row, uint32_t t, uint32_t x[4][4])
{
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        x[i / 4][i % 4] = two_at(panel, row + i % 2 * 8, i / 4 * 16 + t * 2 + i % 4 / 2 * 8);
}

/* Adds A B^T, or with N_MAJOR A B, to c by warps and to d by the warpgroup: as scores and outputs are made. Returns how
 * many of this thread's numbers differ. */
template <bool BF16, bool N_MAJOR>
static __device__ __forceinline__ uint32_t try_products(const uint16_t *a, const uint16_t *b, float (&c)[8][4],
                                                        float (&d)[8][4])
{
    uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = threadIdx.x / 32 * 16 + g, x[4][4], n = 0;
    fragments(a, row, t, x);
#pragma unroll
    for (uint32_t i = 0; i < 32; i++) {
        uint32_t k = i / 8, y[2];
        for (uint32_t r = 0; r < 2; r++) {
            uint32_t at = k * 16 + t * 2 + r * 8, col = i % 8 * 8 + g;
            y[r] = N_MAJOR ? one_at(b, at, col) | one_at(b, at + 1, col) << 16 : two_at(b, col, at);
        }
        if (BF16)
            mma_bf16(c[i % 8], x[k], y[0], y[1]);
        else
            mma_f16(c[i % 8], x[k], y[0], y[1]);
    }
    uint64_t ma = wg_matrix(a, 16, 1024, true), mb = wg_matrix(b, 8192, 1024, true);
    fragments(a, row, t, x);
    wg_fence();
#pragma unroll
    for (uint32_t k = 0; k < 4; k++)
        if constexpr (N_MAJOR)
            wg_product<BF16, true>(d, x[k], wg_further(mb, k * 2048), true);
        else
            wg_product<BF16, false>(d, wg_further(ma, k * 32), wg_further(mb, k * 32), k != 0);
    wg_commit();
    wg_wait<0>();
    wg_hold(d);
    for (uint32_t i = 0; i < 32; i++) n += __float_as_uint(c[i / 4][i % 4]) != __float_as_uint(d[i / 4][i % 4]);
    return n;
}

#endif

/* A block is a trial; A and B are (64, 64). */
template <bool BF16> static __global__ void __launch_bounds__(128) wg_trial_kernel(uint32_t *wrong)
{
#if CU_WGMMA
    CU_DYNAMIC_SHARED_1024(uint8_t, shared);
    uint16_t *a = (uint16_t *)shared, *b = a + 4096;
    for (uint32_t i = threadIdx.x; i < 4096; i += 128) {
        uint32_t row = i / 64, at = row * 64 + (i % 64 / 8 ^ row % 8) * 8 + i % 8;
        a[at] = trial_number<BF16>(blockIdx.x, 0, i);
        b[at] = trial_number<BF16>(blockIdx.x, 1, i);
    }
    shared_fence();
    __syncthreads();
    float c[8][4] = {}, d[8][4] = {};
    uint32_t n = try_products<BF16, false>(a, b, c, d);
    n += try_products<BF16, true>(a, b, c, d);
    if (n) atomicAdd(wrong, n);
#else
    (void)wrong;
#endif
}

int cu_flash_wg_agrees(uint32_t *ret_n, uint32_t *ret_wrong)
{
    uint32_t *wrong = nullptr, n = 0;
    if (wg_is_there()) {
        cudaError_t rc = cudaMalloc((void **)&wrong, sizeof *wrong);
        if (rc == cudaSuccess) rc = cudaMemset(wrong, 0, sizeof *wrong);
        if (rc == cudaSuccess) {
            CU_LAUNCH(wg_trial_kernel<false>, TRIALS, 128, 17 << 10, nullptr)(wrong);
            CU_LAUNCH(wg_trial_kernel<true>, TRIALS, 128, 17 << 10, nullptr)(wrong);
            rc = cudaGetLastError();
        }
        if (rc == cudaSuccess) rc = cudaMemcpy(&n, wrong, sizeof n, cudaMemcpyDeviceToHost);
        (void)cudaFree(wrong);
        if (rc != cudaSuccess) return (int)rc;
    }
    *ret_n = wrong ? TRIALS * 2 * 2 * 4096 : 0;
    *ret_wrong = n;
    return 0;
}
