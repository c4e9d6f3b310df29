/* Sampling: limits, order of the rules, frequencies, determinism. */
#include "base/base.h"
#include "engine/exp4.h"
#include "engine/sample.h"
#include <math.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define V 8u

static ks_sampling plain(void)
{
    ks_sampling u, r;
    ks_sampling_init(&u);
    assert_int_equal(ks_sampling_resolve(&u, NULL, &r, NULL), 0);
    return r;
}

/* Counts `n` draws from the same logits. */
static void draw(const ks_sampling *p, const float *logits, uint32_t n, uint32_t count[V])
{
    ks_sampler s;
    ks_cand cand[V];
    float own[V];
    assert_int_equal(ks_sampler_init(&s, p, V, V, 42, NULL), 0);
    memset(count, 0, V * sizeof *count);
    for (uint32_t i = 0; i < n; i++) {
        int32_t id = ks_sample(&s, logits, own, cand);
        assert_in_range(id, 0, V - 1);
        count[id]++;
    }
    ks_sampler_fini(&s);
}

static const float logits[V] = { 0, 1, 2, 3, 3, 2, 1, 0 };

static void temperature_zero_takes_the_first_of_the_best(void **state)
{
    (void)state;
    uint32_t c[V];
    ks_sampling p = plain();
    p.temperature = 0;
    draw(&p, logits, 10, c);
    assert_int_equal(c[3], 10);
}

/* Any length, any place, NaNs between: as one comparison after the other finds it. */
static void the_best_is_found_wherever_it_lies(void **state)
{
    (void)state;
    enum { N = 53 };
    static const float values[] = { -INFINITY, -2, -0.0f, 0, 1, 3, 3, NAN, INFINITY };
    float z[N], own[N];
    ks_cand cand[N];
    uint32_t x = 1;
    ks_sampling p = plain();
    p.temperature = 0;
    for (uint32_t round = 0; round < 20000; round++) {
        uint32_t n = 1 + round % N, kinds = 1 + round / N % KS_COUNT(values), best = 0;
        for (uint32_t i = 0; i < n; i++) {
            x = x * 1664525u + 1013904223u;
            z[i] = values[(x >> 16) % kinds];
            if (round % 7 == 0) z[i] = NAN;
            if (z[i] > z[best] || isnan(z[best])) best = i;
        }
        ks_sampler s;
        assert_int_equal(ks_sampler_init(&s, &p, n, n, 1, NULL), 0);
        assert_int_equal(ks_sample(&s, z, own, cand), best);
        ks_sampler_fini(&s);
    }
}

static void frequencies_follow_the_softmax(void **state)
{
    (void)state;
    uint32_t c[V], n = 200000;
    double sum = 0;
    ks_sampling p = plain();
    draw(&p, logits, n, c);
    for (uint32_t i = 0; i < V; i++) sum += exp((double)logits[i]);
    for (uint32_t i = 0; i < V; i++) {
        double want = exp((double)logits[i]) / sum;
        assert_true(fabs(c[i] / (double)n - want) < 5 * sqrt(want / n));
    }
}

static void top_k_keeps_the_k_best_ties_to_the_lower_id(void **state)
{
    (void)state;
    uint32_t c[V];
    ks_sampling p = plain();
    p.top_k = 3;
    draw(&p, logits, 5000, c);
    assert_true(c[3] > 0 && c[4] > 0 && c[2] > 0);
    assert_int_equal(c[3] + c[4] + c[2], 5000);
}

static void top_p_keeps_the_smallest_set_that_reaches_p(void **state)
{
    (void)state;
    uint32_t c[V];
    ks_sampling p = plain();
    p.top_p = 0.6f; /* 3 and 4 have 0.64 together */
    draw(&p, logits, 5000, c);
    assert_int_equal(c[3] + c[4], 5000);
    p.top_p = 0;
    draw(&p, logits, 100, c);
    assert_int_equal(c[3], 100);
}

static void top_p_is_a_share_of_what_top_k_left(void **state)
{
    (void)state;
    uint32_t c[V];
    ks_sampling p = plain();
    p.top_k = 2;
    p.top_p = 0.45f; /* of the two equal ones: the first alone has 0.5 */
    draw(&p, logits, 200, c);
    assert_int_equal(c[3], 200);
}

static void min_p_drops_what_is_far_below_the_best(void **state)
{
    (void)state;
    uint32_t c[V];
    ks_sampling p = plain();
    p.min_p = 0.3f; /* e^-1 = 0.37 stays, e^-2 = 0.14 goes */
    draw(&p, logits, 5000, c);
    assert_int_equal(c[0] + c[1] + c[6] + c[7], 0);
    assert_true(c[2] > 0 && c[5] > 0);
    p.top_k = 7;
    draw(&p, logits, 5000, c);
    assert_int_equal(c[0] + c[1] + c[6] + c[7], 0);
}

static void penalties_lower_what_was_generated(void **state)
{
    (void)state;
    ks_sampler s;
    ks_cand cand[V];
    float own[V];
    ks_sampling p = plain();
    p.temperature = 0;
    p.presence_penalty = 0.5f;
    p.frequency_penalty = 0.1f;
    p.repetition_penalty = 1.5f;
    assert_int_equal(ks_sampler_init(&s, &p, V, V, 1, NULL), 0);
    ks_sampler_accept(&s, 3, true);
    ks_sampler_accept(&s, 3, true);
    ks_sampler_accept(&s, 2, false);
    assert_int_equal(ks_sample(&s, logits, own, cand), 4);
    assert_float_equal(own[3], 3 / 1.5f - 0.5f - 0.2f, 1e-6);
    assert_float_equal(own[2], 2 / 1.5f, 1e-6); /* in the prompt: repetition only */
    assert_float_equal(own[4], 3, 0);
    ks_sampler_fini(&s);
}

static void bias_and_ids_without_a_token_are_respected(void **state)
{
    (void)state;
    ks_sampler s;
    ks_cand cand[V];
    ks_err err;
    float z[V] = { 0, 0, 0, 0, 0, 0, 0, 9 }, own[V];
    int32_t ids[1] = { 2 };
    float bias[1] = { 5 };
    ks_sampling p = plain();
    p.temperature = 0;
    p.n_bias = 1;
    p.bias_ids = ids;
    p.bias = bias;
    assert_int_equal(ks_sampler_init(&s, &p, V, 7, 1, NULL), 0); /* token 7 is padding of the head */
    assert_int_equal(ks_sample(&s, z, own, cand), 2);
    ks_sampler_fini(&s);
    ids[0] = 8;
    assert_int_equal(ks_sampler_init(&s, &p, V, V, 1, &err), KS_E_INVAL);
    assert_string_equal(err.msg, "'logit_bias' names token 8: the vocabulary has 8");
}

static void a_seed_repeats(void **state)
{
    (void)state;
    uint32_t a[V], b[V];
    ks_sampling p = plain();
    p.top_k = 5;
    draw(&p, logits, 1000, a);
    draw(&p, logits, 1000, b);
    assert_memory_equal(a, b, sizeof a);
}

static void the_models_defaults_stand_behind_the_request(void **state)
{
    (void)state;
    ks_sampling rq, model, r;
    ks_err err;
    ks_sampling_init(&rq);
    ks_sampling_init(&model);
    model.temperature = 0.7f;
    model.top_k = 20;
    rq.top_p = 0.5f;
    assert_int_equal(ks_sampling_resolve(&rq, &model, &r, NULL), 0);
    assert_float_equal(r.temperature, 0.7f, 0);
    assert_float_equal(r.top_p, 0.5f, 0);
    assert_float_equal(r.min_p, 0, 0);
    assert_int_equal(r.top_k, 20);
    rq.top_p = 1.5f;
    assert_int_equal(ks_sampling_resolve(&rq, &model, &r, &err), KS_E_INVAL);
    assert_string_equal(err.msg, "'top_p' is 1.5: allowed is 0 to 1");
    rq.top_p = INFINITY;
    assert_int_equal(ks_sampling_resolve(&rq, &model, &r, NULL), KS_E_INVAL);
}

static void logprobs_are_the_log_softmax(void **state)
{
    (void)state;
    ks_cand cand[V], top[3];
    double sum = 0;
    for (uint32_t i = 0; i < V; i++) sum += exp((double)logits[i]);
    assert_float_equal(ks_logprobs(logits, V, 1, 3, cand, top), 1 - log(sum), 1e-6);
    assert_int_equal(top[0].id, 3);
    assert_int_equal(top[1].id, 4);
    assert_int_equal(top[2].id, 2);
    assert_float_equal(top[2].logit, 2 - log(sum), 1e-6);
}

static void exponentials_are_within_two_units_of_the_last_place(void **state)
{
    double worst = 0;
    (void)state;
    for (uint32_t bits = 0x80000000u; bits < 0xc2ae0000u; bits += 997) { /* -0 .. -87 */
        float x, got[4];
        memcpy(&x, &bits, sizeof x);
        _mm_storeu_ps(got, ks__exp4(_mm_setr_ps(0, x, -1, x)));
        assert_true(got[0] == 1 && memcmp(&got[1], &got[3], sizeof *got) == 0); /* whatever lies beside it */
        double want = exp((double)x), ulp = exp2(floor(log2(want)) - 23);
        worst = fmax(worst, fabs((double)got[1] - want) / ulp);
    }
    print_message("worst error: %.3f ulp\n", worst);
    assert_true(worst < 2);
    float none[4];
    _mm_storeu_ps(none, ks__exp4(_mm_setr_ps(-87.5f, -INFINITY, NAN, -1e30f)));
    for (int i = 0; i < 4; i++) assert_true(none[i] == 0);
}

/* ---- against one comparison, one exponential after the other */

#define MANY 5003u

static const float *order_by; /* qsort has no argument for it */

static int by_logit(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return order_by[x] > order_by[y] ? -1 : order_by[x] < order_by[y] ? 1 : x - y;
}

/* Is `id` what number u of [0, 1) draws? The sums of floats may be off by some 1e-6. */
static void check_draw(const ks_sampler *s, const float *z, double u, int32_t id)
{
    static int32_t ids[MANY];
    static double w[MANY];
    uint32_t k = s->top_k > 0 && (uint32_t)s->top_k < MANY ? (uint32_t)s->top_k : MANY, m = 0;
    bool cut = k < MANY || s->top_p < 1;
    double total = 0, kept = 0, before = 0;
    for (uint32_t i = 0; i < MANY; i++) ids[i] = (int32_t)i;
    order_by = z;
    qsort(ids, MANY, sizeof *ids, by_logit);
    double top = (double)z[ids[0]];
    if (!cut)
        for (uint32_t i = 0; i < MANY; i++) ids[i] = (int32_t)i;
    for (uint32_t i = 0; i < k; i++) total += w[i] = exp(((double)z[ids[i]] - top) / (double)s->temperature);
    for (; m < k && !(cut && m > 0 && (kept >= (double)s->top_p * total || w[m] < (double)s->min_p)); m++) {
        if (w[m] < (double)s->min_p) w[m] = 0;
        kept += w[m];
    }
    for (uint32_t i = 0; i < m; i++) {
        if (ids[i] == id && w[i] > 0) {
            if (u * kept < before - 1e-5 * kept || u * kept > before + w[i] + 1e-5 * kept)
                fail_msg("u %g of %g, token %d has %g to %g", u * kept, kept, id, before, before + w[i]);
            return;
        }
        before += w[i];
    }
    fail_msg("token %d is not among the %u that may be drawn", id, m);
}

static void many_tokens_are_drawn_as_one_after_the_other_would_be(void **state)
{
    static const int32_t ks[] = { 0, 0, 2, 17, 40, 1000, MANY - 1, MANY, 0 };
    static const float ps[] = { 1, 0.9f, 0.5f, 0.999f, 0, 1, 0.95f }, mins[] = { 0, 0, 0.05f, 1, 1e-4f };
    static const float temperatures[] = { 1, 0.7f, 2, 0.05f };
    static float z[MANY], own[MANY];
    static ks_cand cand[MANY];
    uint32_t x = 9;
    (void)state;
    for (uint32_t round = 0; round < 1500; round++) {
        ks_sampling p = plain();
        ks_sampler s;
        p.top_k = ks[round % KS_COUNT(ks)];
        p.top_p = ps[round % KS_COUNT(ps)];
        p.min_p = mins[round % KS_COUNT(mins)];
        p.temperature = temperatures[round / 3 % KS_COUNT(temperatures)];
        float spread = round % 2 ? 3.0f : 0.5f, at = (float)(round % 5) * 200.0f - 400.0f;
        for (uint32_t i = 0; i < MANY; i++) { /* ties, too */
            x = x * 1664525u + 1013904223u;
            z[i] = at + spread * logf((float)((x >> 20) + 1) / 4097.0f) * -0.5f;
        }
        for (uint32_t i = round % 7; i < MANY; i += 700) z[i] = -INFINITY;
        assert_int_equal(ks_sampler_init(&s, &p, MANY, MANY, round, NULL), 0);
        double u = (double)((s.rng[0] + s.rng[1]) >> 11) * 0x1p-53;
        check_draw(&s, z, u, ks_sample(&s, z, own, cand));
        ks_sampler_fini(&s);
    }
}

static void logits_that_are_no_numbers_are_not_drawn(void **state)
{
    float z[V] = { NAN, 1, NAN, 2, NAN, NAN, -INFINITY, NAN }, own[V];
    ks_cand cand[V], top[V];
    (void)state;
    for (uint32_t i = 0; i < 60; i++) {
        ks_sampling p = plain();
        ks_sampler s;
        p.top_k = i % 3 == 0 ? 4 : 0;
        p.top_p = i % 3 == 1 ? 0.9f : 1;
        assert_int_equal(ks_sampler_init(&s, &p, V, V, i, NULL), 0);
        int32_t id = ks_sample(&s, z, own, cand);
        assert_true(id == 1 || id == 3);
        ks_sampler_fini(&s);
    }
    float lp = ks_logprobs(z, V, 3, V, cand, top);
    assert_true(fabsf(lp + logf(1 + expf(-1))) < 1e-6f);
    assert_true(top[0].id == 3 && top[1].id == 1 && top[2].id == 6 && isnan(top[3].logit));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature_zero_takes_the_first_of_the_best),
        cmocka_unit_test(the_best_is_found_wherever_it_lies),
        cmocka_unit_test(frequencies_follow_the_softmax),
        cmocka_unit_test(top_k_keeps_the_k_best_ties_to_the_lower_id),
        cmocka_unit_test(top_p_keeps_the_smallest_set_that_reaches_p),
        cmocka_unit_test(top_p_is_a_share_of_what_top_k_left),
        cmocka_unit_test(min_p_drops_what_is_far_below_the_best),
        cmocka_unit_test(penalties_lower_what_was_generated),
        cmocka_unit_test(bias_and_ids_without_a_token_are_respected),
        cmocka_unit_test(a_seed_repeats),
        cmocka_unit_test(the_models_defaults_stand_behind_the_request),
        cmocka_unit_test(logprobs_are_the_log_softmax),
        cmocka_unit_test(exponentials_are_within_two_units_of_the_last_place),
        cmocka_unit_test(many_tokens_are_drawn_as_one_after_the_other_would_be),
        cmocka_unit_test(logits_that_are_no_numbers_are_not_drawn),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
