/* JSON to values (the context, |from_json) and values to JSON (|tojson), printed as Python's json.dumps does. */
#include "text/template_int.h"

#include <krasis/json.h>
#include <math.h>
#include <string.h>

/* ---- reading */

typedef struct reader {
    ks_trun *r;
    ks_json j;
    const char *what;
    uint8_t from; /* KS_TFROM_ of all strings */
} reader;

static ks_tv read_string(reader *x)
{
    ks_trun *r = x->r;
    if (!x->j.escaped) return ks__tv_str(r, x->j.tok, x->j.tok_bytes, x->from);
    size_t n;
    char *p = ks__tr_alloc(r, x->j.tok_bytes + 1, 1);
    if (ks_json_str(&x->j, p, x->j.tok_bytes + 1, &n) < 0) ks__tr_fail(r, "%s: a string is malformed", x->what);
    return ks__tv_ref(r, p, n, x->from);
}

static ks_tv read_number(reader *x)
{
    const char *p = x->j.tok;
    size_t n = x->j.tok_bytes;
    int64_t i;
    double f;
    if (n == 2 && memcmp(p, "-0", 2) == 0) return ks__tv_int(0);
    if (ks_json_i64(&x->j, &i) == 0) return ks__tv_int(i);
    if (!memchr(p, '.', n) && !memchr(p, 'e', n) && !memchr(p, 'E', n)) {
        ks_tv v = ks__tv_str(x->r, p, n, x->from);
        v.kind = KS_TV_BIG;
        return v;
    }
    if (!ks__float_parse(p, n, &f)) f = HUGE_VAL; /* spelled longer than any double needs */
    return ks__tv_float(f);
}

static ks_tv read_value(reader *x, int tok)
{
    ks_trun *r = x->r;
    ks_tv v = ks__tv_none();
    ks__tr_enter(r);
    switch (tok) {
    case KS_JSON_OBJECT:
        v = ks__tv_dict(r);
        while ((tok = ks_json_next(&x->j)) == KS_JSON_KEY) {
            ks_tv key = read_string(x);
            ks__dict_set(r, v.u.d, key, read_value(x, ks_json_next(&x->j)));
        }
        break;
    case KS_JSON_ARRAY:
        v = ks__tv_list(r, 0);
        while ((tok = ks_json_next(&x->j)) > 0 && tok != KS_JSON_ARRAY_END) ks__list_push(r, v.u.l, read_value(x, tok));
        break;
    case KS_JSON_STRING: v = read_string(x); break;
    case KS_JSON_NUMBER: v = read_number(x); break;
    case KS_JSON_TRUE:
    case KS_JSON_FALSE: v = ks__tv_bool(tok == KS_JSON_TRUE); break;
    default: break; /* null; errors are told below */
    }
    if (tok == KS_JSON_ERROR) {
        ks_err e = { .code = 0 };
        (void)ks_json_fail(&x->j, &e, x->what);
        ks__tr_fail(r, "%s", e.msg);
    }
    ks__tr_leave(r);
    return v;
}

ks_tv ks__tv_from_json(ks_trun *r, const char *text, size_t n, uint8_t from, const char *what)
{
    reader x = { .r = r, .what = what, .from = from };
    ks__tr_burn(r, n / 16);
    ks_json_init(&x.j, text, n, KS_JSON_DEPTH_MAX);
    ks_tv v = read_value(&x, ks_json_next(&x.j));
    if (ks_json_next(&x.j) == KS_JSON_ERROR) {
        ks_err e = { .code = 0 };
        (void)ks_json_fail(&x.j, &e, what);
        ks__tr_fail(r, "%s", e.msg);
    }
    return v;
}

static void vouch(const ks_tv *v)
{
    if (v && v->kind == KS_TV_STR) ((ks_tstr *)v->u.s)->from = KS_TFROM_TEMPLATE; /* ours, just read */
}

/* Templates build control tokens of these: names of special tokens, which the host gives, and roles, of which there are
 * a few words. All other text of the context is the request's. */
static void vouch_for_names(ks_trun *r, const ks_tdict *context)
{
    static const char *const tokens[] = { "bos_token", "eos_token", "pad_token", "unk_token" };
    static const char *const roles[] = { "system", "developer", "user", "assistant", "tool", "function" };
    for (size_t i = 0; i < KS_COUNT(tokens); i++) vouch(ks__dict_getz(r, context, tokens[i]));
    const ks_tv *list = ks__dict_getz(r, context, "messages");
    for (uint32_t i = 0; list && list->kind == KS_TV_LIST && i < list->u.l->n; i++) {
        ks_tv m = list->u.l->v[i];
        const ks_tv *role = m.kind == KS_TV_DICT ? ks__dict_getz(r, m.u.d, "role") : NULL;
        for (size_t k = 0; role && role->kind == KS_TV_STR && k < KS_COUNT(roles); k++)
            if (ks__str_is(role->u.s, roles[k])) vouch(role);
    }
}

/* The context's members become the root's variables, those of them that the template names. */
void ks__tr_context(ks_trun *r, const char *text, size_t n)
{
    ks_tv v = ks__tv_from_json(r, text, n, KS_TFROM_REQUEST, "template context");
    if (v.kind != KS_TV_DICT) ks__tr_fail(r, "the template context must be a JSON object");
    vouch_for_names(r, v.u.d);
    for (uint32_t i = 0; i < r->t->n_syms; i++) {
        const ks_tv *val = ks__dict_get(r, v.u.d, (ks_tv) { .kind = KS_TV_STR, .u.s = r->t->syms[i] });
        r->root[i] = val ? *val : (ks_tv) { .kind = KS_TV_MISSING };
        if (i >= r->t->first_use_cap || r->t->first_use[i] != 2) continue;
        r->root[i] = ks__tv_undef(r, NULL); /* hidden, see first_use */
        ((ks_tundef *)r->root[i].u.undef)->name = r->t->syms[i];
    }
}

/* ---- writing */

typedef struct writer {
    ks_tsb *b;
    bool ascii, sort;
    const ks_tstr *indent; /* NULL: one line */
    const ks_tstr *comma, *colon;
    uint32_t level;
} writer;

static void write_value(writer *w, ks_tv v);

static void write_string(writer *w, const ks_tstr *s)
{
    ks_tsb *b = w->b;
    const char *p = s->p;
    size_t n = s->n;
    char esc[16];
    ks__sb_addc(b, '"');
    for (size_t i = 0, k; i < n; i += k) {
        unsigned char c = (unsigned char)p[i];
        k = 1;
        b->now = ks__from_at(s, i);
        if (c == '"' || c == '\\') {
            ks__sb_addc(b, '\\');
            ks__sb_addc(b, (char)c);
        } else if (c >= 0x20 && c < 0x7f) {
            ks__sb_addc(b, (char)c);
        } else if (c < 0x20 || w->ascii) {
            const char *at = c >= '\b' && c <= '\r' ? strchr("\bb\tt\nn\ff\rr", c) : NULL;
            uint32_t cp = c;
            if (at) {
                (void)snprintf(esc, sizeof esc, "\\%c", at[1]);
            } else {
                k = ks_utf8_decode(p + i, n - i, &cp);
                if (cp < 0x10000)
                    (void)snprintf(esc, sizeof esc, "\\u%04x", cp);
                else
                    (void)snprintf(esc, sizeof esc, "\\u%04x\\u%04x", 0xd800 + ((cp - 0x10000) >> 10),
                                   0xdc00 + (cp & 0x3ff));
            }
            ks__sb_adds(b, esc);
        } else {
            uint32_t cp;
            k = ks_utf8_decode(p + i, n - i, &cp);
            ks__sb_add(b, p + i, k);
        }
    }
    b->now = KS_TFROM_TEMPLATE;
    ks__sb_addc(b, '"');
    ks__tr_burn(b->r, n / 16);
}

static void write_float(writer *w, double f, bool key)
{
    char num[40];
    ks__float_repr(f, num);
    const char *text = isnan(f) ? "NaN" : isinf(f) ? (f < 0 ? "-Infinity" : "Infinity") : num;
    if (key) ks__sb_addc(w->b, '"');
    ks__sb_adds(w->b, text);
    if (key) ks__sb_addc(w->b, '"');
}

static void new_line(writer *w)
{
    if (!w->indent) return;
    ks__sb_addc(w->b, '\n');
    for (uint32_t i = 0; i < w->level; i++) ks__sb_text(w->b, w->indent);
}

static void write_key(writer *w, ks_tv k)
{
    if (k.kind == KS_TV_STR) {
        write_string(w, k.u.s);
    } else if (k.kind == KS_TV_FLOAT) {
        write_float(w, k.u.f, true);
    } else if (k.kind == KS_TV_NONE || k.kind == KS_TV_BOOL || k.kind == KS_TV_INT || k.kind == KS_TV_BIG) {
        ks__sb_addc(w->b, '"');
        write_value(w, k);
        ks__sb_addc(w->b, '"');
    } else {
        ks__tr_fail(w->b->r, "tojson: keys must be strings, numbers, booleans or none, not '%s'", ks__tv_type(k));
    }
}

static void write_dict(writer *w, const ks_tdict *d)
{
    if (!d->n) {
        ks__sb_adds(w->b, "{}");
        return;
    }
    const uint32_t *order = w->sort ? ks__sort_order(w->b->r, d->keys, d->n, false) : NULL;
    ks__sb_addc(w->b, '{');
    w->level++;
    for (uint32_t i = 0; i < d->n; i++) {
        uint32_t e = order ? order[i] : i;
        if (i) ks__sb_text(w->b, w->comma);
        new_line(w);
        write_key(w, d->keys[e]);
        ks__sb_text(w->b, w->colon);
        write_value(w, d->vals[e]);
    }
    w->level--;
    new_line(w);
    ks__sb_addc(w->b, '}');
}

static void write_list(writer *w, const ks_tlist *l)
{
    if (!l->n) {
        ks__sb_adds(w->b, "[]");
        return;
    }
    ks__sb_addc(w->b, '[');
    w->level++;
    for (uint32_t i = 0; i < l->n; i++) {
        if (i) ks__sb_text(w->b, w->comma);
        new_line(w);
        write_value(w, l->v[i]);
    }
    w->level--;
    new_line(w);
    ks__sb_addc(w->b, ']');
}

static void write_value(writer *w, ks_tv v)
{
    ks_tsb *b = w->b;
    ks__tr_enter(b->r);
    ks__tr_burn(b->r, 1);
    switch (v.kind) {
    case KS_TV_NONE: ks__sb_adds(b, "null"); break;
    case KS_TV_BOOL: ks__sb_adds(b, v.u.b ? "true" : "false"); break;
    case KS_TV_INT:
    case KS_TV_BIG: ks__sb_repr(b, v); break;
    case KS_TV_FLOAT: write_float(w, v.u.f, false); break;
    case KS_TV_STR: write_string(w, v.u.s); break;
    case KS_TV_LIST:
    case KS_TV_TUPLE: write_list(w, v.u.l); break;
    case KS_TV_DICT: write_dict(w, v.u.d); break;
    default: ks__tr_fail(b->r, "tojson: a value of type '%s' has no JSON form", ks__tv_type(v));
    }
    ks__tr_leave(b->r);
}

void ks__sb_json(ks_tsb *b, ks_tv v, const ks_tv *opts)
{
    static const ks_tstr comma_space = { .p = ", ", .n = 2, .n_cp = 2 }, comma = { .p = ",", .n = 1, .n_cp = 1 },
                         colon = { .p = ": ", .n = 2, .n_cp = 2 };
    ks_trun *r = b->r;
    ks_tv ascii = opts[0], indent = opts[1], seps = opts[2], sort = opts[3];
    writer w = { .b = b, .colon = &colon, .comma = &comma_space };
    w.ascii = ascii.kind != KS_TV_MISSING && ks__tv_truth(r, ascii);
    w.sort = sort.kind != KS_TV_MISSING && ks__tv_truth(r, sort);
    if (indent.kind == KS_TV_STR) {
        w.indent = indent.u.s;
    } else if (indent.kind != KS_TV_MISSING && indent.kind != KS_TV_NONE) {
        ks_tsb s;
        ks__sb_init(&s, r);
        s.now = KS_TFROM_TEMPLATE;
        ks__sb_fill(&s, " ", 1, ks__arg_int(r, indent, "indent"));
        w.indent = ks__sb_take(&s, false).u.s;
    }
    if (w.indent) w.comma = &comma;
    if (seps.kind != KS_TV_MISSING && seps.kind != KS_TV_NONE) {
        ks_tv pair = ks__tv_to_list(r, seps);
        if (pair.u.l->n != 2) ks__tr_fail(r, "tojson: separators must be two strings, got %u", pair.u.l->n);
        w.comma = ks__arg_str(r, pair.u.l->v[0], "separators");
        w.colon = ks__arg_str(r, pair.u.l->v[1], "separators");
    }
    b->now = KS_TFROM_TEMPLATE;
    write_value(&w, v);
}
