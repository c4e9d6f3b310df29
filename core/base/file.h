/* Files and paths. All errors name the path and the system's reason. [any] */
#ifndef KS_BASE_FILE_H
#define KS_BASE_FILE_H

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whole file, NUL-terminated beyond *ret_n (may be NULL); LIMIT above max_bytes. Free with free(). */
KS_MUST_CHECK int ks_file_read(const char *path, size_t max_bytes, char **ret, size_t *ret_n, ks_err *err);
/* Writes to a temporary name in the same folder, syncs, renames: never a torn file. */
KS_MUST_CHECK int ks_file_write(const char *path, const void *p, size_t n, ks_err *err);
bool ks_file_exists(const char *path);
bool ks_dir_exists(const char *path);
KS_MUST_CHECK int ks_mkdirs(const char *path, ks_err *err); /* like mkdir -p, mode 0755 */
KS_MUST_CHECK int ks_disk_free(const char *path, uint64_t *ret_bytes, ks_err *err);
/* "a/b" + "c" into malloc'd memory; NULL if out of memory. */
char *ks_path_join(const char *dir, const char *name);
/* $KRASIS_HOME or ~/.krasis, malloc'd; NULL with err if neither is known. */
char *ks_home(ks_err *err);

#endif
