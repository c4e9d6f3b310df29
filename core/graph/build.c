/* The builder: registers, weights, ops, and the small helpers over them. See build.h. */
#include "graph/build.h"

#include "base/base.h"

/* A deep model has some thousand ops; views and biases double the rest. */
#define OPS_MAX 131072u
#define REGS_MAX 4096u

/* Room for one more element: doubles at powers of two, so the capacity needs no field. */
static void *grow(ks_build *b, void *p, uint32_t n, size_t elem, uint32_t max, const char *what)
{
    if (n && (n & (n - 1))) return p;
    if (n >= max) {
        ks__cfg_fail(&b->cfg, KS_E_LIMIT, "the model has more than %u %s", max, what);
        return NULL;
    }
    void *q = ks_arena_calloc(b->arena, n ? 2 * (size_t)n : 1, elem);
    if (!q)
        ks__cfg_fail(&b->cfg, KS_E_NOMEM, "out of memory for %u %s", n, what);
    else if (n)
        memcpy(q, p, n * elem);
    return q;
}

const char *ks__printf(ks_build *b, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    char *s = n >= 0 && (size_t)n < sizeof text ? ks_arena_strndup(b->arena, text, (size_t)n) : NULL;
    if (s) return s;
    ks__cfg_fail(&b->cfg, KS_E_NOMEM, "out of memory for a name of %d bytes", n);
    return "";
}

/* ---- registers */

static int16_t add_reg(ks_build *b, const char *name, ks_reg r)
{
    for (uint32_t i = 0; i < b->n_regs; i++)
        if (memcmp(&b->regs[i], &r, sizeof r) == 0 && strcmp(b->reg_names[i], name) == 0) return (int16_t)i;
    ks_reg *regs = grow(b, b->regs, b->n_regs, sizeof *regs, REGS_MAX, "registers");
    const char **names = grow(b, b->reg_names, b->n_regs, sizeof *names, REGS_MAX, "registers");
    if (!regs || !names) return 0;
    b->regs = regs;
    b->reg_names = names;
    b->regs[b->n_regs] = r;
    b->reg_names[b->n_regs] = name;
    return (int16_t)b->n_regs++;
}

int16_t ks__reg(ks_build *b, const char *name, uint32_t width)
{
    return add_reg(b, name, (ks_reg) { .kind = KS_REG_F32, .width = width });
}

int16_t ks__reg_out(ks_build *b, const char *name, uint32_t width)
{
    return add_reg(b, name, (ks_reg) { .kind = KS_REG_F32 | KS_REG_OUT, .width = width });
}

int16_t ks__reg_kind(ks_build *b, const char *name, uint32_t kind, uint32_t width)
{
    return add_reg(b, name, (ks_reg) { .kind = kind, .width = width });
}

int16_t ks__view(ks_build *b, const char *name, int16_t base, uint32_t col, uint32_t width)
{
    if (b->cfg.rc) return base;
    ks_reg of = b->regs[base];
    KS_ASSERT(!of.base && col + width <= of.width);
    return add_reg(b, name, (ks_reg) { .kind = of.kind, .width = width, .base = (uint32_t)base + 1, .col = col });
}

/* ---- weights */

const char *ks__tensor(ks_build *b, const char *tensor)
{
    if (b->layer == KS_NO_LAYER) return ks__printf(b, "%s%s", b->prefix, tensor);
    return ks__printf(b, "%slayers.%u.%s", b->prefix, b->layer, tensor);
}

/* A name may be stored plainly, or as what replaces it in a pre-quantized checkpoint. */
bool ks__has_full(const ks_build *b, const char *full)
{
    static const char *const forms[] = { "", "_blocks", "_packed" }; /* plain; mxfp4; compressed-tensors */
    static const char *const weight_forms[] = { "qweight" };         /* GPTQ and AWQ, instead of "weight" */
    char name[512];
    for (size_t i = 0; i < KS_COUNT(forms); i++)
        if ((size_t)snprintf(name, sizeof name, "%s%s", full, forms[i]) < sizeof name && b->find(b->find_ctx, name))
            return true;
    size_t n = strlen(full), w = strlen("weight");
    if (n < w || strcmp(full + n - w, "weight") != 0) return false;
    for (size_t i = 0; i < KS_COUNT(weight_forms); i++)
        if ((size_t)snprintf(name, sizeof name, "%.*s%s", (int)(n - w), full, weight_forms[i]) < sizeof name &&
            b->find(b->find_ctx, name))
            return true;
    return false;
}

bool ks__has(ks_build *b, const char *tensor)
{
    return ks__has_full(b, ks__tensor(b, tensor));
}

int32_t ks__weight(ks_build *b, const char *name, ks_wspec spec, const ks_wpart *parts, uint32_t n_parts)
{
    ks_wspec *specs = grow(b, b->specs, b->n_specs, sizeof *specs, OPS_MAX, "weights");
    ks_wpart *copy = ks_arena_calloc(b->arena, n_parts ? n_parts : 1, sizeof *copy);
    char *full = b->layer == KS_NO_LAYER ? ks_arena_printf(b->arena, "%s", name)
                                         : ks_arena_printf(b->arena, "layers.%u.%s", b->layer, name);
    if (!specs || !copy || !full) {
        ks__cfg_fail(&b->cfg, KS_E_NOMEM, "out of memory for a weight");
        return -1;
    }
    if (n_parts) memcpy(copy, parts, n_parts * sizeof *copy);
    b->specs = specs;
    spec.name = full;
    spec.parts = copy;
    spec.n_parts = n_parts;
    if (!spec.n_mat) spec.n_mat = 1;
    b->specs[b->n_specs] = spec;
    return (int32_t)b->n_specs++;
}

ks_wpart ks__rows(ks_build *b, const char *tensor, uint32_t first, uint32_t count)
{
    return (ks_wpart) { .tensor = ks__tensor(b, tensor), .row_first = first, .row_count = count, .row_block = count };
}

int32_t ks__vector(ks_build *b, uint32_t cls, const char *tensor, uint32_t n)
{
    ks_wpart part = ks__rows(b, tensor, 0, n);
    ks_wspec s = { .cls = cls, .flags = KS_WSPEC_VECTOR, .n_out = 1, .n_in = n, .with = -1 };
    return ks__weight(b, tensor, s, &part, 1);
}

int32_t ks__values(ks_build *b, const char *name, const float *v, uint32_t n)
{
    for (uint32_t i = 0; i < b->n_specs; i++) { /* layers share one table */
        const ks_wspec *s = &b->specs[i];
        if (s->values && s->n_in == n && memcmp(s->values, v, n * sizeof *v) == 0) return (int32_t)i;
    }
    float *copy = ks_arena_calloc(b->arena, n, sizeof *copy);
    if (!copy) {
        ks__cfg_fail(&b->cfg, KS_E_NOMEM, "out of memory for %u numbers", n);
        return -1;
    }
    memcpy(copy, v, n * sizeof *v);
    ks_wspec s = { .flags = KS_WSPEC_VECTOR, .n_out = 1, .n_in = n, .with = -1, .values = copy };
    return ks__weight(b, name, s, NULL, 0);
}

int32_t ks__matrix(ks_build *b, uint32_t cls, uint32_t flags, const char *tensor, uint32_t n_out, uint32_t n_in)
{
    ks_wpart part = ks__rows(b, tensor, 0, n_out);
    ks_wspec s = { .cls = cls, .flags = flags, .n_out = n_out, .n_in = n_in, .with = -1 };
    return ks__weight(b, tensor, s, &part, 1);
}

/* ---- ops */

ks_op *ks__op(ks_build *b, uint32_t kind)
{
    static const ks_op none = { .layer = KS_NO_LAYER,
                                .in = { -1, -1, -1, -1, -1, -1 },
                                .out = { -1, -1 },
                                .w = { -1, -1, -1, -1, -1, -1 },
                                .state = -1 };
    ks_op *ops = grow(b, b->ops, b->n_ops, sizeof *ops, OPS_MAX, "ops");
    if (!ops) return &b->spare; /* the error is kept; callers may still write */
    b->ops = ops;
    ks_op *op = &b->ops[b->n_ops++];
    *op = none;
    op->kind = (uint16_t)kind;
    op->layer = (uint16_t)b->layer;
    return op;
}

uint32_t ks__state(ks_build *b, ks_state s)
{
    ks_state *states = grow(b, b->states, b->n_states, sizeof *states, OPS_MAX, "states");
    if (!states) return 0;
    b->states = states;
    b->states[b->n_states] = s;
    return b->n_states++;
}

void ks__norm(ks_build *b, const ks_norm *n, int16_t x, int16_t y, const char *tensor, uint32_t width, uint32_t w_width)
{
    const char *name;
    int32_t weight = -1, bias = -1;
    if (tensor) {
        name = ks__printf(b, "%s.weight", tensor);
        weight = ks__vector(b, KS_CLS_NORM, name, w_width);
    }
    if (tensor && n->bias) {
        name = ks__printf(b, "%s.bias", tensor);
        bias = ks__vector(b, KS_CLS_NORM, name, w_width);
    }
    ks_op *op = ks__op(b, KS_OP_NORM);
    op->cls = KS_CLS_NORM;
    op->in[0] = x;
    op->out[0] = y;
    op->w[0] = weight;
    op->w[1] = bias;
    op->u.norm.kind = n->kind ? n->kind : KS_NORM_RMS;
    op->u.norm.width = width;
    op->u.norm.w_width = w_width;
    op->u.norm.eps = n->eps != 0 ? n->eps : b->eps;
    op->u.norm.w_offset = n->offset;
}

ks_op *ks__linear_w(ks_build *b, uint32_t cls, int16_t x, int16_t y, int32_t matrix, int32_t bias)
{
    ks_op *op = ks__op(b, KS_OP_LINEAR);
    op->cls = (uint16_t)cls;
    op->in[0] = x;
    op->out[0] = y;
    op->w[0] = matrix;
    op->w[1] = bias;
    op->f[0] = 1.0f;
    return op;
}

void ks__linear(ks_build *b, uint32_t cls, uint32_t flags, int16_t x, int16_t y, const char *tensor, bool bias)
{
    if (b->cfg.rc) return;
    const char *name;
    uint32_t n_out = b->regs[y].width, n_in = b->regs[x].width;
    name = ks__printf(b, "%s.weight", tensor);
    int32_t w = ks__matrix(b, cls, flags, name, n_out, n_in), wb = -1;
    if (bias) {
        name = ks__printf(b, "%s.bias", tensor);
        wb = ks__vector(b, cls, name, n_out);
    }
    ks__linear_w(b, cls, x, y, w, wb);
}

void ks__add(ks_build *b, int16_t x, int16_t y, int16_t z, float fx, float fy)
{
    ks_op *op = ks__op(b, KS_OP_ADD);
    op->in[0] = x;
    op->in[1] = y;
    op->out[0] = z;
    op->f[0] = fx;
    op->f[1] = fy;
}

void ks__mul(ks_build *b, int16_t x, int16_t y, int16_t z, uint32_t act, uint32_t per_head)
{
    ks_op *op = ks__op(b, KS_OP_MUL);
    op->in[0] = x;
    op->in[1] = y;
    op->out[0] = z;
    op->i[0] = (int32_t)act;
    op->i[1] = (int32_t)per_head;
}

void ks__conv(ks_build *b, int16_t x, int16_t y, const char *tensor, uint32_t width, uint32_t act, bool bias)
{
    if (b->cfg.rc) return;
    uint32_t n = b->regs[x].width;
    int32_t w = ks__vector(b, KS_CLS_OTHER, ks__printf(b, "%s.weight", tensor), n * width);
    int32_t wb = bias ? ks__vector(b, KS_CLS_OTHER, ks__printf(b, "%s.bias", tensor), n) : -1;
    uint32_t state = ks__state(b, (ks_state) { .kind = KS_STATE_RECURRENT, .floats = n * (width - 1) });
    ks_op *op = ks__op(b, KS_OP_CONV);
    op->in[0] = x;
    op->out[0] = y;
    op->w[0] = w;
    op->w[1] = wb;
    op->state = (int32_t)state;
    op->u.conv.width = width;
    op->u.conv.act = act;
}

void ks__tap(ks_build *b, int16_t x, uint32_t index)
{
    ks_op *op = ks__op(b, KS_OP_TAP);
    op->in[0] = x;
    op->i[0] = (int32_t)index;
    b->n_taps = KS_MAX(b->n_taps, index + 1);
}
