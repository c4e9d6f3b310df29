/* Inside of the emulator: what its files share. All under one lock, which runtime.c holds. */
#ifndef TESTS_CUDA_EMU_IMPL_H
#define TESTS_CUDA_EMU_IMPL_H

#include "emu.h"
#include <cuda_runtime_api.h>

#define EMU_SHARED_MAX (227u << 10) /* of a block, if asked for; 48 KiB without */
#define EMU_THREADS_MAX 1024u
#define EMU_SMS 16

typedef struct emu_dim {
    uint32_t x, y, z;
} emu_dim;

typedef struct emu_uint3 {
    unsigned int x, y, z;
} emu_uint3;
extern emu_uint3 emu_thread_idx;

/* A kernel with its arguments, as queued. The arguments follow. */
typedef struct emu_grid {
    const char *name;
    const void *kernel;
    void (*run)(void *args);   /* one thread's work */
    bool (*ready)(void *args); /* the host has done what it waits for; NULL: it does not wait */
    void *args;
    emu_dim grid, block;
    size_t shared;
} emu_grid;

/* block.c */
void emu_run_grid(const emu_grid *g);
/* Ends the process. Inside a kernel it says which thread. */
void emu_fault(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Copies and products that run beside their thread are done when they are waited for, not before. */
bool emu_late(void);
const uint8_t *emu_shared_at(uint32_t address); /* what emu_shared_address() gave */

/* warp.c */
float emu_from_bf16(uint16_t h);
float emu_from_f16(uint16_t h);

/* wgmma.c: around each block */
void emu_wg_begin(void);
void emu_wg_end(void);

/* memory.c */
void emu_memory_open(void);                      /* kernels and copies may touch device memory */
void emu_memory_close(void);                     /* nobody may, from some time on */
void emu_memory_shut(void);                      /* from now on */
bool emu_is_device(const void *p, size_t bytes); /* all of it in one allocation */
bool emu_is_pinned(const void *p, size_t bytes);
bool emu_touches_device(const void *p);
/* Before anything else than a memset of a new block: what is new holds garbage. */
void emu_spoil(void);
/* True: the block was new and its pages are zero again. */
bool emu_clear_new(void *p, size_t bytes);

/* runtime.c */
uint64_t emu_random(void);
void emu_lock(void);
void emu_unlock(void);
cudaError_t emu_may_fail(cudaError_t how);
void emu_finish_all(void);

#endif
