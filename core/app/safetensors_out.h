/* Writes F32 tensors as one safetensors file, for the inspection commands. [main] */
#ifndef KS_APP_SAFETENSORS_OUT_H
#define KS_APP_SAFETENSORS_OUT_H

#include <krasis/error.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ks_out_tensor {
    const char *name;
    const float *data;
    uint32_t rank;
    uint64_t shape[4];
} ks_out_tensor;

/* To a temporary name, synced, renamed: never a torn file. */
KS_MUST_CHECK int ks_safetensors_write(const char *path, const ks_out_tensor *t, uint32_t n, ks_err *err);

#endif
