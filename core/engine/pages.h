/* KV pages: who holds which, and which hold a prefix that a later request can use again. [engine]
 *
 * A full page is keyed by the hash of all tokens up to its end, so equal prefixes of any requests meet in the same
 * pages. A page that nobody holds stays findable until its memory is needed (least recently used first). */
#ifndef KS_ENGINE_PAGES_H
#define KS_ENGINE_PAGES_H

#include "base/hash.h"
#include <krasis/error.h>
#include <stdbool.h>

#define KS_PAGE_TOK 16u
#define KS_NO_PAGE UINT32_MAX

typedef struct ks_page {
    uint32_t refs, prev, next; /* list of free or idle pages, ends at KS_NO_PAGE */
    uint32_t chain;            /* next page in its bucket of the key table */
    bool keyed;
    ks_hash128 key;
} ks_page;

typedef struct ks_pages {
    ks_page *page;
    uint32_t n, n_idle;   /* idle: refs 0, keyed or not */
    uint32_t first, last; /* idle pages, least recently used first */
    uint32_t *bucket, n_bucket;
} ks_pages;

KS_MUST_CHECK int ks_pages_init(ks_pages *p, uint32_t n, ks_err *err);
void ks_pages_fini(ks_pages *p);
/* A page with one reference and no key, KS_NO_PAGE if all are held. */
uint32_t ks_pages_take(ks_pages *p);
void ks_pages_ref(ks_pages *p, uint32_t page);
void ks_pages_drop(ks_pages *p, uint32_t page); /* one reference less */
/* Key of the page that ends the prefix: hash of the previous page's key and its tokens. prev NULL: the first. */
ks_hash128 ks_page_key(const ks_hash128 *prev, const int32_t tokens[KS_PAGE_TOK]);
/* Makes a held, completely written page findable. If the key is known already nothing changes. */
void ks_pages_publish(ks_pages *p, uint32_t page, ks_hash128 key);
/* Finds and references; KS_NO_PAGE if unknown. */
uint32_t ks_pages_find(ks_pages *p, ks_hash128 key);

#endif
