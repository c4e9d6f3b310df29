/* Functions of single numbers in the words of attn_vec.h, which says how wide a vector is: cpu-avx512 compiles this
 * file, too. Each lane is computed by itself, so where a number lies in a row changes no bit. No state. [any] */
#ifndef KS_AVX2_VEC_MATH_H
#define KS_AVX2_VEC_MATH_H

#include <krasis/kernels.h>

/* The columns from `at` on of a row of n; those that are not there read as 0 and are not written. */
KS_INLINE vec v_load_cols(const float *p, uint32_t at, uint32_t n)
{
    return at + LANES <= n ? v_load(p + at) : at < n ? v_load_first(p + at, n - at) : v_set1(0);
}

KS_INLINE void v_store_cols(float *p, uint32_t at, uint32_t n, vec v)
{
    if (at + LANES <= n)
        v_store(p + at, v);
    else if (at < n)
        v_store_first(p + at, v, n - at);
}

/* x / (1 + e^-z): the sigmoid, where x is 1. Below z = -88.7 it is 0. */
KS_INLINE vec v_gate(vec x, vec z)
{
    return v_div(x, v_add(v_exp(v_sub(v_set1(0), z)), v_set1(1)));
}

KS_INLINE vec v_act1(uint32_t act, vec x)
{
    return act == KS_ACT1_SILU ? v_gate(x, x) : act == KS_ACT1_SIGMOID ? v_gate(v_set1(1), x) : x;
}

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|; the logarithm is 2 artanh(s), s = e / (2 + e) <= 1/3, whose
 * series to s^15 leaves less than 2^-29 of it. */
KS_INLINE vec v_softplus(vec x)
{
    vec e = v_exp(v_min(x, v_sub(v_set1(0), x))), s = v_div(e, v_add(e, v_set1(2))), z = v_mul(s, s);
    vec p = v_set1(1.0f / 15);
    p = v_fma(p, z, v_set1(1.0f / 13));
    p = v_fma(p, z, v_set1(1.0f / 11));
    p = v_fma(p, z, v_set1(1.0f / 9));
    p = v_fma(p, z, v_set1(1.0f / 7));
    p = v_fma(p, z, v_set1(1.0f / 5));
    p = v_fma(p, z, v_set1(1.0f / 3));
    p = v_fma(v_mul(p, z), s, s); /* s + s^3 / 3 + ... */
    return v_add(v_max(v_set1(0), x), v_add(p, p));
}

#endif
