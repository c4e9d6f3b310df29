/* NORM: norm_impl.h with vectors of 8. [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "norm_impl.h"

void norm_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    norm(args, begin, end);
}
