/* Settings: one table (options.def) makes flags, INI keys, help, sample file, docs and man page.
 *
 * Precedence: default < INI (--config) < saved config < flag. Every value remembers where it came from. [main]
 */
#ifndef KS_CONFIG_CONFIG_H
#define KS_CONFIG_CONFIG_H

#include <krasis/error.h>
#include <stdbool.h>
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
int64_t ks_config_int(const ks_config *c, const char *name);     /* sizes in bytes, durations in ms */
bool ks_config_bool(const ks_config *c, const char *name);
int ks_config_from(const ks_config *c, const char *name);
const char *ks_config_origin(const ks_config *c, const char *name); /* "default", "conf/demo.ini:7", "--port" */

/* Checks type, bounds and choices; `origin` for messages. KS_E_CONFIG with the flag, the value and what is allowed. */
KS_MUST_CHECK int ks_config_set(ks_config *c, const char *name, const char *value, int from, const char *origin, ks_err *err);
KS_MUST_CHECK int ks_config_read_ini(ks_config *c, const char *path, int from, ks_err *err);
KS_MUST_CHECK int ks_config_save(const ks_config *c, const char *path, ks_err *err); /* what differs from the defaults */

/* Flags of argv from *inout_i on; stops at "--" or the end. Positional words are collected. Flags that the
 * command does not take are an error with the nearest name. */
typedef struct ks_cli {
    const char *command;          /* for messages and the filter */
    const char *words[64];
    uint32_t n_words;
    bool help, version;
} ks_cli;
KS_MUST_CHECK int ks_config_read_args(ks_config *c, ks_cli *cli, int argc, char **argv, int first, ks_err *err);

/* Settings in sections of plugins ([http] port = ...) that no core option claims; handed to the registry. */
uint32_t ks_config_n_plugin(const ks_config *c);
void ks_config_plugin(const ks_config *c, uint32_t i, const char **ret_plugin, const char **ret_key, const char **ret_value,
                      const char **ret_origin);

/* Generated texts. command NULL: all. */
void ks_config_help(FILE *f, const char *command);
void ks_config_emit_ini(FILE *f);
void ks_config_emit_markdown(FILE *f);
void ks_config_emit_man(FILE *f);
void ks_config_show(const ks_config *c, FILE *f); /* every value with its origin */

#endif
