/* Patterns compiled to scanners over sets of code points.
 *
 * Syntax and meaning are Oniguruma's (Ruby): that engine defined the ids that models were trained on. A pattern is a
 * small graph of nodes; a set with a count runs greedily, then hands back one character at a time until the rest
 * fits. There are no loops over groups, so that the graph has no cycle and the work is bounded by the runs; a budget of
 * steps turns the rest of the bad cases (a*a*a*b) into an error. The matcher allocates nothing. [any]
 */
#include "base/base.h"
#include "text/pretok.h"

#include <krasis/json.h>
#include <string.h>

#define PATTERN_BYTES_MAX 65536u /* the longest in use, DeepSeek-LLM's, has 3,000 */
#define NODES_MAX 512u
#define DEPTH_MAX 16u
#define UNBOUNDED UINT32_MAX
#define STEPS_MIN 1000000u
#define ALTERNATIVES_MAX 64u

enum { NODE_END, NODE_JOIN, NODE_SET, NODE_ALT, NODE_AHEAD, NODE_BEHIND, NODE_LINE_END, NODE_TEXT_END };

typedef struct node {
    uint8_t type;
    bool possessive, negative;
    uint32_t min, max;
    const ks_uni_set *set;
    uint32_t next;
    uint32_t alt, n_alt; /* ALT: a slice of the list of alternatives */
} node;

struct ks_pattern {
    node *nodes;
    uint32_t n_nodes;
    uint32_t *alts;
    uint32_t n_alts;
    ks_uni_set **sets;
    uint32_t n_sets;
    uint32_t start;
    uint64_t starts[256]; /* by first byte: the alternatives of the outermost level that it can begin */
    bool can_be_empty;
    ks_foreign *foreign;
};

/* ---- Parser. `no` (not of our form) and out of memory both end the parse; bad says which. */

typedef struct parser {
    ks_pattern *p;
    const char *s;
    size_t n, at;
    int bad; /* 0, KS_E_UNSUPPORTED or KS_E_NOMEM */
    bool icase, in_class;
} parser;

static bool fail(parser *q, int code)
{
    if (!q->bad) q->bad = code;
    return false;
}

static uint32_t add_node(parser *q, uint8_t type)
{
    ks_pattern *p = q->p;
    if (p->n_nodes == NODES_MAX) return fail(q, KS_E_UNSUPPORTED), 0;
    p->nodes[p->n_nodes] = (node) { .type = type, .min = 1, .max = 1 };
    return p->n_nodes++;
}

static bool more(const parser *q)
{
    return q->at < q->n;
}
static char peek(const parser *q)
{
    return more(q) ? q->s[q->at] : 0;
}
static bool peek_is(const parser *q, const char *lit)
{
    size_t n = strlen(lit);
    return q->n - q->at >= n && !memcmp(q->s + q->at, lit, n);
}
static bool skip_if(parser *q, const char *lit)
{
    if (!peek_is(q, lit)) return false;
    q->at += strlen(lit);
    return true;
}

static uint32_t take_char(parser *q)
{
    uint32_t cp = 0, len = more(q) ? ks_utf8_decode(q->s + q->at, q->n - q->at, &cp) : 0;
    if (!len) fail(q, KS_E_UNSUPPORTED);
    q->at += len;
    return cp;
}

static void add_folded(parser *q, ks_uni_ranges *a, uint32_t lo, uint32_t hi)
{
    ks_uni_add(a, lo, hi);
    if (!q->icase) return;
    if (hi >= 0x80) {
        fail(q, KS_E_UNSUPPORTED);
        return;
    }
    for (uint32_t c = lo; c <= hi; c++) {
        if ((c | 32) < 'a' || (c | 32) > 'z') continue;
        ks_uni_add(a, c ^ 32, c ^ 32);
        if ((c | 32) == 's') ks_uni_add(a, 0x17f, 0x17f);   /* long s */
        if ((c | 32) == 'k') ks_uni_add(a, 0x212a, 0x212a); /* Kelvin sign */
    }
}

static uint32_t take_hex(parser *q, uint32_t max_digits)
{
    uint32_t v = 0, n = 0;
    for (; n < max_digits && more(q); n++) {
        char c = q->s[q->at];
        uint32_t d = c >= '0' && c <= '9'                 ? (uint32_t)(c - '0')
                     : (c | 32) >= 'a' && (c | 32) <= 'f' ? (uint32_t)((c | 32) - 'a' + 10)
                                                          : 16;
        if (d == 16) break;
        v = v * 16 + d;
        q->at++;
    }
    if (!n || v > KS_UNI_MAX) fail(q, KS_E_UNSUPPORTED);
    return v;
}

/* \p{Name}, \p{^Name}, \P{Name}, after the letter. */
static void take_property(parser *q, ks_uni_ranges *a, bool negative)
{
    if (!skip_if(q, "{")) {
        fail(q, KS_E_UNSUPPORTED);
        return;
    }
    if (skip_if(q, "^")) negative = !negative;
    size_t begin = q->at;
    while (more(q) && peek(q) != '}') q->at++;
    ks_uni_ranges b = { 0 };
    bool known = ks_uni_add_property(&b, q->s + begin, q->at - begin);
    /* Sets that both cases are in equally keep their meaning under (?i). */
    static const char *const caseless[] = { "L", "M", "N", "P", "S", "Z" };
    bool same = !q->icase;
    for (size_t i = 0; i < KS_COUNT(caseless); i++) same |= q->at - begin == 1 && q->s[begin] == caseless[i][0];
    if (!skip_if(q, "}") || !known || !same) fail(q, KS_E_UNSUPPORTED);
    if (negative) ks_uni_invert(&b);
    ks_uni_add_all(a, &b);
    ks_uni_ranges_fini(&b);
}

/* After a backslash. True with *ret_cp: one character; false: a was given a class. */
static bool take_escape(parser *q, ks_uni_ranges *a, uint32_t *ret_cp)
{
    uint32_t c = take_char(q);
    ks_uni_ranges b = { 0 };
    bool negative = false;
    switch (c) {
    case 'n': return *ret_cp = '\n', true;
    case 'r': return *ret_cp = '\r', true;
    case 't': return *ret_cp = '\t', true;
    case 'f': return *ret_cp = '\f', true;
    case 'v': return *ret_cp = '\v', true;
    case 'a': return *ret_cp = '\a', true;
    case 'e': return *ret_cp = 0x1b, true;
    case 'u': return *ret_cp = take_hex(q, 4), true;
    case 'x':
        if (!skip_if(q, "{")) {
            *ret_cp = take_hex(q, 2);
            if (*ret_cp >= 0x80) fail(q, KS_E_UNSUPPORTED); /* a raw byte there */
        } else {
            *ret_cp = take_hex(q, 8);
            if (!skip_if(q, "}")) fail(q, KS_E_UNSUPPORTED);
        }
        return true;
    case 'p': return take_property(q, a, false), false;
    case 'P': return take_property(q, a, true), false;
    case 'S': negative = true; /* fall through */
    case 's': ks_uni_add_space(&b); break;
    case 'D': negative = true;                               /* fall through */
    case 'd': (void)ks_uni_add_property(&b, "Nd", 2); break; /* a name of the table */
    case 'W': negative = true;                               /* fall through */
    case 'w': {
        static const uint16_t extra[] = { 0xb2, 0xb3, 0xb9, 0xbc, 0xbd, 0xbe }; /* measured: outside of classes */
        ks_uni_add_word(&b);
        for (size_t i = 0; !q->in_class && i < KS_COUNT(extra); i++) ks_uni_add(&b, extra[i], extra[i]);
        break;
    }
    default:
        if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c >= 0x80) fail(q, KS_E_UNSUPPORTED);
        return *ret_cp = c, true;
    }
    if (negative) ks_uni_invert(&b);
    ks_uni_add_all(a, &b);
    ks_uni_ranges_fini(&b);
    return false;
}

/* A class after its '[': ranges, escapes, nested classes, intersections. */
static void take_class(parser *q, ks_uni_ranges *a, uint32_t depth)
{
    bool negative = skip_if(q, "^"), has_left = false;
    ks_uni_ranges left = { 0 };
    if (depth > DEPTH_MAX || peek(q) == ']') fail(q, KS_E_UNSUPPORTED);
    while (!q->bad && peek(q) != ']') {
        if (skip_if(q, "&&")) {
            if (has_left)
                ks_uni_intersect(&left, a);
            else
                ks_uni_add_all(&left, a);
            has_left = true;
            a->n = 0;
            continue;
        }
        if (peek_is(q, "[:")) {
            fail(q, KS_E_UNSUPPORTED);
            break;
        }
        if (skip_if(q, "[")) {
            ks_uni_ranges inner = { 0 };
            take_class(q, &inner, depth + 1);
            ks_uni_add_all(a, &inner);
            ks_uni_ranges_fini(&inner);
            continue;
        }
        uint32_t lo = 0, hi;
        bool single = true;
        if (skip_if(q, "\\"))
            single = take_escape(q, a, &lo);
        else
            lo = take_char(q);
        if (!single || q->bad) continue;
        hi = lo;
        if (peek(q) == '-' && q->n - q->at > 1 && q->s[q->at + 1] != ']') {
            q->at++;
            if (peek_is(q, "[") || peek_is(q, "&&"))
                fail(q, KS_E_UNSUPPORTED);
            else if (!skip_if(q, "\\"))
                hi = take_char(q);
            else if (!take_escape(q, a, &hi))
                fail(q, KS_E_UNSUPPORTED);
            if (hi < lo) fail(q, KS_E_UNSUPPORTED);
        }
        if (!q->bad) add_folded(q, a, lo, hi);
    }
    if (!skip_if(q, "]")) fail(q, KS_E_UNSUPPORTED);
    if (has_left) {
        ks_uni_intersect(&left, a);
        a->n = 0;
        ks_uni_add_all(a, &left);
    }
    if (negative) ks_uni_invert(a);
    ks_uni_ranges_fini(&left);
}

/* One character or class into *a. */
static void take_atom(parser *q, ks_uni_ranges *a)
{
    uint32_t cp;
    if (skip_if(q, "[")) {
        q->in_class = true;
        take_class(q, a, 0);
        q->in_class = false;
    } else if (skip_if(q, "\\")) {
        if (take_escape(q, a, &cp)) add_folded(q, a, cp, cp);
    } else if (skip_if(q, ".")) {
        ks_uni_add(a, 0, 9);
        ks_uni_add(a, 11, KS_UNI_MAX);
    } else {
        cp = take_char(q);
        add_folded(q, a, cp, cp);
    }
}

static const ks_uni_set *keep_set(parser *q, ks_uni_ranges *a)
{
    ks_uni_set *s = q->bad ? NULL : ks_uni_set_new(a);
    ks_uni_ranges_fini(a);
    if (!s) return fail(q, KS_E_NOMEM), NULL;
    return q->p->sets[q->p->n_sets++] = s;
}

static void take_count(parser *q, node *d)
{
    bool braces = false;
    if (skip_if(q, "?")) {
        d->min = 0;
    } else if (skip_if(q, "*")) {
        d->min = 0;
        d->max = UNBOUNDED;
    } else if (skip_if(q, "+")) {
        d->max = UNBOUNDED;
    } else if (skip_if(q, "{")) {
        braces = true;
        uint32_t v[2] = { 0, 0 }, digits[2] = { 0, 0 }, k = 0;
        for (; more(q) && peek(q) != '}'; q->at++) {
            char c = peek(q);
            if (c == ',' && !k)
                k = 1;
            else if (c >= '0' && c <= '9' && digits[k]++ < 5)
                v[k] = v[k] * 10 + (uint32_t)(c - '0');
            else
                fail(q, KS_E_UNSUPPORTED);
        }
        d->min = v[0];
        d->max = !k ? v[0] : digits[1] ? v[1] : UNBOUNDED;
        if (!skip_if(q, "}") || !digits[0] || d->max < d->min || !d->max) fail(q, KS_E_UNSUPPORTED);
    } else {
        return;
    }
    if (peek(q) == '?') fail(q, KS_E_UNSUPPORTED); /* lazy */
    if (skip_if(q, "+")) {
        /* x{1,3}+ is not possessive there but (x{1,3})+, and that is x+ if one x is enough. */
        if (!braces)
            d->possessive = true;
        else if (d->min == 1)
            d->max = UNBOUNDED;
        else
            fail(q, KS_E_UNSUPPORTED);
    }
    if (peek(q) == '*' || peek(q) == '+' || peek(q) == '?' || peek(q) == '{') fail(q, KS_E_UNSUPPORTED);
}

static uint32_t take_alternatives(parser *q, uint32_t target, uint32_t depth);

static void keep_alternatives(parser *q, uint32_t k, const uint32_t *alt, uint32_t n)
{
    ks_pattern *p = q->p;
    if (q->bad || p->n_alts + n > NODES_MAX) {
        fail(q, KS_E_UNSUPPORTED);
        return;
    }
    p->nodes[k].alt = p->n_alts;
    p->nodes[k].n_alt = n;
    memcpy(p->alts + p->n_alts, alt, n * sizeof *alt);
    p->n_alts += n;
}

/* (?=x) and its kin, x one character or class. */
static uint32_t take_look(parser *q, uint8_t type, bool negative)
{
    uint32_t k = add_node(q, type);
    ks_uni_ranges a = { 0 };
    take_atom(q, &a);
    q->p->nodes[k].negative = negative;
    q->p->nodes[k].set = keep_set(q, &a);
    if (!skip_if(q, ")")) fail(q, KS_E_UNSUPPORTED);
    return k;
}

/* A group after its '('. *ret_last is where the rest of the sequence is to be hung. */
static uint32_t take_group(parser *q, uint32_t *ret_last, uint32_t depth)
{
    bool outer = q->icase;
    if (skip_if(q, "?")) {
        if (skip_if(q, "=")) return *ret_last = take_look(q, NODE_AHEAD, false);
        if (skip_if(q, "!")) return *ret_last = take_look(q, NODE_AHEAD, true);
        if (skip_if(q, "<=")) return *ret_last = take_look(q, NODE_BEHIND, false);
        if (skip_if(q, "<!")) return *ret_last = take_look(q, NODE_BEHIND, true);
        if (skip_if(q, "i:"))
            q->icase = true;
        else if (skip_if(q, "-i:"))
            q->icase = false;
        else if (!skip_if(q, ":"))
            fail(q, KS_E_UNSUPPORTED);
    }
    uint32_t join = add_node(q, NODE_JOIN), first = take_alternatives(q, join, depth + 1);
    q->icase = outer;
    *ret_last = join;
    if (!skip_if(q, ")")) fail(q, KS_E_UNSUPPORTED);
    if (skip_if(q, "?")) {
        uint32_t k = add_node(q, NODE_ALT);
        const uint32_t both[2] = { first, join };
        keep_alternatives(q, k, both, 2);
        first = k;
    }
    char c = peek(q);
    if (c == '*' || c == '+' || c == '?' || c == '{') fail(q, KS_E_UNSUPPORTED);
    return first;
}

/* A group that stands for one character, "(x)" or "((?=x)(y))": then it can have any count. False, and nothing read, if
 * it is another one. */
static bool take_single_group(parser *q, ks_uni_ranges *a, uint32_t depth)
{
    size_t begin = q->at;
    bool ahead = false;
    ks_uni_ranges b = { 0 };
    if (depth > DEPTH_MAX || !skip_if(q, "(")) return false;
    (void)skip_if(q, "?:"); /* both kinds mean the same here */
    if (skip_if(q, "(?=")) {
        ahead = true;
        take_atom(q, &b);
        if (!skip_if(q, ")")) fail(q, KS_E_UNSUPPORTED);
    }
    char c = peek(q);
    if (c == '(') {
        if (!take_single_group(q, a, depth + 1)) fail(q, KS_E_UNSUPPORTED);
    } else if (!c || strchr("?*+{|)^$", c)) {
        fail(q, KS_E_UNSUPPORTED);
    } else {
        take_atom(q, a);
    }
    if (!skip_if(q, ")")) fail(q, KS_E_UNSUPPORTED);
    if (ahead && !q->bad) ks_uni_intersect(a, &b);
    ks_uni_ranges_fini(&b);
    if (!q->bad) return true;
    ks_uni_ranges_fini(a);
    q->bad = q->bad == KS_E_UNSUPPORTED ? 0 : q->bad;
    q->at = begin;
    return false;
}

/* Letters of a multi-character fold ("ss" is sharp s under (?i)) are not ours to match. */
static bool folds_together(uint32_t a, uint32_t b)
{
    a |= 32;
    b |= 32;
    return (a == 's' && (b == 's' || b == 't')) || (a == 'f' && (b == 'f' || b == 'i' || b == 'l'));
}

static uint32_t take_sequence(parser *q, uint32_t target, uint32_t depth)
{
    uint32_t first = target, last = UINT32_MAX;
    while (!q->bad && more(q) && peek(q) != '|' && peek(q) != ')') {
        uint32_t k, end;
        ks_uni_ranges a = { 0 };
        if (take_single_group(q, &a, 0)) {
            k = end = add_node(q, NODE_SET);
            q->p->nodes[k].set = keep_set(q, &a);
            take_count(q, &q->p->nodes[k]);
        } else if (skip_if(q, "(")) {
            k = take_group(q, &end, depth);
        } else if (skip_if(q, "$")) {
            k = end = add_node(q, NODE_LINE_END);
        } else if (skip_if(q, "\\z")) {
            k = end = add_node(q, NODE_TEXT_END);
        } else {
            if (strchr("*+?{^", peek(q)) || peek_is(q, "\\b") || peek_is(q, "\\B")) fail(q, KS_E_UNSUPPORTED);
            if (q->icase && q->n - q->at > 1 && folds_together((uint8_t)q->s[q->at], (uint8_t)q->s[q->at + 1]))
                fail(q, KS_E_UNSUPPORTED);
            k = end = add_node(q, NODE_SET);
            take_atom(q, &a);
            q->p->nodes[k].set = keep_set(q, &a);
            take_count(q, &q->p->nodes[k]);
        }
        if (q->bad) break;
        if (last == UINT32_MAX)
            first = k;
        else
            q->p->nodes[last].next = k;
        last = end;
    }
    if (last != UINT32_MAX) q->p->nodes[last].next = target;
    return first;
}

static uint32_t take_alternatives(parser *q, uint32_t target, uint32_t depth)
{
    uint32_t alt[ALTERNATIVES_MAX], n = 0;
    if (depth > DEPTH_MAX) return fail(q, KS_E_UNSUPPORTED), target;
    do {
        if (n == ALTERNATIVES_MAX) return fail(q, KS_E_UNSUPPORTED), target;
        alt[n++] = take_sequence(q, target, depth);
    } while (!q->bad && skip_if(q, "|"));
    if (n == 1 && depth) return alt[0];
    uint32_t k = add_node(q, NODE_ALT);
    keep_alternatives(q, k, alt, n);
    return k;
}

/* ---- Which bytes can begin a match: marks them in first[256]; true if the node can match nothing at all. */
static bool first_bytes(const ks_pattern *p, uint32_t k, bool *first)
{
    const node *d = &p->nodes[k];
    bool empty = false;
    switch (d->type) {
    case NODE_END: return true;
    case NODE_ALT:
        for (uint32_t i = 0; i < d->n_alt; i++) empty |= first_bytes(p, p->alts[d->alt + i], first);
        return empty;
    case NODE_SET:
        for (uint32_t c = 0; c < 256; c++) first[c] |= d->set->byte[c] != 0;
        return d->min ? false : first_bytes(p, d->next, first);
    default: return first_bytes(p, d->next, first);
    }
}

static int compile(ks_pattern *p, const char *text, size_t n)
{
    parser q = { .p = p, .s = text, .n = n };
    p->nodes = ks_calloc(NODES_MAX, sizeof *p->nodes);
    p->alts = ks_calloc(NODES_MAX, sizeof *p->alts);
    p->sets = ks_calloc(NODES_MAX, sizeof *p->sets);
    if (!p->nodes || !p->alts || !p->sets) return KS_E_NOMEM;
    uint32_t end = add_node(&q, NODE_END);
    p->start = take_alternatives(&q, end, 0);
    if (q.bad) return q.bad;
    if (more(&q)) return KS_E_UNSUPPORTED; /* a stray ')' */
    const node *top = &p->nodes[p->start];
    for (uint32_t i = 0; i < top->n_alt; i++) {
        bool first[256] = { false }, empty = first_bytes(p, p->alts[top->alt + i], first);
        p->can_be_empty |= empty;
        for (uint32_t c = 0; c < 256; c++) p->starts[c] |= (uint64_t)(first[c] || empty) << i;
    }
    return 0;
}

static void drop_program(ks_pattern *p)
{
    for (uint32_t i = 0; i < p->n_sets; i++) ks_uni_set_free(p->sets[i]);
    free(p->sets);
    free(p->alts);
    free(p->nodes);
    p->sets = NULL;
    p->alts = NULL;
    p->nodes = NULL;
    p->n_sets = 0;
}

/* ---- Matcher */

typedef struct matcher {
    const ks_pattern *p;
    const uint8_t *s;
    size_t n;
    uint64_t steps; /* left */
} matcher;

#define NO_MATCH SIZE_MAX
#define TOO_SLOW (SIZE_MAX - 1)

static inline bool has(const ks_uni_set *set, const uint8_t *s, uint32_t *ret_len)
{
    uint8_t f = set->byte[*s];
    *ret_len = 1;
    return f == 2 ? ks_uni_set_has(set, ks_uni_get(s, ret_len)) : f;
}

static size_t back(const uint8_t *s, size_t at)
{
    do at--;
    while ((s[at] & 0xc0) == 0x80);
    return at;
}

/* Runs up to max members of the set; returns where it stopped. */
static size_t run_set(const matcher *m, const node *d, size_t at, uint32_t *ret_count)
{
    const ks_uni_set *set = d->set;
    uint32_t count = 0;
    while (count < d->max && at < m->n) {
        uint8_t f = set->byte[m->s[at]];
        uint32_t len = 1;
        if (f != 1 && (!f || !ks_uni_set_has(set, ks_uni_get(m->s + at, &len)))) break;
        at += len;
        count++;
    }
    *ret_count = count;
    return at;
}

static size_t match(matcher *m, uint32_t k, size_t at)
{
    for (;;) {
        const node *d = &m->p->nodes[k];
        uint32_t len, count;
        size_t r;
        switch (d->type) {
        case NODE_END: return at;
        case NODE_JOIN: break;
        case NODE_AHEAD:
            if ((at < m->n && has(d->set, m->s + at, &len)) == d->negative) return NO_MATCH;
            break;
        case NODE_BEHIND:
            if ((at && has(d->set, m->s + back(m->s, at), &len)) == d->negative) return NO_MATCH;
            break;
        case NODE_LINE_END:
            if (at < m->n && m->s[at] != '\n') return NO_MATCH;
            break;
        case NODE_TEXT_END:
            if (at < m->n) return NO_MATCH;
            break;
        case NODE_ALT:
            for (uint32_t i = 0; i + 1 < d->n_alt; i++)
                if ((r = match(m, m->p->alts[d->alt + i], at)) != NO_MATCH) return r;
            k = m->p->alts[d->alt + d->n_alt - 1];
            continue;
        default: /* NODE_SET */
            r = run_set(m, d, at, &count);
            if (count >= m->steps) return TOO_SLOW;
            m->steps -= count;
            if (count < d->min) return NO_MATCH;
            if (!d->possessive && m->p->nodes[d->next].type != NODE_END) {
                for (; count > d->min; count--) {
                    size_t e = match(m, d->next, r);
                    if (e != NO_MATCH) return e;
                    if (!--m->steps) return TOO_SLOW;
                    r = back(m->s, r);
                }
            }
            at = r;
        }
        k = d->next;
    }
}

/* An alternative that begins with an unlimited run tried every end of the run; begun later in the same run it would try
 * some of them again. So long blank runs stay linear. */
static size_t run_end(const matcher *m, uint32_t k, size_t at)
{
    const node *d = &m->p->nodes[k];
    uint32_t count;
    return d->type == NODE_SET && d->max == UNBOUNDED ? run_set(m, d, at, &count) : at;
}

/* ---- Public */

int ks_pattern_new(const char *text, size_t n, ks_pattern **ret, ks_err *err)
{
    if (n > PATTERN_BYTES_MAX || ks_utf8_valid(text, n) != n || memchr(text, 0, n))
        return ks_fail(err, KS_E_FORMAT, "pattern of %zu bytes is too long (at most %u) or not plain UTF-8", n,
                       PATTERN_BYTES_MAX);
    ks_pattern *p = ks_calloc(1, sizeof *p);
    int rc = p ? compile(p, text, n) : KS_E_NOMEM;
    if (rc == KS_E_UNSUPPORTED) {
        drop_program(p);
        rc = ks_foreign_new(text, n, &p->foreign, err);
    } else if (rc) {
        (void)ks_fail(err, rc, "out of memory for a pattern of %zu bytes", n);
    }
    if (rc) {
        ks_pattern_free(p);
        return rc;
    }
    *ret = p;
    return 0;
}

int ks_pattern_from_ranges(ks_uni_ranges *a, ks_pattern **ret, ks_err *err)
{
    int rc = ks_pattern_new(".", 1, ret, err); /* one character; the set is then exchanged */
    ks_uni_set *s = rc ? NULL : ks_uni_set_new(a);
    if (rc) return rc;
    ks_pattern *p = *ret;
    if (!s) {
        ks_pattern_free(p);
        return ks_fail(err, KS_E_NOMEM, "out of memory for a set of characters");
    }
    for (uint32_t i = 0; i < p->n_nodes; i++)
        if (p->nodes[i].type == NODE_SET) p->nodes[i].set = s;
    ks_uni_set_free(p->sets[0]);
    p->sets[0] = s;
    for (uint32_t c = 0; c < 256; c++) p->starts[c] = s->byte[c] != 0;
    return 0;
}

int ks_pattern_from_text(const char *text, size_t n, ks_pattern **ret, ks_err *err)
{
    if (!n) return ks_pattern_new("[^\\x{0}-\\x{10ffff}]", 20, ret, err);
    ks_buf b;
    ks_buf_init(&b, 0);
    for (size_t i = 0; i < n;) {
        uint32_t len, cp = ks_uni_get((const uint8_t *)text + i, &len);
        i += len;
        ks_buf_printf(&b, "\\x{%x}", cp);
    }
    int rc = b.failed ? ks_fail(err, KS_E_NOMEM, "out of memory for a pattern of %zu bytes", n)
                      : ks_pattern_new(b.p, b.n, ret, err);
    ks_buf_fini(&b);
    return rc;
}

void ks_pattern_free(ks_pattern *p)
{
    if (!p) return;
    drop_program(p);
    ks_foreign_free(p->foreign);
    free(p);
}

bool ks_pattern_is_foreign(const ks_pattern *p)
{
    return p->foreign != NULL;
}

int ks_pattern_find(const ks_pattern *p, const uint8_t *s, size_t n, size_t from, size_t *ret_begin, size_t *ret_end,
                    ks_err *err)
{
    if (p->foreign) return ks_foreign_find(p->foreign, s, n, from, ret_begin, ret_end, err);
    const uint32_t *alts = p->alts + p->nodes[p->start].alt;
    matcher m = { .p = p, .s = s, .n = n, .steps = 64 * (uint64_t)(n - from) + STEPS_MIN };
    uint32_t n_alts = p->nodes[p->start].n_alt;
    size_t dead[ALTERNATIVES_MAX]; /* by alternative: no match begins before this */
    for (uint32_t i = 0; i < n_alts; i++) dead[i] = from;
    for (size_t at = from; at <= n;) {
        uint64_t left = at < n ? p->starts[s[at]] : p->can_be_empty ? UINT64_MAX >> (64 - n_alts) : 0;
        for (; left; left &= left - 1) {
            uint32_t i = (uint32_t)__builtin_ctzll(left);
            if (at < dead[i]) continue;
            size_t end = match(&m, alts[i], at);
            if (end == TOO_SLOW)
                return ks_fail(err, KS_E_LIMIT,
                               "the tokenizer's pattern needs too many steps on this text (at byte %zu of %zu)", at, n);
            if (end == NO_MATCH) {
                dead[i] = run_end(&m, alts[i], at);
                continue;
            }
            *ret_begin = at;
            *ret_end = end;
            return 1;
        }
        if (at == n) break;
        do at++;
        while (at < n && (s[at] & 0xc0) == 0x80);
    }
    return 0;
}

int ks_matches_next(ks_matches *m, size_t *ret_begin, size_t *ret_end, ks_err *err)
{
    for (;;) {
        if (m->at > m->n) return 0;
        int rc = ks_pattern_find(m->p, m->s, m->n, m->at, ret_begin, ret_end, err);
        if (rc <= 0) return rc;
        if (*ret_begin != *ret_end || !m->any || m->last_end != *ret_end) break;
        do m->at++;
        while (m->at < m->n && (m->s[m->at] & 0xc0) == 0x80);
    }
    m->any = true;
    m->at = m->last_end = *ret_end;
    return 1;
}
