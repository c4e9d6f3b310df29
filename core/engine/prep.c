/* Requests: copied and checked when they are submitted, rendered and tokenized on the preparation thread, so
 * that neither a frontend's event loop nor the engine thread waits for a long prompt's text work. */
#include "engine/impl.h"

#include "base/base.h"
#include "base/clock.h"
#include "engine/chat.h"
#include <krasis/json.h>
#include <math.h>

#define KS_MAX_TEXT_BYTES ((size_t)256 << 20) /* a prompt's text: far above any context */

static int copy_text(ks_job *j, const char **text, size_t n, const char *what, ks_err *err)
{
    if (!*text) return 0;
    if (n > KS_MAX_TEXT_BYTES)
        return ks_fail(err, KS_E_LIMIT, "'%s' has %zu bytes: at most %zu are allowed", what, n, KS_MAX_TEXT_BYTES);
    *text = ks_arena_strndup(&j->arena, *text, n);
    return *text ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for a request of %zu bytes", n);
}

static int copy_stops(ks_job *j, ks_err *err)
{
    if (j->rq.n_stop > KS_MAX_STOPS)
        return ks_fail(err, KS_E_INVAL, "'stop' has %u strings: at most %u are allowed", j->rq.n_stop, KS_MAX_STOPS);
    j->stop = ks_arena_calloc(&j->arena, j->rq.n_stop + 1, sizeof *j->stop);
    if (!j->stop) return ks_fail(err, KS_E_NOMEM, "out of memory for the stop strings");
    uint32_t n = 0;
    for (uint32_t i = 0; i < j->rq.n_stop; i++) {
        const char *s = j->rq.stop[i];
        size_t len = strlen(s);
        if (len == 0) continue; /* clients send "" for "none" */
        if (len > 4096) return ks_fail(err, KS_E_INVAL, "a stop string has %zu bytes: at most 4096 are allowed", len);
        if (ks_utf8_valid(s, len) != len) return ks_fail(err, KS_E_INVAL, "stop string %u is not valid UTF-8", i);
        if (!(j->stop[n++] = ks_arena_strndup(&j->arena, s, len)))
            return ks_fail(err, KS_E_NOMEM, "out of memory for the stop strings");
    }
    j->rq.n_stop = n;
    j->rq.stop = j->stop;
    return 0;
}

static int copy_request(ks_engine *e, ks_job *j, const ks_request *rq, ks_err *err)
{
    memcpy(&j->rq, rq, KS_MIN((size_t)rq->size, sizeof j->rq));
    ks_request *r = &j->rq;
    int kinds = (r->messages != NULL) + (r->text != NULL) + (r->ids != NULL);
    if (kinds != 1)
        return ks_fail(err, KS_E_INVAL, "a request needs exactly one of messages, text and token ids; this has %d",
                       kinds);
    if (r->n == 0) r->n = 1;
    if (r->n > KS_MAX_CHOICES) return ks_fail(err, KS_E_INVAL, "'n' is %u: allowed is 1 to %u", r->n, KS_MAX_CHOICES);
    if (r->max_tokens < -1)
        return ks_fail(err, KS_E_INVAL, "'max_tokens' is %d: allowed is a number from 0, or -1 for all that fits",
                       r->max_tokens);
    if (r->max_tokens == 0 && !r->echo)
        return ks_fail(err, KS_E_INVAL, "'max_tokens' is 0: that is allowed only with 'echo'");
    if (r->n_logprobs < -1 || r->n_logprobs > (int32_t)KS_TOP_MAX)
        return ks_fail(err, KS_E_INVAL, "'logprobs' is %d: allowed is 0 to %u", r->n_logprobs, KS_TOP_MAX);
    int rc;
    if ((rc = copy_text(j, &r->messages, r->messages_bytes, "messages", err)) ||
        (rc = copy_text(j, &r->tools, r->tools_bytes, "tools", err)) ||
        (rc = copy_text(j, &r->kwargs, r->kwargs_bytes, "chat_template_kwargs", err)) ||
        (rc = copy_text(j, &r->text, r->text_bytes, "prompt", err)) || (rc = copy_stops(j, err)) ||
        (rc = ks_sampling_resolve(&r->sampling, &e->defaults, &j->sampling, err)))
        return rc;
    const ks_sampling *s = &r->sampling;
    if (s->n_bias) {
        int32_t *ids = ks_arena_calloc(&j->arena, s->n_bias, sizeof *ids);
        float *bias = ks_arena_calloc(&j->arena, s->n_bias, sizeof *bias);
        if (!ids || !bias) return ks_fail(err, KS_E_NOMEM, "out of memory for 'logit_bias'");
        memcpy(ids, s->bias_ids, s->n_bias * sizeof *ids);
        memcpy(bias, s->bias, s->n_bias * sizeof *bias);
        j->sampling.bias_ids = ids;
        j->sampling.bias = bias;
    }
    if (r->ids) {
        if (r->n_ids > UINT32_MAX / 2) return ks_fail(err, KS_E_LIMIT, "the prompt has %zu tokens", r->n_ids);
        j->prompt = malloc((r->n_ids + 1) * sizeof *j->prompt);
        if (!j->prompt) return ks_fail(err, KS_E_NOMEM, "out of memory for a prompt of %zu tokens", r->n_ids);
        memcpy(j->prompt, r->ids, r->n_ids * sizeof *j->prompt);
        j->n_prompt = (uint32_t)r->n_ids;
        r->ids = j->prompt;
    }
    return 0;
}

int ks__job_new(ks_engine *e, const ks_request *rq, const ks_sink *s, ks_job **ret, ks_err *err)
{
    if (!rq || !s || !s->on_begin || !s->on_text || !s->on_finish || !s->on_done)
        return ks_fail(err, KS_E_INVAL, "submit needs a request and a sink with all four callbacks");
    ks_job *j = ks_calloc(1, sizeof *j);
    if (!j) return ks_fail(err, KS_E_NOMEM, "out of memory for a request");
    ks_arena_init(&j->arena, 0);
    j->sink = *s;
    j->usage.size = (uint32_t)sizeof j->usage;
    j->t_submit = ks_now_ns();
    int rc = copy_request(e, j, rq, err);
    if (rc) {
        ks__job_free(j);
        return rc;
    }
    *ret = j;
    return 0;
}

void ks__job_free(ks_job *j)
{
    if (!j) return;
    for (uint32_t i = 0; i < KS_MAX_CHOICES; i++) {
        ks_answer *a = &j->answers[i];
        free(a->tok);
        free(a->pages);
        ks_sampler_fini(&a->sampler);
        ks_emit_fini(&a->emit);
    }
    free(j->prompt);
    ks_arena_fini(&j->arena);
    free(j);
}

/* The template's variables: the request's own first, then ours, which they may not replace. */
static const char *const reserved[] = { "messages",  "tools",    "add_generation_prompt", "bos_token", "eos_token",
                                        "pad_token", "unk_token" };

static int copy_kwargs(ks_jw *w, const ks_job *j, ks_err *err)
{
    if (!j->rq.kwargs) return 0;
    ks_json r;
    ks_json_init(&r, j->rq.kwargs, j->rq.kwargs_bytes, 64);
    int t = ks_json_next(&r);
    if (t > 0 && t != KS_JSON_OBJECT) return ks_fail(err, KS_E_INVAL, "'chat_template_kwargs' must be an object");
    while (t > 0 && (t = ks_json_next(&r)) == KS_JSON_KEY) {
        char key[128];
        if (ks_json_str(&r, key, sizeof key, NULL))
            return ks_fail(err, KS_E_INVAL, "'chat_template_kwargs' has a key of more than 127 bytes");
        for (size_t i = 0; i < KS_COUNT(reserved); i++)
            if (strcmp(key, reserved[i]) == 0)
                return ks_fail(err, KS_E_INVAL, "'chat_template_kwargs' may not set '%s'", key);
        size_t from = r.at;
        if (ks_json_skip(&r)) break;
        while (from < r.at && (r.text[from] == ':' || r.text[from] == ' ' || r.text[from] == '\t' ||
                               r.text[from] == '\n' || r.text[from] == '\r'))
            from++;
        ks_jw_key(w, key);
        ks_jw_raw(w, r.text + from, r.at - from);
    }
    if (r.error) return ks_json_fail(&r, err, "chat_template_kwargs");
    return 0;
}

static int render_once(ks_engine *e, ks_job *j, uint32_t flags, ks_rendered *ret, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_object(&w);
    int rc = copy_kwargs(&w, j, err);
    ks_jw_key(&w, "messages");
    if (!rc) rc = ks_chat_messages(j->rq.messages, j->rq.messages_bytes, flags, &w, err);
    ks_jw_key(&w, "tools"); /* null without tools, as the reference has it: some templates ask `is defined` */
    if (j->rq.tools)
        ks_jw_raw(&w, j->rq.tools, j->rq.tools_bytes);
    else
        ks_jw_null(&w);
    ks_jw_key(&w, "add_generation_prompt");
    ks_jw_bool(&w, true);
    for (size_t i = 3; i < KS_COUNT(reserved); i++) {
        const char *name = ks_tokenizer_name(e->o.tok, reserved[i]);
        if (!name || !*name) continue; /* undefined, as the reference leaves it */
        ks_jw_key(&w, reserved[i]);
        ks_jw_str(&w, name);
    }
    ks_jw_object_end(&w);
    if (!rc && ks_jw_done(&w)) rc = ks_fail(err, KS_E_NOMEM, "out of memory for the template's variables");
    if (!rc && (rc = ks_template_render_spans(e->o.chat, w.text, w.n, ks_now_unix(), NULL, ret, err)))
        (void)ks_err_wrap(err, "the model's chat template"); /* the code stays the same */
    ks_jw_fini(&w);
    return rc;
}

/* Most templates walk through a tool call's arguments as an object; a few print them as the string that the API
 * has and fail on an object: those get a second try. */
static int render(ks_engine *e, ks_job *j, ks_rendered *ret, ks_err *err)
{
    if (!e->o.chat || !e->o.tok)
        return ks_fail(
            err, KS_E_UNSUPPORTED,
            "model '%s' has no chat template: use the completions endpoint, or add a chat_template.jinja to its folder",
            e->name);
    uint32_t flags = e->o.chat_developer ? KS_CHAT_KEEP_DEVELOPER : 0;
    ks_err first = { 0 };
    int rc = render_once(e, j, flags, ret, &first);
    if (rc && memmem(j->rq.messages, j->rq.messages_bytes, "\"tool_calls\"", 12) &&
        render_once(e, j, flags | KS_CHAT_KEEP_ARGUMENTS, ret, NULL) == 0)
        return 0;
    return rc ? ks_fail(err, rc, "%s", first.msg) : 0;
}

static int tokenize(ks_engine *e, ks_job *j, ks_err *err)
{
    if (j->rq.ids) {
        for (uint32_t i = 0; i < j->n_prompt; i++)
            if (j->prompt[i] < 0 || (uint32_t)j->prompt[i] >= e->g->n_vocab)
                return ks_fail(err, KS_E_INVAL, "prompt token %u is %d: the vocabulary has %u", i, j->prompt[i],
                               e->g->n_vocab);
        return 0;
    }
    size_t n = 0;
    int rc = 0;
    if (j->rq.messages) { /* the template writes BOS itself, and control tokens are its alone */
        ks_rendered x;
        if ((rc = render(e, j, &x, err))) return rc;
        rc = ks_tokenizer_encode_spans(e->o.tok, x.text, x.n, x.request, x.n_request, 0, &j->prompt, &n, err);
        ks_rendered_fini(&x);
    } else if (!e->o.tok) {
        return ks_fail(err, KS_E_UNSUPPORTED, "model '%s' has no tokenizer: send token ids", e->name);
    } else {
        rc = ks_tokenizer_encode(e->o.tok, j->rq.text, j->rq.text_bytes, KS_TOK_ADD_SPECIAL, &j->prompt, &n, err);
    }
    if (!rc && n > UINT32_MAX / 2) rc = ks_fail(err, KS_E_LIMIT, "the prompt has %zu tokens", n);
    j->n_prompt = (uint32_t)n;
    for (uint32_t i = 0; !rc && i < j->n_prompt; i++)
        if (j->prompt[i] < 0 || (uint32_t)j->prompt[i] >= e->g->n_vocab)
            rc = ks_fail(err, KS_E_FORMAT, "the tokenizer gave token %d, but the model's vocabulary has %u",
                         j->prompt[i], e->g->n_vocab);
    return rc;
}

static int prepare_answer(ks_engine *e, ks_job *j, uint32_t c, ks_err *err)
{
    ks_answer *a = &j->answers[c];
    a->job = j;
    a->choice = c;
    a->slot = KS_NO_SLOT;
    a->cap = j->n_prompt + j->max_new;
    a->n_tok = a->n_prompt = j->n_prompt;
    uint32_t n_pages = (a->cap + KS_PAGE_TOK - 1) / KS_PAGE_TOK;
    a->tok = malloc(((size_t)a->cap + 1) * sizeof *a->tok);
    a->pages = malloc(((size_t)n_pages + 1) * sizeof *a->pages);
    if (!a->tok || !a->pages) return ks_fail(err, KS_E_NOMEM, "out of memory for an answer of %u tokens", a->cap);
    memcpy(a->tok, j->prompt, j->n_prompt * sizeof *a->tok);
    uint32_t n_tokens = e->o.tok ? ks_tokenizer_size(e->o.tok) : e->g->n_vocab;
    uint64_t seed = j->sampling.has_seed ? j->sampling.seed : ks_now_ns() ^ (j->id << 32);
    int rc = ks_sampler_init(&a->sampler, &j->sampling, e->g->n_vocab, n_tokens, seed + c, err);
    if (rc) return rc;
    for (uint32_t i = 0; i < j->n_prompt; i++) ks_sampler_accept(&a->sampler, j->prompt[i], false);
    return ks_emit_init(&a->emit, e->o.tok, j->stop, j->rq.n_stop, j->rq.n_logprobs, err);
}

int ks__job_prepare(ks_engine *e, ks_job *j, ks_err *err)
{
    int rc = tokenize(e, j, err);
    if (rc) return rc;
    if (j->n_prompt == 0) return ks_fail(err, KS_E_INVAL, "the prompt is empty: at least one token is needed");
    uint32_t room = j->rq.max_tokens == 0 ? 0 : 1;
    if (j->n_prompt + room > e->n_ctx)
        return ks_fail(err, KS_E_CONTEXT,
                       "this model's maximum context length is %u tokens, but the prompt is too long: it has %u "
                       "tokens; shorten it or raise --context",
                       e->n_ctx, j->n_prompt);
    j->max_new = e->n_ctx - j->n_prompt;
    if (j->rq.max_tokens >= 0 && (uint32_t)j->rq.max_tokens < j->max_new) j->max_new = (uint32_t)j->rq.max_tokens;
    j->n_left = j->rq.n;
    j->usage.prompt_tokens = j->n_prompt;
    for (uint32_t c = 0; c < j->rq.n; c++)
        if ((rc = prepare_answer(e, j, c, err))) return rc;
    return 0;
}

/* ---- generation_config.json: the model's own sampling defaults and end tokens */

static int add_eos(ks_engine *e, int64_t id, ks_err *err)
{
    if (id < 0 || id >= (int64_t)e->g->n_vocab)
        return ks_fail(err, KS_E_FORMAT, "generation_config.json: eos_token_id %lld is outside the vocabulary of %u",
                       (long long)id, e->g->n_vocab);
    for (uint32_t i = 0; i < e->n_eos; i++)
        if (e->eos[i] == (int32_t)id) return 0;
    int32_t *p = realloc(e->eos, (e->n_eos + 1) * sizeof *p);
    if (!p) return ks_fail(err, KS_E_NOMEM, "out of memory for the end tokens");
    e->eos = p;
    p[e->n_eos++] = (int32_t)id;
    return 0;
}

static int read_eos(ks_engine *e, ks_json *r, int t, ks_err *err)
{
    int64_t id = 0;
    if (t == KS_JSON_NULL) return 0;
    if (t == KS_JSON_NUMBER) {
        if (ks_json_i64(r, &id)) return ks_fail(err, KS_E_FORMAT, "generation_config.json: eos_token_id is no integer");
        return add_eos(e, id, err);
    }
    if (t != KS_JSON_ARRAY)
        return ks_fail(err, KS_E_FORMAT, "generation_config.json: eos_token_id is neither a number nor a list");
    while ((t = ks_json_next(r)) == KS_JSON_NUMBER) {
        if (ks_json_i64(r, &id))
            return ks_fail(err, KS_E_FORMAT, "generation_config.json: an eos_token_id is no integer");
        int rc = add_eos(e, id, err);
        if (rc) return rc;
    }
    return t == KS_JSON_ARRAY_END
               ? 0
               : ks_fail(err, KS_E_FORMAT, "generation_config.json: eos_token_id holds something that is no number");
}

int ks__generation_defaults(ks_engine *e, const char *json, ks_err *err)
{
    static const struct {
        const char *key;
        size_t offset;
    } floats[] = { { "temperature", offsetof(ks_sampling, temperature) },
                   { "top_p", offsetof(ks_sampling, top_p) },
                   { "min_p", offsetof(ks_sampling, min_p) },
                   { "repetition_penalty", offsetof(ks_sampling, repetition_penalty) } };
    ks_sampling_init(&e->defaults);
    int32_t tok_eos = e->o.tok ? ks_tokenizer_eos(e->o.tok) : -1;
    int rc;
    if (tok_eos >= 0 && (rc = add_eos(e, tok_eos, err))) return rc;
    if (!json) return 0;
    ks_json r;
    bool greedy = false;
    ks_json_init(&r, json, strlen(json), 32);
    int t = ks_json_next(&r);
    if (t > 0 && t != KS_JSON_OBJECT) return ks_fail(err, KS_E_FORMAT, "generation_config.json is not an object");
    while (t > 0 && (t = ks_json_next(&r)) == KS_JSON_KEY) {
        if (ks_json_is(&r, "eos_token_id")) {
            if ((rc = read_eos(e, &r, ks_json_next(&r), err))) return rc;
            continue;
        }
        if (ks_json_is(&r, "do_sample")) {
            greedy = ks_json_next(&r) == KS_JSON_FALSE;
            continue;
        }
        bool top_k = ks_json_is(&r, "top_k"), done = false;
        for (size_t i = 0; i < KS_COUNT(floats) && !done; i++) {
            double v;
            if (!ks_json_is(&r, floats[i].key)) continue;
            done = true;
            t = ks_json_next(&r);
            if (t == KS_JSON_NULL) break;
            if (t != KS_JSON_NUMBER || ks_json_f64(&r, &v))
                return ks_fail(err, KS_E_FORMAT, "generation_config.json: %s is no number", floats[i].key);
            float f = (float)v;
            memcpy((char *)&e->defaults + floats[i].offset, &f, sizeof f);
        }
        if (done) continue;
        int64_t k;
        if (top_k && (t = ks_json_next(&r)) == KS_JSON_NUMBER) {
            if (ks_json_i64(&r, &k) || k < 0 || k > INT32_MAX)
                return ks_fail(err, KS_E_FORMAT, "generation_config.json: top_k is no number from 0");
            e->defaults.top_k = (int32_t)k;
        } else if (!top_k && ks_json_skip(&r)) {
            break;
        }
    }
    if (r.error) return ks_json_fail(&r, err, "generation_config.json");
    if (greedy) e->defaults.temperature = 0;
    ks_sampling check, none;
    ks_sampling_init(&none);
    if ((rc = ks_sampling_resolve(&none, &e->defaults, &check, err))) return ks_err_wrap(err, "generation_config.json");
    return 0;
}
