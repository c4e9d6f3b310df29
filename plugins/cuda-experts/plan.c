/* The memory plan: the parts that bind counted, whether they fit, and how what is left is shared between experts that
 * stay and the ring for those on their way. bind allocates by these very numbers; `krasis plan` prints them. [main] */
#include "device.h"

#include <string.h>

#define MIN_RING 2u
#define RING_BYTES ((uint64_t)512 << 20)    /* enough to keep the link busy while a group of experts is computed */
#define RESERVE_BYTES ((uint64_t)512 << 20) /* what the driver, libraries and other programs may still take */

static const struct purpose {
    const char *name, *setting;
} purposes[CU_PURPOSES] = {
    [CU_FOR_CONTEXT] = { "driver and kernels", "" },
    [CU_FOR_WEIGHTS + KS_CLS_OTHER] = { "weights: other", "" },
    [CU_FOR_WEIGHTS + KS_CLS_EMBED] = { "weights: embeddings", "" },
    [CU_FOR_WEIGHTS + KS_CLS_NORM] = { "weights: norms", "" },
    [CU_FOR_WEIGHTS + KS_CLS_ATTN] = { "weights: attention", "--attention-quant" },
    [CU_FOR_WEIGHTS + KS_CLS_ROUTER] = { "weights: router", "" },
    [CU_FOR_WEIGHTS + KS_CLS_EXPERT] = { "weights: experts' biases", "" },
    [CU_FOR_WEIGHTS + KS_CLS_SHARED] = { "weights: shared experts", "--shared-expert-quant" },
    [CU_FOR_WEIGHTS + KS_CLS_DENSE] = { "weights: dense layers", "--dense-mlp-quant" },
    [CU_FOR_WEIGHTS + KS_CLS_HEAD] = { "weights: head", "--lm-head-quant" },
    [CU_FOR_KV] = { "KV cache", "--context, --kv-cache-mb, --kv-dtype" },
    [CU_FOR_STATE] = { "recurrent state", "--max-running" },
    [CU_FOR_ACTS] = { "activations", "--step-tokens" },
    [CU_FOR_TABLES] = { "tables", "--step-tokens" },
    [CU_FOR_RING] = { "experts on their way", "--expert-divisor, --layer-group-size" },
    [CU_FOR_RESIDENT] = { "experts that stay", "--vram-limit, --gpu-expert-bits" },
};

const char *cu_purpose_name(uint32_t purpose)
{
    return purposes[purpose].name ? purposes[purpose].name : "weights";
}

static uint64_t part_bytes(const cu_dev *d, uint32_t i)
{
    return i == CU_FOR_CONTEXT ? d->parts[i].bytes : cu_round(d->parts[i].bytes, CU_PAGE);
}

uint64_t cu_plan_bytes(const cu_dev *d)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < CU_PURPOSES; i++) n += part_bytes(d, i);
    return n;
}

/* "weights: attention 812.2 MB, KV cache 512.0 MB, ...": the largest four. */
static void largest(const cu_dev *d, char *ret, size_t cap)
{
    bool said[CU_PURPOSES] = { false };
    size_t n = 0;
    *ret = 0;
    for (uint32_t k = 0; k < 4; k++) {
        uint32_t best = CU_PURPOSES;
        for (uint32_t i = 0; i < CU_PURPOSES; i++)
            if (!said[i] && part_bytes(d, i) && (best == CU_PURPOSES || part_bytes(d, i) > part_bytes(d, best)))
                best = i;
        if (best == CU_PURPOSES || n >= cap) return;
        said[best] = true;
        int w = snprintf(ret + n, cap - n, "%s%s %.1f MB", k ? ", " : "", cu_purpose_name(best),
                         (double)part_bytes(d, best) / 1e6);
        n += w > 0 ? (size_t)w : 0;
    }
}

int cu_plan_fits(const cu_dev *d, ks_err *err)
{
    char parts[256];
    uint64_t bytes = cu_plan_bytes(d);
    if (bytes <= d->budget) return 0;
    largest(d, parts, sizeof parts);
    return ks_fail(
        err, KS_E_LIMIT,
        "GPU %d: %.1f MB are needed at least (%s), %.1f MB may be used: raise --vram-limit, or lower --context, "
        "--kv-cache-mb or --step-tokens",
        d->index, (double)bytes / 1e6, parts, (double)d->budget / 1e6);
}

/* All but experts. They are counted after this is asked for, but the layout is made twice, with one result. */
static uint64_t other_bytes(const cu_dev *d)
{
    return cu_plan_bytes(d) - part_bytes(d, CU_FOR_RING) - part_bytes(d, CU_FOR_RESIDENT);
}

/* Experts that fit beside that and `taken` bytes more. */
static uint64_t room(const cu_dev *d, uint64_t taken, size_t bytes)
{
    uint64_t used = other_bytes(d) + cu_round(taken, CU_PAGE);
    return bytes && d->budget > used ? (d->budget - used) / CU_PAGE * CU_PAGE / bytes : 0;
}

static int missing(const cu_dev *d, const char *what, uint64_t n, size_t bytes, ks_err *err)
{
    uint64_t used = other_bytes(d), need = cu_round(n * bytes, CU_PAGE);
    return ks_fail(
        err, KS_E_LIMIT,
        "GPU %d: %s: %llu experts take %.1f MB, all else %.1f MB, %.1f MB may be used, %.1f MB are missing: "
        "raise --vram-limit, lower --gpu-expert-bits, --context or --step-tokens, or use --expert-divisor auto",
        d->index, what, (unsigned long long)n, (double)need / 1e6, (double)used / 1e6, (double)d->budget / 1e6,
        (double)(used + need - d->budget) / 1e6);
}

int cu_plan_experts(const cu_dev *d, uint64_t total, uint32_t widest, size_t bytes, uint32_t *ret_ring,
                    uint32_t *ret_resident, ks_err *err)
{
    const ks_bind *b = &d->bind;
    uint64_t most = d->opts->resident < 0 || (uint64_t)d->opts->resident > total ? total : (uint64_t)d->opts->resident;
    uint64_t ring = d->opts->ring ? (uint64_t)d->opts->ring : total ? RING_BYTES / bytes : 0, left = room(d, 0, bytes);
    *ret_ring = *ret_resident = 0;
    if (b->stream == KS_STREAM_RESIDENT || (b->stream == KS_STREAM_AUTO && most == total && left >= total)) {
        if (left < total) return missing(d, "all are to stay", total, bytes, err);
        *ret_resident = (uint32_t)total;
        return 0;
    }
    if (b->stream == KS_STREAM_GROUPS) {
        ring = (uint64_t)b->stream_layers * widest;
        ring = ring < total ? ring : total;
        if (left < ring) return missing(d, "a group of layers", ring, bytes, err);
    } else if (b->stream == KS_STREAM_CHUNKS) {
        ring = ring < widest / 2 ? ring : widest / 2;
    } else if (ring > left / 2) {
        ring = left / 2;
    }
    ring = ring < MIN_RING ? MIN_RING : ring > total ? total : ring;             /* without it nothing runs */
    if (b->stream != KS_STREAM_AUTO && most > total - ring) most = total - ring; /* there is something to stream */
    left = room(d, ring * bytes, bytes);
    *ret_ring = (uint32_t)ring;
    *ret_resident = (uint32_t)(left < most ? left : most);
    return 0;
}

uint64_t cu_plan_budget(uint64_t budget, uint64_t free_bytes, uint64_t context)
{
    if (budget) return budget;
    return context + (free_bytes > RESERVE_BYTES ? free_bytes - RESERVE_BYTES : 0);
}

static void tell(const cu_dev *d, ks_device_plan *ret)
{
    ks_device_plan p = { .size = ret->size,
                         .budget_bytes = d->budget,
                         .used_bytes = cu_plan_bytes(d),
                         .step_bytes = part_bytes(d, CU_FOR_ACTS) + part_bytes(d, CU_FOR_TABLES),
                         .pinned_bytes = d->pinned,
                         .expert_bytes = d->ex.slot_bytes,
                         .n_resident = d->ex.n_slots,
                         .n_ring = d->ex.n_ring,
                         .share_rows = d->bind.cold ? d->share_rows : 0 };
    for (uint32_t i = 0; i < d->ex.n_banks; i++) p.n_experts += d->ex.banks[i].n_experts;
    for (uint32_t i = 0; i < CU_PURPOSES && p.n_parts < KS_PLAN_MAX_PARTS; i++) {
        if (!part_bytes(d, i)) continue;
        ks_plan_part *t = &p.parts[p.n_parts++];
        (void)snprintf(t->what, sizeof t->what, "%s", cu_purpose_name(i));
        (void)snprintf(t->setting, sizeof t->setting, "%s", purposes[i].setting ? purposes[i].setting : "");
        t->bytes = part_bytes(d, i);
    }
    memcpy(ret, &p, ret->size < sizeof p ? ret->size : sizeof p);
}

/* Shared memory that a block may have, by compute capability: the CUDA Programming Guide's table. */
static size_t shared_of(uint32_t major, uint32_t minor)
{
    if (major == 8) return (size_t)(minor == 0 || minor == 7 ? 163 : 99) << 10;
    return (size_t)(major >= 12 ? 99 : 227) << 10;
}

int cu_plan(void *self, const ks_device_info *card, const ks_bind *b, uint64_t budget, ks_device_plan *ret, ks_err *err)
{
    static const cu_options dflt = { .resident = -1 };
    const cu_plugin *plugin = self;
    ks_device_info c = { .size = sizeof c };
    memcpy(&c, card, card->size < sizeof c ? card->size : sizeof c);
    if (c.cc_major < 8)
        return ks_fail(err, KS_E_UNSUPPORTED, "GPU %u (%.63s) has compute capability %u.%u: 8.0 or newer is needed",
                       c.index, c.name, c.cc_major, c.cc_minor);
    cu_dev d = { .opts = plugin ? plugin->opts : &dflt,
                 .index = (int)c.index,
                 .context = c.overhead_bytes ? c.overhead_bytes : CU_CONTEXT_BYTES };
    d.shared_max = shared_of(c.cc_major, c.cc_minor);
    d.flash_wg = d.opts->warpgroups && c.cc_major == 9;
    d.budget = cu_plan_budget(budget, c.mem_free_bytes, d.context);
    d.parts[CU_FOR_CONTEXT].bytes = d.context;
    int rc = cu_set_bind(&d, b, err);
    if (!rc) {
        rc = cu_count(&d, err);
        tell(&d, ret);
    }
    cu_unbind(&d);
    return rc;
}
