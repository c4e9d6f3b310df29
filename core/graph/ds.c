/* See ds.h. */
#include "graph/ds.h"

#include "base/base.h"

void ks__ds_read(ks_build *b, const char *scoring, uint32_t first_moe, ks_ds *ret)
{
    static const char *const kinds[] = { "dense", "sparse", NULL };
    ks_cfg *c = &b->cfg;
    uint32_t n_ff = ks__cfg_u32(c, "moe_intermediate_size", 1, KS_DIM_MAX);
    uint32_t n_shared =
        ks__cfg_u32_or(c, "n_shared_experts", ks__cfg_u32_or(c, "num_shared_experts", 0, 0, 1024), 0, 1024);
    *ret = (ks_ds) { .dense = { .n_ff = ks__cfg_u32(c, "intermediate_size", 1, KS_DIM_MAX), .act = b->act },
                     .shared = { .n_ff = ks__wide(b, n_shared, n_ff), .act = b->act } };
    ret->moe = (ks_moe) { .block = "mlp",
                          .correction = "mlp.gate.e_score_correction_bias",
                          .n_experts = ks__cfg_experts(b),
                          .k = ks__cfg_u32(c, "num_experts_per_tok", 1, KS_EXPERTS_MAX),
                          .score = KS_SCORE_SIGMOID,
                          .flags = KS_ROUTE_GROUP_TOP2,
                          .n_group = ks__cfg_u32_or(c, "n_group", 1, 1, KS_EXPERTS_MAX),
                          .topk_group = ks__cfg_u32_or(c, "topk_group", 1, 1, KS_EXPERTS_MAX),
                          .scale = (float)ks__cfg_f64_or(c, "routed_scaling_factor", 1, 1e-9, 1e9),
                          .norm_eps = 1e-20f,
                          .e = { .n_ff = n_ff, .act = b->act } };
    if (ks__cfg_bool_or(c, "norm_topk_prob", true)) ret->moe.flags |= KS_ROUTE_NORM;
    ks__cfg_only_str(c, "scoring_func", scoring);
    if (strcmp(scoring, "softmax") != 0) ks__cfg_only_str(c, "topk_method", "noaux_tc");
    ks__cfg_only_u32(c, "moe_layer_freq", 1);
    ks__cfg_ignore(c, "num_nextn_predict_layers"); /* they only draft */
    ks__cfg_ignore(c, "moe_router_dtype");
    ret->first_moe = ks__cfg_u32_or(c, "first_k_dense_replace", first_moe, 0, KS_LAYERS_MAX);
    ret->kinds = ks__layer_kinds(b, "mlp_layer_types", kinds);
}

int16_t ks__ds_ffn(ks_build *b, const ks_ds *ds, int16_t h)
{
    bool sparse = ds->kinds ? ds->kinds[b->layer] != 0 : b->layer >= ds->first_moe;
    if (!sparse) return ks__mlp(b, KS_CLS_DENSE, "mlp", &ds->dense, h);
    int16_t y = ks__moe(b, &ds->moe, h);
    ks__shared(b, "mlp.shared_experts", &ds->shared, h, y);
    return y;
}
