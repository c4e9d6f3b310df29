/* Not a test: rates of the matrix products at the shapes of real models, beside the memory rate of the same run. */
#include "kernels.h"
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <krasis/types.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct shape {
    const char *what;
    uint32_t type, n_in, n_out, n_mat, rows; /* rows of each matrix */
} shape;

#define BYTES ((size_t)8 << 30)

static uint8_t *mem;

static double seconds(cudaEvent_t a, cudaEvent_t b)
{
    float ms = 0;
    (void)cudaEventElapsedTime(&ms, a, b);
    return (double)ms / 1e3;
}

static void *at(size_t *used, size_t bytes)
{
    void *p = mem + *used;
    *used += (bytes + 511) & ~(size_t)511;
    return p;
}

/* wg_blocks: of cu_matmul. */
static int run(const shape *s, uint32_t wg_blocks)
{
    uint32_t group = s->type == KS_T_BF16 ? 0 : 128;
    size_t strip = ks_t16_strip_bytes(s->type, s->n_in, group), mat = strip * ks_t16_strips(s->n_out), used = 0;
    uint32_t n_bank = (uint32_t)((size_t)2000000000 / mat); /* more than any cache holds */
    if (n_bank < s->n_mat) n_bank = s->n_mat;
    uint32_t pairs = s->n_mat * s->rows;
    uint8_t *w = at(&used, mat * n_bank);
    cu_ref *refs = at(&used, n_bank * sizeof *refs), *host = calloc(n_bank, sizeof *host);
    if (!host) return -1;
    for (uint32_t i = 0; i < n_bank; i++)
        host[i] = (cu_ref) { w + i * mat, i, i % s->n_mat * s->rows, s->rows, i % s->n_mat * cu_tiles(s->rows) };
    (void)cudaMemcpy(refs, host, n_bank * sizeof *refs, cudaMemcpyHostToDevice);
    free(host);
    cu_matmul m = { .type = s->type,
                    .n_in = s->n_in,
                    .n_out = s->n_out,
                    .group = group,
                    .n_mat = s->n_mat,
                    .n_rows = s->rows,
                    .n_pairs = pairs,
                    .strip_bytes = strip,
                    .x_mul = 1,
                    .y_stride = s->n_out,
                    .wg_blocks = wg_blocks,
                    .scale = 1 };
    m.x = at(&used, (size_t)pairs * s->n_in * 4);
    m.x_stride = s->n_in;
    m.act = (cu_act) { .q_stride = s->n_in, .scale_stride = s->n_in / 128, .sum_stride = s->n_in / 32 };
    m.act.q = at(&used, (size_t)pairs * s->n_in);
    m.act.scale = at(&used, (size_t)pairs * s->n_in / 128 * 4);
    m.act.sum = at(&used, (size_t)pairs * s->n_in / 32 * 4);
    m.y = at(&used, (size_t)pairs * s->n_out * 4);
    if (used > BYTES) return -1;
    cu_launch_quant(m.x, m.x_stride, pairs, s->n_in, m.act, NULL);
    cudaEvent_t a, b;
    (void)cudaEventCreate(&a);
    (void)cudaEventCreate(&b);
    double best = 1e9;
    for (uint32_t rep = 0; rep < 8; rep++) {
        uint32_t n = n_bank / s->n_mat < 50 ? n_bank / s->n_mat : 50;
        (void)cudaEventRecord(a, NULL);
        for (uint32_t i = 0; i < n; i++) {
            m.refs = refs + (size_t)i * s->n_mat;
            cu_launch_matmul(&m, NULL);
        }
        (void)cudaEventRecord(b, NULL);
        (void)cudaEventSynchronize(b);
        double t = seconds(a, b) / n;
        if (t < best) best = t;
    }
    printf("%-34s %8.1f us  %7.0f GB/s of weights  %7.1f TOP/s  (%s)\n", wg_blocks ? "    by warpgroups" : s->what,
           best * 1e6, (double)mat * s->n_mat / best / 1e9, 2.0 * s->n_in * s->n_out * pairs / best / 1e12,
           cudaGetErrorString(cudaGetLastError()));
    return 0;
}

/* What the library reaches with a large product: the ceiling that the figures above are divided by. */
static double cublas_rate(const char *what, cudaDataType_t in, cudaDataType_t out, cublasComputeType_t compute)
{
    enum { N = 8192 };
    void *lib = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
    cublasStatus_t (*create)(cublasHandle_t *) = NULL;
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                           const void *, cudaDataType_t, int, const void *, cudaDataType_t, int, const void *, void *,
                           cudaDataType_t, int, cublasComputeType_t, cublasGemmAlgo_t) = NULL;
    if (lib) {
        *(void **)&create = dlsym(lib, "cublasCreate_v2");
        *(void **)&gemm = dlsym(lib, "cublasGemmEx");
    }
    cublasHandle_t h;
    if (!create || !gemm || create(&h) != CUBLAS_STATUS_SUCCESS) {
        printf("cuBLAS 13 not found: %s\n", lib ? "it has no cublasGemmEx" : dlerror());
        return 0;
    }
    float one = 1, zero = 0;
    int32_t i_one = 1, i_zero = 0;
    bool integer = compute == CUBLAS_COMPUTE_32I;
    uint8_t *x = mem, *y = mem + ((size_t)1 << 30), *z = mem + ((size_t)2 << 30);
    cudaEvent_t a, b;
    (void)cudaEventCreate(&a);
    (void)cudaEventCreate(&b);
    double best = 1e9;
    for (uint32_t i = 0; i < 6; i++) {
        (void)cudaEventRecord(a, NULL);
        if (gemm(h, CUBLAS_OP_T, CUBLAS_OP_N, N, N, N, integer ? (void *)&i_one : &one, x, in, N, y, in, N,
                 integer ? (void *)&i_zero : &zero, z, out, N, compute, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
            printf("%s: cuBLAS refused\n", what);
            return 0;
        }
        (void)cudaEventRecord(b, NULL);
        (void)cudaEventSynchronize(b);
        double t = seconds(a, b);
        if (t < best) best = t;
    }
    printf("%-34s %8.1f us  %7.1f TOP/s\n", what, best * 1e6, 2.0 * N * N * N / best / 1e12);
    return 2.0 * N * N * N / best / 1e12;
}

/* Not zeros: they need less power, so the clock is higher. */
static void fill(void)
{
    uint32_t *host = malloc(64 << 20), x = 1;
    for (size_t i = 0; host && i < (64 << 20) / 4; i++) host[i] = (x = x * 1664525u + 1013904223u) & 0xbfffbfffu;
    for (size_t at = 0; host && at < BYTES; at += 64 << 20)
        (void)cudaMemcpy(mem + at, host, 64 << 20, cudaMemcpyHostToDevice);
    free(host);
}

int main(void)
{
    static const shape shapes[] = {
        { "i4 experts 8x1, gate-up 30B", KS_T_I4, 2048, 1536, 8, 1 },
        { "i4 experts 8x1, down 30B", KS_T_I4, 768, 2048, 8, 1 },
        { "i4 experts 128x16", KS_T_I4, 2048, 1536, 128, 16 },
        { "i4 experts 128x32", KS_T_I4, 2048, 1536, 128, 32 },
        { "i4 experts 128x64", KS_T_I4, 2048, 1536, 128, 64 },
        { "i4 experts 128x128", KS_T_I4, 2048, 1536, 128, 128 },
        { "i4 experts 128x512", KS_T_I4, 2048, 1536, 128, 512 },
        { "i4 experts 128x128, down 30B", KS_T_I4, 768, 2048, 128, 128 },
        { "i8 experts 128x128", KS_T_I8, 2048, 1536, 128, 128 },
        { "i8 experts 128x512", KS_T_I8, 2048, 1536, 128, 512 },
        { "mxfp4 experts 128x128", KS_T_MXFP4, 2048, 1536, 128, 128 },
        { "i8 dense 1 row 2048x4096", KS_T_I8, 2048, 4096, 1, 1 },
        { "i8 head 1 row 2048x151936", KS_T_I8, 2048, 151936, 1, 1 },
        { "i8 dense 2048 rows 2048x4096", KS_T_I8, 2048, 4096, 1, 2048 },
        { "i8 dense 2048 rows 4096x2048", KS_T_I8, 4096, 2048, 1, 2048 },
        { "i8 dense 2048 rows 2048x512", KS_T_I8, 2048, 512, 1, 2048 },
        { "bf16 router 1 row 2048x128", KS_T_BF16, 2048, 128, 1, 1 },
        { "bf16 dense 512 rows 2048x4096", KS_T_BF16, 2048, 4096, 1, 512 },
    };
    if (cudaMalloc((void **)&mem, BYTES) != cudaSuccess) {
        printf("skipped: %s\n", cudaGetErrorString(cudaGetLastError()));
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* what was measured is shown, whatever comes */
    cudaEvent_t a, b;
    (void)cudaEventCreate(&a);
    (void)cudaEventCreate(&b);
    for (int i = 0; i < 2; i++) {
        (void)cudaEventRecord(a, NULL);
        (void)cudaMemcpyAsync(mem, mem + BYTES / 2, BYTES / 2, cudaMemcpyDeviceToDevice, NULL);
        (void)cudaEventRecord(b, NULL);
        (void)cudaEventSynchronize(b);
    }
    const double mem_rate = (double)BYTES / seconds(a, b) / 1e9;
    printf("device copy %.0f GB/s read and written\n", mem_rate);
    fill();
    const double bf16 = cublas_rate("cuBLAS bf16, 8192^3", CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
    const double int8 = cublas_rate("cuBLAS int8, 8192^3", CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I);
    printf("for krasis bench model: --gpu-peak %.0f,%.0f,%.0f\n", int8, bf16, mem_rate);
    int n_sms = 0;
    (void)cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0);
    const bool wg = cu_has_warpgroups();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const shape *s = &shapes[i];
        if (run(s, 0)) printf("%s: does not fit\n", s->what);
        if (wg && s->type != KS_T_BF16 && s->rows > 16) (void)run(s, (uint32_t)n_sms);
    }
    return 0;
}
