/* Memory nodes. The two system calls are made directly: they are all that libnuma would be linked for. */
#include "cpu/numa.h"
#include "base/base.h"
#include "cpu/topo.h"
#include <sys/syscall.h>
#include <unistd.h>

#define MPOL_DEFAULT 0
#define MPOL_PREFERRED 1
#define MASK_WORDS 16u /* nodes up to 1023, as many as Linux has */

static void one_node(ks_numa *m, uint32_t n_workers)
{
    *m = (ks_numa) { .n_nodes = 1, .n_workers = n_workers, .first = { 0, n_workers } };
}

void ks__numa_init(const char *root, ks_numa *m, const uint32_t *cpus, uint32_t n_workers)
{
    uint32_t *node = ks_calloc((size_t)n_workers + 1, sizeof *node);
    one_node(m, n_workers);
    if (!node) return; /* works without */
    ks__topo_nodes(root, cpus, n_workers, node);
    uint32_t n = 0;
    bool together = true;
    for (uint32_t i = 0; i < n_workers && together; i++) {
        if (n > 0 && node[i] == m->id[n - 1]) continue;
        for (uint32_t k = 0; k < n; k++) together = together && m->id[k] != node[i];
        together = together && n < KS_NUMA_NODES;
        if (!together) break;
        m->id[n] = node[i];
        m->first[n++] = i;
    }
    m->n_nodes = n;
    m->first[n] = n_workers;
    if (!together || n == 0) one_node(m, n_workers);
    free(node);
}

void ks_numa_init(ks_numa *m, const uint32_t *cpus, uint32_t n_workers)
{
    ks__numa_init("", m, cpus, n_workers);
}

uint32_t ks_numa_node_of(const ks_numa *m, uint32_t worker)
{
    uint32_t k = 0;
    while (k + 1 < m->n_nodes && worker >= m->first[k + 1]) k++;
    return k;
}

void ks_numa_share(const ks_numa *m, uint32_t k, uint32_t n, uint32_t *ret_begin, uint32_t *ret_end)
{
    const uint64_t workers = KS_MAX(m->n_workers, 1u);
    *ret_begin = (uint32_t)(n * (uint64_t)m->first[k] / workers);
    *ret_end = (uint32_t)(n * (uint64_t)m->first[k + 1] / workers);
}

bool ks_numa_prefer(const ks_numa *m, uint32_t k)
{
    unsigned long mask[MASK_WORDS] = { 0 };
    const uint32_t bits = 8 * sizeof *mask;
    if (m->id[k] >= MASK_WORDS * bits) return false;
    mask[m->id[k] / bits] = 1ul << m->id[k] % bits;
    /* The kernel takes one bit less than it is told. */
    return syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, (unsigned long)MASK_WORDS * bits + 1) == 0;
}

void ks_numa_prefer_any(void)
{
    (void)syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0ul); /* fails only where prefer did */
}
