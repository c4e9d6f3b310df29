/* The commands: each is one function that gets the settings, with all sources merged, and the words.
 *
 * It returns the exit code: 0 fine, 1 a failure at run time, 2 bad usage, settings or input. Data goes to stdout, whose
 * errors main.c checks at the end; everything else goes to stderr. [main] */
#ifndef KS_APP_CMD_H
#define KS_APP_CMD_H

#include "config/config.h"

#define COMMAND(id, ident, name, words, max_words, help) int ks_cmd_##ident(ks_config *c, ks_cli *cli);
#include "config/commands.def"
#undef COMMAND

#endif
