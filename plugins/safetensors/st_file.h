/* One safetensors file: 8 bytes of header length, the header (JSON), the data.
 *
 * Everything the header says is held against the file's size before it is used. An open file is immutable: all
 * functions but st_close may be called from any thread at once. */
#ifndef ST_FILE_H
#define ST_FILE_H

#include <krasis/loader.h>

typedef struct st_file st_file;

/* 1 if the first n bytes begin a safetensors file. A file cut off later is ours, too: st_open says what is wrong. */
int st_sniff(const uint8_t *head, size_t n);
KS_MUST_CHECK int st_open(const char *path, st_file **ret, ks_err *err);
void st_close(st_file *f); /* NULL is fine */
/* In the order of the data; KS_E_NOTFOUND from the first index after the last. Writes within ret->size. */
int st_tensor(const st_file *f, uint64_t i, ks_tensor *ret, ks_err *err);
int st_read(const st_file *f, uint64_t i, uint64_t off, void *dst, size_t bytes, ks_err *err);
int st_meta(const st_file *f, const char *key, uint64_t index, ks_value *ret, ks_err *err); /* `__metadata__` */

#endif
