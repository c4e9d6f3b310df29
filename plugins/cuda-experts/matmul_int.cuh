/* What the integer products share: T16 weights as operands of mma.m16n8k32, and their scales.
 *
 * The products of one weight group are added exactly, whatever the order; then, groups in ascending order,
 * acc = fmaf((float)isum, wscale * xscale, acc). So all kernels give the bits of every other kernel set.
 *
 * The 16 rows of a strip are A. Lane (g, t) = (lane / 4, lane % 4) holds rows g and g + 8; of the 32
 * columns it takes 8t .. 8t + 7 as its slots 4t .. 4t + 3 and 16 + 4t .. 16 + 4t + 3, in A and B alike. */
#ifndef CU_MATMUL_INT_CUH
#define CU_MATMUL_INT_CUH

#include "matmul.cuh"

/* LAUNCH<TYPE, GROUP>::now(m, s) for the type and the group of m. */
template <template <uint32_t, uint32_t> class LAUNCH, uint32_t TYPE>
static void launch_of_type(const cu_matmul *m, cu_stream s)
{
    if (m->group == 128)
        LAUNCH<TYPE, 128>::now(m, s);
    else if (m->group == 64)
        LAUNCH<TYPE, 64>::now(m, s);
    else
        LAUNCH<TYPE, 32>::now(m, s);
}

template <template <uint32_t, uint32_t> class LAUNCH> static void launch_shape(const cu_matmul *m, cu_stream s)
{
    if (m->type == KS_T_I8)
        launch_of_type<LAUNCH, KS_T_I8>(m, s);
    else if (m->type == KS_T_I4)
        launch_of_type<LAUNCH, KS_T_I4>(m, s);
    else
        launch_of_type<LAUNCH, KS_T_MXFP4>(m, s);
}

struct frag {
    uint32_t a[4];
};

/* 0 1 2 3 4 6 8 12 and their negatives, for four codes in the low nibbles of bytes. */
static __device__ __forceinline__ uint32_t e2m1_twice(uint32_t codes)
{
    uint32_t sel = codes & 0x07070707u; /* one selector a nibble: bytes to nibbles */
    sel = (sel | sel >> 4) & 0x00ff00ffu;
    sel = (sel | sel >> 8) & 0xffffu;
    uint32_t pos = __byte_perm(0x03020100u, 0x0c080604u, sel), neg = __byte_perm(0xfdfeff00u, 0xf4f8fafcu, sel);
    uint32_t sign = (codes >> 3 & 0x01010101u) * 0xffu;
    return (neg & sign) | (pos & ~sign);
}

/* What a lane reads for 32 columns: a dword each of rows g and g + 8, two of I8. */
template <uint32_t TYPE> struct raw {
    uint32_t w[TYPE == KS_T_I8 ? 4 : 2];
};

template <uint32_t TYPE>
static __device__ __forceinline__ raw<TYPE> load_weights(const uint8_t *strip, uint32_t k, uint32_t g, uint32_t t)
{
    const uint32_t *w = (const uint32_t *)strip;
    raw<TYPE> r;
    if (TYPE == KS_T_I8) {
        uint32_t at = (k / 4 + 2 * t) * 16 + g;
        for (uint32_t i = 0; i < 4; i++) r.w[i] = w[at + 8 * i];
        return r;
    }
    uint32_t at = (k / 8 + t) * 16 + g;
    r.w[0] = w[at];
    r.w[1] = w[at + 8];
    return r;
}

/* I4: a nibble in the upper half of a byte, its first bit turned, is 16 times the value, as a signed byte. */
template <uint32_t TYPE> static __device__ __forceinline__ frag decode(const raw<TYPE> &r)
{
    if (TYPE == KS_T_I8) return frag { { r.w[0], r.w[1], r.w[TYPE == KS_T_I8 ? 2 : 0], r.w[TYPE == KS_T_I8 ? 3 : 0] } };
    if (TYPE == KS_T_I4)
        return frag { { (r.w[0] << 4 & 0xf0f0f0f0u) ^ 0x80808080u, (r.w[1] << 4 & 0xf0f0f0f0u) ^ 0x80808080u,
                        (r.w[0] & 0xf0f0f0f0u) ^ 0x80808080u, (r.w[1] & 0xf0f0f0f0u) ^ 0x80808080u } };
    return frag { { e2m1_twice(r.w[0] & 0x0f0f0f0fu), e2m1_twice(r.w[1] & 0x0f0f0f0fu),
                    e2m1_twice(r.w[0] >> 4 & 0x0f0f0f0fu), e2m1_twice(r.w[1] >> 4 & 0x0f0f0f0fu) } };
}

/* The sum itself: exact, it is a multiple of 16. */
template <uint32_t TYPE> static __device__ __forceinline__ int32_t sum_of(int32_t c)
{
    return TYPE == KS_T_I4 ? c >> 4 : c;
}

template <uint32_t TYPE>
static __device__ __forceinline__ float weight_scale(const uint8_t *scales, uint32_t group, uint32_t row)
{
    if (TYPE == KS_T_MXFP4) return __fmul_rn(e8m0_to_f32(scales[group * 16 + row]), 0.5f);
    return bf16_to_f32(((const uint16_t *)scales)[group * 16 + row]);
}

#endif
