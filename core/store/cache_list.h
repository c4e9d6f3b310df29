/* What lies in the cache's folder, for people who want to know where their disk has gone. Nothing here removes anything
 * by itself: ks_cache_remove is told what. [main] */
#ifndef KS_STORE_CACHE_LIST_H
#define KS_STORE_CACHE_LIST_H

#include <krasis/error.h>
#include <stddef.h>
#include <stdint.h>

#define KS_CACHE_READY 0u      /* usable */
#define KS_CACHE_GONE 1u       /* usable, but its model's folder is not there any more */
#define KS_CACHE_OTHER 2u      /* of another version of the program: this one never reads it */
#define KS_CACHE_DAMAGED 3u    /* would be built again */
#define KS_CACHE_UNFINISHED 4u /* interrupted; the model's next start goes on with it */
#define KS_CACHE_BUILDING 5u   /* a process works on it now */
#define KS_CACHE_LEFTOVER 6u   /* small files without weights */
#define KS_CACHE_HEAT 7u       /* a usable heat map */

typedef struct ks_cache_item {
    char key[33];   /* all files of one cache are KEY.something */
    uint32_t state; /* KS_CACHE_ */
    uint64_t bytes; /* on the disk */
    int64_t used_s; /* when it was made or last loaded, seconds since 1970 */
    char *model;    /* the folder it was made of; "" if that is not known */
    uint32_t heat;  /* 1: a heat map, which lies in heat_dir */
} ks_cache_item;

typedef struct ks_cache_items {
    char *dir, *heat_dir;
    ks_cache_item *item; /* (n) last used first */
    size_t n;
} ks_cache_items;

/* The weights of dir (NULL: $KRASIS_HOME/cache) and the heat maps. A folder that is not there is an empty one. */
KS_MUST_CHECK int ks_cache_list(const char *dir, ks_cache_items *ret, ks_err *err);
void ks_cache_items_fini(ks_cache_items *x); /* a zeroed one is fine */
/* "READY" -> "ready", for tables. */
const char *ks_cache_state_name(uint32_t state);
/* Removes the files of one cache. KS_E_BUSY: a process builds it. */
KS_MUST_CHECK int ks_cache_remove(const ks_cache_items *x, const ks_cache_item *item, ks_err *err);

#endif
