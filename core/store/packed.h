/* GPTQ and AWQ: 4-bit codes that lie by columns, eight to a word, with zero points. source.c calls these for its
 * schemes of that kind; a window of rows is read at once, since a row alone is scattered over the whole tensor. */
#ifndef KS_STORE_PACKED_H
#define KS_STORE_PACKED_H

#include "store/source.h"

/* s->t is the `qweight` of `name` (which ends in "weight"): finds and holds what lies beside it against it. [main] */
KS_MUST_CHECK int ks__packed_find(const ks_ckpt *c, const ks_qconf *q, const char *name, ks_src *s, ks_err *err);
/* Scratch for a window of n rows. */
size_t ks__packed_raw_bytes(const ks_src *s, uint64_t n);
/* Reads rows [row, row + n) to the fetch's scratch and checks scales, zero points and order. [any] */
KS_MUST_CHECK int ks__packed_load(ks_fetch *f, const ks_src *s, uint64_t row, uint64_t n, ks_err *err);
/* Rows [row, row + n) of column k, from the window. */
void ks__packed_column(const ks_fetch *f, const ks_src *s, uint32_t k, uint64_t row, uint64_t n, float *dst);
/* A row of the window as codes (-8 .. 7) and bf16 scales; the source is exact. */
void ks__packed_codes(const ks_fetch *f, const ks_src *s, uint64_t row, int8_t *codes, uint16_t *scales);

#endif
