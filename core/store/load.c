/* The file is read in pieces of neighbouring blocks. Through the page cache, each block is read and hashed in steps
 * that stay in a core's own cache: the hash costs a fifth of the reading instead of as much again. Past it (O_DIRECT),
 * a piece is one large request, and more threads than cores keep the disk busy.
 *
 * O_DIRECT is for files that are not in the page cache and would not fit there beside the arena: a copy of the weights
 * would push out everything else, and be pushed out itself before the next start. What fits is left in the page cache,
 * which makes that start fast. */
#include "store/load.h"
#include "base/base.h"
#include "base/progress.h"
#include "cpu/cpu.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_BYTES ((uint64_t)4 << 20)
#define PAGE_BYTES ((uint64_t)4096) /* of O_DIRECT: sectors are never larger */
#define DISK_THREADS 8u             /* requests in flight that a fast disk wants */
#define THREADS_MAX 256u
#define SAMPLES 256u /* of the page cache's state */
#define WARM_FROM 0.5

typedef struct place {
    uint64_t off;
    uint32_t block;
} place;

typedef struct job {
    const ks_cache *cache;
    const ks_wplan *plan;
    uint8_t *arena;
    place *order;    /* (n_blocks) by offset */
    uint32_t *piece; /* (n_pieces + 1) into order */
    uint32_t n_pieces;
    int direct_fd; /* -1: none */
    bool ahead, drop;
    ks_progress *bar;
    atomic_uint next;
    atomic_int failed; /* set once by whoever holds err; read by all to stop early */
    pthread_mutex_t mu;
    int rc;     /* under mu */
    ks_err err; /* under mu: of the first that failed */
} job;

/* ---- pieces */

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const place *)a)->off, y = ((const place *)b)->off;
    return x < y ? -1 : x > y;
}

static uint64_t end_of(const job *j, uint32_t i)
{
    return j->order[i].off + j->plan->blocks[j->order[i].block].bytes;
}

static int cut(job *j, ks_err *err)
{
    const uint32_t n = j->plan->n_blocks;
    j->order = ks_calloc((size_t)n + 1, sizeof *j->order);
    j->piece = ks_calloc((size_t)n + 1, sizeof *j->piece);
    if (!j->order || !j->piece) return ks_fail(err, KS_E_NOMEM, "out of memory to read %u blocks of weights", n);
    for (uint32_t i = 0; i < n; i++) j->order[i] = (place) { j->plan->blocks[i].off, i };
    qsort(j->order, n, sizeof *j->order, by_offset);
    for (uint32_t i = 0, from = 0; i < n; i++) {
        const bool gap = i > 0 && j->order[i].off - end_of(j, i - 1) > PAGE_BYTES;
        if (i > 0 && !gap && end_of(j, i) - j->order[from].off <= PIECE_BYTES) continue;
        j->piece[j->n_pieces++] = from = i;
    }
    j->piece[j->n_pieces] = n;
    return 0;
}

/* ---- one piece */

/* [lo, hi) of the payload with one request where the alignment allows it, the edges through the page cache. */
static int read_direct(const job *j, uint64_t lo, uint64_t hi, ks_err *err)
{
    const uint64_t base = j->cache->payload_off;
    uint64_t at = ks_align_up(lo, PAGE_BYTES), end = hi & ~(PAGE_BYTES - 1);
    if (at >= end) return ks__cache_read(j->cache, lo, j->arena + lo, hi - lo, err);
    int rc = ks__cache_read(j->cache, lo, j->arena + lo, at - lo, err);
    while (rc == 0 && at < end) {
        ssize_t got = pread(j->direct_fd, j->arena + at, end - at, (off_t)(base + at));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0 || got % (ssize_t)PAGE_BYTES != 0) break; /* the page cache's way reads it, or tells why not */
        at += (uint64_t)got;
    }
    return rc == 0 ? ks__cache_read(j->cache, at, j->arena + at, hi - at, err) : rc;
}

static int read_piece(const job *j, uint32_t i, ks_hasher *h, ks_err *err)
{
    const uint32_t first = j->piece[i], end = j->piece[i + 1];
    const uint64_t lo = j->order[first].off, hi = end_of(j, end - 1);
    const off_t at = (off_t)(j->cache->payload_off + lo);
    if (j->ahead) (void)posix_fadvise(j->cache->fd, at, (off_t)(hi - lo), POSIX_FADV_WILLNEED); /* hints, all of them */
    int rc = j->direct_fd >= 0 ? read_direct(j, lo, hi, err) : 0;
    for (uint32_t k = first; k < end && rc == 0; k++) {
        uint8_t *dst = j->arena + j->order[k].off;
        rc = j->direct_fd >= 0 ? ks__cache_check(j->cache, j->order[k].block, dst, err)
                               : ks__cache_get(j->cache, j->order[k].block, dst, h, err);
    }
    if (j->drop) (void)posix_fadvise(j->cache->fd, at, (off_t)(hi - lo), POSIX_FADV_DONTNEED);
    ks_progress_add(j->bar, hi - lo);
    return rc;
}

static void *reader(void *arg)
{
    job *j = arg;
    ks_err err = { .code = 0 };
    ks_hasher *h = ks_hasher_new();
    int rc = h ? 0 : ks_fail(&err, KS_E_NOMEM, "out of memory to check the weights");
    while (rc == 0 && !atomic_load_explicit(&j->failed, memory_order_relaxed)) {
        uint32_t i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
        if (i >= j->n_pieces) break;
        rc = read_piece(j, i, h, &err);
    }
    ks_hasher_free(h);
    if (rc == 0) return NULL;
    (void)pthread_mutex_lock(&j->mu); /* a default mutex, used rightly, cannot fail */
    if (j->rc == 0) {
        j->rc = rc;
        j->err = err;
    }
    (void)pthread_mutex_unlock(&j->mu);
    atomic_store_explicit(&j->failed, 1, memory_order_relaxed); /* a hint: rc and err are read after the join */
    return NULL;
}

/* ---- how */

/* The part of the file that is in the page cache; 1 if the system does not tell. */
static double warm_part(const ks_cache *x)
{
    const uint64_t pages = x->file_bytes / PAGE_BYTES;
    unsigned char in[1];
    uint32_t n = 0, hits = 0;
    void *map = mmap(NULL, x->file_bytes, PROT_READ, MAP_SHARED, x->fd, 0);
    if (map == MAP_FAILED) return 1;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        uint8_t *p = (uint8_t *)map + pages * i / SAMPLES * PAGE_BYTES;
        if (mincore(p, PAGE_BYTES, in) != 0) continue;
        n++;
        hits += in[0] & 1;
    }
    (void)munmap(map, x->file_bytes); /* cannot fail: the map's own bounds */
    return n ? (double)hits / n : 1;
}

static void choose(job *j, const ks_load_opts *o, ks_load_stats *s)
{
    const bool tight = j->plan->payload_bytes > ks_ram_available_bytes() / 2;
    s->warm = warm_part(j->cache);
    j->ahead = s->warm < 1;
    if (o->mode == KS_LOAD_DIRECT || (o->mode == KS_LOAD_AUTO && tight && s->warm < WARM_FROM)) {
        j->direct_fd = open(j->cache->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
        struct stat a, b; /* the name may lead to another file by now */
        if (j->direct_fd >= 0 && (fstat(j->direct_fd, &a) != 0 || fstat(j->cache->fd, &b) != 0 ||
                                  a.st_ino != b.st_ino || a.st_dev != b.st_dev)) {
            (void)close(j->direct_fd); /* nothing was written */
            j->direct_fd = -1;
        }
    }
    s->direct = j->direct_fd >= 0;
    if (s->direct) j->ahead = false;
    s->dropped = j->drop = o->mode != KS_LOAD_CACHED && tight;
    s->n_threads = s->warm < WARM_FROM ? KS_MAX(o->n_threads, DISK_THREADS) : o->n_threads;
    s->n_threads = KS_MIN(KS_MIN(s->n_threads, KS_MAX(j->n_pieces, 1u)), THREADS_MAX);
    s->bytes = j->plan->payload_bytes;
}

static void run(job *j, uint32_t n_threads)
{
    pthread_t threads[THREADS_MAX];
    uint32_t n = 0;
    while (n + 1 < n_threads && pthread_create(&threads[n], NULL, reader, j) == 0) n++; /* fewer is slower, no more */
    (void)reader(j);
    for (uint32_t i = 0; i < n; i++) (void)pthread_join(threads[i], NULL); /* our own threads: cannot fail */
}

int ks__load(const ks_cache *x, uint8_t *arena, const ks_load_opts *o, ks_load_stats *ret_stats, ks_err *err)
{
    job j = { .cache = x, .plan = x->plan, .arena = arena, .direct_fd = -1 };
    ks_load_stats stats;
    int rc = cut(&j, err);
    if (rc == 0 && pthread_mutex_init(&j.mu, NULL) != 0) rc = ks_fail(err, KS_E_NOMEM, "cannot make a mutex");
    if (rc == 0) {
        choose(&j, o, &stats);
        j.bar = ks_progress_begin("loading weights", x->plan->payload_bytes, "B");
        run(&j, stats.n_threads);
        ks_progress_end(j.bar);
        (void)pthread_mutex_destroy(&j.mu);
        if (j.direct_fd >= 0) (void)close(j.direct_fd); /* nothing was written */
        rc = j.rc;
        if (rc != 0 && err) *err = j.err;
        if (rc == 0 && ret_stats) *ret_stats = stats;
    }
    free(j.order);
    free(j.piece);
    return rc;
}
