/* CONV and DELTA, ops with memory of a fixed size: conv_impl.h of cpu-avx2 and delta_impl.h with vectors of 16.
 * [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "../cpu-avx2/conv_impl.h"
#include "../cpu-avx2/delta_impl.h"

void conv_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    conv(args, begin, end);
}

void delta_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    delta(args, begin, end, scratch);
}
