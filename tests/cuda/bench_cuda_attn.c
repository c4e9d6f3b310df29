/* Not a test: rates of attention on the tensor cores. Prompts: operations that causal attention needs, in TFLOP/s; one
 * row a sequence: bytes of keys and values, in GB/s, beside the memory rate of the same run. */
#include "kernels.h"
#include <cuda_runtime_api.h>
#include <krasis/types.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define PAGE_TOK 64u
#define SPAN 1024u

typedef struct shape {
    uint32_t type, d, n_heads, n_kv, n_seqs, pos, n_rows; /* rows of each sequence, that comes after pos cached keys */
    uint32_t d_v;        /* values are the first d_v columns of keys; 0: they are d wide, apart */
    uint32_t warpgroups; /* of cu_attn */
} shape;

static void *take(size_t bytes, int fill)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess || cudaMemset(p, fill, bytes) != cudaSuccess) {
        printf("no room for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static void *up(const void *src, size_t bytes)
{
    void *p = take(bytes, 0);
    (void)cudaMemcpy(p, src, bytes, cudaMemcpyHostToDevice);
    return p;
}

static double seconds(cudaEvent_t a, cudaEvent_t b)
{
    float ms = 0;
    (void)cudaEventElapsedTime(&ms, a, b);
    return (double)ms / 1e3;
}

static void run(const shape *s, cudaEvent_t e0, cudaEvent_t e1)
{
    uint32_t group = s->n_heads / s->n_kv, d_v = s->d_v ? s->d_v : s->d;
    uint32_t rows = cu_flash_queries(s->type, group, s->d, d_v, 227 << 10, s->warpgroups) / group;
    uint32_t keys = s->pos + s->n_rows, per_seq = (keys + PAGE_TOK - 1) / PAGE_TOK, n_pages = per_seq * s->n_seqs;
    uint32_t elem = ks_type_bits(s->type) / 8, width = s->n_kv * s->d, n = s->n_seqs * s->n_rows, n_tiles = 0;
    cu_tile *tiles = calloc(n, sizeof *tiles);
    cu_seq *seqs = calloc(s->n_seqs, sizeof *seqs);
    uint32_t *pages = calloc(n_pages, sizeof *pages);
    float *q = malloc((size_t)n * s->n_heads * s->d * sizeof *q);
    if (!rows || !tiles || !seqs || !pages || !q) exit(1);
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        seqs[i] = (cu_seq) { i * s->n_rows, s->n_rows, s->pos, 0, i * per_seq, 0 };
        for (uint32_t r = 0; r < s->n_rows; r += rows)
            tiles[n_tiles++] = (cu_tile) { i, i * s->n_rows + r, r + rows < s->n_rows ? rows : s->n_rows - r };
    }
    for (uint32_t i = 0; i < n_pages; i++) pages[i] = i;
    for (size_t i = 0, x = 1; i < (size_t)n * s->n_heads * s->d; i++)
        q[i] = (float)((x = x * 1664525u + 1013904223u) >> 8 & 0xffffu) * 0x1p-15f - 1;
    size_t page = (size_t)PAGE_TOK * width * elem;
    cu_attn a = { .n_tiles = n_tiles,
                  .n_heads = s->n_heads,
                  .n_kv_heads = s->n_kv,
                  .d_k = s->d,
                  .d_v = d_v,
                  .scale = 1.0f / sqrtf((float)s->d),
                  .tiles = up(tiles, n_tiles * sizeof *tiles),
                  .seqs = up(seqs, s->n_seqs * sizeof *seqs),
                  .pages = up(pages, n_pages * sizeof *pages),
                  .q = { up(q, (size_t)n * s->n_heads * s->d * 4), (size_t)s->n_heads * s->d },
                  .o = { take((size_t)n * s->n_heads * d_v * 4, 0), (size_t)s->n_heads * d_v },
                  .q_head = s->d,
                  .o_head = d_v,
                  .k = { take(n_pages * page, 0x2d), page, s->type, width, PAGE_TOK, 0 },
                  .n_rows = n,
                  .warpgroups = s->warpgroups,
                  .shared_max = 227 << 10,
                  .n_sms = 132 };
    a.v = a.k;
    if (!s->d_v) a.v.p = take(n_pages * page, 0x35);
    if (n_tiles * s->n_kv * ((group + 15) / 16) < 264 && keys > SPAN) {
        a.n_spans = (keys - 1) / SPAN + 1;
        a.part = take((size_t)n * s->n_heads * a.n_spans * (d_v + 2) * 4, 0);
    }
    double best = 1e9;
    for (uint32_t rep = 0; rep < 4; rep++) {
        uint32_t times = s->n_rows == 1 ? 50 : 2;
        (void)cudaEventRecord(e0, NULL);
        for (uint32_t i = 0; i < times; i++) (void)cu_launch_flash(&a, NULL);
        (void)cudaEventRecord(e1, NULL);
        (void)cudaEventSynchronize(e1);
        best = fmin(best, seconds(e0, e1) / times);
    }
    double pairs = s->n_seqs * ((double)s->pos * s->n_rows + 0.5 * s->n_rows * (s->n_rows + 1.0));
    printf("%-6s d %3u %2u/%u heads, %2u x %5u rows after %5u: %9.1f us  %6.1f TFLOP/s  %6.0f GB/s  (%s%s)\n",
           ks_type_name(s->type), s->d, s->n_heads, s->n_kv, s->n_seqs, s->n_rows, s->pos, best * 1e6,
           2.0 * (s->d + d_v) * s->n_heads * pairs / best / 1e12,
           (s->d_v ? 1.0 : 2.0) * s->n_seqs * keys * width * elem / best / 1e9, cudaGetErrorString(cudaGetLastError()),
           s->warpgroups ? ", warpgroups" : "");
    const void *p[] = { a.tiles, a.seqs, a.pages, a.q.p, a.o.p, a.k.p, s->d_v ? NULL : a.v.p, a.part };
    for (size_t i = 0; i < sizeof p / sizeof p[0]; i++) (void)cudaFree((void *)(uintptr_t)p[i]);
    free(tiles);
    free(seqs);
    free(pages);
    free(q);
}

int main(void)
{
    static const uint32_t types[] = { KS_T_F8E4M3, KS_T_BF16 };
    static const shape prompts[] = {
        { 0, 128, 32, 4, 1, 0, 2048, 0, 0 },  { 0, 128, 32, 4, 1, 0, 8192, 0, 0 },
        { 0, 128, 32, 4, 1, 0, 32768, 0, 0 }, { 0, 128, 32, 4, 1, 20480, 512, 0, 0 },
        { 0, 64, 64, 8, 1, 0, 8192, 0, 0 },   { 0, 256, 16, 2, 1, 0, 8192, 0, 0 },
    };
    cudaEvent_t a, b;
    if (cudaEventCreate(&a) != cudaSuccess || cudaEventCreate(&b) != cudaSuccess) {
        printf("skipped: %s\n", cudaGetErrorString(cudaGetLastError()));
        return 0;
    }
    size_t bytes = (size_t)4 << 30;
    uint8_t *mem = take(bytes, 1);
    for (int i = 0; i < 2; i++) {
        (void)cudaEventRecord(a, NULL);
        (void)cudaMemcpyAsync(mem, mem + bytes / 2, bytes / 2, cudaMemcpyDeviceToDevice, NULL);
        (void)cudaEventRecord(b, NULL);
        (void)cudaEventSynchronize(b);
    }
    printf("device copy %.0f GB/s read and written\n", (double)bytes / seconds(a, b) / 1e9);
    (void)cudaFree(mem);
    uint32_t n_sums = 0, wrong = 0;
    if (cu_flash_wg_agrees(&n_sums, &wrong)) printf("comparing products: %s\n", cudaGetErrorString(cudaGetLastError()));
    printf("products of warpgroups: %u of %u differ from those of warps\n", wrong, n_sums);
    for (uint32_t t = 0; t < 2; t++) {
        for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++) {
            shape s = prompts[i];
            s.type = types[t];
            for (; s.warpgroups < (n_sums ? 2 : 1); s.warpgroups++) run(&s, a, b);
        }
        run(&(shape) { types[t], 576, 128, 1, 1, 0, 2048, 512, 0 }, a, b); /* latent attention */
        for (uint32_t heads = 16; heads <= 128; heads *= 8)
            for (uint32_t keys = 4096; keys <= 16384; keys *= 4)
                run(&(shape) { types[t], 576, heads, 1, 1, keys - 1, 1, 512, 0 }, a, b);
        for (uint32_t n = 1; n <= 16; n *= 4)
            for (uint32_t keys = 1024; keys <= 32768; keys = keys == 1024 ? 4096 : keys * 8)
                run(&(shape) { types[t], 128, 32, 4, n, keys - 1, 1, 0, 0 }, a, b);
    }
    return 0;
}
