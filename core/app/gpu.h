/* Which device a model runs on: --device, --num-gpus, --selected-gpus, --vram-limit. [main] */
#ifndef KS_APP_GPU_H
#define KS_APP_GPU_H

#include "app/load.h"

/* Fills in the engine's device: the CPU, or a GPU with the CPU for the ops that it cannot run. After ks_app_plugins.
 * A GPU that is asked for and cannot be used is an error; with --device auto it is a line in the log. */
KS_MUST_CHECK int ks_app_choose_device(ks_app *a, ks_engine_opts *o, ks_err *err);

/* One of the list: does "0,2" or "GPU-1b..." name this GPU? "all" names every one. */
bool ks_gpu_selected(const char *list, const ks_device_info *gpu);

#endif
