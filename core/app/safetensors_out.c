/* The safetensors format: u64 header length, JSON header padded with spaces to 8, data in order. */
#include "app/safetensors_out.h"

#include "base/base.h"
#include "base/file.h"
#include <krasis/json.h>

static uint64_t bytes_of(const ks_out_tensor *t)
{
    uint64_t n = sizeof(float);
    for (uint32_t i = 0; i < t->rank; i++) n *= t->shape[i];
    return n;
}

static void header(ks_jw *w, const ks_out_tensor *t, uint32_t n)
{
    uint64_t at = 0;
    ks_jw_object(w);
    for (uint32_t i = 0; i < n; i++) {
        ks_jw_key(w, t[i].name);
        ks_jw_object(w);
        ks_jw_key(w, "dtype");
        ks_jw_str(w, "F32");
        ks_jw_key(w, "shape");
        ks_jw_array(w);
        for (uint32_t k = 0; k < t[i].rank; k++) ks_jw_u64(w, t[i].shape[k]);
        ks_jw_array_end(w);
        ks_jw_key(w, "data_offsets");
        ks_jw_array(w);
        ks_jw_u64(w, at);
        ks_jw_u64(w, at += bytes_of(&t[i]));
        ks_jw_array_end(w);
        ks_jw_object_end(w);
    }
    ks_jw_object_end(w);
    while (w->n % 8 && !w->failed) ks_jw_bytes(w, " ", 1);
}

int ks_safetensors_write(const char *path, const ks_out_tensor *t, uint32_t n, ks_err *err)
{
    ks_jw w;
    ks_jw_init(&w);
    header(&w, t, n);
    uint64_t len = w.n;
    size_t total = 8 + w.n, at;
    for (uint32_t i = 0; i < n; i++) total += bytes_of(&t[i]);
    char *all = ks_jw_done(&w) ? NULL : malloc(total);
    int rc = all ? 0 : ks_fail(err, KS_E_NOMEM, "out of memory for %zu bytes of '%s'", total, path);
    if (!rc) {
        memcpy(all, &len, 8); /* little-endian, as this program requires anyway */
        memcpy(all + 8, w.text, w.n);
        at = 8 + w.n;
        for (uint32_t i = 0; i < n; i++) {
            memcpy(all + at, t[i].data, bytes_of(&t[i]));
            at += bytes_of(&t[i]);
        }
        rc = ks_file_write(path, all, total, err);
    }
    free(all);
    ks_jw_fini(&w);
    return rc;
}
