/* The device code dressed as kernel rows of the CPU: each call copies its arguments to the GPU, launches, and copies
 * the units it was asked for back. So the suite that every kernel plugin passes is run on the GPU, too. Slow. */
#ifndef TESTS_CUDA_ROWS_ON_GPU_H
#define TESTS_CUDA_ROWS_ON_GPU_H

#include <krasis/kernels.h>

/* 0, or -1 with the reason: there is no GPU here. */
int gpu_rows_open(char *why, size_t cap);
void gpu_rows_close(void);
/* From now on products of many rows are those of warpgroups, on so many multiprocessors; 0: of warps. -1: they are not
 * there. */
int gpu_rows_by_warpgroups(uint32_t blocks);
/* NULL: there is no such row. */
const ks_kernel *gpu_row(uint32_t op, uint32_t wtype);
/* The first CUDA error since the last question, "" if there was none. */
const char *gpu_rows_error(void);

#endif
