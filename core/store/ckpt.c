/* Checkpoints: finds the files, opens each through the loader that knows it, merges their tensors. */
#include "store/ckpt.h"
#include "base/base.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/progress.h"
#include "store/index.h"
#include "store/synth.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_FILE "model.safetensors.index.json"
#define SINGLE_FILE "model.safetensors"
#define INDEX_MAX ((size_t)256 << 20) /* the largest known has 15 MB */
#define SAMPLE_BYTES 4096u
#define SAMPLES 64u /* a shard */

typedef struct shard {
    char *path;
    const char *name; /* within path */
    const ks_loader_iface *io;
    void *file;
    uint64_t bytes;
    int64_t mtime_ns;
} shard;

typedef struct entry {
    ks_tensor t;     /* first: a ks_tensor pointer of ours is an entry pointer */
    uint64_t number; /* in its shard's file */
    uint32_t shard;
} entry;

struct ks_ckpt {
    char *dir;
    shard *shards;
    uint32_t n_shards;
    entry *entries;
    size_t n, cap;
    uint32_t *table; /* open addressing: entry + 1, 0 free; a power of two, at most half full */
    size_t table_n;
    uint64_t seed; /* of the table's hash: names cannot be chosen to collide */
};

/* ---- lookup */

static uint32_t *slot_of(const ks_ckpt *c, const char *name)
{
    size_t i = ks_hash64(name, strlen(name), c->seed) & (c->table_n - 1);
    while (c->table[i] != 0 && strcmp(c->entries[c->table[i] - 1].t.name, name) != 0) i = (i + 1) & (c->table_n - 1);
    return &c->table[i];
}

static int build_table(ks_ckpt *c, const char *path, ks_err *err)
{
    c->table_n = 16;
    while (c->table_n < c->n * 2) c->table_n *= 2;
    c->table = ks_calloc(c->table_n, sizeof *c->table);
    if (!c->table) return ks_fail(err, KS_E_NOMEM, "'%s': out of memory", path);
    c->seed = (uint64_t)(uintptr_t)c->table;
    for (size_t i = 0; i < c->n; i++) {
        uint32_t *s = slot_of(c, c->entries[i].t.name);
        if (*s != 0)
            return ks_fail(err, KS_E_FORMAT, "tensor '%s' is in '%s' and in '%s'", c->entries[i].t.name,
                           c->shards[c->entries[*s - 1].shard].name, c->shards[c->entries[i].shard].name);
        *s = (uint32_t)i + 1;
    }
    return 0;
}

/* ---- opening */

/* What a loader says is held to the contract before anybody computes with it. */
static int check_tensor(const shard *s, const ks_tensor *t, ks_err *err)
{
    uint64_t bits = ks_type_bits(t->type);
    if (!t->name || t->rank > KS_MAX_RANK)
        return ks_fail(err, KS_E_INTERNAL, "'%s': its loader gave a tensor without a name, or of rank %" PRIu32,
                       s->path, t->rank);
    if (bits == 0) return 0; /* a type that we do not know has a size that we cannot check, and is never read */
    for (uint32_t d = 0; d < t->rank; d++)
        if (__builtin_mul_overflow(bits, t->shape[d], &bits))
            return ks_fail(err, KS_E_LIMIT, "'%s': the shape of tensor '%s' overflows", s->path, t->name);
    if (bits / 8 != t->bytes || bits % 8 != 0)
        return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s' has %" PRIu64 " bytes, its shape needs %" PRIu64, s->path,
                       t->name, t->bytes, bits / 8);
    return 0;
}

static bool has_io(const ks_loader_iface *io)
{
    return io && KS_HAS(io, read) && io->open && io->close && io->tensor && io->read;
}

static int open_shard(ks_registry *r, const char *dir, const char *name, shard *s, ks_err *err)
{
    struct stat st;
    s->path = dir ? ks_path_join(dir, name) : ks_strdup(name);
    if (!s->path) return ks_fail(err, KS_E_NOMEM, "'%s': out of memory", name);
    const char *slash = strrchr(s->path, '/');
    s->name = slash ? slash + 1 : s->path;
    if (stat(s->path, &st) != 0)
        return errno == ENOENT ? ks_fail(err, KS_E_NOTFOUND, "'%s' is missing; download the model again", s->path)
                               : ks_fail(err, KS_E_IO, "cannot read '%s': %s", s->path, strerror(errno));
    s->bytes = (uint64_t)st.st_size;
    s->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    ks_plugin_entry *loader;
    int rc = ks_registry_loader(r, s->path, &loader, err);
    if (rc != 0) return rc;
    const ks_loader_iface *io = loader->desc.iface;
    if (!has_io(io)) return ks_fail(err, KS_E_INTERNAL, "loader '%s' lacks open, close, tensor or read", loader->name);
    rc = io->open(loader->self, s->path, &s->file, err);
    if (rc == 0) s->io = io;
    return rc;
}

static int add_tensors(ks_ckpt *c, uint32_t number, ks_err *err)
{
    shard *s = &c->shards[number];
    for (uint64_t i = 0;; i++) {
        ks_tensor t = { .size = sizeof t };
        int rc = s->io->tensor(s->file, i, &t, NULL);
        if (rc == KS_E_NOTFOUND) return 0;
        if (rc != 0) return s->io->tensor(s->file, i, &t, err);
        rc = check_tensor(s, &t, err);
        if (rc != 0) return rc;
        if (c->n == c->cap) {
            size_t cap = c->cap ? c->cap * 2 : 1024;
            entry *grown = cap < UINT32_MAX ? realloc(c->entries, cap * sizeof *grown) : NULL;
            if (!grown) return ks_fail(err, KS_E_NOMEM, "'%s': out of memory for %zu tensors", s->path, cap);
            c->entries = grown;
            c->cap = cap;
        }
        c->entries[c->n++] = (entry) { .t = t, .number = i, .shard = number };
    }
}

static int open_single(ks_ckpt *c, ks_registry *r, const char *dir, const char *name, ks_err *err)
{
    c->shards = ks_calloc(1, sizeof *c->shards);
    if (!c->shards) return ks_fail(err, KS_E_NOMEM, "'%s': out of memory", name);
    c->n_shards = 1;
    int rc = open_shard(r, dir, name, &c->shards[0], err);
    if (rc == 0) rc = add_tensors(c, 0, err);
    return rc != 0 ? rc : build_table(c, c->shards[0].path, err);
}

static int entry_of(const void *key, const void *e)
{
    return strcmp(key, ((const ks_index_entry *)e)->tensor);
}

/* Keeps what the index names; a tensor that lies in a shard unnamed, or in another one, is not part of the model. */
static void keep_indexed(ks_ckpt *c, const ks_index *x)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n; i++) {
        const ks_index_entry *e = bsearch(c->entries[i].t.name, x->entries, x->n_entries, sizeof *x->entries, entry_of);
        if (e && e->shard == c->entries[i].shard) c->entries[n++] = c->entries[i];
    }
    c->n = n;
}

static int open_indexed(ks_ckpt *c, ks_registry *r, const char *dir, const char *index_path, ks_err *err)
{
    char *text = NULL;
    size_t n = 0;
    ks_index x = { .n_entries = 0 };
    int rc = ks_file_read(index_path, INDEX_MAX, &text, &n, err);
    if (rc == 0) rc = ks__index_parse(index_path, text, n, &x, err);
    if (rc != 0) goto out;
    c->shards = ks_calloc(x.n_shards, sizeof *c->shards);
    if (!c->shards) {
        rc = ks_fail(err, KS_E_NOMEM, "'%s': out of memory", index_path);
        goto out;
    }
    for (; c->n_shards < x.n_shards && rc == 0; c->n_shards++) {
        rc = open_shard(r, dir, x.shards[c->n_shards], &c->shards[c->n_shards], err);
        if (rc == 0) rc = add_tensors(c, c->n_shards, err);
    }
    if (rc != 0) goto out;
    keep_indexed(c, &x);
    rc = build_table(c, index_path, err);
    for (size_t i = 0; i < x.n_entries && rc == 0; i++)
        if (!ks_ckpt_find(c, x.entries[i].tensor))
            rc =
                ks_fail(err, KS_E_FORMAT, "tensor '%s' is not in '%s', although '%s' says so; download the model again",
                        x.entries[i].tensor, x.shards[x.entries[i].shard], index_path);
out:
    ks__index_fini(&x);
    free(text);
    return rc;
}

static int open_dir(ks_ckpt *c, ks_registry *r, const char *dir, ks_err *err)
{
    char *index = ks_path_join(dir, INDEX_FILE), *single = ks_path_join(dir, SINGLE_FILE);
    char *synth = ks_path_join(dir, KS_SYNTH_FILE);
    int rc;
    if (!index || !single || !synth)
        rc = ks_fail(err, KS_E_NOMEM, "'%s': out of memory", dir);
    else if (ks_file_exists(index))
        rc = open_indexed(c, r, dir, index, err);
    else if (ks_file_exists(single))
        rc = open_single(c, r, dir, SINGLE_FILE, err);
    else if (ks_file_exists(synth))
        rc = open_single(c, r, dir, KS_SYNTH_FILE, err);
    else
        rc = ks_fail(
            err, KS_E_NOTFOUND,
            "'%s' holds neither " INDEX_FILE " nor " SINGLE_FILE "; give a model's directory or one weight file", dir);
    free(index);
    free(single);
    free(synth);
    return rc;
}

static char *parent_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return ks_strdup(".");
    return slash == path ? ks_strdup("/") : strndup(path, (size_t)(slash - path));
}

int ks_ckpt_open(ks_registry *r, const char *path, ks_ckpt **ret, ks_err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return ks_fail(err, errno == ENOENT ? KS_E_NOTFOUND : KS_E_IO, "cannot open the model '%s': %s", path,
                       strerror(errno));
    ks_ckpt *c = ks_calloc(1, sizeof *c);
    bool is_dir = S_ISDIR(st.st_mode);
    if (c) c->dir = is_dir ? ks_strdup(path) : parent_of(path);
    if (!c || !c->dir) {
        ks_ckpt_close(c);
        return ks_fail(err, KS_E_NOMEM, "'%s': out of memory", path);
    }
    int rc = is_dir ? open_dir(c, r, path, err) : open_single(c, r, NULL, path, err);
    if (rc != 0) {
        ks_ckpt_close(c);
        return rc;
    }
    *ret = c;
    return 0;
}

void ks_ckpt_close(ks_ckpt *c)
{
    if (!c) return;
    for (uint32_t i = 0; i < c->n_shards; i++) {
        if (c->shards[i].io) c->shards[i].io->close(c->shards[i].file);
        free(c->shards[i].path);
    }
    free(c->shards);
    free(c->entries);
    free(c->table);
    free(c->dir);
    free(c);
}

/* ---- use */

const char *ks_ckpt_dir(const ks_ckpt *c)
{
    return c->dir;
}

uint64_t ks_ckpt_count(const ks_ckpt *c)
{
    return c->n;
}

const ks_tensor *ks_ckpt_at(const ks_ckpt *c, uint64_t i)
{
    return i < c->n ? &c->entries[i].t : NULL;
}

const ks_tensor *ks_ckpt_find(const ks_ckpt *c, const char *name)
{
    uint32_t e = *slot_of(c, name);
    return e ? &c->entries[e - 1].t : NULL;
}

uint64_t ks_ckpt_index(const ks_ckpt *c, const ks_tensor *t)
{
    return (uint64_t)((const entry *)t - c->entries);
}

int ks_ckpt_read(const ks_ckpt *c, const ks_tensor *t, uint64_t off, void *dst, size_t bytes, ks_err *err)
{
    const entry *e = (const entry *)t;
    const shard *s = &c->shards[e->shard];
    if (off > t->bytes || bytes > t->bytes - off)
        return ks_fail(err, KS_E_INVAL, "tensor '%s' has %" PRIu64 " bytes, wanted are %zu from %" PRIu64, t->name,
                       t->bytes, bytes, off);
    return s->io->read(s->file, e->number, off, dst, bytes, err);
}

int ks_ckpt_meta(const ks_ckpt *c, const char *key, uint64_t index, ks_value *ret, ks_err *err)
{
    const shard *s = &c->shards[0];
    if (!KS_HAS(s->io, meta) || !s->io->meta)
        return ks_fail(err, KS_E_NOTFOUND, "'%s' has no metadata '%s'", s->path, key);
    return s->io->meta(s->file, key, index, ret, err);
}

uint64_t ks_ckpt_bytes(const ks_ckpt *c)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->n_shards; i++) sum += c->shards[i].bytes; /* of files: no overflow */
    return sum;
}

void ks_ckpt_forget_pages(const ks_ckpt *c)
{
    for (uint32_t i = 0; i < c->n_shards; i++) { /* the pages belong to the file, whoever opens it */
        int fd = open(c->shards[i].path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        (void)close(fd); /* nothing was written */
    }
}

/* ---- identity */

uint64_t ks_ckpt_stamp(const ks_ckpt *c)
{
    uint64_t h = c->n_shards;
    for (uint32_t i = 0; i < c->n_shards; i++) {
        const shard *s = &c->shards[i];
        h = ks_hash64(s->name, strlen(s->name), h);
        h = ks_hash64(&s->bytes, sizeof s->bytes, h);
        h = ks_hash64(&s->mtime_ns, sizeof s->mtime_ns, h);
    }
    return h;
}

static int hash_range(ks_hasher *h, const shard *s, int fd, uint64_t off, uint64_t n, uint8_t *buf, size_t cap,
                      ks_err *err)
{
    while (n > 0) {
        ssize_t got = pread(fd, buf, (size_t)KS_MIN(n, (uint64_t)cap), (off_t)off);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", s->path, strerror(errno));
        if (got == 0) return ks_fail(err, KS_E_IO, "'%s' shrank while it was being read", s->path);
        ks_hasher_add(h, buf, (size_t)got);
        off += (uint64_t)got;
        n -= (uint64_t)got;
    }
    return 0;
}

/* Pages at equal distances, the first and the last among them. */
static int hash_samples(ks_hasher *h, const shard *s, int fd, uint8_t *buf, size_t cap, ks_err *err)
{
    uint64_t last = (s->bytes - 1) / SAMPLE_BYTES, prev = UINT64_MAX;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        uint64_t page = last / (SAMPLES - 1) * i + last % (SAMPLES - 1) * i / (SAMPLES - 1);
        if (page == prev) continue;
        prev = page;
        uint64_t off = page * SAMPLE_BYTES;
        int rc = hash_range(h, s, fd, off, KS_MIN(s->bytes - off, (uint64_t)SAMPLE_BYTES), buf, cap, err);
        if (rc != 0) return rc;
    }
    return 0;
}

static int hash_shard(ks_hasher *h, const shard *s, bool full, uint8_t *buf, size_t cap, ks_err *err)
{
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ks_fail(err, KS_E_IO, "cannot open '%s': %s", s->path, strerror(errno));
    ks_hasher_add(h, s->name, strlen(s->name) + 1);
    ks_hasher_add(h, &s->bytes, sizeof s->bytes);
    int rc = 0;
    if (s->bytes != 0)
        rc = full ? hash_range(h, s, fd, 0, s->bytes, buf, cap, err) : hash_samples(h, s, fd, buf, cap, err);
    (void)close(fd); /* nothing was written */
    return rc;
}

int ks_ckpt_fingerprint(const ks_ckpt *c, bool full, char ret_hex[33], ks_err *err)
{
    const size_t cap = full ? (size_t)4 << 20 : SAMPLE_BYTES;
    ks_hasher *h = ks_hasher_new();
    uint8_t *buf = malloc(cap);
    int rc = h && buf ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for the fingerprint of '%s'", c->dir);
    ks_progress *bar = rc == 0 && full ? ks_progress_begin("hashing the model", ks_ckpt_bytes(c), "B") : NULL;
    for (size_t i = 0; i < c->n && rc == 0; i++) { /* the headers, whatever the format */
        const ks_tensor *t = &c->entries[i].t;
        ks_hasher_add(h, t->name, strlen(t->name) + 1);
        ks_hasher_add(h, &t->type, sizeof t->type);
        ks_hasher_add(h, t->shape, t->rank * sizeof t->shape[0]);
        ks_hasher_add(h, &t->bytes, sizeof t->bytes);
    }
    for (uint32_t i = 0; i < c->n_shards && rc == 0; i++) {
        rc = hash_shard(h, &c->shards[i], full, buf, cap, err);
        ks_progress_add(bar, c->shards[i].bytes);
    }
    ks_progress_end(bar);
    if (rc == 0) ks_hash_hex(ks_hasher_end(h), ret_hex);
    free(buf);
    ks_hasher_free(h);
    return rc;
}
