/* Normalizers: each reads one buffer and writes the other, or leaves the text where it is. [any] */
#include "text/tokenizer_impl.h"

#include <krasis/json.h>
#include <string.h>

static void put_char(ks_buf *out, uint32_t cp)
{
    char b[4];
    ks_buf_add(out, b, ks_utf8_encode(cp, b));
}

static int replace(const ks_norm *st, const char *s, size_t n, ks_buf *out, ks_err *err)
{
    if (st->single) { /* nearly always a space */
        for (const char *end = s + n; s < end;) {
            const char *hit = memchr(s, st->single, (size_t)(end - s));
            ks_buf_add(out, s, (size_t)((hit ? hit : end) - s));
            if (hit) ks_buf_add(out, st->text, st->n);
            s = hit ? hit + 1 : end;
        }
        return 0;
    }
    ks_matches m = { .p = st->pattern, .s = (const uint8_t *)s, .n = n };
    size_t done = 0, begin, end;
    int rc;
    while ((rc = ks_matches_next(&m, &begin, &end, err)) > 0) {
        ks_buf_add(out, s + done, begin - done);
        ks_buf_add(out, st->text, st->n);
        done = end;
    }
    ks_buf_add(out, s + done, n - done);
    return rc;
}

static void strip(const ks_norm *st, const char **s, size_t *n)
{
    const uint8_t *p = (const uint8_t *)*s, *end = p + *n;
    uint32_t len;
    while (st->left && p < end && ks_uni_is_space(ks_uni_get(p, &len))) p += len;
    while (st->right && p < end) {
        const uint8_t *q = end - 1;
        while ((*q & 0xc0) == 0x80) q--;
        if (!ks_uni_is_space(ks_uni_get(q, &len))) break;
        end = q;
    }
    *s = (const char *)p;
    *n = (size_t)(end - p);
}

static void each_char(const ks_norm *st, const char *s, size_t n, ks_buf *out)
{
    for (size_t i = 0; i < n;) {
        uint32_t len, cp = ks_uni_get((const uint8_t *)s + i, &len);
        i += len;
        if (st->type == KS_NORM_ACCENTS) {
            if (!ks_uni_is_mark(cp)) put_char(out, cp);
            continue;
        }
        put_char(out, cp == 0x130 ? 'i' : ks_uni_lower(cp));
        if (cp == 0x130) put_char(out, 0x307); /* the one long mapping */
    }
}

int ks_norm_run(const ks_norm *steps, uint32_t n_steps, const char *s, size_t n, ks_buf *a, ks_buf *b, const char **ret,
                size_t *ret_n, ks_err *err)
{
    for (uint32_t k = 0; k < n_steps; k++) {
        const ks_norm *st = &steps[k];
        ks_buf *out = s == a->p ? b : a;
        out->n = 0;
        int rc = 0;
        switch (st->type) {
        case KS_NORM_FORM:
            if (ks_uni_is_normal(st->form, s, n)) continue;
            ks_uni_normalize(st->form, s, n, out);
            break;
        case KS_NORM_REPLACE: rc = replace(st, s, n, out, err); break;
        case KS_NORM_PREPEND:
            if (!n) continue;
            ks_buf_add(out, st->text, st->n);
            ks_buf_add(out, s, n);
            break;
        case KS_NORM_STRIP:
            strip(st, &s, &n);
            ks_buf_add(out, s, n); /* copied: the buffers are told apart by their start */
            break;
        case KS_NORM_BYTE_CHARS: ks_byte_chars((const uint8_t *)s, n, out); break;
        default: each_char(st, s, n, out); break; /* LOWER, ACCENTS */
        }
        if (rc) return rc;
        if (out->failed) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu bytes of text", n);
        s = out->p;
        n = out->n;
        if (!s) s = ""; /* nothing was written yet, and nothing is left */
    }
    *ret = s;
    *ret_n = n;
    return 0;
}
