/* Plugins: where they lie, what they say, which are chosen and why. [main] */
#ifndef KS_PLUGIN_PLUGIN_H
#define KS_PLUGIN_PLUGIN_H

#include <krasis/device.h>
#include <krasis/frontend.h>
#include <krasis/kernels.h>
#include <krasis/loader.h>
#include <krasis/plugin.h>
#include <stdbool.h>

typedef struct ks_registry ks_registry;

#define KS_PLUGIN_REFUSED 0 /* never usable here: `why` says what to do */
#define KS_PLUGIN_USABLE 1  /* "standby" */
#define KS_PLUGIN_CHOSEN 2  /* by ks_registry_choose */
#define KS_PLUGIN_OPEN 3

typedef struct ks_plugin_entry {
    const char *path; /* of the file; "(built in)" for core/ref */
    const char *name; /* of the descriptor, or derived from the file's name if it is unreadable */
    ks_plugin desc;   /* the host's own zero-filled copy; nothing but the kind if it was not loaded or is broken */
    int state;
    int32_t score;
    char why[256];
    void *self; /* after open */
    void *opts;
} ks_plugin_entry;

/* One setting of a plugin's own section; the registry checks it against the plugin's options. */
typedef struct ks_plugin_setting {
    const char *plugin, *key, *value, *origin; /* origin: "file:line" or "flag", for messages */
} ks_plugin_setting;

typedef struct ks_registry_opts {
    const char *const *dirs; /* searched in order; a missing one is skipped */
    uint32_t n_dirs;
    /* Texts that ks_registry_choose will get: files that they name by path are loaded before the folders are searched,
     * win over a plugin of the same name there, and have settings like any other. May be NULL. */
    const char *const *wanted;
    uint32_t n_wanted;
    uint64_t cpu; /* features; usually ks_cpu_features() */
    uint32_t n_threads;
    const ks_plugin_setting *settings;
    uint32_t n_settings;
    /* Behind ks_host.parallel; may be NULL until a pool exists. */
    void (*parallel)(void *ctx, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg);
    void *parallel_ctx;
} ks_registry_opts;

/* Scans the folders (names in order, *.so), loads and probes each. Broken plugins become refused
 * entries; only our own failures (memory) and settings for unknown plugins or keys are errors. */
KS_MUST_CHECK int ks_registry_open(const ks_registry_opts *o, ks_registry **ret, ks_err *err);
void ks_registry_close(ks_registry *r); /* close()s what is open; never dlclose */
uint32_t ks_registry_count(const ks_registry *r);
ks_plugin_entry *ks_registry_entry(ks_registry *r, uint32_t i);
ks_plugin_entry *ks_registry_find(ks_registry *r, const char *name); /* NULL: none */
/* Loads one more file, as the scan does. 0 also for a refused one; ret may be NULL. */
KS_MUST_CHECK int ks_registry_add_file(ks_registry *r, const char *path, ks_plugin_entry **ret, ks_err *err);
/* Adds a descriptor that is linked in (tests, core/ref). */
KS_MUST_CHECK int ks_registry_add(ks_registry *r, const ks_plugin *desc, const char *path, ks_err *err);
/* Chooses among a kind: `want` = "auto" (score, then name), a comma list of names or paths, or "none". Of kernel
 * plugins in a list the first that has a row gives it; the built-in reference has those that are left, with "none" all
 * of them. A wanted plugin that is missing or refused is an error with its reason; no silent fallback. */
KS_MUST_CHECK int ks_registry_choose(ks_registry *r, uint32_t kind, const char *want, ks_err *err);
/* open() of a chosen plugin, once. */
KS_MUST_CHECK int ks_registry_start(ks_registry *r, ks_plugin_entry *e, ks_err *err);
/* Bytes it holds now from ks_host.alloc. [any] */
size_t ks_plugin_mem_bytes(const ks_plugin_entry *e);
/* The loader that recognises the file, opened. */
KS_MUST_CHECK int ks_registry_loader(ks_registry *r, const char *path, ks_plugin_entry **ret, ks_err *err);

/* The merged kernel table of all chosen kernel plugins. */
typedef struct ks_kernel_table ks_kernel_table;
KS_MUST_CHECK int ks_kernel_table_new(ks_registry *r, ks_kernel_table **ret, ks_err *err);
void ks_kernel_table_free(ks_kernel_table *t);
/* The best row, NULL if nobody has one. layout 0 where the op has none. */
const ks_kernel *ks_kernel_find(const ks_kernel_table *t, uint32_t op, uint32_t wtype, uint32_t xtype, uint32_t layout);
size_t ks_kernel_scratch(const ks_kernel_table *t); /* the largest scratch_bytes */
/* Rows in order of choice, for `krasis plugins --kernels`: i-th row and the plugin it is from; NULL ends. */
const ks_kernel *ks_kernel_row(const ks_kernel_table *t, uint32_t i, const char **ret_plugin);

/* Standard folders: beside the program (build/plugins), ${libdir}/krasis/plugins, plugin-dir setting,
 * KRASIS_PLUGIN_PATH unless the process is privileged. Never the current directory. */
uint32_t ks_plugin_dirs(const char *setting, char **ret_dirs, uint32_t cap); /* malloc'd strings */

#endif
