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
    uint64_t overhead_bytes;     /* since 1.2: that the driver takes for this process, measured or assumed */
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
    uint32_t host_places;       /* KS_PLACES_ */
    ks_cold_fn cold;
    void *cold_ctx;
    /* Since 1.2. How experts come that the device does not hold. */
    uint32_t stream;        /* KS_STREAM_ */
    uint32_t stream_layers; /* KS_STREAM_GROUPS: layers of a group */
    uint32_t share_rows;    /* with `cold`: steps of fewer rows stream nothing, `cold` computes what is not held; 0: the
                             * device's choice */
    uint32_t max_seqs;      /* of one step; 0: max_rows */
} ks_bind;

/* Who chooses the experts that a device keeps. BY_RATE is HOST, and where `cold` is given the device may fetch some of
 * the experts that are not kept, as many as measured rates say: then bits depend on rates (docs/numerics.md). */
#define KS_PLACES_DEVICE 0u /* the device */
#define KS_PLACES_HOST 1u   /* none is kept until place() says so */
#define KS_PLACES_BY_RATE 2u

/* Experts on their way to the device. Whatever is chosen, the bits are the same. */
#define KS_STREAM_AUTO 0u     /* as many stay as fit, the others come through a ring of moderate size */
#define KS_STREAM_RESIDENT 1u /* all stay, or bind fails */
#define KS_STREAM_GROUPS 2u   /* the ring holds the experts of stream_layers layers, what stays is outside of it */
#define KS_STREAM_CHUNKS 3u   /* the ring is smaller than a layer */

/* What bind takes, by purpose. */
typedef struct ks_plan_part {
    char what[32];    /* "KV cache" */
    char setting[64]; /* what changes it: "--context, --kv-dtype"; may be empty */
    uint64_t bytes;
} ks_plan_part;

#define KS_PLAN_MAX_PARTS 32u
typedef struct ks_device_plan {
    uint32_t size, n_parts;
    uint64_t budget_bytes, used_bytes;      /* used above budget: it does not fit */
    uint64_t step_bytes;                    /* of them, those that grow with max_rows */
    uint64_t pinned_bytes;                  /* of the host, for copies */
    uint64_t expert_bytes;                  /* of the largest */
    uint32_t n_experts, n_resident, n_ring; /* of all layers; that stay; places for those on their way */
    uint32_t share_rows;                    /* as bound; 0: nothing is shared */
    ks_plan_part parts[KS_PLAN_MAX_PARTS];
} ks_device_plan;

/* Counters since open; all cumulative. */
typedef struct ks_device_stats {
    uint32_t size, _pad;
    uint64_t steps, rows, launches, bytes_in, bytes_out; /* over the link */
    uint64_t experts_hot, experts_cold;                  /* (row, expert) pairs */
    uint64_t mem_bytes;                                  /* held now */
    /* since 1.2 */
    uint32_t expert_slots, experts_resident; /* places for experts that stay; how many are there now */
    uint64_t slot_bytes;                     /* of one place */
    uint64_t uploads, upload_bytes;          /* experts that place() brought, a bank each; part of bytes_in */
    uint64_t run_ns, wait_ns, cold_ns;       /* in run; of it: waiting for the device, in the host's cold experts */
    uint64_t cold_bytes, linked_bytes; /* of experts that the host computed; that the device read where they lie */
} ks_device_stats;

/* A change of what is kept: expert `expert` of layer `layer`, in all banks that the layer has. */
typedef struct ks_place {
    uint32_t layer, expert;
    uint32_t keep; /* 1: bring it; 0: its places are free now */
    uint32_t _pad;
} ks_place;

/* ks_device_iface.flags. */
#define KS_DEVICE_RUNS 1u /* since 1.2: it takes several runs of a sequence in a batch, and ks_seq.keep */

typedef struct ks_device_iface {
    uint32_t size;
    uint32_t flags; /* since 1.2: KS_DEVICE_; without RUNS a device is given no op with recurrent state */
    int (*list)(void *self, uint32_t i, ks_device_info *ret, ks_err *err); /* [main] NOTFOUND ends */
    int (*open)(void *self, uint32_t index, uint64_t budget_bytes, void **ret_dev, ks_err *err); /* [main] */
    void (*close)(void *dev);                                                                    /* [main] */
    /* [main] ret_ok[i] = 1 for every op this device can run with this kv_type. */
    int (*lower)(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err);
    int (*bind)(void *dev, const ks_bind *b, ks_err *err); /* [main] after it, run allocates nothing */
    /* [engine] optional: changes of the resident set, in their order; a load without a free place is KS_E_LIMIT and
     * none of the changes is made. Between steps; it does not wait: copies go on in the background, an expert counts
     * from the step that finds its copy landed, and is a cold one until then. Only before the first run since bind it
     * returns when all have landed. A drop of what is not kept and a load of what is are nothing. */
    int (*place)(void *dev, const ks_place *changes, uint32_t n, ks_err *err);
    /* [engine] executes ops [op_begin, op_end) over the batch; returns when host-visible results are. */
    int (*run)(void *dev, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err);
    int (*get)(void *dev, uint32_t reg, uint32_t n_rows, void *dst, ks_err *err); /* [engine] */
    int (*put)(void *dev, uint32_t reg, uint32_t n_rows, const void *src, ks_err *err);
    /* [engine] copies a whole KV page / a recurrent slot, for branching sequences and snapshots. */
    int (*copy_page)(void *dev, uint32_t dst, uint32_t src, ks_err *err);
    int (*copy_slot)(void *dev, uint32_t dst, uint32_t src, ks_err *err);
    int (*stats)(void *dev, ks_device_stats *ret, ks_err *err); /* [any] */
    /* [engine] optional: cumulative counts of routed (row, expert) pairs, (n_layers, n_experts), after the last run. It
     * does not wait for the device: what a run counted, the run brought along. */
    int (*heat)(void *dev, uint64_t *ret_counts, ks_err *err);
    /* [main] optional, after bind; since 1.2: how many places one expert of each layer takes, one a bank; 0: this
     * device keeps none of that layer. (n_layers). Without it, place() is not called. */
    int (*keeps)(void *dev, uint32_t *ret_slots, ks_err *err);
    /* [main] optional, since 1.2: what bind(b) on this card with this budget (0: what is free) would take; no hardware
     * is asked, weights need no data. self may be NULL: a plugin that cannot run here still knows. KS_E_LIMIT: it does
     * not fit, with the parts in *ret all the same. */
    int (*plan)(void *self, const ks_device_info *card, const ks_bind *b, uint64_t budget_bytes, ks_device_plan *ret,
                ks_err *err);
} ks_device_iface;

#endif
