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

/* Pseudo-random numbers: splitmix64 (Steele, Lea, Flood 2014). Advances *state. */
static inline uint64_t ks_splitmix64(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Incremental form; the result equals ks_hash over all pieces in order. */
typedef struct ks_hasher ks_hasher;
ks_hasher *ks_hasher_new(void); /* NULL: out of memory */
void ks_hasher_reset(ks_hasher *h);
void ks_hasher_add(ks_hasher *h, const void *p, size_t n);
ks_hash128 ks_hasher_end(const ks_hasher *h);
void ks_hasher_free(ks_hasher *h);
void ks_hash_hex(ks_hash128 h, char dst[33]);

#endif
