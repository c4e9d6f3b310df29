/* The functions behind the rows of plugin.c. All [worker]: pure, no state; memory belongs to the caller. */
#ifndef KS_AVX512_ROWS_H
#define KS_AVX512_ROWS_H

#include <krasis/kernels.h>

void quant_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void score_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void mul_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void conv_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void delta_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void norm_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void glu_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i4_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i8_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_mxfp4_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i4_amx(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_i8_amx(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_mxfp4_amx(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_bf16_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void matmul_f32_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_f32_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_bf16_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_f8e4m3_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_f8e4m3_vbmi(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_bf16_amx(const void *args, uint32_t begin, uint32_t end, void *scratch);
void attn_f8e4m3_amx(const void *args, uint32_t begin, uint32_t end, void *scratch);
void store_f32_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void store_bf16_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);
void store_f8e4m3_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch);

#define ATTN_SCRATCH_BYTES (256u * 1024)
#define ATTN_AMX_SCRATCH_BYTES (544u * 1024)
#define DELTA_SCRATCH_BYTES 16384u

/* Rows that share a block of weights; their running sums wait in scratch, one or two vectors a row. */
#define CHUNK 64u
#define MATMUL_INT_SCRATCH_BYTES (CHUNK * 64)
#define MATMUL_FLOAT_SCRATCH_BYTES (CHUNK * 128)

/* AMX: rows of a pass, and the copies of their activations; the sum is that of the parts in matmul_amx.c. */
#define AMX_ROWS 192u
#define AMX_PACK_BYTES (512u * 1024)
#define MATMUL_AMX_SCRATCH_BYTES (8192 + 8192 + AMX_ROWS * 128 + AMX_PACK_BYTES / 128 * 4 + AMX_PACK_BYTES)

/* An odd number of lines: the rows of a tile lie in different sets of the first-level cache. */
static inline size_t amx_packed_stride(size_t n_columns)
{
    return (n_columns + 63) / 64 * 64 + ((n_columns + 63) / 64 % 2 ? 0 : 64);
}

#endif
