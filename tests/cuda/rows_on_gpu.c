/* See rows_on_gpu.h. Device memory is one block, given out from its start for each call. */
#include "rows_on_gpu.h"

#include "kernels.h"
#include "kernels/rows_under_test.h"
#include "ref/ref.h"
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdlib.h>

#define ARENA_BYTES ((size_t)256 << 20)

static uint8_t *arena;
static size_t used;
static cudaError_t error;
static int error_line;
static uint32_t wg_blocks; /* of products */

int gpu_rows_open(char *why, size_t cap)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc == cudaSuccess && n == 0) rc = cudaErrorNoDevice;
    if (rc == cudaSuccess) rc = cudaMalloc((void **)&arena, ARENA_BYTES);
    if (rc == cudaSuccess) return 0;
    (void)snprintf(why, cap, "%s", cudaGetErrorString(rc));
    return -1;
}

int gpu_rows_by_warpgroups(uint32_t blocks)
{
    if (blocks && !cu_has_warpgroups()) return -1;
    wg_blocks = blocks;
    return 0;
}

void gpu_rows_close(void)
{
    (void)cudaFree(arena);
    arena = NULL;
}

const char *gpu_rows_error(void)
{
    static char text[128];
    if (error == cudaSuccess) return "";
    (void)snprintf(text, sizeof text, "%s in line %d of rows_on_gpu.c", cudaGetErrorString(error), error_line);
    error = cudaSuccess; /* the next row starts anew */
    return text;
}

static void keep_at(cudaError_t rc, int line)
{
    if (error != cudaSuccess || rc == cudaSuccess) return;
    error = rc;
    error_line = line;
}
#define keep(rc) keep_at(rc, __LINE__)

static void *take(size_t bytes)
{
    void *p = arena + used;
    used += (bytes + 255) & ~(size_t)255;
    if (used > ARENA_BYTES) {
        keep(cudaErrorMemoryAllocation);
        used = 0;
        return arena;
    }
    return p;
}

static void up(void *dst, const void *src, size_t bytes)
{
    keep(cudaMemcpy(dst, src, bytes, cudaMemcpyHostToDevice));
}

static void down(void *dst, const void *src, size_t bytes)
{
    keep(cudaMemcpy(dst, src, bytes, cudaMemcpyDeviceToHost));
}

static void *taken(const void *src, size_t bytes)
{
    void *p = take(bytes);
    if (src) up(p, src, bytes);
    return src ? p : NULL;
}

/* Rows [0, n) of host memory with a stride, side by side on the device. */
static void *rows_up(const void *src, uint32_t n, size_t stride_bytes, size_t bytes)
{
    uint8_t *p = take(n * bytes);
    for (uint32_t r = 0; r < n; r++) up(p + r * bytes, (const uint8_t *)src + r * stride_bytes, bytes);
    return p;
}

static void rows_down(void *dst, size_t stride_bytes, const void *src, size_t src_stride, uint32_t begin, uint32_t end,
                      size_t bytes)
{
    for (uint32_t r = begin; r < end; r++)
        down((uint8_t *)dst + r * stride_bytes, (const uint8_t *)src + r * src_stride, bytes);
}

static void finish(void)
{
    keep(cudaDeviceSynchronize());
    keep(cudaGetLastError());
}

static void quant(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_quant_args *a = args;
    uint32_t n = end - begin, n_sum = ks_t16_n_in(a->n_in) / 32, n_scale = (a->n_in + 127) / 128;
    (void)scratch;
    used = 0;
    float *x = rows_up(a->x + begin * a->x_stride, n, a->x_stride * 4, (size_t)a->n_in * 4);
    cu_act out = { .q_stride = a->out->q_stride, .scale_stride = n_scale, .sum_stride = n_sum };
    out.q = take((size_t)n * out.q_stride);
    out.scale = take((size_t)n * n_scale * 4);
    out.sum = take((size_t)n * n_sum * 4);
    cu_launch_quant(x, a->n_in, n, a->n_in, out, NULL);
    finish();
    for (uint32_t r = 0; r < n; r++) {
        size_t to = begin + r;
        down(a->out->q + to * a->out->q_stride, out.q + (size_t)r * out.q_stride, out.q_stride);
        down(a->out->scale + to * a->out->scale_stride, out.scale + (size_t)r * n_scale, (size_t)n_scale * 4);
        down(a->out->sum + to * a->out->sum_stride, out.sum + (size_t)r * n_sum, (size_t)n_sum * 4);
    }
}

static void matmul(uint32_t type, const ks_matmul_args *a, uint32_t begin, uint32_t end)
{
    if (begin >= end) return;
    uint32_t n_rows = 0, o0 = begin * 16, o1 = end * 16 < a->n_out ? end * 16 : a->n_out;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        uint32_t row = a->rows ? a->rows[r] : r;
        n_rows = row + 1 > n_rows ? row + 1 : n_rows;
    }
    used = 0;
    cu_matmul m = { .type = type,
                    .n_in = a->n_in,
                    .n_out = o1 - o0,
                    .group = a->group,
                    .n_mat = 1,
                    .n_rows = a->n_rows,
                    .strip_bytes = a->strip_bytes,
                    .x_mul = 1,
                    .y_stride = o1 - o0,
                    .wg_blocks = wg_blocks,
                    .scale = 1 };
    m.w = taken((const uint8_t *)a->w + begin * a->strip_bytes, (end - begin) * a->strip_bytes);
    m.rows = taken(a->rows, (size_t)a->n_rows * 4);
    m.bias = taken(a->bias ? a->bias + o0 : NULL, (size_t)(o1 - o0) * 4);
    m.y = take((size_t)a->n_rows * (o1 - o0) * 4);
    if (a->act) {
        uint32_t n_sum = ks_t16_n_in(a->n_in) / 32, n_scale = (a->n_in + 127) / 128;
        m.act = (cu_act) { .q_stride = a->act->q_stride, .scale_stride = n_scale, .sum_stride = n_sum };
        m.act.q = rows_up(a->act->q, n_rows, a->act->q_stride, a->act->q_stride);
        m.act.scale = rows_up(a->act->scale, n_rows, (size_t)a->act->scale_stride * 4, (size_t)n_scale * 4);
        m.act.sum = rows_up(a->act->sum, n_rows, (size_t)a->act->sum_stride * 4, (size_t)n_sum * 4);
    } else {
        m.x = rows_up(a->x, n_rows, a->x_stride * 4, (size_t)a->n_in * 4);
        m.x_stride = a->n_in;
    }
    cu_launch_matmul(&m, NULL);
    finish();
    rows_down(a->y + o0, a->y_stride * 4, m.y, (size_t)(o1 - o0) * 4, 0, a->n_rows, (size_t)(o1 - o0) * 4);
}

#define MATMUL(TYPE)                                                                         \
    static void matmul_##TYPE(const void *args, uint32_t begin, uint32_t end, void *scratch) \
    {                                                                                        \
        (void)scratch;                                                                       \
        matmul(KS_T_##TYPE, args, begin, end);                                               \
    }
MATMUL(F32)
MATMUL(BF16)
MATMUL(I8)
MATMUL(I4)
MATMUL(MXFP4)
#undef MATMUL

static void norm(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_norm_args *a = args;
    uint32_t n = end - begin;
    (void)scratch;
    used = 0;
    cu_norm m = { .kind = a->kind,
                  .n_rows = n,
                  .n = a->n,
                  .width = a->width,
                  .w_width = a->w_width,
                  .eps = a->eps,
                  .w_offset = a->w_offset,
                  .x = { rows_up(a->x + begin * a->x_stride, n, a->x_stride * 4, (size_t)a->n * 4), a->n } };
    m.y = (cu_reg) { take((size_t)n * a->n * 4), a->n };
    m.weight = taken(a->weight, (size_t)a->w_width * 4);
    m.bias = taken(a->bias, (size_t)a->w_width * 4);
    cu_launch_norm(&m, NULL);
    finish();
    for (uint32_t r = 0; r < n; r++) down(a->y + (begin + r) * a->y_stride, m.y.p + (size_t)r * a->n, (size_t)a->n * 4);
}

static void rope(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_rope_args *a = args;
    uint32_t n = end - begin, width = a->n_heads * a->head_dim;
    (void)scratch;
    used = 0;
    cu_rope m = { .kind = a->kind,
                  .n_rows = n,
                  .n_heads = a->n_heads,
                  .head_dim = a->head_dim,
                  .rot_dim = a->rot_dim,
                  .rot_begin = a->rot_begin,
                  .mscale = a->mscale,
                  .inv_freq = taken(a->inv_freq, (size_t)a->rot_dim / 2 * 4),
                  .pos = taken(a->pos + begin, (size_t)n * 4),
                  .x = { rows_up(a->x + begin * a->x_stride, n, a->x_stride * 4, (size_t)width * 4), width } };
    cu_launch_rope(&m, NULL);
    finish();
    for (uint32_t r = 0; r < n; r++)
        down(a->x + (begin + r) * a->x_stride, m.x.p + (size_t)r * width, (size_t)width * 4);
}

static void glu(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_glu_args *a = args;
    uint32_t n = end - begin, width = 2 * ((a->n + 15) / 16 * 16);
    (void)scratch;
    used = 0;
    cu_glu m = { .kind = a->kind,
                 .n_rows = n,
                 .n = a->n,
                 .limit = a->limit,
                 .alpha = a->alpha,
                 .x = { rows_up(a->x + begin * a->x_stride, n, a->x_stride * 4, (size_t)width * 4), width } };
    m.y = (cu_reg) { take((size_t)n * a->n * 4), a->n };
    cu_launch_glu(&m, NULL);
    finish();
    for (uint32_t r = 0; r < n; r++) down(a->y + (begin + r) * a->y_stride, m.y.p + (size_t)r * a->n, (size_t)a->n * 4);
}

/* The pages that the rows may read, visible keys only, in new pages 0, 1, ... */
static uint8_t *pages_up(const ks_attn_args *a, const void *base, size_t page_bytes, uint32_t stride, uint32_t width,
                         uint32_t elem)
{
    uint32_t n_keys = a->pos + a->n_rows, n_pages = (n_keys + a->page_tok - 1) / a->page_tok;
    size_t to_page = (size_t)a->page_tok * width * elem;
    uint8_t *p = take(n_pages * to_page);
    keep(cudaMemset(p, 0xff, n_pages * to_page)); /* NaN in every format */
    for (uint32_t j = 0; j < n_keys; j++)
        up(p + j / a->page_tok * to_page + (size_t)(j % a->page_tok) * width * elem,
           (const uint8_t *)base + a->pages[j / a->page_tok] * page_bytes + (size_t)(j % a->page_tok) * stride * elem,
           (size_t)width * elem);
    return p;
}

/* Spans side by side and one after the other take turns: they must not differ. */
static void attn(uint32_t type, const ks_attn_args *a, uint32_t begin, uint32_t end)
{
    static uint32_t turn;
    uint32_t group = a->n_heads / a->n_kv_heads, elem = ks_type_bits(type) / 8, rows = a->sel ? 1 : 16 / group;
    uint32_t n_keys = a->pos + a->n_rows, n_pages = (n_keys + a->page_tok - 1) / a->page_tok, n_tiles = 0;
    uint32_t qw = a->n_heads * a->d_k, ow = a->n_heads * a->d_v, kw = a->n_kv_heads * a->d_k,
             vw = a->n_kv_heads * a->d_v;
    bool inside = a->v == a->k; /* values inside the keys' rows: their stride is the keys' */
    cu_tile tiles[1024];
    uint32_t pages[4096];
    used = 0;
    rows = rows ? rows : 1;
    for (uint32_t r = 0; r < a->n_rows; r += rows)
        tiles[n_tiles++] = (cu_tile) { 0, r, r + rows < a->n_rows ? rows : a->n_rows - r };
    for (uint32_t i = 0; i < n_pages; i++) pages[i] = i;
    cu_seq seq = { .n_rows = a->n_rows, .pos = a->pos };
    cu_attn m = { .n_tiles = n_tiles,
                  .n_heads = a->n_heads,
                  .n_kv_heads = a->n_kv_heads,
                  .d_k = a->d_k,
                  .d_v = a->d_v,
                  .window = a->window,
                  .chunk = a->chunk,
                  .n_spans = turn++ % 2 && !a->sel ? (n_keys - 1) / KS_ATTN_SPAN + 1 : 0,
                  .scale = a->scale,
                  .softcap = a->softcap,
                  .tiles = taken(tiles, n_tiles * sizeof *tiles),
                  .seqs = taken(&seq, sizeof seq),
                  .pages = taken(pages, n_pages * 4),
                  .q_head = a->d_k,
                  .o_head = a->d_v,
                  .n_rows = a->n_rows,
                  .shared_max = 227 * 1024,
                  .n_sms = turn % 4 < 2 ? 0 : 1000 };
    m.q = (cu_reg) { rows_up(a->q, a->n_rows, a->q_stride * 4, (size_t)qw * 4), qw };
    m.o = (cu_reg) { take((size_t)a->n_rows * ow * 4), ow };
    uint32_t ks = inside ? a->k_stride : kw, vs = inside ? a->k_stride : vw;
    m.k = (cu_cache) { pages_up(a, a->k, a->k_page_bytes, a->k_stride, ks, elem),
                       (size_t)a->page_tok * ks * elem,
                       type,
                       ks,
                       a->page_tok,
                       0 };
    m.v = m.k;
    if (!inside)
        m.v = (cu_cache) { pages_up(a, a->v, a->v_page_bytes, a->v_stride, vs, elem),
                           (size_t)a->page_tok * vs * elem,
                           type,
                           vs,
                           a->page_tok,
                           0 };
    m.sinks = taken(a->sinks, (size_t)a->n_heads * 4);
    if (a->sel) {
        m.sel_stride = a->sel_stride;
        m.n_sel = taken(a->n_sel, (size_t)a->n_rows * 4);
        uint32_t *sel = take((size_t)a->n_rows * a->sel_stride * 4);
        for (uint32_t r = 0; r < a->n_rows; r++)
            up(sel + (size_t)r * a->sel_stride, a->sel + (size_t)r * a->sel_stride, (size_t)a->n_sel[r] * 4);
        m.sel = sel;
    }
    if (m.n_spans) m.part = take((size_t)a->n_rows * a->n_heads * m.n_spans * (a->d_v + 2) * 4);
    keep((cudaError_t)cu_launch_attn(&m, NULL));
    finish();
    for (uint32_t u = begin; u < end; u++) {
        size_t at = (size_t)(u % a->n_kv_heads) * group * a->d_v, row = u / a->n_kv_heads;
        down(a->o + row * a->o_stride + at, m.o.p + row * ow + at, (size_t)group * a->d_v * 4);
    }
}

/* Heads wider than the kernel's registers: the device leaves such an op to the CPU (can_attend), and so do these rows.
 */
static bool is_left_to_cpu(uint32_t type, const ks_attn_args *a, uint32_t begin, uint32_t end)
{
    if (a->d_k <= CU_ATTN_MAX_D && a->d_v <= CU_ATTN_MAX_D) return false;
    find_row(&ks_ref_plugin, KS_K_ATTN, type)->fn(a, begin, end, NULL);
    return true;
}

#define ATTN(TYPE)                                                                               \
    static void attn_##TYPE(const void *args, uint32_t begin, uint32_t end, void *scratch)       \
    {                                                                                            \
        (void)scratch;                                                                           \
        if (!is_left_to_cpu(KS_T_##TYPE, args, begin, end)) attn(KS_T_##TYPE, args, begin, end); \
    }
ATTN(F32)
ATTN(BF16)
ATTN(F8E4M3)
#undef ATTN

static void store(uint32_t type, const ks_store_args *a, uint32_t begin, uint32_t end)
{
    uint32_t n = end - begin, *zero;
    size_t bytes = (size_t)a->n * ks_type_bits(type) / 8;
    cu_seq seq = { .n_rows = n }; /* row r is position r, and a page holds one position */
    used = 0;
    zero = calloc(n + 1, sizeof *zero);
    uint32_t *pages = calloc(n + 1, sizeof *pages);
    for (uint32_t r = 0; pages && r < n; r++) pages[r] = r;
    cu_append m = { .x = { rows_up(a->x + begin * a->x_stride, n, a->x_stride * 4, (size_t)a->n * 4), a->n },
                    .cache = { take(n * bytes), bytes, type, a->n, 1, 0 },
                    .n_rows = n,
                    .n = a->n,
                    .row_seq = taken(zero, (size_t)(n + 1) * 4),
                    .seqs = taken(&seq, sizeof seq),
                    .pages = taken(pages, (size_t)(n + 1) * 4) };
    cu_launch_append(&m, NULL);
    finish();
    for (uint32_t r = 0; r < n; r++) {
        uint32_t pos = a->pos + begin + r;
        size_t at = ((size_t)(pos % a->page_tok) * a->y_stride + a->col) * (ks_type_bits(type) / 8);
        down((uint8_t *)a->y + a->pages[pos / a->page_tok] * a->page_bytes + at, m.cache.p + r * bytes, bytes);
    }
    free(zero);
    free(pages);
}

#define STORE(TYPE)                                                                         \
    static void store_##TYPE(const void *args, uint32_t begin, uint32_t end, void *scratch) \
    {                                                                                       \
        (void)scratch;                                                                      \
        store(KS_T_##TYPE, args, begin, end);                                               \
    }
STORE(F32)
STORE(BF16)
STORE(F8E4M3)
#undef STORE

static void mul(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_mul_args *a = args;
    uint32_t n = end - begin;
    (void)scratch;
    used = 0;
    cu_reg x = { rows_up(a->x + begin * a->x_stride, n, a->x_stride * 4, (size_t)a->n * 4), a->n };
    cu_reg y = { rows_up(a->y + begin * a->y_stride, n, a->y_stride * 4, (size_t)a->n_y * 4), a->n_y };
    cu_launch_mul(x, y, x, (int32_t)a->act, n, a->n, a->n_y, NULL);
    finish();
    rows_down(a->z + begin * a->z_stride, a->z_stride * 4, x.p, (size_t)a->n * 4, 0, n, (size_t)a->n * 4);
}

/* All heads are computed, those asked for go back. */
static void delta(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_delta_args *a = args;
    size_t head = ks_delta_floats(a->d_k, a->d_v), n_q = (size_t)a->n_k_heads * a->d_k, n_v = a->n_v_heads;
    cu_seq seq = { .n_rows = a->n_rows, .pos = a->pos };
    (void)scratch;
    used = 0;
    cu_delta m = { .n_seqs = 1,
                   .n_k_heads = a->n_k_heads,
                   .n_v_heads = a->n_v_heads,
                   .d_k = a->d_k,
                   .d_v = a->d_v,
                   .most_rows = a->n_rows,
                   .scale = a->scale,
                   .q = { rows_up(a->q, a->n_rows, a->q_stride * 4, n_q * 4), n_q },
                   .k = { rows_up(a->k, a->n_rows, a->k_stride * 4, n_q * 4), n_q },
                   .v = { rows_up(a->v, a->n_rows, a->v_stride * 4, n_v * a->d_v * 4), n_v * a->d_v },
                   .b = { rows_up(a->b, a->n_rows, a->b_stride * 4, n_v * 4), n_v },
                   .a = { rows_up(a->a, a->n_rows, a->a_stride * 4, n_v * 4), n_v },
                   .neg_a = taken(a->neg_a, n_v * 4),
                   .dt = taken(a->dt, n_v * 4),
                   .state = taken(a->state, n_v * head * 4),
                   .state_stride = n_v * head,
                   .head_stride = head,
                   .seqs = taken(&seq, sizeof seq) };
    m.o = (cu_reg) { take(a->n_rows * n_v * a->d_v * 4), n_v * a->d_v };
    keep((cudaError_t)cu_launch_delta(&m, NULL));
    finish();
    down(a->state + begin * head, m.state + begin * head, (end - begin) * head * 4);
    for (uint32_t r = 0; r < a->n_rows; r++)
        down(a->o + r * a->o_stride + (size_t)begin * a->d_v, m.o.p + r * m.o.stride + (size_t)begin * a->d_v,
             (size_t)(end - begin) * a->d_v * 4);
}

static const ks_kernel rows[] = {
    { .op = KS_K_QUANT, .xtype = KS_T_F32, .name = "quant_gpu", .fn = quant },
    { .op = KS_K_MATMUL,
      .wtype = KS_T_F32,
      .xtype = KS_T_F32,
      .layout = KS_LAYOUT_T16,
      .name = "f32_gpu",
      .fn = matmul_F32 },
    { .op = KS_K_MATMUL,
      .wtype = KS_T_BF16,
      .xtype = KS_T_F32,
      .layout = KS_LAYOUT_T16,
      .name = "bf16_gpu",
      .fn = matmul_BF16 },
    { .op = KS_K_MATMUL,
      .wtype = KS_T_I8,
      .xtype = KS_T_Q8,
      .layout = KS_LAYOUT_T16,
      .name = "i8_gpu",
      .fn = matmul_I8 },
    { .op = KS_K_MATMUL,
      .wtype = KS_T_I4,
      .xtype = KS_T_Q8,
      .layout = KS_LAYOUT_T16,
      .name = "i4_gpu",
      .fn = matmul_I4 },
    { .op = KS_K_MATMUL,
      .wtype = KS_T_MXFP4,
      .xtype = KS_T_Q8,
      .layout = KS_LAYOUT_T16,
      .name = "mxfp4_gpu",
      .fn = matmul_MXFP4 },
    { .op = KS_K_NORM, .xtype = KS_T_F32, .name = "norm_gpu", .fn = norm },
    { .op = KS_K_ROPE, .xtype = KS_T_F32, .name = "rope_gpu", .fn = rope },
    { .op = KS_K_MUL, .xtype = KS_T_F32, .name = "mul_gpu", .fn = mul },
    { .op = KS_K_DELTA, .xtype = KS_T_F32, .name = "delta_gpu", .fn = delta },
    { .op = KS_K_GLU, .xtype = KS_T_F32, .name = "glu_gpu", .fn = glu },
    { .op = KS_K_ATTN, .wtype = KS_T_F32, .xtype = KS_T_F32, .name = "attn_f32_gpu", .fn = attn_F32 },
    { .op = KS_K_ATTN, .wtype = KS_T_BF16, .xtype = KS_T_F32, .name = "attn_bf16_gpu", .fn = attn_BF16 },
    { .op = KS_K_STORE, .wtype = KS_T_F32, .xtype = KS_T_F32, .name = "store_f32_gpu", .fn = store_F32 },
    { .op = KS_K_STORE, .wtype = KS_T_BF16, .xtype = KS_T_F32, .name = "store_bf16_gpu", .fn = store_BF16 },
    { .op = KS_K_STORE, .wtype = KS_T_F8E4M3, .xtype = KS_T_F32, .name = "store_f8e4m3_gpu", .fn = store_F8E4M3 },
    { .op = KS_K_ATTN, .wtype = KS_T_F8E4M3, .xtype = KS_T_F32, .name = "attn_f8e4m3_gpu", .fn = attn_F8E4M3 },
};

const ks_kernel *gpu_row(uint32_t op, uint32_t wtype)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].op == op && rows[i].wtype == wtype) return &rows[i];
    return NULL;
}
