/* Which device a model runs on, and how much of it: --device, --num-gpus, --selected-gpus, --vram-limit and the
 * settings of the GPU's memory. The choice is made from the device's own plan, before weights are read. [main] */
#ifndef KS_APP_GPU_H
#define KS_APP_GPU_H

#include "engine/engine.h"
#include "plugin/plugin.h"

struct ks_app;

typedef struct ks_gpu {
    ks_plugin_entry *plugin; /* NULL: the CPU computes */
    const ks_device_iface *iface;
    ks_device_info card;
    bool described;     /* the card is not here: good for a plan only */
    bool share;         /* the CPU computes experts, too */
    uint64_t budget;    /* --vram-limit, 0: what is free */
    uint64_t kv_tokens; /* that the cache holds, of all conversations */
    ks_device_plan plan;
} ks_gpu;

/* The experts' precision: weights live once, so where both compute, one holds for both. After ks_app_plugins. */
KS_MUST_CHECK int ks_gpu_precision(struct ks_app *a, ks_err *err);
/* The card that the settings name; ret->plugin is NULL where the CPU is to compute. describe: without a usable GPU, one
 * of --vram-limit bytes is described. After ks_app_model. */
KS_MUST_CHECK int ks_gpu_find(struct ks_app *a, bool describe, ks_gpu *ret, ks_err *err);
/* Plans with that card. What the user left open in o (step_tokens, kv_bytes) is chosen so that it fits and prompts are
 * read in few steps. KS_E_LIMIT: it does not fit, whatever is chosen; g->plan then has the parts of the last try. */
KS_MUST_CHECK int ks_gpu_fit(const struct ks_app *a, ks_gpu *g, ks_engine_opts *o, ks_err *err);
/* All of it: fills in the engine's device and numbers. A GPU that is asked for and cannot be used is an error; with
 * --device auto it is a line in the log, and the CPU computes. After ks_plan_make: weights have their sizes. */
KS_MUST_CHECK int ks_gpu_choose(struct ks_app *a, ks_engine_opts *o, ks_err *err);

/* One of the list: does "0,2" or "GPU-1b..." name this GPU? "all" names every one. */
bool ks_gpu_selected(const char *list, const ks_device_info *gpu);

#endif
