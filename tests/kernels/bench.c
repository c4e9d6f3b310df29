/* Threads, bounds and results of bench_kernels. */
#include "bench.h"

#include "base/base.h"
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define READ_BYTES ((size_t)1 << 30) /* of one reading of the ceiling, all threads together, at most */
#define PEAK_SECONDS 0.01

typedef struct job {
    bench *b;
    bench_fn fn;
    void *arg;
    uint32_t thread;
    pthread_barrier_t *start;
    double seconds;
} job;

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* cannot fail with this clock */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *worker(void *arg)
{
    job *j = arg;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(j->b->cpus[j->thread % j->b->n_cpus], &set);
    (void)pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* a wish: unpinned figures are lower, not wrong */
    (void)pthread_barrier_wait(j->start);
    double t0 = now();
    j->fn(j->b, j->arg, j->thread);
    j->seconds = now() - t0;
    return NULL;
}

double bench_parallel(bench *b, bench_fn fn, void *arg)
{
    pthread_t id[BENCH_THREADS];
    job jobs[BENCH_THREADS];
    pthread_barrier_t start;
    double slowest = 0;
    if (pthread_barrier_init(&start, NULL, b->n_threads) != 0) return NAN;
    for (uint32_t i = 0; i < b->n_threads; i++) {
        jobs[i] = (job) { .fn = fn, .b = b, .arg = arg, .thread = i, .start = &start };
        if (pthread_create(&id[i], NULL, worker, &jobs[i]) != 0) {
            (void)fprintf(stderr, "bench_kernels: no thread\n");
            exit(1);
        }
    }
    for (uint32_t i = 0; i < b->n_threads; i++) {
        (void)pthread_join(id[i], NULL); /* ids are ours */
        slowest = fmax(slowest, jobs[i].seconds);
    }
    (void)pthread_barrier_destroy(&start);
    return slowest;
}

size_t bench_share(const bench *b)
{
    return b->pool_bytes / b->n_threads / 4096 * 4096;
}

const ks_kernel *bench_row(const bench *b, uint32_t op, uint32_t index)
{
    const ks_kernels_iface *k = b->plugin->iface;
    for (uint32_t i = 0; i < k->n_kernels; i++) {
        const void *at = (const uint8_t *)k->kernels + (size_t)i * k->kernel_size;
        const ks_kernel *row = at;
        if (row->op == op && !(row->cpu_required & ~b->cpu) && !index--) return row;
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------------- ceilings */

typedef struct ceiling_run {
    const ks_ceiling *c;
    size_t n; /* bytes of a thread, or rounds */
} ceiling_run;

static volatile uint64_t sink; /* keeps the loops' results alive */

static void run_ceiling(bench *b, void *arg, uint32_t thread)
{
    const ceiling_run *r = arg;
    const uint8_t *p = r->c->kind == KS_CEIL_READ ? b->pool + thread * bench_share(b) + b->read_at : NULL;
    sink = r->c->run(p, r->n);
}

/* Bytes a second over a stretch of the pool that was not read lately. */
static double read_rate(bench *b, const ks_ceiling *c)
{
    size_t share = bench_share(b);
    ceiling_run r = { c, KS_MIN(share, READ_BYTES / b->n_threads / 4096 * 4096) };
    if (b->read_at + r.n > share) b->read_at = 0;
    double seconds = bench_parallel(b, run_ceiling, &r);
    b->read_at += r.n;
    return (double)r.n * b->n_threads / seconds;
}

static void choose_read(bench *b)
{
    double best = 0;
    for (uint32_t i = 0; ks_ceiling_at(i); i++) {
        const ks_ceiling *c = ks_ceiling_at(i);
        if (c->kind != KS_CEIL_READ || (c->cpu & ~b->cpu)) continue;
        double rate = fmax(read_rate(b, c), read_rate(b, c));
        if (rate > best) {
            best = rate;
            b->read = c;
        }
    }
}

/* The fastest loop of a kind with the instructions that the row may use. */
static const ks_ceiling *peak_of(const bench *b, const ks_kernel *row, uint32_t kind)
{
    const ks_ceiling *best = NULL;
    for (uint32_t i = 0; ks_ceiling_at(i); i++) {
        const ks_ceiling *c = ks_ceiling_at(i);
        if (c->kind == kind && !(c->cpu & ~(b->plugin->cpu_required | row->cpu_required))) best = c;
    }
    return best;
}

static double peak_rate(bench *b, const ks_ceiling *c)
{
    ceiling_run r = { c, 1000 };
    double seconds;
    while ((seconds = bench_parallel(b, run_ceiling, &r)) < PEAK_SECONDS) r.n *= 2;
    return (double)r.n * c->per_round * b->n_threads / seconds;
}

/* ----------------------------------------------------------------------------------------------- results */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void tell_json(bench *b, const bench_task *t, const char *bound, double rate, double limit, const double *ratio)
{
    if (!b->json) return;
    (void)fprintf(b->json,
                  "%s\n  {\"kernel\": \"%s\", \"case\": \"%s\", \"threads\": %u, \"unit\": \"%s\", \"rate\": %.2f, "
                  "\"bound\": \"%s\", \"bound_rate\": %.2f, \"fraction_of_bound\": %.3f, \"min\": %.3f, \"max\": %.3f}",
                  b->n_json++ ? "," : "[", t->row->name, t->what, b->n_threads, t->macs > 0 ? "Gmac/s" : "GB/s", rate,
                  bound, limit, ratio[b->pairs / 2], ratio[0], ratio[b->pairs - 1]);
}

double bench_measure(bench *b, const bench_task *t)
{
    double ratio[BENCH_PAIRS], best = INFINITY, best_bound = INFINITY, work = (t->macs > 0 ? t->macs : t->bytes) * 1e-9;
    const ks_ceiling *peak = t->macs > 0 ? peak_of(b, t->row, t->kind) : NULL;
    char name[96];
    (void)snprintf(name, sizeof name, "%s %s", t->row->name, t->what);
    if (b->filter && !strstr(name, b->filter)) return 0;
    if (!b->read) choose_read(b);
    if (t->macs > 0 && !peak) return 0; /* no loop says what this row could reach */
    (void)bench_parallel(b, t->fn, t->arg);
    bool by_bytes = false;
    for (uint32_t i = 0; i < b->pairs; i++) {
        double reading = t->bytes > 0 ? t->bytes / read_rate(b, b->read) : 0;
        double adding = peak ? t->macs / peak_rate(b, peak) : 0;
        double bound = fmax(reading, adding), seconds = bench_parallel(b, t->fn, t->arg);
        by_bytes = reading > adding;
        ratio[i] = bound / seconds;
        best = fmin(best, seconds);
        best_bound = fmin(best_bound, bound);
    }
    qsort(ratio, b->pairs, sizeof ratio[0], compare);
    const char *bound_name = by_bytes ? b->read->name : peak->name;
    (void)printf("%-42s %8.1f of %8.1f %-6s  best/best %3.0f %%  median of pairs %3.0f %% (%.0f..%.0f) of %s%s\n", name,
                 work / best, work / best_bound, t->macs > 0 ? "Gmac/s" : "GB/s", 100 * best_bound / best,
                 100 * ratio[b->pairs / 2], 100 * ratio[0], 100 * ratio[b->pairs - 1], by_bytes ? "reading, " : "",
                 bound_name);
    (void)fflush(stdout);
    tell_json(b, t, bound_name, work / best, work / best_bound, ratio);
    return best;
}

void bench_turns(bench *b, const bench_task *before, const bench_task *after)
{
    double ratio[BENCH_PAIRS];
    char name[96];
    (void)snprintf(name, sizeof name, "%s %s", after->row->name, after->what);
    if (b->filter && !strstr(name, b->filter)) return;
    (void)bench_parallel(b, before->fn, before->arg);
    (void)bench_parallel(b, after->fn, after->arg);
    for (uint32_t i = 0; i < b->pairs; i++) {
        double old = bench_parallel(b, before->fn, before->arg);
        ratio[i] = old / bench_parallel(b, after->fn, after->arg);
    }
    qsort(ratio, b->pairs, sizeof ratio[0], compare);
    (void)printf("%-42s %8.2f times as fast as %s, in turns (%.2f..%.2f)\n", name, ratio[b->pairs / 2],
                 before->row->name, ratio[0], ratio[b->pairs - 1]);
    (void)fflush(stdout);
}
