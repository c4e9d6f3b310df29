/* Tokenizer: text <-> token ids, exactly as the model's own files define it. Immutable after load. [any] */
#ifndef KS_TEXT_TOKENIZER_H
#define KS_TEXT_TOKENIZER_H

#include "text/span.h"

#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ks_tokenizer ks_tokenizer;

/* dir: a Hugging Face directory with tokenizer.json, tiktoken.model, hy.tiktoken or tokenizer.model (the first that is
 * there), and tokenizer_config.json. What cannot be reproduced exactly is KS_E_UNSUPPORTED with its name; a pattern
 * that PCRE2 has to run is logged as a warning. */
KS_MUST_CHECK int ks_tokenizer_open(const char *dir, ks_tokenizer **ret, ks_err *err);
void ks_tokenizer_close(ks_tokenizer *t);
/* From memory, for tests and fuzzing: the text of tokenizer.json, and of tokenizer_config.json (or NULL). */
KS_MUST_CHECK int ks_tokenizer_parse(const char *json, size_t n, const char *config, size_t config_n,
                                     ks_tokenizer **ret, ks_err *err);

#define KS_TOK_ADD_SPECIAL 1u /* post-processor adds BOS and the like */
/* Added tokens in the text are NOT recognised: user text that must not act as markup. Those of white space alone still
 * are: they are no markup. */
#define KS_TOK_PLAIN_TEXT 2u
/* Appends to *ids (malloc'd, grown; *n the count). Text is UTF-8; ill-formed bytes are KS_E_INVAL. */
KS_MUST_CHECK int ks_tokenizer_encode(const ks_tokenizer *t, const char *text, size_t bytes, uint32_t flags,
                                      int32_t **ids, size_t *n, ks_err *err);
/* The same where only some stretches are plain text: an added token with one byte in them is not recognised. All else,
 * normalizers, pieces and merges, does not see the borders: without such spellings the ids are those of the text. */
KS_MUST_CHECK int ks_tokenizer_encode_spans(const ks_tokenizer *t, const char *text, size_t bytes,
                                            const ks_text_span *plain, size_t n_plain, uint32_t flags, int32_t **ids,
                                            size_t *n, ks_err *err);
/* Whole sequence, ill-formed bytes as U+FFFD; malloc'd. skip_special: special tokens give no text. Unknown ids give
 * none. */
KS_MUST_CHECK int ks_tokenizer_decode(const ks_tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                                      char **ret, size_t *ret_n, ks_err *err);

uint32_t ks_tokenizer_size(const ks_tokenizer *t); /* largest id + 1 */
/* The bytes a token stands for (an added token: its text). NULL: no such id. */
const char *ks_tokenizer_bytes(const ks_tokenizer *t, int32_t id, size_t *ret_n);
bool ks_tokenizer_is_special(const ks_tokenizer *t, int32_t id);
int32_t ks_tokenizer_id(const ks_tokenizer *t, const char *text); /* of an added token or a vocabulary entry; -1 */
int32_t ks_tokenizer_bos(const ks_tokenizer *t);                  /* from tokenizer_config.json; -1: none */
int32_t ks_tokenizer_eos(const ks_tokenizer *t);
/* bos_token, eos_token, pad_token, unk_token as text ("" if none), for templates. */
const char *ks_tokenizer_name(const ks_tokenizer *t, const char *which);

/* Streaming: feed ids one by one, get text that is complete UTF-8. Never splits a code point; what can never
 * become valid comes out as U+FFFD. The concatenation equals ks_tokenizer_decode. */
typedef struct ks_detok ks_detok;
KS_MUST_CHECK int ks_detok_new(const ks_tokenizer *t, bool skip_special, ks_detok **ret, ks_err *err);
void ks_detok_free(ks_detok *d);
/* *ret points into d, valid until the next call. */
KS_MUST_CHECK int ks_detok_add(ks_detok *d, int32_t id, const char **ret, size_t *ret_n, ks_err *err);
KS_MUST_CHECK int ks_detok_end(ks_detok *d, const char **ret, size_t *ret_n, ks_err *err);

#endif
