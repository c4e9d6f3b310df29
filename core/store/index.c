/* Parses model.safetensors.index.json. */
#include "store/index.h"
#include "base/base.h"
#include <krasis/json.h>

#define DEPTH_MAX 32u /* `metadata` may hold anything */
#define TENSORS_MAX ((size_t)1 << 22)
#define SHARDS_MAX 100000u

typedef struct row {
    const char *tensor, *shard;
} row;

typedef struct parser {
    const char *path;
    ks_json j;
    row *rows;
    size_t n, cap;
    char *mem;
    size_t mem_n;
} parser;

static int bad_json(parser *p, ks_err *err)
{
    (void)ks_json_fail(&p->j, err, "index");
    (void)ks_err_wrap(err, p->path);
    return KS_E_FORMAT;
}

static int take_string(parser *p, const char **ret, ks_err *err)
{
    char *dst = p->mem + p->mem_n; /* never more than the text has bytes */
    size_t n = 0;
    if (ks_json_str(&p->j, dst, p->j.tok_bytes + 1, &n) != 0 || n == 0 || memchr(dst, 0, n))
        return ks_fail(err, KS_E_FORMAT, "'%s': a name is empty or holds U+0000", p->path);
    p->mem_n += n + 1;
    *ret = dst;
    return 0;
}

/* A shard lies beside its index: anything that could lead elsewhere is refused. */
static int check_shard(const parser *p, const char *name, ks_err *err)
{
    if (strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strlen(name) > 255)
        return ks_fail(err, KS_E_FORMAT, "'%s': shard name '%.80s' is not a plain file name", p->path, name);
    return 0;
}

static int read_map(parser *p, ks_err *err)
{
    int t = ks_json_next(&p->j);
    if (t == KS_JSON_ERROR) return bad_json(p, err);
    if (t != KS_JSON_OBJECT) return ks_fail(err, KS_E_FORMAT, "'%s': weight_map is not an object", p->path);
    while ((t = ks_json_next(&p->j)) == KS_JSON_KEY) {
        if (p->n == p->cap) {
            size_t cap = p->cap ? p->cap * 2 : 1024;
            row *rows = cap <= TENSORS_MAX ? realloc(p->rows, cap * sizeof *rows) : NULL;
            if (!rows)
                return cap > TENSORS_MAX
                           ? ks_fail(err, KS_E_LIMIT, "'%s' names more than %zu tensors", p->path, TENSORS_MAX)
                           : ks_fail(err, KS_E_NOMEM, "'%s': out of memory", p->path);
            p->rows = rows;
            p->cap = cap;
        }
        row *r = &p->rows[p->n];
        int rc = take_string(p, &r->tensor, err);
        if (rc != 0) return rc;
        t = ks_json_next(&p->j);
        if (t == KS_JSON_ERROR) return bad_json(p, err);
        if (t != KS_JSON_STRING)
            return ks_fail(err, KS_E_FORMAT, "'%s': the shard of tensor '%s' is not a string", p->path, r->tensor);
        rc = take_string(p, &r->shard, err);
        if (rc == 0) rc = check_shard(p, r->shard, err);
        if (rc != 0) return rc;
        p->n++;
    }
    return t == KS_JSON_ERROR ? bad_json(p, err) : 0;
}

static int read_all(parser *p, ks_err *err)
{
    bool seen = false;
    int t = ks_json_next(&p->j);
    if (t == KS_JSON_ERROR) return bad_json(p, err);
    if (t != KS_JSON_OBJECT) return ks_fail(err, KS_E_FORMAT, "'%s' is not an object", p->path);
    while ((t = ks_json_next(&p->j)) == KS_JSON_KEY) {
        if (!ks_json_is(&p->j, "weight_map")) {
            if (ks_json_skip(&p->j) != 0) return bad_json(p, err);
            continue;
        }
        if (seen) return ks_fail(err, KS_E_FORMAT, "'%s' has two weight_maps", p->path);
        seen = true;
        int rc = read_map(p, err);
        if (rc != 0) return rc;
    }
    if (t == KS_JSON_ERROR || ks_json_next(&p->j) != KS_JSON_END) return bad_json(p, err);
    if (p->n == 0) return ks_fail(err, KS_E_FORMAT, "'%s' has no weight_map, or an empty one", p->path);
    return 0;
}

static int by_shard(const void *a, const void *b)
{
    int c = strcmp(((const row *)a)->shard, ((const row *)b)->shard);
    return c ? c : strcmp(((const row *)a)->tensor, ((const row *)b)->tensor);
}

static int by_tensor(const void *a, const void *b)
{
    return strcmp(((const ks_index_entry *)a)->tensor, ((const ks_index_entry *)b)->tensor);
}

/* Numbers the shards in the order of their names, then sorts the tensors. */
static int build(parser *p, ks_index *x, ks_err *err)
{
    qsort(p->rows, p->n, sizeof *p->rows, by_shard);
    size_t n_shards = 1;
    for (size_t i = 1; i < p->n; i++) n_shards += strcmp(p->rows[i].shard, p->rows[i - 1].shard) != 0;
    if (n_shards > SHARDS_MAX)
        return ks_fail(err, KS_E_LIMIT, "'%s' names %zu shards, allowed are %u", p->path, n_shards, SHARDS_MAX);
    x->entries = ks_calloc(p->n, sizeof *x->entries);
    x->shards = ks_calloc(n_shards, sizeof *x->shards);
    if (!x->entries || !x->shards) return ks_fail(err, KS_E_NOMEM, "'%s': out of memory", p->path);
    for (size_t i = 0; i < p->n; i++) {
        if (i == 0 || strcmp(p->rows[i].shard, p->rows[i - 1].shard) != 0) x->shards[x->n_shards++] = p->rows[i].shard;
        x->entries[i] = (ks_index_entry) { p->rows[i].tensor, x->n_shards - 1 };
    }
    x->n_entries = p->n;
    qsort(x->entries, x->n_entries, sizeof *x->entries, by_tensor);
    for (size_t i = 1; i < x->n_entries; i++)
        if (strcmp(x->entries[i].tensor, x->entries[i - 1].tensor) == 0)
            return ks_fail(err, KS_E_FORMAT, "'%s' names tensor '%s' twice", p->path, x->entries[i].tensor);
    return 0;
}

int ks__index_parse(const char *path, const char *text, size_t n, ks_index *ret, ks_err *err)
{
    parser p = { .path = path };
    ks_index x = { .n_entries = 0 };
    ks_json_init(&p.j, text, n, DEPTH_MAX);
    p.mem = malloc(n + 1);
    int rc = p.mem ? read_all(&p, err) : ks_fail(err, KS_E_NOMEM, "'%s': out of memory", path);
    if (rc == 0) rc = build(&p, &x, err);
    x.mem = p.mem;
    free(p.rows);
    if (rc == 0)
        *ret = x;
    else
        ks__index_fini(&x);
    return rc;
}

void ks__index_fini(ks_index *x)
{
    if (!x) return;
    free(x->entries);
    free(x->shards);
    free(x->mem);
    memset(x, 0, sizeof *x);
}
