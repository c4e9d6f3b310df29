/* krasis bench cpu: what this machine can do at most, by numbers of threads, and each kernel in use as a part of it.
 *
 *   weights from memory     bytes and multiply-adds, the slower of the two ceilings is the bound
 *   many rows, attention    multiply-adds: the matrix stays in the cache
 *   row by row work         bytes read and written; over 100 % where they stay in a cache
 *
 * The ceiling of arithmetic is that of the instructions which the kernel's plugin may use. Every run of a kernel has a
 * run of its ceiling directly before it: the median of the pairs' ratios is what counts on a machine that others use,
 * too. */
#include "app/bench.h"
#include "app/rates.h"
#include "base/base.h"
#include "base/clock.h"
#include "cpu/cpu.h"
#include <math.h>
#include <sys/mman.h>

#define REPEATS_MAX 64u
#define RUN_NS 20000000u /* of one timed run */
#define ROUNDS_MAX 100000u
#define N_OUT 1536u /* gate and up of a small expert */
#define N_IN 2048u
#define CORES_MAX 1024u
#define COUNTS_MAX 16u

typedef struct bench {
    ks_app a;
    ks_meter meter; /* its memory is the weights' */
    ks_pool *pool;  /* of the threads that are measured now */
    uint32_t threads, repeats;
    const char *only;
    uint8_t *x; /* activations and outputs: see the offsets below */
    size_t x_bytes;
    ks_jw w;
    bool json;
} bench;

/* Where things lie in x. */
#define ROWS_AT 0u
#define Q_AT ((size_t)32 << 20)
#define SCALE_AT ((size_t)40 << 20)
#define SUM_AT ((size_t)44 << 20)
#define Y_AT ((size_t)48 << 20)
#define Y_BYTES ((size_t)4 << 20) /* of one worker */

typedef struct task {
    const ks_kernel *row;
    const void *args; /* n_args structs, arg_bytes apart, one after the other, `rounds` times */
    size_t arg_bytes;
    uint32_t n_args, n_units, rounds;
    uint32_t first, n_run; /* n_run structs of a round, from `first` on; the next round goes on behind them */
    bool own; /* the structs are the workers', one each: n_run is 1, and nobody writes where another does */
    ks_pool *pool;
} task;

static void run_units(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const task *t = arg;
    for (uint32_t at = begin; at < end;) {
        uint32_t first = at % t->n_units, n = KS_MIN(t->n_units - first, end - at);
        uint32_t i = t->own ? worker : (t->first + at / t->n_units) % t->n_args;
        t->row->fn((const uint8_t *)t->args + i * t->arg_bytes, first, first + n, ks_pool_scratch(t->pool, worker));
        at += n;
    }
}

static double seconds_of(task *t)
{
    uint64_t t0 = ks_now_ns();
    ks_pool_run(t->pool, t->n_run * t->n_units * t->rounds, 0, run_units, t);
    t->first = (uint32_t)((t->first + (uint64_t)t->n_run * t->rounds) % t->n_args);
    return (double)(ks_now_ns() - t0) * 1e-9;
}

/* ---- results */

typedef struct result {
    const char *name, *unit;
    double rate, limit, ratio[REPEATS_MAX], median; /* best of each; ratios sorted */
} result;

static void say(bench *b, const result *r)
{
    if (!b->json) {
        printf("%-36s %3u  %9.1f of %9.1f %-7s  best/best %5.1f %%  of bound %5.1f %% (%.0f - %.0f)\n", r->name,
               b->threads, r->rate, r->limit, r->unit, 100 * r->rate / r->limit, 100 * r->median, 100 * r->ratio[0],
               100 * r->ratio[b->repeats - 1]);
        (void)fflush(stdout); /* main looks at the errors */
        return;
    }
    const struct {
        const char *key;
        double v;
    } numbers[] = { { "threads", b->threads },
                    { "rate", r->rate },
                    { "bound", r->limit },
                    { "best_of_best", r->rate / r->limit },
                    { "fraction_of_bound", r->median },
                    { "fraction_min", r->ratio[0] },
                    { "fraction_max", r->ratio[b->repeats - 1] } };
    ks_jw_object(&b->w);
    ks_jw_key(&b->w, "kernel");
    ks_jw_str(&b->w, r->name);
    ks_jw_key(&b->w, "unit");
    ks_jw_str(&b->w, r->unit);
    for (size_t i = 0; i < KS_COUNT(numbers); i++) {
        ks_jw_key(&b->w, numbers[i].key);
        ks_jw_f64(&b->w, numbers[i].v);
    }
    ks_jw_object_end(&b->w);
}

/* The features that a row's plugin and the row itself were made for. */
static uint64_t features_of(const bench *b, const ks_kernel *row)
{
    const char *plugin;
    const ks_kernel *k;
    for (uint32_t i = 0; (k = ks_kernel_row(b->a.kernels, i, &plugin)); i++) {
        const ks_plugin_entry *e = k == row ? ks_registry_find(b->a.registry, plugin) : NULL;
        if (e) return e->desc.cpu_required | row->cpu_required;
    }
    return row->cpu_required;
}

/* The fastest loop of a kind within some features: the last in the table. */
static const ks_ceiling *ceiling_of(uint32_t kind, uint64_t features)
{
    const ks_ceiling *c, *best = NULL;
    for (uint32_t i = 0; (c = ks_ceiling_at(i)); i++)
        if (c->kind == kind && (c->cpu & features) == c->cpu) best = c;
    return best;
}

/* How much one timed run does: as many of the structs as take the time, and if all of them take less, several rounds.
 */
static void size_run(const bench *b, task *t)
{
    t->pool = b->pool;
    t->rounds = t->n_run = 1;
    double once = seconds_of(t); /* warms up, too */
    once = fmax(seconds_of(t), 1e-9);
    if (!t->own) t->n_run = (uint32_t)fmin(fmax(RUN_NS * 1e-9 / once, 1), t->n_args);
    if (!t->own && t->n_run < t->n_args) return;
    t->rounds = (uint32_t)fmin(fmax(RUN_NS * 1e-9 / once / t->n_run, 1), ROUNDS_MAX);
    if ((uint64_t)t->rounds * t->n_run * t->n_units > UINT32_MAX / 2) t->rounds = 1;
}

/* bytes, macs: of one of the n_args; kind: KS_CEIL_ of the macs. */
static void measure(bench *b, const char *what, task *t, double bytes, double macs, uint32_t kind)
{
    result r = { .unit = macs > 0 ? "Gmac/s" : "GB/s" };
    char name[96];
    const ks_ceiling *c = macs > 0 ? ceiling_of(kind, features_of(b, t->row)) : NULL;
    if (macs > 0 && !c) c = ceiling_of(KS_CEIL_F32, 0); /* plain code: floats are its peak */
    (void)snprintf(name, sizeof name, "%s%s%s", t->row->name, *what ? ", " : "", what);
    if (*b->only && !strstr(name, b->only)) return;
    r.name = name;
    size_run(b, t);
    bytes *= t->n_run;
    macs *= t->n_run;
    for (uint32_t i = 0; i < b->repeats; i++) {
        double in_memory = bytes > 0 ? bytes / ks_meter_read(&b->meter) : 0;
        double in_core = c ? macs / ks_meter_loop(&b->meter, c) : 0, bound = fmax(in_memory, in_core);
        double s = seconds_of(t) / t->rounds;
        bool by_bytes = macs <= 0 || in_memory > in_core;
        if (i == 0 && by_bytes) r.unit = "GB/s";
        double work = (strcmp(r.unit, "GB/s") == 0 ? bytes : macs) / 1e9;
        r.rate = fmax(r.rate, work / s);
        r.limit = fmax(r.limit, work / bound);
        r.ratio[i] = bound / s;
    }
    r.median = ks_bench_median(r.ratio, b->repeats);
    say(b, &r);
}

/* ---- the kernels */

static const ks_kernel *find(const bench *b, uint32_t op, uint32_t wtype)
{
    const bool q8 = op == KS_K_MATMUL && (wtype == KS_T_I4 || wtype == KS_T_I8 || wtype == KS_T_MXFP4);
    return ks_kernel_find(b->a.kernels, op, wtype, q8 ? KS_T_Q8 : KS_T_F32, op == KS_K_MATMUL ? KS_LAYOUT_T16 : 0);
}

static const float *floats(const bench *b)
{
    return (const float *)(const void *)(b->x + ROWS_AT);
}

static void *output(const bench *b, uint32_t worker)
{
    return b->x + Y_AT + worker * Y_BYTES;
}

static void fill_act(bench *b, uint32_t n_rows, ks_act *act)
{
    *act = (ks_act) { .q_stride = N_IN, .scale_stride = N_IN / 128, .sum_stride = N_IN / 32 };
    act->q = (int8_t *)b->x + Q_AT;
    act->scale = (float *)(void *)(b->x + SCALE_AT);
    act->sum = (int32_t *)(void *)(b->x + SUM_AT);
    ks_quant_args q = { .size = sizeof q, .n_rows = n_rows, .n_in = N_IN, .x = floats(b), .x_stride = N_IN };
    q.out = act;
    find(b, KS_K_QUANT, 0)->fn(&q, 0, n_rows, ks_pool_scratch(b->pool, 0)); /* core/ref has every row */
}

/* Of as many matrices as the memory holds, once each; or of one that stays in the cache. */
static int bench_matmul(bench *b, uint32_t wtype, uint32_t group, uint32_t rows, bool from_ram, ks_err *err)
{
    const size_t strip = ks_t16_strip_bytes(wtype, N_IN, group), bytes = strip * ks_t16_strips(N_OUT);
    const uint32_t n = from_ram ? (uint32_t)KS_MAX(b->meter.bytes / bytes, (size_t)1) : b->threads;
    const size_t y_bytes = (size_t)rows * N_OUT * sizeof(float), slots = b->threads * Y_BYTES / y_bytes;
    const bool ints = group != 0;
    char what[64];
    ks_act act;
    ks_matmul_args *args = ks_calloc(n, sizeof *args);
    if (!args) return ks_fail(err, KS_E_NOMEM, "out of memory for %u matrices", n);
    fill_act(b, rows, &act);
    for (uint32_t i = 0; i < n; i++)
        args[i] = (ks_matmul_args) { .size = sizeof args[i],
                                     .n_rows = rows,
                                     .n_in = N_IN,
                                     .n_out = N_OUT,
                                     .group = group,
                                     .w = b->meter.mem + (from_ram ? i * bytes : 0),
                                     .strip_bytes = strip,
                                     .act = &act,
                                     .x = floats(b),
                                     .x_stride = N_IN,
                                     .y = (float *)(void *)(b->x + Y_AT + i % slots * y_bytes),
                                     .y_stride = N_OUT };
    task t = { .row = find(b, KS_K_MATMUL, wtype), .args = args, .arg_bytes = sizeof *args, .n_args = n };
    t.n_units = ks_t16_strips(N_OUT);
    t.own = !from_ram;
    (void)snprintf(what, sizeof what, "%u row%s%s", rows, rows > 1 ? "s" : "", from_ram ? " from memory" : "");
    measure(b, what, &t, from_ram ? (double)bytes : 0, (double)N_OUT * N_IN * rows, ints ? KS_CEIL_INT8 : KS_CEIL_F32);
    free(args);
    return 0;
}

/* 32 query heads on 4 kv heads of 128, like many models of today. */
static int bench_attn(bench *b, uint32_t type, uint32_t n_rows, uint32_t pos, ks_err *err)
{
    enum { HEADS = 32, KV = 4, D = 128, PAGE = 64, PAGES = 8192 / PAGE };
    uint32_t pages[PAGES];
    char what[64];
    ks_attn_args *args = ks_calloc(b->threads, sizeof *args);
    if (!args) return ks_fail(err, KS_E_NOMEM, "out of memory for %u threads", b->threads);
    for (uint32_t i = 0; i < PAGES; i++) pages[i] = i;
    const size_t page_bytes = (size_t)PAGE * KV * D * ks_type_bits(type) / 8;
    for (uint32_t i = 0; i < b->threads; i++)
        args[i] = (ks_attn_args) { .size = sizeof args[i],
                                   .n_rows = n_rows,
                                   .n_heads = HEADS,
                                   .n_kv_heads = KV,
                                   .d_k = D,
                                   .d_v = D,
                                   .page_tok = PAGE,
                                   .pos = pos,
                                   .scale = 0.088f,
                                   .q = floats(b),
                                   .q_stride = HEADS * D,
                                   .o = output(b, i),
                                   .o_stride = HEADS * D,
                                   .pages = pages,
                                   .k = b->meter.mem,
                                   .v = b->meter.mem + b->meter.bytes / 2,
                                   .k_page_bytes = page_bytes,
                                   .v_page_bytes = page_bytes,
                                   .k_stride = KV * D,
                                   .v_stride = KV * D };
    task t = { .row = find(b, KS_K_ATTN, type), .args = args, .arg_bytes = sizeof *args, .n_args = b->threads };
    t.n_units = n_rows * KV;
    t.own = true;
    double pairs = 0;
    for (uint32_t r = 0; r < n_rows; r++) pairs += pos + r + 1;
    (void)snprintf(what, sizeof what, "%u row%s, %u keys", n_rows, n_rows > 1 ? "s" : "", pos + n_rows);
    /* On tiles three products of bf16 are one of floats: it reaches a third of that peak at most. */
    const bool tiles = t.row && t.row->cpu_required & KS_CPU(AMX_BF16);
    measure(b, what, &t, 0, pairs * HEADS * 2 * D, tiles ? KS_CEIL_BF16 : KS_CEIL_F32);
    free(args);
    return 0;
}

#define PLAIN_ROWS 256u

/* The structs of the row by row work of one worker. */
typedef struct plain {
    ks_quant_args quant;
    ks_act act;
    ks_norm_args norm;
    ks_rope_args rope;
    ks_glu_args glu;
    uint32_t pos[PLAIN_ROWS];
} plain;

static void set_plain(const bench *b, uint32_t worker, plain *p)
{
    enum { HEADS = 16, D = 128 };
    float *y = output(b, worker);
    p->act = (ks_act) { .q = output(b, worker), .q_stride = N_IN, .scale_stride = N_IN / 128, .sum_stride = N_IN / 32 };
    p->act.scale = y + ((size_t)1 << 19); /* behind the rows, in floats */
    p->act.sum = (int32_t *)(void *)(p->act.scale + ((size_t)1 << 18));
    for (uint32_t i = 0; i < PLAIN_ROWS; i++) p->pos[i] = 1000 + i;
    p->quant = (ks_quant_args) {
        .size = sizeof p->quant, .n_rows = PLAIN_ROWS, .n_in = N_IN, .x = floats(b), .x_stride = N_IN, .out = &p->act
    };
    p->norm = (ks_norm_args) { .size = sizeof p->norm,
                               .kind = KS_NORM_RMS,
                               .n_rows = PLAIN_ROWS,
                               .n = N_IN,
                               .width = N_IN,
                               .w_width = N_IN,
                               .eps = 1e-6f,
                               .x = floats(b),
                               .x_stride = N_IN,
                               .weight = floats(b),
                               .y = y,
                               .y_stride = N_IN };
    p->rope = (ks_rope_args) { .size = sizeof p->rope,
                               .kind = KS_ROPE_HALF,
                               .n_rows = PLAIN_ROWS,
                               .n_heads = HEADS,
                               .head_dim = D,
                               .rot_dim = D,
                               .mscale = 1,
                               .inv_freq = floats(b),
                               .pos = p->pos,
                               .x = y,
                               .x_stride = N_IN };
    p->glu = (ks_glu_args) { .size = sizeof p->glu,
                             .kind = KS_ACT_SILU,
                             .n_rows = PLAIN_ROWS,
                             .n = N_IN / 2,
                             .x = floats(b),
                             .x_stride = N_IN,
                             .y = y,
                             .y_stride = N_IN };
}

static int bench_plain(bench *b, ks_err *err)
{
    static const struct {
        const char *what;
        uint32_t op;
        size_t at;    /* of the struct in `plain` */
        double bytes; /* of a row */
    } ops[] = { { "2048 columns", KS_K_QUANT, offsetof(plain, quant), 5.0 * N_IN },
                { "2048 columns", KS_K_NORM, offsetof(plain, norm), 8.0 * N_IN },
                { "16 heads of 128", KS_K_ROPE, offsetof(plain, rope), 8.0 * N_IN },
                { "silu, 1024 outputs", KS_K_GLU, offsetof(plain, glu), 6.0 * N_IN } };
    plain *p = ks_calloc(b->threads, sizeof *p);
    if (!p) return ks_fail(err, KS_E_NOMEM, "out of memory for %u threads", b->threads);
    for (uint32_t i = 0; i < b->threads; i++) set_plain(b, i, &p[i]);
    for (size_t i = 0; i < KS_COUNT(ops); i++) {
        task t = { .row = find(b, ops[i].op, 0), .args = (const uint8_t *)p + ops[i].at, .arg_bytes = sizeof *p };
        t.n_args = b->threads;
        t.n_units = PLAIN_ROWS;
        t.own = true;
        measure(b, ops[i].what, &t, ops[i].bytes * PLAIN_ROWS, 0, 0);
    }
    free(p);
    return 0;
}

static int bench_kernels(bench *b, ks_err *err)
{
    static const struct {
        uint32_t type, group;
    } weights[] = { { KS_T_I4, 128 }, { KS_T_I8, 128 }, { KS_T_MXFP4, 32 }, { KS_T_BF16, 0 }, { KS_T_F32, 0 } };
    static const struct {
        uint32_t rows;
        bool from_ram;
    } rows[] = { { 1, true }, { 4, true }, { 16, true }, { 16, false }, { 64, false }, { 256, false } };
    static const uint32_t caches[] = { KS_T_F8E4M3, KS_T_BF16, KS_T_F32 };
    int rc = 0;
    for (size_t i = 0; i < KS_COUNT(weights) && !rc; i++)
        for (size_t k = 0; k < KS_COUNT(rows) && !rc; k++)
            rc = bench_matmul(b, weights[i].type, weights[i].group, rows[k].rows, rows[k].from_ram, err);
    for (size_t i = 0; i < KS_COUNT(caches) && !rc; i++) {
        rc = bench_attn(b, caches[i], 1, 4095, err);
        if (!rc) rc = bench_attn(b, caches[i], 256, 1792, err);
    }
    return rc ? rc : bench_plain(b, err);
}

/* ---- ceilings */

static void say_ceiling(bench *b, const ks_ceiling *c, double rate)
{
    static const char *const kinds[KS_CEIL_KINDS] = { "", "read", "int8", "bf16", "f32" };
    if (!b->json) {
        printf("ceiling  %-5s %-20s %4u  %9.1f %s\n", kinds[c->kind], c->name, b->threads, rate / 1e9,
               c->kind == KS_CEIL_READ ? "GB/s" : "Gmac/s");
        (void)fflush(stdout); /* main looks at the errors */
        return;
    }
    ks_jw_object(&b->w);
    ks_jw_key(&b->w, "kind");
    ks_jw_str(&b->w, kinds[c->kind]);
    ks_jw_key(&b->w, "loop");
    ks_jw_str(&b->w, c->name);
    ks_jw_key(&b->w, "threads");
    ks_jw_u64(&b->w, b->threads);
    ks_jw_key(&b->w, c->kind == KS_CEIL_READ ? "bytes_s" : "macs_s");
    ks_jw_f64(&b->w, rate);
    ks_jw_object_end(&b->w);
}

static void bench_ceilings(bench *b)
{
    const uint64_t features = ks_cpu_features();
    const ks_ceiling *c;
    for (uint32_t i = 0; (c = ks_ceiling_at(i)); i++)
        if ((c->cpu & features) == c->cpu) say_ceiling(b, c, ks_meter_loop(&b->meter, c));
}

/* ---- numbers of threads */

/* 1, 2, 4, ... and all. */
static uint32_t counts_of(uint32_t all, uint32_t ret[COUNTS_MAX])
{
    uint32_t n = 0;
    for (uint32_t t = 1; t < all && n < COUNTS_MAX - 1; t *= 2) ret[n++] = t;
    ret[n++] = all;
    return n;
}

static int with_threads(bench *b, uint32_t threads, ks_err *err)
{
    uint32_t cpus[CORES_MAX];
    uint32_t cores = ks_cpu_cores(cpus, CORES_MAX);
    ks_pool_close(b->pool);
    b->pool = NULL;
    b->threads = threads;
    ks_pool_opts o = { .n_threads = threads,
                       .cpus = threads <= cores ? cpus : NULL,
                       .scratch_bytes = ks_kernel_scratch(b->a.kernels) };
    int rc = ks_pool_open(&o, &b->pool, err);
    b->meter.pool = b->pool;
    if (!rc) ks_meter_choose(&b->meter);
    return rc;
}

static int run_all(bench *b, ks_err *err)
{
    uint32_t counts[COUNTS_MAX], n = counts_of(b->a.n_threads, counts);
    int rc = 0;
    if (b->json) {
        ks_bench_machine(&b->a, &b->w);
        ks_jw_key(&b->w, "memory_bytes");
        ks_jw_u64(&b->w, b->meter.bytes);
        ks_jw_key(&b->w, "ceilings");
        ks_jw_array(&b->w);
    }
    for (uint32_t i = 0; i < n && !rc && !*b->only; i++) {
        rc = with_threads(b, counts[i], err);
        if (!rc) bench_ceilings(b);
    }
    if (b->json) {
        ks_jw_array_end(&b->w);
        ks_jw_key(&b->w, "kernels");
        ks_jw_array(&b->w);
    }
    /* One thread, half of all, all. */
    for (uint32_t i = 0; i < n && !rc; i++) {
        if (i > 0 && i + 2 < n) continue;
        rc = with_threads(b, counts[i], err);
        if (!rc) rc = bench_kernels(b, err);
    }
    if (b->json) ks_jw_array_end(&b->w);
    return rc;
}

int ks_bench_cpu(ks_config *c, ks_err *err)
{
    bench b = { .json = ks_config_bool(c, "json"), .only = ks_config_str(c, "only") };
    b.repeats = (uint32_t)KS_MIN(ks_config_int(c, "repeats"), (int64_t)REPEATS_MAX);
    ks_jw_init(&b.w);
    ks_jw_object(&b.w);
    int rc = ks_app_plugins(c, &b.a, err);
    if (!rc) rc = ks_meter_open(&b.meter, b.a.pool, err);
    b.x_bytes = Y_AT + (rc ? 0 : b.a.n_threads) * Y_BYTES;
    void *p = rc ? MAP_FAILED : mmap(NULL, b.x_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED) {
        b.x = p;
        float *x = p;
        for (size_t i = 0; i < Q_AT / sizeof *x; i++) x[i] = (float)(i % 251) * 0.01f - 1.25f;
        rc = run_all(&b, err);
        (void)munmap(p, b.x_bytes); /* the map's own bounds */
    } else if (!rc) {
        rc = ks_fail(err, KS_E_NOMEM, "out of memory for %zu bytes of activations", b.x_bytes);
    }
    ks_jw_object_end(&b.w);
    if (!rc && b.json && ks_jw_done(&b.w)) rc = ks_fail(err, KS_E_NOMEM, "out of memory for the result");
    if (!rc && b.json) puts(b.w.text);
    ks_jw_fini(&b.w);
    ks_meter_close(&b.meter);
    ks_pool_close(b.pool);
    ks_app_close(&b.a);
    return rc;
}
