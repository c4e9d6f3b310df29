/* Filters on text, numbers and single values, and the helpers that read arguments of builtins. */
#include "text/template_int.h"

#include <krasis/json.h>
#include <math.h>
#include <string.h>

typedef ks_tv tv;
#define FN(name) static ks_tv name(ks_trun *r, const ks_tv *a, const ks_tcall *c, const ks_tbuiltin *fn)
#define UNUSED(c, fn) ((void)(c), (void)(fn))

/* ---- arguments */

const ks_tstr *ks__arg_str(ks_trun *r, ks_tv v, const char *what)
{
    ks__tv_need_defined(r, v);
    if (v.kind != KS_TV_STR) ks__tr_fail(r, "'%s' must be a string, not '%s'", what, ks__tv_type(v));
    return v.u.s;
}

int64_t ks__arg_int(ks_trun *r, ks_tv v, const char *what)
{
    int64_t i;
    ks__tv_need_defined(r, v);
    if (!ks__tv_to_int(v, &i)) ks__tr_fail(r, "'%s' must be an integer, not '%s'", what, ks__tv_type(v));
    return i;
}

int64_t ks__arg_int_or(ks_trun *r, ks_tv v, int64_t dflt, const char *what)
{
    return v.kind == KS_TV_MISSING ? dflt : ks__arg_int(r, v, what);
}

bool ks__arg_bool_or(ks_trun *r, ks_tv v, bool dflt)
{
    return v.kind == KS_TV_MISSING ? dflt : ks__tv_truth(r, v);
}

ks_tv ks__attr_path(ks_trun *r, ks_tv obj, ks_tv path, ks_tv dflt)
{
    if (path.kind == KS_TV_NONE || path.kind == KS_TV_MISSING) return obj;
    if (path.kind != KS_TV_STR) return ks__tv_item(r, obj, path);
    const char *p = path.u.s->p, *end = p + path.u.s->n;
    for (;;) {
        const char *dot = p < end ? memchr(p, '.', (size_t)(end - p)) : NULL;
        size_t n = (size_t)((dot ? dot : end) - p);
        int64_t i = 0;
        bool digits = n > 0 && n < 19;
        for (size_t k = 0; k < n && digits; k++) {
            digits = p[k] >= '0' && p[k] <= '9';
            i = i * 10 + (p[k] - '0');
        }
        obj = ks__tv_item(r, obj, digits ? ks__tv_int(i) : ks__tv_ref(r, p, n, KS_TFROM_REQUEST));
        if (obj.kind == KS_TV_UNDEF && dflt.kind != KS_TV_MISSING && dflt.kind != KS_TV_NONE) obj = dflt;
        if (!dot) return obj;
        p = dot + 1;
    }
}

/* ---- text through the string methods, so that both are one thing */

FN(by_method)
{
    UNUSED(a, c);
    /* self as text first: 42|upper is legal, 42.upper() is not */
    const ks_tbuiltin *m = ks__str_method_find(fn->name, strlen(fn->name));
    KS_ASSERT(m);
    tv pos = { .kind = KS_TV_STR, .u.s = ks__tv_text(r, a[0]) };
    ks_tcall call = { .pos = &pos, .n_pos = 1 };
    return ks__tr_call_builtin(r, m, &call, "filter");
}

FN(f_center)
{
    UNUSED(c, fn);
    tv pos[2] = { { .kind = KS_TV_STR, .u.s = ks__tv_text(r, a[0]) },
                  a[1].kind == KS_TV_MISSING ? ks__tv_int(80) : a[1] };
    return ks__tr_call_builtin(r, ks__str_method_find("center", 6), &(ks_tcall) { .pos = pos, .n_pos = 2 }, "filter");
}

FN(f_trim)
{
    UNUSED(c, fn);
    tv pos[2] = { { .kind = KS_TV_STR, .u.s = ks__tv_text(r, a[0]) },
                  a[1].kind == KS_TV_MISSING ? ks__tv_none() : a[1] };
    return ks__tr_call_builtin(r, ks__str_method_find("strip", 5), &(ks_tcall) { .pos = pos, .n_pos = 2 }, "filter");
}

FN(f_replace)
{
    UNUSED(c, fn);
    ks_tstr plain = *ks__tv_text(r, a[0]);
    plain.markup = false; /* as the definition has it without autoescape */
    tv pos[4] = { { .kind = KS_TV_STR, .u.s = &plain },
                  { .kind = KS_TV_STR, .u.s = ks__tv_text(r, a[1]) },
                  { .kind = KS_TV_STR, .u.s = ks__tv_text(r, a[2]) },
                  a[3].kind == KS_TV_MISSING || a[3].kind == KS_TV_NONE ? ks__tv_int(-1) : a[3] };
    return ks__tr_call_builtin(r, ks__str_method_find("replace", 7), &(ks_tcall) { .pos = pos, .n_pos = 4 }, "filter");
}

FN(f_string)
{
    UNUSED(c, fn);
    return (tv) { .kind = KS_TV_STR, .u.s = ks__tv_text(r, a[0]) };
}

FN(f_safe)
{
    UNUSED(c, fn);
    const ks_tstr *s = ks__tv_text(r, a[0]);
    return ks__str_piece(r, s, 0, s->n, true);
}

FN(f_escape)
{
    UNUSED(c, fn);
    return ks__tv_escape(r, a[0]);
}

FN(f_forceescape)
{
    UNUSED(c, fn);
    const ks_tstr *s = ks__tv_text(r, a[0]);
    return ks__tv_escape(r, ks__str_piece(r, s, 0, s->n, false));
}

/* Upper case after every run of blanks, hyphens and opening brackets, lower case elsewhere. */
FN(f_title)
{
    UNUSED(c, fn);
    const ks_tstr *s = ks__tv_text(r, a[0]);
    ks_tsb b;
    ks__sb_init(&b, r);
    bool first = true;
    for (size_t i = 0; i < s->n;) {
        uint32_t cp, out[3], k = ks_utf8_decode(s->p + i, s->n - i, &cp);
        bool sep = cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || ks__uc_space(cp);
        uint32_t n = first || sep ? ks__uc_to_upper(cp, out) : ks__uc_to_lower(cp, out);
        b.now = ks__from_at(s, i);
        for (uint32_t j = 0; j < n; j++) {
            char utf8[4];
            ks__sb_add(&b, utf8, ks_utf8_encode(out[j], utf8));
        }
        first = sep;
        i += k;
    }
    return ks__sb_take(&b, false);
}

/* The next line's end and where the line after it begins, as str.splitlines() sees lines. */
static size_t line_end(const ks_tstr *s, size_t at, size_t *ret_next)
{
    while (at < s->n) {
        uint32_t cp, k = ks_utf8_decode(s->p + at, s->n - at, &cp);
        if ((cp >= 0x0a && cp <= 0x0d) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 || cp == 0x2029) {
            *ret_next = at + k + (cp == '\r' && at + 1 < s->n && s->p[at + 1] == '\n');
            return at;
        }
        at += k;
    }
    *ret_next = s->n;
    return s->n;
}

FN(f_indent)
{
    UNUSED(c, fn);
    bool first = ks__arg_bool_or(r, a[2], false), blank = ks__arg_bool_or(r, a[3], false);
    ks__tv_need_defined(r, a[0]);
    const ks_tstr *s = ks__arg_str(r, a[0], "indent");
    ks_tsb pad, b;
    ks__sb_init(&pad, r);
    ks__sb_init(&b, r);
    pad.now = KS_TFROM_TEMPLATE;
    if (a[1].kind == KS_TV_STR)
        ks__sb_text(&pad, a[1].u.s);
    else
        ks__sb_fill(&pad, " ", 1, ks__arg_int_or(r, a[1], 4, "width"));
    const ks_tstr *margin = ks__sb_take(&pad, false).u.s;
    size_t at = 0;
    for (bool start = true;; start = false) {
        size_t next, end = line_end(s, at, &next);
        if (start ? first : (blank || end > at)) ks__sb_text(&b, margin);
        ks__sb_piece(&b, s, at, end);
        if (end == s->n) break;
        b.now = ks__from_at(s, end);
        ks__sb_addc(&b, '\n');
        at = next;
    }
    return ks__sb_take(&b, s->markup);
}

FN(f_truncate)
{
    UNUSED(c, fn);
    int64_t length = ks__arg_int_or(r, a[1], 255, "length"), leeway = 5;
    bool kill = ks__arg_bool_or(r, a[2], false);
    const ks_tstr *end = a[3].kind == KS_TV_MISSING ? ks__tv_strz(r, "...").u.s : ks__arg_str(r, a[3], "end");
    if (a[4].kind != KS_TV_MISSING && a[4].kind != KS_TV_NONE) leeway = ks__arg_int(r, a[4], "leeway");
    int64_t end_n = (int64_t)ks__str_cps(end);
    if (length < end_n) ks__tr_fail(r, "truncate: length must be at least %lld", (long long)end_n);
    if (leeway < 0) ks__tr_fail(r, "truncate: leeway must not be negative");
    int64_t n_cp = ks__tv_len(r, a[0]);
    if (n_cp < 0) ks__tr_fail(r, "truncate: a value of type '%s' has no length", ks__tv_type(a[0]));
    if (n_cp - leeway <= length) return a[0];
    const ks_tstr *s = ks__arg_str(r, a[0], "truncate");
    tv cut = ks__str_sub(r, s, 0, (size_t)(length - end_n));
    if (!kill) {
        size_t n = cut.u.s->n;
        while (n > 0 && cut.u.s->p[n - 1] != ' ') n--;
        if (n > 0) cut = ks__str_piece(r, cut.u.s, 0, n - 1, s->markup);
    }
    return ks__tv_concat(r, cut.u.s, end);
}

FN(f_wordcount)
{
    UNUSED(c, fn);
    const ks_tstr *s = ks__tv_text(r, a[0]);
    int64_t n = 0;
    bool in = false;
    for (size_t i = 0; i < s->n;) {
        uint32_t cp, k = ks_utf8_decode(s->p + i, s->n - i, &cp);
        bool word = cp == '_' || ks__uc_alpha(cp) || ks__uc_numeric(cp);
        n += word && !in;
        in = word;
        i += k;
    }
    return ks__tv_int(n);
}

FN(f_striptags)
{
    UNUSED(c, fn);
    const ks_tstr *s = ks__tv_text(r, a[0]);
    ks_tsb b;
    ks__sb_init(&b, r);
    b.now = ks__str_from(s); /* one for all: below the text is changed in place */
    bool blank = false;
    for (size_t i = 0; i < s->n;) {
        if (s->p[i] == '<') { /* to its '>', a comment to its end */
            bool comment = s->n - i >= 4 && memcmp(s->p + i, "<!--", 4) == 0;
            const char *close = comment ? memmem(s->p + i, s->n - i, "-->", 3) : memchr(s->p + i, '>', s->n - i);
            if (close) {
                i = (size_t)(close - s->p) + (comment ? 3 : 1);
                continue;
            }
        }
        uint32_t cp, k = ks_utf8_decode(s->p + i, s->n - i, &cp);
        if (ks__uc_space(cp)) {
            blank = true;
        } else {
            if (blank && b.n) ks__sb_addc(&b, ' ');
            blank = false;
            ks__sb_add(&b, s->p + i, k);
        }
        i += k;
    }
    static const struct {
        const char *name;
        char c;
    } entities[] = { { "&lt;", '<' },  { "&gt;", '>' },   { "&quot;", '"' },
                     { "&#34;", '"' }, { "&#39;", '\'' }, { "&amp;", '&' } };
    size_t w = 0;
    for (size_t i = 0; i < b.n;) {
        size_t k = 0, len = 0;
        for (; k < KS_COUNT(entities); k++) {
            len = strlen(entities[k].name);
            if (b.n - i >= len && memcmp(b.p + i, entities[k].name, len) == 0) break;
        }
        bool hit = k < KS_COUNT(entities);
        char ch = hit ? entities[k].c : b.p[i];
        i += hit ? len : 1;
        b.p[w++] = ch;
    }
    b.n = w;
    return ks__sb_take(&b, false);
}

static void url_quote(ks_tsb *b, const ks_tstr *s, bool query)
{
    for (size_t i = 0; i < s->n; i++) {
        char ch = s->p[i], hex[4];
        bool plain = (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
                     (ch && strchr("_.-~", ch)) || (ch == '/' && !query);
        b->now = ks__from_at(s, i);
        if (plain) {
            ks__sb_addc(b, ch);
        } else if (ch == ' ' && query) {
            ks__sb_addc(b, '+');
        } else {
            (void)snprintf(hex, sizeof hex, "%%%02X", (unsigned)(unsigned char)ch);
            ks__sb_adds(b, hex);
        }
    }
    b->now = KS_TFROM_TEMPLATE;
    ks__tr_burn(b->r, s->n / 16);
}

FN(f_urlencode)
{
    UNUSED(c, fn);
    ks_tsb b;
    ks_titer it;
    tv pair;
    ks__sb_init(&b, r);
    if (a[0].kind == KS_TV_STR || !ks__iter_begin(a[0], &it)) {
        url_quote(&b, ks__tv_text(r, a[0]), false);
        return ks__sb_take(&b, false);
    }
    if (a[0].kind == KS_TV_DICT) it.flag = KS_TVIEW_ITEMS;
    for (bool first = true; ks__iter_next(r, &it, &pair); first = false) {
        tv kv = ks__tv_to_list(r, pair);
        if (kv.u.l->n != 2) ks__tr_fail(r, "urlencode needs pairs of a name and a value");
        if (!first) ks__sb_addc(&b, '&');
        url_quote(&b, ks__tv_text(r, kv.u.l->v[0]), true);
        ks__sb_addc(&b, '=');
        url_quote(&b, ks__tv_text(r, kv.u.l->v[1]), true);
    }
    return ks__sb_take(&b, false);
}

FN(f_xmlattr)
{
    UNUSED(c, fn);
    if (a[0].kind != KS_TV_DICT) ks__tr_fail(r, "xmlattr needs a mapping, not '%s'", ks__tv_type(a[0]));
    const ks_tdict *d = a[0].u.d;
    ks_tsb b;
    ks__sb_init(&b, r);
    b.now = KS_TFROM_TEMPLATE;
    for (uint32_t i = 0; i < d->n; i++) {
        if (d->vals[i].kind == KS_TV_NONE || d->vals[i].kind == KS_TV_UNDEF) continue;
        const ks_tstr *k = ks__arg_str(r, d->keys[i], "attribute"), *v;
        for (size_t j = 0; j < k->n; j++)
            if (strchr(" \t\n\r\f\v/>=", k->p[j]) && k->p[j]) ks__tr_fail(r, "xmlattr: a name holds '%c'", k->p[j]);
        v = ks__tv_escape(r, d->vals[i]).u.s;
        if (b.n || ks__arg_bool_or(r, a[1], true)) ks__sb_addc(&b, ' ');
        ks__sb_html(&b, k);
        ks__sb_adds(&b, "=\"");
        ks__sb_text(&b, v);
        ks__sb_addc(&b, '"');
    }
    return ks__sb_take(&b, r->autoescape);
}

FN(f_format)
{
    UNUSED(a, fn);
    if (c->n_pos > 1 && c->n_kw) ks__tr_fail(r, "format takes positional or keyword arguments, not both");
    tv args = c->n_kw ? ks__tv_dict(r) : ks__tv_list(r, c->n_pos);
    if (c->n_kw) {
        for (uint32_t i = 0; i < c->n_kw; i++)
            ks__dict_set(r, args.u.d, (tv) { .kind = KS_TV_STR, .u.s = c->kw_names[i] }, c->kw[i]);
    } else {
        args.kind = KS_TV_TUPLE;
        for (uint32_t i = 1; i < c->n_pos; i++) ks__list_push(r, args.u.l, c->pos[i]);
    }
    return ks__format_percent(r, ks__tv_text(r, c->pos[0]), args);
}

FN(f_tojson)
{
    UNUSED(c, fn);
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__sb_json(&b, a[0], a + 1);
    return ks__sb_take(&b, false);
}

FN(f_from_json)
{
    UNUSED(c, fn);
    const ks_tstr *s = ks__arg_str(r, a[0], "from_json");
    return ks__tv_from_json(r, s->p, s->n, ks__str_from(s), "from_json");
}

/* ---- numbers */

FN(f_abs)
{
    UNUSED(c, fn);
    int64_t i;
    ks__tv_need_defined(r, a[0]);
    if (a[0].kind == KS_TV_FLOAT) return ks__tv_float(fabs(a[0].u.f));
    if (a[0].kind == KS_TV_BIG) return a[0].u.s->p[0] == '-' ? ks__tv_unop(r, KS_TN_NEG, a[0]) : a[0];
    if (!ks__tv_to_int(a[0], &i)) ks__tr_fail(r, "abs needs a number, not '%s'", ks__tv_type(a[0]));
    return i < 0 ? ks__tv_unop(r, KS_TN_NEG, ks__tv_int(i)) : ks__tv_int(i);
}

/* The text of a number without blanks around it. */
static ks_tstr stripped(const ks_tstr *s)
{
    ks_tstr t = *s;
    while (t.n && (t.p[0] == ' ' || (t.p[0] >= '\t' && t.p[0] <= '\r'))) t.p++, t.n--;
    while (t.n && (t.p[t.n - 1] == ' ' || (t.p[t.n - 1] >= '\t' && t.p[t.n - 1] <= '\r'))) t.n--;
    return t;
}

/* int(text, base): sign, prefix of the base, single underscores between digits. */
static bool parse_int(ks_trun *r, const ks_tstr *text, int64_t base, tv *ret)
{
    ks_tstr s = stripped(text);
    size_t i = 0;
    bool neg = false, any = false, big = false;
    int64_t v = 0;
    if (i < s.n && (s.p[i] == '-' || s.p[i] == '+')) neg = s.p[i++] == '-';
    if (s.n - i > 2 && s.p[i] == '0') {
        char x = (char)(s.p[i + 1] | 0x20);
        int64_t of = x == 'x' ? 16 : x == 'o' ? 8 : x == 'b' ? 2 : 0;
        if (of && (base == of || base == 0)) {
            base = of;
            i += 2;
            if (s.p[i] == '_') i++;
        }
    }
    if (base == 0) base = 10;
    size_t begin = i;
    for (; i < s.n; i++) {
        char ch = s.p[i];
        if (ch == '_' && any && i + 1 < s.n && s.p[i - 1] != '_') continue;
        int64_t d = ch >= '0' && ch <= '9'                     ? ch - '0'
                    : (ch | 0x20) >= 'a' && (ch | 0x20) <= 'z' ? (ch | 0x20) - 'a' + 10
                                                               : 99;
        if (d >= base) return false;
        any = true;
        big |= __builtin_mul_overflow(v, base, &v) ||
               __builtin_sub_overflow(v, d, &v); /* towards the negative: it has more room */
    }
    if (!any) return false;
    if (!neg && v == INT64_MIN) big = true;
    if (big && base != 10) ks__tr_fail(r, "int: the number is beyond 64 bits");
    if (big) {
        while (begin + 1 < s.n && (s.p[begin] == '0' || s.p[begin] == '_')) begin++;
        ks_tsb b;
        ks__sb_init(&b, r);
        if (neg) ks__sb_addc(&b, '-');
        for (size_t k = begin; k < s.n; k++)
            if (s.p[k] != '_') ks__sb_addc(&b, s.p[k]);
        *ret = ks__sb_take(&b, false);
        ret->kind = KS_TV_BIG;
        return true;
    }
    *ret = ks__tv_int(neg ? v : -v);
    return true;
}

/* float() of what may be a number; false: it is none. */
static bool to_float(ks_trun *r, tv v, double *ret)
{
    int64_t i;
    ks__tv_need_defined(r, v);
    if (ks__tv_to_int(v, &i)) {
        *ret = (double)i;
    } else if (v.kind == KS_TV_FLOAT) {
        *ret = v.u.f;
    } else if (v.kind == KS_TV_STR || v.kind == KS_TV_BIG) {
        ks_tstr s = stripped(v.u.s);
        return ks__float_parse(s.p, s.n, ret);
    } else {
        return false;
    }
    return true;
}

static bool float_to_int(ks_trun *r, double f, tv *ret)
{
    f = trunc(f);
    if (!(fabs(f) < 9.2e18)) {
        if (isnan(f) || isinf(f)) return false;
        ks__tr_fail(r, "int: the number is beyond 64 bits");
    }
    *ret = ks__tv_int((int64_t)f);
    return true;
}

FN(f_int)
{
    UNUSED(c, fn);
    tv v, dflt = a[1].kind == KS_TV_MISSING ? ks__tv_int(0) : a[1];
    int64_t base = ks__arg_int_or(r, a[2], 10, "base"), i;
    double f;
    if (base < 0 || base == 1 || base > 36) ks__tr_fail(r, "int: base must be 0 or 2 to 36");
    if (ks__tv_to_int(a[0], &i)) return ks__tv_int(i);
    if (a[0].kind == KS_TV_BIG) return a[0];
    if (a[0].kind == KS_TV_STR && parse_int(r, a[0].u.s, base, &v)) return v;
    return to_float(r, a[0], &f) && float_to_int(r, f, &v) ? v : dflt;
}

FN(f_float)
{
    UNUSED(c, fn);
    double f;
    if (to_float(r, a[0], &f)) return ks__tv_float(f);
    return a[1].kind == KS_TV_MISSING ? ks__tv_float(0) : a[1];
}

/* Correctly rounded to `digits` decimals, halves to even, as the reference's round(). */
static double round_decimal(double f, int64_t digits)
{
    char buf[400];
    double v = f;
    if (digits > 17 || isnan(f) || isinf(f)) return f;
    if (digits >= 0) {
        (void)snprintf(buf, sizeof buf, "%.*f", (int)digits, f); /* exact decimal expansion, rounded half to even */
        for (char *p = buf; *p; p++)
            if (*p != '-' && (*p < '0' || *p > '9')) *p = '.'; /* whatever the locale writes */
        (void)ks__float_parse(buf, strlen(buf), &v);
        return v;
    }
    if (digits < -308) return copysign(0.0, f);
    double unit = pow(10, (double)-digits);
    return nearbyint(f / unit) * unit;
}

FN(f_round)
{
    UNUSED(c, fn);
    int64_t digits = ks__arg_int_or(r, a[1], 0, "precision"), i;
    const ks_tstr *how = a[2].kind == KS_TV_MISSING ? NULL : ks__arg_str(r, a[2], "method");
    bool ceiling = how && ks__str_is(how, "ceil"), flooring = how && ks__str_is(how, "floor");
    ks__tv_need_defined(r, a[0]);
    if (how && !ceiling && !flooring && !ks__str_is(how, "common"))
        ks__tr_fail(r, "round: method must be 'common', 'ceil' or 'floor'");
    if (!ks__tv_is_num(a[0])) ks__tr_fail(r, "round needs a number, not '%s'", ks__tv_type(a[0]));
    bool whole = ks__tv_to_int(a[0], &i);
    if (ceiling || flooring) {
        double f = whole ? (double)i : a[0].u.f, unit = pow(10, (double)digits);
        if (a[0].kind == KS_TV_BIG) (void)to_float(r, a[0], &f);
        return ks__tv_float((ceiling ? ceil(f * unit) : floor(f * unit)) / unit);
    }
    if (a[0].kind == KS_TV_BIG && digits >= 0) return a[0];
    if (!whole) {
        double f = 0;
        (void)to_float(r, a[0], &f);
        return ks__tv_float(round_decimal(f, digits));
    }
    if (digits >= 0) return ks__tv_int(i);
    int64_t unit = 1;
    for (; digits < 0; digits++)
        if (__builtin_mul_overflow(unit, (int64_t)10, &unit)) return ks__tv_int(0);
    int64_t rest = i % unit, down = i - rest, half = rest < 0 ? -rest : rest;
    bool up = half > unit - half || (half == unit - half && (down / unit) % 2 != 0);
    return ks__tv_binop(r, KS_TN_ADD, ks__tv_int(down), ks__tv_int(up ? (rest < 0 ? -unit : unit) : 0));
}

FN(f_filesizeformat)
{
    UNUSED(c, fn);
    static const char prefixes[] = "kMGTPEZY";
    bool binary = ks__arg_bool_or(r, a[1], false);
    double f, base = binary ? 1024 : 1000, unit = base;
    char num[400], out[440];
    if (!to_float(r, a[0], &f)) ks__tr_fail(r, "filesizeformat needs a number, not '%s'", ks__tv_type(a[0]));
    if (f == 1) return ks__tv_strz(r, "1 Byte");
    if (!(f >= base)) {
        tv v = ks__tv_int(0);
        if (!float_to_int(r, f, &v)) ks__tr_fail(r, "filesizeformat needs a finite number");
        return ks__tv_binop(r, KS_TN_ADD, (tv) { .kind = KS_TV_STR, .u.s = ks__tv_text(r, v) },
                            ks__tv_strz(r, " Bytes"));
    }
    size_t i = 0;
    for (unit = base * base; i + 1 < sizeof prefixes - 1 && f >= unit; i++) unit *= base;
    (void)snprintf(num, sizeof num, "%.1f", base * f / unit);
    for (char *p = num; *p; p++)
        if ((*p < '0' || *p > '9') && *p != '-') *p = '.';
    (void)snprintf(out, sizeof out, "%s %c%sB", num, binary && i == 0 ? 'K' : prefixes[i], binary ? "i" : "");
    return ks__tv_str(r, out, strlen(out), KS_TFROM_TEMPLATE);
}

/* ---- any value */

FN(f_default)
{
    UNUSED(c, fn);
    bool none = a[0].kind == KS_TV_UNDEF || (ks__arg_bool_or(r, a[2], false) && !ks__tv_truth(r, a[0]));
    if (!none) return a[0];
    return a[1].kind == KS_TV_MISSING ? ks__tv_strz(r, "") : a[1];
}

FN(f_unsupported)
{
    UNUSED(a, c);
    ks__tr_fail(r, "the filter '%s' is not supported", fn->name);
}

const ks_tbuiltin *ks__table_find(const ks_tbuiltin *rows, size_t n_rows, const char *name, size_t n)
{
    for (size_t i = 0; i < n_rows; i++)
        if (strlen(rows[i].name) == n && memcmp(rows[i].name, name, n) == 0) return &rows[i];
    return NULL;
}

const ks_tbuiltin *ks__filter_find(const char *name, size_t n)
{
    static const ks_tbuiltin rows[] = {
        { "abs", f_abs, "/x", 0 },
        { "capitalize", by_method, "s", 0 },
        { "center", f_center, "value,width=", 0 },
        { "d", f_default, "value,default_value=,boolean=", 0 },
        { "default", f_default, "value,default_value=,boolean=", 0 },
        { "e", f_escape, "/s", 0 },
        { "escape", f_escape, "/s", 0 },
        { "filesizeformat", f_filesizeformat, "value,binary=", 0 },
        { "float", f_float, "value,default=", 0 },
        { "forceescape", f_forceescape, "value", 0 },
        { "format", f_format, "/value*", 0 },
        { "from_json", f_from_json, "value", 0 },
        { "fromjson", f_from_json, "value", 0 },
        { "indent", f_indent, "s,width=,first=,blank=", 0 },
        { "int", f_int, "value,default=,base=", 0 },
        { "lower", by_method, "s", 0 },
        { "pprint", f_unsupported, "value", 0 },
        { "random", f_unsupported, "seq", 0 },
        { "replace", f_replace, "s,old,new,count=", 0 },
        { "round", f_round, "value,precision=,method=", 0 },
        { "safe", f_safe, "value", 0 },
        { "string", f_string, "/s", 0 },
        { "striptags", f_striptags, "value", 0 },
        { "title", f_title, "s", 0 },
        { "tojson", f_tojson, "x,ensure_ascii=,indent=,separators=,sort_keys=", 0 },
        { "trim", f_trim, "value,chars=", 0 },
        { "truncate", f_truncate, "s,length=,killwords=,end=,leeway=", 0 },
        { "upper", by_method, "s", 0 },
        { "urlencode", f_urlencode, "value", 0 },
        { "urlize", f_unsupported, "value*", 0 },
        { "wordcount", f_wordcount, "s", 0 },
        { "wordwrap", f_unsupported, "s*", 0 },
        { "xmlattr", f_xmlattr, "d,autospace=", 0 },
    };
    const ks_tbuiltin *fn = ks__table_find(rows, KS_COUNT(rows), name, n);
    return fn ? fn : ks__filter_seq_find(name, n);
}
