/* The generated Unicode tables (tools/gen_unicode.py). Private to unicode.c; read-only. [any] */
#ifndef KS_TEXT_UNICODE_TABLES_H
#define KS_TEXT_UNICODE_TABLES_H

#include <stdint.h>

typedef struct ks_uni_decomp {
    uint32_t cp;
    uint16_t at, n; /* into ks__uni_decomp_data */
} ks_uni_decomp;

typedef struct ks_uni_pair {
    uint32_t first, second, composed;
} ks_uni_pair;

typedef struct ks_uni_case {
    uint32_t first, last, step; /* first, first + step, ... last */
    int32_t delta;
} ks_uni_case;

/* Each value holds from its first code point to the next row's. General category: cp << 5 | category, numbered
 * in alphabetical order with Cn first; script and combining class: cp << 8 | value. */
extern const uint32_t ks__uni_gc[], ks__uni_script[], ks__uni_ccc[];
extern const uint32_t ks__uni_n_gc, ks__uni_n_script, ks__uni_n_ccc;
extern const char *const ks__uni_script_name[];
extern const uint32_t ks__uni_n_script_name;

extern const uint32_t ks__uni_old_punct[], ks__uni_old_mark[]; /* start, end (exclusive), start, end ... */
extern const uint32_t ks__uni_n_old_punct, ks__uni_n_old_mark;

/* Full decompositions, sorted by code point; compat holds only what differs from canon. */
extern const uint32_t ks__uni_decomp_data[];
extern const ks_uni_decomp ks__uni_canon[], ks__uni_compat[];
extern const uint32_t ks__uni_n_canon, ks__uni_n_compat;
extern const ks_uni_pair ks__uni_pair[]; /* sorted by first, second */
extern const uint32_t ks__uni_n_pair;
extern const ks_uni_case ks__uni_lower[];
extern const uint32_t ks__uni_n_lower;

#endif
