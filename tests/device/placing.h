/* The CPU as a device with room for a few experts: what place() is told it pretends to do, uploads land some runs
 * later, and experts that are not there go to ks_bind.cold if it is given. Anything against the contract fails the
 * test. */
#ifndef TESTS_DEVICE_PLACING_H
#define TESTS_DEVICE_PLACING_H

#include "device/cpu_device.h"
#include <stdbool.h>

typedef struct placing { /* `self` of open(), and the device */
    ks_cpu_ctx cpu;      /* set by the test, as all up to link */
    uint32_t n_slots, delay;
    double link; /* bytes a second, 0: unknown */
    /* seen by the test */
    uint64_t uploads, dropped, hot, cold, runs;
    uint32_t used, most_used;
    /* its own */
    void *dev;
    ks_bind bind;
    bool running;
    uint64_t *lands; /* (n_layers * n_experts) the run from which it is there; 0: it is not kept */
    uint64_t *heat;
    void *route, *part;
    float *x, *y, *weights;
    int32_t *ids;
    uint8_t *keep;
} placing;

extern const ks_device_iface placing_iface;
bool placing_holds(const placing *p, uint32_t layer, uint32_t expert);

#endif
