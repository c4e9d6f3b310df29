/* XXH3 behind our names; no type of xxhash crosses the header. [any] */
#include "base/hash.h"
#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

/* The state itself is opaque; the wrapper only gives it our name. */
static XXH3_state_t *state_of(ks_hasher *h)
{
    return (XXH3_state_t *)h;
}

uint64_t ks_hash64(const void *p, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(p, n, seed);
}

static ks_hash128 of(XXH128_hash_t h)
{
    return (ks_hash128) { .lo = h.low64, .hi = h.high64 };
}

ks_hash128 ks_hash(const void *p, size_t n)
{
    return of(XXH3_128bits(p, n));
}

ks_hasher *ks_hasher_new(void)
{
    ks_hasher *h = (ks_hasher *)XXH3_createState();
    if (h) ks_hasher_reset(h);
    return h;
}

void ks_hasher_reset(ks_hasher *h)
{
    (void)XXH3_128bits_reset(state_of(h)); /* fails for NULL only */
}

void ks_hasher_add(ks_hasher *h, const void *p, size_t n)
{
    if (n) (void)XXH3_128bits_update(state_of(h), p, n); /* fails for NULL only */
}

ks_hash128 ks_hasher_end(const ks_hasher *h)
{
    return of(XXH3_128bits_digest((const XXH3_state_t *)h));
}

void ks_hasher_free(ks_hasher *h)
{
    (void)XXH3_freeState(state_of(h));
}

void ks_hash_hex(ks_hash128 h, char dst[33])
{
    (void)snprintf(dst, 33, "%016" PRIx64 "%016" PRIx64, h.hi, h.lo);
}
