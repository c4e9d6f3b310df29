/* Attention as fractions of what this machine can do: one row a sequence over long contexts that lie in RAM, a short
 * one, and many rows. Every thread has sequences of its own. The bound is the time for the products or for reading the
 * keys, whichever is longer; turning keys of 8 or 16 bits into floats is work of the kernel's. A row for AMX runs in
 * turns with the row that serves without it, too. Not thread-safe but where said. */
#include "bench.h"

#include "base/base.h"

#define PAGE_TOK 64u
#define PLACES_MAX 32u /* sequences a thread goes through */
#define KEYS_MAX 8192u

typedef struct shape {
    uint32_t n_heads, n_kv, d_k, d_v, n_rows, pos, rounds;
} shape;

typedef struct job {
    const ks_kernel *row;
    const shape *s;
    uint32_t n_places; /* of keys and values in a thread's share of the pool */
    size_t k_bytes, v_bytes;
    ks_attn_args a;
} job;

/* [any] */
static void run(bench *b, void *arg, uint32_t thread)
{
    const job *j = arg;
    ks_attn_args a = j->a;
    const uint8_t *mine = b->pool + bench_share(b) * thread;
    a.o = BENCH_Y(b, thread);
    for (uint32_t i = 0; i < j->s->rounds; i++) {
        a.k = mine + i % j->n_places * (j->k_bytes + j->v_bytes);
        a.v = j->v_bytes ? (const uint8_t *)a.k + j->k_bytes : a.k;
        j->row->fn(&a, 0, a.n_rows * a.n_kv_heads, b->scratch[thread]);
    }
}

/* False: the pool is too small for it. */
static bool prepare(const bench *b, const ks_kernel *row, const shape *s, const uint32_t *pages, job *j)
{
    uint32_t size = ks_type_bits(row->wtype) / 8;
    size_t n_tok = ks_align_up(s->pos + s->n_rows, PAGE_TOK);
    bool latent = s->d_v != s->d_k; /* values lie in the keys */
    *j = (job) { .row = row, .s = s };
    j->a = (ks_attn_args) { .size = sizeof j->a, .n_rows = s->n_rows, .n_heads = s->n_heads, .n_kv_heads = s->n_kv };
    j->a.d_k = s->d_k;
    j->a.d_v = s->d_v;
    j->a.page_tok = PAGE_TOK;
    j->a.pos = s->pos;
    j->a.scale = 0.05f;
    j->a.q = (const float *)(const void *)b->x;
    j->a.q_stride = (size_t)s->n_heads * s->d_k;
    j->a.o_stride = (size_t)s->n_heads * s->d_v;
    j->a.pages = pages;
    j->a.k_stride = s->n_kv * s->d_k;
    j->a.v_stride = latent ? j->a.k_stride : s->n_kv * s->d_v;
    j->a.k_page_bytes = (size_t)PAGE_TOK * j->a.k_stride * size;
    j->a.v_page_bytes = (size_t)PAGE_TOK * j->a.v_stride * size;
    j->k_bytes = n_tok * j->a.k_stride * size;
    j->v_bytes = latent ? 0 : n_tok * j->a.v_stride * size;
    size_t places = bench_share(b) / (j->k_bytes + j->v_bytes);
    j->n_places = (uint32_t)KS_MIN(places, (size_t)PLACES_MAX);
    return places > 0;
}

/* The row for the same cache that serves where there is no AMX; NULL for such a row itself. */
static const ks_kernel *without_amx(const bench *b, const ks_kernel *row)
{
    const ks_kernel *best = NULL, *other;
    if (!(row->cpu_required & KS_CPU(AMX_TILE))) return NULL;
    for (uint32_t i = 0; (other = bench_row(b, KS_K_ATTN, i)); i++)
        if (other->wtype == row->wtype && !(other->cpu_required & KS_CPU(AMX_TILE)) &&
            (!best || other->score > best->score))
            best = other;
    return best;
}

/* A row for AMX is held against the peak of bf16; it makes three of these products where another has one of floats. */
static void measure(bench *b, const ks_kernel *row, const shape *s, const uint32_t *pages)
{
    char what[96];
    job j, other;
    if (!prepare(b, row, s, pages, &j)) return;
    double keys = 0;
    for (uint32_t r = 0; r < s->n_rows; r++) keys += s->pos + r + 1;
    (void)snprintf(what, sizeof what, "%u row%s, %u keys, %u/%u heads of %u", s->n_rows, s->n_rows > 1 ? "s" : "",
                   s->pos + s->n_rows, s->n_heads, s->n_kv, s->d_k);
    bench_task t = { .row = row, .what = what, .fn = run, .arg = &j, .kind = KS_CEIL_F32 };
    if (row->cpu_required & KS_CPU(AMX_BF16)) t.kind = KS_CEIL_BF16;
    t.macs = keys * s->n_heads * (s->d_k + s->d_v) * s->rounds * b->n_threads;
    t.bytes = (double)(j.k_bytes + j.v_bytes) * s->rounds * b->n_threads;
    (void)bench_measure(b, &t);
    const ks_kernel *old = without_amx(b, row);
    if (!old || !prepare(b, old, s, pages, &other)) return;
    bench_task before = t;
    before.row = old;
    before.kind = KS_CEIL_F32;
    before.arg = &other;
    bench_turns(b, &before, &t);
}

void bench_attn(bench *b)
{
    static const shape shapes[] = { { 32, 4, 128, 128, 1, 4095, 32 }, { 16, 2, 256, 256, 1, 4095, 32 },
                                    { 8, 8, 128, 128, 1, 4095, 32 },  { 64, 8, 64, 64, 1, 4095, 32 },
                                    { 4, 2, 64, 64, 1, 129, 2000 },   { 8, 1, 576, 512, 1, 4095, 32 },
                                    { 64, 1, 576, 512, 1, 4095, 8 },  { 32, 4, 128, 128, 8, 4088, 8 },
                                    { 32, 4, 128, 128, 256, 0, 2 },   { 32, 4, 128, 128, 256, 1792, 2 },
                                    { 32, 4, 128, 128, 64, 4032, 2 } };
    static uint32_t pages[KEYS_MAX / PAGE_TOK];
    const ks_kernel *row;
    for (uint32_t i = 0; i < KS_COUNT(pages); i++) pages[i] = i;
    for (uint32_t i = 0; (row = bench_row(b, KS_K_ATTN, i)); i++)
        for (uint32_t s = 0; s < KS_COUNT(shapes); s++) measure(b, row, &shapes[s], pages);
}
