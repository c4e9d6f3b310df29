/* The Nth allocation of the frontend fails, for every N until all goes well: the client gets an answer or a closed
 * connection, the engine's jobs end, and the next request is served. The plugin's sources are linked in, so that the
 * linker leads their allocations through the count here. */
#include "fixture.h"

#include "support/alloc_fail.h"

#include <stdlib.h>

#include <setjmp.h>

#include <cmocka.h>

#define LIMIT 10000
#define MORE_THAN_ENOUGH 2000

extern const ks_plugin krasis_plugin_v1;

static fixture f;

static int teardown(void **state)
{
    (void)state;
    fixture_stop(&f);
    return 0;
}

static void fail_each(const char *path, const char *body)
{
    client c;
    int n_answers = 0, n_closed = 0;
    for (long n = 0;; n++) {
        assert_in_range(n, 0, MORE_THAN_ENOUGH);
        ks_test_fail_after(n);
        client_open(&c, f.port);
        client_post(&c, path, "Connection: close\r\n", body);
        assert_true(client_sees_close(&c, LIMIT));
        if (c.n == 0)
            n_closed++;
        else if (strncmp(c.raw, "HTTP/1.1 503", 12) == 0)
            n_answers++;
        else
            assert_memory_equal(c.raw, "HTTP/1.1 200", 12);
        bool all_well = !ks_test_fail_end();
        bool whole = c.n && (strstr(c.raw, "\"finish_reason\":\"stop\"") != NULL);
        client_fini(&c);
        assert_true(stub_wait_done(&f.engine, stub_count(&f.engine, &f.engine.n_jobs), 2000));
        if (!all_well) continue;
        assert_true(whole);
        break;
    }
    print_message("%s: %d refused, %d closed\n", path, n_answers, n_closed);
    assert_true(n_answers > 0 && n_closed > 0);
}

static void a_failed_allocation_costs_one_request(void **state)
{
    (void)state;
    static const char more[] = "\"n\":2,\"stop\":[\"a\",\"b\"],\"logit_bias\":{\"5\":1},\"stream\":";
    static const struct {
        const char *path, *first, *stream;
    } cases[] = {
        { "/v1/chat/completions", "\"messages\":[],\"logprobs\":true,\"top_logprobs\":2,", "true" },
        { "/v1/chat/completions", "\"messages\":[],\"logprobs\":true,\"top_logprobs\":2,", "false" },
        { "/v1/completions", "\"prompt\":[\"a\",[1,2]],\"logprobs\":2,", "true" },
        { "/v1/completions", "\"prompt\":[\"a\",[1,2]],\"logprobs\":2,", "false" },
    };
    ks_err err = { 0 };
    ks_test_spare_thread(true);
    fixture_init_with(&f, &krasis_plugin_v1);
    if (fixture_run(&f, &err)) fail_msg("%s", err.msg);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[300];
        (void)snprintf(body, sizeof body, "{%s%s%s}", cases[i].first, more, cases[i].stream);
        fail_each(cases[i].path, body);
    }
}

static void a_failed_allocation_ends_the_start(void **state)
{
    (void)state;
    ks_err err = { 0 };
    int n = 0;
    fixture_init_with(&f, &krasis_plugin_v1);
    fixture_set(&f, "api-key", "key");
    ks_test_spare_thread(false);
    for (int rc = -1; rc; n++) {
        assert_in_range(n, 0, MORE_THAN_ENOUGH);
        ks_test_fail_after(n);
        rc = f.plugin->open(&f.host, f.opts, &f.self, &err);
        assert_int_equal(ks_test_fail_end(), rc != 0);
        if (rc) {
            assert_int_equal(rc, KS_E_NOMEM);
            assert_non_null(strstr(err.msg, "out of memory"));
            assert_null(f.self);
        }
    }
    assert_true(n > 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_failed_allocation_costs_one_request, teardown),
        cmocka_unit_test_teardown(a_failed_allocation_ends_the_start, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
