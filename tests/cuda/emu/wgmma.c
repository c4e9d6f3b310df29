/* Products of a warpgroup (include/wgmma.cuh), warp by warp: each computes 16 of the 64 rows, and nothing makes the
 * warps wait for each other, as nothing does on the device. By the seed they are done at once or not before they are
 * waited for. Layouts are those of the PTX ISA ("Asynchronous warpgroup level matrix instructions"). */
#include "impl.h"

#include <stdlib.h>
#include <string.h>

#define LANES 32u
#define WARPS (EMU_THREADS_MAX / LANES)
#define PENDING_MAX 64u
#define N_MAX 256u

void emu_do_wg_product(void *const *lanes, uint32_t mask);
void emu_do_wg_commit(void *const *lanes, uint32_t mask);
void emu_do_wg_wait(void *const *lanes, uint32_t mask);

enum { F16, BF16, S8 };
struct operands { /* of a lane, as in include/wgmma.cuh */
    void *d;
    const uint32_t *a;
    uint64_t b;
    uint32_t n, kind, n_major, add;
    uint64_t a_matrix;
};

typedef struct product {
    void *d[LANES];
    uint32_t a[LANES][4], group, warp; /* warp: of its warpgroup */
    const uint32_t *held[LANES];       /* where a lane has a: S8 alone, whose kernels keep it where it is */
    struct operands of;
} product;

static struct {
    product p[PENDING_MAX];
    uint32_t n, group;
} warps[WARPS];

/* Byte `at` of a row of the matrix: rows of 8 (k or n) numbers each, as the descriptor says. */
static const uint8_t *element(uint64_t matrix, uint32_t row, uint32_t byte, bool n_major)
{
    uint32_t start = ((uint32_t)matrix & 0x3fffu) << 4, leading = (uint32_t)(matrix >> 16 & 0x3fffu) << 4,
             stride = (uint32_t)(matrix >> 32 & 0x3fffu) << 4, at = 0;
    if (matrix >> 62 == 0 && !n_major) {
        at = start + row % 8 * 16 + row / 8 * stride + byte % 16 + byte / 16 * leading;
    } else if (matrix >> 62 == 1) {
        at = start + row % 8 * 128 + row / 8 * stride + (n_major ? byte % 128 + byte / 128 * leading : byte);
        at ^= (at >> 7 & 7u) << 4;
    } else {
        emu_fault("a matrix of layout %u is not emulated", (unsigned)(matrix >> 62));
    }
    return emu_shared_at(at);
}

static float number(uint32_t kind, const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return kind == BF16 ? emu_from_bf16(h) : emu_from_f16(h);
}

static void compute_s8(const product *p)
{
    static int8_t a[16][32], bt[N_MAX][32];
    const struct operands *o = &p->of;
    for (uint32_t i = 0; i < LANES; i++) {
        if (memcmp(p->a[i], p->held[i], sizeof p->a[i]) != 0)
            emu_fault("registers of A were written before their product was waited for");
        for (uint32_t r = 0; r < 4; r++) memcpy(&a[i / 4 + r % 2 * 8][i % 4 * 4 + r / 2 * 16], &p->a[i][r], 4);
    }
    for (uint32_t n = 0; n < o->n; n++)
        for (uint32_t k = 0; k < 32; k += 16) memcpy(&bt[n][k], element(o->b, n, k, false), 16);
    for (uint32_t i = 0; i < LANES; i++) {
        int32_t *d = p->d[i];
        for (uint32_t j = 0; j < o->n / 2; j++) {
            const int8_t *x = a[i / 4 + j % 4 / 2 * 8], *y = bt[j / 4 * 8 + i % 4 * 2 + j % 2];
            int32_t sum = 0;
            for (uint32_t k = 0; k < 32; k++) sum += x[k] * y[k];
            d[j] = (int32_t)((o->add ? (uint32_t)d[j] : 0) + (uint32_t)sum);
        }
    }
}

static void compute(const product *p)
{
    static float a[16][16], bt[N_MAX][16];
    const struct operands *o = &p->of;
    if (o->kind == S8) {
        compute_s8(p);
        return;
    }
    for (uint32_t i = 0; i < LANES && o->a; i++)
        for (uint32_t r = 0; r < 4; r++)
            for (uint32_t h = 0; h < 2; h++)
                a[i / 4 + r % 2 * 8][i % 4 * 2 + r / 2 * 8 + h] =
                    number(o->kind, (const uint8_t *)&p->a[i][r] + 2 * h); /* little end first */
    for (uint32_t m = 0; m < 16 && !o->a; m++)
        for (uint32_t k = 0; k < 16; k++)
            a[m][k] = number(o->kind, element(o->a_matrix, p->warp * 16 + m, 2 * k, false));
    for (uint32_t n = 0; n < o->n; n++)
        for (uint32_t k = 0; k < 16; k++)
            bt[n][k] = number(o->kind, o->n_major ? element(o->b, k, 2 * n, true) : element(o->b, n, 2 * k, false));
    for (uint32_t i = 0; i < LANES; i++)
        for (uint32_t j = 0; j < o->n / 2; j++) {
            const float *x = a[i / 4 + j % 4 / 2 * 8], *y = bt[j / 4 * 8 + i % 4 * 2 + j % 2];
            float *d = (float *)p->d[i] + j;
            double sum = o->add ? (double)*d : 0;
            for (uint32_t k = 0; k < 16; k++) sum += (double)x[k] * (double)y[k];
            *d = (float)sum;
        }
}

static void compute_before(uint32_t warp, uint32_t group)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < warps[warp].n; i++) {
        product *p = &warps[warp].p[i];
        if (p->group < group)
            compute(p);
        else
            warps[warp].p[n++] = *p;
    }
    warps[warp].n = n;
}

void emu_do_wg_product(void *const *lanes, uint32_t mask)
{
    uint32_t warp = emu_thread_idx.x / LANES;
    if (mask != ~0u) emu_fault("wgmma needs all lanes, not %08x", mask);
    if (warps[warp].n == PENDING_MAX) emu_fault("more than %u products wait to be waited for", PENDING_MAX);
    product *p = &warps[warp].p[warps[warp].n++];
    p->of = *(const struct operands *)lanes[0];
    p->group = warps[warp].group;
    p->warp = warp % 4;
    for (uint32_t i = 0; i < LANES; i++) {
        const struct operands *o = lanes[i];
        if (o->b != p->of.b || o->n != p->of.n || o->add != p->of.add || o->a_matrix != p->of.a_matrix)
            emu_fault("lanes want different products");
        p->d[i] = o->d;
        p->held[i] = o->a;
        if (o->a) memcpy(p->a[i], o->a, sizeof p->a[i]);
    }
    if (!emu_late()) compute_before(warp, UINT32_MAX);
}

void emu_do_wg_commit(void *const *lanes, uint32_t mask)
{
    (void)lanes, (void)mask;
    warps[emu_thread_idx.x / LANES].group++;
}

void emu_do_wg_wait(void *const *lanes, uint32_t mask)
{
    uint32_t warp = emu_thread_idx.x / LANES, left = *(const uint32_t *)lanes[0];
    (void)mask;
    if (warps[warp].group > left) compute_before(warp, warps[warp].group - left);
}

void emu_wg_begin(void)
{
    for (uint32_t i = 0; i < WARPS; i++) warps[i].group = 0;
}

void emu_wg_end(void)
{
    for (uint32_t i = 0; i < WARPS; i++)
        if (warps[i].n) emu_fault("warp %u has ended before %u of its products", i, warps[i].n);
}
