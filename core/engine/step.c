/* One step: drop the cancelled, admit the waiting, deal out the rows, run the device, sample. [engine thread]
 *
 * Every running answer has tokens that the model has not seen. Answers with one such token (decoding) always
 * get their row; the rest of the step's rows are shared equally among those with more (prefill pieces), so neither
 * starves the other; and of a long step, which holds a whole prompt, only a part may be used while others decode. Pages
 * are taken as they are needed; when none is left the youngest answer gives its own back and waits: recomputing gives
 * the same bits, so nobody can tell. */
#include "engine/impl.h"

#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include <math.h>

/* ---- the waiting list */

void ks__wait_append(ks_engine *e, ks_answer *a)
{
    a->next = NULL;
    a->waiting = true;
    if (e->wait_last)
        e->wait_last->next = a;
    else
        e->wait_first = a;
    e->wait_last = a;
}

static void wait_prepend(ks_engine *e, ks_answer *a)
{
    a->next = e->wait_first;
    a->waiting = true;
    e->wait_first = a;
    if (!e->wait_last) e->wait_last = a;
}

static void wait_remove(ks_engine *e, ks_answer *a)
{
    ks_answer **at = &e->wait_first, *prev = NULL;
    while (*at != a) {
        prev = *at;
        at = &(*at)->next;
    }
    *at = a->next;
    a->waiting = false;
    if (e->wait_last == a) e->wait_last = prev;
}

/* ---- ends */

/* The last page is dropped first, and so taken by others first: what is left of a prefix can still be used. */
void ks__answer_release(ks_engine *e, ks_answer *a)
{
    for (uint32_t i = a->n_pages; i > 0; i--) ks_pages_drop(&e->pages, a->pages[i - 1]);
    a->n_pages = a->n_keyed = a->n_done = 0;
    if (a->slot != KS_NO_SLOT) e->free_slots[e->n_free_slots++] = a->slot;
    a->slot = KS_NO_SLOT;
    for (uint32_t i = 0; i < e->n_running; i++)
        if (e->running[i] == a) {
            memmove(&e->running[i], &e->running[i + 1], (e->n_running - i - 1) * sizeof(ks_answer *));
            e->n_running--;
            break;
        }
}

void ks__answer_end(ks_engine *e, ks_answer *a, int32_t finish, const ks_err *err)
{
    ks_job *j = a->job;
    if (a->ended) return;
    a->ended = true;
    if (finish == KS_FINISH_ERROR && err && !j->err.code) j->err = *err;
    if (finish == KS_FINISH_STOP || finish == KS_FINISH_LENGTH) {
        ks_err e2 = { 0 };
        int rc =
            a->emit.held.n || a->emit.n_pending || a->emit.detok ? ks_emit_end(&a->emit, &j->sink, a->choice, &e2) : 0;
        if (rc == KS_EMIT_STOPPED) finish = KS_FINISH_STOP;
        if (rc == KS_EMIT_REFUSED) atomic_store_explicit(&j->cancel, true, memory_order_relaxed);
        if (rc < 0) {
            finish = KS_FINISH_ERROR;
            if (!j->err.code) j->err = e2;
        }
    }
    if (a->waiting) wait_remove(e, a);
    ks__answer_release(e, a);
    j->sink.on_finish(j->sink.arg, a->choice, finish);
    if (--j->n_left == 0) ks__job_done(e, j);
}

void ks__job_end(ks_engine *e, ks_job *j, int32_t finish, const ks_err *err)
{
    for (uint32_t c = 0, n = j->rq.n; c < n; c++) {
        bool last = j->n_left == 1;
        if (!j->answers[c].ended) {
            ks__answer_end(e, &j->answers[c], finish, err);
            if (last) return; /* j is gone */
        }
    }
}

/* ---- waiting and admission */

static void sweep_cancelled(ks_engine *e)
{
    bool again = true;
    while (again) {
        again = false;
        for (ks_answer *a = e->wait_first; a && !again; a = a->next)
            if (atomic_load_explicit(&a->job->cancel, memory_order_relaxed)) {
                ks__answer_end(e, a, KS_FINISH_CANCELED, NULL);
                again = true;
            }
        for (uint32_t i = 0; i < e->n_running && !again; i++)
            if (atomic_load_explicit(&e->running[i]->job->cancel, memory_order_relaxed)) {
                ks__answer_end(e, e->running[i], KS_FINISH_CANCELED, NULL);
                again = true;
            }
    }
}

static ks_snapshot *snapshot_find(ks_engine *e, ks_hash128 key)
{
    for (uint32_t i = 0; i < e->n_snaps; i++)
        if (e->snaps[i].used && e->snaps[i].key.lo == key.lo && e->snaps[i].key.hi == key.hi) return &e->snaps[i];
    return NULL;
}

/* The end of the last whole page of a prompt that later requests may begin with: one token's logits are needed. */
static uint32_t border_of(const ks_answer *a)
{
    return (a->n_prompt - 1) / KS_PAGE_TOK * KS_PAGE_TOK;
}

/* If this step gets to the border of a's prompt, the state there is kept for later requests that begin alike; what it
 * is kept in, or NULL. */
static ks_snapshot *snapshot_take(ks_engine *e, const ks_answer *a)
{
    const uint32_t border = border_of(a);
    if (!e->recurrent || border <= a->n_done || border > a->n_done + a->n_rows) return NULL;
    ks_hash128 key = a->key;
    for (uint32_t n = a->n_keyed; n < border / KS_PAGE_TOK; n++)
        key = ks_page_key(n ? &key : NULL, a->tok + (size_t)n * KS_PAGE_TOK);
    if (snapshot_find(e, key)) return NULL;
    ks_snapshot *oldest = &e->snaps[0];
    for (uint32_t i = 1; i < e->n_snaps; i++)
        if (e->snaps[i].used < oldest->used) oldest = &e->snaps[i];
    if (oldest->used == KS_SNAP_FILLING) return NULL;
    oldest->key = key;
    oldest->used = KS_SNAP_FILLING;
    return oldest;
}

static void snapshots_failed(ks_engine *e)
{
    for (uint32_t i = 0; i < e->n_snaps; i++)
        if (e->snaps[i].used == KS_SNAP_FILLING) e->snaps[i].used = 0;
}

/* Takes over the pages of the longest known prefix, short of the last token, whose logits are needed. With recurrent
 * state only as far as a snapshot of it was kept. */
static int reuse_prefix(ks_engine *e, ks_answer *a, ks_err *err)
{
    uint32_t limit = (a->n_tok - 1) / KS_PAGE_TOK, n = 0, usable = 0;
    ks_hash128 key = { 0, 0 }, usable_key = key;
    ks_snapshot *snap = NULL;
    if (a->job->rq.echo && a->emit.want_tokens) return 0; /* every prompt row's logits are wanted */
    for (; n < limit; n++) {
        ks_hash128 k = ks_page_key(n ? &key : NULL, a->tok + (size_t)n * KS_PAGE_TOK);
        uint32_t page = ks_pages_find(&e->pages, k);
        if (page == KS_NO_PAGE) break;
        a->pages[n] = page;
        key = k;
        ks_snapshot *s = e->recurrent ? snapshot_find(e, key) : NULL;
        if (!e->recurrent || s) {
            usable = n + 1;
            usable_key = key;
            snap = s;
        }
    }
    while (n > usable) ks_pages_drop(&e->pages, a->pages[--n]);
    a->n_pages = a->n_keyed = usable;
    a->key = usable_key;
    a->n_done = usable * KS_PAGE_TOK;
    if (!snap) return 0;
    snap->used = ++e->admissions;
    return e->o.device->copy_slot(e->dev, a->slot, snap->slot, err);
}

static void admit(ks_engine *e)
{
    for (ks_answer *a = e->wait_first, *next; a && e->n_running < e->max_running; a = next) {
        ks_job *j = a->job;
        next = a->next;
        /* choices of one request share the prompt: the first computes it, the others then find its pages */
        const ks_answer *lead = &j->answers[0];
        if (a != lead && !lead->ended && lead->n_done < lead->n_prompt) continue;
        if (e->n_running && e->pages.n_idle < a->n_tok / KS_PAGE_TOK + 2)
            break; /* in order: nobody overtakes a long prompt */
        if (e->recurrent && e->n_free_slots == 0) break;
        wait_remove(e, a);
        if (e->recurrent) a->slot = e->free_slots[--e->n_free_slots];
        a->order = ++e->admissions;
        e->running[e->n_running++] = a;
        ks_err err = { 0 };
        if (reuse_prefix(e, a, &err)) {
            ks__answer_end(e, a, KS_FINISH_ERROR, &err);
            next = e->wait_first;
            continue;
        }
        if (!a->started) {
            a->started = true;
            if (a == lead) {
                j->t_admit = ks_now_ns();
                j->usage.cached_tokens = a->n_done;
                j->usage.queue_ms = (double)(j->t_admit - j->t_submit) / 1e6;
            }
        }
    }
}

/* ---- composition */

static void preempt(ks_engine *e, ks_answer *a)
{
    ks_log(KS_LOG_DEBUG, "engine", "out of KV pages: an answer of %u tokens waits and is computed again", a->n_tok);
    ks__answer_release(e, a);
    a->n_rows = 0;
    wait_prepend(e, a);
}

/* Pages for positions up to `end`; preempts younger answers, at last this one (false). */
static bool provide_pages(ks_engine *e, ks_answer *a, uint32_t end)
{
    while (a->n_pages * KS_PAGE_TOK < end) {
        uint32_t page = ks_pages_take(&e->pages);
        if (page != KS_NO_PAGE) {
            a->pages[a->n_pages++] = page;
            continue;
        }
        ks_answer *victim = a;
        for (uint32_t i = 0; i < e->n_running; i++)
            if (e->running[i]->order > victim->order) victim = e->running[i];
        preempt(e, victim);
        if (victim == a) return false;
    }
    return true;
}

static bool wants_prompt_logits(const ks_answer *a)
{
    return a->job->rq.echo && a->emit.want_tokens && a->n_echoed < a->n_prompt;
}

static void deal_rows(ks_engine *e)
{
    uint32_t n_decode = 0, n_prefill = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        e->running[i]->n_rows = 0;
        if (e->running[i]->n_tok - e->running[i]->n_done == 1)
            n_decode++;
        else
            n_prefill++;
    }
    const uint32_t most = n_decode && e->o.busy_tokens ? KS_MIN(e->step_tokens, e->o.busy_tokens) : e->step_tokens;
    uint32_t left = most - KS_MIN(most, n_decode), out_left = e->max_out - KS_MIN(e->max_out, e->n_running);
    for (uint32_t i = 0; i < e->n_running;) {
        ks_answer *a = e->running[i];
        bool decode = a->n_tok - a->n_done == 1;
        uint32_t n = 1;
        if (!decode) {
            n = KS_MIN(a->n_tok - a->n_done, KS_MAX(left / n_prefill, KS_MIN(left, 16)));
            if (wants_prompt_logits(a)) {
                n = KS_MIN(n, out_left);
                out_left -= n;
            }
            n_prefill--;
            left -= n;
        }
        uint64_t order = a->order;
        if (n && !provide_pages(e, a, a->n_done + n)) continue; /* itself preempted: i is the next one now */
        a->n_rows = n;
        /* a preemption may have moved this answer to the left */
        for (i = 0; i < e->n_running && e->running[i]->order != order;) i++;
        i++;
    }
}

/* Tokens [from, to) of a; keep: as in ks_seq. */
static void add_run(ks_engine *e, ks_batch *b, const ks_answer *a, uint32_t from, uint32_t to, uint32_t keep)
{
    const bool echo = wants_prompt_logits(a);
    e->seqs[b->n_seqs++] = (ks_seq) { .row = b->n_rows,
                                      .n_rows = to - from,
                                      .pos = from,
                                      .slot = a->slot == KS_NO_SLOT ? 0 : a->slot,
                                      .pages = a->pages,
                                      .n_pages = a->n_pages,
                                      .keep = keep };
    for (uint32_t p = from; p < to; p++) {
        if (echo || p + 1 == a->n_tok) e->out_rows[b->n_out++] = b->n_rows;
        e->ids[b->n_rows] = a->tok[p];
        e->pos[b->n_rows++] = p;
    }
}

static void fill_batch(ks_engine *e, ks_batch *b)
{
    *b = (ks_batch) { .size = (uint32_t)sizeof *b,
                      .seq_size = (uint32_t)sizeof(ks_seq),
                      .ids = e->ids,
                      .pos = e->pos,
                      .seqs = e->seqs,
                      .out_rows = e->out_rows,
                      .logits = e->logits };
    for (uint32_t i = 0; i < e->n_running; i++) {
        ks_answer *a = e->running[i];
        if (!a->n_rows) continue;
        uint32_t end = a->n_done + a->n_rows, cut = a->n_done;
        a->row = b->n_rows;
        a->out = b->n_out;
        a->snap = snapshot_take(e, a);
        if (a->snap) add_run(e, b, a, a->n_done, cut = border_of(a), a->snap->slot + 1);
        if (cut < end) add_run(e, b, a, cut, end, 0);
        a->n_out = b->n_out - a->out;
    }
}

/* ---- after the run */

static void publish_pages(ks_engine *e, ks_answer *a)
{
    while ((a->n_keyed + 1) * KS_PAGE_TOK <= a->n_done) {
        a->key = ks_page_key(a->n_keyed ? &a->key : NULL, a->tok + (size_t)a->n_keyed * KS_PAGE_TOK);
        ks_pages_publish(&e->pages, a->pages[a->n_keyed], a->key);
        a->n_keyed++;
    }
    if (a->snap) a->snap->used = ++e->admissions;
    a->snap = NULL;
}

static bool is_eos(const ks_engine *e, int32_t id)
{
    for (uint32_t i = 0; i < e->n_eos; i++)
        if (e->eos[i] == id) return true;
    return false;
}

static const float *logits_of(const ks_engine *e, uint32_t out)
{
    return e->logits + (size_t)out * e->g->n_vocab;
}

/* Tells the sink about one token, with log-probabilities from `z` if wanted (z NULL: the first token, which has none).
 */
static int tell(ks_engine *e, ks_answer *a, int32_t id, const float *z, ks_err *err)
{
    ks_cand lp = { NAN, id }, top[KS_TOP_MAX];
    uint32_t n_top = a->emit.n_top;
    if (a->emit.want_tokens && z)
        lp.logit = ks_logprobs(z, e->g->n_vocab, id, n_top, e->cand, top);
    else
        for (uint32_t i = 0; i < n_top; i++) top[i] = (ks_cand) { NAN, -1 };
    return ks_emit_add(&a->emit, id, &lp, top, &a->job->sink, a->choice, err);
}

/* echo: the prompt comes back in front of the answer. Row p's logits are about token p + 1. */
static int echo_prompt(ks_engine *e, ks_answer *a, uint32_t first_pos, ks_err *err)
{
    bool lp = a->emit.want_tokens;
    uint32_t end = lp ? KS_MIN(first_pos + a->n_out + 1, a->n_prompt) : a->n_prompt;
    for (; a->n_echoed < end; a->n_echoed++) {
        uint32_t p = a->n_echoed;
        const float *z = lp && p > first_pos ? logits_of(e, a->out + p - 1 - first_pos) : NULL;
        int rc = tell(e, a, a->tok[p], z, err);
        if (rc) return rc;
    }
    return 0;
}

/* Takes the sampled token of an answer whose last token went through. Returns KS_FINISH_ or 0 to go on. */
static int32_t advance(ks_engine *e, ks_answer *a, ks_err *err)
{
    ks_job *j = a->job;
    if (a->n_tok - a->n_prompt >= j->max_new) return KS_FINISH_LENGTH; /* max_tokens 0 with echo */
    int32_t id = a->pick;
    if (isnan(logits_of(e, a->out + a->n_out - 1)[id])) {
        ks_fail(err, KS_E_INTERNAL,
                "the model gave no finite logits after %u tokens: the weights are damaged or the precision is too low",
                a->n_done);
        return KS_FINISH_ERROR;
    }
    if (!j->t_first) j->t_first = ks_now_ns();
    ks_sampler_accept(&a->sampler, id, true);
    a->tok[a->n_tok++] = id;
    j->usage.completion_tokens++;
    bool eos = !j->rq.ignore_eos && is_eos(e, id);
    if (eos) return KS_FINISH_STOP;
    const ks_cand lp = { a->pick_lp, id };
    int rc = ks_emit_add(&a->emit, id, a->emit.want_tokens ? &lp : NULL, a->pick_top, &j->sink, a->choice, err);
    if (rc < 0) return KS_FINISH_ERROR;
    if (rc == KS_EMIT_REFUSED) return KS_FINISH_CANCELED;
    if (rc == KS_EMIT_STOPPED) {
        a->emit.held.n = 0; /* the stop string itself is never told */
        a->emit.n_pending = 0;
        ks_detok_free(a->emit.detok);
        a->emit.detok = NULL;
        return KS_FINISH_STOP;
    }
    return a->n_tok - a->n_prompt >= j->max_new ? KS_FINISH_LENGTH : 0;
}

static int32_t after_run(ks_engine *e, ks_answer *a, ks_err *err)
{
    uint32_t first = a->n_done;
    a->n_done += a->n_rows;
    publish_pages(e, a);
    if (a->job->rq.echo && a->n_echoed < a->n_prompt && (a->n_done >= a->n_prompt || a->emit.want_tokens)) {
        int rc = echo_prompt(e, a, first, err);
        if (rc < 0) return KS_FINISH_ERROR;
        if (rc == KS_EMIT_REFUSED) return KS_FINISH_CANCELED;
        if (rc == KS_EMIT_STOPPED) return KS_FINISH_STOP;
    }
    return a->n_done == a->n_tok ? advance(e, a, err) : 0;
}

static void count_step(ks_engine *e, uint64_t t0)
{
    uint32_t waiting = 0;
    for (ks_answer *a = e->wait_first; a; a = a->next) waiting++;
    pthread_mutex_lock(&e->mu);
    e->stats.steps++;
    e->stats.busy_s += (double)(ks_now_ns() - t0) / 1e9;
    e->stats.n_running = e->n_running;
    e->stats.n_waiting = waiting;
    e->stats.kv_pages_used = e->pages.n - e->pages.n_idle;
    pthread_mutex_unlock(&e->mu);
}

bool ks__step(ks_engine *e)
{
    sweep_cancelled(e);
    while (e->lost.code && e->wait_first) ks__job_end(e, e->wait_first->job, KS_FINISH_ERROR, &e->lost);
    admit(e);
    if (e->n_running == 0) return false;
    deal_rows(e);
    ks_batch b;
    fill_batch(e, &b);
    if (b.n_rows == 0) return true; /* everybody waits for pages that the preempted gave back */
    ks_err err = { 0 };
    uint64_t t0 = ks_now_ns();
    int rc = e->o.device->run(e->dev, &b, 0, e->g->n_ops, &err);
    if (rc) {
        ks_log(KS_LOG_ERROR, "engine", "a step of %u rows failed: %s", b.n_rows, err.msg);
        snapshots_failed(e);
        while (e->n_running) ks__job_end(e, e->running[0]->job, KS_FINISH_ERROR, &err);
        if (rc == KS_E_DEVICE) ks__device_lost(e, &err);
        return true;
    }
    ks__hot_after(e, b.n_rows, ks_now_ns() - t0);
    ks__pick_all(e);
    for (uint32_t i = 0; i < e->n_running;) {
        ks_answer *a = e->running[i];
        ks_err aerr = { 0 };
        int32_t finish = a->n_rows ? after_run(e, a, &aerr) : 0;
        a->n_rows = 0;
        if (finish)
            ks__answer_end(e, a, finish, &aerr); /* leaves the list: i is the next one now */
        else
            i++;
    }
    count_step(e, t0);
    return true;
}
