/* The golden results of tests/golden: rebuilds a checkpoint from its manifest, reads what is expected of it.
 * tests/golden/README.md defines both. The caller owns everything. */
#ifndef TESTS_SUPPORT_GOLDEN_CKPT_H
#define TESTS_SUPPORT_GOLDEN_CKPT_H

#include <krasis/error.h>
#include <stdint.h>

/* Writes model.safetensors and a copy of config.json into out_dir, which is made if it is missing. */
KS_MUST_CHECK int ks_golden_write(const char *golden_dir, const char *out_dir, ks_err *err);

typedef struct ks_golden {
    uint32_t n_tok, n_vocab, n_taps, d_model, n_greedy;
    const int32_t *ids;         /* (n_tok) */
    const float *logits;        /* (n_tok, n_vocab) */
    const float *hidden;        /* (n_taps, n_tok, d_model): layers + 1; NULL where the family has none */
    const int32_t *greedy;      /* (n_greedy) */
    const float *greedy_margin; /* (n_greedy) */
    void *mem;                  /* owns the arrays */
} ks_golden;

KS_MUST_CHECK int ks_golden_expected(const char *golden_dir, ks_golden *ret, ks_err *err);
void ks_golden_fini(ks_golden *g); /* a zeroed one is fine */

#endif
