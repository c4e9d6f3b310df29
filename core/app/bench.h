/* The client benchmark, for `krasis bench` and --benchmark. [main] */
#ifndef KS_APP_BENCH_H
#define KS_APP_BENCH_H

#include "app/load.h"

#define KS_BENCH_PROMPT_TOKENS 64u
#define KS_BENCH_NEW_TOKENS 128u

/* clients: "1,16". Prints a table, or JSON, on stdout. */
KS_MUST_CHECK int ks_bench_clients(ks_app *a, const char *clients, uint32_t n_prompt, uint32_t n_new, bool json,
                                   ks_err *err);

#endif
