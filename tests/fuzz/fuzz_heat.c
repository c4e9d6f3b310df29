/* Heat maps: what is accepted is consistent, what is not leaves nothing behind. One thread. */
#include "store/heat_file.h"

#include <string.h>

#define HOLDS(expr) ((expr) ? (void)0 : __builtin_trap())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    ks_heat_map m = { .rows = 0 };
    ks_err err = { .code = 0 };
    int rc = ks_heat_parse("fuzz", data, n, &m, &err);
    HOLDS(rc == 0 ? m.counts && m.model && m.rows : err.code == rc && err.msg[0] && !m.counts);
    for (size_t i = 0; rc == 0 && i < (size_t)m.n_layers * m.n_experts; i++)
        HOLDS(m.counts[i] <= m.rows * KS_HEAT_MAX_USES);
    HOLDS(rc || strlen(m.model) <= n);
    ks_heat_map_fini(&m);
    return 0;
}
