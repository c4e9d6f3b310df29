/* From settings to a loaded model: plugins, pool, weights, text side, engine, in that order. [main] */
#ifndef KS_APP_LOAD_H
#define KS_APP_LOAD_H

#include "app/gpu.h"
#include "app/heat.h"
#include "config/config.h"
#include "device/split_device.h"
#include "engine/engine.h"
#include "plugin/plugin.h"

typedef struct ks_app {
    ks_config *config; /* not owned */
    ks_registry *registry;
    ks_pool *pool;
    ks_kernel_table *kernels;
    ks_ckpt *ckpt;
    ks_model model;
    ks_store *store;
    ks_tokenizer *tok;
    ks_template *chat;
    bool chat_developer; /* the template knows that role */
    ks_cpu_ctx cpu;
    ks_split_ctx split;  /* where a GPU is used */
    ks_device_info gpu;  /* that one; size 0: none */
    ks_engine_opts opts; /* device and numbers, as planned; texts are added at the start */
    int64_t expert_bits; /* 0: --cpu-expert-bits */
    ks_heat heat;
    ks_engine *engine;
    char *dirs[8];
    uint32_t n_dirs;
    uint32_t n_threads;
    uint32_t context; /* tokens of one sequence, as planned */
    char name[128];   /* of the model: the last part of its path */
} ks_app;

/* Registry and pool only: what `plugins` and `check` need. */
KS_MUST_CHECK int ks_app_plugins(ks_config *c, ks_app *a, ks_err *err);
/* Everything, up to a running engine. The messages say what was chosen and how to change it. */
KS_MUST_CHECK int ks_app_open(ks_config *c, ks_app *a, ks_err *err);
/* Do the settings hold on this machine? A flag that needs a GPU is an error where none is usable; a line of a file is
 * noted, and the CPU computes. After ks_app_plugins. */
KS_MUST_CHECK int ks_app_settings(ks_app *a, ks_err *err);
/* Chooses the device and plans its memory, by a->opts. After ks_app_model and ks_plan_make, which has the context. */
KS_MUST_CHECK int ks_app_device(ks_app *a, uint32_t context, ks_err *err);
/* The checkpoint and its op list, no weights: for `check`. After ks_app_plugins. */
KS_MUST_CHECK int ks_app_model(ks_app *a, ks_err *err);
/* The same in three steps, for those who look at what lies between: all that is known before weights are read, with
 * the check that they fit; the weights (after ks_app_model, or this); tokenizer and engine. */
KS_MUST_CHECK int ks_app_prepare(ks_config *c, ks_app *a, ks_err *err);
KS_MUST_CHECK int ks_app_weights(ks_app *a, ks_err *err);
KS_MUST_CHECK int ks_app_start(ks_app *a, ks_err *err);
void ks_app_close(ks_app *a); /* a zeroed or half-built app is fine */

/* Weight types as the settings say: `type` and `narrow` of o. */
void ks_app_types(const ks_app *a, ks_store_opts *o);
uint32_t ks_app_kv_type(const ks_config *c);

/* The numbers of the engine as the settings say, for a plan: no device, no texts. After ks_app_model. */
ks_engine_opts ks_app_engine_opts(const ks_app *a, uint32_t context);

/* Says the error on stderr. Returns the exit code: 2 for what the user or a file caused, 1 for the rest. */
int ks_app_fail(const ks_err *err);

#endif
