/* Decoding: the chains, and that a stream gives what the whole gives, without ever cutting a character. */
#include "tok_support.h"

#define SPM_TOKENS "<unk>,\u2581,a,b,\u2581a,\u65e5,<0xE6>,<0x97>,<0xA5>,<0x41>,<0xFF>"
#define SPM_DECODER                                                                                                  \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\u2581\"},\"content\":\" " \
    "\"},"                                                                                                           \
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"

enum { UNK, MARK, A, B, MARK_A, SUN, E6, X97, A5, X41, FF };

static char *decode_n(const ks_tokenizer *t, const int32_t *ids, size_t n, bool skip, size_t *ret_n)
{
    ks_err err = { 0 };
    char *text = NULL;
    if (ks_tokenizer_decode(t, ids, n, skip, &text, ret_n, &err)) fail_msg("%s", err.msg);
    return text;
}

static char *decode(const ks_tokenizer *t, const int32_t *ids, size_t n, bool skip)
{
    size_t text_n = 0;
    char *text = decode_n(t, ids, n, skip, &text_n);
    assert_int_equal(strlen(text), text_n);
    return text;
}

static void expect(const ks_tokenizer *t, const char *want, size_t n, const int32_t *ids)
{
    char *got = decode(t, ids, n, false);
    assert_string_equal(got, want);
    free(got);
}

#define IDS(...)                                         \
    sizeof((int32_t[]) { __VA_ARGS__ }) / 4, (int32_t[]) \
    {                                                    \
        __VA_ARGS__                                      \
    }

static void byte_level_tokens_give_their_bytes(void **state)
{
    (void)state;
    const tok_parts p = { .added = "{\"id\":256,\"content\":\"<\uff5cx>\",\"special\":true,\"normalized\":false}" };
    ks_tokenizer *t = tok_make(&p);
    expect(t, "a \u00e9", IDS('a', ' ', 0xc3, 0xa9));
    expect(t, "<\uff5cx>a", IDS(256, 'a'));
    expect(t, "a", IDS(-1, 'a', 257, 1 << 30)); /* unknown ids give nothing */
    char *s = decode(t, (int32_t[]) { 256, 'a' }, 2, true);
    assert_string_equal(s, "a");
    free(s);
    ks_tokenizer_close(t);
}

/* One replacement for each longest part that could have begun a character. */
static void ill_formed_bytes_become_replacements(void **state)
{
    (void)state;
    const tok_parts p = { .merges = NULL };
    ks_tokenizer *t = tok_make(&p);
    expect(t, "\ufffd\ufffdx", IDS(0xff, 0x80, 'x'));
    expect(t, "\ufffdx", IDS(0xf0, 0x9f, 0x99, 'x'));
    expect(t, "\ufffd", IDS(0xf0, 0x9f, 0x99));
    expect(t, "\ufffd\ufffd\ufffd", IDS(0xed, 0xa0, 0x80)); /* a surrogate */
    expect(t, "\ufffd\u00e9", IDS(0xe0, 0xc3, 0xa9));
    expect(t, "\ufffd\ufffd\ufffd\ufffd", IDS(0xf5, 0x80, 0x80, 0x80));
    ks_tokenizer_close(t);
}

static void sentencepiece_chain_strips_and_falls_back(void **state)
{
    (void)state;
    const tok_parts p = { .tokens = SPM_TOKENS, .decoder = SPM_DECODER };
    ks_tokenizer *t = tok_make(&p);
    expect(t, "a a", IDS(MARK_A, MARK_A));
    expect(t, " a", IDS(MARK, MARK_A));
    expect(t, "\u65e5b", IDS(E6, X97, A5, B));
    expect(t, "A\u65e5", IDS(X41, E6, X97, A5));
    expect(t, "\ufffd\ufffd\ufffdb", IDS(X41, E6, X97, B)); /* the whole run, as the reference does */
    expect(t, "\ufffd", IDS(FF));
    ks_tokenizer_close(t);
}

static void other_chains_decode_as_named(void **state)
{
    (void)state;
    tok_parts p = { .tokens = SPM_TOKENS };
    ks_tokenizer *t = tok_make(&p); /* none: tokens with spaces between */
    expect(t, "a \u2581a b", IDS(A, MARK_A, B));
    ks_tokenizer_close(t);
    p.decoder = "{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_scheme\":\"always\"}";
    t = tok_make(&p);
    expect(t, "a a", IDS(MARK_A, MARK_A));
    ks_tokenizer_close(t);
    p.decoder = "{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_scheme\":\"never\"}";
    t = tok_make(&p);
    expect(t, " a a", IDS(MARK_A, MARK_A));
    ks_tokenizer_close(t);
    p.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Replace\",\"pattern\":{"
                "\"String\":\"\u2581\"},\"content\":\"_\"},"
                "{\"type\":\"Strip\",\"content\":\"_\",\"start\":1,\"stop\":2}]}";
    t = tok_make(&p);
    expect(t, "_a_b", IDS(MARK, MARK_A, MARK, B, MARK, MARK));
    expect(t, "a_", IDS(MARK_A, MARK, MARK, MARK));
    ks_tokenizer_close(t);
    p.decoder = "{\"type\":\"Strip\",\"content\":\"a\",\"start\":0,\"stop\":1}"; /* without Fuse: of each token */
    t = tok_make(&p);
    expect(t, "\u2581b", IDS(MARK_A, A, B));
    ks_tokenizer_close(t);
}

/* The stream: valid UTF-8 in every part, and the same in sum. */
static void stream_equals_batch(const ks_tokenizer *t, const int32_t *ids, size_t n, bool skip)
{
    ks_err err = { 0 };
    ks_detok *d = NULL;
    ks_buf all;
    const char *part = NULL;
    size_t part_n = 0;
    assert_int_equal(ks_detok_new(t, skip, &d, &err), 0);
    ks_buf_init(&all, 0);
    ks_buf_adds(&all, "");
    for (size_t i = 0; i <= n; i++) {
        assert_int_equal(i < n ? ks_detok_add(d, ids[i], &part, &part_n, &err) : ks_detok_end(d, &part, &part_n, &err),
                         0);
        assert_int_equal(ks_utf8_valid(part, part_n), part_n);
        ks_buf_add(&all, part, part_n);
    }
    size_t whole_n = 0;
    char *whole = decode_n(t, ids, n, skip, &whole_n);
    assert_int_equal(all.n, whole_n);
    assert_memory_equal(all.p, whole, whole_n);
    free(whole);
    ks_buf_fini(&all);
    ks_detok_free(d);
}

static uint32_t next_random(uint32_t *s)
{
    return *s = *s * 1664525u + 1013904223u, *s >> 8;
}

static void random_ids_stream_as_they_decode(void **state)
{
    (void)state;
    tok_parts parts[] = {
        { .merges = "\u00e6 \u0139,a b",
          .added = "{\"id\":258,\"content\":\"<x>\",\"special\":true,\"normalized\":false}" },
        { .tokens = SPM_TOKENS,
          .decoder = SPM_DECODER,
          .added = "{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":false}" },
        { .tokens = SPM_TOKENS,
          .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Metaspace\","
                     "\"replacement\":\"\u2581\",\"prepend_scheme\":\"first\"}]}" },
        { .tokens = SPM_TOKENS,
          .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\"a\","
                     "\"start\":2,\"stop\":2}]}" },
    };
    uint32_t seed = 1;
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        ks_tokenizer *t = tok_make(&parts[k]);
        int32_t ids[300];
        for (int round = 0; round < 2000; round++) {
            size_t n = next_random(&seed) % (round % 20 ? 12 : 300);
            for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(next_random(&seed) % (ks_tokenizer_size(t) + 1));
            stream_equals_batch(t, ids, n, round & 1);
        }
        ks_tokenizer_close(t);
    }
}

/* A script that the vocabulary lacks comes as byte tokens without an end: it must not be held back for ever. */
static void long_runs_of_byte_tokens_do_not_stall(void **state)
{
    (void)state;
    const tok_parts p = { .tokens = SPM_TOKENS, .decoder = SPM_DECODER };
    ks_tokenizer *t = tok_make(&p);
    ks_err err = { 0 };
    ks_detok *d = NULL;
    const char *part;
    size_t part_n, got = 0;
    assert_int_equal(ks_detok_new(t, false, &d, &err), 0);
    for (int i = 0; i < 300; i++) {
        assert_int_equal(ks_detok_add(d, E6 + i % 3, &part, &part_n, &err), 0);
        assert_int_equal(part_n % 3, 0);
        got += part_n;
        assert_true(got + 64 >= (size_t)i + 1);
    }
    assert_int_equal(ks_detok_end(d, &part, &part_n, &err), 0);
    assert_int_equal(got + part_n, 300);
    ks_detok_free(d);
    ks_tokenizer_close(t);
}

static void a_character_comes_with_its_last_byte(void **state)
{
    (void)state;
    const tok_parts p = { .merges = NULL };
    ks_tokenizer *t = tok_make(&p);
    ks_err err = { 0 };
    ks_detok *d = NULL;
    const char *part;
    size_t n;
    static const struct {
        int32_t id;
        const char *text;
    } rows[] = { { 'a', "a" },           { 0xf0, "" }, { 0x9f, "" },       { 0x99, "" },
                 { 0x82, "\U0001f642" }, { 0xe6, "" }, { 'b', "\ufffdb" }, { 0xc3, "" } };
    assert_int_equal(ks_detok_new(t, false, &d, &err), 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(ks_detok_add(d, rows[i].id, &part, &n, &err), 0);
        assert_int_equal(n, strlen(rows[i].text));
        assert_memory_equal(part, rows[i].text, n);
    }
    assert_int_equal(ks_detok_end(d, &part, &n, &err), 0);
    assert_int_equal(n, 3);
    ks_detok_free(d);
    ks_detok_free(NULL);
    ks_tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_level_tokens_give_their_bytes),
        cmocka_unit_test(ill_formed_bytes_become_replacements),
        cmocka_unit_test(sentencepiece_chain_strips_and_falls_back),
        cmocka_unit_test(other_chains_decode_as_named),
        cmocka_unit_test(random_ids_stream_as_they_decode),
        cmocka_unit_test(long_runs_of_byte_tokens_do_not_stall),
        cmocka_unit_test(a_character_comes_with_its_last_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
