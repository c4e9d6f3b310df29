/* What a model will take and what speed to expect of it, known before its weights are read. [main] */
#ifndef KS_APP_PLAN_H
#define KS_APP_PLAN_H

#include "app/cost.h"
#include "app/load.h"

typedef struct ks_plan {
    uint64_t class_bytes[16]; /* weights by KS_CLS_ */
    uint32_t class_type[16];  /* KS_T_ that most bytes of the class have; 0: no bytes */
    uint64_t weight_bytes;
    uint64_t kv_token_bytes, kv_bytes; /* of one token; of one full context */
    uint64_t state_bytes;              /* recurrent, of one sequence */
    uint64_t limit_bytes;              /* --ram-limit, or what is available */
    uint32_t context, kv_type;
} ks_plan;

/* After ks_app_model; describes model.weights, data apart. A context above the model's is an error, and a
 * --kv-cache-mb that one context does not fit into. */
KS_MUST_CHECK int ks_plan_make(ks_app *a, ks_plan *ret, ks_err *err);
/* KS_E_LIMIT with the sizes and the settings that change them. */
KS_MUST_CHECK int ks_plan_fits(const ks_plan *p, ks_err *err);

/* The parts of a step's time, were each to run at its ceiling: weights by class, then these. */
#define KS_PLAN_KV 16u
#define KS_PLAN_STATE 17u
#define KS_PLAN_PARTS 18u

typedef struct ks_plan_speed {
    ks_cost cost;                /* of one step */
    double bound, expect;        /* tokens/s: no program can be faster; about what this one reaches */
    double bytes[KS_PLAN_PARTS]; /* read for one step */
    const char *limit;           /* "memory" or "arithmetic" */
} ks_plan_speed;

/* Writing with `batch` answers at once after a context of `depth`; reading a prompt of `tokens`. After ks_plan_make. */
void ks_plan_decode(const ks_app *a, const ks_plan *p, const ks_rates *r, uint32_t batch, uint32_t depth,
                    ks_plan_speed *ret);
void ks_plan_prefill(const ks_app *a, const ks_plan *p, const ks_rates *r, uint32_t tokens, ks_plan_speed *ret);

#endif
