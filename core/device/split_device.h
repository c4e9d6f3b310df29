/* Two devices as one: ops that `main` can lower run there, the others on `rest`; registers that live across a cut are
 * moved between them. Cuts and moves are planned once, by bind. Bits are those of the device that runs an op.
 *
 * With `share`, main may also hand single experts of an EXPERTS op to the rest: those whose weights it does not hold.
 *
 * State (KV pages, recurrent slots) belongs to an op, so each device keeps that of its own ops. */
#ifndef KS_DEVICE_SPLIT_DEVICE_H
#define KS_DEVICE_SPLIT_DEVICE_H

#include <krasis/device.h>

/* `self` of open(); outlives the device. */
typedef struct ks_split_ctx {
    const ks_device_iface *main, *rest;
    void *main_self, *rest_self;
    uint32_t main_index;
    uint32_t share;       /* not 0: `rest` computes the experts that `main` hands back through ks_bind.cold */
    uint64_t main_budget; /* bytes, 0: what is free */
} ks_split_ctx;

extern const ks_device_iface ks_split_device_iface;

/* After bind: how many ops `rest` runs, how many registers move in a step. ret_kinds: bit k is set if there is an op of
 * kind k among them. Each result may be NULL. */
void ks_split_counts(const void *dev, uint32_t *ret_rest_ops, uint32_t *ret_moves, uint32_t *ret_kinds);

#endif
