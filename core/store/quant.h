/* The parts of quant.c that sources which bring their own codes and scales use. Pure. */
#ifndef KS_STORE_QUANT_H
#define KS_STORE_QUANT_H

#include <stddef.h>
#include <stdint.h>

/* Values of an empty strip: every element 0, every scale 0. */
void ks__strip_clear(uint32_t type, uint32_t n_in, uint32_t group, void *strip);
/* Codes of row `row` from column k0 (a multiple of 8): I8 -127..127, I4 -8..7, MXFP4 0..15. n: a multiple of 8. */
void ks__strip_codes(uint32_t type, void *strip, uint32_t row, uint32_t k0, const int8_t *codes, uint32_t n);
/* The scale of a group: bf16 bits, or for MXFP4 the e8m0 byte. */
void ks__strip_scale(uint32_t type, void *strip, uint32_t n_in, uint32_t row, uint32_t g, uint16_t scale);

#endif
