/* Kind KERNELS: a table of rows (op, types, layout) -> function.
 *
 * The host merges the tables of all usable kernel plugins with its own scalar reference (core/ref):
 * for each (op, wtype, xtype, layout) the row with the highest plugin score + row score wins. A plugin may
 * therefore hold one row only. A new op or type is a new number; no old plugin changes.
 *
 * A kernel is a pure function over a range of units [begin, end); units are defined per op below. It
 * allocates nothing, takes no lock, keeps no state, starts no thread and cannot fail; it writes the
 * units it was given and nothing else. Any split into ranges, on any threads, gives the same bits.
 *
 * Numerics that all kernel sets share, so that results do not depend on which one runs:
 *  QUANT    bit-exact: see ks_act.
 *  STORE    bit-exact: see ks_store_args.
 *  MATMUL   I8/I4/MXFP4 x Q8: integer dot products per weight group are exact; then, groups in
 *           ascending order, acc = fmaf((float)isum, wscale * xscale, acc), y = acc. Bit-exact.
 *  MATMUL   F32/BF16 x F32: a fixed order of float sums over k that does not depend on the number
 *           of rows; which order is the kernel set's own.
 *  The rest: a fixed order, the set's own. */
#ifndef KRASIS_KERNELS_H
#define KRASIS_KERNELS_H

#include <krasis/plugin.h>

#define KS_K_QUANT 1u    /* ks_quant_args   unit: a row */
#define KS_K_MATMUL 2u   /* ks_matmul_args  unit: a strip of 16 output rows */
#define KS_K_NORM 3u     /* ks_norm_args    unit: a row */
#define KS_K_ROPE 4u     /* ks_rope_args    unit: a row */
#define KS_K_GLU 5u      /* ks_glu_args     unit: a row */
#define KS_K_ATTN 6u     /* ks_attn_args    unit: (row, kv head), index row * n_kv_heads + kv head */
#define KS_K_STORE 7u    /* ks_store_args   unit: a row */
#define KS_K_MATMUL_T 8u /* ks_matmul_args unit: 128 columns of W */
#define KS_K_MUL 9u      /* ks_mul_args     unit: a row */
#define KS_K_CONV 10u    /* ks_conv_args    unit: 16 channels */
#define KS_K_DELTA 11u   /* ks_delta_args   unit: a value head */
#define KS_K_SCORE 12u   /* ks_score_args   unit: a row */

/* Quantized activations (type Q8): int8 with one scale per 128 columns.
 * For each row and each 128-column block (the last may be shorter): amax = max |x|;
 * scale = amax / 127 (float division); q = round-to-nearest-even(x * (127 / amax)), 0 if amax is 0
 * (or so small that 127 / amax is not finite: then scale is 0, too). A block that holds a NaN or an
 * infinity has q = 0 and scale = NaN: it poisons what is made of it instead of looking like zeros.
 * Columns from n_in to q_stride are 0. sum holds the sum of q over each 32 columns: it turns the
 * unsigned nibble of I4 into a signed value: dot(nibble - 8, q) = dot(nibble, q) - 8 sum. */
typedef struct ks_act {
    int8_t *q;                                   /* (n_rows, q_stride), 64-byte aligned rows */
    float *scale;                                /* (n_rows, scale_stride) */
    int32_t *sum;                                /* (n_rows, sum_stride) */
    uint32_t q_stride, scale_stride, sum_stride; /* elements; q_stride a multiple of 64 */
    uint32_t _pad;
} ks_act;

typedef struct ks_quant_args {
    uint32_t size, n_rows, n_in, _pad;
    const float *x; /* (n_rows, x_stride) */
    size_t x_stride;
    ks_act *out;
} ks_quant_args;

/* y[r][o] = sum_k W[o][k] x[row(r)][k]  (+ bias[o]), for o in the strips [begin, end), all r.
 * row(r) = rows ? rows[r] : r : expert inputs are gathered while they are read.
 * Only the n_out real rows of the last strip are written. xtype of the row: Q8 (act) or F32 (x). */
typedef struct ks_matmul_args {
    uint32_t size, n_rows, n_in, n_out;
    uint32_t group, _pad; /* of W, 0 if none */
    const void *w;        /* T16: strip s at w + s * strip_bytes */
    size_t strip_bytes;
    const ks_act *act;
    const float *x;
    size_t x_stride;
    const uint32_t *rows; /* (n_rows) or NULL */
    float *y;             /* (n_rows, y_stride) */
    size_t y_stride;
    const float *bias; /* (n_out) or NULL; added after the sum */
} ks_matmul_args;

/* MATMUL_T takes the same arguments, but W from its other side: y[r][k] = sum_o W[o][k] x[r][o], for k in the blocks of
 * 128 columns [begin, end), all r. x has n_out columns, y n_in; act, rows and bias are NULL. Sums over o are in a fixed
 * order that does not depend on the number of rows. xtype F32; rows of W beyond n_out are zero, as in any T16. */

/* y = norm(x) * (weight + w_offset) + bias, over slices of `width` columns within each row (width =
 * n for a whole row, head_dim for per-head norms). weight, bias: (w_width), indexed column % w_width. */
#define KS_NORM_RMS 1u   /* x / sqrt(mean(x^2) + eps) */
#define KS_NORM_LAYER 2u /* (x - mean) / sqrt(var + eps) */
#define KS_NORM_L2 3u    /* x / sqrt(sum(x^2) + eps) */
typedef struct ks_norm_args {
    uint32_t size, kind, n_rows, n; /* n columns in a row */
    uint32_t width, w_width;
    float eps, w_offset;
    const float *x;
    size_t x_stride;
    const float *weight, *bias; /* may be NULL: 1, 0 */
    float *y;                   /* may be x */
    size_t y_stride;
} ks_norm_args;

/* Rotary embedding, in place, on n_heads heads of head_dim columns; the rotated part is the
 * rot_dim columns from rot_begin of each head. Angle of pair i at position p: p * inv_freq[i]
 * (computed in float as the reference does), cos and sin multiplied by `mscale`. */
#define KS_ROPE_HALF 1u  /* pairs (i, i + rot_dim / 2) */
#define KS_ROPE_INTER 2u /* pairs (2i, 2i + 1) */
typedef struct ks_rope_args {
    uint32_t size, kind, n_rows, n_heads;
    uint32_t head_dim, rot_dim, rot_begin;
    float mscale;
    const float *inv_freq; /* (rot_dim / 2) */
    const uint32_t *pos;   /* (n_rows) */
    float *x;
    size_t x_stride;
} ks_rope_args;

/* y = act(gate) * up. Gate and up lie in one row of x, alternating in runs of 16 columns (as the
 * interleaved strips of a gate-up matrix deliver them): gate i at (i / 16) * 32 + i % 16, up 16
 * further. n = number of outputs; the row of x has 2 * ceil16(n) columns. */
#define KS_ACT_SILU 1u /* g * sigmoid(g) * u */
#define KS_ACT_GELU_TANH 2u
#define KS_ACT_GELU 3u
#define KS_ACT_RELU2 4u /* relu(g)^2 * u */
#define KS_ACT_SWIGLU_CLAMP \
    5u /* gpt-oss: g' = min(g, limit), u' = clamp(u, +-limit): (u' + 1) * g' * sigmoid(alpha g') */
#define KS_ACT_SILU_CLAMP 6u /* g' = min(g, limit), u' = clamp(u, +-limit): silu(g') * u' */
typedef struct ks_glu_args {
    uint32_t size, kind, n_rows, n;
    float limit, alpha;
    const float *x;
    size_t x_stride;
    float *y;
    size_t y_stride;
} ks_glu_args;

/* Causal attention of rows of ONE sequence against its paged cache (which already holds these rows).
 * Row r has position pos + r and sees the keys j <= pos + r, further limited by window (j > p -
 * window) and chunk (j >= p - p % chunk) where not 0. Softmax in f32; scores q.k * scale, then
 * softcap * tanh(s / softcap) if softcap is not 0; sinks[h] joins the denominator only.
 * Keys are reduced page by page in ascending order, pages grouped in spans of KS_ATTN_SPAN keys at
 * absolute positions (span partials are merged in ascending order): so the bits for one row do not
 * depend on how many rows come with it, and a kernel may be split along the keys later.
 * Positions in sel that the row may not see are skipped; a row that sees no key gives zeros.
 * Nothing beyond the visible keys is read: the rest of a page may hold anything.
 * wtype of the row is the cache's type: F32, BF16 or F8E4M3; xtype F32. */
#define KS_ATTN_SPAN 1024u
typedef struct ks_attn_args {
    uint32_t size, n_rows, n_heads, n_kv_heads;
    uint32_t d_k, d_v, page_tok, pos;
    uint32_t window, chunk;
    float scale, softcap;
    const float *q; /* (n_rows, q_stride): n_heads x d_k */
    size_t q_stride;
    float *o; /* (n_rows, o_stride): n_heads x d_v */
    size_t o_stride;
    const uint32_t *pages; /* logical page -> physical page */
    const void *k, *v;     /* page p: k + p * k_page_bytes: (page_tok, k_stride) elements; head h at column h * d_k */
    size_t k_page_bytes, v_page_bytes;
    uint32_t k_stride, v_stride; /* elements between tokens; V may lie inside K's rows (MLA) */
    const float *sinks;          /* (n_heads) or NULL */
    const uint32_t *sel;         /* sparse: (n_rows, sel_stride) ascending key positions, or NULL */
    const uint32_t *n_sel;       /* (n_rows) */
    uint32_t sel_stride, _pad;
    /* Since ABI 1.1, set for rows with KS_KF_SPANS only: one row's keys split over threads. NULL: everything at once.
     * With part_merge 0 the units leave in `part` what the spans [span_begin, span_end) come to (span = position /
     * KS_ATTN_SPAN) and do not touch o; with part_merge 1 they make o of all of these, which other calls left there.
     * Both together give o the bits it has without. Span s of head h of row r lies at part + ((r * n_heads + h) *
     * part_spans + s - part_first) * part_stride; what it holds is the kernel set's own business. */
    float *part;
    uint32_t part_first, part_spans, part_stride; /* part_stride: floats, a multiple of 16, at least d_v + 16 */
    uint32_t span_begin, span_end, part_merge;
} ks_attn_args;

/* Rows of floats into the paged cache of ONE sequence: row r goes to position pos + r, into the elements [col, col + n)
 * of that token. wtype of the row is the cache's type, xtype F32. Rounding is to the nearest, ties to even;
 * F8E4M3 saturates at 448, infinity included; a NaN becomes a quiet one of the same sign. */
typedef struct ks_store_args {
    uint32_t size, n_rows, n, pos;
    uint32_t page_tok, y_stride, col, _pad; /* y_stride: elements between tokens */
    const float *x;                         /* (n_rows, x_stride) */
    size_t x_stride;
    const uint32_t *pages; /* logical page -> physical page */
    void *y;               /* page p: y + p * page_bytes: (page_tok, y_stride) elements */
    size_t page_bytes;
} ks_store_args;

/* Functions of one number. */
#define KS_ACT1_NONE 0u
#define KS_ACT1_SIGMOID 1u
#define KS_ACT1_SILU 2u /* x * sigmoid(x) */

/* z = x * act(y): each number of y for n / n_y columns of x in turn. */
typedef struct ks_mul_args {
    uint32_t size, act, n_rows, n; /* act: KS_ACT1_; n columns in a row of x and z */
    uint32_t n_y, _pad;            /* in a row of y; divides n */
    const float *x, *y;
    size_t x_stride, y_stride;
    float *z; /* may be x or y (if n_y is n) */
    size_t z_stride;
} ks_mul_args;

/* Causal depthwise convolution of rows of ONE sequence: y[p][c] = act(bias[c] + sum_i weight[i][c] x[p - (width - 1) +
 * i][c]). Row r has position pos + r. The state keeps the inputs before it: that of position p in row p % (width - 1),
 * and is updated; inputs before position 0 are the zeros that the host puts there. */
#define KS_CONV_WIDTH_MAX 64u
typedef struct ks_conv_args {
    uint32_t size, n_rows, n, width; /* n channels; width: 1 .. KS_CONV_WIDTH_MAX */
    uint32_t pos, act;               /* act: KS_ACT1_ */
    const float *x;
    size_t x_stride;
    const float *weight; /* (width, n) */
    const float *bias;   /* (n) or NULL */
    float *state;        /* (width - 1, n) */
    float *y;            /* may be x */
    size_t y_stride;
} ks_conv_args;

/* Gated delta rule over rows of ONE sequence; row r has position pos + r. Value head h has a matrix S (d_k, d_v), zero
 * before position 0, and reads q and k of head h / (n_v_heads / n_k_heads). For each row in order, with
 *   decay = exp(neg_a[h] * log(1 + exp(a[h] + dt[h]))) and beta = 1 / (1 + exp(-b[h])):
 *   S = decay S;  S = S + k (beta (v - S^T k))^T;  o = scale S^T q.
 * A sequence's rows come in pieces of any size, and the bits of o must not depend on how it was cut. So what a kernel
 * keeps in `state` between calls is its own business (it may lag behind by some rows), as long as it fits: a head has
 * ks_delta_floats(), all zero before position 0. A host that moves a sequence copies the whole. */
#define KS_DELTA_CHUNK 16u
typedef struct ks_delta_args {
    uint32_t size, n_rows, n_k_heads, n_v_heads;
    uint32_t d_k, d_v, pos;
    float scale;
    const float *q, *k; /* (n_rows, stride): n_k_heads x d_k */
    const float *v;     /* n_v_heads x d_v */
    const float *b, *a; /* n_v_heads */
    size_t q_stride, k_stride, v_stride, b_stride, a_stride;
    const float *neg_a, *dt; /* (n_v_heads) */
    float *state;            /* (n_v_heads, ks_delta_floats()), 64-byte aligned */
    float *o;                /* (n_rows, o_stride): n_v_heads x d_v */
    size_t o_stride;
} ks_delta_args;

/* Numbers that a value head keeps: S, KS_DELTA_CHUNK rows of k and of d_v numbers, and 32 more. A multiple of 16. */
static inline size_t ks_delta_floats(uint32_t d_k, uint32_t d_v)
{
    size_t columns = ((size_t)d_v + 15) & ~(size_t)15;
    return (size_t)d_k * (columns + KS_DELTA_CHUNK) + KS_DELTA_CHUNK * columns + 32;
}

/* Scores of a router: what the numbers of a row become before the best are chosen. */
#define KS_SCORE_SOFTMAX 1u /* exp(x - max) / sum of these */
#define KS_SCORE_SIGMOID 2u
#define KS_SCORE_SQRT_SOFTPLUS 3u /* sqrt(log(1 + exp(x))) */
typedef struct ks_score_args {
    uint32_t size, kind, n_rows, n; /* n > 0 columns */
    const float *x;
    size_t x_stride;
    float *y; /* may be x */
    size_t y_stride;
} ks_score_args;

typedef void (*ks_kernel_fn)(const void *args, uint32_t begin, uint32_t end, void *scratch); /* [worker] */

/* What a row says (and a look-up asks for): QUANT, NORM, ROPE, GLU, MUL, CONV, DELTA, SCORE: wtype 0, xtype F32, layout
 * 0; MATMUL: wtype of W, xtype Q8 or F32, layout T16; MATMUL_T: the same with F32; ATTN, STORE: wtype of the cache,
 * xtype F32, layout 0. */
typedef struct ks_kernel {
    uint16_t op, wtype, xtype, layout; /* KS_K_, KS_T_, KS_T_, KS_LAYOUT_; 0 where the op has none */
    int32_t score;                     /* added to the plugin's */
    uint32_t scratch_bytes;            /* per worker, given by the host, contents undefined, 64-byte aligned */
    uint64_t cpu_required;             /* beyond the plugin's: the host skips the row where one is missing */
    const char *name;                  /* "matmul_i4_avx2" */
    ks_kernel_fn fn;                   /* args: the op's struct above */
    uint32_t flags, _pad;              /* KS_KF_; since ABI 1.1: 0 in older plugins */
} ks_kernel;

#define KS_KF_SPANS 1u /* ATTN: understands ks_attn_args.part */

typedef struct ks_kernels_iface {
    uint32_t size, kernel_size, n_kernels, _pad;
    const ks_kernel *kernels;
} ks_kernels_iface;

#endif
