/* What a warp does together: each function gets the operands of its lanes. Fragments lie as the PTX ISA says
 * ("Matrix multiply-accumulate operation using mma instruction"): lane (g, t) = (lane / 4, lane % 4). */
#include "impl.h"

#include <math.h>
#include <string.h>

#define LANES 32u

void emu_do_nothing(void *const *lanes, uint32_t mask);
void emu_do_shuffle(void *const *lanes, uint32_t mask);
void emu_do_vote(void *const *lanes, uint32_t mask);
void emu_do_mma_s8(void *const *lanes, uint32_t mask);
void emu_do_mma_bf16(void *const *lanes, uint32_t mask);
void emu_do_mma_f16(void *const *lanes, uint32_t mask);
void emu_do_ldmatrix(void *const *lanes, uint32_t mask);
void emu_do_ldmatrix_trans(void *const *lanes, uint32_t mask);

void emu_do_nothing(void *const *lanes, uint32_t mask)
{
    (void)lanes, (void)mask;
}

struct shuffle {
    uint32_t in, out, lane;
};

void emu_do_shuffle(void *const *lanes, uint32_t mask)
{
    for (uint32_t i = 0; i < LANES; i++) {
        if (!(mask >> i & 1u)) continue;
        struct shuffle *s = lanes[i];
        if (s->lane >= LANES || !(mask >> s->lane & 1u)) emu_fault("lane %u shuffles from lane %u", i, s->lane);
        s->out = ((const struct shuffle *)lanes[s->lane])->in;
    }
}

void emu_do_vote(void *const *lanes, uint32_t mask)
{
    uint32_t votes = 0;
    for (uint32_t i = 0; i < LANES; i++)
        if (mask >> i & 1u && *(const uint32_t *)lanes[i]) votes |= 1u << i;
    for (uint32_t i = 0; i < LANES; i++)
        if (mask >> i & 1u) *(uint32_t *)lanes[i] = votes;
}

struct mma {
    void *c;
    const uint32_t *a;
    uint32_t b[2];
};

static void whole_warp(uint32_t mask, const char *what)
{
    if (mask != ~0u) emu_fault("%s needs all lanes, not %08x", what, mask);
}

/* Of m16n8k32: A is rows of bytes, B^T too. */
void emu_do_mma_s8(void *const *lanes, uint32_t mask)
{
    int8_t a[16][32], bt[8][32];
    whole_warp(mask, "mma");
    for (uint32_t i = 0; i < LANES; i++) {
        const struct mma *m = lanes[i];
        uint32_t g = i / 4, t = i % 4;
        for (uint32_t r = 0; r < 4; r++) memcpy(&a[g + r % 2 * 8][4 * t + r / 2 * 16], &m->a[r], 4);
        for (uint32_t r = 0; r < 2; r++) memcpy(&bt[g][4 * t + r * 16], &m->b[r], 4);
    }
    for (uint32_t i = 0; i < LANES; i++) {
        int32_t *c = ((const struct mma *)lanes[i])->c;
        for (uint32_t r = 0; r < 4; r++) {
            const int8_t *x = a[i / 4 + r / 2 * 8], *y = bt[i % 4 * 2 + r % 2];
            int32_t sum = 0;
            for (uint32_t k = 0; k < 32; k++) sum += x[k] * y[k];
            c[r] = (int32_t)((uint32_t)c[r] + (uint32_t)sum);
        }
    }
}

float emu_from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float emu_from_f16(uint16_t h)
{
    uint32_t e = h >> 10 & 31u, m = h & 1023u;
    float f = e == 31 ? (m ? NAN : INFINITY) : e ? ldexpf((float)(1024 + m), (int)e - 25) : ldexpf((float)m, -24);
    return h & 0x8000u ? -f : f;
}

/* Of m16n8k16. The hardware's own order of the sum is not published; here it is exact but for the last rounding. */
static void mma_16(void *const *lanes, uint32_t mask, float (*number)(uint16_t))
{
    float a[16][16], bt[8][16];
    whole_warp(mask, "mma");
    for (uint32_t i = 0; i < LANES; i++) {
        const struct mma *m = lanes[i];
        uint32_t g = i / 4, t = i % 4;
        for (uint32_t r = 0; r < 4; r++)
            for (uint32_t h = 0; h < 2; h++)
                a[g + r % 2 * 8][2 * t + r / 2 * 8 + h] = number((uint16_t)(m->a[r] >> 16 * h));
        for (uint32_t r = 0; r < 2; r++)
            for (uint32_t h = 0; h < 2; h++) bt[g][2 * t + r * 8 + h] = number((uint16_t)(m->b[r] >> 16 * h));
    }
    for (uint32_t i = 0; i < LANES; i++) {
        float *c = ((const struct mma *)lanes[i])->c;
        for (uint32_t r = 0; r < 4; r++) {
            const float *x = a[i / 4 + r / 2 * 8], *y = bt[i % 4 * 2 + r % 2];
            double sum = (double)c[r];
            for (uint32_t k = 0; k < 16; k++) sum += (double)x[k] * (double)y[k];
            c[r] = (float)sum;
        }
    }
}

void emu_do_mma_bf16(void *const *lanes, uint32_t mask)
{
    mma_16(lanes, mask, emu_from_bf16);
}

void emu_do_mma_f16(void *const *lanes, uint32_t mask)
{
    mma_16(lanes, mask, emu_from_f16);
}

struct ldmatrix {
    const void *row;
    uint32_t *r;
};

/* Lane 8 j + i names row i of matrix j, eight elements of two bytes. */
static void read_matrices(void *const *lanes, uint32_t mask, uint16_t m[4][8][8])
{
    whole_warp(mask, "ldmatrix");
    for (uint32_t i = 0; i < LANES; i++) {
        const struct ldmatrix *l = lanes[i];
        if ((uintptr_t)l->row % 16) emu_fault("ldmatrix: the row of lane %u is not aligned", i);
        memcpy(m[i / 8][i % 8], l->row, 16);
    }
}

void emu_do_ldmatrix(void *const *lanes, uint32_t mask)
{
    uint16_t m[4][8][8];
    read_matrices(lanes, mask, m);
    for (uint32_t i = 0; i < LANES; i++)
        for (uint32_t j = 0; j < 4; j++) memcpy(&((struct ldmatrix *)lanes[i])->r[j], &m[j][i / 4][i % 4 * 2], 4);
}

void emu_do_ldmatrix_trans(void *const *lanes, uint32_t mask)
{
    uint16_t m[4][8][8];
    read_matrices(lanes, mask, m);
    for (uint32_t i = 0; i < LANES; i++)
        for (uint32_t j = 0; j < 4; j++)
            ((struct ldmatrix *)lanes[i])->r[j] =
                (uint32_t)m[j][i % 4 * 2][i / 4] | (uint32_t)m[j][i % 4 * 2 + 1][i / 4] << 16;
}
