/* CONV and DELTA, ops with memory of a fixed size: conv_impl.h and delta_impl.h with vectors of 8. [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "conv_impl.h"
#include "delta_impl.h"

void conv_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    conv(args, begin, end);
}

void delta_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    delta(args, begin, end, scratch);
}
