/* Which device a model runs on. See gpu.h. Every line it logs says what was chosen, why, and which setting changes it.
 */
#include "app/gpu.h"

#include "base/base.h"
#include "base/log.h"
#include <stdlib.h>

#define MAX_GPUS 64u
#define MAX_KV_BYTES ((uint64_t)4 << 30)
#define KV_SLACK_TOKENS 256u  /* pages that are begun */
#define GPU_STEP_TOKENS 2048u /* experts go over the link once a step: four times the CPU's step */

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
    return n ? 0 : ks_fail(err, KS_E_CONFIG, "the plugin '%s' lists no GPU", p->name);
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

static int use_gpu(ks_app *a, ks_engine_opts *o, ks_plugin_entry *p, ks_err *err)
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
            return ks_fail(err, KS_E_UNSUPPORTED, "--num-gpus %u: one GPU at a time is supported", n);
        ks_log(KS_LOG_INFO, "device", "%u GPUs: the first is used (--selected-gpus chooses another)", n);
    }
    uint64_t budget = (uint64_t)ks_config_int(a->config, "vram-limit");
    a->split = (ks_split_ctx) { .main = p->desc.iface,
                                .rest = &ks_cpu_device_iface,
                                .main_self = p->self,
                                .rest_self = &a->cpu,
                                .main_index = gpu[0].index,
                                .share = strcmp(ks_config_str(a->config, "device"), "cuda") != 0,
                                .main_budget = budget };
    if (ks_config_from(a->config, "step-tokens") == KS_FROM_DEFAULT) o->step_tokens = GPU_STEP_TOKENS;
    if (!o->kv_bytes) o->kv_bytes = kv_bytes(o, budget ? budget : gpu[0].mem_free_bytes);
    o->device = &ks_split_device_iface;
    o->device_self = &a->split;
    ks_log(KS_LOG_INFO, "device",
           "GPU %u: %s, %.1f of %.1f GB free, %.1f GB used at most (--vram-limit), link %.1f GB/s", gpu[0].index,
           gpu[0].name, (double)gpu[0].mem_free_bytes / 1e9, (double)gpu[0].mem_total_bytes / 1e9,
           (double)(budget ? budget : gpu[0].mem_free_bytes) / 1e9, gpu[0].link_bytes_s / 1e9);
    ks_log(KS_LOG_INFO, "device", "steps of up to %u tokens (--step-tokens)", o->step_tokens);
    return 0;
}

static ks_plugin_entry *best_device(const ks_app *a)
{
    ks_plugin_entry *best = NULL;
    for (uint32_t i = 0; i < ks_registry_count(a->registry); i++) {
        ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        if (p->desc.kind != KS_KIND_DEVICE || p->state == KS_PLUGIN_REFUSED) continue;
        if (!best || p->score > best->score) best = p;
    }
    return best;
}

int ks_app_choose_device(ks_app *a, ks_engine_opts *o, ks_err *err)
{
    const char *device = ks_config_str(a->config, "device");
    ks_plugin_entry *p = strcmp(device, "cpu") == 0 ? NULL : best_device(a);
    o->device = &ks_cpu_device_iface;
    o->device_self = &a->cpu;
    if (!p) return 0; /* ks_app_open has said so, or refused */
    if (strcmp(device, "auto") != 0) return use_gpu(a, o, p, err);
    ks_log(KS_LOG_INFO, "device", "a GPU is usable, the CPU computes: --device hybrid uses it");
    return 0;
}
