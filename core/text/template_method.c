/* Methods of mappings, lists, numbers and helpers, and which names of an object templates may not touch: what the
 * template was given is not changed by it, so `append` and its kin are an error when called. */
#include "text/template_int.h"

#include <math.h>
#include <string.h>

typedef ks_tv tv;
#define FN(name) static ks_tv name(ks_trun *r, const ks_tv *a, const ks_tcall *c, const ks_tbuiltin *fn)
#define UNUSED(c, fn) ((void)(c), (void)(fn))

FN(d_get)
{
    UNUSED(c, fn);
    const tv *v = ks__dict_get(r, a[0].u.d, a[1]);
    if (v) return *v;
    return a[2].kind == KS_TV_MISSING ? ks__tv_none() : a[2];
}

FN(d_view)
{
    UNUSED(c, fn);
    (void)r;
    return (tv) { .kind = KS_TV_VIEW, .flag = (uint8_t)fn->arg, .u.d = a[0].u.d };
}

FN(d_copy)
{
    UNUSED(c, fn);
    tv d = ks__tv_dict(r);
    for (uint32_t i = 0; i < a[0].u.d->n; i++) ks__dict_set(r, d.u.d, a[0].u.d->keys[i], a[0].u.d->vals[i]);
    return d;
}

FN(l_copy)
{
    UNUSED(c, fn);
    return ks__tv_to_list(r, a[0]);
}

FN(l_count)
{
    UNUSED(c, fn);
    int64_t n = 0;
    ks_titer it;
    tv v;
    ks__iter_need(r, a[0], &it);
    while (ks__iter_next(r, &it, &v)) n += ks__tv_equal(r, v, a[1]);
    return ks__tv_int(n);
}

FN(l_index)
{
    UNUSED(c, fn);
    int64_t n = ks__tv_len(r, a[0]), from = ks__arg_int_or(r, a[2], 0, "start"),
            to = ks__arg_int_or(r, a[3], n, "stop");
    from = from < 0 ? KS_MAX(from + n, 0) : from;
    to = to < 0 ? to + n : KS_MIN(to, n);
    for (int64_t i = from; i < to; i++)
        if (ks__tv_equal(r, ks__tv_item(r, a[0], ks__tv_int(i)), a[1])) return ks__tv_int(i);
    ks__tr_fail(r, "index: the value is not in the list");
}

FN(f_is_integer)
{
    UNUSED(c, fn);
    (void)r;
    return ks__tv_bool(a[0].kind != KS_TV_FLOAT || floor(a[0].u.f) == a[0].u.f);
}

FN(i_bit_length)
{
    UNUSED(c, fn);
    (void)r;
    int64_t i = 0, n = 0;
    (void)ks__tv_to_int(a[0], &i); /* the row is for integers */
    for (uint64_t u = i < 0 ? -(uint64_t)i : (uint64_t)i; u; u >>= 1) n++;
    return ks__tv_int(n);
}

FN(c_next)
{
    UNUSED(c, fn);
    (void)r;
    ks_tcycler *y = a[0].u.cycler;
    tv v = y->items->v[y->at];
    y->at = (y->at + 1) % y->items->n;
    return v;
}

FN(c_reset)
{
    UNUSED(c, fn);
    (void)r;
    a[0].u.cycler->at = 0;
    return ks__tv_none();
}

const ks_tbuiltin *ks__method_find(ks_tv self, const ks_tstr *name)
{
    static const ks_tbuiltin dict[] = {
        { "get", d_get, "/self,key,default=", 0 },
        { "items", d_view, "/self", KS_TVIEW_ITEMS },
        { "keys", d_view, "/self", KS_TVIEW_KEYS },
        { "values", d_view, "/self", KS_TVIEW_VALUES },
        { "copy", d_copy, "/self", 0 },
    };
    static const ks_tbuiltin list[] = {
        { "count", l_count, "/self,value", 0 },
        { "index", l_index, "/self,value,start=,stop=", 0 },
        { "copy", l_copy, "/self", 0 }, /* of lists only: last */
    };
    static const ks_tbuiltin number[] = {
        { "is_integer", f_is_integer, "/self", 0 },
        { "bit_length", i_bit_length, "/self", 0 },
    };
    static const ks_tbuiltin cycler[] = {
        { "next", c_next, "/self", 0 },
        { "reset", c_reset, "/self", 0 },
    };
    switch (self.kind) {
    case KS_TV_STR: return ks__str_method_find(name->p, name->n);
    case KS_TV_DICT: return ks__table_find(dict, KS_COUNT(dict), name->p, name->n);
    case KS_TV_LIST: return ks__table_find(list, KS_COUNT(list), name->p, name->n);
    case KS_TV_TUPLE:
    case KS_TV_RANGE: return ks__table_find(list, KS_COUNT(list) - 1, name->p, name->n);
    case KS_TV_FLOAT: return ks__table_find(number, 1, name->p, name->n);
    case KS_TV_INT:
    case KS_TV_BOOL: return ks__table_find(number + 1, 1, name->p, name->n);
    case KS_TV_CYCLER: return ks__table_find(cycler, KS_COUNT(cycler), name->p, name->n);
    default: return NULL;
    }
}

static bool is_listed(const ks_tstr *name, const char *list)
{
    for (const char *p = list; p; p = strchr(p, ' ')) {
        if (*p == ' ') p++;
        size_t n = strcspn(p, " ");
        if (n == name->n && memcmp(p, name->p, n) == 0) return true;
    }
    return false;
}

bool ks__is_unsafe_name(ks_tv self, const ks_tstr *name)
{
    if (name->n > 4 && memcmp(name->p, "__", 2) == 0) return is_listed(name, "__class__ __doc__ __dict__ __init__");
    if (self.kind == KS_TV_DICT) return is_listed(name, "clear pop popitem setdefault update");
    if (self.kind == KS_TV_LIST) return is_listed(name, "append clear pop reverse insert sort extend remove");
    return false;
}
