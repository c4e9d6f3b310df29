/* An engine without a model: it plays a script, fails where it is told to, and remembers what it was asked.
 *
 * One thread plays all jobs, as the real engine does; tests set the script and read the records from their own thread,
 * both under the lock. Everything is owned by the stub and freed by stub_fini, which ends the jobs that still run. */
#ifndef TESTS_API_STUB_ENGINE_H
#define TESTS_API_STUB_ENGINE_H

#include <krasis/frontend.h>
#include <pthread.h>
#include <stdbool.h>

#define STUB_JOBS 512u
#define STUB_MAX_BIAS 8u

typedef struct stub_token {
    const char *text;  /* what can be told with this token: complete UTF-8 */
    const char *bytes; /* its own */
    float logprob;
} stub_token;

typedef struct stub_script {
    const stub_token *token;
    uint32_t n_tokens;
    uint32_t begin_ms, prefill_ms; /* before on_begin; between it and the first token */
    uint32_t token_ms;
    uint32_t repeat;         /* the script so many times, 0 counts as 1 */
    int32_t fail_submit;     /* KS_E_ codes; 0: no failure */
    int32_t fail_before;     /* instead of on_begin */
    int32_t fail_after;      /* after all tokens */
    uint32_t fail_submit_at; /* fail_submit hits from this submit of a request on: 0, 1, ... */
} stub_script;

/* A request, copied. */
typedef struct stub_seen {
    ks_request rq;                          /* its pointers are NULL */
    char *messages, *tools, *kwargs, *text; /* NUL-terminated, NULL if they were not set */
    size_t text_bytes;
    int32_t ids[16], bias_ids[STUB_MAX_BIAS];
    float bias[STUB_MAX_BIAS];
    char stop[4][64];
} stub_seen;

typedef struct stub_job {
    uint64_t id, next_ns;
    ks_sink sink;
    stub_seen seen;
    stub_script script;
    uint32_t at; /* next token */
    uint64_t told_bytes;
    bool used, begun, cancelled, done;
} stub_job;

typedef struct stub {
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    bool stop;
    stub_script script;                              /* of the requests to come */
    stub_job job[STUB_JOBS];                         /* in the order of submit */
    uint32_t n_jobs, n_submits, n_cancelled, n_done; /* n_cancelled: running jobs that cancel() hit */
} stub;

extern const ks_engine_api stub_api;
extern const stub_token stub_hello[4]; /* "Hel" "é" in two tokens, and a text that JSON must escape */
void stub_init(stub *s);
void stub_fini(stub *s);
void stub_play(stub *s, stub_script script);
const stub_seen *stub_last(stub *s);                 /* the last request that was taken; valid until stub_fini */
uint32_t stub_count(stub *s, const uint32_t *count); /* one of the counts, under the lock */
/* Waits until so many jobs were cancelled or done; false after the time. */
bool stub_wait_cancelled(stub *s, uint32_t n, uint32_t limit_ms);
bool stub_wait_done(stub *s, uint32_t n, uint32_t limit_ms);
bool stub_wait_submits(stub *s, uint32_t n, uint32_t limit_ms);

#endif
