/* The rows of options.def and commands.def as tables. Private to core/config. [any] */
#ifndef KS_CONFIG_OPTIONS_H
#define KS_CONFIG_OPTIONS_H

#include "base/buf.h"
#include "config/config.h"

enum {
#define COMMAND(id, ident, name, words, max_words, help) KS_CMD_##id,
#include "config/commands.def"
#undef COMMAND
    KS_CMD_COUNT
};

enum {
#define SECTION(id, in_ini, title) KS_SECTION_##id,
#define SETTING(...)
#include "config/options.def"
#undef SECTION
#undef SETTING
    KS_SECTION_COUNT
};

enum {
    KS_SET_STR,
    KS_SET_PATH, /* "~/" is the home folder; relative to the INI file's folder, or the current one */
    KS_SET_INT,
    KS_SET_SIZE, /* bytes; K, M, G, T are powers of 1024 */
    KS_SET_TIME, /* milliseconds; ms, s, m, h */
    KS_SET_FLOAT,
    KS_SET_BOOL,
    KS_SET_CHOICE,
    KS_SET_LIST, /* names, separated by commas */
    KS_SET_INTS, /* whole numbers, separated by commas */
    KS_SET_GPUS  /* device indices or UUIDs, separated by commas */
};

/* Properties of a row. */
#define KS_ROW_GPU 1u    /* means nothing without a GPU */
#define KS_ROW_SECRET 2u /* never shown or saved */

typedef struct ks_setting {
    const char *name; /* the flag without dashes, and the key in the INI file */
    uint32_t section, type;
    const char *dflt;
    int64_t min, max;    /* of INT, SIZE, TIME, FLOAT, and of each number of INTS */
    const char *choices; /* CHOICE: "a|b"; others: further words and the numbers they stand for, "auto=-1" */
    const char *arg;     /* for the help: "N" */
    uint32_t commands;   /* bits by KS_CMD_ */
    uint32_t props;      /* KS_ROW_ */
    const char *help;    /* one sentence without a full stop */
    const char *more;    /* a paragraph: why, danger; may be "" */
} ks_setting;

typedef struct ks_section {
    const char *name;
    bool in_ini; /* false: flags only */
    const char *title;
} ks_section;

typedef struct ks_command {
    const char *name, *words;
    uint32_t max_words;
    const char *help;
} ks_command;

extern const ks_setting ks__settings[];
extern const uint32_t ks__n_settings;
extern const ks_section ks__sections[KS_SECTION_COUNT];
extern const ks_command ks__commands[KS_CMD_COUNT];

/* -1: no such name. */
int ks__setting_find(const char *name);
int ks__section_find(const char *name);
int ks__command_find(const char *name);

/* True if the word of a number's row ("auto") is `value`. */
bool ks__setting_word(const ks_setting *s, const char *value, int64_t *ret);
/* What is allowed, for messages and docs: "a whole number from 1 to 64, or 'all'". Returns dst. */
char *ks__setting_allowed(const ks_setting *s, char *dst, size_t cap);

/* Sets row i; dir: folder that a relative PATH is meant from, or NULL for the current one. */
KS_MUST_CHECK int ks__config_set(ks_config *c, int i, const char *value, int from, const char *origin, const char *dir,
                                 ks_err *err);
/* One setting of a plugin's section. */
KS_MUST_CHECK int ks__config_set_plugin(ks_config *c, const char *plugin, const char *key, const char *value, int from,
                                        const char *origin, ks_err *err);
/* The text of the saved file. */
KS_MUST_CHECK int ks__config_text(const ks_config *c, ks_buf *b, ks_err *err);
/* The value for a message: quoted, cut at 96 bytes on a character's border. Returns dst. */
char *ks__quote(const char *value, char dst[112]);

#endif
