/* INI files: what is read, and every way to be refused. */
#include "base/file.h"
#include "util.h"

static void keys_are_read_with_their_line(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_int_equal(
        parse_ini(c,
                  "\xef\xbb\xbf; a comment ; with signs\n# another\n\n[server]\r\nport=9000\r\n  # indented comment\n"
                  "host  =  127.0.0.1  \n[log]\nnote = \" a ; b # c \"\n[model]\nmodel-path = ../m",
                  &err),
        0);
    assert_int_equal(ks_config_int(c, "port"), 9000);
    assert_string_equal(ks_config_origin(c, "port"), "conf/x.ini:5");
    assert_int_equal(ks_config_from(c, "port"), KS_FROM_FILE);
    assert_string_equal(ks_config_str(c, "host"), "127.0.0.1");
    assert_string_equal(ks_config_str(c, "note"), " a ; b # c ");
    assert_string_equal(ks_config_str(c, "model-path"), "conf/../m");
    assert_string_equal(ks_config_origin(c, "model-path"), "conf/x.ini:11");
    ks_config_free(c);
}

static void relative_paths_are_meant_from_the_file(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        { "x.ini", "m", "m" },     { "/x.ini", "m", "/m" }, { "a/b/x.ini", "../m", "a/b/../m" },
        { "a/x.ini", "/m", "/m" }, { "a/x.ini", "", "" },   { "/etc/k/x.ini", "m n", "/etc/k/m n" }
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        ks_config *c = new_config();
        ks_err err = { 0 };
        char text[128];
        const int n = snprintf(text, sizeof text, "[model]\nmodel-path = %s\n", rows[i][1]);
        assert_int_equal(ks_config_parse_ini(c, text, (size_t)n, rows[i][0], KS_FROM_FILE, &err), 0);
        assert_string_equal(ks_config_str(c, "model-path"), rows[i][2]);
        ks_config_free(c);
    }
}

static void long_values_are_whole(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    char path[1001], text[1100];
    memset(path, 'p', 1000);
    path[0] = '/';
    path[1000] = '\0';
    (void)snprintf(text, sizeof text, "[model]\nmodel-path = %s\ncontext = 64\n", path);
    assert_int_equal(parse_ini(c, text, &err), 0);
    assert_string_equal(ks_config_str(c, "model-path"), path);
    assert_int_equal(ks_config_int(c, "context"), 64); /* the line after a long one */
    assert_string_equal(ks_config_origin(c, "context"), "conf/x.ini:3");
    ks_config_free(c);
}

static void every_trap_is_refused_with_file_and_line(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        { "port = 1\n", "conf/x.ini:1: 'port' stands before the first [section]" },
        { "\n[server\nport = 1\n", "conf/x.ini:2: a section is written [name], alone on its line" },
        { "[server] ; why\n", "conf/x.ini:1: a section is written [name], alone on its line" },
        { "[]\n", "conf/x.ini:1: the name of a section has 1 to 48 characters of a-z, 0-9 and '-'" },
        { "[Server]\n", "conf/x.ini:1: the name of a section has 1 to 48 characters of a-z, 0-9 and '-'" },
        { "[sever]\nport = 1\n", "conf/x.ini:1: unknown section [sever]: did you mean [server]?" },
        { "[modle]\n", "conf/x.ini:1: unknown section [modle]: did you mean [model]?" },
        { "[command]\nn = 1\n", "conf/x.ini:1: there is no section [command]: these settings are flags only" },
        { "[server]\nprot = 1\n", "conf/x.ini:2: unknown key 'prot' in [server]: did you mean 'port'?" },
        { "[server]\nxyzzy = 1\n", "conf/x.ini:2: unknown key 'xyzzy' in [server]" },
        { "[server]\ncontext = 1\n", "conf/x.ini:2: 'context' belongs into the section [model], not [server]" },
        { "[server]\nconfig = x\n", "conf/x.ini:2: 'config' cannot stand in [server]: it is a flag only" },
        { "[server]\nport = 1\nhost = h\nport = 2\n", "conf/x.ini:4: 'port' was set on line 2 already" },
        { "[http]\na = 1\nb = 2\nc = 3\n[server]\n[http]\nb = 2\n", "conf/x.ini:7: 'b' was set on line 3 already" },
        { "[server]\nport 1\n", "conf/x.ini:2: neither a [section] nor 'key = value'" },
        { "[server]\nport: 1\n", "conf/x.ini:2: neither a [section] nor 'key = value'" },
        { "[server]\nport: 1 = 2\n", "conf/x.ini:2: a key has 1 to 48 characters of a-z, 0-9 and '-' before the '='" },
        { "[server]\n= 1\n", "conf/x.ini:2: a key has 1 to 48 characters of a-z, 0-9 and '-' before the '='" },
        { "[server]\nport = 1\n  host = h\n",
          "conf/x.ini:3: the line is indented, which elsewhere continues the line above: remove the blanks" },
        { "[server]\nport = 1 ; why\n",
          "conf/x.ini:2: ';' in a value: put comments on lines of their own, or the value in double quotes" },
        { "[server]\nport = 1 # why\n",
          "conf/x.ini:2: '#' in a value: put comments on lines of their own, or the value in double quotes" },
        { "[server]\nport = ; why\n",
          "conf/x.ini:2: ';' in a value: put comments on lines of their own, or the value in double quotes" },
        { "[log]\nnote = \"a\n", "conf/x.ini:2: the value begins with a double quote and must end with one" },
        { "[log]\nnote = \"\n", "conf/x.ini:2: the value begins with a double quote and must end with one" },
        { "[log]\nnote = a\xff\n", "conf/x.ini:2: byte 9 of the line is not UTF-8" },
        { "[log]\nnote = a\x01\n", "conf/x.ini:2: control character 0x01 at byte 9 of the line" },
        { "[log]\nnote = a\rb\n", "conf/x.ini:2: control character 0x0d at byte 9 of the line" },
        { "[log]\nnote = a\tb\n", "conf/x.ini:2: note: the value has a control character (0x09)" },
        { "[server]\nport = 99999\n", "conf/x.ini:2: port: '99999' is not allowed: a whole number from 0 to 65535" },
        { "[server]\nport =\n", "conf/x.ini:2: port: '' is not allowed: a whole number from 0 to 65535" },
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        ks_config *c = new_config();
        ks_err err = { 0 };
        assert_int_equal(parse_ini(c, rows[i][0], &err), KS_E_CONFIG);
        assert_string_equal(err.msg, rows[i][1]);
        ks_config_free(c);
    }
}

static void nul_bytes_are_refused(void **state)
{
    (void)state;
    static const char text[] = "[log]\nnote = a\0b\n";
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_int_equal(ks_config_parse_ini(c, text, sizeof text - 1, "x.ini", KS_FROM_FILE, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "x.ini:2: control character 0x00 at byte 9 of the line");
    ks_config_free(c);
}

static void lines_over_8192_bytes_are_refused(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    char *text = malloc(9001);
    assert_non_null(text);
    memset(text, '#', 9000);
    text[9000] = '\0';
    memcpy(text, "[log]\n", 6);
    assert_int_equal(parse_ini(c, text, &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "conf/x.ini:2: the line has 8994 bytes, at most 8192 are allowed");
    free(text);
    ks_config_free(c);
}

static void nothing_after_the_first_error_is_read(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_int_equal(parse_ini(c, "[server]\nport = x\nhost = h\n", &err), KS_E_CONFIG);
    assert_string_equal(ks_config_str(c, "host"), "0.0.0.0");
    ks_config_free(c);
}

static void other_sections_are_settings_of_plugins(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    const char *plugin, *key, *value, *origin;
    assert_int_equal(parse_ini(c, "[http]\nmax-body = 1M\n[gguf]\nx = \"\"\n[cpu-avx2]\ny = a=b;c\n", &err), 0);
    assert_int_equal(ks_config_n_plugin(c), 3);
    ks_config_plugin(c, 0, &plugin, &key, &value, &origin);
    assert_string_equal(plugin, "http");
    assert_string_equal(key, "max-body");
    assert_string_equal(value, "1M");
    assert_string_equal(origin, "conf/x.ini:2");
    ks_config_plugin(c, 2, &plugin, &key, &value, &origin);
    assert_string_equal(plugin, "cpu-avx2");
    assert_string_equal(value, "a=b;c");
    /* Rank holds for them, too. */
    assert_int_equal(ks_config_parse_ini(c, "[http]\nmax-body = 2M\n", 21, "s.ini", KS_FROM_SAVED, &err), 0);
    assert_int_equal(parse_ini(c, "[http]\nmax-body = 3M\n", &err), 0);
    ks_config_plugin(c, 0, &plugin, &key, &value, &origin);
    assert_string_equal(value, "2M");
    assert_string_equal(origin, "s.ini:2");
    assert_int_equal(ks_config_n_plugin(c), 3);
    ks_config_free(c);
}

static void more_settings_of_plugins_than_any_need_are_refused(void **state)
{
    (void)state;
    char *text = malloc(64 * 1024), *p = text;
    assert_non_null(text);
    ks_config *c = new_config();
    ks_err err = { 0 };
    p += sprintf(p, "[x-plugin]\n");
    for (int i = 0; i < 1025; i++) p += sprintf(p, "k%d = 1\n", i);
    assert_int_equal(parse_ini(c, text, &err), KS_E_LIMIT);
    assert_string_equal(err.msg, "conf/x.ini:1026: more than 1024 settings of plugins");
    free(text);
    ks_config_free(c);
}

static void a_missing_file_is_named(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_true(ks_config_read_ini(c, "no/such.ini", KS_FROM_FILE, &err) < 0);
    assert_non_null(strstr(err.msg, "no/such.ini"));
    assert_true(ks_config_read_ini(c, ".", KS_FROM_FILE, &err) < 0);
    ks_config_free(c);
}

static void a_file_over_one_megabyte_is_refused(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    char *text = calloc(1, (1 << 20) + 1);
    assert_non_null(text);
    memset(text, '\n', (1 << 20) + 1);
    assert_int_equal(ks_file_write("big.ini", text, (1 << 20) + 1, &err), 0);
    assert_int_equal(ks_config_read_ini(c, "big.ini", KS_FROM_FILE, &err), KS_E_LIMIT);
    assert_int_equal(ks_file_write("big.ini", text, 1 << 20, &err), 0);
    assert_int_equal(ks_config_read_ini(c, "big.ini", KS_FROM_FILE, &err), 0);
    free(text);
    ks_config_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_read_with_their_line),
        cmocka_unit_test(relative_paths_are_meant_from_the_file),
        cmocka_unit_test(long_values_are_whole),
        cmocka_unit_test(every_trap_is_refused_with_file_and_line),
        cmocka_unit_test(nul_bytes_are_refused),
        cmocka_unit_test(lines_over_8192_bytes_are_refused),
        cmocka_unit_test(nothing_after_the_first_error_is_read),
        cmocka_unit_test(other_sections_are_settings_of_plugins),
        cmocka_unit_test(more_settings_of_plugins_than_any_need_are_refused),
        cmocka_unit_test(a_missing_file_is_named),
        cmocka_unit_test(a_file_over_one_megabyte_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
