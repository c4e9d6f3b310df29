/* E4M3 to bf16 by a table. Included after attn_vec.h. No state. [worker] */
#ifndef KS_AVX512_ATTN_E4M3_H
#define KS_AVX512_ATTN_E4M3_H

#ifdef __AVX512VBMI__

/* The magnitude of code c as bf16 of 2^-8 times the value, which who sums them up puts right, as with vectors of
 * floats: the bits are the same. Below 8 a code has no leading one: that of 1, 2 and 4 is found here. */
#define E4M3_LOW(C) \
    ((C) == 0 ? 0 : (C) < 2 ? 110 << 7 : (C) < 4 ? (111 << 7) + ((C)-2) * 64 : (112 << 7) + ((C)-4) * 32)
#define E4M3_BF16(C) ((C) < 8 ? E4M3_LOW(C) : (C) == 127 ? 0x7fc0 : (112 + (C) / 8) << 7 | (C) % 8 << 4)
#define UPPER(C) (uint8_t)(E4M3_BF16(C) >> 8)
#define LOWER(C) (uint8_t) E4M3_BF16(C)
#define EIGHT(B, C) B(C), B((C) + 1), B((C) + 2), B((C) + 3), B((C) + 4), B((C) + 5), B((C) + 6), B((C) + 7)
#define CODES(B, C)                                                                                 \
    {                                                                                               \
        EIGHT(B, C), EIGHT(B, (C) + 8), EIGHT(B, (C) + 16), EIGHT(B, (C) + 24), EIGHT(B, (C) + 32), \
            EIGHT(B, (C) + 40), EIGHT(B, (C) + 48), EIGHT(B, (C) + 56)                              \
    }

static const uint8_t e4m3_upper[2][64] = { CODES(UPPER, 0), CODES(UPPER, 64) };
static const uint8_t e4m3_lower[2][64] = { CODES(LOWER, 0), CODES(LOWER, 64) };

/* 64 codes as pairs: of each 16, the lower eight are in the first vector. vpermb knows the lower six bits of a code;
 * the next one chooses the table. */
KS_INLINE void e4m3_pairs(__m512i codes, __m512i *ret)
{
    const __m512i sign = _mm512_set1_epi8((int8_t)0x80);
    __mmask64 high = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(0x40));
    __m512i upper = _mm512_permutexvar_epi8(codes, _mm512_loadu_si512(e4m3_upper[0]));
    __m512i lower = _mm512_permutexvar_epi8(codes, _mm512_loadu_si512(e4m3_lower[0]));
    upper = _mm512_mask_permutexvar_epi8(upper, high, codes, _mm512_loadu_si512(e4m3_upper[1]));
    lower = _mm512_mask_permutexvar_epi8(lower, high, codes, _mm512_loadu_si512(e4m3_lower[1]));
    upper = _mm512_ternarylogic_epi32(upper, codes, sign, 0xf8); /* upper | (codes & sign) */
    ret[0] = _mm512_unpacklo_epi8(lower, upper);
    ret[1] = _mm512_unpackhi_epi8(lower, upper);
}

#else

KS_INLINE void e4m3_pairs(__m512i codes, __m512i *ret)
{
    ret[0] = ret[1] = codes; /* pairs_fit says no */
}

#endif

#endif
