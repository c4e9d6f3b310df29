/* The loops of ceiling.h. Each chain of operations feeds on itself, which no compiler can shorten, and there are more
 * chains than latency times throughput. */
#include "cpu/ceiling.h"
#include <immintrin.h>
#include <krasis/types.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define FOUR(X) X(0) X(1) X(2) X(3)
#define TEN(X) FOUR(X) X(4) X(5) X(6) X(7) X(8) X(9)
/* Pins a variable to a register: the compiler neither moves work out of the loop nor spills. */
#define KEEP(var, constraint) __asm__ volatile("" : "+" constraint(var))

/* ---- reading: in order, with and without a hint, and from four places at once, which more banks of memory answer */

static uint64_t read_sse2(const void *p, size_t n)
{
    const __m128i *x = p;
    __m128i s = _mm_setzero_si128(), t = s;
    for (size_t i = 0; i < n / 16; i += 4) {
        s = _mm_xor_si128(s, _mm_xor_si128(_mm_load_si128(x + i), _mm_load_si128(x + i + 1)));
        t = _mm_xor_si128(t, _mm_xor_si128(_mm_load_si128(x + i + 2), _mm_load_si128(x + i + 3)));
    }
    s = _mm_xor_si128(s, t);
    return (uint64_t)_mm_cvtsi128_si64(_mm_xor_si128(s, _mm_unpackhi_epi64(s, s)));
}

AVX2 static inline __m256i line_avx2(__m256i s, const uint8_t *p)
{
    const __m256i *x = (const __m256i *)(const void *)p;
    return _mm256_xor_si256(s, _mm256_xor_si256(_mm256_load_si256(x), _mm256_load_si256(x + 1)));
}

AVX2 static inline uint64_t fold_avx2(__m256i s)
{
    __m128i h = _mm_xor_si128(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    return (uint64_t)_mm_extract_epi64(h, 0) ^ (uint64_t)_mm_extract_epi64(h, 1);
}

AVX2 static uint64_t read_avx2(const void *p, size_t n)
{
    const uint8_t *x = p;
    __m256i s = _mm256_setzero_si256(), t = s;
    for (size_t i = 0; i < n; i += 128) {
        s = line_avx2(s, x + i);
        t = line_avx2(t, x + i + 64);
    }
    return fold_avx2(_mm256_xor_si256(s, t));
}

AVX2 static uint64_t read_avx2_ahead(const void *p, size_t n)
{
    const uint8_t *x = p;
    __m256i s = _mm256_setzero_si256(), t = s;
    for (size_t i = 0; i < n; i += 128) {
        _mm_prefetch((const char *)x + i + 2048, _MM_HINT_T0); /* beyond the end, too: a hint never faults */
        _mm_prefetch((const char *)x + i + 2112, _MM_HINT_T0);
        s = line_avx2(s, x + i);
        t = line_avx2(t, x + i + 64);
    }
    return fold_avx2(_mm256_xor_si256(s, t));
}

AVX2 static uint64_t read_avx2_four(const void *p, size_t n)
{
    const size_t step = n / 4;
    const uint8_t *x = p;
    __m256i s = _mm256_setzero_si256(), t = s;
    for (size_t i = 0; i < step; i += 64) {
        for (size_t k = 0; k < 4; k++) _mm_prefetch((const char *)x + k * step + i + 1024, _MM_HINT_T0);
        s = line_avx2(line_avx2(s, x + i), x + step + i);
        t = line_avx2(line_avx2(t, x + 2 * step + i), x + 3 * step + i);
    }
    return fold_avx2(_mm256_xor_si256(s, t));
}

AVX512 static uint64_t read_avx512_ahead(const void *p, size_t n)
{
    const uint8_t *x = p;
    __m512i s = _mm512_setzero_si512(), t = s;
    for (size_t i = 0; i < n; i += 128) {
        _mm_prefetch((const char *)x + i + 4096, _MM_HINT_T0);
        _mm_prefetch((const char *)x + i + 4160, _MM_HINT_T0);
        s = _mm512_xor_si512(s, _mm512_load_si512(x + i));
        t = _mm512_xor_si512(t, _mm512_load_si512(x + i + 64));
    }
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_xor_si512(s, t));
}

/* ---- bytes */

/* 32 products, pairs added in 16 bits, then the addition to a sum: two instructions for 32 multiply-adds. */
AVX2 static uint64_t int8_maddubs(const void *p, size_t n)
{
    __m256i u = _mm256_set1_epi8(3);
    (void)p;
#define BEGIN(i) __m256i s##i = _mm256_set1_epi16(i);
#define STEP(i)                                                   \
    s##i = _mm256_add_epi16(s##i, _mm256_maddubs_epi16(u, s##i)); \
    KEEP(s##i, "x");
#define END(i) u = _mm256_xor_si256(u, s##i);
    TEN(BEGIN)
    for (size_t r = 0; r < n; r++) {
        TEN(STEP)
    }
    TEN(END)
#undef BEGIN
#undef STEP
#undef END
    return fold_avx2(u);
}

__attribute__((target("avx2,avxvnni"))) static uint64_t int8_avxvnni(const void *p, size_t n)
{
    __m256i u = _mm256_set1_epi8(3);
    (void)p;
#define BEGIN(i) __m256i s##i = _mm256_set1_epi32(i);
#define STEP(i)                                 \
    s##i = _mm256_dpbusd_avx_epi32(s##i, u, u); \
    KEEP(s##i, "x");
#define END(i) u = _mm256_xor_si256(u, s##i);
    TEN(BEGIN)
    for (size_t r = 0; r < n; r++) {
        TEN(STEP)
    }
    TEN(END)
#undef BEGIN
#undef STEP
#undef END
    return fold_avx2(u);
}

__attribute__((target("avx512f,avx512vnni"))) static uint64_t int8_avx512vnni(const void *p, size_t n)
{
    __m512i u = _mm512_set1_epi32(0x03030303);
    (void)p;
#define BEGIN(i) __m512i s##i = _mm512_set1_epi32(i);
#define STEP(i) s##i = _mm512_dpbusd_epi32(s##i, u, u);
#define END(i) u = _mm512_xor_si512(u, s##i);
    TEN(BEGIN)
    for (size_t r = 0; r < n; r++) {
        TEN(STEP)
        KEEP(u, "v");
    }
    TEN(END)
#undef BEGIN
#undef STEP
#undef END
    return (uint64_t)_mm512_reduce_add_epi64(u);
}

/* ---- tiles */

typedef struct tile_config {
    uint8_t palette, start_row, _pad[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

static void all_tiles(tile_config *c)
{
    memset(c, 0, sizeof *c);
    c->palette = 1;
    for (uint32_t i = 0; i < 8; i++) {
        c->rows[i] = 16;
        c->row_bytes[i] = 64;
    }
}

#define LOAD_TILES(c, m)        \
    do {                        \
        all_tiles(&(c));        \
        memset(m, 0, 1024);     \
        _tile_loadconfig(&(c)); \
        _tile_zero(0);          \
        _tile_zero(1);          \
        _tile_zero(2);          \
        _tile_zero(3);          \
        _tile_loadd(4, m, 64);  \
        _tile_loadd(5, m, 64);  \
        _tile_loadd(6, m, 64);  \
        _tile_loadd(7, m, 64);  \
    } while (0)
#define STORE_TILE(i, m, sum)    \
    do {                         \
        _tile_stored(i, m, 64);  \
        sum += (uint64_t)(m)[0]; \
    } while (0)
#define STORE_TILES(m, sum)    \
    do {                       \
        STORE_TILE(0, m, sum); \
        STORE_TILE(1, m, sum); \
        STORE_TILE(2, m, sum); \
        STORE_TILE(3, m, sum); \
        _tile_release();       \
    } while (0)

__attribute__((target("amx-tile,amx-int8"))) static uint64_t int8_amx(const void *p, size_t n)
{
    tile_config c;
    int32_t m[16 * 16];
    uint64_t sum = 0;
    (void)p;
    LOAD_TILES(c, m);
    for (size_t r = 0; r < n; r++) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    STORE_TILES(m, sum);
    return sum;
}

__attribute__((target("amx-tile,amx-bf16"))) static uint64_t bf16_amx(const void *p, size_t n)
{
    tile_config c;
    int32_t m[16 * 16];
    uint64_t sum = 0;
    (void)p;
    LOAD_TILES(c, m);
    for (size_t r = 0; r < n; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    STORE_TILES(m, sum);
    return sum;
}
#undef LOAD_TILES
#undef STORE_TILE
#undef STORE_TILES

/* ---- floats */

__attribute__((target("avx512f,avx512bf16"))) static uint64_t bf16_avx512(const void *p, size_t n)
{
    __m512i bits = _mm512_set1_epi16(0x3f00); /* 0.5 */
    __m512 out = _mm512_setzero_ps();
    (void)p;
#define BEGIN(i) __m512 s##i = _mm512_set1_ps(i);
#define STEP(i) s##i = _mm512_dpbf16_ps(s##i, (__m512bh)bits, (__m512bh)bits);
#define END(i) out = _mm512_add_ps(out, s##i);
    TEN(BEGIN)
    for (size_t r = 0; r < n; r++) {
        TEN(STEP)
        KEEP(bits, "v");
    }
    TEN(END)
#undef BEGIN
#undef STEP
#undef END
    return (uint64_t)_mm512_reduce_add_ps(out);
}

static uint64_t f32_sse2(const void *p, size_t n)
{
    __m128 x = _mm_set1_ps(0.5f), y = _mm_set1_ps(1.0f);
    (void)p;
#define BEGIN(i) __m128 s##i = _mm_set1_ps(i);
#define STEP(i) s##i = _mm_add_ps(_mm_mul_ps(s##i, x), y);
#define END(i) x = _mm_add_ps(x, s##i);
    TEN(BEGIN)
    for (size_t r = 0; r < n; r++) {
        TEN(STEP)
        KEEP(x, "x");
        KEEP(y, "x");
    }
    TEN(END)
#undef BEGIN
#undef STEP
#undef END
    return (uint64_t)_mm_cvtss_f32(x);
}

AVX2 static uint64_t f32_avx2(const void *p, size_t n)
{
    __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(1.0f);
    (void)p;
#define BEGIN(i) __m256 s##i = _mm256_set1_ps(i);
#define STEP(i) s##i = _mm256_fmadd_ps(s##i, x, y);
#define END(i) x = _mm256_add_ps(x, s##i);
    TEN(BEGIN)
    for (size_t r = 0; r < n; r++) {
        TEN(STEP)
        KEEP(x, "x");
        KEEP(y, "x");
    }
    TEN(END)
#undef BEGIN
#undef STEP
#undef END
    return (uint64_t)_mm256_cvtss_f32(x);
}

AVX512 static uint64_t f32_avx512(const void *p, size_t n)
{
    __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(1.0f);
    (void)p;
#define BEGIN(i) __m512 s##i = _mm512_set1_ps(i);
#define STEP(i) s##i = _mm512_fmadd_ps(s##i, x, y);
#define END(i) x = _mm512_add_ps(x, s##i);
    TEN(BEGIN)
    for (size_t r = 0; r < n; r++) {
        TEN(STEP)
        KEEP(x, "v");
        KEEP(y, "v");
    }
    TEN(END)
#undef BEGIN
#undef STEP
#undef END
    return (uint64_t)_mm512_reduce_add_ps(x);
}

#define WITH_AVX512 (KS_CPU(AVX512F) | KS_CPU(AVX512BW) | KS_CPU(AVX512VL))

static const ks_ceiling table[] = {
    { "sse2", KS_CEIL_READ, 1, 0, read_sse2 },
    { "avx2", KS_CEIL_READ, 1, KS_CPU(AVX2) | KS_CPU(FMA), read_avx2 },
    { "avx2, prefetched", KS_CEIL_READ, 1, KS_CPU(AVX2) | KS_CPU(FMA), read_avx2_ahead },
    { "avx2, four streams", KS_CEIL_READ, 1, KS_CPU(AVX2) | KS_CPU(FMA), read_avx2_four },
    { "avx512, prefetched", KS_CEIL_READ, 1, WITH_AVX512, read_avx512_ahead },
    { "avx2 maddubs", KS_CEIL_INT8, 10 * 32, KS_CPU(AVX2) | KS_CPU(FMA), int8_maddubs },
    { "avx-vnni", KS_CEIL_INT8, 10 * 32, KS_CPU(AVX2) | KS_CPU(AVX_VNNI), int8_avxvnni },
    { "avx512-vnni", KS_CEIL_INT8, 10 * 64, KS_CPU(AVX512F) | KS_CPU(AVX512_VNNI), int8_avx512vnni },
    { "amx", KS_CEIL_INT8, 4 * 16 * 16 * 64, KS_CPU(AMX_TILE) | KS_CPU(AMX_INT8), int8_amx },
    { "avx512-bf16", KS_CEIL_BF16, 10 * 32, KS_CPU(AVX512F) | KS_CPU(AVX512_BF16), bf16_avx512 },
    { "amx", KS_CEIL_BF16, 4 * 16 * 16 * 32, KS_CPU(AMX_TILE) | KS_CPU(AMX_BF16), bf16_amx },
    { "sse2", KS_CEIL_F32, 10 * 4, 0, f32_sse2 },
    { "avx2 fma", KS_CEIL_F32, 10 * 8, KS_CPU(AVX2) | KS_CPU(FMA), f32_avx2 },
    { "avx512 fma", KS_CEIL_F32, 10 * 16, WITH_AVX512, f32_avx512 },
};

const ks_ceiling *ks_ceiling_at(uint32_t i)
{
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}
