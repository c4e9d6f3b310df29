/* A checkpoint: a Hugging Face directory (one file or shards with an index) or one file, seen as named
 * tensors. Names must be unique, shard names plain base names, every indexed tensor present. [main]; reads [any] */
#ifndef KS_STORE_CKPT_H
#define KS_STORE_CKPT_H

#include "plugin/plugin.h"

typedef struct ks_ckpt ks_ckpt;

KS_MUST_CHECK int ks_ckpt_open(ks_registry *r, const char *path, ks_ckpt **ret, ks_err *err);
void ks_ckpt_close(ks_ckpt *c);
const char *ks_ckpt_dir(const ks_ckpt *c);
uint64_t ks_ckpt_count(const ks_ckpt *c);
const ks_tensor *ks_ckpt_at(const ks_ckpt *c, uint64_t i);
const ks_tensor *ks_ckpt_find(const ks_ckpt *c, const char *name); /* NULL: none */
/* The number i for which ks_ckpt_at gave t. */
uint64_t ks_ckpt_index(const ks_ckpt *c, const ks_tensor *t);
KS_MUST_CHECK int ks_ckpt_read(const ks_ckpt *c, const ks_tensor *t, uint64_t off, void *dst, size_t bytes,
                               ks_err *err);
/* A metadata value of the first file; KS_E_NOTFOUND, also if its loader has none. */
int ks_ckpt_meta(const ks_ckpt *c, const char *key, uint64_t index, ks_value *ret, ks_err *err);
/* Fingerprint of the content: sizes, headers, a hash over sampled pages of every shard; full: all bytes. */
KS_MUST_CHECK int ks_ckpt_fingerprint(const ks_ckpt *c, bool full, char ret_hex[33], ks_err *err);
uint64_t ks_ckpt_bytes(const ks_ckpt *c); /* of all files */
/* Lets the system take back the memory in which it keeps the files' pages. A hint, for files not read again soon. */
void ks_ckpt_forget_pages(const ks_ckpt *c);
/* Names, sizes and modification times of the files as they were at open: equal means untouched since. */
uint64_t ks_ckpt_stamp(const ks_ckpt *c);

#endif
