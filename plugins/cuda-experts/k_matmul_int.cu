/* MATMUL of I8, I4 and MXFP4 weights with quantized activations, on the integer tensor cores, straight from T16.
 *
 * The products of one weight group are added exactly, whatever the order; then, groups in ascending order,
 * acc = fmaf((float)isum, wscale * xscale, acc). So both kernels here give the bits of every other kernel set.
 *
 * mma.m16n8k32: the 16 rows of a strip are A. Lane (g, t) = (lane / 4, lane % 4) holds rows g and g + 8; of the 32
 * columns it takes 8t .. 8t + 7 as its slots 4t .. 4t + 3 and 16 + 4t .. 16 + 4t + 3, in A and B alike. */
#include "matmul.cuh"

#define TILE_ROWS 64u /* activations of a block of the kernel for many */
#define FEW 8u        /* and of the one for few */
#define FEW_WARPS 8u
#define FEW_GROUPS 32u /* weight groups between two folds */
#define MANY_WARPS 8u
#define X_STRIDE 160u /* bytes of a row of activations in shared memory: no two of 4 rows share a bank */

struct frag {
    uint32_t a[4];
};

/* 0 1 2 3 4 6 8 12 and their negatives, for four codes in the low nibbles of bytes. */
static __device__ __forceinline__ uint32_t e2m1_twice(uint32_t codes)
{
    uint32_t sel = codes & 0x07070707u; /* one selector a nibble: bytes to nibbles */
    sel = (sel | sel >> 4) & 0x00ff00ffu;
    sel = (sel | sel >> 8) & 0xffffu;
    uint32_t pos = __byte_perm(0x03020100u, 0x0c080604u, sel), neg = __byte_perm(0xfdfeff00u, 0xf4f8fafcu, sel);
    uint32_t sign = (codes >> 3 & 0x01010101u) * 0xffu;
    return (neg & sign) | (pos & ~sign);
}

template <uint32_t TYPE>
static __device__ __forceinline__ frag load_weights(const uint8_t *strip, uint32_t k, uint32_t g, uint32_t t)
{
    const uint32_t *w = (const uint32_t *)strip;
    frag f;
    if (TYPE == KS_T_I8) {
        uint32_t at = (k / 4 + 2 * t) * 16 + g;
        f.a[0] = w[at];
        f.a[1] = w[at + 8];
        f.a[2] = w[at + 16];
        f.a[3] = w[at + 24];
        return f;
    }
    uint32_t at = (k / 8 + t) * 16 + g, lo = w[at], hi = w[at + 8];
    f.a[0] = lo & 0x0f0f0f0fu;
    f.a[1] = hi & 0x0f0f0f0fu;
    f.a[2] = lo >> 4 & 0x0f0f0f0fu;
    f.a[3] = hi >> 4 & 0x0f0f0f0fu;
    if (TYPE == KS_T_MXFP4)
        for (int i = 0; i < 4; i++) f.a[i] = e2m1_twice(f.a[i]);
    return f;
}

/* I4's nibbles are unsigned: the accumulators start at -8 times the sum of the activations instead. */
template <uint32_t TYPE>
static __device__ __forceinline__ void mma(int32_t c[4], const frag &f, uint32_t b0, uint32_t b1)
{
    if (TYPE == KS_T_I4)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
            : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
            : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(b0), "r"(b1));
}

template <uint32_t TYPE>
static __device__ __forceinline__ float weight_scale(const uint8_t *scales, uint32_t group, uint32_t row)
{
    if (TYPE == KS_T_MXFP4) return __fmul_rn(e8m0_to_f32(scales[group * 16 + row]), 0.5f);
    return bf16_to_f32(((const uint16_t *)scales)[group * 16 + row]);
}

/* Up to 8 rows: a block owns one strip, its warps share the groups. */
template <uint32_t TYPE> static __global__ void __launch_bounds__(FEW_WARPS * 32) few_kernel(cu_matmul m)
{
    __shared__ int32_t isum[FEW_GROUPS][16][FEW];
    uint32_t z = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    cu_ref r;
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * FEW;
    if (p0 >= r.n) return;
    uint32_t n = min(FEW, r.n - p0), n_in = t16_n_in(m.n_in), n_groups = ceil_div(n_in, m.group);
    const uint8_t *strip = r.w + blockIdx.x * m.strip_bytes;
    const uint8_t *scales = strip + (size_t)n_in * 16 * (TYPE == KS_T_I8 ? 8 : 4) / 8;
    /* This lane's column of B, and the two columns of its results. */
    const int8_t *xq = g < n ? m.act.q + (size_t)input_row(m, r.begin + p0 + g, z) * m.act.q_stride : nullptr;
    const int32_t *xs[2];
    for (uint32_t i = 0; i < 2; i++)
        xs[i] = TYPE == KS_T_I4 && 2 * t + i < n
                    ? m.act.sum + (size_t)input_row(m, r.begin + p0 + 2 * t + i, z) * m.act.sum_stride
                    : nullptr;
    /* The fold's output: thread (row, column). */
    uint32_t row = threadIdx.x / FEW, col = threadIdx.x % FEW;
    bool folds = threadIdx.x < 16 * FEW && col < n;
    const float *xscale =
        folds ? m.act.scale + (size_t)input_row(m, r.begin + p0 + col, z) * m.act.scale_stride : nullptr;
    float acc = 0;
    for (uint32_t g0 = 0; g0 < n_groups; g0 += FEW_GROUPS) {
        uint32_t g1 = min(g0 + FEW_GROUPS, n_groups);
        for (uint32_t i = g0 + warp; i < g1; i += FEW_WARPS) {
            uint32_t k0 = i * m.group, k1 = min(k0 + m.group, n_in);
            int32_t c[4] = { 0, 0, 0, 0 };
            for (uint32_t k = k0; k < k1; k += 32) {
                frag f = load_weights<TYPE>(strip, k, g, t);
                uint2 b = xq ? *(const uint2 *)(xq + k + 8 * t) : make_uint2(0, 0);
                mma<TYPE>(c, f, b.x, b.y);
                for (uint32_t j = 0; TYPE == KS_T_I4 && j < 2; j++) {
                    int32_t s8 = xs[j] ? 8 * xs[j][k / 32] : 0;
                    c[j] -= s8;
                    c[j + 2] -= s8;
                }
            }
            isum[i - g0][g][2 * t] = c[0];
            isum[i - g0][g][2 * t + 1] = c[1];
            isum[i - g0][g + 8][2 * t] = c[2];
            isum[i - g0][g + 8][2 * t + 1] = c[3];
        }
        __syncthreads();
        for (uint32_t i = g0; folds && i < g1; i++)
            acc = __fmaf_rn(__int2float_rn(isum[i - g0][row][col]),
                            __fmul_rn(weight_scale<TYPE>(scales, i, row), xscale[i * m.group / 128]), acc);
        __syncthreads();
    }
    if (folds && blockIdx.x * 16 + row < m.n_out) store(m, r, z, r.begin + p0 + col, blockIdx.x * 16 + row, acc);
}

/* Many rows: a block owns 8 strips, one a warp, and 64 rows, whose activations go through shared memory 128 columns
 * at a time. */
template <uint32_t TYPE, uint32_t GROUP>
static __global__ void __launch_bounds__(MANY_WARPS * 32) many_kernel(cu_matmul m)
{
    __shared__ __align__(16) uint8_t x[2][TILE_ROWS][X_STRIDE];
    __shared__ float xscale[2][TILE_ROWS];
    __shared__ int32_t xsum[2][TILE_ROWS][4];
    __shared__ uint32_t xrow[TILE_ROWS];
    constexpr uint32_t TILES = TILE_ROWS / 8;
    uint32_t z = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    cu_ref r;
    if (!find_matrix(m, z, &r)) return;
    uint32_t p0 = blockIdx.y * TILE_ROWS;
    if (p0 >= r.n) return;
    uint32_t n = min(TILE_ROWS, r.n - p0), n_in = t16_n_in(m.n_in), n_strips = ceil_div(m.n_out, 16);
    uint32_t s = blockIdx.x * MANY_WARPS + warp;
    bool works = s < n_strips;
    const uint8_t *strip = r.w + (size_t)(works ? s : 0) * m.strip_bytes;
    const uint8_t *scales = strip + (size_t)n_in * 16 * (TYPE == KS_T_I8 ? 8 : 4) / 8;
    for (uint32_t i = threadIdx.x; i < TILE_ROWS; i += blockDim.x) /* rows that are not there read row p0 */
        xrow[i] = input_row(m, r.begin + p0 + (i < n ? i : 0), z);
    __syncthreads();
    float acc[TILES][4] = {};
    uint32_t n_stages = ceil_div(n_in, 128);
    auto fetch = [&](uint32_t stage, uint32_t buf) {
        for (uint32_t i = threadIdx.x; i < TILE_ROWS * 8; i += blockDim.x) {
            uint32_t row = i / 8, k = stage * 128 + i % 8 * 16;
            const int8_t *from = m.act.q + (size_t)xrow[row] * m.act.q_stride + k;
            uint32_t to = (uint32_t)__cvta_generic_to_shared(&x[buf][row][i % 8 * 16]),
                     bytes = k < m.act.q_stride ? 16 : 0;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(bytes ? from : m.act.q),
                         "r"(bytes));
        }
        asm volatile("cp.async.commit_group;");
        for (uint32_t i = threadIdx.x; i < TILE_ROWS; i += blockDim.x)
            xscale[buf][i] = m.act.scale[(size_t)xrow[i] * m.act.scale_stride + stage];
        if (TYPE == KS_T_I4)
            for (uint32_t i = threadIdx.x; i < TILE_ROWS * 4; i += blockDim.x) {
                uint32_t at = stage * 4 + i % 4;
                xsum[buf][i / 4][i % 4] =
                    at < m.act.sum_stride ? 8 * m.act.sum[(size_t)xrow[i / 4] * m.act.sum_stride + at] : 0;
            }
    };
    fetch(0, 0);
    for (uint32_t st = 0; st < n_stages; st++) {
        uint32_t buf = st % 2;
        asm volatile("cp.async.wait_group 0;");
        __syncthreads(); /* this stage is there, the other buffer is no longer read */
        if (st + 1 < n_stages) fetch(st + 1, buf ^ 1);
        if (!works) continue;
        for (uint32_t k0 = 0; k0 < 128 && st * 128 + k0 < n_in; k0 += GROUP) {
            int32_t c[TILES][4] = {};
#pragma unroll
            for (uint32_t kk = 0; kk < GROUP; kk += 32) {
                uint32_t k = k0 + kk;
                if (st * 128 + k >= n_in) break;
                frag f = load_weights<TYPE>(strip, st * 128 + k, g, t);
#pragma unroll
                for (uint32_t j = 0; j < TILES; j++) {
                    uint2 b = *(const uint2 *)&x[buf][j * 8 + g][k + 8 * t];
                    mma<TYPE>(c[j], f, b.x, b.y);
                }
            }
            uint32_t group = (st * 128 + k0) / GROUP;
            float w0 = weight_scale<TYPE>(scales, group, g), w1 = weight_scale<TYPE>(scales, group, g + 8);
#pragma unroll
            for (uint32_t j = 0; j < TILES; j++) {
#pragma unroll
                for (uint32_t i = 0; i < 2; i++) {
                    uint32_t col = j * 8 + 2 * t + i;
                    int32_t off = 0;
                    if (TYPE == KS_T_I4)
                        for (uint32_t q = k0 / 32; q < (k0 + GROUP) / 32; q++) off += xsum[buf][col][q];
                    float xs = xscale[buf][col];
                    acc[j][i] = __fmaf_rn(__int2float_rn(c[j][i] - off), __fmul_rn(w0, xs), acc[j][i]);
                    acc[j][i + 2] = __fmaf_rn(__int2float_rn(c[j][i + 2] - off), __fmul_rn(w1, xs), acc[j][i + 2]);
                }
            }
        }
    }
    if (!works) return;
#pragma unroll
    for (uint32_t j = 0; j < TILES; j++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t col = j * 8 + 2 * t + i % 2, o = s * 16 + g + (i / 2) * 8;
            if (col < n && o < m.n_out) store(m, r, z, r.begin + p0 + col, o, acc[j][i]);
        }
}

template <uint32_t TYPE> static void launch(const cu_matmul *m, cu_stream s)
{
    uint32_t strips = (m->n_out + 15) / 16;
    if (m->n_rows <= 2 * FEW) {
        few_kernel<TYPE><<<dim3(strips, (m->n_rows + FEW - 1) / FEW, m->n_mat), FEW_WARPS * 32, 0, s>>>(*m);
        return;
    }
    dim3 grid((strips + MANY_WARPS - 1) / MANY_WARPS, (m->n_rows + TILE_ROWS - 1) / TILE_ROWS, m->n_mat);
    if (m->group == 128)
        many_kernel<TYPE, 128><<<grid, MANY_WARPS * 32, 0, s>>>(*m);
    else if (m->group == 64)
        many_kernel<TYPE, 64><<<grid, MANY_WARPS * 32, 0, s>>>(*m);
    else
        many_kernel<TYPE, 32><<<grid, MANY_WARPS * 32, 0, s>>>(*m);
}

void cu_launch_matmul_int(const cu_matmul *m, cu_stream s)
{
    if (!m->n_rows || !m->n_mat) return;
    if (m->type == KS_T_I8)
        launch<KS_T_I8>(m, s);
    else if (m->type == KS_T_I4)
        launch<KS_T_I4>(m, s);
    else
        launch<KS_T_MXFP4>(m, s);
}
