/* Heat maps in files: how often each expert of a model was asked for, so that the next start knows which to keep near.
 *
 *   $KRASIS_HOME/heat/KEY.heat    KEY: the fingerprint of the model's files
 *
 *   0   8  "KSHEAT", a zero, the version 1
 *   8   4  layers            12  4  experts of a layer
 *   16  8  rows counted      24  4  bytes of the model's path      28  4  zero
 *   32  8 * layers * experts: uses by layer and expert, in the unit of the rows
 *       the path, without a NUL
 *       16  hash of all before it
 *
 * Little-endian. Written whole to another name and renamed. What is read is hostile until all of this holds. [main] */
#ifndef KS_STORE_HEAT_FILE_H
#define KS_STORE_HEAT_FILE_H

#include <krasis/error.h>
#include <stddef.h>
#include <stdint.h>

#define KS_HEAT_MAX_LAYERS 4096u /* of any model known, by far */
#define KS_HEAT_MAX_EXPERTS 65536u
#define KS_HEAT_MAX_UNITS ((size_t)1 << 22) /* 32 MiB */
#define KS_HEAT_MAX_PATH 4096u
#define KS_HEAT_MAX_USES 64u /* of one expert by one row: the banks of a layer */

typedef struct ks_heat_map {
    uint32_t n_layers, n_experts;
    uint64_t rows;
    uint64_t *counts; /* (n_layers, n_experts) */
    char *model;      /* path of the model, "" if unknown */
} ks_heat_map;

void ks_heat_map_fini(ks_heat_map *m); /* a zeroed one is fine */

/* KS_E_FORMAT: damaged. KS_E_UNSUPPORTED: of another version. `name` is for the message. */
KS_MUST_CHECK int ks_heat_parse(const char *name, const void *p, size_t n, ks_heat_map *ret, ks_err *err);
/* The same of a file. KS_E_NOTFOUND: there is none. */
KS_MUST_CHECK int ks_heat_read(const char *path, ks_heat_map *ret, ks_err *err);
/* Makes the folder if need be. */
KS_MUST_CHECK int ks_heat_write(const char *path, const ks_heat_map *m, ks_err *err);

/* $KRASIS_HOME/heat, and the file of a key in it; malloc'd. */
KS_MUST_CHECK int ks_heat_dir(char **ret, ks_err *err);
KS_MUST_CHECK int ks_heat_path(const char *key, char **ret, ks_err *err);

#endif
