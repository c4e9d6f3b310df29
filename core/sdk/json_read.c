/* The strict JSON pull reader: one pass over the caller's text, no memory of its own, errors sticky.
 *
 * `expect` holds what may come next in its low byte and the current token's kind above it; the stack
 * holds one bit a level, set for an object. [any], one thread a reader.
 */
#include <krasis/json.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>

static const char too_deep[] = "nested too deeply"; /* ks_json_fail adds the limit */

enum { EXPECT_VALUE, EXPECT_VALUE_OR_END, EXPECT_KEY, EXPECT_KEY_OR_END, EXPECT_COMMA, EXPECT_NOTHING };

static int token_of(const ks_json *j)
{
    return (int)(j->expect >> 8);
}

static int found(ks_json *j, int kind, uint32_t expect)
{
    j->expect = expect | (uint32_t)kind << 8;
    return kind;
}

static int refuse(ks_json *j, size_t at, const char *why)
{
    j->error = why;
    j->at = at;
    j->tok = j->text + at;
    j->tok_bytes = 0;
    j->expect = EXPECT_NOTHING;
    return KS_JSON_ERROR;
}

static bool in_object(const ks_json *j)
{
    return j->stack[(j->depth - 1) / 8] >> ((j->depth - 1) % 8) & 1;
}

static uint32_t after_value(const ks_json *j)
{
    return j->depth ? EXPECT_COMMA : EXPECT_NOTHING;
}

void ks_json_init(ks_json *j, const char *text, size_t n, uint32_t max_depth)
{
    memset(j, 0, sizeof *j);
    j->text = j->tok = text ? text : "";
    j->n = text ? n : 0;
    j->max_depth = max_depth < 1 ? 1 : max_depth > KS_JSON_DEPTH_MAX ? KS_JSON_DEPTH_MAX : max_depth;
}

static void skip_space(ks_json *j)
{
    while (j->at < j->n) {
        char c = j->text[j->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
        j->at++;
    }
}

/* Four hexadecimal digits at `at`, or -1. */
static int32_t hex4(const ks_json *j, size_t at)
{
    int32_t v = 0;
    if (j->n - at < 4) return -1;
    for (size_t i = at; i < at + 4; i++) {
        char c = j->text[i];
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (d < 0) return -1;
        v = v << 4 | d;
    }
    return v;
}

/* The escape whose backslash is at `at`: its length, or 0 with the error set. */
static size_t scan_escape(ks_json *j, size_t at)
{
    if (j->n - at < 2) return (void)refuse(j, j->n, "the text ends inside a string"), 0;
    char c = j->text[at + 1];
    if (c != 'u') {
        if (!c || !strchr("\"\\/bfnrt", c)) return (void)refuse(j, at, "unknown escape in a string"), 0;
        return 2;
    }
    int32_t u = hex4(j, at + 2);
    if (u < 0) return (void)refuse(j, at, "\\u needs four hexadecimal digits"), 0;
    if (u < 0xd800 || u > 0xdfff) return 6;
    int32_t low = -1;
    if (u < 0xdc00 && j->n - at >= 12 && j->text[at + 6] == '\\' && j->text[at + 7] == 'u') low = hex4(j, at + 8);
    if (low < 0xdc00 || low > 0xdfff) return (void)refuse(j, at, "lone surrogate in a string"), 0;
    return 12;
}

/* at: after the opening quote. Leaves `at` after the closing one. */
static bool scan_string(ks_json *j)
{
    size_t i = j->at;
    const size_t start = i;
    j->escaped = false;
    for (;;) {
        if (i >= j->n) return (void)refuse(j, j->n, "the text ends inside a string"), false;
        unsigned char c = (unsigned char)j->text[i];
        if (c == '"') break;
        if (c == '\\') {
            size_t len = scan_escape(j, i);
            if (!len) return false;
            j->escaped = true;
            i += len;
        } else if (c < 0x20) {
            return (void)refuse(j, i, "raw control character in a string"), false;
        } else if (c < 0x80) {
            i++;
        } else {
            uint32_t cp, len = ks_utf8_decode(j->text + i, j->n - i, &cp);
            if (!len) return (void)refuse(j, i, "invalid UTF-8 in a string"), false;
            i += len;
        }
    }
    j->tok = j->text + start;
    j->tok_bytes = i - start;
    j->at = i + 1;
    return true;
}

static size_t scan_digits(const ks_json *j, size_t i)
{
    while (i < j->n && j->text[i] >= '0' && j->text[i] <= '9') i++;
    return i;
}

static int scan_number(ks_json *j)
{
    size_t start = j->at, i = start, end;
    if (j->text[i] == '-') i++;
    end = scan_digits(j, i);
    if (end == i) return refuse(j, i, "a digit must follow the minus sign");
    if (j->text[i] == '0' && end > i + 1) return refuse(j, start, "leading zero in a number");
    i = end;
    if (i < j->n && j->text[i] == '.') {
        end = scan_digits(j, i + 1);
        if (end == i + 1) return refuse(j, end, "a digit must follow the decimal point");
        i = end;
    }
    if (i < j->n && (j->text[i] | 32) == 'e') {
        i++;
        if (i < j->n && (j->text[i] == '+' || j->text[i] == '-')) i++;
        end = scan_digits(j, i);
        if (end == i) return refuse(j, end, "a digit must follow the exponent sign");
        i = end;
    }
    j->tok = j->text + start;
    j->tok_bytes = i - start;
    j->at = i;
    return found(j, KS_JSON_NUMBER, after_value(j));
}

static int scan_word(ks_json *j, const char *word, size_t len, int kind)
{
    if (j->n - j->at < len || memcmp(j->text + j->at, word, len)) return refuse(j, j->at, "a value is expected here");
    j->tok = j->text + j->at;
    j->tok_bytes = len;
    j->at += len;
    return found(j, kind, after_value(j));
}

static int open_level(ks_json *j, bool object)
{
    if (j->depth >= j->max_depth) return refuse(j, j->at, too_deep);
    uint8_t *byte = &j->stack[j->depth / 8], bit = (uint8_t)(1u << (j->depth % 8));
    *byte = object ? *byte | bit : *byte & (uint8_t)~bit;
    j->depth++;
    j->tok = j->text + j->at++;
    j->tok_bytes = 1;
    return object ? found(j, KS_JSON_OBJECT, EXPECT_KEY_OR_END) : found(j, KS_JSON_ARRAY, EXPECT_VALUE_OR_END);
}

static int close_level(ks_json *j)
{
    int kind = in_object(j) ? KS_JSON_OBJECT_END : KS_JSON_ARRAY_END;
    j->tok = j->text + j->at++;
    j->tok_bytes = 1;
    j->depth--;
    return found(j, kind, after_value(j));
}

static int next_value(ks_json *j)
{
    switch (j->text[j->at]) {
    case '{': return open_level(j, true);
    case '[': return open_level(j, false);
    case '"': j->at++; return scan_string(j) ? found(j, KS_JSON_STRING, after_value(j)) : KS_JSON_ERROR;
    case 't': return scan_word(j, "true", 4, KS_JSON_TRUE);
    case 'f': return scan_word(j, "false", 5, KS_JSON_FALSE);
    case 'n': return scan_word(j, "null", 4, KS_JSON_NULL);
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9': return scan_number(j);
    default: return refuse(j, j->at, "a value is expected here");
    }
}

static int next_key(ks_json *j)
{
    if (j->text[j->at] != '"') return refuse(j, j->at, "a member's name in double quotes is expected here");
    j->at++;
    if (!scan_string(j)) return KS_JSON_ERROR;
    skip_space(j);
    if (j->at >= j->n) return refuse(j, j->n, "the text ends too early");
    if (j->text[j->at] != ':') return refuse(j, j->at, "a colon is expected here");
    j->at++;
    return found(j, KS_JSON_KEY, EXPECT_VALUE);
}

int ks_json_next(ks_json *j)
{
    if (j->error) return KS_JSON_ERROR;
    skip_space(j);
    uint32_t expect = j->expect & 0xff;
    if (expect == EXPECT_NOTHING) {
        if (j->at < j->n) return refuse(j, j->at, "unexpected text after the value");
        return found(j, KS_JSON_END, EXPECT_NOTHING);
    }
    if (j->at >= j->n) return refuse(j, j->n, "the text ends too early");
    char c = j->text[j->at];
    if (expect == EXPECT_COMMA) {
        if (c == (in_object(j) ? '}' : ']')) return close_level(j);
        if (c != ',')
            return refuse(j, j->at,
                          in_object(j) ? "a comma or '}' is expected here" : "a comma or ']' is expected here");
        j->at++;
        skip_space(j);
        if (j->at >= j->n) return refuse(j, j->n, "the text ends too early");
        return in_object(j) ? next_key(j) : next_value(j);
    }
    if (expect == EXPECT_KEY_OR_END) return c == '}' ? close_level(j) : next_key(j);
    if (expect == EXPECT_VALUE_OR_END && c == ']') return close_level(j);
    return next_value(j);
}

int ks_json_skip(ks_json *j)
{
    int kind = token_of(j);
    if (j->error) return KS_E_FORMAT;
    if (kind == KS_JSON_KEY) kind = ks_json_next(j);
    if (kind == KS_JSON_OBJECT || kind == KS_JSON_ARRAY)
        for (uint32_t depth = j->depth; j->depth >= depth;)
            if (ks_json_next(j) < 0) break;
    return j->error ? KS_E_FORMAT : 0;
}

/* One character of a checked string: its bytes into dst[4]; returns how many, advances *at. */
static uint32_t unescape(const ks_json *j, size_t *at, char dst[4])
{
    const char *s = j->tok + *at;
    if (s[0] != '\\') {
        dst[0] = s[0];
        *at += 1;
        return 1;
    }
    if (s[1] != 'u') {
        static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
        const char *hit = strchr(from, s[1]);
        dst[0] = hit ? to[hit - from] : s[1];
        *at += 2;
        return 1;
    }
    size_t base = (size_t)(s - j->text);
    uint32_t cp = (uint32_t)hex4(j, base + 2);
    *at += 6;
    if (cp >= 0xd800 && cp < 0xdc00) {
        cp = 0x10000 + ((cp & 0x3ff) << 10 | ((uint32_t)hex4(j, base + 8) & 0x3ff));
        *at += 6;
    }
    return ks_utf8_encode(cp, dst);
}

static bool is_text(const ks_json *j)
{
    return token_of(j) == KS_JSON_KEY || token_of(j) == KS_JSON_STRING;
}

int ks_json_str(const ks_json *j, char *dst, size_t cap, size_t *ret_n)
{
    size_t n = 0;
    if (!is_text(j)) return KS_E_INVAL;
    if (!j->escaped) {
        if (j->tok_bytes >= cap) return KS_E_LIMIT;
        memcpy(dst, j->tok, j->tok_bytes);
        n = j->tok_bytes;
    } else {
        for (size_t at = 0; at < j->tok_bytes;) {
            char c[4];
            uint32_t len = unescape(j, &at, c);
            if (len >= cap - n) return KS_E_LIMIT; /* n < cap holds: cap 0 is caught here, too */
            memcpy(dst + n, c, len);
            n += len;
        }
    }
    dst[n] = 0;
    if (ret_n) *ret_n = n;
    return 0;
}

bool ks_json_is(const ks_json *j, const char *s)
{
    if (!is_text(j)) return false;
    if (!j->escaped) return strlen(s) == j->tok_bytes && !memcmp(s, j->tok, j->tok_bytes);
    size_t n = 0, want = strlen(s);
    for (size_t at = 0; at < j->tok_bytes;) {
        char c[4];
        uint32_t len = unescape(j, &at, c);
        if (len > want - n || memcmp(s + n, c, len)) return false;
        n += len;
    }
    return n == want;
}

/* Sign and magnitude of a number spelled as an integer. */
static int magnitude(const ks_json *j, bool *ret_negative, uint64_t *ret)
{
    uint64_t v = 0;
    if (token_of(j) != KS_JSON_NUMBER) return KS_E_INVAL;
    bool negative = j->tok[0] == '-', fits = true;
    for (size_t i = negative; i < j->tok_bytes; i++) {
        char c = j->tok[i];
        if (c < '0' || c > '9') return KS_E_INVAL;
        fits = fits && !__builtin_mul_overflow(v, 10u, &v) && !__builtin_add_overflow(v, (uint64_t)(c - '0'), &v);
    }
    if (!fits) return KS_E_LIMIT;
    *ret_negative = negative;
    *ret = v;
    return 0;
}

int ks_json_i64(const ks_json *j, int64_t *ret)
{
    bool negative;
    uint64_t v;
    int rc = magnitude(j, &negative, &v);
    if (rc) return rc;
    if (v > (uint64_t)INT64_MAX + negative) return KS_E_LIMIT;
    *ret = negative ? (int64_t)(0 - v) : (int64_t)v;
    return 0;
}

int ks_json_u64(const ks_json *j, uint64_t *ret)
{
    bool negative;
    uint64_t v;
    int rc = magnitude(j, &negative, &v);
    if (rc) return rc;
    if (negative && v) return KS_E_LIMIT;
    *ret = v;
    return 0;
}

/* A double is decided by 768 significant digits and whether anything follows them, so that a number of
 * any length fits a fixed buffer: "d...d" "e" exponent, which strtod rounds correctly. */
#define DIGITS_MAX 780

int ks_json_f64(const ks_json *j, double *ret)
{
    char text[DIGITS_MAX + 32];
    size_t n = 0, i = 0;
    long exponent = 0;
    bool point = false, rest = false;
    if (token_of(j) != KS_JSON_NUMBER) return KS_E_INVAL;
    if (j->tok[i] == '-') text[n++] = j->tok[i++];
    for (const size_t first = n; i < j->tok_bytes && (j->tok[i] | 32) != 'e'; i++) {
        char c = j->tok[i];
        if (c == '.') {
            point = true;
            continue;
        }
        bool kept = n < DIGITS_MAX;
        if (n == first && c == '0')
            kept = point; /* a leading zero: only its place counts */
        else if (kept)
            text[n++] = c;
        else if (c != '0')
            rest = true;
        exponent += (long)(!kept && !point && n != first) - (long)(kept && point);
    }
    if (n == 0 || text[n - 1] == '-') text[n++] = '0';
    if (rest) {
        text[n++] = '1';
        exponent--;
    }
    if (i < j->tok_bytes) {
        bool minus = j->tok[++i] == '-';
        long e = 0;
        for (i += minus || j->tok[i] == '+'; i < j->tok_bytes; i++)
            if (e < 1000000000) e = e * 10 + (j->tok[i] - '0'); /* beyond any text's length: decided already */
        exponent += minus ? -e : e;
    }
    (void)snprintf(text + n, sizeof text - n, "e%ld", exponent);  /* always fits: n <= DIGITS_MAX + 2 */
    locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* the C locale is static: never fails or leaks */
    double v = strtod_l(text, NULL, c_locale);
    freelocale(c_locale);
    if (!isfinite(v)) return KS_E_LIMIT;
    *ret = v;
    return 0;
}

int ks_json_fail(const ks_json *j, ks_err *err, const char *what)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < j->at && i < j->n; i++) {
        if (j->text[i] == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)j->text[i] & 0xc0) != 0x80) { /* a column is a character, not a byte */
            column++;
        }
    }
    if (j->error == too_deep)
        return ks_fail(err, KS_E_FORMAT, "%s: line %zu, column %zu: %s: at most %u levels are allowed", what, line,
                       column, too_deep, j->max_depth);
    return ks_fail(err, KS_E_FORMAT, "%s: line %zu, column %zu: %s", what, line, column,
                   j->error ? j->error : "not what is expected here");
}
