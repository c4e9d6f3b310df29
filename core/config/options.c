/* The tables, what their rows allow in words, and nearest names. */
#include "config/options.h"
#include "base/base.h"
#include <inttypes.h>
#include <string.h>

/* Groups of commands for options.def. The command `config` takes whatever may stand in an INI file. */
#define ON(id) (1u << KS_CMD_##id)
#define ON_ALL UINT32_MAX
#define ON_TALK (ON(RUN) | ON(CHAT))
#define ON_SERVER (ON(LAUNCH) | ON(SERVE) | ON(CHECK) | ON(CONFIG))
#define ON_MODEL (ON_SERVER | ON_TALK | ON(LOGITS) | ON(GENERATE_IDS) | ON(PERPLEXITY) | ON(BENCH) | ON(PLAN))
#define ON_WEIGHTS (ON_MODEL | ON(SYNTH))
#define ON_PLUGINS (ON_WEIGHTS | ON(PLUGINS))

#define SECTION(...)
#define SETTING(name, section, type, dflt, min, max, choices, arg, commands, props, help, more) \
    { name, KS_SECTION_##section, KS_SET_##type, dflt, min, max, choices, arg, commands, props, help, more },
const ks_setting ks__settings[] = {
#include "config/options.def"
};
#undef SECTION
#undef SETTING
const uint32_t ks__n_settings = KS_COUNT(ks__settings);

#define SECTION(id, in_ini, title) { #id, in_ini, title },
#define SETTING(...)
const ks_section ks__sections[KS_SECTION_COUNT] = {
#include "config/options.def"
};
#undef SECTION
#undef SETTING

#define COMMAND(id, ident, name, words, max_words, help) { name, words, max_words, help },
const ks_command ks__commands[KS_CMD_COUNT] = {
#include "config/commands.def"
};
#undef COMMAND

int ks__setting_find(const char *name)
{
    for (uint32_t i = 0; i < ks__n_settings; i++)
        if (strcmp(ks__settings[i].name, name) == 0) return (int)i;
    return -1;
}

int ks__section_find(const char *name)
{
    for (int i = 0; i < KS_SECTION_COUNT; i++)
        if (strcmp(ks__sections[i].name, name) == 0) return i;
    return -1;
}

int ks__command_find(const char *name)
{
    for (int i = 0; i < KS_CMD_COUNT; i++)
        if (strcmp(ks__commands[i].name, name) == 0) return i;
    return -1;
}

const char *ks_config_command(uint32_t i, const char **ret_words, const char **ret_help)
{
    if (i >= KS_CMD_COUNT) return NULL;
    *ret_words = ks__commands[i].words;
    *ret_help = ks__commands[i].help;
    return ks__commands[i].name;
}

bool ks__setting_word(const ks_setting *s, const char *value, int64_t *ret)
{
    const char *eq = strchr(s->choices, '=');
    if (!eq || strlen(value) != (size_t)(eq - s->choices) || strncmp(s->choices, value, strlen(value)) != 0)
        return false;
    *ret = strtoll(eq + 1, NULL, 10);
    return true;
}

/* 67108864 -> "64M" */
static void print_size(int64_t v, char dst[32])
{
    static const char units[] = " KMGT";
    int u = 0;
    while (u < 4 && v != 0 && v % 1024 == 0) v /= 1024, u++;
    (void)snprintf(dst, 32, u ? "%" PRId64 "%c" : "%" PRId64, v, units[u]); /* always fits */
}

static void print_time(int64_t ms, char dst[32])
{
    if (ms % 3600000 == 0 && ms)
        (void)snprintf(dst, 32, "%" PRId64 "h", ms / 3600000); /* always fits, here and below */
    else if (ms % 1000 == 0)
        (void)snprintf(dst, 32, "%" PRId64 "s", ms / 1000);
    else
        (void)snprintf(dst, 32, "%" PRId64 "ms", ms);
}

static void print_choices(const char *choices, char *dst, size_t cap)
{
    size_t n = 0;
    for (const char *p = choices; *p && n + 8 < cap; p++) {
        if (*p != '|') {
            dst[n++] = *p;
        } else {
            const char *sep = strchr(p + 1, '|') ? ", " : " or ";
            memcpy(dst + n, sep, strlen(sep));
            n += strlen(sep);
        }
    }
    dst[n] = '\0';
}

static void print_range(const ks_setting *s, const char *what, char *dst, size_t cap)
{
    if (s->max == INT64_MAX || s->max == INT32_MAX) /* nobody means these */
        (void)snprintf(dst, cap, "%s, at least %" PRId64, what, s->min);
    else
        (void)snprintf(dst, cap, "%s from %" PRId64 " to %" PRId64, what, s->min, s->max);
}

char *ks__setting_allowed(const ks_setting *s, char *dst, size_t cap)
{
    char text[160] = "", lo[32], hi[32];
    switch (s->type) {
    case KS_SET_INT: print_range(s, "a whole number", text, sizeof text); break;
    case KS_SET_FLOAT: print_range(s, "a number", text, sizeof text); break;
    case KS_SET_INTS: print_range(s, "whole numbers", text, sizeof text); break;
    case KS_SET_SIZE:
        print_size(s->min, lo);
        print_size(s->max, hi);
        (void)snprintf(text, sizeof text, "a whole number with K, M, G or T from %s to %s", lo, hi);
        break;
    case KS_SET_TIME:
        print_time(s->min, lo);
        print_time(s->max, hi);
        (void)snprintf(text, sizeof text, "a whole number with ms, s, m or h from %s to %s", lo, hi);
        break;
    case KS_SET_BOOL: (void)snprintf(text, sizeof text, "true or false"); break;
    case KS_SET_CHOICE: print_choices(s->choices, text, sizeof text); break;
    case KS_SET_LIST: (void)snprintf(text, sizeof text, "names"); break;
    case KS_SET_GPUS: (void)snprintf(text, sizeof text, "different indices from 0 to 63 or UUIDs"); break;
    case KS_SET_PATH: (void)snprintf(text, sizeof text, "a path"); break;
    case KS_SET_STR: (void)snprintf(text, sizeof text, "a text"); break;
    default: KS_ASSERT(!"type of a setting");
    }
    const bool list = s->type == KS_SET_LIST || s->type == KS_SET_INTS || s->type == KS_SET_GPUS;
    const char *eq = s->type == KS_SET_CHOICE ? NULL : strchr(s->choices, '=');
    (void)snprintf(dst, cap, "%s%s%s%.*s", text, list ? ", separated by commas" : "", eq ? ", or " : "",
                   eq ? (int)(eq - s->choices) : 0, s->choices); /* sized by the caller for the longest row */
    return dst;
}

/* Optimal string alignment distance, at most 63 characters each; more counts as far. */
static uint32_t distance(const char *a, const char *b)
{
    enum { MAX = 64 };
    const size_t na = strlen(a), nb = strlen(b);
    if (na >= MAX || nb >= MAX) return MAX;
    uint32_t d[3][MAX + 1]; /* rows i-2, i-1, i in turn */
    for (uint32_t j = 0; j <= nb; j++) d[0][j] = j;
    for (uint32_t i = 1; i <= na; i++) {
        uint32_t *row = d[i % 3];
        const uint32_t *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];
        row[0] = i;
        for (uint32_t j = 1; j <= nb; j++) {
            uint32_t v = up[j - 1] + (a[i - 1] != b[j - 1]);
            v = KS_MIN(v, up[j] + 1);
            v = KS_MIN(v, row[j - 1] + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) v = KS_MIN(v, up2[j - 2] + 1);
            row[j] = v;
        }
    }
    return d[na % 3][nb];
}

const char *ks_name_nearest(const char *word, uint32_t n, const char *(*name)(const void *ctx, uint32_t i),
                            const void *ctx)
{
    const char *best = NULL;
    uint32_t best_d = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        const char *s = name(ctx, i);
        /* One typo in four characters: "gguf" is not a misspelt "gpu", "sever" is a misspelt "server". */
        const uint32_t len = (uint32_t)strlen(s), near = len < 5 ? 1 : len < 12 ? 2 : 3;
        const uint32_t d = distance(word, s);
        if (len > 1 && d <= near && d < best_d) best = s, best_d = d;
    }
    for (uint32_t i = 0; !best && strlen(word) >= 4 && i < n; i++) /* "threads" for "krasis-threads" */
        if (strstr(name(ctx, i), word)) best = name(ctx, i);
    return best;
}
