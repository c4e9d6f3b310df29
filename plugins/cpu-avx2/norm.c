/* NORM: RMS, layer and L2 norms over slices of a row. Sums: four vectors of eight lanes, columns 32 apart, then
 * the tail, always the same order. [worker] */
#include "rows.h"
#include "simd.h"

#include <math.h>

/* sum(x - mean) or, if squares, sum((x - mean)^2). */
KS_INLINE float sum_row(const float *x, uint32_t n, float mean, int squares)
{
    __m256 s[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() };
    const __m256 mu = _mm256_set1_ps(mean);
    uint32_t i = 0, lane = 0;
    for (; i + 32 <= n; i += 32) {
        for (uint32_t v = 0; v < 4; v++) {
            __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * v), mu);
            s[v] = squares ? _mm256_fmadd_ps(d, d, s[v]) : _mm256_add_ps(s[v], d);
        }
    }
    for (; i < n; i += 8, lane++) {
        __m256i mask = mask_first(n - i < 8 ? n - i : 8);
        __m256 d = _mm256_sub_ps(_mm256_maskload_ps(x + i, mask), mu);
        d = _mm256_and_ps(d, _mm256_castsi256_ps(mask));
        s[lane] = squares ? _mm256_fmadd_ps(d, d, s[lane]) : _mm256_add_ps(s[lane], d);
    }
    return sum_8(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
}

/* y = (x - mean) * inv * (w + offset) + b over n columns with contiguous weights; w, b may be NULL. */
static void apply(const float *x, float *y, uint32_t n, float mean, float inv, const float *w, float offset,
                  const float *b)
{
    const __m256 mu = _mm256_set1_ps(mean), sc = _mm256_set1_ps(inv), off = _mm256_set1_ps(offset);
    for (uint32_t i = 0; i < n; i += 8) {
        __m256i mask = mask_first(n - i < 8 ? n - i : 8);
        __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_maskload_ps(x + i, mask), mu), sc);
        __m256 f = _mm256_add_ps(w ? _mm256_maskload_ps(w + i, mask) : _mm256_set1_ps(1.0f), off);
        v = b ? _mm256_fmadd_ps(v, f, _mm256_maskload_ps(b + i, mask)) : _mm256_mul_ps(v, f);
        _mm256_maskstore_ps(y + i, mask, v);
    }
}

static void slice(const ks_norm_args *a, const float *x, float *y, uint32_t column)
{
    float mean = a->kind == KS_NORM_LAYER ? sum_row(x, a->width, 0, 0) / (float)a->width : 0;
    float ss = sum_row(x, a->width, mean, 1);
    float inv = 1.0f / sqrtf((a->kind == KS_NORM_L2 ? ss : ss / (float)a->width) + a->eps);
    if (!a->weight && !a->bias) {
        apply(x, y, a->width, mean, inv, NULL, a->w_offset, NULL);
        return;
    }
    for (uint32_t i = 0, n; i < a->width; i += n) { /* runs in which column % w_width is contiguous */
        uint32_t c = (column + i) % a->w_width;
        n = a->w_width - c < a->width - i ? a->w_width - c : a->width - i;
        apply(x + i, y + i, n, mean, inv, a->weight ? a->weight + c : NULL, a->w_offset, a->bias ? a->bias + c : NULL);
    }
}

void norm_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_norm_args *a = args;
    (void)scratch;
    for (uint32_t r = begin; r < end; r++)
        for (uint32_t c = 0; c < a->n; c += a->width)
            slice(a, a->x + r * a->x_stride + c, a->y + r * a->y_stride + c, c);
}
