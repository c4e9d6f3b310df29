/* Inside of the CUDA device: what its C files share. One engine thread drives a bound device; every CUDA error retires
 * it: the call that met it says why, all later ones say so again. Memory is made by bind and freed by close. */
#ifndef CU_DEVICE_H
#define CU_DEVICE_H

#include "kernels.h"
#include <cuda_runtime_api.h>
#include <krasis/device.h>
#include <krasis/kernels.h>
#include <krasis/plugin.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#define CU_MAX_TILE_KINDS 16u
#define CU_BATCHES 8u             /* of experts on their way to stay */
#define CU_PAGE ((size_t)2 << 20) /* what the driver rounds an allocation up to */

#define CU_FEW_ROWS 16u
#define CU_GRAPHS 16u
#define CU_MAX_GPUS 64u
#define CU_CONTEXT_BYTES ((uint64_t)600 << 20) /* assumed, where it cannot be measured */

typedef struct cu_plugin {
    const ks_host *host;
    const struct cu_options *opts;
    uint64_t context[CU_MAX_GPUS]; /* bytes of each GPU that the driver takes for this process; 0: not known yet */
} cu_plugin;

typedef struct cu_options {
    int64_t resident;   /* most experts that stay, -1: all that fit */
    int64_t ring;       /* places for experts on their way, 0: about 512 MB */
    int64_t piece;      /* rows that a long step computes together, 0: the device's choice */
    int64_t in_place;   /* steps of at most so many rows read cold experts where they lie */
    int64_t ahead;      /* layers launched before the host has answered, whose sums wait for it on the device */
    int64_t patience;   /* seconds that host and device wait for each other in a step */
    int32_t graphs;     /* steps of few rows are recorded (graph.c) */
    int32_t fuse;       /* neighbouring ops are one launch (fuse.c) */
    int32_t early;      /* kernels begin before the ones before them have ended (ptx.cuh) */
    int32_t warpgroups; /* kernels that use the products of warpgroups, where the device has them (wgmma.cuh) */
    int32_t apart;      /* each buffer is an allocation of its own, for memory checkers */
} cu_options;

/* What device memory is for: the rows of the plan, in the order of their names in plan.c. Weights that always stay are
 * counted by class. */
enum {
    CU_FOR_CONTEXT, /* the driver's; not ours to allocate */
    CU_FOR_WEIGHTS, /* + KS_CLS_ */
    CU_FOR_KV = CU_FOR_WEIGHTS + 16,
    CU_FOR_STATE,
    CU_FOR_ACTS,   /* grows with the rows of a step */
    CU_FOR_TABLES, /* of steps and experts */
    CU_FOR_RING,
    CU_FOR_RESIDENT,
    CU_PURPOSES
};

struct cu_part {        /* all memory of one purpose */
    uint64_t bytes, at; /* as planned; as far as it is given out */
    uint8_t *block;
};

struct cu_block { /* one allocation */
    void *p;
    bool pinned; /* host memory */
};

struct dev_reg {
    cu_reg r;
    uint32_t kind, width, root;
    uint32_t *n_sel;
    bool has_act, act_valid;
    bool wide, wide_act; /* of a root; of this one: it has a row for each of the step, not only of a piece */
    cu_act act;
    float *all; /* the step's first row, where r.p, n_sel and act are the piece's */
    uint32_t *n_sel_all;
    cu_act act_all;
};

struct dev_state {
    uint8_t *k, *v;
    size_t k_page_bytes, v_page_bytes;
    float *rec; /* (n_slots, floats) */
    size_t floats;
};

struct dev_weight {
    uint8_t *p; /* on the device; NULL: not there */
    size_t stride;
};

/* The experts of one EXPERTS op. */
struct dev_bank {
    uint32_t op, layer, n_experts;
    const uint8_t *gate_up, *down; /* of expert 0, on the host */
    size_t gate_up_stride, down_stride, gate_up_bytes, down_bytes;
    size_t down_off; /* in a slot */
    bool one_copy;   /* gate_up and down lie together */
    bool pinned;
    const uint8_t *in_place; /* gate_up, as the device can read it; NULL: it cannot */
    const uint8_t **where;   /* (n_experts) host copy of the table: NULL: not resident */
    const uint8_t **where_dev;
    uint32_t n_resident;
    uint32_t *slot_of; /* (n_experts) its slot + 1, or 0 */
    uint32_t next;     /* bank of the same layer + 1, or 0 */
    bool dirty;        /* where_dev is not where */
};

/* A place for one expert, resident or in the ring. */
struct dev_slot {
    uint8_t *p;
    uint32_t bank, expert; /* UINT32_MAX: nobody */
    uint64_t batch;        /* of loads */
    bool arriving;         /* its copy was issued, the table does not name it yet */
};

struct ring_slot {
    uint8_t *p;
    uint32_t bank, expert;
    cudaEvent_t free, landed; /* may be written again; a copy that ends with it is done */
    cudaEvent_t arrival;      /* landed of the last of its copy */
};

/* A line through measured (n, t), the older the lighter: t = first + n * more. */
struct cu_line {
    double w, n, nn, t, nt;
};

/* One of two ways to run a step. */
struct cu_way {
    double ns;  /* least that one took lately */
    uint32_t n; /* that were measured */
};

/* Steps of few rows, whose cold experts are computed where they lie: see shared.c. */
struct cu_share {
    cu_mail *mail; /* pinned, like all that the device and the host exchange: NULL: nothing is shared */
    cu_pair *pairs;
    float *x, *y;       /* of rows whose cold experts the host computes; NULL: it computes none */
    uint8_t *split;     /* (CU_SPLIT) as sent */
    uint8_t *split_dev; /* on the device, like what follows */
    uint32_t *n_left, *ticket;
    cu_tally *tally;
    int32_t *ids; /* plain: arguments of the host's function */
    float *weights;
    uint8_t *keep;
    uint32_t *ops, n_ops;       /* (n_ops, a power of two) EXPERTS op of ticket t: ops[t % n_ops] */
    uint32_t offered, answered; /* tickets */
    cu_tally seen;
    double link_ns;          /* of a byte that the device reads in place; 0: not known */
    struct cu_line host[2];  /* ns of n experts on the host's cores, in steps of few rows, of more */
    struct cu_way way[2][2]; /* of such steps: sharing with the host; alone */
    uint32_t n_chosen;
    bool alone; /* this step */
};

typedef struct cu_experts {
    struct dev_bank *banks;
    uint32_t n_banks;
    size_t slot_bytes;
    struct dev_slot *slots; /* resident */
    uint32_t n_slots;
    uint32_t *free_slots, n_free; /* (n_slots) a stack */
    uint32_t *layer_bank;         /* (n_layers) its first bank + 1, or 0 */
    cudaEvent_t landed[CU_BATCHES], idle;
    uint64_t n_batches, n_landed; /* of loads: begun, entered into the tables */
    bool stepped;                 /* a step has run since bind */
    struct cu_share share;
    struct ring_slot *ring; /* (n_ring) a queue: [head, taken) being computed with, [taken, tail) on their way */
    uint32_t n_ring;
    uint64_t head, taken, tail;
    uint32_t ahead_bank, ahead_expert; /* the next that is sent before anybody asks; ahead_bank n_banks: none */
    void **registered;                 /* host memory pinned for DMA */
    uint32_t n_registered;
    /* of the op that runs */
    const ks_op *route;                                  /* that is its part, too; NULL: is done */
    bool adds;                                           /* its sum is the next op's part */
    cu_sum pending;                                      /* that sum, between the two */
    uint32_t *begin, *begin_host, *pair_row, *slot_pair; /* host: pinned */
    float *pair_weight, *gate_up, *hidden, *out;
    cu_act hidden_act;
    cu_ref *refs, *refs_host;
    uint32_t *n_refs;
    size_t cap_pairs;           /* that the workspaces hold */
    uint64_t *heat, *heat_host; /* (n_layers, n_experts) the second pinned, as after the last run */
} cu_experts;

typedef struct cu_step { /* device addresses of what a batch says, valid in run */
    uint32_t *pos, *row_seq, *out_rows, *pages;
    cu_seq *seqs;
    cu_tile *tiles[CU_MAX_TILE_KINDS];
    uint32_t n_tiles[CU_MAX_TILE_KINDS], n_spans;
} cu_step;

struct cu_piece {
    ks_batch b; /* as one of its own */
    cu_step step;
    uint32_t row, out; /* its first of the whole step */
};

/* Ops that are one launch; n 0: the op is on its own. */
struct cu_fusion {
    uint32_t pattern, n;
};

/* What decides which launches a step is. */
struct cu_shape {
    uint32_t begin, end, n_rows, n_out, n_spans, _pad;
    size_t meta_bytes;
};

struct cu_counts {
    uint64_t bytes_in, bytes_out, hot;
};

struct cu_graph {
    struct cu_shape shape;
    uint64_t used;        /* when, by graph_clock; 0: never */
    cudaGraphExec_t exec; /* NULL: the shape has come once */
    struct cu_counts counts;
};

typedef struct cu_dev {
    const ks_host *host;
    const cu_options *opts;
    int index;
    char name[64];
    bool dead;
    char why[256];         /* of its death */
    uint64_t budget, used; /* both with the context */
    uint64_t context;      /* the driver's part, measured or assumed */
    uint64_t pinned;       /* bytes of the host that copies need, the experts themselves apart */
    bool planning;         /* memory is counted, not given: its addresses mean nothing */
    struct cu_part parts[CU_PURPOSES];
    uint32_t share_rows; /* steps of fewer rows leave cold experts to the host, where it takes them */
    size_t shared_max;   /* a block's shared memory */
    bool early;          /* asked for, and the device can */
    bool flash_wg;       /* so, and with the bits of warps: attention by warpgroups */
    uint32_t n_sms;
    uint32_t wg_blocks; /* of cu_matmul */
    cudaStream_t compute, copy;
    struct cu_block *blocks;
    uint32_t n_blocks, cap_blocks;

    const ks_graph *g;
    ks_bind bind;
    uint8_t *mine;           /* (n_ops) ops this device runs */
    struct cu_fusion *fused; /* (n_ops) what begins with an op */
    struct dev_reg *regs;
    uint32_t *acts, n_acts;
    struct dev_state *states;
    struct dev_weight *weights;
    cu_experts ex;
    uint32_t tile_rows[CU_MAX_TILE_KINDS], n_tile_kinds; /* rows of attention's blocks */
    uint8_t *meta, *meta_host;
    size_t meta_bytes;
    uint8_t *embed_host;
    float *out_host; /* logits of few rows on their way out, pinned */
    size_t out_bytes, meta_used;
    struct cu_graph graphs[CU_GRAPHS];
    uint64_t graph_clock;
    bool no_graphs; /* recording has failed */
    float *part;    /* partial results of attention over spans */
    size_t part_floats;
    float *mla_q, *mla_o;
    cu_act mla_act;
    uint32_t piece_rows, max_seqs;
    struct cu_piece *pieces;
    ks_seq *piece_seqs;
    uint32_t *page_at; /* (max_seqs) of a step's sequences, in the list of all pages */
    uint32_t n_pieces, cap_pieces;
    const ks_batch *batch; /* while running: of the piece, in EXPERTS of the step */
    cu_step step;          /* of the piece */
    uint32_t first_row;    /* its first of the step */
    uint32_t step_rows;
    _Atomic uint64_t steps, rows, launches, bytes_in, bytes_out, hot, cold;
    _Atomic uint64_t uploads, upload_bytes, run_ns, wait_ns, cold_ns, cold_bytes, linked_bytes;
    _Atomic uint32_t resident;
} cu_dev;

/* What a plugin compiled today must not assume: that the host's structs have the size of its own. */
static inline const ks_op *cu_op(const ks_graph *g, uint32_t i)
{
    return (const ks_op *)(const void *)((const uint8_t *)g->ops + (size_t)i * g->op_size);
}
static inline const ks_reg *cu_greg(const ks_graph *g, uint32_t i)
{
    return (const ks_reg *)(const void *)((const uint8_t *)g->regs + (size_t)i * g->reg_size);
}
static inline const ks_weight *cu_gweight(const ks_graph *g, int32_t i)
{
    return (const ks_weight *)(const void *)((const uint8_t *)g->weights + (size_t)i * g->weight_size);
}
static inline const ks_state *cu_gstate(const ks_graph *g, uint32_t i)
{
    return (const ks_state *)(const void *)((const uint8_t *)g->states + (size_t)i * g->state_size);
}
static inline uint64_t cu_now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static inline uint32_t cu_max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}
static inline uint32_t cu_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
static inline size_t cu_round(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}
static inline bool cu_is_quantized(uint32_t type)
{
    return type == KS_T_I8 || type == KS_T_I4 || type == KS_T_MXFP4;
}
static inline uint32_t cu_rows(const cu_dev *d, int16_t reg)
{
    return d->regs[reg].kind & KS_REG_OUT ? d->batch->n_out : d->batch->n_rows;
}
static inline cu_act cu_act_from(cu_act a, size_t first)
{
    a.q += first * a.q_stride;
    a.scale += first * a.scale_stride;
    a.sum += first * a.sum_stride;
    return a;
}
static inline float *cu_vector(const cu_dev *d, int32_t w)
{
    return w < 0 ? NULL : (float *)(void *)d->weights[w].p;
}

/* device.c: 0, or KS_E_DEVICE with what failed; retires the device. */
int cu_check(cu_dev *d, cudaError_t rc, const char *what, ks_err *err);
/* A table from pinned memory; if it will not come, nothing that reads it may be launched. */
int cu_fetch(cu_dev *d, void *to, const void *from, size_t bytes, ks_err *err);
/* Waits for the compute stream, and counts how long. */
int cu_wait(cu_dev *d, const char *what, ks_err *err);
/* Entry src of a table of equal entries to entry dst, on the compute stream. base NULL: there is no table. */
int cu_copy_state(cu_dev *d, void *base, size_t bytes, uint32_t dst, uint32_t src, ks_err *err);
int cu_lower(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err);

/* context.c: makes the process's context on GPU i; what it costs is measured the first time. */
int cu_context(cu_plugin *p, uint32_t i, const struct cudaDeviceProp *prop, size_t *ret_free, size_t *ret_total);
void cu_uuid_text(const struct cudaDeviceProp *p, char *ret, size_t cap);

/* memory.c: bytes of the device (zeroed) or of pinned host memory, until cu_free_all. What bind takes it takes twice:
 * once while planning, to be counted, then from the blocks that cu_take has allocated by that count. */
void *cu_alloc(cu_dev *d, size_t n, size_t elem, uint32_t purpose, ks_err *err);
void *cu_alloc_pinned(cu_dev *d, size_t n, size_t elem, const char *what, ks_err *err);
void *cu_alloc_host(cu_dev *d, size_t n, size_t elem, const char *what, ks_err *err); /* plain and zeroed; free it */
int cu_take(cu_dev *d, ks_err *err);
void cu_free_all(cu_dev *d);
int cu_alloc_act(cu_dev *d, cu_act *a, size_t rows, uint32_t width, ks_err *err);

/* ops.c: rows of a block of attention; *ret_flash: on the tensor cores. */
uint32_t cu_tile_rows(const cu_dev *d, uint32_t group, uint32_t d_k, uint32_t d_v, int32_t sel, bool *ret_flash);

/* plan.c: what bind will take, and whether it fits */
int cu_plan(void *self, const ks_device_info *card, const ks_bind *b, uint64_t budget, ks_device_plan *ret,
            ks_err *err);
uint64_t cu_plan_budget(uint64_t budget, uint64_t free_bytes, uint64_t context); /* 0: what is free */
int cu_plan_fits(const cu_dev *d, ks_err *err);
uint64_t cu_plan_bytes(const cu_dev *d); /* counted so far, as the driver rounds them */
const char *cu_purpose_name(uint32_t purpose);
/* Places for `total` experts, at most `widest` in a layer, in what is left: on their way, and for good. */
int cu_plan_experts(const cu_dev *d, uint64_t total, uint32_t widest, size_t bytes, uint32_t *ret_ring,
                    uint32_t *ret_resident, ks_err *err);

/* bind.c */
int cu_set_bind(cu_dev *d, const ks_bind *b, ks_err *err); /* checks and copies */
int cu_count(cu_dev *d, ks_err *err);                      /* what bind needs: fills d->parts; cu_unbind afterwards */
int cu_bind(void *dev, const ks_bind *b, ks_err *err);
void cu_unbind(cu_dev *d);

/* Products of some experts with the pairs that ask for them. The workspaces hold pairs [base, ...); refs count from
 * there. */
struct cu_job {
    const ks_op *op;
    const struct dev_bank *bank;
    const cu_ref *refs;
    const uint32_t *n_refs;
    uint32_t n_mat, n_rows; /* matrices at most; rows of the one with most at most */
    uint32_t base;
    uint32_t first, n_pairs; /* of these experts, from base */
};

/* experts.c */
int cu_experts_lay_out(cu_dev *d, ks_err *err); /* memory and tables: no call to the driver, it may be for planning */
int cu_experts_fill(cu_dev *d, ks_err *err);
void cu_experts_unbind(cu_dev *d);
int cu_copy_expert(cu_dev *d, const struct dev_bank *b, uint32_t e, uint8_t *to, ks_err *err);
/* n > 1 only where b->one_copy: neighbours, into neighbouring slots. */
int cu_copy_experts(cu_dev *d, const struct dev_bank *b, uint32_t e, uint32_t n, uint8_t *to, ks_err *err);
int cu_experts_run(cu_dev *d, const ks_op *op, uint32_t index, ks_err *err);

int cu_choose_experts(cu_dev *d, const ks_op *op, const struct dev_bank *b, uint32_t how, const cu_offer *offer,
                      ks_err *err);
void cu_products(cu_dev *d, const struct cu_job *j);
/* What g makes of rows [first, ...) of the workspaces becomes the input of m. */
void cu_activate(cu_dev *d, cu_matmul *m, cu_glu g, uint32_t first);
/* Adds pairs [first, first + n), which the workspaces hold, to the sums of their rows; 0: those are begun. */
void cu_combine_some(cu_dev *d, const ks_op *op, uint32_t first, uint32_t n);
void cu_combine_pairs(cu_dev *d, const ks_op *op); /* all */
cu_sum cu_sum_of(const cu_dev *d, const ks_op *op);

/* stream.c */
int cu_experts_begin(cu_dev *d, ks_err *err); /* of a run: publishes what has arrived, sends the first ahead */
/* The slot of an expert that is not resident, whose event `landed` says when it can be read. */
int cu_ring_take(cu_dev *d, uint32_t bank, uint32_t e, struct ring_slot **ret, ks_err *err);
/* All products with the taken slots are launched, but with the last `keep`. */
int cu_ring_give_back(cu_dev *d, uint32_t keep, ks_err *err);
int cu_run_streamed(cu_dev *d, const ks_op *op, uint32_t bank, ks_err *err);

/* shared.c */
int cu_share_lay_out(cu_dev *d, ks_err *err); /* no call to the driver */
int cu_share_fill(cu_dev *d, ks_err *err);    /* after the banks are pinned */
void cu_share_unbind(cu_dev *d);
bool cu_shares_with_host(const cu_dev *d);
bool cu_shares(const cu_dev *d); /* this step */
void cu_share_choose(cu_dev *d);
void cu_share_measured(cu_dev *d, uint64_t ns);
int cu_share_begin(cu_dev *d, ks_err *err); /* of a run */
int cu_run_shared(cu_dev *d, const ks_op *op, uint32_t bank, ks_err *err);
int cu_share_drain(cu_dev *d, ks_err *err);  /* answers all that was offered: before whatever waits for the device */
int cu_share_finish(cu_dev *d, ks_err *err); /* of a run, before the device is waited for */
void cu_share_count(cu_dev *d);              /* after that */
void cu_share_over(cu_dev *d);               /* the device waits for nothing any more */

/* place.c */
int cu_place_lay_out(cu_dev *d, ks_err *err); /* no call to the driver */
int cu_place_first(cu_dev *d, ks_err *err);
void cu_place_unbind(cu_dev *d);
int cu_place_begin(cu_dev *d, ks_err *err); /* of a run: what has landed can be read from now on */
int cu_place(void *dev, const ks_place *changes, uint32_t n, ks_err *err);
int cu_place_keeps(void *dev, uint32_t *ret_slots, ks_err *err);
int cu_heat_fetch(cu_dev *d, ks_err *err); /* in a run, after its last EXPERTS op */
int cu_heat(void *dev, uint64_t *ret_counts, ks_err *err);

/* pieces.c */
int cu_pieces_lay_out(cu_dev *d, ks_err *err);       /* which registers have a row for each of the step */
uint32_t cu_reg_rows(const cu_dev *d, uint32_t reg); /* that a register has memory for */
uint32_t cu_act_rows(const cu_dev *d, uint32_t reg); /* its quantized copy */
void cu_pieces_cut(cu_dev *d, const ks_batch *b);    /* a checked one: fills d->pieces, but their tables */
void cu_piece_enter(cu_dev *d, uint32_t piece);      /* from now on ops are those of its rows */
/* And now of all. The quantized copy of `input`, of EXPERTS, is whole: every piece has made its part; -1: none. */
void cu_pieces_leave(cu_dev *d, const ks_batch *whole, int32_t input);

/* step.c: the batch's tables on their way to the device */
int cu_step_begin(cu_dev *d, const ks_batch *b, ks_err *err); /* checks the batch, fills the host's side */
int cu_step_send(cu_dev *d, ks_err *err);
size_t cu_step_bytes(const cu_dev *d);

/* fuse.c */
int cu_fuse_lay_out(cu_dev *d, ks_err *err);
uint32_t cu_fused(const cu_dev *d, uint32_t first, uint32_t end); /* ops that are one launch now; 0: only this one */
int cu_run_fused(cu_dev *d, uint32_t first, ks_err *err);
bool cu_adds_sum(const cu_dev *d, uint32_t experts, uint32_t end); /* what follows EXPERTS makes its sum, too */
const ks_op *cu_route_before(const cu_dev *d, uint32_t experts);   /* ROUTE that the EXPERTS op may do; NULL: none */

/* graph.c: *ret_done: the step is launched. */
int cu_graph_run(cu_dev *d, const ks_batch *b, uint32_t begin, uint32_t end, bool *ret_done, ks_err *err);
void cu_graphs_drop(cu_dev *d);

/* ops.c */
int cu_launch_ops(cu_dev *d, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err);
int cu_run(void *dev, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err);
void cu_quantize(cu_dev *d, int16_t reg);
cu_route cu_route_of(const cu_dev *d, const ks_op *op);
void cu_touch(cu_dev *d, int16_t reg); /* it is written: its quantized copy is another's */
cu_norm cu_norm_of(const cu_dev *d, const ks_op *op);
cu_rope cu_rope_of(const cu_dev *d, const ks_op *op);
cu_matmul cu_linear_of(cu_dev *d, const ks_op *op);
cu_append cu_append_of(const cu_dev *d, int16_t reg, uint8_t *cache, size_t page_bytes, uint32_t stride, uint32_t col);
int cu_tap(cu_dev *d, const ks_op *op, ks_err *err);
int cu_attend(cu_dev *d, const ks_op *op, ks_err *err); /* ATTN, once keys and values are in the cache */
cu_matmul cu_matmul_of(const cu_dev *d, int32_t w, uint32_t n_rows);
void cu_set_input(cu_matmul *m, const struct dev_reg *x);

#endif
