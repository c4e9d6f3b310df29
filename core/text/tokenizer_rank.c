/* Rank files (tiktoken): one line a token, its bytes in base64 and its rank, which is its id. The file has neither
 * pattern nor special tokens; the models' own Python code has them, and this table what that code says. [any] */
#include "text/tokenizer_impl.h"
#include "text/tokenizer_val.h"

#include <string.h>

static const char kimi_pattern[] = "[\\p{Han}]+"
                                   "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*[\\p{Ll}"
                                   "\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+"
                                   "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                                   "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+[\\p{Ll}"
                                   "\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*"
                                   "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                                   "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char hunyuan_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                                      "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static const char *const hunyuan_specials[] = { "<|endoftext|>", "<|startoftext|>", "<|bos|>",
                                                "<|eos|>",       "<|pad|>",         NULL };

/* Special tokens follow the ranks: first the named ones, then filler by number; the config's names come before both. */
static const struct family {
    const char *class, *pattern;
    bool nfc, slices;
    const char *const *named;
    const char *filler; /* <|filler_N|>, N the id, or counted from 0 behind the named ones */
    bool filler_is_id;
    uint32_t n_special;
} families[] = {
    { "TikTokenTokenizer", kimi_pattern, false, true, NULL, "reserved_token", true, 258 },
    { "HYTokenizer", hunyuan_pattern, true, false, hunyuan_specials, "extra", false, 210 },
};

static int sextet(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Strict base64 with padding; false if it is not that. dst has room for 3 bytes per 4 characters. */
static bool base64(const char *s, size_t n, char *dst, size_t *ret_n)
{
    size_t out = 0, pad = n && s[n - 1] == '=' ? 1 + (n > 1 && s[n - 2] == '=') : 0;
    if (!n || n % 4) return false;
    for (size_t i = 0; i < n; i += 4) {
        uint32_t v = 0;
        for (size_t k = i; k < i + 4; k++) {
            int x = k >= n - pad ? 0 : sextet(s[k]);
            if (x < 0) return false;
            v = v << 6 | (uint32_t)x;
        }
        dst[out++] = (char)(v >> 16);
        dst[out++] = (char)(v >> 8);
        dst[out++] = (char)v;
    }
    *ret_n = out - pad;
    return true;
}

static int read_line(ks_vocab *v, const char *s, size_t n, size_t line, ks_err *err)
{
    char bytes[1536];
    size_t n_bytes = 0, n_text = 0;
    uint64_t id = 0;
    while (n_text < n && s[n_text] != ' ') n_text++;
    bool ok = n_text / 4 * 3 <= sizeof bytes && base64(s, n_text, bytes, &n_bytes) && n_text + 1 < n;
    for (size_t i = n_text + 1; ok && i < n; i++) {
        ok = s[i] >= '0' && s[i] <= '9' && id <= KS_TOK_ID_MAX;
        id = id * 10 + (uint64_t)(s[i] - '0');
    }
    if (!ok || !n_bytes || id > KS_TOK_ID_MAX)
        return ks_fail(err, KS_E_FORMAT,
                       "rank file, line %zu: not a token in base64 (at most 1536 bytes), a space and a rank", line);
    return ks_vocab_add(v, bytes, n_bytes, (uint32_t)id, err);
}

static int read_ranks(ks_bpe *b, const char *s, size_t n, ks_err *err)
{
    size_t line = 0;
    int rc = 0;
    for (size_t i = 0; i < n && !rc;) {
        const char *nl = memchr(s + i, '\n', n - i);
        size_t end = nl ? (size_t)(nl - s) : n, len = end - i;
        line++;
        if (len && s[i + len - 1] == '\r') len--;
        if (len) rc = read_line(&b->vocab, s + i, len, line, err);
        i = end + 1;
    }
    if (rc) return rc;
    uint32_t *rank = ks_calloc(b->vocab.size, sizeof *rank);
    if (!rank) return ks_fail(err, KS_E_NOMEM, "out of memory for the vocabulary, or the rank file is empty");
    for (uint32_t id = 0; id < b->vocab.size; id++) rank[id] = id;
    rc = ks_bpe_merges_from_ranks(b, rank, err);
    free(rank);
    return rc;
}

/* The config's entry for an id; false: none. */
static bool configured(ks_tokenizer *t, ks_val list, uint32_t id, ks_added *ret)
{
    char key[16];
    (void)snprintf(key, sizeof key, "%u", id);
    ks_val v = ks_val_get(list, key);
    *ret = (ks_added) { .id = id, .special = ks_val_true(ks_val_get(v, "special")) };
    ret->text = ks_val_str(ks_val_get(v, "content"), &t->arena, &ret->n);
    return ret->text && ret->n;
}

static int add_specials(ks_tokenizer *t, const struct family *f, ks_val list, ks_err *err)
{
    uint32_t first = t->bpe.vocab.size, n_named = 0;
    while (f->named && f->named[n_named]) n_named++;
    for (uint32_t i = 0; i < f->n_special; i++) {
        ks_added a;
        if (!configured(t, list, first + i, &a)) {
            a.special = true;
            a.text = i < n_named ? ks_arena_printf(&t->arena, "%s", f->named[i])
                                 : ks_arena_printf(&t->arena, "<|%s_%u|>", f->filler,
                                                   f->filler_is_id ? first + i : i - n_named);
            if (!a.text) return ks_fail(err, KS_E_NOMEM, "out of memory for the special tokens");
            a.n = strlen(a.text);
        }
        int rc = ks_tokenizer_add(t, &a, err);
        if (rc) return rc;
    }
    return 0;
}

int ks_tokenizer_load_ranks(ks_tokenizer *t, const char *text, size_t n, const char *config, size_t config_n,
                            ks_err *err)
{
    ks_val root = { 0 };
    int rc = config ? ks_val_parse(config, config_n, "tokenizer_config.json", &root, err) : 0;
    if (rc) return rc;
    const struct family *f = NULL;
    ks_val class = ks_val_get(root, "tokenizer_class");
    for (size_t i = 0; i < KS_COUNT(families); i++)
        if (ks_val_is(class, families[i].class)) f = &families[i];
    if (!f)
        return ks_fail(
            err, KS_E_UNSUPPORTED,
            "rank file with tokenizer_class %.*s: its pattern is known for TikTokenTokenizer and HYTokenizer only",
            (int)KS_MIN(class.n, 60), class.type ? class.p : "");
    t->bpe.raw = true;
    t->bpe.ignore_merges = true;
    t->slices = f->slices;
    t->bpe.vocab.id_limit = (uint32_t)KS_MIN(KS_TOK_ID_MAX, KS_MAX(n, 65535));
    if (f->nfc) t->norm[t->n_norm++] = (ks_norm) { .type = KS_NORM_FORM, .form = KS_NFC };
    ks_stage *st = &t->pretok.stage[t->pretok.n++];
    st->type = KS_STAGE_SPLIT;
    st->behavior = KS_SPLIT_ISOLATED;
    t->dec[t->n_dec++].type = KS_DEC_BYTES;
    if ((rc = ks_pattern_new(f->pattern, strlen(f->pattern), &st->pattern, err)) ||
        (rc = read_ranks(&t->bpe, text, n, err)) || (rc = ks_bpe_finish(&t->bpe, err)))
        return rc;
    return add_specials(t, f, ks_val_get(root, "added_tokens_decoder"), err);
}
