/* What the benchmarks share, and the one of many clients: tokens per second of the whole engine for growing numbers of
 * them, in interleaved repeats.
 *
 * Every repeat runs all client counts in turn, so that a slow phase of the machine hits them alike; medians with
 * the spread are printed. Prompts are random tokens from a fixed seed, different for every client, so the prefix
 * cache helps nobody; greedy, no end token. */
#include "app/bench.h"
#include "app/client.h"
#include "app/load.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/hash.h"
#include "cpu/cpu.h"
#include <krasis/json.h>
#include <math.h>

#define KS_BENCH_REPEATS 5u

typedef struct result {
    uint32_t clients;
    double total[KS_BENCH_REPEATS];   /* generated tokens/s over all clients, first token to last */
    double prefill[KS_BENCH_REPEATS]; /* prompt tokens/s until the last client's first token */
} result;

static int one_run(ks_app *a, uint32_t clients, uint32_t n_prompt, uint32_t n_new, uint64_t *seed, double *ret_total,
                   double *ret_prefill, ks_err *err)
{
    int32_t *ids = malloc((size_t)clients * n_prompt * sizeof *ids);
    double first_ms = 0, rest_ms = 0;
    if (!ids) return ks_fail(err, KS_E_NOMEM, "out of memory for the prompts");
    for (size_t i = 0; i < (size_t)clients * n_prompt; i++)
        ids[i] = (int32_t)(ks_splitmix64(seed) % a->model.graph.n_vocab);
    int rc = ks_clients_run(a->engine, ids, clients, n_prompt, n_new, &first_ms, &rest_ms, err);
    free(ids);
    *ret_prefill = (double)clients * n_prompt * 1000 / first_ms;
    *ret_total = (double)clients * (n_new - 1) * 1000 / rest_ms;
    return rc;
}

static double median(double *v)
{
    return ks_bench_median(v, KS_BENCH_REPEATS);
}

static void print_table(result *r, uint32_t n)
{
    double base = 0;
    printf("%8s  %28s  %28s  %8s\n", "clients", "prefill tok/s (min - max)", "decode tok/s (min - max)", "ratio");
    for (uint32_t i = 0; i < n; i++) {
        double p = median(r[i].prefill), d = median(r[i].total);
        if (i == 0) base = d;
        printf("%8u  %10.1f (%6.1f - %6.1f)  %10.1f (%6.1f - %6.1f)  %7.2fx\n", r[i].clients, p, r[i].prefill[0],
               r[i].prefill[KS_BENCH_REPEATS - 1], d, r[i].total[0], r[i].total[KS_BENCH_REPEATS - 1], d / base);
    }
}

static int print_results(result *r, uint32_t n, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_array(&w);
    for (uint32_t i = 0; i < n; i++) {
        ks_jw_object(&w);
        ks_jw_key(&w, "clients");
        ks_jw_u64(&w, r[i].clients);
        ks_jw_key(&w, "prefill_tok_s");
        ks_jw_f64(&w, median(r[i].prefill));
        ks_jw_key(&w, "decode_tok_s");
        ks_jw_f64(&w, median(r[i].total));
        ks_jw_key(&w, "decode_tok_s_min_max");
        ks_jw_array(&w);
        ks_jw_f64(&w, r[i].total[0]);
        ks_jw_f64(&w, r[i].total[KS_BENCH_REPEATS - 1]);
        ks_jw_array_end(&w);
        ks_jw_object_end(&w);
    }
    ks_jw_array_end(&w);
    int rc = ks_jw_done(&w) ? ks_fail(err, KS_E_NOMEM, "out of memory for the result") : 0;
    if (!rc) puts(w.text);
    ks_jw_fini(&w);
    return rc;
}

static int read_clients(const ks_config *c, result *r, uint32_t cap, uint32_t *ret_n, ks_err *err)
{
    int64_t *v = NULL;
    size_t n = 0;
    int rc = ks_config_ints(c, "clients", &v, &n, err);
    if (!rc && (n < 1 || n > cap))
        rc = ks_fail(err, KS_E_CONFIG, "--clients '%s': give 1 to %u numbers", ks_config_str(c, "clients"), cap);
    for (size_t i = 0; i < n && !rc; i++) {
        r[i].clients = (uint32_t)v[i];
        if (v[i] > KS_CLIENTS_MAX)
            rc = ks_fail(err, KS_E_CONFIG, "--clients %lld: at most %u are measured", (long long)v[i], KS_CLIENTS_MAX);
    }
    free(v);
    *ret_n = (uint32_t)n;
    return rc;
}

int ks_bench_clients(ks_app *a, uint32_t n_prompt, uint32_t n_new, bool json, ks_err *err)
{
    result r[8] = { 0 };
    uint32_t n = 0;
    uint64_t seed = 1;
    double warm[2];
    int rc = read_clients(a->config, r, KS_COUNT(r), &n, err);
    if (!rc) rc = one_run(a, 1, n_prompt, n_new, &seed, &warm[0], &warm[1], err);
    for (uint32_t k = 0; k < KS_BENCH_REPEATS && !rc; k++)
        for (uint32_t i = 0; i < n && !rc; i++)
            rc = one_run(a, r[i].clients, n_prompt, n_new, &seed, &r[i].total[k], &r[i].prefill[k], err);
    if (rc) return rc;
    if (json) return print_results(r, n, err);
    print_table(r, n);
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double ks_bench_median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

void ks_bench_machine(const ks_app *a, ks_jw *w)
{
    char names[512];
    ks_jw_key(w, "machine");
    ks_jw_object(w);
    ks_jw_key(w, "cpu");
    ks_jw_str(w, ks_cpu_brand());
    ks_jw_key(w, "features");
    ks_jw_str(w, ks_cpu_names(ks_cpu_features(), names, sizeof names));
    ks_jw_key(w, "threads");
    ks_jw_u64(w, a->n_threads);
    ks_jw_key(w, "kernels");
    ks_jw_array(w);
    for (uint32_t i = 0; i < ks_registry_count(a->registry); i++) {
        const ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        if (p->desc.kind == KS_KIND_KERNELS && p->state == KS_PLUGIN_OPEN) ks_jw_str(w, p->name);
    }
    ks_jw_array_end(w);
    ks_jw_object_end(w);
}
