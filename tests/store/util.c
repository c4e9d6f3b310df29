/* Helpers of the store's tests. */
#include "util.h"
#include <dirent.h>
#include <unistd.h>

extern const ks_plugin krasis_plugin_v1;

void util_path(char dst[512], const char *dir, const char *name)
{
    (void)snprintf(dst, 512, "%s/%s", dir, name);
}

void util_fresh_dir(const char *dir)
{
    ks_err err;
    DIR *d = opendir(dir);
    char path[512];
    for (struct dirent *e; d && (e = readdir(d));) {
        util_path(path, dir, e->d_name);
        (void)unlink(path); /* "." and ".." refuse */
    }
    if (d) (void)closedir(d);
    assert_ok(ks_mkdirs(dir, &err), &err);
}

ks_registry *util_registry(void)
{
    ks_err err;
    ks_registry *r;
    ks_registry_opts o = { .n_threads = 1 };
    assert_ok(ks_registry_open(&o, &r, &err), &err);
    assert_ok(ks_registry_add(r, &krasis_plugin_v1, "(built in)", &err), &err);
    assert_ok(ks_registry_choose(r, KS_KIND_LOADER, "auto", &err), &err);
    return r;
}

ks_registry *registry;

int util_setup(void **state)
{
    (void)state;
    registry = util_registry();
    return 0;
}

int util_teardown(void **state)
{
    (void)state;
    ks_registry_close(registry);
    return 0;
}

ks_ckpt *util_ckpt(ks_registry *r, const char *dir)
{
    ks_err err;
    ks_ckpt *c = NULL;
    assert_ok(ks_ckpt_open(r, dir, &c, &err), &err);
    return c;
}

float util_value(const char *name, uint64_t i)
{
    uint64_t h = UINT64_C(1469598103934665603);
    for (; *name; name++) h = (h ^ (uint8_t)*name) * UINT64_C(1099511628211);
    h = (h ^ i) * UINT64_C(0x9E3779B97F4A7C15);
    h ^= h >> 29;
    h *= UINT64_C(0xBF58476D1CE4E5B9);
    int v = (int)(h >> 56) - 128; /* 8 bits: BF16 holds them */
    return (float)(v == 0 ? 1 : v) / 128.0f;
}

ks_st_tensor util_tensor(const char *name, const char *dtype, uint32_t rank, uint64_t a, uint64_t b, uint64_t c)
{
    ks_st_tensor t = { .name = name, .dtype = dtype, .rank = rank, .shape = { a, b, c } };
    size_t n = (size_t)(a * (rank > 1 ? b : 1) * (rank > 2 ? c : 1)), width = strcmp(dtype, "F32") == 0 ? 4 : 2;
    uint8_t *p = calloc(n ? n : 1, width);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) {
        float f = util_value(name, i);
        uint16_t h = ks_f32_to_bf16(f);
        memcpy(p + i * width, width == 4 ? (void *)&f : (void *)&h, width);
    }
    t.data = p;
    t.bytes = n * width;
    return t;
}

void util_write(const char *dir, const char *file, ks_st_tensor *t, size_t n)
{
    char path[512];
    ks_err err;
    util_path(path, dir, file);
    assert_ok(ks_st_write(path, t, n, &err), &err);
    for (size_t i = 0; i < n; i++) free((void *)(uintptr_t)t[i].data);
}

static uint16_t half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
}

float util_get(const ks_weight *w, uint32_t mat, uint32_t row, uint32_t k)
{
    const uint8_t *m = (const uint8_t *)w->data + mat * w->stride;
    float f;
    if (w->layout == KS_LAYOUT_ROWS) {
        size_t i = (size_t)row * w->n_in + k;
        if (w->type == KS_T_BF16) return ks_bf16_to_f32(half_at(m + i * 2));
        memcpy(&f, m + i * 4, 4);
        return f;
    }
    const uint32_t bits = ks_type_bits(w->type), per = 32 / bits;
    const uint8_t *strip = m + row / 16 * ks_t16_strip_bytes(w->type, w->n_in, w->group);
    const uint8_t *dword = strip + ((size_t)(k / per) * 16 + row % 16) * 4;
    const uint8_t *scales = strip + ks_t16_values_bytes(w->type, w->n_in);
    uint32_t j = k % per, g = w->group ? k / w->group : 0;
    switch (w->type) {
    case KS_T_F32: memcpy(&f, dword, 4); return f;
    case KS_T_BF16: return ks_bf16_to_f32(half_at(dword + j * 2));
    case KS_T_I8: return (float)(int8_t)dword[j] * ks_bf16_to_f32(half_at(scales + (g * 16 + row % 16) * 2));
    case KS_T_I4:
        f = (float)((dword[j % 4] >> (j / 4 * 4) & 15) - 8);
        return f * ks_bf16_to_f32(half_at(scales + (g * 16 + row % 16) * 2));
    case KS_T_MXFP4:
        return ks_e2m1_to_f32(dword[j % 4] >> (j / 4 * 4) & 15) * ks_e8m0_to_f32(scales[k / 32 * 16 + row % 16]);
    default: fail_msg("type %u", w->type); return 0;
    }
}

ks_store *util_store(ks_ckpt *c, const ks_wspec *s, uint32_t n, uint32_t type, ks_weight *w)
{
    ks_err err;
    ks_store *st = NULL;
    ks_store_opts o = { .no_cache = true };
    for (size_t i = 0; i < KS_COUNT(o.type); i++) o.type[i] = type;
    assert_ok(ks_store_open(c, s, n, &o, w, &st, &err), &err);
    return st;
}
