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
    const ks_device_iface *iface; /* the CPU's, unless fx_use_device says otherwise */
    void *device_self, *dev;
    uint32_t kv_type;
} fixture;

typedef struct fx_seq { /* a piece of a sequence for one step */
    uint32_t slot, pos, n;
    const int32_t *ids;
    uint32_t keep; /* as in ks_seq */
} fx_seq;

/* `kernels`: "ref" or "auto". dir: a checkpoint. types: of the store, by class; NULL: all bf16. */
int fx_open(fixture *f, const char *dir, const char *kernels, uint32_t n_threads, uint32_t kv_type,
            const uint32_t *types, ks_err *err);
void fx_close(fixture *f);
/* From now on fx_open calls this before it opens the device; it may set iface and device_self. NULL: the CPU again. */
void fx_use_device(int (*choose)(fixture *f, ks_err *err));
/* For fx_use_device: plugin cuda-experts, with the CPU for what it cannot run. KS_E_NOTFOUND with the reason where
 * there is none. */
int fx_choose_gpu(fixture *f, ks_err *err);
/* The folder where that plugin lies, if not among the others; it must outlive the fixtures. */
void fx_gpu_folder(const char *dir);
/* Settings of that plugin for the next fx_open: "resident" and "ring"; NULL: its defaults. share: the CPU computes the
 * experts that are not resident. */
void fx_gpu_settings(const char *resident, const char *ring, const char *piece, bool share);
/* Logits of every row go to `logits` (rows, n_vocab), hidden states to `taps` (n_taps, rows, d) or nowhere. A slot's
 * pages are its own, scattered. */
int fx_step(fixture *f, const fx_seq *seqs, uint32_t n_seqs, float *logits, float *taps, ks_err *err);
/* A page of a slot's sequence. */
uint32_t fx_page(uint32_t slot, uint32_t logical);

#endif
