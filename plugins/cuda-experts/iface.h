/* The device interface of this plugin: device.c has it, plugin.c shows it. */
#ifndef CU_IFACE_H
#define CU_IFACE_H

#include <krasis/device.h>

extern const ks_device_iface cu_iface;

#endif
