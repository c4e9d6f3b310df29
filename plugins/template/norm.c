/* NORM: RMS, layer and L2 norm over slices of a row. A kernel is a pure function over a range of units (here: rows): it
 * allocates nothing, keeps nothing and writes those rows alone. Sums run in one order in every call, so that any split
 * of the rows gives the same bits. [worker] */
#include "rows.h"
#include <math.h>

static void slice(const ks_norm_args *a, const float *x, float *y, uint32_t column)
{
    double mean = 0, sum = 0, n = a->width;
    if (a->kind == KS_NORM_LAYER) {
        for (uint32_t i = 0; i < a->width; i++) mean += x[i];
        mean /= n;
    }
    for (uint32_t i = 0; i < a->width; i++) sum += (x[i] - mean) * (x[i] - mean);
    double scale = 1 / sqrt((a->kind == KS_NORM_L2 ? sum : sum / n) + a->eps);
    for (uint32_t i = 0; i < a->width; i++) {
        uint32_t c = (column + i) % a->w_width;
        double w = (a->weight ? a->weight[c] : 1.0) + a->w_offset;
        y[i] = (float)((x[i] - mean) * scale * w + (a->bias ? a->bias[c] : 0.0));
    }
}

void norm_plain(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_norm_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++)
        for (uint32_t c = 0; c < a->n; c += a->width)
            slice(a, a->x + r * a->x_stride + c, a->y + r * a->y_stride + c, c);
}
