/* Reference ATTN: two passes over the keys (maximum; sums), in double, rounded once. [worker]
 *
 * The sums of one head's output live on the stack, D_CHUNK columns at a time; scores are computed
 * again for each chunk, so that no shape needs memory from the host. */
#include "ref/ref_rows.h"

#include "base/base.h"
#include "base/num.h"
#include <math.h>

#define D_CHUNK 512u

static float elem(uint32_t type, const uint8_t *row, size_t i)
{
    if (type == KS_T_F32) {
        float f;
        memcpy(&f, row + 4 * i, 4);
        return f;
    }
    if (type == KS_T_BF16) {
        uint16_t h;
        memcpy(&h, row + 2 * i, 2);
        return ks_bf16_to_f32(h);
    }
    return ks_f8e4m3_to_f32(row[i]);
}

static const uint8_t *token(const ks_attn_args *a, uint32_t type, bool of_v, uint32_t j)
{
    const uint8_t *base = of_v ? a->v : a->k;
    size_t page_bytes = of_v ? a->v_page_bytes : a->k_page_bytes, stride = of_v ? a->v_stride : a->k_stride;
    return base + a->pages[j / a->page_tok] * page_bytes + j % a->page_tok * stride * (ks_type_bits(type) / 8);
}

/* Candidate i of row r, or false: not visible. */
static bool key_of(const ks_attn_args *a, uint32_t r, uint32_t i, uint32_t *ret_j)
{
    uint32_t p = a->pos + r, j = a->sel ? a->sel[(size_t)r * a->sel_stride + i] : i;
    *ret_j = j;
    return j <= p && (!a->window || p - j < a->window) && (!a->chunk || j >= p - p % a->chunk);
}

static double score(const ks_attn_args *a, uint32_t type, uint32_t r, uint32_t h, uint32_t j)
{
    uint32_t kvh = h / (a->n_heads / a->n_kv_heads);
    const float *q = a->q + r * a->q_stride + (size_t)h * a->d_k;
    const uint8_t *k = token(a, type, false, j);
    double s = 0;
    for (uint32_t d = 0; d < a->d_k; d++) s += (double)q[d] * (double)elem(type, k, (size_t)kvh * a->d_k + d);
    s *= (double)a->scale;
    return a->softcap != 0 ? (double)a->softcap * tanh(s / (double)a->softcap) : s;
}

static void head(const ks_attn_args *a, uint32_t type, uint32_t r, uint32_t h, uint32_t d0, uint32_t n_d)
{
    uint32_t kvh = h / (a->n_heads / a->n_kv_heads), n = a->sel ? a->n_sel[r] : a->pos + r + 1, j;
    double max = a->sinks ? (double)a->sinks[h] : -INFINITY, sum[D_CHUNK] = { 0 };
    for (uint32_t i = 0; i < n; i++)
        if (key_of(a, r, i, &j)) max = fmax(max, score(a, type, r, h, j));

    double den = a->sinks ? exp((double)a->sinks[h] - max) : 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!key_of(a, r, i, &j)) continue;
        double p = exp(score(a, type, r, h, j) - max);
        const uint8_t *v = token(a, type, true, j);
        den += p;
        for (uint32_t d = 0; d < n_d; d++) sum[d] += p * (double)elem(type, v, (size_t)kvh * a->d_v + d0 + d);
    }
    float *o = a->o + r * a->o_stride + (size_t)h * a->d_v + d0;
    for (uint32_t d = 0; d < n_d; d++) o[d] = den > 0 ? (float)(sum[d] / den) : 0.0f; /* 0: a row without keys */
}

static void attn(const ks_attn_args *a, uint32_t type, uint32_t begin, uint32_t end)
{
    uint32_t group = a->n_heads / a->n_kv_heads;
    if (KS_HAS(a, part_merge) && a->part && !a->part_merge) return; /* the merge does it all: the bits cannot differ */
    for (uint32_t u = begin; u < end; u++)
        for (uint32_t i = 0; i < group; i++)
            for (uint32_t d0 = 0; d0 < a->d_v; d0 += D_CHUNK)
                head(a, type, u / a->n_kv_heads, u % a->n_kv_heads * group + i, d0, KS_MIN(D_CHUNK, a->d_v - d0));
}

void ks__ref_attn_f32(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    attn(args, KS_T_F32, begin, end);
}

void ks__ref_attn_bf16(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    attn(args, KS_T_BF16, begin, end);
}

void ks__ref_attn_f8e4m3(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    attn(args, KS_T_F8E4M3, begin, end);
}
