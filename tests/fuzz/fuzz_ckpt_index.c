/* The shard index and quantization_config: an accepted index is sorted, unique, and leads nowhere else. The first
 * byte chooses the parser, the rest is the text. One thread. */
#include "store/index.h"
#include "store/source.h"

#define HOLDS(expr) ((expr) ? (void)0 : __builtin_trap())

static void check(const ks_index *x)
{
    HOLDS(x->n_entries > 0 && x->n_shards > 0);
    for (uint32_t i = 0; i < x->n_shards; i++) {
        HOLDS(x->shards[i][0] && !strchr(x->shards[i], '/') && strcmp(x->shards[i], "..") != 0);
        HOLDS(i == 0 || strcmp(x->shards[i - 1], x->shards[i]) < 0);
    }
    for (size_t i = 0; i < x->n_entries; i++) {
        HOLDS(x->entries[i].tensor[0] && x->entries[i].shard < x->n_shards);
        HOLDS(i == 0 || strcmp(x->entries[i - 1].tensor, x->entries[i].tensor) < 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    ks_index x = { .n_entries = 0 };
    ks_qconf q;
    ks_err err = { .code = 0 };
    if (n == 0) return 0;
    const char *text = (const char *)data + 1;
    if (data[0] == 'q') {
        int rc = ks__qconf_parse("config.json", text, n - 1, &q, &err);
        HOLDS(rc == 0 ? q.scheme <= KS_SCHEME_AWQ : err.code == rc && err.msg[0]);
        return 0;
    }
    int rc = ks__index_parse("index", text, n - 1, &x, &err);
    HOLDS(rc == 0 ? x.entries != NULL : err.code == rc && err.msg[0] && !x.entries);
    if (rc == 0) check(&x);
    ks__index_fini(&x);
    return 0;
}
