/* The cache file. Nothing in it is trusted: what can be computed is compared, the rest is hashed. */
#include "store/cache.h"
#include "base/base.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "KSWEIGHT"
#define VERSION 1u /* of the file format */
#define ALIGN_BYTES 4096u
#define STEP_BYTES ((size_t)256 << 10) /* between two of the system call and the second-level cache */
#define JOURNAL_TAG 0x4b534a31u        /* "KSJ1" */

typedef struct head {
    char magic[8];
    uint32_t version, n_weights, n_blocks, layout;
    uint64_t head_bytes, payload_off, payload_bytes, file_bytes;
    uint64_t key_lo, key_hi;
} head;

typedef struct record {
    uint32_t tag, index;
    ks_cache_block block;
    uint64_t check;
} record;

/* ---- all of n bytes, or an error */

static int write_at(int fd, const char *path, uint64_t off, const void *p, size_t n, ks_err *err)
{
    const uint8_t *src = p;
    while (n > 0) {
        ssize_t put = pwrite(fd, src, n, (off_t)off);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0)
            return ks_fail(err, KS_E_IO, "cannot write '%s': %s; the next start goes on from here", path,
                           strerror(errno));
        src += put;
        off += (uint64_t)put;
        n -= (size_t)put;
    }
    return 0;
}

static int read_at(int fd, const char *path, uint64_t off, void *p, size_t n, ks_err *err)
{
    uint8_t *dst = p;
    while (n > 0) {
        ssize_t got = pread(fd, dst, n, (off_t)off);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", path, strerror(errno));
        if (got == 0) return ks_fail(err, KS_E_FORMAT, "'%s' ends at byte %" PRIu64, path, off);
        dst += got;
        off += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

/* ---- names and head */

static char *name_of(const ks_cache *x, const char *tail)
{
    char hex[33], name[64];
    ks_hash_hex(x->key, hex);
    (void)snprintf(name, sizeof name, "%s%s", hex, tail); /* fits: 32 + 9 */
    return ks_path_join(x->dir, name);
}

/* The description of all weights: for people with a hex editor, and a second check beside the key. */
static int make_head(ks_cache *x, ks_err *err)
{
    const ks_wplan *p = x->plan;
    ks_buf b;
    head h = { .version = VERSION, .n_weights = p->n_weights, .n_blocks = p->n_blocks, .layout = KS_STORE_LAYOUT };
    ks_buf_init(&b, 0);
    ks_buf_add(&b, &h, sizeof h);
    for (uint32_t i = 0; i < p->n_weights; i++) {
        const ks_weight *w = &p->weights[i].w;
        ks_buf_printf(&b,
                      "%s %s layout %" PRIu32 " group %" PRIu32 " class %" PRIu32 " %" PRIu32 " x %" PRIu32
                      " x %" PRIu32 " at %" PRIu64 " stride %" PRIu64 "\n",
                      w->name, ks_type_name(w->type), w->layout, w->group, w->cls, w->n_mat, w->n_out, w->n_in,
                      p->weights[i].off, w->stride);
    }
    while (!b.failed && b.n % 8 != 0) ks_buf_addc(&b, '\n');
    x->head = ks_buf_take(&b, &x->head_bytes);
    ks_buf_fini(&b); /* holds something only if it failed */
    if (!x->head) return ks_fail(err, KS_E_NOMEM, "out of memory for the head of the weight cache");
    memcpy(h.magic, MAGIC, sizeof h.magic);
    h.head_bytes = x->head_bytes;
    h.payload_off = ks_align_up(x->head_bytes + p->n_blocks * sizeof *x->table + sizeof(ks_hash128), ALIGN_BYTES);
    h.payload_bytes = p->payload_bytes;
    h.file_bytes = h.payload_off + p->payload_bytes;
    h.key_lo = x->key.lo;
    h.key_hi = x->key.hi;
    memcpy(x->head, &h, sizeof h);
    x->payload_off = h.payload_off;
    x->file_bytes = h.file_bytes;
    return 0;
}

int ks__cache_dir(const char *dir, char **ret, ks_err *err)
{
    char *home = dir ? NULL : ks_home(err);
    if (!dir && !home) return err ? err->code : KS_E_NOTFOUND;
    *ret = dir ? ks_strdup(dir) : ks_path_join(home, "cache");
    free(home);
    return *ret ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for a path");
}

int ks__cache_init(ks_cache *x, const ks_wplan *p, const ks_ckpt *c, const char *dir, ks_err *err)
{
    struct {
        char fingerprint[33];
        char _pad[7];
        ks_hash128 settings;
    } identity = { .settings = p->settings };
    memset(x, 0, sizeof *x);
    x->fd = x->lock_fd = x->journal_fd = -1;
    x->plan = p;
    x->model_dir = ks_ckpt_dir(c);
    x->stamp = ks_ckpt_stamp(c);
    x->mu_ready = pthread_mutex_init(&x->mu, NULL) == 0;
    int rc = x->mu_ready ? ks_ckpt_fingerprint(c, false, identity.fingerprint, err)
                         : ks_fail(err, KS_E_NOMEM, "cannot make a mutex");
    if (rc == 0) rc = ks__cache_dir(dir, &x->dir, err);
    if (rc == 0) {
        x->key = ks_hash(&identity, sizeof identity);
        x->path = name_of(x, ".kw");
        x->source_path = name_of(x, ".source");
        x->part_path = name_of(x, ".part");
        x->journal_path = name_of(x, ".journal");
        x->lock_path = name_of(x, ".lock");
        x->table = ks_calloc((size_t)p->n_blocks + 1, sizeof *x->table);
        x->done = ks_calloc((size_t)p->n_blocks + 1, 1);
        if (!x->path || !x->source_path || !x->part_path || !x->journal_path || !x->lock_path || !x->table || !x->done)
            rc = ks_fail(err, KS_E_NOMEM, "out of memory for the weight cache");
    }
    if (rc == 0) rc = make_head(x, err);
    if (rc != 0) ks__cache_fini(x);
    return rc;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) (void)close(*fd); /* what mattered was fsync()ed */
    *fd = -1;
}

void ks__cache_fini(ks_cache *x)
{
    if (!x || !x->plan) return;
    close_fd(&x->fd);
    close_fd(&x->journal_fd);
    ks__cache_unlock_file(x->lock_path, x->lock_fd);
    if (x->mu_ready) (void)pthread_mutex_destroy(&x->mu);
    char *const texts[] = { x->dir, x->path, x->source_path, x->part_path, x->journal_path, x->lock_path, x->head };
    for (size_t i = 0; i < KS_COUNT(texts); i++) free(texts[i]);
    free(x->table);
    free(x->done);
    memset(x, 0, sizeof *x);
}

/* ---- reading */

static int check_file(ks_cache *x, ks_err *err)
{
    struct stat st;
    const size_t table_bytes = x->plan->n_blocks * sizeof *x->table;
    ks_hash128 want, has;
    if (fstat(x->fd, &st) != 0) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", x->path, strerror(errno));
    if ((uint64_t)st.st_size != x->file_bytes)
        return ks_fail(err, KS_E_FORMAT, "'%s' has %" PRId64 " bytes instead of %" PRIu64, x->path, (int64_t)st.st_size,
                       x->file_bytes);
    char *head_read = malloc(x->head_bytes);
    int rc = head_read ? read_at(x->fd, x->path, 0, head_read, x->head_bytes, err)
                       : ks_fail(err, KS_E_NOMEM, "out of memory for the head of the weight cache");
    if (rc == 0 && memcmp(head_read, x->head, x->head_bytes) != 0)
        rc = ks_fail(err, KS_E_FORMAT, "'%s': the head is damaged", x->path);
    free(head_read);
    if (rc == 0) rc = read_at(x->fd, x->path, x->head_bytes, x->table, table_bytes, err);
    if (rc == 0) rc = read_at(x->fd, x->path, x->head_bytes + table_bytes, &want, sizeof want, err);
    if (rc != 0) return rc;
    has = ks_hash(x->table, table_bytes);
    if (has.lo != want.lo || has.hi != want.hi)
        return ks_fail(err, KS_E_FORMAT, "'%s': the table of blocks is damaged", x->path);
    return 0;
}

int ks__cache_open(ks_cache *x, ks_err *err)
{
    close_fd(&x->fd);
    x->fd = open(x->path, O_RDONLY | O_CLOEXEC);
    if (x->fd < 0)
        return ks_fail(err, errno == ENOENT ? KS_E_NOTFOUND : KS_E_IO, "cannot open '%s': %s", x->path,
                       strerror(errno));
    return check_file(x, err);
}

static int inspect(int fd, const char *path, ks_err *err)
{
    struct stat st;
    head h;
    ks_hash128 want;
    if (fstat(fd, &st) != 0) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", path, strerror(errno));
    int rc = read_at(fd, path, 0, &h, sizeof h, err);
    if (rc != 0) return rc;
    if (memcmp(h.magic, MAGIC, sizeof h.magic) != 0) return ks_fail(err, KS_E_FORMAT, "'%s' holds no weights", path);
    if (h.version != VERSION || h.layout != KS_STORE_LAYOUT)
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "'%s' has version %" PRIu32 ", layout %" PRIu32 "; this program reads %u and %u", path,
                       h.version, h.layout, VERSION, KS_STORE_LAYOUT);
    const uint64_t size = (uint64_t)st.st_size, table_bytes = h.n_blocks * (uint64_t)sizeof(ks_cache_block);
    if (h.file_bytes != size || h.head_bytes > size || table_bytes + sizeof want > size - h.head_bytes)
        return ks_fail(err, KS_E_FORMAT, "'%s' has %" PRIu64 " bytes instead of %" PRIu64, path, size, h.file_bytes);
    ks_cache_block *table = ks_calloc((size_t)h.n_blocks + 1, sizeof *table);
    if (!table) return ks_fail(err, KS_E_NOMEM, "out of memory for the table of '%s'", path);
    rc = read_at(fd, path, h.head_bytes, table, table_bytes, err);
    if (rc == 0) rc = read_at(fd, path, h.head_bytes + table_bytes, &want, sizeof want, err);
    ks_hash128 has = ks_hash(table, table_bytes);
    free(table);
    if (rc == 0 && (has.lo != want.lo || has.hi != want.hi))
        rc = ks_fail(err, KS_E_FORMAT, "'%s': the table of blocks is damaged", path);
    return rc;
}

int ks__cache_inspect(const char *path, ks_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ks_fail(err, KS_E_IO, "cannot open '%s': %s", path, strerror(errno));
    int rc = inspect(fd, path, err);
    close_fd(&fd);
    return rc;
}

bool ks__cache_replaced(const ks_cache *x)
{
    struct stat now, seen;
    if (stat(x->path, &now) != 0) return false;
    return x->fd < 0 || fstat(x->fd, &seen) != 0 || seen.st_ino != now.st_ino || seen.st_dev != now.st_dev;
}

bool ks__cache_is_current(const ks_cache *x)
{
    char *text = NULL, want[17];
    size_t n = 0;
    (void)snprintf(want, sizeof want, "%016" PRIx64, x->stamp);
    if (!ks_file_exists(x->source_path) || ks_file_read(x->source_path, 1 << 16, &text, &n, NULL) != 0) return false;
    bool same = n >= 16 && memcmp(text, want, 16) == 0;
    free(text);
    return same;
}

int ks__cache_set_current(const ks_cache *x, ks_err *err)
{
    ks_buf b;
    ks_buf_init(&b, 0);
    char *whole = realpath(x->model_dir, NULL); /* for people, who look at it from elsewhere */
    ks_buf_printf(&b, "%016" PRIx64 "\n%s\n", x->stamp, whole ? whole : x->model_dir);
    free(whole);
    int rc = b.failed ? ks_fail(err, KS_E_NOMEM, "out of memory") : ks_file_write(x->source_path, b.p, b.n, err);
    ks_buf_fini(&b);
    return rc;
}

int ks__cache_read(const ks_cache *x, uint64_t off, void *dst, size_t n, ks_err *err)
{
    return read_at(x->fd, x->path, x->payload_off + off, dst, n, err);
}

static int check_hash(const ks_cache *x, uint32_t i, ks_hash128 h, ks_err *err)
{
    const ks_block *k = &x->plan->blocks[i];
    if (h.lo == x->table[i].lo && h.hi == x->table[i].hi) return 0;
    return ks_fail(err, KS_E_FORMAT, "'%s': the bytes from %" PRIu64 " to %" PRIu64 " (weight '%s') are damaged",
                   x->path, x->payload_off + k->off, x->payload_off + k->off + k->bytes - 1,
                   x->plan->weights[k->weight].w.name);
}

int ks__cache_check(const ks_cache *x, uint32_t i, const void *data, ks_err *err)
{
    return check_hash(x, i, ks_hash(data, x->plan->blocks[i].bytes), err);
}

void ks__cache_set_used(const ks_cache *x)
{
    (void)utimensat(AT_FDCWD, x->source_path, NULL, 0); /* a folder that is read-only stays as it is */
}

int ks__cache_get(const ks_cache *x, uint32_t i, void *dst, ks_hasher *h, ks_err *err)
{
    const ks_block *k = &x->plan->blocks[i];
    uint8_t *p = dst;
    ks_hasher_reset(h);
    for (size_t at = 0, n; at < k->bytes; at += n) { /* hashed while it is in the core's own cache */
        n = KS_MIN(STEP_BYTES, k->bytes - at);
        int rc = ks__cache_read(x, k->off + at, p + at, n, err);
        if (rc != 0) return rc;
        ks_hasher_add(h, p + at, n);
    }
    return check_hash(x, i, ks_hasher_end(h), err);
}

/* ---- building */

/* One try: 1 if the lock is ours, 0 if the file has been removed meanwhile, by whoever had it before. */
static int try_lock(const char *path, bool wait, int *ret_fd, ks_err *err)
{
    struct stat a, b;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644), failed = 0;
    if (fd < 0) return ks_fail(err, KS_E_IO, "cannot create '%s': %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        failed = errno;
        if (failed == EWOULDBLOCK && wait)
            ks_log(KS_LOG_INFO, "store", "another process builds the weights of this model, waiting");
        while (wait && failed && (failed == EWOULDBLOCK || failed == EINTR)) failed = flock(fd, LOCK_EX) ? errno : 0;
    }
    if (failed) {
        close_fd(&fd);
        return failed == EWOULDBLOCK ? ks_fail(err, KS_E_BUSY, "'%s': another process builds these weights", path)
                                     : ks_fail(err, KS_E_IO, "cannot lock '%s': %s", path, strerror(failed));
    }
    if (fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev) {
        *ret_fd = fd;
        return 1;
    }
    close_fd(&fd);
    return 0;
}

int ks__cache_lock_file(const char *path, bool wait, int *ret_fd, ks_err *err)
{
    int rc;
    do rc = try_lock(path, wait, ret_fd, err);
    while (rc == 0);
    return rc < 0 ? rc : 0;
}

void ks__cache_unlock_file(const char *path, int fd)
{
    if (fd < 0) return;
    (void)unlink(path); /* while it is locked: see try_lock. If it stays, it does no harm */
    (void)close(fd);    /* unlocks */
}

int ks__cache_lock(ks_cache *x, ks_err *err)
{
    int rc = ks_mkdirs(x->dir, err);
    return rc != 0 ? rc : ks__cache_lock_file(x->lock_path, true, &x->lock_fd, err);
}

static uint64_t check_of(const ks_cache *x, const record *r)
{
    return ks_hash64(r, offsetof(record, check), x->stamp ^ x->key.lo);
}

/* Whole, valid records from the start; a torn tail ends them. Returns the bytes that stand. */
static uint64_t read_journal(ks_cache *x)
{
    record r;
    uint64_t at = 0;
    while (read_at(x->journal_fd, x->journal_path, at, &r, sizeof r, NULL) == 0) {
        if (r.tag != JOURNAL_TAG || r.check != check_of(x, &r) || r.index >= x->plan->n_blocks) break;
        x->table[r.index] = r.block;
        x->done[r.index] = 1;
        at += sizeof r;
    }
    return at;
}

/* Says now what would otherwise be found out after an hour. */
static int reserve(ks_cache *x, ks_err *err)
{
    struct stat st;
    uint64_t free_bytes, has;
    int rc = ks_disk_free(x->dir, &free_bytes, err);
    if (rc != 0) return rc;
    if (fstat(x->fd, &st) != 0) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", x->part_path, strerror(errno));
    has = (uint64_t)st.st_blocks * 512;
    uint64_t need = x->file_bytes > has ? x->file_bytes - has : 0;
    int failed = need > free_bytes ? ENOSPC : 0;
    while (failed == 0 && fallocate(x->fd, 0, 0, (off_t)x->file_bytes) != 0) {
        if (errno == EINTR) continue;
        if (errno == EOPNOTSUPP && ftruncate(x->fd, (off_t)x->file_bytes) == 0) break;
        failed = errno;
    }
    if (failed == 0) return 0;
    return ks_fail(err, failed == ENOSPC ? KS_E_LIMIT : KS_E_IO,
                   "the weight cache needs %.3f GB in '%s', %.3f GB are free (%s): make room, or put it elsewhere by "
                   "KRASIS_HOME",
                   (double)need / 1e9, x->dir, (double)free_bytes / 1e9, strerror(failed));
}

static int remove_file(const char *path, ks_err *err)
{
    if (unlink(path) == 0 || errno == ENOENT) return 0;
    return ks_fail(err, KS_E_IO, "cannot remove '%s': %s", path, strerror(errno));
}

int ks__cache_begin(ks_cache *x, bool fresh, ks_err *err)
{
    close_fd(&x->fd);
    memset(x->done, 0, x->plan->n_blocks);
    int rc = remove_file(x->path, err); /* whatever is there was refused: its space is needed */
    if (rc == 0 && fresh) rc = remove_file(x->part_path, err);
    if (rc == 0 && fresh) rc = remove_file(x->journal_path, err);
    if (rc != 0) return rc;
    x->fd = open(x->part_path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (x->fd < 0) return ks_fail(err, KS_E_IO, "cannot create '%s': %s", x->part_path, strerror(errno));
    rc = reserve(x, err);
    if (rc != 0) { /* nothing was begun: leave no allocated file behind on a full disk */
        (void)remove_file(x->part_path, NULL);
        return rc;
    }
    x->journal_fd = open(x->journal_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (x->journal_fd < 0 || ftruncate(x->journal_fd, (off_t)read_journal(x)) != 0)
        return ks_fail(err, KS_E_IO, "cannot write '%s': %s", x->journal_path, strerror(errno));
    return 0;
}

int ks__cache_put(ks_cache *x, uint32_t i, const void *data, uint64_t source, ks_err *err)
{
    const ks_block *k = &x->plan->blocks[i];
    ks_hash128 h = ks_hash(data, k->bytes);
    record r = { .tag = JOURNAL_TAG, .index = i, .block = { h.lo, h.hi, source } };
    r.check = check_of(x, &r);
    int rc = write_at(x->fd, x->part_path, x->payload_off + k->off, data, k->bytes, err);
    if (rc != 0) return rc;
    (void)pthread_mutex_lock(&x->mu); /* a default mutex, used rightly, cannot fail */
    x->table[i] = r.block;
    ssize_t put = write(x->journal_fd, &r, sizeof r); /* a torn record is found by its check */
    int failed = put == (ssize_t)sizeof r ? 0 : put < 0 ? errno : ENOSPC;
    (void)pthread_mutex_unlock(&x->mu);
    return failed ? ks_fail(err, KS_E_IO, "cannot write '%s': %s", x->journal_path, strerror(failed)) : 0;
}

static int sync_dir(const ks_cache *x, ks_err *err)
{
    int fd = open(x->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    int failed = errno;
    close_fd(&fd);
    return ok ? 0 : ks_fail(err, KS_E_IO, "cannot sync '%s': %s", x->dir, strerror(failed));
}

int ks__cache_commit(ks_cache *x, ks_err *err)
{
    const size_t table_bytes = x->plan->n_blocks * sizeof *x->table;
    ks_hash128 h = ks_hash(x->table, table_bytes);
    int rc = write_at(x->fd, x->part_path, 0, x->head, x->head_bytes, err);
    if (rc == 0) rc = write_at(x->fd, x->part_path, x->head_bytes, x->table, table_bytes, err);
    if (rc == 0) rc = write_at(x->fd, x->part_path, x->head_bytes + table_bytes, &h, sizeof h, err);
    if (rc != 0) return rc;
    if (fsync(x->fd) != 0 || rename(x->part_path, x->path) != 0)
        return ks_fail(err, KS_E_IO, "cannot finish '%s': %s", x->part_path, strerror(errno));
    /* Beside the arena there is no room to keep it for the next start: then it need not push out other files. */
    if (x->file_bytes > ks_ram_available_bytes()) (void)posix_fadvise(x->fd, 0, 0, POSIX_FADV_DONTNEED);
    rc = sync_dir(x, err);
    if (rc == 0) rc = ks__cache_set_current(x, err);
    if (rc == 0) rc = remove_file(x->journal_path, err);
    return rc;
}
