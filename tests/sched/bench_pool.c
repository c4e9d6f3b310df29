/* How long a fork and join takes: bench_pool THREADS [RUNS]. Prints the best and the median of the means over batches,
 * for one empty chunk a thread, back to back. Not a test: seconds are for people. */
#include "base/base.h"
#include "base/clock.h"
#include "cpu/cpu.h"
#include "sched/pool.h"
#include <stdio.h>

#define BATCHES 101u

static void nothing(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)arg, (void)begin, (void)end, (void)worker;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    uint32_t cpus[1024], cores = ks_cpu_cores(cpus, KS_COUNT(cpus));
    unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : cores,
                  runs = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000;
    double ns[BATCHES];
    ks_err err;
    ks_pool *p;
    if (n < 1 || n > cores || runs < 1) {
        (void)fprintf(stderr, "usage: bench_pool THREADS [RUNS]: 1 to %u threads\n", (unsigned)cores);
        return 2;
    }
    const ks_pool_opts o = { .n_threads = (uint32_t)n, .cpus = cpus };
    if (ks_pool_open(&o, &p, &err)) {
        (void)fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    for (uint32_t b = 0; b < BATCHES; b++) {
        uint64_t t0 = ks_now_ns();
        for (unsigned long i = 0; i < runs; i++) ks_pool_run(p, (uint32_t)n, 1, nothing, NULL);
        ns[b] = (double)(ks_now_ns() - t0) / (double)runs;
    }
    qsort(ns, BATCHES, sizeof *ns, by_value);
    printf("%lu threads: fork and join %.0f ns (best), %.0f ns (median)\n", n, ns[0], ns[BATCHES / 2]);
    ks_pool_close(p);
    return 0;
}
