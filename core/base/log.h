/* The log: lines to stderr, text or JSON. Layers below engine/ return errors and log at debug only. [any] */
#ifndef KS_BASE_LOG_H
#define KS_BASE_LOG_H

#include <krasis/plugin.h> /* KS_LOG_ levels */
#include <stdbool.h>

/* level: KS_LOG_; json: one JSON object a line. Called once at start. */
void ks_log_setup(int level, bool json);
int ks_log_level(void);
/* component: "engine", a plugin's name. One line; newlines in it become spaces. */
KS_PRINTF(3, 4) void ks_log(int level, const char *component, const char *fmt, ...);

#endif
