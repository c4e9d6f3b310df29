/* Builds the plan: resolves sources, checks shapes, chooses types, lays everything out, cuts it into blocks. */
#include "store/plan.h"
#include "base/base.h"
#include "base/buf.h"
#include "store/mem.h"
#include <inttypes.h>
#include <math.h>

#define BLOCK_BYTES ((size_t)1 << 20)       /* of output: a good size to read, to hash and to lose */
#define BLOCK_FLOATS ((size_t)2 << 20)      /* of scratch for transposed sources */
#define BANK_ALIGN_FROM ((uint64_t)8 << 20) /* banks from this size on begin at a huge page */
#define ALIGN_BYTES 4096u
#define SRCS_MAX ((uint64_t)1 << 26)
#define NAME_BYTES 600u

typedef struct planner {
    ks_wplan *p;
    const ks_ckpt *c;
    const ks_store_opts *o;
    ks_qconf q;
    uint64_t *used; /* by tensor: elements (of each slice) up to the last row that the model takes */
} planner;

static bool is_vector(const ks_wspec *s)
{
    return (s->flags & KS_WSPEC_VECTOR) != 0;
}

static bool is_stacked(const ks_wspec *s, const ks_wpart *part)
{
    return s->n_mat > 1 && part->stride_rows == 0 && !strstr(part->tensor, "{}");
}

static int no_memory(ks_err *err)
{
    return ks_fail(err, KS_E_NOMEM, "out of memory for the plan of the weights");
}

/* ---- shapes */

static void shape_text(const uint64_t *shape, uint32_t rank, char *dst, size_t cap)
{
    size_t n = (size_t)snprintf(dst, cap, "[");
    for (uint32_t i = 0; i < rank && n < cap; i++)
        n += (size_t)snprintf(dst + n, cap - n, i ? ", %" PRIu64 : "%" PRIu64, shape[i]);
    if (n < cap) (void)snprintf(dst + n, cap - n, "]"); /* cut off is fine: a message */
}

static int wrong_shape(const ks_src *src, const uint64_t *want, uint32_t want_rank, ks_err *err)
{
    char has[200], wanted[200];
    shape_text(src->shape, src->rank, has, sizeof has);
    shape_text(want, want_rank, wanted, sizeof wanted);
    return ks_fail(err, KS_E_FORMAT,
                   "tensor '%s' has shape %s, the model wants %s: config.json and weights do not match", src->t->name,
                   has, wanted);
}

/* The last rows a part takes of a slice, plus one. 0: the spec makes no sense, or overflows. */
static uint64_t rows_needed(const ks_wpart *part)
{
    uint64_t block = part->row_block ? part->row_block : part->row_count;
    if (part->row_count == 0) return 0;
    uint64_t last = (part->row_count - 1) / block;
    if (last > 0 && part->row_step < block) return 0; /* blocks would overlap */
    return part->row_first + last * part->row_step + (part->row_count - last * block);
}

/* What the model wants, as the source should have it. */
static uint32_t wanted_shape(const ks_wspec *s, uint64_t rows, bool stacked, bool swap, uint64_t want[3])
{
    uint32_t n = 0;
    if (stacked) want[n++] = s->n_mat;
    if (is_vector(s)) {
        want[n++] = rows;
    } else {
        want[n++] = swap ? s->n_in : rows;
        want[n++] = swap ? rows : s->n_in;
    }
    return n;
}

/* Sees the source as (n_mat) x (rows, cols); dimensions of 1 that the wanted form has not are dropped. */
static int check_shape(const ks_wspec *s, const ks_wpart *part, uint32_t m, ks_src *src, ks_err *err)
{
    const bool swap = part->transposed && src->scheme != KS_SCHEME_MXFP4; /* its blocks have one orientation */
    const bool stacked = is_stacked(s, part);
    uint64_t want[3], dims[KS_MAX_RANK], elems = 1, cols;
    uint32_t n = 0, want_rank = wanted_shape(s, rows_needed(part), stacked, swap, want);
    if (stacked && (src->rank < 2 || src->shape[0] != s->n_mat)) return wrong_shape(src, want, want_rank, err);
    uint32_t drop = src->rank > stacked + 2u ? src->rank - stacked - 2u : 0;
    for (uint32_t i = stacked; i < src->rank; i++) {
        elems *= src->shape[i]; /* checked against the file's size when it was opened */
        if (drop > 0 && src->shape[i] == 1)
            drop--;
        else
            dims[n++] = src->shape[i];
    }
    if (is_vector(s)) { /* any shape: its elements in their order, one a row */
        src->rows = elems;
        cols = 1;
    } else {
        if (n == 1) { /* one row */
            dims[1] = dims[0];
            dims[0] = 1;
            n = 2;
        }
        if (n != 2 || dims[swap ? 0 : 1] != s->n_in) return wrong_shape(src, want, want_rank, err);
        src->rows = dims[swap ? 1 : 0];
        cols = s->n_in;
    }
    src->cols = (uint32_t)cols;
    src->transposed = swap || is_vector(s);
    src->elem = stacked ? m * elems : 0;
    src->row_first = (uint64_t)m * part->stride_rows;
    if (src->row_first + rows_needed(part) > src->rows) return wrong_shape(src, want, want_rank, err);
    return ks__src_check(src, stacked ? m : 0, stacked ? s->n_mat : 1, err);
}

/* A source of which the model leaves rows untouched does not belong to this configuration. */
static int check_used(const planner *pl, const ks_pweight *w, ks_err *err)
{
    const ks_wspec *s = w->spec;
    for (uint64_t i = 0; w->src && !w->absent && i < (uint64_t)s->n_mat * s->n_parts; i++) {
        const ks_wpart *part = &s->parts[i % s->n_parts];
        const ks_src *src = &w->src[i];
        uint64_t used = pl->used[ks_ckpt_index(pl->c, src->t)] / src->cols, want[3];
        if (used == src->rows) continue;
        uint32_t rank = wanted_shape(s, used, is_stacked(s, part), src->transposed && !ks__src_is_packed(src), want);
        return wrong_shape(src, want, rank, err);
    }
    return 0;
}

/* ---- sources */

static int part_name(const ks_wspec *s, const ks_wpart *part, uint32_t m, char *dst, ks_err *err)
{
    const char *hole = strstr(part->tensor, "{}");
    int n = hole ? snprintf(dst, NAME_BYTES, "%.*s%" PRIu32 "%s", (int)(hole - part->tensor), part->tensor, m, hole + 2)
                 : snprintf(dst, NAME_BYTES, "%s", part->tensor);
    if (n < 0 || n >= (int)NAME_BYTES)
        return ks_fail(err, KS_E_LIMIT, "weight '%s': the name of its tensor exceeds %u bytes", s->name, NAME_BYTES);
    return 0;
}

static int find_sources(planner *pl, ks_pweight *w, ks_err *err)
{
    const ks_wspec *s = w->spec;
    uint64_t n = (uint64_t)s->n_mat * s->n_parts, found = 0;
    ks_src *srcs = n <= SRCS_MAX ? ks_arena_calloc(&pl->p->arena, n, sizeof *srcs) : NULL;
    if (!srcs) return no_memory(err);
    char name[NAME_BYTES], missing[NAME_BYTES] = "";
    for (uint64_t i = 0; i < n; i++) {
        const ks_wpart *part = &s->parts[i % s->n_parts];
        uint32_t m = (uint32_t)(i / s->n_parts);
        int rc = part_name(s, part, m, name, err);
        if (rc == 0) rc = ks__src_find(pl->c, &pl->q, name, &srcs[i], err);
        if (rc != 0) return rc;
        if (!srcs[i].t) {
            if (missing[0] == 0) memcpy(missing, name, sizeof missing);
            continue;
        }
        found++;
        rc = check_shape(s, part, m, &srcs[i], err);
        if (rc == 0 && srcs[i].transposed != srcs[0].transposed && srcs[0].t)
            rc = ks_fail(err, KS_E_UNSUPPORTED, "tensors '%s' and '%s' of weight '%s' lie in different directions",
                         srcs[0].t->name, srcs[i].t->name, s->name);
        if (rc != 0) return rc;
        uint64_t *used = &pl->used[ks_ckpt_index(pl->c, srcs[i].t)];
        *used = KS_MAX(*used, (srcs[i].row_first + rows_needed(part)) * srcs[i].cols);
    }
    w->src = srcs;
    w->absent = found == 0 && (s->flags & KS_WSPEC_OPTIONAL);
    if (found != n && !w->absent)
        return ks_fail(err, KS_E_NOTFOUND, "the checkpoint '%s' has no tensor '%s', which the model needs",
                       ks_ckpt_dir(pl->c), missing);
    return 0;
}

/* ---- types */

static int check_spec(const ks_wspec *s, ks_err *err)
{
    uint64_t rows = 0, want = is_vector(s) ? s->n_in : s->n_out;
    bool ok = s->n_mat > 0 && s->n_out > 0 && s->n_in > 0 && (s->n_parts > 0 || s->values) &&
              (!is_vector(s) || s->n_out == 1) && (!s->values || (is_vector(s) && s->n_mat == 1 && s->n_parts == 0)) &&
              (!(s->flags & KS_WSPEC_PAIR) || s->n_parts == 2) && s->n_in <= UINT32_MAX - 31 &&
              s->n_out <= UINT32_MAX - 15;
    for (uint32_t i = 0; ok && i < s->n_parts; i++) {
        ok = rows_needed(&s->parts[i]) > 0 &&
             s->parts[i].row_count == (s->flags & KS_WSPEC_PAIR ? s->parts[0].row_count : s->parts[i].row_count);
        rows += s->flags & KS_WSPEC_PAIR ? ks_align_up(s->parts[i].row_count, 16) : s->parts[i].row_count;
    }
    if (!ok || (!s->values && rows != want))
        return ks_fail(err, KS_E_INTERNAL,
                       "weight '%s': %" PRIu32 " matrices of %" PRIu32 " x %" PRIu32 " do not fit their %" PRIu32
                       " parts of %" PRIu64 " rows",
                       s->name, s->n_mat, s->n_out, s->n_in, s->n_parts, rows);
    return 0;
}

static bool is_power_of_two(float f)
{
    int e;
    return fabsf(frexpf(f, &e)) == 0.5f;
}

/* True if every source can hand over codes of the one type and group. */
static bool all_exact(const ks_pweight *w, uint32_t want, uint32_t *ret_type, uint32_t *ret_group)
{
    const ks_wspec *s = w->spec;
    if (want == KS_T_BF16 || want == KS_T_F32 || w->scale != 1.0f) return false;
    for (uint64_t i = 0; i < (uint64_t)s->n_mat * s->n_parts; i++) {
        uint32_t group, type = ks__src_exact_type(&w->src[i], &group);
        if (type == 0 || (i > 0 && (type != *ret_type || group != *ret_group)) || ks_t16_n_in(s->n_in) % group != 0)
            return false;
        *ret_type = type;
        *ret_group = group;
    }
    return true;
}

static int choose_type(const planner *pl, ks_pweight *w, ks_err *err)
{
    const ks_wspec *s = w->spec;
    bool wide = w->scale != 1.0f && !is_power_of_two(w->scale), coded = false;
    for (uint64_t i = 0; w->src && !w->absent && i < (uint64_t)s->n_mat * s->n_parts; i++) {
        wide = wide || !ks__src_fits_bf16(&w->src[i]);
        coded = coded || w->src[i].scheme != KS_SCHEME_PLAIN;
    }
    w->w.layout = s->flags & (KS_WSPEC_VECTOR | KS_WSPEC_TABLE) ? KS_LAYOUT_ROWS : KS_LAYOUT_T16;
    if (is_vector(s)) {
        w->w.type = KS_T_F32;
        return 0;
    }
    if (s->flags & (KS_WSPEC_TABLE | KS_WSPEC_EXACT)) {
        w->w.type = wide ? KS_T_F32 : KS_T_BF16;
        return 0;
    }
    uint32_t want = s->cls < KS_COUNT(pl->o->type) ? pl->o->type[s->cls] : 0;
    if (want == 0) want = KS_T_BF16;
    if (want != KS_T_I4 && want != KS_T_I8 && want != KS_T_BF16 && want != KS_T_F32)
        return ks_fail(err, KS_E_INVAL, "weight '%s' cannot be stored as %s: use i4, i8, bf16 or f32", s->name,
                       ks_type_name(want));
    if (!w->absent && all_exact(w, want, &w->w.type, &w->w.group)) {
        w->exact = true;
        return 0;
    }
    if (want == KS_T_I4 && pl->o->narrow && s->n_in <= KS_QUANT_GROUP_MAX) want = pl->o->narrow;
    w->w.type = want;
    /* Quantized sources hold numbers between those of bf16; who asks for bf16 asks for no further error. */
    if (want == KS_T_BF16 && wide && coded) w->w.type = KS_T_F32;
    w->w.group = want == KS_T_I4 || want == KS_T_I8 ? ks_quant_group(s->n_in) : 0;
    return 0;
}

static int size_weight(ks_pweight *w, ks_err *err)
{
    size_t row, bytes;
    const ks_weight *k = &w->w;
    bool ok = ks_mul_size((size_t)ks_t16_n_in(k->n_in) * 16, 4, &row); /* the widest strip */
    if (k->layout == KS_LAYOUT_T16)
        ok = ok && ks_mul_size(ks_t16_strips(k->n_out), ks_t16_strip_bytes(k->type, k->n_in, k->group), &bytes);
    else
        ok = ok && ks_mul_size(k->n_out, (size_t)k->n_in * (ks_type_bits(k->type) / 8), &bytes);
    if (!ok || bytes > SIZE_MAX / 64 / k->n_mat)
        return ks_fail(err, KS_E_LIMIT, "weight '%s' of %" PRIu32 " x %" PRIu32 " x %" PRIu32 " is too large", k->name,
                       k->n_mat, k->n_out, k->n_in);
    w->w.mat_bytes = bytes;
    return 0;
}

static int plan_weight(planner *pl, ks_pweight *w, const ks_wspec *s, ks_err *err)
{
    w->spec = s;
    w->scale = s->scale == 0.0f ? 1.0f : s->scale;
    w->n_rows = is_vector(s) ? s->n_in : s->n_out;
    w->w = (ks_weight) { .cls = s->cls, .n_mat = s->n_mat, .n_out = s->n_out, .n_in = s->n_in };
    w->w.name = ks_arena_strndup(&pl->p->arena, s->name, strlen(s->name));
    if (!w->w.name) return no_memory(err);
    int rc = check_spec(s, err);
    if (rc == 0 && !s->values) rc = find_sources(pl, w, err);
    if (rc == 0) rc = choose_type(pl, w, err);
    if (rc == 0 && !w->absent) rc = size_weight(w, err);
    return rc;
}

bool ks__plan_row(const ks_pweight *w, uint32_t r, uint32_t *ret_part, uint64_t *ret_row)
{
    const ks_wspec *s = w->spec;
    uint32_t part = 0;
    if (s->flags & KS_WSPEC_PAIR) {
        part = r / 16 % 2;
        r = r / 32 * 16 + r % 16;
        if (r >= s->parts[part].row_count) return false;
    } else {
        while (part < s->n_parts && r >= s->parts[part].row_count) r -= s->parts[part++].row_count;
        if (part == s->n_parts) return false;
    }
    const ks_wpart *p = &s->parts[part];
    uint32_t block = p->row_block ? p->row_block : p->row_count;
    *ret_part = part;
    *ret_row = p->row_first + (uint64_t)(r / block) * p->row_step + r % block;
    return true;
}

/* ---- layout */

/* Weights joined by `with` share one stride: their matrices of one index lie together. */
static int lay_out(ks_wplan *p, ks_err *err)
{
    uint64_t at = 0;
    bool *placed = ks_arena_calloc(&p->arena, p->n_weights, sizeof *placed);
    bool *follows = ks_arena_calloc(&p->arena, p->n_weights, sizeof *follows);
    if (!placed || !follows) return no_memory(err);
    for (uint32_t i = 0; i < p->n_weights; i++) {
        int32_t with = p->weights[i].spec->with;
        if (with < 0) continue;
        if ((uint32_t)with >= p->n_weights || (uint32_t)with == i || follows[with] ||
            p->weights[with].w.n_mat != p->weights[i].w.n_mat)
            return ks_fail(err, KS_E_INTERNAL, "weight '%s' cannot lie with number %" PRId32, p->weights[i].w.name,
                           with);
        follows[with] = true;
    }
    for (uint32_t i = 0; i < p->n_weights; i++) {
        if (follows[i]) continue;
        uint64_t stride = 0, total;
        uint32_t members = 0;
        for (int32_t j = (int32_t)i; j >= 0; j = p->weights[j].spec->with, members++) {
            p->weights[j].off = stride; /* for now within the first matrix */
            stride += ks_align_up(p->weights[j].w.mat_bytes, 64);
            placed[j] = true;
        }
        if (members > 1 && p->weights[i].w.n_mat > 1) stride = ks_align_up(stride, ALIGN_BYTES);
        if (__builtin_mul_overflow(stride, (uint64_t)p->weights[i].w.n_mat, &total) || total > UINT64_MAX / 4 - at)
            return ks_fail(err, KS_E_LIMIT, "weight '%s' is too large", p->weights[i].w.name);
        at = ks_align_up(at, total >= BANK_ALIGN_FROM ? KS_HUGE_BYTES : total >= ALIGN_BYTES ? ALIGN_BYTES : 64);
        for (int32_t j = (int32_t)i; j >= 0; j = p->weights[j].spec->with) {
            p->weights[j].off += at;
            p->weights[j].w.stride = stride;
        }
        at += total;
    }
    for (uint32_t i = 0; i < p->n_weights; i++)
        if (!placed[i]) return ks_fail(err, KS_E_INTERNAL, "weight '%s' is in a ring of `with`", p->weights[i].w.name);
    p->payload_bytes = ks_align_up(at, ALIGN_BYTES);
    return 0;
}

/* The scratch one block of `count` units needs. */
static void measure(ks_wplan *p, const ks_pweight *w, uint64_t rows)
{
    const ks_wspec *s = w->spec;
    for (uint64_t i = 0; w->src && i < (uint64_t)s->n_mat * s->n_parts; i++) {
        const ks_src *src = &w->src[i];
        const ks_wpart *part = &s->parts[i % s->n_parts];
        const bool gaps = part->row_block != 0 && part->row_block < part->row_count; /* a block may span all rows */
        uint64_t most = src->transposed ? src->rows : KS_MIN(rows, (uint64_t)16);
        if (ks__src_is_packed(src) && !gaps) most = KS_MIN(rows, src->rows);
        p->raw_bytes = KS_MAX(p->raw_bytes, ks__src_raw_bytes(src, most));
        uint64_t floats = src->transposed ? rows * src->cols + src->rows : 16 * (uint64_t)src->cols;
        p->floats = KS_MAX(p->floats, floats);
    }
    p->floats = KS_MAX(p->floats, w->w.layout == KS_LAYOUT_T16 ? 16 * (size_t)w->w.n_in : w->w.n_in);
}

/* Units (strips or rows) of a matrix, their bytes, and how many make a block. */
static void unit_of(const ks_pweight *w, uint32_t *ret_n, size_t *ret_bytes, uint32_t *ret_per)
{
    const ks_weight *k = &w->w;
    bool t16 = k->layout == KS_LAYOUT_T16;
    *ret_n = t16 ? ks_t16_strips(k->n_out) : k->n_out;
    *ret_bytes = (size_t)(k->mat_bytes / *ret_n);
    size_t per = BLOCK_BYTES / *ret_bytes, by_floats = BLOCK_FLOATS / k->n_in / (t16 ? 16 : 1);
    if (w->src && w->src[0].transposed && !is_vector(w->spec)) per = KS_MIN(per, by_floats);
    *ret_per = per == 0 ? 1 : (uint32_t)KS_MIN(per, (size_t)*ret_n);
}

static int cut_blocks(ks_wplan *p, ks_err *err)
{
    uint64_t total = 0;
    for (int pass = 0; pass < 2; pass++) { /* count, then write */
        if (pass == 1) p->blocks = total < UINT32_MAX ? ks_arena_calloc(&p->arena, total, sizeof *p->blocks) : NULL;
        if (pass == 1 && !p->blocks) return no_memory(err);
        for (uint32_t i = 0; i < p->n_weights; i++) {
            const ks_pweight *w = &p->weights[i];
            uint32_t n, per;
            size_t bytes;
            if (w->absent) continue;
            unit_of(w, &n, &bytes, &per);
            if (bytes * per > UINT32_MAX)
                return ks_fail(err, KS_E_LIMIT, "weight '%s': 16 rows have %zu bytes", w->w.name, bytes);
            if (pass == 0) {
                total += (uint64_t)(n / per + (n % per != 0)) * w->w.n_mat;
                measure(p, w, is_vector(w->spec) ? w->n_rows : w->w.layout == KS_LAYOUT_T16 ? (uint64_t)per * 16 : per);
                continue;
            }
            for (uint32_t m = 0; m < w->w.n_mat; m++)
                for (uint32_t u = 0; u < n; u += per)
                    p->blocks[p->n_blocks++] = (ks_block) {
                        .off = w->off + m * w->w.stride + u * (uint64_t)bytes,
                        .bytes = (uint32_t)(bytes * KS_MIN(per, n - u)),
                        .weight = i,
                        .mat = m,
                        .first = u,
                        .count = KS_MIN(per, n - u),
                    };
        }
    }
    return 0;
}

/* Everything that the bytes depend on, in one string. */
static int hash_settings(ks_wplan *p, const ks_qconf *q, ks_err *err)
{
    ks_buf b;
    ks_buf_init(&b, 0);
    ks_buf_printf(&b, "layout %u, block %zu %zu, source %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %d %d\n",
                  KS_STORE_LAYOUT, BLOCK_BYTES, BLOCK_FLOATS, q->scheme, q->block_rows, q->block_cols, q->group,
                  q->symmetric, q->zero_less_one);
    for (uint32_t i = 0; i < p->n_weights; i++) {
        const ks_pweight *w = &p->weights[i];
        const ks_wspec *s = w->spec;
        ks_buf_printf(&b,
                      "%s %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32
                      " %" PRIu64 " %" PRIu64 " %d %a\n",
                      s->name, s->cls, s->flags, w->w.type, w->w.layout, w->w.group, s->n_mat, s->n_out, s->n_in,
                      w->off, w->w.stride, w->absent, (double)w->scale);
        for (uint32_t j = 0; j < s->n_parts; j++) {
            const ks_wpart *r = &s->parts[j];
            ks_buf_printf(&b, "  %s %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %d\n", r->tensor,
                          r->row_first, r->row_count, r->row_block, r->row_step, r->stride_rows, r->transposed);
        }
        if (s->values) ks_buf_add(&b, s->values, s->n_in * sizeof *s->values);
    }
    if (!b.failed) p->settings = ks_hash(b.p, b.n);
    bool failed = b.failed;
    ks_buf_fini(&b);
    return failed ? no_memory(err) : 0;
}

int ks__plan_init(ks_wplan *p, const ks_ckpt *c, const ks_wspec *specs, uint32_t n_specs, const ks_store_opts *o,
                  ks_err *err)
{
    memset(p, 0, sizeof *p);
    ks_arena_init(&p->arena, 0);
    planner pl = { .p = p, .c = c, .o = o };
    size_t n_tensors = (size_t)ks_ckpt_count(c) + 1; /* never an empty array */
    p->weights = ks_arena_calloc(&p->arena, (size_t)n_specs + 1, sizeof *p->weights);
    pl.used = ks_arena_calloc(&p->arena, n_tensors, sizeof *pl.used);
    int rc = p->weights && pl.used ? ks__qconf_read(c, &pl.q, err) : no_memory(err);
    for (uint32_t i = 0; i < n_specs && rc == 0; i++, p->n_weights++)
        rc = plan_weight(&pl, &p->weights[i], &specs[i], err);
    for (uint32_t i = 0; i < n_specs && rc == 0; i++) rc = check_used(&pl, &p->weights[i], err);
    if (rc == 0) rc = lay_out(p, err);
    if (rc == 0) rc = cut_blocks(p, err);
    if (rc == 0) rc = hash_settings(p, &pl.q, err);
    if (rc != 0) ks__plan_fini(p);
    return rc;
}

void ks__plan_fini(ks_wplan *p)
{
    if (!p) return;
    ks_arena_fini(&p->arena);
    memset(p, 0, sizeof *p);
}
