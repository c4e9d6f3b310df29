/* The compute pool: one pinned worker a physical core, spinning while work is near, parked when idle.
 *
 * The thread that calls ks_pool_run is worker 0 and takes its share; so a pool of one thread has no
 * thread of its own. One caller at a time. Nothing here changes results: tasks are pure functions.
 */
#ifndef KS_SCHED_POOL_H
#define KS_SCHED_POOL_H

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ks_pool ks_pool;

typedef struct ks_pool_opts {
    uint32_t n_threads;   /* 1 .. 1024, the caller included */
    const uint32_t *cpus; /* (n_threads) logical CPUs to pin to, or NULL: not pinned */
    uint32_t spin_us;     /* how long workers spin before they park; 0: default */
    size_t scratch_bytes; /* a worker, 64-byte aligned; may be 0 */
} ks_pool_opts;

KS_MUST_CHECK int ks_pool_open(const ks_pool_opts *o, ks_pool **ret, ks_err *err);
void ks_pool_close(ks_pool *p); /* NULL is fine */
uint32_t ks_pool_threads(const ks_pool *p);

/* Runs fn(arg, begin, end, worker) over disjoint ranges covering [0, n), each at most `grain` units
 * (0: n / threads), returns when all are done. Each worker owns one contiguous stretch of the ranges, the same one
 * each time; whoever has none left takes over those that a late worker has not begun, so a worker that the system
 * does not run holds nobody up. Scratch of the worker: ks_pool_scratch. */
typedef void (*ks_pool_fn)(void *arg, uint32_t begin, uint32_t end, uint32_t worker);
void ks_pool_run(ks_pool *p, uint32_t n, uint32_t grain, ks_pool_fn fn, void *arg);
/* Pins the calling thread, which is going to call ks_pool_run, to the first of the pool's CPUs, so that no worker
 * shares its own. Not for a thread that starts others: they would inherit it. release, by the last adopted thread,
 * gives its CPUs back. */
void ks_pool_adopt(ks_pool *p);
void ks_pool_release(ks_pool *p);
void *ks_pool_scratch(ks_pool *p, uint32_t worker);
/* Grows every worker's scratch; not while running. */
KS_MUST_CHECK int ks_pool_reserve(ks_pool *p, size_t scratch_bytes, ks_err *err);
/* Counters for tests: forks so far, parks so far. */
void ks_pool_counts(const ks_pool *p, uint64_t *ret_runs, uint64_t *ret_parks);

#endif
