/* model.synth: reading, writing, and the numbers. The file is JSON:
 *
 *   {"krasis_synth": 1, "seed": 1, "tensors": [
 *     {"name": "model.norm.weight", "type": "bf16", "shape": [2048], "mean": 1, "std": 0, ...}, ...]} */
#include "store/synth.h"
#include "base/base.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/num.h"
#include <inttypes.h>
#include <krasis/json.h>
#include <krasis/version.h>
#include <math.h>

#define MAGIC "{\"krasis_synth\":1,"
#define FILE_MAX ((size_t)256 << 20)
#define NAME_MAX_BYTES 512u
#define BELL_BITS 12u
#define BELL_N (1u << BELL_BITS)
#define BELLS_MAX 256u       /* different pairs of mean and deviation; a model needs about ten */
#define RANKS_MAX (1u << 22) /* of all routers; a thousand layers of 512 experts have an eighth */
#define PIECE 512u           /* elements made at once, a multiple of 4 */

/* The quantiles of one normal distribution: a number is one of them, drawn evenly. */
typedef struct bell {
    float mean, std;
    uint16_t q[BELL_N];
} bell;

typedef struct item {
    ks_synth_tensor t; /* name: in the text's copy */
    uint64_t seed, bytes, rows, cols;
    const bell *bell;
    uint32_t *rank; /* (rows) of zipf: 1 .. rows */
} item;

struct ks_synth {
    char *path;
    char *names; /* back to back */
    size_t names_n;
    item *items;
    size_t n, cap;
    bell *bells[BELLS_MAX];
    uint32_t n_bells;
    float unit[BELL_N]; /* quantiles of the standard normal distribution, from the first bell on */
    uint64_t seed, n_ranks;
};

/* ---- writing */

int ks_synth_write(const ks_synth_tensor *t, size_t n, uint64_t seed, ks_buf *dst, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_bytes(&w, MAGIC, strlen(MAGIC));
    ks_jw_key(&w, "seed");
    ks_jw_u64(&w, seed);
    ks_jw_key(&w, "tensors");
    ks_jw_array(&w);
    for (size_t i = 0; i < n; i++, t++) {
        const struct {
            const char *key;
            float v;
            bool set;
        } laws[] = { { "mean", t->mean, t->mean != 0 },
                     { "std", t->std, t->std != 0 },
                     { "row0", t->row0, t->has_row0 },
                     { "col0", t->col0, t->has_col0 },
                     { "zipf", t->zipf, t->zipf != 0 } };
        ks_jw_bytes(&w, i ? ",\n" : "\n", i ? 2 : 1);
        w.comma = false;
        ks_jw_object(&w);
        ks_jw_key(&w, "name");
        ks_jw_str(&w, t->name);
        ks_jw_key(&w, "type");
        ks_jw_str(&w, ks_type_name(t->type));
        ks_jw_key(&w, "shape");
        ks_jw_array(&w);
        for (uint32_t d = 0; d < t->rank; d++) ks_jw_u64(&w, t->shape[d]);
        ks_jw_array_end(&w);
        for (size_t k = 0; k < KS_COUNT(laws); k++) {
            if (!laws[k].set) continue;
            ks_jw_key(&w, laws[k].key);
            ks_jw_f32(&w, laws[k].v);
        }
        ks_jw_object_end(&w);
    }
    ks_jw_array_end(&w);
    ks_jw_bytes(&w, "}\n", 2);
    int rc = ks_jw_done(&w) ? ks_fail(err, KS_E_NOMEM, "out of memory for a list of %zu tensors", n) : 0;
    if (!rc) ks_buf_add(dst, w.text, w.n);
    ks_jw_fini(&w);
    return rc || !dst->failed ? rc : ks_fail(err, KS_E_NOMEM, "out of memory for a list of %zu tensors", n);
}

/* ---- reading */

static int bad_json(const ks_synth *s, const ks_json *j, ks_err *err)
{
    int rc = ks_json_fail(j, err, "list of tensors");
    ks_err_wrap(err, s->path);
    return rc;
}

/* The next token must be of kind `want`. */
static int expect(ks_synth *s, ks_json *j, int want, const char *what, ks_err *err)
{
    int t = ks_json_next(j);
    if (t == want) return 0;
    return t == KS_JSON_ERROR ? bad_json(s, j, err) : ks_fail(err, KS_E_FORMAT, "'%s': %s expected", s->path, what);
}

static uint32_t type_of(const ks_json *j)
{
    static const uint32_t types[] = { KS_T_BF16, KS_T_U8, KS_T_I32 };
    for (size_t i = 0; i < KS_COUNT(types); i++)
        if (ks_json_is(j, ks_type_name(types[i]))) return types[i];
    return 0;
}

static int read_shape(ks_synth *s, ks_json *j, ks_synth_tensor *t, ks_err *err)
{
    int rc = expect(s, j, KS_JSON_ARRAY, "a shape", err), k;
    if (rc) return rc;
    while ((k = ks_json_next(j)) == KS_JSON_NUMBER) {
        if (t->rank == KS_MAX_RANK || ks_json_u64(j, &t->shape[t->rank]) || !t->shape[t->rank])
            return ks_fail(err, KS_E_FORMAT, "'%s': a shape is up to %d numbers, each at least 1", s->path,
                           KS_MAX_RANK);
        t->rank++;
    }
    if (k == KS_JSON_ERROR) return bad_json(s, j, err);
    return k == KS_JSON_ARRAY_END ? 0 : ks_fail(err, KS_E_FORMAT, "'%s': a shape holds numbers", s->path);
}

static int read_number(ks_synth *s, ks_json *j, float *ret, ks_err *err)
{
    double v;
    int rc = expect(s, j, KS_JSON_NUMBER, "a number", err);
    if (rc) return rc;
    if (ks_json_f64(j, &v) || fabs(v) > 1e30)
        return ks_fail(err, KS_E_FORMAT, "'%s': '%.*s' is out of range", s->path, (int)KS_MIN(j->tok_bytes, (size_t)40),
                       j->tok);
    *ret = (float)v;
    return 0;
}

static int read_name(ks_synth *s, ks_json *j, ks_synth_tensor *t, ks_err *err)
{
    size_t n;
    int rc = expect(s, j, KS_JSON_STRING, "a name", err);
    if (rc) return rc;
    char *at = s->names + s->names_n; /* never more than the text has bytes */
    if (j->tok_bytes > NAME_MAX_BYTES || ks_json_str(j, at, j->tok_bytes + 1, &n) || !n || memchr(at, 0, n))
        return ks_fail(err, KS_E_FORMAT, "'%s': a name is 1 to %u bytes without U+0000", s->path, NAME_MAX_BYTES);
    s->names_n += n + 1;
    t->name = at;
    return 0;
}

static int read_field(ks_synth *s, ks_json *j, ks_synth_tensor *t, ks_err *err)
{
    if (ks_json_is(j, "name")) return read_name(s, j, t, err);
    if (ks_json_is(j, "shape") && t->rank == 0) return read_shape(s, j, t, err);
    if (ks_json_is(j, "mean")) return read_number(s, j, &t->mean, err);
    if (ks_json_is(j, "std")) return read_number(s, j, &t->std, err);
    if (ks_json_is(j, "zipf")) return read_number(s, j, &t->zipf, err);
    if (ks_json_is(j, "row0")) return t->has_row0 = true, read_number(s, j, &t->row0, err);
    if (ks_json_is(j, "col0")) return t->has_col0 = true, read_number(s, j, &t->col0, err);
    if (ks_json_is(j, "type")) {
        int rc = expect(s, j, KS_JSON_STRING, "a type", err);
        if (rc) return rc;
        t->type = type_of(j);
        return t->type ? 0
                       : ks_fail(err, KS_E_FORMAT, "'%s': type '%.*s': bf16, u8 and i32 are known", s->path,
                                 (int)KS_MIN(j->tok_bytes, (size_t)40), j->tok);
    }
    return ks_fail(err, KS_E_FORMAT, "'%s': unknown or repeated field '%.*s'", s->path,
                   (int)KS_MIN(j->tok_bytes, (size_t)40), j->tok);
}

/* Sizes, all held against overflow. */
static int measure(const ks_synth *s, item *it, ks_err *err)
{
    const ks_synth_tensor *t = &it->t;
    if (!t->name || !t->type || !t->rank)
        return ks_fail(err, KS_E_FORMAT, "'%s': a tensor needs name, type and shape", s->path);
    it->bytes = ks_type_bits(t->type) / 8;
    for (uint32_t d = 0; d < t->rank; d++)
        if (__builtin_mul_overflow(it->bytes, t->shape[d], &it->bytes) || it->bytes > (uint64_t)INT64_MAX)
            return ks_fail(err, KS_E_LIMIT, "'%s': tensor '%s' is too large", s->path, t->name);
    it->cols = t->rank > 1 ? t->shape[t->rank - 1] : 1;
    it->rows = t->rank > 1 ? t->shape[t->rank - 2] : t->shape[0];
    if (t->type != KS_T_BF16 &&
        (t->has_col0 || t->zipf != 0 || t->mean < 0 || t->mean > 255 || t->row0 < 0 || t->row0 > 255))
        return ks_fail(err, KS_E_FORMAT,
                       "'%s': tensor '%s' is made of bytes: mean and row0 are 0 to 255, no col0, zipf", s->path,
                       t->name);
    if (t->zipf != 0 && (t->col0 == 0 || it->rows > 65536))
        return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s': zipf needs a col0 that is not 0, and at most 65536 rows",
                       s->path, t->name);
    return 0;
}

/* Quantiles by bisection of the error function: some milliseconds, once a file. */
static void make_unit(float unit[BELL_N])
{
    for (uint32_t i = 0; i < BELL_N; i++) {
        double p = (i + 0.5) / BELL_N, lo = -6, hi = 6;
        for (int k = 0; k < 40; k++) {
            double mid = (lo + hi) / 2;
            if (0.5 * erfc(-mid * M_SQRT1_2) < p)
                lo = mid;
            else
                hi = mid;
        }
        unit[i] = (float)lo;
    }
}

static int find_bell(ks_synth *s, item *it, ks_err *err)
{
    const ks_synth_tensor *t = &it->t;
    for (uint32_t i = 0; i < s->n_bells && !it->bell; i++)
        if (s->bells[i]->mean == t->mean && s->bells[i]->std == t->std) it->bell = s->bells[i];
    if (it->bell) return 0;
    if (s->n_bells == BELLS_MAX)
        return ks_fail(err, KS_E_LIMIT, "'%s' has more than %u pairs of mean and std", s->path, BELLS_MAX);
    if (!s->n_bells) make_unit(s->unit);
    bell *b = malloc(sizeof *b);
    if (!b) return ks_fail(err, KS_E_NOMEM, "'%s': out of memory", s->path);
    b->mean = t->mean;
    b->std = t->std;
    for (uint32_t i = 0; i < BELL_N; i++) b->q[i] = ks_f32_to_bf16(t->mean + t->std * s->unit[i]);
    it->bell = s->bells[s->n_bells++] = b;
    return 0;
}

typedef struct lot {
    uint64_t key;
    uint32_t row;
} lot;

static int by_key(const void *a, const void *b)
{
    const lot *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

static int draw_ranks(ks_synth *s, item *it, ks_err *err)
{
    uint64_t state = ~it->seed;
    s->n_ranks += it->rows;
    if (s->n_ranks > RANKS_MAX)
        return ks_fail(err, KS_E_LIMIT, "'%s' has more than %u rows with a zipf", s->path, RANKS_MAX);
    lot *lots = ks_calloc(it->rows, sizeof *lots);
    it->rank = ks_calloc(it->rows, sizeof *it->rank);
    for (uint32_t r = 0; lots && r < it->rows; r++) lots[r] = (lot) { ks_splitmix64(&state), r };
    if (lots && it->rank) {
        qsort(lots, it->rows, sizeof *lots, by_key);
        for (uint32_t r = 0; r < it->rows; r++) it->rank[lots[r].row] = r + 1;
    }
    free(lots);
    return lots && it->rank ? 0 : ks_fail(err, KS_E_NOMEM, "'%s': out of memory", s->path);
}

static int read_item(ks_synth *s, ks_json *j, ks_err *err)
{
    int rc, k;
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 256; /* bounded by the text's bytes */
        item *grown = realloc(s->items, cap * sizeof *grown);
        if (!grown) return ks_fail(err, KS_E_NOMEM, "'%s': out of memory for %zu tensors", s->path, cap);
        s->items = grown;
        s->cap = cap;
    }
    item *it = &s->items[s->n];
    *it = (item) { .t = { .name = NULL } };
    while ((k = ks_json_next(j)) == KS_JSON_KEY)
        if ((rc = read_field(s, j, &it->t, err))) return rc;
    if (k == KS_JSON_ERROR) return bad_json(s, j, err);
    if ((rc = measure(s, it, err))) return rc;
    it->seed = ks_hash64(it->t.name, strlen(it->t.name), s->seed);
    s->n++; /* from here on it owns memory */
    if (it->t.type == KS_T_BF16) rc = find_bell(s, it, err);
    if (!rc && it->t.zipf != 0) rc = draw_ranks(s, it, err);
    return rc;
}

static int read_all(ks_synth *s, ks_json *j, ks_err *err)
{
    int rc, k;
    if ((rc = expect(s, j, KS_JSON_OBJECT, "an object", err))) return rc;
    while ((k = ks_json_next(j)) == KS_JSON_KEY) {
        if (ks_json_is(j, "krasis_synth")) {
            uint64_t version;
            if ((rc = expect(s, j, KS_JSON_NUMBER, "a number", err))) return rc;
            if (ks_json_u64(j, &version) || version != 1)
                return ks_fail(err, KS_E_UNSUPPORTED, "'%s' is of another version than 1: make it anew", s->path);
        } else if (ks_json_is(j, "seed") && s->n == 0) {
            if ((rc = expect(s, j, KS_JSON_NUMBER, "a number", err))) return rc;
            if (ks_json_u64(j, &s->seed)) return ks_fail(err, KS_E_FORMAT, "'%s': seed: a whole number", s->path);
        } else if (ks_json_is(j, "tensors") && s->n == 0) {
            if ((rc = expect(s, j, KS_JSON_ARRAY, "a list", err))) return rc;
            while ((k = ks_json_next(j)) == KS_JSON_OBJECT)
                if ((rc = read_item(s, j, err))) return rc;
            if (k == KS_JSON_ERROR) return bad_json(s, j, err);
            if (k != KS_JSON_ARRAY_END) return ks_fail(err, KS_E_FORMAT, "'%s': a tensor is an object", s->path);
        } else {
            return ks_fail(err, KS_E_FORMAT, "'%s': unknown, repeated or late field '%.*s'", s->path,
                           (int)KS_MIN(j->tok_bytes, (size_t)40), j->tok);
        }
    }
    if (k == KS_JSON_OBJECT_END) k = ks_json_next(j);
    return k == KS_JSON_END ? 0 : bad_json(s, j, err);
}

int ks_synth_parse(const char *path, const char *text, size_t n, ks_synth **ret, ks_err *err)
{
    ks_json j;
    ks_synth *s = ks_calloc(1, sizeof *s);
    if (s) {
        s->path = ks_strdup(path);
        s->names = malloc(n + 1);
    }
    int rc = s && s->path && s->names ? 0 : ks_fail(err, KS_E_NOMEM, "'%s': out of memory", path);
    if (!rc) {
        ks_json_init(&j, text, n, 8);
        rc = read_all(s, &j, err);
    }
    if (rc)
        ks_synth_close(s);
    else
        *ret = s;
    return rc;
}

void ks_synth_close(ks_synth *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->n; i++) free(s->items[i].rank);
    for (uint32_t i = 0; i < s->n_bells; i++) free(s->bells[i]);
    free(s->items);
    free(s->names);
    free(s->path);
    free(s);
}

int ks_synth_tensor_at(const ks_synth *s, uint64_t i, ks_tensor *ret, ks_err *err)
{
    if (i >= s->n) return ks_fail(err, KS_E_NOTFOUND, "'%s' has %zu tensors", s->path, s->n);
    const item *it = &s->items[i];
    ret->type = it->t.type;
    ret->name = it->t.name;
    ret->rank = it->t.rank;
    memcpy(ret->shape, it->t.shape, sizeof ret->shape);
    ret->bytes = it->bytes;
    return 0;
}

/* ---- the numbers */

/* The k-th 64 random bits of a tensor, from which 4 numbers of bf16 or 8 bytes are made. */
static uint64_t draw(const item *it, uint64_t k)
{
    uint64_t state = it->seed + k * UINT64_C(0x9E3779B97F4A7C15);
    return ks_splitmix64(&state);
}

/* Elements [e, e + n) of a bf16 tensor; e and n are multiples of 4. */
static void make_floats(const item *it, uint64_t e, uint32_t n, uint16_t *dst)
{
    const uint16_t *q = it->bell->q;
    for (uint32_t i = 0; i < n; i += 4) {
        uint64_t h = draw(it, (e + i) / 4);
        for (uint32_t k = 0; k < 4; k++) dst[i + k] = q[h >> 16 * k & (BELL_N - 1)];
    }
    if (it->t.has_col0)
        for (uint64_t r = e / it->cols + (e % it->cols != 0); r * it->cols < e + n; r++) {
            float v = it->t.col0;
            if (it->rank) v = -it->t.zipf * logf((float)it->rank[r % it->rows]) / v;
            dst[r * it->cols - e] = ks_f32_to_bf16(v);
        }
    for (uint32_t i = 0; it->t.has_row0 && i < n; i++)
        if ((e + i) / it->cols % it->rows == 0) dst[i] = ks_f32_to_bf16(it->t.row0);
}

/* Every nibble that is 0 becomes 8: codes of 4 bits, less 8, then have the mean 0. With a mean of -1/2 every row of
 * every matrix would share a component, and soon all activations. */
static uint64_t even_nibbles(uint64_t h)
{
    uint64_t any = h | h >> 1;
    any |= any >> 2;
    return h | (~any & UINT64_C(0x1111111111111111)) << 3;
}

/* Bytes [at, at + n) of a tensor of bytes; at and n are multiples of 8. */
static void make_bytes(const item *it, uint64_t at, uint32_t n, uint8_t *dst)
{
    const uint64_t row_bytes = it->cols * (ks_type_bits(it->t.type) / 8);
    if (it->t.std == 0) memset(dst, (int)it->t.mean, n);
    for (uint32_t i = 0; it->t.std != 0 && i < n; i += 8) {
        uint64_t h = draw(it, (at + i) / 8);
        if (it->t.type == KS_T_I32) h = even_nibbles(h);
        memcpy(dst + i, &h, 8);
    }
    for (uint32_t i = 0; it->t.has_row0 && i < n; i++)
        if ((at + i) / row_bytes % it->rows == 0) dst[i] = (uint8_t)it->t.row0;
}

int ks_synth_read(const ks_synth *s, uint64_t i, uint64_t off, void *dst, size_t bytes, ks_err *err)
{
    uint16_t piece[PIECE];
    uint8_t *to = dst;
    if (i >= s->n || off > s->items[i].bytes || bytes > s->items[i].bytes - off)
        return ks_fail(err, KS_E_INVAL, "'%s': tensor %" PRIu64 " has no %zu bytes from %" PRIu64, s->path, i, bytes,
                       off);
    const item *it = &s->items[i];
    while (bytes > 0) {
        uint64_t begin = off & ~(uint64_t)7;
        size_t skip = (size_t)(off - begin), n = KS_MIN(sizeof piece - skip, bytes);
        uint32_t want = (uint32_t)ks_align_up(skip + n, 8);
        if (it->t.type == KS_T_BF16)
            make_floats(it, begin / 2, want / 2, piece);
        else
            make_bytes(it, begin, want, (uint8_t *)piece);
        memcpy(to, (const uint8_t *)piece + skip, n);
        to += n;
        off += n;
        bytes -= n;
    }
    return 0;
}

/* ---- the loader */

static int sniff(void *self, const char *path, const uint8_t *head, size_t n)
{
    (void)self;
    (void)path;
    return n >= strlen(MAGIC) && memcmp(head, MAGIC, strlen(MAGIC)) == 0;
}

static int open_file(void *self, const char *path, void **ret_file, ks_err *err)
{
    char *text = NULL;
    size_t n = 0;
    ks_synth *s = NULL;
    (void)self;
    int rc = ks_file_read(path, FILE_MAX, &text, &n, err);
    if (!rc) rc = ks_synth_parse(path, text, n, &s, err);
    free(text);
    if (!rc) *ret_file = s;
    return rc;
}

static void close_file(void *file)
{
    ks_synth_close(file);
}

static int tensor(void *file, uint64_t i, ks_tensor *ret, ks_err *err)
{
    return ks_synth_tensor_at(file, i, ret, err);
}

static int read_tensor(void *file, uint64_t i, uint64_t off, void *dst, size_t bytes, ks_err *err)
{
    return ks_synth_read(file, i, off, dst, bytes, err);
}

static const ks_loader_iface iface = {
    .size = sizeof(ks_loader_iface),
    .sniff = sniff,
    .open = open_file,
    .close = close_file,
    .tensor = tensor,
    .read = read_tensor,
};

const ks_plugin ks_synth_plugin = {
    .size = sizeof(ks_plugin),
    .kind = KS_KIND_LOADER,
    .name = "synth",
    .version = KS_VERSION,
    .summary = "Models of random numbers, as `krasis synth` describes them",
    .license = "Apache-2.0",
    .option_size = sizeof(ks_option),
    .iface = &iface,
};
