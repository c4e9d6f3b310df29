/* Measuring: what `krasis bench` does, and --benchmark of the server. [main] */
#ifndef KS_APP_BENCH_H
#define KS_APP_BENCH_H

#include "app/load.h"
#include <krasis/json.h>

#define KS_BENCH_PROMPT_TOKENS 64u
#define KS_BENCH_NEW_TOKENS 128u

/* Tokens a second for the numbers of clients in --clients. Prints a table, or JSON, on stdout. */
KS_MUST_CHECK int ks_bench_clients(ks_app *a, uint32_t n_prompt, uint32_t n_new, bool json, ks_err *err);
/* The ceilings of this machine, and each kernel as a part of them. */
KS_MUST_CHECK int ks_bench_cpu(ks_config *c, ks_err *err);
/* Prompts and answers of a whole model as a part of the bound that the ceilings set. */
KS_MUST_CHECK int ks_bench_model(ks_config *c, ks_err *err);
/* The member "machine" of a result: processor, features, threads, kernel plugins. */
void ks_bench_machine(const ks_app *a, ks_jw *w);
/* Sorts n >= 1 figures; the middle one. */
double ks_bench_median(double *v, uint32_t n);

#endif
