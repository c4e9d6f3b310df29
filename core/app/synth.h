/* Models of random numbers with the shape of a real one: what `krasis synth` makes. [main] */
#ifndef KS_APP_SYNTH_H
#define KS_APP_SYNTH_H

#include "base/buf.h"
#include "sched/pool.h"
#include "store/synth.h"

typedef struct ks_synth_opts {
    const char *config, *output; /* config.json of the shape; the folder to make */
    uint32_t layers;             /* 0: as many as the shape has */
    uint64_t seed;
    float route_skew;
    /* Numbers as a formula, experts in 4 bits, no data on the disk: see store/synth.h. Else safetensors. */
    bool quantized;
    uint64_t shard_bytes; /* of safetensors; 0: 4 GB */
    ks_pool *pool;
} ks_synth_opts;

/* Makes the folder under a temporary name beside it and renames it: it is whole or not there. */
KS_MUST_CHECK int ks_synth_make(const ks_synth_opts *o, ks_err *err);

/* config.json with another number of layers (0: its own) and quantization: of experts in groups of `group`, or of none
 * (0); mxfp4 stays. ret_mxfp4: it is. */
KS_MUST_CHECK int ks_synth_config(const char *path, const char *text, size_t n, uint32_t layers, uint32_t group,
                                  ks_buf *dst, bool *ret_mxfp4, ks_err *err);
/* Writes the tensors as shards with an index (or one file) into the folder. Says before the start if the disk is too
 * full. */
KS_MUST_CHECK int ks_synth_shards(const ks_synth *s, const char *dir, uint64_t shard_bytes, ks_pool *pool, ks_err *err);

#endif
