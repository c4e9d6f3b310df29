/* ROUTE: from router logits to experts and weights, one row at a time, in float. Ties go to the lower index; a row's
 * experts are written in ascending order, which is the order their results are summed in. [worker] */
#include "device/cpu_impl.h"

#include "base/base.h"
#include <emmintrin.h>
#include <math.h>

struct pair {
    int32_t expert;
    float weight;
};

struct router {
    const ks_op *op;
    const ks_kernel *row; /* SCORE */
    void *scratch;        /* its */
};

static bool any_above(const float *v, __m128 limit)
{
    __m128 a = _mm_cmpgt_ps(_mm_loadu_ps(v), limit), b = _mm_cmpgt_ps(_mm_loadu_ps(v + 4), limit);
    return _mm_movemask_ps(_mm_or_ps(a, b)) != 0;
}

/* The k best of n by v, into ids, best first. Hardly any of the later numbers is among the best so far. */
static void top_k(const float *v, uint32_t n, uint32_t k, int32_t *ids)
{
    uint32_t have = 0;
    for (uint32_t i = 0; i < n; i++) {
        while (have == k && i + 8 <= n && !any_above(v + i, _mm_set1_ps(v[ids[k - 1]]))) i += 8;
        if (i == n || (have == k && !(v[i] > v[ids[k - 1]]))) continue;
        uint32_t at = have < k ? have++ : k - 1;
        while (at > 0 && v[i] > v[ids[at - 1]]) {
            ids[at] = ids[at - 1];
            at--;
        }
        ids[at] = (int32_t)i;
    }
}

static void score(const struct router *t, float *v, uint32_t n)
{
    ks_score_args a = { .size = sizeof a, .kind = t->op->u.route.score, .n_rows = 1, .n = n, .x = v, .y = v };
    t->row->fn(&a, 0, 1, t->scratch);
}

/* Experts outside the best groups can no longer be chosen. */
static void limit_groups(const ks_op *op, float *choice, float *group, int32_t *best)
{
    uint32_t n_group = op->u.route.n_group, per = op->u.route.n_experts / n_group;
    for (uint32_t g = 0; g < n_group; g++) {
        float one = -INFINITY, two = -INFINITY;
        for (uint32_t i = 0; i < per; i++) {
            float v = choice[g * per + i];
            if (v > one) {
                two = one;
                one = v;
            } else if (v > two) {
                two = v;
            }
        }
        group[g] = op->u.route.flags & KS_ROUTE_GROUP_TOP2 ? one + two : one;
    }
    top_k(group, n_group, op->u.route.topk_group, best);
    for (uint32_t g = 0; g < n_group; g++) {
        bool keep = false;
        for (uint32_t i = 0; i < op->u.route.topk_group; i++) keep |= best[i] == (int32_t)g;
        for (uint32_t i = 0; i < per && !keep; i++) choice[g * per + i] = -INFINITY;
    }
}

/* phimoe: each of the experts in turn is the best of those left; its weight is a softmax over those left that are
 * near it. */
static void sparse_mix(const ks_op *op, const float *z, float *left, int32_t *ids, float *w)
{
    uint32_t n = op->u.route.n_experts;
    memcpy(left, z, n * sizeof *left);
    for (uint32_t s = 0; s < op->u.route.k; s++) {
        top_k(left, n, 1, &ids[s]);
        float max = left[ids[s]], sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            float factor = fmaxf(fabsf(z[i]), max);
            if (left[i] > -INFINITY && !((max - z[i]) / factor > 2 * op->u.route.jitter)) sum += expf(left[i] - max);
        }
        w[s] = 1.0f / sum;
        left[ids[s]] = -INFINITY;
    }
}

static void sort_pairs(struct pair *p, uint32_t k)
{
    for (uint32_t i = 1; i < k; i++) {
        struct pair x = p[i];
        uint32_t j = i;
        for (; j > 0 && p[j - 1].expert > x.expert; j--) p[j] = p[j - 1];
        p[j] = x;
    }
}

/* scratch: 3 n_experts floats and n_experts ints. */
static void route_row(const struct router *t, const float *z, const float *bias, float *scratch, struct pair *out)
{
    const ks_op *op = t->op;
    uint32_t n = op->u.route.n_experts, k = op->u.route.k, flags = op->u.route.flags;
    float *p = scratch, *choice = scratch + n, *w = scratch + 2 * n;
    int32_t *ids = (int32_t *)(void *)(scratch + 3 * n);
    memcpy(p, z, n * sizeof *p);
    if (flags & KS_ROUTE_SPARSEMIX) {
        sparse_mix(op, z, choice, ids, w);
    } else {
        if (!(flags & KS_ROUTE_LATE)) score(t, p, n);
        for (uint32_t i = 0; i < n; i++) choice[i] = bias ? p[i] + bias[i] : p[i];
        if (op->u.route.n_group > 1) limit_groups(op, choice, w, ids);
        top_k(choice, n, k, ids);
        for (uint32_t i = 0; i < k; i++) w[i] = p[ids[i]];
        if (flags & KS_ROUTE_LATE) score(t, w, k);
    }
    float sum = 0;
    for (uint32_t i = 0; i < k; i++) sum += w[i];
    float f = op->u.route.scale, eps = op->u.route.norm_eps,
          div = flags & KS_ROUTE_NORM_MIN ? fmaxf(sum, eps) : sum + eps;
    for (uint32_t i = 0; i < k; i++) {
        float v = flags & KS_ROUTE_NORM ? w[i] / div : w[i];
        out[i] = (struct pair) { ids[i], v * f };
    }
    sort_pairs(out, k);
}

void ks__rows_route(ks_cpu_dev *d, const ks_op *op, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct dev_reg *out = &d->regs[op->out[0]];
    const float *bias = ks__dev_vector(d, op->w[0]);
    struct router t = { op, d->ops[op - d->g->ops].kernel[0], ks__dev_kernel_scratch(d, worker) };
    for (uint32_t r = begin; r < end; r++)
        route_row(&t, ks__dev_row(d, (uint32_t)op->in[0], r), bias, ks__dev_scratch(d, worker),
                  (struct pair *)out->p + r * out->stride);
}
