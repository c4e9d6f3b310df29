/* From ids to text: the decoder chain as a stream. Batch decoding is the same stream, so that the two cannot differ.
 *
 * What depends on one token alone is done at load (`bytes`). The rest keeps little: at most three bytes of an
 * unfinished character; or a run of <0xNN> tokens, which the reference decodes as a whole: one ill-formed byte makes
 * every byte of the run U+FFFD. A run is held up to RUN_MAX bytes, then its complete characters go out (text in a
 * script that the vocabulary lacks must not stall), and only for a longer broken run does the result differ from the
 * reference. One thread a stream. */
#include "text/tokenizer_impl.h"

#include <krasis/json.h>
#include <string.h>

#define RUN_MAX 64u

static const char replacement[] = "\xef\xbf\xbd";

struct ks_detok {
    const ks_tokenizer *t;
    bool skip_special;
    bool begun;  /* a token has gone through */
    ks_buf out;  /* of this call */
    ks_buf hold; /* an unfinished character, or a run of byte tokens */
    ks_buf scratch[2];
    struct {
        uint32_t cut, held; /* STRIP over the whole text: characters cut at the start; held back at the end */
        bool done;
    } strip[KS_TOK_STEPS_MAX];
};

/* ---- UTF-8: one character, an ill-formed part (the longest that could have begun one), or an unfinished one. */

enum { STEP_OK, STEP_BAD, STEP_MORE };

static int step(const uint8_t *s, size_t n, size_t *ret_len)
{
    uint8_t c = s[0], lo = 0x80, hi = 0xbf;
    size_t need = c < 0x80 ? 0 : c < 0xc2 ? 9 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : 9;
    if (need == 9) return *ret_len = 1, STEP_BAD;
    if (c == 0xe0) lo = 0xa0;
    if (c == 0xed) hi = 0x9f;
    if (c == 0xf0) lo = 0x90;
    if (c == 0xf4) hi = 0x8f;
    for (size_t i = 1; i <= need; i++, lo = 0x80, hi = 0xbf) {
        *ret_len = i;
        if (i == n) return STEP_MORE;
        if (s[i] < lo || s[i] > hi) return STEP_BAD;
    }
    *ret_len = need + 1;
    return STEP_OK;
}

/* ---- The chain */

static void replace_all(const ks_dec *d, const char *s, size_t n, ks_buf *out)
{
    ks_matches m = { .p = d->pattern, .s = (const uint8_t *)s, .n = n };
    size_t done = 0, begin, end;
    while (ks_matches_next(&m, &begin, &end, NULL) >
           0) { /* a token too hard for the pattern stays as it is from there */
        ks_buf_add(out, s + done, begin - done);
        ks_buf_add(out, d->text, d->n);
        done = end;
    }
    ks_buf_add(out, s + done, n - done);
}

static bool begins(const ks_dec *d, const char *s, size_t n)
{
    return n >= d->n && !memcmp(s, d->text, d->n);
}

static bool ends(const ks_dec *d, const char *s, size_t n)
{
    return n >= d->n && !memcmp(s + n - d->n, d->text, d->n);
}

static void strip_token(const ks_dec *d, const char **s, size_t *n)
{
    for (uint32_t i = 0; i < d->start && begins(d, *s, *n); i++) {
        *s += d->n;
        *n -= d->n;
    }
    for (uint32_t i = 0; i < d->stop && ends(d, *s, *n); i++) *n -= d->n;
}

/* The same over the whole text, which comes in parts. */
static void strip_stream(ks_detok *k, uint32_t i, const char *s, size_t n, ks_buf *out)
{
    const ks_dec *d = &k->t->dec[i];
    while (!k->strip[i].done && n) {
        if (k->strip[i].cut == d->start || !begins(d, s, n)) {
            k->strip[i].done = true;
            break;
        }
        k->strip[i].cut++;
        s += d->n;
        n -= d->n;
    }
    if (!n) return;
    uint32_t tail = 0;
    while (tail < d->stop && ends(d, s, n)) {
        tail++;
        n -= d->n;
    }
    uint32_t give = k->strip[i].held; /* what was held is inside the text now, unless this part is all tail, too */
    if (!n) give = give + tail > d->stop ? give + tail - d->stop : 0;
    for (uint32_t c = 0; c < give; c++) ks_buf_add(out, d->text, d->n);
    k->strip[i].held += tail - give;
    ks_buf_add(out, s, n);
}

static void metaspace(const ks_detok *k, const ks_dec *d, const char *s, size_t n, ks_buf *out)
{
    for (const char *end = s + n; s < end;) {
        const char *hit = memmem(s, (size_t)(end - s), d->text, d->n);
        ks_buf_add(out, s, (size_t)((hit ? hit : end) - s));
        if (hit && (k->begun || d->keep_first)) ks_buf_addc(out, ' ');
        s = hit ? hit + d->n : end;
    }
}

/* One token's text (or a whole run's) through the steps that are left. */
static void emit(ks_detok *k, const char *s, size_t n)
{
    const ks_tokenizer *t = k->t;
    bool fused = t->lossy;
    for (uint32_t i = t->n_dec_local; i < t->n_dec; i++) {
        const ks_dec *d = &t->dec[i];
        ks_buf *b = &k->scratch[s == k->scratch[0].p]; /* the one that does not hold s */
        if (d->type == KS_DEC_FUSE) fused = true;
        if (d->type == KS_DEC_FUSE || d->type == KS_DEC_FALLBACK) continue;
        b->n = 0;
        if (d->type == KS_DEC_STRIP && !fused) {
            strip_token(d, &s, &n);
            ks_buf_add(b, s, n);
        } else if (d->type == KS_DEC_STRIP) {
            strip_stream(k, i, s, n, b);
        } else if (d->type == KS_DEC_REPLACE) {
            replace_all(d, s, n, b);
        } else if (d->type == KS_DEC_METASPACE) {
            metaspace(k, d, s, n, b);
        } else { /* JOIN */
            if (k->begun) ks_buf_addc(b, ' ');
            ks_buf_add(b, s, n);
        }
        k->out.failed |= b->failed;
        s = b->p ? b->p : "";
        n = b->n;
    }
    ks_buf_add(&k->out, s, n);
    k->begun = true;
}

/* ---- Bytes that become text only together (byte-level vocabularies) */

static void add_lossy(ks_detok *k, const char *s, size_t n)
{
    size_t i = 0, from = 0;
    if (k->hold.n) {
        ks_buf_add(&k->hold, s, n);
        s = k->hold.p;
        n = k->hold.n;
        if (k->hold.failed) return;
    }
    k->scratch[1].n = 0;
    while (i < n) {
        size_t len;
        int got = step((const uint8_t *)s + i, n - i, &len);
        if (got == STEP_MORE) break;
        i += len;
        if (got == STEP_OK) continue;
        ks_buf_add(&k->scratch[1], s + from, i - len - from);
        ks_buf_add(&k->scratch[1], replacement, 3);
        from = i;
    }
    ks_buf_add(&k->scratch[1], s + from, i - from);
    char rest[4];
    size_t n_rest = n - i; /* at most 3 */
    memcpy(rest, s + i, n_rest);
    k->hold.n = 0;
    ks_buf_add(&k->hold, rest, n_rest);
    if (k->scratch[1].n) emit(k, k->scratch[1].p, k->scratch[1].n);
}

/* ---- Runs of byte tokens */

static void emit_broken(ks_detok *k, size_t n)
{
    for (size_t i = 0; i < n; i++) emit(k, replacement, 3);
}

static void end_run(ks_detok *k)
{
    if (!k->hold.n) return;
    if (ks_utf8_valid(k->hold.p, k->hold.n) == k->hold.n)
        emit(k, k->hold.p, k->hold.n);
    else
        emit_broken(k, k->hold.n);
    k->hold.n = 0;
}

static void add_run_byte(ks_detok *k, char byte)
{
    ks_buf_addc(&k->hold, byte);
    if (k->hold.failed || k->hold.n < RUN_MAX) return;
    size_t valid = ks_utf8_valid(k->hold.p, k->hold.n), rest = k->hold.n - valid, len = 0;
    if (rest && (step((const uint8_t *)k->hold.p + valid, rest, &len) != STEP_MORE || len != rest)) {
        end_run(k); /* broken */
        return;
    }
    emit(k, k->hold.p, valid);
    memmove(k->hold.p, k->hold.p + valid, rest);
    k->hold.n = rest;
}

/* ---- Public */

int ks_detok_new(const ks_tokenizer *t, bool skip_special, ks_detok **ret, ks_err *err)
{
    ks_detok *k = ks_calloc(1, sizeof *k);
    if (!k) return ks_fail(err, KS_E_NOMEM, "out of memory for a decoder");
    k->t = t;
    k->skip_special = skip_special;
    *ret = k;
    return 0;
}

void ks_detok_free(ks_detok *d)
{
    if (!d) return;
    ks_buf_fini(&d->out);
    ks_buf_fini(&d->hold);
    ks_buf_fini(&d->scratch[0]);
    ks_buf_fini(&d->scratch[1]);
    free(d);
}

static void add_token(ks_detok *d, int32_t id)
{
    const ks_tokenizer *t = d->t;
    size_t n;
    const char *s = ks_tokenizer_bytes(t, id, &n);
    if (!s || (d->skip_special && ks_tokenizer_is_special(t, id))) return;
    if (t->lossy) {
        add_lossy(d, s, n);
    } else if (t->has_fallback && t->is_byte[id]) {
        add_run_byte(d, *s);
    } else {
        end_run(d);
        emit(d, s, n);
    }
}

static int result(ks_detok *d, const char **ret, size_t *ret_n, ks_err *err)
{
    if (d->out.failed || d->hold.failed || d->scratch[0].failed || d->scratch[1].failed)
        return ks_fail(err, KS_E_NOMEM, "out of memory for the decoded text");
    *ret = d->out.p ? d->out.p : "";
    *ret_n = d->out.n;
    return 0;
}

static void finish(ks_detok *d)
{
    if (!d->t->lossy) {
        end_run(d);
    } else if (d->hold.n) { /* an unfinished character is one ill-formed part */
        d->hold.n = 0;
        emit(d, replacement, 3);
    }
}

int ks_detok_add(ks_detok *d, int32_t id, const char **ret, size_t *ret_n, ks_err *err)
{
    d->out.n = 0;
    add_token(d, id);
    return result(d, ret, ret_n, err);
}

int ks_detok_end(ks_detok *d, const char **ret, size_t *ret_n, ks_err *err)
{
    d->out.n = 0;
    finish(d);
    return result(d, ret, ret_n, err);
}

int ks_tokenizer_decode(const ks_tokenizer *t, const int32_t *ids, size_t n, bool skip_special, char **ret,
                        size_t *ret_n, ks_err *err)
{
    ks_detok *d = NULL;
    const char *text;
    size_t text_n;
    int rc = ks_detok_new(t, skip_special, &d, err);
    if (rc) return rc;
    for (size_t i = 0; i < n; i++) add_token(d, ids[i]);
    finish(d);
    if (!(rc = result(d, &text, &text_n, err))) {
        ks_buf_adds(&d->out, ""); /* never NULL */
        *ret = ks_buf_take(&d->out, ret_n);
        if (!*ret) rc = ks_fail(err, KS_E_NOMEM, "out of memory for the decoded text");
    }
    ks_detok_free(d);
    return rc;
}

/* ---- At load: what each token decodes to on its own */

/* A byte-level token: its bytes, if all its characters stand for bytes; else its text. */
static void undo_byte_chars(const char *s, size_t n, ks_buf *out)
{
    size_t begin = out->n;
    for (size_t i = 0; i < n;) {
        uint32_t len, cp = ks_uni_get((const uint8_t *)s + i, &len);
        int b = ks_byte_of_char(cp);
        if (b < 0) {
            out->n = begin;
            ks_buf_add(out, s, n);
            return;
        }
        ks_buf_addc(out, (char)b);
        i += len;
    }
}

static bool is_byte_name(const char *s, size_t n, uint8_t *ret)
{
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return false;
    uint32_t v = 0;
    for (int i = 3; i < 5; i++) {
        char c = s[i];
        uint32_t d = c >= '0' && c <= '9'                 ? (uint32_t)(c - '0')
                     : (c | 32) >= 'a' && (c | 32) <= 'f' ? (uint32_t)((c | 32) - 'a' + 10)
                                                          : 16;
        if (d == 16) return false;
        v = v * 16 + d;
    }
    *ret = (uint8_t)v;
    return true;
}

/* Which steps can be done now: leading replacements, and ByteLevel behind them. */
static int plan_steps(ks_tokenizer *t, ks_err *err)
{
    uint32_t i = 0;
    while (i < t->n_dec && t->dec[i].type == KS_DEC_REPLACE) i++;
    t->has_fallback = i < t->n_dec && t->dec[i].type == KS_DEC_FALLBACK;
    if (i < t->n_dec && t->dec[i].type == KS_DEC_BYTES) {
        t->lossy = true;
        i++;
    }
    t->n_dec_local = i;
    for (uint32_t k = i + t->has_fallback; k < t->n_dec; k++)
        if (t->dec[k].type == KS_DEC_BYTES || t->dec[k].type == KS_DEC_FALLBACK)
            return ks_fail(err, KS_E_UNSUPPORTED,
                           "decoder ByteLevel or ByteFallback after another than Replace is not supported");
    return 0;
}

static void token_bytes(ks_tokenizer *t, uint32_t id, const char *s, size_t n, ks_buf scratch[2])
{
    bool raw = t->bpe.raw;
    for (uint32_t i = 0; i < t->n_dec_local && t->dec[i].type == KS_DEC_REPLACE; i++) {
        ks_buf *b = &scratch[i & 1];
        b->n = 0;
        replace_all(&t->dec[i], s, n, b);
        s = b->p ? b->p : "";
        n = b->n;
    }
    uint8_t byte;
    t->bytes_of[id].at = (uint32_t)t->bytes.n;
    if (t->has_fallback && is_byte_name(s, n, &byte)) {
        t->is_byte[id] = true;
        ks_buf_addc(&t->bytes, (char)byte);
    } else if (t->lossy && !raw) {
        undo_byte_chars(s, n, &t->bytes);
    } else {
        ks_buf_add(&t->bytes, s, n);
    }
    t->bytes_of[id].n = (uint32_t)(t->bytes.n - t->bytes_of[id].at);
}

int ks_tokenizer_prepare_bytes(ks_tokenizer *t, ks_err *err)
{
    int rc = plan_steps(t, err);
    if (rc) return rc;
    t->bytes_of = ks_calloc(t->size, sizeof *t->bytes_of);
    t->is_byte = t->has_fallback ? ks_calloc(t->size, sizeof *t->is_byte) : NULL;
    if (!t->bytes_of || (t->has_fallback && !t->is_byte))
        return ks_fail(err, KS_E_NOMEM, "out of memory for %u tokens", t->size);
    ks_buf scratch[2] = { 0 };
    t->bytes.limit = UINT32_MAX / 2; /* offsets have 32 bits; a replacement can make tokens longer */
    for (uint32_t id = 0; id < t->size && !t->bytes.failed; id++) {
        size_t n;
        const char *s = ks_tokenizer_text(t, id, &n);
        t->bytes_of[id].n = KS_TOK_NONE;
        if (s) token_bytes(t, id, s, n, scratch);
    }
    if (t->bytes.failed || scratch[0].failed || scratch[1].failed)
        rc = ks_fail(err, KS_E_NOMEM, "out of memory, or 2 GiB of token text (%u tokens)", t->size);
    ks_buf_fini(&scratch[0]);
    ks_buf_fini(&scratch[1]);
    return rc;
}
