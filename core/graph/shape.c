/* From weight specs back to the tensors they are made of. See shape.h.
 *
 * The laws: matrices keep the size of what they multiply (deviation 1 / sqrt(columns)), those that write to the
 * residual are smaller, so that it grows to about twice its first size over all layers, and norms are 1. For skewed
 * routing the residual has one constant column: its embedding is RESIDUAL, and row 0 of what is added to it is 0. The
 * router's column 0 turns it into a bias: -z ln(rank), against noise of the deviation of a Gumbel variable, which makes
 * the chance of being chosen fall with rank^-z. */
#include "graph/shape.h"
#include "base/base.h"
#include "base/hash.h"
#include "graph/build.h"
#include "store/store.h"
#include <inttypes.h>
#include <math.h>

#define TENSORS_MAX ((size_t)1 << 22)
#define RESIDUAL 4.0f  /* the constant column, in units of the others' deviation at the start */
#define RMS 1.2f       /* of the residual in the middle of the model, in the same units */
#define NOISE 2.0f     /* of the router's logits: phi(t) / (1 - Phi(t)) = 2 at t = 1.53, where 1/16 is left */
#define BITS_RMS 4.2f  /* of codes from -7..7, 0 twice as often */
#define MXFP4_RMS 2.9f /* of the sixteen e2m1 values */

typedef struct shape {
    const ks_shape_opts *o;
    const ks_model *m;
    ks_arena *a;
    ks_synth_tensor *t;
    size_t n, cap;
    uint32_t *table; /* open addressing by name: index + 1; a power of two, at most half full */
    size_t table_n;
    uint32_t group;
    float *offset; /* (n_weights) of norms: what is added to the stored weight */
    ks_err *err;
} shape;

static int no_memory(const shape *s)
{
    return ks_fail(s->err, KS_E_NOMEM, "out of memory for a list of %zu tensors", s->n);
}

/* ---- which tensors a model may ask for before it is built: those with the names that all families share */

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

static const ks_tensor *find_any(const void *ctx, const char *name)
{
    static const ks_tensor yes = { .size = sizeof yes };
    const ks_shape_opts *o = ctx;
    if (strcmp(name, "model.embed_tokens.weight") == 0 || strcmp(name, "lm_head.weight") == 0) return &yes;
    return o->experts == KS_SHAPE_MXFP4 && ends_with(name, "_proj_blocks") ? &yes : NULL;
}

/* ---- the list */

static uint32_t *slot_of(const shape *s, const char *name)
{
    size_t i = ks_hash64(name, strlen(name), 0) & (s->table_n - 1);
    while (s->table[i] && strcmp(s->t[s->table[i] - 1].name, name) != 0) i = (i + 1) & (s->table_n - 1);
    return &s->table[i];
}

static int grow(shape *s)
{
    if (s->n < s->cap) return 0;
    size_t cap = s->cap ? s->cap * 2 : 1024;
    if (cap > TENSORS_MAX) return ks_fail(s->err, KS_E_LIMIT, "the model has more than %zu tensors", TENSORS_MAX);
    ks_synth_tensor *t = ks_arena_calloc(s->a, cap, sizeof *t);
    uint32_t *table = ks_arena_calloc(s->a, cap * 2, sizeof *table);
    if (!t || !table) return no_memory(s);
    if (s->n) memcpy(t, s->t, s->n * sizeof *t);
    s->t = t;
    s->cap = cap;
    s->table = table;
    s->table_n = cap * 2;
    for (size_t i = 0; i < s->n; i++) *slot_of(s, t[i].name) = (uint32_t)i + 1;
    return 0;
}

/* Two weights may be parts of one tensor: it has the rows that either needs. */
static int put(shape *s, const ks_synth_tensor *t)
{
    int rc = grow(s);
    if (rc) return rc;
    uint32_t *slot = slot_of(s, t->name);
    if (!*slot) {
        s->t[s->n] = *t;
        s->t[s->n].name = ks_arena_strndup(s->a, t->name, strlen(t->name));
        if (!s->t[s->n].name) return no_memory(s);
        *slot = (uint32_t)++s->n;
        return 0;
    }
    ks_synth_tensor *has = &s->t[*slot - 1];
    bool same = has->rank == t->rank && has->type == t->type;
    for (uint32_t d = 0; same && d < t->rank; d++) has->shape[d] = KS_MAX(has->shape[d], t->shape[d]);
    return same ? 0 : ks_fail(s->err, KS_E_INTERNAL, "tensor '%s' is wanted in two forms", t->name);
}

/* ---- laws */

static bool writes_residual(const shape *s, const ks_wspec *w)
{
    return w->n_out == s->m->graph.d_model &&
           (w->cls == KS_CLS_ATTN || w->cls == KS_CLS_EXPERT || w->cls == KS_CLS_SHARED || w->cls == KS_CLS_DENSE);
}

/* The router proper: what a ROUTE op reads. Other small gates are of its class, too. */
static bool is_router(const shape *s, const ks_wspec *w)
{
    return w->cls == KS_CLS_ROUTER && !(w->flags & KS_WSPEC_VECTOR) && w->n_out == s->m->graph.n_experts;
}

static void set_law(const shape *s, uint32_t index, ks_synth_tensor *t)
{
    const ks_wspec *w = &s->m->specs[index];
    const float layers = (float)s->m->graph.n_layers;
    if (w->flags & KS_WSPEC_VECTOR) {
        if (w->cls == KS_CLS_NORM && !ends_with(t->name, "bias"))
            t->mean = 1.0f - s->offset[index];
        else if (w->flags & KS_WSPEC_NEG_EXP)
            t->std = 0.5f;
        else if (w->cls != KS_CLS_ROUTER) /* a router's bias would be a skew of its own */
            t->std = w->cls == KS_CLS_OTHER ? 0.5f : 0.02f;
        return;
    }
    if (w->cls == KS_CLS_EMBED) {
        t->std = 1.0f;
        t->has_col0 = s->o->route_skew != 0;
        t->col0 = RESIDUAL;
        return;
    }
    t->std = 1.0f / sqrtf((float)w->n_in);
    if (is_router(s, w)) {
        t->std *= NOISE;
        if (s->o->route_skew != 0) {
            t->has_col0 = true;
            t->col0 = RESIDUAL / RMS;
            t->zipf = s->o->route_skew;
        }
    } else if (writes_residual(s, w)) {
        t->std /= sqrtf(2.0f * layers);
        t->has_row0 = s->o->route_skew != 0;
    }
}

/* ---- tensors of one part */

/* The last row a part takes of a matrix, plus one; with stride_rows, of all matrices together. */
static uint64_t rows_of(const ks_wspec *w, const ks_wpart *p)
{
    uint64_t block = p->row_block ? p->row_block : p->row_count, last = p->row_count ? (p->row_count - 1) / block : 0;
    uint64_t rows = p->row_first + last * p->row_step + (p->row_count - last * block);
    return rows + (uint64_t)(w->n_mat - 1) * p->stride_rows;
}

/* Packed forms: the codes and, beside them, the scales. `t` has the plain shape and law. */
static int put_packed(shape *s, const ks_synth_tensor *t, bool mxfp4)
{
    char name[600], scales[600];
    ks_synth_tensor codes = *t, scale = *t;
    const size_t stem = strlen(t->name) - (mxfp4 ? 0 : strlen("weight"));
    const uint32_t last = t->rank - 1;
    if (t->shape[last] % 32)
        return ks_fail(s->err, KS_E_UNSUPPORTED, "'%s' has %" PRIu64 " columns: MXFP4 needs a multiple of 32", t->name,
                       t->shape[last]);
    int n = snprintf(name, sizeof name, "%.*s%s", (int)stem, t->name, mxfp4 ? "_blocks" : "weight_packed");
    if (n < 0 || (size_t)n >= sizeof name)
        return ks_fail(s->err, KS_E_LIMIT, "the name '%.80s...' is too long", t->name);
    (void)snprintf(scales, sizeof scales, "%.*s%s", (int)stem, t->name, mxfp4 ? "_scales" : "weight_scale");
    codes.name = name;
    codes.std = 1; /* of bytes: any */
    codes.row0 = mxfp4 ? 0 : 0x88;
    scale.name = scales;
    scale.has_row0 = false;
    scale.std = 0;
    if (mxfp4) {
        codes.type = scale.type = KS_T_U8;
        codes.shape[last] = scale.shape[last] = t->shape[last] / 32;
        codes.shape[codes.rank++] = 16;
        scale.mean = 127.0f + roundf(log2f(t->std / MXFP4_RMS));
    } else {
        codes.type = KS_T_I32;
        codes.shape[last] = t->shape[last] / 8;
        scale.shape[last] = t->shape[last] / s->group;
        scale.mean = t->std / BITS_RMS;
    }
    int rc = put(s, &codes);
    return rc ? rc : put(s, &scale);
}

static int put_part(shape *s, uint32_t index, const ks_wpart *p)
{
    const ks_wspec *w = &s->m->specs[index];
    const char *hole = strstr(p->tensor, "{}");
    const bool vector = (w->flags & KS_WSPEC_VECTOR) != 0, expert = w->cls == KS_CLS_EXPERT && !vector;
    const bool stacked = w->n_mat > 1 && p->stride_rows == 0 && !hole;
    ks_synth_tensor t = { .type = KS_T_BF16 };
    char name[600];
    if (stacked) t.shape[t.rank++] = w->n_mat;
    t.shape[t.rank++] = rows_of(w, p);
    /* Of what is cut out by rows and then transposed, the source's columns are the outputs. */
    if (!vector) t.shape[t.rank++] = p->transposed && p->stride_rows ? w->n_out : w->n_in;
    if (p->transposed && !p->stride_rows && !vector) {
        uint64_t rows = t.shape[t.rank - 2];
        t.shape[t.rank - 2] = t.shape[t.rank - 1];
        t.shape[t.rank - 1] = rows;
    }
    t.name = p->tensor;
    set_law(s, index, &t);
    for (uint32_t m = 0; m < (hole ? w->n_mat : 1); m++) {
        int rc;
        if (hole) {
            int n = snprintf(name, sizeof name, "%.*s%u%s", (int)(hole - p->tensor), p->tensor, m, hole + 2);
            if (n < 0 || (size_t)n >= sizeof name)
                return ks_fail(s->err, KS_E_LIMIT, "the name '%.80s...' is too long", p->tensor);
            t.name = name;
        }
        if (expert && stacked && s->o->experts == KS_SHAPE_MXFP4)
            rc = put_packed(s, &t, true);
        else if (expert && hole && s->group)
            rc = put_packed(s, &t, false);
        else
            rc = put(s, &t);
        if (rc) return rc;
    }
    return 0;
}

/* One group for all experts: the largest that divides them; 0 if none does, or the experts are not to be packed. */
static uint32_t group_of(const shape *s)
{
    uint32_t group = s->o->experts == KS_SHAPE_INT4 ? 128 : 0;
    for (uint32_t i = 0; i < s->m->graph.n_weights && group; i++) {
        const ks_wspec *w = &s->m->specs[i];
        if (w->cls != KS_CLS_EXPERT || w->flags & KS_WSPEC_VECTOR) continue;
        group = w->n_in % 32 ? 0 : KS_MIN(group, ks_quant_group(w->n_in));
    }
    return group;
}

static int fill(shape *s)
{
    const ks_graph *g = &s->m->graph;
    int rc = 0;
    s->offset = ks_arena_calloc(s->a, (size_t)g->n_weights + 1, sizeof *s->offset);
    if (!s->offset) return no_memory(s);
    for (uint32_t i = 0; i < g->n_ops; i++)
        if (g->ops[i].kind == KS_OP_NORM && g->ops[i].w[0] >= 0) s->offset[g->ops[i].w[0]] = g->ops[i].u.norm.w_offset;
    s->group = group_of(s);
    for (uint32_t i = 0; i < g->n_weights; i++)
        for (uint32_t k = 0; k < s->m->specs[i].n_parts && !s->m->specs[i].values; k++)
            if ((rc = put_part(s, i, &s->m->specs[i].parts[k]))) return rc;
    return 0;
}

int ks_model_shape(const char *config, size_t n, const ks_shape_opts *o, ks_arena *a, ks_synth_tensor **ret,
                   size_t *ret_n, uint32_t *ret_group, ks_err *err)
{
    ks_model m = { 0 };
    int rc = ks__model_build(config, n, find_any, o, &m, err);
    if (rc) return rc;
    shape s = { .o = o, .m = &m, .a = a, .err = err };
    rc = fill(&s);
    ks_model_close(&m);
    if (rc) return rc;
    *ret = s.t;
    *ret_n = s.n;
    *ret_group = s.group;
    return 0;
}
