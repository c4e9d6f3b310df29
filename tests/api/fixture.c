/* Loads the plugin and runs it. See the header. */
#include "fixture.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>

#include <setjmp.h>

#include <cmocka.h>

static void log_line(const ks_host *h, int32_t level, const char *msg)
{
    fixture *f = h->ctx;
    (void)level;
    pthread_mutex_lock(&f->mu);
    size_t n = strlen(f->log);
    (void)snprintf(f->log + n, sizeof f->log - n, "%s\n", msg);
    pthread_mutex_unlock(&f->mu);
}

static const char *keep(fixture *f, const char *value)
{
    size_t n = strlen(value) + 1;
    char *p = f->text + f->text_used;
    assert_true(f->text_used + n <= sizeof f->text);
    memcpy(p, value, n);
    f->text_used += n;
    return p;
}

void fixture_set(fixture *f, const char *key, const char *value)
{
    for (uint32_t i = 0; i < f->plugin->n_options; i++) {
        const ks_option *o = &f->plugin->options[i];
        char *at = (char *)f->opts + o->offset;
        if (strcmp(o->key, key)) continue;
        if (o->type == KS_OPT_INT) {
            int64_t v = strtoll(value, NULL, 10);
            memcpy(at, &v, sizeof v);
        } else {
            assert_int_equal(o->type, KS_OPT_STR);
            const char *p = keep(f, value);
            memcpy(at, &p, sizeof p);
        }
        return;
    }
    fail_msg("the plugin has no option '%s'", key);
}

void fixture_init(fixture *f)
{
    void *so = dlopen(KS_BUILD_DIR "/plugins/http.so", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!so) fail_msg("%s", dlerror());
    const ks_plugin *plugin = dlsym(so, KS_PLUGIN_SYMBOL);
    assert_non_null(plugin);
    fixture_init_with(f, plugin);
}

void fixture_init_with(fixture *f, const ks_plugin *plugin)
{
    memset(f, 0, sizeof *f);
    f->plugin = plugin;
    f->opts = calloc(1, f->plugin->opts_bytes);
    assert_non_null(f->opts);
    for (uint32_t i = 0; i < f->plugin->n_options; i++)
        fixture_set(f, f->plugin->options[i].key, f->plugin->options[i].dflt);
    fixture_set(f, "host", "127.0.0.1");
    fixture_set(f, "port", "0");
    pthread_mutex_init(&f->mu, NULL);
    f->host = (ks_host) { .size = (uint32_t)sizeof f->host, .ctx = f, .log = log_line };
    stub_init(&f->engine);
}

const ks_frontend_iface *fixture_iface(const fixture *f)
{
    return f->plugin->iface;
}

int fixture_run(fixture *f, ks_err *err)
{
    static const char sign[] = "listening on http://127.0.0.1:";
    int rc = f->plugin->open(&f->host, f->opts, &f->self, err);
    if (!rc) rc = fixture_iface(f)->start(f->self, &stub_api, &f->engine, err);
    const char *at = strstr(f->log, sign);
    if (!rc && at) f->port = (uint16_t)strtoul(at + sizeof sign - 1, NULL, 10);
    return rc;
}

void fixture_start(fixture *f, ...)
{
    ks_err err = { 0 };
    va_list ap;
    fixture_init(f);
    va_start(ap, f);
    for (const char *kv; (kv = va_arg(ap, const char *));) {
        char key[64];
        const char *eq = strchr(kv, '=');
        assert_non_null(eq);
        (void)snprintf(key, sizeof key, "%.*s", (int)(eq - kv), kv);
        fixture_set(f, key, eq + 1);
    }
    va_end(ap);
    if (fixture_run(f, &err)) fail_msg("%s", err.msg);
    assert_int_not_equal(f->port, 0);
}

void fixture_stop(fixture *f)
{
    if (!f->plugin) return;
    if (f->self) {
        fixture_iface(f)->stop(f->self);
        f->plugin->close(f->self);
    }
    stub_fini(&f->engine);
    free(f->opts);
    pthread_mutex_destroy(&f->mu);
    memset(f, 0, sizeof *f);
}
