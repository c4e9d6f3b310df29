/* Writes a synthetic checkpoint as safetensors: pieces of all shards are made and written on all threads. */
#include "app/synth.h"
#include "base/base.h"
#include "base/file.h"
#include "base/progress.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <krasis/json.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define SHARD_BYTES UINT64_C(4000000000)
#define PIECE_BYTES ((uint64_t)1 << 20)
#define SHARDS_MAX 99999u

typedef struct shard {
    uint64_t first, count; /* tensors */
    uint64_t data_bytes, head_bytes;
    char *path;
    int fd;
} shard;

typedef struct piece {
    uint64_t tensor, off, at; /* at: in the file */
    uint32_t bytes, shard;
} piece;

typedef struct writer {
    const ks_synth *s;
    const char *dir;
    shard *shards;
    uint32_t n_shards;
    piece *pieces;
    uint32_t n_pieces;
    ks_progress *bar;
    atomic_bool failed; /* set once by whoever holds err; read by all to stop early */
    pthread_mutex_t mu;
    int rc;     /* under mu */
    ks_err err; /* under mu: of the first that failed */
} writer;

static int no_memory(ks_err *err)
{
    return ks_fail(err, KS_E_NOMEM, "out of memory for the shards of the model");
}

/* ---- which tensor lies where */

static int cut_shards(writer *x, uint64_t limit, ks_err *err)
{
    ks_tensor t = { .size = sizeof t };
    uint64_t n = 0, total = 0;
    for (; ks_synth_tensor_at(x->s, n, &t, NULL) == 0; n++) {
        if (__builtin_add_overflow(total, t.bytes, &total) || total > (uint64_t)INT64_MAX / 2)
            return ks_fail(err, KS_E_LIMIT, "the model is too large for any disk");
    }
    uint64_t most = KS_MIN(n, total / limit + 1);
    /* A shard ends when it has the limit, so there are no more than this. */
    if (most > SHARDS_MAX) return ks_fail(err, KS_E_LIMIT, "the model needs more than %u shards", SHARDS_MAX);
    x->shards = ks_calloc(most + 1, sizeof *x->shards);
    if (!x->shards) return no_memory(err);
    for (uint64_t i = 0; i < n; i++) {
        shard *s = &x->shards[x->n_shards ? x->n_shards - 1 : 0];
        if (x->n_shards == 0 || s->data_bytes >= limit) {
            s = &x->shards[x->n_shards++];
            *s = (shard) { .first = i, .fd = -1 };
        }
        int rc = ks_synth_tensor_at(x->s, i, &t, err);
        if (rc) return rc;
        s->data_bytes += t.bytes;
        s->count++;
    }
    return n ? 0 : ks_fail(err, KS_E_FORMAT, "the model has no tensors");
}

static int header_of(const writer *x, const shard *s, ks_jw *w, ks_err *err)
{
    uint64_t at = 0;
    ks_jw_reset(w);
    ks_jw_object(w);
    for (uint64_t i = s->first; i < s->first + s->count; i++) {
        ks_tensor t = { .size = sizeof t };
        char type[16];
        int rc = ks_synth_tensor_at(x->s, i, &t, err);
        if (rc) return rc;
        (void)snprintf(type, sizeof type, "%s", ks_type_name(t.type)); /* known types: short */
        for (char *p = type; *p; p++) *p = (char)toupper((unsigned char)*p);
        ks_jw_key(w, t.name);
        ks_jw_object(w);
        ks_jw_key(w, "dtype");
        ks_jw_str(w, type);
        ks_jw_key(w, "shape");
        ks_jw_array(w);
        for (uint32_t d = 0; d < t.rank; d++) ks_jw_u64(w, t.shape[d]);
        ks_jw_array_end(w);
        ks_jw_key(w, "data_offsets");
        ks_jw_array(w);
        ks_jw_u64(w, at);
        ks_jw_u64(w, at + t.bytes);
        ks_jw_array_end(w);
        ks_jw_object_end(w);
        at += t.bytes;
    }
    ks_jw_object_end(w);
    while (w->n % 8 && !w->failed) ks_jw_bytes(w, " ", 1); /* data is aligned to 8 */
    return ks_jw_done(w) ? no_memory(err) : 0;
}

static int cut_pieces(writer *x, ks_err *err)
{
    for (int pass = 0; pass < 2; pass++) { /* count, then write */
        uint64_t n = 0;
        for (uint32_t k = 0; k < x->n_shards; k++) {
            const shard *s = &x->shards[k];
            uint64_t at = 8 + s->head_bytes;
            for (uint64_t i = s->first; i < s->first + s->count; i++) {
                ks_tensor t = { .size = sizeof t };
                int rc = ks_synth_tensor_at(x->s, i, &t, err);
                if (rc) return rc;
                for (uint64_t off = 0; off < t.bytes; off += PIECE_BYTES, n++)
                    if (pass)
                        x->pieces[n] = (piece) { .tensor = i,
                                                 .off = off,
                                                 .at = at + off,
                                                 .bytes = (uint32_t)KS_MIN(PIECE_BYTES, t.bytes - off),
                                                 .shard = k };
                at += t.bytes;
            }
        }
        if (n > UINT32_MAX) return ks_fail(err, KS_E_LIMIT, "the model is too large");
        x->n_pieces = (uint32_t)n;
        if (!pass && !(x->pieces = ks_calloc(n, sizeof *x->pieces))) return no_memory(err);
    }
    return 0;
}

/* ---- writing */

static int write_at(const shard *s, uint64_t at, const void *p, size_t n, ks_err *err)
{
    const uint8_t *src = p;
    while (n > 0) {
        ssize_t put = pwrite(s->fd, src, n, (off_t)at);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return ks_fail(err, KS_E_IO, "cannot write '%s': %s", s->path, strerror(errno));
        src += put;
        at += (uint64_t)put;
        n -= (size_t)put;
    }
    return 0;
}

static int open_shards(writer *x, uint64_t *ret_total, ks_err *err)
{
    ks_jw w;
    uint64_t free_bytes, total = 0;
    ks_jw_init(&w);
    int rc = ks_disk_free(x->dir, &free_bytes, err);
    for (uint32_t k = 0; k < x->n_shards; k++) total += x->shards[k].data_bytes;
    *ret_total = total;
    if (!rc && total > free_bytes)
        rc = ks_fail(err, KS_E_LIMIT,
                     "the model needs %.1f GB in '%s', %.1f GB are free: make room, or use --quantized or --layers",
                     (double)total / 1e9, x->dir, (double)free_bytes / 1e9);
    for (uint32_t k = 0; k < x->n_shards && !rc; k++) {
        shard *s = &x->shards[k];
        char name[64];
        if (x->n_shards == 1)
            (void)snprintf(name, sizeof name, "model.safetensors");
        else
            (void)snprintf(name, sizeof name, "model-%05u-of-%05u.safetensors", k + 1, x->n_shards);
        s->path = ks_path_join(x->dir, name);
        if (!s->path) rc = no_memory(err);
        if (!rc) rc = header_of(x, s, &w, err);
        if (rc) break;
        s->head_bytes = w.n;
        s->fd = open(s->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (s->fd < 0) {
            rc = ks_fail(err, KS_E_IO, "cannot create '%s': %s", s->path, strerror(errno));
            break;
        }
        rc = write_at(s, 0, &s->head_bytes, 8, err); /* little-endian, as all we run on */
        if (!rc) rc = write_at(s, 8, w.text, w.n, err);
    }
    ks_jw_fini(&w);
    return rc;
}

static void write_pieces(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    writer *x = arg;
    ks_err err = { .code = 0 };
    (void)worker;
    uint8_t *buf = malloc(PIECE_BYTES);
    int rc = buf ? 0 : no_memory(&err);
    for (uint32_t i = begin; i < end && !rc && !atomic_load_explicit(&x->failed, memory_order_relaxed); i++) {
        const piece *p = &x->pieces[i];
        rc = ks_synth_read(x->s, p->tensor, p->off, buf, p->bytes, &err);
        if (!rc) rc = write_at(&x->shards[p->shard], p->at, buf, p->bytes, &err);
        ks_progress_add(x->bar, p->bytes);
    }
    free(buf);
    if (!rc) return;
    (void)pthread_mutex_lock(&x->mu); /* a default mutex, used rightly, cannot fail */
    if (!x->rc) {
        x->rc = rc;
        x->err = err;
    }
    (void)pthread_mutex_unlock(&x->mu);
    atomic_store_explicit(&x->failed, true, memory_order_relaxed); /* a hint: rc and err are read after the join */
}

static int write_index(const writer *x, uint64_t total, ks_err *err)
{
    ks_jw w;
    int rc = 0;
    char *path = ks_path_join(x->dir, "model.safetensors.index.json");
    ks_jw_init(&w);
    ks_jw_object(&w);
    ks_jw_key(&w, "metadata");
    ks_jw_object(&w);
    ks_jw_key(&w, "total_size");
    ks_jw_u64(&w, total);
    ks_jw_object_end(&w);
    ks_jw_key(&w, "weight_map");
    ks_jw_object(&w);
    for (uint32_t k = 0; k < x->n_shards && !rc; k++)
        for (uint64_t i = 0; i < x->shards[k].count && !rc; i++) {
            ks_tensor t = { .size = sizeof t };
            rc = ks_synth_tensor_at(x->s, x->shards[k].first + i, &t, err);
            if (rc) break;
            ks_jw_key(&w, t.name);
            ks_jw_str(&w, strrchr(x->shards[k].path, '/') + 1); /* made by ks_path_join */
        }
    ks_jw_object_end(&w);
    ks_jw_object_end(&w);
    if (!rc && (!path || ks_jw_done(&w))) rc = no_memory(err);
    if (!rc) rc = ks_file_write(path, w.text, w.n, err);
    ks_jw_fini(&w);
    free(path);
    return rc;
}

static int write_all(writer *x, ks_pool *pool, uint64_t total, ks_err *err)
{
    if (pthread_mutex_init(&x->mu, NULL) != 0) return ks_fail(err, KS_E_NOMEM, "cannot make a mutex");
    x->bar = ks_progress_begin("writing the model", total, "B");
    if (pool && x->n_pieces)
        ks_pool_run(pool, x->n_pieces, 4, write_pieces, x);
    else
        write_pieces(x, 0, x->n_pieces, 0);
    ks_progress_end(x->bar);
    (void)pthread_mutex_destroy(&x->mu);
    if (x->rc && err) *err = x->err;
    for (uint32_t k = 0; k < x->n_shards && !x->rc; k++)
        if (fsync(x->shards[k].fd) != 0)
            return ks_fail(err, KS_E_IO, "cannot write '%s': %s", x->shards[k].path, strerror(errno));
    return x->rc;
}

int ks_synth_shards(const ks_synth *s, const char *dir, uint64_t shard_bytes, ks_pool *pool, ks_err *err)
{
    writer x = { .s = s, .dir = dir };
    uint64_t total = 0;
    int rc = cut_shards(&x, shard_bytes ? shard_bytes : SHARD_BYTES, err);
    if (!rc) rc = open_shards(&x, &total, err);
    if (!rc) rc = cut_pieces(&x, err);
    if (!rc) rc = write_all(&x, pool, total, err);
    if (!rc && x.n_shards > 1) rc = write_index(&x, total, err);
    for (uint32_t k = 0; k < x.n_shards; k++) {
        if (x.shards[k].path && x.shards[k].fd >= 0) (void)close(x.shards[k].fd); /* what mattered was fsync()ed */
        if (rc && x.shards[k].path) (void)unlink(x.shards[k].path);               /* the first failure is told */
        free(x.shards[k].path);
    }
    free(x.shards);
    free(x.pieces);
    return rc;
}
