/* Attention on the tensor cores against the plain one, and its bits: alone, among others, spans side by side. */
#include "kernels.h"
#include <krasis/types.h>

#include <cuda_runtime_api.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_KEYS 2304u
#define MAX_PAGES (MAX_KEYS / 16)
#define MAX_ROWS 40u

typedef struct shape {
    uint32_t type, d, n_kv, group, pos, n_rows, window, chunk, sinks, softcap;
    uint32_t d_v;      /* 0: d; else values are the first columns of keys */
    uint32_t page_tok; /* 0: 16 */
} shape;

static char no_gpu[128];
static bool by_warpgroups; /* the device can, and the bits are the same */
static uint64_t state = 1;

static float uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(state >> 32) * 0x1p-31f;
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

/* Codes of the cache: BF16 of numbers around 1, or E4M3 without NaN. */
static uint8_t *random_cache(uint32_t type, size_t n)
{
    size_t elem = ks_type_bits(type) / 8;
    uint8_t *host = malloc(n * elem);
    assert_non_null(host);
    for (size_t i = 0; i < n; i++) {
        float f = uniform() * 2;
        uint32_t u;
        memcpy(&u, &f, 4);
        uint16_t h = (uint16_t)(u >> 16);
        if (type == KS_T_BF16)
            memcpy(host + 2 * i, &h, 2);
        else
            host[i] = (uint8_t)((u >> 24 & 0x80u) | (uint32_t)(fabsf(f) * 30));
    }
    uint8_t *dev = up(host, n * elem);
    free(host);
    return dev;
}

typedef struct world {
    shape s;
    cu_attn a;
    uint32_t pages[MAX_PAGES], per_seq; /* per_seq: rows of a sequence in run(); 0: all are of one */
    float *out;
} world;

static void make(world *w, const shape *s)
{
    uint32_t d_v = s->d_v ? s->d_v : s->d, page_tok = s->page_tok ? s->page_tok : 16;
    uint32_t heads = s->n_kv * s->group, n_pages = MAX_KEYS / page_tok, width = s->n_kv * s->d;
    size_t q = (size_t)MAX_ROWS * heads * s->d, page = (size_t)page_tok * width * ks_type_bits(s->type) / 8;
    float *host = malloc(q * sizeof *host), sinks[64];
    assert_non_null(host);
    w->s = *s;
    w->per_seq = 0;
    for (size_t i = 0; i < q; i++) { /* numbers of BF16: what rounding of queries costs is not what is asked here */
        uint32_t u;
        host[i] = uniform() * 2;
        memcpy(&u, &host[i], 4);
        u &= 0xffff0000u;
        memcpy(&host[i], &u, 4);
    }
    for (uint32_t i = 0; i < 64; i++) sinks[i] = uniform();
    for (uint32_t i = 0; i < n_pages; i++) w->pages[i] = i * 5 % n_pages; /* 144, 96: 5 is prime to them */
    w->a = (cu_attn) { .n_heads = heads,
                       .n_kv_heads = s->n_kv,
                       .d_k = s->d,
                       .d_v = d_v,
                       .window = s->window,
                       .chunk = s->chunk,
                       .scale = 1.0f / sqrtf((float)s->d),
                       .softcap = s->softcap ? 20.0f : 0,
                       .pages = up(w->pages, sizeof w->pages),
                       .q = { up(host, q * sizeof *host), (size_t)heads * s->d },
                       .q_head = s->d,
                       .o_head = d_v,
                       .k = { random_cache(s->type, (size_t)MAX_KEYS * width), page, s->type, width, page_tok, 0 },
                       .sinks = s->sinks ? up(sinks, sizeof sinks) : NULL };
    w->a.v = w->a.k;
    if (!s->d_v) w->a.v.p = random_cache(s->type, (size_t)MAX_KEYS * width);
    w->a.o = (cu_reg) { up(host, q * sizeof *host), (size_t)heads * d_v };
    ok(cudaMalloc((void **)&w->a.part, (size_t)MAX_ROWS * heads * 4 * (d_v + 2) * sizeof(float)));
    w->out = host;
}

static void unmake(world *w)
{
    const void *p[] = { w->a.pages, w->a.q.p, w->a.o.p, w->a.k.p, w->a.sinks, w->a.part };
    for (size_t i = 0; i < sizeof p / sizeof p[0]; i++) ok(cudaFree((void *)(uintptr_t)p[i]));
    if (w->a.v.p != w->a.k.p) ok(cudaFree(w->a.v.p));
    free(w->out);
}

enum { PLAIN, WARPS, WARPGROUPS }; /* what computes */

/* Rows [first, first + n) of the sequence, `rows` a block; results to `out` (n_rows, heads * d), from row `first` on.
 */
static void run(world *w, uint32_t how, uint32_t first, uint32_t n, uint32_t rows, bool spans, float *out)
{
    cu_tile tiles[MAX_ROWS];
    cu_seq seqs[MAX_ROWS];
    cu_attn a = w->a;
    uint32_t n_seqs = 0, per_seq = w->per_seq ? w->per_seq : n;
    size_t width = (size_t)a.n_heads * a.d_v;
    for (uint32_t row = 0; row < n; row += per_seq, n_seqs++) {
        uint32_t end = row + per_seq < n ? row + per_seq : n;
        seqs[n_seqs] = (cu_seq) { .row = row, .n_rows = end - row, .pos = w->s.pos + first + row };
        for (uint32_t r = row; r < end; r += rows)
            tiles[a.n_tiles++] = (cu_tile) { n_seqs, r, r + rows < end ? rows : end - r };
    }
    cu_tile *t = up(tiles, a.n_tiles * sizeof *tiles);
    cu_seq *s = up(seqs, n_seqs * sizeof *seqs);
    a.tiles = t;
    a.seqs = s;
    a.n_rows = n;
    a.q.p += first * a.q.stride;
    a.n_spans = spans ? (w->s.pos + first + n - 1) / 1024 + 1 : 0;
    a.warpgroups = how == WARPGROUPS;
    a.shared_max = 227 * 1024;
    a.n_sms = spans ? 0 : 1000; /* rows alone: four warps and eight */
    ok((cudaError_t)(how == PLAIN ? cu_launch_attn(&a, NULL) : cu_launch_flash(&a, NULL)));
    ok(cudaDeviceSynchronize());
    ok(cudaMemcpy(out + first * width, a.o.p, n * width * sizeof *out, cudaMemcpyDeviceToHost));
    ok(cudaFree(t));
    ok(cudaFree(s));
}

/* Blocks of warpgroups, as many rows as they can have and fewer, give the bits of blocks of warps. */
static void by_warpgroups_too(world *w, const float *one, float *other)
{
    const shape *s = &w->s;
    size_t width = (size_t)w->a.n_heads * w->a.d_v, n = s->n_rows * width;
    uint32_t rows = cu_flash_queries(s->type, s->group, s->d, w->a.d_v, 227 * 1024, 1) / s->group;
    for (uint32_t spans = 0; spans < 2; spans++) {
        memset(other, 0, n * sizeof *other);
        run(w, WARPGROUPS, 0, s->n_rows, rows, spans != 0, other);
        assert_memory_equal(one, other, n * sizeof *one);
    }
    if (s->type == KS_T_BF16 && !KS_TEST_ALL)
        return;      /* what follows asks the same of both caches, and takes its time */
    w->per_seq = 11; /* as if they were sequences */
    run(w, WARPGROUPS, 0, s->n_rows, rows, false, other);
    w->per_seq = 0;
    assert_memory_equal(one, other, n * sizeof *one);
    for (uint32_t r = 0; r < s->n_rows; r += 7) /* pieces of seven rows, four a block */
        run(w, WARPGROUPS, r, s->n_rows - r < 7 ? s->n_rows - r : 7, rows < 4 ? rows : 4, r % 2, other);
    assert_memory_equal(one, other, n * sizeof *one);
}

static void one_shape(const shape *s)
{
    world w;
    make(&w, s);
    uint32_t queries = cu_flash_queries(s->type, s->group, s->d, w.a.d_v, 227 * 1024, 0), rows = queries / s->group;
    size_t n = (size_t)s->n_rows * w.a.n_heads * w.a.d_v;
    float *want = calloc(n, sizeof *want), *one = calloc(n, sizeof *one), *other = calloc(n, sizeof *other);
    assert_true(want && one && other && queries);
    run(&w, PLAIN, 0, s->n_rows, 16 / s->group ? 16 / s->group : 1, false, want);
    run(&w, WARPS, 0, s->n_rows, rows, false, one);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)want[i] - (double)one[i]);
        if (!(e <= worst)) worst = e;
    }
    print_message("  %s d %u group %u pos %u: off by %.2e\n", ks_type_name(s->type), s->d, s->group, s->pos, worst);
    /* Values up to 2; beside E4M3 a weight is off by half of a last bit of F16; the rest is 2^-17 and float. */
    double bound = (s->type == KS_T_BF16 ? 0 : 2 * 0x1p-11) + 2e-4;
    if (!(worst < bound)) fail_msg("off by %g, %g is allowed", worst, bound);
    run(&w, WARPS, 0, s->n_rows, rows, true, other);
    assert_memory_equal(one, other, n * sizeof *one); /* spans side by side */
    for (int spans = 0; spans < 2; spans++) {         /* one row a block: its warps share the queries */
        run(&w, WARPS, 0, s->n_rows, 1, spans != 0, other);
        assert_memory_equal(one, other, n * sizeof *one);
    }
    for (uint32_t r = 0; r < s->n_rows; r += 3)
        run(&w, WARPS, r, s->n_rows - r < 3 ? s->n_rows - r : 3, rows, r % 2, other);
    assert_memory_equal(one, other, n * sizeof *one); /* in pieces of three rows */
    if (by_warpgroups && !s->d_v) by_warpgroups_too(&w, one, other);
    free(want);
    free(one);
    free(other);
    unmake(&w);
}

static void tensor_cores_give_the_plain_result_and_the_same_bits_in_any_company(void **st)
{
    static const shape shapes[] = {
        { KS_T_BF16, 64, 2, 4, 0, 33, 0, 0, 0, 0, 0, 0 },
        { KS_T_BF16, 128, 2, 8, 0, 40, 0, 0, 0, 0, 0, 0 },
        { KS_T_BF16, 128, 1, 8, 1010, 40, 0, 0, 1, 0, 0, 0 },
        { KS_T_BF16, 128, 4, 1, 2200, 17, 0, 0, 0, 1, 0, 0 },
        { KS_T_BF16, 256, 2, 8, 1000, 30, 0, 0, 0, 0, 0, 0 },
        { KS_T_BF16, 64, 2, 8, 1500, 37, 128, 0, 1, 0, 0, 0 },
        { KS_T_BF16, 128, 2, 5, 1020, 9, 0, 512, 0, 0, 0, 24 },
        { KS_T_BF16, 64, 1, 16, 2240, 40, 700, 0, 0, 0, 0, 0 },
        { KS_T_F8E4M3, 128, 4, 8, 1000, 40, 0, 0, 0, 0, 0, 24 },
        { KS_T_F8E4M3, 64, 2, 8, 50, 40, 100, 0, 1, 0, 0, 0 },
        { KS_T_F8E4M3, 256, 1, 8, 2000, 5, 0, 0, 0, 0, 0, 0 },
        { KS_T_BF16, 576, 1, 16, 1023, 2, 0, 0, 0, 0, 512, 0 },
        { KS_T_F8E4M3, 576, 1, 20, 1040, 2, 0, 0, 0, 0, 512, 0 },
        { KS_T_F8E4M3, 576, 1, 8, 0, 5, 0, 0, 0, 0, 512, 0 },
        { KS_T_F8E4M3, 128, 1, 4, 2000, 40, 300, 0, 1, 1, 0, 0 },
    };
    (void)st;
    if (no_gpu[0]) skip();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) one_shape(&shapes[i]);
}

/* Where they do not, attention by warpgroups is not used: no error, but somebody should know. */
static void products_of_warps_and_of_warpgroups_have_the_same_bits(void **st)
{
    uint32_t n = 0, wrong = 0;
    (void)st;
    if (no_gpu[0]) skip();
    ok((cudaError_t)cu_flash_wg_agrees(&n, &wrong));
    by_warpgroups = n && !wrong;
    if (!n) print_message("  this GPU has no products of warpgroups\n");
    if (n) print_message("  %u of %u numbers differ\n", wrong, n);
    if (!by_warpgroups) skip();
}

static void shapes_that_it_does_not_fit_are_told(void **st)
{
    (void)st;
    assert_int_equal(cu_flash_queries(KS_T_F32, 8, 128, 128, 227 * 1024, 0), 0);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 17, 128, 128, 227 * 1024, 0), 0);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 8, 192, 128, 227 * 1024, 0), 0);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 128, 576, 512, 99 * 1024, 0), 128); /* of a block: one row */
    assert_int_equal(cu_flash_queries(KS_T_F8E4M3, 16, 576, 512, 99 * 1024, 0), 16);
    assert_int_equal(cu_flash_queries(KS_T_F8E4M3, 16, 576, 512, 64 * 1024, 0), 0);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 8, 96, 96, 227 * 1024, 0), 0);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 8, 128, 128, 48 * 1024, 0), 0);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 8, 128, 128, 99 * 1024, 0), 64);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 8, 256, 256, 99 * 1024, 0), 64);
    assert_int_equal(cu_flash_queries(KS_T_F8E4M3, 8, 128, 128, 99 * 1024, 0), 128);
    assert_int_equal(cu_flash_queries(KS_T_F8E4M3, 8, 128, 128, 227 * 1024, 1), 192); /* by warpgroups */
    assert_int_equal(cu_flash_queries(KS_T_F8E4M3, 8, 128, 128, 99 * 1024, 1), 128);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 16, 256, 256, 227 * 1024, 1), 128);
    assert_int_equal(cu_flash_queries(KS_T_BF16, 128, 576, 512, 227 * 1024, 1), 128); /* not by them */
}

static int set_up(void **st)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    (void)st;
    if (rc == cudaSuccess && n == 0) rc = cudaErrorNoDevice;
    if (rc != cudaSuccess) (void)snprintf(no_gpu, sizeof no_gpu, "%s", cudaGetErrorString(rc));
    if (no_gpu[0]) print_message("what needs a GPU is skipped: %s\n", no_gpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_warps_and_of_warpgroups_have_the_same_bits),
        cmocka_unit_test(tensor_cores_give_the_plain_result_and_the_same_bits_in_any_company),
        cmocka_unit_test(shapes_that_it_does_not_fit_are_told),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
