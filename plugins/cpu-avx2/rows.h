/* The functions behind the rows of plugin.c. All [worker]: pure, no state; memory belongs to the caller. */
#ifndef KS_AVX2_ROWS_H
#define KS_AVX2_ROWS_H

#include <krasis/kernels.h>

void quant_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void score_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void mul_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void conv_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void delta_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_mxfp4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i8_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i4_avxvnni(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i8_avxvnni(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_mxfp4_avxvnni(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void norm_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void rope_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void glu_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_f8e4m3_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_t_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_t_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_t_i8_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_t_i4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_t_mxfp4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void store_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void store_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);
void store_f8e4m3_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch);

/* Scratch of a worker. Matmul: unpacked weights of a block and running sums; attention: see attn.c. */
#define MATMUL_SCRATCH_BYTES 24576u
#define ATTN_SCRATCH_BYTES (256u * 1024)
#define DELTA_SCRATCH_BYTES 10240u
#define ROPE_SCRATCH_BYTES 2048u

#endif
