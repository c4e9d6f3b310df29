/* Real tokenizers against the reference's results, line by line. They are other people's files and not in this
 * repository: $KRASIS_TEST_DATA/tokenizers/<name>/ has tokenizer.json.gz and expected.jsonl; without it the tests are
 * skipped. Also prints the speed of loading and encoding; generous bounds catch what is wrong by an order of magnitude.
 */
#include "tok_support.h"

#include "base/base.h"
#include "base/clock.h"
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>

static const char *data_dir(void)
{
    const char *dir = getenv("KRASIS_TEST_DATA");
    if (!dir || !*dir) {
        print_message("skipped: KRASIS_TEST_DATA is not set\n");
        skip();
    }
    return dir;
}

/* The output of gzip: zlib is not worth a dependency of ours for this. */
static char *unzip(const char *path, size_t *ret_n)
{
    char command[1200];
    assert_null(strchr(path, '\''));
    (void)snprintf(command, sizeof command, "gzip -dc '%s'", path);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    ks_buf b;
    ks_buf_init(&b, (size_t)1 << 30);
    char part[65536];
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) ks_buf_add(&b, part, n);
    assert_int_equal(pclose(f), 0);
    char *text = ks_buf_take(&b, ret_n);
    assert_non_null(text);
    return text;
}

typedef struct line {
    char *text, *decoded;
    size_t text_n, decoded_n;
    int32_t *ids[2]; /* without and with special tokens */
    size_t n_ids[2];
} line;

static char *take_string(ks_json *j, size_t *ret_n)
{
    assert_int_equal(ks_json_next(j), KS_JSON_STRING);
    char *s = malloc(j->tok_bytes + 1);
    assert_non_null(s);
    assert_int_equal(ks_json_str(j, s, j->tok_bytes + 1, ret_n), 0);
    return s;
}

static void take_ids(ks_json *j, int32_t **ret, size_t *ret_n)
{
    size_t n = 0;
    int32_t *ids = malloc((j->n + 1) * sizeof *ids);
    assert_non_null(ids);
    assert_int_equal(ks_json_next(j), KS_JSON_ARRAY);
    for (int64_t id; ks_json_next(j) == KS_JSON_NUMBER;) {
        assert_int_equal(ks_json_i64(j, &id), 0);
        ids[n++] = (int32_t)id;
    }
    *ret = ids;
    *ret_n = n;
}

static void read_expected(const char *s, size_t n, line *l)
{
    ks_json j;
    memset(l, 0, sizeof *l);
    ks_json_init(&j, s, n, 8);
    assert_int_equal(ks_json_next(&j), KS_JSON_OBJECT);
    while (ks_json_next(&j) == KS_JSON_KEY) {
        if (ks_json_is(&j, "text"))
            l->text = take_string(&j, &l->text_n);
        else if (ks_json_is(&j, "decoded"))
            l->decoded = take_string(&j, &l->decoded_n);
        else
            take_ids(&j, &l->ids[ks_json_is(&j, "ids_special")], &l->n_ids[ks_json_is(&j, "ids_special")]);
    }
}

/* Plain stretches, wherever they lie, change no id of a text without markup. */
static void check_spans(const ks_tokenizer *t, const line *l, const char *name, size_t number)
{
    ks_err err = { 0 };
    ks_text_span spans[64];
    int32_t *ids = NULL;
    size_t n = 0, k = 0;
    uint32_t random = (uint32_t)number;
    assert_int_equal(ks_tokenizer_encode(t, l->text, l->text_n, KS_TOK_PLAIN_TEXT, &ids, &n, &err), 0);
    bool markup = n != l->n_ids[0] || (n && memcmp(ids, l->ids[0], n * sizeof *ids));
    free(ids);
    if (markup) return;
    for (size_t at = 0; at < l->text_n && k < KS_COUNT(spans);) {
        size_t ends[2];
        for (int i = 0; i < 2; i++) {
            random = random * 1664525u + 1013904223u;
            at += 1 + (random >> 16) % 9;
            while (at < l->text_n && ((unsigned char)l->text[at] & 0xc0) == 0x80) at++;
            ends[i] = KS_MIN(at, l->text_n);
        }
        if (ends[0] < ends[1]) spans[k++] = (ks_text_span) { ends[0], ends[1] };
    }
    ids = NULL;
    n = 0;
    assert_int_equal(ks_tokenizer_encode_spans(t, l->text, l->text_n, spans, k, 0, &ids, &n, &err), 0);
    if (n != l->n_ids[0] || (n && memcmp(ids, l->ids[0], n * sizeof *ids)))
        fail_msg("%s, line %zu: ids differ with %zu plain stretches", name, number, k);
    free(ids);
}

static void check_line(const ks_tokenizer *t, const line *l, const char *name, size_t number)
{
    ks_err err = { 0 };
    check_spans(t, l, name, number);
    for (uint32_t special = 0; special < 2; special++) {
        int32_t *ids = NULL;
        size_t n = 0;
        if (ks_tokenizer_encode(t, l->text, l->text_n, special ? KS_TOK_ADD_SPECIAL : 0, &ids, &n, &err))
            fail_msg("%s", err.msg);
        if (n != l->n_ids[special] || (n && memcmp(ids, l->ids[special], n * sizeof *ids)))
            fail_msg("%s, line %zu: ids differ (%zu, expected %zu, special %u)", name, number, n, l->n_ids[special],
                     special);
        free(ids);
    }
    char *text = NULL;
    size_t n = 0;
    assert_int_equal(ks_tokenizer_decode(t, l->ids[0], l->n_ids[0], false, &text, &n, &err), 0);
    if (n != l->decoded_n || memcmp(text, l->decoded, n)) fail_msg("%s, line %zu: decoded text differs", name, number);
    free(text);
}

static void check_speed(const ks_tokenizer *t, const char *name, const char *text, size_t n, double bound,
                        double load_s)
{
    ks_err err = { 0 };
    int32_t *ids = NULL;
    size_t n_ids = 0;
    char *copy = malloc(n);
    assert_non_null(copy);
    uint64_t t0 = ks_now_ns();
    memcpy(copy, text, n);
    double copy_s = (double)(ks_now_ns() - t0) * 1e-9;
    t0 = ks_now_ns();
    assert_int_equal(ks_tokenizer_encode(t, text, n, 0, &ids, &n_ids, &err), 0);
    double s = (double)(ks_now_ns() - t0) * 1e-9, rate = (double)n / s * 1e-6;
    print_message("%s: loaded in %.3f s; %zu bytes to %zu ids at %.1f MB/s (memcpy: %.0f MB/s)\n", name, load_s, n,
                  n_ids, rate, (double)n / copy_s * 1e-6);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(rate > bound);
#else
    (void)bound;
#endif
    free(copy);
    free(ids);
}

static void check_tokenizer(const char *dir, const char *name)
{
    char path[1000];
    size_t n, expected_n, number = 0;
    ks_err err = { 0 };
    ks_tokenizer *t = NULL;
    char *expected = NULL;
    (void)snprintf(path, sizeof path, "%s/tokenizers/%s/tokenizer.json.gz", dir, name);
    char *json = unzip(path, &n);
    uint64_t t0 = ks_now_ns();
    if (ks_tokenizer_parse(json, n, NULL, 0, &t, &err)) fail_msg("%s: %s", name, err.msg);
    double load_s = (double)(ks_now_ns() - t0) * 1e-9;
    free(json);
    (void)snprintf(path, sizeof path, "%s/tokenizers/%s/expected.jsonl", dir, name);
    assert_int_equal(ks_file_read(path, 1 << 28, &expected, &expected_n, &err), 0);
    ks_buf mixed;
    ks_buf_init(&mixed, 0);
    for (char *s = expected; *s;) {
        size_t len = strcspn(s, "\n");
        line l;
        read_expected(s, len, &l);
        check_line(t, &l, name, ++number);
        ks_buf_add(&mixed, l.text, l.text_n);
        free(l.text);
        free(l.decoded);
        free(l.ids[0]);
        free(l.ids[1]);
        s += len + (s[len] == '\n');
    }
    assert_true(number > 0);
    print_message("%s: %zu lines are identical\n", name, number);
    check_speed(t, name, mixed.p, mixed.n, 0.3, load_s);
    char *english = NULL;
    (void)snprintf(path, sizeof path, "%s/demo-model/heldout.txt", dir);
    if (ks_file_exists(path)) {
        assert_int_equal(ks_file_read(path, 1 << 28, &english, &n, &err), 0);
        check_speed(t, name, english, n, 1.0, load_s);
    }
    free(english);
    free(expected);
    ks_buf_fini(&mixed);
    ks_tokenizer_close(t);
}

static void real_tokenizers_give_the_reference_ids(void **state)
{
    (void)state;
    const char *dir = data_dir();
    char path[1000];
    int n = 0;
    (void)snprintf(path, sizeof path, "%s/tokenizers", dir);
    DIR *d = opendir(path);
    if (!d) fail_msg("%s: %s", path, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        (void)snprintf(path, sizeof path, "%s/tokenizers/%.200s/tokenizer.json.gz", dir, e->d_name);
        if (e->d_name[0] == '.' || !ks_file_exists(path)) continue;
        check_tokenizer(dir, e->d_name);
        n++;
    }
    (void)closedir(d);
    assert_true(n > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(real_tokenizers_give_the_reference_ids) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
