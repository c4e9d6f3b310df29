/* krasis run: one prompt in, the answer on stdout. krasis chat: the same in a loop with a history. */
#include "app/client.h"
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include <errno.h>
#include <krasis/json.h>
#include <signal.h>
#include <unistd.h>

static atomic_bool interrupted;

static void on_signal(int sig)
{
    (void)sig;
    atomic_store(&interrupted, true);
}

static void catch_interrupt(void)
{
    struct sigaction sa = { .sa_handler = on_signal };
    sigaction(SIGINT, &sa, NULL);
}

static int read_stdin(ks_buf *b, ks_err *err)
{
    char piece[65536];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, stdin)) > 0) ks_buf_add(b, piece, n);
    if (ferror(stdin)) return ks_fail(err, KS_E_IO, "cannot read the prompt from standard input");
    return b->failed
               ? ks_fail(err, KS_E_LIMIT, "the prompt on standard input is too large: at most %zu bytes", b->limit)
               : 0;
}

/* --prompt, or the words of the command line, or standard input. */
static int get_prompt(const ks_config *c, const ks_cli *cli, ks_buf *b, ks_err *err)
{
    ks_buf_init(b, (size_t)256 << 20);
    const char *flag = ks_config_str(c, "prompt");
    ks_buf_adds(b, flag);
    for (uint32_t i = 0; i < cli->n_words; i++) {
        if (b->n) ks_buf_addc(b, ' ');
        ks_buf_adds(b, cli->words[i]);
    }
    int rc = b->n ? 0 : read_stdin(b, err);
    if (rc) return rc;
    if (b->failed) return ks_fail(err, KS_E_NOMEM, "out of memory for the prompt");
    if (b->n == 0)
        return ks_fail(err, KS_E_CONFIG, "no prompt: give it as --prompt TEXT, as words, or on standard input");
    return ks_utf8_valid(b->p, b->n) == b->n
               ? 0
               : ks_fail(err, KS_E_INVAL, "the prompt is not valid UTF-8 (byte %zu)", ks_utf8_valid(b->p, b->n));
}

static void sampling_from(const ks_config *c, ks_request *rq)
{
    ks_sampling_init(&rq->sampling);
    rq->sampling.temperature = (float)ks_config_float(c, "temperature"); /* NaN: the model's */
    if (ks_config_int(c, "seed") >= 0) {
        rq->sampling.has_seed = 1;
        rq->sampling.seed = (uint64_t)ks_config_int(c, "seed");
    }
    rq->max_tokens = (int32_t)ks_config_int(c, "max-tokens");
    if (rq->max_tokens == 0) rq->max_tokens = -1;
    rq->n_logprobs = -1;
    rq->n = 1;
    rq->size = (uint32_t)sizeof *rq;
}

static void add_message(ks_jw *w, const char *role, const char *text, size_t n)
{
    ks_jw_object(w);
    ks_jw_key(w, "role");
    ks_jw_str(w, role);
    ks_jw_key(w, "content");
    ks_jw_strn(w, text, n);
    ks_jw_object_end(w);
}

static void print_speed(const ks_client *cl)
{
    const ks_usage *u = &cl->usage;
    double decode =
        u->decode_ms > 0 && u->completion_tokens > 1 ? (u->completion_tokens - 1) * 1000.0 / u->decode_ms : 0;
    fprintf(stderr, "[%u prompt tokens (%u cached) in %.0f ms, %u new tokens, %.1f tokens/s]\n", u->prompt_tokens,
            u->cached_tokens, u->prefill_ms, u->completion_tokens, decode);
}

static int answer(ks_app *a, const ks_config *c, const char *prompt, size_t n, ks_err *err)
{
    ks_request rq = { 0 };
    ks_jw w;
    ks_jw_init(&w);
    sampling_from(c, &rq);
    if (ks_config_bool(c, "raw") || !a->chat) {
        rq.text = prompt;
        rq.text_bytes = n;
    } else {
        ks_jw_array(&w);
        add_message(&w, "user", prompt, n);
        ks_jw_array_end(&w);
        rq.messages = w.text;
        rq.messages_bytes = w.n;
    }
    ks_client cl;
    ks_client_init(&cl, ks_engine_api_get(), a->engine, stdout);
    cl.stop = &interrupted;
    int rc = ks_jw_done(&w) ? ks_fail(err, KS_E_NOMEM, "out of memory for the prompt") : ks_client_begin(&cl, &rq, err);
    if (!rc) rc = ks_client_wait(&cl, err);
    if (!rc) {
        putchar('\n');
        if (fflush(stdout)) rc = ks_fail(err, KS_E_IO, "standard output: %s", strerror(errno));
        print_speed(&cl);
    }
    ks_client_fini(&cl);
    ks_jw_fini(&w);
    return rc;
}

int ks_cmd_run(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    ks_buf prompt;
    int rc = get_prompt(c, cli, &prompt, &err);
    catch_interrupt();
    if (!rc) rc = ks_app_open(c, &a, &err);
    if (!rc) rc = answer(&a, c, prompt.p, prompt.n, &err);
    ks_app_close(&a);
    ks_buf_fini(&prompt);
    return rc ? ks_app_fail(&err) : 0;
}

/* ---- chat */

static const char chat_help[] = "/clear forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer\n";

/* The whole history goes with every turn; the prefix cache makes that cheap. */
static int turn(ks_app *a, const ks_config *c, ks_buf *history, const char *line, size_t n, ks_err *err)
{
    ks_request rq = { 0 };
    ks_jw w;
    ks_jw_init(&w);
    add_message(&w, "user", line, n);
    if (history->n) ks_buf_addc(history, ',');
    ks_buf_add(history, w.text, w.n);
    ks_buf all;
    ks_buf_init(&all, 0);
    ks_buf_addc(&all, '[');
    ks_buf_add(&all, history->p, history->n);
    ks_buf_addc(&all, ']');
    sampling_from(c, &rq);
    rq.messages = all.p;
    rq.messages_bytes = all.n;
    ks_client cl;
    ks_client_init(&cl, ks_engine_api_get(), a->engine, stdout);
    cl.stop = &interrupted;
    atomic_store(&interrupted, false);
    int rc = ks_jw_done(&w) || all.failed ? ks_fail(err, KS_E_NOMEM, "out of memory for the conversation")
                                          : ks_client_begin(&cl, &rq, err);
    if (!rc) rc = ks_client_wait(&cl, err);
    if (!rc) {
        putchar('\n');
        print_speed(&cl);
        ks_jw_reset(&w);
        add_message(&w, "assistant", cl.text.p ? cl.text.p : "", cl.text.n);
        ks_buf_addc(history, ',');
        ks_buf_add(history, w.text, w.n);
    }
    ks_client_fini(&cl);
    ks_buf_fini(&all);
    ks_jw_fini(&w);
    return rc;
}

static int chat_loop(ks_app *a, const ks_config *c, ks_err *err)
{
    ks_buf history;
    char *line = NULL;
    size_t cap = 0;
    int rc = 0;
    bool terminal = isatty(STDIN_FILENO);
    ks_buf_init(&history, (size_t)64 << 20);
    if (terminal) fputs(chat_help, stderr);
    for (;;) {
        if (terminal) fputs("> ", stderr);
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0 && atomic_exchange(&interrupted, false) && terminal) { /* Ctrl-C at the prompt: a new line */
            clearerr(stdin);
            fputc('\n', stderr);
            continue;
        }
        if (n < 0) break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (n == 0) continue;
        if (strcmp(line, "/exit") == 0) break;
        if (strcmp(line, "/clear") == 0) {
            history.n = 0;
            continue;
        }
        if (line[0] == '/') {
            fputs(chat_help, stderr);
            continue;
        }
        size_t before = history.n;
        if (ks_utf8_valid(line, (size_t)n) != (size_t)n) {
            fputs("krasis: that line is not valid UTF-8\n", stderr);
            continue;
        }
        if ((rc = turn(a, c, &history, line, (size_t)n, err))) {
            if (rc != KS_E_CONTEXT && rc != KS_E_INVAL) break;
            fprintf(stderr, "krasis: %s\n", err->msg);
            history.n = before; /* the turn did not happen */
            rc = 0;
        }
    }
    free(line);
    ks_buf_fini(&history);
    return rc;
}

int ks_cmd_chat(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    int rc = cli->n_words ? ks_fail(&err, KS_E_CONFIG, "chat takes no words: '%s'", cli->words[0])
                          : ks_app_open(c, &a, &err);
    catch_interrupt();
    if (!rc && !a.chat)
        rc = ks_fail(&err, KS_E_UNSUPPORTED, "model '%s' has no chat template: use `krasis run --raw`", a.name);
    if (!rc) rc = chat_loop(&a, c, &err);
    ks_app_close(&a);
    return rc ? ks_app_fail(&err) : 0;
}
