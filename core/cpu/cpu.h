/* What this machine is: CPU features with the operating system's consent, cores, limits. [any] */
#ifndef KS_CPU_CPU_H
#define KS_CPU_CPU_H

#include <krasis/types.h>
#include <stdbool.h>

/* KS_CPU() bits this process may use: CPUID, XCR0 and, for AMX, the kernel's permission (asked for
 * here, once). KRASIS_CPU_MASK in the environment (a comma list of features to hide, or "none") lowers it. */
uint64_t ks_cpu_features(void);
/* "avx2" -> bit; 0: unknown. */
uint64_t ks_cpu_feature(const char *name);
/* Names of the bits, separated by spaces, into dst; returns dst. */
char *ks_cpu_names(uint64_t bits, char *dst, size_t cap);
/* Brand string, static storage. */
const char *ks_cpu_brand(void);

/* Physical cores this process may use: one logical CPU of each, those of one memory node together, respecting
 * affinity (cpuset) and the cgroup CPU quota (v1 and v2). Returns the count, at least 1, at most cap. */
uint32_t ks_cpu_cores(uint32_t *ret_cpus, uint32_t cap);
uint32_t ks_cpu_numa_nodes(void);
uint64_t ks_ram_bytes(void);           /* physical */
uint64_t ks_ram_available_bytes(void); /* MemAvailable, and the cgroup's limit if lower */

#endif
