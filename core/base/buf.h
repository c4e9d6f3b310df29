/* Growable byte buffer, always NUL-terminated. A failed allocation is sticky: check `failed` once. */
#ifndef KS_BASE_BUF_H
#define KS_BASE_BUF_H

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct ks_buf {
    char *p;              /* NULL while empty and never grown */
    size_t n, cap, limit; /* limit 0: none; above it `failed` */
    bool failed;
} ks_buf;

void ks_buf_init(ks_buf *b, size_t limit);
void ks_buf_fini(ks_buf *b);
void ks_buf_add(ks_buf *b, const void *p, size_t n);
void ks_buf_adds(ks_buf *b, const char *s);
void ks_buf_addc(ks_buf *b, char c);
KS_PRINTF(2, 3) void ks_buf_printf(ks_buf *b, const char *fmt, ...);
/* Hands the memory to the caller (free it with free()); the buffer is empty after. NULL if failed. */
char *ks_buf_take(ks_buf *b, size_t *ret_n);

#endif
