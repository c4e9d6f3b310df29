/* SentencePiece models (tokenizer.model): a protocol buffer of pieces with scores. A BPE model becomes what the
 * reference makes of it: each piece merges from any two pieces, the higher score first. [any] */
#include "text/tokenizer_impl.h"
#include "text/tokenizer_val.h"

#include <krasis/json.h>
#include <string.h>

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

/* ---- Protocol buffers: fields one after the other; a field is a number, a length with bytes, or 4 or 8 bytes. */

typedef struct field {
    uint32_t number;
    uint64_t value; /* varint, or the bits of 4 and 8 bytes */
    const char *p;  /* bytes; NULL for numbers */
    size_t n;
} field;

typedef struct message {
    const char *p, *end;
    bool bad;
} message;

static uint64_t varint(message *m)
{
    uint64_t v = 0;
    for (uint32_t shift = 0; shift < 64 && m->p < m->end; shift += 7) {
        uint8_t b = (uint8_t)*m->p++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) return v;
    }
    m->bad = true;
    return 0;
}

static uint64_t fixed(message *m, size_t n)
{
    uint64_t v = 0;
    if ((size_t)(m->end - m->p) < n) return m->bad = true, 0;
    for (size_t i = 0; i < n; i++) v |= (uint64_t)(uint8_t)m->p[i] << 8 * i;
    m->p += n;
    return v;
}

static bool next_field(message *m, field *f)
{
    if (m->bad || m->p == m->end) return false;
    uint64_t tag = varint(m);
    *f = (field) { .number = (uint32_t)(tag >> 3) };
    switch (tag & 7) {
    case 0: f->value = varint(m); break;
    case 1: f->value = fixed(m, 8); break;
    case 5: f->value = fixed(m, 4); break;
    case 2: {
        uint64_t n = varint(m);
        if (m->bad || n > (uint64_t)(m->end - m->p)) return m->bad = true, false;
        f->p = m->p;
        f->n = (size_t)n;
        m->p += n;
        break;
    }
    default: m->bad = true; break;
    }
    return !m->bad && tag >> 3 && tag >> 3 < 1u << 29;
}

/* ---- The model */

typedef struct piece {
    float score;
    uint32_t id;
} piece;

typedef struct model {
    ks_tokenizer *t;
    piece *pieces;
    uint8_t *types;
    uint32_t n, cap;
    uint64_t model_type;
    bool bytes, prefix, extra_space, escape, suffix, charsmap;
} model;

static int read_piece(model *m, const field *f, ks_err *err)
{
    message in = { f->p, f->p + f->n, false };
    field g;
    const char *text = NULL;
    size_t n = 0;
    uint32_t bits = 0;
    uint64_t type = TYPE_NORMAL;
    while (next_field(&in, &g)) {
        if (g.number == 1) {
            text = g.p;
            n = g.n;
        }
        if (g.number == 2) bits = (uint32_t)g.value;
        if (g.number == 3) type = g.value;
    }
    if (in.bad || !text || ks_utf8_valid(text, n) != n || !type || type > TYPE_BYTE)
        return ks_fail(err, KS_E_FORMAT, "tokenizer.model: piece %u is malformed", m->n);
    if (type == TYPE_UNUSED)
        return ks_fail(err, KS_E_UNSUPPORTED, "tokenizer.model: piece %u is marked unused, which is not supported",
                       m->n);
    if (m->n == m->cap) {
        uint32_t cap = m->cap ? 2 * m->cap : 4096;
        piece *p = realloc(m->pieces, cap * sizeof *p);
        if (p) m->pieces = p;
        uint8_t *k = realloc(m->types, cap);
        if (k) m->types = k;
        if (!p || !k) return ks_fail(err, KS_E_NOMEM, "out of memory for %u pieces", cap);
        m->cap = cap;
    }
    memcpy(&m->pieces[m->n].score, &bits, sizeof bits);
    m->pieces[m->n].id = m->n;
    m->types[m->n] = (uint8_t)type;
    return ks_vocab_add(&m->t->bpe.vocab, text, n, m->n++, err);
}

static bool read_specs(model *m, const field *f)
{
    message in = { f->p, f->p + f->n, false };
    field g;
    while (next_field(&in, &g)) {
        if (f->number == 2) { /* trainer */
            if (g.number == 3) m->model_type = g.value;
            if (g.number == 24) m->suffix = g.value;
            if (g.number == 35) m->bytes = g.value;
        } else { /* normalizer */
            if (g.number == 2) m->charsmap = g.n > 0;
            if (g.number == 3) m->prefix = g.value;
            if (g.number == 4) m->extra_space = g.value;
            if (g.number == 5) m->escape = g.value;
        }
    }
    return !in.bad;
}

static int read_model(model *m, const char *bytes, size_t n, ks_err *err)
{
    message in = { bytes, bytes + n, false };
    field f;
    int rc = 0;
    while (!rc && next_field(&in, &f)) {
        if (f.number == 1 && f.p) rc = read_piece(m, &f, err);
        if ((f.number == 2 || f.number == 3) && f.p && !read_specs(m, &f)) in.bad = true;
    }
    if (rc) return rc;
    if (in.bad || in.p != in.end || !m->n)
        return ks_fail(err, KS_E_FORMAT, "tokenizer.model is not a SentencePiece model (byte %zu)",
                       (size_t)(in.p - bytes));
    if (m->model_type != 2)
        return ks_fail(err, KS_E_UNSUPPORTED, "tokenizer.model is not a BPE model (model_type %u; 2 is BPE)",
                       (uint32_t)m->model_type);
    if (m->charsmap || m->extra_space || !m->escape || m->suffix)
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "tokenizer.model has a normalizer that changes more than spaces, which is not supported");
    return 0;
}

static int by_score(const void *a, const void *b)
{
    const piece *x = a, *y = b;
    return (x->score < y->score) - (x->score > y->score);
}

/* Equal scores are equal ranks: then the leftmost pair goes first. */
static int rank_pieces(model *m, ks_err *err)
{
    uint32_t *rank = ks_calloc(m->n, sizeof *rank);
    if (!rank) return ks_fail(err, KS_E_NOMEM, "out of memory for %u pieces", m->n);
    qsort(m->pieces, m->n, sizeof *m->pieces, by_score);
    for (uint32_t i = 0, r = 0; i < m->n; i++) {
        if (i && m->pieces[i].score < m->pieces[i - 1].score) r = i;
        uint32_t id = m->pieces[i].id;
        rank[id] = m->types[id] == TYPE_NORMAL || m->types[id] == TYPE_USER ? r : KS_TOK_NONE;
    }
    int rc = ks_bpe_merges_from_ranks(&m->t->bpe, rank, err);
    free(rank);
    return rc;
}

static int add_special_pieces(model *m, ks_err *err)
{
    ks_tokenizer *t = m->t;
    int rc = 0;
    for (uint32_t id = 0; id < m->n && !rc; id++) {
        if (m->types[id] == TYPE_UNKNOWN) t->bpe.unk = id;
        if (m->types[id] != TYPE_UNKNOWN && m->types[id] != TYPE_CONTROL && m->types[id] != TYPE_USER) continue;
        ks_added a = { .id = id, .special = m->types[id] != TYPE_USER };
        const char *s = ks_vocab_text(&t->bpe.vocab, id, &a.n);
        a.text = ks_arena_strndup(&t->arena, s, a.n);
        rc = a.text ? ks_tokenizer_add(t, &a, err) : ks_fail(err, KS_E_NOMEM, "out of memory for the special tokens");
    }
    return rc;
}

/* add_bos_token and add_eos_token; Llama's class adds the first without being told. */
static int add_ends(ks_tokenizer *t, const char *config, size_t n, ks_err *err)
{
    static const char *const names[] = { "add_bos_token", "add_eos_token", "tokenizer_class", "bos_token",
                                         "eos_token" };
    ks_val root, v[5];
    int rc = ks_val_parse(config, n, "tokenizer_config.json", &root, err);
    if (rc) return rc;
    ks_val_members(root, names, 5, v);
    bool add[2] = { ks_val_none(v[0]) ? ks_val_is(v[2], "LlamaTokenizer") : ks_val_true(v[0]), ks_val_true(v[1]) };
    for (uint32_t k = 0; k < 2; k++) {
        ks_val name = v[3 + k].type == KS_JSON_OBJECT ? ks_val_get(v[3 + k], "content") : v[3 + k];
        size_t name_n = 0;
        char *s = ks_val_str(name, &t->arena, &name_n);
        if (!add[k] || !s) continue;
        uint32_t *id = ks_arena_calloc(&t->arena, 1, sizeof *id);
        if (!id) return ks_fail(err, KS_E_NOMEM, "out of memory for the tokenizer");
        *id = ks_vocab_find(&t->bpe.vocab, s, name_n);
        if (*id == KS_TOK_NONE)
            return ks_fail(err, KS_E_FORMAT, "tokenizer_config.json adds '%.60s', which tokenizer.model does not have",
                           s);
        *(k ? &t->after : &t->before) = id;
        *(k ? &t->n_after : &t->n_before) = 1;
    }
    return 0;
}

static int add_steps(ks_tokenizer *t, bool prefix, ks_err *err)
{
    static const char mark[] = "\xe2\x96\x81", space[] = " ";
    if (prefix) t->norm[t->n_norm++] = (ks_norm) { .type = KS_NORM_PREPEND, .text = mark, .n = 3 };
    t->norm[t->n_norm++] = (ks_norm) { .type = KS_NORM_REPLACE, .single = ' ', .text = mark, .n = 3 };
    ks_dec *d = &t->dec[t->n_dec++];
    *d = (ks_dec) { .type = KS_DEC_REPLACE, .text = space, .n = 1 };
    t->dec[t->n_dec++] = (ks_dec) { .type = KS_DEC_FALLBACK };
    t->dec[t->n_dec++] = (ks_dec) { .type = KS_DEC_FUSE };
    if (prefix) t->dec[t->n_dec++] = (ks_dec) { .type = KS_DEC_STRIP, .text = space, .n = 1, .start = 1 };
    return ks_pattern_from_text(mark, 3, &d->pattern, err);
}

int ks_tokenizer_load_spm(ks_tokenizer *t, const char *bytes, size_t n, const char *config, size_t config_n,
                          ks_err *err)
{
    model m = {
        .t = t, .model_type = 1, .prefix = true, .extra_space = true, .escape = true
    }; /* the format's defaults */
    t->bpe.fuse_unk = true;
    t->bpe.vocab.id_limit = (uint32_t)KS_MIN(KS_TOK_ID_MAX, n);
    int rc = read_model(&m, bytes, n, err);
    t->bpe.byte_fallback = m.bytes;
    if (!rc) rc = rank_pieces(&m, err);
    if (!rc) rc = add_steps(t, m.prefix, err);
    if (!rc) rc = ks_bpe_finish(&t->bpe, err);
    if (!rc) rc = add_special_pieces(&m, err);
    if (!rc && config) rc = add_ends(t, config, config_n, err);
    free(m.pieces);
    free(m.types);
    return rc;
}
