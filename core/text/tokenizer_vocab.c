/* The vocabulary's hash table and the trie of added tokens. [any] */
#include "base/hash.h"
#include "text/tokenizer_impl.h"

#include <string.h>

/* ---- Vocabulary */

void ks_vocab_fini(ks_vocab *v)
{
    ks_buf_fini(&v->text);
    free(v->entry);
    free(v->slot);
    memset(v, 0, sizeof *v);
}

static uint32_t *find_slot(const ks_vocab *v, const char *s, size_t n)
{
    uint32_t mask = v->n_slots - 1, i = (uint32_t)ks_hash64(s, n, 0) & mask;
    for (;; i = (i + 1) & mask) {
        uint32_t *slot = &v->slot[i];
        if (!*slot) return slot;
        const ks_entry *e = &v->entry[*slot - 1];
        if (e->n == n && !memcmp(v->text.p + e->at, s, n)) return slot;
    }
}

/* At most half full: the probe sequences of strings that are not there stay short. */
static bool grow_slots(ks_vocab *v)
{
    uint32_t n = v->n_slots ? 2 * v->n_slots : 1u << 12;
    uint32_t *old = v->slot, n_old = v->n_slots;
    v->slot = ks_calloc(n, sizeof *v->slot);
    if (!v->slot) {
        v->slot = old;
        return false;
    }
    v->n_slots = n;
    for (uint32_t i = 0; i < n_old; i++)
        if (old[i]) *find_slot(v, v->text.p + v->entry[old[i] - 1].at, v->entry[old[i] - 1].n) = old[i];
    free(old);
    return true;
}

static bool grow_entries(ks_vocab *v, uint32_t id)
{
    uint32_t cap = KS_MAX(id + 1, KS_MAX(2 * v->cap, 4096));
    ks_entry *e = realloc(v->entry, cap * sizeof *e);
    if (!e) return false;
    for (uint32_t i = v->cap; i < cap; i++) e[i] = (ks_entry) { 0, KS_TOK_NONE };
    v->entry = e;
    v->cap = cap;
    return true;
}

int ks_vocab_add(ks_vocab *v, const char *s, size_t n, uint32_t id, ks_err *err)
{
    int show = (int)KS_MIN(n, 80);
    uint32_t limit = v->id_limit ? v->id_limit : KS_TOK_ID_MAX;
    if (id > limit)
        return ks_fail(err, KS_E_LIMIT, "token '%.*s' has the id %u (limit for a file of this size: %u)", show, s, id,
                       limit);
    if (n > KS_TOK_ENTRY_BYTES_MAX)
        return ks_fail(err, KS_E_LIMIT, "token %u has %zu bytes (limit: %u)", id, n, KS_TOK_ENTRY_BYTES_MAX);
    if (v->text.n + n > UINT32_MAX / 2) return ks_fail(err, KS_E_LIMIT, "the vocabulary's text is above 2 GiB");
    if ((2 * (v->count + 1) > v->n_slots && !grow_slots(v)) || (id >= v->cap && !grow_entries(v, id)))
        return ks_fail(err, KS_E_NOMEM, "out of memory for a vocabulary of %u tokens", v->count);
    if (v->entry[id].n != KS_TOK_NONE)
        return ks_fail(err, KS_E_FORMAT, "id %u is given to '%.*s' and to '%.*s'", id, (int)KS_MIN(v->entry[id].n, 80u),
                       v->text.p + v->entry[id].at, show, s);
    uint32_t *slot = find_slot(v, s, n);
    if (*slot)
        return ks_fail(err, KS_E_FORMAT, "token '%.*s' is in the vocabulary twice, with ids %u and %u", show, s,
                       *slot - 1, id);
    v->entry[id] = (ks_entry) { (uint32_t)v->text.n, (uint32_t)n };
    ks_buf_add(&v->text, s, n);
    if (v->text.failed) return ks_fail(err, KS_E_NOMEM, "out of memory for a vocabulary of %u tokens", v->count);
    *slot = id + 1;
    v->count++;
    v->size = KS_MAX(v->size, id + 1);
    return 0;
}

uint32_t ks_vocab_find(const ks_vocab *v, const char *s, size_t n)
{
    return v->count ? *find_slot(v, s, n) - 1 : KS_TOK_NONE;
}

/* ---- Trie: children are lists, since below the first byte few tokens share a beginning. */

struct ks_trie_node {
    uint32_t child, sibling, value;
    uint8_t byte;
};

void ks_trie_fini(ks_trie *t)
{
    free(t->node);
    memset(t, 0, sizeof *t);
}

static uint32_t new_node(ks_trie *t, uint8_t byte)
{
    if (t->n == t->cap) {
        uint32_t cap = t->cap ? 2 * t->cap : 256;
        struct ks_trie_node *node = realloc(t->node, cap * sizeof *node);
        if (!node) return 0;
        t->node = node;
        t->cap = cap;
        if (!t->n) t->n = 1; /* 0 is "none" */
    }
    t->node[t->n] = (struct ks_trie_node) { 0, 0, KS_TOK_NONE, byte };
    return t->n++;
}

static uint32_t child_of(const ks_trie *t, uint32_t k, uint8_t byte)
{
    uint32_t c = t->node[k].child;
    while (c && t->node[c].byte != byte) c = t->node[c].sibling;
    return c;
}

int ks_trie_add(ks_trie *t, const char *s, size_t n, uint32_t value, ks_err *err)
{
    uint32_t k = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)s[i];
        uint32_t next = i ? child_of(t, k, byte) : t->root[byte];
        if (!next) {
            if (t->n > (1u << 28) || !(next = new_node(t, byte)))
                return ks_fail(err, KS_E_NOMEM, "out of memory for the added tokens");
            if (i) {
                t->node[next].sibling = t->node[k].child;
                t->node[k].child = next;
            } else {
                t->root[byte] = next;
                t->first[byte] = true;
            }
        }
        k = next;
    }
    if (k && t->node[k].value == KS_TOK_NONE) t->node[k].value = value;
    return 0;
}

uint32_t ks_trie_find(const ks_trie *t, const uint8_t *s, size_t n, size_t *inout_at, size_t *ret_n)
{
    if (!t->n) return KS_TOK_NONE;
    for (size_t at = *inout_at; at < n; at++) {
        if (!t->first[s[at]]) continue;
        uint32_t value = KS_TOK_NONE;
        size_t i = at + 1;
        for (uint32_t k = t->root[s[at]]; k; k = i < n ? child_of(t, k, s[i++]) : 0) {
            if (t->node[k].value == KS_TOK_NONE) continue;
            value = t->node[k].value;
            *ret_n = i - at;
        }
        if (value == KS_TOK_NONE) continue;
        *inout_at = at;
        return value;
    }
    return KS_TOK_NONE;
}
