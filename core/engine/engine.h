/* The engine: one loaded model, one engine thread, jobs from many clients in one batch a step. */
#ifndef KS_ENGINE_ENGINE_H
#define KS_ENGINE_ENGINE_H

#include "device/cpu_device.h"
#include "graph/model.h"
#include "store/store.h"
#include "text/template.h"
#include "text/tokenizer.h"
#include <krasis/frontend.h>
#include <stdbool.h>

typedef struct ks_engine ks_engine;

typedef struct ks_engine_opts {
    const ks_model *model;   /* weights filled; outlives the engine */
    const ks_tokenizer *tok; /* may be NULL: ids only */
    const ks_template *chat; /* may be NULL: chat requests are refused with the reason */
    bool chat_developer;     /* the template knows the role "developer" */
    const ks_device_iface *device;
    void *device_self;
    /* When the device is lost (KS_E_DEVICE) and the requests in flight have their error: another one takes over, or,
     * with stop_when_lost, nothing is computed any more. Neither: the next step tries it again. */
    const ks_device_iface *fallback;
    void *fallback_self;
    bool stop_when_lost;
    ks_pool *pool;           /* for sampling; also what the CPU device runs on. May be NULL: the engine thread alone */
    const char *name, *path; /* of the model, for clients */
    const char *generation_config; /* text of generation_config.json or NULL */
    uint32_t n_ctx;                /* tokens one sequence may hold; 0: the model's */
    uint32_t kv_type;
    uint64_t kv_bytes; /* of all pages; 0: enough for max_running sequences of n_ctx, at most 4 GiB */
    uint32_t max_running, max_waiting, step_tokens; /* 0: defaults */
    uint32_t busy_tokens; /* of prompts in a step that also writes answers, at most; 0: step_tokens */
    uint32_t stream, stream_layers, share_rows; /* as in ks_bind */
    uint32_t place;                             /* KS_PLACE_ */
    const uint64_t *heat; /* (n_layers, n_experts) a heat map to start with, only read by open; NULL: none */
    uint64_t heat_rows;   /* that it was made of, in the same unit */
} ks_engine_opts;

/* Who chooses the experts that stay on a device. */
#define KS_PLACE_DEVICE 0u /* the device, once */
#define KS_PLACE_STATIC 1u /* the engine, by the heat map */
#define KS_PLACE_ADAPT 2u  /* and by what is asked for while it runs */

/* What ks_engine_open would bind: for plans. Weights need no data. */
KS_MUST_CHECK int ks_engine_bind(const ks_engine_opts *o, ks_bind *ret, ks_err *err);

KS_MUST_CHECK int ks_engine_open(const ks_engine_opts *o, ks_engine **ret, ks_err *err);
/* Cancels what runs, joins the thread, frees. NULL is fine. */
void ks_engine_close(ks_engine *e);
/* Refuses new jobs from now on; waits until the running ones end (true) or `limit_ms` passed. [any] */
bool ks_engine_drain(ks_engine *e, uint32_t limit_ms);
/* Cancels all jobs; each still gets its on_done, within one step. [any] */
void ks_engine_cancel_all(ks_engine *e);
/* True if the device is lost and none took over: all requests get *ret. [any] */
bool ks_engine_lost(ks_engine *e, ks_err *ret);
const ks_engine_api *ks_engine_api_get(void);
/* Routed pairs since the start by (layer, expert): n_layers x n_experts numbers. KS_E_UNSUPPORTED where the device does
 * not count. [any] */
KS_MUST_CHECK int ks_engine_heat(ks_engine *e, uint64_t *ret_counts, ks_err *err);
/* True if the engine has chosen some experts of all that could stay; how many places are taken, and of how many
 * experts. The results may be NULL. [main] */
bool ks_engine_places(ks_engine *e, uint32_t *ret_slots, uint32_t *ret_experts);
/* A heat map, in units of 1/KS_HCS_ONE: places the hottest experts; gives the map as it has become. [any] */
KS_MUST_CHECK int ks_engine_heat_set(ks_engine *e, const uint64_t *counts, uint64_t rows, ks_err *err);
KS_MUST_CHECK int ks_engine_heat_get(ks_engine *e, uint64_t *ret_counts, uint64_t *ret_rows, ks_err *err);

/* Direct evaluation for tools (logits, perplexity, generate-ids): only while no job runs. Rows of one
 * sequence from position `pos`, which continues what earlier calls with the same `seq` put there.
 * logits (n, n_vocab) or NULL; hidden (n_layers + 1, n, d_model) or NULL. [any], one at a time */
KS_MUST_CHECK int ks_engine_eval(ks_engine *e, uint32_t seq, const int32_t *ids, uint32_t n, uint32_t pos,
                                 float *logits, float *hidden, ks_err *err);
void ks_engine_eval_reset(ks_engine *e); /* forgets all sequences of eval */

#endif
