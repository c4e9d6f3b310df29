/* Bodies of POST /v1/chat/completions and /v1/completions: each input is read as both.
 * A body that is taken must be a request that keeps the promises of frontend.h; a refused one must have a status and a
 * message that can be sent. */
#include "http.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int describe(void *engine, ks_model_info *ret, ks_err *err)
{
    (void)engine;
    (void)err;
    ret->name = "model";
    return 0;
}

static void demand(bool holds)
{
    if (!holds) abort(); /* a finding */
}

static void check_taken(const parsed *p)
{
    const ks_request *rq = &p->rq;
    demand(p->n_prompts >= 1 && p->n_prompts <= HTTP_MAX_JOBS);
    demand(rq->n >= 1 && rq->n * p->n_prompts <= HTTP_MAX_CHOICES);
    demand(rq->n_stop <= HTTP_MAX_STOPS && rq->n_logprobs >= -1 && rq->n_logprobs <= 20 && rq->max_tokens >= -1);
    demand(p->chat == (rq->messages != NULL));
    for (uint32_t i = 0; i < rq->n_stop; i++)
        demand(ks_utf8_valid(rq->stop[i], strlen(rq->stop[i])) == strlen(rq->stop[i]));
    for (uint32_t i = 0; i < rq->sampling.n_bias; i++)
        demand(rq->sampling.bias_ids[i] >= 0 && rq->sampling.bias[i] >= -100 && rq->sampling.bias[i] <= 100);
    for (uint32_t i = 0; i < p->n_prompts && !p->chat; i++) {
        demand((p->prompt[i].text != NULL) != (p->prompt[i].ids != NULL));
        for (size_t k = 0; k < p->prompt[i].n_ids; k++) demand(p->prompt[i].ids[k] >= 0);
        if (p->prompt[i].text) demand(ks_utf8_valid(p->prompt[i].text, p->prompt[i].bytes) == p->prompt[i].bytes);
    }
    if (p->chat)
        demand(rq->messages_bytes >= 2 && rq->messages[0] == '[' && rq->messages[rq->messages_bytes - 1] == ']');
    if (rq->tools) demand(rq->tools[0] == '[' && rq->tools[rq->tools_bytes - 1] == ']');
    if (rq->kwargs) demand(rq->kwargs[0] == '{' && rq->kwargs[rq->kwargs_bytes - 1] == '}');
}

static void read_as(const uint8_t *data, size_t n, bool chat)
{
    static const ks_engine_api api = { .size = (uint32_t)sizeof api, .describe = describe };
    server s = { .api = &api };
    request *r = calloc(1, sizeof *r);
    char *body = malloc(n + 1); /* as the server keeps it: with a NUL behind */
    if (r && body) {
        memcpy(body, data, n);
        body[n] = 0;
        r->s = &s;
        r->body = body;
        r->body_bytes = n;
        if (parse_completion(r, chat)) {
            ks_jw w;
            ks_jw_init(&w);
            demand(r->error.status >= 400 && r->error.message[0]);
            write_error(&w, &r->error);
            demand(ks_jw_done(&w) == 0 && ks_utf8_valid(w.text, w.n) == w.n);
            ks_jw_fini(&w);
        } else {
            demand(r->error.status == 0);
            check_taken(&r->p);
        }
        parsed_fini(&r->p);
    }
    free(body);
    free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint8_t none;
    read_as(n ? data : &none, n, true);
    read_as(n ? data : &none, n, false);
    return 0;
}
