/* Files and paths on POSIX. Every message names the path and the system's reason. No state. [any] */
#include "base/file.h"
#include "base/base.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* The GNU form may return static text, so the result is used at once. */
static int fail_errno(ks_err *err, const char *doing, const char *path, int reason)
{
    char text[128];
    int code = reason == ENOENT                                          ? KS_E_NOTFOUND
               : reason == ENOMEM                                        ? KS_E_NOMEM
               : reason == ENOSPC || reason == EDQUOT || reason == EFBIG ? KS_E_LIMIT
                                                                         : KS_E_IO;
    return ks_fail(err, code, "cannot %s '%s': %s", doing, path, strerror_r(reason, text, sizeof text));
}

/* Reads up to n bytes, less only at the end of the file; -1 with errno. */
static ssize_t read_full(int fd, char *dst, size_t n)
{
    size_t done = 0;
    while (done < n) {
        ssize_t got = read(fd, dst + done, n - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

static int fail_size(ks_err *err, const char *path, size_t max_bytes)
{
    return ks_fail(err, KS_E_LIMIT, "'%s' is larger than the %zu bytes allowed for it", path, max_bytes);
}

int ks_file_read(const char *path, size_t max_bytes, char **ret, size_t *ret_n, ks_err *err)
{
    char *text = NULL;
    struct stat st;
    size_t n = 0, cap;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_errno(err, "open", path, errno);
    if (fstat(fd, &st) != 0) {
        rc = fail_errno(err, "read", path, errno);
        goto out;
    }
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > max_bytes) {
        rc = fail_size(err, path, max_bytes);
        goto out;
    }
    /* One byte more than the file's size tells its end in one read; pipes and /proc files have size 0. */
    cap = (S_ISREG(st.st_mode) ? (size_t)st.st_size : 0) + 1;
    for (;;) {
        if (!S_ISREG(st.st_mode) || n) cap = KS_MAX(cap, (size_t)4096) * 2;
        if (max_bytes < SIZE_MAX - 1 && cap > max_bytes + 1) cap = max_bytes + 1;
        char *more = realloc(text, cap + 1);
        if (!more) {
            rc = ks_fail(err, KS_E_NOMEM, "no memory for %zu bytes of '%s'", cap, path);
            goto out;
        }
        text = more;
        ssize_t got = read_full(fd, text + n, cap - n);
        if (got < 0) {
            rc = fail_errno(err, "read", path, errno);
            goto out;
        }
        n += (size_t)got;
        if (n > max_bytes) {
            rc = fail_size(err, path, max_bytes);
            goto out;
        }
        if (n < cap) break;
    }
    text[n] = 0;
    *ret = text;
    if (ret_n) *ret_n = n;
    text = NULL;
out:
    free(text);
    (void)close(fd); /* only read from */
    return rc;
}

static int write_full(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return errno;
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

/* The folder of a path, malloc'd. */
static char *dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return ks_strdup(".");
    if (slash == path) return ks_strdup("/");
    return strndup(path, (size_t)(slash - path));
}

/* Makes the rename itself durable. Some file systems cannot sync a folder (EINVAL): nothing to do then. */
static int sync_dir(const char *path)
{
    char *dir = dir_of(path);
    if (!dir) return ENOMEM;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), reason = fd < 0 ? errno : 0;
    if (fd >= 0 && fsync(fd) != 0 && errno != EINVAL) reason = errno;
    if (fd >= 0) (void)close(fd);
    free(dir);
    return reason;
}

/* A device or a pipe: there is no folder entry to replace. */
static int write_special(const char *path, const void *p, size_t n, ks_err *err)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), reason;
    if (fd < 0) return fail_errno(err, "open", path, errno);
    reason = write_full(fd, p, n);
    if (close(fd) != 0 && !reason) reason = errno;
    return reason ? fail_errno(err, "write", path, reason) : 0;
}

/* Creates a new file beside `path`; 0 or errno. */
static int open_temporary(const char *path, char *name, size_t cap, int *ret_fd)
{
    for (unsigned i = 0; i < 100; i++) {
        int len = snprintf(name, cap, "%s.tmp-%ld-%" PRIx64, path, (long)getpid(), ks_now_ns() + i);
        if (len < 0 || (size_t)len >= cap) return ENAMETOOLONG;
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); /* the umask decides */
        if (fd >= 0) {
            *ret_fd = fd;
            return 0;
        }
        if (errno != EEXIST) return errno;
    }
    return EEXIST;
}

int ks_file_write(const char *path, const void *p, size_t n, ks_err *err)
{
    struct stat st;
    bool exists = stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode)) return fail_errno(err, "write", path, EISDIR);
    if (exists && !S_ISREG(st.st_mode)) return write_special(path, p, n, err);
    char *target = exists ? realpath(path, NULL) : ks_strdup(path); /* a link stays a link */
    if (!target) return fail_errno(err, "write", path, errno);
    size_t cap = strlen(target) + 64;
    char *name = malloc(cap);
    int fd = -1, reason = name ? open_temporary(target, name, cap, &fd) : ENOMEM;
    if (!reason) {
        reason = write_full(fd, p, n);
        if (!reason && exists && fchmod(fd, st.st_mode & 07777) != 0) reason = errno;
        if (!reason && fsync(fd) != 0) reason = errno;
        if (close(fd) != 0 && !reason) reason = errno;
        if (!reason && rename(name, target) != 0) reason = errno;
        if (reason)
            (void)unlink(name); /* the first failure is the one to tell */
        else
            reason = sync_dir(target);
    }
    free(name);
    free(target);
    return reason ? fail_errno(err, "write", path, reason) : 0;
}

bool ks_file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

bool ks_dir_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int ks_mkdirs(const char *path, ks_err *err)
{
    char *part = ks_strdup(path);
    int rc = 0;
    if (!part) return ks_fail(err, KS_E_NOMEM, "no memory for the path '%s'", path);
    if (!*part) rc = fail_errno(err, "create the folder", path, ENOENT);
    for (char *p = part; *p && !rc;) {
        p += strspn(p, "/");
        p += strcspn(p, "/");
        char end = *p;
        *p = 0;
        if (mkdir(part, 0755) != 0) {
            int reason = errno; /* EROFS, EACCES also where the folder is there already */
            if (!ks_dir_exists(part))
                rc = fail_errno(err, "create the folder", part, reason == EEXIST ? ENOTDIR : reason);
        }
        *p = end;
    }
    free(part);
    return rc;
}

/* A folder that is yet to be made lies on its nearest existing ancestor's disk. */
int ks_disk_free(const char *path, uint64_t *ret_bytes, ks_err *err)
{
    struct statvfs fs;
    char *at = ks_strdup(path);
    int reason = at ? 0 : ENOMEM;
    while (!reason && statvfs(at, &fs) != 0) {
        reason = errno;
        if (reason == EINTR) {
            reason = 0;
        } else if (reason == ENOENT && strcmp(at, ".") != 0 && strcmp(at, "/") != 0) {
            char *up = dir_of(at);
            free(at);
            at = up;
            reason = at ? 0 : ENOMEM;
        }
    }
    free(at);
    if (reason) return fail_errno(err, "find the free space of", path, reason);
    if (__builtin_mul_overflow((uint64_t)fs.f_bavail, (uint64_t)fs.f_frsize, ret_bytes)) *ret_bytes = UINT64_MAX;
    return 0;
}

char *ks_path_join(const char *dir, const char *name)
{
    size_t a = strlen(dir), b = strlen(name), n;
    bool slash = a && dir[a - 1] != '/';
    if (!ks_add_size(a, b, &n) || !ks_add_size(n, 2, &n)) return NULL;
    char *path = malloc(n);
    if (!path) return NULL;
    memcpy(path, dir, a);
    if (slash) path[a] = '/';
    memcpy(path + a + slash, name, b + 1);
    return path;
}

char *ks_home(ks_err *err)
{
    const char *home = getenv("KRASIS_HOME");
    struct passwd pw, *hit = NULL;
    char text[4096], *path = NULL;
    if (home && *home) {
        path = ks_strdup(home);
    } else {
        home = getenv("HOME");
        if ((!home || !*home) && getpwuid_r(getuid(), &pw, text, sizeof text, &hit) == 0 && hit) home = hit->pw_dir;
        if (!home || !*home) {
            (void)ks_fail(err, KS_E_NOTFOUND, "no home folder is known: set KRASIS_HOME to a folder for krasis' files");
            return NULL;
        }
        path = ks_path_join(home, ".krasis");
    }
    if (!path) (void)ks_fail(err, KS_E_NOMEM, "no memory for the path of '%s'", home);
    return path;
}
