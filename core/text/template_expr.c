/* Parser of expressions: tokens to syntax tree, by recursive descent with the precedence of the definition
 * (or, and, not, comparison, + -, ~, * / // %, **, unary, postfix, filters and tests). Depth is limited; chains
 * of one level ("a + b + c") cost no depth when parsed, and the evaluator walks them without recursion. */
#include "text/template_int.h"

#include <string.h>

const ks_ttoken *ks__tp_cur(const ks_tparse *p)
{
    return &p->tok[p->at];
}

static void next(ks_tparse *p)
{
    if (p->tok[p->at].type != KS_TT_EOF) p->at++;
}

static bool tok_is_op(const ks_ttoken *t, uint32_t op)
{
    return t->type == KS_TT_OP && t->op == op;
}

static bool tok_is_name(const ks_ttoken *t, const char *name)
{
    return t->type == KS_TT_NAME && t->n == strlen(name) && memcmp(t->p, name, t->n) == 0;
}

bool ks__tp_is_op(const ks_tparse *p, uint32_t op)
{
    return tok_is_op(ks__tp_cur(p), op);
}

bool ks__tp_is_name(const ks_tparse *p, const char *name)
{
    return tok_is_name(ks__tp_cur(p), name);
}

bool ks__tp_skip_op(ks_tparse *p, uint32_t op)
{
    if (!ks__tp_is_op(p, op)) return false;
    next(p);
    return true;
}

bool ks__tp_skip_name(ks_tparse *p, const char *name)
{
    if (!ks__tp_is_name(p, name)) return false;
    next(p);
    return true;
}

void ks__tp_unexpected(ks_tparse *p, const char *wanted)
{
    const ks_ttoken *t = ks__tp_cur(p);
    char got[64];
    switch (t->type) {
    case KS_TT_EOF: snprintf(got, sizeof got, "the end of the template"); break;
    case KS_TT_DATA: snprintf(got, sizeof got, "text"); break;
    case KS_TT_VAR_BEGIN: snprintf(got, sizeof got, "'{{'"); break;
    case KS_TT_VAR_END: snprintf(got, sizeof got, "'}}'"); break;
    case KS_TT_BLOCK_BEGIN: snprintf(got, sizeof got, "'{%%'"); break;
    case KS_TT_BLOCK_END: snprintf(got, sizeof got, "'%%}'"); break;
    case KS_TT_STRING: snprintf(got, sizeof got, "a string"); break;
    case KS_TT_NAME:
    case KS_TT_NUMBER: snprintf(got, sizeof got, "'%.*s'", (int)KS_MIN(t->n, 40), t->p); break;
    case KS_TT_OP:
        snprintf(got, sizeof got, "'%c%s'", (char)(t->op & 0xff), (char[2]) { (char)(t->op >> 8), 0 });
        break;
    }
    ks__tp_fail(p, t->pos, "expected %s, got %s", wanted, got);
}

void ks__tp_expect_op(ks_tparse *p, uint32_t op)
{
    if (ks__tp_skip_op(p, op)) return;
    char wanted[8] = { '\'', (char)(op & 0xff), op > 0xff ? (char)(op >> 8) : '\'', op > 0xff ? '\'' : 0 };
    ks__tp_unexpected(p, wanted);
}

const ks_ttoken *ks__tp_expect_name(ks_tparse *p)
{
    const ks_ttoken *t = ks__tp_cur(p);
    if (t->type != KS_TT_NAME) ks__tp_unexpected(p, "a name");
    next(p);
    return t;
}

void ks__tp_enter(ks_tparse *p)
{
    if (++p->depth > KS_TMPL_PARSE_DEPTH)
        ks__tp_fail(p, ks__tp_cur(p)->pos, "nested deeper than the limit of %u levels", KS_TMPL_PARSE_DEPTH);
}

void ks__tp_leave(ks_tparse *p)
{
    p->depth--;
}

/* Appends to a list that grows at its end. */
static void append(ks_tnode *parent, ks_tnode ***inout_tail, ks_tnode *kid)
{
    **inout_tail = kid;
    *inout_tail = &kid->next;
    parent->n++;
}

static ks_tnode *binary(ks_tparse *p, ks_top op, uint32_t pos, ks_tnode *a, ks_tnode *b)
{
    ks_tnode *n = ks__tp_node(p, op, pos);
    n->a = a;
    n->b = b;
    return n;
}

static ks_tnode *parse_unary(ks_tparse *p, bool with_filter);

static ks_tnode *parse_name(ks_tparse *p, const ks_ttoken *t, bool target)
{
    static const struct {
        const char *name;
        ks_tv val;
    } consts[] = {
        { "true", { .kind = KS_TV_BOOL, .u.b = true } },
        { "True", { .kind = KS_TV_BOOL, .u.b = true } },
        { "false", { .kind = KS_TV_BOOL, .u.b = false } },
        { "False", { .kind = KS_TV_BOOL, .u.b = false } },
        { "none", { .kind = KS_TV_NONE } },
        { "None", { .kind = KS_TV_NONE } },
    };
    for (size_t i = 0; i < KS_COUNT(consts); i++)
        if (tok_is_name(t, consts[i].name)) {
            ks_tnode *n = ks__tp_node(p, KS_TN_CONST, t->pos);
            n->val = consts[i].val;
            return n;
        }
    ks_tnode *n = ks__tp_node(p, KS_TN_NAME, t->pos);
    n->sym = ks__tp_sym(p, t->p, t->n);
    n->name = p->t->syms[n->sym];
    if (target) return n; /* noted when the statement is complete: its value is read first */
    ks__tp_use(p, n->sym, false);
    for (ks_tparams *m = p->macro; m; m = m->outer) {
        m->uses_varargs |= n->sym == KS_TSYM_VARARGS;
        m->uses_kwargs |= n->sym == KS_TSYM_KWARGS;
        m->uses_caller |= n->sym == KS_TSYM_CALLER;
    }
    return n;
}

/* Adjacent string literals are one string. */
static ks_tnode *parse_string(ks_tparse *p)
{
    const ks_ttoken *t = ks__tp_cur(p);
    ks_tnode *node = ks__tp_node(p, KS_TN_CONST, t->pos);
    size_t total = 0, n_parts = 0;
    while (ks__tp_cur(p)->type == KS_TT_STRING) {
        total += ks__tp_cur(p)->n;
        n_parts++;
        next(p);
    }
    const char *text = t->p;
    if (n_parts > 1) {
        char *dst = ks__tp_alloc(p, total + 1);
        text = dst;
        for (size_t i = 0; i < n_parts; i++) {
            if (t[i].n) memcpy(dst, t[i].p, t[i].n);
            dst += t[i].n;
        }
    }
    node->val = (ks_tv) { .kind = KS_TV_STR, .u.s = ks__tp_str(p, text, total, false) };
    return node;
}

static ks_tnode *parse_list(ks_tparse *p)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_LIST, ks__tp_cur(p)->pos), **tail = &n->kids;
    next(p);
    while (!ks__tp_is_op(p, ']')) {
        if (n->n) ks__tp_expect_op(p, ',');
        if (ks__tp_is_op(p, ']')) break;
        append(n, &tail, ks__tp_expr(p, true));
    }
    next(p);
    return n;
}

static ks_tnode *parse_dict(ks_tparse *p)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_DICT, ks__tp_cur(p)->pos), **tail = &n->kids;
    next(p);
    while (!ks__tp_is_op(p, '}')) {
        if (n->n) ks__tp_expect_op(p, ',');
        if (ks__tp_is_op(p, '}')) break;
        append(n, &tail, ks__tp_expr(p, true));
        ks__tp_expect_op(p, ':');
        append(n, &tail, ks__tp_expr(p, true));
    }
    next(p);
    return n;
}

static ks_tnode *parse_primary(ks_tparse *p, bool target)
{
    const ks_ttoken *t = ks__tp_cur(p);
    if (t->type == KS_TT_NAME) {
        next(p);
        if (target && ks__tp_is_op(p, '.')) { /* {% set ns.x = ... %} */
            next(p);
            ks_tnode *n = ks__tp_node(p, KS_TN_NSREF, t->pos);
            n->sym = ks__tp_sym(p, t->p, t->n);
            const ks_ttoken *attr = ks__tp_expect_name(p);
            n->name = ks__tp_str(p, attr->p, attr->n, false);
            return n;
        }
        return parse_name(p, t, target);
    }
    if (t->type == KS_TT_STRING) return parse_string(p);
    if (t->type == KS_TT_NUMBER) {
        next(p);
        ks_tnode *n = ks__tp_node(p, KS_TN_CONST, t->pos);
        n->val = t->val;
        return n;
    }
    if (tok_is_op(t, '(')) {
        next(p);
        ks_tnode *n = ks__tp_tuple(p, true, target, true, NULL);
        ks__tp_expect_op(p, ')');
        return n;
    }
    if (tok_is_op(t, '[')) return parse_list(p);
    if (tok_is_op(t, '{')) return parse_dict(p);
    ks__tp_unexpected(p, "an expression");
}

static ks_targs *parse_args(ks_tparse *p)
{
    ks_targs *args = ks__tp_alloc(p, sizeof *args);
    ks_tnode *list = NULL, **tail = &list;
    const ks_tstr *names[KS_TMPL_ARGS_MAX];
    uint32_t pos = ks__tp_cur(p)->pos;
    ks__tp_expect_op(p, '(');
    for (bool comma = false; !ks__tp_is_op(p, ')'); comma = true) {
        if (comma) {
            ks__tp_expect_op(p, ',');
            if (ks__tp_is_op(p, ')')) break;
        }
        if (args->n_pos + args->n_kw == KS_TMPL_ARGS_MAX)
            ks__tp_fail(p, pos, "more than %u arguments in one call", KS_TMPL_ARGS_MAX);
        const ks_ttoken *t = ks__tp_cur(p);
        if (!args->star && !args->star2 && ks__tp_skip_op(p, '*')) {
            args->star = ks__tp_expr(p, true);
        } else if (!args->star2 && ks__tp_skip_op(p, KS_TOP2('*', '*'))) {
            args->star2 = ks__tp_expr(p, true);
        } else if (t->type == KS_TT_NAME && tok_is_op(t + 1, '=') && !args->star2) {
            names[args->n_kw] = ks__tp_str(p, t->p, t->n, false);
            for (uint32_t i = 0; i < args->n_kw; i++)
                if (names[i]->n == t->n && memcmp(names[i]->p, t->p, t->n) == 0)
                    ks__tp_fail(p, t->pos, "keyword argument '%.*s' is given twice", (int)KS_MIN(t->n, 40), t->p);
            next(p);
            next(p);
            *tail = ks__tp_expr(p, true);
            tail = &(*tail)->next;
            args->n_kw++;
        } else {
            if (args->star || args->star2 || args->n_kw)
                ks__tp_fail(p, t->pos, "a positional argument follows a keyword argument");
            *tail = ks__tp_expr(p, true);
            tail = &(*tail)->next;
            args->n_pos++;
        }
    }
    ks__tp_expect_op(p, ')');
    args->first = list;
    args->kw_names = ks__tp_alloc(p, (args->n_kw + 1) * sizeof *args->kw_names);
    if (args->n_kw) memcpy(args->kw_names, names, args->n_kw * sizeof *names);
    return args;
}

static ks_tnode *parse_call(ks_tparse *p, ks_tnode *callee)
{
    ks_tnode *n = ks__tp_node(p, KS_TN_CALL, ks__tp_cur(p)->pos);
    n->a = callee;
    n->args = parse_args(p);
    return n;
}

/* One index, or begin:end:step. */
static ks_tnode *parse_index(ks_tparse *p, ks_tnode *obj, uint32_t pos)
{
    ks_tnode *part[3] = { NULL, NULL, NULL };
    bool slice = false;
    for (int i = 0; i < 3; i++) {
        if (!ks__tp_is_op(p, ':') && !ks__tp_is_op(p, ']') && !ks__tp_is_op(p, ','))
            part[i] = ks__tp_expr(p, true);
        else if (i == 0 && !ks__tp_is_op(p, ':'))
            ks__tp_unexpected(p, "an index");
        if (i == 2 || !ks__tp_skip_op(p, ':')) break;
        slice = true;
    }
    ks_tnode *n = ks__tp_node(p, slice ? KS_TN_SLICE : KS_TN_ITEM, pos);
    n->a = obj;
    n->b = part[0];
    n->c = part[1];
    n->d = part[2];
    return n;
}

static ks_tnode *parse_subscript(ks_tparse *p, ks_tnode *obj)
{
    uint32_t pos = ks__tp_cur(p)->pos;
    if (ks__tp_skip_op(p, '.')) {
        const ks_ttoken *t = ks__tp_cur(p);
        if (t->type == KS_TT_NUMBER && t->val.kind == KS_TV_INT) {
            ks_tnode *key = parse_primary(p, false);
            return binary(p, KS_TN_ITEM, pos, obj, key);
        }
        if (t->type != KS_TT_NAME) ks__tp_unexpected(p, "a name or an integer after '.'");
        next(p);
        ks_tnode *n = ks__tp_node(p, KS_TN_ATTR, t->pos);
        n->a = obj;
        n->name = ks__tp_str(p, t->p, t->n, false);
        return n;
    }
    next(p); /* [ */
    if (ks__tp_skip_op(p, ']')) return binary(p, KS_TN_ITEM, pos, obj, ks__tp_node(p, KS_TN_TUPLE, pos));
    ks_tnode *n = parse_index(p, obj, pos);
    if (ks__tp_is_op(p, ',')) { /* x[1, 2]: the key is a tuple */
        if (n->op == KS_TN_SLICE) ks__tp_fail(p, pos, "a slice in a tuple of indices is not supported");
        ks_tnode *key = ks__tp_node(p, KS_TN_TUPLE, pos), **tail = &key->kids;
        append(key, &tail, n->b);
        while (ks__tp_skip_op(p, ',') && !ks__tp_is_op(p, ']')) append(key, &tail, ks__tp_expr(p, true));
        n->b = key;
    }
    ks__tp_expect_op(p, ']');
    return n;
}

static ks_tnode *parse_postfix(ks_tparse *p, ks_tnode *n)
{
    for (uint32_t i = 0;; i++) {
        if (i > KS_TMPL_PARSE_DEPTH) ks__tp_fail(p, ks__tp_cur(p)->pos, "more than %u look-ups in a row", i - 1);
        if (ks__tp_is_op(p, '.') || ks__tp_is_op(p, '['))
            n = parse_subscript(p, n);
        else if (ks__tp_is_op(p, '('))
            n = parse_call(p, n);
        else
            return n;
    }
}

/* Filters and tests may be written with dots; none of ours is, so such a name is simply unknown. */
static const ks_tstr *dotted_name(ks_tparse *p)
{
    const ks_ttoken *first = ks__tp_expect_name(p), *last = first;
    while (ks__tp_skip_op(p, '.')) last = ks__tp_expect_name(p);
    return ks__tp_str(p, first->p, (size_t)(last->p + last->n - first->p), false);
}

/* Judged at the end of the template, when it is known what stands under a condition. */
static void note_unknown(ks_tparse *p, ks_tnode *n)
{
    n->other = p->unknown;
    p->unknown = n;
}

ks_tnode *ks__tp_filters(ks_tparse *p, ks_tnode *node, bool start_inline)
{
    for (uint32_t i = 0; start_inline || ks__tp_is_op(p, '|'); i++) {
        if (i > KS_TMPL_PARSE_DEPTH) ks__tp_fail(p, ks__tp_cur(p)->pos, "more than %u filters in a row", i - 1);
        if (!start_inline) next(p);
        start_inline = false;
        ks_tnode *n = ks__tp_node(p, KS_TN_FILTER, ks__tp_cur(p)->pos);
        n->a = node;
        n->name = dotted_name(p);
        n->fn = ks__filter_find(n->name->p, n->name->n);
        n->soft = p->soft;
        if (!n->fn) note_unknown(p, n);
        if (ks__tp_is_op(p, '(')) n->args = parse_args(p);
        node = n;
    }
    return node;
}

static ks_tnode *parse_test(ks_tparse *p, ks_tnode *subject)
{
    uint32_t pos = ks__tp_cur(p)->pos;
    next(p); /* is */
    bool negated = ks__tp_skip_name(p, "not");
    ks_tnode *n = ks__tp_node(p, KS_TN_TEST, ks__tp_cur(p)->pos);
    n->a = subject;
    n->name = dotted_name(p);
    n->fn = ks__test_find(n->name->p, n->name->n);
    n->soft = p->soft;
    if (!n->fn) note_unknown(p, n);
    const ks_ttoken *t = ks__tp_cur(p);
    bool starts_arg = t->type == KS_TT_NAME || t->type == KS_TT_STRING || t->type == KS_TT_NUMBER ||
                      tok_is_op(t, '[') || tok_is_op(t, '{');
    if (tok_is_op(t, '(')) {
        n->args = parse_args(p);
    } else if (starts_arg && !tok_is_name(t, "else") && !tok_is_name(t, "or") && !tok_is_name(t, "and")) {
        if (tok_is_name(t, "is")) ks__tp_fail(p, t->pos, "tests cannot be chained with 'is'");
        n->args = ks__tp_alloc(p, sizeof *n->args);
        n->args->first = parse_postfix(p, parse_primary(p, false));
        n->args->n_pos = 1;
    }
    if (!negated) return n;
    return binary(p, KS_TN_NOT, pos, n, NULL);
}

static ks_tnode *parse_filter_expr(ks_tparse *p, ks_tnode *n)
{
    for (uint32_t i = 0;; i++) {
        if (i > KS_TMPL_PARSE_DEPTH) ks__tp_fail(p, ks__tp_cur(p)->pos, "more than %u filters in a row", i - 1);
        if (ks__tp_is_op(p, '|'))
            n = ks__tp_filters(p, n, false);
        else if (ks__tp_is_name(p, "is"))
            n = parse_test(p, n);
        else if (ks__tp_is_op(p, '('))
            n = parse_call(p, n);
        else
            return n;
    }
}

static ks_tnode *parse_unary(ks_tparse *p, bool with_filter)
{
    ks__tp_enter(p);
    uint32_t pos = ks__tp_cur(p)->pos;
    ks_tnode *n;
    if (ks__tp_skip_op(p, '-'))
        n = binary(p, KS_TN_NEG, pos, parse_unary(p, false), NULL);
    else if (ks__tp_skip_op(p, '+'))
        n = binary(p, KS_TN_POS, pos, parse_unary(p, false), NULL);
    else
        n = parse_primary(p, false);
    n = parse_postfix(p, n);
    if (with_filter) n = parse_filter_expr(p, n);
    ks__tp_leave(p);
    return n;
}

static ks_tnode *parse_pow(ks_tparse *p)
{
    ks_tnode *left = parse_unary(p, true);
    while (ks__tp_is_op(p, KS_TOP2('*', '*'))) {
        uint32_t pos = ks__tp_cur(p)->pos;
        next(p);
        left = binary(p, KS_TN_POW, pos, left, parse_unary(p, true));
    }
    return left;
}

static ks_tnode *parse_mul(ks_tparse *p)
{
    static const struct {
        uint32_t tok;
        ks_top op;
    } ops[] = { { '*', KS_TN_MUL }, { '/', KS_TN_DIV }, { KS_TOP2('/', '/'), KS_TN_FLOORDIV }, { '%', KS_TN_MOD } };
    ks_tnode *left = parse_pow(p);
    for (size_t i = 0; i < KS_COUNT(ops);) {
        uint32_t pos = ks__tp_cur(p)->pos;
        if (!ks__tp_skip_op(p, ops[i].tok)) {
            i++;
            continue;
        }
        left = binary(p, ops[i].op, pos, left, parse_pow(p));
        i = 0;
    }
    return left;
}

static ks_tnode *parse_concat(ks_tparse *p)
{
    ks_tnode *first = parse_mul(p);
    if (!ks__tp_is_op(p, '~')) return first;
    ks_tnode *n = ks__tp_node(p, KS_TN_CONCAT, ks__tp_cur(p)->pos), **tail = &n->kids;
    append(n, &tail, first);
    while (ks__tp_skip_op(p, '~')) append(n, &tail, parse_mul(p));
    return n;
}

static ks_tnode *parse_add(ks_tparse *p)
{
    ks_tnode *left = parse_concat(p);
    while (ks__tp_is_op(p, '+') || ks__tp_is_op(p, '-')) {
        const ks_ttoken *t = ks__tp_cur(p);
        next(p);
        left = binary(p, t->op == '+' ? KS_TN_ADD : KS_TN_SUB, t->pos, left, parse_concat(p));
    }
    return left;
}

/* The comparison operator here, consumed; -1: none. */
static int skip_compare(ks_tparse *p)
{
    static const struct {
        uint32_t tok;
        int cmp;
    } ops[] = { { KS_TOP2('=', '='), KS_TCMP_EQ },
                { KS_TOP2('!', '='), KS_TCMP_NE },
                { '<', KS_TCMP_LT },
                { KS_TOP2('<', '='), KS_TCMP_LE },
                { '>', KS_TCMP_GT },
                { KS_TOP2('>', '='), KS_TCMP_GE } };
    for (size_t i = 0; i < KS_COUNT(ops); i++)
        if (ks__tp_skip_op(p, ops[i].tok)) return ops[i].cmp;
    if (ks__tp_skip_name(p, "in")) return KS_TCMP_IN;
    if (ks__tp_is_name(p, "not") && tok_is_name(ks__tp_cur(p) + 1, "in")) {
        next(p);
        next(p);
        return KS_TCMP_NOTIN;
    }
    return -1;
}

static ks_tnode *parse_compare(ks_tparse *p)
{
    ks_tnode *first = parse_add(p), *n = NULL, **tail = NULL;
    for (;;) {
        uint32_t pos = ks__tp_cur(p)->pos;
        int cmp = skip_compare(p);
        if (cmp < 0) return n ? n : first;
        if (!n) {
            n = ks__tp_node(p, KS_TN_COMPARE, pos);
            n->a = first;
            tail = &n->kids;
        }
        ks_tnode *c = ks__tp_node(p, KS_TN_CMP, pos);
        c->sub = (uint8_t)cmp;
        c->a = parse_add(p);
        append(n, &tail, c);
    }
}

static ks_tnode *parse_not(ks_tparse *p)
{
    uint32_t pos = ks__tp_cur(p)->pos;
    if (!ks__tp_skip_name(p, "not")) return parse_compare(p);
    ks__tp_enter(p);
    ks_tnode *n = binary(p, KS_TN_NOT, pos, parse_not(p), NULL);
    ks__tp_leave(p);
    return n;
}

/* `and` and `or` hold all their operands in one node. */
static ks_tnode *parse_and(ks_tparse *p)
{
    ks_tnode *first = parse_not(p);
    if (!ks__tp_is_name(p, "and")) return first;
    ks_tnode *n = ks__tp_node(p, KS_TN_AND, ks__tp_cur(p)->pos), **tail = &n->kids;
    append(n, &tail, first);
    while (ks__tp_skip_name(p, "and")) append(n, &tail, parse_not(p));
    return n;
}

static ks_tnode *parse_or(ks_tparse *p)
{
    ks_tnode *first = parse_and(p);
    if (!ks__tp_is_name(p, "or")) return first;
    ks_tnode *n = ks__tp_node(p, KS_TN_OR, ks__tp_cur(p)->pos), **tail = &n->kids;
    append(n, &tail, first);
    while (ks__tp_skip_name(p, "or")) append(n, &tail, parse_and(p));
    return n;
}

ks_tnode *ks__tp_expr(ks_tparse *p, bool with_cond)
{
    ks__tp_enter(p);
    ks_tnode *known = p->unknown, *n = parse_or(p);
    bool cond = with_cond && ks__tp_is_name(p, "if");
    for (uint32_t i = 0; with_cond && ks__tp_is_name(p, "if"); i++) {
        if (i > KS_TMPL_PARSE_DEPTH) ks__tp_fail(p, ks__tp_cur(p)->pos, "more than %u conditions in a row", i - 1);
        ks_tnode *c = ks__tp_node(p, KS_TN_COND, ks__tp_cur(p)->pos);
        next(p);
        c->b = n;
        c->a = parse_or(p);
        if (ks__tp_skip_name(p, "else")) c->c = ks__tp_expr(p, true);
        n = c;
    }
    /* A filter in "a if b else c" may be unknown until it is reached: it may never be. */
    for (ks_tnode *u = p->unknown; cond && u != known; u = u->other) u->soft = true;
    ks__tp_leave(p);
    return n;
}

static bool tuple_end(const ks_tparse *p, const char *end)
{
    const ks_ttoken *t = ks__tp_cur(p);
    return t->type == KS_TT_VAR_END || t->type == KS_TT_BLOCK_END || tok_is_op(t, ')') || (end && tok_is_name(t, end));
}

ks_tnode *ks__tp_tuple(ks_tparse *p, bool with_cond, bool targets, bool parens, const char *end)
{
    ks__tp_enter(p);
    uint32_t pos = ks__tp_cur(p)->pos;
    ks_tnode *first = NULL, *tuple = NULL, **tail = NULL;
    bool comma = false;
    while (!tuple_end(p, end)) {
        ks_tnode *n = targets ? parse_primary(p, true) : ks__tp_expr(p, with_cond);
        if (!first) first = n;
        if (tuple) append(tuple, &tail, n);
        comma = ks__tp_skip_op(p, ',');
        if (!comma) break;
        if (!tuple) {
            tuple = ks__tp_node(p, KS_TN_TUPLE, pos);
            tail = &tuple->kids;
            append(tuple, &tail, first);
        }
    }
    if (!first) {
        if (!parens) ks__tp_unexpected(p, "an expression");
        first = ks__tp_node(p, KS_TN_TUPLE, pos);
    }
    ks__tp_leave(p);
    return tuple ? tuple : first;
}
