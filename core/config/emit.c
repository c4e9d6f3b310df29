/* Texts made from the tables: --help, conf/krasis.ini, docs/configuration.md, krasis(1), krasis.ini(5).
 *
 * The functions write to a stream and leave its errors to the caller, who asks ferror once at the end. [any] */
#include "base/base.h"
#include "config/options.h"
#include <krasis/version.h>
#include <stdarg.h>
#include <string.h>

#define WIDTH 100u

KS_PRINTF(2, 3) static void put(FILE *f, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vfprintf(f, fmt, ap); /* see above */
    va_end(ap);
}

/* Words of `s` on lines of at most WIDTH, each with `prefix`; the first line starts at `column` already. */
static void put_wrapped(FILE *f, const char *s, const char *prefix, size_t column)
{
    bool fresh = false;
    while (*s) {
        const size_t n = strcspn(s, " ");
        if (column + 1 + n > WIDTH || column == 0) {
            put(f, "%s%s", column ? "\n" : "", prefix);
            column = strlen(prefix);
            fresh = true;
        }
        put(f, "%s%.*s", fresh ? "" : " ", (int)n, s);
        column += n + !fresh;
        fresh = false;
        s += n;
        s += *s == ' ';
    }
    put(f, "\n");
}

/* "Help. More." */
static void text_of(const ks_setting *s, char *dst, size_t cap)
{
    (void)snprintf(dst, cap, "%s.%s%s", s->help, *s->more ? " " : "", s->more); /* sized for the longest row: tested */
}

/* "--port N", "--path prefill|decode" */
static void flag_of(const ks_setting *s, char *dst, size_t cap)
{
    const char *dashes = s->name[1] ? "--" : "-", *arg = s->type == KS_SET_CHOICE ? s->choices : s->arg;
    (void)snprintf(dst, cap, "%s%s%s%s", dashes, s->name, *arg ? " " : "", arg); /* fits: tested */
}

static const char *shown_default(const ks_setting *s)
{
    return *s->dflt ? s->dflt : "not set";
}

/* ---- help */

static bool listed(const ks_setting *s, int command)
{
    if (command < 0) return true;
    return s->commands & (1u << command) || (command == KS_CMD_CONFIG && ks__sections[s->section].in_ini);
}

void ks_config_help(FILE *f, const char *command)
{
    const int id = command ? ks__command_find(command) : -1;
    if (id >= 0) {
        const ks_command *c = &ks__commands[id];
        put(f, "usage: krasis%s%s [flags]%s%s\n\n%s.\n", *c->name ? " " : "", c->name, *c->words ? " " : "", c->words,
            c->help);
    }
    for (int s = 0; s < KS_SECTION_COUNT; s++) {
        bool title = false;
        for (uint32_t i = 0; i < ks__n_settings; i++) {
            const ks_setting *row = &ks__settings[i];
            char flag[96], text[512];
            if ((int)row->section != s || !listed(row, id)) continue;
            if (!title) put(f, "\n%s:\n", ks__sections[s].title);
            title = true;
            flag_of(row, flag, sizeof flag);
            const bool plain = row->type == KS_SET_BOOL || !*row->dflt;
            (void)snprintf(text, sizeof text, "%s%s%s%s", row->help, plain ? "" : " [", plain ? "" : row->dflt,
                           plain ? "" : "]"); /* fits */
            put(f, "  %-30s", flag);
            if (strlen(flag) > 30) put(f, "\n%32s", "");
            put_wrapped(f, text, "                                 ", 32);
        }
    }
    put(f, "\nA switch is turned off with --no-NAME. `krasis config md` prints more about each setting.\n");
}

/* ---- INI */

static void ini_setting(FILE *f, const ks_setting *s)
{
    char text[1024], allowed[224];
    text_of(s, text, sizeof text);
    put(f, "\n");
    put_wrapped(f, text, "# ", 0);
    (void)snprintf(text, sizeof text, "Allowed: %s.%s", ks__setting_allowed(s, allowed, sizeof allowed),
                   s->props & KS_ROW_GPU ? " Needs a GPU." : ""); /* fits */
    if (s->type != KS_SET_STR && s->type != KS_SET_PATH && s->type != KS_SET_BOOL) put_wrapped(f, text, "# ", 0);
    put(f, ";%s =%s%s\n", s->name, *s->dflt ? " " : "", s->dflt);
}

void ks_config_emit_ini(FILE *f)
{
    put(f,
        "# All settings of krasis %s with their defaults. Made by `krasis config ini`: do not edit, copy.\n"
        "#\n"
        "# Use a copy with `krasis serve --config FILE`. Remove the ';' before a key to set it. Each key is a flag, "
        "too:\n"
        "# `port = 8012` here is `--port 8012` there, and a flag wins over a file.\n"
        "#\n"
        "# A relative path is meant from the folder of this file, and ~/ is the home folder. Comments stand on lines "
        "of\n"
        "# their own, after '#' or ';'. A value that holds ' ;' or ' #', or begins or ends with a blank, stands in "
        "double\n"
        "# quotes. Sizes: K, M, G and T are powers of 1024. Times: ms, s, m, h.\n"
        "#\n"
        "# Any other section holds the settings of the plugin of that name: `krasis plugins` lists them.\n",
        KS_VERSION);
    for (int s = 0; s < KS_SECTION_COUNT; s++) {
        if (!ks__sections[s].in_ini) continue;
        put(f, "\n\n# %s\n[%s]\n", ks__sections[s].title, ks__sections[s].name);
        for (uint32_t i = 0; i < ks__n_settings; i++)
            if ((int)ks__settings[i].section == s) ini_setting(f, &ks__settings[i]);
    }
}

/* ---- Markdown */

static void markdown_setting(FILE *f, const ks_setting *s)
{
    char flag[96], text[1024], allowed[224];
    flag_of(s, flag, sizeof flag);
    text_of(s, text, sizeof text);
    put(f, "\n### `%s`\n\n", flag);
    put_wrapped(f, text, "", 0);
    const char *tick = *s->dflt ? "`" : "";
    put(f, "\n- Default: %s%s%s\n- Allowed: %s\n", tick, shown_default(s), tick,
        ks__setting_allowed(s, allowed, sizeof allowed));
    if (s->props & KS_ROW_GPU)
        put(f, "- Needs a GPU: without one, the flag is an error, and a key in a file has no effect but a line in the "
               "log\n");
    if (ks__sections[s->section].in_ini) return;
    put(f, "- Commands: ");
    if (s->commands == UINT32_MAX) put(f, "all");
    for (int i = 0, n = 0; i < KS_CMD_COUNT && s->commands != UINT32_MAX; i++)
        if (s->commands & (1u << i))
            put(f, "%s`krasis%s%s`", n++ ? ", " : "", *ks__commands[i].name ? " " : "", ks__commands[i].name);
    put(f, "\n");
}

void ks_config_emit_markdown(FILE *f)
{
    put(f, "<!-- Made by `krasis config md` from core/config/options.def: do not edit. -->\n"
           "# Configuration\n\n"
           "Every setting has one name: `port` is the flag `--port 8012` (or `--port=8012`) and the key `port = 8012` "
           "in an\n"
           "INI file. A switch is `--verify` or `--no-verify`, in a file `verify = true` or `false`.\n\n"
           "A value comes from the last of these that has one:\n\n"
           "1. the default,\n"
           "2. the file given with `--config`,\n"
           "3. the saved settings, `config.ini` under `$KRASIS_HOME` (`~/.krasis` without that variable),\n"
           "4. a flag.\n\n"
           "The saved settings are those of the launcher: `krasis` without a command and `krasis config` read them. "
           "The other\n"
           "commands do only what their flags and their file say, so that a command means the same tomorrow.\n\n"
           "- `krasis config show [flags]` prints each value with where it came from.\n"
           "- `krasis config save [flags]` adds the flags to the saved settings; delete a line of the file to have the "
           "default again.\n"
           "- `krasis config ini` prints a file with all settings, their defaults and what they are for: "
           "`conf/krasis.ini`.\n"
           "- `krasis check --config FILE` finds what is wrong with a file and starts nothing.\n\n"
           "A relative path in a file is meant from the folder of that file, on the command line from the current "
           "folder; `~/`\n"
           "is the home folder. Sizes take K, M, G and T, powers of 1024; times take ms, s, m and h. Unknown names, "
           "values out\n"
           "of bounds, keys given twice and lines that are none of `[section]`, `key = value` and comment are errors "
           "with file\n"
           "and line; the exit code is 2, and nothing was started.\n\n"
           "Comments stand on lines of their own and begin with `#` or `;`. A value that holds ` ;` or ` #`, or begins "
           "or ends\n"
           "with a blank, stands in double quotes; nothing is escaped inside. Any section that is not listed here "
           "holds the\n"
           "settings of the plugin of that name; on the command line that is `--set PLUGIN.KEY=VALUE`.\n\n"
           "## Commands\n\n| command | |\n|---|---|\n");
    for (int i = 0; i < KS_CMD_COUNT; i++) {
        const ks_command *c = &ks__commands[i];
        put(f, "| `krasis%s%s` | %s |\n", *c->name ? " " : "", c->name, c->help);
    }
    for (int s = 0; s < KS_SECTION_COUNT; s++) {
        const ks_section *sec = &ks__sections[s];
        if (sec->in_ini)
            put(f, "\n## [%s]\n\n%s.\n", sec->name, sec->title);
        else
            put(f, "\n## %s: flags only\n", sec->title);
        for (uint32_t i = 0; i < ks__n_settings; i++)
            if ((int)ks__settings[i].section == s) markdown_setting(f, &ks__settings[i]);
    }
}

/* ---- man */

/* roff: '-' is a hyphen unless escaped, backquotes mark what is literal, a leading '.' is a request. */
static void put_roff(FILE *f, const char *s)
{
    bool bold = false;
    for (const char *p = s; *p; p++) {
        if (*p == '`')
            bold = !bold, put(f, bold ? "\\fB" : "\\fR");
        else if (*p == '-' || *p == '\\')
            put(f, *p == '-' ? "\\-" : "\\e");
        else
            put(f, "%s%c", (*p == '.' || *p == '\'') && (p == s || p[-1] == '\n') ? "\\&" : "", *p);
    }
}

static void man_setting(FILE *f, const ks_setting *s, bool flag)
{
    char name[96], text[1024], allowed[224];
    text_of(s, text, sizeof text);
    if (flag)
        flag_of(s, name, sizeof name);
    else
        (void)snprintf(name, sizeof name, "%s", s->name); /* fits */
    put(f, ".TP\n.B \"");
    for (const char *p = name; *p; p++) put(f, *p == '-' ? "\\-" : *p == '"' ? "\\(dq" : "%c", *p);
    put(f, "\"\n");
    put_roff(f, text);
    (void)snprintf(text, sizeof text, "\nDefault: %s. Allowed: %s.\n", shown_default(s),
                   ks__setting_allowed(s, allowed, sizeof allowed)); /* fits */
    put_roff(f, s->type == KS_SET_BOOL ? "\n" : text);
}

static void man_settings(FILE *f, bool flag, bool in_ini_only)
{
    for (int s = 0; s < KS_SECTION_COUNT; s++) {
        if (in_ini_only && !ks__sections[s].in_ini) continue;
        put(f, in_ini_only ? ".SS \"[%s]: " : ".SS \"%s", in_ini_only ? ks__sections[s].name : ks__sections[s].title);
        put_roff(f, in_ini_only ? ks__sections[s].title : "");
        put(f, "\"\n");
        for (uint32_t i = 0; i < ks__n_settings; i++)
            if ((int)ks__settings[i].section == s) man_setting(f, &ks__settings[i], flag);
    }
}

void ks_config_emit_man(FILE *f)
{
    put(f,
        ".\\\" Made by `krasis config man`: do not edit.\n"
        ".TH KRASIS 1 \"\" \"krasis %s\" \"User Commands\"\n"
        ".SH NAME\nkrasis \\- runs Mixture\\-of\\-Experts language models that do not fit in video memory\n"
        ".SH SYNOPSIS\n.B krasis\n[\\fIflags\\fR]\n.br\n.B krasis\n\\fIcommand\\fR [\\fIflags\\fR] [\\fIwords\\fR]\n"
        ".br\n.B krasis\\-server\n[\\fIflags\\fR]\n"
        ".SH DESCRIPTION\nLoads a model once, quantized, into memory and serves it over an OpenAI\\-compatible HTTP "
        "API, or answers\n"
        "on the terminal. \\fBkrasis\\-server\\fR is \\fBkrasis serve\\fR.\n"
        ".SH COMMANDS\n",
        KS_VERSION);
    for (int i = 0; i < KS_CMD_COUNT; i++) {
        const ks_command *c = &ks__commands[i];
        put(f, ".TP\n.B \"krasis%s", *c->name ? " " : "");
        put_roff(f, c->name);
        put(f, "%s", *c->words ? " " : "");
        put_roff(f, c->words);
        put(f, "\"\n");
        put_roff(f, c->help);
        put(f, ".\n");
    }
    put(f, ".SH OPTIONS\nEach command takes those that concern it: \\fBkrasis\\fR \\fIcommand\\fR \\fB\\-\\-help\\fR "
           "lists them. "
           "A switch is turned off with \\fB\\-\\-no\\-\\fR\\fIname\\fR.\n");
    man_settings(f, true, false);
    put(f, ".SH EXIT STATUS\n0: success. 1: a failure at run time. 2: bad usage, settings or input, or a file, port "
           "or output that cannot be used.\n"
           ".SH ENVIRONMENT\n.TP\n.B KRASIS_HOME\nFolder of the cache and the saved settings; ~/.krasis if not set.\n"
           ".TP\n.B KRASIS_PLUGIN_PATH\nFurther folders with plugins, separated by colons.\n"
           ".TP\n.B KRASIS_CPU_MASK\nFeatures of the processor to do without, separated by commas.\n"
           ".SH SEE ALSO\n.BR krasis.ini (5)\n");
}

void ks_config_emit_man5(FILE *f)
{
    put(f,
        ".\\\" Made by `krasis config man5`: do not edit.\n"
        ".TH KRASIS.INI 5 \"\" \"krasis %s\" \"File Formats\"\n"
        ".SH NAME\nkrasis.ini \\- settings of krasis(1)\n"
        ".SH DESCRIPTION\nA file for \\fB\\-\\-config\\fR, and the form of the saved settings. UTF\\-8, one of these "
        "on a line:\n"
        "\\fB[\\fIsection\\fB]\\fR, \\fIkey\\fB = \\fIvalue\\fR, a comment that begins with # or ;, or nothing. No "
        "line is indented.\n"
        ".PP\nA value that holds a blank and then ; or #, or begins or ends with a blank, stands in double quotes; "
        "nothing is\n"
        "escaped inside. A relative path is meant from the folder of the file. Sizes take K, M, G and T, powers of "
        "1024;\n"
        "times take ms, s, m and h.\n"
        ".PP\nUnknown sections and keys, keys given twice and bad values are errors with file and line. A section that "
        "is not\n"
        "listed here holds the settings of the plugin of that name.\n"
        ".SH SETTINGS\n",
        KS_VERSION);
    man_settings(f, false, true);
    put(f, ".SH SEE ALSO\n.BR krasis (1)\n");
}
