/* krasis bench model: reading prompts and writing text at real sizes, each held against the physical bound: the bytes
 * and operations that the op list needs at least (cost.h), over the ceilings measured in the same seconds (rates.h).
 *
 *   ppN          a prompt of N random tokens alone, until its first token
 *   tgN @ dD     N tokens after a context of D, whose pages are kept from one repeat to the next
 *   tgN xB       B answers at the same time
 *   pp100 @ dD   100 new tokens after a prefix of D that is kept, beside what reading all of it took (cold)
 *
 * With a GPU the bound is the larger of what the link needs for the experts that do not stay, each once, and of what
 * the operations need at the rates of --gpu-peak; bytes over the link are given as a part of what it could bring
 * meanwhile.
 *
 * Every repeat runs all tests in turn, so that a slow phase of the machine hits them alike; medians are printed. */
#include "app/bench.h"
#include "app/client.h"
#include "app/cost.h"
#include "app/load.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include <dirent.h>
#include <fcntl.h>
#include <krasis/json.h>
#include <math.h>
#include <unistd.h>

#define REPEATS_MAX 64u
#define TESTS_MAX 64u
#define FIRST_TOKENS 8u /* of a prompt at depth 0 */
#define LISTS 4u
#define PREFIX_NEW 100u /* tokens after a kept prefix */

typedef struct series {
    double v[REPEATS_MAX], median; /* sorted at the end */
} series;

typedef struct test {
    char name[48];
    bool prefill;
    uint32_t tokens, depth, batch;  /* tokens to read, or to write */
    int32_t *ids;                   /* (batch, depth + FIRST_TOKENS): the same in all repeats */
    series rate, bound, part, ttft; /* tokens/s; tokens/s; the part that is reached; ms */
    double cold_ms;                 /* after a kept prefix: of the prefix, read for the first time */
    const char *limit;              /* what sets the bound */
    ks_cost cost;                   /* of the last repeat: one step, or one prompt */
    ks_rates rates;
    ks_stats stats; /* of the last repeat: what was done with experts on a device */
} test;

typedef struct bench {
    ks_app a;
    ks_meter meter;
    test tests[TESTS_MAX];
    uint32_t n, repeats;
    uint64_t seed;
    ks_gpu_rates gpu; /* link 0: no GPU computes */
    uint64_t *heat;   /* (2, n_layers, n_experts): before and after a run; NULL: no experts */
    double load_s[2]; /* cold, warm */
} bench;

/* ---- one run */

static int32_t draw(bench *b)
{
    return (int32_t)(ks_splitmix64(&b->seed) % b->a.model.graph.n_vocab);
}

/* Pairs routed by the run between the two snapshots. */
static const uint64_t *heat_of_run(bench *b)
{
    const size_t n = (size_t)b->a.model.graph.n_layers * b->a.model.graph.n_experts;
    if (!b->heat || ks_engine_heat(b->a.engine, b->heat + n, NULL)) return NULL; /* uniform is the next best guess */
    for (size_t i = 0; i < n; i++) b->heat[n + i] -= b->heat[i];
    return b->heat + n;
}

static void get_stats(const bench *b, ks_stats *ret)
{
    *ret = (ks_stats) { .size = sizeof *ret };
    (void)ks_engine_api_get()->stats(b->a.engine, ret, NULL); /* cannot fail: size is set */
}

/* What happened to experts between two looks. */
static void keep_stats(test *t, const ks_stats *before, const ks_stats *after)
{
    t->stats = *after;
    t->stats.experts_hot -= before->experts_hot;
    t->stats.experts_cold -= before->experts_cold;
    t->stats.expert_uploads -= before->expert_uploads;
    t->stats.expert_upload_bytes -= before->expert_upload_bytes;
    t->stats.link_bytes_in -= before->link_bytes_in;
    t->stats.link_bytes_out -= before->link_bytes_out;
    t->stats.device_s -= before->device_s;
    t->stats.device_wait_s -= before->device_wait_s;
    t->stats.experts_cpu_s -= before->experts_cpu_s;
    t->stats.experts_cpu_bytes -= before->experts_cpu_bytes;
    t->stats.experts_link_bytes -= before->experts_link_bytes;
}

static ks_rates mean_of(ks_rates x, ks_rates y)
{
    return (ks_rates) { (x.read + y.read) / 2, (x.int8 + y.int8) / 2, (x.f32 + y.f32) / 2, (x.attn + y.attn) / 2 };
}

static double percent(double a, double b)
{
    return b > 0 ? 100 * a / b : 0;
}

static double hit_rate(const ks_stats *s)
{
    return percent((double)s->experts_hot, (double)s->experts_hot + (double)s->experts_cold) / 100;
}

static double bound_seconds(const bench *b, test *t)
{
    if (b->gpu.link <= 0) {
        t->limit = ks_cost_limit(&t->cost, &t->rates);
        return ks_cost_seconds(&t->cost, &t->rates);
    }
    const ks_stats *s = &t->stats;
    ks_gpu_rates r = b->gpu;
    const bool ahead = t->prefill && (r.host <= 0 || t->tokens >= b->a.opts.share_rows);
    const double stay = s->experts ? (double)s->experts_resident / s->experts : 1;
    r.host = r.host > 0 ? t->rates.read : 0;
    return ks_cost_gpu_seconds(&t->cost, &r, 1 - (ahead ? stay : hit_rate(s)), ahead, &t->limit);
}

static uint32_t prompt_of(const test *t)
{
    return t->prefill ? t->depth + t->tokens : t->depth + FIRST_TOKENS;
}

static int run_test(bench *b, test *t, uint32_t repeat, ks_err *err)
{
    const uint32_t n_prompt = prompt_of(t), n_new = t->prefill ? 1 : t->tokens + 1;
    double first, rest;
    if (t->prefill) /* new ones, behind a prefix that is kept */
        for (uint32_t i = t->depth; i < n_prompt; i++) t->ids[i] = draw(b);
    if (t->prefill && t->depth) { /* again before each run: the tests in between may have needed its pages */
        int rc = ks_clients_run(b->a.engine, t->ids, 1, t->depth + 1, 1, &first, &rest, err);
        if (rc) return rc;
        if (t->cold_ms <= 0) t->cold_ms = first;
    }
    ks_rates before = ks_meter_rates(&b->meter);
    if (b->heat && ks_engine_heat(b->a.engine, b->heat, NULL)) {
        free(b->heat); /* a device that does not count: all experts are taken to be asked for alike */
        b->heat = NULL;
    }
    ks_stats seen[2];
    get_stats(b, &seen[0]);
    int rc = ks_clients_run(b->a.engine, t->ids, t->batch, n_prompt, n_new, &first, &rest, err);
    if (rc) return rc;
    get_stats(b, &seen[1]);
    keep_stats(t, &seen[0], &seen[1]);
    ks_load l = { .n_seqs = t->batch, .rows = 1, .outs = 1, .kv_type = ks_app_kv_type(b->a.config) };
    l.heat = heat_of_run(b);
    t->rates = mean_of(before, ks_meter_rates(&b->meter));
    l.pos = t->prefill ? t->depth : n_prompt + t->tokens / 2.0;
    if (t->prefill) l.rows = t->tokens;
    ks_cost_count(&b->a.model.graph, &l, &t->cost);
    const double ms = t->prefill ? first : rest / t->tokens, unit = t->prefill ? t->tokens : t->batch;
    t->rate.v[repeat] = unit * 1000 / ms;
    const double least = bound_seconds(b, t); /* 0: all is on the GPU, and nobody said how fast that is */
    t->bound.v[repeat] = least > 0 ? unit / least : 0;
    t->part.v[repeat] = least > 0 ? t->rate.v[repeat] / t->bound.v[repeat] : 0;
    t->ttft.v[repeat] = first;
    if (least > 0)
        ks_log(KS_LOG_INFO, "bench", "%s: %.2f tok/s, %.1f %% of %.2f", t->name, t->rate.v[repeat],
               100 * t->part.v[repeat], t->bound.v[repeat]);
    else
        ks_log(KS_LOG_INFO, "bench", "%s: %.2f tok/s", t->name, t->rate.v[repeat]);
    return 0;
}

/* ---- which tests */

static int add_test(bench *b, bool prefill, uint32_t tokens, uint32_t depth, uint32_t batch, ks_err *err)
{
    const uint64_t need = prefill ? (uint64_t)depth + tokens + 1 : (uint64_t)depth + FIRST_TOKENS + tokens + 1;
    if (b->n == TESTS_MAX) return ks_fail(err, KS_E_CONFIG, "more than %u tests: give fewer numbers", TESTS_MAX);
    if (need > b->a.context)
        return ks_fail(err, KS_E_CONFIG, "a test needs %llu tokens, one conversation holds %u: raise --context",
                       (unsigned long long)need, b->a.context);
    test *t = &b->tests[b->n];
    *t = (test) { .prefill = prefill, .tokens = tokens, .depth = depth, .batch = batch };
    if (prefill && depth)
        (void)snprintf(t->name, sizeof t->name, "pp%u @ d%u", tokens, depth);
    else if (prefill)
        (void)snprintf(t->name, sizeof t->name, "pp%u", tokens);
    else if (batch > 1)
        (void)snprintf(t->name, sizeof t->name, "tg%u x%u", tokens, batch);
    else
        (void)snprintf(t->name, sizeof t->name, "tg%u @ d%u", tokens, depth);
    t->ids = ks_calloc((size_t)batch * prompt_of(t), sizeof *t->ids);
    if (!t->ids) return ks_fail(err, KS_E_NOMEM, "out of memory for the prompts");
    for (size_t i = 0; i < (size_t)batch * prompt_of(t); i++) t->ids[i] = draw(b);
    b->n++;
    return 0;
}

static int add_tests(bench *b, ks_err *err)
{
    static const char *const names[LISTS] = { "prompts", "depths", "batches", "prefixes" };
    const ks_config *c = b->a.config;
    const int64_t most = ks_config_int(c, "max-running"), tokens = ks_config_int(c, "max-tokens");
    const uint32_t n_new = tokens ? (uint32_t)tokens : KS_BENCH_NEW_TOKENS;
    int rc = 0;
    for (uint32_t k = 0; k < LISTS && !rc; k++) {
        int64_t *v = NULL;
        size_t n = 0;
        rc = ks_config_ints(c, names[k], &v, &n, err);
        for (size_t i = 0; i < n && !rc; i++) {
            if (k == 3)
                rc = v[i] ? add_test(b, true, PREFIX_NEW, (uint32_t)v[i], 1, err) : 0;
            else if (k == 0)
                rc = v[i] ? add_test(b, true, (uint32_t)v[i], 0, 1, err) : 0;
            else if (k == 1)
                rc = add_test(b, false, n_new, (uint32_t)v[i], 1, err);
            else if (v[i] > KS_MIN(most, (int64_t)KS_CLIENTS_MAX))
                rc = ks_fail(err, KS_E_CONFIG, "--batches %lld: at most --max-running (%lld) and %u run together",
                             (long long)v[i], (long long)most, KS_CLIENTS_MAX);
            else if (v[i] > 1) /* one alone is depth 0 */
                rc = add_test(b, false, n_new, 0, (uint32_t)v[i], err);
        }
        free(v);
    }
    return rc;
}

/* ---- loading */

/* Drops the cached weights from the page cache, as far as the kernel agrees: nothing depends on it but a time. */
static void forget_cache(const ks_config *c)
{
    ks_err err;
    const char *set = ks_config_str(c, "cache-dir");
    char *home = *set ? NULL : ks_home(&err), *own = home ? ks_path_join(home, "cache") : NULL;
    const char *dir = *set ? set : own;
    DIR *d = dir ? opendir(dir) : NULL;
    struct dirent *e;
    while (d && (e = readdir(d))) {
        const char *dot = strrchr(e->d_name, '.');
        char *path = dot && strcmp(dot, ".kw") == 0 ? ks_path_join(dir, e->d_name) : NULL;
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0) {
            (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            (void)close(fd);
        }
        free(path);
    }
    if (d) (void)closedir(d);
    free(own);
    free(home);
}

static int open_weights(bench *b, ks_err *err)
{
    ks_app *a = &b->a;
    int rc = ks_app_weights(a, err); /* builds the cache if there is none */
    for (int warm = 0; warm < 2 && !rc; warm++) {
        ks_store_close(a->store);
        a->store = NULL;
        if (!warm) forget_cache(a->config);
        uint64_t t0 = ks_now_ns();
        rc = ks_app_weights(a, err);
        b->load_s[warm] = (double)(ks_now_ns() - t0) * 1e-9;
    }
    return rc;
}

/* ---- results */

static void sort(const bench *b, series *s)
{
    s->median = ks_bench_median(s->v, b->repeats);
}

/* Multiply-adds of bytes, all useful, as a part of the measured peak. */
static double int8_part(const test *t)
{
    return t->cost.mac_int8 * t->rate.median / (t->prefill ? t->tokens : t->batch) / t->rates.int8;
}

static void print_table(const bench *b)
{
    const ks_rates *r = &b->tests[0].rates;
    double bytes = (double)ks_store_bytes(b->a.store);
    printf("%s: %u layers, %.2f GB of weights, %u threads\n", b->a.name, b->a.model.graph.n_layers, bytes / 1e9,
           b->a.n_threads);
    printf("ceilings: read %.1f GB/s (%s), int8 %.0f Gmac/s (%s), f32 %.0f Gmac/s (%s), attention %.0f Gmac/s\n",
           r->read / 1e9, b->meter.best[KS_CEIL_READ]->name, r->int8 / 1e9,
           b->meter.best[KS_CEIL_INT8] ? b->meter.best[KS_CEIL_INT8]->name : "as f32", r->f32 / 1e9,
           b->meter.best[KS_CEIL_F32]->name, r->attn / 1e9);
    printf("load: cold %.2f s (%.2f GB/s), warm %.2f s (%.2f GB/s)\n\n", b->load_s[0], bytes / 1e9 / b->load_s[0],
           b->load_s[1], bytes / 1e9 / b->load_s[1]);
    printf("%-16s %27s %9s %-10s %19s %7s %9s %10s\n", "test", "tok/s (min - max)", "bound", "by", "% of bound", "GB/s",
           "% of int8", "TTFT ms");
    for (uint32_t i = 0; i < b->n; i++) {
        const test *t = &b->tests[i];
        double rate = t->rate.median, steps = rate / (t->prefill ? t->tokens : t->batch);
        printf("%-16s %9.2f (%7.2f - %7.2f) ", t->name, rate, t->rate.v[0], t->rate.v[b->repeats - 1]);
        if (t->bound.median > 0)
            printf("%9.2f %-10s %5.1f (%5.1f - %5.1f)", t->bound.median, t->limit, 100 * t->part.median,
                   100 * t->part.v[0], 100 * t->part.v[b->repeats - 1]);
        else
            printf("%9s %-10s %19s", "-", "--gpu-peak", "-");
        printf(" %7.1f %9.1f %10.1f\n", ks_cost_bytes(&t->cost) * steps / 1e9, 100 * int8_part(t), t->ttft.median);
    }
}

/* Of what the link could have brought while steps ran. */
static double link_part(const bench *b, const ks_stats *s)
{
    return percent((double)s->link_bytes_in, s->device_s * b->gpu.link) / 100;
}

static void print_experts(const bench *b)
{
    if (!b->n || !b->tests[0].stats.expert_slots) return;
    printf("\nexperts on the GPU: places for %u of %u\n%-16s %9s %9s %10s %9s %9s %9s %9s %8s %8s %8s\n",
           b->tests[0].stats.expert_slots, b->tests[0].stats.experts, "test", "resident", "hits %", "exchanged",
           "GB in", "GB out", "GB place", "GB CPU", "% link", "% GPU", "% CPU");
    for (uint32_t i = 0; i < b->n; i++) {
        const ks_stats *s = &b->tests[i].stats;
        printf("%-16s %9u %9.1f %10llu %9.3f %9.3f %9.3f %9.3f %8.1f %8.1f %8.1f\n", b->tests[i].name,
               s->experts_resident, 100 * hit_rate(s), (unsigned long long)s->expert_uploads,
               (double)s->link_bytes_in / 1e9, (double)s->link_bytes_out / 1e9, (double)s->experts_link_bytes / 1e9,
               (double)s->experts_cpu_bytes / 1e9, 100 * link_part(b, s), percent(s->device_wait_s, s->device_s),
               percent(s->experts_cpu_s, s->device_s));
    }
    for (uint32_t i = 0; i < b->n; i++)
        if (b->tests[i].cold_ms > 0)
            printf("%-16s %9.1f ms, %.1f %% of the %.1f ms that its prefix took\n", b->tests[i].name,
                   b->tests[i].ttft.median, percent(b->tests[i].ttft.median, b->tests[i].cold_ms), b->tests[i].cold_ms);
    puts("GB place: of GB in, experts read in place; GB CPU: experts that the CPU read instead");
    puts("% GPU: of the steps' time waiting for the GPU; % CPU: in the experts that the CPU computes");
}

static void put(ks_jw *w, const char *key, double v)
{
    ks_jw_key(w, key);
    ks_jw_f64(w, v);
}

static void put_series(const bench *b, ks_jw *w, const char *key, const series *s)
{
    ks_jw_key(w, key);
    ks_jw_object(w);
    put(w, "median", s->median);
    put(w, "min", s->v[0]);
    put(w, "max", s->v[b->repeats - 1]);
    ks_jw_object_end(w);
}

static void put_cost(ks_jw *w, const ks_cost *c)
{
    static const char *const classes[] = {
#define KS_CLS_NAME(name, num, text) [num] = text,
        KS_CLS_MAP(KS_CLS_NAME)
#undef KS_CLS_NAME
    };
    ks_jw_key(w, "weight_bytes_by_class");
    ks_jw_object(w);
    for (uint32_t i = 0; i < KS_COUNT(classes); i++)
        if (c->class_bytes[i] > 0) put(w, classes[i], c->class_bytes[i]);
    ks_jw_object_end(w);
    ks_jw_key(w, "weight_bytes_by_type");
    ks_jw_object(w);
    for (uint32_t i = 0; i < KS_COUNT(c->type_bytes); i++)
        if (c->type_bytes[i] > 0) put(w, ks_type_name(i), c->type_bytes[i]);
    ks_jw_object_end(w);
    put(w, "weight_bytes", c->weight_bytes);
    put(w, "kv_bytes", c->kv_bytes);
    put(w, "state_bytes", c->state_bytes);
    put(w, "int8_macs", c->mac_int8);
    put(w, "f32_macs", c->mac_f32);
    put(w, "attention_macs", c->mac_attn);
    put(w, "experts_touched", c->experts);
}

static void put_experts(const bench *b, ks_jw *w, const ks_stats *s)
{
    ks_jw_key(w, "experts_on_device");
    ks_jw_object(w);
    put(w, "experts", s->experts);
    put(w, "slots", s->expert_slots);
    put(w, "resident", s->experts_resident);
    put(w, "hit_rate", hit_rate(s));
    put(w, "uploads", (double)s->expert_uploads);
    put(w, "upload_bytes", (double)s->expert_upload_bytes);
    put(w, "link_bytes_in", (double)s->link_bytes_in);
    put(w, "link_bytes_s", b->gpu.link);
    put(w, "link_utilisation", link_part(b, s));
    put(w, "link_bytes_out", (double)s->link_bytes_out);
    put(w, "device_s", s->device_s);
    put(w, "device_wait_s", s->device_wait_s);
    put(w, "experts_cpu_s", s->experts_cpu_s);
    put(w, "experts_cpu_bytes", (double)s->experts_cpu_bytes);
    put(w, "experts_link_bytes", (double)s->experts_link_bytes);
    ks_jw_object_end(w);
}

static void put_test(const bench *b, ks_jw *w, const test *t)
{
    ks_jw_object(w);
    ks_jw_key(w, "test");
    ks_jw_str(w, t->name);
    put(w, "tokens", t->tokens);
    put(w, "depth", t->depth);
    put(w, "batch", t->batch);
    put_series(b, w, "tok_s", &t->rate);
    put_series(b, w, "ttft_ms", &t->ttft);
    if (t->bound.median > 0) {
        put_series(b, w, "fraction_of_bound", &t->part);
        put_series(b, w, "bound_tok_s", &t->bound);
        ks_jw_key(w, "bound_by");
        ks_jw_str(w, t->limit);
    }
    if (t->cold_ms > 0) put(w, "prefix_cold_ms", t->cold_ms);
    put(w, "fraction_of_int8_peak", int8_part(t));
    ks_jw_key(w, t->prefill ? "needs_of_prompt" : "needs_of_step");
    ks_jw_object(w);
    put_cost(w, &t->cost);
    ks_jw_object_end(w);
    if (t->stats.expert_slots) put_experts(b, w, &t->stats);
    ks_jw_key(w, "ceilings");
    ks_jw_object(w);
    put(w, "read_bytes_s", t->rates.read);
    put(w, "int8_macs_s", t->rates.int8);
    put(w, "f32_macs_s", t->rates.f32);
    put(w, "attention_macs_s", t->rates.attn);
    ks_jw_object_end(w);
    ks_jw_object_end(w);
}

static int print_json(const bench *b, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_object(&w);
    ks_bench_machine(&b->a, &w);
    ks_jw_key(&w, "model");
    ks_jw_object(&w);
    ks_jw_key(&w, "name");
    ks_jw_str(&w, b->a.name);
    ks_jw_key(&w, "arch");
    ks_jw_str(&w, b->a.model.arch);
    put(&w, "layers", b->a.model.graph.n_layers);
    put(&w, "weight_bytes", (double)ks_store_bytes(b->a.store));
    ks_jw_object_end(&w);
    put(&w, "load_cold_s", b->load_s[0]);
    put(&w, "load_warm_s", b->load_s[1]);
    put(&w, "repeats", b->repeats);
    ks_jw_key(&w, "results");
    ks_jw_array(&w);
    for (uint32_t i = 0; i < b->n; i++) put_test(b, &w, &b->tests[i]);
    ks_jw_array_end(&w);
    ks_jw_object_end(&w);
    int rc = ks_jw_done(&w) ? ks_fail(err, KS_E_NOMEM, "out of memory for the result") : 0;
    if (!rc) puts(w.text);
    ks_jw_fini(&w);
    return rc;
}

/* ---- the command */

static int measure(bench *b, ks_err *err)
{
    const ks_graph *g = &b->a.model.graph;
    int rc = 0;
    if (g->n_experts) {
        b->heat = ks_calloc((size_t)g->n_layers * g->n_experts, 2 * sizeof *b->heat);
        if (!b->heat) return ks_fail(err, KS_E_NOMEM, "out of memory for the routing counts");
    }
    ks_log(KS_LOG_INFO, "bench", "once for nothing: contexts are read into the cache, code and tables are touched");
    for (uint32_t i = 0; i < b->n && !rc; i++) {
        rc = run_test(b, &b->tests[i], 0, err);
    }
    for (uint32_t k = 0; k < b->repeats && !rc; k++) {
        for (uint32_t i = 0; i < b->n && !rc; i++) rc = run_test(b, &b->tests[i], k, err);
        ks_log(KS_LOG_INFO, "bench", "repeat %u of %u is done", k + 1, b->repeats);
    }
    for (uint32_t i = 0; i < b->n && !rc; i++) {
        sort(b, &b->tests[i].rate);
        sort(b, &b->tests[i].bound);
        sort(b, &b->tests[i].part);
        sort(b, &b->tests[i].ttft);
    }
    return rc;
}

static int set_gpu(bench *b, ks_err *err)
{
    int64_t *v = NULL;
    size_t n = 0;
    int rc = ks_config_ints(b->a.config, "gpu-peak", &v, &n, err);
    if (!rc && n && n != 3)
        rc = ks_fail(err, KS_E_CONFIG, "--gpu-peak has %zu numbers: it wants three, as bench_cuda prints them", n);
    if (!rc && b->a.gpu.size)
        b->gpu = (ks_gpu_rates) { .link = b->a.gpu.link_bytes_s,
                                  .int8 = n ? (double)v[0] * 1e12 / 2 : 0, /* a multiply-add is two operations */
                                  .bf16 = n ? (double)v[1] * 1e12 / 2 : 0,
                                  .mem = n ? (double)v[2] * 1e9 : 0,
                                  .host = b->a.split.share ? 1 : 0 };
    free(v);
    return rc;
}

int ks_bench_model(ks_config *c, ks_err *err)
{
    bench *b = ks_calloc(1, sizeof *b);
    if (!b) return ks_fail(err, KS_E_NOMEM, "out of memory for the results");
    b->repeats = (uint32_t)KS_MIN(ks_config_int(c, "repeats"), (int64_t)REPEATS_MAX);
    b->seed = 1;
    int rc = ks_app_prepare(c, &b->a, err);
    if (!rc) rc = add_tests(b, err);
    if (!rc) rc = open_weights(b, err);
    if (!rc) rc = ks_app_start(&b->a, err);
    b->a.heat.keep = false; /* random prompts teach nothing about real ones */
    if (!rc) rc = set_gpu(b, err);
    if (!rc) rc = ks_meter_open(&b->meter, b->a.pool, err);
    if (!rc && !b->n) rc = ks_fail(err, KS_E_CONFIG, "no test: give --prompts, --depths or --batches");
    if (!rc) rc = measure(b, err);
    if (!rc && ks_config_bool(c, "json"))
        rc = print_json(b, err);
    else if (!rc) {
        print_table(b);
        print_experts(b);
    }
    for (uint32_t i = 0; i < b->n; i++) free(b->tests[i].ids);
    ks_meter_close(&b->meter);
    ks_app_close(&b->a);
    free(b->heat);
    free(b);
    return rc;
}
