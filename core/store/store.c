/* The weight store: plan, then the cache or the checkpoint, then descriptions for the graph. */
#include "store/store.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/progress.h"
#include "cpu/cpu.h"
#include "store/build.h"
#include "store/cache.h"
#include "store/load.h"
#include "store/mem.h"
#include "store/place.h"
#include <stdatomic.h>

struct ks_store {
    ks_mem mem;
    ks_load_stats loaded; /* if was_cached */
    char *names;          /* of the weights, back to back */
    bool was_cached;
    bool spread; /* over memory nodes, with small pages where huge ones would span two */
};

#define FORGET_PARTS 32u                      /* a build gives the source's pages back so often */
#define FORGET_MIN_BYTES ((uint64_t)64 << 20) /* of weights between two times */

/* One pass over all blocks of the source, on all threads. */
typedef struct pass {
    const ks_wplan *plan;
    const ks_ckpt *ckpt;
    ks_cache *cache; /* NULL: none */
    uint8_t *arena;
    ks_builder *builders; /* one a worker */
    uint32_t n_builders;
    ks_progress *bar;
    uint64_t forget_step; /* after so many bytes of weights the source's pages are given back; 0: never */
    _Atomic uint64_t done_bytes;
    int (*block)(struct pass *x, ks_builder *b, uint32_t i, ks_err *err);
    atomic_int failed; /* set once by whoever holds err; read by all to stop early */
    pthread_mutex_t mu;
    int rc;     /* under mu */
    ks_err err; /* under mu: of the first that failed */
} pass;

static void count_done(pass *x, uint64_t bytes)
{
    uint64_t before = atomic_fetch_add_explicit(&x->done_bytes, bytes, memory_order_relaxed); /* nobody waits for it */
    if (x->forget_step && before / x->forget_step != (before + bytes) / x->forget_step) ks_ckpt_forget_pages(x->ckpt);
    ks_progress_add(x->bar, bytes);
}

static void run_blocks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    pass *x = arg;
    for (uint32_t i = begin; i < end && !atomic_load_explicit(&x->failed, memory_order_relaxed); i++) {
        ks_err err = { .code = 0 };
        int rc = x->block(x, &x->builders[worker], i, &err);
        count_done(x, x->plan->blocks[i].bytes);
        if (rc == 0) continue;
        (void)pthread_mutex_lock(&x->mu);
        if (x->rc == 0) {
            x->rc = rc;
            x->err = err;
        }
        (void)pthread_mutex_unlock(&x->mu);
        atomic_store_explicit(&x->failed, 1, memory_order_relaxed); /* a hint: rc and err are read after the join */
    }
}

/* A source that takes much of the memory would push out what others read often, for bytes that nobody reads again. */
static void plan_forgetting(pass *x)
{
    if (ks_ckpt_bytes(x->ckpt) > ks_ram_bytes() / 8)
        x->forget_step = KS_MAX(x->plan->payload_bytes / FORGET_PARTS, FORGET_MIN_BYTES);
}

static int run_pass(pass *x, ks_pool *pool, const char *what, ks_err *err)
{
    const uint32_t n_workers = pool ? ks_pool_threads(pool) : 1;
    int rc = 0;
    x->builders = ks_calloc(n_workers, sizeof *x->builders);
    if (!x->builders) return ks_fail(err, KS_E_NOMEM, "out of memory for %u workers", n_workers);
    for (; x->n_builders < n_workers && rc == 0; x->n_builders++)
        rc = ks__builder_init(&x->builders[x->n_builders], x->plan, x->ckpt, err);
    if (rc == 0 && pthread_mutex_init(&x->mu, NULL) != 0) rc = ks_fail(err, KS_E_NOMEM, "cannot make a mutex");
    if (rc == 0) {
        uint64_t total = 0;
        for (uint32_t i = 0; i < x->plan->n_blocks; i++) total += x->plan->blocks[i].bytes;
        plan_forgetting(x);
        x->bar = ks_progress_begin(what, total, "B");
        if (pool && x->plan->n_blocks > 0)
            ks_pool_run(pool, x->plan->n_blocks, 1, run_blocks, x);
        else
            run_blocks(x, 0, x->plan->n_blocks, 0);
        ks_progress_end(x->bar);
        (void)pthread_mutex_destroy(&x->mu);
        if (x->forget_step) ks_ckpt_forget_pages(x->ckpt);
        rc = x->rc;
        if (rc != 0 && err) *err = x->err;
    }
    for (uint32_t i = 0; i < x->n_builders; i++) ks__builder_fini(&x->builders[i]);
    free(x->builders);
    return rc;
}

static int block_build(pass *x, ks_builder *b, uint32_t i, ks_err *err)
{
    uint8_t *dst = x->arena + x->plan->blocks[i].off;
    uint64_t source;
    /* What an earlier run has made is good only if it hashes as the journal says. */
    if (x->cache && x->cache->done[i] && ks__cache_get(x->cache, i, dst, b->hasher, NULL) == 0) return 0;
    int rc = ks__build_block(b, i, dst, &source, err);
    if (rc == 0 && x->cache) rc = ks__cache_put(x->cache, i, dst, source, err);
    return rc;
}

static int block_compare(pass *x, ks_builder *b, uint32_t i, ks_err *err)
{
    uint64_t source;
    int rc = ks__build_block(b, i, NULL, &source, err);
    if (rc == 0 && source != x->cache->table[i].source)
        rc = ks_fail(err, KS_E_FORMAT, "the source of weight '%s' has changed since the cache was made",
                     x->plan->weights[x->plan->blocks[i].weight].w.name);
    return rc;
}

/* The memory for the weights, near those who are going to read it. */
static int make_arena(ks_store *s, const ks_wplan *p, const ks_store_opts *o, ks_err *err)
{
    int rc = ks__mem_init(&s->mem, p->payload_bytes, err);
    if (rc != 0) return rc;
    if (o->numa) {
        ks__place(p, &s->mem, o->numa);
        s->spread = o->numa->n_nodes > 1;
    } else if (o->pool && ks_cpu_numa_nodes() > 1) {
        const uint32_t n = ks_pool_threads(o->pool);
        uint32_t *cpus = ks_calloc(n, sizeof *cpus);
        ks_numa m;
        if (!cpus) return ks_fail(err, KS_E_NOMEM, "out of memory for the numbers of %u cores", n);
        if (ks_cpu_cores(cpus, n) == n) {
            ks_numa_init(&m, cpus, n);
            ks__place(p, &s->mem, &m);
            s->spread = m.n_nodes > 1;
        }
        free(cpus);
    }
    return 0;
}

static int build_all(ks_store *s, const ks_wplan *p, const ks_ckpt *c, ks_cache *cache, const ks_store_opts *o,
                     ks_err *err)
{
    pass x = { .plan = p, .ckpt = c, .cache = cache, .block = block_build };
    int rc = make_arena(s, p, o, err);
    x.arena = s->mem.p;
    return rc != 0 ? rc : run_pass(&x, o->pool, "preparing weights", err);
}

/* From the finished cache file, if it is there, whole, and made of this very source. */
static int load(ks_store *s, const ks_wplan *p, const ks_ckpt *c, ks_cache *cache, const ks_store_opts *o, ks_err *err)
{
    int rc = ks__cache_open(cache, err);
    if (rc != 0) return rc;
    if (o->verify || !ks__cache_is_current(cache)) {
        pass x = { .plan = p, .ckpt = c, .cache = cache, .block = block_compare };
        rc = run_pass(&x, o->pool, "comparing the cache with its source", err);
        if (rc == 0) rc = ks__cache_set_current(cache, err);
        if (rc != 0) return rc;
    }
    ks_load_opts lo = { .n_threads = o->pool ? ks_pool_threads(o->pool) : 1 };
    rc = make_arena(s, p, o, err);
    if (rc == 0) rc = ks__load(cache, s->mem.p, &lo, &s->loaded, err);
    if (rc != 0)
        ks__mem_fini(&s->mem);
    else
        ks__cache_set_used(cache);
    s->was_cached = rc == 0;
    return rc;
}

/* Damage is mended by building again, and told; a full disk or lack of memory is the caller's. */
static int load_or_miss(ks_store *s, const ks_wplan *p, const ks_ckpt *c, ks_cache *cache, const ks_store_opts *o,
                        ks_err *err)
{
    ks_err e = { .code = 0 };
    int rc = load(s, p, c, cache, o, &e);
    if (rc == KS_E_FORMAT) ks_log(KS_LOG_WARN, "store", "%s; building the weights again", e.msg);
    if (rc == KS_E_FORMAT) return KS_E_NOTFOUND;
    if (rc != 0 && rc != KS_E_NOTFOUND && err) *err = e;
    return rc;
}

static int open_cached(ks_store *s, const ks_wplan *p, const ks_ckpt *c, const ks_store_opts *o, ks_err *err)
{
    ks_cache cache;
    int rc = ks__cache_init(&cache, p, c, o->cache_dir, err);
    if (rc != 0) return rc;
    rc = o->rebuild ? KS_E_NOTFOUND : load_or_miss(s, p, c, &cache, o, err);
    if (rc == KS_E_NOTFOUND) {
        rc = ks__cache_lock(&cache, err);
        /* Whoever held the lock may have built it. */
        if (rc == 0 && (o->rebuild || !ks__cache_replaced(&cache))) rc = KS_E_NOTFOUND;
        if (rc == 0) rc = load_or_miss(s, p, c, &cache, o, err);
        if (rc == KS_E_NOTFOUND) {
            rc = ks__cache_begin(&cache, o->rebuild, err);
            if (rc == 0) rc = build_all(s, p, c, &cache, o, err);
            if (rc == 0) rc = ks__cache_commit(&cache, err);
        }
    }
    ks__cache_fini(&cache);
    return rc;
}

int ks_store_check(const ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs, const ks_store_opts *o,
                   ks_weight *ret_weights, ks_err *err)
{
    ks_wplan p = { 0 };
    int rc = ks__plan_init(&p, c, specs, n_specs, o, err);
    for (uint32_t i = 0; !rc && i < p.n_weights; i++) {
        ret_weights[i] = p.weights[i].w;
        ret_weights[i].name = specs[i].name;
        if (p.weights[i].absent) ret_weights[i].mat_bytes = 0;
    }
    ks__plan_fini(&p);
    return rc;
}

/* Descriptions and data pointers; names move into the store, which outlives the plan. */
static int publish(ks_store *s, const ks_wplan *p, ks_weight *ret_weights, ks_err *err)
{
    size_t n = 1;
    for (uint32_t i = 0; i < p->n_weights; i++) n += strlen(p->weights[i].w.name) + 1;
    char *at = s->names = malloc(n);
    if (!at) return ks_fail(err, KS_E_NOMEM, "out of memory for the names of the weights");
    for (uint32_t i = 0; i < p->n_weights; i++) {
        const ks_pweight *w = &p->weights[i];
        size_t len = strlen(w->w.name) + 1;
        ret_weights[i] = w->w;
        ret_weights[i].name = memcpy(at, w->w.name, len);
        ret_weights[i].data = w->absent ? NULL : (const uint8_t *)s->mem.p + w->off;
        at += len;
    }
    return 0;
}

static void tell(const ks_store *s, double seconds)
{
    const double bytes = (double)s->mem.bytes;
    const ks_load_stats *l = &s->loaded;
    if (s->was_cached)
        ks_log(KS_LOG_DEBUG, "store",
               "%.1f MB loaded in %.2f s by %u threads, %s, %.0f %% of the file were in memory%s", bytes / 1e6, seconds,
               l->n_threads, l->direct ? "O_DIRECT" : "through the page cache", l->warm * 100,
               l->dropped ? ", none is kept there" : "");
    else
        ks_log(KS_LOG_DEBUG, "store", "%.1f MB built in %.2f s", bytes / 1e6, seconds);
    uint64_t huge = ks__mem_huge_bytes(&s->mem);
    int level =
        !s->spread && huge < s->mem.bytes / 10 * 9 && s->mem.bytes > KS_HUGE_BYTES * 64 ? KS_LOG_INFO : KS_LOG_DEBUG;
    ks_log(level, "store", "%.0f %% of the weights lie in huge pages%s", bytes > 0 ? 100.0 * (double)huge / bytes : 100,
           level == KS_LOG_INFO
               ? ": /sys/kernel/mm/transparent_hugepage/enabled must be 'madvise' or 'always', and enough "
                 "memory in one piece; the rest is read more slowly"
               : "");
}

int ks_store_open(ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs, const ks_store_opts *o, ks_weight *ret_weights,
                  ks_store **ret, ks_err *err)
{
    const uint64_t begin = ks_now_ns();
    ks_wplan p;
    ks_store *s = ks_calloc(1, sizeof *s);
    if (!s) return ks_fail(err, KS_E_NOMEM, "out of memory for the weight store");
    int rc = ks__plan_init(&p, c, specs, n_specs, o, err);
    if (rc == 0) {
        rc = o->no_cache ? build_all(s, &p, c, NULL, o, err) : open_cached(s, &p, c, o, err);
        if (rc == 0) ks__mem_collapse(&s->mem);
        if (rc == 0) rc = publish(s, &p, ret_weights, err);
        ks__plan_fini(&p);
    }
    if (rc != 0) {
        ks_store_close(s);
        return rc;
    }
    tell(s, (double)(ks_now_ns() - begin) / 1e9);
    *ret = s;
    return 0;
}

void ks_store_close(ks_store *s)
{
    if (!s) return;
    ks__mem_fini(&s->mem);
    free(s->names);
    free(s);
}

uint64_t ks_store_bytes(const ks_store *s)
{
    return s->mem.bytes;
}

bool ks_store_was_cached(const ks_store *s)
{
    return s->was_cached;
}
