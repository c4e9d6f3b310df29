/* Times the loops of core/cpu/ceiling.c on the pool. */
#include "app/rates.h"
#include "base/base.h"
#include "base/clock.h"
#include "cpu/cpu.h"
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEM_MIN ((size_t)256 << 20)
#define MEM_MAX ((size_t)4 << 30)
#define PIECE ((size_t)1 << 20) /* read by one thread in one go */
#define READ_S 0.03             /* of one timed run */
#define COMPUTE_NS 4000000u     /* of one timed run */
#define TILE_ROUNDS 500u        /* of one unit; the other loops, whose rounds are smaller, take more */
#define TRIES 3

typedef struct job {
    const ks_ceiling *c;
    const uint8_t *mem;
    size_t n; /* a unit: bytes, or rounds */
    uint32_t *sinks;
} job;

static void run_units(void *arg, uint32_t begin, uint32_t end, uint32_t worker)
{
    const job *j = arg;
    uint64_t sum = 0;
    for (uint32_t i = begin; i < end; i++) sum += j->c->run(j->mem ? j->mem + i * j->n : NULL, j->n);
    j->sinks[worker] += (uint32_t)sum;
}

static double time_units(const ks_meter *m, const job *j, uint32_t n)
{
    uint64_t t0 = ks_now_ns();
    ks_pool_run(m->pool, n, j->mem ? 8 : 1, run_units, (void *)j);
    return (double)(ks_now_ns() - t0) * 1e-9;
}

/* Reads on from where the last run ended, so that nothing of it is in a cache. */
static double read_rate(ks_meter *m, const ks_ceiling *c, size_t bytes)
{
    if (m->at + bytes > m->bytes) m->at = 0;
    job j = { .c = c, .mem = m->mem + m->at, .n = PIECE, .sinks = m->sinks };
    m->at += bytes;
    return (double)bytes / time_units(m, &j, (uint32_t)(bytes / PIECE));
}

/* Long enough for a rate, and no longer than that: it is measured beside everything. */
static double read_some(ks_meter *m, const ks_ceiling *c)
{
    if (!m->window) {
        double rate = read_rate(m, c, m->bytes / 8 / PIECE * PIECE);
        m->window = (size_t)fmin(fmax(rate * READ_S, (double)m->bytes / 8), (double)m->bytes) / PIECE * PIECE;
    }
    return read_rate(m, c, m->window);
}

static double compute_rate(const ks_meter *m, const ks_ceiling *c)
{
    /* Units of equal work for all kinds: a tile's round is 40 of another. */
    const size_t rounds = c->per_round > 8192 ? TILE_ROUNDS : TILE_ROUNDS * 20;
    job j = { .c = c, .n = rounds, .sinks = m->sinks };
    uint32_t units = ks_pool_threads(m->pool) * 8;
    double seconds = time_units(m, &j, units);
    while (seconds < COMPUTE_NS * 1e-9 && units < UINT32_MAX / 4) {
        units *= 2;
        seconds = time_units(m, &j, units);
    }
    return (double)units * (double)rounds * c->per_round / seconds;
}

double ks_meter_loop(ks_meter *m, const ks_ceiling *c)
{
    double best = 0;
    for (int i = 0; i < TRIES; i++) best = fmax(best, c->kind == KS_CEIL_READ ? read_some(m, c) : compute_rate(m, c));
    return best;
}

/* Several times the last-level cache, where there is room. */
static size_t choose_bytes(void)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t want = cache > 0 ? KS_MAX(MEM_MIN, (size_t)cache * 8) : MEM_MIN;
    want = KS_MIN(want, MEM_MAX);
    return KS_MAX(KS_MIN(want, (size_t)(ks_ram_available_bytes() / 8)), 16 * PIECE) / PIECE * PIECE;
}

int ks_meter_open(ks_meter *m, ks_pool *pool, ks_err *err)
{
    *m = (ks_meter) { .pool = pool, .bytes = choose_bytes() };
    m->sinks = ks_calloc(ks_pool_threads(pool), sizeof *m->sinks);
    void *p = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED) m->mem = p;
    if (!m->sinks || !m->mem) {
        ks_meter_close(m);
        return ks_fail(err, KS_E_NOMEM, "out of memory for the measurement of memory");
    }
    (void)madvise(m->mem, m->bytes, MADV_HUGEPAGE); /* small pages are measured lower, not wrongly */
    /* Small positive numbers in every float type, 12 in nibbles, 60 in bytes: kernels may read it as weights. */
    memset(m->mem, 0x3c, m->bytes);
    ks_meter_choose(m);
    return 0;
}

void ks_meter_choose(ks_meter *m)
{
    const uint64_t features = ks_cpu_features();
    double best[KS_CEIL_KINDS] = { 0 };
    const ks_ceiling *c;
    m->window = 0; /* other threads, another rate */
    for (uint32_t i = 0; (c = ks_ceiling_at(i)); i++) {
        if ((c->cpu & features) != c->cpu) continue;
        double rate = ks_meter_loop(m, c);
        if (rate <= best[c->kind]) continue;
        best[c->kind] = rate;
        m->best[c->kind] = c;
    }
}

void ks_meter_close(ks_meter *m)
{
    if (m->mem) (void)munmap(m->mem, m->bytes); /* the map's own bounds */
    free(m->sinks);
    *m = (ks_meter) { .pool = NULL };
}

double ks_meter_read(ks_meter *m)
{
    return read_some(m, m->best[KS_CEIL_READ]); /* there is one for every processor */
}

double ks_meter_compute(const ks_meter *m, uint32_t kind)
{
    return m->best[kind] ? compute_rate(m, m->best[kind]) : 0;
}

/* Of attention over a cache of 8 or 16 bits: three products of bf16 make one of a float. */
static double attention(double f32, double bf16)
{
    return fmax(f32, bf16 / 3);
}

ks_rates ks_meter_rates(ks_meter *m)
{
    ks_rates r = { .read = ks_meter_read(m), .f32 = ks_meter_compute(m, KS_CEIL_F32) };
    r.int8 = m->best[KS_CEIL_INT8] ? ks_meter_compute(m, KS_CEIL_INT8) : r.f32;
    r.attn = attention(r.f32, ks_meter_compute(m, KS_CEIL_BF16));
    return r;
}

ks_rates ks_meter_best(ks_meter *m)
{
    const ks_ceiling *bf16 = m->best[KS_CEIL_BF16];
    ks_rates r = { .read = ks_meter_loop(m, m->best[KS_CEIL_READ]), .f32 = ks_meter_loop(m, m->best[KS_CEIL_F32]) };
    r.int8 = m->best[KS_CEIL_INT8] ? ks_meter_loop(m, m->best[KS_CEIL_INT8]) : r.f32;
    r.attn = attention(r.f32, bf16 ? ks_meter_loop(m, bf16) : 0);
    return r;
}
