/* krasis synth: a model of any supported shape with random weights, to measure speed at real sizes. With --quantized
 * the folder holds a formula instead of weights, and the cache of quantized weights is built from it at once. */
#include "app/cmd.h"
#include "app/load.h"
#include "app/synth.h"
#include "base/base.h"
#include "base/log.h"

/* What a start would build, built now: the settings of weights and cache are those of the other commands. */
static int build_cache(ks_config *c, ks_app *a, const char *dir, ks_err *err)
{
    int rc = ks_config_set(c, "model-path", dir, KS_FROM_FLAG, "--output", err);
    if (!rc) rc = ks_app_model(a, err);
    if (!rc) rc = ks_app_weights(a, err);
    return rc;
}

int ks_cmd_synth(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    const int64_t seed = ks_config_int(c, "seed");
    ks_synth_opts o = { .config = ks_config_str(c, "config"),
                        .output = ks_config_str(c, "output"),
                        .layers = (uint32_t)ks_config_int(c, "layers"),
                        .seed = seed < 0 ? 1 : (uint64_t)seed,
                        .route_skew = (float)ks_config_float(c, "route-skew"),
                        .quantized = ks_config_bool(c, "quantized") };
    int rc = 0;
    (void)cli; /* flags only: the table says so */
    if (!*o.config || !*o.output)
        rc = ks_fail(&err, KS_E_CONFIG,
                     "synth needs --config FILE, the config.json of a shape, and --output DIR, the folder to make");
    if (!rc) rc = ks_app_plugins(c, &a, &err);
    o.pool = a.pool;
    if (!rc) rc = ks_synth_make(&o, &err);
    if (!rc && o.quantized) rc = build_cache(c, &a, o.output, &err);
    if (!rc) ks_log(KS_LOG_INFO, "synth", "'%s' is ready", o.output);
    ks_app_close(&a);
    return rc ? ks_app_fail(&err) : 0;
}
