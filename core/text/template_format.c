/* Formatting: the % operator (and |format), str.format and format specs, as Python defines them. */
#include "text/template_int.h"

#include <ctype.h>
#include <krasis/json.h>
#include <math.h>
#include <string.h>

#define WIDTH_MAX 1000000 /* of one field; the output's own limit is larger */
#define PRECISION_MAX 300

typedef struct spec {
    const char *fill; /* one character of UTF-8 */
    size_t fill_n;
    char align, sign, group, type; /* align 0: the type's own; type 0: none given */
    bool alt, zero;
    int64_t width, prec; /* prec -1: none */
} spec;

/* Text of one field, padded. numeric: with '=' the fill goes between sign (or prefix) and digits. */
static void put_padded(ks_tsb *b, const spec *f, const char *prefix, const ks_tstr *s, char dflt_align)
{
    int64_t pad = f->width - (int64_t)(ks__str_cps(s) + strlen(prefix)), left = 0;
    char align = f->align ? f->align : dflt_align;
    pad = KS_MAX(pad, 0);
    left = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
    if (align == '=') {
        ks__sb_adds(b, prefix);
        ks__sb_fill(b, f->fill, f->fill_n, pad);
        ks__sb_text(b, s);
        return;
    }
    ks__sb_fill(b, f->fill, f->fill_n, left);
    ks__sb_adds(b, prefix);
    ks__sb_text(b, s);
    ks__sb_fill(b, f->fill, f->fill_n, pad - left);
}

/* The same for text of a number or the like. */
static void put_own(ks_tsb *b, const spec *f, const char *prefix, const char *body, size_t n, char dflt_align)
{
    ks_tstr s = { .p = body, .n = n, .n_cp = SIZE_MAX, .from = b->now };
    put_padded(b, f, prefix, &s, dflt_align);
}

/* Puts `sep` between groups of digits counted from the right; returns the new length. dst has room for 2n. */
static size_t group_digits(const char *src, size_t n, char sep, size_t every, char *dst)
{
    size_t w = 0;
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % every == 0) dst[w++] = sep;
        dst[w++] = src[i];
    }
    return w;
}

/* Digits with their separators, and zeros in front if the width is filled with them inside of the groups. */
static void put_digits(ks_tsb *b, const spec *f, const char *prefix, const char *whole, size_t n, const char *rest)
{
    ks_trun *r = b->r;
    size_t every = f->group == '_' && f->type && strchr("xXob", f->type) ? 4 : 3, zeros = 0, rest_n = strlen(rest);
    char align = f->align;
    if (f->zero && !align) align = '=';
    bool zero_fill = align == '=' && f->fill_n == 1 && f->fill[0] == '0';
    if (f->group && zero_fill) { /* 0001,234: the zeros get separators, too */
        int64_t room = f->width - (int64_t)(strlen(prefix) + rest_n);
        while (n + zeros + (n + zeros - 1) / every < (size_t)KS_MAX(room, 0)) zeros++;
    }
    char *digits = ks__tr_alloc(r, n + zeros + 1, 1), *text = ks__tr_alloc(r, 2 * (n + zeros) + rest_n + 1, 1);
    memset(digits, '0', zeros);
    memcpy(digits + zeros, whole, n);
    size_t w = n + zeros;
    if (f->group)
        w = group_digits(digits, n + zeros, f->group, every, text);
    else
        memcpy(text, digits, w);
    memcpy(text + w, rest, rest_n);
    spec g = *f;
    g.align = align;
    put_own(b, &g, prefix, text, w + rest_n, '>');
}

static void put_int(ks_tsb *b, const spec *f, ks_tv v)
{
    char digits[72], prefix[4] = "", *p = digits + sizeof digits;
    int64_t i = 0;
    size_t n;
    const char *text;
    bool neg;
    unsigned base = f->type == 'x' || f->type == 'X' ? 16 : f->type == 'o' ? 8 : f->type == 'b' ? 2 : 10;
    if (v.kind == KS_TV_BIG) {
        if (base != 10) ks__tr_fail(b->r, "format: the integer is beyond 64 bits");
        neg = v.u.s->p[0] == '-';
        text = v.u.s->p + neg;
        n = v.u.s->n - neg;
    } else {
        (void)ks__tv_to_int(v, &i); /* the callers looked */
        neg = i < 0;
        uint64_t u = neg ? -(uint64_t)i : (uint64_t)i;
        do *--p = "0123456789abcdef"[u % base];
        while ((u /= base) > 0);
        if (f->type == 'X')
            for (char *q = p; q < digits + sizeof digits; q++) *q = (char)toupper((unsigned char)*q);
        text = p;
        n = (size_t)(digits + sizeof digits - p);
    }
    size_t k = 0;
    if (neg || f->sign == '+' || f->sign == ' ') prefix[k++] = neg ? '-' : f->sign;
    if (f->alt && base != 10) {
        prefix[k++] = '0';
        prefix[k++] = f->type;
    }
    prefix[k] = 0;
    put_digits(b, f, prefix, text, n, "");
}

/* The digits of a finite number in C's format, with '.' whatever the locale. */
static void c_format(char *buf, size_t cap, char type, int prec, bool alt, double f)
{
    char fmt[16];
    (void)snprintf(fmt, sizeof fmt, alt ? "%%#.*%c" : "%%.*%c", type);
    int n = type == 'e'   ? snprintf(buf, cap, alt ? "%#.*e" : "%.*e", prec, f)
            : type == 'g' ? snprintf(buf, cap, alt ? "%#.*g" : "%.*g", prec, f)
                          : snprintf(buf, cap, alt ? "%#.*f" : "%.*f", prec, f);
    for (int i = 0; i < n && (size_t)i < cap; i++)
        if (!isdigit((unsigned char)buf[i]) && !strchr("+-e", buf[i])) buf[i] = '.';
}

static void put_float(ks_tsb *b, const spec *f, double v)
{
    char buf[700], prefix[2] = "";
    char type = (char)tolower((unsigned char)f->type);
    bool upper = f->type && isupper((unsigned char)f->type), percent = type == '%';
    int prec = (int)(f->prec < 0 ? 6 : f->prec);
    double a = fabs(v) * (percent ? 100 : 1);
    if (signbit(v) && !isnan(v))
        prefix[0] = '-';
    else if (f->sign == '+' || f->sign == ' ')
        prefix[0] = f->sign;
    if (isnan(a) || isinf(a)) {
        strcpy(buf, isnan(a) ? "nan" : "inf");
    } else if (!f->type && f->prec < 0) {
        ks__float_repr(a, buf);
    } else if (!f->type || type == 'n') { /* like g, but with a digit after the point */
        c_format(buf, sizeof buf, 'g', KS_MAX(prec, 1), f->alt, a);
        if (!f->type && !strpbrk(buf, ".e")) {
            if (strlen(buf) >= (size_t)KS_MAX(prec, 1) && a >= 1) /* no digit left for it: an exponent instead */
                c_format(buf, sizeof buf, 'e', KS_MAX(prec, 1) - 1, f->alt, a);
            else
                strcat(buf, ".0");
        }
    } else if (type == 'g') {
        c_format(buf, sizeof buf, 'g', KS_MAX(prec, 1), f->alt, a);
    } else {
        c_format(buf, sizeof buf, type == 'e' ? 'e' : 'f', prec, f->alt, a);
    }
    if (percent) strcat(buf, "%");
    if (upper)
        for (char *p = buf; *p; p++) *p = (char)toupper((unsigned char)*p);
    size_t whole = strspn(buf, "0123456789");
    put_digits(b, f, prefix, buf, whole ? whole : strlen(buf), whole ? buf + whole : "");
}

/* Python's repr with what is not ASCII escaped. */
static const ks_tstr *ascii_repr(ks_trun *r, ks_tv v)
{
    ks_tsb b, out;
    ks__sb_init(&b, r);
    ks__sb_init(&out, r);
    ks__sb_repr(&b, v);
    const ks_tstr *s = ks__sb_take(&b, false).u.s;
    for (size_t i = 0; i < b.n;) {
        uint32_t cp, k = ks_utf8_decode(b.p + i, b.n - i, &cp);
        char esc[12];
        out.now = ks__from_at(s, i);
        if (cp < 0x80)
            ks__sb_addc(&out, (char)cp);
        else {
            (void)snprintf(esc, sizeof esc, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
            ks__sb_adds(&out, esc);
        }
        i += k;
    }
    return ks__sb_take(&out, false).u.s;
}

static const ks_tstr *repr_of(ks_trun *r, ks_tv v)
{
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__sb_repr(&b, v);
    return ks__sb_take(&b, false).u.s;
}

static void put_str(ks_tsb *b, const spec *f, const ks_tstr *s, char align)
{
    if (f->prec >= 0 && (int64_t)ks__str_cps(s) > f->prec) s = ks__str_sub(b->r, s, 0, (size_t)f->prec).u.s;
    put_padded(b, f, "", s, align);
}

static int64_t parse_num(ks_trun *r, const char **inout_p, const char *end, int64_t max, const char *what)
{
    int64_t v = 0;
    for (; *inout_p < end && isdigit((unsigned char)**inout_p); (*inout_p)++) {
        v = v * 10 + (**inout_p - '0');
        if (v > max) ks__tr_fail(r, "format: the %s is above the limit of %lld", what, (long long)max);
    }
    return v;
}

/* ---- "..." % args */

typedef struct percent {
    ks_trun *r;
    ks_tv args;
    bool tuple, used;
    uint32_t at;
} percent;

static ks_tv next_arg(percent *x)
{
    if (x->tuple) {
        if (x->at >= x->args.u.l->n) ks__tr_fail(x->r, "format: not enough arguments for the format string");
        return x->args.u.l->v[x->at++];
    }
    if (x->used) ks__tr_fail(x->r, "format: not enough arguments for the format string");
    x->used = true;
    return x->args;
}

static double need_float(ks_trun *r, ks_tv v, char type)
{
    int64_t i;
    double f = 0;
    ks__tv_need_defined(r, v);
    if (ks__tv_to_int(v, &i)) return (double)i;
    if (v.kind == KS_TV_FLOAT) return v.u.f;
    if (v.kind != KS_TV_BIG) ks__tr_fail(r, "format: %%%c needs a number, not '%s'", type, ks__tv_type(v));
    (void)ks__float_parse(v.u.s->p, v.u.s->n, &f); /* digits: cannot fail */
    return f;
}

static void percent_int(percent *x, ks_tsb *b, spec *f, ks_tv v)
{
    int64_t i;
    ks__tv_need_defined(x->r, v);
    if (v.kind == KS_TV_FLOAT && f->type != 'x' && f->type != 'X' && f->type != 'o') {
        if (!(fabs(v.u.f) < 9e18)) ks__tr_fail(x->r, "format: the number does not fit an integer");
        v = ks__tv_int((int64_t)v.u.f);
    }
    if (v.kind != KS_TV_BIG && !ks__tv_to_int(v, &i))
        ks__tr_fail(x->r, "format: %%%c needs an integer, not '%s'", f->type, ks__tv_type(v));
    if (f->prec >= 0) { /* at least so many digits */
        ks_tsb d;
        spec g = { .fill = "0", .fill_n = 1, .type = f->type, .prec = -1, .align = '=', .width = f->prec };
        ks__sb_init(&d, x->r);
        bool neg = v.kind == KS_TV_BIG ? v.u.s->p[0] == '-' : (ks__tv_to_int(v, &i), i < 0);
        g.width += neg;
        put_int(&d, &g, v);
        char prefix[4] = "";
        size_t k = 0;
        if (neg || f->sign) prefix[k++] = neg ? '-' : f->sign;
        if (f->alt && strchr("xXo", f->type)) prefix[k++] = '0', prefix[k++] = f->type;
        put_own(b, f, prefix, d.p + neg, d.n - neg, '>');
        return;
    }
    put_int(b, f, v);
}

static void percent_field(percent *x, ks_tsb *b, spec *f, ks_tv v, bool markup)
{
    ks_trun *r = x->r;
    int64_t i;
    switch (f->type) {
    case 's': put_str(b, f, markup ? ks__tv_escape(r, v).u.s : ks__tv_text(r, v), '>'); break;
    case 'r': put_str(b, f, repr_of(r, v), '>'); break;
    case 'a': put_str(b, f, ascii_repr(r, v), '>'); break;
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o': percent_int(x, b, f, v); break;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G': put_float(b, f, need_float(r, v, f->type)); break;
    case 'c': {
        char utf8[4];
        uint32_t n = 0;
        ks__tv_need_defined(r, v);
        if (v.kind == KS_TV_STR && ks__str_cps(v.u.s) == 1) {
            put_str(b, f, v.u.s, '>');
            break;
        }
        if (ks__tv_to_int(v, &i) && i >= 0 && i <= 0x10ffff) n = ks_utf8_encode((uint32_t)i, utf8);
        if (!n) ks__tr_fail(r, "format: %%c needs a character or its number");
        put_own(b, f, "", utf8, n, '>');
        break;
    }
    default: ks__tr_fail(r, "format: '%%%c' is not a conversion", isprint((unsigned char)f->type) ? f->type : '?');
    }
}

ks_tv ks__format_percent(ks_trun *r, const ks_tstr *fmt, ks_tv args)
{
    percent x = { .r = r, .args = args, .tuple = args.kind == KS_TV_TUPLE };
    bool mapping = args.kind == KS_TV_DICT;
    const char *p = fmt->p, *end = p + fmt->n;
    ks_tsb b;
    ks__sb_init(&b, r);
    b.now = ks__str_from(fmt);
    while (p < end) {
        const char *mark = memchr(p, '%', (size_t)(end - p));
        ks__sb_add(&b, p, (size_t)((mark ? mark : end) - p));
        if (!mark) break;
        p = mark + 1;
        spec f = { .fill = " ", .fill_n = 1, .prec = -1 };
        ks_tv v = { .kind = KS_TV_MISSING };
        if (p < end && *p == '(') {
            int depth = 1;
            const char *key = ++p;
            for (; p < end && depth > 0; p++) depth += (*p == '(') - (*p == ')');
            if (depth) ks__tr_fail(r, "format: '%%(' has no ')'");
            if (!mapping) ks__tr_fail(r, "format: '%%(name)' needs a mapping");
            const ks_tv *found = ks__dict_get(r, args.u.d, ks__tv_ref(r, key, (size_t)(p - 1 - key), KS_TFROM_REQUEST));
            if (!found) ks__tr_fail(r, "format: there is no '%.*s'", (int)KS_MIN(p - 1 - key, 60), key);
            v = *found;
            x.used = true;
        }
        for (; p < end && *p && strchr("#0- +", *p); p++) {
            if (*p == '-')
                f.align = '<';
            else if (*p == '#')
                f.alt = true;
            else if (*p == '0')
                f.zero = true;
            else if (f.sign != '+')
                f.sign = *p;
        }
        if (p < end && *p == '*') {
            p++;
            f.width = ks__arg_int(r, next_arg(&x), "*");
            if (f.width < 0) {
                f.align = '<';
                f.width = f.width < -WIDTH_MAX ? WIDTH_MAX + 1 : -f.width;
            }
            if (f.width > WIDTH_MAX) ks__tr_fail(r, "format: the width is above the limit of %d", WIDTH_MAX);
        } else {
            f.width = parse_num(r, &p, end, WIDTH_MAX, "width");
        }
        if (p < end && *p == '.') {
            p++;
            if (p < end && *p == '*') {
                p++;
                f.prec = ks__arg_int(r, next_arg(&x), "*");
                f.prec = KS_MAX(f.prec, 0);
            } else {
                f.prec = parse_num(r, &p, end, WIDTH_MAX, "precision");
            }
        }
        while (p < end && *p && strchr("hlL", *p)) p++;
        if (p >= end) ks__tr_fail(r, "format: the format string ends in the middle of a conversion");
        f.type = *p++;
        if (f.type == '%') {
            ks__sb_addc(&b, '%');
            continue;
        }
        bool is_float = strchr("eEfFgG", f.type) != NULL;
        if (f.prec > PRECISION_MAX && (is_float || strchr("diuxXo", f.type)))
            ks__tr_fail(r, "format: the precision is above the limit of %d", PRECISION_MAX);
        if (f.zero && !f.align && strchr("diuxXoeEfFgG", f.type)) {
            f.align = '=';
            f.fill = "0";
        }
        if (v.kind == KS_TV_MISSING) v = next_arg(&x);
        percent_field(&x, &b, &f, v, fmt->markup);
    }
    bool rest =
        x.tuple ? x.at < args.u.l->n : !x.used && !mapping && args.kind != KS_TV_LIST && args.kind != KS_TV_UNDEF;
    if (rest) ks__tr_fail(r, "format: not all arguments are used by the format string");
    return ks__sb_take(&b, fmt->markup);
}

/* ---- str.format */

typedef struct method {
    ks_trun *r;
    const ks_tcall *c;
    int64_t auto_index; /* -1: fields are numbered by hand */
    bool started, markup;
} method;

static void parse_spec(ks_trun *r, const char *p, const char *end, spec *ret)
{
    *ret = (spec) { .fill = " ", .fill_n = 1, .prec = -1 };
    uint32_t cp, k = p < end ? ks_utf8_decode(p, (size_t)(end - p), &cp) : 0;
    if (k && p + k < end && strchr("<>=^", p[k]) && p[k]) {
        ret->fill = p;
        ret->fill_n = k;
        ret->align = p[k];
        p += k + 1;
    } else if (p < end && *p && strchr("<>=^", *p)) {
        ret->align = *p++;
    }
    if (p < end && *p && strchr("+- ", *p)) ret->sign = *p++;
    if (p < end && *p == 'z') p++; /* negative zero as zero: prints the same for all but -0.0 */
    if (p < end && *p == '#') ret->alt = *p++ != 0;
    if (p < end && *p == '0') {
        p++;
        ret->zero = true;
        if (!ret->align) ret->fill = "0";
    }
    ret->width = parse_num(r, &p, end, WIDTH_MAX, "width");
    if (p < end && (*p == ',' || *p == '_')) ret->group = *p++;
    if (p < end && *p == '.') {
        if (++p >= end || !isdigit((unsigned char)*p)) ks__tr_fail(r, "format: the precision is missing");
        ret->prec = parse_num(r, &p, end, WIDTH_MAX, "precision");
    }
    if (p < end) ret->type = *p++;
    if (p < end) ks__tr_fail(r, "format: the format specification is malformed");
}

static void put_value(method *x, ks_tsb *b, ks_tv v, const char *p, const char *end)
{
    ks_trun *r = x->r;
    if (p == end) {
        const ks_tstr *s = x->markup ? ks__tv_escape(r, v).u.s : ks__tv_text(r, v);
        ks__sb_text(b, s);
        return;
    }
    spec f;
    parse_spec(r, p, end, &f);
    bool is_int = v.kind == KS_TV_INT || v.kind == KS_TV_BIG || v.kind == KS_TV_BOOL;
    bool float_type = f.type && strchr("eEfFgG%n", f.type);
    bool int_type = f.type && strchr("dxXobn", f.type);
    if (v.kind == KS_TV_STR && (!f.type || f.type == 's')) {
        if (f.align == '=' || f.sign || f.group) ks__tr_fail(r, "format: '=', signs and separators are for numbers");
        put_str(b, &f, x->markup ? ks__tv_escape(r, v).u.s : v.u.s, '<');
    } else if (is_int && (!f.type || int_type)) {
        if (f.prec >= 0) ks__tr_fail(r, "format: an integer takes no precision");
        put_int(b, &f, v);
    } else if (is_int && f.type == 'c') {
        int64_t i = -1;
        char utf8[4];
        uint32_t n = ks__tv_to_int(v, &i) && i >= 0 && i <= 0x10ffff ? ks_utf8_encode((uint32_t)i, utf8) : 0;
        if (!n) ks__tr_fail(r, "format: the number stands for no character");
        put_own(b, &f, "", utf8, n, '<');
    } else if ((is_int || v.kind == KS_TV_FLOAT) && (!f.type || float_type)) {
        if (f.prec > PRECISION_MAX) ks__tr_fail(r, "format: the precision is above the limit of %d", PRECISION_MAX);
        put_float(b, &f, need_float(r, v, f.type));
    } else {
        ks__tr_fail(r, "format: the specification '%.*s' does not fit a value of type '%s'", (int)KS_MIN(end - p, 60),
                    p, ks__tv_type(v));
    }
}

/* The value that "0.name[key]" names. */
static ks_tv get_field(method *x, const char *p, const char *end)
{
    ks_trun *r = x->r;
    size_t n = 0;
    while (p + n < end && p[n] != '.' && p[n] != '[') n++;
    bool digits = n > 0 && n < 9;
    for (size_t i = 0; i < n; i++) digits &= isdigit((unsigned char)p[i]) != 0;
    ks_tv v = { .kind = KS_TV_MISSING };
    if (n == 0 || digits) {
        if (x->started && (x->auto_index < 0) != (n > 0))
            ks__tr_fail(r, "format: numbered and automatic fields cannot be mixed");
        if (!x->started && n > 0) x->auto_index = -1;
        x->started = true;
        const char *at = p;
        int64_t i = n ? parse_num(r, &at, p + n, INT32_MAX, "index") : x->auto_index++;
        if (i >= (int64_t)x->c->n_pos) ks__tr_fail(r, "format: there is no argument number %lld", (long long)i);
        v = x->c->pos[i];
    } else {
        for (uint32_t i = 0; i < x->c->n_kw; i++)
            if (x->c->kw_names[i]->n == n && memcmp(x->c->kw_names[i]->p, p, n) == 0) v = x->c->kw[i];
        if (v.kind == KS_TV_MISSING)
            ks__tr_fail(r, "format: there is no argument '%.*s'", (int)KS_MIN(n, (size_t)60), p);
    }
    for (p += n; p < end;) {
        bool index = *p++ == '[';
        n = 0;
        while (p + n < end && (index ? p[n] != ']' : p[n] != '.' && p[n] != '[')) n++;
        if (!n || (index && p + n >= end)) ks__tr_fail(r, "format: a field's look-up is malformed");
        bool num = index && n < 9;
        for (size_t i = 0; i < n; i++) num &= isdigit((unsigned char)p[i]) != 0;
        const char *at = p;
        ks_tv key =
            num ? ks__tv_int(parse_num(r, &at, p + n, INT32_MAX, "index")) : ks__tv_ref(r, p, n, KS_TFROM_REQUEST);
        v = index ? ks__tv_item(r, v, key) : ks__tv_attr(r, v, key.u.s);
        p += n + index;
        if (p < end && *p != '.' && *p != '[') ks__tr_fail(r, "format: a field's look-up is malformed");
    }
    return v;
}

static void format_into(method *x, ks_tsb *b, const char *p, const char *end, int depth);

/* p is after '{'; returns what follows the matching '}'. */
static const char *replace_field(method *x, ks_tsb *b, const char *p, const char *end, int depth)
{
    ks_trun *r = x->r;
    const char *name = p, *close = p;
    int nest = 1;
    for (; close < end; close++) {
        nest += (*close == '{') - (*close == '}');
        if (nest == 0) break;
    }
    if (close >= end) ks__tr_fail(r, "format: '{' has no '}'");
    const char *name_end = p;
    for (bool in = false; name_end < close && (in || (*name_end != '!' && *name_end != ':')); name_end++)
        in = in ? *name_end != ']' : *name_end == '[';
    ks_tv v = get_field(x, name, name_end);
    p = name_end;
    if (p < close && *p == '!') {
        char how = p + 1 < close ? p[1] : 0;
        if (!how || !strchr("rsa", how)) ks__tr_fail(r, "format: the conversion after '!' must be r, s or a");
        v = (ks_tv) { .kind = KS_TV_STR,
                      .u.s = how == 'r'   ? repr_of(r, v)
                             : how == 'a' ? ascii_repr(r, v)
                                          : ks__tv_text(r, v) };
        p += 2;
    }
    if (p < close && *p != ':') ks__tr_fail(r, "format: ':' is expected after the conversion");
    if (p < close) p++;
    ks_tsb sub;
    ks__sb_init(&sub, r);
    if (memchr(p, '{', (size_t)(close - p))) {
        if (depth > 1) ks__tr_fail(r, "format: fields are nested too deeply");
        format_into(x, &sub, p, close, depth + 1);
        uint8_t now = b->now;
        b->now = KS_TFROM_REQUEST; /* a fill that an argument names may be anybody's */
        put_value(x, b, v, sub.p, sub.p + sub.n);
        b->now = now;
    } else {
        put_value(x, b, v, p, close);
    }
    return close + 1;
}

static void format_into(method *x, ks_tsb *b, const char *p, const char *end, int depth)
{
    while (p < end) {
        char c = *p++;
        if (c != '{' && c != '}') {
            ks__sb_addc(b, c);
        } else if (p < end && *p == c) {
            ks__sb_addc(b, c);
            p++;
        } else if (c == '}') {
            ks__tr_fail(x->r, "format: a single '}' is in the format string");
        } else {
            p = replace_field(x, b, p, end, depth);
        }
    }
}

ks_tv ks__format_method(ks_trun *r, const ks_tstr *fmt, const ks_tcall *c)
{
    method x = { .r = r, .c = c, .markup = fmt->markup };
    ks_tsb b;
    ks__sb_init(&b, r);
    b.now = ks__str_from(fmt);
    ks__tr_burn(r, fmt->n / 16);
    format_into(&x, &b, fmt->p, fmt->p + fmt->n, 1);
    return ks__sb_take(&b, fmt->markup);
}
