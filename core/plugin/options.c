/* A plugin's own settings: its table of options filled from defaults and from the settings of its section. */
#include "base/base.h"
#include "plugin/impl.h"
#include <errno.h>
#include <math.h>

static bool is_choice(const char *choices, const char *value)
{
    size_t n = strlen(value);
    for (const char *p = choices; *p;) {
        size_t len = strcspn(p, "|");
        if (len == n && memcmp(p, value, n) == 0) return true;
        p += len + (p[len] == '|');
    }
    return false;
}

static int set_number(const ks_option *o, void *at, const char *v, ks_err *err)
{
    char *end;
    errno = 0;
    double d = o->type == KS_OPT_INT ? (double)strtoll(v, &end, 10) : strtod(v, &end);
    if (end == v || *end || errno || !isfinite(d))
        return ks_fail(err, KS_E_CONFIG, "'%.80s' is no %s", v, o->type == KS_OPT_INT ? "integer" : "number");
    if ((o->min != 0 || o->max != 0) && (d < o->min || d > o->max))
        return ks_fail(err, KS_E_CONFIG, "%.80s is out of range: allowed is %.15g to %.15g", v, o->min, o->max);
    int64_t i = o->type == KS_OPT_INT ? strtoll(v, NULL, 10) : 0;
    memcpy(at, o->type == KS_OPT_INT ? (const void *)&i : (const void *)&d, 8);
    return 0;
}

static int set_option(const ks_option *o, void *opts, const char *v, ks_err *err)
{
    void *at = (char *)opts + o->offset;
    if (o->type == KS_OPT_INT || o->type == KS_OPT_FLOAT) return set_number(o, at, v, err);
    if (o->type == KS_OPT_BOOL) {
        bool yes = is_choice("1|true|yes|on", v);
        if (!yes && !is_choice("0|false|no|off", v))
            return ks_fail(err, KS_E_CONFIG, "'%.80s' is neither true nor false", v);
        int32_t i = yes;
        memcpy(at, &i, sizeof i);
        return 0;
    }
    if (o->choices && !is_choice(o->choices, v))
        return ks_fail(err, KS_E_CONFIG, "'%.80s' is not allowed: use %s", v, o->choices);
    char *copy = ks_strdup(v), *old;
    if (!copy) return ks_fail(err, KS_E_NOMEM, "out of memory");
    memcpy(&old, at, sizeof old);
    free(old);
    memcpy(at, &copy, sizeof copy);
    return 0;
}

int ks__plugin_options(ks_entry *e, ks_err *err)
{
    const ks_plugin *d = &e->pub.desc;
    const ks_registry_opts *r = &e->registry->o;
    ks_err why = { 0 };
    if (d->opts_bytes && !(e->pub.opts = ks_calloc(1, d->opts_bytes)))
        return ks_fail(err, KS_E_NOMEM, "out of memory for the options of '%s'", e->name);
    for (uint32_t i = 0; i < d->n_options; i++) {
        int rc = set_option(&d->options[i], e->pub.opts, d->options[i].dflt, &why);
        if (rc == KS_E_NOMEM) return ks_fail(err, rc, "out of memory for the options of '%s'", e->name);
        if (rc) {
            ks__refuse(e, "the default of its option '%.40s' is wrong: %.160s", d->options[i].key, why.msg);
            return 0;
        }
    }
    for (uint32_t s = 0; s < r->n_settings; s++) {
        const ks_plugin_setting *set = &r->settings[s];
        uint32_t i = 0;
        if (strcmp(set->plugin, e->name) != 0) continue;
        while (i < d->n_options && strcmp(d->options[i].key, set->key) != 0) i++;
        if (i == d->n_options)
            return ks_fail(err, KS_E_CONFIG, "%s: plugin '%s' has no setting '%s' (see `krasis plugins`)", set->origin,
                           e->name, set->key);
        int rc = set_option(&d->options[i], e->pub.opts, set->value, &why);
        if (rc) return ks_fail(err, rc, "%s: '%s' of plugin '%s': %s", set->origin, set->key, e->name, why.msg);
    }
    return 0;
}
