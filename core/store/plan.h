/* The plan of a store: which bytes every weight has, where they lie, and what of the checkpoint they are made of.
 * Pure arithmetic over specs and tensor headers; all checks of shapes and sizes happen here, before any work. [main] */
#ifndef KS_STORE_PLAN_H
#define KS_STORE_PLAN_H

#include "base/arena.h"
#include "base/hash.h"
#include "store/source.h"
#include "store/store.h"

/* The same inputs must give the same bytes as long as this number stands; it is part of the cache's key. */
#define KS_STORE_LAYOUT 1u

typedef struct ks_pweight {
    const ks_wspec *spec;
    ks_weight w;       /* data NULL until the store sets it; name owned by the plan */
    uint64_t off;      /* of matrix 0 in the payload; matrix m at off + m * w.stride */
    const ks_src *src; /* [m * n_parts + part]; NULL for computed values and absent weights */
    uint32_t n_rows;   /* logical output rows: n_out, or n_in for vectors */
    bool absent;       /* optional, and the checkpoint has it not */
    bool exact;        /* codes and scales are copied from the source, not searched */
    float scale;       /* 1 if the spec says 0 */
} ks_pweight;

/* A unit of work, hashing and resuming: some strips (T16) or rows (ROWS) of one matrix. */
typedef struct ks_block {
    uint64_t off; /* in the payload */
    uint32_t bytes, weight, mat, first, count;
} ks_block;

typedef struct ks_wplan {
    ks_arena arena;
    ks_pweight *weights;
    uint32_t n_weights, n_blocks;
    ks_block *blocks;
    uint64_t payload_bytes;
    size_t raw_bytes, floats; /* scratch that the largest block needs */
    ks_hash128 settings;      /* of everything that determines the bytes but the checkpoint's content */
} ks_wplan;

KS_MUST_CHECK int ks__plan_init(ks_wplan *p, const ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs,
                                const ks_store_opts *o, ks_err *err);
void ks__plan_fini(ks_wplan *p); /* a zeroed one is fine */

/* Where logical row r of a weight comes from. False: a padding row. */
bool ks__plan_row(const ks_pweight *w, uint32_t r, uint32_t *ret_part, uint64_t *ret_row);

#endif
