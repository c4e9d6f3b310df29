/* Chat templates: Jinja as transformers runs it for models' templates, interpreted with hard limits. docs/templates.md
 * tells what is there. The stack needs 256 KiB. [any] */
#ifndef KS_TEXT_TEMPLATE_H
#define KS_TEXT_TEMPLATE_H

#include "text/span.h"

#include <krasis/error.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ks_template ks_template; /* compiled, immutable */

/* Errors carry line, column and an excerpt. */
KS_MUST_CHECK int ks_template_new(const char *source, size_t n, ks_template **ret, ks_err *err);
void ks_template_free(ks_template *t);
/* The chat template of a model directory: chat_template.jinja (additional_chat_templates/NAME.jinja for a name), else
 * tokenizer_config.json's chat_template (a string, or a list of {name, template}: `name` or "default"), else a built-in
 * one for families that ship none (deepseek_v32, deepseek_v4). NULL is "default"; for requests with tools, models may
 * have one named "tool_use". KS_E_NOTFOUND: the model has none. */
KS_MUST_CHECK int ks_template_find(const char *dir, const char *name, char **ret_source, size_t *ret_n, ks_err *err);

typedef struct ks_template_limits {
    uint64_t fuel;       /* evaluation steps; 0: default */
    size_t output_bytes; /* 0: default; of the result and of any text on the way */
    size_t memory_bytes; /* 0: default */
    uint32_t depth;      /* 0: default, which is the most, too */
} ks_template_limits;

/* context: JSON object of the variables (messages, tools, add_generation_prompt, bos_token, ...). Numbers keep their
 * spelling, objects their order. now_unix: what strftime_now sees (local time of TZ). ret: malloc'd.
 * raise_exception(...) and every other error of the template give KS_E_INVAL with its message. */
KS_MUST_CHECK int ks_template_render(const ks_template *t, const char *context, size_t n, int64_t now_unix,
                                     const ks_template_limits *limits, char **ret, size_t *ret_n, ks_err *err);

typedef struct ks_rendered {
    char *text; /* malloc'd, like request */
    size_t n;
    ks_text_span *request; /* (n_request) what came in with the context, or was made of such text */
    size_t n_request;
} ks_rendered;

/* The same with the origins of the result. The template's own text is all that is written in it, what the host
 * says (bos_token, eos_token, pad_token, unk_token), the roles of messages that the API knows, and numbers. */
KS_MUST_CHECK int ks_template_render_spans(const ks_template *t, const char *context, size_t n, int64_t now_unix,
                                           const ks_template_limits *limits, ks_rendered *ret, ks_err *err);
void ks_rendered_fini(ks_rendered *x);

#endif
