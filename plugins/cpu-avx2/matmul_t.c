/* MATMUL_T: products with a T16 matrix from its other side, of any weights with F32 activations. [worker]
 *
 * A line of T16 holds the same columns of 16 rows of W, so lanes are rows of W: every column has a sum of 8 lanes over
 * rows 0..7, 8..15, 16..23, ... in this order, and its lanes are added at the end. Scales go to the activations first:
 * x * scale is rounded once for each row and group. Up to 3 rows of activations share the unpacked weights. */
#include "weights.h"

#define T_ROWS 3u
#define T_STRIPS 32u /* strips whose scaled activations are in scratch at a time */
#define COLUMNS 128u /* of a unit */
#define GROUPS 4u    /* in a unit at most */

typedef struct scratch_mem {
    float x[GROUPS][T_ROWS][T_STRIPS * 16];
} scratch_mem;

_Static_assert(sizeof(scratch_mem) <= MATMUL_SCRATCH_BYTES, "transposed products scratch");

/* Activations of strips [s0, s1) times the scales of the groups from column c0 on; beyond n_out they are 0. */
KS_INLINE void scale_rows(const ks_matmul_args *a, uint32_t type, uint32_t r0, uint32_t rows, uint32_t c0,
                          uint32_t n_groups, uint32_t s0, uint32_t s1, scratch_mem *mem)
{
    for (uint32_t s = s0; s < s1; s++) {
        const uint8_t *scales = strip_of(a, s) + ks_t16_values_bytes(type, a->n_in);
        const uint32_t o = s * 16, n = a->n_out - o;
        const __m256i real[2] = { mask_first(n < 8 ? n : 8), mask_first(n < 8 ? 0 : n < 16 ? n - 8 : 8) };
        for (uint32_t g = 0; g < n_groups; g++) {
            __m256 scale[2] = { _mm256_set1_ps(1.0f), _mm256_set1_ps(1.0f) };
            if (a->group) scales_16(scales + (c0 / a->group + g) * scales_bytes(type), type, scale);
            for (uint32_t r = 0; r < rows; r++) {
                const float *x = a->x + (r0 + r) * a->x_stride + o;
                float *to = mem->x[g][r] + (s - s0) * 16;
                for (uint32_t h = 0; h < 2; h++)
                    _mm256_storeu_ps(to + 8 * h, _mm256_mul_ps(_mm256_maskload_ps(x + 8 * h, real[h]), scale[h]));
            }
        }
    }
}

/* Where columns c .. c + 3 lie in a strip. */
KS_INLINE size_t column_at(uint32_t c, uint32_t type)
{
    return type == KS_T_F32    ? (size_t)c * 64
           : type == KS_T_BF16 ? (size_t)c * 32
           : type == KS_T_I8   ? (size_t)c * 16
                               : (size_t)c / 8 * 64;
}

/* Column i of these four as floats, without its scale (MXFP4: twice it), of 8 rows of W. high: the four are the upper
 * nibbles. */
KS_INLINE __m256 column(const uint8_t *w, uint32_t i, int high, uint32_t type)
{
    const __m256 twice = _mm256_setr_ps(0, 1, 2, 3, 4, 6, 8, 12);
    if (type == KS_T_F32) return _mm256_loadu_ps((const float *)(const void *)(w + (size_t)i * 64));
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(w + (type == KS_T_BF16 ? i / 2 * 64 : 0)));
    const int nibble = (int)(8 * i) + (high ? 4 : 0);
    switch (type) {
    case KS_T_BF16:
        return _mm256_castsi256_ps(i % 2 ? _mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000u))
                                         : _mm256_slli_epi32(v, 16));
    case KS_T_I8: return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - (int)(8 * i)), 24));
    case KS_T_I4: /* n - 8 is the nibble with its upper bit flipped, as a signed number */
        v = _mm256_xor_si256(v, _mm256_set1_epi8((char)0x88));
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 28 - nibble), 28));
    default: { /* MXFP4: the look-up takes the lower three bits */
        __m256 f = _mm256_permutevar8x32_ps(twice, _mm256_srli_epi32(v, nibble));
        return _mm256_or_ps(
            f, _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(v, 28 - nibble)), _mm256_set1_ps(-0.0f)));
    }
    }
}

KS_INLINE __m128 sums_of_4(const __m256 s[4])
{
    __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

/* Columns c .. c + 3 of rows r0 .. over strips [s0, s1), added to what earlier strips gave. */
KS_INLINE void four_columns(const ks_matmul_args *a, uint32_t type, uint32_t r0, uint32_t rows, uint32_t c, int high,
                            uint32_t s0, uint32_t s1, const float (*x)[T_STRIPS * 16])
{
    const uint8_t *w = (const uint8_t *)a->w + s0 * a->strip_bytes + column_at(c, type);
    const uint32_t step = type == KS_T_F32 ? 64 : 0;
    __m256 sum[T_ROWS][4];
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < 4; i++) sum[r][i] = _mm256_setzero_ps();
    for (uint32_t s = 0; s < s1 - s0; s++, w += a->strip_bytes) {
        _mm_prefetch((const char *)w + 512 + step, _MM_HINT_T0);
        for (uint32_t h = 0; h < 2; h++) {
            for (uint32_t i = 0; i < 4; i++) {
                __m256 v = column(w + 32 * h, i, high, type);
                for (uint32_t r = 0; r < rows; r++)
                    sum[r][i] = _mm256_fmadd_ps(_mm256_loadu_ps(x[r] + s * 16 + 8 * h), v, sum[r][i]);
            }
        }
    }
    uint32_t n = a->n_in - c < 4 ? a->n_in - c : 4;
    for (uint32_t r = 0; r < rows; r++) {
        float *y = a->y + (r0 + r) * a->y_stride + c, t[4];
        _mm_storeu_ps(t, sums_of_4(sum[r]));
        for (uint32_t i = 0; i < n; i++) y[i] = s0 ? y[i] + t[i] : t[i];
    }
}

KS_INLINE void run_rows(const ks_matmul_args *a, uint32_t type, uint32_t r0, uint32_t rows, uint32_t c0,
                        scratch_mem *mem)
{
    const uint32_t end = a->n_in - c0 < COLUMNS ? a->n_in : c0 + COLUMNS, strips = ks_t16_strips(a->n_out);
    const uint32_t per_group = a->group ? a->group : COLUMNS, n_groups = (end - c0 + per_group - 1) / per_group;
    const int nibbles = type == KS_T_I4 || type == KS_T_MXFP4;
    for (uint32_t s0 = 0; s0 < strips; s0 += T_STRIPS) {
        uint32_t s1 = strips - s0 < T_STRIPS ? strips : s0 + T_STRIPS;
        scale_rows(a, type, r0, rows, c0, n_groups, s0, s1, mem);
        for (uint32_t c = c0; c < end; c += 4) {
            const float(*x)[T_STRIPS * 16] = (const float(*)[T_STRIPS * 16]) mem->x[(c - c0) / per_group];
            if (nibbles && c % 8 == 4)
                four_columns(a, type, r0, rows, c, 1, s0, s1, x);
            else
                four_columns(a, type, r0, rows, c, 0, s0, s1, x);
        }
    }
}

KS_INLINE void matmul_t(const ks_matmul_args *a, uint32_t type, uint32_t begin, uint32_t end, void *scratch)
{
    for (uint32_t u = begin; u < end; u++) {
        uint32_t r = 0;
        for (; r + T_ROWS <= a->n_rows; r += T_ROWS) run_rows(a, type, r, T_ROWS, u * COLUMNS, scratch);
        if (a->n_rows - r == 2)
            run_rows(a, type, r, 2, u * COLUMNS, scratch);
        else if (a->n_rows - r == 1)
            run_rows(a, type, r, 1, u * COLUMNS, scratch);
    }
}

void matmul_t_f32_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul_t(args, KS_T_F32, begin, end, scratch);
}

void matmul_t_bf16_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul_t(args, KS_T_BF16, begin, end, scratch);
}

void matmul_t_i8_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul_t(args, KS_T_I8, begin, end, scratch);
}

void matmul_t_i4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul_t(args, KS_T_I4, begin, end, scratch);
}

void matmul_t_mxfp4_avx2(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul_t(args, KS_T_MXFP4, begin, end, scratch);
}
