/* Parser of statements: the tags, their bodies and the text between them. */
#include "text/template_int.h"

#include <string.h>

static void append(ks_tnode *parent, ks_tnode ***inout_tail, ks_tnode *kid)
{
    **inout_tail = kid;
    *inout_tail = &kid->next;
    parent->n++;
}

/* Body of a tag that opens a scope of its own, up to one of `ends` (left as the current token). What is under a
 * condition outside is not so inside: the definition checks filters there. */
static ks_tnode *parse_body(ks_tparse *p, bool soft, const char *const *ends)
{
    bool old = p->soft;
    p->soft = soft;
    p->scopes += !soft;
    (void)ks__tp_skip_op(p, ':'); /* {% if x: %} is allowed */
    if (ks__tp_cur(p)->type != KS_TT_BLOCK_END) ks__tp_unexpected(p, "'%}'");
    p->at++;
    ks_tnode *n = ks__tp_body(p, ends);
    p->scopes -= !soft;
    p->soft = old;
    return n;
}

/* A body whose only end is `end`, which is consumed. */
static ks_tnode *parse_body_to(ks_tparse *p, bool soft, const char *end)
{
    const char *const ends[] = { end, NULL };
    ks_tnode *n = parse_body(p, soft, ends);
    p->at++;
    return n;
}

static ks_tnode *parse_if(ks_tparse *p, uint32_t pos)
{
    static const char *const ends[] = { "elif", "else", "endif", NULL }, *const last[] = { "endif", NULL };
    ks_tnode *n = ks__tp_node(p, KS_TN_IF, pos), **tail = &n->kids;
    bool old = p->soft;
    p->ifs++;
    for (bool more = true; more;) {
        ks_tnode *arm = ks__tp_node(p, KS_TN_IF, ks__tp_cur(p)->pos);
        p->soft = true;
        arm->a = ks__tp_tuple(p, false, false, false, NULL);
        arm->body = parse_body(p, true, ends);
        append(n, &tail, arm);
        more = ks__tp_skip_name(p, "elif");
    }
    if (ks__tp_skip_name(p, "else")) {
        ks_tnode *arm = ks__tp_node(p, KS_TN_IF, ks__tp_cur(p)->pos);
        arm->body = parse_body(p, true, last);
        append(n, &tail, arm);
    }
    p->at++; /* endif */
    p->ifs--;
    p->soft = old;
    return n;
}

/* Marks names as assigned; anything else cannot be. */
static void check_target(ks_tparse *p, const ks_tnode *n, bool with_ns)
{
    if (p->fors && n->op == KS_TN_NAME && n->sym == KS_TSYM_LOOP)
        ks__tp_fail(p, n->pos, "'loop' cannot be assigned inside of a loop: it is the loop's own");
    if (n->op == KS_TN_NAME || (with_ns && n->op == KS_TN_NSREF)) return;
    if (n->op != KS_TN_TUPLE) ks__tp_fail(p, n->pos, "this cannot be assigned to: a name is needed");
    for (const ks_tnode *k = n->kids; k; k = k->next) check_target(p, k, with_ns);
}

/* After the whole statement: what it reads comes first. */
static void note_stores(ks_tparse *p, const ks_tnode *n)
{
    if (n->op == KS_TN_NAME) ks__tp_use(p, n->sym, true);
    if (n->op == KS_TN_NSREF) ks__tp_use(p, n->sym, false);
    for (const ks_tnode *k = n->op == KS_TN_TUPLE ? n->kids : NULL; k; k = k->next) note_stores(p, k);
}

static ks_tnode *parse_for(ks_tparse *p, uint32_t pos)
{
    static const char *const ends[] = { "else", "endfor", NULL };
    ks_tnode *n = ks__tp_node(p, KS_TN_FOR, pos);
    p->fors++;
    n->a = ks__tp_tuple(p, true, true, false, "in");
    check_target(p, n->a, false);
    if (!ks__tp_skip_name(p, "in")) ks__tp_unexpected(p, "'in'");
    n->b = ks__tp_tuple(p, false, false, false, "recursive");
    p->scopes++;
    if (ks__tp_skip_name(p, "if")) n->c = ks__tp_expr(p, true);
    p->scopes--;
    n->sub = ks__tp_skip_name(p, "recursive");
    p->loops++;
    n->body = parse_body(p, false, ends);
    p->loops--;
    if (ks__tp_skip_name(p, "else"))
        n->other = parse_body_to(p, false, "endfor");
    else
        p->at++;
    p->fors--;
    return n;
}

static ks_tnode *parse_set(ks_tparse *p, uint32_t pos)
{
    ks_tnode *target = ks__tp_tuple(p, true, true, false, NULL);
    check_target(p, target, true);
    if (ks__tp_skip_op(p, '=')) {
        ks_tnode *n = ks__tp_node(p, KS_TN_SET, pos);
        n->a = target;
        n->b = ks__tp_tuple(p, true, false, false, NULL);
        note_stores(p, target);
        return n;
    }
    ks_tnode *n = ks__tp_node(p, KS_TN_SETBLOCK, pos);
    n->a = target;
    n->b = ks__tp_filters(p, NULL, false);
    note_stores(p, target);
    n->body = parse_body_to(p, false, "endset");
    return n;
}

/* (name, name=default, ...) */
static void parse_signature(ks_tparse *p, ks_tparams *m)
{
    const ks_tnode *defaults[KS_TMPL_ARGS_MAX];
    const ks_tstr *names[KS_TMPL_ARGS_MAX];
    uint32_t syms[KS_TMPL_ARGS_MAX];
    bool optional = false;
    ks__tp_expect_op(p, '(');
    while (!ks__tp_is_op(p, ')')) {
        if (m->n) ks__tp_expect_op(p, ',');
        if (m->n == KS_TMPL_ARGS_MAX) ks__tp_fail(p, ks__tp_cur(p)->pos, "more than %u parameters", KS_TMPL_ARGS_MAX);
        const ks_ttoken *t = ks__tp_expect_name(p);
        syms[m->n] = ks__tp_sym(p, t->p, t->n);
        names[m->n] = p->t->syms[syms[m->n]];
        defaults[m->n] = NULL;
        for (uint32_t i = 0; i < m->n; i++)
            if (syms[i] == syms[m->n])
                ks__tp_fail(p, t->pos, "parameter '%.*s' is named twice", (int)KS_MIN(t->n, 40), t->p);
        if (ks__tp_skip_op(p, '=')) {
            defaults[m->n] = ks__tp_expr(p, true);
            optional = true;
        } else if (optional) {
            ks__tp_fail(p, t->pos, "a parameter without a default follows one with a default");
        }
        m->names_caller |= syms[m->n] == KS_TSYM_CALLER;
        m->n++;
    }
    p->at++;
    m->names = ks__tp_alloc(p, (m->n + 1) * sizeof *m->names);
    m->syms = ks__tp_alloc(p, (m->n + 1) * sizeof *m->syms);
    m->defaults = ks__tp_alloc(p, (m->n + 1) * sizeof *m->defaults);
    for (uint32_t i = 0; i < m->n; i++) {
        m->names[i] = names[i];
        m->syms[i] = syms[i];
        m->defaults[i] = defaults[i];
    }
}

/* Body of a macro or call block; `varargs`, `kwargs`, `caller` in it are noted in its parameters. */
static ks_tnode *parse_macro_body(ks_tparse *p, ks_tparams *m, uint32_t pos, const char *end)
{
    uint32_t loops = p->loops;
    p->loops = 0;
    m->outer = p->macro;
    p->macro = m;
    ks_tnode *body = parse_body_to(p, false, end);
    p->macro = m->outer;
    p->loops = loops;
    for (uint32_t i = 0; i < m->n; i++) { /* a parameter of that name is a plain parameter */
        if (m->syms[i] == KS_TSYM_CALLER && m->uses_caller && !m->defaults[i])
            ks__tp_fail(p, pos, "the parameter 'caller' must be left out or have a default");
        m->uses_varargs &= m->syms[i] != KS_TSYM_VARARGS;
        m->uses_kwargs &= m->syms[i] != KS_TSYM_KWARGS;
        m->uses_caller &= m->syms[i] != KS_TSYM_CALLER;
    }
    return body;
}

static ks_tnode *parse_macro(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_MACRO, pos);
    const ks_ttoken *t = ks__tp_expect_name(p);
    n->sym = ks__tp_sym(p, t->p, t->n);
    n->name = p->t->syms[n->sym];
    ks__tp_use(p, n->sym, true);
    n->params = ks__tp_alloc(p, sizeof *n->params);
    p->scopes++;
    parse_signature(p, n->params);
    p->scopes--;
    n->body = parse_macro_body(p, n->params, pos, "endmacro");
    return n;
}

static ks_tnode *parse_call_block(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_CALLBLOCK, pos);
    n->params = ks__tp_alloc(p, sizeof *n->params);
    n->name = ks__tp_str(p, "caller", 6, false);
    if (ks__tp_is_op(p, '(')) parse_signature(p, n->params);
    n->a = ks__tp_expr(p, true);
    if (n->a->op != KS_TN_CALL) ks__tp_fail(p, n->a->pos, "'call' needs the call of a macro");
    n->body = parse_macro_body(p, n->params, pos, "endcall");
    return n;
}

static ks_tnode *parse_filter_block(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_FILTERBLOCK, pos);
    n->a = ks__tp_filters(p, NULL, true);
    n->body = parse_body_to(p, false, "endfilter");
    return n;
}

static ks_tnode *parse_with(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_WITH, pos), **tail = &n->kids;
    while (ks__tp_cur(p)->type != KS_TT_BLOCK_END && !ks__tp_is_op(p, ':')) {
        if (n->n) ks__tp_expect_op(p, ',');
        ks_tnode *set = ks__tp_node(p, KS_TN_SET, ks__tp_cur(p)->pos);
        set->a = ks__tp_tuple(p, true, true, false, NULL);
        check_target(p, set->a, false);
        ks__tp_expect_op(p, '=');
        set->b = ks__tp_expr(p, true);
        append(n, &tail, set);
    }
    n->body = parse_body_to(p, false, "endwith");
    return n;
}

/* One template is all there is: no parents, so a block stands for itself. */
static ks_tnode *parse_block(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_BLOCK, pos);
    const ks_ttoken *name = ks__tp_expect_name(p);
    n->sub = ks__tp_skip_name(p, "scoped");
    (void)ks__tp_skip_name(p, "required");
    uint32_t loops = p->loops;
    p->loops = 0;
    n->body = parse_body_to(p, false, "endblock");
    p->loops = loops;
    const ks_ttoken *t = ks__tp_cur(p);
    if (t->type == KS_TT_NAME && t->n == name->n && memcmp(t->p, name->p, t->n) == 0) p->at++;
    return n;
}

/* {% generation %} only marks what the assistant said. */
static ks_tnode *parse_generation(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_BLOCK, pos);
    n->sub = 1;
    uint32_t loops = p->loops;
    p->loops = 0;
    n->body = parse_body_to(p, false, "endgeneration");
    p->loops = loops;
    return n;
}

static ks_tnode *parse_autoescape(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_AUTOESCAPE, pos);
    n->a = ks__tp_expr(p, true);
    n->body = parse_body_to(p, false, "endautoescape");
    return n;
}

static ks_tnode *parse_print(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_BLOCK, pos), **tail = &n->body;
    while (ks__tp_cur(p)->type != KS_TT_BLOCK_END) {
        if (n->n) ks__tp_expect_op(p, ',');
        ks_tnode *k = ks__tp_node(p, KS_TN_PRINT, ks__tp_cur(p)->pos);
        k->a = ks__tp_expr(p, true);
        append(n, &tail, k);
    }
    return n;
}

static ks_tnode *parse_loop_control(ks_tparse *p, uint32_t pos)
{
    const ks_ttoken *t = &p->tok[p->at - 1];
    if (!p->loops) ks__tp_fail(p, pos, "'%.*s' stands outside of a loop", (int)t->n, t->p);
    return ks__tp_node(p, t->p[0] == 'b' ? KS_TN_BREAK : KS_TN_CONTINUE, pos);
}

/* include, import, from, extends: there are no other templates; an error if it is reached. */
static ks_tnode *parse_unsupported(ks_tparse *p, uint32_t pos)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_UNSUPPORTED, pos);
    const ks_ttoken *t = &p->tok[p->at - 1];
    n->name = ks__tp_str(p, t->p, t->n, false);
    while (ks__tp_cur(p)->type != KS_TT_BLOCK_END && ks__tp_cur(p)->type != KS_TT_EOF) p->at++;
    return n;
}

static ks_tnode *parse_statement(ks_tparse *p)
{
    static const struct {
        const char *name;
        ks_tnode *(*parse)(ks_tparse *, uint32_t);
    } tags[] = {
        { "if", parse_if },
        { "for", parse_for },
        { "set", parse_set },
        { "macro", parse_macro },
        { "call", parse_call_block },
        { "filter", parse_filter_block },
        { "with", parse_with },
        { "block", parse_block },
        { "generation", parse_generation },
        { "autoescape", parse_autoescape },
        { "print", parse_print },
        { "break", parse_loop_control },
        { "continue", parse_loop_control },
        { "include", parse_unsupported },
        { "import", parse_unsupported },
        { "from", parse_unsupported },
        { "extends", parse_unsupported },
    };
    const ks_ttoken *t = ks__tp_expect_name(p);
    for (size_t i = 0; i < KS_COUNT(tags); i++)
        if (t->n == strlen(tags[i].name) && memcmp(t->p, tags[i].name, t->n) == 0) {
            ks__tp_enter(p);
            ks_tnode *n = tags[i].parse(p, t->pos);
            ks__tp_leave(p);
            return n;
        }
    ks__tp_fail(p, t->pos, "unknown tag '%.*s'", (int)KS_MIN(t->n, 40), t->p);
}

static bool at_end(const ks_tparse *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (ks__tp_is_name(p, *ends)) return true;
    return false;
}

/* A dummy head makes appending uniform; its list is the body. */
ks_tnode *ks__tp_body(ks_tparse *p, const char *const *ends)
{
    ks_tnode head = { .n = 0 }, **tail = &head.kids;
    for (;;) {
        const ks_ttoken *t = ks__tp_cur(p);
        if (t->type == KS_TT_EOF) {
            if (!ends) return head.kids;
            const char *end = ends[0];
            while (ends[1]) end = *++ends;
            ks__tp_fail(p, t->pos, "the template ends where '%s' is needed", end);
        }
        p->at++;
        if (t->type == KS_TT_DATA) {
            ks_tnode *n = ks__tp_node(p, KS_TN_DATA, t->pos);
            n->val = (ks_tv) { .kind = KS_TV_STR, .u.s = ks__tp_str(p, t->p, t->n, false) };
            append(&head, &tail, n);
        } else if (t->type == KS_TT_VAR_BEGIN) {
            ks_tnode *n = ks__tp_node(p, KS_TN_PRINT, ks__tp_cur(p)->pos);
            n->a = ks__tp_tuple(p, true, false, false, NULL);
            if (ks__tp_cur(p)->type != KS_TT_VAR_END) ks__tp_unexpected(p, "'}}'");
            p->at++;
            append(&head, &tail, n);
        } else { /* nothing but a tag can come here */
            if (at_end(p, ends)) return head.kids;
            append(&head, &tail, parse_statement(p));
            if (ks__tp_cur(p)->type != KS_TT_BLOCK_END) ks__tp_unexpected(p, "'%}'");
            p->at++;
        }
    }
}
