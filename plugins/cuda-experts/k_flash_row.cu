/* ATTN of answers over BF16 and E4M3 caches: the numbers of k_flash.cu, each made by the same operations in the same
 * order, for tiles of one row, whose up to 16 queries are too few to keep anything busy. What counts is how seldom a
 * chain of blocks of keys waits.
 *
 * A block of threads takes as many blocks of keys at once as it has warps. Each warp scores keys of its own, straight
 * from the bytes of the cache, and says which score is the highest; behind a barrier all know the highest so far of
 * every block, which is all that a block's weights need of those before it. Then each warp sums columns of its own over
 * all of them, in ascending order: only this chain of products is as long as it was. */
#include "flash.cuh"

/* Four warps do on every GPU, eight where there is shared memory for their keys. */
template <uint32_t D_, bool FP8_, uint32_t WARPS_> struct row_shape {
    static constexpr uint32_t D = D_, DK = D, DV = D, WARPS = WARPS_, THREADS = WARPS * 32, MT = 1, QUERIES = 16;
    static constexpr bool FP8 = FP8_;
    static constexpr uint32_t KEYS = FLASH_KEYS(D), ROUND = KEYS * WARPS, STEPS = KEYS / 16; /* of products */
    static constexpr uint32_t COLS = D / WARPS, PARTS = FP8 ? 1 : 2, ELEM = FP8 ? 1 : 2;
    static constexpr uint32_t ROW = D * ELEM + 16, Q_ROW = D + 8; /* bytes, numbers: neighbours in other banks */
    static constexpr uint32_t Q_SIZE = QUERIES * Q_ROW, TILE = ROUND * ROW;
    static constexpr size_t REST = PARTS * (Q_SIZE * 2 + WARPS * STEPS * 512) + QUERIES * 4 + 2 * WARPS * QUERIES * 4;
    static constexpr size_t MOST = (WARPS > 4 ? 227 : 99) * 1024; /* of 9.0 and 10.0; every GPU from 8.0 on has 99 */
    static constexpr bool APART = REST + 2 * TILE <= MOST;        /* values have a place of their own */
    static constexpr size_t BYTES = REST + (APART ? 2 : 1) * TILE;
    static_assert(BYTES <= MOST && COLS % 16 == 0, "too many warps");

    static __device__ __forceinline__ uint32_t first_query(void) { return 0; }
    static __device__ __forceinline__ uint32_t first_col(void) { return threadIdx.x / 32 * COLS; }
    static __device__ __forceinline__ uint32_t place(uint32_t query, uint32_t col) { return query * Q_ROW + col; }
    /* A thread's columns of two tiles of eight: with E4M3 one has the even ones, the other the odd ones. */
    static constexpr uint32_t COL_STEP = FP8 ? 4 : 2;
    static __device__ __forceinline__ uint32_t col(uint32_t n, uint32_t i)
    {
        return FP8 ? n / 2 * 16 + n % 2 + 2 * i : n * 8 + i;
    }
};

template <class S> struct row_shared {
    uint8_t *k, *v;
    uint4 *weights; /* (PARTS, WARPS, STEPS, 32) of a round, as operands */
    uint16_t *q;
    float *factor, *top, *sum; /* (QUERIES); (WARPS, QUERIES) of a block of keys */

    __device__ __forceinline__ row_shared(uint8_t *p)
    {
        k = p;
        v = S::APART ? k + S::TILE : k;
        weights = (uint4 *)(v + S::TILE);
        q = (uint16_t *)(weights + S::PARTS * S::WARPS * S::STEPS * 32);
        top = (float *)(q + S::PARTS * S::Q_SIZE);
        sum = top + S::WARPS * S::QUERIES;
        factor = sum + S::WARPS * S::QUERIES;
    }
};

static __device__ CU_APART uint32_t quotient_of(uint32_t a, uint32_t b)
{
    return a / b;
}

template <class S> struct row_walk {
    const cu_attn &a;
    const row_shared<S> &sh;
    const uint32_t *pages;
    uint32_t kvh, page_shift; /* of a power of two, else 32 */
    range r;

    /* The keys or values of a round set out; what nobody sees is 0. */
    __device__ __forceinline__ void send(const cu_cache &c, uint8_t *to, uint32_t j0) const
    {
        constexpr uint32_t PIECES = S::D * S::ELEM / 16;
        const uint32_t n_keys = min(S::ROUND, ceil_div(r.end - j0, S::KEYS) * S::KEYS); /* of blocks that are seen */
#pragma unroll 8
        for (uint32_t at = threadIdx.x; at < n_keys * PIECES; at += S::THREADS) {
            uint32_t key = at / PIECES, piece = at % PIECES, j = j0 + key;
            bool there = j >= r.begin && j < r.end;
            uint32_t known = there ? j : r.begin;
            uint32_t nth = page_shift < 32 ? known >> page_shift : quotient_of(known, c.page_tok);
            const uint8_t *page = c.p + (size_t)pages[nth] * c.page_bytes;
            const uint8_t *from = page + ((size_t)(known - nth * c.page_tok) * c.stride + kvh * S::D) * S::ELEM;
            cp_async_16(to + key * S::ROW + piece * 16, from + piece * 16, there ? 16 : 0);
        }
    }
    __device__ __forceinline__ void send_k(uint32_t j0) const
    {
        if (j0 < r.end) send(a.k, sh.k, j0);
        cp_async_commit();
    }
    __device__ __forceinline__ void send_v(uint32_t j0) const
    {
        if (j0 < r.end) send(a.v, sh.v, j0);
        cp_async_commit();
    }

    /* Keys 8n + g of this warp's, columns k + 2t, 2t + 1, as an operand. */
    static __device__ __forceinline__ uint32_t two_of(const uint8_t *row, uint32_t col)
    {
        if (S::FP8) return e4m3x2_to_f16(*(const uint16_t *)(row + col));
        return *(const uint32_t *)(row + col * 2);
    }

    __device__ __forceinline__ void scores(float c[S::KEYS / 8][4]) const
    {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const uint16_t *q = sh.q + lane % 16 * S::Q_ROW + lane / 16 * 8;
        const uint8_t *rows = sh.k + (threadIdx.x / 32 * S::KEYS + g) * S::ROW;
#pragma unroll
        for (uint32_t n = 0; n < S::KEYS / 8; n++)
            for (uint32_t i = 0; i < 4; i++) c[n][i] = 0;
#pragma unroll 2
        for (uint32_t k = 0; k < S::D; k += 16) {
            uint32_t x[4], rest[4];
            ldmatrix_x4(x, q + k);
            if (S::PARTS == 2) ldmatrix_x4(rest, q + S::Q_SIZE + k);
#pragma unroll
            for (uint32_t n = 0; n < S::KEYS / 8; n++) {
                const uint8_t *row = rows + n * 8 * S::ROW;
                uint32_t b0 = two_of(row, k + 2 * t), b1 = two_of(row, k + 8 + 2 * t);
                mma<S::FP8>(c[n], x, b0, b1);
                if (S::PARTS == 2) mma<S::FP8>(c[n], rest, b0, b1);
            }
        }
    }

    /* Scores of the block at j become weights, given all that is before it, and lie where all find them. */
    __device__ __forceinline__ void weigh(float c[S::KEYS / 8][4], const float by[2], const float m[2]) const
    {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        float sum[2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            float top = m[h];
#pragma unroll
            for (uint32_t i = 0; i < S::WARPS; i++)
                if (i <= warp) top = fmaxf(sh.top[i * S::QUERIES + lane / 4 + 8 * h], top);
            sum[h] = make_weights<S>(c, h, by[h], top);
        }
        sums_of_rows(sum);
        for (uint32_t h = 0; h < 2; h++)
            if (lane % 4 == 0) sh.sum[warp * S::QUERIES + lane / 4 + 8 * h] = sum[h];
#pragma unroll
        for (uint32_t i = 0; i < S::STEPS; i++) {
            const float *x = c[2 * i], *y = c[2 * i + 1];
            uint4 p = make_uint4(pack<S::FP8>(x[0], x[1]), pack<S::FP8>(x[2], x[3]), pack<S::FP8>(y[0], y[1]),
                                 pack<S::FP8>(y[2], y[3]));
            uint4 *to = sh.weights + (warp * S::STEPS + i) * 32 + lane;
            *to = p;
            if (S::PARTS == 2)
                to[S::WARPS * S::STEPS * 32] = make_uint4(pack_rest(x[0], x[1], p.x), pack_rest(x[2], x[3], p.y),
                                                          pack_rest(y[0], y[1], p.z), pack_rest(y[2], y[3], p.w));
        }
    }

    /* Values of keys key .. key + 31, columns 16c .. 16c + 15 of this warp's, as operands of two steps and two tiles.
     */
    __device__ __forceinline__ void values(uint32_t key, uint32_t c, uint32_t b[2][2][2]) const
    {
        const uint32_t lane = threadIdx.x % 32, col = S::first_col() + c * 16;
        uint32_t x[4];
        if constexpr (S::FP8) { /* each number there has two columns */
            ldmatrix_x4_trans(x, sh.v + (key + lane) * S::ROW + col);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                for (uint32_t n = 0; n < 2; n++)
                    b[i / 2][n][i % 2] = e4m3x2_to_f16(__byte_perm(x[i], 0, n ? 0x4431 : 0x4420));
        } else {
#pragma unroll
            for (uint32_t s = 0; s < 2; s++) {
                ldmatrix_x4_trans(x, sh.v + (key + s * 16 + lane % 16) * S::ROW + (col + lane / 16 * 8) * 2);
                b[s][0][0] = x[0];
                b[s][0][1] = x[1];
                b[s][1][0] = x[2];
                b[s][1][1] = x[3];
            }
        }
    }

    /* The blocks of a round, one after the other, enter the sums. */
    __device__ __forceinline__ void add(uint32_t n_blocks, state<S> &st) const
    {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
        for (uint32_t b = 0; b < n_blocks; b++) {
            for (uint32_t h = 0; h < 2; h++) {
                uint32_t at = b * S::QUERIES + lane / 4 + 8 * h;
                float f = raise(st.m[0][h], sh.top[at]);
                st.l[0][h] = __fadd_rn(__fmul_rn(st.l[0][h], f), sh.sum[at]);
                rescale<S>(st, 0, h, f);
            }
#pragma unroll
            for (uint32_t i = 0; i < S::STEPS; i += 2) {
                uint32_t w[S::PARTS][2][4];
#pragma unroll
                for (uint32_t s = 0; s < 2; s++)
                    for (uint32_t p = 0; p < S::PARTS; p++) {
                        uint4 x = sh.weights[((p * S::WARPS + b) * S::STEPS + i + s) * 32 + lane];
                        w[p][s][0] = x.x, w[p][s][1] = x.y, w[p][s][2] = x.z, w[p][s][3] = x.w;
                    }
#pragma unroll
                for (uint32_t c = 0; c < S::COLS / 16; c++) {
                    uint32_t v[2][2][2];
                    values(b * S::KEYS + i * 16, c, v);
#pragma unroll
                    for (uint32_t s = 0; s < 2; s++)
                        for (uint32_t p = 0; p < S::PARTS; p++)
                            for (uint32_t n = 0; n < 2; n++)
                                mma<S::FP8>(st.o[0][2 * c + n], w[p][s], v[s][n][0], v[s][n][1]);
                }
            }
        }
    }
};

template <class S> static __global__ void __launch_bounds__(S::THREADS) row_kernel(cu_attn a)
{
    CU_DYNAMIC_SHARED(uint8_t, shared);
    const row_shared<S> sh(shared);
    const uint32_t group = a.n_heads / a.n_kv_heads, kvh = blockIdx.x % a.n_kv_heads, lane = threadIdx.x % 32;
    const uint32_t chunks = ceil_div(group, S::QUERIES), at = blockIdx.x / a.n_kv_heads;
    const uint32_t base = at % chunks * S::QUERIES;
    let_next_begin();
    wait_for_stream();
    const cu_tile tile = a.tiles[at / chunks];
    const cu_seq s = a.seqs[tile.seq];
    const uint32_t pos = s.pos + (tile.row - s.row);
    range r = { first_seen(a, pos), pos + 1 };
    if (a.n_spans) r = { max(r.begin, blockIdx.y * SPAN), min(r.end, (blockIdx.y + 1) * SPAN) };
    float m[1][2] = { { -INFINITY, -INFINITY } }, l[1][2] = {};
    state<S> st;
    st.clear();
    const uint32_t shift = page_shift_of(a.k);
    const row_walk<S> walk = { a, sh, a.pages + s.page_at, kvh, shift, r };
    /* A span of which nobody sees a key is a round with nothing in it. */
    uint32_t j0 = (r.begin < r.end ? r.begin : blockIdx.y * SPAN) / S::ROUND * S::ROUND;
    walk.send_k(j0);
    if (S::APART) walk.send_v(j0);
    load_queries<S>(a, tile, kvh, group, base, sh.q, sh.factor);
#pragma unroll 1
    for (bool last = false; !last; j0 += S::ROUND) {
        const uint32_t j = j0 + threadIdx.x / 32 * S::KEYS;
        const bool sees = j < r.end; /* else this warp's block is beyond all that anybody looks at */
        float c[S::KEYS / 8][4], by[2];
        last = j0 + S::ROUND >= r.end;
        cp_async_wait<S::APART ? 1 : 0>();
        __syncthreads(); /* keys and queries are there; nobody reads what the round before has left */
        if (sees) walk.scores(c);
#pragma unroll
        for (uint32_t h = 0; sees && h < 2; h++) {
            float top[1] = { -INFINITY };
            by[h] = cap<S>(a, c, h, S::FP8 ? sh.factor[lane / 4 + 8 * h] : a.scale * LOG2E);
            if (j + S::KEYS > r.end || j < r.begin) hide<S>(c, h, j, r.end - 1, r.begin);
#pragma unroll
            for (uint32_t i = 0; i < S::KEYS / 4; i++) top[0] = fmaxf(top[0], c[i / 2][2 * h + i % 2]);
            highest_of_rows(top);
            if (lane % 4 == 0) sh.top[threadIdx.x / 32 * S::QUERIES + lane / 4 + 8 * h] = top[0] * by[h];
        }
        __syncthreads(); /* the highest of all blocks are known, the keys' place is free */
        if (S::APART)
            walk.send_k(j0 + S::ROUND);
        else
            walk.send_v(j0);
        if (sees) walk.weigh(c, by, st.m[0]);
        cp_async_wait<S::APART ? 1 : 0>();
        __syncthreads(); /* weights and values are there */
        walk.add(r.begin < r.end ? min(S::WARPS, ceil_div(r.end - j0, S::KEYS)) : 0, st);
        __syncthreads(); /* the values' place is free */
        if (S::APART)
            walk.send_v(j0 + S::ROUND);
        else
            walk.send_k(j0 + S::ROUND);
        if (!last && (j0 + S::ROUND) % SPAN != 0) continue;
        flush<S>(a, tile, kvh, group, base, j0 / SPAN, last, m, l, st);
        st.clear();
    }
    cp_async_wait<0>();
}

template <class S> static dim3 blocks_of(const cu_attn *a)
{
    uint32_t group = a->n_heads / a->n_kv_heads, chunks = (group + S::QUERIES - 1) / S::QUERIES;
    return dim3(a->n_tiles * a->n_kv_heads * chunks, a->n_spans ? a->n_spans : 1);
}

template <class S> static int launch(const cu_attn *a, cu_stream s)
{
    static_assert(SPAN % S::ROUND == 0, "a round has keys of one span");
    cudaError_t rc = cudaFuncSetAttribute(row_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::BYTES);
    if (rc != cudaSuccess) return (int)rc;
    CU_LAUNCH_EARLY(row_kernel<S>, blocks_of<S>(a), S::THREADS, S::BYTES, s)(*a);
    if (a->n_spans) flash_join(a, s);
    return 0;
}

/* Eight warps take a round in less time, four leave room for another block. */
template <uint32_t D, bool FP8> static int launch_as(const cu_attn *a, cu_stream s)
{
    typedef row_shape<D, FP8, 8> wide;
    uint32_t blocks = blocks_of<wide>(a).x * blocks_of<wide>(a).y;
    if (a->shared_max >= wide::BYTES && blocks <= a->n_sms) return launch<wide>(a, s);
    return launch<row_shape<D, FP8, 4>>(a, s);
}

int flash_row_launch(const cu_attn *a, cu_stream s)
{
    const bool fp8 = a->k.type == KS_T_F8E4M3;
    if (a->d_k == 64) return fp8 ? launch<row_shape<64, true, 4>>(a, s) : launch<row_shape<64, false, 4>>(a, s);
    if (a->d_k == 128) return fp8 ? launch_as<128, true>(a, s) : launch_as<128, false>(a, s);
    return fp8 ? launch_as<256, true>(a, s) : launch_as<256, false>(a, s);
}
