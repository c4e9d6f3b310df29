/* Builds blocks: reads source rows as floats, scales them, stores them in the weight's type and layout. */
#include "store/build.h"
#include "base/base.h"
#include "base/num.h"
#include "store/conv.h"
#include "store/quant.h"
#include <inttypes.h>
#include <math.h>

int ks__builder_init(ks_builder *b, const ks_wplan *p, const ks_ckpt *c, ks_err *err)
{
    memset(b, 0, sizeof *b);
    b->plan = p;
    b->fetch.c = c;
    b->fetch.raw = ks_calloc(p->raw_bytes + 64, 1);
    b->floats = ks_calloc(p->floats + 16, sizeof *b->floats);
    b->hasher = ks_hasher_new();
    if (b->fetch.raw && b->floats && b->hasher) return 0;
    ks__builder_fini(b);
    return ks_fail(err, KS_E_NOMEM, "out of memory: a worker that reads the model needs %zu bytes",
                   p->raw_bytes + p->floats * sizeof(float));
}

void ks__builder_fini(ks_builder *b)
{
    if (!b) return;
    free(b->fetch.raw);
    free(b->floats);
    ks_hasher_free(b->hasher);
    memset(b, 0, sizeof *b);
}

static const ks_src *src_of(const ks_pweight *w, uint32_t mat, uint32_t part)
{
    return &w->src[(size_t)mat * w->spec->n_parts + part];
}

/* The longest run from logical row r (below end) whose source rows follow each other. 0: r is padding. */
static uint32_t row_run(const ks_pweight *w, uint32_t r, uint32_t end, uint32_t *ret_part, uint64_t *ret_row)
{
    uint32_t n = 1, part;
    uint64_t row;
    if (!ks__plan_row(w, r, ret_part, ret_row)) return 0;
    while (r + n < end && ks__plan_row(w, r + n, &part, &row) && part == *ret_part && row == *ret_row + n) n++;
    return n;
}

/* Logical rows [first, end) as floats, (end - first, n_in); padding rows are left alone. */
static int fetch_rows(ks_builder *b, const ks_pweight *w, uint32_t mat, uint32_t first, uint32_t end, ks_err *err)
{
    for (uint32_t r = first, n; r < end; r += n) {
        uint32_t part;
        uint64_t row;
        n = row_run(w, r, end, &part, &row);
        if (n == 0) {
            n = 1;
            continue;
        }
        const ks_src *s = src_of(w, mat, part);
        int rc = ks__src_rows(&b->fetch, s, s->row_first + row, n, b->floats + (size_t)(r - first) * s->cols, err);
        if (rc != 0) return rc;
    }
    return 0;
}

/* The source rows [ret_lo, ret_lo + ret_n) that part p gives to the logical rows [first, end). False: none. */
static bool part_rows(const ks_pweight *w, uint32_t p, uint32_t first, uint32_t end, uint64_t *ret_lo, uint64_t *ret_n)
{
    uint64_t lo = UINT64_MAX, hi = 0, row;
    uint32_t part;
    for (uint32_t r = first; r < end; r++) {
        if (!ks__plan_row(w, r, &part, &row) || part != p) continue;
        lo = KS_MIN(lo, row);
        hi = KS_MAX(hi, row);
    }
    if (lo > hi) return false;
    *ret_lo = lo;
    *ret_n = hi - lo + 1;
    return true;
}

/* The same where the source lies the other way round: column by column, all rows of a part at once. */
static int fetch_columns(ks_builder *b, const ks_pweight *w, uint32_t mat, uint32_t first, uint32_t end, ks_err *err)
{
    for (uint32_t p = 0; p < w->spec->n_parts; p++) {
        const ks_src *s = src_of(w, mat, p);
        float *column = b->floats + (size_t)(end - first) * s->cols;
        uint64_t lo, n, row;
        uint32_t part;
        if (!part_rows(w, p, first, end, &lo, &n)) continue;
        int rc = ks__src_load(&b->fetch, s, s->row_first + lo, n, err);
        for (uint32_t k = 0; k < s->cols && rc == 0; k++) {
            rc = ks__src_column(&b->fetch, s, k, s->row_first + lo, n, column, err);
            for (uint32_t r = first; r < end && rc == 0 && !b->fetch.dry; r++)
                if (ks__plan_row(w, r, &part, &row) && part == p)
                    b->floats[(size_t)(r - first) * s->cols + k] = column[row - lo];
        }
        if (rc != 0) return rc;
    }
    return 0;
}

static int fetch(ks_builder *b, const ks_pweight *w, uint32_t mat, uint32_t first, uint32_t end, ks_err *err)
{
    int rc = w->src[0].transposed ? fetch_columns(b, w, mat, first, end, err) : fetch_rows(b, w, mat, first, end, err);
    if (rc != 0 || b->fetch.dry || w->scale == 1.0f) return rc;
    size_t n = (size_t)(end - first) * w->src[0].cols;
    for (size_t i = 0; i < n; i++) b->floats[i] *= w->scale;
    return 0;
}

/* Scaling and narrowing may leave the range of the type: that is a damaged or unusable checkpoint. What is only
 * grouped and coded was checked when it was read. */
static int check_range(const ks_builder *b, const ks_pweight *w, uint32_t mat, uint32_t first, size_t n, ks_err *err)
{
    if (w->w.group != 0 && w->scale == 1.0f) return 0;
    const size_t cols = w->src[0].cols;
    size_t i = w->w.type == KS_T_F32 ? ks__find_nonfinite(b->floats, n) : ks__find_over_bf16(b->floats, n);
    if (i == n) return 0;
    return ks_fail(err, KS_E_LIMIT, "weight '%s', matrix %" PRIu32 ": %g at [%zu, %zu] does not fit %s", w->w.name, mat,
                   (double)b->floats[i], first + i / cols, i % cols, ks_type_name(w->w.type));
}

static int build_vector(ks_builder *b, const ks_pweight *w, uint32_t mat, uint8_t *dst, ks_err *err)
{
    if (w->spec->values) {
        if (dst) memcpy(dst, w->spec->values, w->w.mat_bytes);
        return 0;
    }
    memset(b->floats, 0, w->w.mat_bytes); /* the padding */
    int rc = fetch(b, w, mat, 0, w->n_rows, err);
    if (rc != 0 || b->fetch.dry) return rc;
    if (w->spec->flags & KS_WSPEC_NEG_EXP)
        for (uint32_t i = 0; i < w->n_rows; i++) b->floats[i] = (float)-exp((double)b->floats[i]);
    rc = check_range(b, w, mat, 0, w->n_rows, err);
    if (rc == 0) memcpy(dst, b->floats, w->w.mat_bytes);
    return rc;
}

static int build_table(ks_builder *b, const ks_pweight *w, const ks_block *k, uint8_t *dst, ks_err *err)
{
    const size_t row_bytes = (size_t)(w->w.mat_bytes / w->w.n_out);
    const uint32_t step = w->src[0].transposed ? k->count : 16;
    for (uint32_t r = k->first; r < k->first + k->count; r += step) {
        uint32_t end = KS_MIN(r + step, k->first + k->count);
        size_t n = (size_t)(end - r) * w->w.n_in;
        int rc = fetch(b, w, k->mat, r, end, err);
        if (rc == 0 && !b->fetch.dry) rc = check_range(b, w, k->mat, r, n, err);
        if (rc != 0) return rc;
        if (b->fetch.dry) continue;
        if (w->w.type == KS_T_F32) {
            memcpy(dst, b->floats, n * sizeof *b->floats);
        } else {
            uint16_t *h = (uint16_t *)(void *)dst;
            for (size_t i = 0; i < n; i++) h[i] = ks_f32_to_bf16(b->floats[i]);
        }
        dst += row_bytes * (end - r);
    }
    return 0;
}

/* The rows of part p in strips whose codes and scales come from the source as they are. */
static int exact_part(ks_builder *b, const ks_pweight *w, const ks_block *k, uint32_t p, uint8_t *dst, ks_err *err)
{
    const size_t strip_bytes = ks_t16_strip_bytes(w->w.type, w->w.n_in, w->w.group);
    const uint32_t n_padded = ks_t16_n_in(w->w.n_in), first = k->first * 16, end = (k->first + k->count) * 16;
    int8_t *codes = (int8_t *)(void *)b->floats; /* the scratch of 16 rows of floats holds one row of both */
    uint16_t *scales = (uint16_t *)(void *)(codes + ks_align_up(n_padded, 64));
    const ks_src *s = src_of(w, k->mat, p);
    uint64_t row, n;
    uint32_t part;
    if (!part_rows(w, p, first, end, &row, &n)) return 0;
    int rc = ks__src_load(&b->fetch, s, s->row_first + row, n, err);
    for (uint32_t r = first; r < end && rc == 0; r++) {
        if (!ks__plan_row(w, r, &part, &row) || part != p) continue;
        memset(codes, 0, n_padded);
        rc = ks__src_codes(&b->fetch, s, s->row_first + row, codes, scales, err);
        if (rc != 0 || b->fetch.dry) continue;
        uint8_t *strip = dst + (size_t)(r / 16 - k->first) * strip_bytes;
        ks__strip_codes(w->w.type, strip, r % 16, 0, codes, n_padded);
        for (uint32_t g = 0; g < n_padded / w->w.group; g++)
            ks__strip_scale(w->w.type, strip, w->w.n_in, r % 16, g, scales[g]);
    }
    return rc;
}

static int build_exact(ks_builder *b, const ks_pweight *w, const ks_block *k, uint8_t *dst, ks_err *err)
{
    const size_t strip_bytes = ks_t16_strip_bytes(w->w.type, w->w.n_in, w->w.group);
    int rc = 0;
    for (uint32_t i = 0; i < k->count && !b->fetch.dry; i++)
        ks__strip_clear(w->w.type, w->w.n_in, w->w.group, dst + i * strip_bytes);
    for (uint32_t p = 0; p < w->spec->n_parts && rc == 0; p++) rc = exact_part(b, w, k, p, dst, err);
    return rc;
}

static int build_strips(ks_builder *b, const ks_pweight *w, const ks_block *k, uint8_t *dst, ks_err *err)
{
    const size_t strip_bytes = ks_t16_strip_bytes(w->w.type, w->w.n_in, w->w.group);
    const uint32_t step = w->src[0].transposed ? k->count : 1; /* strips read at once */
    for (uint32_t s = k->first; s < k->first + k->count; s += step) {
        uint32_t n = KS_MIN(step, k->first + k->count - s), part;
        uint64_t row;
        memset(b->floats, 0, (size_t)n * 16 * w->w.n_in * sizeof *b->floats); /* the padding rows */
        int rc = fetch(b, w, k->mat, s * 16, (s + n) * 16, err);
        if (rc == 0 && !b->fetch.dry) rc = check_range(b, w, k->mat, s * 16, (size_t)n * 16 * w->w.n_in, err);
        if (rc != 0) return rc;
        for (uint32_t i = 0; i < n * 16 && !b->fetch.dry; i += 16) {
            const float *rows[16];
            for (uint32_t j = 0; j < 16; j++)
                rows[j] = ks__plan_row(w, s * 16 + i + j, &part, &row) ? b->floats + (size_t)(i + j) * w->w.n_in : NULL;
            ks_quant_strip(w->w.type, rows, w->w.n_in, w->w.group, dst);
            dst += strip_bytes;
        }
    }
    return 0;
}

int ks__build_block(ks_builder *b, uint32_t i, uint8_t *dst, uint64_t *ret_source, ks_err *err)
{
    const ks_block *k = &b->plan->blocks[i];
    const ks_pweight *w = &b->plan->weights[k->weight];
    b->fetch.hash = 0;
    b->fetch.dry = dst == NULL;
    int rc = w->spec->flags & KS_WSPEC_VECTOR ? build_vector(b, w, k->mat, dst, err)
             : w->w.layout == KS_LAYOUT_ROWS  ? build_table(b, w, k, dst, err)
             : w->exact                       ? build_exact(b, w, k, dst, err)
                                              : build_strips(b, w, k, dst, err);
    if (rc == 0) *ret_source = b->fetch.hash;
    return rc;
}
