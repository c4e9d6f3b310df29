/* The chain of pre-tokenizers. Pieces are pushed depth first: a stage hands each part to the next one at once, so that
 * a long text needs no list of its pieces; what a stage rewrites lives in its own buffer until its parts are done.
 * [any] */
#include "text/pretok.h"

#include "base/base.h"

#include <krasis/json.h>
#include <string.h>

/* ---- GPT-2's map: printable Latin-1 stands for itself, the 68 other bytes for U+0100 and up, in order. */

static bool is_plain(uint32_t b)
{
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

uint32_t ks_char_of_byte(uint8_t b)
{
    if (is_plain(b)) return b;
    return b <= 0x20 ? 0x100u + b : b <= 0xa0 ? 0x121u + (b - 0x7fu) : 0x143u;
}

int ks_byte_of_char(uint32_t cp)
{
    if (cp < 0x100) return is_plain(cp) ? (int)cp : -1;
    if (cp <= 0x120) return (int)(cp - 0x100);
    if (cp <= 0x142) return (int)(cp - 0x121 + 0x7f);
    return cp == 0x143 ? 0xad : -1;
}

void ks_byte_chars(const uint8_t *s, size_t n, ks_buf *out)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t c = ks_char_of_byte(s[i]);
        if (c >= 0x80) ks_buf_addc(out, (char)(0xc0 | c >> 6));
        ks_buf_addc(out, (char)(c < 0x80 ? c : 0x80 | (c & 0x3f)));
    }
}

/* ---- Stages */

static int feed(ks_pretok_run *run, uint32_t k, const uint8_t *s, size_t n, bool first, ks_err *err);

/* Joins matches and gaps as the stage's behaviour says; at most one part is held back. */
typedef struct joiner {
    ks_pretok_run *run;
    uint32_t k;
    const uint8_t *s;
    bool first;
    size_t begin, end; /* the part held back */
    bool held, last_match;
} joiner;

static int send(joiner *j, size_t begin, size_t end, ks_err *err)
{
    return feed(j->run, j->k + 1, j->s + begin, end - begin, j->first && begin == 0, err);
}

static int release(joiner *j, ks_err *err)
{
    if (!j->held) return 0;
    j->held = false;
    return send(j, j->begin, j->end, err);
}

static int join(joiner *j, size_t begin, size_t end, bool is_match, ks_err *err)
{
    const ks_stage *st = &j->run->t->stage[j->k];
    is_match ^= st->invert;
    bool extend = false;
    switch (st->behavior) {
    case KS_SPLIT_REMOVED: return is_match ? 0 : send(j, begin, end, err);
    case KS_SPLIT_ISOLATED: return send(j, begin, end, err);
    case KS_SPLIT_PREVIOUS: extend = is_match && !j->last_match; break;
    case KS_SPLIT_CONTIGUOUS: extend = is_match == j->last_match; break;
    default: extend = !is_match && j->last_match; break; /* NEXT: a gap takes the match before it */
    }
    j->last_match = is_match;
    if (j->held && extend) {
        j->end = end;
        return 0;
    }
    int rc = release(j, err);
    j->begin = begin;
    j->end = end;
    j->held = true;
    return rc;
}

static int split(ks_pretok_run *run, uint32_t k, const uint8_t *s, size_t n, bool first, ks_err *err)
{
    joiner j = { .run = run, .k = k, .s = s, .first = first };
    ks_matches m = { .p = run->t->stage[k].pattern, .s = s, .n = n };
    size_t done = 0, begin, end;
    int rc;
    while ((rc = ks_matches_next(&m, &begin, &end, err)) > 0) {
        if (begin > done && (rc = join(&j, done, begin, false, err)) < 0) return rc;
        if ((rc = join(&j, begin, end, true, err)) < 0) return rc;
        done = end;
    }
    if (!rc && done < n) rc = join(&j, done, n, false, err);
    return rc < 0 ? rc : release(&j, err);
}

static int metaspace(ks_pretok_run *run, uint32_t k, const uint8_t *s, size_t n, bool first, ks_err *err)
{
    const ks_stage *st = &run->t->stage[k];
    ks_buf *b = &run->scratch[k];
    size_t len = strlen(st->replacement);
    b->n = 0;
    bool has = (n >= len && !memcmp(s, st->replacement, len)) || s[0] == ' ';
    if (!has && (st->scheme == KS_METASPACE_ALWAYS || (st->scheme == KS_METASPACE_FIRST && first)))
        ks_buf_add(b, st->replacement, len);
    for (size_t i = 0; i < n;) {
        const uint8_t *space = memchr(s + i, ' ', n - i);
        size_t end = space ? (size_t)(space - s) : n;
        ks_buf_add(b, s + i, end - i);
        if (space) ks_buf_add(b, st->replacement, len);
        i = end + (space != NULL);
    }
    if (b->failed) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu bytes of text", n);
    return feed(run, k + 1, (const uint8_t *)b->p, b->n, first, err);
}

static int feed(ks_pretok_run *run, uint32_t k, const uint8_t *s, size_t n, bool first, ks_err *err)
{
    if (!n) return 0;
    if (k == run->t->n) return run->fn(run->user, s, n, err);
    ks_buf *b = &run->scratch[k];
    switch (run->t->stage[k].type) {
    case KS_STAGE_SPLIT: return split(run, k, s, n, first, err);
    case KS_STAGE_METASPACE: return metaspace(run, k, s, n, first, err);
    case KS_STAGE_PREFIX_SPACE:
        if (s[0] == ' ') return feed(run, k + 1, s, n, first, err);
        b->n = 0;
        ks_buf_addc(b, ' ');
        ks_buf_add(b, s, n);
        break;
    default: /* BYTE_CHARS */
        b->n = 0;
        ks_byte_chars(s, n, b);
        break;
    }
    if (b->failed) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu bytes of text", n);
    return feed(run, k + 1, (const uint8_t *)b->p, b->n, first, err);
}

int ks_pretok_feed(ks_pretok_run *run, const uint8_t *s, size_t n, bool first, ks_err *err)
{
    return feed(run, 0, s, n, first, err);
}

void ks_pretok_run_fini(ks_pretok_run *run)
{
    for (uint32_t k = 0; k < KS_STAGES_MAX; k++) ks_buf_fini(&run->scratch[k]);
}

void ks_pretok_fini(ks_pretok *t)
{
    for (uint32_t k = 0; k < t->n; k++) ks_pattern_free(t->stage[k].pattern);
    t->n = 0;
}
