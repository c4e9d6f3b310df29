/* Unicode 16 classes and scripts, sets of code points, and the normal forms. Text is well-formed UTF-8. [any]
 *
 * Own tables instead of a library's: token ids depend on which Unicode version decides what a letter is, and Debian's
 * libraries are two versions behind the tokenizers that models are trained with.
 */
#ifndef KS_TEXT_UNICODE_H
#define KS_TEXT_UNICODE_H

#include "base/buf.h"

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KS_UNI_MAX 0x10ffffu

/* A list of ranges, both ends inclusive. Zeroed is empty; a failed allocation is sticky. */
typedef struct ks_uni_ranges {
    struct ks_uni_range {
        uint32_t lo, hi;
    } * r;
    size_t n, cap;
    bool failed;
} ks_uni_ranges;

void ks_uni_ranges_fini(ks_uni_ranges *a);
void ks_uni_add(ks_uni_ranges *a, uint32_t lo, uint32_t hi);
void ks_uni_add_all(ks_uni_ranges *a, const ks_uni_ranges *b);
void ks_uni_tidy(ks_uni_ranges *a); /* sorts and joins; the two below do it themselves */
void ks_uni_invert(ks_uni_ranges *a);
void ks_uni_intersect(ks_uni_ranges *a, ks_uni_ranges *b); /* a = a and b */
/* Adds a general category ("L", "Lu", "LC"), a script ("Han") or "Any"; case, spaces and underscores do not matter.
 * False: no such name. */
bool ks_uni_add_property(ks_uni_ranges *a, const char *name, size_t n);
void ks_uni_add_space(ks_uni_ranges *a); /* White_Space */
void ks_uni_add_word(ks_uni_ranges *a);  /* Alphabetic, M, Nd, Pc */
/* The punctuation of Unicode 8 and all of ASCII's: what the Punctuation pre-tokenizer was built with. */
void ks_uni_add_old_punctuation(ks_uni_ranges *a);

/* A set that answers in two loads. Immutable after ks_uni_set_new. */
typedef struct ks_uni_set {
    uint8_t byte[256]; /* by first byte: 1: member, 0: not, 2: decode it and ask ks_uni_set_has */
    uint16_t *page;    /* into bits, by code point / 256; NULL: only ASCII, as nearly all literals */
    uint64_t (*bits)[4];
} ks_uni_set;

ks_uni_set *ks_uni_set_new(ks_uni_ranges *a); /* NULL: out of memory, now or when the ranges were built */
void ks_uni_set_free(ks_uni_set *s);

static inline bool ks_uni_set_has(const ks_uni_set *s, uint32_t cp)
{
    if (cp < 0x80) return s->byte[cp];
    return s->page && s->bits[s->page[cp >> 8]][(cp >> 6) & 3] >> (cp & 63) & 1;
}

/* The code point at p, which must be the start of a well-formed sequence; *ret_len 1 to 4. */
static inline uint32_t ks_uni_get(const uint8_t *p, uint32_t *ret_len)
{
    uint32_t c = p[0];
    if (c < 0x80) return *ret_len = 1, c;
    if (c < 0xe0) return *ret_len = 2, (c & 0x1f) << 6 | (p[1] & 0x3fu);
    if (c < 0xf0) return *ret_len = 3, (c & 0x0f) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    return *ret_len = 4, (c & 0x07) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

bool ks_uni_is_space(uint32_t cp); /* White_Space */

enum { KS_NFC, KS_NFD, KS_NFKC, KS_NFKD };
/* True if the form certainly leaves the text as it is (most text does not need the tables). */
bool ks_uni_is_normal(int form, const char *s, size_t n);
/* Appends the normal form of s to out (failure is out's). Linear, however many marks are stacked. */
void ks_uni_normalize(int form, const char *s, size_t n, ks_buf *out);
uint32_t ks_uni_lower(uint32_t cp); /* simple mapping */
bool ks_uni_is_mark(uint32_t cp);   /* category M, as of Unicode 9 like the normal forms */

#endif
