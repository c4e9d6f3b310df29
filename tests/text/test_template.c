/* Chat templates from outside: errors and where they point, limits, finding a model's template, built-in ones, time,
 * and one template shared by threads. What templates compute is in test_template_cases.c. */
#include "base/file.h"
#include "text/template.h"
#include <krasis/json.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define NOW 1767323045 /* 2026-01-02 03:04:05 UTC */

/* The text, or "error: ..." */
static char *render_with(const char *source, const char *context, const ks_template_limits *limits)
{
    ks_template *t = NULL;
    ks_err err = { 0 };
    char *out = NULL;
    size_t n = 0;
    int rc = ks_template_new(source, strlen(source), &t, &err);
    if (!rc) rc = ks_template_render(t, context, strlen(context), NOW, limits, &out, &n, &err);
    ks_template_free(t);
    if (!rc) return out;
    assert_int_equal(rc, err.code);
    assert_null(strchr(err.msg, '\n'));
    out = malloc(sizeof err.msg + 16);
    assert_non_null(out);
    (void)snprintf(out, sizeof err.msg + 16, "error: %s", err.msg);
    return out;
}

static void expect(const char *source, const char *context, const char *want)
{
    char *got = render_with(source, context, NULL);
    if (strcmp(got, want) != 0) fail_msg("%s\n  gives  %s\n  wanted %s", source, got, want);
    free(got);
}

static void expect_error(const char *source, const char *context, const char *part)
{
    char *got = render_with(source, context, NULL);
    if (strncmp(got, "error: ", 7) != 0 || !strstr(got, part))
        fail_msg("%s\n  gives  %.400s\n  wanted an error with '%s'", source, got, part);
    free(got);
}

static void errors_tell_line_column_and_an_excerpt(void **state)
{
    (void)state;
    expect("a\n  {{ x.y.z }}", "{}", "error: 'x' is undefined (line 2, column 8, near '{{ x.y.z }}')");
    expect("{{ 'é' }}{{ 1 + }}", "{}",
           "error: expected an expression, got '}}' (line 1, column 17, near '{{ 'é' }}{{ 1 + }}')");
    expect(
        "{% for x in 5 %}{% endfor %}", "{}",
        "error: a value of type 'int' cannot be iterated over (line 1, column 4, near '{% for x in 5 %}{% endfor %}')");
    expect("{% if a %}\n", "{}",
           "error: the template ends where 'endif' is needed (line 1, column 11, near '{% if a %}')");
}

static void errors_of_the_source_name_the_cause(void **state)
{
    (void)state;
    expect_error("{{ 'abc }}", "{}", "this string has no end");
    expect_error("{# abc", "{}", "this comment has no end '#}'");
    expect_error("{{ a", "{}", "this tag has no end '}}'");
    expect_error("{% raw %} x", "{}", "this 'raw' has no 'endraw'");
    expect_error("{% nosuch %}", "{}", "unknown tag 'nosuch'");
    expect_error("{{ a|nosuch }}", "{}", "there is no filter 'nosuch'");
    expect_error("{{ a is nosuch }}", "{}", "there is no test 'nosuch'");
    expect_error("{{ a ? b }}", "{}", "unexpected character '?'");
    expect_error("{{ (1] }}", "{}", "unexpected ']'");
    expect_error("{% break %}", "{}", "'break' stands outside of a loop");
    expect_error("{% set a.b.c = 1 %}", "{}", "expected '%}', got '.'");
    expect_error("{% set 1 = 1 %}", "{}", "this cannot be assigned to");
    expect_error("{% macro m(a=1, b) %}{% endmacro %}", "{}", "without a default follows one with a default");
    expect_error("{{ f(a=1, a=2) }}", "{}", "keyword argument 'a' is given twice");
    expect_error("{{ f(a=1, 2) }}", "{}", "a positional argument follows a keyword argument");
    expect_error("{{ '\\ud83d' }}", "{}", "names no character");
    expect_error("{{ '\\N{DASH}' }}", "{}", "characters by name");
    expect_error("\xff", "{}", "not valid UTF-8 at byte 0");
}

static void errors_of_a_rendering_name_the_cause(void **state)
{
    (void)state;
    expect_error("{{ raise_exception('No tools, please') }}", "{}", "error: No tools, please (line 1");
    expect_error("{{ raise_exception('two\nlines') }}", "{}", "two lines (line 1");
    expect_error("{{ l.append(1) }}", "{\"l\": []}", "attribute 'append' of 'list' is not open to templates");
    expect_error("{{ 'a' + 1 }}", "{}", "'+' cannot take 'str' and 'int'; '~' would join their text");
    expect_error("{{ 1 // 0 }}", "{}", "division by zero");
    expect_error("{{ l.x.y }}", "{\"l\": []}", "'list object' has no attribute 'x'");
    expect_error("{{ l|tojson(bad=1) }}", "{\"l\": []}", "filter 'tojson' takes no keyword argument 'bad'");
    expect_error("{{ 's'|replace('a') }}", "{}", "filter 'replace' needs the argument 'new'");
    expect_error("{{ 's'.upper(1) }}", "{}", "method 'upper' takes at most 1 arguments, got 2");
    expect_error("{% macro m(a) %}{% endmacro %}{{ m(b=1) }}", "{}", "macro 'm' takes no keyword argument 'b'");
    expect_error("{% set x.y = 1 %}", "{\"x\": {}}", "only attributes of a namespace can be assigned");
    expect_error("{% include 'a' %}", "{}", "'include' needs another template");
    expect_error("{{ 'a'|wordwrap }}", "{}", "the filter 'wordwrap' is not supported");
    expect_error("{{ 9223372036854775807 + 1 }}", "{}", "beyond the integers of 64 bits");
    expect_error("x", "[1]", "the template context must be a JSON object");
    expect_error("x", "{\"a\": }", "template context: line 1, column 7");
    expect_error("{{ '{'|from_json }}", "{}", "from_json: line 1");
}

static void numbers_keep_what_json_says(void **state)
{
    (void)state;
    expect("{{ a }} {{ a|tojson }} {{ b }} {{ c }} {{ d }} {{ e }} {{ f }}",
           "{\"a\": 1.0, \"b\": 1e5, \"c\": 123456789012345678901234567890, \"d\": -0, \"e\": 1e-7, \"f\": 1E400}",
           "1.0 1.0 100000.0 123456789012345678901234567890 0 1e-07 inf");
    expect(
        "{{ [0.1, 1e16, 1e15, 5e-324, 1.7976931348623157e308, 123456789.123456789, 1e22, 0.0001, 0.00001] }}", "{}",
        "[0.1, 1e+16, 1000000000000000.0, 5e-324, 1.7976931348623157e+308, 123456789.12345679, 1e+22, 0.0001, 1e-05]");
}

static void objects_keep_their_order_and_the_last_of_equal_keys(void **state)
{
    (void)state;
    expect("{{ d|tojson }} {{ d.items() }}", "{\"d\": {\"z\": 1, \"a\": 2, \"z\": 3}}",
           "{\"z\": 3, \"a\": 2} dict_items([('z', 3), ('a', 2)])");
    expect("{{ d|length }} {{ d.k77 }} {{ 'k3' in d }}",
           "{\"d\": {\"k1\":1,\"k2\":2,\"k3\":3,\"k4\":4,\"k5\":5,\"k6\":6,\"k7\":7,\"k8\":8,\"k9\":9,\"k77\":77}}",
           "10 77 True");
}

static void text_may_hold_any_character(void **state)
{
    (void)state;
    expect("{{ s|length }}{{ s|tojson }}", "{\"s\": \"a\\u0000b\\ud83d\\ude42\"}", "4\"a\\u0000b🙂\"");
    expect("{{ u[1] }}{{ u[::-1] }}{{ u|upper }}", "{\"u\": \"aß日\"}", "ß日ßaASS日");
}

static void strftime_now_sees_the_given_time(void **state)
{
    (void)state;
    expect("{{ strftime_now('%d %b %Y %H:%M:%S, %A') }}", "{}", "02 Jan 2026 03:04:05, Friday");
}

static void hostile_templates_end_with_an_error(void **state)
{
    (void)state;
    static const struct {
        const char *source, *part;
    } rows[] = {
        { "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
          "more steps than its limit" },
        { "{{ 'a' * 1000000000 }}", "beyond the limit of 67108864 bytes" },
        { "{{ 'a' * 9223372036854775807 }}", "beyond the limit of 67108864 bytes" },
        { "{% set n = namespace(s='aaaa') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
          "beyond the limit" },
        { "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested deeper than the limit of 600 levels" },
        { "{% macro m(a=m()) %}{% endmacro %}{{ m() }}", "nested deeper than the limit of 600 levels" },
        { "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "nested deeper than the limit of 600 levels" },
        { "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}",
          "nested deeper" },
        { "{% set n = namespace(l=()) %}{% for i in range(9999) %}{% set n.l = (n.l,) %}{% endfor %}{{ {n.l: 1} }}",
          "nested deeper" },
        { "{% set n = namespace(l=[1]) %}{% for i in range(9999) %}{% set n.l = n.l|map('int') %}{% endfor %}{{ "
          "n.l|list }}",
          "nested deeper" },
        { "{{ [1] * 1000000000 }}", "needs more memory than the limit" },
        { "{{ [1]|slice(1000000000)|list }}", "needs more memory than the limit" },
        { "{{ range(100001) }}", "100001 numbers are more than the limit of 100000" },
        { "{{ range(-9223372036854775807, 9223372036854775807) }}", "are more than the limit of 100000" },
        { "{{ '%999999999d' % 1 }}", "the width is above the limit of 1000000" },
        { "{{ '{:999999999}'.format(1) }}", "the width is above the limit of 1000000" },
        { "{{ '%.99999f' % 1.5 }}", "the precision is above the limit of 300" },
        { "{{ 'a'.center(1000000000) }}", "beyond the limit" },
        { "{{ ('a' * 1000000).rfind('a' * 500000 ~ 'b') }}", "more steps than its limit" },
        { "{{ ('a' * 9999999).strip('b' * 999999 ~ 'a') }}", "more steps than its limit" },
        { "{{ [[[1]]]|tojson(indent=100000000) }}", "beyond the limit" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) expect_error(rows[i].source, "{}", rows[i].part);
}

/* prefix, `what` n times, suffix */
static char *repeat(const char *prefix, const char *what, size_t n, const char *middle, const char *close)
{
    size_t len = strlen(prefix) + n * (strlen(what) + strlen(close)) + strlen(middle) + 8;
    char *s = malloc(len), *p = s;
    assert_non_null(s);
    p = stpcpy(p, prefix);
    for (size_t i = 0; i < n; i++) p = stpcpy(p, what);
    p = stpcpy(p, middle);
    for (size_t i = 0; i < n; i++) p = stpcpy(p, close);
    return s;
}

static void deep_sources_are_refused_and_long_chains_are_not(void **state)
{
    (void)state;
    static const struct {
        const char *prefix, *what, *middle, *close, *part;
    } deep[] = {
        { "{{ ", "(", "1", ")", "nested brackets" },
        { "{{ ", "not ", "1 }}", "", "nested deeper than the limit of 200 levels" },
        { "{{ ", "-", "1 }}", "", "nested deeper than the limit of 200 levels" },
        { "", "{% if 1 %}", "", "{% endif %}", "nested deeper than the limit of 200 levels" },
        { "{{ a", ".a", " }}", "", "more than 200 look-ups in a row" },
        { "{{ 'a'", "|upper", " }}", "", "more than 200 filters in a row" },
    };
    for (size_t i = 0; i < sizeof deep / sizeof *deep; i++) {
        char *s = repeat(deep[i].prefix, deep[i].what, 5000, deep[i].middle, deep[i].close);
        expect_error(s, "{}", deep[i].part);
        free(s);
    }
    char *s = repeat("{{ 0", " + 1", 20000, " }}", "");
    expect(s, "{}", "20000");
    free(s);
    s = repeat("{% if 0 %}", "{% elif 0 %}", 20000, "{% else %}x{% endif %}", "");
    expect(s, "{}", "x");
    free(s);
}

static void limits_can_be_set_lower(void **state)
{
    (void)state;
    static const struct {
        ks_template_limits limits;
        const char *source, *part;
    } rows[] = {
        { { .fuel = 100 }, "{% for x in range(1000) %}{{ x }}{% endfor %}", "more steps" },
        { { .output_bytes = 10 }, "{{ 'abc' * 4 }}", "limit of 10 bytes" },
        { { .output_bytes = 10 }, "0123456789a", "limit of 10 bytes" },
        { { .memory_bytes = 5000 }, "{{ range(1000)|list|length }}", "limit of 5000 bytes" },
        { { .depth = 10 }, "{{ [[[[[[[[[[[[1]]]]]]]]]]]] }}", "limit of 10 levels" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *got = render_with(rows[i].source, "{}", &rows[i].limits);
        if (strncmp(got, "error: ", 7) != 0 || !strstr(got, rows[i].part)) fail_msg("%s: %s", rows[i].source, got);
        free(got);
    }
}

/* n.s = n.s + x must not copy all of it each time: two million bytes in pieces of two would be 10^12 copied bytes. */
static void building_a_text_piece_by_piece_takes_linear_time(void **state)
{
    (void)state;
    expect("{% set n = namespace(s='') %}{% for i in range(1000) %}{% for j in range(1000) %}{% set n.s = n.s + 'ab' %}"
           "{% endfor %}{% endfor %}{{ n.s|length }}",
           "{}", "2000000");
}

/* ---- finding templates */

static void write_file(const char *path, const char *text)
{
    ks_err err = { 0 };
    if (ks_file_write(path, text, strlen(text), &err)) fail_msg("%s", err.msg);
}

static char *scratch(void)
{
    char *dir = strdup("tmpl-XXXXXX");
    assert_non_null(dir);
    assert_non_null(mkdtemp(dir));
    return dir;
}

static void in_dir(const char *dir, const char *name, const char *text)
{
    char *path = ks_path_join(dir, name);
    assert_non_null(path);
    write_file(path, text);
    free(path);
}

static void expect_found(const char *dir, const char *name, const char *want)
{
    char *source = NULL;
    size_t n = 0;
    ks_err err = { 0 };
    if (ks_template_find(dir, name, &source, &n, &err)) fail_msg("%s", err.msg);
    assert_string_equal(source, want);
    assert_int_equal(n, strlen(want));
    free(source);
}

static void expect_not_found(const char *dir, const char *name, int code, const char *part)
{
    char *source = NULL;
    size_t n = 0;
    ks_err err = { 0 };
    assert_int_equal(ks_template_find(dir, name, &source, &n, &err), code);
    assert_null(source);
    if (!strstr(err.msg, part)) fail_msg("%s", err.msg);
}

static void a_template_file_comes_before_the_settings(void **state)
{
    (void)state;
    char *dir = scratch(), sub[64];
    expect_not_found(dir, NULL, KS_E_NOTFOUND, "has no chat template 'default'");
    in_dir(dir, "tokenizer_config.json", "{\"a\": [1], \"chat_template\": \"from \\\"config\\\"\\n\", \"z\": {}}");
    expect_found(dir, NULL, "from \"config\"\n");
    expect_not_found(dir, "tool_use", KS_E_NOTFOUND, "has no chat template 'tool_use'");
    in_dir(dir, "chat_template.jinja", "from file");
    expect_found(dir, NULL, "from file");
    expect_found(dir, "default", "from file");
    (void)snprintf(sub, sizeof sub, "%s/additional_chat_templates", dir);
    assert_int_equal(mkdir(sub, 0700), 0);
    in_dir(sub, "rag.jinja", "named");
    expect_found(dir, "rag", "named");
    expect_not_found(dir, "../rag", KS_E_INVAL, "is no name of a template");
    free(dir);
}

static void the_settings_may_hold_a_list_of_named_templates(void **state)
{
    (void)state;
    char *dir = scratch();
    in_dir(dir, "tokenizer_config.json",
           "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"template\": \"D\", \"x\": 1, "
           "\"name\": \"default\"}]}");
    expect_found(dir, NULL, "D");
    expect_found(dir, "tool_use", "T");
    expect_not_found(dir, "other", KS_E_NOTFOUND, "has no chat template 'other'");
    in_dir(dir, "tokenizer_config.json", "{\"chat_template\": {\"default\": \"D2\", \"tool_use\": \"T2\"}}");
    expect_found(dir, "tool_use", "T2");
    in_dir(dir, "tokenizer_config.json", "{\"chat_template\": null}");
    expect_not_found(dir, NULL, KS_E_NOTFOUND, "has no chat template");
    free(dir);
}

static void malformed_settings_are_an_error_that_names_the_file(void **state)
{
    (void)state;
    char *dir = scratch();
    in_dir(dir, "tokenizer_config.json", "{\"chat_template\": 5}");
    expect_not_found(dir, NULL, KS_E_FORMAT, "chat_template must be a string or a list");
    in_dir(dir, "tokenizer_config.json", "{\"chat_template\": [{\"name\": 1}]}");
    expect_not_found(dir, NULL, KS_E_FORMAT, "needs strings as 'name' and 'template'");
    in_dir(dir, "tokenizer_config.json", "{\"chat_template\": [\"x\"]}");
    expect_not_found(dir, NULL, KS_E_FORMAT, "tokenizer_config.json: chat_template must be");
    in_dir(dir, "tokenizer_config.json", "{\"chat_template\": ");
    expect_not_found(dir, NULL, KS_E_FORMAT, "it is not JSON");
    in_dir(dir, "tokenizer_config.json", "[]");
    expect_not_found(dir, NULL, KS_E_FORMAT, "it must be a JSON object");
    free(dir);
}

static char *render_built_in(const char *model_type, const char *context)
{
    char *dir = scratch(), config[96], *source = NULL;
    size_t n = 0;
    ks_err err = { 0 };
    (void)snprintf(config, sizeof config, "{\"x\": 1, \"model_type\": \"%s\"}", model_type);
    in_dir(dir, "config.json", config);
    if (ks_template_find(dir, NULL, &source, &n, &err)) fail_msg("%s", err.msg);
    free(dir);
    char *text = render_with(source, context, NULL);
    free(source);
    return text;
}

#define TOOLS                                                                                                     \
    "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {}}}], \"bos_token\": " \
    "\"<B>\", "                                                                                                   \
    "\"add_generation_prompt\": true"
#define CALLS                                                                                                \
    "\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"\", " \
    "\"reasoning_content\": \"R\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": "        \
    "\"{\\\"s\\\": \\\"t\\\", \\\"n\\\": [1]}\"}}]}, {\"role\": \"tool\", \"content\": \"1\"}]"

static void families_without_a_template_get_ours(void **state)
{
    (void)state;
    static const char chat[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": "
        "\"Q\"}], \"bos_token\": \"<B>\", \"tools\": null, \"add_generation_prompt\": true%s}";
    char context[400], *got;
    (void)snprintf(context, sizeof context, chat, "");
    got = render_built_in("deepseek_v32", context);
    assert_string_equal(got, "<B>S<｜User｜>Q<｜Assistant｜><think></think>");
    free(got);
    got = render_built_in("deepseek_v4", context);
    assert_string_equal(got, "<B>S<｜User｜>Q<｜Assistant｜></think>");
    free(got);
    (void)snprintf(context, sizeof context, chat, ", \"thinking\": true");
    got = render_built_in("deepseek_v4", context);
    assert_string_equal(got, "<B>S<｜User｜>Q<｜Assistant｜><think>");
    free(got);
}

static void built_in_templates_write_tool_calls(void **state)
{
    (void)state;
    char *got = render_built_in("deepseek_v32", "{" CALLS ", " TOOLS ", \"thinking\": true}");
    const char *tail = strstr(got, "<｜User｜>");
    assert_non_null(tail);
    assert_non_null(strstr(got, "\n{\"name\": \"f\", \"parameters\": {}}\n</functions>\n"));
    assert_string_equal(tail,
                        "<｜User｜>Q<｜Assistant｜><think>R</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke "
                        "name=\"f\">\n<｜DSML｜parameter name=\"s\" string=\"true\">t</｜DSML｜parameter>\n"
                        "<｜DSML｜parameter name=\"n\" string=\"false\">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
                        "</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n<function_results>\n<result>1</result>\n"
                        "</function_results>\n\n<think>");
    free(got);
    got = render_built_in("deepseek_v4", "{" CALLS ", " TOOLS "}");
    tail = strstr(got, "<｜User｜>");
    assert_non_null(tail);
    assert_string_equal(tail,
                        "<｜User｜>Q<｜Assistant｜></think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n"
                        "<｜DSML｜parameter name=\"s\" string=\"true\">t</｜DSML｜parameter>\n<｜DSML｜parameter "
                        "name=\"n\" string=\"false\">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
                        "<｜end▁of▁sentence｜><｜User｜><tool_result>1</tool_result><｜Assistant｜></think>");
    free(got);
}

static void the_demo_model_has_a_template(void **state)
{
    (void)state;
    char *source = NULL, *got;
    size_t n = 0;
    ks_err err = { 0 };
    if (ks_template_find(KS_SOURCE_DIR "/models/demo", NULL, &source, &n, &err)) fail_msg("%s", err.msg);
    got = render_with(
        source, "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"add_generation_prompt\": true}", NULL);
    assert_string_equal(got, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    free(got);
    free(source);
}

/* ---- threads */

/* NULL, or anything else if a text is wrong. */
static void *render_many(void *t)
{
    static const char context[] = "{\"l\": [\"é\", \"b\"], \"d\": {\"a\": 1.5}}";
    for (int i = 0; i < 200; i++) {
        char *out = NULL;
        size_t n = 0;
        if (ks_template_render(t, context, strlen(context), NOW, NULL, &out, &n, NULL)) return t;
        bool same = strcmp(out, "[é][b]{\"a\": 1.5}é日4") == 0;
        free(out);
        if (!same) return t;
    }
    return NULL;
}

static void threads_share_one_template(void **state)
{
    (void)state;
    static const char source[] =
        "{% macro m(x) %}[{{ x }}]{% endmacro %}{% for x in l %}{{ m(x) }}{% endfor %}{{ d|tojson }}"
        "{{ 'é日本'[:2] }}{{ 'ab日本'|length }}";
    ks_template *t = NULL;
    pthread_t th[4];
    assert_int_equal(ks_template_new(source, strlen(source), &t, NULL), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&th[i], NULL, render_many, t), 0);
    for (int i = 0; i < 4; i++) {
        void *what = NULL;
        assert_int_equal(pthread_join(th[i], &what), 0);
        assert_null(what);
    }
    ks_template_free(t);
    ks_template_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_tell_line_column_and_an_excerpt),
        cmocka_unit_test(errors_of_the_source_name_the_cause),
        cmocka_unit_test(errors_of_a_rendering_name_the_cause),
        cmocka_unit_test(numbers_keep_what_json_says),
        cmocka_unit_test(objects_keep_their_order_and_the_last_of_equal_keys),
        cmocka_unit_test(text_may_hold_any_character),
        cmocka_unit_test(strftime_now_sees_the_given_time),
        cmocka_unit_test(hostile_templates_end_with_an_error),
        cmocka_unit_test(deep_sources_are_refused_and_long_chains_are_not),
        cmocka_unit_test(limits_can_be_set_lower),
        cmocka_unit_test(building_a_text_piece_by_piece_takes_linear_time),
        cmocka_unit_test(a_template_file_comes_before_the_settings),
        cmocka_unit_test(the_settings_may_hold_a_list_of_named_templates),
        cmocka_unit_test(malformed_settings_are_an_error_that_names_the_file),
        cmocka_unit_test(families_without_a_template_get_ours),
        cmocka_unit_test(built_in_templates_write_tool_calls),
        cmocka_unit_test(the_demo_model_has_a_template),
        cmocka_unit_test(threads_share_one_template),
    };
    (void)setenv("TZ", "UTC", 1);
    return cmocka_run_group_tests_name("template", tests, NULL, NULL);
}
