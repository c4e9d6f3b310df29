/* A client inside the program: one request at a time over the engine's narrow API, waited for. [main] */
#ifndef KS_APP_CLIENT_H
#define KS_APP_CLIENT_H

#include "base/buf.h"
#include <krasis/frontend.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

typedef struct ks_client {
    const ks_engine_api *api;
    void *engine;
    FILE *out; /* text goes here as it comes, or NULL */
    ks_buf text;
    int32_t finish;
    ks_usage usage;
    ks_err err;
    uint64_t job;
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool done;               /* under mu */
    const atomic_bool *stop; /* set by a signal handler: cancel; may be NULL */
} ks_client;

void ks_client_init(ks_client *c, const ks_engine_api *api, void *engine, FILE *out);
void ks_client_fini(ks_client *c);
/* Submits; on_done comes later. */
KS_MUST_CHECK int ks_client_begin(ks_client *c, const ks_request *rq, ks_err *err);
/* Waits for the end. The text so far stays in c->text. */
KS_MUST_CHECK int ks_client_wait(ks_client *c, ks_err *err);

#define KS_CLIENTS_MAX 256u
/* For benchmarks: n <= KS_CLIENTS_MAX clients at once, each with its own n_prompt of ids (n x n_prompt), greedy, n_new
 * tokens whatever they are. ret_first: ms until the last one's first token; ret_rest: ms from there to the end of all.
 */
KS_MUST_CHECK int ks_clients_run(void *engine, const int32_t *ids, uint32_t n, uint32_t n_prompt, uint32_t n_new,
                                 double *ret_first, double *ret_rest, ks_err *err);

#endif
