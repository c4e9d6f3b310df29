/* Dense feed-forward, router and experts as ops. See build.h. */
#include "graph/build.h"

#include "base/base.h"

static uint32_t ceil16(uint32_t n)
{
    return (n + 15u) & ~15u;
}

static void set_mlp(ks_op *op, const ks_mlp *m, uint32_t n_experts, uint32_t k)
{
    op->u.mlp.n_experts = n_experts;
    op->u.mlp.k = k;
    op->u.mlp.n_ff = m->n_ff;
    op->u.mlp.act = m->act;
    op->u.mlp.limit = m->limit;
    op->u.mlp.alpha = m->alpha;
}

/* gate_up and down of one or many experts, from `gate` and `up` parts and a `down` part. */
static void add_bank(ks_build *b, uint32_t cls, const char *block, uint32_t n_mat, uint32_t n_ff, const ks_wpart gu[2],
                     ks_wpart down, int32_t ret_w[2])
{
    const char *name;
    ks_wspec g = {
        .cls = cls, .flags = KS_WSPEC_PAIR, .n_mat = n_mat, .n_out = 2 * ceil16(n_ff), .n_in = b->d, .with = -1
    };
    ks_wspec d = { .cls = cls, .n_mat = n_mat, .n_out = b->d, .n_in = n_ff, .with = -1 };
    if (n_mat > 1) g.with = (int32_t)b->n_specs + 1;
    name = ks__printf(b, "%s.gate_up", block);
    ret_w[0] = ks__weight(b, name, g, gu, 2);
    name = ks__printf(b, "%s.down", block);
    ret_w[1] = ks__weight(b, name, d, &down, 1);
}

static ks_wpart part_of(ks_build *b, const char *block, const char *leaf, const char *dflt, uint32_t rows)
{
    const char *name;
    name = ks__printf(b, "%s.%s.weight", block, leaf ? leaf : dflt);
    return ks__rows(b, name, 0, rows);
}

/* Biases of gate_proj, up_proj and down_proj. */
static void mlp_bias(ks_build *b, uint32_t cls, const char *block, const ks_mlp *m, int32_t ret_w[2])
{
    static const char *const names[] = { "gate_proj.bias", "up_proj.bias", "down_proj.bias" };
    const char *name[3];
    ks_wpart gu[2];
    for (uint32_t i = 0; i < 3; i++) name[i] = ks__printf(b, "%s.%s", block, names[i]);
    for (uint32_t i = 0; i < 2; i++) gu[i] = ks__rows(b, name[i], 0, m->n_ff);
    ks_wspec s = {
        .cls = cls, .flags = KS_WSPEC_VECTOR | KS_WSPEC_PAIR, .n_out = 1, .n_in = 2 * ceil16(m->n_ff), .with = -1
    };
    ret_w[0] = ks__weight(b, name[0], s, gu, 2);
    ret_w[1] = ks__vector(b, cls, name[2], b->d);
}

int16_t ks__mlp(ks_build *b, uint32_t cls, const char *block, const ks_mlp *m, int16_t x)
{
    int16_t y = ks__reg(b, cls == KS_CLS_SHARED ? "shared" : "y", b->d);
    int32_t w[2];
    ks_wpart gu[2] = { part_of(b, block, m->gate, "gate_proj", m->n_ff), part_of(b, block, m->up, "up_proj", m->n_ff) };
    add_bank(b, cls, block, 1, m->n_ff, gu, part_of(b, block, m->down, "down_proj", b->d), w);
    int32_t bias[2] = { -1, -1 };
    if (m->bias) mlp_bias(b, cls, block, m, bias);
    ks_op *op = ks__op(b, KS_OP_MLP);
    op->cls = (uint16_t)cls;
    op->in[0] = x;
    op->out[0] = y;
    op->w[0] = w[0];
    op->w[1] = w[1];
    op->w[2] = bias[0];
    op->w[3] = bias[1];
    set_mlp(op, m, 1, 1);
    return y;
}

/* Experts stacked in one tensor: (experts, 2 ff, d) or, transposed, (experts, d, 2 ff). The shape says which;
 * where it cannot (2 ff = d) the family does. MXFP4 blocks always lie (experts, out, in). */
static void stacked(ks_build *b, const ks_moe *m, const char *gate_up, const char *down, ks_wpart ret_gu[2],
                    ks_wpart *ret_down)
{
    uint32_t ff = m->e.n_ff;
    const ks_tensor *t = b->find(b->find_ctx, ks__tensor(b, gate_up));
    bool transposed = false;
    if (t && t->rank == 3 && t->shape[1] != t->shape[2])
        transposed = t->shape[1] == b->d && t->shape[2] == 2 * (uint64_t)ff;
    else if (t)
        transposed = m->fused_transposed;
    for (uint32_t i = 0; i < 2; i++) {
        ret_gu[i] = ks__rows(b, gate_up, m->fused_interleaved ? i : i * ff, ff);
        ret_gu[i].transposed = transposed;
        if (!m->fused_interleaved) continue;
        ret_gu[i].row_block = 1;
        ret_gu[i].row_step = 2;
    }
    *ret_down = ks__rows(b, down, 0, b->d);
    ret_down->transposed = transposed;
}

static void read_experts(ks_build *b, const ks_moe *m, int32_t w[4])
{
    const char *base, *fused, *fused_down, *one;
    ks_wpart gu[2], down;
    base = ks__printf(b, "%s.%s", m->block, m->experts ? m->experts : "experts");
    fused = ks__printf(b, "%s.%s", m->fused ? m->block : base, m->fused ? m->fused : "gate_up_proj");
    fused_down = ks__printf(b, "%s.%s", m->fused ? m->block : base, m->fused ? m->fused_down : "down_proj");
    if (ks__has(b, fused)) {
        stacked(b, m, fused, fused_down, gu, &down);
    } else {
        one = ks__printf(b, "%s.{}", base);
        gu[0] = part_of(b, one, m->e.gate, "gate_proj", m->e.n_ff);
        gu[1] = part_of(b, one, m->e.up, "up_proj", m->e.n_ff);
        down = part_of(b, one, m->e.down, "down_proj", b->d);
    }
    add_bank(b, KS_CLS_EXPERT, base, m->n_experts, m->e.n_ff, gu, down, w);
    w[2] = w[3] = -1;
    if (!m->biases) return;
    one = ks__printf(b, "%s.gate_up_proj_bias", base);
    for (uint32_t i = 0; i < 2; i++) {
        gu[i] = ks__rows(b, one, m->fused_interleaved ? i : i * m->e.n_ff, m->e.n_ff);
        if (!m->fused_interleaved) continue;
        gu[i].row_block = 1;
        gu[i].row_step = 2;
    }
    ks_wspec s = { .cls = KS_CLS_EXPERT,
                   .flags = KS_WSPEC_VECTOR | KS_WSPEC_PAIR,
                   .n_mat = m->n_experts,
                   .n_out = 1,
                   .n_in = 2 * ceil16(m->e.n_ff),
                   .with = -1 };
    w[2] = ks__weight(b, one, s, gu, 2);
    one = ks__printf(b, "%s.down_proj_bias", base);
    down = ks__rows(b, one, 0, b->d);
    s.flags = KS_WSPEC_VECTOR;
    s.n_in = b->d;
    w[3] = ks__weight(b, one, s, &down, 1);
}

static void check_moe(ks_build *b, const ks_moe *m)
{
    ks_cfg *c = &b->cfg;
    if (m->k > m->n_experts) ks__cfg_fail(c, KS_E_FORMAT, "%u experts a token are chosen of %u", m->k, m->n_experts);
    if (m->n_group <= 1) return;
    if (m->n_experts % m->n_group)
        ks__cfg_fail(c, KS_E_FORMAT, "%u experts cannot be divided into 'n_group' = %u groups", m->n_experts,
                     m->n_group);
    else if (m->topk_group < 1 || m->topk_group > m->n_group)
        ks__cfg_fail(c, KS_E_FORMAT, "'topk_group' is %u: 1 to 'n_group' = %u are possible", m->topk_group, m->n_group);
    else if (m->n_experts / m->n_group < 2 && (m->flags & KS_ROUTE_GROUP_TOP2))
        ks__cfg_fail(c, KS_E_FORMAT, "'n_group' = %u leaves less than two experts a group", m->n_group);
    else if (m->k > m->topk_group * (m->n_experts / m->n_group))
        ks__cfg_fail(c, KS_E_FORMAT, "'topk_group' = %u groups hold fewer than the %u experts to choose", m->topk_group,
                     m->k);
}

int16_t ks__moe(ks_build *b, const ks_moe *m, int16_t x)
{
    const char *router;
    check_moe(b, m);
    int16_t logits = ks__reg(b, "router", m->n_experts), route = ks__reg_kind(b, "route", KS_REG_ROUTE, m->k),
            y = ks__reg(b, "y", b->d);
    b->n_experts = KS_MAX(b->n_experts, m->n_experts);
    router = ks__printf(b, "%s.%s", m->block, m->router ? m->router : "gate");
    ks__linear(b, KS_CLS_ROUTER, KS_WSPEC_EXACT, x, logits, router, m->router_bias);
    int32_t correction = m->correction ? ks__vector(b, KS_CLS_ROUTER, m->correction, m->n_experts) : -1, w[4];

    ks_op *op = ks__op(b, KS_OP_ROUTE);
    op->cls = KS_CLS_ROUTER;
    op->in[0] = logits;
    op->out[0] = route;
    op->w[0] = correction;
    op->u.route.n_experts = m->n_experts;
    op->u.route.k = m->k;
    op->u.route.score = m->score;
    op->u.route.flags = m->flags;
    op->u.route.n_group = KS_MAX(m->n_group, 1u);
    op->u.route.topk_group = m->topk_group;
    op->u.route.scale = m->scale != 0 ? m->scale : 1.0f;
    op->u.route.norm_eps = m->norm_eps;
    op->u.route.jitter = m->jitter;

    read_experts(b, m, w);
    op = ks__op(b, KS_OP_EXPERTS);
    op->cls = KS_CLS_EXPERT;
    op->in[0] = x;
    op->in[1] = route;
    op->out[0] = y;
    memcpy(op->w, w, sizeof w);
    set_mlp(op, &m->e, m->n_experts, m->k);
    op->u.mlp.weigh_input = m->weigh_input;
    return y;
}

void ks__shared_gated(ks_build *b, const char *block, const ks_mlp *m, int16_t h, int16_t sum)
{
    const char *gate;
    int16_t g = ks__reg(b, "shared_gate", 1), y = ks__mlp(b, KS_CLS_SHARED, block, m, h);
    gate = ks__printf(b, "%s_gate", block);
    ks__linear(b, KS_CLS_SHARED, KS_WSPEC_EXACT, h, g, gate, false);
    ks__mul(b, y, g, y, KS_ACT1_SIGMOID, 0);
    ks__add(b, sum, y, sum, 1, 1);
}

void ks__shared(ks_build *b, const char *block, const ks_mlp *m, int16_t h, int16_t sum)
{
    if (m->n_ff) ks__add(b, sum, ks__mlp(b, KS_CLS_SHARED, block, m, h), sum, 1, 1);
}
