/* See fixture.h. */
#include "graph/fixture.h"

#include "base/base.h"
#include "cpu/cpu.h"
#include "device/split_device.h"
#include "ref/ref.h"

#define PAGES_A_SLOT (FX_PAGES / FX_SLOTS)

uint32_t fx_page(uint32_t slot, uint32_t logical)
{
    return (logical * 7 + 3) % PAGES_A_SLOT * FX_SLOTS + slot;
}

/* On the emulator each buffer is an allocation of its own, so that it sees where one ends. */
static ks_plugin_setting gpu_settings[4] = { { "cuda-experts", "apart", "true", "test" } };
static uint32_t n_gpu_settings = 1;
static bool gpu_shares;

void fx_gpu_settings(const char *resident, const char *ring, const char *piece, bool share)
{
    gpu_shares = share;
    n_gpu_settings = 1;
    if (resident) gpu_settings[n_gpu_settings++] = (ks_plugin_setting) { "cuda-experts", "resident", resident, "test" };
    if (ring) gpu_settings[n_gpu_settings++] = (ks_plugin_setting) { "cuda-experts", "ring", ring, "test" };
    if (piece) gpu_settings[n_gpu_settings++] = (ks_plugin_setting) { "cuda-experts", "piece", piece, "test" };
}

static const char *gpu_dir;

void fx_gpu_folder(const char *dir)
{
    gpu_dir = dir;
}

int fx_choose_gpu(fixture *f, ks_err *err)
{
    static ks_split_ctx split; /* one fixture at a time */
    ks_plugin_entry *p = ks_registry_find(f->registry, "cuda-experts");
    if (!p) return ks_fail(err, KS_E_NOTFOUND, "plugin cuda-experts was not built");
    if (p->state == KS_PLUGIN_REFUSED) return ks_fail(err, KS_E_NOTFOUND, "cuda-experts: %.200s", p->why);
    int rc = ks_registry_choose(f->registry, KS_KIND_DEVICE, "cuda-experts", err);
    if (rc || (rc = ks_registry_start(f->registry, p, err))) return rc;
    split = (ks_split_ctx) {

        .main = p->desc.iface,
        .main_self = p->self,
        .rest = &ks_cpu_device_iface,
        .rest_self = &f->cpu,
        .share = gpu_shares
    };
    f->iface = &ks_split_device_iface;
    f->device_self = &split;
    return 0;
}

static int open_kernels(fixture *f, const char *want, ks_err *err)
{
    const char *dirs[] = { KS_BUILD_DIR "/plugins", NULL };
    if (gpu_dir) { /* the first cuda-experts is taken */
        dirs[1] = dirs[0];
        dirs[0] = gpu_dir;
    }
    ks_registry_opts o = { .dirs = dirs,
                           .n_dirs = gpu_dir ? 2 : 1,
                           .cpu = ks_cpu_features(),
                           .n_threads = 1,
                           .settings = gpu_settings + !gpu_dir,
                           .n_settings = n_gpu_settings - !gpu_dir };
    int rc;
    if ((rc = ks_registry_open(&o, &f->registry, err)) ||
        (rc = ks_registry_add(f->registry, &ks_ref_plugin, "(built in)", err)) ||
        (rc = ks_registry_choose(f->registry, KS_KIND_KERNELS, want, err)) ||
        (rc = ks_registry_choose(f->registry, KS_KIND_LOADER, "auto", err)))
        return rc;
    for (uint32_t i = 0; i < ks_registry_count(f->registry); i++) {
        ks_plugin_entry *p = ks_registry_entry(f->registry, i);
        if (p->state == KS_PLUGIN_CHOSEN && p->desc.kind == KS_KIND_KERNELS &&
            (rc = ks_registry_start(f->registry, p, err)))
            return rc;
    }
    return ks_kernel_table_new(f->registry, &f->kernels, err);
}

static int (*choose_device)(fixture *f, ks_err *err);

void fx_use_device(int (*choose)(fixture *f, ks_err *err))
{
    choose_device = choose;
}

int fx_open(fixture *f, const char *dir, const char *kernels, uint32_t n_threads, uint32_t kv_type,
            const uint32_t *types, ks_err *err)
{
    *f = (fixture) { .kv_type = kv_type };
    ks_pool_opts po = { .n_threads = n_threads };
    ks_store_opts so = { .no_cache = true };
    for (uint32_t i = 0; i < KS_COUNT(so.type); i++) so.type[i] = types ? types[i] : KS_T_BF16;
    int rc;
    if ((rc = open_kernels(f, kernels, err)) || (rc = ks_pool_open(&po, &f->pool, err)) ||
        (rc = ks_ckpt_open(f->registry, dir, &f->ckpt, err)) || (rc = ks_model_open(f->ckpt, &f->model, err)) ||
        (rc = ks_store_open(f->ckpt, f->model.specs, f->model.graph.n_weights, &so, f->model.weights, &f->store, err)))
        return rc;
    f->cpu = (ks_cpu_ctx) { .pool = f->pool, .kernels = f->kernels };
    f->iface = &ks_cpu_device_iface;
    f->device_self = &f->cpu;
    if (choose_device && (rc = choose_device(f, err))) return rc;
    if ((rc = f->iface->open(f->device_self, 0, 0, &f->dev, err))) return rc;
    ks_bind b = { .size = sizeof b,
                  .kv_type = kv_type,
                  .graph = &f->model.graph,
                  .op_end = f->model.graph.n_ops,
                  .n_pages = FX_PAGES,
                  .page_tok = FX_PAGE_TOK,
                  .n_slots = FX_SLOTS,
                  .max_rows = FX_ROWS,
                  .max_out = FX_ROWS };
    return f->iface->bind(f->dev, &b, err);
}

void fx_close(fixture *f)
{
    if (f->dev) f->iface->close(f->dev);
    ks_store_close(f->store);
    ks_model_close(&f->model);
    ks_ckpt_close(f->ckpt);
    ks_pool_close(f->pool);
    ks_kernel_table_free(f->kernels);
    ks_registry_close(f->registry);
    *f = (fixture) { 0 };
}

int fx_step(fixture *f, const fx_seq *seqs, uint32_t n_seqs, float *logits, float *taps, ks_err *err)
{
    int32_t ids[FX_ROWS];
    uint32_t pos[FX_ROWS], out[FX_ROWS], pages[FX_SLOTS][PAGES_A_SLOT], row = 0;
    ks_seq s[FX_SLOTS];
    for (uint32_t i = 0; i < n_seqs; i++) {
        s[i] = (ks_seq) { .row = row,
                          .n_rows = seqs[i].n,
                          .pos = seqs[i].pos,
                          .slot = seqs[i].slot,
                          .pages = pages[i],
                          .keep = seqs[i].keep };
        s[i].n_pages = (seqs[i].pos + seqs[i].n + FX_PAGE_TOK - 1) / FX_PAGE_TOK;
        for (uint32_t p = 0; p < s[i].n_pages; p++) pages[i][p] = fx_page(seqs[i].slot, p);
        for (uint32_t r = 0; r < seqs[i].n; r++, row++) {
            ids[row] = seqs[i].ids[r];
            pos[row] = seqs[i].pos + r;
            out[row] = row;
        }
    }
    ks_batch b = { .size = sizeof b,
                   .seq_size = sizeof *s,
                   .n_rows = row,
                   .n_seqs = n_seqs,
                   .n_out = logits ? row : 0,
                   .ids = ids,
                   .pos = pos,
                   .seqs = s,
                   .out_rows = out,
                   .logits = logits,
                   .taps = taps };
    return f->iface->run(f->dev, &b, 0, f->model.graph.n_ops, err);
}
