/* A CUDA runtime made of the host's memory, for the plugin's host side: copies are done at once, launches compute
 * nothing but a routing in which all experts are asked for alike. One call of choice fails. */
#ifndef TESTS_CUDA_FAKE_CUDA_H
#define TESTS_CUDA_FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

typedef struct fake_cuda {
    uint32_t calls, fail_at;  /* calls that may fail so far; the one that does, 0: none */
    size_t held, most, limit; /* bytes of device memory; limit 0: plenty */
    uint32_t n_blocks, n_pinned, n_events, n_streams, n_registered;
} fake_cuda;
extern fake_cuda fake;

#endif
