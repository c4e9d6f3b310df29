/* The rules a kernel row must keep, as a library: for the tests of this repository and for krasis-conform.
 *
 * Every case puts each input directly before an unmapped page and makes it read-only, fills outputs with a
 * pattern, gives the kernel scratch full of garbage, and runs it whole, in pieces in any order, and in part.
 * Not thread-safe: signal handlers for SIGSEGV, SIGBUS, SIGILL and SIGFPE are installed while it runs. A kernel
 * that never returns hangs it: run foreign code in a child process with a time limit. */
#ifndef KS_TESTS_KERNEL_SUITE_H
#define KS_TESTS_KERNEL_SUITE_H

#include <krasis/kernels.h>

#define KS_KRN_WRONG \
    1 /* KRN-1: a result is outside the bound of docs/numerics.md, or bits differ where they must not */
#define KS_KRN_OUTSIDE                                                                                              \
    2                  /* KRN-2: reads or writes outside the declared bytes, changes an input, writes foreign units \
                        */
#define KS_KRN_SPLIT 3 /* KRN-3: another split, order or number of rows gives other bits */

/* Runs all cases of row's op and types. `ref` is the reference row for the same op and types: QUANT and
 * MATMUL with Q8 must equal it bit for bit. The other ops are held against an evaluation in double that
 * the suite makes itself, and `ref` may be NULL for them. The same seed gives the same cases.
 * Returns 0, or the broken rule (KS_KRN_) with one line in `why`; -1 with the reason if the suite itself
 * could not run: no memory, or an op or type that it does not know. */
int ks_kernel_suite_run(const ks_kernel *row, const ks_kernel *ref, uint64_t seed, char *why, size_t cap);

#endif
