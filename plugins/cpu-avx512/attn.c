/* ATTN over F32, BF16 and F8E4M3 caches: the source of cpu-avx2 with vectors of 16. It is the one thing a plugin here
 * takes from another's folder: a header that is compiled into both. [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "../cpu-avx2/attn_keys.h"
#include "attn_pairs.h"

#include "../cpu-avx2/attn_impl.h"

void attn_f32_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_F32, begin, end, scratch);
}

void attn_bf16_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_BF16, begin, end, scratch);
}

void attn_f8e4m3_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_F8E4M3, begin, end, scratch);
}
