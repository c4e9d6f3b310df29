#include "device/placing.h"

#include "base/base.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct pair {
    int32_t expert;
    float weight;
};

static uint32_t unit_of(const placing *p, uint32_t layer, uint32_t expert)
{
    return layer * p->bind.graph->n_experts + expert;
}

bool placing_holds(const placing *p, uint32_t layer, uint32_t expert)
{
    uint64_t at = p->lands[unit_of(p, layer, expert)];
    return at && at <= p->runs;
}

static int placing_list(void *self, uint32_t i, ks_device_info *ret, ks_err *err)
{
    const placing *p = self;
    if (i) return ks_fail(err, KS_E_NOTFOUND, "there is one");
    *ret = (ks_device_info) { .size = ret->size, .name = "placing", .link_bytes_s = p->link };
    return 0;
}

static int placing_open(void *self, uint32_t index, uint64_t budget, void **ret, ks_err *err)
{
    placing *p = self;
    (void)budget;
    *ret = p;
    return ks_cpu_device_iface.open(&p->cpu, index, 0, &p->dev, err);
}

static void release(placing *p)
{
    void *parts[] = { p->lands, p->heat, p->route, p->part, p->x, p->y, p->weights, p->ids, p->keep };
    for (size_t i = 0; i < KS_COUNT(parts); i++) free(parts[i]);
    p->lands = p->heat = NULL;
    p->route = p->part = NULL;
    p->x = p->y = p->weights = NULL;
    p->ids = NULL;
    p->keep = NULL;
}

static void placing_close(void *dev)
{
    placing *p = dev;
    ks_cpu_device_iface.close(p->dev);
    release(p);
    p->dev = NULL;
}

static int placing_lower(void *dev, const ks_graph *g, uint32_t kv_type, uint8_t *ret_ok, ks_err *err)
{
    return ks_cpu_device_iface.lower(((placing *)dev)->dev, g, kv_type, ret_ok, err);
}

static int placing_bind(void *dev, const ks_bind *b, ks_err *err)
{
    placing *p = dev;
    const ks_graph *g = b->graph;
    size_t width = 1, pairs = 1, units = (size_t)g->n_layers * g->n_experts;
    release(p);
    p->bind = *b;
    p->used = 0;
    for (uint32_t i = 0; i < g->n_ops; i++) {
        const ks_op *op = &g->ops[i];
        if (op->kind != KS_OP_EXPERTS) continue;
        width = KS_MAX(width, KS_MAX(g->regs[op->in[0]].width, g->regs[op->out[0]].width));
        pairs = KS_MAX(pairs, op->u.mlp.k);
    }
    width *= b->max_rows;
    pairs *= b->max_rows;
    p->lands = ks_calloc(units, sizeof *p->lands);
    p->heat = ks_calloc(units, sizeof *p->heat);
    p->route = ks_calloc(pairs, sizeof(struct pair));
    p->part = ks_calloc(width, sizeof(float));
    p->x = ks_calloc(width, sizeof(float));
    p->y = ks_calloc(width, sizeof(float));
    p->weights = ks_calloc(pairs, sizeof(float));
    p->ids = ks_calloc(pairs, sizeof(int32_t));
    p->keep = ks_calloc(pairs, 1);
    assert_true(p->lands && p->heat && p->route && p->part && p->x && p->y && p->weights && p->ids && p->keep);
    return ks_cpu_device_iface.bind(p->dev, b, err);
}

static int placing_place(void *dev, const ks_place *c, uint32_t n, ks_err *err)
{
    placing *p = dev;
    const ks_graph *g = p->bind.graph;
    assert_false(p->running);
    assert_true(p->bind.host_places);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(c[i].layer < g->n_layers && c[i].expert < g->n_experts && c[i].keep <= 1);
        uint64_t *lands = &p->lands[unit_of(p, c[i].layer, c[i].expert)];
        assert_true((*lands == 0) == (c[i].keep == 1)); /* the engine knows what is kept */
        if (!c[i].keep) {
            *lands = 0;
            p->used--;
            p->dropped++;
            continue;
        }
        if (p->used == p->n_slots) return ks_fail(err, KS_E_LIMIT, "no place is free of %u", p->n_slots);
        *lands = p->runs ? p->runs + p->delay + 1 : 1;
        p->used++;
        p->most_used = KS_MAX(p->most_used, p->used);
        p->uploads++;
    }
    return 0;
}

static int run_experts(placing *p, const ks_batch *b, uint32_t i, ks_err *err)
{
    const ks_device_iface *cpu = &ks_cpu_device_iface;
    const ks_op *op = &p->bind.graph->ops[i];
    struct pair *route = p->route;
    uint32_t n = b->n_rows, n_pairs = n * op->u.mlp.k, hot = 0;
    size_t floats = (size_t)n * p->bind.graph->regs[op->out[0]].width;
    int rc = cpu->get(p->dev, (uint32_t)op->in[1], n, route, err);
    if (!rc) rc = cpu->get(p->dev, (uint32_t)op->in[0], n, p->x, err);
    if (rc) return rc;
    for (uint32_t k = 0; k < n_pairs; k++) {
        bool there = placing_holds(p, op->layer, (uint32_t)route[k].expert);
        p->heat[unit_of(p, op->layer, (uint32_t)route[k].expert)]++;
        p->ids[k] = route[k].expert;
        p->weights[k] = route[k].weight;
        p->keep[k] = !there;
        hot += there;
    }
    p->hot += hot;
    p->cold += n_pairs - hot;
    if (!p->bind.cold) return cpu->run(p->dev, b, i, i + 1, err); /* streamed: the same bits */
    for (uint32_t k = 0; k < n_pairs; k++)
        if (p->keep[k]) route[k].expert = -1;
    if (hot < n_pairs) p->bind.cold(p->bind.cold_ctx, i, n, p->x, p->ids, p->weights, p->keep, p->part);
    if ((rc = cpu->put(p->dev, (uint32_t)op->in[1], n, route, err)) || (rc = cpu->run(p->dev, b, i, i + 1, err)) ||
        (rc = cpu->get(p->dev, (uint32_t)op->out[0], n, p->y, err)))
        return rc;
    for (size_t k = 0; k < floats && hot < n_pairs; k++) p->y[k] += ((float *)p->part)[k];
    return cpu->put(p->dev, (uint32_t)op->out[0], n, p->y, err);
}

static int placing_run(void *dev, const ks_batch *b, uint32_t begin, uint32_t end, ks_err *err)
{
    placing *p = dev;
    int rc = 0;
    p->running = true;
    p->runs++;
    for (uint32_t i = begin; i < end && !rc; i++)
        rc = p->bind.graph->ops[i].kind == KS_OP_EXPERTS ? run_experts(p, b, i, err)
                                                         : ks_cpu_device_iface.run(p->dev, b, i, i + 1, err);
    p->running = false;
    return rc;
}

static int placing_get(void *dev, uint32_t reg, uint32_t n, void *dst, ks_err *err)
{
    return ks_cpu_device_iface.get(((placing *)dev)->dev, reg, n, dst, err);
}

static int placing_put(void *dev, uint32_t reg, uint32_t n, const void *src, ks_err *err)
{
    return ks_cpu_device_iface.put(((placing *)dev)->dev, reg, n, src, err);
}

static int placing_copy_page(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    return ks_cpu_device_iface.copy_page(((placing *)dev)->dev, dst, src, err);
}

static int placing_copy_slot(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    return ks_cpu_device_iface.copy_slot(((placing *)dev)->dev, dst, src, err);
}

static int placing_stats(void *dev, ks_device_stats *ret, ks_err *err)
{
    const placing *p = dev;
    (void)err;
    ks_device_stats s = { .size = ret->size,
                          .steps = p->runs,
                          .experts_hot = p->hot,
                          .experts_cold = p->cold,
                          .expert_slots = p->n_slots,
                          .experts_resident = p->used,
                          .slot_bytes = 1000,
                          .uploads = p->uploads,
                          .upload_bytes = 1000 * p->uploads };
    memcpy(ret, &s, KS_MIN((size_t)ret->size, sizeof s));
    return 0;
}

static int placing_heat(void *dev, uint64_t *ret, ks_err *err)
{
    const placing *p = dev;
    (void)err;
    memcpy(ret, p->heat, (size_t)p->bind.graph->n_layers * p->bind.graph->n_experts * sizeof *ret);
    return 0;
}

static int placing_keeps(void *dev, uint32_t *ret, ks_err *err)
{
    const placing *p = dev;
    (void)err;
    for (uint32_t i = 0; i < p->bind.graph->n_ops; i++)
        if (p->bind.graph->ops[i].kind == KS_OP_EXPERTS) ret[p->bind.graph->ops[i].layer] = 1;
    return 0;
}

const ks_device_iface placing_iface = {
    .size = sizeof placing_iface,
    .list = placing_list,
    .open = placing_open,
    .close = placing_close,
    .lower = placing_lower,
    .bind = placing_bind,
    .place = placing_place,
    .run = placing_run,
    .get = placing_get,
    .put = placing_put,
    .copy_page = placing_copy_page,
    .copy_slot = placing_copy_slot,
    .stats = placing_stats,
    .heat = placing_heat,
    .keeps = placing_keeps,
};
