/* Chat templates: any source compiles or fails with a message, and what compiles renders within its limits or fails.
 * The input is the source, then optionally a NUL and a JSON context. One thread. */
#include "text/template.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char dflt[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"h\u00e9 <b>\"}, {\"role\": \"assistant\", "
        "\"content\": null, \"tool_calls\": [{\"name\": \"f\", \"arguments\": {\"a\": 1.0}}]}], "
        "\"s\": \"Hello, World\", \"l\": [3, 1, 2], \"d\": {\"b\": 1, \"a\": [true]}, \"n\": 7}";
    static const ks_template_limits limits = {
        .fuel = 100000, .output_bytes = 1 << 20, .memory_bytes = (size_t)16 << 20, .depth = 100
    };
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t n = nul ? (size_t)(nul - data) : size;
    const char *context = nul ? (const char *)nul + 1 : dflt;
    size_t context_n = nul ? size - n - 1 : sizeof dflt - 1;
    ks_template *t = NULL;
    ks_err err = { 0 };
    if (ks_template_new((const char *)data, n, &t, &err) < 0) return err.msg[0] ? 0 : (abort(), 0);
    ks_rendered x = { 0 };
    int rc = ks_template_render_spans(t, context, context_n, 1767323045, &limits, &x, &err);
    if (rc < 0 ? !err.msg[0] : x.n > limits.output_bytes || x.text[x.n] != 0) abort();
    for (size_t i = 0, at = 0; i < x.n_request; at = x.request[i++].end + 1) /* ascending, not touching */
        if (x.request[i].begin < at || x.request[i].end <= x.request[i].begin || x.request[i].end > x.n) abort();
    ks_rendered_fini(&x);
    ks_template_free(t);
    return 0;
}
