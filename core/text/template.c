/* Templates from outside: compile, render, limits, and the one place where errors land. */
#include "text/template_int.h"

#include "base/hash.h"
#include <krasis/json.h>
#include <string.h>

/* ---- messages */

void ks__template_place(const ks_template *t, uint32_t pos, ks_err *err, int code, const char *text)
{
    uint32_t line = 1, column = 1;
    size_t begin = 0, end, at = KS_MIN(pos, t->n);
    for (size_t i = 0; i < at; i++) {
        if (t->source[i] == '\n') {
            line++;
            column = 1;
            begin = i + 1;
        } else {
            column += ((unsigned char)t->source[i] & 0xc0) != 0x80;
        }
    }
    /* an excerpt of the line: from a little before the place, cut between characters */
    if (at - begin > 24) begin = at - 24;
    while (begin < at && ((unsigned char)t->source[begin] & 0xc0) == 0x80) begin++;
    while (begin < at && t->source[begin] == ' ') begin++;
    for (end = at; end < t->n && t->source[end] != '\n' && end - begin < 60;) end++;
    while (end < t->n && end > begin && ((unsigned char)t->source[end] & 0xc0) == 0x80) end--;
    (void)ks_fail(err, code, "%.380s (line %u, column %u, near '%.*s')", text, line, column, (int)(end - begin),
                  t->source + begin);
}

void ks__tp_fail(ks_tparse *p, uint32_t pos, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap); /* cut off is fine: it is for people */
    va_end(ap);
    ks__template_place(p->t, pos, p->err, KS_E_INVAL, text);
    longjmp(p->out, 1);
}

void ks__tr_fail(ks_trun *r, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap); /* cut off is fine: it is for people */
    va_end(ap);
    if (r->at)
        ks__template_place(r->t, r->at->pos, r->err, KS_E_INVAL, text);
    else
        (void)ks_fail(r->err, KS_E_INVAL, "%s", text);
    longjmp(r->fail, 1);
}

/* ---- memory and names of a template */

void *ks__tp_alloc(ks_tparse *p, size_t bytes)
{
    void *m = ks_arena_alloc(&p->t->arena, bytes);
    if (!m) {
        (void)ks_fail(p->err, KS_E_NOMEM, "out of memory for a template of %zu bytes", p->t->n);
        longjmp(p->out, 1);
    }
    return m;
}

const ks_tstr *ks__tp_str(ks_tparse *p, const char *s, size_t n, bool copy)
{
    ks_tstr *t = ks__tp_alloc(p, sizeof *t);
    char *own = copy ? ks__tp_alloc(p, n + 1) : NULL;
    if (copy && n) memcpy(own, s, n);
    *t = (ks_tstr) { .p = copy ? own : s, .n = n, .n_cp = SIZE_MAX };
    (void)ks__str_cps(t); /* counted now: later it is shared by threads */
    return t;
}

ks_tnode *ks__tp_node(ks_tparse *p, ks_top op, uint32_t pos)
{
    ks_tnode *n = ks__tp_alloc(p, sizeof *n);
    n->op = (uint8_t)op;
    n->pos = pos;
    return n;
}

/* Names are numbered, so that variables are found by comparing numbers. */
uint32_t ks__tp_sym(ks_tparse *p, const char *s, size_t n)
{
    ks_template *t = p->t;
    if (t->n_syms * 2 >= t->sym_index_cap) {
        uint32_t cap = t->sym_index_cap ? t->sym_index_cap * 2 : 128;
        uint32_t *index = ks__tp_alloc(p, cap * sizeof *index);
        for (uint32_t i = 0; i < t->n_syms; i++) {
            uint32_t at = (uint32_t)ks_hash64(t->syms[i]->p, t->syms[i]->n, 0) & (cap - 1);
            while (index[at]) at = (at + 1) & (cap - 1);
            index[at] = i + 1;
        }
        t->sym_index = index;
        t->sym_index_cap = cap;
    }
    uint32_t at = (uint32_t)ks_hash64(s, n, 0) & (t->sym_index_cap - 1);
    for (; t->sym_index[at]; at = (at + 1) & (t->sym_index_cap - 1)) {
        const ks_tstr *sym = t->syms[t->sym_index[at] - 1];
        if (sym->n == n && memcmp(sym->p, s, n) == 0) return t->sym_index[at] - 1;
    }
    if (t->n_syms == t->syms_cap) {
        uint32_t cap = t->syms_cap ? t->syms_cap * 2 : 64;
        const ks_tstr **syms = ks__tp_alloc(p, cap * sizeof *syms);
        if (t->n_syms) memcpy(syms, t->syms, t->n_syms * sizeof *syms);
        t->syms = syms;
        t->syms_cap = cap;
    }
    t->syms[t->n_syms] = ks__tp_str(p, s, n, false);
    t->sym_index[at] = ++t->n_syms;
    return t->n_syms - 1;
}

void ks__tp_use(ks_tparse *p, uint32_t sym, bool store)
{
    ks_template *t = p->t;
    if (p->scopes) return;
    if (sym >= t->first_use_cap) {
        uint32_t cap = t->syms_cap;
        uint8_t *use = ks__tp_alloc(p, cap);
        if (t->first_use_cap) memcpy(use, t->first_use, t->first_use_cap);
        t->first_use = use;
        t->first_use_cap = cap;
    }
    if (!t->first_use[sym]) t->first_use[sym] = store && !p->ifs ? 2 : 1;
}

/* ---- compiling */

/* Newlines become \n; one at the end is dropped. */
static void load_source(ks_tparse *p, const char *source, size_t n)
{
    char *dst = ks__tp_alloc(p, n + 1);
    size_t w = 0;
    for (size_t i = 0; i < n; i++) {
        if (source[i] == '\r') {
            dst[w++] = '\n';
            if (i + 1 < n && source[i + 1] == '\n') i++;
        } else {
            dst[w++] = source[i];
        }
    }
    if (w && dst[w - 1] == '\n') w--;
    dst[w] = 0;
    p->t->source = dst;
    p->t->n = w;
}

/* Whatever is wrong jumps to p->out, which the caller has set. */
static void compile(ks_tparse *p, const char *source, size_t n)
{
    static const char *const fixed[] = { "loop", "caller", "varargs", "kwargs" }; /* in the order of KS_TSYM_ */
    load_source(p, source, n);
    for (size_t i = 0; i < KS_COUNT(fixed); i++) (void)ks__tp_sym(p, fixed[i], strlen(fixed[i]));
    ks__tp_lex(p);
    p->t->body = ks__tp_body(p, NULL);
    const ks_tnode *bad = NULL;
    for (const ks_tnode *u = p->unknown; u; u = u->other)
        if (!u->soft) bad = u; /* the first in the source is the last in the list */
    if (bad)
        ks__tp_fail(p, bad->pos, "there is no %s '%.*s'", bad->op == KS_TN_TEST ? "test" : "filter",
                    (int)KS_MIN(bad->name->n, (size_t)60), bad->name->p);
}

int ks_template_new(const char *source, size_t n, ks_template **ret, ks_err *err)
{
    if (n > KS_TMPL_SOURCE_MAX)
        return ks_fail(err, KS_E_LIMIT, "the template has %zu bytes, more than the limit of %zu", n,
                       KS_TMPL_SOURCE_MAX);
    size_t valid = ks_utf8_valid(source, n);
    if (valid < n) return ks_fail(err, KS_E_INVAL, "the template is not valid UTF-8 at byte %zu", valid);
    ks_template *t = ks_calloc(1, sizeof *t);
    ks_err own = { .code = 0 };
    if (!t) return ks_fail(err, KS_E_NOMEM, "out of memory for a template of %zu bytes", n);
    ks_arena_init(&t->arena, 0);
    ks_tparse p = { .t = t, .err = &own };
    if (setjmp(p.out) != 0) {
        ks_template_free(t);
        return ks_fail(err, own.code, "%s", own.msg);
    }
    compile(&p, source, n);
    *ret = t;
    return 0;
}

void ks_template_free(ks_template *t)
{
    if (!t) return;
    ks_arena_fini(&t->arena);
    free(t);
}

/* ---- rendering */

void *ks__tr_alloc(ks_trun *r, size_t n, size_t size)
{
    size_t bytes;
    void *p = ks_mul_size(n, size, &bytes) ? ks_arena_alloc(&r->arena, bytes) : NULL;
    if (!p) ks__tr_fail(r, "the template needs more memory than the limit of %zu bytes", r->arena.limit_bytes);
    ks__tr_burn(r, bytes / 256);
    return p;
}

void ks__tr_burn(ks_trun *r, uint64_t steps)
{
    if (r->fuel < steps) {
        r->fuel = 0;
        ks__tr_fail(r, "the template takes more steps than its limit: it does not end, or its input is too large");
    }
    r->fuel -= steps;
}

void ks__tr_enter(ks_trun *r)
{
    if (++r->depth > r->max_depth) ks__tr_fail(r, "nested deeper than the limit of %u levels", r->max_depth);
}

void ks__tr_leave(ks_trun *r)
{
    r->depth--;
}

static void run(ks_trun *r, ks_tsb *out, const char *context, size_t n)
{
    r->root = ks__tr_alloc(r, (size_t)r->t->n_syms + 1, sizeof *r->root);
    ks__tr_context(r, context, n);
    ks__sb_init(out, r);
    r->out = out;
    (void)ks__tr_exec(r, r->t->body); /* the parser lets no break or continue stand outside of a loop */
}

/* The stretches of a text that are the request's. dst NULL: only their number. */
static size_t list_request(const ks_tsb *b, ks_text_span *dst)
{
    size_t k = 0, end;
    for (size_t at = 0; at < b->n; at = end) {
        uint8_t from = b->froms ? b->froms[at] : b->from;
        const uint8_t *other = b->froms ? memchr(b->froms + at, !from, b->n - at) : NULL;
        end = other ? (size_t)(other - b->froms) : b->n;
        if (from != KS_TFROM_REQUEST) continue;
        if (dst) dst[k] = (ks_text_span) { at, end };
        k++;
    }
    return k;
}

static bool take_result(const ks_tsb *b, ks_rendered *ret)
{
    ks_rendered x = { .n = b->n, .n_request = list_request(b, NULL) };
    x.text = malloc(b->n + 1);
    x.request = malloc((x.n_request + 1) * sizeof *x.request);
    if (!x.text || !x.request) {
        ks_rendered_fini(&x);
        return false;
    }
    if (b->n) memcpy(x.text, b->p, b->n);
    x.text[b->n] = 0;
    (void)list_request(b, x.request);
    *ret = x;
    return true;
}

void ks_rendered_fini(ks_rendered *x)
{
    free(x->text);
    free(x->request);
    *x = (ks_rendered) { .text = NULL };
}

int ks_template_render(const ks_template *t, const char *context, size_t n, int64_t now_unix,
                       const ks_template_limits *limits, char **ret, size_t *ret_n, ks_err *err)
{
    ks_rendered x;
    int rc = ks_template_render_spans(t, context, n, now_unix, limits, &x, err);
    if (rc) return rc;
    free(x.request);
    *ret = x.text;
    *ret_n = x.n;
    return 0;
}

int ks_template_render_spans(const ks_template *t, const char *context, size_t n, int64_t now_unix,
                             const ks_template_limits *limits, ks_rendered *ret, ks_err *err)
{
    static const ks_template_limits none = { .fuel = 0 };
    ks_err own = { .code = 0 };
    ks_trun r = { .t = t, .now_unix = now_unix, .err = &own };
    ks_tsb out;
    if (!limits) limits = &none;
    r.fuel = limits->fuel ? limits->fuel : KS_TMPL_FUEL;
    r.output_max = limits->output_bytes ? limits->output_bytes : KS_TMPL_OUTPUT_BYTES;
    r.max_depth = limits->depth ? KS_MIN(limits->depth, KS_TMPL_DEPTH) : KS_TMPL_DEPTH;
    ks_arena_init(&r.arena, limits->memory_bytes ? limits->memory_bytes : KS_TMPL_MEMORY_BYTES);
    if (setjmp(r.fail) != 0) {
        ks_arena_fini(&r.arena);
        return ks_fail(err, own.code, "%s", own.msg);
    }
    run(&r, &out, context, n);
    bool ok = take_result(&out, ret);
    ks_arena_fini(&r.arena);
    return ok ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for a prompt");
}
