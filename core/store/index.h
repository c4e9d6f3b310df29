/* model.safetensors.index.json: which shard holds which tensor. Pure parsing, for ckpt.c and the fuzzer. */
#ifndef KS_STORE_INDEX_H
#define KS_STORE_INDEX_H

#include <krasis/error.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ks_index_entry {
    const char *tensor;
    uint32_t shard; /* into shards */
} ks_index_entry;

typedef struct ks_index {
    ks_index_entry *entries; /* sorted by name, unique */
    size_t n_entries;
    const char **shards; /* sorted, unique, plain base names */
    uint32_t n_shards;
    char *mem; /* holds the names */
} ks_index;

/* Strict: exactly one weight_map, names unique, shard names without a path. `path` is for messages. */
KS_MUST_CHECK int ks__index_parse(const char *path, const char *text, size_t n, ks_index *ret, ks_err *err);
void ks__index_fini(ks_index *x); /* a zeroed one is fine */

#endif
