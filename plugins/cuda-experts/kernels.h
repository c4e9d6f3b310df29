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

/* Activations of quantized weights: ks_act, on the device. */
typedef struct cu_act {
    int8_t *q;    /* (rows, q_stride) */
    float *scale; /* (rows, scale_stride): one for 128 columns */
    int32_t *sum; /* (rows, sum_stride): of 32 columns */
    uint32_t q_stride, scale_stride, sum_stride, _pad;
} cu_act;

/* One matrix of a grouped product and its rows: pairs [begin, begin + n). */
typedef struct cu_ref {
    const uint8_t *w;
    uint32_t mat, begin, n, _pad;
} cu_ref;

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
    cu_act act;     /* I8, I4, MXFP4 */
    const float *x; /* F32, BF16 */
    size_t x_stride;
    float *y;
    size_t y_stride, y_mat;
    const float *bias; /* of matrix m: bias + m * bias_stride; NULL: none */
    size_t bias_stride;
    float scale, softcap; /* after the sum: y *= scale, then softcap * tanh(y / softcap) where it is not 0 */
} cu_matmul;

void cu_launch_matmul(const cu_matmul *m, cu_stream s);
void cu_launch_quant(const float *x, size_t x_stride, uint32_t n_rows, uint32_t n_in, cu_act out, cu_stream s);

#ifdef __cplusplus
}
#endif

#endif
