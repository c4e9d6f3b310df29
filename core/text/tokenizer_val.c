/* JSON values by their place in the text. [any] */
#include "text/tokenizer_val.h"

#include "base/base.h"

#include <string.h>

ks_val ks_val_here(ks_json *j, int token)
{
    const char *p = j->tok;
    if (token == KS_JSON_OBJECT || token == KS_JSON_ARRAY) {
        if (ks_json_skip(j)) return (ks_val) { 0 };
        return (ks_val) { token, p, (size_t)(j->text + j->at - p) };
    }
    if (token == KS_JSON_STRING || token == KS_JSON_KEY) return (ks_val) { token, p - 1, j->tok_bytes + 2 };
    return (ks_val) { token, p, j->tok_bytes };
}

int ks_val_parse(const char *text, size_t n, const char *what, ks_val *ret, ks_err *err)
{
    ks_json j;
    ks_json_init(&j, text, n, KS_VAL_DEPTH);
    int token = ks_json_next(&j);
    ks_val v = token > 0 ? ks_val_here(&j, token) : (ks_val) { 0 };
    if (j.error || ks_json_next(&j) != KS_JSON_END) return ks_json_fail(&j, err, what);
    *ret = v;
    return 0;
}

void ks_val_begin(ks_val_iter *it, ks_val v)
{
    it->key = it->item = (ks_val) { 0 };
    ks_json_init(&it->j, v.p, v.n, KS_VAL_DEPTH);
    int token = v.type == KS_JSON_OBJECT || v.type == KS_JSON_ARRAY ? ks_json_next(&it->j) : 0;
    if (token <= 0) ks_json_init(&it->j, NULL, 0, 1); /* no items */
}

bool ks_val_next(ks_val_iter *it)
{
    int token = ks_json_next(&it->j);
    it->key = (ks_val) { 0 };
    if (token == KS_JSON_KEY) {
        it->key = ks_val_here(&it->j, token);
        token = ks_json_next(&it->j);
    }
    if (token <= 0 || token == KS_JSON_OBJECT_END || token == KS_JSON_ARRAY_END) return false;
    it->item = ks_val_here(&it->j, token);
    return it->item.type > 0;
}

void ks_val_members(ks_val object, const char *const *names, size_t n, ks_val *ret)
{
    for (size_t i = 0; i < n; i++) ret[i] = (ks_val) { 0 };
    if (object.type != KS_JSON_OBJECT) return;
    ks_val_iter it;
    ks_val_begin(&it, object);
    while (ks_val_next(&it))
        for (size_t i = 0; i < n; i++)
            if (ks_val_is(it.key, names[i])) ret[i] = it.item;
}

ks_val ks_val_get(ks_val object, const char *name)
{
    ks_val v;
    ks_val_members(object, &name, 1, &v);
    return v;
}

/* A reader that stands on the value; a key is read as the string that it is. */
static bool reread(ks_val v, ks_json *j)
{
    if (v.type == KS_JSON_END) return false;
    ks_json_init(j, v.p, v.n, KS_VAL_DEPTH);
    return ks_json_next(j) > 0;
}

bool ks_val_is(ks_val v, const char *s)
{
    size_t n = strlen(s);
    if (v.n == n + 2 && (v.type == KS_JSON_STRING || v.type == KS_JSON_KEY) && !memcmp(v.p + 1, s, n)) return true;
    ks_json j;
    return v.n > n + 2 && reread(v, &j) && ks_json_is(&j, s); /* longer: with escapes, perhaps */
}

bool ks_val_u64(ks_val v, uint64_t *ret)
{
    ks_json j;
    return v.type == KS_JSON_NUMBER && reread(v, &j) && !ks_json_u64(&j, ret);
}

char *ks_val_str(ks_val v, ks_arena *arena, size_t *ret_n)
{
    ks_json j;
    size_t n = 0;
    if ((v.type != KS_JSON_STRING && v.type != KS_JSON_KEY) || !reread(v, &j)) return NULL;
    char *s = ks_arena_alloc(arena, j.tok_bytes + 1);
    if (!s || ks_json_str(&j, s, j.tok_bytes + 1, &n)) return NULL;
    if (ret_n) *ret_n = n;
    return s;
}
