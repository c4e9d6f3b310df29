/* What a core can do at most, as loops to be timed: reading memory, multiplying and adding in each instruction set.
 *
 * Bounds of `krasis bench` and `krasis plan` are computed from them; they do nothing else than the one thing, so no
 * kernel is faster. Pure functions over the caller's memory; whoever times them runs them on as many threads as are
 * meant. [any] */
#ifndef KS_CPU_CEILING_H
#define KS_CPU_CEILING_H

#include <stddef.h>
#include <stdint.h>

#define KS_CEIL_READ 1u /* bytes from memory */
#define KS_CEIL_INT8 2u /* multiply-adds of bytes */
#define KS_CEIL_BF16 3u
#define KS_CEIL_F32 4u
#define KS_CEIL_KINDS 5u

typedef struct ks_ceiling {
    const char *name; /* "avx2 maddubs" */
    uint32_t kind;
    uint32_t per_round; /* multiply-adds of one round; READ: 1 byte */
    uint64_t cpu;       /* KS_CPU() bits it needs: look before the call */
    /* READ: n bytes from p, a multiple of 4096, aligned to 64; else n rounds, p NULL. What it returns depends on all of
     * the work, so that none of it can be left out: use it. */
    uint64_t (*run)(const void *p, size_t n);
} ks_ceiling;

/* The i-th; NULL ends. Of one kind the fastest come last. */
const ks_ceiling *ks_ceiling_at(uint32_t i);

#endif
