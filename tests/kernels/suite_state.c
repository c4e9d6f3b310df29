/* MUL and SCORE, and the ops that keep a state: CONV and DELTA, whose bits must not depend on how a sequence is cut
 * into pieces either. Inputs and evaluation, in double or as a scalar float program. Not thread-safe. */
#include "suite.h"

#include <math.h>
#include <stdlib.h>

#define R(v) suite_round(v, single)

static double sigmoid(double x, bool single)
{
    return R(1 / R(1 + R(exp(-x))));
}

/* *ret_mag: what a relative error of 2^-24 of everything under the exponential comes to, at most. */
static double act1(uint32_t act, double x, bool single, double *ret_mag)
{
    double s = sigmoid(x, single), y = act == KS_ACT1_NONE ? x : act == KS_ACT1_SILU ? R(x * s) : s;
    *ret_mag = act == KS_ACT1_NONE ? fabs(y) : fabs(y) * (1 + fabs(x)) + 1e-28;
    return y;
}

/* -------------------------------------------------------------------------------------------------- mul */

static uint32_t mul_unit(const void *args, uint32_t b, size_t i)
{
    const ks_mul_args *a = args;
    (void)b;
    return i % a->z_stride < a->n ? (uint32_t)(i / a->z_stride) : UINT32_MAX;
}

static void eval_mul(const void *args, bool single, double *ret_y, double *ret_mag)
{
    const ks_mul_args *a = args;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        for (uint32_t i = 0; i < a->n; i++) {
            double x = (double)a->x[r * a->x_stride + i], mag;
            double f = act1(a->act, (double)a->y[r * a->y_stride + i / (a->n / a->n_y)], single, &mag);
            ret_y[r * a->z_stride + i] = R(x * f);
            ret_mag[r * a->z_stride + i] = fabs(x) * mag;
        }
    }
}

static int mul_case(suite *s, uint32_t act, uint32_t n_y, uint32_t per, float scale)
{
    uint32_t n_rows = 1 + suite_below(s, 5), n = n_y * per, place = suite_below(s, per == 1 ? 3 : 2);
    ks_mul_args a = { .size = sizeof a, .act = act, .n_rows = n_rows, .n = n, .n_y = n_y };
    a.x_stride = n + suite_below(s, 9);
    a.y_stride = n_y + suite_below(s, 9);
    a.z_stride = place == 1 ? a.x_stride : place == 2 ? a.y_stride : n + suite_below(s, 9);
    size_t n_x = (n_rows - 1) * a.x_stride + n, n_ys = (n_rows - 1) * a.y_stride + n_y;
    float *x = place == 1 ? suite_output(s, "x", n_x * 4) : suite_input(s, "x", n_x * 4);
    float *y = place == 2 ? suite_output(s, "y", n_ys * 4) : suite_input(s, "y", n_ys * 4);
    suite_normals(s, x, n_x, 1);
    suite_normals(s, y, n_ys, scale);
    a.x = x;
    a.y = y;
    a.z = place == 1 ? x : place == 2 ? y : suite_output(s, "z", ((n_rows - 1) * a.z_stride + n) * 4);
    (void)snprintf(s->what, sizeof s->what, "act %u, %u times %u columns, %u rows%s, scale %g", act, n_y, per, n_rows,
                   place ? " in place" : "", (double)scale);
    suite_case c = { .args = &a, .n_units = n_rows, .elem_bytes = 4, .unit_of = mul_unit, .eval = eval_mul };
    c.eps = 0x1p-22;
    int rc = suite_check(s, &c);
    suite_free(s);
    return rc;
}

int suite_mul(suite *s)
{
    /* n_y, columns for each */
    static const uint32_t shapes[][2] = { { 1, 1 },  { 7, 1 },   { 8, 1 },  { 33, 1 }, { 256, 1 }, { 1, 5 },
                                          { 1, 64 }, { 16, 64 }, { 3, 20 }, { 5, 9 },  { 2, 128 }, { 100, 1 } };
    static const float scales[] = { 1.0f, 0.01f, 10.0f, 70.0f };
    int rc = 0;
    for (uint32_t act = KS_ACT1_NONE; act <= KS_ACT1_SILU; act++)
        for (uint32_t i = 0; !rc && i < sizeof shapes / sizeof shapes[0]; i++)
            rc = mul_case(s, act, shapes[i][0], shapes[i][1], scales[suite_below(s, 4)]);
    return rc;
}

/* ------------------------------------------------------------------------------------------------ score */

static uint32_t score_unit(const void *args, uint32_t b, size_t i)
{
    const ks_score_args *a = args;
    (void)b;
    return i % a->y_stride < a->n ? (uint32_t)(i / a->y_stride) : UINT32_MAX;
}

static void softmax(const float *x, uint32_t n, bool single, double *ret_y, double *ret_mag)
{
    double max = (double)x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++) max = fmax(max, (double)x[i]);
    for (uint32_t i = 0; i < n; i++) sum = R(sum + R(exp(R((double)x[i] - max))));
    for (uint32_t i = 0; i < n; i++) {
        ret_y[i] = R(R(exp(R((double)x[i] - max))) / sum);
        ret_mag[i] = ret_y[i] * (1 + max - (double)x[i]) + 1e-36;
    }
}

static void eval_score(const void *args, bool single, double *ret_y, double *ret_mag)
{
    const ks_score_args *a = args;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        const float *x = a->x + r * a->x_stride;
        double *y = ret_y + r * a->y_stride, *mag = ret_mag + r * a->y_stride;
        if (a->kind == KS_SCORE_SOFTMAX) softmax(x, a->n, single, y, mag);
        for (uint32_t i = 0; i < a->n && a->kind != KS_SCORE_SOFTMAX; i++) {
            double v = (double)x[i], e = R(log1p(R(exp(-fabs(v)))));
            y[i] = a->kind == KS_SCORE_SIGMOID ? act1(KS_ACT1_SIGMOID, v, single, &mag[i]) : R(sqrt(R(fmax(v, 0) + e)));
            if (a->kind != KS_SCORE_SIGMOID) mag[i] = y[i] * (1 + fabs(v)) + 1e-15; /* e^v leaves float below -103 */
        }
    }
}

static int score_case(suite *s, uint32_t kind, uint32_t n, float scale)
{
    uint32_t n_rows = 1 + suite_below(s, 5);
    bool in_place = suite_below(s, 2);
    ks_score_args a = { .size = sizeof a, .kind = kind, .n_rows = n_rows, .n = n, .x_stride = n + suite_below(s, 9) };
    a.y_stride = in_place ? a.x_stride : n + suite_below(s, 9);
    size_t n_x = (n_rows - 1) * a.x_stride + n;
    float *x = in_place ? suite_output(s, "x", n_x * 4) : suite_input(s, "x", n_x * 4);
    suite_normals(s, x, n_x, scale);
    a.x = x;
    a.y = in_place ? x : suite_output(s, "y", ((n_rows - 1) * a.y_stride + n) * 4);
    (void)snprintf(s->what, sizeof s->what, "kind %u, %u columns, %u rows%s, scale %g", kind, n, n_rows,
                   in_place ? " in place" : "", (double)scale);
    suite_case c = { .args = &a, .n_units = n_rows, .elem_bytes = 4, .unit_of = score_unit, .eval = eval_score };
    c.eps = 0x1p-22;
    int rc = suite_check(s, &c);
    suite_free(s);
    return rc;
}

int suite_score(suite *s)
{
    static const uint32_t widths[] = { 1, 4, 8, 10, 16, 31, 64, 128, 160, 512 };
    static const float scales[] = { 1.0f, 0.01f, 10.0f, 60.0f };
    int rc = 0;
    for (uint32_t kind = KS_SCORE_SOFTMAX; kind <= KS_SCORE_SQRT_SOFTPLUS; kind++)
        for (uint32_t i = 0; !rc && i < sizeof widths / sizeof widths[0]; i++)
            rc = score_case(s, kind, widths[i], scales[suite_below(s, 4)]);
    return rc;
}

/* ------------------------------------------------------------------------------------------------ pieces */

/* The rows in pieces of random size, each a call for all units, must leave the first output as it was. `cut` turns
 * copied arguments into those of rows [row, row + n). */
static int check_pieces(suite *s, void *args, const void *whole, size_t bytes, uint32_t n_rows, uint32_t n_units,
                        void (*cut)(void *args, uint32_t row, uint32_t n))
{
    static const uint32_t most[] = { 1, 4, 16, 40 };
    const suite_buf *o = s->bufs;
    while (!o->output) o++;
    for (uint32_t i = 0; i < sizeof most / sizeof most[0]; i++) {
        for (uint32_t b = 0; b < s->n_bufs; b++)
            if (s->bufs[b].output) memcpy(s->bufs[b].p, s->bufs[b].init, s->bufs[b].bytes);
        for (uint32_t r = 0, n; r < n_rows; r += n) {
            n = 1 + suite_below(s, most[i]);
            if (n > n_rows - r) n = n_rows - r;
            memcpy(args, whole, bytes);
            cut(args, r, n);
            int rc = suite_call(s, s->row, args, 0, n_units);
            if (rc) return rc;
        }
        if (!suite_same((const float *)(const void *)o->p, (const float *)(const void *)o->whole, o->bytes / 4))
            return suite_fail(s, KS_KRN_SPLIT, "pieces of up to %u rows have other bits than %u rows together", most[i],
                              n_rows);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------- conv */

static uint32_t conv_unit(const void *args, uint32_t b, size_t i)
{
    const ks_conv_args *a = args;
    if (b == 1) return (uint32_t)(i % a->n / 16); /* the state */
    return i % a->y_stride < a->n ? (uint32_t)(i % a->y_stride / 16) : UINT32_MAX;
}

static void eval_conv(const void *args, bool single, double *ret_y, double *ret_mag)
{
    const ks_conv_args *a = args;
    uint32_t n = a->width - 1;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        for (uint32_t c = 0; c < a->n; c++) {
            double sum = 0, mag = 0, act_mag;
            for (uint32_t i = 0; i < a->width; i++) {
                double x = (double)(r + i >= n ? a->x[(r + i - n) * a->x_stride + c]
                                               : a->state[(size_t)((a->pos + r + i) % n) * a->n + c]);
                double f = (double)a->weight[(size_t)i * a->n + c];
                sum = R(sum + R(x * f));
                mag += fabs(x * f);
            }
            if (a->bias) {
                sum = R(sum + (double)a->bias[c]);
                mag += fabs((double)a->bias[c]);
            }
            ret_y[r * a->y_stride + c] = act1(a->act, sum, single, &act_mag);
            ret_mag[r * a->y_stride + c] = mag + act_mag;
        }
    }
}

static void cut_conv(void *args, uint32_t row, uint32_t n)
{
    ks_conv_args *a = args;
    a->n_rows = n;
    a->pos += row;
    a->x += row * a->x_stride;
    a->y += row * a->y_stride;
}

static int conv_case(suite *s, uint32_t n, uint32_t width, uint32_t n_rows)
{
    bool in_place = suite_below(s, 2);
    ks_conv_args a = { .size = sizeof a, .n_rows = n_rows, .n = n, .width = width, .pos = suite_below(s, 100) };
    a.act = suite_below(s, 3);
    a.x_stride = n + suite_below(s, 9);
    a.y_stride = in_place ? a.x_stride : n + suite_below(s, 9);
    size_t n_x = (n_rows - 1) * a.x_stride + n, n_w = (size_t)width * n, n_state = n_w - n;
    float *w = suite_input(s, "weight", n_w * 4), *b = suite_below(s, 2) ? suite_input(s, "bias", (size_t)n * 4) : NULL;
    float *x = in_place ? suite_output(s, "x", n_x * 4) : suite_input(s, "x", n_x * 4);
    suite_normals(s, x, n_x, 1);
    suite_normals(s, w, n_w, 1);
    suite_normals(s, b, n, 1);
    a.x = x;
    a.weight = w;
    a.bias = b;
    a.y = in_place ? x : suite_output(s, "y", ((n_rows - 1) * a.y_stride + n) * 4);
    a.state = suite_output(s, "state", n_state * 4);
    suite_normals(s, a.state, n_state, 1);
    (void)snprintf(s->what, sizeof s->what, "%u channels, width %u, %u rows at %u, act %u%s", n, width, n_rows, a.pos,
                   a.act, in_place ? ", in place" : "");
    suite_case c = { .args = &a, .n_units = (n + 15) / 16, .elem_bytes = 4, .unit_of = conv_unit, .eval = eval_conv };
    c.eps = 0x1p-22;
    ks_conv_args piece;
    int rc = suite_check(s, &c);
    if (!rc) rc = check_pieces(s, &piece, &a, sizeof a, n_rows, c.n_units, cut_conv);
    suite_free(s);
    return rc;
}

int suite_conv(suite *s)
{
    static const uint32_t channels[] = { 1, 8, 16, 40, 100, 256, 300, 700 };
    static const uint32_t widths[] = { 4, 3, 2, 1, 4, 7, KS_CONV_WIDTH_MAX };
    int rc = 0;
    for (uint32_t i = 0; !rc && i < 28; i++) rc = conv_case(s, channels[i % 8], widths[i % 7], 1 + suite_below(s, 40));
    return rc;
}

/* ------------------------------------------------------------------------------------------------ delta */

static uint32_t delta_unit(const void *args, uint32_t b, size_t i)
{
    const ks_delta_args *a = args;
    if (b == 1) return (uint32_t)(i / ks_delta_floats(a->d_k, a->d_v));
    size_t column = i % a->o_stride;
    return column < (size_t)a->n_v_heads * a->d_v ? (uint32_t)(column / a->d_v) : UINT32_MAX;
}

/* One head. The errors of S are measured against the largest S and v there were: keys of length 1 and beta below 1 let
 * neither grow. */
static void delta_head(const ks_delta_args *a, uint32_t h, double *s, double *largest, bool single, double *ret_y,
                       double *ret_mag)
{
    uint32_t dk = a->d_k, dv = a->d_v, kh = h / (a->n_v_heads / a->n_k_heads);
    memset(s, 0, sizeof *s * dk * dv);
    memset(largest, 0, sizeof *largest * dv);
    for (uint32_t r = 0; r < a->n_rows; r++) {
        const float *q = a->q + r * a->q_stride + (size_t)kh * dk, *k = a->k + r * a->k_stride + (size_t)kh * dk;
        const float *v = a->v + r * a->v_stride + (size_t)h * dv;
        double x = R((double)a->a[r * a->a_stride + h] + (double)a->dt[h]), q_norm = 0;
        double decay = R(exp(R((double)a->neg_a[h] * (x > 20 ? x : R(log1p(R(exp(x))))))));
        double beta = sigmoid((double)a->b[r * a->b_stride + h], single);
        for (uint32_t i = 0; i < dk; i++) q_norm += (double)q[i] * (double)q[i];
        for (uint32_t j = 0; j < dv; j++) {
            double kept = 0, out = 0, norm = 0;
            for (uint32_t i = 0; i < dk; i++) {
                s[i * dv + j] = R(s[i * dv + j] * decay);
                kept = R(kept + R(s[i * dv + j] * (double)k[i]));
            }
            double d = R(R((double)v[j] - kept) * beta);
            for (uint32_t i = 0; i < dk; i++) {
                s[i * dv + j] = R(s[i * dv + j] + R((double)k[i] * d));
                out = R(out + R(s[i * dv + j] * (double)q[i]));
                norm += s[i * dv + j] * s[i * dv + j];
            }
            largest[j] = fmax(largest[j], sqrt(norm) + fabs((double)v[j]));
            size_t at = r * a->o_stride + (size_t)h * dv + j;
            ret_y[at] = R(out * (double)a->scale);
            ret_mag[at] = largest[j] * sqrt(q_norm) * (double)a->scale;
        }
    }
}

static void eval_delta(const void *args, bool single, double *ret_y, double *ret_mag)
{
    const ks_delta_args *a = args;
    double *s = calloc((size_t)(a->d_k + 1) * a->d_v, sizeof *s);
    for (uint32_t h = 0; h < a->n_v_heads; h++) {
        if (s)
            delta_head(a, h, s, s + (size_t)a->d_k * a->d_v, single, ret_y, ret_mag);
        else
            ret_y[(size_t)h * a->d_v] = NAN; /* no memory: no kernel agrees */
    }
    free(s);
}

static void cut_delta(void *args, uint32_t row, uint32_t n)
{
    ks_delta_args *a = args;
    a->n_rows = n;
    a->pos += row;
    a->q += row * a->q_stride;
    a->k += row * a->k_stride;
    a->v += row * a->v_stride;
    a->b += row * a->b_stride;
    a->a += row * a->a_stride;
    a->o += row * a->o_stride;
}

/* Rows of heads that are vectors of length 1, some of them the same as the row before: keys that were seen already. */
static float *unit_rows(suite *s, const char *name, uint32_t n_rows, uint32_t n_heads, uint32_t d, size_t *ret_stride)
{
    *ret_stride = (size_t)n_heads * d + suite_below(s, 9);
    size_t n = (n_rows - 1) * *ret_stride + (size_t)n_heads * d;
    float *x = suite_input(s, name, n * 4);
    suite_normals(s, x, n, 1);
    for (uint32_t r = 0; x && r < n_rows; r++) {
        float *row = x + r * *ret_stride;
        if (r && suite_below(s, 4) == 0) memcpy(row, row - *ret_stride, (size_t)n_heads * d * 4);
        for (uint32_t h = 0; h < n_heads; h++) {
            double sum = 1e-6;
            for (uint32_t i = 0; i < d; i++) sum += (double)row[h * d + i] * (double)row[h * d + i];
            for (uint32_t i = 0; i < d; i++) row[h * d + i] = (float)((double)row[h * d + i] / sqrt(sum));
        }
    }
    return x;
}

static float *plain_rows(suite *s, const char *name, uint32_t n_rows, uint32_t width, float scale, size_t *ret_stride)
{
    *ret_stride = width + suite_below(s, 9);
    size_t n = (n_rows - 1) * *ret_stride + width;
    float *x = suite_input(s, name, n * 4);
    suite_normals(s, x, n, scale);
    return x;
}

static int delta_case(suite *s, uint32_t n_k, uint32_t share, uint32_t d_k, uint32_t d_v, uint32_t n_rows)
{
    uint32_t n_v = n_k * share;
    ks_delta_args a = { .size = sizeof a, .n_rows = n_rows, .n_k_heads = n_k, .n_v_heads = n_v, .d_k = d_k };
    a.d_v = d_v;
    a.scale = 1.0f / sqrtf((float)d_k);
    a.q = unit_rows(s, "q", n_rows, n_k, d_k, &a.q_stride);
    a.k = unit_rows(s, "k", n_rows, n_k, d_k, &a.k_stride);
    a.v = plain_rows(s, "v", n_rows, n_v * d_v, 1, &a.v_stride);
    a.b = plain_rows(s, "b", n_rows, n_v, suite_below(s, 2) ? 1.0f : 30.0f, &a.b_stride);
    a.a = plain_rows(s, "a", n_rows, n_v, suite_below(s, 2) ? 1.0f : 20.0f, &a.a_stride);
    float *neg_a = suite_input(s, "neg_a", (size_t)n_v * 4), *dt = suite_input(s, "dt", (size_t)n_v * 4);
    for (uint32_t h = 0; neg_a && h < n_v; h++) neg_a[h] = -exp2f((float)suite_below(s, 14) - 9.0f);
    suite_normals(s, dt, n_v, 2);
    a.neg_a = neg_a;
    a.dt = dt;
    a.o_stride = (size_t)n_v * d_v + suite_below(s, 9);
    a.o = suite_output(s, "o", ((n_rows - 1) * a.o_stride + (size_t)n_v * d_v) * 4);
    size_t bytes = n_v * ks_delta_floats(d_k, d_v) * 4;
    a.state = suite_output(s, "state", bytes);
    if (a.state) memset(a.state, 0, bytes);
    (void)snprintf(s->what, sizeof s->what, "%u heads of %u x %u over %u, %u rows", n_v, d_k, d_v, n_k, n_rows);
    suite_case c = { .args = &a, .n_units = n_v, .elem_bytes = 4, .unit_of = delta_unit, .eval = eval_delta };
    c.eps = 0x1p-22;
    ks_delta_args piece;
    int rc = suite_check(s, &c);
    if (!rc) rc = check_pieces(s, &piece, &a, sizeof a, n_rows, n_v, cut_delta);
    suite_free(s);
    return rc;
}

int suite_delta(suite *s)
{
    /* key heads, value heads for each, d_k, d_v, rows */
    static const uint32_t shapes[][5] = { { 1, 1, 128, 128, 50 }, { 2, 2, 16, 16, 100 }, { 1, 3, 8, 12, 33 },
                                          { 2, 1, 5, 3, 17 },     { 1, 2, 64, 100, 16 }, { 3, 1, 7, 40, 40 },
                                          { 1, 1, 1, 1, 20 },     { 1, 2, 32, 72, 1 },   { 2, 2, 24, 33, 300 } };
    int rc = 0;
    for (uint32_t i = 0; !rc && i < sizeof shapes / sizeof shapes[0]; i++)
        rc = delta_case(s, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4]);
    return rc;
}
