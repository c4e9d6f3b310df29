/* Device memory: a reserved piece of the address space that nobody may touch, but for what is allocated while kernels
 * or copies run. An allocation ends where a page ends, a page that is never there follows, and an address is never
 * given out twice. Pinned host memory is a list of ranges. */
#include "impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define REGION_BYTES ((size_t)1 << 38)
#define TOTAL_BYTES ((size_t)4 << 30)
#define PAGE ((size_t)4096)
#define ALIGN ((size_t)256)
#define SPOIL_BYTES ((size_t)4 << 20) /* at both ends of what is larger */
#define CLOSE_EVERY 32u
#define SPOILED 0xff /* a NaN, an index that does not exist */

typedef struct block {
    uint8_t *p, *map;
    size_t bytes, map_bytes;
    bool is_new; /* nobody has written to it yet */
} block;

typedef struct range {
    uint8_t *p;
    size_t bytes;
    bool ours; /* from cudaHostAlloc */
} range;

static uint8_t *region;
static size_t region_used;
static block *blocks; /* ascending */
static range *ranges;
static uint32_t n_blocks, cap_blocks, n_ranges, cap_ranges, n_new, opened;
static bool ajar; /* not shut, though nothing runs */

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static void protect(const block *b, int how)
{
    if (mprotect(b->map, b->map_bytes, how)) emu_fault("mprotect: %s", strerror(errno));
}

/* To shut the door takes longer than a small kernel: what the host may not touch, it may not touch now and then. */
void emu_memory_open(void)
{
    if (opened++ || ajar) return;
    for (uint32_t i = 0; i < n_blocks; i++) protect(&blocks[i], PROT_READ | PROT_WRITE);
    ajar = true;
}

void emu_memory_close(void)
{
    static uint32_t n;
    if (--opened == 0 && ++n % CLOSE_EVERY == 0) emu_memory_shut();
}

void emu_memory_shut(void)
{
    for (uint32_t i = 0; i < n_blocks; i++) protect(&blocks[i], PROT_NONE);
    ajar = false;
}

static block *find(const void *p)
{
    uint32_t lo = 0, hi = n_blocks;
    while (lo < hi) { /* the last that begins at or before p */
        uint32_t mid = (lo + hi) / 2;
        if (blocks[mid].p <= (const uint8_t *)p)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo && (size_t)((const uint8_t *)p - blocks[lo - 1].p) < blocks[lo - 1].bytes ? &blocks[lo - 1] : NULL;
}

bool emu_is_device(const void *p, size_t bytes)
{
    const block *b = find(p);
    return b && bytes <= b->bytes - (size_t)((const uint8_t *)p - b->p);
}

bool emu_touches_device(const void *p)
{
    return region && (const uint8_t *)p >= region && (const uint8_t *)p < region + REGION_BYTES;
}

bool emu_is_pinned(const void *p, size_t bytes)
{
    for (uint32_t i = 0; i < n_ranges; i++) {
        const range *r = &ranges[i];
        if ((const uint8_t *)p >= r->p && (size_t)((const uint8_t *)p - r->p) < r->bytes)
            return bytes <= r->bytes - (size_t)((const uint8_t *)p - r->p);
    }
    return false;
}

void emu_spoil(void)
{
    for (uint32_t i = 0; n_new && i < n_blocks; i++) {
        block *b = &blocks[i];
        if (!b->is_new) continue;
        b->is_new = false;
        n_new--;
        size_t n = b->bytes < SPOIL_BYTES ? b->bytes : SPOIL_BYTES;
        memset(b->p, SPOILED, n);
        memset(b->p + b->bytes - n, SPOILED, n);
    }
}

bool emu_clear_new(void *p, size_t bytes)
{
    block *b = find(p);
    if (!b || !b->is_new || b->p != p || b->bytes != bytes) return false;
    b->is_new = false;
    n_new--;
    return true;
}

/* ---- the API */

static cudaError_t new_block(void **ret, size_t bytes)
{
    size_t map_bytes = round_up(bytes, PAGE);
    if (!region) {
        void *p = mmap(NULL, REGION_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return cudaErrorMemoryAllocation;
        region = p;
    }
    if (n_blocks == cap_blocks) {
        uint32_t cap = cap_blocks ? 2 * cap_blocks : 64;
        block *b = realloc(blocks, cap * sizeof *b);
        if (!b) return cudaErrorMemoryAllocation;
        blocks = b;
        cap_blocks = cap;
    }
    if (map_bytes + PAGE > REGION_BYTES - region_used) emu_fault("all addresses have been used");
    block *b = &blocks[n_blocks++];
    *b = (block) { .map = region + region_used, .map_bytes = map_bytes, .bytes = bytes, .is_new = true };
    b->p = b->map + map_bytes - round_up(bytes, ALIGN);
    region_used += map_bytes + PAGE;
    n_new++;
    if (ajar) protect(b, PROT_READ | PROT_WRITE);
    ASAN_POISON_MEMORY_REGION(b->map, map_bytes);
    ASAN_UNPOISON_MEMORY_REGION(b->p, bytes);
    *ret = b->p;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorMemoryAllocation);
    size_t limit = emu.limit ? emu.limit : TOTAL_BYTES;
    if (!rc && bytes > limit - emu.held) rc = cudaErrorMemoryAllocation;
    if (!rc && !bytes)
        *p = NULL;
    else if (!rc && !(rc = new_block(p, bytes))) {
        emu.held += bytes;
        emu.most = emu.held > emu.most ? emu.held : emu.most;
        emu.n_blocks++;
    }
    emu_unlock();
    return rc;
}

/* Waits for everything, as the driver does. */
cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    emu_lock();
    emu_finish_all();
    block *b = find(p);
    if (!b || b->p != p) emu_fault("cudaFree(%p): never allocated, or freed before", p);
    emu.held -= b->bytes;
    emu.n_blocks--;
    n_new -= b->is_new;
    ASAN_UNPOISON_MEMORY_REGION(b->map, b->map_bytes);
    /* Anew, not only unused: what was used stays apart from its neighbours in the kernel's books. */
    if (mmap(b->map, b->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        emu_fault("mmap: %s", strerror(errno));
    memmove(b, b + 1, (size_t)(blocks + n_blocks - b - 1) * sizeof *b);
    if (--n_blocks == 0) {
        free(blocks);
        blocks = NULL;
        cap_blocks = 0;
    }
    emu_unlock();
    return emu.lost ? cudaErrorLaunchFailure : cudaSuccess;
}

static cudaError_t pin(void *p, size_t bytes, bool ours)
{
    if (n_ranges == cap_ranges) {
        uint32_t cap = cap_ranges ? 2 * cap_ranges : 64;
        range *r = realloc(ranges, cap * sizeof *r);
        if (!r) return cudaErrorMemoryAllocation;
        ranges = r;
        cap_ranges = cap;
    }
    ranges[n_ranges++] = (range) { p, bytes, ours };
    return cudaSuccess;
}

static cudaError_t unpin(const void *p, bool ours)
{
    for (uint32_t i = 0; i < n_ranges; i++)
        if (ranges[i].p == p && ranges[i].ours == ours) {
            ranges[i] = ranges[--n_ranges];
            if (!n_ranges) {
                free(ranges);
                ranges = NULL;
                cap_ranges = 0;
            }
            return cudaSuccess;
        }
    return cudaErrorHostMemoryNotRegistered;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned int flags)
{
    (void)flags;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorMemoryAllocation);
    void *q = rc ? NULL : aligned_alloc(ALIGN, round_up(bytes ? bytes : 1, ALIGN));
    if (!rc && !q) rc = cudaErrorMemoryAllocation;
    if (!rc && (rc = pin(q, bytes, true))) free(q);
    if (!rc) {
        memset(q, SPOILED, bytes < SPOIL_BYTES ? bytes : SPOIL_BYTES);
        emu.n_pinned++;
        *p = q;
    }
    emu_unlock();
    return rc;
}

cudaError_t cudaFreeHost(void *p)
{
    if (!p) return cudaSuccess;
    emu_lock();
    emu_finish_all();
    if (unpin(p, true)) emu_fault("cudaFreeHost(%p): never allocated, or freed before", p);
    free(p);
    emu.n_pinned--;
    emu_unlock();
    return emu.lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned int flags)
{
    (void)flags;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorMemoryAllocation);
    for (uint32_t i = 0; i < n_ranges && !rc; i++)
        if ((uint8_t *)p < ranges[i].p + ranges[i].bytes && ranges[i].p < (uint8_t *)p + bytes)
            rc = cudaErrorHostMemoryAlreadyRegistered;
    if (!rc && !(rc = bytes ? pin(p, bytes, false) : cudaErrorInvalidValue)) emu.n_registered++;
    emu_unlock();
    return rc;
}

cudaError_t cudaHostUnregister(void *p)
{
    emu_lock();
    emu_finish_all();
    cudaError_t rc = unpin(p, false);
    if (!rc) emu.n_registered--;
    emu_unlock();
    return rc;
}

cudaError_t cudaHostGetDevicePointer(void **dev, void *host, unsigned int flags)
{
    (void)flags;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorInvalidValue);
    if (!rc && !emu_is_pinned(host, 1)) rc = cudaErrorInvalidValue;
    if (!rc) *dev = host;
    emu_unlock();
    return rc;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    *total = TOTAL_BYTES;
    *free_bytes = TOTAL_BYTES - emu.held;
    emu_unlock();
    return rc;
}
