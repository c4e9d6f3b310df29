/* The tokenizer's public face: finding the files of a directory, and the way of a text through added tokens,
 * normalizers, pre-tokenizers and BPE to ids. [any] */
#include "text/tokenizer.h"

#include "base/file.h"
#include "text/tokenizer_impl.h"
#include "text/tokenizer_val.h"

#include <krasis/json.h>
#include <string.h>

/* Kimi's own code cuts long input before it encodes it, so the ids of long texts depend on it. */
#define SLICE_CHARS 400000u
#define SLICE_RUN_CHARS 25000u

/* ---- Life */

void ks_tokenizer_close(ks_tokenizer *t)
{
    if (!t) return;
    ks_bpe_fini(&t->bpe);
    for (uint32_t i = 0; i < t->n_norm; i++) ks_pattern_free(t->norm[i].pattern);
    for (uint32_t i = 0; i < t->n_dec; i++) ks_pattern_free(t->dec[i].pattern);
    ks_pretok_fini(&t->pretok);
    ks_vocab_fini(&t->added_index);
    ks_trie_fini(&t->raw);
    ks_trie_fini(&t->normalized);
    ks_uni_set_free(t->word);
    ks_buf_fini(&t->bytes);
    free(t->added);
    free(t->added_of);
    free(t->bytes_of);
    free(t->is_byte);
    ks_arena_fini(&t->arena);
    free(t);
}

static int new_tokenizer(ks_tokenizer **ret, ks_err *err)
{
    ks_tokenizer *t = ks_calloc(1, sizeof *t);
    if (!t) return ks_fail(err, KS_E_NOMEM, "out of memory for the tokenizer");
    ks_arena_init(&t->arena, 0);
    t->bpe.unk = KS_TOK_NONE;
    t->bos = t->eos = -1;
    *ret = t;
    return 0;
}

/* ---- Added tokens */

static bool all_space(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t len;
        if (!ks_uni_is_space(ks_uni_get((const uint8_t *)s + i, &len))) return false;
        i += len;
    }
    return true;
}

static ks_added *find_added(const ks_tokenizer *t, const char *s, size_t n)
{
    uint32_t i = ks_vocab_find(&t->added_index, s, n);
    return i == KS_TOK_NONE ? NULL : &t->added[i];
}

/* The id that the reference gives: the vocabulary's, else one more than the largest so far. What the file says is not
 * asked. */
static uint32_t added_id(const ks_tokenizer *t, const ks_added *a)
{
    uint32_t id = ks_vocab_find(&t->bpe.vocab, a->text, a->n), count = t->bpe.vocab.count;
    if (id != KS_TOK_NONE) return id;
    return t->n_added && (t->added_max_id >= count || !count) ? t->added_max_id + 1 : count;
}

int ks_tokenizer_add(ks_tokenizer *t, const ks_added *a, ks_err *err)
{
    if (!a->n) return 0; /* as the reference: no text, no token */
    if (a->n > KS_TOK_ADDED_BYTES_MAX)
        return ks_fail(err, KS_E_LIMIT, "added token '%.60s...' has %zu bytes (limit: %u)", a->text, a->n,
                       KS_TOK_ADDED_BYTES_MAX);
    ks_added *have = find_added(t, a->text, a->n);
    if (have) { /* said twice: the later word counts, but what was special stays so */
        uint32_t id = have->id;
        bool special = have->special || a->special;
        *have = *a;
        have->id = id;
        have->special = special;
        have->blank = all_space(a->text, a->n);
        return 0;
    }
    if (t->n_added == t->cap_added) {
        uint32_t cap = t->cap_added ? 2 * t->cap_added : 64;
        ks_added *all = t->n_added < KS_TOK_ADDED_MAX ? realloc(t->added, cap * sizeof *all) : NULL;
        if (!all) return ks_fail(err, KS_E_LIMIT, "out of memory, or more than %u added tokens", KS_TOK_ADDED_MAX);
        t->added = all;
        t->cap_added = cap;
    }
    ks_added b = *a;
    if (!t->bpe.raw) b.id = added_id(t, a); /* rank files: the caller's id */
    if (b.id > KS_TOK_ID_MAX)
        return ks_fail(err, KS_E_LIMIT, "added token '%.60s' would get the id %u (limit: %u)", a->text, b.id,
                       KS_TOK_ID_MAX);
    b.blank = all_space(a->text, a->n);
    int rc = ks_vocab_add(&t->added_index, b.text, b.n, t->n_added, err);
    if (rc) return rc;
    t->added[t->n_added++] = b;
    t->added_max_id = KS_MAX(t->added_max_id, b.id);
    return 0;
}

static int build_tries(ks_tokenizer *t, ks_err *err)
{
    ks_buf a, b;
    int rc = 0;
    bool word = false;
    ks_buf_init(&a, 0);
    ks_buf_init(&b, 0);
    for (int special = 1; special >= 0 && !rc; special--) {
        for (uint32_t i = 0; i < t->n_added && !rc; i++) {
            const ks_added *x = &t->added[i];
            const char *s = x->text;
            size_t n = x->n;
            word |= x->single_word;
            if (x->special != (special == 1)) continue;
            if (x->normalized) rc = ks_norm_run(t->norm, t->n_norm, s, n, &a, &b, &s, &n, err);
            if (!rc && !n)
                rc =
                    ks_fail(err, KS_E_UNSUPPORTED, "the normalizer leaves nothing of the added token '%.60s'", x->text);
            if (!rc) rc = ks_trie_add(x->normalized ? &t->normalized : &t->raw, s, n, i, err);
        }
    }
    ks_buf_fini(&a);
    ks_buf_fini(&b);
    if (rc || !word) return rc;
    ks_uni_ranges r = { 0 };
    ks_uni_add_word(&r);
    ks_uni_add(&r, 0x200c, 0x200d); /* joiners, to the regex crate */
    t->word = ks_uni_set_new(&r);
    ks_uni_ranges_fini(&r);
    return t->word ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for the added tokens");
}

int ks_tokenizer_finish(ks_tokenizer *t, ks_err *err)
{
    t->size = t->bpe.vocab.size;
    for (uint32_t i = 0; i < t->n_added; i++) t->size = KS_MAX(t->size, t->added[i].id + 1);
    if (!t->size) return ks_fail(err, KS_E_FORMAT, "the vocabulary is empty");
    t->added_of = ks_calloc(t->size, sizeof *t->added_of);
    if (!t->added_of) return ks_fail(err, KS_E_NOMEM, "out of memory for %u tokens", t->size);
    for (uint32_t i = 0; i < t->n_added; i++) t->added_of[t->added[i].id] = i + 1;
    int rc = build_tries(t, err);
    if (!rc) rc = ks_tokenizer_prepare_bytes(t, err);
    for (int k = 0; k < 2 && !rc; k++) {
        uint32_t n = k ? t->n_after : t->n_before, *ids = k ? t->after : t->before;
        for (uint32_t i = 0; i < n && !rc; i++)
            if (ids[i] >= t->size)
                rc = ks_fail(err, KS_E_FORMAT, "the post-processor adds the id %u, beyond the last (%u)", ids[i],
                             t->size - 1);
    }
    const char *bos = ks_tokenizer_name(t, "bos_token"), *eos = ks_tokenizer_name(t, "eos_token");
    t->bos = *bos ? ks_tokenizer_id(t, bos) : -1;
    t->eos = *eos ? ks_tokenizer_id(t, eos) : -1;
    return rc;
}

/* ---- tokenizer_config.json */

static const char *const name_keys[] = { "bos_token", "eos_token", "pad_token", "unk_token" };

/* Tokens that only this file knows: the model's publisher trained with them. */
static int add_missing(ks_tokenizer *t, ks_val list, ks_err *err)
{
    enum { CONTENT, SPECIAL, NORMALIZED, SINGLE, LSTRIP, RSTRIP, N };
    static const char *const names[] = { "content", "special", "normalized", "single_word", "lstrip", "rstrip" };
    ks_val_iter it;
    ks_val_begin(&it, list);
    while (ks_val_next(&it)) {
        ks_val m[N];
        ks_val_members(it.item, names, N, m);
        ks_added a = { .special = ks_val_true(m[SPECIAL]),
                       .normalized = ks_val_true(m[NORMALIZED]),
                       .single_word = ks_val_true(m[SINGLE]),
                       .lstrip = ks_val_true(m[LSTRIP]),
                       .rstrip = ks_val_true(m[RSTRIP]) };
        a.text = ks_val_str(m[CONTENT], &t->arena, &a.n);
        if (!a.text)
            return ks_fail(err, KS_E_FORMAT,
                           "tokenizer_config.json: a token of 'added_tokens_decoder' has no 'content'");
        int rc = find_added(t, a.text, a.n) ? 0 : ks_tokenizer_add(t, &a, err);
        if (rc) return rc;
    }
    return 0;
}

int ks_tokenizer_load_config(ks_tokenizer *t, const char *config, size_t n, ks_err *err)
{
    static const char *const names[] = { "bos_token", "eos_token", "pad_token", "unk_token", "added_tokens_decoder" };
    ks_val root, m[5];
    int rc = ks_val_parse(config, n, "tokenizer_config.json", &root, err);
    if (rc) return rc;
    if (root.type != KS_JSON_OBJECT) return ks_fail(err, KS_E_FORMAT, "tokenizer_config.json is not an object");
    ks_val_members(root, names, 5, m);
    for (uint32_t i = 0; i < 4; i++) {
        ks_val v = m[i].type == KS_JSON_OBJECT ? ks_val_get(m[i], "content") : m[i];
        if (ks_val_none(v)) continue;
        t->names[i] = ks_val_str(v, &t->arena, NULL);
        if (!t->names[i])
            return ks_fail(err, KS_E_FORMAT, "tokenizer_config.json: '%s' is neither a string nor a token", names[i]);
    }
    return t->bpe.raw ? 0 : add_missing(t, m[4], err);
}

/* ---- Opening */

/* Reads dir/name if it is there: *ret stays NULL if not. */
static int read_part(const char *dir, const char *name, size_t max_bytes, char **ret, size_t *ret_n, ks_err *err)
{
    char *path = ks_path_join(dir, name);
    if (!path) return ks_fail(err, KS_E_NOMEM, "out of memory for a path");
    int rc = ks_file_exists(path) ? ks_file_read(path, max_bytes, ret, ret_n, err) : 0;
    free(path);
    return rc;
}

typedef int (*load_fn)(ks_tokenizer *t, const char *text, size_t n, const char *config, size_t config_n, ks_err *err);

static int load_json(ks_tokenizer *t, const char *text, size_t n, const char *config, size_t config_n, ks_err *err)
{
    (void)config; /* names and missing tokens are read for every kind of file */
    (void)config_n;
    return ks_tokenizer_load_json(t, text, n, err);
}

/* The first that is there counts: it is the one that the publisher's own code reads. */
static const struct {
    const char *name;
    load_fn load;
} sources[] = { { "tokenizer.json", load_json },
                { "tiktoken.model", ks_tokenizer_load_ranks },
                { "hy.tiktoken", ks_tokenizer_load_ranks },
                { "tokenizer.model", ks_tokenizer_load_spm } };

static int load(load_fn fn, const char *text, size_t n, const char *config, size_t config_n, ks_tokenizer **ret,
                ks_err *err)
{
    ks_tokenizer *t = NULL;
    int rc = new_tokenizer(&t, err);
    if (rc) return rc;
    rc = fn(t, text, n, config, config_n, err);
    if (!rc && config) rc = ks_tokenizer_load_config(t, config, config_n, err);
    if (!rc) rc = ks_tokenizer_finish(t, err);
    if (rc)
        ks_tokenizer_close(t);
    else
        *ret = t;
    return rc;
}

int ks_tokenizer_parse(const char *json, size_t n, const char *config, size_t config_n, ks_tokenizer **ret, ks_err *err)
{
    return load(load_json, json, n, config, config_n, ret, err);
}

int ks_tokenizer_parse_file(const char *name, const char *text, size_t n, const char *config, size_t config_n,
                            ks_tokenizer **ret, ks_err *err)
{
    for (size_t i = 0; i < KS_COUNT(sources); i++)
        if (!strcmp(name, sources[i].name)) return load(sources[i].load, text, n, config, config_n, ret, err);
    return ks_fail(err, KS_E_NOTFOUND, "'%s' is no tokenizer file that is known", name);
}

int ks_tokenizer_open(const char *dir, ks_tokenizer **ret, ks_err *err)
{
    char *text = NULL, *config = NULL;
    size_t n = 0, config_n = 0, i = 0;
    int rc = read_part(dir, "tokenizer_config.json", KS_TOK_CONFIG_BYTES_MAX, &config, &config_n, err);
    for (; !rc && i < KS_COUNT(sources); i++)
        if ((rc = read_part(dir, sources[i].name, KS_TOK_FILE_BYTES_MAX, &text, &n, err)) || text) break;
    if (!rc && !text) {
        rc = ks_fail(err, KS_E_NOTFOUND,
                     "'%s' has none of tokenizer.json, tiktoken.model, hy.tiktoken, tokenizer.model", dir);
    } else if (!rc && (rc = load(sources[i].load, text, n, config, config_n, ret, err))) {
        char where[256];
        (void)snprintf(where, sizeof where, "%.180s/%s", dir, sources[i].name);
        (void)ks_err_wrap(err, where); /* the code stays the same */
    }
    free(text);
    free(config);
    return rc;
}

/* ---- Encoding */

/* Stretches of a text without markup. */
typedef struct plain {
    const uint8_t *base; /* where the text begins */
    const ks_text_span *span;
    size_t n;
} plain;

typedef struct encoder {
    const ks_tokenizer *t;
    plain plain;
    ks_bpe_run bpe;
    ks_pretok_run pretok;
    ks_buf a, b;       /* of the normalizers */
    ks_buf c, d, list; /* of origins in normalized text */
} encoder;

static int on_piece(void *user, const uint8_t *s, size_t n, ks_err *err)
{
    return ks_bpe_piece(user, s, n, err);
}

/* One code point before `at` (at > 0). */
static uint32_t char_before(const uint8_t *s, size_t at, size_t *ret_at)
{
    uint32_t len;
    do at--;
    while ((s[at] & 0xc0) == 0x80);
    *ret_at = at;
    return ks_uni_get(s + at, &len);
}

static bool stands_alone(const ks_tokenizer *t, const uint8_t *s, size_t n, size_t begin, size_t end)
{
    size_t at;
    uint32_t len;
    if (begin && ks_uni_set_has(t->word, char_before(s, begin, &at))) return false;
    return end == n || !ks_uni_set_has(t->word, ks_uni_get(s + end, &len));
}

static void widen(const ks_added *x, const uint8_t *s, size_t n, size_t done, size_t *begin, size_t *end)
{
    size_t at = *begin;
    if (x->lstrip) {
        while (at && ks_uni_is_space(char_before(s, at, &at))) *begin = at;
        *begin = KS_MAX(*begin, done);
    }
    for (uint32_t len; x->rstrip && *end < n && ks_uni_is_space(ks_uni_get(s + *end, &len));) *end += len;
}

/* The first stretch that ends behind byte `at`; p->n if there is none. */
static size_t plain_from(const plain *p, size_t at)
{
    size_t lo = 0, hi = p->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (p->span[mid].end > at)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* The next added token of s at or after *inout_at. What reaches into plain text is none, but a shorter one before it
 * may be. */
static uint32_t next_added(const ks_tokenizer *t, const ks_trie *trie, const plain *p, const uint8_t *s, size_t n,
                           size_t *inout_at, size_t *ret_n)
{
    uint32_t i;
    size_t off = (size_t)(s - p->base);
    while ((i = ks_trie_find(trie, s, n, inout_at, ret_n)) != KS_TOK_NONE && !t->added[i].blank) {
        size_t k = plain_from(p, off + *inout_at), at = *inout_at;
        if (k == p->n || p->span[k].begin >= off + at + *ret_n) return i;
        if (p->span[k].begin > off + at) {
            i = ks_trie_find(trie, s, p->span[k].begin - off, &at, ret_n);
            if (i != KS_TOK_NONE && at == *inout_at) return i;
        }
        (*inout_at)++;
    }
    return i;
}

typedef int (*gap_fn)(encoder *e, const uint8_t *s, size_t n, bool first, ks_err *err);

/* Sends added tokens to the ids and what lies between to gap. The search goes on behind the match itself, even where
 * rstrip took more: so the reference does it. */
static int split_added(encoder *e, const ks_trie *trie, const plain *p, const uint8_t *s, size_t n, bool first,
                       gap_fn gap, ks_err *err)
{
    size_t at = 0, done = 0, len = 0;
    uint32_t i;
    int rc;
    while ((i = next_added(e->t, trie, p, s, n, &at, &len)) != KS_TOK_NONE) {
        const ks_added *x = &e->t->added[i];
        size_t begin = at, end = at + len;
        at = end;
        if (x->single_word && !stands_alone(e->t, s, n, begin, end)) continue;
        widen(x, s, n, done, &begin, &end);
        if (done < begin && (rc = gap(e, s + done, begin - done, first && !done, err))) return rc;
        /* One whose text an earlier one's rstrip took is gone. */
        if (begin < end && (rc = ks_bpe_push(&e->bpe, x->id, err))) return rc;
        done = end;
    }
    return done < n ? gap(e, s + done, n - done, first && !done, err) : 0;
}

static int inner_gap(encoder *e, const uint8_t *s, size_t n, bool first, ks_err *err)
{
    return ks_pretok_feed(&e->pretok, s, n, first, err);
}

/* Normalizes s[begin, end) of n bytes as a part of the whole: what acts at its ends only does so there. */
static int norm_part(encoder *e, const uint8_t *s, size_t n, size_t begin, size_t end, const char **ret, size_t *ret_n,
                     ks_err *err)
{
    ks_norm steps[KS_TOK_STEPS_MAX];
    uint32_t k = 0;
    for (uint32_t i = 0; i < e->t->n_norm; i++) {
        ks_norm st = e->t->norm[i];
        if (st.type == KS_NORM_PREPEND && begin) continue;
        st.left &= begin == 0;
        st.right &= end == n;
        steps[k++] = st;
    }
    return ks_norm_run(steps, k, (const char *)s + begin, end - begin, &e->c, &e->d, ret, ret_n, err);
}

/* Which stretches of s's normalized text are plain: found by normalizing part by part. Where the parts do not make up
 * the whole (a combining mark met a letter across a border), all of it is. */
static int norm_plain(encoder *e, const uint8_t *s, size_t n, const char *text, size_t text_n, plain *ret, ks_err *err)
{
    size_t off = (size_t)(s - e->plain.base), at = 0, done = 0, part_n;
    const char *part;
    bool same = true;
    e->list.n = 0;
    for (size_t k = plain_from(&e->plain, off); same && at < n;) {
        const ks_text_span *x = k < e->plain.n ? &e->plain.span[k] : NULL;
        bool inside = x && x->begin <= off + at;
        size_t end = !x ? n : KS_MIN((inside ? x->end : x->begin) - off, n);
        int rc = norm_part(e, s, n, at, end, &part, &part_n, err);
        if (rc) return rc;
        same = part_n <= text_n - done && memcmp(part, text + done, part_n) == 0;
        ks_text_span y = { done, done + part_n };
        if (inside && part_n) ks_buf_add(&e->list, &y, sizeof y);
        k += inside;
        at = end;
        done += part_n;
    }
    if (!same || done != text_n) {
        ks_text_span all = { 0, text_n };
        e->list.n = 0;
        ks_buf_add(&e->list, &all, sizeof all);
    }
    if (e->list.failed) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu bytes of text", n);
    *ret = (plain) { (const uint8_t *)text, (const ks_text_span *)e->list.p, e->list.n / sizeof(ks_text_span) };
    return 0;
}

static int outer_gap(encoder *e, const uint8_t *s, size_t n, bool first, ks_err *err)
{
    const ks_tokenizer *t = e->t;
    const char *text;
    size_t text_n;
    int rc = ks_norm_run(t->norm, t->n_norm, (const char *)s, n, &e->a, &e->b, &text, &text_n, err);
    plain p = e->plain;
    if (!rc && (const uint8_t *)text != s) {
        p = (plain) { .base = (const uint8_t *)text };
        if (t->normalized.n && e->plain.n) rc = norm_plain(e, s, n, text, text_n, &p, err);
    }
    return rc ? rc : split_added(e, &t->normalized, &p, (const uint8_t *)text, text_n, first, inner_gap, err);
}

/* Python's str.isspace, by which Kimi's code tells runs apart. */
static bool python_space(uint32_t cp)
{
    return ks_uni_is_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

static int encode_slices(encoder *e, const uint8_t *s, size_t n, ks_err *err)
{
    size_t begin = 0, chars = 0, run = 0;
    bool space = false;
    for (size_t i = 0; i < n;) {
        uint32_t len, cp = ks_uni_get(s + i, &len);
        bool now = python_space(cp), cut = chars == SLICE_CHARS;
        run = chars && !cut && now == space ? run + 1 : 1;
        space = now;
        if (cut || run > SLICE_RUN_CHARS) {
            int rc = split_added(e, &e->t->raw, &e->plain, s + begin, i - begin, false, outer_gap, err);
            if (rc) return rc;
            begin = i;
            run = 1;
        }
        chars = cut ? 1 : chars + 1;
        i += len;
    }
    return split_added(e, &e->t->raw, &e->plain, s + begin, n - begin, false, outer_gap, err);
}

static int push_all(ks_bpe_run *r, const uint32_t *ids, uint32_t n, ks_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; i < n && !rc; i++) rc = ks_bpe_push(r, ids[i], err);
    return rc;
}

/* Hands the run's ids to the caller, behind those that he has. */
static int append(ks_bpe_run *r, int32_t **ids, size_t *n, ks_err *err)
{
    if (!r->n) return 0;
    if (!*ids) {
        *ids = r->ids;
        *n = r->n;
        r->ids = NULL;
        return 0;
    }
    size_t all, bytes;
    int32_t *p = ks_add_size(*n, r->n, &all) && ks_mul_size(all, sizeof *p, &bytes) ? realloc(*ids, bytes) : NULL;
    if (!p) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu token ids", r->n);
    memcpy(p + *n, r->ids, r->n * sizeof *p);
    *ids = p;
    *n = all;
    return 0;
}

int ks_tokenizer_encode(const ks_tokenizer *t, const char *text, size_t bytes, uint32_t flags, int32_t **ids, size_t *n,
                        ks_err *err)
{
    const ks_text_span all = { 0, bytes };
    return ks_tokenizer_encode_spans(t, text, bytes, &all, (flags & KS_TOK_PLAIN_TEXT) && bytes, flags, ids, n, err);
}

int ks_tokenizer_encode_spans(const ks_tokenizer *t, const char *text, size_t bytes, const ks_text_span *plain_spans,
                              size_t n_plain, uint32_t flags, int32_t **ids, size_t *n, ks_err *err)
{
    size_t valid = ks_utf8_valid(text, bytes);
    if (valid != bytes) return ks_fail(err, KS_E_INVAL, "the text is not UTF-8 at byte %zu", valid);
    if (bytes > KS_TOK_TEXT_BYTES_MAX)
        return ks_fail(err, KS_E_LIMIT, "the text has %zu bytes (limit: %zu)", bytes, KS_TOK_TEXT_BYTES_MAX);
    encoder e = { .t = t, .plain = { (const uint8_t *)text, plain_spans, n_plain } };
    int rc = ks_bpe_run_init(&e.bpe, &t->bpe, bytes, err);
    if (rc) return rc;
    e.pretok.t = &t->pretok;
    e.pretok.fn = on_piece;
    e.pretok.user = &e.bpe;
    bool special = flags & KS_TOK_ADD_SPECIAL;
    if (special) rc = push_all(&e.bpe, t->before, t->n_before, err);
    if (!rc && t->slices)
        rc = encode_slices(&e, (const uint8_t *)text, bytes, err);
    else if (!rc)
        rc = split_added(&e, &t->raw, &e.plain, (const uint8_t *)text, bytes, true, outer_gap, err);
    if (!rc && special) rc = push_all(&e.bpe, t->after, t->n_after, err);
    if (!rc) rc = append(&e.bpe, ids, n, err);
    ks_bpe_run_fini(&e.bpe);
    ks_pretok_run_fini(&e.pretok);
    ks_buf_fini(&e.a);
    ks_buf_fini(&e.b);
    ks_buf_fini(&e.c);
    ks_buf_fini(&e.d);
    ks_buf_fini(&e.list);
    return rc;
}

/* ---- Questions */

uint32_t ks_tokenizer_size(const ks_tokenizer *t)
{
    return t->size;
}

const char *ks_tokenizer_text(const ks_tokenizer *t, uint32_t id, size_t *ret_n)
{
    if (id < t->size && t->added_of[id]) {
        const ks_added *a = &t->added[t->added_of[id] - 1];
        *ret_n = a->n;
        return a->text;
    }
    return ks_vocab_text(&t->bpe.vocab, id, ret_n);
}

const char *ks_tokenizer_bytes(const ks_tokenizer *t, int32_t id, size_t *ret_n)
{
    if (id < 0 || (uint32_t)id >= t->size || t->bytes_of[id].n == KS_TOK_NONE) return NULL;
    *ret_n = t->bytes_of[id].n;
    return *ret_n ? t->bytes.p + t->bytes_of[id].at : "";
}

bool ks_tokenizer_is_special(const ks_tokenizer *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->size && t->added_of[id] && t->added[t->added_of[id] - 1].special;
}

int32_t ks_tokenizer_id(const ks_tokenizer *t, const char *text)
{
    const ks_added *a = find_added(t, text, strlen(text));
    return a ? (int32_t)a->id : (int32_t)ks_vocab_find(&t->bpe.vocab, text, strlen(text)); /* none: -1 */
}

int32_t ks_tokenizer_bos(const ks_tokenizer *t)
{
    return t->bos;
}

int32_t ks_tokenizer_eos(const ks_tokenizer *t)
{
    return t->eos;
}

const char *ks_tokenizer_name(const ks_tokenizer *t, const char *which)
{
    for (size_t i = 0; i < KS_COUNT(name_keys); i++)
        if (!strcmp(which, name_keys[i]) && t->names[i]) return t->names[i];
    return "";
}
