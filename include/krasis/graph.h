/* The op list: one forward pass of one model, as data.
 *
 * An architecture file in the core turns config.json into this; a device executes it. An op names
 * registers (activations, one row a token), weights, per-sequence state, and carries everything that
 * differs between models as parameters. A new model is a new list; a new backend is one lowering.
 *
 * A step runs over a batch of token rows from one or many sequences, prefill pieces and decode
 * rows mixed. A batch of one row is no special case.
 */
#ifndef KRASIS_GRAPH_H
#define KRASIS_GRAPH_H

#include <krasis/kernels.h>

/* clang-format off */
/* Ops. `in`, `out`: registers; `w`: weights by index (-1: none). x, y, ... name in[0], in[1], ...
 *                            in              out          w                      parameters */
#define KS_OP_EMBED 1u     /*                 x            table                  f[0] scale          */
#define KS_OP_NORM 2u      /* x               y            weight, bias           u.norm              */
#define KS_OP_LINEAR 3u    /* x               y            matrix, bias           f[0] scale, f[1] softcap (0: none) */
#define KS_OP_ROPE 4u      /* x               x            inv_freq               u.rope              */
#define KS_OP_ATTN 5u      /* q, k, v         o            sinks                  u.attn; appends k, v to state */
#define KS_OP_MLA 6u       /* q, latent, rope o            w_uk, w_uv (banks)     u.mla; appends to state */
#define KS_OP_INDEXER 7u   /* q, k, hw        sel                                 u.indexer; sparse key selection */
#define KS_OP_CONV 8u      /* x               y            weight, bias           u.conv; causal depthwise, has state */
#define KS_OP_DELTA 9u     /* q, k, v, b, a   o            a_log, dt_bias         u.delta; gated delta rule, has state */
#define KS_OP_ROUTE 10u    /* logits          route        bias                   u.route             */
#define KS_OP_EXPERTS 11u  /* x, route        y            gate_up, down, gate_up bias, down bias   u.mlp */
#define KS_OP_MLP 12u      /* x               y            gate_up, down          u.mlp; dense and shared experts */
#define KS_OP_ADD 13u      /* x, y            z            -, row vector          z = f[0] x + f[1] y */
#define KS_OP_MUL 14u      /* x, y            z                                   z = x * act(y), i[0] = KS_ACT1_;
                              width of y: that of x, 1 (a number a row), or that of x / i[1] (one a head) */
#define KS_OP_SELECT 15u   /* x               y                                   rows of the batch's out_rows */
#define KS_OP_TAP 16u      /* x                                                   i[0] index of the hidden state */
#define KS_OP_QSCALE 17u   /* x               x                                   f[0] scale, f[1] floor: x *= 1 + scale *
                              log(floor((pos + 1) / floor) + 1)   (llama4 temperature tuning) */
#define KS_OP_CLAMP 18u    /* x               x                                   f[0]: to -f[0] .. f[0] */
/* clang-format on */

/* Routing. */
#define KS_ROUTE_NORM 1u       /* flags: divide the selected weights by their sum (+ norm_eps) */
#define KS_ROUTE_LATE 2u       /* select on raw logits, softmax (or sigmoid) over the selected only */
#define KS_ROUTE_GROUP_TOP2 4u /* score of a group: sum of its two largest (else its largest) */
#define KS_ROUTE_SPARSEMIX 8u  /* phimoe: two successive masked softmaxes, f: jitter */
#define KS_ROUTE_NORM_MIN 16u  /* with NORM: divide by the larger of the sum and norm_eps */

typedef struct ks_op {
    uint16_t kind, layer; /* layer: of the model, 0xffff outside */
    uint16_t cls, _pad;   /* KS_CLS_ of its main weight: for plans and statistics */
    int16_t in[6], out[2];
    int32_t w[6];
    int32_t state; /* index of its ks_state, -1: none */
    int32_t i[4];
    float f[4];
    /* clang-format off */
    union {
        struct { uint32_t kind, width, w_width; float eps, w_offset; } norm; /* see ks_norm_args */
        struct { uint32_t kind, n_heads, head_dim, rot_dim, rot_begin; float mscale; } rope;
        struct { uint32_t n_heads, n_kv_heads, d_k, d_v, window, chunk; float scale, softcap; int32_t sel; } attn;
        struct { uint32_t n_heads, d_nope, d_rope, d_v, d_latent; float scale; int32_t sel; } mla; /* sel: register or -1 */
        struct { uint32_t n_heads, d, top_k, rot_dim; float scale; } indexer;
        struct { uint32_t width, act; } conv; /* kernel width, KS_ACT1_ */
        struct { uint32_t n_k_heads, n_v_heads, d_k, d_v, flags; } delta;
        struct { uint32_t n_experts, k, score, flags, n_group, topk_group; float scale, norm_eps, jitter; } route;
        struct { uint32_t n_experts, k, n_ff, act; float limit, alpha; uint32_t weigh_input; } mlp;
        uint32_t raw[24]; /* room to grow */
    } u;
    /* clang-format on */
} ks_op;

/* Registers. ROWS registers have one row a token of the batch, OUT registers one a logit row.
 * A view is columns [col, col + width) of the register base - 1: it has that one's rows and stride and no
 * memory of its own, so that one matrix may fill what several ops read (q | k | v). */
#define KS_REG_F32 1u /* (n_rows, width) float */
#define KS_REG_ROUTE                                                                                    \
    2u /* (n_rows, width) pairs: int32 expert, float weight; a row's experts ascend; put() may bring an \
        * expert -1: that pair adds nothing here, another device has it */
#define KS_REG_SEL \
    3u /* (n_rows, width) key positions with a count a row; get and put: (n_rows, 1 + width), count first */
#define KS_REG_OUT 0x100u /* flag: indexed by logit row */
typedef struct ks_reg {
    uint32_t kind, width;
    uint32_t base, col; /* of a view; base 0: memory of its own */
} ks_reg;

/* Weight classes: what the quantization flags select by. */
#define KS_CLS_MAP(X)       \
    X(OTHER, 0, "other")    \
    X(EMBED, 1, "embed")    \
    X(NORM, 2, "norm")      \
    X(ATTN, 3, "attention") \
    X(ROUTER, 4, "router")  \
    X(EXPERT, 5, "expert")  \
    X(SHARED, 6, "shared")  \
    X(DENSE, 7, "dense")    \
    X(HEAD, 8, "head")
enum {
#define KS_CLS_ENUM(name, num, text) KS_CLS_##name = (num),
    KS_CLS_MAP(KS_CLS_ENUM)
#undef KS_CLS_ENUM
};

/* One matrix, or a bank of n_mat equal ones (experts, heads): matrix m at data + m * stride. A vector
 * is n_out = 1, layout ROWS, F32. Expert banks: gate_up has interleaved strips (gate strip 0, up
 * strip 0, gate strip 1, ...: n_out = 2 * ceil16(n_ff)); gate_up and down of one expert lie together,
 * so both banks have the same stride and one copy moves an expert. */
typedef struct ks_weight {
    const char *name; /* "layers.3.attn.q" */
    uint32_t cls, type, layout, group;
    uint32_t n_mat, n_out, n_in, _pad;
    uint64_t stride, mat_bytes;
    const void *data;
} ks_weight;

/* Per-sequence memory of an op. */
#define KS_STATE_KV 1u        /* paged: K rows of k_width, V rows of v_width elements (v_width 0: V is inside K) */
#define KS_STATE_RECURRENT 2u /* `floats` f32 a sequence, zero at its start */
typedef struct ks_state {
    uint32_t kind, k_width, v_width, floats;
} ks_state;

typedef struct ks_graph {
    uint32_t size, op_size, reg_size, weight_size, state_size, _pad;
    uint32_t n_ops, n_regs, n_weights, n_states;
    const ks_op *ops;
    const ks_reg *regs;
    const ks_weight *weights; /* data pointers filled by the weight store */
    const ks_state *states;
    uint32_t n_layers, d_model, n_vocab, n_ctx; /* n_ctx: longest position the model was made for */
    uint32_t n_experts, n_taps;
    int32_t logits; /* register of the logits, width n_vocab, OUT */
    uint32_t _pad2;
} ks_graph;

/* A run of rows of one sequence at consecutive positions. A batch may hold several runs of a sequence, one directly
 * after the other: each goes on from the recurrent state that the one before leaves. */
typedef struct ks_seq {
    uint32_t row, n_rows, pos; /* first row in the batch, count, position of the first */
    uint32_t slot;             /* of recurrent state; positions from 0 start it at zero */
    const uint32_t *pages;     /* KV pages covering positions 0 .. pos + n_rows - 1 */
    uint32_t n_pages;
    uint32_t keep; /* since 1.2: 1 + the slot that gets a copy of the state as the run leaves it; 0: none does */
} ks_seq;

typedef struct ks_batch {
    uint32_t size, seq_size, n_rows, n_seqs, n_out, _pad;
    const int32_t *ids;       /* (n_rows) */
    const uint32_t *pos;      /* (n_rows) */
    const ks_seq *seqs;       /* in order of their rows */
    const uint32_t *out_rows; /* (n_out) ascending rows whose logits are wanted */
    float *logits;            /* (n_out, n_vocab), written by the step */
    float *taps;              /* (n_taps, n_rows, d_model) or NULL: hidden states, for checks */
} ks_batch;

/* Where the round of sequence `begin` ends: the runs before it may be computed side by side, since none goes on from
 * another. begin < n_seqs. */
static inline uint32_t ks_round_end(const ks_batch *b, uint32_t begin)
{
    uint32_t i = begin + 1;
    while (i < b->n_seqs && b->seqs[i].slot != b->seqs[i - 1].slot) i++;
    return i;
}

#endif
