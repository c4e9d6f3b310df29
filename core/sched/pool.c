/* Fork and join without a lock, and without waiting for anybody who has nothing in hand.
 *
 * A job is cut into chunks; each worker owns a contiguous range of them, the same for the same shape. Whoever works
 * takes chunks from a range by a compare-and-swap of that range's `claim`; whoever has finished his own helps out in
 * others'. The join waits until every chunk is done, not until every worker came: a worker that the system keeps from
 * running costs its share of the time, not a time slice.
 *
 * So a worker may come late, to a job that is over. All it has then is the job's number and count of chunks, read as
 * one word; a claim carries the number of the job it was last used in, and only grows, so a claim on a job that is
 * over fails. What the job is (fn, n, ...) is read after a claim only: then the caller cannot have gone on.
 *
 * Sleeping: `bell` is the futex word of the workers, `tick` that of the caller. A sleeper says so, reads that word,
 * then looks once more for what it waits for; who brings that writes it first and asks for sleepers after, all
 * sequentially consistent: so one of the two always sees the other, and the kernel compares the word once more.
 *
 * Watching pays only while each thread has a core of its own. With more threads than cores, a watcher
 * keeps a worker from running: then everybody yields a few times and sleeps.
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
#define SPIN_DEFAULT_US 200u
#define PAUSES_A_LOOK 32    /* at the clock: about a microsecond */
#define YIELDS_IF_CROWDED 4 /* before sleep */
#define CHUNK_BITS 16       /* of a job's word; the 48 of its number last for decades */
#define CHUNKS_MAX 0xffffu

typedef struct worker {
    _Alignas(LINE) _Atomic uint64_t claim; /* job << CHUNK_BITS | next chunk of this range */
    _Alignas(
        LINE) _Atomic uint64_t finished; /* job << CHUNK_BITS | chunks done by this worker; pairs with count_done */
    ks_pool *pool;
    void *scratch;
    pthread_t thread;
    uint32_t index;
} worker;

struct ks_pool {
    /* One line, so that a job costs each worker one miss. All but the first: see above. */
    _Alignas(LINE) _Atomic uint64_t job; /* number << CHUNK_BITS | chunks; what the workers watch */
    ks_pool_fn fn;
    void *arg;
    uint32_t n, grain, first; /* first: chunks of the same run in earlier jobs */
    /* Seldom written. */
    _Alignas(LINE) _Atomic uint32_t bell; /* futex word of the workers */
    _Atomic uint32_t parked;              /* workers asleep on it, or about to be */
    _Atomic uint32_t tick;                /* futex word of the caller */
    _Atomic uint32_t watched;             /* the caller sleeps on it, or is about to */
    atomic_bool stop;
    _Atomic uint64_t parks;
    /* The caller's own. */
    _Alignas(LINE) atomic_bool running;
    uint64_t runs, spin_ns;
    uint32_t n_threads, n_started; /* started: worker threads that exist, without worker 0 */
    bool is_pinned, has_guest;
    uint32_t first_cpu;
    cpu_set_t guest_cpus; /* of the adopted thread, from before */
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

/* True once there is another job than `seen`; false if it is time to sleep. */
static bool watch_job(const ks_pool *p, uint64_t seen)
{
    if (!p->spin_ns) {
        for (int i = 0; i < YIELDS_IF_CROWDED; i++) {
            if (atomic_load_explicit(&p->job, memory_order_acquire) != seen) return true;
            (void)sched_yield(); /* cannot fail on Linux */
        }
        return false;
    }
    uint64_t start = 0; /* the clock is read only if the first looks were in vain */
    for (;;) {
        for (int i = 0; i < PAUSES_A_LOOK; i++) {
            if (atomic_load_explicit(&p->job, memory_order_acquire) != seen) return true;
            _mm_pause();
        }
        uint64_t now = ks_now_ns();
        if (!start) start = now;
        if (now - start >= p->spin_ns) return false;
    }
}

static uint64_t await_job(ks_pool *p, uint64_t seen)
{
    if (!watch_job(p, seen)) {
        atomic_fetch_add(&p->parked, 1); /* pairs with the load in publish */
        atomic_fetch_add_explicit(&p->parks, 1, memory_order_relaxed);
        for (;;) {
            uint32_t bell = atomic_load(&p->bell);
            if (atomic_load(&p->job) != seen) break;
            futex_wait(&p->bell, bell);
        }
        atomic_fetch_sub(&p->parked, 1);
    }
    return atomic_load_explicit(&p->job, memory_order_acquire);
}

static uint64_t publish(ks_pool *p, uint32_t n_chunks)
{
    uint64_t number = (atomic_load_explicit(&p->job, memory_order_relaxed) >> CHUNK_BITS) + 1;
    uint64_t job = number << CHUNK_BITS | n_chunks;
    atomic_store(&p->job, job);
    if (atomic_load(&p->parked)) {
        atomic_fetch_add(&p->bell, 1);
        futex_wake(&p->bell, INT_MAX);
    }
    return job;
}

/* ---- Work */

static bool claim(ks_pool *p, uint64_t job, uint32_t range, uint32_t *ret_chunk)
{
    uint64_t number = job >> CHUNK_BITS, n = job & CHUNKS_MAX, parts = KS_MIN(n, (uint64_t)p->n_threads), next;
    if (range >= parts) return false;
    uint64_t begin = n * range / parts, end = n * (range + 1) / parts;
    _Atomic uint64_t *word = &p->workers[range].claim;
    uint64_t old = atomic_load_explicit(word, memory_order_relaxed);
    do {
        if (old >> CHUNK_BITS > number) return false; /* that job is over */
        next = old >> CHUNK_BITS == number ? old & CHUNKS_MAX : begin;
        if (next >= end) return false;
    } while (!atomic_compare_exchange_weak_explicit(word, &old, number << CHUNK_BITS | (next + 1), memory_order_acquire,
                                                    memory_order_relaxed));
    *ret_chunk = (uint32_t)next;
    return true;
}

/* What is left of a range. Returns the number of chunks done. */
static uint32_t run_range(ks_pool *p, uint64_t job, uint32_t range, uint32_t index)
{
    uint32_t done = 0;
    for (uint32_t chunk; claim(p, job, range, &chunk); done++) {
        uint32_t begin = (p->first + chunk) * p->grain, left = p->n - begin; /* a chunk begins below n: no overflow */
        p->fn(p->arg, begin, begin + KS_MIN(left, p->grain), index);
    }
    return done;
}

static void tell_done(ks_pool *p, worker *w, uint64_t job, uint32_t done)
{
    atomic_store(&w->finished, (job & ~(uint64_t)CHUNKS_MAX) | done);
    if (!atomic_load(&p->watched)) return;
    atomic_fetch_add(&p->tick, 1);
    futex_wake(&p->tick, 1);
}

/* With one chunk a worker there is nothing to balance: taking another's would only take it from his cache. */
static bool has_spare(const ks_pool *p, uint64_t job)
{
    return (job & CHUNKS_MAX) > p->n_threads;
}

static void serve(ks_pool *p, worker *w, uint64_t job)
{
    uint32_t done = run_range(p, job, w->index, w->index);
    if (done) tell_done(p, w, job, done);
    for (uint32_t i = 1; has_spare(p, job) && i < p->n_threads; i++) {
        uint32_t more = run_range(p, job, (w->index + i) % p->n_threads, w->index);
        done += more;
        if (more) tell_done(p, w, job, done);
    }
}

static bool all_done(ks_pool *p, uint64_t job, uint32_t own)
{
    uint64_t sum = own;
    for (uint32_t i = 1; i < p->n_threads; i++) {
        uint64_t f = atomic_load(&p->workers[i].finished);
        if (f >> CHUNK_BITS == job >> CHUNK_BITS) sum += f & CHUNKS_MAX;
    }
    return sum == (job & CHUNKS_MAX);
}

static uint32_t help(ks_pool *p, uint64_t job)
{
    uint32_t done = 0;
    for (uint32_t i = 1; i < p->n_threads; i++) done += run_range(p, job, i, 0);
    return done;
}

/* The caller's share, and the wait for the others': who has not begun within about a microsecond is late, and
 * his chunks are taken over. */
static void join(ks_pool *p, uint64_t job)
{
    uint32_t own = run_range(p, job, 0, 0);
    uint64_t start = 0;
    if (has_spare(p, job) || !p->spin_ns) own += help(p, job);
    for (uint32_t yields = 0;;) {
        for (int i = 0; i < PAUSES_A_LOOK; i++) {
            if (all_done(p, job, own)) return;
            _mm_pause();
        }
        own += help(p, job);
        uint64_t now = ks_now_ns();
        if (!start) start = now;
        if (p->spin_ns ? now - start < p->spin_ns : yields++ < YIELDS_IF_CROWDED) {
            if (!p->spin_ns) (void)sched_yield(); /* cannot fail on Linux */
            continue;
        }
        atomic_store(&p->watched, 1); /* pairs with the load in tell_done */
        uint32_t tick = atomic_load(&p->tick);
        if (!all_done(p, job, own)) futex_wait(&p->tick, tick);
        atomic_store(&p->watched, 0);
    }
}

void ks_pool_run(ks_pool *p, uint32_t n, uint32_t grain, ks_pool_fn fn, void *arg)
{
    bool busy = atomic_exchange_explicit(&p->running, true, memory_order_acquire);
    KS_ASSERT(!busy); /* nested, or two callers */
    if (!grain) grain = n / p->n_threads + (n % p->n_threads != 0);
    uint32_t n_chunks = n ? n / grain + (n % grain != 0) : 0;
    if (n_chunks <= 1 || p->n_threads == 1) { /* nothing to share */
        for (uint32_t i = 0; i < n_chunks; i++) fn(arg, i * grain, i * grain + KS_MIN(n - i * grain, grain), 0);
        n_chunks = 0;
    }
    p->fn = fn;
    p->arg = arg;
    p->n = n;
    p->grain = grain;
    for (p->first = 0; n_chunks; p->first += CHUNKS_MAX) { /* once, but for the largest counts */
        p->runs++;
        join(p, publish(p, KS_MIN(n_chunks, CHUNKS_MAX)));
        n_chunks -= KS_MIN(n_chunks, CHUNKS_MAX);
    }
    atomic_store_explicit(&p->running, false, memory_order_release);
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    ks_pool *p = w->pool;
    for (uint64_t job = 0;;) {
        job = await_job(p, job);
        if (atomic_load_explicit(&p->stop, memory_order_relaxed)) return NULL;
        serve(p, w, job);
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

/* Left to itself, the system now and then runs the caller where a worker watches, for seconds if all cores are busy:
 * then one waits for the other. */
void ks_pool_adopt(ks_pool *p)
{
    if (!p->is_pinned) return;
    p->has_guest = pthread_getaffinity_np(pthread_self(), sizeof p->guest_cpus, &p->guest_cpus) == 0;
    if (p->has_guest) pin(pthread_self(), p->first_cpu);
}

void ks_pool_release(ks_pool *p)
{
    if (p->has_guest) (void)pthread_setaffinity_np(pthread_self(), sizeof p->guest_cpus, &p->guest_cpus); /* see pin */
    p->has_guest = false;
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
    p->is_pinned = o->cpus != NULL;
    if (o->cpus) p->first_cpu = o->cpus[0];
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
    atomic_store_explicit(&p->stop, true, memory_order_relaxed); /* told with the job */
    (void)publish(p, 0);
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
