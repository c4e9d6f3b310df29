/* The tensors that a checkpoint of a config.json has, with a law for the numbers of each under which the model computes
 * as a real one does: no norm grows without bound, every expert is asked for. For `krasis synth`. [main] */
#ifndef KS_GRAPH_SHAPE_H
#define KS_GRAPH_SHAPE_H

#include "base/arena.h"
#include "store/synth.h"

#define KS_SHAPE_BF16 0u  /* every tensor */
#define KS_SHAPE_INT4 1u  /* experts as compressed-tensors packs them, in groups of ret_group */
#define KS_SHAPE_MXFP4 2u /* experts as gpt-oss has them */

typedef struct ks_shape_opts {
    uint32_t experts; /* KS_SHAPE_ */
    float route_skew; /* 0: uniform; z: the expert of rank r is chosen about r^-z as often as the first */
} ks_shape_opts;

/* ret and the names in it live in the arena. ret_group: 0 if no tensor is in groups. */
KS_MUST_CHECK int ks_model_shape(const char *config, size_t n, const ks_shape_opts *o, ks_arena *a,
                                 ks_synth_tensor **ret, size_t *ret_n, uint32_t *ret_group, ks_err *err);

#endif
