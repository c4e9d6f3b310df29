/* MUL and SCORE: mul_impl.h and score_impl.h with vectors of 8. [worker] */
#include "attn_vec.h"
#include "rows.h"

#include "mul_impl.h"
#include "score_impl.h"

void mul_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    mul(args, begin, end);
}

void score_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    score(args, begin, end);
}
