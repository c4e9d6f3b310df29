/* model.synth, and the config.json that `krasis synth` rewrites. The first byte chooses the parser, the rest is the
 * text. An accepted list can be read everywhere; a rewritten config is JSON again. One thread. */
#include "app/synth.h"

#include <krasis/json.h>
#include <string.h>

#define HOLDS(expr) ((expr) ? (void)0 : __builtin_trap())

static void check_list(const ks_synth *s)
{
    ks_tensor t = { .size = sizeof t };
    uint8_t buf[64];
    for (uint64_t i = 0; i < 8 && ks_synth_tensor_at(s, i, &t, NULL) == 0; i++) {
        HOLDS(t.name[0] && t.rank > 0 && t.rank <= KS_MAX_RANK && t.bytes > 0);
        size_t n = t.bytes < sizeof buf ? (size_t)t.bytes : sizeof buf;
        HOLDS(ks_synth_read(s, i, 0, buf, n, NULL) == 0);
        HOLDS(ks_synth_read(s, i, t.bytes - n, buf, n, NULL) == 0);
        HOLDS(ks_synth_read(s, i, t.bytes, buf, 1, NULL) != 0);
    }
}

static void check_json(const ks_buf *b)
{
    ks_json j;
    int t;
    ks_json_init(&j, b->p, b->n, 64);
    while ((t = ks_json_next(&j)) > 0) {
    }
    HOLDS(t == KS_JSON_END);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    ks_err err = { .code = 0 };
    ks_synth *s = NULL;
    ks_buf b;
    bool mxfp4;
    if (n < 2) return 0;
    const char *text = (const char *)data + 1;
    if (data[0] == 'l') {
        int rc = ks_synth_parse("list", text, n - 1, &s, &err);
        HOLDS(rc == 0 ? s != NULL : err.code == rc && err.msg[0] && !s);
        if (s) check_list(s);
        ks_synth_close(s);
        return 0;
    }
    ks_buf_init(&b, 0);
    int rc = ks_synth_config("config.json", text, n - 1, data[0] & 3, data[0] & 4 ? 64 : 0, &b, &mxfp4, &err);
    HOLDS(rc == 0 ? b.n > 0 : err.code == rc && err.msg[0]);
    if (rc == 0) check_json(&b);
    ks_buf_fini(&b);
    return 0;
}
