/* Large memory for weights: anonymous, 2 MiB-aligned, in huge pages where the kernel gives them. [main] */
#ifndef KS_STORE_MEM_H
#define KS_STORE_MEM_H

#include <krasis/error.h>
#include <stddef.h>

#define KS_HUGE_BYTES ((size_t)2 << 20)

typedef struct ks_mem {
    void *p; /* zeroed, aligned to KS_HUGE_BYTES */
    size_t bytes;
    void *map; /* what munmap takes */
    size_t map_bytes;
} ks_mem;

/* An error if the machine (or its cgroup) has less memory available: better than being killed half-way. */
KS_MUST_CHECK int ks__mem_init(ks_mem *m, size_t bytes, ks_err *err);
void ks__mem_fini(ks_mem *m); /* a zeroed one is fine */
/* After everything was written: asks the kernel to gather what still lies in small pages. May do nothing. */
void ks__mem_collapse(const ks_mem *m);
/* How much of it lies in huge pages, as the kernel tells; 0 if it does not. */
uint64_t ks__mem_huge_bytes(const ks_mem *m);

#endif
