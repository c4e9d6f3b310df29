/* Tiles of AMX under names that a build of the tests replaces by the same in software, so that what is written with
 * them is tested on CPUs without AMX. Registers are literal numbers 0..7. No state of ours: tiles belong to the thread.
 * [worker] */
#ifndef KS_AVX512_AMX_H
#define KS_AVX512_AMX_H

#include <immintrin.h>
#include <stdint.h>

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

#ifdef KS_AMX_EMULATED

#include KS_AMX_EMULATED /* the header that does it */

#else

/* C += A B: sums of four signed bytes, of two bf16. */
#define tile_add_i8(C, A, B) _tile_dpbssd(C, A, B)
#define tile_add_bf16(C, A, B) _tile_dpbf16ps(C, A, B)
#define tile_zero(T) _tile_zero(T)
#define tile_load(T, P, STRIDE) _tile_loadd(T, P, STRIDE)
#define tile_store(T, P, STRIDE) _tile_stored(T, P, STRIDE)

static inline __attribute__((always_inline)) void tile_configure(const tile_config *c)
{
    __asm__ volatile("" ::"r"(c) : "memory");
    _tile_loadconfig(c);
}

static inline __attribute__((always_inline)) void tile_release(void)
{
    _tile_release();
}

#endif

/* What gcc's tile intrinsics read and write through pointers, they do not tell the compiler. */
static inline __attribute__((always_inline)) void tile_memory(void)
{
    __asm__ volatile("" ::: "memory");
}

#endif
