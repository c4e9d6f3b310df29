/* A block of keys as floats: K turned round, V as it is. Included by attn_impl.h after attn_vec.h; shared with
 * cpu-avx512. No state. [worker] */
#ifndef KS_AVX2_ATTN_KEYS_H
#define KS_AVX2_ATTN_KEYS_H

#include "attn_block.h"

#define K_PIECE 64u                  /* columns of K at a time: (64, 32) floats stay in L1 beside the queries */
#define V_STRIP (VALUE_VECS * LANES) /* columns of V at a time */

/* n (1..32) bytes and zeros. */
static __m256i load_some(const uint8_t *p, uint32_t n)
{
    uint8_t t[32] = { 0 };
    memcpy(t, p, n);
    return _mm256_loadu_si256((const __m256i *)(const void *)t);
}

/* 16 bytes of each of two keys, n of them real. */
KS_INLINE __m256i load_two(const uint8_t *lo, const uint8_t *hi, uint32_t n)
{
    if (n >= 16)
        return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)lo)),
                                       _mm_loadu_si128((const __m128i *)(const void *)hi), 1);
    return _mm256_inserti128_si256(load_some(lo, n), _mm256_castsi256_si128(load_some(hi, n)), 1);
}

/* NaN codes are 0x7f and 0xff: twice that is 0xfe, the largest such byte. */
KS_INLINE __m256i e4m3_largest(__m256i largest, __m256i bytes)
{
    return _mm256_max_epu8(largest, _mm256_add_epi8(bytes, bytes));
}

KS_INLINE bool e4m3_has_nan(__m256i largest)
{
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8((int8_t)0xfe))) != 0;
}

/* Transposing by rotation: seen as a number made of row and column, the place of an element is rotated left by one bit
 * when rows i and i + half are interleaved into rows 2i and 2i + 1; as many rotations as a column has bits exchange
 * row and column. Both 128-bit halves do it for keys of their own. */

/* 16 columns of 32 keys, k pointing to the first of them; n columns are real. */
KS_INLINE void turn_f8(const uint8_t *const k[KEYS], size_t at, uint32_t n, float *dst)
{
    __m256i r[16], t[16], largest = _mm256_setzero_si256();
    for (uint32_t i = 0; i < 16; i++) {
        r[i] = load_two(k[i] + at, k[i + 16] + at, n);
        largest = e4m3_largest(largest, r[i]);
    }
    for (uint32_t step = 0; step < 2; step++) {
        for (uint32_t i = 0; i < 8; i++) {
            t[2 * i] = _mm256_unpacklo_epi8(r[i], r[i + 8]);
            t[2 * i + 1] = _mm256_unpackhi_epi8(r[i], r[i + 8]);
        }
        for (uint32_t i = 0; i < 8; i++) {
            r[2 * i] = _mm256_unpacklo_epi8(t[i], t[i + 8]);
            r[2 * i + 1] = _mm256_unpackhi_epi8(t[i], t[i + 8]);
        }
    }
    if (!e4m3_has_nan(largest))
        for (uint32_t i = 0; i < 16; i++) f8_32(r[i], 0, dst + i * KEYS);
    else
        for (uint32_t i = 0; i < 16; i++) f8_32(r[i], 1, dst + i * KEYS);
}

/* 8 columns of 16 keys. */
KS_INLINE void turn_bf16(const uint8_t *const *k, size_t at, uint32_t n, float *dst)
{
    __m256i r[8], t[8];
    for (uint32_t i = 0; i < 8; i++) r[i] = load_two(k[bf16_place(i, 0)] + at, k[bf16_place(i, 1)] + at, 2 * n);
    for (uint32_t i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi16(r[i], r[i + 4]);
        t[2 * i + 1] = _mm256_unpackhi_epi16(r[i], r[i + 4]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        r[2 * i] = _mm256_unpacklo_epi16(t[i], t[i + 4]);
        r[2 * i + 1] = _mm256_unpackhi_epi16(t[i], t[i + 4]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        bf16_unpack(_mm256_unpacklo_epi16(r[i], r[i + 4]), dst + 2 * i * KEYS);
        bf16_unpack(_mm256_unpackhi_epi16(r[i], r[i + 4]), dst + (2 * i + 1) * KEYS);
    }
}

/* 4 columns of 8 keys. */
KS_INLINE void turn_f32(const uint8_t *const *k, size_t at, uint32_t n, float *dst)
{
    __m256 r[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = _mm256_castsi256_ps(load_two(k[i] + at, k[i + 4] + at, 4 * n));
    __m256 t0 = _mm256_unpacklo_ps(r[0], r[2]), t1 = _mm256_unpackhi_ps(r[0], r[2]);
    __m256 t2 = _mm256_unpacklo_ps(r[1], r[3]), t3 = _mm256_unpackhi_ps(r[1], r[3]);
    _mm256_storeu_ps(dst, _mm256_unpacklo_ps(t0, t2));
    _mm256_storeu_ps(dst + KEYS, _mm256_unpackhi_ps(t0, t2));
    _mm256_storeu_ps(dst + 2 * KEYS, _mm256_unpacklo_ps(t1, t3));
    _mm256_storeu_ps(dst + 3 * KEYS, _mm256_unpackhi_ps(t1, t3));
}

/* Columns [c, c + n) of K: column i of all keys at dst + i * KEYS; n <= K_PIECE. Keys of one head lie a power of two
 * apart in most models, so few of their lines fit into the first-level cache at a time: those of a group of keys are
 * used up before the next group's. */
static void fetch_k(uint32_t type, const block *b, size_t c, uint32_t n, float *dst)
{
    uint32_t i;
    switch (type) {
    case KS_T_F8E4M3:
        for (i = 0; i + 16 <= n; i += 16) turn_f8(b->k, c + i, 16, dst + i * KEYS);
        if (i < n) turn_f8(b->k, c + i, n - i, dst + i * KEYS);
        break;
    case KS_T_BF16:
        for (uint32_t k = 0; k < KEYS; k += 16) {
            for (i = 0; i + 8 <= n; i += 8) turn_bf16(b->k + k, 2 * (c + i), 8, dst + i * KEYS + k);
            if (i < n) turn_bf16(b->k + k, 2 * (c + i), n - i, dst + i * KEYS + k);
        }
        break;
    default:
        for (uint32_t k = 0; k < KEYS; k += 8) {
            for (i = 0; i + 4 <= n; i += 4) turn_f32(b->k + k, 4 * (c + i), 4, dst + i * KEYS + k);
            if (i < n) turn_f32(b->k + k, 4 * (c + i), n - i, dst + i * KEYS + k);
        }
        break;
    }
}

/* n columns of V of one key, zeros up to V_STRIP. Returns what e4m3_has_nan wants to know of the key, too. */
KS_INLINE __m256i strip_f8(const uint8_t *p, uint32_t n, int nans, __m256i largest, float *dst)
{
    uint32_t i = 0;
    for (; i < n; i += 32) {
        __m256i bytes =
            n - i >= 32 ? _mm256_loadu_si256((const __m256i *)(const void *)(p + i)) : load_some(p + i, n - i);
        f8_32(bytes, nans, dst + i);
        largest = e4m3_largest(largest, bytes);
    }
    for (; i < V_STRIP; i += LANES) v_store(dst + i, v_set1(0));
    return largest;
}

KS_INLINE void strip_bf16(const uint8_t *p, uint32_t n, float *dst)
{
    uint32_t i = 0;
    for (; i < n; i += 16) {
        __m256i words = n - i >= 16 ? _mm256_loadu_si256((const __m256i *)(const void *)(p + 2 * i))
                                    : load_some(p + 2 * i, 2 * (n - i));
        bf16_16(words, dst + i);
    }
    for (; i < V_STRIP; i += LANES) v_store(dst + i, v_set1(0));
}

KS_INLINE void strip_f32(const uint8_t *p, uint32_t n, float *dst)
{
    uint32_t i = 0;
    const float *x = (const float *)(const void *)p;
    for (; i + LANES <= n; i += LANES) v_store(dst + i, v_load(x + i));
    if (i < n) v_store(dst + i, v_load_first(x + i, n - i)), i += LANES;
    for (; i < V_STRIP; i += LANES) v_store(dst + i, v_set1(0));
}

/* Columns [c, c + n) of V, zeros up to V_STRIP: key i at dst + i * V_STRIP. */
static void fetch_v(uint32_t type, const block *b, size_t c, uint32_t n, float *dst)
{
    __m256i largest = _mm256_setzero_si256();
    switch (type) {
    case KS_T_F8E4M3:
        for (uint32_t k = 0; k < b->n; k++) largest = strip_f8(b->v[k] + c, n, 0, largest, dst + k * V_STRIP);
        for (uint32_t k = 0; k < b->n && e4m3_has_nan(largest); k++)
            (void)strip_f8(b->v[k] + c, n, 1, largest, dst + k * V_STRIP);
        break;
    case KS_T_BF16:
        for (uint32_t k = 0; k < b->n; k++) strip_bf16(b->v[k] + 2 * c, n, dst + k * V_STRIP);
        break;
    default:
        for (uint32_t k = 0; k < b->n; k++) strip_f32(b->v[k] + 4 * c, n, dst + k * V_STRIP);
        break;
    }
}

#endif
