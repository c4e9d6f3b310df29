/* The cache's folder: files are grouped by the key that their names begin with; whatever else lies there is not ours
 * and is neither shown nor touched. */
#include "store/cache_list.h"
#include "base/base.h"
#include "base/file.h"
#include "store/cache.h"
#include "store/heat_file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY_CHARS 32u
#define FILES_MAX ((size_t)1 << 20)

enum { WEIGHTS = 1, PART = 2, SMALL = 4, LOCKED = 8 };

typedef struct found {
    ks_cache_item item;
    unsigned has; /* WEIGHTS | PART | SMALL | LOCKED */
} found;

typedef struct folder {
    const char *path;
    found *found;
    size_t n, cap;
} folder;

static int no_memory(ks_err *err)
{
    return ks_fail(err, KS_E_NOMEM, "out of memory for the list of the weight cache");
}

/* True for KEY.something, as the cache names its files: 32 lower-case hexadecimal digits and a dot. */
static bool is_ours(const char *name)
{
    return strspn(name, "0123456789abcdef") == KEY_CHARS && name[KEY_CHARS] == '.' && name[KEY_CHARS + 1];
}

static found *find(folder *f, const char *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (memcmp(f->found[i].item.key, name, KEY_CHARS) == 0) return &f->found[i];
    if (f->n == f->cap) {
        size_t cap = f->cap ? f->cap * 2 : 16;
        found *grown = cap <= FILES_MAX ? realloc(f->found, cap * sizeof *grown) : NULL;
        if (!grown) return NULL;
        f->found = grown;
        f->cap = cap;
    }
    found *x = &f->found[f->n++];
    memset(x, 0, sizeof *x);
    memcpy(x->item.key, name, KEY_CHARS);
    return x;
}

/* Somebody holds the lock: it cannot be had without waiting. */
static bool is_locked(int dir_fd, const char *name)
{
    int fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    bool locked = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (fd >= 0) (void)close(fd); /* unlocks */
    return locked;
}

static int add_file(folder *f, int dir_fd, const char *name, ks_err *err)
{
    struct stat st;
    if (!is_ours(name) || fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) return 0;
    found *x = find(f, name);
    if (!x) return no_memory(err);
    const char *tail = name + KEY_CHARS;
    const bool lock = strcmp(tail, ".lock") == 0;
    x->has |= strcmp(tail, ".kw") == 0 ? WEIGHTS : strcmp(tail, ".part") == 0 ? PART : SMALL;
    if (lock && is_locked(dir_fd, name)) x->has |= LOCKED;
    x->item.bytes += (uint64_t)st.st_blocks * 512;
    if (!lock && st.st_mtim.tv_sec > x->item.used_s) x->item.used_s = st.st_mtim.tv_sec;
    return 0;
}

/* The second line of KEY.source; "" without one. NULL: no memory. */
static char *model_of(const char *dir, const char *key)
{
    char name[64], *text = NULL;
    (void)snprintf(name, sizeof name, "%s.source", key); /* fits */
    char *path = ks_path_join(dir, name), *model = NULL;
    if (path && ks_file_exists(path) && ks_file_read(path, 1 << 16, &text, NULL, NULL) == 0) {
        char *line = strchr(text, '\n'), *end = line ? strchr(line + 1, '\n') : NULL;
        if (end) *end = 0;
        model = ks_strdup(end ? line + 1 : "");
        free(text);
    } else if (path) {
        model = ks_strdup("");
    }
    free(path);
    return model;
}

static uint32_t state_of_weights(const char *dir, const ks_cache_item *item)
{
    char name[64];
    (void)snprintf(name, sizeof name, "%s.kw", item->key); /* fits */
    char *path = ks_path_join(dir, name);
    int rc = path ? ks__cache_inspect(path, NULL) : KS_E_FORMAT;
    free(path);
    return rc == KS_E_UNSUPPORTED                                 ? KS_CACHE_OTHER
           : rc != 0                                              ? KS_CACHE_DAMAGED
           : item->model[0] == '/' && !ks_dir_exists(item->model) ? KS_CACHE_GONE
                                                                  : KS_CACHE_READY;
}

static uint32_t state_of(const char *dir, const found *x)
{
    if (x->has & LOCKED) return KS_CACHE_BUILDING;
    if (x->has & WEIGHTS) return state_of_weights(dir, &x->item);
    return x->has & PART ? KS_CACHE_UNFINISHED : KS_CACHE_LEFTOVER;
}

static int by_use(const void *a, const void *b)
{
    const ks_cache_item *x = a, *y = b;
    if (x->used_s != y->used_s) return x->used_s < y->used_s ? 1 : -1;
    return strcmp(x->key, y->key);
}

static int read_folder(folder *f, ks_err *err)
{
    DIR *d = opendir(f->path);
    if (!d && errno == ENOENT) return 0;
    if (!d) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", f->path, strerror(errno));
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(d));) rc = add_file(f, dirfd(d), e->d_name, err);
    (void)closedir(d); /* nothing was written */
    return rc;
}

static int list_weights(const folder *f, ks_cache_items *x, ks_err *err)
{
    for (size_t i = 0; i < f->n; i++) {
        ks_cache_item *item = &f->found[i].item;
        if (!(item->model = model_of(x->dir, item->key))) return no_memory(err);
        item->state = state_of(x->dir, &f->found[i]);
        x->item[x->n++] = *item;
    }
    return 0;
}

static int list_heat(const folder *f, ks_cache_items *x, ks_err *err)
{
    for (size_t i = 0; i < f->n; i++) {
        ks_cache_item *item = &f->found[i].item;
        ks_heat_map m = { .rows = 0 };
        char name[64];
        (void)snprintf(name, sizeof name, "%s.heat", item->key); /* fits */
        char *path = ks_path_join(x->heat_dir, name);
        int rc = path ? ks_heat_read(path, &m, NULL) : KS_E_NOMEM;
        free(path);
        if (rc == KS_E_NOTFOUND) continue; /* no heat map by its name */
        item->model = rc ? ks_strdup("") : m.model;
        m.model = NULL;
        ks_heat_map_fini(&m);
        if (!item->model) return no_memory(err);
        item->heat = 1;
        item->state = rc == KS_E_UNSUPPORTED                                 ? KS_CACHE_OTHER
                      : rc != 0                                              ? KS_CACHE_DAMAGED
                      : item->model[0] == '/' && !ks_dir_exists(item->model) ? KS_CACHE_GONE
                                                                             : KS_CACHE_HEAT;
        x->item[x->n++] = *item;
    }
    return 0;
}

int ks_cache_list(const char *dir, ks_cache_items *ret, ks_err *err)
{
    ks_cache_items x = { .dir = NULL };
    folder f = { .found = NULL }, heat = { .found = NULL };
    int rc = ks__cache_dir(dir, &x.dir, err);
    if (rc == 0) rc = ks_heat_dir(&x.heat_dir, err);
    f.path = x.dir;
    heat.path = x.heat_dir;
    if (rc == 0) rc = read_folder(&f, err);
    if (rc == 0) rc = read_folder(&heat, err);
    if (rc == 0 && f.n + heat.n > 0 && !(x.item = ks_calloc(f.n + heat.n, sizeof *x.item))) rc = no_memory(err);
    if (rc == 0) rc = list_weights(&f, &x, err);
    if (rc == 0) rc = list_heat(&heat, &x, err);
    free(f.found);
    free(heat.found);
    if (rc == 0 && x.n > 0) qsort(x.item, x.n, sizeof *x.item, by_use);
    if (rc == 0)
        *ret = x;
    else
        ks_cache_items_fini(&x);
    return rc;
}

void ks_cache_items_fini(ks_cache_items *x)
{
    if (!x) return;
    for (size_t i = 0; i < x->n; i++) free(x->item[i].model);
    free(x->item);
    free(x->dir);
    free(x->heat_dir);
    memset(x, 0, sizeof *x);
}

const char *ks_cache_state_name(uint32_t state)
{
    static const char *const names[] = {
        [KS_CACHE_READY] = "ready",       [KS_CACHE_GONE] = "model gone",       [KS_CACHE_OTHER] = "other version",
        [KS_CACHE_DAMAGED] = "damaged",   [KS_CACHE_UNFINISHED] = "unfinished", [KS_CACHE_BUILDING] = "being built",
        [KS_CACHE_LEFTOVER] = "leftover", [KS_CACHE_HEAT] = "heat map",
    };
    return state < KS_COUNT(names) ? names[state] : "?";
}

/* Everything that begins with the key but the lock, which is ours and goes last. */
static int remove_files(const char *dir, const char *key, ks_err *err)
{
    DIR *d = opendir(dir);
    int rc = d ? 0 : ks_fail(err, KS_E_IO, "cannot read '%s': %s", dir, strerror(errno));
    for (struct dirent *e; rc == 0 && (e = readdir(d));) {
        if (!is_ours(e->d_name) || memcmp(e->d_name, key, KEY_CHARS) != 0 ||
            strcmp(e->d_name + KEY_CHARS, ".lock") == 0)
            continue;
        if (unlinkat(dirfd(d), e->d_name, 0) != 0 && errno != ENOENT)
            rc = ks_fail(err, KS_E_IO, "cannot remove '%s/%s': %s", dir, e->d_name, strerror(errno));
    }
    if (d) (void)closedir(d); /* nothing was written */
    return rc;
}

int ks_cache_remove(const ks_cache_items *x, const ks_cache_item *item, ks_err *err)
{
    char name[64];
    int fd = -1;
    if (item->heat) return remove_files(x->heat_dir, item->key, err);
    (void)snprintf(name, sizeof name, "%s.lock", item->key); /* fits */
    char *path = ks_path_join(x->dir, name);
    if (!path) return no_memory(err);
    int rc = ks__cache_lock_file(path, false, &fd, err);
    if (rc == 0) rc = remove_files(x->dir, item->key, err);
    ks__cache_unlock_file(path, fd);
    free(path);
    return rc;
}
