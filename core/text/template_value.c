/* Values of templates: making them, truth, equality, order, membership, iteration; as Python defines these. */
#include "text/template_int.h"

#include "base/hash.h"
#include <krasis/json.h>
#include <math.h>
#include <string.h>

ks_tv ks__tv_undef(ks_trun *r, const char *hint)
{
    ks_tundef *u = ks__tr_alloc(r, 1, sizeof *u);
    u->hint = hint;
    return (ks_tv) { .kind = KS_TV_UNDEF, .u.undef = u };
}

ks_tv ks__tv_none(void)
{
    return (ks_tv) { .kind = KS_TV_NONE };
}

ks_tv ks__tv_bool(bool b)
{
    return (ks_tv) { .kind = KS_TV_BOOL, .u.b = b };
}

ks_tv ks__tv_int(int64_t i)
{
    return (ks_tv) { .kind = KS_TV_INT, .u.i = i };
}

ks_tv ks__tv_float(double f)
{
    return (ks_tv) { .kind = KS_TV_FLOAT, .u.f = f };
}

ks_tv ks__tv_ref(ks_trun *r, const char *s, size_t n, uint8_t from)
{
    ks_tstr *t = ks__tr_alloc(r, 1, sizeof *t);
    *t = (ks_tstr) { .p = s, .n = n, .n_cp = SIZE_MAX, .from = from };
    return (ks_tv) { .kind = KS_TV_STR, .u.s = t };
}

ks_tv ks__tv_str(ks_trun *r, const char *s, size_t n, uint8_t from)
{
    char *p = ks__tr_alloc(r, n + 1, 1);
    if (n) memcpy(p, s, n);
    return ks__tv_ref(r, p, n, from);
}

ks_tv ks__tv_strz(ks_trun *r, const char *s)
{
    return ks__tv_ref(r, s, strlen(s), KS_TFROM_TEMPLATE);
}

ks_tv ks__str_piece(ks_trun *r, const ks_tstr *s, size_t begin, size_t end, bool markup)
{
    ks_tstr *t = ks__tr_alloc(r, 1, sizeof *t);
    *t = (ks_tstr) { .p = s->p + begin, .n = end - begin, .n_cp = SIZE_MAX, .markup = markup, .from = s->from };
    if (s->froms) t->froms = s->froms + begin;
    return (ks_tv) { .kind = KS_TV_STR, .u.s = t };
}

uint8_t ks__str_from(const ks_tstr *s)
{
    if (!s->froms) return s->from;
    return s->n && memchr(s->froms, KS_TFROM_REQUEST, s->n) ? KS_TFROM_REQUEST : KS_TFROM_TEMPLATE;
}

ks_tv ks__tv_list(ks_trun *r, uint32_t cap)
{
    ks_tlist *l = ks__tr_alloc(r, 1, sizeof *l);
    l->cap = cap;
    l->v = cap ? ks__tr_alloc(r, cap, sizeof *l->v) : NULL;
    return (ks_tv) { .kind = KS_TV_LIST, .u.l = l };
}

ks_tv ks__tv_dict(ks_trun *r)
{
    return (ks_tv) { .kind = KS_TV_DICT, .u.d = ks__tr_alloc(r, 1, sizeof(ks_tdict)) };
}

void ks__list_push(ks_trun *r, ks_tlist *l, ks_tv v)
{
    if (l->n == l->cap) {
        uint32_t cap = l->cap ? l->cap * 2 : 8;
        if (cap < l->cap) ks__tr_fail(r, "a list has too many items");
        ks_tv *p = ks__tr_alloc(r, cap, sizeof *p);
        if (l->n) memcpy(p, l->v, l->n * sizeof *p);
        l->v = p;
        l->cap = cap;
    }
    ks__tr_burn(r, 1);
    l->v[l->n++] = v;
}

/* ---- keys */

static bool is_hashable(ks_trun *r, ks_tv k)
{
    if (k.kind == KS_TV_TUPLE) {
        bool yes = true;
        ks__tr_enter(r); /* bounds key_hash below as well, which is only called for what passed here */
        for (uint32_t i = 0; yes && i < k.u.l->n; i++) yes = is_hashable(r, k.u.l->v[i]);
        ks__tr_leave(r);
        return yes;
    }
    return k.kind != KS_TV_LIST && k.kind != KS_TV_DICT && k.kind != KS_TV_VIEW;
}

/* Equal keys have equal hashes: 1, 1.0 and true are one key. */
static uint64_t key_hash(ks_tv k)
{
    int64_t i;
    switch (k.kind) {
    case KS_TV_STR: return ks_hash64(k.u.s->p, k.u.s->n, 1);
    case KS_TV_TUPLE: {
        uint64_t h = 2;
        for (uint32_t j = 0; j < k.u.l->n; j++) h = h * 31 + key_hash(k.u.l->v[j]);
        return h;
    }
    case KS_TV_FLOAT:
        if (!(k.u.f >= -9e18 && k.u.f <= 9e18) || floor(k.u.f) != k.u.f) return 3;
        i = (int64_t)k.u.f;
        return ks_hash64(&i, sizeof i, 4);
    default: break;
    }
    if (ks__tv_to_int(k, &i)) return ks_hash64(&i, sizeof i, 4);
    return 5;
}

static uint32_t *index_slot(ks_trun *r, const ks_tdict *d, ks_tv key)
{
    uint32_t mask = d->index_cap - 1, at = (uint32_t)key_hash(key) & mask;
    while (d->index[at] && !ks__tv_equal(r, d->keys[d->index[at] - 1], key)) {
        ks__tr_burn(r, 1);
        at = (at + 1) & mask;
    }
    return &d->index[at];
}

const ks_tv *ks__dict_get(ks_trun *r, const ks_tdict *d, ks_tv key)
{
    if (!is_hashable(r, key)) return NULL;
    if (d->index_cap) {
        uint32_t i = *index_slot(r, d, key);
        return i ? &d->vals[i - 1] : NULL;
    }
    for (uint32_t i = 0; i < d->n; i++)
        if (ks__tv_equal(r, d->keys[i], key)) return &d->vals[i];
    return NULL;
}

const ks_tv *ks__dict_getz(ks_trun *r, const ks_tdict *d, const char *key)
{
    ks_tstr s = { .p = key, .n = strlen(key), .n_cp = SIZE_MAX };
    return ks__dict_get(r, d, (ks_tv) { .kind = KS_TV_STR, .u.s = &s });
}

static void dict_grow(ks_trun *r, ks_tdict *d)
{
    uint32_t cap = d->cap ? d->cap * 2 : 8;
    if (cap > UINT32_MAX / 4) ks__tr_fail(r, "a dictionary has too many entries");
    ks_tv *keys = ks__tr_alloc(r, cap, sizeof *keys), *vals = ks__tr_alloc(r, cap, sizeof *vals);
    if (d->n) {
        memcpy(keys, d->keys, d->n * sizeof *keys);
        memcpy(vals, d->vals, d->n * sizeof *vals);
    }
    d->keys = keys;
    d->vals = vals;
    d->cap = cap;
    if (cap > 8) {
        d->index_cap = cap * 2;
        d->index = ks__tr_alloc(r, d->index_cap, sizeof *d->index);
        for (uint32_t i = 0; i < d->n; i++) *index_slot(r, d, d->keys[i]) = i + 1;
    }
}

void ks__dict_set(ks_trun *r, ks_tdict *d, ks_tv key, ks_tv val)
{
    if (!is_hashable(r, key)) ks__tr_fail(r, "a value of type '%s' cannot be a key", ks__tv_type(key));
    ks_tv *old = (ks_tv *)ks__dict_get(r, d, key); /* d is ours to change */
    if (old) {
        *old = val;
        return;
    }
    if (d->n == d->cap) dict_grow(r, d);
    ks__tr_burn(r, 1);
    d->keys[d->n] = key;
    d->vals[d->n] = val;
    d->n++;
    if (d->index_cap) *index_slot(r, d, key) = d->n;
}

/* ---- properties */

bool ks__str_is(const ks_tstr *s, const char *z)
{
    return s->n == strlen(z) && memcmp(s->p, z, s->n) == 0;
}

size_t ks__str_cps(const ks_tstr *s)
{
    if (s->n_cp != SIZE_MAX) return s->n_cp;
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) n += ((unsigned char)s->p[i] & 0xc0) != 0x80;
    ((ks_tstr *)s)->n_cp = n; /* of this rendering's memory: what is compiled in was counted when parsed */
    return n;
}

const char *ks__tv_type(ks_tv v)
{
    static const char *const names[] = {
        [KS_TV_UNDEF] = "Undefined", [KS_TV_NONE] = "NoneType",  [KS_TV_BOOL] = "bool",
        [KS_TV_INT] = "int",         [KS_TV_BIG] = "int",        [KS_TV_FLOAT] = "float",
        [KS_TV_STR] = "str",         [KS_TV_LIST] = "list",      [KS_TV_TUPLE] = "tuple",
        [KS_TV_DICT] = "dict",       [KS_TV_VIEW] = "dict view", [KS_TV_RANGE] = "range",
        [KS_TV_ITER] = "generator",  [KS_TV_NS] = "Namespace",   [KS_TV_MACRO] = "Macro",
        [KS_TV_FUNC] = "function",   [KS_TV_METHOD] = "method",  [KS_TV_LOOP] = "LoopContext",
        [KS_TV_CYCLER] = "Cycler",   [KS_TV_JOINER] = "Joiner",  [KS_TV_MISSING] = "missing",
    };
    return v.kind == KS_TV_STR && v.u.s->markup ? "Markup" : names[v.kind];
}

bool ks__tv_to_int(ks_tv v, int64_t *ret)
{
    if (v.kind == KS_TV_INT)
        *ret = v.u.i;
    else if (v.kind == KS_TV_BOOL)
        *ret = v.u.b;
    else
        return false;
    return true;
}

bool ks__tv_is_num(ks_tv v)
{
    return v.kind >= KS_TV_BOOL && v.kind <= KS_TV_FLOAT;
}

int64_t ks__tv_len(ks_trun *r, ks_tv v)
{
    switch (v.kind) {
    case KS_TV_UNDEF: return 0;
    case KS_TV_STR: ks__tr_burn(r, v.u.s->n / 64); return (int64_t)ks__str_cps(v.u.s);
    case KS_TV_LIST:
    case KS_TV_TUPLE: return v.u.l->n;
    case KS_TV_DICT:
    case KS_TV_VIEW: return v.u.d->n;
    case KS_TV_RANGE: return v.u.range->n;
    case KS_TV_LOOP: {
        static const ks_tstr length = { .p = "length", .n = 6, .n_cp = 6 };
        return ks__loop_attr(r, v.u.loop, &length).u.i;
    }
    default: return -1;
    }
}

bool ks__tv_truth(ks_trun *r, ks_tv v)
{
    switch (v.kind) {
    case KS_TV_NONE: return false;
    case KS_TV_BOOL: return v.u.b;
    case KS_TV_INT: return v.u.i != 0;
    case KS_TV_FLOAT: return v.u.f != 0;
    case KS_TV_STR: return v.u.s->n != 0;
    default: return ks__tv_len(r, v) != 0; /* -1, no length: true */
    }
}

/* ---- comparison */

static long double num_value(ks_tv v)
{
    int64_t i;
    if (ks__tv_to_int(v, &i)) return i;
    if (v.kind == KS_TV_FLOAT) return v.u.f;
    double f = 0;
    (void)ks__float_parse(v.u.s->p, v.u.s->n, &f); /* digits: cannot fail */
    return f;
}

/* -1, 0, 1, or 2 where one is not a number. */
static int num_order(ks_tv a, ks_tv b)
{
    if (a.kind == KS_TV_BIG && b.kind == KS_TV_BIG) {
        const ks_tstr *x = a.u.s, *y = b.u.s;
        bool neg = x->p[0] == '-';
        if (neg != (y->p[0] == '-')) return neg ? -1 : 1;
        int c = x->n != y->n ? (x->n < y->n ? -1 : 1) : memcmp(x->p, y->p, x->n);
        return (c > 0) - (c < 0) == 0 ? 0 : (c > 0) != neg ? 1 : -1;
    }
    long double x = num_value(a), y = num_value(b);
    if (x != x || y != y) return 2;
    return (x > y) - (x < y);
}

static bool dict_equal(ks_trun *r, const ks_tdict *a, const ks_tdict *b)
{
    if (a->n != b->n) return false;
    for (uint32_t i = 0; i < a->n; i++) {
        const ks_tv *v = ks__dict_get(r, b, a->keys[i]);
        if (!v || !ks__tv_equal(r, a->vals[i], *v)) return false;
    }
    return true;
}

bool ks__tv_equal(ks_trun *r, ks_tv a, ks_tv b)
{
    if (ks__tv_is_num(a) && ks__tv_is_num(b)) return num_order(a, b) == 0;
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case KS_TV_UNDEF:
    case KS_TV_NONE: return true;
    case KS_TV_STR:
        ks__tr_burn(r, a.u.s->n / 64);
        return a.u.s->n == b.u.s->n && memcmp(a.u.s->p, b.u.s->p, a.u.s->n) == 0;
    case KS_TV_LIST:
    case KS_TV_TUPLE: {
        bool same = a.u.l->n == b.u.l->n;
        if (a.u.l == b.u.l) return true;
        ks__tr_enter(r);
        for (uint32_t i = 0; same && i < a.u.l->n; i++) {
            ks__tr_burn(r, 1);
            same = ks__tv_equal(r, a.u.l->v[i], b.u.l->v[i]);
        }
        ks__tr_leave(r);
        return same;
    }
    case KS_TV_DICT: {
        ks__tr_enter(r);
        bool same = a.u.d == b.u.d || dict_equal(r, a.u.d, b.u.d);
        ks__tr_leave(r);
        return same;
    }
    case KS_TV_RANGE: {
        const ks_trange *x = a.u.range, *y = b.u.range;
        return x->n == y->n && (x->n == 0 || (x->start == y->start && (x->n == 1 || x->step == y->step)));
    }
    default: return a.u.l == b.u.l; /* the same object */
    }
}

int ks__tv_order(ks_trun *r, ks_tv a, ks_tv b, const char *op)
{
    if (ks__tv_is_num(a) && ks__tv_is_num(b)) return num_order(a, b);
    if (a.kind == KS_TV_STR && b.kind == KS_TV_STR) {
        /* the order of UTF-8 bytes is the order of code points */
        ks__tr_burn(r, KS_MIN(a.u.s->n, b.u.s->n) / 64);
        int c = memcmp(a.u.s->p, b.u.s->p, KS_MIN(a.u.s->n, b.u.s->n));
        return c ? (c > 0) - (c < 0) : (a.u.s->n > b.u.s->n) - (a.u.s->n < b.u.s->n);
    }
    if (a.kind == b.kind && (a.kind == KS_TV_LIST || a.kind == KS_TV_TUPLE)) {
        int c = (a.u.l->n > b.u.l->n) - (a.u.l->n < b.u.l->n);
        ks__tr_enter(r);
        for (uint32_t i = 0; i < KS_MIN(a.u.l->n, b.u.l->n); i++) {
            ks__tr_burn(r, 1);
            if (ks__tv_equal(r, a.u.l->v[i], b.u.l->v[i])) continue;
            c = ks__tv_order(r, a.u.l->v[i], b.u.l->v[i], op);
            break;
        }
        ks__tr_leave(r);
        return c;
    }
    ks__tv_need_defined(r, a);
    ks__tv_need_defined(r, b);
    ks__tr_fail(r, "'%s' cannot compare '%s' and '%s'", op, ks__tv_type(a), ks__tv_type(b));
}

static bool find_bytes(ks_trun *r, const ks_tstr *needle, const ks_tstr *hay)
{
    ks__tr_burn(r, hay->n / 64);
    return !needle->n || (hay->n >= needle->n && memmem(hay->p, hay->n, needle->p, needle->n) != NULL);
}

/* A bottom-up merge: never quadratic, whatever the template brings. */
uint32_t *ks__sort_order(ks_trun *r, const ks_tv *keys, uint32_t n, bool reverse)
{
    uint32_t *a = ks__tr_alloc(r, (size_t)n + 1, sizeof *a), *b = ks__tr_alloc(r, (size_t)n + 1, sizeof *b);
    for (uint32_t i = 0; i < n; i++) a[i] = i;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = KS_MIN(lo + width, n), hi = KS_MIN(lo + 2 * width, n), x = lo, y = mid;
            for (size_t k = lo; k < hi; k++) {
                bool left = y >= hi;
                if (!left && x < mid) {
                    int c = reverse ? ks__tv_order(r, keys[a[x]], keys[a[y]], "<")
                                    : ks__tv_order(r, keys[a[y]], keys[a[x]], "<");
                    left = c >= 0;
                }
                ks__tr_burn(r, 1);
                b[k] = left ? a[x++] : a[y++];
            }
        }
        uint32_t *t = a;
        a = b;
        b = t;
    }
    return a;
}

bool ks__tv_contains(ks_trun *r, ks_tv item, ks_tv where)
{
    if (where.kind == KS_TV_STR) {
        if (item.kind != KS_TV_STR)
            ks__tr_fail(r, "'in <string>' needs a string on its left, not '%s'", ks__tv_type(item));
        return find_bytes(r, item.u.s, where.u.s);
    }
    if (where.kind == KS_TV_DICT || (where.kind == KS_TV_VIEW && where.flag == KS_TVIEW_KEYS)) {
        if (!is_hashable(r, item)) ks__tr_fail(r, "a value of type '%s' cannot be a key", ks__tv_type(item));
        return ks__dict_get(r, where.u.d, item) != NULL;
    }
    ks_titer it;
    ks_tv v;
    if (!ks__iter_begin(where, &it)) ks__tr_fail(r, "'in' cannot search a value of type '%s'", ks__tv_type(where));
    while (ks__iter_next(r, &it, &v))
        if (ks__tv_equal(r, v, item)) return true;
    return false;
}

/* ---- iteration */

bool ks__iter_begin(ks_tv v, ks_titer *ret)
{
    *ret = (ks_titer) { .src = v };
    switch (v.kind) {
    case KS_TV_UNDEF: ret->kind = KS_TITER_NONE; return true;
    case KS_TV_STR: ret->kind = KS_TITER_STR; return true;
    case KS_TV_LIST:
    case KS_TV_TUPLE: ret->kind = KS_TITER_LIST; return true;
    case KS_TV_VIEW: ret->flag = v.flag; /* fall through */
    case KS_TV_DICT: ret->kind = KS_TITER_DICT; return true;
    case KS_TV_RANGE: ret->kind = KS_TITER_RANGE; return true;
    case KS_TV_ITER:
        ret->kind = KS_TITER_NEST;
        ret->inner = v.u.it;
        return true;
    default: return false;
    }
}

void ks__iter_need(ks_trun *r, ks_tv v, ks_titer *ret)
{
    if (!ks__iter_begin(v, ret)) ks__tr_fail(r, "a value of type '%s' cannot be iterated over", ks__tv_type(v));
}

ks_tv ks__tv_iter(ks_trun *r, const ks_titer *it)
{
    ks_titer *copy = ks__tr_alloc(r, 1, sizeof *copy);
    *copy = *it;
    return (ks_tv) { .kind = KS_TV_ITER, .u.it = copy };
}

static bool next_str(ks_trun *r, ks_titer *it, ks_tv *ret)
{
    const ks_tstr *s = it->src.u.s;
    if (it->at >= s->n) return false;
    uint32_t cp, k = ks_utf8_decode(s->p + it->at, s->n - it->at, &cp);
    *ret = ks__str_piece(r, s, it->at, it->at + k, false);
    it->at += k;
    return true;
}

static bool next_entry(ks_trun *r, ks_titer *it, ks_tv *ret)
{
    if (it->src.kind != KS_TV_DICT && it->src.kind != KS_TV_VIEW)
        ks__tr_fail(r, "items needs a mapping, not '%s'", ks__tv_type(it->src));
    const ks_tdict *d = it->src.u.d;
    if (it->at >= d->n) return false;
    size_t i = it->at++;
    if (it->flag == KS_TVIEW_ITEMS) {
        ks_tv pair = ks__tv_list(r, 2);
        pair.kind = KS_TV_TUPLE;
        ks__list_push(r, pair.u.l, d->keys[i]);
        ks__list_push(r, pair.u.l, d->vals[i]);
        *ret = pair;
    } else {
        *ret = it->flag == KS_TVIEW_VALUES ? d->vals[i] : d->keys[i];
    }
    return true;
}

/* A call of the lazy filter's function with the item before its further arguments. */
static ks_tv call_for(ks_trun *r, const ks_titer *it, ks_tv item, const char *what)
{
    if (!it->fn) return ks__tv_bool(ks__tv_truth(r, item));
    ks_tv *pos = ks__tr_alloc(r, it->call.n_pos + 1, sizeof *pos);
    pos[0] = item;
    if (it->call.n_pos) memcpy(pos + 1, it->call.pos, it->call.n_pos * sizeof *pos);
    ks_tcall c = it->call;
    c.pos = pos;
    c.n_pos++;
    return ks__tr_call_builtin(r, it->fn, &c, what);
}

static bool next_lazy(ks_trun *r, ks_titer *it, ks_tv *ret)
{
    ks_tv v;
    while (ks__iter_next(r, it->inner, &v)) {
        if (it->kind == KS_TITER_MAP) {
            *ret = call_for(r, it, v, "filter");
            return true;
        }
        ks_tv key = it->by_attr ? ks__attr_path(r, v, it->attr, it->dflt) : v;
        if (it->kind == KS_TITER_MAPATTR) {
            *ret = key;
            return true;
        }
        bool take;
        if (it->kind == KS_TITER_UNIQUE) {
            if (it->fold) key = ks__fold_case(r, key);
            if (!is_hashable(r, key)) ks__tr_fail(r, "a value of type '%s' cannot be a key", ks__tv_type(key));
            take = !ks__dict_get(r, it->seen, key);
            if (take) ks__dict_set(r, it->seen, key, ks__tv_none());
        } else {
            take = ks__tv_truth(r, call_for(r, it, key, "test")) == it->want;
        }
        if (take) {
            *ret = v;
            return true;
        }
    }
    return false;
}

bool ks__iter_next(ks_trun *r, ks_titer *it, ks_tv *ret)
{
    ks__tr_burn(r, 1);
    switch (it->kind) {
    case KS_TITER_NONE: return false;
    case KS_TITER_LIST:
        if (it->at >= it->src.u.l->n) return false;
        *ret = it->src.u.l->v[it->at++];
        return true;
    case KS_TITER_REVERSED:
        if (it->at >= it->src.u.l->n) return false;
        *ret = it->src.u.l->v[it->src.u.l->n - ++it->at];
        return true;
    case KS_TITER_STR: return next_str(r, it, ret);
    case KS_TITER_DICT: return next_entry(r, it, ret);
    case KS_TITER_RANGE:
        if (it->at >= (size_t)it->src.u.range->n) return false;
        *ret = ks__tv_int(it->src.u.range->start + (int64_t)it->at++ * it->src.u.range->step);
        return true;
    default: break;
    }
    /* Iterators over iterators: as deep as the template chained filters, or a loop nested them. */
    ks__tr_enter(r);
    bool more = it->kind == KS_TITER_NEST ? ks__iter_next(r, it->inner, ret) : next_lazy(r, it, ret);
    ks__tr_leave(r);
    return more;
}

ks_tv ks__tv_to_list(ks_trun *r, ks_tv v)
{
    ks_titer it;
    ks__iter_need(r, v, &it);
    int64_t n = ks__tv_len(r, v);
    ks_tv list = ks__tv_list(r, n > 0 ? (uint32_t)n : 0), item;
    while (ks__iter_next(r, &it, &item)) ks__list_push(r, list.u.l, item);
    return list;
}
