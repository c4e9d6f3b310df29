/* Reads a finished cache file into the arena: by several threads, past the page cache where that is better, and held
 * against its hashes while the bytes are still near. [main] */
#ifndef KS_STORE_LOAD_H
#define KS_STORE_LOAD_H

#include "store/cache.h"

#define KS_LOAD_AUTO 0u   /* what the file's state and the free memory suggest */
#define KS_LOAD_CACHED 1u /* through the page cache, which keeps it for the next start */
#define KS_LOAD_DIRECT 2u /* O_DIRECT; through the page cache where the file system knows none */

typedef struct ks_load_opts {
    uint32_t mode;      /* KS_LOAD_ */
    uint32_t n_threads; /* cores to use, at least 1; more threads wait for a disk */
} ks_load_opts;

typedef struct ks_load_stats {
    uint64_t bytes;
    uint32_t n_threads;
    bool direct;  /* O_DIRECT was used */
    bool dropped; /* pages were given back to the system as soon as they were read */
    double warm;  /* part of the file that was in the page cache, sampled */
} ks_load_stats;

/* After ks__cache_open. KS_E_FORMAT: damaged. ret_stats may be NULL. */
KS_MUST_CHECK int ks__load(const ks_cache *x, uint8_t *arena, const ks_load_opts *o, ks_load_stats *ret_stats,
                           ks_err *err);

#endif
