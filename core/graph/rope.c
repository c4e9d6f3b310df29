/* Rotary tables: every rope_type of the checkpoints becomes one table of inverse frequencies and one factor.
 *
 * Two types depend on how long the sequence has become, which would make a token's result depend on what comes after
 * it: "dynamic" and "longrope". Up to a known length both are constant, so the model's context is cut there. */
#include "graph/build.h"

#include "base/base.h"
#include <math.h>

#define PI 3.14159265358979323846

/* What the JSON says, under whichever name. */
struct rope_cfg {
    const char *type;
    double theta, factor, original;
    uint32_t dim;
};

/* In float, step by step, as the reference computes it. */
static float plain(const struct rope_cfg *r, uint32_t i)
{
    return 1.0f / powf((float)r->theta, (float)(2 * i) / (float)r->dim);
}

static double yarn_mscale(double factor, double m)
{
    return factor <= 1 ? 1.0 : 0.1 * m * log(factor) + 1.0;
}

static double yarn_dim(const struct rope_cfg *r, double rotations)
{
    return r->dim * log(r->original / (rotations * 2 * PI)) / (2 * log(r->theta));
}

static void read_yarn(ks_build *b, const struct rope_cfg *r, float *inv, ks_rope *ret)
{
    ks_cfg *c = &b->cfg;
    double fast = ks__cfg_f64_or(c, "beta_fast", 32, 0, 1e6), slow = ks__cfg_f64_or(c, "beta_slow", 1, 0, 1e6);
    double mscale = ks__cfg_f64_or(c, "mscale", 0, 0, 1e3), all = ks__cfg_f64_or(c, "mscale_all_dim", 0, 0, 1e3);
    double att = mscale != 0 && all != 0 ? yarn_mscale(r->factor, mscale) / yarn_mscale(r->factor, all)
                                         : yarn_mscale(r->factor, 1);
    att = ks__cfg_f64_or(c, "attention_factor", att, 0, 1e3);
    bool truncate = ks__cfg_bool_or(c, "truncate", true);
    if (fast == 0) fast = 32; /* 0 means the default, as in the reference */
    if (slow == 0) slow = 1;
    double low = yarn_dim(r, fast), high = yarn_dim(r, slow);
    if (truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, r->dim - 1);
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < r->dim / 2; i++) {
        double ramp = fmin(fmax((i - low) / (high - low), 0), 1), keep = 1 - ramp;
        inv[i] = (float)((double)plain(r, i) / r->factor * (1 - keep) + (double)plain(r, i) * keep);
    }
    ret->mscale = (float)att;
    ret->attn_factor = all != 0 ? (float)yarn_mscale(r->factor, all) : 1.0f;
}

static void read_llama3(ks_build *b, const struct rope_cfg *r, float *inv)
{
    double low = ks__cfg_f64_or(&b->cfg, "low_freq_factor", 1, 1e-3, 1e6),
           high = ks__cfg_f64_or(&b->cfg, "high_freq_factor", 4, 1e-3, 1e6);
    for (uint32_t i = 0; i < r->dim / 2; i++) {
        double f = (double)plain(r, i), wave = 2 * PI / f, smooth = (r->original / wave - low) / (high - low);
        if (wave > r->original / low)
            f /= r->factor;
        else if (!(wave < r->original / high))
            f = (1 - smooth) * f / r->factor + smooth * f;
        inv[i] = (float)f;
    }
}

/* The short factors serve every sequence up to the original length; longer ones would switch all positions over. */
static void read_longrope(ks_build *b, const struct rope_cfg *r, float *inv, ks_rope *ret)
{
    ks_cfg *c = &b->cfg;
    const ks_cfg_node *s;
    double ratio = b->n_ctx / r->original, att = ratio <= 1 ? 1 : sqrt(1 + log(ratio) / log(r->original));
    ks__cfg_ignore(c, "long_factor");
    ks__cfg_ignore(c, "long_mscale");
    if (!ks__cfg_list(c, "short_factor", r->dim / 2, &s)) {
        ks__cfg_fail(c, KS_E_FORMAT, "'short_factor' of rope_type '%s' is missing", r->type);
        return;
    }
    for (uint32_t i = 0; i < r->dim / 2; i++)
        inv[i] = plain(r, i) / (float)ks__cfg_elem_f64(c, "short_factor", ks__cfg_elem(c, s, i));
    ret->mscale = (float)ks__cfg_f64_or(c, "short_mscale", ks__cfg_f64_or(c, "attention_factor", att, 0, 1e3), 0, 1e3);
    b->n_ctx = KS_MIN(b->n_ctx, (uint32_t)r->original);
}

static void fill_table(ks_build *b, struct rope_cfg *r, float *inv, ks_rope *ret)
{
    ks_cfg *c = &b->cfg;
    if (strcmp(r->type, "dynamic") ==
        0) { /* up to max_position_embeddings it is the plain table, alpha (hunyuan) aside */
        double alpha = ks__cfg_f64_or(c, "alpha", 1, 1e-3, 1e9);
        if (alpha != 1 && r->dim > 2) r->theta *= pow(alpha, r->dim / (r->dim - 2.0));
        ks__cfg_ignore(c, "beta_fast"); /* hunyuan's files carry the fields of yarn, too */
        ks__cfg_ignore(c, "beta_slow");
        ks__cfg_ignore(c, "mscale");
        ks__cfg_ignore(c, "mscale_all_dim");
    }
    if (strcmp(r->type, "yarn") == 0) {
        read_yarn(b, r, inv, ret);
    } else if (strcmp(r->type, "llama3") == 0) {
        read_llama3(b, r, inv);
    } else if (strcmp(r->type, "longrope") == 0 || strcmp(r->type, "su") == 0) {
        read_longrope(b, r, inv, ret);
    } else if (strcmp(r->type, "linear") == 0) {
        for (uint32_t i = 0; i < r->dim / 2; i++) inv[i] = plain(r, i) / (float)r->factor;
    } else if (strcmp(r->type, "default") == 0 || strcmp(r->type, "mrope") == 0 || strcmp(r->type, "dynamic") == 0) {
        for (uint32_t i = 0; i < r->dim / 2; i++) inv[i] = plain(r, i);
    } else {
        ks__cfg_fail(c, KS_E_UNSUPPORTED,
                     "rope_type '%.60s' is not supported: default, linear, dynamic, yarn, llama3 and longrope are",
                     r->type);
    }
}

/* Old files: rope_theta beside rope_scaling (or null). New ones: everything in rope_parameters. */
ks_rope ks__rope_read(ks_build *b, uint32_t dim, double theta, double partial)
{
    ks_cfg *c = &b->cfg;
    ks_rope ret = { .kind = KS_ROPE_HALF, .rot_dim = 2, .mscale = 1, .attn_factor = 1, .inv_freq = -1 };
    struct rope_cfg r = { .type = "default", .theta = ks__cfg_f64_or(c, "rope_theta", theta, 1e-3, 1e15), .factor = 1 };
    partial = ks__cfg_f64_or(c, "partial_rotary_factor", partial, 0, 1);
    double original = ks__cfg_f64_or(c, "original_max_position_embeddings", b->n_ctx, 1, KS_CTX_MAX);
    uint32_t at = c->at;
    const ks_cfg_node *n = ks__cfg_get(c, "rope_parameters", KS_CFG_OBJECT);
    if (!n) n = ks__cfg_get(c, "rope_scaling", KS_CFG_OBJECT);
    if (n) {
        c->at = (uint32_t)(n - c->nodes);
        r.type = ks__cfg_str_or(c, "rope_type", ks__cfg_str_or(c, "type", "default"));
        ks__cfg_ignore(c, "type");          /* the old name; rope_type wins */
        ks__cfg_ignore(c, "mrope_section"); /* text has one position for all sections */
        ks__cfg_ignore(c, "mrope_interleaved");
        r.theta = ks__cfg_f64_or(c, "rope_theta", r.theta, 1e-3, 1e15);
        partial = ks__cfg_f64_or(c, "partial_rotary_factor", partial, 0, 1);
        r.original = ks__cfg_f64_or(c, "original_max_position_embeddings", original, 1, KS_CTX_MAX);
        r.factor = ks__cfg_f64_or(c, "factor", KS_MAX(b->n_ctx / r.original, 1.0), 1e-3, 1e6);
    }
    r.dim = (uint32_t)(dim * partial) & ~1u;
    float *inv = ks_arena_calloc(b->arena, r.dim / 2 + 1, sizeof *inv);
    if (!inv) ks__cfg_fail(c, KS_E_NOMEM, "out of memory for a rotary table");
    if (r.dim < 2)
        ks__cfg_fail(c, KS_E_FORMAT, "the rotated part of a head has %u columns: at least 2 are needed", r.dim);
    if (!c->rc) fill_table(b, &r, inv, &ret);
    if (n) (void)ks__cfg_finish(c, "rope_parameters"); /* kept in the builder */
    c->at = at;
    if (c->rc) return ret;
    ret.rot_dim = r.dim;
    ret.inv_freq = ks__values(b, "inv_freq", inv, r.dim / 2);
    return ret;
}

void ks__rope(ks_build *b, const ks_rope *r, int16_t x, uint32_t n_heads, uint32_t head_dim)
{
    ks_op *op = ks__op(b, KS_OP_ROPE);
    op->cls = KS_CLS_ATTN;
    op->in[0] = op->out[0] = x;
    op->w[0] = r->inv_freq;
    op->u.rope.kind = r->kind;
    op->u.rope.n_heads = n_heads;
    op->u.rope.head_dim = head_dim;
    op->u.rope.rot_dim = r->rot_dim;
    op->u.rope.rot_begin = r->rot_begin;
    op->u.rope.mscale = r->mscale;
}
