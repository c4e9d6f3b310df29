/* From tokens to text that a client may see: streaming detokenization, stop strings across token borders, and
 * the token infos (log-probabilities) that belong to the text. One per answer. [engine] */
#ifndef KS_ENGINE_EMIT_H
#define KS_ENGINE_EMIT_H

#include "base/buf.h"
#include "engine/sample.h"
#include "text/tokenizer.h"

#define KS_TOP_MAX 20u

typedef struct ks_emit_token {
    ks_cand token; /* logit holds the log-probability */
    ks_cand top[KS_TOP_MAX];
    uint64_t offset; /* of its text */
} ks_emit_token;

typedef struct ks_emit {
    const ks_tokenizer *tok; /* NULL: no text, tokens only */
    ks_detok *detok;
    const char *const *stop; /* the job's */
    uint32_t n_stop, n_top;
    bool want_tokens;
    ks_buf held;            /* text that could still become a stop string */
    uint64_t appended;      /* bytes of text so far, released or held */
    ks_emit_token *pending; /* tokens whose text is not released */
    uint32_t n_pending, cap_pending;
    ks_token_info *info; /* scratch of one release */
    ks_logprob *lp;
} ks_emit;

/* n_logprobs as in ks_request: -1 none. stop must outlive e. */
KS_MUST_CHECK int ks_emit_init(ks_emit *e, const ks_tokenizer *tok, const char *const *stop, uint32_t n_stop,
                               int32_t n_logprobs, ks_err *err);
void ks_emit_fini(ks_emit *e);

#define KS_EMIT_STOPPED 1 /* a stop string matched: what follows it is gone */
#define KS_EMIT_REFUSED 2 /* the sink does not want more */
/* One accepted token. lp: its log-probability and the best ones (n_top), NULL without. Releases what it may. */
KS_MUST_CHECK int ks_emit_add(ks_emit *e, int32_t id, const ks_cand *lp, const ks_cand *top, const ks_sink *s,
                              uint32_t choice, ks_err *err);
/* The end without a stop string: everything held goes out. */
KS_MUST_CHECK int ks_emit_end(ks_emit *e, const ks_sink *s, uint32_t choice, ks_err *err);

#endif
