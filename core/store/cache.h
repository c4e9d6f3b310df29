/* The cache: one file of ready weights a (model, settings), and what it takes to build it safely.
 *
 *   KEY.kw       head, description, table of block hashes, payload: the image of the arena
 *   KEY.source   stamp of the source files it was last found equal to (text)
 *   KEY.part     the .kw while it is being built; KEY.journal names its finished blocks
 *   KEY.lock     flock()ed by the one process that builds; gone when it is done
 *
 * KEY hashes the source's fingerprint and everything that determines the bytes, so files of different settings or
 * models of the same name lie side by side. All [main] but ks__cache_put, _get, _read and _check, which are [any]. */
#ifndef KS_STORE_CACHE_H
#define KS_STORE_CACHE_H

#include "store/plan.h"
#include <pthread.h>

typedef struct ks_cache_block {
    uint64_t lo, hi; /* hash of the block */
    uint64_t source; /* hash of the source bytes it was made of */
} ks_cache_block;

typedef struct ks_cache {
    const ks_wplan *plan;
    ks_hash128 key;
    uint64_t stamp;
    char *dir, *path, *source_path, *part_path, *journal_path, *lock_path;
    const char *model_dir;
    char *head; /* the first bytes of the file: all but the table is known beforehand */
    size_t head_bytes;
    uint64_t payload_off, file_bytes;
    ks_cache_block *table; /* (n_blocks) */
    uint8_t *done;         /* (n_blocks) in the journal of an earlier, interrupted build */
    int fd, lock_fd, journal_fd;
    pthread_mutex_t mu; /* the journal's appends */
    bool mu_ready;
} ks_cache;

KS_MUST_CHECK int ks__cache_init(ks_cache *x, const ks_wplan *p, const ks_ckpt *c, const char *dir, ks_err *err);
void ks__cache_fini(ks_cache *x); /* a zeroed one is fine; unlocks */

/* The folder of all caches: dir, or $KRASIS_HOME/cache if that is NULL. malloc'd. */
KS_MUST_CHECK int ks__cache_dir(const char *dir, char **ret, ks_err *err);
/* Head and table of a file by themselves, without the plan: KS_E_UNSUPPORTED: of another version, KS_E_FORMAT: damaged.
 */
KS_MUST_CHECK int ks__cache_inspect(const char *path, ks_err *err);
/* The lock. wait false: KS_E_BUSY if another process has it. unlock removes the file; fd -1 is fine. */
KS_MUST_CHECK int ks__cache_lock_file(const char *path, bool wait, int *ret_fd, ks_err *err);
void ks__cache_unlock_file(const char *path, int fd);

/* Opens the finished file and checks its head and table. KS_E_NOTFOUND: there is none; KS_E_FORMAT: it is damaged. */
KS_MUST_CHECK int ks__cache_open(ks_cache *x, ks_err *err);
/* True if there is a file now, and it is not the one that ks__cache_open saw. */
bool ks__cache_replaced(const ks_cache *x);
/* True if the source's files are untouched since the cache was last found equal to them. */
bool ks__cache_is_current(const ks_cache *x);
KS_MUST_CHECK int ks__cache_set_current(const ks_cache *x, ks_err *err);
/* Notes that it was used now, for `krasis cache`. */
void ks__cache_set_used(const ks_cache *x);
/* Reads block i and holds it against its hash: KS_E_FORMAT if they differ. h: the caller's, for any use. */
KS_MUST_CHECK int ks__cache_get(const ks_cache *x, uint32_t i, void *dst, ks_hasher *h, ks_err *err);
/* The two halves: bytes [off, off + n) of the payload; a block's bytes against its hash. */
KS_MUST_CHECK int ks__cache_read(const ks_cache *x, uint64_t off, void *dst, size_t n, ks_err *err);
KS_MUST_CHECK int ks__cache_check(const ks_cache *x, uint32_t i, const void *data, ks_err *err);

/* Waits until no other process builds this file. */
KS_MUST_CHECK int ks__cache_lock(ks_cache *x, ks_err *err);
/* Makes the file to build, or finds the interrupted one; says if the disk is too full. fresh: forget the latter. */
KS_MUST_CHECK int ks__cache_begin(ks_cache *x, bool fresh, ks_err *err);
KS_MUST_CHECK int ks__cache_put(ks_cache *x, uint32_t i, const void *data, uint64_t source, ks_err *err);
/* All blocks are put: writes head and table, syncs, renames. */
KS_MUST_CHECK int ks__cache_commit(ks_cache *x, ks_err *err);

#endif
