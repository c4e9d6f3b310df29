/* The reference kernels: plain C, double accumulators, every op and type. They are the oracle of the tests
 * and the last fallback of the kernel table. Registered as a built-in plugin named "ref", score 0. */
#ifndef KS_REF_REF_H
#define KS_REF_REF_H

#include <krasis/kernels.h>

extern const ks_plugin ks_ref_plugin;

/* T16 as plain numbers, for tests and the oracle: element (row, k) of a strip-ordered matrix. */
float ks_ref_t16_get(const ks_matmul_args *a, uint32_t wtype, uint32_t row, uint32_t k);

#endif
