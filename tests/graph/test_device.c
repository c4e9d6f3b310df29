/* The CPU device by itself: what it refuses, what it counts, single ops on op lists made by hand, and quantized weights
 * and caches, whose bits must not depend on how the work is cut. */
#include "graph/fixture.h"
#include "support/golden_ckpt.h"

#include "base/base.h"
#include "base/file.h"
#include "ref/ref.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define VOCAB 512u
#define TOKENS 40u

static const ks_device_iface *const dev = &ks_cpu_device_iface;

static void must(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

static void open_golden(fixture *f, const char *name, uint32_t n_threads, uint32_t kv_type, const uint32_t *types)
{
    char golden[512];
    ks_err err;
    (void)snprintf(golden, sizeof golden, "%s/tests/golden/%s", KS_SOURCE_DIR, name);
    must(ks_golden_write(golden, name, &err), &err);
    must(fx_open(f, name, "ref", n_threads, kv_type, types, &err), &err);
}

static void make_ids(int32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)((i * 97 + 13) % VOCAB);
}

/* ---- batches and binding */

static void says(int rc, int code, const ks_err *err, const char *words)
{
    if (rc != code || !strstr(err->msg, words))
        fail_msg("code %d, '%s': should be %d and hold '%s'", rc, rc ? err->msg : "", code, words);
}

static void test_bad_batches_are_refused(void **state)
{
    fixture f;
    ks_err err = { 0 };
    int32_t ids[4] = { 1, 2, 3, 4 };
    uint32_t pos[4] = { 0, 1, 2, 3 }, out[4] = { 0, 1, 2, 9 }, pages[2] = { 0, FX_PAGES };
    float *logits = malloc(4 * VOCAB * sizeof *logits);
    ks_seq s = { .n_rows = 4, .pages = pages, .n_pages = 1 };
    ks_batch b = { .size = sizeof b,
                   .seq_size = sizeof s,
                   .n_rows = 4,
                   .n_seqs = 1,
                   .n_out = 3,
                   .ids = ids,
                   .pos = pos,
                   .seqs = &s,
                   .out_rows = out,
                   .logits = logits };
    (void)state;
    assert_non_null(logits);
    open_golden(&f, "qwen3_moe", 1, KS_T_F32, NULL);
    uint32_t n = f.model.graph.n_ops;
    must(dev->run(f.dev, &b, 0, n, &err), &err);

    says(dev->run(f.dev, &b, 0, n + 1, &err), KS_E_INVAL, &err, "are not among the bound");
    b.n_out = 4;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_INVAL, &err, "result 3 is row 9 of 4");
    b.n_out = 3;
    b.logits = NULL;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_INVAL, &err, "no place for logits");
    b.logits = logits;
    b.n_rows = FX_ROWS + 1;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_LIMIT, &err, "a step of 129 rows");
    b.n_rows = 4;
    ids[2] = (int32_t)VOCAB;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_INVAL, &err, "row 2 holds token 512: the vocabulary has 512");
    ids[2] = 3;
    s.n_rows = 3;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_INVAL, &err, "the sequences hold 3 of 4 rows");
    s.n_rows = 4;
    s.pos = 16;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_INVAL, &err, "has 1 pages: 20 positions need 2");
    s.n_pages = 2;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_INVAL, &err, "names page 64 of 64");
    s.pos = 0;
    s.slot = FX_SLOTS;
    says(dev->run(f.dev, &b, 0, n, &err), KS_E_INVAL, &err, "names slot 4 of 4");
    fx_close(&f);
    free(logits);
}

static void test_impossible_bindings_are_refused(void **state)
{
    fixture f;
    ks_err err = { 0 };
    void *second = NULL;
    (void)state;
    open_golden(&f, "qwen3_next", 1, KS_T_F32, NULL);
    must(dev->open(&f.cpu, 0, 0, &second, &err), &err);
    ks_bind b = { .size = sizeof b,
                  .kv_type = KS_T_I8,
                  .graph = &f.model.graph,
                  .op_end = f.model.graph.n_ops,
                  .n_pages = 4,
                  .page_tok = 16,
                  .n_slots = 1,
                  .max_rows = 4,
                  .max_out = 4 };
    ks_batch nothing = { .size = sizeof nothing };
    says(dev->run(second, &nothing, 0, 1, &err), KS_E_STATE, &err, "nothing is bound");
    says(dev->bind(second, &b, &err), KS_E_UNSUPPORTED, &err, "the KV cache cannot be i8");
    b.kv_type = KS_T_F32;
    b.n_slots = 0;
    says(dev->bind(second, &b, &err), KS_E_INVAL, &err, "has recurrent state, but no slots");
    b.n_slots = 1;
    b.n_pages = UINT32_MAX;
    b.page_tok = UINT32_MAX;
    says(dev->bind(second, &b, &err), KS_E_NOMEM, &err, "out of memory for KV pages");
    b.n_pages = 4;
    b.page_tok = 16;
    b.op_end++;
    says(dev->bind(second, &b, &err), KS_E_INVAL, &err, "are no task");
    b.op_end--;
    ks_weight *w = &f.model.weights[3];
    const void *data = w->data;
    w->data = NULL;
    says(dev->bind(second, &b, &err), KS_E_STATE, &err, "is not loaded");
    w->data = data;
    must(dev->bind(second, &b, &err), &err);
    says(dev->copy_page(second, 4, 0, &err), KS_E_INVAL, &err, "page 4 or 0 of 4 does not exist");
    says(dev->copy_slot(second, 0, 1, &err), KS_E_INVAL, &err, "slot 0 or 1 of 1 does not exist");
    says(dev->get(second, 10000, 1, NULL, &err), KS_E_INVAL, &err, "register 10000 does not exist");
    says(dev->get(second, 0, 5, NULL, &err), KS_E_LIMIT, &err, "5 rows of a register with 4");
    dev->close(second);
    dev->close(NULL);
    fx_close(&f);
}

static void test_the_cpu_is_listed_once(void **state)
{
    ks_device_info info = { .size = sizeof info };
    ks_err err;
    (void)state;
    must(dev->list(NULL, 0, &info, &err), &err);
    assert_true(info.mem_total_bytes > 0);
    assert_true(info.name[0] != 0);
    says(dev->list(NULL, 1, &info, &err), KS_E_NOTFOUND, &err, "one CPU device");
}

static void test_routing_is_counted(void **state)
{
    fixture f;
    ks_err err;
    int32_t ids[TOKENS];
    uint64_t heat[64] = { 0 }, sum = 0;
    float *logits = malloc((size_t)TOKENS * VOCAB * sizeof *logits);
    ks_device_stats st = { .size = sizeof st };
    (void)state;
    assert_non_null(logits);
    make_ids(ids, TOKENS);
    open_golden(&f, "qwen3_moe", 1, KS_T_F32, NULL);
    fx_seq s = { .n = TOKENS, .ids = ids };
    must(fx_step(&f, &s, 1, logits, NULL, &err), &err);
    must(dev->heat(f.dev, heat, &err), &err);
    for (uint32_t i = 0; i < f.model.graph.n_layers * f.model.graph.n_experts; i++) sum += heat[i];
    assert_int_equal(sum, TOKENS * 2 * f.model.graph.n_layers);
    must(dev->stats(f.dev, &st, &err), &err);
    assert_int_equal(st.steps, 1);
    assert_int_equal(st.rows, TOKENS);
    assert_int_equal(st.experts_cold, sum);
    assert_true(st.mem_bytes > 0);
    fx_close(&f);
    free(logits);
}

static void test_every_op_is_lowered(void **state)
{
    fixture f;
    ks_err err;
    (void)state;
    open_golden(&f, "glm_moe_dsa", 1, KS_T_F32, NULL);
    uint8_t *ok = calloc(f.model.graph.n_ops, 1);
    assert_non_null(ok);
    must(dev->lower(f.dev, &f.model.graph, KS_T_F8E4M3, ok, &err), &err);
    for (uint32_t i = 0; i < f.model.graph.n_ops; i++) assert_int_equal(ok[i], 1);
    must(dev->lower(f.dev, &f.model.graph, KS_T_I4, ok, &err), &err); /* no such cache: nothing runs */
    for (uint32_t i = 0; i < f.model.graph.n_ops; i++) assert_int_equal(ok[i], 0);
    free(ok);
    fx_close(&f);
}

/* ---- single ops */

typedef struct one_op {
    ks_registry *registry;
    ks_kernel_table *kernels;
    ks_pool *pool;
    ks_cpu_ctx cpu;
    ks_graph g;
    void *d;
} one_op;

static void op_open(one_op *o, const ks_op *op, const ks_reg *regs, uint32_t n_regs, const ks_state *states,
                    uint32_t n_states, const ks_weight *weights, uint32_t n_weights)
{
    ks_err err;
    ks_registry_opts ro = { .n_threads = 1 };
    ks_pool_opts po = { .n_threads = 2 };
    *o = (one_op) { 0 };
    must(ks_registry_open(&ro, &o->registry, &err), &err);
    must(ks_registry_add(o->registry, &ks_ref_plugin, "(built in)", &err), &err);
    must(ks_registry_choose(o->registry, KS_KIND_KERNELS, "ref", &err), &err);
    must(ks_kernel_table_new(o->registry, &o->kernels, &err), &err);
    must(ks_pool_open(&po, &o->pool, &err), &err);
    o->cpu = (ks_cpu_ctx) { .pool = o->pool, .kernels = o->kernels };
    o->g = (ks_graph) { .size = sizeof o->g,
                        .n_ops = 1,
                        .n_regs = n_regs,
                        .n_states = n_states,
                        .n_weights = n_weights,
                        .ops = op,
                        .regs = regs,
                        .states = states,
                        .weights = weights,
                        .logits = -1 };
    must(dev->open(&o->cpu, 0, 0, &o->d, &err), &err);
    ks_bind b = { .size = sizeof b,
                  .kv_type = KS_T_F32,
                  .graph = &o->g,
                  .op_end = 1,
                  .n_pages = 8,
                  .page_tok = 4,
                  .n_slots = 2,
                  .max_rows = 16,
                  .max_out = 16 };
    must(dev->bind(o->d, &b, &err), &err);
}

static void op_run(one_op *o, uint32_t n_rows, uint32_t pos)
{
    ks_err err;
    static const uint32_t pages[8] = { 3, 1, 7, 0, 2, 4, 5, 6 };
    uint32_t p[16];
    for (uint32_t i = 0; i < n_rows; i++) p[i] = pos + i;
    ks_seq s = { .n_rows = n_rows, .pos = pos, .pages = pages, .n_pages = 8 };
    ks_batch b = { .size = sizeof b, .seq_size = sizeof s, .n_rows = n_rows, .n_seqs = 1, .pos = p, .seqs = &s };
    must(dev->run(o->d, &b, 0, 1, &err), &err);
}

static void op_close(one_op *o)
{
    dev->close(o->d);
    ks_pool_close(o->pool);
    ks_kernel_table_free(o->kernels);
    ks_registry_close(o->registry);
}

struct pair {
    int32_t expert;
    float weight;
};

static void route(uint32_t score, uint32_t flags, uint32_t n_group, uint32_t topk_group, const float *bias,
                  const float *z, struct pair *ret)
{
    one_op o;
    ks_err err;
    ks_reg regs[] = { { KS_REG_F32, 6, 0, 0 }, { KS_REG_ROUTE, 2, 0, 0 } };
    ks_weight w = {
        .name = "bias", .type = KS_T_F32, .layout = KS_LAYOUT_ROWS, .n_mat = 1, .n_out = 1, .n_in = 6, .data = bias
    };
    ks_op op = { .kind = KS_OP_ROUTE,
                 .layer = 0xffff,
                 .in = { 0, -1, -1, -1, -1, -1 },
                 .out = { 1, -1 },
                 .w = { bias ? 0 : -1, -1, -1, -1, -1, -1 },
                 .state = -1 };
    op.u.route.n_experts = 6;
    op.u.route.k = 2;
    op.u.route.score = score;
    op.u.route.flags = flags;
    op.u.route.n_group = n_group;
    op.u.route.topk_group = topk_group;
    op.u.route.scale = 2;
    op_open(&o, &op, regs, 2, NULL, 0, &w, 1);
    must(dev->put(o.d, 0, 1, z, &err), &err);
    op_run(&o, 1, 0);
    must(dev->get(o.d, 1, 1, ret, &err), &err);
    op_close(&o);
}

static void near(double a, double b)
{
    if (!(fabs(a - b) < 1e-5)) fail_msg("%g should be %g", a, b);
}

static void test_routing_rules(void **state)
{
    static const float z[6] = { 1, 3, 3, 0, 2, -1 }, bias[6] = { 9, 0, 0, 0, 0, 0 };
    struct pair p[2];
    double sum = 0;
    (void)state;
    for (int i = 0; i < 6; i++) sum += exp((double)z[i]);
    route(KS_SCORE_SOFTMAX, 0, 1, 1, NULL, z, p);
    assert_int_equal(p[0].expert, 1);
    assert_int_equal(p[1].expert, 2);
    near((double)p[0].weight, 2 * exp(3) / sum);
    route(KS_SCORE_SOFTMAX, KS_ROUTE_NORM, 1, 1, NULL, z, p);
    near((double)p[0].weight, 1);
    route(KS_SCORE_SOFTMAX, KS_ROUTE_LATE, 1, 1, NULL, z, p);
    near((double)p[1].weight, 1);
    route(KS_SCORE_SIGMOID, 0, 1, 1, bias, z, p); /* the bias chooses, and does not weigh; ties go to the lower index */
    assert_int_equal(p[0].expert, 0);
    assert_int_equal(p[1].expert, 1);
    near((double)p[0].weight, 2 / (1 + exp(-1)));
    route(KS_SCORE_SQRT_SOFTPLUS, 0, 1, 1, NULL, z, p);
    near((double)p[0].weight, 2 * sqrt(log1p(exp(3))));
    route(KS_SCORE_SIGMOID, 0, 3, 1, NULL, z, p); /* groups (0 1)(2 3)(4 5): the best expert's, the lower of two */
    assert_int_equal(p[0].expert, 0);
    assert_int_equal(p[1].expert, 1);
    static const float g[6] = { 3, -9, 2, 2, -9, -9 };
    route(KS_SCORE_SIGMOID, KS_ROUTE_GROUP_TOP2, 3, 1, NULL, g, p); /* the sum of its two best */
    assert_int_equal(p[0].expert, 2);
    assert_int_equal(p[1].expert, 3);
}

/* Keys and scores in plain C beside the op: two heads of two columns, the best 5 of up to 14 keys. */
static void test_indexer_keeps_the_best_keys(void **state)
{
    enum { ROWS = 14, TOP = 5 };
    one_op o;
    ks_err err;
    float q[ROWS][4], k[ROWS][2], w[ROWS][2];
    uint32_t sel[ROWS][1 + TOP];
    ks_reg regs[] = {
        { KS_REG_F32, 4, 0, 0 }, { KS_REG_F32, 2, 0, 0 }, { KS_REG_F32, 2, 0, 0 }, { KS_REG_SEL, TOP, 0, 0 }
    };
    ks_state st = { .kind = KS_STATE_KV, .k_width = 2 };
    ks_op op = { .kind = KS_OP_INDEXER,
                 .layer = 0xffff,
                 .in = { 0, 1, 2, -1, -1, -1 },
                 .out = { 3, -1 },
                 .w = { -1, -1, -1, -1, -1, -1 },
                 .state = 0 };
    (void)state;
    op.u.indexer.n_heads = 2;
    op.u.indexer.d = 2;
    op.u.indexer.top_k = TOP;
    op.u.indexer.scale = 0.5f;
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < 4; i++) q[r][i] = (float)((r * 7 + i * 5) % 11 - 5);
        for (int i = 0; i < 2; i++) {
            k[r][i] = (float)((r * 3 + i * 8) % 7 - 3); /* repeats: ties */
            w[r][i] = (float)((r + i) % 3) - 0.5f;
        }
    }
    op_open(&o, &op, regs, 4, &st, 1, NULL, 0);
    for (uint32_t at = 0; at < ROWS; at += 9) { /* the second piece reads what the first one left in the cache */
        uint32_t n = KS_MIN(9u, ROWS - at);
        must(dev->put(o.d, 0, n, q[at], &err), &err);
        must(dev->put(o.d, 1, n, k[at], &err), &err);
        must(dev->put(o.d, 2, n, w[at], &err), &err);
        op_run(&o, n, at);
        must(dev->get(o.d, 3, n, sel[at], &err), &err);
    }
    op_close(&o);
    for (uint32_t r = 0; r < ROWS; r++) {
        float s[ROWS];
        uint32_t want = KS_MIN(r + 1, (uint32_t)TOP), m = 1;
        for (uint32_t j = 0; j <= r; j++) {
            s[j] = 0;
            for (int h = 0; h < 2; h++)
                s[j] += w[r][h] * fmaxf((q[r][2 * h] * k[j][0] + q[r][2 * h + 1] * k[j][1]) * 0.5f, 0);
        }
        assert_int_equal(sel[r][0], want);
        for (uint32_t j = 0; j <= r; j++) {
            uint32_t better = 0;
            for (uint32_t i = 0; i <= r; i++) better += s[i] > s[j] || (s[i] == s[j] && i < j);
            if (better < want) assert_int_equal(sel[r][m++], j);
        }
    }
}

/* ---- quantized weights and caches */

static void pieces(fixture *f, const int32_t *ids, uint32_t piece, float *logits)
{
    ks_err err;
    for (uint32_t at = 0; at < TOKENS; at += piece) {
        fx_seq s = { .slot = 1, .pos = at, .n = KS_MIN(piece, TOKENS - at), .ids = ids + at };
        must(fx_step(f, &s, 1, logits + (size_t)at * VOCAB, NULL, &err), &err);
    }
}

static void check_bits(const char *name, uint32_t kv_type, const uint32_t *types)
{
    static const uint32_t sizes[] = { 1, 7, 16 };
    size_t n = (size_t)TOKENS * VOCAB;
    float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    int32_t ids[TOKENS];
    fixture f;
    assert_true(want && got);
    make_ids(ids, TOKENS);
    open_golden(&f, name, 1, kv_type, types);
    pieces(&f, ids, TOKENS, want);
    for (size_t i = 0; i < n; i++) assert_true(isfinite(want[i]));
    for (size_t i = 0; i < KS_COUNT(sizes); i++) {
        pieces(&f, ids, sizes[i], got);
        if (memcmp(want, got, n * sizeof *got) != 0) fail_msg("%s: pieces of %u give other bits", name, sizes[i]);
    }
    fx_close(&f);
    open_golden(&f, name, 3, kv_type, types);
    pieces(&f, ids, TOKENS, got);
    if (memcmp(want, got, n * sizeof *got) != 0) fail_msg("%s: three threads give other bits", name);
    fx_close(&f);
    free(want);
    free(got);
}

static const char *const quantized_families[] = { "qwen3_moe",  "deepseek_v3", "gpt_oss_mxfp4",
                                                  "qwen3_next", "llama4_text", "deepseek_v32" };

static void test_int4_experts_and_int8_rest_keep_their_bits(void **state)
{
    uint32_t types[16];
    (void)state;
    for (uint32_t i = 0; i < KS_COUNT(types); i++) types[i] = KS_T_I8;
    types[KS_CLS_EXPERT] = KS_T_I4;
    for (size_t i = 0; i < KS_COUNT(quantized_families); i++) check_bits(quantized_families[i], KS_T_F8E4M3, types);
}

static void test_bf16_cache_keeps_its_bits(void **state)
{
    (void)state;
    check_bits("qwen3_moe", KS_T_BF16, NULL);
    check_bits("deepseek_v2", KS_T_BF16, NULL);
}

/* index_topk below the length: no golden has it, so the bits of all cuts must agree, and differ from dense attention.
 */
static void test_sparse_attention_below_the_length(void **state)
{
    static const char *const folders[] = { "deepseek_v32", "glm_moe_dsa" };
    (void)state;
    for (size_t i = 0; i < KS_COUNT(folders); i++) {
        char golden[512], dir[64], path[80], *text = NULL;
        size_t n, size = (size_t)TOKENS * VOCAB;
        ks_err err;
        int32_t ids[TOKENS];
        fixture f;
        float *dense = malloc(size * sizeof *dense), *one = malloc(size * sizeof *one),
              *cut = malloc(size * sizeof *cut);
        assert_true(dense && one && cut);
        make_ids(ids, TOKENS);
        open_golden(&f, folders[i], 1, KS_T_F32, NULL);
        pieces(&f, ids, TOKENS, dense);
        fx_close(&f);
        (void)snprintf(golden, sizeof golden, "%s/tests/golden/%s", KS_SOURCE_DIR, folders[i]);
        (void)snprintf(dir, sizeof dir, "%s_sparse", folders[i]);
        must(ks_golden_write(golden, dir, &err), &err);
        (void)snprintf(path, sizeof path, "%s/config.json", dir);
        must(ks_file_read(path, 1 << 20, &text, &n, &err), &err);
        char *at = strstr(text, "\"index_topk\": 2048");
        assert_non_null(at);
        memcpy(at, "\"index_topk\":    8", strlen("\"index_topk\": 2048"));
        must(ks_file_write(path, text, n, &err), &err);
        free(text);
        must(fx_open(&f, dir, "ref", 2, KS_T_F32, NULL, &err), &err);
        pieces(&f, ids, TOKENS, one);
        pieces(&f, ids, 1, cut);
        assert_memory_equal(one, cut, size * sizeof *one);
        pieces(&f, ids, 7, cut);
        assert_memory_equal(one, cut, size * sizeof *one);
        double same = 0, other = 0; /* up to 8 keys it is dense; the bits of its order aside */
        for (size_t v = 0; v < 8 * VOCAB; v++) same = fmax(same, fabs((double)one[v] - (double)dense[v]));
        for (size_t v = 8 * VOCAB; v < size; v++) other = fmax(other, fabs((double)one[v] - (double)dense[v]));
        assert_true(same < 1e-3);
        assert_true(other > 1e-2);
        fx_close(&f);
        free(dense);
        free(one);
        free(cut);
    }
}

/* ---- the demo model: large enough that ops are shared among threads at all */

#define DEMO_VOCAB 4096u

static void open_demo(fixture *f, uint32_t n_threads)
{
    uint32_t types[16];
    ks_err err;
    for (uint32_t i = 0; i < KS_COUNT(types); i++) types[i] = KS_T_BF16;
    types[KS_CLS_EXPERT] = KS_T_I4;
    types[KS_CLS_ATTN] = types[KS_CLS_HEAD] = KS_T_I8;
    must(fx_open(f, KS_SOURCE_DIR "/models/demo", "auto", n_threads, KS_T_F8E4M3, types, &err), &err);
}

/* The same weights with other threads: making the weights takes longest. */
static void use_threads(fixture *f, uint32_t n_threads)
{
    ks_pool_opts po = { .n_threads = n_threads };
    ks_bind b = { .size = sizeof b,
                  .kv_type = KS_T_F8E4M3,
                  .graph = &f->model.graph,
                  .op_end = f->model.graph.n_ops,
                  .n_pages = FX_PAGES,
                  .page_tok = FX_PAGE_TOK,
                  .n_slots = FX_SLOTS,
                  .max_rows = FX_ROWS,
                  .max_out = FX_ROWS };
    ks_err err;
    dev->close(f->dev);
    ks_pool_close(f->pool);
    must(ks_pool_open(&po, &f->pool, &err), &err);
    f->cpu.pool = f->pool;
    must(dev->open(&f->cpu, 0, 0, &f->dev, &err), &err);
    must(dev->bind(f->dev, &b, &err), &err);
}

/* Four sequences: the prompts in pieces of `piece`, then five steps with a row of each. */
static void demo_answers(fixture *f, uint32_t piece, bool together, float *logits)
{
    int32_t ids[FX_SLOTS][TOKENS];
    size_t size = (size_t)TOKENS * DEMO_VOCAB;
    uint32_t n_prompt = TOKENS - 5;
    float *step = malloc((size_t)FX_SLOTS * DEMO_VOCAB * sizeof *step);
    ks_err err;
    assert_non_null(step);
    for (uint32_t i = 0; i < FX_SLOTS; i++)
        for (uint32_t k = 0; k < TOKENS; k++) ids[i][k] = (int32_t)((k * 331 + i * 1009 + k * k) % DEMO_VOCAB);
    for (uint32_t i = 0; i < FX_SLOTS; i++) {
        for (uint32_t at = 0; at < n_prompt; at += piece) {
            fx_seq s = { .slot = i, .pos = at, .n = KS_MIN(piece, n_prompt - at), .ids = ids[i] + at };
            must(fx_step(f, &s, 1, logits + i * size + (size_t)at * DEMO_VOCAB, NULL, &err), &err);
        }
    }
    for (uint32_t at = n_prompt; at < TOKENS; at++) {
        fx_seq s[FX_SLOTS];
        for (uint32_t i = 0; i < FX_SLOTS; i++) s[i] = (fx_seq) { .slot = i, .pos = at, .n = 1, .ids = ids[i] + at };
        if (together)
            must(fx_step(f, s, FX_SLOTS, step, NULL, &err), &err);
        else
            for (uint32_t i = 0; i < FX_SLOTS; i++)
                must(fx_step(f, &s[i], 1, step + (size_t)i * DEMO_VOCAB, NULL, &err), &err);
        for (uint32_t i = 0; i < FX_SLOTS; i++)
            memcpy(logits + i * size + (size_t)at * DEMO_VOCAB, step + (size_t)i * DEMO_VOCAB,
                   DEMO_VOCAB * sizeof *step);
    }
    free(step);
}

static void test_neither_threads_nor_neighbours_change_a_bit(void **state)
{
    static const struct {
        uint32_t n_threads, piece;
        bool together;
    } cuts[] = { { 1, 7, true }, { 2, 35, true }, { 2, 1, false }, { 3, 16, true }, { 9, 35, false }, { 9, 5, true } };
    size_t n = (size_t)FX_SLOTS * TOKENS * DEMO_VOCAB;
    float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    fixture f;
    (void)state;
    assert_true(want && got);
    open_demo(&f, 1);
    demo_answers(&f, TOKENS, false, want);
    for (size_t i = 0; i < n; i++) assert_true(isfinite(want[i]));
    for (size_t i = 0; i < KS_COUNT(cuts); i++) {
        use_threads(&f, cuts[i].n_threads);
        demo_answers(&f, cuts[i].piece, cuts[i].together, got);
        if (memcmp(want, got, n * sizeof *got) != 0)
            fail_msg("%u threads, pieces of %u, %s: other bits", cuts[i].n_threads, cuts[i].piece,
                     cuts[i].together ? "together" : "apart");
    }
    fx_close(&f);
    free(want);
    free(got);
}

/* Each fork costs what a core needs for thousands of numbers: more of them than here is a step back. */
static void test_a_step_forks_seldom(void **state)
{
    static const struct {
        uint32_t n_rows, a_layer, once;
    } limit[] = { { 1, 5, 1 },
                  { 16, 9, 3 } }; /* qkv, attention, o, hidden layer, output; with 16 rows small ops, too */
    int32_t ids[16];
    float *logits = malloc(16 * DEMO_VOCAB * sizeof *logits);
    fixture f;
    ks_err err;
    (void)state;
    assert_non_null(logits);
    for (uint32_t i = 0; i < KS_COUNT(ids); i++) ids[i] = (int32_t)(i * 37 + 11);
    open_demo(&f, 2);
    for (uint32_t i = 0; i < 16; i++) { /* some keys, so that attention is worth a fork */
        fx_seq s = { .pos = i * 16, .n = 16, .ids = ids };
        must(fx_step(&f, &s, 1, logits, NULL, &err), &err);
    }
    for (size_t i = 0; i < KS_COUNT(limit); i++) {
        uint64_t before, after, parks;
        fx_seq s = { .pos = 240, .n = limit[i].n_rows, .ids = ids };
        ks_pool_counts(f.pool, &before, &parks);
        must(fx_step(&f, &s, 1, logits, NULL, &err), &err);
        ks_pool_counts(f.pool, &after, &parks);
        uint32_t most = limit[i].a_layer * f.model.graph.n_layers + limit[i].once;
        if (after - before > most)
            fail_msg("%u rows: %u forks, at most %u", limit[i].n_rows, (unsigned)(after - before), (unsigned)most);
        assert_true(after - before >= 2 * f.model.graph.n_layers); /* shared at all */
    }
    fx_close(&f);
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_cpu_is_listed_once),
        cmocka_unit_test(test_bad_batches_are_refused),
        cmocka_unit_test(test_impossible_bindings_are_refused),
        cmocka_unit_test(test_routing_is_counted),
        cmocka_unit_test(test_every_op_is_lowered),
        cmocka_unit_test(test_routing_rules),
        cmocka_unit_test(test_indexer_keeps_the_best_keys),
        cmocka_unit_test(test_int4_experts_and_int8_rest_keep_their_bits),
        cmocka_unit_test(test_bf16_cache_keeps_its_bits),
        cmocka_unit_test(test_sparse_attention_below_the_length),
        cmocka_unit_test(test_neither_threads_nor_neighbours_change_a_bit),
        cmocka_unit_test(test_a_step_forks_seldom),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
