/* ATTN: appends keys and values to the paged cache, then attends, in parallel over rows and kv heads.
 * [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include "base/num.h"

/* Consecutive rows of a sequence that one task takes when there are many: they read the same keys. */
#define TASK_ROWS 16u

struct append_job {
    ks_cpu_dev *d;
    uint32_t reg, stride, col;
    uint8_t *cache;
    size_t page_bytes;
};

static void store_row(uint32_t type, uint8_t *dst, const float *x, uint32_t n)
{
    if (type == KS_T_F32)
        memcpy(dst, x, n * sizeof *x);
    else if (type == KS_T_BF16)
        for (uint32_t i = 0; i < n; i++) ((uint16_t *)(void *)dst)[i] = ks_f32_to_bf16(x[i]);
    else
        for (uint32_t i = 0; i < n; i++) dst[i] = ks_f32_to_f8e4m3(x[i]);
}

static void append_rows(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct append_job *j = arg;
    const ks_batch *b = j->d->batch;
    uint32_t elem = ks_type_bits(j->d->bind.kv_type) / 8, page_tok = j->d->bind.page_tok;
    (void)worker;
    for (uint32_t s = 0; s < b->n_seqs; s++) {
        const ks_seq *q = &b->seqs[s];
        for (uint32_t r = KS_MAX(begin, q->row); r < KS_MIN(end, q->row + q->n_rows); r++) {
            uint32_t pos = q->pos + (r - q->row);
            uint8_t *row =
                j->cache + q->pages[pos / page_tok] * j->page_bytes + (size_t)(pos % page_tok) * j->stride * elem;
            store_row(j->d->bind.kv_type, row + (size_t)j->col * elem, ks__dev_row(j->d, j->reg, r),
                      j->d->regs[j->reg].width);
        }
    }
}

void ks__dev_append(ks_cpu_dev *d, uint32_t reg, uint8_t *cache, size_t page_bytes, uint32_t stride, uint32_t col)
{
    struct append_job j = { d, reg, stride, col, cache, page_bytes };
    ks__dev_fork(d, d->batch->n_rows, KS_MAX(8192u / d->regs[reg].width, 1u), append_rows, &j);
}

/* Later rows of a prompt see more keys: first and last alternate, so that equal shares are equal work. */
static void mix(struct dev_task *t, uint32_t n)
{
    for (uint32_t i = 1; i + 1 < n; i += 2) {
        uint32_t j = n - 1 - i;
        if (j <= i) break;
        struct dev_task u = t[i];
        t[i] = t[j];
        t[j] = u;
    }
}

uint32_t ks__dev_tasks(ks_cpu_dev *d, uint32_t units)
{
    const ks_batch *b = d->batch;
    uint32_t n = 0, rows = b->n_rows / TASK_ROWS >= 4 * d->n_threads ? TASK_ROWS : 1;
    for (uint32_t s = 0; s < b->n_seqs; s++) {
        uint32_t total = b->seqs[s].n_rows * units, step = rows == 1 ? 1 : rows * units;
        for (uint32_t u = 0; u < total; u += step) d->tasks[n++] = (struct dev_task) { s, u, KS_MIN(u + step, total) };
    }
    mix(d->tasks, n);
    return n;
}

struct attn_job {
    ks_cpu_dev *d;
    const ks_op *op;
};

static void attn_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct attn_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    const struct dev_state *st = &d->states[op->state];
    const struct dev_reg *q = &d->regs[op->in[0]], *o = &d->regs[op->out[0]];
    const struct dev_reg *sel = op->u.attn.sel < 0 ? NULL : &d->regs[op->u.attn.sel];
    for (uint32_t i = begin; i < end; i++) {
        const struct dev_task *t = &d->tasks[i];
        const ks_seq *s = &d->batch->seqs[t->seq];
        ks_attn_args a = { .size = sizeof a,
                           .n_rows = s->n_rows,
                           .n_heads = op->u.attn.n_heads,
                           .n_kv_heads = op->u.attn.n_kv_heads,
                           .d_k = op->u.attn.d_k,
                           .d_v = op->u.attn.d_v,
                           .page_tok = d->bind.page_tok,
                           .pos = s->pos,
                           .window = op->u.attn.window,
                           .chunk = op->u.attn.chunk,
                           .scale = op->u.attn.scale,
                           .softcap = op->u.attn.softcap,
                           .q = (const float *)q->p + s->row * q->stride,
                           .q_stride = q->stride,
                           .o = (float *)o->p + s->row * o->stride,
                           .o_stride = o->stride,
                           .pages = s->pages,
                           .k = st->k,
                           .v = st->v,
                           .k_page_bytes = st->k_page_bytes,
                           .v_page_bytes = st->v_page_bytes,
                           .k_stride = op->u.attn.n_kv_heads * op->u.attn.d_k,
                           .v_stride = op->u.attn.n_kv_heads * op->u.attn.d_v,
                           .sinks = ks__dev_vector(d, op->w[0]) };
        if (sel) {
            a.sel = (const uint32_t *)sel->p + s->row * sel->stride;
            a.n_sel = sel->n_sel + s->row;
            a.sel_stride = (uint32_t)sel->stride;
        }
        d->attn->fn(&a, t->begin, t->end, ks__dev_kernel_scratch(d, worker));
    }
}

int ks__op_attn(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    const struct dev_state *st = &d->states[op->state];
    struct attn_job j = { d, op };
    (void)index, (void)err;
    ks__dev_append(d, (uint32_t)op->in[1], st->k, st->k_page_bytes, d->regs[op->in[1]].width, 0);
    ks__dev_append(d, (uint32_t)op->in[2], st->v, st->v_page_bytes, d->regs[op->in[2]].width, 0);
    uint32_t group = op->u.attn.n_heads / op->u.attn.n_kv_heads, n = ks__dev_tasks(d, op->u.attn.n_kv_heads);
    size_t keys = 0;
    for (uint32_t s = 0; s < d->batch->n_seqs; s++) keys += (size_t)d->batch->seqs[s].pos + d->batch->seqs[s].n_rows;
    size_t bytes = keys / d->batch->n_seqs * (op->u.attn.d_k + op->u.attn.d_v) * group;
    ks__dev_fork(d, n, ks__dev_grain(bytes, d->batch->n_rows * op->u.attn.n_kv_heads / n), attn_tasks, &j);
    return 0;
}
