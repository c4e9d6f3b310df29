/* The HTTP frontend under bad input and bad clients: each gets a status and one sentence, or is cut off in time, and
 * the engine computes for nobody who has left. */
#include "fixture.h"

#include <krasis/json.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <setjmp.h>

#include <cmocka.h>

#define CHAT "/v1/chat/completions"
#define TEXT "/v1/completions"
#define HELLO "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"
#define LIMIT 10000
#define MIB ((size_t)1 << 20)

static fixture f;

static int teardown(void **state)
{
    (void)state;
    fixture_stop(&f);
    return 0;
}

/* The body is an OpenAI error object of this type; message and param hold the texts, unless NULL. */
static void assert_error(const client *c, int status, const char *type, const char *code, const char *param,
                         const char *message)
{
    char want[200];
    if (c->status != status) fail_msg("status %d, not %d: %s", c->status, status, c->body);
    assert_memory_equal(c->body, "{\"error\":{\"message\":\"", 21);
    (void)snprintf(want, sizeof want, "\"type\":\"%s\",\"param\":%s%s%s,\"code\":%s%s%s}}", type, param ? "\"" : "",
                   param ? param : "null", param ? "\"" : "", code ? "\"" : "", code ? code : "null", code ? "\"" : "");
    if (!strstr(c->body, want)) fail_msg("'%s' has no '%s'", c->body, want);
    if (message && !strstr(c->body, message)) fail_msg("'%s' does not say '%s'", c->body, message);
    ks_json j; /* whatever the client sent, the answer is JSON */
    ks_json_init(&j, c->body, c->body_bytes, 8);
    int t;
    while ((t = ks_json_next(&j)) > 0) {
    }
    assert_int_equal(t, KS_JSON_END);
}

static void post_is_refused(const char *path, const char *body, const char *param, const char *message)
{
    client c;
    if (client_once(&c, f.port, "POST", path, "", body) != 400) print_error("refused: %.200s\n", body);
    assert_error(&c, 400, "invalid_request_error", NULL, param, message);
    client_fini(&c);
}

static void wrong_types_name_their_field(void **state)
{
    (void)state;
    static const struct {
        const char *field, *value, *message;
    } cases[] = {
        { "temperature", "\"hot\"", "must be a number" },
        { "temperature", "1e999", "must be a number" },
        { "temperature", "1e300", "must be a number" },
        { "top_p", "[]", "must be a number" },
        { "top_k", "1.5", "must be an integer from -1 to 2147483647" },
        { "min_p", "true", "must be a number" },
        { "presence_penalty", "{}", "must be a number" },
        { "frequency_penalty", "\"0\"", "must be a number" },
        { "repetition_penalty", "\"0\"", "must be a number" },
        { "repeat_penalty", "\"0\"", "must be a number" },
        { "max_tokens", "0", "must be an integer from 1 to 2147483647" },
        { "max_tokens", "\"5\"", "must be an integer" },
        { "max_completion_tokens", "1e10", "must be an integer" },
        { "n", "0", "must be an integer from 1 to 256" },
        { "n", "2147483647", "must be an integer from 1 to 256" },
        { "stream", "\"yes\"", "must be true or false" },
        { "stream_options", "true", "must be an object" },
        { "stop", "5", "must be a string or a list of strings" },
        { "stop", "[\"a\",5]", "item 1 is no string" },
        { "stop", "[1,2]", "item 0 is no string" },
        { "stop", "\"a\\u0000b\"", "U+0000" },
        { "logit_bias", "[1]", "must be an object" },
        { "logit_bias", "{\"x\":1}", "a bad item 'x'" },
        { "logit_bias", "{\"-1\":1}", "a bad item '-1'" },
        { "logit_bias", "{\"99999999999999999999\":1}", "a bad item" },
        { "logit_bias", "{\"5\":101}", "from -100 to 100" },
        { "logprobs", "5", "must be true or false" },
        { "top_logprobs", "3", "needs 'logprobs': true" },
        { "top_logprobs", "21", "from 0 to 20" },
        { "seed", "1.5", "must be a 64-bit integer" },
        { "seed", "18446744073709551616", "must be a 64-bit integer" },
        { "seed", "\"7\"", "must be a 64-bit integer" },
        { "seed", "[7]", "must be a 64-bit integer" },
        { "model", "7", "must be a string" },
        { "tools", "{}", "must be a list" },
        { "chat_template_kwargs", "[]", "must be an object" },
        { "response_format", "{\"type\":\"json_object\"}", "not supported" },
        { "response_format", "\"text\"", "not supported" },
        { "tool_choice", "\"required\"", "not supported" },
        { "ignore_eos", "1", "must be true or false" },
        { "echo", "\"\"", "must be true or false" },
        { "suffix", "\"end\"", "not supported" },
    };
    fixture_start(&f, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[300];
        (void)snprintf(body, sizeof body, HELLO ",\"%s\":%s}", cases[i].field, cases[i].value);
        post_is_refused(CHAT, body, cases[i].field, cases[i].message);
    }
    post_is_refused(CHAT, HELLO ",\"stream_options\":{\"include_usage\":1}}", "include_usage", "must be true or false");
    post_is_refused(CHAT, "{}", "messages", "is missing");
    post_is_refused(CHAT, "{\"messages\":\"Hi\"}", "messages", "must be a list");
    post_is_refused(CHAT, "{\"messages\":null}", "messages", "must be a list");
    post_is_refused(TEXT, "{}", "prompt", "is missing");
    post_is_refused(TEXT, "{\"prompt\":null}", "prompt", "must be a string");
    post_is_refused(TEXT, "{\"prompt\":{}}", "prompt", "must be a string");
    post_is_refused(TEXT, "{\"prompt\":[]}", "prompt", "empty list");
    post_is_refused(TEXT, "{\"prompt\":[true]}", "prompt", "must be a string");
    post_is_refused(TEXT, "{\"prompt\":[1,\"a\"]}", "prompt", "mixes token ids");
    post_is_refused(TEXT, "{\"prompt\":[[1],[2,\"]\"]]}", "prompt", "mixes token ids");
    post_is_refused(TEXT, "{\"prompt\":[1,-2]}", "prompt", "item 1 is no token id");
    post_is_refused(TEXT, "{\"prompt\":[1,2.5]}", "prompt", "item 1 is no token id");
    post_is_refused(TEXT, "{\"prompt\":[[4294967296]]}", "prompt", "item 0 is no token id");
    post_is_refused(TEXT, "{\"prompt\":[\"a\",\"b\"],\"n\":129}", "n", "from 1 to 128");
    post_is_refused(TEXT, "{\"prompt\":\"a\",\"logprobs\":true}", "logprobs", "must be an integer");
    post_is_refused(TEXT, "{\"prompt\":\"a\",\"max_tokens\":-1}", "max_tokens", "from 0");
    assert_int_equal(stub_count(&f.engine, &f.engine.n_submits), 0);
}

static void malformed_bodies_say_where(void **state)
{
    (void)state;
    static char deep[20100];
    client c;
    fixture_start(&f, NULL);
    post_is_refused(CHAT, "", NULL, "the body is empty");
    post_is_refused(CHAT, "[]", NULL, "must be a JSON object");
    post_is_refused(CHAT, "hello", NULL, "not valid JSON: line 1, column 1");
    post_is_refused(CHAT, "{\"messages\":[\n{]}", NULL, "not valid JSON: line 2, column 2");
    post_is_refused(CHAT, HELLO, NULL, "not valid JSON");
    post_is_refused(CHAT, HELLO ",}", NULL, "not valid JSON");
    post_is_refused(CHAT, HELLO "} x", NULL, "not valid JSON");
    post_is_refused(CHAT, HELLO "}{}", NULL, "not valid JSON");
    post_is_refused(CHAT, "{\"messages\":[\"\xc3(\"]}", NULL, "not valid JSON");
    post_is_refused(CHAT, "{\"messages\":[\"\xed\xa0\x80\"]}", NULL, "not valid JSON");
    post_is_refused(CHAT, "{\"messages\":[\"\\ud800\"]}", NULL, "not valid JSON");
    post_is_refused(CHAT, "{\"messages\":[\"\xff\"]}", NULL, "not valid JSON");
    post_is_refused(CHAT, HELLO ",\"messages\":[]}", "messages", "'messages' appears twice");
    post_is_refused(CHAT, HELLO ",\"top_p\":1,\"t\\u006fp_p\":0.5}", "top_p", "'top_p' appears twice");
    post_is_refused(CHAT, "{\"messages\\u0000\":[]}", "messages", "is missing");
    size_t n = (size_t)snprintf(deep, sizeof deep, "{\"messages\":");
    memset(deep + n, '[', 10000);
    memset(deep + n + 10000, ']', 10000);
    deep[n + 20000] = '}';
    post_is_refused(CHAT, deep, NULL, "nested too deeply: at most 64 levels are allowed");
    memcpy(deep, "{\"metadata\":", 12); /* ignored fields are checked, too */
    post_is_refused(CHAT, deep, NULL, "not valid JSON");
    n = 1;
    for (int i = 0; i < 200; i++) n += (size_t)snprintf(deep + n, sizeof deep - n, "\"f%d\":0,", i);
    deep[n - 1] = '}';
    post_is_refused(CHAT, deep, NULL, "more than 128 fields");
    /* a NUL within the body, by its real length */
    client_open(&c, f.port);
    client_sendf(&c, "POST " CHAT " HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\n");
    client_send(&c, "{}\0}", 4);
    client_read(&c, LIMIT);
    assert_error(&c, 400, "invalid_request_error", NULL, NULL, "not valid JSON");
    client_fini(&c);
    assert_int_equal(stub_count(&f.engine, &f.engine.n_submits), 0);
    /* U+0000 in a message is the engine's business and arrives there */
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", "{\"messages\":[\"a\\u0000b\"]}"), 200);
    client_fini(&c);
    assert_string_equal(stub_last(&f.engine)->messages, "[\"a\\u0000b\"]");
}

static void too_many_parts_are_refused(void **state)
{
    (void)state;
    static char body[8000];
    fixture_start(&f, NULL);
    size_t n = (size_t)snprintf(body, sizeof body, "{\"prompt\":[");
    for (int i = 0; i < 65; i++) n += (size_t)snprintf(body + n, sizeof body - n, "[1],");
    (void)snprintf(body + n - 1, sizeof body - n, "]}");
    post_is_refused(TEXT, body, "prompt", "more than 64 items");
    n = (size_t)snprintf(body, sizeof body, HELLO ",\"stop\":[");
    for (int i = 0; i < 17; i++) n += (size_t)snprintf(body + n, sizeof body - n, "\"%d\",", i);
    (void)snprintf(body + n - 1, sizeof body - n, "]}");
    post_is_refused(CHAT, body, "stop", "more than 16 strings");
    n = (size_t)snprintf(body, sizeof body, HELLO ",\"stop\":\"");
    memset(body + n, 'x', 4097);
    (void)snprintf(body + n + 4097, sizeof body - n - 4097, "\"}");
    post_is_refused(CHAT, body, "stop", "more than 4096 bytes");
}

static void a_huge_body_is_refused_before_its_upload(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    for (int expect = 0; expect < 2; expect++) {
        client_open(&c, f.port);
        client_sendf(&c, "POST " CHAT " HTTP/1.1\r\nHost: t\r\n%sContent-Length: 104857600\r\n\r\n",
                     expect ? "Expect: 100-continue\r\n" : "");
        client_read(&c, LIMIT);
        assert_error(&c, 413, "invalid_request_error", "request_too_large", NULL,
                     "the body has 104857600 bytes: at most 33554432 are allowed");
        client_fini(&c);
    }
}

static void send_chunks(client *c, size_t total)
{
    static char block[65536];
    memset(block, ' ', sizeof block);
    for (size_t sent = 0; sent < total && !c->closed; sent += sizeof block) {
        client_sendf(c, "%zx\r\n", sizeof block);
        client_send(c, block, sizeof block);
        client_send(c, "\r\n", 2);
    }
    client_sendf(c, "0\r\n\r\n");
}

static void a_huge_chunked_body_is_drained_and_refused(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    client_open(&c, f.port);
    client_sendf(&c, "POST " CHAT " HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    send_chunks(&c, 100 * MIB);
    client_read(&c, 30000);
    assert_error(&c, 413, "invalid_request_error", "request_too_large", NULL, "larger than 33554432 bytes");
    client_get(&c, "/health", ""); /* nothing is left over on the connection */
    client_read(&c, LIMIT);
    assert_int_equal(c.status, 200);
    client_fini(&c);
}

static void an_endless_chunked_body_is_cut_off(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, "max-body-mb=1", NULL);
    client_open(&c, f.port);
    client_sendf(&c, "POST " CHAT " HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    send_chunks(&c, 8 * MIB);
    assert_true(client_sees_close(&c, LIMIT));
    client_fini(&c);
}

static void long_headers_get_431(void **state)
{
    (void)state;
    static const size_t sizes[] = { 8000, 8200, 14000, 19999 }; /* at most 8192; up to twice that; far above */
    static char value[20000];
    client c;
    fixture_start(&f, "max-header-kb=8", NULL);
    memset(value, 'x', sizeof value);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        client_open(&c, f.port);
        client_sendf(&c, "GET /health HTTP/1.1\r\nHost: t\r\nX-Long: ");
        client_send(&c, value, sizes[i]);
        client_send(&c, "\r\n\r\n", 4);
        client_read(&c, LIMIT);
        assert_int_equal(c.status, i ? 431 : 200);
        if (i == 1 || i == 2)
            assert_error(&c, 431, "invalid_request_error", "headers_too_large", NULL,
                         "bytes: at most 8192 are allowed");
        client_fini(&c);
    }
}

static void unknown_paths_and_methods_get_json(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    (void)client_once(&c, f.port, "GET", "/v1/nothing", "", NULL);
    assert_error(&c, 404, "invalid_request_error", "not_found", NULL, "there is no /v1/nothing here");
    client_fini(&c);
    (void)client_once(&c, f.port, "POST", "/%ff%22%00x", "", "{}");
    assert_int_equal(c.status, 404);
    client_fini(&c);
    (void)client_once(&c, f.port, "GET", CHAT, "", NULL);
    assert_error(&c, 405, "invalid_request_error", "method_not_allowed", NULL, CHAT " takes POST, not GET");
    assert_string_equal(client_header(&c, "Allow"), "POST, OPTIONS");
    client_fini(&c);
    (void)client_once(&c, f.port, "DELETE", "/v1/models", "", NULL);
    assert_error(&c, 405, "invalid_request_error", "method_not_allowed", NULL, "/v1/models takes GET, not DELETE");
    assert_string_equal(client_header(&c, "Allow"), "GET, HEAD, OPTIONS");
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "HEAD", CHAT, "", NULL), 405);
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "HEAD", "/", "", NULL), 404);
    client_fini(&c);
}

static void keys_are_asked_for(void **state)
{
    (void)state;
    static const char *const good[] = { "Authorization: Bearer sesame\r\n", "authorization: bearer sesame\r\n",
                                        "X-Api-Key: sesame\r\n",
                                        "Authorization: Bearer none\r\nX-Api-Key: sesame\r\n" };
    static const char *const bad[] = { "",
                                       "Authorization: Bearer sesam\r\n",
                                       "Authorization: Bearer sesamex\r\n",
                                       "Authorization: Bearer \r\n",
                                       "Authorization: sesame\r\n",
                                       "X-Api-Key: SESAME\r\n",
                                       "X-Api-Key: sesamesesame\r\n" };
    client c;
    fixture_start(&f, "api-key=sesame", NULL);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_int_equal(client_once(&c, f.port, "GET", "/v1/models", good[i], NULL), 200);
        client_fini(&c);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        (void)client_once(&c, f.port, "POST", CHAT, bad[i], HELLO "}");
        assert_error(&c, 401, "authentication_error", "invalid_api_key", NULL, "Authorization: Bearer KEY");
        assert_string_equal(client_header(&c, "WWW-Authenticate"), "Bearer");
        assert_null(strstr(c.body, "sesame"));
        client_fini(&c);
    }
    assert_int_equal(client_once(&c, f.port, "GET", "/health", "", NULL), 200);
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "OPTIONS", CHAT, "", NULL), 204);
    client_fini(&c);
    assert_int_equal(stub_count(&f.engine, &f.engine.n_submits), 0);
}

/* ---- errors of the engine */

static void engine_errors_become_statuses(void **state)
{
    (void)state;
    static const struct {
        int32_t code;
        int status;
        const char *type, *name, *header, *value;
    } cases[] = {
        { KS_E_BUSY, 429, "rate_limit_error", "queue_full", "Retry-After", "1" },
        { KS_E_STATE, 503, "unavailable_error", NULL, "Retry-After", "1" },
        { KS_E_CONTEXT, 400, "invalid_request_error", "context_length_exceeded", NULL, NULL },
        { KS_E_INVAL, 400, "invalid_request_error", NULL, NULL, NULL },
        { KS_E_UNSUPPORTED, 400, "invalid_request_error", "unsupported", NULL, NULL },
        { KS_E_DEVICE, 500, "server_error", NULL, "x-should-retry", "false" },
    };
    client c;
    fixture_start(&f, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int k = 0; k < 6; k++) { /* from submit, before begin, after all tokens; streaming and not */
            int32_t code = cases[i].code;
            if (k >= 4 && code == KS_E_BUSY) continue; /* no engine says that so late */
            stub_play(&f.engine, (stub_script) { .fail_submit = k < 2 ? code : 0,
                                                 .fail_before = k / 2 == 1 ? code : 0,
                                                 .fail_after = k / 2 == 2 ? code : 0,
                                                 .prefill_ms = k == 5 ? 100 : 0 }); /* the headers are out */
            (void)client_once(&c, f.port, "POST", CHAT, "", k % 2 ? HELLO ",\"stream\":true}" : HELLO "}");
            if (k == 5) { /* too late for the status */
                char want[200];
                assert_int_equal(c.status, 200);
                (void)snprintf(want, sizeof want,
                               "\"type\":\"%s\",\"param\":null,\"code\":%s%s%s}}\n\ndata: [DONE]\n\n", cases[i].type,
                               cases[i].name ? "\"" : "", cases[i].name ? cases[i].name : "null",
                               cases[i].name ? "\"" : "");
                assert_non_null(strstr(c.body, "data: {\"error\":{\"message\":\""));
                assert_non_null(strstr(c.body, want));
                assert_non_null(strstr(c.body, "\"content\":\"Hel\""));
                assert_null(strstr(c.body, "\"finish_reason\":\""));
            } else {
                assert_error(&c, cases[i].status, cases[i].type, cases[i].name, NULL, NULL);
                if (cases[i].header) assert_string_equal(client_header(&c, cases[i].header), cases[i].value);
            }
            client_fini(&c);
        }
    stub_play(&f.engine, (stub_script) { .fail_before = KS_E_CONTEXT });
    (void)client_once(&c, f.port, "POST", CHAT, "", HELLO "}");
    assert_non_null(strstr(c.body, "maximum context length")); /* clients search for these words */
    assert_non_null(strstr(c.body, "prompt is too long"));
    client_fini(&c);
}

static void one_failed_prompt_ends_all_of_them(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    for (int stream = 0; stream < 2; stream++) {
        uint32_t before = stub_count(&f.engine, &f.engine.n_jobs);
        stub_play(&f.engine, (stub_script) { .fail_submit = KS_E_BUSY, .fail_submit_at = 2, .begin_ms = 60000 });
        (void)client_once(&c, f.port, "POST", TEXT, "",
                          stream ? "{\"prompt\":[\"a\",\"b\",\"c\",\"d\"],\"stream\":true}"
                                 : "{\"prompt\":[\"a\",\"b\",\"c\",\"d\"]}");
        assert_error(&c, 429, "rate_limit_error", "queue_full", NULL, NULL);
        client_fini(&c);
        assert_int_equal(stub_count(&f.engine, &f.engine.n_jobs), before + 2);
        assert_true(stub_wait_done(&f.engine, before + 2, 1000));
        assert_int_equal(stub_count(&f.engine, &f.engine.n_cancelled), before + 2);
    }
}

/* ---- clients that leave */

typedef void leave_fn(client *c);

static void half_close(client *c)
{
    assert_int_equal(shutdown(c->fd, SHUT_WR), 0);
}

static void leaving_cancels_within_a_second(void **state)
{
    (void)state;
    static leave_fn *const leave[] = { client_close, client_reset, half_close };
    static const char *const body[] = { HELLO "}", HELLO ",\"stream\":true}", HELLO ",\"stream\":true}" };
    uint32_t n = 0;
    fixture_start(&f, NULL);
    for (int how = 0; how < 3; how++)
        for (int when = 0; when < 4; when++) { /* waiting, in the prompt, among tokens, in a list of prompts */
            client c;
            stub_play(&f.engine, (stub_script) { .begin_ms = when == 0 || when == 3 ? 60000 : 0,
                                                 .prefill_ms = when == 1 ? 60000 : 0,
                                                 .token_ms = 50,
                                                 .repeat = 1000 });
            client_open(&c, f.port);
            client_post(&c, when == 3 ? TEXT : CHAT, "", when == 3 ? "{\"prompt\":[\"a\",\"b\"]}" : body[when]);
            assert_true(stub_wait_submits(&f.engine, n + 1 + (when == 3), 2000));
            if (when == 1) client_read_head(&c, LIMIT);
            if (when == 2) {
                client_read_head(&c, LIMIT);
                assert_true(client_read_until(&c, "Hel", LIMIT));
            }
            n += 1 + (when == 3);
            leave[how](&c);
            assert_true(stub_wait_cancelled(&f.engine, n, 1000));
            assert_true(stub_wait_done(&f.engine, n, 1000));
            client_fini(&c);
        }
}

/* Without reading; false after ten seconds. */
static bool is_reset(client *c)
{
    struct pollfd p = { .fd = c->fd, .events = 0 };
    return poll(&p, 1, 10000) == 1 && p.revents & POLLERR;
}

static void a_client_that_never_reads_is_cut_off(void **state)
{
    (void)state;
    static char big[4097];
    client c;
    fixture_start(&f, "send-timeout=1", NULL);
    memset(big, 'x', sizeof big - 1);
    stub_token t = { big, big, 0 };
    for (uint32_t i = 0; i < 3; i++) { /* 48 MiB of a stream, 12 MiB of one, 12 MiB at once */
        stub_play(&f.engine, (stub_script) { .token = &t, .n_tokens = 1, .repeat = i ? 3000 : 12000 });
        client_open(&c, f.port);
        client_post(&c, CHAT, "", i < 2 ? HELLO ",\"stream\":true}" : HELLO "}");
        assert_true(stub_wait_done(&f.engine, i + 1, 30000));
        uint64_t start = client_now_ms();
        assert_true(is_reset(&c));
        assert_in_range(client_now_ms() - start, 500, 5000);
        client_fini(&c);
    }
    assert_int_equal(stub_count(&f.engine, &f.engine.n_cancelled), 1); /* the first: more than 32 MiB waited for it */
}

/* ---- clients that dawdle */

/* Sends a byte every 100 ms until the server closes; returns the time. */
static uint64_t dawdle(client *c, const char *text)
{
    uint64_t start = client_now_ms();
    while (client_now_ms() - start < 15000) {
        client_send(c, text, 1);
        if (text[1]) text++;
        if (client_sees_close(c, 100)) break;
    }
    assert_true(c->closed);
    return client_now_ms() - start;
}

static void slow_headers_are_cut_off(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, "header-timeout=1", NULL);
    client_open(&c, f.port);
    assert_in_range(dawdle(&c, "GET /health HTTP/1.1\r\nHost: t\r\nX-Slow: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"), 800,
                    4000);
    client_fini(&c);
    client_open(&c, f.port); /* and one that says nothing */
    uint64_t start = client_now_ms();
    assert_true(client_sees_close(&c, LIMIT));
    assert_in_range(client_now_ms() - start, 800, 4000);
    client_fini(&c);
}

static void slow_bodies_are_cut_off(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, "body-timeout=1", NULL);
    client_open(&c, f.port);
    client_sendf(&c, "POST " CHAT " HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n");
    assert_in_range(dawdle(&c, "{ "), 800, 4000);
    client_fini(&c);
}

static void idle_connections_are_closed_but_busy_ones_are_not(void **state)
{
    (void)state;
    client c, busy;
    fixture_start(&f, "idle-timeout=1", "header-timeout=1", "body-timeout=1", "send-timeout=1", NULL);
    stub_play(&f.engine, (stub_script) { .begin_ms = 3000 });
    client_open(&busy, f.port);
    client_post(&busy, CHAT, "", HELLO "}");
    client_open(&c, f.port);
    client_get(&c, "/health", "");
    client_read(&c, LIMIT);
    uint64_t start = client_now_ms();
    assert_true(client_sees_close(&c, LIMIT));
    assert_in_range(client_now_ms() - start, 800, 4000);
    client_fini(&c);
    client_read(&busy, LIMIT);
    assert_int_equal(busy.status, 200);
    client_fini(&busy);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
    const struct CMUnitTest tests[] = {
        T(wrong_types_name_their_field),
        T(malformed_bodies_say_where),
        T(too_many_parts_are_refused),
        T(a_huge_body_is_refused_before_its_upload),
        T(a_huge_chunked_body_is_drained_and_refused),
        T(an_endless_chunked_body_is_cut_off),
        T(long_headers_get_431),
        T(unknown_paths_and_methods_get_json),
        T(keys_are_asked_for),
        T(engine_errors_become_statuses),
        T(one_failed_prompt_ends_all_of_them),
        T(leaving_cancels_within_a_second),
        T(a_client_that_never_reads_is_cut_off),
        T(slow_headers_are_cut_off),
        T(slow_bodies_are_cut_off),
        T(idle_connections_are_closed_but_busy_ones_are_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
