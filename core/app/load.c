/* Loading: see load.h. Every line it logs says what was chosen, why, and which setting changes it. */
#include "app/load.h"

#include "app/gpu.h"
#include "app/plan.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include "ref/ref.h"
#include "store/synth.h"

#define KS_MAX_CORES 1024u

/* ---- plugins and pool */

struct host_task {
    void (*task)(void *arg, uint32_t i);
    void *arg;
};

static void host_range(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct host_task *t = arg;
    (void)worker;
    for (uint32_t i = begin; i < end; i++) t->task(t->arg, i);
}

static void host_parallel(void *ctx, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    struct host_task t = { task, arg };
    ks_pool_run(((ks_app *)ctx)->pool, n, 1, host_range, &t);
}

static int open_pool(ks_app *a, ks_err *err)
{
    uint32_t cpus[KS_MAX_CORES], cores = ks_cpu_cores(cpus, KS_MAX_CORES);
    int64_t bound = ks_config_int(a->config, "krasis-threads");
    a->n_threads = bound > 0 && (uint64_t)bound < cores ? (uint32_t)bound : cores;
    ks_log(KS_LOG_INFO, "cpu", "%s: %u of %u usable cores compute (--krasis-threads %lld is the upper bound)",
           ks_cpu_brand(), a->n_threads, cores, (long long)bound);
    ks_pool_opts o = { .n_threads = a->n_threads, .cpus = cpus };
    return ks_pool_open(&o, &a->pool, err);
}

/* The server's own flags reach the frontend as its settings; an INI section of the plugin may say more. */
static const char *const forwarded[] = { "host", "port", "api-key", "api-key-file" };

static int open_registry(ks_app *a, ks_err *err)
{
    uint32_t n = ks_config_n_plugin(a->config), m = 0;
    ks_plugin_setting *s = ks_calloc(n + KS_COUNT(forwarded), sizeof *s);
    if (!s) return ks_fail(err, KS_E_NOMEM, "out of memory for the plugins' settings");
    for (size_t i = 0; i < KS_COUNT(forwarded); i++)
        if (ks_config_from(a->config, forwarded[i]) != KS_FROM_DEFAULT || strcmp(forwarded[i], "host") == 0 ||
            strcmp(forwarded[i], "port") == 0)
            s[m++] = (ks_plugin_setting) { "http", forwarded[i], ks_config_str(a->config, forwarded[i]),
                                           ks_config_origin(a->config, forwarded[i]) };
    for (uint32_t i = 0; i < n; i++, m++)
        ks_config_plugin(a->config, i, &s[m].plugin, &s[m].key, &s[m].value, &s[m].origin);
    a->n_dirs = ks_plugin_dirs(ks_config_str(a->config, "plugin-dir"), a->dirs, KS_COUNT(a->dirs));
    const char *wanted[] = { ks_config_str(a->config, "kernels"), ks_config_str(a->config, "frontends") };
    ks_registry_opts o = { .dirs = (const char *const *)a->dirs,
                           .n_dirs = a->n_dirs,
                           .wanted = wanted,
                           .n_wanted = KS_COUNT(wanted),
                           .cpu = ks_cpu_features(),
                           .n_threads = a->n_threads,
                           .settings = s,
                           .n_settings = m,
                           .parallel = host_parallel,
                           .parallel_ctx = a };
    int rc = ks_registry_open(&o, &a->registry, err);
    free(s);
    if (!rc) rc = ks_registry_add(a->registry, &ks_ref_plugin, "(built in)", err);
    return rc ? rc : ks_registry_add(a->registry, &ks_synth_plugin, "(built in)", err);
}

static void note_gpu(void *ctx, const char *line)
{
    (void)ctx;
    ks_log(KS_LOG_INFO, "device", "%s", line);
}

int ks_app_settings(ks_app *a, ks_err *err)
{
    bool gpu = false;
    for (uint32_t i = 0; i < ks_registry_count(a->registry); i++) {
        const ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        gpu |= p->desc.kind == KS_KIND_DEVICE && p->state != KS_PLUGIN_REFUSED;
    }
    const char *device = ks_config_str(a->config, "device");
    if (!gpu && (strcmp(device, "cuda") == 0 || strcmp(device, "hybrid") == 0))
        return ks_fail(err, KS_E_CONFIG,
                       "--device %s: no usable GPU plugin was found (see `krasis plugins`): use --device cpu or auto",
                       device);
    int rc = gpu ? 0 : ks_config_no_gpu(a->config, note_gpu, NULL, err);
    if (!rc && !gpu) ks_log(KS_LOG_INFO, "device", "no usable GPU: everything runs on the CPU");
    return rc ? rc : ks_gpu_precision(a, err);
}

int ks_app_plugins(ks_config *c, ks_app *a, ks_err *err)
{
    *a = (ks_app) { .config = c };
    int rc;
    if ((rc = open_pool(a, err)) || (rc = open_registry(a, err))) return rc;
    if ((rc = ks_registry_choose(a->registry, KS_KIND_KERNELS, ks_config_str(c, "kernels"), err))) return rc;
    for (uint32_t i = 0; i < ks_registry_count(a->registry); i++) {
        ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        if (p->state != KS_PLUGIN_CHOSEN) continue;
        if (p->desc.kind == KS_KIND_KERNELS && (rc = ks_registry_start(a->registry, p, err))) return rc;
        ks_log(KS_LOG_INFO, "plugins", "kernels: %s, score %d (--kernels changes it, `krasis plugins` explains)",
               p->name, p->score);
    }
    return ks_kernel_table_new(a->registry, &a->kernels, err);
}

/* ---- model */

static uint32_t type_of_bits(int64_t bits)
{
    return bits == 4 ? KS_T_I4 : bits == 8 ? KS_T_I8 : KS_T_BF16;
}

static uint32_t type_of_name(const char *s)
{
    return strcmp(s, "int8") == 0 ? KS_T_I8 : strcmp(s, "int4") == 0 ? KS_T_I4 : KS_T_BF16;
}

void ks_app_types(const ks_app *a, ks_store_opts *o)
{
    const ks_config *c = a->config;
    uint32_t *t = o->type;
    for (int i = 0; i < 16; i++) t[i] = KS_T_BF16;
    t[KS_CLS_EXPERT] = type_of_bits(a->expert_bits ? a->expert_bits : ks_config_int(c, "cpu-expert-bits"));
    o->narrow = type_of_bits(ks_config_int(c, "narrow-expert-bits"));
    t[KS_CLS_ATTN] = type_of_name(ks_config_str(c, "attention-quant"));
    t[KS_CLS_SHARED] = type_of_name(ks_config_str(c, "shared-expert-quant"));
    t[KS_CLS_DENSE] = type_of_name(ks_config_str(c, "dense-mlp-quant"));
    t[KS_CLS_HEAD] = type_of_name(ks_config_str(c, "lm-head-quant"));
}

uint32_t ks_app_kv_type(const ks_config *c)
{
    const char *s = ks_config_str(c, "kv-dtype");
    return strcmp(s, "f32") == 0 ? KS_T_F32 : strcmp(s, "bf16") == 0 ? KS_T_BF16 : KS_T_F8E4M3;
}

int ks_app_model(ks_app *a, ks_err *err)
{
    const char *path = ks_config_str(a->config, "model-path"), *gguf = ks_config_str(a->config, "gguf-path");
    if (*path && *gguf)
        return ks_fail(
            err, KS_E_UNSUPPORTED,
            "--gguf-path '%s' beside --model-path: experts from a second file are not supported, give one of the two",
            gguf);
    if (*gguf) path = gguf;
    if (!*path)
        return ks_fail(err, KS_E_CONFIG,
                       "no model: give --model-path DIR, or model-path in the [model] section of the INI file");
    char clean[4096];
    int n = snprintf(clean, sizeof clean, "%s", path);
    if (n < 0 || (size_t)n >= sizeof clean)
        return ks_fail(err, KS_E_CONFIG, "--model-path has %d bytes: at most %zu are allowed", n, sizeof clean - 1);
    while (n > 1 && clean[n - 1] == '/') clean[--n] = 0;
    const char *slash = strrchr(clean, '/');
    (void)snprintf(a->name, sizeof a->name, "%.*s", (int)sizeof a->name - 1, slash ? slash + 1 : clean);
    int rc = ks_ckpt_open(a->registry, clean, &a->ckpt, err);
    return rc ? rc : ks_model_open(a->ckpt, &a->model, err);
}

int ks_app_weights(ks_app *a, ks_err *err)
{
    ks_store_opts o = { .rebuild = ks_config_bool(a->config, "force-load"),
                        .verify = ks_config_bool(a->config, "verify"),
                        .pool = a->pool };
    const char *dir = ks_config_str(a->config, "cache-dir");
    if (*dir) o.cache_dir = dir;
    ks_app_types(a, &o);
    uint64_t t0 = ks_now_ns();
    int rc = ks_store_open(a->ckpt, a->model.specs, a->model.graph.n_weights, &o, a->model.weights, &a->store, err);
    if (rc) return rc;
    ks_log(KS_LOG_INFO, "weights", "%.1f MB (experts %s, attention %s, head %s) %s in %.1f s",
           (double)ks_store_bytes(a->store) / 1e6, ks_type_name(o.type[KS_CLS_EXPERT]),
           ks_type_name(o.type[KS_CLS_ATTN]), ks_type_name(o.type[KS_CLS_HEAD]),
           ks_store_was_cached(a->store) ? "from the cache" : "quantized", (double)(ks_now_ns() - t0) / 1e9);
    return 0;
}

static int open_text(ks_app *a, ks_err *err)
{
    const char *dir = ks_ckpt_dir(a->ckpt);
    ks_err e = { 0 };
    int rc = ks_tokenizer_open(dir, &a->tok, &e);
    if (rc == KS_E_NOTFOUND) {
        ks_log(KS_LOG_WARN, "text", "%s: requests must hold token ids", e.msg);
        return 0;
    }
    if (rc) return ks_fail(err, rc, "%s", e.msg);
    char *source = NULL;
    size_t n = 0;
    rc = ks_template_find(dir, NULL, &source, &n, &e);
    if (rc == KS_E_NOTFOUND) {
        ks_log(KS_LOG_WARN, "text", "%s: only completions are served, no chat", e.msg);
        return 0;
    }
    if (!rc && (rc = ks_template_new(source, n, &a->chat, &e))) {
        (void)ks_err_wrap(&e, "the chat template"); /* the code stays the same */
        (void)ks_err_wrap(&e, dir);
    }
    a->chat_developer = !rc && memmem(source, n, "developer", 9);
    free(source);
    return rc ? ks_fail(err, rc, "%s", e.msg) : 0;
}

/* A GPU that nobody insists on and that fails at the last moment is a line in the log. */
static int open_on(ks_app *a, ks_engine_opts *o, ks_err *err)
{
    ks_err e = { 0 };
    int rc = ks_engine_open(o, &a->engine, &e);
    bool insists = strcmp(ks_config_str(a->config, "device"), "auto") != 0;
    if (!rc || o->device == &ks_cpu_device_iface || insists) return rc ? ks_fail(err, rc, "%s", e.msg) : 0;
    ks_log(KS_LOG_WARN, "device", "%s: the CPU computes", e.msg);
    ks_engine_opts plain = ks_app_engine_opts(a, o->n_ctx);
    o->step_tokens = plain.step_tokens;
    o->kv_bytes = plain.kv_bytes;
    o->device = &ks_cpu_device_iface;
    o->device_self = &a->cpu;
    return ks_engine_open(o, &a->engine, err);
}

ks_engine_opts ks_app_engine_opts(const ks_app *a, uint32_t context)
{
    const ks_config *c = a->config;
    return (ks_engine_opts) { .model = &a->model,
                              .pool = a->pool,
                              .name = a->name,
                              .path = ks_config_str(c, "model-path"),
                              .n_ctx = context,
                              .kv_type = ks_app_kv_type(c),
                              .kv_bytes = (uint64_t)ks_config_int(c, "kv-cache-mb") << 20,
                              .max_running = (uint32_t)ks_config_int(c, "max-running"),
                              .max_waiting = (uint32_t)ks_config_int(c, "max-waiting"),
                              .step_tokens = (uint32_t)ks_config_int(c, "step-tokens"),
                              .busy_tokens = (uint32_t)ks_config_int(c, "busy-step-tokens") };
}

static int open_engine(ks_app *a, ks_err *err)
{
    char *generation = NULL, *path = ks_path_join(ks_ckpt_dir(a->ckpt), "generation_config.json");
    if (!path) return ks_fail(err, KS_E_NOMEM, "out of memory");
    int rc = ks_file_exists(path) ? ks_file_read(path, 1 << 20, &generation, NULL, err) : 0;
    free(path);
    if (rc) return rc;
    a->opts.tok = a->tok;
    a->opts.chat = a->chat;
    a->opts.chat_developer = a->chat_developer;
    a->opts.generation_config = generation;
    ks_heat_prepare(a, &a->opts);
    rc = open_on(a, &a->opts, err);
    a->opts.generation_config = NULL;
    a->opts.heat = NULL;
    free(generation);
    if (!rc)
        ks_log(KS_LOG_INFO, "engine", "%s (%s): context %u tokens (--context), KV cache %s (--kv-dtype)", a->name,
               a->model.arch, a->opts.n_ctx, ks_config_str(a->config, "kv-dtype"));
    return rc ? rc : ks_heat_calibrate(a, err);
}

int ks_app_device(ks_app *a, uint32_t context, ks_err *err)
{
    a->context = context;
    a->cpu = (ks_cpu_ctx) { .pool = a->pool, .kernels = a->kernels };
    a->opts = ks_app_engine_opts(a, context);
    return ks_gpu_choose(a, &a->opts, err);
}

int ks_app_prepare(ks_config *c, ks_app *a, ks_err *err)
{
    ks_plan plan;
    int rc;
    if ((rc = ks_app_plugins(c, a, err)) || (rc = ks_app_settings(a, err)) || (rc = ks_app_model(a, err)) ||
        (rc = ks_plan_make(a, &plan, err)) || (rc = ks_plan_fits(&plan, err)))
        return rc;
    return ks_app_device(a, plan.context, err);
}

int ks_app_start(ks_app *a, ks_err *err)
{
    int rc = open_text(a, err);
    return rc ? rc : open_engine(a, err);
}

int ks_app_open(ks_config *c, ks_app *a, ks_err *err)
{
    int rc;
    if ((rc = ks_app_prepare(c, a, err)) || (rc = ks_app_weights(a, err))) return rc;
    return ks_app_start(a, err);
}

void ks_app_close(ks_app *a)
{
    ks_heat_save(a);
    ks_engine_close(a->engine);
    ks_heat_fini(a);
    ks_template_free(a->chat);
    ks_tokenizer_close(a->tok);
    ks_store_close(a->store);
    ks_model_close(&a->model);
    ks_ckpt_close(a->ckpt);
    ks_kernel_table_free(a->kernels);
    ks_registry_close(a->registry);
    ks_pool_close(a->pool);
    for (uint32_t i = 0; i < a->n_dirs; i++) free(a->dirs[i]);
    *a = (ks_app) { 0 };
}

int ks_app_fail(const ks_err *err)
{
    fprintf(stderr, "krasis: %s\n", err->msg[0] ? err->msg : ks_error_text(err->code));
    switch (err->code) {
    case KS_E_NOMEM:
    case KS_E_BUSY:
    case KS_E_CANCELED:
    case KS_E_DEVICE:
    case KS_E_INTERNAL: return 1;
    default: return 2;
    }
}
