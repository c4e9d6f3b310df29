/* Experts that do not stay: they are copied into a ring of slots on a stream of their own. A copy waits until the last
 * products that read its slot are done, the products wait until the group's copies have landed. An expert goes over the
 * link once a step, whatever the number of rows. [engine] */
#include "device.h"

#define GROUPS 4u                    /* a group of streamed experts takes this part of the ring */
#define COPY_BYTES ((size_t)8 << 20) /* of one copy: each has a fixed price on the link */
#define AHEAD 2u /* rows an expert, on average, from which on all experts are taken to be asked for */

/* ---- the ring */

/* The next n experts go on their way with one copy, as soon as the products that read their slots, which lie side by
 * side, are done: a slot is free when the one after it is, and has landed when the last has. */
static int send(cu_dev *d, uint32_t bank, uint32_t e, uint32_t n, ks_err *err)
{
    cu_experts *x = &d->ex;
    struct ring_slot *s = &x->ring[x->tail % x->n_ring], *last = s + (n - 1);
    int rc;
    if ((rc = cu_check(d, cudaStreamWaitEvent(d->copy, last->free, 0), "waiting for a slot", err)) ||
        (rc = cu_copy_experts(d, &x->banks[bank], e, n, s->p, err)) ||
        (rc = cu_check(d, cudaEventRecord(last->landed, d->copy), "an event", err)))
        return rc;
    for (uint32_t i = 0; i < n; i++) {
        s[i].bank = bank;
        s[i].expert = e + i;
        s[i].arrival = last->landed;
    }
    x->tail += n;
    return 0;
}

/* What was sent and not used is forgotten; copies into the same slots queue up behind. */
static void forget(cu_experts *x)
{
    x->tail = x->taken = x->head;
    x->ahead_bank = x->n_banks;
}

/* Neighbours that do not stay, from the next that goes ahead: as many as one copy may bring. */
static uint32_t neighbours(const cu_experts *x, const struct dev_bank *b)
{
    uint64_t at = x->tail % x->n_ring, room = x->n_ring - (x->tail - x->head), most = COPY_BYTES / x->slot_bytes;
    uint32_t n = 0, e = x->ahead_expert;
    if (room > x->n_ring - at) room = x->n_ring - at; /* the ring ends here */
    if (room > most && most) room = most;
    if (!b->one_copy) room = 1;
    while (n < room && e + n < b->n_experts && !b->where[e + n]) n++;
    return n;
}

static int send_ahead(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    int rc = 0;
    while (x->ahead_bank < x->n_banks && x->tail - x->head < x->n_ring && !rc) {
        const struct dev_bank *b = &x->banks[x->ahead_bank];
        if (x->ahead_expert == b->n_experts) {
            x->ahead_bank++;
            x->ahead_expert = 0;
            continue;
        }
        uint32_t n = neighbours(x, b);
        if (n) rc = send(d, x->ahead_bank, x->ahead_expert, n, err);
        x->ahead_expert += n ? n : 1;
    }
    return rc;
}

/* With so many rows nearly every expert is asked for: they are sent in their order, through all layers. */
int cu_experts_begin(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    int rc = cu_place_begin(d, err);
    if (rc || !x->n_ring) return rc;
    if (cu_shares(d)) { /* nothing is sent */
        forget(x);
        return cu_share_begin(d, err);
    }
    const ks_op *op = cu_op(d->g, x->banks[0].op);
    if (x->tail > x->taken && (uint64_t)d->batch->n_rows * op->u.mlp.k >= AHEAD * x->banks[0].n_experts) return 0;
    forget(x);
    if ((uint64_t)d->batch->n_rows * op->u.mlp.k < AHEAD * x->banks[0].n_experts) return 0;
    x->ahead_bank = x->ahead_expert = 0;
    return send_ahead(d, err);
}

/* The slot of an expert that is not resident: it was sent ahead, or goes now. */
int cu_ring_take(cu_dev *d, uint32_t bank, uint32_t e, struct ring_slot **ret, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct ring_slot *next = &x->ring[x->taken % x->n_ring];
    int rc = 0;
    if (x->taken < x->tail && (next->bank != bank || next->expert != e)) { /* somebody else's order of ops */
        x->tail = x->taken;
        x->ahead_bank = x->n_banks;
    }
    if (x->taken == x->tail) rc = send(d, bank, e, 1, err);
    *ret = &x->ring[x->taken % x->n_ring];
    x->taken += !rc;
    return rc;
}

/* Sent ahead, and no row wants it. */
static void skip(cu_experts *x, uint32_t bank, uint32_t e)
{
    const struct ring_slot *next = &x->ring[x->taken % x->n_ring];
    if (x->taken < x->tail && next->bank == bank && next->expert == e) x->taken++;
}

int cu_ring_give_back(cu_dev *d, uint32_t keep, ks_err *err)
{
    cu_experts *x = &d->ex;
    int rc = 0;
    for (; x->head + keep < x->taken && !rc; x->head++)
        rc = cu_check(d, cudaEventRecord(x->ring[x->head % x->n_ring].free, d->compute), "an event", err);
    return rc ? rc : send_ahead(d, err);
}

/* ---- streamed experts */

/* How far an EXPERTS op has come. Pairs [base, at) lie in the workspaces. */
struct walk {
    const ks_op *op;
    uint32_t bank, expert; /* the next */
    uint32_t at, base;     /* pair */
    uint32_t ref;          /* the next in the table */
    const uint8_t *w;      /* of an expert whose pairs were cut: where it lies; NULL: none was */
};

/* The next of the op's experts: as many as a part of the ring holds, so that others come while these compute, and as
 * many pairs as the workspaces hold. */
static int fill_group(cu_dev *d, struct walk *k, struct cu_job *j, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *b = &x->banks[k->bank];
    uint64_t hot = 0, cold = 0, first = x->taken, cap = cu_max(x->n_ring / GROUPS, 1);
    struct ring_slot *last = NULL;
    uint32_t tiles = 0;
    int rc = 0;
    j->base = k->base;
    j->first = k->at - k->base;
    while (k->expert < b->n_experts && !rc) {
        uint32_t e = k->expert, left = x->begin_host[e + 1] - k->at,
                 n = cu_min(left, (uint32_t)(x->cap_pairs - (k->at - k->base)));
        const uint8_t *w = k->w ? k->w : b->where[e];
        if (left && !n) break;
        if (!w && x->taken - first == cap) break;
        if (!left) {
            if (!w) skip(x, k->bank, e);
            k->expert++;
            continue;
        }
        *(b->where[e] ? &hot : &cold) += n;
        if (!w && !(rc = cu_ring_take(d, k->bank, e, &last, err))) w = last->p;
        x->refs_host[k->ref + j->n_mat++] = (cu_ref) { w, e, k->at - k->base, n, tiles };
        tiles += cu_tiles(n);
        j->n_rows = cu_max(j->n_rows, n);
        k->at += n;
        k->expert += n == left;
        k->w = n == left ? NULL : w;
    }
    j->n_pairs = k->at - k->base - j->first;
    atomic_fetch_add_explicit(&d->hot, hot, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->cold, cold, memory_order_relaxed);
    if (!rc && last) rc = cu_check(d, cudaStreamWaitEvent(d->compute, last->arrival, 0), "waiting for experts", err);
    return rc;
}

static int run_group(cu_dev *d, struct walk *k, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *b = &x->banks[k->bank];
    struct cu_job j = { .op = k->op, .bank = b, .refs = x->refs + k->ref };
    int rc = fill_group(d, k, &j, err);
    if (rc) return rc;
    if (j.n_mat) {
        rc = cu_fetch(d, x->refs + k->ref, x->refs_host + k->ref, j.n_mat * sizeof *x->refs, err);
        if (rc) return rc;
        k->ref += j.n_mat;
        cu_products(d, &j);
    }
    if ((rc = cu_ring_give_back(d, k->w && !b->where[k->expert], err))) return rc;
    if (k->expert == b->n_experts || k->at - k->base == x->cap_pairs) {
        cu_combine_some(d, k->op, k->base, k->at - k->base);
        k->base = k->at;
    }
    return 0;
}

int cu_run_streamed(cu_dev *d, const ks_op *op, uint32_t bank, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *b = &x->banks[bank];
    struct walk k = { .op = op, .bank = bank };
    int rc = cu_check(d,
                      cudaMemcpyAsync(x->begin_host, x->begin, (b->n_experts + 1) * sizeof *x->begin,
                                      cudaMemcpyDeviceToHost, d->compute),
                      "routed pairs", err);
    if (!rc) rc = cu_wait(d, "routed pairs", err);
    while (k.expert < b->n_experts && !rc) rc = run_group(d, &k, err);
    return rc;
}
