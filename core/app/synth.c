/* The folder of a synthetic model: config.json, and either model.synth or safetensors. See synth.h. */
#include "app/synth.h"
#include "base/base.h"
#include "base/file.h"
#include "base/log.h"
#include "graph/shape.h"
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONFIG_MAX ((size_t)16 << 20)

typedef struct made {
    ks_buf config, list; /* config.json; model.synth */
    ks_synth *synth;     /* of list */
} made;

static int describe(const ks_synth_opts *o, made *m, ks_err *err)
{
    ks_arena arena;
    ks_synth_tensor *t;
    size_t n = 0, n_t;
    uint32_t group = 0;
    char *text = NULL;
    bool mxfp4 = false;
    ks_shape_opts so = { .route_skew = o->route_skew };
    ks_arena_init(&arena, 0);
    int rc = ks_file_read(o->config, CONFIG_MAX, &text, &n, err);
    if (!rc) rc = ks_synth_config(o->config, text, n, o->layers, 0, &m->config, &mxfp4, err);
    so.experts = mxfp4 ? KS_SHAPE_MXFP4 : o->quantized ? KS_SHAPE_INT4 : KS_SHAPE_BF16;
    if (!rc) {
        rc = ks_model_shape(m->config.p, m->config.n, &so, &arena, &t, &n_t, &group, err);
        if (rc) ks_err_wrap(err, o->config);
    }
    if (!rc && group) { /* the same text once more, with how the experts are packed */
        m->config.n = 0;
        rc = ks_synth_config(o->config, text, n, o->layers, group, &m->config, &mxfp4, err);
    }
    if (!rc) rc = ks_synth_write(t, n_t, o->seed, &m->list, err);
    if (!rc) rc = ks_synth_parse(KS_SYNTH_FILE, m->list.p, m->list.n, &m->synth, err);
    ks_arena_fini(&arena);
    free(text);
    return rc;
}

static int write_into(const char *dir, const char *name, const ks_buf *b, ks_err *err)
{
    char *path = ks_path_join(dir, name);
    int rc = path ? ks_file_write(path, b->p, b->n, err) : ks_fail(err, KS_E_NOMEM, "out of memory for a path");
    free(path);
    return rc;
}

static void remove_from(const char *dir, const char *name)
{
    char *path = ks_path_join(dir, name);
    if (path) (void)unlink(path); /* clearing up after a failure that is told */
    free(path);
}

static int fill(const ks_synth_opts *o, const made *m, const char *dir, ks_err *err)
{
    int rc = write_into(dir, "config.json", &m->config, err);
    if (!rc && o->quantized) rc = write_into(dir, KS_SYNTH_FILE, &m->list, err);
    if (!rc && !o->quantized) rc = ks_synth_shards(m->synth, dir, o->shard_bytes, o->pool, err);
    return rc;
}

static int make_dir(const ks_synth_opts *o, const made *m, ks_err *err)
{
    size_t n = strlen(o->output);
    while (n > 1 && o->output[n - 1] == '/') n--;
    char *dir = strndup(o->output, n), *part = malloc(n + 16);
    int rc = dir && part ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for a path");
    struct stat st;
    if (!rc && lstat(dir, &st) == 0)
        rc = ks_fail(err, KS_E_CONFIG, "--output '%s' exists already: remove it, or give another name", dir);
    if (!rc) {
        (void)snprintf(part, n + 16, "%s.XXXXXX", dir);
        if (!mkdtemp(part) || chmod(part, 0755) != 0)
            rc = ks_fail(err, errno == ENOENT ? KS_E_CONFIG : KS_E_IO, "cannot make the folder '%s': %s", dir,
                         strerror(errno));
        else if (!(rc = fill(o, m, part, err)) && rename(part, dir) != 0)
            rc = ks_fail(err, KS_E_IO, "cannot rename '%s' to '%s': %s", part, dir, strerror(errno));
        if (rc) {
            remove_from(part, "config.json");
            remove_from(part, KS_SYNTH_FILE);
            remove_from(part, "model.safetensors.index.json");
            (void)rmdir(part); /* the shards removed themselves */
        }
    }
    free(dir);
    free(part);
    return rc;
}

int ks_synth_make(const ks_synth_opts *o, ks_err *err)
{
    made m = { .synth = NULL };
    ks_buf_init(&m.config, 0);
    ks_buf_init(&m.list, 0);
    int rc = describe(o, &m, err);
    if (!rc) rc = make_dir(o, &m, err);
    ks_synth_close(m.synth);
    ks_buf_fini(&m.config);
    ks_buf_fini(&m.list);
    return rc;
}
