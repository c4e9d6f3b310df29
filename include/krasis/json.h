/* JSON: a strict pull reader and an append-only writer (library krasis-sdk, static, no state).
 *
 * The reader walks UTF-8 text that lies in memory, builds no tree and allocates nothing, so a 15 MB
 * tokenizer.json or a 100,000-entry header costs one pass. It is strict where C libraries commonly are not
 * (RFC 8259, and more): valid UTF-8 only, no trailing bytes, no lone surrogates, no leading zeros, depth
 * limited, numbers keep their spelling (integers above 2^53 are exact, 1.0 stays 1.0), U+0000 in a
 * string is data and not an end.
 *
 *   ks_json j; ks_json_init(&j, text, n, 64);
 *   while ((t = ks_json_next(&j)) > 0) ...        KS_JSON_END (0) after the last, KS_JSON_ERROR (-1)
 */
#ifndef KRASIS_JSON_H
#define KRASIS_JSON_H

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>

#define KS_JSON_DEPTH_MAX 256u

enum {
    KS_JSON_ERROR = -1,
    KS_JSON_END = 0,
    KS_JSON_OBJECT, /* { */
    KS_JSON_OBJECT_END,
    KS_JSON_ARRAY, /* [ */
    KS_JSON_ARRAY_END,
    KS_JSON_KEY, /* a member's name; its value is the next token */
    KS_JSON_STRING,
    KS_JSON_NUMBER,
    KS_JSON_TRUE,
    KS_JSON_FALSE,
    KS_JSON_NULL
};

typedef struct ks_json {
    const char *text;
    size_t n, at;    /* at: offset of the next byte to read */
    const char *tok; /* the current token: strings and keys without quotes, still escaped; numbers as spelled */
    size_t tok_bytes;
    bool escaped; /* the string or key holds a backslash */
    uint32_t depth, max_depth;
    uint32_t expect;   /* internal */
    const char *error; /* static text, at `at` */
    uint8_t stack[KS_JSON_DEPTH_MAX / 8];
} ks_json;

/* max_depth 1 .. KS_JSON_DEPTH_MAX. The text must outlive the reader. */
void ks_json_init(ks_json *j, const char *text, size_t n, uint32_t max_depth);
/* The next token; errors are sticky. */
int ks_json_next(ks_json *j);
/* After OBJECT or ARRAY: passes to after its end. After KEY: passes over the value. Else nothing. 0 or an error. */
int ks_json_skip(ks_json *j);
/* The current key or string, unescaped, NUL-terminated, at most cap bytes with the NUL (LIMIT otherwise).
 * The unescaped text is never longer than tok_bytes. ret_n (may be NULL): bytes without the NUL. */
int ks_json_str(const ks_json *j, char *dst, size_t cap, size_t *ret_n);
/* True if the current key or string, unescaped, equals the C string. */
bool ks_json_is(const ks_json *j, const char *s);
/* The current NUMBER. Integers must be spelled as integers (1.0 and 1e3 are refused) and fit. */
int ks_json_i64(const ks_json *j, int64_t *ret);
int ks_json_u64(const ks_json *j, uint64_t *ret);
int ks_json_f64(const ks_json *j, double *ret); /* finite; locale-independent */
/* "line 3, column 7: text" for the error that ks_json_next met. Returns KS_E_FORMAT. */
int ks_json_fail(const ks_json *j, ks_err *err, const char *what);

/* ---- UTF-8 */

/* Length of the longest valid prefix (no surrogates, no overlong forms, at most U+10FFFF). */
size_t ks_utf8_valid(const char *s, size_t n);
/* Decodes one code point at s (n > 0); returns its length, or 0 if it is ill-formed or cut off. */
uint32_t ks_utf8_decode(const char *s, size_t n, uint32_t *ret_cp);
/* Writes 1 to 4 bytes; returns their number (0: not a scalar value). */
uint32_t ks_utf8_encode(uint32_t cp, char dst[4]);

/* ---- Writer: grows a heap buffer; a failed allocation is sticky and told by ks_jw_done.
 * Commas and colons are placed by the writer. */
typedef struct ks_jw {
    char *text; /* freed by ks_jw_fini */
    size_t n, cap;
    bool failed;
    bool comma; /* internal: the next value needs a comma */
} ks_jw;

void ks_jw_init(ks_jw *w);
void ks_jw_fini(ks_jw *w);
void ks_jw_reset(ks_jw *w); /* empties, keeps the memory */
void ks_jw_object(ks_jw *w);
void ks_jw_object_end(ks_jw *w);
void ks_jw_array(ks_jw *w);
void ks_jw_array_end(ks_jw *w);
void ks_jw_key(ks_jw *w, const char *key);
void ks_jw_str(ks_jw *w, const char *s);            /* NUL-terminated; NULL writes null */
void ks_jw_strn(ks_jw *w, const char *s, size_t n); /* ill-formed UTF-8 becomes U+FFFD */
void ks_jw_i64(ks_jw *w, int64_t v);
void ks_jw_u64(ks_jw *w, uint64_t v);
void ks_jw_f64(ks_jw *w, double v); /* shortest text that reads back as the same double; NaN, Inf: null */
void ks_jw_f32(ks_jw *w, float v);  /* shortest that reads back as the same float */
void ks_jw_bool(ks_jw *w, bool v);
void ks_jw_null(ks_jw *w);
void ks_jw_raw(ks_jw *w, const char *json, size_t n); /* one complete value, already JSON */
/* Appends bytes outside of JSON ("data: ", newlines). */
void ks_jw_bytes(ks_jw *w, const char *s, size_t n);
/* 0, or KS_E_NOMEM if anything failed since init or reset. The text is NUL-terminated. */
int ks_jw_done(const ks_jw *w);

#endif
