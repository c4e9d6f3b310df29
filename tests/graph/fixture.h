/* A golden checkpoint on the CPU device: plugins, pool, weights, model, device, and page tables made by hand.
 * One at a time; the caller's thread drives it. */
#ifndef TESTS_GRAPH_FIXTURE_H
#define TESTS_GRAPH_FIXTURE_H

#include "device/cpu_device.h"
#include "graph/model.h"
#include "store/store.h"

#define FX_PAGE_TOK 16u
#define FX_PAGES 64u
#define FX_SLOTS 4u
#define FX_ROWS 128u

typedef struct fixture {
    ks_registry *registry;
    ks_kernel_table *kernels;
    ks_pool *pool;
    ks_ckpt *ckpt;
    ks_model model;
    ks_store *store;
    ks_cpu_ctx cpu;
    void *dev;
    uint32_t kv_type;
} fixture;

typedef struct fx_seq { /* a piece of a sequence for one step */
    uint32_t slot, pos, n;
    const int32_t *ids;
} fx_seq;

/* `kernels`: "ref" or "auto". dir: a checkpoint. types: of the store, by class; NULL: all bf16. */
int fx_open(fixture *f, const char *dir, const char *kernels, uint32_t n_threads, uint32_t kv_type,
            const uint32_t *types, ks_err *err);
void fx_close(fixture *f);
/* Logits of every row go to `logits` (rows, n_vocab), hidden states to `taps` (n_taps, rows, d) or nowhere. A slot's
 * pages are its own, scattered. */
int fx_step(fixture *f, const fx_seq *seqs, uint32_t n_seqs, float *logits, float *taps, ks_err *err);
/* A page of a slot's sequence. */
uint32_t fx_page(uint32_t slot, uint32_t logical);

#endif
