/* The emulator's side of plugins/cuda-experts/ptx.cuh, and the device's own functions that the kernels use. C++17. */
#ifndef EMU_PTX_CUH
#define EMU_PTX_CUH

#include <cuda_runtime_api.h>
#include <math.h>
#include <new>
#include <stdlib.h>
#include <string.h>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define CU_APART
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
    unsigned int x, y, z;
};
struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct __align__(4) char4
{
    signed char x, y, z, w;
};
struct __align__(8) uint2
{
    unsigned int x, y;
};
struct __align__(16) int4
{
    int32_t x, y, z, w;
};

struct __align__(16) uint4
{
    unsigned int x, y, z, w;
};
struct __align__(8) int2
{
    int x, y;
};
struct __align__(8) float2
{
    float x, y;
};
struct __align__(16) float4
{
    float x, y, z, w;
};

extern "C" {
extern __thread uint64_t cu_n_launches; /* the plugin's */
extern uint3 emu_thread_idx, emu_block_idx;
extern dim3 emu_block_dim, emu_grid_dim;
void emu_launch(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t s,
                void (*run)(void *), bool (*ready)(void *), const void *args, size_t bytes);
uint64_t emu_clock_ns(void);
cudaError_t emu_func_attribute(const void *kernel, enum cudaFuncAttribute a, int value);
void *emu_dynamic_shared(void);
void emu_wait_for_stream(void);
void emu_check_waited(void);
void emu_barrier(void);
typedef void (*emu_warp_fn)(void *const *lanes, uint32_t mask);
void emu_collective(uint32_t mask, emu_warp_fn fn, void *mine);
void emu_do_nothing(void *const *lanes, uint32_t mask);
void emu_do_shuffle(void *const *lanes, uint32_t mask);
void emu_do_vote(void *const *lanes, uint32_t mask);
void emu_do_mma_s8(void *const *lanes, uint32_t mask);
void emu_do_mma_bf16(void *const *lanes, uint32_t mask);
void emu_do_mma_f16(void *const *lanes, uint32_t mask);
void emu_do_ldmatrix(void *const *lanes, uint32_t mask);
void emu_do_ldmatrix_trans(void *const *lanes, uint32_t mask);
void emu_cp_async(void *to, const void *from, uint32_t bytes, uint32_t from_bytes);
void emu_cp_commit(void);
void emu_cp_wait(uint32_t left);
}

#define threadIdx emu_thread_idx
#define blockIdx emu_block_idx
#define blockDim emu_block_dim
#define gridDim emu_grid_dim

/* ---- launches */

template <typename... P> struct emu_call {
    void (*kernel)(P...);
    std::tuple<P...> args;
    static void run(void *self)
    {
        emu_call *c = (emu_call *)self;
        std::apply(c->kernel, c->args);
    }
    static void run_early(void *self)
    {
        run(self);
        emu_check_waited();
    }
};

/* Whether the host has done what a kernel waits for. */
template <auto READY, typename... P> struct emu_when {
    static bool ready(void *self) { return std::apply(READY, ((emu_call<P...> *)self)->args); }
};

template <auto READY, bool EARLY, typename... P> struct emu_launcher {
    const char *name;
    void (*kernel)(P...);
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
    template <typename... A> void operator()(const A &...a) const
    {
        emu_call<P...> c = { kernel, std::tuple<P...>(a...) };
        __builtin_clear_padding(&c); /* the runtime looks for stray pointers in it */
        bool (*ready)(void *) = nullptr;
        if constexpr (READY != nullptr) ready = emu_when<READY, P...>::ready;
        void (*run)(void *) = EARLY ? emu_call<P...>::run_early : emu_call<P...>::run;
        emu_launch(name, (const void *)kernel, grid, block, shared, stream, run, ready, &c, sizeof c);
    }
};

template <auto READY = nullptr, bool EARLY = false, typename... P>
static inline emu_launcher<READY, EARLY, P...> emu_configure(const char *name, void (*kernel)(P...), dim3 grid,
                                                             dim3 block, size_t shared, cudaStream_t s)
{
    return { name, kernel, grid, block, shared, s };
}

#define CU_LAUNCH(kernel, grid, block, shared, stream) \
    ++cu_n_launches, emu_configure(#kernel, kernel, grid, block, shared, stream)
#define CU_LAUNCH_WHEN(ready, kernel, grid, block, shared, stream) \
    ++cu_n_launches, emu_configure<ready>(#kernel, kernel, grid, block, shared, stream)
/* Never early here; but each thread must have waited when it ends. */
#define CU_LAUNCH_EARLY(kernel, grid, block, shared, stream) \
    ++cu_n_launches, emu_configure<nullptr, true>(#kernel, kernel, grid, block, shared, stream)
#define CU_DYNAMIC_SHARED(type, name) type *name = (type *)emu_dynamic_shared()

template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *kernel, enum cudaFuncAttribute a, int value)
{
    return emu_func_attribute((const void *)kernel, a, value);
}

static inline void let_next_begin(void) {}

static inline void wait_for_stream(void)
{
    emu_wait_for_stream();
}

/* ---- barriers, votes, shuffles */

static inline void __syncthreads(void)
{
    emu_barrier();
}

static inline void __syncwarp(uint32_t mask = ~0u)
{
    int nothing = 0;
    emu_collective(mask, emu_do_nothing, &nothing);
}

struct emu_shuffle {
    uint32_t in, out, lane; /* lane: whose value is wanted */
};

template <typename T> static inline T emu_shuffled(uint32_t mask, T v, uint32_t lane)
{
    static_assert(sizeof(T) == 4, "shuffles of four bytes");
    emu_shuffle s = { 0, 0, lane };
    memcpy(&s.in, &v, 4);
    emu_collective(mask, emu_do_shuffle, &s);
    memcpy(&v, &s.out, 4);
    return v;
}

static inline uint32_t emu_lane(void)
{
    return threadIdx.x % 32;
}

/* Lanes outside of the segment keep their own value. */
template <typename T> static inline T __shfl_sync(uint32_t mask, T v, int lane, int width = 32)
{
    return emu_shuffled(mask, v, (emu_lane() & ~(uint32_t)(width - 1)) | ((uint32_t)lane & (uint32_t)(width - 1)));
}

template <typename T> static inline T __shfl_xor_sync(uint32_t mask, T v, int lanes, int width = 32)
{
    uint32_t to = emu_lane() ^ (uint32_t)lanes, end = (emu_lane() | (uint32_t)(width - 1)) + 1;
    return emu_shuffled(mask, v, to < end ? to : emu_lane());
}

template <typename T> static inline T __shfl_up_sync(uint32_t mask, T v, unsigned int by, int width = 32)
{
    uint32_t in = emu_lane() & (uint32_t)(width - 1);
    return emu_shuffled(mask, v, in >= by ? emu_lane() - by : emu_lane());
}

template <typename T> static inline T __shfl_down_sync(uint32_t mask, T v, unsigned int by, int width = 32)
{
    uint32_t in = emu_lane() & (uint32_t)(width - 1);
    return emu_shuffled(mask, v, in + by < (uint32_t)width ? emu_lane() + by : emu_lane());
}

static inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t v)
{
    for (int o = 16; o; o >>= 1) {
        uint32_t u = __shfl_xor_sync(mask, v, o);
        v = u > v ? u : v;
    }
    return v;
}

static inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t v)
{
    return ~__reduce_max_sync(mask, ~v);
}

static inline uint32_t __ballot_sync(uint32_t mask, int yes)
{
    uint32_t v = yes != 0;
    emu_collective(mask, emu_do_vote, &v);
    return v;
}

static inline int __any_sync(uint32_t mask, int yes)
{
    return __ballot_sync(mask, yes) != 0;
}

static inline int __all_sync(uint32_t mask, int yes)
{
    return __ballot_sync(mask, !yes) == 0;
}

/* ---- the tensor cores and copies into shared memory */

struct emu_mma {
    void *c;
    const uint32_t *a;
    uint32_t b[2];
};

static inline void mma_s8(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    emu_mma m = { c, a, { b0, b1 } };
    emu_collective(~0u, emu_do_mma_s8, &m);
}

static inline void mma_s8_from(int32_t d[4], int32_t c, const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    for (int i = 0; i < 4; i++) d[i] = c;
    mma_s8(d, a, b0, b1);
}

static inline void mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    emu_mma m = { c, a, { b0, b1 } };
    emu_collective(~0u, emu_do_mma_bf16, &m);
}

static inline void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    emu_mma m = { c, a, { b0, b1 } };
    emu_collective(~0u, emu_do_mma_f16, &m);
}

struct emu_ldmatrix {
    const void *row;
    uint32_t *r;
};

static inline void ldmatrix_x4(uint32_t r[4], const void *row)
{
    emu_ldmatrix m = { row, r };
    emu_collective(~0u, emu_do_ldmatrix, &m);
}

static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    emu_ldmatrix m = { row, r };
    emu_collective(~0u, emu_do_ldmatrix_trans, &m);
}

static inline void cp_async_16(void *to, const void *from, uint32_t bytes)
{
    emu_cp_async(to, from, 16, bytes);
}

static inline void cp_async_4(void *to, const void *from)
{
    emu_cp_async(to, from, 4, 4);
}

static inline void cp_async_commit(void)
{
    emu_cp_commit();
}

template <int LEFT> static inline void cp_async_wait(void)
{
    emu_cp_wait(LEFT);
}

/* ---- words of the host's memory: who waits runs when he need not, so one look is enough */

static inline uint64_t load_flag(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void raise_flag(uint32_t *p, uint32_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

static inline void raise_flag(uint64_t *p, uint64_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

static inline float load_fresh(const float *p)
{
    return *p;
}

static inline uint64_t clock_ns(void)
{
    return emu_clock_ns();
}

/* ---- numbers */

static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __int2float_rn(int32_t v)
{
    return (float)v;
}
static inline int32_t __float2int_rn(float v) /* NaN is 0, what is too large is the largest */
{
    if (v != v) return 0;
    return v >= 0x1p31f ? INT32_MAX : v < -0x1p31f ? INT32_MIN : (int32_t)lrintf(v);
}
static inline float ex2(float x)
{
    float r = exp2f(x);
    return r < 0x1p-126f ? 0.0f : r; /* NaN stays */
}
static inline float __uint_as_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t __float_as_uint(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline uint32_t emu_bf16(float f)
{
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}
static inline uint32_t emu_f16(float f)
{
    uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000u, v = u & 0x7fffffffu;
    if (v > 0x7f800000u) return 0x7fffu;
    if (v >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and more */
    if (v < 0x38800000u) return sign | (uint32_t)lrintf(__uint_as_float(v) * 0x1p24f);
    return sign | (((v + 0xfffu + (v >> 13 & 1u)) >> 13) - (112u << 10));
}
static inline uint32_t pack_bf16(float lo, float hi)
{
    return emu_bf16(lo) | emu_bf16(hi) << 16;
}
static inline uint32_t pack_f16(float lo, float hi)
{
    return emu_f16(lo) | emu_f16(hi) << 16;
}
static inline uint32_t e4m3x2_to_f16(uint32_t codes)
{
    uint32_t r = 0;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t c = codes >> 8 * i & 255u, e = c >> 3 & 15u, m = c & 7u;
        float f = e ? ldexpf((float)(8 + m), (int)e - 10) : ldexpf((float)m, -9);
        r |= ((c & 0x7fu) == 0x7fu ? 0x7fffu : emu_f16(c & 0x80u ? -f : f)) << 16 * i;
    }
    return r;
}
static inline uint2 e4m3x4_to_f16(uint32_t codes)
{
    return { e4m3x2_to_f16(codes), e4m3x2_to_f16(codes >> 16) };
}
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t sel)
{
    uint64_t v = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t s = sel >> 4 * i & 15u, byte = (uint32_t)(v >> (s & 7u) * 8) & 255u;
        if (s & 8u) byte = byte & 0x80u ? 255u : 0u; /* its sign, eight times */
        r |= byte << 8 * i;
    }
    return r;
}
static inline int __popc(uint32_t v)
{
    return __builtin_popcount(v);
}
static inline int __clz(int v)
{
    return v ? __builtin_clz((uint32_t)v) : 32;
}
static inline int __ffs(int v)
{
    return __builtin_ffs(v);
}
/* Fibers give way at barriers only: nothing comes between. */
static inline uint32_t atomicAdd(uint32_t *p, uint32_t v)
{
    uint32_t old = *p;
    *p = old + v;
    return old;
}
static inline bool emu_isfinite(float v)
{
    return __builtin_isfinite(v);
}
#undef isfinite
#define isfinite emu_isfinite

static inline uint32_t min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
static inline uint32_t max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}
static inline char4 make_char4(signed char x, signed char y, signed char z, signed char w)
{
    return { x, y, z, w };
}
static inline int2 make_int2(int x, int y)
{
    return { x, y };
}
static inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return { x, y };
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return { x, y, z, w };
}
static inline float2 make_float2(float x, float y)
{
    return { x, y };
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return { x, y, z, w };
}

#endif
