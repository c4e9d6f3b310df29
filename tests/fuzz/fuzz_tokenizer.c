/* Tokenizer files and texts. The input: a letter for the kind of file (J: tokenizer.json, R: a rank file, S:
 * SentencePiece), then the file, the config and the text, each ended by the byte 0xFE. Needs: text, base. */
#include "text/tokenizer_impl.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Plain stretches never fail where the whole does not, and one over everything is plain text. */
static void use_spans(const ks_tokenizer *t, const char *text, size_t n)
{
    ks_text_span spans[8], all = { 0, n };
    ks_err err = { 0 };
    int32_t *ids[3] = { NULL };
    size_t n_ids[3] = { 0 }, k = 0;
    for (size_t at = 0; at < n && k < KS_COUNT(spans); at += 7)
        spans[k++] = (ks_text_span) { at, KS_MIN(at + 1 + (uint8_t)text[at] % 6, n) };
    if (!ks_tokenizer_encode(t, text, n, KS_TOK_PLAIN_TEXT, &ids[0], &n_ids[0], &err)) {
        KS_ASSERT(!ks_tokenizer_encode_spans(t, text, n, &all, n > 0, 0, &ids[1], &n_ids[1], &err));
        KS_ASSERT(n_ids[0] == n_ids[1] && (!n_ids[0] || !memcmp(ids[0], ids[1], n_ids[0] * sizeof **ids)));
        if (ks_tokenizer_encode_spans(t, text, n, spans, k, 0, &ids[2], &n_ids[2], &err)) /* a piece may be too hard */
            KS_ASSERT(err.msg[0]);
    }
    for (int i = 0; i < 3; i++) free(ids[i]);
}

static void use(const ks_tokenizer *t, const char *text, size_t n)
{
    use_spans(t, text, n);
    for (uint32_t flags = 0; flags < 4; flags++) {
        ks_err err = { 0 };
        int32_t *ids = NULL;
        size_t n_ids = 0, whole_n = 0, at = 0, part_n = 0;
        char *whole = NULL;
        const char *part = NULL;
        ks_detok *d = NULL;
        if (ks_tokenizer_encode(t, text, n, flags, &ids, &n_ids,
                                &err)) { /* not UTF-8, or too hard: ids from its bytes */
            free(ids);
            ids = malloc((n + 1) * sizeof *ids);
            if (!ids) return;
            for (n_ids = 0; n_ids < n; n_ids++) ids[n_ids] = (int32_t)((uint8_t)text[n_ids] * (uint32_t)n) - 3;
        }
        bool skip = flags & 1;
        KS_ASSERT(ks_tokenizer_decode(t, ids, n_ids, skip, &whole, &whole_n, &err) == 0);
        KS_ASSERT(ks_detok_new(t, skip, &d, &err) == 0);
        for (size_t i = 0; i <= n_ids; i++) {
            KS_ASSERT((i < n_ids ? ks_detok_add(d, ids[i], &part, &part_n, &err)
                                 : ks_detok_end(d, &part, &part_n, &err)) == 0);
            KS_ASSERT(part_n <= whole_n - at && !memcmp(whole + at, part, part_n));
            at += part_n;
        }
        KS_ASSERT(at == whole_n);
        ks_detok_free(d);
        free(whole);
        free(ids);
    }
}

static const uint8_t *part(const uint8_t *p, const uint8_t *end, const uint8_t **ret_next)
{
    const uint8_t *stop = p < end ? memchr(p, 0xfe, (size_t)(end - p)) : NULL;
    *ret_next = stop ? stop + 1 : end;
    return stop ? stop : end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    const char *name = *data == 'R' ? "tiktoken.model" : *data == 'S' ? "tokenizer.model" : "tokenizer.json";
    const uint8_t *end = data + size, *file = data + 1, *config, *text;
    size_t file_n = (size_t)(part(file, end, &config) - file), config_n = (size_t)(part(config, end, &text) - config);
    const uint8_t *rest;
    size_t text_n = (size_t)(part(text, end, &rest) - text);
    ks_err err = { 0 };
    ks_tokenizer *t = NULL;
    /* Copies, so that a read beyond an end is seen. */
    char *copy[3] = { malloc(file_n + 1), malloc(config_n + 1), malloc(text_n + 1) };
    if (copy[0] && copy[1] && copy[2]) {
        memcpy(copy[0], file, file_n);
        memcpy(copy[1], config, config_n);
        memcpy(copy[2], text, text_n);
        if (!ks_tokenizer_parse_file(name, copy[0], file_n, config_n ? copy[1] : NULL, config_n, &t, &err))
            use(t, copy[2], text_n);
    }
    ks_tokenizer_close(t);
    free(copy[0]);
    free(copy[1]);
    free(copy[2]);
    return 0;
}
