/* A stretch of a text, in bytes. Lists of them are ascending and do not touch each other. */
#ifndef KS_TEXT_SPAN_H
#define KS_TEXT_SPAN_H

#include <stddef.h>

typedef struct ks_text_span {
    size_t begin, end;
} ks_text_span;

#endif
