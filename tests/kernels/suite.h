/* Inside the kernel suite: guarded memory, the runner every op uses, random numbers. Not thread-safe. */
#ifndef KS_TESTS_KERNELS_SUITE_H
#define KS_TESTS_KERNELS_SUITE_H

#include "ks_kernel_suite.h"
#include <stdbool.h>

#define SUITE_BUFS 16

/* Bytes that end at an unmapped page. */
typedef struct suite_buf {
    const char *name;
    uint8_t *map, *p;
    size_t map_bytes, bytes;
    bool output;
    uint8_t *init, *whole; /* outputs: content before a run, content after the whole run */
} suite_buf;

typedef struct suite {
    const ks_kernel *row, *ref;
    uint64_t rng;
    suite_buf bufs[SUITE_BUFS];
    uint32_t n_bufs;
    bool no_memory;
    char what[160]; /* the case, for messages */
    char *why;
    size_t cap;
} suite;

/* One case: arguments that point into the suite's buffers. */
typedef struct suite_case {
    const void *args;
    uint32_t n_units;
    uint32_t elem_bytes; /* of the first output buffer; the others have 4 */
    /* Unit that writes element i of output buffer b (0, 1, ...), or UINT32_MAX: nobody may. */
    uint32_t (*unit_of)(const void *args, uint32_t b, size_t i);
    /* Elements of output 0: value, and magnitude that errors are measured against. single: every operation rounded
     * to float, as a scalar program would. NULL: equality with ref only. */
    void (*eval)(const void *args, bool single, double *ret_y, double *ret_mag);
    double eps;
    bool exact; /* all outputs equal those of ref */
} suite_case;

/* Memory of one case. NULL after a failure, which is sticky (no_memory); input contents are undefined. */
void *suite_input(suite *s, const char *name, size_t bytes);
void *suite_output(suite *s, const char *name, size_t bytes); /* filled with a pattern that no kernel writes */
void suite_free(suite *s);

/* Seals the inputs and takes the outputs' present content as their content before every run. All checks of a case;
 * 0, a KS_KRN_ rule, or -1. Afterwards output 0 holds the result of the whole run. */
int suite_check(suite *s, const suite_case *c);
/* One call, faults caught: 0 or KS_KRN_OUTSIDE. */
int suite_call(suite *s, const ks_kernel *k, const void *args, uint32_t begin, uint32_t end);
/* Does `got` (n floats) have the bits of `want`? NaNs are equal. */
bool suite_same(const float *got, const float *want, size_t n);
__attribute__((format(printf, 3, 4))) int suite_fail(suite *s, int rule, const char *fmt, ...);

uint64_t suite_random(suite *s);
uint32_t suite_below(suite *s, uint32_t n); /* 0 .. n - 1 */
float suite_normal(suite *s);               /* standard deviation 1 */
void suite_normals(suite *s, float *p, size_t n, float scale);

/* v, or v rounded to float: how the evaluations say "a scalar program would round here". */
static inline double suite_round(double v, bool single)
{
    return single ? (double)(float)v : v;
}

int suite_quant(suite *s);
int suite_matmul(suite *s);
int suite_norm(suite *s);
int suite_rope(suite *s);
int suite_glu(suite *s);
int suite_attn(suite *s);
int suite_store(suite *s);
int suite_matmul_t(suite *s);
int suite_mul(suite *s);
int suite_score(suite *s);
int suite_conv(suite *s);
int suite_delta(suite *s);

#endif
