/* DeepSeek's feed-forward, which many families took over: dense layers first, then a router with sigmoid scores, a
 * correction bias and groups, and shared experts that are simply added. */
#ifndef KS_GRAPH_DS_H
#define KS_GRAPH_DS_H

#include "graph/build.h"

typedef struct ks_ds {
    ks_moe moe;
    ks_mlp dense, shared;
    uint32_t first_moe;
    const uint8_t *kinds; /* 1: sparse; NULL: from first_moe on */
} ks_ds;

/* Reads the fields (after ks__common); a family changes what differs. scoring: what scoring_func must say if it stands
 * there; first_moe: default of first_k_dense_replace. */
void ks__ds_read(ks_build *b, const char *scoring, uint32_t first_moe, ks_ds *ret);
int16_t ks__ds_ffn(ks_build *b, const ks_ds *ds, int16_t h);

#endif
