/* The JSON writer: appends to one heap buffer, places commas, never writes ill-formed text.
 * A failed allocation is sticky; the calls after it do nothing. Locale-independent. [any], one thread a writer.
 */
#include <krasis/json.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>

void ks_jw_init(ks_jw *w)
{
    memset(w, 0, sizeof *w);
}

void ks_jw_fini(ks_jw *w)
{
    free(w->text);
    ks_jw_init(w);
}

void ks_jw_reset(ks_jw *w)
{
    w->n = 0;
    w->failed = w->comma = false;
    if (w->text) w->text[0] = 0;
}

static void put(ks_jw *w, const char *s, size_t n)
{
    if (w->failed) return;
    if (n >= w->cap - w->n) { /* one byte stays for the NUL */
        size_t need, cap = w->cap < 256 ? 256 : w->cap;
        if (__builtin_add_overflow(w->n, n, &need) || need >= SIZE_MAX / 2) {
            w->failed = true;
            return;
        }
        while (cap <= need) cap *= 2;
        char *text = realloc(w->text, cap);
        if (!text) {
            w->failed = true;
            return;
        }
        w->text = text;
        w->cap = cap;
    }
    if (n) memcpy(w->text + w->n, s, n);
    w->n += n;
    w->text[w->n] = 0;
}

static void begin_value(ks_jw *w)
{
    if (w->comma) put(w, ",", 1);
    w->comma = true;
}

static void begin_level(ks_jw *w, const char *bracket)
{
    begin_value(w);
    put(w, bracket, 1);
    w->comma = false;
}

static void end_level(ks_jw *w, const char *bracket)
{
    put(w, bracket, 1);
    w->comma = true;
}

void ks_jw_object(ks_jw *w)
{
    begin_level(w, "{");
}
void ks_jw_object_end(ks_jw *w)
{
    end_level(w, "}");
}
void ks_jw_array(ks_jw *w)
{
    begin_level(w, "[");
}
void ks_jw_array_end(ks_jw *w)
{
    end_level(w, "]");
}

static void put_escape(ks_jw *w, unsigned char c)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt", hex[] = "0123456789abcdef";
    const char *hit = c ? strchr(from, c) : NULL;
    if (hit) {
        char pair[2] = { '\\', to[hit - from] };
        put(w, pair, 2);
    } else {
        char six[6] = { '\\', 'u', '0', '0', hex[c >> 4], hex[c & 15] };
        put(w, six, 6);
    }
}

/* How many bytes at s one U+FFFD stands for: the start of a sequence that a byte more or another byte
 * would make good, else one byte. This is what Unicode recommends and browsers do. */
static size_t ill_formed_bytes(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t want = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2, got = 1;
    char trial[4] = { s[0], (char)0x80, (char)0x80, (char)0x80 };
    uint32_t cp;
    for (; got < want && got < n; got++) {
        trial[got] = s[got];
        if (got == 1 && want > 2) { /* is this second byte possible at all? */
            if (!ks_utf8_decode(trial, want, &cp)) break;
        } else if ((p[got] & 0xc0) != 0x80) {
            break;
        }
    }
    return p[0] < 0xc2 || p[0] > 0xf4 ? 1 : got;
}

void ks_jw_strn(ks_jw *w, const char *s, size_t n)
{
    begin_value(w);
    put(w, "\"", 1);
    size_t from = 0, i = 0; /* [from, i): plain, not written yet */
    while (i < n) {
        unsigned char c = (unsigned char)s[i];
        uint32_t cp, len = 1;
        if (c >= 0x80) len = ks_utf8_decode(s + i, n - i, &cp);
        if (len && c >= 0x20 && c != '"' && c != '\\') {
            i += len;
            continue;
        }
        put(w, s + from, i - from);
        if (len) {
            put_escape(w, c);
            i++;
        } else {
            put(w, "\xef\xbf\xbd", 3);
            i += ill_formed_bytes(s + i, n - i);
        }
        from = i;
    }
    put(w, s + from, i - from);
    put(w, "\"", 1);
}

void ks_jw_str(ks_jw *w, const char *s)
{
    if (s)
        ks_jw_strn(w, s, strlen(s));
    else
        ks_jw_null(w);
}

void ks_jw_key(ks_jw *w, const char *key)
{
    ks_jw_strn(w, key, strlen(key));
    put(w, ":", 1);
    w->comma = false;
}

void ks_jw_i64(ks_jw *w, int64_t v)
{
    char text[24];
    begin_value(w);
    put(w, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)v));
}

void ks_jw_u64(ks_jw *w, uint64_t v)
{
    char text[24];
    begin_value(w);
    put(w, text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)v));
}

/* ---- Floating point: the fewest digits that read back as the same number. */

typedef struct decimal {
    char digits[24]; /* without trailing zeros, value = 0.DDD x 10^point */
    int n, point;
} decimal;

static bool reads_back(const decimal *d, double v, bool single)
{
    char text[48];
    (void)snprintf(text, sizeof text, "%se%d", d->digits, d->point - d->n);
    return single ? strtof(text, NULL) == (float)v : strtod(text, NULL) == v;
}

/* v > 0, rounded to n digits. The C locale is set. */
static void to_decimal(double v, int n, decimal *d)
{
    char text[48]; /* d.dddde-123 */
    (void)snprintf(text, sizeof text, "%.*e", n - 1, v);
    const char *e = strchr(text, 'e');
    d->n = 0;
    for (const char *p = text; p < e; p++)
        if (*p != '.') d->digits[d->n++] = *p;
    while (d->n > 1 && d->digits[d->n - 1] == '0') d->n--;
    d->digits[d->n] = 0;
    d->point = (int)strtol(e + 1, NULL, 10) + 1;
}

/* `sure`: every decimal of so many digits survives a round trip, so that nothing shorter can be better
 * once its trailing zeros are off. Only subnormal numbers may need less. */
static void shortest(double v, bool single, decimal *d)
{
    const int sure = single ? 6 : 15, last = single ? 9 : 17;
    bool subnormal = v < (single ? 0x1p-126 : 0x1p-1022);
    for (int n = subnormal ? 1 : sure; n < last; n++) {
        to_decimal(v, n, d);
        if (reads_back(d, v, single)) return;
        /* At a power of two the gap below is half as wide: the next decimal up may read back where the
         * nearest one does not. A carry would make it a shorter decimal, tried before. */
        if (d->n == n && d->digits[n - 1] != '9') {
            d->digits[n - 1]++;
            if (reads_back(d, v, single)) return;
        }
    }
    to_decimal(v, last, d);
}

/* As JavaScript prints numbers: plain from 1e-6 up to 1e21, else with an exponent. */
static void put_decimal(ks_jw *w, const decimal *d)
{
    char text[48];
    static const char zeros[] = "000000000000000000000";
    if (d->point > 0 && d->point <= 21) {
        int whole = d->n < d->point ? d->n : d->point;
        put(w, d->digits, (size_t)whole);
        put(w, zeros, (size_t)(d->point - whole));
        if (d->n > whole) put(w, ".", 1);
        put(w, d->digits + whole, (size_t)(d->n - whole));
    } else if (d->point > -6 && d->point <= 0) {
        put(w, "0.", 2);
        put(w, zeros, (size_t)-d->point);
        put(w, d->digits, (size_t)d->n);
    } else {
        put(w, d->digits, 1);
        if (d->n > 1) put(w, ".", 1);
        put(w, d->digits + 1, (size_t)(d->n - 1));
        put(w, text, (size_t)snprintf(text, sizeof text, "e%d", d->point - 1));
    }
}

static void put_float(ks_jw *w, double v, bool single)
{
    if (!isfinite(v)) {
        ks_jw_null(w);
        return;
    }
    begin_value(w);
    if (signbit(v)) put(w, "-", 1);
    v = fabs(v);
    if (v < 1e15 && v == floor(v) && (!single || v < 1e6)) { /* counts and round settings, the common case */
        char text[24];
        put(w, text, (size_t)snprintf(text, sizeof text, "%.0f", v));
        return;
    }
    locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* static in the C library: never fails */
    locale_t old = uselocale(c_locale);
    decimal d;
    shortest(v, single, &d);
    (void)uselocale(old);
    freelocale(c_locale);
    put_decimal(w, &d);
}

void ks_jw_f64(ks_jw *w, double v)
{
    put_float(w, v, false);
}
void ks_jw_f32(ks_jw *w, float v)
{
    put_float(w, (double)v, true);
}

void ks_jw_bool(ks_jw *w, bool v)
{
    begin_value(w);
    put(w, v ? "true" : "false", v ? 4 : 5);
}

void ks_jw_null(ks_jw *w)
{
    begin_value(w);
    put(w, "null", 4);
}

void ks_jw_raw(ks_jw *w, const char *json, size_t n)
{
    begin_value(w);
    put(w, json, n);
}

void ks_jw_bytes(ks_jw *w, const char *s, size_t n)
{
    put(w, s, n);
    w->comma = false; /* what follows stands on its own */
}

int ks_jw_done(const ks_jw *w)
{
    return w->failed ? KS_E_NOMEM : 0;
}
