/* Inside of the template interpreter: values, syntax tree, state of a rendering.
 *
 * Memory: a compiled template owns one arena (tree, constants, names), a rendering owns another one (everything
 * else); nothing is freed singly. Because nothing outside of those arenas is held while a template is parsed
 * or runs, an error leaves by longjmp: ks__tp_fail() and ks__tr_fail() do not return, so that no caller can
 * forget to look. setjmp stands in template.c only.
 *
 * A compiled template is immutable and may be rendered by many threads at once; the rest is of one thread.
 */
#ifndef KS_TEXT_TEMPLATE_INT_H
#define KS_TEXT_TEMPLATE_INT_H

#include "base/arena.h"
#include "base/base.h"
#include "text/template.h"

#include <setjmp.h>

/* ---- limits */

#define KS_TMPL_SOURCE_MAX ((size_t)4 << 20)    /* the largest real template has 17 KB */
#define KS_TMPL_FUEL ((uint64_t)32 << 20)       /* steps: a second or two at most */
#define KS_TMPL_OUTPUT_BYTES ((size_t)64 << 20) /* a million tokens have about 5 MB */
#define KS_TMPL_MEMORY_BYTES ((size_t)512 << 20)
#define KS_TMPL_DEPTH 600u       /* nested evaluations; about 0.5 KB of stack each */
#define KS_TMPL_PARSE_DEPTH 200u /* nested brackets, operators and blocks in the source */
#define KS_TMPL_RANGE_MAX 100000 /* as the reference's sandbox has it */
#define KS_TMPL_ARGS_MAX 256u    /* of one call, and parameters of one macro */

/* ---- values */

typedef enum ks_tkind {
    KS_TV_UNDEF, /* .undef: why, may be NULL */
    KS_TV_NONE,
    KS_TV_BOOL,
    KS_TV_INT,
    KS_TV_BIG, /* .s: an integer beyond 64 bits, as its decimal digits; printed and compared, never computed with */
    KS_TV_FLOAT,
    KS_TV_STR,
    KS_TV_LIST,
    KS_TV_TUPLE,
    KS_TV_DICT,
    KS_TV_VIEW,  /* .d; flag: KS_TVIEW_ */
    KS_TV_RANGE, /* .range */
    KS_TV_ITER,  /* .it: consumed once, as a generator */
    KS_TV_NS,    /* .ns: a namespace */
    KS_TV_MACRO,
    KS_TV_FUNC,   /* .fn: a global function */
    KS_TV_METHOD, /* .method: bound */
    KS_TV_LOOP,
    KS_TV_CYCLER,
    KS_TV_JOINER,
    KS_TV_MISSING /* no value: an argument that was not given, a variable that is not set. Never seen by templates */
} ks_tkind;

enum { KS_TVIEW_KEYS, KS_TVIEW_VALUES, KS_TVIEW_ITEMS };
#define KS_TFLAG_GROUP 1u /* tuple made by groupby: has .grouper and .list */

typedef struct ks_tv {
    uint8_t kind, flag;
    union {
        bool b;
        int64_t i;
        double f;
        const struct ks_tstr *s;
        const struct ks_tundef *undef;
        struct ks_tlist *l;
        struct ks_tdict *d;
        const struct ks_trange *range;
        struct ks_titer *it;
        struct ks_tns *ns;
        const struct ks_tmacro *macro;
        const struct ks_tbuiltin *fn;
        const struct ks_tmethod *method;
        struct ks_tloop *loop;
        struct ks_tcycler *cycler;
    } u;
} ks_tv;

/* Where a byte of text comes from: the template itself and what the host vouches for, or the request. Whatever is made
 * of text of a request is that of the request, too; text is built as such unless the code says otherwise (ks_tsb.now),
 * so that what is forgotten costs the meaning of a control token, never its safety. */
enum { KS_TFROM_TEMPLATE, KS_TFROM_REQUEST };

/* Text. p is not NUL-terminated. */
typedef struct ks_tstr {
    const char *p;
    size_t n;
    size_t n_cp;           /* code points; SIZE_MAX: not counted yet (never in a compiled template) */
    struct ks_tgrow *grow; /* the buffer p lies in if it may be extended in place, see ks__tv_concat */
    bool markup;           /* came from |safe or |escape: what is added to it gets escaped */
    uint8_t from;          /* KS_TFROM_ of all bytes; of no meaning if froms is set */
    const uint8_t *froms;  /* (n) KS_TFROM_ of each byte, or NULL */
} ks_tstr;

typedef struct ks_tlist {
    uint32_t n, cap;
    ks_tv *v;
} ks_tlist;

/* Ordered; an index is built from the 9th key on. */
typedef struct ks_tdict {
    uint32_t n, cap, index_cap; /* index_cap: power of two or 0 */
    ks_tv *keys, *vals;
    uint32_t *index; /* entry + 1, 0: free */
} ks_tdict;

typedef struct ks_trange {
    int64_t start, stop, step, n;
} ks_trange;

/* What was not there, for the message once it is used. hint, if set, is the whole message. */
typedef struct ks_tundef {
    const char *hint;
    const ks_tstr *name;
    const char *owner; /* type of the object that lacks `name`; NULL: a variable */
} ks_tundef;

typedef struct ks_tns {
    ks_tdict d;
} ks_tns;

typedef struct ks_tmacro {
    const struct ks_tnode *node;
    struct ks_tscope *scope; /* where it was defined */
} ks_tmacro;

typedef struct ks_tmethod {
    ks_tv self;
    const struct ks_tbuiltin *fn;
} ks_tmethod;

typedef struct ks_tcycler {
    ks_tlist *items;
    uint32_t at;
    ks_tv sep; /* of a joiner */
    bool used;
} ks_tcycler;

/* Arguments of a call, unbound. */
typedef struct ks_tcall {
    const ks_tv *pos;
    uint32_t n_pos, n_kw;
    const ks_tstr *const *kw_names;
    const ks_tv *kw;
} ks_tcall;

struct ks_trun;
/* a: the arguments bound to the row's parameters (KS_TV_MISSING: not given); c: all of them as they came. */
typedef ks_tv (*ks_tfn)(struct ks_trun *r, const ks_tv *a, const ks_tcall *c, const struct ks_tbuiltin *fn);

/* A function, filter, test or method. params: "self,width=,first=": names in order, '=' marks an optional one; a
 * leading '/' makes all of them positional only; a trailing "*" takes what is left in c. */
typedef struct ks_tbuiltin {
    const char *name;
    ks_tfn fn;
    const char *params;
    int64_t arg; /* for rows that share a function */
} ks_tbuiltin;

/* Iteration over anything, and the lazy filters. */
typedef struct ks_titer {
    enum {
        KS_TITER_NONE,
        KS_TITER_LIST,
        KS_TITER_REVERSED,
        KS_TITER_STR,
        KS_TITER_DICT, /* keys, values or items, by flag */
        KS_TITER_RANGE,
        KS_TITER_NEST,    /* another iterator value */
        KS_TITER_MAP,     /* a filter for each */
        KS_TITER_MAPATTR, /* an attribute of each */
        KS_TITER_SELECT,  /* those whose test gives `want` */
        KS_TITER_UNIQUE
    } kind;
    uint8_t flag;
    bool want, by_attr, fold;
    size_t at;
    ks_tv src;              /* keeps what is walked */
    struct ks_titer *inner; /* of the lazy filters */
    const ks_tbuiltin *fn;  /* filter or test; NULL: truth */
    ks_tv attr, dflt;
    ks_tcall call; /* further arguments of the filter or test */
    ks_tdict *seen;
} ks_titer;

typedef struct ks_tloop {
    ks_titer it;
    const struct ks_tnode *node; /* for recursion; the `for` */
    struct ks_tscope *outer;
    ks_tv iterable, before, current, after; /* KS_TV_MISSING: none */
    ks_tv changed;
    int64_t index0, length; /* length -1: not known yet */
    uint32_t depth0;
    bool recursive, filtered;
} ks_tloop;

/* ---- syntax tree */

typedef enum ks_top {
    /* expressions */
    KS_TN_CONST,
    KS_TN_NAME,
    KS_TN_LIST,
    KS_TN_TUPLE,
    KS_TN_DICT,  /* children: key, value, key, value ... */
    KS_TN_ATTR,  /* a . name */
    KS_TN_ITEM,  /* a [ b ] */
    KS_TN_SLICE, /* a [ b : c : d ] */
    KS_TN_CALL,
    KS_TN_FILTER,
    KS_TN_TEST,
    KS_TN_NOT,
    KS_TN_NEG,
    KS_TN_POS,
    KS_TN_AND,
    KS_TN_OR,
    KS_TN_ADD,
    KS_TN_SUB,
    KS_TN_MUL,
    KS_TN_DIV,
    KS_TN_FLOORDIV,
    KS_TN_MOD,
    KS_TN_POW,
    KS_TN_CONCAT,  /* children */
    KS_TN_COMPARE, /* children: operands; ops in `sub` of the 2nd and later, see KS_TN_CMP */
    KS_TN_CMP,     /* one later operand: sub is the operator, a the operand */
    KS_TN_COND,    /* b if a else c */
    /* statements */
    KS_TN_DATA,
    KS_TN_PRINT,
    KS_TN_IF, /* children: IF arms with a the test (NULL: else) and body */
    KS_TN_FOR,
    KS_TN_SET,
    KS_TN_SETBLOCK,
    KS_TN_NSREF, /* assignment target name.attr */
    KS_TN_MACRO,
    KS_TN_CALLBLOCK,
    KS_TN_FILTERBLOCK,
    KS_TN_WITH,
    KS_TN_BLOCK, /* block, generation: a scope of its own */
    KS_TN_AUTOESCAPE,
    KS_TN_BREAK,
    KS_TN_CONTINUE,
    KS_TN_UNSUPPORTED /* include, import, extends: an error once it is reached */
} ks_top;

enum { KS_TCMP_EQ, KS_TCMP_NE, KS_TCMP_LT, KS_TCMP_LE, KS_TCMP_GT, KS_TCMP_GE, KS_TCMP_IN, KS_TCMP_NOTIN };

typedef struct ks_tnode ks_tnode;

/* Arguments in the source. Keyword arguments follow the positional ones in `first`'s list. */
typedef struct ks_targs {
    const ks_tnode *first;
    uint32_t n_pos, n_kw;
    const ks_tstr **kw_names;
    const ks_tnode *star, *star2; /* *args, **kwargs */
} ks_targs;

/* Parameters of a macro or call block. */
typedef struct ks_tparams {
    uint32_t n;
    const ks_tstr **names;
    uint32_t *syms;
    const ks_tnode **defaults; /* NULL: required */
    uint32_t sym_varargs, sym_kwargs, sym_caller;
    bool uses_varargs, uses_kwargs, uses_caller, names_caller; /* names_caller: it is a parameter */
    struct ks_tparams *outer;                                  /* of the macro around, while parsing */
} ks_tparams;

struct ks_tnode {
    uint8_t op, sub;
    bool soft;    /* an unknown filter or test is an error only when reached */
    uint32_t sym; /* of a name */
    uint32_t pos; /* byte in the source */
    uint32_t n;   /* children in `kids` */
    ks_tnode *next;
    ks_tnode *a, *b, *c, *d; /* operands, by op */
    ks_tnode *kids, *body, *other;
    const ks_tstr *name;
    const ks_tbuiltin *fn;
    ks_targs *args;
    ks_tparams *params;
    ks_tv val;
};

/* KS_TSYM_ names have fixed numbers. */
enum { KS_TSYM_LOOP, KS_TSYM_CALLER, KS_TSYM_VARARGS, KS_TSYM_KWARGS, KS_TSYM_N };

struct ks_template {
    ks_arena arena;
    char *source; /* newlines normalised; n bytes */
    size_t n;
    const ks_tnode *body;
    const ks_tstr **syms; /* every name in the template, by number */
    uint32_t n_syms, syms_cap;
    uint32_t *sym_index, sym_index_cap;
    /* (n_syms) of the outermost level: 0 not named there, 1 read first or set under a condition, 2 set first. The
     * definition hides a variable of the context from macros and loops if the outermost level sets it, without a
     * condition, before it reads it. */
    uint8_t *first_use;
    uint32_t first_use_cap;
};

/* ---- parsing */

typedef enum ks_ttok {
    KS_TT_EOF,
    KS_TT_DATA,
    KS_TT_VAR_BEGIN,
    KS_TT_VAR_END,
    KS_TT_BLOCK_BEGIN,
    KS_TT_BLOCK_END,
    KS_TT_NAME,
    KS_TT_STRING,
    KS_TT_NUMBER,
    KS_TT_OP
} ks_ttok;

/* Operators of two bytes are first | second << 8. */
#define KS_TOP2(a, b) ((uint32_t)(a) | (uint32_t)(b) << 8)

typedef struct ks_ttoken {
    ks_ttok type;
    uint32_t pos, op;
    const char *p; /* of data and names: in the source or the arena */
    size_t n;
    ks_tv val; /* of strings and numbers */
} ks_ttoken;

typedef struct ks_tparse {
    ks_template *t;
    ks_ttoken *tok; /* ends with KS_TT_EOF */
    size_t n_tok, cap_tok, at;
    uint32_t depth, loops, fors; /* loops: `for`s that a break could end; fors: all around */
    uint32_t scopes, ifs;        /* around: scopes of their own; conditions of the outermost level */
    bool soft;                   /* under a condition */
    ks_tnode *unknown;           /* filters and tests that do not exist, chained by `other` */
    ks_tparams *macro;           /* the macro being parsed: varargs, kwargs, caller are noted there */
    jmp_buf out;
    ks_err *err;
} ks_tparse;

KS_PRINTF(3, 4) __attribute__((noreturn)) void ks__tp_fail(ks_tparse *p, uint32_t pos, const char *fmt, ...);
void *ks__tp_alloc(ks_tparse *p, size_t bytes);
const ks_tstr *ks__tp_str(ks_tparse *p, const char *s, size_t n, bool copy);
uint32_t ks__tp_sym(ks_tparse *p, const char *s, size_t n);
ks_tnode *ks__tp_node(ks_tparse *p, ks_top op, uint32_t pos);
void ks__tp_use(ks_tparse *p, uint32_t sym, bool store); /* notes it for first_use */
void ks__tp_lex(ks_tparse *p);
ks_tnode *ks__tp_body(ks_tparse *p, const char *const *ends); /* NULL: to the end of the source */

/* The parser's view of the tokens, template_expr.c. */
const ks_ttoken *ks__tp_cur(const ks_tparse *p);
bool ks__tp_is_op(const ks_tparse *p, uint32_t op);
bool ks__tp_is_name(const ks_tparse *p, const char *name);
bool ks__tp_skip_op(ks_tparse *p, uint32_t op);
bool ks__tp_skip_name(ks_tparse *p, const char *name);
void ks__tp_expect_op(ks_tparse *p, uint32_t op);
const ks_ttoken *ks__tp_expect_name(ks_tparse *p);
__attribute__((noreturn)) void ks__tp_unexpected(ks_tparse *p, const char *wanted);
void ks__tp_enter(ks_tparse *p);
void ks__tp_leave(ks_tparse *p);
ks_tnode *ks__tp_expr(ks_tparse *p, bool with_cond);
/* One expression, or a tuple where commas follow; ends at `end` (a name) too, if it is not NULL. */
ks_tnode *ks__tp_tuple(ks_tparse *p, bool with_cond, bool targets, bool parens, const char *end);
ks_tnode *ks__tp_filters(ks_tparse *p, ks_tnode *node, bool start_inline);

/* ---- a rendering */

typedef struct ks_tvar {
    uint32_t sym;
    ks_tv val;
} ks_tvar;

typedef struct ks_tscope {
    struct ks_tscope *parent; /* NULL: the root's variables come next */
    ks_tvar *vars;
    uint32_t n, cap;
    bool captured; /* a macro holds it: not to be reused */
} ks_tscope;

/* Text being built. */
typedef struct ks_tsb {
    struct ks_trun *r;
    char *p;
    size_t n, cap;
    uint8_t now;    /* KS_TFROM_ of what is added next; KS_TFROM_REQUEST at first */
    uint8_t from;   /* as in ks_tstr, of the n bytes */
    uint8_t *froms; /* (cap) or NULL */
} ks_tsb;

typedef enum ks_tflow { KS_TFLOW_NEXT, KS_TFLOW_BREAK, KS_TFLOW_CONTINUE } ks_tflow;

typedef struct ks_trun {
    const ks_template *t;
    ks_arena arena;
    ks_tv *root; /* (n_syms) */
    ks_tscope *scope;
    ks_tsb *out;
    const ks_tnode *at; /* for messages */
    uint64_t fuel;
    uint32_t depth, max_depth;
    size_t output_max;
    bool autoescape;
    int64_t now_unix;
    jmp_buf fail;
    ks_err *err;
} ks_trun;

KS_PRINTF(2, 3) __attribute__((noreturn)) void ks__tr_fail(ks_trun *r, const char *fmt, ...);
/* One line with the place: "text (line 3, column 7: 'excerpt')". */
void ks__template_place(const ks_template *t, uint32_t pos, ks_err *err, int code, const char *text);
void *ks__tr_alloc(ks_trun *r, size_t n, size_t size); /* zeroed; fails the rendering above the limit */
void ks__tr_burn(ks_trun *r, uint64_t steps);
void ks__tr_enter(ks_trun *r);
void ks__tr_leave(ks_trun *r);

static inline uint8_t ks__from_at(const ks_tstr *s, size_t at)
{
    return s->froms ? s->froms[at] : s->from;
}

/* template_value.c */
ks_tv ks__tv_undef(ks_trun *r, const char *hint);
ks_tv ks__tv_none(void);
ks_tv ks__tv_bool(bool b);
ks_tv ks__tv_int(int64_t i);
ks_tv ks__tv_float(double f);
ks_tv ks__tv_str(ks_trun *r, const char *s, size_t n, uint8_t from); /* copies */
ks_tv ks__tv_strz(ks_trun *r, const char *s);                        /* a constant of ours */
ks_tv ks__tv_ref(ks_trun *r, const char *s, size_t n, uint8_t from); /* s lives as long as the rendering */
ks_tv ks__str_piece(ks_trun *r, const ks_tstr *s, size_t begin, size_t end, bool markup); /* bytes of s */
uint8_t ks__str_from(const ks_tstr *s); /* of all of it: of the request if any byte is */
ks_tv ks__tv_list(ks_trun *r, uint32_t cap);
ks_tv ks__tv_dict(ks_trun *r);
void ks__list_push(ks_trun *r, ks_tlist *l, ks_tv v);
void ks__dict_set(ks_trun *r, ks_tdict *d, ks_tv key, ks_tv val);
const ks_tv *ks__dict_get(ks_trun *r, const ks_tdict *d, ks_tv key); /* NULL: not there */
const ks_tv *ks__dict_getz(ks_trun *r, const ks_tdict *d, const char *key);
bool ks__tv_truth(ks_trun *r, ks_tv v);
bool ks__tv_equal(ks_trun *r, ks_tv a, ks_tv b);
int ks__tv_order(ks_trun *r, ks_tv a, ks_tv b, const char *op); /* <0, 0, >0; 2: unordered (NaN) */
bool ks__tv_contains(ks_trun *r, ks_tv item, ks_tv where);
bool ks__tv_is_num(ks_tv v);               /* int, float, bool */
bool ks__tv_to_int(ks_tv v, int64_t *ret); /* int and bool */
int64_t ks__tv_len(ks_trun *r, ks_tv v);   /* -1: has none */
size_t ks__str_cps(const ks_tstr *s);
bool ks__str_is(const ks_tstr *s, const char *z);
const char *ks__tv_type(ks_tv v);
bool ks__iter_begin(ks_tv v, ks_titer *ret); /* false: not iterable */
void ks__iter_need(ks_trun *r, ks_tv v, ks_titer *ret);
bool ks__iter_next(ks_trun *r, ks_titer *it, ks_tv *ret);
ks_tv ks__tv_to_list(ks_trun *r, ks_tv v);
ks_tv ks__tv_iter(ks_trun *r, const ks_titer *it); /* a copy as a value */
/* The stable order of keys: their numbers, least first. */
uint32_t *ks__sort_order(ks_trun *r, const ks_tv *keys, uint32_t n, bool reverse);

/* template_print.c */
void ks__sb_init(ks_tsb *b, ks_trun *r);
void ks__sb_add(ks_tsb *b, const char *s, size_t n);
void ks__sb_adds(ks_tsb *b, const char *s);
void ks__sb_addc(ks_tsb *b, char c);
void ks__sb_piece(ks_tsb *b, const ks_tstr *s, size_t begin, size_t end); /* bytes of s with their origins */
void ks__sb_text(ks_tsb *b, const ks_tstr *s);                            /* all of them */
void ks__sb_fill(ks_tsb *b, const char *s, size_t n, int64_t times);
ks_tv ks__sb_take(ks_tsb *b, bool markup);
void ks__sb_str(ks_tsb *b, ks_tv v);             /* as str() */
void ks__sb_repr(ks_tsb *b, ks_tv v);            /* as repr() */
void ks__sb_html(ks_tsb *b, const ks_tstr *s);   /* escaped */
const ks_tstr *ks__tv_text(ks_trun *r, ks_tv v); /* str(), keeps markup */
void ks__float_repr(double f, char dst[40]);
bool ks__float_parse(const char *s, size_t n, double *ret); /* as float() of a text without blanks around */
ks_tv ks__tv_escape(ks_trun *r, ks_tv v);

/* template_json.c */
ks_tv ks__tv_from_json(ks_trun *r, const char *text, size_t n, uint8_t from, const char *what);
void ks__tr_context(ks_trun *r, const char *text, size_t n);
void ks__sb_json(ks_tsb *b, ks_tv v, const ks_tv *opts); /* opts: ensure_ascii, indent, separators, sort_keys */

/* template_ops.c */
ks_tv ks__tv_concat(ks_trun *r, const ks_tstr *a, const ks_tstr *b);
ks_tv ks__tv_binop(ks_trun *r, ks_top op, ks_tv a, ks_tv b);
ks_tv ks__tv_unop(ks_trun *r, ks_top op, ks_tv a);
ks_tv ks__tv_attr(ks_trun *r, ks_tv obj, const ks_tstr *name);
ks_tv ks__tv_item(ks_trun *r, ks_tv obj, ks_tv key);
ks_tv ks__tv_slice(ks_trun *r, ks_tv obj, ks_tv a, ks_tv b, ks_tv c);
ks_tv ks__str_sub(ks_trun *r, const ks_tstr *s, size_t cp_begin, size_t cp_end); /* by code points */
__attribute__((noreturn)) void ks__undef_fail(ks_trun *r, ks_tv v);
void ks__tv_need_defined(ks_trun *r, ks_tv v);

/* template_eval.c */
ks_tv ks__tr_eval(ks_trun *r, const ks_tnode *n);
ks_tv ks__tr_call(ks_trun *r, ks_tv f, const ks_tcall *c);
ks_tv ks__tr_call_builtin(ks_trun *r, const ks_tbuiltin *fn, const ks_tcall *c, const char *what);
ks_tv ks__tr_filter(ks_trun *r, const ks_tnode *n, ks_tv self);
ks_tv ks__tr_lookup(ks_trun *r, uint32_t sym);
void ks__tr_set(ks_trun *r, uint32_t sym, ks_tv v);

/* template_exec.c */
ks_tflow ks__tr_exec(ks_trun *r, const ks_tnode *first);
void ks__scope_push(ks_trun *r, ks_tscope *s, ks_tscope *parent);
ks_tv ks__loop_attr(ks_trun *r, ks_tloop *l, const ks_tstr *name);
ks_tv ks__loop_recurse(ks_trun *r, ks_tloop *l, ks_tv iterable);
ks_tv ks__macro_call(ks_trun *r, const ks_tmacro *m, const ks_tcall *c);

/* Tables; NULL if there is no such name. */
const ks_tbuiltin *ks__filter_find(const char *name, size_t n);
const ks_tbuiltin *ks__filter_seq_find(const char *name, size_t n);
const ks_tbuiltin *ks__test_find(const char *name, size_t n);
const ks_tbuiltin *ks__global_find(const char *name, size_t n);
const ks_tbuiltin *ks__method_find(ks_tv self, const ks_tstr *name);
const ks_tbuiltin *ks__str_method_find(const char *name, size_t n);
const ks_tbuiltin *ks__table_find(const ks_tbuiltin *rows, size_t n_rows, const char *name, size_t n);
bool ks__is_unsafe_name(ks_tv self, const ks_tstr *name);

/* Arguments of builtins. */
int64_t ks__arg_int(ks_trun *r, ks_tv v, const char *what);
int64_t ks__arg_int_or(ks_trun *r, ks_tv v, int64_t dflt, const char *what);
bool ks__arg_bool_or(ks_trun *r, ks_tv v, bool dflt);
const ks_tstr *ks__arg_str(ks_trun *r, ks_tv v, const char *what);  /* strings only */
ks_tv ks__attr_path(ks_trun *r, ks_tv obj, ks_tv path, ks_tv dflt); /* "a.b.0"; dflt MISSING: none */
ks_tv ks__fold_case(ks_trun *r, ks_tv v);

/* template_format.c */
ks_tv ks__format_percent(ks_trun *r, const ks_tstr *fmt, ks_tv args);
ks_tv ks__format_method(ks_trun *r, const ks_tstr *fmt, const ks_tcall *c);

/* template_time.c */
ks_tv ks__strftime(ks_trun *r, const ks_tstr *fmt, int64_t unix_s);

/* template_unicode.c: properties as the reference has them (Unicode 14 and later agree on what is common). */
bool ks__uc_space(uint32_t cp);
bool ks__uc_printable(uint32_t cp);
bool ks__uc_alpha(uint32_t cp);
bool ks__uc_decimal(uint32_t cp);
bool ks__uc_numeric(uint32_t cp);
bool ks__uc_upper(uint32_t cp);
bool ks__uc_lower(uint32_t cp);
/* Full mappings: up to three code points; returns their number. */
uint32_t ks__uc_to_upper(uint32_t cp, uint32_t dst[3]);
uint32_t ks__uc_to_lower(uint32_t cp, uint32_t dst[3]);
uint32_t ks__uc_to_title(uint32_t cp, uint32_t dst[3]);

/* template_deepseek.c */
extern const char *const ks__template_deepseek_v32[], *const ks__template_deepseek_v4[]; /* pieces, NULL at the end */

#endif
