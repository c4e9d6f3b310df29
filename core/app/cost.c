/* One function an op kind; ops that only pass rows through caches count nothing. */
#include "app/cost.h"
#include "base/base.h"
#include <math.h>
#include <string.h>

typedef struct count {
    const ks_graph *g;
    const ks_load *l;
    ks_cost *c;
    uint32_t moe_layers;
} count;

static bool is_quantized(const ks_weight *w)
{
    return w->type == KS_T_I4 || w->type == KS_T_I8 || w->type == KS_T_MXFP4;
}

/* `mats` matrices of a bank are read; `rows` rows are multiplied, each with one matrix. */
static void matrix(count *x, int32_t index, double mats, double rows)
{
    if (index < 0) return;
    const ks_weight *w = &x->g->weights[index];
    const double bytes = mats * (double)w->mat_bytes, macs = rows * (double)w->n_out * (double)w->n_in;
    x->c->class_bytes[w->cls & 15] += bytes;
    x->c->type_bytes[w->type & 31] += bytes;
    x->c->weight_bytes += bytes;
    *(is_quantized(w) ? &x->c->mac_int8 : &x->c->mac_f32) += macs;
}

static double rows_of(const count *x, int16_t reg)
{
    bool out = reg >= 0 && x->g->regs[reg].kind & KS_REG_OUT;
    return (double)x->l->n_seqs * (out ? x->l->outs : x->l->rows);
}

/* Experts of a layer that at least one of `rows` rows is routed to, if the rows choose independently. */
static double touched(const count *x, const ks_op *op, double rows)
{
    const uint32_t n = op->u.mlp.n_experts;
    const uint64_t *heat = x->l->heat && op->layer < x->g->n_layers && n == x->g->n_experts
                               ? x->l->heat + (size_t)op->layer * x->g->n_experts
                               : NULL;
    double total = 0, sum = 0;
    for (uint32_t e = 0; heat && e < n; e++) total += (double)heat[e];
    for (uint32_t e = 0; e < n; e++) {
        double p = total > 0 ? (double)heat[e] * op->u.mlp.k / total : (double)op->u.mlp.k / n;
        sum += 1 - pow(1 - fmin(p, 1), rows);
    }
    return sum;
}

static void experts(count *x, const ks_op *op)
{
    const double rows = rows_of(x, op->in[0]), pairs = rows * op->u.mlp.k, mats = touched(x, op, rows);
    matrix(x, op->w[0], mats, pairs);
    matrix(x, op->w[1], mats, pairs);
    x->c->experts += mats;
    x->moe_layers++;
}

/* Keys that a step reads of one sequence, and pairs of a row and a key that it sees. */
static void keys_seen(const ks_load *l, uint32_t window, uint32_t chunk, double *ret_keys, double *ret_pairs)
{
    const double end = l->pos + l->rows;
    double limit = window ? window : INFINITY, pairs = 0;
    if (chunk) limit = fmin(limit, chunk / 2.0); /* on average */
    /* Rows see pos + 1 .. pos + rows keys, at most the limit. */
    double free_rows = fmin(fmax(limit - l->pos, 0), l->rows);
    pairs = free_rows * (l->pos + (free_rows + 1) / 2);
    if (l->rows > free_rows) pairs += (l->rows - free_rows) * limit;
    *ret_keys = fmin(end, limit + l->rows);
    *ret_pairs = pairs;
}

/* macs: where those of the pairs belong. */
static void cached(count *x, const ks_op *op, uint32_t window, uint32_t chunk, double macs_a_pair, double limit,
                   double *macs)
{
    double keys, pairs;
    keys_seen(x->l, window, chunk, &keys, &pairs);
    if (limit > 0) { /* sparse: each row reads keys of its own choice */
        pairs = fmin(pairs, limit * x->l->rows);
        keys = fmin(keys, pairs);
    }
    const ks_state *s = op->state >= 0 ? &x->g->states[op->state] : NULL;
    if (s && s->kind == KS_STATE_KV)
        x->c->kv_bytes += x->l->n_seqs * keys * (double)(s->k_width + s->v_width) * ks_type_bits(x->l->kv_type) / 8;
    *macs += x->l->n_seqs * pairs * macs_a_pair;
}

/* Read each step; written once in `lag` rows at least, which is how far a kernel may let it lag behind. */
static void recurrent(count *x, const ks_op *op, double macs_a_row, double lag)
{
    const ks_state *s = op->state >= 0 ? &x->g->states[op->state] : NULL;
    if (s && s->kind == KS_STATE_RECURRENT)
        x->c->state_bytes += x->l->n_seqs * 4.0 * s->floats * (1 + fmin(x->l->rows / lag, 1));
    x->c->mac_f32 += rows_of(x, op->in[0]) * macs_a_row;
}

static void count_op(count *x, const ks_op *op)
{
    double rows = rows_of(x, op->in[0]), *attn = x->l->kv_type == KS_T_F32 ? &x->c->mac_f32 : &x->c->mac_attn;
    switch (op->kind) {
    case KS_OP_LINEAR: matrix(x, op->w[0], 1, rows); break;
    case KS_OP_MLP:
        matrix(x, op->w[0], 1, rows);
        matrix(x, op->w[1], 1, rows);
        break;
    case KS_OP_EXPERTS: experts(x, op); break;
    case KS_OP_ATTN:
        cached(x, op, op->u.attn.window, op->u.attn.chunk,
               (double)op->u.attn.n_heads * (op->u.attn.d_k + op->u.attn.d_v), 0, attn);
        break;
    case KS_OP_MLA: {
        const double heads = op->u.mla.n_heads;
        matrix(x, op->w[0], heads, rows * heads);
        matrix(x, op->w[1], heads, rows * heads);
        cached(x, op, 0, 0, heads * (2.0 * op->u.mla.d_latent + op->u.mla.d_rope),
               op->u.mla.sel >= 0 ? x->g->regs[op->u.mla.sel].width : 0, attn);
        break;
    }
    case KS_OP_INDEXER: cached(x, op, 0, 0, (double)op->u.indexer.n_heads * op->u.indexer.d, 0, &x->c->mac_f32); break;
    case KS_OP_CONV: recurrent(x, op, (double)op->u.conv.width * x->g->regs[op->out[0]].width, 1); break;
    case KS_OP_DELTA: /* decay, what the key holds, its correction, what the query reads */
        recurrent(x, op, 3.0 * op->u.delta.n_v_heads * op->u.delta.d_k * op->u.delta.d_v, KS_DELTA_CHUNK);
        break;
    case KS_OP_EMBED: {
        const ks_weight *w = &x->g->weights[op->w[0]];
        x->c->weight_bytes += rows * w->n_in * ks_type_bits(w->type) / 8;
        break;
    }
    default: break;
    }
}

void ks_cost_count(const ks_graph *g, const ks_load *l, ks_cost *ret)
{
    count x = { .g = g, .l = l, .c = ret };
    memset(ret, 0, sizeof *ret);
    for (uint32_t i = 0; i < g->n_ops; i++) count_op(&x, &g->ops[i]);
    if (x.moe_layers) ret->experts /= x.moe_layers;
}

/* Does the CPU take longer for n rows? Bytes are those of the experts that are asked for, multiply-adds those of all
 * pairs of a row and an expert. */
static bool link_wins(const ks_graph *g, double cold, double link, const ks_rates *r, uint32_t n)
{
    const ks_load l = { .n_seqs = 1, .rows = n };
    ks_cost all = { 0 };
    count x = { .g = g, .l = &l, .c = &all };
    for (uint32_t i = 0; i < g->n_ops; i++)
        if (g->ops[i].kind == KS_OP_EXPERTS) experts(&x, &g->ops[i]);
    const double bytes = cold * all.weight_bytes, compute = cold * (all.mac_int8 / r->int8 + all.mac_f32 / r->f32);
    return fmax(bytes / r->read, compute) > bytes / link;
}

/* The more rows, the more the CPU computes for a byte that it reads: there is one border. */
uint32_t ks_cost_share_rows(const ks_graph *g, double cold, double link, const ks_rates *r, uint32_t most)
{
    uint32_t lo = 1, hi = most;
    while (lo < hi) {
        uint32_t n = lo + (hi - lo) / 2;
        if (link_wins(g, cold, link, r, n))
            hi = n;
        else
            lo = n + 1;
    }
    return lo;
}

double ks_cost_bytes(const ks_cost *c)
{
    return c->weight_bytes + c->kv_bytes + c->state_bytes;
}

static double arithmetic_seconds(const ks_cost *c, const ks_rates *r)
{
    return c->mac_int8 / r->int8 + c->mac_f32 / r->f32 + c->mac_attn / r->attn;
}

double ks_cost_seconds(const ks_cost *c, const ks_rates *r)
{
    return fmax(ks_cost_bytes(c) / r->read, arithmetic_seconds(c, r));
}

const char *ks_cost_limit(const ks_cost *c, const ks_rates *r)
{
    return ks_cost_bytes(c) / r->read >= arithmetic_seconds(c, r) ? "memory" : "arithmetic";
}

static double over(double n, double rate)
{
    return rate > 0 ? n / rate : 0;
}

double ks_cost_gpu_seconds(const ks_cost *c, const ks_gpu_rates *r, double cold, bool ahead, const char **ret_limit)
{
    const double sent = cold * c->class_bytes[KS_CLS_EXPERT], link = over(sent, r->link + (ahead ? 0 : r->host)),
                 mem = over(ks_cost_bytes(c) - (ahead ? 0 : sent), r->mem),
                 compute = over(c->mac_int8, r->int8) + over(c->mac_f32 + c->mac_attn, r->bf16),
                 own = fmax(mem, compute);
    *ret_limit = link >= own ? "link" : mem > compute ? "memory" : "arithmetic";
    return ahead ? fmax(link, own) : link + own;
}
