/* Sampling. The order is the customary one: repetition, presence and frequency penalties, logit bias,
 * temperature, top-k, top-p, min-p, draw. Ties go to the lower id everywhere, so that a result never depends on the
 * order in which candidates happen to lie. The generator is xoroshiro128+ (Blackman, Vigna 2018) seeded by splitmix64.
 */
#include "engine/sample.h"

#include "base/base.h"
#include "base/hash.h"
#include "engine/exp4.h"
#include <float.h>
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

static void penalize_one(const ks_sampler *s, float *z, uint32_t i)
{
    if (!s->seen[i]) return;
    z[i] = z[i] > 0 ? z[i] / s->repetition : z[i] * s->repetition;
    if (s->generated[i]) z[i] -= s->presence + s->frequency * (float)s->generated[i];
}

static void penalize(const ks_sampler *s, float *z)
{
    uint32_t n = s->seen ? s->n_vocab : 0, i = 0;
    for (; i + 16 <= n; i += 16) { /* nearly all were never seen */
        __m128i seen = _mm_loadu_si128((const __m128i *)(const void *)(s->seen + i));
        if (_mm_movemask_epi8(_mm_cmpeq_epi8(seen, _mm_setzero_si128())) == 0xffff) continue;
        for (uint32_t k = i; k < i + 16; k++) penalize_one(s, z, k);
    }
    for (; i < n; i++) penalize_one(s, z, i);
    for (uint32_t k = 0; k < s->n_bias; k++) z[s->bias_ids[k]] += s->bias[k];
}

/* ---- order */

static bool before(ks_cand a, ks_cand b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* A heap with its best on top, or its worst. */
static bool above(ks_cand a, ks_cand b, bool worst)
{
    return worst ? before(b, a) : before(a, b);
}

static void sift(ks_cand *h, uint32_t n, uint32_t i, bool worst)
{
    ks_cand v = h[i];
    for (uint32_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && above(h[c + 1], h[c], worst)) c++;
        if (!above(h[c], v, worst)) break;
        h[i] = h[c];
    }
    h[i] = v;
}

static void heapify(ks_cand *h, uint32_t n, bool worst)
{
    for (uint32_t i = n / 2; i-- > 0;) sift(h, n, i, worst);
}

/* Pops the top to the end of the heap's array: after m pops they lie at h[n-1], h[n-2], ... */
static ks_cand pop(ks_cand *h, uint32_t *n, bool worst)
{
    ks_cand top = h[0];
    h[0] = h[--*n];
    sift(h, *n, 0, worst);
    h[*n] = top;
    return top;
}

/* Bit k: z[k] > limit, of 16. A NaN never is. */
static uint32_t above_16(const float *z, float limit)
{
    const __m128 l = _mm_set1_ps(limit);
    uint32_t bits = 0;
    for (uint32_t k = 0; k < 4; k++)
        bits |= (uint32_t)_mm_movemask_ps(_mm_cmpgt_ps(_mm_loadu_ps(z + 4 * k), l)) << (4 * k);
    return bits;
}

/* All that are greater than `limit`, by ascending id; returns their number. */
static uint32_t all_above(const float *z, uint32_t n, float limit, ks_cand *ret)
{
    uint32_t have = 0, i = 0;
    for (; i + 16 <= n; i += 16)
        for (uint32_t bits = above_16(z + i, limit); bits; bits &= bits - 1) {
            uint32_t at = i + (uint32_t)__builtin_ctz(bits);
            ret[have++] = (ks_cand) { z[at], (int32_t)at };
        }
    for (; i < n; i++)
        if (z[i] > limit) ret[have++] = (ks_cand) { z[i], (int32_t)i };
    return have;
}

/* The k best, best first; returns how many there are: fewer only where there are NaNs. A heap keeps those so far, and
 * hardly any of the later ones is better than its worst. */
static uint32_t best_k(const float *z, uint32_t n, uint32_t k, ks_cand *h)
{
    uint32_t have = 0, i = k ? 0 : n;
    for (; i < n && have < k; i++)
        if (!isnan(z[i])) h[have++] = (ks_cand) { z[i], (int32_t)i };
    heapify(h, have, true);
    while (i < n) {
        if (i + 16 <= n && !above_16(z + i, h[0].logit)) {
            i += 16;
            continue;
        }
        if (z[i] > h[0].logit) { /* an equal one with a higher id is no better */
            h[0] = (ks_cand) { z[i], (int32_t)i };
            sift(h, have, 0, true);
        }
        i++;
    }
    for (uint32_t left = have; left > 1;) (void)pop(h, &left, true);
    return have;
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
    for (i = 0; i + 4 <= n; i += 4)
        if (_mm_movemask_ps(_mm_cmpeq_ps(_mm_loadu_ps(z + i), _mm_set1_ps(max)))) break;
    for (; i < n; i++)
        if (z[i] == max) return i;
    return n - 1;
}

/* ---- weights */

/* e^((z - top) / temperature) of four, top being the largest. */
static __m128 weigh_4(const float *z, __m128 top, __m128 inv_t)
{
    return ks__exp4(_mm_mul_ps(_mm_sub_ps(_mm_loadu_ps(z), top), inv_t));
}

/* The same of n <= 4; the others are 0. */
static __m128 weigh(const float *z, uint32_t n, __m128 top, __m128 inv_t)
{
    float last[4] = { -INFINITY, -INFINITY, -INFINITY, -INFINITY };
    if (n >= 4) return weigh_4(z, top, inv_t);
    memcpy(last, z, n * sizeof *last);
    return weigh_4(last, top, inv_t);
}

static __m128d add_4(__m128d sum, __m128 v)
{
    return _mm_add_pd(_mm_add_pd(sum, _mm_cvtps_pd(v)), _mm_cvtps_pd(_mm_movehl_ps(v, v)));
}

static double sum_2(__m128d v)
{
    return _mm_cvtsd_f64(v) + _mm_cvtsd_f64(_mm_unpackhi_pd(v, v));
}

/* Of all weights; floats, added in double. */
static double total_weight(const float *z, uint32_t n, float top, float inv_t)
{
    __m128d sum = _mm_setzero_pd();
    for (uint32_t i = 0; i < n; i += 4) sum = add_4(sum, weigh(z + i, n - i, _mm_set1_ps(top), _mm_set1_ps(inv_t)));
    return sum_2(sum);
}

#define DRAW_BLOCK 256u

static double block_sum(const float *w, uint32_t n)
{
    __m128d sum = _mm_setzero_pd();
    double rest = 0;
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4) sum = add_4(sum, _mm_loadu_ps(w + i));
    for (; i < n; i++) rest += (double)w[i];
    return sum_2(sum) + rest;
}

/* One of all tokens whose weight is at least min_p. w (n): scratch, may be z. */
static uint32_t draw_any(const float *z, uint32_t n, float top, float inv_t, float min_p, double u, float *w)
{
    double total = 0, left;
    uint32_t last = 0;
    for (uint32_t i = 0; i < n; i += 4) {
        __m128 v = weigh(z + i, n - i, _mm_set1_ps(top), _mm_set1_ps(inv_t));
        v = _mm_and_ps(v, _mm_cmpge_ps(v, _mm_set1_ps(min_p)));
        float four[4];
        _mm_storeu_ps(four, v);
        memcpy(w + i, four, KS_MIN(n - i, 4u) * sizeof *w);
    }
    for (uint32_t i = 0; i < n; i += DRAW_BLOCK) total += block_sum(w + i, KS_MIN(n - i, DRAW_BLOCK));
    left = u * total;
    for (uint32_t i = 0; i < n; i += DRAW_BLOCK) {
        uint32_t end = i + KS_MIN(n - i, DRAW_BLOCK);
        double sum = block_sum(w + i, end - i);
        if (left >= sum) {
            left -= sum;
            continue;
        }
        for (uint32_t k = i; k < end; k++) {
            if (w[k] > 0) last = k;
            if ((left -= (double)w[k]) < 0) return k;
        }
    }
    while (n - 1 > last && !(w[n - 1] > 0)) n--; /* what rounding left over: the last there is */
    return n - 1;
}

/* One of the smallest set that reaches top_p, among the k best (k = n: all). */
static int32_t draw_cut(const ks_sampler *s, const float *z, uint32_t k, float top, double u, ks_cand *cand)
{
    const double inv_t = 1.0 / (double)s->temperature;
    uint32_t n = s->n_tokens, m = 0, have, left_n;
    double total = 0, kept = 0;
    /* p relative to the best one: what min-p compares, and small enough never to overflow */
#define WEIGHT(c) exp(((double)(c).logit - (double)top) * inv_t)
    if (k < n) {
        have = best_k(z, n, k, cand);
        for (uint32_t i = 0; i < have; i++) total += WEIGHT(cand[i]);
    } else {
        /* All that are lighter than (1 - p) / n of the total are together less than what may be left out. A thousandth
         * is more than what all roundings come to. */
        total = total_weight(z, n, top, (float)inv_t);
        double least = fmax((1.0 - (double)s->top_p) * total / (double)n, (double)s->min_p);
        float limit = (float)fmax((double)top + (log(least) - 1e-3) / inv_t, (double)-FLT_MAX);
        have = all_above(z, n, limit - fabsf(limit) * 0x1p-22f, cand);
        heapify(cand, have, false);
    }
    left_n = have;
    while (m < have) { /* the best m: from the start, or popped to the end */
        double w = WEIGHT(k < n ? cand[m] : pop(cand, &left_n, false));
        if (m > 0 && (kept >= (double)s->top_p * total || w < (double)s->min_p)) break;
        kept += w;
        m++;
    }
    double left = u * kept;
    for (uint32_t i = 0;; i++) {
        ks_cand c = k < n ? cand[i] : cand[have - 1 - i];
        if ((left -= WEIGHT(c)) < 0 || i + 1 == m) return c.id;
    }
#undef WEIGHT
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
    float top = z[best];
    if (s->temperature <= 0 || s->top_k == 1) return (int32_t)best;

    double u = uniform(s);
    uint32_t k = s->top_k > 0 ? KS_MIN((uint32_t)s->top_k, n) : n;
    if (!isfinite(top)) return (int32_t)best; /* no weight is a number */
    if (k < n || s->top_p < 1.0f) return draw_cut(s, z, k, top, u, cand);
    return (int32_t)draw_any(z, n, top, (float)(1.0 / (double)s->temperature), s->min_p, u, own);
}

float ks_logprobs(const float *z, uint32_t n, int32_t id, uint32_t n_top, ks_cand *cand, ks_cand *ret_top)
{
    float top = z[argmax(z, n)];
    double norm = (double)top + log(total_weight(z, n, top, 1.0f));
    uint32_t have = best_k(z, n, KS_MIN(n_top, n), cand);
    for (uint32_t i = 0; i < KS_MIN(n_top, n); i++) { /* NaNs behind all others */
        ret_top[i] = i < have ? cand[i] : (ks_cand) { NAN, 0 };
        ret_top[i].logit = (float)((double)ret_top[i].logit - norm);
    }
    return (float)((double)z[id] - norm);
}
