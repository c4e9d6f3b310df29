/* CONV and DELTA: ops with memory of a fixed size per sequence. A position 0 starts it at zero; rows of one sequence
 * are taken in order, channels and heads run in parallel. Runs of one sequence are rounds, one after the other; what a
 * run leaves may be kept in another slot before the next one goes on. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include <math.h>

/* Channels of a convolution that one task takes, at most. */
#define CONV_CHANNELS 256u

struct rec_job {
    ks_cpu_dev *d;
    const ks_op *op;
    uint32_t n;     /* tasks a sequence */
    uint32_t first; /* sequence of this round */
};

static const ks_kernel *kernel_of(const struct rec_job *j)
{
    return j->d->ops[j->op - j->d->g->ops].kernel[0];
}

static float *state_of(const ks_cpu_dev *d, const ks_op *op, uint32_t slot)
{
    return d->states[op->state].rec + (size_t)slot * d->states[op->state].floats;
}

static void run_rounds(struct rec_job *j, size_t bytes, ks_pool_fn tasks)
{
    ks_cpu_dev *d = j->d;
    const ks_batch *b = d->batch;
    const ks_op *op = j->op;
    const size_t state_bytes = d->states[op->state].floats * sizeof(float);
    for (uint32_t end; j->first < b->n_seqs; j->first = end) {
        end = ks_round_end(b, j->first);
        for (uint32_t i = j->first; i < end; i++)
            if (b->seqs[i].pos == 0) memset(state_of(d, op, b->seqs[i].slot), 0, state_bytes);
        ks__dev_fork(d, j->n * (end - j->first), ks__dev_grain(bytes, b->n_rows / b->n_seqs), tasks, j);
        for (uint32_t i = j->first; i < end; i++)
            if (b->seqs[i].keep && b->seqs[i].keep - 1 != b->seqs[i].slot)
                memcpy(state_of(d, op, b->seqs[i].keep - 1), state_of(d, op, b->seqs[i].slot), state_bytes);
    }
}

size_t ks__delta_floats(const ks_op *op)
{
    return op->u.delta.n_v_heads * ks_delta_floats(op->u.delta.d_k, op->u.delta.d_v);
}

int ks__plan_conv(ks_cpu_dev *d, const ks_op *op, struct dev_op *ret, ks_err *err)
{
    uint32_t n = d->regs[op->in[0]].width, width = op->u.conv.width;
    const float *weight = ks__dev_vector(d, op->w[0]);
    if (!(ret->taps = ks__dev_alloc(d, (size_t)n * width, sizeof *ret->taps, "a convolution's weights", err)))
        return KS_E_NOMEM;
    for (uint32_t c = 0; c < n; c++)
        for (uint32_t i = 0; i < width; i++) ret->taps[(size_t)i * n + c] = weight[(size_t)c * width + i];
    return 0;
}

static void conv_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct rec_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    const struct dev_reg *x = &d->regs[op->in[0]], *y = &d->regs[op->out[0]];
    for (uint32_t t = begin; t < end; t++) {
        const ks_seq *s = &d->batch->seqs[j->first + t / j->n];
        uint32_t first = t % j->n * (CONV_CHANNELS / 16),
                 last = KS_MIN(first + CONV_CHANNELS / 16, (x->width + 15) / 16);
        ks_conv_args a = { .size = sizeof a,
                           .n_rows = s->n_rows,
                           .n = x->width,
                           .width = op->u.conv.width,
                           .pos = s->pos,
                           .act = op->u.conv.act,
                           .x = ks__dev_row(d, (uint32_t)op->in[0], s->row),
                           .x_stride = x->stride,
                           .weight = d->ops[op - d->g->ops].taps,
                           .bias = ks__dev_vector(d, op->w[1]),
                           .state = state_of(d, op, s->slot),
                           .y = ks__dev_row(d, (uint32_t)op->out[0], s->row),
                           .y_stride = y->stride };
        kernel_of(j)->fn(&a, first, last, ks__dev_kernel_scratch(d, worker));
    }
}

int ks__op_conv(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    struct rec_job j = { d, op, (d->regs[op->in[0]].width + CONV_CHANNELS - 1) / CONV_CHANNELS, 0 };
    (void)index, (void)err;
    run_rounds(&j, (size_t)CONV_CHANNELS * op->u.conv.width * 2 * sizeof(float), conv_tasks);
    return 0;
}

static void delta_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct rec_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    for (uint32_t t = begin, n; t < end; t += n) { /* heads of one sequence together */
        const ks_seq *s = &d->batch->seqs[j->first + t / j->n];
        uint32_t h = t % j->n;
        n = KS_MIN(j->n - h, end - t);
        ks_delta_args a = { .size = sizeof a,
                            .n_rows = s->n_rows,
                            .n_k_heads = op->u.delta.n_k_heads,
                            .n_v_heads = op->u.delta.n_v_heads,
                            .d_k = op->u.delta.d_k,
                            .d_v = op->u.delta.d_v,
                            .pos = s->pos,
                            .scale = 1.0f / sqrtf((float)op->u.delta.d_k),
                            .q = ks__dev_row(d, (uint32_t)op->in[0], s->row),
                            .k = ks__dev_row(d, (uint32_t)op->in[1], s->row),
                            .v = ks__dev_row(d, (uint32_t)op->in[2], s->row),
                            .b = ks__dev_row(d, (uint32_t)op->in[3], s->row),
                            .a = ks__dev_row(d, (uint32_t)op->in[4], s->row),
                            .q_stride = d->regs[op->in[0]].stride,
                            .k_stride = d->regs[op->in[1]].stride,
                            .v_stride = d->regs[op->in[2]].stride,
                            .b_stride = d->regs[op->in[3]].stride,
                            .a_stride = d->regs[op->in[4]].stride,
                            .neg_a = ks__dev_vector(d, op->w[0]),
                            .dt = ks__dev_vector(d, op->w[1]),
                            .state = state_of(d, op, s->slot),
                            .o = ks__dev_row(d, (uint32_t)op->out[0], s->row),
                            .o_stride = d->regs[op->out[0]].stride };
        kernel_of(j)->fn(&a, h, h + n, ks__dev_kernel_scratch(d, worker));
    }
}

int ks__op_delta(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    struct rec_job j = { d, op, op->u.delta.n_v_heads, 0 };
    (void)index, (void)err;
    run_rounds(&j, (size_t)op->u.delta.d_k * op->u.delta.d_v * sizeof(float), delta_tasks);
    return 0;
}
