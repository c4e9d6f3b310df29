/* MATMUL of I8, I4 and MXFP4 weights with quantized activations by the products of warpgroups, which compute capability
 * 9.0 alone has (wgmma.cuh): many rows. The bits are those of k_matmul_int.cu. What it should reach:
 * docs/performance.md.
 *
 * A tile is 128 outputs (eight strips) of up to 128 or 256 rows. Blocks stay, one a multiprocessor, and take tiles in
 * turns. One of a block's three warpgroups brings weights and rows into shared memory, 128 columns a stage, some stages
 * ahead and over the ends of tiles; the two others have four strips each, a warp a strip. Weights are operand A: the 16
 * rows of a strip, decoded in registers. The rows of activations are B, each 128 bytes in shared memory, swizzled.
 *
 * A tile's rows are taken in two or four parts, whose sums take turns: while the tensor cores add up a weight group of
 * one part, the sums of the part before become floats and are scaled; and what one warpgroup waits for is hidden by the
 * other. A part is as wide as the tile needs: 16, 32, 48 or 64 rows.
 *
 * Lane (g, t) has rows 2g and 2g + 1 of its strip as rows g and g + 8 of A, and of every 16 columns 4t .. 4t + 3: that
 * is one half of a dword of nibbles, the lower one where t is even. */
#include "matmul_int.cuh"
#include <wgmma.cuh>

#define STRIPS 8u
#define WIDE 192u /* from so many rows of a matrix on, tiles of 256 instead of 128 */
#define PRODUCERS 128u
#define THREADS (PRODUCERS + 256u)

namespace /* other files have structures of the same names */
{

struct wg_tile {
    uint32_t strip, p, n, mat; /* rows [p, p + n) of the result */
};

struct wg_job {
    const uint8_t *matrix;
    uint64_t _pad;
    wg_tile tile;
};

template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS> struct wg_stage {
    static constexpr uint32_t PER = 128 / GROUP; /* groups of a stage */
    static constexpr uint32_t W_BYTES = TYPE == KS_T_I8 ? 2048 : 1024, SCALE = TYPE == KS_T_MXFP4 ? 1 : 2;
    uint8_t x[ROWS][128]; /* 1024 divides its address */
    uint8_t w[STRIPS][W_BYTES];
    uint8_t w_scale[STRIPS][PER * 16 * SCALE];
    float x_scale[ROWS];
};

template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS> struct wg_shared {
    static constexpr uint32_t STAGE_BYTES = (sizeof(wg_stage<TYPE, GROUP, ROWS>) + 1023) / 1024 * 1024;
    static constexpr uint32_t STAGES = (TYPE == KS_T_I8 ? 6 : 8) * 128 / ROWS + (ROWS > 128);
    /* A tile has a stage at least. So who brings is at most STAGES tiles before who computes, and has found one more.
     */
    static constexpr uint32_t JOBS = STAGES + 2;
    static constexpr uint32_t BYTES =
        STAGES * STAGE_BYTES + 2 * STAGES * 8 + JOBS * sizeof(wg_job) + ROWS * 4 + 1024; /* 1024: to align */
    static_assert(BYTES <= 227 << 10, "a block's shared memory");
};

#if CU_WGMMA

/* A place in the ring of stages, and the parity of the phase that it is in. */
template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS> struct wg_ring {
    typedef wg_shared<TYPE, GROUP, ROWS> B;
    static constexpr uint32_t AHEAD = B::STAGES - 3; /* copies of so many are on their way */
    /* A thread's registers, in eights: 504 for the three warpgroups together. */
    static constexpr uint32_t BRING_REGS = ROWS > 128 ? 40 : 56, COMPUTE_REGS = (504 - BRING_REGS) / 2;
    uint8_t *stages;
    uint64_t *full, *empty;
    wg_job *jobs;   /* (JOBS) tiles take turns, too; n 0: there are no more */
    uint32_t *rows; /* (ROWS) of those who bring: where a tile's rows of activations are */
    uint32_t slot, parity, turn;

    __device__ __forceinline__ wg_ring(uint8_t *shared)
        : stages(shared + (0 - (uintptr_t)shared) % 1024), full((uint64_t *)(stages + B::STAGES * B::STAGE_BYTES)),
          empty(full + B::STAGES), jobs((wg_job *)(empty + B::STAGES)), rows((uint32_t *)(jobs + B::JOBS)), slot(0),
          parity(0), turn(0)
    {
    }

    __device__ __forceinline__ wg_stage<TYPE, GROUP, ROWS> &stage(void) const
    {
        return *(wg_stage<TYPE, GROUP, ROWS> *)(stages + slot * B::STAGE_BYTES);
    }

    __device__ __forceinline__ void next(void)
    {
        if (++slot < B::STAGES) return;
        slot = 0;
        parity ^= 1;
    }

    __device__ __forceinline__ void next_job(void) { turn = turn + 1 < B::JOBS ? turn + 1 : 0; }
};

/* ---- who brings */

/* Tiles are asked for in ascending order. A lane has looked at one of the 32 matrices from `first` on, before which
 * there are `before` tiles of rows; tiles: of its own and of those before it among the 32. Without refs none of this
 * counts. */
struct wg_cursor {
    uint32_t n, first, before, tiles;
};

static __device__ __forceinline__ void look_at(const cu_matmul &m, wg_cursor &c, uint32_t lane, uint32_t rows)
{
    c.tiles = c.first + lane < c.n ? ceil_div(m.refs[c.first + lane].n, rows) : 0;
    for (uint32_t o = 1; o < 32; o *= 2) {
        uint32_t v = __shfl_up_sync(~0u, c.tiles, o);
        if (lane >= o) c.tiles += v;
    }
}

static __device__ __forceinline__ wg_cursor begin_tiles(const cu_matmul &m, uint32_t lane, uint32_t rows)
{
    wg_cursor c = {};
    if (!m.refs) return c;
    c.n = m.n_refs ? *m.n_refs : m.n_mat;
    look_at(m, c, lane, rows);
    return c;
}

/* Tile i of at most so many rows, the same in all lanes, and its matrix; NULL: there are no more. */
static __device__ __forceinline__ const uint8_t *find_tile(const cu_matmul &m, wg_cursor &c, uint32_t i, uint32_t lane,
                                                           uint32_t rows, wg_tile *ret)
{
    const uint32_t across = ceil_div(m.n_out, 16 * STRIPS);
    uint32_t at = i / across;
    cu_ref r;
    ret->strip = i % across * STRIPS;
    if (m.refs) {
        uint32_t found;
        while (!(found = __ballot_sync(~0u, c.before + c.tiles > at))) {
            if (c.first + 32 >= c.n) return nullptr;
            c.before += __shfl_sync(~0u, c.tiles, 31);
            c.first += 32;
            look_at(m, c, lane, rows);
        }
        const int of = __ffs((int)found) - 1;
        const uint32_t tiles = __shfl_sync(~0u, c.tiles, of);
        r = m.refs[c.first + (uint32_t)of];
        r.w += m.w_off;
        at -= c.before + tiles - ceil_div(r.n, rows);
    } else {
        const uint32_t per = ceil_div(m.n_rows, rows);
        if (at / per >= m.n_mat) return nullptr;
        (void)find_matrix(m, at / per, &r);
        at %= per;
    }
    ret->p = r.begin + at * rows;
    ret->n = min(r.n - at * rows, rows);
    ret->mat = r.mat;
    return r.w;
}

/* Where a chunk of 16 bytes of a strip's stage lies: no two lanes that read at once share a bank. */
template <uint32_t TYPE> static __device__ __forceinline__ uint32_t w_chunk(uint32_t i)
{
    return TYPE == KS_T_I8 ? i ^ (i >> 2 & 2u) : i;
}

/* Of 16 rows a lane's four, 2t, 2t + 1, 2t + 8 and 2t + 9, lie together. */
static __device__ __forceinline__ uint32_t x_scale_at(uint32_t row)
{
    return (row & ~15u) | (row & 6u) << 1 | (row & 8u) >> 2 | (row & 1u);
}

/* Of the table of rows a thread's own, every 16th one, lie together. */
template <uint32_t ROWS> static __device__ __forceinline__ uint32_t row_at(uint32_t row)
{
    return row % 16 * (ROWS / 16) + row / 16;
}

/* What a thread brings of stage st of a tile: always the same chunk of weights, of every SKIP-th strip; a chunk of
 * every 16th row of activations, as far as there are 32 more; and of scales. What is not there is zeros, a row that is
 * not there the last one. x: the thread's chunk of row 0 in this stage. */
template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS>
static __device__ __forceinline__ void fetch(const cu_matmul &m, const wg_job &job, const uint32_t *rows,
                                             wg_stage<TYPE, GROUP, ROWS> &to, const int8_t *x, uint32_t i, uint32_t st)
{
    constexpr uint32_t W_BYTES = sizeof to.w[0], CHUNKS = W_BYTES / 16, SKIP = PRODUCERS / CHUNKS;
    constexpr uint32_t W_SCALES = sizeof to.w_scale[0], K_BYTES = TYPE == KS_T_I8 ? 16 : 8; /* of a strip, a column */
    const uint32_t n_rows = job.tile.n, n_strips = ceil_div(m.n_out, 16) - job.tile.strip;
    const uint32_t left = t16_n_in(m.n_in) - st * 128, s = i / CHUNKS, c = i % CHUNKS, row = i / 8;
    const uint4 *mine = (const uint4 *)(rows + row_at<ROWS>(row));
    uint4 r = mine[0]; /* before it is waited for */
    const uint8_t *strip = job.matrix + job.tile.strip * m.strip_bytes, *w = strip + s * m.strip_bytes + c * 16;
    const uint32_t n = c * 16 < left * K_BYTES ? n_strips : 0, x_bytes = i % 8 * 16 < left ? 16 : 0;
    uint8_t *w_to = to.w[s] + w_chunk<TYPE>(c) * 16, *x_to = to.x[row] + (i % 8 ^ row % 8) * 16;
#pragma unroll
    for (uint32_t j = 0; j < STRIPS; j += SKIP)
        cp_async_16(w_to + j * W_BYTES, w + st * W_BYTES + j * m.strip_bytes, s + j < n ? 16 : 0);
    if (i < STRIPS * W_SCALES / 16) {
        const uint32_t of = i / (W_SCALES / 16), at = i % (W_SCALES / 16) * 16,
                       g = at * (128 / GROUP) / W_SCALES * GROUP;
        cp_async_16((uint8_t *)to.w_scale + i * 16,
                    strip + of * m.strip_bytes + t16_n_in(m.n_in) * K_BYTES + st * W_SCALES + at,
                    of < n_strips && g < left ? 16 : 0);
    }
#pragma unroll
    for (uint32_t j = 0; j < ROWS / 64; j++) {
        if (j && n_rows <= 64 * j) break;
        if (j) r = mine[j];
        uint8_t *to64 = x_to + 64 * j * 128;
        cp_async_16(to64, x + (uint64_t)r.x * m.act.q_stride, x_bytes);
        cp_async_16(to64 + 16 * 128, x + (uint64_t)r.y * m.act.q_stride, x_bytes);
        if (n_rows <= 64 * j + 32) break;
        cp_async_16(to64 + 32 * 128, x + (uint64_t)r.z * m.act.q_stride, x_bytes);
        cp_async_16(to64 + 48 * 128, x + (uint64_t)r.w * m.act.q_stride, x_bytes);
    }
#pragma unroll
    for (uint32_t j = 0; j < ROWS / PRODUCERS; j++)
        cp_async_4(&to.x_scale[x_scale_at(i) + j * PRODUCERS],
                   m.act.scale + st + (uint64_t)rows[row_at<ROWS>(i + j * PRODUCERS)] * m.act.scale_stride);
}

/* This warp's copies are there, in the eyes of who waits for `full`. */
static __device__ __forceinline__ void hand_over(uint64_t *full, uint32_t lane)
{
    __syncwarp();
    if (lane == 0) phase_arrive(full);
}

template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS>
static __device__ __forceinline__ void bring(const cu_matmul &m, wg_ring<TYPE, GROUP, ROWS> ring)
{
    typedef wg_ring<TYPE, GROUP, ROWS> R;
    const uint32_t i = threadIdx.x % PRODUCERS, lane = i % 32, n_stages = ceil_div(m.n_in, 128);
    uint32_t brought = 0, landed = 0; /* stages; landed: the next that will have */
    wg_cursor c = begin_tiles(m, lane, ROWS);
    auto find = [&](uint32_t tile) {
        wg_job job;
        job.matrix = find_tile(m, c, tile, lane, ROWS, &job.tile);
        if (!job.matrix) job.tile.n = 0;
        if (i == 0) ring.jobs[ring.turn] = job;
    };
    find(blockIdx.x);
    for (uint32_t tile = blockIdx.x;; tile += gridDim.x) {
        part_sync(1, PRODUCERS); /* all have brought the tile before, and know this one */
        const wg_job &job = ring.jobs[ring.turn];
        if (!job.tile.n) break;
        ring.next_job();
#pragma unroll
        for (uint32_t j = 0; j < ROWS; j += PRODUCERS)
            ring.rows[row_at<ROWS>(i + j)] = input_row(m, job.tile.p + min(i + j, job.tile.n - 1), job.tile.mat);
        part_sync(1, PRODUCERS);
        const int8_t *x = m.act.q + i % 8 * 16;
#pragma unroll 1
        for (uint32_t st = 0; st < n_stages; st++) {
            phase_wait(&ring.empty[ring.slot], ring.parity ^ 1);
            fetch<TYPE, GROUP, ROWS>(m, job, ring.rows, ring.stage(), x, i, st);
            x += 128;
            cp_async_commit();
            ring.next();
            if (st == 0) find(tile + gridDim.x); /* while stages of the last tile are there to be computed with */
            if (++brought <= R::AHEAD) continue;
            cp_async_wait<R::AHEAD>();
            hand_over(&ring.full[landed], lane);
            landed = landed + 1 < R::B::STAGES ? landed + 1 : 0;
        }
    }
    cp_async_wait<0>();
    for (uint32_t left = min(brought, R::AHEAD); left; left--) {
        hand_over(&ring.full[landed], lane);
        landed = landed + 1 < R::B::STAGES ? landed + 1 : 0;
    }
    phase_wait(&ring.empty[ring.slot], ring.parity ^ 1);
    hand_over(&ring.full[ring.slot], lane);
}

/* ---- who computes */

/* The fence is for the products: they see what was copied before it, by whichever thread. (It waits for all that its
 * thread has under way, so it is not for those who bring.) */
template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS>
static __device__ __forceinline__ void wait_for_stage(const wg_ring<TYPE, GROUP, ROWS> &ring)
{
    phase_wait(&ring.full[ring.slot], ring.parity);
    shared_fence();
}

/* Four bytes of A from a dword of the layout, or from half of one. I4: codes 0 .. 15 stand for -8 .. 7. */
template <uint32_t TYPE> static __device__ __forceinline__ uint32_t factor(uint32_t w, bool upper)
{
    if (TYPE == KS_T_I8) return w;
    if (upper) w >>= 4; /* by a variable it would take a register more, which is not there */
    w &= 0x0f0f0f0fu;
    return TYPE == KS_T_I4 ? (w + 0x78787878u) ^ 0x80808080u : e2m1_twice(w);
}

/* A lane's operands A of group i of a stage of a strip. */
template <uint32_t TYPE, uint32_t GROUP>
static __device__ __forceinline__ void load_factors(uint32_t (&a)[GROUP / 32][4], const uint8_t *w, uint32_t i,
                                                    uint32_t g, uint32_t t)
{
    w += TYPE == KS_T_I8 ? t * 64 + ((g / 2) ^ (t & 2u)) * 16 + g % 2 * 8 : t / 2 * 64 + g * 8;
    w += i * (GROUP * 16 / (TYPE == KS_T_I8 ? 1 : 2));
#pragma unroll
    for (uint32_t j = 0; j < GROUP / 16; j++) {
        uint2 v = *(const uint2 *)(w + j * (TYPE == KS_T_I8 ? 256 : 128));
        a[j / 2][j % 2 * 2] = factor<TYPE>(v.x, t % 2);
        a[j / 2][j % 2 * 2 + 1] = factor<TYPE>(v.y, t % 2);
    }
}

/* Of a lane's two rows of a strip. */
template <uint32_t TYPE>
static __device__ __forceinline__ void load_scales(float w[2], const uint8_t *scale, uint32_t i, uint32_t g)
{
    if (TYPE == KS_T_MXFP4) {
        uint32_t v = *(const uint16_t *)(scale + i * 16 + 2 * g);
        w[0] = __fmul_rn(e8m0_to_f32(v & 255u), 0.5f);
        w[1] = __fmul_rn(e8m0_to_f32(v >> 8), 0.5f);
        return;
    }
    uint32_t v = *(const uint32_t *)(scale + i * 32 + 4 * g);
    w[0] = bf16_to_f32(v & 0xffffu);
    w[1] = __uint_as_float(v & 0xffff0000u);
}

/* The products of a weight group and a part of the rows are on their way. x: the part's, of the group's first column.
 */
template <uint32_t STEPS, uint32_t H>
static __device__ __forceinline__ void begin_products(int32_t (&c)[H / 8][4], const uint32_t (&a)[STEPS][4], uint64_t x)
{
    wg_fence();
#pragma unroll
    for (uint32_t j = 0; j < STEPS; j++) wg_mma_s8(c, a[j], wg_further(x, j * 32), j != 0);
    wg_commit();
}

template <uint32_t H> static __device__ __forceinline__ void end_products(int32_t (&c)[H / 8][4])
{
    wg_wait<0>();
    wg_hold(c);
}

/* The sums of a group and a part of the rows into a lane's own. x_scale: a lane's in every 16 rows. */
template <uint32_t H>
static __device__ __forceinline__ void add_sums(float (&acc)[H / 8][4], const int32_t (&c)[H / 8][4], const float w[2],
                                                const float *x_scale)
{
#pragma unroll
    for (uint32_t j = 0; j < H / 8; j++) {
        const float4 v = *(const float4 *)(x_scale + j / 2 * 16);
        const float x = j % 2 ? v.z : v.x, y = j % 2 ? v.w : v.y;
        acc[j][0] = __fmaf_rn(__int2float_rn(c[j][0]), __fmul_rn(w[0], x), acc[j][0]);
        acc[j][1] = __fmaf_rn(__int2float_rn(c[j][1]), __fmul_rn(w[0], y), acc[j][1]);
        acc[j][2] = __fmaf_rn(__int2float_rn(c[j][2]), __fmul_rn(w[1], x), acc[j][2]);
        acc[j][3] = __fmaf_rn(__int2float_rn(c[j][3]), __fmul_rn(w[1], y), acc[j][3]);
    }
    wg_hold(acc); /* not later: what it takes would lie about meanwhile */
}

/* A lane's outputs o and o + 1 of its rows: `row`, the next one, and those 8, 16, ... further on. */
template <uint32_t H>
static __device__ __forceinline__ void store_sums(const float (&acc)[H / 8][4], const cu_matmul &m, const wg_tile &t,
                                                  uint32_t o, uint32_t row)
{
    if (o >= m.n_out) return;
    float *to = result_at(m, t.mat, t.p + row, o);
    const size_t stride = m.y_stride;
    const bool both = o + 1 < m.n_out, pairs = both && (uintptr_t)to % 8 == 0 && stride % 2 == 0;
#pragma unroll
    for (uint32_t i = 0; i < H / 4; i++) { /* no products of i and the stride: all would wait in registers */
        const float *v = acc[i / 2] + i % 2;
        if (row + i / 2 * 8 + i % 2 < t.n) {
            if (pairs) {
                *(float2 *)to = make_float2(v[0], v[2]);
            } else {
                to[0] = v[0];
                if (both) to[1] = v[2];
            }
        }
        to += i % 2 ? 7 * stride : stride;
    }
}

/* What becomes of the sums beyond being stored, which is seldom, is done to what lies there already. */
static __device__ __forceinline__ void finish_sums(const cu_matmul &m, const wg_tile &t, uint32_t o, uint32_t row)
{
    cu_ref ref = {};
    ref.mat = t.mat;
#pragma unroll 1
    for (; row < t.n && o < m.n_out; row += row % 2 ? 7 : 1) {
        float *y = result_at(m, t.mat, t.p + row, o);
        y[0] = finished(m, ref, o, y[0]);
        if (o + 1 < m.n_out) y[1] = finished(m, ref, o + 1, y[1]);
    }
}

/* A tile whose first stage is there, of at most H * PARTS rows. */
template <uint32_t H, uint32_t PARTS, uint32_t TYPE, uint32_t GROUP, uint32_t ROWS>
static __device__ __forceinline__ void compute(const cu_matmul &m, wg_ring<TYPE, GROUP, ROWS> &ring,
                                               const wg_tile &tile, uint32_t strip, uint32_t lane)
{
    typedef wg_stage<TYPE, GROUP, ROWS> S;
    const uint32_t g = lane / 4, t = lane % 4, n = ceil_div(t16_n_in(m.n_in), GROUP);
    float acc[PARTS][H / 8][4], w[2];
    int32_t c[2][H / 8][4]; /* parts take turns */
    uint32_t a[GROUP / 32][4], i = 0;
    const S *s = &ring.stage(); /* i: the group of it */
#pragma unroll
    for (uint32_t j = 0; j < PARTS * H / 2; j++) acc[j / (H / 2)][j / 4 % (H / 8)][j % 4] = 0;
#pragma unroll
    for (uint32_t j = 0; j < H; j++)
        c[j / (H / 2)][j / 4 % (H / 8)][j % 4] = 0; /* or their registers are taken from the kernel's begin on */
    load_factors<TYPE, GROUP>(a, s->w[strip], 0, g, t);
    begin_products<GROUP / 32, H>(c[0], a, wg_matrix(s->x, 16, 1024, true));
    end_products<H>(c[0]);
#pragma unroll 1
    for (uint32_t q = 1;; q++) { /* the first part is there */
        const S *now = s;
        const uint32_t slot = ring.slot;
        const uint64_t x = wg_further(wg_matrix(s->x, 16, 1024, true), i * GROUP);
        load_scales<TYPE>(w, s->w_scale[strip], i, g);
#pragma unroll
        for (uint32_t p = 1; p < PARTS; p++) {
            begin_products<GROUP / 32, H>(c[p % 2], a, wg_further(x, p * H * 128));
            add_sums<H>(acc[p - 1], c[(p - 1) % 2], w, now->x_scale + (p - 1) * H + 4 * t);
            end_products<H>(c[p % 2]);
        }
        if (q == n) break;
        if (++i == S::PER) {
            i = 0;
            ring.next();
            wait_for_stage(ring);
            s = &ring.stage();
        }
        load_factors<TYPE, GROUP>(a, s->w[strip], i, g, t);
        begin_products<GROUP / 32, H>(c[0], a, wg_further(wg_matrix(s->x, 16, 1024, true), i * GROUP));
        add_sums<H>(acc[PARTS - 1], c[1], w, now->x_scale + (PARTS - 1) * H + 4 * t);
        end_products<H>(c[0]);
        if (i) continue;
        __syncwarp();
        if (lane == 0) phase_arrive(&ring.empty[slot]);
    }
    add_sums<H>(acc[PARTS - 1], c[1], w, s->x_scale + (PARTS - 1) * H + 4 * t);
    __syncwarp();
    if (lane == 0) phase_arrive(&ring.empty[ring.slot]);
    ring.next();
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++)
        store_sums<H>(acc[p], m, tile, (tile.strip + strip) * 16 + 2 * g, p * H + 2 * t);
}

template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS>
static __device__ __forceinline__ void consume(const cu_matmul &m, wg_ring<TYPE, GROUP, ROWS> ring)
{
    const uint32_t strip = threadIdx.x / 32 - PRODUCERS / 32, lane = threadIdx.x % 32;
    for (;;) {
        wait_for_stage(ring);
        const wg_tile &t = ring.jobs[ring.turn].tile;
        const uint32_t n = t.n;
        if (!n) return;
        if (n <= ROWS / 4)
            compute<ROWS / 8, 2>(m, ring, t, strip, lane);
        else if (n <= ROWS / 2)
            compute<ROWS / 4, 2>(m, ring, t, strip, lane);
        else if (n <= ROWS / 4 * 3)
            compute<48, ROWS / 64>(m, ring, t, strip, lane);
        else
            compute<64, ROWS / 64>(m, ring, t, strip, lane);
        if (!is_finished(m)) finish_sums(m, t, (t.strip + strip) * 16 + lane / 4 * 2, lane % 4 * 2);
        ring.next_job();
        __syncwarp();
    }
}

#endif

} // namespace

template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS>
static __global__ void __launch_bounds__(THREADS, 1) wg_kernel(const __grid_constant__ cu_matmul m)
{
#if CU_WGMMA
    CU_DYNAMIC_SHARED(uint8_t, shared);
    wg_ring<TYPE, GROUP, ROWS> ring(shared);
    if (threadIdx.x < wg_shared<TYPE, GROUP, ROWS>::STAGES) {
        phase_init(&ring.full[threadIdx.x], PRODUCERS / 32);
        phase_init(&ring.empty[threadIdx.x], STRIPS);
    }
    __syncthreads();
    if (threadIdx.x < PRODUCERS) {
        regs_fewer<wg_ring<TYPE, GROUP, ROWS>::BRING_REGS>();
        bring<TYPE, GROUP, ROWS>(m, ring);
    } else {
        regs_more<wg_ring<TYPE, GROUP, ROWS>::COMPUTE_REGS>();
        consume<TYPE, GROUP, ROWS>(m, ring);
    }
#endif
}

template <uint32_t TYPE, uint32_t GROUP, uint32_t ROWS> static void launch_rows(const cu_matmul *m, cu_stream s)
{
    const uint32_t bytes = wg_shared<TYPE, GROUP, ROWS>::BYTES;
    /* Where this fails, so does the launch. */
    (void)cudaFuncSetAttribute(wg_kernel<TYPE, GROUP, ROWS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    uint64_t tiles = (uint64_t)((m->n_rows + ROWS - 1) / ROWS) * m->n_mat;
    if (m->refs && m->n_pairs / ROWS + m->n_mat < tiles) tiles = m->n_pairs / ROWS + m->n_mat;
    tiles *= (m->n_out + 16 * STRIPS - 1) / (16 * STRIPS);
    dim3 grid(tiles < m->wg_blocks ? (uint32_t)tiles : m->wg_blocks);
    CU_LAUNCH((wg_kernel<TYPE, GROUP, ROWS>), grid, THREADS, bytes, s)(*m);
}

/* Wide tiles take less from the level-2 cache and decode less a product, but have fewer stages, waste more where rows
 * are few, and may be too few for all multiprocessors. */
template <uint32_t TYPE, uint32_t GROUP> struct by_warpgroups {
    static void now(const cu_matmul *m, cu_stream s)
    {
        const uint64_t rows = m->refs ? m->n_pairs : (uint64_t)m->n_rows * m->n_mat,
                       tiles = rows / 256 * ((m->n_out + 16 * STRIPS - 1) / (16 * STRIPS));
        if (rows / m->n_mat >= WIDE && 2 * tiles > m->wg_blocks)
            launch_rows<TYPE, GROUP, 256>(m, s);
        else
            launch_rows<TYPE, GROUP, 128>(m, s);
    }
};

void cu_launch_matmul_wg(const cu_matmul *m, cu_stream s)
{
    launch_shape<by_warpgroups>(m, s);
}

int cu_has_warpgroups(void)
{
    return wg_is_there();
}
