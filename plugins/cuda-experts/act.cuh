/* The activations of gated products. */
#ifndef CU_ACT_CUH
#define CU_ACT_CUH

#include "common.cuh"
#include <krasis/graph.h>

static __device__ float sigmoid(float x)
{
    return __fdiv_rn(1.0f, 1.0f + expf(-x));
}

/* The rarer ones, which need no room where all kernels have the others. */
static __device__ CU_APART float glu_other(uint32_t kind, float g, float u)
{
    if (kind == KS_ACT_GELU_TANH) /* 0.5 (1 + tanh z) = sigmoid(2 z), which does not cancel */
        return g * sigmoid(1.59576912160573080f * (g + 0.044715f * g * g * g)) * u;
    if (kind == KS_ACT_GELU) return 0.5f * g * erfcf(-g * 0.70710678118654752f) * u;
    return g > 0 ? g * g * u : g != g ? g : 0.0f; /* RELU2 */
}

static __device__ __forceinline__ float glu(const cu_glu &a, float g, float u)
{
    const bool swiglu = a.kind == KS_ACT_SWIGLU_CLAMP, clamp = swiglu || a.kind == KS_ACT_SILU_CLAMP;
    if (!clamp && a.kind != KS_ACT_SILU) return glu_other(a.kind, g, u);
    if (clamp) {
        g = g > a.limit ? a.limit : g;
        u = u > a.limit ? a.limit : u < -a.limit ? -a.limit : u;
    }
    float s = sigmoid(swiglu ? a.alpha * g : g);
    return swiglu ? (u + 1.0f) * g * s : g * s * u;
}

/* Where the gate of column i lies; its up is 16 further: strips of both take turns. */
static __device__ __forceinline__ const float *gate_at(const cu_glu &a, uint32_t row, uint32_t i)
{
    return a.x.p + row * a.x.stride + (size_t)(i / 16) * 32 + i % 16;
}

static __device__ __forceinline__ float weigh(const cu_glu &a, uint32_t row, float v)
{
    return a.weight ? __fmul_rn(v, a.weight[row]) : v;
}

#endif
