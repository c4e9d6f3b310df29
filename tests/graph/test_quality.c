/* What quantization costs each family: mean KL divergence of the default precision (INT4 experts, INT8 the rest, fp8
 * cache) and of INT8 experts from the all-bf16 run with an f32 cache, over the golden prompts.
 *
 * The golden checkpoints are random and tiny (128 wide, 2 to 4 layers), where rounding weighs far more than in a
 * trained model; so the figures are no promise of quality but a tripwire: a broken scale, a swapped nibble, a lost bias
 * multiplies them. Each family has its own bound, about 1.5 times what was measured. The reference kernels compute:
 * another set sums floats in another order, and where two experts are nearly equal that chooses the other one, which
 * moves the mean of 48 positions by half. `test_quality --markdown` prints the table of docs/quality.md. */
#include "base/base.h"
#include "base/file.h"
#include "graph/fixture.h"
#include "support/golden_ckpt.h"
#include <math.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

typedef struct family {
    const char *name;
    double bound4, bound8; /* nats, mean over the positions */
    double kl4, kl8;       /* measured */
} family;

static family families[] = {
#include "graph/quality_bounds.inc"
};

static void must(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

static void run(const family *f, const ks_golden *g, uint32_t expert, uint32_t rest, uint32_t kv, float *logits)
{
    fixture fx;
    ks_err err = { 0 };
    uint32_t types[16];
    for (uint32_t i = 0; i < KS_COUNT(types); i++) types[i] = KS_T_BF16;
    types[KS_CLS_EXPERT] = expert;
    types[KS_CLS_ATTN] = types[KS_CLS_SHARED] = types[KS_CLS_DENSE] = types[KS_CLS_HEAD] = rest;
    must(fx_open(&fx, f->name, "ref", 1, kv, types, &err), &err);
    fx_seq s = { .n = g->n_tok, .ids = g->ids };
    must(fx_step(&fx, &s, 1, logits, NULL, &err), &err);
    fx_close(&fx);
}

static double log_norm(const float *z, uint32_t n)
{
    double max = z[0], sum = 0;
    for (uint32_t i = 1; i < n; i++) max = fmax(max, (double)z[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp((double)z[i] - max);
    return max + log(sum);
}

static double mean_kl(const ks_golden *g, const float *p, const float *q)
{
    double sum = 0;
    for (uint32_t t = 0; t < g->n_tok; t++) {
        const float *a = p + (size_t)t * g->n_vocab, *b = q + (size_t)t * g->n_vocab;
        double la = log_norm(a, g->n_vocab), lb = log_norm(b, g->n_vocab);
        for (uint32_t i = 0; i < g->n_vocab; i++)
            sum += exp((double)a[i] - la) * ((double)a[i] - la - (double)b[i] + lb);
    }
    return sum / g->n_tok;
}

static void measure(family *f)
{
    char golden[512];
    ks_golden g = { 0 };
    ks_err err = { 0 };
    (void)snprintf(golden, sizeof golden, "%s/tests/golden/%s", KS_SOURCE_DIR, f->name);
    must(ks_golden_write(golden, f->name, &err), &err);
    must(ks_golden_expected(golden, &g, &err), &err);
    size_t n = (size_t)g.n_tok * g.n_vocab;
    float *exact = malloc(n * sizeof *exact), *quant = malloc(n * sizeof *quant);
    assert_true(exact && quant);
    run(f, &g, KS_T_BF16, KS_T_BF16, KS_T_F32, exact);
    run(f, &g, KS_T_I4, KS_T_I8, KS_T_F8E4M3, quant);
    f->kl4 = mean_kl(&g, exact, quant);
    run(f, &g, KS_T_I8, KS_T_I8, KS_T_F8E4M3, quant);
    f->kl8 = mean_kl(&g, exact, quant);
    free(exact);
    free(quant);
    ks_golden_fini(&g);
}

static void quantization_stays_within_the_familys_bound(void **state)
{
    family *f = *state;
    measure(f);
    print_message("mean KL: INT4 experts %.4f (bound %.4f), INT8 experts %.4f (bound %.4f)\n", f->kl4, f->bound4,
                  f->kl8, f->bound8);
    assert_true(f->kl4 >= 0 && f->kl4 <= f->bound4);
    assert_true(f->kl8 >= 0 && f->kl8 <= f->bound8);
}

static void print_markdown(void)
{
    print_message("| golden checkpoint | INT4 experts | bound | INT8 experts | bound |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < KS_COUNT(families); i++) {
        measure(&families[i]);
        print_message("| `%s` | %.4f | %.3f | %.4f | %.3f |\n", families[i].name, families[i].kl4, families[i].bound4,
                      families[i].kl8, families[i].bound8);
    }
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[KS_COUNT(families)];
    if (argc > 1 && strcmp(argv[1], "--markdown") == 0) {
        print_markdown();
        return 0;
    }
    for (size_t i = 0; i < KS_COUNT(families); i++)
        tests[i] = (struct CMUnitTest) { .name = families[i].name,
                                         .test_func = quantization_stays_within_the_familys_bound,
                                         .initial_state = &families[i] };
    return _cmocka_run_group_tests("quality", tests, KS_COUNT(families), NULL, NULL);
}
