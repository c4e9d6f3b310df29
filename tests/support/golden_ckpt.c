/* Rebuilds golden checkpoints from manifest.json and reads expected.safetensors. Test code: it shares no line
 * with the loader under test. */
#include "support/golden_ckpt.h"
#include "base/arena.h"
#include "base/base.h"
#include "base/file.h"
#include "base/num.h"
#include "support/st_write.h"
#include <krasis/json.h>

#define MANIFEST_MAX ((size_t)64 << 20)
#define RAW_MAX 4096u

enum { FILL_UNIFORM, FILL_BYTES, FILL_RAW };

typedef struct entry {
    ks_st_tensor t;
    uint32_t fill, mask, add;
    float scale, offset;
    double *raw;
    size_t n_raw;
} entry;

typedef struct manifest {
    ks_arena arena;
    uint64_t seed;
    entry *e;
    size_t n, cap;
} manifest;

static size_t dtype_bytes(const char *s)
{
    static const struct {
        const char *name;
        size_t bytes;
    } rows[] = { { "BF16", 2 }, { "F32", 4 }, { "U8", 1 }, { "F8_E4M3", 1 }, { "I32", 4 }, { "I64", 8 } };
    for (size_t i = 0; i < KS_COUNT(rows); i++)
        if (strcmp(rows[i].name, s) == 0) return rows[i].bytes;
    return 0;
}

static char *dup_token(ks_arena *a, const ks_json *j)
{
    char *s = ks_arena_alloc(a, j->tok_bytes + 1);
    if (s && ks_json_str(j, s, j->tok_bytes + 1, NULL) != 0) s = NULL;
    return s;
}

/* The two numbers after the shape: scale and offset, or mask and add. */
static int read_pair(ks_json *j, double dst[2], int first)
{
    int t = first;
    for (int i = 0; i < 2; i++) {
        if (t != KS_JSON_NUMBER || ks_json_f64(j, &dst[i]) != 0) return KS_E_FORMAT;
        t = ks_json_next(j);
    }
    return t == KS_JSON_ARRAY_END ? 0 : KS_E_FORMAT;
}

static int read_raw(ks_json *j, manifest *m, entry *e)
{
    e->raw = ks_arena_calloc(&m->arena, RAW_MAX, sizeof *e->raw);
    if (!e->raw) return KS_E_NOMEM;
    int t = ks_json_next(j), depth = 0;
    do { /* nested lists are row-major already */
        if (t == KS_JSON_ARRAY) depth++;
        if (t == KS_JSON_ARRAY_END) depth--;
        if (t == KS_JSON_NUMBER && (e->n_raw == RAW_MAX || ks_json_f64(j, &e->raw[e->n_raw++]) != 0))
            return KS_E_FORMAT;
        if (t <= 0) return KS_E_FORMAT;
        t = ks_json_next(j);
    } while (depth > 0);
    return t == KS_JSON_ARRAY_END ? 0 : KS_E_FORMAT;
}

/* [dtype, shape, scale, offset] | [dtype, shape, "bytes", mask, add] | [dtype, shape, "raw", values] */
static int read_entry(ks_json *j, manifest *m, entry *e)
{
    if (ks_json_next(j) != KS_JSON_ARRAY || ks_json_next(j) != KS_JSON_STRING) return KS_E_FORMAT;
    e->t.dtype = dup_token(&m->arena, j);
    if (!e->t.dtype) return KS_E_NOMEM;
    e->t.bytes = dtype_bytes(e->t.dtype);
    int t = ks_json_next(j);
    if (e->t.bytes == 0 || t != KS_JSON_ARRAY) return KS_E_FORMAT;
    while ((t = ks_json_next(j)) == KS_JSON_NUMBER) {
        uint64_t d;
        if (e->t.rank == KS_COUNT(e->t.shape) || ks_json_u64(j, &d) != 0) return KS_E_FORMAT;
        if (!ks_mul_size(e->t.bytes, d, &e->t.bytes)) return KS_E_LIMIT;
        e->t.shape[e->t.rank++] = d;
    }
    double v[2];
    t = ks_json_next(j);
    if (t == KS_JSON_STRING && ks_json_is(j, "raw")) {
        e->fill = FILL_RAW;
        return read_raw(j, m, e);
    }
    if (t == KS_JSON_STRING && ks_json_is(j, "bytes")) {
        e->fill = FILL_BYTES;
        if (read_pair(j, v, ks_json_next(j)) != 0) return KS_E_FORMAT;
        e->mask = (uint32_t)v[0];
        e->add = (uint32_t)v[1];
        return 0;
    }
    if (read_pair(j, v, t) != 0) return KS_E_FORMAT;
    e->scale = (float)v[0];
    e->offset = (float)v[1];
    return 0;
}

static int read_tensors(ks_json *j, manifest *m)
{
    if (ks_json_next(j) != KS_JSON_OBJECT) return KS_E_FORMAT;
    while (ks_json_next(j) == KS_JSON_KEY) {
        if (m->n == m->cap) {
            size_t cap = m->cap ? m->cap * 2 : 256;
            entry *grown = ks_arena_calloc(&m->arena, cap, sizeof *grown);
            if (!grown) return KS_E_NOMEM;
            if (m->n) memcpy(grown, m->e, m->n * sizeof *grown);
            m->e = grown;
            m->cap = cap;
        }
        entry *e = &m->e[m->n++];
        e->t.name = dup_token(&m->arena, j);
        if (!e->t.name) return KS_E_NOMEM;
        int rc = read_entry(j, m, e);
        if (rc != 0) return rc;
    }
    return 0;
}

static int read_manifest(manifest *m, const char *text, size_t n)
{
    ks_json j;
    ks_json_init(&j, text, n, 16);
    if (ks_json_next(&j) != KS_JSON_OBJECT) return KS_E_FORMAT;
    while (ks_json_next(&j) == KS_JSON_KEY) {
        int rc = 0;
        if (ks_json_is(&j, "tensors")) {
            rc = read_tensors(&j, m);
        } else if (ks_json_is(&j, "seed")) {
            rc = ks_json_next(&j) == KS_JSON_NUMBER ? ks_json_u64(&j, &m->seed) : KS_E_FORMAT;
        } else {
            rc = ks_json_skip(&j);
        }
        if (rc != 0) return rc;
    }
    return j.error || m->n == 0 ? KS_E_FORMAT : 0;
}

static uint32_t random24(uint64_t hash, uint64_t i)
{
    uint64_t z = hash + (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (uint32_t)((z ^ (z >> 31)) >> 40);
}

static void fill(const manifest *m, const entry *e, uint8_t *dst)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *c = e->t.name; *c; c++) hash = (hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    hash ^= m->seed;
    if (e->fill == FILL_BYTES) {
        for (size_t i = 0; i < e->t.bytes; i++) dst[i] = (uint8_t)(((random24(hash, i) >> 16) & e->mask) + e->add);
        return;
    }
    size_t width = dtype_bytes(e->t.dtype), n = e->t.bytes / width;
    for (size_t i = 0; i < n; i++) {
        float f = e->fill == FILL_RAW ? (float)e->raw[i]
                                      : ((float)random24(hash, i) / 8388608.0f - 1.0f) * e->scale + e->offset;
        if (width == 2) {
            uint16_t h = ks_f32_to_bf16(f);
            memcpy(dst + i * 2, &h, 2);
        } else if (e->t.dtype[0] == 'F') {
            memcpy(dst + i * 4, &f, 4);
        } else {
            int64_t v = (int64_t)e->raw[i];
            memcpy(dst + i * width, &v, width); /* little end first */
        }
    }
}

static int copy_file(const char *from_dir, const char *to_dir, const char *name, ks_err *err)
{
    char *from = ks_path_join(from_dir, name), *to = ks_path_join(to_dir, name), *text = NULL;
    size_t n = 0;
    int rc = from && to ? ks_file_read(from, MANIFEST_MAX, &text, &n, err) : ks_fail(err, KS_E_NOMEM, "out of memory");
    if (rc == 0) rc = ks_file_write(to, text, n, err);
    free(text);
    free(from);
    free(to);
    return rc;
}

int ks_golden_write(const char *golden_dir, const char *out_dir, ks_err *err)
{
    manifest m = { .n = 0 };
    ks_arena_init(&m.arena, 0);
    char *path = ks_path_join(golden_dir, "manifest.json"), *out = ks_path_join(out_dir, "model.safetensors");
    char *text = NULL;
    ks_st_tensor *t = NULL;
    size_t n = 0;
    int rc = path && out ? ks_file_read(path, MANIFEST_MAX, &text, &n, err) : ks_fail(err, KS_E_NOMEM, "out of memory");
    if (rc != 0) goto done;
    rc = read_manifest(&m, text, n);
    if (rc != 0) {
        rc = ks_fail(err, rc, "'%s' is not a golden manifest as tests/golden/README.md defines it", path);
        goto done;
    }
    rc = KS_E_NOMEM;
    t = ks_calloc(m.n, sizeof *t);
    if (!t) goto done;
    for (size_t i = 0; i < m.n; i++) {
        uint8_t *data = ks_arena_alloc(&m.arena, m.e[i].t.bytes);
        size_t width = dtype_bytes(m.e[i].t.dtype);
        if (!data) goto done;
        if ((m.e[i].fill == FILL_RAW && m.e[i].n_raw * width != m.e[i].t.bytes) ||
            (m.e[i].fill == FILL_UNIFORM && strcmp(m.e[i].t.dtype, "BF16") != 0 &&
             strcmp(m.e[i].t.dtype, "F32") != 0)) {
            rc = ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s' cannot be filled", path, m.e[i].t.name);
            goto done;
        }
        fill(&m, &m.e[i], data);
        t[i] = m.e[i].t;
        t[i].data = data;
    }
    rc = ks_mkdirs(out_dir, err);
    if (rc == 0) rc = ks_st_write(out, t, m.n, err);
    if (rc == 0) rc = copy_file(golden_dir, out_dir, "config.json", err);
done:
    if (rc == KS_E_NOMEM) (void)ks_fail(err, rc, "out of memory");
    free(t);
    free(text);
    free(path);
    free(out);
    ks_arena_fini(&m.arena);
    return rc;
}

/* ---- expected.safetensors */

typedef struct part {
    char name[32];
    uint64_t shape[4], begin, end;
    uint32_t rank;
    bool is_int;
} part;

static int read_part(ks_json *j, part *p)
{
    if (ks_json_str(j, p->name, sizeof p->name, NULL) != 0 || ks_json_next(j) != KS_JSON_OBJECT) return KS_E_FORMAT;
    while (ks_json_next(j) == KS_JSON_KEY) {
        bool shape = ks_json_is(j, "shape"), offsets = ks_json_is(j, "data_offsets"), dtype = ks_json_is(j, "dtype");
        int t = ks_json_next(j);
        if (dtype) p->is_int = t == KS_JSON_STRING && ks_json_is(j, "I32");
        if ((!shape && !offsets) || t != KS_JSON_ARRAY) continue;
        uint64_t v[4];
        uint32_t n = 0;
        while (ks_json_next(j) == KS_JSON_NUMBER)
            if (n == 4 || ks_json_u64(j, &v[n++]) != 0) return KS_E_FORMAT;
        if (shape) {
            memcpy(p->shape, v, sizeof v);
            p->rank = n;
        } else {
            if (n != 2) return KS_E_FORMAT;
            p->begin = v[0];
            p->end = v[1];
        }
    }
    return 0;
}

/* Where the part lies, after its size was held against its shape and the file. */
static const void *part_data(const part *p, uint32_t rank, bool is_int, const char *data, size_t n)
{
    uint64_t elems = 1;
    if (p->rank != rank || p->is_int != is_int || p->end > n || p->begin > p->end || p->begin % 4 != 0) return NULL;
    for (uint32_t i = 0; i < rank; i++) elems *= p->shape[i] < UINT16_MAX ? p->shape[i] : 0;
    return elems != 0 && elems * 4 == p->end - p->begin ? data + p->begin : NULL;
}

static int take_part(ks_golden *g, const part *p, const char *data, size_t n)
{
    if (strcmp(p->name, "ids") == 0) {
        g->ids = part_data(p, 1, true, data, n);
        g->n_tok = (uint32_t)p->shape[0];
        return g->ids ? 0 : KS_E_FORMAT;
    }
    if (strcmp(p->name, "logits") == 0) {
        g->logits = part_data(p, 2, false, data, n);
        g->n_vocab = (uint32_t)p->shape[1];
        return g->logits ? 0 : KS_E_FORMAT;
    }
    if (strcmp(p->name, "hidden") == 0) {
        g->hidden = part_data(p, 3, false, data, n);
        g->n_taps = (uint32_t)p->shape[0];
        g->d_model = (uint32_t)p->shape[2];
        return g->hidden ? 0 : KS_E_FORMAT;
    }
    if (strcmp(p->name, "greedy") == 0) {
        g->greedy = part_data(p, 1, true, data, n);
        g->n_greedy = (uint32_t)p->shape[0];
        return g->greedy ? 0 : KS_E_FORMAT;
    }
    if (strcmp(p->name, "greedy_margin") == 0) {
        g->greedy_margin = part_data(p, 1, false, data, n);
        return g->greedy_margin ? 0 : KS_E_FORMAT;
    }
    return 0;
}

int ks_golden_expected(const char *golden_dir, ks_golden *ret, ks_err *err)
{
    ks_golden g = { .n_tok = 0 };
    char *path = ks_path_join(golden_dir, "expected.safetensors"), *file = NULL;
    size_t n = 0;
    int rc = path ? ks_file_read(path, MANIFEST_MAX, &file, &n, err) : ks_fail(err, KS_E_NOMEM, "out of memory");
    if (rc != 0) goto done;
    g.mem = file;
    uint64_t head = 0;
    if (n >= 8) memcpy(&head, file, 8);
    rc = n >= 8 && head <= n - 8 && head % 8 == 0 ? 0 : KS_E_FORMAT;
    ks_json j;
    if (rc == 0) {
        ks_json_init(&j, file + 8, head, 16);
        rc = ks_json_next(&j) == KS_JSON_OBJECT ? 0 : KS_E_FORMAT;
    }
    while (rc == 0 && ks_json_next(&j) == KS_JSON_KEY) {
        if (ks_json_is(&j, "__metadata__")) {
            rc = ks_json_skip(&j);
            continue;
        }
        part p = { .rank = 0 };
        rc = read_part(&j, &p);
        if (rc == 0) rc = take_part(&g, &p, file + 8 + head, n - 8 - head);
    }
    if (rc == 0 && (j.error || !g.ids || !g.logits || !g.greedy || !g.greedy_margin)) rc = KS_E_FORMAT;
    if (rc != 0) {
        rc = ks_fail(err, rc, "'%s' is not a golden result as tests/golden/README.md defines it", path);
        goto done;
    }
    *ret = g;
    file = NULL;
done:
    free(file);
    free(path);
    return rc;
}

void ks_golden_fini(ks_golden *g)
{
    if (!g) return;
    free(g->mem);
    memset(g, 0, sizeof *g);
}
