/* Small things every file may use: checked sizes, minima, assertion for our own bugs. */
#ifndef KS_BASE_BASE_H
#define KS_BASE_BASE_H

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define KS_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define KS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define KS_MAX(a, b) ((a) > (b) ? (a) : (b))

/* For our own bugs only, never for what a user, file, client or plugin can cause. Stays on in release. */
void ks_assert_failed(const char *expr, const char *file, int line) __attribute__((noreturn));
#define KS_ASSERT(expr) ((expr) ? (void)0 : ks_assert_failed(#expr, __FILE__, __LINE__))

/* False on overflow, *ret unspecified then. */
static inline bool ks_mul_size(size_t a, size_t b, size_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}
static inline bool ks_add_size(size_t a, size_t b, size_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}
static inline size_t ks_align_up(size_t n, size_t align)
{
    return (n + align - 1) & ~(align - 1);
} /* power of two */

/* Zeroed arrays with a checked product; KS_E_NOMEM is the caller's to report. */
void *ks_calloc(size_t n, size_t size);
char *ks_strdup(const char *s);

#endif
