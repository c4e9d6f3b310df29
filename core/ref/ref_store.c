/* Reference STORE: floats into the cache, one conversion after the other. [worker] */
#include "ref/ref_rows.h"

#include "base/num.h"

static void put(uint32_t type, uint8_t *row, size_t i, float f)
{
    uint16_t h = ks_f32_to_bf16(f);
    switch (type) {
    case KS_T_F32: memcpy(row + 4 * i, &f, 4); break;
    case KS_T_BF16: memcpy(row + 2 * i, &h, 2); break;
    default: row[i] = ks_f32_to_f8e4m3(f); break;
    }
}

static void store(const ks_store_args *a, uint32_t type, uint32_t begin, uint32_t end)
{
    for (uint32_t r = begin; r < end; r++) {
        uint32_t pos = a->pos + r;
        uint8_t *page = (uint8_t *)a->y + a->pages[pos / a->page_tok] * a->page_bytes;
        uint8_t *row = page + (size_t)(pos % a->page_tok) * a->y_stride * (ks_type_bits(type) / 8);
        for (uint32_t i = 0; i < a->n; i++) put(type, row, (size_t)a->col + i, a->x[r * a->x_stride + i]);
    }
}

void ks__ref_store_f32(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_F32, begin, end);
}

void ks__ref_store_bf16(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_BF16, begin, end);
}

void ks__ref_store_f8e4m3(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    (void)scratch;
    store(args, KS_T_F8E4M3, begin, end);
}
