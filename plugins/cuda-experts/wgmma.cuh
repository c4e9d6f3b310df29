/* What compute capability 9.0 alone has: products of four warps (a warpgroup) that run beside them, with one factor in
 * shared memory. tests/cuda/emu has a header of the same name, so this one is included as <wgmma.cuh>.
 *
 * CU_WGMMA is 1 where the code is compiled for it; elsewhere a kernel that needs it must be empty, and wg_is_there()
 * tells the host. Accumulators and registers of A belong to the product from wg_fence() to the wg_wait() that waits for
 * it.
 */
#ifndef CU_WGMMA_CUH
#define CU_WGMMA_CUH

#include <ptx.cuh>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define CU_WGMMA 1
#else
#define CU_WGMMA 0
#endif

/* Which code the device has loaded shows in what the kernel is compiled for. */
template <int = 0> static __global__ void __launch_bounds__(CU_WGMMA ? 128 : 64) wg_probe_kernel(void) {}

static inline bool wg_is_there(void)
{
    cudaFuncAttributes a;
    return cudaFuncGetAttributes(&a, wg_probe_kernel<0>) == cudaSuccess && a.maxThreadsPerBlock == 128;
}

#if CU_WGMMA

/* type *name: the launch's shared bytes but for up to 1023 of them, from an address that 1024 divides. */
#define CU_DYNAMIC_SHARED_1024(type, name) extern __shared__ __align__(1024) type name[]

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* What is the same in all lanes, and now the compiler knows: products want their matrices in uniform registers. */
static __device__ __forceinline__ uint32_t uniform(uint32_t v)
{
    uint32_t r;
    asm volatile("redux.sync.or.b32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v));
    return r;
}

/* ---- a matrix in shared memory, as products read it
 *
 * Plain: blocks of 8 rows of 16 bytes, 128 bytes each; `leading` bytes from one to the next along k, `stride` along the
 * other side. Swizzled: rows of 128 bytes, the 16-byte piece i of row r (counted from an address that 1024 divides) in
 * the place of i ^ r % 8.
 * Rows along k: 8 of them are a block, `stride` bytes to the next; 16 numbers further on in k are 32 bytes further on.
 * Rows along n (N_MAJOR): 64 numbers, `leading` bytes to the next 64; 8 rows are 8 of k, `stride` bytes to the next. */
static __device__ __forceinline__ uint64_t wg_matrix(const void *p, uint32_t leading, uint32_t stride, bool swizzled)
{
    return (uint64_t)(shared_address(p) >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           (uint64_t)swizzled << 62;
}

/* What begins `bytes` further on. Without a carry: addresses have 14 bits of 16 bytes. */
static __device__ __forceinline__ uint64_t wg_further(uint64_t matrix, uint32_t bytes)
{
    return (matrix & UINT64_C(0xffffffff00000000)) | ((uint32_t)matrix + (bytes >> 4)); /* addresses have 14 bits */
}

/* ---- products */

/* Before the first product, and wherever registers that one uses were written by something else. */
static __device__ __forceinline__ void wg_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* The products since the last one are a group. */
static __device__ __forceinline__ void wg_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* All are done but those of the LEFT latest groups. */
template <int LEFT> static __device__ __forceinline__ void wg_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

/* The compiler must neither move nor copy these while a product writes them. */
template <uint32_t N> static __device__ __forceinline__ void wg_hold(float (&d)[N][4])
{
#pragma unroll
    for (uint32_t n = 0; n < N; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) asm volatile("" : "+f"(d[n][i]));
}

template <uint32_t N> static __device__ __forceinline__ void wg_hold(int32_t (&d)[N][4])
{
#pragma unroll
    for (uint32_t n = 0; n < N; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) asm volatile("" : "+r"(d[n][i]));
}

#define WG_R8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define WG_R16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) \
    WG_R8(a, b, c, d, e, f, g, h) "," WG_R8(i, j, k, l, m, n, o, p)
#define WG_R32                                                   \
    WG_R16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \
    "," WG_R16(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)
#define WG_R64                                                                    \
    WG_R32 "," WG_R16(32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, \
                      47) "," WG_R16(48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63)
#define WG_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WG_D16(i) WG_D4(i), WG_D4(i + 1), WG_D4(i + 2), WG_D4(i + 3)
#define WG_D32 WG_D16(0), WG_D16(4)
#define WG_D64 WG_D32, WG_D16(8), WG_D16(12)

/* D = A B, or with add D += A B. A: 64 x 16 numbers of two bytes in registers, each warp has 16 rows as mma.m16n8k16
 * has them; B: 16 x N in shared memory; D: 64 x N, each warp has 16 rows, N / 8 tiles as mma.m16n8k16 has them. */
#define WG_PRODUCT(name, n, type, regs, floats, a0, a1, a2, a3, at_b, at_add, at_major)                            \
    template <bool N_MAJOR>                                                                                        \
    static __device__ __forceinline__ void name(float(&d)[n / 8][4], const uint32_t(&a)[4], uint64_t b, bool add)  \
    {                                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #at_add ", 0; wgmma.mma_async.sync.aligned.m64n" #n         \
                     "k16.f32." type "." type " {" regs "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #at_b        \
                     ", p, 1, 1, %" #at_major ";}"                                                                 \
                     : floats                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((uint32_t)add), "n"((int)N_MAJOR)); \
    }

WG_PRODUCT(wg_mma_f16, 64, "f16", WG_R32, WG_D32, 32, 33, 34, 35, 36, 37, 38)
WG_PRODUCT(wg_mma_bf16, 64, "bf16", WG_R32, WG_D32, 32, 33, 34, 35, 36, 37, 38)
WG_PRODUCT(wg_mma_f16, 128, "f16", WG_R64, WG_D64, 64, 65, 66, 67, 68, 69, 70)
WG_PRODUCT(wg_mma_bf16, 128, "bf16", WG_R64, WG_D64, 64, 65, 66, 67, 68, 69, 70)

/* The same of signed bytes, exactly. A: 64 x 32, each warp has 16 rows as mma.m16n8k32 has them; B: 32 x N, rows along
 * k alone, so 32 numbers further on in k are 32 bytes further on. */
#define WG_PRODUCT_S8(n, regs, ints, a0, a1, a2, a3, at_b, at_add)                                             \
    static __device__ __forceinline__ void wg_mma_s8(int32_t(&d)[n / 8][4], const uint32_t(&a)[4], uint64_t b, \
                                                     bool add)                                                 \
    {                                                                                                          \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #at_add ", 0; wgmma.mma_async.sync.aligned.m64n" #n     \
                     "k32.s32.s8.s8 {" regs "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #at_b ", p;}"        \
                     : ints                                                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((uint32_t)add));                \
    }

#define WG_I4(i) "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])
#define WG_I8(i) WG_I4(i), WG_I4(i + 1)
#define WG_S8_R8 WG_R8(0, 1, 2, 3, 4, 5, 6, 7)
#define WG_S8_R16 WG_S8_R8 "," WG_R8(8, 9, 10, 11, 12, 13, 14, 15)
#define WG_S8_R24 WG_S8_R16 "," WG_R8(16, 17, 18, 19, 20, 21, 22, 23)
#define WG_I16 WG_I8(0), WG_I8(2)
#define WG_I24 WG_I16, WG_I8(4)
#define WG_I32 WG_I24, WG_I8(6)
WG_PRODUCT_S8(16, WG_S8_R8, WG_I8(0), 8, 9, 10, 11, 12, 13)
WG_PRODUCT_S8(32, WG_S8_R16, WG_I16, 16, 17, 18, 19, 20, 21)
WG_PRODUCT_S8(48, WG_S8_R24, WG_I24, 24, 25, 26, 27, 28, 29)
WG_PRODUCT_S8(64, WG_R32, WG_I32, 32, 33, 34, 35, 36, 37)

/* The same with A in shared memory, rows along k. */
#define WG_PRODUCT_SHARED(name, n, type, regs, floats, at_a, at_b, at_add, at_major)                              \
    template <bool N_MAJOR>                                                                                       \
    static __device__ __forceinline__ void name(float(&d)[n / 8][4], uint64_t a, uint64_t b, bool add)            \
    {                                                                                                             \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #at_add ", 0; wgmma.mma_async.sync.aligned.m64n" #n        \
                     "k16.f32." type "." type " {" regs "}, %" #at_a ", %" #at_b ", p, 1, 1, 0, %" #at_major ";}" \
                     : floats                                                                                     \
                     : "l"(a), "l"(b), "r"((uint32_t)add), "n"((int)N_MAJOR));                                    \
    }

#define WG_R16_FIRST WG_R16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
WG_PRODUCT_SHARED(wg_mma_f16, 32, "f16", WG_R16_FIRST, WG_D16(0), 16, 17, 18, 19)
WG_PRODUCT_SHARED(wg_mma_bf16, 32, "bf16", WG_R16_FIRST, WG_D16(0), 16, 17, 18, 19)
WG_PRODUCT_SHARED(wg_mma_f16, 64, "f16", WG_R32, WG_D32, 32, 33, 34, 35)
WG_PRODUCT_SHARED(wg_mma_bf16, 64, "bf16", WG_R32, WG_D32, 32, 33, 34, 35)

/* What this thread has written to shared memory is seen by products that begin after a barrier that it meets next. */
static __device__ __forceinline__ void shared_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- barriers that count: a phase ends when `count` threads have arrived; phases are told apart by their parity */

/* By one thread, before a barrier of the block. */
static __device__ __forceinline__ void phase_init(uint64_t *bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}

static __device__ __forceinline__ void phase_arrive(uint64_t *bar)
{
    asm volatile("{.reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0];}" ::"r"(shared_address(bar)) : "memory");
}

/* Until the phase of this parity has ended; that before the first has parity 1. */
static __device__ __forceinline__ void phase_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    do
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(shared_address(bar)), "r"(parity)
                     : "memory");
    while (!done);
}

/* Barrier `id` (1 .. 15) of n threads, whole warps. */
static __device__ __forceinline__ void part_sync(uint32_t id, uint32_t n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

/* Registers of a thread from now on, for all warps of a warpgroup. */
template <int N> static __device__ __forceinline__ void regs_fewer(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void regs_more(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif

#endif
