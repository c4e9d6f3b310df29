/* The HTTP frontend answers as OpenAI's API does: exact bytes of streams and answers, fields as the engine gets them.
 */
#include "fixture.h"

#include <math.h>
#include <stdlib.h>

#include <setjmp.h>

#include <cmocka.h>

#define CHAT "/v1/chat/completions"
#define TEXT "/v1/completions"
#define HELLO "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"
#define LIMIT 10000

static fixture f;

static int teardown(void **state)
{
    (void)state;
    fixture_stop(&f);
    return 0;
}

/* The answer's own id and time, which differ from run to run. */
static void id_and_time(const client *c, char id[80], long *created)
{
    const char *at = strstr(c->body, "\"id\":\"");
    assert_non_null(at);
    (void)snprintf(id, 80, "%.*s", (int)strcspn(at + 6, "\""), at + 6);
    at = strstr(c->body, "\"created\":");
    assert_non_null(at);
    *created = strtol(at + 10, NULL, 10);
    assert_in_range(*created, 1700000000, 4000000000);
}

/* Every %s of the text becomes this answer's id, every %ld its time. */
static void assert_body(const client *c, const char *text)
{
    static char want[16384];
    char id[80], created_text[24];
    long created;
    size_t n = 0;
    id_and_time(c, id, &created);
    (void)snprintf(created_text, sizeof created_text, "%ld", created);
    for (const char *p = text; *p; p++) {
        const char *put = strncmp(p, "$ID", 3) == 0 ? id : strncmp(p, "$TIME", 5) == 0 ? created_text : NULL;
        assert_true(n + 100 < sizeof want);
        if (put) {
            n += (size_t)snprintf(want + n, sizeof want - n, "%s", put);
            p += put == id ? 2 : 4;
        } else {
            want[n++] = *p;
        }
    }
    want[n] = 0;
    assert_string_equal(c->body, want);
}

#define CHUNK                                                                                                \
    "data: {\"id\":\"$ID\",\"object\":\"chat.completion.chunk\",\"created\":$TIME,\"model\":\"stub-model\"," \
    "\"system_fingerprint\":\"krasis-" KS_VERSION "\",\"choices\":["
#define USAGE                                                                                                \
    "\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":4,\"total_tokens\":11,\"prompt_tokens_details\":{" \
    "\"cached_tokens\":3}}"

static void chat_answers_with_the_whole_text(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", HELLO "}"), 200);
    assert_string_equal(client_header(&c, "Content-Type"), "application/json");
    assert_string_equal(client_header(&c, "Access-Control-Allow-Origin"), "*");
    assert_non_null(client_header(&c, "x-request-id"));
    assert_body(&c, "{\"id\":\"$ID\",\"object\":\"chat.completion\",\"created\":$TIME,\"model\":\"stub-model\","
                    "\"system_fingerprint\":\"krasis-" KS_VERSION "\",\"choices\":[{\"index\":0,\"message\":{"
                    "\"role\":\"assistant\",\"content\":\"Hel\xc3\xa9 \\\"q\\\"\\n\"},\"logprobs\":null,"
                    "\"finish_reason\":\"stop\"}]," USAGE "}");
    assert_memory_equal(strstr(c.body, "chatcmpl-"), "chatcmpl-", 9);
    client_fini(&c);
    const stub_seen *seen = stub_last(&f.engine);
    assert_string_equal(seen->messages, "[{\"role\":\"user\",\"content\":\"Hi\"}]");
    assert_int_equal(seen->rq.n, 1);
    assert_int_equal(seen->rq.max_tokens, -1);
    assert_int_equal(seen->rq.n_logprobs, -1);
    assert_true(isnan(seen->rq.sampling.temperature));
    assert_int_equal(seen->rq.sampling.has_seed, 0);
}

static void chat_streams_events_byte_for_byte(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", HELLO ",\"stream\":true}"), 200);
    assert_string_equal(client_header(&c, "Content-Type"), "text/event-stream; charset=utf-8");
    assert_string_equal(client_header(&c, "Cache-Control"), "no-cache");
    assert_string_equal(client_header(&c, "X-Accel-Buffering"), "no");
    assert_string_equal(client_header(&c, "Transfer-Encoding"), "chunked");
    assert_true(c.ended);
    assert_body(&c, CHUNK
                "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                "\"finish_reason\":null}]}\n\n" CHUNK
                "{\"index\":0,\"delta\":{\"content\":\"Hel\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n" CHUNK
                "{\"index\":0,\"delta\":{\"content\":\"\xc3\xa9\"},\"logprobs\":null,"
                "\"finish_reason\":null}]}\n\n" CHUNK
                "{\"index\":0,\"delta\":{\"content\":\" \\\"q\\\"\\n\"},\"logprobs\":null,"
                "\"finish_reason\":null}]}\n\n" CHUNK
                "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n"
                "data: [DONE]\n\n");
    client_fini(&c);
}

static void usage_chunk_comes_only_when_asked(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "",
                                 HELLO
                                 ",\"stream\":true,\"max_tokens\":1,\"stream_options\":{\"include_usage\":true}}"),
                     200);
    assert_body(&c, CHUNK
                "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                "\"finish_reason\":null}]}\n\n" CHUNK
                "{\"index\":0,\"delta\":{\"content\":\"Hel\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n" CHUNK
                "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n" CHUNK
                "],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1,\"total_tokens\":8,"
                "\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\ndata: [DONE]\n\n");
    client_fini(&c);
}

static void completions_stream_text_chunks(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", TEXT, "", "{\"prompt\":\"a\",\"stream\":true,\"max_tokens\":1}"),
                     200);
    assert_body(&c, "data: {\"id\":\"$ID\",\"object\":\"text_completion\",\"created\":$TIME,\"model\":\"stub-model\","
                    "\"system_fingerprint\":\"krasis-" KS_VERSION "\",\"choices\":[{\"index\":0,\"text\":\"Hel\","
                    "\"logprobs\":null,\"finish_reason\":null}]}\n\n"
                    "data: {\"id\":\"$ID\",\"object\":\"text_completion\",\"created\":$TIME,\"model\":\"stub-model\","
                    "\"system_fingerprint\":\"krasis-" KS_VERSION "\",\"choices\":[{\"index\":0,\"text\":\"\","
                    "\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n");
    client_fini(&c);
}

static void headers_leave_before_the_prompt_is_read(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, "heartbeat=1", NULL);
    stub_play(&f.engine, (stub_script) { .prefill_ms = 2700 });
    client_open(&c, f.port);
    uint64_t start = client_now_ms();
    client_post(&c, CHAT, "", HELLO ",\"stream\":true}");
    client_read_head(&c, LIMIT);
    assert_true(client_read_until(&c, "\"role\":\"assistant\"", LIMIT));
    assert_in_range(client_now_ms() - start, 0, 1000);
    assert_null(strstr(c.body, "Hel"));
    assert_true(client_read_until(&c, "[DONE]", LIMIT));
    const char *beat = strstr(c.body, "\n\n:\n\n");
    assert_non_null(beat);
    assert_true(beat < strstr(c.body, "Hel"));
    assert_null(strstr(c.body, "\n: ")); /* some clients take a comment with text for the end */
    client_fini(&c);
}

static void several_choices_share_one_answer(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", HELLO ",\"n\":3,\"stream\":true}"), 200);
    for (int i = 0; i < 3; i++) {
        char want[160];
        (void)snprintf(want, sizeof want, "{\"index\":%d,\"delta\":{\"role\":\"assistant\"", i);
        assert_non_null(strstr(c.body, want));
        (void)snprintf(want, sizeof want, "{\"index\":%d,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}",
                       i);
        assert_non_null(strstr(c.body, want));
    }
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "POST", TEXT, "", "{\"prompt\":[\"a\",\"b\"],\"n\":2,\"max_tokens\":1}"),
                     200);
    assert_body(&c, "{\"id\":\"$ID\",\"object\":\"text_completion\",\"created\":$TIME,\"model\":\"stub-model\","
                    "\"system_fingerprint\":\"krasis-" KS_VERSION "\",\"choices\":["
                    "{\"index\":0,\"text\":\"Hel\",\"logprobs\":null,\"finish_reason\":\"length\"},"
                    "{\"index\":1,\"text\":\"Hel\",\"logprobs\":null,\"finish_reason\":\"length\"},"
                    "{\"index\":2,\"text\":\"Hel\",\"logprobs\":null,\"finish_reason\":\"length\"},"
                    "{\"index\":3,\"text\":\"Hel\",\"logprobs\":null,\"finish_reason\":\"length\"}],"
                    "\"usage\":{\"prompt_tokens\":14,\"completion_tokens\":4,\"total_tokens\":18,"
                    "\"prompt_tokens_details\":{\"cached_tokens\":6}}}");
    client_fini(&c);
}

static void prompts_may_be_text_or_ids_or_lists(void **state)
{
    (void)state;
    static const struct {
        const char *prompt;
        uint32_t jobs;
        const char *last_text;
        int32_t last_ids[4];
        size_t n_ids;
    } cases[] = {
        { "\"caf\\u00e9\"", 1, "caf\xc3\xa9", { 0 }, 0 }, { "[\"one\",\"two\"]", 2, "two", { 0 }, 0 },
        { "[1,22,333]", 1, NULL, { 1, 22, 333 }, 3 },     { "[[1],[2,3],[4,5,6,7]]", 3, NULL, { 4, 5, 6, 7 }, 4 },
        { " [ 5 , 6 ] ", 1, NULL, { 5, 6 }, 2 },          { "\"\"", 1, "", { 0 }, 0 },
        { "[[9],\"mixed\"]", 2, "mixed", { 0 }, 0 },
    };
    client c;
    fixture_start(&f, NULL);
    uint32_t jobs = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[200];
        (void)snprintf(body, sizeof body, "{\"prompt\":%s}", cases[i].prompt);
        assert_int_equal(client_once(&c, f.port, "POST", TEXT, "", body), 200);
        client_fini(&c);
        jobs += cases[i].jobs;
        assert_int_equal(stub_count(&f.engine, &f.engine.n_jobs), jobs);
        const stub_seen *seen = stub_last(&f.engine);
        assert_null(seen->messages);
        assert_int_equal(seen->rq.max_tokens, 16);
        assert_int_equal(seen->rq.n_ids, cases[i].n_ids);
        assert_memory_equal(seen->ids, cases[i].last_ids, cases[i].n_ids * sizeof(int32_t));
        if (cases[i].last_text)
            assert_string_equal(seen->text, cases[i].last_text);
        else
            assert_null(seen->text);
    }
    assert_int_equal(client_once(&c, f.port, "POST", TEXT, "", "{\"prompt\":\"a\\u0000b\"}"), 200);
    client_fini(&c);
    assert_int_equal(stub_last(&f.engine)->text_bytes, 3);
    assert_memory_equal(stub_last(&f.engine)->text, "a\0b", 4);
}

static void completions_give_logprobs_as_four_lists(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", TEXT, "", "{\"prompt\":\"Say\",\"echo\":true,\"logprobs\":3}"),
                     200);
    assert_body(&c, "{\"id\":\"$ID\",\"object\":\"text_completion\",\"created\":$TIME,\"model\":\"stub-model\","
                    "\"system_fingerprint\":\"krasis-" KS_VERSION "\",\"choices\":[{\"index\":0,"
                    "\"text\":\"SayHel\xc3\xa9 \\\"q\\\"\\n\",\"logprobs\":{"
                    "\"tokens\":[\"Say\",\"Hel\",\"bytes:\\\\xc3\",\"bytes:\\\\xa9\",\" \\\"q\\\"\\n\"],"
                    "\"token_logprobs\":[null,-0.5,-0.25,-1,-2],"
                    "\"top_logprobs\":[null,{\"Hel\":-0.5,\"x\":-3.5,\"bytes:\\\\xf0\\\\x9f\":-9999},"
                    "{\"bytes:\\\\xc3\":-0.25,\"x\":-3.5,\"bytes:\\\\xf0\\\\x9f\":-9999},"
                    "{\"bytes:\\\\xa9\":-1,\"x\":-3.5,\"bytes:\\\\xf0\\\\x9f\":-9999},"
                    "{\" \\\"q\\\"\\n\":-2,\"x\":-3.5,\"bytes:\\\\xf0\\\\x9f\":-9999}],"
                    "\"text_offset\":[0,3,6,6,8]},\"finish_reason\":\"stop\"}]," USAGE "}");
    client_fini(&c);
    assert_int_equal(stub_last(&f.engine)->rq.echo, 1);
    assert_int_equal(stub_last(&f.engine)->rq.n_logprobs, 3);
    /* none of the best: the token's own comes all the same */
    assert_int_equal(client_once(&c, f.port, "POST", TEXT, "", "{\"prompt\":\"a\",\"logprobs\":0,\"max_tokens\":1}"),
                     200);
    assert_non_null(strstr(c.body, "\"top_logprobs\":[{\"Hel\":-0.5}]"));
    client_fini(&c);
}

static void chat_gives_logprobs_with_bytes(void **state)
{
    (void)state;
    static const char item[] = "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.25,\"bytes\":[195],\"top_logprobs\":["
                               "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.25,\"bytes\":[195]},"
                               "{\"token\":\"x\",\"logprob\":-3.5,\"bytes\":[120]}]}";
    static const char fields[] = HELLO ",\"logprobs\":true,\"top_logprobs\":2,\"stream\":%s}";
    client c;
    char body[200], want[400];
    fixture_start(&f, NULL);
    (void)snprintf(body, sizeof body, fields, "false");
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", body), 200);
    assert_non_null(
        strstr(c.body, "\"logprobs\":{\"content\":[{\"token\":\"Hel\",\"logprob\":-0.5,\"bytes\":[72,101,108],"));
    assert_non_null(strstr(c.body, item));
    client_fini(&c);
    (void)snprintf(body, sizeof body, fields, "true");
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", body), 200);
    (void)snprintf(want, sizeof want, "\"delta\":{\"content\":\"\"},\"logprobs\":{\"content\":[%s]},", item);
    assert_non_null(strstr(c.body, want)); /* half a character: a token without text yet */
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", HELLO ",\"logprobs\":true}"), 200);
    assert_non_null(strstr(c.body, "\"bytes\":[195],\"top_logprobs\":[]}"));
    client_fini(&c);
}

static void sampling_fields_reach_the_engine_exactly(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(
        client_once(&c, f.port, "POST", CHAT, "",
                    HELLO ",\"temperature\":0.7,\"top_p\":0.9,\"top_k\":40,\"min_p\":0.05,\"presence_penalty\":-1.5,"
                          "\"frequency_penalty\":0.5,\"repetition_penalty\":1.1,\"seed\":9007199254740993,"
                          "\"max_completion_tokens\":2,\"stop\":[\"\\n\\n\",\"\\\\u0000\"],"
                          "\"logit_bias\":{\"17\":-100,\"5\":2.5},\"ignore_eos\":true,\"tools\":[{\"big\":1.0}],"
                          "\"chat_template_kwargs\":{\"enable_thinking\":false},\"model\":\"gpt-4o\"}"),
        200);
    assert_non_null(strstr(c.body, "\"model\":\"gpt-4o\"")); /* one model: any name means it */
    client_fini(&c);
    const stub_seen *seen = stub_last(&f.engine);
    const ks_sampling *s = &seen->rq.sampling;
    assert_true(s->temperature == 0.7f && s->top_p == 0.9f && s->min_p == 0.05f && s->presence_penalty == -1.5f);
    assert_true(s->frequency_penalty == 0.5f && s->repetition_penalty == 1.1f);
    assert_int_equal(s->top_k, 40);
    assert_int_equal(s->has_seed, 1);
    assert_true(s->seed == 9007199254740993u);
    assert_int_equal(seen->rq.max_tokens, 2);
    assert_int_equal(seen->rq.n_stop, 2);
    assert_string_equal(seen->stop[0], "\n\n");
    assert_string_equal(seen->stop[1], "\\u0000");
    assert_int_equal(s->n_bias, 2);
    assert_int_equal(seen->bias_ids[0], 17);
    assert_true(seen->bias[0] == -100.0f && seen->bias[1] == 2.5f);
    assert_int_equal(seen->rq.ignore_eos, 1);
    assert_string_equal(seen->tools, "[{\"big\":1.0}]");
    assert_string_equal(seen->kwargs, "{\"enable_thinking\":false}");
}

static void seeds_are_64_bit_integers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t value;
    } cases[] = { { "0", 0 }, { "18446744073709551615", UINT64_MAX }, { "-1", UINT64_MAX }, { "42", 42 } };
    client c;
    fixture_start(&f, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[160];
        (void)snprintf(body, sizeof body, HELLO ",\"seed\":%s}", cases[i].text);
        assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", body), 200);
        client_fini(&c);
        assert_true(stub_last(&f.engine)->rq.sampling.seed == cases[i].value);
    }
}

static void unknown_and_null_fields_are_ignored(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "",
                                 HELLO
                                 ",\"store\":true,\"metadata\":{\"a\":[1,2,{\"b\":\"\\u0000\"}]},\"user\":\"me\","
                                 "\"temperature\":null,\"stop\":null,\"n\":null,\"seed\":null,\"tools\":null,"
                                 "\"logit_bias\":null,\"logprobs\":null,\"stream\":null,\"stream_options\":null,"
                                 "\"max_tokens\":null,\"response_format\":{\"type\":\"text\"},"
                                 "\"tool_choice\":\"auto\",\"chat_template_kwargs\":null,\"Temperature\":\"hot\"}"),
                     200);
    client_fini(&c);
    assert_true(isnan(stub_last(&f.engine)->rq.sampling.temperature));
}

static void tool_choice_none_hides_the_tools(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    assert_int_equal(client_once(&c, f.port, "POST", CHAT, "", HELLO ",\"tools\":[{}],\"tool_choice\":\"none\"}"), 200);
    client_fini(&c);
    assert_null(stub_last(&f.engine)->tools);
}

static void models_are_listed_and_described(void **state)
{
    (void)state;
    static const char model[] =
        "{\"id\":\"stub-model\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"krasis\","
        "\"max_model_len\":4096,\"meta\":{\"architecture\":\"stub\",\"n_vocab\":300,\"size\":12345}}";
    char list[400];
    client c;
    fixture_start(&f, NULL);
    (void)snprintf(list, sizeof list, "{\"object\":\"list\",\"data\":[%s]}", model);
    static const char *const lists[] = { "/v1/models", "/models" };
    static const char *const ones[] = { "/v1/models/stub-model", "/models/any/name" };
    for (int i = 0; i < 2; i++) {
        assert_int_equal(client_once(&c, f.port, "GET", lists[i], "", NULL), 200);
        assert_string_equal(c.body, list);
        client_fini(&c);
        assert_int_equal(client_once(&c, f.port, "GET", ones[i], "", NULL), 200);
        assert_string_equal(c.body, model);
        client_fini(&c);
    }
}

static void health_head_and_options_answer(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, "cors-origin=https://ui.example", NULL);
    assert_int_equal(client_once(&c, f.port, "GET", "/health", "", NULL), 200);
    assert_string_equal(c.body, "{\"status\":\"ok\"}");
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "HEAD", "/health", "", NULL), 200);
    assert_string_equal(client_header(&c, "Content-Length"), "15");
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "OPTIONS", CHAT, "Origin: https://ui.example\r\n", NULL), 204);
    assert_string_equal(client_header(&c, "Access-Control-Allow-Origin"), "https://ui.example");
    assert_string_equal(client_header(&c, "Access-Control-Allow-Methods"), "GET, POST, OPTIONS");
    assert_non_null(strstr(client_header(&c, "Access-Control-Allow-Headers"), "Authorization"));
    client_fini(&c);
    assert_int_equal(client_once(&c, f.port, "POST", "/completions", "", "{\"prompt\":\"a\"}"), 200);
    client_fini(&c);
}

static void no_cors_header_without_an_origin(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, "cors-origin=", NULL);
    assert_int_equal(client_once(&c, f.port, "GET", "/health", "", NULL), 200);
    assert_null(client_header(&c, "Access-Control-Allow-Origin"));
    client_fini(&c);
}

/* A stream, an error and an answer one after the other, then all three sent at once. */
static void connections_are_used_again(void **state)
{
    (void)state;
    client c;
    fixture_start(&f, NULL);
    client_open(&c, f.port);
    for (int i = 0; i < 3; i++) {
        client_post(&c, CHAT, "", HELLO ",\"stream\":true}");
        client_read(&c, LIMIT);
        assert_int_equal(c.status, 200);
        assert_non_null(strstr(c.body, "data: [DONE]\n\n"));
        client_post(&c, CHAT, "", HELLO ",\"stream\":7}");
        client_read(&c, LIMIT);
        assert_int_equal(c.status, 400);
        client_post(&c, "/nothing", "", "{}");
        client_read(&c, LIMIT);
        assert_int_equal(c.status, 404);
    }
    client_post(&c, CHAT, "", HELLO ",\"stream\":true}");
    client_post(&c, TEXT, "", "{\"prompt\":\"a\",\"logprobs\":\"x\"}");
    client_get(&c, "/health", "");
    client_post(&c, TEXT, "", "{\"prompt\":\"a\",\"max_tokens\":1}");
    client_read(&c, LIMIT);
    assert_non_null(strstr(c.body, "data: [DONE]\n\n"));
    client_read(&c, LIMIT);
    assert_int_equal(c.status, 400);
    client_read(&c, LIMIT);
    assert_string_equal(c.body, "{\"status\":\"ok\"}");
    client_read(&c, LIMIT);
    assert_non_null(strstr(c.body, "\"text\":\"Hel\""));
    client_fini(&c);
}

static void old_clients_get_an_unframed_stream(void **state)
{
    (void)state;
    static const char body[] = HELLO ",\"stream\":true}";
    client c;
    fixture_start(&f, NULL);
    client_open(&c, f.port);
    client_sendf(&c, "POST " CHAT " HTTP/1.0\r\nContent-Length: %zu\r\n\r\n%s", sizeof body - 1, body);
    client_read(&c, LIMIT);
    assert_true(c.closed && !c.chunked);
    assert_non_null(strstr(c.body, "data: [DONE]\n\n"));
    client_fini(&c);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
    const struct CMUnitTest tests[] = {
        T(chat_answers_with_the_whole_text),
        T(chat_streams_events_byte_for_byte),
        T(usage_chunk_comes_only_when_asked),
        T(completions_stream_text_chunks),
        T(headers_leave_before_the_prompt_is_read),
        T(several_choices_share_one_answer),
        T(prompts_may_be_text_or_ids_or_lists),
        T(completions_give_logprobs_as_four_lists),
        T(chat_gives_logprobs_with_bytes),
        T(sampling_fields_reach_the_engine_exactly),
        T(seeds_are_64_bit_integers),
        T(unknown_and_null_fields_are_ignored),
        T(tool_choice_none_hides_the_tools),
        T(models_are_listed_and_described),
        T(health_head_and_options_answer),
        T(no_cors_header_without_an_origin),
        T(connections_are_used_again),
        T(old_clients_get_an_unframed_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
