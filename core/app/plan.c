/* The plan: sizes from the weight specs and the settings, by the same formulas the store uses. */
#include "app/plan.h"

#include "base/base.h"
#include "cpu/cpu.h"

#define KS_DEFAULT_CONTEXT                                                                    \
    32768u /* tokens, where the model allows more: a larger KV cache is the user's to ask for \
            */

static uint64_t spec_bytes(const ks_wspec *s, const uint32_t type[16])
{
    uint64_t elements = (uint64_t)s->n_mat * s->n_out * s->n_in;
    if (s->flags & KS_WSPEC_VECTOR) return elements * 4;
    if (s->flags & KS_WSPEC_TABLE) return elements * 2;
    uint32_t t = s->flags & KS_WSPEC_EXACT ? KS_T_BF16 : type[s->cls];
    uint32_t group = t == KS_T_BF16 ? 0 : ks_quant_group(s->n_in);
    return (uint64_t)s->n_mat * ks_t16_strips(s->n_out) * ks_t16_strip_bytes(t, s->n_in, group);
}

int ks_plan_make(const ks_app *a, ks_plan *ret, ks_err *err)
{
    const ks_graph *g = &a->model.graph;
    int64_t context = ks_config_int(a->config, "context");
    uint32_t type[16], kv = ks_app_kv_type(a->config);
    ks_plan p = { 0 };
    if (context > (int64_t)g->n_ctx)
        return ks_fail(err, KS_E_CONFIG, "--context %lld: the model was made for at most %u tokens", (long long)context,
                       g->n_ctx);
    p.context = context ? (uint32_t)context : KS_MIN(g->n_ctx, KS_DEFAULT_CONTEXT);
    ks_app_types(a->config, type);
    for (uint32_t i = 0; i < g->n_weights; i++) {
        uint64_t bytes = spec_bytes(&a->model.specs[i], type);
        p.class_bytes[a->model.specs[i].cls & 15] += bytes;
        p.weight_bytes += bytes;
    }
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
