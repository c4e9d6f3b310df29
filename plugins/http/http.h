/* What the files of the HTTP frontend share.
 *
 * Threads: libmicrohttpd's one event thread moves bytes and queues responses; the reader thread parses bodies and
 * submits them; the engine's threads run the sinks; the watcher thread notices vanished clients and missed deadlines.
 * They meet in `request`, under its lock. The event thread never waits and never works long: a body of 30 MB may take
 * a tenth of a second to parse, and /health must not notice.
 *
 * A request's life: headers and body (event thread) -> suspended, in the reader's queue -> parsed and submitted
 * (reader)
 * -> every job has begun or one failed: resumed, the status goes out -> stream: the response's callback takes bytes,
 * suspends when there are none -> done. It is freed when the event thread (request completed), the reader and all
 * jobs (on_done) have let go.
 */
#ifndef KS_HTTP_H
#define KS_HTTP_H

#include <krasis/frontend.h>
#include <krasis/json.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define HTTP_MAX_JOBS 64u     /* prompts of one completion request */
#define HTTP_MAX_CHOICES 256u /* prompts x n */
#define HTTP_MAX_STOPS 16u
#define HTTP_MAX_KEYS 256u
#define HTTP_JSON_DEPTH 64u
#define HTTP_HEADER_ROOM 2u  /* memory for headers, in limits: those over the limit are still read, to be told so */
#define HTTP_DRAIN_LIMITS 4u /* a refused body is read up to so many times its limit, so that the answer arrives */

typedef struct http_opts {
    const char *host;
    int64_t port;
    const char *api_key, *api_key_file, *cors_origin;
    int64_t max_body_mb, max_header_kb, max_connections, per_ip;
    int64_t header_timeout_s, body_timeout_s, send_timeout_s, idle_timeout_s, heartbeat_s;
} http_opts;

typedef struct key_list {
    char **key; /* owned */
    uint32_t n;
} key_list;

struct connection; /* server.c: one TCP connection, for deadlines */

typedef struct server {
    const ks_host *host;
    const http_opts *o;
    const ks_engine_api *api;
    void *engine;
    struct MHD_Daemon *daemon;
    key_list keys;
    int epoll_fd, stop_fd;
    int listen_fd; /* bound, not yet the daemon's; -1: none */
    pthread_t watcher;
    pthread_t reader;
    bool watching, reading; /* the threads run */
    pthread_mutex_t mu;
    struct request *requests;       /* under mu */
    struct connection *connections; /* under mu */
    uint64_t next_id;               /* under mu */
    bool draining;                  /* under mu */
    struct request *first, *last;   /* under mu: the reader's queue */
    bool reader_stops;              /* under mu */
    pthread_cond_t queued;          /* under mu */
    uint32_t n_live;                /* under mu: requests not freed yet; stop() waits for none */
    pthread_cond_t all_freed;       /* under mu */
} server;

/* An error that goes to the client: status, OpenAI type and code, the field. */
typedef struct http_error {
    unsigned status;
    const char *type, *code; /* static; code may be NULL */
    char param[64];
    char message[600];
} http_error;

/* The parsed body of a completion request; strings point into the body or into `own`. */
typedef struct parsed {
    bool chat, stream, include_usage;
    char model[256];
    ks_request rq;
    uint32_t n_prompts;
    struct {
        const char *text;
        size_t bytes;
        int32_t *ids; /* owned by own[] */
        size_t n_ids;
    } prompt[HTTP_MAX_JOBS];
    const char *stop[HTTP_MAX_STOPS];
    void *own[HTTP_MAX_JOBS * 2 + HTTP_MAX_STOPS + 8]; /* freed by parsed_fini */
    uint32_t n_own;
} parsed;

typedef struct choice {
    ks_jw text;     /* not streaming: the text so far */
    ks_jw logprobs; /* not streaming: JSON array items, or the four arrays' items of completions */
    ks_jw lp_values, lp_top, lp_offsets;
    int32_t finish;
} choice;

typedef struct job {
    struct request *rq;
    uint64_t id;
    uint32_t base; /* index of its first choice */
    bool submitted;
} job;

typedef struct request {
    struct request *next, **prev; /* server.requests; under server.mu */
    struct request *queue_next;   /* under server.mu */
    server *s;
    struct MHD_Connection *conn;
    const struct route *route;
    uint64_t id;
    bool responded, handed_over; /* event thread only: a response was queued; it went to the reader */
    http_error error;            /* found before or after the body */
    char *body;
    size_t body_bytes, body_cap, dropped_bytes;
    parsed p;
    char answer_id[48];
    int64_t created;

    pthread_mutex_t mu;
    uint32_t refs;                   /* under mu, like all below */
    bool suspended, gone, streaming; /* gone: the client; streaming: headers are out */
    bool prepared;                   /* the reader is done with it: parsed and submitted, or failed */
    uint32_t n_jobs, n_begun, n_done;
    bool failed; /* error is set, by the reader or a job; it does not change any more */
    ks_jw out;   /* streaming: bytes not yet taken */
    size_t out_at;
    uint64_t last_output_ns; /* of a stream: when something was last put into out */
    ks_usage usage;
    uint32_t n_choices;
    choice *choices;
    job jobs[HTTP_MAX_JOBS];
} request;

/* server.c */
KS_MUST_CHECK int server_bind(server *s, ks_err *err); /* takes the port; start() listens on it */
KS_MUST_CHECK int server_start(void *self, const ks_engine_api *api, void *engine, ks_err *err);
void server_drain(void *self);
void server_stop(void *self);
void request_unref(request *r, uint32_t n);
void request_wake(request *r); /* with r->mu held: resumes if suspended */
uint64_t http_now_ns(void);

/* routes.c: 0 and a route, or an error */
typedef struct route {
    const char *method, *path;
    bool open;                             /* without a key */
    enum MHD_Result (*handle)(request *r); /* [event thread] queues a response; or NULL, and then */
    int (*prepare)(request *r);            /* [reader] has jobs submitted, or fails and leaves the error */
} route;
int route_find(request *r, const char *method, const char *url);
bool route_authorized(const request *r);
bool server_draining(server *s);
enum MHD_Result respond_error(request *r);
enum MHD_Result respond_json(request *r, unsigned status, const char *text, size_t n);
enum MHD_Result respond_stream(request *r);
enum MHD_Result respond_answer(request *r); /* the whole answer, not streaming */
void add_headers(const request *r, struct MHD_Response *resp);
KS_MUST_CHECK int keys_load(key_list *k, const http_opts *o, ks_err *err);
void keys_fini(key_list *k);

/* openai_in.c */
void http_fail(http_error *e, unsigned status, const char *type, const char *code, const char *param, const char *fmt,
               ...) KS_PRINTF(6, 7);
void http_fail_from(http_error *e, const ks_err *err);
int parse_completion(request *r, bool chat); /* 0, or r->error is set */
void parsed_fini(parsed *p);

/* openai_out.c: the sink of one job and the JSON it makes */
extern const ks_sink sink_template;
void write_error(ks_jw *w, const http_error *e);
void write_answer(request *r, ks_jw *w); /* r->mu held or all jobs done */

#endif
