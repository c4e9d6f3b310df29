/* The policy of expert placement. See hcs.h.
 *
 * A count is one pass over all (layer, expert) units: decay, add, score, and two small heaps that keep the hottest
 * absent and the coldest resident units. Decay is by powers taken by repeated multiplication, not by exp2(), so that
 * equal counts give equal bits with any C library. */
#include "device/hcs.h"

#include "base/base.h"
#include <math.h>
#include <string.h>

#define CHOICES 64u /* swaps thought of at a time: more than the link carries between two counts */
#define TINY 1e-20f /* below it a frequency is 0: no denormal numbers in the pass */
/* A half-life in rows as decay per row: 2^(-1/rows). */
#define SLOW_DECAY 0.99983078893193
#define FAST_DECAY 0.99459942348363
/* The weight of all rows ever, decayed: half-life / ln 2. */
#define SLOW_FULL (KS_HCS_SLOW_ROWS * 1.44269504f)
#define FAST_FULL (KS_HCS_FAST_ROWS * 1.44269504f)
#define SLOW_LEAST 512.f /* rows that an estimate is divided by at least: after a few rows nothing is known yet */

struct pick {
    float score;
    uint32_t unit;
};

struct heap { /* root: the one that goes first when a better one comes */
    struct pick at[CHOICES];
    uint32_t n;
};

struct ks_hcs {
    uint32_t n_layers, n_experts, n_units, capacity, used, total;
    uint32_t *experts, *slots; /* (n_layers) */
    float *slow, *fast;        /* (n_units) decayed uses */
    float *score;              /* (n_experts) of the layer that is counted */
    float slow_rows, fast_rows;
    uint64_t *last, last_rows; /* what was counted before */
    uint8_t *resident;         /* (n_units) */
    uint32_t *order;           /* (n_units) for settle */
    ks_place *changes;         /* (2 * n_units) of settle */
    struct heap in, out;       /* chosen by the last count: hottest first, coldest first */
    uint32_t next_in, next_out;
};

/* ---- life */

static int alloc(ks_hcs *h)
{
    h->experts = ks_calloc(h->n_layers, sizeof *h->experts);
    h->slots = ks_calloc(h->n_layers, sizeof *h->slots);
    h->slow = ks_calloc(h->n_units, sizeof *h->slow);
    h->fast = ks_calloc(h->n_units, sizeof *h->fast);
    h->score = ks_calloc(h->n_experts, sizeof *h->score);
    h->last = ks_calloc(h->n_units, sizeof *h->last);
    h->resident = ks_calloc(h->n_units, sizeof *h->resident);
    h->order = ks_calloc(h->n_units, sizeof *h->order);
    h->changes = ks_calloc(h->n_units, 2 * sizeof *h->changes);
    return h->experts && h->slots && h->slow && h->fast && h->score && h->last && h->resident && h->order && h->changes
               ? 0
               : KS_E_NOMEM;
}

int ks_hcs_new(const ks_hcs_opts *o, ks_hcs **ret, ks_err *err)
{
    size_t units;
    if (!ks_mul_size(o->n_layers, o->n_experts, &units) || units > UINT32_MAX / 2)
        return ks_fail(err, KS_E_LIMIT, "%u layers of %u experts are too many to place", o->n_layers, o->n_experts);
    ks_hcs *h = ks_calloc(1, sizeof *h);
    if (!h) return ks_fail(err, KS_E_NOMEM, "out of memory for the placement of experts");
    h->n_layers = o->n_layers;
    h->n_experts = o->n_experts;
    h->n_units = (uint32_t)units;
    h->capacity = o->capacity;
    if (alloc(h)) {
        ks_hcs_free(h);
        return ks_fail(err, KS_E_NOMEM, "out of memory for the placement of %zu experts", units);
    }
    uint64_t total = 0;
    for (uint32_t l = 0; l < h->n_layers; l++) {
        h->slots[l] = o->layer_slots ? o->layer_slots[l] : 1;
        h->experts[l] = o->layer_experts ? KS_MIN(o->layer_experts[l], h->n_experts) : h->n_experts;
        if (!h->slots[l]) h->experts[l] = 0;
        total += (uint64_t)h->experts[l] * h->slots[l];
    }
    h->total = (uint32_t)KS_MIN(total, (uint64_t)UINT32_MAX);
    *ret = h;
    return 0;
}

void ks_hcs_free(ks_hcs *h)
{
    if (!h) return;
    void *parts[] = { h->experts, h->slots, h->slow, h->fast, h->score, h->last, h->resident, h->order, h->changes };
    for (size_t i = 0; i < KS_COUNT(parts); i++) free(parts[i]);
    free(h);
}

/* ---- scores */

struct scale { /* score = slow * s + fast * f, per slot */
    float s, f;
};

static struct scale scale_of(const ks_hcs *h, uint32_t layer)
{
    float per_slot = 1 / (float)h->slots[layer];
    return (struct scale) { per_slot * (1 - KS_HCS_FAST_PART) / KS_MAX(h->slow_rows, SLOW_LEAST),
                            per_slot * KS_HCS_FAST_PART / KS_MAX(h->fast_rows, FAST_FULL) };
}

static float score_of(const ks_hcs *h, uint32_t unit)
{
    struct scale k = scale_of(h, unit / h->n_experts);
    return h->slow[unit] * k.s + h->fast[unit] * k.f;
}

static float flush(float x)
{
    return x < TINY ? 0 : x;
}

static float power(double base, uint32_t n)
{
    double p = 1;
    for (; n; n >>= 1, base *= base)
        if (n & 1) p *= base;
    return (float)p;
}

void ks_hcs_seed(ks_hcs *h, const uint64_t *counts, uint64_t rows)
{
    /* A map of fewer rows than the memory holds weighs as much as it knows. */
    float known = rows ? (float)KS_MIN((double)rows / KS_HCS_ONE, (double)SLOW_FULL) : 0;
    h->slow_rows = known;
    h->fast_rows = 0;
    memset(h->fast, 0, h->n_units * sizeof *h->fast);
    for (uint32_t u = 0; u < h->n_units; u++) {
        double part = rows ? (double)counts[u] / (double)rows : 0, most = h->slots[u / h->n_experts];
        h->slow[u] = flush((float)(KS_MIN(part, most) * (double)known));
    }
    h->in.n = h->out.n = h->next_in = h->next_out = 0;
}

void ks_hcs_heat(const ks_hcs *h, uint64_t *ret_counts, uint64_t *ret_rows)
{
    for (uint32_t u = 0; u < h->n_units; u++) ret_counts[u] = (uint64_t)((double)h->slow[u] * KS_HCS_ONE + 0.5);
    *ret_rows = (uint64_t)((double)h->slow_rows * KS_HCS_ONE + 0.5);
}

/* ---- the best set */

/* True if unit a is to be kept rather than b. */
static bool before(const ks_hcs *h, uint32_t a, uint32_t b)
{
    float x = score_of(h, a), y = score_of(h, b);
    if (x > y || x < y) return x > y;
    uint32_t e = a % h->n_experts, f = b % h->n_experts;
    return e != f ? e < f : a < b;
}

static void sift(const ks_hcs *h, uint32_t *v, uint32_t i, uint32_t n)
{
    for (uint32_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && before(h, v[k], v[k + 1])) k++;
        if (!before(h, v[i], v[k])) return;
        uint32_t t = v[i];
        v[i] = v[k];
        v[k] = t;
    }
}

/* Heapsort: the C library's qsort allocates. Best first. */
static uint32_t rank(ks_hcs *h)
{
    uint32_t n = 0, *v = h->order;
    for (uint32_t l = 0; l < h->n_layers; l++)
        for (uint32_t e = 0; e < h->experts[l]; e++) v[n++] = l * h->n_experts + e;
    for (uint32_t i = n / 2; i-- > 0;) sift(h, v, i, n);
    for (uint32_t i = n; i-- > 1;) {
        uint32_t t = v[0];
        v[0] = v[i];
        v[i] = t;
        sift(h, v, 0, i);
    }
    return n;
}

static ks_place change(const ks_hcs *h, uint32_t unit, uint32_t keep)
{
    return (ks_place) { unit / h->n_experts, unit % h->n_experts, keep, 0 };
}

const ks_place *ks_hcs_settle(ks_hcs *h, uint32_t *ret_n)
{
    enum { IS = 1, WILL = 2 };
    uint32_t n = rank(h), m = 0, used = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slots = h->slots[h->order[i] / h->n_experts];
        if (slots > h->capacity - used) continue;
        used += slots;
        h->resident[h->order[i]] |= WILL;
    }
    for (uint32_t i = 0; i < n; i++)
        if (h->resident[h->order[i]] == IS) h->changes[m++] = change(h, h->order[i], 0);
    for (uint32_t i = 0; i < n; i++)
        if (h->resident[h->order[i]] == WILL) h->changes[m++] = change(h, h->order[i], 1);
    for (uint32_t i = 0; i < n; i++) h->resident[h->order[i]] = (h->resident[h->order[i]] & WILL) != 0;
    h->used = used;
    h->in.n = h->out.n = h->next_in = h->next_out = 0;
    *ret_n = m;
    return h->changes;
}

/* ---- counting and choosing */

/* Keeps the CHOICES largest of sign * score: the root is the least of them. */
static void offer(struct heap *p, float sign, float score, uint32_t unit)
{
    uint32_t i, k;
    if (p->n < CHOICES) {
        for (i = p->n++; i > 0 && sign * p->at[(i - 1) / 2].score > sign * score; i = (i - 1) / 2)
            p->at[i] = p->at[(i - 1) / 2];
    } else {
        for (i = 0; (k = 2 * i + 1) < CHOICES; i = k) {
            if (k + 1 < CHOICES && sign * p->at[k + 1].score < sign * p->at[k].score) k++;
            if (sign * p->at[k].score >= sign * score) break;
            p->at[i] = p->at[k];
        }
    }
    p->at[i] = (struct pick) { score, unit };
}

/* Best first; equal ones by unit. Few: insertion. */
static void sort(struct heap *p, float sign)
{
    for (uint32_t i = 1; i < p->n; i++) {
        struct pick x = p->at[i];
        uint32_t k = i;
        for (; k > 0; k--) {
            float a = sign * p->at[k - 1].score, b = sign * x.score;
            if (a > b || (!(a < b) && p->at[k - 1].unit < x.unit)) break;
            p->at[k] = p->at[k - 1];
        }
        p->at[k] = x;
    }
}

void ks_hcs_base(ks_hcs *h, const uint64_t *counts, uint64_t rows)
{
    memcpy(h->last, counts, h->n_units * sizeof *h->last);
    h->last_rows = rows;
}

struct pass {
    float slow, fast, weight;
    uint32_t most; /* uses that one unit can have had */
};

/* Two loops: the first has no branches, and is vectorised. */
static void count_layer(ks_hcs *h, uint32_t layer, const uint64_t *counts, const struct pass *p)
{
    uint32_t first = layer * h->n_experts, n = h->experts[layer];
    struct scale k = scale_of(h, layer);
    float *slow = h->slow + first, *fast = h->fast + first, *score = h->score;
    uint64_t *last = h->last + first;
    counts += first;
    for (uint32_t e = 0; e < n; e++) {
        uint64_t add = counts[e] - last[e];
        int32_t uses = (int32_t)(counts[e] <= last[e] ? 0 : add < p->most ? (uint32_t)add : p->most);
        float f = (float)uses * p->weight;
        last[e] = counts[e];
        slow[e] = flush(slow[e] * p->slow + f);
        fast[e] = flush(fast[e] * p->fast + f);
        score[e] = slow[e] * k.s + fast[e] * k.f;
    }
    float coldest = h->out.n < CHOICES ? INFINITY : h->out.at[0].score;
    float hottest = h->in.n < CHOICES ? KS_HCS_MARGIN : h->in.at[0].score;
    for (uint32_t e = 0; e < n; e++) {
        if (h->resident[first + e] ? score[e] >= coldest : score[e] <= hottest) continue;
        offer(h->resident[first + e] ? &h->out : &h->in, h->resident[first + e] ? -1 : 1, score[e], first + e);
        coldest = h->out.n < CHOICES ? INFINITY : h->out.at[0].score;
        hottest = h->in.n < CHOICES ? KS_HCS_MARGIN : h->in.at[0].score;
    }
}

void ks_hcs_count(ks_hcs *h, const uint64_t *counts, uint64_t rows)
{
    uint64_t new_rows = rows > h->last_rows ? rows - h->last_rows : 0;
    uint32_t weighed = (uint32_t)KS_MIN(new_rows, (uint64_t)KS_HCS_STEP_ROWS);
    struct pass p = { power(SLOW_DECAY, weighed), power(FAST_DECAY, weighed),
                      new_rows ? (float)weighed / (float)(int64_t)KS_MIN(new_rows, (uint64_t)INT64_MAX) : 0, 0 };
    h->last_rows = rows;
    h->slow_rows = h->slow_rows * p.slow + (float)weighed;
    h->fast_rows = h->fast_rows * p.fast + (float)weighed;
    h->in.n = h->out.n = h->next_in = h->next_out = 0;
    for (uint32_t l = 0; l < h->n_layers; l++) {
        if (!h->slots[l]) continue;
        size_t most;
        p.most = ks_mul_size(new_rows, h->slots[l], &most) && most < INT32_MAX ? (uint32_t)most : INT32_MAX;
        count_layer(h, l, counts, &p);
    }
    sort(&h->in, 1);
    sort(&h->out, -1);
}

/* How many of the coldest must go for `unit` to come, *ret_n; false if they are not clearly colder. */
static bool find_room(const ks_hcs *h, const struct pick *in, uint32_t *ret_n)
{
    uint32_t free = h->capacity - h->used, need = h->slots[in->unit / h->n_experts], n = 0;
    for (; free < need; n++) {
        if (h->next_out + n == h->out.n) return false;
        const struct pick *out = &h->out.at[h->next_out + n];
        if (in->score <= out->score * KS_HCS_FACTOR || in->score - out->score <= KS_HCS_MARGIN) return false;
        free += h->slots[out->unit / h->n_experts];
    }
    *ret_n = n;
    return true;
}

uint32_t ks_hcs_next(ks_hcs *h, uint32_t slots, ks_place *ret, uint32_t cap)
{
    uint32_t n = 0, drops = 0;
    for (; h->next_in < h->in.n; h->next_in++) {
        const struct pick *in = &h->in.at[h->next_in];
        uint32_t cost = h->slots[in->unit / h->n_experts];
        if (!find_room(h, in, &drops)) {
            if (h->used < h->capacity) continue; /* one that takes fewer slots may still find room */
            break;
        }
        if (cost > slots || drops + 1 > cap - n) break;
        for (; drops > 0; drops--) {
            uint32_t out = h->out.at[h->next_out++].unit;
            h->resident[out] = 0;
            h->used -= h->slots[out / h->n_experts];
            ret[n++] = change(h, out, 0);
        }
        h->resident[in->unit] = 1;
        h->used += cost;
        slots -= cost;
        ret[n++] = change(h, in->unit, 1);
    }
    return n;
}

uint32_t ks_hcs_used(const ks_hcs *h)
{
    return h->used;
}

bool ks_hcs_is_resident(const ks_hcs *h, uint32_t layer, uint32_t expert)
{
    return layer < h->n_layers && expert < h->experts[layer] && h->resident[layer * h->n_experts + expert];
}

bool ks_hcs_holds_all(const ks_hcs *h)
{
    return h->used == h->total;
}
