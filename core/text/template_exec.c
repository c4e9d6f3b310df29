/* Execution of statements: output, branches, loops, assignments, macros. */
#include "text/template_int.h"

#include <string.h>

void ks__scope_push(ks_trun *r, ks_tscope *s, ks_tscope *parent)
{
    *s = (ks_tscope) { .parent = parent };
    r->scope = s;
}

/* A scope that a macro may hold on to lives in the arena. */
static ks_tscope *new_scope(ks_trun *r, ks_tscope *parent)
{
    ks_tscope *s = ks__tr_alloc(r, 1, sizeof *s);
    ks__scope_push(r, s, parent);
    return s;
}

static void put(ks_trun *r, ks_tv v)
{
    if (r->autoescape) v = ks__tv_escape(r, v);
    ks__sb_str(r->out, v);
}

/* Blocks give text or nothing at all. */
static void put_text(ks_trun *r, ks_tv v, const char *tag)
{
    if (v.kind != KS_TV_STR) ks__tr_fail(r, "the '%s' block must give a string, not '%s'", tag, ks__tv_type(v));
    put(r, v);
}

/* ---- assignment */

static void assign(ks_trun *r, const ks_tnode *target, ks_tv v);

static void assign_tuple(ks_trun *r, const ks_tnode *target, ks_tv v)
{
    ks_titer it;
    ks_tv item;
    ks_tnode const *k = target->kids;
    uint32_t n = 0;
    ks__iter_need(r, v, &it);
    ks_tv items = ks__tv_list(r, target->n);
    while (ks__iter_next(r, &it, &item)) {
        if (++n > target->n) ks__tr_fail(r, "too many values to unpack: %u are expected", target->n);
        ks__list_push(r, items.u.l, item);
    }
    if (n < target->n) ks__tr_fail(r, "not enough values to unpack: %u are expected, got %u", target->n, n);
    for (uint32_t i = 0; i < n; i++, k = k->next) assign(r, k, items.u.l->v[i]);
}

static void assign(ks_trun *r, const ks_tnode *target, ks_tv v)
{
    if (target->op == KS_TN_NAME) {
        ks__tr_set(r, target->sym, v);
    } else if (target->op == KS_TN_NSREF) {
        ks_tv ns = ks__tr_lookup(r, target->sym);
        if (ns.kind != KS_TV_NS)
            ks__tr_fail(r, "only attributes of a namespace can be assigned, not those of '%s'", ks__tv_type(ns));
        ks__dict_set(r, &ns.u.ns->d, (ks_tv) { .kind = KS_TV_STR, .u.s = target->name }, v);
    } else {
        assign_tuple(r, target, v);
    }
}

/* The text that `body` writes, in a scope of its own. */
static ks_tv capture(ks_trun *r, const ks_tnode *body, ks_tscope *parent)
{
    ks_tsb b, *out = r->out;
    ks_tscope *scope = r->scope;
    ks__sb_init(&b, r);
    r->out = &b;
    new_scope(r, parent);
    (void)ks__tr_exec(r, body); /* the parser lets no break or continue leave it */
    r->scope = scope;
    r->out = out;
    return ks__sb_take(&b, r->autoescape);
}

/* A chain of filters whose innermost operand is missing in the tree: it gets `v`. */
static ks_tv apply_filters(ks_trun *r, const ks_tnode *f, ks_tv v)
{
    if (!f) return v;
    ks__tr_enter(r);
    v = apply_filters(r, f->a, v);
    ks__tr_leave(r);
    r->at = f;
    return ks__tr_filter(r, f, v);
}

/* ---- loops */

/* What a loop's target holds after assignment: a tuple for several names. */
static ks_tv target_value(ks_trun *r, const ks_tnode *target)
{
    if (target->op == KS_TN_NAME) return ks__tr_lookup(r, target->sym);
    ks_tv v = ks__tv_list(r, target->n);
    v.kind = KS_TV_TUPLE;
    for (const ks_tnode *k = target->kids; k; k = k->next) ks__list_push(r, v.u.l, target_value(r, k));
    return v;
}

/* The next item that the loop's condition takes. The condition sees the target, but not the loop's own scope. */
static bool next_item(ks_trun *r, ks_tloop *l, ks_tv *ret)
{
    ks_tv v;
    while (ks__iter_next(r, &l->it, &v)) {
        if (l->filtered) {
            ks_tscope *scope = r->scope;
            new_scope(r, l->outer);
            assign(r, l->node->a, v);
            bool take = ks__tv_truth(r, ks__tr_eval(r, l->node->c));
            if (take && l->node->a->op == KS_TN_TUPLE) v = target_value(r, l->node->a); /* as loop.previtem shows it */
            r->scope = scope;
            if (!take) continue;
        }
        *ret = v;
        return true;
    }
    return false;
}

static ks_tv peek(ks_trun *r, ks_tloop *l)
{
    if (l->after.kind == KS_TV_MISSING) {
        ks_tv v;
        if (next_item(r, l, &v)) l->after = v;
    }
    return l->after;
}

static int64_t loop_length(ks_trun *r, ks_tloop *l)
{
    if (l->length >= 0) return l->length;
    int64_t n = l->filtered ? -1 : ks__tv_len(r, l->iterable);
    if (n < 0) { /* walk to the end and go on over what was found */
        ks_tv rest = ks__tv_list(r, 0), v;
        while (next_item(r, l, &v)) ks__list_push(r, rest.u.l, v);
        n = (int64_t)rest.u.l->n + l->index0 + 1 + (l->after.kind != KS_TV_MISSING);
        ks__iter_need(r, rest, &l->it);
        l->filtered = false;
    }
    l->length = n;
    return n;
}

static ks_tv loop_cycle(ks_trun *r, const ks_tv *a, const ks_tcall *c, const ks_tbuiltin *fn)
{
    (void)fn;
    if (c->n_pos < 2) ks__tr_fail(r, "'loop.cycle' needs at least one value");
    return c->pos[1 + a[0].u.loop->index0 % (c->n_pos - 1)];
}

static ks_tv loop_changed(ks_trun *r, const ks_tv *a, const ks_tcall *c, const ks_tbuiltin *fn)
{
    (void)fn;
    ks_tloop *l = a[0].u.loop;
    ks_tv now = ks__tv_list(r, c->n_pos);
    for (uint32_t i = 1; i < c->n_pos; i++) ks__list_push(r, now.u.l, c->pos[i]);
    bool same = l->changed.kind == KS_TV_LIST && ks__tv_equal(r, l->changed, now);
    l->changed = now;
    return ks__tv_bool(!same);
}

ks_tv ks__loop_attr(ks_trun *r, ks_tloop *l, const ks_tstr *name)
{
    static const ks_tbuiltin methods[] = { { "cycle", loop_cycle, "/self*", 0 },
                                           { "changed", loop_changed, "/self*", 0 } };
    static const char *const names[] = { "index",  "index0", "revindex", "revindex0", "first",   "last",
                                         "length", "depth",  "depth0",   "previtem",  "nextitem" };
    size_t i = 0;
    while (i < KS_COUNT(names) && !ks__str_is(name, names[i])) i++;
    switch (i) {
    case 0: return ks__tv_int(l->index0 + 1);
    case 1: return ks__tv_int(l->index0);
    case 2: return ks__tv_int(loop_length(r, l) - l->index0);
    case 3: return ks__tv_int(loop_length(r, l) - l->index0 - 1);
    case 4: return ks__tv_bool(l->index0 == 0);
    case 5: return ks__tv_bool(peek(r, l).kind == KS_TV_MISSING);
    case 6: return ks__tv_int(loop_length(r, l));
    case 7: return ks__tv_int((int64_t)l->depth0 + 1);
    case 8: return ks__tv_int(l->depth0);
    case 9:
        if (l->index0 == 0) return ks__tv_undef(r, "there is no previous item");
        return l->before;
    case 10: {
        ks_tv v = peek(r, l);
        return v.kind == KS_TV_MISSING ? ks__tv_undef(r, "there is no next item") : v;
    }
    default: break;
    }
    const ks_tbuiltin *fn = ks__table_find(methods, KS_COUNT(methods), name->p, name->n);
    if (!fn) return (ks_tv) { .kind = KS_TV_MISSING };
    ks_tmethod *m = ks__tr_alloc(r, 1, sizeof *m);
    *m = (ks_tmethod) { .self = { .kind = KS_TV_LOOP, .u.loop = l }, .fn = fn };
    return (ks_tv) { .kind = KS_TV_METHOD, .u.method = m };
}

static ks_tflow run_loop(ks_trun *r, const ks_tnode *n, ks_tv iterable, ks_tscope *outer, uint32_t depth0)
{
    ks_tscope *saved = r->scope;
    ks_tloop *l = ks__tr_alloc(r, 1, sizeof *l);
    ks_tv none = { .kind = KS_TV_MISSING }, v;
    *l = (ks_tloop) { .node = n,
                      .outer = outer,
                      .iterable = iterable,
                      .before = none,
                      .current = none,
                      .after = none,
                      .changed = none,
                      .index0 = -1,
                      .length = -1,
                      .depth0 = depth0,
                      .recursive = n->sub,
                      .filtered = n->c != NULL };
    ks__iter_need(r, iterable, &l->it);
    ks_tscope *scope = NULL;
    bool whole = false;
    for (;;) {
        v = l->after;
        l->after = none;
        if (v.kind == KS_TV_MISSING && !next_item(r, l, &v)) break;
        l->index0++;
        l->before = l->current;
        l->current = v;
        /* Each round begins with an empty scope; the memory is used again unless a macro keeps it. */
        if (!scope || scope->captured)
            scope = new_scope(r, outer);
        else
            scope->n = 0;
        r->scope = scope;
        ks__tr_set(r, KS_TSYM_LOOP, (ks_tv) { .kind = KS_TV_LOOP, .u.loop = l });
        assign(r, n->a, v);
        ks_tflow end = ks__tr_exec(r, n->body);
        if (end == KS_TFLOW_BREAK) break;
        whole |= end == KS_TFLOW_NEXT;
    }
    ks_tflow flow = KS_TFLOW_NEXT;
    if (!whole && n->other) { /* as the definition has it: unless a round came to its end */
        new_scope(r, outer);
        flow = ks__tr_exec(r, n->other); /* a break there belongs to the loop around */
    }
    r->scope = saved;
    return flow;
}

ks_tv ks__loop_recurse(ks_trun *r, ks_tloop *l, ks_tv iterable)
{
    if (!l->recursive) ks__tr_fail(r, "a loop must be marked 'recursive' to be called");
    ks_tsb b, *out = r->out;
    ks__sb_init(&b, r);
    r->out = &b;
    ks__tr_enter(r);
    (void)run_loop(r, l->node, iterable, l->outer, l->depth0 + 1); /* as the definition has it, a break ends here */
    ks__tr_leave(r);
    r->out = out;
    return ks__sb_take(&b, r->autoescape);
}

/* ---- macros */

static void hold_scopes(ks_tscope *s)
{
    for (; s && !s->captured; s = s->parent) s->captured = true;
}

static ks_tv make_macro(ks_trun *r, const ks_tnode *n)
{
    ks_tmacro *m = ks__tr_alloc(r, 1, sizeof *m);
    *m = (ks_tmacro) { .node = n, .scope = r->scope };
    hold_scopes(r->scope);
    return (ks_tv) { .kind = KS_TV_MACRO, .u.macro = m };
}

typedef struct macro_args {
    ks_tv *vals; /* one per parameter; MISSING: its default */
    ks_tv rest, kw, caller;
} macro_args;

static macro_args bind_macro(ks_trun *r, const ks_tmacro *m, const ks_tcall *c)
{
    const ks_tparams *p = m->node->params;
    macro_args a = { .vals = ks__tr_alloc(r, (size_t)p->n + 1, sizeof *a.vals) };
    int name_n = (int)KS_MIN(m->node->name->n, (size_t)60);
    const char *name = m->node->name->p;
    for (uint32_t i = 0; i < p->n; i++) a.vals[i] = i < c->n_pos ? c->pos[i] : (ks_tv) { .kind = KS_TV_MISSING };
    if (c->n_pos > p->n && !p->uses_varargs)
        ks__tr_fail(r, "macro '%.*s' takes at most %u arguments, got %u", name_n, name, p->n, c->n_pos);
    a.rest = ks__tv_list(r, 0);
    a.rest.kind = KS_TV_TUPLE;
    for (uint32_t i = p->n; i < c->n_pos; i++) ks__list_push(r, a.rest.u.l, c->pos[i]);
    a.kw = ks__tv_dict(r);
    a.caller = ks__tv_undef(r, "no caller: this macro was not invoked by a 'call' block");
    for (uint32_t k = 0; k < c->n_kw; k++) {
        const ks_tstr *kw = c->kw_names[k];
        uint32_t i = 0;
        while (i < p->n && !(p->names[i]->n == kw->n && memcmp(p->names[i]->p, kw->p, kw->n) == 0)) i++;
        bool is_caller = ks__str_is(kw, "caller");
        if (i < p->n && i >= c->n_pos) {
            a.vals[i] = c->kw[k];
        } else if (is_caller && p->uses_caller && !p->names_caller) {
            a.caller = c->kw[k];
        } else if (p->uses_kwargs) {
            ks__dict_set(r, a.kw.u.d, (ks_tv) { .kind = KS_TV_STR, .u.s = kw }, c->kw[k]);
        } else {
            ks__tr_fail(r, "macro '%.*s' takes no keyword argument '%.*s'%s", name_n, name,
                        (int)KS_MIN(kw->n, (size_t)60), kw->p, i < p->n ? " beside the positional one" : "");
        }
    }
    return a;
}

ks_tv ks__macro_call(ks_trun *r, const ks_tmacro *m, const ks_tcall *c)
{
    const ks_tparams *p = m->node->params;
    macro_args a = bind_macro(r, m, c);
    ks_tscope *saved = r->scope;
    ks_tsb b, *out = r->out;
    ks__tr_enter(r);
    new_scope(r, m->scope);
    for (uint32_t i = 0; i < p->n; i++) {
        ks_tv v = a.vals[i];
        if (v.kind == KS_TV_MISSING && p->defaults[i]) v = ks__tr_eval(r, p->defaults[i]); /* sees earlier ones */
        if (v.kind == KS_TV_MISSING) {
            ks_tundef *u = ks__tr_alloc(r, 1, sizeof *u);
            ks_tsb hint;
            ks__sb_init(&hint, r);
            ks__sb_adds(&hint, "parameter '");
            ks__sb_add(&hint, p->names[i]->p, KS_MIN(p->names[i]->n, (size_t)60));
            ks__sb_adds(&hint, "' was not provided");
            ks__sb_addc(&hint, 0);
            u->hint = hint.p;
            v = (ks_tv) { .kind = KS_TV_UNDEF, .u.undef = u };
        }
        ks__tr_set(r, p->syms[i], v);
    }
    if (p->uses_varargs) ks__tr_set(r, KS_TSYM_VARARGS, a.rest);
    if (p->uses_kwargs) ks__tr_set(r, KS_TSYM_KWARGS, a.kw);
    if (p->uses_caller && !p->names_caller) ks__tr_set(r, KS_TSYM_CALLER, a.caller);
    ks__sb_init(&b, r);
    r->out = &b;
    (void)ks__tr_exec(r, m->node->body); /* the parser lets no break or continue leave it */
    r->out = out;
    r->scope = saved;
    ks__tr_leave(r);
    return ks__sb_take(&b, r->autoescape);
}

/* {% call(args) f(x) %}body{% endcall %}: f(x, caller=<the body as a macro>) */
static void exec_call_block(ks_trun *r, const ks_tnode *n)
{
    ks_tnode *call = ks__tr_alloc(r, 1, sizeof *call), *kw = ks__tr_alloc(r, 1, sizeof *kw);
    ks_targs *args = ks__tr_alloc(r, 1, sizeof *args);
    const ks_targs *old = n->a->args;
    *call = *n->a;
    *args = *old;
    args->kw_names = ks__tr_alloc(r, (size_t)old->n_kw + 1, sizeof *args->kw_names);
    if (old->n_kw) memcpy(args->kw_names, old->kw_names, old->n_kw * sizeof *args->kw_names);
    args->kw_names[args->n_kw++] = n->name;
    /* the argument list is copied, too: the tree is shared and must not change */
    ks_tnode *first = NULL, **tail = &first;
    for (const ks_tnode *k = old->first; k; k = k->next) {
        *tail = ks__tr_alloc(r, 1, sizeof **tail);
        **tail = *k;
        tail = &(*tail)->next;
    }
    *kw = (ks_tnode) { .op = KS_TN_CONST, .pos = n->pos, .val = make_macro(r, n) };
    *tail = kw;
    args->first = first;
    call->args = args;
    put_text(r, ks__tr_eval(r, call), "call");
}

/* ---- statements */

static ks_tflow exec_if(ks_trun *r, const ks_tnode *n)
{
    for (const ks_tnode *arm = n->kids; arm; arm = arm->next)
        if (!arm->a || ks__tv_truth(r, ks__tr_eval(r, arm->a))) return ks__tr_exec(r, arm->body);
    return KS_TFLOW_NEXT;
}

static ks_tflow exec_with(ks_trun *r, const ks_tnode *n)
{
    ks_tscope *saved = r->scope;
    ks_tv vals = ks__tv_list(r, n->n);
    uint32_t i = 0;
    for (const ks_tnode *k = n->kids; k; k = k->next) ks__list_push(r, vals.u.l, ks__tr_eval(r, k->b));
    new_scope(r, saved);
    for (const ks_tnode *k = n->kids; k; k = k->next) assign(r, k->a, vals.u.l->v[i++]);
    ks_tflow flow = ks__tr_exec(r, n->body);
    r->scope = saved;
    return flow;
}

static ks_tflow exec_scope(ks_trun *r, const ks_tnode *n)
{
    ks_tscope *saved = r->scope;
    new_scope(r, n->sub ? saved : NULL); /* a plain block sees the root's variables only */
    ks_tflow flow = ks__tr_exec(r, n->body);
    r->scope = saved;
    return flow;
}

static ks_tflow exec_autoescape(ks_trun *r, const ks_tnode *n)
{
    bool old = r->autoescape;
    ks_tscope *saved = r->scope;
    r->autoescape = ks__tv_truth(r, ks__tr_eval(r, n->a));
    new_scope(r, saved);
    ks_tflow flow = ks__tr_exec(r, n->body);
    r->scope = saved;
    r->autoescape = old;
    return flow;
}

static ks_tflow exec_node(ks_trun *r, const ks_tnode *n)
{
    switch (n->op) {
    case KS_TN_DATA: ks__sb_text(r->out, n->val.u.s); break;
    case KS_TN_PRINT: put(r, ks__tr_eval(r, n->a)); break;
    case KS_TN_IF: return exec_if(r, n);
    case KS_TN_FOR: return run_loop(r, n, ks__tr_eval(r, n->b), r->scope, 0);
    case KS_TN_SET: assign(r, n->a, ks__tr_eval(r, n->b)); break;
    case KS_TN_SETBLOCK: assign(r, n->a, apply_filters(r, n->b, capture(r, n->body, r->scope))); break;
    case KS_TN_MACRO: ks__tr_set(r, n->sym, make_macro(r, n)); break;
    case KS_TN_CALLBLOCK: exec_call_block(r, n); break;
    case KS_TN_FILTERBLOCK: put_text(r, apply_filters(r, n->a, capture(r, n->body, r->scope)), "filter"); break;
    case KS_TN_WITH: return exec_with(r, n);
    case KS_TN_BLOCK: return exec_scope(r, n);
    case KS_TN_AUTOESCAPE: return exec_autoescape(r, n);
    case KS_TN_BREAK: return KS_TFLOW_BREAK;
    case KS_TN_CONTINUE: return KS_TFLOW_CONTINUE;
    default:
        ks__tr_fail(r, "'%.*s' needs another template, and there is none beside this one", (int)n->name->n, n->name->p);
    }
    return KS_TFLOW_NEXT;
}

ks_tflow ks__tr_exec(ks_trun *r, const ks_tnode *first)
{
    ks_tflow flow = KS_TFLOW_NEXT;
    ks__tr_enter(r);
    for (const ks_tnode *n = first; n && flow == KS_TFLOW_NEXT; n = n->next) {
        r->at = n;
        ks__tr_burn(r, 1);
        flow = exec_node(r, n);
    }
    ks__tr_leave(r);
    return flow;
}
