/* krasis-conform --bench: one thread, one row of a model's usual size, rates in bytes or operations a second and as a
 * multiple of the reference in the same run. For an author's before and after; what share of the machine's limit that
 * is, tests/kernels/bench_kernels.c tells for the project's own sets. */
#include "base/base.h"
#include "base/clock.h"
#include "conform.h"
#include "cpu/cpu.h"

#include <math.h>

#define N_IN 2048u
#define N_OUT 2048u
#define N_ROWS 64u   /* of the ops that work row by row */
#define N_KEYS 1024u /* of attention */
#define HEADS 16u
#define KV_HEADS 4u
#define D 128u
#define PAGE 64u
#define POOL_BYTES ((size_t)96 << 20) /* of weights: more than most last-level caches */
#define MIN_NS UINT64_C(200000000)

typedef struct bench {
    uint8_t *pool, *scratch;
    float *x, *y, *freq;
    ks_act act;
    uint32_t pos[N_ROWS], pages[N_KEYS / PAGE];
} bench;

/* Arguments of one call, and what it does. */
typedef struct work {
    union {
        ks_quant_args quant;
        ks_matmul_args matmul;
        ks_norm_args norm;
        ks_rope_args rope;
        ks_glu_args glu;
        ks_attn_args attn;
    } a;
    uint32_t n_units, n_pieces; /* n_pieces matrices, one after the other */
    size_t piece_bytes;
    double amount; /* of one round over all pieces, in `unit` */
    const char *unit;
} work;

static bool is_float(uint32_t xtype)
{
    return xtype == KS_T_F32;
}

static void fill_matmul(const bench *b, const ks_kernel *k, work *w)
{
    uint32_t group = k->wtype == KS_T_MXFP4 ? 32 : is_float(k->xtype) ? 0 : 128;
    size_t strip = ks_t16_strip_bytes(k->wtype, N_IN, group);
    w->a.matmul = (ks_matmul_args) { .size = sizeof w->a.matmul,
                                     .n_rows = 1,
                                     .n_in = N_IN,
                                     .n_out = N_OUT,
                                     .group = group,
                                     .w = b->pool,
                                     .strip_bytes = strip,
                                     .act = &b->act,
                                     .x = b->x,
                                     .x_stride = N_IN,
                                     .y = b->y,
                                     .y_stride = N_OUT };
    w->n_units = ks_t16_strips(N_OUT);
    w->piece_bytes = strip * w->n_units;
    w->n_pieces = (uint32_t)(POOL_BYTES / w->piece_bytes);
    w->amount = (double)w->piece_bytes * w->n_pieces * 1e-9;
    w->unit = "GB/s of weights";
}

static void fill_attn(const bench *b, const ks_kernel *k, work *w)
{
    size_t page_bytes = (size_t)PAGE * KV_HEADS * D * ks_type_bits(k->wtype) / 8;
    w->a.attn = (ks_attn_args) { .size = sizeof w->a.attn,
                                 .n_rows = 1,
                                 .n_heads = HEADS,
                                 .n_kv_heads = KV_HEADS,
                                 .d_k = D,
                                 .d_v = D,
                                 .page_tok = PAGE,
                                 .pos = N_KEYS - 1,
                                 .scale = 0.088f,
                                 .q = b->x,
                                 .q_stride = (size_t)HEADS * D,
                                 .o = b->y,
                                 .o_stride = (size_t)HEADS * D,
                                 .pages = b->pages,
                                 .k = b->pool,
                                 .v = b->pool + POOL_BYTES / 2,
                                 .k_page_bytes = page_bytes,
                                 .v_page_bytes = page_bytes,
                                 .k_stride = KV_HEADS * D,
                                 .v_stride = KV_HEADS * D };
    w->n_units = KV_HEADS;
    w->amount = 2.0 * HEADS * D * N_KEYS * 1e-9;
    w->unit = "Gmac/s";
}

/* False for an op that this program does not know. */
static bool fill(bench *b, const ks_kernel *k, work *w)
{
    *w = (work) { .n_units = N_ROWS, .n_pieces = 1, .amount = (double)N_ROWS * N_IN * 1e-9, .unit = "Gvalues/s" };
    switch (k->op) {
    case KS_K_QUANT:
        w->a.quant = (ks_quant_args) {
            .size = sizeof w->a.quant, .n_rows = N_ROWS, .n_in = N_IN, .x = b->x, .x_stride = N_IN, .out = &b->act
        };
        return true;
    case KS_K_MATMUL: fill_matmul(b, k, w); return true;
    case KS_K_NORM:
        w->a.norm = (ks_norm_args) { .size = sizeof w->a.norm,
                                     .kind = KS_NORM_RMS,
                                     .n_rows = N_ROWS,
                                     .n = N_IN,
                                     .width = N_IN,
                                     .w_width = N_IN,
                                     .eps = 1e-6f,
                                     .x = b->x,
                                     .x_stride = N_IN,
                                     .weight = b->x,
                                     .y = b->y,
                                     .y_stride = N_IN };
        return true;
    case KS_K_ROPE:
        w->a.rope = (ks_rope_args) { .size = sizeof w->a.rope,
                                     .kind = KS_ROPE_HALF,
                                     .n_rows = N_ROWS,
                                     .n_heads = HEADS,
                                     .head_dim = D,
                                     .rot_dim = D,
                                     .mscale = 1,
                                     .inv_freq = b->freq,
                                     .pos = b->pos,
                                     .x = b->y,
                                     .x_stride = N_IN };
        return true;
    case KS_K_GLU:
        w->a.glu = (ks_glu_args) { .size = sizeof w->a.glu,
                                   .kind = KS_ACT_SILU,
                                   .n_rows = N_ROWS,
                                   .n = N_IN / 2,
                                   .x = b->x,
                                   .x_stride = N_IN,
                                   .y = b->y,
                                   .y_stride = N_IN };
        return true;
    case KS_K_ATTN: fill_attn(b, k, w); return true;
    default: return false;
    }
}

static void run_once(const bench *b, const ks_kernel *k, work w)
{
    for (uint32_t i = 0; i < w.n_pieces; i++) {
        if (k->op == KS_K_MATMUL) w.a.matmul.w = b->pool + i * w.piece_bytes;
        k->fn(&w.a, 0, w.n_units, b->scratch);
    }
}

/* Best of the rounds that fit into MIN_NS, at least two; 0 if the op is unknown. */
static double rate(bench *b, const ks_kernel *k, const char **ret_unit)
{
    work w;
    uint64_t best = UINT64_MAX, sum = 0;
    if (!fill(b, k, &w)) return 0;
    run_once(b, k, w); /* touches everything once */
    for (int i = 0; i < 2 || sum < MIN_NS; i++) {
        uint64_t t0 = ks_now_ns();
        run_once(b, k, w);
        uint64_t ns = KS_MAX(ks_now_ns() - t0, 1);
        best = KS_MIN(best, ns);
        sum += ns;
    }
    *ret_unit = w.unit;
    return w.amount * 1e9 / (double)best;
}

static bool setup(bench *b, size_t scratch_bytes)
{
    *b = (bench) { .act = { .q_stride = N_IN, .scale_stride = N_IN / 128, .sum_stride = N_IN / 32 } };
    size_t n = (size_t)N_ROWS * N_IN, acts = n + n / 128 * sizeof(float) + n / 32 * sizeof(int32_t);
    b->pool = aligned_alloc(64, POOL_BYTES);
    b->scratch = aligned_alloc(64, ks_align_up(scratch_bytes + 64, 64));
    b->x = aligned_alloc(64, 2 * n * sizeof *b->x + D * sizeof *b->freq);
    b->act.q = aligned_alloc(64, ks_align_up(acts, 64));
    if (!b->pool || !b->scratch || !b->x || !b->act.q) return false;
    b->y = b->x + n;
    b->freq = b->y + n;
    b->act.scale = (float *)(void *)(b->act.q + n);
    b->act.sum = (int32_t *)(void *)(b->act.scale + n / 128);
    memset(b->pool, 0x3c, POOL_BYTES); /* a small positive number in every float type, 12 in nibbles, 60 in bytes */
    memset(b->act.q, 0, acts);
    for (size_t i = 0; i < 2 * n; i++) b->x[i] = (float)(i % 251) * 0.01f - 1.25f;
    for (uint32_t i = 0; i < D; i++) b->freq[i] = 1.0f / (float)(i + 1);
    for (uint32_t i = 0; i < N_ROWS; i++) b->pos[i] = 1000 + i;
    for (uint32_t i = 0; i < N_KEYS / PAGE; i++) b->pages[i] = i;
    return true;
}

int conform_bench(const conform *c)
{
    PLUG(p);
    bench b;
    outcome o = { 0 };
    size_t scratch = 0;
    char names[200];
    uint64_t cpu = ks_cpu_features();
    if (!plug_load(c, &p, cpu, &o)) {
        (void)fprintf(stderr, "krasis-conform: %s\n", o.why);
        return 1;
    }
    const ks_kernels_iface *k = p.d.iface;
    if (p.d.kind != KS_KIND_KERNELS) {
        (void)fprintf(stderr, "krasis-conform: --bench measures kernel plugins, '%s' is none\n", p.d.name);
        return 2;
    }
    for (uint32_t i = 0; i < k->n_kernels; i++) scratch = KS_MAX(scratch, k->kernels[i].scratch_bytes);
    if (!setup(&b, scratch)) {
        (void)fprintf(stderr, "krasis-conform: no memory for the benchmark: it needs %zu MB\n", POOL_BYTES >> 20);
        return 1;
    }
    printf("%s on %s, one thread\n", p.d.name, ks_cpu_brand());
    for (uint32_t i = 0; i < k->n_kernels; i++) {
        const ks_kernel *row = &k->kernels[i], *ref = krn_reference(row);
        uint64_t lacks = row->cpu_required & ~cpu;
        const char *unit = "";
        double mine = lacks || !ref ? 0 : rate(&b, row, &unit), plain = mine > 0 ? rate(&b, ref, &unit) : 0;
        if (lacks)
            printf("%-28s this CPU lacks %s\n", row->name, ks_cpu_names(lacks, names, sizeof names));
        else if (mine > 0)
            printf("%-28s %9.3f %-16s %7.1f x reference\n", row->name, mine, unit, mine / plain);
        else
            printf("%-28s not measured: the op or its types are unknown here\n", row->name);
    }
    free(b.pool);
    free(b.scratch);
    free(b.x);
    free(b.act.q);
    return 0;
}
