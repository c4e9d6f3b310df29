/* NORM: norm_impl.h of cpu-avx2 with vectors of 16. [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "../cpu-avx2/norm_impl.h"

void norm_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    norm(args, begin, end);
}
