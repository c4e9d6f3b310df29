/* Which experts stay on the device: the engine's side of core/device/hcs.h. After a step the policy may ask for a few
 * changes; what they may cost is a part of the link's time, so that uploads in the background do not delay steps.
 * [engine thread, or another one under step_mu] */
#include "engine/impl.h"

#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include <inttypes.h>

#define COUNT_STEPS 16u        /* steps from one look at the counts to the next ... */
#define COUNT_ROWS 256u        /* ... or rows */
#define LINK_PART 0.04         /* of the link's time is for uploads */
#define UNKNOWN_LINK_SLOTS 2.0 /* uploads a step where the link's rate is not known */
#define MAX_CHANGES 64u        /* of one step */
#define TELL_FIRST_S 60u       /* the first line about it in the log, and the next ones */
#define TELL_S 600u

static int no_memory(ks_err *err)
{
    return ks_fail(err, KS_E_NOMEM, "out of memory for the placement of experts");
}

/* Experts of each layer. */
static void count(const ks_graph *g, uint32_t *experts)
{
    for (uint32_t i = 0; i < g->n_ops; i++) {
        const ks_op *op = &g->ops[i];
        if (op->kind == KS_OP_EXPERTS && op->layer < g->n_layers)
            experts[op->layer] = KS_MAX(experts[op->layer], op->u.mlp.n_experts);
    }
}

/* How many the device may keep, and the places that one of a layer takes. */
static int shape(ks_engine *e, const uint32_t *experts, uint32_t *slots, ks_err *err)
{
    int rc = e->o.device->keeps(e->dev, slots, err);
    for (uint32_t l = 0; l < e->g->n_layers && !rc; l++) {
        e->hot.dearest = KS_MAX(e->hot.dearest, slots[l]);
        if (!slots[l]) e->hot.n_experts -= experts[l];
    }
    return rc;
}

static int settle(ks_engine *e, ks_err *err)
{
    uint32_t n = 0;
    const ks_place *c = ks_hcs_settle(e->hot.hcs, &n);
    return n ? e->o.device->place(e->dev, c, n, err) : 0;
}

bool ks__hot_wanted(const ks_engine *e)
{
    const ks_device_iface *d = e->o.device;
    return e->o.place != KS_PLACE_DEVICE && e->g->n_experts && d && d->place && d->heat && d->stats && d->keeps;
}

static int make(ks_engine *e, uint32_t *experts, uint32_t *slots, ks_err *err)
{
    ks_hot *h = &e->hot;
    ks_device_stats s = { .size = sizeof s };
    int rc = shape(e, experts, slots, err);
    if (rc == KS_E_UNSUPPORTED) return 0; /* one device in two cannot */
    if (rc || (rc = e->o.device->stats(e->dev, &s, err))) return rc;
    ks_hcs_opts o = { e->g->n_layers, e->g->n_experts, experts, slots, s.expert_slots };
    h->slot_bytes = (double)s.slot_bytes;
    h->adapt = e->o.place == KS_PLACE_ADAPT;
    if ((rc = ks_hcs_new(&o, &h->hcs, err))) return rc;
    if (!(h->counts = ks_calloc((size_t)o.n_layers * o.n_experts, sizeof *h->counts))) return no_memory(err);
    if (e->o.heat) ks_hcs_seed(h->hcs, e->o.heat, e->o.heat_rows);
    rc = settle(e, err);
    h->adapt = h->adapt && s.expert_slots && !ks_hcs_holds_all(h->hcs);
    h->told.size = sizeof h->told;
    return rc ? rc : e->o.device->stats(e->dev, &h->told, err);
}

int ks__hot_open(ks_engine *e, ks_err *err)
{
    ks_device_info info = { .size = sizeof info };
    ks_err unused;
    if (!e->g->n_experts) return 0;
    uint32_t *experts = ks_calloc(e->g->n_layers, sizeof *experts), *slots = ks_calloc(e->g->n_layers, sizeof *slots);
    int rc = experts && slots ? 0 : no_memory(err);
    if (!rc) count(e->g, experts);
    for (uint32_t l = 0; l < e->g->n_layers && !rc; l++) e->hot.n_experts += experts[l];
    if (!rc && ks__hot_wanted(e)) rc = make(e, experts, slots, err);
    free(experts);
    free(slots);
    if (!rc && e->o.device->list(e->o.device_self, 0, &info, &unused) == 0) e->hot.link = info.link_bytes_s;
    e->hot.t_tell = ks_now_ns() + TELL_FIRST_S * UINT64_C(1000000000);
    return rc;
}

void ks__hot_close(ks_engine *e)
{
    ks_hcs_free(e->hot.hcs);
    free(e->hot.counts);
    e->hot = (ks_hot) { .rows = e->hot.rows };
}

/* ---- after a step */

static double part(uint64_t a, uint64_t b)
{
    return b ? 100.0 * (double)a / (double)b : 0;
}

void ks__hot_stats(ks_engine *e, ks_stats *ret)
{
    ks_device_stats s = { .size = sizeof s };
    if (!e->o.device->stats || e->o.device->stats(e->dev, &s, NULL) || !s.slot_bytes) return;
    ret->experts = e->hot.n_experts;
    ret->expert_slots = s.expert_slots;
    ret->experts_resident = s.experts_resident;
    ret->experts_hot = s.experts_hot;
    ret->experts_cold = s.experts_cold;
    ret->expert_uploads = s.uploads;
    ret->expert_upload_bytes = s.upload_bytes;
    ret->link_bytes_in = s.bytes_in;
    ret->link_bytes_out = s.bytes_out;
    ret->device_s = (double)s.run_ns / 1e9;
    ret->device_wait_s = (double)s.wait_ns / 1e9;
    ret->experts_cpu_s = (double)s.cold_ns / 1e9;
    ret->experts_cpu_bytes = s.cold_bytes;
    ret->experts_link_bytes = s.linked_bytes;
}

void ks__hot_tell(ks_engine *e)
{
    ks_hot *h = &e->hot;
    ks_device_stats s = { .size = sizeof s }, *o = &h->told;
    ks_err err;
    if (!h->hcs || e->o.device->stats(e->dev, &s, &err)) return;
    uint64_t hot = s.experts_hot - o->experts_hot, uses = hot + s.experts_cold - o->experts_cold;
    uint64_t run = s.run_ns - o->run_ns;
    if (uses)
        ks_log(KS_LOG_INFO, "experts",
               "%u of %u stay on the GPU and got %.1f %% of the uses; %" PRIu64
               " were exchanged (%.2f GB of %.2f GB over "
               "the link); of the time %.0f %% waiting for the GPU, %.0f %% experts on the CPU",
               s.experts_resident, h->n_experts, part(hot, uses), s.uploads - o->uploads,
               (double)(s.upload_bytes - o->upload_bytes) / 1e9, (double)(s.bytes_in - o->bytes_in) / 1e9,
               part(s.wait_ns - o->wait_ns, run), part(s.cold_ns - o->cold_ns, run));
    *o = s;
}

/* How many slots may be filled now: a part of the link's time in this step, saved up until it is enough for one expert,
 * but never more at once than a part of the shorter of the last two steps: the next may be as short. */
static uint32_t allowance(ks_hot *h, uint64_t ns)
{
    double step = (double)ns * 1e-9, least = (double)KS_MIN(ns, h->last_ns ? h->last_ns : ns) * 1e-9;
    double most = LINK_PART * h->link * least, one = h->slot_bytes * h->dearest;
    h->last_ns = ns;
    if (h->link <= 0) {
        h->saved = UNKNOWN_LINK_SLOTS * one;
    } else {
        h->saved += LINK_PART * h->link * step;
        h->saved = KS_MIN(h->saved, KS_MAX(most, one));
    }
    return h->slot_bytes > 0 ? (uint32_t)KS_MIN(h->saved / h->slot_bytes, 1e6) : 0;
}

static int adapt(ks_engine *e, uint64_t ns, ks_err *err)
{
    ks_hot *h = &e->hot;
    ks_place c[MAX_CHANGES];
    uint32_t slots = allowance(h, ns);
    int rc = 0;
    if (h->n_steps >= COUNT_STEPS || h->rows - h->counted >= COUNT_ROWS) {
        if ((rc = e->o.device->heat(e->dev, h->counts, err))) return rc;
        ks_hcs_count(h->hcs, h->counts, h->rows);
        h->n_steps = 0;
        h->counted = h->rows;
    }
    uint32_t loads = 0, n = ks_hcs_next(h->hcs, slots, c, MAX_CHANGES);
    if (!n) return 0;
    for (uint32_t i = 0; i < n; i++) loads += c[i].keep;
    h->saved -= KS_MIN(h->saved, (double)loads * h->slot_bytes);
    return e->o.device->place(e->dev, c, n, err);
}

void ks__hot_rows(ks_engine *e, uint32_t n_rows)
{
    e->hot.rows += n_rows;
}

void ks__hot_after(ks_engine *e, uint32_t n_rows, uint64_t ns)
{
    ks_hot *h = &e->hot;
    ks_err err;
    ks__hot_rows(e, n_rows);
    if (!h->hcs) return;
    h->n_steps++;
    if (h->adapt && adapt(e, ns, &err)) {
        h->adapt = false; /* a device that failed says so again at the next step */
        ks_log(KS_LOG_WARN, "experts", "%s: experts stay where they are", err.msg);
    }
    if (ks_now_ns() < h->t_tell) return;
    h->t_tell = ks_now_ns() + TELL_S * UINT64_C(1000000000);
    ks__hot_tell(e);
}

/* ---- heat maps */

static int need_hcs(const ks_engine *e, ks_err *err)
{
    return e->hot.hcs ? 0 : ks_fail(err, KS_E_UNSUPPORTED, "no experts are placed on this device");
}

bool ks_engine_places(ks_engine *e, uint32_t *ret_slots, uint32_t *ret_experts)
{
    bool some = false;
    pthread_mutex_lock(&e->step_mu); /* a lost device takes the policy with it */
    if (e->hot.hcs) {
        if (ret_slots) *ret_slots = ks_hcs_used(e->hot.hcs);
        if (ret_experts) *ret_experts = e->hot.n_experts;
        some = ks_hcs_used(e->hot.hcs) && !ks_hcs_holds_all(e->hot.hcs);
    }
    pthread_mutex_unlock(&e->step_mu);
    return some;
}

int ks_engine_heat_set(ks_engine *e, const uint64_t *counts, uint64_t rows, ks_err *err)
{
    pthread_mutex_lock(&e->step_mu);
    int rc = need_hcs(e, err);
    if (!rc) rc = e->o.device->heat(e->dev, e->hot.counts, err);
    if (!rc) {
        ks_hcs_base(e->hot.hcs, e->hot.counts, e->hot.rows);
        ks_hcs_seed(e->hot.hcs, counts, rows);
        rc = settle(e, err);
    }
    pthread_mutex_unlock(&e->step_mu);
    return rc;
}

int ks_engine_heat_get(ks_engine *e, uint64_t *ret_counts, uint64_t *ret_rows, ks_err *err)
{
    pthread_mutex_lock(&e->step_mu);
    int rc = need_hcs(e, err);
    if (!rc) ks_hcs_heat(e->hot.hcs, ret_counts, ret_rows);
    pthread_mutex_unlock(&e->step_mu);
    return rc;
}
