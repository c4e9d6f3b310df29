/* Evaluation of expressions, and calls: of builtins, whose arguments are bound here, and of macros. */
#include "text/template_int.h"

#include <string.h>

/* ---- variables */

ks_tv ks__tr_lookup(ks_trun *r, uint32_t sym)
{
    for (const ks_tscope *s = r->scope; s; s = s->parent) {
        ks__tr_burn(r, 1);
        for (uint32_t i = s->n; i-- > 0;)
            if (s->vars[i].sym == sym) return s->vars[i].val;
    }
    if (r->root[sym].kind != KS_TV_MISSING) return r->root[sym];
    const ks_tstr *name = r->t->syms[sym];
    const ks_tbuiltin *fn = ks__global_find(name->p, name->n);
    if (fn) return (ks_tv) { .kind = KS_TV_FUNC, .u.fn = fn };
    ks_tundef *u = ks__tr_alloc(r, 1, sizeof *u);
    u->name = name;
    return (ks_tv) { .kind = KS_TV_UNDEF, .u.undef = u };
}

/* In the innermost scope. */
void ks__tr_set(ks_trun *r, uint32_t sym, ks_tv v)
{
    ks_tscope *s = r->scope;
    if (!s) {
        r->root[sym] = v;
        return;
    }
    for (uint32_t i = 0; i < s->n; i++)
        if (s->vars[i].sym == sym) {
            s->vars[i].val = v;
            return;
        }
    if (s->n == s->cap) {
        uint32_t cap = s->cap ? s->cap * 2 : 8;
        ks_tvar *vars = ks__tr_alloc(r, cap, sizeof *vars);
        if (s->n) memcpy(vars, s->vars, s->n * sizeof *vars);
        s->vars = vars;
        s->cap = cap;
    }
    s->vars[s->n++] = (ks_tvar) { .sym = sym, .val = v };
}

/* ---- calls */

#define BIND_MAX 8u

/* The next parameter's name in a row's list; its length, 0 at the end. */
static size_t next_param(const char **inout_at, const char **ret_name, bool *ret_optional)
{
    const char *p = *inout_at;
    if (*p == '/' || *p == ',') p++;
    const char *name = p;
    while (*p && *p != ',' && *p != '=' && *p != '*') p++;
    size_t n = (size_t)(p - name);
    *ret_name = name;
    *ret_optional = *p == '=';
    if (*p == '=') p++;
    *inout_at = p;
    return n;
}

static int64_t find_kw(const ks_tcall *c, const char *name, size_t n)
{
    for (uint32_t i = 0; i < c->n_kw; i++)
        if (c->kw_names[i]->n == n && memcmp(c->kw_names[i]->p, name, n) == 0) return i;
    return -1;
}

ks_tv ks__tr_call_builtin(ks_trun *r, const ks_tbuiltin *fn, const ks_tcall *c, const char *what)
{
    ks_tv a[BIND_MAX];
    const char *at = fn->params, *name;
    bool by_name = at[0] != '/', optional;
    uint32_t used_kw = 0, n = 0;
    size_t len;
    for (uint32_t i = 0; i < BIND_MAX; i++) a[i] = (ks_tv) { .kind = KS_TV_MISSING };
    while ((len = next_param(&at, &name, &optional)) > 0) {
        int64_t kw = by_name ? find_kw(c, name, len) : -1;
        KS_ASSERT(n < BIND_MAX);
        if (kw >= 0 && n < c->n_pos) ks__tr_fail(r, "%s '%s' got '%.*s' twice", what, fn->name, (int)len, name);
        if (n < c->n_pos) {
            a[n] = c->pos[n];
        } else if (kw >= 0) {
            a[n] = c->kw[kw];
            used_kw++;
        } else if (!optional) {
            ks__tr_fail(r, "%s '%s' needs the argument '%.*s'", what, fn->name, (int)len, name);
        }
        n++;
    }
    if (*at != '*') {
        if (c->n_pos > n) ks__tr_fail(r, "%s '%s' takes at most %u arguments, got %u", what, fn->name, n, c->n_pos);
        if (used_kw < c->n_kw) {
            uint32_t i = 0;
            for (const char *p = fn->params; by_name && i < c->n_kw; i++, p = fn->params) {
                bool known = false;
                while ((len = next_param(&p, &name, &optional)) > 0)
                    known |= c->kw_names[i]->n == len && memcmp(c->kw_names[i]->p, name, len) == 0;
                if (!known) break;
            }
            ks__tr_fail(r, "%s '%s' takes no keyword argument '%.*s'", what, fn->name,
                        (int)KS_MIN(c->kw_names[i]->n, (size_t)60), c->kw_names[i]->p);
        }
    }
    return fn->fn(r, a, c, fn);
}

ks_tv ks__tr_call(ks_trun *r, ks_tv f, const ks_tcall *c)
{
    switch (f.kind) {
    case KS_TV_UNDEF: ks__undef_fail(r, f);
    case KS_TV_FUNC: return ks__tr_call_builtin(r, f.u.fn, c, "function");
    case KS_TV_MACRO: return ks__macro_call(r, f.u.macro, c);
    case KS_TV_METHOD: {
        ks_tv *pos = ks__tr_alloc(r, (size_t)c->n_pos + 1, sizeof *pos);
        pos[0] = f.u.method->self;
        if (c->n_pos) memcpy(pos + 1, c->pos, c->n_pos * sizeof *pos);
        ks_tcall with_self = *c;
        with_self.pos = pos;
        with_self.n_pos++;
        return ks__tr_call_builtin(r, f.u.method->fn, &with_self, "method");
    }
    case KS_TV_LOOP:
        if (c->n_pos != 1 || c->n_kw) ks__tr_fail(r, "'loop' is called with one argument: what to loop over");
        return ks__loop_recurse(r, f.u.loop, c->pos[0]);
    case KS_TV_JOINER: {
        bool first = !f.u.cycler->used;
        f.u.cycler->used = true;
        return first ? ks__tv_strz(r, "") : f.u.cycler->sep;
    }
    default: ks__tr_fail(r, "a value of type '%s' cannot be called", ks__tv_type(f));
    }
}

/* Evaluates the arguments; `self` (if not MISSING) goes first. */
static ks_tcall eval_args(ks_trun *r, const ks_targs *args, ks_tv self)
{
    static const ks_targs none = { .n_pos = 0 };
    ks_tcall c = { .n_pos = 0 };
    bool has_self = self.kind != KS_TV_MISSING;
    if (!args) args = &none;
    ks_tv pos_list = ks__tv_list(r, args->n_pos + has_self), kw_list = ks__tv_list(r, args->n_kw);
    const ks_tstr **names = ks__tr_alloc(r, (size_t)args->n_kw + 1, sizeof *names);
    if (has_self) ks__list_push(r, pos_list.u.l, self);
    uint32_t i = 0;
    for (const ks_tnode *n = args->first; n; n = n->next, i++)
        ks__list_push(r, i < args->n_pos ? pos_list.u.l : kw_list.u.l, ks__tr_eval(r, n));
    if (args->n_kw) memcpy(names, args->kw_names, args->n_kw * sizeof *names);
    c.n_kw = args->n_kw;
    if (args->star) {
        ks_titer it;
        ks_tv v;
        ks__iter_need(r, ks__tr_eval(r, args->star), &it);
        while (ks__iter_next(r, &it, &v)) ks__list_push(r, pos_list.u.l, v);
    }
    if (args->star2) {
        ks_tv d = ks__tr_eval(r, args->star2);
        if (d.kind != KS_TV_DICT) ks__tr_fail(r, "'**' needs a mapping, not '%s'", ks__tv_type(d));
        const ks_tstr **more = ks__tr_alloc(r, (size_t)args->n_kw + d.u.d->n + 1, sizeof *more);
        memcpy(more, names, args->n_kw * sizeof *more);
        names = more;
        for (uint32_t k = 0; k < d.u.d->n; k++) {
            const ks_tstr *name = ks__arg_str(r, d.u.d->keys[k], "keyword");
            if (find_kw(&(ks_tcall) { .kw_names = names, .n_kw = c.n_kw }, name->p, name->n) >= 0)
                ks__tr_fail(r, "keyword argument '%.*s' is given twice", (int)KS_MIN(name->n, (size_t)60), name->p);
            names[c.n_kw++] = name;
            ks__list_push(r, kw_list.u.l, d.u.d->vals[k]);
        }
    }
    c.pos = pos_list.u.l->v;
    c.n_pos = pos_list.u.l->n;
    c.kw = kw_list.u.l->v;
    c.kw_names = names;
    return c;
}

ks_tv ks__tr_filter(ks_trun *r, const ks_tnode *n, ks_tv self)
{
    if (!n->fn) ks__tr_fail(r, "there is no filter '%.*s'", (int)KS_MIN(n->name->n, (size_t)60), n->name->p);
    ks_tcall c = eval_args(r, n->args, self);
    return ks__tr_call_builtin(r, n->fn, &c, "filter");
}

/* ---- operators */

static bool compare(ks_trun *r, int cmp, ks_tv a, ks_tv b)
{
    static const char *const ops[] = {
        [KS_TCMP_LT] = "<", [KS_TCMP_LE] = "<=", [KS_TCMP_GT] = ">", [KS_TCMP_GE] = ">="
    };
    switch (cmp) {
    case KS_TCMP_EQ: return ks__tv_equal(r, a, b);
    case KS_TCMP_NE: return !ks__tv_equal(r, a, b);
    case KS_TCMP_IN: return ks__tv_contains(r, a, b);
    case KS_TCMP_NOTIN: return !ks__tv_contains(r, a, b);
    default: break;
    }
    int o = ks__tv_order(r, a, b, ops[cmp]);
    if (o == 2) return false; /* not a number: no order at all */
    return cmp == KS_TCMP_LT ? o < 0 : cmp == KS_TCMP_LE ? o <= 0 : cmp == KS_TCMP_GT ? o > 0 : o >= 0;
}

/* a < b < c: each operand once, up to the first that does not hold. */
static ks_tv eval_compare(ks_trun *r, const ks_tnode *n)
{
    ks_tv left = ks__tr_eval(r, n->a);
    for (const ks_tnode *c = n->kids; c; c = c->next) {
        ks_tv right = ks__tr_eval(r, c->a);
        if (!compare(r, c->sub, left, right)) return ks__tv_bool(false);
        left = right;
    }
    return ks__tv_bool(true);
}

static ks_tv eval_logic(ks_trun *r, const ks_tnode *n)
{
    ks_tv v = ks__tv_none();
    for (const ks_tnode *k = n->kids; k; k = k->next) {
        v = ks__tr_eval(r, k);
        if (k->next && ks__tv_truth(r, v) == (n->op == KS_TN_OR)) break;
    }
    return v;
}

static bool is_binop(const ks_tnode *n)
{
    return n->op >= KS_TN_ADD && n->op <= KS_TN_POW;
}

/* A chain of operators leans to the left, as long as the source likes: it is walked, not descended into. */
static ks_tv eval_binop(ks_trun *r, const ks_tnode *n)
{
    size_t depth = 0;
    const ks_tnode *at = n;
    for (; is_binop(at); at = at->a) depth++;
    const ks_tnode **chain = ks__tr_alloc(r, depth, sizeof *chain);
    at = n;
    for (size_t i = depth; i-- > 0; at = at->a) chain[i] = at;
    ks_tv v = ks__tr_eval(r, at);
    for (size_t i = 0; i < depth; i++) {
        ks_tv right = ks__tr_eval(r, chain[i]->b);
        r->at = chain[i];
        v = ks__tv_binop(r, (ks_top)chain[i]->op, v, right);
    }
    return v;
}

static ks_tv eval_concat(ks_trun *r, const ks_tnode *n)
{
    ks_tsb b;
    ks__sb_init(&b, r);
    bool markup = false;
    for (const ks_tnode *k = n->kids; k; k = k->next) {
        ks_tv v = ks__tr_eval(r, k);
        if (r->autoescape) {
            v = ks__tv_escape(r, v);
            markup = true;
        }
        ks__sb_str(&b, v);
    }
    return ks__sb_take(&b, markup);
}

static ks_tv eval_list(ks_trun *r, const ks_tnode *n)
{
    ks_tv list = ks__tv_list(r, n->n);
    if (n->op == KS_TN_TUPLE) list.kind = KS_TV_TUPLE;
    for (const ks_tnode *k = n->kids; k; k = k->next) ks__list_push(r, list.u.l, ks__tr_eval(r, k));
    return list;
}

static ks_tv eval_dict(ks_trun *r, const ks_tnode *n)
{
    ks_tv d = ks__tv_dict(r);
    for (const ks_tnode *k = n->kids; k; k = k->next->next) {
        ks_tv key = ks__tr_eval(r, k);
        ks__dict_set(r, d.u.d, key, ks__tr_eval(r, k->next));
    }
    return d;
}

static ks_tv eval_optional(ks_trun *r, const ks_tnode *n)
{
    return n ? ks__tr_eval(r, n) : (ks_tv) { .kind = KS_TV_MISSING };
}

static ks_tv eval_slice(ks_trun *r, const ks_tnode *n)
{
    ks_tv obj = ks__tr_eval(r, n->a), a = eval_optional(r, n->b), b = eval_optional(r, n->c);
    return ks__tv_slice(r, obj, a, b, eval_optional(r, n->d));
}

static ks_tv eval_test(ks_trun *r, const ks_tnode *n)
{
    ks_tv self = ks__tr_eval(r, n->a);
    if (!n->fn) ks__tr_fail(r, "there is no test '%.*s'", (int)KS_MIN(n->name->n, (size_t)60), n->name->p);
    ks_tcall c = eval_args(r, n->args, self);
    return ks__tr_call_builtin(r, n->fn, &c, "test");
}

static ks_tv eval_call(ks_trun *r, const ks_tnode *n)
{
    ks_tv f = ks__tr_eval(r, n->a);
    ks_tcall c = eval_args(r, n->args, (ks_tv) { .kind = KS_TV_MISSING });
    return ks__tr_call(r, f, &c);
}

static ks_tv eval_cond(ks_trun *r, const ks_tnode *n)
{
    if (ks__tv_truth(r, ks__tr_eval(r, n->a))) return ks__tr_eval(r, n->b);
    if (n->c) return ks__tr_eval(r, n->c);
    return ks__tv_undef(r, "an 'if' expression without 'else' was false, and its value is used");
}

static ks_tv eval_node(ks_trun *r, const ks_tnode *n)
{
    switch (n->op) {
    case KS_TN_CONST: return n->val;
    case KS_TN_NAME: return ks__tr_lookup(r, n->sym);
    case KS_TN_LIST:
    case KS_TN_TUPLE: return eval_list(r, n);
    case KS_TN_DICT: return eval_dict(r, n);
    case KS_TN_ATTR: return ks__tv_attr(r, ks__tr_eval(r, n->a), n->name);
    case KS_TN_ITEM: {
        ks_tv obj = ks__tr_eval(r, n->a);
        return ks__tv_item(r, obj, ks__tr_eval(r, n->b));
    }
    case KS_TN_SLICE: return eval_slice(r, n);
    case KS_TN_CALL: return eval_call(r, n);
    case KS_TN_FILTER: return ks__tr_filter(r, n, ks__tr_eval(r, n->a));
    case KS_TN_TEST: return eval_test(r, n);
    case KS_TN_NOT: return ks__tv_bool(!ks__tv_truth(r, ks__tr_eval(r, n->a)));
    case KS_TN_NEG:
    case KS_TN_POS: return ks__tv_unop(r, (ks_top)n->op, ks__tr_eval(r, n->a));
    case KS_TN_AND:
    case KS_TN_OR: return eval_logic(r, n);
    case KS_TN_CONCAT: return eval_concat(r, n);
    case KS_TN_COMPARE: return eval_compare(r, n);
    case KS_TN_COND: return eval_cond(r, n);
    default: return eval_binop(r, n); /* what is left are those */
    }
}

ks_tv ks__tr_eval(ks_trun *r, const ks_tnode *n)
{
    const ks_tnode *outer = r->at;
    r->at = n;
    ks__tr_burn(r, 1);
    ks__tr_enter(r);
    ks_tv v = eval_node(r, n);
    ks__tr_leave(r);
    r->at = outer;
    return v;
}
