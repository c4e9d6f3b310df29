/* The functions behind the rows of ref.c. All [worker]: pure, no state; memory belongs to the caller. */
#ifndef KS_REF_REF_ROWS_H
#define KS_REF_REF_ROWS_H

#include <krasis/kernels.h>

void ks__ref_quant(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_f32(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_bf16(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_i8(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_i4(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_mxfp4(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_norm(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_rope(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_score(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_mul(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_conv(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_delta(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_glu(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_attn_f32(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_attn_bf16(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_attn_f8e4m3(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_store_f32(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_store_bf16(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_store_f8e4m3(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_t_f32(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_t_bf16(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_t_i8(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_t_i4(const void *args, uint32_t begin, uint32_t end, void *scratch);
void ks__ref_matmul_t_mxfp4(const void *args, uint32_t begin, uint32_t end, void *scratch);

double ks__ref_act1(uint32_t act, double x); /* KS_ACT1_ */

#endif
