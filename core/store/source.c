/* Reads source tensors as floats or as codes. A new storage scheme is a finder in ks__src_find, a row in `schemes`
 * and its test. */
#include "store/source.h"
#include "base/base.h"
#include "base/hash.h"
#include "base/num.h"
#include "store/conv.h"
#include "store/packed.h"
#include <inttypes.h>

#define NAME_BYTES 640u

/* Bits of one number, and how a row of raw bytes and its scales become numbers. */
typedef struct scheme {
    uint32_t bits; /* 0: of the tensor's type */
    void (*unpack)(const uint8_t *raw, float *dst, uint32_t cols);
} scheme;

static void unpack_f8(const uint8_t *raw, float *dst, uint32_t cols)
{
    ks__conv_find(KS_T_F8E4M3)->to_f32(raw, dst, cols);
}

static void unpack_ct4(const uint8_t *raw, float *dst, uint32_t cols)
{
    for (uint32_t k = 0; k < cols; k++) dst[k] = (float)((raw[k / 2] >> (k % 2 * 4) & 15) - 8);
}

static void unpack_mxfp4(const uint8_t *raw, float *dst, uint32_t cols)
{
    float value[16];
    for (uint8_t i = 0; i < 16; i++) value[i] = ks_e2m1_to_f32(i);
    for (uint32_t k = 0; k < cols; k++) dst[k] = value[raw[k / 2] >> (k % 2 * 4) & 15];
}

static const scheme schemes[] = {
    [KS_SCHEME_PLAIN] = { 0, NULL },         [KS_SCHEME_FP8] = { 8, unpack_f8 }, [KS_SCHEME_CT4] = { 4, unpack_ct4 },
    [KS_SCHEME_MXFP4] = { 4, unpack_mxfp4 }, [KS_SCHEME_GPTQ] = { 4, NULL }, /* packed.c */
    [KS_SCHEME_AWQ] = { 4, NULL },
};

static uint32_t bits_of(const ks_src *s)
{
    return schemes[s->scheme].bits ? schemes[s->scheme].bits : ks_type_bits(s->t->type);
}

static uint32_t groups_of(const ks_src *s)
{
    return s->cols / s->group + (s->cols % s->group != 0);
}

static void scale_to_f32(const ks_src *s, const void *raw, float *dst, size_t n)
{
    if (s->scheme == KS_SCHEME_MXFP4)
        for (size_t i = 0; i < n; i++) dst[i] = ks_e8m0_to_f32(((const uint8_t *)raw)[i]);
    else
        ks__conv_find(s->aux->type)->to_f32(raw, dst, n);
}

/* ---- finding */

/* name with its last `cut` bytes replaced */
static const ks_tensor *companion(const ks_ckpt *c, const char *name, size_t cut, const char *tail)
{
    char full[NAME_BYTES];
    int n = snprintf(full, sizeof full, "%.*s%s", (int)(strlen(name) - cut), name, tail);
    return n > 0 && n < (int)sizeof full ? ks_ckpt_find(c, full) : NULL;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

/* Block scales are `_scale_inv`; one a row or one a tensor is `_scale`, which of both ks__src_check sees by their
 * number. */
static int find_fp8(const ks_ckpt *c, const ks_qconf *q, ks_src *s, ks_err *err)
{
    s->aux = companion(c, s->t->name, 0, "_scale_inv");
    const bool blocks = s->aux != NULL;
    if (!blocks) s->aux = companion(c, s->t->name, 0, "_scale");
    if (!s->aux) return 0;
    if (s->t->type != KS_T_F8E4M3 || s->t->rank == 0 || q->scheme != KS_SCHEME_FP8 || blocks != (q->block_rows != 0) ||
        blocks != (q->block_cols != 0))
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "tensor '%s' has a '%s', but quantization_config in config.json has %s for fp8 (e4m3)",
                       s->t->name, blocks ? "_scale_inv" : "_scale",
                       blocks ? "no weight_block_size" : "no scales a row or tensor");
    s->scheme = KS_SCHEME_FP8;
    s->block_rows = q->block_rows;
    s->group = blocks ? q->block_cols : (uint32_t)KS_MIN(s->t->shape[s->t->rank - 1], (uint64_t)UINT32_MAX);
    return 0;
}

static int find_plain(const ks_ckpt *c, const ks_qconf *q, const ks_tensor *t, ks_src *s, ks_err *err)
{
    s->t = t;
    s->rank = t->rank;
    memcpy(s->shape, t->shape, sizeof s->shape);
    if (!ks__conv_find(t->type))
        return ks_fail(err, KS_E_UNSUPPORTED, "tensor '%s' has type %s, which is none for weights", t->name,
                       ks_type_name(t->type));
    return t->type == KS_T_F8E4M3 || t->type == KS_T_F8E5M2 ? find_fp8(c, q, s, err) : 0;
}

static int find_ct4(const ks_ckpt *c, const ks_qconf *q, const char *name, ks_src *s, ks_err *err)
{
    const size_t cut = strlen("weight");
    s->aux = companion(c, name, cut, "weight_scale");
    if (q->scheme != KS_SCHEME_CT4 || !s->aux || s->t->type != KS_T_I32 || s->t->rank < 2)
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "tensor '%s' is packed: it needs type i32, a 'weight_scale' beside it, and a compressed-tensors "
                       "quantization_config of 4 bits in config.json",
                       s->t->name);
    if (companion(c, name, cut, "weight_zero_point") || companion(c, name, cut, "weight_g_idx"))
        return ks_fail(err, KS_E_UNSUPPORTED, "tensor '%s' has zero points or a group order, which are not supported",
                       s->t->name);
    s->scheme = KS_SCHEME_CT4;
    s->rank = s->t->rank;
    memcpy(s->shape, s->t->shape, sizeof s->shape);
    s->shape[s->rank - 1] *= 8; /* the file's size bounds it */
    s->block_rows = 1;
    s->group = q->group ? q->group : (uint32_t)KS_MIN(s->shape[s->rank - 1], (uint64_t)UINT32_MAX);
    return 0;
}

static int find_mxfp4(const ks_ckpt *c, const char *name, ks_src *s, ks_err *err)
{
    s->aux = companion(c, name, 0, "_scales");
    if (!s->aux || s->t->type != KS_T_U8 || s->aux->type != KS_T_U8 || s->t->rank < 3 ||
        s->t->shape[s->t->rank - 1] != 16)
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "tensor '%s' does not look like MXFP4: u8 blocks of 16 bytes and '_scales' beside them",
                       s->t->name);
    s->scheme = KS_SCHEME_MXFP4;
    s->rank = s->t->rank - 1;
    memcpy(s->shape, s->t->shape, sizeof s->shape);
    s->shape[s->rank - 1] *= 32;
    s->block_rows = 1;
    s->group = 32;
    return 0;
}

int ks__src_find(const ks_ckpt *c, const ks_qconf *q, const char *name, ks_src *ret, ks_err *err)
{
    const bool weight = ends_with(name, ".weight");
    const ks_tensor *t = ks_ckpt_find(c, name);
    memset(ret, 0, sizeof *ret);
    if (t) return find_plain(c, q, t, ret, err);
    ret->t = weight ? companion(c, name, strlen("weight"), "weight_packed") : NULL;
    if (ret->t) return find_ct4(c, q, name, ret, err);
    ret->t = companion(c, name, 0, "_blocks");
    if (ret->t) return find_mxfp4(c, name, ret, err);
    ret->t = weight ? companion(c, name, strlen("weight"), "qweight") : NULL;
    return ret->t ? ks__packed_find(c, q, name, ret, err) : 0;
}

int ks__src_check(ks_src *s, uint32_t slice, uint32_t n_slices, ks_err *err)
{
    if (s->scheme == KS_SCHEME_PLAIN) return 0;
    if (ks__src_is_packed(s) && n_slices != 1)
        return ks_fail(err, KS_E_UNSUPPORTED, "tensor '%s' is one packed matrix, the model reads a stack of %" PRIu32,
                       s->t->name, n_slices);
    if (s->transposed)
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "tensor '%s' is quantized and lies the other way round than the model reads it", s->t->name);
    s->transposed = ks__src_is_packed(s);
    if (s->transposed) return 0; /* the rest was held against each other when it was found */
    const bool coarse = s->scheme == KS_SCHEME_FP8;
    uint64_t has = 1;
    for (uint32_t i = 0; i < s->aux->rank; i++) has *= s->aux->shape[i]; /* the file's size bounds it */
    if (s->block_rows == 0) s->block_rows = has == n_slices ? (uint32_t)KS_MIN(s->rows, (uint64_t)UINT32_MAX) : 1;
    const uint64_t a_slice = (s->rows / s->block_rows + (s->rows % s->block_rows != 0)) * groups_of(s);
    if (has != a_slice * n_slices || (!coarse && s->cols % s->group != 0) ||
        (s->scheme != KS_SCHEME_MXFP4 && !ks__conv_find(s->aux->type)))
        return ks_fail(err, KS_E_FORMAT,
                       "tensor '%s' has %" PRIu64 " scales of type %s, '%s' with %" PRIu64 " x %" PRIu32
                       " in groups of %" PRIu32 " needs %" PRIu64,
                       s->aux->name, has, ks_type_name(s->aux->type), s->t->name, s->rows, s->cols, s->group,
                       a_slice * n_slices);
    s->aux_elem = slice * a_slice;
    return 0;
}

bool ks__src_fits_bf16(const ks_src *s)
{
    if (s->scheme == KS_SCHEME_PLAIN) return !ks__conv_find(s->t->type)->wide;
    return s->scheme == KS_SCHEME_MXFP4; /* two bits of mantissa and a power of two */
}

uint32_t ks__src_exact_type(const ks_src *s, uint32_t *ret_group)
{
    *ret_group = s->group;
    if (s->scheme == KS_SCHEME_MXFP4) return KS_T_MXFP4;
    if (s->scheme == KS_SCHEME_CT4 && s->aux->type == KS_T_BF16 &&
        (s->group == 32 || s->group == 64 || s->group == 128))
        return KS_T_I4;
    return s->exact ? KS_T_I4 : 0;
}

/* ---- reading */

static int get(ks_fetch *f, const ks_tensor *t, uint64_t off, void *dst, size_t n, ks_err *err)
{
    int rc = ks_ckpt_read(f->c, t, off, dst, n, err);
    if (rc == 0) f->hash = ks_hash64(dst, n, f->hash);
    return rc;
}

static size_t scales_at(const ks_src *s, uint64_t n_rows)
{
    return ks_align_up(n_rows * s->cols * bits_of(s) / 8, 64);
}

size_t ks__src_raw_bytes(const ks_src *s, uint64_t n_rows)
{
    if (ks__src_is_packed(s)) return ks__packed_raw_bytes(s, n_rows);
    if (s->scheme == KS_SCHEME_PLAIN) return n_rows * (s->transposed ? 1 : s->cols) * bits_of(s) / 8;
    /* numbers, scales as they are (8 bytes at most), scales as floats */
    return scales_at(s, n_rows) + ks_align_up(n_rows * groups_of(s) * 8, 64) + n_rows * groups_of(s) * sizeof(float);
}

static int not_finite(const ks_tensor *t, float v, uint64_t row, uint64_t col, ks_err *err)
{
    return ks_fail(err, KS_E_FORMAT, "tensor '%s' holds %s at [%" PRIu64 ", %" PRIu64 "]: the file is damaged", t->name,
                   v != v ? "NaN" : "an infinity", row, col);
}

static int check_finite(const ks_tensor *t, const float *x, size_t n, uint64_t row, uint64_t cols, ks_err *err)
{
    size_t i = ks__find_nonfinite(x, n);
    return i == n ? 0 : not_finite(t, x[i], row + i / cols, i % cols, err);
}

/* The scales of rows [row, row + n), as they are stored, behind the numbers in the scratch; as floats behind them. */
static int get_scales(ks_fetch *f, const ks_src *s, uint64_t row, uint32_t n, void **ret_raw, float **ret_f32,
                      ks_err *err)
{
    const uint32_t groups = groups_of(s), width = ks_type_bits(s->aux->type) / 8;
    uint64_t first = row / s->block_rows, count = (row + n - 1) / s->block_rows - first + 1;
    uint8_t *raw = f->raw + scales_at(s, n);
    float *f32 = (float *)(void *)(raw + ks_align_up((size_t)n * groups * 8, 64));
    int rc = get(f, s->aux, (s->aux_elem + first * groups) * width, raw, (size_t)count * groups * width, err);
    if (rc != 0 || f->dry) return rc;
    scale_to_f32(s, raw, f32, (size_t)count * groups);
    *ret_raw = raw;
    *ret_f32 = f32;
    return check_finite(s->aux, f32, (size_t)count * groups, first, groups, err);
}

static int get_numbers(ks_fetch *f, const ks_src *s, uint64_t row, uint32_t n, ks_err *err)
{
    return get(f, s->t, (s->elem + row * s->cols) * bits_of(s) / 8, f->raw, (size_t)n * s->cols * bits_of(s) / 8, err);
}

int ks__src_rows(ks_fetch *f, const ks_src *s, uint64_t row, uint32_t n, float *dst, ks_err *err)
{
    void *raw_scales;
    float *scales = NULL;
    int rc = get_numbers(f, s, row, n, err);
    if (rc == 0 && s->scheme != KS_SCHEME_PLAIN) rc = get_scales(f, s, row, n, &raw_scales, &scales, err);
    if (rc != 0 || f->dry) return rc;
    if (s->scheme == KS_SCHEME_PLAIN) {
        ks__conv_find(s->t->type)->to_f32(f->raw, dst, (size_t)n * s->cols);
        return check_finite(s->t, dst, (size_t)n * s->cols, row, s->cols, err);
    }
    for (uint32_t i = 0; i < n; i++) {
        float *x = dst + (size_t)i * s->cols;
        const float *scale = scales + ((row + i) / s->block_rows - row / s->block_rows) * groups_of(s);
        schemes[s->scheme].unpack(f->raw + (size_t)i * s->cols * bits_of(s) / 8, x, s->cols);
        for (uint32_t k = 0; k < s->cols; k++) x[k] *= scale[k / s->group];
    }
    return check_finite(s->t, dst, (size_t)n * s->cols, row, s->cols, err);
}

int ks__src_load(ks_fetch *f, const ks_src *s, uint64_t row, uint64_t n, ks_err *err)
{
    return ks__src_is_packed(s) ? ks__packed_load(f, s, row, n, err) : 0;
}

int ks__src_column(ks_fetch *f, const ks_src *s, uint32_t k, uint64_t row, uint64_t n, float *dst, ks_err *err)
{
    const bool packed = ks__src_is_packed(s);
    const uint32_t width = bits_of(s) / 8; /* else only plain sources are transposed: ks__src_check */
    int rc = packed ? 0 : get(f, s->t, (s->elem + k * s->rows + row) * width, f->raw, n * width, err);
    if (rc != 0 || f->dry) return rc;
    if (packed)
        ks__packed_column(f, s, k, row, n, dst);
    else
        ks__conv_find(s->t->type)->to_f32(f->raw, dst, n);
    size_t i = ks__find_nonfinite(dst, n);
    return i == n ? 0 : not_finite(s->t, dst[i], k, row + i, err);
}

int ks__src_codes(ks_fetch *f, const ks_src *s, uint64_t row, int8_t *codes, uint16_t *scales, ks_err *err)
{
    const int bias = s->scheme == KS_SCHEME_CT4 ? 8 : 0;
    void *raw;
    float *f32;
    if (ks__src_is_packed(s)) {
        if (!f->dry) ks__packed_codes(f, s, row, codes, scales);
        return 0;
    }
    int rc = get_numbers(f, s, row, 1, err);
    if (rc == 0) rc = get_scales(f, s, row, 1, &raw, &f32, err);
    if (rc != 0 || f->dry) return rc;
    for (uint32_t k = 0; k < s->cols; k++) codes[k] = (int8_t)((f->raw[k / 2] >> (k % 2 * 4) & 15) - bias);
    for (uint32_t g = 0; g < groups_of(s); g++)
        scales[g] = s->scheme == KS_SCHEME_MXFP4 ? ((const uint8_t *)raw)[g] : ((const uint16_t *)raw)[g];
    return 0;
}
