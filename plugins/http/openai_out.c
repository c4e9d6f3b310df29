/* From the engine's callbacks to OpenAI's JSON: chunks of a stream, or one whole answer. [engine threads] */
#include "http.h"

#include <math.h>
#include <stdlib.h>

#define MAX_TOKEN_TEXT 1024u                /* longer tokens are spelled as bytes and cut off */
#define MAX_UNREAD_BYTES ((size_t)32 << 20) /* of a stream whose client does not read: then it is cancelled */

static void member_str(ks_jw *w, const char *key, const char *value)
{
    ks_jw_key(w, key);
    ks_jw_str(w, value);
}

void write_error(ks_jw *w, const http_error *e)
{
    ks_jw_object(w);
    ks_jw_key(w, "error");
    ks_jw_object(w);
    member_str(w, "message", e->message);
    member_str(w, "type", e->type);
    member_str(w, "param", *e->param && e->status != 405 ? e->param : NULL);
    member_str(w, "code", e->code);
    ks_jw_object_end(w);
    ks_jw_object_end(w);
}

static void write_logprob(ks_jw *w, float v)
{
    if (isnan(v))
        ks_jw_null(w); /* the first token of a prompt has none */
    else
        ks_jw_f32(w, v < -9999.0f ? -9999.0f : v);
}

/* ---- log-probabilities: chat has a list of objects, completions four parallel lists */

static void write_bytes(ks_jw *w, const ks_logprob *t)
{
    ks_jw_key(w, "bytes");
    ks_jw_array(w);
    for (uint32_t i = 0; i < t->n_bytes; i++) ks_jw_u64(w, (unsigned char)t->bytes[i]);
    ks_jw_array_end(w);
}

static void write_chat_token(ks_jw *w, const ks_token_info *t)
{
    ks_jw_object(w);
    ks_jw_key(w, "token");
    ks_jw_strn(w, t->token.bytes, t->token.n_bytes);
    ks_jw_key(w, "logprob");
    write_logprob(w, t->token.logprob);
    write_bytes(w, &t->token);
    ks_jw_key(w, "top_logprobs");
    ks_jw_array(w);
    for (uint32_t i = 0; i < t->n_top; i++) {
        ks_jw_object(w);
        ks_jw_key(w, "token");
        ks_jw_strn(w, t->top[i].bytes, t->top[i].n_bytes);
        ks_jw_key(w, "logprob");
        write_logprob(w, t->top[i].logprob);
        write_bytes(w, &t->top[i]);
        ks_jw_object_end(w);
    }
    ks_jw_array_end(w);
    ks_jw_object_end(w);
}

/* A token as the lists of completions spell it: its text, or OpenAI's way of writing bytes that are part of a
 * character. Keys of one map differ then, and equal the spelling in `tokens`. */
static void token_text(const ks_logprob *t, char *ret, size_t cap)
{
    uint32_t n = t->n_bytes;
    if (n < cap && ks_utf8_valid(t->bytes, n) == n && !memchr(t->bytes, 0, n)) {
        memcpy(ret, t->bytes, n);
        ret[n] = 0;
        return;
    }
    size_t at = (size_t)snprintf(ret, cap, "bytes:");
    for (uint32_t i = 0; i < n && at + 5 <= cap; i++)
        at += (size_t)snprintf(ret + at, cap - at, "\\x%02x", (unsigned char)t->bytes[i]);
}

static void write_top_map(ks_jw *w, const ks_token_info *t)
{
    char key[MAX_TOKEN_TEXT];
    bool told = false;
    if (isnan(t->token.logprob)) {
        ks_jw_null(w);
        return;
    }
    ks_jw_object(w);
    for (uint32_t i = 0; i <= t->n_top; i++) { /* the token's own comes last if it is none of the best */
        if (i == t->n_top && told) break;
        const ks_logprob *one = i < t->n_top ? &t->top[i] : &t->token;
        told |= one->id == t->token.id;
        token_text(one, key, sizeof key);
        ks_jw_key(w, key);
        write_logprob(w, one->logprob);
    }
    ks_jw_object_end(w);
}

/* The values of the four lists, without their brackets. */
static void write_lists(choice *c, const ks_token_info *t, uint32_t n)
{
    char text[MAX_TOKEN_TEXT];
    for (uint32_t i = 0; i < n; i++) {
        token_text(&t[i].token, text, sizeof text);
        ks_jw_str(&c->logprobs, text);
        write_logprob(&c->lp_values, t[i].token.logprob);
        write_top_map(&c->lp_top, &t[i]);
        ks_jw_u64(&c->lp_offsets, t[i].text_offset);
    }
}

static void write_list(ks_jw *w, const char *key, const ks_jw *items)
{
    ks_jw_key(w, key);
    ks_jw_bytes(w, "[", 1);
    if (items->n) ks_jw_bytes(w, items->text, items->n);
    ks_jw_bytes(w, "]", 1);
    w->comma = true;
}

static void write_logprobs(ks_jw *w, bool chat, const choice *c, bool wanted)
{
    ks_jw_key(w, "logprobs");
    if (!wanted) {
        ks_jw_null(w);
        return;
    }
    ks_jw_object(w);
    if (chat) {
        write_list(w, "content", &c->logprobs);
    } else {
        write_list(w, "tokens", &c->logprobs);
        write_list(w, "token_logprobs", &c->lp_values);
        write_list(w, "top_logprobs", &c->lp_top);
        write_list(w, "text_offset", &c->lp_offsets);
    }
    ks_jw_object_end(w);
}

/* ---- chunks and answers */

static void write_head(ks_jw *w, const request *r, bool chunk)
{
    char id[64];
    ks_jw_object(w);
    (void)snprintf(id, sizeof id, "%s-%s", r->p.chat ? "chatcmpl" : "cmpl", r->answer_id);
    member_str(w, "id", id);
    member_str(w, "object", !r->p.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion");
    ks_jw_key(w, "created");
    ks_jw_i64(w, r->created);
    member_str(w, "model", r->p.model);
    member_str(w, "system_fingerprint", "krasis-" KS_VERSION);
}

static const char *finish_text(int32_t finish)
{
    return finish == KS_FINISH_LENGTH ? "length" : "stop";
}

static void write_usage(ks_jw *w, const ks_usage *u)
{
    ks_jw_key(w, "usage");
    ks_jw_object(w);
    ks_jw_key(w, "prompt_tokens");
    ks_jw_u64(w, u->prompt_tokens);
    ks_jw_key(w, "completion_tokens");
    ks_jw_u64(w, u->completion_tokens);
    ks_jw_key(w, "total_tokens");
    ks_jw_u64(w, (uint64_t)u->prompt_tokens + u->completion_tokens);
    ks_jw_key(w, "prompt_tokens_details");
    ks_jw_object(w);
    ks_jw_key(w, "cached_tokens");
    ks_jw_u64(w, u->cached_tokens);
    ks_jw_object_end(w);
    ks_jw_object_end(w);
}

void write_answer(request *r, ks_jw *w)
{
    bool wanted = r->p.rq.n_logprobs >= 0;
    write_head(w, r, false);
    ks_jw_key(w, "choices");
    ks_jw_array(w);
    for (uint32_t i = 0; i < r->n_choices; i++) {
        const choice *c = &r->choices[i];
        ks_jw_object(w);
        ks_jw_key(w, "index");
        ks_jw_u64(w, i);
        if (r->p.chat) {
            ks_jw_key(w, "message");
            ks_jw_object(w);
            member_str(w, "role", "assistant");
            ks_jw_key(w, "content");
            ks_jw_strn(w, c->text.n ? c->text.text : "", c->text.n);
            ks_jw_object_end(w);
        } else {
            ks_jw_key(w, "text");
            ks_jw_strn(w, c->text.n ? c->text.text : "", c->text.n);
        }
        write_logprobs(w, r->p.chat, c, wanted);
        member_str(w, "finish_reason", finish_text(c->finish));
        ks_jw_object_end(w);
        if (c->text.failed || c->logprobs.failed || c->lp_values.failed || c->lp_top.failed || c->lp_offsets.failed)
            w->failed = true;
    }
    ks_jw_array_end(w);
    write_usage(w, &r->usage);
    ks_jw_object_end(w);
}

static void begin_event(request *r)
{
    ks_jw_bytes(&r->out, "data: ", 6);
    r->out.comma = false;
}

static void end_event(request *r)
{
    ks_jw_bytes(&r->out, "\n\n", 2);
    r->out.comma = false;
    r->last_output_ns = http_now_ns();
}

/* One chunk of choice `index`: text (NULL: none), the role first, the finish reason last. */
static void write_chunk(request *r, uint32_t index, const char *role, const char *text, size_t n, const choice *lp,
                        int32_t finish)
{
    ks_jw *w = &r->out;
    begin_event(r);
    write_head(w, r, true);
    ks_jw_key(w, "choices");
    ks_jw_array(w);
    ks_jw_object(w);
    ks_jw_key(w, "index");
    ks_jw_u64(w, index);
    if (r->p.chat) {
        ks_jw_key(w, "delta");
        ks_jw_object(w);
        if (role) member_str(w, "role", role);
        if (text) {
            ks_jw_key(w, "content");
            ks_jw_strn(w, text, n);
        }
        ks_jw_object_end(w);
    } else {
        ks_jw_key(w, "text");
        ks_jw_strn(w, text ? text : "", n);
    }
    write_logprobs(w, r->p.chat, lp, lp != NULL);
    member_str(w, "finish_reason", finish ? finish_text(finish) : NULL);
    ks_jw_object_end(w);
    ks_jw_array_end(w);
    ks_jw_object_end(w);
    end_event(r);
}

/* ---- the sink */

static int sink_begin(void *arg, const ks_usage *u)
{
    job *j = arg;
    request *r = j->rq;
    (void)u;
    pthread_mutex_lock(&r->mu);
    if (r->p.stream && r->p.chat)
        for (uint32_t i = 0; i < r->n_choices / r->p.n_prompts; i++)
            write_chunk(r, j->base + i, "assistant", "", 0, NULL, 0);
    r->n_begun++;
    int stop = r->gone;
    if (r->n_begun == r->n_jobs && r->p.stream) request_wake(r);
    pthread_mutex_unlock(&r->mu);
    return stop;
}

static void add_logprobs(const request *r, choice *c, const ks_token_info *tokens, uint32_t n)
{
    if (r->p.chat)
        for (uint32_t i = 0; i < n; i++) write_chat_token(&c->logprobs, &tokens[i]);
    else
        write_lists(c, tokens, n);
}

static int sink_text(void *arg, uint32_t index, const char *text, size_t n, const ks_token_info *tokens,
                     uint32_t n_tokens)
{
    job *j = arg;
    request *r = j->rq;
    pthread_mutex_lock(&r->mu);
    choice *c = &r->choices[j->base + index];
    if (!r->p.stream) {
        ks_jw_bytes(&c->text, text, n);
        add_logprobs(r, c, tokens, n_tokens);
    } else if (n || n_tokens) {
        choice lp = { 0 };
        add_logprobs(r, &lp, tokens, n_tokens);
        write_chunk(r, j->base + index, NULL, text, n, r->p.rq.n_logprobs >= 0 ? &lp : NULL, 0);
        ks_jw_fini(&lp.logprobs);
        ks_jw_fini(&lp.lp_values);
        ks_jw_fini(&lp.lp_top);
        ks_jw_fini(&lp.lp_offsets);
        if (r->streaming) request_wake(r);
    }
    int stop = r->gone || r->failed || r->out.failed || c->text.failed || r->out.n - r->out_at > MAX_UNREAD_BYTES;
    pthread_mutex_unlock(&r->mu);
    return stop;
}

static void sink_finish(void *arg, uint32_t index, int32_t finish)
{
    job *j = arg;
    request *r = j->rq;
    pthread_mutex_lock(&r->mu);
    r->choices[j->base + index].finish = finish;
    if (r->p.stream && (finish == KS_FINISH_STOP || finish == KS_FINISH_LENGTH)) {
        write_chunk(r, j->base + index, NULL, NULL, 0, NULL, finish);
        if (r->streaming) request_wake(r);
    }
    pthread_mutex_unlock(&r->mu);
}

static void end_stream(request *r)
{
    if (r->failed || r->gone) {
        http_error e = r->error;
        if (!r->failed) http_fail(&e, 503, "unavailable_error", NULL, NULL, "the request was cancelled");
        begin_event(r);
        write_error(&r->out, &e);
        end_event(r);
    } else if (r->p.include_usage) {
        begin_event(r);
        write_head(&r->out, r, true);
        ks_jw_key(&r->out, "choices");
        ks_jw_array(&r->out);
        ks_jw_array_end(&r->out);
        write_usage(&r->out, &r->usage);
        ks_jw_object_end(&r->out);
        end_event(r);
    }
    ks_jw_bytes(&r->out, "data: [DONE]\n\n", 14);
}

static void sink_done(void *arg, const ks_usage *u, const ks_err *err)
{
    job *j = arg;
    request *r = j->rq;
    pthread_mutex_lock(&r->mu);
    r->usage.prompt_tokens += u->prompt_tokens;
    r->usage.cached_tokens += u->cached_tokens;
    r->usage.completion_tokens += u->completion_tokens;
    bool cancelled = false;
    for (uint32_t i = 0; i < r->n_choices / r->p.n_prompts; i++)
        cancelled |=
            r->choices[j->base + i].finish != KS_FINISH_STOP && r->choices[j->base + i].finish != KS_FINISH_LENGTH;
    if ((err || cancelled) && !r->failed) {
        ks_err stopped = { .code = KS_E_STATE, .msg = "the server is shutting down: the answer was cancelled" };
        http_fail_from(&r->error, err ? err : &stopped);
        r->failed = true;
    }
    if (++r->n_done == r->n_jobs && r->p.stream && r->n_begun) end_stream(r);
    if (r->failed || r->streaming || r->n_done == r->n_jobs) request_wake(r);
    pthread_mutex_unlock(&r->mu);
    request_unref(r, 1);
}

const ks_sink sink_template = { .size = (uint32_t)sizeof(ks_sink),
                                .on_begin = sink_begin,
                                .on_text = sink_text,
                                .on_finish = sink_finish,
                                .on_done = sink_done };
