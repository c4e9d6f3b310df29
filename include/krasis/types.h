/* Element types, weight layouts and CPU features: numbers that both sides of the ABI share. */
#ifndef KRASIS_TYPES_H
#define KRASIS_TYPES_H

#include <stddef.h>
#include <stdint.h>

/* clang-format off */
/* Element types. Never renumbered. Files may hold any; the weight store holds those marked S. */
#define KS_TYPE_MAP(X)                                                                             \
    X(F32, 1, "f32", 32)         /* S */                                                           \
    X(F16, 2, "f16", 16)                                                                           \
    X(BF16, 3, "bf16", 16)       /* S */                                                           \
    X(I8, 4, "i8", 8)            /* S  symmetric, values -127..127, one bf16 scale a group */      \
    X(I4, 5, "i4", 4)            /* S  nibble - 8, one signed bf16 scale a group */                \
    X(MXFP4, 6, "mxfp4", 4)      /* S  e2m1 code, one e8m0 scale per 32 */                         \
    X(F8E4M3, 7, "f8e4m3", 8)    /* finite ("fn") variant, largest 448, no infinities */           \
    X(F8E5M2, 8, "f8e5m2", 8)                                                                      \
    X(E8M0, 9, "e8m0", 8)                                                                          \
    X(F64, 10, "f64", 64)                                                                          \
    X(I16, 11, "i16", 16)                                                                          \
    X(I32, 12, "i32", 32)                                                                          \
    X(I64, 13, "i64", 64)                                                                          \
    X(U8, 14, "u8", 8)                                                                             \
    X(U16, 15, "u16", 16)                                                                          \
    X(U32, 16, "u32", 32)                                                                          \
    X(U64, 17, "u64", 64)                                                                          \
    X(BOOL, 18, "bool", 8)                                                                         \
    X(Q8, 19, "q8", 8)           /* quantized activations, see ks_act in kernels.h */
/* clang-format on */

enum {
#define KS_TYPE_ENUM(name, num, text, bits) KS_T_##name = (num),
    KS_TYPE_MAP(KS_TYPE_ENUM)
#undef KS_TYPE_ENUM
};

/* Layouts of a matrix (n_out rows, n_in columns).
 *
 * ROWS: row-major, rows back to back, no padding. F32, BF16.
 *
 * T16: strips of 16 output rows. A strip is a run of dwords, ((k / P) * 16 + row % 16), each holding
 * P = 32 / bits consecutive k of one row, followed by the strip's scales. P is 1 for F32, 2 for
 * BF16, 4 for I8, 8 for I4 and MXFP4. Within a dword:
 *   F32   the value                    BF16  k, k+1 as two little-endian halves
 *   I8    byte j = k + j               I4    byte j: low nibble k + j, high nibble k + 4 + j
 *   MXFP4 as I4, the nibble is the e2m1 code (sign in bit 3)
 * n_in is padded with zeros (nibble 8 for I4) to a multiple of 32, n_out to a multiple of 16 (zero
 * scale). The scales: I8, I4: n_in / group x 16 bf16, [group][row]; MXFP4: n_in / 32 x 16 bytes
 * e8m0, [group][row]; F32, BF16: none. Strips are multiples of 64 bytes and 64-byte aligned.
 * The same bytes serve AVX2, AVX-512 VNNI, AMX, dp4a and tensor cores, so there is one copy. */
#define KS_LAYOUT_ROWS 1u
#define KS_LAYOUT_T16 2u

/* clang-format off */
/* CPU features, as the host detects them (CPUID and the operating system's XCR0). A plugin names
 * what it needs; the host tests before any function of the plugin is called. Never renumbered. */
#define KS_CPU_MAP(X)                     \
    X(SSE42, 0, "sse4.2")                 \
    X(AVX, 1, "avx")                      \
    X(AVX2, 2, "avx2")                    \
    X(FMA, 3, "fma")                      \
    X(F16C, 4, "f16c")                    \
    X(BMI2, 5, "bmi2")                    \
    X(AVX_VNNI, 6, "avxvnni")             \
    X(AVX512F, 7, "avx512f")              \
    X(AVX512BW, 8, "avx512bw")            \
    X(AVX512VL, 9, "avx512vl")            \
    X(AVX512DQ, 10, "avx512dq")           \
    X(AVX512_VNNI, 11, "avx512vnni")      \
    X(AVX512_BF16, 12, "avx512bf16")      \
    X(AVX512_VBMI, 13, "avx512vbmi")      \
    X(AVX512_FP16, 14, "avx512fp16")      \
    X(AMX_TILE, 15, "amx-tile")           \
    X(AMX_INT8, 16, "amx-int8")           \
    X(AMX_BF16, 17, "amx-bf16")
/* clang-format on */

enum {
#define KS_CPU_ENUM(name, bit, text) KS_CPU_BIT_##name = (bit),
    KS_CPU_MAP(KS_CPU_ENUM)
#undef KS_CPU_ENUM
};
#define KS_CPU(name) (UINT64_C(1) << KS_CPU_BIT_##name)

static inline uint32_t ks_type_bits(uint32_t type) /* 0: unknown */
{
    switch (type) {
#define KS_TYPE_CASE(name, num, text, bits) \
    case num: return bits;
        KS_TYPE_MAP(KS_TYPE_CASE)
#undef KS_TYPE_CASE
    default: return 0;
    }
}

static inline const char *ks_type_name(uint32_t type)
{
    switch (type) {
#define KS_TYPE_CASE(name, num, text, bits) \
    case num: return text;
        KS_TYPE_MAP(KS_TYPE_CASE)
#undef KS_TYPE_CASE
    default: return "unknown";
    }
}

/* Sizes of T16, in one place for everybody. `group` is 0 where the type has no scales. */
static inline uint32_t ks_t16_strips(uint32_t n_out)
{
    return n_out / 16 + (n_out % 16 != 0);
}

static inline uint32_t ks_t16_n_in(uint32_t n_in)
{
    return (n_in + 31u) & ~31u;
}

static inline size_t ks_t16_values_bytes(uint32_t type, uint32_t n_in) /* of one strip */
{
    return (size_t)ks_t16_n_in(n_in) * 16 * ks_type_bits(type) / 8;
}

static inline size_t ks_t16_strip_bytes(uint32_t type, uint32_t n_in, uint32_t group)
{
    size_t n = ks_t16_values_bytes(type, n_in), groups = group ? (ks_t16_n_in(n_in) + group - 1) / group : 0;
    n += groups * 16 * (type == KS_T_MXFP4 ? 1 : 2);
    return (n + 63) & ~(size_t)63;
}

#endif
