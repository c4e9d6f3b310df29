/* MUL: x * act(y), for any width of vectors. [worker] */
#ifndef KS_AVX2_MUL_IMPL_H
#define KS_AVX2_MUL_IMPL_H

#include "vec_math.h"

/* One factor for each column. */
KS_INLINE void mul_row(const float *x, const float *y, float *z, uint32_t n, uint32_t act)
{
    for (uint32_t i = 0; i < n; i += LANES)
        v_store_cols(z, i, n, v_mul(v_load_cols(x, i, n), v_act1(act, v_load_cols(y, i, n))));
}

/* One for all. */
KS_INLINE void scale_row(const float *x, float y, float *z, uint32_t n, uint32_t act)
{
    const vec f = v_act1(act, v_set1(y));
    for (uint32_t i = 0; i < n; i += LANES) v_store_cols(z, i, n, v_mul(v_load_cols(x, i, n), f));
}

KS_INLINE void mul_rows(const ks_mul_args *a, uint32_t act, uint32_t begin, uint32_t end)
{
    for (uint32_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->x_stride, *y = a->y + r * a->y_stride;
        float *z = a->z + r * a->z_stride;
        uint32_t per = a->n / a->n_y;
        if (per == 1)
            mul_row(x, y, z, a->n, act);
        else
            for (uint32_t j = 0; j < a->n_y; j++) scale_row(x + (size_t)j * per, y[j], z + (size_t)j * per, per, act);
    }
}

static void mul(const ks_mul_args *a, uint32_t begin, uint32_t end)
{
    switch (a->act) {
    case KS_ACT1_SILU: mul_rows(a, KS_ACT1_SILU, begin, end); break;
    case KS_ACT1_SIGMOID: mul_rows(a, KS_ACT1_SIGMOID, begin, end); break;
    default: mul_rows(a, KS_ACT1_NONE, begin, end); break;
    }
}

#endif
