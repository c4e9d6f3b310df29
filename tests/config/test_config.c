/* Values: types, bounds, precedence, origin, saving, GPU flags. */
#include "base/file.h"
#include "util.h"
#include <math.h>
#include <unistd.h>

static void defaults_are_those_of_the_document(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        { "model-path", "" },
        { "num-gpus", "all" },
        { "selected-gpus", "all" },
        { "pp-partition", "auto" },
        { "expert-divisor", "auto" },
        { "kv-dtype", "fp8_e4m3" },
        { "gpu-expert-bits", "4" },
        { "cpu-expert-bits", "4" },
        { "narrow-expert-bits", "8" },
        { "attention-quant", "int8" },
        { "lm-head-quant", "int8" },
        { "dense-mlp-quant", "int8" },
        { "shared-expert-quant", "int8" },
        { "krasis-threads", "48" },
        { "gguf-path", "" },
        { "gpu-prefill-threshold", "300" },
        { "host", "0.0.0.0" },
        { "port", "8012" },
        { "benchmark", "false" },
        { "force-load", "false" },
        { "non-interactive", "false" },
    };
    ks_config *c = new_config();
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        assert_string_equal(ks_config_str(c, rows[i][0]), rows[i][1]);
        assert_int_equal(ks_config_from(c, rows[i][0]), KS_FROM_DEFAULT);
        assert_string_equal(ks_config_origin(c, rows[i][0]), "default");
    }
    ks_config_free(c);
}

static void values_are_read_by_type(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value;
        int64_t num;
    } rows[] = {
        { "port", "0", 0 },
        { "port", "65535", 65535 },
        { "vram-limit", "16G", INT64_C(16) << 30 },
        { "vram-limit", "512MiB", INT64_C(512) << 20 },
        { "vram-limit", "2tb", INT64_C(2) << 40 },
        { "vram-limit", "67108864", 67108864 },
        { "vram-limit", "auto", 0 },
        { "shutdown-timeout", "500ms", 500 },
        { "shutdown-timeout", "2m", 120000 },
        { "shutdown-timeout", "1h", 3600000 },
        { "shutdown-timeout", "0s", 0 },
        { "benchmark", "yes", 1 },
        { "benchmark", "OFF", 0 },
        { "cpu-expert-bits", "16", 16 },
        { "expert-divisor", "auto", -1 },
        { "expert-divisor", "0", 0 },
        { "num-gpus", "all", 0 },
        { "seed", "random", -1 },
        { "seed", "9223372036854775807", INT64_MAX },
    };
    ks_config *c = new_config();
    ks_err err = { 0 };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        assert_int_equal(ks_config_set(c, rows[i].name, rows[i].value, KS_FROM_FLAG, "test", &err), 0);
        assert_true(ks_config_int(c, rows[i].name) == rows[i].num);
    }
    assert_true(isnan(ks_config_float(c, "temperature")));
    assert_int_equal(ks_config_set(c, "temperature", "0.25", KS_FROM_FLAG, "test", &err), 0);
    assert_true(ks_config_float(c, "temperature") == 0.25);
    assert_string_equal(ks_config_str(c, "benchmark"), "false");
    ks_config_free(c);
}

static void lists_of_numbers_come_as_numbers(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    int64_t *v;
    size_t n;
    assert_int_equal(ks_config_ints(c, "pp-partition", &v, &n, &err), 0);
    assert_null(v);
    assert_int_equal(n, 0);
    assert_int_equal(ks_config_set(c, "pp-partition", "24,23,1", KS_FROM_FLAG, "test", &err), 0);
    assert_int_equal(ks_config_ints(c, "pp-partition", &v, &n, &err), 0);
    assert_int_equal(n, 3);
    assert_true(v[0] == 24 && v[1] == 23 && v[2] == 1);
    free(v);
    assert_int_equal(ks_config_set(c, "selected-gpus", "0,GPU-1a2b-3c,7", KS_FROM_FLAG, "test", &err), 0);
    ks_config_free(c);
}

static void bad_values_name_flag_value_and_what_is_allowed(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        { "port", "99999", "--port: '99999' is not allowed: a whole number from 0 to 65535" },
        { "port", "", "--port: '' is not allowed: a whole number from 0 to 65535" },
        { "port", "80x", "--port: '80x' is not allowed: a whole number from 0 to 65535" },
        { "port", " 80", "--port: ' 80' is not allowed: a whole number from 0 to 65535" },
        { "port", "+80", "--port: '+80' is not allowed: a whole number from 0 to 65535" },
        { "port", "99999999999999999999",
          "--port: '99999999999999999999' is not allowed: a whole number from 0 to 65535" },
        { "num-gpus", "0", "--num-gpus: '0' is not allowed: a whole number from 1 to 64, or all" },
        { "num-gpus", "al", "--num-gpus: 'al' is not allowed: a whole number from 1 to 64, or all" },
        { "cpu-expert-bits", "5", "--cpu-expert-bits: '5' is not allowed: 4, 8 or 16" },
        { "cpu-expert-bits", "4|8", "--cpu-expert-bits: '4|8' is not allowed: 4, 8 or 16" },
        { "kv-dtype", "fp8", "--kv-dtype: 'fp8' is not allowed: fp8_e4m3, bf16 or f32" },
        { "kv-dtype", "", "--kv-dtype: '' is not allowed: fp8_e4m3, bf16 or f32" },
        { "vram-limit", "16Q",
          "--vram-limit: '16Q' is not allowed: a whole number with K, M, G or T from 64M to 1024T, or auto" },
        { "vram-limit", "16Gx",
          "--vram-limit: '16Gx' is not allowed: a whole number with K, M, G or T from 64M to 1024T, or auto" },
        { "vram-limit", "9999999T",
          "--vram-limit: '9999999T' is not allowed: a whole number with K, M, G or T from 64M to 1024T, or auto" },
        { "shutdown-timeout", "5",
          "--shutdown-timeout: '5' is not allowed: a whole number with ms, s, m or h from 0s to 24h" },
        { "shutdown-timeout", "9223372036854775807h",
          "--shutdown-timeout: '9223372036854775807h' is not allowed: a whole number with ms, s, m or h from 0s to "
          "24h" },
        { "temperature", "nan", "--temperature: 'nan' is not allowed: a number from 0 to 2, or auto" },
        { "temperature", "1e999", "--temperature: '1e999' is not allowed: a number from 0 to 2, or auto" },
        { "temperature", "0.5 ", "--temperature: '0.5 ' is not allowed: a number from 0 to 2, or auto" },
        { "temperature", "2.1",
          "--temperature: '2.1' is not allowed: a number from 0 to 2, or auto" }, /* the engine's */
        { "temperature", "-0.5", "--temperature: '-0.5' is not allowed: a number from 0 to 2, or auto" },
        { "benchmark", "2", "--benchmark: '2' is not allowed: true or false" },
        { "pp-partition", "24,0",
          "--pp-partition: '24,0' is not allowed: whole numbers from 1 to 65536, separated by commas, or auto" },
        { "pp-partition", "24,",
          "--pp-partition: '24,' is not allowed: whole numbers from 1 to 65536, separated by commas, or auto" },
        { "selected-gpus", "1,01",
          "--selected-gpus: '1,01' is not allowed: different indices from 0 to 63 or UUIDs, separated by commas, or "
          "all" },
        { "selected-gpus", "GPU-a,GPU-a",
          "--selected-gpus: 'GPU-a,GPU-a' is not allowed: different indices from 0 to 63 or UUIDs, separated by "
          "commas, or all" },
        { "selected-gpus", "GPU-",
          "--selected-gpus: 'GPU-' is not allowed: different indices from 0 to 63 or UUIDs, separated by commas, or "
          "all" },
        { "kernels", "a,,b", "--kernels: 'a,,b' is not allowed: names, separated by commas" },
        { "host", "", "--host: '' is not allowed: a text" },
        { "host", "a\nb", "--host: the value has a control character (0x0a)" },
        { "note", "a\xff", "--note: the value is not UTF-8" },
        { "ids", "1,-2", "--ids: '1,-2' is not allowed: whole numbers, at least 0, separated by commas" },
    };
    ks_config *c = new_config();
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        ks_err err = { 0 };
        char origin[64], before[64];
        (void)snprintf(origin, sizeof origin, "--%s", rows[i][0]);
        (void)snprintf(before, sizeof before, "%s", ks_config_str(c, rows[i][0]));
        assert_int_equal(ks_config_set(c, rows[i][0], rows[i][1], KS_FROM_FLAG, origin, &err), KS_E_CONFIG);
        assert_string_equal(err.msg, rows[i][2]);
        assert_string_equal(ks_config_str(c, rows[i][0]), before);
    }
    ks_config_free(c);
}

static void a_long_bad_value_is_cut_on_a_character(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    char v[301];
    for (size_t i = 0; i < 300; i += 2) memcpy(v + i, "\xc3\xa9", 2);
    v[300] = '\0';
    assert_int_equal(ks_config_set(c, "port", v, KS_FROM_FLAG, "--port", &err), KS_E_CONFIG);
    assert_non_null(strstr(err.msg, "\xc3\xa9...' is not allowed"));
    ks_config_free(c);
}

static void a_secret_is_not_repeated_in_a_message(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_int_equal(ks_config_set(c, "api-key", "top\tsecret", KS_FROM_FLAG, "--api-key", &err), KS_E_CONFIG);
    assert_null(strstr(err.msg, "secret"));
    ks_config_free(c);
}

static void a_value_over_4095_bytes_is_refused(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    char *v = malloc(4097);
    assert_non_null(v);
    memset(v, 'a', 4096);
    v[4096] = '\0';
    assert_int_equal(ks_config_set(c, "note", v, KS_FROM_FLAG, "--note", &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "--note: the value has 4096 bytes, at most 4095 are allowed");
    assert_int_equal(ks_config_set(c, "prompt", v, KS_FROM_FLAG, "--prompt", &err), 0);
    v[4095] = '\0';
    assert_int_equal(ks_config_set(c, "note", v, KS_FROM_FLAG, "--note", &err), 0);
    free(v);
    ks_config_free(c);
}

static void higher_rank_wins_in_any_order(void **state)
{
    (void)state;
    static const int order[][4] = { { 0, 1, 2, 3 }, { 3, 2, 1, 0 }, { 2, 3, 0, 1 }, { 1, 3, 2, 0 } };
    static const char *const values[] = { "8012", "1", "2", "3" }, *const origins[] = { "default", "f.ini:1", "saved:1",
                                                                                        "--port" };
    for (size_t o = 0; o < KS_COUNT(order); o++) {
        ks_config *c = new_config();
        ks_err err = { 0 };
        for (size_t i = 0; i < 4; i++) {
            const int r = order[o][i];
            assert_int_equal(ks_config_set(c, "port", values[r], r, origins[r], &err), 0);
        }
        assert_int_equal(ks_config_int(c, "port"), 3);
        assert_int_equal(ks_config_from(c, "port"), KS_FROM_FLAG);
        assert_string_equal(ks_config_origin(c, "port"), "--port");
        ks_config_free(c);
    }
}

static void a_bad_value_of_lower_rank_is_still_an_error(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_int_equal(ks_config_set(c, "port", "1", KS_FROM_FLAG, "--port", &err), 0);
    assert_int_equal(ks_config_set(c, "port", "x", KS_FROM_FILE, "f.ini:1", &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "f.ini:1: port: 'x' is not allowed: a whole number from 0 to 65535");
    ks_config_free(c);
}

static void saved_settings_read_back_equal(void **state)
{
    (void)state;
    ks_config *a = new_config(), *b = new_config();
    ks_err err = { 0 };
    static const char *const rows[][2] = { { "note", " a ; b # \"c\" " },
                                           { "note", "\"x" },
                                           { "note", "plain" },
                                           { "note", ";x" },
                                           { "note", "x;" },
                                           { "note", "" } };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        ks_config_free(b);
        b = new_config();
        assert_int_equal(ks_config_set(a, rows[i][0], rows[i][1], KS_FROM_FLAG, "--note", &err), 0);
        assert_int_equal(ks_config_set(a, "vram-limit", "16G", KS_FROM_FLAG, "--vram-limit", &err), 0);
        assert_int_equal(ks_config_set(a, "model-path", "here/it is", KS_FROM_FLAG, "--model-path", &err), 0);
        assert_int_equal(parse_ini(a, "[http]\nbody = \" 1\"\n", &err), 0);
        assert_int_equal(ks_config_save(a, "saved.ini", &err), 0);
        assert_int_equal(ks_config_read_ini(b, "saved.ini", KS_FROM_SAVED, &err), 0);
        assert_string_equal(ks_config_str(b, "note"), rows[i][1]);
        assert_int_equal(ks_config_from(b, "note"), KS_FROM_SAVED);
        assert_int_equal(ks_config_from(b, "port"), KS_FROM_DEFAULT);
        assert_string_equal(ks_config_str(b, "vram-limit"), "16G");
        char *cwd = getcwd(NULL, 0), *full = ks_path_join(cwd, "here/it is");
        assert_string_equal(ks_config_str(b, "model-path"), full);
        free(cwd);
        free(full);
        const char *plugin, *key, *value, *origin;
        assert_int_equal(ks_config_n_plugin(b), 1);
        ks_config_plugin(b, 0, &plugin, &key, &value, &origin);
        assert_string_equal(value, " 1");
    }
    ks_config_free(a);
    ks_config_free(b);
}

static void secrets_are_not_saved(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_int_equal(ks_config_set(c, "api-key", "k", KS_FROM_FLAG, "--api-key", &err), 0);
    assert_int_equal(ks_config_save(c, "secret.ini", &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "--api-key: secrets are not saved: use --api-key-file");
    assert_false(ks_file_exists("secret.ini"));
    ks_config_free(c);
}

static void show_gives_values_with_origin_and_hides_secrets(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    char *text = NULL;
    size_t n = 0;
    assert_int_equal(ks_config_set(c, "api-key", "topsecret", KS_FROM_FLAG, "--api-key", &err), 0);
    assert_int_equal(parse_ini(c, "[server]\nport = 9000\n[http]\nbody = 1\n", &err), 0);
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    ks_config_show(c, f);
    assert_int_equal(fclose(f), 0);
    assert_non_null(strstr(text, "[server]\n"));
    assert_non_null(strstr(text, "port                  = 9000                  (conf/x.ini:2)\n"));
    assert_non_null(strstr(text, "host                  = 0.0.0.0               (default)\n"));
    assert_non_null(strstr(text, "[http] body = 1  (conf/x.ini:4)\n"));
    assert_non_null(strstr(text, "(not shown)"));
    assert_null(strstr(text, "topsecret"));
    free(text);
    ks_config_free(c);
}

static void home_is_put_for_a_tilde(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    assert_int_equal(setenv("HOME", "/home/u", 1), 0);
    assert_int_equal(ks_config_set(c, "model-path", "~/m", KS_FROM_FLAG, "--model-path", &err), 0);
    assert_string_equal(ks_config_str(c, "model-path"), "/home/u/m");
    assert_int_equal(ks_config_set(c, "model-path", "~", KS_FROM_FLAG, "--model-path", &err), 0);
    assert_string_equal(ks_config_str(c, "model-path"), "/home/u");
    assert_int_equal(ks_config_set(c, "model-path", "~u/m", KS_FROM_FLAG, "--model-path", &err), 0);
    assert_string_equal(ks_config_str(c, "model-path"), "~u/m");
    assert_int_equal(unsetenv("HOME"), 0);
    assert_int_equal(ks_config_set(c, "model-path", "~/m", KS_FROM_FLAG, "--model-path", &err), KS_E_CONFIG);
    assert_string_equal(err.msg, "--model-path: '~' needs the variable HOME, which is not set");
    ks_config_free(c);
}

static void count_note(void *ctx, const char *line)
{
    (void)snprintf(ctx, 512, "%s", line);
}

static void without_a_gpu_a_flag_is_an_error_and_a_file_a_note(void **state)
{
    (void)state;
    ks_config *c = new_config();
    ks_err err = { 0 };
    char note[512] = "";
    assert_int_equal(ks_config_no_gpu(c, count_note, note, &err), 0);
    assert_string_equal(note, "");
    assert_int_equal(ks_config_set(c, "gpu-expert-bits", "4", KS_FROM_FLAG, "--gpu-expert-bits", &err),
                     0); /* the default */
    assert_int_equal(ks_config_no_gpu(c, count_note, note, &err), 0);
    assert_string_equal(note, "");
    assert_int_equal(parse_ini(c, "[gpu]\nnum-gpus = 2\n", &err), 0);
    assert_int_equal(ks_config_no_gpu(c, count_note, note, &err), 0);
    assert_string_equal(note, "conf/x.ini:2: num-gpus = 2 needs a GPU, and none is usable here: the CPU computes");
    assert_int_equal(ks_config_set(c, "num-gpus", "2", KS_FROM_FLAG, "--num-gpus", &err), 0);
    assert_int_equal(ks_config_no_gpu(c, count_note, note, &err), KS_E_CONFIG);
    assert_string_equal(
        err.msg, "--num-gpus: '2' needs a GPU, and none is usable here: leave the flag out to compute on the CPU; "
                 "`krasis plugins` tells why");
    ks_config_free(c);
    c = new_config();
    assert_int_equal(ks_config_set(c, "device", "cpu", KS_FROM_FLAG, "--device", &err), 0);
    assert_int_equal(ks_config_no_gpu(c, NULL, NULL, &err), 0);
    assert_int_equal(ks_config_set(c, "device", "cuda", KS_FROM_FLAG, "--device", &err), 0);
    assert_int_equal(ks_config_no_gpu(c, NULL, NULL, &err), KS_E_CONFIG);
    ks_config_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_document),
        cmocka_unit_test(values_are_read_by_type),
        cmocka_unit_test(lists_of_numbers_come_as_numbers),
        cmocka_unit_test(bad_values_name_flag_value_and_what_is_allowed),
        cmocka_unit_test(a_long_bad_value_is_cut_on_a_character),
        cmocka_unit_test(a_secret_is_not_repeated_in_a_message),
        cmocka_unit_test(a_value_over_4095_bytes_is_refused),
        cmocka_unit_test(higher_rank_wins_in_any_order),
        cmocka_unit_test(a_bad_value_of_lower_rank_is_still_an_error),
        cmocka_unit_test(saved_settings_read_back_equal),
        cmocka_unit_test(secrets_are_not_saved),
        cmocka_unit_test(show_gives_values_with_origin_and_hides_secrets),
        cmocka_unit_test(home_is_put_for_a_tilde),
        cmocka_unit_test(without_a_gpu_a_flag_is_an_error_and_a_file_a_note),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
