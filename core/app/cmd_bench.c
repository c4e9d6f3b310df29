/* krasis bench: chooses among the benchmarks. See bench.h. */
#include "app/bench.h"
#include "app/cmd.h"

static int bench_clients(ks_config *c, ks_err *err)
{
    ks_app a = { 0 };
    const uint32_t n_new = (uint32_t)ks_config_int(c, "max-tokens");
    int rc = ks_app_open(c, &a, err);
    a.heat.keep = false; /* random prompts teach nothing about real ones */
    if (!rc)
        rc = ks_bench_clients(&a, (uint32_t)ks_config_int(c, "prompt-tokens"), n_new < 2 ? KS_BENCH_NEW_TOKENS : n_new,
                              ks_config_bool(c, "json"), err);
    ks_app_close(&a);
    return rc;
}

int ks_cmd_bench(ks_config *c, ks_cli *cli)
{
    ks_err err = { 0 };
    const char *what = cli->n_words ? cli->words[0] : "";
    int rc;
    if (!*what)
        rc = bench_clients(c, &err);
    else if (strcmp(what, "cpu") == 0)
        rc = ks_bench_cpu(c, &err);
    else if (strcmp(what, "model") == 0)
        rc = ks_bench_model(c, &err);
    else
        rc = ks_fail(&err, KS_E_CONFIG, "bench '%.64s': cpu and model are known, and no word for clients", what);
    return rc ? ks_app_fail(&err) : 0;
}
