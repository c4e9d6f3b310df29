/* The arena: blocks of growing size, newest first; one pointer is moved per allocation.
 * The limit counts what was handed out, so that it means the same on every machine. Owner's thread only.
 */
#include "base/arena.h"
#include "base/base.h"
#include <stdarg.h>

#define ALIGN ((size_t)16)
#define BLOCK_MIN ((size_t)4096)
#define BLOCK_GROWS_TO ((size_t)1 << 20)

typedef struct ks_arena_block {
    struct ks_arena_block *next;
    size_t used, cap; /* of data */
    _Alignas(16) unsigned char data[];
} ks_arena_block;

void ks_arena_init(ks_arena *a, size_t limit_bytes)
{
    *a = (ks_arena) { .limit_bytes = limit_bytes };
}

void ks_arena_fini(ks_arena *a)
{
    while (a->head) {
        ks_arena_block *next = a->head->next;
        free(a->head);
        a->head = next;
    }
    a->total_bytes = 0;
}

void ks_arena_reset(ks_arena *a)
{
    ks_arena_block *keep = a->head;
    for (ks_arena_block *b = a->head; b; b = b->next)
        if (b->cap > keep->cap) keep = b;
    for (ks_arena_block *b = a->head, *next; b; b = next) {
        next = b->next;
        if (b != keep) free(b);
    }
    if (keep) {
        keep->next = NULL;
        keep->used = 0;
    }
    a->head = keep;
    a->total_bytes = 0;
}

/* A block with room for `bytes`; blocks double so that a big model's metadata costs few of them. */
static ks_arena_block *add_block(ks_arena *a, size_t bytes)
{
    size_t cap = a->head ? KS_MIN(a->head->cap * 2, BLOCK_GROWS_TO) : BLOCK_MIN, total;
    cap = KS_MAX(cap, bytes);
    if (!ks_add_size(cap, sizeof(ks_arena_block), &total)) return NULL;
    ks_arena_block *b = malloc(total);
    if (!b) return NULL;
    *b = (ks_arena_block) { .next = a->head, .cap = cap };
    a->head = b;
    return b;
}

void *ks_arena_alloc(ks_arena *a, size_t bytes)
{
    size_t need, total;
    if (!ks_add_size(KS_MAX(bytes, (size_t)1), ALIGN - 1, &need)) return NULL;
    need &= ~(ALIGN - 1);
    if (!ks_add_size(a->total_bytes, need, &total)) return NULL;
    if (a->limit_bytes && total > a->limit_bytes) return NULL;
    ks_arena_block *b = a->head;
    if (!b || b->cap - b->used < need) b = add_block(a, need);
    if (!b) return NULL;
    void *p = b->data + b->used;
    b->used += need;
    a->total_bytes = total;
    return memset(p, 0, need);
}

void *ks_arena_calloc(ks_arena *a, size_t n, size_t size)
{
    size_t bytes;
    return ks_mul_size(n, size, &bytes) ? ks_arena_alloc(a, bytes) : NULL;
}

char *ks_arena_strndup(ks_arena *a, const char *s, size_t n)
{
    size_t bytes;
    if (!ks_add_size(n, 1, &bytes)) return NULL;
    char *p = ks_arena_alloc(a, bytes); /* zeroed: terminated */
    if (p && n) memcpy(p, s, n);
    return p;
}

char *ks_arena_printf(ks_arena *a, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    char *p = n < 0 ? NULL : ks_arena_alloc(a, (size_t)n + 1);
    if (p) (void)vsnprintf(p, (size_t)n + 1, fmt, again); /* measured above */
    va_end(again);
    va_end(ap);
    return p;
}
