/* Kind LOADER: reads one file of weights.
 *
 * Chosen by content: sniff() sees the path and the first bytes. The file is hostile: every count,
 * length, offset and type is checked against the file's size before use; errors name the tensor, the
 * value and the limit. Directories, shards and index files are the host's business.
 */
#ifndef KRASIS_LOADER_H
#define KRASIS_LOADER_H

#include <krasis/plugin.h>

#define KS_MAX_RANK 8

typedef struct ks_tensor {
    uint32_t size, type; /* KS_T_ */
    const char *name;    /* owned by the file, until close */
    uint32_t rank, _pad;
    uint64_t shape[KS_MAX_RANK]; /* outermost first, as PyTorch prints it */
    uint64_t bytes;
} ks_tensor;

/* A metadata value: `type` KS_OPT_INT, FLOAT, BOOL (in i), STR; arrays have n > 1 and are read one by one. */
typedef struct ks_value {
    uint32_t size, type;
    uint64_t n;
    int64_t i;
    double f;
    const char *s; /* owned by the file, NUL-terminated; s_bytes without the NUL */
    uint64_t s_bytes;
} ks_value;

typedef struct ks_loader_iface {
    uint32_t size, _pad;
    int (*sniff)(void *self, const char *path, const uint8_t *head, size_t n); /* [any] 1 = mine, 0 = not */
    int (*open)(void *self, const char *path, void **ret_file, ks_err *err);   /* [any] */
    void (*close)(void *file); /* [any] ends every pointer the file gave out; NULL is fine */
    int (*tensor)(void *file, uint64_t i, ks_tensor *ret, ks_err *err); /* [any] KS_E_NOTFOUND ends */
    /* [any] copies `bytes` from offset `off` of tensor i. A file that shrank meanwhile is an error, not a SIGBUS. */
    int (*read)(void *file, uint64_t i, uint64_t off, void *dst, size_t bytes, ks_err *err);
    const void *(*map)(void *file, uint64_t i); /* [any] optional; NULL: use read() */
    int (*meta)(void *file, const char *key, uint64_t index, ks_value *ret, ks_err *err); /* [any] optional */
} ks_loader_iface;

#endif
