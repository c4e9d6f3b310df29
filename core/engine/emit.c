/* Emission: see emit.h. Held text is short (less than the longest stop string plus one token), so the search
 * looks at all of it anew for every token. */
#include "engine/emit.h"

#include "base/base.h"

int ks_emit_init(ks_emit *e, const ks_tokenizer *tok, const char *const *stop, uint32_t n_stop, int32_t n_logprobs,
                 ks_err *err)
{
    *e = (ks_emit) { .tok = tok, .stop = stop, .n_stop = n_stop, .want_tokens = n_logprobs >= 0 };
    e->n_top = n_logprobs > 0 ? KS_MIN((uint32_t)n_logprobs, KS_TOP_MAX) : 0;
    ks_buf_init(&e->held, 0);
    if (tok) return ks_detok_new(tok, true, &e->detok, err);
    return 0;
}

void ks_emit_fini(ks_emit *e)
{
    ks_detok_free(e->detok);
    ks_buf_fini(&e->held);
    free(e->pending);
    free(e->info);
    free(e->lp);
    *e = (ks_emit) { 0 };
}

static void fill(const ks_tokenizer *tok, ks_logprob *dst, ks_cand c)
{
    size_t n = 0;
    dst->id = c.id;
    dst->logprob = c.logit;
    dst->bytes = tok ? ks_tokenizer_bytes(tok, c.id, &n) : NULL;
    dst->n_bytes = dst->bytes ? (uint32_t)n : 0;
    if (!dst->bytes) dst->bytes = "";
}

/* Releases the first `n` held bytes and the tokens that begin in them (all tokens if `all`). */
static int release(ks_emit *e, size_t n, bool all, const ks_sink *s, uint32_t choice)
{
    uint64_t end = e->appended - e->held.n + n;
    uint32_t m = 0;
    while (m < e->n_pending && (all || !e->tok || e->pending[m].offset < end)) m++;
    for (uint32_t i = 0; i < m; i++) {
        const ks_emit_token *t = &e->pending[i];
        ks_logprob *lp = e->lp + (size_t)i * (KS_TOP_MAX);
        for (uint32_t k = 0; k < e->n_top; k++) fill(e->tok, &lp[k], t->top[k]);
        e->info[i] = (ks_token_info) {
            .size = (uint32_t)sizeof(ks_token_info), .n_top = e->n_top, .top = lp, .text_offset = t->offset
        };
        fill(e->tok, &e->info[i].token, t->token);
    }
    int rc = 0;
    if (n || m) rc = s->on_text(s->arg, choice, e->held.p ? e->held.p : "", n, e->info, m);
    if (n) {
        memmove(e->held.p, e->held.p + n, e->held.n - n);
        e->held.n -= n;
        e->held.p[e->held.n] = 0;
    }
    if (m) memmove(e->pending, e->pending + m, (e->n_pending - m) * sizeof *e->pending);
    e->n_pending -= m;
    return rc ? KS_EMIT_REFUSED : 0;
}

static int push_pending(ks_emit *e, const ks_cand *lp, const ks_cand *top, ks_err *err)
{
    if (e->n_pending == e->cap_pending) {
        uint32_t cap = e->cap_pending ? e->cap_pending * 2 : 16;
        void *a = realloc(e->pending, cap * sizeof *e->pending);
        if (a) e->pending = a;
        void *b = realloc(e->info, cap * sizeof *e->info);
        if (b) e->info = b;
        void *c = realloc(e->lp, (size_t)cap * KS_TOP_MAX * sizeof *e->lp);
        if (c) e->lp = c;
        if (!a || !b || !c) return ks_fail(err, KS_E_NOMEM, "out of memory for the log-probabilities of an answer");
        e->cap_pending = cap;
    }
    ks_emit_token *t = &e->pending[e->n_pending++];
    t->token = *lp;
    t->offset = e->appended;
    if (e->n_top) memcpy(t->top, top, e->n_top * sizeof *top);
    return 0;
}

/* Length of the longest tail of the held text that begins some stop string. */
static size_t tail_held(const ks_emit *e)
{
    size_t best = 0;
    for (uint32_t i = 0; i < e->n_stop; i++) {
        size_t len = strlen(e->stop[i]), n = KS_MIN(len - 1, e->held.n);
        for (; n > best; n--)
            if (memcmp(e->held.p + e->held.n - n, e->stop[i], n) == 0) best = n;
    }
    return best;
}

static int append(ks_emit *e, const char *text, size_t n, const ks_sink *s, uint32_t choice, ks_err *err)
{
    ks_buf_add(&e->held, text, n);
    if (e->held.failed) return ks_fail(err, KS_E_NOMEM, "out of memory for the text of an answer");
    e->appended += n;
    const char *first = NULL;
    for (uint32_t i = 0; i < e->n_stop && e->held.n; i++) {
        const char *at = memmem(e->held.p, e->held.n, e->stop[i], strlen(e->stop[i]));
        if (at && (!first || at < first)) first = at;
    }
    if (first) {
        int rc = release(e, (size_t)(first - e->held.p), false, s, choice);
        return rc ? rc : KS_EMIT_STOPPED;
    }
    return release(e, e->held.n - tail_held(e), false, s, choice);
}

int ks_emit_add(ks_emit *e, int32_t id, const ks_cand *lp, const ks_cand *top, const ks_sink *s, uint32_t choice,
                ks_err *err)
{
    if (e->want_tokens && lp) {
        int rc = push_pending(e, lp, top, err);
        if (rc) return rc;
    }
    const char *text = "";
    size_t n = 0;
    if (e->detok) {
        int rc = ks_detok_add(e->detok, id, &text, &n, err);
        if (rc) return rc;
    }
    return append(e, text, n, s, choice, err);
}

int ks_emit_end(ks_emit *e, const ks_sink *s, uint32_t choice, ks_err *err)
{
    const char *text = "";
    size_t n = 0;
    if (e->detok) {
        int rc = ks_detok_end(e->detok, &text, &n, err);
        if (rc) return rc;
    }
    int rc = append(e, text, n, s, choice, err);
    if (rc) return rc;
    return release(e, e->held.n, true, s, choice);
}
