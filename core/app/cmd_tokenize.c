/* krasis tokenize: JSON lines {"text": ...} on standard input, {"ids": [...], "decoded": ...} for each on standard
 * output.
 *
 * A line that cannot be read or encoded gives {"error": ...} in its place and exit code 2 at the end, so that line n
 * out always belongs to line n in. Each answer is flushed: the other end may be a program that waits for it. */
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include "text/tokenizer.h"

#include <errno.h>
#include <krasis/json.h>
#include <string.h>

#define LINE_DEPTH 64u

/* The line's text, malloc'd. Other members are passed over, so that files with expected ids can be piped in. */
static int read_line(const char *line, size_t n, char **ret, size_t *ret_n, ks_err *err)
{
    ks_json j;
    char *text = NULL;
    ks_json_init(&j, line, n, LINE_DEPTH);
    int t = ks_json_next(&j);
    bool object = t == KS_JSON_OBJECT;
    while (object && (t = ks_json_next(&j)) == KS_JSON_KEY) {
        if (!ks_json_is(&j, "text")) {
            if (ks_json_skip(&j)) break;
            continue;
        }
        if (text) break; /* said twice */
        if ((t = ks_json_next(&j)) != KS_JSON_STRING) break;
        text = malloc(j.tok_bytes + 1);
        if (!text) return ks_fail(err, KS_E_NOMEM, "out of memory for a text of %zu bytes", j.tok_bytes);
        (void)ks_json_str(&j, text, j.tok_bytes + 1, ret_n); /* fits: unescaped text is never longer */
    }
    if (object && t == KS_JSON_OBJECT_END && text && ks_json_next(&j) == KS_JSON_END) {
        *ret = text;
        return 0;
    }
    free(text);
    if (j.error) return ks_json_fail(&j, err, "line");
    return ks_fail(err, KS_E_FORMAT, "the line is not an object with one string 'text'");
}

static int answer(const ks_tokenizer *tok, uint32_t flags, const char *line, size_t n, ks_jw *w, ks_err *err)
{
    char *text = NULL, *decoded = NULL;
    size_t text_n = 0, decoded_n = 0, n_ids = 0;
    int32_t *ids = NULL;
    int rc = read_line(line, n, &text, &text_n, err);
    if (!rc) rc = ks_tokenizer_encode(tok, text, text_n, flags, &ids, &n_ids, err);
    if (!rc) rc = ks_tokenizer_decode(tok, ids, n_ids, false, &decoded, &decoded_n, err);
    if (!rc) {
        ks_jw_object(w);
        ks_jw_key(w, "ids");
        ks_jw_array(w);
        for (size_t i = 0; i < n_ids; i++) ks_jw_i64(w, ids[i]);
        ks_jw_array_end(w);
        ks_jw_key(w, "decoded");
        ks_jw_strn(w, decoded, decoded_n);
        ks_jw_object_end(w);
    }
    free(text);
    free(ids);
    free(decoded);
    return rc;
}

/* Answers until the input ends. *ret_bad: some line was an error. */
static int serve(const ks_tokenizer *tok, uint32_t flags, bool *ret_bad, ks_err *err)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    ks_jw w;
    int rc = 0;
    ks_jw_init(&w);
    while (!rc && (n = getline(&line, &cap, stdin)) >= 0) {
        ks_err why = { 0 };
        ks_jw_reset(&w);
        if (answer(tok, flags, line, (size_t)n, &w, &why)) {
            *ret_bad = true;
            ks_jw_reset(&w);
            ks_jw_object(&w);
            ks_jw_key(&w, "error");
            ks_jw_str(&w, why.msg);
            ks_jw_object_end(&w);
        }
        ks_jw_bytes(&w, "\n", 1);
        if (ks_jw_done(&w))
            rc = ks_fail(err, KS_E_NOMEM, "out of memory for a line of %zd bytes", n);
        else if (fwrite(w.text, 1, w.n, stdout) != w.n || fflush(stdout))
            rc = ks_fail(err, KS_E_IO, "standard output: %s", strerror(errno));
    }
    if (!rc && ferror(stdin)) rc = ks_fail(err, KS_E_IO, "cannot read standard input");
    ks_jw_fini(&w);
    free(line);
    return rc;
}

int ks_cmd_tokenize(ks_config *c, ks_cli *cli)
{
    (void)cli; /* takes no words */
    ks_err err = { 0 };
    ks_tokenizer *tok = NULL;
    bool bad = false;
    const char *dir = ks_config_str(c, "model-path");
    int rc = *dir
                 ? ks_tokenizer_open(dir, &tok, &err)
                 : ks_fail(&err, KS_E_CONFIG, "tokenize: --model-path is not set; give the folder with tokenizer.json");
    if (!rc) rc = serve(tok, ks_config_bool(c, "special") ? KS_TOK_ADD_SPECIAL : 0, &bad, &err);
    ks_tokenizer_close(tok);
    return rc ? ks_app_fail(&err) : bad ? 2 : 0;
}
