/* The matrix products of bench_kernels: an expert's gate-up matrix of usual size, 1536 x 2048.
 *
 *   from RAM      each thread has a stretch of the pool of its own and goes through its matrices one after the other,
 *                 so no weight is in a cache: what a token of decoding (one row), a batch of them or a prompt costs
 *   in the cache  each thread has 256 outputs: a task of a prompt, in the second-level cache */
#include "bench.h"

#include "base/base.h"
#include <string.h>

#define N_OUT 1536u
#define N_OUT_CACHED 256u
#define N_IN 2048u
#define WINDOW_BYTES ((size_t)512 << 20) /* of weights in a run from RAM, all threads together */
#define WINDOW_MACS 1e11                 /* a run need not be longer */
#define CACHED_MACS 2e9                  /* a thread's */
#define SPREAD 5u                        /* gathered rows: every fifth */

typedef struct products {
    const ks_kernel *row;
    ks_matmul_args args;
    size_t matrix_bytes;
    uint32_t n_matrices, n_run; /* of a thread: all, and in one run */
    uint32_t next[BENCH_THREADS];
    uint32_t rounds; /* in the cache */
} products;

/* Each run takes other matrices than the last. */
static void run_ram(bench *b, void *arg, uint32_t thread)
{
    products *p = arg;
    ks_matmul_args a = p->args;
    const uint8_t *share = b->pool + thread * bench_share(b);
    a.y = BENCH_Y(b, thread);
    for (uint32_t i = 0; i < p->n_run; i++) {
        a.w = share + (p->next[thread] + i) % p->n_matrices * p->matrix_bytes;
        p->row->fn(&a, 0, ks_t16_strips(a.n_out), b->scratch[thread]);
    }
    p->next[thread] = (p->next[thread] + p->n_run) % p->n_matrices;
}

static void run_cached(bench *b, void *arg, uint32_t thread)
{
    const products *p = arg;
    ks_matmul_args a = p->args;
    a.y = BENCH_Y(b, thread);
    a.w = b->pool + thread * bench_share(b);
    for (uint32_t i = 0; i < p->rounds; i++) p->row->fn(&a, 0, ks_t16_strips(a.n_out), b->scratch[thread]);
}

static void fill_act(const bench *b, uint32_t n_rows, ks_act *act)
{
    *act = (ks_act) { .q_stride = N_IN, .scale_stride = N_IN / 128, .sum_stride = N_IN / 32 };
    act->q = (int8_t *)b->x + (32u << 20);
    act->scale = (float *)(void *)(b->x + (48u << 20));
    act->sum = (int32_t *)(void *)(b->x + (52u << 20));
    for (uint32_t r = 0; r < n_rows; r++) {
        int32_t sum = 0;
        for (uint32_t k = 0; k < N_IN; k++) {
            int32_t q = (int32_t)((r * 7919 + k) * 2654435761u >> 24) % 255 - 127;
            act->q[(size_t)r * N_IN + k] = (int8_t)q;
            sum = (k % 32 ? sum : 0) + q;
            act->sum[(size_t)r * act->sum_stride + k / 32] = sum;
        }
        for (uint32_t k = 0; k < N_IN / 128; k++) act->scale[(size_t)r * act->scale_stride + k] = 0.01f;
    }
}

/* The products of one row of the table with n_rows rows. Returns the seconds a matrix took, for comparison. */
static double measure(bench *b, const ks_kernel *row, uint32_t n_rows, bool ram, double one_row)
{
    static uint32_t rows[256];
    products p = { .row = row, .n_run = 1, .rounds = 1 };
    ks_act act;
    uint32_t n_out = ram ? N_OUT : N_OUT_CACHED;
    bool ints = row->xtype == KS_T_Q8;
    uint32_t group = !ints ? 0 : row->wtype == KS_T_MXFP4 ? 32 : 128;
    char what[64];
    for (uint32_t i = 0; i < n_rows; i++) rows[i] = i * SPREAD;
    fill_act(b, n_rows * SPREAD, &act);
    p.args = (ks_matmul_args) { .size = sizeof p.args, .n_rows = n_rows, .n_in = N_IN, .n_out = n_out, .group = group };
    p.args.strip_bytes = ks_t16_strip_bytes(row->wtype, N_IN, group);
    p.args.act = &act;
    p.args.x = (const float *)(const void *)b->x;
    p.args.x_stride = N_IN;
    p.args.rows = rows;
    p.args.y_stride = n_out;
    p.matrix_bytes = p.args.strip_bytes * ks_t16_strips(n_out);
    p.n_matrices = (uint32_t)(bench_share(b) / p.matrix_bytes);
    double macs = (double)n_out * N_IN * n_rows;
    bench_task t = { .row = row, .what = what, .arg = &p, .kind = ints ? KS_CEIL_INT8 : KS_CEIL_F32 };
    if (ram) {
        double n = KS_MIN((double)WINDOW_BYTES / (double)p.matrix_bytes, WINDOW_MACS / macs) / b->n_threads;
        p.n_run = KS_MIN(KS_MAX((uint32_t)n, 1u), p.n_matrices);
        t.fn = run_ram;
        t.bytes = (double)p.matrix_bytes * p.n_run * b->n_threads;
        if (n_rows > 1) t.macs = macs * p.n_run * b->n_threads;
    } else {
        p.rounds = KS_MAX((uint32_t)(CACHED_MACS / macs), 1u);
        t.fn = run_cached;
        t.macs = macs * p.rounds * b->n_threads;
    }
    (void)snprintf(what, sizeof what, "%u row%s%s", n_rows, n_rows > 1 ? "s" : "", ram ? " from RAM" : "");
    double seconds = bench_measure(b, &t) / p.n_run;
    if (ram && n_rows > 1 && one_row > 0 && seconds > 0)
        (void)printf("%42s %8.2f x the time of one row\n", "", seconds / one_row);
    return seconds;
}

void bench_matmul(bench *b)
{
    static const struct {
        uint32_t rows;
        bool ram;
    } cases[] = { { 1, true },  { 2, true },   { 4, true },   { 8, true },   { 16, true },
                  { 32, true }, { 128, true }, { 16, false }, { 64, false }, { 128, false } };
    const ks_kernel *row;
    for (uint32_t i = 0; (row = bench_row(b, KS_K_MATMUL, i)); i++) {
        double one = 0;
        for (uint32_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
            double seconds = measure(b, row, cases[c].rows, cases[c].ram, one);
            if (c == 0) one = seconds;
        }
    }
}
