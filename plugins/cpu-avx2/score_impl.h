/* SCORE: what a router's numbers become before the best are chosen, for any width of vectors. [worker] */
#ifndef KS_AVX2_SCORE_IMPL_H
#define KS_AVX2_SCORE_IMPL_H

#include "vec_math.h"

#include <math.h>

static void softmax_row(const float *x, float *y, uint32_t n)
{
    const vec low = v_set1(-INFINITY);
    vec max = low, sum = v_set1(0);
    for (uint32_t i = 0; i < n; i += LANES) max = v_max(max, v_in_range(v_load_cols(x, i, n), i, 0, n, low));
    max = v_set1(v_max_lanes(max));
    for (uint32_t i = 0; i < n; i += LANES) {
        vec e = v_in_range(v_exp(v_sub(v_load_cols(x, i, n), max)), i, 0, n, v_set1(0));
        v_store_cols(y, i, n, e);
        sum = v_add(sum, e);
    }
    sum = v_set1(v_sum_lanes(sum));
    for (uint32_t i = 0; i < n; i += LANES) v_store_cols(y, i, n, v_div(v_load_cols(y, i, n), sum));
}

static void score(const ks_score_args *a, uint32_t begin, uint32_t end)
{
    for (uint32_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->x_stride;
        float *y = a->y + r * a->y_stride;
        if (a->kind == KS_SCORE_SOFTMAX)
            softmax_row(x, y, a->n);
        else if (a->kind == KS_SCORE_SIGMOID)
            for (uint32_t i = 0; i < a->n; i += LANES)
                v_store_cols(y, i, a->n, v_gate(v_set1(1), v_load_cols(x, i, a->n)));
        else
            for (uint32_t i = 0; i < a->n; i += LANES)
                v_store_cols(y, i, a->n, v_sqrt(v_softplus(v_load_cols(x, i, a->n))));
    }
}

#endif
