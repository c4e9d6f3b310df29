/* JSON values by their place in the text: for the small parts of tokenizer files, whose members come in any order. The
 * large ones (vocabulary, merges) are read straight from krasis/json.h. A ks_val points into the text. [any] */
#ifndef KS_TEXT_TOKENIZER_VAL_H
#define KS_TEXT_TOKENIZER_VAL_H

#include "base/arena.h"

#include <krasis/json.h>

#define KS_VAL_DEPTH 64u

typedef struct ks_val {
    int type; /* KS_JSON_; KS_JSON_END: absent */
    const char *p;
    size_t n;
} ks_val;

/* The value whose first token the reader just gave; leaves the reader behind it. */
ks_val ks_val_here(ks_json *j, int token);
/* Checks the whole text. */
KS_MUST_CHECK int ks_val_parse(const char *text, size_t n, const char *what, ks_val *ret, ks_err *err);
/* One pass for several members; absent ones become KS_JSON_END, of a name that comes twice the last counts. */
void ks_val_members(ks_val object, const char *const *names, size_t n, ks_val *ret);
ks_val ks_val_get(ks_val object, const char *name);

/* The items of an array or the members of an object, in order. */
typedef struct ks_val_iter {
    ks_json j;
    ks_val key; /* of an object */
    ks_val item;
} ks_val_iter;
void ks_val_begin(ks_val_iter *it, ks_val v);
bool ks_val_next(ks_val_iter *it);

bool ks_val_is(ks_val v, const char *s); /* the string s */
static inline bool ks_val_true(ks_val v)
{
    return v.type == KS_JSON_TRUE;
}
/* Absent or null. */
static inline bool ks_val_none(ks_val v)
{
    return v.type == KS_JSON_END || v.type == KS_JSON_NULL;
}
bool ks_val_u64(ks_val v, uint64_t *ret);
/* A copy of the string in the arena, NUL-terminated; NULL: not a string, or out of memory. */
char *ks_val_str(ks_val v, ks_arena *arena, size_t *ret_n);

#endif
