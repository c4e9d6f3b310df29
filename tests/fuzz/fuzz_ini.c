/* INI text: no crash, and what is accepted can be saved and is read back as the same settings. Needs the layer config.
 */
#include "config/options.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static char *shown(const ks_config *c)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f) abort();
    ks_config_show(c, f);
    if (fclose(f)) abort();
    for (char *p = text; *p; p++) /* origins differ */
        if (strncmp(p, "  (", 3) == 0) {
            char *end = strchr(p, '\n');
            memmove(p, end, strlen(end) + 1);
        }
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    ks_config *a = NULL, *b = NULL;
    ks_err err = { 0 };
    if (ks_config_new(&a, &err) || ks_config_new(&b, &err)) abort();
    if (ks_config_parse_ini(a, (const char *)data, n, "/fuzz/x.ini", KS_FROM_FILE, &err) == 0) {
        int64_t *v = NULL;
        size_t n_v = 0;
        if (ks_config_ints(a, "pp-partition", &v, &n_v, &err)) abort();
        free(v);
        if (*ks_config_str(a, "api-key") == '\0') { /* secrets are not saved */
            ks_buf text;
            ks_buf_init(&text, 0);
            if (ks__config_text(a, &text, &err)) abort();
            if (ks_config_parse_ini(b, text.p, text.n, "/fuzz/saved.ini", KS_FROM_SAVED, &err)) abort();
            char *x = shown(a), *y = shown(b);
            if (strcmp(x, y) != 0) abort();
            free(x);
            free(y);
            ks_buf_fini(&text);
        }
    } else if (err.msg[0] == '\0') {
        abort();
    }
    ks_config_free(a);
    ks_config_free(b);
    return 0;
}
