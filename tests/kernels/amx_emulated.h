/* The tiles of AMX in software, for amx.h of cpu-avx512: same results, shapes checked. Sums of bf16 are those of the
 * instruction: even and odd products apart, each product-add rounded to nearest, the two added, then their sum to C;
 * denormals count as zeros and become zeros. Registers belong to the thread. */
#ifndef KS_TESTS_AMX_EMULATED_H
#define KS_TESTS_AMX_EMULATED_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct amx_state {
    uint8_t tile[8][16][64];
    tile_config config;
} amx_state;

static _Thread_local amx_state amx;

/* A tile that was not configured, or an impossible shape, is a fault on the CPU. */
static inline void amx_check(bool ok)
{
    if (!ok) abort();
}

static inline void amx_configure(const tile_config *c)
{
    amx_check(c->palette == 1 && c->start_row == 0);
    for (uint32_t t = 0; t < 8; t++) amx_check(c->rows[t] <= 16 && c->row_bytes[t] <= 64);
    memset(&amx, 0, sizeof amx);
    amx.config = *c;
}

static inline void amx_release(void)
{
    memset(&amx, 0, sizeof amx);
}

static inline void amx_zero(uint32_t t)
{
    amx_check(amx.config.rows[t] > 0);
    memset(amx.tile[t], 0, sizeof amx.tile[t]);
}

/* What lies beyond the tile's shape becomes 0. */
static inline void amx_load(uint32_t t, const void *p, size_t stride)
{
    amx_zero(t);
    for (uint32_t r = 0; r < amx.config.rows[t]; r++)
        memcpy(amx.tile[t][r], (const uint8_t *)p + r * stride, amx.config.row_bytes[t]);
}

static inline void amx_store(uint32_t t, void *p, size_t stride)
{
    amx_check(amx.config.rows[t] > 0);
    for (uint32_t r = 0; r < amx.config.rows[t]; r++)
        memcpy((uint8_t *)p + r * stride, amx.tile[t][r], amx.config.row_bytes[t]);
}

static inline void amx_check_product(uint32_t c, uint32_t a, uint32_t b)
{
    const tile_config *t = &amx.config;
    amx_check(c != a && c != b && a != b && t->rows[c] > 0);
    amx_check(t->rows[c] == t->rows[a] && t->row_bytes[c] == t->row_bytes[b] && t->row_bytes[a] == 4 * t->rows[b]);
}

static inline void amx_add_i8(uint32_t c, uint32_t a, uint32_t b)
{
    amx_check_product(c, a, b);
    for (uint32_t m = 0; m < amx.config.rows[c]; m++) {
        int32_t sum[16];
        memcpy(sum, amx.tile[c][m], 64);
        for (uint32_t k = 0; k < amx.config.row_bytes[a]; k++)
            for (uint32_t n = 0; n < 16; n++)
                sum[n] += (int8_t)amx.tile[a][m][k] * (int8_t)amx.tile[b][k / 4][4 * n + k % 4];
        memcpy(amx.tile[c][m], sum, amx.config.row_bytes[c]);
    }
}

static inline void amx_add_bf16(uint32_t c, uint32_t a, uint32_t b)
{
    const uint32_t control = _mm_getcsr();
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    amx_check_product(c, a, b);
    _mm_setcsr(0x9fc0); /* no exceptions, to nearest, denormals are and become zeros */
    for (uint32_t m = 0; m < amx.config.rows[c]; m++) {
        __m512 even = _mm512_setzero_ps(), odd = even, old = _mm512_loadu_ps(amx.tile[c][m]);
        for (uint32_t k = 0; k < amx.config.row_bytes[a] / 4u; k++) {
            int32_t pair;
            memcpy(&pair, amx.tile[a][m] + 4 * k, 4);
            __m512i x = _mm512_set1_epi32(pair), y = _mm512_loadu_si512(amx.tile[b][k]);
            even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                                   _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)), even);
            odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, upper)),
                                  _mm512_castsi512_ps(_mm512_and_si512(y, upper)), odd);
        }
        __m512 sum = _mm512_add_ps(old, _mm512_add_ps(even, odd));
        memcpy(amx.tile[c][m], &sum, amx.config.row_bytes[c]);
    }
    _mm_setcsr(control);
}

#define tile_add_i8(C, A, B) amx_add_i8(C, A, B)
#define tile_add_bf16(C, A, B) amx_add_bf16(C, A, B)
#define tile_zero(T) amx_zero(T)
#define tile_load(T, P, STRIDE) amx_load(T, P, STRIDE)
#define tile_store(T, P, STRIDE) amx_store(T, P, STRIDE)
#define tile_configure(C) amx_configure(C)
#define tile_release() amx_release()

#endif
