/* krasis check: everything a start would find wrong, found before 200 GB are read: settings, plugins, the model's
 * description, every tensor it needs, and the memory plan. Computes and writes nothing. */
#include "app/cmd.h"
#include "app/plan.h"
#include "base/base.h"
#include <inttypes.h>

static int print_plan(ks_app *a, ks_err *err)
{
    static const char *const names[] = {
#define KS_CLS_NAME(name, num, text) [num] = text,
        KS_CLS_MAP(KS_CLS_NAME)
#undef KS_CLS_NAME
    };
    const ks_graph *g = &a->model.graph;
    ks_plan p;
    int rc = ks_plan_make(a, &p, err);
    if (rc) return rc;
    printf("model      %s (%s), %u layers, width %u, vocabulary %u, context up to %u\n", a->name, a->model.arch,
           g->n_layers, g->d_model, g->n_vocab, g->n_ctx);
    for (uint32_t i = 0; i < KS_COUNT(names); i++)
        if (p.class_bytes[i]) printf("weights    %-10s %10.1f MB\n", names[i], (double)p.class_bytes[i] / 1e6);
    printf("KV cache   %" PRIu64 " bytes a token as %s: %.1f MB for one context of %u\n", p.kv_token_bytes,
           ks_config_str(a->config, "kv-dtype"), (double)p.kv_bytes / 1e6, p.context);
    printf("memory     %.1f MB of weights, %.1f MB of RAM may be used\n", (double)p.weight_bytes / 1e6,
           (double)p.limit_bytes / 1e6);
    rc = ks_plan_fits(&p, err);
    return rc ? rc : ks_app_device(a, p.context, err);
}

int ks_cmd_check(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    (void)cli; /* flags only: the table says so */
    int rc = ks_app_plugins(c, &a, &err);
    if (!rc) rc = ks_registry_choose(a.registry, KS_KIND_FRONTEND, ks_config_str(c, "frontends"), &err);
    if (!rc) rc = ks_app_settings(&a, &err);
    if (!rc && (*ks_config_str(c, "model-path") || *ks_config_str(c, "gguf-path"))) {
        rc = ks_app_model(&a, &err);
        if (!rc) rc = print_plan(&a, &err);
    } else if (!rc) {
        puts("model      none given: settings and plugins were checked");
    }
    if (!rc) puts("ok");
    ks_app_close(&a);
    return rc ? ks_app_fail(&err) : 0;
}
