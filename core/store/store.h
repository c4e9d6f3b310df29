/* The weight store: all weights of a model, once, quantized, in RAM.
 *
 * Built from a checkpoint by a list of ks_wspec, or read from the cache under $KRASIS_HOME/cache that an
 * earlier start left. The cache is keyed by the checkpoint's fingerprint, the settings below and the layout
 * version; written to a temporary name, checked, renamed; an interrupted build resumes. */
#ifndef KS_STORE_STORE_H
#define KS_STORE_STORE_H

#include "cpu/numa.h"
#include "sched/pool.h"
#include "store/ckpt.h"
#include "store/wspec.h"

typedef struct ks_store ks_store;

typedef struct ks_store_opts {
    uint32_t type[16];     /* by KS_CLS_: KS_T_I4, I8 or BF16 for matrices of that class */
    uint32_t narrow;       /* the type of what would be I4 with rows of one group at most (128 columns); 0: I4 */
    bool rebuild;          /* --force-load */
    bool verify;           /* full hash of the source */
    bool no_cache;         /* build in memory only, leave no file (tests, tiny models) */
    const char *cache_dir; /* NULL: $KRASIS_HOME/cache */
    ks_pool *pool;         /* for quantization and parallel reads; may be NULL */
    const ks_numa *numa;   /* NULL: this machine's, the pool being pinned to what ks_cpu_cores gives first */
} ks_store_opts;

/* ret_weights (n_specs) is filled with descriptions and data pointers, valid until close. */
KS_MUST_CHECK int ks_store_open(ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs, const ks_store_opts *o,
                                ks_weight *ret_weights, ks_store **ret, ks_err *err);
/* The same checks of every tensor and shape, without reading weights: ret_weights (n_specs) has no data, the specs'
 * names, and mat_bytes 0 for an optional weight that the checkpoint does not have. */
KS_MUST_CHECK int ks_store_check(const ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs, const ks_store_opts *o,
                                 ks_weight *ret_weights, ks_err *err);
void ks_store_close(ks_store *s);
uint64_t ks_store_bytes(const ks_store *s);
bool ks_store_was_cached(const ks_store *s);

#define KS_QUANT_GROUP_MAX 128u
/* The group size for n_in columns: 128, 64 or 32, the largest that divides n_in padded to 32. */
uint32_t ks_quant_group(uint32_t n_in);
/* One strip: rows[i] (n_in floats; NULL: a padding row) -> T16 bytes. Pure; used by tests and the store. */
void ks_quant_strip(uint32_t type, const float *const rows[16], uint32_t n_in, uint32_t group, void *dst);

#endif
