/* EXPERTS and MLP: gated feed-forward of many experts or one.
 *
 * (row, expert) pairs are sorted by expert. Then two forks: the hidden layer (gate, up, activation, quantization), and
 * the output, whose tasks own strips and add up all experts for them. A row's sum takes its experts in ascending order,
 * whatever else is in the batch.
 *
 * A task of the hidden layer owns 128 columns of one expert, one group of quantized activations, where there are enough
 * such tasks for all threads. Else the columns are cut finer: a task owns the same strips of several experts, so that a
 * worker reads the same stretch of each expert every time; what it has made is quantized between the forks. [engine]
 * forks [worker]s */
#include "device/cpu_impl.h"

#include "base/base.h"
#include <emmintrin.h>

#define BLOCK_STRIPS (KS_MOE_BLOCK / 16)
#define ENOUGH_BLOCKS 4u /* a thread, for balance */

struct ffn_job {
    ks_cpu_dev *d;
    const ks_op *op;
    const struct dev_op *plan;
    const ks_weight *gate_up, *down;
    const float *gate_up_bias, *down_bias; /* of expert 0 */
    const uint32_t *rows, *begin, *active; /* pairs sorted by expert; pairs [begin[e], begin[e + 1]) */
    const float *weights;                  /* of the pairs; NULL: 1 */
    uint32_t n_active, n_rows, n_blocks;
    uint32_t n_strips; /* of the hidden layer; 16 columns each, a strip of gate and one of up */
    bool fine;         /* tasks own strips of the experts i, i + n_sets, i + 2 n_sets, ... */
    uint32_t n_sets;
};

static const float *bias_of(const ks_cpu_dev *d, int32_t w, uint32_t mat, const float *first)
{
    return first ? (const float *)(const void *)((const uint8_t *)first + mat * d->g->weights[w].stride) : NULL;
}

/* Matrix `mat`, cut down to the strips from s0 on, at most n of them. */
static ks_matmul_args strips_of(const ks_weight *w, uint32_t mat, uint32_t s0, uint32_t n)
{
    ks_matmul_args a = ks__dev_matmul(w, mat);
    a.w = (const uint8_t *)a.w + s0 * a.strip_bytes;
    a.n_out = KS_MIN(n * 16, w->n_out - s0 * 16);
    return a;
}

static void set_input(ks_matmul_args *a, const struct dev_reg *x, bool quantized)
{
    if (quantized) {
        a->act = &x->act;
    } else {
        a->x = x->p;
        a->x_stride = x->stride;
    }
}

/* y (n, n_cols) of the pairs from p on: quantized into the hidden layer, group by group. */
static void quantize_block(const struct ffn_job *j, uint32_t p, uint32_t n, uint32_t block, uint32_t n_cols,
                           const float *y, void *scratch)
{
    const ks_act *h = &j->d->hidden_act;
    uint32_t left = h->q_stride - block * KS_MOE_BLOCK;
    for (uint32_t i = 0; i < n; i++) {
        size_t r = p + i;
        ks_act view = { .q = h->q + r * h->q_stride + block * KS_MOE_BLOCK,
                        .scale = h->scale + r * h->scale_stride + block,
                        .sum = h->sum + r * h->sum_stride + block * (KS_MOE_BLOCK / 32),
                        .q_stride = KS_MIN(KS_MOE_BLOCK, left),
                        .scale_stride = 1,
                        .sum_stride = KS_MOE_BLOCK / 32 };
        ks_quant_args a = { .size = sizeof a,
                            .n_rows = 1,
                            .n_in = n_cols,
                            .x = y + (size_t)i * KS_MOE_BLOCK,
                            .x_stride = KS_MOE_BLOCK,
                            .out = &view };
        j->d->quant->fn(&a, 0, 1, scratch);
    }
}

/* llama4: the expert sees weight * x. Gate and up are linear, so their results are scaled instead. */
static void weigh(const struct ffn_job *j, uint32_t p, uint32_t n, float *gu, uint32_t n_cols)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t c = 0; c < n_cols; c++) gu[(size_t)i * 2 * KS_MOE_BLOCK + c] *= j->weights[p + i];
}

/* Strips [s0, s0 + n) of an expert's hidden layer, n at most a block: quantized if they are a whole one. */
static void hidden_strips(const struct ffn_job *j, uint32_t expert, uint32_t s0, uint32_t n, uint32_t worker)
{
    ks_cpu_dev *d = j->d;
    void *ks = ks__dev_kernel_scratch(d, worker);
    float *gu = ks__dev_scratch(d, worker), *y = gu + (size_t)KS_MOE_ROWS * 2 * KS_MOE_BLOCK;
    uint32_t n_ff = j->op->u.mlp.n_ff, n_cols = KS_MIN(16 * n, n_ff - 16 * s0);
    ks_matmul_args m = strips_of(j->gate_up, expert, 2 * s0, 2 * n);
    set_input(&m, &d->regs[j->op->in[0]], j->plan->quantized);
    m.y = gu;
    m.y_stride = 2 * KS_MOE_BLOCK;
    const float *bias = bias_of(d, j->op->w[2], expert, j->gate_up_bias);
    if (bias) m.bias = bias + (size_t)s0 * 32;
    for (uint32_t p = j->begin[expert]; p < j->begin[expert + 1]; p += KS_MOE_ROWS) {
        m.n_rows = KS_MIN(KS_MOE_ROWS, j->begin[expert + 1] - p);
        m.rows = j->rows + p;
        j->plan->kernel[0]->fn(&m, 0, ks_t16_strips(m.n_out), ks);
        if (j->op->u.mlp.weigh_input) weigh(j, p, m.n_rows, gu, m.n_out);
        bool direct = j->fine || !j->plan->quantized2;
        ks_glu_args g = { .size = sizeof g,
                          .kind = j->op->u.mlp.act,
                          .n_rows = m.n_rows,
                          .n = n_cols,
                          .limit = j->op->u.mlp.limit,
                          .alpha = j->op->u.mlp.alpha,
                          .x = gu,
                          .x_stride = 2 * KS_MOE_BLOCK,
                          .y = direct ? d->hidden + (size_t)p * n_ff + (size_t)s0 * 16 : y,
                          .y_stride = direct ? n_ff : KS_MOE_BLOCK };
        d->glu->fn(&g, 0, m.n_rows, ks);
        if (!direct) quantize_block(j, p, m.n_rows, s0 / BLOCK_STRIPS, n_cols, y, ks);
    }
}

static void block_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct ffn_job *j = arg;
    for (uint32_t t = begin; t < end; t++) {
        uint32_t s0 = t % j->n_blocks * BLOCK_STRIPS;
        hidden_strips(j, j->active[t / j->n_blocks], s0, KS_MIN(BLOCK_STRIPS, j->n_strips - s0), worker);
    }
}

/* Task t is strip t / n_sets of the experts in set t % n_sets. */
static void fine_tasks(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct ffn_job *j = arg;
    for (uint32_t set = 0; set < j->n_sets; set++) {
        uint32_t s0 = (begin + j->n_sets - 1 - set) / j->n_sets, s1 = (end + j->n_sets - 1 - set) / j->n_sets;
        for (uint32_t i = set; i < j->n_active; i += j->n_sets)
            for (uint32_t s = s0; s < s1; s += BLOCK_STRIPS)
                hidden_strips(j, j->active[i], s, KS_MIN(BLOCK_STRIPS, s1 - s), worker);
    }
}

static void quantize_pairs(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct ffn_job *j = arg;
    ks_quant_args a = { .size = sizeof a,
                        .n_rows = j->begin[j->op->u.mlp.n_experts],
                        .n_in = j->op->u.mlp.n_ff,
                        .x = j->d->hidden,
                        .x_stride = j->op->u.mlp.n_ff,
                        .out = &j->d->hidden_act };
    j->d->quant->fn(&a, begin, end, ks__dev_kernel_scratch(j->d, worker));
}

/* Forks over the hidden layer. bytes: of two strips, one of gate and one of up. */
static void run_hidden(struct ffn_job *j, size_t bytes)
{
    ks_cpu_dev *d = j->d;
    uint32_t n_pairs = j->begin[j->op->u.mlp.n_experts], n_blocks = j->n_active * j->n_blocks;
    uint32_t rows = n_pairs / KS_MAX(j->n_active, 1u);
    j->fine = d->n_threads > 1 && n_pairs <= KS_MOE_FEW && n_blocks < ENOUGH_BLOCKS * d->n_threads;
    if (!j->fine) {
        ks__dev_fork(d, n_blocks, ks__dev_grain(BLOCK_STRIPS * bytes, rows), block_tasks, j);
        return;
    }
    uint32_t enough = (2 * d->n_threads + j->n_strips - 1) / j->n_strips;
    j->n_sets = KS_MAX(KS_MIN(enough, j->n_active), 1u);
    ks__dev_fork(d, j->n_strips * j->n_sets, ks__dev_grain(bytes, n_pairs / j->n_sets), fine_tasks, j);
    if (j->plan->quantized2) ks__dev_fork(d, n_pairs, ks__dev_row_grain(2 * j->op->u.mlp.n_ff), quantize_pairs, j);
}

/* y += a x, n numbers. */
static void add_scaled(float *y, float a, const float *x, uint32_t n)
{
    const __m128 va = _mm_set1_ps(a);
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4)
        _mm_storeu_ps(y + i, _mm_add_ps(_mm_loadu_ps(y + i), _mm_mul_ps(va, _mm_loadu_ps(x + i))));
    for (; i < n; i++) y[i] += a * x[i];
}

static void add_expert(const struct ffn_job *j, uint32_t expert, uint32_t s0, uint32_t n_strips, uint32_t worker)
{
    ks_cpu_dev *d = j->d;
    const struct dev_reg *out = &d->regs[j->op->out[0]];
    float *t = ks__dev_scratch(d, worker);
    ks_matmul_args m = strips_of(j->down, expert, s0, n_strips);
    struct dev_reg hidden = { .p = d->hidden, .stride = j->op->u.mlp.n_ff, .act = d->hidden_act };
    uint32_t pair[KS_MOE_ROWS];
    set_input(&m, &hidden, j->plan->quantized2);
    m.y = t;
    m.y_stride = KS_MOE_STRIPS * 16;
    m.rows = pair;
    const float *bias = bias_of(d, j->op->w[3], expert, j->down_bias);
    if (bias) m.bias = bias + s0 * 16;
    for (uint32_t p = j->begin[expert]; p < j->begin[expert + 1]; p += KS_MOE_ROWS) {
        m.n_rows = KS_MIN(KS_MOE_ROWS, j->begin[expert + 1] - p);
        for (uint32_t i = 0; i < m.n_rows; i++) pair[i] = p + i;
        j->plan->kernel[1]->fn(&m, 0, ks_t16_strips(m.n_out), ks__dev_kernel_scratch(d, worker));
        for (uint32_t i = 0; i < m.n_rows; i++) {
            float *y = (float *)out->p + j->rows[p + i] * out->stride + (size_t)s0 * 16;
            float w = j->weights && !j->op->u.mlp.weigh_input ? j->weights[p + i] : 1.0f;
            add_scaled(y, w, t + (size_t)i * KS_MOE_STRIPS * 16, m.n_out);
        }
    }
}

static void output_strips(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const struct ffn_job *j = arg;
    const struct dev_reg *out = &j->d->regs[j->op->out[0]];
    uint32_t d_out = j->down->n_out;
    for (uint32_t s = begin; s < end; s += KS_MOE_STRIPS) {
        uint32_t n = KS_MIN(KS_MOE_STRIPS, end - s), cols = KS_MIN(n * 16, d_out - s * 16);
        for (uint32_t r = 0; r < j->n_rows; r++)
            memset((float *)out->p + r * out->stride + (size_t)s * 16, 0, cols * sizeof(float));
        for (uint32_t i = 0; i < j->n_active; i++) add_expert(j, j->active[i], s, n, worker);
    }
}

static void run_ffn(struct ffn_job *j)
{
    ks_cpu_dev *d = j->d;
    j->gate_up = &d->g->weights[j->op->w[0]];
    j->down = &d->g->weights[j->op->w[1]];
    j->gate_up_bias = ks__dev_vector(d, j->op->w[2]);
    j->down_bias = ks__dev_vector(d, j->op->w[3]);
    j->n_blocks = (j->op->u.mlp.n_ff + KS_MOE_BLOCK - 1) / KS_MOE_BLOCK;
    j->n_strips = ks_t16_strips(j->op->u.mlp.n_ff);
    if (j->plan->quantized) ks__dev_quantize(d, (uint32_t)j->op->in[0]);
    uint32_t n_pairs = j->begin[j->op->u.mlp.n_experts];
    run_hidden(j, 2 * ks_t16_strip_bytes(j->gate_up->type, j->gate_up->n_in, j->gate_up->group));
    size_t strip = ks_t16_strip_bytes(j->down->type, j->down->n_in, j->down->group);
    ks__dev_fork(d, ks_t16_strips(j->down->n_out), ks__dev_grain(strip, n_pairs), output_strips, j);
}

/* Counting sort of the batch's pairs by expert, stable: a row's pairs keep their order. Expert -1: another device has
 * that pair. */
static void sort_pairs(ks_cpu_dev *d, const ks_op *op, struct ffn_job *j)
{
    const struct dev_reg *route = &d->regs[op->in[1]];
    uint32_t n = d->batch->n_rows, k = op->u.mlp.k, e = op->u.mlp.n_experts, *begin = d->expert_begin, all;
    memset(begin, 0, (e + 1) * sizeof *begin);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t s = 0; s < k; s++) {
            int32_t expert = ((const int32_t *)route->p)[2 * (r * route->stride + s)];
            if (expert >= 0) begin[expert + 1]++;
        }
    j->n_active = 0;
    for (uint32_t i = 0; i < e; i++) {
        if (op->layer < d->g->n_layers) d->heat[(size_t)op->layer * d->g->n_experts + i] += begin[i + 1];
        if (begin[i + 1]) d->active[j->n_active++] = i;
        begin[i + 1] += begin[i];
    }
    all = begin[e];
    for (uint32_t r = n; r-- > 0;) {
        for (uint32_t s = k; s-- > 0;) {
            size_t at = 2 * (r * route->stride + s);
            if (((const int32_t *)route->p)[at] < 0) continue;
            uint32_t p = --begin[((const int32_t *)route->p)[at] + 1];
            d->pair_row[p] = r;
            d->pair_weight[p] = ((const float *)route->p)[at + 1];
        }
    }
    /* Filling from the back moved each expert's end to its begin, one place up. */
    memmove(begin, begin + 1, e * sizeof *begin);
    begin[e] = all;
    atomic_fetch_add_explicit(&d->pairs, (uint64_t)all, memory_order_relaxed);
}

int ks__op_experts(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    struct ffn_job j = { .d = d,
                         .op = op,
                         .plan = &d->ops[index],
                         .rows = d->pair_row,
                         .begin = d->expert_begin,
                         .active = d->active,
                         .weights = d->pair_weight,
                         .n_rows = d->batch->n_rows };
    (void)err;
    sort_pairs(d, op, &j);
    run_ffn(&j);
    return 0;
}

int ks__op_mlp(ks_cpu_dev *d, const ks_op *op, uint32_t index, ks_err *err)
{
    static const uint32_t only = 0;
    uint32_t n = ks__dev_rows(d, (uint32_t)op->in[0]), begin[2] = { 0, n };
    struct ffn_job j = { .d = d,
                         .op = op,
                         .plan = &d->ops[index],
                         .rows = d->iota,
                         .begin = begin,
                         .active = &only,
                         .n_active = 1,
                         .n_rows = n };
    (void)err;
    run_ffn(&j);
    return 0;
}
