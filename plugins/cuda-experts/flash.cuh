/* What k_flash.cu, k_flash_row.cu and k_flash_wg.cu share: all of attention on the tensor cores but how factors reach
 * them. S is the shape of a kernel: tiles of queries, blocks of keys. All give a row the same bits, since each number
 * is made here. */
#ifndef CU_FLASH_CUH
#define CU_FLASH_CUH

#include "common.cuh"

#define SPAN 1024u
#define LOG2E 1.44269504088896341f
#define FLASH_KEYS(d) ((d) > 128 ? 32u : 64u) /* of a block, by the columns of a key */

/* What a thread holds of its warp's queries: rows g and g + 8 of each tile. m counts in powers of two. */
template <class S> struct state {
    float m[S::MT][2], l[S::MT][2], o[S::MT][S::COLS / 8][4];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (uint32_t t = 0; t < S::MT; t++) {
            m[t][0] = m[t][1] = -INFINITY;
            l[t][0] = l[t][1] = 0;
#pragma unroll
            for (uint32_t n = 0; n < S::COLS / 8; n++)
                for (uint32_t i = 0; i < 4; i++) o[t][n][i] = 0;
        }
    }
};

/* The factors by which a total and a span that comes after it enter their sum; *m becomes the sum's. A side without a
 * key has -INFINITY. */
struct factors {
    float a, b;
};

static __device__ __forceinline__ factors merge_max(float *m, float later)
{
    float top = fmaxf(*m, later);
    factors f = { *m == -INFINITY ? 0.0f : ex2(*m - top), later == -INFINITY ? 0.0f : ex2(later - top) };
    *m = top;
    return f;
}

static __device__ __forceinline__ float merged(float a, float b, factors f)
{
    return __fadd_rn(__fmul_rn(a, f.a), __fmul_rn(b, f.b));
}

/* What the sum of weights is divided by, with the sink; *ret_scale: what the output is multiplied by before. */
static __device__ __forceinline__ float with_sink(const cu_attn &a, uint32_t head, float m, float l, float *ret_scale)
{
    *ret_scale = 1;
    if (!a.sinks) return l;
    float sink = a.sinks[head] * LOG2E, top = fmaxf(m, sink);
    *ret_scale = ex2(m - top);
    return l * *ret_scale + ex2(sink - top);
}

static __device__ __forceinline__ float quotient(float v, float scale, float sum)
{
    return sum > 0 || sum != sum ? __fdiv_rn(v * scale, sum) : 0.0f; /* 0: a row that sees no key */
}

template <bool FP8> static __device__ __forceinline__ uint32_t pack(float lo, float hi)
{
    return FP8 ? pack_f16(lo, hi) : pack_bf16(lo, hi);
}

/* What BF16 has left of two numbers. */
static __device__ __forceinline__ uint32_t pack_rest(float lo, float hi, uint32_t packed)
{
    return pack_bf16(lo - bf16_to_f32(packed & 0xffffu), hi - bf16_to_f32(packed >> 16));
}

template <bool FP8>
static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    if (FP8)
        mma_f16(c, a, b0, b1);
    else
        mma_bf16(c, a, b0, b1);
}

/* A thread's columns of tile n of eight, as products of warps and of warpgroups lay them out. */
struct columns_of_mma {
    static constexpr uint32_t COL_STEP = 2;
    static __device__ __forceinline__ uint32_t col(uint32_t n, uint32_t i) { return n * 8 + i; }
};

/* Of a page's positions, where they are a power of two; else 32. */
static __device__ __forceinline__ uint32_t page_shift_of(const cu_cache &c)
{
    return c.page_tok & (c.page_tok - 1) ? 32 : (uint32_t)__ffs((int)c.page_tok) - 1;
}

struct range {
    uint32_t begin, end;
};

/* ---- scores of a block of keys become weights: for query (t, h) of the thread in this order */

static __device__ CU_APART float tanh_of(float v)
{
    return tanhf(v);
}

/* softcap; returns what a score is multiplied by from now on. */
template <class S>
static __device__ __forceinline__ float cap(const cu_attn &a, float c[S::KEYS / 8][4], uint32_t h, float by)
{
    if (a.softcap == 0) return by;
    float in = __fdiv_rn(by, a.softcap * LOG2E);
#pragma unroll
    for (uint32_t i = 0; i < S::KEYS / 4; i++) {
        float &v = c[i / 2][2 * h + i % 2];
        v = tanh_of(v * in);
    }
    return a.softcap * LOG2E;
}

/* What a query does not see. */
template <class S>
static __device__ __forceinline__ void hide(float c[S::KEYS / 8][4], uint32_t h, uint32_t j0, uint32_t pos, uint32_t lo)
{
    uint32_t j = j0 + threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < S::KEYS / 4; i++) {
        uint32_t at = j + i / 2 * 8 + i % 2;
        if (at > pos || at < lo) c[i / 2][2 * h + i % 2] = -INFINITY;
    }
}

/* Over the four threads of a row, N rows together. */
template <uint32_t N> static __device__ __forceinline__ void highest_of_rows(float (&top)[N])
{
#pragma unroll
    for (int o = 1; o < 4; o *= 2)
#pragma unroll
        for (uint32_t i = 0; i < N; i++) top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], o));
}

template <uint32_t N> static __device__ __forceinline__ void sums_of_rows(float (&sum)[N])
{
#pragma unroll
    for (int o = 1; o < 4; o *= 2)
#pragma unroll
        for (uint32_t i = 0; i < N; i++) sum[i] = __fadd_rn(sum[i], __shfl_xor_sync(~0u, sum[i], o));
}

/* m takes in the highest score; returns the factor of all that was summed before. */
static __device__ __forceinline__ float raise(float &m, float top)
{
    top = fmaxf(top, m);
    float f = m == top ? 1.0f : ex2(m - top);
    m = top;
    return f;
}

/* Returns this thread's part of their sum. */
template <class S>
static __device__ __forceinline__ float make_weights(float c[S::KEYS / 8][4], uint32_t h, float by, float m)
{
    float less = m == -INFINITY ? 0.0f : -m, sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < S::KEYS / 4; i++) {
        float &v = c[i / 2][2 * h + i % 2];
        v = ex2(__fmaf_rn(v, by, less));
        sum = __fadd_rn(sum, v);
    }
    return sum;
}

template <class S> static __device__ __forceinline__ void rescale(state<S> &st, uint32_t t, uint32_t h, float f)
{
#pragma unroll
    for (uint32_t n = 0; n < S::COLS / 8; n++) {
        st.o[t][n][2 * h] *= f;
        st.o[t][n][2 * h + 1] *= f;
    }
}

/* A warp's part of the queries, rounded, into shared memory; up to eight at a time, so that their bytes travel
 * together. base: the first of the block among those of its tile. */
template <class S>
static __device__ __forceinline__ void load_queries(const cu_attn &a, const cu_tile &tile, uint32_t kvh, uint32_t group,
                                                    uint32_t base, uint16_t *qs, float *factor)
{
    constexpr uint32_t MINE = S::QUERIES / S::WARPS, N = MINE < 8 ? MINE : 8;
    uint32_t lane = threadIdx.x % 32, n_real = tile.n_rows * group;
    for (uint32_t q0 = threadIdx.x / 32 * MINE, end = q0 + MINE; q0 < end; q0 += N) {
        float v[N][S::DK / 32];
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            uint32_t q = base + q0 + i;
            const float *x = a.q.p + (tile.row + q / group) * a.q.stride + (kvh * group + q % group) * a.q_head;
#pragma unroll
            for (uint32_t n = 0; n < S::DK / 32; n++) v[i][n] = q < n_real ? x[n * 32 + lane] : 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            float most = 0, by = 1, back = 1;
            if (S::FP8) {
#pragma unroll
                for (uint32_t n = 0; n < S::DK / 32; n++) most = fmaxf(most, fabsf(v[i][n]));
                uint32_t e = __float_as_uint(warp_max(most)) >> 23;
                if (e > 0 && e < 254) { /* 2^(127 - e) and its inverse */
                    by = __uint_as_float((254 - e) << 23);
                    back = __uint_as_float(e << 23);
                }
            }
#pragma unroll
            for (uint32_t n = 0; n < S::DK / 32; n++) {
                uint32_t at = S::place(q0 + i, n * 32 + lane), code = pack<S::FP8>(v[i][n] * by, 0.0f);
                qs[at] = (uint16_t)code;
                if (S::PARTS == 2) qs[S::Q_SIZE + at] = (uint16_t)pack_rest(v[i][n], 0.0f, code);
            }
            if (S::FP8 && lane == 0) factor[q0 + i] = a.scale * LOG2E * back;
        }
    }
}

static __device__ __forceinline__ uint32_t first_seen(const cu_attn &a, uint32_t pos)
{
    uint32_t lo = a.window && pos >= a.window ? pos - a.window + 1 : 0;
    return a.chunk ? max(lo, pos - pos % a.chunk) : lo;
}

/* A span ends: it joins what came before it (m, l and the output), or becomes a part that merge_kernel will join. */
template <class S>
static __device__ __forceinline__ void flush(const cu_attn &a, const cu_tile &tile, uint32_t kvh, uint32_t group,
                                             uint32_t base, uint32_t span, bool last, float m[S::MT][2],
                                             float l[S::MT][2], const state<S> &st)
{
    uint32_t lane = threadIdx.x % 32, q0 = base + S::first_query(), col = S::first_col() + lane % 4 * S::COL_STEP;
#pragma unroll
    for (uint32_t t = 0; t < S::MT; t++)
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t q = q0 + t * 16 + lane / 4 + 8 * h, row = tile.row + q / group, head = kvh * group + q % group;
            if (q >= tile.n_rows * group) continue;
            float *o = a.o.p + row * a.o.stride + head * a.o_head + col;
            if (a.n_spans) {
                o = a.part + (((size_t)row * a.n_heads + head) * a.n_spans + span) * (S::DV + 2);
                o[0] = st.m[t][h]; /* several threads write the same */
                o[1] = st.l[t][h];
                o += 2 + col;
#pragma unroll
                for (uint32_t n = 0; n < S::COLS / 8; n++)
                    for (uint32_t i = 0; i < 2; i++) o[S::col(n, i)] = st.o[t][n][2 * h + i];
                continue;
            }
            bool begun = m[t][h] != -INFINITY;
            factors f = merge_max(&m[t][h], st.m[t][h]);
            l[t][h] = merged(l[t][h], st.l[t][h], f);
            float scale = 1, sum = 1;
            if (last) sum = with_sink(a, head, m[t][h], l[t][h], &scale);
#pragma unroll
            for (uint32_t n = 0; n < S::COLS / 8; n++)
                for (uint32_t i = 0; i < 2; i++) {
                    float &to = o[S::col(n, i)], v = merged(begun ? to : 0.0f, st.o[t][n][2 * h + i], f);
                    to = last ? quotient(v, scale, sum) : v;
                }
        }
}

/* k_flash_row.cu: tiles of one row; the shapes that cu_flash_queries() knows, but for latent attention. */
int flash_row_launch(const cu_attn *a, cu_stream s);

/* k_flash.cu: joins the parts of spans that had blocks of their own. */
void flash_join(const cu_attn *a, cu_stream s);

/* k_flash_wg.cu: what cu_flash_queries() and cu_launch_flash() hand over to warpgroups. */
uint32_t flash_wg_queries(uint32_t kv_type, uint32_t group, uint32_t d_k, uint32_t d_v, size_t shared_max);
int flash_wg_launch(const cu_attn *a, cu_stream s);

#endif
