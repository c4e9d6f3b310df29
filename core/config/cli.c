/* Flags: --name value, --name=value, --switch, --no-switch, -n value; after "--" only words. [main] */
#include "base/base.h"
#include "config/options.h"
#include <string.h>

/* "krasis serve", "krasis" */
static const char *program(const ks_cli *cli, char dst[64])
{
    (void)snprintf(dst, 64, "krasis%s%s", *cli->command ? " " : "", cli->command); /* commands are short */
    return dst;
}

static bool takes(int command, const ks_setting *s)
{
    if (s->commands & (1u << command)) return true;
    return command == KS_CMD_CONFIG && ks__sections[s->section].in_ini;
}

static const char *taken_name(const void *command, uint32_t i)
{
    return takes(*(const int *)command, &ks__settings[i]) ? ks__settings[i].name : ""; /* "" is near to nothing */
}

/* Without the '=value'; false if it is longer than any name. */
static bool flag_name(const char *flag, char dst[64])
{
    const size_t n = strcspn(flag, "=");
    if (n >= 64) return false;
    memcpy(dst, flag, n);
    dst[n] = '\0';
    return true;
}

static int unknown(const ks_cli *cli, int command, const char *arg, const char *name, ks_err *err)
{
    char prog[64], quoted[112];
    const char *near = ks_name_nearest(name, ks__n_settings, taken_name, &command);
    if (near)
        return ks_fail(err, KS_E_CONFIG, "unknown flag %s: did you mean '%s%s'?", ks__quote(arg, quoted),
                       near[1] ? "--" : "-", near);
    return ks_fail(err, KS_E_CONFIG, "unknown flag %s: `%s --help` lists the flags", ks__quote(arg, quoted),
                   program(cli, prog));
}

static int of_other_command(const ks_cli *cli, const ks_setting *s, ks_err *err)
{
    char prog[64];
    const char *other = "";
    for (int i = 0; i < KS_CMD_COUNT && !*other; i++)
        if (s->commands & (1u << i)) other = ks__commands[i].name;
    return ks_fail(err, KS_E_CONFIG, "--%s: `%s` does not take this flag, `krasis %s` does", s->name,
                   program(cli, prog), other);
}

/* --set plugin.key=value */
static int set_plugin(ks_config *c, const char *v, ks_err *err)
{
    char plugin[49], key[49], quoted[112];
    const size_t np = strcspn(v, ".="), nk = v[np] == '.' ? strcspn(v + np + 1, "=") : 0;
    if (v[np] != '.' || v[np + 1 + nk] != '=' || np == 0 || nk == 0 || np > 48 || nk > 48)
        return ks_fail(err, KS_E_CONFIG, "--set: %s is not allowed: PLUGIN.KEY=VALUE, for example http.port=8012",
                       ks__quote(v, quoted));
    memcpy(plugin, v, np);
    plugin[np] = '\0';
    memcpy(key, v + np + 1, nk);
    key[nk] = '\0';
    if (ks__section_find(plugin) >= 0) {
        const int i = ks__setting_find(key);
        return ks_fail(err, KS_E_CONFIG, "--set: '%s' is no plugin: use the flag --%s%s", plugin, i >= 0 ? key : "...",
                       i >= 0 ? "" : ", see --help");
    }
    for (const char *p = v; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return ks_fail(err, KS_E_CONFIG, "--set: the value has a control character");
    return ks__config_set_plugin(c, plugin, key, v + np + nk + 2, KS_FROM_FLAG, "--set", err);
}

/* One flag; *inout_i is moved over its value if that is a word of its own. */
static int read_flag(ks_config *c, ks_cli *cli, int command, int argc, char **argv, int *inout_i, ks_err *err)
{
    const char *arg = argv[*inout_i], *flag = arg + (arg[1] == '-' ? 2 : 1), *eq = strchr(flag, '='),
               *value = eq ? eq + 1 : NULL;
    char name[64], origin[72], allowed[224];
    if (!flag_name(flag, name)) return unknown(cli, command, arg, flag, err);
    if (strcmp(arg, "-h") == 0) return cli->help = true, 0;
    const bool one_letter = arg[1] != '-'; /* -n is --n, and nothing else is short */
    int i = one_letter == (strlen(name) == 1) ? ks__setting_find(name) : -1;
    bool off = false;
    if (i < 0 && !one_letter && strncmp(name, "no-", 3) == 0) {
        i = ks__setting_find(name + 3);
        off = i >= 0;
    }
    if (i < 0) return unknown(cli, command, arg, name, err);
    const ks_setting *s = &ks__settings[i];
    if (!takes(command, s)) return of_other_command(cli, s, err);
    if (off && (s->type != KS_SET_BOOL || value))
        return ks_fail(err, KS_E_CONFIG, "--no-%s: %s", s->name,
                       value ? "takes no value" : "this is not a switch: it needs a value");
    if (s->type == KS_SET_BOOL && !value) {
        value = off ? "false" : "true";
    } else if (!value) {
        const char *next = *inout_i + 1 < argc ? argv[*inout_i + 1] : NULL;
        if (!next)
            return ks_fail(err, KS_E_CONFIG, "%s: a value is missing: %s", arg,
                           ks__setting_allowed(s, allowed, sizeof allowed));
        if (strncmp(next, "--", 2) == 0)
            return ks_fail(err, KS_E_CONFIG,
                           "--%s: a value is missing; one that begins with '--' is written --%s=VALUE", s->name,
                           s->name);
        value = next;
        (*inout_i)++;
    }
    if (strcmp(s->name, "set") == 0) return set_plugin(c, value, err);
    (void)snprintf(origin, sizeof origin, "%s%s", one_letter ? "-" : "--", s->name); /* fits */
    int rc = ks__config_set(c, i, value, KS_FROM_FLAG, origin, NULL, err);
    if (rc == 0) {
        cli->help = ks_config_bool(c, "help");
        cli->version = ks_config_bool(c, "version");
    }
    return rc;
}

int ks_config_read_args(ks_config *c, ks_cli *cli, int argc, char **argv, int first, ks_err *err)
{
    const int command = ks__command_find(cli->command);
    bool words_only = false;
    KS_ASSERT(command >= 0);
    for (int i = first; i < argc; i++) {
        const char *arg = argv[i];
        char quoted[112], prog[64];
        if (!words_only && strcmp(arg, "--") == 0) {
            words_only = true;
        } else if (!words_only && arg[0] == '-' && arg[1]) {
            int rc = read_flag(c, cli, command, argc, argv, &i, err);
            if (rc) return rc;
        } else if (cli->n_words == ks__commands[command].max_words) {
            const ks_command *k = &ks__commands[command];
            return k->max_words == KS_COUNT(cli->words)
                       ? ks_fail(err, KS_E_CONFIG, "`%s` takes at most %u words", program(cli, prog), k->max_words)
                       : ks_fail(err, KS_E_CONFIG, "unexpected word %s: `%s` takes %s", ks__quote(arg, quoted),
                                 program(cli, prog), k->max_words == 0 ? "flags only" : k->words);
        } else {
            cli->words[cli->n_words++] = arg;
        }
    }
    return 0;
}
