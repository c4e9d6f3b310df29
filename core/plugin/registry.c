/* The registry: all plugins that were found, what became of each, and why. [main] */
#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include "plugin/impl.h"
#include <dirent.h>
#include <errno.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

static int entry_new(ks_registry *r, const char *path, ks_entry **ret, ks_err *err)
{
    if (r->n == KS_MAX_PLUGINS)
        return ks_fail(err, KS_E_LIMIT, "plugin '%s' is one too many: at most %u are looked at", path, KS_MAX_PLUGINS);
    ks_entry **grown = realloc(r->entry, (r->n + 1) * sizeof *grown);
    if (grown) r->entry = grown;
    ks_entry *e = grown ? ks_calloc(1, sizeof *e) : NULL;
    if (!e) return ks_fail(err, KS_E_NOMEM, "out of memory for plugin '%s'", path);
    e->registry = r;
    (void)snprintf(e->path, sizeof e->path, "%s", path);
    e->pub.path = e->path;
    e->pub.name = e->name;
    e->pub.state = KS_PLUGIN_USABLE;
    (void)snprintf(e->pub.why, sizeof e->pub.why, "not chosen");
    ks__host_init(e);
    r->entry[r->n++] = e;
    *ret = e;
    return 0;
}

static void probe(ks_entry *e)
{
    ks_probe p = { .size = (uint32_t)sizeof p };
    ks_err err = { 0 };
    if (!e->pub.desc.probe) return;
    uint64_t t0 = ks_now_ns();
    int rc = e->pub.desc.probe(&e->host, e->pub.opts, &p, &err);
    uint64_t ms = (ks_now_ns() - t0) / 1000000;
    err.msg[sizeof err.msg - 1] = 0; /* written by others */
    if (rc) {
        ks__refuse(e, "%s", err.msg[0] ? err.msg : ks_error_text(rc));
        return;
    }
    if (p.score) e->pub.score = p.score;
    p.detail[sizeof p.detail - 1] = 0;
    if (p.detail[0]) ks__say(e, "%s", p.detail);
    if (ms > KS_PROBE_SLOW_MS)
        ks_log(KS_LOG_DEBUG, "plugins", "probe() of '%s' took %llu ms: at most %u are allowed", e->name,
               (unsigned long long)ms, KS_PROBE_SLOW_MS);
}

/* Options and probe of an entry whose descriptor is fine. Only our own failures and wrong settings are errors. */
static int configure(ks_entry *e, ks_err *err)
{
    if (e->pub.state == KS_PLUGIN_REFUSED) return 0;
    if (e->pub.desc.kind == KS_KIND_LOADER) ks__say(e, "is taken for the files whose content it knows");
    int rc = ks__plugin_options(e, err);
    if (!rc && e->pub.state != KS_PLUGIN_REFUSED) probe(e);
    return rc;
}

/* e is the last entry. */
static void refuse_second(const ks_registry *r, ks_entry *e)
{
    for (uint32_t i = 0; i + 1 < r->n && e->pub.state != KS_PLUGIN_REFUSED; i++)
        if (r->entry[i]->loaded && strcmp(r->entry[i]->name, e->name) == 0)
            ks__refuse(e, "a plugin of that name was found first: %.180s", r->entry[i]->path);
}

int ks_registry_add_file(ks_registry *r, const char *path, ks_plugin_entry **ret, ks_err *err)
{
    ks_entry *e;
    int rc = entry_new(r, path, &e, err);
    if (rc || (rc = ks__plugin_load(e, err))) return rc;
    refuse_second(r, e);
    if (ret) *ret = &e->pub;
    return configure(e, err);
}

ks_entry *ks__registry_at(ks_registry *r, const char *path)
{
    struct stat a, b;
    if (stat(path, &a)) return NULL;
    for (uint32_t i = 0; i < r->n; i++)
        if (!stat(r->entry[i]->path, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino) return r->entry[i];
    return NULL;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_so(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return n > 3 && strcmp(d->d_name + n - 3, ".so") == 0;
}

static int scan(ks_registry *r, const char *dir, ks_err *err)
{
    struct dirent **list = NULL;
    char path[4096];
    int n = scandir(dir, &list, is_so, by_name), rc = 0;
    if (n < 0)
        return errno == ENOENT || errno == ENOTDIR
                   ? 0
                   : ks_fail(err, KS_E_IO, "cannot read the plugin folder '%s': %s", dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        int len = snprintf(path, sizeof path, "%s/%s", dir, list[i]->d_name);
        if (!rc && len > 0 && (size_t)len < sizeof path && !ks__registry_at(r, path))
            rc = ks_registry_add_file(r, path, NULL, err);
        free(list[i]);
    }
    free(list);
    return rc;
}

/* The files that a list of choices names by their path. */
static int load_wanted(ks_registry *r, const char *want, ks_err *err)
{
    char one[4096];
    int rc = 0;
    while (!rc && ks__next_word(&want, one, sizeof one))
        if (strchr(one, '/') && !ks__registry_at(r, one)) rc = ks_registry_add_file(r, one, NULL, err);
    return rc;
}

/* A section for a plugin that is not there is a typing error more often than not. */
static int check_settings(const ks_registry *r, ks_err *err)
{
    for (uint32_t s = 0; s < r->o.n_settings; s++) {
        const ks_plugin_setting *set = &r->o.settings[s];
        bool found = strcmp(set->origin, "default") == 0;
        for (uint32_t i = 0; i < r->n; i++) found |= strcmp(r->entry[i]->name, set->plugin) == 0;
        if (!found)
            return ks_fail(err, KS_E_CONFIG, "%s: there is no plugin '%s' for the setting '%s' (see `krasis plugins`)",
                           set->origin, set->plugin, set->key);
    }
    return 0;
}

int ks_registry_open(const ks_registry_opts *o, ks_registry **ret, ks_err *err)
{
    ks_registry *r = ks_calloc(1, sizeof *r);
    if (!r) return ks_fail(err, KS_E_NOMEM, "out of memory for the plugins");
    r->o = *o;
    int rc = 0;
    for (uint32_t i = 0; i < o->n_wanted && !rc; i++) rc = load_wanted(r, o->wanted[i], err);
    for (uint32_t i = 0; i < o->n_dirs && !rc; i++) rc = scan(r, o->dirs[i], err);
    if (!rc) rc = check_settings(r, err);
    if (rc) {
        ks_registry_close(r);
        return rc;
    }
    r->o.settings = NULL; /* the caller's; applied by now. A plugin added later has its defaults */
    r->o.n_settings = 0;
    r->o.dirs = r->o.wanted = NULL;
    r->o.n_dirs = r->o.n_wanted = 0;
    *ret = r;
    return 0;
}

void ks_registry_close(ks_registry *r)
{
    if (!r) return;
    for (uint32_t i = r->n; i-- > 0;) {
        ks_entry *e = r->entry[i];
        if (e->pub.state == KS_PLUGIN_OPEN && e->pub.desc.close) e->pub.desc.close(e->pub.self);
        size_t left = ks_plugin_mem_bytes(&e->pub);
        if (left) ks_log(KS_LOG_DEBUG, "plugins", "'%s' left %zu bytes behind after close()", e->name, left);
        for (uint32_t k = 0; e->pub.opts && k < e->pub.desc.n_options; k++)
            if (e->pub.desc.options[k].type == KS_OPT_STR)
                free(*(char **)((char *)e->pub.opts + e->pub.desc.options[k].offset));
        free(e->pub.opts);
        free(e->rows);
        free(e->options);
        free(e);
    }
    free(r->entry);
    free(r);
}

uint32_t ks_registry_count(const ks_registry *r)
{
    return r->n;
}

ks_plugin_entry *ks_registry_entry(ks_registry *r, uint32_t i)
{
    return i < r->n ? &r->entry[i]->pub : NULL;
}

ks_plugin_entry *ks_registry_find(ks_registry *r, const char *name)
{
    ks_plugin_entry *found = NULL;
    for (uint32_t i = 0; i < r->n; i++) {
        ks_plugin_entry *p = &r->entry[i]->pub;
        if (strcmp(p->name, name) != 0) continue;
        if (p->state != KS_PLUGIN_REFUSED) return p;
        if (!found) found = p; /* its reason is of use if no other folder has a better one */
    }
    return found;
}

int ks_registry_add(ks_registry *r, const ks_plugin *desc, const char *path, ks_err *err)
{
    ks_entry *e;
    ks_err why = { 0 };
    int rc = entry_new(r, path, &e, err);
    if (rc) return rc;
    if ((rc = ks__plugin_take(e, desc, &why))) {
        ks__refuse(e, "%s", why.msg);
        return ks_fail(err, rc, "%s", why.msg);
    }
    refuse_second(r, e);
    return configure(e, err);
}

int ks_registry_start(ks_registry *r, ks_plugin_entry *p, ks_err *err)
{
    ks_entry *e = (ks_entry *)p; /* pub is its first member */
    KS_ASSERT(e->registry == r);
    if (p->state == KS_PLUGIN_OPEN) return 0;
    if (p->state == KS_PLUGIN_REFUSED)
        return ks_fail(err, KS_E_STATE, "plugin '%s' cannot be used: %s", p->name, p->why);
    if (p->desc.open) {
        ks_err why = { 0 };
        int rc = p->desc.open(&e->host, p->opts, &p->self, &why);
        why.msg[sizeof why.msg - 1] = 0; /* written by others */
        if (rc) {
            p->self = NULL; /* whatever it left there */
            ks__refuse(e, "%s", why.msg[0] ? why.msg : ks_error_text(rc));
            return ks_fail(err, rc < 0 ? rc : KS_E_INTERNAL, "plugin '%s' did not open: %s", p->name, p->why);
        }
    }
    p->state = KS_PLUGIN_OPEN;
    return 0;
}

int ks_registry_loader(ks_registry *r, const char *path, ks_plugin_entry **ret, ks_err *err)
{
    uint8_t head[4096];
    ks_entry *best = NULL;
    ks_err why = { 0 };
    FILE *f = fopen(path, "re");
    if (!f) return ks_fail(err, errno == ENOENT ? KS_E_NOTFOUND : KS_E_IO, "'%s': %s", path, strerror(errno));
    size_t n = fread(head, 1, sizeof head, f);
    bool failed = ferror(f);
    fclose(f);
    if (failed) return ks_fail(err, KS_E_IO, "cannot read '%s'", path);
    if (n == 0) return ks_fail(err, KS_E_FORMAT, "'%s' is empty; download it again", path);
    for (uint32_t i = 0; i < r->n; i++) {
        ks_entry *e = r->entry[i];
        if (e->pub.state == KS_PLUGIN_REFUSED || e->pub.desc.kind != KS_KIND_LOADER) continue;
        if (ks_registry_start(r, &e->pub, &why)) { /* another may know the file */
            ks_log(KS_LOG_WARN, "plugins", "%s", why.msg);
            continue;
        }
        if (e->iface.loader.sniff(e->pub.self, path, head, n) != 1) continue;
        if (!best || ks__better(e, best)) best = e;
    }
    if (!best && why.msg[0])
        return ks_fail(err, KS_E_UNSUPPORTED, "no loader plugin knows the format of '%s', and %s", path, why.msg);
    if (!best)
        return ks_fail(err, KS_E_UNSUPPORTED, "no loader plugin knows the format of '%s' (see `krasis plugins`)", path);
    ks__say(best, "knows the format of '%.180s'", path);
    *ret = &best->pub;
    return 0;
}

/* ---- where */

static uint32_t add_dir(char **dirs, uint32_t n, uint32_t cap, const char *dir)
{
    if (!*dir || n == cap) return n;
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(dirs[i], dir) == 0) return n;
    dirs[n] = ks_strdup(dir);
    return dirs[n] ? n + 1 : n;
}

uint32_t ks_plugin_dirs(const char *setting, char **dirs, uint32_t cap)
{
    char exe[4000], dir[4096];
    uint32_t n = 0;
    ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (len > 0) {
        exe[len] = 0;
        char *slash = strrchr(exe, '/');
        if (slash) *slash = 0;
        (void)snprintf(dir, sizeof dir, "%s/plugins", exe); /* a build folder, a bundle */
        n = add_dir(dirs, n, cap, dir);
        (void)snprintf(dir, sizeof dir, "%s/../lib/krasis/plugins", exe); /* installed */
        n = add_dir(dirs, n, cap, dir);
    }
    n = add_dir(dirs, n, cap, setting);
    const char *env = getauxval(AT_SECURE) ? NULL : getenv("KRASIS_PLUGIN_PATH"); /* not for privileged processes */
    while (env && *env) {
        size_t k = strcspn(env, ":");
        (void)snprintf(dir, sizeof dir, "%.*s", (int)k, env);
        if (dir[0] == '/') n = add_dir(dirs, n, cap, dir); /* never relative to where we happen to be */
        env += k + (env[k] == ':');
    }
    return n;
}
