/* The HTTP client of the tests. See the header. */
#include "http_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <setjmp.h>

#include <cmocka.h>

#define SEND_LIMIT_MS 20000
#ifdef __SANITIZE_THREAD__
#define ANSWER_LIMIT_MS 200000u /* an emulated GPU takes twenty times as long then */
#else
#define ANSWER_LIMIT_MS 10000u
#endif

uint64_t client_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

void client_open(client *c, uint16_t port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
    memset(c, 0, sizeof *c);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(c->fd >= 0);
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a))
        fail_msg("cannot connect to port %u: %s", port, strerror(errno));
}

void client_close(client *c)
{
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->closed = true;
}

void client_reset(client *c)
{
    struct linger hard = { .l_onoff = 1, .l_linger = 0 };
    assert_int_equal(setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard), 0);
    client_close(c);
}

void client_fini(client *c)
{
    client_close(c);
    free(c->raw);
    free(c->body);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

/* A server that has seen enough may close: what it said before is still to be read. */
void client_send(client *c, const char *data, size_t n)
{
    while (n && !c->closed) {
        struct pollfd p = { .fd = c->fd, .events = POLLOUT };
        assert_int_equal(poll(&p, 1, SEND_LIMIT_MS), 1);
        ssize_t k = send(c->fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (k <= 0) return;
        data += k;
        n -= (size_t)k;
    }
}

void client_sendf(client *c, const char *fmt, ...)
{
    char text[8192];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    assert_in_range(n, 0, sizeof text - 1);
    client_send(c, text, (size_t)n);
}

void client_post(client *c, const char *path, const char *more, const char *body)
{
    client_sendf(c, "POST %s HTTP/1.1\r\nHost: t\r\n%sContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                 path, more, strlen(body));
    client_send(c, body, strlen(body));
}

void client_get(client *c, const char *path, const char *more)
{
    client_sendf(c, "GET %s HTTP/1.1\r\nHost: t\r\n%s\r\n", path, more);
}

static void append(char **to, size_t *n, size_t *cap, const char *data, size_t k)
{
    if (*n + k + 1 > *cap) {
        *cap = (*n + k + 1) * 2;
        *to = realloc(*to, *cap);
        assert_non_null(*to);
    }
    memcpy(*to + *n, data, k);
    *n += k;
    (*to)[*n] = 0;
}

/* Waits for bytes; false if the connection ended or the time is over. */
static bool receive(client *c, uint64_t until_ms)
{
    char buf[65536];
    while (!c->closed) {
        uint64_t now = client_now_ms();
        struct pollfd p = { .fd = c->fd, .events = POLLIN };
        if (now >= until_ms || poll(&p, 1, (int)(until_ms - now)) == 0) return false;
        ssize_t k = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
        if (k < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (k <= 0) {
            c->closed = true;
            return false;
        }
        append(&c->raw, &c->n, &c->cap, buf, (size_t)k);
        return true;
    }
    return false;
}

const char *client_header(client *c, const char *name)
{
    static _Thread_local char value[512];
    size_t n = strlen(name);
    for (const char *line = strstr(c->head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, n) || line[n] != ':') continue;
        const char *v = line + n + 1;
        v += strspn(v, " ");
        (void)snprintf(value, sizeof value, "%.*s", (int)strcspn(v, "\r"), v);
        return value;
    }
    return NULL;
}

void client_read_head(client *c, uint32_t limit_ms)
{
    uint64_t until = client_now_ms() + limit_ms;
    char *end;
    if (c->at) { /* what belongs to the next answer stays */
        memmove(c->raw, c->raw + c->at, c->n - c->at + 1);
        c->n -= c->at;
        c->at = 0;
    }
    c->status = 0;
    c->body_bytes = 0;
    c->ended = false;
    for (;;) {
        while (!c->raw || !(end = strstr(c->raw, "\r\n\r\n")))
            if (!receive(c, until)) fail_msg("no answer in %u ms; received: '%s'", limit_ms, c->raw ? c->raw : "");
        c->at = (size_t)(end - c->raw) + 4;
        assert_in_range(c->at, 16, sizeof c->head - 1);
        memcpy(c->head, c->raw, c->at);
        c->head[c->at] = 0;
        assert_int_equal(sscanf(c->head, "HTTP/1.1 %d", &c->status), 1);
        if (c->status != 100) break;
        memmove(c->raw, c->raw + c->at, c->n - c->at + 1);
        c->n -= c->at;
    }
    const char *coding = client_header(c, "Transfer-Encoding"), *length;
    c->chunked = coding && strcasecmp(coding, "chunked") == 0;
    length = client_header(c, "Content-Length");
    c->left = length ? (size_t)strtoull(length, NULL, 10) : c->chunked ? 0 : SIZE_MAX;
    if (c->status == 204) c->left = 0;
    append(&c->body, &c->body_bytes, &c->body_cap, "", 0);
}

static void take(client *c)
{
    size_t k = c->n - c->at < c->left ? c->n - c->at : c->left;
    append(&c->body, &c->body_bytes, &c->body_cap, c->raw + c->at, k);
    c->at += k;
    if (c->left != SIZE_MAX) c->left -= k;
}

/* Decodes what has arrived. */
static void decode(client *c)
{
    if (!c->chunked) {
        take(c);
        c->ended = c->left == 0;
        return;
    }
    while (!c->ended) {
        if (c->left) take(c);
        if (c->left || c->at == c->n) return;
        char *line = c->raw + c->at, *end = strstr(line, "\r\n"), *stop;
        if (!end) return;
        if (end == line) { /* after the data of a chunk */
            c->at += 2;
            continue;
        }
        unsigned long size = strtoul(line, &stop, 16);
        assert_ptr_equal(stop, end);
        if (size == 0) {
            if (c->n - c->at < (size_t)(end - line) + 4) return;
            c->at += (size_t)(end - line) + 4;
            c->ended = true;
        } else {
            c->at += (size_t)(end - line) + 2;
            c->left = size;
        }
    }
}

bool client_read_until(client *c, const char *text, uint32_t limit_ms)
{
    uint64_t until = client_now_ms() + limit_ms;
    for (;;) {
        decode(c);
        if (strstr(c->body, text)) return true;
        if (c->ended || !receive(c, until)) return false;
    }
}

void client_read(client *c, uint32_t limit_ms)
{
    uint64_t until = client_now_ms() + limit_ms;
    client_read_head(c, limit_ms);
    for (;;) {
        decode(c);
        if (c->ended) return;
        if (receive(c, until)) continue;
        if (c->closed && c->left == SIZE_MAX && !c->chunked) return;
        fail_msg("the answer is not complete after %u ms; received: '%s'", limit_ms, c->raw);
    }
}

bool client_sees_close(client *c, uint32_t limit_ms)
{
    uint64_t until = client_now_ms() + limit_ms;
    while (receive(c, until)) {
    }
    return c->closed;
}

int client_once(client *c, uint16_t port, const char *method, const char *path, const char *more, const char *body)
{
    client_open(c, port);
    client_sendf(c, "%s %s HTTP/1.1\r\nHost: t\r\nConnection: close\r\n%s", method, path, more);
    if (body) client_sendf(c, "Content-Length: %zu\r\n", strlen(body));
    client_send(c, "\r\n", 2);
    if (body) client_send(c, body, strlen(body));
    client_read_head(c, ANSWER_LIMIT_MS);
    if (strcmp(method, "HEAD")) {
        uint64_t until = client_now_ms() + ANSWER_LIMIT_MS;
        for (decode(c); !c->ended && receive(c, until);) decode(c);
    }
    client_close(c);
    return c->status;
}
