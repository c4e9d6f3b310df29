/* The placement of experts: what stays, what comes, and that it is never more than there is room for. A model of a
 * device with slow uploads checks every change that the policy makes. */
#include "device/hcs.h"

#include "base/base.h"
#include "base/hash.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define LAYERS 8u
#define EXPERTS 64u
#define UNITS (LAYERS * EXPERTS)

static uint64_t counts[UNITS], rows;

static ks_hcs *make(uint32_t capacity)
{
    ks_hcs *h;
    ks_err err;
    ks_hcs_opts o = { .n_layers = LAYERS, .n_experts = EXPERTS, .capacity = capacity };
    memset(counts, 0, sizeof counts);
    rows = 0;
    if (ks_hcs_new(&o, &h, &err)) fail_msg("%s", err.msg);
    return h;
}

static uint32_t n_resident(const ks_hcs *h)
{
    uint32_t n = 0;
    for (uint32_t u = 0; u < UNITS; u++) n += ks_hcs_is_resident(h, u / EXPERTS, u % EXPERTS);
    return n;
}

/* All that the policy wants now, with as many uploads as it likes. */
static uint32_t take_all(ks_hcs *h)
{
    ks_place c[256];
    uint32_t loads = 0;
    for (uint32_t n; (n = ks_hcs_next(h, UINT32_MAX, c, KS_COUNT(c)));)
        for (uint32_t i = 0; i < n; i++) loads += c[i].keep;
    return loads;
}

/* ---- a start */

static void without_knowledge_each_layer_keeps_equally_many(void **state)
{
    (void)state;
    uint32_t n;
    ks_hcs *h = make(3 * LAYERS + 2);
    const ks_place *c = ks_hcs_settle(h, &n);
    assert_int_equal(n, 3 * LAYERS + 2);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(c[i].keep, 1);
        assert_int_equal(c[i].expert, i / LAYERS);
        assert_int_equal(c[i].layer, i % LAYERS);
    }
    assert_int_equal(ks_hcs_used(h), n);
    assert_int_equal(n_resident(h), n);
    c = ks_hcs_settle(h, &n);
    assert_int_equal(n, 0); /* nothing to change */
    ks_hcs_free(h);
}

static void a_heat_map_gives_the_hottest_experts_of_all_layers(void **state)
{
    (void)state;
    uint32_t n;
    ks_hcs *h = make(10);
    (void)ks_hcs_settle(h, &n);
    for (uint32_t i = 0; i < 10; i++) counts[i * 37 % UNITS] = 1000 + i;
    ks_hcs_seed(h, counts, 4000);
    const ks_place *c = ks_hcs_settle(h, &n);
    uint32_t drops = 0;
    for (uint32_t i = 0; i < n; i++) {
        drops += !c[i].keep;
        if (!c[i].keep && i > 0) assert_int_equal(c[i - 1].keep, 0); /* room first */
    }
    assert_int_equal(2 * drops, n);
    for (uint32_t i = 0; i < 10; i++) assert_true(ks_hcs_is_resident(h, i * 37 % UNITS / EXPERTS, i * 37 % EXPERTS));
    assert_int_equal(ks_hcs_used(h), 10);
    ks_hcs_free(h);
}

static void a_heat_map_comes_back_as_it_was_given(void **state)
{
    (void)state;
    uint64_t got[UNITS], got_rows;
    ks_hcs *h = make(10);
    for (uint32_t u = 0; u < UNITS; u++) counts[u] = u * KS_HCS_ONE / 2;
    ks_hcs_seed(h, counts, 2000 * KS_HCS_ONE);
    ks_hcs_heat(h, got, &got_rows);
    assert_int_equal(got_rows, 2000 * KS_HCS_ONE);
    for (uint32_t u = 0; u < UNITS; u++) assert_int_equal(got[u], counts[u]);
    /* One of more rows than are remembered weighs as much as is remembered. */
    ks_hcs_seed(h, counts, 200000 * KS_HCS_ONE);
    ks_hcs_heat(h, got, &got_rows);
    assert_true(got_rows < 6000 * KS_HCS_ONE && got_rows > 5000 * KS_HCS_ONE);
    assert_true(fabs((double)got[200] / (double)got_rows - 100. / 200000) < 1e-6);
    /* Lies: no expert is asked for more than once a row. */
    for (uint32_t u = 0; u < UNITS; u++) counts[u] = UINT64_MAX;
    ks_hcs_seed(h, counts, 1);
    ks_hcs_heat(h, got, &got_rows);
    for (uint32_t u = 0; u < UNITS; u++) assert_true(got[u] <= got_rows);
    ks_hcs_seed(h, counts, 0);
    ks_hcs_heat(h, got, &got_rows);
    assert_int_equal(got_rows, 0);
    assert_int_equal(got[5], 0);
    ks_hcs_free(h);
}

static void room_for_none_one_and_all(void **state)
{
    (void)state;
    uint32_t n;
    for (uint32_t cap = 0; cap <= UNITS + 5; cap += cap == 1 ? UNITS - 1 : cap ? 5 : 1) {
        ks_hcs *h = make(cap);
        (void)ks_hcs_settle(h, &n);
        assert_int_equal(n, KS_MIN(cap, UNITS));
        assert_int_equal(ks_hcs_holds_all(h), cap >= UNITS);
        for (uint32_t step = 1; step < 2000; step++) {
            counts[17]++;
            ks_hcs_count(h, counts, ++rows);
            take_all(h);
            assert_int_equal(ks_hcs_used(h), KS_MIN(cap, UNITS));
        }
        assert_int_equal(ks_hcs_is_resident(h, 0, 17), cap > 0);
        ks_hcs_free(h);
    }
}

static void layers_differ_in_experts_and_banks(void **state)
{
    static const uint32_t experts[] = { 4, 0, 64, 2, 9999, 8, 8, 8 }, slots[] = { 1, 1, 2, 3, 1, 0, 1, 2 };
    (void)state;
    ks_hcs_opts o = { LAYERS, EXPERTS, experts, slots, 40 };
    ks_hcs *h;
    ks_err err;
    ks_place c[8];
    uint32_t n, used;
    if (ks_hcs_new(&o, &h, &err)) fail_msg("%s", err.msg);
    memset(counts, 0, sizeof counts);
    rows = 0;
    (void)ks_hcs_settle(h, &n);
    uint64_t seed = 3;
    for (uint32_t step = 0; step < 5000; step++) {
        uint32_t hot = step / 1000; /* another corner each time */
        rows += 4;
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t k = 0; k < 8; k++)
                counts[l * EXPERTS + (ks_splitmix64(&seed) % 8 + hot * 3) % EXPERTS] += slots[l];
        ks_hcs_count(h, counts, rows);
        n = ks_hcs_next(h, 3, c, KS_COUNT(c));
        for (uint32_t i = 0; i < n; i++) {
            assert_true(c[i].expert < experts[c[i].layer] && c[i].expert < EXPERTS && slots[c[i].layer]);
            assert_int_equal(c[i].keep, ks_hcs_is_resident(h, c[i].layer, c[i].expert));
        }
        used = 0;
        for (uint32_t u = 0; u < UNITS; u++)
            used += ks_hcs_is_resident(h, u / EXPERTS, u % EXPERTS) ? slots[u / EXPERTS] : 0;
        assert_int_equal(used, ks_hcs_used(h));
        assert_true(used <= 40);
    }
    ks_hcs_free(h);
}

/* ---- adapting */

static void near_equal_experts_do_not_swap_for_ever(void **state)
{
    (void)state;
    uint32_t n, swaps = 0, late = 0;
    uint64_t seed = 1;
    ks_hcs *h = make(UNITS / 4);
    (void)ks_hcs_settle(h, &n);
    for (uint32_t step = 0; step < 20000; step++) { /* all alike */
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t k = 0; k < 4; k++) counts[l * EXPERTS + ks_splitmix64(&seed) % EXPERTS]++;
        ks_hcs_count(h, counts, ++rows);
        uint32_t m = take_all(h);
        swaps += m;
        late += step >= 10000 ? m : 0;
    }
    print_message("uniform routing: %u swaps in 20000 rows, %u in the second half\n", swaps, late);
    assert_true(late < 3200); /* one in a hundred uses */
    ks_hcs_free(h);
}

static void a_shift_of_the_hot_set_is_followed(void **state)
{
    (void)state;
    uint32_t n, after = 0;
    ks_hcs *h = make(LAYERS * 4);
    (void)ks_hcs_settle(h, &n);
    for (uint32_t step = 0; step < 4000; step++) {
        uint32_t base = step < 2000 ? 8 : 40;
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t k = 0; k < 4; k++) counts[l * EXPERTS + base + k]++;
        ks_hcs_count(h, counts, ++rows);
        ks_place c[8];
        (void)ks_hcs_next(h, 1, c, KS_COUNT(c)); /* one upload a step */
        uint32_t hits = 0;
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t k = 0; k < 4; k++) hits += ks_hcs_is_resident(h, l, base + k);
        if (step == 1999) assert_int_equal(hits, LAYERS * 4);
        if (step >= 2000 && hits < LAYERS * 4) after = step - 1999;
    }
    print_message("the hot set moved: followed after %u steps of one row\n", after);
    assert_true(after < 512);
    ks_hcs_free(h);
}

static void counts_that_go_backwards_or_overflow_do_no_harm(void **state)
{
    (void)state;
    uint32_t n;
    uint64_t got[UNITS], got_rows;
    ks_hcs *h = make(16);
    (void)ks_hcs_settle(h, &n);
    static const uint64_t hostile[] = { UINT64_MAX, 0, 1, UINT64_MAX - 1, UINT64_MAX / 2 + 1, 7, 0 };
    for (uint32_t i = 0; i < 7 * 7 * 3; i++) {
        for (uint32_t u = 0; u < UNITS; u++) counts[u] = hostile[(i + u) % 7];
        ks_hcs_count(h, counts, hostile[i / 7 % 7]);
        take_all(h);
        ks_hcs_heat(h, got, &got_rows);
        for (uint32_t u = 0; u < UNITS; u++) assert_true(got[u] <= got_rows + 1);
        assert_int_equal(ks_hcs_used(h), 16);
    }
    ks_hcs_free(h);
}

static void equal_counts_give_equal_decisions(void **state)
{
    (void)state;
    ks_hcs *a = make(50), *b = make(50);
    uint32_t n, m;
    uint64_t seed = 5;
    assert_true(ks_hcs_settle(a, &n) && ks_hcs_settle(b, &m) && n == m);
    for (uint32_t step = 0; step < 3000; step++) {
        ks_place x[8], y[8];
        for (uint32_t k = 0; k < 16; k++) counts[ks_splitmix64(&seed) % (1 + ks_splitmix64(&seed) % UNITS)]++;
        rows += 2;
        ks_hcs_count(a, counts, rows);
        ks_hcs_count(b, counts, rows);
        n = ks_hcs_next(a, 2, x, KS_COUNT(x));
        m = ks_hcs_next(b, 2, y, KS_COUNT(y));
        assert_int_equal(n, m);
        assert_memory_equal(x, y, n * sizeof x[0]);
    }
    ks_hcs_free(a);
    ks_hcs_free(b);
}

static void too_many_experts_are_refused(void **state)
{
    (void)state;
    ks_err err;
    ks_hcs *h;
    ks_hcs_opts o = { .n_layers = UINT32_MAX, .n_experts = UINT32_MAX };
    assert_int_equal(ks_hcs_new(&o, &h, &err), KS_E_LIMIT);
    assert_string_equal(err.msg, "4294967295 layers of 4294967295 experts are too many to place");
    ks_hcs_free(NULL);
}

/* ---- a device with slow uploads */

typedef struct model {
    uint32_t n_slots;
    uint32_t unit[UNITS];  /* (n_slots) who is there; UINT32_MAX: nobody */
    uint32_t lands[UNITS]; /* (n_slots) the step from which it can be read */
    uint32_t slot[UNITS];  /* of a unit; UINT32_MAX: none */
    bool running;
} model;

static void model_init(model *m, uint32_t n_slots)
{
    m->n_slots = n_slots;
    m->running = false;
    memset(m->unit, 0xff, sizeof m->unit);
    memset(m->slot, 0xff, sizeof m->slot);
}

static void model_place(model *m, const ks_place *c, uint32_t n, uint32_t step, uint32_t delay)
{
    assert_false(m->running); /* no slot is written while a step reads */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t u = c[i].layer * EXPERTS + c[i].expert, s = 0;
        if (!c[i].keep) {
            assert_int_not_equal(m->slot[u], UINT32_MAX);
            m->unit[m->slot[u]] = UINT32_MAX;
            m->slot[u] = UINT32_MAX;
            continue;
        }
        assert_int_equal(m->slot[u], UINT32_MAX);
        while (s < m->n_slots && m->unit[s] != UINT32_MAX) s++;
        assert_true(s < m->n_slots); /* never more than the budget */
        m->unit[s] = u;
        m->slot[u] = s;
        m->lands[s] = step + delay;
    }
}

static bool model_reads(const model *m, uint32_t unit, uint32_t step)
{
    assert_true(m->running);
    return m->slot[unit] != UINT32_MAX && m->lands[m->slot[unit]] <= step;
}

/* Draws an expert of a Zipf law whose order differs from layer to layer and, with `shift`, from time to time. */
static double zipf[EXPERTS];

static void make_zipf(double z)
{
    double sum = 0;
    for (uint32_t e = 0; e < EXPERTS; e++) sum += zipf[e] = pow(e + 1, -z);
    for (uint32_t e = 0; e < EXPERTS; e++) zipf[e] = (e ? zipf[e - 1] : 0) + zipf[e] / sum;
}

static uint32_t draw_rank(uint64_t *seed)
{
    double x = (double)(ks_splitmix64(seed) >> 11) * 0x1p-53;
    uint32_t e = 0;
    while (e < EXPERTS - 1 && zipf[e] < x) e++;
    return e;
}

static uint32_t expert_of(uint32_t layer, uint32_t rank, uint32_t shift)
{
    return (rank * (2 * layer + 5) + 7 * layer + shift) % EXPERTS; /* odd factors: a permutation */
}

/* The part of uses that find their expert, over the last quarter of the steps. */
static double simulate(ks_hcs *h, uint32_t n_slots, uint32_t steps, uint32_t step_rows, uint32_t shift_every)
{
    static model m;
    uint32_t n, shift = 0;
    uint64_t seed = 11, hits = 0, uses = 0;
    model_init(&m, n_slots);
    const ks_place *c = ks_hcs_settle(h, &n);
    model_place(&m, c, n, 0, 0);
    for (uint32_t step = 0; step < steps; step++) {
        m.running = true;
        if (shift_every && step % shift_every == 0) shift = (uint32_t)(ks_splitmix64(&seed) % EXPERTS);
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t k = 0; k < 4 * step_rows; k++) {
                uint32_t u = l * EXPERTS + expert_of(l, draw_rank(&seed), shift);
                counts[u]++;
                bool hit = model_reads(&m, u, step);
                if (step < steps - steps / 4) continue;
                uses++;
                hits += hit;
            }
        rows += step_rows;
        m.running = false;
        if (step % 8 == 7) ks_hcs_count(h, counts, rows);
        ks_place out[16];
        n = ks_hcs_next(h, 1 + step % 3, out, KS_COUNT(out));
        model_place(&m, out, n, step + 1, (uint32_t)(ks_splitmix64(&seed) % 6)); /* lands at once or five steps late */
        assert_true(ks_hcs_used(h) <= n_slots);
    }
    for (uint32_t u = 0; u < UNITS; u++)
        assert_int_equal(m.slot[u] != UINT32_MAX, ks_hcs_is_resident(h, u / EXPERTS, u % EXPERTS));
    return (double)hits / (double)uses;
}

static void the_hit_rate_converges_to_the_best_that_zipf_allows(void **state)
{
    (void)state;
    static const double skews[] = { 0.5, 0.8, 1.2 };
    for (uint32_t i = 0; i < KS_COUNT(skews); i++)
        for (uint32_t part = 8; part >= 2; part /= 2) {
            ks_hcs *h = make(UNITS / part);
            make_zipf(skews[i]);
            double best = zipf[EXPERTS / part - 1], got = simulate(h, UNITS / part, 10000, 2, 0);
            print_message("Zipf %.1f, 1/%u resident: %.4f of at most %.4f\n", skews[i], part, got, best);
            assert_true(got > best - 0.02);
            ks_hcs_free(h);
        }
}

static void hostile_routing_never_exceeds_the_budget_nor_writes_what_is_read(void **state)
{
    (void)state;
    static const uint32_t every[] = { 1, 7, 64, 500 };
    for (uint32_t i = 0; i < KS_COUNT(every); i++) {
        ks_hcs *h = make(33);
        make_zipf(1.5);
        (void)simulate(h, 33, 10000, 1, every[i]);
        ks_hcs_free(h);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_knowledge_each_layer_keeps_equally_many),
        cmocka_unit_test(a_heat_map_gives_the_hottest_experts_of_all_layers),
        cmocka_unit_test(a_heat_map_comes_back_as_it_was_given),
        cmocka_unit_test(room_for_none_one_and_all),
        cmocka_unit_test(layers_differ_in_experts_and_banks),
        cmocka_unit_test(near_equal_experts_do_not_swap_for_ever),
        cmocka_unit_test(a_shift_of_the_hot_set_is_followed),
        cmocka_unit_test(counts_that_go_backwards_or_overflow_do_no_harm),
        cmocka_unit_test(equal_counts_give_equal_decisions),
        cmocka_unit_test(too_many_experts_are_refused),
        cmocka_unit_test(the_hit_rate_converges_to_the_best_that_zipf_allows),
        cmocka_unit_test(hostile_routing_never_exceeds_the_budget_nor_writes_what_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
