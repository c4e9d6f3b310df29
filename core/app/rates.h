/* What this machine can do, measured: the ceilings that bounds of `krasis bench` and `krasis plan` are computed from.
 * Measured again and again beside what is held against them, since a shared machine changes from second to second.
 * [main] */
#ifndef KS_APP_RATES_H
#define KS_APP_RATES_H

#include "cpu/ceiling.h"
#include "sched/pool.h"
#include <krasis/json.h>

typedef struct ks_meter {
    ks_pool *pool; /* not owned; its threads are those measured. May be changed for one of fewer threads */
    uint8_t *mem;
    size_t bytes, at, window;              /* at: where the next run reads; window: how much, 0: not known yet */
    const ks_ceiling *best[KS_CEIL_KINDS]; /* by KS_CEIL_; NULL: this processor has none */
    uint32_t *sinks;                       /* (threads) what the loops return, so that they are not left out */
} ks_meter;

/* Takes memory to read, several times the last-level cache, and finds the fastest loop of each kind. */
KS_MUST_CHECK int ks_meter_open(ks_meter *m, ks_pool *pool, ks_err *err);
void ks_meter_close(ks_meter *m);  /* a zeroed one is fine */
void ks_meter_choose(ks_meter *m); /* finds them anew, after the pool was changed */
/* Bytes a second from memory, over all threads. */
double ks_meter_read(ks_meter *m);
/* Multiply-adds a second of a kind, over all threads; 0 if there is no such loop. */
double ks_meter_compute(const ks_meter *m, uint32_t kind);
/* The same for one loop: several short runs, the best. */
double ks_meter_loop(ks_meter *m, const ks_ceiling *c);

typedef struct ks_rates {
    double read, int8, f32; /* a second; bf16 weights meet f32 activations, so that is their ceiling, too */
    /* Attention over a cache of 8 or 16 bits: f32, or where it is more a third of bf16. Three products of bf16 make one
     * with a float exactly. */
    double attn;
} ks_rates;
ks_rates ks_meter_rates(ks_meter *m); /* once, short */
ks_rates ks_meter_best(ks_meter *m);  /* the best of several */

#endif
