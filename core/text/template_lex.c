/* Template source to tokens, with the white-space rules that chat templates are written for: trim_blocks and
 * lstrip_blocks on, one newline at the end of the source dropped, `-` and `+` inside of the tags. The tokens
 * live in the template's arena and point into its source. */
#include "text/template_int.h"

#include <krasis/json.h>
#include <string.h>

typedef struct lexer {
    ks_tparse *p;
    const char *s;
    size_t n, at;
    bool line_starting; /* the last tag ended with a newline, or nothing came before */
} lexer;

static ks_ttoken *push(lexer *l, ks_ttok type, size_t pos)
{
    ks_tparse *p = l->p;
    if (p->n_tok == p->cap_tok) {
        size_t cap = p->cap_tok ? p->cap_tok * 2 : 256;
        ks_ttoken *tok = ks__tp_alloc(p, cap * sizeof *tok);
        if (p->n_tok) memcpy(tok, p->tok, p->n_tok * sizeof *tok);
        p->tok = tok;
        p->cap_tok = cap;
    }
    ks_ttoken *t = &p->tok[p->n_tok++];
    *t = (ks_ttoken) { .type = type, .pos = (uint32_t)pos };
    return t;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c) || (unsigned char)c >= 0x80;
}

static size_t skip_space(const lexer *l, size_t at)
{
    while (at < l->n) {
        uint32_t cp, k = ks_utf8_decode(l->s + at, l->n - at, &cp);
        if (!ks__uc_space(cp)) break;
        at += k;
    }
    return at;
}

/* The end of [begin, end) without white space at its end. */
static size_t strip_end(const lexer *l, size_t begin, size_t end)
{
    while (end > begin) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)l->s[at] & 0xc0) == 0x80) at--;
        uint32_t cp;
        (void)ks_utf8_decode(l->s + at, end - at, &cp); /* the source is known to be valid */
        if (!ks__uc_space(cp)) break;
        end = at;
    }
    return end;
}

/* Text before a tag, cut as the tag's sign and lstrip_blocks ask for. */
static void push_data(lexer *l, size_t begin, size_t end, char sign, bool lstrip)
{
    if (sign == '-') {
        end = strip_end(l, begin, end);
    } else if (sign != '+' && lstrip) {
        size_t line = end;
        while (line > begin && l->s[line - 1] != '\n') line--;
        if ((line > begin || l->line_starting) && skip_space(l, line) >= end) end = line;
    }
    if (end > begin) {
        ks_ttoken *t = push(l, KS_TT_DATA, begin);
        t->p = l->s + begin;
        t->n = end - begin;
    }
}

static int hex_value(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* One escape after a backslash at s[at]; returns the bytes read, writes to dst (at most as many as read). */
static size_t unescape(lexer *l, size_t at, size_t end, char *dst, size_t *inout_n)
{
    static const char from[] = "ntrabfv0\\'\"", to[] = "\n\t\r\a\b\f\v\0\\'\"";
    char c = l->s[at];
    const char *k = strchr(from, c);
    if (c == '\n') return 1; /* a line joined to the next */
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (c >= '0' && c <= '7') {
        uint32_t v = 0;
        size_t i = 0;
        for (; i < 3 && at + i < end && l->s[at + i] >= '0' && l->s[at + i] <= '7'; i++)
            v = v * 8 + (uint32_t)(l->s[at + i] - '0');
        *inout_n += ks_utf8_encode(v, dst + *inout_n);
        return i;
    }
    if (digits) {
        uint32_t v = 0;
        for (size_t i = 1; i <= digits; i++) {
            int h = at + i < end ? hex_value(l->s[at + i]) : -1;
            if (h < 0) ks__tp_fail(l->p, (uint32_t)at - 1, "the escape \\%c needs %zu hexadecimal digits", c, digits);
            v = v << 4 | (uint32_t)h;
        }
        uint32_t n = ks_utf8_encode(v, dst + *inout_n);
        if (!n) ks__tp_fail(l->p, (uint32_t)at - 1, "the escape \\%c names no character", c);
        *inout_n += n;
        return digits + 1;
    }
    if (c == 'N') ks__tp_fail(l->p, (uint32_t)at - 1, "characters by name, \\N{...}, are not supported; write \\u....");
    if (k && c) {
        dst[(*inout_n)++] = to[k - from];
        return 1;
    }
    dst[(*inout_n)++] = '\\'; /* an unknown escape is left as it stands */
    return 0;
}

static void lex_string(lexer *l)
{
    size_t begin = l->at, i = begin + 1;
    char quote = l->s[begin];
    bool escaped = false;
    for (; i < l->n && l->s[i] != quote; i++)
        if (l->s[i] == '\\') {
            escaped = true;
            if (++i >= l->n) break;
        }
    if (i >= l->n) ks__tp_fail(l->p, (uint32_t)begin, "this string has no end");
    ks_ttoken *t = push(l, KS_TT_STRING, begin);
    t->p = l->s + begin + 1;
    t->n = i - begin - 1;
    if (escaped) {
        char *dst = ks__tp_alloc(l->p, t->n + 8);
        size_t n = 0, at = begin + 1;
        while (at < i) {
            if (l->s[at] == '\\')
                at += 1 + unescape(l, at + 1, i, dst, &n);
            else
                dst[n++] = l->s[at++];
        }
        t->p = dst;
        t->n = n;
    }
    l->at = i + 1;
}

/* Digits of `base` with single underscores between them; returns the end. */
static size_t digits_end(const lexer *l, size_t at, int base)
{
    size_t end = at;
    for (;;) {
        size_t i = end + (end > at && end < l->n && l->s[end] == '_');
        int h = i < l->n ? hex_value(l->s[i]) : -1;
        if (h < 0 || h >= base) return end;
        end = i + 1;
    }
}

static ks_tv number_value(lexer *l, const char *s, size_t n, int base, bool real, uint32_t pos)
{
    ks_tv v = { .kind = KS_TV_INT };
    if (real) {
        v.kind = KS_TV_FLOAT;
        if (!ks__float_parse(s, n, &v.u.f)) ks__tp_fail(l->p, pos, "'%.*s' is not a number", (int)KS_MIN(n, 40), s);
        return v;
    }
    bool big = false;
    for (size_t i = 0; i < n; i++)
        big |= __builtin_mul_overflow(v.u.i, (int64_t)base, &v.u.i) ||
               __builtin_add_overflow(v.u.i, (int64_t)hex_value(s[i]), &v.u.i);
    if (!big) return v;
    if (base != 10) ks__tp_fail(l->p, pos, "an integer of this base must fit into 64 bits");
    return (ks_tv) { .kind = KS_TV_BIG, .u.s = ks__tp_str(l->p, s, n, true) };
}

static void lex_number(lexer *l)
{
    size_t begin = l->at, end;
    int base = 10;
    bool real = false;
    if (l->s[begin] == '0' && begin + 2 < l->n) {
        char c = (char)(l->s[begin + 1] | 0x20);
        base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
        if (base != 10 && digits_end(l, begin + 2, base) == begin + 2) base = 10;
    }
    size_t from = begin + (base == 10 ? 0 : 2);
    end = digits_end(l, from, base);
    if (base == 10) {
        /* After a dot only an integer can follow: x.0.1 is two look-ups. */
        bool after_dot = begin > 0 && l->s[begin - 1] == '.';
        if (!after_dot && end + 1 < l->n && l->s[end] == '.' && is_digit(l->s[end + 1])) {
            end = digits_end(l, end + 1, 10);
            real = true;
        }
        if (!after_dot && end < l->n && (l->s[end] | 0x20) == 'e') {
            size_t exp = end + 1 + (end + 1 < l->n && (l->s[end + 1] == '+' || l->s[end + 1] == '-'));
            size_t exp_end = digits_end(l, exp, 10);
            if (exp_end > exp) {
                end = exp_end;
                real = true;
            }
        }
        if (!real && l->s[begin] == '0') { /* 0 and 00 are integers, 012 is 0 and then 12 */
            end = begin;
            while (end < l->n && l->s[end] == '0') end++;
        }
    }
    char *text = ks__tp_alloc(l->p, end - from + 1);
    size_t n = 0;
    for (size_t i = from; i < end; i++)
        if (l->s[i] != '_') text[n++] = l->s[i];
    ks_tv v = number_value(l, text, n, base, real, (uint32_t)begin);
    ks_ttoken *t = push(l, KS_TT_NUMBER, begin);
    t->p = l->s + begin;
    t->n = end - begin;
    t->val = v;
    l->at = end;
}

static uint32_t lex_op(lexer *l)
{
    static const char two[][3] = { "==", "!=", ">=", "<=", "//", "**" };
    char c = l->s[l->at];
    for (size_t i = 0; i < KS_COUNT(two); i++)
        if (l->at + 1 < l->n && c == two[i][0] && l->s[l->at + 1] == two[i][1]) return KS_TOP2(two[i][0], two[i][1]);
    if (!c || !strchr("+-/*%~[](){}><=.:|,;", c)) {
        uint32_t cp, k = ks_utf8_decode(l->s + l->at, l->n - l->at, &cp);
        ks__tp_fail(l->p, (uint32_t)l->at, "unexpected character '%.*s'", (int)k, l->s + l->at);
    }
    return (uint32_t)c;
}

/* Where the tag's end stands if it is here: its length with the newline or blanks that go with it, else 0. */
static size_t tag_end(const lexer *l, bool block, bool trim)
{
    const char *end = block ? "%}" : "}}";
    size_t at = l->at;
    char sign = l->s[at];
    bool signed_end = sign == '-' || (sign == '+' && block);
    at += signed_end;
    if (at + 2 > l->n || memcmp(l->s + at, end, 2) != 0) return 0;
    at += 2;
    if (signed_end && sign == '-')
        at = skip_space(l, at);
    else if (!signed_end && block && trim && at < l->n && l->s[at] == '\n')
        at++;
    return at - l->at;
}

/* Inside of a block or print tag, from after its beginning to after its end. */
static void lex_tag(lexer *l, bool block, size_t begin)
{
    char open[KS_TMPL_PARSE_DEPTH];
    uint32_t n_open = 0;
    push(l, block ? KS_TT_BLOCK_BEGIN : KS_TT_VAR_BEGIN, begin);
    for (;;) {
        l->at = skip_space(l, l->at);
        if (l->at >= l->n) ks__tp_fail(l->p, (uint32_t)begin, "this tag has no end '%s'", block ? "%}" : "}}");
        size_t end = n_open ? 0 : tag_end(l, block, true);
        if (end) {
            push(l, block ? KS_TT_BLOCK_END : KS_TT_VAR_END, l->at);
            l->at += end;
            return;
        }
        char c = l->s[l->at];
        if (is_digit(c)) {
            lex_number(l);
        } else if (is_name(c)) {
            ks_ttoken *t = push(l, KS_TT_NAME, l->at);
            t->p = l->s + l->at;
            while (l->at < l->n && is_name(l->s[l->at])) l->at++;
            t->n = (size_t)(l->s + l->at - t->p);
        } else if (c == '"' || c == '\'') {
            lex_string(l);
        } else {
            uint32_t op = lex_op(l);
            if (op == '(' || op == '[' || op == '{') {
                if (n_open == sizeof open) ks__tp_fail(l->p, (uint32_t)l->at, "more than %u nested brackets", n_open);
                open[n_open++] = op == '(' ? ')' : op == '[' ? ']' : '}';
            } else if (op == ')' || op == ']' || op == '}') {
                if (!n_open || (uint32_t)open[n_open - 1] != op)
                    ks__tp_fail(l->p, (uint32_t)l->at, "unexpected '%c'", (char)op);
                n_open--;
            }
            push(l, KS_TT_OP, l->at)->op = op;
            l->at += op > 0xff ? 2 : 1;
        }
    }
}

/* At `{%`: is this `{% NAME %}`? Returns the offset after the name, else 0. */
static size_t at_block(const lexer *l, size_t at, const char *name)
{
    size_t n = strlen(name);
    if (at + 2 > l->n || memcmp(l->s + at, "{%", 2) != 0) return 0;
    at += 2;
    if (at < l->n && (l->s[at] == '-' || l->s[at] == '+')) at++;
    at = skip_space(l, at);
    return at + n <= l->n && memcmp(l->s + at, name, n) == 0 ? skip_space(l, at + n) : 0;
}

/* `{% raw %}` ... `{% endraw %}`; false if it is another block. */
static bool lex_raw(lexer *l, size_t data_begin, size_t tag)
{
    size_t after = at_block(l, tag, "raw");
    size_t end = 0, old = l->at;
    if (after) {
        l->at = after;
        end = after < l->n ? tag_end(l, true, false) : 0;
        l->at = old;
    }
    if (!end || l->s[after] == '+') return false;
    push_data(l, data_begin, tag, l->s[tag + 2], true);
    l->line_starting = l->s[after + end - 1] == '\n';
    size_t begin = after + end;
    if (begin >= l->n) { /* a beginning alone at the very end is nothing */
        l->at = l->n;
        return true;
    }
    for (size_t at = begin; at < l->n; at++) {
        size_t close = at_block(l, at, "endraw");
        if (!close || close >= l->n) continue;
        l->at = close;
        size_t n = tag_end(l, true, true);
        if (!n) continue;
        push_data(l, begin, at, l->s[at + 2], true);
        l->at = close + n;
        l->line_starting = l->s[l->at - 1] == '\n';
        return true;
    }
    ks__tp_fail(l->p, (uint32_t)tag, "this 'raw' has no 'endraw'");
}

static void lex_comment(lexer *l, size_t begin)
{
    size_t at = l->at;
    while (at + 2 <= l->n && memcmp(l->s + at, "#}", 2) != 0) at++;
    if (l->at >= l->n) return; /* a beginning alone at the very end is nothing */
    if (at + 2 > l->n) ks__tp_fail(l->p, (uint32_t)begin, "this comment has no end '#}'");
    char sign = at > l->at ? l->s[at - 1] : 0;
    at += 2;
    if (sign == '-')
        at = skip_space(l, at);
    else if (sign != '+' && at < l->n && l->s[at] == '\n')
        at++;
    l->at = at;
}

void ks__tp_lex(ks_tparse *p)
{
    lexer lx = { .p = p, .s = p->t->source, .n = p->t->n, .line_starting = true }, *l = &lx;
    while (l->at < l->n) {
        size_t begin = l->at, tag = begin;
        while (tag + 1 < l->n && !(l->s[tag] == '{' && strchr("{%#", l->s[tag + 1]) && l->s[tag + 1])) tag++;
        if (tag + 1 >= l->n) {
            push_data(l, begin, l->n, '+', false);
            l->at = l->n;
            break;
        }
        char what = l->s[tag + 1];
        if (what == '%' && lex_raw(l, begin, tag)) continue;
        char sign = tag + 2 < l->n ? l->s[tag + 2] : 0;
        bool is_signed = sign == '-' || sign == '+';
        push_data(l, begin, tag, is_signed ? sign : 0, what != '{');
        l->at = tag + 2 + is_signed;
        if (what == '#')
            lex_comment(l, tag);
        else
            lex_tag(l, what == '%', tag);
        l->line_starting = l->s[l->at - 1] == '\n';
    }
    push(l, KS_TT_EOF, l->n);
}
