/* CONV, for any width of vectors. The sum of a channel is one chain of fma from the oldest input on. Rows of a batch
 * are far apart in memory, so a strip of channels wide enough for whole lines goes through all of them, and its last
 * inputs stay in the cache meanwhile. [worker] */
#ifndef KS_AVX2_CONV_IMPL_H
#define KS_AVX2_CONV_IMPL_H

#include "vec_math.h"

#define CONV_STRIP 256u /* channels */

/* Channels [c, c + LANES) of a row at position p. */
KS_INLINE void conv_vec(const ks_conv_args *a, uint32_t act, uint32_t oldest, const float *x, float *y, uint32_t c)
{
    const uint32_t n = a->width - 1;
    vec in = v_load_cols(x, c, a->n), sum = a->bias ? v_load_cols(a->bias, c, a->n) : v_set1(0);
    for (uint32_t i = 0, at = oldest; i < n; i++, at = at + 1 < n ? at + 1 : 0)
        sum = v_fma(v_load_cols(a->weight + (size_t)i * a->n, c, a->n),
                    v_load_cols(a->state + (size_t)at * a->n, c, a->n), sum);
    sum = v_fma(v_load_cols(a->weight + (size_t)n * a->n, c, a->n), in, sum);
    if (n) v_store_cols(a->state + (size_t)oldest * a->n, c, a->n, in);
    v_store_cols(y, c, a->n, v_act1(act, sum));
}

KS_INLINE void conv_channels(const ks_conv_args *a, uint32_t act, uint32_t begin, uint32_t end)
{
    for (uint32_t c0 = begin; c0 < end; c0 += CONV_STRIP) {
        uint32_t c1 = end - c0 < CONV_STRIP ? end : c0 + CONV_STRIP;
        for (uint32_t r = 0; r < a->n_rows; r++) {
            uint32_t oldest = a->width > 1 ? (a->pos + r) % (a->width - 1) : 0;
            for (uint32_t c = c0; c < c1; c += LANES)
                conv_vec(a, act, oldest, a->x + r * a->x_stride, a->y + r * a->y_stride, c);
        }
    }
}

static void conv(const ks_conv_args *a, uint32_t begin, uint32_t end)
{
    uint32_t first = begin * 16, last = a->n / 16 < end ? a->n : end * 16;
    switch (a->act) {
    case KS_ACT1_SILU: conv_channels(a, KS_ACT1_SILU, first, last); break;
    case KS_ACT1_SIGMOID: conv_channels(a, KS_ACT1_SIGMOID, first, last); break;
    default: conv_channels(a, KS_ACT1_NONE, first, last); break;
    }
}

#endif
