/* CONV and DELTA: ops with memory of a fixed size per sequence. A position 0 starts it at zero; rows of one sequence
 * are taken in order, channels and heads run in parallel. [engine] forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include <math.h>

struct rec_job {
    ks_cpu_dev *d;
    const ks_op *op;
    const ks_seq *s;
    float *state; /* of this sequence */
};

static float *state_of(const ks_cpu_dev *d, const ks_op *op, const ks_seq *s)
{
    size_t n = d->g->states[op->state].floats;
    float *p = d->states[op->state].rec + s->slot * n;
    if (s->pos == 0) memset(p, 0, n * sizeof *p);
    return p;
}

static void over_seqs(ks_cpu_dev *d, const ks_op *op, uint32_t n, uint32_t min_grain, ks_pool_fn fn)
{
    for (uint32_t i = 0; i < d->batch->n_seqs; i++) {
        const ks_seq *s = &d->batch->seqs[i];
        struct rec_job j = { d, op, s, state_of(d, op, s) };
        ks__dev_fork(d, n, KS_MAX(min_grain / s->n_rows, 1u), fn, &j);
    }
}

/* The state holds the last width - 1 inputs of each channel, oldest first. */
static void conv_channels(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct rec_job *j = arg;
    ks_cpu_dev *d = j->d;
    uint32_t k = j->op->u.conv.width, n = k - 1;
    const float *weight = ks__dev_vector(d, j->op->w[0]), *bias = ks__dev_vector(d, j->op->w[1]);
    (void)worker;
    for (uint32_t r = j->s->row; r < j->s->row + j->s->n_rows; r++) {
        const float *x = ks__dev_row(d, (uint32_t)j->op->in[0], r);
        float *y = ks__dev_row(d, (uint32_t)j->op->out[0], r);
        for (uint32_t c = begin; c < end; c++) {
            const float *w = weight + (size_t)c * k;
            float *past = j->state + (size_t)c * n, in = x[c], sum = 0;
            for (uint32_t i = 0; i < n; i++) sum += past[i] * w[i];
            sum += in * w[n];
            for (uint32_t i = 0; i + 1 < n; i++) past[i] = past[i + 1];
            if (n) past[n - 1] = in;
            if (bias) sum += bias[c];
            y[c] = j->op->u.conv.act == KS_ACT1_SILU ? sum / (1.0f + expf(-sum)) : sum;
        }
    }
}

int ks__op_conv(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    over_seqs(d, op, d->regs[op->in[0]].width, 4096, conv_channels);
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

static void delta_heads(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct rec_job *j = arg;
    ks_cpu_dev *d = j->d;
    const ks_op *op = j->op;
    uint32_t dk = op->u.delta.d_k, dv = op->u.delta.d_v, share = op->u.delta.n_v_heads / op->u.delta.n_k_heads;
    const float *neg_a = ks__dev_vector(d, op->w[0]), *dt = ks__dev_vector(d, op->w[1]);
    float *t = ks__dev_scratch(d, worker), scale = 1.0f / sqrtf((float)dk);
    for (uint32_t h = begin; h < end; h++) {
        float *s = j->state + (size_t)h * dk * dv;
        size_t kh = h / share;
        for (uint32_t r = j->s->row; r < j->s->row + j->s->n_rows; r++) {
            float b = ks__dev_row(d, (uint32_t)op->in[3], r)[h], a = ks__dev_row(d, (uint32_t)op->in[4], r)[h];
            delta_token(s, dk, dv, ks__dev_row(d, (uint32_t)op->in[0], r) + kh * dk,
                        ks__dev_row(d, (uint32_t)op->in[1], r) + kh * dk,
                        ks__dev_row(d, (uint32_t)op->in[2], r) + (size_t)h * dv, expf(neg_a[h] * softplus(a + dt[h])),
                        1.0f / (1.0f + expf(-b)), scale, t, ks__dev_row(d, (uint32_t)op->out[0], r) + (size_t)h * dv);
        }
    }
}

int ks__op_delta(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    (void)index, (void)err;
    over_seqs(d, op, op->u.delta.n_v_heads, 1, delta_heads);
    return 0;
}
