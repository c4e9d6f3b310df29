/* krasis logits, generate-ids, perplexity: the engine seen from outside, one sequence, exact numbers. */
#include "app/cmd.h"
#include "app/load.h"
#include "app/safetensors_out.h"
#include "base/base.h"
#include "base/file.h"
#include "base/progress.h"
#include <ctype.h>
#include <errno.h>
#include <krasis/json.h>
#include <math.h>

typedef struct id_list {
    int32_t *ids;
    uint32_t n;
} id_list;

static int parse_ids(const char *text, const char *what, id_list *ret, ks_err *err)
{
    size_t cap = strlen(text) / 2 + 1;
    int32_t *ids = malloc(cap * sizeof *ids);
    uint32_t n = 0;
    if (!ids) return ks_fail(err, KS_E_NOMEM, "out of memory for the tokens of %s", what);
    for (const char *p = text; *p;) {
        if (isspace((unsigned char)*p) || *p == ',' || *p == '[' || *p == ']') {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (end == p || errno || v < 0 || v > INT32_MAX) {
            free(ids);
            return ks_fail(err, KS_E_CONFIG, "%s: '%.20s' is no token id: give numbers from 0, separated by commas",
                           what, p);
        }
        ids[n++] = (int32_t)v;
        p = end;
    }
    if (n == 0) {
        free(ids);
        return ks_fail(err, KS_E_CONFIG, "%s holds no token id: give numbers separated by commas", what);
    }
    *ret = (id_list) { ids, n };
    return 0;
}

static int get_ids(const ks_config *c, id_list *ret, ks_err *err)
{
    const char *inline_ids = ks_config_str(c, "ids"), *file = ks_config_str(c, "ids-file");
    if ((*inline_ids != 0) == (*file != 0))
        return ks_fail(err, KS_E_CONFIG, "give the tokens either as --ids 1,2,3 or as --ids-file FILE");
    if (*inline_ids) return parse_ids(inline_ids, "--ids", ret, err);
    char *text = NULL;
    int rc = ks_file_read(file, (size_t)256 << 20, &text, NULL, err);
    if (!rc) rc = parse_ids(text, file, ret, err);
    free(text);
    return rc;
}

static bool by_token(const ks_config *c)
{
    return strcmp(ks_config_str(c, "path"), "decode") == 0;
}

/* Rows from `pos`, in one prefill or token by token. hidden: (taps, n, d) or NULL. */
static int eval(ks_app *a, bool single, const int32_t *ids, uint32_t n, uint32_t pos, float *logits, float *hidden,
                ks_err *err)
{
    const ks_graph *g = &a->model.graph;
    if (!single) return ks_engine_eval(a->engine, 0, ids, n, pos, logits, hidden, err);
    float *one = hidden ? malloc((size_t)g->n_taps * g->d_model * sizeof *one) : NULL;
    int rc = hidden && !one ? ks_fail(err, KS_E_NOMEM, "out of memory for the hidden states") : 0;
    for (uint32_t i = 0; i < n && !rc; i++) {
        rc = ks_engine_eval(a->engine, 0, ids + i, 1, pos + i, logits ? logits + (size_t)i * g->n_vocab : NULL, one,
                            err);
        for (uint32_t t = 0; hidden && !rc && t < g->n_taps; t++)
            memcpy(hidden + ((size_t)t * n + i) * g->d_model, one + (size_t)t * g->d_model, g->d_model * sizeof *one);
    }
    free(one);
    return rc;
}

static int write_logits(ks_app *a, const ks_config *c, const id_list *l, ks_err *err)
{
    const ks_graph *g = &a->model.graph;
    const char *output = ks_config_str(c, "output");
    bool want_hidden = ks_config_bool(c, "hidden");
    float *logits = malloc((size_t)l->n * g->n_vocab * sizeof *logits);
    float *hidden = want_hidden ? malloc((size_t)g->n_taps * l->n * g->d_model * sizeof *hidden) : NULL;
    int rc = logits && (hidden || !want_hidden)
                 ? 0
                 : ks_fail(err, KS_E_NOMEM, "out of memory for the logits of %u tokens", l->n);
    if (!rc) rc = eval(a, by_token(c), l->ids, l->n, 0, logits, hidden, err);
    ks_out_tensor t[2] = { { "logits", logits, 2, { l->n, g->n_vocab } },
                           { "hidden", hidden, 3, { g->n_taps, l->n, g->d_model } } };
    if (!rc) rc = ks_safetensors_write(output, t, want_hidden ? 2 : 1, err);
    free(logits);
    free(hidden);
    return rc;
}

int ks_cmd_logits(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    id_list l = { 0 };
    int rc =
        cli->n_words ? ks_fail(&err, KS_E_CONFIG, "logits takes no words: '%s'", cli->words[0]) : get_ids(c, &l, &err);
    if (!rc && !*ks_config_str(c, "output"))
        rc = ks_fail(&err, KS_E_CONFIG, "no --output: give the name of the safetensors file to write");
    if (!rc) rc = ks_app_open(c, &a, &err);
    if (!rc) rc = write_logits(&a, c, &l, &err);
    ks_app_close(&a);
    free(l.ids);
    return rc ? ks_app_fail(&err) : 0;
}

static int32_t argmax(const float *z, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (z[i] > z[best]) best = i;
    return (int32_t)best;
}

static int generate(ks_app *a, const ks_config *c, const id_list *l, ks_jw *w, ks_err *err)
{
    const ks_graph *g = &a->model.graph;
    uint32_t n = (uint32_t)ks_config_int(c, "n");
    if ((uint64_t)l->n - 1 + n > a->context) /* the last one is not read again */
        return ks_fail(err, KS_E_CONTEXT,
                       "%u tokens and %u more do not fit the context of %u: lower -n or raise --context", l->n, n,
                       a->context);
    float *z = malloc((size_t)g->n_vocab * sizeof *z);
    if (!z) return ks_fail(err, KS_E_NOMEM, "out of memory for the logits");
    int rc = l->n > 1 ? eval(a, by_token(c), l->ids, l->n - 1, 0, NULL, NULL, err) : 0;
    int32_t id = l->ids[l->n - 1];
    ks_jw_object(w);
    ks_jw_key(w, "ids");
    ks_jw_array(w);
    for (uint32_t i = 0; i < n && !rc; i++) {
        if ((rc = ks_engine_eval(a->engine, 0, &id, 1, l->n - 1 + i, z, NULL, err))) break;
        id = argmax(z, g->n_vocab);
        ks_jw_i64(w, id);
    }
    ks_jw_array_end(w);
    ks_jw_object_end(w);
    free(z);
    return rc;
}

static int print_json(ks_jw *w, ks_err *err)
{
    if (ks_jw_done(w)) return ks_fail(err, KS_E_NOMEM, "out of memory for the result");
    if (fwrite(w->text, 1, w->n, stdout) != w->n || putchar('\n') == EOF || fflush(stdout))
        return ks_fail(err, KS_E_IO, "standard output: %s", strerror(errno));
    return 0;
}

int ks_cmd_generate_ids(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    id_list l = { 0 };
    ks_jw w;
    ks_jw_init(&w);
    int rc = cli->n_words ? ks_fail(&err, KS_E_CONFIG, "generate-ids takes no words: '%s'", cli->words[0])
                          : get_ids(c, &l, &err);
    if (!rc) rc = ks_app_open(c, &a, &err);
    if (!rc) rc = generate(&a, c, &l, &w, &err);
    if (!rc) rc = print_json(&w, &err);
    ks_app_close(&a);
    ks_jw_fini(&w);
    free(l.ids);
    return rc ? ks_app_fail(&err) : 0;
}

/* ---- perplexity: sliding windows; each token is scored once, with at least window - stride tokens before it
 * where there are so many (the usual strided evaluation of fixed-length models) */

static double nll_of(const float *z, uint32_t n, int32_t id)
{
    double max = z[0], sum = 0;
    for (uint32_t i = 1; i < n; i++)
        if (z[i] > max) max = z[i];
    for (uint32_t i = 0; i < n; i++) sum += exp((double)z[i] - max);
    return max + log(sum) - (double)z[id];
}

static int score_window(ks_app *a, bool single, const int32_t *ids, uint32_t n, uint32_t n_score, float *z, double *nll,
                        ks_err *err)
{
    uint32_t vocab = a->model.graph.n_vocab, skip = n - 1 - n_score;
    ks_engine_eval_reset(a->engine);
    int rc = skip ? eval(a, single, ids, skip, 0, NULL, NULL, err) : 0;
    for (uint32_t done = 0; done < n_score && !rc;) { /* the logits of a whole window may be gigabytes */
        uint32_t m = KS_MIN(n_score - done, 64);
        rc = eval(a, single, ids + skip + done, m, skip + done, z, NULL, err);
        for (uint32_t i = 0; i < m && !rc; i++) *nll += nll_of(z + (size_t)i * vocab, vocab, ids[skip + done + i + 1]);
        done += m;
    }
    return rc;
}

static int perplexity(ks_app *a, const ks_config *c, const int32_t *ids, uint32_t n, ks_jw *w, ks_err *err)
{
    uint32_t window = (uint32_t)ks_config_int(c, "window"), stride = (uint32_t)ks_config_int(c, "stride");
    if (stride > window)
        return ks_fail(err, KS_E_CONFIG,
                       "--stride %u is more than --window %u: tokens between windows would not be scored", stride,
                       window);
    if (n < 2) return ks_fail(err, KS_E_CONFIG, "the file has %u tokens: at least 2 are needed", n);
    float *z = malloc((size_t)64 * a->model.graph.n_vocab * sizeof *z);
    if (!z) return ks_fail(err, KS_E_NOMEM, "out of memory for the logits");
    double nll = 0;
    uint64_t count = 0;
    uint32_t prev = 0;
    int rc = 0;
    ks_progress *bar = ks_progress_begin("perplexity", n, "tokens");
    for (uint32_t b = 0; b < n && !rc; b += stride) {
        uint32_t e = KS_MIN(b + window, n), n_score = KS_MIN(e - prev, e - b - 1);
        rc = score_window(a, by_token(c), ids + b, e - b, n_score, z, &nll, err);
        count += n_score;
        ks_progress_add(bar, e - prev);
        prev = e;
        if (e == n) break;
    }
    ks_progress_end(bar);
    free(z);
    ks_jw_object(w);
    ks_jw_key(w, "ppl");
    ks_jw_f64(w, exp(nll / (double)count));
    ks_jw_key(w, "tokens");
    ks_jw_u64(w, count);
    ks_jw_object_end(w);
    return rc;
}

static int tokenize_file(ks_app *a, const ks_config *c, int32_t **ids, size_t *n, ks_err *err)
{
    const char *file = ks_config_str(c, "file");
    if (!a->tok) return ks_fail(err, KS_E_UNSUPPORTED, "model '%s' has no tokenizer", a->name);
    char *text = NULL;
    size_t bytes = 0;
    int rc = ks_file_read(file, (size_t)1 << 30, &text, &bytes, err);
    if (!rc) rc = ks_tokenizer_encode(a->tok, text, bytes, 0, ids, n, err);
    free(text);
    int64_t limit = ks_config_int(c, "limit");
    if (!rc && limit > 0 && (uint64_t)limit < *n) *n = (size_t)limit;
    if (!rc && *n > UINT32_MAX) rc = ks_fail(err, KS_E_LIMIT, "'%s' has %zu tokens: use --limit", file, *n);
    return rc;
}

int ks_cmd_perplexity(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    int32_t *ids = NULL;
    size_t n = 0;
    ks_jw w;
    ks_jw_init(&w);
    int rc = cli->n_words                 ? ks_fail(&err, KS_E_CONFIG, "perplexity takes no words: '%s'", cli->words[0])
             : !*ks_config_str(c, "file") ? ks_fail(&err, KS_E_CONFIG, "no --file: give the text to score")
                                          : ks_app_open(c, &a, &err);
    if (!rc) rc = tokenize_file(&a, c, &ids, &n, &err);
    if (!rc) rc = perplexity(&a, c, ids, (uint32_t)n, &w, &err);
    if (!rc) rc = print_json(&w, &err);
    ks_app_close(&a);
    ks_jw_fini(&w);
    free(ids);
    return rc ? ks_app_fail(&err) : 0;
}
