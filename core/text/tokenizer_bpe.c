/* Byte pair encoding of one piece.
 *
 * Short pieces: scan all pairs for the lowest rank, merge, repeat. Long ones (a line of SentencePiece text, base64, a
 * megabyte of one letter): a linked list and a heap, so that time grows as n log n and memory as n. Both take the
 * leftmost of equal ranks. A cache of pieces lives for one call: text repeats itself, and shared state would need
 * locks. [any]
 */
#include "base/hash.h"
#include "text/tokenizer_impl.h"

#include <string.h>

#define SHORT_MAX 48u /* symbols; above it the heap is faster */
#define CACHED_BYTES 16u
#define CACHED_IDS 6u
#define PIECE_BYTES_MAX ((size_t)1 << 28) /* 28 bytes of memory a symbol */
#define EMPTY UINT64_MAX

static const char space_mark[] = "\xe2\x96\x81"; /* U+2581 */

/* ---- Tables */

void ks_bpe_fini(ks_bpe *b)
{
    ks_vocab_fini(&b->vocab);
    free(b->merge);
    free(b->char_id);
    free(b->prefix);
    free(b->suffix);
    memset(b, 0, sizeof *b);
}

static inline uint32_t mix(uint64_t key)
{
    key *= UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(key >> 32) ^ (uint32_t)(key >> 60);
}

static inline ks_merge *merge_slot(const ks_bpe *b, uint64_t key)
{
    uint32_t mask = b->n_slots - 1, i = mix(key) & mask;
    while (b->merge[i].key != key && b->merge[i].key != EMPTY) i = (i + 1) & mask;
    return &b->merge[i];
}

static inline const ks_merge *find_merge(const ks_bpe *b, uint32_t left, uint32_t right)
{
    const ks_merge *m = merge_slot(b, (uint64_t)left << 32 | right);
    return m->key == EMPTY ? NULL : m;
}

/* A table of at least n slots with what the old one holds. */
static int resize(ks_bpe *b, size_t n, ks_err *err)
{
    uint32_t slots = 1024, n_old = b->n_slots;
    while (slots < n && slots < 1u << 28) slots *= 2;
    ks_merge *table = slots < n ? NULL : malloc(slots * sizeof *table), *old = b->merge;
    if (!table) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu merges", n);
    for (uint32_t i = 0; i < slots; i++) table[i].key = EMPTY;
    b->merge = table;
    b->n_slots = slots;
    for (uint32_t i = 0; i < n_old; i++)
        if (old[i].key != EMPTY) *merge_slot(b, old[i].key) = old[i];
    free(old);
    return 0;
}

int ks_bpe_reserve(ks_bpe *b, size_t n, ks_err *err)
{
    return resize(b, 2 * n, err);
}

/* A pair that comes again takes the later rank, as in the reference. At most half of the slots are used. */
int ks_bpe_add_merge(ks_bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id, ks_err *err)
{
    int rc = 2 * ((size_t)b->n_merges + 1) > b->n_slots ? resize(b, 2 * (size_t)b->n_slots, err) : 0;
    if (rc) return rc;
    ks_merge *m = merge_slot(b, (uint64_t)left << 32 | right);
    b->n_merges += m->key == EMPTY;
    *m = (ks_merge) { (uint64_t)left << 32 | right, rank, id };
    return 0;
}

int ks_bpe_merges_from_ranks(ks_bpe *b, const uint32_t *rank, ks_err *err)
{
    const ks_vocab *v = &b->vocab;
    int rc = ks_bpe_reserve(b, 2 * (size_t)v->count, err);
    for (uint32_t id = 0; !rc && id < v->size; id++) {
        size_t n;
        const char *s = ks_vocab_text(v, id, &n);
        if (!s || rank[id] == KS_TOK_NONE) continue;
        if (n > 4096) return ks_fail(err, KS_E_LIMIT, "token %u has %zu bytes (limit: 4096)", id, n);
        for (size_t k = 1; !rc && k < n; k++) {
            uint32_t left = ks_vocab_find(v, s, k), right = left == KS_TOK_NONE ? left : ks_vocab_find(v, s + k, n - k);
            if (right != KS_TOK_NONE) rc = ks_bpe_add_merge(b, left, right, rank[id], id, err);
        }
    }
    return rc;
}

/* True if no merge has x before and the mark after its seam, x another character: then a piece can be cut before each
 * mark that follows something else, and gives the same ids. */
static bool seams_are_clean(const ks_bpe *b)
{
    if (b->byte_input || b->raw || b->prefix || b->suffix || ks_vocab_find(&b->vocab, space_mark, 3) == KS_TOK_NONE)
        return false;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        if (b->merge[i].key == EMPTY) continue;
        size_t ln = 0, rn = 0;
        const char *l = ks_vocab_text(&b->vocab, (uint32_t)(b->merge[i].key >> 32), &ln);
        const char *r = ks_vocab_text(&b->vocab, (uint32_t)b->merge[i].key, &rn);
        bool marked = r && rn >= 3 && !memcmp(r, space_mark, 3);
        if (marked && !(l && ln >= 3 && !memcmp(l + ln - 3, space_mark, 3))) return false;
    }
    return true;
}

/* Fills byte_id; false if a byte has no token. */
static bool fill_bytes(ks_bpe *b)
{
    bool whole = true;
    for (uint32_t i = 0; i < 256; i++) {
        char text[8];
        size_t n = 1;
        uint32_t c = ks_char_of_byte((uint8_t)i);
        if (b->raw) {
            text[0] = (char)i;
        } else if (!b->byte_input) {
            n = (size_t)snprintf(text, sizeof text, "<0x%02X>", i);
        } else if (c < 0x80) {
            text[0] = (char)c;
        } else {
            text[0] = (char)(0xc0 | c >> 6);
            text[1] = (char)(0x80 | (c & 0x3f));
            n = 2;
        }
        b->byte_id[i] = ks_vocab_find(&b->vocab, text, n);
        whole &= b->byte_id[i] != KS_TOK_NONE;
    }
    return whole;
}

int ks_bpe_finish(ks_bpe *b, ks_err *err)
{
    int rc = b->merge ? 0 : ks_bpe_reserve(b, 0, err);
    if (rc) return rc;
    bool whole = fill_bytes(b);
    if (b->raw && !whole) return ks_fail(err, KS_E_FORMAT, "the vocabulary lacks some of the 256 single bytes");
    if (b->raw || (b->byte_input && whole && !b->prefix && !b->suffix)) return 0;
    /* Characters: also for a byte-level vocabulary that lacks a byte or marks first and last characters. */
    b->byte_input = false;
    (void)fill_bytes(b); /* <0xNN> may be missing; then there is no fallback for that byte */
    b->char_id = ks_calloc(0x10000, sizeof *b->char_id);
    if (!b->char_id) return ks_fail(err, KS_E_NOMEM, "out of memory for the vocabulary");
    memset(b->char_id, 0xff, 0x10000 * sizeof *b->char_id);
    for (uint32_t id = 0; id < b->vocab.size; id++) {
        size_t n;
        uint32_t len;
        const char *s = ks_vocab_text(&b->vocab, id, &n);
        if (!s || !n || n > 3) continue;
        uint32_t cp = ks_uni_get((const uint8_t *)s, &len);
        if (len == n) b->char_id[cp] = id;
    }
    b->cut_spm = seams_are_clean(b);
    return 0;
}

/* ---- A run */

struct ks_bpe_cached {
    uint64_t key[2];
    uint8_t bytes, n; /* bytes 0: empty */
    uint32_t id[CACHED_IDS];
};

int ks_bpe_run_init(ks_bpe_run *r, const ks_bpe *b, size_t text_bytes, ks_err *err)
{
    memset(r, 0, sizeof *r);
    r->b = b;
    uint32_t n = 64;
    while (n < 8192 && n < text_bytes / 8) n *= 2;
    r->cache = ks_calloc(n, sizeof *r->cache);
    if (!r->cache) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu bytes of text", text_bytes);
    r->cache_mask = n - 1;
    return 0;
}

void ks_bpe_run_fini(ks_bpe_run *r)
{
    free(r->ids);
    free(r->cache);
    free(r->sym);
    ks_buf_fini(&r->text);
}

static int reserve_ids(ks_bpe_run *r, size_t n, ks_err *err)
{
    if (r->n + n <= r->cap) return 0;
    size_t cap = KS_MAX(2 * r->cap, KS_MAX(r->n + n, 64)), bytes;
    int32_t *ids = ks_mul_size(cap, sizeof *ids, &bytes) ? realloc(r->ids, bytes) : NULL;
    if (!ids) return ks_fail(err, KS_E_NOMEM, "out of memory for %zu token ids", cap);
    r->ids = ids;
    r->cap = cap;
    return 0;
}

int ks_bpe_push(ks_bpe_run *r, uint32_t id, ks_err *err)
{
    int rc = reserve_ids(r, 1, err);
    if (!rc) r->ids[r->n++] = (int32_t)id;
    return rc;
}

static int reserve_symbols(ks_bpe_run *r, size_t n, ks_err *err)
{
    if (n <= r->sym_cap) return 0;
    size_t cap = KS_MAX(n, 2 * r->sym_cap);
    uint32_t *sym = realloc(r->sym, cap * sizeof *sym); /* pieces are limited: no overflow */
    if (!sym) return ks_fail(err, KS_E_NOMEM, "out of memory for a piece of %zu symbols", n);
    r->sym = sym;
    r->sym_cap = cap;
    return 0;
}

/* ---- Symbols of a piece of characters */

typedef struct symbols {
    ks_bpe_run *r;
    size_t n;
    uint32_t unk; /* waits to be written, since unknown characters may be fused */
} symbols;

static void flush_unknown(symbols *y)
{
    if (y->unk != KS_TOK_NONE) y->r->sym[y->n++] = y->unk;
    y->unk = KS_TOK_NONE;
}

/* s: one character, with the marks of a first or last one. */
static void add_character(symbols *y, const char *s, size_t n, uint32_t id)
{
    const ks_bpe *b = y->r->b;
    if (id != KS_TOK_NONE) {
        flush_unknown(y);
        y->r->sym[y->n++] = id;
        return;
    }
    if (b->byte_fallback) {
        bool all = true;
        for (size_t i = 0; i < n; i++) all &= b->byte_id[(uint8_t)s[i]] != KS_TOK_NONE;
        if (all) { /* an unknown one that waits stays behind these, as in the reference */
            for (size_t i = 0; i < n; i++) y->r->sym[y->n++] = b->byte_id[(uint8_t)s[i]];
            return;
        }
    }
    if (b->unk == KS_TOK_NONE) return;
    if (!b->fuse_unk) flush_unknown(y);
    y->unk = b->unk;
}

static int character_symbols(ks_bpe_run *r, const uint8_t *s, size_t n, size_t *ret_n, ks_err *err)
{
    const ks_bpe *b = r->b;
    size_t marks = b->prefix_n + b->suffix_n;
    int rc = reserve_symbols(r, n * (1 + marks) + 1, err);
    if (rc) return rc;
    symbols y = { .r = r, .unk = KS_TOK_NONE };
    for (size_t i = 0; i < n;) {
        uint32_t len, cp = ks_uni_get(s + i, &len);
        const char *text = (const char *)s + i;
        size_t text_n = len;
        bool first = i == 0, last = i + len == n;
        if ((!first && b->prefix) || (last && b->suffix)) {
            r->text.n = 0;
            if (!first && b->prefix) ks_buf_add(&r->text, b->prefix, b->prefix_n);
            ks_buf_add(&r->text, s + i, len);
            if (last && b->suffix) ks_buf_add(&r->text, b->suffix, b->suffix_n);
            if (r->text.failed) return ks_fail(err, KS_E_NOMEM, "out of memory for a character");
            text = r->text.p;
            text_n = r->text.n;
        }
        bool plain = text_n == len && cp < 0x10000;
        add_character(&y, text, text_n, plain ? b->char_id[cp] : ks_vocab_find(&b->vocab, text, text_n));
        i += len;
    }
    flush_unknown(&y);
    *ret_n = y.n;
    return 0;
}

/* ---- Merging */

static size_t merge_short(const ks_bpe *b, uint32_t *id, size_t n)
{
    uint32_t rank[SHORT_MAX], result[SHORT_MAX];
    for (size_t i = 0; i + 1 < n; i++) {
        const ks_merge *m = find_merge(b, id[i], id[i + 1]);
        rank[i] = m ? m->rank : UINT32_MAX;
        result[i] = m ? m->id : 0;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == UINT32_MAX) break;
        id[best] = result[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i - 1] = rank[i]; /* the pair at best is looked up below */
            result[i - 1] = result[i];
        }
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const ks_merge *m = find_merge(b, id[i], id[i + 1]);
            rank[i] = m ? m->rank : UINT32_MAX;
            result[i] = m ? m->id : 0;
        }
    }
    return n;
}

typedef struct candidate {
    uint32_t rank, at, id;
} candidate;

typedef struct heap {
    candidate *c;
    size_t n;
} heap;

static bool before(const candidate *a, const candidate *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

static void heap_push(heap *h, candidate c)
{
    size_t i = h->n++;
    for (; i && before(&c, &h->c[(i - 1) / 2]); i = (i - 1) / 2) h->c[i] = h->c[(i - 1) / 2];
    h->c[i] = c;
}

static candidate heap_pop(heap *h)
{
    candidate top = h->c[0], last = h->c[--h->n];
    size_t i = 0;
    for (size_t k; (k = 2 * i + 1) < h->n; i = k) {
        if (k + 1 < h->n && before(&h->c[k + 1], &h->c[k])) k++;
        if (!before(&h->c[k], &last)) break;
        h->c[i] = h->c[k];
    }
    h->c[i] = last;
    return top;
}

#define GONE UINT32_MAX /* no neighbour; or, in next, merged into the one before */

static void offer(const ks_bpe *b, heap *h, const uint32_t *id, const uint32_t *next, uint32_t at)
{
    if (at == GONE || next[at] == GONE) return;
    const ks_merge *m = find_merge(b, id[at], id[next[at]]);
    if (m) heap_push(h, (candidate) { m->rank, at, m->id });
}

/* The symbols are in r->sym; the ids go to r->ids. */
static int merge_long(ks_bpe_run *r, size_t n, ks_err *err)
{
    const ks_bpe *b = r->b;
    /* The heap gets one candidate a pair at first and at most two a merge, for one that it gives: below 2 n. */
    uint32_t *next = malloc(2 * n * sizeof *next), *id = r->sym;
    heap h = { malloc(2 * n * sizeof *h.c), 0 };
    int rc =
        next && h.c ? reserve_ids(r, n, err) : ks_fail(err, KS_E_NOMEM, "out of memory for a piece of %zu symbols", n);
    if (rc) goto out;
    uint32_t *prev = next + n;
    for (uint32_t i = 0; i < n; i++) {
        next[i] = i + 1 < n ? i + 1 : GONE;
        prev[i] = i ? i - 1 : GONE;
    }
    for (uint32_t i = 0; i < n; i++) offer(b, &h, id, next, i);
    while (h.n) {
        candidate c = heap_pop(&h);
        uint32_t right = id[c.at] == GONE ? GONE : next[c.at];
        if (right == GONE) continue;
        const ks_merge *m = find_merge(b, id[c.at], id[right]);
        if (!m || m->id != c.id) continue; /* one of the two has changed since */
        id[c.at] = c.id;
        id[right] = GONE;
        next[c.at] = next[right];
        if (next[right] != GONE) prev[next[right]] = c.at;
        offer(b, &h, id, next, prev[c.at]);
        offer(b, &h, id, next, c.at);
    }
    for (uint32_t i = 0; i != GONE; i = next[i]) r->ids[r->n++] = (int32_t)id[i];
out:
    free(next);
    free(h.c);
    return rc;
}

static uint32_t whole_piece(ks_bpe_run *r, const uint8_t *s, size_t n)
{
    if (!r->b->byte_input) return ks_vocab_find(&r->b->vocab, (const char *)s, n);
    r->text.n = 0;
    ks_byte_chars(s, n, &r->text);
    return r->text.failed ? KS_TOK_NONE : ks_vocab_find(&r->b->vocab, r->text.p, r->text.n);
}

static int merge_piece(ks_bpe_run *r, const uint8_t *s, size_t n, bool whole, ks_err *err)
{
    const ks_bpe *b = r->b;
    uint32_t id = whole ? whole_piece(r, s, n) : KS_TOK_NONE;
    if (id != KS_TOK_NONE) return ks_bpe_push(r, id, err);
    size_t n_sym = n;
    int rc;
    if (b->raw || b->byte_input) {
        rc = reserve_symbols(r, n, err);
        for (size_t i = 0; !rc && i < n; i++) r->sym[i] = b->byte_id[s[i]];
    } else {
        rc = character_symbols(r, s, n, &n_sym, err);
    }
    if (rc || !n_sym) return rc;
    if (n_sym > SHORT_MAX) return merge_long(r, n_sym, err);
    if ((rc = reserve_ids(r, n_sym, err))) return rc;
    n_sym = merge_short(b, r->sym, n_sym);
    for (size_t i = 0; i < n_sym; i++) r->ids[r->n++] = (int32_t)r->sym[i];
    return 0;
}

/* Two overlapping loads: with the length they name the bytes. */
static void load_key(const uint8_t *s, size_t n, uint64_t key[2])
{
    uint32_t half[2];
    if (n >= 8) {
        memcpy(&key[0], s, 8);
        memcpy(&key[1], s + n - 8, 8);
    } else if (n >= 4) {
        memcpy(&half[0], s, 4);
        memcpy(&half[1], s + n - 4, 4);
        key[0] = half[0];
        key[1] = half[1];
    } else {
        key[0] = s[0];
        key[1] = (uint64_t)s[n / 2] << 8 | s[n - 1];
    }
}

static int cached_piece(ks_bpe_run *r, const uint8_t *s, size_t n, bool whole, ks_err *err)
{
    if (n > CACHED_BYTES) return merge_piece(r, s, n, whole, err);
    uint64_t key[2];
    load_key(s, n, key);
    struct ks_bpe_cached *c = &r->cache[mix(key[0] ^ (key[1] << 29 | key[1] >> 35) ^ n) & r->cache_mask];
    if (c->bytes == n && c->key[0] == key[0] && c->key[1] == key[1]) {
        int rc = reserve_ids(r, CACHED_IDS, err);
        if (rc) return rc;
        for (uint32_t i = 0; i < CACHED_IDS; i++) r->ids[r->n + i] = (int32_t)c->id[i];
        r->n += c->n;
        return 0;
    }
    size_t begin = r->n;
    int rc = merge_piece(r, s, n, whole, err);
    if (rc || r->n - begin > CACHED_IDS) return rc;
    c->key[0] = key[0];
    c->key[1] = key[1];
    c->bytes = (uint8_t)n;
    c->n = (uint8_t)(r->n - begin);
    for (uint32_t i = 0; i < c->n; i++) c->id[i] = (uint32_t)r->ids[begin + i];
    return 0;
}

int ks_bpe_piece(ks_bpe_run *r, const uint8_t *s, size_t n, ks_err *err)
{
    const ks_bpe *b = r->b;
    if (n > PIECE_BYTES_MAX)
        return ks_fail(err, KS_E_LIMIT, "a piece of text of %zu bytes (limit: %zu)", n, PIECE_BYTES_MAX);
    if (!b->cut_spm) return cached_piece(r, s, n, b->ignore_merges, err);
    uint32_t id = b->ignore_merges ? whole_piece(r, s, n) : KS_TOK_NONE;
    if (id != KS_TOK_NONE) return ks_bpe_push(r, id, err);
    for (size_t begin = 0; begin < n;) {
        size_t end = begin;
        while (n - end >= 3 && !memcmp(s + end, space_mark, 3)) end += 3;
        const uint8_t *mark = memmem(s + end, n - end, space_mark, 3);
        end = mark ? (size_t)(mark - s) : n;
        int rc = cached_piece(r, s + begin, end - begin, false, err);
        if (rc) return rc;
        begin = end;
    }
    return 0;
}
