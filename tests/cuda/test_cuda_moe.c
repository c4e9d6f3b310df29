/* Sorting pairs by expert, in one block and in many, against the plain way. */
#include "kernels.h"

#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct pair {
    int32_t expert;
    float weight;
} pair;

static char no_gpu[128];
static uint32_t state = 1;

static uint32_t below(uint32_t n)
{
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
}

static void ok(cudaError_t rc)
{
    if (rc != cudaSuccess) fail_msg("%s", cudaGetErrorString(rc));
}

static void *up(const void *src, size_t bytes)
{
    void *p = NULL;
    ok(cudaMalloc(&p, bytes));
    ok(cudaMemcpy(p, src, bytes, cudaMemcpyHostToDevice));
    return p;
}

static void down(void *dst, void *src, size_t bytes)
{
    ok(cudaMemcpy(dst, src, bytes, cudaMemcpyDeviceToHost));
    ok(cudaFree(src));
}

/* Some pairs are another device's: expert -1. */
static void sort_one(uint32_t n_rows, uint32_t k, uint32_t n_experts)
{
    size_t n = (size_t)n_rows * k, at = 0;
    pair *route = calloc(n, sizeof *route);
    uint32_t *begin = calloc(n_experts + 1, 4), *row = calloc(n, 4), *slot = calloc(n, 4);
    uint64_t *heat = calloc(n_experts, 8);
    float *weight = calloc(n, 4);
    assert_true(route && begin && row && slot && heat && weight);
    for (size_t i = 0; i < n; i++) route[i] = (pair) { (int32_t)below(n_experts + 1) - 1, (float)(i + 1) };
    for (uint32_t e = 0; e < n_experts; e++) heat[e] = e;
    cu_sort a = { .n_rows = n_rows, .k = k, .n_experts = n_experts, .route_stride = k };
    a.route = up(route, n * sizeof *route);
    a.begin = up(begin, (n_experts + 1) * 4);
    a.pair_row = up(row, n * 4);
    a.pair_weight = up(weight, n * 4);
    a.slot_pair = up(slot, n * 4);
    a.heat = up(heat, n_experts * 8);
    ok((cudaError_t)cu_launch_sort(&a, NULL));
    ok(cudaDeviceSynchronize());
    down(begin, a.begin, (n_experts + 1) * 4);
    down(row, a.pair_row, n * 4);
    down(weight, a.pair_weight, n * 4);
    down(slot, a.slot_pair, n * 4);
    down(heat, a.heat, n_experts * 8);
    ok(cudaFree((void *)(uintptr_t)a.route));
    for (uint32_t e = 0; e < n_experts; e++) {
        assert_int_equal(begin[e], at);
        for (size_t i = 0; i < n; i++) {
            if (route[i].expert != (int32_t)e) continue;
            assert_int_equal(row[at], i / k);
            assert_true(weight[at] == route[i].weight);
            assert_int_equal(slot[i], at++);
        }
        assert_int_equal(heat[e], e + (at - begin[e]));
    }
    assert_int_equal(begin[n_experts], at);
    for (size_t i = 0; i < n; i++)
        if (route[i].expert < 0) assert_int_equal(slot[i], UINT32_MAX);
    free(route);
    free(begin);
    free(row);
    free(slot);
    free(heat);
    free(weight);
}

static void pairs_are_sorted_by_expert_and_row(void **st)
{
    static const uint32_t shapes[][3] = { { 1, 1, 4 },  { 1, 8, 128 }, { 16, 8, 128 }, { 16, 8, 300 }, { 3, 2, 5 },
                                          { 17, 8, 8 }, { 40, 4, 60 }, { 300, 2, 16 }, { 30, 10, 512 } };
    (void)st;
    if (no_gpu[0]) skip();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) sort_one(shapes[i][0], shapes[i][1], shapes[i][2]);
}

static int set_up(void **st)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    (void)st;
    if (rc == cudaSuccess && n == 0) rc = cudaErrorNoDevice;
    if (rc != cudaSuccess) (void)snprintf(no_gpu, sizeof no_gpu, "%s", cudaGetErrorString(rc));
    if (no_gpu[0]) print_message("skipped: %s\n", no_gpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(pairs_are_sorted_by_expert_and_row) };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
