/* bench_kernels [--json FILE] [--pairs N] [PLUGIN.so [THREADS [FILTER]]]: each kernel as a fraction of what this
 * machine can do, measured in the same run. Not a test.
 *
 *   weights from RAM     eight times the last-level cache, on huge pages, each thread in a stretch of its own; bound:
 *                        the time to read them or the time for the products, whichever is longer
 *   in the cache         bound: the products at the peak of the instruction set the row uses
 *   attention            keys from RAM; bound: as above
 *   row by row work      bound: reading and writing its bytes from RAM; over 100 % where they stay in a cache
 *
 * The bounds are the loops of core/cpu/ceiling.h. Every run of a kernel has a run of its bound directly before it, over
 * the same memory; printed are the best of both and the median of the pairs' ratios, since a shared machine changes its
 * speed from second to second. FILTER: part of "kernel case". */
#include "bench.h"

#include "base/base.h"
#include "cpu/cpu.h"
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define N_IN 2048u

/* An op cut by units, the same ones again and again. */
typedef struct units {
    const ks_kernel *row;
    const void *args;
    uint32_t n_units, rounds;
} units;

static void run_units(bench *b, void *arg, uint32_t thread)
{
    const units *u = arg;
    uint32_t begin = (uint32_t)((uint64_t)u->n_units * thread / b->n_threads);
    uint32_t end = (uint32_t)((uint64_t)u->n_units * (thread + 1) / b->n_threads);
    for (uint32_t r = 0; r < u->rounds; r++) u->row->fn(u->args, begin, end, b->scratch[thread]);
}

/* Every row of an op and type that this machine can run; none: another plugin's business. */
static void measure_type(bench *b, uint32_t op, uint32_t type, units *u, bench_task *t)
{
    for (uint32_t i = 0; (t->row = bench_row(b, op, i)); i++) {
        if (t->row->wtype != type) continue;
        u->row = t->row;
        (void)bench_measure(b, t);
    }
}

/* Row by row work, held against reading and writing its bytes from RAM: over 100 % where it stays in a cache. */
static void bench_plain(bench *b)
{
    enum { ROWS = 256 };
    static uint32_t pos[ROWS];
    float *x = (float *)(void *)b->x, *y = (float *)(void *)(b->x + ((size_t)64 << 20));
    ks_act act;
    act = (ks_act) { .q_stride = N_IN, .scale_stride = N_IN / 128, .sum_stride = N_IN / 32 };
    act.q = (int8_t *)b->x + (32u << 20);
    act.scale = (float *)(void *)(b->x + (48u << 20));
    act.sum = (int32_t *)(void *)(b->x + (52u << 20));
    for (uint32_t i = 0; i < ROWS; i++) pos[i] = 1000 + i;
    ks_quant_args q = { .size = sizeof q, .n_rows = ROWS, .n_in = N_IN, .x = x, .x_stride = N_IN, .out = &act };
    ks_norm_args n = {
        .size = sizeof n, .kind = KS_NORM_RMS, .n_rows = ROWS, .n = N_IN, .width = N_IN, .w_width = N_IN
    };
    n.eps = 1e-6f;
    n.x = n.weight = x;
    n.y = y;
    n.x_stride = n.y_stride = N_IN;
    ks_rope_args r = { .size = sizeof r, .kind = KS_ROPE_HALF, .n_rows = ROWS, .n_heads = 16, .head_dim = 128 };
    r.rot_dim = 128;
    r.mscale = 1;
    r.inv_freq = x;
    r.pos = pos;
    r.x = y;
    r.x_stride = N_IN;
    ks_glu_args g = { .size = sizeof g, .kind = KS_ACT_SILU, .n_rows = ROWS, .n = N_IN / 2, .x = x, .x_stride = N_IN };
    g.y = y;
    g.y_stride = N_IN;
    const struct {
        const char *what;
        uint32_t op;
        const void *args;
        double bytes;
    } plain[] = { { "2048 columns", KS_K_QUANT, &q, 5.0 * N_IN },
                  { "2048 columns", KS_K_NORM, &n, 8.0 * N_IN },
                  { "16 heads of 128", KS_K_ROPE, &r, 8.0 * N_IN },
                  { "silu, 1024 outputs", KS_K_GLU, &g, 6.0 * N_IN } };
    for (uint32_t i = 0; i < KS_COUNT(plain); i++) {
        units u = { .args = plain[i].args, .n_units = ROWS, .rounds = 40 };
        bench_task t = { .what = plain[i].what, .fn = run_units, .arg = &u };
        t.bytes = plain[i].bytes * ROWS * u.rounds;
        measure_type(b, plain[i].op, 0, &u, &t);
    }
}

/* Small positive and negative numbers in every type, no two neighbours alike. Each thread touches its share first. */
static void fill_share(bench *b, void *arg, uint32_t thread)
{
    uint64_t *p = (uint64_t *)(void *)(b->pool + thread * bench_share(b)), z = thread;
    (void)arg;
    for (size_t i = 0; i < bench_share(b) / 8; i++) {
        z += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t r = (z ^ (z >> 29)) * UINT64_C(0xbf58476d1ce4e5b9);
        p[i] = (r & UINT64_C(0x8383838383838383)) | UINT64_C(0x3c3c3c3c3c3c3c3c);
    }
}

static int no_memory(void)
{
    return fprintf(stderr, "bench_kernels: out of memory\n"), -1;
}

static int setup_memory(bench *b)
{
    const ks_kernels_iface *k = b->plugin->iface;
    uint32_t scratch = 64;
    long llc = sysconf(_SC_LEVEL3_CACHE_SIZE);
    b->llc_bytes = llc > 0 ? (size_t)llc : (size_t)32 << 20;
    b->pool_bytes = KS_MAX(8 * b->llc_bytes, (size_t)512 << 20);
    if (b->pool_bytes > ks_ram_available_bytes() / 2) {
        b->pool_bytes = (size_t)(ks_ram_available_bytes() / 2) >> 21 << 21;
        (void)printf(
            "bench_kernels: memory for only %.1f times the last-level cache: figures from RAM may be too high\n",
            (double)b->pool_bytes / (double)b->llc_bytes);
    }
    for (uint32_t i = 0; i < k->n_kernels; i++) scratch = KS_MAX(scratch, k->kernels[i].scratch_bytes);
    b->pool = mmap(NULL, b->pool_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->x = mmap(NULL, BENCH_X_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->pool == MAP_FAILED || b->x == MAP_FAILED) return no_memory();
    (void)madvise(b->pool, b->pool_bytes, MADV_HUGEPAGE); /* without huge pages the figures are lower, not wrong */
    (void)madvise(b->x, BENCH_X_BYTES, MADV_HUGEPAGE);
    for (size_t i = 0; i < ((size_t)32 << 20) / 4; i++) ((float *)(void *)b->x)[i] = (float)(i % 251) * 0.01f - 1.25f;
    for (uint32_t i = 0; i < b->n_threads; i++) {
        b->scratch[i] = aligned_alloc(4096, (scratch + 4095u) / 4096 * 4096);
        if (!b->scratch[i]) return no_memory();
    }
    (void)bench_parallel(b, fill_share, NULL);
    return 0;
}

static int setup(bench *b, const char *path)
{
    char names[200];
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    b->plugin = lib ? dlsym(lib, KS_PLUGIN_SYMBOL) : NULL;
    if (!b->plugin) return fprintf(stderr, "bench_kernels: %s: %s\n", path, dlerror()), -1;
    b->cpu = ks_cpu_features();
    if (b->plugin->cpu_required & ~b->cpu)
        return fprintf(stderr, "bench_kernels: this CPU lacks %s\n",
                       ks_cpu_names(b->plugin->cpu_required & ~b->cpu, names, sizeof names)),
               -1;
    b->n_cpus = ks_cpu_cores(b->cpus, BENCH_THREADS);
    return setup_memory(b);
}

/* Options first, so that PLUGIN, THREADS and FILTER stay what they are. Returns the index of PLUGIN, 0: wrong. */
static int parse(bench *b, int argc, char **argv)
{
    int i = 1;
    for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
        if (!strcmp(argv[i], "--pairs"))
            b->pairs = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--json") != 0)
            return 0;
        else if (!(b->json = fopen(argv[i + 1], "w")))
            return perror(argv[i + 1]), 0;
    }
    if (i + 1 < argc) b->n_threads = (uint32_t)strtoul(argv[i + 1], NULL, 10);
    b->filter = i + 2 < argc ? argv[i + 2] : NULL;
    return b->pairs >= 1 && b->pairs <= BENCH_PAIRS && b->n_threads >= 1 && b->n_threads <= BENCH_THREADS ? i : 0;
}

int main(int argc, char **argv)
{
    static bench b = { .n_threads = 1, .pairs = 9 };
    int at = parse(&b, argc, argv);
    if (!at) {
        (void)fprintf(stderr,
                      "usage: bench_kernels [--json FILE] [--pairs 1..%d] [PLUGIN.so [1..%d threads [FILTER]]]\n",
                      BENCH_PAIRS, BENCH_THREADS);
        return 2;
    }
    if (setup(&b, at < argc ? argv[at] : KS_BUILD_DIR "/plugins/cpu-avx2.so") != 0) return 1;
    (void)printf("%s on %s, %u thread(s), last-level cache %zu MiB, weights %zu MiB\n", b.plugin->name, ks_cpu_brand(),
                 b.n_threads, b.llc_bytes >> 20, b.pool_bytes >> 20);
    bench_matmul(&b);
    bench_attn(&b);
    bench_plain(&b);
    if (b.json) {
        (void)fprintf(b.json, "%s\n]\n", b.n_json ? "" : "[");
        if (fclose(b.json) != 0) return perror("bench_kernels: the JSON file"), 1;
    }
    return 0;
}
