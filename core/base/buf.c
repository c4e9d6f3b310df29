/* The growable buffer: doubles, keeps a NUL behind the last byte, remembers failure. Owner's thread only. */
#include "base/buf.h"
#include "base/base.h"
#include <stdarg.h>

void ks_buf_init(ks_buf *b, size_t limit)
{
    *b = (ks_buf) { .limit = limit };
}

void ks_buf_fini(ks_buf *b)
{
    free(b->p);
    ks_buf_init(b, b->limit);
}

/* Room for n more bytes and the NUL. */
static bool reserve(ks_buf *b, size_t n)
{
    size_t need, cap;
    if (b->failed) return false;
    if (!ks_add_size(b->n, n, &need) || (b->limit && need > b->limit) || need >= SIZE_MAX / 2) goto failed;
    if (need < b->cap) return true;
    for (cap = KS_MAX(b->cap, (size_t)64); cap <= need;) cap *= 2;
    char *p = realloc(b->p, cap);
    if (!p) goto failed;
    b->p = p;
    b->cap = cap;
    return true;
failed:
    b->failed = true;
    return false;
}

void ks_buf_add(ks_buf *b, const void *p, size_t n)
{
    if (!reserve(b, n)) return;
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
    b->p[b->n] = 0;
}

void ks_buf_adds(ks_buf *b, const char *s)
{
    ks_buf_add(b, s, strlen(s));
}
void ks_buf_addc(ks_buf *b, char c)
{
    ks_buf_add(b, &c, 1);
}

void ks_buf_printf(ks_buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    if (n < 0) b->failed = true;
    if (n >= 0 && reserve(b, (size_t)n)) {
        (void)vsnprintf(b->p + b->n, (size_t)n + 1, fmt, again); /* measured above */
        b->n += (size_t)n;
    }
    va_end(again);
    va_end(ap);
}

char *ks_buf_take(ks_buf *b, size_t *ret_n)
{
    if (!reserve(b, 0)) return NULL; /* an empty buffer gives an empty string */
    char *p = b->p;
    p[b->n] = 0;
    if (ret_n) *ret_n = b->n;
    ks_buf_init(b, b->limit);
    return p;
}
