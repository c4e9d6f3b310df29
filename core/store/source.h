/* Where a weight's numbers come from: one source tensor (or two, where scales lie apart), seen as a matrix of
 * floats, whatever it is stored as. One row of the scheme table is one storage scheme. Reads are [any]. */
#ifndef KS_STORE_SOURCE_H
#define KS_STORE_SOURCE_H

#include "store/ckpt.h"
#include <stdbool.h>

#define KS_SCHEME_PLAIN 0u /* numbers of one type; see conv.h */
#define KS_SCHEME_FP8 1u   /* F8E4M3 codes, one factor a block in `_scale_inv`, or a row or tensor in `_scale` */
#define KS_SCHEME_CT4 2u   /* compressed-tensors "pack-quantized": nibbles in I32, one scale a group of columns */
#define KS_SCHEME_MXFP4 3u /* `_blocks` of e2m1 pairs and `_scales`, one e8m0 per 32 columns */
#define KS_SCHEME_GPTQ 4u  /* `qweight` (in / 8, out): 8 columns of one row a word; `qzeros`, `scales`, `g_idx` */
#define KS_SCHEME_AWQ 5u   /* `qweight` (in, out / 8): 8 rows of one column a word, interleaved; likewise */

/* What config.json says about the checkpoint's quantization. */
typedef struct ks_qconf {
    uint32_t scheme;
    uint32_t block_rows, block_cols; /* FP8; 0: one scale a row or tensor */
    uint32_t group;                  /* CT4, GPTQ, AWQ; 0: a whole row */
    bool symmetric;                  /* GPTQ, AWQ: every zero point is 8 */
    bool zero_less_one;              /* GPTQ: what is stored is the zero point minus one */
    bool ordered;                    /* GPTQ: columns were ordered by importance, `g_idx` must be there */
} ks_qconf;

/* A scheme that is not supported is an error that names it. No config.json: PLAIN. */
KS_MUST_CHECK int ks__qconf_read(const ks_ckpt *c, ks_qconf *ret, ks_err *err);
KS_MUST_CHECK int ks__qconf_parse(const char *path, const char *text, size_t n, ks_qconf *ret, ks_err *err);

/* A matrix inside a tensor: (rows, cols), rows being outputs. */
typedef struct ks_src {
    const ks_tensor *t, *aux;       /* aux: the scales, NULL if none */
    const ks_tensor *zeros, *order; /* GPTQ and AWQ; order: the group of each column, NULL: group after group */
    uint64_t shape[KS_MAX_RANK];    /* of the numbers, not of the bytes they are packed in */
    uint64_t elem, aux_elem;        /* first number and first scale of this matrix */
    uint64_t rows, row_first;       /* row_first is added to the rows that a part asks for (stride_rows) */
    uint32_t rank, cols, scheme;
    uint32_t block_rows, group;    /* rows and columns that share a scale */
    bool transposed;               /* stored (cols, rows), or by columns in packs: read by ks__src_column */
    bool symmetric, zero_less_one; /* as in ks_qconf */
    bool exact;                    /* GPTQ and AWQ: I4 holds codes and scales as they are */
} ks_src;

/* GPTQ and AWQ: columns and codes are taken out of the window that ks__src_load read. */
static inline bool ks__src_is_packed(const ks_src *s)
{
    return s->scheme == KS_SCHEME_GPTQ || s->scheme == KS_SCHEME_AWQ;
}

/* Finds the tensor(s) behind a name, fills t, aux, shape, rank, scheme. 0 and ret->t NULL: there is none. */
KS_MUST_CHECK int ks__src_find(const ks_ckpt *c, const ks_qconf *q, const char *name, ks_src *ret, ks_err *err);
/* After rows, cols, elem and transposed were set: holds the scales against them. slice, n_slices: of a stack. */
KS_MUST_CHECK int ks__src_check(ks_src *s, uint32_t slice, uint32_t n_slices, ks_err *err);
/* True if BF16 holds every number exactly. */
bool ks__src_fits_bf16(const ks_src *s);
/* The stored type whose codes and scales these are, and its group; 0 if there is none. */
uint32_t ks__src_exact_type(const ks_src *s, uint32_t *ret_group);

/* A worker's view: where to read to, and a running hash of all that was read. */
typedef struct ks_fetch {
    const ks_ckpt *c;
    uint8_t *raw;   /* as large as ks__src_raw_bytes says */
    uint64_t hash;  /* of the bytes read so far, in their order */
    bool dry;       /* read and hash, convert nothing: dst may be NULL */
    uint64_t first; /* the window: rows [first, first + count) of a packed source */
    uint64_t count;
} ks_fetch;

/* Scratch to read n_rows rows at once, or, transposed, n_rows rows of one column, or a window of as many rows. */
size_t ks__src_raw_bytes(const ks_src *s, uint64_t n_rows);
/* Packed sources: reads the window [row, row + n), of which columns and codes are taken; good until the next load. Of
 * others nothing is read. */
KS_MUST_CHECK int ks__src_load(ks_fetch *f, const ks_src *s, uint64_t row, uint64_t n, ks_err *err);
/* Rows [row, row + n) of a matrix that is not transposed, as floats, all finite: an error names what is not. */
KS_MUST_CHECK int ks__src_rows(ks_fetch *f, const ks_src *s, uint64_t row, uint32_t n, float *dst, ks_err *err);
/* Rows [row, row + n) of column k of a transposed matrix; of a packed one, within its window. */
KS_MUST_CHECK int ks__src_column(ks_fetch *f, const ks_src *s, uint32_t k, uint64_t row, uint64_t n, float *dst,
                                 ks_err *err);
/* One row as codes (cols) and scales (cols / group), for sources with an exact type; packed: a row of the window. */
KS_MUST_CHECK int ks__src_codes(ks_fetch *f, const ks_src *s, uint64_t row, int8_t *codes, uint16_t *scales,
                                ks_err *err);

#endif
