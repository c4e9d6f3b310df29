/* Where keys lie in the paged cache: blocks of pointers to them, asked for ahead. Included after attn_vec.h; shared
 * with cpu-avx512. No state. [worker] */
#ifndef KS_AVX2_ATTN_BLOCK_H
#define KS_AVX2_ATTN_BLOCK_H

#include <krasis/kernels.h>

#ifndef KEYS
#define KEYS 32u /* in a block */
#endif

/* Keys of one kv head, in ascending order of position. */
typedef struct block {
    const uint8_t *k[KEYS], *v[KEYS]; /* the head's first column; beyond n: those of key 0, read and not used */
    uint32_t first;                   /* position of key 0; without a list the others follow it */
    uint32_t n;
} block;

/* Nothing beyond the visible keys may be read, but all 32 places are: the rest repeats key 0. */
KS_INLINE void block_fill(block *b)
{
    for (uint32_t i = b->n; i < KEYS; i++) b->k[i] = b->k[0], b->v[i] = b->v[0];
}

/* Where key number `in_page` of a page lies. */
KS_INLINE const uint8_t *key_at(const ks_attn_args *a, uint32_t kvh, uint32_t size, uint32_t page, uint32_t in_page)
{
    return (const uint8_t *)a->k + a->pages[page] * a->k_page_bytes +
           ((size_t)in_page * a->k_stride + (size_t)kvh * a->d_k) * size;
}

KS_INLINE const uint8_t *value_at(const ks_attn_args *a, uint32_t kvh, uint32_t size, uint32_t page, uint32_t in_page)
{
    return (const uint8_t *)a->v + a->pages[page] * a->v_page_bytes +
           ((size_t)in_page * a->v_stride + (size_t)kvh * a->d_v) * size;
}

/* Positions j .. last, but not beyond the block of 32 that j is in; returns the position behind them. */
static uint32_t block_dense(const ks_attn_args *a, uint32_t kvh, uint32_t size, uint32_t j, uint32_t last, block *ret)
{
    const size_t k_step = (size_t)a->k_stride * size, v_step = (size_t)a->v_stride * size;
    uint32_t end = (j | (KEYS - 1)) < last ? j | (KEYS - 1) : last, page = j / a->page_tok, in_page = j % a->page_tok;
    ret->first = j;
    ret->n = end - j + 1;
    for (uint32_t i = 0; i < ret->n; page++, in_page = 0) {
        const uint8_t *k = key_at(a, kvh, size, page, in_page), *v = value_at(a, kvh, size, page, in_page);
        uint32_t here = a->page_tok - in_page < ret->n - i ? a->page_tok - in_page : ret->n - i;
        for (uint32_t e = i + here; i < e; i++, k += k_step, v += v_step) ret->k[i] = k, ret->v[i] = v;
    }
    block_fill(ret);
    return end + 1;
}

/* Rows of a head lie apart, so the hardware does not see the next ones coming: keys [i0, i1) of a block to come. */
KS_INLINE void block_prefetch(const block *b, uint32_t i0, uint32_t i1, size_t k_bytes, size_t v_bytes)
{
    for (uint32_t i = i0; i < i1; i++) {
        for (size_t at = 0; at < k_bytes; at += 64) _mm_prefetch((const char *)b->k[i] + at, _MM_HINT_T0);
        for (size_t at = 0; at < v_bytes; at += 64) _mm_prefetch((const char *)b->v[i] + at, _MM_HINT_T0);
    }
}

/* The block to come, asked for in steps: a core keeps about twenty requests open and waits at the next one, so they
 * must not come at once. */
typedef struct ahead {
    const block *next; /* NULL: there is none */
    uint32_t key, at, steps;
    size_t k_bytes, v_bytes;
} ahead;

KS_INLINE void look_ahead(ahead *w)
{
    if (!w->next || w->at >= w->steps) return;
    uint32_t key = w->next->n * ++w->at / w->steps;
    block_prefetch(w->next, w->key, key, w->k_bytes, w->v_bytes);
    w->key = key;
}

#endif
