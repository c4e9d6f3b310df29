/* Settings: one table (options.def) makes flags, INI keys, help, sample file, docs and man page.
 *
 * Precedence: default < INI (--config) < saved config < flag, whatever the order they are read in: a value never
 * replaces one of higher rank. Every value remembers where it came from. All strings that the functions return live
 * until the value changes or the config is freed. [main]
 */
#ifndef KS_CONFIG_CONFIG_H
#define KS_CONFIG_CONFIG_H

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct ks_config ks_config;

#define KS_FROM_DEFAULT 0
#define KS_FROM_FILE 1
#define KS_FROM_SAVED 2
#define KS_FROM_FLAG 3

KS_MUST_CHECK int ks_config_new(ks_config **ret, ks_err *err); /* all defaults */
void ks_config_free(ks_config *c);

/* By flag name without dashes ("gpu-expert-bits"). Unknown names are our bug (KS_ASSERT). */
const char *ks_config_str(const ks_config *c, const char *name); /* "" if unset; also of any other type, as text */
/* Sizes in bytes, durations in ms; "auto", "all", "random" are the number in options.def (0 or -1). */
int64_t ks_config_int(const ks_config *c, const char *name);
double ks_config_float(const ks_config *c, const char *name); /* NaN for "auto" */
bool ks_config_bool(const ks_config *c, const char *name);
/* The numbers of a list, malloc'd, at least one; "auto" and "" are *ret NULL and *ret_n 0. */
KS_MUST_CHECK int ks_config_ints(const ks_config *c, const char *name, int64_t **ret, size_t *ret_n, ks_err *err);
int ks_config_from(const ks_config *c, const char *name);           /* KS_FROM_FLAG: explicit */
const char *ks_config_origin(const ks_config *c, const char *name); /* "default", "conf/demo.ini:7", "--port" */

/* Checks type, bounds and choices; `origin` for messages. KS_E_CONFIG with the flag, the value and what is allowed. */
KS_MUST_CHECK int ks_config_set(ks_config *c, const char *name, const char *value, int from, const char *origin,
                                ks_err *err);
/* A relative path in the file is meant from the file's own folder. */
KS_MUST_CHECK int ks_config_read_ini(ks_config *c, const char *path, int from, ks_err *err);
/* The same from memory; path for messages and relative paths. */
KS_MUST_CHECK int ks_config_parse_ini(ks_config *c, const char *text, size_t n, const char *path, int from,
                                      ks_err *err);
/* What is not a default, as an INI file with absolute paths. Secrets are refused, not left out. */
KS_MUST_CHECK int ks_config_save(const ks_config *c, const char *path, ks_err *err);
/* $KRASIS_HOME/config.ini, malloc'd; NULL with err. */
char *ks_config_saved_path(ks_err *err);

/* Flags of argv from `first` on; after "--" all are words. Positional words are collected. Flags that the
 * command does not take are an error with the nearest name. Repeated flags: the last one holds. */
typedef struct ks_cli {
    const char *command; /* "" is the launcher; for messages and the filter */
    const char *words[64];
    uint32_t n_words;
    bool help, version;
} ks_cli;
KS_MUST_CHECK int ks_config_read_args(ks_config *c, ks_cli *cli, int argc, char **argv, int first, ks_err *err);

/* Settings that need a GPU, when there is none: an error for one that a flag asks for, and one line through `note` (may
 * be NULL) for each that a file asks for, since a file moves between machines. Values equal to the default ask for
 * nothing. */
KS_MUST_CHECK int ks_config_no_gpu(const ks_config *c, void (*note)(void *ctx, const char *line), void *ctx,
                                   ks_err *err);

/* Settings in sections of plugins ([http] port = ...) that no core option claims; handed to the registry. */
uint32_t ks_config_n_plugin(const ks_config *c);
void ks_config_plugin(const ks_config *c, uint32_t i, const char **ret_plugin, const char **ret_key,
                      const char **ret_value, const char **ret_origin);

/* The nearest of n names, or NULL if none is near enough to have been meant. */
const char *ks_name_nearest(const char *word, uint32_t n, const char *(*name)(const void *ctx, uint32_t i),
                            const void *ctx);

/* Commands of commands.def: the i-th name ("" first: the launcher) and its help; NULL ends. */
const char *ks_config_command(uint32_t i, const char **ret_words, const char **ret_help);

/* Generated texts. */
void ks_config_help(FILE *f, const char *command); /* NULL: the flags of all */
void ks_config_emit_ini(FILE *f);
void ks_config_emit_markdown(FILE *f);
void ks_config_emit_man(FILE *f);                 /* krasis(1) */
void ks_config_emit_man5(FILE *f);                /* krasis.ini(5) */
void ks_config_show(const ks_config *c, FILE *f); /* every value with its origin */

#endif
