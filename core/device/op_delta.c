/* CONV and DELTA: ops with memory of a fixed size per sequence. A position 0 starts it at zero; rows of one sequence
 * are taken in order, channels and heads run in parallel. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include <math.h>

/* Channels of a convolution that one task takes. */
#define CONV_CHANNELS 256u

struct rec_job {
    ks_cpu_dev *d;
    const ks_op *op;
    uint32_t n; /* tasks a sequence */
};

static float *state_of(const ks_cpu_dev *d, const ks_op *op, const ks_seq *s)
{
    return d->states[op->state].rec + (size_t)s->slot * d->g->states[op->state].floats;
}

static void start(ks_cpu_dev *d, const ks_op *op)
{
    for (uint32_t i = 0; i < d->batch->n_seqs; i++)
        if (d->batch->seqs[i].pos == 0)
            memset(state_of(d, op, &d->batch->seqs[i]), 0, d->g->states[op->state].floats * sizeof(float));
}

/* The state holds the last width - 1 inputs of each channel, oldest first. */
static void conv_part(const struct rec_job *j, const ks_seq *s, uint32_t begin, uint32_t end)
{
    ks_cpu_dev *d = j->d;
    uint32_t k = j->op->u.conv.width, n = k - 1;
    const float *weight = ks__dev_vector(d, j->op->w[0]), *bias = ks__dev_vector(d, j->op->w[1]);
    for (uint32_t r = s->row; r < s->row + s->n_rows; r++) {
        const float *x = ks__dev_row(d, (uint32_t)j->op->in[0], r);
        float *y = ks__dev_row(d, (uint32_t)j->op->out[0], r);
        for (uint32_t c = begin; c < end; c++) {
            const float *w = weight + (size_t)c * k;
            float *past = state_of(d, j->op, s) + (size_t)c * n, in = x[c], sum = 0;
            for (uint32_t i = 0; i < n; i++) sum += past[i] * w[i];
            sum += in * w[n];
            for (uint32_t i = 0; i + 1 < n; i++) past[i] = past[i + 1];
            if (n) past[n - 1] = in;
            if (bias) sum += bias[c];
            y[c] = j->op->u.conv.act == KS_ACT1_SILU ? sum / (1.0f + expf(-sum)) : sum;
        }
    }
}

static void conv_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct rec_job *j = arg;
    uint32_t width = j->d->regs[j->op->in[0]].width;
    (void)worker;
    for (uint32_t t = begin; t < end; t++) {
        uint32_t c = t % j->n * CONV_CHANNELS;
        conv_part(j, &j->d->batch->seqs[t / j->n], c, KS_MIN(c + CONV_CHANNELS, width));
    }
}

int ks__op_conv(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    struct rec_job j = { d, op, (d->regs[op->in[0]].width + CONV_CHANNELS - 1) / CONV_CHANNELS };
    (void)index, (void)err;
    start(d, op);
    size_t bytes = (size_t)CONV_CHANNELS * op->u.conv.width * 2 * sizeof(float);
    ks__dev_fork(d, j.n * d->batch->n_seqs, ks__dev_grain(bytes, d->batch->n_rows / d->batch->n_seqs), conv_tasks, &j);
    return 0;
}

static float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

/* One token of one head. S (d_k, d_v): S <- e^g S + k (beta (v - S^T k))^T; o = S^T q. t: d_v floats. */
static void delta_token(float *s, uint32_t dk, uint32_t dv, const float *q, const float *k, const float *v, float decay,
                        float beta, float scale, float *t, float *o)
{
    for (uint32_t j = 0; j < dv; j++) t[j] = 0;
    for (uint32_t i = 0; i < dk; i++) {
        float *row = s + (size_t)i * dv;
        for (uint32_t j = 0; j < dv; j++) {
            row[j] *= decay;
            t[j] += row[j] * k[i];
        }
    }
    for (uint32_t j = 0; j < dv; j++) t[j] = (v[j] - t[j]) * beta;
    for (uint32_t j = 0; j < dv; j++) o[j] = 0;
    for (uint32_t i = 0; i < dk; i++) {
        float *row = s + (size_t)i * dv, qi = q[i] * scale;
        for (uint32_t j = 0; j < dv; j++) {
            row[j] += k[i] * t[j];
            o[j] += row[j] * qi;
        }
    }
}

static void delta_head(const struct rec_job *j, const ks_seq *s, uint32_t h, float *t)
{
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    uint32_t dk = op->u.delta.d_k, dv = op->u.delta.d_v, kh = h / (op->u.delta.n_v_heads / op->u.delta.n_k_heads);
    float neg_a = ks__dev_vector(d, op->w[0])[h], dt = ks__dev_vector(d, op->w[1])[h], scale = 1.0f / sqrtf((float)dk);
    float *state = state_of(d, op, s) + (size_t)h * dk * dv;
    for (uint32_t r = s->row; r < s->row + s->n_rows; r++) {
        const float *q = ks__dev_row(d, (uint32_t)op->in[0], r) + (size_t)kh * dk;
        const float *k = ks__dev_row(d, (uint32_t)op->in[1], r) + (size_t)kh * dk;
        const float *v = ks__dev_row(d, (uint32_t)op->in[2], r) + (size_t)h * dv;
        float b = ks__dev_row(d, (uint32_t)op->in[3], r)[h], a = ks__dev_row(d, (uint32_t)op->in[4], r)[h];
        float decay = expf(neg_a * softplus(a + dt)), beta = 1.0f / (1.0f + expf(-b));
        delta_token(state, dk, dv, q, k, v, decay, beta, scale, t,
                    ks__dev_row(d, (uint32_t)op->out[0], r) + (size_t)h * dv);
    }
}

static void delta_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct rec_job *j = arg;
    for (uint32_t t = begin; t < end; t++)
        delta_head(j, &j->d->batch->seqs[t / j->n], t % j->n, ks__dev_scratch(j->d, worker));
}

int ks__op_delta(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    struct rec_job j = { d, op, op->u.delta.n_v_heads };
    (void)index, (void)err;
    start(d, op);
    size_t bytes = (size_t)op->u.delta.d_k * op->u.delta.d_v * 2 * sizeof(float);
    ks__dev_fork(d, j.n * d->batch->n_seqs, ks__dev_grain(bytes, d->batch->n_rows / d->batch->n_seqs), delta_tasks, &j);
    return 0;
}
