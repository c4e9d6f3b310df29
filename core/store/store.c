/* The weight store: plan, then the cache or the checkpoint, then descriptions for the graph. */
#include "store/store.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/progress.h"
#include "store/build.h"
#include "store/cache.h"
#include "store/mem.h"
#include <stdatomic.h>

struct ks_store {
    ks_mem mem;
    char *names; /* of the weights, back to back */
    bool was_cached;
};

/* One pass over all blocks, on all threads. */
typedef struct pass {
    const ks_plan *plan;
    const ks_ckpt *ckpt;
    ks_cache *cache; /* NULL: none */
    uint8_t *arena;
    ks_builder *builders; /* one a worker; NULL where nothing is built */
    uint32_t n_builders;
    ks_progress *bar;
    int (*block)(struct pass *x, ks_builder *b, uint32_t i, ks_err *err);
    atomic_int failed; /* set once by whoever holds err; read by all to stop early */
    pthread_mutex_t mu;
    int rc;     /* under mu */
    ks_err err; /* under mu: of the first that failed */
} pass;

static void run_blocks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    pass *x = arg;
    for (uint32_t i = begin; i < end && !atomic_load_explicit(&x->failed, memory_order_relaxed); i++) {
        ks_err err = { .code = 0 };
        int rc = x->block(x, x->builders ? &x->builders[worker] : NULL, i, &err);
        ks_progress_add(x->bar, x->plan->blocks[i].bytes);
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

/* Blocks are dealt singly where each is work, in runs where each is a read. */
static int run_pass(pass *x, ks_pool *pool, const char *what, bool builds, ks_err *err)
{
    const uint32_t n_workers = pool ? ks_pool_threads(pool) : 1;
    int rc = 0;
    if (builds) {
        x->builders = ks_calloc(n_workers, sizeof *x->builders);
        if (!x->builders) return ks_fail(err, KS_E_NOMEM, "out of memory for %u workers", n_workers);
        for (; x->n_builders < n_workers && rc == 0; x->n_builders++)
            rc = ks__builder_init(&x->builders[x->n_builders], x->plan, x->ckpt, err);
    }
    if (rc == 0 && pthread_mutex_init(&x->mu, NULL) != 0) rc = ks_fail(err, KS_E_NOMEM, "cannot make a mutex");
    if (rc == 0) {
        uint64_t total = 0;
        for (uint32_t i = 0; i < x->plan->n_blocks; i++) total += x->plan->blocks[i].bytes;
        x->bar = ks_progress_begin(what, total, "B");
        if (pool && x->plan->n_blocks > 0)
            ks_pool_run(pool, x->plan->n_blocks, builds ? 1 : 8, run_blocks, x);
        else
            run_blocks(x, 0, x->plan->n_blocks, 0);
        ks_progress_end(x->bar);
        (void)pthread_mutex_destroy(&x->mu);
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
    if (x->cache && x->cache->done[i] && ks__cache_get(x->cache, i, dst, NULL) == 0) return 0; /* by an earlier run */
    int rc = ks__build_block(b, i, dst, &source, err);
    if (rc == 0 && x->cache) rc = ks__cache_put(x->cache, i, dst, source, err);
    return rc;
}

static int block_read(pass *x, ks_builder *b, uint32_t i, ks_err *err)
{
    (void)b;
    return ks__cache_get(x->cache, i, x->arena + x->plan->blocks[i].off, err);
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

static int build_all(ks_store *s, const ks_plan *p, const ks_ckpt *c, ks_cache *cache, ks_pool *pool, ks_err *err)
{
    pass x = { .plan = p, .ckpt = c, .cache = cache, .block = block_build };
    int rc = ks__mem_init(&s->mem, p->payload_bytes, err);
    x.arena = s->mem.p;
    return rc != 0 ? rc : run_pass(&x, pool, "preparing weights", true, err);
}

/* From the finished cache file, if it is there, whole, and made of this very source. */
static int load(ks_store *s, const ks_plan *p, const ks_ckpt *c, ks_cache *cache, const ks_store_opts *o, ks_err *err)
{
    int rc = ks__cache_open(cache, err);
    if (rc != 0) return rc;
    if (o->verify || !ks__cache_is_current(cache)) {
        pass x = { .plan = p, .ckpt = c, .cache = cache, .block = block_compare };
        rc = run_pass(&x, o->pool, "comparing the cache with its source", true, err);
        if (rc == 0) rc = ks__cache_set_current(cache, err);
        if (rc != 0) return rc;
    }
    pass x = { .plan = p, .ckpt = c, .cache = cache, .block = block_read };
    rc = ks__mem_init(&s->mem, p->payload_bytes, err);
    x.arena = s->mem.p;
    if (rc == 0) rc = run_pass(&x, o->pool, "loading weights", false, err);
    if (rc != 0)
        ks__mem_fini(&s->mem);
    else
        s->was_cached = true;
    return rc;
}

/* Damage is mended by building again, and told; a full disk or lack of memory is the caller's. */
static int load_or_miss(ks_store *s, const ks_plan *p, const ks_ckpt *c, ks_cache *cache, const ks_store_opts *o,
                        ks_err *err)
{
    ks_err e = { .code = 0 };
    int rc = load(s, p, c, cache, o, &e);
    if (rc == KS_E_FORMAT) ks_log(KS_LOG_WARN, "store", "%s; building the weights again", e.msg);
    if (rc == KS_E_FORMAT) return KS_E_NOTFOUND;
    if (rc != 0 && rc != KS_E_NOTFOUND && err) *err = e;
    return rc;
}

static int open_cached(ks_store *s, const ks_plan *p, const ks_ckpt *c, const ks_store_opts *o, ks_err *err)
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
            if (rc == 0) rc = build_all(s, p, c, &cache, o->pool, err);
            if (rc == 0) rc = ks__cache_commit(&cache, err);
        }
    }
    ks__cache_fini(&cache);
    return rc;
}

int ks_store_check(const ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs, const ks_store_opts *o,
                   uint64_t ret_class_bytes[16], ks_err *err)
{
    ks_plan p = { 0 };
    int rc = ks__plan_init(&p, c, specs, n_specs, o, err);
    if (!rc) memset(ret_class_bytes, 0, 16 * sizeof *ret_class_bytes);
    for (uint32_t i = 0; !rc && i < p.n_weights; i++) {
        const ks_weight *w = &p.weights[i].w;
        if (!p.weights[i].absent) ret_class_bytes[w->cls & 15] += (uint64_t)w->n_mat * w->mat_bytes;
    }
    ks__plan_fini(&p);
    return rc;
}

/* Descriptions and data pointers; names move into the store, which outlives the plan. */
static int publish(ks_store *s, const ks_plan *p, ks_weight *ret_weights, ks_err *err)
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

int ks_store_open(ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs, const ks_store_opts *o, ks_weight *ret_weights,
                  ks_store **ret, ks_err *err)
{
    const uint64_t begin = ks_now_ns();
    ks_plan p;
    ks_store *s = ks_calloc(1, sizeof *s);
    if (!s) return ks_fail(err, KS_E_NOMEM, "out of memory for the weight store");
    int rc = ks__plan_init(&p, c, specs, n_specs, o, err);
    if (rc == 0) {
        rc = o->no_cache ? build_all(s, &p, c, NULL, o->pool, err) : open_cached(s, &p, c, o, err);
        if (rc == 0) ks__mem_collapse(&s->mem);
        if (rc == 0) rc = publish(s, &p, ret_weights, err);
        ks__plan_fini(&p);
    }
    if (rc != 0) {
        ks_store_close(s);
        return rc;
    }
    ks_log(KS_LOG_DEBUG, "store", "%.1f MB of weights %s in %.2f s", (double)s->mem.bytes / 1e6,
           s->was_cached ? "loaded" : "built", (double)(ks_now_ns() - begin) / 1e9);
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
