/* What the matrix products share: which matrix, which rows, and what happens to a finished sum. */
#ifndef CU_MATMUL_CUH
#define CU_MATMUL_CUH

#include "common.cuh"

extern "C" void cu_launch_matmul_int(const cu_matmul *m, cu_stream s);
extern "C" void cu_launch_matmul_few(const cu_matmul *m, cu_stream s); /* at most 16 rows a matrix */
extern "C" void cu_launch_matmul_wg(const cu_matmul *m, cu_stream s);  /* where m->wg_blocks is not 0 */

static __device__ __forceinline__ uint32_t t16_n_in(uint32_t n_in)
{
    return (n_in + 31u) & ~31u;
}

/* The matrix of this block: false: nothing to do. */
static __device__ __forceinline__ bool find_matrix(const cu_matmul &m, uint32_t z, cu_ref *ret)
{
    if (m.refs) {
        /* volatile: past the first-level cache, since a kernel may ask before wait_for_stream() */
        if (m.n_refs && z >= *(const volatile uint32_t *)m.n_refs) return false;
        const volatile cu_ref &r = m.refs[z];
        *ret = cu_ref { r.w, r.mat, r.begin, r.n, r.tile };
        ret->w += m.w_off;
        return true;
    }
    ret->w = m.w + m.w_off + z * m.w_stride;
    ret->mat = z;
    ret->begin = 0;
    ret->n = m.n_rows;
    return true;
}

/* Tiles of CU_TILE_ROWS rows in a launch, at most; without refs, of each matrix. */
static inline uint32_t tiles_of(const cu_matmul *m)
{
    uint32_t tiles = cu_tiles(m->n_rows), most = m->n_pairs / CU_TILE_ROWS + m->n_mat; /* the last may be small */
    if (!m->refs) return tiles;
    return most < tiles * m->n_mat ? most : tiles * m->n_mat;
}

/* The tile of a block: its matrix, and rows [*p0, *p0 + *n) of it. An expert's rows are split evenly. */
static __device__ __forceinline__ bool find_tile(const cu_matmul &m, uint32_t tile, uint32_t lane, cu_ref *r,
                                                 uint32_t *p0, uint32_t *n)
{
    uint32_t z = blockIdx.z;
    if (m.refs) {
        uint32_t n_refs = m.n_refs ? *m.n_refs : m.n_mat, below = 0;
        for (uint32_t i = lane; i < n_refs + lane; i += 32)
            below += __popc(__ballot_sync(~0u, i < n_refs && m.refs[i].tile <= tile));
        if (!below) return false;
        z = below - 1;
    }
    if (!find_matrix(m, z, r)) return false;
    if (m.refs) tile -= r->tile;
    uint32_t n_tiles = ceil_div(r->n, CU_TILE_ROWS);
    if (tile >= n_tiles) return false;
    uint32_t per = (ceil_div(r->n, n_tiles) + 15u) & ~15u;
    *p0 = tile * per;
    *n = *p0 < r->n ? min(per, r->n - *p0) : 0;
    return *n != 0;
}

static __device__ __forceinline__ uint32_t input_row(const cu_matmul &m, uint32_t p, uint32_t z)
{
    return (m.rows ? m.rows[p] : p) * m.x_mul + (m.refs ? 0 : z * m.x_add);
}

/* What becomes of the sum of output o. */
static __device__ __forceinline__ float finished(const cu_matmul &m, const cu_ref &r, uint32_t o, float v)
{
    if (m.bias) v = __fadd_rn(v, m.bias[r.mat * m.bias_stride + o]);
    v = __fmul_rn(v, m.scale);
    return m.softcap != 0 ? __fmul_rn(m.softcap, tanhf(__fdiv_rn(v, m.softcap))) : v;
}

/* Nothing becomes of it. */
static __device__ __forceinline__ bool is_finished(const cu_matmul &m)
{
    return !m.bias && m.scale == 1 && m.softcap == 0;
}

static __device__ __forceinline__ float *result_at(const cu_matmul &m, uint32_t z, uint32_t p, uint32_t o)
{
    return m.y + (size_t)p * m.y_stride + (m.refs ? 0 : z * m.y_mat) + o;
}

static __device__ __forceinline__ void store(const cu_matmul &m, const cu_ref &r, uint32_t z, uint32_t p, uint32_t o,
                                             float v)
{
    *result_at(m, z, p, o) = finished(m, r, o, v);
}

/* Outputs o .. o + 3, as far as there are so many. */
static __device__ __forceinline__ void store_4(const cu_matmul &m, const cu_ref &r, uint32_t z, uint32_t p, uint32_t o,
                                               const float v[4])
{
    if (o >= m.n_out) return;
    float *y = result_at(m, z, p, o);
    if (o + 4 <= m.n_out && (uintptr_t)y % 16 == 0) {
        *(float4 *)y = make_float4(finished(m, r, o, v[0]), finished(m, r, o + 1, v[1]), finished(m, r, o + 2, v[2]),
                                   finished(m, r, o + 3, v[3]));
        return;
    }
    for (uint32_t i = 0; i < 4 && o + i < m.n_out; i++) y[i] = finished(m, r, o + i, v[i]);
}

#endif
