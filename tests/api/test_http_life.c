/* The HTTP frontend's life: many clients at once, draining, stopping in the middle, and starts that fail. */
#include "fixture.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <setjmp.h>

#include <cmocka.h>

#define CHAT "/v1/chat/completions"
#define HELLO "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"
#define STREAM HELLO ",\"stream\":true}"
#define LIMIT 20000

static fixture f;

static int teardown(void **state)
{
    (void)state;
    fixture_stop(&f);
    return 0;
}

static void open_streams(client *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        client_open(&c[i], f.port);
        client_post(&c[i], CHAT, "", STREAM);
    }
    for (uint32_t i = 0; i < n; i++) {
        client_read_head(&c[i], LIMIT);
        assert_int_equal(c[i].status, 200);
        assert_true(client_read_until(&c[i], "\"content\":\"Hel\"", LIMIT));
    }
}

static void sixty_four_clients_get_their_own_answers(void **state)
{
    (void)state;
    static client c[64];
    fixture_start(&f, NULL);
    stub_play(&f.engine, (stub_script) { .token_ms = 20, .repeat = 5 });
    open_streams(c, 64);
    for (int i = 0; i < 64; i++) {
        assert_true(client_read_until(&c[i], "data: [DONE]\n\n", LIMIT));
        int n = 0;
        for (const char *p = c[i].body; (p = strstr(p, "\"content\":\"Hel\"")); p++) n++;
        assert_int_equal(n, 5);
        for (int k = 0; k < i; k++) assert_int_not_equal(memcmp(c[k].body, c[i].body, 48), 0); /* ids differ */
    }
    for (int i = 0; i < 64; i++) client_fini(&c[i]);
    assert_true(stub_wait_done(&f.engine, 64, 100));
    assert_int_equal(stub_count(&f.engine, &f.engine.n_cancelled), 0);
}

static void health_answers_at_once_among_streams(void **state)
{
    (void)state;
    static client c[32];
    client h;
    uint64_t best = UINT64_MAX;
    fixture_start(&f, NULL);
    stub_play(&f.engine, (stub_script) { .token_ms = 5, .repeat = 100000 });
    open_streams(c, 32);
    client_open(&h, f.port);
    for (int i = 0; i < 20; i++) { /* the best of them: other programs use this machine, too */
        uint64_t start = client_now_ms();
        client_get(&h, "/health", "");
        client_read(&h, LIMIT);
        assert_int_equal(h.status, 200);
        uint64_t ms = client_now_ms() - start;
        if (ms < best) best = ms;
    }
    assert_in_range(best, 0, 50);
    client_fini(&h);
    for (int i = 0; i < 32; i++) client_fini(&c[i]);
    assert_true(stub_wait_done(&f.engine, 32, LIMIT));
}

static void draining_refuses_new_requests_and_ends_old_ones(void **state)
{
    (void)state;
    client c, d;
    fixture_start(&f, NULL);
    stub_play(&f.engine, (stub_script) { .token_ms = 50, .repeat = 5 });
    open_streams(&c, 1);
    fixture_iface(&f)->drain(f.self);
    assert_int_equal(client_once(&d, f.port, "POST", CHAT, "", HELLO "}"), 503);
    assert_string_equal(client_header(&d, "Retry-After"), "1");
    assert_non_null(strstr(d.body, "the server is shutting down"));
    client_fini(&d);
    assert_int_equal(client_once(&d, f.port, "GET", "/health", "", NULL), 503);
    assert_string_equal(d.body, "{\"status\":\"draining\"}");
    client_fini(&d);
    assert_true(client_read_until(&c, "\"finish_reason\":\"stop\"", LIMIT));
    client_fini(&c);
}

static void stop_cancels_what_runs_and_returns(void **state)
{
    (void)state;
    static client c[8];
    client waiting;
    fixture_start(&f, NULL);
    stub_play(&f.engine, (stub_script) { .token_ms = 20, .repeat = 100000 });
    open_streams(c, 8);
    stub_play(&f.engine, (stub_script) { .begin_ms = 60000 });
    client_open(&waiting, f.port);
    client_post(&waiting, CHAT, "", HELLO "}");
    assert_true(stub_wait_submits(&f.engine, 9, LIMIT));
    uint64_t start = client_now_ms();
    fixture_iface(&f)->stop(f.self);
    assert_in_range(client_now_ms() - start, 0, 5000);
    assert_true(stub_wait_done(&f.engine, 9, 100)); /* every callback has come */
    assert_int_equal(stub_count(&f.engine, &f.engine.n_cancelled), 9);
    for (int i = 0; i < 8; i++) { /* and said so to its client */
        assert_true(client_read_until(&c[i], "data: [DONE]\n\n", LIMIT));
        assert_non_null(strstr(c[i].body, "data: {\"error\":{\"message\":\"the server is shutting down"));
        client_fini(&c[i]);
    }
    client_read(&waiting, LIMIT);
    assert_int_equal(waiting.status, 503);
    client_fini(&waiting);
    fixture_iface(&f)->stop(f.self); /* idempotent */
}

static void stop_while_clients_do_not_read(void **state)
{
    (void)state;
    static char big[4097];
    client c;
    fixture_start(&f, NULL);
    memset(big, 'x', sizeof big - 1);
    stub_token t = { big, big, 0 };
    stub_play(&f.engine, (stub_script) { .token = &t, .n_tokens = 1, .repeat = 3000 });
    client_open(&c, f.port);
    client_post(&c, CHAT, "", STREAM);
    assert_true(stub_wait_done(&f.engine, 1, LIMIT));
    uint64_t start = client_now_ms();
    fixture_iface(&f)->stop(f.self);
    assert_in_range(client_now_ms() - start, 0, 5000);
    client_fini(&c);
}

/* Clients that come and go while the server is stopped: TSan and ASan look at the order of it all. */
static void *hammer(void *arg)
{
    _Atomic bool *run = arg;
    while (*run) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(f.port) };
        static const char text[] = "POST " CHAT " HTTP/1.1\r\nHost: t\r\nContent-Length: 59\r\n\r\n" STREAM;
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        char buf[512];
        if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0 && send(fd, text, sizeof text - 1, MSG_NOSIGNAL) > 0)
            (void)!recv(fd, buf, sizeof buf, 0);
        close(fd);
    }
    return NULL;
}

static void stop_while_clients_come_and_go(void **state)
{
    (void)state;
    for (int round = 0; round < 3; round++) {
        pthread_t t[4];
        _Atomic bool run = true;
        fixture_start(&f, NULL);
        stub_play(&f.engine, (stub_script) { .token_ms = 1, .repeat = 3 });
        for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&t[i], NULL, hammer, &run), 0);
        assert_true(stub_wait_submits(&f.engine, 20, LIMIT));
        fixture_iface(&f)->stop(f.self);
        uint32_t n = stub_count(&f.engine, &f.engine.n_jobs);
        assert_true(stub_wait_done(&f.engine, n, 100));
        run = false;
        for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
        assert_int_equal(stub_count(&f.engine, &f.engine.n_jobs), n);
        fixture_stop(&f);
    }
}

/* ---- starts that fail */

static void a_used_port_is_named(void **state)
{
    (void)state;
    ks_err err = { 0 };
    char port[16];
    struct sockaddr_in a = { .sin_family = AF_INET };
    socklen_t len = sizeof a;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    (void)snprintf(port, sizeof port, "%u", ntohs(a.sin_port));
    fixture_init(&f);
    fixture_set(&f, "port", port);
    assert_int_equal(fixture_run(&f, &err), KS_E_CONFIG);
    char want[200];
    (void)snprintf(want, sizeof want,
                   "cannot listen on 127.0.0.1 port %s: Address already in use; another program uses it: stop that, or "
                   "choose another --port",
                   port);
    assert_string_equal(err.msg, want);
    assert_null(f.self); /* it was told before there was a model */
    close(fd);
    assert_int_equal(fixture_run(&f, &err), 0);
}

/* Two may bind a port before either listens. */
static void a_port_that_was_taken_meanwhile_is_named(void **state)
{
    (void)state;
    ks_err err = { 0 };
    struct sockaddr_in a = { .sin_family = AF_INET };
    socklen_t len = sizeof a;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    char port[16];
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    (void)snprintf(port, sizeof port, "%u", ntohs(a.sin_port));
    fixture_init(&f);
    fixture_set(&f, "port", port);
    assert_int_equal(f.plugin->open(&f.host, f.opts, &f.self, &err), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(fixture_iface(&f)->start(f.self, &stub_api, &f.engine, &err), KS_E_CONFIG);
    assert_non_null(strstr(err.msg, "Address already in use; another program uses it"));
    close(fd);
    assert_int_equal(fixture_iface(&f)->start(f.self, &stub_api, &f.engine, &err), 0); /* nothing was left behind */
}

static void a_bad_host_is_named(void **state)
{
    (void)state;
    ks_err err = { 0 };
    fixture_init(&f);
    fixture_set(&f, "host", "no such host");
    assert_int_equal(fixture_run(&f, &err), KS_E_CONFIG);
    assert_memory_equal(err.msg, "--host 'no such host': ", 23);
    fixture_stop(&f);
    fixture_init(&f);
    fixture_set(&f, "host", "192.0.2.1"); /* no machine has it */
    assert_int_equal(fixture_run(&f, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "cannot listen on 192.0.2.1 port 0: Cannot assign requested address");
}

static void an_open_address_without_a_key_is_warned_of(void **state)
{
    (void)state;
    ks_err err = { 0 };
    fixture_init(&f);
    fixture_set(&f, "host", "0.0.0.0");
    assert_int_equal(fixture_run(&f, &err), 0);
    assert_non_null(strstr(f.log, "listening on 0.0.0.0 without an API key"));
    assert_non_null(strstr(f.log, "--api-key KEY, or --host 127.0.0.1"));
    fixture_stop(&f);
    fixture_init(&f);
    fixture_set(&f, "host", "0.0.0.0");
    fixture_set(&f, "api-key", "k");
    assert_int_equal(fixture_run(&f, &err), 0);
    assert_null(strstr(f.log, "without an API key"));
}

static void write_keys(const char *text)
{
    FILE *file = fopen("keys.txt", "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void key_files_hold_one_key_a_line(void **state)
{
    (void)state;
    client c;
    write_keys("# ours\nfirst\r\n\n  \n \tsecond key  \n  # and theirs\n");
    fixture_start(&f, "api-key-file=keys.txt", "api-key=third", NULL);
    static const char *const good[] = { "first", "second key", "third" };
    static const char *const bad[] = { "# ours", "", "second", "fourth" };
    for (size_t i = 0; i < 3 + 4; i++) {
        char header[80];
        (void)snprintf(header, sizeof header, "Authorization: Bearer %s\r\n", i < 3 ? good[i] : bad[i - 3]);
        assert_int_equal(client_once(&c, f.port, "GET", "/v1/models", header, NULL), i < 3 ? 200 : 401);
        client_fini(&c);
    }
}

static void bad_key_files_are_explained(void **state)
{
    (void)state;
    ks_err err = { 0 };
    fixture_init(&f);
    fixture_set(&f, "api-key-file", "missing.txt");
    assert_int_equal(fixture_run(&f, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "--api-key-file 'missing.txt': No such file or directory");
    write_keys("# none\n\n");
    fixture_set(&f, "api-key-file", "keys.txt");
    assert_int_equal(fixture_run(&f, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "--api-key-file 'keys.txt' holds no key: one a line is expected");
    fixture_set(&f, "api-key-file", ".");
    assert_int_equal(fixture_run(&f, &err), KS_E_IO);
    assert_string_equal(err.msg, "cannot read --api-key-file '.'");
    FILE *file = fopen("keys.txt", "w");
    assert_non_null(file);
    for (int i = 0; i < 257; i++) assert_true(fprintf(file, "key%d\n", i) > 0);
    assert_int_equal(fclose(file), 0);
    fixture_set(&f, "api-key-file", "keys.txt");
    assert_int_equal(fixture_run(&f, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "more than 256 API keys");
    assert_null(f.self);
}

/* docs/http-api.md lists the settings that are the plugin's own; the others are the core's. */
static void the_documentation_lists_every_setting(void **state)
{
    (void)state;
    static char text[65536];
    FILE *file = fopen(KS_SOURCE_DIR "/docs/http-api.md", "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    fixture_init(&f);
    for (uint32_t i = 0; i < f.plugin->n_options; i++) {
        const ks_option *o = &f.plugin->options[i];
        char row[200];
        (void)snprintf(row, sizeof row, "| `%s` | %s |", o->key, o->dflt);
        if (o->type == KS_OPT_INT && strcmp(o->key, "port") && !strstr(text, row)) fail_msg("no row '%s'", row);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
    const struct CMUnitTest tests[] = {
        T(sixty_four_clients_get_their_own_answers),
        T(health_answers_at_once_among_streams),
        T(draining_refuses_new_requests_and_ends_old_ones),
        T(stop_cancels_what_runs_and_returns),
        T(stop_while_clients_do_not_read),
        T(stop_while_clients_come_and_go),
        T(a_used_port_is_named),
        T(a_port_that_was_taken_meanwhile_is_named),
        T(a_bad_host_is_named),
        T(an_open_address_without_a_key_is_warned_of),
        T(key_files_hold_one_key_a_line),
        T(bad_key_files_are_explained),
        T(the_documentation_lists_every_setting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
