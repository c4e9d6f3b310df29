/* Encoding: every construct of tokenizer.json on a small tokenizer of its own, errors, rank files, SentencePiece, the
 * demo model. */
#include "tok_support.h"

#include "base/file.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#define PLAIN ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false"

static void expect(const tok_parts *p, const char *text, uint32_t flags, const char *want)
{
    ks_tokenizer *t = tok_make(p);
    assert_string_equal(tok_show(t, text, flags), want);
    ks_tokenizer_close(t);
}

/* ---- BPE */

static void merges_go_by_rank_and_leftmost_first(void **state)
{
    (void)state;
    const tok_parts p = { .merges = "b c,a b,ab c,c c" };
    expect(&p, "abc", 0, "a|bc");
    expect(&p, "abab", 0, "ab|ab");
    expect(&p, "ccc", 0, "cc|c");
    expect(&p, "", 0, "");
}

static void long_pieces_give_the_same_as_short_ones(void **state)
{
    (void)state;
    const tok_parts p = { .merges = "a b,ab ab,abab abab,b a" };
    ks_tokenizer *t = tok_make(&p);
    ks_err err = { 0 };
    char text[1001];
    for (size_t n = 1; n <= 1000; n += 37) { /* below and above where the heap takes over */
        for (size_t i = 0; i < n; i++) text[i] = "ab"[i & 1];
        int32_t *ids = NULL;
        size_t k = 0;
        assert_int_equal(ks_tokenizer_encode(t, text, n, 0, &ids, &k, &err), 0);
        assert_int_equal(k, n / 8 + (n % 8) / 4 + (n % 4) / 2 + n % 2);
        free(ids);
    }
    ks_tokenizer_close(t);
}

static void a_megabyte_of_one_letter_takes_no_quadratic_time(void **state)
{
    (void)state;
    const tok_parts p = { .merges = "a a,aa aa,aaaa aaaa" };
    ks_tokenizer *t = tok_make(&p);
    ks_err err = { 0 };
    size_t n = 1 << 20, k = 0;
    char *text = malloc(n);
    int32_t *ids = NULL;
    assert_non_null(text);
    memset(text, 'a', n);
    assert_int_equal(ks_tokenizer_encode(t, text, n, 0, &ids, &k, &err), 0);
    assert_int_equal(k, n / 8);
    free(ids);
    free(text);
    ks_tokenizer_close(t);
}

static void ignore_merges_takes_whole_pieces(void **state)
{
    (void)state;
    tok_parts p = { .tokens = "a,b,c,ab,abc", .merges = "b c" };
    expect(&p, "abc", 0, "a|bc");
    p.model = "\"ignore_merges\":true,";
    expect(&p, "abc", 0, "abc");
    expect(&p, "abcb", 0, "a|bc|b");
}

static void unknown_characters_fall_back_to_bytes_or_unk(void **state)
{
    (void)state;
    tok_parts p = { .tokens = "<unk>,a,<0xC3>,<0xA9>,<0xC2>", .model = "\"unk_token\":\"<unk>\"," };
    expect(&p, "a\u00e9\u00e9a", 0, "a|<unk>|<unk>|a");
    p.model = "\"unk_token\":\"<unk>\",\"fuse_unk\":true,";
    expect(&p, "a\u00e9\u00e9a", 0, "a|<unk>|a");
    p.model = "\"unk_token\":\"<unk>\",\"byte_fallback\":true,";
    expect(&p, "a\u00e9\u00eaa", 0, "a|<0xC3>|<0xA9>|<unk>|a");
    p.model = NULL;
    expect(&p, "a\u00e9a", 0, "a|a"); /* without an unk token: nothing */
}

static void prefixes_and_suffixes_mark_parts_of_words(void **state)
{
    (void)state;
    const tok_parts p = { .tokens = "a,##b,##b</w>,a</w>",
                          .merges = NULL,
                          .model = "\"continuing_subword_prefix\":\"##\",\"end_of_word_suffix\":\"</w>\",",
                          .pre = "{\"type\":\"WhitespaceSplit\"}" };
    expect(&p, "abb a", 0, "a|##b|##b</w>|a</w>");
}

static void sentencepiece_words_may_be_cut_where_no_merge_reaches(void **state)
{
    (void)state;
    tok_parts p = { .tokens = "\u2581,a,b", .merges = "\u2581 a,\u2581a b,\u2581 \u2581" };
    p.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},"
                   "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}]}";
    expect(&p, "ab a  b", 0, "\u2581ab|\u2581a|\u2581\u2581|b");
    p.merges = "\u2581 a,b \u2581,\u2581a b"; /* now one does */
    expect(&p, "ab b", 0, "\u2581a|b\u2581|b");
    expect(&p, "bb b", 0, "\u2581|b|b\u2581|b");
}

/* ---- Normalizers and pre-tokenizers */

static void normalizers_run_in_order(void **state)
{
    (void)state;
    tok_parts p = { .normalizer = "{\"type\":\"NFC\"}", .merges = "\u00c3 \u00a9" };
    expect(&p, "e\u0301", 0, "\u00e9");
    p.merges = NULL;
    p.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"},{\"type\":\"Strip\",\"strip_"
                   "left\":true,\"strip_right\":true},"
                   "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" +\"},\"content\":\"_\"}]}";
    expect(&p, "  A   B ", 0, "a|_|b");
    p.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},{\"type\":\"StripAccents\"}]}";
    expect(&p, "\u00e9a", 0, "e|a");
}

static void splits_follow_their_behavior(void **state)
{
    (void)state;
    static const struct {
        const char *behavior, *want;
    } rows[] = { { "Removed", "a|bb|c" },
                 { "Isolated", "a|-|-|bb|-|c" },
                 { "MergedWithPrevious", "a-|-|bb-|c" },
                 { "MergedWithNext", "a|-|-bb|-c" },
                 { "Contiguous", "a|--|bb|-|c" } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char pre[256];
        (void)snprintf(pre, sizeof pre,
                       "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},"
                       "\"behavior\":\"%s\"},%s]}",
                       rows[i].behavior, TOK_PRE_BYTES);
        const tok_parts p = { .merges = "b b,- -,a -,bb -,- bb,- c", .pre = pre };
        expect(&p, "a--bb-c", 0, rows[i].want);
    }
}

static void metaspace_prepends_by_scheme(void **state)
{
    (void)state;
    tok_parts p = { .tokens = "\u2581,a,b,<x>",
                    .merges = "\u2581 a,\u2581 b",
                    .added = "{\"id\":3,\"content\":\"<x>\",\"special\":true" PLAIN "}" };
    p.pre = "{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_scheme\":\"always\"}";
    expect(&p, "a b<x>b", 0, "\u2581a|\u2581b|<x>|\u2581b");
    p.pre = "{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_scheme\":\"first\",\"split\":false}";
    expect(&p, "a b<x>b", 0, "\u2581a|\u2581b|<x>|b");
    p.pre = "{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"add_prefix_space\":false}";
    expect(&p, "a b<x>b", 0, "a|\u2581b|<x>|b");
}

static void other_pretokenizers_cut_as_named(void **state)
{
    (void)state;
    tok_parts p = { .merges = "1 2,! !,a b,\u0120 a,a !" };
#define SEQ(x) "{\"type\":\"Sequence\",\"pretokenizers\":[" x "," TOK_PRE_BYTES "]}"
    p.pre = SEQ("{\"type\":\"Digits\",\"individual_digits\":true}");
    expect(&p, "ab12", 0, "ab|1|2");
    p.pre = SEQ("{\"type\":\"Digits\",\"individual_digits\":false}");
    expect(&p, "ab12", 0, "ab|12");
    p.pre = SEQ("{\"type\":\"Punctuation\"}");
    expect(&p, "a!!", 0, "a|!|!");
    p.pre = SEQ("{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}");
    expect(&p, "a!!", 0, "a|!!");
    p.pre = SEQ("{\"type\":\"Whitespace\"}");
    expect(&p, "ab a!! ", 0, "ab|a|!!");
    p.pre = SEQ("{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"a\"}");
    expect(&p, "1a2a!", 0, "1|2|!");
    p.pre = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}";
    expect(&p, "ab a!!", 0, " |ab| a|!!");
    p.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[" TOK_PRE_BYTES
            ",{\"type\":\"Split\",\"pattern\":{\"String\":\"\u0120\"},\"behavior\":\"Removed\"}]}";
    expect(&p, "ab a!!", 0, "ab|a|!!"); /* after ByteLevel the text is its characters */
#undef SEQ
}

/* ---- Added tokens and post-processors */

static void added_tokens_are_found_leftmost_and_longest(void **state)
{
    (void)state;
    const tok_parts p = { .added = "{\"id\":256,\"content\":\"<a>\",\"special\":true" PLAIN
                                   "},{\"id\":257,\"content\":\"<a><b>\",\"special\":false" PLAIN "}" };
    ks_tokenizer *t = tok_make(&p);
    assert_string_equal(tok_show(t, "x<a><b><a>", 0), "x|<a><b>|<a>");
    assert_string_equal(tok_show(t, "<a>", KS_TOK_PLAIN_TEXT), "<|a|>");
    assert_true(ks_tokenizer_is_special(t, 256));
    assert_false(ks_tokenizer_is_special(t, 257));
    assert_false(ks_tokenizer_is_special(t, -1));
    assert_int_equal(ks_tokenizer_id(t, "<a><b>"), 257);
    assert_int_equal(ks_tokenizer_id(t, "nope"), -1);
    assert_int_equal(ks_tokenizer_size(t), 258);
    size_t n;
    assert_null(ks_tokenizer_bytes(t, 258, &n));
    assert_null(ks_tokenizer_bytes(t, -1, &n));
    ks_tokenizer_close(t);
}

static void added_tokens_take_blanks_and_stand_alone_as_told(void **state)
{
    (void)state;
    tok_parts p = { .added =
                        "{\"id\":256,\"content\":\"<l>\",\"lstrip\":true,\"special\":false,\"normalized\":false},"
                        "{\"id\":257,\"content\":\"<r>\",\"rstrip\":true,\"special\":false,\"normalized\":false},"
                        "{\"id\":258,\"content\":\"wo\",\"single_word\":true,\"special\":false,\"normalized\":false}" };
    expect(&p, "a \u3000<l> b", 0, "a|<l>| |b");
    expect(&p, "a <r> \n b", 0, "a| |<r>|b");
    expect(&p, "<r>  <l>", 0, "<r>|<l>");
    expect(&p, "wo.wo2 \u00e9wo", 0, "wo|.|w|o|2| |\xc3|\xa9|w|o");
    p.added = "{\"id\":256,\"content\":\"  \",\"special\":false,\"normalized\":true,\"lstrip\":true,\"rstrip\":true}";
    expect(&p, "a      b", 0, "a|  |b");             /* the first takes all */
    expect(&p, "a  b", KS_TOK_PLAIN_TEXT, "a|  |b"); /* blanks are no markup */
}

static void normalized_tokens_are_sought_in_normalized_text(void **state)
{
    (void)state;
    tok_parts p = { .normalizer = "{\"type\":\"Lowercase\"}",
                    .added = "{\"id\":256,\"content\":\"ABC\",\"special\":false,\"normalized\":true},"
                             "{\"id\":257,\"content\":\"XYZ\",\"special\":false,\"normalized\":false}" };
    expect(&p, "aBc xyz XYZ", 0, "ABC| |x|y|z| |XYZ");
}

/* The reference counts on from the vocabulary, whatever the file says. */
static void ids_of_added_tokens_follow_the_vocabulary(void **state)
{
    (void)state;
    const tok_parts p = { .added = "{\"id\":900,\"content\":\"<a>\",\"special\":true" PLAIN
                                   "},{\"id\":65,\"content\":\"A\",\"special\":false" PLAIN "}" };
    ks_tokenizer *t = tok_make(&p);
    assert_int_equal(ks_tokenizer_id(t, "<a>"), 256);
    assert_int_equal(ks_tokenizer_id(t, "A"), 65);
    ks_tokenizer_close(t);
}

static void post_processors_wrap_the_ids(void **state)
{
    (void)state;
    tok_parts p = { .post =
                        "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":"
                        "\"TemplateProcessing\",\"single\":"
                        "[{\"SpecialToken\":{\"id\":\"S\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
                        "{\"SpecialToken\":{\"id\":\"E\",\"type_id\":0}}],\"special_tokens\":{\"S\":{\"ids\":[60]},"
                        "\"E\":{\"ids\":[62,33]}}}]}" };
    expect(&p, "ab", 0, "a|b");
    expect(&p, "ab", KS_TOK_ADD_SPECIAL, "<|a|b|>|!");
    expect(&p, "", KS_TOK_ADD_SPECIAL, "<|>|!");
    p.post = "{\"type\":\"RobertaProcessing\",\"sep\":[\"E\",62],\"cls\":[\"S\",60]}";
    expect(&p, "ab", KS_TOK_ADD_SPECIAL, "<|a|b|>");
}

static void config_names_tokens_and_adds_missing_ones(void **state)
{
    (void)state;
    const tok_parts p = { .added = "{\"id\":256,\"content\":\"<s>\",\"special\":true" PLAIN "}" };
    static const char config[] = "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"<e>\",\"pad_token\":null,"
                                 "\"added_tokens_decoder\":{\"257\":{\"content\":\"<e>\",\"special\":true}}}";
    ks_err err = { 0 };
    ks_tokenizer *t = NULL;
    char *json = tok_json(&p);
    assert_int_equal(ks_tokenizer_parse(json, strlen(json), config, strlen(config), &t, &err), 0);
    assert_int_equal(ks_tokenizer_bos(t), 256);
    assert_int_equal(ks_tokenizer_eos(t), 257);
    assert_string_equal(ks_tokenizer_name(t, "bos_token"), "<s>");
    assert_string_equal(ks_tokenizer_name(t, "pad_token"), "");
    assert_string_equal(ks_tokenizer_name(t, "unknown"), "");
    ks_tokenizer_close(t);
    static const char broken[] = "{\"bos_token\":5}";
    assert_int_equal(ks_tokenizer_parse(json, strlen(json), broken, strlen(broken), &t, &err), KS_E_FORMAT);
    assert_non_null(strstr(err.msg, "bos_token"));
    free(json);
}

static void encode_appends_and_checks_its_text(void **state)
{
    (void)state;
    const tok_parts p = { .merges = NULL };
    ks_tokenizer *t = tok_make(&p);
    ks_err err = { 0 };
    int32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(ks_tokenizer_encode(t, "ab", 2, 0, &ids, &n, &err), 0);
    assert_int_equal(ks_tokenizer_encode(t, "c\0", 2, 0, &ids, &n, &err), 0);
    assert_int_equal(ks_tokenizer_encode(t, "d\xff", 2, 0, &ids, &n, &err), KS_E_INVAL);
    assert_non_null(strstr(err.msg, "not UTF-8 at byte 1"));
    assert_int_equal(n, 4);
    assert_int_equal(ids[0], 'a');
    assert_int_equal(ids[3], 0);
    free(ids);
    ks_tokenizer_close(t);
}

static void *encode_often(void *arg)
{
    const ks_tokenizer *t = arg;
    for (int i = 0; i < 200; i++) {
        ks_err err = { 0 };
        int32_t *ids = NULL;
        size_t n = 0;
        if (ks_tokenizer_encode(t, "abc abc <x> e\u0301", 16, 0, &ids, &n, &err) || n != 11) return arg;
        free(ids);
    }
    return NULL;
}

static void many_threads_encode_with_one_tokenizer(void **state)
{
    (void)state;
    const tok_parts p = { .merges = "b c,a b",
                          .normalizer = "{\"type\":\"NFC\"}",
                          .added = "{\"id\":256,\"content\":\"<x>\",\"special\":true" PLAIN "}" };
    ks_tokenizer *t = tok_make(&p);
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&thread[i], NULL, encode_often, t), 0);
    for (int i = 0; i < 4; i++) {
        void *bad = NULL;
        assert_int_equal(pthread_join(thread[i], &bad), 0);
        assert_null(bad);
    }
    ks_tokenizer_close(t);
}

/* Members may come in any order: merges before what they need are read later. */
static void members_of_the_file_come_in_any_order(void **state)
{
    (void)state;
    static const char json[] =
        "{\"decoder\":null,\"model\":{\"merges\":[\"a ##b\"],\"vocab\":{\"a\":0,\"##b\":1,\"ab\":2},"
        "\"continuing_subword_prefix\":\"##\",\"type\":\"BPE\"},\"added_tokens\":[]}";
    ks_err err = { 0 };
    ks_tokenizer *t = NULL;
    if (ks_tokenizer_parse(json, strlen(json), NULL, 0, &t, &err)) fail_msg("%s", err.msg);
    assert_string_equal(tok_show(t, "ab", 0), "ab");
    ks_tokenizer_close(t);
}

/* ---- Errors */

static void refuse_json(const char *json, int code, const char *why)
{
    ks_err err = { 0 };
    ks_tokenizer *t = NULL;
    int rc = ks_tokenizer_parse(json, strlen(json), NULL, 0, &t, &err);
    if (rc != code || !strstr(err.msg, why)) fail_msg("%d, '%s' for '%s'", rc, err.msg, why);
    assert_null(t);
}

static void refuse(const tok_parts *p, int code, const char *why)
{
    char *json = tok_json(p);
    refuse_json(json, code, why);
    free(json);
}

static void files_that_are_wrong_say_where(void **state)
{
    (void)state;
    refuse_json("", KS_E_FORMAT, "tokenizer.json");
    refuse_json("[]", KS_E_FORMAT, "outermost object");
    refuse_json("{}", KS_E_FORMAT, "'model'");
    refuse_json("{\"model\":{}", KS_E_FORMAT, "ends too early");
    refuse_json("{\"model\":{}}", KS_E_FORMAT, "'vocab'");
    refuse_json("{\"model\":{\"vocab\":{}}}", KS_E_FORMAT, "'merges'");
    refuse_json("{\"model\":{\"vocab\":{},\"merges\":[]}}", KS_E_FORMAT, "vocabulary is empty");
    refuse_json("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", KS_E_UNSUPPORTED, "model \"Unigram\"");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", KS_E_FORMAT,
                "id 0 is given to 'a' and to 'b'");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", KS_E_FORMAT,
                "'a' is in the vocabulary twice");
    refuse_json("{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", KS_E_FORMAT, "the id of token 'a'");
    refuse_json("{\"model\":{\"vocab\":{\"a\":100000},\"merges\":[]}}", KS_E_LIMIT, "has the id 100000");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", KS_E_FORMAT,
                "merge 0 ('a' + 'b'): its right half");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", KS_E_FORMAT, "its result");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", KS_E_FORMAT,
                "merge 0 ('aa') is not two tokens");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", KS_E_FORMAT, "merge 0 is not a string");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}", KS_E_UNSUPPORTED, "dropout");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"id\":1}]}", KS_E_FORMAT,
                "'content' of an added token");
    refuse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"content\":\"x\"}]}", KS_E_FORMAT,
                "token id");
}

static void steps_that_cannot_be_reproduced_are_named(void **state)
{
    (void)state;
    refuse(&(tok_parts) { .normalizer = "{\"type\":\"BertNormalizer\"}" }, KS_E_UNSUPPORTED,
           "normalizer \"BertNormalizer\"");
    refuse(&(tok_parts) { .normalizer = "{\"type\":\"Replace\",\"content\":\"\"}" }, KS_E_FORMAT, "'pattern'");
    refuse(&(tok_parts) { .normalizer = "{\"x\":1}" }, KS_E_FORMAT, "without a 'type'");
    refuse(&(tok_parts) { .pre = "{\"type\":\"UnicodeScripts\"}" }, KS_E_UNSUPPORTED,
           "pre-tokenizer \"UnicodeScripts\"");
    refuse(&(tok_parts) { .pre = "{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},\"behavior\":\"Odd\"}" },
           KS_E_FORMAT, "'behavior'");
    refuse(&(tok_parts) { .pre = "{\"type\":\"Metaspace\",\"replacement\":\"xx\"}" }, KS_E_FORMAT, "'replacement'");
    refuse(&(tok_parts) { .post = "{\"type\":\"Odd\"}" }, KS_E_UNSUPPORTED, "post-processor \"Odd\"");
    refuse(&(tok_parts) { .post = "{\"type\":\"TemplateProcessing\",\"single\":[]}" }, KS_E_FORMAT, "one Sequence A");
    refuse(&(tok_parts) { .post = "{\"type\":\"BertProcessing\",\"cls\":[\"x\",999],\"sep\":[\"x\",0]}" }, KS_E_FORMAT,
           "adds the id 999");
    refuse(&(tok_parts) { .decoder = "{\"type\":\"CTC\"}" }, KS_E_UNSUPPORTED, "decoder \"CTC\"");
    refuse(&(tok_parts) { .normalizer = "{\"type\":\"Strip\",\"strip_left\":true}",
                          .added = "{\"id\":256,\"content\":\" \",\"special\":false,\"normalized\":true}" },
           KS_E_UNSUPPORTED, "leaves nothing of the added token ' '");
}

/* ---- Other files */

static void write_file(const char *dir, const char *name, const void *p, size_t n)
{
    ks_err err = { 0 };
    char *path = ks_path_join(dir, name);
    assert_non_null(path);
    assert_int_equal(ks_file_write(path, p, n, &err), 0);
    free(path);
}

static int open_dir(const char *dir, ks_tokenizer **ret, ks_err *err)
{
    *ret = NULL;
    return ks_tokenizer_open(dir, ret, err);
}

static void rank_files_merge_by_id(void **state)
{
    (void)state;
    static const char abc[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    ks_err err = { 0 };
    ks_tokenizer *t;
    ks_buf b;
    char dir[] = "rank-XXXXXX";
    assert_non_null(mkdtemp(dir));
    assert_int_equal(open_dir(dir, &t, &err), KS_E_NOTFOUND);
    assert_non_null(strstr(err.msg, "tiktoken.model"));
    ks_buf_init(&b, 0);
    for (uint32_t i = 0; i < 256; i++) ks_buf_printf(&b, "%c%c== %u\n", abc[i >> 2], abc[(i & 3) << 4], i);
    ks_buf_adds(&b, "YWI= 256\nYmM= 257\n"); /* ab, bc */
    write_file(dir, "tiktoken.model", b.p, b.n);
    assert_int_equal(open_dir(dir, &t, &err), KS_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "TikTokenTokenizer"));
    static const char config[] =
        "{\"tokenizer_class\":\"TikTokenTokenizer\",\"bos_token\":\"[BOS]\",\"added_tokens_decoder\":"
        "{\"258\":{\"content\":\"[BOS]\",\"special\":true},\"260\":{\"content\":\"<|tool|>\",\"special\":false}}}";
    write_file(dir, "tokenizer_config.json", config, strlen(config));
    assert_int_equal(open_dir(dir, &t, &err), 0);
    assert_string_equal(tok_show(t, "abc bcab[BOS]<|tool|><|reserved_token_259|>", 0),
                        "ab|c| |bc|ab|[BOS]|<|tool|>|<|reserved_token_259|>");
    assert_int_equal(ks_tokenizer_bos(t), 258);
    assert_int_equal(ks_tokenizer_size(t), 258 + 258);
    assert_true(ks_tokenizer_is_special(t, 259));
    assert_false(ks_tokenizer_is_special(t, 260));
    ks_tokenizer_close(t);
    ks_buf_adds(&b, "Y 258\n");
    write_file(dir, "tiktoken.model", b.p, b.n);
    assert_int_equal(open_dir(dir, &t, &err), KS_E_FORMAT);
    assert_non_null(strstr(err.msg, "line 259"));
    ks_buf_fini(&b);
}

static void put_piece(ks_buf *b, const char *text, float score, int type)
{
    uint8_t s[4];
    memcpy(s, &score, 4);
    ks_buf_addc(b, 0x0a);
    ks_buf_addc(b, (char)(2 + strlen(text) + 5 + 2));
    ks_buf_addc(b, 0x0a);
    ks_buf_addc(b, (char)strlen(text));
    ks_buf_adds(b, text);
    ks_buf_addc(b, 0x15);
    ks_buf_add(b, s, 4);
    ks_buf_addc(b, 0x18);
    ks_buf_addc(b, (char)type);
}

static void sentencepiece_models_merge_by_score(void **state)
{
    (void)state;
    ks_err err = { 0 };
    ks_tokenizer *t;
    ks_buf b;
    char dir[] = "spm-XXXXXX";
    assert_non_null(mkdtemp(dir));
    ks_buf_init(&b, 0);
    put_piece(&b, "<unk>", 0, 2);
    put_piece(&b, "<s>", 0, 3);
    put_piece(&b, "\u2581a", -0.0f, 1);
    put_piece(&b, "ab", -1, 1);
    put_piece(&b, "bb", -2, 1);
    put_piece(&b, "\u2581", -3, 1);
    put_piece(&b, "a", -4, 1);
    put_piece(&b, "b", -5, 1);
    size_t pieces = b.n;
    ks_buf_add(&b, "\x12\x02\x18\x02", 4); /* trainer: BPE */
    ks_buf_add(&b, "\x1a\x02\x20\x00", 4); /* normalizer: spaces stay as they are */
    write_file(dir, "tokenizer.model", b.p, b.n);
    static const char config[] = "{\"tokenizer_class\":\"LlamaTokenizer\",\"bos_token\":\"<s>\"}";
    write_file(dir, "tokenizer_config.json", config, strlen(config));
    assert_int_equal(open_dir(dir, &t, &err), 0);
    assert_string_equal(tok_show(t, "abb bbxy", 0), " a|bb| |bb|<unk>");
    assert_string_equal(tok_show(t, "a", KS_TOK_ADD_SPECIAL), "<s>| a");
    ks_tokenizer_close(t);
    b.p[pieces + 3] = 1; /* Unigram */
    write_file(dir, "tokenizer.model", b.p, b.n);
    assert_int_equal(open_dir(dir, &t, &err), KS_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "not a BPE model"));
    write_file(dir, "tokenizer.model", b.p, b.n - 1);
    assert_int_equal(open_dir(dir, &t, &err), KS_E_FORMAT);
    assert_non_null(strstr(err.msg, "not a SentencePiece model"));
    ks_buf_fini(&b);
}

static void demo_model_gives_its_reference_ids(void **state)
{
    (void)state;
    ks_err err = { 0 };
    ks_tokenizer *t = NULL;
    char *json = NULL;
    size_t n, n_texts = 0;
    if (ks_tokenizer_open(KS_SOURCE_DIR "/models/demo", &t, &err)) fail_msg("%s", err.msg);
    assert_int_equal(ks_tokenizer_size(t), 4096);
    assert_int_equal(ks_tokenizer_eos(t), 2);
    assert_int_equal(ks_file_read(KS_SOURCE_DIR "/models/demo/golden.json", 1 << 26, &json, &n, &err), 0);
    ks_json j;
    ks_json_init(&j, json, n, 64);
    int32_t *ids = NULL;
    size_t n_ids = 0, i = 0;
    for (int token; n_texts < 3 && (token = ks_json_next(&j)) > 0;) { /* the prompts come first */
        if (token != KS_JSON_KEY) continue;
        if (ks_json_is(&j, "text") && ks_json_next(&j) == KS_JSON_STRING) {
            char *text = malloc(j.tok_bytes + 1);
            size_t text_n;
            assert_non_null(text);
            assert_int_equal(ks_json_str(&j, text, j.tok_bytes + 1, &text_n), 0);
            free(ids);
            ids = NULL;
            n_ids = i = 0;
            assert_int_equal(ks_tokenizer_encode(t, text, text_n, 0, &ids, &n_ids, &err), 0);
            free(text);
        } else if (ids && ks_json_is(&j, "ids") && ks_json_next(&j) == KS_JSON_ARRAY) {
            for (int64_t id; ks_json_next(&j) == KS_JSON_NUMBER; i++) {
                assert_int_equal(ks_json_i64(&j, &id), 0);
                assert_true(i < n_ids);
                assert_int_equal(id, ids[i]);
            }
            assert_int_equal(i, n_ids);
            n_texts++;
        }
    }
    assert_int_equal(n_texts, 3);
    free(ids);
    free(json);
    ks_tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_go_by_rank_and_leftmost_first),
        cmocka_unit_test(long_pieces_give_the_same_as_short_ones),
        cmocka_unit_test(a_megabyte_of_one_letter_takes_no_quadratic_time),
        cmocka_unit_test(ignore_merges_takes_whole_pieces),
        cmocka_unit_test(unknown_characters_fall_back_to_bytes_or_unk),
        cmocka_unit_test(prefixes_and_suffixes_mark_parts_of_words),
        cmocka_unit_test(sentencepiece_words_may_be_cut_where_no_merge_reaches),
        cmocka_unit_test(normalizers_run_in_order),
        cmocka_unit_test(splits_follow_their_behavior),
        cmocka_unit_test(metaspace_prepends_by_scheme),
        cmocka_unit_test(other_pretokenizers_cut_as_named),
        cmocka_unit_test(added_tokens_are_found_leftmost_and_longest),
        cmocka_unit_test(added_tokens_take_blanks_and_stand_alone_as_told),
        cmocka_unit_test(normalized_tokens_are_sought_in_normalized_text),
        cmocka_unit_test(ids_of_added_tokens_follow_the_vocabulary),
        cmocka_unit_test(post_processors_wrap_the_ids),
        cmocka_unit_test(config_names_tokens_and_adds_missing_ones),
        cmocka_unit_test(encode_appends_and_checks_its_text),
        cmocka_unit_test(many_threads_encode_with_one_tokenizer),
        cmocka_unit_test(members_of_the_file_come_in_any_order),
        cmocka_unit_test(files_that_are_wrong_say_where),
        cmocka_unit_test(steps_that_cannot_be_reproduced_are_named),
        cmocka_unit_test(rank_files_merge_by_id),
        cmocka_unit_test(sentencepiece_models_merge_by_score),
        cmocka_unit_test(demo_model_gives_its_reference_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
