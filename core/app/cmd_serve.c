/* krasis serve: loads the model, starts the frontends, waits for a signal, stops in order.
 *
 * SIGTERM or SIGINT: new requests are refused, running ones may end within --shutdown-timeout, then they are
 * cancelled; exit code 0. A second signal cancels at once. A GPU that is lost for good (--gpu-failure stop) ends it the
 * same way, with exit code 1. Signals are blocked before any thread exists and
 * taken by sigwaitinfo here, so no handler runs anywhere. While the model loads, which may take minutes and leaves
 * nothing torn, a watcher takes them and ends the process. */
#include "app/bench.h"
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include "base/clock.h"
#include "base/log.h"
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#define SAVE_EVERY_S 600
#define TICKS_S 4u /* how often a second the engine is asked whether it still has a device */

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void *watch_loading(void *set)
{
    int sig = 0;
    do {
        pthread_testcancel(); /* loading ended first */
        sig = sigwaitinfo(set, NULL);
    } while (sig < 0); /* a process that was stopped and goes on */
    fprintf(stderr, "krasis: signal %d while loading: nothing was served yet, the next start goes on from here\n", sig);
    _exit(128 + sig);
}

static int open_frontends(ks_app *a, ks_err *err)
{
    int rc = ks_registry_choose(a->registry, KS_KIND_FRONTEND, ks_config_str(a->config, "frontends"), err);
    uint32_t opened = 0;
    for (uint32_t i = 0; !rc && i < ks_registry_count(a->registry); i++) {
        ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        if (p->desc.kind != KS_KIND_FRONTEND || p->state != KS_PLUGIN_CHOSEN) continue;
        rc = ks_registry_start(a->registry, p, err);
        opened += rc == 0;
    }
    if (!rc && !opened)
        rc = ks_fail(err, KS_E_CONFIG, "no frontend is chosen: set --frontends http (see `krasis plugins`)");
    return rc;
}

static int load(ks_config *c, ks_app *a, sigset_t *set, ks_err *err)
{
    pthread_t watcher;
    if (pthread_create(&watcher, NULL, watch_loading, set)) return ks_fail(err, KS_E_NOMEM, "cannot start a thread");
    int rc = ks_app_prepare(c, a, err);
    if (!rc) rc = open_frontends(a, err); /* before the weights, which may take minutes: a bad key file is known now */
    if (!rc) rc = ks_app_weights(a, err);
    if (!rc) rc = ks_app_start(a, err);
    pthread_cancel(watcher);
    pthread_join(watcher, NULL);
    return rc;
}

static int start_frontends(ks_app *a, ks_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; !rc && i < ks_registry_count(a->registry); i++) {
        ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        if (p->desc.kind != KS_KIND_FRONTEND || p->state != KS_PLUGIN_OPEN) continue;
        rc = ((const ks_frontend_iface *)p->desc.iface)->start(p->self, ks_engine_api_get(), a->engine, err);
    }
    return rc;
}

static void each_frontend(ks_app *a, bool drain)
{
    for (uint32_t i = 0; a->registry && i < ks_registry_count(a->registry); i++) {
        ks_plugin_entry *p = ks_registry_entry(a->registry, i);
        if (p->desc.kind != KS_KIND_FRONTEND || p->state != KS_PLUGIN_OPEN) continue;
        const ks_frontend_iface *f = p->desc.iface;
        if (!drain)
            f->stop(p->self);
        else if (f->drain)
            f->drain(p->self);
    }
}

/* Waits for a signal (0: the device is lost for good, see *err), and saves from time to time what was learnt about the
 * experts. */
static int wait_for_signal(ks_app *a, const sigset_t *set, ks_err *err)
{
    const struct timespec tick = { .tv_nsec = 1000000000 / TICKS_S };
    for (uint64_t n = 1;; n++) {
        int sig = sigtimedwait(set, NULL, &tick);
        if (sig > 0) return sig;
        if (ks_engine_lost(a->engine, err)) return 0;
        if (n % (SAVE_EVERY_S * TICKS_S) == 0) ks_heat_save(a);
    }
}

static void shut_down(ks_app *a, const sigset_t *set)
{
    uint64_t limit = (uint64_t)ks_config_int(a->config, "shutdown-timeout"), end = ks_now_ns() + limit * 1000000;
    each_frontend(a, true);
    while (!ks_engine_drain(a->engine, 50)) {
        struct timespec zero = { 0 };
        bool again = sigtimedwait(set, NULL, &zero) > 0;
        if (!again && ks_now_ns() < end) continue;
        ks_log(KS_LOG_WARN, "serve", "requests are still running %s: they are cancelled",
               again ? "at the second signal" : "after --shutdown-timeout");
        ks_engine_cancel_all(a->engine);
        while (!ks_engine_drain(a->engine, 1000)) {
        }
        return;
    }
}

int ks_cmd_serve(ks_config *c, ks_cli *cli)
{
    ks_app a = { 0 };
    ks_err err = { 0 };
    sigset_t set;
    block_signals(&set);
    int rc = cli->n_words ? ks_fail(&err, KS_E_CONFIG, "serve takes no words: '%s'", cli->words[0])
                          : load(c, &a, &set, &err);
    if (!rc && ks_config_bool(c, "benchmark"))
        rc = ks_bench_clients(&a, KS_BENCH_PROMPT_TOKENS, KS_BENCH_NEW_TOKENS, false, &err);
    if (!rc) rc = start_frontends(&a, &err);
    if (!rc) {
        int sig = wait_for_signal(&a, &set, &err);
        rc = sig ? 0 : err.code;
        ks_log(KS_LOG_INFO, "serve", "%s: no new requests, running ones get %lld ms (--shutdown-timeout)",
               sig == SIGTERM ? "SIGTERM"
               : sig          ? "SIGINT"
                              : "the device is lost",
               (long long)ks_config_int(c, "shutdown-timeout"));
        shut_down(&a, &set);
    }
    each_frontend(&a, false);
    ks_app_close(&a);
    return rc ? ks_app_fail(&err) : 0;
}
