/* What the parts of bench_kernels share: threads, memory, bounds, one line of result. Not thread-safe but where said.
 */
#ifndef KS_TESTS_KERNELS_BENCH_H
#define KS_TESTS_KERNELS_BENCH_H

#include "cpu/ceiling.h"
#include "rows_under_test.h"
#include <stdbool.h>
#include <stdio.h>

#define BENCH_THREADS 64
#define BENCH_PAIRS 63
#define BENCH_X_BYTES ((size_t)512 << 20)
#define BENCH_Y(b, thread) ((float *)(void *)((b)->x + ((size_t)64 << 20) + (size_t)(thread) * (6u << 20)))

typedef struct bench {
    const ks_plugin *plugin;
    const char *filter; /* part of the name, or NULL */
    uint64_t cpu;
    uint32_t n_threads, n_cpus, pairs, cpus[BENCH_THREADS];
    size_t llc_bytes, pool_bytes;
    uint8_t *pool, *x; /* weights; activations and, from BENCH_Y on, outputs */
    void *scratch[BENCH_THREADS];
    const ks_ceiling *read;
    size_t read_at; /* where the next read of the ceiling begins in each thread's share */
    FILE *json;     /* or NULL */
    uint32_t n_json;
} bench;

typedef void (*bench_fn)(bench *b, void *arg, uint32_t thread); /* on that thread */

/* Seconds of the slowest of n_threads calls, each on a core of its own; time that other programs took away does not
 * count. */
double bench_parallel(bench *b, bench_fn fn, void *arg);

/* Bytes of the pool that belong to a thread: whole multiples of 4096 from share * thread on. */
size_t bench_share(const bench *b);

/* Rows of the plugin that this machine can run: NULL beyond the last. */
const ks_kernel *bench_row(const bench *b, uint32_t op, uint32_t index);

/* What one run of a task does, on all threads together. A bound is the time that the slower of both needs. */
typedef struct bench_task {
    const ks_kernel *row;
    const char *what; /* "1 row from RAM" */
    bench_fn fn;
    void *arg;
    double bytes, macs; /* 0: no matter */
    uint32_t kind;      /* KS_CEIL_INT8 or _F32, of macs */
} bench_task;

/* Runs the task and its bound in turns and tells both. Returns the best seconds of a run; 0 if the filter skips it. */
double bench_measure(bench *b, const bench_task *t);

/* Runs both in turns and tells how many times as fast the second one is: median of the pairs, least, most. */
void bench_turns(bench *b, const bench_task *before, const bench_task *after);

void bench_matmul(bench *b);
void bench_attn(bench *b);

#endif
