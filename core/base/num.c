/* Small float formats, in integer arithmetic: exact to read, rounded to nearest even to write. Pure. [any] */
#include "base/num.h"
#include <math.h>

/* A float of `exp_bits` and `man_bits` whose codes end in infinities and NaN like IEEE's. */
static float from_small(uint32_t sign, uint32_t exponent, uint32_t mantissa, int man_bits, int bias, uint32_t exp_max)
{
    if (exponent == exp_max)
        return ks_f32_from_bits(sign << 31 | 0x7f800000u | mantissa << (23 - man_bits) | (mantissa ? 0x400000u : 0));
    float v = exponent ? ldexpf((float)(mantissa | 1u << man_bits), (int)exponent - bias - man_bits)
                       : ldexpf((float)mantissa, 1 - bias - man_bits);
    return sign ? -v : v;
}

float ks_f16_to_f32(uint16_t h)
{
    return from_small(h >> 15, h >> 10 & 31u, h & 0x3ffu, 10, 15, 31);
}

float ks_f8e5m2_to_f32(uint8_t b)
{
    return from_small(b >> 7, b >> 2 & 31u, b & 3u, 2, 15, 31);
}

float ks_f8e4m3_to_f32(uint8_t b)
{
    if ((b & 0x7fu) == 0x7fu) return ks_f32_from_bits((uint32_t)(b >> 7) << 31 | 0x7fc00000u);
    return from_small(b >> 7, b >> 3 & 15u, b & 7u, 3, 7, 16); /* 16: this variant has no infinities */
}

/* |f| below the format's overflow: the code without the sign. A carry out of the mantissa moves into
 * the exponent, which is just the next code. */
static uint32_t to_small(uint32_t bits, int man_bits, int bias)
{
    int exponent = (int)(bits >> 23) - 127 + bias, shift = 23 - man_bits;
    uint32_t mantissa = (bits & 0x7fffffu) | (bits >> 23 ? 0x800000u : 0);
    if (exponent < 1) { /* subnormal there: further to the right */
        shift += 1 - exponent;
        if (shift > 24) return 0; /* less than half of the smallest */
        exponent = 1;
    }
    uint32_t code = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    code += rest > half || (rest == half && (code & 1u));
    return code + ((uint32_t)(exponent - 1) << man_bits); /* the implicit one adds the missing exponent step */
}

uint16_t ks_f32_to_f16(float f)
{
    uint32_t u = ks_f32_bits(f), sign = u >> 31 << 15, bits = u & 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    return (uint16_t)(sign | to_small(bits, 10, 15));
}

uint8_t ks_f32_to_f8e4m3(float f)
{
    uint32_t u = ks_f32_bits(f), sign = u >> 31 << 7, bits = u & 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (bits >= 0x43e00000u) return (uint8_t)(sign | 0x7eu); /* 448, the largest */
    return (uint8_t)(sign | to_small(bits, 3, 7));
}

float ks_e8m0_to_f32(uint8_t b)
{
    if (b == 255) return ks_f32_from_bits(0x7fc00000u);
    return ks_f32_from_bits(b ? (uint32_t)b << 23 : 0x400000u); /* 2^-127 is subnormal */
}

float ks_e2m1_to_f32(uint8_t code)
{
    static const float values[16] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6 };
    return values[code & 15];
}
