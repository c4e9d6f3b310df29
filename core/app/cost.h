/* What a step must read and compute at least, counted over the op list: the physical side of every bound. Pure. */
#ifndef KS_APP_COST_H
#define KS_APP_COST_H

#include "app/rates.h"
#include <krasis/graph.h>
#include <stdbool.h>

/* Rows of `n_seqs` equal sequences in one step. */
typedef struct ks_load {
    uint32_t n_seqs, rows; /* sequences; rows of each */
    double pos;            /* position of the first row; the mean of a run is fine */
    uint32_t outs;         /* rows of each whose logits are wanted */
    uint32_t kv_type;
    /* Routed pairs by (layer, expert), as the device counts them, from which the experts that a batch touches are
     * expected; NULL: all are asked for alike. */
    const uint64_t *heat;
} ks_load;

typedef struct ks_cost {
    double class_bytes[16]; /* of weights, by KS_CLS_ */
    double type_bytes[32];  /* of weights, by KS_T_ */
    double weight_bytes, kv_bytes, state_bytes;
    double mac_int8, mac_f32; /* multiply-adds: products of quantized weights; all others */
    double mac_attn;          /* but those of attention over a cache of 8 or 16 bits */
    double experts;           /* matrices (pairs of them) touched, mean of a layer with experts */
} ks_cost;

/* g: weights with type and size (after the store planned or opened them). */
void ks_cost_count(const ks_graph *g, const ks_load *l, ks_cost *ret);
double ks_cost_bytes(const ks_cost *c);
/* Seconds that no program can do without: memory and arithmetic at their peaks, at the same time. */
double ks_cost_seconds(const ks_cost *c, const ks_rates *r);
/* Rows of a step from which on the experts that a GPU does not hold (that part of all, 0 to 1) come over its link
 * sooner than the CPU computes them; at most `most`. link: bytes a second. */
uint32_t ks_cost_share_rows(const ks_graph *g, double cold, double link, const ks_rates *r, uint32_t most);
/* The same where a GPU computes, with a part of the experts in its memory. */
typedef struct ks_gpu_rates {
    double link, int8, bf16, mem; /* bytes, multiply-adds, bytes a second; 0: not known, it bounds nothing */
    double host;                  /* bytes a second that the CPU reads of experts meanwhile; 0: it computes none */
} ks_gpu_rates;
/* cold: the part of the experts' bytes that the GPU does not hold. All at the same time where experts are streamed
 * ahead (ahead); else a layer's cold experts come after its other work, over the link and from the CPU together. */
double ks_cost_gpu_seconds(const ks_cost *c, const ks_gpu_rates *r, double cold, bool ahead, const char **ret_limit);
/* What sets that bound: "memory" or "arithmetic". */
const char *ks_cost_limit(const ks_cost *c, const ks_rates *r);

#endif
