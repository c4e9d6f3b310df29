/* Launches of emu_kernels.cu. */
#ifndef TESTS_CUDA_EMU_KERNELS_H
#define TESTS_CUDA_EMU_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

void emu_scale(float *x, uint32_t n, float by, cudaStream_t s);
void emu_turn(uint32_t *x, bool racy, cudaStream_t s);
void emu_lanes(uint32_t *out, cudaStream_t s);
void emu_product(const int8_t *a, const int8_t *b, int32_t *c, cudaStream_t s);
void emu_copy(const uint32_t *from, uint32_t *to, bool early, cudaStream_t s);

enum {
    EMU_RIGHT,
    EMU_LANES_PART,
    EMU_BARRIERS_PART,
    EMU_TOO_FAR,
    EMU_SHARED_TOO_FAR,
    EMU_NOT_ALIGNED,
};
/* x: 64 floats; n: the index of what is too far. */
void emu_do_wrong(uint32_t how, float *x, uint32_t n, cudaStream_t s);
void emu_too_much_shared(cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
