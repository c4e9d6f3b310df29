/* Pages come from the node whose policy the touching thread has, so no mapping is split and no limit on mappings is
 * met, however many experts there are. Small pages cost a few per cent, a remote read half of the speed: where a huge
 * page would span the shares of several nodes, small ones are taken. */
#include "store/place.h"
#include "base/base.h"
#include "base/log.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define SMALL_BYTES ((uint64_t)4096)
#define HUGE_PER_SHARE 4u               /* from so many on, the rounding to huge pages is small */
#define WORTH_BYTES ((uint64_t)1 << 20) /* a weight below is read from the caches */

typedef struct job {
    const ks_wplan *plan;
    const ks_mem *mem;
    const ks_numa *numa;
    atomic_uint next; /* weight */
    atomic_bool refused;
} job;

static bool is_placed(const ks_pweight *w)
{
    return !w->absent && w->w.layout == KS_LAYOUT_T16 && w->w.n_mat * w->w.mat_bytes >= WORTH_BYTES;
}

uint64_t ks__place_page_bytes(const ks_pweight *w, const ks_numa *m)
{
    return w->w.mat_bytes / m->n_nodes >= HUGE_PER_SHARE * KS_HUGE_BYTES ? KS_HUGE_BYTES : SMALL_BYTES;
}

bool ks__place_range(const ks_pweight *w, const ks_numa *m, uint32_t mat, uint32_t k, uint64_t page_bytes,
                     uint64_t *ret_lo, uint64_t *ret_hi)
{
    const uint32_t n = ks_t16_strips(w->w.n_out);
    const uint64_t strip_bytes = w->w.mat_bytes / n, at = w->off + mat * w->w.stride;
    uint32_t begin, end;
    ks_numa_share(m, k, n, &begin, &end);
    /* The page in which a share begins belongs to the one before, but for the matrix's first. */
    *ret_lo = begin == 0 ? at & ~(page_bytes - 1) : ks_align_up(at + begin * strip_bytes, page_bytes);
    *ret_hi = ks_align_up(at + end * strip_bytes, page_bytes);
    return begin < end && *ret_lo < *ret_hi;
}

static void touch(uint8_t *p, uint64_t n)
{
    if (madvise(p, n, MADV_POPULATE_WRITE) == 0) return;
    for (uint64_t i = 0; i < n; i += SMALL_BYTES) *(volatile uint8_t *)(p + i) = 0; /* it is zero already */
}

static void place_weight(job *j, const ks_pweight *w)
{
    const uint64_t page = ks__place_page_bytes(w, j->numa), end = ks_align_up(j->mem->bytes, page);
    uint8_t *arena = j->mem->p;
    uint64_t lo, hi;
    for (uint32_t k = 0; k < j->numa->n_nodes; k++) { /* one change of the policy a node */
        if (!ks_numa_prefer(j->numa, k)) atomic_store_explicit(&j->refused, true, memory_order_relaxed);
        for (uint32_t m = 0; m < w->w.n_mat; m++)
            if (ks__place_range(w, j->numa, m, k, page, &lo, &hi)) touch(arena + lo, KS_MIN(hi, end) - lo);
    }
    ks_numa_prefer_any();
}

static void *placer(void *arg)
{
    job *j = arg;
    for (uint32_t i; (i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) < j->plan->n_weights;)
        if (is_placed(&j->plan->weights[i])) place_weight(j, &j->plan->weights[i]);
    return NULL;
}

void ks__place(const ks_wplan *p, const ks_mem *mem, const ks_numa *m)
{
    job j = { .plan = p, .mem = mem, .numa = m };
    pthread_t threads[KS_NUMA_NODES];
    uint32_t n = 0;
    if (m->n_nodes < 2) return;
    for (uint32_t i = 0; i < p->n_weights;
         i++) { /* hints: where they are refused, the pages are just less well placed */
        const ks_pweight *w = &p->weights[i];
        uint64_t lo = w->off & ~(SMALL_BYTES - 1), hi = ks_align_up(w->off + w->w.n_mat * w->w.stride, SMALL_BYTES);
        if (is_placed(w) && ks__place_page_bytes(w, m) == SMALL_BYTES)
            (void)madvise((uint8_t *)mem->p + lo, KS_MIN(hi, ks_align_up(mem->bytes, SMALL_BYTES)) - lo,
                          MADV_NOHUGEPAGE);
    }
    while (n < KS_MIN(m->n_workers, KS_NUMA_NODES) - 1 && pthread_create(&threads[n], NULL, placer, &j) == 0) n++;
    (void)placer(&j);
    for (uint32_t i = 0; i < n; i++) (void)pthread_join(threads[i], NULL); /* our own threads: cannot fail */
    ks_log(KS_LOG_DEBUG, "store", "weights are spread over %u memory nodes%s", m->n_nodes,
           atomic_load(&j.refused) ? ", but the system refuses to choose the node: see set_mempolicy(2)" : "");
}
