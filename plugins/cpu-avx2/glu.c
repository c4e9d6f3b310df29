/* GLU: act(gate) * up, gate and up in alternating runs of 16 columns. [worker] */
#include "rows.h"
#include "simd.h"

#include <math.h>

/* Rare in today's models, so the C library's erf, lane by lane, is fast enough. */
static __m256 gelu_8(__m256 g)
{
    float v[8];
    _mm256_storeu_ps(v, g);
    for (uint32_t i = 0; i < 8; i++) v[i] = 0.5f * v[i] * erfcf(v[i] * -0.70710678f);
    return _mm256_loadu_ps(v);
}

KS_INLINE __m256 gelu_tanh_8(__m256 g) /* (1 + tanh z) / 2 = sigmoid(2 z): no cancellation */
{
    __m256 cube = _mm256_mul_ps(_mm256_mul_ps(g, g), g);
    __m256 z = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), g);
    return gate_8(g, _mm256_mul_ps(z, _mm256_set1_ps(1.59576912f)));
}

KS_INLINE __m256 act_8(uint32_t kind, __m256 g, __m256 u, __m256 limit, __m256 alpha)
{
    const __m256 minus_limit = _mm256_sub_ps(_mm256_setzero_ps(), limit);
    __m256 r;
    switch (kind) {
    case KS_ACT_SILU: return _mm256_mul_ps(gate_8(g, g), u);
    case KS_ACT_GELU_TANH: return _mm256_mul_ps(gelu_tanh_8(g), u);
    case KS_ACT_GELU: return _mm256_mul_ps(gelu_8(g), u);
    case KS_ACT_RELU2: r = _mm256_max_ps(g, _mm256_setzero_ps()); return _mm256_mul_ps(_mm256_mul_ps(r, r), u);
    case KS_ACT_SWIGLU_CLAMP:
        g = _mm256_min_ps(limit, g);
        u = _mm256_min_ps(limit, _mm256_max_ps(minus_limit, u));
        return _mm256_mul_ps(gate_8(g, _mm256_mul_ps(alpha, g)), _mm256_add_ps(u, _mm256_set1_ps(1.0f)));
    case KS_ACT_SILU_CLAMP:
        g = _mm256_min_ps(limit, g);
        u = _mm256_min_ps(limit, _mm256_max_ps(minus_limit, u));
        return _mm256_mul_ps(gate_8(g, g), u);
    default: return _mm256_set1_ps(NAN); /* the host checks the kind when it builds the op list */
    }
}

KS_INLINE void run(const ks_glu_args *a, uint32_t kind, uint32_t begin, uint32_t end)
{
    const __m256 limit = _mm256_set1_ps(a->limit), alpha = _mm256_set1_ps(a->alpha);
    for (uint32_t r = begin; r < end; r++) {
        for (uint32_t i = 0; i < a->n; i += 8) {
            const float *g = a->x + r * a->x_stride + (size_t)(i / 16) * 32 + i % 16;
            float *y = a->y + r * a->y_stride + i;
            __m256 v = act_8(kind, _mm256_loadu_ps(g), _mm256_loadu_ps(g + 16), limit, alpha);
            if (a->n - i >= 8)
                _mm256_storeu_ps(y, v);
            else
                _mm256_maskstore_ps(y, mask_first(a->n - i), v);
        }
    }
}

void glu_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_glu_args *a = args;
    (void)scratch;
    if (a->kind == KS_ACT_SILU) /* nearly every model: the switch is outside the loop */
        run(a, KS_ACT_SILU, begin, end);
    else
        run(a, a->kind, begin, end);
}
