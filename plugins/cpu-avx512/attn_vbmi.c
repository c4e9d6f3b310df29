/* ATTN over F8E4M3 caches on CPUs with AVX-512 VBMI, whose table of 64 bytes makes bf16 of e4m3: attn_pairs.h. [worker]
 */
#include "attn_vec.h"
#include "rows.h"

#include "../cpu-avx2/attn_keys.h"
#include "attn_pairs.h"

#include "../cpu-avx2/attn_impl.h"

void attn_f8e4m3_vbmi(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    attn(args, KS_T_F8E4M3, begin, end, scratch);
}
