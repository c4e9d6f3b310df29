/* A model as its config.json describes it: op list, weight specs, and what the text side needs. */
#ifndef KS_GRAPH_MODEL_H
#define KS_GRAPH_MODEL_H

#include "base/arena.h"
#include "base/buf.h"
#include "store/ckpt.h"
#include "store/wspec.h"

typedef struct ks_model {
    ks_arena arena; /* owns everything below */
    ks_graph graph; /* graph.weights points to `weights`; data is NULL until the store fills it */
    ks_weight *weights;
    ks_wspec *specs;  /* (graph.n_weights), same order */
    const char *arch; /* "qwen3_moe" */
    uint32_t flags;
} ks_model;

/* Reads config.json of the checkpoint's directory, builds list and specs. Fields that would change the result and
 * are not implemented are an error that names them; an unknown model_type lists what is supported. */
KS_MUST_CHECK int ks_model_open(const ks_ckpt *c, ks_model *ret, ks_err *err);
void ks_model_close(ks_model *m); /* a zeroed model is fine */
/* Supported model types, NULL-terminated. */
const char *const *ks_model_types(void);
/* docs/models.md: every type, what it is known from, and what of it is special. */
void ks_model_markdown(ks_buf *b);

#endif
