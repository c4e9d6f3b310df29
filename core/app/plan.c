/* The plan: the store's own sizes of the weights, the graph's of the cache, and the bounds of both together. */
#include "app/plan.h"

#include "base/base.h"
#include "cpu/cpu.h"
#include <string.h>

/* Tokens, where the model allows more: a larger KV cache is the user's to ask for. */
#define KS_DEFAULT_CONTEXT 32768u
/* The part of its bound that this program reaches on the machines of docs/performance.md. */
#define KS_EXPECT_DECODE 0.7
#define KS_EXPECT_PREFILL 0.5

/* Sizes by class, and the type that most of each has. */
static void add_weights(const ks_graph *g, ks_plan *p)
{
    uint64_t most[16] = { 0 };
    for (uint32_t i = 0; i < g->n_weights; i++) {
        const ks_weight *w = &g->weights[i];
        const uint64_t bytes = (uint64_t)w->n_mat * w->mat_bytes;
        const uint32_t cls = w->cls & 15;
        p->class_bytes[cls] += bytes;
        p->weight_bytes += bytes;
        if (bytes <= most[cls]) continue;
        most[cls] = bytes;
        p->class_type[cls] = w->type;
    }
}

int ks_plan_make(ks_app *a, ks_plan *ret, ks_err *err)
{
    const ks_graph *g = &a->model.graph;
    int64_t context = ks_config_int(a->config, "context");
    ks_store_opts o = { 0 };
    ks_plan p = { .kv_type = ks_app_kv_type(a->config) };
    if (context > (int64_t)g->n_ctx)
        return ks_fail(err, KS_E_CONFIG, "--context %lld: the model was made for at most %u tokens", (long long)context,
                       g->n_ctx);
    p.context = context ? (uint32_t)context : KS_MIN(g->n_ctx, KS_DEFAULT_CONTEXT);
    ks_app_types(a, &o);
    int rc = ks_store_check(a->ckpt, a->model.specs, g->n_weights, &o, a->model.weights, err);
    if (rc) return rc;
    add_weights(g, &p);
    for (uint32_t i = 0; i < g->n_states; i++) {
        const ks_state *s = &g->states[i];
        if (s->kind == KS_STATE_KV)
            p.kv_token_bytes += (uint64_t)(s->k_width + s->v_width) * ks_type_bits(p.kv_type) / 8;
        else
            p.state_bytes += (uint64_t)s->floats * sizeof(float);
    }
    for (uint32_t i = 0; i < g->n_ops; i++) { /* kernels keep some rows beside the matrices */
        const ks_op *op = &g->ops[i];
        if (op->kind == KS_OP_DELTA)
            p.state_bytes +=
                op->u.delta.n_v_heads * sizeof(float) *
                (ks_delta_floats(op->u.delta.d_k, op->u.delta.d_v) - (size_t)op->u.delta.d_k * op->u.delta.d_v);
    }
    p.kv_bytes = p.kv_token_bytes * p.context;
    uint64_t kv_mb = (uint64_t)ks_config_int(a->config, "kv-cache-mb");
    if (kv_mb && p.kv_bytes > kv_mb << 20) /* the engine would say so, too, but after the weights are read */
        return ks_fail(err, KS_E_CONFIG,
                       "--kv-cache-mb %llu holds %llu tokens, less than one context of %u: lower --context or raise "
                       "--kv-cache-mb",
                       (unsigned long long)kv_mb, (unsigned long long)((kv_mb << 20) / p.kv_token_bytes), p.context);
    p.limit_bytes = (uint64_t)ks_config_int(a->config, "ram-limit");
    if (!p.limit_bytes) p.limit_bytes = ks_ram_available_bytes();
    *ret = p;
    return 0;
}

int ks_plan_fits(const ks_plan *p, ks_err *err)
{
    if (p->weight_bytes + p->kv_bytes <= p->limit_bytes) return 0;
    return ks_fail(err, KS_E_LIMIT,
                   "the weights need %.2f GB and the KV cache of one context %.2f GB, but %.2f GB of RAM may be used: "
                   "lower --cpu-expert-bits or --context, "
                   "raise --ram-limit, or use a machine with more memory",
                   (double)p->weight_bytes / 1e9, (double)p->kv_bytes / 1e9, (double)p->limit_bytes / 1e9);
}

static void set_speed(const ks_app *a, const ks_rates *r, const ks_load *l, double tokens, double reached,
                      ks_plan_speed *ret)
{
    *ret = (ks_plan_speed) { .bound = 0 };
    ks_cost_count(&a->model.graph, l, &ret->cost);
    memcpy(ret->bytes, ret->cost.class_bytes, sizeof ret->cost.class_bytes);
    ret->bytes[KS_PLAN_KV] = ret->cost.kv_bytes;
    ret->bytes[KS_PLAN_STATE] = ret->cost.state_bytes;
    ret->bound = tokens / ks_cost_seconds(&ret->cost, r);
    ret->expect = reached * ret->bound;
    ret->limit = ks_cost_limit(&ret->cost, r);
}

void ks_plan_decode(const ks_app *a, const ks_plan *p, const ks_rates *r, uint32_t batch, uint32_t depth,
                    ks_plan_speed *ret)
{
    ks_load l = { .n_seqs = batch, .rows = 1, .outs = 1, .pos = depth, .kv_type = p->kv_type };
    set_speed(a, r, &l, batch, KS_EXPECT_DECODE, ret);
}

void ks_plan_prefill(const ks_app *a, const ks_plan *p, const ks_rates *r, uint32_t tokens, ks_plan_speed *ret)
{
    ks_load l = { .n_seqs = 1, .rows = tokens, .outs = 1, .kv_type = p->kv_type };
    set_speed(a, r, &l, tokens, KS_EXPECT_PREFILL, ret);
}
