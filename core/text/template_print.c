/* Values as text: str(), repr(), numbers and HTML escapes, exactly as the reference prints them. */
#include "text/template_int.h"

#include <krasis/json.h>
#include <math.h>
#include <string.h>

/* ---- text being built: memory of the rendering, at most the output limit */

void ks__sb_init(ks_tsb *b, ks_trun *r)
{
    *b = (ks_tsb) { .r = r, .now = KS_TFROM_REQUEST };
}

static void sb_grow(ks_tsb *b, size_t more)
{
    size_t need;
    if (!ks_add_size(b->n, more, &need) || need > b->r->output_max)
        ks__tr_fail(b->r, "the text grows beyond the limit of %zu bytes", b->r->output_max);
    if (need <= b->cap) return;
    size_t cap = KS_MAX(KS_MAX(need, KS_MIN(b->cap * 2, b->r->output_max)), (size_t)64);
    char *p = ks__tr_alloc(b->r, cap, 1);
    if (b->n) memcpy(p, b->p, b->n);
    b->p = p;
    b->cap = cap;
    if (!b->froms) return;
    uint8_t *froms = ks__tr_alloc(b->r, cap, 1);
    memcpy(froms, b->froms, b->n);
    b->froms = froms;
}

/* Notes the origin of n bytes that follow, for which there is room. The list begins with the second origin. */
static void sb_note(ks_tsb *b, size_t n)
{
    if (!b->froms) {
        if (!b->n) b->from = b->now;
        if (b->from == b->now) return;
        b->froms = ks__tr_alloc(b->r, b->cap, 1);
        memset(b->froms, b->from, b->n);
    }
    memset(b->froms + b->n, b->now, n);
}

void ks__sb_add(ks_tsb *b, const char *s, size_t n)
{
    if (!n) return;
    if (n > b->cap - b->n) sb_grow(b, n);
    sb_note(b, n);
    memcpy(b->p + b->n, s, n);
    b->n += n;
    ks__tr_burn(b->r, n / 64);
}

void ks__sb_piece(ks_tsb *b, const ks_tstr *s, size_t begin, size_t end)
{
    uint8_t now = b->now;
    while (begin < end) {
        size_t at = begin;
        b->now = ks__from_at(s, at);
        const uint8_t *other = s->froms ? memchr(s->froms + at, !b->now, end - at) : NULL;
        begin = other ? (size_t)(other - s->froms) : end;
        ks__sb_add(b, s->p + at, begin - at);
        ks__tr_burn(b->r, 1);
    }
    b->now = now;
}

void ks__sb_text(ks_tsb *b, const ks_tstr *s)
{
    ks__sb_piece(b, s, 0, s->n);
}

void ks__sb_adds(ks_tsb *b, const char *s)
{
    ks__sb_add(b, s, strlen(s));
}

void ks__sb_addc(ks_tsb *b, char c)
{
    if (b->n == b->cap) sb_grow(b, 1);
    sb_note(b, 1);
    b->p[b->n++] = c;
}

/* s, `times` over; nothing for times <= 0. */
void ks__sb_fill(ks_tsb *b, const char *s, size_t n, int64_t times)
{
    size_t total;
    if (times <= 0 || !n) return;
    if ((uint64_t)times > SIZE_MAX || !ks_mul_size(n, (size_t)times, &total)) total = SIZE_MAX;
    sb_grow(b, total);
    sb_note(b, total);
    ks__tr_burn(b->r, total / 64);
    for (size_t i = 0; i < total; i += n) memcpy(b->p + b->n + i, s, n);
    b->n += total;
}

ks_tv ks__sb_take(ks_tsb *b, bool markup)
{
    ks_tstr all = { .p = b->p ? b->p : "", .n = b->n, .from = b->from, .froms = b->froms };
    return ks__str_piece(b->r, &all, 0, b->n, markup);
}

/* ---- numbers */

/* The digits that the SDK's writer gives are the shortest; the reference only arranges them in its own way. */
void ks__float_repr(double f, char dst[40])
{
    if (isnan(f) || isinf(f)) {
        strcpy(dst, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_f64(&w, fabs(f));
    char digits[32];
    int n = 0, point = 0, exp10 = 0; /* value: 0.digits * 10^point */
    bool dot = false;
    for (const char *p = ks_jw_done(&w) == 0 ? w.text : "0"; *p; p++) {
        if (*p >= '0' && *p <= '9') {
            if (n == 0 && *p == '0') {
                point -= dot; /* zeros before the first digit */
                continue;
            }
            if (n < (int)sizeof digits) digits[n++] = *p;
            point += !dot;
        } else if (*p == '.') {
            dot = true;
        } else { /* e+N */
            exp10 = (int)strtol(p + 1, NULL, 10);
            break;
        }
    }
    ks_jw_fini(&w);
    while (n > 0 && digits[n - 1] == '0') n--;
    if (n == 0) {
        strcpy(dst, signbit(f) ? "-0.0" : "0.0");
        return;
    }
    point += exp10;
    char *d = dst;
    if (signbit(f)) *d++ = '-';
    if (point > 16 || point < -3) {
        *d++ = digits[0];
        if (n > 1) *d++ = '.';
        for (int i = 1; i < n; i++) *d++ = digits[i];
        (void)snprintf(d, 8, "e%c%02u", point > 0 ? '+' : '-', (unsigned)abs(point - 1) % 1000u);
        return;
    }
    if (point <= 0) *d++ = '0';
    for (int i = 0; i < point; i++) *d++ = i < n ? digits[i] : '0';
    *d++ = '.';
    for (int i = point; i < 0; i++) *d++ = '0';
    for (int i = KS_MAX(point, 0); i < n; i++) *d++ = digits[i];
    if (n <= point) *d++ = '0';
    *d = 0;
}

/* Rewrites what float() accepts to what JSON does, whose reader does not depend on the locale. */
bool ks__float_parse(const char *s, size_t n, double *ret)
{
    char buf[400];
    size_t i = 0, m = 0, digits = 0;
    bool neg = false;
    if (i < n && (s[i] == '+' || s[i] == '-')) neg = s[i++] == '-';
    static const char *const words[] = { "inf", "infinity", "nan" };
    for (size_t k = 0; k < KS_COUNT(words); k++)
        if (n - i == strlen(words[k]) && strncasecmp(s + i, words[k], n - i) == 0) {
            *ret = words[k][0] == 'n' ? (double)NAN : neg ? -(double)INFINITY : (double)INFINITY;
            return true;
        }
    if (n - i > sizeof buf - 8) return false;
    if (neg) buf[m++] = '-';
    while (i + 1 < n && s[i] == '0' && ((s[i + 1] >= '0' && s[i + 1] <= '9') || s[i + 1] == '_')) {
        i++;
        digits++;
        if (s[i] == '_') i++;
    }
    for (int part = 0; part < 3; part++) { /* integer, fraction, exponent */
        size_t begin = m;
        for (; i < n && ((s[i] >= '0' && s[i] <= '9') || (s[i] == '_' && m > begin)); i++) {
            if (s[i] == '_' && (i + 1 >= n || s[i + 1] < '0' || s[i + 1] > '9')) return false;
            if (s[i] != '_') buf[m++] = s[i];
        }
        digits += part < 2 ? m - begin : 0;
        if (m == begin && part == 2) return false;
        if (m == begin) buf[m++] = '0'; /* ".5" and "5." */
        if (part == 0 && i < n && s[i] == '.') {
            buf[m++] = s[i++];
        } else if (part < 2 && i < n && (s[i] | 0x20) == 'e') {
            buf[m++] = s[i++];
            if (i < n && (s[i] == '+' || s[i] == '-')) buf[m++] = s[i++];
            part = 1;
        } else {
            break;
        }
    }
    ks_json j;
    ks_json_init(&j, buf, m, 1);
    if (i != n || !digits || ks_json_next(&j) != KS_JSON_NUMBER) return false;
    if (ks_json_f64(&j, ret) < 0) *ret = neg ? -(double)INFINITY : (double)INFINITY; /* finite only there */
    return ks_json_next(&j) == KS_JSON_END;
}

/* ---- text of values */

static void sb_int(ks_tsb *b, int64_t i)
{
    char buf[24];
    (void)snprintf(buf, sizeof buf, "%lld", (long long)i);
    ks__sb_adds(b, buf);
}

static void repr_str(ks_tsb *b, const ks_tstr *s)
{
    bool single = s->n && memchr(s->p, '\'', s->n), dbl = s->n && memchr(s->p, '"', s->n);
    char quote = single && !dbl ? '"' : '\'';
    if (s->markup) ks__sb_adds(b, "Markup(");
    ks__sb_addc(b, quote);
    for (size_t i = 0; i < s->n;) {
        uint32_t cp, k = ks_utf8_decode(s->p + i, s->n - i, &cp);
        char esc[12];
        b->now = ks__from_at(s, i);
        if (cp == (uint32_t)quote || cp == '\\') {
            ks__sb_addc(b, '\\');
            ks__sb_addc(b, (char)cp);
        } else if (cp == '\n' || cp == '\r' || cp == '\t') {
            ks__sb_adds(b, cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : "\\t");
        } else if (ks__uc_printable(cp)) {
            ks__sb_add(b, s->p + i, k);
        } else {
            (void)snprintf(esc, sizeof esc, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
            ks__sb_adds(b, esc);
        }
        i += k;
    }
    b->now = KS_TFROM_TEMPLATE;
    ks__sb_addc(b, quote);
    if (s->markup) ks__sb_addc(b, ')');
}

static void repr_list(ks_tsb *b, const ks_tlist *l, const char *open, const char *close)
{
    ks__sb_adds(b, open);
    for (uint32_t i = 0; i < l->n; i++) {
        if (i) ks__sb_adds(b, ", ");
        ks__sb_repr(b, l->v[i]);
    }
    ks__sb_adds(b, close);
}

static void repr_dict(ks_tsb *b, const ks_tdict *d)
{
    ks__sb_addc(b, '{');
    for (uint32_t i = 0; i < d->n; i++) {
        if (i) ks__sb_adds(b, ", ");
        ks__sb_repr(b, d->keys[i]);
        ks__sb_adds(b, ": ");
        ks__sb_repr(b, d->vals[i]);
    }
    ks__sb_addc(b, '}');
}

static void repr_view(ks_tsb *b, ks_tv v)
{
    static const char *const names[] = { "dict_keys([", "dict_values([", "dict_items([" };
    ks_titer it;
    ks_tv item;
    ks__iter_need(b->r, v, &it);
    ks__sb_adds(b, names[v.flag]);
    for (bool first = true; ks__iter_next(b->r, &it, &item); first = false) {
        if (!first) ks__sb_adds(b, ", ");
        ks__sb_repr(b, item);
    }
    ks__sb_adds(b, "])");
}

static void repr_range(ks_tsb *b, const ks_trange *x)
{
    ks__sb_adds(b, "range(");
    sb_int(b, x->start);
    ks__sb_adds(b, ", ");
    sb_int(b, x->stop);
    if (x->step != 1) {
        ks__sb_adds(b, ", ");
        sb_int(b, x->step);
    }
    ks__sb_addc(b, ')');
}

/* Names and punctuation are ours, and so are numbers: no digits make a control token. */
void ks__sb_repr(ks_tsb *b, ks_tv v)
{
    char num[40];
    uint8_t now = b->now;
    b->now = KS_TFROM_TEMPLATE;
    ks__tr_enter(b->r);
    ks__tr_burn(b->r, 1);
    switch (v.kind) {
    case KS_TV_UNDEF: ks__sb_adds(b, "Undefined"); break;
    case KS_TV_NONE: ks__sb_adds(b, "None"); break;
    case KS_TV_BOOL: ks__sb_adds(b, v.u.b ? "True" : "False"); break;
    case KS_TV_INT: sb_int(b, v.u.i); break;
    case KS_TV_BIG: ks__sb_text(b, v.u.s); break;
    case KS_TV_FLOAT:
        ks__float_repr(v.u.f, num);
        ks__sb_adds(b, num);
        break;
    case KS_TV_STR: repr_str(b, v.u.s); break;
    case KS_TV_LIST: repr_list(b, v.u.l, "[", "]"); break;
    case KS_TV_TUPLE: repr_list(b, v.u.l, "(", v.u.l->n == 1 ? ",)" : ")"); break;
    case KS_TV_DICT: repr_dict(b, v.u.d); break;
    case KS_TV_VIEW: repr_view(b, v); break;
    case KS_TV_RANGE: repr_range(b, v.u.range); break;
    case KS_TV_NS:
        ks__sb_adds(b, "<Namespace ");
        repr_dict(b, &v.u.ns->d);
        ks__sb_addc(b, '>');
        break;
    case KS_TV_MACRO:
        ks__sb_adds(b, "<Macro ");
        if (v.u.macro->node->op == KS_TN_MACRO)
            repr_str(b, v.u.macro->node->name);
        else
            ks__sb_adds(b, "anonymous");
        ks__sb_addc(b, '>');
        break;
    case KS_TV_LOOP:
        ks__sb_adds(b, "<LoopContext ");
        sb_int(b, v.u.loop->index0 + 1);
        ks__sb_addc(b, '/');
        sb_int(b, ks__tv_len(b->r, v));
        ks__sb_addc(b, '>');
        break;
    default: /* objects whose text is an address in the reference */
        ks__sb_addc(b, '<');
        ks__sb_adds(b, ks__tv_type(v));
        ks__sb_adds(b, " object>");
        break;
    }
    b->now = now;
    ks__tr_leave(b->r);
}

void ks__sb_str(ks_tsb *b, ks_tv v)
{
    if (v.kind == KS_TV_STR)
        ks__sb_text(b, v.u.s);
    else if (v.kind != KS_TV_UNDEF)
        ks__sb_repr(b, v);
}

const ks_tstr *ks__tv_text(ks_trun *r, ks_tv v)
{
    if (v.kind == KS_TV_STR) return v.u.s;
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__sb_str(&b, v);
    return ks__sb_take(&b, false).u.s;
}

void ks__sb_html(ks_tsb *b, const ks_tstr *s)
{
    uint8_t now = b->now;
    for (size_t i = 0; i < s->n; i++) {
        b->now = ks__from_at(s, i);
        switch (s->p[i]) {
        case '&': ks__sb_adds(b, "&amp;"); break;
        case '<': ks__sb_adds(b, "&lt;"); break;
        case '>': ks__sb_adds(b, "&gt;"); break;
        case '"': ks__sb_adds(b, "&#34;"); break;
        case '\'': ks__sb_adds(b, "&#39;"); break;
        default: ks__sb_addc(b, s->p[i]); break;
        }
    }
    b->now = now;
    ks__tr_burn(b->r, s->n / 16);
}

/* str() with HTML escapes; what is markup already stays. */
ks_tv ks__tv_escape(ks_trun *r, ks_tv v)
{
    if (v.kind == KS_TV_STR && v.u.s->markup) return v;
    const ks_tstr *s = ks__tv_text(r, v);
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__sb_html(&b, s);
    return ks__sb_take(&b, true);
}
