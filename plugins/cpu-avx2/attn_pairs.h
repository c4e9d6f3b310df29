/* What cpu-avx512 has for few queries, and this plugin does not: with 16 registers a pass has the sums of three
 * queries, for whom alone each number would be converted in the products' loop. Nothing here is called. [worker] */
#ifndef KS_AVX2_ATTN_PAIRS_H
#define KS_AVX2_ATTN_PAIRS_H

#define FEW_QUERIES 0u
#define PAIR_STEP V_STRIP
#define PAIR_K_PIECE K_PIECE
#define PAIR_K_STEP K_PIECE

typedef struct pair_mem {
    uint32_t k[1];
} pair_mem;

KS_INLINE bool pairs_fit(uint32_t type, uint32_t d_k, uint32_t d_v)
{
    (void)type, (void)d_k, (void)d_v;
    return false;
}

KS_INLINE void pairs_k(uint32_t type, const block *b, size_t c, uint32_t n, uint32_t *dst, ahead *w)
{
    (void)type, (void)b, (void)c, (void)n, (void)dst, (void)w;
}

KS_INLINE void pairs_order(uint32_t type, float *o, uint32_t n)
{
    (void)type, (void)o, (void)n;
}

KS_INLINE void pairs_widen_k(uint32_t type, const uint32_t *k, uint32_t n, float *dst)
{
    (void)type, (void)k, (void)n, (void)dst;
}

KS_INLINE void pairs_widen_v(uint32_t type, const block *b, size_t c, uint32_t n, float *dst, ahead *w)
{
    (void)type, (void)b, (void)c, (void)n, (void)dst, (void)w;
}

KS_INLINE void pair_scores(uint32_t type, const float *const *q, uint32_t c, uint32_t n_q, const uint32_t *k,
                           uint32_t n, uint32_t n_v, float (*s)[KEYS], const block *next)
{
    (void)next, (void)type, (void)q, (void)c, (void)n_q, (void)k, (void)n, (void)n_v, (void)s;
}

KS_INLINE void pair_values(uint32_t type, const block *b, pair_mem *mem, size_t c, uint32_t n, float *o,
                           uint32_t o_stride, float (*p)[KEYS], const float *keep, uint32_t n_q, uint32_t i0,
                           uint32_t i1, const block *next)
{
    (void)type, (void)b, (void)mem, (void)c, (void)n, (void)o, (void)o_stride, (void)p, (void)keep, (void)n_q;
    (void)i0, (void)i1, (void)next;
}

#endif
