/* Heat maps in files. See heat_file.h. */
#include "store/heat_file.h"

#include "base/base.h"
#include "base/file.h"
#include "base/hash.h"
#include <string.h>

#define HEAD 32u
#define HASH 16u
#define MAX_BYTES (HEAD + 8 * KS_HEAT_MAX_UNITS + KS_HEAT_MAX_PATH + HASH)

static const char magic[8] = { 'K', 'S', 'H', 'E', 'A', 'T', 0, 1 };

struct head { /* as it lies in the file; x86-64 is little-endian */
    char magic[8];
    uint32_t n_layers, n_experts;
    uint64_t rows;
    uint32_t path_bytes, zero;
};
_Static_assert(sizeof(struct head) == HEAD, "no holes");

static int no_memory(ks_err *err)
{
    return ks_fail(err, KS_E_NOMEM, "out of memory for a heat map");
}

void ks_heat_map_fini(ks_heat_map *m)
{
    free(m->counts);
    free(m->model);
    *m = (ks_heat_map) { 0 };
}

/* ---- reading */

static int damaged(const char *name, const char *why, ks_err *err)
{
    return ks_fail(err, KS_E_FORMAT, "the heat map '%.512s' is damaged: %s", name, why);
}

static int check_head(const char *name, const struct head *h, size_t n, size_t *ret_units, ks_err *err)
{
    if (n < HEAD + HASH) return damaged(name, "it is too short", err);
    if (memcmp(h->magic, magic, sizeof magic - 1) != 0) return damaged(name, "it does not begin as one", err);
    if (h->magic[7] != magic[7])
        return ks_fail(err, KS_E_UNSUPPORTED, "the heat map '%.512s' has version %u, not %u", name,
                       (unsigned char)h->magic[7], (unsigned)magic[7]);
    if (!h->n_layers || !h->n_experts || h->n_layers > KS_HEAT_MAX_LAYERS || h->n_experts > KS_HEAT_MAX_EXPERTS)
        return damaged(name, "no model has so many layers or experts", err);
    *ret_units = (size_t)h->n_layers * h->n_experts;
    if (*ret_units > KS_HEAT_MAX_UNITS || h->path_bytes > KS_HEAT_MAX_PATH || h->zero ||
        n != HEAD + 8 * *ret_units + h->path_bytes + HASH)
        return damaged(name, "its size is not what it says", err);
    return 0;
}

/* The hash holds: what is wrong now was written so. */
static int check_counts(const char *name, const ks_heat_map *m, size_t units, ks_err *err)
{
    if (!m->rows || m->rows > UINT64_MAX / KS_HEAT_MAX_USES) return damaged(name, "its rows cannot be", err);
    for (size_t i = 0; i < units; i++)
        if (m->counts[i] > m->rows * KS_HEAT_MAX_USES) return damaged(name, "it counts more uses than rows", err);
    return 0;
}

int ks_heat_parse(const char *name, const void *p, size_t n, ks_heat_map *ret, ks_err *err)
{
    struct head h = { .rows = 0 };
    size_t units = 0;
    ks_hash128 said, is;
    memcpy(&h, p, KS_MIN(n, sizeof h));
    int rc = check_head(name, &h, n, &units, err);
    if (rc) return rc;
    memcpy(&said, (const char *)p + n - HASH, sizeof said);
    is = ks_hash(p, n - HASH);
    if (said.lo != is.lo || said.hi != is.hi) return damaged(name, "its hash does not fit", err);
    ks_heat_map m = { h.n_layers, h.n_experts, h.rows, ks_calloc(units, sizeof *m.counts),
                      ks_calloc(h.path_bytes + 1, 1) };
    if (!m.counts || !m.model) {
        ks_heat_map_fini(&m);
        return no_memory(err);
    }
    memcpy(m.counts, (const char *)p + HEAD, 8 * units);
    memcpy(m.model, (const char *)p + HEAD + 8 * units, h.path_bytes);
    rc = check_counts(name, &m, units, err);
    if (rc)
        ks_heat_map_fini(&m);
    else
        *ret = m;
    return rc;
}

int ks_heat_read(const char *path, ks_heat_map *ret, ks_err *err)
{
    char *text = NULL;
    size_t n = 0;
    if (!ks_file_exists(path)) return ks_fail(err, KS_E_NOTFOUND, "there is no heat map '%s'", path);
    int rc = ks_file_read(path, MAX_BYTES, &text, &n, err);
    if (!rc) rc = ks_heat_parse(path, text, n, ret, err);
    free(text);
    return rc;
}

/* ---- writing */

static int make_folder(const char *path, ks_err *err)
{
    char *dir = ks_strdup(path), *slash = dir ? strrchr(dir, '/') : NULL;
    if (!dir) return no_memory(err);
    if (slash) *slash = 0;
    int rc = slash && slash != dir ? ks_mkdirs(dir, err) : 0;
    free(dir);
    return rc;
}

int ks_heat_write(const char *path, const ks_heat_map *m, ks_err *err)
{
    struct head h = { .n_layers = m->n_layers, .n_experts = m->n_experts, .rows = m->rows };
    size_t units = (size_t)m->n_layers * m->n_experts, n_path = m->model ? strlen(m->model) : 0;
    h.path_bytes = n_path <= KS_HEAT_MAX_PATH ? (uint32_t)n_path : 0;
    memcpy(h.magic, magic, sizeof magic);
    size_t n = HEAD + 8 * units + h.path_bytes;
    char *p = malloc(n + HASH);
    if (!p) return no_memory(err);
    memcpy(p, &h, HEAD);
    memcpy(p + HEAD, m->counts, 8 * units);
    if (h.path_bytes) memcpy(p + HEAD + 8 * units, m->model, h.path_bytes);
    ks_hash128 hash = ks_hash(p, n);
    memcpy(p + n, &hash, sizeof hash);
    int rc = make_folder(path, err);
    if (!rc) rc = ks_file_write(path, p, n + HASH, err);
    free(p);
    return rc;
}

/* ---- where */

int ks_heat_dir(char **ret, ks_err *err)
{
    char *home = ks_home(err);
    if (!home) return err && err->code ? err->code : KS_E_CONFIG;
    *ret = ks_path_join(home, "heat");
    free(home);
    return *ret ? 0 : no_memory(err);
}

int ks_heat_path(const char *key, char **ret, ks_err *err)
{
    char *dir = NULL, name[64];
    int rc = ks_heat_dir(&dir, err);
    if (rc) return rc;
    (void)snprintf(name, sizeof name, "%.33s.heat", key);
    *ret = ks_path_join(dir, name);
    free(dir);
    return *ret ? 0 : no_memory(err);
}
