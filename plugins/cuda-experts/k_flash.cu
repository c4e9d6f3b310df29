/* ATTN over BF16 and E4M3 caches on the tensor cores: prompts, and decoding through spans.
 *
 * Keys and values enter exactly: BF16 as they are, E4M3 as F16. Beside BF16, queries and weights are the sum of two
 * numbers each, which keeps 17 bits; beside E4M3, which has 4, they are rounded once to F16 (queries after a power of
 * two has brought them to 1 .. 2). Sums are float; docs/numerics.md has the
 * bound. A warp has 16 or 32 queries, (row, head) pairs of one kv head; where a block has no more than 16, its warps
 * share them: each scores keys of its own, all weigh, each sums columns of its own, and no sum has another order. Keys
 * come in blocks at absolute multiples; one that a query does not see leaves its bits alone; spans of 1024 positions
 * are reduced apart and merged in ascending order. So, as in k_attn.cu, the bits of a row depend neither on its
 * neighbours nor on whether spans have blocks of their own. What spans have given so far waits in the output itself. */
#include "flash.cuh"

/* MT: tiles of 16 queries of a warp; two read each key and value from shared memory half as often. 0: all warps share
 * one tile. ONE: values are the first columns of keys (latent attention), so one tile has both. */
template <uint32_t DK_, uint32_t DV_, bool FP8_, uint32_t MT_, bool ONE_ = false> struct shape : columns_of_mma {
    static constexpr uint32_t DK = DK_, DV = DV_, WARPS = 4, THREADS = WARPS * 32;
    static constexpr bool SHARED = MT_ == 0, FP8 = FP8_, ONE = ONE_;
    static constexpr uint32_t MT = SHARED ? 1 : MT_, QUERIES = SHARED ? 16 : WARPS * MT * 16;
    static constexpr uint32_t COLS = SHARED ? DV / WARPS : DV; /* of the output, that a warp sums */
    static constexpr uint32_t KEYS = FLASH_KEYS(DK);
    static constexpr uint32_t K_ROW = DK + 8, V_ROW = (ONE ? DK : DV) + 8; /* no two rows of an ldmatrix share a bank */
    static constexpr uint32_t X_ROW = KEYS + 8;                            /* nor two of what warps exchange */
    static constexpr uint32_t PARTS = FP8 ? 1 : 2, Q_SIZE = QUERIES * K_ROW; /* numbers that a query or weight is */
    static constexpr uint32_t ELEM = FP8 ? 1 : 2, CHUNK = 16 / ELEM;         /* elements of 16 bytes of the cache */
    static constexpr size_t OWN_V = ONE ? 0 : 1;                             /* 1: values have a tile */
    static constexpr size_t RAW = FP8 ? (size_t)KEYS * (DK + OWN_V * DV) : 0;
    static constexpr size_t BYTES = ((size_t)PARTS * Q_SIZE + (size_t)KEYS * (K_ROW + OWN_V * V_ROW)) * 2 + RAW +
                                    (FP8 ? QUERIES * 4 : 0) + (SHARED ? QUERIES * X_ROW * 4 : 0);

    /* Of this warp, in its block. */
    static __device__ __forceinline__ uint32_t first_query(void) { return SHARED ? 0 : threadIdx.x / 32 * MT * 16; }
    static __device__ __forceinline__ uint32_t first_col(void) { return SHARED ? threadIdx.x / 32 * COLS : 0; }
    /* In shared memory. */
    static __device__ __forceinline__ uint32_t place(uint32_t query, uint32_t col) { return query * K_ROW + col; }
};

template <class S> struct flash {
    const cu_attn &a;
    const uint32_t *pages;
    uint32_t kvh, page_shift; /* of a power of two, else 32 */
    range r;                  /* positions that any query of the block sees */
    uint16_t *qs, *ks, *vs;
    uint8_t *raw_k, *raw_v;
    float *factor;   /* (QUERIES) of a score, in powers of two; E4M3 alone */
    float *exchange; /* (QUERIES, X_ROW) scores; SHARED alone */

    /* Keys or values of the block at j0 set out for shared memory; each thread has chunks of its own. */
    template <uint32_t D, uint32_t ROW>
    __device__ __forceinline__ void send(const cu_cache &c, uint16_t *tile, uint8_t *raw, uint32_t j0) const
    {
        constexpr uint32_t CHUNKS = D / S::CHUNK;
#pragma unroll
        for (uint32_t i = 0; i < S::KEYS * CHUNKS / S::THREADS; i++) {
            uint32_t at = threadIdx.x + i * S::THREADS, key = at / CHUNKS, col = at % CHUNKS * S::CHUNK, j = j0 + key;
            bool there = j >= r.begin && j < r.end;
            uint32_t known = there ? j : r.begin;
            uint32_t nth = page_shift < 32 ? known >> page_shift : known / c.page_tok;
            const uint8_t *page = c.p + (size_t)pages[nth] * c.page_bytes;
            const uint8_t *from = page + ((size_t)(known - nth * c.page_tok) * c.stride + kvh * D + col) * S::ELEM;
            void *to = S::FP8 ? (void *)(raw + key * D + col) : (void *)(tile + key * ROW + col);
            cp_async_16(to, from, there ? 16 : 0);
        }
    }

    __device__ __forceinline__ void send_k(uint32_t j0) const
    {
        if (j0 < r.end) send<S::DK, S::K_ROW>(a.k, ks, raw_k, j0);
        cp_async_commit();
    }

    __device__ __forceinline__ void send_v(uint32_t j0) const
    {
        if (j0 < r.end) send<S::DV, S::V_ROW>(a.v, vs, raw_v, j0);
        cp_async_commit();
    }

    /* This thread's own chunks, from E4M3. */
    template <uint32_t D, uint32_t ROW>
    static __device__ __forceinline__ void convert(uint16_t *tile, const uint8_t *raw)
    {
#pragma unroll
        for (uint32_t i = 0; i < S::KEYS * D / 16 / S::THREADS; i++) {
            uint32_t at = threadIdx.x + i * S::THREADS, key = at / (D / 16), col = at % (D / 16) * 16;
            uint4 v = *(const uint4 *)(raw + key * D + col);
            uint4 *to = (uint4 *)(tile + key * ROW + col);
            to[0] =
                make_uint4(e4m3x2_to_f16(v.x), e4m3x2_to_f16(v.x >> 16), e4m3x2_to_f16(v.y), e4m3x2_to_f16(v.y >> 16));
            to[1] =
                make_uint4(e4m3x2_to_f16(v.z), e4m3x2_to_f16(v.z >> 16), e4m3x2_to_f16(v.w), e4m3x2_to_f16(v.w >> 16));
        }
    }

    /* Two barriers a block of keys: after the first nobody reads the values before it any more, after the second nobody
     * reads its keys. BF16 goes straight into the tile that is free then; E4M3 waits beside it and is converted. With
     * ONE there is a third barrier, before the tile is written, and BF16 cannot set out earlier. */
    __device__ __forceinline__ void first(uint32_t j0) const
    {
        if (S::FP8 || !S::ONE) send_k(j0);
        if (S::FP8 && !S::ONE) send_v(j0);
    }

    __device__ __forceinline__ void take_k(uint32_t j0) const
    {
        if (S::ONE) {
            __syncthreads();
            if (!S::FP8) send_k(j0);
            cp_async_wait<0>();
            if (S::FP8) convert<S::DK, S::K_ROW>(ks, raw_k);
            if (S::FP8) send_k(j0 + S::KEYS);
            __syncthreads();
        } else if (S::FP8) {
            cp_async_wait<1>();
            convert<S::DK, S::K_ROW>(ks, raw_k);
            send_k(j0 + S::KEYS);
            __syncthreads();
        } else {
            cp_async_wait<0>();
            __syncthreads();
            send_v(j0);
        }
    }

    __device__ __forceinline__ void take_v(uint32_t j0) const
    {
        if (S::ONE) {
            __syncthreads();
        } else if (S::FP8) {
            cp_async_wait<1>();
            convert<S::DV, S::V_ROW>(vs, raw_v);
            send_v(j0 + S::KEYS);
            __syncthreads();
        } else {
            cp_async_wait<0>();
            __syncthreads();
            send_k(j0 + S::KEYS);
        }
    }

    /* Of N * 8 keys from `key` on. */
    template <uint32_t N> __device__ __forceinline__ void scores(uint32_t key, float c[S::MT][N][4]) const
    {
        uint32_t lane = threadIdx.x % 32;
        const uint16_t *q = qs + (S::first_query() + lane % 16) * S::K_ROW + lane / 16 * 8;
        const uint16_t *y = ks + (key + lane / 16 * 8 + lane % 8) * S::K_ROW + lane / 8 % 2 * 8;
#pragma unroll
        for (uint32_t t = 0; t < S::MT; t++)
            for (uint32_t n = 0; n < N; n++)
                for (uint32_t i = 0; i < 4; i++) c[t][n][i] = 0;
#pragma unroll
        for (uint32_t k = 0; k < S::DK; k += 16) {
            uint32_t x[S::MT][4], rest[S::MT][4], b[4];
#pragma unroll
            for (uint32_t t = 0; t < S::MT; t++) {
                ldmatrix_x4(x[t], q + t * 16 * S::K_ROW + k);
                if (S::PARTS == 2) ldmatrix_x4(rest[t], q + S::Q_SIZE + t * 16 * S::K_ROW + k);
            }
#pragma unroll
            for (uint32_t n = 0; n < N / 2; n++) { /* two tiles of 8 keys each */
                ldmatrix_x4(b, y + n * 16 * S::K_ROW + k);
#pragma unroll
                for (uint32_t t = 0; t < S::MT; t++) {
                    mma<S::FP8>(c[t][2 * n], x[t], b[0], b[1]);
                    mma<S::FP8>(c[t][2 * n + 1], x[t], b[2], b[3]);
                    if (S::PARTS == 2) mma<S::FP8>(c[t][2 * n], rest[t], b[0], b[1]);
                    if (S::PARTS == 2) mma<S::FP8>(c[t][2 * n + 1], rest[t], b[2], b[3]);
                }
            }
        }
    }

    /* Warps put down what they have scored; behind a barrier, each takes all. */
    __device__ __forceinline__ void give_scores(void) const
    {
        uint32_t key = threadIdx.x / 32 * 16, g = threadIdx.x % 32 / 4;
        if (key >= S::KEYS) return;
        float mine[S::MT][2][4], *to = exchange + g * S::X_ROW + key + threadIdx.x % 4 * 2;
        scores<2>(key, mine);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            *(float2 *)(to + i % 2 * 8 * S::X_ROW + i / 2 * 8) =
                make_float2(mine[0][i / 2][i % 2 * 2], mine[0][i / 2][i % 2 * 2 + 1]);
    }

    __device__ __forceinline__ void take_scores(float c[S::MT][S::KEYS / 8][4]) const
    {
        const float *from = exchange + threadIdx.x % 32 / 4 * S::X_ROW + threadIdx.x % 4 * 2;
#pragma unroll
        for (uint32_t i = 0; i < S::KEYS / 4; i++) {
            float2 v = *(const float2 *)(from + i % 2 * 8 * S::X_ROW + i / 2 * 8);
            c[0][i / 2][i % 2 * 2] = v.x;
            c[0][i / 2][i % 2 * 2 + 1] = v.y;
        }
    }

    __device__ __forceinline__ void weigh(float c[S::MT][S::KEYS / 8][4], uint32_t j0, bool masked,
                                          const uint32_t pos[S::MT][2], const uint32_t lo[S::MT][2],
                                          const float mul[S::MT][2], state<S> &st) const
    {
#pragma unroll
        for (uint32_t t = 0; t < S::MT; t++)
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                float by = cap<S>(a, c[t], h, mul[t][h]), top[1] = { -INFINITY };
                if (masked) hide<S>(c[t], h, j0, pos[t][h], lo[t][h]);
#pragma unroll
                for (uint32_t i = 0; i < S::KEYS / 4; i++) top[0] = fmaxf(top[0], c[t][i / 2][2 * h + i % 2]);
                highest_of_rows(top);
                float f = raise(st.m[t][h], top[0] * by), sum[1] = { make_weights<S>(c[t], h, by, st.m[t][h]) };
                sums_of_rows(sum);
                st.l[t][h] = __fadd_rn(__fmul_rn(st.l[t][h], f), sum[0]);
                rescale<S>(st, t, h, f);
            }
    }

    __device__ __forceinline__ void add_values(const float c[S::MT][S::KEYS / 8][4], state<S> &st) const
    {
        uint32_t lane = threadIdx.x % 32;
        const uint16_t *v = vs + lane % 16 * S::V_ROW + lane / 16 * 8 + S::first_col();
#pragma unroll
        for (uint32_t i = 0; i < S::KEYS / 16; i++) {
            uint32_t p[S::MT][4], rest[S::MT][4];
#pragma unroll
            for (uint32_t t = 0; t < S::MT; t++) {
                const float *x = c[t][2 * i], *y = c[t][2 * i + 1];
                p[t][0] = pack<S::FP8>(x[0], x[1]);
                p[t][1] = pack<S::FP8>(x[2], x[3]);
                p[t][2] = pack<S::FP8>(y[0], y[1]);
                p[t][3] = pack<S::FP8>(y[2], y[3]);
                if (S::PARTS == 1) continue;
                rest[t][0] = pack_rest(x[0], x[1], p[t][0]);
                rest[t][1] = pack_rest(x[2], x[3], p[t][1]);
                rest[t][2] = pack_rest(y[0], y[1], p[t][2]);
                rest[t][3] = pack_rest(y[2], y[3], p[t][3]);
            }
#pragma unroll
            for (uint32_t n = 0; n < S::COLS / 8; n += 2) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, v + i * 16 * S::V_ROW + n * 8);
#pragma unroll
                for (uint32_t t = 0; t < S::MT; t++) {
                    mma<S::FP8>(st.o[t][n], p[t], b[0], b[1]);
                    mma<S::FP8>(st.o[t][n + 1], p[t], b[2], b[3]);
                    if (S::PARTS == 2) mma<S::FP8>(st.o[t][n], rest[t], b[0], b[1]);
                    if (S::PARTS == 2) mma<S::FP8>(st.o[t][n + 1], rest[t], b[2], b[3]);
                }
            }
        }
    }
};

template <class S> static __global__ void __launch_bounds__(S::THREADS, 2) flash_kernel(cu_attn a)
{
    CU_DYNAMIC_SHARED(uint8_t, shared);
    uint32_t group = a.n_heads / a.n_kv_heads, kvh = blockIdx.x % a.n_kv_heads, lane = threadIdx.x % 32;
    let_next_begin();
    wait_for_stream();
    /* Only a shared tile may have fewer queries than a row has. */
    const uint32_t chunks = S::SHARED ? ceil_div(group, S::QUERIES) : 1, at = blockIdx.x / a.n_kv_heads;
    const uint32_t base = S::SHARED ? at % chunks * S::QUERIES : 0, q0 = base + S::first_query();
    cu_tile tile = a.tiles[a.n_tiles - 1 - at / chunks]; /* the last of a prompt see most: first */
    cu_seq s = a.seqs[tile.seq];
    uint32_t n_real = tile.n_rows * group, pos0 = s.pos + (tile.row - s.row);
    range r = { first_seen(a, pos0), pos0 + tile.n_rows };
    if (a.n_spans) r = { max(r.begin, blockIdx.y * SPAN), min(r.end, (blockIdx.y + 1) * SPAN) };
    uint16_t *qs = (uint16_t *)shared, *ks = qs + S::PARTS * S::Q_SIZE, *vs = S::ONE ? ks : ks + S::KEYS * S::K_ROW;
    uint8_t *raw = (uint8_t *)(vs + S::KEYS * S::V_ROW); /* with ONE, V_ROW is K_ROW */
    uint32_t shift = page_shift_of(a.k);
    flash<S> f = { a,
                   a.pages + s.page_at,
                   kvh,
                   shift,
                   r,
                   qs,
                   ks,
                   vs,
                   raw,
                   raw + S::KEYS * S::DK,
                   (float *)(void *)(raw + S::RAW),
                   (float *)(void *)(raw + S::RAW) + (S::FP8 ? S::QUERIES : 0) };
    float m[S::MT][2], l[S::MT][2], mul[S::MT][2];
    state<S> st;
    st.clear();
    for (uint32_t t = 0; t < S::MT; t++)
        for (uint32_t h = 0; h < 2; h++) {
            m[t][h] = -INFINITY;
            l[t][h] = 0;
        }
    if (r.begin >= r.end) { /* the same for all threads */
        flush<S>(a, tile, kvh, group, base, blockIdx.y, true, m, l, st);
        return;
    }
    uint32_t j0 = r.begin / S::KEYS * S::KEYS;
    f.first(j0);
    load_queries<S>(a, tile, kvh, group, base, qs, f.factor);
    if (S::SHARED)
        __syncthreads();
    else
        __syncwarp(); /* a warp reads its own alone */
    uint32_t pos[S::MT][2], lo[S::MT][2];
    for (uint32_t t = 0; t < S::MT; t++)
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t q = q0 + t * 16 + lane / 4 + 8 * h;
            pos[t][h] = pos0 + min(q, n_real - 1) / group;
            lo[t][h] = max(first_seen(a, pos[t][h]), r.begin);
            mul[t][h] = S::FP8 ? f.factor[q - base] : a.scale * LOG2E;
        }
    bool works = q0 < n_real;
    uint32_t warp_pos = pos0 + min(q0, n_real - 1) / group,
             warp_last = pos0 + (min(q0 + S::MT * 16, n_real) - 1) / group;
    uint32_t warp_lo = first_seen(a, warp_pos), all_lo = max(first_seen(a, warp_last), r.begin);
    for (; j0 < r.end; j0 += S::KEYS) {
        bool sees = works && j0 <= warp_last && j0 + S::KEYS > warp_lo;
        float c[S::MT][S::KEYS / 8][4];
        f.take_k(j0);
        const bool masked = j0 + S::KEYS - 1 > warp_pos || j0 < all_lo;
        if constexpr (S::SHARED) {
            f.give_scores();
            f.take_v(j0);
            f.take_scores(c);
            if (sees) f.weigh(c, j0, masked, pos, lo, mul, st);
        } else {
            if (sees) {
                f.template scores<S::KEYS / 8>(0, c);
                f.weigh(c, j0, masked, pos, lo, mul, st);
            }
            f.take_v(j0);
        }
        if (sees) f.add_values(c, st);
        bool last = j0 + S::KEYS >= r.end;
        if (!last && (j0 + S::KEYS) % SPAN != 0) continue;
        flush<S>(a, tile, kvh, group, base, j0 / SPAN, last, m, l, st);
        st.clear();
    }
    cp_async_wait<0>();
}

/* A warp has a query: its parts in ascending order. */
template <uint32_t DV> static __global__ void __launch_bounds__(128) join_kernel(cu_attn a)
{
    uint32_t at = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    let_next_begin();
    wait_for_stream();
    if (at >= a.n_rows * a.n_heads) return;
    const float *part = a.part + (size_t)at * a.n_spans * (DV + 2);
    float m = -INFINITY, l = 0, o[DV / 32], scale;
    for (uint32_t i = 0; i < DV / 32; i++) o[i] = 0;
    for (uint32_t s = 0; s < a.n_spans; s++, part += DV + 2) {
        factors f = merge_max(&m, part[0]);
        l = merged(l, part[1], f);
#pragma unroll
        for (uint32_t i = 0; i < DV / 32; i++) o[i] = merged(o[i], part[2 + i * 32 + lane], f);
    }
    float sum = with_sink(a, at % a.n_heads, m, l, &scale);
    float *to = a.o.p + at / a.n_heads * a.o.stride + at % a.n_heads * a.o_head + lane;
#pragma unroll
    for (uint32_t i = 0; i < DV / 32; i++) to[i * 32] = quotient(o[i], scale, sum);
}

void flash_join(const cu_attn *a, cu_stream s)
{
    uint32_t blocks = (a->n_rows * a->n_heads + 3) / 4;
    if (a->d_v == 64)
        CU_LAUNCH_EARLY(join_kernel<64>, blocks, 128, 0, s)(*a);
    else if (a->d_v == 128)
        CU_LAUNCH_EARLY(join_kernel<128>, blocks, 128, 0, s)(*a);
    else if (a->d_v == 256)
        CU_LAUNCH_EARLY(join_kernel<256>, blocks, 128, 0, s)(*a);
    else
        CU_LAUNCH_EARLY(join_kernel<512>, blocks, 128, 0, s)(*a);
}

template <class S> static int launch(const cu_attn *a, cu_stream s)
{
    cudaError_t rc = cudaFuncSetAttribute(flash_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::BYTES);
    if (rc != cudaSuccess) return (int)rc;
    uint32_t group = a->n_heads / a->n_kv_heads, chunks = S::SHARED ? (group + S::QUERIES - 1) / S::QUERIES : 1;
    dim3 grid(a->n_tiles * a->n_kv_heads * chunks, a->n_spans ? a->n_spans : 1);
    CU_LAUNCH_EARLY(flash_kernel<S>, grid, S::THREADS, S::BYTES, s)(*a);
    if (a->n_spans) flash_join(a, s);
    return 0;
}

/* Where each block has one row, at most 16 queries, another kernel has its warps share them: the same bits. */
template <uint32_t D, bool FP8, uint32_t MT> static int launch_rows(const cu_attn *a, cu_stream s)
{
    return a->n_tiles == a->n_rows ? flash_row_launch(a, s) : launch<shape<D, D, FP8, MT>>(a, s);
}

/* The absorbed form: all heads of a row look at one latent row of 512 + 64 columns. */
template <bool FP8> static int launch_latent(const cu_attn *a, cu_stream s)
{
    if (a->n_tiles != a->n_rows || a->k.p != a->v.p) return (int)cudaErrorInvalidValue;
    return launch<shape<576, 512, FP8, 0, true>>(a, s);
}

/* What the kernel is compiled for; two tiles a warp where registers and shared memory hold them. */
static const struct flash_row {
    uint32_t type, d_k, d_v, queries; /* queries of a block; 0: one row, however many heads */
    size_t bytes;                     /* of shared memory */
    int (*launch)(const cu_attn *a, cu_stream s);
} flash_rows[] = {
#define ROW(TYPE, D, FP8, MT)                                                                           \
    {                                                                                                   \
        TYPE, D, D, shape<D, D, FP8, MT>::QUERIES, shape<D, D, FP8, MT>::BYTES, launch_rows<D, FP8, MT> \
    }
#define LATENT(TYPE, FP8)                                                           \
    {                                                                               \
        TYPE, 576, 512, 0, shape<576, 512, FP8, 0, true>::BYTES, launch_latent<FP8> \
    }
    ROW(KS_T_F8E4M3, 64, true, 2), ROW(KS_T_F8E4M3, 128, true, 2), ROW(KS_T_F8E4M3, 256, true, 1),
    ROW(KS_T_BF16, 64, false, 1),  ROW(KS_T_BF16, 128, false, 1),  ROW(KS_T_BF16, 256, false, 1),
    LATENT(KS_T_F8E4M3, true),     LATENT(KS_T_BF16, false),
#undef ROW
#undef LATENT
};

static const flash_row *find_row(uint32_t type, uint32_t d_k, uint32_t d_v)
{
    for (const flash_row &r : flash_rows)
        if (r.type == type && r.d_k == d_k && r.d_v == d_v) return &r;
    return nullptr;
}

uint32_t cu_flash_queries(uint32_t kv_type, uint32_t group, uint32_t d_k, uint32_t d_v, size_t shared_max,
                          uint32_t warpgroups)
{
    const flash_row *r = find_row(kv_type, d_k, d_v);
    uint32_t queries = warpgroups ? flash_wg_queries(kv_type, group, d_k, d_v, shared_max) : 0;
    if (queries) return queries;
    if (!r || r->bytes > shared_max) return 0;
    if (!r->queries) return group;
    return group <= 16 ? r->queries : 0;
}

int cu_launch_flash(const cu_attn *a, cu_stream s)
{
    const flash_row *r = find_row(a->k.type, a->d_k, a->d_v);
    if (!a->n_tiles) return 0;
    if (a->warpgroups && a->n_tiles != a->n_rows) return flash_wg_launch(a, s);
    return r ? r->launch(a, s) : (int)cudaErrorInvalidValue;
}
