/* Values of the settings: parsing by type, precedence, origin. See config.h. [main] */
#include "config/config.h"
#include "base/base.h"
#include "base/buf.h"
#include "base/file.h"
#include "config/options.h"
#include <ctype.h>
#include <inttypes.h>
#include <krasis/json.h>
#include <limits.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

typedef struct value {
    char *text;
    int64_t num; /* INT, SIZE, TIME, BOOL, numeric CHOICE, words */
    double real; /* FLOAT */
    int from;
    char *origin;
} value;

typedef struct plugin_value {
    char *plugin, *key, *value, *origin;
    int from;
} plugin_value;

struct ks_config {
    value *values; /* (ks__n_settings) */
    plugin_value *plugin;
    uint32_t n_plugin;
};

#define VALUE_MAX 4096      /* bytes of a value in a file: PATH_MAX */
#define PLUGIN_VALUES 1024u /* more is no configuration */

char *ks__quote(const char *v, char dst[112])
{
    size_t n = strlen(v), cut = n;
    if (ks_utf8_valid(v, n) != n) {
        (void)snprintf(dst, 112, "the value (not UTF-8)"); /* fits */
        return dst;
    }
    if (n > 96)
        for (cut = 93; cut && ((unsigned char)v[cut] & 0xc0) == 0x80;) cut--;
    (void)snprintf(dst, 112, "'%.*s%s'", (int)cut, v, cut < n ? "..." : ""); /* fits: at most 96 + 2 */
    return dst;
}

/* Digits with an optional minus, and nothing else; *ret_end is behind them. */
static bool parse_digits(const char *s, int64_t *ret, const char **ret_end)
{
    const bool minus = *s == '-';
    const char *p = s + minus;
    int64_t v = 0;
    if (*p < '0' || *p > '9') return false;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v)) return false;
    *ret = minus ? -v : v;
    *ret_end = p;
    return true;
}

static bool parse_int(const char *s, int64_t *ret)
{
    const char *end;
    return parse_digits(s, ret, &end) && *end == '\0';
}

static bool parse_size(const char *s, int64_t *ret)
{
    static const char units[] = "KMGT";
    const char *end, *u;
    int64_t v;
    if (!parse_digits(s, &v, &end)) return false;
    if (*end == '\0') return *ret = v, true;
    u = strchr(units, toupper((unsigned char)*end));
    if (!u) return false;
    if (end[1] != '\0' && strcasecmp(end + 1, "b") != 0 && strcasecmp(end + 1, "ib") != 0) return false;
    return !__builtin_mul_overflow(v, INT64_C(1) << (10 * (u - units + 1)), ret);
}

static bool parse_time(const char *s, int64_t *ret)
{
    static const struct {
        const char *unit;
        int64_t ms;
    } units[] = { { "ms", 1 }, { "s", 1000 }, { "m", 60000 }, { "h", 3600000 } };
    const char *end;
    int64_t v;
    if (!parse_digits(s, &v, &end)) return false;
    for (size_t i = 0; i < KS_COUNT(units); i++)
        if (strcmp(end, units[i].unit) == 0) return !__builtin_mul_overflow(v, units[i].ms, ret);
    return false;
}

/* Through the JSON reader: strict and, unlike strtod, the same in every locale. */
static bool parse_float(const char *s, double *ret)
{
    ks_json j;
    ks_json_init(&j, s, strlen(s), 1);
    return *s && !isspace((unsigned char)*s) && ks_json_next(&j) == KS_JSON_NUMBER && ks_json_f64(&j, ret) == 0 &&
           j.at == strlen(s);
}

static bool parse_bool(const char *s, int64_t *ret)
{
    static const char *const names[] = { "false", "true", "no", "yes", "off", "on", "0", "1" };
    for (size_t i = 0; i < KS_COUNT(names); i++)
        if (strcasecmp(s, names[i]) == 0) return *ret = (int64_t)(i & 1), true;
    return false;
}

static bool parse_choice(const ks_setting *s, const char *v, int64_t *ret)
{
    const size_t n = strlen(v);
    if (n == 0 || strchr(v, '|')) return false;
    for (const char *p = s->choices; p; p = strchr(p, '|')) {
        p += *p == '|';
        if (strncmp(p, v, n) == 0 && (p[n] == '\0' || p[n] == '|')) {
            if (!parse_int(v, ret)) *ret = 0; /* a word has no number */
            return true;
        }
    }
    return false;
}

/* Calls item() for each piece between commas; false if one is empty or refused. */
static bool parse_list(const ks_setting *s, const char *v, bool (*item)(const ks_setting *s, const char *p))
{
    char buf[256];
    for (const char *p = v;; p++) {
        const size_t n = strcspn(p, ",");
        if (n == 0 || n >= sizeof buf || p[0] == ' ' || p[n - 1] == ' ') return false;
        memcpy(buf, p, n);
        buf[n] = '\0';
        if (!item(s, buf)) return false;
        p += n;
        if (*p == '\0') return true;
    }
}

static bool item_any(const ks_setting *s, const char *p)
{
    (void)s;
    (void)p;
    return true;
}

static bool item_int(const ks_setting *s, const char *p)
{
    int64_t v;
    return parse_int(p, &v) && v >= s->min && v <= s->max;
}

static bool item_gpu(const ks_setting *s, const char *p)
{
    int64_t v;
    (void)s;
    if (strncmp(p, "GPU-", 4) == 0 || strncmp(p, "MIG-", 4) == 0)
        return p[4] && strspn(p + 4, "0123456789abcdefABCDEF-/") == strlen(p + 4);
    return parse_int(p, &v) && v >= 0 && v < 64;
}

/* "0,1" but not "0,00" or "1,1": the same device twice. UUIDs are compared as text. */
static bool gpus_differ(const char *v)
{
    for (const char *a = v; a; a = strchr(a, ',')) {
        a += *a == ',';
        const size_t na = strcspn(a, ",");
        for (const char *b = strchr(a, ','); b; b = strchr(b, ',')) {
            b++;
            const size_t nb = strcspn(b, ",");
            int64_t x, y;
            const char *end;
            if (na == nb && strncmp(a, b, na) == 0) return false;
            if (parse_digits(a, &x, &end) && parse_digits(b, &y, &end) && x == y) return false;
        }
    }
    return true;
}

/* The value's numbers, if it is allowed. */
static bool parse_value(const ks_setting *s, const char *v, int64_t *ret_num, double *ret_real)
{
    int64_t num = 0;
    double real = 0;
    bool ok = true;
    if (s->type != KS_SET_CHOICE && ks__setting_word(s, v, &num)) {
        *ret_num = num;
        *ret_real = (double)NAN;
        return true;
    }
    if (*v == '\0' && *s->dflt == '\0') { /* "not set" */
        *ret_num = 0;
        *ret_real = 0;
        return true;
    }
    switch (s->type) {
    case KS_SET_INT: ok = parse_int(v, &num) && num >= s->min && num <= s->max; break;
    case KS_SET_SIZE: ok = parse_size(v, &num) && num >= s->min && num <= s->max; break;
    case KS_SET_TIME: ok = parse_time(v, &num) && num >= s->min && num <= s->max; break;
    case KS_SET_FLOAT: ok = parse_float(v, &real) && real >= (double)s->min && real <= (double)s->max; break;
    case KS_SET_BOOL: ok = parse_bool(v, &num); break;
    case KS_SET_CHOICE: ok = parse_choice(s, v, &num); break;
    case KS_SET_LIST: ok = parse_list(s, v, item_any); break;
    case KS_SET_INTS: ok = parse_list(s, v, item_int); break;
    case KS_SET_GPUS: ok = parse_list(s, v, item_gpu) && gpus_differ(v); break;
    default: ok = *v != '\0'; break; /* STR, PATH */
    }
    *ret_num = num;
    *ret_real = real;
    return ok;
}

/* Control characters and broken UTF-8 never belong into a setting; a prompt on the command line may have lines. */
static int check_text(const ks_setting *s, const char *who, const char *v, ks_err *err)
{
    const bool lines = !ks__sections[s->section].in_ini && s->type == KS_SET_STR;
    const size_t n = strlen(v);
    if (ks_utf8_valid(v, n) != n) return ks_fail(err, KS_E_CONFIG, "%s: the value is not UTF-8", who);
    for (size_t i = 0; i < n; i++) {
        const unsigned char ch = (unsigned char)v[i];
        if ((ch < 0x20 || ch == 0x7f) && !(lines && (ch == '\n' || ch == '\t' || ch == '\r')))
            return ks_fail(err, KS_E_CONFIG, "%s: the value has a control character (0x%02x)", who, ch);
    }
    if (ks__sections[s->section].in_ini && n >= VALUE_MAX)
        return ks_fail(err, KS_E_CONFIG, "%s: the value has %zu bytes, at most %d are allowed", who, n, VALUE_MAX - 1);
    return 0;
}

/* "~/x" and paths relative to `dir`, malloc'd. */
static int resolve_path(const char *who, const char *v, const char *dir, char **ret, ks_err *err)
{
    const char *base = dir && *v && *v != '/' ? dir : NULL;
    if (v[0] == '~' && (v[1] == '/' || v[1] == '\0')) {
        base = getenv("HOME");
        if (!base || !*base) return ks_fail(err, KS_E_CONFIG, "%s: '~' needs the variable HOME, which is not set", who);
        v += v[1] == '/' ? 2 : 1;
    }
    *ret = base && *v ? ks_path_join(base, v) : ks_strdup(base ? base : v);
    return *ret ? 0 : ks_fail(err, KS_E_NOMEM, "%s: out of memory", who);
}

int ks__config_set(ks_config *c, int i, const char *v, int from, const char *origin, const char *dir, ks_err *err)
{
    const ks_setting *s = &ks__settings[i];
    value *dst = &c->values[i];
    char who[320], quoted[112], allowed[224], *text = NULL, *where = NULL;
    int64_t num;
    double real;
    if (from == KS_FROM_FLAG)
        (void)snprintf(who, sizeof who, "%.300s", origin); /* cut off is fine: it is for people, here and below */
    else
        (void)snprintf(who, sizeof who, "%.250s: %s", origin, s->name);
    int rc = check_text(s, who, v, err);
    if (rc) return rc;
    if (!parse_value(s, v, &num, &real))
        return ks_fail(err, KS_E_CONFIG, "%s: %s is not allowed: %s", who,
                       s->props & KS_ROW_SECRET ? "this" : ks__quote(v, quoted),
                       ks__setting_allowed(s, allowed, sizeof allowed));
    if (from < dst->from) return 0; /* checked all the same */
    if (s->type == KS_SET_PATH) {
        rc = resolve_path(who, v, dir, &text, err);
        if (rc) return rc;
    } else {
        text = ks_strdup(s->type == KS_SET_BOOL ? (num ? "true" : "false") : v);
    }
    where = ks_strdup(origin);
    if (!text || !where) {
        free(text);
        free(where);
        return ks_fail(err, KS_E_NOMEM, "%s: out of memory", who);
    }
    free(dst->text);
    free(dst->origin);
    *dst = (value) { .text = text, .num = num, .real = real, .from = from, .origin = where };
    return 0;
}

int ks_config_new(ks_config **ret, ks_err *err)
{
    ks_config *c = ks_calloc(1, sizeof *c);
    if (c) c->values = ks_calloc(ks__n_settings, sizeof *c->values);
    if (!c || !c->values) {
        ks_config_free(c);
        return ks_fail(err, KS_E_NOMEM, "settings: out of memory");
    }
    for (uint32_t i = 0; i < ks__n_settings; i++) {
        int rc = ks__config_set(c, (int)i, ks__settings[i].dflt, KS_FROM_DEFAULT, "default", NULL, err);
        if (rc) {
            ks_config_free(c);
            return rc;
        }
    }
    *ret = c;
    return 0;
}

void ks_config_free(ks_config *c)
{
    if (!c) return;
    for (uint32_t i = 0; c->values && i < ks__n_settings; i++) {
        free(c->values[i].text);
        free(c->values[i].origin);
    }
    for (uint32_t i = 0; i < c->n_plugin; i++) {
        free(c->plugin[i].plugin);
        free(c->plugin[i].key);
        free(c->plugin[i].value);
        free(c->plugin[i].origin);
    }
    free(c->values);
    free(c->plugin);
    free(c);
}

static const value *get(const ks_config *c, const char *name)
{
    const int i = ks__setting_find(name);
    KS_ASSERT(i >= 0);
    return &c->values[i];
}

const char *ks_config_str(const ks_config *c, const char *name)
{
    return get(c, name)->text;
}
int64_t ks_config_int(const ks_config *c, const char *name)
{
    return get(c, name)->num;
}
double ks_config_float(const ks_config *c, const char *name)
{
    return get(c, name)->real;
}
bool ks_config_bool(const ks_config *c, const char *name)
{
    return get(c, name)->num != 0;
}
int ks_config_from(const ks_config *c, const char *name)
{
    return get(c, name)->from;
}
const char *ks_config_origin(const ks_config *c, const char *name)
{
    return get(c, name)->origin;
}

int ks_config_ints(const ks_config *c, const char *name, int64_t **ret, size_t *ret_n, ks_err *err)
{
    const char *text = ks_config_str(c, name), *end;
    size_t n = 1, i = 0;
    *ret = NULL;
    *ret_n = 0;
    if (*text < '0' || *text > '9') return 0; /* a word, or not set */
    for (const char *p = text; *p; p++) n += *p == ',';
    int64_t *v = ks_calloc(n, sizeof *v);
    if (!v) return ks_fail(err, KS_E_NOMEM, "--%s: out of memory for %zu numbers", name, n);
    for (const char *p = text; i < n && parse_digits(p, &v[i], &end); p = end + 1) i++;
    KS_ASSERT(i == n); /* checked when it was set */
    *ret = v;
    *ret_n = n;
    return 0;
}

int ks_config_set(ks_config *c, const char *name, const char *v, int from, const char *origin, ks_err *err)
{
    const int i = ks__setting_find(name);
    KS_ASSERT(i >= 0);
    return ks__config_set(c, i, v, from, origin, NULL, err);
}

int ks_config_no_gpu(const ks_config *c, void (*note)(void *ctx, const char *line), void *ctx, ks_err *err)
{
    for (uint32_t i = 0; i < ks__n_settings; i++) {
        const ks_setting *s = &ks__settings[i];
        const value *v = &c->values[i];
        const bool device =
            strcmp(s->name, "device") == 0 && (strcmp(v->text, "cuda") == 0 || strcmp(v->text, "hybrid") == 0);
        if (!device && (!(s->props & KS_ROW_GPU) || strcmp(v->text, s->dflt) == 0)) continue;
        char quoted[112], line[448];
        if (v->from == KS_FROM_FLAG)
            return ks_fail(err, KS_E_CONFIG,
                           "--%s: %s needs a GPU, and none is usable here: leave the flag out to compute "
                           "on the CPU; `krasis plugins` tells why",
                           s->name, ks__quote(v->text, quoted));
        (void)snprintf(line, sizeof line, "%.250s: %s = %.100s needs a GPU, and none is usable here: the CPU computes",
                       v->origin, s->name, v->text); /* cut off is fine: it is for people */
        if (note) note(ctx, line);
    }
    return 0;
}

int ks__config_set_plugin(ks_config *c, const char *plugin, const char *key, const char *v, int from,
                          const char *origin, ks_err *err)
{
    plugin_value *dst = NULL;
    for (uint32_t i = 0; i < c->n_plugin; i++)
        if (strcmp(c->plugin[i].plugin, plugin) == 0 && strcmp(c->plugin[i].key, key) == 0) dst = &c->plugin[i];
    if (dst && from < dst->from) return 0;
    if (!dst && c->n_plugin == PLUGIN_VALUES)
        return ks_fail(err, KS_E_LIMIT, "%s: more than %u settings of plugins", origin, PLUGIN_VALUES);
    plugin_value new = { ks_strdup(plugin), ks_strdup(key), ks_strdup(v), ks_strdup(origin), from };
    bool ok = new.plugin &&new.key &&new.value &&new.origin;
    if (ok && !dst) {
        plugin_value *grown = realloc(c->plugin, (c->n_plugin + 1) * sizeof *grown); /* bounded by PLUGIN_VALUES */
        ok = grown != NULL;
        if (ok) {
            c->plugin = grown;
            dst = &grown[c->n_plugin++];
            *dst = (plugin_value) { 0 };
        }
    }
    plugin_value old = ok ? *dst : new;
    if (ok) *dst = new;
    free(old.plugin);
    free(old.key);
    free(old.value);
    free(old.origin);
    return ok ? 0 : ks_fail(err, KS_E_NOMEM, "%s: out of memory", origin);
}

uint32_t ks_config_n_plugin(const ks_config *c)
{
    return c->n_plugin;
}

void ks_config_plugin(const ks_config *c, uint32_t i, const char **ret_plugin, const char **ret_key,
                      const char **ret_value, const char **ret_origin)
{
    KS_ASSERT(i < c->n_plugin);
    *ret_plugin = c->plugin[i].plugin;
    *ret_key = c->plugin[i].key;
    *ret_value = c->plugin[i].value;
    *ret_origin = c->plugin[i].origin;
}

void ks_config_show(const ks_config *c, FILE *f)
{
    for (int s = 0; s < KS_SECTION_COUNT; s++) {
        if (!ks__sections[s].in_ini) continue;
        (void)fprintf(f, "[%s]\n", ks__sections[s].name); /* the caller checks the stream once, at the end */
        for (uint32_t i = 0; i < ks__n_settings; i++) {
            const value *v = &c->values[i];
            if ((int)ks__settings[i].section != s) continue;
            const bool secret = ks__settings[i].props & KS_ROW_SECRET && *v->text;
            (void)fprintf(f, "%-21s = %-20s  (%s)\n", ks__settings[i].name, secret ? "(not shown)" : v->text,
                          v->origin);
        }
    }
    for (uint32_t i = 0; i < c->n_plugin; i++)
        (void)fprintf(f, "[%s] %s = %s  (%s)\n", c->plugin[i].plugin, c->plugin[i].key, c->plugin[i].value,
                      c->plugin[i].origin);
}

/* ---- The saved file */

/* Quoted where ini.c would read something else. */
static void save_line(ks_buf *b, const char *key, const char *v)
{
    const size_t n = strlen(v);
    bool quote = n == 0 || v[0] == ' ' || v[0] == '"' || v[n - 1] == ' ';
    for (size_t i = 0; i < n; i++) quote |= v[i] == ';' || v[i] == '#';
    ks_buf_printf(b, quote ? "%s = \"%s\"\n" : "%s = %s\n", key, v);
}

/* The saved file lies elsewhere, so its paths are absolute. */
static int save_path(ks_buf *b, const char *key, const char *v, ks_err *err)
{
    char *full = NULL;
    if (*v && *v != '/') {
        char *cwd = getcwd(NULL, 0);
        full = cwd ? ks_path_join(cwd, v) : NULL;
        free(cwd);
        if (!full) return ks_fail(err, KS_E_IO, "--%s: the current folder is unknown: give an absolute path", key);
    }
    save_line(b, key, full ? full : v);
    free(full);
    return 0;
}

int ks__config_text(const ks_config *c, ks_buf *b, ks_err *err)
{
    int rc = 0;
    ks_buf_adds(b, "# Written by `krasis config save`. Read by `krasis`, the launcher. Delete a line to have the "
                   "default again.\n");
    for (int s = 0; s < KS_SECTION_COUNT && rc == 0; s++) {
        bool title = false;
        for (uint32_t i = 0; i < ks__n_settings && rc == 0; i++) {
            const ks_setting *row = &ks__settings[i];
            const value *v = &c->values[i];
            if ((int)row->section != s || !ks__sections[s].in_ini || v->from == KS_FROM_DEFAULT) continue;
            if (!title) ks_buf_printf(b, "\n[%s]\n", ks__sections[s].name);
            title = true;
            if (row->props & KS_ROW_SECRET && *v->text)
                rc = ks_fail(err, KS_E_CONFIG, "--%s: secrets are not saved: use --%s-file", row->name, row->name);
            else if (row->type == KS_SET_PATH)
                rc = save_path(b, row->name, v->text, err);
            else
                save_line(b, row->name, v->text);
        }
    }
    for (uint32_t i = 0; i < c->n_plugin && rc == 0; i++) {
        ks_buf_printf(b, "\n[%s]\n", c->plugin[i].plugin);
        save_line(b, c->plugin[i].key, c->plugin[i].value);
    }
    if (rc == 0 && b->failed) rc = ks_fail(err, KS_E_NOMEM, "saved settings: out of memory");
    return rc;
}

int ks_config_save(const ks_config *c, const char *path, ks_err *err)
{
    ks_buf b;
    ks_buf_init(&b, 0);
    int rc = ks__config_text(c, &b, err);
    if (rc == 0) rc = ks_file_write(path, b.p, b.n, err);
    ks_buf_fini(&b);
    return rc;
}

char *ks_config_saved_path(ks_err *err)
{
    char *home = ks_home(err), *path;
    if (!home) return NULL;
    path = ks_path_join(home, "config.ini");
    free(home);
    if (!path) (void)ks_fail(err, KS_E_NOMEM, "saved settings: out of memory"); /* NULL tells */
    return path;
}
