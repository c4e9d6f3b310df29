/* A checkpoint whose numbers are a formula: tensors of any shape, to measure speed at real sizes where no real weights
 * are at hand. One small file, `model.synth`, lists them; ks_synth_plugin is a loader like any other and computes the
 * bytes when they are read, so everything above it (checks, quantization, cache) is what a real model gets.
 *
 * The numbers of a tensor depend on the seed, its name and its law alone. Reads are [any]. */
#ifndef KS_STORE_SYNTH_H
#define KS_STORE_SYNTH_H

#include "base/buf.h"
#include <krasis/loader.h>
#include <stdbool.h>

#define KS_SYNTH_FILE "model.synth"

/* BF16: normal numbers. Of other types: std 0: every byte is `mean`; else uniform bytes, of I32 nibbles whose mean
 * is 8. */
typedef struct ks_synth_tensor {
    const char *name;
    uint32_t type, rank;
    uint64_t shape[KS_MAX_RANK];
    float mean, std;
    /* Of each matrix (the last two dimensions): the first row is `row0`, the first column `col0`, or -zipf * ln(rank)
     * of the row over col0, ranks being a random order of the rows. */
    bool has_row0, has_col0;
    float row0, col0, zipf;
} ks_synth_tensor;

/* The text of a model.synth. */
KS_MUST_CHECK int ks_synth_write(const ks_synth_tensor *t, size_t n, uint64_t seed, ks_buf *dst, ks_err *err);

extern const ks_plugin ks_synth_plugin;

/* The loader on text in memory: for `krasis synth`, the tests and the fuzzer. `path` is for messages. */
typedef struct ks_synth ks_synth;
KS_MUST_CHECK int ks_synth_parse(const char *path, const char *text, size_t n, ks_synth **ret, ks_err *err);
void ks_synth_close(ks_synth *s); /* NULL is fine */
int ks_synth_tensor_at(const ks_synth *s, uint64_t i, ks_tensor *ret, ks_err *err);
int ks_synth_read(const ks_synth *s, uint64_t i, uint64_t off, void *dst, size_t bytes, ks_err *err);

#endif
