/* MATMUL of I4, I8 and MXFP4 weights (T16) with Q8 activations on AMX tiles; bit-exact by kernels.h. [worker]
 *
 * A tile product multiplies up to 16 rows of activations by 16 outputs over 64 columns in 16 cycles. What limits the
 * kernel is not that: every group of columns has scales of its own, so its integer sums must leave the tile and join
 * the outputs as floats. For 16 rows x 16 outputs x 128 columns:
 *
 *   tile unit       2 products                                                              32 cycles
 *   store port      16 lines of integers, 16 of floats                                      32
 *   load ports      (2 x 16 of A) / 2 strips, 16 integers, 16 floats, 8 scales, two a cycle  28
 *   vector ports    convert, multiply, fma for 16 lines, two a cycle                        24
 *
 * All four work at the same time, so nothing else may be added to them. Hence: the weights of two strips stay in tiles
 * while all rows pass (B), so a tile of activations (A) serves two products and the running sums, the same for
 * all columns, stay in L1; the integers of one block of rows are taken in while the tiles of the next are multiplied;
 * the nibbles of the next group are unpacked a few lines at a time between the blocks.
 *
 * A line of T16 is a row of B already: 4 columns of 16 outputs. Nibbles become signed bytes by a table (MXFP4: twice
 * the value, half the scale).
 *
 * The rows are cut into blocks of the same size, at most 16, and the tiles are made that high: 17 rows cost 18, not 32.
 * If the rows do not fill the last block it begins earlier and computes some of them again, with the same result. */
#include "amx.h"
#include "weights.h"

/* Registers. */
#define C_0 0 /* sums of strip 0, 1 */
#define C_1 1
#define A_0 2 /* the block's columns 0..63, 64..127 of the group */
#define A_1 3
#define B_00 4 /* strip 0: columns 0..63, 64..127 */
#define B_01 5
#define B_10 6 /* strip 1 */
#define B_11 7

#define AMX_MIN_ROWS 8u /* fewer go through vpdpbusd */
#define GROUP_MAX 128u
#define GROUP_BYTES (GROUP_MAX * 16) /* of one strip, unpacked */
#define BLOCK_LINES 16u              /* rows of a block */

/* Weights are asked for this many groups before they are unpacked. */
#define AHEAD 3u

/* A block's sums are added this many blocks later: they come from the tile unit late. */
#define LAG 1u
#define RING 4u

/* Parts of the scratch. Rows of activations are copied where they lie scattered or in the same few sets of the
 * first-level cache. */
typedef struct parts {
    uint8_t bytes[2][2][GROUP_BYTES];       /* unpacked weights: of this group and the next, of two strips */
    int32_t ints[RING][2][BLOCK_LINES][16]; /* sums of the last blocks, of two strips */
    float acc[AMX_ROWS][2][16];             /* running sums of two strips */
    float xscale[AMX_PACK_BYTES / 128];     /* copied rows: their scales */
    int8_t q[AMX_PACK_BYTES];               /* and their columns */
} parts;
_Static_assert(sizeof(parts) == MATMUL_AMX_SCRATCH_BYTES, "rows.h tells the host how much scratch there is");

typedef struct job {
    const ks_matmul_args *a;
    parts *p;
    uint32_t n_groups, n_tiles; /* tiles of columns in a group: 2 for groups of 128, else 1 */
    uint32_t r0, n_rows;        /* the rows of this pass */
    uint32_t n_blocks, height;  /* blocks of `height` rows */
    const int8_t *q;            /* row r0 */
    size_t q_stride, scale_stride;
    const float *xscale;
} job;

/* The weights of one group of one strip, or of two beside each other. */
typedef struct panel {
    const uint8_t *values[2], *ahead[2];
    __m512 scale[2];
    uint32_t strip, n, group, n_lines; /* of a strip; lines beyond n_in are zeros */
} panel;

/* A block whose sums still have to be added. */
typedef struct pending {
    __m512 scale[2];
    uint32_t strip, n, group, block;
} pending;

KS_INLINE uint32_t line_bytes(uint32_t wtype) /* in T16 */
{
    return wtype == KS_T_I8 ? 128 : 64; /* of 8 columns */
}

KS_INLINE void panel_at(const job *j, uint32_t wtype, uint32_t s, uint32_t end, uint32_t g, panel *ret)
{
    const ks_matmul_args *a = j->a;
    size_t at = (size_t)g * a->group / 8 * line_bytes(wtype), values = ks_t16_values_bytes(wtype, a->n_in);
    uint32_t left = (ks_t16_n_in(a->n_in) - g * a->group) / 8, g_ahead = g + AHEAD, s_ahead = s;
    while (g_ahead >= j->n_groups) {
        g_ahead -= j->n_groups;
        s_ahead += 2;
    }
    ret->strip = s;
    ret->group = g;
    ret->n = end - s < 2 ? 1 : 2;
    ret->n_lines = left < a->group / 8 ? left : a->group / 8;
    ret->scale[1] = _mm512_setzero_ps();
    for (uint32_t v = 0; v < ret->n; v++) {
        const uint8_t *w = strip_of(a, s + v);
        ret->values[v] = w + at;
        ret->ahead[v] = strip_of(a, s_ahead + v) + (size_t)g_ahead * a->group / 8 * line_bytes(wtype);
        ret->scale[v] = scales_16(w + values + g * scales_bytes(wtype), wtype);
    }
}

/* 8 columns of 16 outputs to two rows of B. */
KS_INLINE void unpack_line(const uint8_t *w, uint32_t wtype, uint8_t *dst)
{
    const __m512i low = _mm512_set1_epi8(15), line = _mm512_load_si512(w);
    const __m128i i4 = _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m128i mx = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m512i table = _mm512_broadcast_i32x4(wtype == KS_T_I4 ? i4 : mx);
    __m512i high = _mm512_and_si512(_mm512_srli_epi16(line, 4), low);
    _mm512_store_si512(dst, _mm512_shuffle_epi8(table, _mm512_and_si512(line, low)));
    _mm512_store_si512(dst + 64, _mm512_shuffle_epi8(table, high));
}

/* Whole groups of I8 are loaded from where they are. */
KS_INLINE int in_place(const job *j, const panel *p, uint32_t wtype)
{
    return wtype == KS_T_I8 && p->n_lines == j->a->group / 8;
}

/* Lines [from, to) of one strip of a panel. Those beyond n_in are zeros. */
KS_INLINE void prepare_strip(const panel *p, uint32_t wtype, int copied, uint32_t v, uint32_t from, uint32_t to,
                             uint8_t *dst)
{
    const uint8_t *w = p->values[v] + (size_t)from * line_bytes(wtype);
    const uint8_t *ahead = p->ahead[v] + (size_t)from * line_bytes(wtype);
    for (uint32_t l = from; l < to; l++, w += line_bytes(wtype), ahead += line_bytes(wtype)) {
        _mm_prefetch((const char *)ahead, _MM_HINT_T1);
        if (wtype == KS_T_I8) _mm_prefetch((const char *)ahead + 64, _MM_HINT_T1);
        if (!copied) continue;
        uint8_t *to_line = dst + (size_t)l * 128;
        if (l >= p->n_lines) {
            _mm512_store_si512(to_line, _mm512_setzero_si512());
            _mm512_store_si512(to_line + 64, _mm512_setzero_si512());
        } else if (wtype == KS_T_I8) {
            _mm512_store_si512(to_line, _mm512_load_si512(w));
            _mm512_store_si512(to_line + 64, _mm512_load_si512(w + 64));
        } else {
            unpack_line(w, wtype, to_line);
        }
    }
}

/* Lines [from, to) of a panel, those of strip 0 first, into its buffer. */
KS_INLINE void prepare(const job *j, const panel *p, uint32_t wtype, uint32_t from, uint32_t to, uint32_t buffer)
{
    const uint32_t n = j->a->group / 8;
    const int copied = !in_place(j, p, wtype);
    if (from < n) prepare_strip(p, wtype, copied, 0, from, to < n ? to : n, j->p->bytes[buffer][0]);
    if (to > n) prepare_strip(p, wtype, copied, 1, from > n ? from - n : 0, to - n, j->p->bytes[buffer][1]);
}

KS_INLINE void load_weights(const job *j, const panel *p, uint32_t wtype, uint32_t buffer)
{
    const uint8_t *b[2];
    tile_memory();
    for (uint32_t v = 0; v < p->n; v++) b[v] = in_place(j, p, wtype) ? p->values[v] : j->p->bytes[buffer][v];
    tile_load(B_00, b[0], 64);
    if (j->n_tiles == 2) tile_load(B_01, b[0] + 1024, 64);
    if (p->n == 1) return;
    tile_load(B_10, b[1], 64);
    if (j->n_tiles == 2) tile_load(B_11, b[1] + 1024, 64);
}

KS_INLINE uint32_t first_row(const job *j, uint32_t block)
{
    uint32_t r = block * j->height;
    return r + j->height <= j->n_rows ? r : j->n_rows - j->height;
}

/* Starts the products of one block. */
KS_INLINE void multiply(const job *j, const panel *p, uint32_t block)
{
    const int8_t *q = j->q + first_row(j, block) * j->q_stride + (size_t)p->group * j->a->group;
    tile_load(A_0, q, j->q_stride);
    if (j->n_tiles == 2) tile_load(A_1, q + 64, j->q_stride);
    tile_zero(C_0);
    tile_add_i8(C_0, A_0, B_00);
    if (j->n_tiles == 2) tile_add_i8(C_0, A_1, B_01);
    if (p->n == 1) return;
    tile_zero(C_1);
    tile_add_i8(C_1, A_0, B_10);
    if (j->n_tiles == 2) tile_add_i8(C_1, A_1, B_11);
}

KS_INLINE void store_sums(const job *j, uint32_t n_strips, uint32_t buffer)
{
    tile_store(C_0, j->p->ints[buffer][0], 64);
    if (n_strips == 2) tile_store(C_1, j->p->ints[buffer][1], 64);
    tile_memory();
}

/* Where the integers of a block and its running sums lie. */
typedef struct sums {
    const int32_t *now;
    float *acc;
    const float *xscale;
    size_t stride;
    uint32_t row;
} sums;

/* Row m. The first group finds no sums yet, the last one writes the outputs. */
KS_INLINE void add_row(const job *j, const pending *p, const sums *s, const __m512 w[2], uint32_t n, uint32_t m,
                       int first, int last)
{
    const __m512 xs = _mm512_set1_ps(s->xscale[m * s->stride]);
    for (uint32_t v = 0; v < n; v++) {
        const uint32_t at = (v * BLOCK_LINES + m) * 16;
        __m512i i = _mm512_load_si512(s->now + at);
        float *acc = s->acc + (2 * m + v) * 16;
        __m512 sum = first ? _mm512_setzero_ps() : _mm512_load_ps(acc);
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(i), _mm512_mul_ps(w[v], xs), sum);
        if (last)
            store_16(j->a, s->row + m, p->strip + v, sum);
        else
            _mm512_store_ps(acc, sum);
    }
}

/* The integers of a block join the running sums: acc = fma(isum, wscale * xscale, acc). */
KS_INLINE void add_block(const job *j, const pending *p, uint32_t n, uint32_t buffer, int first, int last)
{
    const __m512 w[2] = { p->scale[0], p->scale[n - 1] };
    const uint32_t r = first_row(j, p->block), height = j->height;
    sums s = { .now = j->p->ints[buffer][0][0],
               .acc = j->p->acc[p->block * BLOCK_LINES][0],
               .stride = j->scale_stride,
               .row = j->r0 + r };
    s.xscale = j->xscale + r * s.stride + p->group * j->a->group / 128;
    uint32_t m = 0;
    for (; m + 4 <= height; m += 4) {
        for (uint32_t i = 0; i < 4; i++) add_row(j, p, &s, w, n, i, first, last);
        s.now += 64;
        s.acc += 128;
        s.xscale += 4 * s.stride;
        s.row += 4;
    }
    for (uint32_t i = 0; m + i < height; i++) add_row(j, p, &s, w, n, i, first, last);
}

KS_INLINE void add_any(const job *j, const pending *p, uint32_t n, uint32_t buffer)
{
    int last = p->group + 1 == j->n_groups;
    if (p->group == 0 && last)
        add_block(j, p, n, buffer, 1, 1);
    else if (p->group == 0)
        add_block(j, p, n, buffer, 1, 0);
    else if (last)
        add_block(j, p, n, buffer, 0, 1);
    else
        add_block(j, p, n, buffer, 0, 0);
}

static __attribute__((noinline)) void add_sums(const job *j, const pending *p, uint32_t buffer)
{
    if (p->n == 2)
        add_any(j, p, 2, buffer);
    else
        add_any(j, p, 1, buffer);
}

/* All rows of the pass over the strips [begin, end). */
KS_INLINE void run_pass(const job *j, uint32_t wtype, uint32_t begin, uint32_t end)
{
    const uint32_t n_lines = 2 * j->a->group / 8, share = (n_lines + j->n_blocks - 1) / j->n_blocks;
    panel panels[2], *now = &panels[0], *next = &panels[1];
    pending ring[RING];
    uint32_t count = 0, bytes = 0; /* blocks so far; the buffer of `now` */
    panel_at(j, wtype, begin, end, 0, now);
    prepare(j, now, wtype, 0, now->n * n_lines / 2, bytes);
    for (uint32_t s = begin, g = 0; s < end; bytes ^= 1) {
        if (++g == j->n_groups) {
            g = 0;
            s += 2;
        }
        uint32_t to_do = 0, done = 0;
        if (s < end) {
            panel_at(j, wtype, s, end, g, next);
            to_do = next->n * n_lines / 2;
        }
        load_weights(j, now, wtype, bytes);
        for (uint32_t b = 0; b < j->n_blocks; b++, count++) {
            multiply(j, now, b);
            if (count >= LAG) add_sums(j, &ring[(count - LAG) % RING], (count - LAG) % RING);
            store_sums(j, now->n, count % RING);
            ring[count % RING] = (pending) { { now->scale[0], now->scale[1] }, now->strip, now->n, now->group, b };
            uint32_t to = done + share < to_do ? done + share : to_do;
            if (done < to) prepare(j, next, wtype, done, to, bytes ^ 1);
            done = to;
        }
        panel *old = now;
        now = next;
        next = old;
    }
    for (uint32_t i = count < LAG ? 0 : count - LAG; i < count; i++) add_sums(j, &ring[i % RING], i % RING);
}

static void configure(const job *j)
{
    tile_config c = { .palette = 1 };
    uint32_t columns = j->a->group < 64 ? j->a->group : 64;
    for (uint32_t i = 0; i < 8; i++) {
        c.row_bytes[i] = (uint16_t)(i == A_0 || i == A_1 ? columns : 64);
        c.rows[i] = (uint8_t)(i >= B_00 ? columns / 4 : j->height);
    }
    tile_configure(&c);
}

/* Rows as they are, or copied where that would be slow or would read beyond them. */
static void place_rows(job *j)
{
    const ks_matmul_args *a = j->a;
    const ks_act *x = a->act;
    uint32_t n_k = j->n_groups * a->group, n_scales = (a->n_in + 127) / 128;
    int scattered = x->q_stride < n_k || x->q_stride % 2048 == 0;
    for (uint32_t r = 1; r < j->n_rows && !scattered; r++)
        scattered = row_of(a, j->r0 + r) != row_of(a, j->r0 + r - 1) + 1;
    size_t row = row_of(a, j->r0);
    j->q = x->q + row * x->q_stride;
    j->q_stride = x->q_stride;
    j->xscale = x->scale + row * x->scale_stride;
    j->scale_stride = x->scale_stride;
    if (!scattered) return;
    j->q = j->p->q;
    j->q_stride = amx_packed_stride(n_k);
    j->xscale = j->p->xscale;
    j->scale_stride = n_scales;
    for (uint32_t r = 0; r < j->n_rows; r++) {
        row = row_of(a, j->r0 + r);
        const int8_t *from = x->q + row * x->q_stride;
        int8_t *to = j->p->q + r * j->q_stride;
        for (uint32_t k = 0; k < n_k; k += 64)
            _mm512_store_si512(to + k, k < x->q_stride ? _mm512_load_si512(from + k) : _mm512_setzero_si512());
        memcpy(j->p->xscale + (size_t)r * n_scales, x->scale + row * x->scale_stride, n_scales * sizeof(float));
    }
}

KS_INLINE void matmul(const ks_matmul_args *a, uint32_t begin, uint32_t end, void *scratch, uint32_t wtype,
                      ks_kernel_fn few_rows)
{
    job j = { .a = a, .p = scratch, .n_groups = (ks_t16_n_in(a->n_in) + a->group - 1) / a->group };
    j.n_tiles = a->group == 128 ? 2 : 1;
    size_t fit = AMX_PACK_BYTES / amx_packed_stride(j.n_groups * a->group);
    if (a->n_rows < AMX_MIN_ROWS || fit < 16 || begin == end) {
        few_rows(a, begin, end, scratch);
        return;
    }
    /* Passes of about the same size: a short last one would unpack all weights for a few rows. */
    uint32_t most = fit < AMX_ROWS ? (uint32_t)fit / 16 * 16 : AMX_ROWS, n_passes = (a->n_rows + most - 1) / most;
    uint32_t pass = (a->n_rows + n_passes - 1) / n_passes;
    for (; j.r0 < a->n_rows; j.r0 += j.n_rows) {
        j.n_rows = a->n_rows - j.r0 < pass ? a->n_rows - j.r0 : pass;
        j.n_blocks = (j.n_rows + BLOCK_LINES - 1) / BLOCK_LINES;
        j.height = (j.n_rows + j.n_blocks - 1) / j.n_blocks;
        place_rows(&j);
        configure(&j);
        run_pass(&j, wtype, begin, end);
    }
    tile_release();
}

void matmul_i4_amx(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_I4, matmul_i4_avx512);
}

void matmul_i8_amx(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_I8, matmul_i8_avx512);
}

void matmul_mxfp4_amx(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    matmul(args, begin, end, scratch, KS_T_MXFP4, matmul_mxfp4_avx512);
}
