#include "engine/fake_device.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t h, int32_t id)
{
    h = (h ^ (uint64_t)(uint32_t)id) * UINT64_C(0x9E3779B97F4A7C15);
    return h ^ (h >> 29);
}

static int32_t next_of(uint64_t h)
{
    return (int32_t)((h >> 33) % (FAKE_VOCAB - 2)) + 2;
} /* 0 and 1 are never made */

void fake_expect(const int32_t *prompt, uint32_t n, int32_t *ret, uint32_t n_new)
{
    uint64_t h = 1;
    for (uint32_t i = 0; i < n; i++) h = mix(h, prompt[i]);
    for (uint32_t i = 0; i < n_new; i++) {
        ret[i] = next_of(h);
        h = mix(h, ret[i]);
    }
}

void fake_init(fake *f, bool recurrent)
{
    memset(f, 0, sizeof *f);
    f->recurrent = recurrent;
    f->fail_at = -1;
    pthread_mutex_init(&f->mu, NULL);
    pthread_cond_init(&f->cond, NULL);
}

void fake_fini(fake *f)
{
    pthread_mutex_destroy(&f->mu);
    pthread_cond_destroy(&f->cond);
}

void fake_hold(fake *f, bool hold)
{
    pthread_mutex_lock(&f->mu);
    f->hold = hold;
    pthread_cond_broadcast(&f->cond);
    pthread_mutex_unlock(&f->mu);
}

void fake_wait_begun(fake *f, uint64_t n)
{
    pthread_mutex_lock(&f->mu);
    while (f->begun < n) pthread_cond_wait(&f->cond, &f->mu);
    pthread_mutex_unlock(&f->mu);
}

static int fake_open(void *self, uint32_t index, uint64_t budget, void **ret_dev, ks_err *err)
{
    (void)index, (void)budget, (void)err;
    *ret_dev = self;
    return 0;
}

static void fake_close(void *dev)
{
    fake *f = dev;
    free(f->page);
    free(f->slot);
    f->page = NULL;
    f->slot = NULL;
}

static int fake_bind(void *dev, const ks_bind *b, ks_err *err)
{
    fake *f = dev;
    f->n_pages = b->n_pages;
    f->page_tok = b->page_tok;
    f->n_slots = b->n_slots;
    f->page = malloc((size_t)b->n_pages * b->page_tok * sizeof *f->page);
    f->slot = calloc(b->n_slots, sizeof *f->slot);
    if (!f->page || !f->slot || f->no_memory) return ks_fail(err, KS_E_NOMEM, "fake device");
    memset(f->page, 0x7f, (size_t)b->n_pages * b->page_tok * sizeof *f->page);
    return 0;
}

static uint64_t run_row(fake *f, const ks_seq *s, uint32_t pos, int32_t id)
{
    f->page[(size_t)s->pages[pos / f->page_tok] * f->page_tok + pos % f->page_tok] = id;
    uint64_t h = 1;
    for (uint32_t p = 0; p <= pos; p++)
        h = mix(h, f->page[(size_t)s->pages[p / f->page_tok] * f->page_tok + p % f->page_tok]);
    if (!f->recurrent) return h;
    uint64_t *state = &f->slot[s->slot];
    *state = mix(pos == 0 ? 1 : *state, id);
    return *state == h ? h : 0; /* the state and the pages must tell the same story */
}

static int fake_run(void *dev, const ks_batch *b, uint32_t op_begin, uint32_t op_end, ks_err *err)
{
    fake *f = dev;
    uint32_t out = 0;
    (void)op_begin, (void)op_end;
    pthread_mutex_lock(&f->mu);
    f->begun++;
    pthread_cond_broadcast(&f->cond);
    while (f->hold) pthread_cond_wait(&f->cond, &f->mu);
    bool fail = f->fail_at >= 0 && f->steps == (uint64_t)f->fail_at;
    f->steps++;
    f->rows += b->n_rows;
    if (b->n_rows > f->max_rows) f->max_rows = b->n_rows;
    for (uint32_t i = 0; i < b->n_seqs; i++)
        if (b->seqs[i].n_rows == 1 && b->n_rows > f->busy_rows) f->busy_rows = b->n_rows;
    pthread_mutex_unlock(&f->mu);
    if (fail) return ks_fail(err, KS_E_DEVICE, "the fake device fails as asked");
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const ks_seq *s = &b->seqs[i];
        for (uint32_t r = 0; r < s->n_rows; r++) {
            uint64_t h = run_row(f, s, s->pos + r, b->ids[s->row + r]);
            if (out == b->n_out || b->out_rows[out] != s->row + r) continue;
            float *z = b->logits + (size_t)out++ * FAKE_VOCAB;
            for (uint32_t v = 0; v < FAKE_VOCAB; v++) z[v] = -(float)v * 0.01f;
            z[next_of(h)] = 5;
        }
        if (s->keep) f->slot[s->keep - 1] = f->slot[s->slot];
    }
    return out == b->n_out ? 0 : ks_fail(err, KS_E_INTERNAL, "out_rows are not ascending rows of the batch");
}

static int fake_copy_slot(void *dev, uint32_t dst, uint32_t src, ks_err *err)
{
    fake *f = dev;
    if (dst >= f->n_slots || src >= f->n_slots)
        return ks_fail(err, KS_E_INTERNAL, "slot %u or %u of %u", dst, src, f->n_slots);
    f->slot[dst] = f->slot[src];
    return 0;
}

const ks_device_iface fake_iface = { .size = (uint32_t)sizeof(ks_device_iface),
                                     .open = fake_open,
                                     .close = fake_close,
                                     .bind = fake_bind,
                                     .run = fake_run,
                                     .copy_slot = fake_copy_slot };
