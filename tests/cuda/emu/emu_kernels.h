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
enum { EMU_WG_PLAIN, EMU_WG_ROWS_ALONG_K, EMU_WG_ROWS_ALONG_N };
void emu_wg_product(const uint16_t *a, const uint16_t *b, float *c, uint32_t n, bool bf16, uint32_t how, bool early,
                    cudaStream_t s);
void emu_wg_product_s8(const int8_t *a, const int8_t *b, int32_t *c, uint32_t n, uint32_t how, bool early,
                       cudaStream_t s);
void emu_hand_over(uint32_t *out, uint32_t n, bool early, cudaStream_t s); /* (n, 64) */

enum {
    EMU_RIGHT,
    EMU_LANES_PART,
    EMU_BARRIERS_PART,
    EMU_TOO_FAR,
    EMU_SHARED_TOO_FAR,
    EMU_NOT_ALIGNED,
    EMU_PHASE_UNENDED,
};
/* x: 64 floats; n: the index of what is too far. */
void emu_do_wrong(uint32_t how, float *x, uint32_t n, cudaStream_t s);
void emu_too_much_shared(cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
