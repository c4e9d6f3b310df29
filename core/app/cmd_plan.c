/* krasis plan: the memory a model takes, where it goes, and what speed to expect, part by part, with the setting that
 * changes each. Measures the machine for a second; reads no weights, writes nothing. */
#include "app/cmd.h"
#include "app/plan.h"
#include "base/base.h"
#include "cpu/cpu.h"
#include <krasis/json.h>

typedef struct point {
    char name[32];
    ks_plan_speed s;
} point;

#define POINTS_MAX 8u

typedef struct report {
    ks_app a;
    ks_plan p;
    ks_rates rates;
    point points[POINTS_MAX];
    uint32_t n_points;
} report;

static const char *const parts[KS_PLAN_PARTS] = {
#define KS_CLS_NAME(name, num, text) [num] = text,
    KS_CLS_MAP(KS_CLS_NAME)
#undef KS_CLS_NAME
        [KS_PLAN_KV] = "KV cache",
    [KS_PLAN_STATE] = "state",
};

/* What makes a part smaller or larger. */
static const char *const changed_by[KS_PLAN_PARTS] = {
    [KS_CLS_ATTN] = "--attention-quant",       [KS_CLS_EXPERT] = "--cpu-expert-bits",
    [KS_CLS_SHARED] = "--shared-expert-quant", [KS_CLS_DENSE] = "--dense-mlp-quant",
    [KS_CLS_HEAD] = "--lm-head-quant",         [KS_PLAN_KV] = "--kv-dtype, --context",
};

static void add_point(report *r, bool prefill, uint32_t n, uint32_t depth)
{
    point *p = &r->points[r->n_points++];
    if (prefill) {
        (void)snprintf(p->name, sizeof p->name, "read a prompt of %u", n);
        ks_plan_prefill(&r->a, &r->p, &r->rates, n, &p->s);
    } else {
        (void)snprintf(p->name, sizeof p->name, n > 1 ? "write %u at once" : "write after %u", n > 1 ? n : depth);
        ks_plan_decode(&r->a, &r->p, &r->rates, n, depth, &p->s);
    }
}

/* The first point is what the table of parts shows: one answer at the start. */
static void add_points(report *r)
{
    const uint32_t full = r->p.context - 1;
    add_point(r, false, 1, 0);
    if (full > 4096) add_point(r, false, 1, 4096);
    add_point(r, false, 1, full);
    add_point(r, false, (uint32_t)KS_MIN(ks_config_int(r->a.config, "max-running"), (int64_t)16), 0);
    add_point(r, true, KS_MIN(512u, full), 0);
    if (full > 2048) add_point(r, true, 2048, 0);
}

static uint64_t memory_of(const report *r, uint32_t part)
{
    return part == KS_PLAN_KV ? r->p.kv_bytes : part == KS_PLAN_STATE ? r->p.state_bytes : r->p.class_bytes[part];
}

static const char *type_of(const report *r, uint32_t part)
{
    if (part == KS_PLAN_KV) return ks_type_name(r->p.kv_type);
    return part == KS_PLAN_STATE ? "f32" : r->p.class_type[part] ? ks_type_name(r->p.class_type[part]) : "";
}

static void print_text(const report *r)
{
    const ks_graph *g = &r->a.model.graph;
    const ks_plan_speed *one = &r->points[0].s;
    const double total = ks_cost_bytes(&one->cost);
    printf("model    %s (%s), %u layers, %u experts, context %u of %u\n", r->a.name, r->a.model.arch, g->n_layers,
           g->n_experts, r->p.context, g->n_ctx);
    printf("machine  %s: %u threads, reads %.1f GB/s, %.0f G int8 and %.0f G f32 multiply-adds a second\n\n",
           ks_cpu_brand(), r->a.n_threads, r->rates.read / 1e9, r->rates.int8 / 1e9, r->rates.f32 / 1e9);
    printf("%-10s %-9s %-4s %12s %16s %9s  %s\n", "part", "type", "on", "memory MB", "read a token MB", "time %",
           "changed by");
    for (uint32_t i = 0; i < KS_PLAN_PARTS; i++) {
        if (!memory_of(r, i)) continue;
        printf("%-10s %-9s %-4s %12.1f %16.1f %9.1f  %s\n", parts[i], type_of(r, i), "cpu",
               (double)memory_of(r, i) / 1e6, one->bytes[i] / 1e6, 100 * one->bytes[i] / total,
               changed_by[i] ? changed_by[i] : "");
    }
    printf("%-10s %-9s %-4s %12.1f %16.1f %9.1f  %.1f MB may be used (--ram-limit)\n\n", "total", "", "",
           (double)(r->p.weight_bytes + r->p.kv_bytes + r->p.state_bytes) / 1e6, total / 1e6, 100.0,
           (double)r->p.limit_bytes / 1e6);
    printf("%-24s %14s %18s  %s\n", "speed, tokens a second", "at most", "expect about", "limited by");
    for (uint32_t i = 0; i < r->n_points; i++)
        printf("%-24s %14.1f %18.1f  %s\n", r->points[i].name, r->points[i].s.bound, r->points[i].s.expect,
               r->points[i].s.limit);
}

static void put(ks_jw *w, const char *key, double v)
{
    ks_jw_key(w, key);
    ks_jw_f64(w, v);
}

static int print_json(const report *r, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_object(&w);
    ks_jw_key(&w, "model");
    ks_jw_str(&w, r->a.name);
    ks_jw_key(&w, "arch");
    ks_jw_str(&w, r->a.model.arch);
    put(&w, "context", r->p.context);
    put(&w, "threads", r->a.n_threads);
    put(&w, "read_bytes_s", r->rates.read);
    put(&w, "int8_macs_s", r->rates.int8);
    put(&w, "f32_macs_s", r->rates.f32);
    put(&w, "limit_bytes", (double)r->p.limit_bytes);
    ks_jw_key(&w, "parts");
    ks_jw_array(&w);
    for (uint32_t i = 0; i < KS_PLAN_PARTS; i++) {
        if (!memory_of(r, i)) continue;
        ks_jw_object(&w);
        ks_jw_key(&w, "part");
        ks_jw_str(&w, parts[i]);
        ks_jw_key(&w, "type");
        ks_jw_str(&w, type_of(r, i));
        ks_jw_key(&w, "device");
        ks_jw_str(&w, "cpu");
        put(&w, "bytes", (double)memory_of(r, i));
        put(&w, "read_a_token_bytes", r->points[0].s.bytes[i]);
        ks_jw_object_end(&w);
    }
    ks_jw_array_end(&w);
    ks_jw_key(&w, "speeds");
    ks_jw_array(&w);
    for (uint32_t i = 0; i < r->n_points; i++) {
        ks_jw_object(&w);
        ks_jw_key(&w, "what");
        ks_jw_str(&w, r->points[i].name);
        put(&w, "bound_tok_s", r->points[i].s.bound);
        put(&w, "expect_tok_s", r->points[i].s.expect);
        ks_jw_key(&w, "bound_by");
        ks_jw_str(&w, r->points[i].s.limit);
        ks_jw_object_end(&w);
    }
    ks_jw_array_end(&w);
    ks_jw_object_end(&w);
    int rc = ks_jw_done(&w) ? ks_fail(err, KS_E_NOMEM, "out of memory for the plan") : 0;
    if (!rc) puts(w.text);
    ks_jw_fini(&w);
    return rc;
}

static int measure(report *r, ks_err *err)
{
    ks_meter m = { .pool = NULL };
    int rc = ks_meter_open(&m, r->a.pool, err);
    if (!rc) r->rates = ks_meter_best(&m);
    ks_meter_close(&m);
    return rc;
}

int ks_cmd_plan(ks_config *c, ks_cli *cli)
{
    report r = { .n_points = 0 };
    ks_err err = { 0 };
    (void)cli; /* flags only: the table says so */
    int rc = ks_app_plugins(c, &r.a, &err);
    if (!rc) rc = ks_app_model(&r.a, &err);
    if (!rc) rc = ks_plan_make(&r.a, &r.p, &err);
    if (!rc) rc = measure(&r, &err);
    if (!rc) {
        add_points(&r);
        if (ks_config_bool(c, "json"))
            rc = print_json(&r, &err);
        else
            print_text(&r);
    }
    if (!rc) rc = ks_plan_fits(&r.p, &err);
    ks_app_close(&r.a);
    return rc ? ks_app_fail(&err) : 0;
}
