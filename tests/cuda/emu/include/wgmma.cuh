/* The emulator's side of plugins/cuda-experts/wgmma.cuh. */
#ifndef EMU_WGMMA_CUH
#define EMU_WGMMA_CUH

#include <ptx.cuh>

#define CU_WGMMA 1

static inline bool wg_is_there(void)
{
    return true;
}

extern "C" {
uint32_t emu_shared_address(const void *p);
void emu_do_wg_product(void *const *lanes, uint32_t mask);
void emu_do_wg_commit(void *const *lanes, uint32_t mask);
void emu_do_wg_wait(void *const *lanes, uint32_t mask);
void emu_phase_init(uint64_t *bar, uint32_t count);
void emu_phase_arrive(uint64_t *bar);
void emu_phase_wait(const uint64_t *bar, uint32_t parity);
void emu_part_sync(uint32_t id, uint32_t n);
}

#define CU_DYNAMIC_SHARED_1024(type, name) \
    type *name = (type *)(((uintptr_t)emu_dynamic_shared() + 1023) & ~(uintptr_t)1023)

static inline uint32_t uniform(uint32_t v)
{
    return __shfl_sync(~0u, v, 0);
}

static inline uint64_t wg_matrix(const void *p, uint32_t leading, uint32_t stride, bool swizzled)
{
    return (uint64_t)(emu_shared_address(p) >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           (uint64_t)swizzled << 62;
}

static inline uint64_t wg_further(uint64_t matrix, uint32_t bytes)
{
    return matrix + (bytes >> 4);
}

static inline void wg_fence(void) {}

static inline void wg_commit(void)
{
    uint32_t nothing = 0;
    emu_collective(~0u, emu_do_wg_commit, &nothing);
}

template <int LEFT> static inline void wg_wait(void)
{
    uint32_t left = LEFT;
    emu_collective(~0u, emu_do_wg_wait, &left);
}

template <uint32_t N> static inline void wg_hold(float (&)[N][4]) {}
template <uint32_t N> static inline void wg_hold(int32_t (&)[N][4]) {}

enum { EMU_WG_F16, EMU_WG_BF16, EMU_WG_S8 };
struct emu_wg {
    void *d;
    const uint32_t *a; /* NULL: a_matrix */
    uint64_t b;
    uint32_t n, kind, n_major, add;
    uint64_t a_matrix;
};

template <bool N_MAJOR, uint32_t N>
static inline void wg_mma_f16(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, bool add)
{
    emu_wg w = { d[0], a, b, 8 * N, EMU_WG_F16, N_MAJOR, add, 0 };
    emu_collective(~0u, emu_do_wg_product, &w);
}

template <bool N_MAJOR, uint32_t N>
static inline void wg_mma_bf16(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, bool add)
{
    emu_wg w = { d[0], a, b, 8 * N, EMU_WG_BF16, N_MAJOR, add, 0 };
    emu_collective(~0u, emu_do_wg_product, &w);
}

template <bool N_MAJOR, uint32_t N> static inline void wg_mma_f16(float (&d)[N][4], uint64_t a, uint64_t b, bool add)
{
    emu_wg w = { d[0], nullptr, b, 8 * N, EMU_WG_F16, N_MAJOR, add, a };
    emu_collective(~0u, emu_do_wg_product, &w);
}

template <bool N_MAJOR, uint32_t N> static inline void wg_mma_bf16(float (&d)[N][4], uint64_t a, uint64_t b, bool add)
{
    emu_wg w = { d[0], nullptr, b, 8 * N, EMU_WG_BF16, N_MAJOR, add, a };
    emu_collective(~0u, emu_do_wg_product, &w);
}

template <uint32_t N> static inline void wg_mma_s8(int32_t (&d)[N][4], const uint32_t (&a)[4], uint64_t b, bool add)
{
    emu_wg w = { d[0], a, b, 8 * N, EMU_WG_S8, false, add };
    emu_collective(~0u, emu_do_wg_product, &w);
}

static inline void shared_fence(void) {}

static inline void phase_init(uint64_t *bar, uint32_t count)
{
    emu_phase_init(bar, count);
}

static inline void phase_arrive(uint64_t *bar)
{
    emu_phase_arrive(bar);
}

static inline void phase_wait(uint64_t *bar, uint32_t parity)
{
    emu_phase_wait(bar, parity);
}

static inline void part_sync(uint32_t id, uint32_t n)
{
    emu_part_sync(id, n);
}

template <int N> static inline void regs_fewer(void) {}

template <int N> static inline void regs_more(void) {}

#endif
