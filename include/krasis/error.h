/* Errors: a negative code and one line of text.
 *
 * A function that can fail returns 0 or a negative KS_E_ code and, if the caller passed an `err`,
 * leaves a message there: what failed, the value, the limit and the cure, names in 'single quotes',
 * no newline. `err` is always the last parameter and may be NULL. Nothing here needs the host: all
 * functions are inline so that plugins link nothing.
 */
#ifndef KRASIS_ERROR_H
#define KRASIS_ERROR_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/*     name         code  meaning */
#define KS_ERROR_MAP(X)                        \
    X(INVAL, -1, "invalid argument")           \
    X(NOMEM, -2, "out of memory")              \
    X(IO, -3, "input/output error")            \
    X(FORMAT, -4, "malformed data")            \
    X(NOTFOUND, -5, "not found")               \
    X(UNSUPPORTED, -6, "not supported")        \
    X(LIMIT, -7, "limit exceeded")             \
    X(CONFIG, -8, "bad setting")               \
    X(BUSY, -9, "busy")                        \
    X(CANCELED, -10, "canceled")               \
    X(DEVICE, -11, "device failed")            \
    X(STATE, -12, "not possible now")          \
    X(CONTEXT, -13, "context length exceeded") \
    X(INTERNAL, -14, "internal error")

enum {
#define KS_ERROR_ENUM(name, code, text) KS_E_##name = (code),
    KS_ERROR_MAP(KS_ERROR_ENUM)
#undef KS_ERROR_ENUM
};

/* Frozen layout: the plugin writes into memory that the host sized. */
typedef struct ks_err {
    int32_t code;
    char msg[508]; /* UTF-8, one line, NUL-terminated */
} ks_err;

#define KS_MUST_CHECK __attribute__((warn_unused_result))
#define KS_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* The general text of a code, static storage. */
static inline const char *ks_error_text(int32_t code)
{
    switch (code) {
#define KS_ERROR_CASE(name, num, text) \
    case num: return text;
        KS_ERROR_MAP(KS_ERROR_CASE)
#undef KS_ERROR_CASE
    default: return "unknown error";
    }
}

/* Writes the message and returns `code`, so that `return ks_fail(...)` is the whole idiom.
 * Control characters in the text (a file's names may hold them) become spaces. */
KS_PRINTF(3, 4) static inline int ks_fail(ks_err *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        (void)vsnprintf(err->msg, sizeof err->msg, fmt, ap); /* cut off is fine: it is for people */
        va_end(ap);
        for (char *p = err->msg; *p; p++)
            if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = ' ';
    }
    return code;
}

/* Puts "context: " before the message that a lower layer left. Returns the code. */
static inline int ks_err_wrap(ks_err *err, const char *context)
{
    if (!err) return KS_E_INTERNAL;
    char old[sizeof err->msg];
    memcpy(old, err->msg, sizeof old);
    (void)snprintf(err->msg, sizeof err->msg, "%.200s: %.300s", context, old);
    return err->code;
}

#endif
