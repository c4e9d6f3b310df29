/* The inside of a tokenizer, shared by tokenizer*.c and detok.c. Everything is built at load and read-only after. [any]
 */
#ifndef KS_TEXT_TOKENIZER_IMPL_H
#define KS_TEXT_TOKENIZER_IMPL_H

#include "base/arena.h"
#include "base/base.h"
#include "base/buf.h"
#include "text/pretok.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

/* Limits. Real files: 262,144 ids, 514,906 merges, tokens up to 512 bytes, files up to 40 MB. */
#define KS_TOK_FILE_BYTES_MAX ((size_t)1 << 28)
#define KS_TOK_CONFIG_BYTES_MAX ((size_t)1 << 24)
#define KS_TOK_ID_MAX ((1u << 24) - 1)
#define KS_TOK_ENTRY_BYTES_MAX 65536u
#define KS_TOK_ADDED_MAX 1048576u
#define KS_TOK_ADDED_BYTES_MAX 4096u /* also bounds the work per byte of text */
#define KS_TOK_TEXT_BYTES_MAX ((size_t)1 << 30)
#define KS_TOK_STEPS_MAX 32u
#define KS_TOK_NONE UINT32_MAX

/* ---- Vocabulary: text <-> id, one hash table. */

typedef struct ks_entry {
    uint32_t at, n; /* n: KS_TOK_NONE for an id that is not given */
} ks_entry;

typedef struct ks_vocab {
    ks_buf text;
    ks_entry *entry; /* by id */
    uint32_t size, cap;
    uint32_t count;    /* entries */
    uint32_t id_limit; /* 0: KS_TOK_ID_MAX; bounds the memory that a small file can ask for */
    uint32_t *slot;    /* id + 1; 0: empty */
    uint32_t n_slots;
} ks_vocab;

void ks_vocab_fini(ks_vocab *v);
KS_MUST_CHECK int ks_vocab_add(ks_vocab *v, const char *s, size_t n, uint32_t id, ks_err *err);
/* KS_TOK_NONE: no such entry. */
uint32_t ks_vocab_find(const ks_vocab *v, const char *s, size_t n);
static inline const char *ks_vocab_text(const ks_vocab *v, uint32_t id, size_t *ret_n)
{
    if (id >= v->size || v->entry[id].n == KS_TOK_NONE) return NULL;
    *ret_n = v->entry[id].n;
    return v->text.p + v->entry[id].at;
}

/* ---- BPE */

typedef struct ks_merge {
    uint64_t key; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank, id;
} ks_merge;

typedef struct ks_bpe {
    ks_vocab vocab;
    ks_merge *merge; /* open addressing */
    uint32_t n_slots, n_merges;
    bool byte_input; /* pieces are bytes of text, not the characters that stand for them */
    bool byte_fallback, fuse_unk, ignore_merges;
    bool raw;              /* entries are the bytes themselves (rank files), not characters */
    bool cut_spm;          /* no merge joins x and U+2581: pieces may be cut before each word */
    uint32_t unk;          /* id or KS_TOK_NONE */
    uint32_t byte_id[256]; /* byte input: of the byte; else: of <0xNN>; KS_TOK_NONE: missing */
    uint32_t *char_id;     /* by code point below 0x10000 */
    char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; NULL: none */
    size_t prefix_n, suffix_n;
} ks_bpe;

void ks_bpe_fini(ks_bpe *b);
/* Space for n merges, then each in order of rank, then the tables that encoding needs. */
KS_MUST_CHECK int ks_bpe_reserve(ks_bpe *b, size_t n, ks_err *err);
KS_MUST_CHECK int ks_bpe_add_merge(ks_bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id, ks_err *err);
KS_MUST_CHECK int ks_bpe_finish(ks_bpe *b, ks_err *err);
/* Merges for every way to cut an entry in two entries, ranked by rank[id] (lower first; KS_TOK_NONE: the entry is
 * never a result): what rank files and SentencePiece models mean. */
KS_MUST_CHECK int ks_bpe_merges_from_ranks(ks_bpe *b, const uint32_t *rank, ks_err *err);

/* One encode call: ids that grow, and what is reused from piece to piece. */
typedef struct ks_bpe_run {
    const ks_bpe *b;
    int32_t *ids;
    size_t n, cap;
    struct ks_bpe_cached *cache;
    uint32_t cache_mask;
    uint32_t *sym; /* scratch of long pieces */
    size_t sym_cap;
    ks_buf text;
} ks_bpe_run;

/* text_bytes: of the whole text, sizes the cache. */
KS_MUST_CHECK int ks_bpe_run_init(ks_bpe_run *r, const ks_bpe *b, size_t text_bytes, ks_err *err);
void ks_bpe_run_fini(ks_bpe_run *r);
KS_MUST_CHECK int ks_bpe_push(ks_bpe_run *r, uint32_t id, ks_err *err);
KS_MUST_CHECK int ks_bpe_piece(ks_bpe_run *r, const uint8_t *s, size_t n, ks_err *err);

/* ---- Normalizers */

enum {
    KS_NORM_FORM,
    KS_NORM_REPLACE,
    KS_NORM_PREPEND,
    KS_NORM_STRIP,
    KS_NORM_LOWER,
    KS_NORM_ACCENTS,
    KS_NORM_BYTE_CHARS
};

typedef struct ks_norm {
    int type;
    int form;            /* FORM: KS_NFC ... */
    ks_pattern *pattern; /* REPLACE, owned */
    char single;         /* REPLACE: the pattern is this one ASCII character; 0: it is not */
    const char *text;    /* REPLACE, PREPEND: in the tokenizer's arena, or constant */
    size_t n;
    bool left, right; /* STRIP */
} ks_norm;

/* Normalizes s into *ret, which points to s itself if nothing changes, else into a or b. */
KS_MUST_CHECK int ks_norm_run(const ks_norm *steps, uint32_t n_steps, const char *s, size_t n, ks_buf *a, ks_buf *b,
                              const char **ret, size_t *ret_n, ks_err *err);

/* ---- Added tokens */

typedef struct ks_added {
    uint32_t id;
    bool special, normalized, single_word, lstrip, rstrip;
    bool blank; /* white space alone: never markup */
    char *text; /* in the arena */
    size_t n;
} ks_added;

typedef struct ks_trie {
    struct ks_trie_node *node;
    uint32_t n, cap;
    uint32_t root[256];
    bool first[256];
} ks_trie;

void ks_trie_fini(ks_trie *t);
/* The first of two equal texts stays. */
KS_MUST_CHECK int ks_trie_add(ks_trie *t, const char *s, size_t n, uint32_t value, ks_err *err);
/* The leftmost match at or after *inout_at, the longest there: its value, or KS_TOK_NONE. */
uint32_t ks_trie_find(const ks_trie *t, const uint8_t *s, size_t n, size_t *inout_at, size_t *ret_n);

/* ---- Decoders */

enum { KS_DEC_REPLACE, KS_DEC_BYTES, KS_DEC_FALLBACK, KS_DEC_FUSE, KS_DEC_STRIP, KS_DEC_METASPACE, KS_DEC_JOIN };

typedef struct ks_dec {
    int type;
    ks_pattern *pattern; /* REPLACE, owned */
    const char *text;    /* REPLACE: what goes in; STRIP, METASPACE: the one character */
    size_t n;
    uint32_t start, stop; /* STRIP */
    bool keep_first;      /* METASPACE: the first token's marks are spaces, too */
} ks_dec;

/* ---- The whole */

struct ks_tokenizer {
    ks_arena arena;
    ks_bpe bpe;
    ks_norm norm[KS_TOK_STEPS_MAX];
    uint32_t n_norm;
    ks_pretok pretok;
    ks_vocab added_index; /* text -> index in added */
    uint32_t added_max_id;
    ks_added *added;
    uint32_t n_added, cap_added;
    uint32_t *added_of; /* by id: index + 1 */
    ks_trie raw, normalized;
    ks_uni_set *word; /* for single_word; NULL: no added token asks for it */
    ks_dec dec[KS_TOK_STEPS_MAX];
    uint32_t n_dec;
    uint32_t n_dec_local; /* the first ones, which `bytes` already went through */
    ks_buf bytes;         /* what each id decodes to, as far as that depends on it alone */
    ks_entry *bytes_of;
    bool *is_byte;            /* by id: a <0xNN> for FALLBACK */
    bool has_fallback, lossy; /* decoder: runs of <0xNN>; bytes that become text only together */
    uint32_t size;
    uint32_t *before, *after; /* post-processor: ids around the text, in the arena */
    uint32_t n_before, n_after;
    bool slices; /* Kimi: long input is cut before it is encoded */
    int32_t bos, eos;
    char *names[4]; /* bos_token, eos_token, pad_token, unk_token; in the arena */
};

/* tokenizer_json.c, tokenizer_rank.c, tokenizer_spm.c: fill an empty t. config may be NULL. */
KS_MUST_CHECK int ks_tokenizer_load_json(ks_tokenizer *t, const char *json, size_t n, ks_err *err);
KS_MUST_CHECK int ks_tokenizer_load_ranks(ks_tokenizer *t, const char *text, size_t n, const char *config,
                                          size_t config_n, ks_err *err);
KS_MUST_CHECK int ks_tokenizer_load_spm(ks_tokenizer *t, const char *bytes, size_t n, const char *config,
                                        size_t config_n, ks_err *err);
/* tokenizer_config.json: names, missing added tokens. Before ks_tokenizer_finish. */
KS_MUST_CHECK int ks_tokenizer_load_config(ks_tokenizer *t, const char *config, size_t n, ks_err *err);
/* As if a directory had this file, for fuzzing. */
KS_MUST_CHECK int ks_tokenizer_parse_file(const char *name, const char *text, size_t n, const char *config,
                                          size_t config_n, ks_tokenizer **ret, ks_err *err);
/* Adds or changes one, as the reference does; the id follows from the vocabulary. */
KS_MUST_CHECK int ks_tokenizer_add(ks_tokenizer *t, const ks_added *a, ks_err *err);
/* Tables over all tokens. */
KS_MUST_CHECK int ks_tokenizer_finish(ks_tokenizer *t, ks_err *err);
/* The decoder's part that needs nothing but the token (detok.c). */
KS_MUST_CHECK int ks_tokenizer_prepare_bytes(ks_tokenizer *t, ks_err *err);
/* Text of an id as files spell it: the added token's, else the vocabulary's. NULL: none. */
const char *ks_tokenizer_text(const ks_tokenizer *t, uint32_t id, size_t *ret_n);

#endif
