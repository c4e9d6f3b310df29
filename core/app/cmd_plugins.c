/* krasis plugins: what was found, what is chosen, what is refused, and why; or which plugin computes what. */
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include <krasis/json.h>
#include <string.h>

static const char *kind_name(uint32_t kind)
{
    switch (kind) {
    case KS_KIND_KERNELS: return "kernels";
    case KS_KIND_DEVICE: return "device";
    case KS_KIND_LOADER: return "loader";
    case KS_KIND_FRONTEND: return "frontend";
    default: return "?"; /* unreadable */
    }
}

static const char *state_name(int state)
{
    return state == KS_PLUGIN_REFUSED ? "refused" : state == KS_PLUGIN_USABLE ? "standby" : "chosen";
}

static const char *why(const ks_plugin_entry *p)
{
    return p->why[0] ? p->why : p->desc.summary ? p->desc.summary : "";
}

static const char *version(const ks_plugin_entry *p)
{
    return p->desc.version ? p->desc.version : "-";
}

static void print_list(ks_registry *r)
{
    int name = 4, ver = 7;
    for (uint32_t i = 0; i < ks_registry_count(r); i++) {
        const ks_plugin_entry *p = ks_registry_entry(r, i);
        name = KS_MAX(name, (int)KS_MIN(strlen(p->name), 31u));
        ver = KS_MAX(ver, (int)KS_MIN(strlen(version(p)), 20u));
    }
    printf("%-8s  %-*s  %-*s  %5s  %-7s  %s\n", "KIND", name, "NAME", ver, "VERSION", "SCORE", "STATE", "WHY");
    for (uint32_t i = 0; i < ks_registry_count(r); i++) {
        const ks_plugin_entry *p = ks_registry_entry(r, i);
        printf("%-8s  %-*s  %-*s  %5d  %-7s  %s\n", kind_name(p->desc.kind), name, p->name, ver, version(p),
               (int)p->score, state_name(p->state), why(p));
    }
}

static void list_json(ks_jw *w, ks_registry *r)
{
    ks_jw_array(w);
    for (uint32_t i = 0; i < ks_registry_count(r); i++) {
        const ks_plugin_entry *p = ks_registry_entry(r, i);
        const struct {
            const char *key, *value;
        } texts[] = { { "kind", kind_name(p->desc.kind) }, { "name", p->name }, { "version", p->desc.version },
                      { "state", state_name(p->state) },   { "path", p->path }, { "summary", p->desc.summary },
                      { "license", p->desc.license },      { "why", p->why } };
        ks_jw_object(w);
        for (size_t k = 0; k < KS_COUNT(texts); k++) {
            ks_jw_key(w, texts[k].key);
            ks_jw_str(w, texts[k].value);
        }
        ks_jw_key(w, "score");
        ks_jw_i64(w, p->score);
        ks_jw_object_end(w);
    }
    ks_jw_array_end(w);
}

/* ---- The merged kernel table */

static const char *op_name(uint32_t op)
{
    static const char *const names[] = {
        [KS_K_QUANT] = "quant", [KS_K_MATMUL] = "matmul", [KS_K_NORM] = "norm",   [KS_K_ROPE] = "rope",
        [KS_K_GLU] = "glu",     [KS_K_ATTN] = "attn",     [KS_K_STORE] = "store", [KS_K_MATMUL_T] = "matmul_t",
        [KS_K_MUL] = "mul",     [KS_K_CONV] = "conv",     [KS_K_DELTA] = "delta", [KS_K_SCORE] = "score"
    };
    return op < KS_COUNT(names) && names[op] ? names[op] : "other";
}

static const char *type_name(uint32_t type)
{
    return type ? ks_type_name(type) : "-";
}

static const char *layout_name(uint32_t layout)
{
    return layout == KS_LAYOUT_ROWS ? "rows" : layout == KS_LAYOUT_T16 ? "t16" : "-";
}

static void print_kernels(const ks_kernel_table *t)
{
    const ks_kernel *k;
    const char *plugin;
    printf("%-6s  %-6s  %-6s  %-6s  %-12s  %s\n", "OP", "WEIGHT", "INPUT", "LAYOUT", "PLUGIN", "KERNEL");
    for (uint32_t i = 0; (k = ks_kernel_row(t, i, &plugin)); i++)
        printf("%-6s  %-6s  %-6s  %-6s  %-12s  %s\n", op_name(k->op), type_name(k->wtype), type_name(k->xtype),
               layout_name(k->layout), plugin, k->name);
}

static void kernels_json(ks_jw *w, const ks_kernel_table *t)
{
    const ks_kernel *k;
    const char *plugin;
    ks_jw_array(w);
    for (uint32_t i = 0; (k = ks_kernel_row(t, i, &plugin)); i++) {
        const struct {
            const char *key, *value;
        } texts[] = { { "op", op_name(k->op) },
                      { "weight", k->wtype ? ks_type_name(k->wtype) : NULL },
                      { "input", k->xtype ? ks_type_name(k->xtype) : NULL },
                      { "layout", k->layout ? layout_name(k->layout) : NULL },
                      { "plugin", plugin },
                      { "kernel", k->name } };
        ks_jw_object(w);
        for (size_t j = 0; j < KS_COUNT(texts); j++) {
            ks_jw_key(w, texts[j].key);
            ks_jw_str(w, texts[j].value);
        }
        ks_jw_object_end(w);
    }
    ks_jw_array_end(w);
}

/* Also after a failed choice: the list explains it, as far as the registry came. */
static int print(const ks_config *c, const ks_app *a, ks_err *err)
{
    const bool kernels = ks_config_bool(c, "kernels-table") && a->kernels;
    int rc = 0;
    if (ks_config_bool(c, "json")) {
        ks_jw w;
        ks_jw_init(&w);
        if (kernels)
            kernels_json(&w, a->kernels);
        else
            list_json(&w, a->registry);
        if (ks_jw_done(&w))
            rc = ks_fail(err, KS_E_NOMEM, "plugins: out of memory for the list");
        else
            puts(w.text);
        ks_jw_fini(&w);
    } else if (kernels) {
        print_kernels(a->kernels);
    } else {
        print_list(a->registry);
    }
    return rc;
}

int ks_cmd_plugins(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 }, print_err = { 0 };
    (void)cli; /* takes no words */
    int rc = ks_app_plugins(c, &a, &err);
    if (rc == 0) rc = ks_registry_choose(a.registry, KS_KIND_FRONTEND, ks_config_str(c, "frontends"), &err);
    if (a.registry) {
        const int printed = print(c, &a, &print_err);
        if (rc == 0 && printed) rc = printed, err = print_err;
    }
    ks_app_close(&a);
    return rc ? ks_app_fail(&err) : 0;
}
