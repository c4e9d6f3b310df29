/* bench_load DIR MB [THREADS] [REPEATS]: how fast a cache file of MB megabytes gets into the arena, with its hashes
 * checked, against plain parallel reads of the same file into the same kind of memory, taken in turns. DIR decides
 * the file system. Figures, no test. */
#include "base/base.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/progress.h"
#include "store/load.h"
#include "store/mem.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_BYTES 1044480u /* 60 strips of 2048 columns in I4: no multiple of a page */
#define OFFSET 8192u
#define REPEATS_MAX 32u

typedef struct bench {
    ks_wplan plan;
    ks_pweight weight;
    ks_cache cache;
    uint32_t n_threads;
} bench;

typedef struct plain {
    int fd;
    uint8_t *dst;
    uint64_t bytes;
    size_t piece;
    _Atomic uint64_t next;
} plain;

/* Gigabytes a second of the clock, and of this process's time on cores: where others use them, too, only the latter
 * says what the code costs. */
typedef struct rate {
    double wall, cpu;
} rate;

typedef struct stopwatch {
    uint64_t wall_ns;
    struct rusage used;
} stopwatch;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double seconds(const struct timeval *a, const struct timeval *b)
{
    return (double)(b->tv_sec - a->tv_sec) + (double)(b->tv_usec - a->tv_usec) / 1e6;
}

static stopwatch start(void)
{
    stopwatch w = { .wall_ns = ks_now_ns() };
    (void)getrusage(RUSAGE_SELF, &w.used); /* cannot fail for these arguments */
    return w;
}

static rate stop(const stopwatch *w, uint64_t bytes)
{
    struct rusage now;
    const double gb = (double)bytes / 1e9, wall = (double)(ks_now_ns() - w->wall_ns) / 1e9;
    (void)getrusage(RUSAGE_SELF, &now);
    return (rate) { gb / wall,
                    gb / (seconds(&w->used.ru_utime, &now.ru_utime) + seconds(&w->used.ru_stime, &now.ru_stime)) };
}

static void make_file(bench *b, uint64_t bytes)
{
    uint64_t seed = 1;
    uint64_t *buf = malloc(BLOCK_BYTES);
    int fd = open(b->cache.path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (!buf || fd < 0) die(b->cache.path);
    b->plan.n_blocks = (uint32_t)(bytes / BLOCK_BYTES);
    b->plan.blocks = ks_calloc(b->plan.n_blocks, sizeof *b->plan.blocks);
    b->cache.table = ks_calloc(b->plan.n_blocks, sizeof *b->cache.table);
    if (!b->plan.blocks || !b->cache.table) die("memory");
    for (uint32_t i = 0; i < b->plan.n_blocks; i++) {
        for (size_t k = 0; k < BLOCK_BYTES / 8; k++) buf[k] = ks_splitmix64(&seed);
        ks_hash128 h = ks_hash(buf, BLOCK_BYTES);
        b->plan.blocks[i] = (ks_block) { .off = (uint64_t)i * BLOCK_BYTES, .bytes = BLOCK_BYTES };
        b->cache.table[i] = (ks_cache_block) { .lo = h.lo, .hi = h.hi };
        if (pwrite(fd, buf, BLOCK_BYTES, (off_t)(OFFSET + b->plan.blocks[i].off)) != BLOCK_BYTES) die("write");
    }
    b->plan.payload_bytes = ks_align_up((size_t)b->plan.n_blocks * BLOCK_BYTES, 4096);
    b->cache.file_bytes = OFFSET + b->plan.payload_bytes;
    if (ftruncate(fd, (off_t)b->cache.file_bytes) != 0 || fsync(fd) != 0) die("write");
    b->cache.fd = fd;
    free(buf);
}

static void *read_plain(void *arg)
{
    plain *p = arg;
    for (uint64_t at; (at = atomic_fetch_add(&p->next, p->piece)) < p->bytes;) {
        for (uint64_t end = KS_MIN(at + p->piece, p->bytes); at < end;) {
            ssize_t got = pread(p->fd, p->dst + at, end - at, (off_t)(OFFSET + at));
            if (got <= 0) die("read");
            at += (uint64_t)got;
        }
    }
    return NULL;
}

static rate rate_plain(const bench *b, int flags, uint32_t n, size_t piece)
{
    ks_err err;
    ks_mem m;
    pthread_t t[256];
    if (ks__mem_init(&m, b->plan.payload_bytes, &err) != 0) die(err.msg);
    plain p = {
        .fd = open(b->cache.path, O_RDONLY | flags), .dst = m.p, .bytes = b->plan.payload_bytes, .piece = piece
    };
    if (p.fd < 0) return (rate) { 0, 0 };
    stopwatch w = start();
    for (uint32_t i = 1; i < n; i++)
        if (pthread_create(&t[i], NULL, read_plain, &p) != 0) die("thread");
    (void)read_plain(&p);
    for (uint32_t i = 1; i < n; i++) (void)pthread_join(t[i], NULL);
    rate r = stop(&w, p.bytes);
    (void)close(p.fd);
    ks__mem_fini(&m);
    return r;
}

static rate rate_load(const bench *b, uint32_t mode, ks_load_stats *stats)
{
    ks_err err;
    ks_mem m;
    ks_load_opts o = { .mode = mode, .n_threads = b->n_threads };
    if (ks__mem_init(&m, b->plan.payload_bytes, &err) != 0) die(err.msg);
    stopwatch w = start();
    if (ks__load(&b->cache, m.p, &o, stats, &err) != 0) die(err.msg);
    rate r = stop(&w, b->plan.payload_bytes);
    ks__mem_fini(&m);
    return r;
}

static void forget(const bench *b)
{
    if (posix_fadvise(b->cache.fd, 0, 0, POSIX_FADV_DONTNEED) != 0) die("fadvise");
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print(const char *what, const rate *got, const rate *limit, uint32_t n)
{
    double ratio[REPEATS_MAX], cpu[REPEATS_MAX], best = 0, best_limit = 0;
    for (uint32_t i = 0; i < n; i++) {
        ratio[i] = 100 * got[i].wall / limit[i].wall;
        cpu[i] = 100 * got[i].cpu / limit[i].cpu;
        best = KS_MAX(best, got[i].wall);
        best_limit = KS_MAX(best_limit, limit[i].wall);
    }
    qsort(ratio, n, sizeof *ratio, by_value);
    qsort(cpu, n, sizeof *cpu, by_value);
    printf("%-17s %6.2f of %6.2f GB/s  best/best %3.0f %%  median of pairs %3.0f %% (%.0f - %.0f), by time on cores "
           "%3.0f %% (%.0f - %.0f)\n",
           what, best, best_limit, 100 * best / best_limit, ratio[n / 2], ratio[0], ratio[n - 1], cpu[n / 2], cpu[0],
           cpu[n - 1]);
    (void)fflush(stdout);
}

int main(int argc, char **argv)
{
    static bench b;
    char path[4096];
    rate got[REPEATS_MAX] = { { 0, 0 } }, limit[REPEATS_MAX] = { { 0, 0 } };
    if (argc < 3) {
        (void)fprintf(stderr, "usage: bench_load DIR MB [THREADS] [REPEATS]\n");
        return 2;
    }
    uint32_t n = argc > 4 ? KS_MIN(KS_MAX((uint32_t)atoi(argv[4]), 1u), REPEATS_MAX) : 5;
    b.n_threads = argc > 3 ? (uint32_t)atoi(argv[3]) : (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    (void)snprintf(path, sizeof path, "%s/bench_load.kw", argv[1]);
    ks_progress_quiet(1);
    b.weight.w.name = "bench";
    b.plan.weights = &b.weight;
    b.cache.plan = &b.plan;
    b.cache.path = path;
    b.cache.payload_off = OFFSET;
    make_file(&b, (uint64_t)atoll(argv[2]) * 1000000);
    ks_load_stats st;
    (void)rate_plain(&b, 0, b.n_threads, (size_t)4 << 20); /* the machine's own memory is ready after this */
    for (uint32_t i = 0; i < n; i++) {
        rate p4 = rate_plain(&b, 0, b.n_threads, (size_t)4 << 20);
        rate p16 = rate_plain(&b, 0, b.n_threads, (size_t)16 << 20);
        limit[i] = p4.wall > p16.wall ? p4 : p16;
        got[i] = rate_load(&b, KS_LOAD_CACHED, &st);
    }
    print("warm, page cache", got, limit, n);
    for (uint32_t i = 0; i < n; i++) {
        forget(&b);
        limit[i] = rate_plain(&b, O_DIRECT, KS_MAX(b.n_threads, 8u), (size_t)4 << 20);
        forget(&b);
        got[i] = rate_load(&b, KS_LOAD_DIRECT, &st);
    }
    print("cold, O_DIRECT", got, limit, n);
    for (uint32_t i = 0; i < n; i++) {
        forget(&b);
        limit[i] = rate_plain(&b, O_DIRECT, KS_MAX(b.n_threads, 8u), (size_t)4 << 20);
        forget(&b);
        got[i] = rate_load(&b, KS_LOAD_CACHED, &st);
    }
    print("cold, page cache", got, limit, n);
    forget(&b);
    rate cold = rate_load(&b, KS_LOAD_AUTO, &st);
    printf("auto, cold: %.2f GB/s, %s, %u threads%s\n", cold.wall, st.direct ? "O_DIRECT" : "page cache", st.n_threads,
           st.dropped ? ", not kept" : "");
    rate again = rate_load(&b, KS_LOAD_AUTO, &st);
    printf("auto, again: %.2f GB/s, %s, %u threads, %.0f %% warm\n", again.wall, st.direct ? "O_DIRECT" : "page cache",
           st.n_threads, st.warm * 100);
    free(b.plan.blocks);
    free(b.cache.table);
    (void)close(b.cache.fd);
    return unlink(path) == 0 ? 0 : 1;
}
