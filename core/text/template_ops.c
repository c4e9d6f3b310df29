/* Operators on values: arithmetic, text concatenation, look-ups, slices; as Python defines these. */
#include "text/template_int.h"

#include <krasis/json.h>
#include <math.h>
#include <string.h>

/* The buffer of a text that was made by adding: the next addition goes into its spare room, so that building a
 * prompt by `ns.text = ns.text + piece` takes linear time. Older strings in it keep their own length. */
struct ks_tgrow {
    size_t used, cap;
    uint8_t *froms; /* (cap) or NULL, as in ks_tstr */
};

void ks__undef_fail(ks_trun *r, ks_tv v)
{
    const ks_tundef *u = v.u.undef;
    if (u && u->hint) ks__tr_fail(r, "%s", u->hint);
    if (!u || !u->name) ks__tr_fail(r, "an undefined value is used");
    int n = (int)KS_MIN(u->name->n, 100);
    if (!u->owner) ks__tr_fail(r, "'%.*s' is undefined", n, u->name->p);
    ks__tr_fail(r, "'%s object' has no attribute '%.*s'", u->owner, n, u->name->p);
}

void ks__tv_need_defined(ks_trun *r, ks_tv v)
{
    if (v.kind == KS_TV_UNDEF) ks__undef_fail(r, v);
}

/* ---- text */

static void copy_froms(const ks_tstr *s, uint8_t *dst)
{
    if (!s->n) return;
    if (s->froms)
        memcpy(dst, s->froms, s->n);
    else
        memset(dst, s->from, s->n);
}

/* The origins of s, which is a and b; in the buffer g beside its text where there are two. */
static void concat_froms(ks_trun *r, const ks_tstr *a, const ks_tstr *b, struct ks_tgrow *g, ks_tstr *s)
{
    s->from = a->n ? a->from : b->from;
    if (!a->froms && !b->froms && (!a->n || !b->n || a->from == b->from)) return;
    if (!g->froms) g->froms = ks__tr_alloc(r, g->cap, 1);
    if (a->froms != g->froms) copy_froms(a, g->froms);
    copy_froms(b, g->froms + a->n);
    s->froms = g->froms;
}

ks_tv ks__tv_concat(ks_trun *r, const ks_tstr *a, const ks_tstr *b)
{
    size_t n;
    if (a->markup != b->markup) { /* what meets markup is escaped */
        ks_tv plain = { .kind = KS_TV_STR, .u.s = a->markup ? b : a };
        const ks_tstr *esc = ks__tv_escape(r, plain).u.s;
        return ks__tv_concat(r, a->markup ? a : esc, a->markup ? esc : b);
    }
    if (!ks_add_size(a->n, b->n, &n) || n > r->output_max)
        ks__tr_fail(r, "a text grows beyond the limit of %zu bytes", r->output_max);
    ks__tr_burn(r, b->n / 64);
    ks_tstr *s = ks__tr_alloc(r, 1, sizeof *s);
    *s = (ks_tstr) { .p = a->p, .n = n, .n_cp = SIZE_MAX, .grow = a->grow, .markup = a->markup };
    struct ks_tgrow *g = a->grow;
    if (!g || g->used != a->n || g->cap - g->used < b->n) {
        g = ks__tr_alloc(r, 1, sizeof *g);
        g->cap = a->grow ? 2 * n : n + 16; /* spare room from the second addition on */
        char *p = ks__tr_alloc(r, g->cap, 1);
        if (a->n) memcpy(p, a->p, a->n);
        ks__tr_burn(r, a->n / 64);
        s->p = p;
        s->grow = g;
    }
    if (b->n) memcpy((char *)s->p + a->n, b->p, b->n);
    g->used = n;
    concat_froms(r, a, b, g, s);
    return (ks_tv) { .kind = KS_TV_STR, .u.s = s };
}

/* The byte where code point number cp begins. */
static size_t cp_offset(const ks_tstr *s, size_t cp)
{
    if (ks__str_cps(s) == s->n) return KS_MIN(cp, s->n);
    size_t i = 0;
    for (; i < s->n && cp; cp--) do
            i++;
        while (i < s->n && ((unsigned char)s->p[i] & 0xc0) == 0x80);
    return i;
}

ks_tv ks__str_sub(ks_trun *r, const ks_tstr *s, size_t cp_begin, size_t cp_end)
{
    size_t a = cp_offset(s, cp_begin), b = cp_begin < cp_end ? cp_offset(s, cp_end) : a;
    if (ks__str_cps(s) != s->n) ks__tr_burn(r, b / 32);
    return ks__str_piece(r, s, a, b, s->markup);
}

/* ---- arithmetic */

static const char *op_text(ks_top op)
{
    switch (op) {
    case KS_TN_ADD: return "+";
    case KS_TN_SUB: return "-";
    case KS_TN_MUL: return "*";
    case KS_TN_DIV: return "/";
    case KS_TN_FLOORDIV: return "//";
    case KS_TN_MOD: return "%";
    default: return "**";
    }
}

static void overflow(ks_trun *r, ks_top op)
{
    ks__tr_fail(r, "the result of '%s' is beyond the integers of 64 bits that templates compute with", op_text(op));
}

static ks_tv int_pow(ks_trun *r, int64_t a, int64_t b)
{
    if (b < 0) {
        if (a == 0) ks__tr_fail(r, "0 cannot be raised to a negative power");
        return ks__tv_float(pow((double)a, (double)b));
    }
    int64_t v = 1;
    if (a == 0 || a == 1) return ks__tv_int(b ? a : 1);
    if (a == -1) return ks__tv_int(b % 2 ? -1 : 1);
    for (; b > 0; b--)
        if (__builtin_mul_overflow(v, a, &v)) overflow(r, KS_TN_POW); /* after 63 rounds at most */
    return ks__tv_int(v);
}

static ks_tv int_op(ks_trun *r, ks_top op, int64_t a, int64_t b)
{
    int64_t v = 0;
    bool wraps = false;
    switch (op) {
    case KS_TN_ADD: wraps = __builtin_add_overflow(a, b, &v); break;
    case KS_TN_SUB: wraps = __builtin_sub_overflow(a, b, &v); break;
    case KS_TN_MUL: wraps = __builtin_mul_overflow(a, b, &v); break;
    case KS_TN_POW: return int_pow(r, a, b);
    default:
        if (b == 0) ks__tr_fail(r, "division by zero");
        if (op == KS_TN_DIV) return ks__tv_float((double)a / (double)b);
        if (b == -1) { /* the smallest integer has no positive twin */
            wraps = op == KS_TN_FLOORDIV && __builtin_sub_overflow((int64_t)0, a, &v);
            break;
        }
        v = op == KS_TN_MOD ? a % b : a / b;
        if (a % b != 0 && (a < 0) != (b < 0)) v += op == KS_TN_MOD ? b : -1; /* towards minus infinity */
        break;
    }
    if (wraps) overflow(r, op);
    return ks__tv_int(v);
}

static ks_tv float_op(ks_trun *r, ks_top op, double a, double b)
{
    switch (op) {
    case KS_TN_ADD: return ks__tv_float(a + b);
    case KS_TN_SUB: return ks__tv_float(a - b);
    case KS_TN_MUL: return ks__tv_float(a * b);
    case KS_TN_POW: {
        if (a == 0 && b < 0) ks__tr_fail(r, "0.0 cannot be raised to a negative power");
        double v = pow(a, b);
        if (isnan(v) && !isnan(a) && !isnan(b)) ks__tr_fail(r, "this power is a complex number");
        if (isinf(v) && !isinf(a) && !isinf(b)) ks__tr_fail(r, "the result of '**' is too large");
        return ks__tv_float(v);
    }
    default: break;
    }
    if (b == 0) ks__tr_fail(r, "division by zero");
    if (op == KS_TN_DIV) return ks__tv_float(a / b);
    double mod = fmod(a, b), div = (a - mod) / b;
    if (mod != 0) {
        if ((b < 0) != (mod < 0)) {
            mod += b;
            div -= 1;
        }
    } else {
        mod = copysign(0.0, b);
    }
    if (op == KS_TN_MOD) return ks__tv_float(mod);
    double whole = div != 0 ? floor(div) : copysign(0.0, a / b);
    if (div != 0 && div - whole > 0.5) whole += 1;
    return ks__tv_float(whole);
}

static double as_double(ks_tv v)
{
    int64_t i;
    if (ks__tv_to_int(v, &i)) return (double)i;
    double f = v.u.f;
    if (v.kind == KS_TV_BIG) (void)ks__float_parse(v.u.s->p, v.u.s->n, &f); /* digits: cannot fail */
    return f;
}

static ks_tv repeat(ks_trun *r, ks_tv seq, int64_t times)
{
    if (seq.kind == KS_TV_STR) {
        ks_tsb b;
        ks__sb_init(&b, r);
        b.now = ks__str_from(seq.u.s);
        ks__sb_fill(&b, seq.u.s->p, seq.u.s->n, times);
        return ks__sb_take(&b, seq.u.s->markup);
    }
    ks_tv list = ks__tv_list(r, 0);
    list.kind = seq.kind;
    for (; times > 0 && seq.u.l->n; times--)
        for (uint32_t i = 0; i < seq.u.l->n; i++) ks__list_push(r, list.u.l, seq.u.l->v[i]);
    return list;
}

static bool is_seq(ks_tv v)
{
    return v.kind == KS_TV_STR || v.kind == KS_TV_LIST || v.kind == KS_TV_TUPLE;
}

ks_tv ks__tv_binop(ks_trun *r, ks_top op, ks_tv a, ks_tv b)
{
    int64_t i, j;
    if (op == KS_TN_ADD && a.kind == KS_TV_STR && b.kind == KS_TV_STR) return ks__tv_concat(r, a.u.s, b.u.s);
    ks__tv_need_defined(r, a);
    if (op == KS_TN_MOD && a.kind == KS_TV_STR) return ks__format_percent(r, a.u.s, b);
    ks__tv_need_defined(r, b);
    if (ks__tv_to_int(a, &i) && ks__tv_to_int(b, &j)) return int_op(r, op, i, j);
    if (ks__tv_is_num(a) && ks__tv_is_num(b)) {
        if (a.kind != KS_TV_FLOAT && b.kind != KS_TV_FLOAT && op != KS_TN_DIV) overflow(r, op);
        return float_op(r, op, as_double(a), as_double(b));
    }
    if (op == KS_TN_MUL && is_seq(a) && ks__tv_to_int(b, &i)) return repeat(r, a, i);
    if (op == KS_TN_MUL && is_seq(b) && ks__tv_to_int(a, &i)) return repeat(r, b, i);
    if (op == KS_TN_ADD && a.kind == b.kind && (a.kind == KS_TV_LIST || a.kind == KS_TV_TUPLE)) {
        ks_tv list = ks__tv_list(r, 0);
        list.kind = a.kind;
        for (uint32_t k = 0; k < a.u.l->n; k++) ks__list_push(r, list.u.l, a.u.l->v[k]);
        for (uint32_t k = 0; k < b.u.l->n; k++) ks__list_push(r, list.u.l, b.u.l->v[k]);
        return list;
    }
    ks__tr_fail(r, "'%s' cannot take '%s' and '%s'%s", op_text(op), ks__tv_type(a), ks__tv_type(b),
                op == KS_TN_ADD && (a.kind == KS_TV_STR || b.kind == KS_TV_STR) ? "; '~' would join their text" : "");
}

ks_tv ks__tv_unop(ks_trun *r, ks_top op, ks_tv a)
{
    int64_t i;
    ks__tv_need_defined(r, a);
    if (ks__tv_to_int(a, &i)) {
        if (op == KS_TN_NEG && __builtin_sub_overflow((int64_t)0, i, &i)) overflow(r, KS_TN_SUB);
        return ks__tv_int(i);
    }
    if (a.kind == KS_TV_FLOAT) return ks__tv_float(op == KS_TN_NEG ? -a.u.f : a.u.f);
    if (a.kind == KS_TV_BIG) {
        if (op == KS_TN_POS) return a;
        if (a.u.s->p[0] == '-') {
            ks_tv v = ks__str_piece(r, a.u.s, 1, a.u.s->n, false);
            v.kind = KS_TV_BIG;
            return v;
        }
        char *p = ks__tr_alloc(r, a.u.s->n + 1, 1);
        p[0] = '-';
        memcpy(p + 1, a.u.s->p, a.u.s->n);
        if (ks__str_is(a.u.s, "9223372036854775808")) return ks__tv_int(INT64_MIN);
        ks_tv v = ks__tv_ref(r, p, a.u.s->n + 1, ks__str_from(a.u.s));
        v.kind = KS_TV_BIG;
        return v;
    }
    ks__tr_fail(r, "unary '%c' cannot take '%s'", op == KS_TN_NEG ? '-' : '+', ks__tv_type(a));
}

/* ---- look-ups */

static ks_tv missing(ks_trun *r, ks_tv obj, ks_tv name)
{
    ks_tundef *u = ks__tr_alloc(r, 1, sizeof *u);
    u->owner = ks__tv_type(obj);
    if (name.kind == KS_TV_STR) {
        u->name = name.u.s;
    } else {
        ks_tsb b;
        ks__sb_init(&b, r);
        ks__sb_adds(&b, "'");
        ks__sb_adds(&b, u->owner);
        ks__sb_adds(&b, " object' has no element ");
        ks__sb_repr(&b, name);
        ks__sb_add(&b, "", 1);
        u->hint = b.p;
    }
    return (ks_tv) { .kind = KS_TV_UNDEF, .u.undef = u };
}

static ks_tv unsafe(ks_trun *r, ks_tv obj, const ks_tstr *name)
{
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__sb_adds(&b, "attribute '");
    ks__sb_add(&b, name->p, KS_MIN(name->n, (size_t)60));
    ks__sb_adds(&b, "' of '");
    ks__sb_adds(&b, ks__tv_type(obj));
    ks__sb_adds(&b, "' is not open to templates: it could change what they were given");
    ks__sb_add(&b, "", 1);
    return ks__tv_undef(r, b.p);
}

/* Methods and other attributes of an object, without its items. False: there is none. */
static bool own_attr(ks_trun *r, ks_tv obj, const ks_tstr *name, ks_tv *ret)
{
    if (obj.kind == KS_TV_UNDEF) ks__undef_fail(r, obj);
    if (obj.kind == KS_TV_NS) {
        const ks_tv *v = ks__dict_get(r, &obj.u.ns->d, (ks_tv) { .kind = KS_TV_STR, .u.s = name });
        if (v) *ret = *v;
        return v != NULL;
    }
    if (obj.kind == KS_TV_LOOP) {
        *ret = ks__loop_attr(r, obj.u.loop, name);
        return ret->kind != KS_TV_MISSING;
    }
    if (obj.kind == KS_TV_TUPLE && (obj.flag & KS_TFLAG_GROUP) &&
        (ks__str_is(name, "grouper") || ks__str_is(name, "list"))) {
        *ret = obj.u.l->v[name->p[0] == 'l'];
        return true;
    }
    if (obj.kind == KS_TV_MACRO && ks__str_is(name, "name")) {
        const ks_tnode *n = obj.u.macro->node;
        *ret = n->op == KS_TN_MACRO ? (ks_tv) { .kind = KS_TV_STR, .u.s = n->name } : ks__tv_none();
        return true;
    }
    if (obj.kind == KS_TV_MACRO && ks__str_is(name, "arguments")) {
        const ks_tparams *m = obj.u.macro->node->params;
        *ret = ks__tv_list(r, m->n);
        ret->kind = KS_TV_TUPLE;
        for (uint32_t i = 0; i < m->n; i++)
            ks__list_push(r, ret->u.l, (ks_tv) { .kind = KS_TV_STR, .u.s = m->names[i] });
        return true;
    }
    if (obj.kind == KS_TV_CYCLER && ks__str_is(name, "current")) {
        *ret = obj.u.cycler->items->v[obj.u.cycler->at];
        return true;
    }
    const ks_tbuiltin *fn = ks__method_find(obj, name);
    if (fn) {
        ks_tmethod *m = ks__tr_alloc(r, 1, sizeof *m);
        *m = (ks_tmethod) { .self = obj, .fn = fn };
        *ret = (ks_tv) { .kind = KS_TV_METHOD, .u.method = m };
        return true;
    }
    if (!ks__is_unsafe_name(obj, name)) return false;
    *ret = unsafe(r, obj, name);
    return true;
}

/* obj[key] of containers; false: no such item, or nothing that has items. */
static bool own_item(ks_trun *r, ks_tv obj, ks_tv key, ks_tv *ret)
{
    int64_t i;
    if (obj.kind == KS_TV_UNDEF) ks__undef_fail(r, obj);
    if (obj.kind == KS_TV_DICT) {
        const ks_tv *v = ks__dict_get(r, obj.u.d, key);
        if (v) *ret = *v;
        return v != NULL;
    }
    if (!is_seq(obj) && obj.kind != KS_TV_RANGE) return false;
    if (!ks__tv_to_int(key, &i)) return false;
    int64_t n = ks__tv_len(r, obj);
    if (i < 0) i += n;
    if (i < 0 || i >= n) return false;
    if (obj.kind == KS_TV_STR)
        *ret = ks__str_sub(r, obj.u.s, (size_t)i, (size_t)i + 1);
    else if (obj.kind == KS_TV_RANGE)
        *ret = ks__tv_int(obj.u.range->start + i * obj.u.range->step);
    else
        *ret = obj.u.l->v[i];
    return true;
}

/* obj.name: attributes come first, then items. */
ks_tv ks__tv_attr(ks_trun *r, ks_tv obj, const ks_tstr *name)
{
    ks_tv v, key = { .kind = KS_TV_STR, .u.s = name };
    if (own_attr(r, obj, name, &v) || own_item(r, obj, key, &v)) return v;
    return missing(r, obj, key);
}

/* obj[key]: items come first, then attributes. */
ks_tv ks__tv_item(ks_trun *r, ks_tv obj, ks_tv key)
{
    ks_tv v;
    if (own_item(r, obj, key, &v)) return v;
    if (key.kind == KS_TV_STR && own_attr(r, obj, key.u.s, &v)) return v;
    return missing(r, obj, key);
}

/* A bound of a slice, brought into the sequence; dflt where it is left out. */
static int64_t slice_bound(ks_trun *r, ks_tv v, int64_t n, int64_t step, int64_t dflt)
{
    int64_t i;
    if (v.kind == KS_TV_MISSING || v.kind == KS_TV_NONE) return dflt;
    ks__tv_need_defined(r, v);
    if (!ks__tv_to_int(v, &i)) ks__tr_fail(r, "slice indices must be integers or none, not '%s'", ks__tv_type(v));
    if (i < 0) i = i < -n ? -1 : i + n; /* -1: before the first */
    if (step > 0) return KS_MIN(KS_MAX(i, 0), n);
    return KS_MIN(i, n - 1);
}

static ks_tv slice_str(ks_trun *r, const ks_tstr *s, int64_t from, int64_t count, int64_t step)
{
    if (step == 1 || count <= 0) return ks__str_sub(r, s, (size_t)from, (size_t)(from + KS_MAX(count, 0)));
    ks_tsb b;
    ks__sb_init(&b, r);
    if (ks__str_cps(s) == s->n) {
        for (int64_t k = 0; k < count; k++) {
            b.now = ks__from_at(s, (size_t)(from + k * step));
            ks__sb_addc(&b, s->p[from + k * step]);
        }
    } else {
        size_t n_cp = ks__str_cps(s), *at = ks__tr_alloc(r, n_cp + 1, sizeof *at);
        for (size_t i = 0, cp = 0; i < s->n; i++)
            if (((unsigned char)s->p[i] & 0xc0) != 0x80) at[cp++] = i;
        at[n_cp] = s->n;
        for (int64_t k = 0; k < count; k++) {
            size_t i = (size_t)(from + k * step);
            ks__sb_piece(&b, s, at[i], at[i + 1]);
        }
    }
    ks__tr_burn(r, (uint64_t)count / 16);
    return ks__sb_take(&b, s->markup);
}

ks_tv ks__tv_slice(ks_trun *r, ks_tv obj, ks_tv a, ks_tv b, ks_tv c)
{
    int64_t step = 1;
    ks__tv_need_defined(r, obj);
    if (!is_seq(obj) && obj.kind != KS_TV_RANGE)
        ks__tr_fail(r, "a value of type '%s' cannot be sliced", ks__tv_type(obj));
    if (c.kind != KS_TV_MISSING && c.kind != KS_TV_NONE) {
        ks__tv_need_defined(r, c);
        if (!ks__tv_to_int(c, &step)) ks__tr_fail(r, "a slice's step must be an integer, not '%s'", ks__tv_type(c));
        if (step == 0) ks__tr_fail(r, "a slice's step cannot be zero");
    }
    int64_t n = ks__tv_len(r, obj);
    step = KS_MAX(KS_MIN(step, n + 1), -n - 1); /* larger steps reach no further, and cannot overflow below */
    int64_t from = slice_bound(r, a, n, step, step > 0 ? 0 : n - 1);
    int64_t to = slice_bound(r, b, n, step, step > 0 ? n : -1);
    int64_t count = step > 0 ? (to - from + step - 1) / step : (from - to - step - 1) / -step;
    if ((step > 0 && from >= to) || (step < 0 && from <= to)) count = 0;
    if (obj.kind == KS_TV_STR) return slice_str(r, obj.u.s, count ? from : 0, count, step);
    if (obj.kind == KS_TV_RANGE) {
        ks_trange *x = ks__tr_alloc(r, 1, sizeof *x);
        const ks_trange *o = obj.u.range;
        *x = (ks_trange) { o->start + from * o->step, o->start + to * o->step, o->step * step, count };
        return (ks_tv) { .kind = KS_TV_RANGE, .u.range = x };
    }
    ks_tv list = ks__tv_list(r, (uint32_t)count);
    list.kind = obj.kind;
    for (int64_t k = 0; k < count; k++) ks__list_push(r, list.u.l, obj.u.l->v[from + k * step]);
    return list;
}
