/* MATMUL of I8, I4 and MXFP4 weights with quantized activations, on the integer tensor cores, straight from T16: many
 * rows (k_matmul_few.cu: few).
 *
 * A block owns 128 outputs of up to 64 rows; each of its 4 warps two strips, for all rows. Both operands come through
 * shared memory, 128 columns a stage, some stages ahead. 16 bytes of the weights' layout are 4 outputs: lane (g, t)
 * takes rows 4 (g % 4) .. + 3 of the warp's strip g / 4, the first two as rows g and g + 8 of one operand A, the others
 * of a second. Of 64 columns it takes 16t .. 16t + 15, of the activations alike (of 32, 8t .. 8t + 7, where a group has
 * no more). The order of 16-byte chunks in shared memory is such that no two lanes that read at once share a bank. */
#include "matmul_int.cuh"

#define FEW_ROWS 16u /* up to here, k_matmul_few.cu */
#define WARPS 4u
#define STRIPS (2u * WARPS) /* of a block */
#define PAIRS (CU_TILE_ROWS / 16u)

/* Sums start at this number's bits, so that their own bits are it plus the sum, as a float, up to 2^22: no conversion.
 */
#define START 0x4b400000
#define START_F 12582912.0f

template <uint32_t TYPE, uint32_t GROUP> struct shape {
    static constexpr uint32_t PER = 128 / GROUP; /* weight groups of a stage */
    static constexpr uint32_t STEPS = GROUP / 32;
    static constexpr uint32_t W_BYTES = TYPE == KS_T_I8 ? 2048 : 1024, SCALE = TYPE == KS_T_MXFP4 ? 1 : 2;
    static constexpr uint32_t STAGES = TYPE == KS_T_I8 ? 3 : 4;
};

template <uint32_t TYPE, uint32_t GROUP> struct stage {
    uint8_t w[STRIPS][shape<TYPE, GROUP>::W_BYTES];
    uint8_t x[CU_TILE_ROWS][128];
    uint8_t w_scale[STRIPS][shape<TYPE, GROUP>::PER * 16 * shape<TYPE, GROUP>::SCALE];
    float x_scale[CU_TILE_ROWS];
};

/* Where a chunk of 16 bytes lies: of a strip's stage, of a row. */
template <uint32_t TYPE> static __device__ __forceinline__ uint32_t w_chunk(uint32_t i)
{
    return i ^ (i >> (TYPE == KS_T_I8 ? 4 : 3) & 3u) << 1;
}

static __device__ __forceinline__ uint32_t x_chunk(uint32_t row, uint32_t i)
{
    return i ^ ((row & 1u) << 2 | (row & 2u));
}

/* What a thread brings of every stage: always the same chunk of weights, of every SKIP-th strip, of activations, of
 * every 16th row, and of scales. What is not there is zeros. */
template <uint32_t TYPE, uint32_t GROUP> struct loader {
    typedef stage<TYPE, GROUP> to_stage;
    static constexpr uint32_t W_BYTES = shape<TYPE, GROUP>::W_BYTES, CHUNKS = W_BYTES / 16;
    static constexpr uint32_t SKIP = WARPS * 32 / CHUNKS, W_SCALES = sizeof(to_stage::w_scale[0]);
    static constexpr uint32_t K_BYTES = TYPE == KS_T_I8 ? 16 : 8; /* of a strip, a column */
    const uint32_t *x_row;                                        /* shared */
    const uint8_t *w, *w_scale;                                   /* of the next stage, like the others */
    const int8_t *x;
    const float *x_scale;
    size_t strip_bytes;
    uint32_t q_stride, n_rows, n_strips, k, w_at, x_at; /* k: columns that are still to come; places in a stage */
    bool whole;                                         /* all strips and columns of a stage are there, to the end */

    __device__ __forceinline__ loader(const cu_matmul &m, const uint8_t *strip, const uint32_t *x_row, uint32_t n_in,
                                      uint32_t n_strips, uint32_t n_rows)
        : x_row(x_row), strip_bytes(m.strip_bytes), q_stride(m.act.q_stride), n_rows(n_rows), n_strips(n_strips),
          k(n_in), whole(n_in % 128 == 0 && n_strips >= STRIPS)
    {
        const uint32_t i = threadIdx.x, s = i / CHUNKS, c = i % CHUNKS;
        w = strip + s * strip_bytes + c * 16;
        w_scale = strip + i / (W_SCALES / 16) * strip_bytes + (size_t)n_in * K_BYTES + i % (W_SCALES / 16) * 16;
        x = m.act.q + i % 8 * 16;
        x_scale = m.act.scale + (size_t)x_row[i % CU_TILE_ROWS] * m.act.scale_stride;
        w_at = s * W_BYTES + w_chunk<TYPE>(c) * 16;
        x_at = i / 8 * 128 + x_chunk(i / 8, i % 8) * 16;
    }

    __device__ __forceinline__ void fetch(to_stage &to)
    {
        const uint32_t i = threadIdx.x, s = i / CHUNKS, n = i % CHUNKS * 16 < k * K_BYTES ? n_strips : 0;
#pragma unroll
        for (uint32_t j = 0; j < STRIPS; j += SKIP)
            cp_async_16((uint8_t *)to.w + j * W_BYTES + w_at, w + j * strip_bytes, whole || s + j < n ? 16 : 0);
#pragma unroll
        for (uint32_t j = 0; j < CU_TILE_ROWS; j += WARPS * 4) {
            if (j >= n_rows) break;
            cp_async_16((uint8_t *)to.x + j * 128 + x_at, x + (size_t)x_row[i / 8 + j] * q_stride,
                        i % 8 * 16 < k ? 16 : 0);
        }
        if (i < STRIPS * W_SCALES / 16) {
            const uint32_t of = i / (W_SCALES / 16), at = i % (W_SCALES / 16) * 16,
                           g = at * (128 / GROUP) / W_SCALES * GROUP;
            cp_async_16((uint8_t *)to.w_scale + i * 16, w_scale, of < n_strips && g < k ? 16 : 0);
        }
        if (i < CU_TILE_ROWS) cp_async_4(&to.x_scale[i], x_scale);
        w += W_BYTES;
        w_scale += W_SCALES;
        x += 128;
        x_scale++;
        k -= min(k, 128u);
    }
};

/* A lane's operands A of 32 columns of its strip. zero: is 0, which the compiler must not know: each operand has to be
 * in four neighbouring registers, but what is loaded at once is half of two. Taken for a plain move, that would be done
 * again at every use. */
template <uint32_t TYPE, uint32_t GROUP>
static __device__ __forceinline__ void load_a(frag a[2], const uint8_t *strip, uint32_t step, uint32_t g, uint32_t t,
                                              uint32_t zero)
{
    uint32_t kb = GROUP == 32 ? 4 * step + t : 8 * (step / 2) + 2 * t + step % 2; /* of 8 columns */
    if (TYPE == KS_T_I8) {
        uint4 u = *(const uint4 *)(strip + w_chunk<TYPE>(kb * 8 + g % 4) * 16);
        uint4 v = *(const uint4 *)(strip + w_chunk<TYPE>(kb * 8 + 4 + g % 4) * 16);
        a[0] = frag { { u.x ^ zero, u.y ^ zero, v.x ^ zero, v.y ^ zero } };
        a[1] = frag { { u.z ^ zero, u.w ^ zero, v.z ^ zero, v.w ^ zero } };
        return;
    }
    uint4 u = *(const uint4 *)(strip + w_chunk<TYPE>(kb * 4 + g % 4) * 16);
    a[0] = decode<TYPE>(raw<TYPE> { { u.x, u.y } });
    a[1] = decode<TYPE>(raw<TYPE> { { u.z, u.w } });
}

/* Of a row of activations: what a lane needs of all columns of a group. */
template <uint32_t STEPS>
static __device__ __forceinline__ void load_b(uint2 b[STEPS], const uint8_t *x, uint32_t row, uint32_t k, uint32_t t)
{
    if constexpr (STEPS == 1) {
        b[0] = *(const uint2 *)(x + row * 128 + x_chunk(row, k / 16 + t / 2) * 16 + t % 2 * 8);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < STEPS; i += 2) {
            uint4 v = *(const uint4 *)(x + row * 128 + x_chunk(row, k / 16 + i * 2 + t) * 16);
            b[i] = make_uint2(v.x, v.y);
            b[i + 1] = make_uint2(v.z, v.w);
        }
    }
}

template <uint32_t TYPE> static __device__ __forceinline__ float to_float(int32_t c)
{
    float f = __uint_as_float((uint32_t)c);
    return TYPE == KS_T_I4 ? __fmaf_rn(f, 0.0625f, -START_F / 16) : __fadd_rn(f, -START_F);
}

template <uint32_t TYPE, uint32_t GROUP>
static __device__ __forceinline__ void scales_of(float w[4], const uint8_t *scale, uint32_t i, uint32_t g)
{
    uint32_t at = i * 16 + g % 4 * 4;
    if (TYPE == KS_T_MXFP4) {
        uint32_t v = *(const uint32_t *)(scale + at);
        for (uint32_t j = 0; j < 4; j++) w[j] = __fmul_rn(e8m0_to_f32(v >> 8 * j & 255u), 0.5f);
        return;
    }
    uint2 v = *(const uint2 *)(scale + at * 2);
    w[0] = bf16_to_f32(v.x & 0xffffu);
    w[1] = __uint_as_float(v.x & 0xffff0000u);
    w[2] = bf16_to_f32(v.y & 0xffffu);
    w[3] = __uint_as_float(v.y & 0xffff0000u);
}

/* One weight group of one stage: acc[pair of 8 rows][8 rows][output of the lane's four, in two operands A]. */
template <uint32_t TYPE, uint32_t GROUP>
static __device__ __forceinline__ void add_group(float acc[PAIRS][2][2][4], const stage<TYPE, GROUP> &s, uint32_t i,
                                                 uint32_t n_rows, uint32_t warp, uint32_t g, uint32_t t, uint32_t zero)
{
    constexpr uint32_t STEPS = GROUP / 32;
    uint32_t strip = warp * 2 + g / 4;
    frag a[STEPS][2];
    float w[4];
#pragma unroll
    for (uint32_t k = 0; k < STEPS; k++) load_a<TYPE, GROUP>(a[k], s.w[strip], i * STEPS + k, g, t, zero);
    scales_of<TYPE, GROUP>(w, s.w_scale[strip], i, g);
#pragma unroll
    for (uint32_t p = 0; p < PAIRS; p++) {
        if (p * 16 >= n_rows) break;
        int32_t c[2][2][4];
        uint2 b[2][STEPS];
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) load_b<STEPS>(b[j], s.x[0], p * 16 + j * 8 + g, i * GROUP, t);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            mma_s8_from(c[j / 2][j % 2], START, a[0][j % 2].a, b[j / 2][0].x, b[j / 2][0].y);
#pragma unroll
        for (uint32_t k = 1; k < STEPS; k++)
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) mma_s8(c[j / 2][j % 2], a[k][j % 2].a, b[j / 2][k].x, b[j / 2][k].y);
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            float2 x = *(const float2 *)&s.x_scale[p * 16 + j * 8 + 2 * t];
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                float *to = acc[p][j][h];
                const int32_t *from = c[j][h];
                to[0] = __fmaf_rn(to_float<TYPE>(from[0]), __fmul_rn(w[2 * h], x.x), to[0]);
                to[1] = __fmaf_rn(to_float<TYPE>(from[1]), __fmul_rn(w[2 * h], x.y), to[1]);
                to[2] = __fmaf_rn(to_float<TYPE>(from[2]), __fmul_rn(w[2 * h + 1], x.x), to[2]);
                to[3] = __fmaf_rn(to_float<TYPE>(from[3]), __fmul_rn(w[2 * h + 1], x.y), to[3]);
            }
        }
    }
}

/* A lane's outputs o .. o + 3 of its rows. What becomes of a sum beyond being stored, which is seldom, is done to what
 * lies there already, in a loop: unrolled for every sum it would be most of the kernel, and more than the cache of
 * instructions holds. */
static __device__ __forceinline__ void store_sums(const float acc[PAIRS][2][2][4], const cu_matmul &m, const cu_ref &r,
                                                  uint32_t p0, uint32_t n, uint32_t o, uint32_t t)
{
    if (o >= m.n_out) return;
    float *y = result_at(m, blockIdx.z, r.begin + p0 + 2 * t, o);
    const size_t stride = m.y_stride;
    const bool fours = o + 4 <= m.n_out && (uintptr_t)y % 16 == 0 && stride % 4 == 0;
#pragma unroll
    for (uint32_t i = 0; i < 4 * PAIRS; i++) {
        const float(*a)[4] = acc[i / 4][i / 2 % 2];
        const float v[4] = { a[0][i % 2], a[0][2 + i % 2], a[1][i % 2], a[1][2 + i % 2] };
        const uint32_t row = i / 2 * 8 + i % 2; /* and 2 t */
        if (row + 2 * t >= n) continue;
        if (fours)
            *(float4 *)(y + row * stride) = make_float4(v[0], v[1], v[2], v[3]);
        else
            for (uint32_t j = 0; j < 4 && o + j < m.n_out; j++) y[row * stride + j] = v[j];
    }
    if (is_finished(m)) return;
#pragma unroll 1
    for (uint32_t i = 0; i < 4 * PAIRS; i++) {
        const uint32_t row = i / 2 * 8 + i % 2;
        for (uint32_t j = 0; row + 2 * t < n && j < 4 && o + j < m.n_out; j++)
            y[row * stride + j] = finished(m, r, o + j, y[row * stride + j]);
    }
}

template <uint32_t TYPE, uint32_t GROUP>
static __global__ void __launch_bounds__(WARPS * 32, 3) many_kernel(cu_matmul m, uint32_t zero)
{
    typedef shape<TYPE, GROUP> S;
    CU_DYNAMIC_SHARED(uint8_t, shared);
    __shared__ uint32_t x_row[CU_TILE_ROWS];
    stage<TYPE, GROUP> *stages = (stage<TYPE, GROUP> *)shared;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, p0, n;
    cu_ref r;
    if (!find_tile(m, blockIdx.y, lane, &r, &p0, &n)) return;
    uint32_t n_in = t16_n_in(m.n_in), n_stages = ceil_div(n_in, 128), s0 = blockIdx.x * STRIPS;
    for (uint32_t i = threadIdx.x; i < CU_TILE_ROWS; i += blockDim.x) /* rows that are not there read row p0 */
        x_row[i] = input_row(m, r.begin + p0 + (i < n ? i : 0), blockIdx.z);
    __syncthreads();
    loader<TYPE, GROUP> from(m, r.w + (size_t)s0 * m.strip_bytes, x_row, n_in, ceil_div(m.n_out, 16) - s0, n);
    for (uint32_t st = 0; st < S::STAGES - 1; st++) {
        if (st < n_stages) from.fetch(stages[st]);
        cp_async_commit();
    }
    float acc[PAIRS][2][2][4] = {};
    for (uint32_t st = 0; st < n_stages; st++) {
        cp_async_wait<S::STAGES - 2>();
        __syncthreads(); /* this stage is there, and the one before is no longer read */
        if (st + S::STAGES - 1 < n_stages) from.fetch(stages[(st + S::STAGES - 1) % S::STAGES]);
        cp_async_commit();
#pragma unroll
        for (uint32_t i = 0; i < S::PER; i++)
            if (st * 128 + i * GROUP < n_in) add_group(acc, stages[st % S::STAGES], i, n, warp, g, t, zero);
    }
    store_sums(acc, m, r, p0, n, (s0 + warp * 2 + g / 4) * 16 + g % 4 * 4, t);
}

template <uint32_t TYPE, uint32_t GROUP> struct many {
    static void now(const cu_matmul *m, cu_stream s)
    {
        size_t bytes = sizeof(stage<TYPE, GROUP>) * shape<TYPE, GROUP>::STAGES;
        /* Where this fails, so does the launch. */
        (void)cudaFuncSetAttribute(many_kernel<TYPE, GROUP>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        uint32_t strips = (m->n_out + 15) / 16;
        dim3 grid((strips + STRIPS - 1) / STRIPS, tiles_of(m), m->refs ? 1 : m->n_mat);
        CU_LAUNCH((many_kernel<TYPE, GROUP>), grid, WARPS * 32, bytes, s)(*m, 0);
    }
};

void cu_launch_matmul_int(const cu_matmul *m, cu_stream s)
{
    if (!m->n_rows || !m->n_mat) return;
    if (m->n_rows <= FEW_ROWS)
        cu_launch_matmul_few(m, s);
    else if (m->wg_blocks && (m->refs ? m->n_pairs : (uint64_t)m->n_rows * m->n_mat) >= (uint64_t)m->wg_rows * m->n_mat)
        cu_launch_matmul_wg(m, s);
    else
        launch_shape<many>(m, s);
}
