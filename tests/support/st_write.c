/* Writes safetensors files for tests. */
#include "support/st_write.h"
#include "base/base.h"
#include <errno.h>
#include <krasis/json.h>

static int put(FILE *f, const char *path, const void *p, size_t n, ks_err *err)
{
    if (n != 0 && fwrite(p, 1, n, f) != n) return ks_fail(err, KS_E_IO, "cannot write '%s': %s", path, strerror(errno));
    return 0;
}

static int put_header(FILE *f, const char *path, const char *header, size_t n, ks_err *err)
{
    uint8_t len[8];
    for (int i = 0; i < 8; i++) len[i] = (uint8_t)((uint64_t)n >> (8 * i));
    int rc = put(f, path, len, sizeof len, err);
    return rc != 0 ? rc : put(f, path, header, n, err);
}

static int finish(FILE *f, const char *path, int rc, ks_err *err)
{
    if (fclose(f) != 0 && rc == 0) rc = ks_fail(err, KS_E_IO, "cannot write '%s': %s", path, strerror(errno));
    return rc;
}

int ks_st_write(const char *path, const ks_st_tensor *t, size_t n, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_object(&w);
    uint64_t off = 0;
    for (size_t i = 0; i < n; i++) {
        ks_jw_key(&w, t[i].name);
        ks_jw_object(&w);
        ks_jw_key(&w, "dtype");
        ks_jw_str(&w, t[i].dtype);
        ks_jw_key(&w, "shape");
        ks_jw_array(&w);
        for (uint32_t d = 0; d < t[i].rank; d++) ks_jw_u64(&w, t[i].shape[d]);
        ks_jw_array_end(&w);
        ks_jw_key(&w, "data_offsets");
        ks_jw_array(&w);
        ks_jw_u64(&w, off);
        ks_jw_u64(&w, off + t[i].bytes);
        ks_jw_array_end(&w);
        ks_jw_object_end(&w);
        off += t[i].bytes;
    }
    ks_jw_object_end(&w);
    while (ks_jw_done(&w) == 0 && w.n % 8 != 0) ks_jw_bytes(&w, " ", 1);
    int rc = ks_jw_done(&w);
    FILE *f = NULL;
    if (rc != 0) {
        ks_jw_fini(&w);
        return ks_fail(err, rc, "out of memory for the header of '%s'", path);
    }
    f = fopen(path, "wb");
    if (!f) {
        ks_jw_fini(&w);
        return ks_fail(err, KS_E_IO, "cannot create '%s': %s", path, strerror(errno));
    }
    rc = put_header(f, path, w.text, w.n, err);
    for (size_t i = 0; i < n && rc == 0; i++) rc = put(f, path, t[i].data, t[i].bytes, err);
    ks_jw_fini(&w);
    return finish(f, path, rc, err);
}

int ks_st_write_raw(const char *path, const char *header, size_t header_bytes, const void *data, size_t data_bytes,
                    ks_err *err)
{
    FILE *f = fopen(path, "wb");
    if (!f) return ks_fail(err, KS_E_IO, "cannot create '%s': %s", path, strerror(errno));
    int rc = put_header(f, path, header, header_bytes, err);
    if (rc == 0) rc = put(f, path, data, data_bytes, err);
    return finish(f, path, rc, err);
}
