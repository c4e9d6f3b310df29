/* See rows_on_gpu.h. Device memory is one block, given out from its start for each call. */
#include "rows_on_gpu.h"

#include "kernels.h"
#include <cuda_runtime_api.h>
#include <stdbool.h>

#define ARENA_BYTES ((size_t)256 << 20)

static uint8_t *arena;
static size_t used;
static cudaError_t error;

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

void gpu_rows_close(void)
{
    (void)cudaFree(arena);
    arena = NULL;
}

const char *gpu_rows_error(void)
{
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

static void keep(cudaError_t rc)
{
    if (error == cudaSuccess && rc != cudaSuccess) error = rc;
}

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
};

const ks_kernel *gpu_row(uint32_t op, uint32_t wtype)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].op == op && rows[i].wtype == wtype) return &rows[i];
    return NULL;
}
