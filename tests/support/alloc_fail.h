/* An allocator that fails once: DEPS testalloc in ks_add_test leads malloc, calloc, realloc, strdup and strndup of
 * everything that is linked statically through a count. [any]
 *
 *     for (long n = 0;; n++) {
 *         ks_test_fail_after(n);
 *         int rc = everything(&err);
 *         if (!ks_test_fail_end()) break;      // fewer allocations than that: all went well
 *     } */
#ifndef TESTS_SUPPORT_ALLOC_FAIL_H
#define TESTS_SUPPORT_ALLOC_FAIL_H

#include <stdbool.h>

/* After n more allocations, one fails. */
void ks_test_fail_after(long n);
/* None fails from now on. True if one did. */
bool ks_test_fail_end(void);
/* Allocations of the calling thread neither fail nor count. */
void ks_test_spare_thread(bool spare);

#endif
