/* What only nvcc understands: launches, and the machine's instructions that C++ has no words for. tests/cuda/emu has a
 * header of the same name for the host's compiler, so this one is included as <ptx.cuh>. */
#ifndef CU_PTX_CUH
#define CU_PTX_CUH

#include <stdint.h>

/* A function that is not copied into each place that calls it: rare paths, so that what runs lies close together. */
#define CU_APART __noinline__
/* CU_LAUNCH(kernel, grid, block, shared bytes, stream)(arguments); a kernel with a comma in its name: in parentheses.
 */
#define CU_LAUNCH(kernel, grid, block, shared, stream) ++cu_n_launches, kernel<<<grid, block, shared, stream>>>
/* The same for a kernel that waits for the host: ready(arguments) says when it need not any more. The emulator asks it
 * before it runs the kernel, here the kernel spins. */
#define CU_LAUNCH_WHEN(ready, kernel, grid, block, shared, stream) CU_LAUNCH(kernel, grid, block, shared, stream)
/* The same for a kernel that may begin while the one before it in its stream still runs (programmatic dependent launch,
 * compute capability 9.0 on, where cu_begin_early is set): on its way then are its blocks, its arguments and what it
 * reads before wait_for_stream(). All of its threads call that before they touch anything that a kernel before it
 * writes, or write anything that one reads; so what a kernel waits for has waited itself, back to the first. A kernel
 * lets the next begin with let_next_begin(); otherwise that happens at its end. */
#define CU_LAUNCH_EARLY(kernel, grid, block, shared, stream) \
    ++cu_n_launches, cu_launch_early(kernel, grid, block, shared, stream)
/* type *name: the launch's shared bytes. */
#define CU_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

template <typename... P> struct cu_early {
    void (*kernel)(P...);
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
    template <typename... A> void operator()(const A &...a) const
    {
        cudaLaunchAttribute early = {};
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t c = {};
        c.gridDim = grid;
        c.blockDim = block;
        c.dynamicSmemBytes = shared;
        c.stream = stream;
        c.attrs = &early;
        c.numAttrs = cu_begin_early ? 1 : 0;
        (void)cudaLaunchKernelEx(&c, kernel, P(a)...); /* as with <<<>>>, cudaGetLastError() tells */
    }
};

template <typename... P>
static inline cu_early<P...> cu_launch_early(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t s)
{
    return { kernel, grid, block, shared, s };
}

static __device__ __forceinline__ void let_next_begin(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

static __device__ __forceinline__ void wait_for_stream(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* C += A B, one warp. A: 16 x 32 bytes, B: 32 x 8. */
static __device__ __forceinline__ void mma_s8(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* D = A B + c, the same c in all places. */
static __device__ __forceinline__ void mma_s8_from(int32_t d[4], int32_t c, const uint32_t a[4], uint32_t b0,
                                                   uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c));
}

/* A: 16 x 16 BF16 numbers, B: 16 x 8. */
static __device__ __forceinline__ void mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two floats rounded to nearest even, lo in the low half. */
static __device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

static __device__ __forceinline__ uint32_t pack_f16(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* The two E4M3 codes in the low half become two F16 numbers, exactly. */
static __device__ __forceinline__ uint32_t e4m3x2_to_f16(uint32_t codes)
{
    uint32_t r;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((unsigned short)codes));
#else
    uint32_t both = __byte_perm(codes, 0, 0x1404); /* each the high byte of its half */
    r = (both & 0x7f007f00u) >> 1 | (both & 0x80008000u);
    asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(r) : "r"(0x5c005c00u)); /* 2^8: the other bias */
    if ((codes & 0x7fu) == 0x7fu) r |= 0x7fffu;
    if ((codes & 0x7f00u) == 0x7f00u) r |= 0x7fff0000u;
#endif
    return r;
}

/* All four. */
static __device__ __forceinline__ uint2 e4m3x4_to_f16(uint32_t codes)
{
    uint2 r;
#if __CUDA_ARCH__ >= 890
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h;}"
        : "=r"(r.x), "=r"(r.y)
        : "r"(codes)); /* no shift: the instruction takes either half */
#else
    r.x = e4m3x2_to_f16(codes);
    r.y = e4m3x2_to_f16(codes >> 16);
#endif
    return r;
}

/* 2^x within 2 ulp; below 2^-126 it is 0. */
static __device__ __forceinline__ float ex2(float x)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* Four matrices of 8 x 8 numbers of two bytes from shared memory; each lane names one row of 16 bytes. */
static __device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

/* 16 bytes into shared memory, in the background: `bytes` from memory, then zeros. */
static __device__ __forceinline__ void cp_async_16(void *to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(bytes)
                 : "memory"); /* what it overwrites has been read */
}

static __device__ __forceinline__ void cp_async_4(void *to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from));
}

static __device__ __forceinline__ void cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;");
}

/* This thread's copies are there, but for those of the LEFT latest groups. */
template <int LEFT> static __device__ __forceinline__ void cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* ---- words of the host's memory that both sides see */

/* What the host wrote before `v` is seen after it; what this thread (and those it has met at a barrier) wrote before
 * is seen by a host that reads v. */
static __device__ __forceinline__ uint64_t load_flag(const uint64_t *p)
{
    uint64_t v;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}

static __device__ __forceinline__ void raise_flag(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

static __device__ __forceinline__ void raise_flag(uint64_t *p, uint64_t v)
{
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

/* Past the caches, which may hold what stood there before. */
static __device__ __forceinline__ float load_fresh(const float *p)
{
    float v;
    asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

static __device__ __forceinline__ uint64_t clock_ns(void)
{
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

#endif
