/* Memory nodes: which pages of a matrix belong to which, on machines of two and four nodes that this one is not. */
#include "store/place.h"
#include "util.h"

static const ks_numa two = { .n_nodes = 2, .n_workers = 4, .id = { 0, 1 }, .first = { 0, 2, 4 } };
static const ks_numa four = { .n_nodes = 4, .n_workers = 10, .id = { 0, 1, 2, 3 }, .first = { 0, 3, 5, 8, 10 } };

static ks_pweight weight(uint32_t n_mat, uint32_t n_out, uint32_t n_in, uint64_t off)
{
    ks_pweight w = { .off = off };
    w.w = (ks_weight) { .type = KS_T_I4, .layout = KS_LAYOUT_T16, .group = 128, .n_mat = n_mat, .n_out = n_out };
    w.w.n_in = n_in;
    w.w.mat_bytes = ks_t16_strips(n_out) * ks_t16_strip_bytes(KS_T_I4, n_in, 128);
    w.w.stride = ks_align_up(w.w.mat_bytes, 4096);
    return w;
}

/* The nodes' ranges of a matrix follow each other, cover it, and begin within a page of where the share begins. */
static void check_matrix(const ks_pweight *w, const ks_numa *m, uint32_t mat)
{
    const uint64_t page = ks__place_page_bytes(w, m), at = w->off + mat * w->w.stride, end = at + w->w.mat_bytes;
    const uint64_t strip = w->w.mat_bytes / ks_t16_strips(w->w.n_out);
    uint64_t covered = at, lo, hi;
    for (uint32_t k = 0; k < m->n_nodes; k++) {
        uint32_t s0, s1;
        ks_numa_share(m, k, ks_t16_strips(w->w.n_out), &s0, &s1);
        if (!ks__place_range(w, m, mat, k, page, &lo, &hi)) continue;
        assert_true(lo % page == 0 && hi % page == 0);
        assert_true(lo <= covered && (k == 0 || lo >= covered));
        assert_true(k == 0 || (lo >= at + s0 * strip && lo < at + s0 * strip + page));
        covered = hi;
    }
    assert_true(covered >= end && covered < end + page);
}

static void each_node_owns_a_share_of_every_expert(void **state)
{
    (void)state;
    const ks_pweight w[] = {
        weight(128, 1536, 2048, (uint64_t)4 << 20), /* an expert of 1.6 MB: small pages */
        weight(3, 100, 256, 64),                    /* shares smaller than a page, begun within one */
        weight(2, 8192, 8192, 12288),               /* 36 MB */
        weight(2, 65536, 4096, (uint64_t)2 << 20),  /* 140 MB: huge pages */
    };
    for (size_t i = 0; i < KS_COUNT(w); i++) {
        for (uint32_t mat = 0; mat < w[i].w.n_mat; mat++) {
            check_matrix(&w[i], &two, mat);
            check_matrix(&w[i], &four, mat);
        }
    }
    assert_int_equal(ks__place_page_bytes(&w[0], &two), 4096);
    assert_int_equal(ks__place_page_bytes(&w[2], &two), KS_HUGE_BYTES);
    assert_int_equal(ks__place_page_bytes(&w[3], &four), KS_HUGE_BYTES);
}

/* Nodes that are not there, or a kernel that refuses: the weights are the same, wherever they lie. */
static void weights_do_not_depend_on_nodes(void **state)
{
    (void)state;
    static const ks_wpart parts[] = { { "e.{}", 0, 512, 512, 0, 0, false } };
    static const ks_wspec specs[] = { { "w", KS_CLS_EXPERT, 0, 8, 512, 1024, 1, parts, -1, 0, NULL } };
    static const ks_numa *const nodes[] = { &two, &four };
    char names[8][8];
    ks_st_tensor t[8];
    for (uint32_t i = 0; i < 8; i++) {
        (void)snprintf(names[i], sizeof names[i], "e.%u", i);
        t[i] = util_tensor(names[i], "BF16", 2, 512, 1024, 0);
    }
    util_fresh_dir("model");
    util_write("model", "model.safetensors", t, 8);
    util_fresh_dir("cache");
    ks_registry *r = util_registry();
    ks_ckpt *c = util_ckpt(r, "model");
    ks_weight plain[1], w[1];
    ks_store *ref = util_store(c, specs, 1, KS_T_I4, plain);
    for (size_t i = 0; i < 2 * KS_COUNT(nodes); i++) { /* the first builds, the others load */
        ks_err err;
        ks_store *st = NULL;
        ks_store_opts o = { .cache_dir = "cache", .numa = nodes[i % 2] };
        o.type[KS_CLS_EXPERT] = KS_T_I4;
        assert_ok(ks_store_open(c, specs, 1, &o, w, &st, &err), &err);
        assert_int_equal(ks_store_was_cached(st), i > 0);
        for (uint32_t m = 0; m < 8; m++)
            assert_memory_equal((const uint8_t *)w[0].data + m * w[0].stride,
                                (const uint8_t *)plain[0].data + m * plain[0].stride, plain[0].mat_bytes);
        ks_store_close(st);
    }
    ks_store_close(ref);
    ks_ckpt_close(c);
    ks_registry_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_node_owns_a_share_of_every_expert),
        cmocka_unit_test(weights_do_not_depend_on_nodes),
    };
    return cmocka_run_group_tests_name("place", tests, NULL, NULL);
}
