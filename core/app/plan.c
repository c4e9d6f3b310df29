/* The plan: the store's own sizes of the weights, the graph's of the cache. */
#include "app/plan.h"

#include "base/base.h"
#include "cpu/cpu.h"

#define KS_DEFAULT_CONTEXT                                                                    \
    32768u /* tokens, where the model allows more: a larger KV cache is the user's to ask for \
            */

int ks_plan_make(const ks_app *a, ks_plan *ret, ks_err *err)
{
    const ks_graph *g = &a->model.graph;
    int64_t context = ks_config_int(a->config, "context");
    uint32_t kv = ks_app_kv_type(a->config);
    ks_store_opts o = { 0 };
    ks_plan p = { 0 };
    if (context > (int64_t)g->n_ctx)
        return ks_fail(err, KS_E_CONFIG, "--context %lld: the model was made for at most %u tokens", (long long)context,
                       g->n_ctx);
    p.context = context ? (uint32_t)context : KS_MIN(g->n_ctx, KS_DEFAULT_CONTEXT);
    ks_app_types(a->config, o.type);
    int rc = ks_store_check(a->ckpt, a->model.specs, g->n_weights, &o, p.class_bytes, err);
    if (rc) return rc;
    for (uint32_t i = 0; i < KS_COUNT(p.class_bytes); i++) p.weight_bytes += p.class_bytes[i];
    for (uint32_t i = 0; i < g->n_states; i++)
        if (g->states[i].kind == KS_STATE_KV)
            p.kv_token_bytes += (uint64_t)(g->states[i].k_width + g->states[i].v_width) * ks_type_bits(kv) / 8;
    p.kv_bytes = p.kv_token_bytes * p.context;
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
