/* Reads GPTQ and AWQ matrices. The files hold (in, out) with eight codes a word: GPTQ packs eight inputs of one output,
 * AWQ eight outputs of one input. Everything here says "columns" for inputs and "rows" for outputs, as the store does.
 */
#include "store/packed.h"
#include "base/base.h"
#include "base/hash.h"
#include "base/num.h"
#include "store/conv.h"
#include <inttypes.h>

#define NAME_BYTES 640u
#define CHUNK 1024u /* elements looked at in one go when a checkpoint is opened */

/* ---- finding */

/* name with its last word, "weight", replaced */
static const ks_tensor *beside(const ks_ckpt *c, const char *name, const char *tail)
{
    char full[NAME_BYTES];
    int n = snprintf(full, sizeof full, "%.*s%s", (int)(strlen(name) - strlen("weight")), name, tail);
    return n > 0 && n < (int)sizeof full ? ks_ckpt_find(c, full) : NULL;
}

static uint64_t groups_of(const ks_src *s)
{
    return s->cols / s->group;
}

static int check_matrix(const ks_src *s, const ks_tensor *t, uint64_t rows, uint64_t cols, ks_err *err)
{
    if (t->rank == 2 && t->shape[0] == rows && t->shape[1] == cols) return 0;
    return ks_fail(err, KS_E_FORMAT,
                   "tensor '%s' of %" PRIu64 " x %" PRIu32 " in groups of %" PRIu32 " needs '%s' of shape [%" PRIu64
                   ", %" PRIu64 "]",
                   s->t->name, s->rows, s->cols, s->group, t->name, rows, cols);
}

/* Groups [k, k + n) of the order; ret_trivial becomes false where a column is not in the group of its place. */
static int check_order(const ks_src *s, const uint8_t *order, uint64_t k, uint64_t n, bool *ret_trivial, ks_err *err)
{
    for (uint64_t i = 0; i < n; i++) {
        int32_t g;
        memcpy(&g, order + i * sizeof g, sizeof g);
        if (g < 0 || (uint64_t)g >= groups_of(s))
            return ks_fail(err, KS_E_FORMAT,
                           "tensor '%s' puts column %" PRIu64 " into group %" PRId32 " of %" PRIu64
                           ": the file is damaged",
                           s->order->name, k + i, g, groups_of(s));
        if ((uint64_t)g != (k + i) / s->group) *ret_trivial = false;
    }
    return 0;
}

static int read_order(const ks_ckpt *c, const ks_src *s, bool *ret_trivial, ks_err *err)
{
    uint8_t part[CHUNK * 4];
    *ret_trivial = true;
    for (uint64_t k = 0; k < s->cols; k += CHUNK) {
        uint64_t n = KS_MIN((uint64_t)CHUNK, s->cols - k);
        int rc = ks_ckpt_read(c, s->order, k * 4, part, (size_t)n * 4, err);
        if (rc == 0) rc = check_order(s, part, k, n, ret_trivial, err);
        if (rc != 0) return rc;
    }
    return 0;
}

/* True if BF16 holds every scale. Most F16 files say no in the first few, so little is read. */
static int read_scales(const ks_ckpt *c, const ks_src *s, bool *ret_fit, ks_err *err)
{
    uint8_t part[CHUNK * 8];
    float f32[CHUNK];
    const ks_conv *conv = ks__conv_find(s->aux->type);
    const uint64_t total = groups_of(s) * s->rows;
    *ret_fit = true;
    for (uint64_t i = 0; i < total && conv->wide && *ret_fit; i += CHUNK) {
        uint64_t n = KS_MIN((uint64_t)CHUNK, total - i);
        int rc = ks_ckpt_read(c, s->aux, i * conv->bytes, part, (size_t)n * conv->bytes, err);
        if (rc != 0) return rc;
        conv->to_f32(part, f32, (size_t)n);
        for (uint64_t j = 0; j < n; j++) *ret_fit = *ret_fit && (ks_f32_bits(f32[j]) & 0xffffu) == 0;
    }
    return 0;
}

/* What the shapes say; q->scheme is GPTQ or AWQ. */
static int shape_of(const ks_qconf *q, ks_src *s, ks_err *err)
{
    const bool gptq = q->scheme == KS_SCHEME_GPTQ;
    const uint64_t cols = s->t->shape[0] * (gptq ? 8 : 1), rows = s->t->shape[1] * (gptq ? 1 : 8);
    const uint64_t group = q->group ? q->group : cols; /* the file's size bounds the products */
    if (cols == 0 || cols > UINT32_MAX || rows == 0 || rows % 8 != 0 || cols % group != 0)
        return ks_fail(err, KS_E_FORMAT,
                       "tensor '%s' is a matrix of %" PRIu64 " x %" PRIu64
                       ": its rows must be a multiple of 8, its columns one of the group, %" PRIu64,
                       s->t->name, rows, cols, group);
    s->scheme = q->scheme;
    s->rank = 2;
    s->shape[0] = s->rows = rows;
    s->shape[1] = cols;
    s->cols = (uint32_t)cols;
    s->group = (uint32_t)group;
    s->block_rows = 1;
    s->symmetric = q->symmetric;
    s->zero_less_one = q->zero_less_one;
    return 0;
}

int ks__packed_find(const ks_ckpt *c, const ks_qconf *q, const char *name, ks_src *s, ks_err *err)
{
    s->zeros = beside(c, name, "qzeros");
    s->aux = beside(c, name, "scales");
    s->order = beside(c, name, "g_idx");
    if ((q->scheme != KS_SCHEME_GPTQ && q->scheme != KS_SCHEME_AWQ) || s->t->rank != 2 || s->t->type != KS_T_I32 ||
        !s->zeros || s->zeros->type != KS_T_I32 || !s->aux || !ks__conv_find(s->aux->type))
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "tensor '%s' is packed: it needs type i32, 'qzeros' (i32) and 'scales' beside it, and a "
                       "quantization_config of gptq or awq in config.json",
                       s->t->name);
    if (q->scheme == KS_SCHEME_AWQ ? s->order != NULL : q->ordered && !s->order)
        return ks_fail(err, KS_E_UNSUPPORTED, "tensor '%s' has %s 'g_idx' beside it, which contradicts config.json",
                       s->t->name, s->order ? "a" : "no");
    bool trivial = true, fit = true;
    int rc = shape_of(q, s, err);
    if (rc == 0) rc = check_matrix(s, s->zeros, groups_of(s), s->rows / 8, err);
    if (rc == 0) rc = check_matrix(s, s->aux, groups_of(s), s->rows, err);
    if (rc == 0 && s->order && (s->order->type != KS_T_I32 || s->order->rank != 1 || s->order->shape[0] != s->cols))
        rc = ks_fail(err, KS_E_FORMAT, "tensor '%s' must be %" PRIu32 " numbers of type i32", s->order->name, s->cols);
    if (rc == 0 && s->order) rc = read_order(c, s, &trivial, err);
    s->exact = s->symmetric && trivial && (s->group == 32 || s->group == 64 || s->group == 128);
    if (rc == 0 && s->exact) rc = read_scales(c, s, &fit, err);
    s->exact = s->exact && fit;
    return rc;
}

/* ---- the window */

/* Where the parts of a window lie in the scratch, in bytes, and how many words a line of them has. */
typedef struct window {
    size_t zeros, order, raw_scales, scales, end; /* the codes are at 0 */
    uint64_t words, word_lines, zero_words;
} window;

static window window_of(const ks_src *s, uint64_t row, uint64_t n)
{
    window w;
    w.zero_words = (row + n - 1) / 8 - row / 8 + 1;
    w.words = s->scheme == KS_SCHEME_GPTQ ? n : w.zero_words;
    w.word_lines = s->scheme == KS_SCHEME_GPTQ ? s->cols / 8 : s->cols;
    w.zeros = ks_align_up((size_t)(w.words * w.word_lines * 4), 64);
    w.order = w.zeros + ks_align_up((size_t)(w.zero_words * groups_of(s) * 4), 64);
    w.raw_scales = w.order + ks_align_up(s->order ? (size_t)s->cols * 4 : 0, 64);
    w.scales = w.raw_scales + ks_align_up((size_t)(n * groups_of(s) * 8), 64); /* 8 bytes each at most */
    w.end = w.scales + ks_align_up((size_t)(n * groups_of(s) * sizeof(float)), 64);
    return w;
}

size_t ks__packed_raw_bytes(const ks_src *s, uint64_t n)
{
    return window_of(s, 7, n).end; /* the start that touches the most words */
}

/* Elements [first, first + n) of each of `lines` lines of a matrix. */
static int get_lines(ks_fetch *f, const ks_tensor *t, uint64_t lines, uint64_t first, uint64_t n, uint8_t *dst,
                     ks_err *err)
{
    const uint64_t width = ks_type_bits(t->type) / 8, pitch = t->shape[1];
    const bool whole = n == pitch; /* lines follow each other: one read */
    const size_t bytes = (size_t)(n * width * (whole ? lines : 1));
    for (uint64_t i = 0; i < (whole ? 1 : lines); i++, dst += bytes) {
        int rc = ks_ckpt_read(f->c, t, (i * pitch + first) * width, dst, bytes, err);
        if (rc != 0) return rc;
        f->hash = ks_hash64(dst, bytes, f->hash);
    }
    return 0;
}

static uint32_t word_at(const uint8_t *p, uint64_t i)
{
    uint32_t v;
    memcpy(&v, p + i * 4, 4);
    return v;
}

/* Where in its word eight rows' values lie: GPTQ packs (zero points) in order, AWQ as 0, 2, 4, 6, 1, 3, 5, 7. */
static uint32_t row_shift(const ks_src *s, uint64_t row)
{
    uint32_t j = (uint32_t)(row % 8);
    return s->scheme == KS_SCHEME_GPTQ ? j * 4 : j % 2 * 16 + j / 2 * 4;
}

/* The stored zero point of a group. 16 has no nibble: 15 plus one is 0, as the quantizer meant it. */
static int zero_at(const ks_fetch *f, const ks_src *s, const window *w, uint64_t g, uint64_t row)
{
    uint32_t v = word_at(f->raw + w->zeros, g * w->zero_words + row / 8 - f->first / 8) >> row_shift(s, row);
    return (int)((v + s->zero_less_one) & 15);
}

static int code_at(const ks_fetch *f, const ks_src *s, const window *w, uint64_t k, uint64_t row)
{
    if (s->scheme == KS_SCHEME_GPTQ) return (int)(word_at(f->raw, k / 8 * w->words + row - f->first) >> k % 8 * 4 & 15);
    return (int)(word_at(f->raw, k * w->words + row / 8 - f->first / 8) >> row_shift(s, row) & 15);
}

/* Whoever says "symmetric" promises zero points of 8; another one is another format, or damage. */
static int check_zeros(const ks_fetch *f, const ks_src *s, const window *w, ks_err *err)
{
    for (uint64_t g = 0; s->symmetric && g < groups_of(s); g++) {
        for (uint64_t row = f->first; row < f->first + f->count; row++) {
            int z = zero_at(f, s, w, g, row);
            if (z != 8)
                return ks_fail(err, KS_E_FORMAT,
                               "tensor '%s' has zero point %d at [%" PRIu64 ", %" PRIu64
                               "], but quantization_config says that all are 8 (symmetric)",
                               s->zeros->name, z, g, row);
        }
    }
    return 0;
}

static int convert_scales(const ks_fetch *f, const ks_src *s, const window *w, ks_err *err)
{
    float *scales = (float *)(void *)(f->raw + w->scales);
    const size_t n = (size_t)(f->count * groups_of(s));
    ks__conv_find(s->aux->type)->to_f32(f->raw + w->raw_scales, scales, n);
    size_t i = ks__find_nonfinite(scales, n);
    if (i == n) return 0;
    return ks_fail(err, KS_E_FORMAT, "tensor '%s' holds %s at [%" PRIu64 ", %" PRIu64 "]: the file is damaged",
                   s->aux->name, scales[i] != scales[i] ? "NaN" : "an infinity", i / f->count, f->first + i % f->count);
}

int ks__packed_load(ks_fetch *f, const ks_src *s, uint64_t row, uint64_t n, ks_err *err)
{
    const window w = window_of(s, row, n);
    const bool gptq = s->scheme == KS_SCHEME_GPTQ;
    bool trivial;
    f->first = row;
    f->count = n;
    int rc = get_lines(f, s->t, w.word_lines, gptq ? row : row / 8, w.words, f->raw, err);
    if (rc == 0) rc = get_lines(f, s->zeros, groups_of(s), row / 8, w.zero_words, f->raw + w.zeros, err);
    if (rc == 0) rc = get_lines(f, s->aux, groups_of(s), row, n, f->raw + w.raw_scales, err);
    if (rc == 0 && s->order) {
        rc = ks_ckpt_read(f->c, s->order, 0, f->raw + w.order, (size_t)s->cols * 4, err);
        if (rc == 0) f->hash = ks_hash64(f->raw + w.order, (size_t)s->cols * 4, f->hash);
        /* again: the file may have changed since it was opened, and a group is an index */
        if (rc == 0) rc = check_order(s, f->raw + w.order, 0, s->cols, &trivial, err);
    }
    if (rc != 0 || f->dry) return rc;
    rc = convert_scales(f, s, &w, err);
    return rc != 0 ? rc : check_zeros(f, s, &w, err);
}

void ks__packed_column(const ks_fetch *f, const ks_src *s, uint32_t k, uint64_t row, uint64_t n, float *dst)
{
    const window w = window_of(s, f->first, f->count);
    const uint64_t g = s->order ? word_at(f->raw + w.order, k) : k / s->group;
    const float *scale = (const float *)(const void *)(f->raw + w.scales) + g * f->count + (row - f->first);
    for (uint64_t i = 0; i < n; i++)
        dst[i] = scale[i] * (float)(code_at(f, s, &w, k, row + i) - zero_at(f, s, &w, g, row + i));
}

void ks__packed_codes(const ks_fetch *f, const ks_src *s, uint64_t row, int8_t *codes, uint16_t *scales)
{
    const window w = window_of(s, f->first, f->count);
    const float *scale = (const float *)(const void *)(f->raw + w.scales) + (row - f->first);
    for (uint32_t k = 0; k < s->cols; k++) codes[k] = (int8_t)(code_at(f, s, &w, k, row) - 8);
    for (uint64_t g = 0; g < groups_of(s); g++) scales[g] = ks_f32_to_bf16(scale[g * f->count]);
}
