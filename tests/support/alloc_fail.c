/* See alloc_fail.h. The linker's --wrap renames each call to __wrap_x, and what was x to __real_x. */
#include "support/alloc_fail.h"
#include <stdatomic.h>
#include <stddef.h>

static atomic_long countdown = -1; /* below 0: none fails */
static _Thread_local bool spared;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);

static bool fails(void)
{
    return !spared && atomic_load(&countdown) >= 0 && atomic_fetch_sub(&countdown, 1) == 0;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *s)
{
    return fails() ? NULL : __real_strdup(s);
}

char *__wrap_strndup(const char *s, size_t n)
{
    return fails() ? NULL : __real_strndup(s, n);
}

void ks_test_fail_after(long n)
{
    atomic_store(&countdown, n);
}

bool ks_test_fail_end(void)
{
    return atomic_exchange(&countdown, -1) < 0;
}

void ks_test_spare_thread(bool spare)
{
    spared = spare;
}
