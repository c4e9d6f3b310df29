/* The http plugin as a host would run it, on the stub engine and a free port of loopback. */
#ifndef TESTS_API_FIXTURE_H
#define TESTS_API_FIXTURE_H

#include "http_client.h"
#include "stub_engine.h"

typedef struct fixture {
    stub engine;
    ks_host host;
    const ks_plugin *plugin;
    void *opts, *self;
    uint16_t port;
    pthread_mutex_t mu;
    char log[8192];  /* under mu: all lines */
    char text[4096]; /* of options: they must outlive the plugin */
    size_t text_used;
} fixture;

/* Options as "key=value", the last is NULL. Fails the test if the server does not start. */
void fixture_start(fixture *f, ...) __attribute__((sentinel));
void fixture_stop(fixture *f); /* after the plugin's stop() or without it; a zeroed one is fine */
/* The same in steps, for tests of what fails. */
void fixture_init(fixture *f); /* with the build's http.so */
void fixture_init_with(fixture *f, const ks_plugin *plugin);
void fixture_set(fixture *f, const char *key, const char *value);
int fixture_run(fixture *f, ks_err *err); /* open and start */
const ks_frontend_iface *fixture_iface(const fixture *f);

#endif
