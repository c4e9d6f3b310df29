/* Which device a model runs on. See gpu.h. Every line it logs says what was chosen, why, and which setting changes it.
 */
#include "app/gpu.h"

#include "app/cost.h"
#include "app/load.h"
#include "base/base.h"
#include "base/log.h"
#include <stdlib.h>

#define MAX_GPUS 64u
#define MAX_KV_BYTES ((uint64_t)4 << 30)
#define KV_SLACK_TOKENS 256u /* pages that are begun */
/* Rows of a step, where the user leaves it open. Experts go over the link once a step, so more rows read prompts
 * faster, as long as what they take is a small part of the memory. */
#define LEAST_STEP 256u
#define FIRST_STEP 2048u
#define STEP_PART 8u
#define DEFAULT_THRESHOLD 300u /* until rates are measured */

bool ks_gpu_selected(const char *list, const ks_device_info *gpu)
{
    if (strcmp(list, "all") == 0) return true;
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ",");
        char *end;
        unsigned long index = strtoul(p, &end, 10);
        if (end == p + n && end > p && index == gpu->index) return true;
        if (n && n == strlen(gpu->uuid) && strncasecmp(p, gpu->uuid, n) == 0) return true;
        p += n + (p[n] == ',');
    }
    return false;
}

static uint32_t count_words(const char *list)
{
    uint32_t n = *list != 0;
    for (const char *p = list; *p; p++) n += *p == ',';
    return n;
}

/* The GPUs that the settings name, in the order of their indices. */
static int list_gpus(const ks_app *a, const ks_plugin_entry *p, ks_device_info *ret, uint32_t *ret_n, ks_err *err)
{
    const ks_device_iface *d = p->desc.iface;
    const char *wanted = ks_config_str(a->config, "selected-gpus");
    uint32_t n = 0, all = 0;
    int rc = 0;
    for (; all < MAX_GPUS; all++) {
        ks_device_info info = { .size = sizeof info };
        rc = d->list(p->self, all, &info, err);
        if (rc) break;
        if (ks_gpu_selected(wanted, &info)) ret[n++] = info;
    }
    if (rc && rc != KS_E_NOTFOUND) return rc;
    if (strcmp(wanted, "all") != 0 && n < count_words(wanted))
        return ks_fail(err, KS_E_CONFIG, "--selected-gpus %s: %u of them exist among %u GPUs: see `krasis plugins`",
                       wanted, n, all);
    int64_t most = ks_config_int(a->config, "num-gpus");
    if (most > n)
        return ks_fail(err, KS_E_CONFIG, "--num-gpus %lld: %u GPU%s can be used", (long long)most, n,
                       n == 1 ? "" : "s");
    *ret_n = most > 0 ? (uint32_t)most : n;
    return n ? 0 : ks_fail(err, KS_E_NOTFOUND, "the plugin '%s' lists no GPU", p->name);
}

static int check_layers(const ks_app *a, ks_err *err)
{
    const char *text = ks_config_str(a->config, "pp-partition");
    uint32_t n = a->model.graph.n_layers;
    if (strcmp(text, "auto") == 0 || (count_words(text) == 1 && strtoul(text, NULL, 10) == n)) return 0;
    return ks_fail(err, KS_E_CONFIG, "--pp-partition %s: one GPU is used, so it must be %u, the layers of the model",
                   text, n);
}

/* Without --kv-cache-mb: an eighth of the GPU's memory, at least one context, at most what the CPU would take. */
static uint64_t kv_bytes(const ks_engine_opts *o, uint64_t memory)
{
    const ks_graph *g = &o->model->graph;
    uint64_t token = 0;
    for (uint32_t i = 0; i < g->n_states; i++)
        if (g->states[i].kind == KS_STATE_KV)
            token += (uint64_t)(g->states[i].k_width + g->states[i].v_width) * ks_type_bits(o->kv_type) / 8;
    uint64_t one = token * (o->n_ctx + KV_SLACK_TOKENS);
    return KS_MAX(one, KS_MIN(memory / 8, MAX_KV_BYTES));
}

static bool is(const ks_app *a, const char *name, const char *value)
{
    return strcmp(ks_config_str(a->config, name), value) == 0;
}

static bool is_set(const ks_app *a, const char *name)
{
    return ks_config_from(a->config, name) != KS_FROM_DEFAULT;
}

/* The best device plugin; refused: one that cannot run here will do. */
static ks_plugin_entry *best_device(const ks_app *a, bool refused)
{
    ks_plugin_entry *best = NULL;
    for (uint32_t i = 0; i < ks_registry_count(a->registry); i++) {
        ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        if (p->desc.kind != KS_KIND_DEVICE || !p->desc.iface || (p->state == KS_PLUGIN_REFUSED && !refused)) continue;
        if (!best || p->score > best->score) best = p;
    }
    return best;
}

int ks_gpu_precision(ks_app *a, ks_err *err)
{
    const int64_t gpu = ks_config_int(a->config, "gpu-expert-bits"), cpu = ks_config_int(a->config, "cpu-expert-bits");
    const bool cuda = is(a, "device", "cuda"), gpu_set = is_set(a, "gpu-expert-bits"),
               cpu_set = is_set(a, "cpu-expert-bits");
    a->expert_bits = cpu;
    if (is(a, "device", "cpu") || (is(a, "device", "auto") && !best_device(a, false))) return 0;
    if (!cuda && gpu_set && cpu_set && gpu != cpu)
        return ks_fail(
            err, KS_E_CONFIG,
            "--gpu-expert-bits %lld and --cpu-expert-bits %lld: GPU and CPU compute from the same bytes in memory: "
            "give both the same value, or let one compute all experts with --device cuda or cpu",
            (long long)gpu, (long long)cpu);
    if (gpu_set || (cuda && !cpu_set)) a->expert_bits = gpu;
    return 0;
}

/* ---- which card */

static int first_gpu(ks_app *a, ks_plugin_entry *p, ks_device_info *ret, ks_err *err)
{
    ks_device_info gpu[MAX_GPUS];
    uint32_t n = 0;
    int rc;
    if ((rc = ks_registry_choose(a->registry, KS_KIND_DEVICE, p->name, err)) ||
        (rc = ks_registry_start(a->registry, p, err)) || (rc = list_gpus(a, p, gpu, &n, err)) ||
        (rc = check_layers(a, err)))
        return rc;
    if (n > 1) {
        if (ks_config_from(a->config, "num-gpus") == KS_FROM_FLAG)
            return ks_fail(err, KS_E_CONFIG, "--num-gpus %u: one GPU at a time is supported", n);
        ks_log(KS_LOG_INFO, "device", "%u GPUs: the first is used (--selected-gpus chooses another)", n);
    }
    *ret = gpu[0];
    return 0;
}

/* A card of --vram-limit bytes, of the generation with the least shared memory. */
static int describe_gpu(const ks_app *a, ks_gpu *g, ks_err *err)
{
    ks_plugin_entry *p = best_device(a, true);
    const ks_device_iface *d = p ? p->desc.iface : NULL;
    if (!d || !d->plan)
        return ks_fail(err, KS_E_CONFIG, "--device %s: no GPU plugin is there to plan with: see `krasis plugins`",
                       ks_config_str(a->config, "device"));
    if (!g->budget)
        return ks_fail(
            err, KS_E_CONFIG,
            "--device %s: no usable GPU was found (see `krasis plugins`): --vram-limit SIZE plans for a card of "
            "that size",
            ks_config_str(a->config, "device"));
    g->plugin = p;
    g->described = true;
    g->card = (ks_device_info) { .size = sizeof g->card,
                                 .name = "a GPU of --vram-limit bytes",
                                 .mem_total_bytes = g->budget,
                                 .mem_free_bytes = g->budget,
                                 .cc_major = 8,
                                 .cc_minor = 6 };
    return 0;
}

int ks_gpu_find(ks_app *a, bool describe, ks_gpu *ret, ks_err *err)
{
    ks_gpu g = { .budget = (uint64_t)ks_config_int(a->config, "vram-limit"), .share = !is(a, "device", "cuda") };
    *ret = (ks_gpu) { .plugin = NULL };
    if (is(a, "device", "cpu")) return 0;
    g.plugin = best_device(a, false);
    if (!g.plugin && is(a, "device", "auto")) return 0; /* ks_app_prepare has said so */
    int rc = g.plugin ? first_gpu(a, g.plugin, &g.card, err) : 0;
    if (!g.plugin && !describe) /* in words that name the cure: as ks_app_prepare */
        rc = ks_fail(err, KS_E_CONFIG,
                     "--device %s: no usable GPU plugin was found (see `krasis plugins`): use --device cpu or auto",
                     ks_config_str(a->config, "device"));
    if (!g.plugin && describe) rc = describe_gpu(a, &g, err);
    if (rc) return rc;
    g.iface = g.plugin->desc.iface;
    *ret = g;
    return 0;
}

/* ---- how much of it */

static uint32_t expert_ops(const ks_graph *g)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->n_ops; i++) n += g->ops[i].kind == KS_OP_EXPERTS;
    return n;
}

static int set_stream(const ks_app *a, ks_engine_opts *o, ks_err *err)
{
    const int64_t divisor = ks_config_int(a->config, "expert-divisor"),
                  group = ks_config_int(a->config, "layer-group-size");
    const uint32_t layers = expert_ops(&a->model.graph);
    if (divisor >= 0 && group)
        return ks_fail(
            err, KS_E_CONFIG,
            "--expert-divisor %lld and --layer-group-size %lld say the same thing twice: give one of the two",
            (long long)divisor, (long long)group);
    o->stream = KS_STREAM_AUTO;
    if (!layers || (divisor < 0 && !group)) return 0;
    o->stream = divisor == 1 ? KS_STREAM_RESIDENT : divisor == 0 ? KS_STREAM_CHUNKS : KS_STREAM_GROUPS;
    if (o->stream == KS_STREAM_GROUPS)
        o->stream_layers =
            group ? (uint32_t)KS_MIN(group, (int64_t)layers) : (layers + (uint32_t)divisor - 1) / (uint32_t)divisor;
    return 0;
}

static void never(void *ctx, uint32_t op, uint32_t n_rows, const float *x, const int32_t *ids, const float *weights,
                  const uint8_t *keep, float *y)
{
    (void)ctx, (void)op, (void)n_rows, (void)x, (void)ids, (void)weights, (void)keep, (void)y;
}

static int try(ks_gpu *g, const ks_engine_opts *o, ks_err *err)
{
    ks_bind b;
    int rc = ks_engine_bind(o, &b, err);
    if (rc || !g->iface->plan) return rc;
    g->kv_tokens = (uint64_t)b.n_pages * b.page_tok;
    b.cold = g->share ? never : NULL; /* a plan asks whether, and calls nothing */
    g->plan = (ks_device_plan) { .size = sizeof g->plan };
    return g->iface->plan(g->plugin->self, &g->card, &b, g->budget, &g->plan, err);
}

static bool all_stay(const ks_gpu *g)
{
    return g->plan.n_resident == g->plan.n_experts;
}

/* Up to a step that holds a whole context, as long as the rows are worth it. */
static int grow(ks_gpu *g, ks_engine_opts *o, ks_err *err)
{
    while (g->plan.n_parts && !all_stay(g) && o->step_tokens < o->n_ctx) {
        ks_gpu g2 = *g;
        ks_engine_opts o2 = *o;
        o2.step_tokens = KS_MIN(2 * o->step_tokens, o->n_ctx);
        int rc = try(&g2, &o2, err);
        if (rc && rc != KS_E_LIMIT) return rc;
        if (rc || g2.plan.step_bytes > g2.plan.budget_bytes / STEP_PART) return 0;
        *g = g2;
        *o = o2;
    }
    return 0;
}

/* --gpu-prefill-threshold auto. */
static int measure_threshold(const ks_app *a, ks_gpu *g, ks_engine_opts *o, ks_err *err)
{
    const double link = g->card.link_bytes_s;
    ks_meter m = { .pool = NULL };
    if (!g->share || !g->plan.n_experts || all_stay(g) || link <= 0) return 0;
    int rc = ks_meter_open(&m, a->pool, err);
    if (rc) return rc;
    ks_rates r = ks_meter_best(&m);
    ks_meter_close(&m);
    const double cold = 1 - (double)g->plan.n_resident / g->plan.n_experts;
    o->share_rows = ks_cost_share_rows(&a->model.graph, cold, link, &r, o->step_tokens + 1);
    ks_log(KS_LOG_INFO, "device",
           "--gpu-prefill-threshold auto: %u, from a CPU that reads %.1f GB/s and does %.0f G int8 multiply-adds a "
           "second, "
           "and a link of %.1f GB/s",
           o->share_rows, r.read / 1e9, r.int8 / 1e9, link / 1e9);
    return try(g, o, err);
}

int ks_gpu_fit(const ks_app *a, ks_gpu *g, ks_engine_opts *o, ks_err *err)
{
    const uint64_t memory = g->budget ? g->budget : g->card.mem_free_bytes;
    const bool free_step = !is_set(a, "step-tokens"), free_kv = !o->kv_bytes;
    int64_t threshold = ks_config_int(a->config, "gpu-prefill-threshold");
    int rc = set_stream(a, o, err);
    if (rc) return rc;
    if (free_step) o->step_tokens = FIRST_STEP;
    if (free_kv) o->kv_bytes = kv_bytes(o, memory);
    o->share_rows = threshold > 0 ? (uint32_t)threshold : DEFAULT_THRESHOLD;
    if ((rc = try(g, o, err)) == KS_E_LIMIT && free_kv && o->kv_bytes > kv_bytes(o, 0)) {
        o->kv_bytes = kv_bytes(o, 0); /* of one context */
        rc = try(g, o, err);
    }
    while (rc == KS_E_LIMIT && free_step && o->step_tokens > LEAST_STEP && o->step_tokens / 2 >= o->max_running) {
        o->step_tokens /= 2;
        rc = try(g, o, err);
    }
    if (!rc && free_step) rc = grow(g, o, err);
    return rc || threshold > 0 ? rc : measure_threshold(a, g, o, err);
}

/* ---- the choice */

static void say(const ks_app *a, const ks_gpu *g, const ks_engine_opts *o)
{
    const ks_device_plan *p = &g->plan;
    ks_log(KS_LOG_INFO, "device", "GPU %u: %s, %.1f of %.1f GB free, link %.1f GB/s: it computes %s (--device %s)",
           g->card.index, g->card.name, (double)g->card.mem_free_bytes / 1e9, (double)g->card.mem_total_bytes / 1e9,
           g->card.link_bytes_s / 1e9, g->share ? "together with the CPU" : "alone",
           is(a, "device", "auto") ? "auto; --device cpu leaves it out" : ks_config_str(a->config, "device"));
    if (!p->n_parts) return;
    ks_log(KS_LOG_INFO, "device",
           "plan: %.2f of %.2f GB (--vram-limit), KV cache of %llu tokens (--kv-cache-mb), steps of up to %u tokens "
           "(--step-tokens), %u of %u experts stay, %u places for those on their way (--expert-divisor); `krasis plan` "
           "shows more",
           (double)p->used_bytes / 1e9, (double)p->budget_bytes / 1e9, (unsigned long long)g->kv_tokens, o->step_tokens,
           p->n_resident, p->n_experts, p->n_ring);
    if (p->share_rows > 1 && !all_stay(g))
        ks_log(KS_LOG_INFO, "device",
               "steps of fewer than %u tokens stream no experts: the CPU computes those that are not in GPU memory "
               "(--gpu-prefill-threshold)",
               o->share_rows);
}

static int use_gpu(ks_app *a, ks_engine_opts *o, ks_err *err)
{
    ks_engine_opts mine = *o;
    ks_gpu g;
    int rc = ks_gpu_find(a, false, &g, err);
    if (rc || !g.plugin) return rc;
    if ((rc = ks_gpu_fit(a, &g, &mine, err))) return rc;
    say(a, &g, &mine);
    a->split = (ks_split_ctx) { .main = g.iface,
                                .rest = &ks_cpu_device_iface,
                                .main_self = g.plugin->self,
                                .rest_self = &a->cpu,
                                .main_index = g.card.index,
                                .share = g.share,
                                .main_budget = g.budget };
    a->gpu = g.card;
    mine.device = &ks_split_device_iface;
    mine.device_self = &a->split;
    if (is(a, "gpu-failure", "stop")) {
        mine.stop_when_lost = true;
    } else {
        mine.fallback = &ks_cpu_device_iface;
        mine.fallback_self = &a->cpu;
    }
    *o = mine;
    return 0;
}

int ks_gpu_choose(ks_app *a, ks_engine_opts *o, ks_err *err)
{
    ks_err e = { 0 };
    o->device = &ks_cpu_device_iface;
    o->device_self = &a->cpu;
    int rc = use_gpu(a, o, &e);
    if (rc && is(a, "device", "auto") && rc != KS_E_CONFIG) {
        ks_log(KS_LOG_WARN, "device", "%s: the CPU computes (--device hybrid makes this an error)", e.msg);
        return 0;
    }
    return rc ? ks_fail(err, rc, "%s", e.msg) : 0;
}
