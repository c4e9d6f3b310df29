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
    ks_gpu gpu; /* plugin NULL: the CPU alone */
    ks_engine_opts opts;
    ks_err gpu_err; /* code 0: it fits */
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

/* ---- the GPU's part */

/* Bytes that a step of many rows sends: all experts that do not stay. */
static double stream_bytes(const ks_device_plan *p)
{
    return (double)(p->n_experts - p->n_resident) * (double)p->expert_bytes;
}

/* Tokens a second, at most, that the link allows for prompts of at least a step; 0: nothing is sent, or no rate known.
 */
static double link_bound(const report *r)
{
    const double bytes = stream_bytes(&r->gpu.plan);
    return bytes > 0 ? r->opts.step_tokens * r->gpu.card.link_bytes_s / bytes : 0;
}

/* The same for writing one answer: the CPU's share of the experts, if all are asked for alike. */
static double share_bound(const report *r)
{
    const ks_device_plan *p = &r->gpu.plan;
    const double cold = p->n_experts ? 1 - (double)p->n_resident / p->n_experts : 0;
    const double bytes = cold * r->points[0].s.bytes[KS_CLS_EXPERT];
    return p->share_rows > 1 && bytes > 0 ? r->rates.read / bytes : 0;
}

static const char *strategy(const report *r)
{
    if (r->gpu.plan.n_resident == r->gpu.plan.n_experts) return "all stay";
    switch (r->opts.stream) {
    case KS_STREAM_GROUPS: return "layer groups";
    case KS_STREAM_CHUNKS: return "chunks within a layer";
    default: return "as many as fit stay";
    }
}

static void print_gpu(const report *r)
{
    const ks_device_plan *p = &r->gpu.plan;
    printf("\nGPU      %s: %s\n\n", r->gpu.card.name,
           r->gpu.described ? "not here, sizes hold for any card of compute capability 8.6"
           : r->gpu.share   ? "computes together with the CPU"
                            : "computes alone");
    printf("%-26s %12s  %s\n", "part on the GPU", "memory MB", "changed by");
    for (uint32_t i = 0; i < p->n_parts; i++)
        printf("%-26s %12.1f  %s\n", p->parts[i].what, (double)p->parts[i].bytes / 1e6, p->parts[i].setting);
    printf("%-26s %12.1f  %.1f MB may be used (--vram-limit)\n\n", "total", (double)p->used_bytes / 1e6,
           (double)p->budget_bytes / 1e6);
    if (p->n_experts)
        printf("experts  %u of %u stay, %u places for the others on their way: %s (--expert-divisor)\n", p->n_resident,
               p->n_experts, p->n_ring, strategy(r));
    printf("KV cache of %llu tokens, all conversations together (--kv-cache-mb)\n",
           (unsigned long long)r->gpu.kv_tokens);
    printf("steps    of up to %u tokens (--step-tokens), each sends at most %.2f GB over the link\n",
           r->opts.step_tokens, stream_bytes(p) / 1e9);
    if (p->share_rows > 1 && stream_bytes(p) > 0)
        printf("         with fewer than %u tokens none: the CPU computes the experts that do not stay "
               "(--gpu-prefill-threshold)\n",
               p->share_rows);
    if (link_bound(r) > 0)
        printf("speed    reading prompts: at most %.0f tokens a second, by the link (%.1f GB/s)\n", link_bound(r),
               r->gpu.card.link_bytes_s / 1e9);
    if (share_bound(r) > 0)
        printf("speed    writing an answer: at most %.1f tokens a second, by the CPU's experts, if all are asked for "
               "alike\n",
               share_bound(r));
}

static void put(ks_jw *w, const char *key, double v)
{
    ks_jw_key(w, key);
    ks_jw_f64(w, v);
}

static void put_text(ks_jw *w, const char *key, const char *text)
{
    ks_jw_key(w, key);
    ks_jw_str(w, text);
}

static void put_gpu(ks_jw *w, const report *r)
{
    const ks_device_plan *p = &r->gpu.plan;
    ks_jw_key(w, "gpu");
    ks_jw_object(w);
    put_text(w, "name", r->gpu.card.name);
    ks_jw_key(w, "described");
    ks_jw_bool(w, r->gpu.described);
    ks_jw_key(w, "fits");
    ks_jw_bool(w, r->gpu_err.code == 0);
    put(w, "budget_bytes", (double)p->budget_bytes);
    put(w, "used_bytes", (double)p->used_bytes);
    put(w, "pinned_bytes", (double)p->pinned_bytes);
    put(w, "experts", p->n_experts);
    put(w, "experts_that_stay", p->n_resident);
    put(w, "expert_bytes", (double)p->expert_bytes);
    put(w, "ring", p->n_ring);
    put_text(w, "strategy", strategy(r));
    put(w, "step_tokens", r->opts.step_tokens);
    put(w, "kv_tokens", (double)r->gpu.kv_tokens);
    put(w, "share_rows", p->share_rows);
    put(w, "step_stream_bytes", stream_bytes(p));
    put(w, "link_bytes_s", r->gpu.card.link_bytes_s);
    put(w, "read_bound_tok_s", link_bound(r));
    put(w, "write_bound_tok_s", share_bound(r));
    ks_jw_key(w, "parts");
    ks_jw_array(w);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        ks_jw_object(w);
        put_text(w, "part", p->parts[i].what);
        put(w, "bytes", (double)p->parts[i].bytes);
        put_text(w, "setting", p->parts[i].setting);
        ks_jw_object_end(w);
    }
    ks_jw_array_end(w);
    ks_jw_object_end(w);
}

/* ---- all of it */

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
    printf("%-24s %14s %18s  %s\n", r->gpu.plugin ? "speed of the CPU alone" : "speed, tokens a second", "at most",
           "expect about", "limited by");
    for (uint32_t i = 0; i < r->n_points; i++)
        printf("%-24s %14.1f %18.1f  %s\n", r->points[i].name, r->points[i].s.bound, r->points[i].s.expect,
               r->points[i].s.limit);
    if (r->gpu.plugin) print_gpu(r);
}

static int print_json(const report *r, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_object(&w);
    put_text(&w, "model", r->a.name);
    put_text(&w, "arch", r->a.model.arch);
    put(&w, "context", r->p.context);
    put(&w, "threads", r->a.n_threads);
    put(&w, "read_bytes_s", r->rates.read);
    put(&w, "int8_macs_s", r->rates.int8);
    put(&w, "f32_macs_s", r->rates.f32);
    put(&w, "attention_macs_s", r->rates.attn);
    put(&w, "limit_bytes", (double)r->p.limit_bytes);
    ks_jw_key(&w, "parts");
    ks_jw_array(&w);
    for (uint32_t i = 0; i < KS_PLAN_PARTS; i++) {
        if (!memory_of(r, i)) continue;
        ks_jw_object(&w);
        put_text(&w, "part", parts[i]);
        put_text(&w, "type", type_of(r, i));
        put_text(&w, "device", "cpu");
        put(&w, "bytes", (double)memory_of(r, i));
        put(&w, "read_a_token_bytes", r->points[0].s.bytes[i]);
        ks_jw_object_end(&w);
    }
    ks_jw_array_end(&w);
    ks_jw_key(&w, "speeds");
    ks_jw_array(&w);
    for (uint32_t i = 0; i < r->n_points; i++) {
        ks_jw_object(&w);
        put_text(&w, "what", r->points[i].name);
        put(&w, "bound_tok_s", r->points[i].s.bound);
        put(&w, "expect_tok_s", r->points[i].s.expect);
        put_text(&w, "bound_by", r->points[i].s.limit);
        ks_jw_object_end(&w);
    }
    ks_jw_array_end(&w);
    if (r->gpu.plugin) put_gpu(&w, r);
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

/* A GPU that nobody insists on and that cannot be used is told; the CPU's part is the plan then. */
static int plan_gpu(report *r, ks_err *err)
{
    const bool insists = strcmp(ks_config_str(r->a.config, "device"), "auto") != 0;
    ks_err *e = &r->gpu_err;
    r->opts = ks_app_engine_opts(&r->a, r->p.context);
    int rc = ks_gpu_find(&r->a, true, &r->gpu, e);
    if (!rc && r->gpu.plugin) rc = ks_gpu_fit(&r->a, &r->gpu, &r->opts, e);
    e->code = rc;
    if (!rc || (rc == KS_E_LIMIT && r->gpu.plan.n_parts)) return 0; /* the parts are shown first */
    r->gpu = (ks_gpu) { .plugin = NULL };
    if (insists || rc == KS_E_CONFIG) return ks_fail(err, rc, "%s", e->msg);
    fprintf(stderr, "krasis: %s: the CPU computes\n", e->msg);
    return 0;
}

int ks_cmd_plan(ks_config *c, ks_cli *cli)
{
    report r = { .n_points = 0 };
    ks_err err = { 0 };
    (void)cli; /* flags only: the table says so */
    int rc = ks_app_plugins(c, &r.a, &err);
    if (!rc) rc = ks_gpu_precision(&r.a, &err);
    if (!rc) rc = ks_app_model(&r.a, &err);
    if (!rc) rc = ks_plan_make(&r.a, &r.p, &err);
    if (!rc) rc = plan_gpu(&r, &err);
    if (!rc) rc = measure(&r, &err);
    if (!rc) {
        add_points(&r);
        if (ks_config_bool(c, "json"))
            rc = print_json(&r, &err);
        else
            print_text(&r);
    }
    if (!rc && r.gpu_err.code && r.gpu.plugin) rc = ks_fail(&err, r.gpu_err.code, "%s", r.gpu_err.msg);
    if (!rc) rc = ks_plan_fits(&r.p, &err);
    ks_app_close(&r.a);
    return rc ? ks_app_fail(&err) : 0;
}
