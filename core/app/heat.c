/* Heat maps of models. See heat.h. */
#include "app/heat.h"

#include "app/load.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/progress.h"
#include "device/hcs.h"
#include <string.h>

#define MAX_PREFIX 8u /* tokens that a model expects in front of every text */

/* ---- the file */

static int open_map(ks_app *a, ks_err *err)
{
    ks_heat *h = &a->heat;
    char key[33];
    int rc = ks_ckpt_fingerprint(a->ckpt, false, key, err);
    if (!rc) rc = ks_heat_path(key, &h->path, err);
    if (rc || strcmp(ks_config_str(a->config, "heat"), "recalibrate") == 0) return rc;
    rc = ks_heat_read(h->path, &h->map, err);
    if (rc) return rc == KS_E_NOTFOUND ? 0 : rc;
    if (h->map.n_layers == a->model.graph.n_layers && h->map.n_experts == a->model.graph.n_experts) return 0;
    rc = ks_fail(err, KS_E_FORMAT, "the heat map '%s' is one of %u layers and %u experts, the model has %u and %u",
                 h->path, h->map.n_layers, h->map.n_experts, a->model.graph.n_layers, a->model.graph.n_experts);
    ks_heat_map_fini(&h->map);
    return rc;
}

void ks_heat_prepare(ks_app *a, ks_engine_opts *o)
{
    const char *how = ks_config_str(a->config, "heat");
    ks_err err = { 0 };
    o->place = KS_PLACE_DEVICE;
    o->heat = NULL;
    if (o->device == &ks_cpu_device_iface || !a->model.graph.n_experts || strcmp(how, "off") == 0) return;
    o->place = strcmp(how, "static") == 0 ? KS_PLACE_STATIC : KS_PLACE_ADAPT;
    a->heat.keep = o->place == KS_PLACE_ADAPT;
    if (open_map(a, &err)) ks_log(KS_LOG_WARN, "experts", "%s", err.msg);
    if (!a->heat.map.counts) return;
    o->heat = a->heat.map.counts;
    o->heat_rows = a->heat.map.rows;
    ks_log(KS_LOG_INFO, "experts", "heat map '%s' (--heat recalibrate makes it anew)", a->heat.path);
}

static void write_map(ks_app *a)
{
    ks_err err = { 0 };
    if (a->heat.path && ks_heat_write(a->heat.path, &a->heat.map, &err))
        ks_log(KS_LOG_WARN, "experts", "the heat map is not saved: %s: the next start does not know it", err.msg);
}

/* Room for a map of this model; false: out of memory. */
static bool make_map(ks_app *a)
{
    const ks_graph *g = &a->model.graph;
    ks_heat_map *m = &a->heat.map;
    if (m->counts) return true;
    *m = (ks_heat_map) { g->n_layers, g->n_experts, 0, ks_calloc((size_t)g->n_layers * g->n_experts, sizeof *m->counts),
                         ks_strdup(ks_ckpt_dir(a->ckpt)) };
    if (m->counts && m->model) return true;
    ks_heat_map_fini(m);
    return false;
}

void ks_heat_save(ks_app *a)
{
    const ks_graph *g = &a->model.graph;
    size_t n = (size_t)g->n_layers * g->n_experts;
    uint64_t rows = 0;
    if (!a->engine || !a->heat.keep || !ks_engine_places(a->engine, NULL, NULL) || !make_map(a)) return;
    uint64_t *now = ks_calloc(n, sizeof *now);
    if (now && ks_engine_heat_get(a->engine, now, &rows, NULL) == 0 && rows &&
        (rows != a->heat.map.rows || memcmp(now, a->heat.map.counts, n * sizeof *now) != 0)) {
        memcpy(a->heat.map.counts, now, n * sizeof *now);
        a->heat.map.rows = rows;
        write_map(a);
    }
    free(now);
}

void ks_heat_fini(ks_app *a)
{
    ks_heat_map_fini(&a->heat.map);
    free(a->heat.path);
    a->heat = (ks_heat) { 0 };
}

/* ---- calibration */

struct text {
    int32_t *ids, *prefix;
    size_t n, n_prefix;
};

static int encode(const ks_app *a, struct text *t, ks_err *err)
{
    int rc =
        ks_tokenizer_encode(a->tok, (const char *)ks_calibration_text, ks_calibration_bytes, 0, &t->ids, &t->n, err);
    if (!rc) rc = ks_tokenizer_encode(a->tok, "", 0, KS_TOK_ADD_SPECIAL, &t->prefix, &t->n_prefix, err);
    t->n_prefix = KS_MIN(t->n_prefix, (size_t)MAX_PREFIX);
    if (!rc && !t->n) rc = ks_fail(err, KS_E_INTERNAL, "the text for calibration has no tokens");
    return rc;
}

/* One window of the text as a conversation of its own, in steps. */
static int read_window(ks_app *a, const struct text *t, size_t first, uint32_t n, ks_progress *p, ks_err *err)
{
    uint32_t pos = (uint32_t)t->n_prefix, step = a->opts.step_tokens ? a->opts.step_tokens : n;
    ks_engine_eval_reset(a->engine);
    int rc = pos ? ks_engine_eval(a->engine, 0, t->prefix, pos, 0, NULL, NULL, err) : 0;
    for (uint32_t done = 0, m; done < n && !rc; done += m) {
        m = KS_MIN(n - done, step);
        rc = ks_engine_eval(a->engine, 0, t->ids + first + done, m, pos + done, NULL, NULL, err);
        ks_progress_add(p, m);
    }
    ks_engine_eval_reset(a->engine);
    return rc;
}

/* Windows spread evenly over the text, so that each of its topics has a part. Returns the tokens read in *ret_rows. */
static int read_text(ks_app *a, const struct text *t, uint64_t *ret_rows, ks_err *err)
{
    size_t most = a->heat.tokens ? a->heat.tokens : KS_HEAT_TOKENS, total = KS_MIN(t->n, most);
    size_t room = a->opts.n_ctx - KS_MIN(a->opts.n_ctx, t->n_prefix);
    size_t width = KS_MAX(KS_MIN(room, total), (size_t)1), windows = (total + width - 1) / width;
    width = total / windows;
    ks_progress *p = ks_progress_begin("calibrating", width * windows, "tokens");
    int rc = 0;
    for (size_t i = 0; i < windows && !rc; i++)
        rc = read_window(a, t, windows > 1 ? i * (t->n - width) / (windows - 1) : 0, (uint32_t)width, p, err);
    ks_progress_end(p);
    *ret_rows = windows * (width + t->n_prefix);
    return rc;
}

static int descending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The part of all uses that the `n` hottest get. Sorts. */
static double part_of_hottest(uint64_t *counts, size_t units, uint32_t n)
{
    double hot = 0, all = 0;
    qsort(counts, units, sizeof *counts, descending);
    for (size_t i = 0; i < units; i++) {
        all += (double)counts[i];
        hot += i < n ? (double)counts[i] : 0;
    }
    return all > 0 ? hot / all : 0;
}

static int measure(ks_app *a, uint64_t *before, const struct text *t, ks_err *err)
{
    ks_heat_map *m = &a->heat.map;
    size_t units = (size_t)m->n_layers * m->n_experts;
    uint64_t rows = 0, t0 = ks_now_ns();
    uint32_t slots = 0, experts = 0;
    int rc = ks_engine_heat(a->engine, before, err);
    if (!rc) rc = read_text(a, t, &rows, err);
    if (!rc) rc = ks_engine_heat(a->engine, m->counts, err);
    for (size_t i = 0; i < units && !rc; i++) m->counts[i] = (m->counts[i] - before[i]) * KS_HCS_ONE;
    m->rows = rows * KS_HCS_ONE;
    if (!rc) rc = ks_engine_heat_set(a->engine, m->counts, m->rows, err);
    if (rc) return rc;
    double seconds = (double)(ks_now_ns() - t0) / 1e9;
    write_map(a);
    memcpy(before, m->counts, units * sizeof *before);
    (void)ks_engine_places(a->engine, &slots, &experts);
    ks_log(KS_LOG_INFO, "experts",
           "calibrated over %llu tokens in %.1f s: the hottest %u of %u experts stay, they get %.1f %% of the uses; "
           "heat map "
           "'%s' (--heat recalibrate makes it anew, --heat off does without)",
           (unsigned long long)rows, seconds, slots, experts, 100 * part_of_hottest(before, units, slots),
           a->heat.path ? a->heat.path : "none");
    return 0;
}

int ks_heat_calibrate(ks_app *a, ks_err *err)
{
    struct text t = { .n = 0 };
    if (a->heat.map.counts || !ks_engine_places(a->engine, NULL, NULL)) return 0;
    if (!a->tok) {
        ks_log(KS_LOG_INFO, "experts", "no calibration without a tokenizer: equally many experts of each layer stay");
        return 0;
    }
    uint64_t *before = ks_calloc((size_t)a->model.graph.n_layers * a->model.graph.n_experts, sizeof *before);
    int rc = before && make_map(a) ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for a heat map");
    if (!rc) rc = encode(a, &t, err);
    if (!rc) rc = measure(a, before, &t, err);
    free(before);
    free(t.ids);
    free(t.prefix);
    return rc;
}
