/* Fork and join without a lock.
 *
 * A fork is one store to `gen`, which every worker watches; a join is one word a worker, `done`, which the
 * caller watches. Both are futex words: who has watched long enough says so (`parked`, `watched`) and sleeps.
 * Sleeper and waker write their own word first and read the other's after, all sequentially consistent, so
 * one of the two always sees the other; the kernel compares the word once more before it sleeps.
 *
 * Watching pays only while each thread has a core of its own. With more threads than cores, a watcher
 * keeps a worker from running: then everybody yields a few times and sleeps.
 *
 * Shared words lie on cache lines of their own. The job's fields are plain: written before `gen` is stored, read
 * after it was loaded, and not touched again before every worker has stored `done`.
 */
#include "sched/pool.h"
#include "base/base.h"
#include "base/clock.h"
#include "cpu/cpu.h"
#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LINE 64
#define THREADS_MAX 1024u
#define SPIN_DEFAULT_US 50u
#define PAUSES_A_LOOK 32    /* at the clock: about a microsecond */
#define YIELDS_IF_CROWDED 4 /* before sleep */
#define TAIL_PART 10u       /* of the chunks, the last tenth goes to whoever is free */

typedef struct worker {
    _Alignas(LINE) _Atomic uint32_t done; /* last gen it finished; futex word of the caller */
    _Atomic uint32_t watched;             /* the caller sleeps, or is about to, on `done` */
    ks_pool *pool;
    void *scratch;
    pthread_t thread;
    uint32_t index;
} worker;

struct ks_pool {
    _Alignas(LINE) _Atomic uint32_t gen;    /* number of the newest job; futex word of the workers */
    _Alignas(LINE) _Atomic uint32_t parked; /* workers asleep or about to be */
    _Atomic uint64_t parks;
    _Alignas(LINE) _Atomic uint64_t tail; /* next chunk of the dynamic part; goes past the last one, so wider */
    _Alignas(LINE) ks_pool_fn fn;         /* the job: see above */
    void *arg;
    uint32_t n, grain, n_chunks, n_static;
    bool stop;
    /* The caller's own. */
    _Alignas(LINE) atomic_bool running;
    uint64_t runs, spin_ns;
    uint32_t n_threads, n_started; /* started: worker threads that exist, without worker 0 */
    size_t scratch_bytes;
    worker *workers; /* (n_threads), 0 is the caller's */
};

/* ---- Waiting */

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    /* Any reason to return (changed, signal, spurious) is one to look again. */
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0); /* cannot fail for our own word */
}

/* True once the word differs from `old`; false if it is time to sleep. */
static bool watch(const _Atomic uint32_t *word, uint32_t old, uint64_t spin_ns)
{
    if (!spin_ns) {
        for (int i = 0; i < YIELDS_IF_CROWDED; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != old) return true;
            (void)sched_yield(); /* cannot fail on Linux */
        }
        return false;
    }
    uint64_t start = 0; /* the clock is read only if the first looks were in vain */
    for (;;) {
        for (int i = 0; i < PAUSES_A_LOOK; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != old) return true;
            _mm_pause();
        }
        uint64_t now = ks_now_ns();
        if (!start) start = now;
        if (now - start >= spin_ns) return false;
    }
}

static uint32_t await_job(ks_pool *p, uint32_t seen)
{
    if (!watch(&p->gen, seen, p->spin_ns)) {
        atomic_fetch_add(&p->parked, 1); /* pairs with the load in fork_job */
        atomic_fetch_add_explicit(&p->parks, 1, memory_order_relaxed);
        while (atomic_load(&p->gen) == seen) futex_wait(&p->gen, seen);
        atomic_fetch_sub(&p->parked, 1);
    }
    return atomic_load_explicit(&p->gen, memory_order_acquire);
}

static void await_worker(const ks_pool *p, worker *w, uint32_t gen)
{
    for (uint32_t old; (old = atomic_load_explicit(&w->done, memory_order_acquire)) != gen;) {
        if (watch(&w->done, old, p->spin_ns)) continue;
        atomic_store(&w->watched, 1); /* pairs with the load in tell_done */
        while (atomic_load(&w->done) == old) futex_wait(&w->done, old);
        atomic_store(&w->watched, 0);
    }
}

static void tell_done(worker *w, uint32_t gen)
{
    atomic_store(&w->done, gen);
    if (atomic_load(&w->watched)) futex_wake(&w->done, 1);
}

static void fork_job(ks_pool *p, uint32_t gen)
{
    atomic_store(&p->gen, gen);
    if (atomic_load(&p->parked)) futex_wake(&p->gen, INT_MAX);
}

/* ---- Work */

static void run_chunk(const ks_pool *p, uint32_t chunk, uint32_t index)
{
    uint32_t begin = chunk * p->grain, left = p->n - begin; /* chunk < n_chunks: no overflow */
    p->fn(p->arg, begin, begin + KS_MIN(left, p->grain), index);
}

/* The static part lies in one piece per worker, so that each reads its own stretch of the weights, the same one
 * each time. */
static void run_share(ks_pool *p, uint32_t index)
{
    uint32_t chunk = (uint32_t)((uint64_t)p->n_static * index / p->n_threads);
    uint32_t end = (uint32_t)((uint64_t)p->n_static * (index + 1) / p->n_threads);
    for (; chunk < end; chunk++) run_chunk(p, chunk, index);
    if (p->n_static == p->n_chunks) return;
    for (uint64_t next; (next = atomic_fetch_add_explicit(&p->tail, 1, memory_order_relaxed)) < p->n_chunks;)
        run_chunk(p, (uint32_t)next, index);
}

void ks_pool_run(ks_pool *p, uint32_t n, uint32_t grain, ks_pool_fn fn, void *arg)
{
    bool busy = atomic_exchange_explicit(&p->running, true, memory_order_acquire);
    KS_ASSERT(!busy); /* nested, or two callers */
    if (!grain) grain = n / p->n_threads + (n % p->n_threads != 0);
    p->fn = fn;
    p->arg = arg;
    p->n = n;
    p->grain = grain;
    p->n_chunks = n ? n / grain + (n % grain != 0) : 0;
    p->n_static = p->n_chunks - p->n_chunks / TAIL_PART;
    if (p->n_chunks <= 1 || p->n_threads == 1) { /* nothing to share */
        for (uint32_t i = 0; i < p->n_chunks; i++) run_chunk(p, i, 0);
    } else {
        uint32_t gen = atomic_load_explicit(&p->gen, memory_order_relaxed) + 1;
        atomic_store_explicit(&p->tail, p->n_static, memory_order_relaxed);
        p->runs++;
        fork_job(p, gen);
        run_share(p, 0);
        for (uint32_t i = 1; i < p->n_threads; i++) await_worker(p, &p->workers[i], gen);
    }
    atomic_store_explicit(&p->running, false, memory_order_release);
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    ks_pool *p = w->pool;
    for (uint32_t gen = 0;;) {
        gen = await_job(p, gen);
        if (p->stop) return NULL;
        run_share(p, w->index);
        tell_done(w, gen);
    }
}

/* ---- Opening and closing */

/* Pinning is a wish: a CPU may have gone from the process's set since the caller looked. */
static void pin(pthread_t thread, uint32_t cpu)
{
    cpu_set_t *set = CPU_ALLOC((size_t)cpu + 1);
    size_t bytes = CPU_ALLOC_SIZE((size_t)cpu + 1);
    if (!set) return;
    CPU_ZERO_S(bytes, set);
    CPU_SET_S((size_t)cpu, bytes, set);
    (void)pthread_setaffinity_np(thread, bytes, set); /* see above */
    CPU_FREE(set);
}

/* Signals belong to the other threads of the process. */
static int start_workers(ks_pool *p, const uint32_t *cpus, ks_err *err)
{
    sigset_t all, old;
    int reason = 0;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old); /* fails for a bad `how` only */
    for (uint32_t i = 1; i < p->n_threads && !reason; i++) {
        worker *w = &p->workers[i];
        char name[16];
        reason = pthread_create(&w->thread, NULL, worker_main, w);
        if (reason) break;
        p->n_started++;
        (void)snprintf(name, sizeof name, "ks-pool-%hu", (unsigned short)i);
        (void)pthread_setname_np(w->thread, name); /* only a help for people */
        if (cpus) pin(w->thread, cpus[i]);
    }
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!reason) return 0;
    return ks_fail(err, KS_E_LIMIT, "cannot start compute thread %u of %u: %s; use fewer threads",
                   (unsigned)p->n_started + 2, (unsigned)p->n_threads, strerrordesc_np(reason));
}

/* More threads than cores that are ours? */
static bool is_crowded(uint32_t n_threads)
{
    uint32_t *cpus = ks_calloc(n_threads, sizeof *cpus);
    uint32_t cores = cpus ? ks_cpu_cores(cpus, n_threads) : 1;
    free(cpus);
    return cores < n_threads;
}

int ks_pool_open(const ks_pool_opts *o, ks_pool **ret, ks_err *err)
{
    if (o->n_threads < 1 || o->n_threads > THREADS_MAX)
        return ks_fail(err, KS_E_INVAL, "%u compute threads: 1 to %u are possible", (unsigned)o->n_threads,
                       THREADS_MAX);
    ks_pool *p = aligned_alloc(LINE, sizeof *p);
    if (!p) return ks_fail(err, KS_E_NOMEM, "no memory for the compute pool");
    memset(p, 0, sizeof *p);
    p->n_threads = o->n_threads;
    if (!is_crowded(o->n_threads)) p->spin_ns = 1000u * (uint64_t)(o->spin_us ? o->spin_us : SPIN_DEFAULT_US);
    int rc = 0;
    p->workers = aligned_alloc(LINE, p->n_threads * sizeof *p->workers);
    if (!p->workers) {
        rc = ks_fail(err, KS_E_NOMEM, "no memory for %u compute threads", (unsigned)o->n_threads);
        goto out;
    }
    memset(p->workers, 0, p->n_threads * sizeof *p->workers);
    for (uint32_t i = 0; i < p->n_threads; i++) {
        p->workers[i].pool = p;
        p->workers[i].index = i;
    }
    rc = ks_pool_reserve(p, o->scratch_bytes, err);
    if (!rc) rc = start_workers(p, o->cpus, err);
out:
    if (rc)
        ks_pool_close(p);
    else
        *ret = p;
    return rc;
}

void ks_pool_close(ks_pool *p)
{
    if (!p) return;
    p->stop = true;
    fork_job(p, atomic_load_explicit(&p->gen, memory_order_relaxed) + 1);
    for (uint32_t i = 1; i <= p->n_started; i++) (void)pthread_join(p->workers[i].thread, NULL); /* ours, joinable */
    for (uint32_t i = 0; p->workers && i < p->n_threads; i++) free(p->workers[i].scratch);
    free(p->workers);
    free(p);
}

uint32_t ks_pool_threads(const ks_pool *p)
{
    return p->n_threads;
}

void *ks_pool_scratch(ks_pool *p, uint32_t index)
{
    KS_ASSERT(index < p->n_threads);
    return p->workers[index].scratch;
}

int ks_pool_reserve(ks_pool *p, size_t scratch_bytes, ks_err *err)
{
    size_t bytes;
    KS_ASSERT(!atomic_load_explicit(&p->running, memory_order_relaxed));
    if (scratch_bytes <= p->scratch_bytes) return 0;
    bool ok = ks_add_size(scratch_bytes, LINE - 1, &bytes);
    bytes &= ~(size_t)(LINE - 1);
    for (uint32_t i = 0; ok && i < p->n_threads; i++) {
        void *more = aligned_alloc(LINE, bytes);
        ok = more != NULL;
        if (!ok) break;
        free(p->workers[i].scratch); /* contents are undefined after, and the old size still fits */
        p->workers[i].scratch = more;
    }
    if (!ok)
        return ks_fail(err, KS_E_NOMEM, "no memory for %u x %zu bytes of scratch for the compute threads",
                       (unsigned)p->n_threads, scratch_bytes);
    p->scratch_bytes = bytes;
    return 0;
}

void ks_pool_counts(const ks_pool *p, uint64_t *ret_runs, uint64_t *ret_parks)
{
    *ret_runs = p->runs;
    *ret_parks = atomic_load_explicit(&p->parks, memory_order_relaxed);
}
