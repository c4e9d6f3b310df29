/* Conversions between float and the small formats. Round to nearest even; NaN stays NaN. */
#ifndef KS_BASE_NUM_H
#define KS_BASE_NUM_H

#include <stdint.h>
#include <string.h>

static inline uint32_t ks_f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float ks_f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline float ks_bf16_to_f32(uint16_t h)
{
    return ks_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t ks_f32_to_bf16(float f)
{
    uint32_t u = ks_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u); /* quiet the NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float ks_f16_to_f32(uint16_t h);
uint16_t ks_f32_to_f16(float f);
float ks_f8e4m3_to_f32(uint8_t b); /* 0x7f, 0xff: NaN */
uint8_t ks_f32_to_f8e4m3(float f); /* saturates at 448 */
float ks_f8e5m2_to_f32(uint8_t b);
float ks_e8m0_to_f32(uint8_t b);    /* 2^(b - 127); 255: NaN */
float ks_e2m1_to_f32(uint8_t code); /* low four bits */

#endif
