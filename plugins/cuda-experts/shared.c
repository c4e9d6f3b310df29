/* EXPERTS of few rows: nothing is copied and nobody waits who need not.
 *
 * The device goes through the op list by itself. Of a layer's experts it computes with those that it holds and, as far
 * as measured rates say, with cold ones that it reads over the link where the host has them. The others it offers to
 * the host: pairs and rows go into memory that both see (`mail`), then a word with a ticket and the number of pairs.
 * The host, which has launched what follows meanwhile, sees the word, computes, writes sums, and answers with the
 * ticket; the device's kernel that adds everything up waits for it. A row's sum: the experts on the device, held and
 * read in place, in ascending order, plus that of the host's in ascending order.
 *
 * Why nobody waits for ever. By default the kernel that adds up is launched after the answer: nothing waits on the
 * device. With `ahead` it is launched before, and waits for an answer to the last offer only: there is one mail, offers
 * and answers alternate. The host, while it owes an answer, waits for nothing: launches return at once, because at most
 * `ahead` layers are launched beyond the oldest that was answered, far less than the driver's queue holds. (A kernel's
 * first launch may wait for the device, unless all are loaded eagerly.) And both give up after `patience`: the host
 * asks the device for its error and retires it, which ends the device's waiting; the device goes on and says that it
 * was let down, which retires it, too. [engine] */
#include "device.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#define FEW_ROWS 4u       /* up to here the host's cores wait for memory, not for arithmetic */
#define PAUSES 64u        /* between two looks at the clock */
#define LOOK_NS 20000u    /* between two questions for the device's error */
#define HANDSHAKE_NS 4000 /* of an offer and its answer, beside the work */
#define PATIENCE_S 20     /* unless set */
#define FORGET 0.98       /* weight of what was measured before, an answer later */
#define TRIES 6u          /* steps until a way's time is known: the first ones load kernels, and record */
#define TRY_AGAIN 64u     /* one step in so many goes the other way */
#define GROW 1.02         /* how much worse a way may look, a step, until it is measured so */
#define RATE_BYTES ((size_t)64 << 20)

static uint64_t patience_ns(const cu_dev *d)
{
    return (uint64_t)(d->opts->patience ? d->opts->patience : PATIENCE_S) * 1000000000u;
}

/* ---- bind */

int cu_share_lay_out(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    struct cu_share *s = &x->share;
    size_t in = 0, out = 0, k = 0,
           rows = cu_min(d->bind.max_rows, cu_max(d->share_rows - 1, (uint32_t)d->opts->in_place));
    if (!x->n_banks) return 0;
    for (uint32_t i = 0; i < x->n_banks; i++) {
        const ks_op *op = cu_op(d->g, x->banks[i].op);
        size_t width = cu_greg(d->g, (uint32_t)op->in[0])->width, y = cu_gweight(d->g, op->w[1])->n_out;
        in = width > in ? width : in;
        out = y > out ? y : out;
        k = op->u.mlp.k > k ? op->u.mlp.k : k;
    }
    for (s->n_ops = 2; s->n_ops <= x->n_banks;) s->n_ops *= 2;
    if (!(s->mail = cu_alloc_pinned(d, 1, sizeof *s->mail, "experts of the host", err)) ||
        !(s->pairs = cu_alloc_pinned(d, rows * k, sizeof *s->pairs, "experts of the host", err)) ||
        !(s->split = cu_alloc_pinned(d, CU_SPLIT, 1, "experts of the host", err)) ||
        !(s->split_dev = cu_alloc(d, CU_SPLIT, 1, CU_FOR_TABLES, err)) ||
        !(s->n_left = cu_alloc(d, 1, sizeof *s->n_left, CU_FOR_TABLES, err)) ||
        !(s->ticket = cu_alloc(d, 1, sizeof *s->ticket, CU_FOR_TABLES, err)) ||
        !(s->tally = cu_alloc(d, 1, sizeof *s->tally, CU_FOR_TABLES, err)) ||
        !(s->ops = cu_alloc_host(d, s->n_ops, sizeof *s->ops, "experts of the host", err)) ||
        !(s->ids = cu_alloc_host(d, rows * k, sizeof *s->ids, "experts of the host", err)) ||
        !(s->weights = cu_alloc_host(d, rows * k, sizeof *s->weights, "experts of the host", err)) ||
        !(s->keep = cu_alloc_host(d, rows * k, 1, "experts of the host", err)))
        return KS_E_NOMEM;
    if (!d->planning) {
        memset(s->mail, 0, sizeof *s->mail);
        memset(s->split, 0, CU_SPLIT);
    }
    if (!d->bind.cold || d->share_rows < 2) return 0;
    if (!(s->x = cu_alloc_pinned(d, rows * in, sizeof *s->x, "experts of the host", err)) ||
        !(s->y = cu_alloc_pinned(d, rows * out, sizeof *s->y, "experts of the host", err)))
        return KS_E_NOMEM;
    return 0;
}

void cu_share_unbind(cu_dev *d)
{
    struct cu_share *s = &d->ex.share;
    free(s->ops);
    free(s->ids);
    free(s->weights);
    free(s->keep);
}

/* How fast experts are read where they lie. The second time: the first brings the link out of its sleep. */
static int measure_link(cu_dev *d, const struct dev_bank *b, ks_err *err)
{
    cudaEvent_t at[2] = { NULL, NULL };
    size_t all = (size_t)(b->n_experts - 1) * b->gate_up_stride + b->gate_up_bytes;
    size_t bytes = all < RATE_BYTES ? all : RATE_BYTES;
    float ms = 0;
    int rc = 0;
    for (uint32_t i = 0; i < 2 && !rc; i++) rc = cu_check(d, cudaEventCreate(&at[i]), "an event", err);
    if (!rc) {
        cu_launch_read(b->in_place, bytes, d->ex.share.n_left, d->compute);
        rc = cu_check(d, cudaEventRecord(at[0], d->compute), "the link's rate", err);
    }
    if (!rc) {
        cu_launch_read(b->in_place, bytes, d->ex.share.n_left, d->compute);
        rc = cu_check(d, cudaEventRecord(at[1], d->compute), "the link's rate", err);
    }
    if (!rc) rc = cu_check(d, cudaEventSynchronize(at[1]), "the link's rate", err);
    if (!rc) rc = cu_check(d, cudaEventElapsedTime(&ms, at[0], at[1]), "the link's rate", err);
    for (uint32_t i = 0; i < 2; i++)
        if (at[i]) (void)cudaEventDestroy(at[i]); /* of a lost device: see cu_free_all */
    if (!rc) d->ex.share.link_ns = (double)ms * 1e6 / (double)bytes;
    return rc;
}

/* What could not be pinned, or lies apart, the device does not read in place. */
int cu_share_fill(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    const struct dev_bank *one = NULL;
    for (uint32_t i = 0; i < x->n_banks; i++) {
        struct dev_bank *b = &x->banks[i];
        void *p = NULL;
        if (!b->one_copy || !b->pinned || !d->opts->in_place) continue;
        if (cudaHostGetDevicePointer(&p, (void *)(uintptr_t)b->gate_up, 0) != cudaSuccess) {
            (void)cudaGetLastError(); /* copies do as well */
            continue;
        }
        b->in_place = p;
        one = b;
    }
    return one && x->share.x && d->bind.host_places == KS_PLACES_BY_RATE ? measure_link(d, one, err) : 0;
}

/* ---- who computes what */

static void measured(struct cu_line *l, double n, double t)
{
    l->w = l->w * FORGET + 1;
    l->n = l->n * FORGET + n;
    l->nn = l->nn * FORGET + n * n;
    l->t = l->t * FORGET + t;
    l->nt = l->nt * FORGET + n * t;
}

/* Where all n were alike, or noise is stronger, nothing is known about `first`. */
static void line_of(const struct cu_line *l, double *ret_first, double *ret_more)
{
    double var = l->w * l->nn - l->n * l->n, mean = l->n > 0 ? l->t / l->n : 0;
    double more = var > 1e-3 * l->w * l->nn ? (l->w * l->nt - l->n * l->t) / var : mean;
    *ret_more = more > 0 && more < mean ? more : mean;
    *ret_first = l->w > 0 ? (l->t - *ret_more * l->n) / l->w : 0;
}

/* Of n cold experts, so many over the link that both sides end together. */
static uint8_t split_of(double n, double first, double more, double link)
{
    double best = n, t_best = n * link, m = (first + n * more) / (more + link);
    for (double i = (double)(uint32_t)(m < n ? m : n), end = i + 1; i <= end && i < n; i++) {
        double host = first + (n - i) * more, t = host > i * link ? host : i * link;
        if (t < t_best) {
            best = i;
            t_best = t;
        }
    }
    return (uint8_t)best;
}

static int send_split(cu_dev *d, ks_err *err)
{
    cu_experts *x = &d->ex;
    struct cu_share *s = &x->share;
    uint8_t split[CU_SPLIT] = { 0 };
    double first, more, link = s->link_ns * (double)(x->banks[0].gate_up_bytes + x->banks[0].down_bytes);
    line_of(&s->host[d->step_rows > FEW_ROWS], &first, &more);
    if (d->bind.host_places == KS_PLACES_BY_RATE && link > 0 && more > 0)
        for (uint32_t n = 1; n < CU_SPLIT; n++) split[n] = split_of(n, first + HANDSHAKE_NS, more, link);
    if (memcmp(split, s->split, sizeof split) == 0) return 0;
    memcpy(s->split, split, sizeof split);
    return cu_check(d, cudaMemcpyAsync(s->split_dev, s->split, sizeof split, cudaMemcpyHostToDevice, d->compute),
                    "the experts' table", err);
}

/* Whether all cold experts of this step could be read in place. */
static bool could_read(const cu_dev *d)
{
    const cu_experts *x = &d->ex;
    bool all = d->step_rows <= d->opts->in_place;
    for (uint32_t i = 0; i < x->n_banks; i++) all = all && x->banks[i].in_place;
    return all;
}

/* Sharing takes a handshake a layer and cannot be recorded, so a link that is fast enough for all is the better for it.
 * Which it is, measured steps say: each way is tried a few times, then the faster one is taken, and the other tried now
 * and then. */
void cu_share_choose(cu_dev *d)
{
    struct cu_share *s = &d->ex.share;
    const struct cu_way *way = s->way[d->step_rows > FEW_ROWS];
    s->alone = false;
    if (!s->x || d->step_rows >= d->share_rows || d->bind.host_places != KS_PLACES_BY_RATE || !could_read(d)) return;
    if (way[0].n < TRIES || way[1].n < TRIES)
        s->alone = way[0].n >= TRIES;
    else
        s->alone = (way[1].ns < way[0].ns) != (++s->n_chosen % TRY_AGAIN == 0);
}

void cu_share_measured(cu_dev *d, uint64_t ns)
{
    struct cu_share *s = &d->ex.share;
    if (!cu_shares(d)) return;
    struct cu_way *way = &s->way[d->step_rows > FEW_ROWS][s->alone];
    way->ns = way->n && way->ns * GROW < (double)ns ? way->ns * GROW : (double)ns;
    way->n++;
}

static bool host_computes(const cu_dev *d)
{
    return d->ex.share.x && d->step_rows < d->share_rows && !d->ex.share.alone;
}

bool cu_shares_with_host(const cu_dev *d)
{
    return cu_shares(d) && host_computes(d);
}

/* One answer for all banks: what is launched does not depend on what is resident. */
bool cu_shares(const cu_dev *d)
{
    const cu_experts *x = &d->ex;
    if (!x->n_ring || !x->n_banks || d->step_rows > d->piece_rows) return false;
    for (uint32_t i = 0; i < x->n_banks; i++)
        if ((uint64_t)d->step_rows * cu_op(d->g, x->banks[i].op)->u.mlp.k > x->cap_pairs) return false;
    return host_computes(d) || could_read(d);
}

int cu_share_begin(cu_dev *d, ks_err *err)
{
    return host_computes(d) ? send_split(d, err) : 0;
}

/* ---- the host's part */

static void answer(cu_dev *d, uint32_t ticket)
{
    struct cu_share *s = &d->ex.share;
    uint32_t op = s->ops[ticket % s->n_ops], n = d->step_rows, n_experts = s->mail->n_experts;
    const ks_op *o = cu_op(d->g, op);
    uint64_t t0 = cu_now_ns(), ns;
    size_t expert = cu_gweight(d->g, o->w[0])->mat_bytes + cu_gweight(d->g, o->w[1])->mat_bytes;
    for (uint32_t i = 0; i < n * o->u.mlp.k; i++) {
        s->keep[i] = s->pairs[i].expert >= 0;
        s->ids[i] = s->keep[i] ? s->pairs[i].expert : 0;
        s->weights[i] = s->pairs[i].weight;
    }
    d->bind.cold(d->bind.cold_ctx, op, n, s->x, s->ids, s->weights, s->keep, s->y);
    __atomic_store_n(&s->mail->down, (uint64_t)ticket, __ATOMIC_RELEASE);
    ns = cu_now_ns() - t0;
    measured(&s->host[n > FEW_ROWS], n_experts, (double)ns);
    atomic_fetch_add_explicit(&d->cold_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->cold_bytes, n_experts * expert, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->bytes_out, n * sizeof(float) * cu_greg(d->g, (uint32_t)o->in[0])->width,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&d->bytes_in, n * sizeof(float) * cu_gweight(d->g, o->w[1])->n_out, memory_order_relaxed);
}

static bool is_new(const cu_dev *d)
{
    const struct cu_share *s = &d->ex.share;
    return __atomic_load_n(&s->mail->up, __ATOMIC_ACQUIRE) >> 32 != s->answered;
}

/* The last offer, if it is new. Those before it that were not seen had nothing for the host. */
static bool answer_new(cu_dev *d)
{
    struct cu_share *s = &d->ex.share;
    uint64_t up = __atomic_load_n(&s->mail->up, __ATOMIC_ACQUIRE);
    uint32_t ticket = (uint32_t)(up >> 32);
    if (ticket == s->answered) return false;
    if ((uint32_t)up) answer(d, ticket);
    s->answered = ticket;
    return true;
}

/* Until an offer was answered. */
static int wait_offer(cu_dev *d, ks_err *err)
{
    if (answer_new(d)) return 0;
    uint64_t t0 = cu_now_ns(), looked = t0, now = t0, most = patience_ns(d);
    int rc = 0;
    for (;;) {
        uint32_t i = 0;
        for (; i < PAUSES && !is_new(d); i++) _mm_pause();
        now = cu_now_ns();
        if (i < PAUSES) break;
        if (now - looked < LOOK_NS) continue;
        looked = now;
        cudaError_t e = cudaStreamQuery(d->compute);
        if (e == cudaErrorNotReady)
            (void)cudaGetLastError();
        else if (e != cudaSuccess || !is_new(d)) /* idle without an offer: its launch has failed */
            rc = cu_check(d, e != cudaSuccess ? e : cudaErrorLaunchFailure, "experts for the host", err);
        if (!rc && now - t0 > most) rc = cu_check(d, cudaErrorLaunchTimeout, "experts for the host", err);
        if (rc) break;
    }
    atomic_fetch_add_explicit(&d->wait_ns, now - t0, memory_order_relaxed);
    if (!rc) (void)answer_new(d);
    return rc;
}

/* Until at most `left` offers are open. */
static int wait_offers(cu_dev *d, uint32_t left, ks_err *err)
{
    int rc = 0;
    while (!rc && d->ex.share.offered - d->ex.share.answered > left) rc = wait_offer(d, err);
    return rc;
}

int cu_share_drain(cu_dev *d, ks_err *err)
{
    return wait_offers(d, 0, err);
}

void cu_share_over(cu_dev *d)
{
    if (d->ex.share.mail) __atomic_store_n(&d->ex.share.mail->down, CU_OVER, __ATOMIC_RELEASE);
}

/* Also after a failure: the device must not be left waiting. */
int cu_share_finish(cu_dev *d, ks_err *err)
{
    const struct cu_share *s = &d->ex.share;
    int rc = wait_offers(d, 0, err);
    if (!rc && s->mail && __atomic_load_n(&s->mail->late, __ATOMIC_ACQUIRE))
        rc = cu_check(d, cudaErrorLaunchTimeout, "waiting for the host's experts", err);
    return rc;
}

void cu_share_count(cu_dev *d)
{
    struct cu_share *s = &d->ex.share;
    if (!s->mail) return;
    cu_tally t = s->mail->tally;
    atomic_fetch_add_explicit(&d->hot, t.hot - s->seen.hot, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->cold, t.cold - s->seen.cold, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->linked_bytes, t.linked_bytes - s->seen.linked_bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->bytes_in, t.linked_bytes - s->seen.linked_bytes, memory_order_relaxed);
    s->seen = t;
}

/* ---- the device's part */

static cu_offer offer_of(const cu_dev *d, const ks_op *op, const struct dev_bank *b)
{
    const cu_experts *x = &d->ex;
    const struct cu_share *s = &x->share;
    const struct dev_reg *in = &d->regs[op->in[0]], *route = &d->regs[op->in[1]];
    bool host = host_computes(d);
    return (cu_offer) { .n_rows = d->step_rows,
                        .k = op->u.mlp.k,
                        .n_experts = b->n_experts,
                        .n_cols = in->width,
                        .route = (const cu_pair *)(const void *)route->r.p,
                        .route_stride = route->r.stride,
                        .x = in->r,
                        .begin = x->begin,
                        .where = b->where_dev,
                        .in_place = b->in_place,
                        .in_place_stride = b->gate_up_stride,
                        .split = host ? s->split_dev : NULL,
                        .refs = x->refs,
                        .n_refs = x->n_refs,
                        .n_left = s->n_left,
                        .ticket = s->ticket,
                        .slot_pair = x->slot_pair,
                        .expert_bytes = b->gate_up_bytes + b->down_bytes,
                        .tally = s->tally,
                        .mail = s->mail,
                        .mail_pairs = s->pairs,
                        .mail_x = host ? s->x : NULL };
}

static void take(cu_dev *d, const ks_op *op)
{
    cu_experts *x = &d->ex;
    cu_sum t = cu_sum_of(d, op);
    if (x->adds && !host_computes(d)) {
        x->pending = t;
        return;
    }
    t.n_left = x->share.n_left;
    t.ticket = x->share.ticket;
    t.mail = x->share.mail;
    t.mail_y = x->share.y;
    t.patience_ns = patience_ns(d);
    cu_launch_sum(&t, d->compute);
}

int cu_run_shared(cu_dev *d, const ks_op *op, uint32_t bank, ks_err *err)
{
    cu_experts *x = &d->ex;
    struct cu_share *s = &x->share;
    const struct dev_bank *b = &x->banks[bank];
    uint32_t n = d->step_rows * op->u.mlp.k, ahead = (uint32_t)d->opts->ahead;
    bool host = host_computes(d);
    int rc = ahead ? wait_offers(d, ahead - 1, err) : 0;
    if (rc) return rc;
    cu_offer o = offer_of(d, op, b);
    if ((rc = cu_choose_experts(d, op, b, CU_CHOOSE_OFFER, &o, err))) return rc;
    if (host) s->ops[++s->offered % s->n_ops] = b->op;
    if (cu_is_quantized(cu_gweight(d->g, op->w[0])->type)) cu_quantize(d, op->in[0]);
    struct cu_job j = { .op = op,
                        .bank = b,
                        .refs = x->refs,
                        .n_refs = x->n_refs,
                        .n_mat = cu_min(b->n_experts, n),
                        .n_rows = d->step_rows,
                        .n_pairs = n };
    cu_products(d, &j);
    if (!ahead) rc = wait_offers(d, 0, err);
    if (rc) return rc;
    take(d, op);
    if (s->offered != s->answered) (void)answer_new(d); /* there may be one by now */
    return 0;
}
