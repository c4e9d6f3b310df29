/* See mla.h. */
#include "graph/mla.h"

#include "base/base.h"
#include <math.h>

static const ks_norm latent_norm = { .eps = 1e-6f }; /* the norms of the ranks never follow rms_norm_eps */

void ks__mla_read(ks_build *b, ks_mla *ret)
{
    ks_cfg *c = &b->cfg;
    *ret = (ks_mla) { .q_rank = ks__cfg_u32_or(c, "q_lora_rank", 0, 0, KS_DIM_MAX),
                      .latent = ks__cfg_u32(c, "kv_lora_rank", 1, 65536),
                      .nope = ks__cfg_u32(c, "qk_nope_head_dim", 1, 4096),
                      .rope_dim = ks__cfg_u32(c, "qk_rope_head_dim", 2, 4096),
                      .v = ks__cfg_u32(c, "v_head_dim", 1, 4096),
                      .bias = ks__cfg_bool_or(c, "attention_bias", false),
                      .index_rope = KS_ROPE_HALF };
    ks__cfg_only_u32(c, "qk_head_dim", ret->nope + ret->rope_dim);
    if (b->n_kv_heads != b->n_heads)
        ks__cfg_fail(c, KS_E_UNSUPPORTED,
                     "'num_key_value_heads' = %u: latent attention has as many as 'num_attention_heads' = %u",
                     b->n_kv_heads, b->n_heads);
    ret->rope = ks__rope_read(b, ret->rope_dim, 10000, 1);
    ret->rope.kind = ks__cfg_bool_or(c, "rope_interleave", true) ? KS_ROPE_INTER : KS_ROPE_HALF;
    ret->scale = 1.0f / sqrtf((float)(ret->nope + ret->rope_dim));
    ret->scale *= ret->rope.attn_factor * ret->rope.attn_factor;
}

/* The heads' rows of kv_b_proj: [nope | v] each. */
static int32_t kv_bank(ks_build *b, const ks_mla *m, const char *name, uint32_t first, uint32_t rows)
{
    ks_wpart part = ks__rows(b, "self_attn.kv_b_proj.weight", first, rows);
    part.stride_rows = m->nope + m->v;
    ks_wspec s = { .cls = KS_CLS_ATTN, .n_mat = b->n_heads, .n_out = rows, .n_in = m->latent, .with = -1 };
    return ks__weight(b, name, s, &part, 1);
}

static int16_t indexer(ks_build *b, const ks_mla *m, bool own, int16_t h, int16_t q_rank)
{
    int16_t sel = ks__reg_kind(b, "sel", KS_REG_SEL, m->index_top_k);
    if (!own) return sel;
    static const ks_norm norm = { .kind = KS_NORM_LAYER, .bias = true, .eps = 1e-6f };
    int16_t q = ks__reg(b, "index_q", m->index_heads * m->index_dim), k = ks__reg(b, "index_k", m->index_dim);
    int16_t w = ks__reg(b, "index_w", m->index_heads);
    ks_rope rope = m->rope;
    rope.kind = m->index_rope;
    ks__linear(b, KS_CLS_ATTN, 0, q_rank, q, "self_attn.indexer.wq_b", false);
    ks__linear(b, KS_CLS_ATTN, KS_WSPEC_EXACT, h, k, "self_attn.indexer.wk", false);
    ks__norm(b, &norm, k, k, "self_attn.indexer.k_norm", m->index_dim, m->index_dim);
    ks__rope(b, &rope, q, m->index_heads, m->index_dim);
    ks__rope(b, &rope, k, 1, m->index_dim);
    ks__linear(b, KS_CLS_ATTN, KS_WSPEC_EXACT, h, w, "self_attn.indexer.weights_proj", false);
    uint32_t state = ks__state(b, (ks_state) { .kind = KS_STATE_KV, .k_width = m->index_dim });
    ks_op *op = ks__op(b, KS_OP_INDEXER);
    op->cls = KS_CLS_ATTN;
    op->in[0] = q;
    op->in[1] = k;
    op->in[2] = w;
    op->out[0] = sel;
    op->state = (int32_t)state;
    op->u.indexer.n_heads = m->index_heads;
    op->u.indexer.d = m->index_dim;
    op->u.indexer.top_k = m->index_top_k;
    op->u.indexer.rot_dim = m->rope_dim;
    op->u.indexer.scale = 1.0f / sqrtf((float)m->index_dim) / sqrtf((float)m->index_heads);
    return sel;
}

int16_t ks__mla(ks_build *b, const ks_mla *m, bool index, int16_t h)
{
    uint32_t qd = m->nope + m->rope_dim, kv_n = m->latent + m->rope_dim;
    int16_t q = ks__reg(b, "q", b->n_heads * qd), kv = ks__reg(b, "kv", kv_n),
            o = ks__reg(b, "attn", b->n_heads * m->v), q_rank = -1;
    int16_t latent = ks__view(b, "kv.latent", kv, 0, m->latent),
            k_rope = ks__view(b, "kv.rope", kv, m->latent, m->rope_dim);
    int16_t y = ks__reg(b, "y", b->d);
    if (m->q_rank) {
        q_rank = ks__reg(b, "q_rank", m->q_rank);
        ks__linear(b, KS_CLS_ATTN, 0, h, q_rank, "self_attn.q_a_proj", m->bias);
        ks__norm(b, &latent_norm, q_rank, q_rank, "self_attn.q_a_layernorm", m->q_rank, m->q_rank);
        ks__linear(b, KS_CLS_ATTN, 0, q_rank, q, "self_attn.q_b_proj", false);
    } else {
        ks__linear(b, KS_CLS_ATTN, 0, h, q, "self_attn.q_proj", false);
    }
    ks__linear(b, KS_CLS_ATTN, 0, h, kv, "self_attn.kv_a_proj_with_mqa", m->bias);
    ks__norm(b, &latent_norm, latent, latent, "self_attn.kv_a_layernorm", m->latent, m->latent);
    ks_rope q_rot = m->rope;
    q_rot.rot_begin = m->nope;
    ks__rope(b, &q_rot, q, b->n_heads, qd);
    ks__rope(b, &m->rope, k_rope, 1, m->rope_dim);
    int16_t sel = m->index_top_k ? indexer(b, m, index, h, q_rank) : -1;

    int32_t uk = kv_bank(b, m, "self_attn.w_uk", 0, m->nope), uv = kv_bank(b, m, "self_attn.w_uv", m->nope, m->v);
    uint32_t state = ks__state(b, (ks_state) { .kind = KS_STATE_KV, .k_width = kv_n });
    ks_op *op = ks__op(b, KS_OP_MLA);
    op->cls = KS_CLS_ATTN;
    op->in[0] = q;
    op->in[1] = latent;
    op->in[2] = k_rope;
    op->out[0] = o;
    op->w[0] = uk;
    op->w[1] = uv;
    op->state = (int32_t)state;
    op->u.mla.n_heads = b->n_heads;
    op->u.mla.d_nope = m->nope;
    op->u.mla.d_rope = m->rope_dim;
    op->u.mla.d_v = m->v;
    op->u.mla.d_latent = m->latent;
    op->u.mla.scale = m->scale;
    op->u.mla.sel = sel;
    ks__linear(b, KS_CLS_ATTN, 0, o, y, "self_attn.o_proj", m->bias);
    return y;
}
