/* Grouped-query attention as ops. See build.h. */
#include "graph/build.h"

#include "base/base.h"
#include <math.h>

static void clamp(ks_build *b, int16_t x, float limit)
{
    ks_op *op = ks__op(b, KS_OP_CLAMP);
    op->in[0] = op->out[0] = x;
    op->f[0] = limit;
}

/* q and k after their projection: norm, limits and rotation in the family's order. */
static void shape_heads(ks_build *b, const ks_gqa *a, const ks_rope *rope, int16_t x, const char *norm,
                        uint32_t n_heads)
{
    uint32_t hd = b->head_dim, width = a->norm_whole ? n_heads * hd : hd;
    bool with_norm = norm || a->norm_plain;
    if (with_norm && !a->norm_after_rope) ks__norm(b, &a->norm, x, x, norm, width, width);
    if (a->clip != 0) clamp(b, x, a->clip);
    if (rope) ks__rope(b, rope, x, n_heads, hd);
    if (with_norm && a->norm_after_rope) ks__norm(b, &a->norm, x, x, norm, width, width);
}

/* A projection that holds [head | gate] per head, as one matrix with all heads first, then all gates. */
static void gated_q(ks_build *b, const ks_gqa *a, const char *tensor, int16_t x, int16_t y)
{
    uint32_t hd = b->head_dim, n = b->n_heads * hd;
    const char *name;
    int32_t bias = -1;
    ks_wpart parts[2];
    name = ks__printf(b, "%s.weight", tensor);
    for (uint32_t i = 0; i < 2; i++) {
        parts[i] = ks__rows(b, name, i * hd, n);
        parts[i].row_block = hd;
        parts[i].row_step = 2 * hd;
    }
    ks_wspec s = { .cls = KS_CLS_ATTN, .n_out = 2 * n, .n_in = b->d, .with = -1 };
    int32_t w = ks__weight(b, name, s, parts, 2);
    if (a->bias_qkv) {
        name = ks__printf(b, "%s.bias", tensor);
        for (uint32_t i = 0; i < 2; i++) parts[i].tensor = ks__tensor(b, name);
        ks_wspec sb = { .cls = KS_CLS_ATTN, .flags = KS_WSPEC_VECTOR, .n_out = 1, .n_in = 2 * n, .with = -1 };
        bias = ks__weight(b, name, sb, parts, 2);
    }
    ks__linear_w(b, KS_CLS_ATTN, x, y, w, bias);
}

static void core_op(ks_build *b, const ks_gqa *a, int16_t q, int16_t k, int16_t v, int16_t o)
{
    uint32_t hd = b->head_dim;
    int32_t sinks = a->sinks ? ks__vector(b, KS_CLS_ATTN, "self_attn.sinks", b->n_heads) : -1;
    uint32_t state =
        ks__state(b, (ks_state) { .kind = KS_STATE_KV, .k_width = b->n_kv_heads * hd, .v_width = b->n_kv_heads * hd });
    ks_op *op = ks__op(b, KS_OP_ATTN);
    op->cls = KS_CLS_ATTN;
    op->in[0] = q;
    op->in[1] = k;
    op->in[2] = v;
    op->out[0] = o;
    op->w[0] = sinks;
    op->state = (int32_t)state;
    op->u.attn.n_heads = b->n_heads;
    op->u.attn.n_kv_heads = b->n_kv_heads;
    op->u.attn.d_k = op->u.attn.d_v = hd;
    op->u.attn.window = a->window;
    op->u.attn.chunk = a->chunk;
    op->u.attn.scale = a->scale != 0 ? a->scale : 1.0f / sqrtf((float)hd);
    op->u.attn.sel = -1;
}

int16_t ks__gqa(ks_build *b, const ks_gqa *a, const ks_rope *rope, int16_t x)
{
    uint32_t hd = b->head_dim, nq = b->n_heads * hd, nk = b->n_kv_heads * hd;
    const char *tq = a->q ? a->q : "self_attn.q_proj";
    int16_t qg = ks__reg(b, "q", a->gated ? 2 * nq : nq), q = a->gated ? ks__view(b, "q.heads", qg, 0, nq) : qg;
    int16_t k = ks__reg(b, "k", nk), v = ks__reg(b, "v", nk), o = ks__reg(b, "attn", nq), y = ks__reg(b, "y", b->d);
    int16_t gate = a->gated ? ks__view(b, "q.gates", qg, nq, nq) : a->gate ? ks__reg(b, "gate", nq) : -1;
    if (a->gated)
        gated_q(b, a, tq, x, qg);
    else
        ks__linear(b, KS_CLS_ATTN, 0, x, q, tq, a->bias_qkv);
    ks__linear(b, KS_CLS_ATTN, 0, x, k, a->k ? a->k : "self_attn.k_proj", a->bias_qkv);
    ks__linear(b, KS_CLS_ATTN, 0, x, v, a->v ? a->v : "self_attn.v_proj", a->bias_qkv);
    if (a->gate) ks__linear(b, KS_CLS_ATTN, 0, x, gate, a->gate, false);
    shape_heads(b, a, rope, q, a->q_norm, b->n_heads);
    shape_heads(b, a, rope, k, a->k_norm, b->n_kv_heads);
    if (a->clip != 0) clamp(b, v, a->clip);
    if (a->temp_floor != 0) {
        ks_op *op = ks__op(b, KS_OP_QSCALE);
        op->in[0] = op->out[0] = q;
        op->f[0] = a->temp_scale;
        op->f[1] = a->temp_floor;
    }
    core_op(b, a, q, k, v, o);
    if (gate >= 0) ks__mul(b, o, gate, o, KS_ACT1_SIGMOID, 0);
    ks__linear(b, KS_CLS_ATTN, 0, o, y, a->o ? a->o : "self_attn.o_proj", a->bias_o);
    return y;
}
