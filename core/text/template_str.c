/* Methods of strings, on code points as Python has them. Positions are counted in code points, work is done on bytes.
 */
#include "text/template_int.h"

#include <krasis/json.h>
#include <string.h>

typedef ks_tv tv;
#define FN(name) static ks_tv name(ks_trun *r, const ks_tv *a, const ks_tcall *c, const ks_tbuiltin *fn)
#define UNUSED(c, fn) ((void)(c), (void)(fn))

static bool given(tv v)
{
    return v.kind != KS_TV_MISSING && v.kind != KS_TV_NONE;
}

static tv piece(ks_trun *r, const ks_tstr *s, size_t begin, size_t end)
{
    return ks__str_piece(r, s, begin, end, s->markup);
}

/* A piece put beside markup becomes markup itself, escaped. */
static const ks_tstr *fit(ks_trun *r, const ks_tstr *self, tv v, const char *what)
{
    const ks_tstr *s = ks__arg_str(r, v, what);
    return self->markup && !s->markup ? ks__tv_escape(r, v).u.s : s;
}

static uint32_t next_cp(const ks_tstr *s, size_t *inout_at)
{
    uint32_t cp, k = ks_utf8_decode(s->p + *inout_at, s->n - *inout_at, &cp);
    *inout_at += k;
    return cp;
}

static uint32_t prev_cp(const ks_tstr *s, size_t *inout_end)
{
    size_t at = *inout_end - 1;
    while (at > 0 && ((unsigned char)s->p[at] & 0xc0) == 0x80) at--;
    size_t begin = at;
    uint32_t cp = next_cp(s, &at);
    *inout_end = begin;
    return cp;
}

static void add_cps(ks_tsb *b, const uint32_t *cp, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        char utf8[4];
        ks__sb_add(b, utf8, ks_utf8_encode(cp[i], utf8));
    }
}

/* ---- case */

enum { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_SWAP };

static bool is_cased(uint32_t cp)
{
    return ks__uc_upper(cp) || ks__uc_lower(cp);
}

/* A capital sigma at the end of a word has its own small form. */
static uint32_t lower_at(const ks_tstr *s, size_t begin, size_t end, uint32_t cp, uint32_t out[3])
{
    if (cp != 0x3a3) return ks__uc_to_lower(cp, out);
    bool before = false, after = false;
    for (size_t at = begin; at > 0 && !before;) {
        uint32_t p = prev_cp(s, &at);
        before = is_cased(p);
        if (!before && p != '\'' && p != '.' && p != ':' && p != 0xb7 && p != 0x2019) break;
    }
    for (size_t at = end; at < s->n && !after;) {
        uint32_t q = next_cp(s, &at);
        after = is_cased(q);
        if (!after && q != '\'' && q != '.' && q != ':' && q != 0xb7 && q != 0x2019) break;
    }
    out[0] = before && !after ? 0x3c2 : 0x3c3;
    return 1;
}

FN(s_case)
{
    (void)c;
    const ks_tstr *s = a[0].u.s;
    ks_tsb b;
    ks__sb_init(&b, r);
    bool in_word = false;
    for (size_t at = 0; at < s->n;) {
        size_t begin = at;
        uint32_t out[3], n, cp = next_cp(s, &at);
        bool up = fn->arg == CASE_UPPER || (fn->arg == CASE_SWAP && ks__uc_lower(cp));
        bool title = (fn->arg == CASE_CAPITALIZE && begin == 0) || (fn->arg == CASE_TITLE && !in_word);
        bool keep = fn->arg == CASE_SWAP && !is_cased(cp);
        b.now = ks__from_at(s, begin);
        if (cp < 0x80) {
            uint32_t lo = cp | 0x20;
            bool letter = lo >= 'a' && lo <= 'z';
            ks__sb_addc(&b, (char)(!letter || keep ? cp : up || title ? lo - 0x20 : lo));
            in_word = letter;
            continue;
        }
        if (keep) {
            out[0] = cp;
            n = 1;
        } else if (title) {
            n = ks__uc_to_title(cp, out);
        } else {
            n = up ? ks__uc_to_upper(cp, out) : lower_at(s, begin, at, cp, out);
        }
        add_cps(&b, out, n);
        in_word = is_cased(cp);
    }
    ks__tr_burn(r, s->n / 8);
    return ks__sb_take(&b, s->markup);
}

/* ---- stripping */

enum { STRIP_LEFT = 1, STRIP_RIGHT = 2 };

static bool in_set(ks_trun *r, uint32_t cp, const ks_tstr *set)
{
    if (!set) return ks__uc_space(cp);
    ks__tr_burn(r, 1 + set->n / 8);
    for (size_t at = 0; at < set->n;)
        if (next_cp(set, &at) == cp) return true;
    return false;
}

FN(s_strip)
{
    (void)c;
    const ks_tstr *s = a[0].u.s, *set = given(a[1]) ? ks__arg_str(r, a[1], "chars") : NULL;
    size_t begin = 0, end = s->n;
    while ((fn->arg & STRIP_LEFT) && begin < end) {
        size_t at = begin;
        if (!in_set(r, next_cp(s, &at), set)) break;
        begin = at;
    }
    while ((fn->arg & STRIP_RIGHT) && begin < end) {
        size_t at = end;
        if (!in_set(r, prev_cp(s, &at), set)) break;
        end = at;
    }
    ks__tr_burn(r, (s->n - (end - begin)) / 8);
    return piece(r, s, begin, end);
}

FN(s_remove)
{
    (void)c;
    const ks_tstr *s = a[0].u.s, *x = ks__arg_str(r, a[1], "affix");
    bool prefix = fn->arg == STRIP_LEFT;
    if (!x->n || x->n > s->n || memcmp(prefix ? s->p : s->p + s->n - x->n, x->p, x->n) != 0) return a[0];
    return prefix ? piece(r, s, x->n, s->n) : piece(r, s, 0, s->n - x->n);
}

/* ---- searching */

static const char *find(const char *p, size_t n, const ks_tstr *x)
{
    if (!x->n) return p;
    return n < x->n ? NULL : memmem(p, n, x->p, x->n);
}

static const char *find_last(ks_trun *r, const char *p, size_t n, const ks_tstr *x)
{
    for (size_t i = n >= x->n ? n - x->n + 1 : 0; i-- > 0;) {
        if (x->n && p[i] != x->p[0]) continue;
        ks__tr_burn(r, 1 + x->n / 64); /* quadratic on text made for it: that must cost */
        if (memcmp(p + i, x->p, x->n) == 0) return p + i;
    }
    return NULL;
}

static int64_t clamp_index(int64_t i, int64_t n)
{
    return i < 0 ? KS_MAX(i + n, 0) : KS_MIN(i, n);
}

/* The bytes [begin, end) that optional code point bounds select; false where they are empty the wrong way round. */
static bool window(ks_trun *r, const ks_tstr *s, tv from, tv to, size_t *ret_begin, size_t *ret_end)
{
    int64_t n = (int64_t)ks__str_cps(s), i = given(from) ? ks__arg_int(r, from, "start") : 0;
    int64_t j = given(to) ? ks__arg_int(r, to, "end") : n;
    if (i > n) return false;
    i = clamp_index(i, n);
    j = clamp_index(j, n);
    if (i > j) return false;
    const ks_tstr *w = ks__str_sub(r, s, (size_t)i, (size_t)j).u.s;
    *ret_begin = (size_t)(w->p - s->p);
    *ret_end = *ret_begin + w->n;
    return true;
}

/* arg: 1 the first, -1 the last; 2, -2 the same and an error if there is none. */
FN(s_find)
{
    (void)c;
    const ks_tstr *s = a[0].u.s, *x = ks__arg_str(r, a[1], "sub");
    size_t begin, end;
    const char *hit = NULL;
    ks__tr_burn(r, s->n / 16);
    if (window(r, s, a[2], a[3], &begin, &end))
        hit = fn->arg > 0 ? find(s->p + begin, end - begin, x) : find_last(r, s->p + begin, end - begin, x);
    if (hit) {
        ks_tstr head = { .p = s->p, .n = (size_t)(hit - s->p), .n_cp = SIZE_MAX };
        return ks__tv_int((int64_t)ks__str_cps(&head));
    }
    if (fn->arg == 2 || fn->arg == -2) ks__tr_fail(r, "%s: the substring is not found", fn->name);
    return ks__tv_int(-1);
}

FN(s_count)
{
    UNUSED(c, fn);
    const ks_tstr *s = a[0].u.s, *x = ks__arg_str(r, a[1], "sub");
    size_t begin, end;
    int64_t n = 0;
    ks__tr_burn(r, s->n / 16);
    if (!window(r, s, a[2], a[3], &begin, &end)) return ks__tv_int(0);
    if (!x->n) {
        ks_tstr w = { .p = s->p + begin, .n = end - begin, .n_cp = SIZE_MAX };
        return ks__tv_int((int64_t)ks__str_cps(&w) + 1);
    }
    for (const char *p = s->p + begin; (p = find(p, (size_t)(s->p + end - p), x)) != NULL; p += x->n) n++;
    return ks__tv_int(n);
}

/* arg: 0 starts with, 1 ends with; a tuple means any of its members. */
FN(s_affix)
{
    (void)c;
    const ks_tstr *s = a[0].u.s;
    tv list = a[1];
    size_t begin, end;
    ks__tv_need_defined(r, a[1]);
    if (a[1].kind != KS_TV_TUPLE) {
        list = ks__tv_list(r, 1);
        ks__list_push(r, list.u.l, a[1]);
    }
    bool any = window(r, s, a[2], a[3], &begin, &end), hit = false;
    for (uint32_t i = 0; i < list.u.l->n; i++) {
        const ks_tstr *x = ks__arg_str(r, list.u.l->v[i], fn->name);
        if (!any || x->n > end - begin) continue;
        hit |= memcmp(fn->arg ? s->p + end - x->n : s->p + begin, x->p, x->n) == 0;
    }
    return ks__tv_bool(hit);
}

FN(s_replace)
{
    UNUSED(c, fn);
    const ks_tstr *s = a[0].u.s, *from = fit(r, s, a[1], "old"), *to = fit(r, s, a[2], "new");
    int64_t max = ks__arg_int_or(r, a[3], -1, "count");
    ks_tsb b;
    ks__sb_init(&b, r);
    size_t at = 0;
    for (; max != 0; max--) {
        const char *hit = find(s->p + at, s->n - at, from);
        if (!hit) break;
        ks__tr_burn(r, 1);
        ks__sb_piece(&b, s, at, (size_t)(hit - s->p));
        ks__sb_text(&b, to);
        at = (size_t)(hit - s->p) + from->n;
        if (!from->n) { /* between all characters, and at both ends */
            if (at >= s->n) {
                at = s->n;
                break;
            }
            size_t begin = at;
            (void)next_cp(s, &at);
            ks__sb_piece(&b, s, begin, at);
        }
    }
    ks__sb_piece(&b, s, at, s->n);
    return ks__sb_take(&b, s->markup);
}

/* ---- splitting */

static void push(ks_trun *r, ks_tlist *l, const ks_tstr *s, size_t begin, size_t end)
{
    ks__list_push(r, l, piece(r, s, begin, end));
}

static void split_blanks(ks_trun *r, const ks_tstr *s, int64_t max, ks_tlist *l)
{
    size_t at = 0;
    for (;;) {
        size_t word = at;
        while (at < s->n && ks__uc_space(next_cp(s, &at))) word = at;
        if (word >= s->n) return;
        if (max-- == 0) {
            push(r, l, s, word, s->n);
            return;
        }
        size_t end = word;
        at = word;
        while (at < s->n && !ks__uc_space(next_cp(s, &at))) end = at;
        push(r, l, s, word, end);
        at = end;
    }
}

static void rsplit_blanks(ks_trun *r, const ks_tstr *s, int64_t max, ks_tlist *l)
{
    size_t end = s->n;
    for (;;) {
        size_t at = end;
        while (at > 0 && ks__uc_space(prev_cp(s, &at))) end = at;
        if (end == 0) return;
        if (max-- == 0) {
            push(r, l, s, 0, end);
            return;
        }
        size_t word = end;
        at = end;
        while (at > 0 && !ks__uc_space(prev_cp(s, &at))) word = at;
        push(r, l, s, word, end);
        end = word;
    }
}

FN(s_split)
{
    (void)c;
    const ks_tstr *s = a[0].u.s;
    bool right = fn->arg != 0;
    int64_t max = ks__arg_int_or(r, a[2], -1, "maxsplit");
    tv out = ks__tv_list(r, 0);
    ks__tr_burn(r, s->n / 8);
    if (!given(a[1])) {
        if (right)
            rsplit_blanks(r, s, max, out.u.l);
        else
            split_blanks(r, s, max, out.u.l);
    } else {
        const ks_tstr *x = ks__arg_str(r, a[1], "sep");
        if (!x->n) ks__tr_fail(r, "split: the separator is empty");
        size_t begin = 0, end = s->n;
        const char *hit;
        for (; max != 0; max--) {
            hit = right ? find_last(r, s->p, end, x) : find(s->p + begin, s->n - begin, x);
            if (!hit) break;
            size_t at = (size_t)(hit - s->p);
            if (right) {
                push(r, out.u.l, s, at + x->n, end);
                end = at;
            } else {
                push(r, out.u.l, s, begin, at);
                begin = at + x->n;
            }
        }
        push(r, out.u.l, s, begin, end);
    }
    for (uint32_t i = 0, n = out.u.l->n; right && i < n / 2; i++) {
        tv t = out.u.l->v[i];
        out.u.l->v[i] = out.u.l->v[n - 1 - i];
        out.u.l->v[n - 1 - i] = t;
    }
    return out;
}

FN(s_partition)
{
    (void)c;
    const ks_tstr *s = a[0].u.s, *x = ks__arg_str(r, a[1], "sep");
    if (!x->n) ks__tr_fail(r, "partition: the separator is empty");
    ks__tr_burn(r, s->n / 16);
    const char *hit = fn->arg ? find_last(r, s->p, s->n, x) : find(s->p, s->n, x);
    size_t at = hit ? (size_t)(hit - s->p) : fn->arg ? 0 : s->n, after = hit ? at + x->n : at;
    tv out = ks__tv_list(r, 3);
    out.kind = KS_TV_TUPLE;
    push(r, out.u.l, s, 0, at);
    push(r, out.u.l, s, at, after);
    push(r, out.u.l, s, after, s->n);
    return out;
}

FN(s_splitlines)
{
    UNUSED(c, fn);
    const ks_tstr *s = a[0].u.s;
    bool keep = ks__arg_bool_or(r, a[1], false);
    tv out = ks__tv_list(r, 0);
    size_t begin = 0;
    for (size_t at = 0; at < s->n;) {
        size_t here = at;
        uint32_t cp = next_cp(s, &at);
        if (!((cp >= 0x0a && cp <= 0x0d) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 || cp == 0x2029))
            continue;
        if (cp == '\r' && at < s->n && s->p[at] == '\n') at++;
        push(r, out.u.l, s, begin, keep ? at : here);
        begin = at;
    }
    if (begin < s->n) push(r, out.u.l, s, begin, s->n);
    ks__tr_burn(r, s->n / 8);
    return out;
}

FN(s_join)
{
    UNUSED(c, fn);
    const ks_tstr *s = a[0].u.s;
    ks_titer it;
    tv v;
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__iter_need(r, a[1], &it);
    for (bool first = true; ks__iter_next(r, &it, &v); first = false) {
        if (!first) ks__sb_text(&b, s);
        ks__sb_text(&b, s->markup ? ks__tv_escape(r, v).u.s : ks__arg_str(r, v, "item of join"));
    }
    return ks__sb_take(&b, s->markup);
}

/* ---- padding */

/* arg: -1 text to the left, 1 to the right, 0 in the middle. */
FN(s_just)
{
    (void)c;
    const ks_tstr *s = a[0].u.s, *fill = given(a[2]) ? ks__arg_str(r, a[2], "fillchar") : NULL;
    int64_t n = (int64_t)ks__str_cps(s), width = ks__arg_int(r, a[1], "width"), pad = KS_MAX(width - n, 0), left;
    if (fill && ks__str_cps(fill) != 1) ks__tr_fail(r, "%s: the fill must be one character", fn->name);
    left = fn->arg < 0 ? 0 : fn->arg > 0 ? pad : pad / 2 + (pad & width & 1);
    ks_tsb b;
    ks__sb_init(&b, r);
    b.now = fill ? ks__str_from(fill) : KS_TFROM_TEMPLATE;
    ks__sb_fill(&b, fill ? fill->p : " ", fill ? fill->n : 1, left);
    ks__sb_text(&b, s);
    ks__sb_fill(&b, fill ? fill->p : " ", fill ? fill->n : 1, pad - left);
    return ks__sb_take(&b, s->markup);
}

FN(s_zfill)
{
    UNUSED(c, fn);
    const ks_tstr *s = a[0].u.s;
    bool sign = s->n && (s->p[0] == '-' || s->p[0] == '+');
    ks_tsb b;
    ks__sb_init(&b, r);
    ks__sb_piece(&b, s, 0, sign);
    b.now = KS_TFROM_TEMPLATE;
    int64_t width = ks__arg_int(r, a[1], "width"), n = (int64_t)ks__str_cps(s);
    ks__sb_fill(&b, "0", 1, width > n ? width - n : 0);
    ks__sb_piece(&b, s, sign, s->n);
    return ks__sb_take(&b, s->markup);
}

FN(s_expandtabs)
{
    UNUSED(c, fn);
    const ks_tstr *s = a[0].u.s;
    int64_t size = ks__arg_int_or(r, a[1], 8, "tabsize"), col = 0;
    ks_tsb b;
    ks__sb_init(&b, r);
    for (size_t at = 0; at < s->n;) {
        size_t begin = at;
        uint32_t cp = next_cp(s, &at);
        if (cp == '\t') {
            int64_t n = size > 0 ? size - col % size : 0;
            b.now = ks__from_at(s, begin);
            ks__sb_fill(&b, " ", 1, n);
            col += n;
        } else {
            ks__sb_piece(&b, s, begin, at);
            col = cp == '\n' || cp == '\r' ? 0 : col + 1;
        }
    }
    return ks__sb_take(&b, s->markup);
}

/* ---- properties */

enum {
    IS_ALPHA,
    IS_ALNUM,
    IS_DIGIT,
    IS_NUMERIC,
    IS_SPACE,
    IS_UPPER,
    IS_LOWER,
    IS_TITLE,
    IS_ASCII,
    IS_PRINTABLE,
    IS_IDENT
};

static bool is_ident_char(uint32_t cp, bool first)
{
    return cp == '_' || ks__uc_alpha(cp) || (!first && ks__uc_decimal(cp));
}

FN(s_is)
{
    (void)c;
    (void)r;
    const ks_tstr *s = a[0].u.s;
    bool all = true, cased = false, prev_cased = false;
    ks__tr_burn(r, s->n / 16);
    for (size_t at = 0; at < s->n && all;) {
        bool first = at == 0;
        uint32_t cp = next_cp(s, &at);
        bool up = ks__uc_upper(cp), low = ks__uc_lower(cp);
        switch (fn->arg) {
        case IS_ALPHA: all = ks__uc_alpha(cp); break;
        case IS_ALNUM: all = ks__uc_alpha(cp) || ks__uc_numeric(cp); break;
        case IS_DIGIT: all = ks__uc_decimal(cp); break;
        case IS_NUMERIC: all = ks__uc_numeric(cp); break;
        case IS_SPACE: all = ks__uc_space(cp); break;
        case IS_UPPER: all = !low; break;
        case IS_LOWER: all = !up; break;
        case IS_TITLE: all = up ? !prev_cased : low ? prev_cased : true; break;
        case IS_ASCII: all = cp < 0x80; break;
        case IS_PRINTABLE: all = ks__uc_printable(cp); break;
        default: all = is_ident_char(cp, first); break;
        }
        cased |= up || low;
        prev_cased = up || low;
    }
    bool may_be_empty = fn->arg == IS_ASCII || fn->arg == IS_PRINTABLE;
    bool needs_case = fn->arg == IS_UPPER || fn->arg == IS_LOWER || fn->arg == IS_TITLE;
    return ks__tv_bool(all && (s->n || may_be_empty) && (!needs_case || cased));
}

FN(s_format)
{
    UNUSED(a, fn);
    ks_tcall args = *c;
    args.pos++;
    args.n_pos--;
    return ks__format_method(r, c->pos[0].u.s, &args);
}

FN(s_format_map)
{
    UNUSED(c, fn);
    if (a[1].kind != KS_TV_DICT) ks__tr_fail(r, "format_map needs a mapping, not '%s'", ks__tv_type(a[1]));
    const ks_tdict *d = a[1].u.d;
    const ks_tstr **names = ks__tr_alloc(r, (size_t)d->n + 1, sizeof *names);
    for (uint32_t i = 0; i < d->n; i++) names[i] = ks__tv_text(r, d->keys[i]);
    return ks__format_method(r, a[0].u.s, &(ks_tcall) { .n_kw = d->n, .kw_names = names, .kw = d->vals });
}

const ks_tbuiltin *ks__str_method_find(const char *name, size_t n)
{
    static const ks_tbuiltin rows[] = {
        { "strip", s_strip, "/self,chars=", STRIP_LEFT | STRIP_RIGHT },
        { "lstrip", s_strip, "/self,chars=", STRIP_LEFT },
        { "rstrip", s_strip, "/self,chars=", STRIP_RIGHT },
        { "removeprefix", s_remove, "/self,prefix", STRIP_LEFT },
        { "removesuffix", s_remove, "/self,suffix", STRIP_RIGHT },
        { "upper", s_case, "/self", CASE_UPPER },
        { "lower", s_case, "/self", CASE_LOWER },
        { "capitalize", s_case, "/self", CASE_CAPITALIZE },
        { "title", s_case, "/self", CASE_TITLE },
        { "swapcase", s_case, "/self", CASE_SWAP },
        { "casefold", s_case, "/self", CASE_LOWER },
        { "find", s_find, "/self,sub,start=,end=", 1 },
        { "rfind", s_find, "/self,sub,start=,end=", -1 },
        { "index", s_find, "/self,sub,start=,end=", 2 },
        { "rindex", s_find, "/self,sub,start=,end=", -2 },
        { "count", s_count, "/self,sub,start=,end=", 0 },
        { "startswith", s_affix, "/self,prefix,start=,end=", 0 },
        { "endswith", s_affix, "/self,suffix,start=,end=", 1 },
        { "replace", s_replace, "/self,old,new,count=", 0 },
        { "split", s_split, "self,sep=,maxsplit=", 0 },
        { "rsplit", s_split, "self,sep=,maxsplit=", 1 },
        { "partition", s_partition, "/self,sep", 0 },
        { "rpartition", s_partition, "/self,sep", 1 },
        { "splitlines", s_splitlines, "self,keepends=", 0 },
        { "join", s_join, "/self,iterable", 0 },
        { "center", s_just, "/self,width,fillchar=", 0 },
        { "ljust", s_just, "/self,width,fillchar=", -1 },
        { "rjust", s_just, "/self,width,fillchar=", 1 },
        { "zfill", s_zfill, "/self,width", 0 },
        { "expandtabs", s_expandtabs, "self,tabsize=", 0 },
        { "isalpha", s_is, "/self", IS_ALPHA },
        { "isalnum", s_is, "/self", IS_ALNUM },
        { "isdigit", s_is, "/self", IS_DIGIT },
        { "isdecimal", s_is, "/self", IS_DIGIT },
        { "isnumeric", s_is, "/self", IS_NUMERIC },
        { "isspace", s_is, "/self", IS_SPACE },
        { "isupper", s_is, "/self", IS_UPPER },
        { "islower", s_is, "/self", IS_LOWER },
        { "istitle", s_is, "/self", IS_TITLE },
        { "isascii", s_is, "/self", IS_ASCII },
        { "isprintable", s_is, "/self", IS_PRINTABLE },
        { "isidentifier", s_is, "/self", IS_IDENT },
        { "format", s_format, "/self*", 0 },
        { "format_map", s_format_map, "/self,mapping", 0 },
    };
    return ks__table_find(rows, KS_COUNT(rows), name, n);
}
