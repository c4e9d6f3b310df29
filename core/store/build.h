/* Makes the bytes of blocks out of the checkpoint. One ks_builder a worker; blocks may be made in any order. */
#ifndef KS_STORE_BUILD_H
#define KS_STORE_BUILD_H

#include "store/plan.h"

typedef struct ks_builder {
    const ks_wplan *plan;
    ks_fetch fetch;
    float *floats;     /* plan->floats */
    ks_hasher *hasher; /* for ks__cache_get */
} ks_builder;

KS_MUST_CHECK int ks__builder_init(ks_builder *b, const ks_wplan *p, const ks_ckpt *c, ks_err *err);
void ks__builder_fini(ks_builder *b); /* a zeroed one is fine */
/* Writes block `i` to dst; ret_source: a hash of the source bytes it was made of. dst NULL: only that hash. */
KS_MUST_CHECK int ks__build_block(ks_builder *b, uint32_t i, uint8_t *dst, uint64_t *ret_source, ks_err *err);

#endif
