/* The CUDA device as the host sees it: listing, opening, moving registers, numbers. See device.h. */
#include "device.h"

#include "iface.h"
#include <stdlib.h>
#include <string.h>

int cu_check(cu_dev *d, cudaError_t rc, const char *what, ks_err *err)
{
    if (rc == cudaSuccess) return 0;
    if (!d->dead) {
        d->dead = true;
        (void)snprintf(d->why, sizeof d->why,
                       "GPU %d (%s): %s failed: %s: the device is no longer used; --device cpu runs without it",
                       d->index, d->name, what, cudaGetErrorString(rc));
        d->host->log(d->host, KS_LOG_ERROR, d->why);
        cu_share_over(d); /* it may be alive, and waiting for us */
    }
    return ks_fail(err, KS_E_DEVICE, "%s", d->why);
}

int cu_fetch(cu_dev *d, void *to, const void *from, size_t bytes, ks_err *err)
{
    cu_launch_fetch(to, from, bytes, d->compute);
    return cu_check(d, cudaGetLastError(), "sending a table", err);
}

int cu_wait(cu_dev *d, const char *what, ks_err *err)
{
    uint64_t t0 = cu_now_ns();
    int rc = cu_check(d, cudaStreamSynchronize(d->compute), what, err);
    atomic_fetch_add_explicit(&d->wait_ns, cu_now_ns() - t0, memory_order_relaxed);
    return rc;
}

/* ---- listing */

/* Bytes a second from pinned memory, the best of a few copies; 0: not measurable. */
static double link_rate(void)
{
    enum { BYTES = 32 << 20, TRIES = 4 };
    void *host = NULL, *dev = NULL;
    cudaEvent_t a = NULL, b = NULL;
    double best = 0;
    if (cudaHostAlloc(&host, BYTES, cudaHostAllocDefault) == cudaSuccess && cudaMalloc(&dev, BYTES) == cudaSuccess &&
        cudaEventCreate(&a) == cudaSuccess && cudaEventCreate(&b) == cudaSuccess)
        for (int i = 0; i < TRIES; i++) {
            float ms = 0;
            if (cudaEventRecord(a, NULL) != cudaSuccess ||
                cudaMemcpyAsync(dev, host, BYTES, cudaMemcpyHostToDevice, NULL) != cudaSuccess ||
                cudaEventRecord(b, NULL) != cudaSuccess || cudaEventSynchronize(b) != cudaSuccess ||
                cudaEventElapsedTime(&ms, a, b) != cudaSuccess)
                break;
            if (ms > 0 && BYTES / ((double)ms / 1e3) > best) best = BYTES / ((double)ms / 1e3);
        }
    if (a) (void)cudaEventDestroy(a);
    if (b) (void)cudaEventDestroy(b);
    (void)cudaFree(dev);
    (void)cudaFreeHost(host);
    (void)cudaGetLastError(); /* a full device is no failure of listing */
    return best;
}

static int cu_list(void *self, uint32_t i, ks_device_info *ret, ks_err *err)
{
    int n = 0;
    struct cudaDeviceProp p;
    ks_device_info info = { .size = ret->size, .index = i };
    size_t free_bytes = 0, total = 0;
    cu_plugin *plugin = self;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || i >= (uint32_t)n || i >= CU_MAX_GPUS) {
        (void)cudaGetLastError();
        return ks_fail(err, KS_E_NOTFOUND, "there is no GPU %u: %d were found", i, rc == cudaSuccess ? n : 0);
    }
    if ((rc = cudaGetDeviceProperties(&p, (int)i)) != cudaSuccess ||
        (rc = (cudaError_t)cu_context(plugin, i, &p, &free_bytes, &total)) != cudaSuccess)
        return ks_fail(err, KS_E_DEVICE, "GPU %u: %s", i, cudaGetErrorString(rc));
    (void)snprintf(info.name, sizeof info.name, "%.63s", p.name);
    cu_uuid_text(&p, info.uuid, sizeof info.uuid);
    info.mem_total_bytes = total;
    info.mem_free_bytes = free_bytes;
    info.cc_major = (uint32_t)p.major;
    info.cc_minor = (uint32_t)p.minor;
    info.link_bytes_s = link_rate();
    info.overhead_bytes = plugin->context[i];
    memcpy(ret, &info, ret->size < sizeof info ? ret->size : sizeof info);
    return 0;
}

/* ---- life */

static void cu_close(void *dev)
{
    cu_dev *d = dev;
    if (!d) return;
    (void)cudaSetDevice(d->index); /* a lost device cannot be cleaned up; the rest is */
    if (d->compute) (void)cudaStreamSynchronize(d->compute);
    if (d->copy) (void)cudaStreamSynchronize(d->copy);
    cu_unbind(d);
    if (d->compute) (void)cudaStreamDestroy(d->compute);
    if (d->copy) (void)cudaStreamDestroy(d->copy);
    (void)cudaGetLastError();
    free(d);
}

/* May attention use products of warpgroups? A row alone is computed without them, so they must give the same bits. */
static int ask_warpgroups(cu_dev *d, ks_err *err)
{
    uint32_t n = 0, wrong = 0;
    char line[192];
    if (!d->opts->warpgroups) return 0;
    int rc = cu_check(d, (cudaError_t)cu_flash_wg_agrees(&n, &wrong), "comparing products of warpgroups", err);
    if (rc) return rc;
    d->flash_wg = n && !wrong;
    if (!wrong) return 0;
    (void)snprintf(
        line, sizeof line,
        "GPU %d: %u of %u products of warpgroups have other bits than those of warps: attention does not use "
        "them",
        d->index, wrong, n);
    d->host->log(d->host, KS_LOG_WARN, line);
    return 0;
}

static int set_up(cu_dev *d, cu_plugin *plugin, uint64_t budget, ks_err *err)
{
    struct cudaDeviceProp p;
    size_t free_bytes = 0, total = 0;
    int rc;
    if ((rc = cu_check(d, cudaGetDeviceProperties(&p, d->index), "asking for its properties", err)) ||
        (rc = cu_check(d, (cudaError_t)cu_context(plugin, (uint32_t)d->index, &p, &free_bytes, &total),
                       "choosing the device", err)) ||
        (rc = cu_check(d, cudaStreamCreateWithFlags(&d->compute, cudaStreamNonBlocking), "a stream", err)) ||
        (rc = cu_check(d, cudaStreamCreateWithFlags(&d->copy, cudaStreamNonBlocking), "a stream", err)))
        return rc;
    (void)snprintf(d->name, sizeof d->name, "%.63s", p.name);
    if (p.major < 8)
        return ks_fail(err, KS_E_UNSUPPORTED, "GPU %d (%s) has compute capability %d.%d: 8.0 or newer is needed",
                       d->index, d->name, p.major, p.minor);
    d->n_sms = (uint32_t)p.multiProcessorCount;
    d->shared_max = p.sharedMemPerBlockOptin;
    d->early = d->opts->early && p.major >= 9;
    d->wg_blocks = d->opts->warpgroups && cu_has_warpgroups() ? d->n_sms : 0;
    if ((rc = ask_warpgroups(d, err))) return rc;
    d->context = plugin->context[d->index];
    d->budget = cu_plan_budget(budget, free_bytes, d->context);
    if (budget > free_bytes + d->context)
        return ks_fail(err, KS_E_LIMIT, "GPU %d (%s): %.1f GB are to be used, %.1f GB are free: lower --vram-limit",
                       d->index, d->name, (double)budget / 1e9, (double)(free_bytes + d->context) / 1e9);
    return 0;
}

static int cu_open(void *self, uint32_t index, uint64_t budget, void **ret_dev, ks_err *err)
{
    cu_plugin *p = self;
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || index >= (uint32_t)n || index >= CU_MAX_GPUS)
        return ks_fail(err, KS_E_NOTFOUND, "there is no GPU %u: %d were found", index, n);
    cu_dev *d = calloc(1, sizeof *d);
    if (!d) return ks_fail(err, KS_E_NOMEM, "out of memory for GPU %u", index);
    d->host = p->host;
    d->opts = p->opts;
    d->index = (int)index;
    int rc = set_up(d, p, budget, err);
    if (rc)
        cu_close(d);
    else
        *ret_dev = d;
    return rc;
}

/* ---- registers */

static int begin(cu_dev *d, ks_err *err)
{
    if (d->dead) return ks_fail(err, KS_E_DEVICE, "%s", d->why);
    if (!d->g) return ks_fail(err, KS_E_STATE, "nothing is bound to GPU %d", d->index);
    return cu_check(d, cudaSetDevice(d->index), "choosing the device", err);
}

/* A selection travels with its count in front of each row. */
static int move(cu_dev *d, uint32_t reg, uint32_t n_rows, uint8_t *host, bool out, ks_err *err)
{
    int rc = begin(d, err);
    if (rc) return rc;
    if (reg >= d->g->n_regs) return ks_fail(err, KS_E_INVAL, "register %u does not exist", reg);
    struct dev_reg *r = &d->regs[reg];
    size_t elem = (r->kind & 0xffu) == KS_REG_ROUTE ? 8 : 4, row = r->width * elem, head = r->n_sel ? 4 : 0;
    uint32_t max = cu_reg_rows(d, reg);
    if (n_rows > max) return ks_fail(err, KS_E_LIMIT, "%u rows of a register with %u", n_rows, max);
    if (!n_rows) return 0;
    enum cudaMemcpyKind kind = out ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
    atomic_fetch_add_explicit(out ? &d->bytes_out : &d->bytes_in, n_rows * (row + head), memory_order_relaxed);
    if (head)
        rc = cu_check(d,
                      out ? cudaMemcpy2DAsync(host, row + head, r->n_sel, 4, 4, n_rows, kind, d->compute)
                          : cudaMemcpy2DAsync(r->n_sel, 4, host, row + head, 4, n_rows, kind, d->compute),
                      "moving a selection", err);
    if (!rc)
        rc = cu_check(
            d,
            out ? cudaMemcpy2DAsync(host + head, row + head, r->r.p, r->r.stride * elem, row, n_rows, kind, d->compute)
                : cudaMemcpy2DAsync(r->r.p, r->r.stride * elem, host + head, row + head, row, n_rows, kind, d->compute),
            "moving activations", err);
    return rc ? rc : cu_check(d, cudaStreamSynchronize(d->compute), "moving activations", err);
}

static int cu_get(void *dev, uint32_t reg, uint32_t n_rows, void *dst, ks_err *err)
{
    return move(dev, reg, n_rows, dst, true, err);
}

static int cu_put(void *dev, uint32_t reg, uint32_t n_rows, const void *src, ks_err *err)
{
    return move(dev, reg, n_rows, (uint8_t *)(uintptr_t)src, false, err); /* only read from */
}

/* ---- state */

int cu_copy_state(cu_dev *d, void *base, size_t bytes, uint32_t dst, uint32_t src, ks_err *err)
{
    if (!base || !bytes) return 0;
    return cu_check(d,
                    cudaMemcpyAsync((uint8_t *)base + dst * bytes, (uint8_t *)base + src * bytes, bytes,
                                    cudaMemcpyDeviceToDevice, d->compute),
                    "copying state", err);
}

static int cu_copy_page(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    cu_dev *d = dev;
    int rc = begin(d, err);
    if (rc) return rc;
    if (dst >= d->bind.n_pages || src >= d->bind.n_pages)
        return ks_fail(err, KS_E_INVAL, "page %u or %u of %u does not exist", dst, src, d->bind.n_pages);
    for (uint32_t i = 0; i < d->g->n_states && dst != src && !rc; i++) {
        const struct dev_state *s = &d->states[i];
        if (!(rc = cu_copy_state(d, s->k, s->k_page_bytes, dst, src, err)))
            rc = cu_copy_state(d, s->v, s->v_page_bytes, dst, src, err);
    }
    return rc;
}

static int cu_copy_slot(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    cu_dev *d = dev;
    int rc = begin(d, err);
    if (rc) return rc;
    if (dst >= d->bind.n_slots || src >= d->bind.n_slots)
        return ks_fail(err, KS_E_INVAL, "slot %u or %u of %u does not exist", dst, src, d->bind.n_slots);
    for (uint32_t i = 0; i < d->g->n_states && dst != src && !rc; i++)
        rc = cu_copy_state(d, d->states[i].rec, d->states[i].floats * sizeof(float), dst, src, err);
    return rc;
}

/* ---- numbers */

static int cu_stats(void *dev, ks_device_stats *ret, ks_err *err)
{
    cu_dev *d = dev;
    (void)err;
    ks_device_stats s = { .size = ret->size,
                          .steps = atomic_load_explicit(&d->steps, memory_order_relaxed),
                          .rows = atomic_load_explicit(&d->rows, memory_order_relaxed),
                          .launches = atomic_load_explicit(&d->launches, memory_order_relaxed),
                          .bytes_in = atomic_load_explicit(&d->bytes_in, memory_order_relaxed),
                          .bytes_out = atomic_load_explicit(&d->bytes_out, memory_order_relaxed),
                          .experts_hot = atomic_load_explicit(&d->hot, memory_order_relaxed),
                          .experts_cold = atomic_load_explicit(&d->cold, memory_order_relaxed),
                          .mem_bytes = d->used,
                          .expert_slots = d->ex.n_slots,
                          .experts_resident = atomic_load_explicit(&d->resident, memory_order_relaxed),
                          .slot_bytes = d->ex.slot_bytes,
                          .uploads = atomic_load_explicit(&d->uploads, memory_order_relaxed),
                          .upload_bytes = atomic_load_explicit(&d->upload_bytes, memory_order_relaxed),
                          .run_ns = atomic_load_explicit(&d->run_ns, memory_order_relaxed),
                          .wait_ns = atomic_load_explicit(&d->wait_ns, memory_order_relaxed),
                          .cold_ns = atomic_load_explicit(&d->cold_ns, memory_order_relaxed),
                          .cold_bytes = atomic_load_explicit(&d->cold_bytes, memory_order_relaxed),
                          .linked_bytes = atomic_load_explicit(&d->linked_bytes, memory_order_relaxed) };
    memcpy(ret, &s, ret->size < sizeof s ? ret->size : sizeof s);
    return 0;
}

const ks_device_iface cu_iface = {
    .size = sizeof(ks_device_iface),
    .flags = KS_DEVICE_RUNS,
    .list = cu_list,
    .open = cu_open,
    .close = cu_close,
    .lower = cu_lower,
    .bind = cu_bind,
    .place = cu_place,
    .run = cu_run,
    .get = cu_get,
    .put = cu_put,
    .copy_page = cu_copy_page,
    .copy_slot = cu_copy_slot,
    .stats = cu_stats,
    .heat = cu_heat,
    .keeps = cu_place_keeps,
    .plan = cu_plan,
};
