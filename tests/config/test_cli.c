/* Flags: forms, words, and every way to be refused. */
#include "util.h"

static void flags_come_in_all_forms(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    ks_cli cli = { .command = "serve" };
    char line[] =
        "--port 1 --host=h=1 --verify --no-benchmark --port=2 --cpu-expert-bits 8 --force-load=off --set http.a=b=c";
    assert_int_equal(read_args(c, &cli, line, &err), 0);
    assert_int_equal(ks_config_int(c, "port"), 2); /* the last one */
    assert_string_equal(ks_config_str(c, "host"), "h=1");
    assert_true(ks_config_bool(c, "verify"));
    assert_false(ks_config_bool(c, "benchmark"));
    assert_int_equal(ks_config_from(c, "benchmark"), KS_FROM_FLAG);
    assert_false(ks_config_bool(c, "force-load"));
    assert_string_equal(ks_config_origin(c, "port"), "--port");
    assert_int_equal(cli.n_words, 0);
    const char *plugin, *key, *value, *origin;
    assert_int_equal(ks_config_n_plugin(c), 1);
    ks_config_plugin(c, 0, &plugin, &key, &value, &origin);
    assert_string_equal(plugin, "http");
    assert_string_equal(key, "a");
    assert_string_equal(value, "b=c");
    assert_string_equal(origin, "--set");
    ks_config_free(c);
}

static void words_are_collected_and_two_dashes_end_flags(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    ks_cli cli = { .command = "run" };
    char line[] = "tell - --seed 7 me -- --port -x";
    assert_int_equal(read_args(c, &cli, line, &err), 0);
    assert_int_equal(ks_config_int(c, "seed"), 7);
    assert_int_equal(cli.n_words, 5);
    assert_string_equal(cli.words[1], "-");
    assert_string_equal(cli.words[3], "--port");
    assert_string_equal(cli.words[4], "-x");
    ks_config_free(c);
}

static void one_letter_flags_have_one_dash(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    ks_cli cli = { .command = "generate-ids" };
    char line[] = "-n 5 --ids 1,2";
    assert_int_equal(read_args(c, &cli, line, &err), 0);
    assert_int_equal(ks_config_int(c, "n"), 5);
    assert_string_equal(ks_config_origin(c, "n"), "-n");
    char twice[] = "-n=6";
    assert_int_equal(read_args(c, &cli, twice, &err), 0);
    assert_int_equal(ks_config_int(c, "n"), 6);
    ks_config_free(c);
}

static void help_and_version_are_seen(void **state)
{
    (void)state;
    static const char *const lines[] = { "--help", "-h", "--port 1 --help" };
    for (size_t i = 0; i < KS_COUNT(lines); i++) {
        ks_config *c = new_config();
        ks_err err = { 0 };
        ks_cli cli = { .command = "" };
        char line[64];
        (void)snprintf(line, sizeof line, "%s", lines[i]);
        assert_int_equal(read_args(c, &cli, line, &err), 0);
        assert_true(cli.help);
        assert_false(cli.version);
        ks_config_free(c);
    }
    ks_config *c = new_config();
    ks_cli cli = { .command = "" };
    char line[] = "--version";
    assert_int_equal(read_args(c, &cli, line, NULL), 0);
    assert_true(cli.version);
    ks_config_free(c);
}

static void config_takes_whatever_may_stand_in_a_file(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    ks_cli cli = { .command = "config" };
    char line[] = "save --benchmark --port 1 --num-gpus 2 --log-level debug";
    assert_int_equal(read_args(c, &cli, line, &err), 0);
    assert_string_equal(cli.words[0], "save");
    char not [] = "--prompt x";
    assert_int_equal(read_args(c, &cli, not, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "--prompt: `krasis config` does not take this flag, `krasis run` does");
    ks_config_free(c);
}

static void wrong_flags_are_explained(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        { "serve", "--prot 1", "unknown flag '--prot': did you mean '--port'?" },
        { "serve", "--prot=1", "unknown flag '--prot=1': did you mean '--port'?" },
        { "serve", "--threads 1", "unknown flag '--threads': did you mean '--krasis-threads'?" },
        { "serve", "--model x", "unknown flag '--model': did you mean '--model-path'?" },
        { "serve", "--xyzzy", "unknown flag '--xyzzy': `krasis serve --help` lists the flags" },
        { "", "--xyzzy", "unknown flag '--xyzzy': `krasis --help` lists the flags" },
        { "serve", "-port 1", "unknown flag '-port': did you mean '--port'?" },
        { "serve", "-x", "unknown flag '-x': `krasis serve --help` lists the flags" },
        { "serve", "---port 1", "unknown flag '---port': did you mean '--port'?" },
        { "serve", "--=1", "unknown flag '--=1': `krasis serve --help` lists the flags" },
        { "generate-ids", "--n 1", "unknown flag '--n': `krasis generate-ids --help` lists the flags" },
        { "serve", "--port", "--port: a value is missing: a whole number from 0 to 65535" },
        { "serve", "--kv-dtype", "--kv-dtype: a value is missing: fp8_e4m3, bf16 or f32" },
        { "serve", "--model-path --port 1",
          "--model-path: a value is missing; one that begins with '--' is written --model-path=VALUE" },
        { "serve", "--no-port", "--no-port: this is not a switch: it needs a value" },
        { "serve", "--no-verify=1", "--no-verify: takes no value" },
        { "serve", "--verify=maybe", "--verify: 'maybe' is not allowed: true or false" },
        { "serve", "--window 4", "--window: `krasis serve` does not take this flag, `krasis perplexity` does" },
        { "tokenize", "--port 4", "--port: `krasis tokenize` does not take this flag, `krasis serve` does" },
        { "serve", "word", "unexpected word 'word': `krasis serve` takes flags only" },
        { "serve", "--verify true", "unexpected word 'true': `krasis serve` takes flags only" },
        { "config", "show now", "unexpected word 'now': `krasis config` takes show|save|ini|md|man|man5" },
        { "serve", "--set http", "--set: 'http' is not allowed: PLUGIN.KEY=VALUE, for example http.port=8012" },
        { "serve", "--set =1", "--set: '=1' is not allowed: PLUGIN.KEY=VALUE, for example http.port=8012" },
        { "serve", "--set a.=1", "--set: 'a.=1' is not allowed: PLUGIN.KEY=VALUE, for example http.port=8012" },
        { "serve", "--set a=b.c", "--set: 'a=b.c' is not allowed: PLUGIN.KEY=VALUE, for example http.port=8012" },
        { "serve", "--set server.port=1", "--set: 'server' is no plugin: use the flag --port" },
        { "serve", "--set a.b=\x01", "--set: the value has a control character" },
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        ks_config *c = new_config();
        ks_err err = { 0 };
        ks_cli cli = { .command = rows[i][0] };
        char line[128];
        (void)snprintf(line, sizeof line, "%s", rows[i][1]);
        assert_int_equal(read_args(c, &cli, line, &err), KS_E_CONFIG);
        assert_string_equal(err.msg, rows[i][2]);
        ks_config_free(c);
    }
}

static void too_many_words_are_refused(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    ks_cli cli = { .command = "run" };
    char word[] = "w", *argv[65];
    for (size_t i = 0; i < 65; i++) argv[i] = word;
    assert_int_equal(ks_config_read_args(c, &cli, 65, argv, 0, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "`krasis run` takes at most 64 words");
    assert_int_equal(cli.n_words, 64);
    ks_config_free(c);
}

static void a_flag_that_is_no_name_at_all_is_refused(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    ks_cli cli = { .command = "serve" };
    char flag[200], *argv[] = { flag };
    memset(flag, '-', 199);
    flag[199] = '\0';
    assert_int_equal(ks_config_read_args(c, &cli, 1, argv, 0, &err), KS_E_CONFIG);
    memcpy(flag, "--p\xff", 5);
    assert_int_equal(ks_config_read_args(c, &cli, 1, argv, 0, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "unknown flag the value (not UTF-8): `krasis serve --help` lists the flags");
    ks_config_free(c);
}

static const char *const names[] = { "serve", "run", "config", "generate-ids", "gpu" };

static const char *name(const void *ctx, uint32_t i)
{
    (void)ctx;
    return names[i];
}

static void nearest_names_are_near(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        { "serv", "serve" },
        { "sreve", "serve" },
        { "srv", "serve" },
        { "rnu", "run" },
        { "conifg", "config" },
        { "generate", "generate-ids" },
        { "gguf", NULL },
        { "xyzzy", NULL },
        { "r", NULL },
        { "", NULL },
        { "generate-id", "generate-ids" },
        { "gpus", "gpu" },
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        const char *near = ks_name_nearest(rows[i][0], KS_COUNT(names), name, NULL);
        if (rows[i][1])
            assert_string_equal(near, rows[i][1]);
        else
            assert_null(near);
    }
    char far[200];
    memset(far, 'a', 199);
    far[199] = '\0';
    assert_null(ks_name_nearest(far, KS_COUNT(names), name, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags_come_in_all_forms),
        cmocka_unit_test(words_are_collected_and_two_dashes_end_flags),
        cmocka_unit_test(one_letter_flags_have_one_dash),
        cmocka_unit_test(help_and_version_are_seen),
        cmocka_unit_test(config_takes_whatever_may_stand_in_a_file),
        cmocka_unit_test(wrong_flags_are_explained),
        cmocka_unit_test(too_many_words_are_refused),
        cmocka_unit_test(a_flag_that_is_no_name_at_all_is_refused),
        cmocka_unit_test(nearest_names_are_near),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
