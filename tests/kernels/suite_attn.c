/* ATTN: paged caches of any type, evaluation in double or as a scalar float program. Not thread-safe. */
#include "suite.h"

#include <math.h>
#include <stdlib.h>

#define R(v) suite_round(v, single)

typedef struct shape {
    uint32_t n_rows, pos, n_heads, n_kv, d_k, d_v, page_tok, window, chunk, softcap, sinks, sel, v_in_k;
} shape;

static uint32_t attn_unit(const void *args, uint32_t b, size_t i)
{
    const ks_attn_args *a = args;
    uint32_t column = (uint32_t)(i % a->o_stride), per_unit = a->n_heads / a->n_kv_heads * a->d_v;
    if (b) return UINT32_MAX; /* `part`: nobody's while the keys are not split */
    return column < a->n_heads * a->d_v ? (uint32_t)(i / a->o_stride) * a->n_kv_heads + column / per_unit : UINT32_MAX;
}

static double e4m3(uint8_t b)
{
    int e = b >> 3 & 15, m = b & 7;
    double v = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    return (b & 0x7f) == 0x7f ? (double)NAN : b & 0x80 ? -v : v;
}

static double elem(uint32_t type, const void *base, size_t i)
{
    if (type == KS_T_F32) return (double)((const float *)base)[i];
    if (type == KS_T_F8E4M3) return e4m3(((const uint8_t *)base)[i]);
    uint32_t u = (uint32_t)((const uint16_t *)base)[i] << 16;
    float f;
    memcpy(&f, &u, 4);
    return (double)f;
}

static double key_elem(const ks_attn_args *a, uint32_t type, uint32_t j, size_t column)
{
    const uint8_t *page = (const uint8_t *)a->k + a->pages[j / a->page_tok] * a->k_page_bytes;
    return elem(type, page, (size_t)(j % a->page_tok) * a->k_stride + column);
}

static double value_elem(const ks_attn_args *a, uint32_t type, uint32_t j, size_t column)
{
    const uint8_t *page = (const uint8_t *)a->v + a->pages[j / a->page_tok] * a->v_page_bytes;
    return elem(type, page, (size_t)(j % a->page_tok) * a->v_stride + column);
}

static bool sees(const ks_attn_args *a, uint32_t p, uint32_t j)
{
    return j <= p && (!a->window || j + a->window > p) && (!a->chunk || j / a->chunk == p / a->chunk);
}

/* One head of one row; s has room for all keys. */
static void eval_head(const ks_attn_args *a, uint32_t type, uint32_t r, uint32_t h, bool single, double *s,
                      double *ret_y, double *ret_mag)
{
    uint32_t p = a->pos + r, kvh = h / (a->n_heads / a->n_kv_heads), n = a->sel ? a->n_sel[r] : p + 1;
    const uint32_t *sel = a->sel ? a->sel + (size_t)r * a->sel_stride : NULL;
    double max = a->sinks ? (double)a->sinks[h] : -INFINITY, condition = 0, den;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = sel ? sel[i] : i;
        double dot = 0, mag = 0;
        for (uint32_t d = 0; sees(a, p, j) && d < a->d_k; d++) {
            double f = R((double)a->q[r * a->q_stride + (size_t)h * a->d_k + d] *
                         key_elem(a, type, j, (size_t)kvh * a->d_k + d));
            dot = R(dot + f);
            mag += fabs(f);
        }
        s[i] = R(dot * (double)a->scale);
        if (a->softcap != 0) s[i] = R((double)a->softcap * R(tanh(R(s[i] / (double)a->softcap))));
        if (!sees(a, p, j)) continue;
        max = fmax(max, s[i]);
        condition = fmax(condition, mag * fabs((double)a->scale) + fabs(s[i]));
    }
    den = a->sinks ? R(exp(R((double)a->sinks[h] - max))) : 0;
    for (uint32_t i = 0; i < n; i++) {
        s[i] = sees(a, p, sel ? sel[i] : i) ? R(exp(R(s[i] - max))) : 0;
        den = R(den + s[i]);
    }
    for (uint32_t d = 0; d < a->d_v; d++) {
        double sum = 0, mag = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (s[i] == 0) continue; /* unseen: what lies there may be anything */
            double f = R(s[i] * value_elem(a, type, sel ? sel[i] : i, (size_t)kvh * a->d_v + d));
            sum = R(sum + f);
            mag += fabs(f);
        }
        ret_y[d] = den > 0 ? R(sum / den) : 0;
        ret_mag[d] =
            den > 0 ? mag / den * (1 + condition) : 0; /* an error of a score is a relative one of its weight */
    }
}

static void eval(const void *args, uint32_t type, bool single, double *ret_y, double *ret_mag)
{
    const ks_attn_args *a = args;
    double *s = calloc((size_t)a->pos + a->n_rows + 1, sizeof *s);
    for (uint32_t r = 0; r < a->n_rows; r++) {
        for (uint32_t h = 0; h < a->n_heads; h++) {
            size_t at = r * a->o_stride + (size_t)h * a->d_v;
            if (s) eval_head(a, type, r, h, single, s, ret_y + at, ret_mag + at);
        }
    }
    free(s); /* without memory the zeros of ret_y and ret_mag make the comparison fail, which is seen */
}

#define EVAL(TYPE)                                                                         \
    static void eval_##TYPE(const void *args, bool single, double *ret_y, double *ret_mag) \
    {                                                                                      \
        eval(args, KS_T_##TYPE, single, ret_y, ret_mag);                                   \
    }
EVAL(F32)
EVAL(BF16)
EVAL(F8E4M3)
#undef EVAL

static void put(suite *s, uint32_t type, uint8_t *at, bool used)
{
    float f = used ? suite_normal(s) : NAN; /* a kernel that multiplies unseen values by 0 shows NaN */
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t h = (uint16_t)(u >> 16);
    uint8_t b = (uint8_t)(used ? suite_random(s) >> 56 & 0xbf : 0x7f); /* up to 1.875 and denormals */
    if (type == KS_T_F32) memcpy(at, &f, 4);
    if (type == KS_T_BF16) memcpy(at, &h, 2);
    if (type == KS_T_F8E4M3) *at = b;
}

/* Pages of n_tok tokens in shuffled order; what lies beyond the last token is NaN, or unmapped if it is the last page.
 */
static uint8_t *make_cache(suite *s, const char *name, const shape *sh, const uint32_t *pages, uint32_t n_pages,
                           uint32_t stride, size_t *ret_page_bytes)
{
    uint32_t type = s->row->wtype, n_tok = sh->pos + sh->n_rows, size = ks_type_bits(type) / 8;
    size_t page = (size_t)sh->page_tok * stride * size;
    uint32_t in_last = n_tok - (n_pages - 1) * sh->page_tok;
    bool cut = pages[n_pages - 1] == n_pages - 1;
    uint8_t *p = suite_input(s, name, (n_pages - 1) * page + (cut ? (size_t)in_last * stride * size : page));
    *ret_page_bytes = page;
    for (uint32_t j = 0; p && j < n_pages * sh->page_tok; j++) {
        if (j >= n_tok && cut) break;
        uint8_t *row = p + pages[j / sh->page_tok] * page + (size_t)(j % sh->page_tok) * stride * size;
        for (uint32_t i = 0; i < stride; i++) put(s, type, row + (size_t)i * size, j < n_tok);
    }
    return p;
}

static void make_sel(suite *s, ks_attn_args *a, const shape *sh)
{
    uint32_t n_tok = sh->pos + sh->n_rows, *n_sel = suite_input(s, "n_sel", (size_t)sh->n_rows * 4);
    uint32_t *sel = suite_input(s, "sel", (size_t)sh->n_rows * n_tok * 4);
    if (!sel) return;
    for (uint32_t r = 0; r < sh->n_rows; r++) {
        uint32_t n = 0;
        for (uint32_t j = 0; j < n_tok; j++) /* now and then one that the row may not see; row 3 has none */
            if (suite_below(s, 3) == 0 && r != 3) sel[(size_t)r * n_tok + n++] = j;
        n_sel[r] = n;
    }
    a->sel = sel;
    a->n_sel = n_sel;
    a->sel_stride = n_tok;
}

/* Each row alone has the bits it had among the others. */
static int check_single_rows(suite *s, const ks_attn_args *a)
{
    const suite_buf *o = s->bufs;
    while (!o->output) o++;
    for (uint32_t r = 0; r < a->n_rows; r += 1 + a->n_rows / 3) {
        ks_attn_args one = *a;
        one.n_rows = 1;
        one.pos += r;
        one.q += r * a->q_stride;
        if (a->sel) one.sel += (size_t)r * a->sel_stride;
        if (a->sel) one.n_sel += r;
        memcpy(o->p, o->init, o->bytes);
        int rc = suite_call(s, s->row, &one, 0, a->n_kv_heads);
        if (rc) return rc;
        if (!suite_same(a->o, (const float *)(const void *)o->whole + r * a->o_stride, (size_t)a->n_heads * a->d_v))
            return suite_fail(s, KS_KRN_SPLIT, "row %u alone has other bits than among %u rows", r, a->n_rows);
    }
    return 0;
}

static const suite_buf *output_of(const suite *s, const char *name)
{
    const suite_buf *o = s->bufs;
    while (strcmp(o->name, name) != 0) o++;
    return o;
}

/* All units of one kind of call, cut in two at random, the later part first. */
static int call_cut(suite *s, const ks_attn_args *a)
{
    uint32_t n = a->n_rows * a->n_kv_heads, cut = suite_below(s, n + 1);
    int rc = suite_call(s, s->row, a, cut, n);
    return rc ? rc : suite_call(s, s->row, a, 0, cut);
}

/* Spans one by one or some together, from the last to the first, then merged: the bits of the whole. */
static int check_spans(suite *s, const ks_attn_args *whole)
{
    const suite_buf *o = output_of(s, "o");
    ks_attn_args a = *whole;
    int rc = 0;
    a.part = (float *)(void *)output_of(s, "part")->p;
    memcpy(o->p, o->init, o->bytes);
    for (uint32_t end = a.part_first + a.part_spans; !rc && end > a.part_first; end = a.span_begin) {
        a.span_end = end;
        a.span_begin = a.part_first + suite_below(s, end - a.part_first);
        rc = call_cut(s, &a);
    }
    if (rc) return rc;
    if (memcmp(o->p, o->init, o->bytes) != 0)
        return suite_fail(s, KS_KRN_OUTSIDE, "a call for some of the spans writes 'o'");
    a.span_begin = a.part_first;
    a.span_end = a.part_first + a.part_spans;
    a.part_merge = 1;
    if ((rc = call_cut(s, &a))) return rc;
    if (!suite_same((const float *)(const void *)o->p, (const float *)(const void *)o->whole, o->bytes / 4))
        return suite_fail(s, KS_KRN_SPLIT, "%u spans merged have other bits than the whole", a.part_spans);
    return 0;
}

/* A host of ABI 1.0 has no `part`: what lies there is not the kernel's business. */
static int check_old_size(suite *s, const ks_attn_args *whole)
{
    const suite_buf *o = output_of(s, "o");
    ks_attn_args a = *whole;
    a.size = offsetof(ks_attn_args, part);
    a.part = (float *)(uintptr_t)64;
    memcpy(o->p, o->init, o->bytes);
    int rc = suite_call(s, s->row, &a, 0, a.n_rows * a.n_kv_heads);
    if (!rc && !suite_same((const float *)(const void *)o->p, (const float *)(const void *)o->whole, o->bytes / 4))
        rc = suite_fail(s, KS_KRN_SPLIT, "arguments of the size of ABI 1.0 give other bits");
    return rc;
}

static int attn_case(suite *s, const shape *sh)
{
    uint32_t n_tok = sh->pos + sh->n_rows, n_pages = (n_tok + sh->page_tok - 1) / sh->page_tok;
    ks_attn_args a = { .size = sizeof a, .n_rows = sh->n_rows, .n_heads = sh->n_heads, .n_kv_heads = sh->n_kv };
    a.d_k = sh->d_k;
    a.d_v = sh->d_v;
    a.page_tok = sh->page_tok;
    a.pos = sh->pos;
    a.window = sh->window;
    a.chunk = sh->chunk;
    a.scale = 1.0f / sqrtf((float)sh->d_k);
    a.softcap = sh->softcap ? 5.0f : 0.0f;
    a.q_stride = (size_t)sh->n_heads * sh->d_k + suite_below(s, 5);
    a.o_stride = (size_t)sh->n_heads * sh->d_v + suite_below(s, 5);
    (void)snprintf(
        s->what, sizeof s->what,
        "%u rows at %u, %u/%u heads, d_k %u, d_v %u, page %u, window %u, chunk %u, softcap %u, sinks %u, sel %u",
        sh->n_rows, sh->pos, sh->n_heads, sh->n_kv, sh->d_k, sh->d_v, sh->page_tok, sh->window, sh->chunk, sh->softcap,
        sh->sinks, sh->sel);
    size_t n_q = (sh->n_rows - 1) * a.q_stride + (size_t)sh->n_heads * sh->d_k;
    float *q = suite_input(s, "q", n_q * 4);
    suite_normals(s, q, n_q, suite_below(s, 3) == 0 ? 6.0f : 1.0f); /* flat and peaked softmaxes */
    a.q = q;
    uint32_t *pages = suite_input(s, "pages", (size_t)n_pages * 4);
    for (uint32_t i = 0; pages && i < n_pages; i++) {
        uint32_t other = suite_below(s, i + 1);
        pages[i] = pages[other];
        pages[other] = i;
    }
    if (pages) {
        a.pages = pages;
        a.k_stride = sh->n_kv * sh->d_k + suite_below(s, 3);
        a.k = make_cache(s, "k", sh, pages, n_pages, a.k_stride, &a.k_page_bytes);
        if (sh->v_in_k) {
            a.v = a.k;
            a.v_stride = a.k_stride;
            a.v_page_bytes = a.k_page_bytes;
        } else {
            a.v_stride = sh->n_kv * sh->d_v + suite_below(s, 3);
            a.v = make_cache(s, "v", sh, pages, n_pages, a.v_stride, &a.v_page_bytes);
        }
    }
    if (sh->sinks) {
        float *sinks = suite_input(s, "sinks", (size_t)sh->n_heads * 4);
        suite_normals(s, sinks, sh->n_heads, 2);
        a.sinks = sinks;
    }
    if (sh->sel) make_sel(s, &a, sh);
    a.o = suite_output(s, "o", ((sh->n_rows - 1) * a.o_stride + (size_t)sh->n_heads * sh->d_v) * 4);
    bool spans = s->row->flags & KS_KF_SPANS;
    a.part_first = suite_below(s, 2) && sh->window ? sh->pos / KS_ATTN_SPAN / 2 : 0;
    if (a.part_first > (sh->pos > sh->window ? sh->pos - sh->window : 0) / KS_ATTN_SPAN) a.part_first = 0;
    a.part_spans = n_tok / KS_ATTN_SPAN + 1 - a.part_first;
    a.part_stride = ((sh->d_v + 15) & ~15u) + 16 * (1 + suite_below(s, 2));
    if (spans) (void)suite_output(s, "part", (size_t)sh->n_rows * sh->n_heads * a.part_spans * a.part_stride * 4);
    suite_case c = {
        .args = &a, .n_units = sh->n_rows * sh->n_kv, .elem_bytes = 4, .unit_of = attn_unit, .eps = 0x1p-22
    };
    c.eval = s->row->wtype == KS_T_F32 ? eval_F32 : s->row->wtype == KS_T_BF16 ? eval_BF16 : eval_F8E4M3;
    int rc = suite_check(s, &c);
    if (!rc) rc = check_single_rows(s, &a);
    if (!rc && spans) rc = check_spans(s, &a);
    if (!rc) rc = check_old_size(s, &a);
    suite_free(s);
    return rc;
}

int suite_attn(suite *s)
{
    static const shape shapes[] = {
        /* rows, pos, heads, kv, d_k, d_v, page, window, chunk, softcap, sinks, sel, v in k */
        { 1, 0, 1, 1, 64, 64, 16, 0, 0, 0, 0, 0, 0 },
        { 1, 0, 3, 3, 5, 3, 4, 0, 0, 0, 0, 0, 0 },
        { 20, 0, 8, 2, 64, 64, 16, 0, 0, 0, 0, 0, 0 },
        { 5, 33, 12, 4, 80, 48, 16, 0, 0, 0, 1, 0, 0 },
        { 7, 100, 4, 4, 128, 128, 64, 50, 0, 0, 0, 0, 0 },
        { 9, 61, 6, 2, 32, 40, 32, 1, 0, 1, 1, 0, 0 },
        { 9, 120, 6, 2, 32, 40, 64, 0, 64, 0, 0, 0, 0 },
        { 6, 90, 4, 1, 24, 20, 7, 33, 40, 1, 1, 0, 0 },
        { 6, 90, 4, 1, 24, 20, 16, 0, 0, 0, 0, 1, 0 },
        { 5, 40, 5, 1, 36, 33, 16, 20, 0, 1, 1, 1, 0 },
        { 3, 70, 70, 1, 72, 64, 16, 0, 0, 0, 0, 0, 1 },
        { 2, 20, 2, 1, 600, 580, 16, 0, 0, 0, 0, 0, 0 },
        { 2, 5, 40, 1, 576, 512, 16, 0, 0, 0, 0, 0, 1 },
        { 3, 1022, 2, 1, 16, 16, 64, 0, 0, 0, 1, 0, 0 },
        { 2, 2500, 4, 2, 16, 8, 128, 0, 0, 0, 0, 0, 0 },
        { 2, 2500, 2, 1, 16, 8, 128, 600, 0, 0, 1, 0, 0 },
        { 4, 2300, 2, 1, 16, 8, 48, 0, 0, 0, 0, 1, 0 },
        { 70, 3, 2, 1, 16, 24, 16, 0, 0, 0, 0, 0, 0 },
        { 9, 1020, 6, 6, 64, 64, 32, 0, 0, 0, 1, 0, 0 },
        { 5, 60, 4, 1, 96, 1100, 16, 0, 0, 0, 0, 0, 0 },
        { 6, 2040, 4, 2, 64, 72, 64, 1100, 0, 1, 1, 0, 0 },
        { 12, 45, 9, 3, 32, 32, 8, 0, 30, 0, 0, 0, 0 },
        /* few queries alone, many together: kernels may do these differently, with the same bits */
        { 3, 1010, 16, 2, 128, 128, 16, 0, 0, 0, 0, 0, 0 },
        { 2, 75, 5, 1, 16, 192, 16, 0, 0, 1, 1, 0, 0 },
        { 3, 50, 8, 1, 576, 512, 16, 0, 0, 0, 0, 0, 1 },
        { 4, 130, 14, 2, 256, 64, 32, 40, 0, 0, 0, 0, 0 },
        { 2, 90, 9, 3, 48, 128, 16, 0, 0, 0, 1, 1, 0 },
        /* more queries than a tile of any kernel has, keys in and out of a window within one block of keys */
        { 18, 130, 8, 1, 128, 64, 16, 70, 0, 0, 1, 0, 0 },
        { 33, 1000, 4, 1, 64, 64, 16, 0, 0, 1, 0, 0, 0 },
        { 5, 200, 4, 2, 64, 64, 16, 90, 0, 1, 1, 1, 0 },
    };
    uint32_t type = s->row->wtype;
    if (type != KS_T_F32 && type != KS_T_BF16 && type != KS_T_F8E4M3)
        return suite_fail(s, -1, "cache type %u is unknown to this suite", type);
    int rc = 0;
    for (uint32_t i = 0; !rc && i < sizeof shapes / sizeof shapes[0]; i++) rc = attn_case(s, &shapes[i]);
    return rc;
}
