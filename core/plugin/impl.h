/* What the files of the plugin layer share. */
#ifndef KS_PLUGIN_IMPL_H
#define KS_PLUGIN_IMPL_H

#include "plugin/plugin.h"
#include <stdatomic.h>

#define KS_MAX_PLUGINS 256u
#define KS_MAX_KERNELS 1024u /* rows of one plugin */
#define KS_MAX_OPTIONS 256u
#define KS_MAX_OPTS_BYTES 65536u
#define KS_PROBE_SLOW_MS 100u

/* An entry as the registry keeps it. The descriptor, the interface, kernel rows and options are copies of ours,
 * zero-filled where the plugin is older than we are, so nobody looks at a plugin's `size` again. */
typedef struct ks_entry {
    ks_plugin_entry pub;
    struct ks_registry *registry;
    ks_host host; /* what this plugin sees */
    char path[4096], name[64];
    union {
        ks_kernels_iface kernels;
        ks_device_iface device;
        ks_loader_iface loader;
        ks_frontend_iface frontend;
    } iface;
    ks_kernel *rows;    /* (n_kernels) */
    ks_option *options; /* (n_options) */
    bool loaded;        /* the descriptor is valid, and this CPU has what it asks for */
    uint32_t rank;      /* its place among those named in the settings, from 1; 0: chosen by score */
    atomic_size_t held; /* bytes from host.alloc: a count, nothing is ordered by it */
} ks_entry;

struct ks_registry {
    ks_registry_opts o;
    ks_entry **entry;
    uint32_t n;
};

/* load.c: checks the file, loads it and checks the descriptor; what is wrong with it is in the entry,
 * which is then refused; only lack of memory is an error. */
KS_MUST_CHECK int ks__plugin_load(ks_entry *e, ks_err *err);
/* Checks and copies a descriptor; KS_E_ codes with the sentence in err. */
KS_MUST_CHECK int ks__plugin_take(ks_entry *e, const ks_plugin *desc, ks_err *err);
/* host.c */
void ks__host_init(ks_entry *e);
/* options.c: defaults, then the settings of this plugin's section. */
KS_MUST_CHECK int ks__plugin_options(ks_entry *e, ks_err *err);
/* Sets `why`, one line whatever the plugin wrote. */
void ks__say(ks_entry *e, const char *fmt, ...) KS_PRINTF(2, 3);
void ks__refuse(ks_entry *e, const char *fmt, ...) KS_PRINTF(2, 3);
/* select.c: the higher score, then the name; never the order in a folder. */
bool ks__better(const ks_entry *a, const ks_entry *b);
/* select.c: the next word of a comma list, without the blanks around it; false at the end. */
bool ks__next_word(const char **list, char *ret, size_t cap);
/* registry.c: the entry of that very file, under any name; NULL: none. */
ks_entry *ks__registry_at(ks_registry *r, const char *path);
#endif
