/* An emulator of the GPU for tests: the real kernels, compiled as C++ by the host's compiler, and the real plugin run
 * on the CPU, with a CUDA runtime made of the host's memory.
 *
 * What it does on purpose, chosen by a seed, and always within what CUDA promises:
 * - streams are queues; their work is done as late as a synchronisation permits, or at once, or at any moment between;
 *   a copy from pinned memory reads it when it is done, not when it is asked for;
 * - threads of a block are fibers that run in any order from one barrier to the next; blocks come in any order;
 * - new device memory and shared memory hold garbage; device memory can be touched by kernels and copies alone, only
 *   inside an allocation, and never again after cudaFree; under AddressSanitizer to the byte;
 * - a kernel that waits for the host runs when the host has come; a host that waits for the device meanwhile is a
 *   deadlock, and ends the process;
 * - what is captured is not done; a graph repeats it in order, with what pinned memory holds by then;
 * - cp.async copies at once, or not before it is waited for.
 * What a kernel must not do (diverging barriers, misaligned copies, pointers to plain host memory) ends the process
 * with a message: there is nothing to go on with.
 *
 * Products of matrices: integers exactly; BF16 in double, rounded once to float.
 *
 * For tests only: one device, one process, any thread. CUDA_EMU_SEED in the environment is the first seed,
 * CUDA_EMU_LOSE_LAUNCH the first lose_launch: for those who test the program from outside. */
#ifndef TESTS_CUDA_EMU_H
#define TESTS_CUDA_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct emu_control {
    /* set by tests, while nothing runs */
    uint64_t seed;            /* emu_seed() */
    uint32_t calls, fail_at;  /* calls that may fail so far; the one that does, 0: none */
    bool lost;                /* every call fails; what was queued is not done */
    bool lose;                /* the failing call loses the device */
    uint64_t lose_launch;     /* so does the launch of this number; 0: none */
    bool impatient;           /* kernels that wait for the host run at once, without what they wait for */
    size_t held, most, limit; /* bytes; limit: of cudaMalloc, as if others had the rest, unasked; 0: none */
    /* counters */
    uint32_t n_blocks, n_pinned, n_events, n_streams, n_registered, n_graphs;
    uint64_t n_launches, n_copies, n_graph_launches; /* what a graph repeats is one of the last, and nothing else */
} emu_control;
extern emu_control emu;

/* Everything queued is done first. 0: all in order, as late as possible; 1: at once; others: any. */
void emu_seed(uint64_t seed);

#ifdef __cplusplus
}
#endif

#endif
