/* The plugin descriptor: what one shared object tells the host about itself.
 *
 * A plugin is one .so with one exported const object, `krasis_plugin_v1`. It is data: the host copies
 * it, tests `cpu_required` against the machine and checks every field before it calls anything. Life:
 *
 *   dlopen -> descriptor read -> cpu_required -> options parsed -> probe -> chosen -> open -> ... -> close
 *
 * A failure at any step is one sentence in `krasis plugins`; the host goes on without the plugin.
 * Plugins are never dlclose()d. A plugin links nothing of the host; `krasis/json.h` (library
 * krasis-sdk) is there for those who read JSON.
 */
#ifndef KRASIS_PLUGIN_H
#define KRASIS_PLUGIN_H

#include <krasis/error.h>
#include <krasis/types.h>
#include <krasis/version.h>

/* Kinds. */
#define KS_KIND_KERNELS 1u  /* iface: const ks_kernels_iface *   krasis/kernels.h */
#define KS_KIND_DEVICE 2u   /* iface: const ks_device_iface *    krasis/device.h */
#define KS_KIND_LOADER 3u   /* iface: const ks_loader_iface *    krasis/loader.h */
#define KS_KIND_FRONTEND 4u /* iface: const ks_frontend_iface *  krasis/frontend.h */

/* Option types and the C type of the field at `offset` in the plugin's options struct. */
#define KS_OPT_BOOL 1u  /* int32_t, 0 or 1 */
#define KS_OPT_INT 2u   /* int64_t */
#define KS_OPT_FLOAT 3u /* double */
#define KS_OPT_STR 4u   /* const char *, owned by the host, never NULL, lives until close() returned */

/* One setting: an INI key in the section [name of the plugin]; `choices` is "a|b|c" or NULL. */
typedef struct ks_option {
    const char *key; /* [a-z0-9-]+ */
    uint32_t type, offset;
    const char *dflt; /* the default as text */
    double min, max;  /* of INT and FLOAT; both 0: unbounded */
    const char *choices;
    const char *help; /* one sentence without a full stop */
} ks_option;

#define KS_LOG_ERROR 0
#define KS_LOG_WARN 1
#define KS_LOG_INFO 2
#define KS_LOG_DEBUG 3
#define KS_LOG_TRACE 4

/* Given to the plugin; lives until close() has returned. Check newer fields with KS_HAS. */
typedef struct ks_host {
    uint32_t size, abi_minor;
    void *ctx;
    uint64_t cpu;       /* KS_CPU() bits this process may use, after the user's mask */
    uint32_t n_threads; /* of the compute pool */
    uint32_t _pad;
    void (*log)(const struct ks_host *h, int32_t level, const char *msg); /* [any] one line, no newline */
    void *(*alloc)(const struct ks_host *h, size_t bytes, size_t align);  /* [any] counted; NULL: no memory */
    void (*free)(const struct ks_host *h, void *p);                       /* [any] NULL is fine */
    /* [engine] fork-join on the host's pool: task(arg, i) for every i < n, any order, any thread;
     * returns when all are done. Not re-entrant. */
    void (*parallel)(const struct ks_host *h, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg);
    const void *(*ext)(const struct ks_host *h, const char *id); /* [any] "krasis.x/1"; NULL: no */
} ks_host;

/* What probe() found: the line of `krasis plugins`. */
typedef struct ks_probe {
    uint32_t size; /* set by the caller; the callee writes inside it */
    int32_t score; /* replaces the descriptor's if not 0 */
    uint64_t mem_total_bytes, mem_free_bytes;
    char detail[128];
} ks_probe;

typedef struct ks_plugin {
    uint32_t size; /* sizeof(ks_plugin) as the plugin was compiled */
    uint32_t kind;
    const char *name; /* [a-z0-9-]{2,31}; also the file's name (NAME.so) and its INI section */
    const char *version, *summary, *license, *url; /* required, required, required, may be NULL */
    uint64_t cpu_required;                         /* KS_CPU() bits, tested by the host */
    int32_t score;                                 /* bands: 0 reference, 200 AVX2, 300 AVX-512, 350 AMX, 1000 a GPU */
    uint32_t n_options;
    const ks_option *options; /* the host fills `opts` from them */
    uint32_t option_size;     /* sizeof(ks_option) */
    uint32_t opts_bytes;      /* size of the plugin's options struct */
    const void *iface;        /* required, by kind; itself size-prefixed */
    /* [main] optional, under 100 ms, allocates no device memory, the same answer twice. A negative
     * return refuses the plugin with the message. */
    int (*probe)(const ks_host *h, const void *opts, ks_probe *ret, ks_err *err);
    /* [main] optional if stateless. `opts` lives until close() has returned. A failed open leaves
     * nothing behind. At most one instance is open at a time. */
    int (*open)(const ks_host *h, const void *opts, void **ret_self, ks_err *err);
    void (*close)(void *self);                      /* [main] NULL is fine */
    const void *(*ext)(void *self, const char *id); /* [any] optional */
} ks_plugin;

/* The one definition of a plugin: KS_PLUGIN_DEFINE = { .size = sizeof(ks_plugin), ... }; */
#define KS_PLUGIN_SYMBOL "krasis_plugin_v1"
#define KS_PLUGIN_DEFINE                                                            \
    extern const ks_plugin krasis_plugin_v1 __attribute__((visibility("default"))); \
    const ks_plugin krasis_plugin_v1

#endif
