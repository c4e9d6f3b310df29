/* Reads and checks safetensors headers, and reads tensors by pread. */
#include "st_file.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <krasis/json.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_MAX UINT64_C(100000000) /* the format's own limit */
#define NAME_MAX_BYTES 512u            /* longest known: 130 */
#define DEPTH_MAX 8u                   /* the header needs 3 */

typedef struct item {
    const char *name;
    uint64_t shape[KS_MAX_RANK];
    uint64_t begin, end; /* in the data */
    uint32_t rank, type;
} item;

typedef struct pair {
    const char *key, *value;
    size_t value_bytes;
} pair;

struct st_file {
    int fd;
    char *path;
    char *strings; /* all names, keys and values, unescaped; never more than the header has bytes */
    size_t strings_n;
    uint64_t data_begin, data_bytes; /* of the file */
    item *items;
    size_t n_items, cap_items;
    pair *pairs;
    size_t n_pairs, cap_pairs;
};

static const struct {
    const char *name;
    uint32_t type;
} dtypes[] = {
    { "BF16", KS_T_BF16 }, { "F16", KS_T_F16 },        { "F32", KS_T_F32 },        { "F64", KS_T_F64 },
    { "I8", KS_T_I8 },     { "I16", KS_T_I16 },        { "I32", KS_T_I32 },        { "I64", KS_T_I64 },
    { "U8", KS_T_U8 },     { "U16", KS_T_U16 },        { "U32", KS_T_U32 },        { "U64", KS_T_U64 },
    { "BOOL", KS_T_BOOL }, { "F8_E4M3", KS_T_F8E4M3 }, { "F8_E5M2", KS_T_F8E5M2 }, { "F8_E8M0", KS_T_E8M0 },
};

static int no_memory(ks_err *err, const st_file *f)
{
    return ks_fail(err, KS_E_NOMEM, "'%s': out of memory for the header", f->path);
}

/* Makes room for one more element of an array that doubles. */
static int grow(void **array, size_t n, size_t *cap, size_t elem)
{
    if (n < *cap) return 0;
    size_t want = *cap ? *cap * 2 : 64; /* n is bounded by the header's bytes: no overflow */
    void *p = realloc(*array, want * elem);
    if (!p) return KS_E_NOMEM;
    *array = p;
    *cap = want;
    return 0;
}

/* The current key or string as a C string in f->strings. U+0000 would cut it off: refused. */
static int take_string(st_file *f, const ks_json *j, const char **ret, size_t *ret_n, ks_err *err)
{
    char *dst = f->strings + f->strings_n;
    size_t n = 0;
    if (ks_json_str(j, dst, j->tok_bytes + 1, &n) != 0 || memchr(dst, 0, n))
        return ks_fail(err, KS_E_FORMAT, "'%s': the header holds a name or text with U+0000 in it", f->path);
    f->strings_n += n + 1;
    *ret = dst;
    if (ret_n) *ret_n = n;
    return 0;
}

static int bad_json(const st_file *f, const ks_json *j, ks_err *err)
{
    (void)ks_json_fail(j, err, "header");
    (void)ks_err_wrap(err, f->path);
    return KS_E_FORMAT;
}

/* An array of at most `max` unsigned integers; the current token is its begin. */
static int read_u64s(st_file *f, ks_json *j, const item *it, const char *what, uint64_t *dst, uint32_t max,
                     uint32_t *ret_n, ks_err *err)
{
    uint32_t n = 0;
    int t;
    while ((t = ks_json_next(j)) == KS_JSON_NUMBER) {
        if (n == max)
            return ks_fail(err, KS_E_LIMIT, "'%s': tensor '%s': %s has more than %" PRIu32 " numbers", f->path,
                           it->name, what, max);
        if (ks_json_u64(j, &dst[n]) != 0)
            return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s': %s holds '%.*s', not an integer from 0 to 2^64 - 1",
                           f->path, it->name, what, (int)(j->tok_bytes < 40 ? j->tok_bytes : 40), j->tok);
        n++;
    }
    if (t == KS_JSON_ERROR) return bad_json(f, j, err);
    if (t != KS_JSON_ARRAY_END)
        return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s': %s is not an array of integers", f->path, it->name, what);
    *ret_n = n;
    return 0;
}

static int read_dtype(st_file *f, const ks_json *j, item *it, ks_err *err)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (ks_json_is(j, dtypes[i].name)) {
            it->type = dtypes[i].type;
            return 0;
        }
    }
    return ks_fail(err, KS_E_UNSUPPORTED, "'%s': tensor '%s' has dtype '%.*s', which is not known here", f->path,
                   it->name, (int)(j->tok_bytes < 40 ? j->tok_bytes : 40), j->tok);
}

/* {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, each exactly once. */
static int read_item(st_file *f, ks_json *j, item *it, ks_err *err)
{
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4, ALL = 7 };
    unsigned seen = 0;
    uint64_t off[2];
    int t = ks_json_next(j);
    if (t == KS_JSON_ERROR) return bad_json(f, j, err);
    if (t != KS_JSON_OBJECT)
        return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s' is not described by an object", f->path, it->name);
    while ((t = ks_json_next(j)) == KS_JSON_KEY) {
        unsigned field = ks_json_is(j, "dtype")          ? DTYPE
                         : ks_json_is(j, "shape")        ? SHAPE
                         : ks_json_is(j, "data_offsets") ? OFFSETS
                                                         : 0;
        if (field == 0 || (seen & field))
            return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s' has %s field '%.*s'", f->path, it->name,
                           field ? "a second" : "an unknown", (int)(j->tok_bytes < 40 ? j->tok_bytes : 40), j->tok);
        seen |= field;
        t = ks_json_next(j);
        if (t == KS_JSON_ERROR) return bad_json(f, j, err);
        if (t != (field == DTYPE ? KS_JSON_STRING : KS_JSON_ARRAY))
            return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s': dtype, shape or data_offsets is of the wrong type",
                           f->path, it->name);
        uint32_t n = 2;
        int rc = field == DTYPE   ? read_dtype(f, j, it, err)
                 : field == SHAPE ? read_u64s(f, j, it, "shape", it->shape, KS_MAX_RANK, &it->rank, err)
                                  : read_u64s(f, j, it, "data_offsets", off, 2, &n, err);
        if (rc != 0) return rc;
        if (n != 2)
            return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s': data_offsets must hold two numbers", f->path,
                           it->name);
    }
    if (t == KS_JSON_ERROR) return bad_json(f, j, err);
    if (seen != ALL)
        return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s' lacks dtype, shape or data_offsets", f->path, it->name);
    it->begin = off[0];
    it->end = off[1];
    return 0;
}

/* What the offsets of one tensor must be by itself; the order among tensors comes later. */
static int check_item(const st_file *f, const item *it, ks_err *err)
{
    uint64_t bytes = ks_type_bits(it->type) / 8;
    for (uint32_t d = 0; d < it->rank; d++)
        if (__builtin_mul_overflow(bytes, it->shape[d], &bytes))
            return ks_fail(err, KS_E_LIMIT, "'%s': tensor '%s': the product of its shape exceeds 2^64", f->path,
                           it->name);
    if (it->begin > it->end || it->end - it->begin != bytes)
        return ks_fail(err, KS_E_FORMAT,
                       "'%s': tensor '%s' has data_offsets [%" PRIu64 ", %" PRIu64
                       "], its dtype and shape need %" PRIu64 " bytes",
                       f->path, it->name, it->begin, it->end, bytes);
    if (it->end > f->data_bytes)
        return ks_fail(err, KS_E_FORMAT,
                       "'%s' is truncated: tensor '%s' ends at byte %" PRIu64 ", the file at %" PRIu64
                       "; download it again",
                       f->path, it->name, it->end + f->data_begin, f->data_bytes + f->data_begin);
    return 0;
}

static int read_metadata(st_file *f, ks_json *j, ks_err *err)
{
    int t = ks_json_next(j);
    if (t == KS_JSON_ERROR) return bad_json(f, j, err);
    if (t != KS_JSON_OBJECT) return ks_fail(err, KS_E_FORMAT, "'%s': __metadata__ is not an object", f->path);
    while ((t = ks_json_next(j)) == KS_JSON_KEY) {
        if (grow((void **)&f->pairs, f->n_pairs, &f->cap_pairs, sizeof *f->pairs) != 0) return no_memory(err, f);
        pair *p = &f->pairs[f->n_pairs];
        int rc = take_string(f, j, &p->key, NULL, err);
        if (rc != 0) return rc;
        t = ks_json_next(j);
        if (t == KS_JSON_ERROR) return bad_json(f, j, err);
        if (t != KS_JSON_STRING)
            return ks_fail(err, KS_E_FORMAT, "'%s': __metadata__ '%.60s' is not a string", f->path, p->key);
        rc = take_string(f, j, &p->value, &p->value_bytes, err);
        if (rc != 0) return rc;
        f->n_pairs++;
    }
    return t == KS_JSON_ERROR ? bad_json(f, j, err) : 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const item *)a)->name, ((const item *)b)->name);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const pair *)a)->key, ((const pair *)b)->key);
}

static int by_offset(const void *a, const void *b)
{
    const item *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1; /* empty tensors before the one that begins there */
    return strcmp(x->name, y->name);
}

/* Names are unique; tensors cover the data without gap or overlap. Sorting, since a hash table could be attacked. */
static int check_all(st_file *f, ks_err *err)
{
    if (f->n_pairs) qsort(f->pairs, f->n_pairs, sizeof *f->pairs, by_key);
    for (size_t i = 1; i < f->n_pairs; i++)
        if (strcmp(f->pairs[i].key, f->pairs[i - 1].key) == 0)
            return ks_fail(err, KS_E_FORMAT, "'%s': __metadata__ '%.60s' is there twice", f->path, f->pairs[i].key);
    if (f->n_items) qsort(f->items, f->n_items, sizeof *f->items, by_name);
    for (size_t i = 1; i < f->n_items; i++)
        if (strcmp(f->items[i].name, f->items[i - 1].name) == 0)
            return ks_fail(err, KS_E_FORMAT, "'%s': tensor '%s' is there twice", f->path, f->items[i].name);
    if (f->n_items) qsort(f->items, f->n_items, sizeof *f->items, by_offset);
    uint64_t at = 0;
    for (size_t i = 0; i < f->n_items; i++) {
        if (f->items[i].begin != at)
            return ks_fail(err, KS_E_FORMAT,
                           "'%s': tensor '%s' begins at %" PRIu64 " of the data, the one before ends at %" PRIu64,
                           f->path, f->items[i].name, f->items[i].begin, at);
        at = f->items[i].end;
    }
    if (at != f->data_bytes)
        return ks_fail(err, KS_E_FORMAT, "'%s': %" PRIu64 " bytes after the last tensor belong to none", f->path,
                       f->data_bytes - at);
    return 0;
}

static int read_header(st_file *f, const char *text, size_t n, ks_err *err)
{
    ks_json j;
    bool metadata = false;
    ks_json_init(&j, text, n, DEPTH_MAX);
    int t = ks_json_next(&j);
    if (t == KS_JSON_ERROR) return bad_json(f, &j, err);
    if (t != KS_JSON_OBJECT) return ks_fail(err, KS_E_FORMAT, "'%s': the header is not an object", f->path);
    while ((t = ks_json_next(&j)) == KS_JSON_KEY) {
        if (ks_json_is(&j, "__metadata__")) {
            if (metadata) return ks_fail(err, KS_E_FORMAT, "'%s': __metadata__ is there twice", f->path);
            metadata = true;
            int rc = read_metadata(f, &j, err);
            if (rc != 0) return rc;
            continue;
        }
        if (grow((void **)&f->items, f->n_items, &f->cap_items, sizeof *f->items) != 0) return no_memory(err, f);
        item *it = &f->items[f->n_items];
        memset(it, 0, sizeof *it);
        size_t name_bytes = 0;
        int rc = take_string(f, &j, &it->name, &name_bytes, err);
        if (rc != 0) return rc;
        if (name_bytes == 0 || name_bytes > NAME_MAX_BYTES)
            return ks_fail(err, KS_E_LIMIT, "'%s': a tensor's name has %zu bytes, allowed are 1 to %u", f->path,
                           name_bytes, NAME_MAX_BYTES);
        rc = read_item(f, &j, it, err);
        if (rc == 0) rc = check_item(f, it, err);
        if (rc != 0) return rc;
        f->n_items++;
    }
    if (t == KS_JSON_ERROR || ks_json_next(&j) != KS_JSON_END) return bad_json(f, &j, err);
    return check_all(f, err);
}

/* All of [off, off + n) or an error: the file may have shrunk since it was opened. */
static int read_at(const st_file *f, uint64_t off, void *dst, size_t n, ks_err *err)
{
    uint8_t *p = dst;
    while (n > 0) {
        ssize_t got = pread(f->fd, p, n, (off_t)off);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", f->path, strerror(errno));
        if (got == 0)
            return ks_fail(err, KS_E_IO, "'%s' ends at byte %" PRIu64 ": it shrank while it was being read", f->path,
                           off);
        p += got;
        off += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

static uint64_t header_length(const uint8_t b[8])
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | b[i];
    return v;
}

int st_sniff(const uint8_t *head, size_t n)
{
    if (n < 9) return 0;
    uint64_t len = header_length(head);
    return len >= 2 && len <= HEADER_MAX && head[8] == '{';
}

static int open_checked(st_file *f, ks_err *err)
{
    struct stat st;
    uint8_t len[8];
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0) return ks_fail(err, KS_E_IO, "cannot open '%s': %s", f->path, strerror(errno));
    if (fstat(f->fd, &st) != 0) return ks_fail(err, KS_E_IO, "cannot read '%s': %s", f->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return ks_fail(err, KS_E_INVAL, "'%s' is not a regular file", f->path);
    uint64_t size = (uint64_t)st.st_size;
    if (size < 8)
        return ks_fail(err, KS_E_FORMAT, "'%s' has %" PRIu64 " bytes, a safetensors file begins with 8", f->path, size);
    int rc = read_at(f, 0, len, sizeof len, err);
    if (rc != 0) return rc;
    uint64_t n = header_length(len);
    if (n > HEADER_MAX)
        return ks_fail(err, KS_E_LIMIT, "'%s': its header has %" PRIu64 " bytes, allowed are %" PRIu64, f->path, n,
                       HEADER_MAX);
    if (n > size - 8)
        return ks_fail(err, KS_E_FORMAT,
                       "'%s' is truncated: its header ends at byte %" PRIu64 ", the file at %" PRIu64
                       "; download it again",
                       f->path, n + 8, size);
    f->data_begin = 8 + n;
    f->data_bytes = size - f->data_begin;
    char *text = malloc(n + 1);
    f->strings = malloc(n + 1);
    rc = text && f->strings ? read_at(f, 8, text, n, err) : no_memory(err, f);
    if (rc == 0) rc = read_header(f, text, n, err);
    free(text);
    return rc;
}

int st_open(const char *path, st_file **ret, ks_err *err)
{
    st_file *f = calloc(1, sizeof *f);
    if (f) {
        f->fd = -1;
        f->path = strdup(path);
    }
    if (!f || !f->path) {
        st_close(f);
        return ks_fail(err, KS_E_NOMEM, "'%s': out of memory", path);
    }
    int rc = open_checked(f, err);
    if (rc != 0) {
        st_close(f);
        return rc;
    }
    *ret = f;
    return 0;
}

void st_close(st_file *f)
{
    if (!f) return;
    if (f->fd >= 0) (void)close(f->fd); /* nothing was written */
    free(f->items);
    free(f->pairs);
    free(f->strings);
    free(f->path);
    free(f);
}

int st_tensor(const st_file *f, uint64_t i, ks_tensor *ret, ks_err *err)
{
    if (i >= f->n_items)
        return ks_fail(err, KS_E_NOTFOUND, "'%s' has %zu tensors, there is no number %" PRIu64, f->path, f->n_items, i);
    const item *it = &f->items[i];
    ks_tensor t = { .size = ret->size, .type = it->type, .name = it->name, .rank = it->rank };
    memcpy(t.shape, it->shape, sizeof t.shape);
    t.bytes = it->end - it->begin;
    memcpy(ret, &t, ret->size < sizeof t ? ret->size : sizeof t);
    return 0;
}

int st_read(const st_file *f, uint64_t i, uint64_t off, void *dst, size_t bytes, ks_err *err)
{
    if (i >= f->n_items)
        return ks_fail(err, KS_E_NOTFOUND, "'%s' has %zu tensors, there is no number %" PRIu64, f->path, f->n_items, i);
    uint64_t size = f->items[i].end - f->items[i].begin;
    if (off > size || bytes > size - off)
        return ks_fail(err, KS_E_INVAL, "'%s': tensor '%s' has %" PRIu64 " bytes, wanted are %zu from %" PRIu64,
                       f->path, f->items[i].name, size, bytes, off);
    return read_at(f, f->data_begin + f->items[i].begin + off, dst, bytes, err);
}

int st_meta(const st_file *f, const char *key, uint64_t index, ks_value *ret, ks_err *err)
{
    for (size_t i = 0; i < f->n_pairs && index == 0; i++) {
        if (strcmp(f->pairs[i].key, key) != 0) continue;
        ks_value v = { .size = ret->size, .type = KS_OPT_STR, .n = 1 };
        v.s = f->pairs[i].value;
        v.s_bytes = f->pairs[i].value_bytes;
        memcpy(ret, &v, ret->size < sizeof v ? ret->size : sizeof v);
        return 0;
    }
    return ks_fail(err, KS_E_NOTFOUND, "'%s' has no metadata '%s'", f->path, key);
}
