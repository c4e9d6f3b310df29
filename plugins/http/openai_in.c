/* From a hostile body to a ks_request. [reader thread]
 *
 * One strict pass of our reader over the top level: it proves that the whole text is well-formed UTF-8 JSON within
 * depth, hands on the parts that must not change (messages, tools, template variables: their numbers keep their
 * spelling) as slices, and copies the small fields that we know into an object of their own. Only that object goes
 * through cJSON, which would cut strings at U+0000, round 64-bit integers and search linearly through long histories.
 * Unknown fields are ignored, as clients of this API expect; known ones of the wrong type, and fields that appear
 * twice, are errors that name the field. */
#include "http.h"

#include <cJSON.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

#define MAX_FIELDS 128u
#define MAX_NAME_BYTES 64u /* of a field; a longer name is unknown */
#define MAX_STOP_BYTES 4096u
#define MAX_LOGPROBS 20 /* as ks_request says */

/* The fields that go through cJSON. */
static const char *const small_fields[] = {
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "repeat_penalty",
    "logit_bias",
    "stop",
    "logprobs",
    "top_logprobs",
    "echo",
    "suffix",
    "ignore_eos",
    "response_format",
    "tool_choice",
};

void http_fail(http_error *e, unsigned status, const char *type, const char *code, const char *param, const char *fmt,
               ...)
{
    va_list ap;
    e->status = status;
    e->type = type;
    e->code = code;
    (void)snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    va_start(ap, fmt);
    (void)vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
}

void http_fail_from(http_error *e, const ks_err *err)
{
    static const struct {
        int32_t code;
        unsigned status;
        const char *type, *name;
    } map[] = {
        { KS_E_CONTEXT, 400, "invalid_request_error", "context_length_exceeded" },
        { KS_E_INVAL, 400, "invalid_request_error", NULL },
        { KS_E_FORMAT, 400, "invalid_request_error", NULL },
        { KS_E_UNSUPPORTED, 400, "invalid_request_error", "unsupported" },
        { KS_E_LIMIT, 400, "invalid_request_error", NULL },
        { KS_E_BUSY, 429, "rate_limit_error", "queue_full" },
        { KS_E_STATE, 503, "unavailable_error", NULL },
        { KS_E_CANCELED, 503, "unavailable_error", NULL },
        { KS_E_NOMEM, 503, "unavailable_error", NULL },
    };
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
        if (map[i].code == err->code) {
            char field[sizeof e->param] = ""; /* a message about a field begins with its quoted name */
            if (map[i].status == 400) (void)sscanf(err->msg, "'%63[a-z_]'", field);
            http_fail(e, map[i].status, map[i].type, map[i].name, field, "%s", err->msg);
            return;
        }
    http_fail(e, 500, "server_error", NULL, NULL, "%s", err->msg);
}

void parsed_fini(parsed *p)
{
    for (uint32_t i = 0; i < p->n_own; i++) free(p->own[i]);
    p->n_own = 0;
}

static int bad(request *r, const char *param, const char *fmt, ...) KS_PRINTF(3, 4);
static int bad(request *r, const char *param, const char *fmt, ...)
{
    char text[500];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    http_fail(&r->error, 400, "invalid_request_error", NULL, param, "%s", text);
    return -1;
}

static void *own(request *r, void *p)
{
    parsed *d = &r->p;
    if (!p) {
        http_fail(&r->error, 503, "unavailable_error", NULL, NULL, "out of memory for the request");
        return NULL;
    }
    if (d->n_own == sizeof d->own / sizeof d->own[0]) {
        free(p);
        (void)bad(r, NULL, "the request has too many parts");
        return NULL;
    }
    return d->own[d->n_own++] = p;
}

/* ---- the strict pass */

typedef struct slice {
    const char *text;
    size_t n;
    int token; /* first token of the value */
} slice;

typedef struct fields {
    slice messages, tools, kwargs, prompt, seed;
    ks_jw rest;
} fields;

/* The value after the current key, without white space around it. */
static int value(ks_json *j, slice *s)
{
    ks_json at = *j; /* the reader is a plain value: a copy looks ahead */
    s->token = ks_json_next(&at);
    if (s->token < 0) {
        *j = at;
        return -1;
    }
    size_t from = j->at;
    if (ks_json_skip(j)) return -1;
    while (from < j->at && strchr(": \t\r\n", j->text[from])) from++;
    size_t end = j->at;
    while (end > from && strchr(" \t\r\n", j->text[end - 1])) end--;
    s->text = j->text + from;
    s->n = end - from;
    return 0;
}

/* cJSON would cut the string there. A backslash before it makes it six plain characters. */
static bool holds_nul(const slice *s)
{
    for (size_t i = 0; i + 6 <= s->n; i++) {
        if (s->text[i] != '\\') continue;
        if (memcmp(s->text + i, "\\u0000", 6) == 0) return true;
        i++; /* whatever is escaped */
    }
    return false;
}

static int take_field(request *r, fields *f, const char *name, const slice *s)
{
    struct {
        const char *name;
        slice *to;
    } const slices[] = { { "messages", &f->messages },
                         { "tools", &f->tools },
                         { "chat_template_kwargs", &f->kwargs },
                         { "prompt", &f->prompt },
                         { "seed", &f->seed } };
    for (size_t i = 0; i < sizeof slices / sizeof slices[0]; i++)
        if (strcmp(name, slices[i].name) == 0) *slices[i].to = *s;
    for (size_t i = 0; i < sizeof small_fields / sizeof small_fields[0]; i++) {
        if (strcmp(name, small_fields[i])) continue;
        if (holds_nul(s)) return bad(r, name, "'%s' holds the character U+0000, which is not allowed there", name);
        ks_jw_key(&f->rest, name);
        ks_jw_raw(&f->rest, s->text, s->n);
    }
    return 0;
}

static int scan_fields(request *r, ks_json *j, fields *f)
{
    char name[MAX_FIELDS][MAX_NAME_BYTES];
    uint32_t n = 0;
    int t;
    ks_jw_object(&f->rest);
    while ((t = ks_json_next(j)) == KS_JSON_KEY) {
        slice s;
        size_t bytes;
        if (n == MAX_FIELDS) return bad(r, NULL, "the body has more than %u fields", MAX_FIELDS);
        bool named = ks_json_str(j, name[n], sizeof name[n], &bytes) == 0 && strlen(name[n]) == bytes;
        if (value(j, &s)) break;
        if (!named) continue;
        for (uint32_t i = 0; i < n; i++)
            if (strcmp(name[i], name[n]) == 0) return bad(r, name[n], "'%s' appears twice", name[n]);
        if (take_field(r, f, name[n++], &s)) return -1;
    }
    ks_jw_object_end(&f->rest);
    if (!j->error) (void)ks_json_next(j); /* the end of the text, or an error that it keeps */
    if (j->error) {
        ks_err err = { 0 };
        (void)ks_json_fail(j, &err, "the body is not valid JSON");
        return bad(r, NULL, "%s", err.msg);
    }
    return 0;
}

/* ---- typed fields of the small object */

static const cJSON *get(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, name);
    return v && !cJSON_IsNull(v) ? v : NULL;
}

static int get_float(request *r, const cJSON *o, const char *name, float *ret)
{
    const cJSON *v = get(o, name);
    if (!v) return 0;
    if (!cJSON_IsNumber(v) || !(fabs(v->valuedouble) <= FLT_MAX)) return bad(r, name, "'%s' must be a number", name);
    *ret = (float)v->valuedouble;
    return 0;
}

static int get_int(request *r, const cJSON *o, const char *name, int32_t lo, int32_t hi, int32_t *ret)
{
    const cJSON *v = get(o, name);
    if (!v) return 0;
    if (!cJSON_IsNumber(v) || v->valuedouble != floor(v->valuedouble) || v->valuedouble < lo || v->valuedouble > hi)
        return bad(r, name, "'%s' must be an integer from %d to %d", name, lo, hi);
    *ret = (int32_t)v->valuedouble;
    return 0;
}

static int get_bool(request *r, const cJSON *o, const char *name, bool *ret)
{
    const cJSON *v = get(o, name);
    if (!v) return 0;
    if (!cJSON_IsBool(v)) return bad(r, name, "'%s' must be true or false", name);
    *ret = cJSON_IsTrue(v);
    return 0;
}

/* Numbers under several names: the first is OpenAI's, the others are other servers' for the same thing. */
static int get_sampling(request *r, const cJSON *o)
{
    ks_sampling *s = &r->p.rq.sampling;
    ks_sampling_init(s);
    if (get_float(r, o, "temperature", &s->temperature) || get_float(r, o, "top_p", &s->top_p) ||
        get_float(r, o, "min_p", &s->min_p) || get_float(r, o, "presence_penalty", &s->presence_penalty) ||
        get_float(r, o, "frequency_penalty", &s->frequency_penalty) ||
        get_float(r, o, "repeat_penalty", &s->repetition_penalty) ||
        get_float(r, o, "repetition_penalty", &s->repetition_penalty) ||
        get_int(r, o, "top_k", -1, INT32_MAX, &s->top_k))
        return -1;
    const cJSON *bias = get(o, "logit_bias"), *b;
    if (!bias) return 0;
    if (!cJSON_IsObject(bias)) return bad(r, "logit_bias", "'logit_bias' must be an object of token ids and numbers");
    int n = cJSON_GetArraySize(bias);
    int32_t *ids = own(r, calloc((size_t)n + 1, sizeof *ids));
    float *amount = ids ? own(r, calloc((size_t)n + 1, sizeof *amount)) : NULL;
    if (!amount) return -1;
    cJSON_ArrayForEach(b, bias)
    {
        char *end;
        long id = strtol(b->string, &end, 10);
        if (end == b->string || *end || id < 0 || id > INT32_MAX || !cJSON_IsNumber(b) ||
            !(fabs(b->valuedouble) <= 100))
            return bad(r, "logit_bias",
                       "'logit_bias' has a bad item '%.40s': keys must be token ids, values numbers from -100 to 100",
                       b->string);
        ids[s->n_bias] = (int32_t)id;
        amount[s->n_bias++] = (float)b->valuedouble;
    }
    s->bias_ids = ids;
    s->bias = amount;
    return 0;
}

static int get_stop(request *r, const cJSON *o)
{
    const cJSON *v = get(o, "stop"), *one;
    parsed *p = &r->p;
    uint32_t n = 0;
    if (!v) return 0;
    if (!cJSON_IsString(v) && !cJSON_IsArray(v)) return bad(r, "stop", "'stop' must be a string or a list of strings");
    for (one = cJSON_IsString(v) ? v : v->child; one; one = cJSON_IsString(v) ? NULL : one->next) {
        if (!cJSON_IsString(one)) return bad(r, "stop", "'stop' item %u is no string", n);
        if (n == HTTP_MAX_STOPS) return bad(r, "stop", "'stop' has more than %u strings", HTTP_MAX_STOPS);
        if (strlen(one->valuestring) > MAX_STOP_BYTES)
            return bad(r, "stop", "'stop' item %u has more than %u bytes", n, MAX_STOP_BYTES);
        if (!(p->stop[n] = own(r, strdup(one->valuestring)))) return -1;
        n++;
    }
    p->rq.stop = p->stop;
    p->rq.n_stop = n;
    return 0;
}

static int get_logprobs(request *r, const cJSON *o)
{
    parsed *p = &r->p;
    p->rq.n_logprobs = -1;
    if (!p->chat) return get_int(r, o, "logprobs", 0, MAX_LOGPROBS, &p->rq.n_logprobs);
    bool want = false;
    int32_t top = -1;
    if (get_bool(r, o, "logprobs", &want) || get_int(r, o, "top_logprobs", 0, MAX_LOGPROBS, &top)) return -1;
    if (top >= 0 && !want) return bad(r, "top_logprobs", "'top_logprobs' needs 'logprobs': true");
    if (want) p->rq.n_logprobs = top < 0 ? 0 : top;
    return 0;
}

static int refuse_unsupported(request *r, const cJSON *o)
{
    const cJSON *format = get(o, "response_format"), *forced = get(o, "tool_choice");
    const cJSON *suffix = get(o, "suffix");
    const cJSON *type = format ? cJSON_GetObjectItemCaseSensitive(format, "type") : NULL;
    if (suffix && !(cJSON_IsString(suffix) && !*suffix->valuestring))
        return bad(r, "suffix", "'suffix' is not supported: put it into the prompt as the model expects it");
    if (format && !(cJSON_IsString(type) && strcmp(type->valuestring, "text") == 0))
        return bad(r, "response_format", "'response_format' other than {\"type\": \"text\"} is not supported");
    if (forced && !(cJSON_IsString(forced) &&
                    (strcmp(forced->valuestring, "auto") == 0 || strcmp(forced->valuestring, "none") == 0)))
        return bad(r, "tool_choice", "'tool_choice' must be \"auto\" or \"none\": forced calls are not supported");
    if (forced && strcmp(forced->valuestring, "none") == 0) {
        r->p.rq.tools = NULL;
        r->p.rq.tools_bytes = 0;
    }
    return 0;
}

static int get_small_fields(request *r, const cJSON *o)
{
    parsed *p = &r->p;
    int32_t n = 1;
    bool echo = false, ignore_eos = false;
    p->rq.max_tokens = p->chat ? -1 : 16; /* OpenAI's defaults */
    if (get_bool(r, o, "stream", &p->stream) ||
        get_int(r, o, "max_tokens", p->chat ? 1 : 0, INT32_MAX, &p->rq.max_tokens) ||
        get_int(r, o, "max_completion_tokens", 1, INT32_MAX, &p->rq.max_tokens) ||
        get_int(r, o, "n", 1, (int32_t)(HTTP_MAX_CHOICES / p->n_prompts), &n) || get_bool(r, o, "echo", &echo) ||
        get_bool(r, o, "ignore_eos", &ignore_eos) || get_sampling(r, o) || get_stop(r, o) || get_logprobs(r, o) ||
        refuse_unsupported(r, o))
        return -1;
    p->rq.n = (uint32_t)n;
    p->rq.echo = !p->chat && echo;
    p->rq.ignore_eos = ignore_eos;
    const cJSON *so = get(o, "stream_options"), *model = get(o, "model");
    if (so && !cJSON_IsObject(so)) return bad(r, "stream_options", "'stream_options' must be an object");
    if (so && get_bool(r, so, "include_usage", &p->include_usage)) return -1;
    if (model && !cJSON_IsString(model)) return bad(r, "model", "'model' must be a string");
    ks_model_info info = { .size = (uint32_t)sizeof info };
    ks_err err = { 0 };
    if (r->s->api->describe(r->s->engine, &info, &err)) {
        http_fail_from(&r->error, &err);
        return -1;
    }
    (void)snprintf(p->model, sizeof p->model, "%s",
                   model ? model->valuestring : info.name); /* one model: any name means it */
    return 0;
}

/* ---- prompts of /v1/completions: a string, token ids, or a list of either */

static int prompt_text(request *r, const ks_json *j)
{
    parsed *p = &r->p;
    if (p->n_prompts == HTTP_MAX_JOBS) return bad(r, "prompt", "'prompt' has more than %u items", HTTP_MAX_JOBS);
    char *text = own(r, malloc(j->tok_bytes + 1));
    if (!text) return -1;
    size_t n = 0;
    if (ks_json_str(j, text, j->tok_bytes + 1, &n)) return bad(r, "prompt", "'prompt' cannot be read");
    p->prompt[p->n_prompts].text = text;
    p->prompt[p->n_prompts++].bytes = n;
    return 0;
}

/* The reader stands on the first number; reads to the end of the array. */
static int prompt_ids(request *r, ks_json *j, int t)
{
    parsed *p = &r->p;
    if (p->n_prompts == HTTP_MAX_JOBS) return bad(r, "prompt", "'prompt' has more than %u items", HTTP_MAX_JOBS);
    const char *end = memchr(j->text + j->at, ']', j->n - j->at); /* a list holds at most one number in two bytes */
    size_t cap = (end ? (size_t)(end - (j->text + j->at)) : 0) / 2 + 2;
    int32_t *ids = own(r, malloc(cap * sizeof *ids));
    if (!ids) return -1;
    size_t n = 0;
    for (; t == KS_JSON_NUMBER; t = ks_json_next(j)) {
        int64_t v;
        if (ks_json_i64(j, &v) || v < 0 || v > INT32_MAX)
            return bad(r, "prompt", "'prompt' item %zu is no token id", n);
        ids[n++] = (int32_t)v;
    }
    if (t != KS_JSON_ARRAY_END) return bad(r, "prompt", "'prompt' mixes token ids with something else");
    p->prompt[p->n_prompts].ids = ids;
    p->prompt[p->n_prompts++].n_ids = n;
    return 0;
}

static int get_prompt(request *r, const slice *s)
{
    static const char want[] =
        "'prompt' must be a string, a list of strings, a list of token ids, or a list of such lists";
    ks_json j;
    if (!s->text) return bad(r, "prompt", "'prompt' is missing");
    ks_json_init(&j, s->text, s->n, HTTP_JSON_DEPTH);
    int t = ks_json_next(&j);
    if (t == KS_JSON_STRING) return prompt_text(r, &j);
    if (t != KS_JSON_ARRAY) return bad(r, "prompt", "%s", want);
    t = ks_json_next(&j);
    if (t == KS_JSON_NUMBER) return prompt_ids(r, &j, t);
    for (; t != KS_JSON_ARRAY_END; t = ks_json_next(&j)) {
        int rc = -1;
        if (t == KS_JSON_STRING)
            rc = prompt_text(r, &j);
        else if (t == KS_JSON_ARRAY)
            rc = prompt_ids(r, &j, ks_json_next(&j));
        else
            return bad(r, "prompt", "%s", want);
        if (rc) return rc;
    }
    return r->p.n_prompts ? 0 : bad(r, "prompt", "'prompt' is an empty list");
}

/* ---- all of it */

static int take_slices(request *r, const fields *f)
{
    ks_request *rq = &r->p.rq;
    if (r->p.chat) {
        if (!f->messages.text)
            return bad(r, "messages", "'messages' is missing: a list of {\"role\", \"content\"} is needed");
        if (f->messages.token != KS_JSON_ARRAY) return bad(r, "messages", "'messages' must be a list");
        rq->messages = f->messages.text;
        rq->messages_bytes = f->messages.n;
        r->p.n_prompts = 1;
    }
    if (f->tools.text && f->tools.token != KS_JSON_NULL) {
        if (f->tools.token != KS_JSON_ARRAY) return bad(r, "tools", "'tools' must be a list");
        rq->tools = f->tools.text;
        rq->tools_bytes = f->tools.n;
    }
    if (f->kwargs.text && f->kwargs.token != KS_JSON_NULL) {
        if (f->kwargs.token != KS_JSON_OBJECT)
            return bad(r, "chat_template_kwargs", "'chat_template_kwargs' must be an object");
        rq->kwargs = f->kwargs.text;
        rq->kwargs_bytes = f->kwargs.n;
    }
    return r->p.chat ? 0 : get_prompt(r, &f->prompt);
}

static int get_seed(request *r, const slice *s)
{
    if (!s->text || s->token == KS_JSON_NULL) return 0;
    ks_json j;
    int64_t v = 0;
    uint64_t u = 0;
    ks_json_init(&j, s->text, s->n, 1);
    if (ks_json_next(&j) != KS_JSON_NUMBER || (ks_json_u64(&j, &u) && ks_json_i64(&j, &v)))
        return bad(r, "seed", "'seed' must be a 64-bit integer");
    r->p.rq.sampling.has_seed = 1;
    r->p.rq.sampling.seed = v < 0 ? (uint64_t)v : u;
    return 0;
}

int parse_completion(request *r, bool chat)
{
    fields f = { 0 };
    ks_json j;
    cJSON *o = NULL;
    r->p.chat = chat;
    r->p.rq.size = (uint32_t)sizeof r->p.rq;
    if (!r->body_bytes) return bad(r, NULL, "the body is empty: a JSON object is needed");
    ks_json_init(&j, r->body, r->body_bytes, HTTP_JSON_DEPTH);
    ks_jw_init(&f.rest);
    int t = ks_json_next(&j), rc = -1;
    if (t < 0) {
        ks_err err = { 0 };
        (void)ks_json_fail(&j, &err, "the body is not valid JSON");
        rc = bad(r, NULL, "%s", err.msg);
    } else if (t != KS_JSON_OBJECT) {
        rc = bad(r, NULL, "the body must be a JSON object");
    } else if (!(rc = scan_fields(r, &j, &f)) && !(rc = take_slices(r, &f))) {
        if (ks_jw_done(&f.rest) == 0) {
            o = cJSON_ParseWithLengthOpts(f.rest.text, f.rest.n, NULL, 0);
            rc = o ? get_small_fields(r, o) : bad(r, NULL, "a number is spelled too long");
        } else {
            http_fail(&r->error, 503, "unavailable_error", NULL, NULL, "out of memory for the request");
            rc = -1;
        }
        if (!rc) rc = get_seed(r, &f.seed);
    }
    cJSON_Delete(o);
    ks_jw_fini(&f.rest);
    return rc;
}
