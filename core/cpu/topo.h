/* Inside of the cpu layer: what /proc and /sys tell, read below a root folder ("" for the real one) so that
 * tests can bring machines of their own. Nothing is cached. [any] */
#ifndef KS_CPU_TOPO_H
#define KS_CPU_TOPO_H

#include <stddef.h>
#include <stdint.h>

struct ks_numa;

/* One of `allowed` (ascending logical CPUs) for each physical core, into ret (n). Returns how many. */
uint32_t ks__topo_pick(const char *root, const uint32_t *allowed, uint32_t n, uint32_t *ret);
/* Whole CPUs that the cgroup's quota pays for, at least 1; UINT32_MAX without a quota. */
uint32_t ks__topo_quota(const char *root);
/* Bytes this cgroup (and those above it) may still take; UINT64_MAX without a limit. */
uint64_t ks__topo_memory_left(const char *root);
/* A line of /proc/meminfo in bytes; 0 if it is not there. */
uint64_t ks__topo_meminfo(const char *root, const char *key);
uint32_t ks__topo_numa_nodes(const char *root);
/* The memory node of each CPU into ret_node (n); 0 where the system tells none. */
void ks__topo_nodes(const char *root, const uint32_t *cpus, uint32_t n, uint32_t *ret_node);
/* ks_numa_init on such a machine. */
void ks__numa_init(const char *root, struct ks_numa *m, const uint32_t *cpus, uint32_t n_workers);
/* Sorts CPUs by memory node; those of one keep their order. */
void ks__topo_group(const char *root, uint32_t *cpus, uint32_t n);

#endif
