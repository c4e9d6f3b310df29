/* Sampling. The order is the customary one: repetition, presence and frequency penalties, logit bias,
 * temperature, top-k, top-p, min-p, draw. Ties go to the lower id everywhere, so that a result never depends on the
 * order in which candidates happen to lie. The generator is xoroshiro128+ (Blackman, Vigna 2018) seeded by splitmix64.
 */
#include "engine/sample.h"

#include "base/base.h"
#include "base/hash.h"
#include <emmintrin.h>
#include <math.h>

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

static double uniform(ks_sampler *s) /* [0, 1) with 53 bits */
{
    uint64_t a = s->rng[0], b = s->rng[1], r = a + b;
    b ^= a;
    s->rng[0] = rotl(a, 24) ^ b ^ (b << 16);
    s->rng[1] = rotl(b, 37);
    return (double)(r >> 11) * 0x1p-53;
}

struct bound {
    const char *name;
    size_t offset;
    float dflt, lo, hi;
};
static const struct bound bounds[] = {
    { "temperature", offsetof(ks_sampling, temperature), 1.0f, 0.0f, 2.0f },
    { "top_p", offsetof(ks_sampling, top_p), 1.0f, 0.0f, 1.0f },
    { "min_p", offsetof(ks_sampling, min_p), 0.0f, 0.0f, 1.0f },
    { "presence_penalty", offsetof(ks_sampling, presence_penalty), 0.0f, -2.0f, 2.0f },
    { "frequency_penalty", offsetof(ks_sampling, frequency_penalty), 0.0f, -2.0f, 2.0f },
    { "repetition_penalty", offsetof(ks_sampling, repetition_penalty), 1.0f, 0.01f, 10.0f },
};

int ks_sampling_resolve(const ks_sampling *rq, const ks_sampling *model, ks_sampling *ret, ks_err *err)
{
    ks_sampling r = *rq;
    for (size_t i = 0; i < KS_COUNT(bounds); i++) {
        const struct bound *b = &bounds[i];
        float v, m = NAN;
        memcpy(&v, (const char *)rq + b->offset, sizeof v);
        if (model) memcpy(&m, (const char *)model + b->offset, sizeof m);
        if (isnan(v)) v = isnan(m) ? b->dflt : m;
        if (!(v >= b->lo && v <= b->hi))
            return ks_fail(err, KS_E_INVAL, "'%s' is %g: allowed is %g to %g", b->name, (double)v, (double)b->lo,
                           (double)b->hi);
        memcpy((char *)&r + b->offset, &v, sizeof v);
    }
    if (r.top_k == INT32_MIN) r.top_k = model && model->top_k != INT32_MIN ? model->top_k : 0;
    if (r.top_k == -1) r.top_k = 0; /* a common spelling of "off" */
    if (r.top_k < 0) return ks_fail(err, KS_E_INVAL, "'top_k' is %d: allowed is 0 (off) or a positive number", r.top_k);
    for (uint32_t i = 0; i < r.n_bias; i++)
        if (!(r.bias[i] >= -100.0f && r.bias[i] <= 100.0f))
            return ks_fail(err, KS_E_INVAL, "'logit_bias' of token %d is %g: allowed is -100 to 100", r.bias_ids[i],
                           (double)r.bias[i]);
    *ret = r;
    return 0;
}

int ks_sampler_init(ks_sampler *s, const ks_sampling *p, uint32_t n_vocab, uint32_t n_tokens, uint64_t seed,
                    ks_err *err)
{
    *s = (ks_sampler) { .temperature = p->temperature,
                        .top_p = p->top_p,
                        .min_p = p->min_p,
                        .presence = p->presence_penalty,
                        .frequency = p->frequency_penalty,
                        .repetition = p->repetition_penalty,
                        .top_k = p->top_k,
                        .n_vocab = n_vocab,
                        .n_tokens = KS_MIN(n_tokens, n_vocab),
                        .n_bias = p->n_bias };
    s->rng[0] = ks_splitmix64(&seed);
    s->rng[1] = ks_splitmix64(&seed);
    for (uint32_t i = 0; i < p->n_bias; i++)
        if (p->bias_ids[i] < 0 || (uint32_t)p->bias_ids[i] >= n_vocab) {
            s->n_bias = 0;
            return ks_fail(err, KS_E_INVAL, "'logit_bias' names token %d: the vocabulary has %u", p->bias_ids[i],
                           n_vocab);
        }
    bool penal = s->presence != 0 || s->frequency != 0 || s->repetition != 1.0f;
    if (p->n_bias) {
        s->bias_ids = malloc(p->n_bias * sizeof *s->bias_ids);
        s->bias = malloc(p->n_bias * sizeof *s->bias);
    }
    if (penal) {
        s->generated = calloc(n_vocab, sizeof *s->generated);
        s->seen = calloc(n_vocab, 1);
    }
    if ((p->n_bias && (!s->bias_ids || !s->bias)) || (penal && (!s->generated || !s->seen))) {
        ks_sampler_fini(s);
        return ks_fail(err, KS_E_NOMEM, "out of memory for the sampler of one answer");
    }
    if (p->n_bias) {
        memcpy(s->bias_ids, p->bias_ids, p->n_bias * sizeof *s->bias_ids);
        memcpy(s->bias, p->bias, p->n_bias * sizeof *s->bias);
    }
    return 0;
}

void ks_sampler_fini(ks_sampler *s)
{
    free(s->bias_ids);
    free(s->bias);
    free(s->generated);
    free(s->seen);
    *s = (ks_sampler) { 0 };
}

void ks_sampler_accept(ks_sampler *s, int32_t id, bool generated)
{
    if (!s->seen || id < 0 || (uint32_t)id >= s->n_vocab) return;
    s->seen[id] = 1;
    if (generated && s->generated[id] < UINT16_MAX) s->generated[id]++;
}

static void penalize(const ks_sampler *s, float *z)
{
    if (s->seen)
        for (uint32_t i = 0; i < s->n_vocab; i++) {
            if (!s->seen[i]) continue;
            z[i] = z[i] > 0 ? z[i] / s->repetition : z[i] * s->repetition;
            if (s->generated[i]) z[i] -= s->presence + s->frequency * (float)s->generated[i];
        }
    for (uint32_t i = 0; i < s->n_bias; i++) z[s->bias_ids[i]] += s->bias[i];
}

static bool before(ks_cand a, ks_cand b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift(ks_cand *h, uint32_t n, uint32_t i)
{
    ks_cand v = h[i];
    for (uint32_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && before(h[c + 1], h[c])) c++;
        if (!before(h[c], v)) break;
        h[i] = h[c];
    }
    h[i] = v;
}

static void heapify(ks_cand *h, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;) sift(h, n, i);
}

/* Pops the best to the end of the heap's array: after m pops the best m lie at h[n-1], h[n-2], ... */
static ks_cand pop(ks_cand *h, uint32_t *n)
{
    ks_cand best = h[0];
    h[0] = h[--*n];
    sift(h, *n, 0);
    h[*n] = best;
    return best;
}

/* The first of the largest; NaNs do not count, unless there is nothing else. */
static uint32_t argmax(const float *z, uint32_t n)
{
    __m128 m[4];
    float part[4], max = -INFINITY;
    uint32_t i = 0;
    for (uint32_t k = 0; k < 4; k++) m[k] = _mm_set1_ps(-INFINITY);
    for (; i + 16 <= n; i += 16)
        for (uint32_t k = 0; k < 4; k++) m[k] = _mm_max_ps(_mm_loadu_ps(z + i + 4 * k), m[k]); /* of a NaN: m */
    for (; i < n; i++) max = z[i] > max ? z[i] : max;
    _mm_storeu_ps(part, _mm_max_ps(_mm_max_ps(m[0], m[1]), _mm_max_ps(m[2], m[3])));
    for (uint32_t k = 0; k < 4; k++) max = part[k] > max ? part[k] : max;
    for (i = 0; i < n; i++)
        if (z[i] == max) return i;
    return n - 1;
}

int32_t ks_sample(ks_sampler *s, const float *logits, float *own, ks_cand *cand)
{
    uint32_t n = s->n_tokens;
    const float *z = logits;
    if (s->seen || s->n_bias) {
        memcpy(own, logits, s->n_vocab * sizeof *own);
        penalize(s, own);
        z = own;
    }
    uint32_t best = argmax(z, n);
    if (s->temperature <= 0 || s->top_k == 1) return (int32_t)best;

    const double inv_t = 1.0 / (double)s->temperature, top = z[best];
    double u = uniform(s);
    bool cut = (s->top_k > 0 && (uint32_t)s->top_k < n) || s->top_p < 1.0f;
    /* p relative to the best one: what min-p compares, and small enough never to overflow */
#define WEIGHT(logit) exp(((double)(logit)-top) * inv_t)
    if (!cut) {
        double total = 0;
        for (uint32_t i = 0; i < n; i++) {
            double w = WEIGHT(z[i]);
            if (w >= (double)s->min_p) total += w;
        }
        double left = u * total;
        int32_t last = (int32_t)best;
        for (uint32_t i = 0; i < n; i++) {
            double w = WEIGHT(z[i]);
            if (!(w >= (double)s->min_p)) continue;
            last = (int32_t)i;
            if ((left -= w) < 0) break;
        }
        return last;
    }
    for (uint32_t i = 0; i < n; i++) cand[i] = (ks_cand) { z[i], (int32_t)i };
    heapify(cand, n);
    uint32_t left_n = n, limit = s->top_k > 0 ? KS_MIN((uint32_t)s->top_k, n) : n, m = 0;
    /* top-p is a share of what top-k left, so its total must be known first */
    double total = 0, kept = 0;
    if (limit < n) {
        for (m = 0; m < limit; m++) total += WEIGHT(pop(cand, &left_n).logit);
        m = 0;
    } else {
        for (uint32_t i = 0; i < n; i++) total += WEIGHT(z[i]);
    }
    while (m < limit) {
        ks_cand c = limit < n ? cand[n - 1 - m] : pop(cand, &left_n);
        double w = WEIGHT(c.logit);
        if (m > 0 && (kept >= (double)s->top_p * total || w < (double)s->min_p)) break;
        kept += w;
        m++;
    }
    double left = u * kept;
    for (uint32_t i = 0; i < m; i++)
        if ((left -= WEIGHT(cand[n - 1 - i].logit)) < 0) return cand[n - 1 - i].id;
#undef WEIGHT
    return cand[n - m].id;
}

float ks_logprobs(const float *z, uint32_t n, int32_t id, uint32_t n_top, ks_cand *cand, ks_cand *ret_top)
{
    uint32_t best = argmax(z, n);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += exp((double)z[i] - (double)z[best]);
    double norm = (double)z[best] + log(sum);
    n_top = KS_MIN(n_top, n);
    if (n_top) {
        for (uint32_t i = 0; i < n; i++) cand[i] = (ks_cand) { z[i], (int32_t)i };
        heapify(cand, n);
        uint32_t left = n;
        for (uint32_t i = 0; i < n_top; i++) {
            ret_top[i] = pop(cand, &left);
            ret_top[i].logit = (float)((double)ret_top[i].logit - norm);
        }
    }
    return (float)((double)z[id] - norm);
}
