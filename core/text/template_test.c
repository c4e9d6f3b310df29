/* Tests (`x is ...`) and global functions. */
#include "text/template_int.h"

#include <krasis/json.h>
#include <string.h>

typedef ks_tv tv;
#define FN(name) static ks_tv name(ks_trun *r, const ks_tv *a, const ks_tcall *c, const ks_tbuiltin *fn)
#define UNUSED(c, fn) ((void)(c), (void)(fn))

/* ---- tests */

/* arg: -1 divisible by a[1], else the remainder of 2. */
FN(t_divisible)
{
    UNUSED(c, fn);
    tv rest = ks__tv_binop(r, KS_TN_MOD, a[0], fn->arg < 0 ? a[1] : ks__tv_int(2));
    return ks__tv_bool(ks__tv_equal(r, rest, ks__tv_int(fn->arg < 0 ? 0 : fn->arg)));
}

/* arg: bits of the kinds it is true for. */
#define KIND(k) (INT64_C(1) << KS_TV_##k)
FN(t_kind)
{
    (void)r;
    (void)c;
    return ks__tv_bool((fn->arg >> a[0].kind & 1) != 0);
}

FN(t_true_false)
{
    (void)r;
    (void)c;
    return ks__tv_bool(a[0].kind == KS_TV_BOOL && a[0].u.b == (fn->arg != 0));
}

FN(t_iterable)
{
    UNUSED(c, fn);
    (void)r;
    ks_titer it;
    return ks__tv_bool(a[0].kind == KS_TV_LOOP || ks__iter_begin(a[0], &it));
}

FN(t_sameas)
{
    UNUSED(c, fn);
    if (a[0].kind != a[1].kind) return ks__tv_bool(false);
    if (a[0].kind <= KS_TV_STR && a[0].kind != KS_TV_UNDEF) return ks__tv_bool(ks__tv_equal(r, a[0], a[1]));
    return ks__tv_bool(a[0].u.l == a[1].u.l);
}

FN(t_escaped)
{
    UNUSED(c, fn);
    (void)r;
    return ks__tv_bool(a[0].kind == KS_TV_STR && a[0].u.s->markup);
}

FN(t_in)
{
    UNUSED(c, fn);
    return ks__tv_bool(ks__tv_contains(r, a[0], a[1]));
}

/* arg: KS_TCMP_ */
FN(t_compare)
{
    (void)c;
    if (fn->arg == KS_TCMP_EQ) return ks__tv_bool(ks__tv_equal(r, a[0], a[1]));
    if (fn->arg == KS_TCMP_NE) return ks__tv_bool(!ks__tv_equal(r, a[0], a[1]));
    int o = ks__tv_order(r, a[0], a[1], fn->name);
    if (o == 2) return ks__tv_bool(false);
    return ks__tv_bool(fn->arg == KS_TCMP_LT   ? o < 0
                       : fn->arg == KS_TCMP_LE ? o <= 0
                       : fn->arg == KS_TCMP_GT ? o > 0
                                               : o >= 0);
}

/* arg: 1 upper, 0 lower: has letters of that case and none of the other. */
FN(t_case)
{
    (void)c;
    const ks_tstr *s = ks__tv_text(r, a[0]);
    const ks_tbuiltin *m = ks__str_method_find(fn->arg ? "isupper" : "islower", 7);
    tv pos = { .kind = KS_TV_STR, .u.s = s };
    return ks__tr_call_builtin(r, m, &(ks_tcall) { .pos = &pos, .n_pos = 1 }, "test");
}

FN(t_name)
{
    (void)c;
    ks__tv_need_defined(r, a[0]);
    if (a[0].kind != KS_TV_STR) return ks__tv_bool(false);
    const ks_tstr *s = a[0].u.s;
    return ks__tv_bool((fn->arg ? ks__filter_find(s->p, s->n) : ks__test_find(s->p, s->n)) != NULL);
}

const ks_tbuiltin *ks__test_find(const char *name, size_t n)
{
    static const ks_tbuiltin rows[] = {
        { "odd", t_divisible, "value", 1 },
        { "even", t_divisible, "value", 0 },
        { "divisibleby", t_divisible, "value,num", -1 },
        { "defined", t_kind, "value", ~KIND(UNDEF) },
        { "undefined", t_kind, "value", KIND(UNDEF) },
        { "none", t_kind, "value", KIND(NONE) },
        { "boolean", t_kind, "value", KIND(BOOL) },
        { "integer", t_kind, "value", KIND(INT) | KIND(BIG) },
        { "float", t_kind, "value", KIND(FLOAT) },
        { "number", t_kind, "value", KIND(BOOL) | KIND(INT) | KIND(BIG) | KIND(FLOAT) },
        { "string", t_kind, "value", KIND(STR) },
        { "mapping", t_kind, "value", KIND(DICT) },
        { "sequence", t_kind, "value", KIND(UNDEF) | KIND(STR) | KIND(LIST) | KIND(TUPLE) | KIND(DICT) | KIND(RANGE) },
        { "callable", t_kind, "value",
          KIND(UNDEF) | KIND(MACRO) | KIND(FUNC) | KIND(METHOD) | KIND(LOOP) | KIND(JOINER) },
        { "true", t_true_false, "value", 1 },
        { "false", t_true_false, "value", 0 },
        { "iterable", t_iterable, "value", 0 },
        { "sameas", t_sameas, "value,other", 0 },
        { "escaped", t_escaped, "value", 0 },
        { "in", t_in, "value,seq", 0 },
        { "lower", t_case, "value", 0 },
        { "upper", t_case, "value", 1 },
        { "filter", t_name, "value", 1 },
        { "test", t_name, "value", 0 },
        { "==", t_compare, "/a,b", KS_TCMP_EQ },
        { "eq", t_compare, "/a,b", KS_TCMP_EQ },
        { "equalto", t_compare, "/a,b", KS_TCMP_EQ },
        { "!=", t_compare, "/a,b", KS_TCMP_NE },
        { "ne", t_compare, "/a,b", KS_TCMP_NE },
        { ">", t_compare, "/a,b", KS_TCMP_GT },
        { "gt", t_compare, "/a,b", KS_TCMP_GT },
        { "greaterthan", t_compare, "/a,b", KS_TCMP_GT },
        { ">=", t_compare, "/a,b", KS_TCMP_GE },
        { "ge", t_compare, "/a,b", KS_TCMP_GE },
        { "<", t_compare, "/a,b", KS_TCMP_LT },
        { "lt", t_compare, "/a,b", KS_TCMP_LT },
        { "lessthan", t_compare, "/a,b", KS_TCMP_LT },
        { "<=", t_compare, "/a,b", KS_TCMP_LE },
        { "le", t_compare, "/a,b", KS_TCMP_LE },
    };
    return ks__table_find(rows, KS_COUNT(rows), name, n);
}

/* ---- functions */

FN(g_range)
{
    UNUSED(c, fn);
    int64_t one = ks__arg_int(r, a[0], "range"), start = 0, stop = one, step = ks__arg_int_or(r, a[2], 1, "range");
    if (a[1].kind != KS_TV_MISSING) {
        start = one;
        stop = ks__arg_int(r, a[1], "range");
    }
    if (step == 0) ks__tr_fail(r, "range: the step cannot be zero");
    bool any = step > 0 ? start < stop : start > stop;
    uint64_t span = !any ? 0 : step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    uint64_t width = step > 0 ? (uint64_t)step : -(uint64_t)step, n = span / width + (span % width != 0);
    if (n > KS_TMPL_RANGE_MAX)
        ks__tr_fail(r, "range: %llu numbers are more than the limit of %d", (unsigned long long)n, KS_TMPL_RANGE_MAX);
    ks_trange *x = ks__tr_alloc(r, 1, sizeof *x);
    *x = (ks_trange) { .start = start, .stop = stop, .step = step, .n = (int64_t)n };
    return (tv) { .kind = KS_TV_RANGE, .u.range = x };
}

/* dict(mapping or pairs, key=value ...); the same for a namespace's attributes. */
static void fill_dict(ks_trun *r, ks_tdict *d, const ks_tcall *c, const char *what)
{
    if (c->n_pos > 1) ks__tr_fail(r, "%s takes one positional argument at most", what);
    if (c->n_pos && c->pos[0].kind == KS_TV_DICT) {
        const ks_tdict *from = c->pos[0].u.d;
        for (uint32_t i = 0; i < from->n; i++) ks__dict_set(r, d, from->keys[i], from->vals[i]);
    } else if (c->n_pos) {
        ks_titer it;
        tv pair;
        ks__iter_need(r, c->pos[0], &it);
        while (ks__iter_next(r, &it, &pair)) {
            tv kv = ks__tv_to_list(r, pair);
            if (kv.u.l->n != 2) ks__tr_fail(r, "%s needs pairs of a key and a value", what);
            ks__dict_set(r, d, kv.u.l->v[0], kv.u.l->v[1]);
        }
    }
    for (uint32_t i = 0; i < c->n_kw; i++)
        ks__dict_set(r, d, (tv) { .kind = KS_TV_STR, .u.s = c->kw_names[i] }, c->kw[i]);
}

FN(g_dict)
{
    UNUSED(a, fn);
    tv d = ks__tv_dict(r);
    fill_dict(r, d.u.d, c, "dict");
    return d;
}

FN(g_namespace)
{
    UNUSED(a, fn);
    ks_tns *ns = ks__tr_alloc(r, 1, sizeof *ns);
    fill_dict(r, &ns->d, c, "namespace");
    return (tv) { .kind = KS_TV_NS, .u.ns = ns };
}

FN(g_cycler)
{
    UNUSED(a, fn);
    if (!c->n_pos) ks__tr_fail(r, "cycler needs at least one item");
    ks_tcycler *y = ks__tr_alloc(r, 1, sizeof *y);
    y->items = ks__tv_list(r, c->n_pos).u.l;
    for (uint32_t i = 0; i < c->n_pos; i++) ks__list_push(r, y->items, c->pos[i]);
    return (tv) { .kind = KS_TV_CYCLER, .u.cycler = y };
}

FN(g_joiner)
{
    UNUSED(c, fn);
    ks_tcycler *y = ks__tr_alloc(r, 1, sizeof *y);
    y->sep = a[0].kind == KS_TV_MISSING ? ks__tv_strz(r, ", ") : a[0];
    return (tv) { .kind = KS_TV_JOINER, .u.cycler = y };
}

FN(g_raise)
{
    UNUSED(c, fn);
    const ks_tstr *s = ks__tv_text(r, a[0]);
    ks__tr_fail(r, "%.*s", (int)KS_MIN(s->n, (size_t)400), s->p);
}

FN(g_strftime_now)
{
    UNUSED(c, fn);
    return ks__strftime(r, ks__arg_str(r, a[0], "format"), r->now_unix);
}

const ks_tbuiltin *ks__global_find(const char *name, size_t n)
{
    static const ks_tbuiltin rows[] = {
        { "range", g_range, "/start,stop=,step=", 0 },
        { "dict", g_dict, "/*", 0 },
        { "namespace", g_namespace, "/*", 0 },
        { "cycler", g_cycler, "/*", 0 },
        { "joiner", g_joiner, "sep=", 0 },
        { "raise_exception", g_raise, "message", 0 },
        { "strftime_now", g_strftime_now, "format", 0 },
    };
    return ks__table_find(rows, KS_COUNT(rows), name, n);
}
