/* bench_kernels [PLUGIN.so [THREADS [FILTER]]]: each kernel as a fraction of what this machine can do, measured in the
 * same run. Not a test. Only for CPUs with AVX2 (the ceilings are written in it).
 *
 *   weights from RAM, one row     fraction of the read bandwidth at the same number of threads
 *   many rows, attention          fraction of the multiply-add peak: maddubs + 16-bit add for integers, fma for floats
 *
 * Every kernel run has a ceiling run directly before it; printed are the best run and the median of the pairs'
 * ratios, since a shared machine changes its speed from second to second. */
#include "rows_under_test.h"

#include <dlfcn.h>
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MAX_THREADS 64
#define PAIRS 9
#define POOL_BYTES                                                                                     \
    ((size_t)384 << 20) /* weights: twelve times the last-level cache of the machine it was written on \
                         */

typedef struct bench {
    const ks_plugin *plugin;
    uint32_t n_threads;
    const char *filter;
    uint8_t *pool, *x; /* weights; activations and outputs */
    void *scratch[MAX_THREADS];
} bench;

typedef struct job {
    void (*fn)(bench *b, const void *arg, uint32_t thread);
    bench *b;
    const void *arg;
    uint32_t thread;
    pthread_barrier_t *start;
    double seconds;
} job;

/* CPU time of this thread: what other programs take away does not count. */
static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* cannot fail with this clock */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *worker(void *arg)
{
    job *j = arg;
    (void)pthread_barrier_wait(j->start);
    double t0 = now();
    j->fn(j->b, j->arg, j->thread);
    j->seconds = now() - t0;
    return NULL;
}

/* Seconds of the slowest of n_threads calls. */
static double parallel(bench *b, void (*fn)(bench *b, const void *arg, uint32_t thread), const void *arg)
{
    pthread_t id[MAX_THREADS];
    job jobs[MAX_THREADS];
    pthread_barrier_t start;
    double slowest = 0;
    if (pthread_barrier_init(&start, NULL, b->n_threads) != 0) return NAN;
    for (uint32_t i = 0; i < b->n_threads; i++) {
        jobs[i] = (job) { .fn = fn, .b = b, .arg = arg, .thread = i, .start = &start };
        if (i && pthread_create(&id[i], NULL, worker, &jobs[i]) != 0) {
            (void)fprintf(stderr, "bench_kernels: no thread\n");
            exit(1);
        }
    }
    (void)worker(&jobs[0]);
    for (uint32_t i = 0; i < b->n_threads; i++) {
        if (i) (void)pthread_join(id[i], NULL); /* ids are ours */
        slowest = fmax(slowest, jobs[i].seconds);
    }
    (void)pthread_barrier_destroy(&start);
    return slowest;
}

/* --------------------------------------------------------------------------------------------- ceilings */

static volatile int64_t sink; /* keeps the loops' results alive */

__attribute__((target("avx2"))) static void read_pool(bench *b, const void *arg, uint32_t thread)
{
    size_t share = POOL_BYTES / b->n_threads / 4096 * 4096;
    const uint8_t *p = b->pool + share * thread;
    __m256i s[4] = { 0 };
    (void)arg;
    for (size_t i = 0; i < share; i += 128) {
        _mm_prefetch((const char *)p + i + 2048, _MM_HINT_T0);
        _mm_prefetch((const char *)p + i + 2112, _MM_HINT_T0);
        for (uint32_t v = 0; v < 4; v++)
            s[v] = _mm256_xor_si256(s[v], _mm256_load_si256((const __m256i *)(const void *)(p + i + 32 * v)));
    }
    s[0] = _mm256_xor_si256(_mm256_xor_si256(s[0], s[1]), _mm256_xor_si256(s[2], s[3]));
    sink += _mm256_extract_epi64(s[0], 0);
}

#define PEAK_ROUNDS 4000000u

#define TEN_TIMES(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)

/* maddubs + add in 16 bits: 32 multiply-adds a pair. Each of ten chains feeds on itself, which no compiler can shorten;
 * ten are more than latency times throughput. */
__attribute__((target("avx2"))) static void maddubs_peak(bench *b, const void *arg, uint32_t thread)
{
    __m256i u = _mm256_set1_epi8((char)(thread + 1));
    (void)b;
    (void)arg;
#define BEGIN(i) __m256i s##i = _mm256_set1_epi16(i);
#define STEP(i) s##i = _mm256_add_epi16(s##i, _mm256_maddubs_epi16(u, s##i));
#define END(i) u = _mm256_xor_si256(u, s##i);
    TEN_TIMES(BEGIN)
    for (uint32_t i = 0; i < PEAK_ROUNDS; i++) {
        TEN_TIMES(STEP)
    }
    TEN_TIMES(END)
#undef BEGIN
#undef STEP
#undef END
    sink += _mm256_extract_epi64(u, 0);
}

__attribute__((target("avx2,fma"))) static void fma_peak(bench *b, const void *arg, uint32_t thread)
{
    __m256 x = _mm256_set1_ps(0.5f + (float)thread * 0.001f), y = _mm256_set1_ps(1.0f);
    (void)b;
    (void)arg;
#define BEGIN(i) __m256 s##i = _mm256_set1_ps(i);
#define STEP(i) s##i = _mm256_fmadd_ps(s##i, x, y);
#define END(i) x = _mm256_add_ps(x, s##i);
    TEN_TIMES(BEGIN)
    for (uint32_t i = 0; i < PEAK_ROUNDS; i++) {
        TEN_TIMES(STEP) __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    TEN_TIMES(END)
#undef BEGIN
#undef STEP
#undef END
    sink += (int64_t)_mm256_cvtss_f32(x);
}

typedef struct ceiling {
    const char *unit;
    void (*fn)(bench *b, const void *arg, uint32_t thread);
    double work; /* of one call, in units of 1e9 */
    bool per_thread;
} ceiling;

static const ceiling by_bytes = { "GB/s", read_pool, (double)POOL_BYTES * 1e-9, false };
static const ceiling by_maddubs = { "Gmac/s", maddubs_peak, PEAK_ROUNDS * 10.0 * 32 * 1e-9, true };
static const ceiling by_fma = { "Gmac/s", fma_peak, PEAK_ROUNDS * 10.0 * 8 * 1e-9, true };

/* ---------------------------------------------------------------------------------------------- kernels */

typedef struct task {
    const ks_kernel *row;
    const void *args;
    uint32_t n_units, n_args,
        rounds; /* n_args argument structs, arg_bytes apart, one after the other, `rounds` times */
    size_t arg_bytes;
} task;

static void run_task(bench *b, const void *arg, uint32_t thread)
{
    const task *t = arg;
    uint32_t begin = (uint32_t)((uint64_t)t->n_units * thread / b->n_threads);
    uint32_t end = (uint32_t)((uint64_t)t->n_units * (thread + 1) / b->n_threads);
    for (uint32_t r = 0; r < t->rounds; r++)
        for (uint32_t i = 0; i < t->n_args; i++)
            t->row->fn((const uint8_t *)t->args + i * t->arg_bytes, begin, end, b->scratch[thread]);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* work: of the task's whole run, in the ceiling's unit. */
static void measure(bench *b, const char *name, const task *t, const ceiling *c, double work)
{
    double ratio[PAIRS], best = 0, best_ceiling = 0;
    if (b->filter && !strstr(name, b->filter)) return;
    (void)parallel(b, run_task, t); /* warm-up */
    for (uint32_t i = 0; i < PAIRS; i++) {
        double limit = c->work * (c->per_thread ? b->n_threads : 1) / parallel(b, c->fn, NULL);
        double rate = work / parallel(b, run_task, t);
        ratio[i] = rate / limit;
        best = fmax(best, rate);
        best_ceiling = fmax(best_ceiling, limit);
    }
    qsort(ratio, PAIRS, sizeof ratio[0], compare);
    (void)printf("%-34s %8.1f of %8.1f %-6s  best/best %3.0f %%  median of pairs %3.0f %% (%.0f..%.0f)\n", name, best,
                 best_ceiling, c->unit, 100 * best / best_ceiling, 100 * ratio[PAIRS / 2], 100 * ratio[0],
                 100 * ratio[PAIRS - 1]);
    (void)fflush(stdout);
}

#define N_OUT 1536u
#define N_IN 2048u

static void fill_act(bench *b, uint32_t n_rows, ks_act *act)
{
    *act = (ks_act) { .q_stride = N_IN, .scale_stride = N_IN / 128, .sum_stride = N_IN / 32 };
    act->q = (int8_t *)b->x + (32u << 20);
    act->scale = (float *)(void *)(b->x + (40u << 20));
    act->sum = (int32_t *)(void *)(b->x + (44u << 20));
    ks_quant_args q = { .size = sizeof q, .n_rows = n_rows, .n_in = N_IN, .x = (const float *)(const void *)b->x };
    q.x_stride = N_IN;
    q.out = act;
    find_row(b->plugin, KS_K_QUANT, 0)->fn(&q, 0, n_rows, b->scratch[0]);
}

/* rows == 1: as many matrices as the pool holds, once each. More: one matrix, several times. */
static void bench_matmul(bench *b, uint32_t wtype, uint32_t group, uint32_t rows)
{
    static ks_matmul_args args[4096];
    char name[64];
    ks_act act;
    size_t strip = ks_t16_strip_bytes(wtype, N_IN, group), bytes = strip * ks_t16_strips(N_OUT);
    uint32_t n = rows == 1 ? (uint32_t)(POOL_BYTES / bytes) : 1;
    fill_act(b, rows, &act);
    for (uint32_t i = 0; i < n; i++) {
        args[i] =
            (ks_matmul_args) { .size = sizeof args[i], .n_rows = rows, .n_in = N_IN, .n_out = N_OUT, .group = group };
        args[i].w = b->pool + i * bytes;
        args[i].strip_bytes = strip;
        args[i].act = &act;
        args[i].x = (const float *)(const void *)b->x;
        args[i].x_stride = N_IN;
        args[i].y = (float *)(void *)(b->x + (48u << 20));
        args[i].y_stride = N_OUT;
    }
    task t = {
        .row = find_row(b->plugin, KS_K_MATMUL, wtype), .args = args, .n_units = ks_t16_strips(N_OUT), .n_args = n
    };
    t.arg_bytes = sizeof args[0];
    t.rounds = rows == 1 ? 1 : 512 / rows;
    (void)snprintf(name, sizeof name, "%s %u row%s%s", t.row->name, rows, rows > 1 ? "s" : "",
                   rows > 1 ? "" : " from RAM");
    bool ints = wtype == KS_T_I4 || wtype == KS_T_I8 || wtype == KS_T_MXFP4;
    if (rows == 1)
        measure(b, name, &t, &by_bytes, (double)bytes * n * 1e-9);
    else
        measure(b, name, &t, ints ? &by_maddubs : &by_fma, (double)N_OUT * N_IN * rows * t.rounds * 1e-9);
}

/* 32 query heads on 4 kv heads of 128, like many models of today. */
static void bench_attn(bench *b, uint32_t type, uint32_t n_rows, uint32_t pos)
{
    enum { HEADS = 32, KV = 4, D = 128, PAGE = 64 };
    static uint32_t pages[8192 / PAGE];
    char name[64];
    uint32_t size = ks_type_bits(type) / 8, n_keys = pos + n_rows;
    for (uint32_t i = 0; i < 8192 / PAGE; i++) pages[i] = i;
    ks_attn_args a = { .size = sizeof a, .n_rows = n_rows, .n_heads = HEADS, .n_kv_heads = KV, .d_k = D, .d_v = D };
    a.page_tok = PAGE;
    a.pos = pos;
    a.scale = 0.088f;
    a.q = (const float *)(const void *)b->x;
    a.q_stride = HEADS * D;
    a.o = (float *)(void *)(b->x + (48u << 20));
    a.o_stride = HEADS * D;
    a.pages = pages;
    a.k = b->pool;
    a.v = b->pool + (64u << 20);
    a.k_page_bytes = a.v_page_bytes = (size_t)PAGE * KV * D * size;
    a.k_stride = a.v_stride = KV * D;
    task t = {
        .row = find_row(b->plugin, KS_K_ATTN, type), .args = &a, .n_units = n_rows * KV, .n_args = 1, .rounds = 1
    };
    if (!t.row) return; /* another plugin's business */
    t.rounds = n_rows == 1 ? 32 : 1;
    double keys = 0;
    for (uint32_t r = 0; r < n_rows; r++) keys += pos + r + 1;
    (void)snprintf(name, sizeof name, "%s %u rows, %u keys", t.row->name, n_rows, n_keys);
    measure(b, name, &t, &by_fma, keys * HEADS * 2 * D * t.rounds * 1e-9);
}

/* Row by row work, held against reading and writing its bytes from RAM: over 100 % where it stays in a cache. */
static void bench_plain(bench *b)
{
    enum { ROWS = 256 };
    static uint32_t pos[ROWS];
    float *x = (float *)(void *)b->x, *y = (float *)(void *)(b->x + (48u << 20));
    ks_act act;
    fill_act(b, 1, &act);
    for (uint32_t i = 0; i < ROWS; i++) pos[i] = 1000 + i;
    ks_quant_args q = { .size = sizeof q, .n_rows = ROWS, .n_in = N_IN, .x = x, .x_stride = N_IN, .out = &act };
    ks_norm_args n = {
        .size = sizeof n, .kind = KS_NORM_RMS, .n_rows = ROWS, .n = N_IN, .width = N_IN, .w_width = N_IN
    };
    n.eps = 1e-6f;
    n.x = n.weight = x;
    n.y = y;
    n.x_stride = n.y_stride = N_IN;
    ks_rope_args r = { .size = sizeof r, .kind = KS_ROPE_HALF, .n_rows = ROWS, .n_heads = 16, .head_dim = 128 };
    r.rot_dim = 128;
    r.mscale = 1;
    r.inv_freq = x;
    r.pos = pos;
    r.x = y;
    r.x_stride = N_IN;
    ks_glu_args g = { .size = sizeof g, .kind = KS_ACT_SILU, .n_rows = ROWS, .n = N_IN / 2, .x = x, .x_stride = N_IN };
    g.y = y;
    g.y_stride = N_IN;
    const struct {
        const char *name;
        uint32_t op;
        const void *args;
        double bytes;
    } plain[] = { { "quant 2048 columns", KS_K_QUANT, &q, 5.0 * N_IN },
                  { "norm 2048 columns", KS_K_NORM, &n, 8.0 * N_IN },
                  { "rope 16 heads of 128", KS_K_ROPE, &r, 8.0 * N_IN },
                  { "glu silu 1024 outputs", KS_K_GLU, &g, 6.0 * N_IN } };
    for (uint32_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        task t = { .row = find_row(b->plugin, plain[i].op, 0), .args = plain[i].args, .n_units = ROWS, .n_args = 1 };
        t.rounds = 40;
        if (!t.row) continue;
        measure(b, plain[i].name, &t, &by_bytes, plain[i].bytes * ROWS * t.rounds * 1e-9);
    }
}

static int setup(bench *b, const char *path)
{
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    b->plugin = lib ? dlsym(lib, KS_PLUGIN_SYMBOL) : NULL;
    if (!b->plugin) return fprintf(stderr, "bench_kernels: %s: %s\n", path, dlerror()), -1;
    b->pool = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->x = mmap(NULL, (size_t)128 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->pool == MAP_FAILED || b->x == MAP_FAILED) return fprintf(stderr, "bench_kernels: out of memory\n"), -1;
    (void)madvise(b->pool, POOL_BYTES, MADV_HUGEPAGE); /* without huge pages the figures are lower, not wrong */
    /* 0x3c everywhere: a small positive number in every float type, 12 in nibbles, 60 in bytes. */
    memset(b->pool, 0x3c, POOL_BYTES);
    for (size_t i = 0; i < ((size_t)32 << 20) / 4; i++) ((float *)(void *)b->x)[i] = (float)(i % 251) * 0.01f - 1.25f;
    for (uint32_t i = 0; i < b->n_threads; i++) {
        b->scratch[i] = aligned_alloc(64, 1 << 20);
        if (!b->scratch[i]) return fprintf(stderr, "bench_kernels: out of memory\n"), -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        uint32_t type, group;
    } weights[] = { { KS_T_I4, 128 }, { KS_T_I8, 128 }, { KS_T_MXFP4, 32 }, { KS_T_BF16, 0 }, { KS_T_F32, 0 } };
    static const uint32_t rows[] = { 1, 2, 4, 8, 16, 64, 256 };
    bench b = { .n_threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1, .filter = argc > 3 ? argv[3] : NULL };
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || b.n_threads < 1 ||
        b.n_threads > MAX_THREADS)
        return fprintf(stderr, "bench_kernels: needs AVX2 and 1..%d threads\n", MAX_THREADS), 2;
    if (setup(&b, argc > 1 ? argv[1] : KS_BUILD_DIR "/plugins/cpu-avx2.so") != 0) return 1;
    (void)printf("%s, %u thread(s)\n", b.plugin->name, b.n_threads);
    for (uint32_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        for (uint32_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
            bench_matmul(&b, weights[i].type, weights[i].group, rows[r]);
    static const uint32_t caches[] = { KS_T_F32, KS_T_BF16, KS_T_F8E4M3 };
    for (uint32_t i = 0; i < 3; i++) {
        bench_attn(&b, caches[i], 1, 4095);
        bench_attn(&b, caches[i], 256, 0);
    }
    bench_plain(&b);
    return 0;
}
