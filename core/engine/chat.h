/* Chat messages as clients send them -> messages as templates expect them. [any] */
#ifndef KS_ENGINE_CHAT_H
#define KS_ENGINE_CHAT_H

#include <krasis/json.h>

#define KS_CHAT_KEEP_DEVELOPER 1u /* the template knows the role "developer"; else it becomes "system" */
#define KS_CHAT_KEEP_ARGUMENTS \
    2u /* function arguments stay the JSON string that the API has; else they become an object */

/* Appends the rewritten array to w. Checks: a list of objects, each with a known role; content a string, null or a list
 * of text parts (joined, since every template takes a string); role, content and tool_calls once at most; errors name
 * the message's index. Everything else of a message goes through as it is spelled. */
KS_MUST_CHECK int ks_chat_messages(const char *json, size_t n, uint32_t flags, ks_jw *w, ks_err *err);

#endif
