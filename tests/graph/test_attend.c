/* Attention over long contexts on the CPU device: cut along the keys or not, alone or beside others, on any number of
 * threads, the bits are the same; with the reference and with the best kernels of this machine. */
#include "base/base.h"
#include "cpu/cpu.h"
#include "device/cpu_device.h"
#include "ref/ref.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define PAGE_TOK 32u
#define PAGES 128u /* 4 spans of keys */
#define ROWS 256u

typedef struct shape {
    uint32_t n_heads, n_kv, d, window, chunk, sinks;
} shape;

typedef struct rig {
    ks_registry *registry;
    ks_kernel_table *kernels;
    ks_pool *pool;
    ks_cpu_ctx cpu;
    ks_graph g;
    void *d;
} rig;

static const ks_device_iface *const dev = &ks_cpu_device_iface;

static void must(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

/* q, k, v -> o, one op. */
static void rig_open(rig *r, const shape *s, const char *kernels, uint32_t n_threads, uint32_t kv_type)
{
    static const float sinks[8] = { 0.5f, -1, 2, 0, 1, 3, -2, 0.25f };
    static ks_reg regs[4];
    static ks_state st;
    static ks_weight w;
    static ks_op op;
    static const char *const dirs[] = { KS_BUILD_DIR "/plugins" };
    ks_registry_opts ro = { .dirs = dirs, .n_dirs = 1, .cpu = ks_cpu_features(), .n_threads = n_threads };
    ks_pool_opts po = { .n_threads = n_threads };
    ks_err err;
    *r = (rig) { 0 };
    const uint32_t widths[] = { s->n_heads * s->d, s->n_kv * s->d, s->n_kv * s->d, s->n_heads * s->d };
    for (uint32_t i = 0; i < 4; i++) regs[i] = (ks_reg) { KS_REG_F32, widths[i], 0, 0 };
    st = (ks_state) { .kind = KS_STATE_KV, .k_width = widths[1], .v_width = widths[2] };
    w = (ks_weight) { .name = "sinks", .type = KS_T_F32, .layout = KS_LAYOUT_ROWS, .n_mat = 1, .n_out = 1 };
    w.n_in = s->n_heads;
    w.data = sinks;
    op = (ks_op) { .kind = KS_OP_ATTN, .in = { 0, 1, 2, -1, -1, -1 }, .out = { 3, -1 }, .state = 0 };
    for (uint32_t i = 0; i < KS_COUNT(op.w); i++) op.w[i] = -1;
    if (s->sinks) op.w[0] = 0;
    op.u.attn.n_heads = s->n_heads;
    op.u.attn.n_kv_heads = s->n_kv;
    op.u.attn.d_k = op.u.attn.d_v = s->d;
    op.u.attn.window = s->window;
    op.u.attn.chunk = s->chunk;
    op.u.attn.scale = 1.0f / sqrtf((float)s->d);
    op.u.attn.sel = -1;
    must(ks_registry_open(&ro, &r->registry, &err), &err);
    must(ks_registry_add(r->registry, &ks_ref_plugin, "(built in)", &err), &err);
    must(ks_registry_choose(r->registry, KS_KIND_KERNELS, kernels, &err), &err);
    must(ks_kernel_table_new(r->registry, &r->kernels, &err), &err);
    must(ks_pool_open(&po, &r->pool, &err), &err);
    r->cpu = (ks_cpu_ctx) { .pool = r->pool, .kernels = r->kernels };
    r->g = (ks_graph) { .size = sizeof r->g, .n_ops = 1, .n_regs = 4, .n_states = 1, .n_weights = 1 };
    r->g.ops = &op;
    r->g.regs = regs;
    r->g.states = &st;
    r->g.weights = &w;
    r->g.logits = -1;
    must(dev->open(&r->cpu, 0, 0, &r->d, &err), &err);
    ks_bind b = { .size = sizeof b, .kv_type = kv_type, .graph = &r->g, .op_end = 1, .n_pages = 2 * PAGES };
    b.page_tok = PAGE_TOK;
    b.n_slots = 1;
    b.max_rows = b.max_out = ROWS;
    must(dev->bind(r->d, &b, &err), &err);
}

static void rig_close(rig *r)
{
    dev->close(r->d);
    ks_pool_close(r->pool);
    ks_kernel_table_free(r->kernels);
    ks_registry_close(r->registry);
}

/* Number i of column c of register reg for a token: anything that is not regular. */
static float number(uint32_t reg, uint32_t token, uint32_t c)
{
    uint32_t u = (reg + 1) * 2654435761u ^ token * 2246822519u ^ c * 3266489917u;
    u ^= u >> 15;
    u *= 2654435769u;
    u ^= u >> 13;
    return (float)(u >> 8) * 0x1p-23f - 1.0f;
}

typedef struct piece {
    uint32_t seq, pos, n;
} piece;

/* One step; o: (rows, width of o) or NULL. */
static void step(rig *r, const piece *p, uint32_t n, float *o)
{
    static uint32_t pages[2][PAGES], pos[ROWS];
    static float rows[ROWS * 1024];
    ks_seq seqs[2];
    ks_err err;
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < 2 * PAGES; i++) pages[i % 2][i / 2] = (i * 77 + 5) % (2 * PAGES);
    for (uint32_t i = 0; i < n; i++) {
        seqs[i] = (ks_seq) { .row = n_rows, .n_rows = p[i].n, .pos = p[i].pos, .n_pages = PAGES };
        seqs[i].pages = pages[p[i].seq];
        for (uint32_t k = 0; k < p[i].n; k++) pos[n_rows++] = p[i].pos + k;
    }
    for (uint32_t reg = 0; reg < 3; reg++) {
        uint32_t width = r->g.regs[reg].width, row = 0;
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t k = 0; k < p[i].n; k++, row++)
                for (uint32_t c = 0; c < width; c++)
                    rows[(size_t)row * width + c] = number(reg + 3 * p[i].seq, p[i].pos + k, c);
        must(dev->put(r->d, reg, n_rows, rows, &err), &err);
    }
    ks_batch b = { .size = sizeof b, .seq_size = sizeof seqs[0], .n_rows = n_rows, .n_seqs = n, .pos = pos };
    b.seqs = seqs;
    must(dev->run(r->d, &b, 0, 1, &err), &err);
    if (o) must(dev->get(r->d, 3, n_rows, o, &err), &err);
}

/* A context of n tokens, then one more row: alone, and beside a prompt of another sequence. */
static void answers(const shape *s, const char *kernels, uint32_t n_threads, uint32_t kv_type, uint32_t n, float *alone,
                    float *beside)
{
    rig r;
    rig_open(&r, s, kernels, n_threads, kv_type);
    for (uint32_t at = 0; at < n; at += ROWS) {
        piece p = { 0, at, KS_MIN(ROWS, n - at) };
        step(&r, &p, 1, NULL);
    }
    piece one = { 0, n, 1 }, two[] = { { 1, 0, 40 }, { 0, n, 1 } };
    static float o[41 * 1024];
    step(&r, &one, 1, alone);
    step(&r, two, 2, o);
    memcpy(beside, o + (size_t)40 * s->n_heads * s->d, sizeof(float) * s->n_heads * s->d);
    rig_close(&r);
}

static void check(const shape *s, const char *kernels, uint32_t kv_type, uint32_t n)
{
    static float want[1024], alone[1024], beside[1024];
    static const uint32_t threads[] = { 1, 3, 7 };
    size_t bytes = sizeof(float) * s->n_heads * s->d;
    for (uint32_t i = 0; i < KS_COUNT(threads); i++) {
        answers(s, kernels, threads[i], kv_type, n, i ? alone : want, beside);
        if (i && memcmp(alone, want, bytes) != 0)
            fail_msg("%s, %u keys, %u heads of %u: %u threads give other bits than one", kernels, n, s->n_heads, s->d,
                     threads[i]);
        if (memcmp(beside, want, bytes) != 0)
            fail_msg("%s, %u keys, %u threads: a row beside a prompt has other bits", kernels, n, threads[i]);
    }
    for (uint32_t i = 0; i < bytes / sizeof(float); i++) assert_true(isfinite(want[i]) && fabsf(want[i]) < 2);
}

static void test_cutting_the_keys_changes_no_bit(void **state)
{
    static const shape plain = { 8, 2, 64, 0, 0, 0 }, odd = { 5, 5, 24, 0, 0, 1 };
    (void)state;
    check(&plain, "auto", KS_T_F8E4M3, 3500);
    check(&plain, "auto", KS_T_BF16, 2048);
    check(&odd, "auto", KS_T_F32, 3071);
    check(&plain, "auto", KS_T_F8E4M3, 1023); /* the new key opens a span */
    check(&plain, "auto", KS_T_F8E4M3, 300);
}

static void test_a_window_begins_in_the_middle_of_a_span(void **state)
{
    static const shape window = { 4, 1, 32, 2000, 0, 1 }, chunk = { 4, 2, 32, 0, 1700, 0 };
    (void)state;
    check(&window, "auto", KS_T_F8E4M3, 3500);
    check(&chunk, "auto", KS_T_BF16, 3390);
}

static void test_the_reference_may_be_cut_too(void **state)
{
    static const shape small = { 2, 1, 2, 0, 0, 1 };
    (void)state;
    check(&small, "ref", KS_T_F8E4M3, 2100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cutting_the_keys_changes_no_bit),
        cmocka_unit_test(test_a_window_begins_in_the_middle_of_a_span),
        cmocka_unit_test(test_the_reference_may_be_cut_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
