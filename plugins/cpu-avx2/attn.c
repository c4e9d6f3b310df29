/* ATTN over F32, BF16 and F8E4M3 caches: attn_impl.h with vectors of 8. [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "attn_keys.h"
#include "attn_pairs.h"

#include "attn_impl.h"

void attn_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_F32, begin, end, scratch);
}

void attn_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_BF16, begin, end, scratch);
}

void attn_f8e4m3_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_F8E4M3, begin, end, scratch);
}
