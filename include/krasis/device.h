/* Kind DEVICE: executes op lists.
 *
 * The host owns the weights (one copy, quantized, in RAM), the op list, the sequences' page tables
 * and the kernel pool; a device owns its memory: registers, KV pages, recurrent state, resident
 * experts. The core's CPU executor implements this interface; a GPU plugin is its second.
 *
 *   probe devices -> open(budget) -> lower: which ops can you run -> bind -> { place, run } -> close
 *
 * Ops that a device cannot lower run on the CPU device: the host cuts the list into segments and moves
 * the registers that live across a cut with get/put. Errors retire the device, never the process.
 */
#ifndef KRASIS_DEVICE_H
#define KRASIS_DEVICE_H

#include <krasis/graph.h>

typedef struct ks_device_info {
    uint32_t size, index;
    char name[64], uuid[48];
    uint64_t mem_total_bytes, mem_free_bytes;
    uint32_t cc_major, cc_minor; /* compute capability, 0 on a CPU */
    double link_bytes_s;         /* host to device, measured or 0 */
} ks_device_info;

/* Cold experts, called by a device inside an EXPERTS op for the (row, expert) pairs it does not hold.
 * y[r] = sum over the row's pairs with keep[pair] != 0, in ascending slot order, of weight * expert(x[r]),
 * from the same weight bytes. [engine or a thread of the device] */
typedef void (*ks_cold_fn)(void *ctx, uint32_t op, uint32_t n_rows, const float *x, const int32_t *ids,
                           const float *weights, const uint8_t *keep, float *y);

typedef struct ks_bind {
    uint32_t size, kv_type; /* KS_T_F32, BF16 or F8E4M3 */
    const ks_graph *graph;
    uint32_t op_begin, op_end;  /* the ops this device runs; those among them that it cannot lower it never gets */
    uint32_t n_pages, page_tok; /* KV pages to hold */
    uint32_t n_slots;           /* recurrent state slots */
    uint32_t max_rows, max_out; /* of one step */
    uint32_t _pad;
    ks_cold_fn cold;
    void *cold_ctx;
} ks_bind;

/* Counters since open; all cumulative. */
typedef struct ks_device_stats {
    uint32_t size, _pad;
    uint64_t steps, rows, launches, bytes_in, bytes_out; /* over the link */
    uint64_t experts_hot, experts_cold;                  /* (row, expert) pairs */
    uint64_t mem_bytes;                                  /* held now */
} ks_device_stats;

typedef struct ks_device_iface {
    uint32_t size, _pad;
    int (*list)(void *self, uint32_t i, ks_device_info *ret, ks_err *err); /* [main] NOTFOUND ends */
    int (*open)(void *self, uint32_t index, uint64_t budget_bytes, void **ret_dev, ks_err *err); /* [main] */
    void (*close)(void *dev);                                                                    /* [main] */
    /* [main] ret_ok[i] = 1 for every op this device can run with this kv_type. */
    int (*lower)(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err);
    int (*bind)(void *dev, const ks_bind *b, ks_err *err); /* [main] after it, run allocates nothing */
    /* [engine] optional: make exactly these (layer, expert) pairs resident; uploads go on in the background. */
    int (*place)(void *dev, const uint32_t *layer_expert, uint32_t n_pairs, ks_err *err);
    /* [engine] executes ops [op_begin, op_end) over the batch; returns when host-visible results are. */
    int (*run)(void *dev, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err);
    int (*get)(void *dev, uint32_t reg, uint32_t n_rows, void *dst, ks_err *err); /* [engine] */
    int (*put)(void *dev, uint32_t reg, uint32_t n_rows, const void *src, ks_err *err);
    /* [engine] copies a whole KV page / a recurrent slot, for branching sequences and snapshots. */
    int (*copy_page)(void *dev, uint32_t dst, uint32_t src, ks_err *err);
    int (*copy_slot)(void *dev, uint32_t dst, uint32_t src, ks_err *err);
    int (*stats)(void *dev, ks_device_stats *ret, ks_err *err); /* [any] */
    /* [engine] optional: cumulative counts of routed (row, expert) pairs, (n_layers, n_experts). */
    int (*heat)(void *dev, uint64_t *ret_counts, ks_err *err);
} ks_device_iface;

#endif
