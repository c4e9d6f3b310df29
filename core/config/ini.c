/* INI files, on libinih with a reader of our own.
 *
 * What the packaged libinih does with a file and we do not want, and how it is closed here:
 *  - lines over 198 bytes are cut and passed on as if complete: the reader hands it "key =" only and keeps the
 *    value, so that values may have 4,095 bytes and nothing is ever cut;
 *  - " ;" starts a comment, a value is cut there: refused with the cure, unless the value is in double quotes;
 *  - an indented line continues the value above: refused;
 *  - a missing ']' and lines without '=' are skipped: refused;
 *  - NUL bytes end a line early, a key may come twice, the handler does not know the line: refused, refused, kept here.
 * [main] */
#include "base/base.h"
#include "base/file.h"
#include "config/options.h"
#include <ini.h>
#include <krasis/json.h>
#include <string.h>

#define FILE_MAX ((size_t)1 << 20)
#define LINE_MAX_BYTES 8192u
#define NAME_MAX_BYTES 48u /* libinih keeps 49 characters of a section or key */

typedef struct parser {
    ks_config *c;
    const char *text, *end, *path;
    char *dir; /* of the file: relative paths are meant from there */
    int from, rc;
    ks_err *err;
    uint32_t line;
    char section[NAME_MAX_BYTES + 1];
    char *value;       /* of the line that was handed out, without quotes */
    uint32_t *seen;    /* (ks__n_settings) the line a key was on */
    uint32_t n_plugin; /* settings of plugins in this file so far, for duplicates */
    char (*plugin_seen)[2 * NAME_MAX_BYTES + 2];
    uint32_t *plugin_line;
} parser;

/* "conf/demo.ini:7: text", and the end of the parse. */
KS_PRINTF(3, 4) static int refuse(parser *p, int code, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap); /* cut off is fine: it is for people */
    va_end(ap);
    return p->rc = ks_fail(p->err, code, "%.250s:%u: %s", p->path, p->line, text);
}

static const char *section_name(const void *ctx, uint32_t i)
{
    (void)ctx;
    return ks__sections[i].in_ini ? ks__sections[i].name : ""; /* "" is near to nothing */
}

static const char *key_name(const void *ctx, uint32_t i)
{
    (void)ctx;
    return ks__sections[ks__settings[i].section].in_ini ? ks__settings[i].name : "";
}

static bool is_name(const char *s, size_t n)
{
    if (n == 0 || n > NAME_MAX_BYTES) return false;
    for (size_t i = 0; i < n; i++)
        if (!(s[i] >= 'a' && s[i] <= 'z') && !(s[i] >= '0' && s[i] <= '9') && s[i] != '-') return false;
    return true;
}

/* Without the blanks at both ends. */
static void trim(const char **s, size_t *n)
{
    while (*n && (**s == ' ' || **s == '\t')) (*s)++, (*n)--;
    while (*n && ((*s)[*n - 1] == ' ' || (*s)[*n - 1] == '\t')) (*n)--;
}

static int take_section(parser *p, const char *s, size_t n)
{
    trim(&s, &n);
    if (s[n - 1] != ']') return refuse(p, KS_E_CONFIG, "a section is written [name], alone on its line");
    if (!is_name(s + 1, n - 2))
        return refuse(p, KS_E_CONFIG, "the name of a section has 1 to %u characters of a-z, 0-9 and '-'",
                      NAME_MAX_BYTES);
    memcpy(p->section, s + 1, n - 2);
    p->section[n - 2] = '\0';
    const int known = ks__section_find(p->section);
    if (known >= 0 && ks__sections[known].in_ini) return 0;
    const char *near = known < 0 ? ks_name_nearest(p->section, KS_SECTION_COUNT, section_name, NULL) : NULL;
    if (near) return refuse(p, KS_E_CONFIG, "unknown section [%s]: did you mean [%s]?", p->section, near);
    return known < 0 ? 0
                     : refuse(p, KS_E_CONFIG, "there is no section [%s]: these settings are flags only", p->section);
}

/* Keeps the value of this line. Quotes protect blanks and comment signs; nothing is escaped in them. */
static int take_value(parser *p, const char *s, size_t n)
{
    trim(&s, &n);
    if (n && *s == '"') {
        if (n < 2 || s[n - 1] != '"')
            return refuse(p, KS_E_CONFIG, "the value begins with a double quote and must end with one");
        s++;
        n -= 2;
    } else {
        for (size_t i = 0; i < n; i++)
            if ((s[i] == ';' || s[i] == '#') && (i == 0 || s[i - 1] == ' ' || s[i - 1] == '\t'))
                return refuse(p, KS_E_CONFIG,
                              "'%c' in a value: put comments on lines of their own, or the value in double quotes",
                              s[i]);
    }
    free(p->value);
    p->value = malloc(n + 1);
    if (!p->value) return refuse(p, KS_E_NOMEM, "out of memory");
    memcpy(p->value, s, n);
    p->value[n] = '\0';
    return 0;
}

static int take_key(parser *p, const char *s, size_t n, size_t *ret_key_bytes)
{
    const char *eq = memchr(s, '=', n), *key = s;
    if (!eq) return refuse(p, KS_E_CONFIG, "neither a [section] nor 'key = value'");
    size_t key_n = (size_t)(eq - s);
    trim(&key, &key_n);
    if (!is_name(key, key_n))
        return refuse(p, KS_E_CONFIG, "a key has 1 to %u characters of a-z, 0-9 and '-' before the '='",
                      NAME_MAX_BYTES);
    *ret_key_bytes = key_n;
    if (p->section[0] == '\0')
        return refuse(p, KS_E_CONFIG, "'%.*s' stands before the first [section]", (int)key_n, key);
    return take_value(p, eq + 1, n - (size_t)(eq + 1 - s));
}

static int check_line(parser *p, const char *s, size_t n)
{
    if (n > LINE_MAX_BYTES)
        return refuse(p, KS_E_CONFIG, "the line has %zu bytes, at most %u are allowed", n, LINE_MAX_BYTES);
    if (ks_utf8_valid(s, n) != n)
        return refuse(p, KS_E_CONFIG, "byte %zu of the line is not UTF-8", ks_utf8_valid(s, n) + 1);
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)s[i] < 0x20 && s[i] != '\t') || s[i] == 0x7f)
            return refuse(p, KS_E_CONFIG, "control character 0x%02x at byte %zu of the line", (unsigned char)s[i],
                          i + 1);
    return 0;
}

/* fgets for libinih: one line a call, so that its lines are ours, and never more of it than libinih should see. */
static char *read_line(char *dst, int cap, void *stream)
{
    parser *p = stream;
    if (p->rc || p->text == p->end) return NULL;
    const char *s = p->text, *nl = memchr(s, '\n', (size_t)(p->end - s));
    size_t n = (size_t)((nl ? nl : p->end) - s), shown = 0, blanks = 0;
    p->text = nl ? nl + 1 : p->end;
    p->line++;
    if (n && s[n - 1] == '\r') n--;
    if (check_line(p, s, n)) return NULL;
    while (blanks < n && (s[blanks] == ' ' || s[blanks] == '\t')) blanks++;
    const char first = blanks < n ? s[blanks] : ';';
    if (first != ';' && first != '#') { /* not empty, no comment */
        if (blanks) {
            (void)refuse(p, KS_E_CONFIG,
                         "the line is indented, which elsewhere continues the line above: remove the blanks");
        } else if (first == '[') {
            (void)take_section(p, s, n); /* p->rc tells, here and below */
            trim(&s, &n);
            shown = n;
        } else {
            (void)take_key(p, s, n, &shown);
        }
        if (p->rc) return NULL;
    }
    KS_ASSERT(cap > (int)NAME_MAX_BYTES + 4); /* libinih as it is packaged: 200 */
    memcpy(dst, s, shown);
    memcpy(dst + shown, first == '[' || shown == 0 ? "\n" : "=\n", first == '[' || shown == 0 ? 2 : 3);
    return dst;
}

static int set_plugin(parser *p, const char *section, const char *key, const char *origin)
{
    char name[sizeof p->plugin_seen[0]];
    (void)snprintf(name, sizeof name, "%s.%s", section, key); /* fits: both are at most NAME_MAX_BYTES */
    for (uint32_t i = 0; i < p->n_plugin; i++)
        if (strcmp(p->plugin_seen[i], name) == 0)
            return refuse(p, KS_E_CONFIG, "'%s' was set on line %u already", key, p->plugin_line[i]);
    if ((p->n_plugin & (p->n_plugin - 1)) == 0) { /* full at each power of two */
        const size_t cap = p->n_plugin ? 2 * (size_t)p->n_plugin : 1;
        void *names = realloc(p->plugin_seen, cap * sizeof *p->plugin_seen), *lines; /* bounded by FILE_MAX */
        if (names) p->plugin_seen = names;
        lines = names ? realloc(p->plugin_line, cap * sizeof *p->plugin_line) : NULL;
        if (!lines) return refuse(p, KS_E_NOMEM, "out of memory");
        p->plugin_line = lines;
    }
    memcpy(p->plugin_seen[p->n_plugin], name, sizeof name);
    p->plugin_line[p->n_plugin++] = p->line;
    return p->rc = ks__config_set_plugin(p->c, section, key, p->value, p->from, origin, p->err);
}

/* The line that read_line handed out, split by libinih. Its value is empty: ours is p->value. */
static int on_key(void *arg, const char *section, const char *key, const char *value)
{
    parser *p = arg;
    char origin[300];
    (void)value;
    (void)snprintf(origin, sizeof origin, "%.250s:%u", p->path, p->line); /* cut off is fine: it is for people */
    const int want = ks__section_find(section), i = ks__setting_find(key);
    if (want < 0) return set_plugin(p, section, key, origin) == 0;
    if (i < 0 || !ks__sections[ks__settings[i].section].in_ini) {
        const char *near = i < 0 ? ks_name_nearest(key, ks__n_settings, key_name, NULL) : NULL;
        (void)refuse(p, KS_E_CONFIG, i < 0 ? "unknown key '%s' in [%s]%s%s%s" : "'%s' cannot stand in [%s]%s%s%s", key,
                     section,
                     near    ? ": did you mean '"
                     : i < 0 ? ""
                             : ": it is a flag only",
                     near ? near : "", near ? "'?" : ""); /* p->rc */
    } else if ((int)ks__settings[i].section != want) {
        (void)refuse(p, KS_E_CONFIG, "'%s' belongs into the section [%s], not [%s]", key,
                     ks__sections[ks__settings[i].section].name, section); /* p->rc tells */
    } else if (p->seen[i]) {
        (void)refuse(p, KS_E_CONFIG, "'%s' was set on line %u already", key, p->seen[i]); /* p->rc tells */
    } else {
        p->seen[i] = p->line;
        p->rc = ks__config_set(p->c, i, p->value, p->from, origin, p->dir, p->err);
    }
    return p->rc == 0;
}

int ks_config_parse_ini(ks_config *c, const char *text, size_t n, const char *path, int from, ks_err *err)
{
    parser p = { .c = c, .text = text, .end = text + n, .path = path, .from = from, .err = err };
    const char *slash = strrchr(path, '/');
    p.dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : NULL;
    p.seen = ks_calloc(ks__n_settings, sizeof *p.seen);
    if (!p.seen || (slash && !p.dir)) {
        p.rc = ks_fail(err, KS_E_NOMEM, "%s: out of memory", path);
    } else {
        if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) p.text += 3;
        const int line = ini_parse_stream(read_line, &p, on_key, &p);
        if (line && !p.rc) { /* what it refuses beyond us */
            p.line = line > 0 ? (uint32_t)line : p.line;
            (void)refuse(&p, KS_E_CONFIG, "neither a [section] nor 'key = value'"); /* p.rc tells */
        }
    }
    free(p.dir);
    free(p.seen);
    free(p.value);
    free(p.plugin_seen);
    free(p.plugin_line);
    return p.rc;
}

int ks_config_read_ini(ks_config *c, const char *path, int from, ks_err *err)
{
    char *text = NULL;
    size_t n = 0;
    int rc = ks_file_read(path, FILE_MAX, &text, &n, err);
    if (rc == 0) rc = ks_config_parse_ini(c, text, n, path, from, err);
    free(text);
    return rc;
}
