/* Cutting text into the pieces that BPE sees: patterns, and the chain of pre-tokenizers. Private to text/.
 *
 * Both are immutable after they are built and may be used by any thread; what a run needs lies in the run. [any]
 */
#ifndef KS_TEXT_PRETOK_H
#define KS_TEXT_PRETOK_H

#include "base/buf.h"
#include "text/unicode.h"

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Patterns: the regular expressions of tokenizer files.
 *
 * ks_pattern_new takes the text apart into its alternatives and compiles each to a scanner over sets of code points
 * (pretok_pattern.c): sequences of classes with greedy or possessive counts, groups, one-character look-around. Every
 * pattern of the model families that we know is of that form. Anything else goes to PCRE2, whose Unicode is older:
 * ks_pattern_is_foreign tells, so that the caller can warn. */
typedef struct ks_pattern ks_pattern;

KS_MUST_CHECK int ks_pattern_new(const char *text, size_t n, ks_pattern **ret, ks_err *err);
/* One character of the set. */
KS_MUST_CHECK int ks_pattern_from_ranges(ks_uni_ranges *a, ks_pattern **ret, ks_err *err);
/* The characters of text as they are; an empty text never matches. */
KS_MUST_CHECK int ks_pattern_from_text(const char *text, size_t n, ks_pattern **ret, ks_err *err);
void ks_pattern_free(ks_pattern *p);
bool ks_pattern_is_foreign(const ks_pattern *p);
/* The leftmost match at or after `from`: 1 with its ends, 0 if there is none, or an error (pattern too slow). */
KS_MUST_CHECK int ks_pattern_find(const ks_pattern *p, const uint8_t *s, size_t n, size_t from, size_t *ret_begin,
                                  size_t *ret_end, ks_err *err);

/* Walks all matches: each once, an empty match directly after another one is passed over. */
typedef struct ks_matches {
    const ks_pattern *p;
    const uint8_t *s;
    size_t n, at, last_end;
    bool any;
} ks_matches;
KS_MUST_CHECK int ks_matches_next(ks_matches *m, size_t *ret_begin, size_t *ret_end, ks_err *err);

/* PCRE2 behind it (pretok_pcre.c). */
typedef struct ks_foreign ks_foreign;
KS_MUST_CHECK int ks_foreign_new(const char *text, size_t n, ks_foreign **ret, ks_err *err);
void ks_foreign_free(ks_foreign *f);
KS_MUST_CHECK int ks_foreign_find(const ks_foreign *f, const uint8_t *s, size_t n, size_t from, size_t *ret_begin,
                                  size_t *ret_end, ks_err *err);

/* ---- Pre-tokenizers */

enum { KS_SPLIT_REMOVED, KS_SPLIT_ISOLATED, KS_SPLIT_PREVIOUS, KS_SPLIT_NEXT, KS_SPLIT_CONTIGUOUS };
enum { KS_STAGE_SPLIT, KS_STAGE_PREFIX_SPACE, KS_STAGE_METASPACE, KS_STAGE_BYTE_CHARS };
enum { KS_METASPACE_ALWAYS, KS_METASPACE_FIRST, KS_METASPACE_NEVER };

typedef struct ks_stage {
    int type;
    int behavior;        /* SPLIT: KS_SPLIT_ */
    bool invert;         /* SPLIT: matches and gaps change places */
    ks_pattern *pattern; /* SPLIT, owned */
    int scheme;          /* METASPACE: KS_METASPACE_ */
    char replacement[5]; /* METASPACE: one character */
} ks_stage;

#define KS_STAGES_MAX 32u

typedef struct ks_pretok {
    ks_stage stage[KS_STAGES_MAX];
    uint32_t n;
} ks_pretok;

void ks_pretok_fini(ks_pretok *t);

typedef int (*ks_piece_fn)(void *user, const uint8_t *s, size_t n, ks_err *err);

/* Buffers of one run, one a stage that rewrites text. Zeroed at first; kept between pieces to spare allocations. */
typedef struct ks_pretok_run {
    const ks_pretok *t;
    ks_piece_fn fn;
    void *user;
    ks_buf scratch[KS_STAGES_MAX];
} ks_pretok_run;

/* Sends the pieces of s to run->fn in order. first: s begins where the whole text began. */
KS_MUST_CHECK int ks_pretok_feed(ks_pretok_run *run, const uint8_t *s, size_t n, bool first, ks_err *err);
void ks_pretok_run_fini(ks_pretok_run *run);

/* GPT-2's bytes as printable characters: appends the characters for n bytes. */
void ks_byte_chars(const uint8_t *s, size_t n, ks_buf *out);
/* The byte that a character stands for; -1: none. */
int ks_byte_of_char(uint32_t cp);
uint32_t ks_char_of_byte(uint8_t b);

#endif
