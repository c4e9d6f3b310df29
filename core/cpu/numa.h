/* Which memory node each worker of the pool is near, and which node owns which part of a matrix.
 *
 * Workers of one node have consecutive numbers, and each works on the same contiguous share of every matrix's strips
 * (sched/pool.h: worker i of n gets the i-th n-th part). So a node owns a contiguous share, too, and if it lies in
 * the node's own memory, each worker reads from there. Nothing here changes results. [any] */
#ifndef KS_CPU_NUMA_H
#define KS_CPU_NUMA_H

#include <stdbool.h>
#include <stdint.h>

#define KS_NUMA_NODES 64u

typedef struct ks_numa {
    uint32_t n_nodes, n_workers;       /* nodes that have workers; one: there is nothing to place */
    uint32_t id[KS_NUMA_NODES];        /* the system's number of node k */
    uint32_t first[KS_NUMA_NODES + 1]; /* workers [first[k], first[k + 1]) are on node k */
} ks_numa;

/* cpus (n_workers): where the workers are pinned, those of one node together, as ks_cpu_cores gives them. If they are
 * not, or there is no memory node to tell, everything is one node. */
void ks_numa_init(ks_numa *m, const uint32_t *cpus, uint32_t n_workers);
uint32_t ks_numa_node_of(const ks_numa *m, uint32_t worker); /* k, not the system's number */
/* The units [begin, end) out of n (strips of a matrix) that node k's workers own. */
void ks_numa_share(const ks_numa *m, uint32_t k, uint32_t n, uint32_t *ret_begin, uint32_t *ret_end);
/* Pages that this thread touches first come from node k, if it has any left. False: the system will not. */
bool ks_numa_prefer(const ks_numa *m, uint32_t k);
void ks_numa_prefer_any(void); /* back to the default: where the thread runs */

#endif
