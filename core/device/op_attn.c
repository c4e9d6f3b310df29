/* ATTN: appends keys and values to the paged cache, then attends; and what latent attention shares with it: cutting
 * rows, heads and, for a long context, keys into tasks. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"

/* Queries that a task may bring to the same keys: each key is converted once for all of them, or for as many of them as
 * a kernel takes at once. */
#define TASK_QUERIES 128u
/* Tasks for each thread: enough to even out what differs. */
#define TASKS_EACH 4u

/* ---- append */

struct append_job {
    ks_cpu_dev *d;
    uint32_t reg, stride, col;
    uint8_t *cache;
    size_t page_bytes;
};

static void append_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct append_job *j = arg;
    const ks_cpu_dev *d = j->d;
    const struct dev_reg *r = &d->regs[j->reg];
    for (uint32_t s = 0; s < d->batch->n_seqs; s++) {
        const ks_seq *q = &d->batch->seqs[s];
        uint32_t from = KS_MAX(begin, q->row), to = KS_MIN(end, q->row + q->n_rows);
        if (from >= to) continue;
        ks_store_args a = { .size = sizeof a,
                            .n_rows = q->n_rows,
                            .n = r->width,
                            .pos = q->pos,
                            .page_tok = d->bind.page_tok,
                            .y_stride = j->stride,
                            .col = j->col,
                            .x = (const float *)r->p + q->row * r->stride,
                            .x_stride = r->stride,
                            .pages = q->pages,
                            .y = j->cache,
                            .page_bytes = j->page_bytes };
        d->store->fn(&a, from - q->row, to - q->row, ks__dev_kernel_scratch(d, worker));
    }
}

void ks__dev_append(ks_cpu_dev *d, uint32_t reg, uint8_t *cache, size_t page_bytes, uint32_t stride, uint32_t col)
{
    struct append_job j = { d, reg, stride, col, cache, page_bytes };
    ks__dev_fork(d, d->batch->n_rows, KS_MAX(32768u / d->regs[reg].width, 1u), append_rows, &j);
}

/* ---- tasks */

/* Spans of keys that the last row of a sequence sees, and the first of them. */
static uint32_t spans_of(const struct dev_attend *w, const ks_seq *s, uint32_t *ret_first)
{
    uint32_t p = s->pos + s->n_rows - 1, lo = 0;
    if (w->window && p >= w->window) lo = p - w->window + 1;
    if (w->chunk) lo = KS_MAX(lo, p - p % w->chunk);
    *ret_first = lo / KS_ATTN_SPAN;
    return p / KS_ATTN_SPAN - *ret_first + 1;
}

static uint32_t part_stride(const struct dev_attend *w)
{
    return (uint32_t)ks_align_up(w->d_v, 16) + 16;
}

static uint32_t heads_of(const struct dev_attend *w, uint32_t group)
{
    return KS_MIN(w->per, w->n_heads - group * w->per);
}

/* Rows of sequence i among those of w, as rows of the sequence. */
static uint32_t rows_of(const struct dev_attend *w, uint32_t i, uint32_t *ret_first)
{
    const ks_seq *s = &w->d->batch->seqs[i];
    uint32_t from = KS_MAX(s->row, w->row), to = KS_MIN(s->row + s->n_rows, w->row + w->n_rows);
    *ret_first = from - s->row;
    return to > from ? to - from : 0;
}

/* Spans that a task may take so that there are TASKS_EACH tasks for each thread, were every unit cut there. */
static uint32_t span_step(const struct dev_attend *w)
{
    const ks_cpu_dev *d = w->d;
    uint64_t work = 0, share = (uint64_t)TASKS_EACH * d->n_threads;
    uint32_t unused;
    if (d->n_threads == 1 || w->sel || !d->part || !(d->attn->flags & KS_KF_SPANS)) return UINT32_MAX;
    for (uint32_t i = 0; i < d->batch->n_seqs; i++)
        work += (uint64_t)rows_of(w, i, &unused) * w->groups * spans_of(w, &d->batch->seqs[i], &unused);
    return (uint32_t)((work + share - 1) / share);
}

/* One row with many keys: a task for every `step` spans, and one that merges them, at the other end of d->tasks. */
static bool split_row(struct dev_attend *w, uint32_t seq, uint32_t row, uint32_t step)
{
    ks_cpu_dev *d = w->d;
    uint32_t first, n = spans_of(w, &d->batch->seqs[seq], &first);
    size_t floats = (size_t)w->n_heads * n * part_stride(w);
    if (n <= step || floats > d->n_part - w->part_used) return false;
    for (uint32_t g = 0; g < w->groups; g++) {
        struct dev_task t = { .seq = seq, .row = row, .n_rows = 1, .group = g, .first = first, .n_spans = n };
        t.part = w->part_used + (size_t)g * w->per * n * part_stride(w);
        for (uint32_t s = 0; s < n; s += step) {
            t.span_begin = first + s;
            t.span_end = first + KS_MIN(s + step, n);
            d->tasks[w->n_tasks++] = t;
        }
        t.span_begin = first;
        t.span_end = first + n;
        t.merge = true;
        d->tasks[d->n_tasks - ++w->n_merges] = t;
    }
    w->part_used += floats;
    return true;
}

static uint32_t common_divisor(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static void make_tasks(struct dev_attend *w)
{
    ks_cpu_dev *d = w->d;
    uint32_t step = span_step(w), share = TASKS_EACH * d->n_threads, first;
    uint32_t rows = (uint32_t)(((uint64_t)w->n_rows * w->groups + share - 1) / share);
    rows = KS_MAX(KS_MIN(rows, TASK_QUERIES / w->per), 1u);
    for (uint32_t i = 0; i < d->batch->n_seqs; i++) {
        uint32_t n = rows_of(w, i, &first);
        if (n == 1 && split_row(w, i, first, step)) continue;
        for (uint32_t r = 0; r < n; r += rows)
            for (uint32_t g = 0; g < w->groups; g++)
                d->tasks[w->n_tasks++] =
                    (struct dev_task) { .seq = i, .row = first + r, .n_rows = KS_MIN(rows, n - r), .group = g };
    }
    /* Later rows of a prompt see more keys, long sequences stand beside short ones: tasks are dealt in an order that
     * jumps about by the golden section, so that equal shares are equal work. */
    w->jump = (uint32_t)((uint64_t)w->n_tasks * 618 / 1000);
    w->jump = KS_MAX(w->jump, 1u);
    while (common_divisor(w->jump, w->n_tasks) != 1) w->jump++;
}

static void run_task(const struct dev_attend *w, const struct dev_task *t, uint32_t worker)
{
    ks_cpu_dev *d = w->d;
    const ks_seq *s = &d->batch->seqs[t->seq];
    uint32_t at = s->row + t->row - w->row, h0 = t->group * w->per;
    ks_attn_args a = { .size = sizeof a,
                       .n_rows = t->n_rows,
                       .n_heads = heads_of(w, t->group),
                       .n_kv_heads = 1,
                       .d_k = w->d_k,
                       .d_v = w->d_v,
                       .page_tok = d->bind.page_tok,
                       .pos = s->pos + t->row,
                       .window = w->window,
                       .chunk = w->chunk,
                       .scale = w->scale,
                       .softcap = w->softcap,
                       .q = w->q + at * w->q_stride + (size_t)h0 * w->d_k,
                       .q_stride = w->q_stride,
                       .o = w->o + at * w->o_stride + (size_t)h0 * w->d_v,
                       .o_stride = w->o_stride,
                       .pages = s->pages,
                       .k = w->k + t->group * w->k_step,
                       .v = w->v + t->group * w->v_step,
                       .k_page_bytes = w->k_page_bytes,
                       .v_page_bytes = w->v_page_bytes,
                       .k_stride = w->k_stride,
                       .v_stride = w->v_stride,
                       .sinks = w->sinks ? w->sinks + h0 : NULL };
    if (w->sel) {
        a.sel = (const uint32_t *)w->sel->p + (s->row + t->row) * w->sel->stride;
        a.n_sel = w->sel->n_sel + s->row + t->row;
        a.sel_stride = (uint32_t)w->sel->stride;
    }
    if (t->n_spans) {
        a.part = d->part + t->part;
        a.part_first = t->first;
        a.part_spans = t->n_spans;
        a.part_stride = part_stride(w);
        a.span_begin = t->span_begin;
        a.span_end = t->span_end;
        a.part_merge = t->merge;
    }
    d->attn->fn(&a, 0, t->n_rows, ks__dev_kernel_scratch(d, worker));
    if (w->done && (t->merge || !t->n_spans)) w->done(w->arg, at, t->n_rows, h0, a.n_heads, worker);
}

static void run_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct dev_attend *w = arg;
    for (uint32_t i = begin; i < end; i++) run_task(w, &w->d->tasks[(uint64_t)i * w->jump % w->n_tasks], worker);
}

static void run_merges(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct dev_attend *w = arg;
    for (uint32_t i = begin; i < end; i++) run_task(w, &w->d->tasks[w->d->n_tasks - 1 - i], worker);
}

void ks__dev_attend(struct dev_attend *w)
{
    const ks_batch *b = w->d->batch;
    size_t keys = 0;
    for (uint32_t s = 0; s < b->n_seqs; s++) keys += (size_t)b->seqs[s].pos + b->seqs[s].n_rows;
    make_tasks(w);
    size_t bytes = keys / b->n_seqs * (w->d_k + w->d_v) * w->per;
    ks__dev_fork(w->d, w->n_tasks, ks__dev_grain(bytes, w->n_rows * w->groups / w->n_tasks), run_tasks, w);
    ks__dev_fork(w->d, w->n_merges, 1, run_merges, w);
}

int ks__op_attn(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    const struct dev_reg *q = &d->regs[op->in[0]], *o = &d->regs[op->out[0]];
    uint32_t elem = ks_type_bits(d->bind.kv_type) / 8, n_kv = op->u.attn.n_kv_heads;
    (void)index, (void)err;
    ks__dev_append(d, (uint32_t)op->in[1], st->k, st->k_page_bytes, d->regs[op->in[1]].width, 0);
    ks__dev_append(d, (uint32_t)op->in[2], st->v, st->v_page_bytes, d->regs[op->in[2]].width, 0);
    struct dev_attend w = { .d = d,
                            .n_heads = op->u.attn.n_heads,
                            .per = op->u.attn.n_heads / n_kv,
                            .groups = n_kv,
                            .d_k = op->u.attn.d_k,
                            .d_v = op->u.attn.d_v,
                            .window = op->u.attn.window,
                            .chunk = op->u.attn.chunk,
                            .scale = op->u.attn.scale,
                            .softcap = op->u.attn.softcap,
                            .n_rows = d->batch->n_rows,
                            .q = q->p,
                            .q_stride = q->stride,
                            .o = o->p,
                            .o_stride = o->stride,
                            .k = st->k,
                            .v = st->v,
                            .k_page_bytes = st->k_page_bytes,
                            .v_page_bytes = st->v_page_bytes,
                            .k_step = (size_t)op->u.attn.d_k * elem,
                            .v_step = (size_t)op->u.attn.d_v * elem,
                            .k_stride = n_kv * op->u.attn.d_k,
                            .v_stride = n_kv * op->u.attn.d_v,
                            .sinks = ks__dev_vector(d, op->w[0]),
                            .sel = op->u.attn.sel < 0 ? NULL : &d->regs[op->u.attn.sel] };
    ks__dev_attend(&w);
    return 0;
}
