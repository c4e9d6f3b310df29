/* Templates for families that ship none: DeepSeek V3.2 and V4 document their prompt format as a program.
 *
 * Wording and markers are the format that those models were trained with. Variables: messages, tools,
 * add_generation_prompt, bos_token, thinking (or enable_thinking); V4 also reasoning_effort ("max") and drop_thinking.
 * Pieces, to be joined: a C compiler need not take longer strings. Arguments of tool calls may be an object or a JSON
 * string. Read-only. [any] */
#include "text/template_int.h"

/* clang-format off */
/* What both have in common: text of a message, and tool calls in DSML. */
#define DSML_MACROS \
    "{%- set D = '｜DSML｜' -%}\n" \
    "{%- set think = thinking if thinking is defined else (enable_thinking if enable_thinking is defined else false) -%}\n" \
    "{%- macro plain(content) -%}\n" \
    "  {%- if content is string -%}\n" \
    "    {{- content -}}\n" \
    "  {%- elif content is iterable -%}\n" \
    "    {%- for part in content if part.type == 'text' -%}\n" \
    "      {{- part.text -}}\n" \
    "    {%- endfor -%}\n" \
    "  {%- endif -%}\n" \
    "{%- endmacro -%}\n" \
    "{%- macro invocations(calls, block) -%}\n" \
    "  {{- '\\n\\n<' ~ D ~ block ~ '>\\n' -}}\n" \
    "  {%- for call in calls -%}\n" \
    "    {%- set f = call.function if call.function is defined else call -%}\n" \
    "    {%- set args = (f.arguments or '{}') | from_json if f.arguments is string else f.arguments -%}\n" \
    "    {{- '<' ~ D ~ 'invoke name=\"' ~ f.name ~ '\">\\n' -}}\n" \
    "    {%- for name, value in args | items -%}\n" \
    "      {{- '<' ~ D ~ 'parameter name=\"' ~ name ~ '\" string=\"' ~ ('true' if value is string else 'false') ~ '\">' -}}\n" \
    "      {{- (value if value is string else value | tojson) ~ '</' ~ D ~ 'parameter>\\n' -}}\n" \
    "    {%- endfor -%}\n" \
    "    {{- '</' ~ D ~ 'invoke>\\n' -}}\n" \
    "  {%- endfor -%}\n" \
    "  {{- '</' ~ D ~ block ~ '>' -}}\n" \
    "{%- endmacro -%}\n" \
    "{%- macro usage(block, second) -%}\n" \
    "  {{- '<' ~ D ~ block ~ '>\\n<' ~ D ~ 'invoke name=\"$' ~ second ~ '_NAME\">\\n' -}}\n" \
    "  {{- '<' ~ D ~ 'parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</' ~ D ~ 'parameter>\\n' -}}\n" \
    "  {{- '...\\n</' ~ D ~ 'invoke>\\n<' ~ D ~ 'invoke name=\"$' ~ second ~ '_NAME2\">\\n...\\n</' ~ D ~ 'invoke>\\n' -}}\n" \
    "  {{- '</' ~ D ~ block ~ '>\\n' -}}\n" \
    "{%- endmacro -%}\n"

const char *const ks__template_deepseek_v32[] = {
    DSML_MACROS,
    "{%- macro tool_text() -%}\n"
    "  {{- '## Tools\\n\\nYou have access to a set of tools you can use to answer the user\\'s question.\\n' -}}\n"
    "  {{- 'You can invoke functions by writing a \"<' ~ D ~ 'function_calls>\" block like the following as part of your ' -}}\n"
    "  {{- 'reply to the user:\\n' ~ usage('function_calls', 'FUNCTION') -}}\n"
    "  {{- '\\nString and scalar parameters should be specified as is without any escaping or quotes, while lists and ' -}}\n"
    "  {{- 'objects should use JSON format. The \"string\" attribute should be set to \"true\" for string type parameters ' -}}\n"
    "  {{- 'and \"false\" for other types (numbers, booleans, arrays, objects).\\n\\nIf the thinking_mode is enabled, then ' -}}\n"
    "  {{- 'after function results you should strongly consider outputting a thinking block. Here is an example:\\n\\n<' -}}\n"
    "  {{- D ~ 'function_calls>\\n...\\n</' ~ D ~ 'function_calls>\\n\\n<function_results>\\n...\\n</function_results>\\n\\n' -}}\n"
    "  {{- '<think>...thinking about results</think>\\n\\nHere are the functions available in JSONSchema format:\\n' -}}\n"
    "  {{- '<functions>\\n' -}}\n"
    "  {%- for tool in tools if tool.type == 'function' -%}\n"
    "    {{- (tool.function | tojson) ~ '\\n' -}}\n"
    "  {%- endfor -%}\n"
    "  {{- '</functions>\\n' -}}\n"
    "{%- endmacro -%}\n"
    "{%- set ns = namespace(system='', systems=0, last_user=-1, open='') -%}\n"
    "{%- for m in messages -%}\n"
    "  {%- if m.role == 'system' -%}\n"
    "    {%- set ns.system = ns.system ~ ('\\n\\n' if ns.systems else '') ~ plain(m.content) -%}\n"
    "    {%- set ns.systems = ns.systems + 1 -%}\n"
    "  {%- elif m.role in ['user', 'developer'] -%}\n"
    "    {%- set ns.last_user = loop.index0 -%}\n"
    "  {%- endif -%}\n"
    "{%- endfor -%}\n"
    "{{- bos_token ~ ns.system -}}\n"
    "{%- if tools -%}\n"
    "  {{- ('\\n\\n' if ns.system else '') ~ tool_text() -}}\n"
    "{%- endif -%}\n"
    "{%- for m in messages -%}\n"
    "  {%- if m.role in ['user', 'developer'] -%}\n"
    "    {{- '<｜User｜>' ~ plain(m.content) -}}\n"
    "    {%- set ns.open = '<｜Assistant｜>' -%}\n"
    "  {%- elif m.role == 'assistant' -%}\n"
    "    {%- if ns.open -%}\n"
    "      {{- ns.open -}}\n"
    "      {%- if think and loop.index0 > ns.last_user -%}\n"
    "        {{- '<think>' ~ (m.reasoning_content or '') -}}\n"
    "      {%- endif -%}\n"
    "      {{- '</think>' -}}\n"
    "    {%- endif -%}\n"
    "    {%- set ns.open = '' -%}\n"
    "    {{- plain(m.content) -}}\n"
    "    {%- if m.tool_calls -%}\n"
    "      {{- invocations(m.tool_calls, 'function_calls') -}}\n"
    "    {%- endif -%}\n"
    "    {{- '<｜end▁of▁sentence｜>' -}}\n"
    "  {%- elif m.role == 'tool' -%}\n"
    "    {%- if loop.first or loop.previtem.role != 'tool' -%}\n"
    "      {{- '\\n\\n<function_results>' -}}\n"
    "    {%- endif -%}\n"
    "    {{- '\\n<result>' ~ plain(m.content) ~ '</result>' -}}\n"
    "    {%- if loop.last or loop.nextitem.role != 'tool' -%}\n"
    "      {{- '\\n</function_results>' -}}\n"
    "      {%- set ns.open = '\\n\\n' -%}\n"
    "    {%- endif -%}\n"
    "  {%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt and ns.open -%}\n"
    "  {{- ns.open ~ ('<think>' if think else '<think></think>') -}}\n"
    "{%- endif -%}\n", NULL };

const char *const ks__template_deepseek_v4[] = {
    DSML_MACROS,
    "{%- macro tool_text() -%}\n"
    "  {{- '\\n\\n## Tools\\n\\nYou have access to a set of tools to help answer the user\\'s question. You can invoke tools ' -}}\n"
    "  {{- 'by writing a \"<' ~ D ~ 'tool_calls>\" block like the following:\\n\\n' ~ usage('tool_calls', 'TOOL') -}}\n"
    "  {{- '\\nString parameters should be specified as is and set `string=\"true\"`. For all other types (numbers, ' -}}\n"
    "  {{- 'booleans, arrays, objects), pass the value in JSON format and set `string=\"false\"`.\\n\\nIf thinking_mode is ' -}}\n"
    "  {{- 'enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any ' -}}\n"
    "  {{- 'tool calls or final response.\\n\\nOtherwise, output directly after </think> with tool calls or final ' -}}\n"
    "  {{- 'response.\\n\\n### Available Tool Schemas\\n\\n' -}}\n"
    "  {%- for tool in tools -%}\n"
    "    {{- (tool.function if tool.function is defined else tool) | tojson ~ '\\n' -}}\n"
    "  {%- endfor -%}\n"
    "  {{- '\\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\\n' -}}\n"
    "{%- endmacro -%}\n"
    "{%- set ns = namespace(open=false, last_user=-1, told=not tools) -%}\n"
    "{%- set keep_all = tools or (drop_thinking is defined and not drop_thinking) -%}\n"
    "{%- for m in messages -%}\n"
    "  {%- if m.role in ['user', 'developer'] -%}\n"
    "    {%- set ns.last_user = loop.index0 -%}\n"
    "  {%- endif -%}\n"
    "{%- endfor -%}\n"
    "{{- bos_token -}}\n"
    "{%- if think and reasoning_effort is defined and reasoning_effort == 'max' -%}\n"
    "  {{- 'Reasoning Effort: Absolute maximum with no shortcuts permitted.\\nYou MUST be very thorough in your thinking ' -}}\n"
    "  {{- 'and comprehensively decompose the problem to resolve the root cause, rigorously stress-testing your logic ' -}}\n"
    "  {{- 'against all potential paths, edge cases, and adversarial scenarios.\\nExplicitly write out your entire ' -}}\n"
    "  {{- 'deliberation process, documenting every intermediate step, considered alternative, and rejected hypothesis ' -}}\n"
    "  {{- 'to ensure absolutely no assumption is left unchecked.\\n\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- if not ns.told and (not messages or messages[0].role != 'system') -%}\n"
    "  {{- tool_text() -}}\n"
    "  {%- set ns.told = true -%}\n"
    "{%- endif -%}\n"
    "{%- for m in messages -%}\n"
    "  {%- if m.role == 'system' -%}\n"
    "    {{- plain(m.content) -}}\n"
    "    {%- if not ns.told -%}\n"
    "      {{- tool_text() -}}\n"
    "      {%- set ns.told = true -%}\n"
    "    {%- endif -%}\n"
    "  {%- elif m.role == 'assistant' -%}\n"
    "    {%- if ns.open -%}\n"
    "      {{- '<｜Assistant｜>' -}}\n"
    "      {%- if think and (keep_all or loop.index0 > ns.last_user) -%}\n"
    "        {{- '<think>' ~ (m.reasoning_content or '') -}}\n"
    "      {%- endif -%}\n"
    "      {{- '</think>' -}}\n"
    "    {%- endif -%}\n"
    "    {%- set ns.open = false -%}\n"
    "    {{- plain(m.content) -}}\n"
    "    {%- if m.tool_calls -%}\n"
    "      {{- invocations(m.tool_calls, 'tool_calls') -}}\n"
    "    {%- endif -%}\n"
    "    {{- '<｜end▁of▁sentence｜>' -}}\n"
    "  {%- elif m.role in ['user', 'developer', 'tool'] -%}\n"
    "    {{- '\\n\\n' if ns.open else '<｜User｜>' -}}\n"
    "    {%- if m.role == 'tool' -%}\n"
    "      {{- '<tool_result>' ~ plain(m.content) ~ '</tool_result>' -}}\n"
    "    {%- else -%}\n"
    "      {{- plain(m.content) -}}\n"
    "    {%- endif -%}\n"
    "    {%- set ns.open = true -%}\n"
    "  {%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt and ns.open -%}\n"
    "  {{- '<｜Assistant｜>' ~ ('<think>' if think else '</think>') -}}\n"
    "{%- endif -%}\n", NULL };
/* clang-format on */
