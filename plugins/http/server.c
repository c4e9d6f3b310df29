/* The daemon: connections, request bodies, suspension, the watcher.
 *
 * libmicrohttpd does not notice a client that leaves while its connection is suspended, has no absolute deadlines (a
 * byte a second keeps a connection alive for ever), cannot refuse an oversized chunked body and answers too large
 * headers with a page of HTML. The watcher thread, the body handler and a limit below the library's own fill these
 * holes. */
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WATCH_STOP UINT64_MAX
#define TICK_MS 500
#define FLUSH_LIMIT_MS 3000 /* what a finished answer's last bytes get at shutdown */

/* SEND: all is said, the client has to take it. BUSY has no limit: the engine works. */
typedef enum phase { PHASE_HEADERS, PHASE_BODY, PHASE_BUSY, PHASE_SEND, PHASE_IDLE } phase;

struct connection {
    struct connection *next, **prev; /* under server.mu, like the rest */
    int fd;
    phase phase;
    uint64_t since_ns;
};

uint64_t http_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

KS_PRINTF(3, 4) static void say(const server *s, int level, const char *fmt, ...)
{
    char line[400];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    s->host->log(s->host, level, line);
}

/* ---- connections */

static void on_connection(void *cls, struct MHD_Connection *conn, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    server *s = cls;
    struct connection *c = *socket_context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
        if (!(c = calloc(1, sizeof *c))) return; /* it merely has no deadlines */
        c->fd = info ? info->connect_fd : -1;
        c->since_ns = http_now_ns();
        pthread_mutex_lock(&s->mu);
        c->next = s->connections;
        c->prev = &s->connections;
        if (c->next) c->next->prev = &c->next;
        s->connections = c;
        pthread_mutex_unlock(&s->mu);
        *socket_context = c;
    } else if (c) {
        pthread_mutex_lock(&s->mu);
        *c->prev = c->next;
        if (c->next) c->next->prev = c->prev;
        pthread_mutex_unlock(&s->mu);
        free(c);
    }
}

static int fd_of(struct MHD_Connection *conn)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

static void set_phase(server *s, struct MHD_Connection *conn, phase p)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct connection *c = info ? info->socket_context : NULL;
    if (!c) return;
    pthread_mutex_lock(&s->mu);
    c->phase = p;
    c->since_ns = http_now_ns();
    pthread_mutex_unlock(&s->mu);
}

/* ---- requests */

static request *request_new(server *s, struct MHD_Connection *conn)
{
    request *r = calloc(1, sizeof *r);
    unsigned char random[12];
    if (!r) return NULL;
    r->s = s;
    r->conn = conn;
    r->refs = 1;
    r->created = (int64_t)time(NULL);
    ks_jw_init(&r->out);
    pthread_mutex_init(&r->mu, NULL);
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) memset(random, 0, sizeof random);
    for (size_t i = 0; i < sizeof random; i++) (void)snprintf(r->answer_id + 2 * i, 3, "%02x", random[i]);
    pthread_mutex_lock(&s->mu);
    r->id = ++s->next_id;
    r->next = s->requests;
    r->prev = &s->requests;
    if (r->next) r->next->prev = &r->next;
    s->requests = r;
    s->n_live++;
    pthread_mutex_unlock(&s->mu);
    return r;
}

static void request_free(request *r)
{
    server *s = r->s;
    for (uint32_t i = 0; i < r->n_choices; i++) {
        choice *c = &r->choices[i];
        ks_jw_fini(&c->text);
        ks_jw_fini(&c->logprobs);
        ks_jw_fini(&c->lp_values);
        ks_jw_fini(&c->lp_top);
        ks_jw_fini(&c->lp_offsets);
    }
    free(r->choices);
    free(r->body);
    parsed_fini(&r->p);
    ks_jw_fini(&r->out);
    pthread_mutex_destroy(&r->mu);
    free(r);
    pthread_mutex_lock(&s->mu);
    if (--s->n_live == 0) pthread_cond_signal(&s->all_freed); /* the last touch of s: it may be closed now */
    pthread_mutex_unlock(&s->mu);
}

void request_unref(request *r, uint32_t n)
{
    pthread_mutex_lock(&r->mu);
    bool last = (r->refs -= n) == 0;
    pthread_mutex_unlock(&r->mu);
    if (last) request_free(r);
}

void request_wake(request *r)
{
    if (!r->suspended) return;
    r->suspended = false;
    MHD_resume_connection(r->conn);
}

/* Without locks: the engine may call a sink from inside cancel(). The caller holds a reference. */
static void cancel_jobs(request *r)
{
    uint64_t id[HTTP_MAX_JOBS];
    uint32_t n = 0;
    pthread_mutex_lock(&r->mu);
    for (uint32_t i = 0; i < r->n_jobs; i++)
        if (r->jobs[i].submitted) id[n++] = r->jobs[i].id;
    pthread_mutex_unlock(&r->mu);
    for (uint32_t i = 0; i < n; i++) (void)r->s->api->cancel(r->s->engine, id[i]); /* an ended job is fine */
}

static void watch_client(request *r)
{
    struct epoll_event ev = { .events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = r->id };
    int fd = fd_of(r->conn);
    if (epoll_ctl(r->s->epoll_fd, EPOLL_CTL_ADD, fd, &ev) && errno == EEXIST)
        (void)epoll_ctl(r->s->epoll_fd, EPOLL_CTL_MOD, fd, &ev);
}

static void on_completed(void *cls, struct MHD_Connection *conn, void **con_cls, enum MHD_RequestTerminationCode why)
{
    server *s = cls;
    request *r = *con_cls;
    (void)why;
    if (!r) return;
    *con_cls = NULL;
    (void)epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, fd_of(conn), NULL);
    pthread_mutex_lock(&s->mu);
    *r->prev = r->next;
    if (r->next) r->next->prev = r->prev;
    pthread_mutex_unlock(&s->mu);
    pthread_mutex_lock(&r->mu);
    r->gone = true; /* nobody reads any more; harmless if all was sent */
    r->suspended = false;
    bool running = r->n_done < r->n_jobs;
    pthread_mutex_unlock(&r->mu);
    if (running) cancel_jobs(r);
    set_phase(s, conn, PHASE_IDLE);
    request_unref(r, 1);
}

/* ---- bodies */

static int begin_request(request *r, const char *method, const char *url)
{
    server *s = r->s;
    uint64_t limit = (uint64_t)s->o->max_body_mb << 20;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(r->conn, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    size_t header_limit = (size_t)s->o->max_header_kb << 10;
    if (info && info->header_size > header_limit) {
        http_fail(&r->error, 431, "invalid_request_error", "headers_too_large", NULL,
                  "the headers have %zu bytes: at most %zu are allowed", info->header_size, header_limit);
        return -1;
    }
    if (route_find(r, method, url)) return -1;
    if (!r->route->open && !route_authorized(r)) {
        http_fail(&r->error, 401, "authentication_error", "invalid_api_key", NULL,
                  "a valid API key is needed: send it as 'Authorization: Bearer KEY'");
        return -1;
    }
    const char *length = MHD_lookup_connection_value(r->conn, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    if (length && strtoull(length, NULL, 10) > limit) {
        http_fail(&r->error, 413, "invalid_request_error", "request_too_large", NULL,
                  "the body has %.20s bytes: at most %llu are allowed", length, (unsigned long long)limit);
        return -1;
    }
    return 0;
}

static enum MHD_Result take_body(request *r, const char *data, size_t *n)
{
    size_t limit = (size_t)r->s->o->max_body_mb << 20, size = *n;
    *n = 0;
    if (r->error.status || r->body_bytes + size > limit) {
        /* a chunked body over the limit: read on for a while, so that the client sees the answer and not a reset */
        free(r->body);
        r->body = NULL;
        r->body_cap = 0;
        if (!r->error.status)
            http_fail(&r->error, 413, "invalid_request_error", "request_too_large", NULL,
                      "the body is larger than %zu bytes, the most that is allowed", limit);
        r->dropped_bytes += size;
        return r->dropped_bytes > HTTP_DRAIN_LIMITS * limit ? MHD_NO : MHD_YES;
    }
    if (r->body_bytes + size + 1 > r->body_cap) {
        size_t cap = r->body_cap ? r->body_cap * 2 : 16384;
        while (cap < r->body_bytes + size + 1) cap *= 2;
        char *p = realloc(r->body, cap);
        if (!p) {
            http_fail(&r->error, 503, "unavailable_error", NULL, NULL, "out of memory for a body of %zu bytes",
                      r->body_bytes + size);
            return MHD_YES;
        }
        r->body = p;
        r->body_cap = cap;
    }
    memcpy(r->body + r->body_bytes, data, size);
    r->body_bytes += size;
    r->body[r->body_bytes] = 0;
    return MHD_YES;
}

/* After a resume: the reader is done and every job has begun, or something ended. */
static enum MHD_Result continue_request(request *r)
{
    pthread_mutex_lock(&r->mu);
    bool gone = r->gone, failed = r->failed;
    bool ready = r->prepared && (failed || (r->p.stream ? r->n_begun == r->n_jobs : r->n_done == r->n_jobs));
    if (ready && !gone && !failed && r->p.stream) r->streaming = true;
    if (!gone && !ready) { /* woken too early: wait again */
        r->suspended = true;
        MHD_suspend_connection(r->conn);
    }
    pthread_mutex_unlock(&r->mu);
    if (gone) return MHD_NO;
    if (!ready) return MHD_YES;
    r->responded = true;
    if (failed || !r->p.stream) set_phase(r->s, r->conn, PHASE_SEND);
    if (failed) {
        cancel_jobs(r); /* of a list of prompts, one failed */
        return respond_error(r);
    }
    return r->p.stream ? respond_stream(r) : respond_answer(r);
}

bool server_draining(server *s)
{
    pthread_mutex_lock(&s->mu);
    bool yes = s->draining;
    pthread_mutex_unlock(&s->mu);
    return yes;
}

/* To the reader, with a reference of its own; the connection sleeps. */
static enum MHD_Result hand_over(request *r)
{
    server *s = r->s;
    set_phase(s, r->conn, PHASE_BUSY);
    watch_client(r);
    r->handed_over = true;
    pthread_mutex_lock(&r->mu);
    bool gone = r->gone;
    if (!gone) { /* else nobody would wake it any more */
        r->refs++;
        r->suspended = true;
        MHD_suspend_connection(r->conn);
    }
    pthread_mutex_unlock(&r->mu);
    if (gone) return MHD_NO;
    pthread_mutex_lock(&s->mu);
    if (s->first)
        s->last->queue_next = r;
    else
        s->first = r;
    s->last = r;
    pthread_cond_signal(&s->queued);
    pthread_mutex_unlock(&s->mu);
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **con_cls)
{
    server *s = cls;
    request *r = *con_cls;
    (void)version;
    if (!r) {
        if (!(r = request_new(s, conn))) return MHD_NO;
        *con_cls = r;
        set_phase(s, conn, PHASE_BODY);
        if (begin_request(r, method, url) && (r->error.status == 413 || r->error.status == 431)) {
            r->responded = true;
            set_phase(s, conn, PHASE_SEND);
            return respond_error(r); /* before the upload: the client need not send it */
        }
        return MHD_YES;
    }
    if (*size) return take_body(r, data, size);
    if (r->responded) return MHD_YES;
    if (r->handed_over) return continue_request(r);
    if (!r->error.status && r->route->prepare) {
        if (!server_draining(s)) return hand_over(r);
        http_fail(&r->error, 503, "unavailable_error", NULL, NULL, "the server is shutting down");
    }
    r->responded = true;
    set_phase(s, conn, PHASE_SEND);
    return r->error.status ? respond_error(r) : r->route->handle(r);
}

/* ---- the reader */

static void prepare(request *r)
{
    pthread_mutex_lock(&r->mu);
    bool gone = r->gone;
    pthread_mutex_unlock(&r->mu);
    int rc = gone ? -1 : r->route->prepare(r);
    pthread_mutex_lock(&r->mu);
    if (rc) r->failed = true;
    r->prepared = true;
    gone = r->gone;
    request_wake(r);
    pthread_mutex_unlock(&r->mu);
    if (gone) cancel_jobs(r); /* whoever saw it go may have come before the submit */
    request_unref(r, 1);
}

static void *read_bodies(void *arg)
{
    server *s = arg;
    pthread_mutex_lock(&s->mu);
    for (;;) {
        request *r = s->first;
        if (!r && s->reader_stops) break;
        if (!r) {
            pthread_cond_wait(&s->queued, &s->mu);
            continue;
        }
        s->first = r->queue_next;
        pthread_mutex_unlock(&s->mu);
        prepare(r);
        pthread_mutex_lock(&s->mu);
    }
    pthread_mutex_unlock(&s->mu);
    return NULL;
}

/* ---- the watcher */

static void client_gone(server *s, uint64_t id)
{
    pthread_mutex_lock(&s->mu);
    for (request *r = s->requests; r; r = r->next) {
        if (r->id != id) continue;
        pthread_mutex_lock(&r->mu);
        r->gone = true;
        r->refs++;
        request_wake(r);
        pthread_mutex_unlock(&r->mu);
        pthread_mutex_unlock(&s->mu);
        cancel_jobs(r);
        request_unref(r, 1);
        return;
    }
    pthread_mutex_unlock(&s->mu);
}

/* libmicrohttpd then closes it. `hard`: what the client does not take is dropped, not kept by the system. */
static void cut_off(int fd, bool hard)
{
    struct linger none = { .l_onoff = 1, .l_linger = 0 };
    if (hard)
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none); /* without it, the system's limits hold */
    (void)shutdown(fd, SHUT_RDWR);                                       /* fails if the client was faster */
}

static void tick(server *s)
{
    uint64_t now = http_now_ns(), second = 1000000000u;
    const uint64_t limit[] = { [PHASE_HEADERS] = (uint64_t)s->o->header_timeout_s * second,
                               [PHASE_BODY] = (uint64_t)s->o->body_timeout_s * second,
                               [PHASE_BUSY] = UINT64_MAX,
                               [PHASE_SEND] = (uint64_t)s->o->send_timeout_s * second,
                               [PHASE_IDLE] = (uint64_t)s->o->idle_timeout_s * second };
    pthread_mutex_lock(&s->mu);
    for (struct connection *c = s->connections; c; c = c->next)
        if (now > c->since_ns && now - c->since_ns > limit[c->phase]) cut_off(c->fd, c->phase == PHASE_SEND);
    for (request *r = s->requests; r; r = r->next) {
        pthread_mutex_lock(&r->mu);
        uint64_t silent = now > r->last_output_ns ? now - r->last_output_ns : 0;
        if (r->streaming && r->n_done == r->n_jobs) {
            if (silent > limit[PHASE_SEND]) cut_off(fd_of(r->conn), true); /* it does not read the rest */
        } else if (r->streaming && silent > (uint64_t)s->o->heartbeat_s * second) {
            ks_jw_bytes(&r->out, ":\n\n", 3); /* a bare comment: some clients take ": ping" for the end */
            r->last_output_ns = now;
            request_wake(r);
        }
        pthread_mutex_unlock(&r->mu);
    }
    pthread_mutex_unlock(&s->mu);
}

static void *watch(void *arg)
{
    server *s = arg;
    uint64_t last = http_now_ns();
    for (;;) {
        struct epoll_event ev[64];
        int n = epoll_wait(s->epoll_fd, ev, 64, TICK_MS);
        for (int i = 0; i < n; i++) {
            if (ev[i].data.u64 == WATCH_STOP) return NULL;
            client_gone(s, ev[i].data.u64);
        }
        if (http_now_ns() - last > (uint64_t)TICK_MS * 1000000) {
            tick(s);
            last = http_now_ns();
        }
    }
}

/* ---- life */

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) return (ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24) == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static int try_bind(const struct addrinfo *a)
{
    int on = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) || bind(fd, a->ai_addr, a->ai_addrlen)) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}

static int cannot_listen(const server *s, int why, ks_err *err)
{
    return ks_fail(err, KS_E_CONFIG, "cannot listen on %s port %d: %s%s", s->o->host, (int)s->o->port, strerror(why),
                   why == EADDRINUSE ? "; another program uses it: stop that, or choose another --port" : "");
}

/* The port is taken when the plugin is opened, since what comes before start() may take minutes; until then who
 * connects is refused. */
int server_bind(server *s, ks_err *err)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV }, *list = NULL, *a;
    char port[16];
    int fd = -1, why = 0;
    (void)snprintf(port, sizeof port, "%d", (int)s->o->port);
    int rc = getaddrinfo(s->o->host, port, &hints, &list);
    if (rc) return ks_fail(err, KS_E_CONFIG, "--host '%s': %s", s->o->host, gai_strerror(rc));
    for (a = list; a; a = a->ai_next) { /* a name may stand for addresses that this machine lacks */
        if ((fd = try_bind(a)) >= 0) break;
        if (!why) why = errno;
    }
    if (fd < 0) {
        freeaddrinfo(list);
        return cannot_listen(s, why, err);
    }
    if (!s->keys.n && !is_loopback(a->ai_addr))
        say(s, KS_LOG_WARN,
            "listening on %s without an API key: everybody who reaches this port may use the model; set --api-key KEY, "
            "or --host 127.0.0.1",
            s->o->host);
    freeaddrinfo(list);
    s->listen_fd = fd;
    return 0;
}

static int start_threads(server *s, ks_err *err)
{
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    struct epoll_event ev = { .events = EPOLLIN, .data.u64 = WATCH_STOP };
    if (s->epoll_fd < 0 || s->stop_fd < 0 || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->stop_fd, &ev))
        return ks_fail(err, KS_E_IO, "cannot watch connections: %s", strerror(errno));
    if (pthread_create(&s->watcher, NULL, watch, s)) return ks_fail(err, KS_E_NOMEM, "cannot start the watcher thread");
    s->watching = true;
    s->reader_stops = false; /* no other thread yet */
    if (pthread_create(&s->reader, NULL, read_bodies, s))
        return ks_fail(err, KS_E_NOMEM, "cannot start the reader thread");
    s->reading = true;
    return 0;
}

int server_start(void *self, const ks_engine_api *api, void *engine, ks_err *err)
{
    server *s = self;
    s->api = api;
    s->engine = engine;
    int rc = s->listen_fd < 0 ? server_bind(s, err) : 0; /* after a stop */
    if (!rc && listen(s->listen_fd, 512)) rc = cannot_listen(s, errno, err);
    int fd = s->listen_fd;
    if (!rc) rc = start_threads(s, err);
    if (!rc) {
        s->daemon = MHD_start_daemon(
            MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC, 0, NULL, NULL, on_request, s,
            MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_NOTIFY_CONNECTION,
            on_connection, s, MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->o->max_connections,
            MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)s->o->per_ip, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
            HTTP_HEADER_ROOM * ((size_t)s->o->max_header_kb << 10), MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_END);
        if (s->daemon)
            s->listen_fd = -1; /* it closes it */
        else
            rc = ks_fail(err, KS_E_IO, "cannot start the HTTP server: %s", strerror(errno));
    }
    if (rc) {
        server_stop(s);
        return rc;
    }
    struct sockaddr_storage bound;
    socklen_t len = sizeof bound;
    unsigned port = (unsigned)s->o->port;
    if (getsockname(fd, (struct sockaddr *)&bound, &len) == 0)
        port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                 : ((struct sockaddr_in *)&bound)->sin_port);
    bool v6 = strchr(s->o->host, ':') != NULL;
    say(s, KS_LOG_INFO, "listening on http://%s%s%s:%u (OpenAI API under /v1)", v6 ? "[" : "", s->o->host,
        v6 ? "]" : "", port);
    return 0;
}

void server_drain(void *self)
{
    server *s = self;
    pthread_mutex_lock(&s->mu);
    s->draining = true;
    pthread_mutex_unlock(&s->mu);
}

static bool idle(server *s)
{
    pthread_mutex_lock(&s->mu);
    bool none = !s->requests;
    pthread_mutex_unlock(&s->mu);
    return none;
}

/* In the order of their ids, since the list changes while no lock is held. */
static void cancel_all(server *s)
{
    for (uint64_t id = 0;;) {
        request *next = NULL;
        pthread_mutex_lock(&s->mu);
        for (request *r = s->requests; r; r = r->next)
            if (r->id > id && (!next || r->id < next->id)) next = r;
        if (next) {
            id = next->id;
            pthread_mutex_lock(&next->mu);
            next->refs++;
            pthread_mutex_unlock(&next->mu);
        }
        pthread_mutex_unlock(&s->mu);
        if (!next) return;
        cancel_jobs(next);
        request_unref(next, 1);
    }
}

/* Cancels what still runs and lets finished answers leave; a suspended connection must not outlive the daemon. */
static void finish_requests(server *s)
{
    for (int ms = 0; ms < FLUSH_LIMIT_MS && !idle(s); ms += 5) {
        if (ms % 100 == 0) cancel_all(s); /* again: one may have been submitted meanwhile */
        (void)usleep(5000);
    }
    pthread_mutex_lock(&s->mu);
    for (request *r = s->requests; r; r = r->next) {
        pthread_mutex_lock(&r->mu);
        r->gone = true;
        request_wake(r);
        pthread_mutex_unlock(&r->mu);
    }
    pthread_mutex_unlock(&s->mu);
}

void server_stop(void *self)
{
    server *s = self;
    pthread_mutex_lock(&s->mu);
    s->draining = true;
    pthread_mutex_unlock(&s->mu);
    if (s->daemon) {
        finish_requests(s);
        MHD_stop_daemon(s->daemon); /* ends every request that is left, which cancels its jobs */
        s->daemon = NULL;
    }
    if (s->listen_fd >= 0) close(s->listen_fd);
    s->listen_fd = -1;
    if (s->reading) {
        pthread_mutex_lock(&s->mu);
        s->reader_stops = true;
        pthread_cond_signal(&s->queued);
        pthread_mutex_unlock(&s->mu);
        pthread_join(s->reader, NULL);
        s->reading = false;
    }
    if (s->watching) {
        uint64_t one = 1;
        while (write(s->stop_fd, &one, sizeof one) < 0 && errno == EINTR) {
        }
        pthread_join(s->watcher, NULL);
        s->watching = false;
    }
    pthread_mutex_lock(&s->mu);
    while (s->n_live) pthread_cond_wait(&s->all_freed, &s->mu); /* on_done of the cancelled jobs */
    pthread_mutex_unlock(&s->mu);
    if (s->epoll_fd >= 0) close(s->epoll_fd);
    if (s->stop_fd >= 0) close(s->stop_fd);
    s->epoll_fd = s->stop_fd = -1;
}
