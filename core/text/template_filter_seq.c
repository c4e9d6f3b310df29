/* Filters on sequences and mappings. map, select and their kin are lazy, as in the definition: they make an
 * iterator that is always true, has no length and is consumed once. */
#include "text/template_int.h"

#include <krasis/json.h>
#include <string.h>

typedef ks_tv tv;
#define FN(name) static ks_tv name(ks_trun *r, const ks_tv *a, const ks_tcall *c, const ks_tbuiltin *fn)
#define UNUSED(c, fn) ((void)(c), (void)(fn))

static const tv no_value = { .kind = KS_TV_MISSING };

ks_tv ks__fold_case(ks_trun *r, ks_tv v)
{
    if (v.kind != KS_TV_STR) return v;
    return ks__tr_call_builtin(r, ks__str_method_find("lower", 5), &(ks_tcall) { .pos = &v, .n_pos = 1 }, "filter");
}

FN(f_length)
{
    UNUSED(c, fn);
    int64_t n = ks__tv_len(r, a[0]);
    if (n < 0) ks__tr_fail(r, "a value of type '%s' has no length", ks__tv_type(a[0]));
    return ks__tv_int(n);
}

FN(f_list)
{
    UNUSED(c, fn);
    return ks__tv_to_list(r, a[0]);
}

/* Lazy as well: what is no mapping is an error once it is walked. */
FN(f_items)
{
    UNUSED(c, fn);
    bool none = a[0].kind == KS_TV_UNDEF;
    ks_titer it = { .kind = none ? KS_TITER_NONE : KS_TITER_DICT, .src = a[0], .flag = KS_TVIEW_ITEMS };
    return ks__tv_iter(r, &it);
}

FN(f_first)
{
    UNUSED(c, fn);
    ks_titer it;
    tv v;
    ks__iter_need(r, a[0], &it);
    return ks__iter_next(r, &it, &v) ? v : ks__tv_undef(r, "there is no first item: the sequence is empty");
}

FN(f_last)
{
    UNUSED(c, fn);
    if (a[0].kind == KS_TV_ITER)
        ks__tr_fail(r, "last: a value of type '%s' cannot be walked from its end", ks__tv_type(a[0]));
    if (a[0].kind == KS_TV_STR) {
        size_t n = ks__str_cps(a[0].u.s);
        if (n) {
            tv s = ks__str_sub(r, a[0].u.s, n - 1, n);
            return ks__str_piece(r, s.u.s, 0, s.u.s->n, false);
        }
    }
    tv list = ks__tv_to_list(r, a[0]);
    if (!list.u.l->n) return ks__tv_undef(r, "there is no last item: the sequence is empty");
    return list.u.l->v[list.u.l->n - 1];
}

FN(f_reverse)
{
    UNUSED(c, fn);
    if (a[0].kind == KS_TV_STR) return ks__tv_slice(r, a[0], no_value, no_value, ks__tv_int(-1));
    tv list = ks__tv_to_list(r, a[0]);
    return ks__tv_iter(r, &(ks_titer) { .kind = KS_TITER_REVERSED, .src = list });
}

FN(f_join)
{
    UNUSED(c, fn);
    ks_titer it;
    tv v, sep = a[1].kind == KS_TV_MISSING ? ks__tv_strz(r, "") : a[1];
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__iter_need(r, a[0], &it);
    const ks_tstr *d = r->autoescape ? ks__tv_escape(r, sep).u.s : ks__tv_text(r, sep);
    for (bool first = true; ks__iter_next(r, &it, &v); first = false) {
        if (!first) ks__sb_text(&b, d);
        v = ks__attr_path(r, v, a[2], no_value);
        ks__sb_str(&b, r->autoescape ? ks__tv_escape(r, v) : v);
    }
    return ks__sb_take(&b, r->autoescape);
}

/* ---- order */

/* Keys for sorting: of each item its attribute, without case unless asked. listed: a list of them, for "a,b" but also
 * for one: equal undefined ones then have no order that could fail, as in the definition. */
static tv sort_keys(ks_trun *r, tv items, tv attr, bool fold, bool listed)
{
    tv keys = ks__tv_list(r, items.u.l->n);
    const char *path = attr.kind == KS_TV_STR ? attr.u.s->p : "",
               *end = path + (attr.kind == KS_TV_STR ? attr.u.s->n : 0);
    for (uint32_t i = 0; i < items.u.l->n; i++) {
        tv item = items.u.l->v[i], key = ks__tv_list(r, 1);
        const char *p = path;
        for (const char *q = p; q <= end; q++) {
            if (q < end && (*q != ',' || !listed)) continue;
            tv part = attr.kind == KS_TV_STR ? ks__tv_ref(r, p, (size_t)(q - p), KS_TFROM_REQUEST) : attr;
            part = ks__attr_path(r, item, part, no_value);
            ks__list_push(r, key.u.l, fold ? ks__fold_case(r, part) : part);
            p = q + 1;
        }
        if (!listed) key = key.u.l->v[0];
        ks__list_push(r, keys.u.l, key);
    }
    return keys;
}

static tv sorted(ks_trun *r, tv items, tv keys, bool reverse)
{
    const uint32_t *order = ks__sort_order(r, keys.u.l->v, keys.u.l->n, reverse);
    tv out = ks__tv_list(r, items.u.l->n);
    for (uint32_t i = 0; i < items.u.l->n; i++) ks__list_push(r, out.u.l, items.u.l->v[order[i]]);
    return out;
}

FN(f_sort)
{
    UNUSED(c, fn);
    tv items = ks__tv_to_list(r, a[0]);
    tv keys = sort_keys(r, items, a[3], !ks__arg_bool_or(r, a[2], false), true);
    return sorted(r, items, keys, ks__arg_bool_or(r, a[1], false));
}

FN(f_dictsort)
{
    UNUSED(c, fn);
    if (a[0].kind != KS_TV_DICT) {
        ks__tv_need_defined(r, a[0]);
        ks__tr_fail(r, "dictsort needs a mapping, not '%s'", ks__tv_type(a[0]));
    }
    bool by_value = a[2].kind != KS_TV_MISSING && ks__str_is(ks__arg_str(r, a[2], "by"), "value");
    if (a[2].kind != KS_TV_MISSING && !by_value && !ks__str_is(a[2].u.s, "key"))
        ks__tr_fail(r, "dictsort: 'by' must be 'key' or 'value'");
    tv items = ks__tv_to_list(r, (tv) { .kind = KS_TV_VIEW, .flag = KS_TVIEW_ITEMS, .u.d = a[0].u.d });
    tv keys = sort_keys(r, items, ks__tv_int(by_value), !ks__arg_bool_or(r, a[1], false), false);
    return sorted(r, items, keys, ks__arg_bool_or(r, a[3], false));
}

FN(f_min_max)
{
    UNUSED(c, fn);
    tv items = ks__tv_to_list(r, a[0]);
    if (!items.u.l->n) return ks__tv_undef(r, "there is no such item: the sequence is empty");
    bool fold = !ks__arg_bool_or(r, a[1], false);
    uint32_t best = 0;
    tv best_key = ks__attr_path(r, items.u.l->v[0], a[2], no_value);
    if (fold) best_key = ks__fold_case(r, best_key);
    for (uint32_t i = 1; i < items.u.l->n; i++) {
        tv key = ks__attr_path(r, items.u.l->v[i], a[2], no_value);
        if (fold) key = ks__fold_case(r, key);
        int o = fn->arg > 0 ? ks__tv_order(r, key, best_key, ">") : ks__tv_order(r, key, best_key, "<");
        if (o != 2 && (fn->arg > 0 ? o > 0 : o < 0)) {
            best = i;
            best_key = key;
        }
    }
    return items.u.l->v[best];
}

FN(f_sum)
{
    UNUSED(c, fn);
    ks_titer it;
    tv v, sum = a[2].kind == KS_TV_MISSING ? ks__tv_int(0) : a[2];
    if (sum.kind == KS_TV_STR) ks__tr_fail(r, "sum cannot add up strings: use join");
    ks__iter_need(r, a[0], &it);
    while (ks__iter_next(r, &it, &v)) sum = ks__tv_binop(r, KS_TN_ADD, sum, ks__attr_path(r, v, a[1], no_value));
    return sum;
}

FN(f_groupby)
{
    UNUSED(c, fn);
    bool fold = !ks__arg_bool_or(r, a[3], false);
    tv items = ks__tv_to_list(r, a[0]), keys = ks__tv_list(r, items.u.l->n);
    for (uint32_t i = 0; i < items.u.l->n; i++) {
        tv key = ks__attr_path(r, items.u.l->v[i], a[1], a[2]);
        ks__list_push(r, keys.u.l, fold ? ks__fold_case(r, key) : key);
    }
    const uint32_t *order = ks__sort_order(r, keys.u.l->v, keys.u.l->n, false);
    tv groups = ks__tv_list(r, 0), members = no_value;
    for (uint32_t i = 0; i < items.u.l->n; i++) {
        tv item = items.u.l->v[order[i]];
        if (i == 0 || !ks__tv_equal(r, keys.u.l->v[order[i - 1]], keys.u.l->v[order[i]])) {
            tv group = ks__tv_list(r, 2);
            group.kind = KS_TV_TUPLE;
            group.flag = KS_TFLAG_GROUP;
            members = ks__tv_list(r, 0);
            ks__list_push(r, group.u.l, ks__attr_path(r, item, a[1], a[2])); /* the first one's own spelling */
            ks__list_push(r, group.u.l, members);
            ks__list_push(r, groups.u.l, group);
        }
        ks__list_push(r, members.u.l, item);
    }
    return groups;
}

/* ---- lazy ones */

static ks_titer *inner_iter(ks_trun *r, tv v)
{
    ks_titer *in = ks__tr_alloc(r, 1, sizeof *in);
    if (ks__tv_truth(r, v)) ks__iter_need(r, v, in); /* nothing at all is made of what is false, even of none */
    return in;
}

/* The arguments from `skip` on are those of the inner filter or test. */
static ks_tcall rest_of(const ks_tcall *c, uint32_t skip)
{
    ks_tcall rest = *c;
    rest.pos = c->pos + KS_MIN(skip, c->n_pos);
    rest.n_pos = c->n_pos - KS_MIN(skip, c->n_pos);
    return rest;
}

FN(f_map)
{
    (void)a;
    (void)fn;
    ks_titer it = { .kind = KS_TITER_MAP, .inner = inner_iter(r, c->pos[0]), .attr = no_value, .dflt = no_value };
    if (c->n_pos == 1 && c->n_kw) {
        it.kind = KS_TITER_MAPATTR;
        it.by_attr = true;
        for (uint32_t i = 0; i < c->n_kw; i++) {
            if (ks__str_is(c->kw_names[i], "attribute"))
                it.attr = c->kw[i];
            else if (ks__str_is(c->kw_names[i], "default"))
                it.dflt = c->kw[i];
            else
                ks__tr_fail(r, "map takes no keyword argument '%.*s'", (int)KS_MIN(c->kw_names[i]->n, (size_t)60),
                            c->kw_names[i]->p);
        }
        if (it.attr.kind == KS_TV_MISSING) ks__tr_fail(r, "map needs a filter's name or an attribute");
        return ks__tv_iter(r, &it);
    }
    if (c->n_pos < 2) ks__tr_fail(r, "map needs a filter's name or an attribute");
    const ks_tstr *name = ks__arg_str(r, c->pos[1], "filter");
    it.fn = ks__filter_find(name->p, name->n);
    if (!it.fn) ks__tr_fail(r, "there is no filter '%.*s'", (int)KS_MIN(name->n, (size_t)60), name->p);
    it.call = rest_of(c, 2);
    return ks__tv_iter(r, &it);
}

/* arg: bit 0 the wanted outcome, bit 1 look at an attribute. */
FN(f_select)
{
    (void)a;
    ks_titer it = { .kind = KS_TITER_SELECT, .inner = inner_iter(r, c->pos[0]), .attr = no_value, .dflt = no_value };
    it.want = fn->arg & 1;
    it.by_attr = (fn->arg & 2) != 0;
    uint32_t at = 1;
    if (it.by_attr) {
        if (c->n_pos < 2) ks__tr_fail(r, "%s needs an attribute's name", fn->name);
        it.attr = c->pos[at++];
    }
    if (c->n_pos > at) {
        const ks_tstr *name = ks__arg_str(r, c->pos[at], "test");
        it.fn = ks__test_find(name->p, name->n);
        if (!it.fn) ks__tr_fail(r, "there is no test '%.*s'", (int)KS_MIN(name->n, (size_t)60), name->p);
    }
    it.call = rest_of(c, at + 1);
    return ks__tv_iter(r, &it);
}

FN(f_unique)
{
    UNUSED(c, fn);
    ks_titer it = { .kind = KS_TITER_UNIQUE, .attr = a[2], .dflt = no_value, .by_attr = true };
    it.inner = ks__tr_alloc(r, 1, sizeof *it.inner);
    ks__iter_need(r, a[0], it.inner);
    it.fold = !ks__arg_bool_or(r, a[1], false);
    it.seen = ks__tv_dict(r).u.d;
    return ks__tv_iter(r, &it);
}

/* ---- columns and rows */

static tv as_iter(ks_trun *r, tv list)
{
    return ks__tv_iter(r, &(ks_titer) { .kind = KS_TITER_LIST, .src = list });
}

FN(f_batch)
{
    UNUSED(c, fn);
    int64_t n = ks__arg_int(r, a[1], "linecount");
    tv rows = ks__tv_list(r, 0), row = no_value, v;
    ks_titer it;
    ks__iter_need(r, a[0], &it);
    bool fill = a[2].kind != KS_TV_MISSING && a[2].kind != KS_TV_NONE;
    while (ks__iter_next(r, &it, &v)) {
        if (row.kind == KS_TV_MISSING || (int64_t)row.u.l->n == n) {
            row = ks__tv_list(r, 0);
            ks__list_push(r, rows.u.l, row);
        }
        ks__list_push(r, row.u.l, v);
    }
    while (fill && row.kind != KS_TV_MISSING && (int64_t)row.u.l->n < n) ks__list_push(r, row.u.l, a[2]);
    return as_iter(r, rows);
}

FN(f_slice)
{
    UNUSED(c, fn);
    tv items = ks__tv_to_list(r, a[0]), cols = ks__tv_list(r, 0);
    int64_t n = ks__arg_int(r, a[1], "slices"), len = items.u.l->n, at = 0;
    bool fill = a[2].kind != KS_TV_MISSING && a[2].kind != KS_TV_NONE;
    if (n == 0) ks__tr_fail(r, "slice: division by zero: the number of slices is 0");
    for (int64_t i = 0; i < n; i++) {
        tv col = ks__tv_list(r, 0);
        bool extra = i < len % n;
        for (int64_t k = 0; k < len / n + extra; k++) ks__list_push(r, col.u.l, items.u.l->v[at++]);
        if (fill && !extra) ks__list_push(r, col.u.l, a[2]);
        ks__list_push(r, cols.u.l, col);
    }
    return as_iter(r, cols);
}

/* obj|attr('x'): attributes only, never items. */
FN(f_attr)
{
    UNUSED(c, fn);
    const ks_tstr *name = ks__arg_str(r, a[1], "name");
    if (a[0].kind == KS_TV_DICT && !ks__method_find(a[0], name) && !ks__is_unsafe_name(a[0], name))
        return ks__tv_undef(r, "the mapping has no such attribute");
    return ks__tv_attr(r, a[0], name);
}

const ks_tbuiltin *ks__filter_seq_find(const char *name, size_t n)
{
    static const ks_tbuiltin rows[] = {
        { "attr", f_attr, "obj,name", 0 },
        { "batch", f_batch, "value,linecount,fill_with=", 0 },
        { "count", f_length, "/obj", 0 },
        { "dictsort", f_dictsort, "value,case_sensitive=,by=,reverse=", 0 },
        { "first", f_first, "seq", 0 },
        { "groupby", f_groupby, "value,attribute,default=,case_sensitive=", 0 },
        { "items", f_items, "value", 0 },
        { "join", f_join, "value,d=,attribute=", 0 },
        { "last", f_last, "seq", 0 },
        { "length", f_length, "/obj", 0 },
        { "list", f_list, "value", 0 },
        { "map", f_map, "/value*", 0 },
        { "max", f_min_max, "value,case_sensitive=,attribute=", 1 },
        { "min", f_min_max, "value,case_sensitive=,attribute=", -1 },
        { "reject", f_select, "/value*", 0 },
        { "rejectattr", f_select, "/value*", 2 },
        { "reverse", f_reverse, "value", 0 },
        { "select", f_select, "/value*", 1 },
        { "selectattr", f_select, "/value*", 3 },
        { "slice", f_slice, "value,slices,fill_with=", 0 },
        { "sort", f_sort, "value,reverse=,case_sensitive=,attribute=", 0 },
        { "sum", f_sum, "iterable,attribute=,start=", 0 },
        { "unique", f_unique, "value,case_sensitive=,attribute=", 0 },
    };
    return ks__table_find(rows, KS_COUNT(rows), name, n);
}
