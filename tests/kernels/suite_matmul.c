/* QUANT and MATMUL: inputs, magnitudes, evaluation in double. Not thread-safe. */
#include "ref/ref.h"
#include "suite.h"

#include <math.h>

typedef struct shape {
    uint32_t n_in, n_out, n_rows, group, gather, worst;
} shape;

static uint32_t n_scales(uint32_t n_in)
{
    return (n_in + 127) / 128;
}

/* ------------------------------------------------------------------------------------------------ quant */

static uint32_t quant_unit(const void *args, uint32_t b, size_t i)
{
    const ks_quant_args *a = args;
    uint32_t stride = b == 0 ? a->out->q_stride : b == 1 ? a->out->scale_stride : a->out->sum_stride;
    return (uint32_t)(i / stride);
}

/* Kinds of rows that a quantizer can get wrong. */
static void quant_row(suite *s, float *x, uint32_t n, uint32_t kind)
{
    static const float odd[] = { NAN, INFINITY, -INFINITY, 3.0e38f, 1.0e-38f, 1.0e-44f, -0.0f };
    suite_normals(s, x, n, kind == 1 ? 1e-37f : kind == 2 ? 1e36f : 1.0f);
    for (uint32_t i = 0; i < n && kind == 3; i++) x[i] = 0;
    for (uint32_t i = 0; i < n && kind == 4; i++) x[i] = (float)((int32_t)suite_below(s, 255) - 127) * 0.5f; /* ties */
    if (kind >= 5) x[suite_below(s, n)] = odd[suite_below(s, sizeof odd / sizeof odd[0])];
}

static int quant_case(suite *s, uint32_t n_in, uint32_t n_rows, uint32_t kind)
{
    uint32_t q_stride = (n_in + 63) / 64 * 64 + 64 * suite_below(s, 2);
    ks_quant_args a = { .size = sizeof a, .n_rows = n_rows, .n_in = n_in, .x_stride = n_in + suite_below(s, 5) };
    size_t n_x = (n_rows - 1) * a.x_stride + n_in;
    float *x = suite_input(s, "x", n_x * 4);
    ks_act out = { .q_stride = q_stride, .scale_stride = n_scales(n_in), .sum_stride = ks_t16_n_in(n_in) / 32 };
    a.x = x;
    a.out = &out;
    out.q = suite_output(s, "q", (size_t)n_rows * q_stride);
    out.scale = suite_output(s, "scale", (size_t)n_rows * out.scale_stride * 4);
    out.sum = suite_output(s, "sum", (size_t)n_rows * out.sum_stride * 4);
    (void)snprintf(s->what, sizeof s->what, "n_in %u, %u rows, input kind %u", n_in, n_rows, kind);
    suite_normals(s, x, n_x, 1);
    for (uint32_t r = 0; x && r < n_rows; r++) quant_row(s, x + r * a.x_stride, n_in, kind);
    suite_case c = { .args = &a, .n_units = n_rows, .elem_bytes = 1, .unit_of = quant_unit, .exact = true };
    int rc = suite_check(s, &c);
    suite_free(s);
    return rc;
}

int suite_quant(suite *s)
{
    static const uint32_t n_in[] = { 1, 7, 8, 31, 32, 33, 96, 127, 128, 130, 160, 256, 1000, 2048 };
    int rc = 0;
    for (uint32_t i = 0; !rc && i < sizeof n_in / sizeof n_in[0]; i++)
        for (uint32_t kind = 0; !rc && kind < 7; kind++) rc = quant_case(s, n_in[i], 1 + suite_below(s, 9), kind);
    return rc;
}

/* ----------------------------------------------------------------------------------------------- matmul */

static uint32_t matmul_unit(const void *args, uint32_t b, size_t i)
{
    const ks_matmul_args *a = args;
    (void)b;
    return i % a->y_stride < a->n_out ? (uint32_t)(i % a->y_stride) / 16 : UINT32_MAX;
}

static void eval(const ks_matmul_args *a, uint32_t wtype, bool single, double *ret_y, double *ret_mag)
{
    for (uint32_t r = 0; r < a->n_rows; r++) {
        size_t row = a->rows ? a->rows[r] : r;
        for (uint32_t o = 0; o < a->n_out; o++) {
            double acc = 0, mag = 0;
            for (uint32_t k = 0; k < a->n_in; k++) {
                double x = a->act ? (double)a->act->q[row * a->act->q_stride + k] *
                                        (double)a->act->scale[row * a->act->scale_stride + k / 128]
                                  : (double)a->x[row * a->x_stride + k];
                double p = suite_round((double)ks_ref_t16_get(a, wtype, o, k) * suite_round(x, single), single);
                acc = suite_round(acc + p, single);
                mag += fabs(p);
            }
            if (a->bias) {
                acc = suite_round(acc + (double)a->bias[o], single);
                mag += fabs((double)a->bias[o]);
            }
            ret_y[r * a->y_stride + o] = acc;
            ret_mag[r * a->y_stride + o] = mag;
        }
    }
}

#define EVAL(TYPE)                                                                         \
    static void eval_##TYPE(const void *args, bool single, double *ret_y, double *ret_mag) \
    {                                                                                      \
        eval(args, KS_T_##TYPE, single, ret_y, ret_mag);                                   \
    }
EVAL(F32)
EVAL(BF16)
EVAL(I8)
EVAL(I4)
EVAL(MXFP4)
#undef EVAL

static uint16_t bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)(u >> 16); /* cut off: any value will do */
}

static void put_value(suite *s, uint32_t type, uint8_t *strip, uint32_t i, uint32_t k, bool real, uint32_t worst)
{
    uint32_t code = (uint32_t)(suite_random(s) >> 40);
    float f = real ? suite_normal(s) : 0;
    uint16_t h = bf16(f);
    switch (type) {
    case KS_T_F32: memcpy(strip + ((size_t)k * 16 + i) * 4, &f, 4); break;
    case KS_T_BF16: memcpy(strip + ((size_t)(k / 2) * 16 + i) * 4 + 2 * (k % 2), &h, 2); break;
    case KS_T_I8: {
        int8_t v = (int8_t)(worst == 1   ? 127
                            : worst == 2 ? -127
                            : worst == 3 ? (k % 2 ? 127 : -127)
                            : worst == 5 ? -128 /* ours never hold it; somebody's file may */
                                         : (int)(code % 255) - 127);
        memcpy(strip + ((size_t)(k / 4) * 16 + i) * 4 + k % 4, real ? &v : &(int8_t) { 0 }, 1);
        break;
    }
    default: { /* nibbles: 0, 15, alternating; for mxfp4 the codes of +6 and -6 */
        uint8_t lo = type == KS_T_I4 ? 0 : 15, hi = type == KS_T_I4 ? 15 : 7, *p;
        uint8_t v = (uint8_t)(worst == 1 ? hi : worst == 2 ? lo : worst == 3 ? (k % 2 ? hi : lo) : code % 16);
        if (!real) v = type == KS_T_I4 ? 8 : 0;
        p = strip + ((size_t)(k / 8) * 16 + i) * 4 + k % 4;
        *p = (uint8_t)(k % 8 < 4 ? (*p & 0xf0) | v : (*p & 0x0f) | (v << 4));
    }
    }
}

static void put_scale(suite *s, uint32_t type, uint8_t *scales, size_t index, bool real, uint32_t worst)
{
    if (type == KS_T_MXFP4) {
        static const uint8_t odd[] = { 0, 1, 2, 3, 200, 254, 255, 127 };
        scales[index] = (uint8_t)(!real ? 0 : worst == 4 ? odd[suite_below(s, 8)] : 112 + suite_below(s, 20));
        return;
    }
    uint16_t h = bf16(!real || suite_below(s, 50) == 0 ? 0 : 0.02f * suite_normal(s));
    memcpy(scales + 2 * index, &h, 2);
}

static void *make_weights(suite *s, const shape *sh, size_t *ret_strip_bytes)
{
    uint32_t type = s->row->wtype, strips = ks_t16_strips(sh->n_out), n_in = ks_t16_n_in(sh->n_in);
    size_t bytes = ks_t16_strip_bytes(type, sh->n_in, sh->group);
    uint8_t *w = suite_input(s, "w", bytes * strips);
    *ret_strip_bytes = bytes;
    for (uint32_t st = 0; w && st < strips; st++) {
        uint8_t *strip = w + st * bytes, *scales = strip + ks_t16_values_bytes(type, sh->n_in);
        for (uint32_t i = 0; i < 16; i++) {
            bool row_real = st * 16 + i < sh->n_out;
            for (uint32_t k = 0; k < n_in; k++) put_value(s, type, strip, i, k, row_real && k < sh->n_in, sh->worst);
            for (uint32_t g = 0; sh->group && g < (n_in + sh->group - 1) / sh->group; g++)
                put_scale(s, type, scales, (size_t)g * 16 + i, row_real, sh->worst);
        }
    }
    return w;
}

/* Activations of n rows with every rule of ks_act but the rounding of real floats: any q, its sums. */
static void make_act(suite *s, const shape *sh, uint32_t n, ks_act *ret)
{
    ret->q_stride = (sh->n_in + 63) / 64 * 64;
    ret->scale_stride = n_scales(sh->n_in) + suite_below(s, 2);
    ret->sum_stride = ks_t16_n_in(sh->n_in) / 32 + suite_below(s, 2);
    ret->q = suite_input(s, "q", (size_t)n * ret->q_stride);
    ret->scale = suite_input(s, "scale", ((size_t)(n - 1) * ret->scale_stride + n_scales(sh->n_in)) * 4);
    ret->sum = suite_input(s, "sum", ((size_t)(n - 1) * ret->sum_stride + ks_t16_n_in(sh->n_in) / 32) * 4);
    if (!ret->sum) return;
    memset(ret->q, 0, (size_t)n * ret->q_stride);
    for (uint32_t r = 0; r < n; r++) {
        int8_t *q = ret->q + (size_t)r * ret->q_stride;
        for (uint32_t k = 0; k < sh->n_in; k++)
            q[k] = (int8_t)(sh->worst == 1 || sh->worst == 2 || sh->worst == 5 ? (r % 2 ? -127 : 127)
                            : sh->worst == 3                                   ? (k % 2 ? 127 : -127)
                                                                               : (int)suite_below(s, 255) - 127);
        for (uint32_t k = 0; k < n_scales(sh->n_in); k++)
            ret->scale[(size_t)r * ret->scale_stride + k] = fabsf(suite_normal(s)) * 0.01f;
        for (uint32_t k = 0; k < ks_t16_n_in(sh->n_in); k += 32) {
            int32_t sum = 0;
            for (uint32_t i = 0; i < 32; i++) sum += q[k + i];
            ret->sum[(size_t)r * ret->sum_stride + k / 32] = sum;
        }
    }
}

/* Each row alone has the bits it had among the others. */
static int check_single_rows(suite *s, const ks_matmul_args *a)
{
    const suite_buf *y = s->bufs;
    while (!y->output) y++;
    for (uint32_t r = 0; r < a->n_rows; r += 1 + a->n_rows / 5) {
        uint32_t row = a->rows ? a->rows[r] : r;
        ks_matmul_args one = *a;
        one.n_rows = 1;
        one.rows = &row;
        memcpy(y->p, y->init, y->bytes);
        int rc = suite_call(s, s->row, &one, 0, ks_t16_strips(a->n_out));
        if (rc) return rc;
        if (!suite_same(a->y, (const float *)(const void *)y->whole + r * a->y_stride, a->n_out))
            return suite_fail(s, KS_KRN_SPLIT, "row %u alone has other bits than among %u rows", r, a->n_rows);
    }
    return 0;
}

static int matmul_case(suite *s, const shape *sh)
{
    uint32_t n_src = sh->gather ? sh->n_rows + 3 : sh->n_rows;
    bool ints = s->row->xtype == KS_T_Q8;
    ks_act act = { 0 };
    ks_matmul_args a = { .size = sizeof a, .n_rows = sh->n_rows, .n_in = sh->n_in, .n_out = sh->n_out };
    (void)snprintf(s->what, sizeof s->what, "n_in %u, n_out %u, group %u, %u rows%s, input kind %u", sh->n_in,
                   sh->n_out, sh->group, sh->n_rows, sh->gather ? " gathered" : "", sh->worst);
    a.group = sh->group;
    a.w = make_weights(s, sh, &a.strip_bytes);
    a.x_stride = sh->n_in + suite_below(s, 7);
    if (ints) {
        make_act(s, sh, n_src, &act);
        a.act = &act;
    } else {
        size_t n = (n_src - 1) * a.x_stride + sh->n_in;
        float *x = suite_input(s, "x", n * 4);
        suite_normals(s, x, n, 1);
        a.x = x;
    }
    if (sh->gather) {
        uint32_t *rows = suite_input(s, "rows", (size_t)sh->n_rows * 4);
        for (uint32_t r = 0; rows && r < sh->n_rows; r++) rows[r] = suite_below(s, n_src);
        a.rows = rows;
    }
    if (suite_below(s, 2)) {
        float *bias = suite_input(s, "bias", (size_t)sh->n_out * 4);
        suite_normals(s, bias, sh->n_out, 1);
        a.bias = bias;
    }
    a.y_stride = sh->n_out + suite_below(s, 20);
    a.y = suite_output(s, "y", ((sh->n_rows - 1) * a.y_stride + sh->n_out) * 4);
    suite_case c = { .args = &a, .n_units = ks_t16_strips(sh->n_out), .elem_bytes = 4, .unit_of = matmul_unit };
    c.eps = 0x1p-23;
    c.exact = ints;
    switch (s->row->wtype) {
    case KS_T_F32: c.eval = eval_F32; break;
    case KS_T_BF16: c.eval = eval_BF16; break;
    case KS_T_I8: c.eval = eval_I8; break;
    case KS_T_I4: c.eval = eval_I4; break;
    default: /* kind 4 has scales far apart: products of codes, not of values, are what is exact */
        c.eval = sh->worst == 4 ? NULL : eval_MXFP4;
        break;
    }
    int rc = suite_check(s, &c);
    if (!rc) rc = check_single_rows(s, &a);
    suite_free(s);
    return rc;
}

/* -------------------------------------------------------------------------------- from the other side */

static uint32_t matmul_t_unit(const void *args, uint32_t b, size_t i)
{
    const ks_matmul_args *a = args;
    (void)b;
    return i % a->y_stride < a->n_in ? (uint32_t)(i % a->y_stride) / 128 : UINT32_MAX;
}

static void eval_t(const ks_matmul_args *a, uint32_t wtype, bool single, double *ret_y, double *ret_mag)
{
    for (uint32_t r = 0; r < a->n_rows; r++) {
        for (uint32_t k = 0; k < a->n_in; k++) {
            double acc = 0, mag = 0;
            for (uint32_t o = 0; o < a->n_out; o++) {
                double p = (double)ks_ref_t16_get(a, wtype, o, k) * (double)a->x[r * a->x_stride + o];
                acc = suite_round(acc + suite_round(p, single), single);
                mag += fabs(p);
            }
            ret_y[r * a->y_stride + k] = acc;
            ret_mag[r * a->y_stride + k] = mag;
        }
    }
}

#define EVAL(TYPE)                                                                           \
    static void eval_t_##TYPE(const void *args, bool single, double *ret_y, double *ret_mag) \
    {                                                                                        \
        eval_t(args, KS_T_##TYPE, single, ret_y, ret_mag);                                   \
    }
EVAL(F32)
EVAL(BF16)
EVAL(I8)
EVAL(I4)
EVAL(MXFP4)
#undef EVAL

static int matmul_t_case(suite *s, const shape *sh)
{
    ks_matmul_args a = { .size = sizeof a, .n_rows = sh->n_rows, .n_in = sh->n_in, .n_out = sh->n_out };
    uint32_t units = (sh->n_in + 127) / 128;
    (void)snprintf(s->what, sizeof s->what, "transposed, n_in %u, n_out %u, group %u, %u rows", sh->n_in, sh->n_out,
                   sh->group, sh->n_rows);
    a.group = sh->group;
    a.w = make_weights(s, sh, &a.strip_bytes);
    a.x_stride = sh->n_out + suite_below(s, 7);
    size_t n = (sh->n_rows - 1) * a.x_stride + sh->n_out;
    float *x = suite_input(s, "x", n * 4);
    suite_normals(s, x, n, 1);
    a.x = x;
    a.y_stride = sh->n_in + suite_below(s, 20);
    a.y = suite_output(s, "y", ((sh->n_rows - 1) * a.y_stride + sh->n_in) * 4);
    suite_case c = { .args = &a, .n_units = units, .elem_bytes = 4, .unit_of = matmul_t_unit, .eps = 0x1p-22 };
    uint32_t type = s->row->wtype;
    c.eval = type == KS_T_F32    ? eval_t_F32
             : type == KS_T_BF16 ? eval_t_BF16
             : type == KS_T_I8   ? eval_t_I8
             : type == KS_T_I4   ? eval_t_I4
                                 : eval_t_MXFP4;
    int rc = suite_check(s, &c);
    const suite_buf *y = s->bufs;
    while (!rc && !y->output) y++;
    for (uint32_t r = 0; !rc && r < a.n_rows; r++) { /* each row alone has the bits it had among the others */
        ks_matmul_args one = a;
        one.n_rows = 1;
        one.x += r * a.x_stride;
        memcpy(y->p, y->init, y->bytes);
        rc = suite_call(s, s->row, &one, 0, units);
        if (!rc && !suite_same(a.y, (const float *)(const void *)y->whole + r * a.y_stride, a.n_in))
            rc = suite_fail(s, KS_KRN_SPLIT, "row %u alone has other bits than among %u rows", r, a.n_rows);
    }
    suite_free(s);
    return rc;
}

int suite_matmul_t(suite *s)
{
    static const struct {
        uint32_t n_in, n_out, n_rows;
    } shapes[] = { { 512, 128, 1 }, { 512, 64, 7 }, { 128, 16, 2 }, { 130, 33, 3 }, { 32, 5, 4 },
                   { 415, 20, 5 },  { 64, 530, 2 }, { 7, 1, 1 },    { 200, 97, 6 }, { 1056, 24, 1 } };
    static const uint32_t groups[] = { 128, 64, 32 };
    uint32_t type = s->row->wtype;
    if (type != KS_T_F32 && type != KS_T_BF16 && type != KS_T_I8 && type != KS_T_I4 && type != KS_T_MXFP4)
        return suite_fail(s, -1, "weights of type %u are unknown to this suite", type);
    bool grouped = type != KS_T_F32 && type != KS_T_BF16;
    int rc = 0;
    for (uint32_t i = 0; !rc && i < 30; i++) {
        shape sh = { .n_in = shapes[i % 10].n_in, .n_out = shapes[i % 10].n_out, .n_rows = shapes[i % 10].n_rows };
        if (grouped) sh.group = type == KS_T_MXFP4 ? 32 : groups[i / 10];
        rc = matmul_t_case(s, &sh);
    }
    return rc;
}

/* Kernels change their way with the number of rows: more than any one's tile, chunk or pass, every group size, columns
 * that do not fill a group, rows of activations that fill its scratch. */
static int many_rows(suite *s, bool ints)
{
    static const struct {
        uint32_t n_in, n_out, n_rows;
    } shapes[] = { { 128, 33, 65 }, { 32, 17, 65 },   { 96, 50, 130 },  { 160, 16, 130 }, { 415, 33, 65 },
                   { 512, 9, 130 }, { 1056, 48, 65 }, { 672, 17, 200 }, { 8192, 5, 65 },  { 40000, 3, 20 } };
    static const uint32_t groups[] = { 128, 64, 32 }, worst[] = { 0, 1, 2, 3, 5 };
    uint32_t n_groups = ints && s->row->wtype != KS_T_MXFP4 ? 3 : 1, i = 0;
    int rc = 0;
    for (uint32_t k = 0; !rc && k < sizeof shapes / sizeof shapes[0]; k++) {
        for (uint32_t g = 0; !rc && g < (shapes[k].n_in > 2000 ? 1 : n_groups); g++, i++) {
            shape sh = { .n_in = shapes[k].n_in, .n_out = shapes[k].n_out, .n_rows = shapes[k].n_rows };
            sh.gather = i % 2;
            sh.worst = worst[i % 5];
            if (ints) sh.group = n_groups == 1 ? 32 : groups[g];
            rc = matmul_case(s, &sh);
        }
    }
    return rc;
}

int suite_matmul(suite *s)
{
    static const uint32_t n_in[] = { 32, 64, 96, 128, 160, 256, 288, 416, 672, 1056 };
    static const uint32_t n_out[] = { 1, 8, 9, 15, 16, 17, 33, 50 };
    static const uint32_t groups[] = { 128, 64, 32 };
    uint32_t type = s->row->wtype;
    bool ints = type == KS_T_I8 || type == KS_T_I4 || type == KS_T_MXFP4;
    if (!(ints && s->row->xtype == KS_T_Q8) && !((type == KS_T_F32 || type == KS_T_BF16) && s->row->xtype == KS_T_F32))
        return suite_fail(s, -1, "weight type %u with activation type %u is unknown to this suite", type,
                          s->row->xtype);
    int rc = 0;
    for (uint32_t i = 0; !rc && i < 60; i++) {
        shape sh = { .n_in = n_in[i % 10],
                     .n_out = n_out[suite_below(s, 8)],
                     .n_rows = i < 20 ? i + 1 : 1 + suite_below(s, 12) };
        if (i >= 50) sh.n_in -= 1 + suite_below(s, 20); /* not a multiple of 32 */
        if (i == 49) sh.n_rows = 131;                   /* more than any kernel's chunk of rows */
        if (ints) sh.group = type == KS_T_MXFP4 ? 32 : groups[suite_below(s, 3)];
        sh.gather = suite_below(s, 2);
        sh.worst = i % 3 == 0 ? i / 3 % 5 : 0;
        rc = matmul_case(s, &sh);
    }
    return rc ? rc : many_rows(s, ints);
}
