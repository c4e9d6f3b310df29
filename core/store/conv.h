/* Numbers of files to float: one row a source type. Pure. */
#ifndef KS_STORE_CONV_H
#define KS_STORE_CONV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void (*ks_conv_fn)(const void *src, float *dst, size_t n);

typedef struct ks_conv {
    uint32_t type;  /* KS_T_ */
    uint32_t bytes; /* of one element */
    bool wide;      /* holds values that BF16 does not */
    ks_conv_fn to_f32;
} ks_conv;

/* NULL: weights of this type are not supported (integers are codes, not weights). */
const ks_conv *ks__conv_find(uint32_t type);
/* Index of the first NaN or infinity; n if there is none. */
size_t ks__find_nonfinite(const float *x, size_t n);
/* The same for what would round to an infinite BF16. */
size_t ks__find_over_bf16(const float *x, size_t n);

#endif
