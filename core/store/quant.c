/* Quantization of weights and their layout T16; docs/quant-formats.md explains both.
 *
 * A group's scale and codes depend on the values of that group alone, so any order of work gives the same bytes.
 * SSE2 is part of every x86-64: the search is written with it, since it is most of the time of a first start. */
#include "store/quant.h"
#include "base/base.h"
#include "base/num.h"
#include "store/store.h"
#include <emmintrin.h>
#include <math.h>

#define TINY 0x1p-100f /* below, a group is zero: its scale could not be inverted */

/* The search (I4): scales s = amax / d, of both signs (the code range -8..7 is lopsided), then two neighbours
 * of the best at half the step, then the least-squares scale of the best once more. A finer grid gains less than 0.1 %.
 */
#define SEARCH_LO 6.0f
#define SEARCH_HI 10.0f
#define SEARCH_N 8

/* codes = clamp(round(x * inv)); xq = sum x * code, qq = sum code^2. The squared error of the best scale for these
 * codes is sum x^2 - xq^2 / qq. Fixed lanes: the same sums everywhere. */
static void code_sums(const float *x, uint32_t n, float inv, float *ret_xq, float *ret_qq)
{
    const __m128 vinv = _mm_set1_ps(inv), lo = _mm_set1_ps(-8.0f), hi = _mm_set1_ps(7.0f);
    const __m128 magic = _mm_set1_ps(0x1.8p23f); /* adding and subtracting it rounds to nearest even */
    __m128 xq0 = _mm_setzero_ps(), xq1 = xq0, qq0 = xq0, qq1 = xq0;
    for (uint32_t i = 0; i < n; i += 8) {
        __m128 x0 = _mm_loadu_ps(x + i), x1 = _mm_loadu_ps(x + i + 4);
        __m128 q0 = _mm_min_ps(_mm_max_ps(_mm_mul_ps(x0, vinv), lo), hi);
        __m128 q1 = _mm_min_ps(_mm_max_ps(_mm_mul_ps(x1, vinv), lo), hi);
        q0 = _mm_sub_ps(_mm_add_ps(q0, magic), magic);
        q1 = _mm_sub_ps(_mm_add_ps(q1, magic), magic);
        xq0 = _mm_add_ps(xq0, _mm_mul_ps(x0, q0));
        xq1 = _mm_add_ps(xq1, _mm_mul_ps(x1, q1));
        qq0 = _mm_add_ps(qq0, _mm_mul_ps(q0, q0));
        qq1 = _mm_add_ps(qq1, _mm_mul_ps(q1, q1));
    }
    float a[4], b[4];
    _mm_storeu_ps(a, _mm_add_ps(xq0, xq1));
    _mm_storeu_ps(b, _mm_add_ps(qq0, qq1));
    *ret_xq = (a[0] + a[1]) + (a[2] + a[3]);
    *ret_qq = (b[0] + b[1]) + (b[2] + b[3]);
}

typedef struct best {
    float gain; /* xq^2 / qq: what is taken off the squared error */
    float scale;
} best;

static bool try_scale(const float *x, uint32_t n, float inv, best *b)
{
    float xq, qq;
    code_sums(x, n, inv, &xq, &qq);
    if (qq == 0.0f || xq * xq / qq <= b->gain) return false;
    b->gain = xq * xq / qq;
    b->scale = xq / qq;
    return true;
}

/* The scale with the least squared error; x in [-1, 1], amax its largest magnitude, at least 0.5. */
static float search_scale(const float *x, uint32_t n, float amax)
{
    const float step = (SEARCH_HI - SEARCH_LO) / (SEARCH_N - 1);
    best b = { .gain = -1.0f };
    float d = 0.0f;
    for (int sign = 1; sign >= -1; sign -= 2) {
        for (int i = 0; i < SEARCH_N; i++) {
            float t = (float)sign * (SEARCH_LO + step * (float)i);
            if (try_scale(x, n, t / amax, &b)) d = t;
        }
    }
    (void)try_scale(x, n, (d - step / 2) / amax, &b); /* what they find is in b */
    (void)try_scale(x, n, (d + step / 2) / amax, &b);
    (void)try_scale(x, n, 1.0f / b.scale, &b);
    return b.scale;
}

static float max_abs(const float *x, uint32_t n)
{
    const __m128 sign = _mm_set1_ps(-0.0f);
    __m128 m = _mm_setzero_ps();
    for (uint32_t i = 0; i < n; i += 4) m = _mm_max_ps(m, _mm_andnot_ps(sign, _mm_loadu_ps(x + i)));
    float a[4];
    _mm_storeu_ps(a, m);
    return KS_MAX(KS_MAX(a[0], a[1]), KS_MAX(a[2], a[3]));
}

/* Codes against the scale as it is stored, not as it was found. n is a multiple of 16. */
static void codes_for(const float *x, uint32_t n, float scale, float lo, float hi, int8_t *codes)
{
    const __m128 inv = _mm_set1_ps(1.0f / scale), vlo = _mm_set1_ps(lo), vhi = _mm_set1_ps(hi);
    for (uint32_t i = 0; i < n; i += 16) {
        __m128i q[4];
        for (uint32_t j = 0; j < 4; j++) {
            __m128 v = _mm_mul_ps(_mm_loadu_ps(x + i + j * 4), inv);
            q[j] = _mm_cvtps_epi32(_mm_min_ps(_mm_max_ps(v, vlo), vhi)); /* to nearest even */
        }
        q[0] = _mm_packs_epi16(_mm_packs_epi32(q[0], q[1]), _mm_packs_epi32(q[2], q[3]));
        _mm_storeu_si128((__m128i *)(void *)(codes + i), q[0]);
    }
}

/* One group to codes; returns the scale as bf16 bits. */
static uint16_t quant_group(uint32_t type, const float *x, uint32_t n, int8_t *codes)
{
    float amax = max_abs(x, n);
    memset(codes, 0, n);
    if (amax < TINY) return 0;
    float scale = amax / 127.0f;
    if (type == KS_T_I4) {
        float y[KS_QUANT_GROUP_MAX];
        int e = ilogbf(amax) + 1;
        float down = ldexpf(0.5f, -e) * 2.0f;                /* two steps: 2^-e alone may not be representable */
        for (uint32_t i = 0; i < n; i++) y[i] = x[i] * down; /* a power of two: exact, and squares cannot overflow */
        scale = ldexpf(search_scale(y, n, amax * down), e);
    }
    uint16_t bits = ks_f32_to_bf16(scale);
    codes_for(x, n, ks_bf16_to_f32(bits), type == KS_T_I4 ? -8.0f : -127.0f, type == KS_T_I4 ? 7.0f : 127.0f, codes);
    return bits;
}

/* ---- layout */

void ks__strip_clear(uint32_t type, uint32_t n_in, uint32_t group, void *strip)
{
    memset(strip, 0, ks_t16_strip_bytes(type, n_in, group));
    if (type == KS_T_I4) memset(strip, 0x88, ks_t16_values_bytes(type, n_in));
}

/* Byte j: codes[j] + bias below, codes[j + 4] + bias above; four at once. */
static void put_nibbles(uint8_t *dst, const int8_t *codes, uint32_t bias)
{
    uint32_t lo, hi;
    memcpy(&lo, codes, 4);
    memcpy(&hi, codes + 4, 4);
    lo = (lo ^ bias * 0x01010101u) & 0x0f0f0f0fu; /* plus 8 modulo 16 is a flip of bit 3 */
    hi = (hi ^ bias * 0x01010101u) & 0x0f0f0f0fu;
    lo |= hi << 4;
    memcpy(dst, &lo, 4);
}

void ks__strip_codes(uint32_t type, void *strip, uint32_t row, uint32_t k0, const int8_t *codes, uint32_t n)
{
    const uint32_t per = 32 / ks_type_bits(type), bias = type == KS_T_I4 ? 8 : 0;
    uint8_t *dst = (uint8_t *)strip + ((size_t)k0 / per * 16 + row) * 4;
    for (uint32_t k = 0; k < n; k += per, dst += 64) {
        if (type == KS_T_I8)
            memcpy(dst, codes + k, 4);
        else
            put_nibbles(dst, codes + k, bias);
    }
}

void ks__strip_scale(uint32_t type, void *strip, uint32_t n_in, uint32_t row, uint32_t g, uint16_t scale)
{
    uint8_t *scales = (uint8_t *)strip + ks_t16_values_bytes(type, n_in);
    if (type == KS_T_MXFP4)
        scales[(size_t)g * 16 + row] = (uint8_t)scale;
    else
        memcpy(scales + ((size_t)g * 16 + row) * 2, &scale, 2);
}

static void put_floats(uint32_t type, uint8_t *strip, uint32_t row, const float *x, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++) {
        if (type == KS_T_F32) {
            memcpy(strip + ((size_t)k * 16 + row) * 4, &x[k], 4);
        } else {
            uint16_t h = ks_f32_to_bf16(x[k]);
            memcpy(strip + ((size_t)(k / 2) * 16 + row) * 4 + (k % 2) * 2, &h, 2);
        }
    }
}

uint32_t ks_quant_group(uint32_t n_in)
{
    uint32_t n = ks_t16_n_in(n_in);
    return n % 128 == 0 ? 128 : n % 64 == 0 ? 64 : 32;
}

void ks_quant_strip(uint32_t type, const float *const rows[16], uint32_t n_in, uint32_t group, void *dst)
{
    KS_ASSERT(type == KS_T_F32 || type == KS_T_BF16 || type == KS_T_I8 || type == KS_T_I4);
    const bool coded = type == KS_T_I8 || type == KS_T_I4;
    KS_ASSERT(!coded || ((group == 32 || group == 64 || group == 128) && ks_t16_n_in(n_in) % group == 0));
    ks__strip_clear(type, n_in, coded ? group : 0, dst);
    for (uint32_t r = 0; r < 16; r++) {
        if (!rows[r]) continue;
        if (!coded) {
            put_floats(type, dst, r, rows[r], n_in);
            continue;
        }
        for (uint32_t k = 0; k < n_in; k += group) {
            int8_t codes[KS_QUANT_GROUP_MAX];
            float tail[KS_QUANT_GROUP_MAX];
            const float *x = rows[r] + k;
            if (n_in - k < group) { /* the padding takes part as zeros */
                memset(tail, 0, sizeof tail);
                memcpy(tail, x, (n_in - k) * sizeof *x);
                x = tail;
            }
            uint16_t scale = quant_group(type, x, group, codes);
            ks__strip_codes(type, dst, r, k, codes, group);
            ks__strip_scale(type, dst, n_in, r, k / group, scale);
        }
    }
}
