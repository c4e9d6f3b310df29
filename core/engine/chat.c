/* One pass of the pull reader over the messages, copying values by their spelling and rewriting three things: the role
 * developer, lists of content parts, and function arguments. */
#include "engine/chat.h"

#include "base/base.h"

#define KS_CHAT_DEPTH 64u
#define KS_MAX_MESSAGES 100000u

static int malformed(const ks_json *j, ks_err *err)
{
    return ks_json_fail(j, err, "messages");
}

/* Copies the value after the current key as it is spelled. */
static int copy_value(ks_json *j, ks_jw *w, ks_err *err)
{
    size_t from = j->at;
    if (ks_json_skip(j)) return malformed(j, err);
    while (from < j->at && strchr(": \t\r\n", j->text[from])) from++;
    ks_jw_raw(w, j->text + from, j->at - from);
    return 0;
}

static char *unescape(const ks_json *j, size_t *ret_n)
{
    char *s = malloc(j->tok_bytes + 1);
    if (s && ks_json_str(j, s, j->tok_bytes + 1, ret_n)) {
        free(s);
        return NULL;
    }
    return s;
}

static int copy_role(ks_json *j, uint32_t i, uint32_t flags, ks_jw *w, ks_err *err)
{
    static const char *const roles[] = { "system", "user", "assistant", "tool", "function", "developer" };
    if (ks_json_next(j) != KS_JSON_STRING) return ks_fail(err, KS_E_INVAL, "messages[%u].role must be a string", i);
    for (size_t k = 0; k < KS_COUNT(roles); k++)
        if (ks_json_is(j, roles[k])) {
            ks_jw_str(w, strcmp(roles[k], "developer") == 0 && !(flags & KS_CHAT_KEEP_DEVELOPER) ? "system" : roles[k]);
            return 0;
        }
    return ks_fail(err, KS_E_INVAL, "messages[%u].role is '%.*s': use system, developer, user, assistant or tool", i,
                   (int)KS_MIN(j->tok_bytes, (size_t)40), j->tok);
}

/* One part {"type": "text", "text": ...}; its other fields (cache hints and the like) mean nothing here. */
static int add_part(ks_json *j, uint32_t i, uint32_t part, ks_jw *text, ks_err *err)
{
    bool is_text = false, has_text = false;
    int t, rc = 0;
    while ((t = ks_json_next(j)) == KS_JSON_KEY && !rc) {
        if (ks_json_is(j, "type")) {
            t = ks_json_next(j);
            is_text = t == KS_JSON_STRING &&
                      (ks_json_is(j, "text") || ks_json_is(j, "input_text") || ks_json_is(j, "output_text"));
            if (!is_text)
                return ks_fail(err, KS_E_INVAL,
                               "messages[%u].content[%u] has the type '%.*s': this model reads text only", i, part,
                               (int)KS_MIN(j->tok_bytes, (size_t)40), t == KS_JSON_STRING ? j->tok : "?");
        } else if (ks_json_is(j, "text")) {
            if (ks_json_next(j) != KS_JSON_STRING)
                return ks_fail(err, KS_E_INVAL, "messages[%u].content[%u].text must be a string", i, part);
            size_t n = 0;
            char *s = unescape(j, &n);
            if (!s) return ks_fail(err, KS_E_NOMEM, "out of memory for a message");
            ks_jw_bytes(text, s, n);
            free(s);
            has_text = true;
        } else {
            rc = ks_json_skip(j);
        }
    }
    if (j->error) return malformed(j, err);
    return is_text && has_text
               ? 0
               : ks_fail(err, KS_E_INVAL, "messages[%u].content[%u] needs \"type\": \"text\" and \"text\"", i, part);
}

static int copy_content(ks_json *j, uint32_t i, ks_jw *w, ks_err *err)
{
    ks_json ahead = *j;
    int t = ks_json_next(&ahead), rc = 0;
    if (t == KS_JSON_STRING || t == KS_JSON_NULL) return copy_value(j, w, err);
    if (t < 0) return malformed(&ahead, err);
    if (t != KS_JSON_ARRAY)
        return ks_fail(err, KS_E_INVAL, "messages[%u].content must be a string, null or a list of parts", i);
    ks_jw text;
    ks_jw_init(&text);
    *j = ahead;
    for (uint32_t part = 0; !rc && (t = ks_json_next(j)) == KS_JSON_OBJECT; part++)
        rc = add_part(j, i, part, &text, err);
    if (!rc && t != KS_JSON_ARRAY_END)
        rc = j->error
                 ? malformed(j, err)
                 : ks_fail(err, KS_E_INVAL,
                           "messages[%u].content must hold objects like {\"type\": \"text\", \"text\": \"...\"}", i);
    if (!rc) ks_jw_strn(w, text.n ? text.text : "", text.n);
    if (text.failed) rc = ks_fail(err, KS_E_NOMEM, "out of memory for a message");
    ks_jw_fini(&text);
    return rc;
}

/* "arguments": a JSON string in the API, an object in most templates. What is no JSON object stays a string. */
static int copy_arguments(ks_json *j, ks_jw *w, ks_err *err)
{
    ks_json ahead = *j;
    size_t n = 0;
    if (ks_json_next(&ahead) != KS_JSON_STRING) return copy_value(j, w, err);
    char *s = unescape(&ahead, &n);
    if (!s) return ks_fail(err, KS_E_NOMEM, "out of memory for a message");
    ks_json in;
    ks_json_init(&in, s, n, KS_CHAT_DEPTH / 2);
    int t = ks_json_next(&in);
    bool object = t == KS_JSON_OBJECT && ks_json_skip(&in) == 0 && ks_json_next(&in) == KS_JSON_END;
    int rc = 0;
    if (object) {
        ks_jw_raw(w, s, n);
        *j = ahead;
    } else {
        rc = copy_value(j, w, err);
    }
    free(s);
    return rc;
}

/* Copies the object the reader is in, calling itself for "function"; only its "arguments" change. */
static int copy_call(ks_json *j, bool in_function, ks_jw *w, ks_err *err)
{
    int t, rc = 0;
    char key[128];
    ks_jw_object(w);
    while (!rc && (t = ks_json_next(j)) == KS_JSON_KEY) {
        if (ks_json_str(j, key, sizeof key, NULL))
            return ks_fail(err, KS_E_INVAL, "a tool call has a field name of more than %zu bytes", sizeof key - 1);
        ks_jw_key(w, key);
        ks_json ahead = *j;
        if (in_function && strcmp(key, "arguments") == 0) {
            rc = copy_arguments(j, w, err);
        } else if (!in_function && strcmp(key, "function") == 0 && ks_json_next(&ahead) == KS_JSON_OBJECT) {
            *j = ahead;
            rc = copy_call(j, true, w, err);
        } else {
            rc = copy_value(j, w, err);
        }
    }
    ks_jw_object_end(w);
    return rc ? rc : j->error ? malformed(j, err) : 0;
}

static int copy_calls(ks_json *j, uint32_t i, ks_jw *w, ks_err *err)
{
    ks_json ahead = *j;
    int t = ks_json_next(&ahead), rc = 0;
    if (t == KS_JSON_NULL) return copy_value(j, w, err);
    if (t != KS_JSON_ARRAY) return ks_fail(err, KS_E_INVAL, "messages[%u].tool_calls must be a list", i);
    *j = ahead;
    ks_jw_array(w);
    while (!rc && (t = ks_json_next(j)) == KS_JSON_OBJECT) rc = copy_call(j, false, w, err);
    ks_jw_array_end(w);
    if (rc) return rc;
    return t == KS_JSON_ARRAY_END ? 0 : ks_fail(err, KS_E_INVAL, "messages[%u].tool_calls must hold objects", i);
}

static int copy_message(ks_json *j, uint32_t i, uint32_t flags, ks_jw *w, ks_err *err)
{
    static const char *const once[] = { "role", "content", "tool_calls" }; /* a proxy may have checked the other one */
    int t, rc = 0;
    bool seen[KS_COUNT(once)] = { false };
    char key[128];
    ks_jw_object(w);
    while (!rc && (t = ks_json_next(j)) == KS_JSON_KEY) {
        if (ks_json_str(j, key, sizeof key, NULL))
            return ks_fail(err, KS_E_INVAL, "messages[%u] has a field name of more than %zu bytes", i, sizeof key - 1);
        for (size_t k = 0; k < KS_COUNT(once); k++) {
            if (strcmp(key, once[k]) != 0) continue;
            if (seen[k]) return ks_fail(err, KS_E_INVAL, "messages[%u].%s appears twice", i, key);
            seen[k] = true;
        }
        ks_jw_key(w, key);
        if (strcmp(key, "role") == 0) {
            rc = copy_role(j, i, flags, w, err);
        } else if (strcmp(key, "content") == 0) {
            rc = copy_content(j, i, w, err);
        } else if (strcmp(key, "tool_calls") == 0 && !(flags & KS_CHAT_KEEP_ARGUMENTS)) {
            rc = copy_calls(j, i, w, err);
        } else {
            rc = copy_value(j, w, err);
        }
    }
    ks_jw_object_end(w);
    if (rc) return rc;
    if (j->error) return malformed(j, err);
    return seen[0] ? 0 : ks_fail(err, KS_E_INVAL, "messages[%u] has no role", i);
}

int ks_chat_messages(const char *json, size_t n, uint32_t flags, ks_jw *w, ks_err *err)
{
    ks_json j;
    ks_json_init(&j, json, n, KS_CHAT_DEPTH);
    int t = ks_json_next(&j), rc = 0;
    uint32_t i = 0;
    if (t < 0) return malformed(&j, err);
    if (t != KS_JSON_ARRAY) return ks_fail(err, KS_E_INVAL, "messages must be a list");
    ks_jw_array(w);
    for (; !rc && (t = ks_json_next(&j)) == KS_JSON_OBJECT; i++) {
        if (i == KS_MAX_MESSAGES) return ks_fail(err, KS_E_LIMIT, "there are more than %u messages", KS_MAX_MESSAGES);
        rc = copy_message(&j, i, flags, w, err);
    }
    ks_jw_array_end(w);
    if (rc) return rc;
    if (j.error) return malformed(&j, err);
    if (t != KS_JSON_ARRAY_END)
        return ks_fail(err, KS_E_INVAL, "messages[%u] must be an object with a role and content", i);
    return i ? 0 : ks_fail(err, KS_E_INVAL, "messages is empty: at least one is needed");
}
