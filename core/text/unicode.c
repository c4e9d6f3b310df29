/* Sets of code points from names, and the four normal forms.
 *
 * Decomposition and composition use the tables of Unicode 9 (see tools/gen_unicode.py), everything else Unicode 16.
 * Nothing here is kept between calls. [any]
 */
#include "text/unicode.h"

#include "base/base.h"
#include "text/unicode_tables.h"

#include <ctype.h>
#include <string.h>

#define HANGUL_S 0xac00u
#define HANGUL_L 0x1100u
#define HANGUL_V 0x1161u
#define HANGUL_T 0x11a7u
#define HANGUL_NV 21u
#define HANGUL_NT 28u
#define HANGUL_NS (19u * HANGUL_NV * HANGUL_NT)

/* ---- Ranges */

void ks_uni_ranges_fini(ks_uni_ranges *a)
{
    free(a->r);
    memset(a, 0, sizeof *a);
}

void ks_uni_add(ks_uni_ranges *a, uint32_t lo, uint32_t hi)
{
    if (a->n == a->cap) {
        size_t cap = a->cap ? 2 * a->cap : 32;
        struct ks_uni_range *r = realloc(a->r, cap * sizeof *r);
        if (!r) {
            a->failed = true;
            return;
        }
        a->r = r;
        a->cap = cap;
    }
    a->r[a->n++] = (struct ks_uni_range) { lo, hi };
}

void ks_uni_add_all(ks_uni_ranges *a, const ks_uni_ranges *b)
{
    for (size_t i = 0; i < b->n; i++) ks_uni_add(a, b->r[i].lo, b->r[i].hi);
    a->failed |= b->failed;
}

static int range_compare(const void *a, const void *b)
{
    const struct ks_uni_range *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

void ks_uni_tidy(ks_uni_ranges *a)
{
    if (a->n < 2) return;
    qsort(a->r, a->n, sizeof *a->r, range_compare);
    size_t out = 0;
    for (size_t i = 1; i < a->n; i++) {
        if (a->r[i].lo <= a->r[out].hi + 1)
            a->r[out].hi = KS_MAX(a->r[out].hi, a->r[i].hi);
        else
            a->r[++out] = a->r[i];
    }
    a->n = out + 1;
}

void ks_uni_invert(ks_uni_ranges *a)
{
    ks_uni_tidy(a);
    ks_uni_ranges b = { .failed = a->failed };
    uint32_t next = 0;
    for (size_t i = 0; i < a->n; i++) {
        if (a->r[i].lo > next) ks_uni_add(&b, next, a->r[i].lo - 1);
        next = a->r[i].hi + 1;
    }
    if (next <= KS_UNI_MAX) ks_uni_add(&b, next, KS_UNI_MAX);
    ks_uni_ranges_fini(a);
    *a = b;
}

void ks_uni_intersect(ks_uni_ranges *a, ks_uni_ranges *b)
{
    ks_uni_tidy(a);
    ks_uni_tidy(b);
    ks_uni_ranges c = { .failed = a->failed || b->failed };
    for (size_t i = 0, k = 0; i < a->n && k < b->n;) {
        uint32_t lo = KS_MAX(a->r[i].lo, b->r[k].lo), hi = KS_MIN(a->r[i].hi, b->r[k].hi);
        if (lo <= hi) ks_uni_add(&c, lo, hi);
        if (a->r[i].hi < b->r[k].hi)
            i++;
        else
            k++;
    }
    ks_uni_ranges_fini(a);
    *a = c;
}

/* ---- Properties */

static const char gc_names[][3] = { "Cn", "Cc", "Cf", "Co", "Cs", "Ll", "Lm", "Lo", "Lt", "Lu",
                                    "Mc", "Me", "Mn", "Nd", "Nl", "No", "Pc", "Pd", "Pe", "Pf",
                                    "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs" };

static void add_categories(ks_uni_ranges *a, uint32_t mask)
{
    for (uint32_t i = 0; i < ks__uni_n_gc; i++)
        if (mask >> (ks__uni_gc[i] & 31) & 1)
            ks_uni_add(a, ks__uni_gc[i] >> 5, i + 1 < ks__uni_n_gc ? (ks__uni_gc[i + 1] >> 5) - 1 : KS_UNI_MAX);
}

static uint32_t category_mask(const char *name)
{
    if (!strcmp(name, "lc")) return category_mask("lu") | category_mask("ll") | category_mask("lt");
    uint32_t mask = 0;
    size_t n = strlen(name);
    for (uint32_t i = 0; i < KS_COUNT(gc_names); i++)
        if (n && n <= 2 && tolower((unsigned char)gc_names[i][0]) == name[0] && (n == 1 || gc_names[i][1] == name[1]))
            mask |= 1u << i;
    return mask;
}

/* Letters, digits, lower case: names are compared without regard to the rest. */
static size_t plain_name(char *dst, size_t cap, const char *s, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == ' ' || s[i] == '_' || s[i] == '-') continue;
        if (k + 1 >= cap) return 0;
        dst[k++] = (char)tolower((unsigned char)s[i]);
    }
    dst[k] = 0;
    return k;
}

static bool add_script(ks_uni_ranges *a, const char *name)
{
    uint32_t want = 0;
    for (; want < ks__uni_n_script_name; want++) {
        char have[64];
        (void)plain_name(have, sizeof have, ks__uni_script_name[want], strlen(ks__uni_script_name[want]));
        if (!strcmp(have, name)) break;
    }
    if (want == ks__uni_n_script_name) return false;
    for (uint32_t i = 0; i < ks__uni_n_script; i++)
        if ((ks__uni_script[i] & 255) == want)
            ks_uni_add(a, ks__uni_script[i] >> 8,
                       i + 1 < ks__uni_n_script ? (ks__uni_script[i + 1] >> 8) - 1 : KS_UNI_MAX);
    return true;
}

bool ks_uni_add_property(ks_uni_ranges *a, const char *name, size_t n)
{
    static const struct {
        const char *name, *gc;
    } longs[] = { { "letter", "l" },
                  { "mark", "m" },
                  { "number", "n" },
                  { "punctuation", "p" },
                  { "symbol", "s" },
                  { "separator", "z" },
                  { "other", "c" },
                  { "uppercaseletter", "lu" },
                  { "lowercaseletter", "ll" },
                  { "titlecaseletter", "lt" },
                  { "modifierletter", "lm" },
                  { "otherletter", "lo" },
                  { "decimalnumber", "nd" },
                  { "nonspacingmark", "mn" },
                  { "spacingmark", "mc" } };
    char plain[64];
    if (!plain_name(plain, sizeof plain, name, n)) return false;
    if (!strcmp(plain, "any")) return ks_uni_add(a, 0, KS_UNI_MAX), true;
    for (size_t i = 0; i < KS_COUNT(longs); i++)
        if (!strcmp(plain, longs[i].name)) memcpy(plain, longs[i].gc, strlen(longs[i].gc) + 1);
    uint32_t mask = category_mask(plain);
    if (mask) return add_categories(a, mask), true;
    return add_script(a, plain);
}

void ks_uni_add_space(ks_uni_ranges *a)
{
    ks_uni_add(a, 0x09, 0x0d);
    ks_uni_add(a, 0x85, 0x85);
    add_categories(a, category_mask("z"));
}

void ks_uni_add_word(ks_uni_ranges *a)
{
    add_categories(a, category_mask("l") | category_mask("m") | category_mask("nd") | category_mask("nl") |
                          category_mask("pc"));
    ks_uni_add(a, 0x24b6, 0x24e9); /* Other_Alphabetic outside of M: circled, squared and negative letters */
    ks_uni_add(a, 0x1f130, 0x1f149);
    ks_uni_add(a, 0x1f150, 0x1f169);
    ks_uni_add(a, 0x1f170, 0x1f189);
}

void ks_uni_add_old_punctuation(ks_uni_ranges *a)
{
    for (uint32_t i = 0; i + 1 < ks__uni_n_old_punct; i += 2)
        ks_uni_add(a, ks__uni_old_punct[i], ks__uni_old_punct[i + 1] - 1);
    ks_uni_add(a, 0x21, 0x2f);
    ks_uni_add(a, 0x3a, 0x40);
    ks_uni_add(a, 0x5b, 0x60);
    ks_uni_add(a, 0x7b, 0x7e);
}

/* ---- Sets */

/* Marks lo to hi in the pages; the empty and the full page (0 and 1) are shared, the others are few for any real class.
 */
static void mark(ks_uni_set *s, uint16_t *used, uint32_t lo, uint32_t hi)
{
    for (uint32_t cp = lo; cp <= hi;) {
        uint32_t page = cp >> 8, last = KS_MIN(hi, page << 8 | 255);
        if ((cp & 255) == 0 && (last & 255) == 255) {
            s->page[page] = 1;
        } else {
            if (!s->page[page]) s->page[page] = (*used)++;
            for (uint32_t c = cp; c <= last; c++) s->bits[s->page[page]][(c >> 6) & 3] |= UINT64_C(1) << (c & 63);
        }
        cp = last + 1;
    }
}

ks_uni_set *ks_uni_set_new(ks_uni_ranges *a)
{
    ks_uni_tidy(a);
    ks_uni_set *s = a->failed ? NULL : ks_calloc(1, sizeof *s);
    if (!s) return NULL;
    bool other = false;
    for (size_t i = 0; i < a->n; i++) {
        for (uint32_t c = a->r[i].lo; c <= a->r[i].hi && c < 0x80; c++) s->byte[c] = 1;
        other |= a->r[i].hi >= 0x80;
    }
    if (!other) return s;
    memset(s->byte + 0x80, 2, 0x80);
    s->page = ks_calloc((KS_UNI_MAX >> 8) + 1, sizeof *s->page);
    s->bits = ks_calloc(2 + 2 * a->n, sizeof *s->bits); /* a range has at most two pages that it does not fill */
    if (!s->page || !s->bits) {
        ks_uni_set_free(s);
        return NULL;
    }
    memset(s->bits[1], 0xff, sizeof s->bits[1]);
    uint16_t used = 2;
    for (size_t i = 0; i < a->n; i++) mark(s, &used, a->r[i].lo, a->r[i].hi);
    return s;
}

void ks_uni_set_free(ks_uni_set *s)
{
    if (!s) return;
    free(s->page);
    free(s->bits);
    free(s);
}

/* ---- Single code points */

/* The last row whose code point is not above cp; rows hold it above `shift` bits. Row 0 starts at 0. */
static uint32_t row_value(const uint32_t *rows, uint32_t n, uint32_t shift, uint32_t cp)
{
    uint32_t lo = 0, hi = n;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if (rows[mid] >> shift <= cp)
            lo = mid;
        else
            hi = mid;
    }
    return rows[lo] & ((1u << shift) - 1);
}

static uint32_t combining(uint32_t cp)
{
    return cp < 0x300 ? 0 : row_value(ks__uni_ccc, ks__uni_n_ccc, 8, cp);
}

bool ks_uni_is_mark(uint32_t cp)
{
    uint32_t lo = 0, hi = ks__uni_n_old_mark; /* how many starts and ends are not above cp: odd inside */
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (ks__uni_old_mark[mid] <= cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo & 1;
}

bool ks_uni_is_space(uint32_t cp)
{
    if (cp < 0x80) return cp == ' ' || (cp >= 9 && cp <= 13);
    return cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

uint32_t ks_uni_lower(uint32_t cp)
{
    uint32_t lo = 0, hi = ks__uni_n_lower;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        const ks_uni_case *c = &ks__uni_lower[mid];
        if (cp < c->first)
            hi = mid;
        else if (cp > c->last)
            lo = mid + 1;
        else
            return (cp - c->first) % c->step ? cp : (uint32_t)((int32_t)cp + c->delta);
    }
    return cp;
}

/* ---- Normal forms */

static const ks_uni_decomp *find_decomp(const ks_uni_decomp *rows, uint32_t n, uint32_t cp)
{
    uint32_t lo = 0, hi = n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (rows[mid].cp == cp) return &rows[mid];
        if (rows[mid].cp < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static const ks_uni_decomp *decomposition(uint32_t cp, bool compat)
{
    if (cp < 0xa0) return NULL;
    const ks_uni_decomp *d = compat ? find_decomp(ks__uni_compat, ks__uni_n_compat, cp) : NULL;
    return d ? d : find_decomp(ks__uni_canon, ks__uni_n_canon, cp);
}

static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a - HANGUL_L < 19 && b - HANGUL_V < HANGUL_NV)
        return HANGUL_S + ((a - HANGUL_L) * HANGUL_NV + (b - HANGUL_V)) * HANGUL_NT;
    if (a - HANGUL_S < HANGUL_NS && (a - HANGUL_S) % HANGUL_NT == 0 && b - HANGUL_T - 1 < HANGUL_NT - 1)
        return a + (b - HANGUL_T);
    if (b < 0x300) return 0; /* the first that joins one before it */
    uint32_t lo = 0, hi = ks__uni_n_pair;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        const ks_uni_pair *p = &ks__uni_pair[mid];
        if (p->first == a && p->second == b) return p->composed;
        if (p->first < a || (p->first == a && p->second < b))
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

/* Below the first code point that a form can change or that can join one before it, a byte test is enough:
 * U+00A0 is the first compatibility decomposition, U+00C0 the first canonical one, U+0300 the first mark. */
bool ks_uni_is_normal(int form, const char *s, size_t n)
{
    unsigned char first = form == KS_NFC ? 0xcc : form == KS_NFD ? 0xc3 : 0xc2;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] >= first) return false;
    return true;
}

/* One starter and the marks after it, with their combining classes. */
typedef struct segment {
    uint32_t *cp;
    uint8_t *ccc;
    size_t n, cap;
    uint32_t fixed[32];
    uint8_t fixed_ccc[32];
    uint32_t *spare; /* for sorting, as long as cp */
} segment;

static bool segment_add(segment *g, uint32_t cp, uint32_t ccc)
{
    if (g->n == g->cap) {
        size_t cap = 2 * g->cap;
        uint32_t *c = malloc(cap * sizeof *c * 2); /* the second half is the spare */
        uint8_t *k = malloc(cap);
        if (!c || !k) {
            free(c);
            free(k);
            return false;
        }
        memcpy(c, g->cp, g->n * sizeof *c);
        memcpy(k, g->ccc, g->n);
        if (g->cp != g->fixed) {
            free(g->cp);
            free(g->ccc);
        }
        g->cp = c;
        g->ccc = k;
        g->spare = c + cap;
        g->cap = cap;
    }
    g->cp[g->n] = cp;
    g->ccc[g->n++] = (uint8_t)ccc;
    return true;
}

/* Stable sort of marks by combining class. A counting sort where there are many: text of one million marks is legal. */
static void segment_sort(segment *g, size_t first)
{
    if (g->n - first <= 32) {
        for (size_t i = first + 1; i < g->n; i++) {
            uint32_t cp = g->cp[i];
            uint8_t ccc = g->ccc[i];
            size_t k = i;
            for (; k > first && g->ccc[k - 1] > ccc; k--) {
                g->cp[k] = g->cp[k - 1];
                g->ccc[k] = g->ccc[k - 1];
            }
            g->cp[k] = cp;
            g->ccc[k] = ccc;
        }
        return;
    }
    size_t start[257] = { 0 };
    for (size_t i = first; i < g->n; i++) start[g->ccc[i] + 1]++;
    size_t n_class[256];
    for (uint32_t c = 0; c < 256; c++) {
        n_class[c] = start[c + 1];
        start[c + 1] += start[c];
    }
    for (size_t i = first; i < g->n; i++) g->spare[start[g->ccc[i]]++] = g->cp[i];
    memcpy(g->cp + first, g->spare, (g->n - first) * sizeof *g->cp);
    size_t at = first;
    for (uint32_t c = 0; c < 256; c++) {
        memset(g->ccc + at, (int)c, n_class[c]);
        at += n_class[c];
    }
}

static void segment_compose(segment *g)
{
    if (!g->n || g->ccc[0]) return; /* marks without a starter stay */
    size_t out = 1;
    uint32_t last = 0; /* class of the last mark kept; a lower or equal one in between blocks */
    for (size_t i = 1; i < g->n; i++) {
        bool blocked = out > 1 && last >= g->ccc[i];
        uint32_t c = blocked ? 0 : compose(g->cp[0], g->cp[i]);
        if (c) {
            g->cp[0] = c;
            continue;
        }
        last = g->ccc[i];
        g->cp[out] = g->cp[i];
        g->ccc[out++] = g->ccc[i];
    }
    g->n = out;
}

static void put(ks_buf *out, uint32_t cp)
{
    if (cp < 0x80) {
        ks_buf_addc(out, (char)cp);
        return;
    }
    char b[4];
    uint32_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (uint32_t i = n; i-- > 1; cp >>= 6) b[i] = (char)(0x80 | (cp & 0x3f));
    b[0] = (char)(lead[n] | cp);
    ks_buf_add(out, b, n);
}

static void segment_flush(segment *g, ks_buf *out)
{
    for (size_t i = 0; i < g->n; i++) put(out, g->cp[i]);
    g->n = 0;
}

/* Takes one fully decomposed code point. A starter ends the segment before it, unless it composes with that. */
static bool take(segment *g, uint32_t cp, bool composing, ks_buf *out)
{
    uint32_t ccc = combining(cp);
    if (ccc) return segment_add(g, cp, ccc);
    segment_sort(g, g->n && !g->ccc[0]);
    if (composing) {
        segment_compose(g);
        uint32_t c = g->n == 1 && !g->ccc[0] ? compose(g->cp[0], cp) : 0;
        if (c) {
            g->cp[0] = c;
            return true;
        }
    }
    segment_flush(g, out);
    return segment_add(g, cp, 0);
}

void ks_uni_normalize(int form, const char *s, size_t n, ks_buf *out)
{
    bool compat = form == KS_NFKC || form == KS_NFKD, composing = form == KS_NFC || form == KS_NFKC, ok = true;
    segment g = { .cap = 32 };
    g.cp = g.fixed;
    g.ccc = g.fixed_ccc;
    const uint8_t *p = (const uint8_t *)s;
    for (size_t i = 0; i < n && ok;) {
        size_t plain = i; /* an ASCII character is settled if another one follows */
        while (plain + 1 < n && p[plain] < 0x80 && p[plain + 1] < 0x80) plain++;
        if (plain > i) {
            ok = take(&g, p[i], composing, out); /* settles what came before */
            g.n = 0;
            ks_buf_add(out, p + i, plain - i);
            i = plain;
            continue;
        }
        uint32_t len, cp = ks_uni_get(p + i, &len);
        i += len;
        uint32_t h = cp - HANGUL_S;
        if (h < HANGUL_NS) {
            ok = take(&g, HANGUL_L + h / (HANGUL_NV * HANGUL_NT), composing, out) &&
                 take(&g, HANGUL_V + h / HANGUL_NT % HANGUL_NV, composing, out) &&
                 (h % HANGUL_NT == 0 || take(&g, HANGUL_T + h % HANGUL_NT, composing, out));
            continue;
        }
        const ks_uni_decomp *d = decomposition(cp, compat);
        if (!d) {
            ok = take(&g, cp, composing, out);
            continue;
        }
        for (uint32_t k = 0; k < d->n && ok; k++) ok = take(&g, ks__uni_decomp_data[d->at + k], composing, out);
    }
    segment_sort(&g, g.n && !g.ccc[0]);
    if (composing) segment_compose(&g);
    segment_flush(&g, out);
    if (g.cp != g.fixed) {
        free(g.cp);
        free(g.ccc);
    }
    if (!ok) out->failed = true;
}
