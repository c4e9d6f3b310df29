/* STORE: floats of all kinds into a paged cache, held against the reference bit for bit. Not thread-safe. */
#include "suite.h"

#include <math.h>

/* Of an element of the cache: the row that writes it, or nobody. */
static uint32_t store_unit(const void *args, uint32_t b, size_t i)
{
    const ks_store_args *a = args;
    size_t in_token = i % a->y_stride, token = i / a->y_stride;
    (void)b;
    if (in_token < a->col || in_token >= (size_t)a->col + a->n) return UINT32_MAX;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        uint32_t pos = a->pos + r;
        if ((size_t)a->pages[pos / a->page_tok] * a->page_tok + pos % a->page_tok == token) return r;
    }
    return UINT32_MAX;
}

/* Where roundings change: ties, the ends of the formats, their steps near zero, and what is no number. */
static float hard(suite *s)
{
    static const float edges[] = {
        0.0f,      -0.0f,       0x1p-9f,      0x1p-10f,    0x1.8p-9f, 0x1p-6f,  0x1.fp-7f,
        0x1.cp-7f, 448.0f,      464.0f,       480.0f,      1e30f,     0x1p-149, 0x1p-126f,
        INFINITY,  0x1.01p+0f,  0x1.03p+0f,   0x1.fffp+0f, 0x1.1p+3f, 0x1.3p-3, 0x1.5p+8f,
        NAN,       0x1.fep127f, 0x1.ffp+127f, 0x1.7p-8f,   0x1p-11f,  3.0f,     0x1.0003p5f
    };
    float f = edges[suite_below(s, sizeof edges / sizeof edges[0])];
    if (suite_below(s, 2)) f = suite_normal(s) * exp2f((float)suite_below(s, 24) - 14.0f);
    if (suite_below(s, 8) == 0) {
        uint32_t u = (uint32_t)(suite_random(s) >> 32);
        memcpy(&f, &u, 4);
    }
    return suite_below(s, 2) ? f : -f;
}

static int store_case(suite *s, uint32_t n_rows, uint32_t pos, uint32_t n, uint32_t page_tok)
{
    uint32_t size = ks_type_bits(s->row->wtype) / 8, n_pages = (pos + n_rows + page_tok - 1) / page_tok;
    ks_store_args a = { .size = sizeof a, .n_rows = n_rows, .n = n, .pos = pos, .page_tok = page_tok };
    a.col = suite_below(s, 5);
    a.y_stride = a.col + n + suite_below(s, 3);
    a.x_stride = n + suite_below(s, 9);
    a.page_bytes = (size_t)page_tok * a.y_stride * size;
    (void)snprintf(s->what, sizeof s->what, "%u rows of %u at %u, page %u, column %u of %u", n_rows, n, pos, page_tok,
                   a.col, a.y_stride);
    size_t n_x = (n_rows - 1) * a.x_stride + n;
    float *x = suite_input(s, "x", n_x * 4);
    uint32_t *pages = suite_input(s, "pages", (size_t)n_pages * 4);
    a.y = suite_output(s, "y", n_pages * a.page_bytes);
    for (size_t i = 0; x && i < n_x; i++) x[i] = hard(s);
    for (uint32_t i = 0; pages && i < n_pages; i++) {
        uint32_t other = suite_below(s, i + 1);
        pages[i] = pages[other];
        pages[other] = i;
    }
    a.x = x;
    a.pages = pages;
    suite_case c = { .args = &a, .n_units = n_rows, .elem_bytes = size, .unit_of = store_unit, .exact = true };
    int rc = suite_check(s, &c);
    suite_free(s);
    return rc;
}

int suite_store(suite *s)
{
    static const uint32_t widths[] = { 1, 3, 8, 15, 16, 17, 40, 64, 128, 576 };
    uint32_t type = s->row->wtype;
    int rc = 0;
    if (type != KS_T_F32 && type != KS_T_BF16 && type != KS_T_F8E4M3)
        return suite_fail(s, -1, "cache type %u is unknown to this suite", type);
    for (uint32_t i = 0; !rc && i < 20; i++)
        rc = store_case(s, 1 + suite_below(s, 9), suite_below(s, 70), widths[i % 10], 1 + suite_below(s, 20));
    return rc;
}
