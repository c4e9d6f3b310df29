/* Writes safetensors files for tests: well-formed ones, and any bytes for hostile ones. Not thread-safe. */
#ifndef TESTS_SUPPORT_ST_WRITE_H
#define TESTS_SUPPORT_ST_WRITE_H

#include <krasis/error.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ks_st_tensor {
    const char *name, *dtype; /* "BF16" as the format spells it */
    uint32_t rank;
    uint64_t shape[8];
    const void *data;
    size_t bytes;
} ks_st_tensor;

/* Data in the order of the array, without gaps. */
KS_MUST_CHECK int ks_st_write(const char *path, const ks_st_tensor *t, size_t n, ks_err *err);
/* Any header text, then the data bytes as they are. */
KS_MUST_CHECK int ks_st_write_raw(const char *path, const char *header, size_t header_bytes, const void *data,
                                  size_t data_bytes, ks_err *err);

#endif
