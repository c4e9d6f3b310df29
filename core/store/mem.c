/* Huge-page memory. Every hint may be refused (old kernel, THP off): then the pages are small, and all works. */
#include "store/mem.h"
#include "base/base.h"
#include "cpu/cpu.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; the C library's header may be older */
#endif

#define COLLAPSE_STEP ((size_t)1 << 30)

int ks__mem_init(ks_mem *m, size_t bytes, ks_err *err)
{
    uint64_t free_bytes = ks_ram_available_bytes();
    size_t map_bytes;
    if (bytes > free_bytes)
        return ks_fail(err, KS_E_LIMIT,
                       "the weights need %.1f GB of memory, %.1f GB are available: close other programs or quantize to "
                       "fewer bits (--cpu-expert-bits)",
                       (double)bytes / 1e9, (double)free_bytes / 1e9);
    if (!ks_add_size(bytes ? bytes : 1, KS_HUGE_BYTES, &map_bytes))
        return ks_fail(err, KS_E_NOMEM, "the weights need %zu bytes of memory", bytes);
    void *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return ks_fail(err, KS_E_NOMEM, "cannot get %.1f GB of memory for the weights: %s", (double)bytes / 1e9,
                       strerror(errno));
    *m = (ks_mem) {
        .p = (void *)ks_align_up((size_t)(uintptr_t)map, KS_HUGE_BYTES),
        .bytes = bytes,
        .map = map,
        .map_bytes = map_bytes,
    };
    (void)madvise(m->p, bytes, MADV_HUGEPAGE); /* a hint */
    (void)madvise(m->p, bytes, MADV_DONTDUMP); /* core files stay small */
    return 0;
}

void ks__mem_fini(ks_mem *m)
{
    if (!m || !m->map) return;
    (void)munmap(m->map, m->map_bytes); /* cannot fail: these are the map's own bounds */
    memset(m, 0, sizeof *m);
}

void ks__mem_collapse(const ks_mem *m)
{
    size_t whole = m->bytes & ~(KS_HUGE_BYTES - 1);
    for (size_t at = 0; at < whole; at += COLLAPSE_STEP)
        if (madvise((char *)m->p + at, KS_MIN(COLLAPSE_STEP, whole - at), MADV_COLLAPSE) != 0 && errno == EINVAL)
            return; /* not in this kernel */
}

uint64_t ks__mem_huge_bytes(const ks_mem *m)
{
    const uintptr_t begin = (uintptr_t)m->map, end = begin + m->map_bytes;
    uintptr_t from = 0, to = 0;
    uint64_t sum = 0, kib;
    char line[256];
    FILE *f = fopen("/proc/self/smaps", "re");
    while (f && fgets(line, sizeof line, f)) {
        uintptr_t a, b;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &a, &b) == 2) {
            from = a;
            to = b;
        } else if (from >= begin && to <= end && sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1) {
            sum += kib * 1024;
        }
    }
    if (f) (void)fclose(f); /* nothing was written */
    return KS_MIN(sum, (uint64_t)m->bytes);
}
