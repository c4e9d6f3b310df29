/* The launches that device code offers to the host side: plain structs by value, a stream, nothing else. Shared by C
 * and CUDA. Every launch is asynchronous; a bad launch shows in cudaGetLastError(), which the caller asks once a step.
 *
 * Bits do not depend on how many rows come together: each number is summed in one fixed order, whichever kernel is
 * chosen for the number of rows (docs/numerics.md). All pointers are device memory. */
#ifndef CU_KERNELS_H
#define CU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *cu_stream;

/* Kernels launched by this thread so far. */
extern __thread uint64_t cu_n_launches;
/* Kernels may begin before the ones before them have ended (ptx.cuh). Of the thread that launches. */
extern __thread int cu_begin_early;

/* Activations of quantized weights: ks_act, on the device. */
typedef struct cu_act {
    int8_t *q;    /* (rows, q_stride) */
    float *scale; /* (rows, scale_stride): one for 128 columns */
    int32_t *sum; /* (rows, sum_stride): of 32 columns */
    uint32_t q_stride, scale_stride, sum_stride, _pad;
} cu_act;

#define CU_TILE_ROWS 64u /* of a matrix's rows, a block of an integer product takes so many together */

/* One matrix of a grouped product and its rows: pairs [begin, begin + n). tile: tiles of the matrices before it. */
typedef struct cu_ref {
    const uint8_t *w;
    uint32_t mat, begin, n, tile;
} cu_ref;

static inline uint32_t cu_tiles(uint32_t n_rows)
{
    return (n_rows + CU_TILE_ROWS - 1) / CU_TILE_ROWS;
}

/* A register: element (0, 0) and elements between rows. */
typedef struct cu_reg {
    float *p;
    size_t stride;
} cu_reg;

/* act(gate) * up; strips of both take turns in x. */
typedef struct cu_glu {
    uint32_t kind, n_rows, n, _pad;
    float limit, alpha;
    cu_reg x, y;
    const float *weight; /* (n_rows) multiplies gate and up first; NULL: 1 */
} cu_glu;

/* A matrix of several that are one launch. */
#define CU_MATRICES 4u
typedef struct cu_matrix {
    const uint8_t *w;
    float *y;
    size_t y_stride;
    const float *bias;
    uint32_t n_out, _pad;
} cu_matrix;

/* y = W x + bias for one or many matrices in T16. Matrix z of n_mat: refs[z], or, without refs, w + z * w_stride with
 * n_rows rows from 0. Row p reads row (rows ? rows[p] : p) * x_mul + z * x_add of the input (x_add without refs only)
 * and writes y + p * y_stride + z * y_mat. */
typedef struct cu_matmul {
    uint32_t type, n_in, n_out, group; /* KS_T_ */
    uint32_t n_mat, n_rows;            /* n_rows: of the matrix with most */
    const uint8_t *w;
    size_t w_off, w_stride, strip_bytes; /* w_off is added to every matrix's address */
    const cu_ref *refs;
    const uint32_t *n_refs; /* (1) how many refs there really are; NULL: n_mat */
    const uint32_t *rows;
    uint32_t x_mul, x_add;
    uint32_t n_pairs;   /* with refs: rows of all matrices together, at most */
    uint32_t wg_blocks; /* multiprocessors; 0: many rows do not use the products of warpgroups either */
    uint32_t wg_rows;   /* fewest rows a matrix, on average, for which they do */
    cu_act act;         /* I8, I4, MXFP4; q NULL: the product quantizes x, or what glu makes, by itself */
    const float *x;     /* F32, BF16 */
    cu_glu glu;         /* its rows are p; n 0: none */
    size_t x_stride;
    float *y;
    size_t y_stride, y_mat;
    const float *bias; /* of matrix m: bias + m * bias_stride; NULL: none */
    size_t bias_stride;
    float scale, softcap;      /* after the sum: y *= scale, then softcap * tanh(y / softcap) where it is not 0 */
    uint32_t n_of, _pad2;      /* 0, or the matrices that share all but what is in `of`: I8, I4 and MXFP4, no refs */
    cu_matrix of[CU_MATRICES]; /* and at most 16 rows */
} cu_matmul;

void cu_launch_matmul(const cu_matmul *m, cu_stream s);
int cu_has_warpgroups(void); /* the products of warpgroups: the current device, in this build */
/* May a product of so many rows and columns quantize by itself? Each block does, so the outputs are bounded, too. With
 * 16 rows that takes longer than a launch. */
static inline int cu_quantizes(uint32_t n_rows, uint32_t n_in, uint32_t n_out)
{
    return n_rows <= 4 && (uint64_t)n_rows * n_in <= 8192 && n_out <= 16384;
}
void cu_launch_quant(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out, cu_stream s);

/* ---- ops over rows: the fields of the SDK's ks_*_args */
typedef struct cu_norm {
    uint32_t kind, n_rows, n, width, w_width, _pad;
    float eps, w_offset;
    cu_reg x, y;
    const float *weight, *bias;
} cu_norm;
void cu_launch_norm(const cu_norm *a, cu_stream s);

typedef struct cu_rope {
    uint32_t kind, n_rows, n_heads, head_dim, rot_dim, rot_begin;
    float mscale;
    const float *inv_freq;
    const uint32_t *pos;
    cu_reg x;
} cu_rope;
void cu_launch_rope(const cu_rope *a, cu_stream s);

void cu_launch_glu(const cu_glu *a, cu_stream s);
/* Quantized at once; y is not written. */
void cu_launch_glu_quant(const cu_glu *a, cu_act out, cu_stream s);

void cu_launch_add(cu_reg x, cu_reg y, cu_reg z, const float *vec, float fx, float fy, uint32_t n_rows, uint32_t n,
                   cu_stream s);
void cu_launch_mul(cu_reg x, cu_reg y, cu_reg z, int32_t act, uint32_t n_rows, uint32_t n, uint32_t n_y, cu_stream s);
void cu_launch_select(cu_reg x, cu_reg y, const uint32_t *rows, uint32_t n_rows, uint32_t n, cu_stream s);
void cu_launch_clamp(cu_reg x, float limit, uint32_t n_rows, uint32_t n, cu_stream s);
void cu_launch_qscale(cu_reg x, const uint32_t *pos, float scale, float floor_at, uint32_t n_rows, uint32_t n,
                      cu_stream s);
/* y = scale * x, from rows of BF16 (or F32) side by side. */
void cu_launch_embed(const void *x, uint32_t type, cu_reg y, float scale, uint32_t n_rows, uint32_t n, cu_stream s);

/* ---- sequences and their pages */
typedef struct cu_seq {
    uint32_t row, n_rows, pos, slot, page_at, _pad; /* page_at: its first in the table of all pages */
} cu_seq;

typedef struct cu_tile { /* rows of one sequence that a block of attention takes together */
    uint32_t seq, row, n_rows;
} cu_tile;

typedef struct cu_cache {
    uint8_t *p;
    size_t page_bytes;
    uint32_t type, stride, page_tok, _pad; /* stride: elements between tokens */
} cu_cache;

/* Row r of x, n columns, becomes elements [col, col + n) of its token's row in the cache. */
typedef struct cu_append {
    cu_reg x;
    cu_cache cache;
    uint32_t n_rows, n, col, _pad;
    const uint32_t *row_seq; /* (n_rows) */
    const cu_seq *seqs;
    const uint32_t *pages;
} cu_append;
void cu_launch_append(const cu_append *a, cu_stream s);

/* What happens to queries, keys and values on their way to attention, head by head in one launch: a norm (width 0:
 * none), a rotation (rot_dim 0: none), both in place, and a copy into the cache (cache.p NULL: none). */
#define CU_HEADS 3u
#define CU_HEAD_WIDTH 256u
typedef struct cu_head {
    uint32_t n_heads, width; /* at most CU_HEAD_WIDTH */
    cu_reg x;
    cu_norm norm; /* x and y do not matter, here and in rope and append */
    cu_rope rope;
    cu_append append;
} cu_head;

typedef struct cu_heads {
    uint32_t n_rows, _pad;
    cu_head of[CU_HEADS];
} cu_heads;
void cu_launch_heads(const cu_heads *a, cu_stream s);

#define CU_ATTN_QUERIES 16u /* (row, head) pairs of a block */
#define CU_ATTN_MAX_D 640u  /* d_k and d_v */
typedef struct cu_attn {
    uint32_t n_tiles, n_heads, n_kv_heads, d_k, d_v, window, chunk;
    uint32_t n_spans; /* 0: a block walks all spans; else each has blocks of its own, and `part` holds their results */
    float scale, softcap;
    const cu_tile *tiles; /* (n_tiles), at most CU_ATTN_QUERIES / group rows each, at least 1 */
    const cu_seq *seqs;
    const uint32_t *pages;
    cu_reg q, o;
    size_t q_head, o_head; /* elements between heads */
    cu_cache k, v;
    const float *sinks;
    const uint32_t *sel, *n_sel; /* (rows, sel_stride): tiles of one row then, and no spans */
    size_t sel_stride;
    uint32_t n_rows;
    uint32_t warpgroups;        /* 1: by warpgroups. Needs tiles for it */
    uint32_t shared_max, n_sms; /* bytes that a block may have; blocks that run side by side */
    float *part;                /* (n_rows * n_heads, n_spans, d_v + 2) */
} cu_attn;
/* 0, or a CUDA error: the shape needs more shared memory than there is. */
int cu_launch_attn(const cu_attn *a, cu_stream s);
size_t cu_attn_shared_bytes(uint32_t d_k, uint32_t d_v);
/* The same on the tensor cores, for BF16 and E4M3 caches; tiles may have cu_flash_queries() / group rows. 0: this shape
 * is not for it. No sel. d_k 576 and d_v 512 are latent attention: tiles of one row, and v is k. warpgroups: of the
 * launch; not 0 only where cu_flash_wg_agrees() has said that it gives the same bits. */
uint32_t cu_flash_queries(uint32_t kv_type, uint32_t group, uint32_t d_k, uint32_t d_v, size_t shared_max,
                          uint32_t warpgroups);
int cu_launch_flash(const cu_attn *a, cu_stream s);
/* Asks the device, and waits for it: do products of warpgroups (compute capability 9.0) give the bits of those of
 * warps? *ret_wrong: how many of *ret_n numbers differ; 0 of 0: it has none. 0 or a CUDA error. */
int cu_flash_wg_agrees(uint32_t *ret_n, uint32_t *ret_wrong);
void cu_launch_merge(const cu_attn *a, cu_stream s); /* the second half of both, where n_spans is not 0 */

/* Latent attention: y = [W_h^T q_nope | q_rope] for each row and head. W: bank of T16 matrices (d_nope, d_latent). */
typedef struct cu_absorb {
    uint32_t n_rows, n_heads, d_nope, d_rope, d_latent, type, group, _pad;
    const uint8_t *w;
    size_t w_stride, strip_bytes;
    cu_reg q;
    float *y; /* (n_rows, n_heads, d_latent + d_rope) */
} cu_absorb;
void cu_launch_absorb(const cu_absorb *a, cu_stream s);

/* Which keys a row looks at: at most top_k, ascending. Rows [row, row + n_rows) of the batch. */
typedef struct cu_index {
    uint32_t row, n_rows, n_heads, d, top_k, most_keys; /* most_keys: of a row */
    float scale;
    uint32_t _pad;
    cu_reg q, w; /* (n_heads, d), (n_heads) of each row */
    cu_cache k;
    const uint32_t *row_seq;
    const cu_seq *seqs;
    const uint32_t *pages;
    float *score; /* (n_rows, score_stride) */
    size_t score_stride;
    uint32_t *sel, *n_sel; /* (rows, sel_stride), (rows) */
    size_t sel_stride;
} cu_index;
int cu_launch_index(const cu_index *a, cu_stream s); /* 0 or a CUDA error */
size_t cu_index_shared_bytes(uint32_t n_heads, uint32_t d);

/* ---- routing */
typedef struct cu_route {
    uint32_t n_rows, n_experts, k, score, flags, n_group, topk_group, _pad;
    float scale, norm_eps, jitter;
    cu_reg logits;
    const float *bias;
    void *out; /* (n_rows, out_stride) pairs of int32 expert and float weight, experts ascending */
    size_t out_stride;
} cu_route;
#define CU_ROUTE_BYTES(n_experts) ((size_t)(n_experts)*16) /* shared memory of a row */
int cu_launch_route(const cu_route *a, cu_stream s);       /* 0 or a CUDA error */

#define CU_FEW_PAIRS 128u
/* (row, expert) pairs sorted by expert, rows of an expert ascending: a counting sort without atomics. */
typedef struct cu_sort {
    uint32_t n_rows, k, n_experts, _pad;
    const void *route;
    size_t route_stride;
    uint32_t *begin;     /* (n_experts + 1) first pair of each expert */
    uint32_t *pair_row;  /* (n_rows * k) */
    float *pair_weight;  /* (n_rows * k) */
    uint32_t *slot_pair; /* (n_rows, k): where slot s of a row went */
    uint64_t *heat;      /* (n_experts) added to; NULL: none */
} cu_sort;
int cu_launch_sort(const cu_sort *a, cu_stream s); /* 0 or a CUDA error */

/* y[row] += weight * x[pair] over those of the row's pairs that lie in [first, first + n), in ascending order; clear:
 * y starts at 0. x: (n, n_cols), row 0 being pair `first`. */
typedef struct cu_combine {
    uint32_t n_rows, k, n_cols, first, n, clear;
    const uint32_t *slot_pair;
    const float *pair_weight; /* NULL: 1 */
    const float *x;
    cu_reg y;
} cu_combine;
void cu_launch_combine(const cu_combine *a, cu_stream s);

/* For a layer whose experts are all on the device: refs[i] for all experts that have pairs, ascending. */
void cu_launch_refs(const uint32_t *begin, const uint8_t *const *where, uint32_t n_experts, cu_ref *refs,
                    uint32_t *n_refs, cu_stream s);

/* ---- experts shared with the host (shared.c says how both sides take turns) */
typedef struct cu_pair {
    int32_t expert; /* -1: another device's */
    float weight;
} cu_pair;

/* Cumulative: (row, expert) pairs whose expert was on the device or not; bytes of experts that were read in place. */
typedef struct cu_tally {
    uint64_t hot, cold, linked_bytes;
} cu_tally;

/* What both sides write, in pinned memory of the host, on lines of their own. */
typedef struct cu_mail {
    /* the device's */
    uint64_t up;        /* ticket of the last offer << 32 | pairs of the host; it waits if there are some */
    uint32_t n_experts; /* the host's, in this offer */
    uint32_t late;      /* the host did not come in time: sums are wrong */
    cu_tally tally;
    uint64_t _pad1[3];
    /* the host's */
    uint64_t down; /* the ticket of the last answer; with CU_OVER nobody waits any more, and sums mean nothing */
    uint64_t _pad2[7];
} cu_mail;

#define CU_OVER (UINT64_C(1) << 32)
#define CU_SPLIT 64u /* a table's entries; beyond it goes on in proportion */

/* refs[i] for all experts that have pairs and that the device computes with, ascending: those it holds, and the first
 * split[n] of a layer's n cold ones (NULL: all), which it reads where the host has them. The pairs of the others go to
 * the host, with a ticket. */
typedef struct cu_offer {
    uint32_t n_rows, k, n_experts, n_cols; /* n_cols: of x */
    const cu_pair *route;                  /* (n_rows, route_stride) */
    size_t route_stride;
    cu_reg x;
    const uint32_t *begin;
    const uint8_t *const *where; /* (n_experts) NULL: not there */
    const uint8_t *in_place;     /* expert 0 in the host's memory; NULL: it cannot be read from here */
    size_t in_place_stride;
    const uint8_t *split; /* (CU_SPLIT) */
    cu_ref *refs;
    uint32_t *n_refs, *n_left, *ticket; /* (1) n_left: pairs of the host */
    uint32_t *slot_pair;                /* nowhere for the host's */
    size_t expert_bytes;
    cu_tally *tally; /* on the device */
    cu_mail *mail;
    cu_pair *mail_pairs; /* (n_rows, k) -1: not the host's */
    float *mail_x;       /* (n_rows, n_cols); NULL: all are the device's, there is no ticket */
} cu_offer;
void cu_launch_offer(const cu_offer *a, cu_stream s);

/* Which experts have which rows, from logits to refs: sort, then refs (of `offer` where, refs, n_refs count then) or
 * the offer. With route.n_rows, of CU_FEW_PAIRS at most, what comes before is in the same launch. 0 or a CUDA error. */
enum { CU_CHOOSE_NONE, CU_CHOOSE_REFS, CU_CHOOSE_OFFER };
typedef struct cu_choose {
    cu_route route; /* n_rows 0: is done */
    cu_sort sort;
    cu_offer offer;
    uint32_t how, _pad;
} cu_choose;
#define CU_CHOOSE_WARPS 8u
/* Shared memory of that launch with route.n_rows: the pairs, the scores of a row a warp, begin. */
static inline size_t cu_choose_bytes(uint32_t n_rows, uint32_t n_experts)
{
    size_t warps = n_rows < CU_CHOOSE_WARPS ? n_rows : CU_CHOOSE_WARPS;
    return CU_FEW_PAIRS * sizeof(cu_pair) + warps * CU_ROUTE_BYTES(n_experts) + (n_experts + 1) * sizeof(uint32_t);
}
int cu_launch_choose(const cu_choose *a, cu_stream s);

/* y[row] = sum over the row's pairs on the device, in ascending order, of weight * x[pair], + mail_y[row] where the
 * host had pairs: for that it waits, patience_ns at most. */
typedef struct cu_sum {
    uint32_t n_rows, k, n_cols, _pad;
    const uint32_t *slot_pair;
    const float *pair_weight; /* NULL: 1 */
    const float *x;           /* (pairs, n_cols) */
    cu_reg y;
    const uint32_t *n_left, *ticket;
    cu_mail *mail;
    const float *mail_y; /* (n_rows, n_cols) */
    uint64_t patience_ns;
} cu_sum;
void cu_launch_sum(const cu_sum *a, cu_stream s);

/* A norm of whole rows and what stands around it, in one launch. */
#define CU_NORM_ROW 8192u /* columns at most */
typedef struct cu_row {
    cu_norm norm; /* n is width */
    /* p NULL: nothing is added. Else what is normed is sum = fx norm.x + fy added (* vec). */
    cu_reg added, sum;
    const float *vec;
    float fx, fy;
    cu_sum pairs; /* x NULL: none; else they make `added` first. Nothing of the host's */
    cu_act act;   /* of norm.y; q NULL: none */
} cu_row;
void cu_launch_row(const cu_row *a, cu_stream s);

/* From pinned memory of the host, a multiple of 8 bytes at addresses that are. By a kernel: a copy would queue up
 * behind all the experts that the copy engine has been given before it. */
void cu_launch_fetch(void *to, const void *from, size_t bytes, cu_stream s);

/* Reads memory of the host or the device, for a rate. */
void cu_launch_read(const uint8_t *p, size_t bytes, uint32_t *ret, cu_stream s);

/* ---- recurrent state */
typedef struct cu_conv {
    uint32_t n_seqs, n_rows, n, width, act; /* n_rows: no sequence has more */
    uint32_t in_place;                      /* y is x */
    cu_reg x, y;
    const float *weight, *bias;
    float *state; /* of slot 0 */
    size_t state_stride;
    const cu_seq *seqs;
} cu_conv;
int cu_conv_fits(uint32_t width);
void cu_launch_conv(const cu_conv *a, cu_stream s);

typedef struct cu_delta {
    uint32_t n_seqs, n_k_heads, n_v_heads, d_k, d_v;
    uint32_t most_rows; /* of a sequence */
    float scale;
    uint32_t _pad;
    cu_reg q, k, v, b, a, o;
    const float *neg_a, *dt;
    float *state;                     /* of slot 0: (n_v_heads, head_stride) */
    size_t state_stride, head_stride; /* head_stride: ks_delta_floats() */
    const cu_seq *seqs;
} cu_delta;
size_t cu_delta_shared_bytes(uint32_t d_k);
int cu_launch_delta(const cu_delta *a, cu_stream s); /* 0 or a CUDA error */

#ifdef __cplusplus
}
#endif

#endif
