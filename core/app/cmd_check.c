/* krasis check: everything a start would find wrong, found before 200 GB are read: settings, plugins, the model's
 * description, every tensor it needs, and the memory plan. Computes and writes nothing. */
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include "cpu/cpu.h"
#include <inttypes.h>

static uint64_t spec_bytes(const ks_wspec *s, const uint32_t type[16])
{
    if (s->flags & KS_WSPEC_VECTOR) return (uint64_t)s->n_mat * s->n_out * s->n_in * 4;
    if (s->flags & KS_WSPEC_TABLE) return (uint64_t)s->n_mat * s->n_out * s->n_in * 2;
    uint32_t t = s->flags & KS_WSPEC_EXACT ? KS_T_BF16 : type[s->cls];
    uint32_t group = t == KS_T_BF16 ? 0 : ks_quant_group(s->n_in);
    return (uint64_t)s->n_mat * ks_t16_strips(s->n_out) * ks_t16_strip_bytes(t, s->n_in, group);
}

/* A part of a bank names one tensor a matrix; the first one stands for all here, the loader checks each. */
static bool part_present(const ks_ckpt *c, const char *pattern)
{
    const char *hole = strstr(pattern, "{}");
    char name[512];
    if (!hole) return ks_ckpt_find(c, pattern) != NULL;
    int n = snprintf(name, sizeof name, "%.*s0%s", (int)(hole - pattern), pattern, hole + 2);
    return n > 0 && (size_t)n < sizeof name && ks_ckpt_find(c, name);
}

static const char *missing_tensor(const ks_app *a)
{
    for (uint32_t i = 0; i < a->model.graph.n_weights; i++) {
        const ks_wspec *s = &a->model.specs[i];
        for (uint32_t p = 0; p < s->n_parts && !(s->flags & KS_WSPEC_OPTIONAL); p++)
            if (!part_present(a->ckpt, s->parts[p].tensor)) return s->parts[p].tensor;
    }
    return NULL;
}

static int print_plan(const ks_app *a, ks_err *err)
{
    static const char *const names[] = {
#define KS_CLS_NAME(name, num, text) [num] = text,
        KS_CLS_MAP(KS_CLS_NAME)
#undef KS_CLS_NAME
    };
    const ks_graph *g = &a->model.graph;
    uint32_t type[16], kv = ks_app_kv_type(a->config);
    uint64_t by_class[16] = { 0 }, total = 0, kv_tok = 0, context = (uint64_t)ks_config_int(a->config, "context");
    ks_app_types(a->config, type);
    for (uint32_t i = 0; i < g->n_weights; i++)
        by_class[a->model.specs[i].cls & 15] += spec_bytes(&a->model.specs[i], type);
    printf("model      %s (%s), %u layers, width %u, vocabulary %u, context up to %u\n", a->name, a->model.arch,
           g->n_layers, g->d_model, g->n_vocab, g->n_ctx);
    for (uint32_t i = 0; i < KS_COUNT(names); i++) {
        if (by_class[i]) printf("weights    %-10s %10.1f MB\n", names[i], (double)by_class[i] / 1e6);
        total += by_class[i];
    }
    for (uint32_t i = 0; i < g->n_states; i++)
        if (g->states[i].kind == KS_STATE_KV)
            kv_tok += (uint64_t)(g->states[i].k_width + g->states[i].v_width) * ks_type_bits(kv) / 8;
    if (context == 0) context = g->n_ctx;
    printf("KV cache   %" PRIu64 " bytes a token as %s: %.1f MB for one context of %" PRIu64 "\n", kv_tok,
           ks_type_name(kv), (double)(kv_tok * context) / 1e6, context);
    uint64_t ram = ks_ram_available_bytes();
    printf("memory     %.1f MB of weights, %.1f MB of RAM available\n", (double)total / 1e6, (double)ram / 1e6);
    if (total > ram)
        return ks_fail(err, KS_E_LIMIT,
                       "the weights need %.1f GB and %.1f GB of RAM are available: use --cpu-expert-bits 4, or a "
                       "machine with more memory",
                       (double)total / 1e9, (double)ram / 1e9);
    return 0;
}

int ks_cmd_check(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    int rc = cli->n_words ? ks_fail(&err, KS_E_CONFIG, "check takes no words: '%s'", cli->words[0])
                          : ks_app_plugins(c, &a, &err);
    if (!rc && *ks_config_str(c, "model-path")) {
        rc = ks_app_model(&a, &err);
        const char *missing = rc ? NULL : missing_tensor(&a);
        if (missing)
            rc = ks_fail(&err, KS_E_NOTFOUND,
                         "the checkpoint has no tensor '%s': it is incomplete or of another architecture", missing);
        if (!rc) rc = print_plan(&a, &err);
    } else if (!rc) {
        puts("model      none given: settings and plugins were checked");
    }
    if (!rc) puts("ok");
    ks_app_close(&a);
    return rc ? ks_app_fail(&err) : 0;
}
