/* MUL and SCORE: mul_impl.h and score_impl.h of cpu-avx2 with vectors of 16. [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "../cpu-avx2/mul_impl.h"
#include "../cpu-avx2/score_impl.h"

void mul_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    mul(args, begin, end);
}

void score_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    score(args, begin, end);
}
