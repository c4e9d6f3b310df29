/* Steps of few rows as CUDA graphs: what a step launches differs from the last one's only in the tables that the host
 * fills, as long as its shape is the same. So the launches of a shape that comes again are recorded once and then given
 * to the device as one. Kernels find pages, positions and resident experts through tables in the device's memory; what
 * decides how many blocks there are (rows, sequences, spans of attention, addresses in the step's tables) is the shape.
 *
 * Not for steps that ask the host in between (experts that are neither resident nor read in place), for long ones, and
 * for ops that size themselves by every position (INDEXER). A shape runs once as it is before it is recorded: kernels
 * are loaded then. [engine] */
#include "device.h"

#include <string.h>

#define MOST_ROWS 64u

static bool can_record(const cu_dev *d, const ks_batch *b, uint32_t begin, uint32_t end)
{
    if (!d->opts->graphs || d->no_graphs || b->taps || d->n_pieces != 1 || b->n_rows > MOST_ROWS || begin == end)
        return false;
    if (b->n_rows != b->n_seqs) return false;
    for (uint32_t i = 0; i < b->n_seqs; i++)
        if (b->seqs[i].keep) return false; /* part of a prompt */
    if ((size_t)b->n_out * d->g->n_vocab * sizeof(float) > d->out_bytes) return false;
    for (uint32_t i = 0; i < d->ex.n_banks; i++) {
        const struct dev_bank *k = &d->ex.banks[i];
        if (k->op < begin || k->op >= end) continue;
        if ((k->n_resident != k->n_experts && !cu_shares(d)) ||
            (size_t)b->n_rows * cu_op(d->g, k->op)->u.mlp.k > d->ex.cap_pairs)
            return false;
    }
    if (cu_shares_with_host(d)) return false;
    for (uint32_t i = begin; i < end; i++)
        if (!d->mine[i] || cu_op(d->g, i)->kind == KS_OP_INDEXER) return false;
    return true;
}

static struct cu_shape shape_of(const cu_dev *d, const ks_batch *b, uint32_t begin, uint32_t end)
{
    struct cu_shape s;
    memset(&s, 0, sizeof s); /* compared as bytes */
    s.begin = begin;
    s.end = end;
    s.n_rows = b->n_rows;
    s.n_out = b->n_out;
    s.n_spans = d->pieces[0].step.n_spans;
    s.meta_bytes = d->meta_used;
    return s;
}

/* The shape's place, or that of the one that was not needed for longest. */
static struct cu_graph *find(cu_dev *d, const struct cu_shape *s)
{
    struct cu_graph *old = &d->graphs[0];
    for (uint32_t i = 0; i < CU_GRAPHS; i++) {
        struct cu_graph *g = &d->graphs[i];
        if (g->used && memcmp(&g->shape, s, sizeof *s) == 0) return g;
        if (g->used < old->used) old = g;
    }
    return old;
}

static void drop(struct cu_graph *g)
{
    if (g->exec) (void)cudaGraphExecDestroy(g->exec); /* of a lost device: there is nothing to do about it */
    *g = (struct cu_graph) { 0 };
}

void cu_graphs_drop(cu_dev *d)
{
    for (uint32_t i = 0; i < CU_GRAPHS; i++) drop(&d->graphs[i]);
}

/* A step that cannot be recorded is no reason to stop: launches go one by one, as before. If more than that is wrong,
 * they will say so. */
static void give_up(cu_dev *d, cudaError_t why)
{
    char line[192];
    (void)cudaGetLastError();
    d->no_graphs = true;
    (void)snprintf(line, sizeof line, "GPU %d: steps are not recorded (%s): launches go one by one", d->index,
                   cudaGetErrorString(why));
    d->host->log(d->host, KS_LOG_WARN, line);
}

/* What the launches count must be counted again by every step that repeats them. */
static struct cu_counts counts_of(cu_dev *d)
{
    return (struct cu_counts) { atomic_load_explicit(&d->bytes_in, memory_order_relaxed),
                                atomic_load_explicit(&d->bytes_out, memory_order_relaxed),
                                atomic_load_explicit(&d->hot, memory_order_relaxed) };
}

static void count(cu_dev *d, const struct cu_counts *c, uint64_t times)
{
    atomic_fetch_add_explicit(&d->bytes_in, c->bytes_in * times, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->bytes_out, c->bytes_out * times, memory_order_relaxed);
    atomic_fetch_add_explicit(&d->hot, c->hot * times, memory_order_relaxed);
}

static int record(cu_dev *d, const ks_batch *b, struct cu_graph *g, ks_err *err)
{
    cudaGraph_t recorded = NULL;
    struct cu_counts before = counts_of(d), after;
    cudaError_t cu = cudaStreamBeginCapture(d->compute, cudaStreamCaptureModeThreadLocal);
    if (cu != cudaSuccess) {
        give_up(d, cu);
        return 0;
    }
    uint64_t launches = cu_n_launches;
    int rc = cu_launch_ops(d, b, g->shape.begin, g->shape.end, err);
    cu_n_launches = launches; /* none was done */
    after = counts_of(d);
    g->counts = (struct cu_counts) { after.bytes_in - before.bytes_in, after.bytes_out - before.bytes_out,
                                     after.hot - before.hot };
    count(d, &g->counts, UINT64_MAX);                 /* minus one: nor was this */
    cu = cudaStreamEndCapture(d->compute, &recorded); /* also after a failure: the stream is in use again */
    if (!rc && cu == cudaSuccess) cu = cudaGraphInstantiate(&g->exec, recorded, 0);
    if (recorded) (void)cudaGraphDestroy(recorded);
    if (rc || cu == cudaSuccess) return rc;
    g->exec = NULL;
    give_up(d, cu);
    return 0;
}

int cu_graph_run(cu_dev *d, const ks_batch *b, uint32_t begin, uint32_t end, bool *ret_done, ks_err *err)
{
    *ret_done = false;
    if (!can_record(d, b, begin, end)) return 0;
    struct cu_shape s = shape_of(d, b, begin, end);
    struct cu_graph *g = find(d, &s);
    int rc = 0;
    bool again = g->used && memcmp(&g->shape, &s, sizeof s) == 0;
    if (!again) {
        drop(g);
        g->shape = s;
    }
    g->used = ++d->graph_clock;
    if (again && !g->exec) rc = record(d, b, g, err);
    if (rc || !g->exec) return rc;
    rc = cu_check(d, cudaGraphLaunch(g->exec, d->compute), "a recorded step", err);
    if (rc) return rc;
    cu_n_launches++;
    count(d, &g->counts, 1);
    *ret_done = true;
    return 0;
}
