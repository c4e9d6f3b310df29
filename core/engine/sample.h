/* Sampling: logits of one row -> one token, deterministic for a seed. [engine] */
#ifndef KS_ENGINE_SAMPLE_H
#define KS_ENGINE_SAMPLE_H

#include <krasis/frontend.h>
#include <stdbool.h>

/* All fields set, none "unset": see ks__sampling_resolve. */
typedef struct ks_sampler {
    float temperature, top_p, min_p, presence, frequency, repetition;
    int32_t top_k;
    uint64_t rng[2];
    uint32_t n_vocab;  /* of the logits */
    uint32_t n_tokens; /* ids from here on have no token (padding of the head): never sampled */
    uint32_t n_bias;
    int32_t *bias_ids;   /* owned */
    float *bias;         /* owned */
    uint16_t *generated; /* (n_vocab) how often generated; NULL unless a penalty needs it; owned */
    uint8_t *seen;       /* (n_vocab) in prompt or output, likewise */
} ks_sampler;

/* One value for the heap: bigger logit first, ties to the lower id. */
typedef struct ks_cand {
    float logit;
    int32_t id;
} ks_cand;

/* request over model's defaults over ours. Out-of-range values are KS_E_INVAL naming field, value and range. */
KS_MUST_CHECK int ks_sampling_resolve(const ks_sampling *rq, const ks_sampling *model, ks_sampling *ret, ks_err *err);
KS_MUST_CHECK int ks_sampler_init(ks_sampler *s, const ks_sampling *resolved, uint32_t n_vocab, uint32_t n_tokens,
                                  uint64_t seed, ks_err *err);
void ks_sampler_fini(ks_sampler *s);
/* Tells the penalties about a token of the prompt (generated = false) or of the output. */
void ks_sampler_accept(ks_sampler *s, int32_t id, bool generated);
/* own and cand (n_vocab) are scratch: the logits with penalties, and candidates in order. */
int32_t ks_sample(ks_sampler *s, const float *logits, float *own, ks_cand *cand);
/* log-softmax of the untouched logits: of `id`, and of the `n_top` best (best first) into top. cand: scratch. */
float ks_logprobs(const float *logits, uint32_t n_vocab, int32_t id, uint32_t n_top, ks_cand *cand, ks_cand *ret_top);

#endif
