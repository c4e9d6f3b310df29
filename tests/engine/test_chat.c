/* Chat messages: what is rewritten, what goes through, what is refused and how. */
#include "base/base.h"
#include "engine/chat.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void expect(const char *in, uint32_t flags, const char *want)
{
    ks_jw w;
    ks_err err = { 0 };
    ks_jw_init(&w);
    if (ks_chat_messages(in, strlen(in), flags, &w, &err)) fail_msg("%s", err.msg);
    assert_int_equal(ks_jw_done(&w), 0);
    assert_string_equal(w.text, want);
    ks_jw_fini(&w);
}

static void refuse(const char *in, const char *message)
{
    ks_jw w;
    ks_err err = { 0 };
    ks_jw_init(&w);
    assert_true(ks_chat_messages(in, strlen(in), 0, &w, &err) < 0);
    if (!strstr(err.msg, message)) fail_msg("'%s' does not hold '%s'", err.msg, message);
    ks_jw_fini(&w);
}

static void plain_messages_go_through(void **state)
{
    (void)state;
    expect(
        "[{\"role\":\"user\",\"content\":\"a\\u00e9\\n\"}, {\"content\":null,\"role\":\"assistant\",\"x\":[1.0,1e5]}]",
        0,
        "[{\"role\":\"user\",\"content\":\"a\\u00e9\\n\"},{\"content\":null,\"role\":\"assistant\",\"x\":[1.0,1e5]}]");
}

static void text_parts_become_one_string(void **state)
{
    (void)state;
    expect("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\\\"\"},{\"text\":\"b\",\"type\":\"text\","
           "\"cache_control\":{\"a\":1}}]}]",
           0, "[{\"role\":\"user\",\"content\":\"a\\\"b\"}]");
    expect("[{\"role\":\"user\",\"content\":[]}]", 0, "[{\"role\":\"user\",\"content\":\"\"}]");
}

static void developer_becomes_system_unless_the_template_knows_it(void **state)
{
    (void)state;
    expect("[{\"role\":\"developer\",\"content\":\"x\"}]", 0, "[{\"role\":\"system\",\"content\":\"x\"}]");
    expect("[{\"role\":\"developer\",\"content\":\"x\"}]", KS_CHAT_KEEP_DEVELOPER,
           "[{\"role\":\"developer\",\"content\":\"x\"}]");
}

static void arguments_become_an_object_with_numbers_as_spelled(void **state)
{
    (void)state;
    static const char in[] = "[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\","
                             "\"arguments\":\"{\\\"a\\\":1.0}\"}}]}]";
    expect(in, 0,
           "[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1."
           "0}}}]}]");
    expect(in, KS_CHAT_KEEP_ARGUMENTS, in);
    expect("[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"arguments\":\"no json\"}}]}]", 0,
           "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"arguments\":\"no json\"}}]}]");
}

static void what_is_wrong_is_named_with_its_place(void **state)
{
    (void)state;
    refuse("{}", "messages must be a list");
    refuse("[]", "messages is empty");
    refuse("[1]", "messages[0] must be an object");
    refuse("[{\"content\":\"x\"}]", "messages[0] has no role");
    refuse("[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"king\"}]", "messages[1].role is 'king'");
    refuse("[{\"role\":7}]", "messages[0].role must be a string");
    refuse("[{\"role\":\"user\",\"content\":5}]", "messages[0].content must be");
    refuse("[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content must hold objects");
    refuse("[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]",
           "messages[0].content[0] has the type 'image_url'");
    refuse("[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0] needs");
    refuse("[{\"role\":\"user\"", "messages");
    refuse("[{\"role\":\"user\",\"content\":\"a\",\"r\\u006fle\":\"system\"}]", "messages[0].role appears twice");
    refuse("[{\"role\":\"user\",\"content\":\"a\",\"content\":\"b\"}]", "messages[0].content appears twice");
    refuse("[{\"role\":\"assistant\",\"tool_calls\":{}}]", "messages[0].tool_calls must be a list");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_messages_go_through),
        cmocka_unit_test(text_parts_become_one_string),
        cmocka_unit_test(developer_becomes_system_unless_the_template_knows_it),
        cmocka_unit_test(arguments_become_an_object_with_numbers_as_spelled),
        cmocka_unit_test(what_is_wrong_is_named_with_its_place),
    };
    return cmocka_run_group_tests_name("chat", tests, NULL, NULL);
}
