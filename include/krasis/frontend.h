/* Kind FRONTEND: gets requests from outside and hands them to the engine.
 *
 * The engine's narrow API, which the program's own chat and run commands use, too. A frontend
 * never sees tensors, tokens tables or threads of the engine. submit() copies the request and
 * returns at once: templates, tokenization and checks run on the engine's own threads, so an
 * event loop may call it.
 */
#ifndef KRASIS_FRONTEND_H
#define KRASIS_FRONTEND_H

#include <krasis/plugin.h>

/* Sampling. A field that is NaN (floats) or INT32_MIN (ints) takes the model's default
 * (generation_config.json), then ours. Use ks_sampling_init. */
typedef struct ks_sampling {
    uint32_t size, n_bias;
    float temperature; /* 0: greedy */
    float top_p, min_p;
    float presence_penalty, frequency_penalty, repetition_penalty;
    int32_t top_k; /* 0: off */
    int32_t has_seed;
    uint64_t seed;
    const int32_t *bias_ids; /* (n_bias) logit_bias: token and amount */
    const float *bias;
} ks_sampling;

/* What a request holds. Exactly one of messages, text, ids is set. JSON is UTF-8 text. */
typedef struct ks_request {
    uint32_t size, n;     /* n: choices, 1.. */
    const char *messages; /* chat: JSON array of OpenAI messages */
    size_t messages_bytes;
    const char *tools; /* JSON array or NULL */
    size_t tools_bytes;
    const char *kwargs; /* JSON object of further template variables, or NULL */
    size_t kwargs_bytes;
    const char *text; /* completion: raw text; added tokens in it are recognised */
    size_t text_bytes;
    const int32_t *ids; /* completion: tokens */
    size_t n_ids;
    int32_t max_tokens; /* -1: as many as the context holds */
    int32_t n_logprobs; /* -1: none; 0..20: the token's own and this many best */
    int32_t echo;       /* completion: the prompt comes back, too (with log-probabilities if asked) */
    int32_t ignore_eos;
    const char *const *stop; /* (n_stop) NUL-terminated UTF-8, matched on text */
    uint32_t n_stop;
    uint32_t flags; /* 0 */
    ks_sampling sampling;
} ks_request;

typedef struct ks_logprob {
    int32_t id;
    float logprob;
    const char *bytes; /* the token's bytes, not necessarily UTF-8 on their own */
    uint32_t n_bytes, _pad;
} ks_logprob;

/* A token that was accepted, in the order of the text. */
typedef struct ks_token_info {
    uint32_t size, n_top;
    ks_logprob token;
    const ks_logprob *top; /* (n_top) best first */
    uint64_t text_offset;  /* in bytes of the choice's text */
} ks_token_info;

#define KS_FINISH_STOP 1     /* end token or stop string */
#define KS_FINISH_LENGTH 2   /* max_tokens, or the context is full */
#define KS_FINISH_CANCELED 3 /* cancel(), shutdown */
#define KS_FINISH_ERROR 4

typedef struct ks_usage {
    uint32_t size, prompt_tokens, cached_tokens, completion_tokens;
    double queue_ms, prefill_ms, decode_ms;
} ks_usage;

/* Where answers go. All [engine]: they must not block; a nonzero return cancels the job. Strings and
 * arrays are valid during the call only. */
typedef struct ks_sink {
    uint32_t size, _pad;
    void *arg;
    /* Once, after template, tokenization and all checks, before any compute. An error before it
     * comes through on_done alone: so a server may still choose its status code. */
    int (*on_begin)(void *arg, const ks_usage *u);
    /* Complete UTF-8 that can no longer be part of a stop string; bytes may be 0 when only tokens are told. */
    int (*on_text)(void *arg, uint32_t choice, const char *utf8, size_t bytes, const ks_token_info *tokens,
                   uint32_t n_tokens);
    void (*on_finish)(void *arg, uint32_t choice, int32_t finish);    /* once a choice */
    void (*on_done)(void *arg, const ks_usage *u, const ks_err *err); /* exactly once; err NULL: fine */
} ks_sink;

typedef struct ks_model_info {
    uint32_t size, n_ctx, n_vocab, n_layers;
    const char *name; /* all strings live as long as the engine */
    const char *arch;
    const char *path;
    uint64_t weight_bytes;
    int64_t created; /* Unix time the model was loaded */
} ks_model_info;

typedef struct ks_stats {
    uint32_t size, n_running, n_waiting, max_running;
    uint64_t requests, prompt_tokens, cached_tokens, generated_tokens, steps, errors, cancels;
    uint32_t kv_pages_total, kv_pages_used;
    double uptime_s, busy_s;
    /* Since 1.2. Experts in a device's memory; all 0 where there is no such device. */
    uint32_t experts, expert_slots, experts_resident, _pad; /* of the model; places for them; there now */
    uint64_t experts_hot, experts_cold;             /* (row, expert) pairs that found their expert there, or not */
    uint64_t expert_uploads, expert_upload_bytes;   /* experts that were brought there to stay */
    uint64_t link_bytes_in, link_bytes_out;         /* to the device and back, those among them */
    double device_s, device_wait_s, experts_cpu_s;  /* in steps; of it waiting for the device, in the CPU's experts */
    uint64_t experts_cpu_bytes, experts_link_bytes; /* of experts: computed by the CPU; read over the link in place */
} ks_stats;

typedef struct ks_engine_api {
    uint32_t size, _pad;
    /* [any] If it fails, no callback comes; if it returns 0, on_done comes once, even after cancel.
     * KS_E_BUSY: the queue is full; KS_E_INVAL: a field; KS_E_STATE: shutting down. */
    int (*submit)(void *engine, const ks_request *rq, const ks_sink *s, uint64_t *ret_job, ks_err *err);
    int (*cancel)(void *engine, uint64_t job);                      /* [any] unknown or ended jobs are fine */
    int (*describe)(void *engine, ks_model_info *ret, ks_err *err); /* [any] */
    int (*stats)(void *engine, ks_stats *ret, ks_err *err);         /* [any] */
    /* [any] text -> tokens and back. cap in elements; *ret_n is the needed count even if above cap. */
    int (*tokenize)(void *engine, const char *text, size_t bytes, int32_t special, int32_t *ids, size_t cap,
                    size_t *ret_n, ks_err *err);
    int (*detokenize)(void *engine, const int32_t *ids, size_t n, char *text, size_t cap, size_t *ret_n, ks_err *err);
} ks_engine_api;

typedef struct ks_frontend_iface {
    uint32_t size, _pad;
    int (*start)(void *self, const ks_engine_api *api, void *engine, ks_err *err); /* [main] returns once it listens */
    void (*drain)(void *self); /* [main] optional: refuse new requests, let running ones go on */
    void (*stop)(void *self);  /* [main] idempotent; returns when the last callback has */
} ks_frontend_iface;

static inline void ks_sampling_init(ks_sampling *s)
{
    const float unset = __builtin_nanf("");
    *s = (ks_sampling) { .size = (uint32_t)sizeof *s,
                         .temperature = unset,
                         .top_p = unset,
                         .min_p = unset,
                         .presence_penalty = unset,
                         .frequency_penalty = unset,
                         .repetition_penalty = unset,
                         .top_k = INT32_MIN };
}

#endif
