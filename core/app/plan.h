/* The memory a model will take, known before its weights are read. [main] */
#ifndef KS_APP_PLAN_H
#define KS_APP_PLAN_H

#include "app/load.h"

typedef struct ks_plan {
    uint64_t class_bytes[16]; /* weights by KS_CLS_ */
    uint64_t weight_bytes;
    uint64_t kv_token_bytes, kv_bytes; /* of one token; of one full context */
    uint64_t limit_bytes;              /* --ram-limit, or what is available */
    uint32_t context;
} ks_plan;

/* After ks_app_model. A context above the model's is an error. */
KS_MUST_CHECK int ks_plan_make(const ks_app *a, ks_plan *ret, ks_err *err);
/* KS_E_LIMIT with the sizes and the settings that change them. */
KS_MUST_CHECK int ks_plan_fits(const ks_plan *p, ks_err *err);

#endif
