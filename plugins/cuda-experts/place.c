/* Which experts stay: the slots that hold them, changes that the host asks for, and the counts it decides by.
 *
 * A change is made between steps. A drop takes effect at once. A load gets a free slot and a copy on the copy stream,
 * behind an event of the compute stream: whatever still reads the slot is done before. The loads of one place() are a
 * batch with an event behind them; the step that finds it passed enters them into the tables, until then they are cold.
 * [engine] */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#define NOBODY UINT32_MAX

/* ---- the tables */

int cu_place_lay_out(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    x->layer_bank = cu_alloc_host(d, d->g->n_layers, sizeof *x->layer_bank, "the experts' table", err);
    x->free_slots = cu_alloc_host(d, x->n_slots, sizeof *x->free_slots, "the experts' table", err);
    x->heat_host =
        cu_alloc_pinned(d, (size_t)d->g->n_layers * d->g->n_experts, sizeof *x->heat_host, "routing counts", err);
    if (!x->layer_bank || !x->free_slots || !x->heat_host) return KS_E_NOMEM;
    if (!d->planning) memset(x->heat_host, 0, (size_t)d->g->n_layers * d->g->n_experts * sizeof *x->heat_host);
    for (uint32_t i = x->n_banks; i-- > 0;) {
        struct dev_bank *b = &x->banks[i];
        if (!(b->slot_of = cu_alloc_host(d, b->n_experts, sizeof *b->slot_of, "the experts' table", err)))
            return KS_E_NOMEM;
        if (b->layer >= d->g->n_layers) continue;
        b->next = x->layer_bank[b->layer];
        x->layer_bank[b->layer] = i + 1;
    }
    for (uint32_t i = x->n_slots; i-- > 0;) x->free_slots[x->n_free++] = i;
    return 0;
}

void cu_place_unbind(cu_dev *d)
{
    cu_experts *x = &d->ex;
    for (uint32_t i = 0; i < x->n_banks; i++) free(x->banks[i].slot_of);
    for (uint32_t i = 0; i < CU_BATCHES; i++)
        if (x->landed[i]) (void)cudaEventDestroy(x->landed[i]);
    if (x->idle) (void)cudaEventDestroy(x->idle);
    free(x->layer_bank);
    free(x->free_slots);
    atomic_store_explicit(&d->resident, 0, memory_order_relaxed);
}

static void set_resident(cu_dev *d, const struct dev_slot *s, bool is)
{
    struct dev_bank *b = &d->ex.banks[s->bank];
    b->where[s->expert] = is ? s->p : NULL;
    b->n_resident += is ? 1u : UINT32_MAX;
    b->dirty = true;
    atomic_fetch_add_explicit(&d->resident, is ? 1u : UINT32_MAX, memory_order_relaxed);
}

static int send_tables(cu_dev *d, ks_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; i < d->ex.n_banks && !rc; i++) {
        struct dev_bank *b = &d->ex.banks[i];
        if (!b->dirty) continue;
        b->dirty = false;
        rc = cu_check(d,
                      cudaMemcpyAsync(b->where_dev, b->where, b->n_experts * sizeof *b->where, cudaMemcpyHostToDevice,
                                      d->compute),
                      "the experts' table", err);
    }
    return rc;
}

int cu_place_begin(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    uint64_t before = x->n_landed;
    x->stepped = true;
    while (x->n_landed < x->n_batches) {
        cudaError_t rc = cudaEventQuery(x->landed[x->n_landed % CU_BATCHES]);
        if (rc == cudaErrorNotReady) {
            (void)cudaGetLastError();
            break;
        }
        int e = cu_check(d, rc, "experts' copies", err);
        if (e) return e;
        x->n_landed++;
    }
    for (uint32_t i = 0; i < x->n_slots && x->n_landed > before; i++) {
        struct dev_slot *s = &x->slots[i];
        if (!s->arriving || s->batch >= x->n_landed) continue;
        s->arriving = false;
        set_resident(d, s, true);
    }
    return send_tables(d, err);
}

/* ---- changes */

static void drop(cu_dev *d, struct dev_bank *b, uint32_t e)
{
    cu_experts *x = &d->ex;
    if (!b->slot_of[e]) return;
    uint32_t slot = b->slot_of[e] - 1;
    struct dev_slot *s = &x->slots[slot];
    if (s->arriving)
        s->arriving = false; /* the next copy into the slot comes behind this one */
    else
        set_resident(d, s, false);
    b->slot_of[e] = 0;
    s->bank = NOBODY;
    x->free_slots[x->n_free++] = slot;
}

static int load(cu_dev *d, uint32_t bank, uint32_t e, uint64_t batch, ks_err *err)
{
    cu_experts *x = &d->ex;
    struct dev_bank *b = &x->banks[bank];
    if (b->slot_of[e]) return 0;
    if (!x->n_free)
        return ks_fail(err, KS_E_LIMIT, "GPU %d: no place is free for expert %u of layer %u: there are %u", d->index, e,
                       b->layer, x->n_slots);
    uint32_t slot = x->free_slots[--x->n_free];
    struct dev_slot *s = &x->slots[slot];
    *s = (struct dev_slot) { s->p, bank, e, batch, true };
    b->slot_of[e] = slot + 1;
    atomic_fetch_add_explicit(&d->uploads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->upload_bytes, b->gate_up_bytes + b->down_bytes, memory_order_relaxed);
    return cu_copy_expert(d, b, e, s->p, err);
}

static int change(cu_dev *d, const ks_place *c, uint64_t batch, ks_err *err)
{
    cu_experts *x = &d->ex;
    uint32_t bank = c->layer < d->g->n_layers ? x->layer_bank[c->layer] : 0;
    if (!bank || c->expert >= x->banks[bank - 1].n_experts)
        return ks_fail(err, KS_E_INVAL, "GPU %d: there is no expert %u in layer %u", d->index, c->expert, c->layer);
    int rc = 0;
    for (; bank && !rc; bank = x->banks[bank - 1].next) {
        struct dev_bank *b = &x->banks[bank - 1];
        if (c->expert >= b->n_experts) continue;
        if (c->keep)
            rc = load(d, bank - 1, c->expert, batch, err);
        else if (x->n_ring)
            drop(d, b, c->expert);
        else
            rc = ks_fail(err, KS_E_STATE, "GPU %d: all experts stay, none can be dropped", d->index);
    }
    return rc;
}

/* Copies from now on wait for what was launched so far. */
static int after_steps(cu_dev *d, ks_err *err)
{
    int rc = cu_check(d, cudaEventRecord(d->ex.idle, d->compute), "an event", err);
    return rc ? rc : cu_check(d, cudaStreamWaitEvent(d->copy, d->ex.idle, 0), "waiting for steps", err);
}

/* The batch of the next loads. Where as many are on their way as there are events, they join the last one. */
static uint64_t open_batch(const cu_experts *x)
{
    return x->n_batches - x->n_landed < CU_BATCHES ? x->n_batches : x->n_batches - 1;
}

static int close_batch(cu_dev *d, uint64_t batch, ks_err *err)
{
    cu_experts *x = &d->ex;
    x->n_batches = batch + 1;
    return cu_check(d, cudaEventRecord(x->landed[batch % CU_BATCHES], d->copy), "an event", err);
}

int cu_place(void *dev, const ks_place *changes, uint32_t n, ks_err *err)
{
    cu_dev *d = dev;
    cu_experts *x = &d->ex;
    ks_err e;
    if (d->dead) return ks_fail(err, KS_E_DEVICE, "%s", d->why);
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to GPU %d", d->index);
    int rc = cu_check(d, cudaSetDevice(d->index), "choosing the device", err);
    if (!rc) rc = after_steps(d, err);
    uint64_t batch = open_batch(x);
    for (uint32_t i = 0; i < n && !rc; i++) rc = change(d, &changes[i], batch, err);
    if (d->dead) return rc;
    int rc2 = close_batch(d, batch, &e); /* of what was begun, whatever came of the rest */
    if (!rc2 && !x->stepped) rc2 = cu_check(d, cudaStreamSynchronize(d->copy), "resident experts", &e);
    if (!rc && rc2) rc = ks_fail(err, rc2, "%s", e.msg);
    return rc;
}

/* The first choice, before anybody knows better: equally many of each layer. Where all stay, or the host does not say.
 */
int cu_place_first(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    uint32_t most = 0;
    int rc = cu_check(d, cudaEventCreateWithFlags(&x->idle, cudaEventDisableTiming), "an event", err);
    for (uint32_t i = 0; i < CU_BATCHES && !rc; i++)
        rc = cu_check(d, cudaEventCreateWithFlags(&x->landed[i], cudaEventDisableTiming), "an event", err);
    if (rc || (d->bind.host_places && x->n_ring) || (rc = after_steps(d, err))) return rc;
    for (uint32_t i = 0; i < x->n_banks; i++) most = cu_max(most, x->banks[i].n_experts);
    for (uint32_t e = 0; e < most && !rc; e++)
        for (uint32_t b = 0; b < x->n_banks && x->n_free && !rc; b++)
            if (e < x->banks[b].n_experts) rc = load(d, b, e, 0, err);
    if (!rc) rc = close_batch(d, 0, err);
    return rc ? rc : cu_check(d, cudaStreamSynchronize(d->copy), "resident experts", err);
}

int cu_place_keeps(void *dev, uint32_t *ret_slots, ks_err *err)
{
    cu_dev *d = dev;
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to GPU %d", d->index);
    memset(ret_slots, 0, d->g->n_layers * sizeof *ret_slots);
    for (uint32_t i = 0; i < d->ex.n_banks; i++)
        if (d->ex.banks[i].layer < d->g->n_layers) ret_slots[d->ex.banks[i].layer]++;
    return 0;
}

/* ---- counts */

int cu_heat_fetch(cu_dev *d, ks_err *err)
{
    size_t n = (size_t)d->g->n_layers * d->g->n_experts;
    return cu_check(
        d, cudaMemcpyAsync(d->ex.heat_host, d->ex.heat, n * sizeof(uint64_t), cudaMemcpyDeviceToHost, d->compute),
        "routing counts", err);
}

int cu_heat(void *dev, uint64_t *ret_counts, ks_err *err)
{
    const cu_dev *d = dev;
    if (d->dead) return ks_fail(err, KS_E_DEVICE, "%s", d->why);
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to GPU %d", d->index);
    memcpy(ret_counts, d->ex.heat_host, (size_t)d->g->n_layers * d->g->n_experts * sizeof *ret_counts);
    return 0;
}
