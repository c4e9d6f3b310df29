/* What a plugin may call: the log, counted memory, the pool. One ks_host a plugin, so that lines carry its name. */
#include "base/base.h"
#include "base/log.h"
#include "plugin/impl.h"
#include <malloc.h>

static void host_log(const ks_host *h, int32_t level, const char *msg) /* [any] */
{
    const ks_entry *e = h->ctx;
    ks_log(level < KS_LOG_ERROR ? KS_LOG_ERROR : level > KS_LOG_TRACE ? KS_LOG_TRACE : level, e->name, "%s", msg);
}

static void *host_alloc(const ks_host *h, size_t bytes, size_t align) /* [any] */
{
    ks_entry *e = h->ctx;
    void *p = NULL;
    if (align < sizeof(void *)) align = sizeof(void *);
    if (posix_memalign(&p, align, bytes ? bytes : 1)) return NULL;
    atomic_fetch_add_explicit(&e->held, malloc_usable_size(p), memory_order_relaxed);
    return p;
}

static void host_free(const ks_host *h, void *p) /* [any] */
{
    ks_entry *e = h->ctx;
    if (p) atomic_fetch_sub_explicit(&e->held, malloc_usable_size(p), memory_order_relaxed);
    free(p);
}

size_t ks_plugin_mem_bytes(const ks_plugin_entry *p)
{
    return atomic_load_explicit(&((const ks_entry *)p)->held, memory_order_relaxed); /* pub is its first member */
}

static void host_parallel(const ks_host *h, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg) /* [engine] */
{
    const ks_registry_opts *o = &((const ks_entry *)h->ctx)->registry->o;
    if (o->parallel) {
        o->parallel(o->parallel_ctx, n, task, arg);
        return;
    }
    for (uint32_t i = 0; i < n; i++) task(arg, i);
}

static const void *host_ext(const ks_host *h, const char *id) /* [any] no extension exists yet */
{
    (void)h;
    (void)id;
    return NULL;
}

void ks__host_init(ks_entry *e)
{
    const ks_registry_opts *o = &e->registry->o;
    e->host = (ks_host) { .size = (uint32_t)sizeof e->host,
                          .abi_minor = KS_ABI_MINOR,
                          .ctx = e,
                          .cpu = o->cpu,
                          .n_threads = o->n_threads,
                          .log = host_log,
                          .alloc = host_alloc,
                          .free = host_free,
                          .parallel = host_parallel,
                          .ext = host_ext };
}
