/* Routes, keys, responses: everything between a method with a path and bytes that leave. */
#include "http.h"

#include <errno.h>
#include <stdlib.h>

/* ---- keys */

static int key_add(key_list *k, const char *text, size_t n, ks_err *err)
{
    if (k->n == HTTP_MAX_KEYS) return ks_fail(err, KS_E_CONFIG, "more than %u API keys", HTTP_MAX_KEYS);
    char **grown = realloc(k->key, (k->n + 1) * sizeof *grown);
    if (grown) k->key = grown;
    char *copy = grown ? strndup(text, n) : NULL;
    if (!copy) return ks_fail(err, KS_E_NOMEM, "out of memory for the API keys");
    k->key[k->n++] = copy;
    return 0;
}

static int keys_read(key_list *k, const char *path, ks_err *err)
{
    FILE *f = fopen(path, "re");
    if (!f) return ks_fail(err, KS_E_CONFIG, "--api-key-file '%s': %s", path, strerror(errno));
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    uint32_t before = k->n;
    int rc = 0;
    while (!rc && (n = getline(&line, &cap, f)) >= 0) {
        const char *key = line + strspn(line, " \t");
        n -= key - line;
        while (n > 0 && strchr("\n\r \t", key[n - 1])) n--;
        if (n > 0 && *key != '#') rc = key_add(k, key, (size_t)n, err);
    }
    free(line);
    if (!rc && ferror(f)) rc = ks_fail(err, KS_E_IO, "cannot read --api-key-file '%s'", path);
    if (!rc && k->n == before)
        rc = ks_fail(err, KS_E_CONFIG, "--api-key-file '%s' holds no key: one a line is expected", path);
    fclose(f);
    return rc;
}

int keys_load(key_list *k, const http_opts *o, ks_err *err)
{
    int rc = *o->api_key ? key_add(k, o->api_key, strlen(o->api_key), err) : 0;
    if (!rc && *o->api_key_file) rc = keys_read(k, o->api_key_file, err);
    if (rc) keys_fini(k);
    return rc;
}

void keys_fini(key_list *k)
{
    for (uint32_t i = 0; i < k->n; i++) free(k->key[i]);
    free(k->key);
    *k = (key_list) { 0 };
}

/* Time depends on the length of what the client sent, never on how much of a key it guessed. */
static bool same_key(const char *key, const char *given)
{
    size_t nk = strlen(key), ng = strlen(given);
    unsigned diff = nk != ng;
    for (size_t i = 0; i < ng; i++) diff |= (unsigned char)given[i] ^ (unsigned char)(nk ? key[i % nk] : 0);
    return diff == 0;
}

bool route_authorized(const request *r)
{
    const key_list *k = &r->s->keys;
    if (!k->n) return true;
    const char *bearer = MHD_lookup_connection_value(r->conn, MHD_HEADER_KIND, "Authorization");
    const char *plain = MHD_lookup_connection_value(r->conn, MHD_HEADER_KIND, "X-Api-Key");
    if (bearer) bearer = strncasecmp(bearer, "Bearer ", 7) == 0 ? bearer + 7 : NULL;
    bool found = false;
    for (uint32_t i = 0; i < k->n; i++) { /* some clients send both, one of them a placeholder */
        if (bearer) found |= same_key(k->key[i], bearer);
        if (plain) found |= same_key(k->key[i], plain);
    }
    return found;
}

/* ---- responses */

void add_headers(const request *r, struct MHD_Response *resp)
{
    const char *origin = r->s->o->cors_origin;
    if (!*origin) return;
    MHD_add_response_header(resp, "Access-Control-Allow-Origin", origin);
    MHD_add_response_header(resp, "Access-Control-Expose-Headers", "x-request-id");
}

static enum MHD_Result queue(request *r, unsigned status, struct MHD_Response *resp)
{
    if (!resp) return MHD_NO;
    add_headers(r, resp);
    MHD_add_response_header(resp, "x-request-id", r->answer_id);
    enum MHD_Result ok = MHD_queue_response(r->conn, status, resp);
    MHD_destroy_response(resp);
    return ok;
}

enum MHD_Result respond_json(request *r, unsigned status, const char *text, size_t n)
{
    struct MHD_Response *resp = MHD_create_response_from_buffer(n, (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (resp) MHD_add_response_header(resp, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
    return queue(r, status, resp);
}

enum MHD_Result respond_error(request *r)
{
    const http_error *e = &r->error;
    ks_jw w;
    ks_jw_init(&w);
    write_error(&w, e);
    struct MHD_Response *resp =
        ks_jw_done(&w) ? NULL : MHD_create_response_from_buffer(w.n, w.text, MHD_RESPMEM_MUST_COPY);
    ks_jw_fini(&w);
    if (!resp) return MHD_NO;
    MHD_add_response_header(resp, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
    if (e->status == 401) MHD_add_response_header(resp, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (e->status == 405) MHD_add_response_header(resp, MHD_HTTP_HEADER_ALLOW, e->param);
    if (e->status == 429 || e->status == 503) MHD_add_response_header(resp, MHD_HTTP_HEADER_RETRY_AFTER, "1");
    if (e->status == 500)
        MHD_add_response_header(resp, "x-should-retry", "false"); /* it would fail again, only slower */
    return queue(r, e->status, resp);
}

/* [event thread] Bytes for the socket; suspends when there are none, under the lock that the sinks take. */
static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    request *r = cls;
    (void)pos;
    pthread_mutex_lock(&r->mu);
    size_t n = r->out.n - r->out_at;
    ssize_t ret;
    if (r->gone || r->out.failed) {
        ret = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (n) {
        ret = (ssize_t)(n < max ? n : max);
        memcpy(buf, r->out.text + r->out_at, (size_t)ret);
        r->out_at += (size_t)ret;
        if (r->out_at == r->out.n) {
            ks_jw_reset(&r->out);
            r->out_at = 0;
        }
    } else if (r->n_done == r->n_jobs) {
        ret = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        r->suspended = true;
        MHD_suspend_connection(r->conn);
        ret = 0;
    }
    pthread_mutex_unlock(&r->mu);
    return ret;
}

enum MHD_Result respond_stream(request *r)
{
    pthread_mutex_lock(&r->mu);
    r->last_output_ns = http_now_ns();
    pthread_mutex_unlock(&r->mu);
    struct MHD_Response *resp = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, r, NULL);
    if (!resp) return MHD_NO;
    MHD_add_response_header(resp, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream; charset=utf-8");
    MHD_add_response_header(resp, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(resp, "X-Accel-Buffering", "no");
    return queue(r, MHD_HTTP_OK, resp);
}

enum MHD_Result respond_answer(request *r)
{
    ks_jw w;
    ks_jw_init(&w);
    write_answer(r, &w);
    enum MHD_Result ok = MHD_NO;
    if (ks_jw_done(&w) == 0) {
        ok = respond_json(r, MHD_HTTP_OK, w.text, w.n);
    } else {
        http_fail(&r->error, 503, "unavailable_error", NULL, NULL, "out of memory for the answer");
        ok = respond_error(r);
    }
    ks_jw_fini(&w);
    return ok;
}

/* ---- handlers */

static int submit_jobs(request *r)
{
    ks_err err = { 0 };
    parsed *p = &r->p;
    uint32_t n = p->rq.n;
    choice *choices = calloc((size_t)n * p->n_prompts, sizeof *choices);
    if (!choices) {
        http_fail(&r->error, 503, "unavailable_error", NULL, NULL, "out of memory for %u answers", n * p->n_prompts);
        return -1;
    }
    pthread_mutex_lock(&r->mu);
    r->choices = choices;
    r->n_choices = n * p->n_prompts;
    r->n_jobs = p->n_prompts;
    r->refs += p->n_prompts;
    pthread_mutex_unlock(&r->mu);
    uint32_t i = 0;
    int rc = 0;
    for (; i < p->n_prompts; i++) {
        job *j = &r->jobs[i];
        ks_sink sink = sink_template;
        ks_request rq = p->rq;
        sink.arg = j;
        j->rq = r;
        j->base = i * n;
        if (!p->chat) {
            rq.text = p->prompt[i].text;
            rq.text_bytes = p->prompt[i].bytes;
            rq.ids = p->prompt[i].ids;
            rq.n_ids = p->prompt[i].n_ids;
        }
        uint64_t id;
        if ((rc = r->s->api->submit(r->s->engine, &rq, &sink, &id, &err))) break;
        pthread_mutex_lock(&r->mu);
        j->id = id;
        j->submitted = true;
        pthread_mutex_unlock(&r->mu);
    }
    if (!rc) return 0;
    pthread_mutex_lock(&r->mu);
    if (!r->failed) http_fail_from(&r->error, &err);
    r->failed = true;
    r->n_jobs = i;
    r->refs -= p->n_prompts - i;
    pthread_mutex_unlock(&r->mu);
    return -1;
}

static int completion(request *r, bool chat)
{
    return parse_completion(r, chat) ? -1 : submit_jobs(r);
}

static int post_chat(request *r)
{
    return completion(r, true);
}

static int post_completion(request *r)
{
    return completion(r, false);
}

static enum MHD_Result get_health(request *r)
{
    static const char ok[] = "{\"status\":\"ok\"}", stop[] = "{\"status\":\"draining\"}";
    return server_draining(r->s) ? respond_json(r, 503, stop, sizeof stop - 1)
                                 : respond_json(r, 200, ok, sizeof ok - 1);
}

static void write_model(ks_jw *w, const ks_model_info *m)
{
    ks_jw_object(w);
    ks_jw_key(w, "id");
    ks_jw_str(w, m->name);
    ks_jw_key(w, "object");
    ks_jw_str(w, "model");
    ks_jw_key(w, "created");
    ks_jw_i64(w, m->created);
    ks_jw_key(w, "owned_by");
    ks_jw_str(w, "krasis");
    ks_jw_key(w, "max_model_len");
    ks_jw_u64(w, m->n_ctx);
    ks_jw_key(w, "meta");
    ks_jw_object(w);
    ks_jw_key(w, "architecture");
    ks_jw_str(w, m->arch);
    ks_jw_key(w, "n_vocab");
    ks_jw_u64(w, m->n_vocab);
    ks_jw_key(w, "size");
    ks_jw_u64(w, m->weight_bytes);
    ks_jw_object_end(w);
    ks_jw_object_end(w);
}

static enum MHD_Result send_models(request *r, bool list)
{
    ks_err err = { 0 };
    ks_model_info m = { .size = (uint32_t)sizeof m };
    if (r->s->api->describe(r->s->engine, &m, &err)) {
        http_fail_from(&r->error, &err);
        return respond_error(r);
    }
    ks_jw w;
    ks_jw_init(&w);
    if (list) {
        ks_jw_object(&w);
        ks_jw_key(&w, "object");
        ks_jw_str(&w, "list");
        ks_jw_key(&w, "data");
        ks_jw_array(&w);
        write_model(&w, &m);
        ks_jw_array_end(&w);
        ks_jw_object_end(&w);
    } else {
        write_model(&w, &m);
    }
    enum MHD_Result ok = ks_jw_done(&w) ? MHD_NO : respond_json(r, 200, w.text, w.n);
    ks_jw_fini(&w);
    return ok;
}

static enum MHD_Result get_models(request *r)
{
    return send_models(r, true);
}

static enum MHD_Result get_model(request *r)
{
    return send_models(r, false);
}

static enum MHD_Result preflight(request *r)
{
    struct MHD_Response *resp = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (!resp) return MHD_NO;
    MHD_add_response_header(resp, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    MHD_add_response_header(resp, "Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, *");
    MHD_add_response_header(resp, "Access-Control-Max-Age", "86400");
    return queue(r, MHD_HTTP_NO_CONTENT, resp);
}

static const route routes[] = {
    { "POST", "/v1/chat/completions", false, NULL, post_chat },
    { "POST", "/chat/completions", false, NULL, post_chat },
    { "POST", "/v1/completions", false, NULL, post_completion },
    { "POST", "/completions", false, NULL, post_completion },
    { "GET", "/v1/models", false, get_models, NULL },
    { "GET", "/models", false, get_models, NULL },
    { "GET", "/v1/models/*", false, get_model, NULL },
    { "GET", "/models/*", false, get_model, NULL },
    { "GET", "/health", true, get_health, NULL },
    { "GET", "/v1/health", true, get_health, NULL },
};
static const route preflight_route = { "OPTIONS", "*", true, preflight, NULL };

static bool path_matches(const char *pattern, const char *path)
{
    size_t n = strlen(pattern);
    if (pattern[n - 1] == '*') return strncmp(pattern, path, n - 1) == 0 && path[n - 1];
    return strcmp(pattern, path) == 0;
}

int route_find(request *r, const char *method, const char *url)
{
    const char *allowed = NULL;
    bool head = strcmp(method, "HEAD") == 0; /* answered as GET; the daemon leaves the body out */
    if (strcmp(method, "OPTIONS") == 0) {
        r->route = &preflight_route;
        return 0;
    }
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (!path_matches(routes[i].path, url)) continue;
        allowed = routes[i].method;
        if (strcmp(method, allowed) && !(head && strcmp(allowed, "GET") == 0)) continue;
        r->route = &routes[i];
        return 0;
    }
    if (allowed)
        http_fail(&r->error, 405, "invalid_request_error", "method_not_allowed",
                  strcmp(allowed, "GET") ? "POST, OPTIONS" : "GET, HEAD, OPTIONS", "%.80s takes %s, not %.20s", url,
                  allowed, method);
    else
        http_fail(&r->error, 404, "invalid_request_error", "not_found", NULL,
                  "there is no %.200s here: see /v1/models, /v1/chat/completions, /v1/completions, /health", url);
    return -1;
}
