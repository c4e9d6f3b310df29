/* The CUDA device on the emulated GPU, without its plugin's descriptor: for tests that look inside of it. */
#ifndef ON_EMU_H
#define ON_EMU_H

#include "device.h"
#include "emu.h"
#include "graph/fixture.h"
#include "iface.h"
#include "support/golden_ckpt.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static cu_options options; /* of the devices that are opened from now on */
static uint32_t n_lines;   /* that the device has logged */

static inline void on_emu_log(const ks_host *h, int32_t level, const char *msg)
{
    (void)h, (void)level, (void)msg;
    n_lines++;
}

static const ks_host host = { .size = sizeof host, .log = on_emu_log };
static cu_plugin plugin = { .host = &host, .opts = &options };

/* For fx_use_device. */
static inline int choose(fixture *f, ks_err *err)
{
    (void)err;
    f->iface = &cu_iface;
    f->device_self = &plugin;
    return 0;
}

static inline void must(int rc, const ks_err *err)
{
    if (rc) fail_msg("%s", err->msg);
}

#endif
