/* What the tests of the store share: folders, small checkpoints with known values, and T16 by its definition. */
#ifndef TESTS_STORE_UTIL_H
#define TESTS_STORE_UTIL_H

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */
#include "base/base.h"
#include "base/file.h"
#include "base/num.h"
#include "store/store.h"
#include "support/st_write.h"

/* Fails the test with the error's text. */
#define assert_ok(rc, err)                                   \
    do {                                                     \
        if ((rc) != 0) fail_msg("%d: %s", (rc), (err)->msg); \
    } while (0)
#define assert_contains(text, part)                                                   \
    do {                                                                              \
        if (!strstr((text), (part))) fail_msg("'%s' is not in '%s'", (part), (text)); \
    } while (0)

/* Empty, below the test's own working folder. Static text, good until the next call with the same name. */
void util_fresh_dir(const char *dir);
void util_path(char dst[512], const char *dir, const char *name);

/* A registry with the safetensors plugin linked in, chosen. */
ks_registry *util_registry(void);
/* One for all tests of a group: its setup and teardown. */
extern ks_registry *registry;
int util_setup(void **state);
int util_teardown(void **state);
ks_ckpt *util_ckpt(ks_registry *r, const char *dir);

/* A deterministic number in (-1, 1) that BF16 holds exactly, never 0. */
float util_value(const char *name, uint64_t i);
/* A tensor of such numbers as BF16 or F32 ("dtype"); free data with free(). */
ks_st_tensor util_tensor(const char *name, const char *dtype, uint32_t rank, uint64_t a, uint64_t b, uint64_t c);
void util_write(const char *dir, const char *file, ks_st_tensor *t, size_t n); /* frees the data */

/* Element (row, k) of a stored matrix, plainly from the text of types.h. Padding included. */
float util_get(const ks_weight *w, uint32_t mat, uint32_t row, uint32_t k);

/* Opens a store with no cache and no pool. */
ks_store *util_store(ks_ckpt *c, const ks_wspec *s, uint32_t n, uint32_t type, ks_weight *w);

#endif
