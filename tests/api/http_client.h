/* A small HTTP client on loopback for tests: it keeps every byte that came, and can stop, break off and go slowly.
 * Every wait has a limit, after which the test fails with what was received. */
#ifndef TESTS_API_HTTP_CLIENT_H
#define TESTS_API_HTTP_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct client {
    int fd;
    bool closed;       /* the server closed, or the connection broke */
    char *raw;         /* bytes of the current and later answers; NUL-terminated */
    size_t n, cap, at; /* at: first byte of the body that is not decoded yet */
    /* the current answer */
    int status;
    char head[4096];
    char *body; /* without chunk frames; NUL-terminated */
    size_t body_bytes, body_cap;
    bool chunked, ended;
    size_t left; /* of the body or of the current chunk */
} client;

void client_open(client *c, uint16_t port);
void client_close(client *c); /* a closed one is fine */
void client_reset(client *c); /* closes with RST */
void client_send(client *c, const char *data, size_t n);
void client_sendf(client *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A whole POST with a JSON body; more: further header lines, each with its CRLF, or "". */
void client_post(client *c, const char *path, const char *more, const char *body);
void client_get(client *c, const char *path, const char *more);
/* The status line and headers of the next answer. */
void client_read_head(client *c, uint32_t limit_ms);
/* More of the body, until it holds `text` or has ended; true if it holds it. */
bool client_read_until(client *c, const char *text, uint32_t limit_ms);
/* Head and whole body. */
void client_read(client *c, uint32_t limit_ms);
/* True if the server closes the connection in time; what comes before is in raw. */
bool client_sees_close(client *c, uint32_t limit_ms);
/* Value of a header of the current answer, or NULL; valid until the next call. */
const char *client_header(client *c, const char *name);
/* One request on a connection of its own: status and body (in c, which is closed but still holds the answer). */
int client_once(client *c, uint16_t port, const char *method, const char *path, const char *more, const char *body);
void client_fini(client *c);
uint64_t client_now_ms(void);

#endif
