/* What a batch says, as the kernels need it: packed into one pinned block and sent at once. [engine] */
#include "device.h"

#include <string.h>

/* Pages that one sequence can need. */
static size_t pages_of_seq(const cu_dev *d)
{
    size_t n = ((size_t)d->g->n_ctx + d->bind.page_tok - 1) / d->bind.page_tok + 1;
    return n < d->bind.n_pages ? n : d->bind.n_pages;
}

size_t cu_step_bytes(const cu_dev *d)
{
    size_t rows = d->bind.max_rows, n = rows * 2 * 4 + (size_t)d->bind.max_out * 4;
    n += ((size_t)d->max_seqs + d->cap_pieces) * sizeof(cu_seq) + d->n_tile_kinds * rows * sizeof(cu_tile);
    n += d->cap_pieces * (4 + d->n_tile_kinds) * 256u; /* each part is rounded */
    return n + cu_round(d->max_seqs * pages_of_seq(d) * 4, 256);
}

/* The next part of the block: its host side; the device's goes to *ret_dev. */
static void *part(cu_dev *d, size_t *at, size_t bytes, void *ret_dev)
{
    uint8_t *dev = d->meta + *at;
    void *host = d->meta_host + *at;
    memcpy(ret_dev, &dev, sizeof dev);
    *at += cu_round(bytes, 256);
    return host;
}

static uint32_t fill_tiles(const ks_batch *b, uint32_t rows, cu_tile *t)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < b->n_seqs; s++)
        for (uint32_t r = 0; r < b->seqs[s].n_rows; r += rows)
            t[n++] = (cu_tile) { s, b->seqs[s].row + r, cu_min(rows, b->seqs[s].n_rows - r) };
    return n;
}

static int check_seq(const cu_dev *d, const ks_batch *b, uint32_t i, uint32_t row, ks_err *err)
{
    const ks_seq *s = &b->seqs[i];
    if (s->row != row || s->n_rows == 0 || s->n_rows > b->n_rows - row)
        return ks_fail(err, KS_E_INVAL, "sequence %u has rows %u to %u of %u: sequences must follow each other", i,
                       s->row, s->row + s->n_rows, b->n_rows);
    if (d->g->n_states == 0) return 0;
    uint64_t end = (uint64_t)s->pos + s->n_rows, need = (end + d->bind.page_tok - 1) / d->bind.page_tok;
    if (s->n_pages < need || need > pages_of_seq(d))
        return ks_fail(err, KS_E_INVAL, "sequence %u has %u pages: %llu positions need %llu, at most %zu", i,
                       s->n_pages, (unsigned long long)end, (unsigned long long)need, pages_of_seq(d));
    for (uint32_t p = 0; p < need; p++)
        if (s->pages[p] >= d->bind.n_pages)
            return ks_fail(err, KS_E_INVAL, "sequence %u names page %u of %u", i, s->pages[p], d->bind.n_pages);
    if (d->bind.n_slots && s->slot >= d->bind.n_slots)
        return ks_fail(err, KS_E_INVAL, "sequence %u names slot %u of %u", i, s->slot, d->bind.n_slots);
    if (s->keep > d->bind.n_slots)
        return ks_fail(err, KS_E_INVAL, "sequence %u keeps its state in slot %u of %u", i, s->keep - 1,
                       d->bind.n_slots);
    return 0;
}

static int check_batch(const cu_dev *d, const ks_batch *b, ks_err *err)
{
    uint32_t row = 0;
    int rc;
    if (b->seq_size != sizeof(ks_seq))
        return ks_fail(err, KS_E_UNSUPPORTED, "sequences of %u bytes: this plugin knows %zu", b->seq_size,
                       sizeof(ks_seq));
    if (b->n_rows == 0 || b->n_rows > d->bind.max_rows || b->n_out > d->bind.max_out)
        return ks_fail(err, KS_E_LIMIT, "a step of %u rows and %u results: 1 to %u and at most %u were bound",
                       b->n_rows, b->n_out, d->bind.max_rows, d->bind.max_out);
    if (b->n_seqs > d->max_seqs)
        return ks_fail(err, KS_E_LIMIT, "a step of %u sequences: at most %u were bound", b->n_seqs, d->max_seqs);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        if ((rc = check_seq(d, b, i, row, err))) return rc;
        row += b->seqs[i].n_rows;
    }
    if (row != b->n_rows) return ks_fail(err, KS_E_INVAL, "the sequences hold %u of %u rows", row, b->n_rows);
    for (uint32_t i = 0; i < b->n_out; i++)
        if (b->out_rows[i] >= b->n_rows)
            return ks_fail(err, KS_E_INVAL, "result %u is row %u of %u", i, b->out_rows[i], b->n_rows);
    if (b->n_out && !b->logits) return ks_fail(err, KS_E_INVAL, "a step with results has no place for logits");
    return 0;
}

/* What a piece says; page_at: where the pages of its sequences begin. */
static void fill_piece(cu_dev *d, struct cu_piece *p, const uint32_t *page_at, size_t *at)
{
    const ks_batch *b = &p->b;
    cu_step *t = &p->step;
    uint32_t last = 0;
    memcpy(part(d, at, (size_t)b->n_rows * 4, &t->pos), b->pos, (size_t)b->n_rows * 4);
    uint32_t *row_seq = part(d, at, (size_t)b->n_rows * 4, &t->row_seq);
    uint32_t *out_rows = part(d, at, (size_t)b->n_out * 4, &t->out_rows);
    for (uint32_t i = 0; i < b->n_out; i++) out_rows[i] = b->out_rows[i] - p->row;
    cu_seq *seqs = part(d, at, b->n_seqs * sizeof *seqs, &t->seqs);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const ks_seq *s = &b->seqs[i];
        seqs[i] = (cu_seq) { s->row, s->n_rows, s->pos, s->slot, page_at[i], 0 };
        last = cu_max(last, s->pos + s->n_rows - 1);
        for (uint32_t r = 0; r < s->n_rows; r++) row_seq[s->row + r] = i;
    }
    t->n_spans = last / KS_ATTN_SPAN + 1;
    for (uint32_t k = 0; k < d->n_tile_kinds; k++) {
        cu_tile *tiles = part(d, at, b->n_rows * sizeof *tiles, &t->tiles[k]);
        t->n_tiles[k] = fill_tiles(b, d->tile_rows[k], tiles);
    }
}

/* One list for all pieces: of each sequence, as many as its last row needs. */
static void fill_pages(cu_dev *d, const ks_batch *b, uint32_t *page_at, size_t *at)
{
    uint32_t n = 0, *dev, *pages = (uint32_t *)(void *)(d->meta_host + *at);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const ks_seq *s = &b->seqs[i];
        uint32_t need = d->g->n_states ? (s->pos + s->n_rows + d->bind.page_tok - 1) / d->bind.page_tok : 0;
        page_at[i] = n;
        if (need) memcpy(pages + n, s->pages, (size_t)need * 4);
        n += need;
    }
    (void)part(d, at, (size_t)n * 4, &dev);
    for (uint32_t i = 0; i < d->n_pieces; i++) d->pieces[i].step.pages = dev;
}

int cu_step_begin(cu_dev *d, const ks_batch *b, ks_err *err)
{
    size_t at = 0;
    int rc = check_batch(d, b, err);
    if (rc) return rc;
    cu_pieces_cut(d, b);
    fill_pages(d, b, d->page_at, &at);
    for (uint32_t i = 0, seq = 0; i < d->n_pieces; i++) {
        struct cu_piece *p = &d->pieces[i];
        while (b->seqs[seq].row + b->seqs[seq].n_rows <= p->row) seq++; /* its first */
        fill_piece(d, p, d->page_at + seq, &at);
    }
    d->meta_used = at;
    return 0;
}

int cu_step_send(cu_dev *d, ks_err *err)
{
    atomic_fetch_add_explicit(&d->bytes_in, d->meta_used, memory_order_relaxed);
    return cu_fetch(d, d->meta, d->meta_host, d->meta_used, err);
}
