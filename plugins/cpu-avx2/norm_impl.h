/* NORM: RMS, layer and L2 norms over slices of a row, for any width of vectors. Sums: four vectors, then the tail,
 * always the same order. [worker] */
#ifndef KS_AVX2_NORM_IMPL_H
#define KS_AVX2_NORM_IMPL_H

#include "vec_math.h"

#include <math.h>

/* sum(x - mean) or, if squares, sum((x - mean)^2). */
KS_INLINE float sum_row(const float *x, uint32_t n, float mean, bool squares)
{
    vec s[4] = { v_set1(0), v_set1(0), v_set1(0), v_set1(0) };
    const vec mu = v_set1(mean);
    uint32_t i = 0, lane = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (uint32_t v = 0; v < 4; v++) {
            vec d = v_sub(v_load(x + i + LANES * v), mu);
            s[v] = squares ? v_fma(d, d, s[v]) : v_add(s[v], d);
        }
    }
    for (; i < n; i += LANES, lane++) {
        vec d = v_in_range(v_sub(v_load_cols(x, i, n), mu), i, 0, n, v_set1(0));
        s[lane] = squares ? v_fma(d, d, s[lane]) : v_add(s[lane], d);
    }
    return v_sum_lanes(v_add(v_add(s[0], s[1]), v_add(s[2], s[3])));
}

/* y = (x - mean) * inv * (w + offset) + b over n columns with contiguous weights; w, b may be NULL. */
KS_INLINE void apply(const float *x, float *y, uint32_t n, float mean, float inv, const float *w, float offset,
                     const float *b)
{
    const vec mu = v_set1(mean), sc = v_set1(inv), off = v_set1(offset);
    for (uint32_t i = 0; i < n; i += LANES) {
        vec v = v_mul(v_sub(v_load_cols(x, i, n), mu), sc);
        vec f = v_add(w ? v_load_cols(w, i, n) : v_set1(1), off);
        v_store_cols(y, i, n, b ? v_fma(v, f, v_load_cols(b, i, n)) : v_mul(v, f));
    }
}

static void norm_slice(const ks_norm_args *a, const float *x, float *y, uint32_t column)
{
    float mean = a->kind == KS_NORM_LAYER ? sum_row(x, a->width, 0, false) / (float)a->width : 0;
    float ss = sum_row(x, a->width, mean, true);
    float inv = 1.0f / sqrtf((a->kind == KS_NORM_L2 ? ss : ss / (float)a->width) + a->eps);
    if (!a->weight && !a->bias) {
        apply(x, y, a->width, mean, inv, NULL, a->w_offset, NULL);
        return;
    }
    for (uint32_t i = 0, n; i < a->width; i += n) { /* runs in which column % w_width is contiguous */
        uint32_t c = (column + i) % a->w_width;
        n = a->w_width - c < a->width - i ? a->w_width - c : a->width - i;
        if (a->weight && !a->bias) /* nearly every model: the choice is outside the loop */
            apply(x + i, y + i, n, mean, inv, a->weight + c, a->w_offset, NULL);
        else
            apply(x + i, y + i, n, mean, inv, a->weight ? a->weight + c : NULL, a->w_offset,
                  a->bias ? a->bias + c : NULL);
    }
}

static void norm(const ks_norm_args *a, uint32_t begin, uint32_t end)
{
    for (uint32_t r = begin; r < end; r++)
        for (uint32_t c = 0; c < a->n; c += a->width)
            norm_slice(a, a->x + r * a->x_stride + c, a->y + r * a->y_stride + c, c);
}

#endif
