/* 128-bit non-cryptographic hashes (XXH3) for fingerprints, tables and cache checks. */
#ifndef KS_BASE_HASH_H
#define KS_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct ks_hash128 {
    uint64_t lo, hi;
} ks_hash128;

uint64_t ks_hash64(const void *p, size_t n, uint64_t seed);
ks_hash128 ks_hash(const void *p, size_t n);

/* Incremental form; the result equals ks_hash over all pieces in order. */
typedef struct ks_hasher ks_hasher;
ks_hasher *ks_hasher_new(void); /* NULL: out of memory */
void ks_hasher_add(ks_hasher *h, const void *p, size_t n);
ks_hash128 ks_hasher_end(const ks_hasher *h);
void ks_hasher_free(ks_hasher *h);
void ks_hash_hex(ks_hash128 h, char dst[33]);

#endif
