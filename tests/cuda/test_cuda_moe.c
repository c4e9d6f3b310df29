/* Sorting pairs by expert, in one block and in many, against the plain way; products of many experts at once, of any
 * number of rows each, against those of each alone; activations quantized at once, against in two steps. */
#include "kernels.h"

#include <cuda_runtime_api.h>
#include <krasis/graph.h>
#include <krasis/types.h>
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
    static const uint32_t shapes[][3] = {
        { 1, 1, 4 },  { 1, 8, 128 }, { 16, 8, 128 }, { 16, 8, 300 }, { 3, 2, 5 },
        { 17, 8, 8 }, { 40, 4, 60 }, { 700, 6, 20 }, { 1100, 8, 6 }, { 30, 10, 512 }
    };
    (void)st;
    if (no_gpu[0]) skip();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) sort_one(shapes[i][0], shapes[i][1], shapes[i][2]);
}

#define N_MAT 9u
#define N_OUT 200u /* of the last strip, a half */

static void *some(size_t bytes, bool floats)
{
    uint8_t *p = malloc(bytes);
    assert_non_null(p);
    for (size_t i = 0; i < bytes && !floats; i++) p[i] = (uint8_t)below(256);
    for (size_t i = 0; i + 4 <= bytes && floats; i += 4) {
        float v = (float)(1 + below(1000)) / 4096;
        memcpy(p + i, &v, 4);
    }
    void *d = up(p, bytes);
    free(p);
    return d;
}

/* Scales of T16 that are no NaN: BF16 near 1, or powers of two. */
static void set_scales(uint8_t *w, const cu_matmul *m)
{
    size_t data = (size_t)m->n_in * 16 * ks_type_bits(m->type) / 8;
    for (size_t i = data; i < m->strip_bytes; i++)
        w[i] = m->type == KS_T_MXFP4 ? (uint8_t)(120 + below(16)) : (i - data) % 2 ? 0x3f : (uint8_t)below(256);
}

static void product_of(uint32_t type, uint32_t n_in, uint32_t group)
{
    static const uint32_t n_of[N_MAT] = { 1, 17, 64, 65, 16, 129, 200, 33, 128 };
    uint32_t strips = (N_OUT + 15) / 16, pairs = 0;
    cu_matmul m = { .type = type, .n_in = n_in, .n_out = N_OUT, .group = group, .x_mul = 1, .y_stride = N_OUT };
    m.scale = 1;
    m.strip_bytes = ks_t16_strip_bytes(type, n_in, group);
    size_t mat = strips * m.strip_bytes;
    uint8_t *w = malloc(N_MAT * mat);
    assert_non_null(w);
    for (size_t i = 0; i < N_MAT * mat; i++) w[i] = (uint8_t)below(256);
    for (uint32_t s = 0; s < N_MAT * strips; s++) set_scales(w + s * m.strip_bytes, &m);
    uint8_t *w_dev = up(w, N_MAT * mat);
    free(w);
    cu_ref refs[N_MAT];
    for (uint32_t i = 0, tile = 0; i < N_MAT; i++) {
        refs[i] = (cu_ref) { w_dev + i * mat, i, pairs, n_of[i], tile };
        pairs += n_of[i];
        tile += cu_tiles(n_of[i]);
        m.n_rows = n_of[i] > m.n_rows ? n_of[i] : m.n_rows;
    }
    uint32_t n_scale = (n_in + 127) / 128;
    m.act = (cu_act) { .q_stride = n_in, .scale_stride = n_scale };
    m.act.q = some((size_t)pairs * n_in, false);
    m.act.scale = some((size_t)pairs * n_scale * 4, true);
    size_t bytes = (size_t)pairs * N_OUT * 4;
    float *y = malloc(bytes), *alone = malloc(bytes);
    assert_true(y && alone);
    float *y_dev = m.y = up(y, bytes);
    void *refs_dev = up(refs, sizeof refs);
    m.n_mat = N_MAT;
    m.n_pairs = pairs;
    m.refs = refs_dev;
    cu_launch_matmul(&m, NULL);
    ok(cudaDeviceSynchronize());
    down(y, y_dev, bytes);
    m.refs = NULL;
    m.n_mat = 1;
    m.y = y_dev = up(alone, bytes);
    for (uint32_t i = 0; i < N_MAT; i++) {
        cu_matmul one = m;
        one.w = refs[i].w;
        one.n_rows = refs[i].n;
        one.act.q += (size_t)refs[i].begin * n_in;
        one.act.scale += (size_t)refs[i].begin * n_scale;
        one.y += (size_t)refs[i].begin * N_OUT;
        cu_launch_matmul(&one, NULL);
    }
    ok(cudaDeviceSynchronize());
    down(alone, y_dev, bytes);
    if (memcmp(y, alone, bytes) != 0) fail_msg("type %u, %u columns, groups of %u", type, n_in, group);
    free(y);
    free(alone);
    ok(cudaFree(refs_dev));
    ok(cudaFree(w_dev));
    ok(cudaFree(m.act.q));
    ok(cudaFree(m.act.scale));
}

/* Few and many rows have kernels of their own, too. */
static void grouped_products_have_the_bits_of_single_ones(void **st)
{
    (void)st;
    if (no_gpu[0]) skip();
    product_of(KS_T_I4, 256, 128);
    product_of(KS_T_I4, 192, 64);
    product_of(KS_T_I8, 640, 128);
    product_of(KS_T_I8, 96, 32);
    product_of(KS_T_MXFP4, 160, 32);
}

/* Many rows: what is computed by warpgroups has the bits of what is computed by warps, and nothing else is written.
 * Matrices share their rows (x_add) or, with refs, have the rows that `rows` names. */
typedef struct many {
    uint32_t type, group, n_in, n_out, n_mat, n_rows, stride; /* n_rows: of each, without refs; stride: of y */
    const uint32_t *n_of;                                     /* with refs: rows of each */
    uint32_t blocks;
    bool finished;
} many;

static void fill_scales_of(cu_matmul *m, const many *a, uint32_t pairs)
{
    float *bias = some((size_t)a->n_mat * a->n_out * 4, true);
    m->bias = a->finished ? bias : NULL;
    m->bias_stride = a->n_out;
    m->scale = a->finished ? 0.75f : 1;
    m->softcap = a->finished ? 30 : 0;
    m->act.scale = some((size_t)pairs * m->act.scale_stride * 4, true);
    if (!a->finished) ok(cudaFree(bias));
}

static void many_rows_of(const many *a)
{
    const uint32_t strips = (a->n_out + 15) / 16, n_in = (a->n_in + 31) / 32 * 32, n_x = 61;
    cu_matmul m = { .type = a->type, .n_in = a->n_in, .n_out = a->n_out, .group = a->group, .n_mat = a->n_mat };
    cu_ref refs[40];
    uint32_t pairs = a->n_of ? 0 : a->n_rows, *rows = calloc(8192, sizeof *rows);
    m.n_rows = a->n_rows;
    m.strip_bytes = ks_t16_strip_bytes(a->type, a->n_in, a->group);
    m.w_stride = strips * m.strip_bytes;
    uint8_t *w = malloc(a->n_mat * m.w_stride);
    assert_true(w && rows && a->n_mat <= 40);
    for (size_t i = 0; i < a->n_mat * m.w_stride; i++) w[i] = (uint8_t)below(256);
    for (uint32_t s = 0; s < a->n_mat * strips; s++) {
        cu_matmul padded = m;
        padded.n_in = n_in;
        set_scales(w + s * m.strip_bytes, &padded);
    }
    uint8_t *w_dev = up(w, a->n_mat * m.w_stride);
    m.w = a->n_of ? NULL : w_dev;
    m.w_off = 0;
    for (uint32_t i = 0, tile = 0; a->n_of && i < a->n_mat; i++) {
        refs[i] = (cu_ref) { w_dev + (a->n_mat - 1 - i) * m.w_stride, i, pairs, a->n_of[i], tile };
        pairs += a->n_of[i];
        tile += cu_tiles(a->n_of[i]);
        m.n_rows = a->n_of[i] > m.n_rows ? a->n_of[i] : m.n_rows;
    }
    assert_true(pairs <= 8192);
    for (uint32_t i = 0; i < pairs; i++) rows[i] = below(n_x);
    const uint32_t n_act = a->n_of ? n_x : pairs * a->n_mat, all = pairs * (a->n_of ? 1 : a->n_mat);
    m.x_mul = a->n_of ? 1 : a->n_mat;
    m.x_add = 1;
    m.act = (cu_act) { .q_stride = n_in + 32, .scale_stride = (n_in + 127) / 128 };
    m.act.q = some((size_t)n_act * m.act.q_stride, false);
    fill_scales_of(&m, a, n_act);
    m.rows = a->n_of ? up(rows, pairs * sizeof *rows) : NULL;
    m.refs = a->n_of ? up(refs, a->n_mat * sizeof *refs) : NULL;
    m.n_refs = a->n_of ? up(&a->n_mat, sizeof a->n_mat) : NULL;
    m.n_pairs = pairs;
    m.y_stride = a->stride;
    m.y_mat = (size_t)pairs * a->stride;
    const size_t bytes = (size_t)all * a->stride * 4;
    float *y[2] = { malloc(bytes), malloc(bytes) };
    assert_true(y[0] && y[1]);
    for (uint32_t i = 0; i < 2; i++) {
        memset(y[i], 0x55, bytes);
        float *y_dev = m.y = up(y[i], bytes);
        m.wg_blocks = i ? a->blocks : 0;
        cu_launch_matmul(&m, NULL);
        ok(cudaGetLastError());
        ok(cudaDeviceSynchronize());
        down(y[i], y_dev, bytes);
    }
    if (memcmp(y[0], y[1], bytes) != 0)
        fail_msg("type %u, %u columns, groups of %u, %u outputs, %u blocks", a->type, a->n_in, a->group, a->n_out,
                 a->blocks);
    const void *held[] = { w_dev, m.act.q, m.act.scale, m.rows, m.refs, m.n_refs, m.bias };
    for (uint32_t i = 0; i < 7; i++) ok(cudaFree((void *)(uintptr_t)held[i]));
    free(w);
    free(rows);
    free(y[0]);
    free(y[1]);
}

static void products_of_warpgroups_have_the_bits_of_those_of_warps(void **st)
{
    static const struct {
        uint32_t type, group, n_in;
    } kinds[] = { { KS_T_I4, 128, 256 },   { KS_T_I4, 64, 192 },    { KS_T_I4, 32, 1184 },
                  { KS_T_I8, 128, 1664 },  { KS_T_I8, 64, 64 },     { KS_T_I8, 32, 96 },
                  { KS_T_MXFP4, 32, 160 }, { KS_T_MXFP4, 64, 320 }, { KS_T_MXFP4, 128, 128 } };
    static const uint32_t n_of[36] = { 0,   17, 64, 65, 0, 129, 300, 33, 128, 1, 96, 97, 32, 0, 0, 256, 16, 2,
                                       127, 31, 5,  0,  0, 1,   1,   1,  1,   1, 1,  1,  1,  1, 1, 1,   45, 80 };
    static const uint32_t more_of[8] = { 300, 0, 513, 200, 65, 129, 256, 193 }; /* tiles of up to 256 rows */
    (void)st;
    if (no_gpu[0]) skip();
    if (!cu_has_warpgroups()) {
        print_message("skipped: this GPU, or this build for it, has no products of warpgroups\n");
        skip();
    }
    for (uint32_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        many a = { .type = kinds[i].type, .group = kinds[i].group, .n_in = kinds[i].n_in, .blocks = 1 + i };
        a.n_out = i % 3 == 0 ? 200 : i % 3 == 1 ? 77 : 256;
        a.stride = a.n_out + i % 2;
        a.n_of = n_of;
        a.n_mat = 36;
        a.finished = i % 4 == 3;
        many_rows_of(&a);
        a.n_of = more_of;
        a.n_mat = 8;
        a.n_out = i % 3 == 0 ? 77 : 130;
        a.stride = a.n_out + i % 2;
        many_rows_of(&a);
        a.n_of = NULL; /* heads of latent attention, or one matrix */
        a.n_mat = i % 2 ? 3 : 1;
        a.n_rows = 17 + i * 83 % 290;
        a.n_out = 128 + i;
        a.stride = a.n_out;
        a.finished = i % 2;
        many_rows_of(&a);
    }
}

/* Matrices of type F32 or BF16 in T16, with zeros beyond n_in. */
static uint8_t *float_matrices(const cu_matmul *m, uint32_t n_mat)
{
    const uint32_t per = m->type == KS_T_BF16 ? 2 : 1, padded = (m->n_in + 31) / 32 * 32;
    const size_t bytes = n_mat * ((m->n_out + 15) / 16) * m->strip_bytes;
    uint8_t *w = calloc(1, bytes);
    assert_non_null(w);
    for (size_t i = 0; i < bytes * per / 4; i++) {
        uint32_t k = (uint32_t)(i / (16 * per) % (padded / per) * per + i % per);
        float v = ((float)below(2001) - 1000) / 512;
        if (k < m->n_in) memcpy(w + i * 4 / per, (uint8_t *)&v + (per == 2 ? 2 : 0), 4 / per);
    }
    uint8_t *d = up(w, bytes);
    free(w);
    return d;
}

/* Float weights: many rows, of one matrix or of several, give the bits of at most 16 at a time. */
static void float_product_of(uint32_t type, uint32_t n_in, uint32_t n_out, uint32_t x_stride, uint32_t n_mat)
{
    enum { ROWS = 101 };
    const uint32_t n_of[] = { n_mat > 1 ? 65 : ROWS, 1, ROWS - 66 };
    const size_t bytes = (size_t)ROWS * n_out * sizeof(float);
    cu_matmul m = { .type = type, .n_in = n_in, .n_out = n_out, .x_mul = 1, .x_stride = x_stride, .y_stride = n_out };
    m.scale = 0.5f;
    m.strip_bytes = ks_t16_strip_bytes(type, n_in, 0);
    uint8_t *w = float_matrices(&m, n_mat);
    float *x = some((size_t)ROWS * x_stride * sizeof *x, true), *few = calloc(1, bytes), *all = calloc(1, bytes);
    assert_true(few && all);
    cu_ref refs[3];
    float *y = up(few, bytes);
    m.n_mat = 1;
    for (uint32_t i = 0, at = 0, tile = 0; i < n_mat; at += n_of[i], tile += cu_tiles(n_of[i]), i++) {
        refs[i] = (cu_ref) { w + i * ((n_out + 15) / 16) * m.strip_bytes, i, at, n_of[i], tile };
        m.w = refs[i].w;
        for (uint32_t row = 0; row < n_of[i]; row += m.n_rows) {
            m.n_rows = n_of[i] - row < 16 ? n_of[i] - row : 16;
            m.x = x + (size_t)(at + row) * x_stride;
            m.y = y + (size_t)(at + row) * n_out;
            cu_launch_matmul(&m, NULL);
        }
    }
    ok(cudaDeviceSynchronize());
    down(few, y, bytes);
    cu_ref *refs_dev = up(refs, n_mat * sizeof *refs);
    m.x = x;
    m.y = y = up(all, bytes);
    m.w = w;
    m.n_rows = n_of[0];
    m.n_mat = n_mat;
    m.n_pairs = ROWS;
    if (n_mat > 1) m.refs = refs_dev;
    cu_launch_matmul(&m, NULL);
    ok(cudaDeviceSynchronize());
    down(all, y, bytes);
    if (memcmp(few, all, bytes) != 0) fail_msg("type %u, %u columns, %u outputs", type, n_in, n_out);
    free(few);
    free(all);
    ok(cudaFree(refs_dev));
    ok(cudaFree(w));
    ok(cudaFree(x));
}

static void float_products_of_many_rows_have_the_bits_of_few(void **st)
{
    (void)st;
    if (no_gpu[0]) skip();
    float_product_of(KS_T_BF16, 2048, 128, 2048, 1);
    float_product_of(KS_T_BF16, 2400, 60, 2404, 1); /* two rounds of spans, the last a part of one */
    float_product_of(KS_T_BF16, 61, 77, 63, 3);
    float_product_of(KS_T_F32, 1184, 130, 1184, 3);
    float_product_of(KS_T_F32, 90, 16, 93, 1);
}

/* A product that quantizes its rows, or what GLU makes of them, against one of what was quantized before. */
static void own_of(uint32_t type, uint32_t n_in, uint32_t n_rows, bool with_glu)
{
    uint32_t strips = (N_OUT + 15) / 16, group = type == KS_T_MXFP4 ? 32 : 128, stride = 2 * n_in;
    uint32_t q_stride = (n_in + 63) / 64 * 64, n_scale = (n_in + 127) / 128;
    cu_matmul m = { .type = type, .n_in = n_in, .n_out = N_OUT, .group = group, .n_mat = 1, .n_rows = n_rows };
    m.x_mul = 1;
    m.y_stride = N_OUT;
    m.scale = 1;
    m.strip_bytes = ks_t16_strip_bytes(type, n_in, group);
    uint8_t *w = malloc(strips * m.strip_bytes);
    assert_non_null(w);
    for (size_t i = 0; i < strips * m.strip_bytes; i++) w[i] = (uint8_t)below(256);
    for (uint32_t s = 0; s < strips; s++) set_scales(w + s * m.strip_bytes, &m);
    m.w = up(w, strips * m.strip_bytes);
    free(w);
    assert_true(n_in % 16 == 0 && cu_quantizes(n_rows, n_in, N_OUT));
    float *x = some((size_t)n_rows * stride * 4, true), *hidden = some((size_t)n_rows * n_in * 4, true);
    cu_glu g = { .kind = KS_ACT_SILU, .n_rows = n_rows, .n = n_in, .x = { x, stride }, .y = { hidden, n_in } };
    m.x = x;
    m.x_stride = stride;
    cu_act act = { .q_stride = q_stride, .scale_stride = n_scale, .sum_stride = q_stride / 32 };
    act.q = some((size_t)n_rows * q_stride, false);
    act.scale = some((size_t)n_rows * n_scale * 4, true);
    act.sum = some((size_t)n_rows * q_stride / 8, true);
    size_t bytes = (size_t)n_rows * N_OUT * 4;
    float *y[2] = { malloc(bytes), malloc(bytes) };
    assert_true(y[0] && y[1]);
    for (uint32_t own = 0; own < 2; own++) {
        memset(y[own], 0, bytes);
        float *y_dev = m.y = up(y[own], bytes);
        m.act = own ? (cu_act) { 0 } : act;
        m.glu = own && with_glu ? g : (cu_glu) { 0 };
        if (!own && with_glu) cu_launch_glu_quant(&g, act, NULL);
        if (!own && !with_glu) cu_launch_quant(x, stride, n_rows, n_in, act, NULL);
        cu_launch_matmul(&m, NULL);
        ok(cudaDeviceSynchronize());
        down(y[own], y_dev, bytes);
    }
    if (memcmp(y[0], y[1], bytes) != 0) fail_msg("type %u, %u columns, %u rows", type, n_in, n_rows);
    free(y[0]);
    free(y[1]);
    void *held[] = { (void *)(uintptr_t)m.w, x, hidden, act.q, act.scale, act.sum };
    for (uint32_t i = 0; i < 6; i++) ok(cudaFree(held[i]));
}

static void products_quantize_as_if_it_had_been_done_before(void **st)
{
    static const uint32_t types[] = { KS_T_I8, KS_T_I4, KS_T_MXFP4 };
    (void)st;
    if (no_gpu[0]) skip();
    for (uint32_t i = 0; i < 6; i++) {
        own_of(types[i % 3], 8192, 1, i > 2);
        own_of(types[i % 3], 4064, 2, i > 2);
        own_of(types[i % 3], 768, 3, i > 2);
        own_of(types[i % 3], 96, 4, i > 2);
    }
}

/* n activations of 3 rows, quantized by two launches and by one. */
static void glu_of(uint32_t kind, uint32_t n, bool weighed)
{
    enum { ROWS = 3 };
    const uint32_t stride = (n + 15) / 16 * 32, q_stride = (n + 63) / 64 * 64, n_scale = (n + 127) / 128;
    const size_t bytes = ROWS * (q_stride + 4 * n_scale + q_stride / 8);
    float *x = malloc(ROWS * stride * sizeof *x), w[ROWS] = { 0.5f, 2, -1 };
    uint8_t *got[2] = { calloc(1, bytes), calloc(1, bytes) };
    assert_true(x && got[0] && got[1]);
    for (uint32_t i = 0; i < ROWS * stride; i++) x[i] = (float)below(2001) / 500 - 2;
    float *x_dev = up(x, ROWS * stride * sizeof *x), *w_dev = up(w, sizeof w), *y_dev = up(x, ROWS * n * sizeof *x);
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t *p = up(got[i], bytes);
        cu_act act = { .q = (int8_t *)p,
                       .scale = (float *)(void *)(p + ROWS * q_stride),
                       .sum = (int32_t *)(void *)(p + ROWS * (q_stride + 4 * n_scale)),
                       .q_stride = q_stride,
                       .scale_stride = n_scale,
                       .sum_stride = q_stride / 32 };
        cu_glu g = { .kind = kind,
                     .n_rows = ROWS,
                     .n = n,
                     .limit = 1.5f,
                     .alpha = 1.702f,
                     .x = { x_dev, stride },
                     .y = { y_dev, n },
                     .weight = weighed ? w_dev : NULL };
        if (i) {
            cu_launch_glu_quant(&g, act, NULL);
        } else {
            cu_launch_glu(&g, NULL);
            cu_launch_quant(y_dev, n, ROWS, n, act, NULL);
        }
        ok(cudaDeviceSynchronize());
        down(got[i], p, bytes);
    }
    if (memcmp(got[0], got[1], bytes) != 0) fail_msg("activation %u, %u columns", kind, n);
    ok(cudaFree(x_dev));
    ok(cudaFree(w_dev));
    ok(cudaFree(y_dev));
    free(x);
    free(got[0]);
    free(got[1]);
}

static void activations_are_quantized_as_if_they_had_been_stored(void **st)
{
    (void)st;
    if (no_gpu[0]) skip();
    for (uint32_t kind = KS_ACT_SILU; kind <= KS_ACT_SILU_CLAMP; kind++) glu_of(kind, 96 + 61 * kind, kind % 2);
    glu_of(KS_ACT_SILU, 768, false);
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
    const struct CMUnitTest tests[] = { cmocka_unit_test(pairs_are_sorted_by_expert_and_row),
                                        cmocka_unit_test(grouped_products_have_the_bits_of_single_ones),
                                        cmocka_unit_test(products_of_warpgroups_have_the_bits_of_those_of_warps),
                                        cmocka_unit_test(float_products_of_many_rows_have_the_bits_of_few),
                                        cmocka_unit_test(products_quantize_as_if_it_had_been_done_before),
                                        cmocka_unit_test(activations_are_quantized_as_if_they_had_been_stored) };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
