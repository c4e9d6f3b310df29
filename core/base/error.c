/* What base.h declares: the end after a bug of ours, and checked allocation. [any] */
#include "base/base.h"

void ks_assert_failed(const char *expr, const char *file, int line)
{
    (void)fprintf(stderr, "krasis: bug: '%s' does not hold at %s:%d\n", expr, file, line);
    abort();
}

void *ks_calloc(size_t n, size_t size)
{
    return calloc(n ? n : 1, size ? size : 1);
} /* NULL means failure only */

char *ks_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = malloc(n);
    return copy ? memcpy(copy, s, n) : NULL;
}
