/* Every folder of tests/golden against the CPU device: numbers, and bits that must not depend on how the work is cut.
 * Arguments: kernel set, or `cuda` for the GPU, or `cuda-emu` for the emulated one; then folders (default: ref, all).
 */
#include "graph/fixture.h"
#include "support/golden_ckpt.h"

#include "base/base.h"
#include "base/file.h"
#include <dirent.h>
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define LOGIT_LIMIT 2e-3
#define MARGIN_LIMIT 1e-2f
#define FOLDERS_MAX 64u

static const char *kernel_set = "ref";
static bool gpu;      /* with the reference for what the GPU cannot run */
static bool emulated; /* slow: steps of one row are few */
static uint32_t n_tested, n_skipped;

typedef struct golden_run {
    fixture f;
    ks_golden g;
    float *want; /* (n_tok, n_vocab) of one prefill: the bits of all other ways */
    float *got, *taps;
    char dir[256];
} golden_run;

static void must(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

static double max_diff(const float *a, const float *b, size_t n)
{
    double m = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= m)) m = d; /* NaN stays */
    }
    return m;
}

static void run_pieces(golden_run *r, fixture *f, uint32_t slot, const int32_t *ids, uint32_t n, uint32_t piece,
                       float *logits)
{
    ks_err err;
    for (uint32_t at = 0; at < n; at += piece) {
        fx_seq s = { .slot = slot, .pos = at, .n = KS_MIN(piece, n - at), .ids = ids + at };
        must(fx_step(f, &s, 1, logits + (size_t)at * r->g.n_vocab, NULL, &err), &err);
    }
}

static void first_layer(const golden_run *r, double *ret, uint32_t *ret_layer)
{
    *ret = 0;
    *ret_layer = 0;
    if (!r->g.hidden) return;
    size_t n = (size_t)r->g.n_tok * r->g.d_model;
    for (uint32_t t = 0; t < r->g.n_taps; t++) {
        *ret_layer = t;
        *ret = max_diff(r->taps + t * n, r->g.hidden + t * n, n);
        if (!(*ret <= LOGIT_LIMIT)) return;
    }
}

static void prefill(golden_run *r)
{
    ks_err err;
    double hidden;
    uint32_t layer;
    fx_seq s = { .n = r->g.n_tok, .ids = r->g.ids };
    must(fx_step(&r->f, &s, 1, r->want, r->taps, &err), &err);
    double d = max_diff(r->want, r->g.logits, (size_t)r->g.n_tok * r->g.n_vocab);
    first_layer(r, &hidden, &layer);
    print_message("  max |logit difference| %.2e, hidden state %u differs by %.2e\n", d, layer, hidden);
    if (!(d <= LOGIT_LIMIT))
        fail_msg("logits differ by %g; hidden state %u (0: embeddings) is the first to differ, by %g", d, layer,
                 hidden);
}

static void same_bits(const golden_run *r, const float *a, uint32_t rows, const char *what)
{
    for (uint32_t i = 0; i < rows; i++)
        if (memcmp(a + (size_t)i * r->g.n_vocab, r->want + (size_t)i * r->g.n_vocab, r->g.n_vocab * sizeof *a) != 0)
            fail_msg("%s: row %u has other bits than in one prefill (by %g)", what, i,
                     max_diff(a + (size_t)i * r->g.n_vocab, r->want + (size_t)i * r->g.n_vocab, r->g.n_vocab));
}

static void pieces(golden_run *r)
{
    static const uint32_t sizes[] = { 1, 7, 16 };
    char what[32];
    for (size_t i = emulated ? 1 : 0; i < KS_COUNT(sizes); i++) { /* greedy() has steps of one row, too */
        run_pieces(r, &r->f, 0, r->g.ids, r->g.n_tok, sizes[i], r->got);
        (void)snprintf(what, sizeof what, "pieces of %u", sizes[i]);
        same_bits(r, r->got, r->g.n_tok, what);
    }
}

static void greedy(golden_run *r)
{
    ks_err err;
    for (uint32_t i = 0; i < r->g.n_greedy; i++) { /* the cache holds the prompt after pieces() */
        const float *z = i ? r->got : r->want + (size_t)(r->g.n_tok - 1) * r->g.n_vocab;
        int32_t best = 0;
        for (uint32_t v = 1; v < r->g.n_vocab; v++)
            if (z[v] > z[best]) best = (int32_t)v;
        if (r->g.greedy_margin[i] > MARGIN_LIMIT && best != r->g.greedy[i])
            fail_msg("greedy token %u is %d, not %d", i, best, r->g.greedy[i]);
        fx_seq s = { .pos = r->g.n_tok + i, .n = 1, .ids = &r->g.greedy[i] };
        must(fx_step(&r->f, &s, 1, r->got, NULL, &err), &err);
    }
}

/* Two sequences of different lengths and stages in every step: the long one in pieces of 5, the short one in pieces
 * of 3. */
static void mixed(golden_run *r)
{
    ks_err err;
    uint32_t n_a = r->g.n_tok, n_b = r->g.n_tok / 2, v = r->g.n_vocab, a = 0, b = 0;
    const int32_t *ids_b = r->g.ids + 11;
    float *alone = malloc((size_t)n_b * v * sizeof *alone), *step = malloc((size_t)8 * v * sizeof *step);
    assert_non_null(alone);
    assert_non_null(step);
    run_pieces(r, &r->f, 2, ids_b, n_b, n_b, alone);
    while (a < n_a || b < n_b) {
        fx_seq s[2];
        uint32_t n = 0, take_a = KS_MIN(5u, n_a - a), take_b = KS_MIN(3u, n_b - b);
        if (take_b) s[n++] = (fx_seq) { .slot = 3, .pos = b, .n = take_b, .ids = ids_b + b };
        if (take_a) s[n++] = (fx_seq) { .slot = 1, .pos = a, .n = take_a, .ids = r->g.ids + a };
        must(fx_step(&r->f, s, n, step, NULL, &err), &err);
        if (memcmp(step, alone + (size_t)b * v, (size_t)take_b * v * sizeof *step) != 0)
            fail_msg("the short sequence has other bits in a batch");
        memcpy(r->got + (size_t)a * v, step + (size_t)take_b * v, (size_t)take_a * v * sizeof *step);
        a += take_a;
        b += take_b;
    }
    same_bits(r, r->got, n_a, "mixed batch");
    free(alone);
    free(step);
}

/* A branch: state and pages of half a prompt are copied, the copy goes on. */
static void branch(golden_run *r)
{
    ks_err err;
    uint32_t half = r->g.n_tok / 2, v = r->g.n_vocab;
    run_pieces(r, &r->f, 0, r->g.ids, half, half, r->got);
    must(r->f.iface->copy_slot(r->f.dev, 1, 0, &err), &err);
    for (uint32_t p = 0; p * FX_PAGE_TOK < half; p++)
        must(r->f.iface->copy_page(r->f.dev, fx_page(1, p), fx_page(0, p), &err), &err);
    fx_seq s = { .slot = 1, .pos = half, .n = r->g.n_tok - half, .ids = r->g.ids + half };
    must(fx_step(&r->f, &s, 1, r->got + (size_t)half * v, NULL, &err), &err);
    same_bits(r, r->got, r->g.n_tok, "branched sequence");
}

/* A prompt in two runs in one batch; what the first leaves is kept, and goes on in another slot. */
static void runs(golden_run *r, fixture *f, uint32_t cut)
{
    ks_err err;
    const uint32_t n = r->g.n_tok;
    fx_seq s[2] = { { .n = cut, .ids = r->g.ids, .keep = 1 + 1 }, { .pos = cut, .n = n - cut, .ids = r->g.ids + cut } };
    must(fx_step(f, s, 2, r->got, NULL, &err), &err);
    same_bits(r, r->got, n, "two runs in a batch");
    for (uint32_t p = 0; p * FX_PAGE_TOK < cut; p++)
        must(f->iface->copy_page(f->dev, fx_page(1, p), fx_page(0, p), &err), &err);
    s[1].slot = 1;
    must(fx_step(f, s + 1, 1, r->got + (size_t)cut * r->g.n_vocab, NULL, &err), &err);
    same_bits(r, r->got, n, "kept state");
}

static void threads(golden_run *r)
{
    ks_err err;
    for (uint32_t n = 2; n <= 3; n++) {
        fixture f;
        char what[32];
        must(fx_open(&f, r->dir, kernel_set, n, KS_T_F32, NULL, &err), &err);
        run_pieces(r, &f, 0, r->g.ids, r->g.n_tok, r->g.n_tok, r->got);
        fx_close(&f);
        (void)snprintf(what, sizeof what, "%u threads", n);
        same_bits(r, r->got, r->g.n_tok, what);
    }
}

/* Experts that stay, some that do, and all of them through a ring of two places; steps in pieces. */
static void residency(golden_run *r)
{
    static const char *const ways[][3] = { { "0", "2", "3" }, { "5", "3", "1" }, { "0", NULL, NULL } };
    ks_err err;
    uint32_t n = emulated ? KS_MIN(4u, r->g.n_tok) : r->g.n_tok;
    for (size_t i = 0; i < KS_COUNT(ways); i++) {
        fixture f;
        char what[64];
        fx_gpu_settings(ways[i][0], ways[i][1], ways[i][2], false);
        must(fx_open(&f, r->dir, kernel_set, 1, KS_T_F32, NULL, &err), &err);
        run_pieces(r, &f, 0, r->g.ids, r->g.n_tok, r->g.n_tok, r->got);
        (void)snprintf(what, sizeof what, "%s resident experts", ways[i][0]);
        same_bits(r, r->got, r->g.n_tok, what);
        run_pieces(r, &f, 0, r->g.ids, n, 1, r->got);
        same_bits(r, r->got, n, "one row at a time, with few resident experts");
        runs(r, &f, 13);
        fx_close(&f);
    }
    fixture f;
    fx_gpu_settings("5", NULL, NULL, true);
    must(fx_open(&f, r->dir, kernel_set, 1, KS_T_F32, NULL, &err), &err);
    fx_gpu_settings(NULL, NULL, NULL, false);
    run_pieces(r, &f, 0, r->g.ids, n, 1, r->got);
    fx_close(&f);
    double d = max_diff(r->got, r->g.logits, (size_t)n * r->g.n_vocab);
    if (!(d <= LOGIT_LIMIT)) fail_msg("with cold experts on the CPU logits differ by %g", d);
}

/* Keys and values in bf16, as they are in a run that counts: no farther from the golden logits than the reference with
 * such a cache, by half again. */
static void bf16_cache(golden_run *r)
{
    const uint32_t n = r->g.n_tok;
    const size_t all = (size_t)n * r->g.n_vocab;
    double d[2];
    for (uint32_t i = 0; i < 2; i++) {
        fixture f;
        ks_err err;
        fx_use_device(i ? fx_choose_gpu : NULL);
        must(fx_open(&f, r->dir, i ? kernel_set : "ref", 1, KS_T_BF16, NULL, &err), &err);
        run_pieces(r, &f, 0, r->g.ids, n, n, r->got);
        d[i] = max_diff(r->got, r->g.logits, all);
        fx_close(&f);
    }
    print_message("  bf16 cache: %.2e, reference %.2e\n", d[1], d[0]);
    if (!(d[1] <= 1.5 * d[0])) fail_msg("bf16 cache: logits differ by %g, those of the reference by %g", d[1], d[0]);
}

static void test_folder(void **state)
{
    const char *name = *state;
    char golden[512];
    golden_run r = { 0 };
    ks_err err;
    (void)snprintf(golden, sizeof golden, "%s/tests/golden/%s", KS_SOURCE_DIR, name);
    (void)snprintf(r.dir, sizeof r.dir, "%s", name);
    must(ks_golden_write(golden, r.dir, &err), &err);
    must(ks_golden_expected(golden, &r.g, &err), &err);
    int rc = fx_open(&r.f, r.dir, kernel_set, 1, KS_T_F32, NULL, &err);
    if ((rc == KS_E_UNSUPPORTED && strstr(err.msg, "model_type")) || (gpu && rc == KS_E_NOTFOUND)) {
        print_message("  skipped: %.100s\n", err.msg);
        n_skipped++;
        fx_close(&r.f);
        ks_golden_fini(&r.g);
        skip();
    }
    must(rc, &err);
    n_tested++;
    size_t rows = (size_t)r.g.n_tok * r.g.n_vocab;
    r.want = malloc(rows * sizeof *r.want);
    r.got = malloc(rows * sizeof *r.got);
    r.taps = calloc((size_t)r.f.model.graph.n_taps * r.g.n_tok, r.g.d_model * sizeof *r.taps);
    assert_true(r.want && r.got && r.taps);
    assert_int_equal(r.f.model.graph.n_taps, r.g.hidden ? r.g.n_taps : r.f.model.graph.n_taps);
    prefill(&r);
    pieces(&r);
    greedy(&r);
    mixed(&r);
    branch(&r);
    runs(&r, &r.f, 13);
    runs(&r, &r.f, r.g.n_tok - 1);
    if (gpu) {
        residency(&r);
        bf16_cache(&r);
    } else {
        threads(&r);
    }
    free(r.want);
    free(r.got);
    free(r.taps);
    fx_close(&r.f);
    ks_golden_fini(&r.g);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static uint32_t list_folders(char **names)
{
    DIR *d = opendir(KS_SOURCE_DIR "/tests/golden");
    uint32_t n = 0;
    for (const struct dirent *e; d && (e = readdir(d)) && n < FOLDERS_MAX;) {
        char path[512];
        (void)snprintf(path, sizeof path, "%s/tests/golden/%s/manifest.json", KS_SOURCE_DIR, e->d_name);
        if (ks_file_exists(path)) names[n++] = ks_strdup(e->d_name);
    }
    if (d) closedir(d);
    qsort(names, n, sizeof *names, by_name);
    return n;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

int main(int argc, char **argv)
{
    char *names[FOLDERS_MAX],
        work[] = "/tmp/krasis-golden-XXXXXX"; /* checkpoints are written there, wherever it is run */
    struct CMUnitTest tests[FOLDERS_MAX];
    uint32_t n = 0;
    emulated = argc > 1 && strcmp(argv[1], "cuda-emu") == 0;
    gpu = emulated || (argc > 1 && strcmp(argv[1], "cuda") == 0);
    if (emulated) fx_gpu_folder(KS_BUILD_DIR "/tests/cuda/emu");
    if (gpu) fx_use_device(fx_choose_gpu);
    if (argc > 1 && !gpu) kernel_set = argv[1];
    if (argc > 2)
        for (int i = 2; i < argc && n < FOLDERS_MAX; i++) names[n++] = ks_strdup(argv[i]);
    else
        n = list_folders(names);
    if (!mkdtemp(work) || chdir(work)) {
        perror(work);
        return 1;
    }
    for (uint32_t i = 0; i < n; i++)
        tests[i] = (struct CMUnitTest) { .name = names[i], .test_func = test_folder, .initial_state = names[i] };
    int failed = _cmocka_run_group_tests("golden", tests, n, NULL, NULL);
    print_message("golden: %u families tested with '%s', %u skipped\n", n_tested, gpu ? argv[1] : kernel_set,
                  n_skipped);
    for (uint32_t i = 0; i < n; i++) free(names[i]);
    if (nftw(work, remove_one, 16, FTW_DEPTH | FTW_PHYS)) perror(work);
    return failed;
}
