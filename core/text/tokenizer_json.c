/* tokenizer.json: every part is read into the steps that run, or refused by name. What is left out without a word
 * changes ids, so nothing is. Truncation and padding are the caller's business and not applied. [any] */
#include "base/log.h"
#include "text/tokenizer_impl.h"
#include "text/tokenizer_val.h"

#include <string.h>

#define FAMILY_DEPTH 8u

static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/* The Whitespace pre-tokenizer's \w+|[^\w\s]+ in the words of the regex crate, whose \w is not Oniguruma's. */
#define CRATE_WORD                                                                                                  \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{" \
    "1f189}\\x{200c}\\x{200d}"
static const char crate_words[] = "[" CRATE_WORD "]+|[^\\s" CRATE_WORD "]+";

/* "NFC" for messages: the value of "type", or what stands there. */
static int refuse(ks_val v, const char *what, ks_err *err)
{
    ks_val type = v.type == KS_JSON_OBJECT ? ks_val_get(v, "type") : v;
    if (type.type == KS_JSON_END) return ks_fail(err, KS_E_FORMAT, "%s without a 'type'", what);
    int n = (int)KS_MIN(type.n, 60);
    return ks_fail(err, KS_E_UNSUPPORTED, "%s %.*s is not supported: its ids cannot be reproduced exactly", what, n,
                   type.p);
}

static int bad(const char *what, ks_err *err)
{
    return ks_fail(err, KS_E_FORMAT, "%s is missing or malformed", what);
}

static int no_memory(ks_err *err)
{
    return ks_fail(err, KS_E_NOMEM, "out of memory for the tokenizer");
}

/* {"String": "x"} or {"Regex": "x"}, or the bare string of old files. */
static int read_pattern(ks_tokenizer *t, ks_val v, ks_pattern **ret, const char **ret_text, ks_err *err)
{
    ks_val regex = v.type == KS_JSON_OBJECT ? ks_val_get(v, "Regex") : (ks_val) { 0 };
    ks_val string = v.type == KS_JSON_OBJECT ? ks_val_get(v, "String") : v;
    size_t n = 0;
    char *text = ks_val_str(regex.type ? regex : string, &t->arena, &n);
    if (!text) return bad("a 'pattern' (String or Regex)", err);
    *ret_text = regex.type ? NULL : text;
    if (!regex.type) return ks_pattern_from_text(text, n, ret, err);
    int rc = ks_pattern_new(text, n, ret, err);
    if (!rc && ks_pattern_is_foreign(*ret))
        ks_log(KS_LOG_WARN, "tokenizer",
               "unknown pattern '%s' is run by PCRE2, whose Unicode is older: rare characters may be cut differently",
               text);
    return rc;
}

/* ---- Normalizers */

static int add_normalizer(ks_tokenizer *t, ks_val v, uint32_t depth, ks_err *err);

static int add_list(ks_tokenizer *t, ks_val list, const char *what, uint32_t depth,
                    int (*add)(ks_tokenizer *, ks_val, uint32_t, ks_err *), ks_err *err)
{
    if (list.type != KS_JSON_ARRAY || depth >= FAMILY_DEPTH) return bad(what, err);
    ks_val_iter it;
    ks_val_begin(&it, list);
    while (ks_val_next(&it)) {
        int rc = add(t, it.item, depth + 1, err);
        if (rc) return rc;
    }
    return 0;
}

static int add_replace(ks_tokenizer *t, ks_norm *st, ks_val v, ks_err *err)
{
    const char *plain;
    st->type = KS_NORM_REPLACE;
    st->text = ks_val_str(ks_val_get(v, "content"), &t->arena, &st->n);
    if (!st->text) return bad("the normalizer Replace's 'content'", err);
    int rc = read_pattern(t, ks_val_get(v, "pattern"), &st->pattern, &plain, err);
    if (!rc && plain && plain[0] > 0 && !plain[1]) st->single = plain[0];
    return rc;
}

static int add_normalizer(ks_tokenizer *t, ks_val v, uint32_t depth, ks_err *err)
{
    static const struct {
        const char *name;
        int type, form;
    } simple[] = { { "NFC", KS_NORM_FORM, KS_NFC },       { "NFD", KS_NORM_FORM, KS_NFD },
                   { "NFKC", KS_NORM_FORM, KS_NFKC },     { "NFKD", KS_NORM_FORM, KS_NFKD },
                   { "Lowercase", KS_NORM_LOWER, 0 },     { "StripAccents", KS_NORM_ACCENTS, 0 },
                   { "ByteLevel", KS_NORM_BYTE_CHARS, 0 } };
    if (ks_val_none(v)) return 0;
    ks_val type = ks_val_get(v, "type");
    if (ks_val_is(type, "Sequence"))
        return add_list(t, ks_val_get(v, "normalizers"), "the normalizer Sequence's 'normalizers'", depth,
                        add_normalizer, err);
    if (t->n_norm == KS_TOK_STEPS_MAX) return ks_fail(err, KS_E_LIMIT, "more than %u normalizers", KS_TOK_STEPS_MAX);
    ks_norm *st = &t->norm[t->n_norm++]; /* counted at once: the tokenizer frees what is half done */
    for (size_t i = 0; i < KS_COUNT(simple); i++)
        if (ks_val_is(type, simple[i].name)) {
            st->type = simple[i].type;
            st->form = simple[i].form;
            return 0;
        }
    if (ks_val_is(type, "Replace")) return add_replace(t, st, v, err);
    if (ks_val_is(type, "Prepend")) {
        st->type = KS_NORM_PREPEND;
        st->text = ks_val_str(ks_val_get(v, "prepend"), &t->arena, &st->n);
        return st->text ? 0 : bad("the normalizer Prepend's 'prepend'", err);
    }
    if (ks_val_is(type, "Strip")) {
        st->type = KS_NORM_STRIP;
        st->left = ks_val_true(ks_val_get(v, "strip_left"));
        st->right = ks_val_true(ks_val_get(v, "strip_right"));
        return 0;
    }
    return refuse(v, "normalizer", err);
}

/* ---- Pre-tokenizers */

static ks_stage *new_stage(ks_tokenizer *t, int type, ks_err *err)
{
    if (t->pretok.n == KS_STAGES_MAX - 1) { /* one is kept for BYTE_CHARS */
        (void)ks_fail(err, KS_E_LIMIT, "more than %u steps of pre-tokenizers", KS_STAGES_MAX - 1);
        return NULL;
    }
    ks_stage *st = &t->pretok.stage[t->pretok.n++];
    *st = (ks_stage) { .type = type };
    return st;
}

static int read_behavior(ks_val v, int otherwise, int *ret, ks_err *err)
{
    static const char *const names[] = { "Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous" };
    *ret = otherwise;
    if (v.type == KS_JSON_END && otherwise >= 0) return 0;
    for (size_t i = 0; i < KS_COUNT(names); i++)
        if (ks_val_is(v, names[i])) return *ret = (int)i, 0;
    return bad("a pre-tokenizer's 'behavior'", err);
}

static int add_split(ks_tokenizer *t, ks_val v, ks_err *err)
{
    const char *plain;
    ks_stage *st = new_stage(t, KS_STAGE_SPLIT, err);
    if (!st) return KS_E_LIMIT;
    st->invert = ks_val_true(ks_val_get(v, "invert"));
    int rc = read_behavior(ks_val_get(v, "behavior"), -1, &st->behavior, err);
    return rc ? rc : read_pattern(t, ks_val_get(v, "pattern"), &st->pattern, &plain, err);
}

/* A split by a pattern of ours. */
static int add_own(ks_tokenizer *t, const char *pattern, int behavior, bool invert, ks_err *err)
{
    ks_stage *st = new_stage(t, KS_STAGE_SPLIT, err);
    if (!st) return KS_E_LIMIT;
    st->behavior = behavior;
    st->invert = invert;
    return ks_pattern_new(pattern, strlen(pattern), &st->pattern, err);
}

static int add_byte_level(ks_tokenizer *t, ks_val v, ks_err *err)
{
    ks_val prefix = ks_val_get(v, "add_prefix_space"), regex = ks_val_get(v, "use_regex");
    int rc = 0;
    if (ks_val_true(prefix) && !new_stage(t, KS_STAGE_PREFIX_SPACE, err)) return KS_E_LIMIT;
    if (regex.type != KS_JSON_FALSE) rc = add_own(t, gpt2_pattern, KS_SPLIT_ISOLATED, false, err);
    return rc || new_stage(t, KS_STAGE_BYTE_CHARS, err) ? rc : KS_E_LIMIT;
}

static int add_metaspace(ks_tokenizer *t, ks_val v, ks_err *err)
{
    ks_val prefix = ks_val_get(v, "add_prefix_space"), scheme = ks_val_get(v, "prepend_scheme");
    size_t n = 0;
    uint32_t cp;
    char *mark = ks_val_str(ks_val_get(v, "replacement"), &t->arena, &n);
    if (!mark || !n || ks_utf8_decode(mark, n, &cp) != n)
        return bad("the pre-tokenizer Metaspace's 'replacement' (one character)", err);
    ks_stage *st = new_stage(t, KS_STAGE_METASPACE, err);
    if (!st) return KS_E_LIMIT;
    memcpy(st->replacement, mark, n + 1);
    if (ks_val_is(scheme, "first"))
        st->scheme = KS_METASPACE_FIRST;
    else if (ks_val_is(scheme, "never") || (ks_val_none(scheme) && prefix.type == KS_JSON_FALSE))
        st->scheme = KS_METASPACE_NEVER;
    else if (ks_val_none(scheme) || ks_val_is(scheme, "always"))
        st->scheme = KS_METASPACE_ALWAYS;
    else
        return bad("the pre-tokenizer Metaspace's 'prepend_scheme'", err);
    if (prefix.type == KS_JSON_FALSE && st->scheme != KS_METASPACE_NEVER)
        return ks_fail(
            err, KS_E_FORMAT,
            "the pre-tokenizer Metaspace has add_prefix_space false, but a prepend_scheme other than 'never'");
    if (ks_val_get(v, "split").type == KS_JSON_FALSE) return 0;
    ks_stage *sp = new_stage(t, KS_STAGE_SPLIT, err);
    if (!sp) return KS_E_LIMIT;
    sp->behavior = KS_SPLIT_NEXT;
    return ks_pattern_from_text(mark, n, &sp->pattern, err);
}

static int add_punctuation(ks_tokenizer *t, ks_val v, ks_err *err)
{
    ks_stage *st = new_stage(t, KS_STAGE_SPLIT, err);
    if (!st) return KS_E_LIMIT;
    int rc = read_behavior(ks_val_get(v, "behavior"), KS_SPLIT_ISOLATED, &st->behavior, err);
    if (rc) return rc;
    ks_uni_ranges a = { 0 };
    ks_uni_add_old_punctuation(&a);
    rc = ks_pattern_from_ranges(&a, &st->pattern, err);
    ks_uni_ranges_fini(&a);
    return rc;
}

static int add_pretokenizer(ks_tokenizer *t, ks_val v, uint32_t depth, ks_err *err)
{
    if (ks_val_none(v)) return 0;
    ks_val type = ks_val_get(v, "type");
    if (ks_val_is(type, "Sequence"))
        return add_list(t, ks_val_get(v, "pretokenizers"), "the pre-tokenizer Sequence's 'pretokenizers'", depth,
                        add_pretokenizer, err);
    if (ks_val_is(type, "Split")) return add_split(t, v, err);
    if (ks_val_is(type, "ByteLevel")) return add_byte_level(t, v, err);
    if (ks_val_is(type, "Metaspace")) return add_metaspace(t, v, err);
    if (ks_val_is(type, "Punctuation")) return add_punctuation(t, v, err);
    if (ks_val_is(type, "Digits"))
        return add_own(t, "\\p{N}",
                       ks_val_true(ks_val_get(v, "individual_digits")) ? KS_SPLIT_ISOLATED : KS_SPLIT_CONTIGUOUS, false,
                       err);
    if (ks_val_is(type, "Whitespace")) return add_own(t, crate_words, KS_SPLIT_REMOVED, true, err);
    if (ks_val_is(type, "WhitespaceSplit")) return add_own(t, "\\s", KS_SPLIT_REMOVED, false, err);
    if (ks_val_is(type, "CharDelimiterSplit")) {
        size_t n = 0;
        char *c = ks_val_str(ks_val_get(v, "delimiter"), &t->arena, &n);
        ks_stage *st = c ? new_stage(t, KS_STAGE_SPLIT, err) : NULL;
        if (!st) return c ? KS_E_LIMIT : bad("the pre-tokenizer CharDelimiterSplit's 'delimiter'", err);
        return ks_pattern_from_text(c, n, &st->pattern, err);
    }
    return refuse(v, "pre-tokenizer", err);
}

/* ---- Post-processors */

/* Puts ids before what is there already, or after it: later processors wrap earlier ones. */
static int wrap(ks_tokenizer *t, const uint32_t *ids, uint32_t n, bool after, ks_err *err)
{
    uint32_t have = after ? t->n_after : t->n_before, *old = after ? t->after : t->before;
    if (n > 1024 || have > 1024) return ks_fail(err, KS_E_LIMIT, "the post-processor adds more than 1024 ids");
    uint32_t *all = ks_arena_calloc(&t->arena, (size_t)have + n + 1, sizeof *all);
    if (!all) return no_memory(err);
    if (n) memcpy(all + (after ? have : 0), ids, n * sizeof *ids);
    if (have) memcpy(all + (after ? 0 : n), old, have * sizeof *old);
    *(after ? &t->after : &t->before) = all;
    *(after ? &t->n_after : &t->n_before) = have + n;
    return 0;
}

static int read_id(ks_val v, uint32_t *ret, ks_err *err)
{
    uint64_t id;
    if (!ks_val_u64(v, &id) || id > KS_TOK_ID_MAX)
        return ks_fail(err, KS_E_FORMAT, "a token id is missing, malformed or above %u", KS_TOK_ID_MAX);
    *ret = (uint32_t)id;
    return 0;
}

static int add_template(ks_tokenizer *t, ks_val v, ks_err *err)
{
    static const char *const names[] = { "single", "special_tokens" };
    ks_val m[2];
    uint32_t ids[2][64], n[2] = { 0, 0 }, side = 0;
    ks_val_members(v, names, 2, m);
    if (m[0].type != KS_JSON_ARRAY) return bad("the post-processor TemplateProcessing's 'single'", err);
    ks_val_iter it;
    ks_val_begin(&it, m[0]);
    while (ks_val_next(&it)) {
        ks_val token = ks_val_get(it.item, "SpecialToken"), sequence = ks_val_get(it.item, "Sequence");
        if (sequence.type == KS_JSON_OBJECT) {
            if (side++ || !ks_val_is(ks_val_get(sequence, "id"), "A"))
                return bad("the post-processor TemplateProcessing's 'single' (one Sequence A)", err);
            continue;
        }
        char *name = ks_val_str(ks_val_get(token, "id"), &t->arena, NULL);
        ks_val list = name ? ks_val_get(ks_val_get(m[1], name), "ids") : (ks_val) { 0 };
        if (list.type != KS_JSON_ARRAY) return bad("a special token of the post-processor TemplateProcessing", err);
        ks_val_iter one;
        ks_val_begin(&one, list);
        while (ks_val_next(&one)) {
            uint32_t k = side ? 1 : 0;
            if (n[k] == KS_COUNT(ids[0]))
                return ks_fail(err, KS_E_LIMIT, "the post-processor adds more than %zu ids", KS_COUNT(ids[0]));
            int rc = read_id(one.item, &ids[k][n[k]++], err);
            if (rc) return rc;
        }
    }
    if (!side) return bad("the post-processor TemplateProcessing's 'single' (one Sequence A)", err);
    int rc = wrap(t, ids[0], n[0], false, err);
    return rc ? rc : wrap(t, ids[1], n[1], true, err);
}

static int add_postprocessor(ks_tokenizer *t, ks_val v, uint32_t depth, ks_err *err)
{
    if (ks_val_none(v)) return 0;
    ks_val type = ks_val_get(v, "type");
    if (ks_val_is(type, "Sequence"))
        return add_list(t, ks_val_get(v, "processors"), "the post-processor Sequence's 'processors'", depth,
                        add_postprocessor, err);
    if (ks_val_is(type, "ByteLevel")) return 0; /* offsets only */
    if (ks_val_is(type, "TemplateProcessing")) return add_template(t, v, err);
    if (ks_val_is(type, "RobertaProcessing") || ks_val_is(type, "BertProcessing")) { /* "cls": ["<s>", 0] */
        static const char *const names[] = { "cls", "sep" };
        ks_val m[2];
        ks_val_members(v, names, 2, m);
        for (uint32_t k = 0; k < 2; k++) {
            uint32_t id;
            ks_val_iter it;
            ks_val_begin(&it, m[k]);
            bool two = ks_val_next(&it) && ks_val_next(&it);
            int rc = two ? read_id(it.item, &id, err) : bad("a post-processor's 'cls' or 'sep'", err);
            if (rc || (rc = wrap(t, &id, 1, k == 1, err))) return rc;
        }
        return 0;
    }
    return refuse(v, "post-processor", err);
}

/* ---- Decoders */

static int add_decoder(ks_tokenizer *t, ks_val v, uint32_t depth, ks_err *err)
{
    if (ks_val_none(v)) return 0;
    ks_val type = ks_val_get(v, "type");
    if (ks_val_is(type, "Sequence"))
        return add_list(t, ks_val_get(v, "decoders"), "the decoder Sequence's 'decoders'", depth, add_decoder, err);
    if (t->n_dec == KS_TOK_STEPS_MAX) return ks_fail(err, KS_E_LIMIT, "more than %u decoders", KS_TOK_STEPS_MAX);
    bool fused = false;
    for (uint32_t i = 0; i < t->n_dec; i++) fused |= t->dec[i].type == KS_DEC_FUSE || t->dec[i].type == KS_DEC_BYTES;
    ks_dec *d = &t->dec[t->n_dec++];
    uint32_t cp;
    if (ks_val_is(type, "ByteLevel") && !fused) return d->type = KS_DEC_BYTES, 0;
    if (ks_val_is(type, "ByteFallback") && !fused) return d->type = KS_DEC_FALLBACK, 0;
    if (ks_val_is(type, "Fuse")) return d->type = KS_DEC_FUSE, 0;
    if (ks_val_is(type, "Replace")) {
        const char *plain;
        d->type = KS_DEC_REPLACE;
        d->text = ks_val_str(ks_val_get(v, "content"), &t->arena, &d->n);
        if (!d->text) return bad("the decoder Replace's 'content'", err);
        int rc = read_pattern(t, ks_val_get(v, "pattern"), &d->pattern, &plain, err);
        /* Over the whole text only what needs no look at the next token can be streamed. */
        if (!rc && fused && (!plain || ks_utf8_decode(plain, strlen(plain), &cp) != strlen(plain)))
            rc = ks_fail(err, KS_E_UNSUPPORTED,
                         "decoder Replace of more than one character after Fuse is not supported");
        return rc;
    }
    if (ks_val_is(type, "Strip")) {
        uint64_t start = 0, stop = 0;
        d->type = KS_DEC_STRIP;
        d->text = ks_val_str(ks_val_get(v, "content"), &t->arena, &d->n);
        if (!d->text || !d->n || ks_utf8_decode(d->text, d->n, &cp) != d->n ||
            !ks_val_u64(ks_val_get(v, "start"), &start) || !ks_val_u64(ks_val_get(v, "stop"), &stop) || start > 4096 ||
            stop > 4096)
            return bad("the decoder Strip's 'content', 'start' or 'stop'", err);
        d->start = (uint32_t)start;
        d->stop = (uint32_t)stop;
        return 0;
    }
    if (ks_val_is(type, "Metaspace") && !fused) {
        ks_val scheme = ks_val_get(v, "prepend_scheme");
        d->type = KS_DEC_METASPACE;
        d->text = ks_val_str(ks_val_get(v, "replacement"), &t->arena, &d->n);
        d->keep_first =
            ks_val_none(scheme) ? ks_val_get(v, "add_prefix_space").type == KS_JSON_FALSE : ks_val_is(scheme, "never");
        return d->text && d->n && ks_utf8_decode(d->text, d->n, &cp) == d->n
                   ? 0
                   : bad("the decoder Metaspace's 'replacement' (one character)", err);
    }
    return refuse(v, fused ? "decoder (after Fuse or ByteLevel)" : "decoder", err);
}

/* ---- Model */

/* The reader stands on '{'. What is wrong with the JSON itself is left to the caller, here and for the merges. */
static int read_vocab(ks_vocab *v, ks_json *j, ks_err *err)
{
    ks_buf key;
    int rc = 0, token;
    ks_buf_init(&key, 0);
    while (!rc && ks_json_next(j) == KS_JSON_KEY) {
        const char *s = j->tok;
        size_t n = j->tok_bytes;
        if (j->escaped) {
            key.n = 0;
            ks_buf_add(&key, j->tok, n + 1); /* makes room; the unescaped text is not longer */
            if (key.failed) {
                rc = no_memory(err);
                break;
            }
            (void)ks_json_str(j, key.p, n + 1, &n); /* fits */
            s = key.p;
        }
        uint64_t id;
        if ((token = ks_json_next(j)) < 0) break;
        if (token != KS_JSON_NUMBER || ks_json_u64(j, &id) || id > KS_TOK_ID_MAX)
            rc = ks_fail(err, KS_E_FORMAT, "the id of token '%.*s' is not an integer from 0 to %u", (int)KS_MIN(n, 80),
                         s, KS_TOK_ID_MAX);
        else
            rc = ks_vocab_add(v, s, n, (uint32_t)id, err);
    }
    ks_buf_fini(&key);
    return rc;
}

typedef struct merge_reader {
    ks_bpe *b;
    ks_buf text; /* both halves, unescaped; then their concatenation */
    uint32_t rank;
} merge_reader;

static int add_merge(merge_reader *m, size_t left_n, ks_err *err)
{
    ks_bpe *b = m->b;
    char *s = m->text.p;
    size_t right_n = m->text.n - left_n, skip = b->prefix_n;
    uint32_t left = ks_vocab_find(&b->vocab, s, left_n), right = ks_vocab_find(&b->vocab, s + left_n, right_n),
             id = KS_TOK_NONE;
    if (left != KS_TOK_NONE && right != KS_TOK_NONE && right_n >= skip) {
        memmove(s + left_n, s + left_n + skip, right_n - skip);
        id = ks_vocab_find(&b->vocab, s, left_n + right_n - skip);
    }
    if (id == KS_TOK_NONE) {
        const char *what = left == KS_TOK_NONE    ? "its left half"
                           : right == KS_TOK_NONE ? "its right half"
                                                  : "its result";
        return ks_fail(err, KS_E_FORMAT, "merge %u ('%.*s' + '%.*s'): %s is not in the vocabulary", m->rank,
                       (int)KS_MIN(left_n, 80), s, (int)KS_MIN(right_n, 80), s + left_n, what);
    }
    return ks_bpe_add_merge(b, left, right, m->rank++, id, err);
}

/* Appends the current string of the reader, unescaped. */
static bool append_string(merge_reader *m, const ks_json *j)
{
    size_t at = m->text.n, n;
    ks_buf_add(&m->text, j->tok, j->tok_bytes);
    ks_buf_addc(&m->text, 0); /* room for the NUL that ks_json_str writes */
    if (m->text.failed || ks_json_str(j, m->text.p + at, j->tok_bytes + 1, &n)) return false;
    m->text.n = at + n;
    return true;
}

static int read_merge(merge_reader *m, ks_json *j, int token, ks_err *err)
{
    m->text.n = 0;
    if (token == KS_JSON_STRING) {
        if (!append_string(m, j)) return no_memory(err);
        char *space = memchr(m->text.p, ' ', m->text.n);
        size_t left = space ? (size_t)(space - m->text.p) : 0;
        if (!space || memchr(space + 1, ' ', m->text.n - left - 1))
            return ks_fail(err, KS_E_FORMAT, "merge %u ('%.*s') is not two tokens with a space between them", m->rank,
                           (int)KS_MIN(m->text.n, 80), m->text.p);
        memmove(space, space + 1, m->text.n - left - 1);
        m->text.n--;
        return add_merge(m, left, err);
    }
    bool ok = token == KS_JSON_ARRAY && ks_json_next(j) == KS_JSON_STRING && append_string(m, j);
    size_t left = m->text.n;
    ok = ok && ks_json_next(j) == KS_JSON_STRING && append_string(m, j) && ks_json_next(j) == KS_JSON_ARRAY_END;
    if (!ok)
        return ks_fail(err, m->text.failed ? KS_E_NOMEM : KS_E_FORMAT,
                       "merge %u is not a string or a list of two strings", m->rank);
    return add_merge(m, left, err);
}

/* The reader stands on '['. */
static int read_merges(ks_bpe *b, ks_json *j, ks_err *err)
{
    merge_reader m = { .b = b };
    ks_buf_init(&m.text, 0);
    int rc = ks_bpe_reserve(b, b->vocab.count, err); /* as many as entries, in most files */
    for (int token; !rc && (token = ks_json_next(j)) > 0 && token != KS_JSON_ARRAY_END;)
        rc = read_merge(&m, j, token, err);
    ks_buf_fini(&m.text);
    return j->error ? 0 : rc;
}

static int read_affix(ks_tokenizer *t, ks_val v, char **ret, size_t *ret_n, ks_err *err)
{
    size_t n = 0;
    if (ks_val_none(v)) return 0;
    char *s = ks_val_str(v, &t->arena, &n);
    if (!s || n > 64) return bad("continuing_subword_prefix or end_of_word_suffix (at most 64 bytes)", err);
    if (!n) return 0;
    *ret = ks_strdup(s);
    *ret_n = n;
    return *ret ? 0 : no_memory(err);
}

enum { TYPE, DROPOUT, UNK, PREFIX, SUFFIX, FUSE, FALLBACK, IGNORE, VOCAB, MERGES, N_MODEL };
static const char *const model_names[] = { "type",
                                           "dropout",
                                           "unk_token",
                                           "continuing_subword_prefix",
                                           "end_of_word_suffix",
                                           "fuse_unk",
                                           "byte_fallback",
                                           "ignore_merges",
                                           "vocab",
                                           "merges" };

static int read_model(ks_tokenizer *t, const ks_val m[N_MODEL], ks_err *err)
{
    ks_bpe *b = &t->bpe;
    if (m[TYPE].type != KS_JSON_END && !ks_val_is(m[TYPE], "BPE")) return refuse(m[TYPE], "model", err);
    if (m[VOCAB].type != KS_JSON_OBJECT) return bad("the model's 'vocab' (an object of tokens and ids)", err);
    if (m[MERGES].type != KS_JSON_ARRAY) return bad("the model's 'merges' (a list)", err);
    if (!ks_val_none(m[DROPOUT]) && !(m[DROPOUT].type == KS_JSON_NUMBER && strspn(m[DROPOUT].p, "0.") >= m[DROPOUT].n))
        return ks_fail(err, KS_E_UNSUPPORTED, "the model's 'dropout' is %.*s: ids would be random",
                       (int)KS_MIN(m[DROPOUT].n, 20), m[DROPOUT].p);
    b->fuse_unk = ks_val_true(m[FUSE]);
    b->byte_fallback = ks_val_true(m[FALLBACK]);
    b->ignore_merges = ks_val_true(m[IGNORE]);
    int rc = b->prefix ? 0 : read_affix(t, m[PREFIX], &b->prefix, &b->prefix_n, err);
    if (!rc) rc = read_affix(t, m[SUFFIX], &b->suffix, &b->suffix_n, err);
    if (!rc && m[MERGES].p) { /* they came before what they need */
        ks_json j;
        ks_json_init(&j, m[MERGES].p, m[MERGES].n, KS_VAL_DEPTH);
        (void)ks_json_next(&j); /* '[': checked before */
        rc = read_merges(b, &j, err);
    }
    if (rc) return rc;
    size_t n = 0;
    char *unk = ks_val_none(m[UNK]) ? NULL : ks_val_str(m[UNK], &t->arena, &n);
    b->unk = unk ? ks_vocab_find(&b->vocab, unk, n) : KS_TOK_NONE;
    return 0;
}

/* ---- Added tokens */

static int read_added(ks_tokenizer *t, ks_val list, ks_err *err)
{
    enum { ID, CONTENT, SPECIAL, NORMALIZED, SINGLE, LSTRIP, RSTRIP, N };
    static const char *const names[] = { "id", "content", "special", "normalized", "single_word", "lstrip", "rstrip" };
    if (ks_val_none(list)) return 0;
    if (list.type != KS_JSON_ARRAY) return bad("'added_tokens' (a list)", err);
    ks_val_iter it;
    ks_val_begin(&it, list);
    while (ks_val_next(&it)) {
        ks_val m[N];
        ks_val_members(it.item, names, N, m);
        ks_added a = { .special = ks_val_true(m[SPECIAL]),
                       .normalized =
                           m[NORMALIZED].type == KS_JSON_END ? !ks_val_true(m[SPECIAL]) : ks_val_true(m[NORMALIZED]),
                       .single_word = ks_val_true(m[SINGLE]),
                       .lstrip = ks_val_true(m[LSTRIP]),
                       .rstrip = ks_val_true(m[RSTRIP]) };
        a.text = ks_val_str(m[CONTENT], &t->arena, &a.n);
        if (!a.text) return bad("the 'content' of an added token", err);
        int rc = read_id(m[ID], &a.id, err);
        if (rc || (rc = ks_tokenizer_add(t, &a, err))) return rc;
    }
    return 0;
}

enum { ADDED, NORM, PRE, POST, DEC, N_FILE };
static const char *const file_names[] = { "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder" };

static void keep(ks_json *j, int token, const ks_val *key, const char *const *names, size_t n, ks_val *ret)
{
    ks_val v = ks_val_here(j, token);
    for (size_t i = 0; i < n; i++)
        if (ks_val_is(*key, names[i])) ret[i] = v;
}

/* The vocabulary and, if all that they need came before, the merges are read where they stand: they are nearly all of
 * the file. */
static int model_member(ks_tokenizer *t, ks_json *j, int token, const ks_val *key, ks_val m[N_MODEL], ks_err *err)
{
    ks_bpe *b = &t->bpe;
    if (token == KS_JSON_OBJECT && !b->vocab.count && ks_val_is(*key, "vocab")) {
        m[VOCAB].type = token;
        return read_vocab(&b->vocab, j, err);
    }
    if (token == KS_JSON_ARRAY && b->vocab.count && m[PREFIX].type && !m[MERGES].type && ks_val_is(*key, "merges")) {
        m[MERGES].type = token;
        int rc = read_affix(t, m[PREFIX], &b->prefix, &b->prefix_n, err);
        return rc ? rc : read_merges(b, j, err);
    }
    keep(j, token, key, model_names, N_MODEL, m);
    return 0;
}

/* Finds the parts of the file and of its model, and checks all of its JSON, in one pass. */
static int scan_file(ks_tokenizer *t, const char *json, size_t n, ks_val file[N_FILE], ks_val model[N_MODEL],
                     ks_err *err)
{
    static const char what[] = "tokenizer.json";
    ks_json j;
    int token, rc = 0;
    bool in_model = false, seen = false;
    ks_json_init(&j, json, n, KS_VAL_DEPTH);
    if (ks_json_next(&j) != KS_JSON_OBJECT)
        return j.error ? ks_json_fail(&j, err, what) : bad("tokenizer.json's outermost object", err);
    while (!rc && (token = ks_json_next(&j)) > 0) {
        if (token == KS_JSON_OBJECT_END) {
            in_model = false; /* or the end of the file: END follows */
            continue;
        }
        ks_val key = ks_val_here(&j, token); /* in an object every other token is a key */
        token = ks_json_next(&j);
        if (token < 0) break;
        if (in_model) {
            rc = model_member(t, &j, token, &key, model, err);
        } else if (token == KS_JSON_OBJECT && !seen && ks_val_is(key, "model")) {
            in_model = seen = true;
        } else {
            keep(&j, token, &key, file_names, N_FILE, file);
        }
    }
    if (j.error) return ks_json_fail(&j, err, what);
    return rc || seen ? rc : bad("tokenizer.json's 'model' (an object)", err);
}

int ks_tokenizer_load_json(ks_tokenizer *t, const char *json, size_t n, ks_err *err)
{
    ks_val m[N_FILE] = { { 0 } }, model[N_MODEL] = { { 0 } };
    t->bpe.vocab.id_limit = (uint32_t)KS_MIN(KS_TOK_ID_MAX, KS_MAX(n, 65535)); /* an entry takes more than a byte */
    int rc = scan_file(t, json, n, m, model, err);
    if (rc) return rc;
    if ((rc = add_normalizer(t, m[NORM], 0, err)) || (rc = add_pretokenizer(t, m[PRE], 0, err)) ||
        (rc = add_postprocessor(t, m[POST], 0, err)) || (rc = add_decoder(t, m[DEC], 0, err)) ||
        (rc = read_model(t, model, err)))
        return rc;
    /* Without a decoder tokens are joined by spaces. */
    if (ks_val_none(m[DEC])) t->dec[t->n_dec++] = (ks_dec) { .type = KS_DEC_JOIN };
    /* The last step of a byte-level chain is left out: BPE takes the bytes as they are. */
    if (t->pretok.n && t->pretok.stage[t->pretok.n - 1].type == KS_STAGE_BYTE_CHARS) {
        t->pretok.n--;
        t->bpe.byte_input = true;
    }
    bool bytes = t->bpe.byte_input;
    if ((rc = ks_bpe_finish(&t->bpe, err))) return rc;
    if (bytes && !t->bpe.byte_input) t->pretok.stage[t->pretok.n++] = (ks_stage) { .type = KS_STAGE_BYTE_CHARS };
    return read_added(t, m[ADDED], err);
}
