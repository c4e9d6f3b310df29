/* Multi-head latent attention as ops, with or without a sparse indexer. See build.h. */
#ifndef KS_GRAPH_MLA_H
#define KS_GRAPH_MLA_H

#include "graph/build.h"

typedef struct ks_mla {
    uint32_t q_rank; /* 0: q_proj directly */
    uint32_t latent, nope, rope_dim, v;
    float scale;
    bool bias;
    ks_rope rope;
    /* The indexer; top_k 0: none. */
    uint32_t index_heads, index_dim, index_top_k;
    uint32_t index_rope; /* KS_ROPE_ */
} ks_mla;

/* Reads the fields (after ks__common). */
void ks__mla_read(ks_build *b, ks_mla *ret);
/* index: this layer has an indexer of its own; otherwise it takes the selection of the last one that had. */
int16_t ks__mla(ks_build *b, const ks_mla *m, bool index, int16_t h);

#endif
