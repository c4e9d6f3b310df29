/* Inside of the CPU device: what its op files share. Everything is made by bind and freed by close; run allocates
 * nothing. One engine thread calls run; the op functions fork over the pool and join before they return. */
#ifndef KS_DEVICE_CPU_IMPL_H
#define KS_DEVICE_CPU_IMPL_H

#include "device/cpu_device.h"
#include <stdatomic.h>

#define KS_MOE_ROWS 64u   /* rows of one expert per kernel call: gate and up of a block stay in L2 */
#define KS_MOE_BLOCK 128u /* columns of the hidden layer a task owns: one group of quantized activations */
#define KS_MLA_ROWS 64u   /* rows of latent attention in flight */
#define KS_INDEX_ROWS 16u /* rows of an indexer in flight */
#define KS_MLA_HEADS 8u   /* heads of a row that read the latent cache together */
#define KS_MOE_STRIPS 4u  /* strips of the output a task sums at a time */
#define KS_MOE_FEW 128u   /* pairs whose hidden layer may be cut finer than KS_MOE_BLOCK, and is quantized afterwards */

struct dev_reg {
    void *p;       /* element (0, 0) of the register, or of the view */
    size_t stride; /* elements between rows */
    uint32_t kind, width, root;
    uint32_t *n_sel; /* KS_REG_SEL: the count of each row */
    bool has_act, act_valid;
    ks_act act; /* the same contents, quantized, for the linears that want them so */
};

struct dev_state {
    uint8_t *k, *v;
    size_t k_page_bytes, v_page_bytes;
    float *rec; /* (n_slots, floats) */
    size_t floats;
};

typedef struct ks_cpu_dev ks_cpu_dev;
typedef int (*ks__op_fn)(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);
/* Rows [begin, end) of an op whose rows need nothing of each other. [worker] */
typedef void (*ks__rows_fn)(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);

struct dev_op {
    const ks_kernel *kernel[2]; /* main and second matmul, or the op's own kernel */
    ks__rows_fn rows;           /* NULL: the op forks by itself */
    bool quantized;             /* the main matmul reads quantized activations */
    bool quantized2;
    float *taps;       /* CONV: its weights, a row a tap */
    int32_t quantize;  /* of an op with rows: the register a later op wants quantized, -1: none */
    uint32_t row_cost; /* of an op with rows: about as many simple float operations */
};

/* Consecutive ops that are one fork: linears of one input, or ops with rows, which a task takes through all of them;
 * else a single op. */
#define KS_DEV_OP 0u
#define KS_DEV_ROWS 1u
#define KS_DEV_LINEARS 2u
#define KS_DEV_LINEARS_MAX 8u
struct dev_group {
    uint32_t kind, begin, end;
};

/* One task of an attention: rows of a sequence with one group of heads. n_spans is not 0 where the keys are split: then
 * the spans [span_begin, span_end) of the n_spans from `first` on, kept at d->part + part. */
struct dev_task {
    uint32_t seq, row, n_rows, group;
    uint32_t first, n_spans, span_begin, span_end;
    size_t part;
    bool merge;
};

/* An attention over rows [row, row + n_rows) of the batch. Groups of `per` heads share their keys (the last group may
 * be smaller); `done` is told when some of the rows of a group are ready. */
struct dev_attend {
    ks_cpu_dev *d;
    uint32_t n_heads, per, groups, d_k, d_v, window, chunk, row, n_rows;
    float scale, softcap;
    const float *q; /* of row `row`: (n_heads, d_k) */
    float *o;       /* (n_heads, d_v) */
    size_t q_stride, o_stride;
    const uint8_t *k, *v;
    size_t k_page_bytes, v_page_bytes, k_step, v_step; /* step: bytes from a group to the next */
    uint32_t k_stride, v_stride;
    const float *sinks;
    const struct dev_reg *sel;
    void (*done)(void *arg, uint32_t row, uint32_t n_rows, uint32_t head, uint32_t n_heads, uint32_t worker);
    void *arg;
    uint32_t n_tasks, n_merges, jump; /* from here on ks__dev_attend's own */
    size_t part_used;
};

struct ks_cpu_dev {
    ks_cpu_ctx ctx;
    const ks_graph *g;
    ks_bind bind;
    uint32_t n_threads;
    struct dev_reg *regs;
    uint32_t *acts; /* registers with quantized copies */
    uint32_t n_acts;
    struct dev_state *states;
    struct dev_op *ops;
    struct dev_group *groups;
    uint32_t n_groups;
    const ks_kernel *quant, *norm, *rope, *glu, *attn, *store;
    size_t kernel_scratch; /* of a worker: first the kernels', then ours */
    const ks_batch *batch; /* while running */
    /* Feed-forward: pairs sorted by expert. */
    uint32_t *pair_row, *expert_begin, *active; /* (max_rows * k), (n_experts + 1), (n_experts) */
    float *pair_weight;
    uint32_t *iota; /* (max_rows) 0, 1, ... */
    float *hidden;  /* (pairs, n_ff) activations of the hidden layer, plain */
    ks_act hidden_act;
    uint64_t *heat; /* (n_layers, n_experts) */
    struct dev_task *tasks;
    uint32_t n_tasks; /* room */
    float *part;      /* (n_part) spans of keys; NULL where no context is long enough */
    size_t n_part;
    float *index_score;   /* (KS_INDEX_ROWS, n_pages * page_tok) */
    float *mla_q, *mla_o; /* (KS_MLA_ROWS, heads, d_latent + d_rope), (KS_MLA_ROWS, heads, d_latent) */
    ks_act mla_act;       /* mla_o quantized; a row is a head of a row */
    _Atomic uint64_t steps, rows, launches, pairs;
    uint64_t mem_bytes;
    void *blocks; /* list of allocations */
};

/* Zeroed memory that lives until close; NULL: out of memory, told in err. */
void *ks__dev_alloc(ks_cpu_dev *d, size_t n, size_t elem, const char *what, ks_err *err);

static inline uint32_t ks__dev_rows(const ks_cpu_dev *d, uint32_t reg)
{
    return d->regs[reg].kind & KS_REG_OUT ? d->batch->n_out : d->batch->n_rows;
}
static inline float *ks__dev_row(const ks_cpu_dev *d, uint32_t reg, uint32_t row)
{
    return (float *)d->regs[reg].p + row * d->regs[reg].stride;
}
static inline void *ks__dev_kernel_scratch(const ks_cpu_dev *d, uint32_t worker)
{
    return ks_pool_scratch(d->ctx.pool, worker);
}
static inline void *ks__dev_scratch(const ks_cpu_dev *d, uint32_t worker)
{
    return (uint8_t *)ks_pool_scratch(d->ctx.pool, worker) + d->kernel_scratch;
}
static inline const float *ks__dev_vector(const ks_cpu_dev *d, int32_t w)
{
    return w < 0 ? NULL : d->g->weights[w].data;
}

/* Runs over [0, n) in pieces that keep every thread busy; one piece runs on the caller. */
void ks__dev_fork(ks_cpu_dev *d, uint32_t n, uint32_t min_grain, ks_pool_fn fn, void *arg);
/* Units of `bytes` read for each of `rows` rows that are worth a task: below it, sharing costs more than it saves. */
uint32_t ks__dev_grain(size_t bytes, size_t rows);
/* Rows of `floats` simple operations that are worth a task. */
uint32_t ks__dev_row_grain(uint32_t floats);
/* Makes regs[reg].act valid. */
void ks__dev_quantize(ks_cpu_dev *d, uint32_t reg);
/* The same for some rows; valid is for the caller to say, when all are. [worker] */
void ks__dev_quantize_rows(ks_cpu_dev *d, uint32_t reg, uint32_t begin, uint32_t end, uint32_t worker);
/* The arguments of y = W[mat] x for rows of a register; y is the caller's. */
ks_matmul_args ks__dev_matmul(const ks_weight *w, uint32_t mat);
/* Cuts it into tasks for all threads and runs them. */
void ks__dev_attend(struct dev_attend *w);
/* Bytes of a worker's scratch that an indexer over `cap` keys needs. */
size_t ks__index_scratch(const ks_op *op, size_t cap);
/* Appends columns of a register to a cache: elements [col, col + n) of every token's row in `cache`. */
void ks__dev_append(ks_cpu_dev *d, uint32_t reg, uint8_t *cache, size_t page_bytes, uint32_t stride, uint32_t col);

/* groups.c: knows which ops there are; cuts the bound ops into groups; runs ops [begin, end) of one. */
bool ks__dev_knows(uint32_t kind);
KS_MUST_CHECK int ks__dev_group_ops(ks_cpu_dev *d, ks_err *err);
KS_MUST_CHECK int ks__dev_run_group(ks_cpu_dev *d, const struct dev_group *g, uint32_t begin, uint32_t end,
                                    ks_err *err);

KS_MUST_CHECK int ks__check_ids(const ks_cpu_dev *d, const ks_op *op, ks_err *err); /* before EMBED */
void ks__rows_embed(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_norm(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_linear(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_rope(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_route(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_add(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_mul(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_select(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_tap(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_clamp(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);
void ks__rows_qscale(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker);

void ks__run_linears(ks_cpu_dev *d, uint32_t begin, uint32_t end); /* at most KS_DEV_LINEARS_MAX, of one input */
int ks__op_attn(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);
int ks__op_experts(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);
int ks__op_mlp(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);
int ks__op_conv(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);
KS_MUST_CHECK int ks__plan_conv(ks_cpu_dev *d, const ks_op *op, struct dev_op *ret, ks_err *err);
size_t ks__delta_floats(const ks_op *op); /* of its state in the form that kernels keep */
int ks__op_delta(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);
int ks__op_mla(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);
int ks__op_indexer(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err);

#endif
