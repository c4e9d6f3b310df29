/* What the tests of the settings share. */
#ifndef TESTS_CONFIG_UTIL_H
#define TESTS_CONFIG_UTIL_H

#include "base/base.h"
#include "config/config.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline ks_config *new_config(void)
{
    ks_config *c = NULL;
    ks_err err = { 0 };
    assert_int_equal(ks_config_new(&c, &err), 0);
    return c;
}

static inline int parse_ini(ks_config *c, const char *text, ks_err *err)
{
    return ks_config_parse_ini(c, text, strlen(text), "conf/x.ini", KS_FROM_FILE, err);
}

/* Flags as a shell splits them at blanks; the words of `cli` die with `line`. */
static inline int read_args(ks_config *c, ks_cli *cli, char *line, ks_err *err)
{
    char *argv[64], *save = NULL;
    int argc = 0;
    for (char *p = strtok_r(line, " ", &save); p && argc < 64; p = strtok_r(NULL, " ", &save)) argv[argc++] = p;
    return ks_config_read_args(c, cli, argc, argv, 0, err);
}

#endif
