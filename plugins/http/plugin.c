/* The descriptor and the options of the HTTP frontend. */
#include "http.h"

#include <stdlib.h>

#define OPT(key, type, field, dflt, lo, hi, help)                                 \
    {                                                                             \
        key, type, (uint32_t)offsetof(http_opts, field), dflt, lo, hi, NULL, help \
    }

static const ks_option options[] = {
    OPT("host", KS_OPT_STR, host, "0.0.0.0", 0, 0, "Address to listen on; the core's --host sets it"),
    OPT("port", KS_OPT_INT, port, "8012", 0, 65535, "Port to listen on; the core's --port sets it"),
    OPT("api-key", KS_OPT_STR, api_key, "", 0, 0, "Key that clients must send; the core's --api-key sets it"),
    OPT("api-key-file", KS_OPT_STR, api_key_file, "", 0, 0, "File with one key a line"),
    OPT("cors-origin", KS_OPT_STR, cors_origin, "*", 0, 0, "Access-Control-Allow-Origin, empty for none"),
    OPT("max-body-mb", KS_OPT_INT, max_body_mb, "32", 1, 1024, "Largest request body in MiB"),
    OPT("max-header-kb", KS_OPT_INT, max_header_kb, "64", 8, 1024, "Largest headers of a request in KiB"),
    OPT("max-connections", KS_OPT_INT, max_connections, "1024", 2, 65535, "Connections at once"),
    OPT("max-connections-per-ip", KS_OPT_INT, per_ip, "0", 0, 65535,
        "Connections at once from one address, 0 for no limit"),
    OPT("header-timeout", KS_OPT_INT, header_timeout_s, "30", 1, 3600, "Seconds a client has for its headers"),
    OPT("body-timeout", KS_OPT_INT, body_timeout_s, "120", 1, 3600, "Seconds a client has for the body"),
    OPT("send-timeout", KS_OPT_INT, send_timeout_s, "120", 1, 3600, "Seconds a client has to take a finished answer"),
    OPT("idle-timeout", KS_OPT_INT, idle_timeout_s, "75", 1, 3600, "Seconds an idle connection is kept"),
    OPT("heartbeat", KS_OPT_INT, heartbeat_s, "15", 1, 300,
        "Seconds of silence in a stream before a heartbeat comment"),
};

static int http_open(const ks_host *h, const void *opts, void **ret_self, ks_err *err)
{
    server *s = calloc(1, sizeof *s);
    if (!s) return ks_fail(err, KS_E_NOMEM, "out of memory for the server");
    s->host = h;
    s->o = opts;
    s->epoll_fd = s->stop_fd = s->listen_fd = -1;
    pthread_mutex_init(&s->mu, NULL);
    pthread_cond_init(&s->all_freed, NULL);
    pthread_cond_init(&s->queued, NULL);
    int rc = keys_load(&s->keys, s->o, err);
    if (!rc) rc = server_bind(s, err);
    if (rc) {
        keys_fini(&s->keys);
        pthread_cond_destroy(&s->all_freed);
        pthread_cond_destroy(&s->queued);
        pthread_mutex_destroy(&s->mu);
        free(s);
        return rc;
    }
    *ret_self = s;
    return 0;
}

static void http_close(void *self)
{
    server *s = self;
    if (!s) return;
    server_stop(s);
    keys_fini(&s->keys);
    pthread_cond_destroy(&s->all_freed);
    pthread_cond_destroy(&s->queued);
    pthread_mutex_destroy(&s->mu);
    free(s);
}

static const ks_frontend_iface iface = {
    .size = (uint32_t)sizeof iface, .start = server_start, .drain = server_drain, .stop = server_stop
};

KS_PLUGIN_DEFINE = {
    .size = (uint32_t)sizeof(ks_plugin),
    .kind = KS_KIND_FRONTEND,
    .name = "http",
    .version = KS_VERSION,
    .summary = "OpenAI-compatible HTTP server",
    .license = "Apache-2.0",
    .cpu_required = KS_CPU_REQUIRED,
    .score = 100,
    .n_options = (uint32_t)(sizeof options / sizeof options[0]),
    .options = options,
    .option_size = (uint32_t)sizeof(ks_option),
    .opts_bytes = (uint32_t)sizeof(http_opts),
    .iface = &iface,
    .open = http_open,
    .close = http_close,
};
