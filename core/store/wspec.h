/* What weights a model wants and which rows of which source tensors they are made of.
 *
 * Architecture files write these; the weight store reads them. Everything that differs between
 * checkpoints of one architecture (fused or split projections, interleaved gate and up rows, per-expert or
 * stacked tensors) is said here, so that ops and kernels know one form only.
 */
#ifndef KS_STORE_WSPEC_H
#define KS_STORE_WSPEC_H

#include <krasis/graph.h>
#include <stdbool.h>

/* Rows taken from one source tensor, in order: row_count rows in blocks of row_block, the n-th block
 * starting at row_first + n * row_step. All rows: row_count rows with row_block = row_count, row_step = 0.
 * `tensor` may hold "{}" once: the matrix index of a bank is put there (one tensor a matrix). Without
 * it, a bank takes slice m of a stacked tensor (n_mat, rows, cols), or, if `stride_rows` is not 0, the rows from
 * row_first + m * stride_rows of a plain matrix. Of a vector, rows are its elements, whatever the tensor's shape. */
typedef struct ks_wpart {
    const char *tensor;
    uint32_t row_first, row_count, row_block, row_step, stride_rows;
    /* The source (of a bank: its slice) holds (cols, rows). With stride_rows the slice is cut out first, by the rows as
     * they are stored, then transposed: n_out is the source's columns, n_in is row_count. */
    bool transposed;
} ks_wpart;

#define KS_WSPEC_VECTOR 1u /* stored ROWS as F32, exactly */
#define KS_WSPEC_TABLE 2u  /* stored ROWS as BF16 (F32 if the source is wider): embeddings */
#define KS_WSPEC_PAIR                                                                         \
    4u /* two parts, gate and up: strips alternate, n_out = 2 * ceil16(rows of one part); for \
          vectors (biases) runs of 16 alternate the same way */
#define KS_WSPEC_EXACT \
    8u /* never quantized below BF16 (routers, small gates): T16, F32 if the source is wider than bf16 */
#define KS_WSPEC_OPTIONAL 16u
#define KS_WSPEC_NEG_EXP 32u /* vector: v := -exp(v) after loading (A_log) */

typedef struct ks_wspec {
    const char *name; /* krasis's own */
    uint32_t cls, flags, n_mat, n_out, n_in;
    uint32_t n_parts;
    const ks_wpart *parts;
    int32_t with; /* index of the weight whose matrices lie directly after this one's (gate_up -> down), -1: none */
    float scale;  /* multiplied into the values when loading; 0 means 1 */
    const float *values; /* vector computed by the architecture (inv_freq), n_in numbers: no source tensor */
} ks_wspec;

#endif
