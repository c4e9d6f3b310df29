/* Tokenizers for tests, made of their parts: a vocabulary of all 256 bytes (byte-level) or of given tokens, and JSON
 * for the rest. */
#ifndef TOK_SUPPORT_H
#define TOK_SUPPORT_H

#include "base/buf.h"
#include "text/pretok.h"
#include "text/tokenizer.h"

#include <krasis/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* after those that it needs */
#include <cmocka.h>

typedef struct tok_parts {
    const char *merges; /* "a b,ab c": in order of rank; the results join the vocabulary */
    const char *tokens; /* "x,y": the vocabulary, ids from 0; NULL: the 256 bytes (id: the byte's value) */
    const char *model;  /* more members of the model, with a comma at the end */
    const char *added;  /* items of added_tokens */
    const char *normalizer, *pre, *post, *decoder; /* JSON; NULL: the byte-level default or null */
} tok_parts;

#define TOK_PRE_BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"

static inline void tok_add_text(ks_jw *w, const char *s, size_t n, int *id)
{
    char key[128];
    memcpy(key, s, n);
    key[n] = 0;
    ks_jw_key(w, key);
    ks_jw_i64(w, (*id)++);
}

static inline char *tok_json(const tok_parts *p)
{
    ks_jw w;
    int id = 0;
    ks_jw_init(&w);
    ks_jw_object(&w);
    for (uint32_t b = 0; b < 256 && !p->tokens; b++) {
        char c[4];
        tok_add_text(&w, c, ks_utf8_encode(ks_char_of_byte((uint8_t)b), c), &id);
    }
    for (const char *s = p->tokens; s && *s;) {
        size_t n = strcspn(s, ",");
        tok_add_text(&w, s, n, &id);
        s += n + (s[n] == ',');
    }
    for (const char *s = p->merges; s && *s;) {
        size_t n = strcspn(s, ","), left = strcspn(s, " ");
        char text[128];
        memcpy(text, s, left);
        memcpy(text + left, s + left + 1, n - left - 1);
        tok_add_text(&w, text, n - 1, &id);
        s += n + (s[n] == ',');
    }
    ks_jw_object_end(&w);
    assert_int_equal(ks_jw_done(&w), 0);
    ks_buf b;
    ks_buf_init(&b, 0);
    ks_buf_printf(&b,
                  "{\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,",
                  p->added ? p->added : "", p->normalizer ? p->normalizer : "null",
                  p->pre      ? p->pre
                  : p->tokens ? "null"
                              : TOK_PRE_BYTES,
                  p->post ? p->post : "null",
                  p->decoder  ? p->decoder
                  : p->tokens ? "null"
                              : "{\"type\":\"ByteLevel\"}");
    ks_buf_printf(&b, "\"model\":{\"type\":\"BPE\",%s\"vocab\":%s,\"merges\":[", p->model ? p->model : "", w.text);
    for (const char *s = p->merges; s && *s;) {
        size_t n = strcspn(s, ",");
        ks_buf_printf(&b, "%s\"%.*s\"", s == p->merges ? "" : ",", (int)n, s);
        s += n + (s[n] == ',');
    }
    ks_buf_adds(&b, "]}}");
    ks_jw_fini(&w);
    return ks_buf_take(&b, NULL);
}

static inline ks_tokenizer *tok_make(const tok_parts *p)
{
    ks_err err = { 0 };
    ks_tokenizer *t = NULL;
    char *json = tok_json(p);
    int rc = ks_tokenizer_parse(json, strlen(json), NULL, 0, &t, &err);
    if (rc) fail_msg("%s", err.msg);
    free(json);
    return t;
}

/* A tokenizer of bytes whose added tokens are all that looks like a control token in a template: <...> or [...]. Their
 * ids begin with 256. */
static inline ks_tokenizer *tok_for_template(const char *source, size_t n)
{
    ks_buf b;
    ks_buf_init(&b, 0);
    for (size_t i = 0, end; i < n; i++) {
        char close = source[i] == '<' ? '>' : source[i] == '[' ? ']' : 0;
        for (end = i + 1; close && end < n && end - i < 60 && !strchr("<>[] \n'\"{}\\", source[end]);) end++;
        if (!close || end == n || source[end] != close || end < i + 3) continue;
        ks_buf_printf(&b, "%s{\"id\":0,\"content\":\"%.*s\",\"special\":true}", b.n ? "," : "", (int)(end + 1 - i),
                      source + i);
    }
    char *added = ks_buf_take(&b, NULL);
    ks_tokenizer *t = tok_make(&(tok_parts) { .added = added });
    free(added);
    return t;
}

/* The tokens of text, between bars. */
static inline const char *tok_show(const ks_tokenizer *t, const char *text, uint32_t flags)
{
    static char out[4096];
    ks_err err = { 0 };
    int32_t *ids = NULL;
    size_t n = 0, at = 0;
    if (ks_tokenizer_encode(t, text, strlen(text), flags, &ids, &n, &err)) fail_msg("%s", err.msg);
    for (size_t i = 0; i < n; i++) {
        size_t k;
        const char *s = ks_tokenizer_bytes(t, ids[i], &k);
        at += (size_t)snprintf(out + at, sizeof out - at, "%s%.*s", i ? "|" : "", (int)k, s);
        assert_true(at < sizeof out);
    }
    out[at] = 0;
    free(ids);
    return out;
}

#endif
