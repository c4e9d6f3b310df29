/* GLU: act(gate) * up, gate and up in alternating runs of 16 columns: a register of each. [worker] */
#include "tile.h"

#include <math.h>

/* e^x within 1.1 ulp for x in [-110, 88], cut off there: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^7 (the next term
 * is below 2^-27). A NaN stays one: the order of the operands of min and max. */
KS_INLINE __m512 exp_16(__m512 x)
{
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8); /* nearest, no exception */
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x); /* ln 2 in two parts: n * 0x1.62e4p-1 is exact */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r); /* e^r - 1 */
    return _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0f)), n);
}

/* g * sigmoid(z). The reciprocal of d = 1 + e^-z in one Newton step from 14 bits: a division would take longer than all
 * the rest. d is at most 1.7e38; a reciprocal that small may be taken for 0, and then the step leaves it. */
KS_INLINE __m512 gate_16(__m512 g, __m512 z)
{
    __m512 d = _mm512_add_ps(exp_16(_mm512_sub_ps(_mm512_setzero_ps(), z)), _mm512_set1_ps(1.0f));
    __m512 y = _mm512_rcp14_ps(d);
    y = _mm512_fmadd_ps(y, _mm512_fnmadd_ps(d, y, _mm512_set1_ps(1.0f)), y);
    return _mm512_mul_ps(g, y);
}

/* Rare in today's models, so the C library's erfc, lane by lane, is fast enough. */
static __m512 gelu_16(__m512 g)
{
    float v[16];
    _mm512_storeu_ps(v, g);
    for (uint32_t i = 0; i < 16; i++) v[i] = 0.5f * v[i] * erfcf(v[i] * -0.70710678f);
    return _mm512_loadu_ps(v);
}

KS_INLINE __m512 gelu_tanh_16(__m512 g) /* (1 + tanh z) / 2 = sigmoid(2 z): no cancellation */
{
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(g, g), g);
    __m512 z = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), g);
    return gate_16(g, _mm512_mul_ps(z, _mm512_set1_ps(1.59576912f)));
}

KS_INLINE __m512 clamp(__m512 u, __m512 limit)
{
    return _mm512_min_ps(limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), u));
}

KS_INLINE __m512 act_16(uint32_t kind, __m512 g, __m512 u, __m512 limit, __m512 alpha)
{
    __m512 r;
    switch (kind) {
    case KS_ACT_SILU: return _mm512_mul_ps(gate_16(g, g), u);
    case KS_ACT_GELU_TANH: return _mm512_mul_ps(gelu_tanh_16(g), u);
    case KS_ACT_GELU: return _mm512_mul_ps(gelu_16(g), u);
    case KS_ACT_RELU2: r = _mm512_max_ps(g, _mm512_setzero_ps()); return _mm512_mul_ps(_mm512_mul_ps(r, r), u);
    case KS_ACT_SWIGLU_CLAMP:
        g = _mm512_min_ps(limit, g);
        u = _mm512_add_ps(clamp(u, limit), _mm512_set1_ps(1.0f));
        return _mm512_mul_ps(gate_16(g, _mm512_mul_ps(alpha, g)), u);
    case KS_ACT_SILU_CLAMP: g = _mm512_min_ps(limit, g); return _mm512_mul_ps(gate_16(g, g), clamp(u, limit));
    default: return _mm512_set1_ps(NAN); /* the host checks the kind when it builds the op list */
    }
}

KS_INLINE void run(const ks_glu_args *a, uint32_t kind, uint32_t begin, uint32_t end)
{
    const __m512 limit = _mm512_set1_ps(a->limit), alpha = _mm512_set1_ps(a->alpha);
    for (uint32_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->x_stride;
        float *y = a->y + r * a->y_stride;
        for (uint32_t i = 0; i < a->n; i += 16, x += 32) {
            __m512 v = act_16(kind, _mm512_loadu_ps(x), _mm512_loadu_ps(x + 16), limit, alpha);
            _mm512_mask_storeu_ps(y + i, mask_first(a->n - i), v);
        }
    }
}

void glu_avx512(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    const ks_glu_args *a = args;
    (void)scratch;
    if (a->kind == KS_ACT_SILU) /* nearly every model: the switch is outside the loop */
        run(a, KS_ACT_SILU, begin, end);
    else
        run(a, a->kind, begin, end);
}
