/* KV pages: reference counts, an LRU list of idle pages and a hash table of keys with chains by index. */
#include "engine/pages.h"

#include "base/base.h"

static uint32_t bucket_of(const ks_pages *p, ks_hash128 k)
{
    return (uint32_t)(k.lo & (p->n_bucket - 1));
}

static void idle_append(ks_pages *p, uint32_t i)
{
    ks_page *g = &p->page[i];
    g->prev = p->last;
    g->next = KS_NO_PAGE;
    if (p->last != KS_NO_PAGE)
        p->page[p->last].next = i;
    else
        p->first = i;
    p->last = i;
    p->n_idle++;
}

static void idle_remove(ks_pages *p, uint32_t i)
{
    ks_page *g = &p->page[i];
    if (g->prev != KS_NO_PAGE)
        p->page[g->prev].next = g->next;
    else
        p->first = g->next;
    if (g->next != KS_NO_PAGE)
        p->page[g->next].prev = g->prev;
    else
        p->last = g->prev;
    p->n_idle--;
}

static void unkey(ks_pages *p, uint32_t i)
{
    ks_page *g = &p->page[i];
    if (!g->keyed) return;
    uint32_t *at = &p->bucket[bucket_of(p, g->key)];
    while (*at != i) at = &p->page[*at].chain;
    *at = g->chain;
    g->keyed = false;
}

static uint32_t lookup(const ks_pages *p, ks_hash128 key)
{
    uint32_t i = p->bucket[bucket_of(p, key)];
    while (i != KS_NO_PAGE && (p->page[i].key.lo != key.lo || p->page[i].key.hi != key.hi)) i = p->page[i].chain;
    return i;
}

int ks_pages_init(ks_pages *p, uint32_t n, ks_err *err)
{
    *p = (ks_pages) { .n = n, .first = KS_NO_PAGE, .last = KS_NO_PAGE, .n_bucket = 16 };
    while (p->n_bucket < n && p->n_bucket < (1u << 30)) p->n_bucket *= 2;
    p->page = ks_calloc(n, sizeof *p->page);
    p->bucket = ks_calloc(p->n_bucket, sizeof *p->bucket);
    if (!p->page || !p->bucket) {
        ks_pages_fini(p);
        return ks_fail(err, KS_E_NOMEM, "out of memory for the table of %u KV pages", n);
    }
    memset(p->bucket, 0xff, p->n_bucket * sizeof *p->bucket);
    for (uint32_t i = 0; i < n; i++) idle_append(p, i);
    return 0;
}

void ks_pages_fini(ks_pages *p)
{
    free(p->page);
    free(p->bucket);
    *p = (ks_pages) { 0 };
}

uint32_t ks_pages_take(ks_pages *p)
{
    uint32_t i = p->first;
    if (i == KS_NO_PAGE) return i;
    idle_remove(p, i);
    unkey(p, i);
    p->page[i].refs = 1;
    return i;
}

void ks_pages_ref(ks_pages *p, uint32_t i)
{
    if (p->page[i].refs++ == 0) idle_remove(p, i);
}

void ks_pages_drop(ks_pages *p, uint32_t i)
{
    KS_ASSERT(p->page[i].refs > 0);
    if (--p->page[i].refs == 0) {
        idle_append(p, i);
        if (!p->page[i].keyed && p->first != i) { /* worthless: first to be taken again */
            idle_remove(p, i);
            ks_page *g = &p->page[i];
            g->prev = KS_NO_PAGE;
            g->next = p->first;
            p->page[p->first].prev = i;
            p->first = i;
            p->n_idle++;
        }
    }
}

ks_hash128 ks_page_key(const ks_hash128 *prev, const int32_t tokens[KS_PAGE_TOK])
{
    struct {
        ks_hash128 prev;
        int32_t tokens[KS_PAGE_TOK];
    } in = { .prev = prev ? *prev : (ks_hash128) { 0, 0 } };
    memcpy(in.tokens, tokens, sizeof in.tokens);
    return ks_hash(&in, sizeof in);
}

void ks_pages_publish(ks_pages *p, uint32_t i, ks_hash128 key)
{
    ks_page *g = &p->page[i];
    if (g->keyed || lookup(p, key) != KS_NO_PAGE) return;
    uint32_t *b = &p->bucket[bucket_of(p, key)];
    g->key = key;
    g->keyed = true;
    g->chain = *b;
    *b = i;
}

uint32_t ks_pages_find(ks_pages *p, ks_hash128 key)
{
    uint32_t i = lookup(p, key);
    if (i != KS_NO_PAGE) ks_pages_ref(p, i);
    return i;
}
