/* Inside krasis-conform: what the tool and the rules share. One thread; rules run in child processes of it, each of
 * which loads the plugin anew, so that nothing of one rule is left for the next. */
#ifndef KS_TOOLS_CONFORM_H
#define KS_TOOLS_CONFORM_H

#include "plugin/elf.h"
#include "plugin/plugin.h"

#define CONFORM_MAX_ROWS 1024u /* kernel rows of one plugin, as the host allows */
#define CONFORM_RULES 4u       /* rules that one child may answer: KRN-1 to KRN-4 */

/* A sanitizer's runtime adds constructors, output and an allocator to everything. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CONFORM_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CONFORM_SANITIZED 1
#endif
#endif
#ifndef CONFORM_SANITIZED
#define CONFORM_SANITIZED 0
#endif

enum { NOT_REACHED, PASSED, BROKEN, SKIPPED }; /* NOT_REACHED: the child ended before */

typedef struct outcome {
    int32_t verdict;
    char why[448];
} outcome;

/* In memory that parent and children share. */
typedef struct board {
    outcome out[CONFORM_RULES]; /* of the running child */
    /* written by ABI-5, for all later rules: */
    uint32_t kind, n_rows;
    uint64_t cpu_required;
    char row[CONFORM_MAX_ROWS][64]; /* names of the kernel rows */
} board;

typedef struct conform {
    const char *path;   /* of the plugin, absolute */
    const char *sample; /* a file that the loader reads, or NULL */
    uint64_t seed;
    board *board;
    int output_fd; /* where the child's stdout and stderr go, -1: nowhere special */
} conform;

/* The plugin, loaded in this process: the descriptor as the host copies it, options at their defaults. */
typedef struct plug {
    void *so;
    ks_plugin d;
    const ks_plugin *given; /* the plugin's own */
    ks_registry *registry;
    const ks_plugin_entry *entry;
    struct {
        ks_host h;
        uint8_t later[64]; /* fields of a later version */
    } host;
    size_t held; /* bytes of host.alloc not freed */
} plug;

KS_PRINTF(3, 4) void verdict(outcome *o, int32_t v, const char *fmt, ...);
/* A plugin that is given back at the end of its block; every rule has one. */
#define PLUG(p) __attribute__((cleanup(plug_fini))) plug p = { 0 }
void plug_fini(plug *p);
/* conform_abi.c. False: the outcome is already BROKEN with the reason. */
bool plug_load(const conform *c, plug *p, uint64_t cpu, outcome *o);
/* Opens it; false with the reason in err if it cannot be opened here. */
bool plug_open(plug *p, void **ret_self, ks_err *err);

/* Rules. A rule writes its outcome; SKIPPED with a reason where it has nothing to look at. */
typedef void (*rule_fn)(const conform *c, outcome *o);
void abi_1(const conform *c, outcome *o);
void abi_2(const conform *c, outcome *o);
void abi_3(const conform *c, outcome *o);
void abi_4(const conform *c, outcome *o);
void abi_5(const conform *c, outcome *o);
void abi_7(const conform *c, outcome *o);
void abi_8(const conform *c, outcome *o);
void abi_9(const conform *c, outcome *o);
void abi_10(const conform *c, outcome *o);
void abi_11(const conform *c, outcome *o);
void abi_12(const conform *c, outcome *o);
void ldr_1(const conform *c, outcome *o);
void dev_1(const conform *c, outcome *o);
void fe_1(const conform *c, outcome *o);
/* All four rules of one kernel row: o[0] is KRN-1. */
void krn_row(const conform *c, uint32_t row, outcome *o);
/* The reference's row for the same op, types and layout; NULL: none. */
const ks_kernel *krn_reference(const ks_kernel *row);
/* Speed of every row on shapes of a model; 0, or 1 if the plugin cannot be loaded. */
int conform_bench(const conform *c);

#endif
