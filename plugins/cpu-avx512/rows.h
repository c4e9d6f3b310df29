/* The functions behind the rows of plugin.c. All [worker]: pure, no state; memory belongs to the caller. */
#ifndef KS_AVX512_ROWS_H
#define KS_AVX512_ROWS_H

#include <krasis/kernels.h>

void quant_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i4_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i8_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_mxfp4_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_bf16_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_f32_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);

/* Rows that share a block of weights; their running sums wait in scratch, one or two vectors a row. */
#define CHUNK 64u
#define MATMUL_INT_SCRATCH_BYTES (CHUNK * 64)
#define MATMUL_FLOAT_SCRATCH_BYTES (CHUNK * 128)

#endif
