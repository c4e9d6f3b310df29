/* Puts the memory of each matrix where its workers are, before anything is written to it. On a machine with one memory
 * node nothing happens. [main] */
#ifndef KS_STORE_PLACE_H
#define KS_STORE_PLACE_H

#include "cpu/numa.h"
#include "store/mem.h"
#include "store/plan.h"

/* The bytes [ret_lo, ret_hi) of the payload, whole pages of page_bytes, that belong to node k in matrix m: the pages
 * in which its strips begin. False: none. */
bool ks__place_range(const ks_pweight *w, const ks_numa *m, uint32_t mat, uint32_t k, uint64_t page_bytes,
                     uint64_t *ret_lo, uint64_t *ret_hi);
/* Pages for the shares of this weight: huge ones where a share has several, else small ones. */
uint64_t ks__place_page_bytes(const ks_pweight *w, const ks_numa *m);
void ks__place(const ks_wplan *p, const ks_mem *mem, const ks_numa *m);

#endif
