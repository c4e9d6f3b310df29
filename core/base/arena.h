/* Arena: allocations that die together. Not thread-safe; each owner has its own. */
#ifndef KS_BASE_ARENA_H
#define KS_BASE_ARENA_H

#include <krasis/error.h>
#include <stddef.h>

typedef struct ks_arena {
    struct ks_arena_block *head;
    size_t total_bytes, limit_bytes; /* limit 0: none */
} ks_arena;

void ks_arena_init(ks_arena *a, size_t limit_bytes);
void ks_arena_fini(ks_arena *a);  /* a zeroed arena is fine */
void ks_arena_reset(ks_arena *a); /* keeps the largest block */
/* Zeroed, aligned to 16; NULL if memory or the limit is exhausted. */
void *ks_arena_alloc(ks_arena *a, size_t bytes);
void *ks_arena_calloc(ks_arena *a, size_t n, size_t size); /* checked product */
char *ks_arena_strndup(ks_arena *a, const char *s, size_t n);
KS_PRINTF(2, 3) char *ks_arena_printf(ks_arena *a, const char *fmt, ...);

#endif
