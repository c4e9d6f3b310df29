/* Long steps. Experts cross the link once a step, so a step shall hold a whole prompt; but what the ops between them
 * need a row is a hundred times what lives from one layer to the next. So EXPERTS runs over all rows of the step, and
 * the ops between two of them run over pieces of the rows, in their order: recurrent state and attention see what they
 * would see in a step for each piece, and the bits are the same. Registers that live across EXPERTS have a row for each
 * of the step, all others one for each of a piece.
 *
 * A piece is a batch of its own; a step that is no longer than one is its only piece. [main: lay out, engine: run] */
#include "device.h"

#include <stdlib.h>

#define PIECE_ROWS 4096u /* enough to fill any GPU */

static bool may_cut(const cu_dev *d)
{
    for (uint32_t i = d->bind.op_begin; i < d->bind.op_end; i++)
        if (!d->mine[i]) return false; /* the host moves registers of all rows */
    return true;
}

static void live(const cu_dev *d, uint8_t *is, int32_t reg)
{
    if (reg >= 0) is[d->regs[reg].root] = 1;
}

/* From the last op to the first: what is read later, and not written before that. */
static void mark_live(cu_dev *d, uint8_t *is)
{
    for (uint32_t i = d->bind.op_end; i-- > d->bind.op_begin;) {
        const ks_op *op = cu_op(d->g, i);
        for (uint32_t k = 0; k < 2; k++) /* a view leaves the rest as it was */
            if (op->out[k] >= 0 && d->regs[op->out[k]].root == (uint32_t)op->out[k]) is[op->out[k]] = 0;
        if (op->kind == KS_OP_EXPERTS) {
            for (uint32_t r = 0; r < d->g->n_regs; r++) d->regs[r].wide |= is[r] != 0;
            d->regs[d->regs[op->out[0]].root].wide = true;
            d->regs[d->regs[op->in[1]].root].wide = true;
            if (cu_is_quantized(cu_gweight(d->g, op->w[0])->type))
                d->regs[op->in[0]].wide_act = true; /* that is all it reads */
            else
                d->regs[d->regs[op->in[0]].root].wide = true;
        }
        for (uint32_t k = 0; k < 6; k++) live(d, is, op->in[k]);
        if (op->kind == KS_OP_ATTN) live(d, is, op->u.attn.sel);
        if (op->kind == KS_OP_MLA) live(d, is, op->u.mla.sel);
    }
}

int cu_pieces_lay_out(cu_dev *d, ks_err *err)
{
    uint32_t most = d->opts->piece ? (uint32_t)d->opts->piece : PIECE_ROWS;
    if (d->bind.cold) most = cu_max(most, d->share_rows); /* what is shared with the host is shared in one piece */
    d->piece_rows = may_cut(d) ? cu_min(most, d->bind.max_rows) : d->bind.max_rows;
    d->cap_pieces = (d->bind.max_rows + d->piece_rows - 1) / d->piece_rows;
    d->max_seqs = d->bind.max_seqs ? cu_min(d->bind.max_seqs, d->bind.max_rows) : d->bind.max_rows;
    d->n_pieces = 1;
    if (!(d->pieces = cu_alloc_host(d, d->cap_pieces, sizeof *d->pieces, "the step's tables", err)) ||
        !(d->piece_seqs =
              cu_alloc_host(d, (size_t)d->max_seqs + d->cap_pieces, sizeof *d->piece_seqs, "the step's tables", err)) ||
        !(d->page_at = cu_alloc_host(d, d->max_seqs, sizeof *d->page_at, "the step's tables", err)))
        return KS_E_NOMEM;
    uint8_t *is = cu_alloc_host(d, d->g->n_regs, 1, "registers", err);
    if (!is) return KS_E_NOMEM;
    for (uint32_t i = 0; i < d->g->n_regs && d->cap_pieces == 1; i++) d->regs[i].wide = d->regs[i].wide_act = true;
    if (d->cap_pieces > 1) mark_live(d, is);
    free(is);
    return 0;
}

uint32_t cu_reg_rows(const cu_dev *d, uint32_t reg)
{
    const struct dev_reg *r = &d->regs[reg];
    if (r->kind & KS_REG_OUT) return d->bind.max_out;
    return d->regs[r->root].wide ? d->bind.max_rows : d->piece_rows;
}

uint32_t cu_act_rows(const cu_dev *d, uint32_t reg)
{
    return d->regs[reg].wide_act && !(d->regs[reg].kind & KS_REG_OUT) ? d->bind.max_rows : cu_reg_rows(d, reg);
}

/* ---- run */

void cu_pieces_cut(cu_dev *d, const ks_batch *b)
{
    ks_seq *seqs = d->piece_seqs;
    uint32_t s = 0, out = 0;
    d->n_pieces = 0;
    for (uint32_t row = 0, n; row < b->n_rows; row += n) {
        struct cu_piece *p = &d->pieces[d->n_pieces++];
        n = cu_min(b->n_rows - row, d->piece_rows);
        *p = (struct cu_piece) { .b = *b, .row = row, .out = out };
        p->b.n_rows = n;
        p->b.ids = b->ids + row;
        p->b.pos = b->pos + row;
        p->b.seqs = seqs;
        p->b.n_seqs = p->b.n_out = 0;
        for (; s < b->n_seqs && b->seqs[s].row < row + n; s++) {
            uint32_t first = cu_max(b->seqs[s].row, row), end = cu_min(b->seqs[s].row + b->seqs[s].n_rows, row + n);
            ks_seq *t = seqs++;
            *t = b->seqs[s];
            t->row = first - row;
            t->n_rows = end - first;
            t->pos += first - b->seqs[s].row;
            p->b.n_seqs++;
            if (end == b->seqs[s].row + b->seqs[s].n_rows) continue;
            t->keep = 0; /* the next piece goes on with it */
            break;
        }
        p->b.out_rows = b->out_rows + out;
        p->b.logits = b->logits ? b->logits + (size_t)out * d->g->n_vocab : NULL;
        for (; out < b->n_out && b->out_rows[out] < row + n; out++) p->b.n_out++;
    }
}

static uint8_t *row_of(const void *p, size_t row, size_t stride, size_t elem)
{
    return (uint8_t *)(uintptr_t)p + row * stride * elem;
}

/* Registers begin at the piece's first row. */
static void set_windows(cu_dev *d, uint32_t row, uint32_t out)
{
    for (uint32_t i = 0; i < d->g->n_regs; i++) {
        struct dev_reg *r = &d->regs[i];
        bool is_out = (r->kind & KS_REG_OUT) != 0;
        size_t first = is_out                  ? out
                       : d->regs[r->root].wide ? row
                                               : 0,
               first_act = is_out        ? out
                           : r->wide_act ? row
                                         : first,
               elem = (r->kind & 0xffu) == KS_REG_ROUTE ? 8 : 4;
        r->r.p = (float *)(void *)row_of(r->all, first, r->r.stride, elem);
        if (r->n_sel) r->n_sel = r->n_sel_all + first;
        if (!r->has_act) continue;
        r->act = cu_act_from(r->act_all, first_act);
        r->act_valid = false;
    }
}

void cu_piece_enter(cu_dev *d, uint32_t piece)
{
    const struct cu_piece *p = &d->pieces[piece];
    d->batch = &p->b;
    d->step = p->step;
    d->first_row = p->row;
    if (d->n_pieces > 1) set_windows(d, p->row, p->out);
}

void cu_pieces_leave(cu_dev *d, const ks_batch *whole, int32_t input)
{
    d->batch = whole;
    d->first_row = 0;
    if (d->n_pieces == 1) return;
    set_windows(d, 0, 0);
    if (input >= 0) d->regs[input].act_valid = d->regs[input].wide_act;
}
