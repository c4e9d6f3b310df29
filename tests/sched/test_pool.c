/* The pool: every unit exactly once, for every shape; parking; scratch; misuse; a crowded machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/base.h"
#include "base/clock.h"
#include "sched/pool.h"
#include <cmocka.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNITS_MAX 5000u

typedef struct tally {
    uint8_t seen[UNITS_MAX]; /* plain: two writers of one unit are a bug that TSan shows, too */
    _Atomic uint32_t bad, largest;
    uint32_t n, n_threads;
} tally;

static void count(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    tally *t = arg;
    if (begin >= end || end > t->n || worker >= t->n_threads) {
        atomic_fetch_add(&t->bad, 1);
        return;
    }
    for (uint32_t i = begin; i < end; i++) t->seen[i]++;
    uint32_t size = end - begin, old = atomic_load(&t->largest);
    while (size > old && !atomic_compare_exchange_weak(&t->largest, &old, size)) continue;
}

static ks_pool *open_pool(uint32_t n_threads, const uint32_t *cpus)
{
    ks_pool *p = NULL;
    ks_err err;
    const ks_pool_opts o = { .n_threads = n_threads, .cpus = cpus, .scratch_bytes = 100 };
    if (ks_pool_open(&o, &p, &err)) fail_msg("%s", err.msg);
    return p;
}

static void check_cover(ks_pool *p, uint32_t n, uint32_t grain)
{
    static tally t;
    memset(&t, 0, sizeof t);
    t.n = n;
    t.n_threads = ks_pool_threads(p);
    ks_pool_run(p, n, grain, count, &t);
    uint32_t limit = grain ? grain : n / t.n_threads + (n % t.n_threads != 0);
    bool once = true;
    for (uint32_t i = 0; i < n; i++) once = once && t.seen[i] == 1;
    if (!once || t.bad || t.largest > limit)
        fail_msg("%u threads, n %u, grain %u: %s, %u bad, largest %u", (unsigned)t.n_threads, (unsigned)n,
                 (unsigned)grain, once ? "each once" : "not each once", (unsigned)t.bad, (unsigned)t.largest);
}

static void every_unit_is_done_exactly_once(void **state)
{
    (void)state;
    static const uint32_t threads[] = { 1, 2, 3, 7 }, grains[] = { 0, 1, 2, 3, 16, 64, 1000, UINT32_MAX };
    static const uint32_t ns[] = { 0, 1, 2, 3, 5, 9, 10, 11, 19, 20, 21, 63, 64, 100, 639, 1000, 4999 };
    for (size_t i = 0; i < KS_COUNT(threads); i++) {
        ks_pool *p = open_pool(threads[i], NULL);
        assert_int_equal(ks_pool_threads(p), threads[i]);
        for (size_t g = 0; g < KS_COUNT(grains); g++)
            for (size_t k = 0; k < KS_COUNT(ns); k++) check_cover(p, ns[k], grains[g]);
        ks_pool_close(p);
    }
}

static void add_size(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)worker;
    atomic_fetch_add_explicit((_Atomic uint64_t *)arg, end - begin, memory_order_relaxed);
}

static void the_largest_counts_do_not_wrap(void **state)
{
    (void)state;
    ks_pool *p = open_pool(3, NULL);
    static const uint32_t grains[] = { 0, UINT32_MAX, UINT32_MAX - 1, 1u << 31, 1u << 20 };
    for (size_t i = 0; i < KS_COUNT(grains); i++) {
        _Atomic uint64_t sum = 0;
        ks_pool_run(p, UINT32_MAX, grains[i], add_size, &sum);
        assert_true(sum == UINT32_MAX);
    }
    ks_pool_close(p);
}

/* Chunks that end together: nobody can take over another's. */
typedef struct meeting {
    _Atomic uint32_t here;
    uint32_t n, owner[64];
} meeting;

static void meet(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    meeting *m = arg;
    for (uint32_t i = begin; i < end; i++) m->owner[i] = worker;
    atomic_fetch_add(&m->here, 1);
    while (atomic_load(&m->here) < m->n) (void)sched_yield();
}

static void each_worker_has_its_own_stretch(void **state)
{
    (void)state;
    ks_pool *p = open_pool(4, NULL);
    for (int k = 0; k < 20; k++) { /* the same one each time */
        meeting m = { .n = 4 };
        ks_pool_run(p, 62, 16, meet, &m);
        for (uint32_t i = 0; i < 62; i++) assert_int_equal(m.owner[i], i / 16);
    }
    ks_pool_close(p);
}

/* One chunk does not end before all others have: they must be done by somebody else. */
typedef struct holdup {
    _Atomic uint32_t done;
    uint32_t slow, n;
} holdup;

static void hold_up(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    holdup *h = arg;
    (void)end, (void)worker;
    while (begin == h->slow && atomic_load(&h->done) < h->n - 1) (void)sched_yield();
    atomic_fetch_add(&h->done, 1);
}

static void a_slow_chunk_holds_up_no_other(void **state)
{
    (void)state;
    static const uint32_t threads[] = { 2, 3, 8 };
    for (size_t i = 0; i < KS_COUNT(threads); i++) {
        ks_pool *p = open_pool(threads[i], NULL);
        for (uint32_t slow = 0; slow < 24; slow++) {
            holdup h = { .slow = slow, .n = 24 };
            ks_pool_run(p, 24, 1, hold_up, &h);
            assert_int_equal(h.done, 24);
        }
        ks_pool_close(p);
    }
}

static void count_one(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)begin, (void)end, (void)worker;
    atomic_fetch_add((_Atomic uint32_t *)arg, 1);
}

/* Workers that come late, to a job that is over, must find nothing, whatever the shapes before and after. */
static void late_workers_do_no_harm(void **state)
{
    (void)state;
    static const uint32_t ns[] = { 2, 9, 3, 40, 5 };
    ks_pool *p = open_pool(9, NULL); /* more than this machine's cores, so that most come late */
    for (uint32_t k = 0; k < 5000; k++) {
        _Atomic uint32_t done = 0;
        uint32_t n = ns[k % KS_COUNT(ns)];
        ks_pool_run(p, n, 1, count_one, &done);
        if (atomic_load(&done) != n) fail_msg("job %u: %u of %u chunks", (unsigned)k, (unsigned)done, (unsigned)n);
    }
    ks_pool_close(p);
}

static void workers_park_when_idle_and_wake_for_work(void **state)
{
    (void)state;
    ks_pool *p = open_pool(2, NULL);
    uint64_t runs = 0, parks = 0, after = 0;
    for (int round = 0; round < 3; round++) {
        check_cover(p, 1000, 10);
        ks_pool_counts(p, &runs, &after);
        /* It parks within a time that a loaded machine may stretch; the loop ends as soon as it has. */
        for (uint64_t end = ks_now_ns() + 10000000000u; after == parks && ks_now_ns() < end;) {
            (void)sched_yield();
            ks_pool_counts(p, &runs, &after);
        }
        assert_true(after > parks);
        parks = after;
    }
    assert_true(runs == 3);
    check_cover(p, 1000, 10);
    ks_pool_close(p);
}

static void one_chunk_needs_no_fork(void **state)
{
    (void)state;
    ks_pool *p = open_pool(2, NULL), *single = open_pool(1, NULL);
    uint64_t runs = 1, parks = 1;
    check_cover(p, 10, 10);
    check_cover(p, 0, 0);
    ks_pool_counts(p, &runs, &parks);
    assert_true(runs == 0);
    check_cover(single, 1000, 1);
    ks_pool_counts(single, &runs, &parks);
    assert_true(runs == 0 && parks == 0);
    ks_pool_close(single);
    ks_pool_close(p);
    ks_pool_close(NULL);
}

static void many_short_jobs_in_a_row_are_all_done(void **state)
{
    (void)state;
    static const uint32_t threads[] = { 2, 5, 16 }; /* more than this machine's cores, too */
    for (size_t i = 0; i < KS_COUNT(threads); i++) {
        ks_pool *p = open_pool(threads[i], NULL);
        _Atomic uint64_t sum = 0;
        for (int k = 0; k < 2000; k++) ks_pool_run(p, 64, 1, add_size, &sum);
        assert_true(sum == 128000);
        ks_pool_close(p);
    }
}

static void pinning_to_a_cpu_that_is_not_there_is_not_fatal(void **state)
{
    (void)state;
    const uint32_t cpus[] = { 0, 1000000, 0 };
    ks_pool *p = open_pool(3, cpus);
    check_cover(p, 1000, 7);
    ks_pool_close(p);
}

typedef struct pinned {
    meeting m; /* first: so each worker runs a chunk */
    int n_cpus[2];
} pinned;

static void note_cpu(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    pinned *t = arg;
    cpu_set_t set;
    meet(&t->m, begin, end, worker);
    if (worker && sched_getaffinity(0, sizeof set, &set) == 0) t->n_cpus[worker] = CPU_COUNT(&set);
}

static void workers_are_pinned_and_the_caller_if_adopted(void **state)
{
    (void)state;
    cpu_set_t before, after;
    uint32_t cpus[2] = { 0, 0 }; /* the first that are ours; on one CPU both */
    pinned t = { .m.n = 2 };
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    while (!CPU_ISSET(cpus[1], &before)) cpus[1]++;
    cpus[0] = cpus[1];
    ks_pool *p = open_pool(2, cpus);
    ks_pool_run(p, 2, 1, note_cpu, &t);
    assert_int_equal(t.n_cpus[1], 1);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    ks_pool_adopt(p);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_COUNT(&after) == 1 && CPU_ISSET(cpus[0], &after));
    ks_pool_release(p);
    ks_pool_release(p); /* nothing more to give back */
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    ks_pool_close(p);
    p = open_pool(2, NULL);
    ks_pool_adopt(p); /* without CPUs to pin to: nothing */
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    ks_pool_close(p);
}

static void fill_scratch(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    ks_pool *p = arg;
    (void)begin, (void)end;
    memset(ks_pool_scratch(p, worker), (int)worker, 1000);
}

static void scratch_is_aligned_apart_and_grows(void **state)
{
    (void)state;
    ks_pool *p = open_pool(3, NULL);
    ks_err err;
    assert_int_equal(ks_pool_reserve(p, 1000, &err), 0);
    void *first = ks_pool_scratch(p, 0);
    assert_int_equal(ks_pool_reserve(p, 10, &err), 0); /* never shrinks */
    assert_ptr_equal(ks_pool_scratch(p, 0), first);
    ks_pool_run(p, 3, 1, fill_scratch, p);
    for (uint32_t i = 0; i < 3; i++) assert_int_equal((uintptr_t)ks_pool_scratch(p, i) % 64, 0);
    assert_int_equal(ks_pool_reserve(p, SIZE_MAX, &err), KS_E_NOMEM);
    assert_int_equal(ks_pool_reserve(p, SIZE_MAX / 4, &err), KS_E_NOMEM);
    assert_non_null(strstr(err.msg, "no memory for 3 x 4611686018427387903 bytes of scratch"));
    memset(ks_pool_scratch(p, 2), 1, 1000); /* the old size still holds */
    ks_pool_close(p);
    const ks_pool_opts none = { .n_threads = 1 };
    assert_int_equal(ks_pool_open(&none, &p, &err), 0);
    assert_null(ks_pool_scratch(p, 0));
    ks_pool_close(p);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    ks_pool *p = (ks_pool *)1;
    ks_err err;
    ks_pool_opts o = { .n_threads = 0 };
    assert_int_equal(ks_pool_open(&o, &p, &err), KS_E_INVAL);
    assert_string_equal(err.msg, "0 compute threads: 1 to 1024 are possible");
    o.n_threads = 1025;
    assert_int_equal(ks_pool_open(&o, &p, &err), KS_E_INVAL);
    o = (ks_pool_opts) { .n_threads = 2, .scratch_bytes = SIZE_MAX / 2 };
    assert_int_equal(ks_pool_open(&o, &p, &err), KS_E_NOMEM);
    assert_ptr_equal(p, (ks_pool *)1);
}

/* The code a child ends with: its exit code, or 1000 + the signal. */
static int in_child(void (*fn)(void))
{
    int status = 0;
    (void)fflush(stdout);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        const struct rlimit none = { 0, 0 };
        (void)setrlimit(RLIMIT_CORE, &none);
        (void)signal(SIGABRT, SIG_DFL);
        (void)close(STDERR_FILENO); /* the assertion's line is expected */
        fn();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void run_again(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    (void)worker;
    ks_pool_run(*(ks_pool **)arg, end - begin, 1, NULL, NULL);
}

static void nest(void)
{
    ks_pool *p = open_pool(2, NULL);
    ks_pool_run(p, 2, 1, run_again, &p);
}

static void nest_alone(void)
{
    ks_pool *p = open_pool(1, NULL);
    ks_pool_run(p, 1, 1, run_again, &p);
}

static void nested_use_is_asserted(void **state)
{
    (void)state;
    assert_int_equal(in_child(nest), 1000 + SIGABRT);
    assert_int_equal(in_child(nest_alone), 1000 + SIGABRT);
}

static void open_without_threads(void)
{
    const struct rlimit few = { 0, 0 };
    const ks_pool_opts o = { .n_threads = 4 };
    ks_pool *p = NULL;
    ks_err err;
    if (setrlimit(RLIMIT_NPROC, &few) != 0 || setgid(65534) != 0 || setuid(65534) != 0) _exit(2);
    _exit(ks_pool_open(&o, &p, &err) != KS_E_LIMIT || p                  ? 3
          : strncmp(err.msg, "cannot start compute thread 2 of 4: ", 36) ? 4
                                                                         : 0);
}

static void threads_that_cannot_start_are_an_error(void **state)
{
    (void)state;
    if (getuid() != 0) {
        print_message("needs root, to become a user who may start no threads\n");
        skip();
    }
    assert_int_equal(in_child(open_without_threads), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_unit_is_done_exactly_once),
        cmocka_unit_test(the_largest_counts_do_not_wrap),
        cmocka_unit_test(each_worker_has_its_own_stretch),
        cmocka_unit_test(a_slow_chunk_holds_up_no_other),
        cmocka_unit_test(late_workers_do_no_harm),
        cmocka_unit_test(workers_park_when_idle_and_wake_for_work),
        cmocka_unit_test(one_chunk_needs_no_fork),
        cmocka_unit_test(many_short_jobs_in_a_row_are_all_done),
        cmocka_unit_test(pinning_to_a_cpu_that_is_not_there_is_not_fatal),
        cmocka_unit_test(workers_are_pinned_and_the_caller_if_adopted),
        cmocka_unit_test(scratch_is_aligned_apart_and_grows),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(nested_use_is_asserted),
        cmocka_unit_test(threads_that_cannot_start_are_an_error),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
